//! Broken builds of a broker, which the simulation has to catch: a judge that never convicts
//! proves nothing.
//!
//! | Defect | Broken promise |
//! |---|---|
//! | [`Defect::SyncLies`] | acknowledged means synced on a majority |
//! | [`Defect::VoteForgotten`] | a vote is durable before it is given |
//! | [`Defect::ApplyDiverges`] | all replicas answer the same |
//! | [`Defect::TwoHolders`] | one consumer at a time has un-acknowledged messages of a message group |
//! | [`Defect::GrowthWithoutDrain`] | what a topic had before it grew is consumed before what comes after |
//! | [`Defect::OpenBeforeClosed`] | a generation of queues is served only when the one before has ended |
//! | [`Defect::RepeatByNewGeneration`] | a repeated send is stored once, also across a growth |
//! | [`Defect::OwedReleased`] | the log is kept for halves and timers, or they are carried |
//! | [`Defect::OwnProducersOnly`] | any producer of the topic is asked about a half, through whatever node |
//! | [`Defect::Product`] | those of the state machine that need no more than a name: [`PRODUCT`] |
//! | [`Defect::Store`] | those of the log and of replication: [`STORE`] |
//!
//! What no simulated fault reaches (bytes that rot) is tried by `tests/store.rs`.

use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use ledgermq_broker::defects::Defect as Broken;
use ledgermq_raft_store::defects::Defect as BrokenStore;
use ledgermq_raft_store::io::{DirectoryLock, Disk, DiskFile};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Defect {
    /// Every second sync of a segment answers without doing anything.
    SyncLies,
    /// Syncs of the superblock, where the votes are, do nothing once it exists.
    VoteForgotten,
    /// One replica answers one command in 50 differently.
    ApplyDiverges,
    /// A message group goes to a second consumer while a first one holds it.
    TwoHolders,
    /// Generations of queues are not drained.
    GrowthWithoutDrain,
    /// The driver of a growth opens the next generation and never closes the one before.
    OpenBeforeClosed,
    /// A repeat does not meet what an ended generation stored.
    RepeatByNewGeneration,
    /// The leader releases the log and does not look at halves and timers.
    OwedReleased,
    /// The leader asks the producers about a half that are connected to itself, and no others.
    OwnProducersOnly,
    /// One of [`PRODUCT`].
    Product(Broken),
    /// One of the log and of replication, such as those in [`STORE`].
    Store(BrokenStore),
}

/// Broken promises about messages, leases, transactions and timers.
pub const PRODUCT: [Broken; 37] = [
    Broken::TwoOutcomes,
    Broken::EarlyVisibility,
    Broken::LostCheck,
    Broken::CheckStalled,
    Broken::CommitDropped,
    Broken::EndOfAnother,
    Broken::HalfTwice,
    Broken::DoubleFire,
    Broken::EarlyFire,
    Broken::RecalledFires,
    Broken::RecallForgotten,
    Broken::DelayedTwice,
    Broken::ShortenedLease,
    Broken::ForgottenAck,
    Broken::StaleAckTaken,
    Broken::ChangeIgnored,
    Broken::AttemptBack,
    Broken::MessageSkipped,
    Broken::LetterWithoutEnd,
    Broken::DedupeOfOneTerm,
    Broken::OffsetOfRepeat,
    Broken::SharedQueueOffset,
    Broken::LogTimeBack,
    Broken::BatchInPart,
    Broken::BatchCutShort,
    Broken::OffsetBack,
    Broken::CommitForgotten,
    Broken::LateCommitTaken,
    Broken::CommitOfOtherReset,
    Broken::ResetTwice,
    Broken::ResetOfLeasesOnly,
    Broken::LetterTwice,
    Broken::LetterLost,
    Broken::AttemptAboveMax,
    Broken::ExhaustedPassed,
    Broken::RedrivenTwice,
    Broken::AckOfAnother,
];

