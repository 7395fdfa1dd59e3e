//! Offsets that a group commits, and the reset of a group's progress.
//!
//! A committed offset belongs to those who pull by offset; leases know nothing of it. A reset moves both.
//!
//! | What may arrive late | What it meets |
//! |---|---|
//! | a commit, behind a later one | a committed offset goes ahead or nowhere: [`CommitOutcome::Behind`] |
//! | a commit, behind a reset | its client knows of another reset: [`CommitOutcome::OfOtherReset`]. One that says nothing of resets is held to the line above only |
//! | a reset, behind its own repeat and what was committed since | its id is known: nothing moves |

use std::collections::{BTreeMap, VecDeque};

use ledgermq_common::{QueueId, QueueOffset, ResetMark};

use super::apply::Effects;
use super::progress::Lease;
use super::{Applied, Subscription};
use crate::defects::{self, Defect};
use crate::state::answer::{Answer, CommitOutcome, Refusal};
use crate::state::command::{CommitOffset, ResetProgress};
use crate::state::names::{ConsumerGroupId, ResetId, TopicId};
use crate::state::records::RecordKey;

/// Resets of a group in a topic whose repeats are known. A repeat comes within the deadline of the
/// client's request, and an operator does not reset a group this often meanwhile.
const RESETS_REMEMBERED: usize = 16;

#[derive(Debug, Default)]
pub(crate) struct GroupOffsets {
    /// By consumer group, topic and queue: what those who pull by offset committed.
    pub(crate) committed: BTreeMap<(ConsumerGroupId, TopicId, u32), u64>,
    pub(crate) resets: BTreeMap<(ConsumerGroupId, TopicId), Resets>,
}

/// The resets of a group in a topic.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Resets {
    /// By queue.
    pub(crate) last: BTreeMap<u32, ResetMark>,
    /// The ids of the last [`RESETS_REMEMBERED`], oldest first.
    pub(crate) recent: VecDeque<ResetId>,
}

impl GroupOffsets {
    pub(crate) fn last_reset(&self, group: ConsumerGroupId, topic: TopicId, queue: u32) -> ResetMark {
        let resets = self.resets.get(&(group, topic));
        resets.and_then(|resets| resets.last.get(&queue)).copied().unwrap_or_default()
    }
}

impl Resets {
    /// Whether this is the first time that the reset is applied.
    fn is_new(&mut self, id: ResetId) -> bool {
        if id == ResetId::default() {
            return true;
        }
        if self.recent.contains(&id) {
            return defects::is_active(Defect::ResetTwice);
        }
        if self.recent.len() >= RESETS_REMEMBERED {
            self.recent.pop_front();
        }
        self.recent.push_back(id);
        true
    }
}

impl Applied {
    /// Where a group is in a queue: what it committed, else the first message it has not consumed.
    pub(crate) fn group_offset(
        &self,
        consumer_group: ConsumerGroupId,
        topic: TopicId,
        queue: QueueId,
    ) -> Option<QueueOffset> {
        if let Some(&committed) = self.offsets.committed.get(&(consumer_group, topic, queue.get())) {
            return Some(QueueOffset(committed));
        }
        let progress = self.subscriptions.get(&(consumer_group, topic))?.queues.get(&queue.get())?;
        let first_hole = progress.holes.keys().next().copied().unwrap_or(progress.next);
        let first_lease = progress.leases.keys().next().copied().unwrap_or(progress.next);
        Some(QueueOffset(progress.next.min(first_hole).min(first_lease)))
    }

    pub(super) fn commit_offset(&mut self, command: CommitOffset) -> Result<Answer, Refusal> {
        let CommitOffset { consumer_group, topic, queue, offset, known } = command;
        if !self.consumer_groups.contains_key(&consumer_group) {
            return Err(Refusal::ConsumerGroupUnknown);
        }
        let range = self.topics.get(&topic).ok_or(Refusal::TopicUnknown)?.queues.get(queue.get() as usize);
        let range = range.ok_or(Refusal::QueueUnknown)?;
        let last = self.offsets.last_reset(consumer_group, topic, queue.get());
        if known.is_some_and(|known| known != last) && !defects::is_active(Defect::CommitOfOtherReset) {
            return Ok(Answer::OffsetCommitted(CommitOutcome::OfOtherReset { last }));
        }
        if !(range.min..=range.max).contains(&offset.get()) {
            return Err(Refusal::OffsetOutOfRange);
        }
        let key = (consumer_group, topic, queue.get());
        let at = self.group_offset(consumer_group, topic, queue);
        if let Some(committed) = at.filter(|at| *at > offset)
            && !defects::is_active(Defect::LateCommitTaken)
        {
            return Ok(Answer::OffsetCommitted(CommitOutcome::Behind { committed }));
        }
        if self.offsets.committed.get(&key) != Some(&offset.get())
            && !defects::is_active(Defect::CommitForgotten)
        {
            self.offsets.committed.insert(key, offset.get());
            self.dirty.insert(RecordKey::Offset(consumer_group, topic, queue.get()));
        }
        Ok(Answer::OffsetCommitted(CommitOutcome::Committed))
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
        let known = |(queue, offset): &(QueueId, QueueOffset)| {
            let range = queues.get(queue.get() as usize)?;
            Some((queue.get(), offset.get().clamp(range.min, range.max)))
        };
        let moves: Vec<(u32, u64)> = command.queues.iter().filter_map(known).collect();
        let answer = Answer::OffsetsSet(u32::try_from(moves.len()).unwrap_or(u32::MAX));
        if !moves.is_empty() {
            let resets = self.offsets.resets.entry((group, topic)).or_default();
            if !resets.is_new(command.id) {
                return Ok(answer);
            }
            let mark = ResetMark(self.applying_index.get());
            resets.last.extend(moves.iter().map(|(queue, _)| (*queue, mark)));
            self.dirty.insert(RecordKey::Resets(group, topic));
        }
        let subscription = self.subscriptions.entry((group, topic)).or_default();
        for (queue, next) in moves {
            subscription.reset_queue(queue, next);
            self.dirty.insert(RecordKey::Progress(group, topic, queue));
            let leases_only = defects::is_active(Defect::ResetOfLeasesOnly);
            let committed = self.offsets.committed.get_mut(&(group, topic, queue));
            if let Some(committed) = committed.filter(|_| !leases_only) {
                *committed = next;
                self.dirty.insert(RecordKey::Offset(group, topic, queue));
            }
        }
        self.forget_drained(group, topic);
        effects.released.insert((group, topic));
        Ok(answer)
    }

    pub(super) fn drop_offsets(&mut self, is_gone: impl Fn(ConsumerGroupId, TopicId) -> bool) {
        let dirty = &mut self.dirty;
        self.offsets.committed.retain(|&(group, topic, queue), _| {
            let is_gone = is_gone(group, topic);
            if is_gone {
                dirty.insert(RecordKey::Offset(group, topic, queue));
            }
            !is_gone
        });
        self.offsets.resets.retain(|&(group, topic), _| {
            let is_gone = is_gone(group, topic);
            if is_gone {
                dirty.insert(RecordKey::Resets(group, topic));
            }
            !is_gone
        });
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
