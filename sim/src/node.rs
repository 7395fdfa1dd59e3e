//! A simulated broker: a disk and a clock that outlive its processes, and the process itself, which
//! is the real group, the real state machine and the real peer server over the simulated network.
//!
//! | The process ends by | What happens to it |
//! |---|---|
//! | a kill or a power cut from the plan | its tasks are dropped wherever they wait |
//! | a fault of its own (a failed write or sync) | it marks itself ended and the world drops it |
//! | a refusal to open its directory | the same, and a violation unless the disk just failed |

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use ledgermq_broker::state::{BrokerState, CheckpointMode, NobodyWaits, StateConfig};
use ledgermq_common::clock::SteppedClock;
use ledgermq_common::{GroupId, LogIndex, NodeId, PhysicalOffset};
use ledgermq_raft_store::group::{
    Environment, GroupConfig, GroupStatus, Member, OpenGroupError, Retention, Timings,
};
use ledgermq_raft_store::io::{Disk, SimulatedDisk};
use ledgermq_raft_store::machine::RecoveredLog;
use ledgermq_raft_store::store::{ReplicaId, StoreConfig, WriterSpawn};
use ledgermq_raft_store::{
    AppliedEntry, ApplyError, EntryId, Group, PeerServer, SnapshotReader, StateMachine,
};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::sync::mpsc;
use turmoil::net::TcpListener;

use crate::defect::Defect;
use crate::front::Front;
use crate::network::{Network, SimConnector};
use crate::oracle::Oracle;
use crate::plan::{NODES, Plan};
use crate::workload::{FRONT_PORT, host_name, node_number};

const PEER_PORT: u16 = 9001;
pub const GROUP: GroupId = GroupId(7);
pub const CLUSTER: &str = "simulated";
/// A digest of the state is compared behind every entry whose index this divides.
const DIGEST_EVERY: u64 = 8;
const HAND_OVER_WITHIN: Duration = Duration::from_secs(2);

pub struct Node {
    pub index: usize,
    pub disk: SimulatedDisk,
    pub clock: SteppedClock,
    pub slow_disk_ms: Arc<AtomicU64>,
    plan: Arc<Plan>,
    network: Network,
    oracle: Oracle,
    defect: Option<Defect>,
    latency_random: Mutex<StdRng>,
    life: AtomicU64,
    running: Mutex<Option<Running>>,
    has_ended: AtomicBool,
    asks: Mutex<Option<mpsc::UnboundedSender<Ask>>>,
}

/// What the world asks of a running process.
#[derive(Debug, Clone, Copy)]
pub enum Ask {
    HandOver,
    Snapshot,
}

/// The handles of the current life.
#[derive(Clone)]
pub struct Running {
    pub group: Group,
    pub state: Arc<BrokerState>,
}

impl Node {
    pub fn new(
        index: usize,
        plan: Arc<Plan>,
        network: Network,
        oracle: Oracle,
        clock: SteppedClock,
        defect: Option<Defect>,
    ) -> Self {
        let seed = plan.seed.wrapping_mul(NODES as u64).wrapping_add(index as u64);
        Self {
            index,
            disk: SimulatedDisk::new(seed),
            clock,
            slow_disk_ms: Arc::default(),
            plan,
            network,
            oracle,
            defect,
            latency_random: Mutex::new(StdRng::seed_from_u64(!seed)),
            life: AtomicU64::new(0),
            running: Mutex::new(None),
            has_ended: AtomicBool::new(false),
            asks: Mutex::new(None),
        }
    }

    pub fn running(&self) -> Option<Running> {
        self.running.lock().clone()
    }

    pub fn status(&self) -> Option<GroupStatus> {
        self.running.lock().as_ref().map(|running| running.group.status())
    }

