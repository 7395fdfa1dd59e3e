//! Delayed messages: in time, never early, recalled or delivered and not both; also when the leader dies.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ledgermq_common::recall_handle::RecallHandle;
use ledgermq_common::{GroupId, PhysicalOffset};
use ledgermq_proto::admin::CreateTopicRequest;
use ledgermq_proto::admin::admin_client::AdminClient;
use ledgermq_proto::rocketmq::{Code, Message, MessageType, SendResultEntry};
use tonic::transport::Endpoint;

use crate::support::client::{Receive, code, id, message, system};
use crate::support::{Client, Cluster};

const AHEAD_MS: u64 = 1_500;
const DAY_S: u64 = 24 * 3600;

#[expect(clippy::disallowed_methods, reason = "delivery times are by the wall clock of the client")]
fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    u64::try_from(now.as_millis()).expect("a time")
}

fn delayed(topic: &str, id: &str, at_ms: u64) -> Message {
    let mut message = message(topic, id, id);
    let system = message.system_properties.as_mut().expect("system properties");
    system.delivery_timestamp = Some(prost_types::Timestamp {
        seconds: i64::try_from(at_ms / 1000).expect("seconds"),
        nanos: i32::try_from(at_ms % 1000 * 1_000_000).expect("nanoseconds"),
    });
    message
}

pub(crate) fn delayed_by(topic: &str, id: &str, ahead_ms: u64) -> Message {
    delayed(topic, id, now_ms() + ahead_ms)
}

async fn start(nodes: usize) -> Cluster {
    let cluster = tokio::task::spawn_blocking(move || Cluster::start(nodes)).await.expect("a cluster");
    let address = format!("http://{}", cluster.nodes[0].client_addr());
    let endpoint = Endpoint::from_shared(address).expect("an address");
    let mut admin = AdminClient::new(endpoint.connect().await.expect("a broker"));
    let create = CreateTopicRequest {
        name: "later".to_owned(),
        message_type: MessageType::Delay as i32,
        ..CreateTopicRequest::default()
    };
    admin.create_topic(create).await.expect("created");
    cluster
}

async fn stop(cluster: Cluster) {
    tokio::task::spawn_blocking(move || drop(cluster)).await.expect("the end of the cluster");
}

async fn send(client: &Client, message: Message) -> SendResultEntry {
    let response = client.try_send(vec![message]).await.expect("an answer");
    assert_eq!(code(response.status.as_ref()), Code::Ok, "{response:?}");
    response.entries.into_iter().next().expect("an entry")
}

