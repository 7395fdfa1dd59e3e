//! Lite topics: very many small queues below one parent topic, who reads them, and what their
//! commands do.
//!
//! A lite topic is a queue of its parent with a number from [`LITE_QUEUE_MIN`] on, so the index, the
//! progress of consumer groups, leases, handles and dead letters treat it like any queue. Numbers are
//! given out in log order per parent and never again: a handle of a lite topic that went can never
//! be taken for one of a lite topic made later under the same name.
//!
//! | Part | Key | Derived |
//! |---|---|---|
//! | [`LiteTopic`] | parent, queue | `names`: parent, name → queue |
//! | [`LiteClient`]: what a client of a consumer group reads, and what was taken from it | consumer group, client | `readers`: parent, queue → consumer group, client |
//! | [`LiteParent`] | parent | |
//! | [`GroupAttributes`] | consumer group | |
//!
//! | Invariant | Kept by |
//! |---|---|
//! | a group that is exclusive has one reader of a lite topic | [`Applied::sync_lite`] takes the others' away |
//! | what was taken away does not come back by a repeated full list | it stays marked until the client leaves it out or adds it anew |
//! | nothing is delivered to a client that does not read the lite topic any more | apply of a lease asks [`LiteTopics::reads`] |
//! | a lite topic goes only when nobody reads it and no message waits | [`Applied::expire_lite`] judges again, by log time |

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ledgermq_common::clock::UnixMillis;
use ledgermq_common::limits::{LITE_SUBSCRIPTIONS_MAX, LITE_TOPICS_MAX};
use ledgermq_common::{PhysicalOffset, QueueId, QueueOffset};

use super::apply::Effects;
use super::progress::Progress;
use super::window::{WindowEntry, window_key};
use super::{Applied, QueueRange, Subscription, Topic};
use crate::state::answer::{Answer, LiteSynced, Refusal, StoredAt};
use crate::state::command::{
    AppendLite, ExpireLite, GroupAttributes, LiteAction, LiteStart, SetGroupAttributes, SetLiteTopic,
    SyncLite,
};
use crate::state::consume_queue::{IndexEntry, QueueKey};
use crate::state::names::{ClientHash, ConsumerGroupId, MessageType, TopicId};
use crate::state::records::RecordKey;

/// The first number of a lite topic: above every queue a topic may have.
pub(crate) const LITE_QUEUE_MIN: u32 = 1 << 24;
/// No number from here on is given out, so that each is also an `int32` of the protocol.
const LITE_QUEUE_END: u32 = 1 << 31;

pub(crate) fn is_lite(queue: u32) -> bool {
    (LITE_QUEUE_MIN..LITE_QUEUE_END).contains(&queue)
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LiteTopic {
    pub(crate) name: Arc<str>,
    pub(crate) range: QueueRange,
    /// Log time of its last message, or of the last change of its readers.
    pub(crate) used_at: UnixMillis,
}

/// A client of a consumer group that reads lite topics.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct LiteClient {
    pub(crate) client_id: String,
    pub(crate) topic: TopicId,
    pub(crate) version: u64,
    /// Queues of the lite topics it reads.
    pub(crate) reads: BTreeSet<u32>,
    /// Queues that another client took over, until this one leaves them out.
    pub(crate) lost: BTreeSet<u32>,
}

/// What a topic of type LITE says about its lite topics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LiteParent {
    pub(crate) next_queue: u32,
    /// 0: never.
    pub(crate) expire_after_ms: u64,
}

impl Default for LiteParent {
    fn default() -> Self {
        Self { next_queue: LITE_QUEUE_MIN, expire_after_ms: 0 }
    }
}

#[derive(Debug, Default)]
pub(crate) struct LiteTopics {
    pub(crate) topics: BTreeMap<(TopicId, u32), LiteTopic>,
    pub(crate) names: BTreeMap<(TopicId, Arc<str>), u32>,
    pub(crate) clients: BTreeMap<(ConsumerGroupId, ClientHash), LiteClient>,
    pub(crate) readers: BTreeSet<(TopicId, u32, ConsumerGroupId, ClientHash)>,
    pub(crate) parents: BTreeMap<TopicId, LiteParent>,
    pub(crate) attributes: BTreeMap<ConsumerGroupId, GroupAttributes>,
}

