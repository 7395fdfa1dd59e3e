//! What the executor asks the state about offsets.

use ledgermq_common::clock::UnixMillis;
use ledgermq_common::{QueueId, QueueOffset, ResetMark};

use super::machine::BrokerState;
use super::names::{ConsumerGroupId, TopicId};

impl BrokerState {
    /// What the members of a consumer group want of a topic, while they do not agree.
    pub fn filters_of(&self, consumer_group: ConsumerGroupId, topic: TopicId) -> Vec<String> {
        self.applied_state().filters.get(&(consumer_group, topic)).cloned().unwrap_or_default()
    }

    /// The same of all consumer groups whose members do not agree.
    pub fn differing_filters(&self) -> Vec<((ConsumerGroupId, TopicId), Vec<String>)> {
        self.applied_state().filters.iter().map(|(key, filters)| (*key, filters.clone())).collect()
    }

    /// Where a group is in a queue: what it committed, else the first message it has not consumed.
    pub fn group_offset(
        &self,
        consumer_group: ConsumerGroupId,
        topic: TopicId,
        queue: QueueId,
    ) -> Option<QueueOffset> {
        self.applied_state().group_offset(consumer_group, topic, queue)
    }

    /// Where a group is in a queue, and which reset was the last. Both of one moment: an offset of before a
    /// reset with the mark of after it would let a commit skip what the reset brought back.
    pub fn offset_since_reset(
        &self,
        consumer_group: ConsumerGroupId,
        topic: TopicId,
        queue: QueueId,
    ) -> (Option<QueueOffset>, ResetMark) {
        let applied = self.applied_state();
        let last_reset = applied.offsets.last_reset(consumer_group, topic, queue.get());
        (applied.group_offset(consumer_group, topic, queue), last_reset)
    }

    /// The first message of a queue that was stored at `at` or later; the end where there is none.
    pub fn offset_at(&self, topic: TopicId, queue: QueueId, at: UnixMillis) -> Option<QueueOffset> {
        let range = self.applied_state().range(topic, queue.get())?;
        let (mut low, mut high) = (range.min, range.max);
        // Store times of a queue never go back: they are log time.
        while low < high {
            let middle = low + (high - low) / 2;
            // One that is not there expired meanwhile: it was older than what is.
            let is_before =
                self.locate(topic, queue, QueueOffset(middle)).is_none_or(|entry| entry.stored_at < at);
            if is_before { low = middle + 1 } else { high = middle }
        }
        Some(QueueOffset(low))
    }
}
