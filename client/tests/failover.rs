//! What the client does when servers die, keep silent, or answer that they cannot just now. The
//! servers here are real gRPC servers whose answers each test chooses.

#![allow(clippy::unwrap_used, reason = "a test ends where its set-up fails")]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{Mood, Seen, Server};
use ledgermq_client::{
    Client, ClientOptions, ConnectError, ConsumerOptions, Message, Producer, PullOptions, ReceiveError,
    SendError,
};
use ledgermq_proto::rocketmq as wire;
use parking_lot::Mutex;
use tokio::time::Instant;

/// Far above what a test needs, far below what a stuck one would take.
const PATIENCE: Duration = Duration::from_secs(20);

fn options() -> ClientOptions {
    ClientOptions {
        request_timeout: PATIENCE,
        total_deadline: PATIENCE,
        connect_timeout: Duration::from_secs(2),
        ..ClientOptions::default()
    }
}

/// An address where nothing listens.
async fn dead_address() -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap().to_string()
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn a_dead_access_point_is_passed_over() {
    let server = Server::start(&[]).await;
    let points = format!("{};{}", dead_address().await, server.address);
    let producer = Client::connect(&points, options()).await.unwrap().producer();
    let receipt = producer.send(Message::new("t", "hello")).await.unwrap();
    assert_eq!(server.seen.lock().stored.get(&receipt.message_id), Some(&0));
}

#[tokio::test]
async fn an_unanswered_send_is_repeated_elsewhere_under_the_same_id() {
    let cluster: Arc<Mutex<Seen>> = Arc::default();
    let silent = Server::start_with(cluster.clone(), &[Mood::StoreInSilence]).await;
    let other = Server::start_with(cluster.clone(), &[]).await;
    let points = format!("{};{}", silent.address, other.address);
    let options = ClientOptions { request_timeout: Duration::from_millis(500), ..options() };
    let producer = Client::connect(&points, options).await.unwrap().producer();
    let receipt = producer.send(Message::new("t", "hello")).await.unwrap();
    assert!(receipt.attempts >= 2);
    let seen = cluster.lock();
    assert!(seen.arrivals.len() >= 2);
    assert!(seen.arrivals.iter().all(|id| *id == receipt.message_id), "{:?}", seen.arrivals);
    assert_eq!(seen.stored.len(), 1);
}

/// A node that is stopped or cut off keeps its connections and says nothing.
#[tokio::test]
async fn a_silent_node_costs_half_a_second_once_and_not_an_attempt_each_time() {
    let seen = Arc::default();
    let silent = Server::start_with(Arc::clone(&seen), &[Mood::StoreInSilence]).await;
    let alive = Server::start_with(Arc::clone(&seen), &[Mood::Store]).await;
    let options = ClientOptions { request_timeout: Duration::from_secs(20), ..options() };
    let client = Client::connect(&format!("{};{}", silent.address, alive.address), options).await.unwrap();
    let producer = client.producer();
    let begins = std::time::Instant::now();
    producer.send(Message::new("t", "first")).await.unwrap();
    assert!(begins.elapsed() < Duration::from_secs(10), "{:?}", begins.elapsed());
    let arrived = seen.lock().arrivals.clone();
    assert_eq!(arrived.len(), 2, "sent by both: {arrived:?}");
    assert_eq!(arrived[0], arrived[1], "under one id");
    assert_eq!(seen.lock().stored.len(), 1, "stored once");
    producer.send(Message::new("t", "second")).await.unwrap();
    assert_eq!(seen.lock().arrivals.len(), 3, "the next one goes to the node that answers, once");
}

