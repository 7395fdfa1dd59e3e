//! Commands of retention: what leaves the queues, what is carried to the end of the log, and up to
//! where the log may be released.
//!
//! `ExpireMessages`: topic u32, stored before u64 ms, cause u8 (1 time, 2 size of the log), retention
//! of the plan (own u8, u64 ms), list of (queue u32, new minimum u64).
//! `SetTopicRetention`: topic u32, own u8, retention u64 ms (0: for ever).
//! `ReleaseLog`: physical offset u64.
//!
//! `CarryRecords`: a list of records that are owed and would pin the log where they lie.
//!
//! | Bytes | Field |
//! |---|---|
//! | 1 | what is owed: 1 an undecided half, 2 a pending timer |
//! | 8 | its identity: the physical offset it was first stored at |
//! | 8 | delivery time of a timer, ms; 0 for a half |
//! | 4 | topic |
//! | … | the message record, as it was |

use bytes::{BufMut, Bytes, BytesMut};
use ledgermq_common::clock::UnixMillis;
use ledgermq_common::{PhysicalOffset, QueueId};

use super::append::AppendedMessage;
use super::message::RECORD_HEADER_BYTES;
use super::wire::{FieldReader, MalformedField, put_count, put_list};
use super::{CommandError, HEADER_BYTES, Kind, put_header};
use crate::state::names::TopicId;

const CARRIED_HEAD_BYTES: usize = 21;

/// How long a topic keeps its messages; the least a leader may go by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TopicRetention {
    /// The topic's own; otherwise the broker's default.
    pub is_own: bool,
    /// 0: for ever.
    pub retention_ms: u64,
}

/// Why messages go. The numbers are in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ExpiryCause {
    /// They are older than their topic keeps them.
    Time = 1,
    /// The log is larger than the broker keeps it.
    Size = 2,
}

/// Moves the minimum of queues of one topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpireMessages {
    pub topic: TopicId,
    /// Only messages that became visible before go.
    pub stored_before: UnixMillis,
    pub cause: ExpiryCause,
    /// What the leader went by; apply does nothing if that is not true any more.
    pub retention: TopicRetention,
    pub queues: Vec<(QueueId, u64)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SetTopicRetention {
    pub topic: TopicId,
    /// `None`: the broker's default; 0: for ever.
    pub retention_ms: Option<u64>,
}

/// Nothing below is referred to any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReleaseLog {
    pub below: PhysicalOffset,
}

/// What is owed and lies in the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owed {
    /// By its transaction id.
    Half(PhysicalOffset),
    /// By what its recall handle names.
    Timer(UnixMillis, PhysicalOffset),
}

#[derive(Debug, Clone, PartialEq)]
pub struct CarriedRecord {
    pub owed: Owed,
    pub topic: TopicId,
    pub message: AppendedMessage,
}

#[derive(Debug, Clone, PartialEq)]
pub struct CarryRecords {
    pub records: Vec<CarriedRecord>,
}

impl ExpiryCause {
    const fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Time,
            2 => Self::Size,
            _ => return None,
        })
    }
}

/// Encodes the command that stores `records` once more, byte for byte.
pub fn encode_carried(stamped_at: UnixMillis, records: &[(Owed, TopicId, Bytes)]) -> Bytes {
    let bytes = records.iter().map(|(_, _, record)| CARRIED_HEAD_BYTES + record.len()).sum::<usize>();
    let mut out = BytesMut::with_capacity(HEADER_BYTES + 4 + bytes);
    put_header(&mut out, Kind::CarryRecords, stamped_at);
    put_count(&mut out, records.len());
    for (owed, topic, record) in records {
        put_head(&mut out, *owed, *topic);
        out.put_slice(record);
    }
    out.freeze()
}

