//! Topics with order that grow, over real nodes and two broker groups: bad wishes, the drain across
//! broker groups, repeats across a growth, and a leader that dies while a topic grows under load.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use ledgermq_proto::admin::{
    CreateTopicRequest, DeleteTopicRequest, ListTopicsRequest, ResetOffsetsRequest, ShowTopicRequest,
    ShowTopicResponse, Topic, UpdateTopicRequest, reset_offsets_request,
};
use ledgermq_proto::rocketmq::{Code, Message, MessageType};
use tokio::time::Instant;
use tonic::{Code as GrpcCode, Status};

use crate::order::{admin, group_of, number_of, short, start, step, stop, take};
use crate::support::client::{code, id, system};
use crate::support::{Client, Cluster, PATIENCE};

pub async fn update(cluster: &Cluster, name: &str, queues: u32) -> Result<(Topic, bool), Status> {
    let request = UpdateTopicRequest { name: name.to_owned(), queues };
    let answer = admin(cluster).await.update_topic(request).await?.into_inner();
    Ok((answer.topic.expect("a topic"), answer.changed))
}

async fn show(cluster: &Cluster) -> ShowTopicResponse {
    let request = ShowTopicRequest { name: "steps".to_owned() };
    admin(cluster).await.show_topic(request).await.expect("shown").into_inner()
}

