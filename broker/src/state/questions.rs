//! What the executor asks the applied state. Every answer is of one moment; by the time it is used
//! more may be applied, which is why whatever changes the state is decided again in apply.

use std::ops::Range;

use ledgermq_common::clock::UnixMillis;
use ledgermq_common::receipt_handle::ReceiptHandle;
use ledgermq_common::{QueueId, QueueOffset};

use super::answer::Granted;
use super::applied::Applied;
use super::command::{ConsumerGroupSettings, TopicSettings};
use super::consume_queue::{IndexEntry, QueueKey};
use super::generation_questions::{self, PlacementView};
use super::machine::BrokerState;
use super::names::{AttemptHash, ClientHash, ConsumerGroupId, DeliveryEpoch, TopicId};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicView {
    pub id: TopicId,
    pub name: String,
    pub settings: TopicSettings,
    pub created_at: UnixMillis,
    /// Of a topic with order that has grown or is growing.
    pub placement: Option<PlacementView>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsumerGroupView {
    pub id: ConsumerGroupId,
    pub name: String,
    pub settings: ConsumerGroupSettings,
    pub created_at: UnixMillis,
}

/// How far a consumer group is behind in a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Lag {
    /// Messages that could be delivered now: unseen, or their lease ended.
    pub ready: u64,
    /// Messages under a lease.
    pub in_flight: u64,
}

/// A delivery that a repeated receive gets again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RepeatedDelivery {
    pub granted: Granted,
    pub renewal: u32,
}

/// A lease that its leader keeps alive while the client lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RenewableLease {
    pub consumer_group: ConsumerGroupId,
    pub topic: TopicId,
    pub queue: QueueId,
    pub offset: QueueOffset,
    pub epoch: DeliveryEpoch,
    pub client: ClientHash,
    pub popped_at: UnixMillis,
    pub until: UnixMillis,
    pub attempt: u32,
    /// How often it was renewed so far.
    pub renewal: u32,
}

/// What a receipt handle points at, once it is known to belong to the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HandleTarget {
    pub consumer_group: ConsumerGroupId,
    pub topic: TopicId,
    pub queue: QueueId,
    pub offset: QueueOffset,
    pub epoch: DeliveryEpoch,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HandleRefusal {
    #[error("the receipt handle is of another broker group")]
    OtherBrokerGroup,
    #[error("the receipt handle is of another topic")]
    OtherTopic,
    #[error("the receipt handle is of another consumer group")]
    OtherConsumerGroup,
    #[error("the topic does not exist")]
    TopicUnknown,
    #[error("the consumer group does not exist")]
    ConsumerGroupUnknown,
}

/// How long after its end a lease may still be renewed: an election and a scan.
const RENEWAL_LATE_MS_MAX: u64 = 10_000;

impl BrokerState {
    /// Log time: the greatest stamp applied so far.
    pub fn now(&self) -> UnixMillis {
        self.applied_state().scalars.now
    }

    pub fn topic(&self, name: &str) -> Option<TopicView> {
        let applied = self.applied_state();
        let &id = applied.topic_names.get(name)?;
        topic_view(&applied, id)
    }

    pub fn topic_by_id(&self, id: TopicId) -> Option<TopicView> {
        topic_view(&self.applied_state(), id)
    }

    /// In the order of their numbers.
    pub fn topics(&self) -> Vec<TopicView> {
        let applied = self.applied_state();
        applied.topics.keys().filter_map(|&id| topic_view(&applied, id)).collect()
    }

    /// The offsets each queue of the topic holds, by queue.
    pub fn queue_ranges(&self, topic: TopicId) -> Option<Vec<Range<u64>>> {
        let applied = self.applied_state();
        let topic = applied.topics.get(&topic)?;
        Some(topic.queues.iter().map(|range| range.min..range.max).collect())
    }

    pub fn consumer_group(&self, name: &str) -> Option<ConsumerGroupView> {
        let applied = self.applied_state();
        let &id = applied.consumer_group_names.get(name)?;
        consumer_group_view(&applied, id)
    }

