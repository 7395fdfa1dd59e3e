//! Leases of consumer groups that consume in order.
//!
//! The promise, per queue and message group: at most one receive holds messages that are not
//! acknowledged, and what is delivered next is the first of them that is not. It is kept here, in
//! apply, whatever a leader proposes:
//!
//! - a message is granted only if no lease of its order key is in force, those granted by the same
//!   command excepted;
//! - only if every delivered, unacknowledged message of the key before it is granted by the same
//!   command;
//! - and only before the ends of the first generation that the consumer group has not drained
//!   ([`generations`](super::generations)).
//!
//! Order keys are hashes: two message groups with one key wait for each other, which is slow and right.

use std::collections::BTreeSet;

use ledgermq_common::QueueId;
use ledgermq_common::QueueOffset;
use ledgermq_common::clock::UnixMillis;

use super::lite::is_lite;
use super::progress::Lease;
use super::{Applied, QueueRange, Subscription};
use crate::defects::{self, Defect};
use crate::state::answer::{Granted, Refusal};
use crate::state::command::{LeaseInOrder, OrderedMessage, OrderedPart};
use crate::state::names::{AttemptHash, DeliveryEpoch, OrderKey};
use crate::state::records::RecordKey;

impl Applied {
    pub(super) fn lease_in_order(&mut self, command: &LeaseInOrder) -> Result<Vec<Granted>, Refusal> {
        let group = self.consumer_groups.get(&command.consumer_group).ok_or(Refusal::ConsumerGroupUnknown)?;
        let attempts_max = group.settings.attempts_max;
        let topic = self.topics.get(&command.topic).ok_or(Refusal::TopicUnknown)?;
        let key = (command.consumer_group, command.topic);
        let served = self.generations.served(command.consumer_group, command.topic);
        let subscription = self.subscriptions.entry(key).or_default();
        let mut granting = Granting {
            command,
            now: self.scalars.now,
            attempts_max,
            next_epoch: &mut self.scalars.next_epoch,
            granted: Vec::new(),
        };
        for part in &command.parts {
            let queue = part.queue.get();
            // Of a lite topic: only to those who read it now.
            let range = if is_lite(queue) {
                let reads = self.lite.reads(command.consumer_group, command.topic, queue, command.client);
                reads.then(|| self.lite.range(command.topic, queue)).flatten()
            } else {
                topic.queues.get(queue as usize).map(|&range| served.bound(queue, range))
            };
            let Some(range) = range else { continue };
            granting.part(part, range, subscription);
            self.dirty.insert(RecordKey::Progress(command.consumer_group, command.topic, queue));
        }
        Ok(granting.granted)
    }
}

/// The work on one command.
struct Granting<'a> {
    command: &'a LeaseInOrder,
    now: UnixMillis,
    attempts_max: u32,
    next_epoch: &'a mut u64,
    granted: Vec<Granted>,
}

impl Granting<'_> {
    fn part(&mut self, part: &OrderedPart, range: QueueRange, subscription: &mut Subscription) {
        let queue = part.queue;
        subscription.progress_mut(queue.get(), range.min);
        for offset in &part.pass_over {
            pass_over(queue, *offset, range, self.now, subscription);
        }
        let mut granted_here = BTreeSet::new();
        let mut messages = part.messages.clone();
        messages.sort_unstable_by_key(|message| message.offset);
        messages.dedup_by_key(|message| message.offset);
        for message in messages {
            let order = OrderKey(message.order.get().max(1));
            if !may_follow(queue, message.offset, order, &granted_here, self.now, subscription) {
                continue;
            }
            let lease = match self.next_lease(queue, message, order, range, subscription) {
                Some(lease) => lease,
                None => continue,
            };
            granted_here.insert(message.offset.get());
            self.granted.push(Granted {
                queue,
                offset: message.offset,
                attempt: lease.attempt,
                epoch: lease.epoch,
                until: lease.until,
            });
        }
    }

    fn next_lease(
        &mut self,
        queue: QueueId,
        message: OrderedMessage,
        order: OrderKey,
        range: QueueRange,
        subscription: &mut Subscription,
    ) -> Option<Lease> {
        let offset = message.offset.get();
        let progress = subscription.progress_mut(queue.get(), range.min);
        if message.again {
            let ended = progress.leases.get(&offset).filter(|lease| lease.until <= self.now).copied()?;
            // Leased before the group consumed in order, and not its turn yet.
            if offset >= range.max {
                return None;
            }
            // One that was delivered often enough goes to the dead letters first.
            if ended.is_last(self.attempts_max) {
                return None;
            }
            let next = self.new_lease(ended.next_attempt(), order);
            subscription.move_lease(queue, message.offset, ended, next);
            return Some(next);
        }
        if !(range.min..range.max).contains(&offset) || !progress.is_unseen(offset) {
            return None;
        }
        progress.see(offset, offset + 1);
        let lease = self.new_lease(1, order);
        let before = subscription.progress_mut(queue.get(), range.min).leases.insert(offset, lease);
        assert_eq!(before, None, "an unseen message has no lease");
        subscription.index_lease(queue.get(), offset, &lease);
        Some(lease)
    }

    fn new_lease(&mut self, attempt: u32, order: OrderKey) -> Lease {
        let epoch = DeliveryEpoch(*self.next_epoch);
        *self.next_epoch += 1;
        Lease {
            until: self.now.saturating_add_ms(self.command.invisible_ms),
            popped_at: self.now,
            epoch,
            client: self.command.client,
            received_by: AttemptHash::of(self.command.client, &self.command.attempt_id),
            attempt,
            renewal: 0,
            auto_renew: self.command.auto_renew,
            suspended: false,
            order,
        }
    }
}

/// Nothing of the same key is held by another receive, and nothing before it waits.
fn may_follow(
    queue: QueueId,
    offset: QueueOffset,
    order: OrderKey,
    granted_here: &BTreeSet<u64>,
    now: UnixMillis,
    subscription: &Subscription,
) -> bool {
    if defects::is_active(Defect::TwoHolders) {
        return true;
    }
    let Some(progress) = subscription.queues.get(&queue.get()) else { return true };
    let held = subscription.orders.get(&(queue.get(), order)).into_iter().flatten();
    held.copied().filter(|held| *held != offset.get() && !granted_here.contains(held)).all(|held| {
        let lease = progress.leases.get(&held);
        let in_force = lease.is_some_and(|lease| lease.until > now);
        if defects::is_active(Defect::ExhaustedPassed) {
            return !in_force;
        }
        held > offset.get() && !in_force
    })
}

fn pass_over(
    queue: QueueId,
    offset: QueueOffset,
    range: QueueRange,
    now: UnixMillis,
    subscription: &mut Subscription,
) {
    let progress = subscription.progress_mut(queue.get(), range.min);
    let number = offset.get();
    if (range.min..range.max).contains(&number) && progress.is_unseen(number) {
        progress.see(number, number + 1);
    } else if let Some(ended) = progress.leases.get(&number).filter(|lease| lease.until <= now).copied() {
        subscription.end_lease(queue, offset, ended);
    }
}
