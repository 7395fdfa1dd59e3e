//! What the commands of dead letters do.
//!
//! A letter and the end of its delivery are one entry: a message is either still the group's to
//! deliver or in its dead-letter queue, never in both and never in neither. The topic of the queue is
//! made by the first letter.
//!
//! A redriven letter becomes a delivery of the original place whose lease has ended, so the group gets
//! it again and no other group does; its attempts are counted afresh. Which letters were redriven is
//! the progress of a consumer group of the system's own in the dead-letter topic.

use ledgermq_common::names::dead_letter_topic;
use ledgermq_common::{PhysicalOffset, QueueId, QueueOffset};

use super::Applied;
use super::apply::Effects;
use super::lite::is_lite;
use super::progress::Lease;
use crate::defects::{self, Defect};
use crate::state::answer::{Answer, DeliveryOutcome, Refusal};
use crate::state::command::{
    ConsumerGroupSettings, CreateConsumerGroup, CreateTopic, DeadLetter, DeadLetterReason, Letter,
    RedriveDeadLetters, RedrivenLetter, TopicSettings,
};
use crate::state::consume_queue::{IndexEntry, QueueKey};
use crate::state::names::{AttemptHash, ClientHash, ConsumerGroupId, DeliveryEpoch, OrderKey, TopicId};
use crate::state::records::RecordKey;

/// Its progress in a dead-letter topic says which letters were redriven. Clients cannot use the name.
pub(crate) const REDRIVE_CONSUMER_GROUP: &str = "CID_RMQ_SYS_REDRIVE";
/// A dead-letter topic has one queue.
pub(crate) const DEAD_LETTER_QUEUE: QueueId = QueueId(0);

impl Applied {
    pub(super) fn dead_letter(
        &mut self,
        command: &DeadLetter,
        payload_at: PhysicalOffset,
        effects: &mut Effects,
    ) -> Result<Answer, Refusal> {
        let group = self.consumer_groups.get(&command.consumer_group).ok_or(Refusal::ConsumerGroupUnknown)?;
        let (name, attempts_max) = (dead_letter_topic(&group.name), group.settings.attempts_max);
        let mut created = false;
        let mut outcomes = Vec::with_capacity(command.letters.len());
        for (letter, record_at) in command.positioned() {
            let outcome = self.give_up(command, letter, attempts_max);
            if outcome == DeliveryOutcome::Done {
                let topic = match self
                    .create_topic(CreateTopic { name: name.clone(), settings: TopicSettings::normal(1) })?
                {
                    Answer::Topic { id, created: now_created } => {
                        created |= now_created;
                        id
                    }
                    other => unreachable!("creating a topic was answered by {other:?}"),
                };
                let physical = payload_at
                    .checked_add(record_at)
                    .expect("an entry lies inside the CommitLog's range of offsets");
                let record_bytes =
                    u32::try_from(letter.record.encoded_bytes()).expect("a topic name is short");
                let stored_at = self.scalars.now;
                let tag_code = letter.record.tag_code;
                let entry = IndexEntry { physical, record_bytes, tag_code, stored_at };
                let copies = match () {
                    () if defects::is_active(Defect::LetterTwice) => 2,
                    () if defects::is_active(Defect::LetterLost) => 0,
                    () => 1,
                };
                for _ in 0..copies {
                    let Some(at) = self.make_visible(topic, DEAD_LETTER_QUEUE, entry, effects) else { break };
                    // The letter keeps the bytes of the message it refers to.
                    self.note_reference(topic, DEAD_LETTER_QUEUE, at.get(), letter.record.physical);
                }
                effects.released.insert((command.consumer_group, command.topic));
            }
            outcomes.push(outcome);
        }
        Ok(Answer::DeadLettered { created, outcomes })
    }

    /// Ends the delivery, if it is still there to be given up.
    fn give_up(&mut self, command: &DeadLetter, letter: &Letter, attempts_max: u32) -> DeliveryOutcome {
        let (group, topic) = (command.consumer_group, command.topic);
        let now = self.scalars.now;
        match self.find_delivery(group, topic, letter.queue, letter.offset, letter.epoch) {
            Ok((lease, subscription)) => {
                let is_exhausted = lease.until <= now && lease.is_last(attempts_max);
                if letter.record.reason == DeadLetterReason::AttemptsExhausted && !is_exhausted {
                    return DeliveryOutcome::Stale;
                }
                if !defects::is_active(Defect::LetterWithoutEnd) {
                    subscription.end_lease(letter.queue, letter.offset, lease);
                }
                self.dirty.insert(RecordKey::Progress(group, topic, letter.queue.get()));
                DeliveryOutcome::Done
            }
            Err(outcome) => outcome,
        }
    }