    /// The process ended by itself; the world has not dropped it yet.
    pub fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::SeqCst)
    }

    /// Has the process do something; a process that is down is not asked.
    pub fn ask(&self, ask: Ask) {
        if let Some(asks) = &*self.asks.lock() {
            // A process that just ended takes no questions.
            let _ = asks.send(ask);
        }
    }

    /// The process is gone: nothing of it may be used any more.
    pub fn forget_life(&self) {
        *self.running.lock() = None;
        *self.asks.lock() = None;
        self.has_ended.store(false, Ordering::SeqCst);
        self.oracle.life_ended(self.index);
    }

    /// The process, from start to its own end. The future never resolves: a process that ended
    /// waits to be dropped, which closes its sockets.
    pub async fn run(self: Arc<Self>) -> turmoil::Result {
        let life = self.life.fetch_add(1, Ordering::SeqCst);
        let end = self.run_life(life).await;
        self.oracle.event(self.name(), format_args!("life {life} ended: {end}"));
        self.has_ended.store(true, Ordering::SeqCst);
        std::future::pending().await
    }

    async fn run_life(&self, life: u64) -> String {
        self.oracle.event(self.name(), format_args!("life {life} starts"));
        let failures_before = self.disk.failures();
        let (group, state) = match self.open(life).await {
            Ok(opened) => opened,
            Err(error) => {
                if self.disk.failures() == failures_before {
                    self.oracle.violate(format_args!("{} does not open: {error:?}", self.name()));
                }
                return format!("not opened: {error:?}");
            }
        };
        let peers = PeerServer::new();
        peers.add(&group);
        *self.running.lock() = Some(Running { group: group.clone(), state: Arc::clone(&state) });
        tokio::spawn(serve_peers(peers, self.network.clone(), host_name(self.index)));
        let front = Front {
            group: group.clone(),
            state,
            clock: self.clock.clone(),
            plan: Arc::clone(&self.plan),
            opens_unclosed: self.defect == Some(Defect::OpenBeforeClosed),
            forgets_owed: self.defect == Some(Defect::OwedReleased),
            asks_own_producers_only: self.defect == Some(Defect::OwnProducersOnly),
            node: self.index,
            network: self.network.clone(),
            desk: Arc::default(),
        };
        tokio::spawn(front.clone().fire_timers());
        if !self.plan.answering.is_empty() {
            tokio::spawn(front.clone().check_transactions());
        }
        tokio::spawn(front.clone().grow_topics());
        tokio::spawn(front.clone().bury_exhausted());
        tokio::spawn(front.clone().keep_retention());
        tokio::spawn(serve_clients(front, self.network.clone(), host_name(self.index)));
        let (sender, mut asks) = mpsc::unbounded_channel();
        *self.asks.lock() = Some(sender);
        tokio::spawn({
            let group = group.clone();
            async move {
                while let Some(ask) = asks.recv().await {
                    // Either may fail for a good reason; what counts is that nothing breaks.
                    match ask {
                        Ask::HandOver => drop(group.hand_over(HAND_OVER_WITHIN).await),
                        Ask::Snapshot => drop(group.snapshot_now().await),
                    }
                }
            }
        });
        group.fault().await.to_string()
    }

    async fn open(&self, life: u64) -> Result<(Group, Arc<BrokerState>), OpenGroupError> {
        // Without checkpoints: every life makes its state from snapshot and log.
        let config = StateConfig { group: GROUP, directory: None, checkpoints: CheckpointMode::OnDemand };
        let state = BrokerState::open(config, Arc::new(NobodyWaits)).expect("a state in memory opens");
        let machine = Witnessed {
            node: self.index,
            inner: Arc::clone(&state),
            oracle: self.oracle.clone(),
            retained_bytes: self.plan.retained_bytes,
            applied_at: AtomicU64::new(0),
            diverges: self.defect == Some(Defect::ApplyDiverges) && self.index == 1,
        };
        let group = Group::open(self.config(), Arc::new(machine), self.environment(life)).await?;
        Ok((group, state))
    }

    fn config(&self) -> GroupConfig {
        let members = (0..NODES).map(|node| Member {
            node: NodeId(node_number(node)),
            peer_addr: format!("{}:{PEER_PORT}", host_name(node)),
        });
        GroupConfig {
            cluster: CLUSTER.to_owned(),
            group: GROUP,
            name: "group".to_owned(),
            node: NodeId(node_number(self.index)),
            members: members.collect(),
            timings: Timings::default(),
            retention: Retention {
                snapshot_every_bytes: self.plan.snapshot_every_bytes,
                purge_margin_entries: self.plan.purge_margin_entries,
                check_interval_ms: 200,
                ..Retention::default()
            },
            store: self.store_config(),
        }
    }

    pub fn store_config(&self) -> StoreConfig {
        StoreConfig {
            segment_bytes: self.plan.segment_bytes,
            tail_cache_bytes_max: 32 << 10,
            fill_ahead_bytes: 16 << 10,
            watermark_interval_bytes: 32 << 10,
            // Of the seed, like everything else.
            replica_if_new: ReplicaId(
                (self.plan.seed << 16) | (self.life.load(Ordering::SeqCst) << 4) | node_number(self.index),
            ),
            ..StoreConfig::in_directory(PathBuf::from("/data/group"))
        }
    }

    fn environment(&self, life: u64) -> Environment {
        let disk: Arc<dyn Disk> = Arc::new(self.disk.clone());
        let disk = self.defect.map_or_else(|| Arc::clone(&disk), |defect| defect.spoil(Arc::clone(&disk)));
        disk.create_directory(&PathBuf::from("/data")).expect("the parent of the data directory");
        Environment {
            disk,
            writer: WriterSpawn::Task { latency: self.latency() },
            connector: Arc::new(SimConnector { network: self.network.clone(), host: host_name(self.index) }),
            proposers: None,
            seed: self.plan.seed ^ (life << 8) ^ self.index as u64,
        }
    }

    fn latency(&self) -> Arc<dyn Fn() -> Duration + Send + Sync> {
        // The closure outlives no life: it holds copies, and the slowness through a shared number.
        let random = Mutex::new(StdRng::from_rng(&mut *self.latency_random.lock()));
        let (us_min, us_max) = (self.plan.disk_us_min, self.plan.disk_us_max);
        let slow_ms = Arc::clone(&self.slow_disk_ms);
        Arc::new(move || {
            let us = random.lock().random_range(us_min..=us_max);
            Duration::from_micros(us) + Duration::from_millis(slow_ms.load(Ordering::SeqCst))
        })
    }

    fn name(&self) -> String {
        format!("node {}", self.index)
    }
}

