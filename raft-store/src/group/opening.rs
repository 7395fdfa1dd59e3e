//! Opening a group: store, recovery, openraft, membership, tasks, in this order.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use openraft::{Config, SnapshotPolicy};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::config::{Environment, GroupConfig, Timings};
use super::errors::OpenGroupError;
use super::joining::{self, Admission, Joining, Peers};
use super::proposals::{Proposals, hand_over};
use super::recovery::{interrupted_installation, recover};
use super::schedule::Schedule;
use super::scrub::Scrub;
use super::stalled_disk::StalledDisk;
use super::watching::{forward_flushed, publish_fault, publish_leadership};
use super::{Inner, Leadership};
use crate::defects::{self, Defect};
use crate::machine::StateMachine;
use crate::offload::Offload;
use crate::raft::links::Links;
use crate::raft::log_storage::{LogStorage, PurgePermit};
use crate::raft::membership::MembershipFile;
use crate::raft::network::Network;
use crate::raft::server::{GroupPort, Raft};
use crate::raft::state_machine::{Applier, ApplyProgress};
use crate::raft::suspicion::Suspicion;
use crate::raft::vocabulary::{Node, Runtime};
use crate::raft::wire::{Address, cluster_hash};
use crate::snapshot::SnapshotCatalog;
use crate::store::{Identity, LogStore, ReplicaId, StoreConfig};

/// Entries in one append message; the byte limit is in `raft/log_storage`.
const APPEND_ENTRIES_MAX: u64 = 4_096;
const SNAPSHOTS_DIRECTORY: &str = "snapshots";

/// Tasks that end with the group.
#[derive(Default)]
pub(super) struct Tasks(Vec<JoinHandle<()>>);

impl Tasks {
    fn spawn(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.0.push(tokio::spawn(task));
    }

    fn spawn_on(&mut self, runtime: &Handle, task: impl Future<Output = ()> + Send + 'static) {
        self.0.push(runtime.spawn(task));
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        for task in &self.0 {
            task.abort();
        }
    }
}

