//! Message groups: producers that send one message of a group after the other, consumers that hold
//! groups, lose answers and ask again under the same attempt id, and an operator who gives the topic
//! more queues again and again. They place sends by what some node told them, which may be old.

use rand::seq::IndexedRandom as _;

use super::*;
use crate::front::ordered::{FIRST_QUEUES, KEYS, OrderedRequest};
use crate::model::order::{Step, message_id, queue_of};

/// Sends of each producer at most, which bounds the memory of a run.
const ORDERED_SENDS_MAX: u32 = 600;
/// Sends of each producer after the faults ended.
const ORDERED_PROBES: u32 = 6;
/// A queue list may become this long.
const QUEUES_MAX: u32 = 40;
const GROW_PAUSE_MS_MAX: u64 = 1_500;

/// How many clients a seed has, and how often the topic grows.
#[derive(Debug, Clone, Copy, Default)]
pub struct OrderedPlan {
    pub producers: usize,
    pub consumers: usize,
    pub growths: u32,
    /// How often the consumer group is given a message; then it goes to the dead letters.
    pub attempts_max: u32,
}

impl OrderedPlan {
    /// From a seed of its own, so that what else a seed means stays as it was.
    pub fn draw(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed ^ 0x006f_7264_6572);
        if random.random_bool(0.3) {
            return Self::default();
        }
        Self {
            producers: random.random_range(1..=2),
            consumers: random.random_range(1..=3),
            growths: random.random_range(0..=5),
            attempts_max: *[u32::MAX, 1, 2, 3].choose(&mut random).expect("four"),
        }
    }

    /// All clients, the operator among them.
    pub fn clients(&self) -> usize {
        self.producers + self.consumers + usize::from(self.growths > 0)
    }
}

impl Workload {
    pub(super) fn spawn_ordered(&self, tasks: &mut Vec<tokio::task::JoinHandle<()>>) {
        let plan = self.plan.ordered;
        for producer in 0..plan.producers {
            tasks.push(tokio::spawn(self.clone().produce_in_order(producer)));
        }
        for consumer in 0..plan.consumers {
            tasks.push(tokio::spawn(self.clone().consume_in_order(consumer)));
        }
        if plan.growths > 0 {
            tasks.push(tokio::spawn(self.clone().grow()));
        }
    }

    async fn produce_in_order(self, producer: usize) {
        let mut client = self.client(&format!("ordered producer {producer}"), 300 + producer as u64);
        let mut placer = Placer { generation: 0, queues: FIRST_QUEUES };
        let keys: Vec<u8> =
            (0..KEYS).filter(|key| usize::from(*key) % self.plan.ordered.producers == producer).collect();
        let mut next = [0u32; KEYS as usize];
        let mut sent: Vec<Step> = Vec::new();
        let mut probes_left = ORDERED_PROBES;
        for _ in 0..ORDERED_SENDS_MAX {
            if self.stage.is_healed() {
                if probes_left == 0 {
                    break;
                }
                probes_left -= 1;
            }
            let key = *keys.choose(&mut client.random).expect("a key for each producer");
            let number = &mut next[usize::from(key)];
            let step = (key, *number);
            *number += 1;
            client.send_in_order(step, &mut placer).await;
            sent.push(step);
            // A repeat meets its first try, however often the topic grew in between.
            if client.random.random_bool(0.15) {
                let recent = sent.len().saturating_sub(40);
                let again = sent[client.random.random_range(recent..sent.len())];
                client.send_in_order(again, &mut placer).await;
            }
            client.pause(30).await;
        }
        self.stage.ordered_producers_done.fetch_add(1, Ordering::SeqCst);
    }

    async fn consume_in_order(self, consumer: usize) {
        let hash = 400 + consumer as u64;
        let mut client = self.client(&format!("ordered consumer {consumer}"), hash);
        let mut receives = 0u32;
        loop {
            let producers_ended =
                self.stage.ordered_producers_done.load(Ordering::SeqCst) == self.plan.ordered.producers;
            let is_grown = self.stage.is_grown.load(Ordering::SeqCst) || self.plan.ordered.growths == 0;
            if producers_ended && is_grown && self.oracle.order_is_settled() {
                break;
            }
            receives += 1;
            // Where attempts end more are to be used up.
            let neglected = if self.plan.ordered.attempts_max == u32::MAX { 1 } else { 3 };
            client.receive_in_order(hash, receives, self.stage.is_healed(), neglected).await;
            client.pause(30).await;
        }
        self.stage.ordered_consumers_done.fetch_add(1, Ordering::SeqCst);
    }

