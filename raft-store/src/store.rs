//! The durable log of one group: entries, vote, edges and reads, behind one handle.
//!
//! [`LogStore`] is what the consensus half of the crate builds on. It knows neither openraft nor
//! topics. Everything that changes the disk goes through one ordered queue to one writer
//! ([`crate::writer`]); everything that reads goes to the tail cache or to the flushed part of a
//! segment.
//!
//! Relations that always hold, weakest last:
//! `purged ≤ applied`, `flushed ≤ last`, `watermark ≤ flushed` (the watermark is what the
//! superblock remembers of `flushed`).
//!
//! | Condition | Answer |
//! |---|---|
//! | a write or a sync failed | [`StoreFault`] to every pending and later caller, [`LogStore::fault`] fires, never retried |
//! | an entry that does not continue the log | [`AppendError::OutOfOrder`], nothing changed |
//! | bytes that do not verify when read | [`ReadError::Corrupt`] with file and range, never served |
//! | bytes already released, or never written | [`ReadError::Released`], [`ReadError::Beyond`] |

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ledgermq_common::limits::COMMAND_BYTES_MAX;
use ledgermq_common::{GroupId, LogIndex, NodeId, PhysicalOffset};
use tokio::sync::{oneshot, watch};

use crate::commit_log::scrub::Scrubbed;
use crate::commit_log::{CommitLog, recovery};
use crate::frame;
use crate::io::Disk;
use crate::machine::EntryId;
use crate::position::LogPosition;
use crate::rot;
use crate::segment::prepare::PreparePlan;
use crate::segment::{self, Preparer};
use crate::writer::{Done, Operation, Writer, WriterCore, closed_fault};

/// Whose log it is. A directory that belongs to another identity is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub cluster: String,
    pub group: GroupId,
    pub node: NodeId,
}

/// One log of a node. A directory draws it when it is made and keeps it; a node whose directory was
/// lost and made anew is another replica, whatever its node id says, because it has forgotten what it
/// voted and what it acknowledged. The members of a group are replicas for that reason (the directory
/// ids of Kafka's KIP-853 are the same idea).
///
/// Zero is a directory that was made before replicas had ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ReplicaId(pub u64);

impl ReplicaId {
    /// Another one each time, and never zero.
    pub fn draw() -> Self {
        Self(rand::random_range(1..=u64::MAX))
    }
}

impl std::fmt::Display for ReplicaId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// Made if it does not exist; its parent must exist.
    pub directory: PathBuf,
    /// What a new directory is called; one that exists keeps its own.
    pub replica_if_new: ReplicaId,
    /// There are others to receive the log from: corruption that is met ends the store (see `rot`).
    pub has_peers: bool,
    /// Size of one segment file. Must be equal on all replicas: it decides where entries lie. A
    /// directory keeps the size it was made with.
    pub segment_bytes: u64,
    pub tail_cache_bytes_max: usize,
    /// Bytes accepted by `append` and not yet durable; `append` waits above it.
    pub write_queue_bytes_max: usize,
    /// Bytes covered by one sync.
    pub write_batch_bytes_max: usize,
    /// How far a segment is zero-filled ahead of the write position.
    pub fill_ahead_bytes: u64,
    /// The durable watermark is refreshed after this many bytes at the latest.
    pub watermark_interval_bytes: u64,
    /// ... or when nothing was written for this long.
    pub watermark_idle_ms: u64,
}

impl StoreConfig {
    /// The defaults for production, in `directory`.
    pub fn in_directory(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
            replica_if_new: ReplicaId::draw(),
            has_peers: false,
            segment_bytes: 1 << 30,
            tail_cache_bytes_max: 64 << 20,
            write_queue_bytes_max: 64 << 20,
            write_batch_bytes_max: 8 << 20,
            fill_ahead_bytes: 32 << 20,
            watermark_interval_bytes: 64 << 20,
            watermark_idle_ms: 50,
        }
    }
}

/// How the writer runs.
#[derive(Clone)]
pub enum WriterSpawn {
    /// A thread of its own, `commitlog-<group>`, and one that prepares segments.
    Thread,
    /// A tokio task on the current runtime, which waits as long as `latency` says before each
    /// batch; for the simulation, where threads would not be deterministic.
    Task { latency: Arc<dyn Fn() -> Duration + Send + Sync> },
}

