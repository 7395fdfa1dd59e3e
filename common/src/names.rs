//! Names a person gives to things: topics, consumer groups and broker groups.
//!
//! A value of these types has passed the rules, so code behind the edge never checks a name again.
//!
//! | Name | Characters | Length | Reserved |
//! |---|---|---|---|
//! | topic | `A-Z a-z 0-9 _ - % \|` | 1..=127 | RocketMQ's system topics, prefix `rmq_sys_` |
//! | consumer group | same | 1..=120 | prefix `CID_RMQ_SYS_` |
//! | broker group | `A-Z a-z 0-9 _ -` | 1..=63 | none |
//!
//! The rules for the first two are RocketMQ's (`TopicValidator`, `Validators`): the same names are
//! legal here and there.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::limits::{CONSUMER_GROUP_NAME_CHARS_MAX, TOPIC_NAME_CHARS_MAX};

pub const BROKER_GROUP_NAME_CHARS_MAX: usize = 63;

/// Topics that RocketMQ keeps for itself. A client that names one is confused or hostile.
const SYSTEM_TOPICS: [&str; 10] = [
    "TBW102",
    "SCHEDULE_TOPIC_XXXX",
    "BenchmarkTest",
    "RMQ_SYS_TRANS_HALF_TOPIC",
    "RMQ_SYS_TRACE_TOPIC",
    "RMQ_SYS_TRANS_OP_HALF_TOPIC",
    "TRANS_CHECK_MAX_TIME_TOPIC",
    "SELF_TEST_TOPIC",
    "OFFSET_MOVED_EVENT",
    "CHECKPOINT_TOPIC",
];
const SYSTEM_TOPIC_PREFIX: &str = "rmq_sys_";
const SYSTEM_CONSUMER_GROUP_PREFIX: &str = "CID_RMQ_SYS_";

/// RocketMQ's name for the topic that holds what a consumer group gave up.
pub const DEAD_LETTER_TOPIC_PREFIX: &str = "%DLQ%";

/// The dead-letter topic of a consumer group. Every consumer group's name leaves room for the prefix.
pub fn dead_letter_topic(consumer_group: &str) -> String {
    format!("{DEAD_LETTER_TOPIC_PREFIX}{consumer_group}")
}

