//! `LeaseInOrder`: the lease command of consumer groups that consume in order.
//!
//! | Bytes | Field |
//! |---|---|
//! | 4 | consumer group |
//! | 4 | topic |
//! | 8 | client |
//! | 8 | invisible duration, ms |
//! | 1 | auto-renew |
//! | 2 + n | attempt id of the request, empty without one |
//! | … | list of parts: queue u32, then a list of messages and a list of offsets to pass over |
//!
//! Message: offset u64, order key u64, delivered before u8. Messages stand in the order of their
//! offsets. The order key comes from the message's group, which only the leader reads: apply knows
//! the keys of what is leased and keeps the promise with them.

use bytes::{BufMut, BytesMut};
use ledgermq_common::{QueueId, QueueOffset};

use super::wire::{FieldReader, MalformedField, put_list, put_text};
use crate::state::names::{ClientHash, ConsumerGroupId, OrderKey, TopicId};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseInOrder {
    pub consumer_group: ConsumerGroupId,
    pub topic: TopicId,
    pub client: ClientHash,
    pub invisible_ms: u64,
    pub auto_renew: bool,
    pub attempt_id: String,
    pub parts: Vec<OrderedPart>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrderedPart {
    pub queue: QueueId,
    pub messages: Vec<OrderedMessage>,
    /// What does not match the group's filter: consumed.
    pub pass_over: Vec<QueueOffset>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OrderedMessage {
    pub offset: QueueOffset,
    pub order: OrderKey,
    /// Its lease ended; otherwise it was never delivered.
    pub again: bool,
}

impl LeaseInOrder {
    pub(super) fn put(&self, out: &mut BytesMut) {
        out.put_u32_le(self.consumer_group.get());
        out.put_u32_le(self.topic.get());
        out.put_u64_le(self.client.get());
        out.put_u64_le(self.invisible_ms);
        out.put_u8(u8::from(self.auto_renew));
        put_text(out, &self.attempt_id);
        put_list(out, &self.parts, |out, part| {
            out.put_u32_le(part.queue.get());
            put_list(out, &part.messages, |out, message| {
                out.put_u64_le(message.offset.get());
                out.put_u64_le(message.order.get());
                out.put_u8(u8::from(message.again));
            });
            put_list(out, &part.pass_over, |out, offset| out.put_u64_le(offset.get()));
        });
    }

    pub(super) fn read(reader: &mut FieldReader<'_>) -> Result<Self, MalformedField> {
        Ok(Self {
            consumer_group: ConsumerGroupId(reader.u32("consumer group")?),
            topic: TopicId(reader.u32("topic")?),
            client: ClientHash(reader.u64("client")?),
            invisible_ms: reader.u64("invisible duration")?,
            auto_renew: reader.bool("auto-renew")?,
            attempt_id: reader.text("attempt id")?,
            parts: reader.list(12, "parts", |reader| {
                Ok(OrderedPart {
                    queue: QueueId(reader.u32("queue")?),
                    messages: reader.list(17, "messages", |reader| {
                        Ok(OrderedMessage {
                            offset: QueueOffset(reader.u64("offset")?),
                            order: OrderKey(reader.u64("order key")?),
                            again: reader.bool("delivered before")?,
                        })
                    })?,
                    pass_over: reader.list(8, "offsets", |reader| reader.u64("offset").map(QueueOffset))?,
                })
            })?,
        })
    }
}
