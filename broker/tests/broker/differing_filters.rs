//! Members of one consumer group that subscribe to one topic by different filters: each gets what it
//! subscribed to, nothing is lost, and it is reported.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use ledgermq_proto::admin as wire;
use ledgermq_proto::admin::admin_client::AdminClient;
use ledgermq_proto::rocketmq::{Code, Message, MessageType};
use tonic::transport::{Channel, Endpoint};

use crate::support::client::{Receive, id, message, tagged};
use crate::support::{Client, Cluster, PATIENCE};

const TAGS: [&str; 3] = ["a", "b", "c"];

async fn start(nodes: usize, lapse_ms: u64, message_type: MessageType) -> Cluster {
    let start = move || {
        Cluster::start_with(nodes, |config| {
            config.topics.default_queues = 1;
            config.topics.subscription_lapse_ms = lapse_ms;
        })
    };
    let cluster = tokio::task::spawn_blocking(start).await.expect("a cluster");
    let create = wire::CreateTopicRequest {
        name: "t".to_owned(),
        queues: 1,
        message_type: message_type as i32,
        ..wire::CreateTopicRequest::default()
    };
    admin(&cluster, 0).await.create_topic(create).await.expect("created");
    cluster
}

async fn stop(cluster: Cluster) {
    tokio::task::spawn_blocking(move || drop(cluster)).await.expect("dropped");
}

async fn admin(cluster: &Cluster, node: usize) -> AdminClient<Channel> {
    let address = format!("http://{}", cluster.nodes[node].client_addr());
    AdminClient::new(Endpoint::from_shared(address).expect("an address").connect().await.expect("a broker"))
}

/// Another client on the same connection.
async fn member(cluster: &Cluster, node: usize, name: &str) -> Client {
    Client::connect(&cluster.nodes[node].client_addr()).await.named(name)
}

fn of(tag: &str) -> Receive {
    Receive { tags: Some(tag.to_owned()), poll: Duration::from_millis(400), ..Receive::default() }
}

/// Receives and acknowledges until nothing comes for the length of a poll.
async fn drain(client: &Client, receive: Receive) -> Vec<String> {
    let mut ids = Vec::new();
    loop {
        let (status, messages) = client.receive("t", "c", receive.clone()).await;
        if messages.is_empty() {
            assert_eq!(status, Code::MessageNotFound);
            return ids;
        }
        for message in &messages {
            assert_eq!(client.ack("t", "c", message).await, Code::Ok);
            ids.push(id(message).to_owned());
        }
    }
}

async fn send(client: &Client, tags: &[&str], from: usize, count: usize) {
    for number in from..from + count {
        for tag in tags {
            client.send(tagged("t", &format!("{tag}{number}"), tag)).await;
        }
    }
}

fn ids(tag: &str, from: usize, to: usize) -> Vec<String> {
    (from..to).map(|number| format!("{tag}{number}")).collect()
}

/// Messages before the group, and under delivery to it.
async fn lag(admin: &mut AdminClient<Channel>) -> (u64, u64) {
    let shown = admin.show_topic(wire::ShowTopicRequest { name: "t".to_owned() }).await.expect("shown");
    let consumptions = shown.into_inner().consumptions;
    (consumptions.iter().map(|of| of.ready).sum(), consumptions.iter().map(|of| of.inflight).sum())
}

