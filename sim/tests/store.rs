//! Broken builds of the log store alone, on the simulated disk: what no simulated fault of a whole
//! group reaches (bytes that rot), and what one script finds faster than a seed does.
//!
//! Each trial is run with the promise broken, where it must fail, and whole, where it must pass.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use ledgermq_common::{GroupId, LogIndex, NodeId, PhysicalOffset, Term};
use ledgermq_raft_store::defects::{Defect, activate};
use ledgermq_raft_store::group::Member;
use ledgermq_raft_store::io::SimulatedDisk;
use ledgermq_raft_store::peer::{Connecting, PeerConnector};
use ledgermq_raft_store::store::{
    EntryKind, Identity, LogStore, NewEntry, OpenError, StoreConfig, StoreFault, VoteRecord, WriterSpawn,
};
use ledgermq_raft_store::{
    AppliedEntry, ApplyError, EntryId, Environment, Group, GroupConfig, Retention, SnapshotReader,
    StateMachine, Timings,
};

const DIRECTORY: &str = "/data/group-1";
/// A script has no more operations of the disk than this.
const OPERATIONS_MAX: u64 = 2_000;

type Trial = fn() -> Result<(), String>;

fn config() -> StoreConfig {
    StoreConfig {
        segment_bytes: 64 << 10,
        tail_cache_bytes_max: 0,
        fill_ahead_bytes: 16 << 10,
        // The watermark moves with what else is written to the superblock, and never by itself.
        watermark_idle_ms: 3_600_000,
        ..StoreConfig::in_directory(DIRECTORY)
    }
}

fn open(disk: &SimulatedDisk) -> Result<LogStore, OpenError> {
    let spawn = WriterSpawn::Task { latency: Arc::new(|| Duration::ZERO) };
    let identity = Identity { cluster: "c".to_owned(), group: GroupId(1), node: NodeId(1) };
    LogStore::open(config(), identity, Arc::new(disk.clone()), spawn)
}

fn reopen(disk: &SimulatedDisk) -> Result<LogStore, String> {
    open(disk).map_err(|error| format!("it does not open: {error}"))
}

fn entry(index: u64, term: u64, len: usize) -> NewEntry {
    let mut payload = vec![(index ^ term) as u8; len];
    payload
        .iter_mut()
        .zip(index.to_le_bytes().into_iter().chain(term.to_le_bytes()))
        .for_each(|(p, b)| *p = b);
    let id = EntryId { term: Term(term), index: LogIndex(index) };
    NewEntry { id, kind: EntryKind::Normal, payload: Bytes::from(payload) }
}

async fn append(store: &LogStore, entries: Vec<NewEntry>) -> Result<(), StoreFault> {
    let (durable, outcome) = tokio::sync::oneshot::channel();
    let tell = move |result| {
        let _ = durable.send(result);
    };
    let placed = store.append(entries, Box::new(tell)).await;
    placed.map_err(|error| StoreFault {
        operation: "append",
        file: PathBuf::from(DIRECTORY),
        reason: error.to_string(),
    })?;
    outcome.await.expect("the callback is called")
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime").block_on(future)
}

/// What was acknowledged, and what may be there besides.
#[derive(Default)]
struct Promised {
    /// Entries that must be there.
    kept: Vec<NewEntry>,
    /// The log before a cut or behind an append that is under way.
    longer: Vec<NewEntry>,
    released_below: usize,
    vote: Option<VoteRecord>,
    vote_asked: Option<VoteRecord>,
}

impl Promised {
    /// Two full segments, a cut that a shorter tail follows, votes, a released segment, and a reset.
    async fn run(&mut self, store: &LogStore) -> Result<(), StoreFault> {
        for number in 0..10 {
            self.append(store, number % 3 + 1, 1, 4_000).await?;
        }
        self.vote(store, 2).await?;
        self.cut(store, 5).await?;
        // Of the same lengths, so that what was cut lies just where new frames end.
        self.append(store, 2, 2, 4_000).await?;
        self.vote(store, 3).await?;
        for _ in 0..12 {
            self.append(store, 2, 3, 4_000).await?;
        }
        store.applied(LogIndex(25));
        store.purge(self.kept[22].id).await?;
        self.released_below = 22;
        store.release_before(store.physical_end()).await?;
        self.append(store, 3, 3, 4_000).await
    }

