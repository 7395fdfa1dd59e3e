//! openraft's type configuration over our entries.
//!
//! A command is a [`Bytes`] from the client's frame to the disk and to the followers: [`Payload`]
//! holds it without a copy, and cloning an [`Entry`] counts a reference.

use std::fmt;

use bytes::Bytes;
use ledgermq_common::{LogIndex, NodeId, PhysicalOffset, Term};
use openraft::entry::{RaftEntry, RaftPayload};
use openraft::impls::leader_id_std;
use openraft_rt::deterministic_rng::DeterministicRng;
use openraft_rt_tokio::TokioRuntime;

use crate::machine::EntryId;
use crate::store::ReplicaId;

/// Random election timeouts come from the seed of the group, so that a simulation repeats.
pub(crate) type Runtime = DeterministicRng<TokioRuntime>;
pub(crate) type CommittedLeaderId =
    <leader_id_std::LeaderId<u64, u64> as openraft::vote::RaftLeaderId>::Committed;
pub(crate) type LogId = openraft::LogId<CommittedLeaderId>;
pub(crate) type Vote = openraft::Vote<leader_id_std::LeaderId<u64, u64>>;
pub(crate) type Membership = openraft::Membership<u64, Node>;
pub(crate) type StoredMembership = openraft::StoredMembership<CommittedLeaderId, u64, Node>;
pub(crate) type SnapshotMeta = openraft::SnapshotMeta<CommittedLeaderId, u64, Node>;

/// What the membership says of a node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) addr: String,
    /// Whose votes and acknowledgements count under this node's id. A message that is meant for another
    /// replica is refused by the one it reaches (`server`), so a membership of old never counts a log
    /// that was begun anew.
    pub(crate) replica: ReplicaId,
}

/// openraft as a broker group runs it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Consensus;

impl openraft::RaftTypeConfig for Consensus {
    type D = Command;
    type R = Answer;
    type NodeId = u64;
    type Node = Node;
    type Term = u64;
    type LeaderId = leader_id_std::LeaderId<u64, u64>;
    type Vote = Vote;
    type Payload = Payload;
    type Entry = Entry;
    type AsyncRuntime = Runtime;
    type Responder<T>
        = openraft::impls::ProgressResponder<Consensus, T>
    where
        T: Send + 'static;
    type Batch<T>
        = openraft::impls::InlineBatch<T>
    where
        T: Send + 'static;
    type ErrorSource = openraft::impls::BoxedErrorSource;
}

/// A command of the state machine, opaque here.
pub(crate) struct Command(pub(crate) Bytes);

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Command({} bytes)", self.0.len())
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What the state machine answered; empty for entries that are not commands.
#[derive(Debug)]
pub(crate) struct Answer(pub(crate) Bytes);

#[derive(Clone)]
pub(crate) enum Payload {
    Blank,
    Membership(Membership),
    Normal(Bytes),
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Blank => f.write_str("blank"),
            Self::Membership(membership) => write!(f, "membership {membership}"),
            Self::Normal(command) => write!(f, "{} bytes", command.len()),
        }
    }
}

impl fmt::Display for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl RaftPayload for Payload {
    type D = Command;
    type NodeId = u64;
    type Node = Node;

    fn blank() -> Self {
        Self::Blank
    }

    fn with_normal(self, command: Command) -> Self {
        Self::Normal(command.0)
    }

    fn with_membership(self, membership: Membership) -> Self {
        Self::Membership(membership)
    }

    fn get_membership(&self) -> Option<Membership> {
        match self {
            Self::Membership(membership) => Some(membership.clone()),
            Self::Blank | Self::Normal(_) => None,
        }
    }
}

/// An entry on its way between openraft, the log store and the wire.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) log_id: LogId,
    pub(crate) payload: Payload,
    /// Where the payload lies in the CommitLog; unknown until the entry was appended somewhere.
    pub(crate) payload_at: Option<PhysicalOffset>,
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.log_id, self.payload)
    }
}

impl RaftEntry for Entry {
    type CommittedLeaderId = CommittedLeaderId;
    type Payload = Payload;

    fn new(log_id: LogId, payload: Payload) -> Self {
        Self { log_id, payload, payload_at: None }
    }

    fn log_id_parts(&self) -> (&CommittedLeaderId, u64) {
        (self.log_id.committed_leader_id(), self.log_id.index)
    }

    fn set_log_id(&mut self, log_id: LogId) {
        self.log_id = log_id;
    }

    fn get_membership(&self) -> Option<Membership> {
        self.payload.get_membership()
    }
}

pub(crate) fn log_id(id: EntryId) -> LogId {
    LogId::new_term_index(id.term.get(), id.index.get())
}

pub(crate) fn entry_id(log_id: &LogId) -> EntryId {
    EntryId { term: Term(log_id.committed_leader_id().term), index: LogIndex(log_id.index) }
}

pub(crate) fn node_id(node: u64) -> NodeId {
    NodeId(node)
}