#[tokio::test]
async fn codes_of_the_moment_are_repeated_and_codes_of_the_request_are_not() {
    let server = Server::start(&[
        Mood::Answer(wire::Code::HaNotAvailable),
        Mood::Answer(wire::Code::TooManyRequests),
        Mood::Answer(wire::Code::InternalServerError),
        Mood::Store,
        Mood::Answer(wire::Code::MessageBodyTooLarge),
    ])
    .await;
    let producer = Client::connect(&server.address.to_string(), options()).await.unwrap().producer();
    assert_eq!(producer.send(Message::new("t", "a")).await.unwrap().attempts, 4);
    let error = producer.send(Message::new("t", "b")).await.unwrap_err();
    assert!(matches!(&error, SendError::Refused(refused) if refused.code == 41301), "{error}");
    assert_eq!(error.to_string(), "send refused: MESSAGE_BODY_TOO_LARGE (41301): said the test");
    server.set_moods(&[Mood::Reject]);
    let error = producer.send(Message::new("t", "c")).await.unwrap_err();
    assert!(matches!(error, SendError::Malformed(_)), "{error}");
    assert_eq!(server.seen.lock().arrivals.len(), 6);
}

#[tokio::test]
async fn a_send_ends_with_an_error_only_at_its_deadline() {
    let server = Server::start(&[Mood::Answer(wire::Code::HaNotAvailable)]).await;
    let total = Duration::from_millis(400);
    let options = ClientOptions { total_deadline: total, ..options() };
    let producer = Client::connect(&server.address.to_string(), options).await.unwrap().producer();
    let begun = Instant::now();
    let error = producer.send(Message::new("t", "a")).await.unwrap_err();
    assert!(begun.elapsed() >= total);
    assert!(matches!(&error, SendError::NoAnswer(error) if error.attempts > 2), "{error}");
    let arrivals = server.seen.lock().arrivals.clone();
    assert!(arrivals.iter().all(|id| *id == arrivals[0]), "{arrivals:?}");
}

#[tokio::test]
async fn many_sends_share_one_connection_and_one_client_id() {
    let server = Server::start(&[]).await;
    let producer = Client::connect(&server.address.to_string(), options()).await.unwrap().producer();
    let mut sends = tokio::task::JoinSet::new();
    for number in 0..500 {
        let producer = producer.clone();
        sends.spawn(async move { producer.send(Message::new("t", number.to_string())).await.unwrap() });
    }
    while let Some(receipt) = sends.join_next().await {
        assert_eq!(receipt.unwrap().attempts, 1);
    }
    let seen = server.seen.lock();
    assert_eq!(seen.stored.len(), 500);
    assert!(seen.client_ids.iter().all(|id| id == producer.client_id()));
}

/// Two servers of one cluster and a producer of which 200 sends were answered at once.
async fn two_that_were_quick() -> (Server, Server, Producer) {
    let seen = Arc::default();
    let first = Server::start_with(Arc::clone(&seen), &[Mood::Store]).await;
    let second = Server::start_with(seen, &[Mood::Store]).await;
    let points = format!("{};{}", first.address, second.address);
    let producer = Client::connect(&points, options()).await.unwrap().producer();
    for number in 0..200 {
        producer.send(Message::new("t", number.to_string())).await.unwrap();
    }
    (first, second, producer)
}

/// What answered in a millisecond all the time is not waited for as long as what never answered, which is
/// half a second. On a busy machine answers take longer, so one quick round of several is enough.
#[tokio::test]
async fn a_node_that_falls_silent_is_found_out_by_what_its_answers_took_before() {
    let mut rounds = Vec::new();
    for _ in 0..8 {
        let took = until_silence_is_found_out().await;
        if took < Duration::from_millis(500) {
            return;
        }
        rounds.push(took);
    }
    panic!("{rounds:?}, no quicker than without an answer before");
}

/// What 100 sends took together, also those that no hedge was free for.
async fn until_silence_is_found_out() -> Duration {
    let (first, _other, producer) = two_that_were_quick().await;
    first.set_moods(&[Mood::StoreInSilence]);
    let mut sends = tokio::task::JoinSet::new();
    let begins = std::time::Instant::now();
    for number in 0..100 {
        let producer = producer.clone();
        sends.spawn(async move { producer.send(Message::new("t", format!("late {number}"))).await.unwrap() });
    }
    while let Some(receipt) = sends.join_next().await {
        receipt.unwrap();
    }
    assert_eq!(first.seen.lock().stored.len(), 300);
    begins.elapsed()
}

