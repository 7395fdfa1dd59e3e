//! Which messages a receive wants, judged on the record itself.
//!
//! A tag filter is planned by the codes in the index and compared here with the tags; an SQL filter
//! says nothing to the index, so the plan takes the next [`SQL_EXAMINED_MAX`] messages, they are read
//! and judged in order, and what was not needed for a full batch leaves the plan again.
//!
//! An SQL expression sees the user properties and the system's own, under RocketMQ's names:
//!
//! | Property | Is |
//! |---|---|
//! | `TAGS` | the tag |
//! | `KEYS` | the keys, with a blank between two |
//! | `UNIQ_KEY` | the message id |
//! | `__SHARDINGKEY` | the message group |
//! | `BORN_TIMESTAMP` | milliseconds since 1970, by the producer's clock |
//! | `__BORNHOST` | the producer's host |

use std::sync::Arc;

use ledgermq_edge::group_call::Filter;
use ledgermq_filter::{Expression, Properties};

use crate::state::{StoredMessage, TagFilter};

/// Messages that one look reads for an SQL filter, and at most skips with one entry of the log.
pub const SQL_EXAMINED_MAX: u32 = 512;
/// Unwanted messages are worth an entry in the log once there are this many, or when the poll ends;
/// until then they are read again at each look.
pub const SQL_SKIPPED_MIN: usize = 128;

#[derive(Debug, Clone)]
pub enum Wanted {
    Tags(TagFilter),
    Sql(Arc<Expression>),
}

impl Wanted {
    pub fn of(filter: &Filter) -> Self {
        match filter {
            Filter::All => Self::Tags(TagFilter::All),
            Filter::Tags(tags) => Self::Tags(TagFilter::tags(tags.iter().map(String::as_str))),
            Filter::Sql(expression) => Self::Sql(Arc::clone(expression)),
        }
    }

    pub fn is_everything(&self) -> bool {
        matches!(self, Self::Tags(TagFilter::All))
    }

    /// What the index can be asked.
    pub fn tags(&self) -> TagFilter {
        match self {
            Self::Tags(tags) => tags.clone(),
            Self::Sql(_) => TagFilter::All,
        }
    }

    pub fn wants(&self, stored: &StoredMessage) -> bool {
        match self {
            Self::Tags(tags) => tags.matches(stored.properties.tag.as_deref()),
            Self::Sql(expression) => expression.matches(&RecordProperties::new(stored, expression)),
        }
    }
}

/// A record as an expression sees it. Only what is not a text in the record is made for it, and
/// only if the expression asks for it.
struct RecordProperties<'a> {
    stored: &'a StoredMessage,
    keys: Option<String>,
    born_at: Option<String>,
}

impl<'a> RecordProperties<'a> {
    fn new(stored: &'a StoredMessage, expression: &Expression) -> Self {
        let keys = &stored.properties.keys;
        Self {
            stored,
            keys: (keys.len() > 1 && expression.reads("KEYS")).then(|| keys.join(" ")),
            born_at: expression.reads("BORN_TIMESTAMP").then(|| stored.born_at.get().to_string()),
        }
    }
}

impl Properties for RecordProperties<'_> {
    fn get(&self, name: &str) -> Option<&str> {
        let properties = &self.stored.properties;
        let of_the_system = match name {
            "TAGS" => properties.tag.as_deref().filter(|tag| !tag.is_empty()),
            "KEYS" => self.keys.as_deref().or_else(|| properties.keys.first().map(String::as_str)),
            "UNIQ_KEY" => Some(self.stored.id.as_str()),
            "__SHARDINGKEY" => properties.message_group.as_deref(),
            "BORN_TIMESTAMP" => self.born_at.as_deref(),
            "__BORNHOST" => Some(properties.born_host.as_str()).filter(|host| !host.is_empty()),
            _ => None,
        };
        of_the_system.or_else(|| properties.user.get(name).map(String::as_str))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use ledgermq_common::QueueId;
    use ledgermq_common::clock::UnixMillis;

    use super::*;
    use crate::state::{BodyEncoding, MessageProperties, MessageType, TopicId};

    fn stored() -> StoredMessage {
        StoredMessage {
            topic: TopicId(1),
            queue: QueueId(0),
            id: "01ABCD".to_owned(),
            message_type: MessageType::Normal,
            body_encoding: BodyEncoding::Identity,
            born_at: UnixMillis(1_700_000_000_123),
            tag_code: 0,
            properties: MessageProperties {
                deliver_at_ms: None,
                priority: None,
                lite_topic: None,
                user: [("amount".to_owned(), "42".to_owned())].into(),
                tag: Some("paid".to_owned()),
                keys: vec!["k1".to_owned(), "k2".to_owned()],
                message_group: Some("customer-7".to_owned()),
                trace_context: None,
                born_host: "10.0.0.1".to_owned(),
            },
            dead_letter: None,
            body: Bytes::new(),
        }
    }

    #[test]
    fn an_expression_sees_the_properties_under_the_names_rocketmq_gives_them() {
        for (text, wanted) in [
            ("TAGS = 'paid'", true),
            ("TAGS IN ('refused')", false),
            ("KEYS = 'k1 k2'", true),
            ("KEYS CONTAINS 'k2'", true),
            ("UNIQ_KEY STARTSWITH '01'", true),
            ("__SHARDINGKEY = 'customer-7'", true),
            ("BORN_TIMESTAMP > 1700000000000", true),
            ("__BORNHOST = '10.0.0.1'", true),
            ("amount BETWEEN 40 AND 50 AND missing IS NULL", true),
            ("Amount = 42", false),
        ] {
            let filter = Filter::Sql(ledgermq_filter::parse_cached(text).expect("valid"));
            assert_eq!(Wanted::of(&filter).wants(&stored()), wanted, "{text}");
        }
        let bare = StoredMessage { properties: MessageProperties::default(), ..stored() };
        for missing in ["TAGS", "KEYS", "__SHARDINGKEY", "__BORNHOST", "amount"] {
            let filter =
                Filter::Sql(ledgermq_filter::parse_cached(&format!("{missing} IS NULL")).expect("valid"));
            assert!(Wanted::of(&filter).wants(&bare), "{missing}");
        }
    }
}
