//! The state as records: the form in which it is checkpointed, sent as a snapshot and compared.
//!
//! Key (big endian, so that keys sort by number):
//!
//! | Offset | Bytes | Field |
//! |---|---|---|
//! | 0 | 1 | kind: `t` topic, `q` queues, `g` consumer group, `p` progress, `d` timers (alone) or a recalled timer, `u` committed offset or resets, `x` transactions, `n` generations, `l` lite topics, `f` filters |
//! | 1 | 4 | topic (`t`, `q`) or consumer group (`g`, `p`, `u`, `f`) |
//! | 1 | 8 | `d`: delivery time of the recalled timer |
//! | 9 | 8 | `d`: its physical offset |
//! | 5 | 4 | `q`: block of queues; `p`, `u`, `f`: topic |
//! | 9 | 4 | `p`, `u`: queue; resets have none |
//! | 1 | 1 | `x`: 1 an undecided transaction, 2 outcomes |
//! | 1 | … | `r` (retention): 1 a topic's, then its number; 2 late references, topic and queue; 3 a carried record, its identity; 4 expired unread, consumer group and topic; 5 marks of time; 6 progress |
//! | 1 | 1 | `n`: 1 the generations of a topic, 2 how far a consumer group drained them |
//! | 2 | 4 | `n`: topic (1), consumer group (2) |
//! | 6 | 4 | `n`: topic (2) |
//! | 2 | 8 | `x`: physical offset of the half's record, or number of the chunk of outcomes |
//! | 1 | 1 | `l`: 1 a lite topic, 2 a client that reads them, 3 their parent, 4 attributes of a consumer group |
//! | 2 | 4 | `l`: topic (1, 3) or consumer group (2, 4) |
//! | 6 | 4 or 8 | `l`: queue (1), client hash (2) |
//!
//! Value (little endian): version u8 (1), then
//!
//! | Kind | Fields |
//! |---|---|
//! | topic | name, settings as in `CreateTopic`, created u64 ms |
//! | queues | list of (min u64, max u64): [`QUEUES_PER_RECORD`] queues of one topic, fewer in its last block |
//! | consumer group | name, settings as in `CreateConsumerGroup`, created u64 ms |
//! | transaction | topic u32, queue u32, record bytes u32, tag code u32, message id hash u64, store time u64, next check u64, checks u32, parked u8, parked at u64 |
//! | outcomes | list of (transaction u64, message id hash u64, topic u32, decision u8, queue u32, offset u64, decided at u64), oldest first |
//! | progress | next u64; list of holes (start u64, end u64); list of leases (offset u64, until u64, popped u64, epoch u64, client u64, receive u64, attempt u32, renewal u32, flags u8: 1 auto-renew, 2 suspended; order key u64) |
//! | timers | fired through: delivery time u64 ms, physical offset u64; pending u64 |
//! | recalled timer | none |
//! | committed offset | u64 |
//! | resets | list of (queue u32, log index of the last reset u64); list of ids u64, oldest first |
//! | a topic's retention | u64 ms, 0 for ever |
//! | late references | list of (stretch u64, last queue offset u64) |
//! | carried record | physical offset u64 |
//! | expired unread | u64 |
//! | marks of time | apart u64; list of (physical offset u64, log time u64 ms) |
//! | retention progress | released below u64; expired messages, carried records, carried bytes u64 |
//! | lite topic | name, min u64, max u64, used u64 ms |
//! | lite client | client id, topic u32, version u64, list of queues u32 it reads, list of queues u32 it lost |
//! | lite parent | next queue u32, idle time u64 ms |
//! | group attributes | as in `SetGroupAttributes` |
//! | generations | current u32, layout; is there a next u8, and then: its number u32, layout, closed u8; list of ended: number u32, layout, ended u64 ms, list of ends u64 |
//! | drained | below u32, resets u32 |
//! | filters | as in `SetFilters`, two or more |
//!
//! A layout is as in `PrepareGeneration`.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use ledgermq_common::clock::UnixMillis;
use ledgermq_common::{LogIndex, PhysicalOffset, QueueId, QueueOffset, ResetMark, Term};
use ledgermq_raft_store::EntryId;

