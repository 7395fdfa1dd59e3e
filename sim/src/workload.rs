//! The clients: producers that repeat a send under its id until it is answered, and consumers that
//! acknowledge most of what they get, move the visibility of some and forget the rest.
//!
//! Some of a producer's halves are decided by nobody: they are to be checked until they are parked. Some
//! are left to another producer, which is asked.
//! A reader sends a message and asks every node how far it is: it is to hear of all that was answered.
//!
//! They run on one host of their own and reach the brokers over the simulated network, so answers
//! are lost, late and in doubt. Everything they are told goes to the oracle.

mod accounts;
mod answering;
mod offsets;
mod ordered;
mod transact;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use ledgermq_broker::state::command::AckEntry;
use ledgermq_broker::state::{Answer, DeliveryEpoch, DeliveryOutcome, Placed, Refusal, Scheduled, StoredAt};
use ledgermq_common::QueueId;
use ledgermq_common::clock::UnixMillis;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use crate::front::{Request, Response, read_frame, write_frame};
use crate::model::Place;
use crate::network::{Network, SimStream};
use crate::oracle::Oracle;
use crate::plan::{NODES, Plan};
use crate::world::EPOCH;

pub use accounts::AccountsPlan;
pub use ordered::OrderedPlan;

pub const CLIENT_HOST: &str = "client";
pub const FRONT_PORT: u16 = 9000;
const REQUEST_TIMEOUT: Duration = Duration::from_millis(1_200);
/// Sends each producer makes after the faults ended, as proof of progress.
const PROBES: u32 = 3;
/// Sends a producer makes at most, which bounds the memory of a run.
const SENDS_MAX: u32 = 2_000;
/// How often a send or a half that was answered is repeated, and how far back.
const AGAIN_SHARE: f64 = 0.1;
const REMEMBERED_SENDS: usize = 20;
/// How often a producer sends a delayed message beside a normal one, and how often it recalls it.
const DELAYED_SHARE: f64 = 0.3;
const RECALL_SHARE: f64 = 0.4;
/// How often it asks a second time, as if the first answer had been lost.
const RECALL_AGAIN_SHARE: f64 = 0.3;
const DELAY_MS_MAX: u64 = 2_000;
/// How often a delayed send that was answered is sent once more.
const DELAYED_AGAIN_SHARE: f64 = 0.15;
/// Halves of a producer that nobody decides.
const ABANDONED_MAX: usize = 2;
/// ... and that it leaves to others.
const LEFT_MAX: usize = 6;
/// How often a consumer acknowledges a redelivered message by the handle it had before.
const STALE_ACK_SHARE: f64 = 0.3;
const READS_MAX: u32 = 200;
const READ_PAUSE_MS_MAX: u64 = 150;
const READER_PATIENCE: Duration = Duration::from_millis(150);
/// Deliveries a consumer keeps for long before it acknowledges the oldest, which may be stale by then.
const OLD_DELIVERIES_MAX: usize = 3;

/// What the world wants of the clients, and how many are done with it.
#[derive(Debug, Default)]
pub struct Stage {
    stage: AtomicU8,
    producers_done: AtomicUsize,
    consumers_done: AtomicUsize,
    ordered_producers_done: AtomicUsize,
    ordered_consumers_done: AtomicUsize,
    is_grown: AtomicBool,
    batch_producers_done: AtomicUsize,
    /// The other clients of the books.
    accounts_done: AtomicUsize,
    are_reset: AtomicBool,
    are_redriven: AtomicBool,
    answering_done: AtomicUsize,
}

const HEALED: u8 = 1;

impl Stage {
    /// The faults are over: finish, prove progress, drain.
    pub fn heal(&self) {
        self.stage.store(HEALED, Ordering::SeqCst);
    }

    fn is_healed(&self) -> bool {
        self.stage.load(Ordering::SeqCst) == HEALED
    }

