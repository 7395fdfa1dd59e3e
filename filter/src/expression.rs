//! A parsed expression and its evaluation: a walk over the tree that borrows from the expression and
//! from the properties and allocates nothing.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

use crate::error::FilterError;
use crate::parser;

/// The properties of one message.
pub trait Properties {
    fn get(&self, name: &str) -> Option<&str>;
}

/// A handful of pairs, the first of a name counts.
impl Properties for &[(&str, &str)] {
    fn get(&self, name: &str) -> Option<&str> {
        self.iter().find(|(key, _)| *key == name).map(|(_, value)| *value)
    }
}

impl<K: std::borrow::Borrow<str> + Ord> Properties for std::collections::BTreeMap<K, String> {
    fn get(&self, name: &str) -> Option<&str> {
        self.get(name).map(String::as_str)
    }
}

/// A valid expression. Two are equal when their texts are.
#[derive(Clone)]
pub struct Expression {
    text: Arc<str>,
    root: Node,
    properties: Box<[Box<str>]>,
}

impl Expression {
    pub fn parse(text: &str) -> Result<Self, FilterError> {
        let root = parser::parse(text)?;
        let mut properties = Vec::new();
        root.collect_properties(&mut properties);
        properties.sort();
        properties.dedup();
        Ok(Self { text: text.into(), root, properties: properties.into() })
    }

    pub fn text(&self) -> &str {
        &self.text
    }

    pub(crate) fn shared_text(&self) -> Arc<str> {
        Arc::clone(&self.text)
    }

    /// Whether the result can depend on this property.
    pub fn reads(&self, property: &str) -> bool {
        self.properties.binary_search_by(|name| (**name).cmp(property)).is_ok()
    }

    /// Whether a message with these properties is wanted. Unknown, and values that cannot be compared
    /// as the expression asks, are not.
    pub fn matches(&self, properties: &impl Properties) -> bool {
        matches!(self.root.value(properties), Ok(Some(Value::Boolean(true))))
    }
}

impl PartialEq for Expression {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Expression {}

impl fmt::Debug for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Expression").field(&self.text).finish()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OrderOperator {
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
}

impl OrderOperator {
    fn holds(self, ordering: Ordering) -> bool {
        match self {
            Self::Less => ordering.is_lt(),
            Self::LessEqual => ordering.is_le(),
            Self::Greater => ordering.is_gt(),
            Self::GreaterEqual => ordering.is_ge(),
        }
    }

