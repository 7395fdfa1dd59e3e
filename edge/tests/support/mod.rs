//! Nodes with real ports whose groups are a queue in memory: enough of a leader to see what the
//! edge asks of it and how it behaves while leadership moves.

#![allow(dead_code, reason = "each test binary uses a part")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use ledgermq_common::clock::{SystemClock, UnixMillis};
use ledgermq_common::{ConsumerGroupName, GroupId, GroupName, NodeId, QueueId, QueueOffset, Term, TopicName};
use ledgermq_edge::arrival::Arrival;
use ledgermq_edge::context::CallContext;
use ledgermq_edge::forward::connect::TcpConnect;
use ledgermq_edge::forward::server::forward_service;
use ledgermq_edge::group_call::*;
use ledgermq_edge::route::{AdvertisedAddress, RouteEndpoints};
use ledgermq_edge::topology::{ClusterView, GroupView, MemberView, TopicKnowledge, Topology};
use ledgermq_edge::{Edge, EdgeConfig};
use ledgermq_proto::messaging::StoreBatchRequest;
use ledgermq_proto::messaging::batch_client::BatchClient;
use ledgermq_proto::rocketmq::messaging_service_client::MessagingServiceClient;
use ledgermq_proto::rocketmq::{self as rmq, Code, MessageType};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Channel;

pub const GROUP: &str = "group-1";
pub const TOPIC: &str = "orders";

pub fn group() -> GroupName {
    GroupName::parse(GROUP).expect("group name")
}

/// What a group has agreed on; all its members see it.
#[derive(Default)]
pub struct Agreed {
    /// Offset of each message id: a repeat gets the first one.
    pub stored: Mutex<BTreeMap<String, i64>>,
    pub bodies: Mutex<Vec<rmq::Message>>,
    pub delivered: AtomicUsize,
    /// Requests that reached a member, whether it led or not.
    pub tries: watch::Sender<usize>,
    pub topics: Mutex<BTreeMap<TopicName, TopicDescription>>,
    pub consumer_group: Mutex<ConsumerGroupDescription>,
    pub arrived: Notify,
    /// What became of the answers with messages, as their leader hears of it.
    pub answers: watch::Sender<Answers>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Answers {
    pub confirmed: usize,
    pub lost: usize,
}

/// One member of the group.
pub struct Member {
    pub group: GroupName,
    pub node: NodeId,
    pub agreed: Arc<Agreed>,
    pub leadership: watch::Sender<Leadership>,
    /// How often somebody wanted to know who leads.
    pub probes: watch::Sender<usize>,
    /// As a process under SIGSTOP: requests arrive and nothing happens.
    pub stopped: AtomicBool,
    pub requests: Mutex<Vec<GroupRequest>>,
    pub contexts: Mutex<Vec<CallContext>>,
    /// Long polls that wait here now, and those whose client went away.
    pub polls: watch::Sender<usize>,
    pub auto_create: bool,
    /// What this node has applied of the consumer group; it may lag behind what is agreed.
    pub applied_consumer_group: Arc<Mutex<Option<ConsumerGroupDescription>>>,
}

struct Polling<'a>(&'a Member);

impl Drop for Polling<'_> {
    fn drop(&mut self) {
        self.0.polls.send_modify(|polls| *polls -= 1);
    }
}

#[async_trait]
impl LocalGroups for Member {
    fn node(&self) -> Option<NodeId> {
        Some(self.node)
    }

    fn hosted(&self) -> Vec<GroupName> {
        vec![self.group.clone()]
    }

    fn leadership(&self, asked: &GroupName) -> Option<watch::Receiver<Leadership>> {
        self.probes.send_modify(|probes| *probes += 1);
        (*asked == self.group).then(|| self.leadership.subscribe())
    }

