//! What a client sees while leadership moves: latency, and nothing else.

mod support;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ledgermq_edge::group_call::GroupRequest;
use ledgermq_proto::rocketmq::{self as rmq, Code};
use support::*;

const SDK_TIMEOUT: Duration = Duration::from_secs(3);

#[tokio::test]
async fn any_node_takes_a_send_and_the_leader_stores_it_once() {
    let cluster = Cluster::start(3).await;
    cluster.elect(Some(2));
    for number in 1..=3 {
        let mut client = client(cluster.node(number).client_addr).await;
        let answer = client.send_message(java(send("same"))).await.expect("gRPC OK").into_inner();
        assert_eq!(code_of(&answer.status), Code::Ok);
        assert_eq!(answer.entries[0].offset, 0, "a repeat gets the first answer");
    }
    assert_eq!(cluster.node(2).member.requests.lock().len(), 3);
    let context = cluster.node(2).member.contexts.lock()[0].clone();
    assert_eq!(context.client_id, "host@1@0@x", "the client's identity travels along");
    assert!(context.remaining() <= SDK_TIMEOUT);
}

/// A node that has just started knows of a topic in the group whose log it has applied, and not yet in
/// the other. Which group takes a message must not depend on that: the other may hold its first try.
#[tokio::test]
async fn a_repeat_through_a_node_that_is_behind_goes_to_the_group_of_its_first_try() {
    let first = Cluster::start(1).await;
    let second = Cluster::start_beside(&first, "group-2").await;
    first.elect(Some(1));
    second.elect(Some(2));
    let mut through = client(second.node(2).client_addr).await;
    for number in 0..40 {
        let answer = through.send_message(java(send(&format!("m{number}")))).await.expect("gRPC OK");
        assert_eq!(code_of(&answer.into_inner().status), Code::Ok);
    }
    let stored = |cluster: &Cluster| cluster.agreed.stored.lock().len();
    let (there, here) = (stored(&first), stored(&second));
    assert!(there >= 8 && here >= 8 && there + here == 40, "shares {there} and {here}");
    // Without a leader that could say that it has the topic, nothing is placed past it.
    let fresh = Cluster::start_beside(&first, "group-2").await;
    fresh.elect(Some(2));
    first.elect(None);
    let mut through = client(fresh.node(2).client_addr).await;
    let mut held = 0;
    for number in 0..8 {
        let request = request("JAVA", Duration::from_millis(600), send(&format!("m{number}")));
        let answer = through.send_message(request).await.expect("gRPC OK").into_inner();
        match code_of(&answer.status) {
            Code::Ok => {}
            code => {
                assert_eq!(code, Code::HaNotAvailable);
                held += 1;
            }
        }
    }
    assert_eq!(held, 8 - stored(&fresh));
    assert!(held > 0, "some of the messages are the other group's");
}

#[tokio::test]
async fn a_batch_goes_to_a_broker_group_that_has_all_of_its_topics() {
    let first = Cluster::start(1).await;
    let second = Cluster::start_beside(&first, "group-2").await;
    first.elect(Some(1));
    second.elect(Some(2));
    for (cluster, names) in [(&first, ["audit", "here"]), (&second, ["audit", "there"])] {
        for name in names {
            let made = topic(name, rmq::MessageType::Normal);
            cluster.agreed.topics.lock().insert(made.name.clone(), made);
        }
    }
    let mut through = batch_client(second.node(2).client_addr).await;
    let mut store = async |request| through.store_batch(java(request)).await.expect("gRPC OK").into_inner();
    let stored = |cluster: &Cluster| cluster.agreed.stored.lock().len();
    let mut answers = Vec::new();
    for number in 0..40 {
        let (one, two) = (format!("o{number}"), format!("a{number}"));
        let request = batch(&[(TOPIC, &one), ("audit", &two)]);
        let answer = store(request.clone()).await;
        assert_eq!((code_of(&answer.status), answer.places.len()), (Code::Ok, 2), "{answer:?}");
        assert_eq!((&*answer.places[1].topic, &answer.places[1].message_id), ("audit", &two));
        answers.push((request, answer));
    }
    let (there, here) = (stored(&first), stored(&second));
    assert!(there >= 16 && here >= 16 && there + here == 80, "shares {there} and {here}");
    for (request, first) in answers {
        let again = store(request).await;
        assert_eq!(again.broker_group, first.broker_group);
        assert!(again.places.iter().all(|place| place.is_repeat));
    }
    for number in 0..10 {
        let answer = store(batch(&[(TOPIC, &format!("p{number}")), ("here", "x")])).await;
        assert_eq!((code_of(&answer.status), &*answer.broker_group), (Code::Ok, GROUP));
    }
    let mut named = batch(&[(TOPIC, "q")]);
    named.broker_group = "group-2".to_owned();
    assert_eq!(store(named).await.broker_group, "group-2");

    let before = (stored(&first), stored(&second));
    let apart = store(batch(&[("here", "r"), (TOPIC, "s"), ("there", "t")])).await.status.expect("a status");
    assert_eq!(apart.code(), Code::BadRequest);
    assert_eq!(
        apart.message,
        "no broker group has all topics of the batch: here is in group-1; orders is in group-1, group-2; \
         there is in group-2"
    );
    let mut elsewhere = batch(&[(TOPIC, "r"), ("here", "s")]);
    elsewhere.broker_group = "group-2".to_owned();
    let elsewhere = store(elsewhere).await.status.expect("a status");
    assert_eq!(elsewhere.code(), Code::BadRequest);
    assert_eq!(elsewhere.message, "broker_group \"group-2\" does not have topic \"here\" of the batch");
    assert_eq!((stored(&first), stored(&second)), before);
}

