//! The port a simulated broker serves its clients on: requests in, commands proposed, answers out.
//!
//! It stands for the edge and the executor, reduced to what the promises need: one request at a
//! time per connection, stamped by the node's clock, planned from the leader's applied state.
//!
//! What goes over the wire: see [`codec`].

pub mod accounts;
pub mod checks;
mod codec;
pub mod letters;
pub mod offsets;
pub mod ordered;
mod retention;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ledgermq_broker::execution::CheckBack;
use ledgermq_broker::state::command::{
    AckEntry, AckMessages, BatchTopic, ChangeInvisible, ConsumerGroupSettings, CreateConsumerGroup,
    CreateTopic, DeadLetter, DeadLetterReason, MessageProperties, NewMessage, TopicSettings, encode_append,
    encode_batch, encode_delayed,
};
use ledgermq_broker::state::{
    Answer, BodyEncoding, BrokerState, ClientHash, Command, ConsumerGroupId, CountTransactionChecks,
    Decision, DecisionSource, DeliveryOutcome, EndTransaction, EndedDelivery, FireTimers, Generation,
    MessageIdHash, MessageType, NewHalf, OthersWant, ParkTransactions, QueueChoice, RecallTimer,
    ReceiveRequest, TagFilter, TopicId, TransactionCheck, encode_halves,
};
use ledgermq_common::clock::{Clock as _, SteppedClock, UnixMillis};
use ledgermq_common::{PhysicalOffset, QueueId, QueueOffset, ResetMark};
use ledgermq_raft_store::Group;
use ledgermq_raft_store::group::{BarrierError, ProposeError};

use crate::network::{Network, SimStream};
use crate::plan::Plan;
use accounts::AccountsRequest;
use checks::ChecksRequest;
use codec::{decode_entry, put_entry};
pub use codec::{read_frame, write_frame};
use letters::LettersRequest;
use offsets::OffsetsRequest;
use ordered::OrderedRequest;

const FIRE_LOOK: Duration = Duration::from_millis(20);
/// Small, so that one moment's timers take several entries.
const FIRE_BATCH: u32 = 3;
const FIRST_CHECK_MS: u32 = 300;
const NEXT_CHECK_MS: u64 = 200;
const CHECKS_MAX: u32 = 3;
pub const TOPIC: &str = "orders";
pub const CONSUMER_GROUP: &str = "billing";

#[derive(Debug, Clone)]
pub enum Request {
    Send { queue: QueueId, id: String, body: Bytes },
    Receive { messages_max: u32, invisible_ms: u64, client: u64 },
    Ack(AckEntry),
    Change { entry: AckEntry, invisible_ms: u64 },
    SendDelayed { queue: QueueId, deliver_at: UnixMillis, id: String, body: Bytes },
    Recall { deliver_at: UnixMillis, physical: PhysicalOffset },
    Half { queue: QueueId, id: String, body: Bytes },
    End { transaction: PhysicalOffset, id: String, decision: Decision },
    Check,
    GiveUp(AckEntry),
    Read,
    Ordered(OrderedRequest),
    Accounts(AccountsRequest),
    Offsets(OffsetsRequest),
    Letters(LettersRequest),
    Checks(ChecksRequest),
}

#[derive(Debug, Clone)]
pub enum Response {
    Answered(Answer),
    NotLeader { leader: Option<u64> },
    OutcomeUnknown,
    Placement { generation: u32, queues: u32 },
    Read { applied: u64 },
    Offset(Option<QueueOffset>),
    Committed { offset: Option<QueueOffset>, last_reset: ResetMark },
    Pulled(Vec<(QueueOffset, u64)>),
    Asked(Vec<TransactionCheck>),
}

/// What serves the requests of one life of a node.
#[derive(Clone)]
pub struct Front {
    pub group: Group,
    pub state: Arc<BrokerState>,
    pub clock: SteppedClock,
    pub plan: Arc<Plan>,
    /// A broken build: its driver opens a generation without closing the one before.
    pub opens_unclosed: bool,
    /// A broken build: it releases the log under halves and timers.
    pub forgets_owed: bool,
    /// A broken build: producers of other nodes are never asked about a half.
    pub asks_own_producers_only: bool,
    pub node: usize,
    pub network: Network,
    pub desk: Arc<CheckBack>,
}

impl Front {
    /// Serves one connection until it ends.
    pub async fn serve(&self, mut stream: SimStream) {
        while let Ok(frame) = read_frame(&mut stream).await {
            let Some(request) = Request::decode(frame) else { return };
            let is_of_producer = matches!(request, Request::Checks(ChecksRequest::Wait));
            let response = self.handle(request).await;
            if write_frame(&mut stream, &response.encode()).await.is_err() {
                return;
            }
            if let Response::Asked(checks) = response
                && is_of_producer
                && !checks.is_empty()
            {
                self.tell_asked(checks).await;
            }
        }
    }

