//! What the commands of retention do, and what pins the log.
//!
//! Everything that refers to bytes of the log does so through this state, in one of five ways:
//!
//! | Who refers | Where the oldest byte is found |
//! |---|---|
//! | a retained message that lies in the log as it lies in its queue | the entry at the queue's minimum |
//! | a retained message that became visible late (commit, fire), a retained dead letter's message | [`LateReferences`] |
//! | an undecided half, a pending timer | its identity, or where it was carried to |
//!
//! Invariants:
//! - No entry makes a reference to a byte that nothing referred to before, other than to its own. So
//!   an edge that was right for the state at one entry is right for every later one, and the leader
//!   may work it out beside apply.
//! - A queue's minimum only grows, and never by log time less than the topic's retention after the
//!   message became visible; unless the broker's limit on the size of the log asks for it.
//! - Carrying changes where bytes lie and nothing else: transaction id, recall handle, message id,
//!   times and order stay.

use std::collections::{BTreeMap, BTreeSet};

use ledgermq_common::clock::UnixMillis;
use ledgermq_common::{PhysicalOffset, QueueId, QueueOffset};

use super::Applied;
use super::apply::Effects;
use super::dead_letters::REDRIVE_CONSUMER_GROUP;
use super::lite::is_lite;
use super::progress::Lease;
use crate::state::answer::{Answer, Refusal};
use crate::state::command::{
    CarriedRecord, CarryRecords, ExpireMessages, ExpiryCause, Owed, ReleaseLog, SetTopicRetention,
    TopicRetention,
};
use crate::state::names::{ConsumerGroupId, MessageIdHash, TopicId};
use crate::state::records::RecordKey;
use crate::state::timers::TimerKey;

/// Late references are remembered by stretches of the log of this size. Part of what is persisted.
pub(crate) const STRETCH_BYTES: u64 = 256 << 10;
/// Marks of time kept; with one more, every second one goes and the rest stand twice as far apart.
pub(crate) const TIME_MARKS_MAX: usize = 4_096;
/// How far marks stand apart at first.
const TIME_MARK_BYTES_MIN: u64 = 64 << 10;

/// The start of the stretch an offset lies in.
pub(crate) fn stretch_of(at: PhysicalOffset) -> u64 {
    at.get() / STRETCH_BYTES
}

/// References from queues to bytes that are older than the entry that made them.
///
/// By queue, and within it by stretch of the log the bytes lie in: the last queue offset that refers
/// into it. The stretch is free once the queue's minimum is beyond that offset.
#[derive(Debug, Default)]
pub(crate) struct LateReferences(BTreeMap<(TopicId, u32), BTreeMap<u64, u64>>);

impl LateReferences {
    pub(crate) fn of_queue(&self, topic: TopicId, queue: u32) -> Option<&BTreeMap<u64, u64>> {
        self.0.get(&(topic, queue))
    }

    pub(crate) fn queues(&self) -> impl Iterator<Item = (TopicId, u32)> + '_ {
        self.0.keys().copied()
    }

    pub(crate) fn load(&mut self, topic: TopicId, queue: u32, stretches: BTreeMap<u64, u64>) {
        self.0.insert((topic, queue), stretches);
    }

    /// The oldest stretch anybody refers into late, and from which topic.
    pub(crate) fn oldest(&self) -> Option<(PhysicalOffset, TopicId)> {
        let firsts = self.0.iter().filter_map(|(key, stretches)| Some((*stretches.keys().next()?, key.0)));
        firsts.min().map(|(stretch, topic)| (PhysicalOffset(stretch * STRETCH_BYTES), topic))
    }

    fn add(&mut self, topic: TopicId, queue: u32, offset: u64, stretch: u64) {
        let last = self.0.entry((topic, queue)).or_default().entry(stretch).or_default();
        *last = (*last).max(offset);
    }

    /// True when something was let go.
    fn let_go_below(&mut self, topic: TopicId, queue: u32, min: u64) -> bool {
        let Some(stretches) = self.0.get_mut(&(topic, queue)) else { return false };
        let before = stretches.len();
        stretches.retain(|_, last| *last >= min);
        let changed = stretches.len() != before;
        if stretches.is_empty() {
            self.0.remove(&(topic, queue));
        }
        changed
    }

    fn drop_topic(&mut self, topic: TopicId) -> Vec<(TopicId, u32)> {
        let gone: Vec<_> = self.0.range((topic, 0)..=(topic, u32::MAX)).map(|(key, _)| *key).collect();
        for key in &gone {
            self.0.remove(key);
        }
        gone
    }
}

