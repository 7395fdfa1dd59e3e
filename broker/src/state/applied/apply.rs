//! What each command does to the state, leases and transactions apart (see [`leases`](super::leases),
//! [`transactions`](super::transactions)).
//!
//! | Failure | Consequence |
//! |---|---|
//! | the command refers to something unknown | refused as a whole, alike on every replica |
//! | the command is malformed | refused; the leader has a bug, a later leader must not trip over it too |
//! | the command is of a newer version | [`CommandError`] to the caller, who ends the process |

use std::collections::BTreeSet;
use std::sync::Arc;

use ledgermq_common::clock::UnixMillis;
use ledgermq_common::limits::TOPIC_QUEUES_MAX;
use ledgermq_common::{PhysicalOffset, QueueId, QueueOffset};
use ledgermq_raft_store::AppliedEntry;

use super::window::{MessageIdWindow, WindowEntry, window_key};
use super::{Applied, ConsumerGroup, QueueRange, Topic};
use crate::defects::{self, Defect};
use crate::state::answer::{Answer, Refusal, StoredAt};
use crate::state::command::{
    AppendHalves, AppendMessages, Command, CommandError, CreateConsumerGroup, CreateTopic,
    DeleteConsumerGroup, DeleteTopic, UpdateConsumerGroup, UpdateTopic,
};
use crate::state::consume_queue::{IndexEntry, QueueKey};
use crate::state::names::{ClientHash, ConsumerGroupId, Generation, MessageType, TopicId};
use crate::state::records::{QUEUES_PER_RECORD, RecordKey};

/// What an applied batch means to those who wait for messages.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    pub(crate) arrived: BTreeSet<(TopicId, QueueId)>,
    pub(crate) released: BTreeSet<(ConsumerGroupId, TopicId)>,
    /// Readers of lite topics that have something to look at.
    pub(crate) lite: BTreeSet<(ConsumerGroupId, TopicId, ClientHash)>,
    /// A lite topic was taken from a client, which is to be told.
    pub(crate) lite_taken: bool,
}

impl Applied {
    pub(crate) fn apply(
        &mut self,
        entry: &AppliedEntry,
        effects: &mut Effects,
    ) -> Result<Answer, CommandError> {
        if let Some(applied) = self.scalars.applied {
            assert!(applied.index < entry.id.index, "entry {} after {}", entry.id.index, applied.index);
        }
        let answer = match Command::decode(&entry.payload) {
            Ok((stamped_at, command)) => {
                self.break_promises(entry, stamped_at);
                self.scalars.now = self.scalars.now.max(stamped_at);
                self.window.expire(self.scalars.now);
                self.applying_at = entry.payload_at;
                self.applying_index = entry.id.index;
                self.mark_time(entry.payload_at);
                self.execute(command, entry.payload_at, effects)
            }
            Err(error) if error.is_from_a_newer_version() => return Err(error),
            Err(error) => {
                tracing::error!(index = entry.id.index.get(), %error, "refused a malformed command");
                if let Some(stamped_at) = Command::peek_stamp(&entry.payload) {
                    self.scalars.now = self.scalars.now.max(stamped_at);
                    self.window.expire(self.scalars.now);
                }
                Answer::Refused(Refusal::Malformed)
            }
        };
        self.scalars.applied = Some(entry.id);
        self.since_checkpoint.entries += 1;
        self.since_checkpoint.command_bytes += entry.payload.len() as u64;
        Ok(answer)
    }