use super::applied::generations::{Drained, EndedGeneration, Generations, NextGeneration};
use super::applied::lite::{LiteClient, LiteParent, LiteTopic};
use super::applied::offsets::Resets;
use super::applied::progress::{Lease, Progress};
use super::applied::retention::{RetentionProgress, TimeMarks};
use super::applied::transactions::{Outcome, Transaction};
use super::applied::{ConsumerGroup, QueueRange, Scalars};
use super::command::wire::{FieldReader, MalformedField, put_count, put_list, put_text};
use super::command::{
    ConsumerGroupSettings, GroupAttributes, TopicSettings, put_filters, put_layout, read_filters, read_layout,
};
use super::names::{
    AttemptHash, ClientHash, ConsumerGroupId, Decision, DeliveryEpoch, Generation, MessageIdHash, OrderKey,
    ResetId, TopicId,
};
use super::timers::{TimerKey, TimerProgress};

/// A message to one queue rewrites the record of this many; a topic has so many fewer records.
pub(crate) const QUEUES_PER_RECORD: usize = 64;
const VALUE_VERSION: u8 = 1;
const AUTO_RENEW: u8 = 1;
const SUSPENDED: u8 = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum RecordKey {
    Topic(TopicId),
    Queues(TopicId, u32),
    ConsumerGroup(ConsumerGroupId),
    Progress(ConsumerGroupId, TopicId, u32),
    Transaction(PhysicalOffset),
    /// A chunk of outcomes, by number.
    TransactionOutcomes(u64),
    Timers,
    Recalled(TimerKey),
    Offset(ConsumerGroupId, TopicId, u32),
    Resets(ConsumerGroupId, TopicId),
    TopicRetention(TopicId),
    LateReferences(TopicId, u32),
    /// By the identity of the half or timer.
    Carried(PhysicalOffset),
    ExpiredUnread(ConsumerGroupId, TopicId),
    TimeMarks,
    RetentionProgress,
    LiteTopic(TopicId, u32),
    LiteClient(ConsumerGroupId, ClientHash),
    LiteParent(TopicId),
    GroupAttributes(ConsumerGroupId),
    Generations(TopicId),
    Drained(ConsumerGroupId, TopicId),
    Filters(ConsumerGroupId, TopicId),
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum RecordValue {
    Topic { name: String, settings: TopicSettings, created_at: UnixMillis },
    Queues(Vec<QueueRange>),
    ConsumerGroup(Arc<ConsumerGroup>),
    Progress(Arc<Progress>),
    Transaction(Transaction),
    TransactionOutcomes(Arc<Vec<Outcome>>),
    Timers(TimerProgress),
    Recalled,
    Offset(u64),
    Resets(Resets),
    TopicRetention(u64),
    LateReferences(BTreeMap<u64, u64>),
    Carried(PhysicalOffset),
    ExpiredUnread(u64),
    TimeMarks(TimeMarks),
    RetentionProgress(RetentionProgress),
    LiteTopic(LiteTopic),
    LiteClient(LiteClient),
    LiteParent(LiteParent),
    GroupAttributes(GroupAttributes),
    Generations(Generations),
    Drained(Drained),
    Filters(Vec<String>),
}

impl RecordKey {
    pub(crate) fn queues_of(topic: TopicId, queue: u32) -> Self {
        Self::Queues(topic, queue / QUEUES_PER_RECORD as u32)
    }

    pub(crate) fn encode(self) -> Vec<u8> {
        let mut out = Vec::with_capacity(13);
        match self {
            Self::Topic(topic) => {
                out.put_u8(b't');
                out.put_u32(topic.get());
            }
            Self::Queues(topic, block) => {
                out.put_u8(b'q');
                out.put_u32(topic.get());
                out.put_u32(block);
            }
            Self::ConsumerGroup(group) => {
                out.put_u8(b'g');
                out.put_u32(group.get());
            }
            Self::Progress(group, topic, queue) => {
                out.put_u8(b'p');
                out.put_u32(group.get());
                out.put_u32(topic.get());
                out.put_u32(queue);
            }
            Self::Transaction(id) => {
                out.put_slice(&[b'x', 1]);
                out.put_u64(id.get());
            }
            Self::TransactionOutcomes(number) => {
                out.put_slice(&[b'x', 2]);
                out.put_u64(number);
            }
            Self::Offset(group, topic, queue) => {
                out.put_u8(b'u');
                out.put_u32(group.get());
                out.put_u32(topic.get());
                out.put_u32(queue);
            }
            Self::Resets(group, topic) => {
                out.put_u8(b'u');
                out.put_u32(group.get());
                out.put_u32(topic.get());
            }
            Self::TopicRetention(topic) => {
                out.put_slice(&[b'r', 1]);
                out.put_u32(topic.get());
            }
            Self::LateReferences(topic, queue) => {
                out.put_slice(&[b'r', 2]);
                out.put_u32(topic.get());
                out.put_u32(queue);
            }
            Self::Carried(identity) => {
                out.put_slice(&[b'r', 3]);
                out.put_u64(identity.get());
            }
            Self::ExpiredUnread(group, topic) => {
                out.put_slice(&[b'r', 4]);
                out.put_u32(group.get());
                out.put_u32(topic.get());
            }
            Self::TimeMarks => out.put_slice(&[b'r', 5]),
            Self::RetentionProgress => out.put_slice(&[b'r', 6]),
            Self::LiteTopic(topic, queue) => {
                out.put_slice(&[b'l', 1]);
                out.put_u32(topic.get());
                out.put_u32(queue);
            }
            Self::LiteClient(group, client) => {
                out.put_slice(&[b'l', 2]);
                out.put_u32(group.get());
                out.put_u64(client.get());
            }
            Self::LiteParent(topic) => {
                out.put_slice(&[b'l', 3]);
                out.put_u32(topic.get());
            }
            Self::GroupAttributes(group) => {
                out.put_slice(&[b'l', 4]);
                out.put_u32(group.get());
            }
            Self::Generations(topic) => {
                out.put_slice(&[b'n', 1]);
                out.put_u32(topic.get());
            }
            Self::Drained(group, topic) => {
                out.put_slice(&[b'n', 2]);
                out.put_u32(group.get());
                out.put_u32(topic.get());
            }
            Self::Filters(group, topic) => {
                out.put_u8(b'f');
                out.put_u32(group.get());
                out.put_u32(topic.get());
            }
            Self::Timers => out.put_u8(b'd'),
            Self::Recalled(key) => {
                out.put_u8(b'd');
                out.put_u64(key.deliver_at.get());
                out.put_u64(key.physical.get());
            }
        }
        out
    }

    pub(crate) fn decode(key: &[u8]) -> Option<Self> {
        let number = |at: usize| {
            key.get(at..).and_then(|rest| rest.first_chunk::<4>()).map(|bytes| u32::from_be_bytes(*bytes))
        };
        let long = |at: usize| {
            key.get(at..).and_then(|rest| rest.first_chunk::<8>()).map(|bytes| u64::from_be_bytes(*bytes))
        };
        match (key.first()?, key.len()) {
            (b't', 5) => Some(Self::Topic(TopicId(number(1)?))),
            (b'q', 9) => Some(Self::Queues(TopicId(number(1)?), number(5)?)),
            (b'g', 5) => Some(Self::ConsumerGroup(ConsumerGroupId(number(1)?))),
            (b'p', 13) => Some(Self::Progress(ConsumerGroupId(number(1)?), TopicId(number(5)?), number(9)?)),
            (b'x', 10) => match key.get(1)? {
                1 => Some(Self::Transaction(PhysicalOffset(long(2)?))),
                2 => Some(Self::TransactionOutcomes(long(2)?)),
                _ => None,
            },
            (b'u', 13) => Some(Self::Offset(ConsumerGroupId(number(1)?), TopicId(number(5)?), number(9)?)),
            (b'u', 9) => Some(Self::Resets(ConsumerGroupId(number(1)?), TopicId(number(5)?))),
            (b'r', len) => match (key.get(1)?, len) {
                (1, 6) => Some(Self::TopicRetention(TopicId(number(2)?))),
                (2, 10) => Some(Self::LateReferences(TopicId(number(2)?), number(6)?)),
                (3, 10) => Some(Self::Carried(PhysicalOffset(long(2)?))),
                (4, 10) => Some(Self::ExpiredUnread(ConsumerGroupId(number(2)?), TopicId(number(6)?))),
                (5, 2) => Some(Self::TimeMarks),
                (6, 2) => Some(Self::RetentionProgress),
                _ => None,
            },
            (b'l', 10) if key.get(1) == Some(&1) => Some(Self::LiteTopic(TopicId(number(2)?), number(6)?)),
            (b'l', 14) if key.get(1) == Some(&2) => {
                Some(Self::LiteClient(ConsumerGroupId(number(2)?), ClientHash(long(6)?)))
            }
            (b'l', 6) if key.get(1) == Some(&3) => Some(Self::LiteParent(TopicId(number(2)?))),
            (b'l', 6) if key.get(1) == Some(&4) => Some(Self::GroupAttributes(ConsumerGroupId(number(2)?))),
            (b'n', 6) if key.get(1) == Some(&1) => Some(Self::Generations(TopicId(number(2)?))),
            (b'n', 10) if key.get(1) == Some(&2) => {
                Some(Self::Drained(ConsumerGroupId(number(2)?), TopicId(number(6)?)))
            }
            (b'f', 9) => Some(Self::Filters(ConsumerGroupId(number(1)?), TopicId(number(5)?))),
            (b'd', 1) => Some(Self::Timers),
            (b'd', 17) => {
                let wide = |at: usize| Some((u64::from(number(at)?) << 32) | u64::from(number(at + 4)?));
                let (deliver_at, physical) = (UnixMillis(wide(1)?), PhysicalOffset(wide(9)?));
                Some(Self::Recalled(TimerKey { deliver_at, physical }))
            }
            _ => None,
        }
    }
}

impl RecordValue {
    pub(crate) fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u8(VALUE_VERSION);
        match self {
            Self::Topic { name, settings, created_at } => {
                put_text(&mut out, name);
                settings.put(&mut out);
                out.put_u64_le(created_at.get());
            }
            Self::Queues(ranges) => put_list(&mut out, ranges, |out, range| {
                out.put_u64_le(range.min);
                out.put_u64_le(range.max);
            }),
            Self::ConsumerGroup(group) => {
                put_text(&mut out, &group.name);
                group.settings.put(&mut out);
                out.put_u64_le(group.created_at.get());
            }
            Self::Progress(progress) => {
                out.put_u64_le(progress.next);
                put_count(&mut out, progress.holes.len());
                for (&start, &end) in &progress.holes {
                    out.put_u64_le(start);
                    out.put_u64_le(end);
                }
                put_count(&mut out, progress.leases.len());
                for (&offset, lease) in &progress.leases {
                    out.put_u64_le(offset);
                    out.put_u64_le(lease.until.get());
                    out.put_u64_le(lease.popped_at.get());
                    out.put_u64_le(lease.epoch.get());
                    out.put_u64_le(lease.client.get());
                    out.put_u64_le(lease.received_by.get());
                    out.put_u32_le(lease.attempt);
                    out.put_u32_le(lease.renewal);
                    let auto_renew = if lease.auto_renew { AUTO_RENEW } else { 0 };
                    let suspended = if lease.suspended { SUSPENDED } else { 0 };
                    out.put_u8(auto_renew | suspended);
                    out.put_u64_le(lease.order.get());
                }
            }
            Self::Transaction(open) => put_transaction(&mut out, open),
            Self::TransactionOutcomes(outcomes) => put_list(&mut out, outcomes, put_outcome),
            Self::Timers(progress) => {
                out.put_u64_le(progress.fired_through.deliver_at.get());
                out.put_u64_le(progress.fired_through.physical.get());
                out.put_u64_le(progress.pending);
            }
            Self::Offset(offset) => out.put_u64_le(*offset),
            Self::Resets(resets) => {
                put_count(&mut out, resets.last.len());
                for (&queue, &last) in &resets.last {
                    out.put_u32_le(queue);
                    out.put_u64_le(last.get());
                }
                put_count(&mut out, resets.recent.len());
                resets.recent.iter().for_each(|id| out.put_u64_le(id.get()));
            }
            Self::TopicRetention(value) | Self::ExpiredUnread(value) => out.put_u64_le(*value),
            Self::Carried(place) => out.put_u64_le(place.get()),
            Self::LateReferences(stretches) => {
                put_count(&mut out, stretches.len());
                for (&stretch, &last) in stretches {
                    out.put_u64_le(stretch);
                    out.put_u64_le(last);
                }
            }
            Self::TimeMarks(marks) => {
                out.put_u64_le(marks.apart_bytes);
                put_list(&mut out, &marks.marks, |out, (at, time)| {
                    out.put_u64_le(at.get());
                    out.put_u64_le(time.get());
                });
            }
            Self::RetentionProgress(progress) => {
                out.put_u64_le(progress.released_below.get());
                out.put_u64_le(progress.expired_messages);
                out.put_u64_le(progress.carried_records);
                out.put_u64_le(progress.carried_bytes);
            }
            Self::LiteTopic(lite) => {
                put_text(&mut out, &lite.name);
                out.put_u64_le(lite.range.min);
                out.put_u64_le(lite.range.max);
                out.put_u64_le(lite.used_at.get());
            }
            Self::LiteClient(client) => {
                put_text(&mut out, &client.client_id);
                out.put_u32_le(client.topic.get());
                out.put_u64_le(client.version);
                for queues in [&client.reads, &client.lost] {
                    put_count(&mut out, queues.len());
                    queues.iter().for_each(|queue| out.put_u32_le(*queue));
                }
            }
            Self::LiteParent(parent) => {
                out.put_u32_le(parent.next_queue);
                out.put_u64_le(parent.expire_after_ms);
            }
            Self::GroupAttributes(attributes) => attributes.put(&mut out),
            Self::Generations(generations) => put_generations(&mut out, generations),
            Self::Drained(drained) => {
                out.put_u32_le(drained.below.get());
                out.put_u32_le(drained.resets);
            }
            Self::Filters(filters) => put_filters(&mut out, filters),
            Self::Recalled => {}
        }
        out.freeze()
    }

    pub(crate) fn decode(key: RecordKey, value: &Bytes) -> Result<Self, MalformedField> {
        let mut reader = FieldReader::new(value);
        let reader = &mut reader;
        if reader.u8("value version")? != VALUE_VERSION {
            return Err(reader.malformed("value version"));
        }
        let value = match key {
            RecordKey::Topic(_) => Self::Topic {
                name: reader.text("name")?,
                settings: TopicSettings::read(reader)?,
                created_at: UnixMillis(reader.u64("created")?),
            },
            RecordKey::Queues(..) => Self::Queues(reader.list(16, "queues", |reader| {
                let (min, max) = (reader.u64("min")?, reader.u64("max")?);
                if min > max { Err(reader.malformed("queue")) } else { Ok(QueueRange { min, max }) }
            })?),
            RecordKey::ConsumerGroup(_) => Self::ConsumerGroup(Arc::new(ConsumerGroup {
                name: reader.text("name")?,
                settings: ConsumerGroupSettings::read(reader)?,
                created_at: UnixMillis(reader.u64("created")?),
            })),
            RecordKey::Progress(..) => Self::Progress(Arc::new(read_progress(reader)?)),
            RecordKey::Transaction(_) => Self::Transaction(read_transaction(reader)?),
            RecordKey::TransactionOutcomes(_) => {
                Self::TransactionOutcomes(Arc::new(reader.list(41, "outcomes", read_outcome)?))
            }
            RecordKey::Timers => Self::Timers(TimerProgress {
                fired_through: TimerKey {
                    deliver_at: UnixMillis(reader.u64("fired through")?),
                    physical: PhysicalOffset(reader.u64("fired through offset")?),
                },
                pending: reader.u64("pending timers")?,
            }),
            RecordKey::Recalled(_) => Self::Recalled,
            RecordKey::Generations(_) => Self::Generations(read_generations(reader)?),
            RecordKey::Drained(..) => Self::Drained(Drained {
                below: Generation(reader.u32("drained below")?),
                resets: reader.u32("resets")?,
            }),
            RecordKey::Filters(..) => Self::Filters(read_filters(reader)?),
            RecordKey::Offset(..) => Self::Offset(reader.u64("committed offset")?),
            RecordKey::Resets(..) => {
                let last = reader.list(12, "resets", |reader| {
                    Ok((reader.u32("queue")?, ResetMark(reader.u64("last reset")?)))
                })?;
                let recent = reader.list(8, "reset ids", |reader| reader.u64("reset id").map(ResetId))?;
                Self::Resets(Resets { last: last.into_iter().collect(), recent: recent.into() })
            }
            RecordKey::TopicRetention(_) => Self::TopicRetention(reader.u64("retention")?),
            RecordKey::ExpiredUnread(..) => Self::ExpiredUnread(reader.u64("expired unread")?),
            RecordKey::Carried(_) => Self::Carried(PhysicalOffset(reader.u64("place")?)),
            RecordKey::LateReferences(..) => {
                let stretches = reader.list(16, "late references", |reader| {
                    Ok((reader.u64("stretch")?, reader.u64("last offset")?))
                })?;
                Self::LateReferences(stretches.into_iter().collect())
            }
            RecordKey::TimeMarks => Self::TimeMarks(TimeMarks {
                apart_bytes: reader.u64("bytes between marks")?,
                marks: reader.list(16, "marks", |reader| {
                    Ok((PhysicalOffset(reader.u64("mark")?), UnixMillis(reader.u64("log time")?)))
                })?,
            }),
            RecordKey::RetentionProgress => Self::RetentionProgress(RetentionProgress {
                released_below: PhysicalOffset(reader.u64("released below")?),
                expired_messages: reader.u64("expired messages")?,
                carried_records: reader.u64("carried records")?,
                carried_bytes: reader.u64("carried bytes")?,
            }),
            RecordKey::LiteTopic(..) => Self::LiteTopic(LiteTopic {
                name: Arc::from(reader.text("name")?),
                range: QueueRange { min: reader.u64("min")?, max: reader.u64("max")? },
                used_at: UnixMillis(reader.u64("used")?),
            }),
            RecordKey::LiteClient(..) => {
                let queues = |reader: &mut FieldReader<'_>, field| {
                    reader.list(4, field, |reader| reader.u32(field)).map(|list| list.into_iter().collect())
                };
                Self::LiteClient(LiteClient {
                    client_id: reader.text("client id")?,
                    topic: TopicId(reader.u32("topic")?),
                    version: reader.u64("version")?,
                    reads: queues(reader, "queues it reads")?,
                    lost: queues(reader, "queues it lost")?,
                })
            }
            RecordKey::LiteParent(_) => Self::LiteParent(LiteParent {
                next_queue: reader.u32("next queue")?,
                expire_after_ms: reader.u64("idle time")?,
            }),
            RecordKey::GroupAttributes(_) => Self::GroupAttributes(GroupAttributes::read(reader)?),
        };
        reader.end("end of the value")?;
        Ok(value)
    }
}

