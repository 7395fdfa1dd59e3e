//! The public handle of a broker group: propose, read, watch, hand over.
//!
//! One process may hold many groups; each is a Raft group of its own with its own CommitLog, and
//! all of them share one [`PeerServer`] on the peer port.
//!
//! | Failure | What the caller sees |
//! |---|---|
//! | this replica does not lead | [`ProposeError::NotLeader`], nothing appended |
//! | leadership lost after the append | [`ProposeError::OutcomeUnknown`] |
//! | a write, sync or apply failed | [`Group::fault`] resolves; the owner ends the process |
//! | the directory belongs to another replica, or is corrupt | [`OpenGroupError::Store`] |

mod config;
mod errors;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ledgermq_common::{GroupId, LogIndex, NodeId, PhysicalOffset, Term};
use tokio::sync::watch;

pub use self::config::{Environment, GroupConfig, Member, Retention, Timings};
pub use self::errors::{BarrierError, GroupFault, HandOverError, OpenGroupError, ProposeError};
use crate::machine::{AppliedEntry, EntryId, StateMachine};
use crate::store::ReadError;

/// Who leads, as far as this replica knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Leadership {
    pub term: Term,
    pub leader: Option<NodeId>,
    /// This replica leads and has applied the first entry of its term: everything that was
    /// acknowledged by earlier leaders is in the state.
    pub is_leader_ready: bool,
}

/// How far a peer is, as the leader knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerProgress {
    pub node: NodeId,
    pub matched: Option<LogIndex>,
    /// Entries the peer lacks.
    pub lag_entries: u64,
}

/// A moment of the group, for metrics and readiness.
#[derive(Debug, Clone, Default)]
pub struct GroupStatus {
    pub term: Term,
    pub leader: Option<NodeId>,
    pub is_leader: bool,
    pub is_leader_ready: bool,
    pub members: Vec<NodeId>,
    pub last: Option<LogIndex>,
    pub flushed: Option<LogIndex>,
    pub committed: Option<LogIndex>,
    pub applied: Option<LogIndex>,
    pub purged: Option<LogIndex>,
    pub snapshot: Option<LogIndex>,
    pub physical_start: PhysicalOffset,
    pub physical_end: PhysicalOffset,
    pub leader_changes: u64,
    /// Empty unless this replica leads.
    pub peers: Vec<PeerProgress>,
    pub store: StoreStats,
}

/// A replica of a group. Cheap to clone.
#[derive(Clone)]
pub struct Group {
    inner: Arc<Inner>,
}

impl Group {
    /// Opens the store, recovers, and starts taking part. Register it with a [`PeerServer`] to be
    /// reachable. The membership is initialised when the store is empty, and never otherwise.
    pub async fn open(
        config: GroupConfig,
        machine: Arc<dyn StateMachine>,
        environment: Environment,
    ) -> Result<Group, OpenGroupError> {
        todo!()
    }

    pub fn id(&self) -> GroupId {
        todo!()
    }
    pub fn node(&self) -> NodeId {
        todo!()
    }

    /// Appends `command` to the log and answers what the state machine answered, once the entry is
    /// on disk on a majority and applied here.
    ///
    /// The command is appended although this future is dropped.
    pub async fn propose(&self, command: Bytes) -> Result<Bytes, ProposeError> {
        todo!()
    }

    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        todo!()
    }
    pub fn status(&self) -> GroupStatus {
        todo!()
    }

    /// Bytes of the CommitLog, at a position an [`AppliedEntry`] named. From memory where it is
    /// young, else from a map of the file: call it where a page fault may block.
    pub fn read(&self, at: PhysicalOffset, len: u32) -> Result<Bytes, ReadError> {
        todo!()
    }

    /// Applied normal entries from `from` on, in order, ending at the last applied one. Reads
    /// in pieces; each step may touch the disk.
    pub fn scan(&self, from: LogIndex) -> Scan {
        todo!()
    }

    /// Returns once this replica has applied everything that was acknowledged before the call, and
    /// a majority confirmed that it still led then.
    pub async fn read_barrier(&self) -> Result<(), BarrierError> {
        todo!()
    }

    /// Gives leadership to the most caught-up follower. At once `Ok` on a follower.
    pub async fn hand_over(&self, within: Duration) -> Result<(), HandOverError> {
        todo!()
    }

    /// Takes a snapshot of the state now; answers the entry it covers.
    pub async fn snapshot_now(&self) -> Result<Option<EntryId>, GroupFault> {
        todo!()
    }

    /// Resolves when the group can never go on: a write or sync failed, or an entry could not be
    /// applied. The owner ends the process.
    pub async fn fault(&self) -> GroupFault {
        todo!()
    }

    /// Stops taking part, drains the writer and closes the store.
    pub async fn shutdown(&self) {
        todo!()
    }
}

