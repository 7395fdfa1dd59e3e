//! The keys a configuration struct has, read off its defaults: for generated flags, for
//! `config show-defaults`, and for the manual's list.

use serde::Serialize;

/// A key that is not a table, with its default written as a flag would take it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownKey {
    /// Dotted: `listen.client`.
    pub key: String,
    /// `None` where the key is optional and unset.
    pub default: Option<String>,
}

impl KnownKey {
    /// The environment variable that sets this key.
    pub fn env_name(&self, env_prefix: &str) -> String {
        format!("{env_prefix}__{}", self.key.to_uppercase().replace('.', "__"))
    }
}

/// Every key of `T` in alphabetical order. Lists count as one key; their elements are named by
/// number, so they are not enumerated.
pub fn known_keys<T: Default + Serialize>() -> Vec<KnownKey> {
    let mut keys = Vec::new();
    // JSON rather than TOML, because it shows a key that is `None` as null.
    if let Ok(defaults) = serde_json::to_value(T::default()) {
        collect("", &defaults, &mut keys);
    }
    keys.sort_by(|a, b| a.key.cmp(&b.key));
    keys
}

/// The defaults of `T` as a file that loads again; optional keys that are unset stand as comments.
pub fn defaults_as_toml<T: Default + Serialize>(env_prefix: &str) -> Result<String, toml::ser::Error> {
    let mut text = toml::to_string(&T::default())?;
    text.push_str("\n# Every key as environment variable or flag, and keys without a default:\n");
    for key in known_keys::<T>() {
        let unset = if key.default.is_none() { " (unset)" } else { "" };
        text.push_str(&format!("# {}  --{}{unset}\n", key.env_name(env_prefix), key.key));
    }
    Ok(text)
}

fn collect(key: &str, value: &serde_json::Value, keys: &mut Vec<KnownKey>) {
    match value {
        serde_json::Value::Object(table) if !table.is_empty() => {
            for (name, value) in table {
                let below = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
                collect(&below, value, keys);
            }
        }
        serde_json::Value::Null => keys.push(KnownKey { key: key.to_owned(), default: None }),
        serde_json::Value::String(text) => {
            keys.push(KnownKey { key: key.to_owned(), default: Some(text.clone()) });
        }
        other => keys.push(KnownKey { key: key.to_owned(), default: Some(other.to_string()) }),
    }
}