    pub fn producers_done(&self) -> usize {
        self.producers_done.load(Ordering::SeqCst)
    }

    /// The clients of the topic with order that are done, the operator among them.
    pub fn ordered_done(&self) -> usize {
        self.ordered_producers_done.load(Ordering::SeqCst)
            + self.ordered_consumers_done.load(Ordering::SeqCst)
            + usize::from(self.is_grown.load(Ordering::SeqCst))
    }

    /// The clients of the books that are done, the operators among them.
    pub fn accounts_done(&self) -> usize {
        self.batch_producers_done.load(Ordering::SeqCst) + self.accounts_done.load(Ordering::SeqCst)
    }

    /// Nobody adds to the books or moves their groups any more.
    fn accounts_are_quiet(&self, plan: &Plan) -> bool {
        self.batch_producers_done.load(Ordering::SeqCst) == plan.accounts.producers
            && self.are_reset.load(Ordering::SeqCst)
            && self.are_redriven.load(Ordering::SeqCst)
    }

    /// The producers that answer for others.
    pub fn answering_done(&self) -> usize {
        self.answering_done.load(Ordering::SeqCst)
    }

    pub fn consumers_done(&self) -> usize {
        self.consumers_done.load(Ordering::SeqCst)
    }
}

#[derive(Clone)]
pub struct Workload {
    pub plan: Arc<Plan>,
    pub network: Network,
    pub oracle: Oracle,
    pub stage: Arc<Stage>,
}

impl Workload {
    /// Runs all clients to their end.
    pub async fn run(self) {
        let mut tasks = Vec::new();
        for producer in 0..self.plan.producers {
            tasks.push(tokio::spawn(self.clone().produce(producer)));
        }
        for consumer in 0..self.plan.consumers {
            tasks.push(tokio::spawn(self.clone().consume(consumer)));
        }
        tasks.push(tokio::spawn(self.clone().read()));
        for node in self.plan.answering.clone() {
            tasks.push(tokio::spawn(self.clone().answer(node)));
        }
        self.spawn_ordered(&mut tasks);
        self.spawn_accounts(&mut tasks);
        for task in tasks {
            task.await.expect("a client does not panic");
        }
    }

    async fn produce(self, producer: usize) {
        let who = format!("producer {producer}");
        let mut client = self.client(&who, 100 + producer as u64);
        let mut probes_left = PROBES;
        let (mut sent, mut open, mut abandoned, mut left) = (Vec::new(), Vec::new(), 0, 0);
        for number in 0..SENDS_MAX {
            if self.stage.is_healed() {
                if probes_left == 0 {
                    break;
                }
                probes_left -= 1;
            }
            let id = format!("p{producer}-{number:05}");
            let body = self.body(&mut client.random);
            if client.random.random_bool(DELAYED_SHARE) {
                client.send_delayed(&format!("d{producer}-{number:05}"), &body).await;
            }
            if client.random.random_bool(0.25) {
                let half = client.half(&id, &body).await;
                if client.random.random_bool(AGAIN_SHARE) {
                    // The oracle compares the answers.
                    client.half(&id, &body).await;
                }
                if client.random.random_bool(0.7) {
                    client.decide(&half).await
                } else if left < LEFT_MAX && !self.plan.answering.is_empty() {
                    left += 1;
                    client.leave(half);
                } else if abandoned < ABANDONED_MAX && self.plan.consumers > 0 {
                    abandoned += 1;
                    self.oracle.half_abandoned(&half.id);
                } else {
                    open.push(half)
                }
                client.pause(30).await;
                continue;
            }
            let at = client.send(&id, &body).await;
            sent.push((id, body, at));
            if client.random.random_bool(AGAIN_SHARE) {
                // Also one of a while ago, when another led.
                let recent = sent.len().saturating_sub(REMEMBERED_SENDS);
                let (id, body, at) = &sent[client.random.random_range(recent..sent.len())];
                let again = client.send(id, body).await;
                if (again.queue, again.offset) != (at.queue, at.offset) || !again.repeated {
                    self.oracle.violate(format_args!("{who}: {id} was answered {at:?} and then {again:?}"));
                }
            }
            client.pause(30).await;
        }
        for half in &open {
            client.decide(half).await;
        }
        self.stage.producers_done.fetch_add(1, Ordering::SeqCst);
    }

