//! Commands of lite topics and of what a consumer group says beside its retry policy.
//!
//! `AppendLite`: as `AppendMessages`, for one lite topic.
//!
//! | Offset | Bytes | Field |
//! |---|---|---|
//! | 12 | 4 | parent topic |
//! | 16 | 2 + n | name of the lite topic |
//! | 18 + n | 4 | count of messages |
//! | 22 + n | … | that many message records (see [`message`](super::message)); their queue is the parent's, by which the lite topic was placed |
//!
//! `SetGroupAttributes`: consumer group u32, attributes.
//! Attributes: priority factor u8, bound topic text, exclusive u8, client quota u32, reset when taken
//! over u8, reset on unsubscribe u8.
//!
//! `SyncLite`: consumer group u32, parent topic u32, client id text, version u64, action u8, list of
//! (name text, start u8, start value u64). Actions: 0 add, 1 remove, 2 replace by, 3 remove all; RocketMQ's numbers.
//! Starts: 0 the last message, 1 the first, 2 behind the last, 3 an offset, 4 so many before the end.
//!
//! `ExpireLite`: parent topic u32, list of lite queues u32.
//! `SetLiteTopic`: parent topic u32, idle time u64 ms, 0 for none.
//! `SuspendDelivery`: as `ChangeInvisible`; the next delivery does not count as another attempt.

use bytes::{BufMut, Bytes, BytesMut};

use super::append::AppendedMessage;
use super::message::{NewMessage, RECORD_HEADER_BYTES};
use super::wire::{FieldReader, MalformedField, put_count, put_list, put_text};
use super::{CommandError, HEADER_BYTES, Kind, put_header};
use crate::state::names::{ConsumerGroupId, TopicId};
use ledgermq_common::clock::UnixMillis;
use ledgermq_common::limits::LITE_SUBSCRIPTIONS_PER_CLIENT;

#[derive(Debug, Clone, PartialEq)]
pub struct AppendLite {
    pub topic: TopicId,
    pub lite_topic: String,
    pub messages: Vec<AppendedMessage>,
}

/// Length of the command [`encode_lite`] makes, for checking it against the limit before.
pub fn encoded_lite_bytes(lite_topic: &str, messages: &[NewMessage]) -> usize {
    let records: usize = messages.iter().map(NewMessage::record_bytes).sum();
    HEADER_BYTES + 4 + 2 + lite_topic.len() + 4 + records
}

/// Encodes the command that appends `messages` to one lite topic; each body is copied once.
pub fn encode_lite(
    stamped_at: UnixMillis,
    topic: TopicId,
    lite_topic: &str,
    messages: &[NewMessage],
) -> Bytes {
    let bytes = encoded_lite_bytes(lite_topic, messages);
    let mut out = BytesMut::with_capacity(bytes);
    put_header(&mut out, Kind::AppendLite, stamped_at);
    out.put_u32_le(topic.get());
    put_text(&mut out, lite_topic);
    put_count(&mut out, messages.len());
    for message in messages {
        message.put_record(&mut out, topic);
    }
    assert_eq!(out.len(), bytes, "lite append command length");
    out.freeze()
}

/// What a consumer group says beside [`ConsumerGroupSettings`](super::ConsumerGroupSettings).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupAttributes {
    /// Of a hundred receives from a topic with priorities, so many honour them.
    pub priority_factor: u8,
    /// The parent of the lite topics this group reads; empty until its first subscription.
    pub bind_topic: String,
    /// A lite topic has one reader; the newest takes it over.
    pub exclusive: bool,
    pub client_quota: u32,
    /// A reader that takes a lite topic over begins anew.
    pub reset_when_taken_over: bool,
    /// The group forgets where it was once its last reader has unsubscribed.
    pub reset_on_unsubscribe: bool,
}

pub const PRIORITY_FACTOR_MAX: u8 = 100;

impl Default for GroupAttributes {
    fn default() -> Self {
        Self {
            priority_factor: PRIORITY_FACTOR_MAX,
            bind_topic: String::new(),
            exclusive: false,
            client_quota: LITE_SUBSCRIPTIONS_PER_CLIENT,
            reset_when_taken_over: false,
            reset_on_unsubscribe: false,
        }
    }
}

impl GroupAttributes {
    pub(crate) fn put(&self, out: &mut BytesMut) {
        out.put_u8(self.priority_factor);
        put_text(out, &self.bind_topic);
        out.put_u8(u8::from(self.exclusive));
        out.put_u32_le(self.client_quota);
        out.put_u8(u8::from(self.reset_when_taken_over));
        out.put_u8(u8::from(self.reset_on_unsubscribe));
    }

    pub(crate) fn read(reader: &mut FieldReader<'_>) -> Result<Self, MalformedField> {
        Ok(Self {
            priority_factor: reader.u8("priority factor")?,
            bind_topic: reader.text("bound topic")?,
            exclusive: reader.bool("exclusive")?,
            client_quota: reader.u32("client quota")?,
            reset_when_taken_over: reader.bool("reset when taken over")?,
            reset_on_unsubscribe: reader.bool("reset on unsubscribe")?,
        })
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetGroupAttributes {
    pub consumer_group: ConsumerGroupId,
    pub attributes: GroupAttributes,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum LiteAction {
    Add = 0,
    Remove = 1,
    /// These and no others.
    Replace = 2,
    RemoveAll = 3,
}

impl LiteAction {
    pub const fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            0 => Self::Add,
            1 => Self::Remove,
            2 => Self::Replace,
            3 => Self::RemoveAll,
            _ => return None,
        })
    }
}

