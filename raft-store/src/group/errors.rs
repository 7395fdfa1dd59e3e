//! What can go wrong at the public handle, one type per operation.

use ledgermq_common::{LogIndex, NodeId};

use crate::store::OpenError;

/// The group could not be opened; nothing runs.
#[derive(Debug, thiserror::Error)]
pub enum OpenGroupError {
    #[error(transparent)]
    Store(#[from] OpenError),
    #[error("node {node} is not among the members of the group")]
    NotAMember { node: NodeId },
    #[error("the member list names node {node} twice")]
    DuplicateMember { node: NodeId },
    #[error("timings refused: {reason}")]
    Timings { reason: String },
    /// The state machine persisted more than the log holds. Its owner throws the state away and
    /// opens the group again; no committed entry is lost by that.
    #[error(
        "the state is applied up to entry {applied}, but the log is only durable up to {flushed}: rebuild the state"
    )]
    StateAheadOfLog { applied: LogIndex, flushed: LogIndex },
    /// The log starts behind the state, and no snapshot fills the gap.
    #[error(
        "the state is applied up to {applied:?}, the log starts after {purged}, and no usable snapshot lies between"
    )]
    StateBehindLog { applied: Option<LogIndex>, purged: LogIndex },
    #[error("snapshot or membership file: {0}")]
    Io(#[from] std::io::Error),
    #[error("raft did not start: {reason}")]
    Raft { reason: String },
}

/// A command was not (known to be) carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Nothing was appended here: safe to repeat elsewhere.
    #[error("this replica does not lead the group (leader: {leader:?})")]
    NotLeader { leader: Option<NodeId> },
    /// The command was appended, and leadership was lost before it was known to be committed. It
    /// may or may not be carried out later.
    #[error("leadership was lost before the outcome was known")]
    OutcomeUnknown,
    /// Nothing was appended: more than the limit of unanswered commands wait already.
    #[error("too many commands wait for an answer")]
    Overloaded,
    #[error("a command of {bytes} bytes is over the limit of {bytes_max}")]
    TooLarge { bytes: usize, bytes_max: usize },
    #[error("the group is stopped")]
    Stopped,
}

/// A read barrier could not be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BarrierError {
    #[error("this replica does not lead the group (leader: {leader:?})")]
    NotLeader { leader: Option<NodeId> },
    #[error("the group is stopped")]
    Stopped,
}

/// The members of the group were not changed, or not known to be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChangeMembersError {
    #[error("this replica does not lead the group (leader: {leader:?})")]
    NotLeader { leader: Option<NodeId> },
    #[error("node {node} leads the group; hand its leadership over first")]
    Leads { node: NodeId },
    #[error("node {node} is no member of the group")]
    NotAMember { node: NodeId },
    #[error("another change of the members is under way")]
    UnderWay,
    #[error("the change was refused: {reason}")]
    Refused { reason: String },
    #[error("the change was not committed before the deadline; it may be later")]
    DeadlinePassed,
    #[error("the group is stopped")]
    Stopped,
}

/// A leader that gives its place away takes no commands until the heir has these entries too.
pub(super) const LAG_ENTRIES_MAX: u64 = 10_000;

/// Leadership was not handed over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HandOverError {
    #[error("the group has no other member")]
    NobodyElse,
    #[error("the leader heard nothing from {} before the deadline", the_wanted(*wanted))]
    NobodyHeard { wanted: Option<NodeId> },
    #[error("no other replica took over before the deadline")]
    DeadlinePassed,
    #[error("this replica does not lead the group (leader: {leader:?})")]
    NotLeader { leader: Option<NodeId> },
    #[error("node {node} is no other member of the group")]
    NotAFollower { node: NodeId },
    #[error("node {node} lacks {lag_entries} entries; at most {LAG_ENTRIES_MAX} may be missing")]
    TooFarBehind { node: NodeId, lag_entries: u64 },
    #[error("node {leader} leads now, not node {wanted}")]
    AnotherLeads { wanted: NodeId, leader: NodeId },
    #[error("the group is stopped")]
    Stopped,
}

fn the_wanted(node: Option<NodeId>) -> String {
    node.map_or_else(|| "any other member".to_owned(), |node| format!("node {node}"))
}

/// Why the group can never go on in this process. Raft is the recovery: end the process.
#[derive(Debug, Clone, thiserror::Error)]
#[error("group fault: {reason}")]
pub struct GroupFault {
    pub reason: String,
}
