//! Messages as an application sees them, and their passage to and from the wire.

use std::collections::BTreeMap;

use bytes::Bytes;
use ledgermq_common::clock::UnixMillis;
use ledgermq_proto::rocketmq as wire;
use md5::{Digest as _, Md5};

use crate::error::{CorruptBody, MalformedAnswer};

/// A message to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub topic: String,
    pub body: Bytes,
    pub tag: Option<String>,
    pub keys: Vec<String>,
    pub properties: BTreeMap<String, String>,
    /// Given by the producer unless set here. An application that repeats a send after an error
    /// sets the same id again, and the message is stored once.
    pub id: Option<String>,
    /// Messages of one group are delivered in the order they were sent, one receiver at a time.
    pub message_group: Option<String>,
    /// Of a transactional message: nobody is asked for its outcome before; the server's time-out
    /// unless set.
    pub check_after: Option<std::time::Duration>,
    /// Not delivered before this time; for a topic of delayed messages.
    pub deliver_at: Option<UnixMillis>,
    /// Higher ones are received first; for a topic of type PRIORITY.
    pub priority: Option<u32>,
    /// For a topic of type LITE: the lite topic below it.
    pub lite_topic: Option<String>,
}

impl Message {
    pub fn new(topic: impl Into<String>, body: impl Into<Bytes>) -> Self {
        Self {
            topic: topic.into(),
            body: body.into(),
            tag: None,
            keys: Vec::new(),
            properties: BTreeMap::new(),
            id: None,
            message_group: None,
            check_after: None,
            deliver_at: None,
            priority: None,
            lite_topic: None,
        }
    }

    pub fn tag(mut self, tag: impl Into<String>) -> Self {
        self.tag = Some(tag.into());
        self
    }

    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.keys.push(key.into());
        self
    }

    pub fn property(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.properties.insert(name.into(), value.into());
        self
    }

    pub fn id(mut self, id: impl Into<String>) -> Self {
        self.id = Some(id.into());
        self
    }

    pub fn message_group(mut self, group: impl Into<String>) -> Self {
        self.message_group = Some(group.into());
        self
    }

    pub fn priority(mut self, priority: u32) -> Self {
        self.priority = Some(priority);
        self
    }

    pub fn lite_topic(mut self, name: impl Into<String>) -> Self {
        self.lite_topic = Some(name.into());
        self
    }

    pub fn deliver_at(mut self, at: UnixMillis) -> Self {
        self.deliver_at = Some(at);
        self
    }

    pub fn check_after(mut self, wait: std::time::Duration) -> Self {
        self.check_after = Some(wait);
        self
    }

    pub(crate) fn into_wire(
        self,
        id: String,
        namespace: &str,
        born: prost_types::Timestamp,
        born_host: &str,
        message_type: wire::MessageType,
    ) -> wire::Message {
        wire::Message {
            topic: Some(wire::Resource { resource_namespace: namespace.to_owned(), name: self.topic }),
            user_properties: self.properties,
            system_properties: Some(wire::SystemProperties {
                tag: self.tag,
                keys: self.keys,
                message_id: id,
                body_encoding: wire::Encoding::Identity as i32,
                message_type: match message_type {
                    wire::MessageType::Normal if self.deliver_at.is_some() => wire::MessageType::Delay,
                    wire::MessageType::Normal if self.message_group.is_some() => wire::MessageType::Fifo,
                    wire::MessageType::Normal if self.lite_topic.is_some() => wire::MessageType::Lite,
                    wire::MessageType::Normal if self.priority.is_some() => wire::MessageType::Priority,
                    given => given,
                } as i32,
                delivery_timestamp: self.deliver_at.map(|at| timestamp(at.get())),
                message_group: self.message_group,
                priority: self.priority.map(|priority| i32::try_from(priority).unwrap_or(i32::MAX)),
                lite_topic: self.lite_topic,
                orphaned_transaction_recovery_duration: self
                    .check_after
                    .filter(|_| message_type == wire::MessageType::Transaction)
                    .map(duration),
                born_timestamp: Some(born),
                born_host: born_host.to_owned(),
                ..Default::default()
            }),
            body: self.body,
        }
    }
}

