//! A small server of the protocol, whose answers a test chooses.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ledgermq_proto::messaging::offsets_server::{Offsets, OffsetsServer};
use ledgermq_proto::messaging::{
    CommitOffsetRequest, CommitOffsetResponse, CommittedOffsetRequest, CommittedOffsetResponse,
};
use ledgermq_proto::rocketmq as wire;
use ledgermq_proto::rocketmq::messaging_service_server::{MessagingService, MessagingServiceServer};
use parking_lot::Mutex;
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// How a server treats the next sends; the last one stays in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    Store,
    /// Stores, but the answer never comes.
    StoreInSilence,
    Answer(wire::Code),
    Reject,
}

#[derive(Default)]
pub struct Seen {
    /// Message ids in the order of their arrival, repeats included.
    pub arrivals: Vec<String>,
    pub stored: BTreeMap<String, i64>,
    pub client_ids: Vec<String>,
    pub settings: usize,
    pub heartbeats: usize,
    pub terminations: usize,
    pub deliveries: Vec<wire::Message>,
    pub acked: Vec<String>,
    /// What lies in the one queue, by offset.
    pub queue: Vec<wire::Message>,
    pub pulls_from: Vec<i64>,
    /// So many pulls are cut after their first message.
    pub pulls_to_cut: usize,
}

pub struct Server {
    pub address: SocketAddr,
    pub seen: Arc<Mutex<Seen>>,
    moods: Arc<Mutex<Vec<Mood>>>,
    arrivals: Arc<AtomicUsize>,
}

impl Server {
    pub async fn start(moods: &[Mood]) -> Self {
        Self::start_with(Arc::default(), moods).await
    }

    /// Several servers with the same `seen` are one cluster.
    pub async fn start_with(seen: Arc<Mutex<Seen>>, moods: &[Mood]) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let moods = Arc::new(Mutex::new(moods.to_vec()));
        let arrivals = Arc::new(AtomicUsize::new(0));
        let node = Node { seen: seen.clone(), moods: moods.clone(), arrivals: arrivals.clone() };
        let offsets = OffsetsServer::new(node.clone());
        tokio::spawn(async move {
            let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
            // As a broker has it.
            tonic::transport::Server::builder()
                .max_concurrent_streams(16_384)
                .add_service(MessagingServiceServer::new(node))
                .add_service(offsets)
                .serve_with_incoming(incoming)
                .await
                .unwrap();
        });
        Self { address, seen, moods, arrivals }
    }

    /// Sends that came to this server of the cluster.
    pub fn arrivals(&self) -> usize {
        self.arrivals.load(Ordering::Relaxed)
    }

    pub fn set_moods(&self, moods: &[Mood]) {
        *self.moods.lock() = moods.to_vec();
    }
}

#[derive(Clone)]
struct Node {
    seen: Arc<Mutex<Seen>>,
    moods: Arc<Mutex<Vec<Mood>>>,
    arrivals: Arc<AtomicUsize>,
}

impl Node {
    fn mood(&self) -> Mood {
        let mut moods = self.moods.lock();
        match moods.len() {
            0 => Mood::Store,
            1 => moods[0],
            _ => moods.remove(0),
        }
    }
}

fn status(code: wire::Code) -> Option<wire::Status> {
    Some(wire::Status { code: code as i32, message: "said the test".to_owned() })
}

fn not_here<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("not part of this test"))
}

#[tonic::async_trait]
impl MessagingService for Node {
    type ReceiveMessageStream = Answers<wire::ReceiveMessageResponse>;
    type PullMessageStream = Answers<wire::PullMessageResponse>;
    type TelemetryStream = Answers<wire::TelemetryCommand>;

    async fn query_route(
        &self,
        request: Request<wire::QueryRouteRequest>,
    ) -> Result<Response<wire::QueryRouteResponse>, Status> {
        let queue = wire::MessageQueue {
            topic: request.into_inner().topic,
            broker: Some(wire::Broker { name: "group-1".to_owned(), ..Default::default() }),
            ..Default::default()
        };
        Ok(Response::new(wire::QueryRouteResponse {
            status: status(wire::Code::Ok),
            message_queues: vec![queue],
        }))
    }

