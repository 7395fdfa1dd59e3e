//! The history of messages, as an administrator reads it from the log.

use std::time::{Duration, Instant};

use ledgermq_proto::admin as wire;
use ledgermq_proto::admin::admin_client::AdminClient;
use ledgermq_proto::rocketmq::{Code, MessageType, TransactionResolution};
use tonic::transport::Channel;

use crate::delayed::delayed_by;
use crate::support::client::{Receive, code, handle, message};
use crate::support::{Client, Cluster, PATIENCE};
use crate::transactions::{admin, end, half, stop};

type Story = Vec<(String, String)>;

async fn start(nodes: usize) -> Cluster {
    let start = move || {
        Cluster::start_with(nodes, |config| {
            config.topics.default_queues = 1;
            config.topics.retention_check_ms = 100;
        })
    };
    tokio::task::spawn_blocking(start).await.expect("a cluster")
}

async fn pages(admin: &mut AdminClient<Channel>, id: &str) -> Vec<wire::TraceMessageResponse> {
    let mut pages = Vec::new();
    let mut from = None;
    loop {
        let request =
            wire::TraceMessageRequest { message_id: id.to_owned(), topic: String::new(), from: from.take() };
        let page = admin.trace_message(request).await.expect("a history").into_inner();
        assert!(page.found);
        from.clone_from(&page.next);
        pages.push(page);
        if from.is_none() {
            return pages;
        }
    }
}

async fn rows(admin: &mut AdminClient<Channel>, id: &str) -> Vec<wire::TraceRow> {
    let rows: Vec<_> = pages(admin, id).await.into_iter().flat_map(|page| page.rows).collect();
    assert!(rows.is_sorted_by_key(|row| (row.term, row.log_index, row.physical_offset)), "{rows:?}");
    rows
}

/// What happened, and for which consumer group.
fn story(rows: &[wire::TraceRow]) -> Story {
    rows.iter().map(|row| (row.what.clone(), row.consumer_group.clone())).collect()
}

fn told(rows: &[(&str, &str)]) -> Story {
    rows.iter().map(|(what, group)| ((*what).to_owned(), (*group).to_owned())).collect()
}