pub(super) async fn open(
    config: GroupConfig,
    machine: Arc<dyn StateMachine>,
    environment: Environment,
) -> Result<Inner, OpenGroupError> {
    let addresses = addresses(&config)?;
    let raft_config = raft_config(&config)?;
    let offload = Offload::beside(&environment.writer);
    let store = open_store(&config, &environment, offload).await?;
    let own = address_of(&config, store.replica());
    let catalog = open_catalog(&config, &environment, own, offload).await?;
    let membership_file = MembershipFile::in_directory(
        Arc::clone(&environment.disk),
        &config.store.directory.join(SNAPSHOTS_DIRECTORY),
    );
    if let Some(boundary) = interrupted_installation(&store, &catalog) {
        store.reset_to(boundary).await.map_err(std::io::Error::other)?;
        // The state was not, or not wholly, replaced. The membership file was not either.
        let (catalog, machine, file) = (Arc::clone(&catalog), Arc::clone(&machine), membership_file.clone());
        offload
            .run(move || {
                let Some(snapshot) = catalog.newest() else { return Ok(()) };
                machine.restore(boundary.id, snapshot.body())?;
                file.store(&snapshot.head.membership)
            })
            .await?;
    }
    let recovered = {
        let (store, catalog, machine, file) =
            (store.clone(), Arc::clone(&catalog), Arc::clone(&machine), membership_file.clone());
        offload.run(move || Ok(recover(&store, &catalog, &file, &*machine))).await??
    };

    let permit = Arc::new(PurgePermit::default());
    let progress = Arc::new(ApplyProgress::new());
    progress.resume(recovered.applied, catalog.newest().map(|file| file.head.boundary.id));
    let applier = Applier {
        machine: Arc::clone(&machine),
        store: store.clone(),
        catalog: Arc::clone(&catalog),
        permit: Arc::clone(&permit),
        membership_file,
        progress: Arc::clone(&progress),
        offload,
        applied: recovered.applied,
        membership: recovered.membership,
    };
    let links = Arc::new(Links::new(Arc::clone(&environment.connector), addresses.clone()));
    let network = Network { links: Arc::clone(&links), own, offload };
    let storage = LogStorage::new(store.clone(), Arc::clone(&permit));
    let start = start_raft(own, raft_config, network, storage, applier, Arc::clone(&progress), addresses);
    let raft = Runtime::scope(environment.seed, start).await?;

    let (stopping, stopping_seen) = watch::channel(false);
    let (leadership, leadership_seen) = watch::channel(Leadership::default());
    let (fault, fault_seen) = watch::channel(None);
    let leader_changes = Arc::new(AtomicU64::new(0));
    let mut tasks = Tasks::default();
    let proposals = Arc::new(Proposals::default());
    let proposers = environment.proposers.unwrap_or_else(Handle::current);
    tasks.spawn_on(&proposers, hand_over(Arc::clone(&proposals), raft.clone(), config.node));
    tasks.spawn(publish_leadership(
        raft.clone(),
        config.group,
        config.node,
        Arc::clone(&progress),
        leadership,
    ));
    tasks.spawn(count_leader_changes(leadership_seen.clone(), Arc::clone(&leader_changes)));
    tasks.spawn(publish_fault(
        raft.clone(),
        store.clone(),
        Arc::clone(&progress),
        stopping_seen.clone(),
        fault,
    ));
    tasks.spawn(forward_flushed(store.clone(), Arc::clone(&machine), stopping_seen.clone()));
    let suspicion = Suspicion {
        raft: raft.clone(),
        links: Arc::clone(&links),
        own,
        members: config.members.iter().map(|member| member.node).collect(),
        leadership: leadership_seen.clone(),
        timings: config.timings.clone(),
        seed: environment.seed,
    };
    tasks.spawn(suspicion.run());
    let schedule = Schedule {
        raft: raft.clone(),
        store: store.clone(),
        machine: Arc::clone(&machine),
        catalog: Arc::clone(&catalog),
        permit,
        progress: Arc::clone(&progress),
        offload,
        retention: config.retention.clone(),
    };
    tasks.spawn(schedule.run(stopping_seen.clone()));
    let stalled_disk = StalledDisk {
        raft: raft.clone(),
        store: store.clone(),
        node: config.node,
        leadership: leadership_seen.clone(),
        patience_ms: config.timings.disk_patience_ms,
    };
    tasks.spawn(stalled_disk.run(stopping_seen.clone()));
    let scrub = Scrub {
        store: store.clone(),
        offload,
        interval: Duration::from_secs(config.retention.scrub_interval_s),
    };
    tasks.spawn(scrub.run(stopping_seen.clone()));
    let joining = Joining {
        raft: raft.clone(),
        store: store.clone(),
        peers: Peers { links: Arc::clone(&links), own, members: config.members.clone() },
        leadership: leadership_seen.clone(),
    };
    tasks.spawn(joining.run(stopping_seen.clone()));
    let admission = Admission {
        raft: raft.clone(),
        store: store.clone(),
        links,
        own,
        members: config.members,
        leadership: leadership_seen.clone(),
        seed: environment.seed,
        changing: Arc::default(),
    };

    let port = Arc::new(GroupPort {
        address: own,
        raft: raft.clone(),
        store: store.clone(),
        seed: environment.seed,
        catalog: Arc::clone(&catalog),
        offload,
        admission,
        stopping: stopping_seen,
    });
    tracing::info!(group = %config.group, name = %config.name, node = %config.node, "group open");
    Ok(Inner {
        group: config.group,
        node: config.node,
        raft,
        proposals,
        store,
        machine,
        catalog,
        progress,
        port,
        leadership: leadership_seen,
        fault: fault_seen,
        stopping,
        leader_changes,
        waiting_commands: AtomicUsize::new(0),
        waiting_bytes: AtomicUsize::new(0),
        _tasks: tasks,
    })
}

/// See [`super::Group::replace`].
pub(super) async fn replace(config: &GroupConfig, environment: &Environment) -> Result<(), OpenGroupError> {
    let links = Arc::new(Links::new(Arc::clone(&environment.connector), addresses(config)?));
    let own = address_of(config, config.store.replica_if_new);
    joining::replace(Peers { links, own, members: config.members.clone() }).await;
    Ok(())
}

fn address_of(config: &GroupConfig, replica: ReplicaId) -> Address {
    Address { cluster: cluster_hash(&config.cluster), group: config.group, node: config.node, replica }
}

fn addresses(config: &GroupConfig) -> Result<BTreeMap<u64, String>, OpenGroupError> {
    let mut addresses = BTreeMap::new();
    for member in &config.members {
        if addresses.insert(member.node.get(), member.peer_addr.clone()).is_some() {
            return Err(OpenGroupError::DuplicateMember { node: member.node });
        }
    }
    if !addresses.contains_key(&config.node.get()) {
        return Err(OpenGroupError::NotAMember { node: config.node });
    }
    Ok(addresses)
}