    async fn append(
        &mut self,
        store: &LogStore,
        count: u64,
        term: u64,
        len: usize,
    ) -> Result<(), StoreFault> {
        let next = self.kept.len() as u64;
        let entries: Vec<_> = (next..next + count).map(|index| entry(index, term, len)).collect();
        self.longer = self.kept.iter().chain(&entries).cloned().collect();
        append(store, entries).await?;
        self.kept.clone_from(&self.longer);
        Ok(())
    }

    async fn cut(&mut self, store: &LogStore, kept: usize) -> Result<(), StoreFault> {
        self.longer = self.kept.clone();
        self.kept.truncate(kept);
        store.truncate_after(Some(LogIndex(kept as u64 - 1))).await?;
        self.longer.clone_from(&self.kept);
        Ok(())
    }

    async fn vote(&mut self, store: &LogStore, term: u64) -> Result<(), StoreFault> {
        self.vote_asked = Some(VoteRecord { term, node_id: 1, committed: false });
        store.save_vote(self.vote_asked.expect("just asked for")).await?;
        self.vote = self.vote_asked;
        Ok(())
    }

    fn check(&self, store: &LogStore) -> Result<(), String> {
        let vote = store.read_vote();
        if vote != self.vote && vote != self.vote_asked {
            return Err(format!("the vote is {vote:?}, given was {:?}", self.vote));
        }
        let oldest = usize::try_from(store.oldest_index().get()).expect("a small index");
        if oldest > self.released_below + 1 {
            return Err(format!("entry {oldest} is the oldest, purged was up to {}", self.released_below));
        }
        let mut found = Vec::new();
        loop {
            let next = LogIndex((oldest + found.len()) as u64);
            let more = store.read(next..LogIndex(u64::MAX), 10_000).map_err(|error| error.to_string())?;
            if more.is_empty() {
                break;
            }
            found.extend(more);
        }
        let len = oldest + found.len();
        if len < self.kept.len() {
            return Err(format!("{} entries were acknowledged, {len} are there", self.kept.len()));
        }
        if len > self.longer.len().max(self.kept.len()) {
            return Err(format!("{len} entries are there, {} were asked for", self.longer.len()));
        }
        let asked = if len > self.kept.len() { &self.longer } else { &self.kept };
        for (found, asked) in found.iter().zip(&asked[oldest..]) {
            if found.id != asked.id || found.payload != asked.payload {
                return Err(format!("entry {:?} is there, {:?} was asked for", found.id, asked.id));
            }
        }
        store.verify_all().map_err(|error| error.to_string())
    }
}

#[derive(Clone, Copy)]
enum End {
    PowerCut,
    /// The operation fails, the process ends, and the power goes once it is back.
    Fault,
}

/// The script, ended at each operation of the disk in turn.
fn ends_anywhere(end: End) -> Result<(), String> {
    block_on(async {
        for at in 0..OPERATIONS_MAX {
            let disk = SimulatedDisk::new(at);
            match end {
                End::PowerCut => disk.cut_power_at(at),
                End::Fault => disk.fail_at(at, std::io::ErrorKind::Other),
            }
            let mut promised = Promised::default();
            if let Ok(store) = open(&disk) {
                let _ = promised.run(&store).await;
            }
            let is_over = disk.operations() <= at;
            if let End::Fault = end {
                // Where the script was over before.
                disk.fail_at(u64::MAX, std::io::ErrorKind::Other);
                disk.kill();
                let found = reopen(&disk).map_err(|what| format!("operation {at}: {what}"))?;
                promised.check(&found).map_err(|what| format!("operation {at}: {what}"))?;
                promised.kept.clone_from(&promised.longer);
                let len = found.last_id().map_or(0, |last| last.index.get() as usize + 1);
                promised.kept.truncate(len);
            }
            disk.cut_power_losing_all();
            let store = reopen(&disk).map_err(|what| format!("operation {at}: {what}"))?;
            promised.check(&store).map_err(|what| format!("operation {at}: {what}"))?;
            if is_over {
                return Ok(());
            }
        }
        Err("the script does not end".to_owned())
    })
}

fn power_goes_anywhere() -> Result<(), String> {
    ends_anywhere(End::PowerCut)
}

fn anything_fails() -> Result<(), String> {
    ends_anywhere(End::Fault)
}

