//! Offsets that a group commits, and the reset of a group's progress.
//!
//! A committed offset belongs to those who pull by offset; leases know nothing of it. A reset moves both.

use ledgermq_common::{QueueId, QueueOffset};

use super::apply::Effects;
use super::progress::Lease;
use super::{Applied, Subscription};
use crate::defects::{self, Defect};
use crate::state::answer::{Answer, Refusal};
use crate::state::command::{CommitOffset, ResetProgress};
use crate::state::names::{ConsumerGroupId, TopicId};
use crate::state::records::RecordKey;

impl Applied {
    pub(super) fn commit_offset(&mut self, command: CommitOffset) -> Result<Answer, Refusal> {
        let CommitOffset { consumer_group, topic, queue, offset } = command;
        if !self.consumer_groups.contains_key(&consumer_group) {
            return Err(Refusal::ConsumerGroupUnknown);
        }
        let range = self.topics.get(&topic).ok_or(Refusal::TopicUnknown)?.queues.get(queue.get() as usize);
        let range = range.ok_or(Refusal::QueueUnknown)?;
        if !(range.min..=range.max).contains(&offset.get()) {
            return Err(Refusal::OffsetOutOfRange);
        }
        if defects::is_active(Defect::CommitForgotten) {
            return Ok(Answer::OffsetsSet(1));
        }
        self.offsets.insert((consumer_group, topic, queue.get()), offset.get());
        self.dirty.insert(RecordKey::Offset(consumer_group, topic, queue.get()));
        Ok(Answer::OffsetsSet(1))
    }

    /// An offset outside its queue moves to the nearest end of it. Generations of a topic with order
    /// are to be drained again.
    pub(super) fn reset_progress(
        &mut self,
        command: &ResetProgress,
        effects: &mut Effects,
    ) -> Result<Answer, Refusal> {
        let (group, topic) = (command.consumer_group, command.topic);
        if !self.consumer_groups.contains_key(&group) {
            return Err(Refusal::ConsumerGroupUnknown);
        }
        let queues = &self.topics.get(&topic).ok_or(Refusal::TopicUnknown)?.queues;
        let subscription = self.subscriptions.entry((group, topic)).or_default();
        let mut reset = 0;
        for (queue, offset) in &command.queues {
            let queue = queue.get();
            let Some(range) = queues.get(queue as usize) else { continue };
            let next = offset.get().clamp(range.min, range.max);
            subscription.reset_queue(queue, next);
            self.dirty.insert(RecordKey::Progress(group, topic, queue));
            let leases_only = defects::is_active(Defect::ResetOfLeasesOnly);
            if let Some(committed) = self.offsets.get_mut(&(group, topic, queue)).filter(|_| !leases_only) {
                *committed = next;
                self.dirty.insert(RecordKey::Offset(group, topic, queue));
            }
            reset += 1;
        }
        self.forget_drained(group, topic);
        effects.released.insert((group, topic));
        Ok(Answer::OffsetsSet(reset))
    }

    pub(super) fn drop_offsets(&mut self, is_gone: impl Fn(ConsumerGroupId, TopicId) -> bool) {
        let gone: Vec<_> = self.offsets.keys().filter(|key| is_gone(key.0, key.1)).copied().collect();
        for key in gone {
            self.offsets.remove(&key);
            self.dirty.insert(RecordKey::Offset(key.0, key.1, key.2));
        }
    }
}

impl Subscription {
    /// Ends what is under delivery in the queue, and goes on at `next`.
    fn reset_queue(&mut self, queue: u32, next: u64) {
        let held: Vec<(u64, Lease)> =
            self.progress_mut(queue, next).leases.iter().map(|(&offset, &lease)| (offset, lease)).collect();
        for (offset, lease) in held {
            self.end_lease(QueueId(queue), QueueOffset(offset), lease);
        }
        let progress = self.progress_mut(queue, next);
        progress.next = next;
        progress.holes.clear();
    }
}