async fn conflicts(admin: &mut AdminClient<Channel>) -> Vec<wire::SubscriptionConflict> {
    let request = wire::ShowConsumerGroupRequest { name: "c".to_owned() };
    admin
        .show_consumer_group(request)
        .await
        .expect("shown")
        .into_inner()
        .consumer_group
        .expect("one")
        .conflicts
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_member_gets_what_it_subscribed_to_and_what_nobody_wants_is_passed_over() {
    let cluster = start(1, 120_000, MessageType::Normal).await;
    let mut operator = admin(&cluster, 0).await;
    let (a, b) = (member(&cluster, 0, "member-a").await, member(&cluster, 0, "member-b").await);
    let sender = member(&cluster, 0, "sender").await;
    assert_eq!(drain(&a, of("a")).await, Vec::<String>::new());
    assert_eq!(conflicts(&mut operator).await, [], "one filter is no conflict");

    assert_eq!(drain(&b, of("b || b")).await, Vec::<String>::new());
    send(&sender, &TAGS, 0, 40).await;
    assert_eq!(drain(&a, of("a")).await, ids("a", 0, 40), "all of them, each once, in order");
    assert_eq!(drain(&b, of("b || b")).await, ids("b", 0, 40), "though a was there first");

    let waits = |client: &Client, tag: &'static str| {
        let client = client.clone();
        tokio::spawn(async move {
            let began = Instant::now();
            let mut got = Vec::new();
            while got.len() < 40 && began.elapsed() < PATIENCE {
                got.extend(drain(&client, of(tag)).await);
            }
            got
        })
    };
    let (of_a, of_b) = (waits(&a, "a"), waits(&b, "b || b"));
    send(&sender, &TAGS, 40, 40).await;
    assert_eq!(of_a.await.expect("received"), ids("a", 40, 80), "and both at once");
    assert_eq!(of_b.await.expect("received"), ids("b", 40, 80));
    // One more of a is behind all of c.
    send(&sender, &["a"], 80, 1).await;
    assert_eq!(drain(&a, of("a")).await, ["a80"]);
    assert_eq!(lag(&mut operator).await, (0, 0), "the group has come to the end");

    let found = conflicts(&mut operator).await;
    assert_eq!((found.len(), found[0].topic.as_str(), found[0].group.as_str()), (1, "t", "g"));
    let filters: Vec<_> = found[0]
        .filters
        .iter()
        .map(|filter| (filter.expression.as_str(), filter.client_ids.clone()))
        .collect();
    assert_eq!(filters, [("tag a", vec!["member-a".to_owned()]), ("tag b", vec!["member-b".to_owned()])]);
    let listed = operator.list_consumer_groups(wire::ListConsumerGroupsRequest::default()).await;
    let listed = listed.expect("listed").into_inner();
    assert_eq!((listed.consumer_groups.len(), listed.next.as_str()), (1, ""));
    assert_eq!(listed.consumer_groups[0].conflicts, found);
    let (_, metrics) = cluster.nodes[0].http("/metrics");
    let line = metrics.lines().find(|line| line.starts_with("ledgermq_consumer_group_filters{"));
    let line = line.expect("a sample");
    assert!(line.contains("consumer_group=\"c\"") && line.contains("topic=\"t\""), "{line}");
    assert!(line.ends_with(" 2"), "{line}");

    // A member that says it ends leaves its part to nobody.
    assert_eq!(b.terminate("c").await, Code::Ok);
    let began = Instant::now();
    while !conflicts(&mut operator).await.is_empty() {
        assert!(began.elapsed() < PATIENCE, "the filter of a member that ended is dropped");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    send(&sender, &["b"], 81, 5).await;
    send(&sender, &["a"], 81, 1).await;
    assert_eq!(drain(&a, of("a")).await, ["a81"]);
    assert_eq!(lag(&mut operator).await, (0, 0));
    stop(cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_waits_is_woken_for_what_another_one_left() {
    let cluster = start(1, 120_000, MessageType::Normal).await;
    let sender = member(&cluster, 0, "sender").await;
    let expression = || Receive { tags: None, sql: Some("TAGS = 'b'".to_owned()), ..of("") };
    for (round, first, second) in [("tags", of("a"), of("b")), ("mixed", of("a"), expression())] {
        for swap in [false, true] {
            let (first, second) = if swap { (&second, &first) } else { (&first, &second) };
            let began = Instant::now();
            let mut waiting = Vec::new();
            for (name, receive) in [("one", first), ("two", second)] {
                let client = member(&cluster, 0, &format!("{round}-{name}")).await;
                let receive = Receive { poll: Duration::from_secs(20), ..receive.clone() };
                let before = cluster.nodes[0].long_polls();
                waiting.push(tokio::spawn(async move {
                    let (_, messages) = client.receive("t", "c", receive).await;
                    assert_eq!(client.ack("t", "c", &messages[0]).await, Code::Ok);
                    messages.iter().map(|message| id(message).to_owned()).collect::<Vec<_>>()
                }));
                while cluster.nodes[0].long_polls() == before {
                    assert!(began.elapsed() < PATIENCE, "it waits");
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
            // One entry of the log, so one arrival: whoever is woken by it, the other is to be woken too.
            let both = ["a", "b"].map(|tag| tagged("t", &format!("{round}-{swap}-{tag}"), tag));
            sender.try_send(both.to_vec()).await.expect("an answer");
            let mut got = Vec::new();
            for waiting in waiting {
                got.extend(waiting.await.expect("received"));
            }
            got.sort_unstable();
            assert_eq!(got, ["a", "b"].map(|tag| format!("{round}-{swap}-{tag}")));
            assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
        }
    }
    stop(cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn expressions_tags_and_everything_share_a_topic_without_loss() {
    let cluster = start(1, 120_000, MessageType::Normal).await;
    let sender = member(&cluster, 0, "sender").await;
    let (tag, sql) = (member(&cluster, 0, "by-tag").await, member(&cluster, 0, "by-sql").await);
    let expression =
        || Receive { tags: None, sql: Some("TAGS = 'b' AND colour = 'red'".to_owned()), ..of("") };
    assert_eq!(drain(&tag, of("a")).await, Vec::<String>::new());
    assert_eq!(drain(&sql, expression()).await, Vec::<String>::new());
    send(&sender, &TAGS, 0, 20).await;
    assert_eq!(drain(&sql, expression()).await, ids("b", 0, 20));
    assert_eq!(drain(&tag, of("a")).await, ids("a", 0, 20));
    let mut operator = admin(&cluster, 0).await;
    send(&sender, &["a"], 20, 1).await;
    assert_eq!(drain(&tag, of("a")).await, ["a20"]);
    // What only the expression could judge is put behind the group by it.
    assert_eq!(drain(&sql, expression()).await, Vec::<String>::new());
    assert_eq!(lag(&mut operator).await, (0, 0));

    let all = member(&cluster, 0, "everything").await;
    let everything = || Receive { tags: None, ..of("") };
    assert_eq!(drain(&all, everything()).await, Vec::<String>::new());
    send(&sender, &TAGS, 21, 5).await;
    let mut got: BTreeSet<String> = drain(&tag, of("a")).await.into_iter().collect();
    assert_eq!(got.len(), 5);
    got.extend(drain(&all, everything()).await);
    assert_eq!(got.len(), 15, "the rest is for the one that wants everything: {got:?}");
    stop(cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_leader_passes_nothing_over_that_a_member_it_has_not_heard_of_wants() {
    let mut cluster = start(3, 120_000, MessageType::Normal).await;
    let (back, leader, follower) = tokio::task::spawn_blocking(move || {
        let (leader, follower) = (cluster.leader(), cluster.follower());
        (cluster, leader, follower)
    })
    .await
    .expect("roles");
    cluster = back;
    let (a, b) = (member(&cluster, follower, "member-a").await, member(&cluster, follower, "member-b").await);
    let sender = member(&cluster, follower, "sender").await;
    assert_eq!(drain(&a, of("a")).await, Vec::<String>::new());
    assert_eq!(drain(&b, of("b")).await, Vec::<String>::new());
    cluster = tokio::task::spawn_blocking(move || {
        cluster.nodes[leader].kill();
        cluster
    })
    .await
    .expect("killed");
    send(&sender, &TAGS, 0, 30).await;
    let patient = Receive { poll: Duration::from_secs(3), ..of("a") };
    assert_eq!(drain(&a, patient).await, ids("a", 0, 30));
    let mut operator = admin(&cluster, follower).await;
    let known: Vec<String> =
        conflicts(&mut operator).await[0].filters.iter().map(|filter| filter.expression.clone()).collect();
    assert_eq!(known, ["tag a", "tag b"], "from the log");
    assert_eq!(drain(&b, of("b")).await, ids("b", 0, 30), "nothing was passed over for it");
    stop(cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_filter_of_a_member_that_died_lapses_and_its_messages_are_passed_over_then() {
    let cluster = start(1, 1_500, MessageType::Normal).await;
    let mut operator = admin(&cluster, 0).await;
    let (a, b) = (member(&cluster, 0, "member-a").await, member(&cluster, 0, "member-b").await);
    let sender = member(&cluster, 0, "sender").await;
    assert_eq!(drain(&b, of("b")).await, Vec::<String>::new());
    // From here on nothing is heard of b.
    send(&sender, &["a", "b"], 0, 10).await;
    assert_eq!(drain(&a, of("a")).await, ids("a", 0, 10), "a does not wait for it");
    assert_eq!(lag(&mut operator).await, (10, 0), "what is for b is left while it may come back");
    let began = Instant::now();
    while !conflicts(&mut operator).await.is_empty() {
        assert!(began.elapsed() < PATIENCE, "its filter lapses");
        a.receive("t", "c", of("a")).await;
    }
    send(&sender, &["a"], 10, 1).await;
    assert_eq!(drain(&a, of("a")).await, ["a10"]);
    assert_eq!(lag(&mut operator).await, (0, 0), "nobody alive wants the rest");
    stop(cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_group_with_order_a_message_for_another_member_holds_up_its_message_group() {
    let cluster = start(1, 120_000, MessageType::Fifo).await;
    let mut operator = admin(&cluster, 0).await;
    let fifo = wire::SetConsumerGroupRequest {
        name: "c".to_owned(),
        fifo: Some(true),
        ..wire::SetConsumerGroupRequest::default()
    };
    operator.set_consumer_group(fifo).await.expect("set");
    let (a, b) = (member(&cluster, 0, "member-a").await, member(&cluster, 0, "member-b").await);
    let expression = || Receive { tags: None, sql: Some("TAGS = 'b'".to_owned()), ..of("") };
    assert_eq!(drain(&a, of("a")).await, Vec::<String>::new());
    assert_eq!(drain(&b, expression()).await, Vec::<String>::new());
    let in_group = |id: &str, tag: &str, group: &str| -> Message {
        let mut message = tagged("t", id, tag);
        message.system_properties.as_mut().expect("system properties").message_group = Some(group.to_owned());
        message
    };
    let sent = [("1", "a", "x"), ("2", "b", "x"), ("3", "a", "x"), ("4", "a", "y"), ("5", "c", "x")];
    for (id, tag, group) in sent {
        a.send(in_group(id, tag, group)).await;
    }
    assert_eq!(drain(&a, of("a")).await, ["1", "4"], "3 waits for 2");
    assert_eq!(drain(&b, expression()).await, ["2"], "and 5 for 3");
    assert_eq!(drain(&a, of("a")).await, ["3"]);
    a.send(in_group("6", "a", "x")).await;
    a.send(in_group("7", "b", "x")).await;
    assert_eq!(drain(&b, expression()).await, Vec::<String>::new(), "7 waits for 6");
    assert_eq!(drain(&a, of("a")).await, ["6"]);
    assert_eq!(drain(&b, expression()).await, ["7"]);
    assert_eq!(lag(&mut operator).await, (0, 0));
    stop(cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_filter_too_many_is_refused_and_harms_nobody() {
    let cluster = start(1, 120_000, MessageType::Normal).await;
    let sender = member(&cluster, 0, "sender").await;
    for number in 0..16 {
        let client = member(&cluster, 0, &format!("member-{number}")).await;
        let receive = Receive { poll: Duration::ZERO, ..of(&format!("tag{number}")) };
        assert_eq!(client.receive("t", "c", receive).await.0, Code::MessageNotFound);
    }
    let late = member(&cluster, 0, "late").await;
    let receive = Receive { poll: Duration::ZERO, ..of("more") };
    assert_eq!(late.receive("t", "c", receive).await.0, Code::TooManyRequests);
    sender.send(message("other", "1", "body")).await;
    let receive = Receive { poll: Duration::ZERO, ..of("more") };
    assert_eq!(late.receive("other", "c", receive).await.0, Code::MessageNotFound, "another topic");
    stop(cluster).await;
}
