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
pub(crate) mod joining;
mod opening;
mod proposals;
mod recovery;
mod schedule;
mod scrub;
mod stalled_disk;
mod status;
mod watching;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use ledgermq_common::{GroupId, LogIndex, NodeId, PhysicalOffset, Term};
use openraft::ReadPolicy;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{LinearizableReadError, RaftError};
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};

pub use self::config::{Environment, GroupConfig, Member, Retention, Timings};
pub use self::errors::{
    BarrierError, ChangeMembersError, GroupFault, HandOverError, OpenGroupError, ProposeError,
};
use self::opening::Tasks;
use self::proposals::Proposals;
pub use self::recovery::Scan;
pub use self::status::{GroupStatus, PeerProgress};
use crate::defects::{self, Defect};
use crate::machine::{EntryId, StateMachine};
use crate::raft::server::{GroupPort, Raft};
use crate::raft::state_machine::ApplyProgress;
use crate::snapshot::SnapshotCatalog;
use crate::store::{LogStore, ReadError};

/// Commands that wait for their answer. Above it, new ones are refused rather than kept.
const PROPOSALS_MAX: usize = 65_536;
/// ... and the bytes of them.
const PROPOSALS_BYTES_MAX: usize = 256 << 20;
/// A snapshot that openraft was asked for while it was busy is asked for again after this.
const SNAPSHOT_RETRY: Duration = Duration::from_millis(100);

/// Who leads, as far as this replica knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Leadership {
    pub term: Term,
    pub leader: Option<NodeId>,
    /// This replica leads and has applied the first entry of its term: everything that was
    /// acknowledged by earlier leaders is in the state.
    pub is_leader_ready: bool,
}

/// A replica of a group. Cheap to clone.
#[derive(Clone)]
pub struct Group {
    inner: Arc<Inner>,
}

struct Inner {
    group: GroupId,
    node: NodeId,
    raft: Raft,
    proposals: Arc<Proposals>,
    store: LogStore,
    machine: Arc<dyn StateMachine>,
    catalog: Arc<SnapshotCatalog>,
    progress: Arc<ApplyProgress>,
    port: Arc<GroupPort>,
    leadership: watch::Receiver<Leadership>,
    fault: watch::Receiver<Option<GroupFault>>,
    stopping: watch::Sender<bool>,
    leader_changes: Arc<std::sync::atomic::AtomicU64>,
    waiting_commands: AtomicUsize,
    waiting_bytes: AtomicUsize,
    /// Ended when the last handle goes.
    _tasks: Tasks,
}

impl Group {
    /// Opens the store, recovers, and starts taking part. Add it to a [`crate::PeerServer`] to make
    /// it reachable. A replica that is no voter asks its peers until it is one (`group::joining`).
    pub async fn open(
        config: GroupConfig,
        machine: Arc<dyn StateMachine>,
        environment: Environment,
    ) -> Result<Group, OpenGroupError> {
        Ok(Self { inner: Arc::new(opening::open(config, machine, environment).await?) })
    }

    /// Has the group take out the replica that was in the directory before, and returns when a leader has
    /// done so and knows the one that `config.store` names for a new directory. Until then what is in the
    /// directory may be the last copy of something, and is not to be touched; from then on the owner
    /// takes it away and opens the group in an empty one.
    ///
    /// Waits for as long as there is no leader.
    pub async fn replace(config: &GroupConfig, environment: &Environment) -> Result<(), OpenGroupError> {
        opening::replace(config, environment).await
    }

    pub fn id(&self) -> GroupId {
        self.inner.group
    }

    pub fn node(&self) -> NodeId {
        self.inner.node
    }