/// Why a name was refused. `kind` is what the name was for ("topic", "consumer group", ...).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("{kind} name is empty or blank")]
    Empty { kind: &'static str },
    #[error("{kind} name \"{value}\" has {chars} characters; the limit is {chars_max}")]
    TooLong { kind: &'static str, value: String, chars: usize, chars_max: usize },
    #[error("{kind} name \"{value}\" holds {character:?}; allowed are {allowed}")]
    IllegalCharacter { kind: &'static str, value: String, character: char, allowed: &'static str },
    #[error("{kind} name \"{value}\" is reserved for the system")]
    Reserved { kind: &'static str, value: String },
}

/// The first characters of a value that came from outside, fit for a message or a log line:
/// bounded, and without control characters.
pub fn excerpt(value: &str) -> String {
    const EXCERPT_CHARS_MAX: usize = 64;
    let mut excerpt: String =
        value.chars().take(EXCERPT_CHARS_MAX).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    if value.chars().nth(EXCERPT_CHARS_MAX).is_some() {
        excerpt.push('…');
    }
    excerpt
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $check:path) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            pub fn parse(value: &str) -> Result<Self, NameError> {
                $check(value)?;
                Ok(Self(Arc::from(value)))
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl std::str::FromStr for $name {
            type Err = NameError;

            fn from_str(value: &str) -> Result<Self, NameError> {
                Self::parse(value)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let value = String::deserialize(deserializer)?;
                Self::parse(&value).map_err(serde::de::Error::custom)
            }
        }
    };
}

name! {
    /// A topic.
    TopicName, check_topic
}
name! {
    /// A consumer group: the consumers that share the messages of the topics they subscribe to.
    ConsumerGroupName, check_consumer_group
}
name! {
    /// A broker group, which clients see as `MessageQueue.broker.name`.
    GroupName, check_broker_group
}

fn check_topic(value: &str) -> Result<(), NameError> {
    const KIND: &str = "topic";
    check_shape(KIND, value, TOPIC_NAME_CHARS_MAX)?;
    check_rocketmq_alphabet(KIND, value)?;
    if SYSTEM_TOPICS.contains(&value) || value.starts_with(SYSTEM_TOPIC_PREFIX) {
        return Err(NameError::Reserved { kind: KIND, value: excerpt(value) });
    }
    Ok(())
}

fn check_consumer_group(value: &str) -> Result<(), NameError> {
    const KIND: &str = "consumer group";
    check_shape(KIND, value, CONSUMER_GROUP_NAME_CHARS_MAX)?;
    check_rocketmq_alphabet(KIND, value)?;
    if value.starts_with(SYSTEM_CONSUMER_GROUP_PREFIX) {
        return Err(NameError::Reserved { kind: KIND, value: excerpt(value) });
    }
    Ok(())
}

fn check_broker_group(value: &str) -> Result<(), NameError> {
    const KIND: &str = "broker group";
    check_shape(KIND, value, BROKER_GROUP_NAME_CHARS_MAX)?;
    check_alphabet(KIND, value, "A-Z a-z 0-9 _ -", |c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'))
}

fn check_shape(kind: &'static str, value: &str, chars_max: usize) -> Result<(), NameError> {
    if value.trim().is_empty() {
        return Err(NameError::Empty { kind });
    }
    // Counting the characters of a name of many megabytes is work a client could ask for; bytes
    // are an upper bound that costs nothing.
    let chars = if value.len() > 4 * chars_max { value.len() } else { value.chars().count() };
    if chars > chars_max {
        return Err(NameError::TooLong { kind, value: excerpt(value), chars, chars_max });
    }
    Ok(())
}

fn check_rocketmq_alphabet(kind: &'static str, value: &str) -> Result<(), NameError> {
    check_alphabet(kind, value, "A-Z a-z 0-9 _ - % |", |c| {
        c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '%' | '|')
    })
}

fn check_alphabet(
    kind: &'static str,
    value: &str,
    allowed: &'static str,
    is_allowed: impl Fn(char) -> bool,
) -> Result<(), NameError> {
    match value.chars().find(|&c| !is_allowed(c)) {
        Some(character) => {
            Err(NameError::IllegalCharacter { kind, value: excerpt(value), character, allowed })
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_rocketmq_accepts_are_accepted() {
        for name in ["a", "Topic_1-x", "%RETRY%group_topic", "%DLQ%g", &"x".repeat(127)] {
            assert_eq!(TopicName::parse(name).expect("legal topic").as_str(), name);
        }
        for name in ["g", "GID-1", &"x".repeat(120)] {
            assert!(ConsumerGroupName::parse(name).is_ok(), "{name}");
        }
    }

    #[test]
    fn each_broken_rule_is_named_with_the_value_and_the_limit() {
        let too_long = TopicName::parse(&"x".repeat(128)).expect_err("too long").to_string();
        assert!(too_long.contains("128") && too_long.contains("127"), "{too_long}");
        assert!(too_long.len() < 256, "the value is cut: {too_long}");
        for blank in ["", "  ", "\t"] {
            assert_eq!(TopicName::parse(blank), Err(NameError::Empty { kind: "topic" }));
        }
        for (name, character) in [("a b", ' '), ("a/b", '/'), ("tópic", 'ó'), ("a\0", '\0')] {
            match TopicName::parse(name) {
                Err(NameError::IllegalCharacter { character: found, .. }) => assert_eq!(found, character),
                other => panic!("{name:?}: {other:?}"),
            }
        }
        for reserved in ["TBW102", "rmq_sys_wheel_timer", "CHECKPOINT_TOPIC"] {
            assert!(matches!(TopicName::parse(reserved), Err(NameError::Reserved { .. })), "{reserved}");
        }
        assert!(matches!(ConsumerGroupName::parse("CID_RMQ_SYS_x"), Err(NameError::Reserved { .. })));
        assert!(GroupName::parse("%RETRY%").is_err());
    }
}
