//! Broken builds: promises of the log and of its replication that can be broken on demand, so that
//! a simulation and a crash test can show that they would notice.
//!
//! Only the feature `defects` compiles them in, and only the thread that asked for one has it: it
//! works where the writer is a task ([`WriterSpawn::Task`](crate::store::WriterSpawn)). Without the
//! feature every question here is a constant no.

/// A promise that can be broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Defect {
    /// Entries count as durable when they are written; the sync comes when there is nothing else to do.
    AckBeforeSync,
    /// A leader counts its own copy before it is durable.
    LeaderCountsItself,
    /// A follower acknowledges entries before they are durable.
    FollowerAckBeforeSync,
    /// A failed sync moves the durable position all the same.
    FlushedThoughSyncFailed,
    /// A failed sync is tried again, and its success is believed.
    SyncRetried,
    /// A vote is given and never written.
    VoteNotWritten,
    /// A bad frame below the watermark is cut as if it were a torn tail.
    CorruptionIsTail,
    /// A bad frame behind the watermark is cut although a later frame proves that it was durable.
    WitnessIgnored,
    /// What a start finds behind the watermark is trusted without being written again.
    TailNotWrittenAgain,
    /// A cut happens in memory and is not written.
    CutInMemory,
    /// A cut is written, and what lies behind it stays valid.
    LifeNotRaised,
    /// The name of a new segment is not synced.
    SegmentNameNotSynced,
    /// The name of a finished snapshot is not synced.
    SnapshotNameNotSynced,
    /// The bytes of a snapshot are not synced.
    SnapshotNotSynced,
    /// Segments are removed before the superblock says that the log begins behind them.
    ReleaseBeforePromise,
    /// A reset of the log is not marked as under way.
    ResetUnmarked,
    /// Entries are read from the disk without a look at their checksum.
    ReadUnverified,
    /// The commit index on the disk is believed without a look at the log.
    CommitHintTrusted,
    /// A follower commits what it holds up to the leader's commit index, whether it was compared or not.
    CommitUnchecked,
    /// A follower takes what is appended for committed.
    AppendedIsCommitted,
    /// A leader takes a follower's refusal for a match.
    CommitWithoutQuorum,
    /// A vote goes to whoever asks for it, however far behind.
    LaggingNodeElected,
    /// A replica that lost its directory answers in the place of the one it was.
    AmnesiaUnnoticed,
    /// The log is purged as soon as a snapshot is there.
    PurgeAfterSnapshot,
    /// A snapshot is installed over entries that were matched and are not applied.
    TailNotSettled,
    /// A snapshot says that it ends an entry earlier than it does.
    SnapshotBoundaryBehind,
    /// A read asks nobody whether this replica still leads.
    BarrierLeftOut,
}

#[cfg(feature = "defects")]
thread_local! {
    static ACTIVE: std::cell::Cell<Option<Defect>> = const { std::cell::Cell::new(None) };
}

/// Breaks one promise on this thread, or none; answers what was broken before.
#[cfg(feature = "defects")]
pub fn activate(defect: Option<Defect>) -> Option<Defect> {
    ACTIVE.replace(defect)
}

/// Whether this thread is to break the promise.
#[cfg(feature = "defects")]
pub(crate) fn is_active(defect: Defect) -> bool {
    ACTIVE.get() == Some(defect)
}

/// Whether this thread is to break the promise: no.
#[cfg(not(feature = "defects"))]
pub(crate) const fn is_active(_: Defect) -> bool {
    false
}