    async fn handle(&self, request: Request) -> Response {
        if matches!(request, Request::Ordered(OrderedRequest::Placement)) {
            return self.placement();
        }
        if matches!(request, Request::Read) {
            return self.read().await;
        }
        if let Request::Checks(request) = request {
            return self.checks(request).await;
        }
        // A node that does not know yet that another leads is asked too.
        if let Request::Offsets(request) = request
            && request.is_read()
        {
            return self.offsets(request).await.unwrap_or(Response::OutcomeUnknown);
        }
        let leadership = *self.group.leadership().borrow();
        if !leadership.is_leader_ready {
            return Response::NotLeader { leader: leadership.leader.map(|leader| leader.get()) };
        }
        let response = match request {
            Request::Offsets(request) => self.offsets(request).await,
            Request::Letters(request) => self.letters(request).await,
            request => self.execute(request).await.map(Response::Answered),
        };
        match response {
            Ok(response) => response,
            Err(ProposeError::NotLeader { leader }) => {
                Response::NotLeader { leader: leader.map(|leader| leader.get()) }
            }
            Err(_) => Response::OutcomeUnknown,
        }
    }

    /// What a consumer group's offset is read like: the state behind a barrier, without an entry.
    async fn read(&self) -> Response {
        match self.group.read_barrier().await {
            Ok(()) => {
                let applied = self.group.status().applied;
                Response::Read { applied: applied.map_or(0, |index| index.get() + 1) }
            }
            Err(error) => refused_barrier(error),
        }
    }

    async fn execute(&self, request: Request) -> Result<Answer, ProposeError> {
        if let Request::Ordered(request) = request {
            return self.execute_ordered(request).await;
        }
        if let Request::Accounts(request) = request {
            return self.execute_accounts(request).await;
        }
        let topic = self.topic().await?;
        match request {
            Request::Ordered(_)
            | Request::Accounts(_)
            | Request::Offsets(_)
            | Request::Letters(_)
            | Request::Checks(_)
            | Request::Read => unreachable!("executed above"),
            Request::Send { queue, id, body } => {
                let message = NewMessage {
                    queue: QueueId(queue.get() % self.plan.queues),
                    id,
                    message_type: MessageType::Normal,
                    body_encoding: BodyEncoding::Identity,
                    born_at: self.clock.now(),
                    properties: MessageProperties::default(),
                    body,
                };
                // By its id, so that a repeat is asked for in the same way.
                let is_batch = message.id.bytes().last().is_some_and(|byte| byte % 3 == 0);
                let command = if is_batch {
                    let of = BatchTopic { topic, generation: Generation(0) };
                    encode_batch(self.clock.now(), &[of], &[(topic, message)])
                } else {
                    encode_append(self.clock.now(), topic, &[message])
                };
                self.propose(command).await
            }
            Request::SendDelayed { queue, deliver_at, id, body } => {
                let message = NewMessage {
                    queue: QueueId(queue.get() % self.plan.queues),
                    id,
                    message_type: MessageType::Delay,
                    body_encoding: BodyEncoding::Identity,
                    born_at: self.clock.now(),
                    properties: MessageProperties {
                        deliver_at_ms: Some(deliver_at.get()),
                        ..MessageProperties::default()
                    },
                    body,
                };
                self.propose(encode_delayed(self.clock.now(), topic, &[(deliver_at, message)])).await
            }
            Request::Recall { deliver_at, physical } => {
                let command = RecallTimer { deliver_at, physical };
                self.propose(Command::RecallTimer(command).encode(self.clock.now())).await
            }
            Request::Receive { messages_max, invisible_ms, client } => {
                let consumer_group = self.consumer_group().await?;
                self.receive(consumer_group, topic, messages_max, invisible_ms, client).await
            }
            Request::Ack(entry) => {
                let consumer_group = self.consumer_group().await?;
                let acks = AckMessages { consumer_group, topic, entries: vec![entry] };
                self.propose(Command::AckMessages(acks).encode(self.clock.now())).await
            }
            Request::GiveUp(entry) => {
                let consumer_group = self.consumer_group().await?;
                let AckEntry { queue, offset, epoch } = entry;
                let of = EndedDelivery { consumer_group, topic, queue, offset, epoch, attempt: 1 };
                let Some(letter) = self.letter(&of, DeadLetterReason::Forwarded) else {
                    // It expired meanwhile.
                    let outcomes = vec![DeliveryOutcome::AlreadyConsumed];
                    return Ok(Answer::DeadLettered { created: false, outcomes });
                };
                let command = DeadLetter { consumer_group, topic, letters: vec![letter] };
                self.propose(Command::DeadLetter(command).encode(self.clock.now())).await
            }
            Request::Change { entry, invisible_ms } => {
                let change = ChangeInvisible {
                    consumer_group: self.consumer_group().await?,
                    topic,
                    queue: entry.queue,
                    offset: entry.offset,
                    epoch: entry.epoch,
                    invisible_ms,
                };
                self.propose(Command::ChangeInvisible(change).encode(self.clock.now())).await
            }
            Request::Half { queue, id, body } => {
                let message = NewMessage {
                    queue: QueueId(queue.get() % self.plan.queues),
                    id,
                    message_type: MessageType::Transaction,
                    body_encoding: BodyEncoding::Identity,
                    born_at: self.clock.now(),
                    properties: MessageProperties::default(),
                    body,
                };
                let half = NewHalf { message, first_check_ms: FIRST_CHECK_MS };
                self.propose(encode_halves(self.clock.now(), topic, &[half])).await
            }
            Request::End { transaction, id, decision } => {
                let end = EndTransaction {
                    topic,
                    transaction,
                    message: MessageIdHash::of(id.as_bytes()),
                    decision,
                    source: DecisionSource::Producer,
                };
                self.propose(Command::EndTransaction(end).encode(self.clock.now())).await
            }
            Request::Check => {
                let due = self.state.due_transactions(self.clock.now(), 1);
                let Some(open) = due.first() else { return Ok(Answer::Transactions(0)) };
                let command = if open.checks >= CHECKS_MAX {
                    let check = TransactionCheck { transaction: open.id, number: open.checks };
                    Command::ParkTransactions(ParkTransactions { transactions: vec![check] })
                } else {
                    let check = TransactionCheck { transaction: open.id, number: open.checks + 1 };
                    Command::CountTransactionChecks(CountTransactionChecks {
                        next_check_ms: NEXT_CHECK_MS,
                        checks: vec![check],
                    })
                };
                self.propose(command.encode(self.clock.now())).await
            }
        }
    }

