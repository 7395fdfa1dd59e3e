//! What the executor asks the state about dead letters.

use ledgermq_common::clock::UnixMillis;
use ledgermq_common::names::dead_letter_topic;
use ledgermq_common::{QueueId, QueueOffset};

use super::applied::dead_letters::{DEAD_LETTER_QUEUE, REDRIVE_CONSUMER_GROUP};
use super::applied::timers::TIMER_QUEUE;
use super::applied::window::window_key;
use super::machine::BrokerState;
use super::names::{ConsumerGroupId, DeliveryEpoch, TopicId};

/// A delivery that may be given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EndedDelivery {
    pub consumer_group: ConsumerGroupId,
    pub topic: TopicId,
    pub queue: QueueId,
    pub offset: QueueOffset,
    pub epoch: DeliveryEpoch,
    pub attempt: u32,
}

/// Where a message is with a consumer group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeliveryState {
    NeverDelivered,
    Consumed,
    /// Under a lease, or its lease ended and it waits to be delivered again.
    Delivered(EndedDelivery, UnixMillis),
}

impl BrokerState {
    /// Deliveries that were the last their group's retry policy allows and whose lease has ended at
    /// `now`, at most `max`.
    pub fn exhausted_deliveries(&self, now: UnixMillis, max: usize) -> Vec<EndedDelivery> {
        let applied = self.applied_state();
        let now = now.max(applied.scalars.now);
        let mut exhausted = Vec::new();
        for (&(consumer_group, topic), subscription) in &applied.subscriptions {
            let Some(group) = applied.consumer_groups.get(&consumer_group) else { continue };
            for &(attempt, queue, offset) in
                subscription.attempts.range((group.settings.attempts_max, 0, 0)..)
            {
                if exhausted.len() >= max {
                    return exhausted;
                }
                let progress = subscription.queues.get(&queue);
                let Some(lease) = progress.and_then(|progress| progress.leases.get(&offset)) else {
                    continue;
                };
                if lease.until <= now && lease.is_last(group.settings.attempts_max) {
                    exhausted.push(EndedDelivery {
                        consumer_group,
                        topic,
                        queue: QueueId(queue),
                        offset: QueueOffset(offset),
                        epoch: lease.epoch,
                        attempt,
                    });
                }
            }
        }
        exhausted
    }

    /// Where the message at a place of a queue is with a consumer group.
    pub fn delivery_state(
        &self,
        consumer_group: ConsumerGroupId,
        topic: TopicId,
        queue: QueueId,
        offset: QueueOffset,
    ) -> DeliveryState {
        let applied = self.applied_state();
        let subscription = applied.subscriptions.get(&(consumer_group, topic));
        let Some(progress) = subscription.and_then(|subscription| subscription.queues.get(&queue.get()))
        else {
            return DeliveryState::NeverDelivered;
        };
        if progress.is_unseen(offset.get()) {
            return DeliveryState::NeverDelivered;
        }
        match progress.leases.get(&offset.get()) {
            None => DeliveryState::Consumed,
            Some(lease) => DeliveryState::Delivered(
                EndedDelivery {
                    consumer_group,
                    topic,
                    queue,
                    offset,
                    epoch: lease.epoch,
                    attempt: lease.attempt,
                },
                lease.until,
            ),
        }
    }

    /// Where a message id of the window was stored.
    pub fn place_of_id(&self, topic: TopicId, id: &str) -> Option<(QueueId, QueueOffset)> {
        let found = self.applied_state().window.find(window_key(topic, id.as_bytes()))?;
        // A delayed message has no place before it fires.
        (found.queue != TIMER_QUEUE).then_some((QueueId(found.queue), QueueOffset(found.offset)))
    }

    /// Every delivery of a consumer group in a topic that is not consumed, at most `max`.
    pub fn open_deliveries(
        &self,
        consumer_group: ConsumerGroupId,
        topic: TopicId,
        max: usize,
    ) -> Vec<EndedDelivery> {
        let applied = self.applied_state();
        let Some(subscription) = applied.subscriptions.get(&(consumer_group, topic)) else {
            return Vec::new();
        };
        let leases = subscription
            .queues
            .iter()
            .flat_map(|(&queue, progress)| progress.leases.iter().map(move |lease| (queue, lease)));
        leases
            .take(max)
            .map(|(queue, (&offset, lease))| EndedDelivery {
                consumer_group,
                topic,
                queue: QueueId(queue),
                offset: QueueOffset(offset),
                epoch: lease.epoch,
                attempt: lease.attempt,
            })
            .collect()
    }

    /// The dead-letter topic of a consumer group, once it has a letter.
    pub fn dead_letters_of(&self, consumer_group: &str) -> Option<(TopicId, QueueId)> {
        let id = *self.applied_state().topic_names.get(&dead_letter_topic(consumer_group))?;
        Some((id, DEAD_LETTER_QUEUE))
    }

    /// Whether a letter of a dead-letter topic was given back to its group.
    pub fn is_redriven(&self, letters: TopicId, letter: QueueOffset) -> bool {
        let applied = self.applied_state();
        let Some(redriver) = applied.consumer_group_names.get(REDRIVE_CONSUMER_GROUP) else { return false };
        let progress = applied
            .subscriptions
            .get(&(*redriver, letters))
            .and_then(|subscription| subscription.queues.get(&DEAD_LETTER_QUEUE.get()));
        progress.is_some_and(|progress| !progress.is_unseen(letter.get()))
    }
}