/// Where the log was at which log time, coarsely.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct TimeMarks {
    /// How far they stand apart, from the first append on.
    pub(crate) apart_bytes: u64,
    pub(crate) marks: Vec<(PhysicalOffset, UnixMillis)>,
}

impl TimeMarks {
    fn pass(&mut self, at: PhysicalOffset, now: UnixMillis) -> bool {
        let apart = self.apart_bytes.max(TIME_MARK_BYTES_MIN);
        if self.marks.last().is_some_and(|(last, _)| at.get().saturating_sub(last.get()) < apart) {
            return false;
        }
        self.marks.push((at, now));
        if self.marks.len() > TIME_MARKS_MAX {
            let mut number = 0;
            self.marks.retain(|_| {
                number += 1;
                number % 2 == 1
            });
            self.apart_bytes = apart * 2;
        }
        true
    }

    /// Keeps the newest mark at or below `at` and everything above.
    fn let_go_below(&mut self, at: PhysicalOffset) {
        let first_above = self.marks.partition_point(|(mark, _)| *mark <= at);
        self.marks.drain(..first_above.saturating_sub(1));
    }

    /// A log time at which the log was not yet at `at`: what became visible before it and was stored
    /// then lies below.
    pub(crate) fn time_before(&self, at: PhysicalOffset) -> Option<UnixMillis> {
        let below = self.marks.partition_point(|(mark, _)| *mark <= at);
        self.marks.get(below.checked_sub(1)?).map(|(_, time)| *time)
    }
}

/// What retention has done so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct RetentionProgress {
    /// Nothing below is referred to.
    pub(crate) released_below: PhysicalOffset,
    pub(crate) expired_messages: u64,
    pub(crate) carried_records: u64,
    pub(crate) carried_bytes: u64,
}

/// The part of the state that is about keeping the log.
#[derive(Debug, Default)]
pub(crate) struct Keeping {
    pub(crate) topics: BTreeMap<TopicId, u64>,
    pub(crate) late: LateReferences,
    /// Halves and timers that were carried: identity → where the record lies now.
    pub(crate) carried: BTreeMap<PhysicalOffset, PhysicalOffset>,
    /// Messages a group was never given, or had not acknowledged, when they went.
    pub(crate) expired_unread: BTreeMap<(ConsumerGroupId, TopicId), u64>,
    pub(crate) marks: TimeMarks,
    pub(crate) progress: RetentionProgress,
}

impl Keeping {
    /// Where the record of a half or a timer lies now.
    pub(crate) fn place_of(&self, identity: PhysicalOffset) -> PhysicalOffset {
        self.carried.get(&identity).copied().unwrap_or(identity)
    }
}

impl Applied {
    /// What a topic keeps, given the broker's default.
    pub(crate) fn retention_of(&self, topic: TopicId, default_ms: u64) -> TopicRetention {
        match self.keeping.topics.get(&topic) {
            Some(&retention_ms) => TopicRetention { is_own: true, retention_ms },
            None => TopicRetention { is_own: false, retention_ms: default_ms },
        }
    }

    pub(super) fn mark_time(&mut self, at: PhysicalOffset) {
        if self.keeping.marks.pass(at, self.scalars.now) {
            self.dirty.insert(RecordKey::TimeMarks);
        }
    }

    /// The queue refers to bytes at `physical` from `offset` on.
    pub(super) fn note_reference(
        &mut self,
        topic: TopicId,
        queue: QueueId,
        offset: u64,
        physical: PhysicalOffset,
    ) {
        let stretch = stretch_of(physical);
        if stretch < stretch_of(self.applying_at) {
            self.keeping.late.add(topic, queue.get(), offset, stretch);
            self.dirty.insert(RecordKey::LateReferences(topic, queue.get()));
        }
    }

    /// The half or timer is owed no more; where its record lies.
    pub(super) fn take_place(&mut self, identity: PhysicalOffset) -> PhysicalOffset {
        match self.keeping.carried.remove(&identity) {
            Some(place) => {
                self.dirty.insert(RecordKey::Carried(identity));
                place
            }
            None => identity,
        }
    }

