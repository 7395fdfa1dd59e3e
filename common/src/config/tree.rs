//! The merged values before they have types: what the file says, overlaid with texts from the
//! environment and from flags, each with the place it was written.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::BadOverride;

/// A list written by an override may not be longer; the index comes from outside.
const LIST_ELEMENTS_MAX: usize = 4096;

#[derive(Debug, Clone)]
pub(super) struct Node {
    pub value: NodeValue,
    pub origin: Arc<str>,
}

#[derive(Debug, Clone)]
pub(super) enum NodeValue {
    Table(BTreeMap<String, Node>),
    List(Vec<Node>),
    /// A string, number, boolean or date of the file.
    Scalar(toml::Value),
    /// A value without a type of its own: it takes the one its key asks for.
    Text(String),
}

impl Node {
    pub fn empty_table(origin: &str) -> Self {
        Self { value: NodeValue::Table(BTreeMap::new()), origin: origin.into() }
    }

    pub fn from_toml(value: toml::Value, origin: &str) -> Self {
        Self::from_toml_at(value, &Arc::from(origin))
    }

    fn from_toml_at(value: toml::Value, origin: &Arc<str>) -> Self {
        let value = match value {
            toml::Value::Table(table) => NodeValue::Table(
                table.into_iter().map(|(key, value)| (key, Self::from_toml_at(value, origin))).collect(),
            ),
            toml::Value::Array(list) => {
                NodeValue::List(list.into_iter().map(|value| Self::from_toml_at(value, origin)).collect())
            }
            scalar => NodeValue::Scalar(scalar),
        };
        Self { value, origin: origin.clone() }
    }

    /// Sets the value at a dotted key, making the tables and lists on the way.
    pub fn set_text(&mut self, key: &str, text: &str, origin: &str) -> Result<(), BadOverride> {
        let refuse = |reason: String| BadOverride { key: key.to_owned(), origin: origin.to_owned(), reason };
        let segments: Vec<&str> = key.split('.').collect();
        if segments.iter().any(|segment| segment.is_empty()) {
            return Err(refuse("a part of the key is empty".to_owned()));
        }
        let mut node = self;
        for (depth, segment) in segments.iter().enumerate() {
            let starts_list = segments.get(depth + 1).is_some_and(|next| next.parse::<usize>().is_ok());
            node = node.child_mut(segment, starts_list, origin).map_err(refuse)?;
        }
        *node = Self { value: NodeValue::Text(text.to_owned()), origin: origin.into() };
        Ok(())
    }

    fn child_mut(&mut self, segment: &str, starts_list: bool, origin: &str) -> Result<&mut Self, String> {
        let fresh = || Self {
            value: match starts_list {
                true => NodeValue::List(Vec::new()),
                false => NodeValue::Table(BTreeMap::new()),
            },
            origin: origin.into(),
        };
        match &mut self.value {
            NodeValue::Table(table) => Ok(table.entry(segment.to_owned()).or_insert_with(fresh)),
            NodeValue::List(list) => {
                let index: usize = segment
                    .parse()
                    .map_err(|_| format!("`{segment}` is not the number of an element of a list"))?;
                if index > list.len() || index >= LIST_ELEMENTS_MAX {
                    return Err(format!("element {index} of a list of {}", list.len()));
                }
                if index == list.len() {
                    list.push(fresh());
                }
                list.get_mut(index).ok_or_else(|| format!("element {index} does not exist"))
            }
            NodeValue::Scalar(_) | NodeValue::Text(_) => {
                Err(format!("`{segment}` would lie below a plain value"))
            }
        }
    }
}
