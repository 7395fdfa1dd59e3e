//! The applied state: what the entries applied so far amount to. One struct behind one lock;
//! [`apply`] changes it, everything else reads it.
//!
//! Invariants:
//! - A function of the log: the clock is the greatest stamp seen, numbers are given out in log order,
//!   and wherever an order matters the maps are ordered.
//! - Every change marks the records it touches as dirty, so that a checkpoint writes them.

pub(crate) mod apply;
mod batch;
pub(crate) mod dead_letters;
mod filters;
pub(crate) mod generations;
pub(crate) mod leases;
pub(crate) mod lite;
pub(crate) mod offsets;
mod order;
pub(crate) mod progress;
pub(crate) mod retention;
pub(crate) mod timers;
pub(crate) mod transactions;
pub(crate) mod window;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hashbrown::HashSet;
use ledgermq_common::clock::UnixMillis;
use ledgermq_common::{LogIndex, PhysicalOffset};
use ledgermq_raft_store::EntryId;

use super::checkpoint::{Cut, Kept, TimerCut};
use super::command::{ConsumerGroupSettings, TopicSettings};
use super::consume_queue::ConsumeQueueIndex;
use super::key_index::KeyIndex;
use super::names::{AttemptHash, ConsumerGroupId, OrderKey, TopicId};
use super::records::{QUEUES_PER_RECORD, RecordKey, RecordValue};
use super::timers::{TimerProgress, Timers};
use generations::AllGenerations;
use lite::LiteTopics;
use offsets::GroupOffsets;
use progress::Progress;
use retention::{Keeping, RetentionProgress, TimeMarks};
use transactions::Transactions;
use window::MessageIdWindow;

/// The messages a queue has: `min..max`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct QueueRange {
    pub min: u64,
    pub max: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Topic {
    pub(crate) name: String,
    pub(crate) settings: TopicSettings,
    pub(crate) created_at: UnixMillis,
    pub(crate) queues: Vec<QueueRange>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ConsumerGroup {
    pub(crate) name: String,
    pub(crate) settings: ConsumerGroupSettings,
    pub(crate) created_at: UnixMillis,
}

/// A consumer group in a topic.
#[derive(Debug, Default)]
pub(crate) struct Subscription {
    pub(crate) queues: BTreeMap<u32, Arc<Progress>>,
    /// The ends of all leases: (until, queue, offset). Derived from `queues`.
    pub(crate) ends: BTreeSet<(UnixMillis, u32, u64)>,
    /// The leases by the receive that made them: (receive, queue, offset). Derived from `queues`.
    pub(crate) receives: BTreeSet<(AttemptHash, u32, u64)>,
    /// The leased offsets by queue and order key. Derived from `queues`.
    pub(crate) orders: BTreeMap<(u32, OrderKey), BTreeSet<u64>>,
    /// The leases by attempt: (attempt, queue, offset). Derived from `queues`.
    pub(crate) attempts: BTreeSet<(u32, u32, u64)>,
}

/// The single numbers of the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Scalars {
    pub(crate) applied: Option<EntryId>,
    /// Log time: the greatest stamp applied.
    pub(crate) now: UnixMillis,
    pub(crate) next_topic: u32,
    pub(crate) next_consumer_group: u32,
    pub(crate) next_epoch: u64,
}

