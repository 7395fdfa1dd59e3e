//! One real replica, spoken to by a leader that this test plays.

use std::io::Cursor;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use ledgermq_common::{LogIndex, NodeId, PhysicalOffset, Term};

use super::*;
use crate::group::{Environment, GroupConfig, Member, Retention, Timings};
use crate::io::{Disk, RealDisk};
use crate::machine::{AppliedEntry, ApplyError, SnapshotReader, StateMachine};
use crate::peer::TcpConnector;
use crate::raft::membership;
use crate::raft::vocabulary::{Membership, Node, StoredMembership};
use crate::raft::wire::cluster_hash;
use crate::snapshot::SnapshotHead;
use crate::store::{EntryKind, Identity, NewEntry, StoreConfig, WriterSpawn};

const CLUSTER: &str = "test";
const GROUP: GroupId = GroupId(1);
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
    StoreConfig { segment_bytes: 4 << 20, fill_ahead_bytes: 1 << 20, ..StoreConfig::in_directory(directory) }
}

/// The addresses lead nowhere: nobody but the test speaks to the replica, and it elects nobody.
fn members() -> Vec<Member> {
    (1..=3).map(|node| Member { node: NodeId(node), peer_addr: "127.0.0.1:1".to_owned() }).collect()
}

fn stored_membership() -> StoredMembership {
    let nodes: BTreeMap<u64, Node> =
        members().into_iter().map(|member| (member.node.get(), Node { addr: member.peer_addr })).collect();
    let membership = Membership::new(vec![nodes.keys().copied().collect()], nodes).expect("valid");
    StoredMembership::new(Some(log_id(EntryId::default())), membership)
}

/// The log of the played leader: the first entry every member writes, then commands of term 1.
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

fn append_of_the_tail(log: &LogStore, to: Address) -> proto::AppendRequest {
    let entries = log.read(LogIndex(1)..LogIndex(TAIL + 1), usize::MAX).expect("readable");
    proto::AppendRequest {
        to: Some(to.into()),
        ballot: Some(proto::Ballot { term: 1, node: 1, committed: true }),
        previous: Some(proto::EntryId { term: 0, index: 0 }),
        committed: Some(proto::EntryId { term: 1, index: 2 }),
        entries: entries
            .into_iter()
            .map(|entry| proto::Entry {
                id: Some(proto::EntryId { term: 1, index: entry.id.index.get() }),
                kind: proto::EntryKind::Normal.into(),
                payload: entry.payload,
                payload_at: entry.payload_at.get(),
            })
            .collect(),
    }
}

/// The follower's side of openraft#2116 (see `settle_tail`): the tail is applied before the snapshot
/// takes its place, and only then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_may_overtake_entries_that_are_not_committed_yet() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let log = leaders_log(&directory.path().join("leader")).await;
    let boundary = log.boundary_at(LogIndex(INSIDE)).expect("readable").expect("present");
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let leaders_snapshots = SnapshotCatalog::open(
        Arc::clone(&disk),
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
    let environment =
        Environment { disk, writer: WriterSpawn::Thread, connector: Arc::new(TcpConnector), seed: 2 };
    let group =
        Group::open(config, Arc::clone(&machine) as Arc<dyn StateMachine>, environment).await.expect("opens");
    let server = PeerServer::new();
    server.add(&group);
    let port = group.port();

    let append = append_of_the_tail(&log, port.address);
    let answer = server.heartbeat(Request::new(append)).await.expect("answered").into_inner();
    assert!(matches!(answer.outcome, Some(proto::append_response::Outcome::Matched(_))), "{answer:?}");

    let mut incoming = port.catalog.receive(snapshot.file_bytes).expect("room");
    incoming.write(&snapshot.read_raw(0, usize::MAX).expect("readable")).expect("fits");
    let received = port.catalog.accept(&incoming).expect("verifies");
    settle_tail(&port, Vote::new_committed(1, 1), boundary.id).await.expect("settled");
    assert_eq!(machine.0.load(Ordering::SeqCst), TAIL, "nothing is left to be applied below the snapshot");
    install(&port, Vote::new_committed(1, 1), received).await.expect("installed");

    let status = group.status();
    assert_eq!(status.applied, Some(LogIndex(INSIDE)));
    assert_eq!(status.physical_end, boundary.next_physical_offset, "the log goes on where the leader's does");
    assert_eq!(machine.0.load(Ordering::SeqCst), INSIDE);
    group.shutdown().await;
}