    async fn consume(self, consumer: usize) {
        let who = format!("consumer {consumer}");
        let mut client = self.client(&who, 200 + consumer as u64);
        let mut held = Held::default();
        loop {
            let producers_ended = self.stage.producers_done() == self.plan.producers;
            let halves_ended = self.oracle.left_halves_have_ended() && self.oracle.abandoned_are_parked();
            if producers_ended && halves_ended && self.oracle.everything_is_consumed() {
                break;
            }
            client.receive(200 + consumer as u64, self.stage.is_healed(), &mut held).await;
            if self.plan.answering.is_empty() && (self.stage.is_healed() || client.random.random_bool(0.3)) {
                client.check().await;
            }
            client.pause(40).await;
        }
        self.stage.consumers_done.fetch_add(1, Ordering::SeqCst);
    }

    /// Asks also a node that does not know yet that another leads. It gives up soon where nothing is
    /// answered, so that it has written by the new leader while the old one is still asked.
    async fn read(self) {
        let mut client = self.client("reader", 600);
        client.patience = READER_PATIENCE;
        for number in 0..READS_MAX {
            if self.stage.is_healed() {
                break;
            }
            client.send(&format!("r-{number:05}"), &Bytes::new()).await;
            for node in 0..NODES {
                client.turn_to(node);
                let answered = self.oracle.answered();
                if let Some(Response::Read { applied }) = client.call(&Request::Read).await {
                    self.oracle.read_answered(&client.who, applied, answered);
                }
            }
            client.pause(READ_PAUSE_MS_MAX).await;
        }
    }

    fn body(&self, random: &mut StdRng) -> Bytes {
        let len = if random.random_ratio(1, self.plan.large_body_every) {
            random.random_range(0..=self.plan.large_body_bytes)
        } else {
            random.random_range(0..=self.plan.body_bytes_max)
        };
        let mut body = vec![0; len];
        random.fill(&mut body[..]);
        body.into()
    }

    fn client(&self, who: &str, salt: u64) -> Client {
        Client {
            who: who.to_owned(),
            network: self.network.clone(),
            oracle: self.oracle.clone(),
            random: StdRng::seed_from_u64(self.plan.seed.wrapping_mul(31).wrapping_add(salt)),
            node: 0,
            stream: None,
            patience: REQUEST_TIMEOUT,
        }
    }
}

/// What a consumer remembers of its deliveries.
#[derive(Default)]
struct Held {
    /// Kept for long before the oldest is acknowledged.
    long: Vec<AckEntry>,
    /// The last delivery of each message.
    epochs: BTreeMap<Place, DeliveryEpoch>,
}

/// One client with one connection at a time.
struct Client {
    who: String,
    network: Network,
    oracle: Oracle,
    random: StdRng,
    /// The broker it believes to lead.
    node: usize,
    /// How long it waits for an answer.
    patience: Duration,
    stream: Option<SimStream>,
}

impl Client {
    /// Repeats until the send is answered; the id makes that safe.
    async fn send(&mut self, id: &str, body: &Bytes) -> StoredAt {
        loop {
            let queue = QueueId(self.random.random_range(0..64));
            let request = Request::Send { queue, id: id.to_owned(), body: body.clone() };
            match self.call(&request).await {
                Some(Response::Answered(Answer::Stored(stored))) if stored.len() == 1 => {
                    self.oracle.send_answered(&self.who, id, stored[0], body);
                    return stored[0];
                }
                Some(Response::Answered(answer)) => {
                    self.oracle.violate(format_args!("{}: {id} was answered by {answer:?}", self.who));
                    return std::future::pending().await;
                }
                Some(Response::NotLeader { .. }) => {}
                Some(_) | None => self.oracle.unknown_outcome(&self.who, id),
            }
        }
    }

