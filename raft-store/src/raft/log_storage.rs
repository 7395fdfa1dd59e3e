//! openraft's log storage over [`LogStore`].
//!
//! - `append` returns once the entries are readable; openraft hears of their durability from the
//!   writer's thread, after the sync.
//! - A vote goes through the same queue as the entries, so no entry of a term is durable before the
//!   vote for that term.
//! - `purge` only moves a pointer. Two assertions keep openraft#2116 (a queued apply that meets a
//!   purged entry) out of reach: the pointer stays where [`PurgePermit`] allows it, which is far
//!   behind the last applied entry, or it moves to a snapshot that was just installed.
//! - A follower asserts that every entry lies where it lies on the leader.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, Range, RangeBounds};
use std::sync::Arc;

use futures_util::Stream;
use ledgermq_common::{LogIndex, PhysicalOffset};
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::{LogState, OptionalSend, RaftLogReader};
use parking_lot::Mutex;

use super::membership;
use super::vocabulary::{Consensus, Entry, LogId, Payload, Vote, entry_id, log_id};
use crate::defects::{self, Defect};
use crate::store::{
    EntryKind, LogStore, NewEntry, OnDurable, SnapshotBoundary, StoreFault, StoredEntry, VoteRecord,
};

/// Payload bytes in one append message, and read at once for applying.
pub(crate) const READ_BYTES_MAX: usize = 1 << 20;

/// How far the log may be purged; shared by the schedule that decides and the storage that obeys.
#[derive(Debug, Default)]
pub(crate) struct PurgePermit {
    state: Mutex<PermitState>,
}

#[derive(Debug, Default)]
struct PermitState {
    upto: Option<LogIndex>,
    installed: Option<SnapshotBoundary>,
}

impl PurgePermit {
    /// The schedule found that entries up to `upto` may be purged.
    pub(crate) fn allow(&self, upto: LogIndex) {
        let mut state = self.state.lock();
        assert!(state.upto <= Some(upto), "the purge permit goes back from {:?} to {upto}", state.upto);
        state.upto = Some(upto);
    }

    /// A snapshot was installed: everything up to it will be purged at once.
    pub(crate) fn allow_installed(&self, boundary: SnapshotBoundary) {
        self.state.lock().installed = Some(boundary);
    }

    fn allows(&self, upto: LogIndex) -> bool {
        let state = self.state.lock();
        state.upto >= Some(upto) || state.installed.is_some_and(|boundary| boundary.id.index == upto)
    }

    /// Where the purge pointer may move to at any moment.
    pub(crate) fn targets(&self) -> Vec<LogIndex> {
        let state = self.state.lock();
        state.upto.into_iter().chain(state.installed.map(|boundary| boundary.id.index)).collect()
    }

    fn installed(&self) -> Option<SnapshotBoundary> {
        self.state.lock().installed
    }
}

#[derive(Clone)]
pub(crate) struct LogStorage {
    store: LogStore,
    permit: Arc<PurgePermit>,
}

impl LogStorage {
    pub(crate) fn new(store: LogStore, permit: Arc<PurgePermit>) -> Self {
        Self { store, permit }
    }

    fn read(&self, range: Range<u64>, bytes_max: usize) -> io::Result<Vec<Entry>> {
        let stored = self
            .store
            .read(LogIndex(range.start)..LogIndex(range.end), bytes_max)
            .map_err(io::Error::other)?;
        stored.into_iter().map(entry_from_store).collect()
    }
}

impl RaftLogReader<Consensus> for LogStorage {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> io::Result<Vec<Entry>>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        // The store reads up to the end of a segment at a time; openraft takes a short answer for a
        // hole in the log.
        let mut rest = indexes(&range);
        let mut entries = self.read(rest.clone(), usize::MAX)?;
        while let Some(last) = entries.last().map(|entry| entry.log_id.index) {
            rest.start = last + 1;
            let more = self.read(rest.clone(), usize::MAX)?;
            if more.is_empty() {
                break;
            }
            entries.extend(more);
        }
        Ok(entries)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.read(start..end, READ_BYTES_MAX)
    }

    async fn entries_stream<RB>(&mut self, range: RB) -> impl Stream<Item = io::Result<Entry>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        EntryStream { storage: self.clone(), rest: indexes(&range), piece: Vec::new().into_iter() }
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.store.read_vote().map(|record| {
            if record.committed {
                Vote::new_committed(record.term, record.node_id)
            } else {
                Vote::new(record.term, record.node_id)
            }
        }))
    }
}

/// Entries of a range, read in pieces of [`READ_BYTES_MAX`], so that a follower that catches up
/// does not hold the whole distance in memory. Always ready.
struct EntryStream {
    storage: LogStorage,
    rest: Range<u64>,
    piece: std::vec::IntoIter<Entry>,
}