impl LiteTopics {
    pub(crate) fn range(&self, topic: TopicId, queue: u32) -> Option<QueueRange> {
        self.topics.get(&(topic, queue)).map(|lite| lite.range)
    }

    pub(crate) fn find(&self, topic: TopicId, name: &str) -> Option<u32> {
        self.names.get(&(topic, Arc::from(name))).copied()
    }

    /// In the order of their queues.
    pub(crate) fn minimums(&self) -> impl Iterator<Item = (QueueKey, u64)> {
        let key = |&(topic, queue): &(TopicId, u32)| QueueKey::new(topic, QueueId(queue));
        self.topics.iter().map(move |(at, lite)| (key(at), lite.range.min))
    }

    pub(crate) fn of_parent(&self, topic: TopicId) -> impl Iterator<Item = (u32, &LiteTopic)> {
        self.topics.range((topic, 0)..=(topic, u32::MAX)).map(|(key, lite)| (key.1, lite))
    }

    pub(crate) fn reads(
        &self,
        group: ConsumerGroupId,
        topic: TopicId,
        queue: u32,
        client: ClientHash,
    ) -> bool {
        self.readers.contains(&(topic, queue, group, client))
    }

    pub(crate) fn readers(
        &self,
        topic: TopicId,
        queue: u32,
    ) -> impl Iterator<Item = (ConsumerGroupId, ClientHash)> {
        let first = (topic, queue, ConsumerGroupId(0), ClientHash(0));
        let last = (topic, queue, ConsumerGroupId(u32::MAX), ClientHash(u64::MAX));
        self.readers.range(first..=last).map(|reader| (reader.2, reader.3))
    }

    /// As [`Effects`] has it.
    pub(crate) fn readers_of_group(
        &self,
        topic: TopicId,
        queue: u32,
        group: ConsumerGroupId,
    ) -> impl Iterator<Item = (ConsumerGroupId, TopicId, ClientHash)> {
        let (first, last) = (ClientHash(0), ClientHash(u64::MAX));
        let of_group = self.readers.range((topic, queue, group, first)..=(topic, queue, group, last));
        of_group.map(move |reader| (group, topic, reader.3))
    }

    pub(crate) fn attributes(&self, group: ConsumerGroupId) -> GroupAttributes {
        self.attributes.get(&group).cloned().unwrap_or_default()
    }

    /// When the state is loaded.
    pub(crate) fn load_topic(&mut self, topic: TopicId, queue: u32, lite: LiteTopic) {
        self.names.insert((topic, Arc::clone(&lite.name)), queue);
        self.topics.insert((topic, queue), lite);
    }

    pub(crate) fn load_client(&mut self, group: ConsumerGroupId, client: ClientHash, lite: LiteClient) {
        self.readers.extend(lite.reads.iter().map(|&queue| (lite.topic, queue, group, client)));
        self.clients.insert((group, client), lite);
    }
}

impl Applied {
    /// The messages a queue has, that of a lite topic included.
    pub(crate) fn range(&self, topic: TopicId, queue: u32) -> Option<QueueRange> {
        if is_lite(queue) {
            return self.lite.range(topic, queue);
        }
        self.topics.get(&topic)?.queues.get(queue as usize).copied()
    }

