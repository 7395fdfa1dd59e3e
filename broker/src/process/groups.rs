//! Opening the groups a node carries, and ending the process when one of them can never go on.

use std::sync::Arc;
use std::time::Duration;

use ledgermq_common::clock::SystemClock;
use ledgermq_common::steady_clock::SteadyClock;
use ledgermq_common::{GroupId, GroupName, NodeId};
use ledgermq_raft_store::io::RealDisk;
use ledgermq_raft_store::store::{StoreConfig, WriterSpawn};
use ledgermq_raft_store::{Environment, GroupConfig, Member, Retention, TcpConnector, Timings};
use tokio::sync::watch;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::StartError;
use super::data_dir::DataDir;
use super::raft_runtime::RaftRuntime;
use super::repair::Replica;
use crate::config::{BrokerConfig, GroupEntry};
use crate::execution::{
    HostedGroup, Parts, RetentionSettings, Settings, TransactionSettings, WaiterCount, Waiters, WakeLongPolls,
};
use crate::metrics::Metrics;
use crate::state::{BrokerState, CheckpointMode, StateConfig};

/// What the groups of a process share.
pub struct Shared {
    /// Log time comes from it where this node leads.
    pub clock: SteadyClock,
    pub waiters: Arc<WaiterCount>,
    pub metrics: Arc<Metrics>,
    pub stopping: watch::Receiver<bool>,
}

pub async fn open(
    config: &BrokerConfig,
    data_dir: &DataDir,
    entry: &GroupEntry,
    shared: &Shared,
    raft: &RaftRuntime,
) -> Result<Arc<HostedGroup>, StartError> {
    let refused = |reason: String| StartError::Group { name: entry.name.clone(), reason };
    let id = GroupId(entry.id);
    let name = GroupName::parse(&entry.name).map_err(|e| refused(e.to_string()))?;
    let waiters = Arc::new(Waiters::new(Arc::clone(&shared.waiters)));
    let observer = Arc::new(WakeLongPolls(Arc::clone(&waiters)));
    let make_state = |derived_dir| {
        let every_bytes = config.storage.checkpoint_interval_bytes;
        let state = StateConfig {
            group: id,
            directory: Some(derived_dir),
            checkpoints: CheckpointMode::Background { every_bytes },
        };
        BrokerState::open(state, observer.clone()).map_err(|e| with_causes(&e))
    };
    let group_config = GroupConfig {
        cluster: config.cluster.name.clone(),
        group: id,
        name: entry.name.clone(),
        node: config.node_id(),
        members: members(config, entry),
        timings: Timings {
            heartbeat_interval_ms: config.raft.heartbeat_ms,
            election_timeout_ms_min: config.raft.election_timeout_min_ms,
            election_timeout_ms_max: config.raft.election_timeout_max_ms,
            ..Timings::default()
        },
        retention: Retention {
            snapshot_every_bytes: config.storage.snapshot_interval_bytes,
            purge_margin_entries: config.storage.purge_margin_entries,
            scrub_interval_s: config.storage.scrub_interval_s,
            ..Retention::default()
        },
        store: StoreConfig {
            segment_bytes: config.storage.segment_size_bytes,
            ..StoreConfig::in_directory(data_dir.group_log(id))
        },
    };
    let environment = Environment {
        disk: Arc::new(RealDisk),
        writer: WriterSpawn::Thread,
        connector: Arc::new(TcpConnector),
        proposers: Some(tokio::runtime::Handle::current()),
        seed: election_seed(config.node_id(), id),
    };
    let replica = Replica { data_dir, id, config: group_config, environment, make_state };
    let (group, state) = replica.open(raft).await.map_err(refused)?;
    Ok(HostedGroup::new(Parts {
        name,
        group,
        state,
        waiters,
        clock: Arc::new(shared.clock.clone()),
        settings: Settings {
            auto_create_topics: config.topics.auto_create,
            default_queues: config.topics.default_queues,
            delay_max_ms: config.topics.delay_max_s * 1000,
            store_host: config.advertised_client(),
            transactions: TransactionSettings {
                timeout_ms: config.transactions.timeout_ms,
                check_interval_ms: config.transactions.check_interval_ms,
                checks_max: config.transactions.checks_max,
            },
            retention: RetentionSettings {
                retention_ms: config.topics.retention_s * 1000,
                log_bytes_max: config.topics.retention_bytes,
                check_interval_ms: config.topics.retention_check_ms,
                segment_bytes: config.storage.segment_size_bytes,
            },
            subscription_lapse: Duration::from_millis(config.topics.subscription_lapse_ms),
        },
        metrics: Arc::clone(&shared.metrics),
        stopping: shared.stopping.clone(),
    }))
}

/// A group that can never go on takes the process with it, at once: Raft and the other nodes are
/// the recovery, and a half-dead process would only hold them up.
pub async fn end_process_on_fault(hosted: Arc<HostedGroup>) {
    let fault = hosted.group().fault().await;
    tracing::error!(group = %hosted.name(), %fault, "ending the process");
    // The log may go nowhere; whoever started the process still sees why it ended.
    eprintln!("ledgermq: group {}: {fault}", hosted.name());
    std::process::exit(super::FAULT_EXIT_STATUS);
}

/// An error and what caused it, on one line.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let part = error.to_string();
        if !text.contains(&part) {
            text.push_str(": ");
            text.push_str(&part);
        }
        cause = error.source();
    }
    text
}

fn members(config: &BrokerConfig, entry: &GroupEntry) -> Vec<Member> {
    let of_group = config.nodes.iter().filter(|node| entry.members.contains(&node.id));
    of_group.map(|node| Member { node: NodeId(node.id), peer_addr: node.peer.clone() }).collect()
}

/// Another number for every replica, and another one at each start.
fn election_seed(node: NodeId, group: GroupId) -> u64 {
    use ledgermq_common::clock::Clock as _;
    let mut text = [0u8; 24];
    text[..8].copy_from_slice(&node.get().to_le_bytes());
    text[8..16].copy_from_slice(&u64::from(group.get()).to_le_bytes());
    text[16..].copy_from_slice(&SystemClock.now().get().to_le_bytes());
    xxh3_64_with_seed(&text, u64::from(std::process::id()))
}