    /// Fires what is due by this node's clock while it leads, until the node's life ends.
    pub async fn fire_timers(self) {
        loop {
            tokio::time::sleep(FIRE_LOOK).await;
            let now = self.clock.now();
            let is_due = self.state.next_timer().is_some_and(|next| next <= now);
            if is_due && self.group.leadership().borrow().is_leader_ready {
                let command = FireTimers { through: now, max: FIRE_BATCH };
                // It may fail for a good reason; the next leader fires what is left.
                drop(self.propose(Command::FireTimers(command).encode(now)).await);
            }
        }
    }

    /// Leases what a consumer group of a topic without order is to get.
    async fn receive(
        &self,
        consumer_group: ConsumerGroupId,
        topic: TopicId,
        messages_max: u32,
        invisible_ms: u64,
        client: u64,
    ) -> Result<Answer, ProposeError> {
        let request = ReceiveRequest {
            consumer_group,
            topic,
            queues: QueueChoice::All,
            messages_max,
            now: self.clock.now(),
            filter: TagFilter::All,
            others: OthersWant::default(),
        };
        let Some(plan) = self.state.plan_receive(&request) else {
            return Ok(Answer::Leased(Vec::new()));
        };
        let command = plan.command(ClientHash(client), invisible_ms, false, "");
        let answer = self.propose(command.encode(self.clock.now())).await?;
        plan.settle();
        Ok(answer)
    }

    async fn propose(&self, command: Bytes) -> Result<Answer, ProposeError> {
        let answer = self.group.propose(command).await?;
        Ok(Answer::decode(&answer).expect("an answer of our own state machine"))
    }

    async fn topic(&self) -> Result<TopicId, ProposeError> {
        self.topic_named(TOPIC, TopicSettings::normal(self.plan.queues)).await
    }

    async fn consumer_group(&self) -> Result<ConsumerGroupId, ProposeError> {
        // The programs nack without end; dead letters are not what they are about.
        let settings = ConsumerGroupSettings { attempts_max: u32::MAX, ..ConsumerGroupSettings::default() };
        self.group_named(CONSUMER_GROUP, settings).await
    }

    /// Made by whoever asks first.
    async fn topic_named(&self, name: &str, settings: TopicSettings) -> Result<TopicId, ProposeError> {
        if let Some(topic) = self.state.topic(name) {
            return Ok(topic.id);
        }
        let create = CreateTopic { name: name.to_owned(), settings };
        match self.propose(Command::CreateTopic(create).encode(self.clock.now())).await? {
            Answer::Topic { id, .. } => Ok(id),
            answer => unreachable!("creating a topic was answered by {answer:?}"),
        }
    }

    async fn group_named(
        &self,
        name: &str,
        settings: ConsumerGroupSettings,
    ) -> Result<ConsumerGroupId, ProposeError> {
        if let Some(consumer_group) = self.state.consumer_group(name) {
            return Ok(consumer_group.id);
        }
        let create = CreateConsumerGroup { name: name.to_owned(), settings };
        match self.propose(Command::CreateConsumerGroup(create).encode(self.clock.now())).await? {
            Answer::ConsumerGroup { id, .. } => Ok(id),
            answer => unreachable!("creating a consumer group was answered by {answer:?}"),
        }
    }
}

fn refused_barrier(error: BarrierError) -> Response {
    match error {
        BarrierError::NotLeader { leader } => {
            Response::NotLeader { leader: leader.map(|leader| leader.get()) }
        }
        BarrierError::Stopped => Response::OutcomeUnknown,
    }
}