    /// The messages of every queue, those of lite topics included.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = (QueueKey, QueueRange)> {
        let of_topics = self.topics.iter().flat_map(|(&topic, of)| {
            (0u32..).zip(&of.queues).map(move |(queue, &range)| (QueueKey::new(topic, QueueId(queue)), range))
        });
        let lite = self.lite.topics.iter();
        of_topics.chain(lite.map(|(&(topic, queue), of)| (QueueKey::new(topic, QueueId(queue)), of.range)))
    }

    pub(super) fn append_lite(
        &mut self,
        command: &AppendLite,
        payload_at: PhysicalOffset,
        effects: &mut Effects,
    ) -> Result<Answer, Refusal> {
        self.lite_parent(command.topic)?;
        let stored_at = self.scalars.now;
        let mut stored = Vec::with_capacity(command.messages.len());
        for message in &command.messages {
            let key = window_key(command.topic, &message.id);
            if let Some(first) = self.window.find(key) {
                stored.push(StoredAt {
                    queue: QueueId(first.queue),
                    offset: QueueOffset(first.offset),
                    stored_at: first.stored_at,
                    repeated: true,
                });
                continue;
            }
            let queue = self.lite_or_create(command.topic, &command.lite_topic)?;
            let lite = self.lite.topics.get_mut(&(command.topic, queue)).ok_or(Refusal::QueueUnknown)?;
            let offset = lite.range.max;
            lite.range.max += 1;
            lite.used_at = stored_at;
            let physical = payload_at
                .checked_add(u64::from(message.record_at))
                .expect("an entry lies inside the CommitLog's range of offsets");
            let record_bytes =
                u32::try_from(message.record.len()).expect("a command is bounded far below 4 GiB");
            self.index.push(
                QueueKey::new(command.topic, QueueId(queue)),
                offset,
                IndexEntry { physical, record_bytes, tag_code: message.tag_code, stored_at },
            );
            self.window.insert(WindowEntry { key, queue, offset, stored_at });
            self.keys.add(command.topic, &message.id, message.properties(), physical, record_bytes);
            self.dirty.insert(RecordKey::LiteTopic(command.topic, queue));
            let readers = self.lite.readers(command.topic, queue);
            effects.lite.extend(readers.map(|(group, client)| (group, command.topic, client)));
            stored.push(StoredAt {
                queue: QueueId(queue),
                offset: QueueOffset(offset),
                stored_at,
                repeated: false,
            });
        }
        Ok(Answer::Stored(stored))
    }

    pub(super) fn set_group_attributes(&mut self, command: SetGroupAttributes) -> Result<Answer, Refusal> {
        let id = command.consumer_group;
        if !self.consumer_groups.contains_key(&id) {
            return Err(Refusal::ConsumerGroupUnknown);
        }
        self.lite.attributes.insert(id, command.attributes);
        self.dirty.insert(RecordKey::GroupAttributes(id));
        Ok(Answer::ConsumerGroup { id, created: false })
    }

    pub(super) fn set_lite_topic(&mut self, command: SetLiteTopic) -> Result<Answer, Refusal> {
        self.lite_parent(command.topic)?;
        let parent = self.lite.parents.entry(command.topic).or_default();
        parent.expire_after_ms = command.expire_after_ms;
        self.dirty.insert(RecordKey::LiteParent(command.topic));
        Ok(Answer::Topic { id: command.topic, created: false })
    }

    pub(super) fn sync_lite(&mut self, command: &SyncLite, effects: &mut Effects) -> Result<Answer, Refusal> {
        let SyncLite { consumer_group: group, topic, version, action, .. } = *command;
        if !self.consumer_groups.contains_key(&group) {
            return Err(Refusal::ConsumerGroupUnknown);
        }
        let parent_name = self.lite_parent(topic)?.name.clone();
        let mut attributes = self.lite.attributes(group);
        let binds = attributes.bind_topic.is_empty();
        if !binds && attributes.bind_topic != parent_name {
            return Err(Refusal::LiteBinding);
        }
        let client = ClientHash::of(&command.client_id);
        let known = self.lite.clients.get(&(group, client));
        // A group that was bound anew: what its clients read before is of another parent.
        if known.is_some_and(|known| known.topic != topic) {
            self.drop_lite_client(group, client);
        }
        let before = self.lite.clients.get(&(group, client)).cloned().unwrap_or_else(|| LiteClient {
            client_id: command.client_id.clone(),
            topic,
            ..LiteClient::default()
        });
        let is_full_list = matches!(action, LiteAction::Replace | LiteAction::RemoveAll);
        if is_full_list && version != 0 && version < before.version {
            // Overtaken by a newer one.
            return Ok(Answer::LiteSynced(LiteSynced::default()));
        }
        let mut after = before.clone();
        after.version = after.version.max(version);
        let mut synced = LiteSynced::default();
        match action {
            LiteAction::Add | LiteAction::Replace => {
                let names: BTreeMap<&str, LiteStart> =
                    command.lite_topics.iter().map(|(name, start)| (name.as_str(), *start)).collect();
                self.check_lite_quota(&before, &names, action, attributes.client_quota, topic)?;
                let mut named = BTreeMap::new();
                for (name, start) in names {
                    named.insert(self.lite_or_create(topic, name)?, start);
                }
                if action == LiteAction::Replace {
                    after.lost.retain(|queue| named.contains_key(queue));
                    let lost = &after.lost;
                    after.reads = named.keys().copied().filter(|queue| !lost.contains(queue)).collect();
                } else {
                    after.lost.retain(|queue| !named.contains_key(queue));
                    after.reads.extend(named.keys().copied());
                }
                for &queue in after.reads.difference(&before.reads) {
                    let evicted = attributes.exclusive
                        && self.take_over(group, topic, queue, client, &mut synced.evicted, effects);
                    let start = named.get(&queue).copied().unwrap_or(LiteStart::Max);
                    self.begin_lite(group, topic, queue, start, evicted && attributes.reset_when_taken_over);
                    synced.added += 1;
                }
            }
            LiteAction::Remove => {
                for (name, _) in &command.lite_topics {
                    let Some(queue) = self.lite.find(topic, name) else { continue };
                    after.reads.remove(&queue);
                    after.lost.remove(&queue);
                }
            }
            LiteAction::RemoveAll => {
                after.reads.clear();
                after.lost.clear();
            }
        }
        if binds {
            attributes.bind_topic = parent_name;
            self.lite.attributes.insert(group, attributes.clone());
            self.dirty.insert(RecordKey::GroupAttributes(group));
        }
        let removed: Vec<u32> = before.reads.difference(&after.reads).copied().collect();
        let added: Vec<u32> = after.reads.difference(&before.reads).copied().collect();
        synced.removed = u32::try_from(removed.len()).unwrap_or(u32::MAX);
        for &queue in &removed {
            self.lite.readers.remove(&(topic, queue, group, client));
            if attributes.reset_on_unsubscribe
                && self.lite.readers_of_group(topic, queue, group).next().is_none()
            {
                self.drop_lite_progress(group, topic, queue);
            }
        }
        self.lite.readers.extend(added.iter().map(|&queue| (topic, queue, group, client)));
        for &queue in removed.iter().chain(&added) {
            self.lite_used(topic, queue);
        }
        // There may be messages for it already.
        effects.lite.insert((group, topic, client));
        self.dirty.insert(RecordKey::LiteClient(group, client));
        if after.reads.is_empty() && after.lost.is_empty() {
            self.lite.clients.remove(&(group, client));
        } else {
            if !after.lost.is_empty() {
                // A full list that still names what was taken away: it is told again.
                effects.lite_taken = true;
            }
            self.lite.clients.insert((group, client), after);
        }
        Ok(Answer::LiteSynced(synced))
    }

    fn check_lite_quota(
        &self,
        before: &LiteClient,
        names: &BTreeMap<&str, LiteStart>,
        action: LiteAction,
        client_quota: u32,
        topic: TopicId,
    ) -> Result<(), Refusal> {
        let known: Vec<Option<u32>> = names.keys().map(|name| self.lite.find(topic, name)).collect();
        let is_read = |queue: &&Option<u32>| queue.is_some_and(|queue| before.reads.contains(&queue));
        let new = names.len() - known.iter().filter(is_read).count();
        let total = if action == LiteAction::Replace { names.len() } else { before.reads.len() + new };
        if new > 0 && total > client_quota as usize {
            return Err(Refusal::LiteClientQuota);
        }
        if new > 0 && self.lite.readers.len() + new > LITE_SUBSCRIPTIONS_MAX {
            return Err(Refusal::LiteSubscriptions);
        }
        let to_create = known.iter().filter(|queue| queue.is_none()).count();
        if to_create > 0 && self.lite.topics.len() + to_create > LITE_TOPICS_MAX {
            return Err(Refusal::LiteTopics);
        }
        Ok(())
    }

    /// Takes a lite topic from the group's other readers; whether there was one.
    fn take_over(
        &mut self,
        group: ConsumerGroupId,
        topic: TopicId,
        queue: u32,
        by: ClientHash,
        evicted: &mut u32,
        effects: &mut Effects,
    ) -> bool {
        let others: Vec<ClientHash> = self
            .lite
            .readers_of_group(topic, queue, group)
            .map(|(_, _, client)| client)
            .filter(|client| *client != by)
            .collect();
        for &other in &others {
            self.lite.readers.remove(&(topic, queue, group, other));
            if let Some(client) = self.lite.clients.get_mut(&(group, other)) {
                client.reads.remove(&queue);
                client.lost.insert(queue);
            }
            self.dirty.insert(RecordKey::LiteClient(group, other));
            effects.lite_taken = true;
            *evicted += 1;
        }
        !others.is_empty()
    }

    /// Where the group begins in a lite topic that is new to it.
    fn begin_lite(
        &mut self,
        group: ConsumerGroupId,
        topic: TopicId,
        queue: u32,
        start: LiteStart,
        anew: bool,
    ) {
        if anew {
            self.drop_lite_progress(group, topic, queue);
        }
        let Some(range) = self.lite.range(topic, queue) else { return };
        let subscription = self.subscriptions.entry((group, topic)).or_default();
        subscription
            .queues
            .entry(queue)
            .or_insert_with(|| Arc::new(Progress::starting_at(start.in_queue(range.min, range.max))));
        self.dirty.insert(RecordKey::Progress(group, topic, queue));
    }

    fn drop_lite_progress(&mut self, group: ConsumerGroupId, topic: TopicId, queue: u32) {
        let Some(subscription) = self.subscriptions.get_mut(&(group, topic)) else { return };
        let Some(progress) = subscription.queues.get(&queue).cloned() else { return };
        for (&offset, &lease) in &progress.leases {
            subscription.end_lease(QueueId(queue), QueueOffset(offset), lease);
        }
        subscription.queues.remove(&queue);
        self.dirty.insert(RecordKey::Progress(group, topic, queue));
    }

    fn lite_used(&mut self, topic: TopicId, queue: u32) {
        let now = self.scalars.now;
        if let Some(lite) = self.lite.topics.get_mut(&(topic, queue)) {
            lite.used_at = now;
            self.dirty.insert(RecordKey::LiteTopic(topic, queue));
        }
    }

    fn lite_parent(&self, topic: TopicId) -> Result<&Topic, Refusal> {
        let parent = self.topics.get(&topic).ok_or(Refusal::TopicUnknown)?;
        if parent.settings.message_type != MessageType::Lite {
            return Err(Refusal::NotLite);
        }
        Ok(parent)
    }

    fn lite_or_create(&mut self, topic: TopicId, name: &str) -> Result<u32, Refusal> {
        if let Some(queue) = self.lite.find(topic, name) {
            return Ok(queue);
        }
        let parent = self.lite.parents.entry(topic).or_default();
        let queue = parent.next_queue;
        if self.lite.topics.len() >= LITE_TOPICS_MAX || queue >= LITE_QUEUE_END {
            return Err(Refusal::LiteTopics);
        }
        parent.next_queue += 1;
        self.dirty.insert(RecordKey::LiteParent(topic));
        let used_at = self.scalars.now;
        let lite = LiteTopic { name: Arc::from(name), range: QueueRange::default(), used_at };
        self.lite.load_topic(topic, queue, lite);
        self.dirty.insert(RecordKey::LiteTopic(topic, queue));
        Ok(queue)
    }

    pub(super) fn expire_lite(&mut self, command: &ExpireLite) -> Answer {
        let topic = command.topic;
        let mut expired = 0;
        for &queue in &command.queues {
            if !self.is_expired(topic, queue, self.scalars.now) {
                continue;
            }
            let Some(lite) = self.lite.topics.remove(&(topic, queue)) else { continue };
            self.lite.names.remove(&(topic, lite.name));
            self.dirty.insert(RecordKey::LiteTopic(topic, queue));
            let groups: Vec<ConsumerGroupId> = self.consumer_groups.keys().copied().collect();
            for group in groups {
                self.drop_lite_progress(group, topic, queue);
            }
            expired += 1;
        }
        Answer::LiteExpired(expired)
    }

    /// Nobody reads it, it was not used for the parent's idle time, and no message in it waits for
    /// anybody: it has none, or every consumer group that ever read it has consumed all. Messages
    /// that no group has read yet keep it.
    pub(crate) fn is_expired(&self, topic: TopicId, queue: u32, now: UnixMillis) -> bool {
        let idle_ms = self.lite.parents.get(&topic).map_or(0, |parent| parent.expire_after_ms);
        let Some(lite) = self.lite.topics.get(&(topic, queue)) else { return false };
        if idle_ms == 0 || now.saturating_ms_since(lite.used_at) < idle_ms {
            return false;
        }
        if self.lite.readers(topic, queue).next().is_some() {
            return false;
        }
        let groups = self.consumer_groups.keys();
        let progresses = groups.filter_map(|&group| self.subscriptions.get(&(group, topic)));
        let mut progresses = progresses.filter_map(|subscription| subscription.queues.get(&queue)).peekable();
        if progresses.peek().is_none() {
            return lite.range.min == lite.range.max;
        }
        progresses
            .all(|progress| progress.leases.is_empty() && progress.unseen(lite.range.max).next().is_none())
    }

    /// The client has ended: it reads nothing any more.
    pub(super) fn drop_lite_client(&mut self, group: ConsumerGroupId, client: ClientHash) {
        let Some(gone) = self.lite.clients.remove(&(group, client)) else { return };
        self.dirty.insert(RecordKey::LiteClient(group, client));
        for queue in gone.reads {
            self.lite.readers.remove(&(gone.topic, queue, group, client));
            self.lite_used(gone.topic, queue);
        }
    }

    /// The parent is deleted.
    pub(super) fn drop_lite_topics(&mut self, topic: TopicId) {
        let queues: Vec<u32> = self.lite.of_parent(topic).map(|(queue, _)| queue).collect();
        let clients = self.lite.clients.iter().filter(|(_, client)| client.topic == topic);
        let clients: Vec<_> = clients.map(|(key, _)| *key).collect();
        for (group, client) in clients {
            self.drop_lite_client(group, client);
        }
        for queue in queues {
            if let Some(lite) = self.lite.topics.remove(&(topic, queue)) {
                self.lite.names.remove(&(topic, lite.name));
            }
            self.dirty.insert(RecordKey::LiteTopic(topic, queue));
        }
        self.lite.parents.remove(&topic);
        self.dirty.insert(RecordKey::LiteParent(topic));
    }

    /// The consumer group is deleted.
    pub(super) fn drop_lite_group(&mut self, group: ConsumerGroupId) {
        let of_group = (group, ClientHash(0))..=(group, ClientHash(u64::MAX));
        let clients: Vec<_> = self.lite.clients.range(of_group).map(|(key, _)| key.1).collect();
        for client in clients {
            self.drop_lite_client(group, client);
        }
        self.lite.attributes.remove(&group);
        self.dirty.insert(RecordKey::GroupAttributes(group));
    }
}

impl Subscription {
    /// Messages of lite topics that nobody was given yet.
    pub(crate) fn unseen_lite(&self, topic: TopicId, lite: &LiteTopics) -> u64 {
        let queues = self.queues.range(LITE_QUEUE_MIN..LITE_QUEUE_END);
        queues
            .filter_map(|(&queue, progress)| Some((progress, lite.range(topic, queue)?)))
            .map(|(progress, range)| progress.unseen(range.max).map(|(from, to)| to - from).sum::<u64>())
            .sum()
    }
}
