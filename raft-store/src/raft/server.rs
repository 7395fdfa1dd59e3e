//! The peer port's side of replication, for every group of a process.
//!
//! | A call for | Answer |
//! |---|---|
//! | another cluster, or another node at this address | FAILED_PRECONDITION; the caller tries again later |
//! | another replica of this node: its directory was lost, and what is here never voted or acknowledged as that one | likewise |
//! | a group that is not (yet) open here | UNAVAILABLE |
//! | a group that stopped | UNAVAILABLE |
//! | a message that makes no sense | INVALID_ARGUMENT |

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt, TryStreamExt};
use ledgermq_common::{GroupId, NodeId};
use ledgermq_proto::raft as proto;
use ledgermq_proto::raft::raft_peer_server::{RaftPeer, RaftPeerServer};
use openraft::Snapshot;
use openraft::async_runtime::WatchReceiver;
use openraft::raft::AppendEntriesRequest;
use parking_lot::RwLock;
use tokio::sync::watch;
use tonic::{Request, Response, Status, Streaming};

use super::links::{BULK_WINDOW_BYTES, FRAME_BYTES_MAX, MESSAGE_BYTES_MAX};
use super::state_machine::Applier;
use super::vocabulary::{Consensus, Runtime, SnapshotMeta, Vote, log_id};
use super::wire::{self, Address, MalformedMessage};
use crate::defects::{self, Defect};
use crate::group::Group;
use crate::group::joining::{Admission, Standing};
use crate::machine::EntryId;
use crate::offload::Offload;
use crate::snapshot::{Incoming, SnapshotCatalog, SnapshotFile};
use crate::store::{LogStore, ReplicaId};

/// A snapshot of which no byte came for so long is not waited for.
const SNAPSHOT_STALL: Duration = Duration::from_secs(30);
/// Streams of one peer: one append per group, a watch per group, and some calls.
const STREAMS_MAX: u32 = 4_096;
/// Time a new leader is given to find out that it leads, before its follower is told it does not.
const WATCH_GRACE: Duration = Duration::from_millis(50);

/// Time for openraft to hear that the entries below a snapshot reached the disk.
const TAIL_GRACE: Duration = Duration::from_millis(500);

pub(crate) type Raft = openraft::Raft<Consensus, Applier>;

/// What the peer port needs of one group.
pub(crate) struct GroupPort {
    pub(crate) address: Address,
    pub(crate) raft: Raft,
    pub(crate) store: LogStore,
    pub(crate) seed: u64,
    pub(crate) catalog: Arc<SnapshotCatalog>,
    pub(crate) offload: Offload,
    pub(crate) admission: Admission,
    /// True once the group shuts down; ends the watches of its followers.
    pub(crate) stopping: watch::Receiver<bool>,
}

/// The groups of a process that can be reached on its peer port. Cheap to clone.
#[derive(Clone, Default)]
pub struct PeerServer {
    ports: Arc<RwLock<BTreeMap<GroupId, Arc<GroupPort>>>>,
}

impl PeerServer {
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes `group` reachable.
    pub fn add(&self, group: &Group) {
        self.ports.write().insert(group.id(), group.port());
    }

    pub fn remove(&self, group: GroupId) {
        self.ports.write().remove(&group);
    }

    /// A server with the windows and limits replication needs; add the services of the peer port.
    pub fn transport() -> tonic::transport::Server {
        tonic::transport::Server::builder()
            .tcp_nodelay(true)
            .initial_stream_window_size(BULK_WINDOW_BYTES)
            .initial_connection_window_size(BULK_WINDOW_BYTES)
            .max_frame_size(FRAME_BYTES_MAX)
            .max_concurrent_streams(STREAMS_MAX)
            // As many as a peer may open: a replica that stood still meets all that was given up.
            .http2_max_pending_accept_reset_streams(Some(STREAMS_MAX as usize))
    }