impl Stream for EntryStream {
    type Item = io::Result<Entry>;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        if let Some(entry) = self.piece.next() {
            return Some(Ok(entry)).into();
        }
        if self.rest.is_empty() {
            return None.into();
        }
        let piece = match self.storage.read(self.rest.clone(), READ_BYTES_MAX) {
            Ok(piece) => piece,
            Err(error) => {
                self.rest = 0..0;
                return Some(Err(error)).into();
            }
        };
        let first = piece.first().map(|entry| entry.log_id.index);
        let read = piece.len() as u64;
        if first != Some(self.rest.start) {
            let missing = self.rest.start;
            self.rest = 0..0;
            return Some(Err(io::Error::other(format!("entry {missing} is not in the log")))).into();
        }
        self.rest.start += read;
        self.piece = piece.into_iter();
        self.piece.next().map(Ok).into()
    }
}

impl RaftLogStorage<Consensus> for LogStorage {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<Consensus>> {
        Ok(LogState {
            last_purged_log_id: self.store.purged().map(log_id),
            last_log_id: self.store.last_id().map(log_id),
        })
    }

    async fn get_log_reader(&mut self) -> Self::LogReader {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let record = VoteRecord {
            term: vote.leader_id.term,
            node_id: vote.leader_id.voted_for,
            committed: vote.committed,
        };
        self.store.save_vote(record).await.map_err(io::Error::other)
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        self.store.save_committed(committed.as_ref().map(entry_id));
        Ok(())
    }

    /// The hint is written beside the log and may be ahead of it after a power cut: the entry it
    /// names was never synced here, or another one, not yet cut, is in its place. It counts only if
    /// that very entry is in the log.
    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        let Some(hint) = self.store.read_committed() else { return Ok(None) };
        if defects::is_active(Defect::CommitHintTrusted) {
            return Ok(Some(log_id(hint)));
        }
        let found = self.store.entry_id_at(hint.index).map_err(io::Error::other)?;
        Ok(found.filter(|found| *found == hint).map(log_id))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Consensus>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut new = Vec::new();
        let mut leaders_places = Vec::new();
        for entry in entries {
            leaders_places.push(entry.payload_at);
            new.push(entry_to_store(entry));
        }
        let is_follower = leaders_places.iter().any(Option::is_some);
        let (on_durable, too_early): (OnDurable, _) = if acknowledges_early(is_follower) {
            (Box::new(|_| {}), Some(callback))
        } else {
            let tell = move |result: Result<(), StoreFault>| {
                callback.io_completed(result.map_err(io::Error::other));
            };
            (Box::new(tell), None)
        };
        let places = self.store.append(new, on_durable).await.map_err(io::Error::other)?;
        assert_same_places(&places, &leaders_places);
        if let Some(callback) = too_early {
            callback.io_completed(Ok(()));
        }
        Ok(())
    }

    async fn truncate_after(&mut self, last_kept: Option<LogId>) -> io::Result<()> {
        let last_kept = last_kept.map(|id| LogIndex(id.index));
        self.store.truncate_after(last_kept).await.map_err(io::Error::other)
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        let upto = entry_id(&upto);
        assert!(
            self.permit.allows(upto.index),
            "purging up to entry {} was not permitted: a queued apply may need what it removes",
            upto.index
        );
        let is_in_log = self.store.last_id().is_some_and(|last| last.index >= upto.index);
        if is_in_log {
            return self.store.purge(upto).await.map_err(io::Error::other);
        }
        // The log ends before the snapshot that was installed: it goes on behind the snapshot.
        let Some(boundary) = self.permit.installed().filter(|boundary| boundary.id == upto) else {
            return Err(io::Error::other(format!(
                "entry {} is neither in the log nor in a snapshot",
                upto.index
            )));
        };
        self.store.reset_to(boundary).await.map_err(io::Error::other)
    }
}

/// Only in a broken build.
fn acknowledges_early(is_follower: bool) -> bool {
    let defect = if is_follower { Defect::FollowerAckBeforeSync } else { Defect::LeaderCountsItself };
    defects::is_active(defect)
}

/// Promise: the committed bytes of all replicas are the same at the same offset.
fn assert_same_places(ours: &[PhysicalOffset], leaders: &[Option<PhysicalOffset>]) {
    assert_eq!(ours.len(), leaders.len(), "every entry has a place");
    for (ours, leaders) in ours.iter().zip(leaders) {
        if let Some(leaders) = leaders {
            assert_eq!(ours, leaders, "an entry lies elsewhere than on the leader");
        }
    }
}

fn entry_to_store(entry: Entry) -> NewEntry {
    let (kind, payload) = match entry.payload {
        Payload::Blank => (EntryKind::Blank, bytes::Bytes::new()),
        Payload::Membership(membership) => (EntryKind::Membership, membership::encode(&membership)),
        Payload::Normal(command) => (EntryKind::Normal, command),
    };
    NewEntry { id: entry_id(&entry.log_id), kind, payload }
}