/// Broken promises of the log and of replication that the simulation convicts.
pub const STORE: [BrokenStore; 17] = [
    BrokenStore::AckBeforeSync,
    BrokenStore::LeaderCountsItself,
    BrokenStore::FollowerAckBeforeSync,
    BrokenStore::FlushedThoughSyncFailed,
    BrokenStore::SyncRetried,
    BrokenStore::VoteNotWritten,
    BrokenStore::SegmentNameNotSynced,
    BrokenStore::SnapshotNameNotSynced,
    BrokenStore::SnapshotNotSynced,
    BrokenStore::CommitUnchecked,
    BrokenStore::AppendedIsCommitted,
    BrokenStore::CommitWithoutQuorum,
    BrokenStore::LaggingNodeElected,
    BrokenStore::PurgeAfterSnapshot,
    BrokenStore::SnapshotBoundaryBehind,
    BrokenStore::BarrierLeftOut,
    BrokenStore::AmnesiaUnnoticed,
];

impl Defect {
    /// The name a person calls it by.
    pub fn name(self) -> String {
        match self {
            Self::Product(broken) => format!("{broken:?}"),
            Self::Store(broken) => format!("{broken:?}"),
            other => format!("{other:?}"),
        }
    }

    pub fn spoil(self, disk: Arc<dyn Disk>) -> Arc<dyn Disk> {
        match self {
            Self::SyncLies => Arc::new(LyingDisk { inner: disk, about: ".log", every: 2 }),
            Self::VoteForgotten => Arc::new(LyingDisk { inner: disk, about: "superblock", every: 1 }),
            _ => disk,
        }
    }

    /// The promise that the state machine itself breaks.
    pub fn in_the_product(self) -> Option<ledgermq_broker::defects::Defect> {
        match self {
            Self::SyncLies
            | Self::VoteForgotten
            | Self::ApplyDiverges
            | Self::OwedReleased
            | Self::OwnProducersOnly => None,
            Self::TwoHolders => Some(Broken::TwoHolders),
            Self::GrowthWithoutDrain => Some(Broken::GrowthWithoutDrain),
            Self::OpenBeforeClosed => Some(Broken::OpenBeforeClosed),
            Self::RepeatByNewGeneration => Some(Broken::RepeatByNewGeneration),
            Self::Product(broken) => Some(broken),
            Self::Store(_) => None,
        }
    }

    /// The promise that the log or its replication breaks.
    pub fn in_the_store(self) -> Option<BrokenStore> {
        match self {
            Self::Store(broken) => Some(broken),
            _ => None,
        }
    }
}

#[derive(Debug)]
struct LyingDisk {
    inner: Arc<dyn Disk>,
    /// Lies about files whose name ends like this.
    about: &'static str,
    /// One sync of so many is a lie.
    every: u64,
}

impl LyingDisk {
    fn wrap(&self, path: &Path, file: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if !name.ends_with(self.about) {
            return file;
        }
        Arc::new(LyingFile { inner: file, every: self.every, syncs: AtomicU64::new(0) })
    }
}

impl Disk for LyingDisk {
    fn create_directory(&self, path: &Path) -> io::Result<()> {
        self.inner.create_directory(path)
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(self.wrap(path, self.inner.create(path)?))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(self.wrap(path, self.inner.open(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.inner.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.inner.remove(path)
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<String>> {
        self.inner.list(directory)
    }

    fn sync_directory(&self, directory: &Path) -> io::Result<()> {
        self.inner.sync_directory(directory)
    }

    fn lock(&self, directory: &Path) -> io::Result<Box<dyn DirectoryLock>> {
        self.inner.lock(directory)
    }
}

#[derive(Debug)]
struct LyingFile {
    inner: Arc<dyn DiskFile>,
    every: u64,
    syncs: AtomicU64,
}

impl DiskFile for LyingFile {
    fn write_vectored_at(&self, parts: &[IoSlice<'_>], at: u64) -> io::Result<()> {
        self.inner.write_vectored_at(parts, at)
    }

    fn read_at(&self, into: &mut [u8], at: u64) -> io::Result<usize> {
        self.inner.read_at(into, at)
    }

    fn sync_data(&self) -> io::Result<()> {
        let before = self.syncs.fetch_add(1, Ordering::SeqCst);
        if before % self.every == self.every - 1 { Ok(()) } else { self.inner.sync_data() }
    }

    fn byte_len(&self) -> io::Result<u64> {
        self.inner.byte_len()
    }

    fn reserve(&self, len: u64) -> io::Result<()> {
        self.inner.reserve(len)
    }

    fn zero_fill(&self, at: u64, len: u64) -> io::Result<()> {
        self.inner.zero_fill(at, len)
    }

    fn map(&self, at: u64, len: usize) -> io::Result<Bytes> {
        self.inner.map(at, len)
    }
}