    /// The service to add to the peer port's router.
    pub fn service(&self) -> RaftPeerServer<PeerServer> {
        RaftPeerServer::new(self.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    fn port(&self, to: Option<proto::Addressee>) -> Result<Arc<GroupPort>, Status> {
        let meant = wire::address(to)?;
        let port = self.port_of_node(meant)?;
        if port.address.replica != meant.replica && !defects::is_active(Defect::AmnesiaUnnoticed) {
            return Err(Status::failed_precondition(format!(
                "this is replica {} of node {}, not {}",
                port.address.replica, meant.node, meant.replica
            )));
        }
        Ok(port)
    }

    /// Whichever replica it is.
    fn port_of_node(&self, to: Address) -> Result<Arc<GroupPort>, Status> {
        let Some(port) = self.ports.read().get(&to.group).cloned() else {
            return Err(Status::unavailable(format!("group {} is not open here", to.group)));
        };
        if port.address.cluster != to.cluster || port.address.node != to.node {
            return Err(Status::failed_precondition(format!(
                "this is node {} of cluster {:016x}, not node {} of cluster {:016x}",
                port.address.node, port.address.cluster, to.node, to.cluster
            )));
        }
        Ok(port)
    }
}

fn stopped(error: impl std::fmt::Display) -> Status {
    Status::unavailable(format!("the group stopped: {error}"))
}

type AnswerStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl RaftPeer for PeerServer {
    type AppendStream = AnswerStream<proto::AppendResponse>;
    type WatchStream = AnswerStream<proto::WatchEvent>;

    async fn vote(
        &self,
        request: Request<proto::VoteRequest>,
    ) -> Result<Response<proto::VoteResponse>, Status> {
        let mut request = request.into_inner();
        let port = self.port(request.to.take())?;
        let is_pre_vote = request.is_pre_vote;
        let mut request = wire::vote_request_from_wire(request)?;
        if defects::is_active(Defect::LaggingNodeElected) {
            request.last_log_id = request.last_log_id.max(port.store.last_id().map(log_id));
        }
        let response =
            if is_pre_vote { port.raft.pre_vote(request).await } else { port.raft.vote(request).await };
        let response = response.map_err(stopped)?;
        Ok(Response::new(wire::vote_response_to_wire(&response)))
    }

    async fn heartbeat(
        &self,
        request: Request<proto::AppendRequest>,
    ) -> Result<Response<proto::AppendResponse>, Status> {
        let mut request = request.into_inner();
        let port = self.port(request.to.take())?;
        let mut request = wire::append_from_wire(request)?;
        // openraft's unary answer to a match names no entry; a match confirms what was asked for.
        let asked = request.entries.last().map(|entry| entry.log_id).or(request.prev_log_id);
        if defects::is_active(Defect::CommitUnchecked) && request.entries.is_empty() {
            request.prev_log_id = port.store.last_id().map(log_id);
        }
        let response = port.raft.append_entries(request).await.map_err(stopped)?;
        let result = response.into_stream_result(asked, asked);
        Ok(Response::new(wire::append_response_to_wire(result)))
    }

    async fn append(
        &self,
        request: Request<Streaming<proto::AppendRequest>>,
    ) -> Result<Response<Self::AppendStream>, Status> {
        let server = self.clone();
        let inbound = request.into_inner();
        // The headers of the answer go out before the first message comes in.
        let answers =
            futures_util::stream::once(async move { server.append_answers(inbound).await }).try_flatten();
        Ok(Response::new(Box::pin(answers)))
    }

    async fn transfer_leader(
        &self,
        request: Request<proto::TransferLeaderRequest>,
    ) -> Result<Response<proto::TransferLeaderResponse>, Status> {
        let mut request = request.into_inner();
        let port = self.port(request.to.take())?;
        let request = wire::transfer_from_wire(request)?;
        let outcome = port.raft.handle_transfer_leader(request).await.map_err(stopped)?;
        let refusal = outcome.err().map(|refused| refused.to_string()).unwrap_or_default();
        Ok(Response::new(proto::TransferLeaderResponse { refusal }))
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<proto::SnapshotPiece>>,
    ) -> Result<Response<proto::SnapshotResponse>, Status> {
        let mut pieces = request.into_inner();
        let Some(proto::snapshot_piece::Piece::Head(mut head)) = next_piece(&mut pieces).await? else {
            return Err(MalformedMessage { field: "head of a snapshot" }.into());
        };
        let port = self.port(head.to.take())?;
        let vote = wire::vote_from_wire(head.ballot)?;
        let file = receive(&port, head.file_bytes, pieces).await?;
        let response = install(&port, vote, file).await?;
        Ok(Response::new(response))
    }

    async fn join(
        &self,
        request: Request<proto::JoinRequest>,
    ) -> Result<Response<proto::JoinResponse>, Status> {
        use proto::join_response::Standing as Wire;
        let proto::JoinRequest { to, node, replica } = request.into_inner();
        let port = self.port_of_node(wire::address(to)?)?;
        let standing = match port.admission.admit(NodeId(node), ReplicaId(replica)).await {
            Standing::Blank(replica) => Wire::Blank(replica.0),
            Standing::Follows => Wire::Follows(true),
            Standing::Joining { doing, is_known } => {
                Wire::Joining(proto::join_response::Joining { doing, is_known })
            }
            Standing::Voter => Wire::Voter(true),
        };
        let replica = port.address.replica.0;
        Ok(Response::new(proto::JoinResponse { standing: Some(standing), replica }))
    }

    async fn watch(
        &self,
        request: Request<proto::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let port = self.port_of_node(wire::address(request.into_inner().to)?)?;
        let event = leads(&port).await;
        let mut stopping = port.stopping.clone();
        let rest = futures_util::stream::once(async move {
            // An error of the watch means that the group is gone.
            let _ = stopping.wait_for(|stopping| *stopping).await;
            Err(Status::unavailable("the group is shutting down"))
        });
        Ok(Response::new(Box::pin(futures_util::stream::iter([Ok(event)]).chain(rest))))
    }
}

impl PeerServer {
    async fn append_answers(
        &self,
        mut inbound: Streaming<proto::AppendRequest>,
    ) -> Result<AnswerStream<proto::AppendResponse>, Status> {
        let Some(mut first) = inbound.message().await? else {
            return Err(MalformedMessage { field: "an empty append stream" }.into());
        };
        let port = self.port(first.to.take())?;
        let first = wire::append_from_wire(first)?;
        let requests = futures_util::stream::iter([first]).chain(appends(inbound)).map(as_committed);
        let raft = port.raft.clone();
        // openraft starts a task here, which takes its seed from its surroundings.
        Ok(Runtime::scope(port.seed, async move {
            let results = raft.stream_append(requests).map(|result| match result {
                Ok(result) => Ok(wire::append_response_to_wire(result)),
                Err(fatal) => Err(stopped(fatal)),
            });
            Box::pin(results) as AnswerStream<proto::AppendResponse>
        })
        .await)
    }
}

/// The appends of a stream; it ends at the first thing that is not one, and so do the answers, upon
/// which the leader opens another stream.
fn appends(
    inbound: Streaming<proto::AppendRequest>,
) -> impl Stream<Item = AppendEntriesRequest<Consensus>> + Send {
    futures_util::stream::unfold(inbound, |mut inbound| async move {
        let message = match inbound.message().await {
            Ok(message) => message?,
            Err(status) => {
                tracing::debug!(%status, "an append stream broke");
                return None;
            }
        };
        match wire::append_from_wire(message) {
            Ok(request) => Some((request, inbound)),
            Err(error) => {
                tracing::warn!(%error, "an append stream is ended");
                None
            }
        }
    })
}

/// Only in a broken build it changes anything.
fn as_committed(mut request: AppendEntriesRequest<Consensus>) -> AppendEntriesRequest<Consensus> {
    if defects::is_active(Defect::AppendedIsCommitted) {
        let last = request.entries.last().map(|entry| entry.log_id);
        request.leader_commit = request.leader_commit.max(last);
    }
    request
}

async fn leads(port: &GroupPort) -> proto::WatchEvent {
    let own = port.address.node.get();
    let mut metrics = port.raft.server_metrics();
    let is_leader = |metrics: &openraft::metrics::RaftServerMetrics<Consensus>| {
        metrics.state == openraft::ServerState::Leader && metrics.current_leader == Some(own)
    };
    // A leader's first append may arrive before its own metrics say that it leads.
    let _ = tokio::time::timeout(WATCH_GRACE, async {
        while !is_leader(&metrics.borrow_watched()) {
            if metrics.changed().await.is_err() {
                return;
            }
        }
    })
    .await;
    let metrics = metrics.borrow_watched();
    proto::WatchEvent { term: metrics.vote.leader_id.term, leads: is_leader(&metrics) }
}

async fn install(
    port: &GroupPort,
    vote: Vote,
    file: SnapshotFile,
) -> Result<proto::SnapshotResponse, Status> {
    settle_tail(port, vote, file.head.boundary.id).await?;
    let meta = SnapshotMeta {
        last_log_id: Some(log_id(file.head.boundary.id)),
        last_membership: file.head.membership.clone(),
    };
    let snapshot = Snapshot { meta, snapshot: file };
    let response = port.raft.install_full_snapshot(vote, snapshot).await.map_err(stopped)?;
    Ok(proto::SnapshotResponse { ballot: Some(wire::vote_to_wire(&response.vote)) })
}

/// Applies what the log holds below a snapshot before the snapshot replaces it.
///
/// openraft forgets the ids of the entries below a snapshot before it hands the snapshot to the
/// state machine. If the hand-over has to wait for a write, and entries that were matched with the
/// same leader are not applied yet, it looks for their ids in between and panics (the follower's side
/// of openraft#2116). Such a tail exists when appends arrived whose commit did not. But a snapshot
/// holds committed entries only, and what was matched with the leader that sends it is a prefix of
/// what is inside; so the tail may be called committed right here, as the leader's next heartbeat
/// would, and nothing is left for openraft to look for.
async fn settle_tail(port: &GroupPort, vote: Vote, inside: EntryId) -> Result<(), Status> {
    if defects::is_active(Defect::TailNotSettled) {
        return Ok(());
    }
    let Some(last) = port.store.last_id() else { return Ok(()) };
    // First the disk itself, however slow it is: what is committed but not synced has an apply that
    // waits for the sync, and that is the one that would find its entries gone.
    let mut flushed = port.store.flushed();
    let on_disk = flushed.wait_for(|flushed| flushed.is_some_and(|flushed| flushed.index >= last.index));
    match tokio::time::timeout(SNAPSHOT_STALL, on_disk).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => return Err(stopped(error)),
        Err(_) => return Err(Status::deadline_exceeded("the log below the snapshot could not be synced")),
    }
    // Then openraft, which hears of the sync through its own queue.
    let mut progress = port.raft.watch_log_progress();
    let is_known = progress.wait_until(|point| {
        let flushed = point.as_ref().and_then(|point| point.last_log_id);
        flushed.is_some_and(|flushed| flushed.index >= last.index.get())
    });
    // A tail of an earlier leader never counts as flushed in the name of this one; nobody waits for
    // that. What was committed of it is applied by now.
    let _ = tokio::time::timeout(TAIL_GRACE, is_known).await;
    let Some(matched) = progress.get().filter(|matched| matched.vote == vote) else { return Ok(()) };
    let Some(tail) = matched.last_log_id.filter(|tail| tail.index <= inside.index.get()) else {
        return Ok(());
    };
    let heartbeat = AppendEntriesRequest {
        vote,
        prev_log_id: Some(tail),
        entries: Vec::new(),
        leader_commit: Some(log_id(inside)),
    };
    port.raft.append_entries(heartbeat).await.map_err(stopped)?;
    let mut applied = port.raft.watch_apply_progress();
    let settled =
        applied.wait_until(|applied| applied.as_ref().is_some_and(|applied| applied.index >= tail.index));
    match tokio::time::timeout(SNAPSHOT_STALL, settled).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(stopped(error)),
        Err(_) => Err(Status::deadline_exceeded("the log below the snapshot could not be applied")),
    }
}

