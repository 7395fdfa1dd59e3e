//! What a client sees of a broker, on a cluster of one node: delivery, leases, refusals.

use std::time::{Duration, Instant};

use crate::support::client::{Receive, code, handle, id, message, system, tagged};
use crate::support::{Client, Cluster};
use futures_util::StreamExt as _;
use ledgermq_common::ReceiptHandle;
use ledgermq_proto::rocketmq::{Code, DigestType, Encoding};

/// Long enough for a message that is there, and a bound for one that is not.
const SHORT_POLL: Duration = Duration::from_millis(300);

fn short() -> Receive {
    Receive { poll: SHORT_POLL, ..Receive::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_message_arrives_with_everything_its_producer_said() {
    let cluster = tokio::task::spawn_blocking(|| Cluster::start(1)).await.expect("a cluster");
    let client = Client::connect(&cluster.nodes[0].client_addr()).await;
    let offset = client.send(message("orders", "id-1", "hello")).await;
    let (status, messages) = client.receive("orders", "billing", Receive::default()).await;
    assert_eq!((status, messages.len()), (Code::Ok, 1));
    let got = &messages[0];
    let sent = message("orders", "id-1", "hello");
    assert_eq!(
        (&got.body, &got.topic, &got.user_properties),
        (&sent.body, &sent.topic, &sent.user_properties)
    );
    let (got, sent) = (system(got), system(&sent));
    assert_eq!((&got.tag, &got.keys, &got.message_id), (&sent.tag, &sent.keys, &sent.message_id));
    assert_eq!((&got.born_timestamp, &got.born_host), (&sent.born_timestamp, &sent.born_host));
    let digest = got.body_digest.as_ref().expect("a digest");
    assert_eq!(
        (digest.r#type, digest.checksum.as_str()),
        (DigestType::Md5 as i32, "5D41402ABC4B2A76B9719D911017C592")
    );
    assert_eq!(got.body_encoding, Encoding::Identity as i32);
    assert_eq!((got.queue_offset, got.delivery_attempt), (Some(offset), Some(1)));
    assert_eq!(got.invisible_duration.as_ref().map(|duration| duration.seconds), Some(30));
    assert!(got.store_timestamp.is_some() && !got.store_host.is_empty());
    stop(cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_unacknowledged_message_comes_back_and_its_old_handle_is_refused() {
    let cluster = tokio::task::spawn_blocking(|| Cluster::start(1)).await.expect("a cluster");
    let client = Client::connect(&cluster.nodes[0].client_addr()).await;
    client.send(message("t", "id-1", "body")).await;
    let (_, first) = client.receive("t", "c", Receive::default()).await;
    let changed = client.change_invisible("t", "c", handle(&first[0]), Duration::from_millis(100)).await;
    assert_eq!(code(changed.status.as_ref()), Code::Ok);
    assert_ne!(changed.receipt_handle, "");

    let (_, second) = client.receive("t", "c", Receive::default()).await;
    assert_eq!((id(&second[0]), system(&second[0]).delivery_attempt), ("id-1", Some(2)));
    assert_eq!(client.ack("t", "c", &first[0]).await, Code::InvalidReceiptHandle);
    assert_eq!(client.ack_handle("t", "c", &changed.receipt_handle).await, Code::InvalidReceiptHandle);
    assert_eq!(client.ack("t", "c", &second[0]).await, Code::Ok);
    assert_eq!(client.ack("t", "c", &second[0]).await, Code::Ok, "a repeat of a lost answer");
    assert_eq!(client.receive("t", "c", short()).await, (Code::MessageNotFound, vec![]));
    stop(cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn both_handles_of_one_delivery_acknowledge_it() {
    let cluster = tokio::task::spawn_blocking(|| Cluster::start(1)).await.expect("a cluster");
    let client = Client::connect(&cluster.nodes[0].client_addr()).await;
    for which in ["old", "new"] {
        client.send(message("t", which, "body")).await;
        let (_, messages) = client.receive("t", "c", Receive::default()).await;
        let old = handle(&messages[0]);
        let changed = client.change_invisible("t", "c", old, Duration::from_secs(60)).await;
        let handle = if which == "old" { old } else { &changed.receipt_handle };
        assert_eq!(client.ack_handle("t", "c", handle).await, Code::Ok, "{which}");
    }
    stop(cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_receipt_handle_that_is_not_of_this_delivery_is_refused_and_changes_nothing() {
    let cluster = tokio::task::spawn_blocking(|| Cluster::start(1)).await.expect("a cluster");
    let client = Client::connect(&cluster.nodes[0].client_addr()).await;
    for topic in ["t", "other-topic"] {
        client.send(message(topic, topic, "body")).await;
        client.receive(topic, "other", Receive { batch: 1, ..short() }).await;
    }
    let (_, messages) = client.receive("t", "c", Receive::default()).await;
    let good = handle(&messages[0]);
    let parsed = ReceiptHandle::parse(good).expect("its own handle");
    let never_given = ReceiptHandle { offset: ledgermq_common::QueueOffset(99), ..parsed };
    let older = ReceiptHandle { delivery_epoch: parsed.delivery_epoch.saturating_sub(1), ..parsed };
    let other_group = ReceiptHandle { group: ledgermq_common::GroupId(77), ..parsed };
    let rows = [
        ("t", "c", "garbage".to_owned(), Code::InvalidReceiptHandle),
        ("t", "c", String::new(), Code::InvalidReceiptHandle),
        ("t", "c", good[1..].to_owned(), Code::InvalidReceiptHandle),
        ("other-topic", "c", good.to_owned(), Code::InvalidReceiptHandle),
        ("t", "other", good.to_owned(), Code::InvalidReceiptHandle),
        ("t", "nobody", good.to_owned(), Code::ConsumerGroupNotFound),
        ("no-such-topic", "c", good.to_owned(), Code::TopicNotFound),
        ("t", "c", never_given.encode(), Code::InvalidReceiptHandle),
        ("t", "c", older.encode(), Code::InvalidReceiptHandle),
        ("t", "c", other_group.encode(), Code::InvalidReceiptHandle),
    ];
    for (topic, group, handle, expected) in &rows {
        assert_eq!(client.ack_handle(topic, group, handle).await, *expected, "ack {topic} {group} {handle}");
        let changed = client.change_invisible(topic, group, handle, Duration::from_secs(1)).await;
        assert_eq!(code(changed.status.as_ref()), *expected, "change {topic} {group} {handle}");
        assert_eq!(changed.receipt_handle, "", "a refused change gives no handle");
    }
    assert_eq!(client.ack("t", "c", &messages[0]).await, Code::Ok, "the delivery itself is unharmed");
    stop(cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_nack_waits_for_the_step_of_the_retry_policy_instead_of_coming_back_at_once() {
    let cluster = tokio::task::spawn_blocking(|| Cluster::start(1)).await.expect("a cluster");
    let client = Client::connect(&cluster.nodes[0].client_addr()).await;
    client.send(message("t", "id-1", "body")).await;
    let (_, messages) = client.receive("t", "c", Receive::default()).await;
    let nacked = Instant::now();
    client.change_invisible("t", "c", handle(&messages[0]), Duration::from_millis(1)).await;
    let (_, again) = client.receive("t", "c", Receive::default()).await;
    assert_eq!(system(&again[0]).delivery_attempt, Some(2));
    let waited = nacked.elapsed();
    assert!(waited >= Duration::from_millis(990), "the first step is a second, it came after {waited:?}");
    stop(cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_filtered_receive_takes_its_tags_and_waits_for_them() {
    let cluster = tokio::task::spawn_blocking(|| Cluster::start(1)).await.expect("a cluster");
    let client = Client::connect(&cluster.nodes[0].client_addr()).await;
    // "Aa" and "BB" have the same hash code: only their text tells them apart.
    for (id, tag) in [("1", "Aa"), ("2", "BB"), ("3", "C"), ("4", "BB")] {
        client.send(tagged("t", id, tag)).await;
    }
    let wanted = Receive { tags: Some("BB || C".to_owned()), ..Receive::default() };
    let mut ids = Vec::new();
    while ids.len() < 3 {
        let (status, messages) = client.receive("t", "c", wanted.clone()).await;
        assert_eq!(status, Code::Ok);
        ids.extend(messages.iter().map(|message| id(message).to_owned()));
    }
    ids.sort();
    assert_eq!(ids, ["2", "3", "4"]);

    let waiting = {
        let (client, wanted) = (client.clone(), wanted.clone());
        tokio::spawn(async move { client.receive("t", "c", wanted).await })
    };
    client.send(tagged("t", "5", "Aa")).await;
    client.send(tagged("t", "6", "C")).await;
    let (_, messages) = waiting.await.expect("the waiting receive");
    assert_eq!(messages.iter().map(id).collect::<Vec<_>>(), ["6"]);
    stop(cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_long_poll_ends_when_a_message_comes_or_before_its_time_is_over() {
    let cluster = tokio::task::spawn_blocking(|| Cluster::start(1)).await.expect("a cluster");
    let client = Client::connect(&cluster.nodes[0].client_addr()).await;
    client.send(message("t", "first", "body")).await;
    let (_, messages) = client.receive("t", "c", Receive::default()).await;
    client.ack("t", "c", &messages[0]).await;

    let poll = Receive { poll: Duration::from_secs(20), ..Receive::default() };
    let began = Instant::now();
    let waiting: Vec<_> = (0..3)
        .map(|_| {
            let (client, poll) = (client.clone(), poll.clone());
            tokio::spawn(async move { client.receive("t", "c", poll).await })
        })
        .collect();
    for id in ["a", "b", "c"] {
        client.send(message("t", id, "body")).await;
    }
    // One poll may take two of the three; then another one finds nothing and goes on waiting.
    let mut ids = Vec::new();
    let mut waiting: futures_util::stream::FuturesUnordered<_> = waiting.into_iter().collect();
    while ids.len() < 3 {
        let (status, messages) = waiting.next().await.expect("a poll").expect("a receive");
        assert_eq!(status, Code::Ok);
        ids.extend(messages.iter().map(|message| id(message).to_owned()));
    }
    ids.sort();
    assert_eq!(ids, ["a", "b", "c"]);
    assert!(began.elapsed() < Duration::from_secs(10), "arrivals wake polls, their end does not");
    drop(waiting);

    let began = Instant::now();
    assert_eq!(client.receive("t", "d-none", short()).await.0, Code::Ok, "a new group begins at the oldest");
    assert_eq!(client.receive("empty", "c", short()).await.0, Code::TopicNotFound);
    assert_eq!(client.receive("t", "c", short()).await.0, Code::MessageNotFound);
    assert!(began.elapsed() < Duration::from_secs(5));
    stop(cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_a_terminated_client_held_is_delivered_to_others_soon() {
    let cluster = tokio::task::spawn_blocking(|| Cluster::start(1)).await.expect("a cluster");
    let client = Client::connect(&cluster.nodes[0].client_addr()).await;
    let other = Client::connect(&cluster.nodes[0].client_addr()).await;
    client.send(message("t", "id-1", "body")).await;
    client.receive("t", "c", Receive { invisible: Duration::from_secs(300), ..Receive::default() }).await;
    assert_eq!(client.terminate("c").await, Code::Ok);
    let (status, messages) = other.receive("t", "c", Receive::default()).await;
    assert_eq!((status, messages.len()), (Code::Ok, 1));
    stop(cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_unknown_topic_is_refused_where_first_use_does_not_create_it() {
    let start = || Cluster::start_with(1, |config| config.topics.auto_create = false);
    let cluster = tokio::task::spawn_blocking(start).await.expect("a cluster");
    let client = Client::connect(&cluster.nodes[0].client_addr()).await;
    let response = client.try_send(vec![message("t", "id", "body")]).await.expect("an answer");
    assert_eq!(code(response.status.as_ref()), Code::TopicNotFound);
    stop(cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn probes_and_metrics_tell_the_state_of_the_node() {
    let cluster = tokio::task::spawn_blocking(|| Cluster::start(1)).await.expect("a cluster");
    let client = Client::connect(&cluster.nodes[0].client_addr()).await;
    client.send(message("orders", "id-1", "hello")).await;
    client.receive("orders", "billing", Receive::default()).await;
    let (cluster, metrics) = tokio::task::spawn_blocking(move || {
        assert_eq!(cluster.nodes[0].http("/livez").0, 200);
        let (status, body) = cluster.nodes[0].http("/readyz");
        assert_eq!((status, body.as_str()), (200, r#"{"ready":true,"reasons":[]}"#));
        let metrics = cluster.nodes[0].http("/metrics").1;
        (cluster, metrics)
    })
    .await
    .expect("answers");
    let common = r#"cluster="test",node_type="broker",node_id="1""#;
    for line in [
        format!(
            r#"rocketmq_messages_in_total{{{common},topic="orders",message_type="normal",is_system="false"}} 1"#
        ),
        format!(
            r#"rocketmq_throughput_in_total{{{common},topic="orders",message_type="normal",is_system="false"}} 5"#
        ),
        format!(
            r#"rocketmq_messages_out_total{{{common},topic="orders",consumer_group="billing",is_system="false",is_retry="false"}} 1"#
        ),
        format!(
            r#"rocketmq_consumer_inflight_messages{{{common},consumer_group="billing",topic="orders",group="g",is_retry="false",is_system="false"}} 1"#
        ),
        format!(r#"ledgermq_raft_has_leader{{{common},group="g"}} 1"#),
        format!(r#"ledgermq_raft_is_leader{{{common},group="g"}} 1"#),
        format!("rocketmq_topic_number{{{common}}} 1"),
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line} is missing from\n{metrics}");
    }
    stop(cluster).await;
}

async fn stop(cluster: Cluster) {
    // A runtime must not be dropped inside another one.
    tokio::task::spawn_blocking(move || drop(cluster)).await.expect("the end of the cluster");
}