    async fn execute(
        &self,
        _group: &GroupName,
        context: &CallContext,
        request: &GroupRequest,
    ) -> Result<GroupResponse, NotExecuted> {
        self.agreed.tries.send_modify(|tries| *tries += 1);
        if self.stopped.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        let mut leadership = self.leadership.subscribe();
        let now = *leadership.borrow_and_update();
        let not_leader =
            |known: Leadership| NotExecuted::NotLeader { leader: known.leader, term: known.term };
        if now.leader != Some(self.node) {
            return Err(not_leader(now));
        }
        self.requests.lock().push(request.clone());
        self.contexts.lock().push(context.clone());
        Ok(match request {
            GroupRequest::Send(send) => GroupResponse::Send(self.store(&send.request)),
            GroupRequest::Receive(receive) => {
                self.polls.send_modify(|polls| *polls += 1);
                let _polling = Polling(self);
                loop {
                    let arrived = self.agreed.arrived.notified();
                    if let Some(received) = self.deliver() {
                        return Ok(GroupResponse::Receive(received));
                    }
                    tokio::select! {
                        () = arrived => {}
                        _ = leadership.changed() => return Err(not_leader(*leadership.borrow())),
                        () = tokio::time::sleep_until(receive.poll_until) => {
                            return Ok(GroupResponse::Receive(Received {
                                status: status(Code::MessageNotFound),
                                messages: vec![],
                                delivery_timestamp: UnixMillis(1),
                                arrival: Arrival::default(),
                            }));
                        }
                    }
                }
            }
            GroupRequest::StoreBatch(batch) => {
                let before = self.agreed.stored.lock().len();
                let stored = self.store(&rmq::SendMessageRequest { messages: batch.messages.clone() });
                let place = |entry: rmq::SendResultEntry| BatchPlace {
                    queue: QueueId(0),
                    offset: QueueOffset(entry.offset as u64),
                    is_repeat: (entry.offset as usize) < before,
                };
                GroupResponse::BatchStored(stored.entries.into_iter().map(place).collect())
            }
            GroupRequest::Ack(ack) => GroupResponse::Ack(rmq::AckMessageResponse {
                status: Some(status(Code::Ok)),
                entries: ack
                    .entries
                    .iter()
                    .map(|entry| rmq::AckMessageResultEntry {
                        message_id: entry.message_id.clone(),
                        receipt_handle: entry.receipt_handle.clone(),
                        status: Some(status(Code::Ok)),
                    })
                    .collect(),
            }),
            GroupRequest::ChangeInvisible(change) => {
                GroupResponse::ChangeInvisible(rmq::ChangeInvisibleDurationResponse {
                    status: Some(status(Code::Ok)),
                    receipt_handle: change.receipt_handle.clone(),
                })
            }
            GroupRequest::DescribeTopic(describe) => {
                let mut topics = self.agreed.topics.lock();
                if describe.create_if_missing && self.auto_create {
                    topics
                        .entry(describe.name.clone())
                        .or_insert_with(|| topic(describe.name.as_str(), MessageType::Normal));
                }
                GroupResponse::Topics(topics.get(&describe.name).cloned().into_iter().collect())
            }
            GroupRequest::DescribeConsumerGroup(_) => {
                GroupResponse::ConsumerGroup(self.agreed.consumer_group.lock().clone())
            }
            _ => GroupResponse::Done,
        })
    }
}

impl Member {
    fn store(&self, request: &rmq::SendMessageRequest) -> rmq::SendMessageResponse {
        let mut stored = self.agreed.stored.lock();
        let entries = request
            .messages
            .iter()
            .map(|message| {
                let id = message.system_properties.as_ref().map_or("", |system| &system.message_id);
                let next = stored.len() as i64;
                let offset = *stored.entry(id.to_owned()).or_insert(next);
                if offset == next {
                    self.agreed.bodies.lock().push(message.clone());
                }
                rmq::SendResultEntry {
                    status: Some(status(Code::Ok)),
                    message_id: id.to_owned(),
                    offset,
                    ..Default::default()
                }
            })
            .collect();
        self.agreed.arrived.notify_waiters();
        rmq::SendMessageResponse { status: Some(status(Code::Ok)), entries }
    }

    fn deliver(&self) -> Option<Received> {
        let bodies = self.agreed.bodies.lock();
        let message = bodies.get(self.agreed.delivered.load(Ordering::SeqCst))?.clone();
        self.agreed.delivered.fetch_add(1, Ordering::SeqCst);
        let (agreed, is_told) = (self.agreed.clone(), AtomicBool::new(false));
        Some(Received {
            status: status(Code::Ok),
            messages: vec![message],
            delivery_timestamp: UnixMillis(1_500),
            arrival: Arrival::new(move |has_arrived| {
                assert!(!is_told.swap(true, Ordering::SeqCst), "confirmed once");
                agreed.answers.send_modify(|answers| match has_arrived {
                    true => answers.confirmed += 1,
                    false => answers.lost += 1,
                });
            }),
        })
    }
}

/// Configured members and topics, as a broker knows them.
pub struct FixedTopology {
    pub group: GroupName,
    pub cluster: Arc<ClusterView>,
    pub agreed: Arc<Agreed>,
    pub applied_consumer_group: Arc<Mutex<Option<ConsumerGroupDescription>>>,
    auto_create: bool,
    pub version: watch::Sender<u64>,
}

impl Topology for FixedTopology {
    fn cluster(&self) -> Option<Arc<ClusterView>> {
        Some(self.cluster.clone())
    }

    /// Of other groups it knows no topic, as a replica that has started and not applied its log.
    fn topic(&self, group: &GroupName, topic: &TopicName) -> TopicKnowledge {
        if *group != self.group {
            return TopicKnowledge::Absent;
        }
        self.agreed.topics.lock().get(topic).cloned().map_or(TopicKnowledge::Absent, TopicKnowledge::Known)
    }

