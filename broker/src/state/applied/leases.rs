//! What the commands of delivery do: grant, acknowledge, move and give back leases.
//!
//! A lease is in force while the log time is before its end. After its end it still counts until the
//! message is delivered anew: a consumer that was a little late may acknowledge, which saves a
//! delivery; once somebody else has the message, the old delivery is stale.

use std::sync::Arc;

use ledgermq_common::QueueId;
use ledgermq_common::QueueOffset;
use ledgermq_common::clock::UnixMillis;

use super::apply::Effects;
use super::lite::is_lite;
use super::progress::{Lease, Progress};
use super::{Applied, QueueRange, Subscription};
use crate::defects::{self, Defect};
use crate::state::answer::{ChangeOutcome, DeliveryOutcome, Granted, Refusal};
use crate::state::command::{
    AckMessages, ChangeInvisible, ExtendLeases, LeaseExtension, LeaseMessages, LeasePart, ReleaseClient,
};
use crate::state::names::{AttemptHash, ConsumerGroupId, DeliveryEpoch, OrderKey, TopicId};
use crate::state::records::RecordKey;

/// How soon a message of a client that ended is visible again: RocketMQ's figure.
pub(crate) const RELEASED_CLIENT_INVISIBLE_MS: u64 = 1_000;

impl Applied {
    pub(super) fn lease(&mut self, command: &LeaseMessages) -> Result<Vec<Granted>, Refusal> {
        let group = self.consumer_groups.get(&command.consumer_group).ok_or(Refusal::ConsumerGroupUnknown)?;
        let attempts_max = group.settings.attempts_max;
        let topic = self.topics.get(&command.topic).ok_or(Refusal::TopicUnknown)?;
        let now = self.scalars.now;
        let key = (command.consumer_group, command.topic);
        let subscription = self.subscriptions.entry(key).or_default();
        let mut granting = Granting {
            command,
            now,
            attempts_max,
            next_epoch: &mut self.scalars.next_epoch,
            granted: Vec::new(),
        };
        for part in &command.parts {
            let queue = part.queue.get();
            let Some(&range) = topic.queues.get(queue as usize) else { continue };
            granting.part(part, range, subscription);
            self.dirty.insert(RecordKey::Progress(command.consumer_group, command.topic, queue));
        }
        Ok(granting.granted)
    }

    pub(super) fn ack(&mut self, command: &AckMessages, effects: &mut Effects) -> Vec<DeliveryOutcome> {
        let (group, topic) = (command.consumer_group, command.topic);
        command
            .entries
            .iter()
            .map(|entry| {
                let found = self.find_delivery(group, topic, entry.queue, entry.offset, entry.epoch);
                match found {
                    Ok(_) if defects::is_active(Defect::ForgottenAck) => DeliveryOutcome::Done,
                    Ok((lease, subscription)) => {
                        subscription.end_lease(entry.queue, entry.offset, lease);
                        if defects::is_active(Defect::AckOfAnother) {
                            self.see_for_all(topic, entry.queue, entry.offset);
                        }
                        self.dirty.insert(RecordKey::Progress(group, topic, entry.queue.get()));
                        // What waited for this one in order may go now.
                        if lease.order != OrderKey(0) {
                            self.released(group, topic, entry.queue, effects);
                        }
                        DeliveryOutcome::Done
                    }
                    Err(outcome) => outcome,
                }
            })
            .collect()
    }

    /// Only in a broken build: no group of the topic gets this message any more.
    fn see_for_all(&mut self, topic: TopicId, queue: QueueId, offset: QueueOffset) {
        for ((_, of), subscription) in &mut self.subscriptions {
            if *of == topic {
                subscription.progress_mut(queue.get(), 0).see(offset.get(), offset.get() + 1);
            }
        }
    }

    pub(super) fn change_invisible(
        &mut self,
        command: &ChangeInvisible,
        suspend: bool,
        effects: &mut Effects,
    ) -> ChangeOutcome {
        let now = self.scalars.now;
        let (group, topic) = (command.consumer_group, command.topic);
        match self.find_delivery(group, topic, command.queue, command.offset, command.epoch) {
            Ok((lease, subscription)) => {
                let moved = Lease {
                    until: now.saturating_add_ms(command.invisible_ms),
                    renewal: lease.renewal.saturating_add(1),
                    auto_renew: false,
                    suspended: suspend,
                    ..lease
                };
                if !defects::is_active(Defect::ChangeIgnored) {
                    subscription.move_lease(command.queue, command.offset, lease, moved);
                }
                self.dirty.insert(RecordKey::Progress(group, topic, command.queue.get()));
                self.released(group, topic, command.queue, effects);
                ChangeOutcome::Changed { until: moved.until, renewal: moved.renewal, attempt: moved.attempt }
            }
            Err(outcome) => ChangeOutcome::Not(outcome),
        }
    }

