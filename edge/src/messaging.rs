//! `apache.rocketmq.v2.MessagingService`, and our own `Batch` and `Offsets` beside it: headers in, the RPC's own module, status out.
//!
//! An error of the application is a gRPC-OK answer whose `status` says so; a gRPC error would make
//! SDKs tear the connection down.

use std::pin::Pin;
use std::task::Poll;

use async_trait::async_trait;
use futures_util::{Stream, StreamExt as _};
use ledgermq_common::QueueOffset;
use ledgermq_listener::ClientConnectInfo;
use ledgermq_proto::messaging::batch_server::Batch;
use ledgermq_proto::messaging::offsets_server::Offsets;
use ledgermq_proto::messaging::{
    CommitOffsetRequest, CommitOffsetResponse, CommittedOffsetRequest, CommittedOffsetResponse,
    StoreBatchRequest, StoreBatchResponse,
};
use ledgermq_proto::rocketmq::messaging_service_server::MessagingService;
use ledgermq_proto::rocketmq::{
    AckMessageRequest, AckMessageResponse, ChangeInvisibleDurationRequest, ChangeInvisibleDurationResponse,
    EndTransactionRequest, EndTransactionResponse, ForwardMessageToDeadLetterQueueRequest,
    ForwardMessageToDeadLetterQueueResponse, GetOffsetRequest, GetOffsetResponse, HeartbeatRequest,
    HeartbeatResponse, NotifyClientTerminationRequest, NotifyClientTerminationResponse, PullMessageRequest,
    PullMessageResponse, QueryAssignmentRequest, QueryAssignmentResponse, QueryOffsetRequest,
    QueryOffsetResponse, QueryRouteRequest, QueryRouteResponse, RecallMessageRequest, RecallMessageResponse,
    ReceiveMessageRequest, ReceiveMessageResponse, SendMessageRequest, SendMessageResponse,
    Status as RmqStatus, SyncLiteSubscriptionRequest, SyncLiteSubscriptionResponse, TelemetryCommand,
    UpdateOffsetRequest, UpdateOffsetResponse, pull_message_response, receive_message_response,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::codes::ok;
use crate::context::{CallContext, ClientLanguage};
use crate::edge::Edge;
use crate::group_call::Refused;

#[derive(Clone)]
pub struct Messaging {
    edge: Edge,
}

impl Messaging {
    pub(crate) fn new(edge: Edge) -> Self {
        Self { edge }
    }
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[async_trait]
impl MessagingService for Messaging {
    type ReceiveMessageStream = Answers<ReceiveMessageResponse>;
    type PullMessageStream = Answers<PullMessageResponse>;
    type TelemetryStream = Answers<TelemetryCommand>;

    async fn query_route(
        &self,
        request: Request<QueryRouteRequest>,
    ) -> Result<Response<QueryRouteResponse>, Status> {
        let (context, request) = open(request);
        let answer = async { self.edge.query_route(&context.clone()?, &request).await }.await;
        Ok(Response::new(answer.unwrap_or_else(|refused| QueryRouteResponse {
            status: Some(status(&context, refused)),
            ..QueryRouteResponse::default()
        })))
    }

    async fn heartbeat(
        &self,
        request: Request<HeartbeatRequest>,
    ) -> Result<Response<HeartbeatResponse>, Status> {
        let (context, request) = open(request);
        let answer = async { self.edge.heartbeat(&context.clone()?, &request).await }.await;
        Ok(Response::new(
            answer.unwrap_or_else(|refused| HeartbeatResponse { status: Some(status(&context, refused)) }),
        ))
    }

    async fn send_message(
        &self,
        request: Request<SendMessageRequest>,
    ) -> Result<Response<SendMessageResponse>, Status> {
        let (context, request) = open(request);
        Ok(Response::new(match context {
            Ok(context) => self.edge.send_message(&context, request).await,
            Err(refused) => SendMessageResponse {
                status: Some(refused.into_status(ClientLanguage::Other)),
                ..SendMessageResponse::default()
            },
        }))
    }

    async fn query_assignment(
        &self,
        request: Request<QueryAssignmentRequest>,
    ) -> Result<Response<QueryAssignmentResponse>, Status> {
        let (context, request) = open(request);
        let answer = async { self.edge.query_assignment(&context.clone()?, &request).await }.await;
        Ok(Response::new(answer.unwrap_or_else(|refused| QueryAssignmentResponse {
            status: Some(status(&context, refused)),
            ..QueryAssignmentResponse::default()
        })))
    }

    async fn receive_message(
        &self,
        request: Request<ReceiveMessageRequest>,
    ) -> Result<Response<Self::ReceiveMessageStream>, Status> {
        let (context, request) = open(request);
        let context = match context {
            Ok(context) => context,
            Err(refused) => {
                let content =
                    receive_message_response::Content::Status(refused.into_status(ClientLanguage::Other));
                return Ok(Response::new(one(ReceiveMessageResponse { content: Some(content) })));
            }
        };
        let edge = self.edge.clone();
        // The poll lives in the answer's stream: a client that goes away drops it, and with it the poll.
        let items = async move { edge.receive_message(&context, request).await };
        let stream = futures_util::stream::once(items).flat_map(|(items, arrival)| {
            // Asked for what comes after the last item, the connection has taken that one. The encoder
            // looks ahead as long as it is answered at once, so the first question is not.
            let mut is_looking_ahead = arrival.is_awaited();
            let taken = futures_util::stream::poll_fn(move |context| {
                if std::mem::take(&mut is_looking_ahead) {
                    context.waker().wake_by_ref();
                    return Poll::Pending;
                }
                arrival.confirm();
                Poll::Ready(None)
            });
            futures_util::stream::iter(items.into_iter().map(Ok)).chain(taken)
        });
        Ok(Response::new(Box::pin(stream)))
    }

    async fn ack_message(
        &self,
        request: Request<AckMessageRequest>,
    ) -> Result<Response<AckMessageResponse>, Status> {
        let (context, request) = open(request);
        let answer = async { self.edge.ack_message(&context.clone()?, request).await }.await;
        Ok(Response::new(answer.unwrap_or_else(|refused| AckMessageResponse {
            status: Some(status(&context, refused)),
            ..AckMessageResponse::default()
        })))
    }

    async fn change_invisible_duration(
        &self,
        request: Request<ChangeInvisibleDurationRequest>,
    ) -> Result<Response<ChangeInvisibleDurationResponse>, Status> {
        let (context, request) = open(request);
        let answer = async { self.edge.change_invisible_duration(&context.clone()?, request).await }.await;
        Ok(Response::new(answer.unwrap_or_else(|refused| ChangeInvisibleDurationResponse {
            status: Some(status(&context, refused)),
            ..ChangeInvisibleDurationResponse::default()
        })))
    }

    async fn telemetry(
        &self,
        request: Request<Streaming<TelemetryCommand>>,
    ) -> Result<Response<Self::TelemetryStream>, Status> {
        let (context, commands) = open(request);
        match context {
            Ok(context) => {
                let replies = self.edge.telemetry(context, commands);
                Ok(Response::new(Box::pin(ReceiverStream::new(replies))))
            }
            Err(refused) => Ok(Response::new(one(TelemetryCommand {
                status: Some(refused.into_status(ClientLanguage::Other)),
                command: None,
            }))),
        }
    }

    async fn notify_client_termination(
        &self,
        request: Request<NotifyClientTerminationRequest>,
    ) -> Result<Response<NotifyClientTerminationResponse>, Status> {
        let (context, request) = open(request);
        let answer = async { self.edge.notify_client_termination(&context.clone()?, &request).await }.await;
        Ok(Response::new(answer.unwrap_or_else(|refused| NotifyClientTerminationResponse {
            status: Some(status(&context, refused)),
        })))
    }

    async fn pull_message(
        &self,
        request: Request<PullMessageRequest>,
    ) -> Result<Response<Self::PullMessageStream>, Status> {
        let (context, request) = open(request);
        let context = match context {
            Ok(context) => context,
            Err(refused) => {
                let content =
                    pull_message_response::Content::Status(refused.into_status(ClientLanguage::Other));
                return Ok(Response::new(one(PullMessageResponse { content: Some(content) })));
            }
        };
        let edge = self.edge.clone();
        let items = async move { edge.pull_message(&context, request).await };
        let stream = futures_util::stream::once(items)
            .flat_map(|items| futures_util::stream::iter(items.into_iter().map(Ok)));
        Ok(Response::new(Box::pin(stream)))
    }

    async fn forward_message_to_dead_letter_queue(
        &self,
        request: Request<ForwardMessageToDeadLetterQueueRequest>,
    ) -> Result<Response<ForwardMessageToDeadLetterQueueResponse>, Status> {
        let (context, request) = open(request);
        let answer = async { self.edge.forward_to_dead_letter_queue(&context.clone()?, request).await }.await;
        Ok(Response::new(answer.unwrap_or_else(|refused| ForwardMessageToDeadLetterQueueResponse {
            status: Some(status(&context, refused)),
        })))
    }

    async fn end_transaction(
        &self,
        request: Request<EndTransactionRequest>,
    ) -> Result<Response<EndTransactionResponse>, Status> {
        let (context, request) = open(request);
        let answer = async { self.edge.end_transaction(&context.clone()?, request).await }.await;
        Ok(Response::new(
            answer
                .unwrap_or_else(|refused| EndTransactionResponse { status: Some(status(&context, refused)) }),
        ))
    }

    async fn recall_message(
        &self,
        request: Request<RecallMessageRequest>,
    ) -> Result<Response<RecallMessageResponse>, Status> {
        let (context, request) = open(request);
        let answer = async { self.edge.recall_message(&context.clone()?, request).await }.await;
        Ok(Response::new(answer.unwrap_or_else(|refused| RecallMessageResponse {
            status: Some(status(&context, refused)),
            ..RecallMessageResponse::default()
        })))
    }

    async fn update_offset(
        &self,
        request: Request<UpdateOffsetRequest>,
    ) -> Result<Response<UpdateOffsetResponse>, Status> {
        let (context, request) = open(request);
        let answer = async { self.edge.update_offset(&context.clone()?, &request).await }.await;
        let status = answer.map_or_else(|refused| status(&context, refused), |()| ok());
        Ok(Response::new(UpdateOffsetResponse { status: Some(status) }))
    }

    async fn get_offset(
        &self,
        request: Request<GetOffsetRequest>,
    ) -> Result<Response<GetOffsetResponse>, Status> {
        let (context, request) = open(request);
        let answer = async { self.edge.get_offset(&context.clone()?, &request).await }.await;
        let (status, offset) = offset_answer(&context, answer);
        Ok(Response::new(GetOffsetResponse { status: Some(status), offset }))
    }

    async fn query_offset(
        &self,
        request: Request<QueryOffsetRequest>,
    ) -> Result<Response<QueryOffsetResponse>, Status> {
        let (context, request) = open(request);
        let answer = async { self.edge.query_offset(&context.clone()?, &request).await }.await;
        let (status, offset) = offset_answer(&context, answer);
        Ok(Response::new(QueryOffsetResponse { status: Some(status), offset }))
    }

    async fn sync_lite_subscription(
        &self,
        request: Request<SyncLiteSubscriptionRequest>,
    ) -> Result<Response<SyncLiteSubscriptionResponse>, Status> {
        let (context, request) = open(request);
        let answer = async { self.edge.sync_lite_subscription(&context.clone()?, request).await }.await;
        let status = Some(answer.map_or_else(|refused| status(&context, refused), |()| ok()));
        Ok(Response::new(SyncLiteSubscriptionResponse { status }))
    }
}

#[async_trait]
impl Batch for Messaging {
    async fn store_batch(
        &self,
        request: Request<StoreBatchRequest>,
    ) -> Result<Response<StoreBatchResponse>, Status> {
        let (context, request) = open(request);
        let answer = async { self.edge.store_batch(&context.clone()?, request).await }.await;
        Ok(Response::new(answer.unwrap_or_else(|refused| StoreBatchResponse {
            status: Some(status(&context, refused)),
            ..StoreBatchResponse::default()
        })))
    }
}

#[async_trait]
impl Offsets for Messaging {
    async fn committed_offset(
        &self,
        request: Request<CommittedOffsetRequest>,
    ) -> Result<Response<CommittedOffsetResponse>, Status> {
        let (context, request) = open(request);
        let answer = async { self.edge.committed_offset(&context.clone()?, &request).await }.await;
        Ok(Response::new(match answer {
            Ok(committed) => CommittedOffsetResponse {
                status: Some(ok()),
                offset: committed.offset.map(QueueOffset::get),
                last_reset: committed.last_reset.get(),
            },
            Err(refused) => CommittedOffsetResponse {
                status: Some(status(&context, refused)),
                ..CommittedOffsetResponse::default()
            },
        }))
    }

    async fn commit_offset(
        &self,
        request: Request<CommitOffsetRequest>,
    ) -> Result<Response<CommitOffsetResponse>, Status> {
        let (context, request) = open(request);
        let answer = async { self.edge.commit_offset(&context.clone()?, &request).await }.await;
        Ok(Response::new(answer.unwrap_or_else(|refused| CommitOffsetResponse {
            status: Some(status(&context, refused)),
            superseded: None,
        })))
    }
}

/// Reads the headers. The connection's address is there whatever kind of listener took it.
fn open<T>(request: Request<T>) -> (Result<CallContext, Refused>, T) {
    let connection = request.extensions().get::<ClientConnectInfo>();
    let peer = connection.map(|connection| connection.peer_addr).or_else(|| request.remote_addr());
    let context = CallContext::from_metadata(request.metadata(), peer);
    (context, request.into_inner())
}

fn status(context: &Result<CallContext, Refused>, refused: Refused) -> RmqStatus {
    refused.into_status(context.as_ref().map_or(ClientLanguage::Other, |context| context.language))
}

fn offset_answer(
    context: &Result<CallContext, Refused>,
    answer: Result<QueueOffset, Refused>,
) -> (RmqStatus, i64) {
    match answer {
        Ok(offset) => (ok(), i64::try_from(offset.get()).unwrap_or(i64::MAX)),
        Err(refused) => (status(context, refused), 0),
    }
}

fn one<T: Send + 'static>(item: T) -> Answers<T> {
    Box::pin(futures_util::stream::once(std::future::ready(Ok(item))))
}
