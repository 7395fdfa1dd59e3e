//! openraft's network over [`PeerLinks`].
//!
//! Appends go through one bidirectional stream per follower, answered in order, pipelined as far as
//! the HTTP/2 window allows. openraft sends heartbeats and lease probes through a client of their
//! own, which here is the control connection: they never queue behind an append. (A follower renews
//! its lease when the heartbeat arrives; only its *answer* waits for the sync of what it accepted
//! before.)
//!
//! Every call has a deadline. A stream has none as a whole: it fails when answers are owed and none
//! came for [`STALL_MS`].

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::stream::Fuse;
use futures_util::{FutureExt, Stream, StreamExt};
use ledgermq_proto::raft as proto;
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{Backoff, RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendError, StreamAppendResult,
    TransferLeaderRequest, VoteRequest, VoteResponse,
};
use openraft_rt::{BoxFuture, BoxStream};
use tokio::time::Sleep;
use tokio_stream::wrappers::ReceiverStream;

use super::links::{Links, PeerLinks};
use super::state_machine::FinishedSnapshot;
use super::vocabulary::{Consensus, LogId, Node, Vote};
use super::wire::{self, Address};
use crate::defects::{self, Defect};
use crate::offload::Offload;
use crate::snapshot::{PIECE_BYTES, SnapshotFile};

/// Answers owed and none for so long: the stream is given up and opened again.
const STALL_MS: u64 = 2_000;
/// How long a commit index waits for entries to travel with.
const BARE_COMMIT_WAIT: Duration = Duration::from_millis(10);
/// Between two attempts to reach a peer that could not be reached.
const BACKOFF_MS: u64 = 50;
/// Pieces of a snapshot read ahead of the connection.
const SNAPSHOT_PIECES_AHEAD: usize = 4;
/// A snapshot is given up when the peer took no piece of it for so long.
const SNAPSHOT_STALL: Duration = Duration::from_secs(30);

type Error = RPCError<Consensus>;

/// Makes the clients of one replica.
#[derive(Clone)]
pub(crate) struct Network {
    pub(crate) links: Arc<Links>,
    /// Whom we write to, but for the node and its replica.
    pub(crate) own: Address,
    pub(crate) offload: Offload,
}

impl Network {
    fn client(&self, target: u64, node: &Node, appends: Appends) -> PeerClient {
        PeerClient {
            links: self.links.to(target, &node.addr),
            to: Address { node: super::vocabulary::node_id(target), replica: node.replica, ..self.own },
            appends,
            offload: self.offload,
        }
    }
}

impl RaftNetworkFactory<Consensus> for Network {
    type Network = PeerClient;

    async fn new_client(&mut self, target: u64, node: &Node) -> PeerClient {
        self.client(target, node, Appends::OnBulk)
    }