fn put_generations(out: &mut BytesMut, generations: &Generations) {
    out.put_u32_le(generations.current.get());
    put_layout(out, &generations.layout);
    out.put_u8(u8::from(generations.next.is_some()));
    if let Some(next) = &generations.next {
        out.put_u32_le(next.generation.get());
        put_layout(out, &next.layout);
        out.put_u8(u8::from(next.is_closed));
    }
    put_list(out, &generations.ended, |out, ended| {
        out.put_u32_le(ended.generation.get());
        put_layout(out, &ended.layout);
        out.put_u64_le(ended.ended_at.get());
        put_list(out, &ended.ends, |out, end| out.put_u64_le(*end));
    });
}

fn read_generations(reader: &mut FieldReader<'_>) -> Result<Generations, MalformedField> {
    let current = Generation(reader.u32("current generation")?);
    let layout = read_layout(reader)?;
    let next = match reader.bool("next generation")? {
        false => None,
        true => Some(NextGeneration {
            generation: Generation(reader.u32("next generation")?),
            layout: read_layout(reader)?,
            is_closed: reader.bool("closed")?,
        }),
    };
    let ended = reader.list(24, "ended generations", |reader| {
        Ok(EndedGeneration {
            generation: Generation(reader.u32("ended generation")?),
            layout: read_layout(reader)?,
            ended_at: UnixMillis(reader.u64("ended at")?),
            ends: reader.list(8, "ends", |reader| reader.u64("end"))?,
        })
    })?;
    Ok(Generations { current, layout, next, ended })
}

