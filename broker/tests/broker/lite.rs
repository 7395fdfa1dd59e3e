//! Lite topics and priorities over real nodes: any node takes any request, a lite topic has its readers
//! across the death of a leader, and one that lost it is told by the node that holds its stream.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ledgermq_broker::config::GroupEntry;
use ledgermq_proto::admin::admin_client::AdminClient;
use ledgermq_proto::admin::{CreateTopicRequest, SetConsumerGroupRequest, ShowLiteTopicsRequest};
use ledgermq_proto::rocketmq::settings::PubSub;
use ledgermq_proto::rocketmq::telemetry_command::Command;
use ledgermq_proto::rocketmq::{
    AckMessageEntry, AckMessageRequest, ChangeInvisibleDurationRequest, ClientType, Code,
    LiteSubscriptionAction, Message, MessageType, QueryAssignmentRequest, Settings, Subscription,
    SyncLiteSubscriptionRequest, TelemetryCommand,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};

use crate::support::client::{Receive, code, handle, id, message, resource, system};
use crate::support::{Client, Cluster, PATIENCE};

fn short() -> Receive {
    Receive { poll: Duration::from_millis(300), ..Receive::default() }
}

fn lite(lite_topic: &str, id: &str) -> Message {
    let mut message = message("rooms", id, id);
    message.system_properties.as_mut().expect("system properties").lite_topic = Some(lite_topic.to_owned());
    message
}

async fn admin(cluster: &Cluster) -> AdminClient<Channel> {
    let address = format!("http://{}", cluster.nodes[0].client_addr());
    AdminClient::new(Endpoint::from_shared(address).expect("an address").connect().await.expect("a broker"))
}

/// Nodes with two groups, and a topic in both.
async fn start(nodes: usize, name: &str, message_type: MessageType) -> Cluster {
    let start = move || {
        Cluster::start_with(nodes, |config| {
            let mut second: GroupEntry = config.groups[0].clone();
            second.id = 2;
            second.name = "h".to_owned();
            config.groups.push(second);
        })
    };
    let cluster = tokio::task::spawn_blocking(start).await.expect("a cluster");
    let create = CreateTopicRequest {
        name: name.to_owned(),
        queues: 4,
        message_type: message_type as i32,
        ..CreateTopicRequest::default()
    };
    admin(&cluster).await.create_topic(create).await.expect("created");
    cluster
}

async fn stop(cluster: Cluster) {
    tokio::task::spawn_blocking(move || drop(cluster)).await.expect("dropped");
}

async fn sync(client: &Client, action: LiteSubscriptionAction, names: &[&str]) -> Code {
    sync_for(client, "agents", "rooms", action, names).await
}

async fn sync_for(
    client: &Client,
    group: &str,
    topic: &str,
    action: LiteSubscriptionAction,
    names: &[&str],
) -> Code {
    let request = SyncLiteSubscriptionRequest {
        action: action.into(),
        topic: Some(resource(topic)),
        group: Some(resource(group)),
        lite_topic_set: names.iter().map(|name| (*name).to_owned()).collect(),
        ..SyncLiteSubscriptionRequest::default()
    };
    let request = client.request(request, Duration::from_secs(10));
    let answer = client.stub().sync_lite_subscription(request).await.expect("an answer").into_inner();
    code(answer.status.as_ref())
}

fn lite_of(message: &Message) -> &str {
    system(message).lite_topic.as_deref().expect("a lite topic")
}

/// Acknowledges as a lite consumer does, with the name of the lite topic.
async fn ack(client: &Client, message: &Message, lite_topic: &str) -> Code {
    let request = AckMessageRequest {
        group: Some(resource("agents")),
        topic: Some(resource("rooms")),
        entries: vec![AckMessageEntry {
            message_id: id(message).to_owned(),
            receipt_handle: handle(message).to_owned(),
            lite_topic: Some(lite_topic.to_owned()),
        }],
    };
    let request = client.request(request, Duration::from_secs(5));
    code(client.stub().ack_message(request).await.expect("an answer").into_inner().status.as_ref())
}

