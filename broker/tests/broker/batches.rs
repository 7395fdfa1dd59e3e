//! Batches of several topics over real nodes: one entry or none, repeats of them by a leader that died
//! between a proposal and its answer, and across the growth of a topic with order.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use ledgermq_proto::admin::CreateTopicRequest;
use ledgermq_proto::messaging::StoredPlace;
use ledgermq_proto::rocketmq::{Code, Message};

use crate::growth::update;
use crate::order::{
    admin, group_of, number_of, start as start_with_order, step, stop as stop_with_order, take,
};
use crate::support::client::{Receive, code, id, message, system};
use crate::support::{Client, PATIENCE};
use crate::three_nodes::{blocking, drain, roles, start, stop};

fn pair(number: u32) -> Vec<Message> {
    vec![
        message("debits", &format!("d{number}"), "from"),
        message("credits", &format!("c{number}"), "to"),
        message("debits", &format!("e{number}"), "fee"),
    ]
}

/// What tells a place from another.
fn place(place: &StoredPlace) -> (String, u32, u64) {
    (place.topic.clone(), place.queue, place.queue_offset)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_is_received_from_all_of_its_topics_and_counts_as_messages() {
    let cluster = start_with_order(1).await;
    let client = Client::connect(&cluster.nodes[0].client_addr()).await;
    let stored = client.batch(pair(0)).await;
    let broker = stored.broker_group.clone();
    let again = client.batch(pair(0)).await;
    assert_eq!(again.broker_group, broker);
    assert!(again.places.iter().all(|place| place.is_repeat));
    assert_eq!(
        again.places.iter().map(place).collect::<Vec<_>>(),
        stored.places.iter().map(place).collect::<Vec<_>>()
    );
    assert_eq!(stored.places[0].queue, stored.places[2].queue, "messages of a topic stay together");
    assert_eq!(stored.places[0].queue_offset + 1, stored.places[2].queue_offset);
    let metrics = cluster.nodes[0].http("/metrics").1;
    let counted = |topic: &str| {
        let line = metrics
            .lines()
            .find(|line| line.contains("messages_in_total") && line.contains(&format!("topic=\"{topic}\"")));
        line.and_then(|line| line.rsplit(' ').next()).and_then(|count| count.parse::<f64>().ok())
    };
    assert_eq!((counted("debits"), counted("credits")), (Some(2.0), Some(1.0)));
    for (topic, ids) in [("debits", vec!["d0", "e0"]), ("credits", vec!["c0"])] {
        let receive = Receive { broker: broker.clone(), ..Receive::default() };
        let (_, messages) = client.receive(topic, "readers", receive).await;
        assert_eq!(messages.iter().map(id).collect::<Vec<_>>(), ids);
    }
    stop_with_order(cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_with_a_batch_is_refused_with_its_code_and_stores_nothing() {
    let cluster = start_with_order(1).await;
    let client = Client::connect(&cluster.nodes[0].client_addr()).await;
    let refused = async |messages: Vec<Message>| {
        let answer = client.try_batch(messages).await.expect("an answer");
        let status = answer.status.expect("a status");
        (status.code(), status.message)
    };
    let first = client.batch(pair(1)).await;
    let mut partly = pair(2);
    partly[1] = pair(1)[1].clone();
    // The id of the first message decides where the batch goes; the stored part must be there, too.
    let mut number = 2;
    let (code, told) = loop {
        partly[0] = message("debits", &format!("try-{number}"), "from");
        let (code, told) = refused(partly.clone()).await;
        if code != Code::Ok {
            break (code, told);
        }
        number += 1;
        partly[2] = message("debits", &format!("fee-{number}"), "fee");
        assert!(number < 100, "some of the ids belong to {}", first.broker_group);
    };
    assert_eq!(code, Code::PreconditionFailed);
    assert_eq!(
        told,
        "1 of the 3 messages are stored already, the first of them message 1 (message_id \"c1\"); \
         a batch is stored as a whole, so nothing of it was stored now"
    );
    // Message groups whose queues are in two broker groups.
    let mut groups: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for key in 0..16 {
        let group = format!("k{key}");
        let stored = client.batch(vec![step(&group, 0), message("debits", &format!("s{key}"), "x")]).await;
        groups.entry(stored.broker_group).or_default().push(group);
    }
    assert_eq!(groups.len(), 2, "sixteen message groups are in both broker groups");
    let apart: Vec<Message> = groups.values().map(|keys| step(&keys[0], 1)).collect();
    let (code, told) = refused(apart).await;
    assert_eq!(code, Code::IllegalMessageGroup);
    assert!(
        told.contains("message 1: message_group") && told.contains("has its queue in broker group"),
        "{told}"
    );
    let together: Vec<Message> =
        groups.values().next().expect("a broker group").iter().map(|key| step(key, 1)).collect();
    assert_eq!(client.batch(together.clone()).await.places.len(), together.len());
    // Topics that no broker group has together.
    for (name, group) in [("only-g", "g"), ("only-h", "h")] {
        let create = CreateTopicRequest {
            name: name.to_owned(),
            queues: 1,
            groups: vec![group.to_owned()],
            ..CreateTopicRequest::default()
        };
        admin(&cluster).await.create_topic(create).await.expect("created");
    }
    let (code, told) = refused(vec![message("only-g", "1", "x"), message("only-h", "2", "x")]).await;
    assert_eq!(code, Code::BadRequest);
    assert!(told.ends_with("only-g is in g; only-h is in h"), "{told}");
    let stored = client.batch(vec![message("only-h", "1", "x"), message("debits", "2", "x")]).await;
    assert_eq!(stored.broker_group, "h");
    stop_with_order(cluster).await;
}

/// A repeat after a growth is the first try, also where its message groups would go elsewhere now.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_with_order_is_stored_once_across_the_growth_of_its_topic() {
    let cluster = start_with_order(1).await;
    let client = Client::connect(&cluster.nodes[0].client_addr()).await;
    let batch = |key: u32, number: u32| {
        vec![message("plain", &format!("p{key}-{number}"), "x"), step(&format!("k{key}"), number)]
    };
    let mut first = Vec::new();
    for key in 0..16 {
        first.push(client.batch(batch(key, 0)).await);
    }
    // Two message groups of one broker group, as one batch.
    let home = first[0].broker_group.clone();
    let keys: Vec<u32> = (0..16).filter(|key| first[*key as usize].broker_group == home).collect();
    let many = || keys.iter().map(|key| step(&format!("k{key}"), 1)).collect::<Vec<_>>();
    let many_first = client.batch(many()).await;
    update(&cluster, "steps", 8).await.expect("grown");
    for (key, first) in (0..16).zip(&first) {
        let again = client.batch(batch(key, 0)).await;
        assert_eq!(again.broker_group, first.broker_group, "k{key}");
        assert!(again.places.iter().all(|place| place.is_repeat), "k{key}");
    }
    let many_again = client.batch(many()).await;
    assert_eq!(many_again.broker_group, home);
    let places = |of: &[StoredPlace]| of.iter().map(place).collect::<Vec<_>>();
    assert_eq!(places(&many_again.places), places(&many_first.places));
    let mut moved = 0;
    for key in 0..16 {
        let next = client.batch(batch(key, 2)).await;
        assert!(next.places.iter().all(|place| !place.is_repeat));
        moved += u32::from(next.broker_group != first[key as usize].broker_group);
    }
    assert!(moved > 0, "some message groups have moved to the other broker group");
    // And each message group comes in its order.
    let mut seen: BTreeMap<String, Vec<u32>> = BTreeMap::new();
    let began = Instant::now();
    while seen.values().map(Vec::len).sum::<usize>() < 32 + keys.len() {
        assert!(began.elapsed() < PATIENCE, "{seen:?}");
        for broker in ["g", "h"] {
            for message in take(&client, broker, 32).await {
                seen.entry(group_of(&message).to_owned()).or_default().push(number_of(&message));
                assert_eq!(client.ack("steps", "workers", &message).await, Code::Ok);
            }
        }
    }
    assert!(seen.values().all(|numbers| numbers.is_sorted()), "{seen:?}");
    stop_with_order(cluster).await;
}

/// The leader dies with batches proposed and not answered. Whatever became of each of them, its repeat
/// by another node is answered with one place for each message, which is the only one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_whose_leader_died_before_it_answered_is_stored_once_and_whole() {
    const KILLS: u32 = 3;
    const IN_FLIGHT: u32 = 24;
    let mut cluster = start().await;
    let warm = Client::connect(&cluster.nodes[0].client_addr()).await;
    warm.batch(pair(u32::MAX)).await;
    let (mut unanswered, mut repeated) = (0, 0);
    let mut batches = Vec::new();
    for kill in 0..KILLS {
        let (leader, follower) = roles(&mut cluster).await;
        let dying = Client::connect(&cluster.nodes[leader].client_addr()).await;
        let sending: Vec<_> = (0..IN_FLIGHT)
            .map(|at| {
                let (client, number) = (dying.clone(), kill * IN_FLIGHT + at);
                tokio::spawn(async move { (number, client.try_batch(pair(number)).await) })
            })
            .collect();
        // The first kill comes at once, the next ones after a first answer: some of the rest are on their
        // way through the log then.
        while kill > 0 && !sending.iter().any(tokio::task::JoinHandle::is_finished) {
            tokio::task::yield_now().await;
        }
        cluster = blocking(cluster, move |cluster| cluster.nodes[leader].kill()).await;
        let other = Client::connect(&cluster.nodes[follower].client_addr()).await;
        for sending in sending {
            let (number, first) = sending.await.expect("a task");
            let first = first.ok().filter(|answer| code(answer.status.as_ref()) == Code::Ok);
            unanswered += u32::from(first.is_none());
            let began = Instant::now();
            let again = loop {
                match other.try_batch(pair(number)).await {
                    Ok(answer) if code(answer.status.as_ref()) == Code::Ok => break answer,
                    _ => assert!(began.elapsed() < PATIENCE, "no answer to {number}"),
                }
            };
            let is_repeat: BTreeSet<bool> = again.places.iter().map(|place| place.is_repeat).collect();
            assert_eq!(is_repeat.len(), 1, "whole or not at all: {again:?}");
            if let Some(first) = &first {
                let places = |of: &[StoredPlace]| of.iter().map(place).collect::<Vec<_>>();
                assert_eq!(places(&again.places), places(&first.places), "the first answer");
            } else {
                repeated += u32::from(is_repeat.contains(&true));
            }
            batches.push((number, again));
        }
        cluster = blocking(cluster, move |cluster| {
            cluster.nodes[leader].start();
            cluster.wait_ready();
        })
        .await;
    }
    println!("{unanswered} of {} without an answer, {repeated} of those were stored", KILLS * IN_FLIGHT);
    assert!(unanswered > 0, "no kill came before an answer");
    let client = Client::connect(&cluster.nodes[0].client_addr()).await;
    for (topic, parts) in [("debits", ["d", "e"].as_slice()), ("credits", &["c"])] {
        let of = |number: u32| parts.iter().map(move |part| format!("{part}{number}"));
        let mut expected: BTreeSet<String> = (0..KILLS * IN_FLIGHT).flat_map(of).collect();
        expected.extend(of(u32::MAX));
        assert_eq!(drain(&client, topic, "readers", expected.len()).await, expected);
        let poll = Receive { poll: Duration::from_millis(300), ..Receive::default() };
        let (status, more) = client.receive(topic, "readers", poll).await;
        assert_eq!((status, more.iter().map(system).count()), (Code::MessageNotFound, 0));
    }
    let places: BTreeSet<_> =
        batches.iter().flat_map(|(_, stored)| stored.places.iter().map(place)).collect();
    assert_eq!(places.len(), (KILLS * IN_FLIGHT * 3) as usize, "no place was given twice");
    stop(cluster).await;
}