async fn serve_peers(peers: PeerServer, network: Network, host: String) {
    let listener = TcpListener::bind(("0.0.0.0", PEER_PORT)).await.expect("a free port");
    let incoming = tokio_stream::wrappers::ReceiverStream::new(accept_all(listener, network, host));
    let server = PeerServer::transport().add_service(peers.service());
    server.serve_with_incoming(incoming).await.expect("the peer server runs as long as its process");
}

type Accepted = std::io::Result<crate::network::SimStream>;

fn accept_all(listener: TcpListener, network: Network, host: String) -> mpsc::Receiver<Accepted> {
    let (sender, receiver) = mpsc::channel(16);
    tokio::spawn(async move {
        while let Ok((stream, peer)) = listener.accept().await {
            if sender.send(Ok(network.accepted(&host, stream, peer))).await.is_err() {
                return;
            }
        }
    });
    receiver
}

async fn serve_clients(front: Front, network: Network, host: String) {
    let listener = TcpListener::bind(("0.0.0.0", FRONT_PORT)).await.expect("a free port");
    while let Ok((stream, peer)) = listener.accept().await {
        let front = front.clone();
        let stream = network.accepted(&host, stream, peer);
        tokio::spawn(async move { front.serve(stream).await });
    }
}

/// The state machine, with the oracle looking on.
struct Witnessed {
    node: usize,
    inner: Arc<BrokerState>,
    oracle: Oracle,
    retained_bytes: Option<u64>,
    /// Where the last applied command starts.
    applied_at: AtomicU64,
    diverges: bool,
}

impl StateMachine for Witnessed {
    fn recover(&self, log: &dyn RecoveredLog) -> std::io::Result<()> {
        self.inner.recover(log)?;
        self.oracle.recovered(self.node, self.inner.applied().map(|id| id.index));
        Ok(())
    }

    fn applied(&self) -> Option<EntryId> {
        self.inner.applied()
    }

    fn apply(&self, entries: &[AppliedEntry], answers: &mut Vec<Bytes>) -> Result<(), ApplyError> {
        let before = answers.len();
        self.inner.apply(entries, answers)?;
        assert_eq!(answers.len() - before, entries.len(), "the machine answers every entry");
        for (entry, answer) in entries.iter().zip(&mut answers[before..]) {
            if self.diverges && entry.id.index.get() % 50 == 49 {
                *answer = Bytes::from_static(&[255, 6]);
            }
            self.oracle.applied(self.node, entry, answer);
        }
        if let Some(last) = entries.last() {
            self.applied_at.store(last.payload_at.get(), Ordering::SeqCst);
        }
        if let Some(last) = entries.last().filter(|last| last.id.index.get() % DIGEST_EVERY == 0) {
            self.oracle.digest(self.node, last.id.index, self.inner.state_digest());
        }
        Ok(())
    }

    fn log_flushed(&self, flushed: LogIndex) {
        self.inner.log_flushed(flushed);
    }

    fn snapshot(&self) -> std::io::Result<(Option<EntryId>, SnapshotReader)> {
        self.inner.snapshot()
    }

    fn restore(&self, applied: EntryId, snapshot: SnapshotReader) -> std::io::Result<()> {
        self.inner.restore(applied, snapshot)?;
        self.oracle.restored(self.node, applied.index);
        Ok(())
    }

    fn retained_from(&self) -> PhysicalOffset {
        match self.retained_bytes {
            None => self.inner.retained_from(),
            Some(bytes) => PhysicalOffset(self.applied_at.load(Ordering::SeqCst).saturating_sub(bytes)),
        }
    }
}