/// If one send that is late made all others go to the next node too, a cluster that is slow would have
/// everything twice. On a busy machine a node may answer nobody for a while, so one round of several is
/// enough.
#[tokio::test]
async fn a_node_that_answers_others_is_not_left_because_one_send_is_late() {
    let mut stays = false;
    for _ in 0..8 {
        stays |= stays_where_one_send_is_late().await;
    }
    assert!(stays, "it left each time");
}

async fn stays_where_one_send_is_late() -> bool {
    let (first, second, producer) = two_that_were_quick().await;
    let send = async |number: usize| producer.send(Message::new("t", number.to_string())).await.unwrap();
    let before = first.arrivals();
    send(200).await;
    let (near, far) = if first.arrivals() > before { (&first, &second) } else { (&second, &first) };
    near.set_moods(&[Mood::StoreInSilence, Mood::Store]);
    let sends: Vec<_> = (201..221).map(send).collect();
    futures_util::future::join_all(sends).await;
    let before = far.arrivals();
    for number in 221..231 {
        send(number).await;
    }
    assert_eq!(first.seen.lock().stored.len(), 231);
    far.arrivals() - before < 5
}

/// Several under way at once arrive in any order, and a repeat comes behind what was sent after it.
#[tokio::test]
async fn sends_of_one_message_group_go_one_after_the_other_and_those_of_others_do_not_wait() {
    let server = Server::start(&[Mood::StoreInSilence, Mood::Store]).await;
    let options = ClientOptions { request_timeout: Duration::from_millis(500), ..options() };
    let client = Client::connect(&server.address.to_string(), options).await.unwrap();
    let producer = client.producer();
    let send = |id: &'static str, group: &'static str| {
        let mut message = Message::new("t", id).message_group(group);
        message.id = Some(id.to_owned());
        producer.send(message)
    };
    let other = async {
        until("the first", || !server.seen.lock().arrivals.is_empty()).await;
        send("other", "b").await
    };
    let (first, second, third, other) = tokio::join!(send("1", "a"), send("2", "a"), send("3", "a"), other);
    for sent in [first, second, third, other] {
        sent.unwrap();
    }
    let arrivals = server.seen.lock().arrivals.clone();
    assert_eq!(arrivals, ["1", "other", "1", "2", "3"]);
}

#[tokio::test]
async fn a_send_that_waits_for_an_earlier_one_of_its_group_has_no_more_time_for_it() {
    let server = Server::start(&[Mood::StoreInSilence]).await;
    let options = ClientOptions { total_deadline: Duration::from_secs(2), ..options() };
    let client = Client::connect(&server.address.to_string(), options).await.unwrap();
    let producer = client.producer();
    let send = || producer.send(Message::new("t", "m").message_group("a"));
    let begins = std::time::Instant::now();
    let (first, second) = tokio::join!(send(), send());
    assert!(matches!(first, Err(SendError::NoAnswer(_))), "{first:?}");
    assert!(matches!(second, Err(SendError::NoAnswer(_))), "{second:?}");
    let took = begins.elapsed();
    assert!(took < Duration::from_millis(3_500), "{took:?}: twice the time of one");
}

/// All at once they would all time out where a server takes less than is sent.
#[tokio::test]
async fn no_more_than_so_many_requests_are_under_way_and_the_others_wait_in_turn() {
    const UNDER_WAY_MAX: usize = 2_048;
    let server = Server::start(&[Mood::StoreInSilence]).await;
    let options = ClientOptions { request_timeout: Duration::from_secs(1), ..options() };
    let producer = Client::connect(&server.address.to_string(), options).await.unwrap().producer();
    let mut sends = tokio::task::JoinSet::new();
    for number in 0..UNDER_WAY_MAX + 100 {
        let producer = producer.clone();
        sends.spawn(async move { producer.send(Message::new("t", number.to_string())).await.unwrap() });
    }
    until("all that may be under way", || server.seen.lock().arrivals.len() >= UNDER_WAY_MAX).await;
    server.set_moods(&[]);
    assert_eq!(server.seen.lock().arrivals.len(), UNDER_WAY_MAX, "the rest waits for those");
    while let Some(receipt) = sends.join_next().await {
        receipt.unwrap();
    }
    assert_eq!(server.seen.lock().stored.len(), UNDER_WAY_MAX + 100);
}