#[tokio::test]
async fn a_batch_during_an_election_waits_for_the_new_leader_and_makes_topics_that_are_nowhere() {
    let cluster = Cluster::start_with(3, true).await;
    cluster.elect(None);
    let mut client = batch_client(cluster.node(1).client_addr).await;
    let request = batch(&[(TOPIC, "m"), ("fresh", "n")]);
    let again = request.clone();
    let sending = tokio::spawn(async move { client.store_batch(java(request)).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!sending.is_finished(), "held");
    cluster.elect(Some(3));
    let answer = sending.await.expect("task").expect("gRPC OK").into_inner();
    assert_eq!(code_of(&answer.status), Code::Ok, "{answer:?}");
    let mut other = batch_client(cluster.node(2).client_addr).await;
    let repeat = other.store_batch(java(again)).await.expect("gRPC OK").into_inner();
    assert!(repeat.places.iter().all(|place| place.is_repeat));
    assert_eq!(cluster.agreed.stored.lock().len(), 2);
}

#[tokio::test]
async fn a_send_during_an_election_waits_for_the_new_leader() {
    let cluster = Cluster::start(3).await;
    cluster.elect(None);
    let mut client = client(cluster.node(1).client_addr).await;
    let mut probes = [2, 3].map(|member| cluster.node(member).member.probes.subscribe());
    let before = probes.each_ref().map(|probes| *probes.borrow());
    let sending = tokio::spawn(async move { client.send_message(java(send("m"))).await });
    for (probes, before) in probes.iter_mut().zip(before) {
        let asked_again = probes.wait_for(|probes| *probes > before + 1);
        tokio::time::timeout(SDK_TIMEOUT, asked_again).await.expect("the others are asked").expect("watch");
    }
    assert!(!sending.is_finished(), "held");
    cluster.elect(Some(3));
    let answer = sending.await.expect("task").expect("gRPC OK").into_inner();
    assert_eq!(code_of(&answer.status), Code::Ok);
    assert_eq!(cluster.agreed.stored.lock().len(), 1);
}

#[tokio::test]
async fn without_a_leader_the_answer_is_a_business_code_before_the_deadline() {
    let cluster = Cluster::start(2).await;
    cluster.elect(None);
    let mut client = client(cluster.node(1).client_addr).await;
    let began = Instant::now();
    let timeout = Duration::from_millis(1200);
    let answer =
        client.send_message(request("PYTHON", timeout, send("m"))).await.expect("gRPC OK").into_inner();
    assert_eq!(code_of(&answer.status), Code::HaNotAvailable);
    assert_eq!(answer.entries.len(), 1);
    assert_eq!(code_of(&answer.entries[0].status), Code::HaNotAvailable);
    let held = began.elapsed();
    assert!(held >= Duration::from_millis(800) && held < timeout, "held for {held:?}");
}

#[tokio::test]
async fn a_stopped_leader_is_abandoned_for_the_new_one() {
    let cluster = Cluster::start(3).await;
    cluster.elect(Some(1));
    let mut entry = client(cluster.node(3).client_addr).await;
    let warm = entry.send_message(java(send("warm"))).await.expect("gRPC OK").into_inner();
    assert_eq!(code_of(&warm.status), Code::Ok);

    cluster.node(1).member.stopped.store(true, Ordering::SeqCst);
    let mut tries = cluster.agreed.tries.subscribe();
    let before = *tries.borrow();
    let sending = tokio::spawn(async move { entry.send_message(java(send("m"))).await });
    let reached = tries.wait_for(|tries| *tries > before);
    tokio::time::timeout(SDK_TIMEOUT, reached).await.expect("the leader has it").expect("watch");
    assert!(!sending.is_finished());
    let moved = Instant::now();
    cluster.elect(Some(2));
    let answer = sending.await.expect("task").expect("gRPC OK").into_inner();
    assert_eq!(code_of(&answer.status), Code::Ok);
    assert!(moved.elapsed() < Duration::from_millis(500), "{:?}", moved.elapsed());
    assert_eq!(cluster.agreed.stored.lock().len(), 2);
}

#[tokio::test]
async fn a_node_that_hears_nothing_asks_the_others_who_leads() {
    let cluster = Cluster::start(3).await;
    cluster.elect(Some(1));
    // Node 3 believes in node 1 for ever, as a replica cut off from the election does.
    cluster.node(1).member.stopped.store(true, Ordering::SeqCst);
    cluster.node(3).member.stopped.store(true, Ordering::SeqCst);
    cluster.elect(Some(2));
    let mut entry = client(cluster.node(3).client_addr).await;
    let began = Instant::now();
    let answer = entry.send_message(java(send("m"))).await.expect("gRPC OK").into_inner();
    assert_eq!(code_of(&answer.status), Code::Ok);
    assert!(began.elapsed() < Duration::from_millis(1500), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_long_poll_lives_through_a_leader_change() {
    let cluster = Cluster::start(3).await;
    cluster.elect(Some(1));
    let mut consumer = client(cluster.node(3).client_addr).await;
    let polling = tokio::spawn(async move {
        collect(
            &mut consumer,
            request("JAVA", Duration::from_secs(13), receive(Some(Duration::from_secs(10)))),
        )
        .await
    });
    let mut polls = cluster.node(1).member.polls.subscribe();
    polls.wait_for(|&polls| polls == 1).await.expect("the poll reaches the leader");
    cluster.elect(Some(2));
    let mut polls = cluster.node(2).member.polls.subscribe();
    polls.wait_for(|&polls| polls == 1).await.expect("the poll follows");
    let mut producer = client(cluster.node(1).client_addr).await;
    producer.send_message(java(send("m"))).await.expect("gRPC OK");
    let (status, messages) = polling.await.expect("task");
    assert_eq!((status.code(), messages.len()), (Code::Ok, 1));
}

#[tokio::test]
async fn a_poll_without_leader_ends_as_not_found_in_time() {
    let cluster = Cluster::start(2).await;
    cluster.elect(None);
    let mut consumer = client(cluster.node(1).client_addr).await;
    // No polling time, as Go and Rust ask: the deadline decides.
    let began = Instant::now();
    let deadline = Duration::from_millis(1500);
    let (status, _) = collect(&mut consumer, request("GO", deadline, receive(None))).await;
    assert_eq!(status.code(), Code::MessageNotFound);
    assert!(
        began.elapsed() >= Duration::from_millis(900) && began.elapsed() < deadline,
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test]
async fn a_client_that_goes_away_takes_its_poll_along() {
    let cluster = Cluster::start(2).await;
    cluster.elect(Some(2));
    for entry in [1, 2] {
        let mut consumer = client(cluster.node(entry).client_addr).await;
        let mut polls = cluster.node(2).member.polls.subscribe();
        let polling = tokio::spawn(async move {
            let long = request("JAVA", Duration::from_secs(23), receive(Some(Duration::from_secs(20))));
            collect(&mut consumer, long).await
        });
        polls.wait_for(|&polls| polls == 1).await.expect("waits at the leader");
        polling.abort();
        let gone = tokio::time::timeout(Duration::from_secs(5), polls.wait_for(|&polls| polls == 0)).await;
        gone.expect("the leader hears of it").expect("watch");
    }
}

#[tokio::test]
async fn the_leader_hears_which_answers_were_passed_on_and_which_were_lost() {
    let cluster = Cluster::start(2).await;
    cluster.elect(Some(2));
    let mut producer = client(cluster.node(1).client_addr).await;
    let mut answers = cluster.agreed.answers.subscribe();
    let polling = || request("JAVA", Duration::from_secs(13), receive(Some(Duration::from_secs(10))));
    for (entry, so_far) in [(1, 0), (2, 1)] {
        let mut consumer = client(cluster.node(entry).client_addr).await;
        producer.send_message(java(send(&format!("taken-{entry}")))).await.expect("gRPC OK");
        let (_, messages) = collect(&mut consumer, polling()).await;
        assert_eq!(messages.len(), 1);
        let taken = Answers { confirmed: so_far + 1, lost: so_far };
        wait_for(&mut answers, taken).await;

        // More than the window of a stream, so that the answer cannot be in the client's hands at once.
        let mut large = send(&format!("lost-{entry}"));
        large.messages[0].body = vec![b'x'; 1_000_000].into();
        producer.send_message(java(large)).await.expect("gRPC OK");
        let mut items = consumer.receive_message(polling()).await.expect("a stream").into_inner();
        items.message().await.expect("item").expect("a status");
        assert_eq!(*answers.borrow_and_update(), taken, "it has not taken it");
        drop(items);
        wait_for(&mut answers, Answers { lost: so_far + 1, ..taken }).await;
    }
}

async fn wait_for(answers: &mut tokio::sync::watch::Receiver<Answers>, expected: Answers) {
    let waited = tokio::time::timeout(Duration::from_secs(5), answers.wait_for(|now| *now == expected)).await;
    waited.expect("the leader hears of it").expect("watch");
}

#[tokio::test]
async fn routes_and_assignments_do_not_change_with_the_leader() {
    let cluster = Cluster::start(3).await;
    let access_point = rmq::Endpoints {
        scheme: rmq::AddressScheme::IPv4.into(),
        addresses: ["10.0.0.2", "10.0.0.1"]
            .map(|host| rmq::Address { host: host.to_owned(), port: 8081 })
            .to_vec(),
    };
    let mut answers = Vec::new();
    for leader in [Some(1), None, Some(2)] {
        cluster.elect(leader);
        for number in 1..=3 {
            let mut client = client(cluster.node(number).client_addr).await;
            let route =
                rmq::QueryRouteRequest { topic: resource(TOPIC), endpoints: Some(access_point.clone()) };
            let route = client.query_route(java(route)).await.expect("gRPC OK").into_inner();
            let assignment = rmq::QueryAssignmentRequest {
                topic: resource(TOPIC),
                group: resource("readers"),
                endpoints: Some(access_point.clone()),
            };
            let assignment = client.query_assignment(java(assignment)).await.expect("gRPC OK").into_inner();
            answers.push((route, assignment));
        }
    }
    assert!(answers.windows(2).all(|pair| pair[0] == pair[1]));
    let (route, assignment) = &answers[0];
    assert_eq!(code_of(&route.status), Code::Ok);
    assert_eq!(route.message_queues.len(), 4);
    for (id, queue) in route.message_queues.iter().enumerate() {
        let broker = queue.broker.as_ref().expect("broker");
        assert_eq!((queue.id, broker.id, broker.name.as_str()), (id as i32, 0, GROUP));
        assert_eq!(broker.endpoints.as_ref(), Some(&access_point), "the client's own, in its order");
        assert_eq!(queue.permission(), rmq::Permission::ReadWrite);
        assert_eq!(queue.accept_message_types, [i32::from(rmq::MessageType::Normal)]);
    }
    assert_eq!(assignment.assignments.len(), 1);
    assert_eq!(assignment.assignments[0].message_queue.as_ref().map(|queue| queue.id), Some(-1));

    let mut node = client(cluster.node(1).client_addr).await;
    let route = rmq::QueryRouteRequest { topic: resource(TOPIC), endpoints: Some(access_point) };
    let route = node.query_route(request("HTTP", SDK_TIMEOUT, route)).await.expect("gRPC OK").into_inner();
    let endpoints = route.message_queues[0].broker.as_ref().and_then(|broker| broker.endpoints.clone());
    assert_eq!(endpoints.expect("endpoints").addresses.len(), 1, "Node takes one address only");
}

#[tokio::test]
async fn an_unknown_topic_is_asked_for_at_the_leader_and_created_where_that_is_on() {
    for auto_create in [false, true] {
        let cluster = Cluster::start_with(2, auto_create).await;
        cluster.elect(Some(2));
        let mut client = client(cluster.node(1).client_addr).await;
        let route = rmq::QueryRouteRequest { topic: resource("fresh"), endpoints: None };
        let route = client.query_route(java(route)).await.expect("gRPC OK").into_inner();
        let expected = if auto_create { Code::Ok } else { Code::TopicNotFound };
        assert_eq!(code_of(&route.status), expected);
        let asked = cluster.node(2).member.requests.lock().clone();
        assert!(matches!(&asked[..], [GroupRequest::DescribeTopic(d)] if d.create_if_missing == auto_create));
    }
}
