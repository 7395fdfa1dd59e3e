//! `StoreBatch`: messages of one or more topics, all stored by this entry or none.
//!
//! | Offset | Bytes | Field |
//! |---|---|---|
//! | 12 | 4 | count of topics |
//! | 16 | 8 each | topic u32, and for a topic with order the generation u32 by which its messages were placed, else 0 |
//! | … | 4 | count of messages |
//! | … | … | that many message records, one after the other (see [`message`](super::message)) |
//!
//! Each record names its topic, which is one of those above; the messages stand in the order in which
//! their producer gave them.

use bytes::{BufMut, Bytes, BytesMut};
use ledgermq_common::clock::UnixMillis;

use super::append::AppendedMessage;
use super::message::{NewMessage, RECORD_HEADER_BYTES};
use super::wire::{FieldReader, put_count, put_list};
use super::{CommandError, HEADER_BYTES, Kind, put_header};
use crate::state::names::{Generation, TopicId};

const TOPIC_BYTES: usize = 8;

/// A topic of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchTopic {
    pub topic: TopicId,
    pub generation: Generation,
}

#[derive(Debug, Clone, PartialEq)]
pub struct StoreBatch {
    pub topics: Vec<BatchTopic>,
    pub messages: Vec<(TopicId, AppendedMessage)>,
}

/// Length of the command [`encode_batch`] makes.
pub fn encoded_batch_bytes(topics: usize, messages: &[(TopicId, NewMessage)]) -> usize {
    let records = messages.iter().map(|(_, message)| message.record_bytes()).sum::<usize>();
    HEADER_BYTES + 4 + topics * TOPIC_BYTES + 4 + records
}

/// Encodes the command that stores `messages`; each body is copied once.
pub fn encode_batch(
    stamped_at: UnixMillis,
    topics: &[BatchTopic],
    messages: &[(TopicId, NewMessage)],
) -> Bytes {
    let bytes = encoded_batch_bytes(topics.len(), messages);
    let mut out = BytesMut::with_capacity(bytes);
    put_header(&mut out, Kind::StoreBatch, stamped_at);
    put_list(&mut out, topics, put_topic);
    put_count(&mut out, messages.len());
    for (topic, message) in messages {
        message.put_record(&mut out, *topic);
    }
    assert_eq!(out.len(), bytes, "batch command length");
    out.freeze()
}

fn put_topic(out: &mut BytesMut, topic: &BatchTopic) {
    out.put_u32_le(topic.topic.get());
    out.put_u32_le(topic.generation.get());
}

impl StoreBatch {
    pub(super) fn put(&self, out: &mut BytesMut) {
        put_list(out, &self.topics, put_topic);
        put_count(out, self.messages.len());
        for (_, message) in &self.messages {
            assert_eq!(out.len(), message.record_at as usize, "record position");
            out.put_slice(&message.record);
        }
    }

    pub(super) fn read(reader: &mut FieldReader<'_>) -> Result<Self, CommandError> {
        let topics = reader.list(TOPIC_BYTES, "topics of a batch", |reader| {
            Ok(BatchTopic {
                topic: TopicId(reader.u32("topic")?),
                generation: Generation(reader.u32("generation")?),
            })
        })?;
        let count = reader.count(RECORD_HEADER_BYTES, "message count")?;
        let mut messages = Vec::with_capacity(count);
        for _ in 0..count {
            let is_listed = |of: TopicId| topics.iter().any(|listed| listed.topic == of);
            messages.push(AppendedMessage::read_of(reader, is_listed)?);
        }
        Ok(Self { topics, messages })
    }
}