async fn next_piece(
    pieces: &mut Streaming<proto::SnapshotPiece>,
) -> Result<Option<proto::snapshot_piece::Piece>, Status> {
    let piece = tokio::time::timeout(SNAPSHOT_STALL, pieces.message())
        .await
        .map_err(|_| Status::deadline_exceeded("no piece of the snapshot came"))??;
    Ok(piece.and_then(|piece| piece.piece))
}

async fn receive(
    port: &GroupPort,
    file_bytes: u64,
    mut pieces: Streaming<proto::SnapshotPiece>,
) -> Result<SnapshotFile, Status> {
    let failed = |error: std::io::Error| Status::internal(format!("receiving a snapshot: {error}"));
    let catalog = Arc::clone(&port.catalog);
    let mut incoming: Incoming =
        port.offload.run(move || catalog.receive(file_bytes)).await.map_err(failed)?;
    let filled: Result<Incoming, Status> = async {
        while let Some(piece) = next_piece(&mut pieces).await? {
            let proto::snapshot_piece::Piece::Bytes(bytes) = piece else {
                return Err(MalformedMessage { field: "a second head" }.into());
            };
            incoming =
                port.offload.run(move || incoming.write(&bytes).map(|()| incoming)).await.map_err(failed)?;
        }
        Ok(incoming)
    }
    .await;
    let catalog = Arc::clone(&port.catalog);
    let incoming = filled?;
    port.offload
        .run(move || match catalog.accept(&incoming) {
            Ok(file) => Ok(file),
            Err(error) => {
                catalog.abandon(incoming)?;
                Err(error)
            }
        })
        .await
        .map_err(failed)
}

#[cfg(test)]
mod tests;
