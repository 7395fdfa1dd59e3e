//! Planning a receive of a consumer group that consumes in order.
//!
//! Messages are looked at in the order of their offsets. One is planned unless its order key is
//! blocked: a lease of the key is in force, or another plan that is not answered yet holds the key.
//! What is blocked is left where it is, unseen, and the search goes on behind it, so a message group
//! that is stuck holds up nobody else; it does so for [`ORDER_SCAN_ENTRIES_MAX`] messages of a queue,
//! which bounds the holes in the group's progress and the work of one plan.
//!
//! A message that another member of the group wants by another filter blocks its key as well: what comes
//! behind it in its message group has to wait for it.
//!
//! Of a topic that grew, a queue is looked at up to the end of the first generation that the group has
//! not drained.
//!
//! The index does not know message groups; whoever asks for a plan says what the key of an entry is.

use std::collections::BTreeSet;
use std::sync::Arc;

use hashbrown::HashSet;
use ledgermq_common::{QueueId, QueueOffset};

use super::reservations::{Lane, Reserved};
use super::{QueueChoice, ReceiveRequest};
use crate::defects::{self, Defect};
use crate::state::command::{Command, LeaseInOrder, OrderedMessage, OrderedPart};
use crate::state::consume_queue::{IndexEntry, QueueKey};
use crate::state::machine::BrokerState;
use crate::state::names::{ClientHash, ConsumerGroupId, OrderKey, TopicId};
use crate::state::planner::PLAN_SKIPPED_ENTRIES_MIN;

/// Unseen messages of one queue that one plan looks at.
pub const ORDER_SCAN_ENTRIES_MAX: u64 = 2_048;

/// The order key of the message at a place; `None` if it cannot be read now.
pub type OrderOf<'a> = &'a mut dyn FnMut(QueueId, QueueOffset, IndexEntry) -> Option<OrderKey>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlannedInOrder {
    pub queue: QueueId,
    pub offset: QueueOffset,
    pub entry: IndexEntry,
    pub order: OrderKey,
    /// Its lease ended; otherwise it was never delivered.
    pub again: bool,
}

/// Messages to be leased in order; their keys are reserved until this is dropped.
pub struct OrderedPlan {
    state: Arc<BrokerState>,
    consumer_group: ConsumerGroupId,
    topic: TopicId,
    messages: Vec<PlannedInOrder>,
    pass_over: Vec<(QueueId, QueueOffset)>,
    reserved: Reserved,
    granted: bool,
}

impl OrderedPlan {
    /// May be empty: then proposing the plan moves the group past messages it does not want.
    pub fn messages(&self) -> &[PlannedInOrder] {
        &self.messages
    }

    /// These do not match after all: they will be consumed by the same entry.
    pub fn reject(&mut self, places: &[(QueueId, QueueOffset)]) {
        let rejected: BTreeSet<_> = places.iter().copied().collect();
        let planned = std::mem::take(&mut self.messages);
        let (pass_over, messages): (Vec<_>, Vec<_>) =
            planned.into_iter().partition(|message| rejected.contains(&(message.queue, message.offset)));
        self.messages = messages;
        self.pass_over.extend(pass_over.iter().map(|message| (message.queue, message.offset)));
    }

    /// These are for other members of the group: they stay as they are.
    pub fn leave(&mut self, places: &[(QueueId, QueueOffset)]) {
        let left: BTreeSet<_> = places.iter().copied().collect();
        self.messages.retain(|message| !left.contains(&(message.queue, message.offset)));
    }