    pub(crate) fn spelling(self) -> &'static str {
        match self {
            Self::Less => "<",
            Self::LessEqual => "<=",
            Self::Greater => ">",
            Self::GreaterEqual => ">=",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Search {
    Contains,
    StartsWith,
    EndsWith,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Node {
    Property(Box<str>),
    Text(Box<str>),
    Integer(i64),
    Float(f64),
    Boolean(bool),
    Null,
    Negative(Box<Node>),
    /// A property that stands where a condition is needed.
    Truth(Box<Node>),
    Not(Box<Node>),
    All(Vec<Node>),
    Any(Vec<Node>),
    Equal(Box<(Node, Node)>),
    IsNull(Box<Node>),
    Order(OrderOperator, Box<(Node, Node)>),
    /// Value, lowest, greatest.
    Between(Box<(Node, Node, Node)>, bool),
    In(Box<str>, Box<[Box<str>]>, bool),
    Search(Search, Box<(Node, Box<str>)>, bool),
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Value<'a> {
    Text(&'a str),
    Integer(i64),
    Float(f64),
    Boolean(bool),
}

/// Two values meet that have no common kind. It ends the evaluation, also inside an OR.
struct Incomparable;

/// `None` is unknown.
type Outcome<'a> = Result<Option<Value<'a>>, Incomparable>;

impl Node {
    /// What the node is called in an error.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Property(_) => "a property",
            Self::Text(_) => "a text",
            Self::Integer(_) | Self::Float(_) => "a number",
            Self::Boolean(_) => "TRUE or FALSE",
            Self::Null => "NULL",
            Self::Negative(_) => "a value with a sign",
            _ => "a condition",
        }
    }

    pub(crate) fn is_condition(&self) -> bool {
        !matches!(
            self,
            Self::Property(_) | Self::Text(_) | Self::Integer(_) | Self::Float(_) | Self::Negative(_)
        )
    }

    pub(crate) fn is_constant(&self) -> bool {
        matches!(self, Self::Text(_) | Self::Integer(_) | Self::Float(_) | Self::Boolean(_) | Self::Null)
    }

    fn collect_properties(&self, names: &mut Vec<Box<str>>) {
        match self {
            Self::Property(name) | Self::In(name, ..) => names.push(name.clone()),
            Self::Text(_) | Self::Integer(_) | Self::Float(_) | Self::Boolean(_) | Self::Null => {}
            Self::Negative(inner) | Self::Truth(inner) | Self::Not(inner) | Self::IsNull(inner) => {
                inner.collect_properties(names);
            }
            Self::All(parts) | Self::Any(parts) => {
                parts.iter().for_each(|part| part.collect_properties(names));
            }
            Self::Equal(sides) | Self::Order(_, sides) => {
                sides.0.collect_properties(names);
                sides.1.collect_properties(names);
            }
            Self::Between(parts, _) => {
                [&parts.0, &parts.1, &parts.2].into_iter().for_each(|part| part.collect_properties(names));
            }
            Self::Search(_, sides, _) => sides.0.collect_properties(names),
        }
    }

    fn value<'a, P: Properties>(&'a self, properties: &'a P) -> Outcome<'a> {
        let truth = match self {
            Self::Property(name) => return Ok(properties.get(name).map(Value::Text)),
            Self::Text(text) => return Ok(Some(Value::Text(text))),
            Self::Integer(number) => return Ok(Some(Value::Integer(*number))),
            Self::Float(number) => return Ok(Some(Value::Float(*number))),
            Self::Boolean(truth) => Some(*truth),
            Self::Null => None,
            Self::Negative(inner) => {
                return Ok(match inner.value(properties)? {
                    Some(Value::Integer(number)) => Some(Value::Integer(number.wrapping_neg())),
                    Some(Value::Float(number)) => Some(Value::Float(-number)),
                    _ => None,
                });
            }
            Self::Truth(inner) => inner.value(properties)?.map(|value| value == Value::Boolean(true)),
            Self::Not(inner) => inner.truth(properties)?.map(|truth| !truth),
            Self::All(parts) => all(parts.iter().map(|part| part.truth(properties)))?,
            Self::Any(parts) => any(parts.iter().map(|part| part.truth(properties)))?,
            Self::Equal(sides) => equal(sides.0.value(properties)?, sides.1.value(properties)?)?,
            Self::IsNull(inner) => Some(inner.value(properties)?.is_none()),
            Self::Order(operator, sides) => sides.0.order(*operator, &sides.1, properties)?,
            Self::Between(parts, negated) => {
                let (value, lowest, greatest) = &**parts;
                if *negated {
                    let below = value.order(OrderOperator::Less, lowest, properties);
                    any([below, value.order(OrderOperator::Greater, greatest, properties)].into_iter())?
                } else {
                    let above = value.order(OrderOperator::GreaterEqual, lowest, properties);
                    all([above, value.order(OrderOperator::LessEqual, greatest, properties)].into_iter())?
                }
            }
            Self::In(property, texts, negated) => {
                properties.get(property).map(|value| texts.iter().any(|text| **text == *value) != *negated)
            }
            Self::Search(search, sides, negated) => {
                let (operand, wanted) = &**sides;
                match operand.value(properties)? {
                    Some(Value::Text(text)) if !wanted.is_empty() => {
                        let found = match search {
                            Search::Contains => text.contains(&**wanted),
                            Search::StartsWith => text.starts_with(&**wanted),
                            Search::EndsWith => text.ends_with(&**wanted),
                        };
                        Some(found != *negated)
                    }
                    _ => Some(false),
                }
            }
        };
        Ok(truth.map(Value::Boolean))
    }

    fn truth<P: Properties>(&self, properties: &P) -> Result<Option<bool>, Incomparable> {
        Ok(match self.value(properties)? {
            Some(Value::Boolean(truth)) => Some(truth),
            // The parser puts conditions only where a truth is asked for.
            Some(_) => Some(false),
            None => None,
        })
    }

    fn order<P: Properties>(
        &self,
        operator: OrderOperator,
        right: &Node,
        properties: &P,
    ) -> Result<Option<bool>, Incomparable> {
        let Some(left) = self.value(properties)? else { return Ok(None) };
        let Some(right) = right.value(properties)? else { return Ok(None) };
        let ordering = match (left, right) {
            (Value::Text(left), Value::Text(right)) => Some(compare_floats(float(left)?, float(right)?)),
            (left, right) => compare(left, right)?,
        };
        Ok(Some(ordering.is_some_and(|ordering| operator.holds(ordering))))
    }
}

/// FALSE decides; what cannot be evaluated before that ends it.
fn all(
    parts: impl Iterator<Item = Result<Option<bool>, Incomparable>>,
) -> Result<Option<bool>, Incomparable> {
    let mut result = Some(true);
    for part in parts {
        match part? {
            Some(false) => return Ok(Some(false)),
            Some(true) => {}
            None => result = None,
        }
    }
    Ok(result)
}

/// TRUE decides; what cannot be evaluated before that ends it.
fn any(
    parts: impl Iterator<Item = Result<Option<bool>, Incomparable>>,
) -> Result<Option<bool>, Incomparable> {
    let mut result = Some(false);
    for part in parts {
        match part? {
            Some(true) => return Ok(Some(true)),
            Some(false) => {}
            None => result = None,
        }
    }
    Ok(result)
}

fn equal(left: Option<Value<'_>>, right: Option<Value<'_>>) -> Result<Option<bool>, Incomparable> {
    match (left, right) {
        (None, None) => Ok(Some(true)),
        (None, Some(_)) => Ok(None),
        (Some(_), None) => Ok(Some(false)),
        (Some(Value::Text(left)), Some(Value::Text(right))) => Ok(Some(left == right)),
        (Some(left), Some(right)) => Ok(Some(compare(left, right)? == Some(Ordering::Equal))),
    }
}

/// `None`: kinds that are never equal.
fn compare(left: Value<'_>, right: Value<'_>) -> Result<Option<Ordering>, Incomparable> {
    use Value::{Boolean, Float, Integer, Text};
    Ok(Some(match (left, right) {
        (Text(left), Text(right)) => left.cmp(right),
        (Integer(left), Integer(right)) => left.cmp(&right),
        (Float(left), Float(right)) => compare_floats(left, right),
        (Boolean(left), Boolean(right)) => left.cmp(&right),
        (Integer(left), Float(right)) => compare_floats(left as f64, right),
        (Float(left), Integer(right)) => compare_floats(left, right as f64),
        (Text(left), Integer(right)) => integer(left)?.cmp(&right),
        (Integer(left), Text(right)) => left.cmp(&integer(right)?),
        (Text(left), Float(right)) => compare_floats(float(left)?, right),
        (Float(left), Text(right)) => compare_floats(left, float(right)?),
        (Text(left), Boolean(right)) => left.eq_ignore_ascii_case("true").cmp(&right),
        (Boolean(_), Text(_)) => return Err(Incomparable),
        (Boolean(_), Integer(_) | Float(_)) | (Integer(_) | Float(_), Boolean(_)) => return Ok(None),
    }))
}

/// None of ours is NaN: literals are finite and [`float`] reads digits only.
fn compare_floats(left: f64, right: f64) -> Ordering {
    left.partial_cmp(&right).unwrap_or(Ordering::Equal)
}

fn integer(text: &str) -> Result<i64, Incomparable> {
    text.parse().map_err(|_| Incomparable)
}

fn float(text: &str) -> Result<f64, Incomparable> {
    let text = text.trim_matches(|character: char| character <= ' ');
    // Rust also reads words such as "inf", which no producer means as a number.
    let digits_only = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'.' | b'e' | b'E' | b'+' | b'-'));
    if digits_only { text.parse().map_err(|_| Incomparable) } else { Err(Incomparable) }
}
