//! The least a RocketMQ client does, over the generated stubs.

use std::time::Duration;

use bytes::Bytes;
use ledgermq_proto::messaging::batch_client::BatchClient;
use ledgermq_proto::messaging::{StoreBatchRequest, StoreBatchResponse};
use ledgermq_proto::rocketmq::messaging_service_client::MessagingServiceClient;
use ledgermq_proto::rocketmq::receive_message_response::Content;
use ledgermq_proto::rocketmq::{
    AckMessageEntry, AckMessageRequest, Broker, ChangeInvisibleDurationRequest,
    ChangeInvisibleDurationResponse, Code, Encoding, FilterExpression, FilterType,
    ForwardMessageToDeadLetterQueueRequest, GetOffsetRequest, Message, MessageQueue,
    NotifyClientTerminationRequest, PullMessageRequest, QueryOffsetPolicy, QueryOffsetRequest,
    RecallMessageRequest, RecallMessageResponse, ReceiveMessageRequest, Resource, SendMessageRequest,
    SendMessageResponse, SystemProperties, UpdateOffsetRequest, pull_message_response,
};
use tonic::Request;
use tonic::transport::{Channel, Endpoint};

/// What the SDKs wait for an answer.
pub const UNARY_DEADLINE: Duration = Duration::from_secs(3);

#[derive(Clone)]
pub struct Client {
    stub: MessagingServiceClient<Channel>,
    batches: BatchClient<Channel>,
    id: String,
}

/// A receive as the test asks for it.
#[derive(Clone)]
pub struct Receive {
    pub batch: i32,
    pub poll: Duration,
    pub invisible: Duration,
    pub tags: Option<String>,
    /// An expression, where there are no tags.
    pub sql: Option<String>,
    pub auto_renew: bool,
    /// The broker group to receive from.
    pub broker: String,
}

/// A pull as the test asks for it.
#[derive(Clone, Copy)]
pub struct Pull {
    pub queue: i32,
    pub offset: i64,
    pub batch: i32,
    pub poll: Duration,
}

impl Default for Pull {
    fn default() -> Self {
        Self { queue: 0, offset: 0, batch: 32, poll: Duration::ZERO }
    }
}

impl Default for Receive {
    fn default() -> Self {
        Self {
            batch: 32,
            poll: Duration::from_secs(5),
            invisible: Duration::from_secs(30),
            tags: None,
            sql: None,
            auto_renew: false,
            broker: "g".to_owned(),
        }
    }
}

impl Client {
    pub async fn connect(address: &str) -> Self {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
        let channel = endpoint.connect().await.expect("a broker that listens");
        let id = format!("test@{address}@{:p}", &raw const channel);
        Self { batches: BatchClient::new(channel.clone()), stub: MessagingServiceClient::new(channel), id }
    }

    /// The same connection as another client.
    pub fn named(mut self, id: &str) -> Self {
        id.clone_into(&mut self.id);
        self
    }

    pub fn stub(&self) -> MessagingServiceClient<Channel> {
        self.stub.clone()
    }