fn put_transaction(out: &mut BytesMut, open: &Transaction) {
    out.put_u32_le(open.topic.get());
    out.put_u32_le(open.queue.get());
    out.put_u32_le(open.record_bytes);
    out.put_u32_le(open.tag_code);
    out.put_u64_le(open.message.get());
    out.put_u64_le(open.halved_at.get());
    out.put_u64_le(open.next_check_at.get());
    out.put_u32_le(open.checks);
    out.put_u8(u8::from(open.parked_at.is_some()));
    out.put_u64_le(open.parked_at.map_or(0, UnixMillis::get));
}

fn read_transaction(reader: &mut FieldReader<'_>) -> Result<Transaction, MalformedField> {
    let mut open = Transaction {
        topic: TopicId(reader.u32("topic")?),
        queue: QueueId(reader.u32("queue")?),
        record_bytes: reader.u32("record length")?,
        tag_code: reader.u32("tag code")?,
        message: MessageIdHash(reader.u64("message id hash")?),
        halved_at: UnixMillis(reader.u64("store time")?),
        next_check_at: UnixMillis(reader.u64("next check")?),
        checks: reader.u32("checks")?,
        parked_at: None,
    };
    let is_parked = reader.bool("parked")?;
    let parked_at = UnixMillis(reader.u64("parked at")?);
    open.parked_at = is_parked.then_some(parked_at);
    Ok(open)
}