    pub(super) fn set_topic_retention(&mut self, command: SetTopicRetention) -> Result<Answer, Refusal> {
        if !self.topics.contains_key(&command.topic) {
            return Err(Refusal::TopicUnknown);
        }
        match command.retention_ms {
            Some(retention_ms) => self.keeping.topics.insert(command.topic, retention_ms),
            None => self.keeping.topics.remove(&command.topic),
        };
        self.dirty.insert(RecordKey::TopicRetention(command.topic));
        Ok(Answer::RetentionSet)
    }

    pub(super) fn expire(
        &mut self,
        command: &ExpireMessages,
        effects: &mut Effects,
    ) -> Result<Answer, Refusal> {
        let ExpireMessages { topic, stored_before, cause, retention, .. } = *command;
        if !self.topics.contains_key(&topic) {
            return Err(Refusal::TopicUnknown);
        }
        let own = self.keeping.topics.get(&topic).copied();
        let is_as_planned = match own {
            Some(retention_ms) => retention.is_own && retention.retention_ms == retention_ms,
            None => !retention.is_own,
        };
        let is_over = retention.retention_ms > 0
            && stored_before.saturating_add_ms(retention.retention_ms) <= self.scalars.now;
        if !is_as_planned || (cause == ExpiryCause::Time && !is_over) {
            return Ok(Answer::Expired { messages: 0, unread: 0 });
        }
        let subscribed = self.subscriptions.keys().filter(|key| key.1 == topic).map(|key| key.0);
        let committed = self.offsets.committed.keys().filter(|key| key.1 == topic).map(|key| key.0);
        let readers: BTreeSet<ConsumerGroupId> = subscribed.chain(committed).collect();
        let (mut messages, mut unread) = (0, 0);
        for &(queue, min) in &command.queues {
            let (gone, unread_here) = self.expire_queue(topic, queue.get(), min, &readers, effects);
            messages += gone;
            unread += unread_here;
        }
        self.keeping.progress.expired_messages += messages;
        self.dirty.insert(RecordKey::RetentionProgress);
        Ok(Answer::Expired { messages, unread })
    }

    /// How many messages went, and how many of them some group had still to read.
    fn expire_queue(
        &mut self,
        topic: TopicId,
        queue: u32,
        min: u64,
        readers: &BTreeSet<ConsumerGroupId>,
        effects: &mut Effects,
    ) -> (u64, u64) {
        let range = match is_lite(queue) {
            true => self.lite.topics.get_mut(&(topic, queue)).map(|lite| &mut lite.range),
            false => self.topics.get_mut(&topic).and_then(|topic| topic.queues.get_mut(queue as usize)),
        };
        let Some(range) = range else { return (0, 0) };
        let min = min.min(range.max);
        if min <= range.min {
            return (0, 0);
        }
        let gone = min - range.min;
        range.min = min;
        self.dirty.insert(match is_lite(queue) {
            true => RecordKey::LiteTopic(topic, queue),
            false => RecordKey::queues_of(topic, queue),
        });
        if self.keeping.late.let_go_below(topic, queue, min) {
            self.dirty.insert(RecordKey::LateReferences(topic, queue));
        }
        let mut unread: BTreeMap<ConsumerGroupId, u64> = BTreeMap::new();
        for &group in readers {
            let Some(subscription) = self.subscriptions.get_mut(&(group, topic)) else { continue };
            let Some(progress) = subscription.queues.get(&queue) else { continue };
            let held: Vec<(u64, Lease)> =
                progress.leases.range(..min).map(|(&offset, &lease)| (offset, lease)).collect();
            let unseen: u64 = progress
                .unseen(min)
                .take_while(|(start, _)| *start < min)
                .map(|(start, end)| end.min(min) - start)
                .sum();
            if unseen == 0 && held.is_empty() && progress.next >= min {
                continue;
            }
            let count = unseen + held.len() as u64;
            if count > 0 {
                unread.insert(group, count);
                effects.released.insert((group, topic));
            }
            for (offset, lease) in held {
                subscription.end_lease(QueueId(queue), QueueOffset(offset), lease);
            }
            subscription.progress_mut(queue, min).see(0, min);
            self.dirty.insert(RecordKey::Progress(group, topic, queue));
        }
        for &group in readers {
            let Some(committed) = self.offsets.committed.get_mut(&(group, topic, queue)) else { continue };
            if *committed < min {
                unread.entry(group).or_insert(min - *committed);
                *committed = min;
                self.dirty.insert(RecordKey::Offset(group, topic, queue));
            }
        }
        // Not consumers: it says which letters were given back.
        if let Some(redriver) = self.consumer_group_names.get(REDRIVE_CONSUMER_GROUP) {
            unread.remove(redriver);
        }
        for (&group, &count) in &unread {
            *self.keeping.expired_unread.entry((group, topic)).or_default() += count;
            self.dirty.insert(RecordKey::ExpiredUnread(group, topic));
        }
        (gone, unread.values().sum())
    }