/// What the server answered to a send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SendReceipt {
    pub message_id: String,
    /// The position in its queue.
    pub queue_offset: i64,
    /// 1 unless the request had to be repeated.
    pub attempts: u32,
    /// Takes a delayed message out before its time; empty for any other.
    pub recall_handle: String,
}

/// A message under lease: it comes back to the group unless it is acknowledged in time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReceivedMessage {
    pub message_id: String,
    pub topic: String,
    pub body: Bytes,
    pub tag: Option<String>,
    pub keys: Vec<String>,
    pub properties: BTreeMap<String, String>,
    pub receipt_handle: String,
    /// 1 for the first delivery.
    pub delivery_attempt: i32,
    pub priority: Option<i32>,
    /// The lite topic it was sent to, if it was one.
    pub lite_topic: Option<String>,
    /// The broker group it lies in; with queue and offset the place of this stored copy.
    pub broker: String,
    pub queue_id: i32,
    pub queue_offset: i64,
    pub born_timestamp_ms: u64,
    pub store_timestamp_ms: u64,
}

/// A message read by offset: nobody waits for its acknowledgement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PulledMessage {
    pub message_id: String,
    pub topic: String,
    pub body: Bytes,
    pub tag: Option<String>,
    pub keys: Vec<String>,
    pub properties: BTreeMap<String, String>,
    pub message_group: Option<String>,
    pub priority: Option<i32>,
    /// The broker group it lies in.
    pub broker: String,
    pub queue_id: i32,
    pub queue_offset: i64,
    pub born_timestamp_ms: u64,
    pub store_timestamp_ms: u64,
}

impl PulledMessage {
    pub(crate) fn from_wire(mut message: wire::Message, broker: &str) -> Result<Self, Unusable> {
        let (topic, system) = envelope(&mut message, "pull")?;
        Ok(Self {
            message_id: system.message_id,
            topic: topic.name,
            body: message.body,
            tag: system.tag,
            keys: system.keys,
            properties: message.user_properties,
            message_group: system.message_group,
            priority: system.priority,
            broker: broker.to_owned(),
            queue_id: system.queue_id,
            queue_offset: system.queue_offset.unwrap_or(-1),
            born_timestamp_ms: system.born_timestamp.as_ref().map_or(0, millis),
            store_timestamp_ms: system.store_timestamp.as_ref().map_or(0, millis),
        })
    }
}

/// A half message whose outcome the cluster asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReceivedHalf {
    pub message_id: String,
    pub topic: String,
    pub body: Bytes,
    pub tag: Option<String>,
    pub keys: Vec<String>,
    pub properties: BTreeMap<String, String>,
}

impl ReceivedHalf {
    pub(crate) fn from_wire(message: wire::Message) -> Option<(wire::Resource, Self)> {
        let topic = message.topic?;
        let system = message.system_properties?;
        let half = Self {
            message_id: system.message_id,
            topic: topic.name.clone(),
            body: message.body,
            tag: system.tag,
            keys: system.keys,
            properties: message.user_properties,
        };
        Some((topic, half))
    }
}

/// Why a delivered message cannot be handed to the application.
#[derive(Debug)]
pub(crate) enum Unusable {
    Malformed(MalformedAnswer),
    Corrupt(CorruptBody),
}

impl ReceivedMessage {
    pub(crate) fn from_wire(mut message: wire::Message, broker: &str) -> Result<Self, Unusable> {
        let (topic, system) = envelope(&mut message, "receive")?;
        let receipt_handle = system.receipt_handle.filter(|handle| !handle.is_empty());
        Ok(Self {
            message_id: system.message_id,
            topic: topic.name,
            body: message.body,
            tag: system.tag,
            keys: system.keys,
            properties: message.user_properties,
            receipt_handle: receipt_handle
                .ok_or_else(|| malformed("receive", "a message without a receipt handle"))?,
            delivery_attempt: system.delivery_attempt.unwrap_or(1),
            priority: system.priority,
            lite_topic: system.lite_topic,
            broker: broker.to_owned(),
            queue_id: system.queue_id,
            queue_offset: system.queue_offset.unwrap_or(-1),
            born_timestamp_ms: system.born_timestamp.as_ref().map_or(0, millis),
            store_timestamp_ms: system.store_timestamp.as_ref().map_or(0, millis),
        })
    }
}