    /// Repeats until the send is answered, and recalls some.
    async fn send_delayed(&mut self, id: &str, body: &Bytes) {
        let queue = QueueId(self.random.random_range(0..64));
        let delay_ms = self.random.random_range(0..DELAY_MS_MAX);
        let deliver_at = UnixMillis(EPOCH.get() + self.oracle.now_ms() + delay_ms);
        let request = Request::SendDelayed { queue, deliver_at, id: id.to_owned(), body: body.clone() };
        let Some(at) = self.schedule(&request).await else { return };
        self.oracle.delayed_answered(&self.who, id, at);
        if self.random.random_bool(DELAYED_AGAIN_SHARE) {
            // By now it may have fired, and another may lead.
            self.pause(delay_ms).await;
            let Some(again) = self.schedule(&request).await else { return };
            if again.placed != at.placed || !again.repeated {
                self.oracle
                    .violate(format_args!("{}: {id} was answered {at:?} and then {again:?}", self.who));
            }
        }
        let Placed::Pending { physical } = at.placed else { return };
        if !self.random.random_bool(RECALL_SHARE) {
            return;
        }
        self.pause(delay_ms).await;
        let recall = Request::Recall { deliver_at, physical };
        self.recall(id, &recall).await;
        if self.random.random_bool(RECALL_AGAIN_SHARE) {
            // By now its time has come.
            self.pause(delay_ms).await;
            self.recall(id, &recall).await;
        }
    }

    async fn recall(&mut self, id: &str, request: &Request) {
        loop {
            match self.call(request).await {
                Some(Response::Answered(Answer::Recalled(outcome))) => {
                    self.oracle.recall_answered(&self.who, id, outcome);
                    return;
                }
                Some(Response::Answered(answer)) => {
                    self.oracle.violate(format_args!("{}: a recall was answered by {answer:?}", self.who));
                    return;
                }
                _ => {}
            }
        }
    }

    async fn schedule(&mut self, request: &Request) -> Option<Scheduled> {
        loop {
            match self.call(request).await {
                Some(Response::Answered(Answer::Scheduled(scheduled))) if scheduled.len() == 1 => {
                    return Some(scheduled[0]);
                }
                Some(Response::Answered(answer)) => {
                    self.oracle
                        .violate(format_args!("{}: a delayed send was answered by {answer:?}", self.who));
                    return None;
                }
                _ => {}
            }
        }
    }

    /// Once the faults are over it acknowledges all it gets, so that the group drains.
    async fn receive(&mut self, client: u64, is_healed: bool, held: &mut Held) {
        let asked_at_ms = self.oracle.now_ms();
        let request = Request::Receive {
            messages_max: self.random.random_range(1..=16),
            invisible_ms: self.random.random_range(200..2_000),
            client,
        };
        let granted = match self.call(&request).await {
            Some(Response::Answered(Answer::Leased(granted))) => granted,
            Some(Response::Answered(answer)) => {
                self.oracle.violate(format_args!("{}: a receive was answered by {answer:?}", self.who));
                return;
            }
            _ => return,
        };
        self.oracle.receive_answered(&self.who, &granted, asked_at_ms);
        for grant in granted {
            let entry = AckEntry { queue: grant.queue, offset: grant.offset, epoch: grant.epoch };
            let before = held.epochs.insert((grant.queue, grant.offset), grant.epoch);
            if let Some(epoch) = before.filter(|_| self.random.random_bool(STALE_ACK_SHARE)) {
                // The handle of a delivery that ended: it may not end this one.
                self.ack(AckEntry { epoch, ..entry }).await;
            }
            match self.random.random_range(0..10) {
                0 if !is_healed => {}
                1 if !is_healed => self.change(entry).await,
                2 if !is_healed => self.give_up(entry).await,
                3 if !is_healed => {
                    held.long.push(entry);
                    if held.long.len() > OLD_DELIVERIES_MAX {
                        let old = held.long.remove(0);
                        self.ack(old).await;
                    }
                }
                _ => self.ack(entry).await,
            }
        }
    }

