//! What order by message group must do, also while the topic grows.
//!
//! | Promise | Check |
//! |---|---|
//! | F1 a message group is delivered in the order of its sends | a message is granted only when each one of its group that was sent before it is consumed, or granted by the same entry before it |
//! | F2 one holder | nothing of a group is granted while another receive has a lease of it in force, by log time |
//! | redelivery begins at the first that is not acknowledged | the same check: what comes again is no exception to F1 |
//! | the lease is in the log before the messages leave | what a consumer is given was granted by an entry, under this very number |
//! | the same attempt id gets the same messages | of leases in force that a receive was granted, a repeat that is answered by any of them has all |
//! | F3 a group waits for its message or for its letter | a message that is given up counts as consumed, and is given up when its attempts are used up, after its lease, once; no attempt is above the maximum |
//! | G1 across generations | F1 knows nothing of queues: it holds wherever the messages lie |
//! | G2 a send is stored once, by the generation that is served | a new place lies in the queue which the generation of the send gives to the key, and that generation is open |
//! | G3 generations drain | a drain is recorded only when all before the end is consumed; at the end of a run nothing is left to drain |
//!
//! Sends of one message group come from one producer, one after the other, numbered from 0.

use std::collections::{BTreeMap, BTreeSet};

use ledgermq_broker::state::{
    Answer, AppendInOrder, ChangeOutcome, Command, ConsumerGroupId, DeadLetter, DeadLetterReason,
    DeliveryEpoch, DeliveryOutcome, Generation, Granted, LeaseInOrder, Refusal, StoredAt, TopicId,
};
use ledgermq_common::clock::UnixMillis;
use ledgermq_common::{QueueId, QueueOffset};
use xxhash_rust::xxh3::xxh3_64;

use super::Place;
use crate::front::ordered::{FIRST_QUEUES, ORDERED_GROUP, ORDERED_TOPIC, key_name, layout};

/// A message group and the number of a send in it.
pub type Step = (u8, u32);

pub fn message_id(step: Step) -> String {
    format!("o{}-{:06}", step.0, step.1)
}

fn step_of(id: &[u8]) -> Option<Step> {
    let text = std::str::from_utf8(id).ok()?.strip_prefix('o')?;
    let (key, number) = text.split_once('-')?;
    Some((key.parse().ok()?, number.parse().ok()?))
}

/// Where a generation with so many queues places a message group.
pub fn queue_of(key: u8, queues: u32) -> QueueId {
    layout(queues).place(xxh3_64(key_name(key).as_bytes())).1
}

pub struct Order {
    topic: Option<TopicId>,
    group: Option<ConsumerGroupId>,
    generation: u32,
    queues: u32,
    next: Option<Next>,
    /// The ends of generations that have ended, by queue; in order.
    ends: Vec<BTreeMap<QueueId, u64>>,
    /// So many ended generations are drained.
    drained: usize,
    next_offset: BTreeMap<QueueId, u64>,
    stored: BTreeMap<Step, Place>,
    steps: BTreeMap<Place, Step>,
    deliveries: BTreeMap<Place, Delivery>,
    /// Per message group: the numbers below this one are consumed.
    consumed_below: BTreeMap<u8, u32>,
    /// What each receive was granted, by its client and attempt id.
    receives: BTreeMap<(u64, String), BTreeSet<Place>>,
    granted: BTreeSet<(Place, DeliveryEpoch)>,
    attempts_max: u32,
    /// In the order of the dead-letter queue.
    letters: Vec<(Place, DeadLetterReason)>,
}

#[derive(Debug, Clone, Copy)]
struct Next {
    generation: u32,
    queues: u32,
    is_closed: bool,
}

#[derive(Debug, Clone, Default)]
struct Delivery {
    attempt: u32,
    epoch: DeliveryEpoch,
    until: UnixMillis,
    holder: (u64, String),
    is_consumed: bool,
}

