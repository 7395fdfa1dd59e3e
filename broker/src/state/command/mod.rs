//! Commands: what a leader proposes and every replica applies.
//!
//! | Offset | Bytes | Field |
//! |---|---|---|
//! | 0 | 1 | version, 1 |
//! | 1 | 1 | kind, see [`Kind`] |
//! | 2 | 2 | flags, 0 |
//! | 4 | 8 | the leader's clock when it proposed, Unix ms |
//! | 12 | … | by kind, drawn beside each kind |
//!
//! All numbers are little endian. Text is a two-byte length and UTF-8. A list is a four-byte count
//! and its items.
//!
//! | Failure | Consequence |
//! |---|---|
//! | unknown version or kind | this binary is older than the leader: applying stops, the process ends |
//! | bytes that do not fit their kind | refused by every replica alike ([`Refusal::Malformed`](super::Refusal)) |
//!
//! Persisted numbers (version, kinds, enum values) never change their meaning.

mod append;
mod batch;
mod dead_letter;
mod delivery;
mod filters;
mod generation;
mod lite;
mod message;
mod naming;
mod offset;
mod order;
mod retention;
mod timer;
mod transaction;
pub(crate) mod wire;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use ledgermq_common::clock::UnixMillis;

pub use append::{AppendMessages, AppendedMessage, encode_append, encoded_append_bytes};
pub use batch::{BatchTopic, StoreBatch, encode_batch, encoded_batch_bytes};
pub use dead_letter::{
    DeadLetter, DeadLetterReason, DeadLetterRecord, Letter, RedriveDeadLetters, RedrivenLetter,
};
pub use delivery::{
    AckEntry, AckMessages, ChangeInvisible, ExtendLeases, LeaseExtension, LeaseMessages, LeasePart,
    ReleaseClient,
};
pub use filters::SetFilters;
pub(crate) use filters::{put_filters, read_filters};
pub use generation::{
    AppendInOrder, CloseGeneration, DrainGeneration, OpenGeneration, PrepareGeneration,
    encode_append_in_order, encoded_append_in_order_bytes,
};
pub(crate) use generation::{put_layout, read_layout};
pub use lite::{
    AppendLite, ExpireLite, GroupAttributes, LiteAction, LiteStart, PRIORITY_FACTOR_MAX, SetGroupAttributes,
    SetLiteTopic, SyncLite, encode_lite, encoded_lite_bytes,
};
pub use message::{MessageProperties, MessageRecordError, NewMessage, StoredMessage, tag_code};
pub use naming::{
    Backoff, ConsumerGroupSettings, CreateConsumerGroup, CreateTopic, DeleteConsumerGroup, DeleteTopic,
    TopicSettings, UpdateConsumerGroup, UpdateTopic,
};
pub use offset::{CommitOffset, ResetProgress};
pub use order::{LeaseInOrder, OrderedMessage, OrderedPart};
pub use retention::{
    CarriedRecord, CarryRecords, ExpireMessages, ExpiryCause, Owed, ReleaseLog, SetTopicRetention,
    TopicRetention, encode_carried,
};
pub use timer::{AppendDelayed, FireTimers, RecallTimer, encode_delayed, encoded_delayed_bytes};
pub use transaction::{
    AppendHalves, AppendedHalf, CountTransactionChecks, DecisionSource, EndTransaction, NewHalf,
    ParkTransactions, TransactionCheck, encode_halves, encoded_halves_bytes,
};
use wire::FieldReader;
pub use wire::MalformedField;

const VERSION: u8 = 1;
const HEADER_BYTES: usize = 12;