/// A vote as Raft keeps it: durable before it is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VoteRecord {
    pub term: u64,
    pub node_id: u64,
    pub committed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EntryKind {
    Blank,
    Membership,
    Normal,
}

/// An entry to be appended; its place is decided by the store.
#[derive(Debug, Clone)]
pub struct NewEntry {
    pub id: EntryId,
    pub kind: EntryKind,
    pub payload: Bytes,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredEntry {
    pub id: EntryId,
    /// Reserved for leader ids that carry the node; 0 until then.
    pub leader_node: u64,
    pub kind: EntryKind,
    pub payload: Bytes,
    /// Where the payload starts; the same on every replica.
    pub payload_at: PhysicalOffset,
}

/// The state of the log behind one entry: all that is needed to continue it elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnapshotBoundary {
    /// The last entry that is inside the snapshot.
    pub id: EntryId,
    /// The end of that entry's frame.
    pub next_physical_offset: PhysicalOffset,
    /// The chain value of that entry's frame.
    pub chain: u64,
}

/// A disk write or sync failed. The store takes nothing any more and the process has to end: after
/// a failed sync the kernel may call pages clean that never reached the disk.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the log store stopped: {operation} of {file} failed: {reason}")]
pub struct StoreFault {
    pub operation: &'static str,
    pub file: PathBuf,
    pub reason: String,
}

#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    #[error(transparent)]
    Fault(#[from] StoreFault),
    #[error("entry {got:?} does not continue a log that ends with {last:?}")]
    OutOfOrder { last: Option<EntryId>, got: EntryId },
    #[error("a payload of {bytes} bytes is above the limit of {bytes_max}")]
    TooLarge { bytes: usize, bytes_max: usize },
}

#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("{file}: bytes {from}..{to} are corrupt: {why}")]
    Corrupt { file: PathBuf, from: u64, to: u64, why: String },
    #[error("the log starts at {start}, offset {at} was released")]
    Released { start: PhysicalOffset, at: PhysicalOffset },
    #[error("entry {index} was released; the oldest is {oldest}")]
    ReleasedEntry { oldest: LogIndex, index: LogIndex },
    #[error("offset {at} (+{len}) is not inside one entry of the flushed log or the tail cache")]
    Beyond { at: PhysicalOffset, len: u32 },
    #[error("reading {file} failed")]
    Io { file: PathBuf, source: std::io::Error },
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{directory} is locked by another process")]
    Locked { directory: PathBuf },
    #[error("{directory} belongs to {found:?}, not to {expected:?}")]
    Foreign { directory: PathBuf, expected: Box<Identity>, found: Box<Identity> },
    #[error("{file}: bytes {from}..{to} are corrupt: {why}")]
    Corrupt { file: PathBuf, from: u64, to: u64, why: String },
    /// A newer program wrote it. Nothing is wrong with it, so it is not to be repaired either.
    #[error("{file} has {what}, which this program does not know")]
    Unsupported { file: PathBuf, what: &'static str },
    #[error("the configuration of the store is not usable: {reason}")]
    Config { reason: String },
    #[error("{operation} of {file} failed")]
    Io { operation: &'static str, file: PathBuf, source: std::io::Error },
}

/// Told once its entries are durable, in the order of the appends, on the writer's thread.
pub type OnDurable = Box<dyn FnOnce(Result<(), StoreFault>) + Send>;

/// Latency of syncs and volume of writes since the store was opened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WriteStats {
    /// `sync_buckets[i]` counts syncs that took less than 2^i microseconds (and not less than half
    /// of it); the last bucket takes everything above.
    pub sync_buckets: [u64; 24],
    pub sync_total_us: u64,
    pub syncs: u64,
    pub batches: u64,
    pub entries: u64,
    pub bytes_written: u64,
}

/// A handle on the durable log of one group. Clones share it; with the last one the writer ends.
#[derive(Debug, Clone)]
pub struct LogStore {
    log: Arc<CommitLog>,
    writer: Arc<Writer>,
    replica: ReplicaId,
    rot: Option<Arc<rot::Watch>>,
}