    pub fn request<T>(&self, message: T, deadline: Duration) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(deadline);
        let metadata = request.metadata_mut();
        metadata.insert("x-mq-client-id", self.id.parse().expect("a header"));
        metadata.insert("x-mq-language", "JAVA".parse().expect("a header"));
        metadata.insert("x-mq-client-version", "5.0.8".parse().expect("a header"));
        request
    }

    pub async fn try_send(&self, messages: Vec<Message>) -> Result<SendMessageResponse, tonic::Status> {
        let request = self.request(SendMessageRequest { messages }, UNARY_DEADLINE);
        self.stub.clone().send_message(request).await.map(tonic::Response::into_inner)
    }

    pub async fn try_batch(&self, messages: Vec<Message>) -> Result<StoreBatchResponse, tonic::Status> {
        let request = StoreBatchRequest { messages, broker_group: String::new() };
        let request = self.request(request, UNARY_DEADLINE);
        self.batches.clone().store_batch(request).await.map(tonic::Response::into_inner)
    }

    /// Stores a batch and answers where.
    pub async fn batch(&self, messages: Vec<Message>) -> StoreBatchResponse {
        let response = self.try_batch(messages).await.expect("an answer");
        assert_eq!(code(response.status.as_ref()), Code::Ok, "{response:?}");
        response
    }

    /// Sends one message and answers its offset.
    pub async fn send(&self, message: Message) -> i64 {
        let response = self.try_send(vec![message]).await.expect("an answer");
        assert_eq!(code(response.status.as_ref()), Code::Ok, "{response:?}");
        assert_eq!(response.entries.len(), 1);
        response.entries[0].offset
    }

    pub async fn receive(&self, topic: &str, group: &str, receive: Receive) -> (Code, Vec<Message>) {
        let request = ReceiveMessageRequest {
            group: Some(resource(group)),
            message_queue: Some(MessageQueue {
                topic: Some(resource(topic)),
                id: -1,
                broker: Some(Broker { name: receive.broker, ..Broker::default() }),
                ..MessageQueue::default()
            }),
            filter_expression: match (receive.tags, receive.sql) {
                (Some(expression), _) => {
                    Some(FilterExpression { r#type: FilterType::Tag as i32, expression })
                }
                (None, Some(expression)) => {
                    Some(FilterExpression { r#type: FilterType::Sql as i32, expression })
                }
                (None, None) => None,
            },
            batch_size: receive.batch,
            invisible_duration: Some(duration(receive.invisible)),
            auto_renew: receive.auto_renew,
            long_polling_timeout: Some(duration(receive.poll)),
            attempt_id: None,
        };
        let request = self.request(request, receive.poll + Duration::from_secs(3));
        let mut stream = self.stub.clone().receive_message(request).await.expect("a stream").into_inner();
        let mut received = (None, Vec::new(), None);
        while let Some(item) = stream.message().await.expect("the end of the stream") {
            match item.content.expect("content") {
                Content::Status(status) => {
                    assert!(received.1.is_empty(), "the status comes first");
                    received.0 = Some(code(Some(&status)));
                }
                Content::Message(message) => received.1.push(message),
                Content::DeliveryTimestamp(at) => received.2 = Some(at),
            }
        }
        assert!(received.2.is_some(), "a stream without delivery timestamp stalls the Python SDK");
        (received.0.expect("a status"), received.1)
    }

    pub async fn ack(&self, topic: &str, group: &str, message: &Message) -> Code {
        self.ack_handle(topic, group, handle(message)).await
    }

    pub async fn ack_handle(&self, topic: &str, group: &str, receipt_handle: &str) -> Code {
        let request = AckMessageRequest {
            group: Some(resource(group)),
            topic: Some(resource(topic)),
            entries: vec![AckMessageEntry {
                message_id: "any".to_owned(),
                receipt_handle: receipt_handle.to_owned(),
                lite_topic: None,
            }],
        };
        let request = self.request(request, UNARY_DEADLINE);
        let response = self.stub.clone().ack_message(request).await.expect("an answer").into_inner();
        code(response.status.as_ref())
    }

    pub async fn change_invisible(
        &self,
        topic: &str,
        group: &str,
        receipt_handle: &str,
        invisible: Duration,
    ) -> ChangeInvisibleDurationResponse {
        let request = ChangeInvisibleDurationRequest {
            group: Some(resource(group)),
            topic: Some(resource(topic)),
            receipt_handle: receipt_handle.to_owned(),
            invisible_duration: Some(duration(invisible)),
            message_id: "any".to_owned(),
            ..ChangeInvisibleDurationRequest::default()
        };
        let request = self.request(request, UNARY_DEADLINE);
        self.stub.clone().change_invisible_duration(request).await.expect("an answer").into_inner()
    }

    pub async fn forward(&self, topic: &str, group: &str, receipt_handle: &str, id: &str) -> Code {
        let request = ForwardMessageToDeadLetterQueueRequest {
            group: Some(resource(group)),
            topic: Some(resource(topic)),
            receipt_handle: receipt_handle.to_owned(),
            message_id: id.to_owned(),
            ..ForwardMessageToDeadLetterQueueRequest::default()
        };
        let request = self.request(request, UNARY_DEADLINE);
        let response = self.stub.clone().forward_message_to_dead_letter_queue(request).await;
        code(response.expect("an answer").into_inner().status.as_ref())
    }

    pub async fn recall(&self, topic: &str, recall_handle: &str) -> RecallMessageResponse {
        let request =
            RecallMessageRequest { topic: Some(resource(topic)), recall_handle: recall_handle.to_owned() };
        let request = self.request(request, UNARY_DEADLINE);
        self.stub.clone().recall_message(request).await.expect("an answer").into_inner()
    }

    pub async fn pull(&self, topic: &str, group: &str, pull: Pull) -> (Code, Vec<Message>, Option<i64>) {
        let request = PullMessageRequest {
            group: Some(resource(group)),
            message_queue: Some(queue(topic, pull.queue)),
            offset: pull.offset,
            batch_size: pull.batch,
            filter_expression: None,
            long_polling_timeout: Some(duration(pull.poll)),
        };
        let request = self.request(request, pull.poll + Duration::from_secs(3));
        let mut stream = self.stub.clone().pull_message(request).await.expect("a stream").into_inner();
        let mut pulled = (None, Vec::new(), None);
        while let Some(item) = stream.message().await.expect("the end of the stream") {
            match item.content.expect("content") {
                pull_message_response::Content::Status(status) => pulled.0 = Some(code(Some(&status))),
                pull_message_response::Content::Message(message) => pulled.1.push(message),
                pull_message_response::Content::NextOffset(next) => pulled.2 = Some(next),
            }
        }
        (pulled.0.expect("a status"), pulled.1, pulled.2)
    }

    pub async fn get_offset(&self, topic: &str, group: &str) -> (Code, i64) {
        let request = GetOffsetRequest { group: Some(resource(group)), message_queue: Some(queue(topic, 0)) };
        let request = self.request(request, UNARY_DEADLINE);
        let answer = self.stub.clone().get_offset(request).await.expect("an answer").into_inner();
        (code(answer.status.as_ref()), answer.offset)
    }

    pub async fn update_offset(&self, topic: &str, group: &str, offset: i64) -> Code {
        let request = UpdateOffsetRequest {
            group: Some(resource(group)),
            message_queue: Some(queue(topic, 0)),
            offset,
        };
        let request = self.request(request, UNARY_DEADLINE);
        let answer = self.stub.clone().update_offset(request).await.expect("an answer").into_inner();
        code(answer.status.as_ref())
    }

    pub async fn query_offset(
        &self,
        topic: &str,
        policy: QueryOffsetPolicy,
        timestamp: Option<prost_types::Timestamp>,
    ) -> (Code, i64) {
        let request = QueryOffsetRequest {
            message_queue: Some(queue(topic, 0)),
            query_offset_policy: policy as i32,
            timestamp,
        };
        let request = self.request(request, UNARY_DEADLINE);
        let answer = self.stub.clone().query_offset(request).await.expect("an answer").into_inner();
        (code(answer.status.as_ref()), answer.offset)
    }

    pub async fn terminate(&self, group: &str) -> Code {
        let request = NotifyClientTerminationRequest { group: Some(resource(group)) };
        let request = self.request(request, UNARY_DEADLINE);
        let response = self.stub.clone().notify_client_termination(request).await.expect("an answer");
        code(response.into_inner().status.as_ref())
    }
}

pub fn queue(topic: &str, id: i32) -> MessageQueue {
    let broker = Some(Broker { name: "g".to_owned(), ..Broker::default() });
    MessageQueue { topic: Some(resource(topic)), id, broker, ..MessageQueue::default() }
}

pub fn message(topic: &str, id: &str, body: &str) -> Message {
    Message {
        topic: Some(resource(topic)),
        user_properties: [("colour".to_owned(), "red".to_owned()), ("empty".to_owned(), String::new())]
            .into(),
        system_properties: Some(SystemProperties {
            tag: Some("T".to_owned()),
            keys: vec!["k1".to_owned(), "k 2".to_owned()],
            message_id: id.to_owned(),
            body_encoding: Encoding::Identity as i32,
            born_timestamp: Some(prost_types::Timestamp { seconds: 1_700_000_000, nanos: 5_000_000 }),
            born_host: "somewhere".to_owned(),
            ..SystemProperties::default()
        }),
        body: Bytes::copy_from_slice(body.as_bytes()),
    }
}

pub fn tagged(topic: &str, id: &str, tag: &str) -> Message {
    let mut message = message(topic, id, id);
    message.system_properties.as_mut().expect("system properties").tag = Some(tag.to_owned());
    message
}

pub fn system(message: &Message) -> &SystemProperties {
    message.system_properties.as_ref().expect("system properties")
}

pub fn handle(message: &Message) -> &str {
    system(message).receipt_handle.as_deref().expect("a receipt handle")
}

pub fn id(message: &Message) -> &str {
    &system(message).message_id
}

pub fn code(status: Option<&ledgermq_proto::rocketmq::Status>) -> Code {
    Code::try_from(status.expect("a status").code).expect("a code RocketMQ has")
}

pub fn resource(name: &str) -> Resource {
    Resource { resource_namespace: String::new(), name: name.to_owned() }
}

pub fn duration(duration: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).expect("seconds"),
        nanos: i32::try_from(duration.subsec_nanos()).expect("nanoseconds"),
    }
}
