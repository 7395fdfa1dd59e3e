//! Commands of transactions.
//!
//! `AppendHalves`: stores half messages, all or none. Nobody sees them.
//!
//! | Offset | Bytes | Field |
//! |---|---|---|
//! | 12 | 4 | topic |
//! | 16 | 4 | count of halves |
//! | 20 | … | per half: first check u32 (ms after it is stored), then its message record |
//!
//! `EndTransaction`: decides one transaction. It carries no body: a commit makes the half's own bytes visible.
//!
//! | Offset | Bytes | Field |
//! |---|---|---|
//! | 12 | 4 | topic |
//! | 16 | 8 | transaction: physical offset of the half's record |
//! | 24 | 8 | hash of the half's message id |
//! | 32 | 1 | decision: 1 commit, 2 roll back |
//! | 33 | 1 | source: 1 the producer, 2 its answer to a check, 3 an administrator |
//!
//! `CountTransactionChecks`: ms until the next check u64; list of (transaction u64, number of the check u32).
//! `ParkTransactions`: list of (transaction u64, checks made u32).

use bytes::{BufMut, Bytes, BytesMut};
use ledgermq_common::PhysicalOffset;
use ledgermq_common::clock::UnixMillis;

use super::append::AppendedMessage;
use super::message::{NewMessage, RECORD_HEADER_BYTES};
use super::wire::{FieldReader, MalformedField, put_count, put_list};
use super::{CommandError, HEADER_BYTES, Kind, put_header};
use crate::state::names::{Decision, MessageIdHash, TopicId};

const FIXED_BYTES: usize = HEADER_BYTES + 8;
const HALF_FIXED_BYTES: usize = 4;

/// A half message on its way into the log.
#[derive(Debug, Clone)]
pub struct NewHalf {
    pub message: NewMessage,
    /// Nobody is asked for the outcome before the half has lain for this long.
    pub first_check_ms: u32,
}

/// Length of the command [`encode_halves`] makes, for checking it against the limit before.
pub fn encoded_halves_bytes(halves: &[NewHalf]) -> usize {
    FIXED_BYTES + halves.iter().map(|half| HALF_FIXED_BYTES + half.message.record_bytes()).sum::<usize>()
}

/// Encodes the command that stores `halves`; each body is copied once.
pub fn encode_halves(stamped_at: UnixMillis, topic: TopicId, halves: &[NewHalf]) -> Bytes {
    let bytes = encoded_halves_bytes(halves);
    let mut out = BytesMut::with_capacity(bytes);
    put_header(&mut out, Kind::AppendHalves, stamped_at);
    out.put_u32_le(topic.get());
    put_count(&mut out, halves.len());
    for half in halves {
        out.put_u32_le(half.first_check_ms);
        half.message.put_record(&mut out, topic);
    }
    assert_eq!(out.len(), bytes, "halves command length");
    out.freeze()
}

#[derive(Debug, Clone, PartialEq)]
pub struct AppendHalves {
    pub topic: TopicId,
    pub halves: Vec<AppendedHalf>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct AppendedHalf {
    pub first_check_ms: u32,
    pub message: AppendedMessage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EndTransaction {
    pub topic: TopicId,
    pub transaction: PhysicalOffset,
    pub message: MessageIdHash,
    pub decision: Decision,
    pub source: DecisionSource,
}

/// Who decided. The numbers are in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum DecisionSource {
    Producer = 1,
    Check = 2,
    Administrator = 3,
}

/// Producers were asked for the outcome of these transactions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CountTransactionChecks {
    /// From the log time of the entry.
    pub next_check_ms: u64,
    pub checks: Vec<TransactionCheck>,
}

/// The `number`-th check of a transaction, from 1. Counts only if the one before was the last, so a
/// repeated report counts once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransactionCheck {
    pub transaction: PhysicalOffset,
    pub number: u32,
}

/// These transactions were asked about often enough: they wait for an administrator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParkTransactions {
    /// `number` is how many checks were made; a transaction with more or fewer stays as it is.
    pub transactions: Vec<TransactionCheck>,
}

impl AppendHalves {
    pub(super) fn put(&self, out: &mut BytesMut) {
        out.put_u32_le(self.topic.get());
        put_count(out, self.halves.len());
        for half in &self.halves {
            out.put_u32_le(half.first_check_ms);
            assert_eq!(out.len(), half.message.record_at as usize, "record position");
            out.put_slice(&half.message.record);
        }
    }

    pub(super) fn read(reader: &mut FieldReader<'_>) -> Result<Self, CommandError> {
        let topic = TopicId(reader.u32("topic")?);
        let count = reader.count(HALF_FIXED_BYTES + RECORD_HEADER_BYTES, "half count")?;
        let mut halves = Vec::with_capacity(count);
        for _ in 0..count {
            let first_check_ms = reader.u32("first check")?;
            let message = AppendedMessage::read(reader, topic)?;
            halves.push(AppendedHalf { first_check_ms, message });
        }
        Ok(Self { topic, halves })
    }
}

impl EndTransaction {
    pub(super) fn put(&self, out: &mut BytesMut) {
        out.put_u32_le(self.topic.get());
        out.put_u64_le(self.transaction.get());
        out.put_u64_le(self.message.get());
        out.put_u8(self.decision.number());
        out.put_u8(self.source as u8);
    }

    pub(super) fn read(reader: &mut FieldReader<'_>) -> Result<Self, MalformedField> {
        Ok(Self {
            topic: TopicId(reader.u32("topic")?),
            transaction: PhysicalOffset(reader.u64("transaction")?),
            message: MessageIdHash(reader.u64("message id hash")?),
            decision: Decision::from_number(reader.u8("decision")?)
                .ok_or_else(|| reader.malformed("decision"))?,
            source: match reader.u8("source")? {
                1 => DecisionSource::Producer,
                2 => DecisionSource::Check,
                3 => DecisionSource::Administrator,
                _ => return Err(reader.malformed("source")),
            },
        })
    }
}

impl CountTransactionChecks {
    pub(super) fn put(&self, out: &mut BytesMut) {
        out.put_u64_le(self.next_check_ms);
        put_checks(out, &self.checks);
    }

    pub(super) fn read(reader: &mut FieldReader<'_>) -> Result<Self, MalformedField> {
        Ok(Self { next_check_ms: reader.u64("next check")?, checks: read_checks(reader)? })
    }
}

impl ParkTransactions {
    pub(super) fn put(&self, out: &mut BytesMut) {
        put_checks(out, &self.transactions);
    }

    pub(super) fn read(reader: &mut FieldReader<'_>) -> Result<Self, MalformedField> {
        Ok(Self { transactions: read_checks(reader)? })
    }
}

fn put_checks(out: &mut BytesMut, checks: &[TransactionCheck]) {
    put_list(out, checks, |out, check| {
        out.put_u64_le(check.transaction.get());
        out.put_u32_le(check.number);
    });
}

fn read_checks(reader: &mut FieldReader<'_>) -> Result<Vec<TransactionCheck>, MalformedField> {
    reader.list(12, "checks", |reader| {
        Ok(TransactionCheck {
            transaction: PhysicalOffset(reader.u64("transaction")?),
            number: reader.u32("number of the check")?,
        })
    })
}