/// Ids that arrive until there are `count`, each with how late it was.
async fn receive(client: &Client, group: &str, count: usize) -> Vec<(String, i64)> {
    let mut arrived = Vec::new();
    while arrived.len() < count {
        let (status, messages) = client.receive("later", group, Receive::default()).await;
        assert!(matches!(status, Code::Ok | Code::MessageNotFound), "{status:?}");
        for got in messages {
            let due = system(&got).delivery_timestamp.as_ref().expect("the time it was to be delivered");
            let due_ms = due.seconds * 1000 + i64::from(due.nanos) / 1_000_000;
            let late_ms = i64::try_from(now_ms()).expect("a time") - due_ms;
            assert_eq!(client.ack("later", group, &got).await, Code::Ok);
            arrived.push((id(&got).to_owned(), late_ms));
        }
    }
    arrived
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_delayed_message_comes_at_its_time_and_one_that_is_late_at_once() {
    let cluster = start(1).await;
    let client = Client::connect(&cluster.nodes[0].client_addr()).await;
    let due_ms = now_ms() + AHEAD_MS;
    send(&client, delayed("later", "later", due_ms)).await;
    let past = send(&client, delayed("later", "past", 5)).await;
    assert_eq!(past.recall_handle, "", "what is delivered cannot be recalled");
    assert_eq!(receive(&client, "c", 1).await[0].0, "past");
    let (arrived, late_ms) = receive(&client, "c", 1).await.remove(0);
    assert_eq!(arrived, "later");
    assert!(late_ms >= 0, "{late_ms} ms: early");
    assert!(late_ms < 1_000, "{late_ms} ms late");
    stop(cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_delay_level_counts_from_the_send_and_is_not_handed_on() {
    let cluster = start(1).await;
    let client = Client::connect(&cluster.nodes[0].client_addr()).await;
    let mut levelled = message("later", "level", "body");
    levelled.user_properties.insert("DELAY".to_owned(), "1".to_owned());
    let before = now_ms();
    assert_ne!(send(&client, levelled).await.recall_handle, "");
    let (status, messages) = client.receive("later", "c", Receive::default()).await;
    assert_eq!((status, id(&messages[0])), (Code::Ok, "level"));
    assert!(now_ms() - before >= 1_000, "level 1 is a second");
    assert!(!messages[0].user_properties.contains_key("DELAY"), "it would be delayed again when sent on");
    stop(cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_recalled_message_never_comes_and_a_repeat_of_the_recall_is_fine() {
    let cluster = start(1).await;
    let client = Client::connect(&cluster.nodes[0].client_addr()).await;
    let due_ms = now_ms() + AHEAD_MS;
    let recalled = send(&client, delayed("later", "recalled", due_ms)).await;
    let kept = send(&client, delayed("later", "kept", due_ms)).await;
    let repeated = send(&client, delayed("later", "recalled", due_ms + 5)).await;
    assert_eq!(repeated.recall_handle, recalled.recall_handle, "a repeated send has the first handle");
    for _ in 0..2 {
        let answer = client.recall("later", &recalled.recall_handle).await;
        assert_eq!(code(answer.status.as_ref()), Code::Ok);
        assert_eq!(answer.message_id, "recalled");
    }
    assert_eq!(receive(&client, "c", 1).await[0].0, "kept");
    let poll = Receive { poll: Duration::from_millis(300), ..Receive::default() };
    assert_eq!(client.receive("later", "c", poll).await.0, Code::MessageNotFound);
    let answers = [(&recalled.recall_handle, Code::Ok), (&kept.recall_handle, Code::PreconditionFailed)];
    for (over, expected) in answers {
        let answer = client.recall("later", over).await;
        assert_eq!(code(answer.status.as_ref()), expected, "the first answer again, also after its time");
    }
    stop(cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_is_wrong_with_a_delay_or_a_recall_is_refused_with_its_code() {
    let cluster = start(1).await;
    let client = Client::connect(&cluster.nodes[0].client_addr()).await;
    client.send(message("normal", "id", "body")).await;
    let due_ms = now_ms() + 3_600_000;
    let good = send(&client, delayed("later", "good", due_ms)).await.recall_handle;
    let parsed = RecallHandle::parse(&good).expect("its own handle");
    let other_group = RecallHandle { group: GroupId(77), ..parsed }.encode();
    let other_topic = RecallHandle { topic_id: parsed.topic_id + 1, ..parsed }.encode();
    let made_up = RecallHandle { physical: PhysicalOffset(parsed.physical.get() + 1), ..parsed }.encode();
    let rows = [
        ("later", "", Code::BadRequest),
        ("later", "garbage", Code::BadRequest),
        ("later", &good[1..], Code::BadRequest),
        ("later", &other_group, Code::BadRequest),
        ("later", &other_topic, Code::BadRequest),
        ("later", &made_up, Code::BadRequest),
        ("normal", &good, Code::MessagePropertyConflictWithType),
        ("bad topic", &good, Code::IllegalTopic),
    ];
    for (topic, handle, expected) in rows {
        let answer = client.recall(topic, handle).await;
        assert_eq!(code(answer.status.as_ref()), expected, "{topic} {handle}");
        assert_eq!(answer.message_id, "");
    }
    assert_eq!(code(client.recall("later", &good).await.status.as_ref()), Code::Ok, "it is unharmed");

    let too_far = delayed("later", "far", now_ms() + 41 * DAY_S * 1000);
    let refused = client.try_send(vec![too_far]).await.expect("an answer");
    assert_eq!(code(refused.status.as_ref()), Code::IllegalDeliveryTime);
    let furthest = delayed("later", "furthest", now_ms() + 39 * DAY_S * 1000);
    assert_ne!(send(&client, furthest).await.recall_handle, "");
    let undelayed = client.try_send(vec![message("later", "plain", "body")]).await.expect("an answer");
    assert_eq!(code(undelayed.status.as_ref()), Code::MessagePropertyConflictWithType);
    stop(cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn timers_fire_once_and_never_early_although_the_leader_dies_before_their_time() {
    let cluster = start(3).await;
    let (cluster, leader, follower) = tokio::task::spawn_blocking(move || {
        let leader = cluster.leader();
        let follower = cluster.follower();
        (cluster, leader, follower)
    })
    .await
    .expect("roles");
    let client = Client::connect(&cluster.nodes[follower].client_addr()).await;
    let due_ms = now_ms() + 2_000;
    let mut handles = Vec::new();
    for number in 0..40u64 {
        let entry = send(&client, delayed("later", &format!("{number}"), due_ms + number * 20)).await;
        handles.push(entry.recall_handle);
    }
    let mut cluster = cluster;
    cluster = tokio::task::spawn_blocking(move || {
        cluster.nodes[leader].kill();
        cluster
    })
    .await
    .expect("killed");
    // Through the node that forwards, to whoever leads now.
    for handle in handles.iter().skip(20) {
        assert_eq!(code(client.recall("later", handle).await.status.as_ref()), Code::Ok);
    }
    let arrived = receive(&client, "c", 20).await;
    let mut numbers: Vec<u64> = arrived.iter().map(|(id, _)| id.parse().expect("a number")).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (0..20).collect::<Vec<u64>>(), "each that was not recalled, once");
    let late_ms: Vec<i64> = arrived.iter().map(|(_, late_ms)| *late_ms).collect();
    assert!(late_ms.iter().all(|late_ms| *late_ms >= 0), "early: {late_ms:?}");
    println!("late by {late_ms:?} ms");
    let poll = Receive { poll: Duration::from_millis(1_500), ..Receive::default() };
    assert_eq!(client.receive("later", "c", poll).await.0, Code::MessageNotFound, "no recalled one comes");
    stop(cluster).await;
}
