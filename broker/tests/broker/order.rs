//! Order over real nodes: topics whose queues lie in several broker groups, consumer groups that
//! consume in order, and a leader that dies in between.

use std::collections::BTreeMap;
use std::time::Duration;

use ledgermq_broker::config::GroupEntry;
use ledgermq_proto::admin::admin_client::AdminClient;
use ledgermq_proto::admin::{CreateTopicRequest, SetConsumerGroupRequest, ShowTopicRequest};
use ledgermq_proto::rocketmq::{
    Code, Message, MessageType, QueryAssignmentRequest, QueryRouteRequest, SendMessageRequest,
};
use tonic::transport::{Channel, Endpoint};

use crate::support::client::{Receive, code, message, resource, system};
use crate::support::{Client, Cluster, PATIENCE};

const QUEUES: u32 = 3;

pub fn short() -> Receive {
    Receive { poll: Duration::from_millis(300), ..Receive::default() }
}

pub fn step(message_group: &str, number: u32) -> Message {
    let mut message =
        message("steps", &format!("{message_group}-{number}"), &format!("{message_group}-{number}"));
    message.system_properties.as_mut().expect("system properties").message_group =
        Some(message_group.to_owned());
    message
}

pub async fn admin(cluster: &Cluster) -> AdminClient<Channel> {
    let address = format!("http://{}", cluster.nodes[0].client_addr());
    AdminClient::new(Endpoint::from_shared(address).expect("an address").connect().await.expect("a broker"))
}

/// Nodes with two groups, a topic with order in both, and a consumer group that keeps it.
pub async fn start(nodes: usize) -> Cluster {
    let start = move || {
        Cluster::start_with(nodes, |config| {
            let mut second: GroupEntry = config.groups[0].clone();
            second.id = 2;
            second.name = "h".to_owned();
            config.groups.push(second);
        })
    };
    let cluster = tokio::task::spawn_blocking(start).await.expect("a cluster");
    let mut operator = admin(&cluster).await;
    let create = CreateTopicRequest {
        name: "steps".to_owned(),
        queues: QUEUES,
        message_type: MessageType::Fifo as i32,
        ..CreateTopicRequest::default()
    };
    operator.create_topic(create).await.expect("created");
    let set = SetConsumerGroupRequest {
        name: "workers".to_owned(),
        fifo: Some(true),
        ..SetConsumerGroupRequest::default()
    };
    operator.set_consumer_group(set).await.expect("set");
    cluster
}

pub async fn stop(cluster: Cluster) {
    tokio::task::spawn_blocking(move || drop(cluster)).await.expect("dropped");
}

pub fn group_of(message: &Message) -> &str {
    system(message).message_group.as_deref().expect("a message group")
}

pub fn number_of(message: &Message) -> u32 {
    let text = std::str::from_utf8(&message.body).expect("text");
    text.rsplit('-').next().and_then(|number| number.parse().ok()).expect("a number")
}

