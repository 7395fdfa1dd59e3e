//! A moment of a group, for metrics and readiness.

use std::sync::atomic::Ordering;

use ledgermq_common::{LogIndex, NodeId, PhysicalOffset, Term};
use openraft::async_runtime::WatchReceiver;

use super::Inner;
use crate::raft::server::Raft;
use crate::store::{LogStore, ReplicaId, WriteStats};

/// How far a peer is, as the leader knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerProgress {
    pub node: NodeId,
    pub matched: Option<LogIndex>,
    /// Entries the peer lacks.
    pub lag_entries: u64,
}

#[derive(Debug, Clone, Default)]
pub struct GroupStatus {
    pub term: Term,
    pub leader: Option<NodeId>,
    pub is_leader: bool,
    pub is_leader_ready: bool,
    pub members: Vec<NodeId>,
    /// Those whose votes and acknowledgements count; the other members are learning the log.
    pub voters: Vec<NodeId>,
    /// This one is among them.
    pub is_voter: bool,
    /// The entry that says so.
    pub members_at: Option<LogIndex>,
    pub replica: ReplicaId,
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
    pub writes: WriteStats,
}

pub(super) fn of(inner: &Inner) -> GroupStatus {
    let leadership = *inner.leadership.borrow();
    let last = inner.store.last_id().map(|id| id.index);
    let applied = inner.progress.applied();
    let (members, voters, members_at, committed) = {
        let metrics = inner.raft.metrics();
        let metrics = metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        let members = membership.nodes().map(|(id, _)| NodeId(*id)).collect();
        let voters: Vec<_> = membership.voter_ids().map(NodeId).collect();
        // Raft publishes its metrics at the end of a step; what it let the machine apply may be ahead of them.
        let members_at = metrics.membership_config.log_id().as_ref().map(|id| LogIndex(id.index));
        (members, voters, members_at, metrics.local_committed.map(|id| LogIndex(id.index)).max(applied))
    };
    GroupStatus {
        term: leadership.term,
        leader: leadership.leader,
        is_leader: leadership.leader == Some(inner.node),
        is_leader_ready: leadership.is_leader_ready,
        members,
        is_voter: voters.contains(&inner.node),
        voters,
        members_at,
        replica: inner.store.replica(),
        last,
        flushed: inner.store.flushed_upto().map(|id| id.index),
        committed,
        applied,
        purged: inner.store.purged().map(|id| id.index),
        snapshot: inner.catalog.newest().map(|file| file.head.boundary.id.index),
        physical_start: inner.store.physical_start(),
        physical_end: inner.store.physical_end(),
        leader_changes: inner.leader_changes.load(Ordering::Relaxed),
        peers: peers(&inner.raft, inner.node, last),
        writes: inner.store.write_stats(),
    }
}

fn peers(raft: &Raft, own: NodeId, last: Option<LogIndex>) -> Vec<PeerProgress> {
    let metrics = raft.data_metrics();
    let metrics = metrics.borrow_watched();
    let next = |index: Option<LogIndex>| index.map_or(0, |index| index.get() + 1);
    let replication = metrics.replication.iter().flatten().filter(|(node, _)| **node != own.get());
    replication
        .map(|(node, matched)| {
            let matched = matched.map(|id| LogIndex(id.index));
            PeerProgress {
                node: NodeId(*node),
                matched,
                lag_entries: next(last).saturating_sub(next(matched)),
            }
        })
        .collect()
}

/// Entries a peer lacks; `None` until this leader has heard from it.
pub(super) fn lag_of(raft: &Raft, store: &LogStore, node: NodeId) -> Option<u64> {
    let last = store.last_id().map(|id| id.index);
    let peers = peers(raft, NodeId(*raft.node_id()), last);
    let heard = peers.into_iter().find(|peer| peer.node == node && peer.matched.is_some());
    heard.map(|peer| peer.lag_entries)
}

/// The follower that needs the least to lead, as far as it was heard from.
pub(super) fn most_caught_up(raft: &Raft, store: &LogStore, own: NodeId) -> Option<NodeId> {
    let last = store.last_id().map(|id| id.index);
    let voters: Vec<u64> = raft.voter_ids().collect();
    let heirs = peers(raft, own, last).into_iter().filter(|peer| voters.contains(&peer.node.get()));
    least_behind(heirs).map(|peer| peer.node)
}

/// Of those that were heard from; the lowest id among equals.
pub(super) fn least_behind(peers: impl Iterator<Item = PeerProgress>) -> Option<PeerProgress> {
    peers.filter(|peer| peer.matched.is_some()).min_by_key(|peer| (peer.lag_entries, peer.node))
}