    async fn ack(&mut self, entry: AckEntry) {
        match self.call(&Request::Ack(entry)).await {
            Some(Response::Answered(Answer::Acked(outcomes))) if outcomes.len() == 1 => match outcomes[0] {
                DeliveryOutcome::Done | DeliveryOutcome::AlreadyConsumed => {
                    self.oracle.ack_answered(&self.who, (entry.queue, entry.offset));
                }
                // Its lease ended meanwhile and somebody else has the message.
                DeliveryOutcome::Stale => {}
                outcome => self.oracle.violate(format_args!("{}: ack of {entry:?}: {outcome:?}", self.who)),
            },
            Some(Response::Answered(answer)) => {
                self.oracle.violate(format_args!("{}: an ack was answered by {answer:?}", self.who));
            }
            _ => {}
        }
    }

    /// Forwards a message to the dead letters.
    async fn give_up(&mut self, entry: AckEntry) {
        match self.call(&Request::GiveUp(entry)).await {
            Some(Response::Answered(Answer::DeadLettered { outcomes, .. })) if outcomes.len() == 1 => {
                if outcomes[0] == DeliveryOutcome::Done {
                    self.oracle.ack_answered(&self.who, (entry.queue, entry.offset));
                }
            }
            Some(Response::Answered(answer)) => {
                self.oracle.violate(format_args!("{}: a letter was answered by {answer:?}", self.who));
            }
            _ => {}
        }
    }

    async fn change(&mut self, entry: AckEntry) {
        let invisible_ms = self.random.random_range(1..1_500);
        match self.call(&Request::Change { entry, invisible_ms }).await {
            Some(Response::Answered(Answer::Changed(_))) => {}
            Some(Response::Answered(answer)) => {
                self.oracle.violate(format_args!("{}: a change was answered by {answer:?}", self.who));
            }
            _ => {}
        }
    }

    /// One request and its answer. `None`: nothing is known about it.
    async fn call(&mut self, request: &Request) -> Option<Response> {
        let response = tokio::time::timeout(self.patience, self.exchange(request)).await.ok().flatten();
        match &response {
            Some(
                Response::Answered(_)
                | Response::Read { .. }
                | Response::Offset(_)
                | Response::Committed { .. }
                | Response::Pulled(_)
                | Response::Asked(_),
            ) => return response,
            Some(Response::NotLeader { leader: Some(leader) }) if *leader != node_number(self.node) => {
                self.turn_to(usize::try_from(leader.saturating_sub(1)).unwrap_or_default() % NODES);
            }
            _ => {
                let other = self.random.random_range(1..NODES);
                self.turn_to((self.node + other) % NODES);
            }
        }
        self.pause(60).await;
        response
    }

    async fn exchange(&mut self, request: &Request) -> Option<Response> {
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => self
                .network
                .dial(CLIENT_HOST, &format!("{}:{FRONT_PORT}", host_name(self.node)))
                .await
                .ok()?,
        };
        write_frame(&mut stream, &request.encode()).await.ok()?;
        let response = Response::decode(read_frame(&mut stream).await.ok()?)?;
        self.stream = Some(stream);
        Some(response)
    }

    fn turn_to(&mut self, node: usize) {
        self.stream = None;
        self.node = node;
    }

    async fn pause(&mut self, ms_max: u64) {
        let ms = self.random.random_range(0..=ms_max);
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }
}

pub fn host_name(node: usize) -> String {
    format!("broker-{node}")
}

/// The id a node has in the group: from 1.
pub fn node_number(node: usize) -> u64 {
    node as u64 + 1
}