    pub(super) fn carry(&mut self, command: &CarryRecords, payload_at: PhysicalOffset) -> Answer {
        let mut carried = 0;
        for record in &command.records {
            if self.carry_one(record, payload_at) {
                carried += 1;
            }
        }
        Answer::Carried(carried)
    }

    fn carry_one(&mut self, record: &CarriedRecord, payload_at: PhysicalOffset) -> bool {
        let CarriedRecord { owed, topic, message } = record;
        let record_bytes = u32::try_from(message.record.len()).expect("a command is bounded far below 4 GiB");
        // It may have been decided, fired or recalled since the leader looked.
        let (identity, is_owed) = match *owed {
            Owed::Half(id) => (
                id,
                self.transactions.undecided().get(&id).is_some_and(|open| {
                    (open.topic, open.record_bytes, open.message)
                        == (*topic, record_bytes, MessageIdHash::of(&message.id))
                }),
            ),
            Owed::Timer(deliver_at, physical) => {
                let timer = self.timers.find(TimerKey { deliver_at, physical });
                let is_it =
                    timer.is_some_and(|timer| (timer.topic, timer.record_bytes) == (*topic, record_bytes));
                (physical, is_it)
            }
        };
        if !is_owed {
            return false;
        }
        let place = payload_at
            .checked_add(u64::from(message.record_at))
            .expect("an entry lies inside the CommitLog's range of offsets");
        self.keeping.carried.insert(identity, place);
        self.dirty.insert(RecordKey::Carried(identity));
        self.keys.add(*topic, &message.id, message.properties(), place, record_bytes);
        self.keeping.progress.carried_records += 1;
        self.keeping.progress.carried_bytes += u64::from(record_bytes);
        self.dirty.insert(RecordKey::RetentionProgress);
        true
    }

    pub(super) fn release_log(&mut self, command: ReleaseLog) -> Answer {
        let progress = &mut self.keeping.progress;
        // Beyond itself an entry cannot know.
        let below = command.below.min(self.applying_at);
        if below > progress.released_below {
            progress.released_below = below;
            self.keeping.marks.let_go_below(below);
            self.dirty.insert(RecordKey::RetentionProgress);
            self.dirty.insert(RecordKey::TimeMarks);
        }
        Answer::LogReleased { below: self.keeping.progress.released_below }
    }

    /// A deleted topic refers to nothing.
    pub(super) fn drop_keeping_of_topic(&mut self, topic: TopicId) {
        if self.keeping.topics.remove(&topic).is_some() {
            self.dirty.insert(RecordKey::TopicRetention(topic));
        }
        for (topic, queue) in self.keeping.late.drop_topic(topic) {
            self.dirty.insert(RecordKey::LateReferences(topic, queue));
        }
    }

    pub(super) fn drop_expired_unread(&mut self, is_gone: impl Fn(ConsumerGroupId, TopicId) -> bool) {
        let gone = self.keeping.expired_unread.extract_if(.., |key, _| is_gone(key.0, key.1));
        self.dirty.extend(gone.map(|(key, _)| RecordKey::ExpiredUnread(key.0, key.1)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_of_time_stay_few_and_name_a_time_when_the_log_was_not_yet_there() {
        let mut marks = TimeMarks::default();
        for number in 0..100_000u64 {
            marks.pass(PhysicalOffset(number * 50_000), UnixMillis(number));
        }
        assert!(marks.marks.len() <= TIME_MARKS_MAX);
        for at in [1, 70_000, 1 << 20, 4_000_000_000] {
            let before = marks.time_before(PhysicalOffset(at)).expect("a mark");
            assert!(before.get() <= at / 50_000, "at {at}");
            assert!(at / 50_000 - before.get() <= 2 * marks.apart_bytes / 50_000, "at {at}");
        }
        marks.let_go_below(PhysicalOffset(1 << 30));
        assert!(marks.time_before(PhysicalOffset(1 << 30)).is_some());
        assert!(marks.marks[1].0 > PhysicalOffset(1 << 30));
    }
}