    fn execute(&mut self, command: Command, payload_at: PhysicalOffset, effects: &mut Effects) -> Answer {
        let result = match command {
            Command::AppendMessages(command) => self.append_unordered(&command, payload_at, effects),
            Command::CreateTopic(command) => self.create_topic(command),
            Command::UpdateTopic(command) => self.update_topic(command),
            Command::DeleteTopic(command) => Ok(self.delete_topic(&command)),
            Command::CreateConsumerGroup(command) => Ok(self.create_consumer_group(command)),
            Command::UpdateConsumerGroup(command) => self.update_consumer_group(command),
            Command::DeleteConsumerGroup(command) => Ok(self.delete_consumer_group(&command)),
            Command::LeaseMessages(command) => self.lease(&command).map(Answer::Leased),
            Command::AckMessages(command) => Ok(Answer::Acked(self.ack(&command, effects))),
            Command::ChangeInvisible(command) => {
                Ok(Answer::Changed(self.change_invisible(&command, false, effects)))
            }
            Command::ExtendLeases(command) => Ok(Answer::Extended(self.extend(&command))),
            Command::ReleaseClient(command) => Ok(Answer::Released(self.release_client(command, effects))),
            Command::LeaseInOrder(command) => self.lease_in_order(&command).map(Answer::Leased),
            Command::AppendHalves(command) => {
                let answer = self.append_halves(&command, payload_at);
                if defects::is_active(Defect::EarlyVisibility) {
                    self.show_halves(&command, payload_at, effects);
                }
                answer
            }
            Command::EndTransaction(command) => self.end_transaction(&command, effects),
            Command::CountTransactionChecks(command) => Ok(self.count_checks(&command)),
            Command::ParkTransactions(command) => Ok(self.park(&command)),
            Command::DeadLetter(command) => self.dead_letter(&command, payload_at, effects),
            Command::RedriveDeadLetters(command) => self.redrive(&command, effects),
            Command::AppendDelayed(command) => self.append_delayed(&command, payload_at, effects),
            Command::FireTimers(command) => Ok(self.fire(command, effects)),
            Command::RecallTimer(command) => Ok(self.recall(command)),
            Command::CommitOffset(command) => self.commit_offset(command),
            Command::ResetProgress(command) => self.reset_progress(&command, effects),
            Command::ExpireMessages(command) => self.expire(&command, effects),
            Command::SetTopicRetention(command) => self.set_topic_retention(command),
            Command::CarryRecords(command) => Ok(self.carry(&command, payload_at)),
            Command::ReleaseLog(command) => Ok(self.release_log(command)),
            Command::AppendLite(command) => self.append_lite(&command, payload_at, effects),
            Command::SetGroupAttributes(command) => self.set_group_attributes(command),
            Command::SyncLite(command) => self.sync_lite(&command, effects),
            Command::ExpireLite(command) => Ok(self.expire_lite(&command)),
            Command::SetLiteTopic(command) => self.set_lite_topic(command),
            Command::SuspendDelivery(command) => {
                Ok(Answer::Changed(self.change_invisible(&command, true, effects)))
            }
            Command::PrepareGeneration(command) => self.prepare_generation(command),
            Command::CloseGeneration(command) => self.close_generation(command),
            Command::OpenGeneration(command) => self.open_generation(command),
            Command::DrainGeneration(command) => self.drain_generation(command, effects),
            Command::AppendInOrder(command) => self.append_in_order(&command, payload_at, effects),
            Command::StoreBatch(command) => self.store_batch(&command, payload_at, effects),
            Command::SetFilters(command) => self.set_filters(command, effects),
        };
        result.unwrap_or_else(Answer::Refused)
    }

    /// Only in a broken build: what an entry of another term, or its stamp, does to the state.
    fn break_promises(&mut self, entry: &AppliedEntry, stamped_at: UnixMillis) {
        let is_other_term = self.scalars.applied.is_some_and(|applied| applied.term != entry.id.term);
        if defects::is_active(Defect::DedupeOfOneTerm) && is_other_term {
            self.window = MessageIdWindow::default();
        }
        if defects::is_active(Defect::LogTimeBack) {
            self.scalars.now = stamped_at;
        }
        if defects::is_active(Defect::OffsetBack) && is_other_term {
            self.offsets.committed.values_mut().for_each(|offset| *offset = offset.saturating_sub(2));
        }
        if defects::is_active(Defect::SharedQueueOffset) && is_other_term {
            for topic in self.topics.values_mut() {
                for range in topic.queues.iter_mut().filter(|range| range.max > range.min) {
                    range.max -= 1;
                }
            }
        }
    }

    /// Only in a broken build: halves are visible at once.
    fn show_halves(&mut self, command: &AppendHalves, payload_at: PhysicalOffset, effects: &mut Effects) {
        for half in &command.halves {
            let message = &half.message;
            let physical = PhysicalOffset(payload_at.get() + u64::from(message.record_at));
            let record_bytes = u32::try_from(message.record.len()).unwrap_or(u32::MAX);
            let (tag_code, stored_at) = (message.tag_code, self.scalars.now);
            let entry = IndexEntry { physical, record_bytes, tag_code, stored_at };
            self.make_visible(command.topic, message.queue, entry, effects);
        }
    }