    async fn heartbeat(
        &self,
        _: Request<wire::HeartbeatRequest>,
    ) -> Result<Response<wire::HeartbeatResponse>, Status> {
        self.seen.lock().heartbeats += 1;
        Ok(Response::new(wire::HeartbeatResponse { status: status(wire::Code::Ok) }))
    }

    async fn send_message(
        &self,
        request: Request<wire::SendMessageRequest>,
    ) -> Result<Response<wire::SendMessageResponse>, Status> {
        let client_id = request.metadata().get("x-mq-client-id").map(|id| id.to_str().unwrap().to_owned());
        assert!(request.metadata().contains_key("grpc-timeout"), "a request without a deadline");
        self.arrivals.fetch_add(1, Ordering::Relaxed);
        let mood = self.mood();
        let mut entries = Vec::new();
        {
            let mut seen = self.seen.lock();
            seen.client_ids.extend(client_id);
            for message in request.into_inner().messages {
                let id = message.system_properties.unwrap().message_id;
                seen.arrivals.push(id.clone());
                let next = i64::try_from(seen.stored.len()).unwrap();
                if matches!(mood, Mood::Store | Mood::StoreInSilence) {
                    let offset = *seen.stored.entry(id.clone()).or_insert(next);
                    entries.push(wire::SendResultEntry {
                        status: status(wire::Code::Ok),
                        message_id: id,
                        offset,
                        ..Default::default()
                    });
                }
            }
        }
        match mood {
            Mood::Store => {
                Ok(Response::new(wire::SendMessageResponse { status: status(wire::Code::Ok), entries }))
            }
            Mood::StoreInSilence => std::future::pending().await,
            Mood::Answer(code) => {
                Ok(Response::new(wire::SendMessageResponse { status: status(code), entries: Vec::new() }))
            }
            Mood::Reject => Err(Status::invalid_argument("said the test")),
        }
    }

    async fn receive_message(
        &self,
        request: Request<wire::ReceiveMessageRequest>,
    ) -> Result<Response<Self::ReceiveMessageStream>, Status> {
        use wire::receive_message_response::Content;
        let request = request.into_inner();
        assert_eq!(request.message_queue.unwrap().broker.unwrap().name, "group-1");
        let deliveries = std::mem::take(&mut self.seen.lock().deliveries);
        let code = if deliveries.is_empty() { wire::Code::MessageNotFound } else { wire::Code::Ok };
        let mut items = vec![Content::Status(status(code).unwrap())];
        items.extend(deliveries.into_iter().map(Content::Message));
        items.push(Content::DeliveryTimestamp(prost_types::Timestamp::default()));
        let items: Vec<_> = items
            .into_iter()
            .map(|content| Ok(wire::ReceiveMessageResponse { content: Some(content) }))
            .collect();
        Ok(Response::new(Box::pin(tokio_stream::iter(items))))
    }

    async fn ack_message(
        &self,
        request: Request<wire::AckMessageRequest>,
    ) -> Result<Response<wire::AckMessageResponse>, Status> {
        let entries = request
            .into_inner()
            .entries
            .into_iter()
            .map(|entry| {
                let known = entry.receipt_handle.starts_with("good");
                if known {
                    self.seen.lock().acked.push(entry.message_id.clone());
                }
                wire::AckMessageResultEntry {
                    message_id: entry.message_id,
                    receipt_handle: entry.receipt_handle,
                    status: status(if known { wire::Code::Ok } else { wire::Code::InvalidReceiptHandle }),
                }
            })
            .collect();
        Ok(Response::new(wire::AckMessageResponse { status: status(wire::Code::MultipleResults), entries }))
    }