fn put_outcome(out: &mut BytesMut, outcome: &Outcome) {
    out.put_u64_le(outcome.transaction.get());
    out.put_u64_le(outcome.message.get());
    out.put_u32_le(outcome.topic.get());
    out.put_u8(outcome.decision.number());
    out.put_u32_le(outcome.queue.get());
    out.put_u64_le(outcome.offset.get());
    out.put_u64_le(outcome.decided_at.get());
}

fn read_outcome(reader: &mut FieldReader<'_>) -> Result<Outcome, MalformedField> {
    Ok(Outcome {
        transaction: PhysicalOffset(reader.u64("transaction")?),
        message: MessageIdHash(reader.u64("message id hash")?),
        topic: TopicId(reader.u32("topic")?),
        decision: Decision::from_number(reader.u8("decision")?)
            .ok_or_else(|| reader.malformed("decision"))?,
        queue: QueueId(reader.u32("queue")?),
        offset: QueueOffset(reader.u64("offset")?),
        decided_at: UnixMillis(reader.u64("decided at")?),
    })
}

fn read_progress(reader: &mut FieldReader<'_>) -> Result<Progress, MalformedField> {
    let next = reader.u64("next")?;
    let holes = reader.list(16, "holes", |reader| Ok((reader.u64("start")?, reader.u64("end")?)))?;
    let leases = reader.list(65, "leases", |reader| {
        let offset = reader.u64("offset")?;
        let mut lease = Lease {
            until: UnixMillis(reader.u64("until")?),
            popped_at: UnixMillis(reader.u64("popped")?),
            epoch: DeliveryEpoch(reader.u64("epoch")?),
            client: ClientHash(reader.u64("client")?),
            received_by: AttemptHash(reader.u64("receive")?),
            attempt: reader.u32("attempt")?,
            renewal: reader.u32("renewal")?,
            auto_renew: false,
            suspended: false,
            order: OrderKey(0),
        };
        let flags = reader.u8("lease flags")?;
        if flags & !(AUTO_RENEW | SUSPENDED) != 0 {
            return Err(reader.malformed("lease flags"));
        }
        lease.auto_renew = flags & AUTO_RENEW != 0;
        lease.suspended = flags & SUSPENDED != 0;
        lease.order = OrderKey(reader.u64("order key")?);
        Ok((offset, lease))
    })?;
    let holes: BTreeMap<u64, u64> = holes.into_iter().collect();
    if holes.iter().any(|(start, end)| start >= end || *end > next) {
        return Err(reader.malformed("holes"));
    }
    Ok(Progress { next, holes, leases: leases.into_iter().collect() })
}

impl Scalars {
    /// `applied` (presence u8, term u64, index u64), log time u64, next topic u32, next consumer
    /// group u32, next epoch u64.
    pub(crate) fn put(&self, out: &mut BytesMut) {
        let applied = self.applied.unwrap_or_default();
        out.put_u8(u8::from(self.applied.is_some()));
        out.put_u64_le(applied.term.get());
        out.put_u64_le(applied.index.get());
        out.put_u64_le(self.now.get());
        out.put_u32_le(self.next_topic);
        out.put_u32_le(self.next_consumer_group);
        out.put_u64_le(self.next_epoch);
    }

    pub(crate) fn read(reader: &mut FieldReader<'_>) -> Result<Self, MalformedField> {
        let is_applied = reader.bool("applied")?;
        let term = Term(reader.u64("term")?);
        let index = LogIndex(reader.u64("index")?);
        Ok(Self {
            applied: is_applied.then_some(EntryId { term, index }),
            now: UnixMillis(reader.u64("log time")?),
            next_topic: reader.u32("next topic")?,
            next_consumer_group: reader.u32("next consumer group")?,
            next_epoch: reader.u64("next epoch")?,
        })
    }
}
