//! Planning a receive on the leader: which messages to lease, read from the applied state.
//!
//! A plan is a proposal, nothing more: apply checks it again and grants what still holds. Between
//! planning and apply the planned messages are reserved in memory, so that two receives at the same
//! time do not plan the same ones and the second comes back empty. A reservation lives as long as its
//! [`LeasePlan`]; losing one (a crash, a new leader) costs nothing.
//!
//! Order: messages whose lease ended first (oldest end first), then unseen ones, starting at
//! another queue each time so that no queue starves. In a topic with priorities the queue is the
//! priority: the highest goes first, its ended leases before its unseen messages, in as many receives of
//! a hundred as the consumer group's priority factor says.
//!
//! What the receive does not want is passed over by the same entry, unless another member of the group
//! may want it: then it is left where it is ([`left`]).

mod left;
mod order;
mod reservations;

use std::collections::BTreeMap;
use std::sync::Arc;

use ledgermq_common::clock::UnixMillis;
use ledgermq_common::{QueueId, QueueOffset};

use super::applied::Subscription;
use super::command::{Command, LeaseMessages, LeasePart, tag_code};
use super::consume_queue::{IndexEntry, QueueKey};
use super::machine::BrokerState;
use super::names::{ClientHash, ConsumerGroupId, MessageType, TopicId};
pub use left::{HOLES_OF_QUEUE_MAX, LeftPlaces, OthersWant};
pub use order::{ORDER_SCAN_ENTRIES_MAX, OrderOf, OrderedPlan, PlannedInOrder};
pub(crate) use reservations::Reservations;
use reservations::Reserved;

/// Index entries one plan looks at; a filter that matches little is served in steps of this.
pub const PLAN_SCAN_ENTRIES_MAX: u64 = 4_096;
/// A plan without a message is worth an entry in the log once it moves the group on by this much.
pub const PLAN_SKIPPED_ENTRIES_MIN: u64 = 1_024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueChoice {
    All,
    One(QueueId),
}

/// Which tags a consumer wants. The index knows codes; the text is compared after reading.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TagFilter {
    All,
    /// The wanted tags by code; the texts that share a code are listed together.
    Tags(BTreeMap<u32, Vec<String>>),
}

#[derive(Debug, Clone)]
pub struct ReceiveRequest {
    pub consumer_group: ConsumerGroupId,
    pub topic: TopicId,
    pub queues: QueueChoice,
    pub messages_max: u32,
    /// The leader's clock.
    pub now: UnixMillis,
    pub filter: TagFilter,
    pub others: OthersWant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlannedMessage {
    pub queue: QueueId,
    pub offset: QueueOffset,
    pub entry: IndexEntry,
    /// What the attempt will be if the plan is granted as it is.
    pub attempt: u32,
}

impl TagFilter {
    pub fn tags<'a>(tags: impl IntoIterator<Item = &'a str>) -> Self {
        let mut by_code: BTreeMap<u32, Vec<String>> = BTreeMap::new();
        for tag in tags {
            by_code.entry(tag_code(tag)).or_default().push(tag.to_owned());
        }
        Self::Tags(by_code)
    }

    /// Whether a message with this tag code may match.
    pub fn may_match(&self, tag_code: u32) -> bool {
        match self {
            Self::All => true,
            Self::Tags(by_code) => by_code.contains_key(&tag_code),
        }
    }

    /// Whether a message with this tag matches.
    pub fn matches(&self, tag: Option<&str>) -> bool {
        match (self, tag) {
            (Self::All, _) => true,
            (Self::Tags(_), None) => false,
            (Self::Tags(by_code), Some(tag)) => {
                by_code.get(&tag_code(tag)).is_some_and(|texts| texts.iter().any(|text| text == tag))
            }
        }
    }
}