/// Where more is sent than is stored, whoever gets a turn has waited long. With his last milliseconds he
/// would be stored and not answered, as would the next one, and so on.
#[tokio::test]
async fn a_send_whose_turn_comes_too_late_to_be_answered_is_not_sent_and_says_so() {
    const UNDER_WAY_MAX: usize = 2_048;
    let server = Server::start(&[Mood::StoreInSilence]).await;
    let options = ClientOptions { total_deadline: Duration::from_secs(4), ..options() };
    let producer = Client::connect(&server.address.to_string(), options).await.unwrap().producer();
    let mut sends = tokio::task::JoinSet::new();
    for number in 0..=UNDER_WAY_MAX {
        let producer = producer.clone();
        sends.spawn(async move { producer.send(Message::new("t", number.to_string())).await.unwrap_err() });
    }
    let mut not_sent = Vec::new();
    while let Some(error) = sends.join_next().await {
        match error.unwrap() {
            SendError::NoAnswer(error) if error.attempts == 0 => not_sent.push(error),
            SendError::NoAnswer(_) => {}
            error => panic!("{error:?}"),
        }
    }
    let [error] = &not_sent[..] else { panic!("{not_sent:?}") };
    assert!((3_000..4_000).contains(&error.elapsed.as_millis()), "{error}");
    assert!(error.to_string().contains("2048 other requests"), "{error}");
    assert_eq!(server.seen.lock().arrivals.len(), UNDER_WAY_MAX);
}

/// Leases would run out, and the cluster would take the client for gone.
#[tokio::test]
async fn acknowledgements_and_heartbeats_do_not_wait_for_the_line_of_sends() {
    const UNDER_WAY_MAX: usize = 2_048;
    let server = Server::start(&[Mood::StoreInSilence]).await;
    let client = Client::connect(&server.address.to_string(), options()).await.unwrap();
    let producer = client.producer();
    let mut sends = tokio::task::JoinSet::new();
    for number in 0..=UNDER_WAY_MAX {
        let producer = producer.clone();
        sends.spawn(async move { producer.send(Message::new("t", number.to_string())).await });
    }
    until("a full line", || server.seen.lock().arrivals.len() >= UNDER_WAY_MAX).await;
    until("the producer's heartbeat", || server.seen.lock().heartbeats == 1).await;

    server.seen.lock().deliveries = vec![delivery("one", "good-1", "5EB63BBBE01EEED093CB22BB8F5ACDC3")];
    let consumer = client.simple_consumer(ConsumerOptions::new("g").subscribe("t", "*"));
    until("the consumer's heartbeat", || server.seen.lock().heartbeats == 2).await;
    let messages = consumer.receive(1).await.unwrap();
    consumer.ack(&messages[0]).await.unwrap();
    consumer.close().await;
    let seen = server.seen.lock();
    assert_eq!((seen.arrivals.len(), seen.terminations), (UNDER_WAY_MAX, 1), "the line stood all the while");
    assert_eq!(seen.acked, ["one"]);
}

#[tokio::test]
async fn a_session_shows_its_settings_and_says_when_it_leaves() {
    let server = Server::start(&[]).await;
    let client = Client::connect(&server.address.to_string(), options()).await.unwrap();
    let producer = client.producer();
    until("settings", || server.seen.lock().settings == 1).await;
    producer.close().await;
    assert_eq!(server.seen.lock().terminations, 1);
}

