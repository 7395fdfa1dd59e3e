//! Commands by which a topic with order grows, and the one that stores messages by a generation of it.
//!
//! | Kind | Body |
//! |---|---|
//! | `PrepareGeneration` | topic u32, new generation u32, queues in this broker group u32, the layout before, the new layout |
//! | `CloseGeneration` | topic u32, the generation that ends u32 |
//! | `OpenGeneration` | topic u32, the generation that begins u32 |
//! | `DrainGeneration` | consumer group u32, topic u32, generation u32, resets u32 |
//! | `AppendInOrder` | generation u32, then as `AppendMessages` |
//!
//! A layout is a list of (broker group text, queues u32), by name.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use ledgermq_common::clock::UnixMillis;
use ledgermq_common::{GroupName, QueueLayout};

use super::append::{AppendMessages, encoded_append_bytes};
use super::message::NewMessage;
use super::wire::{FieldReader, MalformedField, put_count, put_list, put_text};
use super::{CommandError, Kind, put_header};
use crate::state::names::{ConsumerGroupId, Generation, TopicId};

/// Gives the broker group the queues of the next generation; nothing is placed by it yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrepareGeneration {
    pub topic: TopicId,
    pub generation: Generation,
    /// In this broker group, as the layout says too.
    pub queues: u32,
    /// By what sends are placed until the next generation opens.
    pub former: Arc<QueueLayout>,
    pub layout: Arc<QueueLayout>,
}

/// Ends a generation: nothing more is stored by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CloseGeneration {
    pub topic: TopicId,
    pub generation: Generation,
}

/// Begins the generation that was prepared. Its predecessor is closed in every broker group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenGeneration {
    pub topic: TopicId,
    pub generation: Generation,
}

/// A consumer group has consumed everything up to the end of a generation, in all broker groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DrainGeneration {
    pub consumer_group: ConsumerGroupId,
    pub topic: TopicId,
    pub generation: Generation,
    /// How often the consumer group was reset in the topic before the broker groups were asked.
    pub resets: u32,
}

/// Stores messages that were placed by a generation.
#[derive(Debug, Clone, PartialEq)]
pub struct AppendInOrder {
    pub generation: Generation,
    pub append: AppendMessages,
}

const GENERATION_BYTES: usize = 4;

/// Length of the command [`encode_append_in_order`] makes.
pub fn encoded_append_in_order_bytes(messages: &[NewMessage]) -> usize {
    encoded_append_bytes(messages) + GENERATION_BYTES
}

/// Encodes the command that stores `messages`; each body is copied once.
pub fn encode_append_in_order(
    stamped_at: UnixMillis,
    topic: TopicId,
    generation: Generation,
    messages: &[NewMessage],
) -> Bytes {
    let bytes = encoded_append_in_order_bytes(messages);
    let mut out = BytesMut::with_capacity(bytes);
    put_header(&mut out, Kind::AppendInOrder, stamped_at);
    out.put_u32_le(generation.get());
    out.put_u32_le(topic.get());
    put_count(&mut out, messages.len());
    for message in messages {
        message.put_record(&mut out, topic);
    }
    assert_eq!(out.len(), bytes, "append command length");
    out.freeze()
}

pub(crate) fn put_layout(out: &mut BytesMut, layout: &QueueLayout) {
    put_list(out, layout.groups(), |out, (group, queues)| {
        put_text(out, group.as_str());
        out.put_u32_le(*queues);
    });
}

pub(crate) fn read_layout(reader: &mut FieldReader<'_>) -> Result<Arc<QueueLayout>, MalformedField> {
    let groups = reader.list(6, "layout", |reader| {
        let name = reader.text("broker group")?;
        let group = GroupName::parse(&name).map_err(|_| reader.malformed("broker group"))?;
        Ok((group, reader.u32("queues")?))
    })?;
    QueueLayout::new(groups).map(Arc::new).map_err(|_| reader.malformed("layout"))
}

impl PrepareGeneration {
    pub(super) fn put(&self, out: &mut BytesMut) {
        out.put_u32_le(self.topic.get());
        out.put_u32_le(self.generation.get());
        out.put_u32_le(self.queues);
        put_layout(out, &self.former);
        put_layout(out, &self.layout);
    }

    pub(super) fn read(reader: &mut FieldReader<'_>) -> Result<Self, MalformedField> {
        Ok(Self {
            topic: TopicId(reader.u32("topic")?),
            generation: Generation(reader.u32("generation")?),
            queues: reader.u32("queues")?,
            former: read_layout(reader)?,
            layout: read_layout(reader)?,
        })
    }
}

macro_rules! topic_and_generation {
    ($($command:ident),*) => {$(
        impl $command {
            pub(super) fn put(&self, out: &mut BytesMut) {
                out.put_u32_le(self.topic.get());
                out.put_u32_le(self.generation.get());
            }

            pub(super) fn read(reader: &mut FieldReader<'_>) -> Result<Self, MalformedField> {
                Ok(Self {
                    topic: TopicId(reader.u32("topic")?),
                    generation: Generation(reader.u32("generation")?),
                })
            }
        }
    )*};
}

topic_and_generation!(CloseGeneration, OpenGeneration);

impl DrainGeneration {
    pub(super) fn put(&self, out: &mut BytesMut) {
        out.put_u32_le(self.consumer_group.get());
        out.put_u32_le(self.topic.get());
        out.put_u32_le(self.generation.get());
        out.put_u32_le(self.resets);
    }

    pub(super) fn read(reader: &mut FieldReader<'_>) -> Result<Self, MalformedField> {
        Ok(Self {
            consumer_group: ConsumerGroupId(reader.u32("consumer group")?),
            topic: TopicId(reader.u32("topic")?),
            generation: Generation(reader.u32("generation")?),
            resets: reader.u32("resets")?,
        })
    }
}

impl AppendInOrder {
    pub(super) fn put(&self, out: &mut BytesMut) {
        out.put_u32_le(self.generation.get());
        self.append.put(out);
    }

    pub(super) fn read(reader: &mut FieldReader<'_>) -> Result<Self, CommandError> {
        let generation = Generation(reader.u32("generation")?);
        Ok(Self { generation, append: AppendMessages::read(reader)? })
    }
}
