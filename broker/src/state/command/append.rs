//! `AppendMessages`: one or many messages of one topic, all stored or none.
//!
//! | Offset | Bytes | Field |
//! |---|---|---|
//! | 12 | 4 | topic |
//! | 16 | 4 | count of messages |
//! | 20 | … | that many message records, one after the other (see [`message`](super::message)) |

use bytes::{BufMut, Bytes, BytesMut};
use ledgermq_common::QueueId;
use ledgermq_common::clock::UnixMillis;

use super::message::{NewMessage, RECORD_HEADER_BYTES, RecordHead};
use super::wire::{FieldReader, put_count};
use super::{CommandError, HEADER_BYTES, Kind, put_header};
use crate::state::names::TopicId;

const FIXED_BYTES: usize = HEADER_BYTES + 8;

/// Length of the command [`encode_append`] makes, for checking it against the limit before.
pub fn encoded_append_bytes(messages: &[NewMessage]) -> usize {
    FIXED_BYTES + messages.iter().map(NewMessage::record_bytes).sum::<usize>()
}

/// Encodes the command that stores `messages`; each body is copied once.
pub fn encode_append(stamped_at: UnixMillis, topic: TopicId, messages: &[NewMessage]) -> Bytes {
    let bytes = encoded_append_bytes(messages);
    let mut out = BytesMut::with_capacity(bytes);
    put_header(&mut out, Kind::AppendMessages, stamped_at);
    out.put_u32_le(topic.get());
    put_count(&mut out, messages.len());
    for message in messages {
        message.put_record(&mut out, topic);
    }
    assert_eq!(out.len(), bytes, "append command length");
    out.freeze()
}

#[derive(Debug, Clone, PartialEq)]
pub struct AppendMessages {
    pub topic: TopicId,
    pub messages: Vec<AppendedMessage>,
}

/// A message inside the command, as apply needs it.
#[derive(Debug, Clone, PartialEq)]
pub struct AppendedMessage {
    pub queue: QueueId,
    pub tag_code: u32,
    pub id: Bytes,
    /// Where the record starts in the command.
    pub record_at: u32,
    pub record: Bytes,
    /// Where the encoded properties are in the record.
    pub properties: std::ops::Range<usize>,
}

impl AppendedMessage {
    pub(crate) fn properties(&self) -> &[u8] {
        self.record.get(self.properties.clone()).unwrap_or_default()
    }
}

impl AppendMessages {
    pub(super) fn put(&self, out: &mut BytesMut) {
        out.put_u32_le(self.topic.get());
        put_count(out, self.messages.len());
        for message in &self.messages {
            assert_eq!(out.len(), message.record_at as usize, "record position");
            out.put_slice(&message.record);
        }
    }

    pub(super) fn read(reader: &mut FieldReader<'_>) -> Result<Self, CommandError> {
        let topic = TopicId(reader.u32("topic")?);
        let count = reader.count(RECORD_HEADER_BYTES, "message count")?;
        let mut messages = Vec::with_capacity(count);
        for _ in 0..count {
            messages.push(AppendedMessage::read(reader, topic)?);
        }
        Ok(Self { topic, messages })
    }
}

impl AppendedMessage {
    pub(super) fn read(reader: &mut FieldReader<'_>, topic: TopicId) -> Result<Self, CommandError> {
        Self::read_of(reader, |of| of == topic).map(|(_, message)| message)
    }

    /// A message of one of the topics that the command is about.
    pub(super) fn read_of(
        reader: &mut FieldReader<'_>,
        is_expected: impl FnOnce(TopicId) -> bool,
    ) -> Result<(TopicId, Self), CommandError> {
        let record_at = reader.position();
        let head = RecordHead::read(reader).map_err(CommandError::Record)?;
        if !is_expected(head.topic) {
            return Err(reader.malformed("topic of a message").into());
        }
        let id = reader.bytes(head.id_bytes, "message id")?;
        reader.bytes(head.properties_bytes, "properties")?;
        reader.bytes(head.body_bytes, "body")?;
        let record = reader.since(record_at);
        assert_eq!(record.len(), head.record_bytes, "record length");
        let record_at = u32::try_from(record_at).map_err(|_| reader.malformed("record position"))?;
        let properties_at = RECORD_HEADER_BYTES + head.id_bytes;
        let properties = properties_at..properties_at + head.properties_bytes;
        let message = Self { queue: head.queue, tag_code: head.tag_code, id, record_at, record, properties };
        Ok((head.topic, message))
    }
}
