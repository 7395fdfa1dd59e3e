//! Three brokers, one group: every node takes every request, and none is lost when a node goes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::support::client::{Receive, code, id, message};
use crate::support::{Client, Cluster, Node, PATIENCE};
use ledgermq_proto::rocketmq::{Code, SendMessageResponse};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_node_sends_receives_and_acknowledges_whoever_leads() {
    let cluster = start().await;
    let mut clients = Vec::new();
    for node in &cluster.nodes {
        clients.push(Client::connect(&node.client_addr()).await);
    }
    for (at, client) in clients.iter().enumerate() {
        client.send(message("t", &format!("id-{at}"), "body")).await;
    }
    let mut ids = BTreeSet::new();
    for (at, client) in clients.iter().enumerate() {
        let (status, messages) = client.receive("t", "c", Receive { batch: 1, ..Receive::default() }).await;
        assert_eq!((status, messages.len()), (Code::Ok, 1));
        ids.insert(id(&messages[0]).to_owned());
        let acknowledging = &clients[(at + 1) % clients.len()];
        assert_eq!(acknowledging.ack("t", "c", &messages[0]).await, Code::Ok);
    }
    assert_eq!(ids.len(), 3, "each message once: {ids:?}");
    stop(cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_send_through_another_node_gets_the_first_answer_and_is_delivered_once() {
    let cluster = start().await;
    let mut answers = Vec::new();
    for node in &cluster.nodes {
        let client = Client::connect(&node.client_addr()).await;
        answers.push(client.try_send(vec![message("t", "same", "body")]).await.expect("an answer"));
    }
    let first: &SendMessageResponse = &answers[0];
    assert_eq!(code(first.status.as_ref()), Code::Ok);
    assert!(answers.iter().all(|answer| answer.entries == first.entries), "{answers:?}");
    let client = Client::connect(&cluster.nodes[0].client_addr()).await;
    assert_eq!(client.receive("t", "c", Receive::default()).await.1.len(), 1);
    let poll = Receive { poll: Duration::from_millis(300), ..Receive::default() };
    assert_eq!(client.receive("t", "c", poll).await.0, Code::MessageNotFound);
    stop(cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sends_through_the_other_nodes_are_held_and_not_failed_while_a_leader_dies() {
    let mut cluster = start().await;
    let (leader, follower) = roles(&mut cluster).await;
    let client = Client::connect(&cluster.nodes[follower].client_addr()).await;
    client.send(message("t", "before", "body")).await;
    let load = Load::begin(client.clone(), "t");
    load.wait_for(20).await;
    cluster = blocking(cluster, move |cluster| cluster.nodes[leader].kill()).await;
    load.wait_for(load.count() + 20).await;
    let sent = load.end().await;
    let failed: Vec<_> = sent.iter().filter(|(_, result)| result.is_err()).collect();
    assert!(failed.is_empty(), "{failed:?}");
    let mut expected: BTreeSet<String> = sent.into_keys().collect();
    expected.insert("before".to_owned());
    assert_eq!(drain(&client, "t", "c", expected.len()).await, expected);
    stop(cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_of_all_nodes_keeps_messages_leases_and_acknowledgements() {
    let mut cluster = start().await;
    let client = Client::connect(&cluster.nodes[0].client_addr()).await;
    for at in 0..5 {
        client.send(message("t", &format!("id-{at}"), "body")).await;
    }
    let (_, taken) = client
        .receive("t", "c", Receive { batch: 2, invisible: Duration::from_secs(600), ..Receive::default() })
        .await;
    let mut taken = taken;
    while taken.len() < 2 {
        let one = Receive { batch: 1, invisible: Duration::from_secs(600), ..Receive::default() };
        taken.extend(client.receive("t", "c", one).await.1);
    }
    assert_eq!(client.ack("t", "c", &taken[0]).await, Code::Ok);
    cluster = blocking(cluster, |cluster| {
        cluster.nodes.iter_mut().for_each(Node::kill);
        cluster.nodes.iter_mut().for_each(Node::start);
        cluster.wait_ready();
    })
    .await;
    let client = Client::connect(&cluster.nodes[1].client_addr()).await;
    let repeated = client.try_send(vec![message("t", "id-0", "body")]).await.expect("an answer");
    assert_eq!(code(repeated.status.as_ref()), Code::Ok);
    let rest = drain(&client, "t", "c", 3).await;
    let held: BTreeSet<&str> = taken.iter().map(id).collect();
    assert!(rest.iter().all(|id| !held.contains(id.as_str())), "{rest:?} are not {held:?}");
    assert_eq!(client.ack("t", "c", &taken[1]).await, Code::Ok, "the lease lived through the restart");
    let poll = Receive { poll: Duration::from_millis(300), ..Receive::default() };
    assert_eq!(client.receive("t", "c", poll).await.0, Code::MessageNotFound);
    stop(cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_planned_stop_hands_over_ends_polls_and_fails_no_send() {
    let mut cluster = start().await;
    let (leader, follower) = roles(&mut cluster).await;
    let through_leader = Client::connect(&cluster.nodes[leader].client_addr()).await;
    let client = Client::connect(&cluster.nodes[follower].client_addr()).await;
    client.send(message("polled", "first", "body")).await;
    drain(&client, "polled", "c", 1).await;
    let polling = {
        let poll = Receive { poll: Duration::from_secs(20), ..Receive::default() };
        tokio::spawn(async move { through_leader.receive("polled", "c", poll).await })
    };
    let load = Load::begin(client.clone(), "t");
    load.wait_for(20).await;
    let took = Arc::new(parking_lot::Mutex::new(Duration::ZERO));
    let noted = Arc::clone(&took);
    cluster = blocking(cluster, move |cluster| *noted.lock() = cluster.nodes[leader].shut_down()).await;
    load.wait_for(load.count() + 20).await;
    let sent = load.end().await;
    let failed: Vec<_> = sent.iter().filter(|(_, result)| result.is_err()).collect();
    assert!(failed.is_empty(), "{failed:?}");
    assert_eq!(polling.await.expect("the poll").0, Code::MessageNotFound, "a poll is handed back, not cut");
    assert!(*took.lock() < Duration::from_secs(10), "it took {took:?}");
    let expected: BTreeSet<String> = sent.into_keys().collect();
    assert_eq!(drain(&client, "t", "c", expected.len()).await, expected);
    stop(cluster).await;
}

/// One client that sends one message after the other, each until it has an answer.
struct Load {
    ended: Arc<AtomicBool>,
    sent: Arc<parking_lot::Mutex<BTreeMap<String, Result<(), String>>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Load {
    fn begin(client: Client, topic: &'static str) -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        let sent: Arc<parking_lot::Mutex<BTreeMap<String, Result<(), String>>>> = Arc::default();
        let (until, results) = (Arc::clone(&ended), Arc::clone(&sent));
        let task = tokio::spawn(async move {
            for number in 0.. {
                if until.load(Ordering::Relaxed) {
                    return;
                }
                let id = format!("load-{number}");
                let result = match client.try_send(vec![message(topic, &id, "body")]).await {
                    Ok(response) if code(response.status.as_ref()) == Code::Ok => Ok(()),
                    Ok(response) => Err(format!("{:?}", response.status)),
                    Err(status) => Err(status.to_string()),
                };
                results.lock().insert(id, result);
            }
        });
        Self { ended, sent, task }
    }

    fn count(&self) -> usize {
        self.sent.lock().len()
    }

    async fn wait_for(&self, count: usize) {
        let began = Instant::now();
        while self.count() < count {
            assert!(began.elapsed() < PATIENCE, "{} of {count} sends were answered", self.count());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn end(self) -> BTreeMap<String, Result<(), String>> {
        self.ended.store(true, Ordering::Relaxed);
        self.task.await.expect("the load");
        std::mem::take(&mut *self.sent.lock())
    }
}

/// Receives and acknowledges until `count` messages came; each may come once.
pub async fn drain(client: &Client, topic: &str, group: &str, count: usize) -> BTreeSet<String> {
    let mut ids = BTreeSet::new();
    let began = Instant::now();
    while ids.len() < count {
        assert!(began.elapsed() < PATIENCE, "{} of {count} messages came", ids.len());
        let poll = Receive {
            poll: Duration::from_secs(2),
            invisible: Duration::from_secs(300),
            ..Receive::default()
        };
        for message in client.receive(topic, group, poll).await.1 {
            assert_eq!(client.ack(topic, group, &message).await, Code::Ok);
            assert!(ids.insert(id(&message).to_owned()), "{} came twice", id(&message));
        }
    }
    ids
}

pub async fn start() -> Cluster {
    tokio::task::spawn_blocking(|| Cluster::start(3)).await.expect("a cluster")
}

pub async fn stop(cluster: Cluster) {
    // A runtime must not be dropped inside another one.
    tokio::task::spawn_blocking(move || drop(cluster)).await.expect("the end of the cluster");
}

/// The leader and another node.
pub async fn roles(cluster: &mut Cluster) -> (usize, usize) {
    let moved = std::mem::replace(cluster, Cluster::none());
    let (moved, roles) = tokio::task::spawn_blocking(move || {
        let roles = (moved.leader(), moved.follower());
        (moved, roles)
    })
    .await
    .expect("roles");
    *cluster = moved;
    roles
}

pub async fn blocking(mut cluster: Cluster, work: impl FnOnce(&mut Cluster) + Send + 'static) -> Cluster {
    tokio::task::spawn_blocking(move || {
        work(&mut cluster);
        cluster
    })
    .await
    .expect("work on the cluster")
}
