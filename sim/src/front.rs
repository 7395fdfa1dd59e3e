//! The port a simulated broker serves its clients on: requests in, commands proposed, answers out.
//!
//! It stands for the edge and the executor, reduced to what the promises need: one request at a
//! time per connection, stamped by the node's clock, planned from the leader's applied state.
//!
//! Both directions carry frames of a 4-byte length (big endian) and:
//!
//! | Request | Fields, little endian |
//! |---|---|
//! | 1 send | queue u32, id length u16, id, body |
//! | 2 receive | messages at most u32, invisible ms u64, client u64 |
//! | 3 ack | queue u32, offset u64, epoch u64 |
//! | 5 delayed send | queue u32, delivery time u64 ms, id length u16, id, body |
//! | 6 recall | delivery time u64 ms, physical offset u64 |
//! | 4 change | queue u32, offset u64, epoch u64, invisible ms u64 |
//! | 7 half | as 1 |
//! | 8 end | transaction u64, decision u8, id |
//! | 9 check | none: counts a check of the transaction that is due, or parks it |
//! | 10 give up, to the dead letters | as 3 |
//! | 11 read | none: behind a read barrier, how far this replica has applied |
//! | 50 to 55 | see [`ordered`] |
//!
//! | Answer | Fields |
//! |---|---|
//! | 0 | the state machine's [`Answer`](ledgermq_broker::state::Answer) |
//! | 1 not the leader | the leader's node id plus one as u64, or 0 |
//! | 2 unknown outcome | |
//! | 3 placement | generation u32, queues u32 |
//! | 4 read | applied entries u64 |

pub mod ordered;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use ledgermq_broker::state::command::{
    AckEntry, AckMessages, BatchTopic, ChangeInvisible, ConsumerGroupSettings, CreateConsumerGroup,
    CreateTopic, DeadLetter, DeadLetterReason, DeadLetterRecord, Letter, MessageProperties, NewMessage,
    TopicSettings, encode_append, encode_batch, encode_delayed,
};
use ledgermq_broker::state::{
    Answer, BodyEncoding, BrokerState, ClientHash, Command, ConsumerGroupId, CountTransactionChecks,
    Decision, DecisionSource, DeliveryEpoch, EndTransaction, FireTimers, Generation, MessageIdHash,
    MessageType, NewHalf, OthersWant, ParkTransactions, QueueChoice, RecallTimer, ReceiveRequest, TagFilter,
    TopicId, TransactionCheck, encode_halves,
};
use ledgermq_common::clock::{Clock as _, SteppedClock, UnixMillis};
use ledgermq_common::{PhysicalOffset, QueueId, QueueOffset};
use ledgermq_raft_store::Group;
use ledgermq_raft_store::group::{BarrierError, ProposeError};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::network::SimStream;
use ordered::OrderedRequest;

/// Larger than any request of the workload.
const FRAME_BYTES_MAX: u32 = 1 << 20;
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
}

#[derive(Debug, Clone)]
pub enum Response {
    Answered(Answer),
    NotLeader { leader: Option<u64> },
    OutcomeUnknown,
    Placement { generation: u32, queues: u32 },
    Read { applied: u64 },
}

/// What serves the requests of one life of a node.
#[derive(Clone)]
pub struct Front {
    pub group: Group,
    pub state: Arc<BrokerState>,
    pub clock: SteppedClock,
    pub queues: u32,
    /// A broken build: its driver opens a generation without closing the one before.
    pub opens_unclosed: bool,
}

