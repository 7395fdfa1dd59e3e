//! Requests about offsets: what a consumer group committed, resets, and pulls, as the product's
//! executor serves them. Whatever says how far a queue or a group is waits for a read barrier first.
//!
//! | Request | Fields, little endian |
//! |---|---|
//! | 70 offset of the group that pulls | queue u32 |
//! | 71 the first, 72 the next of a queue | queue u32 |
//! | 73 the first since a time | queue u32, time u64 ms |
//! | 74 commit | queue u32, offset u64; the reset the client knows of u64, or nothing |
//! | 75 reset | reader u8, to where u8, queue u32, offset or time u64, id u64 |
//! | 76 pull | queue u32, offset u64, messages at most u32 |

use bytes::{Buf, BufMut, Bytes, BytesMut};
use ledgermq_broker::state::{Command, CommitOffset, ResetId, ResetProgress, StoredMessage, TopicId};
use ledgermq_common::clock::{Clock as _, UnixMillis};
use ledgermq_common::{QueueId, QueueOffset, ResetMark};
use ledgermq_raft_store::group::ProposeError;
use xxhash_rust::xxh3::xxh3_64;

use super::accounts::Reader;
use super::{Front, Response};

/// Where a reset moves a group to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResetTo {
    Beginning,
    End,
    At(UnixMillis),
    Offset(QueueId, QueueOffset),
}

#[derive(Debug, Clone, Copy)]
pub enum OffsetsRequest {
    Get { queue: QueueId },
    Beginning { queue: QueueId },
    End { queue: QueueId },
    At { queue: QueueId, at: UnixMillis },
    Commit { queue: QueueId, offset: QueueOffset, known: Option<ResetMark> },
    Reset { reader: Reader, to: ResetTo, id: ResetId },
    Pull { queue: QueueId, from: QueueOffset, messages_max: u32 },
}

impl Front {
    /// Also on a node that does not lead: its barrier says so.
    pub(super) async fn offsets(&self, request: OffsetsRequest) -> Result<Response, ProposeError> {
        if let OffsetsRequest::Pull { queue, from, messages_max } = request {
            let Some(topic) = self.state.topic(Reader::OFFSETS_IN.topic()) else {
                return Ok(Response::Pulled(Vec::new()));
            };
            return Ok(Response::Pulled(self.pull(topic.id, queue, from, messages_max, message_hash)));
        }
        if let OffsetsRequest::Commit { queue, offset, known } = request {
            let (consumer_group, topic) =
                (self.reader(Reader::Archive).await?, self.book(Reader::OFFSETS_IN).await?);
            let command = CommitOffset { consumer_group, topic, queue, offset, known };
            let command = Command::CommitOffset(command).encode(self.clock.now());
            return self.propose(command).await.map(Response::Answered);
        }
        if let Err(error) = self.group.read_barrier().await {
            return Ok(super::refused_barrier(error));
        }
        match request {
            OffsetsRequest::Reset { reader, to, id } => self.reset(reader, to, id).await,
            OffsetsRequest::Get { queue } => Ok(self.committed(queue)),
            read => Ok(Response::Offset(self.read_offset(read))),
        }
    }

    fn read_offset(&self, request: OffsetsRequest) -> Option<QueueOffset> {
        let topic = self.state.topic(Reader::OFFSETS_IN.topic())?.id;
        let range = |queue: QueueId| self.state.queue_ranges(topic)?.get(queue.get() as usize).cloned();
        match request {
            OffsetsRequest::Beginning { queue } => Some(QueueOffset(range(queue)?.start)),
            OffsetsRequest::End { queue } => Some(QueueOffset(range(queue)?.end)),
            OffsetsRequest::At { queue, at } => self.state.offset_at(topic, queue, at),
            _ => None,
        }
    }

    fn committed(&self, queue: QueueId) -> Response {
        let topic = self.state.topic(Reader::OFFSETS_IN.topic());
        let group = self.state.consumer_group(Reader::Archive.group());
        let (offset, last_reset) = topic
            .zip(group)
            .map(|(topic, group)| self.state.offset_since_reset(group.id, topic.id, queue))
            .unwrap_or_default();
        Response::Committed { offset, last_reset }
    }

