//! Recursive descent over the grammar in the crate's documentation. What can be refused for its
//! types is refused here, with the place of the operand, so that evaluation has nothing to report.

use crate::error::{Fault, FilterError};
use crate::expression::{Node, OrderOperator, Search};
use crate::lexer::{Keyword, Lexer, Token, not_supported};
use crate::{EXPRESSION_BYTES_MAX, NESTING_MAX};

pub(crate) fn parse(text: &str) -> Result<Node, FilterError> {
    parse_boxed(text).map_err(|refusal| *refusal)
}

fn parse_boxed(text: &str) -> Result<Node, Refusal> {
    let mut lexer = Lexer::new(text);
    if text.len() > EXPRESSION_BYTES_MAX {
        return Err(Box::new(lexer.error(0, Fault::TooLong { bytes: text.len() })));
    }
    let (at, token) = lexer.next()?;
    if token == Token::End {
        return Err(Box::new(lexer.error(at, Fault::Empty)));
    }
    let mut parser = Parser { lexer, token, at, depth: 0 };
    let root = parser.expression(Level::Or)?;
    if parser.token != Token::End {
        return Err(parser.leftover());
    }
    parser.as_condition(root).map(|part| part.node)
}

struct Parser<'a> {
    lexer: Lexer<'a>,
    token: Token<'a>,
    /// Where `token` begins.
    at: usize,
    depth: usize,
}

/// A parsed part, where it began, and how many nodes lie above each other in it.
struct Part {
    node: Node,
    at: usize,
    height: usize,
}

/// How tightly operators bind, the loosest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Or,
    And,
    Equality,
    Comparison,
}

/// Boxed, so that the results on the stack are small.
type Refusal = Box<FilterError>;

impl<'a> Parser<'a> {
    fn error(&self, byte: usize, fault: Fault) -> Refusal {
        Box::new(self.lexer.error(byte, fault))
    }

    fn advance(&mut self) -> Result<(), Refusal> {
        (self.at, self.token) = self.lexer.next()?;
        Ok(())
    }

    fn take(&mut self, wanted: Token<'static>) -> Result<bool, Refusal> {
        let found = self.token == wanted;
        if found {
            self.advance()?;
        }
        Ok(found)
    }

    fn take_keyword(&mut self, wanted: Keyword) -> Result<bool, Refusal> {
        self.take(Token::Keyword(wanted))
    }

    fn expect(&mut self, wanted: Token<'static>, name: &'static str) -> Result<(), Refusal> {
        if self.take(wanted)? { Ok(()) } else { Err(self.unexpected(name)) }
    }

    fn unexpected(&self, expected: &'static str) -> Refusal {
        let written = self.lexer.slice(self.at, self.lexer.at());
        let found = match self.token {
            Token::End => "the end".to_owned(),
            _ if written.chars().count() > 24 => {
                format!("\"{}…\"", written.chars().take(24).collect::<String>())
            }
            _ => format!("\"{written}\""),
        };
        self.error(self.at, Fault::Unexpected { expected, found })
    }

    /// Something follows a complete expression.
    fn leftover(&self) -> Refusal {
        match self.token {
            Token::Name(name) if name.eq_ignore_ascii_case("LIKE") => {
                self.error(self.at, not_supported("LIKE", "use CONTAINS, STARTSWITH or ENDSWITH"))
            }
            Token::Open => self.error(self.at, not_supported("calling a function", "there are none")),
            Token::Plus | Token::Minus => {
                self.error(self.at, not_supported("arithmetic", "compare with the result instead"))
            }
            _ => self.unexpected("an operator, AND, OR or the end"),
        }
    }

    fn part(&self, node: Node, at: usize, height: usize) -> Result<Part, Refusal> {
        if height > NESTING_MAX {
            return Err(self.error(at, Fault::TooDeep));
        }
        Ok(Part { node, at, height })
    }

    fn as_condition(&self, part: Part) -> Result<Part, Refusal> {
        match part.node {
            Node::Property(_) => self.part(Node::Truth(Box::new(part.node)), part.at, part.height + 1),
            ref node if node.is_condition() => Ok(part),
            ref node => Err(self.error(part.at, Fault::NotACondition { what: node.kind() })),
        }
    }

    /// Operators of `lowest` and what binds tighter. One function for all of them, so that a nested
    /// parenthesis costs few frames of the stack.
    fn expression(&mut self, lowest: Level) -> Result<Part, Refusal> {
        let mut left = self.unary()?;
        // Operators of one level group to the left; none that binds tighter can follow a weaker one.
        let mut tightest = Level::Comparison;
        while let Some(level) = self.operator_level()
            && (lowest..=tightest).contains(&level)
        {
            tightest = level;
            left = match level {
                Level::Or => self.joined(left, Keyword::Or, Level::And, Node::Any)?,
                Level::And => self.joined(left, Keyword::And, Level::Equality, Node::All)?,
                Level::Equality => self.equality(left)?,
                Level::Comparison => self.comparison(left)?,
            };
        }
        Ok(left)
    }