    pub fn consumer_group_by_id(&self, id: ConsumerGroupId) -> Option<ConsumerGroupView> {
        consumer_group_view(&self.applied_state(), id)
    }

    /// In the order of their numbers.
    pub fn consumer_groups(&self) -> Vec<ConsumerGroupView> {
        let applied = self.applied_state();
        applied.consumer_groups.keys().filter_map(|&id| consumer_group_view(&applied, id)).collect()
    }

    /// The topics a consumer group received from.
    pub fn subscribed_topics(&self, group: ConsumerGroupId) -> Vec<TopicId> {
        let applied = self.applied_state();
        let first = (group, TopicId(0));
        let of_group = applied.subscriptions.range(first..).take_while(|(key, _)| key.0 == group);
        of_group.map(|(key, _)| key.1).collect()
    }

    pub fn lag(&self, group: ConsumerGroupId, topic: TopicId) -> Lag {
        let applied = self.applied_state();
        let Some(topic_state) = applied.topics.get(&topic) else { return Lag::default() };
        let subscription = applied.subscriptions.get(&(group, topic));
        let mut lag = Lag::default();
        for (queue, range) in (0u32..).zip(&topic_state.queues) {
            lag.ready += match subscription.and_then(|subscription| subscription.queues.get(&queue)) {
                Some(progress) => progress.unseen(range.max).map(|(from, to)| to - from).sum(),
                None => range.max - range.min,
            };
        }
        if let Some(subscription) = subscription {
            lag.ready += subscription.unseen_lite(topic, &applied.lite);
            let now = applied.scalars.now;
            let ended = subscription.ends.iter().take_while(|(until, _, _)| *until <= now).count() as u64;
            lag.ready += ended;
            lag.in_flight = subscription.ends.len() as u64 - ended;
        }
        lag
    }

    /// Where the message at `offset` lies, if the queue has it.
    pub fn locate(&self, topic: TopicId, queue: QueueId, offset: QueueOffset) -> Option<IndexEntry> {
        // Below the minimum a range begins with another message.
        self.range(topic, queue, offset, 1).first().filter(|(at, _)| *at == offset).map(|(_, entry)| *entry)
    }

    /// Up to `max` entries of a queue from `from` on, without a gap.
    pub fn range(
        &self,
        topic: TopicId,
        queue: QueueId,
        from: QueueOffset,
        max: u32,
    ) -> Vec<(QueueOffset, IndexEntry)> {
        let view = {
            let applied = self.applied_state();
            let Some(range) = applied.range(topic, queue.get()) else { return Vec::new() };
            let from = from.get().max(range.min);
            let to = range.max.min(from.saturating_add(u64::from(max)));
            applied.index.view(QueueKey::new(topic, queue), from, to)
        };
        view.read().into_iter().map(|(offset, entry)| (QueueOffset(offset), entry)).collect()
    }

    /// When the next lease of the group in the topic ends that has not ended at `now`.
    pub fn next_expiry(&self, group: ConsumerGroupId, topic: TopicId, now: UnixMillis) -> Option<UnixMillis> {
        let applied = self.applied_state();
        let subscription = applied.subscriptions.get(&(group, topic))?;
        let after = (now.max(applied.scalars.now).saturating_add_ms(1), 0, 0);
        subscription.ends.range(after..).next().map(|(until, _, _)| *until)
    }

    /// The deliveries in force that this very receive made before, at most `max`: its answer was lost.
    pub fn deliveries_of(
        &self,
        consumer_group: ConsumerGroupId,
        topic: TopicId,
        receive: AttemptHash,
        now: UnixMillis,
        max: usize,
    ) -> Vec<RepeatedDelivery> {
        let applied = self.applied_state();
        let now = now.max(applied.scalars.now);
        let Some(subscription) = applied.subscriptions.get(&(consumer_group, topic)) else {
            return Vec::new();
        };
        if receive == AttemptHash(0) {
            return Vec::new();
        }
        let made = subscription.receives.range((receive, 0, 0)..=(receive, u32::MAX, u64::MAX));
        made.filter_map(|&(_, queue, offset)| {
            let lease = subscription.queues.get(&queue)?.leases.get(&offset)?;
            (lease.until > now).then_some(RepeatedDelivery {
                granted: Granted {
                    queue: QueueId(queue),
                    offset: QueueOffset(offset),
                    attempt: lease.attempt,
                    epoch: lease.epoch,
                    until: lease.until,
                },
                renewal: lease.renewal,
            })
        })
        .take(max)
        .collect()
    }