    /// Whether proposing it would change anything.
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty() && self.pass_over.is_empty()
    }

    /// Leaves out the last messages; they are planned again by the next receive.
    pub fn truncate(&mut self, messages_max: usize) {
        self.messages.truncate(messages_max);
    }

    /// The command to propose.
    pub fn command(
        &self,
        client: ClientHash,
        invisible_ms: u64,
        auto_renew: bool,
        attempt_id: &str,
    ) -> Command {
        let mut parts: Vec<OrderedPart> = Vec::new();
        let mut part_of = |queue: QueueId| match parts.iter().position(|part| part.queue == queue) {
            Some(at) => at,
            None => {
                parts.push(OrderedPart { queue, messages: Vec::new(), pass_over: Vec::new() });
                parts.len() - 1
            }
        };
        let at: Vec<usize> = self.messages.iter().map(|message| part_of(message.queue)).collect();
        let passed_at: Vec<usize> = self.pass_over.iter().map(|(queue, _)| part_of(*queue)).collect();
        for (message, at) in self.messages.iter().zip(at) {
            let PlannedInOrder { offset, order, again, .. } = *message;
            if let Some(part) = parts.get_mut(at) {
                part.messages.push(OrderedMessage { offset, order, again });
            }
        }
        for ((_, offset), at) in self.pass_over.iter().zip(passed_at) {
            if let Some(part) = parts.get_mut(at) {
                part.pass_over.push(*offset);
            }
        }
        Command::LeaseInOrder(LeaseInOrder {
            consumer_group: self.consumer_group,
            topic: self.topic,
            client,
            invisible_ms,
            auto_renew,
            attempt_id: attempt_id.to_owned(),
            parts,
        })
    }

    /// The proposal was answered and everything planned was granted: nobody need look again.
    pub fn settle(mut self) {
        self.granted = true;
    }
}

impl Drop for OrderedPlan {
    fn drop(&mut self) {
        let reserved = std::mem::take(&mut self.reserved);
        self.state.reservations().release(self.consumer_group, self.topic, &reserved);
        if !self.granted {
            self.state.observer().leases_released(self.consumer_group, self.topic);
        }
    }
}

impl std::fmt::Debug for OrderedPlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OrderedPlan")
            .field("messages", &self.messages)
            .field("pass_over", &self.pass_over)
            .finish_non_exhaustive()
    }
}

/// One queue as the state had it at one moment.
#[derive(Debug, Default)]
struct QueueState {
    queue: u32,
    blocked: HashSet<OrderKey>,
    /// Ended leases: offset, order key.
    ended: Vec<(u64, OrderKey)>,
    /// Unseen ranges in order, cut to what one plan looks at.
    unseen: Vec<(u64, u64)>,
}

impl BrokerState {
    /// Plans a receive. `None`: there is nothing for this group now, or the topic or group is gone.
    pub fn plan_ordered_receive(
        self: &Arc<Self>,
        request: &ReceiveRequest,
        order_of: OrderOf<'_>,
    ) -> Option<OrderedPlan> {
        let mut plan = OrderedPlan {
            state: Arc::clone(self),
            consumer_group: request.consumer_group,
            topic: request.topic,
            messages: Vec::new(),
            pass_over: Vec::new(),
            reserved: Reserved::default(),
            granted: true,
        };
        let mut is_left = false;
        let is_idle = {
            // One plan of a subscription at a time: a key that is free now is free when it is reserved.
            let lane = self.reservations().lane(request.consumer_group, request.topic);
            let mut lane = lane.lock();
            for queue in self.queues_in_turn(request)? {
                if plan.messages.len() >= request.messages_max as usize {
                    break;
                }
                let Some(state) = self.queue_state(request, queue, &lane) else { continue };
                is_left |= self.plan_queue(request, state, order_of, &mut plan);
            }
            let passed_over = plan.pass_over.len() as u64;
            let is_idle = plan.messages.is_empty() && passed_over < PLAN_SKIPPED_ENTRIES_MIN;
            if !is_idle {
                let keys: BTreeSet<(u32, OrderKey)> =
                    plan.messages.iter().map(|message| (message.queue.get(), message.order)).collect();
                plan.reserved.orders = keys.into_iter().collect();
                lane.reserve(&plan.reserved);
            }
            is_idle
        };
        if is_left {
            // Whoever was woken for it was not the one who wants it.
            self.observer().leases_released(request.consumer_group, request.topic);
        }
        if is_idle {
            return None;
        }
        plan.granted = false;
        Some(plan)
    }

    fn queues_in_turn(&self, request: &ReceiveRequest) -> Option<Vec<u32>> {
        let applied = self.applied_state();
        applied.consumer_groups.get(&request.consumer_group)?;
        let queues = u32::try_from(applied.topics.get(&request.topic)?.queues.len()).unwrap_or(u32::MAX);
        if let QueueChoice::One(queue) = request.queues {
            return Some(vec![queue.get()]);
        }
        let first = self.reservations().next_first_queue(queues);
        Some((first..queues).chain(0..first).collect())
    }