    async fn telemetry(
        &self,
        request: Request<tonic::Streaming<wire::TelemetryCommand>>,
    ) -> Result<Response<Self::TelemetryStream>, Status> {
        let seen = self.seen.clone();
        let mut commands = request.into_inner();
        let (sender, answers) = tokio::sync::mpsc::channel(4);
        tokio::spawn(async move {
            while let Ok(Some(command)) = commands.message().await {
                if matches!(command.command, Some(wire::telemetry_command::Command::Settings(_))) {
                    seen.lock().settings += 1;
                }
                if sender.send(Ok(command)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(tokio_stream::wrappers::ReceiverStream::new(answers))))
    }

    async fn notify_client_termination(
        &self,
        _: Request<wire::NotifyClientTerminationRequest>,
    ) -> Result<Response<wire::NotifyClientTerminationResponse>, Status> {
        self.seen.lock().terminations += 1;
        Ok(Response::new(wire::NotifyClientTerminationResponse { status: status(wire::Code::Ok) }))
    }

    async fn query_assignment(
        &self,
        _: Request<wire::QueryAssignmentRequest>,
    ) -> Result<Response<wire::QueryAssignmentResponse>, Status> {
        not_here()
    }

    async fn forward_message_to_dead_letter_queue(
        &self,
        _: Request<wire::ForwardMessageToDeadLetterQueueRequest>,
    ) -> Result<Response<wire::ForwardMessageToDeadLetterQueueResponse>, Status> {
        not_here()
    }

    async fn pull_message(
        &self,
        request: Request<wire::PullMessageRequest>,
    ) -> Result<Response<Self::PullMessageStream>, Status> {
        use wire::pull_message_response::Content;
        let from = request.into_inner().offset;
        let mut seen = self.seen.lock();
        seen.pulls_from.push(from);
        let mut items = vec![Content::Status(status(wire::Code::Ok).unwrap())];
        items.extend(seen.queue.iter().skip(from.try_into().unwrap()).cloned().map(Content::Message));
        items.push(Content::NextOffset(seen.queue.len().try_into().unwrap()));
        let mut items: Vec<_> = items
            .into_iter()
            .map(|content| Ok(wire::PullMessageResponse { content: Some(content) }))
            .collect();
        if seen.pulls_to_cut > 0 {
            seen.pulls_to_cut -= 1;
            items.truncate(2);
            items.push(Err(Status::unavailable("said the test")));
        }
        Ok(Response::new(Box::pin(tokio_stream::iter(items))))
    }

    async fn update_offset(
        &self,
        _: Request<wire::UpdateOffsetRequest>,
    ) -> Result<Response<wire::UpdateOffsetResponse>, Status> {
        not_here()
    }

    async fn get_offset(
        &self,
        _: Request<wire::GetOffsetRequest>,
    ) -> Result<Response<wire::GetOffsetResponse>, Status> {
        Ok(Response::new(wire::GetOffsetResponse { status: status(wire::Code::OffsetNotFound), offset: 0 }))
    }

    async fn query_offset(
        &self,
        _: Request<wire::QueryOffsetRequest>,
    ) -> Result<Response<wire::QueryOffsetResponse>, Status> {
        Ok(Response::new(wire::QueryOffsetResponse { status: status(wire::Code::Ok), offset: 0 }))
    }

    async fn end_transaction(
        &self,
        _: Request<wire::EndTransactionRequest>,
    ) -> Result<Response<wire::EndTransactionResponse>, Status> {
        not_here()
    }

    async fn change_invisible_duration(
        &self,
        _: Request<wire::ChangeInvisibleDurationRequest>,
    ) -> Result<Response<wire::ChangeInvisibleDurationResponse>, Status> {
        not_here()
    }

    async fn recall_message(
        &self,
        _: Request<wire::RecallMessageRequest>,
    ) -> Result<Response<wire::RecallMessageResponse>, Status> {
        not_here()
    }

    async fn sync_lite_subscription(
        &self,
        _: Request<wire::SyncLiteSubscriptionRequest>,
    ) -> Result<Response<wire::SyncLiteSubscriptionResponse>, Status> {
        not_here()
    }
}

#[tonic::async_trait]
impl Offsets for Node {
    async fn committed_offset(
        &self,
        _: Request<CommittedOffsetRequest>,
    ) -> Result<Response<CommittedOffsetResponse>, Status> {
        Ok(Response::new(CommittedOffsetResponse {
            status: status(wire::Code::Ok),
            offset: None,
            last_reset: 0,
        }))
    }

    async fn commit_offset(
        &self,
        _: Request<CommitOffsetRequest>,
    ) -> Result<Response<CommitOffsetResponse>, Status> {
        not_here()
    }
}
