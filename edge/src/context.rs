//! Who calls and how long they wait: the headers of a request, read once.
//!
//! | Header | Field | Rule |
//! |---|---|---|
//! | `x-mq-client-id` | `client_id` | blank or missing: CLIENT_ID_REQUIRED |
//! | `x-mq-language` | `language` | anything unknown is `Other`; nothing is refused for it |
//! | `x-mq-client-version` | `version` | text |
//! | `x-mq-namespace` | `namespace` | text; takes the place of an empty resource namespace |
//! | `grpc-timeout` | `deadline` | missing or malformed: `UNARY_DEADLINE_MS_DEFAULT` |

use std::net::SocketAddr;
use std::time::Duration;

use ledgermq_common::limits::UNARY_DEADLINE_MS_DEFAULT;
use ledgermq_common::names::excerpt;
use ledgermq_proto::rocketmq::Code;
use tokio::time::Instant;
use tonic::metadata::MetadataMap;

use crate::group_call::Refused;

/// A client id is `host@pid@index@random`; the limit keeps what is remembered per client small.
pub const CLIENT_ID_BYTES_MAX: usize = 512;
/// Deadlines further away count as this far: the longest call is a long poll.
pub const DEADLINE_MS_MAX: u64 = 120_000;
const HEADER_TEXT_BYTES_MAX: usize = 256;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallContext {
    pub client_id: String,
    pub language: ClientLanguage,
    pub version: String,
    pub namespace: String,
    /// When the client stops waiting.
    pub deadline: Instant,
    /// The request named its deadline.
    pub deadline_given: bool,
    pub peer: Option<SocketAddr>,
    /// A node's own request, for example of the admin service.
    pub internal: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ClientLanguage {
    Java,
    Go,
    Python,
    /// Node.js; it calls itself HTTP.
    Node,
    DotNet,
    Cpp,
    Rust,
    Other,
}

impl ClientLanguage {
    pub fn parse(header: &str) -> Self {
        match header {
            "JAVA" => Self::Java,
            "GO" => Self::Go,
            "PYTHON" => Self::Python,
            "HTTP" | "NODE_JS" => Self::Node,
            "DOTNET" => Self::DotNet,
            "CPP" => Self::Cpp,
            "RUST" => Self::Rust,
            _ => Self::Other,
        }
    }

    pub fn as_header(self) -> &'static str {
        match self {
            Self::Java => "JAVA",
            Self::Go => "GO",
            Self::Python => "PYTHON",
            Self::Node => "HTTP",
            Self::DotNet => "DOTNET",
            Self::Cpp => "CPP",
            Self::Rust => "RUST",
            Self::Other => "OTHER",
        }
    }

    /// These use the first address of an endpoint or fail on a second one.
    pub fn takes_one_address_only(self) -> bool {
        matches!(self, Self::Node | Self::DotNet | Self::Rust)
    }
}

impl CallContext {
    /// The context of a node's own request.
    pub fn internal(timeout: Duration) -> Self {
        Self {
            client_id: String::new(),
            language: ClientLanguage::Other,
            version: String::new(),
            namespace: String::new(),
            deadline: Instant::now() + timeout,
            deadline_given: true,
            peer: None,
            internal: true,
        }
    }

    pub fn from_metadata(metadata: &MetadataMap, peer: Option<SocketAddr>) -> Result<Self, Refused> {
        let client_id = text(metadata, "x-mq-client-id");
        if client_id.trim().is_empty() {
            return Err(Refused::new(
                Code::ClientIdRequired,
                "client id cannot be empty (header x-mq-client-id)",
            ));
        }
        if client_id.len() > CLIENT_ID_BYTES_MAX {
            return Err(Refused::new(
                Code::BadRequest,
                format!(
                    "client id \"{}\" has {} bytes; the limit is {CLIENT_ID_BYTES_MAX}",
                    excerpt(client_id),
                    client_id.len()
                ),
            ));
        }
        let timeout = metadata.get("grpc-timeout").and_then(|value| parse_grpc_timeout(value.as_bytes()));
        let wait = timeout
            .unwrap_or(Duration::from_millis(UNARY_DEADLINE_MS_DEFAULT))
            .min(Duration::from_millis(DEADLINE_MS_MAX));
        Ok(Self {
            client_id: client_id.to_owned(),
            language: ClientLanguage::parse(text(metadata, "x-mq-language")),
            version: cut(text(metadata, "x-mq-client-version")),
            namespace: cut(text(metadata, "x-mq-namespace")),
            deadline: Instant::now() + wait,
            deadline_given: timeout.is_some(),
            peer,
            internal: false,
        })
    }

    pub fn remaining(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }
}

/// `grpc-timeout`: at most 8 digits and a unit (H, M, S, m, u, n).
pub fn parse_grpc_timeout(value: &[u8]) -> Option<Duration> {
    let (&unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let amount = digits.iter().fold(0u64, |sum, digit| sum * 10 + u64::from(digit - b'0'));
    match unit {
        b'H' => Some(Duration::from_secs(amount * 3600)),
        b'M' => Some(Duration::from_secs(amount * 60)),
        b'S' => Some(Duration::from_secs(amount)),
        b'm' => Some(Duration::from_millis(amount)),
        b'u' => Some(Duration::from_micros(amount)),
        b'n' => Some(Duration::from_nanos(amount)),
        _ => None,
    }
}

fn text<'a>(metadata: &'a MetadataMap, header: &'static str) -> &'a str {
    metadata.get(header).and_then(|value| value.to_str().ok()).unwrap_or("")
}

fn cut(value: &str) -> String {
    let mut end = value.len().min(HEADER_TEXT_BYTES_MAX);
    while !value.is_char_boundary(end) {
        end -= 1;
    }
    value[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_timeouts_are_read_in_every_unit_and_nothing_else_is() {
        for (text, expected) in [
            ("1H", Some(Duration::from_secs(3600))),
            ("2M", Some(Duration::from_secs(120))),
            ("3S", Some(Duration::from_secs(3))),
            ("2700m", Some(Duration::from_millis(2700))),
            ("99999999u", Some(Duration::from_micros(99_999_999))),
            ("5n", Some(Duration::from_nanos(5))),
            ("", None),
            ("S", None),
            ("123456789S", None),
            ("-1S", None),
            ("1x", None),
        ] {
            assert_eq!(parse_grpc_timeout(text.as_bytes()), expected, "{text:?}");
        }
    }

    #[test]
    fn a_blank_client_id_is_refused_with_its_own_code() {
        let mut metadata = MetadataMap::new();
        assert_eq!(
            CallContext::from_metadata(&metadata, None).map_err(|r| r.code),
            Err(Code::ClientIdRequired)
        );
        metadata.insert("x-mq-client-id", "  ".parse().expect("header"));
        assert_eq!(
            CallContext::from_metadata(&metadata, None).map_err(|r| r.code),
            Err(Code::ClientIdRequired)
        );
        metadata.insert("x-mq-client-id", "c@1".parse().expect("header"));
        metadata.insert("x-mq-language", "HTTP".parse().expect("header"));
        let context = CallContext::from_metadata(&metadata, None).expect("context");
        assert_eq!((context.client_id.as_str(), context.language), ("c@1", ClientLanguage::Node));
    }
}
