//! The filters that live members of a consumer group have for one topic, while they differ.
//!
//! `SetFilters`: consumer group u32, topic u32, list of filters (text each). With fewer than two the
//! group is in agreement, and nothing is kept.
//!
//! A filter is text as the executor writes it; the state compares and keeps it, and understands none.

use bytes::{BufMut, BytesMut};

use super::wire::{FieldReader, MalformedField, put_list, put_text};
use crate::state::names::{ConsumerGroupId, TopicId};

/// What the members of a consumer group want of a topic is this, from the entry on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetFilters {
    pub consumer_group: ConsumerGroupId,
    pub topic: TopicId,
    /// Sorted, each once.
    pub filters: Vec<String>,
}

impl SetFilters {
    pub(super) fn put(&self, out: &mut BytesMut) {
        out.put_u32_le(self.consumer_group.get());
        out.put_u32_le(self.topic.get());
        put_filters(out, &self.filters);
    }

    pub(super) fn read(reader: &mut FieldReader<'_>) -> Result<Self, MalformedField> {
        Ok(Self {
            consumer_group: ConsumerGroupId(reader.u32("consumer group")?),
            topic: TopicId(reader.u32("topic")?),
            filters: read_filters(reader)?,
        })
    }
}

pub(crate) fn put_filters(out: &mut BytesMut, filters: &[String]) {
    put_list(out, filters, |out, filter| put_text(out, filter));
}

pub(crate) fn read_filters(reader: &mut FieldReader<'_>) -> Result<Vec<String>, MalformedField> {
    reader.list(2, "filters", |reader| reader.text("filter"))
}
