//! A serde deserializer over the merged tree that knows where it is: every failure carries the
//! dotted key and the place the value was written, and unknown keys are refused at any depth,
//! because a struct tells its field names to the deserializer before it takes a value.

use std::fmt;

use serde::de::{
    DeserializeSeed, Deserializer, EnumAccess, Error as _, Expected, IntoDeserializer, MapAccess, SeqAccess,
    Unexpected, VariantAccess, Visitor,
};

use super::tree::{Node, NodeValue};
use super::{ConfigError, MissingKey, UnknownKey, WrongValue, nearest};

/// A value is quoted in an error message up to this length.
const QUOTED_CHARS_MAX: usize = 80;

#[derive(Debug)]
pub(super) struct ReadFailure {
    place: Option<Place>,
    what: What,
}

#[derive(Debug)]
struct Place {
    key: String,
    origin: String,
    found: String,
}

#[derive(Debug)]
enum What {
    Unknown { name: String, known: Vec<&'static str> },
    Missing { name: &'static str },
    Wrong { expected: String },
}

impl ReadFailure {
    fn at(mut self, at: &At<'_>) -> Self {
        self.place.get_or_insert_with(|| Place {
            key: at.key.clone(),
            origin: at.node.origin.to_string(),
            found: describe(at.node),
        });
        self
    }

    pub fn into_config_error(self) -> ConfigError {
        let place = self.place.unwrap_or_else(|| Place {
            key: String::new(),
            origin: "the configuration".to_owned(),
            found: "not usable".to_owned(),
        });
        match self.what {
            What::Unknown { name, known } => UnknownKey {
                nearest: nearest(&name, known).map(|near| join(&place.key, &near)),
                key: join(&place.key, &name),
                origin: place.origin,
            }
            .into(),
            What::Missing { name } => MissingKey { key: join(&place.key, name) }.into(),
            What::Wrong { expected } => {
                WrongValue { key: place.key, origin: place.origin, found: place.found, expected }.into()
            }
        }
    }
}

impl fmt::Display for ReadFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.what)
    }
}

impl std::error::Error for ReadFailure {}

impl serde::de::Error for ReadFailure {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self { place: None, what: What::Wrong { expected: format!("a usable value ({message})") } }
    }

    fn invalid_type(_: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self { place: None, what: What::Wrong { expected: in_words(&expected.to_string()) } }
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::invalid_type(found, expected)
    }

    fn invalid_length(_: usize, expected: &dyn Expected) -> Self {
        Self { place: None, what: What::Wrong { expected: in_words(&expected.to_string()) } }
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        let near = nearest(variant, expected.iter().copied())
            .map(|name| format!("; the nearest is \"{name}\""))
            .unwrap_or_default();
        let all = expected.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ");
        Self { place: None, what: What::Wrong { expected: format!("one of {all}{near}") } }
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        Self { place: None, what: What::Unknown { name: field.to_owned(), known: expected.to_vec() } }
    }

    fn missing_field(field: &'static str) -> Self {
        Self { place: None, what: What::Missing { name: field } }
    }
}

/// A node and the dotted key that leads to it.
pub(super) struct At<'a> {
    node: &'a Node,
    key: String,
}

impl<'a> At<'a> {
    pub fn root(node: &'a Node) -> Self {
        Self { node, key: String::new() }
    }

    fn below<'b>(&self, name: &str, node: &'b Node) -> At<'b> {
        At { node, key: join(&self.key, name) }
    }

    /// Runs `read` on the node, or, for a text, on what the text means as TOML. The reparsed node
    /// lives only as long as this call, which is why visitors here never borrow.
    fn structured<T>(
        &self,
        as_list: bool,
        read: impl FnOnce(&At<'_>) -> Result<T, ReadFailure>,
    ) -> Result<T, ReadFailure> {
        let outcome = match &self.node.value {
            NodeValue::Text(text) => match from_text(text, as_list, &self.node.origin) {
                Some(node) => read(&At { node: &node, key: self.key.clone() }),
                None => read(self),
            },
            _ => read(self),
        };
        outcome.map_err(|failure| failure.at(self))
    }

    fn visit_scalar<'de, V: Visitor<'de>>(&self, visitor: V) -> Result<V::Value, ReadFailure> {
        let NodeValue::Scalar(scalar) = &self.node.value else {
            return Err(ReadFailure::invalid_type(Unexpected::Other("table or list"), &visitor));
        };
        match scalar {
            toml::Value::String(text) => visitor.visit_str(text),
            toml::Value::Integer(number) => match u64::try_from(*number) {
                Ok(number) => visitor.visit_u64(number),
                Err(_) => visitor.visit_i64(*number),
            },
            toml::Value::Float(number) => visitor.visit_f64(*number),
            toml::Value::Boolean(truth) => visitor.visit_bool(*truth),
            other => visitor.visit_string(other.to_string()),
        }
    }
}