    fn operator_level(&self) -> Option<Level> {
        Some(match self.token {
            Token::Keyword(Keyword::Or) => Level::Or,
            Token::Keyword(Keyword::And) => Level::And,
            Token::Equal | Token::Unequal | Token::Keyword(Keyword::Is) => Level::Equality,
            Token::Less
            | Token::LessEqual
            | Token::Greater
            | Token::GreaterEqual
            | Token::Keyword(
                Keyword::Not
                | Keyword::Contains
                | Keyword::StartsWith
                | Keyword::EndsWith
                | Keyword::Between
                | Keyword::In,
            ) => Level::Comparison,
            _ => return None,
        })
    }

    /// A chain of one operator becomes one node, so a long chain is not a deep one.
    fn joined(
        &mut self,
        first: Part,
        operator: Keyword,
        operand: Level,
        join: fn(Vec<Node>) -> Node,
    ) -> Result<Part, Refusal> {
        let first = self.as_condition(first)?;
        let (at, mut height) = (first.at, first.height);
        let mut parts = vec![first.node];
        while self.take_keyword(operator)? {
            let next = self.expression(operand)?;
            let next = self.as_condition(next)?;
            height = height.max(next.height);
            parts.push(next.node);
        }
        self.part(join(parts), at, height + 1)
    }

    fn equality(&mut self, left: Part) -> Result<Part, Refusal> {
        let operator_at = self.at;
        let operator = self.token;
        self.advance()?;
        if operator == Token::Keyword(Keyword::Is) {
            return self.is_null(left);
        }
        let right = self.expression(Level::Comparison)?;
        let spelling = if operator == Token::Equal { "=" } else { "<>" };
        self.check_equatable(&left, &right, operator_at, spelling)?;
        let height = left.height.max(right.height) + 1;
        let equal = Node::Equal(Box::new((left.node, right.node)));
        if operator == Token::Equal {
            self.part(equal, left.at, height)
        } else {
            self.part(Node::Not(Box::new(equal)), left.at, height + 1)
        }
    }

    fn is_null(&mut self, left: Part) -> Result<Part, Refusal> {
        let negated = self.take_keyword(Keyword::Not)?;
        let expected = if negated { "NULL" } else { "NULL or NOT NULL" };
        self.expect(Token::Keyword(Keyword::Null), expected)?;
        let is_null = Node::IsNull(Box::new(left.node));
        let node = if negated { Node::Not(Box::new(is_null)) } else { is_null };
        self.part(node, left.at, left.height + 1 + usize::from(negated))
    }

    fn check_equatable(
        &self,
        left: &Part,
        right: &Part,
        operator_at: usize,
        operator: &'static str,
    ) -> Result<(), Refusal> {
        for side in [left, right] {
            if side.node == Node::Null {
                return Err(self.error(side.at, Fault::NotComparable { what: "NULL", operator }));
            }
        }
        let unlike = matches!(left.node, Node::Boolean(_))
            && right.node.is_constant()
            && !matches!(right.node, Node::Boolean(_));
        if unlike {
            let what = "TRUE or FALSE beside another constant";
            return Err(self.error(operator_at, Fault::NotComparable { what, operator }));
        }
        Ok(())
    }

    fn comparison(&mut self, left: Part) -> Result<Part, Refusal> {
        let operator = match self.token {
            Token::Less => OrderOperator::Less,
            Token::LessEqual => OrderOperator::LessEqual,
            Token::Greater => OrderOperator::Greater,
            Token::GreaterEqual => OrderOperator::GreaterEqual,
            _ => return self.named_comparison(left),
        };
        self.advance()?;
        let right = self.unary()?;
        self.check_ordered(&left, operator.spelling())?;
        self.check_ordered(&right, operator.spelling())?;
        let height = left.height.max(right.height) + 1;
        self.part(Node::Order(operator, Box::new((left.node, right.node))), left.at, height)
    }

    fn named_comparison(&mut self, left: Part) -> Result<Part, Refusal> {
        let negated = self.take_keyword(Keyword::Not)?;
        match self.token {
            Token::Keyword(Keyword::Contains) => self.search(left, Search::Contains, negated),
            Token::Keyword(Keyword::StartsWith) => self.search(left, Search::StartsWith, negated),
            Token::Keyword(Keyword::EndsWith) => self.search(left, Search::EndsWith, negated),
            Token::Keyword(Keyword::Between) => self.between(left, negated),
            Token::Keyword(Keyword::In) => self.inside(left, negated),
            Token::Name(name) if name.eq_ignore_ascii_case("LIKE") => Err(self.leftover()),
            _ => Err(self.unexpected("IN, BETWEEN, CONTAINS, STARTSWITH or ENDSWITH after NOT")),
        }
    }