    /// To a topic with order it is a send placed by the first generation.
    fn append_unordered(
        &mut self,
        command: &AppendMessages,
        payload_at: PhysicalOffset,
        effects: &mut Effects,
    ) -> Result<Answer, Refusal> {
        self.check_generation(command, Generation(0))?;
        self.append(command, payload_at, effects)
    }

    pub(super) fn append(
        &mut self,
        command: &AppendMessages,
        payload_at: PhysicalOffset,
        effects: &mut Effects,
    ) -> Result<Answer, Refusal> {
        let topic = self.topics.get_mut(&command.topic).ok_or(Refusal::TopicUnknown)?;
        let queues = topic.queues.len();
        if command.messages.iter().any(|message| message.queue.get() as usize >= queues) {
            return Err(Refusal::QueueUnknown);
        }
        let stored_at = self.scalars.now;
        let mut stored = Vec::with_capacity(command.messages.len());
        for message in &command.messages {
            let key = window_key(command.topic, &message.id);
            if let Some(first) =
                self.window.find(key).filter(|first| !self.generations.misses(command.topic, first))
            {
                stored.push(StoredAt {
                    queue: QueueId(first.queue),
                    offset: QueueOffset(first.offset),
                    stored_at: first.stored_at,
                    repeated: true,
                });
                if defects::is_active(Defect::OffsetOfRepeat)
                    && let Some(range) = topic.queues.get_mut(first.queue as usize)
                {
                    range.max += 1;
                }
                continue;
            }
            let queue = message.queue;
            let range = topic.queues.get_mut(queue.get() as usize).ok_or(Refusal::QueueUnknown)?;
            let offset = range.max;
            range.max += 1;
            let physical = payload_at
                .checked_add(u64::from(message.record_at))
                .expect("an entry lies inside the CommitLog's range of offsets");
            let record_bytes =
                u32::try_from(message.record.len()).expect("a command is bounded far below 4 GiB");
            self.index.push(
                QueueKey::new(command.topic, queue),
                offset,
                IndexEntry { physical, record_bytes, tag_code: message.tag_code, stored_at },
            );
            self.window.insert(WindowEntry { key, queue: queue.get(), offset, stored_at });
            self.keys.add(command.topic, &message.id, message.properties(), physical, record_bytes);
            self.dirty.insert(RecordKey::queues_of(command.topic, queue.get()));
            effects.arrived.insert((command.topic, queue));
            stored.push(StoredAt { queue, offset: QueueOffset(offset), stored_at, repeated: false });
        }
        Ok(Answer::Stored(stored))
    }

    pub(super) fn create_topic(&mut self, command: CreateTopic) -> Result<Answer, Refusal> {
        if let Some(&id) = self.topic_names.get(&command.name) {
            return Ok(Answer::Topic { id, created: false });
        }
        check_queues(command.settings.queues)?;
        let id = TopicId(self.scalars.next_topic);
        self.scalars.next_topic += 1;
        self.topic_names.insert(command.name.clone(), id);
        self.topics.insert(
            id,
            Topic {
                name: command.name,
                settings: command.settings,
                created_at: self.scalars.now,
                queues: vec![QueueRange::default(); command.settings.queues as usize],
            },
        );
        self.mark_topic_dirty(id, command.settings.queues);
        Ok(Answer::Topic { id, created: true })
    }

    fn update_topic(&mut self, command: UpdateTopic) -> Result<Answer, Refusal> {
        check_queues(command.settings.queues)?;
        let &id = self.topic_names.get(&command.name).ok_or(Refusal::TopicUnknown)?;
        let topic = self.topics.get_mut(&id).ok_or(Refusal::TopicUnknown)?;
        if command.settings.queues < topic.settings.queues {
            return Err(Refusal::QueuesCannotShrink);
        }
        // Lite topics are placed by the number of queues, too.
        let is_placed = |of: MessageType| matches!(of, MessageType::Fifo | MessageType::Lite);
        if command.settings.queues != topic.settings.queues
            && (is_placed(topic.settings.message_type) || is_placed(command.settings.message_type))
        {
            return Err(Refusal::QueuesOfOrderedTopic);
        }
        if command.settings.message_type != MessageType::Fifo && self.generations.topics.contains_key(&id) {
            return Err(Refusal::QueuesOfOrderedTopic);
        }
        topic.settings = command.settings;
        topic.queues.resize(command.settings.queues as usize, QueueRange::default());
        self.mark_topic_dirty(id, command.settings.queues);
        Ok(Answer::Topic { id, created: false })
    }