/// The numbers are in the log and never change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    AppendMessages = 1,
    CreateTopic = 2,
    UpdateTopic = 3,
    DeleteTopic = 4,
    CreateConsumerGroup = 5,
    UpdateConsumerGroup = 6,
    DeleteConsumerGroup = 7,
    LeaseMessages = 8,
    AckMessages = 9,
    ChangeInvisible = 10,
    ExtendLeases = 11,
    ReleaseClient = 12,
    AppendHalves = 20,
    EndTransaction = 21,
    CountTransactionChecks = 22,
    ParkTransactions = 23,
    LeaseInOrder = 24,
    DeadLetter = 40,
    RedriveDeadLetters = 41,
    AppendDelayed = 42,
    FireTimers = 43,
    RecallTimer = 44,
    CommitOffset = 45,
    ResetProgress = 46,
    ExpireMessages = 70,
    SetTopicRetention = 71,
    CarryRecords = 72,
    ReleaseLog = 73,
    AppendLite = 60,
    SetGroupAttributes = 61,
    SyncLite = 62,
    ExpireLite = 63,
    SetLiteTopic = 64,
    SuspendDelivery = 65,
    PrepareGeneration = 50,
    CloseGeneration = 51,
    OpenGeneration = 52,
    DrainGeneration = 53,
    AppendInOrder = 54,
    StoreBatch = 90,
    SetFilters = 80,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    AppendMessages(AppendMessages),
    CreateTopic(CreateTopic),
    UpdateTopic(UpdateTopic),
    DeleteTopic(DeleteTopic),
    CreateConsumerGroup(CreateConsumerGroup),
    UpdateConsumerGroup(UpdateConsumerGroup),
    DeleteConsumerGroup(DeleteConsumerGroup),
    LeaseMessages(LeaseMessages),
    AckMessages(AckMessages),
    ChangeInvisible(ChangeInvisible),
    ExtendLeases(ExtendLeases),
    ReleaseClient(ReleaseClient),
    AppendHalves(AppendHalves),
    EndTransaction(EndTransaction),
    CountTransactionChecks(CountTransactionChecks),
    ParkTransactions(ParkTransactions),
    LeaseInOrder(LeaseInOrder),
    DeadLetter(DeadLetter),
    RedriveDeadLetters(RedriveDeadLetters),
    AppendDelayed(AppendDelayed),
    FireTimers(FireTimers),
    RecallTimer(RecallTimer),
    CommitOffset(CommitOffset),
    ResetProgress(ResetProgress),
    ExpireMessages(ExpireMessages),
    SetTopicRetention(SetTopicRetention),
    CarryRecords(CarryRecords),
    ReleaseLog(ReleaseLog),
    AppendLite(AppendLite),
    SetGroupAttributes(SetGroupAttributes),
    SyncLite(SyncLite),
    ExpireLite(ExpireLite),
    SetLiteTopic(SetLiteTopic),
    SuspendDelivery(ChangeInvisible),
    PrepareGeneration(PrepareGeneration),
    CloseGeneration(CloseGeneration),
    OpenGeneration(OpenGeneration),
    DrainGeneration(DrainGeneration),
    AppendInOrder(AppendInOrder),
    StoreBatch(StoreBatch),
    SetFilters(SetFilters),
}

/// Why bytes are no command.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    #[error("command has version {version}; this node knows {VERSION}")]
    Version { version: u8 },
    #[error("command kind {kind} is not known to this node")]
    Kind { kind: u8 },
    #[error(transparent)]
    Malformed(#[from] MalformedField),
    #[error("message record in a command: {0}")]
    Record(MessageRecordError),
}

impl CommandError {
    /// Another version of the product made the command; nobody may guess what it does.
    pub fn is_from_a_newer_version(&self) -> bool {
        matches!(
            self,
            Self::Version { .. } | Self::Kind { .. } | Self::Record(MessageRecordError::Version { .. })
        )
    }
}

