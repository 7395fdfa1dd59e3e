//! Between openraft's messages and `ledgermq.raft.v1`. Payloads cross without a copy.
//!
//! Everything that arrives is checked here; what is missing or out of range is
//! [`MalformedMessage`], never a default that would mean something.

use bytes::Bytes;
use ledgermq_common::{GroupId, LogIndex, NodeId, PhysicalOffset, Term};
use ledgermq_proto::raft as proto;
use openraft::raft::{
    AppendEntriesRequest, StreamAppendError, StreamAppendResult, TransferLeaderRequest, VoteRequest,
    VoteResponse,
};

use super::membership;
use super::vocabulary::{Consensus, Entry, LogId, Payload, Vote, entry_id, log_id};
use crate::machine::EntryId;
use crate::store::ReplicaId;

#[derive(Debug, thiserror::Error)]
#[error("malformed message of a peer: {field}")]
pub(crate) struct MalformedMessage {
    pub(crate) field: &'static str,
}

impl From<MalformedMessage> for tonic::Status {
    fn from(malformed: MalformedMessage) -> Self {
        tonic::Status::invalid_argument(malformed.to_string())
    }
}

fn missing(field: &'static str) -> MalformedMessage {
    MalformedMessage { field }
}

/// Names a cluster on the wire.
pub(crate) fn cluster_hash(cluster: &str) -> u64 {
    xxhash_rust::xxh3::xxh3_64(cluster.as_bytes())
}

/// Whom a message is meant for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) cluster: u64,
    pub(crate) group: GroupId,
    pub(crate) node: NodeId,
    pub(crate) replica: ReplicaId,
}

impl From<Address> for proto::Addressee {
    fn from(address: Address) -> Self {
        Self {
            cluster: address.cluster,
            group: address.group.get(),
            node: address.node.get(),
            replica: address.replica.0,
        }
    }
}

impl From<proto::Addressee> for Address {
    fn from(addressee: proto::Addressee) -> Self {
        Self {
            cluster: addressee.cluster,
            group: GroupId(addressee.group),
            node: NodeId(addressee.node),
            replica: ReplicaId(addressee.replica),
        }
    }
}

pub(crate) fn address(addressee: Option<proto::Addressee>) -> Result<Address, MalformedMessage> {
    addressee.map(Address::from).ok_or(missing("to"))
}

fn id_to_wire(id: &LogId) -> proto::EntryId {
    let id = entry_id(id);
    proto::EntryId { term: id.term.get(), index: id.index.get() }
}

fn id_from_wire(id: proto::EntryId) -> LogId {
    log_id(EntryId { term: Term(id.term), index: LogIndex(id.index) })
}

pub(crate) fn vote_to_wire(vote: &Vote) -> proto::Ballot {
    proto::Ballot { term: vote.leader_id.term, node: vote.leader_id.voted_for, committed: vote.committed }
}

pub(crate) fn vote_from_wire(ballot: Option<proto::Ballot>) -> Result<Vote, MalformedMessage> {
    let ballot = ballot.ok_or(missing("ballot"))?;
    Ok(if ballot.committed {
        Vote::new_committed(ballot.term, ballot.node)
    } else {
        Vote::new(ballot.term, ballot.node)
    })
}

pub(crate) fn vote_request_to_wire(
    request: &VoteRequest<Consensus>,
    to: Address,
    is_pre_vote: bool,
) -> proto::VoteRequest {
    proto::VoteRequest {
        to: Some(to.into()),
        ballot: Some(vote_to_wire(&request.vote)),
        last: request.last_log_id.as_ref().map(id_to_wire),
        is_pre_vote,
        is_leadership_transfer: request.leadership_transfer,
    }
}

pub(crate) fn vote_request_from_wire(
    request: proto::VoteRequest,
) -> Result<VoteRequest<Consensus>, MalformedMessage> {
    let mut decoded = VoteRequest::new(vote_from_wire(request.ballot)?, request.last.map(id_from_wire));
    decoded.leadership_transfer = request.is_leadership_transfer;
    Ok(decoded)
}

pub(crate) fn vote_response_to_wire(response: &VoteResponse<Consensus>) -> proto::VoteResponse {
    proto::VoteResponse {
        ballot: Some(vote_to_wire(&response.vote)),
        granted: response.vote_granted,
        last: response.last_log_id.as_ref().map(id_to_wire),
    }
}

pub(crate) fn vote_response_from_wire(
    response: proto::VoteResponse,
) -> Result<VoteResponse<Consensus>, MalformedMessage> {
    let vote = vote_from_wire(response.ballot)?;
    Ok(VoteResponse::new(vote, response.last.map(id_from_wire), response.granted))
}