fn put_head(out: &mut BytesMut, owed: Owed, topic: TopicId) {
    let (kind, id, deliver_at) = match owed {
        Owed::Half(id) => (1, id, UnixMillis(0)),
        Owed::Timer(deliver_at, id) => (2, id, deliver_at),
    };
    out.put_u8(kind);
    out.put_u64_le(id.get());
    out.put_u64_le(deliver_at.get());
    out.put_u32_le(topic.get());
}

impl TopicRetention {
    fn put(self, out: &mut BytesMut) {
        out.put_u8(u8::from(self.is_own));
        out.put_u64_le(self.retention_ms);
    }

    fn read(reader: &mut FieldReader<'_>) -> Result<Self, MalformedField> {
        Ok(Self { is_own: reader.bool("own retention")?, retention_ms: reader.u64("retention")? })
    }
}

impl ExpireMessages {
    pub(super) fn put(&self, out: &mut BytesMut) {
        out.put_u32_le(self.topic.get());
        out.put_u64_le(self.stored_before.get());
        out.put_u8(self.cause as u8);
        self.retention.put(out);
        put_list(out, &self.queues, |out, (queue, min)| {
            out.put_u32_le(queue.get());
            out.put_u64_le(*min);
        });
    }

    pub(super) fn read(reader: &mut FieldReader<'_>) -> Result<Self, MalformedField> {
        Ok(Self {
            topic: TopicId(reader.u32("topic")?),
            stored_before: UnixMillis(reader.u64("stored before")?),
            cause: ExpiryCause::from_number(reader.u8("cause")?).ok_or_else(|| reader.malformed("cause"))?,
            retention: TopicRetention::read(reader)?,
            queues: reader
                .list(12, "queues", |reader| Ok((QueueId(reader.u32("queue")?), reader.u64("minimum")?)))?,
        })
    }
}

impl SetTopicRetention {
    pub(super) fn put(&self, out: &mut BytesMut) {
        out.put_u32_le(self.topic.get());
        let retention_ms = self.retention_ms.unwrap_or(0);
        TopicRetention { is_own: self.retention_ms.is_some(), retention_ms }.put(out);
    }

    pub(super) fn read(reader: &mut FieldReader<'_>) -> Result<Self, MalformedField> {
        let topic = TopicId(reader.u32("topic")?);
        let TopicRetention { is_own, retention_ms } = TopicRetention::read(reader)?;
        Ok(Self { topic, retention_ms: is_own.then_some(retention_ms) })
    }
}

impl ReleaseLog {
    pub(super) fn put(&self, out: &mut BytesMut) {
        out.put_u64_le(self.below.get());
    }

    pub(super) fn read(reader: &mut FieldReader<'_>) -> Result<Self, MalformedField> {
        Ok(Self { below: PhysicalOffset(reader.u64("released below")?) })
    }
}

impl CarryRecords {
    pub(super) fn put(&self, out: &mut BytesMut) {
        put_count(out, self.records.len());
        for carried in &self.records {
            put_head(out, carried.owed, carried.topic);
            assert_eq!(out.len(), carried.message.record_at as usize, "record position");
            out.put_slice(&carried.message.record);
        }
    }

    pub(super) fn read(reader: &mut FieldReader<'_>) -> Result<Self, CommandError> {
        let count = reader.count(CARRIED_HEAD_BYTES + RECORD_HEADER_BYTES, "record count")?;
        let mut records = Vec::with_capacity(count);
        for _ in 0..count {
            let kind = reader.u8("what is owed")?;
            let id = PhysicalOffset(reader.u64("identity")?);
            let deliver_at = UnixMillis(reader.u64("delivery time")?);
            let owed = match kind {
                1 => Owed::Half(id),
                2 => Owed::Timer(deliver_at, id),
                _ => return Err(reader.malformed("what is owed").into()),
            };
            let topic = TopicId(reader.u32("topic")?);
            records.push(CarriedRecord { owed, topic, message: AppendedMessage::read(reader, topic)? });
        }
        Ok(Self { records })
    }
}
