//! Commands of offsets that a consumer group or an operator sets.
//!
//! `CommitOffset`: consumer group u32, topic u32, queue u32, offset u64, does the client say which reset
//! it knows u8, which one u64 (0 where it does not).
//! `ResetProgress`: consumer group u32, topic u32, list of (queue u32, offset u64), id of the reset u64.

use bytes::{BufMut, BytesMut};
use ledgermq_common::{QueueId, QueueOffset, ResetMark};

use super::wire::{FieldReader, MalformedField, put_list};
use crate::state::names::{ConsumerGroupId, ResetId, TopicId};

/// Remembers where a group that pulls by offset is in a queue. Leases know nothing of it.
///
/// It goes ahead or nowhere: only a reset goes back. One that was on its way while the group was reset
/// is told from a later one by `known`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommitOffset {
    pub consumer_group: ConsumerGroupId,
    pub topic: TopicId,
    pub queue: QueueId,
    pub offset: QueueOffset,
    /// The last reset the client knows of. RocketMQ's `UpdateOffset` has no place for it.
    pub known: Option<ResetMark>,
}

/// Moves a group in a topic: deliveries under way end, and the next one is at the offset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResetProgress {
    pub consumer_group: ConsumerGroupId,
    pub topic: TopicId,
    pub queues: Vec<(QueueId, QueueOffset)>,
    /// A reset that is repeated moves the group once.
    pub id: ResetId,
}

impl CommitOffset {
    pub(super) fn put(&self, out: &mut BytesMut) {
        out.put_u32_le(self.consumer_group.get());
        out.put_u32_le(self.topic.get());
        out.put_u32_le(self.queue.get());
        out.put_u64_le(self.offset.get());
        out.put_u8(u8::from(self.known.is_some()));
        out.put_u64_le(self.known.unwrap_or_default().get());
    }

    pub(super) fn read(reader: &mut FieldReader<'_>) -> Result<Self, MalformedField> {
        Ok(Self {
            consumer_group: ConsumerGroupId(reader.u32("consumer group")?),
            topic: TopicId(reader.u32("topic")?),
            queue: QueueId(reader.u32("queue")?),
            offset: QueueOffset(reader.u64("offset")?),
            known: {
                let says = reader.bool("is a reset known")?;
                Some(ResetMark(reader.u64("known reset")?)).filter(|_| says)
            },
        })
    }
}

impl ResetProgress {
    pub(super) fn put(&self, out: &mut BytesMut) {
        out.put_u32_le(self.consumer_group.get());
        out.put_u32_le(self.topic.get());
        put_list(out, &self.queues, |out, (queue, offset)| {
            out.put_u32_le(queue.get());
            out.put_u64_le(offset.get());
        });
        out.put_u64_le(self.id.get());
    }

    pub(super) fn read(reader: &mut FieldReader<'_>) -> Result<Self, MalformedField> {
        Ok(Self {
            consumer_group: ConsumerGroupId(reader.u32("consumer group")?),
            topic: TopicId(reader.u32("topic")?),
            queues: reader.list(12, "queues", |reader| {
                Ok((QueueId(reader.u32("queue")?), QueueOffset(reader.u64("offset")?)))
            })?,
            id: ResetId(reader.u64("reset id")?),
        })
    }
}