impl Front {
    /// Serves one connection until it ends.
    pub async fn serve(&self, mut stream: SimStream) {
        while let Ok(frame) = read_frame(&mut stream).await {
            let Some(request) = Request::decode(frame) else { return };
            let response = self.handle(request).await;
            if write_frame(&mut stream, &response.encode()).await.is_err() {
                return;
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
        let leadership = *self.group.leadership().borrow();
        if !leadership.is_leader_ready {
            return Response::NotLeader { leader: leadership.leader.map(|leader| leader.get()) };
        }
        match self.execute(request).await {
            Ok(answer) => Response::Answered(answer),
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
            Err(BarrierError::NotLeader { leader }) => {
                Response::NotLeader { leader: leader.map(|leader| leader.get()) }
            }
            Err(BarrierError::Stopped) => Response::OutcomeUnknown,
        }
    }

    async fn execute(&self, request: Request) -> Result<Answer, ProposeError> {
        if let Request::Ordered(request) = request {
            return self.execute_ordered(request).await;
        }
        let topic = self.topic().await?;
        match request {
            Request::Ordered(_) | Request::Read => unreachable!("executed above"),
            Request::Send { queue, id, body } => {
                let message = NewMessage {
                    queue: QueueId(queue.get() % self.queues),
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
                    queue: QueueId(queue.get() % self.queues),
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
            Request::Ack(entry) => {
                let consumer_group = self.consumer_group().await?;
                let acks = AckMessages { consumer_group, topic, entries: vec![entry] };
                self.propose(Command::AckMessages(acks).encode(self.clock.now())).await
            }
            Request::GiveUp(entry) => {
                let AckEntry { queue, offset, epoch } = entry;
                let record = DeadLetterRecord {
                    reason: DeadLetterReason::Forwarded,
                    topic,
                    queue,
                    offset,
                    tag_code: 0,
                    attempts: 1,
                    // Nobody reads the letters here.
                    physical: PhysicalOffset(0),
                    record_bytes: 0,
                    at: self.clock.now(),
                    topic_name: TOPIC.to_owned(),
                };
                let command = DeadLetter {
                    consumer_group: self.consumer_group().await?,
                    topic,
                    letters: vec![Letter { queue, offset, epoch, record }],
                };
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
                    queue: QueueId(queue.get() % self.queues),
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

    async fn propose(&self, command: Bytes) -> Result<Answer, ProposeError> {
        let answer = self.group.propose(command).await?;
        Ok(Answer::decode(&answer).expect("an answer of our own state machine"))
    }

    async fn topic(&self) -> Result<TopicId, ProposeError> {
        if let Some(topic) = self.state.topic(TOPIC) {
            return Ok(topic.id);
        }
        let create = CreateTopic { name: TOPIC.to_owned(), settings: TopicSettings::normal(self.queues) };
        match self.propose(Command::CreateTopic(create).encode(self.clock.now())).await? {
            Answer::Topic { id, .. } => Ok(id),
            answer => unreachable!("creating a topic was answered by {answer:?}"),
        }
    }

    async fn consumer_group(&self) -> Result<ConsumerGroupId, ProposeError> {
        if let Some(consumer_group) = self.state.consumer_group(CONSUMER_GROUP) {
            return Ok(consumer_group.id);
        }
        let create = CreateConsumerGroup {
            name: CONSUMER_GROUP.to_owned(),
            // The programs nack without end; dead letters are not what they are about.
            settings: ConsumerGroupSettings { attempts_max: u32::MAX, ..ConsumerGroupSettings::default() },
        };
        match self.propose(Command::CreateConsumerGroup(create).encode(self.clock.now())).await? {
            Answer::ConsumerGroup { id, .. } => Ok(id),
            answer => unreachable!("creating a consumer group was answered by {answer:?}"),
        }
    }
}

pub async fn read_frame(stream: &mut SimStream) -> io::Result<Bytes> {
    let len = stream.read_u32().await?;
    if len > FRAME_BYTES_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut frame = vec![0; len as usize];
    stream.read_exact(&mut frame).await?;
    Ok(frame.into())
}

pub async fn write_frame(stream: &mut SimStream, frame: &[u8]) -> io::Result<()> {
    let mut out = BytesMut::with_capacity(frame.len() + 4);
    out.put_u32(u32::try_from(frame.len()).expect("a small frame"));
    out.put_slice(frame);
    stream.write_all(&out).await
}

impl Request {
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        let put_entry = |out: &mut BytesMut, kind: u8, entry: &AckEntry| {
            out.put_u8(kind);
            out.put_u32_le(entry.queue.get());
            out.put_u64_le(entry.offset.get());
            out.put_u64_le(entry.epoch.get());
        };
        match self {
            Self::Send { queue, id, body } => {
                out.put_u8(1);
                out.put_u32_le(queue.get());
                out.put_u16_le(u16::try_from(id.len()).expect("a short id"));
                out.put_slice(id.as_bytes());
                out.put_slice(body);
            }
            Self::Receive { messages_max, invisible_ms, client } => {
                out.put_u8(2);
                out.put_u32_le(*messages_max);
                out.put_u64_le(*invisible_ms);
                out.put_u64_le(*client);
            }
            Self::SendDelayed { queue, deliver_at, id, body } => {
                out.put_u8(5);
                out.put_u32_le(queue.get());
                out.put_u64_le(deliver_at.get());
                out.put_u16_le(u16::try_from(id.len()).expect("a short id"));
                out.put_slice(id.as_bytes());
                out.put_slice(body);
            }
            Self::Recall { deliver_at, physical } => {
                out.put_u8(6);
                out.put_u64_le(deliver_at.get());
                out.put_u64_le(physical.get());
            }
            Self::Ack(entry) => put_entry(&mut out, 3, entry),
            Self::GiveUp(entry) => put_entry(&mut out, 10, entry),
            Self::Change { entry, invisible_ms } => {
                put_entry(&mut out, 4, entry);
                out.put_u64_le(*invisible_ms);
            }
            Self::Half { queue, id, body } => {
                out.put_u8(7);
                out.put_u32_le(queue.get());
                out.put_u16_le(u16::try_from(id.len()).expect("a short id"));
                out.put_slice(id.as_bytes());
                out.put_slice(body);
            }
            Self::End { transaction, id, decision } => {
                out.put_u8(8);
                out.put_u64_le(transaction.get());
                out.put_u8(decision.number());
                out.put_slice(id.as_bytes());
            }
            Self::Check => out.put_u8(9),
            Self::Read => out.put_u8(11),
            Self::Ordered(request) => request.encode(&mut out),
        }
        out.freeze()
    }

    fn decode(mut frame: Bytes) -> Option<Self> {
        match frame.try_get_u8().ok()? {
            kind @ (1 | 7) => {
                let queue = QueueId(frame.try_get_u32_le().ok()?);
                let id_len = usize::from(frame.try_get_u16_le().ok()?);
                if frame.len() < id_len {
                    return None;
                }
                let id = String::from_utf8(frame.split_to(id_len).to_vec()).ok()?;
                Some(match kind {
                    1 => Self::Send { queue, id, body: frame },
                    _ => Self::Half { queue, id, body: frame },
                })
            }
            8 => Some(Self::End {
                transaction: PhysicalOffset(frame.try_get_u64_le().ok()?),
                decision: Decision::from_number(frame.try_get_u8().ok()?)?,
                id: String::from_utf8(frame.to_vec()).ok()?,
            }),
            9 => Some(Self::Check),
            11 => Some(Self::Read),
            10 => Some(Self::GiveUp(decode_entry(&mut frame)?)),
            kind @ 50..=55 => OrderedRequest::decode(kind, frame).map(Self::Ordered),
            2 => Some(Self::Receive {
                messages_max: frame.try_get_u32_le().ok()?,
                invisible_ms: frame.try_get_u64_le().ok()?,
                client: frame.try_get_u64_le().ok()?,
            }),
            3 => Some(Self::Ack(decode_entry(&mut frame)?)),
            5 => {
                let queue = QueueId(frame.try_get_u32_le().ok()?);
                let deliver_at = UnixMillis(frame.try_get_u64_le().ok()?);
                let id_len = usize::from(frame.try_get_u16_le().ok()?);
                if frame.len() < id_len {
                    return None;
                }
                let id = String::from_utf8(frame.split_to(id_len).to_vec()).ok()?;
                Some(Self::SendDelayed { queue, deliver_at, id, body: frame })
            }
            6 => Some(Self::Recall {
                deliver_at: UnixMillis(frame.try_get_u64_le().ok()?),
                physical: PhysicalOffset(frame.try_get_u64_le().ok()?),
            }),
            4 => Some(Self::Change {
                entry: decode_entry(&mut frame)?,
                invisible_ms: frame.try_get_u64_le().ok()?,
            }),
            _ => None,
        }
    }
}

fn decode_entry(frame: &mut Bytes) -> Option<AckEntry> {
    Some(AckEntry {
        queue: QueueId(frame.try_get_u32_le().ok()?),
        offset: QueueOffset(frame.try_get_u64_le().ok()?),
        epoch: DeliveryEpoch(frame.try_get_u64_le().ok()?),
    })
}

impl Response {
    fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        match self {
            Self::Answered(answer) => {
                out.put_u8(0);
                out.put_slice(&answer.encode());
            }
            Self::NotLeader { leader } => {
                out.put_u8(1);
                out.put_u64_le(leader.map_or(0, |leader| leader + 1));
            }
            Self::OutcomeUnknown => out.put_u8(2),
            Self::Placement { generation, queues } => {
                out.put_u8(3);
                out.put_u32_le(*generation);
                out.put_u32_le(*queues);
            }
            Self::Read { applied } => {
                out.put_u8(4);
                out.put_u64_le(*applied);
            }
        }
        out.freeze()
    }

    pub fn decode(mut frame: Bytes) -> Option<Self> {
        match frame.try_get_u8().ok()? {
            0 => Some(Self::Answered(Answer::decode(&frame).ok()?)),
            1 => Some(Self::NotLeader { leader: frame.try_get_u64_le().ok()?.checked_sub(1) }),
            2 => Some(Self::OutcomeUnknown),
            3 => Some(Self::Placement {
                generation: frame.try_get_u32_le().ok()?,
                queues: frame.try_get_u32_le().ok()?,
            }),
            4 => Some(Self::Read { applied: frame.try_get_u64_le().ok()? }),
            _ => None,
        }
    }
}
