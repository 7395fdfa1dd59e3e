//! Requests and answers as bytes.
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
//! | 50 to 55 | see [`ordered`](super::ordered) |
//! | 60 to 64 | see [`accounts`](super::accounts) |
//! | 70 to 76 | see [`offsets`](super::offsets) |
//! | 80, 81 | see [`letters`](super::letters) |
//! | 90 to 92 | see [`checks`](super::checks) |
//!
//! | Answer | Fields |
//! |---|---|
//! | 0 | the state machine's [`Answer`](ledgermq_broker::state::Answer) |
//! | 1 not the leader | the leader's node id plus one as u64, or 0 |
//! | 2 unknown outcome | |
//! | 3 placement | generation u32, queues u32 |
//! | 4 read | applied entries u64 |
//! | 5 offset | offset plus one as u64, or 0 |
//! | 6 pulled | each: offset u64, hash of what lies there u64 |
//! | 7 asked | as 92 |
//! | 8 committed | offset plus one as u64, or 0; last reset u64 |

use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use ledgermq_broker::state::command::AckEntry;
use ledgermq_broker::state::{Answer, Decision, DeliveryEpoch};
use ledgermq_common::clock::UnixMillis;
use ledgermq_common::{PhysicalOffset, QueueId, QueueOffset, ResetMark};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::accounts::AccountsRequest;
use super::checks::{ChecksRequest, decode_checks, put_checks};
use super::letters::LettersRequest;
use super::offsets::OffsetsRequest;
use super::ordered::OrderedRequest;
use super::{Request, Response};
use crate::network::SimStream;

/// Larger than any request of the workload.
const FRAME_BYTES_MAX: u32 = 1 << 20;

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
        let put_kind_and_entry = |out: &mut BytesMut, kind: u8, entry: &AckEntry| {
            out.put_u8(kind);
            put_entry(out, entry);
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
            Self::Ack(entry) => put_kind_and_entry(&mut out, 3, entry),
            Self::GiveUp(entry) => put_kind_and_entry(&mut out, 10, entry),
            Self::Change { entry, invisible_ms } => {
                put_kind_and_entry(&mut out, 4, entry);
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
            Self::Accounts(request) => request.encode(&mut out),
            Self::Offsets(request) => request.encode(&mut out),
            Self::Letters(request) => request.encode(&mut out),
            Self::Checks(request) => request.encode(&mut out),
        }
        out.freeze()
    }

    pub(super) fn decode(mut frame: Bytes) -> Option<Self> {
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
            kind @ 60..=64 => AccountsRequest::decode(kind, frame).map(Self::Accounts),
            kind @ 70..=76 => OffsetsRequest::decode(kind, frame).map(Self::Offsets),
            kind @ 80..=81 => LettersRequest::decode(kind, frame).map(Self::Letters),
            kind @ 90..=92 => ChecksRequest::decode(kind, frame).map(Self::Checks),
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

pub(super) fn put_entry(out: &mut BytesMut, entry: &AckEntry) {
    out.put_u32_le(entry.queue.get());
    out.put_u64_le(entry.offset.get());
    out.put_u64_le(entry.epoch.get());
}

pub(super) fn decode_entry(frame: &mut Bytes) -> Option<AckEntry> {
    Some(AckEntry {
        queue: QueueId(frame.try_get_u32_le().ok()?),
        offset: QueueOffset(frame.try_get_u64_le().ok()?),
        epoch: DeliveryEpoch(frame.try_get_u64_le().ok()?),
    })
}

impl Response {
    pub(super) fn encode(&self) -> Bytes {
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
            Self::Offset(offset) => {
                out.put_u8(5);
                out.put_u64_le(offset.map_or(0, |offset| offset.get() + 1));
            }
            Self::Committed { offset, last_reset } => {
                out.put_u8(8);
                out.put_u64_le(offset.map_or(0, |offset| offset.get() + 1));
                out.put_u64_le(last_reset.get());
            }
            Self::Pulled(messages) => {
                out.put_u8(6);
                for (offset, hash) in messages {
                    out.put_u64_le(offset.get());
                    out.put_u64_le(*hash);
                }
            }
            Self::Asked(checks) => {
                out.put_u8(7);
                put_checks(&mut out, checks);
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
            5 => Some(Self::Offset(frame.try_get_u64_le().ok()?.checked_sub(1).map(QueueOffset))),
            6 => {
                let mut messages = Vec::new();
                while frame.has_remaining() {
                    let offset = QueueOffset(frame.try_get_u64_le().ok()?);
                    messages.push((offset, frame.try_get_u64_le().ok()?));
                }
                Some(Self::Pulled(messages))
            }
            7 => decode_checks(frame).map(Self::Asked),
            8 => Some(Self::Committed {
                offset: frame.try_get_u64_le().ok()?.checked_sub(1).map(QueueOffset),
                last_reset: ResetMark(frame.try_get_u64_le().ok()?),
            }),
            _ => None,
        }
    }
}