    async fn new_heartbeat_client(&mut self, target: u64, node: &Node) -> PeerClient {
        self.client(target, node, Appends::OnControl)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Appends {
    OnBulk,
    OnControl,
}

/// Talks to one peer.
pub(crate) struct PeerClient {
    links: PeerLinks,
    to: Address,
    appends: Appends,
    offload: Offload,
}

impl RaftNetworkV2<Consensus> for PeerClient {
    type SnapshotData = SnapshotFile;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Consensus>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<Consensus>, Error> {
        Ok(self.heartbeat(request, option).await?.into())
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, Result<BoxStream<'s, Result<StreamAppendResult<Consensus>, Error>>, Error>>
    where
        S: Stream<Item = AppendEntriesRequest<Consensus>> + Send + Unpin + 'static,
    {
        match self.appends {
            Appends::OnControl => async move { Ok(self.heartbeats(input, option).boxed()) }.boxed(),
            Appends::OnBulk => async move { Ok(self.append_stream(input).await?.boxed()) }.boxed(),
        }
    }

    async fn vote(
        &mut self,
        request: VoteRequest<Consensus>,
        option: RPCOption,
    ) -> Result<VoteResponse<Consensus>, Error> {
        self.ask_for_vote(request, option, false).await
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<Consensus>,
        option: RPCOption,
    ) -> Result<VoteResponse<Consensus>, Error> {
        self.ask_for_vote(request, option, true).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: FinishedSnapshot,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _: RPCOption,
    ) -> Result<SnapshotResponse<Consensus>, StreamingError<Consensus>> {
        tokio::select! {
            biased;
            closed = cancel => Err(StreamingError::Closed(closed)),
            sent = self.send_snapshot(vote, snapshot.snapshot) => sent.map_err(StreamingError::from),
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<Consensus>,
        option: RPCOption,
    ) -> Result<openraft::raft::TransferLeaderResponse<Consensus>, Error> {
        let message = wire::transfer_to_wire(&request, self.to);
        let response = within(option.soft_ttl(), self.links.control.transfer_leader(message)).await?;
        if response.refusal.is_empty() {
            return Ok(Ok(()));
        }
        Err(NetworkError::from_string(response.refusal).into())
    }

    fn backoff(&self) -> Option<Backoff> {
        Some(Backoff::new(std::iter::repeat(Duration::from_millis(BACKOFF_MS))))
    }
}

impl PeerClient {
    async fn ask_for_vote(
        &mut self,
        request: VoteRequest<Consensus>,
        option: RPCOption,
        is_pre_vote: bool,
    ) -> Result<VoteResponse<Consensus>, Error> {
        let message = wire::vote_request_to_wire(&request, self.to, is_pre_vote);
        let response = within(option.soft_ttl(), self.links.control.vote(message)).await?;
        wire::vote_response_from_wire(response).map_err(malformed)
    }

    async fn heartbeat(
        &mut self,
        request: AppendEntriesRequest<Consensus>,
        option: RPCOption,
    ) -> Result<StreamAppendResult<Consensus>, Error> {
        let message = wire::append_to_wire(request, Some(self.to));
        let response = within(option.soft_ttl(), self.links.control.heartbeat(message)).await?;
        wire::append_response_from_wire(response).map_err(malformed)
    }

    fn heartbeats<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> impl Stream<Item = Result<StreamAppendResult<Consensus>, Error>> + Send + 's
    where
        S: Stream<Item = AppendEntriesRequest<Consensus>> + Send + Unpin + 'static,
    {
        futures_util::stream::unfold(Some((self, input)), move |state| {
            let option = option.clone();
            async move {
                let (client, mut input) = state?;
                let request = input.next().await?;
                let result = client.heartbeat(request, option).await;
                let goes_on = matches!(result, Ok(Ok(_)));
                Some((result, goes_on.then_some((client, input))))
            }
        })
    }

    async fn append_stream<S>(
        &mut self,
        mut input: S,
    ) -> Result<impl Stream<Item = Result<StreamAppendResult<Consensus>, Error>> + Send + use<S>, Error>
    where
        S: Stream<Item = AppendEntriesRequest<Consensus>> + Send + Unpin + 'static,
    {
        let sent = Arc::new(AtomicU64::new(0));
        // openraft waits out its backoff when the first request is taken from it. Dialling before
        // would go round without a pause at a peer that refuses.
        let inbound = match input.next().await {
            None => None,
            Some(first) => {
                let counter = Arc::clone(&sent);
                let to = self.to;
                let requests = WithoutBareCommits::new(futures_util::stream::iter([first]).chain(input));
                let outbound = requests.map(move |request| {
                    let is_first = counter.fetch_add(1, Ordering::AcqRel) == 0;
                    wire::append_to_wire(request, is_first.then_some(to))
                });
                Some(within(Duration::from_millis(STALL_MS), self.links.bulk.append(outbound)).await?)
            }
        };
        let answers = Answers { inbound, sent, received: 0 };
        Ok(futures_util::stream::unfold(answers, |mut answers| async move {
            let next = answers.next().await?;
            Some((next, answers))
        }))
    }

    async fn send_snapshot(
        &mut self,
        vote: Vote,
        file: SnapshotFile,
    ) -> Result<SnapshotResponse<Consensus>, Error> {
        use proto::snapshot_piece::Piece;
        let (pieces, outbound) = tokio::sync::mpsc::channel(SNAPSHOT_PIECES_AHEAD);
        let head = proto::SnapshotHead {
            to: Some(self.to.into()),
            ballot: Some(wire::vote_to_wire(&vote)),
            file_bytes: file.file_bytes,
        };
        let offload = self.offload;
        let feed = async move {
            let mut next = Piece::Head(head);
            let mut at = 0;
            loop {
                let piece = proto::SnapshotPiece { piece: Some(next) };
                match tokio::time::timeout(SNAPSHOT_STALL, pieces.send(piece)).await {
                    Ok(Ok(())) => {}
                    // The call ended; its own result says why.
                    Ok(Err(_)) => return Ok::<(), Error>(()),
                    Err(_) => {
                        return Err(NetworkError::from_string("the peer takes no snapshot bytes").into());
                    }
                }
                let source = file.clone();
                let bytes = offload
                    .run(move || source.read_raw(at, PIECE_BYTES))
                    .await
                    .map_err(|error| Error::from(NetworkError::new(&error)))?;
                if bytes.is_empty() {
                    return Ok(());
                }
                at += bytes.len() as u64;
                next = Piece::Bytes(bytes);
            }
        };
        let call = self.links.snapshot.install_snapshot(ReceiverStream::new(outbound));
        let (fed, answered) = tokio::join!(feed, call);
        fed?;
        let response = answered.map_err(unreachable)?.into_inner();
        Ok(SnapshotResponse::new(wire::vote_from_wire(response.ballot).map_err(malformed)?))
    }
}

/// Appends that carry nothing but a newer commit index wait a moment for an append with entries,
/// which carries it as well.
///
/// openraft sends one after every commit that meets no new entry. With one message in flight that
/// was a second round of messages to both followers for each, and half of
/// all wake-ups. So a follower learns of the last commit of a burst [`BARE_COMMIT_WAIT`] later; nobody
/// waits for that: answers come from the leader, and a new leader commits what it holds by its own
/// first entry.
///
/// One that is dropped is never answered: openraft takes an answer for everything before it.
struct WithoutBareCommits<S> {
    /// Fused: what is held when the input ends goes out, and then the end is asked for once more.
    input: Fuse<S>,
    sent_upto: Option<LogId>,
    held: Option<AppendEntriesRequest<Consensus>>,
    wait: Pin<Box<Sleep>>,
}

impl<S: Stream> WithoutBareCommits<S> {
    fn new(input: S) -> Self {
        Self {
            input: input.fuse(),
            sent_upto: None,
            held: None,
            wait: Box::pin(tokio::time::sleep(BARE_COMMIT_WAIT)),
        }
    }
}

impl<S> Stream for WithoutBareCommits<S>
where
    S: Stream<Item = AppendEntriesRequest<Consensus>> + Unpin,
{
    type Item = AppendEntriesRequest<Consensus>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            match self.input.poll_next_unpin(context) {
                // A probe names a place where nothing was sent yet, so it is never held.
                Poll::Ready(Some(request))
                    if request.entries.is_empty()
                        && self.sent_upto.is_some()
                        && request.prev_log_id == self.sent_upto =>
                {
                    if self.held.is_none() {
                        self.wait.as_mut().reset(tokio::time::Instant::now() + BARE_COMMIT_WAIT);
                    }
                    self.held = Some(request);
                }
                Poll::Ready(Some(request)) => {
                    self.held = None;
                    self.sent_upto = request.entries.last().map(|entry| entry.log_id);
                    return Poll::Ready(Some(request));
                }
                Poll::Ready(None) => return Poll::Ready(self.held.take()),
                Poll::Pending => {
                    if self.held.is_some() && self.wait.as_mut().poll(context).is_ready() {
                        return Poll::Ready(self.held.take());
                    }
                    return Poll::Pending;
                }
            }
        }
    }
}

/// The answers on an append stream.
struct Answers {
    inbound: Option<tonic::Streaming<proto::AppendResponse>>,
    sent: Arc<AtomicU64>,
    received: u64,
}

impl Answers {
    async fn next(&mut self) -> Option<Result<StreamAppendResult<Consensus>, Error>> {
        loop {
            let inbound = self.inbound.as_mut()?;
            let owed_before = self.sent.load(Ordering::Acquire) > self.received;
            let waited = tokio::time::timeout(Duration::from_millis(STALL_MS), inbound.message()).await;
            let result = match waited {
                Ok(Ok(Some(response))) => {
                    self.received += 1;
                    wire::append_response_from_wire(response).map_err(malformed)
                }
                Ok(Ok(None)) => return None,
                Ok(Err(status)) => Err(unreachable(status)),
                Err(_) if owed_before => Err(NetworkError::from_string("no answer to an append").into()),
                Err(_) => continue,
            };
            let result = match result {
                Ok(Err(StreamAppendError::Conflict(at)))
                    if defects::is_active(Defect::CommitWithoutQuorum) =>
                {
                    Ok(Ok(Some(at)))
                }
                result => result,
            };
            if !matches!(result, Ok(Ok(_))) {
                self.inbound = None;
            }
            return Some(result);
        }
    }
}

async fn within<T>(
    ttl: Duration,
    call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, Error> {
    match tokio::time::timeout(ttl, call).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(unreachable(status)),
        Err(_) => Err(NetworkError::from_string(format!("no answer within {} ms", ttl.as_millis())).into()),
    }
}

/// The peer cannot be spoken to; openraft waits [`BACKOFF_MS`] before it tries again.
fn unreachable(status: tonic::Status) -> Error {
    Unreachable::new(&status).into()
}

fn malformed(error: wire::MalformedMessage) -> Error {
    NetworkError::new(&error).into()
}

#[cfg(test)]
mod tests {
    use ledgermq_common::{LogIndex, Term};

    use super::*;
    use crate::machine::EntryId;
    use crate::raft::vocabulary::{Entry, Payload, log_id};

    fn append(previous: u64, entries: &[u64], committed: u64) -> AppendEntriesRequest<Consensus> {
        let id = |index| log_id(EntryId { term: Term(1), index: LogIndex(index) });
        let entry = |index: &u64| Entry { log_id: id(*index), payload: Payload::Blank, payload_at: None };
        AppendEntriesRequest {
            vote: Vote::new_committed(1, 1),
            prev_log_id: Some(id(previous)),
            entries: entries.iter().map(entry).collect(),
            leader_commit: Some(id(committed)),
        }
    }

    fn committed(request: &AppendEntriesRequest<Consensus>) -> u64 {
        request.leader_commit.map_or(0, |id| id.index)
    }

    /// openraft's own input does not bear being asked again after its end.
    fn input(
        requests: Vec<AppendEntriesRequest<Consensus>>,
    ) -> impl Stream<Item = AppendEntriesRequest<Consensus>> {
        futures_util::stream::unfold(
            requests.into_iter(),
            |mut left| async move { Some((left.next()?, left)) },
        )
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_held_at_the_end_goes_out_and_the_end_is_not_asked_for_again() {
        let requests = vec![append(0, &[1], 0), append(1, &[], 1)];
        let out: Vec<_> = WithoutBareCommits::new(Box::pin(input(requests))).collect().await;
        assert_eq!(out.iter().map(committed).collect::<Vec<_>>(), [0, 1]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_bare_commit_gives_way_to_an_append_that_carries_it() {
        let requests = vec![append(0, &[1], 0), append(1, &[], 1), append(1, &[2], 1)];
        let out: Vec<_> = WithoutBareCommits::new(Box::pin(input(requests))).collect().await;
        assert_eq!(out.iter().map(|request| request.entries.len()).collect::<Vec<_>>(), [1, 1]);
    }
}
