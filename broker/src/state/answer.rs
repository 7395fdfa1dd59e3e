//! Answers of apply to commands. They stay on the replica that applied and reach the proposer on
//! the leader; nothing of them is stored, so their format may change between versions.
//!
//! | Offset | Bytes | Field |
//! |---|---|---|
//! | 0 | 1 | kind: 1 stored, 2 topic, 3 consumer group, 4 deleted, 5 leased, 6 acked, 7 changed, 8 extended, 9 released, 20 halves, 21 transaction ended, 22 transactions, 40 dead-lettered, 41 redriven, 42 scheduled, 43 fired, 44 recalled, 45 offsets set, 46 offset committed, 50 generation, 51 drained, 62 lite synced, 63 lite expired, 70 expired, 71 retention set, 72 carried, 73 log released, 90 batch partly stored, 255 refused |
//! | 1 | … | by kind, in the order of the fields below |

use bytes::{BufMut, Bytes, BytesMut};
use ledgermq_common::clock::UnixMillis;
use ledgermq_common::{PhysicalOffset, QueueId, QueueOffset, ResetMark};

use super::command::wire::{FieldReader, MalformedField, put_list};
use super::names::{ConsumerGroupId, Decision, DeliveryEpoch, Generation, TopicId};

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// One per message of the command, in its order.
    Stored(Vec<StoredAt>),
    Topic {
        id: TopicId,
        created: bool,
    },
    ConsumerGroup {
        id: ConsumerGroupId,
        created: bool,
    },
    /// Whether there was something to delete.
    Deleted(bool),
    /// What was granted; a message planned but acknowledged or leased meanwhile is not in here.
    Leased(Vec<Granted>),
    /// One per entry of the command, in its order.
    Acked(Vec<DeliveryOutcome>),
    Changed(ChangeOutcome),
    /// One per extension of the command, in its order.
    Extended(Vec<DeliveryOutcome>),
    /// How many leases were given back.
    Released(u32),
    /// One per half of the command, in its order.
    Halves(Vec<HalfAt>),
    TransactionEnded(TransactionEnd),
    /// How many transactions the command changed (counted checks, parked).
    Transactions(u32),
    /// One per letter of the command, in its order.
    DeadLettered {
        /// This entry made the dead-letter topic.
        created: bool,
        outcomes: Vec<DeliveryOutcome>,
    },
    /// One per letter of the command, in its order.
    Redriven(Vec<DeliveryOutcome>),
    /// One per message of the command, in its order.
    Scheduled(Vec<Scheduled>),
    Fired {
        fired: u32,
        /// There are more whose time has come.
        more: bool,
    },
    Recalled(RecallOutcome),
    /// A group was moved in so many queues.
    OffsetsSet(u32),
    OffsetCommitted(CommitOutcome),
    Expired {
        messages: u64,
        /// Of these, summed over the consumer groups: not read yet.
        unread: u64,
    },
    RetentionSet,
    FiltersSet,
    /// How many records are at the end of the log now.
    Carried(u32),
    LogReleased {
        below: PhysicalOffset,
    },
    LiteSynced(LiteSynced),
    /// How many lite topics went.
    LiteExpired(u32),
    /// The generation by which the topic is served here now; the step is done, now or earlier.
    Generation(Generation),
    /// Whether the generation counts as drained now.
    Drained(bool),
    BatchPartlyStored(BatchPartlyStored),
    Refused(Refusal),
}

/// What became of a client's subscriptions to lite topics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LiteSynced {
    pub added: u32,
    pub removed: u32,
    /// Other clients' subscriptions that were taken over.
    pub evicted: u32,
}

/// A batch that cannot be one entry any more: other entries stored a part of it. Nothing was stored now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchPartlyStored {
    pub stored: u32,
    /// Position in the batch.
    pub first: u32,
}

/// Where a half message lies; that is its transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HalfAt {
    pub transaction: PhysicalOffset,
    pub stored_at: UnixMillis,
    /// The message id was stored before; this is where, and nothing was stored now.
    pub repeated: bool,
}

/// What is decided of a transaction, now or earlier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransactionEnd {
    pub decision: Decision,
    /// Of a committed message; meaningless for one that was rolled back.
    pub queue: QueueId,
    pub offset: QueueOffset,
    /// This entry decided it; otherwise an earlier one did.
    pub decided_now: bool,
    /// How long the half had been waiting, ms.
    pub waited_ms: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredAt {
    pub queue: QueueId,
    pub offset: QueueOffset,
    pub stored_at: UnixMillis,
    /// The message id was stored before; this is where, and nothing was stored now.
    pub repeated: bool,
}