/// Topic and system properties of a message whose body is what was sent.
fn envelope(
    message: &mut wire::Message,
    operation: &'static str,
) -> Result<(wire::Resource, wire::SystemProperties), Unusable> {
    let topic = message.topic.take().ok_or_else(|| malformed(operation, "a message without a topic"))?;
    let system = message.system_properties.take();
    let system = system.ok_or_else(|| malformed(operation, "a message without an envelope"))?;
    if let Some(digest) = &system.body_digest {
        check_digest(digest, &message.body, &system.message_id).map_err(Unusable::Corrupt)?;
    }
    Ok((topic, system))
}

fn malformed(operation: &'static str, what: &str) -> Unusable {
    Unusable::Malformed(MalformedAnswer { operation, what: what.to_owned() })
}

/// MD5 is checked; the spelling of CRC32 differs between clients, so it proves nothing, and no
/// server sends SHA-1.
fn check_digest(digest: &wire::Digest, body: &[u8], message_id: &str) -> Result<(), CorruptBody> {
    if digest.r#type() != wire::DigestType::Md5 {
        return Ok(());
    }
    let computed = Md5::digest(body);
    let mut expected = digest.checksum.as_bytes().chunks_exact(2);
    let same = digest.checksum.len() == 2 * computed.len()
        && computed.iter().zip(&mut expected).all(|(byte, pair)| {
            std::str::from_utf8(pair).ok().and_then(|pair| u8::from_str_radix(pair, 16).ok()) == Some(*byte)
        });
    if same { Ok(()) } else { Err(CorruptBody { message_id: message_id.to_owned(), digest: "MD5" }) }
}

fn millis(timestamp: &prost_types::Timestamp) -> u64 {
    let seconds = u64::try_from(timestamp.seconds).unwrap_or(0);
    let millis = u64::try_from(timestamp.nanos / 1_000_000).unwrap_or(0);
    seconds.saturating_mul(1000).saturating_add(millis)
}

pub(crate) fn timestamp(now_ms: u64) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: i64::try_from(now_ms / 1000).unwrap_or(i64::MAX),
        nanos: i32::try_from(now_ms % 1000).unwrap_or(0) * 1_000_000,
    }
}

pub(crate) fn duration(duration: std::time::Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(duration.subsec_nanos()).unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delivered(body: &'static [u8], checksum: &str) -> wire::Message {
        wire::Message {
            topic: Some(wire::Resource { resource_namespace: String::new(), name: "t".to_owned() }),
            system_properties: Some(wire::SystemProperties {
                message_id: "id".to_owned(),
                receipt_handle: Some("h".to_owned()),
                body_digest: Some(wire::Digest {
                    r#type: wire::DigestType::Md5 as i32,
                    checksum: checksum.to_owned(),
                }),
                ..Default::default()
            }),
            body: Bytes::from_static(body),
            ..Default::default()
        }
    }

    #[test]
    fn a_body_is_accepted_only_with_its_own_md5() {
        let digest = "5EB63BBBE01EEED093CB22BB8F5ACDC3";
        assert!(ReceivedMessage::from_wire(delivered(b"hello world", digest), "g").is_ok());
        for (body, checksum) in
            [(b"hello worle" as &[u8], digest), (b"hello world", "5EB6"), (b"hello world", "")]
        {
            let refused = ReceivedMessage::from_wire(delivered(body, checksum), "g");
            assert!(matches!(refused, Err(Unusable::Corrupt(_))), "{checksum}");
        }
    }
}
