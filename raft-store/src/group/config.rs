//! What a process says about a group before it opens it: who the members are, how fast they
//! suspect one another, when state is snapshotted, and the world the group runs in.

use std::sync::Arc;

use ledgermq_common::{GroupId, NodeId};
use tokio::runtime::Handle;

use crate::io::Disk;
use crate::peer::PeerConnector;
use crate::store::{StoreConfig, WriterSpawn};

/// A replica of the group and the address of its peer port (`host:port`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    pub node: NodeId,
    pub peer_addr: String,
}

/// How fast a group notices that its leader is gone.
///
/// A process that dies closes its sockets, and its followers campaign within `suspicion_delay_ms`
/// of that; the election timeouts only matter for a leader that stops without closing anything
/// (a stopped process, a lost host). A follower honours the leader's lease for
/// `election_timeout_ms_max` after the last heartbeat and then waits a random time in
/// `min..max`, so with the defaults such a leader is replaced after 650 to 800 ms. That leaves room
/// for several lost heartbeats and a stall of the scheduler; it need not leave any for an fsync,
/// because a heartbeat never waits for one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timings {
    pub heartbeat_interval_ms: u64,
    pub election_timeout_ms_min: u64,
    pub election_timeout_ms_max: u64,
    /// A follower whose connection to the leader broke waits so long before it campaigns, for the
    /// other followers to notice as well ...
    pub suspicion_delay_ms: u64,
    /// ... and this much longer for every follower whose turn is before its own.
    pub suspicion_step_ms: u64,
    /// A leader whose disk has not answered for so long gives its place away.
    pub disk_patience_ms: u64,
}

impl Default for Timings {
    fn default() -> Self {
        Self {
            heartbeat_interval_ms: 100,
            election_timeout_ms_min: 250,
            election_timeout_ms_max: 400,
            suspicion_delay_ms: 5,
            suspicion_step_ms: 25,
            disk_patience_ms: 1_000,
        }
    }
}

/// When the state is snapshotted, how much log stays behind it, and how it is looked after.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retention {
    /// A snapshot is taken once this much log was applied since the last one.
    pub snapshot_every_bytes: u64,
    /// Snapshot files kept, at least two. Between the purge pointer and now there may be more of
    /// them; then those that lie closest together are dropped.
    pub snapshots_kept_max: usize,
    /// The purge pointer stays at least this many entries behind the last applied one, so that a
    /// queued apply never meets a purged entry (openraft#2116).
    pub purge_margin_entries: u64,
    /// How often the schedule looks.
    pub check_interval_ms: u64,
    /// The whole log is read and verified once in so long; 0: never.
    pub scrub_interval_s: u64,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            snapshot_every_bytes: 1 << 30,
            snapshots_kept_max: 8,
            purge_margin_entries: 10_000,
            check_interval_ms: 1_000,
            scrub_interval_s: 0,
        }
    }
}

#[derive(Debug, Clone)]
pub struct GroupConfig {
    /// The name of the cluster; a directory of another cluster is refused.
    pub cluster: String,
    pub group: GroupId,
    /// The name clients see; for logs only here.
    pub name: String,
    /// This replica. Must be one of `members` when the group starts for the first time.
    pub node: NodeId,
    /// The members at the first start. Afterwards the log says who they are, and this list only
    /// says at which address each one is.
    pub members: Vec<Member>,
    pub timings: Timings,
    pub retention: Retention,
    pub store: StoreConfig,
}

/// The world a group runs in: real in production, simulated in the simulation.
#[derive(Clone)]
pub struct Environment {
    /// Holds the directory `GroupConfig::store` names.
    pub disk: Arc<dyn Disk>,
    pub writer: WriterSpawn,
    pub connector: Arc<dyn PeerConnector>,
    /// Where those who propose run, if that is not where the group does.
    pub proposers: Option<Handle>,
    /// Seeds the election jitter; give every replica another one.
    pub seed: u64,
}