    fn consumer_group(&self, _: &ConsumerGroupName) -> Option<ConsumerGroupDescription> {
        self.applied_consumer_group.lock().clone()
    }

    fn auto_create_topics(&self) -> bool {
        self.auto_create
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }
}

pub struct Node {
    pub member: Arc<Member>,
    pub edge: Edge,
    pub client_addr: SocketAddr,
}

pub struct Cluster {
    pub nodes: Vec<Node>,
    pub view: GroupView,
    pub agreed: Arc<Agreed>,
    term: Mutex<u64>,
}

impl Cluster {
    /// Nodes 1..=`size` of one group, with topic [`TOPIC`] and no leader yet.
    pub async fn start(size: u64) -> Self {
        Self::start_with(size, false).await
    }

    pub async fn start_with(size: u64, auto_create: bool) -> Self {
        Self::start_group(group(), size, auto_create, None).await
    }

    /// A second group, whose nodes know of both.
    pub async fn start_beside(other: &Self, name: &str) -> Self {
        let name = GroupName::parse(name).expect("group name");
        Self::start_group(name, 1, false, Some(&other.view)).await
    }

    async fn start_group(group: GroupName, size: u64, auto_create: bool, beside: Option<&GroupView>) -> Self {
        let agreed = Arc::new(Agreed::default());
        for (name, message_type) in [
            (TOPIC, MessageType::Normal),
            ("delays", MessageType::Delay),
            ("urgent", MessageType::Priority),
            ("rooms", MessageType::Lite),
        ] {
            let description = topic(name, message_type);
            agreed.topics.lock().insert(description.name.clone(), description);
        }
        let mut ports = Vec::new();
        for _ in 0..size {
            let bind = || TcpListener::bind("127.0.0.1:0");
            ports.push((bind().await.expect("peer port"), bind().await.expect("client port")));
        }
        // A node has one number in the whole cluster.
        let first = 1 + beside.map_or(0, |other| other.members.len() as u64);
        let members = (first..)
            .zip(&ports)
            .map(|(node, (peer, client))| MemberView {
                node: NodeId(node),
                peer_address: peer.local_addr().expect("bound").to_string(),
                client_address: client.local_addr().expect("bound").to_string(),
            })
            .collect();
        let id = GroupId(1 + beside.iter().count() as u32);
        let view = GroupView { id, name: group.clone(), members, leader_hint: None };
        let views = [Some(&view), beside].into_iter().flatten();
        let groups = views.map(|view| (view.name.clone(), view.clone())).collect();
        let cluster = Arc::new(ClusterView { groups });
        let nodes = (first..)
            .zip(ports)
            .map(|(node, (peer, client))| {
                let member = Arc::new(Member {
                    group: group.clone(),
                    node: NodeId(node),
                    agreed: agreed.clone(),
                    leadership: watch::Sender::new(Leadership::default()),
                    probes: watch::Sender::new(0),
                    stopped: AtomicBool::new(false),
                    requests: Mutex::default(),
                    contexts: Mutex::default(),
                    polls: watch::Sender::new(0),
                    auto_create,
                    applied_consumer_group: Arc::default(),
                });
                tokio::spawn(
                    tonic::transport::Server::builder()
                        .add_service(forward_service(member.clone()))
                        .serve_with_incoming(TcpListenerStream::new(peer)),
                );
                let client_addr = client.local_addr().expect("bound");
                let topology = FixedTopology {
                    group: group.clone(),
                    cluster: cluster.clone(),
                    agreed: agreed.clone(),
                    applied_consumer_group: member.applied_consumer_group.clone(),
                    auto_create,
                    version: watch::Sender::new(0),
                };
                let edge = Edge::new(
                    EdgeConfig {
                        route_endpoints: RouteEndpoints::EchoAccessPoint,
                        advertised: AdvertisedAddress::new("127.0.0.1", client_addr.port()),
                    },
                    member.clone(),
                    Arc::new(topology),
                    Arc::new(TcpConnect),
                    Arc::new(SystemClock),
                );
                tokio::spawn(
                    tonic::transport::Server::builder()
                        .add_service(edge.messaging_service())
                        .add_service(edge.batch_service())
                        .add_service(edge.offsets_service())
                        .serve_with_incoming(TcpListenerStream::new(client)),
                );
                Node { member, edge, client_addr }
            })
            .collect();
        Self { nodes, view, agreed, term: Mutex::new(0) }
    }

    /// A new term with this leader (a node number), as every member that is not stopped hears.
    pub fn elect(&self, leader: Option<u64>) {
        let mut term = self.term.lock();
        *term += 1;
        let now = Leadership { term: Term(*term), leader: leader.map(NodeId) };
        for node in self.nodes.iter().filter(|node| !node.member.stopped.load(Ordering::SeqCst)) {
            node.member.leadership.send_replace(now);
        }
    }

