//! Configuration loading: one TOML file, environment variables, and flags, into any serde struct.
//!
//! | Source | How a key is written | Wins over |
//! |---|---|---|
//! | built in | the struct's `Default` | nothing |
//! | file | `[listen]` / `client = "0.0.0.0:8081"` | built in |
//! | environment | `LEDGERMQ_BROKER__LISTEN__CLIENT=0.0.0.0:8081` | file |
//! | flag | `--listen.client 0.0.0.0:8081`, `--set listen.client=0.0.0.0:8081` | environment |
//!
//! Elements of lists are named by their number (`NODES__0__PEER`, `nodes.0.peer`); a number that is
//! one past the end appends. A value from the environment or a flag is text: it becomes whatever
//! the key asks for, lists and tables in TOML notation (a list also as `a,b,c`).
//!
//! What must hold: a key that the struct does not have is refused at every depth, with its nearest
//! known name; an error names the key, where it was written, and what was expected; nothing is
//! ignored silently, a misspelt environment variable included.
//!
//! | Failure | Answer |
//! |---|---|
//! | file missing or unreadable | [`UnreadableFile`] |
//! | not TOML | [`NotToml`] with line and column |
//! | unknown key | [`UnknownKey`] |
//! | value of another type, or out of range | [`WrongValue`] |
//! | key without a default left out | [`MissingKey`] |
//! | override of a path that cannot exist | [`BadOverride`] |

mod known;
mod read;
mod reference;
mod tree;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

pub use known::{KnownKey, defaults_as_toml, known_keys};
use read::ReadFailure;
pub use reference::{DescribedKey, described_keys, reference_as_markdown};
use tree::Node;

/// A file larger than this is no configuration of ours.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

#[derive(Debug, thiserror::Error)]
#[error("cannot read configuration file {path}: {source}")]
pub struct UnreadableFile {
    pub path: PathBuf,
    pub source: std::io::Error,
}

#[derive(Debug, thiserror::Error)]
#[error("configuration file {path} is not TOML: {reason}")]
pub struct NotToml {
    pub path: PathBuf,
    pub reason: String,
}

#[derive(Debug, thiserror::Error)]
#[error("unknown key `{key}` in {origin}{}", nearest_hint(.nearest))]
pub struct UnknownKey {
    pub key: String,
    pub origin: String,
    pub nearest: Option<String>,
}

#[derive(Debug, thiserror::Error)]
#[error("key `{key}` in {origin} is {found}, expected {expected}")]
pub struct WrongValue {
    pub key: String,
    pub origin: String,
    pub found: String,
    pub expected: String,
}

#[derive(Debug, thiserror::Error)]
#[error("key `{key}` is missing and has no default")]
pub struct MissingKey {
    pub key: String,
}

#[derive(Debug, thiserror::Error)]
#[error("{origin} cannot be applied to `{key}`: {reason}")]
pub struct BadOverride {
    pub key: String,
    pub origin: String,
    pub reason: String,
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error(transparent)]
    UnreadableFile(#[from] UnreadableFile),
    #[error(transparent)]
    NotToml(#[from] NotToml),
    #[error(transparent)]
    UnknownKey(#[from] UnknownKey),
    #[error(transparent)]
    WrongValue(#[from] WrongValue),
    #[error(transparent)]
    MissingKey(#[from] MissingKey),
    #[error(transparent)]
    BadOverride(#[from] BadOverride),
}

/// Where the values come from. [`Sources::from_process`] is what a binary uses; tests name their
/// own environment.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    file: Option<PathBuf>,
    env_prefix: String,
    env: BTreeMap<String, String>,
    flags: Vec<(String, String)>,
}

impl Sources {
    /// The environment of this process, read once. `env_prefix` is written without the separator:
    /// `LEDGERMQ_BROKER`.
    pub fn from_process(env_prefix: &str) -> Self {
        let env = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        Self::with_environment(env_prefix, env)
    }

    pub fn with_environment(env_prefix: &str, env: impl IntoIterator<Item = (String, String)>) -> Self {
        Self { env_prefix: env_prefix.to_owned(), env: env.into_iter().collect(), ..Self::default() }
    }

    pub fn file(mut self, path: impl Into<PathBuf>) -> Self {
        self.file = Some(path.into());
        self
    }

    /// Adds an override as a flag writes it: a dotted key and a text.
    pub fn flag(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.flags.push((key.into(), value.into()));
        self
    }

    /// Adds a `key=value` override, the form that `--set` takes.
    pub fn set(self, assignment: &str) -> Result<Self, BadOverride> {
        match assignment.split_once('=') {
            Some((key, value)) if !key.trim().is_empty() => Ok(self.flag(key.trim(), value.trim())),
            _ => Err(BadOverride {
                key: assignment.to_owned(),
                origin: "flag --set".to_owned(),
                reason: "expected key=value".to_owned(),
            }),
        }
    }
}

/// Loads `T`. Every table of `T` needs `#[serde(default)]` where its keys have defaults.
pub fn load<T: DeserializeOwned>(sources: &Sources) -> Result<T, ConfigError> {
    let mut root = match &sources.file {
        Some(path) => parse_file(path)?,
        None => Node::empty_table("built-in defaults"),
    };
    let prefix = format!("{}__", sources.env_prefix);
    for (name, value) in &sources.env {
        if let Some(rest) = name.strip_prefix(&prefix) {
            let key = rest.split("__").map(str::to_lowercase).collect::<Vec<_>>().join(".");
            root.set_text(&key, value, &format!("environment variable {name}"))?;
        }
    }
    for (key, value) in &sources.flags {
        root.set_text(key, value, &format!("flag --{key}"))?;
    }
    T::deserialize(read::At::root(&root)).map_err(ReadFailure::into_config_error)
}

fn parse_file(path: &Path) -> Result<Node, ConfigError> {
    let unreadable = |source| UnreadableFile { path: path.to_owned(), source };
    let size = std::fs::metadata(path).map_err(unreadable)?.len();
    if size > FILE_BYTES_MAX {
        let reason = format!("{size} bytes, the limit is {FILE_BYTES_MAX}");
        return Err(unreadable(std::io::Error::new(std::io::ErrorKind::FileTooLarge, reason)).into());
    }
    parse_text(&std::fs::read_to_string(path).map_err(unreadable)?, path)
}

fn parse_text(text: &str, path: &Path) -> Result<Node, ConfigError> {
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| NotToml {
        path: path.to_owned(),
        reason: match error.span() {
            Some(span) => format!("{}: {}", line_and_column(text, span.start), error.message()),
            None => error.message().to_owned(),
        },
    })?;
    Ok(Node::from_toml(toml::Value::Table(table), &path.display().to_string()))
}

/// Loads `T` from the text of a file alone: for fuzzing.
#[doc(hidden)]
pub fn load_text<T: DeserializeOwned>(text: &str) -> Result<T, ConfigError> {
    let root = parse_text(text, Path::new("text"))?;
    T::deserialize(read::At::root(&root)).map_err(ReadFailure::into_config_error)
}

fn line_and_column(text: &str, offset: usize) -> String {
    let before = text.get(..offset).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
    format!("line {line}, column {column}")
}

fn nearest_hint(nearest: &Option<String>) -> String {
    nearest.as_ref().map(|name| format!("; the nearest known key is `{name}`")).unwrap_or_default()
}

/// The candidate with the fewest edits to `name`; the first of equals.
fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<String> {
    candidates
        .into_iter()
        .min_by_key(|candidate| strsim::damerau_levenshtein(name, candidate))
        .map(str::to_owned)
}

#[cfg(test)]
mod tests;