    fn queue_state(&self, request: &ReceiveRequest, queue: u32, lane: &Lane) -> Option<QueueState> {
        let applied = self.applied_state();
        let attempts_max = applied.consumer_groups.get(&request.consumer_group)?.settings.attempts_max;
        let range = *applied.topics.get(&request.topic)?.queues.get(queue as usize)?;
        let range = applied.generations.served(request.consumer_group, request.topic).bound(queue, range);
        let now = applied.scalars.now.max(request.now);
        let mut state =
            QueueState { queue, blocked: lane.orders_of(queue).collect(), ..QueueState::default() };
        let mut left = ORDER_SCAN_ENTRIES_MAX;
        let mut add = |from: u64, to: u64| {
            let (from, to) = (from.max(range.min), to.min(range.max));
            let to = to.min(from.saturating_add(left));
            if from < to {
                left -= to - from;
                state.unseen.push((from, to));
            }
        };
        let subscription = applied.subscriptions.get(&(request.consumer_group, request.topic));
        let Some(progress) = subscription.and_then(|subscription| subscription.queues.get(&queue)) else {
            add(range.min, range.max);
            return (!state.unseen.is_empty()).then_some(state);
        };
        progress.unseen(range.max).for_each(|(from, to)| add(from, to));
        for (&offset, lease) in &progress.leases {
            if offset >= range.max {
                // Leased before the group consumed in order; not its turn before the generation is drained.
                continue;
            }
            if lease.until <= now && !lease.is_last(attempts_max) {
                state.ended.push((offset, lease.order));
            } else if lease.order == OrderKey(0) {
                // From the time before the group consumed in order: nobody knows what it holds up.
                return None;
            } else if lease.until > now || !defects::is_active(Defect::ExhaustedPassed) {
                // Held, or on its way to the dead letters.
                state.blocked.insert(lease.order);
            }
        }
        (!state.unseen.is_empty() || !state.ended.is_empty()).then_some(state)
    }

    /// Takes what is free of one queue, in the order of offsets. True: something was left for others that
    /// was not known to be for them.
    fn plan_queue(
        &self,
        request: &ReceiveRequest,
        mut state: QueueState,
        order_of: OrderOf<'_>,
        plan: &mut OrderedPlan,
    ) -> bool {
        let others = &request.others;
        let mut is_left = false;
        let queue = QueueId(state.queue);
        let key = QueueKey::new(request.topic, queue);
        let mut ended = std::mem::take(&mut state.ended).into_iter().peekable();
        let unseen = std::mem::take(&mut state.unseen);
        let unseen = unseen.into_iter().flat_map(|(from, to)| self.index_view(key, from, to).read());
        let mut unseen = unseen.peekable();
        while plan.messages.len() < request.messages_max as usize {
            let again = match (ended.peek(), unseen.peek()) {
                (None, None) => return is_left,
                (Some((ended, _)), Some((unseen, _))) => ended < unseen,
                (ended, _) => ended.is_some(),
            };
            let (offset, entry, known) = if again {
                let Some((offset, order)) = ended.next() else { return is_left };
                let Some(entry) = self.entry_of(request.topic, state.queue, offset) else { return is_left };
                (QueueOffset(offset), entry, (order != OrderKey(0)).then_some(order))
            } else {
                let Some((offset, entry)) = unseen.next() else { return is_left };
                (QueueOffset(offset), entry, None)
            };
            let is_wanted = request.filter.may_match(entry.tag_code);
            let is_for_others = !others.is_nothing()
                && (others.left.contains(state.queue, offset.get())
                    || (!is_wanted && others.may_match(entry.tag_code)));
            if !is_wanted && !is_for_others {
                plan.pass_over.push((queue, offset));
                continue;
            }
            // Without its key nothing behind it may be delivered: it might belong to the same group.
            let Some(order) = known.or_else(|| order_of(queue, offset, entry)) else { return is_left };
            if is_for_others {
                is_left |= others.left.add(state.queue, offset.get());
                state.blocked.insert(order);
                continue;
            }
            if !state.blocked.contains(&order) || defects::is_active(Defect::TwoHolders) {
                plan.messages.push(PlannedInOrder { queue, offset, entry, order, again });
            }
        }
        is_left
    }
}