#[tokio::test]
async fn connecting_to_nothing_names_the_access_point() {
    let address = dead_address().await;
    let options = ClientOptions { total_deadline: Duration::from_millis(200), ..options() };
    let Err(error) = Client::connect(&address, options).await else { panic!("nothing listens there") };
    assert!(matches!(error, ConnectError::NoAnswer(_)));
    assert!(error.to_string().contains(&format!("cannot reach {address}")), "{error}");
}

#[tokio::test]
async fn received_messages_arrive_whole_and_corrupt_ones_are_withheld() {
    let server = Server::start(&[]).await;
    server.seen.lock().deliveries = vec![
        delivery("one", "good-1", "5EB63BBBE01EEED093CB22BB8F5ACDC3"),
        delivery("two", "good-2", "00000000000000000000000000000000"),
        delivery("three", "stale-3", "5eb63bbbe01eeed093cb22bb8f5acdc3"),
    ];
    let options_of_group = ConsumerOptions::new("g").subscribe("t", "*");
    let client = Client::connect(&server.address.to_string(), options()).await.unwrap();
    let consumer = client.simple_consumer(options_of_group);
    let messages = consumer.receive(10).await.unwrap();
    let ids: Vec<_> = messages.iter().map(|message| message.message_id.as_str()).collect();
    assert_eq!(ids, ["one", "three"]);
    assert_eq!(messages[0].properties.get("empty").map(String::as_str), Some(""));
    let results = consumer.ack_many(&messages).await;
    assert!(results[0].is_ok());
    assert!(results[1].as_ref().unwrap_err().to_string().contains("INVALID_RECEIPT_HANDLE"));
    assert_eq!(server.seen.lock().acked, ["one"]);
    assert!(consumer.receive(10).await.unwrap().is_empty());
    let consumer = client.simple_consumer(ConsumerOptions::new("g"));
    assert!(matches!(consumer.receive(1).await, Err(ReceiveError::NoSubscription)));
}

#[tokio::test]
async fn a_pull_that_is_cut_is_repeated_from_where_it_was_and_corrupt_messages_are_withheld() {
    let server = Server::start(&[]).await;
    {
        let mut seen = server.seen.lock();
        seen.queue = vec![
            delivery("one", "", "5EB63BBBE01EEED093CB22BB8F5ACDC3"),
            delivery("two", "", "00000000000000000000000000000000"),
            delivery("three", "", "5eb63bbbe01eeed093cb22bb8f5acdc3"),
        ];
        seen.pulls_to_cut = 1;
    }
    let client = Client::connect(&server.address.to_string(), options()).await.unwrap();
    let consumer = client.pull_consumer(PullOptions::new("g"));
    let queue = consumer.queues("t").await.unwrap().remove(0);
    assert_eq!((queue.broker.as_str(), queue.id), ("group-1", 0));
    let messages = consumer.receive(&queue, 10).await.unwrap();
    let ids: Vec<_> = messages.iter().map(|message| message.message_id.as_str()).collect();
    assert_eq!(ids, ["one", "three"]);
    assert_eq!(server.seen.lock().pulls_from, [0, 0], "nothing was skipped by the cut answer");
    assert_eq!(consumer.position(&queue), Some(3), "what cannot be used is passed over");
    consumer.seek(&queue, 2);
    assert_eq!(consumer.receive(&queue, 10).await.unwrap().len(), 1);
    assert_eq!(server.seen.lock().pulls_from, [0, 0, 2]);
}

fn delivery(id: &str, handle: &str, md5: &str) -> wire::Message {
    wire::Message {
        topic: Some(wire::Resource { name: "t".to_owned(), ..Default::default() }),
        user_properties: [("empty".to_owned(), String::new())].into(),
        system_properties: Some(wire::SystemProperties {
            message_id: id.to_owned(),
            receipt_handle: Some(handle.to_owned()),
            body_digest: Some(wire::Digest {
                r#type: wire::DigestType::Md5 as i32,
                checksum: md5.to_owned(),
            }),
            delivery_attempt: Some(1),
            ..Default::default()
        }),
        body: "hello world".into(),
    }
}