impl Command {
    /// Encodes a command stamped with the leader's clock. Messages are encoded by
    /// [`encode_append`], which takes them as they came from the producer.
    pub fn encode(&self, stamped_at: UnixMillis) -> Bytes {
        let mut out = BytesMut::with_capacity(128);
        put_header(&mut out, self.kind(), stamped_at);
        match self {
            Self::AppendMessages(body) => body.put(&mut out),
            Self::CreateTopic(body) => body.put(&mut out),
            Self::UpdateTopic(body) => body.put(&mut out),
            Self::DeleteTopic(body) => body.put(&mut out),
            Self::CreateConsumerGroup(body) => body.put(&mut out),
            Self::UpdateConsumerGroup(body) => body.put(&mut out),
            Self::DeleteConsumerGroup(body) => body.put(&mut out),
            Self::LeaseMessages(body) => body.put(&mut out),
            Self::AckMessages(body) => body.put(&mut out),
            Self::ChangeInvisible(body) => body.put(&mut out),
            Self::ExtendLeases(body) => body.put(&mut out),
            Self::ReleaseClient(body) => body.put(&mut out),
            Self::AppendHalves(body) => body.put(&mut out),
            Self::EndTransaction(body) => body.put(&mut out),
            Self::CountTransactionChecks(body) => body.put(&mut out),
            Self::ParkTransactions(body) => body.put(&mut out),
            Self::LeaseInOrder(body) => body.put(&mut out),
            Self::DeadLetter(body) => body.put(&mut out),
            Self::RedriveDeadLetters(body) => body.put(&mut out),
            Self::AppendDelayed(body) => body.put(&mut out),
            Self::FireTimers(body) => body.put(&mut out),
            Self::RecallTimer(body) => body.put(&mut out),
            Self::CommitOffset(body) => body.put(&mut out),
            Self::ResetProgress(body) => body.put(&mut out),
            Self::ExpireMessages(body) => body.put(&mut out),
            Self::SetTopicRetention(body) => body.put(&mut out),
            Self::CarryRecords(body) => body.put(&mut out),
            Self::ReleaseLog(body) => body.put(&mut out),
            Self::AppendLite(body) => body.put(&mut out),
            Self::SetGroupAttributes(body) => body.put(&mut out),
            Self::SyncLite(body) => body.put(&mut out),
            Self::ExpireLite(body) => body.put(&mut out),
            Self::SetLiteTopic(body) => body.put(&mut out),
            Self::SuspendDelivery(body) => body.put(&mut out),
            Self::PrepareGeneration(body) => body.put(&mut out),
            Self::CloseGeneration(body) => body.put(&mut out),
            Self::OpenGeneration(body) => body.put(&mut out),
            Self::DrainGeneration(body) => body.put(&mut out),
            Self::AppendInOrder(body) => body.put(&mut out),
            Self::StoreBatch(body) => body.put(&mut out),
            Self::SetFilters(body) => body.put(&mut out),
        }
        out.freeze()
    }

