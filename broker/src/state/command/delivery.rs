//! Commands of the delivery of messages: leases and what ends or moves them.
//!
//! `LeaseMessages`
//!
//! | Bytes | Field |
//! |---|---|
//! | 4 | consumer group |
//! | 4 | topic |
//! | 8 | client |
//! | 8 | invisible duration, ms |
//! | 1 | auto-renew |
//! | 2 + n | attempt id of the request, empty without one |
//! | … | list of parts: queue u32, from u64, to u64, then lists of u64 offsets: take, redeliver, finish |
//!
//! `AckMessages`: consumer group u32, topic u32, list of (queue u32, offset u64, epoch u64).
//! `ChangeInvisible`: consumer group u32, topic u32, queue u32, offset u64, epoch u64, invisible ms u64.
//! `ExtendLeases`: list of (consumer group u32, topic u32, queue u32, offset u64, epoch u64,
//! invisible ms u64, keep renewing u8).
//! `ReleaseClient`: consumer group u32, client u64.

use bytes::{BufMut, BytesMut};
use ledgermq_common::{QueueId, QueueOffset};

use super::wire::{FieldReader, MalformedField, put_list, put_text};
use crate::state::names::{ClientHash, ConsumerGroupId, DeliveryEpoch, TopicId};

/// Gives messages to a client for `invisible_ms` from the log time of the entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseMessages {
    pub consumer_group: ConsumerGroupId,
    pub topic: TopicId,
    pub client: ClientHash,
    pub invisible_ms: u64,
    pub auto_renew: bool,
    /// The client's name for the request; ordered groups will need it to repeat a lost answer.
    pub attempt_id: String,
    pub parts: Vec<LeasePart>,
}

/// What the leader examined of one queue, and what it took.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeasePart {
    pub queue: QueueId,
    /// The examined range of messages the group has not seen: `from..to`. What lies inside and is
    /// not in `take` does not match the group's filter and counts as consumed.
    pub from: QueueOffset,
    pub to: QueueOffset,
    pub take: Vec<QueueOffset>,
    /// Messages delivered before whose lease ended.
    pub redeliver: Vec<QueueOffset>,
    /// Messages delivered before whose lease ended and which no longer match: consumed.
    pub finish: Vec<QueueOffset>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AckMessages {
    pub consumer_group: ConsumerGroupId,
    pub topic: TopicId,
    pub entries: Vec<AckEntry>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AckEntry {
    pub queue: QueueId,
    pub offset: QueueOffset,
    pub epoch: DeliveryEpoch,
}

/// Moves the end of one lease to `invisible_ms` from the log time of the entry; ends auto-renewal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChangeInvisible {
    pub consumer_group: ConsumerGroupId,
    pub topic: TopicId,
    pub queue: QueueId,
    pub offset: QueueOffset,
    pub epoch: DeliveryEpoch,
    pub invisible_ms: u64,
}

/// Renewals by the leader on behalf of living clients, of any consumer groups and topics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtendLeases {
    pub extensions: Vec<LeaseExtension>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseExtension {
    pub consumer_group: ConsumerGroupId,
    pub topic: TopicId,
    pub queue: QueueId,
    pub offset: QueueOffset,
    pub epoch: DeliveryEpoch,
    /// From the log time of the entry. A lease is never made shorter by an extension.
    pub invisible_ms: u64,
    pub keep_renewing: bool,
}

/// A client of a consumer group ended: what it holds becomes visible soon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReleaseClient {
    pub consumer_group: ConsumerGroupId,
    pub client: ClientHash,
}

impl LeaseMessages {
    pub(super) fn put(&self, out: &mut BytesMut) {
        out.put_u32_le(self.consumer_group.get());
        out.put_u32_le(self.topic.get());
        out.put_u64_le(self.client.get());
        out.put_u64_le(self.invisible_ms);
        out.put_u8(u8::from(self.auto_renew));
        put_text(out, &self.attempt_id);
        put_list(out, &self.parts, |out, part| part.put(out));
    }

    pub(super) fn read(reader: &mut FieldReader<'_>) -> Result<Self, MalformedField> {
        Ok(Self {
            consumer_group: ConsumerGroupId(reader.u32("consumer group")?),
            topic: TopicId(reader.u32("topic")?),
            client: ClientHash(reader.u64("client")?),
            invisible_ms: reader.u64("invisible duration")?,
            auto_renew: reader.bool("auto-renew")?,
            attempt_id: reader.text("attempt id")?,
            parts: reader.list(LeasePart::BYTES_MIN, "parts", LeasePart::read)?,
        })
    }
}

