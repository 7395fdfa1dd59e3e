//! The answering side, on the peer port of every broker.

use std::collections::{BTreeMap, HashMap};
use std::pin::Pin;
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::{Stream, StreamExt as _};
use ledgermq_common::GroupName;
use ledgermq_proto::forward as pb;
use ledgermq_proto::forward::forward_frame::Content;
use ledgermq_proto::forward::forward_server::{Forward, ForwardServer};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::{
    FRAME_BYTES_MAX, FRAMES_QUEUED_MAX, IN_FLIGHT_PER_LINK_MAX, UNCONFIRMED_PER_LINK_MAX, batches, wire,
};
use crate::arrival::Arrival;
use crate::group_call::{GroupRequest, GroupResponse, LocalGroups, NotExecuted};

/// Add `forward_service(groups)` to the router of the peer port. The requests it takes run on the runtime
/// it is made in, whichever serves the port: there may be more of them than heartbeats can wait for.
pub fn forward_service(local: Arc<dyn LocalGroups>) -> ForwardServer<ForwardService> {
    ForwardServer::new(ForwardService { local, runtime: Handle::current() })
        .max_decoding_message_size(FRAME_BYTES_MAX)
        .max_encoding_message_size(FRAME_BYTES_MAX)
}

pub struct ForwardService {
    local: Arc<dyn LocalGroups>,
    runtime: Handle,
}

#[async_trait]
impl Forward for ForwardService {
    type ExchangeStream = Pin<Box<dyn Stream<Item = Result<pb::ForwardBatch, Status>> + Send>>;

    async fn exchange(
        &self,
        request: Request<Streaming<pb::ForwardBatch>>,
    ) -> Result<Response<Self::ExchangeStream>, Status> {
        let mut incoming = request.into_inner();
        let (replies, queued) = mpsc::channel(FRAMES_QUEUED_MAX);
        let exchange = Arc::new(Exchange {
            local: self.local.clone(),
            replies,
            in_flight: Arc::new(Semaphore::new(IN_FLIGHT_PER_LINK_MAX)),
            cancels: Mutex::new(HashMap::new()),
            unconfirmed: Mutex::new(BTreeMap::new()),
        });
        let closed = CancellationToken::new();
        self.runtime.spawn(async move {
            // The peer has gone: its long polls must not take messages for nobody.
            let _cancel_all = closed.clone().drop_guard();
            while let Some(Ok(batch)) = incoming.next().await {
                for frame in batch.frames {
                    exchange.clone().take(frame, &closed);
                }
            }
        });
        Ok(Response::new(Box::pin(batches(queued).map(Ok))))
    }

    async fn leaders(
        &self,
        _request: Request<pb::LeadersRequest>,
    ) -> Result<Response<pb::LeadersResponse>, Status> {
        let leaders = self
            .local
            .hosted()
            .into_iter()
            .filter_map(|group| {
                let known = *self.local.leadership(&group)?.borrow();
                Some(pb::GroupLeader {
                    group: group.as_str().to_owned(),
                    term: known.term.get(),
                    leader: known.leader.map(|node| node.get()),
                })
            })
            .collect();
        Ok(Response::new(pb::LeadersResponse { leaders }))
    }
}

struct Exchange {
    local: Arc<dyn LocalGroups>,
    replies: mpsc::Sender<pb::ForwardFrame>,
    in_flight: Arc<Semaphore>,
    /// Requests that may be given up: long polls.
    cancels: Mutex<HashMap<u64, CancellationToken>>,
    /// Answers the peer has and has not told yet what became of. They end with the link.
    unconfirmed: Mutex<BTreeMap<u64, Arrival>>,
}

impl Exchange {
    fn take(self: Arc<Self>, frame: pb::ForwardFrame, closed: &CancellationToken) {
        let correlation = frame.correlation;
        match frame.content {
            Some(Content::Request(request)) => {
                let cancel = closed.child_token();
                tokio::spawn(async move {
                    if let Some(reply) = self.answer(correlation, request, cancel).await {
                        let frame = pb::ForwardFrame { correlation, content: Some(Content::Reply(reply)) };
                        // An error means that the peer has gone, and with it whoever asked.
                        let _ = self.replies.send(frame).await;
                    }
                });
            }
            Some(Content::Cancel(pb::Cancel {})) => {
                if let Some(cancel) = self.cancels.lock().remove(&correlation) {
                    cancel.cancel();
                }
                self.unconfirmed.lock().remove(&correlation);
            }
            Some(Content::Arrived(pb::Arrived {})) => {
                let arrival = self.unconfirmed.lock().remove(&correlation);
                if let Some(arrival) = arrival {
                    arrival.confirm();
                }
            }
            // A reply without a question, or content of a newer version: nothing to do.
            Some(Content::Reply(_)) | None => {}
        }
    }

    async fn answer(
        &self,
        correlation: u64,
        request: pb::ForwardRequest,
        cancel: CancellationToken,
    ) -> Option<pb::ForwardReply> {
        let Ok(_permit) = self.in_flight.clone().try_acquire_owned() else {
            return Some(wire::reply(Err(NotExecuted::Overloaded {
                limit: format!("requests in flight of one peer ({IN_FLIGHT_PER_LINK_MAX})"),
            })));
        };
        let (group, context, request) = match wire::read_request(request) {
            Ok(parts) => parts,
            Err(refused) => return Some(wire::refused(&refused)),
        };
        if !context.remaining().is_zero() {
            let answer = self.execute(correlation, &group, &context, &request, cancel).await?;
            if let Ok(GroupResponse::Receive(received)) = &answer
                && received.arrival.is_awaited()
            {
                self.await_arrival(correlation, received.arrival.clone());
            }
            Some(wire::reply(answer))
        } else {
            Some(wire::reply(Err(NotExecuted::DeadlinePassed)))
        }
    }

    fn await_arrival(&self, correlation: u64, arrival: Arrival) {
        let mut unconfirmed = self.unconfirmed.lock();
        if unconfirmed.len() >= UNCONFIRMED_PER_LINK_MAX {
            // The oldest: its word was lost, or its client takes very long.
            unconfirmed.pop_first();
        }
        unconfirmed.insert(correlation, arrival);
    }

    async fn execute(
        &self,
        correlation: u64,
        group: &GroupName,
        context: &crate::context::CallContext,
        request: &GroupRequest,
        cancel: CancellationToken,
    ) -> Option<Result<GroupResponse, NotExecuted>> {
        if !request.is_long_poll() {
            return Some(self.local.execute(group, context, request).await);
        }
        self.cancels.lock().insert(correlation, cancel.clone());
        let answer = tokio::select! {
            answer = self.local.execute(group, context, request) => Some(answer),
            () = cancel.cancelled() => None,
        };
        self.cancels.lock().remove(&correlation);
        answer
    }
}