fn from_text(text: &str, as_list: bool, origin: &str) -> Option<Node> {
    let parsed = format!("value = {text}").parse::<toml::Table>().ok().and_then(|mut t| t.remove("value"));
    match parsed {
        Some(value @ (toml::Value::Array(_) | toml::Value::Table(_))) => Some(Node::from_toml(value, origin)),
        _ if as_list => Some(Node {
            value: NodeValue::List(
                text.split(',')
                    .map(str::trim)
                    .filter(|part| !part.is_empty())
                    .map(|part| Node { value: NodeValue::Text(part.to_owned()), origin: origin.into() })
                    .collect(),
            ),
            origin: origin.into(),
        }),
        _ => None,
    }
}

macro_rules! number {
    ($($method:ident, $parse:ty, $visit:ident;)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadFailure> {
            let outcome = match &self.node.value {
                NodeValue::Text(text) => match text.trim().replace('_', "").parse::<$parse>() {
                    Ok(number) => visitor.$visit(number),
                    Err(_) => Err(ReadFailure::invalid_type(Unexpected::Str(text), &visitor)),
                },
                _ => self.visit_scalar(visitor),
            };
            outcome.map_err(|failure| failure.at(&self))
        }
    )*};
}

impl<'de> Deserializer<'de> for At<'_> {
    type Error = ReadFailure;

    number! {
        deserialize_u8, u64, visit_u64;
        deserialize_u16, u64, visit_u64;
        deserialize_u32, u64, visit_u64;
        deserialize_u64, u64, visit_u64;
        deserialize_i8, i64, visit_i64;
        deserialize_i16, i64, visit_i64;
        deserialize_i32, i64, visit_i64;
        deserialize_i64, i64, visit_i64;
        deserialize_f32, f64, visit_f64;
        deserialize_f64, f64, visit_f64;
        deserialize_bool, bool, visit_bool;
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadFailure> {
        match &self.node.value {
            NodeValue::Table(_) => self.deserialize_map(visitor),
            NodeValue::List(_) => self.deserialize_seq(visitor),
            NodeValue::Scalar(_) => self.visit_scalar(visitor).map_err(|failure| failure.at(&self)),
            NodeValue::Text(text) => {
                let parsed = format!("value = {text}")
                    .parse::<toml::Table>()
                    .ok()
                    .and_then(|mut table| table.remove("value"))
                    .unwrap_or_else(|| toml::Value::String(text.clone()));
                let node = Node::from_toml(parsed, &self.node.origin);
                At { node: &node, key: self.key.clone() }.deserialize_any(visitor)
            }
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadFailure> {
        let outcome = match &self.node.value {
            NodeValue::Text(text) => visitor.visit_str(text),
            _ => self.visit_scalar(visitor),
        };
        outcome.map_err(|failure| failure.at(&self))
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadFailure> {
        self.deserialize_str(visitor)
    }

    fn deserialize_char<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadFailure> {
        self.deserialize_str(visitor)
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadFailure> {
        self.deserialize_str(visitor)
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadFailure> {
        self.deserialize_str(visitor)
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadFailure> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadFailure> {
        visitor.visit_some(self)
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadFailure> {
        self.deserialize_any(visitor)
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, ReadFailure> {
        self.deserialize_any(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, ReadFailure> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadFailure> {
        self.structured(true, |at| match &at.node.value {
            NodeValue::List(list) => visitor.visit_seq(Elements { at, rest: list.iter().enumerate() }),
            _ => Err(ReadFailure::invalid_type(Unexpected::Other("no list"), &visitor)),
        })
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, ReadFailure> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _len: usize,
        visitor: V,
    ) -> Result<V::Value, ReadFailure> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadFailure> {
        self.structured(false, |at| match &at.node.value {
            NodeValue::Table(table) => visitor.visit_map(Entries { at, rest: table.iter(), value: None }),
            _ => Err(ReadFailure::invalid_type(Unexpected::Other("no table"), &visitor)),
        })
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ReadFailure> {
        self.structured(false, |at| match &at.node.value {
            NodeValue::Table(table) => {
                for (name, node) in table {
                    if !fields.contains(&name.as_str()) {
                        let mut failure = ReadFailure::unknown_field(name, fields).at(at);
                        if let Some(place) = &mut failure.place {
                            place.origin = node.origin.to_string();
                        }
                        return Err(failure);
                    }
                }
                visitor.visit_map(Entries { at, rest: table.iter(), value: None })
            }
            _ => Err(ReadFailure::invalid_type(Unexpected::Other("no table"), &visitor)),
        })
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ReadFailure> {
        self.structured(false, |at| match &at.node.value {
            NodeValue::Text(name) | NodeValue::Scalar(toml::Value::String(name)) => {
                if !variants.contains(&name.as_str()) {
                    return Err(ReadFailure::unknown_variant(name, variants));
                }
                visitor.visit_enum(IntoDeserializer::<ReadFailure>::into_deserializer(name.as_str()))
            }
            NodeValue::Table(table) if table.len() == 1 => match table.iter().next() {
                Some((name, content)) => visitor.visit_enum(Variant { at, name, content }),
                None => Err(ReadFailure::invalid_type(Unexpected::Map, &visitor)),
            },
            _ => Err(ReadFailure::invalid_type(Unexpected::Other("no choice"), &visitor)),
        })
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadFailure> {
        visitor.visit_unit()
    }
}

struct Elements<'a> {
    at: &'a At<'a>,
    rest: std::iter::Enumerate<std::slice::Iter<'a, Node>>,
}

impl<'de> SeqAccess<'de> for Elements<'_> {
    type Error = ReadFailure;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, ReadFailure> {
        match self.rest.next() {
            Some((index, node)) => seed.deserialize(self.at.below(&index.to_string(), node)).map(Some),
            None => Ok(None),
        }
    }
}

struct Entries<'a> {
    at: &'a At<'a>,
    rest: std::collections::btree_map::Iter<'a, String, Node>,
    value: Option<(&'a str, &'a Node)>,
}

impl<'de> MapAccess<'de> for Entries<'_> {
    type Error = ReadFailure;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, ReadFailure> {
        let Some((key, node)) = self.rest.next() else { return Ok(None) };
        self.value = Some((key, node));
        seed.deserialize(IntoDeserializer::<ReadFailure>::into_deserializer(key.as_str())).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, ReadFailure> {
        let (key, node) =
            self.value.take().ok_or_else(|| ReadFailure::custom("a value was asked for before its key"))?;
        let below = self.at.below(key, node);
        let here = At { node, key: below.key.clone() };
        seed.deserialize(below).map_err(|failure| failure.at(&here))
    }
}

struct Variant<'a> {
    at: &'a At<'a>,
    name: &'a str,
    content: &'a Node,
}

impl<'a, 'de> EnumAccess<'de> for Variant<'a> {
    type Error = ReadFailure;
    type Variant = At<'a>;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, At<'a>), ReadFailure> {
        let variant = seed.deserialize(IntoDeserializer::<ReadFailure>::into_deserializer(self.name))?;
        Ok((variant, self.at.below(self.name, self.content)))
    }
}

impl<'de> VariantAccess<'de> for At<'_> {
    type Error = ReadFailure;

    fn unit_variant(self) -> Result<(), ReadFailure> {
        match &self.node.value {
            NodeValue::Table(table) if table.is_empty() => Ok(()),
            _ => Err(ReadFailure::custom("this choice takes no value").at(&self)),
        }
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, ReadFailure> {
        seed.deserialize(self)
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, ReadFailure> {
        self.deserialize_seq(visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ReadFailure> {
        self.deserialize_struct("", fields, visitor)
    }
}

fn join(key: &str, name: &str) -> String {
    if key.is_empty() { name.to_owned() } else { format!("{key}.{name}") }
}

fn describe(node: &Node) -> String {
    let quoted = |text: &str| {
        let short: String = text.chars().take(QUOTED_CHARS_MAX).collect();
        let rest = if short.len() < text.len() { "…" } else { "" };
        format!("\"{short}{rest}\"")
    };
    match &node.value {
        NodeValue::Table(_) => "a table".to_owned(),
        NodeValue::List(list) => format!("a list of {}", list.len()),
        NodeValue::Scalar(toml::Value::String(text)) => format!("the string {}", quoted(text)),
        NodeValue::Scalar(other) => format!("the {} {other}", other.type_str()),
        NodeValue::Text(text) => quoted(text),
    }
}

/// Serde names Rust types; a person who edits a file does not know them.
fn in_words(expected: &str) -> String {
    match expected {
        "u8" => format!("a whole number from 0 to {}", u8::MAX),
        "u16" => format!("a whole number from 0 to {}", u16::MAX),
        "u32" => format!("a whole number from 0 to {}", u32::MAX),
        "u64" | "usize" => "a whole number, 0 or more".to_owned(),
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number".to_owned(),
        "f32" | "f64" => "a number".to_owned(),
        "a boolean" => "true or false".to_owned(),
        "a sequence" => "a list".to_owned(),
        other if other.starts_with("struct ") || other == "a map" => "a table".to_owned(),
        other if other.starts_with("enum ") => "one of its named choices".to_owned(),
        other => other.to_owned(),
    }
}
