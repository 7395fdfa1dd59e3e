//! One real replica, spoken to by a leader that this test plays.

use std::io::{Cursor, IoSlice};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Poll;

use bytes::Bytes;
use ledgermq_common::{LogIndex, NodeId, PhysicalOffset, Term};

use super::*;
use crate::group::{Environment, GroupConfig, Member, Retention, Timings};
use crate::io::{DirectoryLock, Disk, DiskFile, RealDisk};
use crate::machine::{AppliedEntry, ApplyError, SnapshotReader, StateMachine};
use crate::peer::TcpConnector;
use crate::raft::membership;
use crate::raft::vocabulary::{Membership, Node, StoredMembership};
use crate::raft::wire::cluster_hash;
use crate::snapshot::SnapshotHead;
use crate::store::{EntryKind, Identity, NewEntry, StoreConfig, WriterSpawn};

const CLUSTER: &str = "test";
const GROUP: GroupId = GroupId(1);
const REPLICA: ReplicaId = ReplicaId(77);
const TAIL: u64 = 10;
const INSIDE: u64 = 20;

#[derive(Default)]
struct LastApplied(AtomicU64);

impl StateMachine for LastApplied {
    fn applied(&self) -> Option<EntryId> {
        None
    }

    fn apply(&self, entries: &[AppliedEntry], answers: &mut Vec<Bytes>) -> Result<(), ApplyError> {
        for entry in entries {
            self.0.store(entry.id.index.get(), Ordering::SeqCst);
            answers.push(Bytes::new());
        }
        Ok(())
    }

    fn log_flushed(&self, _: LogIndex) {}

    fn snapshot(&self) -> std::io::Result<(Option<EntryId>, SnapshotReader)> {
        Ok((None, Box::new(std::io::empty())))
    }

    fn restore(&self, applied: EntryId, _: SnapshotReader) -> std::io::Result<()> {
        self.0.store(applied.index.get(), Ordering::SeqCst);
        Ok(())
    }

    fn retained_from(&self) -> PhysicalOffset {
        PhysicalOffset(0)
    }
}

fn small(directory: &Path) -> StoreConfig {
    StoreConfig {
        segment_bytes: 4 << 20,
        fill_ahead_bytes: 1 << 20,
        replica_if_new: REPLICA,
        ..StoreConfig::in_directory(directory)
    }
}

/// The addresses lead nowhere: nobody but the test speaks to the replica, and it elects nobody.
fn members() -> Vec<Member> {
    (1..=3).map(|node| Member { node: NodeId(node), peer_addr: "127.0.0.1:1".to_owned() }).collect()
}

fn stored_membership() -> StoredMembership {
    let nodes: BTreeMap<u64, Node> = members()
        .into_iter()
        .map(|member| (member.node.get(), Node { addr: member.peer_addr, replica: REPLICA }))
        .collect();
    let membership = Membership::new(vec![nodes.keys().copied().collect()], nodes).expect("valid");
    StoredMembership::new(Some(log_id(EntryId::default())), membership)
}

/// The log of the played leader: the first entry, then commands of term 1.
async fn leaders_log(directory: &Path) -> LogStore {
    let identity = Identity { cluster: CLUSTER.to_owned(), group: GROUP, node: NodeId(1) };
    let store = LogStore::open(small(directory), identity, Arc::new(RealDisk), WriterSpawn::Thread)
        .expect("a new log opens");
    let first = NewEntry {
        id: EntryId::default(),
        kind: EntryKind::Membership,
        payload: membership::encode(stored_membership().membership()),
    };
    let commands = (1..=INSIDE).map(|index| NewEntry {
        id: EntryId { term: Term(1), index: LogIndex(index) },
        kind: EntryKind::Normal,
        payload: Bytes::from(format!("command {index}")),
    });
    let entries = std::iter::once(first).chain(commands).collect();
    store.append(entries, Box::new(|_| {})).await.expect("appends");
    store
}

fn append_of_the_tail(log: &LogStore, to: Address, committed: u64) -> proto::AppendRequest {
    let entries = log.read(LogIndex(0)..LogIndex(TAIL + 1), usize::MAX).expect("readable");
    proto::AppendRequest {
        to: Some(to.into()),
        ballot: Some(proto::Ballot { term: 1, node: 1, committed: true }),
        previous: None,
        committed: Some(proto::EntryId { term: 1, index: committed }),
        entries: entries
            .into_iter()
            .map(|entry| proto::Entry {
                id: Some(proto::EntryId { term: entry.id.term.get(), index: entry.id.index.get() }),
                kind: match entry.kind {
                    EntryKind::Membership => proto::EntryKind::Membership.into(),
                    _ => proto::EntryKind::Normal.into(),
                },
                payload: entry.payload,
                payload_at: entry.payload_at.get(),
            })
            .collect(),
    }
}