    /// Appends `command` to the log and answers what the state machine answered, once the entry is
    /// on disk on a majority and applied here.
    ///
    /// A future that is dropped while it waits may have appended the command all the same.
    pub async fn propose(&self, command: Bytes) -> Result<Bytes, ProposeError> {
        let bytes = command.len();
        // Refused here: a log that cannot take what openraft appends to it stops the replica.
        let bytes_max = self.inner.store.command_bytes_max();
        if bytes > bytes_max {
            return Err(ProposeError::TooLarge { bytes, bytes_max });
        }
        let _waiting = Waiting::enter(&self.inner, bytes)?;
        self.inner.proposals.add(command).await.unwrap_or(Err(ProposeError::OutcomeUnknown))
    }

    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.inner.leadership.clone()
    }

    pub fn status(&self) -> GroupStatus {
        status::of(&self.inner)
    }

    /// Bytes of the CommitLog, at a position an [`crate::AppliedEntry`] named. From memory where it
    /// is young, else from a map of the file: call it where a page fault may block.
    pub fn read(&self, at: PhysicalOffset, len: u32) -> Result<Bytes, ReadError> {
        self.inner.store.read_bytes(at, len)
    }

    /// The entry that has the byte at `at` in its command; it may touch the disk.
    pub fn index_of(&self, at: PhysicalOffset) -> Result<LogIndex, ReadError> {
        self.inner.store.index_of(at)
    }

    /// The oldest entry that can still be read.
    pub fn oldest_index(&self) -> LogIndex {
        self.inner.store.oldest_index()
    }

    /// Applied commands from `from` on, in order, up to the one that is the last now.
    pub fn scan(&self, from: LogIndex) -> Scan {
        let end = self.inner.progress.applied().map_or(from, LogIndex::next);
        Scan::over(self.inner.store.clone(), from..end.max(from))
    }

    /// Returns once this replica has applied everything that was acknowledged before the call, and
    /// a majority confirmed that it still led then.
    pub async fn read_barrier(&self) -> Result<(), BarrierError> {
        if defects::is_active(Defect::BarrierLeftOut) && self.inner.leadership.borrow().is_leader_ready {
            return Ok(());
        }
        match self.inner.raft.ensure_linearizable(ReadPolicy::ReadIndex).await {
            Ok(_) => Ok(()),
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward))) => {
                Err(BarrierError::NotLeader { leader: forward.leader_id.map(NodeId) })
            }
            Err(RaftError::APIError(_)) => Err(BarrierError::NotLeader { leader: None }),
            Err(RaftError::Fatal(_)) => Err(BarrierError::Stopped),
        }
    }

    /// Gives leadership to the most caught-up follower. At once `Ok` on a follower.
    pub async fn hand_over(&self, within: Duration) -> Result<(), HandOverError> {
        let deadline = Instant::now() + within;
        let leads = self.leadership().borrow().leader == Some(self.inner.node);
        if !leads {
            return Ok(());
        }
        match self.heard_from(None, deadline).await {
            Ok(heir) => self.give_to(heir.node, deadline).await.map(|_| ()),
            // It was deposed while it waited for an heir.
            Err(HandOverError::NotLeader { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Gives leadership to this follower. An error if another one got it: it leads all the same.
    pub async fn hand_over_to(&self, heir: NodeId, within: Duration) -> Result<(), HandOverError> {
        let deadline = Instant::now() + within;
        let lag_entries = self.heard_from(Some(heir), deadline).await?.lag_entries;
        if lag_entries > errors::LAG_ENTRIES_MAX {
            return Err(HandOverError::TooFarBehind { node: heir, lag_entries });
        }
        match self.give_to(heir, deadline).await? {
            leader if leader == heir => Ok(()),
            leader => Err(HandOverError::AnotherLeads { wanted: heir, leader }),
        }
    }

    /// The follower that is `wanted`, or the one that lacks the least. A leader that was elected a
    /// moment ago has heard from nobody yet: then it is waited for until the deadline.
    async fn heard_from(
        &self,
        wanted: Option<NodeId>,
        deadline: Instant,
    ) -> Result<PeerProgress, HandOverError> {
        let own = self.inner.node;
        let (mut leadership, mut progress) = (self.leadership(), self.inner.raft.data_metrics());
        loop {
            let leader = leadership.borrow_and_update().leader;
            if leader != Some(own) {
                return Err(HandOverError::NotLeader { leader });
            }
            let status = self.status();
            let is_heir = |node: NodeId| {
                node != own && status.voters.contains(&node) && wanted.is_none_or(|wanted| wanted == node)
            };
            if !status.members.iter().copied().any(is_heir) {
                return Err(
                    wanted.map_or(HandOverError::NobodyElse, |node| HandOverError::NotAFollower { node })
                );
            }
            let heirs = status.peers.iter().filter(|peer| is_heir(peer.node)).cloned();
            if let Some(heir) = status::least_behind(heirs) {
                return Ok(heir);
            }
            tokio::select! {
                biased;
                changed = progress.changed() => changed.map_err(|_| HandOverError::Stopped)?,
                changed = leadership.changed() => changed.map_err(|_| HandOverError::Stopped)?,
                () = tokio::time::sleep_until(deadline) => return Err(HandOverError::NobodyHeard { wanted }),
            }
        }
    }

    /// Answers who leads instead.
    async fn give_to(&self, heir: NodeId, deadline: Instant) -> Result<NodeId, HandOverError> {
        let (node, mut leadership) = (self.inner.node, self.leadership());
        self.inner.raft.trigger().transfer_leader(heir.get()).await.map_err(|_| HandOverError::Stopped)?;
        let another = |leader: &NodeId| *leader != node;
        let moved = leadership.wait_for(|now| now.leader.as_ref().is_some_and(another));
        match timeout_at(deadline, moved).await {
            Ok(Ok(now)) => now.leader.ok_or(HandOverError::Stopped),
            Ok(Err(_)) => Err(HandOverError::Stopped),
            Err(_) => Err(HandOverError::DeadlinePassed),
        }
    }

    /// Takes a voter out of the group, committed on `Ok`. If its process runs it asks to come back, under
    /// the same rules as a replica that lost its directory: this is how a replica is made to join anew.
    pub async fn take_out(&self, node: NodeId, within: Duration) -> Result<(), ChangeMembersError> {
        let out = self.inner.port.admission.take_out(node);
        timeout(within, out).await.unwrap_or(Err(ChangeMembersError::DeadlinePassed))
    }

    /// Takes a snapshot of the state now; answers the entry it covers, `None` if there is none.
    pub async fn snapshot_now(&self) -> Result<Option<EntryId>, GroupFault> {
        let Some(applied) = self.inner.progress.applied() else { return Ok(None) };
        let mut finished = self.inner.progress.snapshot.subscribe();
        loop {
            let stopped = |_| GroupFault { reason: "raft is stopped".to_owned() };
            self.inner.raft.trigger().snapshot().await.map_err(stopped)?;
            let covers = finished.wait_for(|last| last.is_some_and(|last| last.index >= applied));
            tokio::select! {
                biased;
                fault = self.fault() => return Err(fault),
                covers = timeout(SNAPSHOT_RETRY, covers) => if let Ok(Ok(covers)) = covers { return Ok(*covers) },
            }
        }
    }

    /// Resolves when the group can never go on: a write or sync failed, or an entry could not be
    /// applied. The owner ends the process. Never resolves after [`Group::shutdown`].
    pub async fn fault(&self) -> GroupFault {
        let mut fault = self.inner.fault.clone();
        let found = fault.wait_for(Option::is_some).await.ok().and_then(|fault| fault.clone());
        match found {
            Some(fault) => fault,
            None => std::future::pending().await,
        }
    }

    /// Stops taking part, drains the writer, closes the store, and tells the machine how far the log was
    /// flushed in the end. Nothing is applied afterwards.
    pub async fn shutdown(&self) {
        self.inner.stopping.send_replace(true);
        if let Err(error) = self.inner.raft.shutdown().await {
            tracing::warn!(%error, "raft did not stop in order");
        }
        if let Err(fault) = self.inner.store.close().await {
            tracing::warn!(%fault, "the store did not close in order");
        }
        if let Some(flushed) = self.inner.store.flushed_upto() {
            self.inner.machine.log_flushed(flushed.index);
        }
    }

    pub(crate) fn port(&self) -> Arc<GroupPort> {
        Arc::clone(&self.inner.port)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stopping.send_replace(true);
    }
}

/// A command on its way; counted from before it is handed over until its proposer has the answer.
struct Waiting<'g> {
    inner: &'g Inner,
    bytes: usize,
}

impl<'g> Waiting<'g> {
    fn enter(inner: &'g Inner, bytes: usize) -> Result<Self, ProposeError> {
        let waiting = Self { inner, bytes };
        let commands = inner.waiting_commands.fetch_add(1, Ordering::Relaxed);
        let before = inner.waiting_bytes.fetch_add(bytes, Ordering::Relaxed);
        if commands >= PROPOSALS_MAX || before + bytes > PROPOSALS_BYTES_MAX {
            return Err(ProposeError::Overloaded);
        }
        Ok(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.inner.waiting_commands.fetch_sub(1, Ordering::Relaxed);
        self.inner.waiting_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