/// Where a consumer group begins that has never read the lite topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LiteStart {
    Last,
    Min,
    Max,
    Offset(u64),
    Tail(u64),
}

impl LiteStart {
    fn put(self, out: &mut BytesMut) {
        let (number, value) = match self {
            Self::Last => (0, 0),
            Self::Min => (1, 0),
            Self::Max => (2, 0),
            Self::Offset(offset) => (3, offset),
            Self::Tail(messages) => (4, messages),
        };
        out.put_u8(number);
        out.put_u64_le(value);
    }

    fn read(reader: &mut FieldReader<'_>) -> Result<Self, MalformedField> {
        let (number, value) = (reader.u8("start")?, reader.u64("start value")?);
        Ok(match number {
            0 => Self::Last,
            1 => Self::Min,
            2 => Self::Max,
            3 => Self::Offset(value),
            4 => Self::Tail(value),
            _ => return Err(reader.malformed("start")),
        })
    }

    /// The offset it stands for in a queue of `min..max`.
    pub(crate) fn in_queue(self, min: u64, max: u64) -> u64 {
        let offset = match self {
            Self::Last => max.saturating_sub(1),
            Self::Min => min,
            Self::Max => max,
            Self::Offset(offset) => offset,
            Self::Tail(messages) => max.saturating_sub(messages),
        };
        offset.clamp(min, max)
    }
}

/// Changes which lite topics of one parent a client reads for its consumer group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyncLite {
    pub consumer_group: ConsumerGroupId,
    pub topic: TopicId,
    pub client_id: String,
    /// The client's own number of the state it tells of; 0 without one.
    pub version: u64,
    pub action: LiteAction,
    pub lite_topics: Vec<(String, LiteStart)>,
}

/// Removes lite topics that have been idle; apply judges each again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpireLite {
    pub topic: TopicId,
    pub queues: Vec<u32>,
}

/// After how long without use an empty lite topic of this parent goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SetLiteTopic {
    pub topic: TopicId,
    /// 0: never.
    pub expire_after_ms: u64,
}

impl AppendLite {
    pub(super) fn put(&self, out: &mut BytesMut) {
        out.put_u32_le(self.topic.get());
        put_text(out, &self.lite_topic);
        put_count(out, self.messages.len());
        for message in &self.messages {
            assert_eq!(out.len(), message.record_at as usize, "record position");
            out.put_slice(&message.record);
        }
    }

    pub(super) fn read(reader: &mut FieldReader<'_>) -> Result<Self, CommandError> {
        let topic = TopicId(reader.u32("topic")?);
        let lite_topic = reader.text("lite topic")?;
        let count = reader.count(RECORD_HEADER_BYTES, "message count")?;
        let mut messages = Vec::with_capacity(count);
        for _ in 0..count {
            messages.push(AppendedMessage::read(reader, topic)?);
        }
        Ok(Self { topic, lite_topic, messages })
    }
}

impl SetGroupAttributes {
    pub(super) fn put(&self, out: &mut BytesMut) {
        out.put_u32_le(self.consumer_group.get());
        self.attributes.put(out);
    }

    pub(super) fn read(reader: &mut FieldReader<'_>) -> Result<Self, MalformedField> {
        Ok(Self {
            consumer_group: ConsumerGroupId(reader.u32("consumer group")?),
            attributes: GroupAttributes::read(reader)?,
        })
    }
}

impl SyncLite {
    pub(super) fn put(&self, out: &mut BytesMut) {
        out.put_u32_le(self.consumer_group.get());
        out.put_u32_le(self.topic.get());
        put_text(out, &self.client_id);
        out.put_u64_le(self.version);
        out.put_u8(self.action as u8);
        put_list(out, &self.lite_topics, |out, (name, start)| {
            put_text(out, name);
            start.put(out);
        });
    }

    pub(super) fn read(reader: &mut FieldReader<'_>) -> Result<Self, MalformedField> {
        Ok(Self {
            consumer_group: ConsumerGroupId(reader.u32("consumer group")?),
            topic: TopicId(reader.u32("topic")?),
            client_id: reader.text("client id")?,
            version: reader.u64("version")?,
            action: LiteAction::from_number(reader.u8("action")?)
                .ok_or_else(|| reader.malformed("action"))?,
            lite_topics: reader.list(11, "lite topics", |reader| {
                Ok((reader.text("lite topic")?, LiteStart::read(reader)?))
            })?,
        })
    }
}

impl ExpireLite {
    pub(super) fn put(&self, out: &mut BytesMut) {
        out.put_u32_le(self.topic.get());
        put_list(out, &self.queues, |out, queue| out.put_u32_le(*queue));
    }

    pub(super) fn read(reader: &mut FieldReader<'_>) -> Result<Self, MalformedField> {
        Ok(Self {
            topic: TopicId(reader.u32("topic")?),
            queues: reader.list(4, "lite queues", |reader| reader.u32("lite queue"))?,
        })
    }
}

impl SetLiteTopic {
    pub(super) fn put(&self, out: &mut BytesMut) {
        out.put_u32_le(self.topic.get());
        out.put_u64_le(self.expire_after_ms);
    }

    pub(super) fn read(reader: &mut FieldReader<'_>) -> Result<Self, MalformedField> {
        Ok(Self { topic: TopicId(reader.u32("topic")?), expire_after_ms: reader.u64("idle time")? })
    }
}