impl Default for Scalars {
    fn default() -> Self {
        Self { applied: None, now: UnixMillis(0), next_topic: 1, next_consumer_group: 1, next_epoch: 1 }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Applied {
    pub(crate) scalars: Scalars,
    pub(crate) topics: BTreeMap<TopicId, Topic>,
    pub(crate) topic_names: BTreeMap<String, TopicId>,
    pub(crate) consumer_groups: BTreeMap<ConsumerGroupId, Arc<ConsumerGroup>>,
    pub(crate) consumer_group_names: BTreeMap<String, ConsumerGroupId>,
    pub(crate) subscriptions: BTreeMap<(ConsumerGroupId, TopicId), Subscription>,
    pub(crate) transactions: Transactions,
    pub(crate) window: MessageIdWindow,
    pub(crate) index: ConsumeQueueIndex,
    pub(crate) timers: Timers,
    pub(crate) offsets: GroupOffsets,
    pub(crate) generations: AllGenerations,
    pub(crate) keys: KeyIndex,
    pub(crate) keeping: Keeping,
    /// Where the command that is being applied starts.
    pub(crate) applying_at: PhysicalOffset,
    /// The log index of that entry.
    pub(crate) applying_index: LogIndex,
    pub(crate) lite: LiteTopics,
    /// Of consumer groups whose members do not agree about a topic: what the members want.
    pub(crate) filters: BTreeMap<(ConsumerGroupId, TopicId), Vec<String>>,
    /// Records changed since the last checkpoint began.
    pub(crate) dirty: HashSet<RecordKey>,
    pub(crate) since_checkpoint: SinceCheckpoint,
    /// The first id of the window that no checkpoint has.
    pub(crate) first_new_id: u64,
}

/// What was applied since the last checkpoint began.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct SinceCheckpoint {
    pub(crate) entries: u64,
    pub(crate) command_bytes: u64,
}

impl Applied {
    /// The present content of a record; `None` when it does not exist (any more).
    pub(crate) fn record(&self, key: RecordKey) -> Option<RecordValue> {
        match key {
            RecordKey::Topic(id) => self.topics.get(&id).map(|topic| RecordValue::Topic {
                name: topic.name.clone(),
                settings: topic.settings,
                created_at: topic.created_at,
            }),
            RecordKey::Queues(id, block) => {
                let start = block as usize * QUEUES_PER_RECORD;
                let queues = self.topics.get(&id)?.queues.get(start..)?;
                let block = queues.get(..QUEUES_PER_RECORD).unwrap_or(queues);
                (!block.is_empty()).then(|| RecordValue::Queues(block.to_vec()))
            }
            RecordKey::ConsumerGroup(id) => {
                self.consumer_groups.get(&id).map(|group| RecordValue::ConsumerGroup(Arc::clone(group)))
            }
            RecordKey::Progress(group, topic, queue) => {
                let subscription = self.subscriptions.get(&(group, topic))?;
                subscription.queues.get(&queue).map(|progress| RecordValue::Progress(Arc::clone(progress)))
            }
            RecordKey::Transaction(id) => {
                self.transactions.undecided().get(&id).copied().map(RecordValue::Transaction)
            }
            RecordKey::TransactionOutcomes(number) => {
                let chunk = self.transactions.outcomes.chunk(number)?;
                Some(RecordValue::TransactionOutcomes(Arc::clone(chunk)))
            }
            RecordKey::Timers => {
                let progress = self.timers.progress();
                (progress != TimerProgress::default()).then_some(RecordValue::Timers(progress))
            }
            RecordKey::Offset(group, topic, queue) => {
                let committed = self.offsets.committed.get(&(group, topic, queue));
                committed.map(|&offset| RecordValue::Offset(offset))
            }
            RecordKey::Resets(group, topic) => {
                self.offsets.resets.get(&(group, topic)).cloned().map(RecordValue::Resets)
            }
            RecordKey::LiteTopic(topic, queue) => {
                self.lite.topics.get(&(topic, queue)).cloned().map(RecordValue::LiteTopic)
            }
            RecordKey::LiteClient(group, client) => {
                self.lite.clients.get(&(group, client)).cloned().map(RecordValue::LiteClient)
            }
            RecordKey::LiteParent(topic) => {
                self.lite.parents.get(&topic).copied().map(RecordValue::LiteParent)
            }
            RecordKey::GroupAttributes(group) => {
                self.lite.attributes.get(&group).cloned().map(RecordValue::GroupAttributes)
            }
            RecordKey::Filters(group, topic) => {
                self.filters.get(&(group, topic)).cloned().map(RecordValue::Filters)
            }
            RecordKey::Generations(id) => {
                self.generations.topics.get(&id).cloned().map(RecordValue::Generations)
            }
            RecordKey::Drained(group, topic) => {
                self.generations.drained.get(&(group, topic)).copied().map(RecordValue::Drained)
            }
            RecordKey::Recalled(key) => {
                self.timers.recalled().contains(&key).then_some(RecordValue::Recalled)
            }
            RecordKey::TopicRetention(topic) => {
                self.keeping.topics.get(&topic).map(|&ms| RecordValue::TopicRetention(ms))
            }
            RecordKey::LateReferences(topic, queue) => {
                let stretches = self.keeping.late.of_queue(topic, queue)?;
                Some(RecordValue::LateReferences(stretches.clone()))
            }
            RecordKey::Carried(identity) => {
                self.keeping.carried.get(&identity).map(|&place| RecordValue::Carried(place))
            }
            RecordKey::ExpiredUnread(group, topic) => {
                let messages = self.keeping.expired_unread.get(&(group, topic));
                messages.map(|&messages| RecordValue::ExpiredUnread(messages))
            }
            RecordKey::TimeMarks => {
                let marks = &self.keeping.marks;
                (*marks != TimeMarks::default()).then(|| RecordValue::TimeMarks(marks.clone()))
            }
            RecordKey::RetentionProgress => {
                let progress = self.keeping.progress;
                (progress != RetentionProgress::default()).then_some(RecordValue::RetentionProgress(progress))
            }
        }
    }