impl Default for Order {
    fn default() -> Self {
        Self {
            topic: None,
            group: None,
            generation: 0,
            queues: FIRST_QUEUES,
            next: None,
            ends: Vec::new(),
            drained: 0,
            next_offset: BTreeMap::new(),
            stored: BTreeMap::new(),
            steps: BTreeMap::new(),
            deliveries: BTreeMap::new(),
            consumed_below: BTreeMap::new(),
            receives: BTreeMap::new(),
            granted: BTreeSet::new(),
            attempts_max: u32::MAX,
            letters: Vec::new(),
        }
    }
}

impl Order {
    pub fn place(&self, step: Step) -> Option<Place> {
        self.stored.get(&step).copied()
    }

    pub fn is_consumed(&self, step: Step) -> bool {
        self.place(step).is_some_and(|place| self.deliveries.get(&place).is_some_and(|of| of.is_consumed))
    }

    pub fn is_granted(&self, grant: &Granted) -> bool {
        self.granted.contains(&((grant.queue, grant.offset), grant.epoch))
    }

    pub fn letters(&self) -> &[(Place, DeadLetterReason)] {
        &self.letters
    }

    /// Every growth is complete and drained.
    pub fn is_settled(&self) -> bool {
        self.next.is_none() && self.drained == self.ends.len()
    }

    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// The leases in force that this receive was granted.
    pub fn held_by(&self, client: u64, attempt_id: &str, now: UnixMillis) -> BTreeSet<Place> {
        let holder = (client, attempt_id.to_owned());
        let places = self.receives.get(&holder).into_iter().flatten().copied();
        places
            .filter(|place| {
                self.deliveries
                    .get(place)
                    .is_some_and(|of| !of.is_consumed && of.until > now && of.holder == holder)
            })
            .collect()
    }

    /// Takes in an entry about the topic with order; `None` if it is about something else.
    pub fn apply(
        &mut self,
        index: u64,
        now: UnixMillis,
        command: &Command,
        answer: &Answer,
    ) -> Option<Result<(), String>> {
        let result = match (command, answer) {
            (Command::CreateTopic(create), Answer::Topic { id, .. }) if create.name == ORDERED_TOPIC => {
                self.topic = Some(*id);
                Ok(())
            }
            (Command::CreateConsumerGroup(create), Answer::ConsumerGroup { id, .. })
                if create.name == ORDERED_GROUP =>
            {
                self.group = Some(*id);
                self.attempts_max = create.settings.attempts_max;
                Ok(())
            }
            (Command::AppendInOrder(append), Answer::Stored(stored)) => self.append(append, stored),
            (Command::AppendInOrder(append), Answer::Refused(Refusal::GenerationEnded)) => {
                self.refuse(append)
            }
            (Command::LeaseInOrder(lease), Answer::Leased(granted)) => {
                granted.iter().try_for_each(|grant| self.grant(lease, now, grant))
            }
            (Command::AckMessages(acks), Answer::Acked(outcomes)) if Some(acks.topic) == self.topic => {
                for (ack, outcome) in acks.entries.iter().zip(outcomes) {
                    if matches!(outcome, DeliveryOutcome::Done) {
                        self.consume((ack.queue, ack.offset));
                    }
                }
                Ok(())
            }
            (Command::DeadLetter(command), Answer::DeadLettered { outcomes, .. })
                if Some(command.topic) == self.topic =>
            {
                self.give_up(now, command, outcomes)
            }
            (Command::ExpireMessages(expire), Answer::Expired { .. }) if Some(expire.topic) == self.topic => {
                for (queue, min) in &expire.queues {
                    let end = self.next_offset.get(queue).copied().unwrap_or(0);
                    (0..(*min).min(end)).for_each(|offset| self.consume((*queue, QueueOffset(offset))));
                }
                Ok(())
            }
            (Command::ChangeInvisible(change), Answer::Changed(outcome))
                if Some(change.topic) == self.topic =>
            {
                if let ChangeOutcome::Changed { until, .. } = outcome {
                    self.deliveries.entry((change.queue, change.offset)).or_default().until = *until;
                }
                Ok(())
            }
            (Command::PrepareGeneration(prepare), Answer::Generation(_)) => {
                if prepare.generation.get() == self.generation + 1 && self.next.is_none() {
                    let (generation, queues) = (prepare.generation.get(), prepare.queues);
                    self.next = Some(Next { generation, queues, is_closed: false });
                }
                Ok(())
            }
            // Another growth was faster, or the queues would become fewer.
            (
                Command::PrepareGeneration(_),
                Answer::Refused(
                    Refusal::GenerationUnderWay
                    | Refusal::QueuesCannotShrink
                    | Refusal::GenerationNotPrepared,
                ),
            ) => Ok(()),
            (Command::CloseGeneration(close), Answer::Generation(_)) => self.close(close.generation),
            (Command::OpenGeneration(open), Answer::Generation(_)) => self.open(open.generation),
            (Command::DrainGeneration(drain), Answer::Drained(is_drained)) => {
                if *is_drained {
                    self.drain(drain.generation)
                } else {
                    Ok(())
                }
            }
            _ => return None,
        };
        Some(result.map_err(|what| format!("entry {index}: {what}")))
    }