#[derive(Debug)]
struct PlannedPart {
    queue: QueueId,
    from: u64,
    to: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Decision {
    Deliver,
    /// Consumed by the same entry.
    Reject,
    /// Stays as it is.
    Leave,
}

#[derive(Debug)]
struct Choice {
    /// Index into the parts of the plan for unseen messages; `None` for a redelivery.
    part: Option<usize>,
    decision: Decision,
}

/// Messages to be leased, reserved until this is dropped. Keep it until the proposal is answered.
pub struct LeasePlan {
    state: Arc<BrokerState>,
    consumer_group: ConsumerGroupId,
    topic: TopicId,
    parts: Vec<PlannedPart>,
    messages: Vec<PlannedMessage>,
    choices: Vec<Choice>,
    reserved: Reserved,
    granted: bool,
}

impl LeasePlan {
    /// May be empty: then proposing the plan moves the group past messages it does not want.
    pub fn messages(&self) -> &[PlannedMessage] {
        &self.messages
    }

    /// The message does not match after all (its tag has the code of a wanted one): it will be
    /// consumed by the same entry instead of being delivered.
    pub fn reject(&mut self, queue: QueueId, offset: QueueOffset) {
        for (message, choice) in self.messages.iter().zip(&mut self.choices) {
            if message.queue == queue && message.offset == offset {
                choice.decision = Decision::Reject;
            }
        }
    }

    /// As [`Self::reject`], for the message at this position of [`Self::messages`].
    pub fn reject_nth(&mut self, position: usize) {
        if let Some(choice) = self.choices.get_mut(position) {
            choice.decision = Decision::Reject;
        }
    }

    /// The message at this position does not match, and another member of the group wants it.
    pub fn leave_nth(&mut self, position: usize) {
        if let Some(choice) = self.choices.get_mut(position) {
            choice.decision = Decision::Leave;
        }
    }

    /// How many messages are to be delivered.
    pub fn delivers(&self) -> usize {
        self.choices.iter().filter(|choice| choice.decision == Decision::Deliver).count()
    }

    /// Holes that the consumer group has in a queue now.
    pub fn holes_of(&self, queue: QueueId) -> usize {
        let applied = self.state.applied_state();
        let subscription = applied.subscriptions.get(&(self.consumer_group, self.topic));
        let progress = subscription.and_then(|subscription| subscription.queues.get(&queue.get()));
        progress.map_or(0, |progress| progress.holes.len())
    }

    /// Gives up all but the first `count` messages; other receives may plan them at once.
    pub fn keep_first(&mut self, count: usize) {
        if count >= self.messages.len() {
            return;
        }
        let dropped = self.messages.split_off(count);
        let choices = self.choices.split_off(count);
        let mut ended = 0;
        for (message, choice) in dropped.iter().zip(&choices) {
            match choice.part.and_then(|part| self.parts.get_mut(part)) {
                Some(part) => part.to = part.to.min(message.offset.get()),
                None => ended += 1,
            }
        }
        // Redeliveries are planned in the order they are reserved.
        let freed_ended = self.reserved.ended.split_off(self.reserved.ended.len() - ended);
        let kept: Vec<_> = self.parts.iter().map(|part| (part.queue.get(), part.from, part.to)).collect();
        {
            let lane = self.state.reservations().lane(self.consumer_group, self.topic);
            lane.lock().cut(&freed_ended, &kept);
        }
        self.reserved.unseen = kept.into_iter().filter(|(_, from, to)| from < to).collect();
        self.state.observer().leases_released(self.consumer_group, self.topic);
    }

    pub fn is_rejected(&self, queue: QueueId, offset: QueueOffset) -> bool {
        self.messages.iter().zip(&self.choices).any(|(message, choice)| {
            message.queue == queue && message.offset == offset && choice.decision == Decision::Reject
        })
    }