    /// Repeats each growth until it is answered.
    async fn grow(self) {
        let mut client = self.client("operator", 500);
        let mut queues = FIRST_QUEUES;
        let mut left = self.plan.ordered.growths;
        while left > 0 {
            if !self.stage.is_healed() {
                client.pause(GROW_PAUSE_MS_MAX).await;
            }
            let wanted = (queues + client.random.random_range(1..=5)).min(QUEUES_MAX);
            match client.call(&Request::Ordered(OrderedRequest::Grow { queues: wanted })).await {
                Some(Response::Answered(Answer::Generation(_))) => {
                    queues = wanted;
                    left -= 1;
                }
                // One that was not answered is under way, or is done.
                Some(Response::Answered(Answer::Refused(
                    Refusal::GenerationUnderWay
                    | Refusal::GenerationNotPrepared
                    | Refusal::QueuesCannotShrink,
                ))) => {
                    queues = queues.max(wanted.saturating_sub(1)).min(QUEUES_MAX);
                    client.pause(60).await;
                    if queues == QUEUES_MAX {
                        break;
                    }
                }
                Some(Response::Answered(answer)) => {
                    self.oracle.violate(format_args!("operator: a growth was answered by {answer:?}"));
                    return;
                }
                _ => {}
            }
        }
        self.stage.is_grown.store(true, Ordering::SeqCst);
    }
}

/// What a producer believes about the topic.
#[derive(Debug, Clone, Copy)]
struct Placer {
    generation: u32,
    queues: u32,
}

impl Client {
    /// Repeats until the send is answered, placing it anew when its generation has ended.
    async fn send_in_order(&mut self, step: Step, placer: &mut Placer) {
        let (key, id) = (step.0, message_id(step));
        loop {
            let queue = queue_of(key, placer.queues).get();
            let request = OrderedRequest::Send { generation: placer.generation, queue, key, id: id.clone() };
            match self.call(&Request::Ordered(request)).await {
                Some(Response::Answered(Answer::Stored(stored))) if stored.len() == 1 => {
                    self.oracle.step_stored(&self.who, step, stored[0]);
                    return;
                }
                Some(Response::Answered(Answer::Refused(Refusal::GenerationEnded))) => {
                    self.learn(placer).await;
                }
                Some(Response::Answered(answer)) => {
                    self.oracle.violate(format_args!("{}: {id} was answered by {answer:?}", self.who));
                    return std::future::pending().await;
                }
                Some(Response::NotLeader { .. }) => {}
                Some(_) | None => {
                    self.oracle.unknown_outcome(&self.who, &id);
                    if self.random.random_bool(0.3) {
                        self.learn(placer).await;
                    }
                }
            }
        }
    }

    /// Asks whoever it is connected to; what that one knows may be older than what the client knew.
    async fn learn(&mut self, placer: &mut Placer) {
        self.pause(20).await;
        let answer = tokio::time::timeout(
            REQUEST_TIMEOUT,
            self.exchange(&Request::Ordered(OrderedRequest::Placement)),
        );
        if let Ok(Some(Response::Placement { generation, queues })) = answer.await {
            *placer = Placer { generation, queues };
        }
    }

    /// Of twelve messages `neglected` are left alone.
    async fn receive_in_order(&mut self, client: u64, number: u32, is_healed: bool, neglected: u32) {
        let attempt_id = format!("{client}-{number}");
        let request = Request::Ordered(OrderedRequest::Receive {
            messages_max: self.random.random_range(1..=8),
            invisible_ms: self.random.random_range(200..2_000),
            client,
            attempt_id: attempt_id.clone(),
        });
        let mut granted = None;
        // The answer is asked for again when it is lost, and now and then when it is not.
        for _ in 0..3 {
            let again = match self.call(&request).await {
                Some(Response::Answered(Answer::Leased(leases))) => {
                    self.oracle.steps_received(&self.who, &leases, client, &attempt_id, granted.is_some());
                    granted = Some(leases);
                    self.random.random_bool(0.2)
                }
                Some(Response::Answered(answer)) => {
                    self.oracle.violate(format_args!("{}: a receive was answered by {answer:?}", self.who));
                    return;
                }
                _ => true,
            };
            if !again {
                break;
            }
        }
        for grant in granted.unwrap_or_default() {
            let entry = AckEntry { queue: grant.queue, offset: grant.offset, epoch: grant.epoch };
            match self.random.random_range(0..12) {
                share if share < neglected && !is_healed => {}
                11 if !is_healed => {
                    let invisible_ms = self.random.random_range(1..1_500);
                    self.call(&Request::Ordered(OrderedRequest::Change { entry, invisible_ms })).await;
                }
                _ => {
                    self.call(&Request::Ordered(OrderedRequest::Ack(entry))).await;
                }
            }
        }
    }
}