    fn delete_topic(&mut self, command: &DeleteTopic) -> Answer {
        let Some(id) = self.topic_names.remove(&command.name) else { return Answer::Deleted(false) };
        let topic = self.topics.remove(&id).expect("a named topic exists");
        self.mark_topic_dirty(id, topic.settings.queues);
        let subscriptions: Vec<_> =
            self.subscriptions.keys().filter(|(_, topic)| *topic == id).copied().collect();
        for subscription in subscriptions {
            self.drop_subscription(subscription);
        }
        self.drop_transactions(id);
        self.drop_keeping_of_topic(id);
        self.drop_expired_unread(|_, topic| topic == id);
        self.drop_lite_topics(id);
        self.drop_offsets(|_, topic| topic == id);
        self.drop_filters(|_, topic| topic == id);
        self.drop_generations(id);
        Answer::Deleted(true)
    }

    pub(super) fn create_consumer_group(&mut self, command: CreateConsumerGroup) -> Answer {
        if let Some(&id) = self.consumer_group_names.get(&command.name) {
            return Answer::ConsumerGroup { id, created: false };
        }
        let id = ConsumerGroupId(self.scalars.next_consumer_group);
        self.scalars.next_consumer_group += 1;
        self.consumer_group_names.insert(command.name.clone(), id);
        let group =
            ConsumerGroup { name: command.name, settings: command.settings, created_at: self.scalars.now };
        self.consumer_groups.insert(id, Arc::new(group));
        self.dirty.insert(RecordKey::ConsumerGroup(id));
        Answer::ConsumerGroup { id, created: true }
    }

    fn update_consumer_group(&mut self, command: UpdateConsumerGroup) -> Result<Answer, Refusal> {
        let &id = self.consumer_group_names.get(&command.name).ok_or(Refusal::ConsumerGroupUnknown)?;
        let group = self.consumer_groups.get_mut(&id).ok_or(Refusal::ConsumerGroupUnknown)?;
        Arc::make_mut(group).settings = command.settings;
        self.dirty.insert(RecordKey::ConsumerGroup(id));
        Ok(Answer::ConsumerGroup { id, created: false })
    }

    fn delete_consumer_group(&mut self, command: &DeleteConsumerGroup) -> Answer {
        let Some(id) = self.consumer_group_names.remove(&command.name) else {
            return Answer::Deleted(false);
        };
        self.consumer_groups.remove(&id);
        self.dirty.insert(RecordKey::ConsumerGroup(id));
        let first = (id, TopicId(0));
        let subscriptions: Vec<_> =
            self.subscriptions.range(first..).map(|(key, _)| *key).take_while(|key| key.0 == id).collect();
        for subscription in subscriptions {
            self.drop_subscription(subscription);
        }
        self.drop_lite_group(id);
        self.drop_offsets(|group, _| group == id);
        self.drop_filters(|group, _| group == id);
        self.drop_expired_unread(|group, _| group == id);
        self.drop_drained(|group, _| group == id);
        Answer::Deleted(true)
    }

    fn drop_subscription(&mut self, key: (ConsumerGroupId, TopicId)) {
        if let Some(subscription) = self.subscriptions.remove(&key) {
            self.dirty
                .extend(subscription.queues.keys().map(|&queue| RecordKey::Progress(key.0, key.1, queue)));
        }
    }

    pub(super) fn mark_topic_dirty(&mut self, id: TopicId, queues: u32) {
        self.dirty.insert(RecordKey::Topic(id));
        let blocks = queues.div_ceil(QUEUES_PER_RECORD as u32);
        self.dirty.extend((0..blocks).map(|block| RecordKey::Queues(id, block)));
    }
}

pub(super) fn check_queues(queues: u32) -> Result<(), Refusal> {
    if (1..=TOPIC_QUEUES_MAX).contains(&queues) { Ok(()) } else { Err(Refusal::QueueCount) }
}