    /// Takes what a checkpoint writes; from here on the next one collects.
    pub(crate) fn cut(&mut self) -> Cut {
        let mut keys: Vec<RecordKey> = std::mem::take(&mut self.dirty).into_iter().collect();
        keys.sort_unstable();
        let records = keys.into_iter().map(|key| (key, self.record(key))).collect();
        let ids = self.window.view_from(self.first_new_id).iter().copied().collect();
        self.first_new_id = self.window.next_sequence();
        self.since_checkpoint = SinceCheckpoint::default();
        Cut {
            scalars: self.scalars,
            records,
            tails: self.index.freeze().tails.clone(),
            ids,
            keys: self.keys.freeze().tails.clone(),
            timers: TimerCut {
                tails: self.timers.freeze().tails.clone(),
                fired_through: self.timers.progress().fired_through,
                recalled: self.timers.recalled().clone(),
            },
            kept: Kept::of(self),
        }
    }

    /// No checkpoint knows anything of this state.
    pub(crate) fn mark_all_dirty(&mut self) {
        self.dirty = self.record_keys().collect();
        self.first_new_id = 0;
    }

    /// Everything in the window is in the checkpoint it was loaded from.
    pub(crate) fn mark_ids_kept(&mut self) {
        self.first_new_id = self.window.next_sequence();
    }

    /// The keys of all records, in order.
    pub(crate) fn record_keys(&self) -> impl Iterator<Item = RecordKey> + '_ {
        let topics = self.topics.keys().map(|&id| RecordKey::Topic(id));
        let queues = self.topics.iter().flat_map(|(&id, topic)| {
            let blocks = topic.queues.len().div_ceil(QUEUES_PER_RECORD) as u32;
            (0..blocks).map(move |block| RecordKey::Queues(id, block))
        });
        let groups = self.consumer_groups.keys().map(|&id| RecordKey::ConsumerGroup(id));
        let progress = self.subscriptions.iter().flat_map(|(&(group, topic), subscription)| {
            subscription.queues.keys().map(move |&queue| RecordKey::Progress(group, topic, queue))
        });
        let undecided = self.transactions.undecided().keys().map(|&id| RecordKey::Transaction(id));
        let outcomes = self.transactions.outcomes.chunk_numbers().map(RecordKey::TransactionOutcomes);
        let committed = self.offsets.committed.keys().map(|key| RecordKey::Offset(key.0, key.1, key.2));
        let resets = self.offsets.resets.keys().map(|key| RecordKey::Resets(key.0, key.1));
        let offsets = committed.chain(resets);
        let timers = self.record(RecordKey::Timers).map(|_| RecordKey::Timers);
        let recalled = self.timers.recalled().iter().map(|&key| RecordKey::Recalled(key));
        let generations = self.generations.topics.keys().map(|&id| RecordKey::Generations(id));
        let drained = self.generations.drained.keys().map(|key| RecordKey::Drained(key.0, key.1));
        let generations = generations.chain(drained);
        let records = topics.chain(queues).chain(groups).chain(progress);
        let kept_for = self.keeping.topics.keys().map(|&topic| RecordKey::TopicRetention(topic));
        let late = self.keeping.late.queues().map(|(topic, queue)| RecordKey::LateReferences(topic, queue));
        let carried = self.keeping.carried.keys().map(|&identity| RecordKey::Carried(identity));
        let unread = self.keeping.expired_unread.keys().map(|key| RecordKey::ExpiredUnread(key.0, key.1));
        let retention = [RecordKey::TimeMarks, RecordKey::RetentionProgress].into_iter();
        let retention = retention.filter(|&key| self.record(key).is_some());
        let keeping = kept_for.chain(late).chain(carried).chain(unread).chain(retention);
        let lite_topics = self.lite.topics.keys().map(|key| RecordKey::LiteTopic(key.0, key.1));
        let lite_clients = self.lite.clients.keys().map(|key| RecordKey::LiteClient(key.0, key.1));
        let lite_parents = self.lite.parents.keys().map(|&topic| RecordKey::LiteParent(topic));
        let attributes = self.lite.attributes.keys().map(|&group| RecordKey::GroupAttributes(group));
        let lite = lite_topics.chain(lite_clients).chain(lite_parents).chain(attributes);
        let records = records.chain(undecided).chain(outcomes).chain(timers).chain(recalled);
        let filters = self.filters.keys().map(|key| RecordKey::Filters(key.0, key.1));
        records.chain(offsets).chain(lite).chain(generations).chain(keeping).chain(filters)
    }