    /// Appends to a queue what lies in the log already; the topic may be gone.
    pub(super) fn make_visible(
        &mut self,
        topic: TopicId,
        queue: QueueId,
        entry: IndexEntry,
        effects: &mut Effects,
    ) -> Option<QueueOffset> {
        let range = self.topics.get_mut(&topic)?.queues.get_mut(queue.get() as usize)?;
        let offset = range.max;
        range.max += 1;
        self.index.push(QueueKey::new(topic, queue), offset, entry);
        self.note_reference(topic, queue, offset, entry.physical);
        self.dirty.insert(RecordKey::queues_of(topic, queue.get()));
        effects.arrived.insert((topic, queue));
        Some(QueueOffset(offset))
    }

    pub(super) fn redrive(
        &mut self,
        command: &RedriveDeadLetters,
        effects: &mut Effects,
    ) -> Result<Answer, Refusal> {
        let group = self.consumer_groups.get(&command.consumer_group).ok_or(Refusal::ConsumerGroupUnknown)?;
        let letters = *self.topic_names.get(&dead_letter_topic(&group.name)).ok_or(Refusal::TopicUnknown)?;
        let create = CreateConsumerGroup {
            name: REDRIVE_CONSUMER_GROUP.to_owned(),
            settings: ConsumerGroupSettings::default(),
        };
        let Answer::ConsumerGroup { id: redriver, .. } = self.create_consumer_group(create) else {
            unreachable!("a consumer group is created or found")
        };
        let outcomes = command
            .letters
            .iter()
            .map(|letter| self.redrive_one(command.consumer_group, letters, redriver, *letter, effects))
            .collect();
        Ok(Answer::Redriven(outcomes))
    }

    fn redrive_one(
        &mut self,
        group: ConsumerGroupId,
        letters: TopicId,
        redriver: ConsumerGroupId,
        letter: RedrivenLetter,
        effects: &mut Effects,
    ) -> DeliveryOutcome {
        let end =
            self.topics.get(&letters).and_then(|topic| topic.queues.first()).map_or(0, |queue| queue.max);
        if letter.letter.get() >= end {
            return DeliveryOutcome::NeverDelivered;
        }
        let queue = letter.queue.get();
        let Some(range) = self.range(letter.topic, queue) else { return DeliveryOutcome::TopicUnknown };
        if !(range.min..range.max).contains(&letter.offset.get()) {
            return DeliveryOutcome::NeverDelivered;
        }
        let redriven = self.subscriptions.entry((redriver, letters)).or_default();
        let redriven = redriven.progress_mut(DEAD_LETTER_QUEUE.get(), 0);
        if !redriven.is_unseen(letter.letter.get()) && !defects::is_active(Defect::RedrivenTwice) {
            return DeliveryOutcome::AlreadyConsumed;
        }
        redriven.see(letter.letter.get(), letter.letter.get() + 1);
        self.dirty.insert(RecordKey::Progress(redriver, letters, DEAD_LETTER_QUEUE.get()));

        let lease = Lease {
            until: self.scalars.now,
            popped_at: self.scalars.now,
            epoch: DeliveryEpoch(self.scalars.next_epoch),
            client: ClientHash(0),
            received_by: AttemptHash(0),
            attempt: 0,
            renewal: 0,
            auto_renew: false,
            suspended: false,
            // Its place in an order is found when it is planned.
            order: OrderKey(0),
        };
        let subscription = self.subscriptions.entry((group, letter.topic)).or_default();
        // Also where the next line makes the progress of a queue and nothing more.
        self.dirty.insert(RecordKey::Progress(group, letter.topic, queue));
        let progress = subscription.progress_mut(queue, range.min);
        // A group that was reset has it before it again, or has it leased: nothing is lost.
        if progress.is_unseen(letter.offset.get()) || progress.leases.contains_key(&letter.offset.get()) {
            return DeliveryOutcome::Done;
        }
        progress.leases.insert(letter.offset.get(), lease);
        subscription.index_lease(queue, letter.offset.get(), &lease);
        self.scalars.next_epoch += 1;
        effects.released.insert((group, letter.topic));
        if is_lite(queue) {
            effects.lite.extend(self.lite.readers_of_group(letter.topic, queue, group));
        }
        DeliveryOutcome::Done
    }
}
