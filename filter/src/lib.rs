//! SQL92 filters over message properties, as RocketMQ's consumers write them.
//!
//! ```
//! let expression = ledgermq_filter::Expression::parse("region = 'eu' AND amount BETWEEN 10 AND 99").unwrap();
//! let message = [("region", "eu"), ("amount", "42")];
//! assert!(expression.matches(&message.as_slice()));
//! ```
//!
//! An expression is parsed once ([`Expression::parse`], or [`parse_cached`] where the same text comes
//! again and again) and evaluated without allocation. Nothing here reads a clock, a file or a message:
//! the caller offers named properties ([`Properties`]).
//!
//! # Grammar, lowest precedence first
//!
//! ```text
//! condition  := and { OR and }
//! and        := equality { AND equality }
//! equality   := comparison { ( = | <> ) comparison | IS [NOT] NULL }
//! comparison := unary { ( > | >= | < | <= ) unary
//!                     | [NOT] ( CONTAINS | STARTSWITH | ENDSWITH ) text
//!                     | [NOT] BETWEEN unary AND unary
//!                     | [NOT] IN ( text {, text} ) }
//! unary      := + unary | - unary | NOT unary | primary
//! primary    := 'text' | integer | float | TRUE | FALSE | NULL | property | ( condition )
//! ```
//!
//! Keywords in any case; property names `[A-Za-z_$][A-Za-z0-9_$]*`, case-sensitive; `''` is a quote
//! inside a text; comments are `-- …` to the end of the line and `/* … */`. There is no LIKE, no
//! arithmetic, no `!=` and no function, as in RocketMQ.
//!
//! # Meaning
//!
//! Every property is a text. A condition is TRUE, FALSE or unknown; only TRUE matches.
//!
//! | Case | Result |
//! |---|---|
//! | property against an integer | the text read as an integer; one that is none ends the evaluation: no match |
//! | property against a float, or two properties with `<` `<=` `>` `>=` | read as floats; likewise |
//! | property against a text with `=` `<>` | compared as texts |
//! | property against TRUE or FALSE | the text read as a boolean: `true` in any case, else false |
//! | TRUE or FALSE on the left of a property | ends the evaluation: no match |
//! | missing on the left of `=` `<>`; missing in `<` `>` BETWEEN IN | unknown |
//! | missing only on the right of `=`, of `<>` | FALSE, TRUE |
//! | two missing ones | equal |
//! | CONTAINS and its like: property missing, or the searched text empty | FALSE, also with NOT |
//! | a property alone as condition | FALSE; unknown if it is missing |
//!
//! Where RocketMQ's Java evaluator gives a result, this one gives the same, but for these:
//!
//! | Case | RocketMQ | here |
//! |---|---|---|
//! | text after a complete expression | ignored | refused with its position |
//! | integers beyond 32 bits in a property, against a small literal | no match | compared |
//! | the literal `0.0` | refused | accepted |
//! | `NaN`, `Infinity`, `0x1p3`, `5d` as a float in a property | read | not a number: no match |
//! | `-- comment` without a line end | refused | accepted |
//!
//! # Limits
//!
//! | What | Limit | Beyond it |
//! |---|---|---|
//! | bytes of an expression | [`EXPRESSION_BYTES_MAX`] | refused |
//! | parentheses, NOT, signs and chains of `=` or IS inside each other | [`NESTING_MAX`] | refused at the place |
//! | texts of cached expressions | [`cache::GENERATION_BYTES_MAX`], twice | the oldest are parsed anew |

#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![cfg_attr(test, allow(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod cache;
mod error;
mod expression;
mod lexer;
mod parser;

pub use cache::parse_cached;
pub use error::{Fault, FilterError};
pub use expression::{Expression, Properties};
pub use lexer::Position;

pub const EXPRESSION_BYTES_MAX: usize = 16 * 1024;
/// A hundred nested parentheses are fine; what generates more is asked to write it flatter.
pub const NESTING_MAX: usize = 128;