    fn append(&mut self, append: &AppendInOrder, stored: &[StoredAt]) -> Result<(), String> {
        if append.append.messages.len() != stored.len() {
            return Err(format!("{} messages, {} answers", append.append.messages.len(), stored.len()));
        }
        for (message, at) in append.append.messages.iter().zip(stored) {
            let step = step_of(&message.id).ok_or_else(|| format!("{:?} is no id of ours", message.id))?;
            let place = (at.queue, at.offset);
            if let Some(first) = self.stored.get(&step) {
                if *first != place || !at.repeated {
                    return Err(format!("{step:?} is at {first:?} and was stored again at {place:?}"));
                }
                continue;
            }
            let generation = append.generation.get();
            let is_open = self.next.is_none_or(|next| !next.is_closed) && generation == self.generation;
            if at.repeated || !is_open {
                return Err(format!(
                    "{step:?}, placed by generation {generation}, was stored at {place:?} while {} is served \
                     (called a repeat: {})",
                    self.generation, at.repeated
                ));
            }
            if at.queue != queue_of(step.0, self.queues) {
                return Err(format!(
                    "{step:?} was stored in queue {}, which is not that of its key",
                    at.queue
                ));
            }
            let next = self.next_offset.entry(at.queue).or_default();
            if at.offset.get() != *next {
                return Err(format!("queue {} continues at {}, not {next}", at.queue, at.offset));
            }
            *next += 1;
            self.stored.insert(step, place);
            self.steps.insert(place, step);
        }
        Ok(())
    }

    fn refuse(&self, append: &AppendInOrder) -> Result<(), String> {
        let is_open = self.next.is_none_or(|next| !next.is_closed);
        if is_open && append.generation.get() == self.generation {
            return Err(format!("a send by generation {}, which is served, was refused", append.generation));
        }
        let mut steps = append.append.messages.iter().filter_map(|message| step_of(&message.id));
        match steps.find(|step| self.stored.contains_key(step)) {
            Some(step) => Err(format!("a repeat of {step:?} was refused")),
            None => Ok(()),
        }
    }