    /// The command to propose.
    pub fn command(
        &self,
        client: ClientHash,
        invisible_ms: u64,
        auto_renew: bool,
        attempt_id: &str,
    ) -> Command {
        // Each examined range, in pieces where messages are left inside.
        let mut pieces: Vec<Vec<LeasePart>> =
            self.parts.iter().map(|part| vec![empty_part(part.queue, part.from, part.to)]).collect();
        let mut again: BTreeMap<QueueId, LeasePart> = BTreeMap::new();
        for (message, choice) in self.messages.iter().zip(&self.choices) {
            let offset = message.offset;
            let pieces = choice.part.and_then(|part| pieces.get_mut(part));
            match (pieces, choice.decision) {
                (Some(pieces), Decision::Deliver) => {
                    if let Some(piece) = pieces.last_mut() {
                        piece.take.push(offset);
                    }
                }
                // An unseen message inside the examined range and not taken counts as consumed.
                (Some(_), Decision::Reject) => {}
                (Some(pieces), Decision::Leave) => {
                    // Messages of a part come in the order of their offsets.
                    if let Some(piece) = pieces.last_mut() {
                        let end = piece.to;
                        piece.to = offset;
                        let rest = empty_part(message.queue, offset.get() + 1, end.get());
                        pieces.push(rest);
                    }
                }
                (None, Decision::Deliver) => again_of(&mut again, message.queue).redeliver.push(offset),
                (None, Decision::Reject) => again_of(&mut again, message.queue).finish.push(offset),
                (None, Decision::Leave) => {}
            }
        }
        let parts = pieces.into_iter().flatten().filter(|part| part.from < part.to);
        let parts = again.into_values().chain(parts).collect();
        Command::LeaseMessages(LeaseMessages {
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

impl Drop for LeasePlan {
    fn drop(&mut self) {
        let reserved = std::mem::take(&mut self.reserved);
        self.state.reservations().release(self.consumer_group, self.topic, &reserved);
        if !self.granted {
            self.state.observer().leases_released(self.consumer_group, self.topic);
        }
    }
}

impl std::fmt::Debug for LeasePlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LeasePlan").field("parts", &self.parts).field("messages", &self.messages).finish()
    }
}

fn again_of(again: &mut BTreeMap<QueueId, LeasePart>, queue: QueueId) -> &mut LeasePart {
    again.entry(queue).or_insert_with(|| empty_part(queue, 0, 0))
}

fn empty_part(queue: QueueId, from: u64, to: u64) -> LeasePart {
    LeasePart {
        queue,
        from: QueueOffset(from),
        to: QueueOffset(to),
        take: Vec::new(),
        redeliver: Vec::new(),
        finish: Vec::new(),
    }
}

/// What the state offers, taken under the lock in one go.
#[derive(Debug, Default)]
struct Candidates {
    /// Messages whose lease ended: queue, offset, attempt of the next delivery.
    ended: Vec<(u32, u64, u32)>,
    /// Unseen ranges, in the order in which they are to be examined.
    unseen: Vec<(u32, u64, u64)>,
    /// By queue: holes that may still be made for others.
    holes_left: BTreeMap<u32, usize>,
    /// Queues are priorities: the greatest first.
    by_priority: bool,
}

#[derive(Debug, Clone, Copy)]
enum Candidate {
    /// Queue, offset, attempt.
    Ended(u32, u64, u32),
    /// Queue, from, to.
    Unseen(u32, u64, u64),
}

impl Candidate {
    fn queue(self) -> u32 {
        match self {
            Self::Ended(queue, ..) | Self::Unseen(queue, ..) => queue,
        }
    }
}

impl Candidates {
    fn in_turn(self) -> Vec<Candidate> {
        let ended = self.ended.into_iter().map(|(queue, offset, n)| Candidate::Ended(queue, offset, n));
        let unseen = self.unseen.into_iter().map(|(queue, from, to)| Candidate::Unseen(queue, from, to));
        let mut in_turn: Vec<Candidate> = ended.chain(unseen).collect();
        if self.by_priority {
            // Stable: ended ones of a queue stay before its unseen ones.
            in_turn.sort_by_key(|candidate| std::cmp::Reverse(candidate.queue()));
        }
        in_turn
    }
}

impl BrokerState {
    /// Plans a receive. `None`: there is nothing for this group now, or the topic or group is gone.
    pub fn plan_receive(self: &Arc<Self>, request: &ReceiveRequest) -> Option<LeasePlan> {
        let messages_max = request.messages_max as usize;
        let mut plan = LeasePlan {
            state: Arc::clone(self),
            consumer_group: request.consumer_group,
            topic: request.topic,
            parts: Vec::new(),
            messages: Vec::new(),
            choices: Vec::new(),
            reserved: Reserved::default(),
            granted: true,
        };
        let mut scanned = 0;
        let mut skipped = 0;
        let mut is_left = false;
        let is_empty = {
            // One plan of a subscription at a time: what it finds free is still free when it reserves.
            let lane = self.reservations().lane(request.consumer_group, request.topic);
            let mut lane = lane.lock();
            let mut candidates = self.candidates(request, &lane)?;
            let mut holes_left = std::mem::take(&mut candidates.holes_left);
            for candidate in candidates.in_turn() {
                match candidate {
                    Candidate::Ended(queue, offset, attempt) => {
                        if plan.messages.len() >= messages_max {
                            break;
                        }
                        let Some(entry) = self.entry_of(request.topic, queue, offset) else { continue };
                        if !request.filter.may_match(entry.tag_code) {
                            continue;
                        }
                        let (queue_id, at) = (QueueId(queue), QueueOffset(offset));
                        plan.push(None, PlannedMessage { queue: queue_id, offset: at, entry, attempt });
                        plan.reserved.ended.push((queue, offset));
                    }
                    Candidate::Unseen(queue, from, to) => {
                        let left = messages_max.saturating_sub(plan.messages.len());
                        let examine =
                            examined_at_most(&request.filter, left).min(PLAN_SCAN_ENTRIES_MAX - scanned);
                        if examine == 0 {
                            break;
                        }
                        let to = to.min(from.saturating_add(examine));
                        let mut unlimited = usize::MAX;
                        let holes_left = holes_left.get_mut(&queue).unwrap_or(&mut unlimited);
                        let examined = self.plan_unseen(request, &mut plan, (queue, from, to), holes_left);
                        skipped += examined.unwanted;
                        scanned += examined.end - from;
                        is_left |= examined.is_left;
                    }
                }
            }
            let is_empty = plan.messages.is_empty() && skipped < PLAN_SKIPPED_ENTRIES_MIN;
            if !is_empty {
                lane.reserve(&plan.reserved);
            }
            is_empty
        };
        if is_left {
            // Whoever was woken for it was not the one who wants it.
            self.observer().leases_released(request.consumer_group, request.topic);
        }
        if is_empty {
            plan.reserved = Reserved::default();
            return None;
        }
        plan.granted = false;
        Some(plan)
    }

    /// Plans unseen messages of one queue, in parts around what is left for others.
    fn plan_unseen(
        &self,
        request: &ReceiveRequest,
        plan: &mut LeasePlan,
        (queue, from, to): (u32, u64, u64),
        holes_left: &mut usize,
    ) -> Examined {
        let messages_max = request.messages_max as usize;
        let view = self.index_view(QueueKey::new(request.topic, QueueId(queue)), from, to);
        let mut examined = Examined { end: from, unwanted: 0, is_left: false };
        let mut part_from = from;
        let others = &request.others;
        let mut after_left = !others.is_nothing() && from > 0 && others.left.contains(queue, from - 1);
        for (offset, entry) in view.read() {
            if offset != examined.end || plan.messages.len() >= messages_max {
                break;
            }
            let is_wanted = request.filter.may_match(entry.tag_code);
            if !is_wanted && others.may_match(entry.tag_code) {
                plan.close_part(queue, part_from, offset);
                examined.is_left |= others.left.add(queue, offset);
                examined.end += 1;
                part_from = examined.end;
                after_left = true;
                continue;
            }
            // What lies before this one becomes a hole.
            if std::mem::take(&mut after_left) {
                let Some(left) = holes_left.checked_sub(1) else { break };
                *holes_left = left;
            }
            examined.end += 1;
            if is_wanted {
                let (queue, offset) = (QueueId(queue), QueueOffset(offset));
                let part = plan.parts.len();
                plan.push(Some(part), PlannedMessage { queue, offset, entry, attempt: 1 });
            } else {
                examined.unwanted += 1;
            }
        }
        plan.close_part(queue, part_from, examined.end);
        examined
    }

    fn candidates(&self, request: &ReceiveRequest, lane: &reservations::Lane) -> Option<Candidates> {
        let applied = self.applied_state();
        let topic = applied.topics.get(&request.topic)?;
        let attempts_max = applied.consumer_groups.get(&request.consumer_group)?.settings.attempts_max;
        let now = applied.scalars.now.max(request.now);
        let fresh = Subscription::default();
        let subscription =
            applied.subscriptions.get(&(request.consumer_group, request.topic)).unwrap_or(&fresh);
        let mut candidates = Candidates::default();
        let is_chosen = |queue: u32| match request.queues {
            QueueChoice::All => true,
            QueueChoice::One(chosen) => chosen.get() == queue,
        };
        let ended = subscription.ends.iter().take_while(|(until, _, _)| *until <= now);
        let others = &request.others;
        for &(_, queue, offset) in ended.take(PLAN_SCAN_ENTRIES_MAX as usize) {
            if !is_chosen(queue) || lane.has_ended(queue, offset) {
                continue;
            }
            if !others.is_nothing() && others.left.contains(queue, offset) {
                continue;
            }
            let lease = subscription.queues.get(&queue).and_then(|progress| progress.leases.get(&offset));
            // One that was delivered often enough waits for its way to the dead letters.
            if let Some(lease) = lease.filter(|lease| !lease.is_last(attempts_max)) {
                candidates.ended.push((queue, offset, lease.next_attempt()));
            }
        }
        let queues = u32::try_from(topic.queues.len()).unwrap_or(u32::MAX);
        let has_priorities = topic.settings.message_type == MessageType::Priority;
        if has_priorities && request.queues == QueueChoice::All {
            let factor = applied.lite.attributes(request.consumer_group).priority_factor;
            candidates.by_priority = self.reservations().next_honours_priority(factor);
        }
        let (first, count) = match request.queues {
            QueueChoice::All => (self.reservations().next_first_queue(queues), queues),
            QueueChoice::One(queue) => (queue.get(), 1),
        };
        let mut found = 0;
        let mut holes_left = BTreeMap::new();
        let enough = examined_at_most(&request.filter, request.messages_max as usize);
        let by_priority = candidates.by_priority;
        for step in 0..count {
            let queue = if by_priority {
                queues - 1 - step
            } else {
                ((u64::from(first) + u64::from(step)) % u64::from(queues.max(1))) as u32
            };
            if found >= enough || !is_chosen(queue) {
                break;
            }
            let Some(range) = topic.queues.get(queue as usize) else { break };
            if range.max == range.min {
                continue;
            }
            let mut add = |from: u64, to: u64| {
                let mut take = |from: u64, to: u64| {
                    found += to - from;
                    candidates.unseen.push((queue, from, to));
                };
                lane.free(queue, from.max(range.min), to.min(range.max), |from, to| {
                    if others.is_nothing() {
                        take(from, to);
                    } else {
                        others.left.unknown(queue, from, to, &mut take);
                    }
                });
            };
            let progress = subscription.queues.get(&queue);
            if !others.is_nothing() {
                let holes = progress.map_or(0, |progress| progress.holes.len());
                holes_left.insert(queue, HOLES_OF_QUEUE_MAX.saturating_sub(holes));
            }
            match progress {
                Some(progress) => progress.unseen(range.max).for_each(|(from, to)| add(from, to)),
                None => add(range.min, range.max),
            }
        }
        candidates.holes_left = holes_left;
        Some(candidates)
    }

    fn entry_of(&self, topic: TopicId, queue: u32, offset: u64) -> Option<IndexEntry> {
        let view = self.index_view(QueueKey::new(topic, QueueId(queue)), offset, offset + 1);
        view.read().first().filter(|(found, _)| *found == offset).map(|(_, entry)| *entry)
    }
}

/// How far a plan looked in one range, and what it found beside what it takes.
struct Examined {
    end: u64,
    unwanted: u64,
    /// Something was left for others that was not known to be for them.
    is_left: bool,
}

impl LeasePlan {
    fn close_part(&mut self, queue: u32, from: u64, to: u64) {
        if from < to {
            self.parts.push(PlannedPart { queue: QueueId(queue), from, to });
            self.reserved.unseen.push((queue, from, to));
        }
    }

    fn push(&mut self, part: Option<usize>, message: PlannedMessage) {
        self.messages.push(message);
        self.choices.push(Choice { part, decision: Decision::Deliver });
    }
}

/// Without a filter every entry looked at is taken.
fn examined_at_most(filter: &TagFilter, messages: usize) -> u64 {
    match filter {
        TagFilter::All => messages as u64,
        TagFilter::Tags(_) if messages == 0 => 0,
        TagFilter::Tags(_) => PLAN_SCAN_ENTRIES_MAX,
    }
}