    pub(super) fn extend(&mut self, command: &ExtendLeases) -> Vec<DeliveryOutcome> {
        command.extensions.iter().map(|extension| self.extend_one(extension)).collect()
    }

    fn extend_one(&mut self, extension: &LeaseExtension) -> DeliveryOutcome {
        let now = self.scalars.now;
        let LeaseExtension { consumer_group, topic, queue, offset, epoch, .. } = *extension;
        match self.find_delivery(consumer_group, topic, queue, offset, epoch) {
            Ok((lease, subscription)) => {
                let moved = Lease {
                    until: lease.until.max(now.saturating_add_ms(extension.invisible_ms)),
                    renewal: lease.renewal.saturating_add(1),
                    auto_renew: lease.auto_renew && extension.keep_renewing,
                    ..lease
                };
                subscription.move_lease(queue, offset, lease, moved);
                self.dirty.insert(RecordKey::Progress(consumer_group, topic, queue.get()));
                DeliveryOutcome::Done
            }
            Err(outcome) => outcome,
        }
    }

    pub(super) fn release_client(&mut self, command: ReleaseClient, effects: &mut Effects) -> u32 {
        let soon = self.scalars.now.saturating_add_ms(RELEASED_CLIENT_INVISIBLE_MS);
        let group = command.consumer_group;
        let mut released = 0;
        for (&(_, topic), subscription) in self
            .subscriptions
            .range_mut((group, TopicId(0))..)
            .take_while(|((of_group, _), _)| *of_group == group)
        {
            let held: Vec<(u32, u64, Lease)> = subscription
                .queues
                .iter()
                .flat_map(|(&queue, progress)| {
                    progress.leases.iter().map(move |(&offset, &lease)| (queue, offset, lease))
                })
                .filter(|(_, _, lease)| lease.client == command.client)
                .collect();
            for (queue, offset, lease) in held {
                let moved = Lease { until: lease.until.min(soon), auto_renew: false, ..lease };
                subscription.move_lease(QueueId(queue), QueueOffset(offset), lease, moved);
                self.dirty.insert(RecordKey::Progress(group, topic, queue));
                effects.released.insert((group, topic));
                released += 1;
            }
        }
        self.drop_lite_client(group, command.client);
        released
    }

    /// What waited for a delivery of this queue may go now.
    fn released(&self, group: ConsumerGroupId, topic: TopicId, queue: QueueId, effects: &mut Effects) {
        if is_lite(queue.get()) {
            effects.lite.extend(self.lite.readers_of_group(topic, queue.get(), group));
        } else {
            effects.released.insert((group, topic));
        }
    }

    pub(super) fn find_delivery(
        &mut self,
        group: ConsumerGroupId,
        topic: TopicId,
        queue: QueueId,
        offset: QueueOffset,
        epoch: DeliveryEpoch,
    ) -> Result<(Lease, &mut Subscription), DeliveryOutcome> {
        if !self.consumer_groups.contains_key(&group) {
            return Err(DeliveryOutcome::ConsumerGroupUnknown);
        }
        if !self.topics.contains_key(&topic) {
            return Err(DeliveryOutcome::TopicUnknown);
        }
        let subscription =
            self.subscriptions.get_mut(&(group, topic)).ok_or(DeliveryOutcome::NeverDelivered)?;
        let progress = subscription.queues.get(&queue.get()).ok_or(DeliveryOutcome::NeverDelivered)?;
        let lease = progress.delivery(offset.get(), epoch)?;
        Ok((lease, subscription))
    }
}

impl Subscription {
    pub(super) fn progress_mut(&mut self, queue: u32, min: u64) -> &mut Progress {
        let progress = self.queues.entry(queue).or_insert_with(|| Arc::new(Progress::starting_at(min)));
        Arc::make_mut(progress)
    }

    pub(super) fn move_lease(&mut self, queue: QueueId, offset: QueueOffset, lease: Lease, moved: Lease) {
        self.end_lease(queue, offset, lease);
        self.index_lease(queue.get(), offset.get(), &moved);
        self.progress_mut(queue.get(), 0).leases.insert(offset.get(), moved);
    }