fn raft_config(config: &GroupConfig) -> Result<Arc<Config>, OpenGroupError> {
    let Timings { heartbeat_interval_ms, election_timeout_ms_min, election_timeout_ms_max, .. } =
        config.timings;
    let raft_config = Config {
        cluster_name: config.cluster.clone(),
        heartbeat_interval: heartbeat_interval_ms,
        election_timeout_min: election_timeout_ms_min,
        election_timeout_max: election_timeout_ms_max,
        enable_pre_vote: Some(true),
        // The committed hint on disk may be old; a leader always starts with an election.
        enable_leader_restore: Some(false),
        snapshot_policy: SnapshotPolicy::Never,
        // Purging is ours alone; openraft's own would start after every snapshot.
        max_in_snapshot_log_to_keep: if defects::is_active(Defect::PurgeAfterSnapshot) {
            0
        } else {
            u64::MAX
        },
        max_payload_entries: APPEND_ENTRIES_MAX,
        // Replication starts when the write is submitted, beside it rather than after it.
        broadcast_submitted_on_append: Some(true),
        ..Config::default()
    };
    let raft_config =
        raft_config.validate().map_err(|error| OpenGroupError::Timings { reason: error.to_string() })?;
    Ok(Arc::new(raft_config))
}

async fn open_store(
    config: &GroupConfig,
    environment: &Environment,
    offload: Offload,
) -> Result<LogStore, OpenGroupError> {
    let identity = Identity { cluster: config.cluster.clone(), group: config.group, node: config.node };
    let store = StoreConfig { has_peers: config.members.len() > 1, ..config.store.clone() };
    let (disk, writer) = (Arc::clone(&environment.disk), environment.writer.clone());
    // The writer may start on the runtime of this task, so it is entered on the blocking thread too.
    let runtime = Handle::current();
    let opened = offload
        .run(move || {
            let _entered = matches!(offload, Offload::BlockingThreads).then(|| runtime.enter());
            Ok(LogStore::open(store, identity, disk, writer))
        })
        .await?;
    Ok(opened?)
}

async fn open_catalog(
    config: &GroupConfig,
    environment: &Environment,
    own: Address,
    offload: Offload,
) -> Result<Arc<SnapshotCatalog>, OpenGroupError> {
    let (disk, directory) = (Arc::clone(&environment.disk), config.store.directory.join(SNAPSHOTS_DIRECTORY));
    let kept_max = config.retention.snapshots_kept_max;
    let open = move || SnapshotCatalog::open(disk, directory, own.group, own.cluster, kept_max);
    Ok(Arc::new(offload.run(open).await?))
}

async fn start_raft(
    own: Address,
    config: Arc<Config>,
    network: Network,
    storage: LogStorage,
    applier: Applier,
    progress: Arc<ApplyProgress>,
    addresses: BTreeMap<u64, String>,
) -> Result<Raft, OpenGroupError> {
    let failed = |error: &dyn std::fmt::Display| OpenGroupError::Raft { reason: error.to_string() };
    let raft = Raft::build(own.node.get(), config, network, storage, applier)
        .await
        .map_err(|error| failed(&error))?;
    progress.is_running.store(true, Ordering::Release);
    raft.run();
    // With others it is for `joining` to find out whether the group is new.
    let is_alone = addresses.len() == 1;
    if is_alone && !raft.is_initialized().await.map_err(|error| failed(&error))? {
        let node = |(id, addr)| (id, Node { addr, replica: own.replica });
        let members: BTreeMap<u64, Node> = addresses.into_iter().map(node).collect();
        raft.initialize(members).await.map_err(|error| failed(&error))?;
    }
    Ok(raft)
}

async fn count_leader_changes(mut leadership: watch::Receiver<Leadership>, changes: Arc<AtomicU64>) {
    let mut last = None;
    loop {
        let leader = {
            let now = leadership.borrow_and_update();
            now.leader.map(|leader| (now.term, leader))
        };
        if leader.is_some() && leader != last {
            last = leader;
            changes.fetch_add(1, Ordering::Relaxed);
        }
        if leadership.changed().await.is_err() {
            return;
        }
    }
}