    fn grant(&mut self, lease: &LeaseInOrder, now: UnixMillis, grant: &Granted) -> Result<(), String> {
        let place = (grant.queue, grant.offset);
        let holder = (lease.client.get(), lease.attempt_id.clone());
        let step =
            *self.steps.get(&place).ok_or_else(|| format!("{place:?} is granted, nothing is there"))?;
        let delivery = self.deliveries.entry(place).or_default();
        if delivery.is_consumed || delivery.until > now {
            return Err(format!("{step:?} at {place:?} is granted, and is {delivery:?}"));
        }
        if grant.attempt != delivery.attempt + 1 || grant.attempt > self.attempts_max || grant.until <= now {
            return Err(format!(
                "{step:?} is granted as {grant:?} after attempt {} of {}",
                delivery.attempt, self.attempts_max
            ));
        }
        *delivery = Delivery {
            attempt: grant.attempt,
            epoch: grant.epoch,
            until: grant.until,
            holder: holder.clone(),
            is_consumed: false,
        };
        self.granted.insert((place, grant.epoch));
        self.receives.entry(holder.clone()).or_default().insert(place);
        let (key, number) = step;
        let from = self.consumed_below.get(&key).copied().unwrap_or(0);
        for (other, at) in self.stored.range((key, from)..=(key, u32::MAX)) {
            let Some(state) = self.deliveries.get(at) else {
                if other.1 < number {
                    return Err(format!("{step:?} is granted before {other:?}, which was never delivered"));
                }
                continue;
            };
            if state.is_consumed || *other == step {
                continue;
            }
            if state.until > now && state.holder != holder {
                return Err(format!(
                    "{step:?} is granted to {holder:?} while {:?} holds {other:?}",
                    state.holder
                ));
            }
            if other.1 < number && (state.until <= now || state.holder != holder) {
                return Err(format!("{step:?} is granted before {other:?}, which is not acknowledged"));
            }
        }
        Ok(())
    }

    fn give_up(
        &mut self,
        now: UnixMillis,
        command: &DeadLetter,
        outcomes: &[DeliveryOutcome],
    ) -> Result<(), String> {
        if command.letters.len() != outcomes.len() {
            return Err(format!("{} letters, {} answers", command.letters.len(), outcomes.len()));
        }
        for (letter, outcome) in command.letters.iter().zip(outcomes) {
            let place = (letter.queue, letter.offset);
            let delivery = self.deliveries.entry(place).or_default();
            let is_due = !delivery.is_consumed
                && delivery.epoch == letter.epoch
                && delivery.until <= now
                && delivery.attempt >= self.attempts_max;
            if is_due != (*outcome == DeliveryOutcome::Done) {
                return Err(format!("{letter:?} is given up at {now} as {outcome:?}: {delivery:?}"));
            }
            if is_due {
                self.letters.push((place, letter.record.reason));
                self.consume(place);
            }
        }
        Ok(())
    }

    fn consume(&mut self, place: Place) {
        self.deliveries.entry(place).or_default().is_consumed = true;
        let Some(&(key, _)) = self.steps.get(&place) else { return };
        let mut below = self.consumed_below.get(&key).copied().unwrap_or(0);
        while self.is_consumed((key, below)) {
            below += 1;
        }
        self.consumed_below.insert(key, below);
    }

    fn close(&mut self, generation: Generation) -> Result<(), String> {
        match &mut self.next {
            Some(next) if generation.get() == self.generation && !next.is_closed => {
                next.is_closed = true;
                self.ends.push(self.next_offset.clone());
                Ok(())
            }
            _ if generation.get() <= self.generation => Ok(()),
            _ => Err(format!("generation {generation} ended, {} is served", self.generation)),
        }
    }

    fn open(&mut self, generation: Generation) -> Result<(), String> {
        match self.next {
            Some(next) if next.generation == generation.get() => {
                self.generation = next.generation;
                self.queues = next.queues;
                self.next = None;
                if next.is_closed {
                    Ok(())
                } else {
                    Err(format!("generation {generation} opened, none ended"))
                }
            }
            _ if generation.get() <= self.generation => Ok(()),
            _ => Err(format!("generation {generation} opened, {} is served", self.generation)),
        }
    }