impl LogStore {
    /// Recovers the log in `config.directory`, or makes a new one. Blocks.
    pub fn open(
        mut config: StoreConfig,
        identity: Identity,
        disk: Arc<dyn Disk>,
        spawn: WriterSpawn,
    ) -> Result<LogStore, OpenError> {
        let recovered = recovery::recover(&disk, &mut config, &identity)?;
        let directory = config.directory.clone();
        let watch = || Arc::new(rot::Watch { disk: Arc::clone(&disk), directory: directory.clone() });
        let rot = config.has_peers.then(watch);
        let thread_error =
            |source| OpenError::Io { operation: "start a thread for", file: directory.clone(), source };
        let plan = PreparePlan::of(&config);
        let preparer = match spawn {
            WriterSpawn::Thread => {
                let name = format!("logfill-{}", identity.group);
                Preparer::threaded(Arc::clone(&disk), plan, name).map_err(thread_error)?
            }
            WriterSpawn::Task { .. } => Preparer::inline(Arc::clone(&disk), plan),
        };
        let log = Arc::new(CommitLog::new(identity, config, &recovered));
        let recovery::Recovered { superblock_file, superblock, lock, .. } = recovered;
        let replica = superblock.replica;
        let core = WriterCore::new(Arc::clone(&log), disk, superblock_file, superblock, preparer);
        let writer = Writer::start(core, Arc::clone(&log), lock, spawn).map_err(thread_error)?;
        Ok(Self { log, writer: Arc::new(writer), replica, rot })
    }

    /// Places `entries` behind the log and returns where each payload starts. When it returns the
    /// entries are readable; they are durable when `on_durable` is called. No I/O on the caller's
    /// thread. Waits while the write queue is full; a caller dropped meanwhile has appended nothing.
    ///
    /// The first entry of a new log has index 0.
    pub async fn append(
        &self,
        entries: Vec<NewEntry>,
        on_durable: OnDurable,
    ) -> Result<Vec<PhysicalOffset>, AppendError> {
        let bytes: u64 = entries.iter().map(|entry| frame::frame_bytes(entry.payload.len())).sum();
        // More than the whole queue must get in as well: it then waits for an empty one.
        let room = u32::try_from(bytes.min(self.log.config.write_queue_bytes_max as u64))
            .expect("the size of the queue was checked when the store was opened");
        match self.log.room.acquire_many(room).await {
            // The writer gives it back.
            Ok(permit) => permit.forget(),
            Err(_) => return Err(self.stopped().into()),
        }
        let queue = &self.writer.queue;
        let placed = self.log.append(entries, |frames, generation| {
            queue.push(Operation::Append { frames, generation, room, on_durable });
        });
        if placed.is_err() {
            self.log.room.add_permits(room as usize);
        }
        placed
    }

    /// Durable on return, and ordered with the appends around it.
    pub async fn save_vote(&self, vote: VoteRecord) -> Result<(), StoreFault> {
        self.enqueue(|done| Operation::Vote { vote, done }).await
    }

    pub fn read_vote(&self) -> Option<VoteRecord> {
        self.log.vote()
    }

    /// A hint: it reaches the disk with the next write of the superblock.
    pub fn save_committed(&self, committed: Option<EntryId>) {
        self.log.save_committed(committed);
    }

    pub fn read_committed(&self) -> Option<EntryId> {
        self.log.committed()
    }

    /// Cuts every entry behind `last_kept` (all of them with `None`); durable on return. Asserts
    /// that nothing applied is cut.
    pub async fn truncate_after(&self, last_kept: Option<LogIndex>) -> Result<(), StoreFault> {
        let end = self.log.end();
        if end.last.map(|last| last.index) <= last_kept {
            return Ok(());
        }
        let to = self.position_to_cut_at(last_kept)?;
        let starts_inside =
            self.log.physical_start() <= to.at || self.log.begin().at == self.log.physical_start();
        self.write(|done| {
            if starts_inside {
                self.log.cut(to, |generation| self.queue(Operation::Cut { to, generation, done }))
            } else {
                // The segment this entry was in is released: the log starts anew behind it.
                self.log.reset(to, |generation| self.queue(Operation::Reset { to, generation, done }))
            }
        })
        .await
    }