/// The log starts anew behind a snapshot, and the power goes at each operation of that.
fn power_goes_in_a_reset() -> Result<(), String> {
    block_on(async {
        let source = reopen(&SimulatedDisk::new(1))?;
        append(&source, (0..40).map(|index| entry(index, 2, 3_000)).collect()).await.expect("appends");
        let boundary = source.boundary_at(LogIndex(30)).expect("readable").expect("in the log");
        for operations in 0..60 {
            let disk = SimulatedDisk::new(operations);
            let store = reopen(&disk)?;
            append(&store, (0..5).map(|index| entry(index, 1, 700)).collect()).await.expect("appends");
            disk.cut_power_at(disk.operations() + operations);
            let is_done = store.reset_to(boundary).await.is_ok();
            drop(store);
            disk.cut_power();
            let store = reopen(&disk).map_err(|what| format!("operation {operations} of a reset: {what}"))?;
            let last = store.last_id().map_or(0, |last| last.index.get());
            if last != 30 && (is_done || last != 4) {
                return Err(format!("operation {operations} of a reset leaves a log up to {last}"));
            }
        }
        Ok(())
    })
}

/// Twenty entries, each acknowledged before the next was sent; with `watermark` the superblock knows.
async fn twenty(disk: &SimulatedDisk, watermark: bool) -> LogStore {
    let store = open(disk).expect("a new log opens");
    for index in 0..20 {
        append(&store, vec![entry(index, 1, 500)]).await.expect("appends");
    }
    if watermark {
        let vote = VoteRecord { term: 1, node_id: 1, committed: true };
        store.save_vote(vote).await.expect("writes the superblock");
    }
    store
}

fn rotten(disk: &SimulatedDisk) {
    // In the payload of one of the first entries.
    disk.flip_bit(&PathBuf::from(DIRECTORY).join(format!("{:020}.log", 0)), 4096 + 2_000, 3);
}

/// A bit of an acknowledged entry rots while the node is down: it stays out rather than forget.
fn rots_while_down(watermark: bool) -> Result<(), String> {
    block_on(async {
        let disk = SimulatedDisk::new(1);
        drop(twenty(&disk, watermark).await);
        disk.cut_power();
        rotten(&disk);
        match open(&disk) {
            Err(OpenError::Corrupt { .. }) => Ok(()),
            Err(error) => Err(format!("refused as {error}")),
            Ok(store) => {
                let last = store.last_id().map_or(0, |last| last.index.get() + 1);
                Err(format!("20 entries were acknowledged, {last} are left"))
            }
        }
    })
}

fn rots_below_the_watermark() -> Result<(), String> {
    rots_while_down(true)
}

fn rots_behind_the_watermark() -> Result<(), String> {
    rots_while_down(false)
}

/// A bit rots under a running node: the entry is an error, never other bytes.
fn rots_under_a_reader() -> Result<(), String> {
    block_on(async {
        let disk = SimulatedDisk::new(1);
        let store = twenty(&disk, true).await;
        store.applied(LogIndex(19));
        rotten(&disk);
        for index in 0..20 {
            let range = LogIndex(index)..LogIndex(index + 1);
            let Ok(found) = store.read(range, usize::MAX) else { return Ok(()) };
            if found.first().map(|found| &found.payload) != Some(&entry(index, 1, 500).payload) {
                return Err(format!("entry {index} was read with other bytes"));
            }
        }
        Err("the rotten bit was in no entry".to_owned())
    })
}

/// Knows nothing and applies nothing.
struct Idle;

impl StateMachine for Idle {
    fn applied(&self) -> Option<EntryId> {
        None
    }

    fn apply(&self, entries: &[AppliedEntry], answers: &mut Vec<Bytes>) -> Result<(), ApplyError> {
        answers.extend(entries.iter().map(|_| Bytes::new()));
        Ok(())
    }

    fn log_flushed(&self, _: LogIndex) {}

    fn snapshot(&self) -> std::io::Result<(Option<EntryId>, SnapshotReader)> {
        Ok((None, Box::new(std::io::empty())))
    }

    fn restore(&self, _: EntryId, _: SnapshotReader) -> std::io::Result<()> {
        Ok(())
    }

    fn retained_from(&self) -> PhysicalOffset {
        PhysicalOffset(0)
    }
}

/// Nobody is there.
struct Alone;

