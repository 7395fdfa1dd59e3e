//! What a group applies its committed entries to.
//!
//! Invariants, which the group relies on and the simulation checks:
//! - `apply` is a function of the state and the entry: no clock, no randomness, no hash order. All
//!   replicas give the same answer to the same entry.
//! - Entries arrive in log order, each exactly once per life of the machine; after a restart from
//!   [`StateMachine::applied`] the following entry comes first.
//! - Whatever the machine persists never runs ahead of the flushed log: before it persists state up
//!   to entry *n* it has seen a flushed watermark ≥ *n* ([`StateMachine::log_flushed`]).

use bytes::Bytes;
use ledgermq_common::{LogIndex, PhysicalOffset, Term};

/// Which entry of the log: the term whose leader made it and its position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct EntryId {
    pub term: Term,
    pub index: LogIndex,
}

/// A committed command, as stored.
#[derive(Debug, Clone)]
pub struct AppliedEntry {
    pub id: EntryId,
    /// Where `payload` starts in the CommitLog; the same on every replica.
    pub payload_at: PhysicalOffset,
    pub payload: Bytes,
}

/// The machine cannot go on; the process ends, Raft is the recovery.
#[derive(Debug, thiserror::Error)]
#[error("applying entry {index} of term {term} failed: {reason}", index = id.index, term = id.term)]
pub struct ApplyError {
    pub id: EntryId,
    pub reason: String,
}

/// A source of snapshot bytes, read to its end by the receiver.
pub type SnapshotReader = Box<dyn std::io::Read + Send>;

/// The log as it was found at start-up, before Raft runs.
pub trait RecoveredLog {
    /// The last entry on this replica's disk. Entries behind [`StateMachine::applied`] may not be
    /// committed and are not shown.
    fn flushed(&self) -> Option<EntryId>;

    /// The first entry that can still be read.
    fn first_index(&self) -> Option<LogIndex>;

    /// Shows the commands in `from..=through`, in order. `through` must not be behind an entry
    /// the machine knows to be applied; missing entries are an error.
    fn scan(
        &self,
        from: LogIndex,
        through: LogIndex,
        visit: &mut dyn FnMut(AppliedEntry) -> std::io::Result<()>,
    ) -> std::io::Result<()>;
}

pub trait StateMachine: Send + Sync + 'static {
    /// Called once, before anything else and on a thread that may block: the machine makes what
    /// it did not persist from the log again, and drops what it persisted beyond the log's end.
    fn recover(&self, log: &dyn RecoveredLog) -> std::io::Result<()> {
        let _ = log;
        Ok(())
    }

    /// The last entry whose effect survives a restart. `None`: start from the first entry.
    fn applied(&self) -> Option<EntryId>;

    /// Applies `entries` in order and pushes one answer for each onto `answers`. The answer goes
    /// to the proposer on the leader and is dropped elsewhere. Runs on the apply task: no blocking
    /// I/O here.
    fn apply(&self, entries: &[AppliedEntry], answers: &mut Vec<Bytes>) -> Result<(), ApplyError>;

    /// The log is durable on this replica up to `flushed`; persisted state may follow up to
    /// `min(applied, flushed)`.
    fn log_flushed(&self, flushed: LogIndex);

    /// The whole state as of the last applied entry, and that entry. Must be cheap to start (a
    /// consistent view), however long the reading takes.
    fn snapshot(&self) -> std::io::Result<(Option<EntryId>, SnapshotReader)>;

    /// Replaces the whole state by a snapshot taken at `applied`.
    fn restore(&self, applied: EntryId, snapshot: SnapshotReader) -> std::io::Result<()>;

    /// The oldest byte of the CommitLog the state still refers to; older segments may go.
    fn retained_from(&self) -> PhysicalOffset;
}