    /// Moves the purge pointer, durable on return. Bytes stay readable until they are released.
    pub async fn purge(&self, upto: EntryId) -> Result<(), StoreFault> {
        let last = self.last_id();
        assert!(
            last.is_some_and(|last| upto.index <= last.index),
            "purging {upto:?} of a log up to {last:?}"
        );
        self.enqueue(|done| Operation::Purge { upto, done }).await
    }

    /// Removes the segments that lie wholly below `edge` and below the purge pointer.
    pub async fn release_before(&self, edge: PhysicalOffset) -> Result<(), StoreFault> {
        self.enqueue(|done| Operation::Release { edge, done }).await
    }

    /// Empties the log and continues it behind `boundary`: a snapshot replaced what was before.
    pub async fn reset_to(&self, boundary: SnapshotBoundary) -> Result<(), StoreFault> {
        let to = LogPosition::from(boundary);
        self.write(|done| {
            self.log.reset(to, |generation| self.queue(Operation::Reset { to, generation, done }))
        })
        .await
    }

    /// The entries of `range` that exist, in order and without a gap from `range.start`, up to
    /// `bytes_max` of payload but at least one. Empty only if `range.start` is not yet written; may
    /// end early where a file or the cache ends, so a caller who wants all asks again behind them.
    /// Entries below the purge pointer are found as long as they are not released.
    pub fn read(&self, range: Range<LogIndex>, bytes_max: usize) -> Result<Vec<StoredEntry>, ReadError> {
        self.noting_rot(self.log.read(range, bytes_max))
    }

    /// `len` bytes at `at`, which must lie inside the payload of one entry.
    pub fn read_bytes(&self, at: PhysicalOffset, len: u32) -> Result<Bytes, ReadError> {
        self.noting_rot(self.log.read_bytes(at, len))
    }

    /// The entry whose payload has the byte at `at`.
    pub fn index_of(&self, at: PhysicalOffset) -> Result<LogIndex, ReadError> {
        self.noting_rot(self.log.index_of(at))
    }

    /// The id of the entry at `index`; `None` if it is not in the log (the purge pointer's own id
    /// is known too).
    pub fn entry_id_at(&self, index: LogIndex) -> Result<Option<EntryId>, ReadError> {
        self.noting_rot(self.log.entry_id_at(index))
    }

    /// What a snapshot whose last entry is `index` has to remember of the log.
    pub fn boundary_at(&self, index: LogIndex) -> Result<Option<SnapshotBoundary>, ReadError> {
        let position = self.noting_rot(self.log.position_behind(index))?;
        Ok(position.and_then(|LogPosition { at, last, chain }| {
            Some(SnapshotBoundary { id: last?, next_physical_offset: at, chain })
        }))
    }

    /// The entry behind the purge pointer, whether written yet or not.
    pub fn first_index(&self) -> LogIndex {
        self.log.purged().map_or(LogIndex(0), |purged| purged.index.next())
    }

    /// The oldest entry still on disk, at or below `first_index`.
    pub fn oldest_index(&self) -> LogIndex {
        self.log.begin().next_index()
    }

    /// The last entry, durable or not; the purge pointer if the log is empty.
    pub fn last_id(&self) -> Option<EntryId> {
        self.log.end().last
    }

    pub fn purged(&self) -> Option<EntryId> {
        self.log.purged()
    }

    /// The chain value behind the last entry.
    pub fn last_chain(&self) -> u64 {
        self.log.end().chain
    }

    /// The last durable entry. After a truncation it may go back.
    pub fn flushed(&self) -> watch::Receiver<Option<EntryId>> {
        self.log.flushed()
    }

    pub fn flushed_upto(&self) -> Option<EntryId> {
        self.log.flushed_upto()
    }

    /// `Some` once the store is poisoned. The owner of the process ends it then.
    pub fn fault(&self) -> watch::Receiver<Option<StoreFault>> {
        self.log.fault()
    }