    /// Enters a lease into what is derived from the leases.
    pub(super) fn index_lease(&mut self, queue: u32, offset: u64, lease: &Lease) {
        self.ends.insert((lease.until, queue, offset));
        self.attempts.insert((lease.attempt, queue, offset));
        if lease.received_by != AttemptHash(0) {
            self.receives.insert((lease.received_by, queue, offset));
        }
        if lease.order != OrderKey(0) {
            self.orders.entry((queue, lease.order)).or_default().insert(offset);
        }
    }

    pub(super) fn end_lease(&mut self, queue: QueueId, offset: QueueOffset, lease: Lease) {
        let had_end = self.ends.remove(&(lease.until, queue.get(), offset.get()));
        self.receives.remove(&(lease.received_by, queue.get(), offset.get()));
        if let Some(held) = self.orders.get_mut(&(queue.get(), lease.order)) {
            held.remove(&offset.get());
            if held.is_empty() {
                self.orders.remove(&(queue.get(), lease.order));
            }
        }
        self.attempts.remove(&(lease.attempt, queue.get(), offset.get()));
        let removed = self.progress_mut(queue.get(), 0).leases.remove(&offset.get());
        assert!(had_end && removed == Some(lease), "every lease has its end in the set of ends");
    }
}

/// The work on one lease command.
struct Granting<'a> {
    command: &'a LeaseMessages,
    now: UnixMillis,
    attempts_max: u32,
    next_epoch: &'a mut u64,
    granted: Vec<Granted>,
}

impl Granting<'_> {
    fn part(&mut self, part: &LeasePart, range: QueueRange, subscription: &mut Subscription) {
        let queue = part.queue;
        subscription.progress_mut(queue.get(), range.min);
        let ended = |subscription: &Subscription, offset: &QueueOffset, now: UnixMillis| {
            let progress = subscription.queues.get(&queue.get())?;
            progress.leases.get(&offset.get()).filter(|lease| lease.until <= now).copied()
        };
        for offset in &part.redeliver {
            // One that was delivered often enough goes to the dead letters and to no consumer.
            let lease = ended(subscription, offset, self.now);
            if let Some(lease) = lease.filter(|lease| !lease.is_last(self.attempts_max)) {
                let is_back = defects::is_active(Defect::AttemptBack);
                let next = self.new_lease(if is_back { 1 } else { lease.next_attempt() });
                subscription.move_lease(queue, *offset, lease, next);
                self.grant(queue, *offset, next);
            }
        }
        for offset in &part.finish {
            if let Some(lease) = ended(subscription, offset, self.now) {
                subscription.end_lease(queue, *offset, lease);
            }
        }
        // Messages that are not there yet cannot be seen: a wrong plan must not skip them.
        let from = part.from.get().max(range.min);
        let to = part.to.get().min(range.max);
        let mut taken: Vec<u64> = part
            .take
            .iter()
            .map(|offset| offset.get())
            .filter(|offset| (from..to).contains(offset))
            .collect();
        taken.sort_unstable();
        taken.dedup();
        let progress = subscription.progress_mut(queue.get(), range.min);
        taken.retain(|offset| progress.is_unseen(*offset));
        progress.see(from, to);
        if defects::is_active(Defect::MessageSkipped) && taken.len() > 1 {
            taken.pop();
        }
        for offset in taken {
            let lease = self.new_lease(1);
            let before = subscription.progress_mut(queue.get(), range.min).leases.insert(offset, lease);
            assert_eq!(before, None, "an unseen message has no lease");
            subscription.index_lease(queue.get(), offset, &lease);
            self.grant(queue, QueueOffset(offset), lease);
        }
    }

    fn new_lease(&mut self, attempt: u32) -> Lease {
        let epoch = DeliveryEpoch(*self.next_epoch);
        *self.next_epoch += 1;
        Lease {
            until: self.now.saturating_add_ms(if defects::is_active(Defect::ShortenedLease) {
                self.command.invisible_ms / 2
            } else {
                self.command.invisible_ms
            }),
            popped_at: self.now,
            epoch,
            client: self.command.client,
            received_by: AttemptHash::of(self.command.client, &self.command.attempt_id),
            attempt,
            renewal: 0,
            auto_renew: self.command.auto_renew,
            suspended: false,
            order: OrderKey(0),
        }
    }

    fn grant(&mut self, queue: QueueId, offset: QueueOffset, lease: Lease) {
        self.granted.push(Granted {
            queue,
            offset,
            attempt: lease.attempt,
            epoch: lease.epoch,
            until: lease.until,
        });
    }
}
