//! What a test knows of a log: what it asked for and what it was told.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ledgermq_common::{GroupId, LogIndex, NodeId, PhysicalOffset, Term};
use ledgermq_raft_store::EntryId;
use ledgermq_raft_store::io::SimulatedDisk;
use ledgermq_raft_store::store::{
    AppendError, EntryKind, Identity, LogStore, NewEntry, OpenError, StoreConfig, StoreFault, StoredEntry,
    WriterSpawn,
};
use tokio::sync::oneshot;

pub const SEGMENT_BYTES: u64 = 64 * 1024;
pub const DIRECTORY: &str = "/data/group-1";

pub fn identity() -> Identity {
    Identity { cluster: "c".to_owned(), group: GroupId(1), node: NodeId(1) }
}

/// Small everywhere, so that rolls, evictions and full queues happen in short tests.
pub fn config() -> StoreConfig {
    StoreConfig {
        segment_bytes: SEGMENT_BYTES,
        tail_cache_bytes_max: 16 * 1024,
        fill_ahead_bytes: 16 * 1024,
        // The watermark moves only when a test has it move.
        watermark_idle_ms: 3_600_000,
        ..StoreConfig::in_directory(DIRECTORY)
    }
}

pub fn open(disk: &SimulatedDisk) -> Result<LogStore, OpenError> {
    open_with(disk, config())
}

pub fn open_with(disk: &SimulatedDisk, config: StoreConfig) -> Result<LogStore, OpenError> {
    let spawn = WriterSpawn::Task { latency: Arc::new(|| Duration::ZERO) };
    LogStore::open(config, identity(), Arc::new(disk.clone()), spawn)
}

pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap()
}

pub fn segment_file(base: u64) -> PathBuf {
    PathBuf::from(DIRECTORY).join(format!("{base:020}.log"))
}

pub fn superblock_file() -> PathBuf {
    PathBuf::from(DIRECTORY).join("superblock")
}

pub fn entry(index: u64, term: u64, len: usize) -> NewEntry {
    let byte = (index.wrapping_mul(31) ^ term) as u8;
    let mut payload = vec![byte; len];
    payload
        .iter_mut()
        .zip(index.to_le_bytes().into_iter().chain(term.to_le_bytes()))
        .for_each(|(p, b)| *p = b);
    let kind = if len == 0 { EntryKind::Blank } else { EntryKind::Normal };
    NewEntry { id: EntryId { term: Term(term), index: LogIndex(index) }, kind, payload: Bytes::from(payload) }
}

/// Appends and waits until it is durable.
pub async fn append(store: &LogStore, entries: Vec<NewEntry>) -> Result<Vec<PhysicalOffset>, AppendError> {
    let (durable, outcome) = oneshot::channel();
    let places = store.append(entries, tell(durable)).await?;
    outcome.await.expect("the callback is called")?;
    Ok(places)
}

pub fn tell(to: oneshot::Sender<Result<(), StoreFault>>) -> Box<dyn FnOnce(Result<(), StoreFault>) + Send> {
    Box::new(move |outcome| {
        let _ = to.send(outcome);
    })
}

/// Every entry from `from` on.
pub fn read_all(store: &LogStore, from: u64) -> Vec<StoredEntry> {
    let mut entries: Vec<StoredEntry> = Vec::new();
    loop {
        let next = entries.last().map_or(LogIndex(from), |last| last.id.index.next());
        let more = store.read(next..LogIndex(u64::MAX), 10_000).expect("the log is readable");
        if more.is_empty() {
            return entries;
        }
        entries.extend(more);
    }
}

/// Compares what the store has from the oldest entry on with what was asked for.
pub fn assert_same(found: &[StoredEntry], asked: &[NewEntry]) {
    assert_eq!(found.len(), asked.len(), "number of entries");
    for (found, asked) in found.iter().zip(asked) {
        assert_eq!((found.id, found.kind), (asked.id, asked.kind));
        assert!(found.payload == asked.payload, "payload of entry {:?}", asked.id);
    }
}