    fn drain(&mut self, generation: Generation) -> Result<(), String> {
        let number = generation.get() as usize;
        let Some(ends) = self.ends.get(number) else {
            return Err(format!("generation {generation} is drained and has not ended"));
        };
        let left = self.steps.iter().find(|((queue, offset), step)| {
            offset.get() < ends.get(queue).copied().unwrap_or(0) && !self.is_consumed(**step)
        });
        if let Some((place, step)) = left {
            return Err(format!(
                "generation {generation} is drained, and {step:?} at {place:?} is not consumed"
            ));
        }
        self.drained = self.drained.max(number + 1);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use ledgermq_broker::state::command::{MessageProperties, NewMessage};
    use ledgermq_broker::state::{BodyEncoding, ClientHash, MessageType, encode_append_in_order};

    use super::*;

    fn send(order: &mut Order, step: Step, generation: u32) -> Option<Result<(), String>> {
        let queue = queue_of(step.0, order.queues);
        let offset = QueueOffset(order.next_offset.get(&queue).copied().unwrap_or(0));
        let message = NewMessage {
            queue,
            id: message_id(step),
            message_type: MessageType::Fifo,
            body_encoding: BodyEncoding::Identity,
            born_at: UnixMillis(1),
            properties: MessageProperties::default(),
            body: bytes::Bytes::new(),
        };
        let bytes = encode_append_in_order(UnixMillis(1), TopicId(1), Generation(generation), &[message]);
        let (_, command) = Command::decode(&bytes).expect("our own command");
        let stored = StoredAt { queue, offset, stored_at: UnixMillis(1), repeated: false };
        order.apply(1, UnixMillis(1), &command, &Answer::Stored(vec![stored]))
    }

    fn lease(order: &mut Order, now: u64, steps: &[(Step, u32)], client: u64) -> Result<(), String> {
        let command = Command::LeaseInOrder(LeaseInOrder {
            consumer_group: ConsumerGroupId(1),
            topic: TopicId(1),
            client: ClientHash(client),
            invisible_ms: 10,
            auto_renew: false,
            attempt_id: now.to_string(),
            parts: Vec::new(),
        });
        let granted = steps
            .iter()
            .map(|(step, attempt)| {
                let (queue, offset) = order.place(*step).expect("stored");
                let epoch = DeliveryEpoch(now);
                Granted { queue, offset, attempt: *attempt, epoch, until: UnixMillis(now + 10) }
            })
            .collect();
        order.apply(1, UnixMillis(now), &command, &Answer::Leased(granted)).expect("it is of the topic")
    }

    fn ordered(steps: u32) -> Order {
        let mut order = Order::default();
        for number in 0..steps {
            send(&mut order, (0, number), 0).expect("of the topic").expect("stored");
        }
        order
    }

    #[test]
    fn a_message_that_overtakes_one_of_its_group_is_convicted() {
        assert!(lease(&mut ordered(2), 10, &[((0, 1), 1)], 1).is_err());
        assert!(lease(&mut ordered(2), 10, &[((0, 0), 1), ((0, 1), 1)], 1).is_ok());
        let mut order = ordered(3);
        lease(&mut order, 10, &[((0, 0), 1), ((0, 1), 1)], 1).expect("in order");
        // The first lease has ended: it comes again before the third.
        assert!(lease(&mut order, 20, &[((0, 2), 1)], 2).is_err());
    }

    #[test]
    fn a_second_holder_of_a_message_group_is_convicted() {
        let mut order = ordered(2);
        lease(&mut order, 10, &[((0, 0), 1)], 1).expect("the first holder");
        assert!(lease(&mut order, 19, &[((0, 1), 1)], 2).is_err());
    }

    #[test]
    fn a_send_by_a_generation_that_is_not_served_is_convicted() {
        let mut order = ordered(1);
        assert!(send(&mut order, (0, 1), 1).expect("of the topic").is_err());
        assert!(order.open(Generation(1)).is_err());
        order.next = Some(Next { generation: 1, queues: 5, is_closed: false });
        assert!(order.open(Generation(1)).is_err(), "nothing was closed");
        let mut order = ordered(1);
        order.next = Some(Next { generation: 1, queues: 5, is_closed: false });
        order.close(Generation(0)).expect("prepared");
        assert!(send(&mut order, (0, 1), 0).expect("of the topic").is_err());
        order.open(Generation(1)).expect("closed");
        send(&mut order, (0, 1), 1).expect("of the topic").expect("served");
        assert!(order.drain(Generation(0)).is_err(), "its message is not consumed");
        assert!(!order.is_settled());
    }
}
