//! The message record: how one message lies in the CommitLog, inside the append command that
//! stored it. Consumers are served by slicing it, so the body is contiguous and verbatim.
//!
//! | Offset | Bytes | Field |
//! |---|---|---|
//! | 0 | 4 | record length, these bytes included |
//! | 4 | 1 | record version, 1 |
//! | 5 | 1 | message type |
//! | 6 | 1 | body encoding |
//! | 7 | 1 | flags, 0 (room for half messages and references to another record's body) |
//! | 8 | 4 | topic |
//! | 12 | 4 | queue |
//! | 16 | 8 | born timestamp, ms |
//! | 24 | 4 | tag code: Java's `String.hashCode` of the tag, 0 without a tag |
//! | 28 | 2 | length of the message id |
//! | 30 | 2 | 0 |
//! | 32 | 4 | length of the properties |
//! | 36 | 4 | length of the body |
//! | 40 | … | message id, properties ([`MessageProperties`] in protobuf), body |
//!
//! Checks: the frame around the command carries the checksums. A record read back is still taken
//! as untrusted, because its position comes from the index, which is derived.

use std::collections::BTreeMap;

use bytes::{BufMut, Bytes, BytesMut};
use ledgermq_common::QueueId;
use ledgermq_common::clock::UnixMillis;
use prost::Message as _;

use super::dead_letter::DeadLetterRecord;
use super::wire::{FieldReader, MalformedField};
use crate::state::names::{BodyEncoding, MessageType, TopicId};

pub(crate) const RECORD_HEADER_BYTES: usize = 40;
const RECORD_VERSION: u8 = 1;

/// What the producer said about a message besides its body. New fields get new numbers.
#[derive(Clone, PartialEq, prost::Message)]
pub struct MessageProperties {
    #[prost(btree_map = "string, string", tag = "1")]
    pub user: BTreeMap<String, String>,
    #[prost(string, optional, tag = "2")]
    pub tag: Option<String>,
    #[prost(string, repeated, tag = "3")]
    pub keys: Vec<String>,
    #[prost(string, optional, tag = "4")]
    pub message_group: Option<String>,
    #[prost(string, optional, tag = "5")]
    pub trace_context: Option<String>,
    #[prost(string, tag = "6")]
    pub born_host: String,
    /// Of a delayed message: not visible before.
    #[prost(uint64, optional, tag = "41")]
    pub deliver_at_ms: Option<u64>,
    #[prost(int32, optional, tag = "60")]
    pub priority: Option<i32>,
    #[prost(string, optional, tag = "61")]
    pub lite_topic: Option<String>,
}

/// A message on its way into the log; the leader has chosen its queue.
#[derive(Debug, Clone)]
pub struct NewMessage {
    pub queue: QueueId,
    pub id: String,
    pub message_type: MessageType,
    pub body_encoding: BodyEncoding,
    pub born_at: UnixMillis,
    pub properties: MessageProperties,
    pub body: Bytes,
}

impl NewMessage {
    pub fn tag_code(&self) -> u32 {
        self.properties.tag.as_deref().map_or(0, tag_code)
    }

    pub(crate) fn record_bytes(&self) -> usize {
        RECORD_HEADER_BYTES + self.id.len() + self.properties.encoded_len() + self.body.len()
    }

    /// The one place where a body is copied between the request and the disk.
    pub(crate) fn put_record(&self, out: &mut BytesMut, topic: TopicId) {
        let start = out.len();
        let record_bytes = self.record_bytes();
        out.put_u32_le(length(record_bytes));
        out.put_u8(RECORD_VERSION);
        out.put_u8(self.message_type.number());
        out.put_u8(self.body_encoding.number());
        out.put_u8(0);
        out.put_u32_le(topic.get());
        out.put_u32_le(self.queue.get());
        out.put_u64_le(self.born_at.get());
        out.put_u32_le(self.tag_code());
        out.put_u16_le(u16::try_from(self.id.len()).expect("message ids are checked to be short"));
        out.put_u16_le(0);
        out.put_u32_le(length(self.properties.encoded_len()));
        out.put_u32_le(length(self.body.len()));
        out.put_slice(self.id.as_bytes());
        self.properties.encode(out).expect("a growing buffer has room");
        out.put_slice(&self.body);
        assert_eq!(out.len() - start, record_bytes, "record length");
    }
}

/// Why bytes are no message record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MessageRecordError {
    #[error(transparent)]
    Malformed(#[from] MalformedField),
    #[error("message record has version {version}; this node knows {RECORD_VERSION}")]
    Version { version: u8 },
    #[error("properties of a message record are not valid: {reason}")]
    Properties { reason: String },
}

/// A message read back from the CommitLog. The body shares the bytes it was decoded from.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredMessage {
    pub topic: TopicId,
    pub queue: QueueId,
    pub id: String,
    pub message_type: MessageType,
    pub body_encoding: BodyEncoding,
    pub born_at: UnixMillis,
    pub tag_code: u32,
    pub properties: MessageProperties,
    pub body: Bytes,
    /// Where it came from, when it was read from a dead-letter queue.
    pub dead_letter: Option<Box<DeadLetterRecord>>,
}