async fn create(admin: &mut AdminClient<Channel>, name: &str, message_type: MessageType) {
    let create = wire::CreateTopicRequest {
        name: name.to_owned(),
        queues: 1,
        message_type: message_type as i32,
        ..wire::CreateTopicRequest::default()
    };
    admin.create_topic(create).await.expect("created");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retries_lead_to_the_dead_letters_and_back() {
    let cluster = start(1).await;
    let mut operator = admin(&cluster, 0).await;
    let client = Client::connect(&cluster.nodes[0].client_addr()).await.named("consumer-7");
    let retry = wire::SetConsumerGroupRequest {
        name: "c".to_owned(),
        max_attempts: 2,
        ..wire::SetConsumerGroupRequest::default()
    };
    operator.set_consumer_group(retry).await.expect("set");
    client.send(message("t", "before", "body")).await;
    client.send(message("t", "m", "body")).await;
    client.send(message("t", "m", "body")).await;
    let (_, first) = client.receive("t", "c", Receive::default()).await;
    assert_eq!(first.len(), 2);
    assert_eq!(client.ack("t", "c", &first[0]).await, Code::Ok);
    let soon = Duration::from_millis(10);
    let moved = client.change_invisible("t", "c", handle(&first[1]), soon).await;
    assert_eq!(code(moved.status.as_ref()), Code::Ok);
    let (_, second) = client.receive("t", "c", Receive::default()).await;
    let moved = client.change_invisible("t", "c", handle(&second[0]), soon).await;
    assert_eq!(code(moved.status.as_ref()), Code::Ok);
    let began = Instant::now();
    let letter = loop {
        let list = wire::ListDeadLettersRequest {
            consumer_group: "c".to_owned(),
            ..wire::ListDeadLettersRequest::default()
        };
        let letters = operator.list_dead_letters(list).await.expect("listed").into_inner().letters;
        if let Some(letter) = letters.into_iter().next() {
            break letter;
        }
        assert!(began.elapsed() < PATIENCE, "it is given up");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let redrive = wire::RedriveDeadLettersRequest {
        consumer_group: "c".to_owned(),
        group: "g".to_owned(),
        offsets: vec![letter.offset],
    };
    operator.redrive_dead_letters(redrive).await.expect("redriven");
    let (_, third) = client.receive("t", "c", Receive::default()).await;
    assert_eq!(client.ack("t", "c", &third[0]).await, Code::Ok);
    assert_eq!(client.ack("t", "c", &third[0]).await, Code::Ok, "a repeat");
    client.receive("t", "other", Receive::default()).await;

    let found = rows(&mut operator, "m").await;
    let expected = [
        ("stored", ""),
        ("sent again", ""),
        ("delivered", "c"),
        ("invisible duration changed", "c"),
        ("delivered", "c"),
        ("invisible duration changed", "c"),
        ("dead-lettered", "c"),
        ("redriven", "c"),
        ("delivered", "c"),
        ("acknowledged", "c"),
        ("acknowledged again", "c"),
        ("delivered", "other"),
    ];
    assert_eq!(story(&found), told(&expected));
    let attempts: Vec<Option<u32>> = [2, 4, 6, 8, 9].map(|row: usize| found[row].attempt).to_vec();
    assert_eq!(attempts, [Some(1), Some(2), Some(2), Some(1), Some(1)]);
    assert_eq!(found[2].client, "consumer-7");
    assert!(
        found[0].detail.contains("offset 1") && found[0].detail.contains("at somewhere"),
        "{:?}",
        found[0]
    );
    let dead_letter = found[6].dead_letter.clone().expect("its place");
    assert_eq!((dead_letter.group.as_str(), dead_letter.offset), ("g", letter.offset));
    assert!(found[6].detail.contains("attempts-exhausted after 2"), "{}", found[6].detail);
    assert!(found[3].until_ms.is_some_and(|until| until < found[2].until_ms.unwrap_or_default()));

    let keep = wire::SetTopicRetentionRequest { topic: "t".to_owned(), retention_ms: Some(1) };
    operator.set_topic_retention(keep).await.expect("set");
    let began = Instant::now();
    let last = loop {
        let last = rows(&mut operator, "m").await.pop().expect("rows");
        if last.what == "expired" {
            break last;
        }
        assert!(began.elapsed() < PATIENCE, "it expires; its dead letter keeps its record");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert!(last.detail.contains("keeps messages no longer"), "{}", last.detail);
    let unknown =
        wire::TraceMessageRequest { message_id: "none".to_owned(), ..wire::TraceMessageRequest::default() };
    let refused = operator.trace_message(unknown).await.expect_err("no such message");
    assert_eq!(refused.code(), tonic::Code::NotFound);
    stop(cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_is_told_from_its_half_to_its_one_outcome() {
    let cluster = start(1).await;
    let mut operator = admin(&cluster, 0).await;
    create(&mut operator, "pay", MessageType::Transaction).await;
    let client = Client::connect(&cluster.nodes[0].client_addr()).await;
    for (id, resolution) in [("yes", TransactionResolution::Commit), ("no", TransactionResolution::Rollback)]
    {
        let sent = client.try_send(vec![half("pay", id)]).await.expect("an answer");
        let transaction = &sent.entries[0].transaction_id;
        assert_eq!(end(&client, "pay", transaction, resolution).await.0, Code::Ok);
        assert_eq!(end(&client, "pay", transaction, resolution).await.0, Code::Ok);
    }
    client.receive("pay", "c", Receive::default()).await;
    let committed = rows(&mut operator, "yes").await;
    let expected = [("half stored", ""), ("committed", ""), ("decided again", ""), ("delivered", "c")];
    assert_eq!(story(&committed), told(&expected));
    assert!(committed[1].detail.contains("its producer"), "{}", committed[1].detail);
    let rolled_back = rows(&mut operator, "no").await;
    assert_eq!(story(&rolled_back), told(&[("half stored", ""), ("rolled back", ""), ("decided again", "")]));
    stop(cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delayed_message_is_told_until_it_fires_or_is_recalled() {
    let cluster = start(1).await;
    let mut operator = admin(&cluster, 0).await;
    create(&mut operator, "later", MessageType::Delay).await;
    let client = Client::connect(&cluster.nodes[0].client_addr()).await;
    let sent = client.try_send(vec![delayed_by("later", "far", 3_600_000)]).await.expect("an answer");
    client.try_send(vec![delayed_by("later", "soon", 300)]).await.expect("an answer");
    let recalled = client.recall("later", &sent.entries[0].recall_handle).await;
    assert_eq!(code(recalled.status.as_ref()), Code::Ok);
    let (_, messages) = client.receive("later", "c", Receive::default()).await;
    assert_eq!(client.ack("later", "c", &messages[0]).await, Code::Ok);
    let fired = rows(&mut operator, "soon").await;
    let expected = [("delayed", ""), ("fired", ""), ("delivered", "c"), ("acknowledged", "c")];
    assert_eq!(story(&fired), told(&expected));
    assert_eq!(story(&rows(&mut operator, "far").await), told(&[("delayed", ""), ("recalled", "")]));
    stop(cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_history_goes_on_across_a_leader_change_and_is_read_through_any_node() {
    let cluster = start(3).await;
    let (mut cluster, leader, follower) = tokio::task::spawn_blocking(move || {
        let (leader, follower) = (cluster.leader(), cluster.follower());
        (cluster, leader, follower)
    })
    .await
    .expect("roles");
    let client = Client::connect(&cluster.nodes[follower].client_addr()).await;
    client.send(message("t", "m", "body")).await;
    let (_, messages) = client.receive("t", "c", Receive::default()).await;
    cluster = tokio::task::spawn_blocking(move || {
        cluster.nodes[leader].kill();
        cluster
    })
    .await
    .expect("killed");
    let mut operator = admin(&cluster, follower).await;
    let began = Instant::now();
    while client.ack("t", "c", &messages[0]).await != Code::Ok {
        assert!(began.elapsed() < PATIENCE, "acknowledged by the next leader");
    }
    let found = rows(&mut operator, "m").await;
    assert_eq!(story(&found)[..2], told(&[("stored", ""), ("delivered", "c")]));
    assert_eq!(found[2].what, "acknowledged");
    assert!(found[2].term > found[1].term, "{found:?}");
    stop(cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_history_comes_in_pages() {
    let cluster = start(1).await;
    let mut operator = admin(&cluster, 0).await;
    let client = Client::connect(&cluster.nodes[0].client_addr()).await;
    client.send(message("t", "m", "body")).await;
    let (_, messages) = client.receive("t", "c", Receive::default()).await;
    for _ in 0..600 {
        assert_eq!(client.ack("t", "c", &messages[0]).await, Code::Ok);
    }
    let pages = pages(&mut operator, "m").await;
    assert!(pages.len() > 2 && pages.iter().all(|page| page.rows.len() <= 256), "{} pages", pages.len());
    let whats: Vec<&str> = pages.iter().flat_map(|page| &page.rows).map(|row| row.what.as_str()).collect();
    assert_eq!(whats.len(), 602);
    assert_eq!(whats[..3], ["stored", "delivered", "acknowledged"]);
    assert!(whats[3..].iter().all(|what| *what == "acknowledged again"));
    assert!(pages[0].facts.iter().any(|fact| fact.name == "kept until"), "{:?}", pages[0].facts);
    assert_eq!(pages[0].history_from, None, "the log has all of it");
    stop(cluster).await;
}