/// Receives from both broker groups and acknowledges, until nothing comes.
async fn take_all(client: &Client) -> Vec<Message> {
    let mut taken = Vec::new();
    for broker in ["g", "h"] {
        let messages = take(client, broker, 32).await;
        for message in &messages {
            assert_eq!(client.ack("steps", "workers", message).await, Code::Ok);
        }
        taken.extend(messages);
    }
    taken
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_growth_to_no_queues_too_many_or_fewer_is_refused() {
    let cluster = start(1).await;
    let refused = async |queues| update(&cluster, "steps", queues).await.expect_err("refused");
    let none = refused(0).await;
    assert_eq!(none.code(), GrpcCode::InvalidArgument);
    assert_eq!(none.message(), "queues = 0: it must be within 1..=65536");
    let fewer = refused(2).await;
    assert_eq!(fewer.code(), GrpcCode::InvalidArgument);
    assert_eq!(fewer.message(), "queues = 2: topic steps has 3 in group g, and queues cannot become fewer");
    assert_eq!(update(&cluster, "nothing", 5).await.expect_err("unknown").code(), GrpcCode::NotFound);
    let (topic, changed) = update(&cluster, "steps", 3).await.expect("it has them");
    assert_eq!((topic.queues, topic.generation, changed), (3, 0, false));
    // Grown, deleted and made again it begins anew.
    let client = Client::connect(&cluster.nodes[0].client_addr()).await;
    let (topic, changed) = update(&cluster, "steps", 5).await.expect("more");
    assert_eq!((topic.queues, topic.generation, changed), (5, 1, true));
    client.send(step("k", 0)).await;
    let delete = DeleteTopicRequest { name: "steps".to_owned() };
    admin(&cluster).await.delete_topic(delete).await.expect("deleted");
    let create = CreateTopicRequest {
        name: "steps".to_owned(),
        queues: 2,
        message_type: MessageType::Fifo as i32,
        ..Default::default()
    };
    let made = admin(&cluster).await.create_topic(create).await.expect("created").into_inner();
    assert_eq!(made.topic.expect("a topic").generation, 0);
    client.send(step("k", 1)).await;
    let began = Instant::now();
    let taken = loop {
        let taken = take_all(&client).await;
        if !taken.is_empty() || began.elapsed() > PATIENCE {
            break taken;
        }
    };
    assert_eq!(taken.iter().map(number_of).collect::<Vec<_>>(), [1]);
    // A topic without order just gets them.
    let create = CreateTopicRequest { name: "plain".to_owned(), queues: 2, ..Default::default() };
    admin(&cluster).await.create_topic(create).await.expect("created");
    let (topic, changed) = update(&cluster, "plain", 7).await.expect("more");
    assert_eq!((topic.queues, topic.generation, changed), (7, 0, true));
    stop(cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_growth_to_a_thousand_million_queues_is_refused() {
    let cluster = start(1).await;
    let many = update(&cluster, "steps", 1_000_000_000).await.expect_err("refused");
    assert_eq!(many.code(), GrpcCode::InvalidArgument);
    assert_eq!(many.message(), "queues = 1000000000: it must be within 1..=65536");
    stop(cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_after_a_growth_waits_for_what_was_before_in_every_broker_group() {
    let cluster = start(1).await;
    let client = Client::connect(&cluster.nodes[0].client_addr()).await;
    for group in 0..16 {
        client.send(step(&format!("k{group}"), 0)).await;
    }
    let places = |shown: &ShowTopicResponse| -> BTreeMap<(String, u32), u64> {
        shown.queues.iter().map(|queue| ((queue.group.clone(), queue.id), queue.max_offset)).collect()
    };
    let mut seen = BTreeSet::new();
    for broker in ["g", "h"] {
        for message in take(&client, broker, 1).await {
            seen.insert(group_of(&message).to_owned());
            assert_eq!(client.ack("steps", "workers", &message).await, Code::Ok);
        }
    }
    let before = places(&show(&cluster).await);
    let (topic, changed) = update(&cluster, "steps", 8).await.expect("grown");
    assert_eq!((topic.queues, topic.generation, changed, topic.growing_to), (8, 1, true, None));
    assert_eq!(topic.draining, ["workers"]);
    // A repeat across the growth is stored once, wherever its message group went.
    for group in 0..16 {
        client.send(step(&format!("k{group}"), 0)).await;
    }
    let after = places(&show(&cluster).await);
    assert!(before.iter().all(|(place, offset)| after[place] == *offset), "{before:?} {after:?}");
    assert_eq!(after.values().sum::<u64>(), 16);
    for group in 0..16 {
        client.send(step(&format!("k{group}"), 1)).await;
    }
    let used =
        places(&show(&cluster).await).iter().filter(|(place, _)| place.1 >= 3).map(|(_, max)| max).sum();
    assert!((1..=16).contains::<u64>(&used), "the new queues are used: {used}");

    // All of `g` is consumed and one message of `h` is not: nobody goes on.
    let mut held = None;
    for broker in ["g", "h"] {
        loop {
            let messages = take(&client, broker, 32).await;
            if messages.is_empty() {
                break;
            }
            for message in messages {
                assert_eq!(number_of(&message), 0, "{} comes before what was", id(&message));
                seen.insert(group_of(&message).to_owned());
                if broker == "h" && held.is_none() {
                    held = Some(message);
                } else {
                    assert_eq!(client.ack("steps", "workers", &message).await, Code::Ok);
                }
            }
        }
    }
    assert_eq!(seen.len(), 16);
    let held = held.expect("a message in h");
    assert_eq!(take_all(&client).await.len(), 0);
    let shown = show(&cluster).await;
    let left: BTreeMap<&str, u64> = shown.draining.iter().map(|of| (of.group.as_str(), of.left)).collect();
    assert_eq!(left, BTreeMap::from([("g", 0), ("h", 1)]), "{shown:?}");
    let states: Vec<(&str, u32, &str)> =
        shown.generations.iter().map(|of| (of.group.as_str(), of.number, of.state.as_str())).collect();
    assert_eq!(states, [("g", 0, "ended"), ("g", 1, "current"), ("h", 0, "ended"), ("h", 1, "current")]);
    // Consumers without order do not wait.
    let plain = crate::support::client::Receive { broker: "g".to_owned(), batch: 32, ..short() };
    let (_, all) = client.receive("steps", "others", plain).await;
    assert!(all.iter().any(|message| number_of(message) == 1), "{}", all.len());

    assert_eq!(client.ack("steps", "workers", &held).await, Code::Ok);
    let began = Instant::now();
    let mut next = BTreeSet::new();
    while next.len() < 16 && began.elapsed() < PATIENCE {
        for message in take_all(&client).await {
            assert_eq!(number_of(&message), 1);
            next.insert(group_of(&message).to_owned());
        }
    }
    assert_eq!(next.len(), 16);
    let topics = admin(&cluster).await.list_topics(ListTopicsRequest {}).await.expect("listed").into_inner();
    let listed = topics.topics.iter().find(|topic| topic.name == "steps").expect("steps");
    assert_eq!((listed.generation, listed.draining.as_slice()), (1, [].as_slice()));

    // To the beginning: again what was before comes first, in all broker groups.
    let reset = ResetOffsetsRequest {
        consumer_group: "workers".to_owned(),
        topic: "steps".to_owned(),
        reset_id: 0,
        to: Some(reset_offsets_request::To::Beginning(true)),
    };
    admin(&cluster).await.reset_offsets(reset).await.expect("reset");
    let mut numbers = Vec::new();
    let began = Instant::now();
    while numbers.len() < 32 && began.elapsed() < PATIENCE {
        numbers.extend(take_all(&client).await.iter().map(number_of));
    }
    assert_eq!(numbers.iter().filter(|number| **number == 0).count(), 16);
    assert!(numbers.is_sorted(), "{numbers:?}");
    stop(cluster).await;
}

/// Repeats a send until it is answered: an election takes longer than one attempt's deadline here.
async fn send(client: &Client, message: Message) {
    let began = Instant::now();
    loop {
        let answer = client.try_send(vec![message.clone()]).await;
        let code = answer.as_ref().ok().map(|answer| code(answer.status.as_ref()));
        match code {
            Some(Code::Ok) => return,
            None | Some(Code::HaNotAvailable | Code::ProxyTimeout) if began.elapsed() < PATIENCE => {}
            _ => panic!("{answer:?}"),
        }
    }
}

/// Sends the steps of its message groups one after the other, until told to end; how many of each.
async fn produce(
    client: Client,
    groups: std::ops::Range<u32>,
    ends: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
) -> BTreeMap<String, u32> {
    let mut next = BTreeMap::new();
    while !ends.load(Ordering::SeqCst) {
        for group in groups.clone() {
            let name = format!("k{group}");
            let number = next.entry(name.clone()).or_insert(0);
            send(&client, step(&name, *number)).await;
            *number += 1;
            sent.fetch_add(1, Ordering::SeqCst);
        }
    }
    next
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_key_goes_backwards_while_a_topic_grows_twice_and_a_leader_dies() {
    let mut cluster = start(3).await;
    let ends = Arc::new(AtomicBool::new(false));
    let sent_count = Arc::new(AtomicU64::new(0));
    let survivor = 2;
    let client = Client::connect(&cluster.nodes[survivor].client_addr()).await;
    let producers: Vec<_> = [0..5, 5..10]
        .map(|groups| {
            tokio::spawn(produce(client.clone(), groups, Arc::clone(&ends), Arc::clone(&sent_count)))
        })
        .into();
    let consumer = tokio::spawn({
        let (client, ends) = (client.clone(), Arc::clone(&ends));
        async move {
            let mut next: BTreeMap<String, u32> = BTreeMap::new();
            let mut idle_since = Instant::now();
            while !ends.load(Ordering::SeqCst) || idle_since.elapsed() < Duration::from_secs(6) {
                for broker in ["g", "h"] {
                    for message in take(&client, broker, 32).await {
                        idle_since = Instant::now();
                        let expected = next.entry(group_of(&message).to_owned()).or_default();
                        let number = number_of(&message);
                        // One whose acknowledgement was lost comes again, and nothing overtakes it.
                        let is_first = system(&message).delivery_attempt == Some(1);
                        assert!(number == *expected || !is_first && number < *expected, "{}", id(&message));
                        *expected = (*expected).max(number + 1);
                        client.ack("steps", "workers", &message).await;
                    }
                }
            }
            next
        }
    });
    let sent_more = async || {
        let (until, began) = (sent_count.load(Ordering::SeqCst) + 20, Instant::now());
        while sent_count.load(Ordering::SeqCst) < until {
            assert!(began.elapsed() < PATIENCE, "the sends stand still");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    sent_more().await;
    // The administrator's call goes through the node that stays; a leader dies while it is answered.
    let address = format!("http://{}", cluster.nodes[survivor].client_addr());
    for (queues, kills) in [(8, true), (13, false)] {
        let address = address.clone();
        let growth = tokio::spawn(async move {
            let channel = tonic::transport::Endpoint::from_shared(address).expect("an address");
            let channel = channel.connect().await.expect("a broker");
            let mut admin = ledgermq_proto::admin::admin_client::AdminClient::new(channel);
            let began = Instant::now();
            loop {
                let request = UpdateTopicRequest { name: "steps".to_owned(), queues };
                match admin.update_topic(request).await {
                    Ok(answer) => return answer.into_inner().topic.expect("a topic"),
                    Err(status) if began.elapsed() < PATIENCE => eprintln!("the growth waits: {status}"),
                    Err(status) => panic!("{status}"),
                }
            }
        });
        if kills {
            cluster = tokio::task::spawn_blocking(move || {
                let victim = (0..2).find(|&node| cluster.nodes[node].leads("g")).unwrap_or(0);
                cluster.nodes[victim].kill();
                cluster
            })
            .await
            .expect("killed");
        }
        let topic = growth.await.expect("grown");
        assert_eq!(topic.queues, queues);
        sent_more().await;
    }
    ends.store(true, Ordering::SeqCst);
    let mut sent: BTreeMap<String, u32> = BTreeMap::new();
    for producer in producers {
        sent.extend(producer.await.expect("every send was answered"));
    }
    let received = consumer.await.expect("in order");
    assert_eq!(received, sent);
    stop(cluster).await;
}