impl StoredMessage {
    pub fn decode(record: &Bytes) -> Result<Self, MessageRecordError> {
        let mut reader = FieldReader::new(record);
        let head = RecordHead::read(&mut reader)?;
        let id = reader.bytes(head.id_bytes, "message id")?;
        let properties = reader.bytes(head.properties_bytes, "properties")?;
        let body = reader.bytes(head.body_bytes, "body")?;
        reader.end("end of the record")?;
        let id = std::str::from_utf8(&id)
            .map_err(|_| MalformedField { field: "message id", at: RECORD_HEADER_BYTES })?
            .to_owned();
        let properties = MessageProperties::decode(properties)
            .map_err(|error| MessageRecordError::Properties { reason: error.to_string() })?;
        Ok(Self {
            topic: head.topic,
            queue: head.queue,
            id,
            message_type: head.message_type,
            body_encoding: head.body_encoding,
            born_at: head.born_at,
            tag_code: head.tag_code,
            properties,
            body,
            dead_letter: None,
        })
    }
}

/// The fixed part of a record, checked for being consistent with itself.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RecordHead {
    pub(crate) record_bytes: usize,
    pub(crate) message_type: MessageType,
    pub(crate) body_encoding: BodyEncoding,
    pub(crate) topic: TopicId,
    pub(crate) queue: QueueId,
    pub(crate) born_at: UnixMillis,
    pub(crate) tag_code: u32,
    pub(crate) id_bytes: usize,
    pub(crate) properties_bytes: usize,
    pub(crate) body_bytes: usize,
}

impl RecordHead {
    pub(crate) fn read(reader: &mut FieldReader<'_>) -> Result<Self, MessageRecordError> {
        let record_bytes = reader.u32("record length")? as usize;
        let version = reader.u8("record version")?;
        if version != RECORD_VERSION {
            return Err(MessageRecordError::Version { version });
        }
        let message_type = MessageType::from_number(reader.u8("message type")?)
            .ok_or_else(|| reader.malformed("message type"))?;
        let body_encoding = BodyEncoding::from_number(reader.u8("body encoding")?)
            .ok_or_else(|| reader.malformed("body encoding"))?;
        let flags = reader.u8("record flags")?;
        if flags != 0 {
            return Err(reader.malformed("record flags").into());
        }
        let topic = TopicId(reader.u32("topic")?);
        let queue = QueueId(reader.u32("queue")?);
        let born_at = UnixMillis(reader.u64("born timestamp")?);
        let tag_code = reader.u32("tag code")?;
        let id_bytes = usize::from(reader.u16("message id length")?);
        reader.u16("reserved bytes")?;
        let properties_bytes = reader.u32("properties length")? as usize;
        let body_bytes = reader.u32("body length")? as usize;
        let sum = RECORD_HEADER_BYTES
            .checked_add(id_bytes)
            .and_then(|sum| sum.checked_add(properties_bytes))
            .and_then(|sum| sum.checked_add(body_bytes));
        if sum != Some(record_bytes) {
            return Err(reader.malformed("record lengths").into());
        }
        Ok(Self {
            record_bytes,
            message_type,
            body_encoding,
            topic,
            queue,
            born_at,
            tag_code,
            id_bytes,
            properties_bytes,
            body_bytes,
        })
    }
}

/// Java's `String.hashCode`: over UTF-16 units, as RocketMQ's ConsumeQueue stores it.
pub fn tag_code(tag: &str) -> u32 {
    tag.encode_utf16().fold(0u32, |code, unit| code.wrapping_mul(31).wrapping_add(u32::from(unit)))
}

fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("a command is bounded far below 4 GiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tag_codes_are_those_of_java() {
        assert_eq!(tag_code("TagA"), 2_598_919);
        assert_eq!(tag_code("polygenelubricants"), 0x8000_0000);
        assert_eq!(tag_code(""), 0);
    }

    #[test]
    fn a_record_is_laid_out_as_the_table_says() {
        let message = NewMessage {
            queue: QueueId(3),
            id: "id".to_owned(),
            message_type: MessageType::Normal,
            body_encoding: BodyEncoding::Gzip,
            born_at: UnixMillis(5),
            properties: MessageProperties::default(),
            body: Bytes::from_static(b"body"),
        };
        let mut out = BytesMut::new();
        message.put_record(&mut out, TopicId(9));
        let expected: Vec<u8> = [
            46u32.to_le_bytes().as_slice(),
            &[1, 1, 2, 0],
            &9u32.to_le_bytes(),
            &3u32.to_le_bytes(),
            &5u64.to_le_bytes(),
            &0u32.to_le_bytes(),
            &2u16.to_le_bytes(),
            &[0, 0],
            &0u32.to_le_bytes(),
            &4u32.to_le_bytes(),
            b"id",
            b"body",
        ]
        .concat();
        assert_eq!(out.as_ref(), expected);
    }
}