impl LeasePart {
    const BYTES_MIN: usize = 4 + 8 + 8 + 3 * 4;

    fn put(&self, out: &mut BytesMut) {
        out.put_u32_le(self.queue.get());
        out.put_u64_le(self.from.get());
        out.put_u64_le(self.to.get());
        for offsets in [&self.take, &self.redeliver, &self.finish] {
            put_list(out, offsets, |out, offset| out.put_u64_le(offset.get()));
        }
    }

    fn read(reader: &mut FieldReader<'_>) -> Result<Self, MalformedField> {
        let offsets = |reader: &mut FieldReader<'_>, field| {
            reader.list(8, field, |reader| reader.u64(field).map(QueueOffset))
        };
        Ok(Self {
            queue: QueueId(reader.u32("queue")?),
            from: QueueOffset(reader.u64("from")?),
            to: QueueOffset(reader.u64("to")?),
            take: offsets(reader, "taken offsets")?,
            redeliver: offsets(reader, "redelivered offsets")?,
            finish: offsets(reader, "finished offsets")?,
        })
    }
}

impl AckMessages {
    pub(super) fn put(&self, out: &mut BytesMut) {
        out.put_u32_le(self.consumer_group.get());
        out.put_u32_le(self.topic.get());
        put_list(out, &self.entries, |out, entry| {
            out.put_u32_le(entry.queue.get());
            out.put_u64_le(entry.offset.get());
            out.put_u64_le(entry.epoch.get());
        });
    }

    pub(super) fn read(reader: &mut FieldReader<'_>) -> Result<Self, MalformedField> {
        Ok(Self {
            consumer_group: ConsumerGroupId(reader.u32("consumer group")?),
            topic: TopicId(reader.u32("topic")?),
            entries: reader.list(20, "ack entries", |reader| {
                Ok(AckEntry {
                    queue: QueueId(reader.u32("queue")?),
                    offset: QueueOffset(reader.u64("offset")?),
                    epoch: DeliveryEpoch(reader.u64("epoch")?),
                })
            })?,
        })
    }
}

impl ChangeInvisible {
    pub(super) fn put(&self, out: &mut BytesMut) {
        out.put_u32_le(self.consumer_group.get());
        out.put_u32_le(self.topic.get());
        out.put_u32_le(self.queue.get());
        out.put_u64_le(self.offset.get());
        out.put_u64_le(self.epoch.get());
        out.put_u64_le(self.invisible_ms);
    }

    pub(super) fn read(reader: &mut FieldReader<'_>) -> Result<Self, MalformedField> {
        Ok(Self {
            consumer_group: ConsumerGroupId(reader.u32("consumer group")?),
            topic: TopicId(reader.u32("topic")?),
            queue: QueueId(reader.u32("queue")?),
            offset: QueueOffset(reader.u64("offset")?),
            epoch: DeliveryEpoch(reader.u64("epoch")?),
            invisible_ms: reader.u64("invisible duration")?,
        })
    }
}

impl ExtendLeases {
    pub(super) fn put(&self, out: &mut BytesMut) {
        put_list(out, &self.extensions, |out, extension| {
            out.put_u32_le(extension.consumer_group.get());
            out.put_u32_le(extension.topic.get());
            out.put_u32_le(extension.queue.get());
            out.put_u64_le(extension.offset.get());
            out.put_u64_le(extension.epoch.get());
            out.put_u64_le(extension.invisible_ms);
            out.put_u8(u8::from(extension.keep_renewing));
        });
    }

    pub(super) fn read(reader: &mut FieldReader<'_>) -> Result<Self, MalformedField> {
        let extensions = reader.list(37, "extensions", |reader| {
            Ok(LeaseExtension {
                consumer_group: ConsumerGroupId(reader.u32("consumer group")?),
                topic: TopicId(reader.u32("topic")?),
                queue: QueueId(reader.u32("queue")?),
                offset: QueueOffset(reader.u64("offset")?),
                epoch: DeliveryEpoch(reader.u64("epoch")?),
                invisible_ms: reader.u64("invisible duration")?,
                keep_renewing: reader.bool("keep renewing")?,
            })
        })?;
        Ok(Self { extensions })
    }
}

impl ReleaseClient {
    pub(super) fn put(&self, out: &mut BytesMut) {
        out.put_u32_le(self.consumer_group.get());
        out.put_u64_le(self.client.get());
    }

    pub(super) fn read(reader: &mut FieldReader<'_>) -> Result<Self, MalformedField> {
        Ok(Self {
            consumer_group: ConsumerGroupId(reader.u32("consumer group")?),
            client: ClientHash(reader.u64("client")?),
        })
    }
}
