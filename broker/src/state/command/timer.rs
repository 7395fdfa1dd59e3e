//! Commands of delayed messages.
//!
//! `AppendDelayed`: as `AppendMessages`, with a delivery time before each record.
//!
//! | Offset | Bytes | Field |
//! |---|---|---|
//! | 12 | 4 | topic |
//! | 16 | 4 | count of messages |
//! | 20 | … | that many: delivery time u64 ms, message record (see [`message`](super::message)) |
//!
//! `FireTimers`: through u64 ms, timers at most u32.
//! `RecallTimer`: delivery time u64 ms, physical offset u64.

use bytes::{BufMut, Bytes, BytesMut};
use ledgermq_common::PhysicalOffset;
use ledgermq_common::clock::UnixMillis;

use super::append::AppendedMessage;
use super::message::{NewMessage, RECORD_HEADER_BYTES};
use super::wire::{FieldReader, MalformedField, put_count};
use super::{CommandError, HEADER_BYTES, Kind, put_header};
use crate::state::names::TopicId;

const FIXED_BYTES: usize = HEADER_BYTES + 8;
const TIME_BYTES: usize = 8;

/// Length of the command [`encode_delayed`] makes, for checking it against the limit before.
pub fn encoded_delayed_bytes(messages: &[(UnixMillis, NewMessage)]) -> usize {
    let records = messages.iter().map(|(_, message)| TIME_BYTES + message.record_bytes());
    FIXED_BYTES + records.sum::<usize>()
}

/// Encodes the command that stores `messages` until their delivery times; each body is copied once.
pub fn encode_delayed(
    stamped_at: UnixMillis,
    topic: TopicId,
    messages: &[(UnixMillis, NewMessage)],
) -> Bytes {
    let bytes = encoded_delayed_bytes(messages);
    let mut out = BytesMut::with_capacity(bytes);
    put_header(&mut out, Kind::AppendDelayed, stamped_at);
    out.put_u32_le(topic.get());
    put_count(&mut out, messages.len());
    for (deliver_at, message) in messages {
        out.put_u64_le(deliver_at.get());
        message.put_record(&mut out, topic);
    }
    assert_eq!(out.len(), bytes, "delayed append command length");
    out.freeze()
}

#[derive(Debug, Clone, PartialEq)]
pub struct AppendDelayed {
    pub topic: TopicId,
    pub messages: Vec<(UnixMillis, AppendedMessage)>,
}

/// Makes messages visible whose time has come, oldest delivery time first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FireTimers {
    /// The leader's clock; apply never goes beyond log time, whatever stands here.
    pub through: UnixMillis,
    pub max: u32,
}

/// Takes a delayed message out, unless its time has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecallTimer {
    pub deliver_at: UnixMillis,
    pub physical: PhysicalOffset,
}

impl AppendDelayed {
    pub(super) fn put(&self, out: &mut BytesMut) {
        out.put_u32_le(self.topic.get());
        put_count(out, self.messages.len());
        for (deliver_at, message) in &self.messages {
            out.put_u64_le(deliver_at.get());
            assert_eq!(out.len(), message.record_at as usize, "record position");
            out.put_slice(&message.record);
        }
    }

    pub(super) fn read(reader: &mut FieldReader<'_>) -> Result<Self, CommandError> {
        let topic = TopicId(reader.u32("topic")?);
        let count = reader.count(TIME_BYTES + RECORD_HEADER_BYTES, "message count")?;
        let mut messages = Vec::with_capacity(count);
        for _ in 0..count {
            let deliver_at = UnixMillis(reader.u64("delivery time")?);
            messages.push((deliver_at, AppendedMessage::read(reader, topic)?));
        }
        Ok(Self { topic, messages })
    }
}

impl FireTimers {
    pub(super) fn put(&self, out: &mut BytesMut) {
        out.put_u64_le(self.through.get());
        out.put_u32_le(self.max);
    }

    pub(super) fn read(reader: &mut FieldReader<'_>) -> Result<Self, MalformedField> {
        Ok(Self { through: UnixMillis(reader.u64("through")?), max: reader.u32("timers at most")? })
    }
}

impl RecallTimer {
    pub(super) fn put(&self, out: &mut BytesMut) {
        out.put_u64_le(self.deliver_at.get());
        out.put_u64_le(self.physical.get());
    }

    pub(super) fn read(reader: &mut FieldReader<'_>) -> Result<Self, MalformedField> {
        Ok(Self {
            deliver_at: UnixMillis(reader.u64("delivery time")?),
            physical: PhysicalOffset(reader.u64("physical offset")?),
        })
    }
}