    /// Only numbers, and what is read as a number, have an order.
    fn check_ordered(&self, part: &Part, operator: &'static str) -> Result<(), Refusal> {
        match &part.node {
            Node::Integer(_) | Node::Float(_) | Node::Property(_) | Node::Negative(_) => Ok(()),
            other => Err(self.error(part.at, Fault::NotComparable { what: other.kind(), operator })),
        }
    }

    fn search(&mut self, left: Part, search: Search, negated: bool) -> Result<Part, Refusal> {
        self.advance()?;
        let wanted = self.text()?;
        self.part(Node::Search(search, Box::new((left.node, wanted)), negated), left.at, left.height + 1)
    }

    fn between(&mut self, value: Part, negated: bool) -> Result<Part, Refusal> {
        self.advance()?;
        let lowest = self.unary()?;
        self.expect(Token::Keyword(Keyword::And), "AND and the upper bound of BETWEEN")?;
        let greatest = self.unary()?;
        for part in [&value, &lowest, &greatest] {
            self.check_ordered(part, "BETWEEN")?;
        }
        let is_empty = match (&lowest.node, &greatest.node) {
            (Node::Integer(lowest), Node::Integer(greatest)) => lowest > greatest,
            (Node::Float(lowest), Node::Float(greatest)) => lowest > greatest,
            (Node::Integer(lowest), Node::Float(greatest)) => *lowest as f64 > *greatest,
            (Node::Float(lowest), Node::Integer(greatest)) => *lowest > *greatest as f64,
            _ => false,
        };
        if is_empty && !negated {
            return Err(self.error(lowest.at, Fault::EmptyRange));
        }
        let height = value.height.max(lowest.height).max(greatest.height) + 1;
        let node = Node::Between(Box::new((value.node, lowest.node, greatest.node)), negated);
        self.part(node, value.at, height)
    }

    fn inside(&mut self, left: Part, negated: bool) -> Result<Part, Refusal> {
        let Node::Property(property) = left.node else {
            let fault = Fault::InWithoutProperty { what: left.node.kind() };
            return Err(self.error(left.at, fault));
        };
        self.advance()?;
        self.expect(Token::Open, "\"(\" after IN")?;
        let mut texts = vec![self.text()?];
        while self.take(Token::Comma)? {
            texts.push(self.text()?);
        }
        self.expect(Token::Close, "\",\" or \")\" in the list of IN")?;
        self.part(Node::In(property, texts.into(), negated), left.at, 1)
    }

    fn text(&mut self) -> Result<Box<str>, Refusal> {
        let Token::Text(written) = self.token else { return Err(self.unexpected("a 'text'")) };
        self.advance()?;
        Ok(unquoted(written))
    }

    fn unary(&mut self) -> Result<Part, Refusal> {
        if self.depth >= NESTING_MAX {
            return Err(self.error(self.at, Fault::TooDeep));
        }
        self.depth += 1;
        let part = self.unary_inside();
        self.depth -= 1;
        part
    }

    fn unary_inside(&mut self) -> Result<Part, Refusal> {
        let at = self.at;
        match self.token {
            Token::Plus => {
                self.advance()?;
                self.unary()
            }
            Token::Minus => {
                self.advance()?;
                let inner = self.unary()?;
                self.part(Node::Negative(Box::new(inner.node)), at, inner.height + 1)
            }
            Token::Keyword(Keyword::Not) => {
                self.advance()?;
                let inner = self.unary()?;
                let inner = self.as_condition(inner)?;
                self.part(Node::Not(Box::new(inner.node)), at, inner.height + 1)
            }
            _ => self.primary(),
        }
    }

    fn primary(&mut self) -> Result<Part, Refusal> {
        let at = self.at;
        let node = match self.token {
            Token::Text(written) => Node::Text(unquoted(written)),
            Token::Integer(number) => Node::Integer(number),
            Token::Float(number) => Node::Float(number),
            Token::Keyword(Keyword::True) => Node::Boolean(true),
            Token::Keyword(Keyword::False) => Node::Boolean(false),
            Token::Keyword(Keyword::Null) => Node::Null,
            Token::Name(name) => Node::Property(name.into()),
            Token::Open => {
                self.advance()?;
                let inner = self.expression(Level::Or)?;
                if self.token != Token::Close {
                    return Err(match self.token {
                        Token::End => self.unexpected("\")\""),
                        _ => self.leftover(),
                    });
                }
                self.advance()?;
                return Ok(Part { at, ..inner });
            }
            _ => return Err(self.unexpected("a property, a value, NOT or \"(\"")),
        };
        self.advance()?;
        if matches!((&node, self.token), (Node::Property(_), Token::Open)) {
            return Err(self.leftover_function(at));
        }
        self.part(node, at, 1)
    }

    /// The name of a function is the place of the fault, not its parenthesis.
    fn leftover_function(&self, at: usize) -> Refusal {
        let name = self.lexer.slice(at, self.at).trim_end();
        self.error(at, not_supported(&format!("the function {name}()"), "there are no functions"))
    }
}

fn unquoted(written: &str) -> Box<str> {
    if written.contains('\'') { written.replace("''", "'").into() } else { written.into() }
}