/// A lite client's telemetry stream: what the server says on it.
async fn telemetry(client: &Client, client_type: ClientType) -> mpsc::Receiver<TelemetryCommand> {
    let (commands, queued) = mpsc::channel(4);
    let subscription = Subscription { group: Some(resource("agents")), ..Subscription::default() };
    let settings = Settings {
        client_type: Some(client_type.into()),
        pub_sub: Some(PubSub::Subscription(subscription)),
        ..Settings::default()
    };
    let command = TelemetryCommand { status: None, command: Some(Command::Settings(settings)) };
    commands.send(command).await.expect("open");
    let request = client.request(ReceiverStream::new(queued), Duration::from_secs(300));
    let mut stream = client.stub().telemetry(request).await.expect("a stream").into_inner();
    let (said, heard) = mpsc::channel(64);
    tokio::spawn(async move {
        let _open = commands;
        while let Ok(Some(command)) = stream.message().await {
            if said.send(command).await.is_err() {
                return;
            }
        }
    });
    heard
}

async fn settings_of(heard: &mut mpsc::Receiver<TelemetryCommand>) -> Subscription {
    let reply = tokio::time::timeout(PATIENCE, heard.recv()).await.expect("in time").expect("a reply");
    match reply.command {
        Some(Command::Settings(Settings { pub_sub: Some(PubSub::Subscription(subscription)), .. })) => {
            subscription
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lite_topics_reach_their_reader_in_order_also_across_the_death_of_a_leader() {
    let mut cluster = start(3, "rooms", MessageType::Lite).await;
    let sender = Client::connect(&cluster.nodes[0].client_addr()).await;
    let names: Vec<String> = (0..6).map(|number| format!("room-{number}")).collect();
    let read: Vec<&str> = names.iter().skip(1).map(String::as_str).collect();
    let leader = {
        let (back, leader) = tokio::task::spawn_blocking(move || {
            let find = || cluster.nodes.iter().position(|node| node.leads("g"));
            let leader = crate::support::eventually("a leader of the group", find);
            (cluster, leader)
        })
        .await
        .expect("a leader");
        cluster = back;
        leader
    };
    let reader = Client::connect(&cluster.nodes[(leader + 1) % 3].client_addr()).await;
    assert_eq!(sync(&reader, LiteSubscriptionAction::CompleteAdd, &read).await, Code::Ok);
    for number in 0..2 {
        for name in &names {
            sender.send(lite(name, &format!("{name}-{number}"))).await;
        }
    }
    let shown = admin(&cluster)
        .await
        .show_lite_topics(ShowLiteTopicsRequest { topic: "rooms".to_owned(), ..Default::default() })
        .await
        .expect("shown")
        .into_inner();
    assert!(!shown.lite_topics.is_empty());

    // One queue is polled, as lite simple consumers do, and all broker groups answer.
    let mut next: BTreeMap<String, u32> = BTreeMap::new();
    let take = |messages: Vec<Message>, next: &mut BTreeMap<String, u32>| {
        for message in &messages {
            let number =
                id(message).rsplit('-').next().and_then(|n| n.parse::<u32>().ok()).expect("a number");
            let expected = next.entry(lite_of(message).to_owned()).or_default();
            // A delivery that died with its leader comes again.
            assert!(number <= *expected, "{} before {expected}", id(message));
            *expected = (*expected).max(number + 1);
        }
        messages
    };
    let receive = Receive { batch: 3, ..short() };
    let first = take(reader.receive("rooms", "agents", receive.clone()).await.1, &mut next);
    assert!(!first.is_empty());
    assert_eq!(ack(&reader, &first[0], "room-0").await, Code::IllegalLiteTopic, "not of that lite topic");
    for message in &first {
        assert_eq!(system(message).message_type, MessageType::Lite as i32);
        assert_eq!(ack(&reader, message, lite_of(message)).await, Code::Ok);
    }

    cluster = tokio::task::spawn_blocking(move || {
        cluster.nodes[leader].kill();
        cluster
    })
    .await
    .expect("killed");
    let sender = Client::connect(&cluster.nodes[(leader + 2) % 3].client_addr()).await;
    let began = tokio::time::Instant::now();
    for name in &names {
        let response = loop {
            let sent = sender.try_send(vec![lite(name, &format!("{name}-2"))]).await.expect("an answer");
            if code(sent.status.as_ref()) == Code::Ok || began.elapsed() > PATIENCE {
                break sent;
            }
        };
        assert_eq!(code(response.status.as_ref()), Code::Ok);
    }
    let done = |next: &BTreeMap<String, u32>| next.len() == 5 && next.values().all(|next| *next == 3);
    while !done(&next) && began.elapsed() < PATIENCE + Duration::from_secs(35) {
        for message in take(reader.receive("rooms", "agents", short()).await.1, &mut next) {
            assert_eq!(ack(&reader, &message, lite_of(&message)).await, Code::Ok);
        }
    }
    assert!(done(&next), "every message of what it reads and nothing else: {next:?}");
    stop(cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_lost_a_lite_topic_is_told_on_its_stream_through_whatever_node_holds_it() {
    let cluster = start(2, "rooms", MessageType::Lite).await;
    let set = SetConsumerGroupRequest {
        name: "agents".to_owned(),
        lite_exclusive: Some(true),
        lite_client_quota: Some(7),
        ..SetConsumerGroupRequest::default()
    };
    admin(&cluster).await.set_consumer_group(set).await.expect("set");
    let old = Client::connect(&cluster.nodes[0].client_addr()).await;
    let new = Client::connect(&cluster.nodes[1].client_addr()).await;
    let mut heard = telemetry(&old, ClientType::LitePushConsumer).await;
    let told = settings_of(&mut heard).await;
    assert_eq!((told.lite_subscription_quota, told.max_lite_topic_size), (Some(7), Some(64)));
    // One that says it is no lite client is told nothing, whatever it does.
    let mut plain = telemetry(&new, ClientType::SimpleConsumer).await;
    assert_eq!(settings_of(&mut plain).await.lite_subscription_quota, None);

    let rooms = ["a", "b", "c"];
    assert_eq!(sync(&old, LiteSubscriptionAction::PartialAdd, &rooms).await, Code::Ok);
    let eight: Vec<String> = (0..8).map(|number| format!("n{number}")).collect();
    let eight: Vec<&str> = eight.iter().map(String::as_str).collect();
    let quota = Code::LiteSubscriptionQuotaExceeded;
    assert_eq!(sync(&old, LiteSubscriptionAction::CompleteAdd, &eight).await, quota);
    assert_eq!(sync(&new, LiteSubscriptionAction::PartialAdd, &rooms).await, Code::Ok);
    let mut lost = BTreeSet::new();
    while lost.len() < 3 {
        let said = tokio::time::timeout(PATIENCE, heard.recv()).await.expect("in time").expect("open");
        match said.command {
            Some(Command::NotifyUnsubscribeLiteCommand(notice)) => {
                assert!(lost.insert(notice.lite_topic), "told once");
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(lost, BTreeSet::from(rooms.map(str::to_owned)));

    old.send(lite("a", "m")).await;
    assert_eq!(old.receive("rooms", "agents", short()).await.1, []);
    // The full list of one that did not listen takes nothing back.
    assert_eq!(sync(&old, LiteSubscriptionAction::CompleteAdd, &rooms).await, Code::Ok);
    assert_eq!(old.receive("rooms", "agents", short()).await.1, []);
    let (_, got) = new.receive("rooms", "agents", Receive::default()).await;
    assert_eq!(got.iter().map(lite_of).collect::<Vec<_>>(), ["a"]);
    assert_eq!(ack(&new, &got[0], "a").await, Code::Ok);
    // It takes one back, and the other, which is no lite client, is told nothing.
    assert_eq!(sync(&old, LiteSubscriptionAction::PartialAdd, &["b"]).await, Code::Ok);
    old.send(lite("b", "n")).await;
    assert_eq!(old.receive("rooms", "agents", Receive::default()).await.1.len(), 1);
    assert!(plain.try_recv().is_err());
    stop(cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lite_requests_that_do_not_fit_get_their_codes_and_a_suspended_delivery_is_no_attempt() {
    let cluster = start(1, "rooms", MessageType::Lite).await;
    let client = Client::connect(&cluster.nodes[0].client_addr()).await;
    client.send(message("plain", "first", "body")).await;
    let add = LiteSubscriptionAction::PartialAdd;
    assert_eq!(sync_for(&client, "agents", "plain", add, &["a"]).await, Code::BadRequest);
    assert_eq!(sync(&client, LiteSubscriptionAction::CompleteAdd, &["a"]).await, Code::Ok);
    let create = CreateTopicRequest {
        name: "others".to_owned(),
        message_type: MessageType::Lite as i32,
        ..CreateTopicRequest::default()
    };
    admin(&cluster).await.create_topic(create).await.expect("created");
    assert_eq!(sync_for(&client, "agents", "others", add, &["a"]).await, Code::BadRequest, "bound to rooms");
    assert_eq!(client.receive("others", "agents", short()).await.0, Code::BadRequest);
    assert_eq!(client.receive("plain", "agents", short()).await.0, Code::BadRequest, "no lite topic");
    assert_eq!(client.receive("rooms", "nobody", short()).await, (Code::MessageNotFound, vec![]));

    let set = SetConsumerGroupRequest {
        name: "agents".to_owned(),
        fifo: Some(true),
        ..SetConsumerGroupRequest::default()
    };
    admin(&cluster).await.set_consumer_group(set).await.expect("set");
    let request = QueryAssignmentRequest {
        topic: Some(resource("rooms")),
        group: Some(resource("agents")),
        endpoints: None,
    };
    let request = client.request(request, Duration::from_secs(3));
    let assigned = client.stub().query_assignment(request).await.expect("an answer").into_inner().assignments;
    let queues: Vec<i32> =
        assigned.into_iter().filter_map(|a| a.message_queue).map(|queue| queue.id).collect();
    assert_eq!(queues, [-1, -1], "one for each broker group");

    client.send(lite("a", "m")).await;
    for suspend in [true, true, false] {
        let (_, got) = client.receive("rooms", "agents", Receive::default()).await;
        assert_eq!(got.len(), 1);
        assert_eq!(system(&got[0]).delivery_attempt, Some(1));
        let change = |lite_topic: &str| ChangeInvisibleDurationRequest {
            group: Some(resource("agents")),
            topic: Some(resource("rooms")),
            receipt_handle: handle(&got[0]).to_owned(),
            invisible_duration: Some(prost_types::Duration { seconds: 0, nanos: 50_000_000 }),
            message_id: "m".to_owned(),
            lite_topic: Some(lite_topic.to_owned()),
            suspend: Some(suspend),
        };
        for (lite_topic, expected) in [("b", Code::IllegalLiteTopic), ("a", Code::Ok)] {
            let request = client.request(change(lite_topic), Duration::from_secs(3));
            let answer = client.stub().change_invisible_duration(request).await.expect("an answer");
            assert_eq!(code(answer.into_inner().status.as_ref()), expected);
        }
    }
    let (_, got) = client.receive("rooms", "agents", Receive::default()).await;
    assert_eq!(system(&got[0]).delivery_attempt, Some(2));
    assert_eq!(client.terminate("agents").await, Code::Ok);
    client.send(lite("a", "after")).await;
    assert_eq!(client.receive("rooms", "agents", short()).await.1, [], "it has left");
    stop(cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_highest_priority_is_received_first() {
    let cluster = start(1, "urgent", MessageType::Priority).await;
    let client = Client::connect(&cluster.nodes[0].client_addr()).await;
    for number in 0..24 {
        let mut message = message("urgent", &format!("m{number}"), "body");
        message.system_properties.as_mut().expect("system properties").priority = Some(number % 6);
        client.send(message).await;
    }
    let mut received = 0;
    for broker in ["g", "h"] {
        let mut last = i32::MAX;
        loop {
            let receive = Receive { broker: broker.to_owned(), batch: 5, ..short() };
            let (_, got) = client.receive("urgent", "workers", receive).await;
            if got.is_empty() {
                break;
            }
            for message in &got {
                let priority = system(message).priority.expect("echoed");
                assert_eq!(system(message).message_type, MessageType::Priority as i32);
                // 3, 4 and 5 share the last of four queues.
                assert!(priority.min(3) <= last, "{priority} after {last}");
                last = priority.min(3);
                received += 1;
                assert_eq!(client.ack("urgent", "workers", message).await, Code::Ok);
            }
        }
    }
    assert_eq!(received, 24);
    stop(cluster).await;
}
