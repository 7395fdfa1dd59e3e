//! Why an expression is refused, and where.

use crate::lexer::Position;
use crate::{EXPRESSION_BYTES_MAX, NESTING_MAX};

/// The first fault of an expression. Its text is meant for the one who wrote the expression.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{at}: {fault}")]
pub struct FilterError {
    pub at: Position,
    pub fault: Fault,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("the expression has {bytes} bytes; the limit is {EXPRESSION_BYTES_MAX}")]
    TooLong { bytes: usize },
    #[error("the expression is empty")]
    Empty,
    #[error("nested deeper than {NESTING_MAX}")]
    TooDeep,
    #[error("unexpected character {character:?}")]
    Character { character: char },
    #[error("the text that begins here has no closing quote")]
    OpenText,
    #[error("the comment that begins here has no end")]
    OpenComment,
    #[error("{number} is no number: {reason}")]
    Number { number: String, reason: &'static str },
    #[error("expected {expected}, found {found}")]
    Unexpected { expected: &'static str, found: String },
    #[error("{what} is not part of SQL92 filters; {instead}")]
    NotSupported { what: String, instead: &'static str },
    #[error("{what} is not a condition: it is neither true nor false")]
    NotACondition { what: &'static str },
    #[error("{what} cannot be compared with {operator}")]
    NotComparable { what: &'static str, operator: &'static str },
    #[error("IN needs a property on its left, found {what}")]
    InWithoutProperty { what: &'static str },
    #[error("BETWEEN has its lower bound above its upper bound")]
    EmptyRange,
}