pub(crate) fn entry_from_store(entry: StoredEntry) -> io::Result<Entry> {
    let payload = match entry.kind {
        EntryKind::Blank => Payload::Blank,
        EntryKind::Membership => Payload::Membership(membership::decode(entry.payload)?),
        EntryKind::Normal => Payload::Normal(entry.payload),
    };
    Ok(Entry { log_id: log_id(entry.id), payload, payload_at: Some(entry.payload_at) })
}

fn indexes(range: &impl RangeBounds<u64>) -> Range<u64> {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(before) => before.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(last) => last.saturating_add(1),
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    start..end
}

#[cfg(test)]
mod tests {
    use ledgermq_common::{GroupId, NodeId, Term};
    use openraft::storage::RaftLogStorageExt;

    use super::*;
    use crate::io::RealDisk;
    use crate::machine::EntryId;
    use crate::store::{Identity, StoreConfig, WriterSpawn};

    fn id(index: u64) -> EntryId {
        EntryId { term: Term(1), index: LogIndex(index) }
    }

    async fn ten_entries(directory: &std::path::Path) -> LogStorage {
        let config = StoreConfig {
            segment_bytes: 1 << 20,
            fill_ahead_bytes: 1 << 18,
            ..StoreConfig::in_directory(directory.join("log"))
        };
        let identity = Identity { cluster: "test".to_owned(), group: GroupId(1), node: NodeId(1) };
        let store = LogStore::open(config, identity, Arc::new(RealDisk), WriterSpawn::Thread)
            .expect("a new log opens");
        let mut storage = LogStorage::new(store, Arc::new(PurgePermit::default()));
        let entries = (0..10).map(|index| Entry {
            log_id: log_id(id(index)),
            payload: Payload::Blank,
            payload_at: None,
        });
        storage.blocking_append(entries.collect::<Vec<_>>()).await.expect("appends");
        storage
    }

    #[tokio::test]
    async fn a_commit_hint_counts_only_for_an_entry_that_is_in_the_log() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut storage = ten_entries(directory.path()).await;
        for (term, index, counts) in [(1, 9, true), (1, 10, false), (2, 9, false), (1, 4, true)] {
            let hint = log_id(EntryId { term: Term(term), index: LogIndex(index) });
            storage.save_committed(Some(hint)).await.expect("saved");
            let read = storage.read_committed().await.expect("read");
            assert_eq!(read, counts.then_some(hint), "hint of term {term}, index {index}");
        }
    }

    #[tokio::test]
    async fn a_range_is_read_whole_although_it_lies_in_several_segments() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let config = StoreConfig {
            segment_bytes: 64 << 10,
            tail_cache_bytes_max: 0,
            ..StoreConfig::in_directory(directory.path().join("log"))
        };
        let identity = Identity { cluster: "test".to_owned(), group: GroupId(1), node: NodeId(1) };
        let store = LogStore::open(config, identity, Arc::new(RealDisk), WriterSpawn::Thread)
            .expect("a new log opens");
        let mut storage = LogStorage::new(store, Arc::new(PurgePermit::default()));
        for index in 0..10 {
            let payload = Payload::Normal(bytes::Bytes::from(vec![1; 20 << 10]));
            let entry = Entry { log_id: log_id(id(index)), payload, payload_at: None };
            storage.blocking_append([entry]).await.expect("appends");
            storage.store.applied(LogIndex(index));
        }
        let entries = storage.try_get_log_entries(1..9).await.expect("reads");
        let indexes: Vec<u64> = entries.iter().map(|entry| entry.log_id.index).collect();
        assert_eq!(indexes, (1..9).collect::<Vec<_>>());
    }

    #[tokio::test]
    #[should_panic(expected = "was not permitted")]
    async fn a_purge_beyond_what_the_schedule_allowed_is_never_carried_out() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut storage = ten_entries(directory.path()).await;
        storage.permit.allow(LogIndex(4));
        let _ = storage.purge(log_id(id(5))).await;
    }

    #[tokio::test]
    async fn a_permitted_purge_moves_the_pointer_and_nothing_else() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut storage = ten_entries(directory.path()).await;
        storage.permit.allow(LogIndex(4));
        storage.purge(log_id(id(4))).await.expect("permitted");
        let state = storage.get_log_state().await.expect("known");
        assert_eq!(state.last_purged_log_id, Some(log_id(id(4))));
        assert_eq!(state.last_log_id, Some(log_id(id(9))));
    }

    #[tokio::test]
    #[should_panic(expected = "lies elsewhere than on the leader")]
    async fn an_entry_that_does_not_lie_where_the_leader_has_it_is_not_taken() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut storage = ten_entries(directory.path()).await;
        let entry = Entry {
            log_id: log_id(id(10)),
            payload: Payload::Normal(bytes::Bytes::from_static(b"x")),
            payload_at: Some(PhysicalOffset(1)),
        };
        let _ = storage.blocking_append([entry]).await;
    }
}