/// `to` goes into the first message of a stream only.
pub(crate) fn append_to_wire(
    request: AppendEntriesRequest<Consensus>,
    to: Option<Address>,
) -> proto::AppendRequest {
    proto::AppendRequest {
        to: to.map(Into::into),
        ballot: Some(vote_to_wire(&request.vote)),
        previous: request.prev_log_id.as_ref().map(id_to_wire),
        committed: request.leader_commit.as_ref().map(id_to_wire),
        entries: request.entries.into_iter().map(entry_to_wire).collect(),
    }
}

pub(crate) fn append_from_wire(
    request: proto::AppendRequest,
) -> Result<AppendEntriesRequest<Consensus>, MalformedMessage> {
    let previous = request.previous.map(id_from_wire);
    let mut next_index = previous.as_ref().map_or(Some(0), |id| id.index.checked_add(1));
    let mut entries = Vec::with_capacity(request.entries.len());
    for entry in request.entries {
        let entry = entry_from_wire(entry)?;
        // openraft takes it for granted that the entries of one message follow one another.
        if Some(entry.log_id.index) != next_index {
            return Err(missing("entries: not consecutive"));
        }
        next_index = entry.log_id.index.checked_add(1);
        entries.push(entry);
    }
    Ok(AppendEntriesRequest {
        vote: vote_from_wire(request.ballot)?,
        prev_log_id: previous,
        leader_commit: request.committed.map(id_from_wire),
        entries,
    })
}

fn entry_to_wire(entry: Entry) -> proto::Entry {
    let (kind, payload) = match entry.payload {
        Payload::Blank => (proto::EntryKind::Blank, Bytes::new()),
        Payload::Membership(membership) => (proto::EntryKind::Membership, membership::encode(&membership)),
        Payload::Normal(command) => (proto::EntryKind::Normal, command),
    };
    // Replication reads entries from the log store, which knows where each one lies.
    let payload_at = entry.payload_at.expect("an entry is sent after it was appended here");
    proto::Entry {
        id: Some(id_to_wire(&entry.log_id)),
        kind: kind.into(),
        payload,
        payload_at: payload_at.get(),
    }
}

fn entry_from_wire(entry: proto::Entry) -> Result<Entry, MalformedMessage> {
    let kind = entry.kind();
    let payload = match kind {
        proto::EntryKind::Unspecified => return Err(missing("kind of an entry")),
        proto::EntryKind::Blank => Payload::Blank,
        proto::EntryKind::Membership => Payload::Membership(
            membership::decode(entry.payload).map_err(|_| missing("payload of a membership entry"))?,
        ),
        proto::EntryKind::Normal => Payload::Normal(entry.payload),
    };
    Ok(Entry {
        log_id: entry.id.map(id_from_wire).ok_or(missing("id of an entry"))?,
        payload,
        payload_at: Some(PhysicalOffset(entry.payload_at)),
    })
}

pub(crate) fn append_response_to_wire(result: StreamAppendResult<Consensus>) -> proto::AppendResponse {
    use proto::append_response::{Matched, Outcome};
    let outcome = match result {
        Ok(upto) => Outcome::Matched(Matched { upto: upto.as_ref().map(id_to_wire) }),
        Err(StreamAppendError::Conflict(at)) => Outcome::Conflict(id_to_wire(&at)),
        Err(StreamAppendError::HigherVote(vote)) => Outcome::HigherBallot(vote_to_wire(&vote)),
    };
    proto::AppendResponse { outcome: Some(outcome) }
}

pub(crate) fn append_response_from_wire(
    response: proto::AppendResponse,
) -> Result<StreamAppendResult<Consensus>, MalformedMessage> {
    use proto::append_response::Outcome;
    Ok(match response.outcome.ok_or(missing("outcome"))? {
        Outcome::Matched(matched) => Ok(matched.upto.map(id_from_wire)),
        Outcome::Conflict(at) => Err(StreamAppendError::Conflict(id_from_wire(at))),
        Outcome::HigherBallot(ballot) => Err(StreamAppendError::HigherVote(vote_from_wire(Some(ballot))?)),
    })
}

pub(crate) fn transfer_to_wire(
    request: &TransferLeaderRequest<Consensus>,
    to: Address,
) -> proto::TransferLeaderRequest {
    proto::TransferLeaderRequest {
        to: Some(to.into()),
        from_leader: Some(vote_to_wire(request.from_leader())),
        to_node: *request.to_node_id(),
        last: request.last_log_id().map(id_to_wire),
    }
}

pub(crate) fn transfer_from_wire(
    request: proto::TransferLeaderRequest,
) -> Result<TransferLeaderRequest<Consensus>, MalformedMessage> {
    let from = vote_from_wire(request.from_leader)?;
    Ok(TransferLeaderRequest::new(from, request.to_node, request.last.map(id_from_wire)))
}