/// A real disk whose syncs take [`SLOW_SYNC`] while it is told to be slow.
#[derive(Debug, Default)]
struct SlowDisk {
    is_slow: Arc<AtomicBool>,
}

/// Longer than anything that gives openraft a moment and then goes on.
const SLOW_SYNC: Duration = Duration::from_millis(800);

#[derive(Debug)]
struct SlowFile {
    file: Arc<dyn DiskFile>,
    is_slow: Arc<AtomicBool>,
}

impl SlowDisk {
    fn file(&self, file: std::io::Result<Arc<dyn DiskFile>>) -> std::io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(SlowFile { file: file?, is_slow: Arc::clone(&self.is_slow) }))
    }
}

impl Disk for SlowDisk {
    fn create_directory(&self, path: &Path) -> std::io::Result<()> {
        RealDisk.create_directory(path)
    }
    fn create(&self, path: &Path) -> std::io::Result<Arc<dyn DiskFile>> {
        self.file(RealDisk.create(path))
    }
    fn open(&self, path: &Path) -> std::io::Result<Arc<dyn DiskFile>> {
        self.file(RealDisk.open(path))
    }
    fn rename(&self, from: &Path, to: &Path) -> std::io::Result<()> {
        RealDisk.rename(from, to)
    }
    fn remove(&self, path: &Path) -> std::io::Result<()> {
        RealDisk.remove(path)
    }
    fn list(&self, directory: &Path) -> std::io::Result<Vec<String>> {
        RealDisk.list(directory)
    }
    fn sync_directory(&self, directory: &Path) -> std::io::Result<()> {
        RealDisk.sync_directory(directory)
    }
    fn lock(&self, directory: &Path) -> std::io::Result<Box<dyn DirectoryLock>> {
        RealDisk.lock(directory)
    }
}

impl DiskFile for SlowFile {
    fn write_vectored_at(&self, parts: &[IoSlice<'_>], at: u64) -> std::io::Result<()> {
        self.file.write_vectored_at(parts, at)
    }
    fn read_at(&self, into: &mut [u8], at: u64) -> std::io::Result<usize> {
        self.file.read_at(into, at)
    }
    fn sync_data(&self) -> std::io::Result<()> {
        if self.is_slow.load(Ordering::SeqCst) {
            std::thread::sleep(SLOW_SYNC);
        }
        self.file.sync_data()
    }
    fn byte_len(&self) -> std::io::Result<u64> {
        self.file.byte_len()
    }
    fn reserve(&self, len: u64) -> std::io::Result<()> {
        self.file.reserve(len)
    }
    fn zero_fill(&self, at: u64, len: u64) -> std::io::Result<()> {
        self.file.zero_fill(at, len)
    }
    fn map(&self, at: u64, len: usize) -> std::io::Result<Bytes> {
        self.file.map(at, len)
    }
}

/// A follower, the snapshot its leader has, and the leader's log.
struct Scene {
    directory: tempfile::TempDir,
    log: LogStore,
    boundary: crate::store::SnapshotBoundary,
    snapshot: SnapshotFile,
    machine: Arc<LastApplied>,
    group: Group,
    server: PeerServer,
}

impl Scene {
    async fn set(disk: Arc<dyn Disk>) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let log = leaders_log(&directory.path().join("leader")).await;
        let boundary = log.boundary_at(LogIndex(INSIDE)).expect("readable").expect("present");
        let leaders_snapshots = SnapshotCatalog::open(
            Arc::new(RealDisk),
            directory.path().join("snapshots-of-the-leader"),
            GROUP,
            cluster_hash(CLUSTER),
            2,
        )
        .expect("opens");
        let head = SnapshotHead { boundary, membership: stored_membership() };
        let snapshot = leaders_snapshots.write(head, &mut Cursor::new(vec![5; 1_000_000])).expect("written");
        let machine = Arc::new(LastApplied::default());
        let config = GroupConfig {
            cluster: CLUSTER.to_owned(),
            group: GROUP,
            name: "one".to_owned(),
            node: NodeId(2),
            members: members(),
            timings: Timings::default(),
            retention: Retention::default(),
            store: small(&directory.path().join("follower")),
        };
        let environment = Environment {
            disk,
            writer: WriterSpawn::Thread,
            connector: Arc::new(TcpConnector),
            proposers: None,
            seed: 2,
        };
        let group = Group::open(config, Arc::clone(&machine) as Arc<dyn StateMachine>, environment)
            .await
            .expect("opens");
        let server = PeerServer::new();
        server.add(&group);
        Self { directory, log, boundary, snapshot, machine, group, server }
    }