    /// Puts a record where it belongs, when the state is loaded. The order of records is free.
    pub(crate) fn load_record(&mut self, key: RecordKey, value: RecordValue) -> Result<(), MisplacedRecord> {
        match (key, value) {
            (RecordKey::Topic(id), RecordValue::Topic { name, settings, created_at }) => {
                self.topic_names.insert(name.clone(), id);
                let topic = self.topics.entry(id).or_insert_with(|| Topic::empty(settings));
                topic.name = name;
                topic.settings = settings;
                topic.created_at = created_at;
            }
            (RecordKey::Queues(id, block), RecordValue::Queues(ranges)) => {
                let topic = self.topics.entry(id).or_insert_with(|| Topic::empty(TopicSettings::normal(0)));
                let start = block as usize * QUEUES_PER_RECORD;
                if start > ledgermq_common::limits::TOPIC_QUEUES_MAX as usize {
                    return Err(MisplacedRecord { key });
                }
                if topic.queues.len() < start + ranges.len() {
                    topic.queues.resize(start + ranges.len(), QueueRange::default());
                }
                topic.queues[start..start + ranges.len()].copy_from_slice(&ranges);
            }
            (RecordKey::ConsumerGroup(id), RecordValue::ConsumerGroup(group)) => {
                self.consumer_group_names.insert(group.name.clone(), id);
                self.consumer_groups.insert(id, group);
            }
            (RecordKey::Progress(group, topic, queue), RecordValue::Progress(progress)) => {
                let subscription = self.subscriptions.entry((group, topic)).or_default();
                for (&offset, lease) in &progress.leases {
                    subscription.index_lease(queue, offset, lease);
                }
                subscription.queues.insert(queue, progress);
            }
            (RecordKey::Transaction(id), RecordValue::Transaction(transaction)) => {
                self.transactions.load(id, transaction);
            }
            (RecordKey::TransactionOutcomes(number), RecordValue::TransactionOutcomes(chunk)) => {
                if !self.transactions.outcomes.load(number, chunk) {
                    return Err(MisplacedRecord { key });
                }
            }
            (RecordKey::Offset(group, topic, queue), RecordValue::Offset(offset)) => {
                self.offsets.committed.insert((group, topic, queue), offset);
            }
            (RecordKey::Resets(group, topic), RecordValue::Resets(resets)) => {
                self.offsets.resets.insert((group, topic), resets);
            }
            (RecordKey::LiteTopic(topic, queue), RecordValue::LiteTopic(lite)) => {
                self.lite.load_topic(topic, queue, lite);
            }
            (RecordKey::LiteClient(group, client), RecordValue::LiteClient(lite)) => {
                self.lite.load_client(group, client, lite);
            }
            (RecordKey::LiteParent(topic), RecordValue::LiteParent(parent)) => {
                self.lite.parents.insert(topic, parent);
            }
            (RecordKey::GroupAttributes(group), RecordValue::GroupAttributes(attributes)) => {
                self.lite.attributes.insert(group, attributes);
            }
            (RecordKey::Filters(group, topic), RecordValue::Filters(filters)) => {
                self.filters.insert((group, topic), filters);
            }
            (RecordKey::Generations(id), RecordValue::Generations(generations)) => {
                self.generations.topics.insert(id, generations);
            }
            (RecordKey::Drained(group, topic), RecordValue::Drained(drained)) => {
                self.generations.drained.insert((group, topic), drained);
            }
            (RecordKey::Timers, RecordValue::Timers(progress)) => self.timers.load_progress(progress),
            (RecordKey::Recalled(key), RecordValue::Recalled) => self.timers.load_recalled(key),
            (RecordKey::TopicRetention(topic), RecordValue::TopicRetention(ms)) => {
                self.keeping.topics.insert(topic, ms);
            }
            (RecordKey::LateReferences(topic, queue), RecordValue::LateReferences(stretches)) => {
                self.keeping.late.load(topic, queue, stretches);
            }
            (RecordKey::Carried(identity), RecordValue::Carried(place)) => {
                self.keeping.carried.insert(identity, place);
            }
            (RecordKey::ExpiredUnread(group, topic), RecordValue::ExpiredUnread(messages)) => {
                self.keeping.expired_unread.insert((group, topic), messages);
            }
            (RecordKey::TimeMarks, RecordValue::TimeMarks(marks)) => self.keeping.marks = marks,
            (RecordKey::RetentionProgress, RecordValue::RetentionProgress(progress)) => {
                self.keeping.progress = progress;
            }
            (key, _) => return Err(MisplacedRecord { key }),
        }
        Ok(())
    }

