//! From a stored record to the message a consumer gets, with every field the SDKs read.
//!
//! | Field | Why it is never left out |
//! |---|---|
//! | `body_digest` | the Node SDK throws without it, the C# one dereferences null; MD5 in upper-case hex is the only form all agree on |
//! | `body_encoding` | the Python SDK raises on UNSPECIFIED |
//! | `born_timestamp` | the C# SDK dereferences it |
//! | `delivery_attempt` | counted from 1 |
//! | `dead_letter_queue` | only on a message read from a dead-letter queue; see [`origin_properties`] |
//! | `queue_id`, `queue_offset`, `receipt_handle`, `invisible_duration` | each is read by at least one SDK before the application sees the message |

use ledgermq_common::clock::UnixMillis;
use ledgermq_common::{QueueId, QueueOffset};
use ledgermq_proto::rocketmq::{
    DeadLetterQueue, Digest, DigestType, Encoding, Message, MessageType, Resource, SystemProperties,
};
use md5::{Digest as _, Md5};

use crate::state::{BodyEncoding, DeadLetterRecord, MessageType as StoredType, StoredMessage};

/// What the lease says about a delivery, beside the record itself.
#[derive(Debug, Clone)]
pub struct Delivery<'a> {
    pub topic: &'a Resource,
    pub queue: QueueId,
    pub offset: QueueOffset,
    pub stored_at: UnixMillis,
    pub store_host: &'a str,
    pub receipt_handle: String,
    pub attempt: u32,
    pub invisible_ms: u64,
}

pub fn delivered(stored: StoredMessage, delivery: Delivery<'_>) -> Message {
    let body_digest = Digest { r#type: DigestType::Md5 as i32, checksum: md5_upper_hex(&stored.body) };
    let body_encoding = match stored.body_encoding {
        BodyEncoding::Identity => Encoding::Identity,
        BodyEncoding::Gzip => Encoding::Gzip,
    };
    let mut properties = stored.properties;
    let dead_letter_queue = stored.dead_letter.map(|letter| {
        properties.user.extend(origin_properties(&letter, &stored.id));
        DeadLetterQueue { topic: letter.topic_name, message_id: stored.id.clone() }
    });
    let system_properties = SystemProperties {
        tag: properties.tag.filter(|tag| !tag.is_empty()),
        keys: properties.keys,
        message_id: stored.id,
        body_digest: Some(body_digest),
        body_encoding: body_encoding as i32,
        message_type: message_type(stored.message_type) as i32,
        born_timestamp: Some(timestamp(stored.born_at)),
        born_host: properties.born_host,
        store_timestamp: Some(timestamp(delivery.stored_at)),
        store_host: delivery.store_host.to_owned(),
        receipt_handle: Some(delivery.receipt_handle),
        queue_id: i32::try_from(delivery.queue.get()).unwrap_or(i32::MAX),
        queue_offset: Some(i64::try_from(delivery.offset.get()).unwrap_or(i64::MAX)),
        invisible_duration: Some(duration(delivery.invisible_ms)),
        delivery_attempt: Some(i32::try_from(delivery.attempt.max(1)).unwrap_or(i32::MAX)),
        message_group: properties.message_group,
        trace_context: properties.trace_context,
        delivery_timestamp: properties.deliver_at_ms.map(|at_ms| timestamp(UnixMillis(at_ms))),
        dead_letter_queue,
        priority: properties.priority,
        lite_topic: properties.lite_topic,
        ..SystemProperties::default()
    };
    Message {
        topic: Some(delivery.topic.clone()),
        user_properties: properties.user,
        system_properties: Some(system_properties),
        body: stored.body,
    }
}

/// Not every SDK shows `dead_letter_queue` to the application; these it sees with all of them. They are
/// none of RocketMQ's reserved names, so that a consumer can send the message on as it came.
fn origin_properties(letter: &DeadLetterRecord, message_id: &str) -> [(String, String); 4] {
    [
        ("dlq.origin.topic".to_owned(), letter.topic_name.clone()),
        ("dlq.origin.message-id".to_owned(), message_id.to_owned()),
        ("dlq.reason".to_owned(), letter.reason.as_str().to_owned()),
        ("dlq.attempts".to_owned(), letter.attempts.to_string()),
    ]
}

pub fn message_type(stored: StoredType) -> MessageType {
    match stored {
        StoredType::Normal => MessageType::Normal,
        StoredType::Fifo => MessageType::Fifo,
        StoredType::Delay => MessageType::Delay,
        StoredType::Transaction => MessageType::Transaction,
        StoredType::Lite => MessageType::Lite,
        StoredType::Priority => MessageType::Priority,
    }
}

pub fn timestamp(at: UnixMillis) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: i64::try_from(at.get() / 1000).unwrap_or(i64::MAX),
        nanos: i32::try_from(at.get() % 1000 * 1_000_000).expect("below a second"),
    }
}

fn duration(ms: u64) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(ms / 1000).unwrap_or(i64::MAX),
        nanos: i32::try_from(ms % 1000 * 1_000_000).expect("below a second"),
    }
}

fn md5_upper_hex(body: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    let digest = Md5::digest(body);
    let mut text = String::with_capacity(digest.len() * 2);
    for byte in digest {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    text
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::state::{MessageProperties, TopicId};

    #[test]
    fn every_field_an_sdk_reads_is_set_even_for_a_message_that_said_nothing() {
        let stored = StoredMessage {
            topic: TopicId(1),
            queue: QueueId(2),
            id: "id".to_owned(),
            message_type: StoredType::Normal,
            body_encoding: BodyEncoding::Identity,
            born_at: UnixMillis(1_234),
            tag_code: 0,
            properties: MessageProperties {
                user: [("empty".to_owned(), String::new())].into(),
                ..MessageProperties::default()
            },
            body: Bytes::from_static(b"hello"),
            dead_letter: None,
        };
        let topic = Resource { resource_namespace: String::new(), name: "t".to_owned() };
        let message = delivered(
            stored,
            Delivery {
                topic: &topic,
                queue: QueueId(2),
                offset: QueueOffset(7),
                stored_at: UnixMillis(2_000),
                store_host: "127.0.0.1:8081",
                receipt_handle: "h".to_owned(),
                attempt: 1,
                invisible_ms: 30_500,
            },
        );
        assert_eq!(message.user_properties.get("empty").map(String::as_str), Some(""));
        let system = message.system_properties.expect("system properties");
        let digest = system.body_digest.expect("digest");
        assert_eq!(digest.checksum, "5D41402ABC4B2A76B9719D911017C592");
        assert_eq!(digest.r#type, DigestType::Md5 as i32);
        assert_eq!(system.body_encoding, Encoding::Identity as i32);
        assert_eq!(system.born_timestamp, Some(timestamp(UnixMillis(1_234))));
        assert_eq!((system.queue_id, system.queue_offset), (2, Some(7)));
        assert_eq!(system.delivery_attempt, Some(1));
        assert_eq!(system.receipt_handle.as_deref(), Some("h"));
        let invisible = system.invisible_duration.expect("invisible duration");
        assert_eq!((invisible.seconds, invisible.nanos), (30, 500_000_000));
    }
}