    fn received(&self) -> SnapshotFile {
        let port = self.group.port();
        let mut incoming = port.catalog.receive(self.snapshot.file_bytes).expect("room");
        incoming.write(&self.snapshot.read_raw(0, usize::MAX).expect("readable")).expect("fits");
        port.catalog.accept(&incoming).expect("verifies")
    }

    async fn end_behind_the_snapshot(self) {
        let status = self.group.status();
        assert_eq!(status.applied, Some(LogIndex(INSIDE)));
        let (end, leaders) = (status.physical_end, self.boundary.next_physical_offset);
        assert_eq!(end, leaders, "the log goes on where the leader's does");
        assert_eq!(self.machine.0.load(Ordering::SeqCst), INSIDE);
        self.group.shutdown().await;
        drop(self.directory);
    }
}

/// The follower's side of openraft#2116 (see `settle_tail`): the tail is applied before the snapshot
/// takes its place, and only then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_may_overtake_entries_that_are_not_committed_yet() {
    let scene = Scene::set(Arc::new(RealDisk)).await;
    let port = scene.group.port();

    let append = append_of_the_tail(&scene.log, port.address, 2);
    let answer = scene.server.heartbeat(Request::new(append)).await.expect("answered").into_inner();
    assert!(matches!(answer.outcome, Some(proto::append_response::Outcome::Matched(_))), "{answer:?}");

    let received = scene.received();
    settle_tail(&port, Vote::new_committed(1, 1), scene.boundary.id).await.expect("settled");
    let applied = scene.machine.0.load(Ordering::SeqCst);
    assert_eq!(applied, TAIL, "nothing is left to be applied below the snapshot");
    install(&port, Vote::new_committed(1, 1), received).await.expect("installed");
    scene.end_behind_the_snapshot().await;
}

/// Around openraft#2116: entries and a repeat of them wait for a slow disk when a snapshot comes that
/// makes openraft forget their ids. The snapshot is kept back until they are synced, so nothing is
/// left that could look for them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_may_overtake_committed_entries_that_wait_for_a_slow_disk() {
    let disk = SlowDisk::default();
    let is_slow = Arc::clone(&disk.is_slow);
    let scene = Scene::set(Arc::new(disk)).await;
    let port = scene.group.port();
    let received = scene.received();

    is_slow.store(true, Ordering::SeqCst);
    let append = append_of_the_tail(&scene.log, port.address, 2);
    let server = scene.server.clone();
    let appended = tokio::spawn(async move { server.heartbeat(Request::new(append)).await });
    let placed = async {
        while port.store.last_id().is_none_or(|last| last.index < LogIndex(TAIL)) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), placed).await.expect("the entries are placed");
    let again = append_of_the_tail(&scene.log, port.address, 2);
    let mut repeated = Box::pin(scene.server.heartbeat(Request::new(again)));
    let is_waiting =
        std::future::poll_fn(|context| Poll::Ready(repeated.as_mut().poll(context).is_pending()));
    assert!(is_waiting.await, "the repeat waits for the disk");

    tokio::select! {
        biased;
        fault = scene.group.fault() => panic!("the replica is lost: {fault}"),
        installed = install(&port, Vote::new_committed(1, 1), received) => drop(installed.expect("installed")),
    }
    is_slow.store(false, Ordering::SeqCst);
    appended.await.expect("no panic").expect("answered");
    repeated.await.expect("answered");
    scene.end_behind_the_snapshot().await;
}

/// That the tail is settled is not luck: left out, it is not, and openraft has what it may look for.
#[cfg(feature = "defects")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tail_that_is_not_settled_is_noticed() {
    let scene = Scene::set(Arc::new(RealDisk)).await;
    let port = scene.group.port();
    let append = append_of_the_tail(&scene.log, port.address, 2);
    scene.server.heartbeat(Request::new(append)).await.expect("answered");
    // A thread has its defect, and this test is polled by one thread.
    defects::activate(Some(Defect::TailNotSettled));
    settle_tail(&port, Vote::new_committed(1, 1), scene.boundary.id).await.expect("left out");
    defects::activate(None);
    assert_ne!(scene.machine.0.load(Ordering::SeqCst), TAIL, "the tail was settled all the same");
}