    async fn reset(&self, reader: Reader, to: ResetTo, id: ResetId) -> Result<Response, ProposeError> {
        let (consumer_group, topic) = (self.reader(reader).await?, self.book(Reader::OFFSETS_IN).await?);
        let ranges = self.state.queue_ranges(topic).unwrap_or_default();
        let mut queues = Vec::new();
        for (queue, range) in (0u32..).map(QueueId).zip(ranges) {
            let offset = match to {
                ResetTo::Beginning => QueueOffset(range.start),
                ResetTo::End => QueueOffset(range.end),
                ResetTo::At(at) => self.state.offset_at(topic, queue, at).unwrap_or_default(),
                ResetTo::Offset(of, offset) if of == queue => offset,
                ResetTo::Offset(..) => continue,
            };
            queues.push((queue, offset));
        }
        let command = ResetProgress { consumer_group, topic, queues, id };
        let command = Command::ResetProgress(command).encode(self.clock.now());
        self.propose(command).await.map(Response::Answered)
    }

    /// What lies in a queue, each with a hash that `read` makes of its record, or 0 where the run has
    /// purged the record.
    pub(super) fn pull(
        &self,
        topic: TopicId,
        queue: QueueId,
        from: QueueOffset,
        messages_max: u32,
        read: fn(&Bytes) -> Option<u64>,
    ) -> Vec<(QueueOffset, u64)> {
        let entries = self.state.range(topic, queue, from, messages_max);
        let hash_of = |entry: ledgermq_broker::state::IndexEntry| {
            let record = self.group.read(entry.physical, entry.record_bytes).ok()?;
            // Other bytes than a message's are no message's hash.
            Some(read(&record).unwrap_or(1))
        };
        entries.into_iter().map(|(offset, entry)| (offset, hash_of(entry).unwrap_or(0))).collect()
    }
}

fn message_hash(record: &Bytes) -> Option<u64> {
    StoredMessage::decode(record).ok().map(|message| xxh3_64(message.id.as_bytes()))
}

impl OffsetsRequest {
    pub(super) fn is_read(&self) -> bool {
        matches!(self, Self::Get { .. } | Self::Beginning { .. } | Self::End { .. } | Self::At { .. })
    }

    pub(super) fn encode(&self, out: &mut BytesMut) {
        let put = |out: &mut BytesMut, kind: u8, queue: QueueId| {
            out.put_u8(kind);
            out.put_u32_le(queue.get());
        };
        match *self {
            Self::Get { queue } => put(out, 70, queue),
            Self::Beginning { queue } => put(out, 71, queue),
            Self::End { queue } => put(out, 72, queue),
            Self::At { queue, at } => {
                put(out, 73, queue);
                out.put_u64_le(at.get());
            }
            Self::Commit { queue, offset, known } => {
                put(out, 74, queue);
                out.put_u64_le(offset.get());
                if let Some(known) = known {
                    out.put_u64_le(known.get());
                }
            }
            Self::Reset { reader, to, id } => {
                let (kind, queue, value) = match to {
                    ResetTo::Beginning => (0, 0, 0),
                    ResetTo::End => (1, 0, 0),
                    ResetTo::At(at) => (2, 0, at.get()),
                    ResetTo::Offset(queue, offset) => (3, queue.get(), offset.get()),
                };
                out.put_slice(&[75, reader as u8, kind]);
                out.put_u32_le(queue);
                out.put_u64_le(value);
                out.put_u64_le(id.get());
            }
            Self::Pull { queue, from, messages_max } => {
                put(out, 76, queue);
                out.put_u64_le(from.get());
                out.put_u32_le(messages_max);
            }
        }
    }

    pub(super) fn decode(kind: u8, mut frame: Bytes) -> Option<Self> {
        if kind == 75 {
            let (reader, to) = (Reader::decode(&mut frame)?, frame.try_get_u8().ok()?);
            let (queue, value) = (QueueId(frame.try_get_u32_le().ok()?), frame.try_get_u64_le().ok()?);
            let to = match to {
                0 => ResetTo::Beginning,
                1 => ResetTo::End,
                2 => ResetTo::At(UnixMillis(value)),
                3 => ResetTo::Offset(queue, QueueOffset(value)),
                _ => return None,
            };
            return Some(Self::Reset { reader, to, id: ResetId(frame.try_get_u64_le().ok()?) });
        }
        let queue = QueueId(frame.try_get_u32_le().ok()?);
        Some(match kind {
            70 => Self::Get { queue },
            71 => Self::Beginning { queue },
            72 => Self::End { queue },
            73 => Self::At { queue, at: UnixMillis(frame.try_get_u64_le().ok()?) },
            74 => Self::Commit {
                queue,
                offset: QueueOffset(frame.try_get_u64_le().ok()?),
                known: match frame.has_remaining() {
                    true => Some(ResetMark(frame.try_get_u64_le().ok()?)),
                    false => None,
                },
            },
            76 => Self::Pull {
                queue,
                from: QueueOffset(frame.try_get_u64_le().ok()?),
                messages_max: frame.try_get_u32_le().ok()?,
            },
            _ => return None,
        })
    }
}