impl PeerConnector for Alone {
    fn connect(&self, _: &str) -> Connecting {
        Box::pin(std::future::ready(Err(std::io::ErrorKind::ConnectionRefused.into())))
    }
}

/// A replica starts whose superblock knows of commits that the power cut took from its log, or of
/// one whose place another entry has: it opens, and has committed nothing that it does not have.
fn hint_beyond_the_log() -> Result<(), String> {
    for (term, index) in [(1, 9), (2, 4)] {
        block_on(async {
            let disk = SimulatedDisk::new(1);
            let store = reopen(&disk)?;
            append(&store, (0..5).map(|index| entry(index, 1, 100)).collect()).await.expect("appends");
            store.save_committed(Some(EntryId { term: Term(term), index: LogIndex(index) }));
            store.save_vote(VoteRecord { term: 2, node_id: 2, committed: true }).await.expect("writes");
            drop(store);
            disk.cut_power();
            let member = |node| Member { node: NodeId(node), peer_addr: format!("broker-{node}:9001") };
            let config = GroupConfig {
                cluster: "c".to_owned(),
                group: GroupId(1),
                name: "group".to_owned(),
                node: NodeId(1),
                members: (1..=3).map(member).collect(),
                timings: Timings::default(),
                retention: Retention::default(),
                store: config(),
            };
            let environment = Environment {
                disk: Arc::new(disk),
                writer: WriterSpawn::Task { latency: Arc::new(|| Duration::ZERO) },
                connector: Arc::new(Alone),
                proposers: None,
                seed: 1,
            };
            let group = Group::open(config, Arc::new(Idle), environment)
                .await
                .map_err(|error| format!("it does not open: {error}"))?;
            tokio::time::sleep(Duration::from_millis(50)).await;
            let status = group.status();
            if status.committed.is_some() || status.applied.is_some() {
                return Err(format!("committed is {:?} of {:?}", status.committed, status.last));
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// What convicts which broken promise.
const TRIALS: [(Defect, Trial); 16] = [
    (Defect::AckBeforeSync, power_goes_anywhere),
    (Defect::VoteNotWritten, power_goes_anywhere),
    (Defect::CutInMemory, power_goes_anywhere),
    (Defect::LifeNotRaised, power_goes_anywhere),
    (Defect::SegmentNameNotSynced, power_goes_anywhere),
    (Defect::ReleaseBeforePromise, power_goes_anywhere),
    (Defect::ResetUnmarked, power_goes_in_a_reset),
    (Defect::FlushedThoughSyncFailed, anything_fails),
    (Defect::SyncRetried, anything_fails),
    (Defect::TailNotWrittenAgain, anything_fails),
    (Defect::CorruptionIsTail, rots_below_the_watermark),
    (Defect::CorruptionIsTail, rots_behind_the_watermark),
    (Defect::WitnessIgnored, rots_behind_the_watermark),
    (Defect::ReadUnverified, rots_under_a_reader),
    (Defect::AckBeforeSync, anything_fails),
    (Defect::CommitHintTrusted, hint_beyond_the_log),
];

/// A panic is a failure like others: an assertion of the store may be the one that notices.
fn attempt(defect: Option<Defect>, trial: Trial) -> Result<(), String> {
    activate(defect);
    let outcome = catch_unwind(AssertUnwindSafe(trial));
    activate(None);
    outcome.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        Err(text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default())
    })
}

#[test]
fn every_broken_promise_of_the_store_is_noticed() {
    let mut unnoticed = Vec::new();
    for (defect, trial) in TRIALS {
        let started = Instant::now();
        match attempt(Some(defect), trial) {
            Err(what) => eprintln!("{defect:?}: {:.2} s, {what}", started.elapsed().as_secs_f64()),
            Ok(()) => unnoticed.push(defect),
        }
    }
    assert!(unnoticed.is_empty(), "went unnoticed: {unnoticed:?}");
}

#[test]
fn the_whole_store_passes_what_convicts_the_broken_ones() {
    for trial in [
        power_goes_anywhere,
        anything_fails,
        power_goes_in_a_reset,
        rots_below_the_watermark,
        rots_behind_the_watermark,
        rots_under_a_reader,
        hint_beyond_the_log,
    ] as [Trial; 7]
    {
        attempt(None, trial).expect("nothing is broken");
    }
}