    pub fn node(&self, number: u64) -> &Node {
        self.nodes.iter().find(|node| node.member.node == NodeId(number)).expect("a node of the group")
    }
}

pub async fn client(addr: SocketAddr) -> MessagingServiceClient<Channel> {
    // A window of HTTP/2's own size: what is larger waits until the client reads on.
    let endpoint = Channel::from_shared(format!("http://{addr}")).expect("URI");
    let channel = endpoint.initial_stream_window_size(65_535).connect().await.expect("connects");
    MessagingServiceClient::new(channel)
        .max_decoding_message_size(64 << 20)
        .max_encoding_message_size(64 << 20)
}

pub async fn batch_client(addr: SocketAddr) -> BatchClient<Channel> {
    let channel =
        Channel::from_shared(format!("http://{addr}")).expect("URI").connect().await.expect("connects");
    BatchClient::new(channel).max_encoding_message_size(64 << 20)
}

/// A request with the headers of an SDK.
pub fn request<T>(language: &'static str, timeout: Duration, message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    let headers = request.metadata_mut();
    headers.insert("x-mq-client-id", "host@1@0@x".parse().expect("header"));
    headers.insert("x-mq-language", language.parse().expect("header"));
    request.set_timeout(timeout);
    request
}

pub fn java<T>(message: T) -> tonic::Request<T> {
    request("JAVA", Duration::from_secs(3), message)
}

pub fn resource(name: &str) -> Option<rmq::Resource> {
    Some(rmq::Resource { resource_namespace: String::new(), name: name.to_owned() })
}

pub fn message(id: &str) -> rmq::Message {
    rmq::Message {
        topic: resource(TOPIC),
        system_properties: Some(rmq::SystemProperties { message_id: id.to_owned(), ..Default::default() }),
        body: "body".into(),
        ..Default::default()
    }
}

pub fn send(id: &str) -> rmq::SendMessageRequest {
    rmq::SendMessageRequest { messages: vec![message(id)] }
}

/// Messages by topic and id.
pub fn batch(messages: &[(&str, &str)]) -> StoreBatchRequest {
    let messages = messages.iter();
    let messages = messages.map(|(topic, id)| rmq::Message { topic: resource(topic), ..message(id) });
    StoreBatchRequest { messages: messages.collect(), broker_group: String::new() }
}

pub fn receive(poll: Option<Duration>) -> rmq::ReceiveMessageRequest {
    rmq::ReceiveMessageRequest {
        group: resource("readers"),
        message_queue: Some(rmq::MessageQueue {
            topic: resource(TOPIC),
            id: -1,
            broker: Some(rmq::Broker { name: GROUP.to_owned(), ..Default::default() }),
            ..Default::default()
        }),
        batch_size: 8,
        invisible_duration: Some(duration(30)),
        long_polling_timeout: poll.map(|poll| prost_types::Duration {
            seconds: poll.as_secs() as i64,
            nanos: poll.subsec_nanos() as i32,
        }),
        ..Default::default()
    }
}

pub fn duration(seconds: i64) -> prost_types::Duration {
    prost_types::Duration { seconds, nanos: 0 }
}

pub fn topic(name: &str, message_type: MessageType) -> TopicDescription {
    TopicDescription {
        name: TopicName::parse(name).expect("topic name"),
        message_type,
        queues: 4,
        created: UnixMillis(1),
        placement: None,
    }
}

pub fn status(code: Code) -> rmq::Status {
    rmq::Status { code: code.into(), message: code.as_str_name().to_owned() }
}

pub fn code_of(status: &Option<rmq::Status>) -> Code {
    status.as_ref().map_or(Code::Unspecified, rmq::Status::code)
}

/// Every item of a receive.
pub async fn collect(
    client: &mut MessagingServiceClient<Channel>,
    request: tonic::Request<rmq::ReceiveMessageRequest>,
) -> (rmq::Status, Vec<rmq::Message>) {
    use rmq::receive_message_response::Content;
    let mut items = client.receive_message(request).await.expect("a stream").into_inner();
    let Some(Content::Status(status)) = items.message().await.expect("item").and_then(|item| item.content)
    else {
        panic!("the status comes first");
    };
    let mut messages = Vec::new();
    loop {
        match items.message().await.expect("item").expect("a timestamp before the end").content {
            Some(Content::Message(message)) => messages.push(message),
            Some(Content::DeliveryTimestamp(_)) => break,
            other => panic!("unexpected {other:?}"),
        }
    }
    assert!(items.message().await.expect("OK trailers").is_none(), "the timestamp comes last");
    (status, messages)
}
