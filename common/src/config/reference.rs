//! The manual of a configuration, made from the code: keys and defaults from the struct's `Default`,
//! meanings from the comments in its source, so that neither can be forgotten in a document.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

use super::known::{KnownKey, known_keys};

/// A key with everything the manual says about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DescribedKey {
    /// Dotted; `nodes[].id` for a field of a list's elements.
    pub key: String,
    /// `None` for a field of a list's elements, which has none.
    pub default: Option<String>,
    pub env_name: Option<String>,
    /// Empty where the source has no comment.
    pub meaning: String,
}

/// Every key of `T`, whose struct is called `root` in `source` (the text of its module).
pub fn described_keys<T: Default + Serialize>(
    source: &str,
    root: &str,
    env_prefix: &str,
) -> Vec<DescribedKey> {
    let declared = Declarations::read(source);
    let mut meanings = BTreeMap::new();
    declared.collect(root, "", &mut meanings);
    let mut keys = Vec::new();
    for KnownKey { key, default } in known_keys::<T>() {
        let env_name = KnownKey { key: key.clone(), default: None }.env_name(env_prefix);
        let meaning = meanings.remove(&key).unwrap_or_default();
        keys.push(DescribedKey { key, default, env_name: Some(env_name), meaning });
    }
    // What is left are fields of a list's elements.
    let elements = meanings.into_iter().filter(|(key, _)| key.contains("[]."));
    keys.extend(elements.map(|(key, meaning)| DescribedKey { key, default: None, env_name: None, meaning }));
    keys
}

/// The keys as Markdown, one table per section.
pub fn reference_as_markdown(keys: &[DescribedKey]) -> String {
    let mut text = String::new();
    let mut section = None;
    let of = |key: &str| key.split_once('.').map_or("", |(section, _)| section).to_owned();
    let mut sorted: Vec<_> = keys.iter().map(|key| (of(&key.key), key)).collect();
    sorted.sort_by(|a, b| (&a.0, &a.1.key).cmp(&(&b.0, &b.1.key)));
    for (of_key, key) in sorted {
        if section.as_ref() != Some(&of_key) {
            let title = match of_key.as_str() {
                "" => "Without a section".to_owned(),
                list if list.ends_with("[]") => format!("`[[{}]]`", list.trim_end_matches("[]")),
                table => format!("`[{table}]`"),
            };
            // Writing to a String cannot fail.
            let _ = write!(text, "\n### {title}\n\n| Key | Default | Meaning |\n|---|---|---|\n");
            section = Some(of_key);
        }
        let default = match key.default.as_deref() {
            None => String::new(),
            Some("") => "empty".to_owned(),
            Some(value) => format!("`{value}`"),
        };
        let name = key.key.rsplit('.').next().unwrap_or(&key.key);
        let _ = writeln!(text, "| `{name}` | {default} | {} |", key.meaning.replace('|', "\\|"));
    }
    text
}

#[derive(Debug, Default)]
struct Declarations {
    /// Struct name → fields in order.
    structs: BTreeMap<String, Vec<Field>>,
    /// Enum name → its choices as a sentence.
    choices: BTreeMap<String, String>,
}

#[derive(Debug)]
struct Field {
    name: String,
    of_type: String,
    comment: String,
}