    /// After loading: every part that refers to another finds it.
    pub(crate) fn check_loaded(&self) -> Result<(), IncompleteState> {
        for (&id, topic) in &self.topics {
            let complete = topic.queues.len() == topic.settings.queues as usize
                && !topic.name.is_empty()
                && id.get() < self.scalars.next_topic;
            if !complete {
                return Err(IncompleteState { part: "topic", id: u64::from(id.get()) });
            }
        }
        if let Some(id) = self.consumer_groups.keys().find(|id| id.get() >= self.scalars.next_consumer_group)
        {
            return Err(IncompleteState { part: "consumer group", id: u64::from(id.get()) });
        }
        for &(group, topic) in self.subscriptions.keys() {
            if !self.consumer_groups.contains_key(&group) || !self.topics.contains_key(&topic) {
                return Err(IncompleteState { part: "subscription of group", id: u64::from(group.get()) });
            }
        }
        for &(group, topic) in self.filters.keys() {
            if !self.consumer_groups.contains_key(&group) || !self.topics.contains_key(&topic) {
                return Err(IncompleteState { part: "filters of group", id: u64::from(group.get()) });
            }
        }
        for &(topic, queue) in self.lite.topics.keys() {
            let next = self.lite.parents.get(&topic).map_or(0, |parent| parent.next_queue);
            if !self.topics.contains_key(&topic) || !lite::is_lite(queue) || queue >= next {
                return Err(IncompleteState { part: "lite topic of topic", id: u64::from(topic.get()) });
            }
        }
        for &(topic, queue, group, _) in &self.lite.readers {
            let has_both =
                self.consumer_groups.contains_key(&group) && self.lite.topics.contains_key(&(topic, queue));
            if !has_both {
                return Err(IncompleteState { part: "reader of group", id: u64::from(group.get()) });
            }
        }
        for (id, open) in self.transactions.undecided() {
            let queues = self.topics.get(&open.topic).map_or(0, |topic| topic.queues.len());
            if open.queue.get() as usize >= queues {
                return Err(IncompleteState { part: "transaction", id: id.get() });
            }
        }
        for (&id, generations) in &self.generations.topics {
            let queues = self.topics.get(&id).map_or(0, |topic| topic.queues.len());
            if queues == 0 || generations.ended.iter().any(|ended| ended.ends.len() > queues) {
                return Err(IncompleteState { part: "generations of topic", id: u64::from(id.get()) });
            }
        }
        for &(group, topic) in self.generations.drained.keys() {
            if !self.consumer_groups.contains_key(&group) || !self.topics.contains_key(&topic) {
                return Err(IncompleteState {
                    part: "drained generations of group",
                    id: u64::from(group.get()),
                });
            }
        }
        if !self.transactions.outcomes.is_complete() {
            return Err(IncompleteState { part: "outcomes of transactions", id: 0 });
        }
        Ok(())
    }
}

impl Topic {
    fn empty(settings: TopicSettings) -> Self {
        Self { name: String::new(), settings, created_at: UnixMillis(0), queues: Vec::new() }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("record {key:?} holds a value of another kind or lies outside its topic")]
pub(crate) struct MisplacedRecord {
    key: RecordKey,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{part} {id} is incomplete")]
pub(crate) struct IncompleteState {
    part: &'static str,
    id: u64,
}