/// Receives from one broker group and acknowledges.
pub async fn take(client: &Client, broker: &str, batch: i32) -> Vec<Message> {
    let receive = Receive { broker: broker.to_owned(), batch, ..short() };
    client.receive("steps", "workers", receive).await.1
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_group_is_one_queue_of_one_broker_group_through_any_node() {
    let cluster = start(2).await;
    let clients = [
        Client::connect(&cluster.nodes[0].client_addr()).await,
        Client::connect(&cluster.nodes[1].client_addr()).await,
    ];
    for number in 0..4 {
        for group in 0..12 {
            let mut step = step(&format!("g{group}"), number);
            // Whatever queue an SDK chose for itself.
            step.system_properties.as_mut().expect("there").queue_id = group;
            clients[(group as usize + number as usize) % 2].send(step).await;
        }
    }
    let shown = admin(&cluster).await.show_topic(ShowTopicRequest { name: "steps".to_owned() }).await;
    let queues = shown.expect("shown").into_inner().queues;
    assert_eq!(queues.len(), 2 * QUEUES as usize);
    assert!(queues.iter().filter(|queue| queue.max_offset > 0).count() >= 4, "{queues:?}");
    let mut place: BTreeMap<String, (String, i32)> = BTreeMap::new();
    let mut next: BTreeMap<String, u32> = BTreeMap::new();
    for broker in ["g", "h"] {
        loop {
            let messages = take(&clients[0], broker, 32).await;
            if messages.is_empty() {
                break;
            }
            for message in messages {
                let group = group_of(&message).to_owned();
                assert_eq!(system(&message).message_type, MessageType::Fifo as i32);
                let here = (broker.to_owned(), system(&message).queue_id);
                assert_eq!(place.entry(group.clone()).or_insert_with(|| here.clone()), &here, "{group}");
                let expected = next.entry(group).or_default();
                assert_eq!(number_of(&message), *expected);
                *expected += 1;
                assert_eq!(clients[1].ack("steps", "workers", &message).await, Code::Ok);
            }
        }
    }
    assert_eq!(next.len(), 12);
    assert!(next.values().all(|next| *next == 4), "{next:?}");
    stop(cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn order_is_refused_where_it_cannot_be_kept_and_told_where_it_is() {
    let cluster = start(1).await;
    let client = Client::connect(&cluster.nodes[0].client_addr()).await;
    client.send(message("plain", "first", "body")).await;
    let refused = |messages: Vec<Message>| {
        let client = client.clone();
        async move {
            let request = client.request(SendMessageRequest { messages }, Duration::from_secs(3));
            let response = client.stub().send_message(request).await.expect("an answer").into_inner();
            code(response.status.as_ref())
        }
    };
    assert_eq!(refused(vec![step(&"g".repeat(64), 1)]).await, Code::IllegalMessageGroup);
    assert_eq!(refused(vec![step(&"g".repeat(63), 1)]).await, Code::Ok);
    assert_eq!(refused(vec![step("  ", 1)]).await, Code::IllegalMessageGroup);
    assert_eq!(refused(vec![step("a", 1), step("b", 1)]).await, Code::IllegalMessageGroup);
    let conflict = Code::MessagePropertyConflictWithType;
    assert_eq!(
        refused(vec![message("steps", "x", "body")]).await,
        conflict,
        "no group for a topic with order"
    );
    let mut elsewhere = step("a", 1);
    elsewhere.topic = Some(resource("plain"));
    assert_eq!(refused(vec![elsewhere]).await, conflict);

    let assignments = |group: &str| {
        let request = QueryAssignmentRequest {
            topic: Some(resource("steps")),
            group: Some(resource(group)),
            endpoints: None,
        };
        let request = client.request(request, Duration::from_secs(3));
        let mut stub = client.stub();
        async move { stub.query_assignment(request).await.expect("an answer").into_inner().assignments }
    };
    let ids = |assignments: Vec<ledgermq_proto::rocketmq::Assignment>| {
        let queues = assignments.into_iter().filter_map(|assignment| assignment.message_queue);
        queues.map(|queue| queue.id).collect::<Vec<_>>()
    };
    assert_eq!(ids(assignments("workers").await), [0, 1, 2, 0, 1, 2], "every queue of both broker groups");
    assert_eq!(ids(assignments("others").await), [-1, -1]);
    let route = client.request(
        QueryRouteRequest { topic: Some(resource("steps")), endpoints: None },
        Duration::from_secs(3),
    );
    let route = client.stub().query_route(route).await.expect("an answer").into_inner();
    let fifo = MessageType::Fifo as i32;
    assert!(route.message_queues.iter().all(|queue| queue.accept_message_types == [fifo]));
    stop(cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_holder_at_a_time_also_across_the_death_of_a_leader() {
    let mut cluster = start(3).await;
    let first = Client::connect(&cluster.nodes[0].client_addr()).await;
    for number in 0..6 {
        first.send(step("only", number)).await;
    }
    let shown = admin(&cluster).await.show_topic(ShowTopicRequest { name: "steps".to_owned() }).await;
    let queues = shown.expect("shown").into_inner().queues;
    let broker =
        queues.into_iter().find(|queue| queue.max_offset == 6).expect("one queue has them all").group;
    let group = broker.clone();
    let (back, leader) = tokio::task::spawn_blocking(move || {
        let find = || cluster.nodes.iter().position(|node| node.leads(&group));
        let leader = crate::support::eventually("a leader of the group", find);
        (cluster, leader)
    })
    .await
    .expect("a leader");
    cluster = back;
    let client = Client::connect(&cluster.nodes[(leader + 1) % 3].client_addr()).await;
    let broker = broker.as_str();
    let receive =
        Receive { broker: broker.to_owned(), batch: 1, invisible: Duration::from_secs(10), ..short() };
    let (_, held) = client.receive("steps", "workers", receive).await;
    assert_eq!(held.iter().map(number_of).collect::<Vec<_>>(), [0]);
    assert_eq!(take(&client, broker, 32).await.len(), 0, "the group is held");

    cluster = tokio::task::spawn_blocking(move || {
        cluster.nodes[leader].kill();
        cluster
    })
    .await
    .expect("killed");
    assert_eq!(take(&client, broker, 32).await.len(), 0, "the new leader knows the holder");
    let began = tokio::time::Instant::now();
    let mut seen = Vec::new();
    while seen.len() < 6 && began.elapsed() < PATIENCE + Duration::from_secs(15) {
        for message in take(&client, broker, 2).await {
            seen.push((number_of(&message), system(&message).delivery_attempt));
            assert_eq!(client.ack("steps", "workers", &message).await, Code::Ok);
        }
    }
    let expected: Vec<_> = (0..6).map(|number| (number, Some(if number == 0 { 2 } else { 1 }))).collect();
    assert_eq!(seen, expected, "from the first that was not acknowledged on");
    stop(cluster).await;
}