    /// The stamp and the command. Bytes of messages share `bytes`.
    pub fn decode(bytes: &Bytes) -> Result<(UnixMillis, Self), CommandError> {
        let mut reader = FieldReader::new(bytes);
        let version = reader.u8("version")?;
        if version != VERSION {
            return Err(CommandError::Version { version });
        }
        let kind_number = reader.u8("kind")?;
        let kind = Kind::from_number(kind_number).ok_or(CommandError::Kind { kind: kind_number })?;
        if reader.u16("flags")? != 0 {
            return Err(reader.malformed("flags").into());
        }
        let stamped_at = UnixMillis(reader.u64("stamp")?);
        let reader = &mut reader;
        let command = match kind {
            Kind::AppendMessages => Self::AppendMessages(AppendMessages::read(reader)?),
            Kind::CreateTopic => Self::CreateTopic(CreateTopic::read(reader)?),
            Kind::UpdateTopic => Self::UpdateTopic(UpdateTopic::read(reader)?),
            Kind::DeleteTopic => Self::DeleteTopic(DeleteTopic::read(reader)?),
            Kind::CreateConsumerGroup => Self::CreateConsumerGroup(CreateConsumerGroup::read(reader)?),
            Kind::UpdateConsumerGroup => Self::UpdateConsumerGroup(UpdateConsumerGroup::read(reader)?),
            Kind::DeleteConsumerGroup => Self::DeleteConsumerGroup(DeleteConsumerGroup::read(reader)?),
            Kind::LeaseMessages => Self::LeaseMessages(LeaseMessages::read(reader)?),
            Kind::AckMessages => Self::AckMessages(AckMessages::read(reader)?),
            Kind::ChangeInvisible => Self::ChangeInvisible(ChangeInvisible::read(reader)?),
            Kind::ExtendLeases => Self::ExtendLeases(ExtendLeases::read(reader)?),
            Kind::ReleaseClient => Self::ReleaseClient(ReleaseClient::read(reader)?),
            Kind::AppendHalves => Self::AppendHalves(AppendHalves::read(reader)?),
            Kind::EndTransaction => Self::EndTransaction(EndTransaction::read(reader)?),
            Kind::CountTransactionChecks => {
                Self::CountTransactionChecks(CountTransactionChecks::read(reader)?)
            }
            Kind::ParkTransactions => Self::ParkTransactions(ParkTransactions::read(reader)?),
            Kind::LeaseInOrder => Self::LeaseInOrder(LeaseInOrder::read(reader)?),
            Kind::DeadLetter => Self::DeadLetter(DeadLetter::read(reader)?),
            Kind::RedriveDeadLetters => Self::RedriveDeadLetters(RedriveDeadLetters::read(reader)?),
            Kind::AppendDelayed => Self::AppendDelayed(AppendDelayed::read(reader)?),
            Kind::FireTimers => Self::FireTimers(FireTimers::read(reader)?),
            Kind::RecallTimer => Self::RecallTimer(RecallTimer::read(reader)?),
            Kind::CommitOffset => Self::CommitOffset(CommitOffset::read(reader)?),
            Kind::ResetProgress => Self::ResetProgress(ResetProgress::read(reader)?),
            Kind::ExpireMessages => Self::ExpireMessages(ExpireMessages::read(reader)?),
            Kind::SetTopicRetention => Self::SetTopicRetention(SetTopicRetention::read(reader)?),
            Kind::CarryRecords => Self::CarryRecords(CarryRecords::read(reader)?),
            Kind::ReleaseLog => Self::ReleaseLog(ReleaseLog::read(reader)?),
            Kind::AppendLite => Self::AppendLite(AppendLite::read(reader)?),
            Kind::SetGroupAttributes => Self::SetGroupAttributes(SetGroupAttributes::read(reader)?),
            Kind::SyncLite => Self::SyncLite(SyncLite::read(reader)?),
            Kind::ExpireLite => Self::ExpireLite(ExpireLite::read(reader)?),
            Kind::SetLiteTopic => Self::SetLiteTopic(SetLiteTopic::read(reader)?),
            Kind::SuspendDelivery => Self::SuspendDelivery(ChangeInvisible::read(reader)?),
            Kind::PrepareGeneration => Self::PrepareGeneration(PrepareGeneration::read(reader)?),
            Kind::CloseGeneration => Self::CloseGeneration(CloseGeneration::read(reader)?),
            Kind::OpenGeneration => Self::OpenGeneration(OpenGeneration::read(reader)?),
            Kind::DrainGeneration => Self::DrainGeneration(DrainGeneration::read(reader)?),
            Kind::AppendInOrder => Self::AppendInOrder(AppendInOrder::read(reader)?),
            Kind::StoreBatch => Self::StoreBatch(StoreBatch::read(reader)?),
            Kind::SetFilters => Self::SetFilters(SetFilters::read(reader)?),
        };
        reader.end("end of the command")?;
        Ok((stamped_at, command))
    }

    /// The stamp of a command whose body may be malformed, so that log time is the same for all.
    pub(crate) fn peek_stamp(bytes: &Bytes) -> Option<UnixMillis> {
        let mut header = bytes.get(4..HEADER_BYTES)?;
        Some(UnixMillis(header.get_u64_le()))
    }