/// A delayed message that is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scheduled {
    pub placed: Placed,
    pub stored_at: UnixMillis,
    /// The message id was stored before; this is where, and nothing was stored now.
    pub repeated: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placed {
    /// Its time had come already.
    Visible { queue: QueueId, offset: QueueOffset },
    /// It waits; with its delivery time this names the timer.
    Pending { physical: PhysicalOffset },
}

/// What became of the commit of an offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommitOutcome {
    /// It is in force, by this commit or by an earlier one.
    Committed,
    /// The group is further on, at `committed`.
    Behind { committed: QueueOffset },
    /// The group was reset since the client asked where it is.
    OfOtherReset { last: ResetMark },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum RecallOutcome {
    Recalled = 1,
    RecalledBefore = 2,
    /// It fired, or was recalled longer ago than recalls are remembered.
    TooLate = 3,
}

/// A lease that is now in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Granted {
    pub queue: QueueId,
    pub offset: QueueOffset,
    /// From 1.
    pub attempt: u32,
    pub epoch: DeliveryEpoch,
    pub until: UnixMillis,
}

/// What became of an acknowledgement or an extension of one delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum DeliveryOutcome {
    Done = 1,
    /// The message was acknowledged before: idempotent for an ack.
    AlreadyConsumed = 2,
    /// The lease ended and the message was delivered anew; this delivery no longer counts.
    Stale = 3,
    /// The group was never given this message.
    NeverDelivered = 4,
    TopicUnknown = 5,
    ConsumerGroupUnknown = 6,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeOutcome {
    Changed { until: UnixMillis, renewal: u32, attempt: u32 },
    Not(DeliveryOutcome),
}

/// The command did nothing at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[repr(u8)]
pub enum Refusal {
    #[error("the topic does not exist")]
    TopicUnknown = 1,
    #[error("the consumer group does not exist")]
    ConsumerGroupUnknown = 2,
    #[error("the topic has no such queue")]
    QueueUnknown = 3,
    #[error("a topic has at least 1 and at most {} queues", ledgermq_common::limits::TOPIC_QUEUES_MAX)]
    QueueCount = 4,
    #[error("queues of a topic cannot become fewer")]
    QueuesCannotShrink = 5,
    #[error("the command is malformed")]
    Malformed = 6,
    #[error("the transaction is not known here: it never was, or it was decided long ago")]
    TransactionUnknown = 20,
    #[error("the transaction is one of another topic")]
    TransactionOfOtherTopic = 21,
    #[error("{} transactions wait for their outcome", ledgermq_common::limits::UNDECIDED_TRANSACTIONS_MAX)]
    TooManyTransactions = 22,
    #[error("the queues of a topic with order become more by generations only, and its order stays")]
    QueuesOfOrderedTopic = 23,
    #[error("the offset is below the first or above the next of its queue")]
    OffsetOutOfRange = 40,
    #[error("the topic has no lite topics: it is not of type LITE")]
    NotLite = 60,
    #[error("the consumer group is bound to the lite topics of another topic")]
    LiteBinding = 61,
    #[error("the broker group has {} lite topics", ledgermq_common::limits::LITE_TOPICS_MAX)]
    LiteTopics = 62,
    #[error("the client's quota of subscriptions to lite topics is used up")]
    LiteClientQuota = 63,
    #[error(
        "the broker group has {} subscriptions to lite topics",
        ledgermq_common::limits::LITE_SUBSCRIPTIONS_MAX
    )]
    LiteSubscriptions = 64,
    #[error("only a topic with order (type FIFO) grows by generations")]
    TopicWithoutOrder = 50,
    #[error("the topic is growing to another number of queues")]
    GenerationUnderWay = 51,
    #[error("the step is not the next one of the topic's growth")]
    GenerationNotPrepared = 52,
    #[error("the generation before is not closed")]
    GenerationNotClosed = 53,
    #[error("the topic keeps {} ended generations; more are not possible", super::GENERATIONS_MAX)]
    TooManyGenerations = 54,
    #[error("messages are not stored by this generation of the topic's queues now")]
    GenerationEnded = 55,
}