impl Declarations {
    /// Understands the shape our configuration modules have: one field or variant per line, each
    /// after its comment.
    fn read(source: &str) -> Self {
        let mut declared = Self::default();
        let mut comment = String::new();
        let mut open_struct: Option<String> = None;
        let mut open_enum: Option<(String, Vec<String>)> = None;
        for line in source.lines().map(str::trim) {
            if let Some(words) = line.strip_prefix("///") {
                comment = [comment.as_str(), words.trim()].join(" ").trim().to_owned();
                continue;
            }
            if let Some(rest) = line.strip_prefix("pub struct ") {
                let name = rest.trim_end_matches(['{', ' ', ';']).to_owned();
                declared.structs.entry(name.clone()).or_default();
                open_struct = line.ends_with('{').then_some(name);
            } else if let Some(rest) = line.strip_prefix("pub enum ") {
                open_enum = Some((rest.trim_end_matches(['{', ' ']).to_owned(), Vec::new()));
            } else if line == "}" {
                open_struct = None;
                if let Some((name, choices)) = open_enum.take() {
                    declared.choices.insert(name, format!("One of {}.", choices.join(", ")));
                }
            } else if let (Some(name), Some(rest)) = (&open_struct, line.strip_prefix("pub ")) {
                if let Some((field, of_type)) = rest.split_once(':') {
                    let of_type = of_type.trim().trim_end_matches(',').to_owned();
                    let field = Field { name: field.to_owned(), of_type, comment: comment.clone() };
                    declared.structs.entry(name.clone()).or_default().push(field);
                }
            } else if let (Some((_, choices)), false) = (&mut open_enum, line.starts_with('#')) {
                let name = line.trim_end_matches(',').to_lowercase();
                let explained = comment.trim_end_matches('.');
                choices.push(if explained.is_empty() {
                    format!("`{name}`")
                } else {
                    format!("`{name}` ({explained})")
                });
            }
            if !line.starts_with('#') {
                comment.clear();
            }
        }
        declared
    }

    fn collect(&self, of_struct: &str, prefix: &str, meanings: &mut BTreeMap<String, String>) {
        for field in self.structs.get(of_struct).into_iter().flatten() {
            let key = format!("{prefix}{}", field.name);
            let element = field.of_type.strip_prefix("Vec<").and_then(|rest| rest.strip_suffix('>'));
            if self.structs.contains_key(&field.of_type) {
                self.collect(&field.of_type, &format!("{key}."), meanings);
                continue;
            }
            if let Some(element) = element.filter(|element| self.structs.contains_key(*element)) {
                self.collect(element, &format!("{key}[]."), meanings);
            }
            let choices = self.choices.get(&field.of_type).map_or("", String::as_str);
            meanings.insert(key, [field.comment.as_str(), choices].join(" ").trim().to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As a configuration module looks.
    const SOURCE: &str = r#"
        /// Not a field's comment.
        #[derive(Debug)]
        pub struct Sample {
            /// How many.
            /// Really.
            pub count: u32,
            pub mode: Mode,
            pub listen: Listen,
            /// Everybody.
            pub nodes: Vec<Entry>,
        }
        pub struct Listen {
            /// Where | how.
            #[serde(default)]
            pub client: String,
        }
        pub struct Entry {
            /// Its number.
            pub id: u64,
        }
        pub enum Mode {
            /// Nothing.
            Off,
            On,
        }
    "#;

    #[derive(Serialize)]
    struct Sample {
        count: u32,
        mode: &'static str,
        listen: Listen,
        nodes: Vec<u64>,
    }

    #[derive(Serialize)]
    struct Listen {
        client: String,
    }

    impl Default for Sample {
        fn default() -> Self {
            Self { count: 7, mode: "off", listen: Listen { client: String::new() }, nodes: Vec::new() }
        }
    }

    #[test]
    fn meanings_come_from_the_comments_and_defaults_from_the_values() {
        let keys = described_keys::<Sample>(SOURCE, "Sample", "X");
        let found: Vec<_> =
            keys.iter().map(|key| (key.key.as_str(), key.default.as_deref(), key.meaning.as_str())).collect();
        assert_eq!(
            found,
            [
                ("count", Some("7"), "How many. Really."),
                ("listen.client", Some(""), "Where | how."),
                ("mode", Some("off"), "One of `off` (Nothing), `on`."),
                ("nodes", Some("[]"), "Everybody."),
                ("nodes[].id", None, "Its number."),
            ]
        );
        assert_eq!(keys[1].env_name.as_deref(), Some("X__LISTEN__CLIENT"));
        let text = reference_as_markdown(&keys);
        assert!(text.contains("### `[listen]`\n\n| Key | Default | Meaning |\n|---|---|---|\n| `client` | empty | Where \\| how. |"), "{text}");
        assert!(text.contains("### `[[nodes]]`"), "{text}");
    }
}