    fn kind(&self) -> Kind {
        match self {
            Self::AppendMessages(_) => Kind::AppendMessages,
            Self::CreateTopic(_) => Kind::CreateTopic,
            Self::UpdateTopic(_) => Kind::UpdateTopic,
            Self::DeleteTopic(_) => Kind::DeleteTopic,
            Self::CreateConsumerGroup(_) => Kind::CreateConsumerGroup,
            Self::UpdateConsumerGroup(_) => Kind::UpdateConsumerGroup,
            Self::DeleteConsumerGroup(_) => Kind::DeleteConsumerGroup,
            Self::LeaseMessages(_) => Kind::LeaseMessages,
            Self::AckMessages(_) => Kind::AckMessages,
            Self::ChangeInvisible(_) => Kind::ChangeInvisible,
            Self::ExtendLeases(_) => Kind::ExtendLeases,
            Self::ReleaseClient(_) => Kind::ReleaseClient,
            Self::AppendHalves(_) => Kind::AppendHalves,
            Self::EndTransaction(_) => Kind::EndTransaction,
            Self::CountTransactionChecks(_) => Kind::CountTransactionChecks,
            Self::ParkTransactions(_) => Kind::ParkTransactions,
            Self::LeaseInOrder(_) => Kind::LeaseInOrder,
            Self::DeadLetter(_) => Kind::DeadLetter,
            Self::RedriveDeadLetters(_) => Kind::RedriveDeadLetters,
            Self::AppendDelayed(_) => Kind::AppendDelayed,
            Self::FireTimers(_) => Kind::FireTimers,
            Self::RecallTimer(_) => Kind::RecallTimer,
            Self::CommitOffset(_) => Kind::CommitOffset,
            Self::ResetProgress(_) => Kind::ResetProgress,
            Self::ExpireMessages(_) => Kind::ExpireMessages,
            Self::SetTopicRetention(_) => Kind::SetTopicRetention,
            Self::CarryRecords(_) => Kind::CarryRecords,
            Self::ReleaseLog(_) => Kind::ReleaseLog,
            Self::AppendLite(_) => Kind::AppendLite,
            Self::SetGroupAttributes(_) => Kind::SetGroupAttributes,
            Self::SyncLite(_) => Kind::SyncLite,
            Self::ExpireLite(_) => Kind::ExpireLite,
            Self::SetLiteTopic(_) => Kind::SetLiteTopic,
            Self::SuspendDelivery(_) => Kind::SuspendDelivery,
            Self::PrepareGeneration(_) => Kind::PrepareGeneration,
            Self::CloseGeneration(_) => Kind::CloseGeneration,
            Self::OpenGeneration(_) => Kind::OpenGeneration,
            Self::DrainGeneration(_) => Kind::DrainGeneration,
            Self::AppendInOrder(_) => Kind::AppendInOrder,
            Self::StoreBatch(_) => Kind::StoreBatch,
            Self::SetFilters(_) => Kind::SetFilters,
        }
    }
}

impl Kind {
    fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::AppendMessages,
            2 => Self::CreateTopic,
            3 => Self::UpdateTopic,
            4 => Self::DeleteTopic,
            5 => Self::CreateConsumerGroup,
            6 => Self::UpdateConsumerGroup,
            7 => Self::DeleteConsumerGroup,
            8 => Self::LeaseMessages,
            9 => Self::AckMessages,
            10 => Self::ChangeInvisible,
            11 => Self::ExtendLeases,
            12 => Self::ReleaseClient,
            20 => Self::AppendHalves,
            21 => Self::EndTransaction,
            22 => Self::CountTransactionChecks,
            23 => Self::ParkTransactions,
            24 => Self::LeaseInOrder,
            40 => Self::DeadLetter,
            41 => Self::RedriveDeadLetters,
            42 => Self::AppendDelayed,
            43 => Self::FireTimers,
            44 => Self::RecallTimer,
            45 => Self::CommitOffset,
            46 => Self::ResetProgress,
            70 => Self::ExpireMessages,
            71 => Self::SetTopicRetention,
            72 => Self::CarryRecords,
            73 => Self::ReleaseLog,
            60 => Self::AppendLite,
            61 => Self::SetGroupAttributes,
            62 => Self::SyncLite,
            63 => Self::ExpireLite,
            64 => Self::SetLiteTopic,
            65 => Self::SuspendDelivery,
            50 => Self::PrepareGeneration,
            51 => Self::CloseGeneration,
            52 => Self::OpenGeneration,
            53 => Self::DrainGeneration,
            54 => Self::AppendInOrder,
            90 => Self::StoreBatch,
            80 => Self::SetFilters,
            _ => return None,
        })
    }
}

fn put_header(out: &mut BytesMut, kind: Kind, stamped_at: UnixMillis) {
    out.put_u8(VERSION);
    out.put_u8(kind as u8);
    out.put_u16_le(0);
    out.put_u64_le(stamped_at.get());
}

#[cfg(test)]
mod tests;