impl Answer {
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(32);
        match self {
            Self::Stored(stored) => {
                out.put_u8(1);
                put_list(&mut out, stored, |out, at| {
                    out.put_u32_le(at.queue.get());
                    out.put_u64_le(at.offset.get());
                    out.put_u64_le(at.stored_at.get());
                    out.put_u8(u8::from(at.repeated));
                });
            }
            Self::Topic { id, created } => {
                out.put_u8(2);
                out.put_u32_le(id.get());
                out.put_u8(u8::from(*created));
            }
            Self::ConsumerGroup { id, created } => {
                out.put_u8(3);
                out.put_u32_le(id.get());
                out.put_u8(u8::from(*created));
            }
            Self::Deleted(existed) => {
                out.put_u8(4);
                out.put_u8(u8::from(*existed));
            }
            Self::Leased(granted) => {
                out.put_u8(5);
                put_list(&mut out, granted, |out, lease| {
                    out.put_u32_le(lease.queue.get());
                    out.put_u64_le(lease.offset.get());
                    out.put_u32_le(lease.attempt);
                    out.put_u64_le(lease.epoch.get());
                    out.put_u64_le(lease.until.get());
                });
            }
            Self::Acked(outcomes) => {
                out.put_u8(6);
                put_list(&mut out, outcomes, |out, outcome| out.put_u8(*outcome as u8));
            }
            Self::Changed(ChangeOutcome::Changed { until, renewal, attempt }) => {
                out.put_u8(7);
                out.put_u8(0);
                out.put_u64_le(until.get());
                out.put_u32_le(*renewal);
                out.put_u32_le(*attempt);
            }
            Self::Changed(ChangeOutcome::Not(outcome)) => {
                out.put_u8(7);
                out.put_u8(*outcome as u8);
            }
            Self::Extended(outcomes) => {
                out.put_u8(8);
                put_list(&mut out, outcomes, |out, outcome| out.put_u8(*outcome as u8));
            }
            Self::Released(leases) => {
                out.put_u8(9);
                out.put_u32_le(*leases);
            }
            Self::Halves(halves) => {
                out.put_u8(20);
                put_list(&mut out, halves, |out, half| {
                    out.put_u64_le(half.transaction.get());
                    out.put_u64_le(half.stored_at.get());
                    out.put_u8(u8::from(half.repeated));
                });
            }
            Self::TransactionEnded(end) => {
                out.put_u8(21);
                out.put_u8(end.decision.number());
                out.put_u32_le(end.queue.get());
                out.put_u64_le(end.offset.get());
                out.put_u8(u8::from(end.decided_now));
                out.put_u64_le(end.waited_ms);
            }
            Self::Transactions(count) => {
                out.put_u8(22);
                out.put_u32_le(*count);
            }
            Self::DeadLettered { created, outcomes } => {
                out.put_u8(40);
                out.put_u8(u8::from(*created));
                put_list(&mut out, outcomes, |out, outcome| out.put_u8(*outcome as u8));
            }
            Self::Redriven(outcomes) => {
                out.put_u8(41);
                put_list(&mut out, outcomes, |out, outcome| out.put_u8(*outcome as u8));
            }
            Self::Scheduled(scheduled) => {
                out.put_u8(42);
                put_list(&mut out, scheduled, |out, at| {
                    let (queue, offset, is_pending) = match at.placed {
                        Placed::Visible { queue, offset } => (queue.get(), offset.get(), false),
                        Placed::Pending { physical } => (0, physical.get(), true),
                    };
                    out.put_u8(u8::from(is_pending));
                    out.put_u32_le(queue);
                    out.put_u64_le(offset);
                    out.put_u64_le(at.stored_at.get());
                    out.put_u8(u8::from(at.repeated));
                });
            }
            Self::Fired { fired, more } => {
                out.put_u8(43);
                out.put_u32_le(*fired);
                out.put_u8(u8::from(*more));
            }
            Self::Recalled(outcome) => {
                out.put_u8(44);
                out.put_u8(*outcome as u8);
            }
            Self::OffsetsSet(queues) => {
                out.put_u8(45);
                out.put_u32_le(*queues);
            }
            Self::OffsetCommitted(outcome) => {
                let (kind, number) = match outcome {
                    CommitOutcome::Committed => (1, 0),
                    CommitOutcome::Behind { committed } => (2, committed.get()),
                    CommitOutcome::OfOtherReset { last } => (3, last.get()),
                };
                out.put_slice(&[46, kind]);
                out.put_u64_le(number);
            }
            Self::Expired { messages, unread } => {
                out.put_u8(70);
                out.put_u64_le(*messages);
                out.put_u64_le(*unread);
            }
            Self::RetentionSet => out.put_u8(71),
            Self::FiltersSet => out.put_u8(80),
            Self::Carried(records) => {
                out.put_u8(72);
                out.put_u32_le(*records);
            }
            Self::LogReleased { below } => {
                out.put_u8(73);
                out.put_u64_le(below.get());
            }
            Self::LiteSynced(synced) => {
                out.put_u8(62);
                out.put_u32_le(synced.added);
                out.put_u32_le(synced.removed);
                out.put_u32_le(synced.evicted);
            }
            Self::LiteExpired(lite_topics) => {
                out.put_u8(63);
                out.put_u32_le(*lite_topics);
            }
            Self::Generation(generation) => {
                out.put_u8(50);
                out.put_u32_le(generation.get());
            }
            Self::Drained(is_drained) => {
                out.put_u8(51);
                out.put_u8(u8::from(*is_drained));
            }
            Self::BatchPartlyStored(partly) => {
                out.put_u8(90);
                out.put_u32_le(partly.stored);
                out.put_u32_le(partly.first);
            }
            Self::Refused(refusal) => {
                out.put_u8(255);
                out.put_u8(*refusal as u8);
            }
        }
        out.freeze()
    }

    pub fn decode(bytes: &Bytes) -> Result<Self, MalformedField> {
        let mut reader = FieldReader::new(bytes);
        let reader = &mut reader;
        let answer = match reader.u8("answer")? {
            1 => Self::Stored(reader.list(21, "stored", |reader| {
                Ok(StoredAt {
                    queue: QueueId(reader.u32("queue")?),
                    offset: QueueOffset(reader.u64("offset")?),
                    stored_at: UnixMillis(reader.u64("store time")?),
                    repeated: reader.bool("repeated")?,
                })
            })?),
            2 => Self::Topic { id: TopicId(reader.u32("topic")?), created: reader.bool("created")? },
            3 => Self::ConsumerGroup {
                id: ConsumerGroupId(reader.u32("consumer group")?),
                created: reader.bool("created")?,
            },
            4 => Self::Deleted(reader.bool("deleted")?),
            5 => Self::Leased(reader.list(32, "leases", |reader| {
                Ok(Granted {
                    queue: QueueId(reader.u32("queue")?),
                    offset: QueueOffset(reader.u64("offset")?),
                    attempt: reader.u32("attempt")?,
                    epoch: DeliveryEpoch(reader.u64("epoch")?),
                    until: UnixMillis(reader.u64("until")?),
                })
            })?),
            6 => Self::Acked(reader.list(1, "outcomes", read_outcome)?),
            7 => Self::Changed(read_change(reader)?),
            8 => Self::Extended(reader.list(1, "outcomes", read_outcome)?),
            9 => Self::Released(reader.u32("leases")?),
            70 => Self::Expired { messages: reader.u64("messages")?, unread: reader.u64("unread")? },
            71 => Self::RetentionSet,
            80 => Self::FiltersSet,
            72 => Self::Carried(reader.u32("records")?),
            73 => Self::LogReleased { below: PhysicalOffset(reader.u64("released below")?) },
            20 => Self::Halves(reader.list(17, "halves", |reader| {
                Ok(HalfAt {
                    transaction: PhysicalOffset(reader.u64("transaction")?),
                    stored_at: UnixMillis(reader.u64("store time")?),
                    repeated: reader.bool("repeated")?,
                })
            })?),
            40 => Self::DeadLettered {
                created: reader.bool("created")?,
                outcomes: reader.list(1, "outcomes", read_outcome)?,
            },
            41 => Self::Redriven(reader.list(1, "outcomes", read_outcome)?),
            42 => Self::Scheduled(reader.list(22, "scheduled", |reader| {
                let is_pending = reader.bool("pending")?;
                let (queue, offset) = (reader.u32("queue")?, reader.u64("offset")?);
                Ok(Scheduled {
                    placed: if is_pending {
                        Placed::Pending { physical: PhysicalOffset(offset) }
                    } else {
                        Placed::Visible { queue: QueueId(queue), offset: QueueOffset(offset) }
                    },
                    stored_at: UnixMillis(reader.u64("store time")?),
                    repeated: reader.bool("repeated")?,
                })
            })?),
            21 => Self::TransactionEnded(TransactionEnd {
                decision: Decision::from_number(reader.u8("decision")?)
                    .ok_or_else(|| reader.malformed("decision"))?,
                queue: QueueId(reader.u32("queue")?),
                offset: QueueOffset(reader.u64("offset")?),
                decided_now: reader.bool("decided now")?,
                waited_ms: reader.u64("waited")?,
            }),
            22 => Self::Transactions(reader.u32("transactions")?),
            43 => Self::Fired { fired: reader.u32("fired")?, more: reader.bool("more")? },
            44 => Self::Recalled(match reader.u8("recall")? {
                1 => RecallOutcome::Recalled,
                2 => RecallOutcome::RecalledBefore,
                3 => RecallOutcome::TooLate,
                _ => return Err(reader.malformed("recall")),
            }),
            45 => Self::OffsetsSet(reader.u32("queues")?),
            46 => Self::OffsetCommitted(match (reader.u8("commit")?, reader.u64("offset or reset")?) {
                (1, _) => CommitOutcome::Committed,
                (2, committed) => CommitOutcome::Behind { committed: QueueOffset(committed) },
                (3, last) => CommitOutcome::OfOtherReset { last: ResetMark(last) },
                _ => return Err(reader.malformed("commit")),
            }),
            62 => Self::LiteSynced(LiteSynced {
                added: reader.u32("added")?,
                removed: reader.u32("removed")?,
                evicted: reader.u32("evicted")?,
            }),
            63 => Self::LiteExpired(reader.u32("lite topics")?),
            50 => Self::Generation(Generation(reader.u32("generation")?)),
            51 => Self::Drained(reader.bool("drained")?),
            90 => Self::BatchPartlyStored(BatchPartlyStored {
                stored: reader.u32("stored")?,
                first: reader.u32("first")?,
            }),
            255 => {
                let number = reader.u8("refusal")?;
                Self::Refused(Refusal::from_number(number).ok_or_else(|| reader.malformed("refusal"))?)
            }
            _ => return Err(reader.malformed("answer")),
        };
        reader.end("end of the answer")?;
        Ok(answer)
    }
}