    /// Entries up to `index` are applied: they may leave the tail cache, and are never cut.
    pub fn applied(&self, index: LogIndex) {
        self.log.applied(index);
    }

    /// Where the frame of the oldest entry starts.
    pub fn physical_start(&self) -> PhysicalOffset {
        self.log.physical_start()
    }

    /// The end of the last entry's frame.
    pub fn physical_end(&self) -> PhysicalOffset {
        self.log.end().at
    }

    /// How long the writer has been waiting for the disk to answer.
    pub fn waits_for_disk(&self) -> std::time::Duration {
        self.log.counters.waits_for()
    }

    pub fn write_stats(&self) -> WriteStats {
        self.log.counters.read()
    }

    pub fn identity(&self) -> &Identity {
        &self.log.identity
    }

    pub fn replica(&self) -> ReplicaId {
        self.replica
    }

    /// Nothing was ever written into it: neither an entry nor a vote.
    pub fn is_blank(&self) -> bool {
        self.last_id().is_none() && self.read_vote().is_none()
    }

    /// The size its segments have, which a directory keeps from its first start.
    pub fn segment_bytes(&self) -> u64 {
        self.log.config.segment_bytes
    }

    /// The longest command that finds room in one of its segments.
    pub fn command_bytes_max(&self) -> usize {
        segment::payload_bytes_max(self.log.config.segment_bytes).min(COMMAND_BYTES_MAX)
    }

    /// Reads and verifies every frame of the flushed log. Nobody may cut it meanwhile.
    pub fn verify_all(&self) -> Result<(), ReadError> {
        self.log.verify_all()
    }

    /// Likewise a piece of what is applied, while the log is in use.
    pub(crate) fn scrub(&self, from: Option<LogPosition>, bytes_max: u64) -> Result<Scrubbed, ReadError> {
        self.noting_rot(self.log.scrub(from, bytes_max))
    }

    /// Writes what is queued, marks the superblock clean, stops the writer and gives the directory
    /// back. Later calls answer a [`StoreFault`]. Dropping the last handle without it leaves the log
    /// to be recovered.
    pub async fn close(&self) -> Result<(), StoreFault> {
        let closed = self.enqueue(|done| Operation::Close { done }).await;
        self.writer.finish();
        closed
    }

    fn noting_rot<T>(&self, read: Result<T, ReadError>) -> Result<T, ReadError> {
        if let (Some(rot), Err(error)) = (&self.rot, &read) {
            rot.met(&self.log, error);
        }
        read
    }

    fn queue(&self, operation: Operation) {
        self.writer.queue.push(operation);
    }

    async fn enqueue(&self, operation: impl FnOnce(Done) -> Operation) -> Result<(), StoreFault> {
        self.write(|done| {
            self.queue(operation(done));
            Ok(())
        })
        .await
    }

    /// Runs an operation of the writer and waits for its end.
    async fn write(&self, queue: impl FnOnce(Done) -> Result<(), StoreFault>) -> Result<(), StoreFault> {
        let (done, outcome) = oneshot::channel();
        queue(done)?;
        // The writer answers whatever it takes, unless it was ended with its runtime.
        outcome.await.unwrap_or_else(|_| Err(self.stopped()))
    }

    fn stopped(&self) -> StoreFault {
        self.log.stopped().unwrap_or_else(|| closed_fault(&self.log))
    }

    fn position_to_cut_at(&self, last_kept: Option<LogIndex>) -> Result<LogPosition, StoreFault> {
        let refuse = |reason: String| {
            let fault = StoreFault { operation: "cut", file: self.log.config.directory.clone(), reason };
            // The log cannot be brought to the state Raft asks for, so it must not go on.
            self.log.poison(fault.clone());
            fault
        };
        let Some(index) = last_kept else {
            let begin = self.log.begin();
            assert!(begin.last.is_none(), "a log that starts behind {:?} is not cut to nothing", begin.last);
            return Ok(begin);
        };
        match self.log.position_behind(index) {
            Ok(Some(position)) => Ok(position),
            Ok(None) => Err(refuse(format!("entry {index} is not in the log"))),
            Err(error) => Err(refuse(error.to_string())),
        }
    }
}