    /// Auto-renewed leases that end by `ending_by`, at most `max`. A lease that ended a while ago is
    /// not among them: its client is gone or its message about to be delivered anew.
    pub fn leases_to_renew(&self, ending_by: UnixMillis, max: usize) -> Vec<RenewableLease> {
        let applied = self.applied_state();
        let mut renewable = Vec::new();
        let ended_after = UnixMillis(applied.scalars.now.get().saturating_sub(RENEWAL_LATE_MS_MAX));
        for (&(consumer_group, topic), subscription) in &applied.subscriptions {
            let ends = subscription.ends.range((ended_after, 0, 0)..).take_while(|end| end.0 <= ending_by);
            for &(until, queue, offset) in ends {
                let progress = subscription.queues.get(&queue);
                let Some(lease) = progress.and_then(|progress| progress.leases.get(&offset)) else {
                    continue;
                };
                if !lease.auto_renew {
                    continue;
                }
                if renewable.len() >= max {
                    return renewable;
                }
                renewable.push(RenewableLease {
                    consumer_group,
                    topic,
                    queue: QueueId(queue),
                    offset: QueueOffset(offset),
                    epoch: lease.epoch,
                    client: lease.client,
                    popped_at: lease.popped_at,
                    until,
                    attempt: lease.attempt,
                    renewal: lease.renewal,
                });
            }
        }
        renewable
    }

    /// The handle of a delivery that apply granted, `renewal` being 0 for a new one.
    pub fn handle_of(
        &self,
        consumer_group: ConsumerGroupId,
        topic: TopicId,
        granted: &Granted,
        renewal: u32,
    ) -> ReceiptHandle {
        ReceiptHandle {
            group: self.group(),
            topic_id: topic.get(),
            queue: granted.queue,
            offset: granted.offset,
            consumer_group_id: u64::from(consumer_group.get()),
            delivery_epoch: granted.epoch.get(),
            renewal,
        }
    }

    /// Checks that a handle belongs to the consumer group and topic of the request.
    pub fn check_handle(
        &self,
        handle: &ReceiptHandle,
        consumer_group: &str,
        topic: &str,
    ) -> Result<HandleTarget, HandleRefusal> {
        if handle.group != self.group() {
            return Err(HandleRefusal::OtherBrokerGroup);
        }
        let applied = self.applied_state();
        let &topic = applied.topic_names.get(topic).ok_or(HandleRefusal::TopicUnknown)?;
        let &consumer_group =
            applied.consumer_group_names.get(consumer_group).ok_or(HandleRefusal::ConsumerGroupUnknown)?;
        if topic.get() != handle.topic_id {
            return Err(HandleRefusal::OtherTopic);
        }
        if u64::from(consumer_group.get()) != handle.consumer_group_id {
            return Err(HandleRefusal::OtherConsumerGroup);
        }
        Ok(HandleTarget {
            consumer_group,
            topic,
            queue: handle.queue,
            offset: handle.offset,
            epoch: DeliveryEpoch(handle.delivery_epoch),
        })
    }
}

fn topic_view(applied: &Applied, id: TopicId) -> Option<TopicView> {
    applied.topics.get(&id).map(|topic| TopicView {
        id,
        name: topic.name.clone(),
        settings: topic.settings,
        created_at: topic.created_at,
        placement: generation_questions::placement(applied, id),
    })
}

fn consumer_group_view(applied: &Applied, id: ConsumerGroupId) -> Option<ConsumerGroupView> {
    applied.consumer_groups.get(&id).map(|group| ConsumerGroupView {
        id,
        name: group.name.clone(),
        settings: group.settings.clone(),
        created_at: group.created_at,
    })
}