impl DeliveryOutcome {
    fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Done,
            2 => Self::AlreadyConsumed,
            3 => Self::Stale,
            4 => Self::NeverDelivered,
            5 => Self::TopicUnknown,
            6 => Self::ConsumerGroupUnknown,
            _ => return None,
        })
    }
}

impl Refusal {
    fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::TopicUnknown,
            2 => Self::ConsumerGroupUnknown,
            3 => Self::QueueUnknown,
            4 => Self::QueueCount,
            5 => Self::QueuesCannotShrink,
            6 => Self::Malformed,
            20 => Self::TransactionUnknown,
            21 => Self::TransactionOfOtherTopic,
            22 => Self::TooManyTransactions,
            23 => Self::QueuesOfOrderedTopic,
            40 => Self::OffsetOutOfRange,
            60 => Self::NotLite,
            61 => Self::LiteBinding,
            62 => Self::LiteTopics,
            63 => Self::LiteClientQuota,
            64 => Self::LiteSubscriptions,
            50 => Self::TopicWithoutOrder,
            51 => Self::GenerationUnderWay,
            52 => Self::GenerationNotPrepared,
            53 => Self::GenerationNotClosed,
            54 => Self::TooManyGenerations,
            55 => Self::GenerationEnded,
            _ => return None,
        })
    }
}

fn read_outcome(reader: &mut FieldReader<'_>) -> Result<DeliveryOutcome, MalformedField> {
    let number = reader.u8("outcome")?;
    DeliveryOutcome::from_number(number).ok_or_else(|| reader.malformed("outcome"))
}

fn read_change(reader: &mut FieldReader<'_>) -> Result<ChangeOutcome, MalformedField> {
    let number = reader.u8("outcome")?;
    if number != 0 {
        let outcome = DeliveryOutcome::from_number(number).ok_or_else(|| reader.malformed("outcome"))?;
        return Ok(ChangeOutcome::Not(outcome));
    }
    Ok(ChangeOutcome::Changed {
        until: UnixMillis(reader.u64("until")?),
        renewal: reader.u32("renewal")?,
        attempt: reader.u32("attempt")?,
    })
}
