//! The leader dies at each step of a transaction. Whatever the step: one outcome, the check goes on
//! in time, and the producer is asked at most once more than it would have been.
//!
//! "Received and not committed" is made certain by taking the other two nodes away first: the leader
//! alone writes the entry to its log and cannot commit it.

use std::time::{Duration, Instant};

use ledgermq_proto::admin::{CreateTopicRequest, ListTransactionsRequest, ShowTransactionRequest};
use ledgermq_proto::rocketmq::{Code, MessageType, TransactionResolution};

use crate::support::client::{Receive, code, id};
use crate::support::{Client, Cluster, PATIENCE, http_get};
use crate::transactions::{Producer, admin, end, half, short, stop};

const CHECK_AFTER_MS: u64 = 3_000;
const CHECK_INTERVAL_MS: u64 = 5_000;
/// The promise: the check goes on within the timeout and one interval.
const RESUMES_WITHIN: Duration = Duration::from_millis(CHECK_AFTER_MS + CHECK_INTERVAL_MS);
/// Larger than anything else that is written meanwhile.
const BODY_BYTES: usize = 256 * 1024;

struct Bed {
    cluster: Cluster,
    leader: usize,
}

impl Bed {
    async fn start() -> Self {
        let start = || {
            let cluster = Cluster::start_with(3, |config| {
                config.transactions.timeout_ms = CHECK_AFTER_MS;
                config.transactions.check_interval_ms = CHECK_INTERVAL_MS;
            });
            let leader = cluster.leader();
            Self { cluster, leader }
        };
        let bed = tokio::task::spawn_blocking(start).await.expect("a cluster");
        let create = CreateTopicRequest {
            name: "pay".to_owned(),
            queues: 1,
            message_type: MessageType::Transaction as i32,
            ..CreateTopicRequest::default()
        };
        admin(&bed.cluster, bed.leader).await.create_topic(create).await.expect("created");
        bed
    }

    fn others(&self) -> Vec<usize> {
        (0..3).filter(|node| *node != self.leader).collect()
    }

    /// A client of a node that did not lead.
    async fn client(&self) -> Client {
        Client::connect(&self.cluster.nodes[self.others()[0]].client_addr()).await
    }

    async fn work(&mut self, work: impl FnOnce(&mut Cluster) + Send + 'static) {
        let mut cluster = std::mem::replace(&mut self.cluster, Cluster::none());
        let worked = tokio::task::spawn_blocking(move || {
            work(&mut cluster);
            cluster
        });
        self.cluster = worked.await.expect("work on the cluster");
    }

    async fn kill(&mut self, nodes: Vec<usize>) {
        self.work(move |cluster| nodes.into_iter().for_each(|node| cluster.nodes[node].kill())).await;
    }

    async fn restart(&mut self, nodes: Vec<usize>) {
        self.work(move |cluster| {
            nodes.into_iter().for_each(|node| cluster.nodes[node].start());
            cluster.wait_ready();
        })
        .await;
    }

    /// Until the leader wrote this much more to its log than `before`.
    async fn wait_written(&self, before: u64, more: u64) {
        let began = Instant::now();
        while log_bytes(&self.cluster, self.leader).await < before + more {
            assert!(began.elapsed() < PATIENCE, "the leader writes nothing");
            tokio::task::yield_now().await;
        }
    }

    /// The transaction has this outcome, its message is there once or never, nobody is asked again,
    /// and the node that was killed changes none of it when it is back.
    async fn has_one_outcome(mut self, producer: &mut Producer, transaction: &str, commit: bool) {
        use TransactionResolution::{Commit, Rollback};
        let client = self.client().await;
        let (said, other) = if commit { (Commit, Rollback) } else { (Rollback, Commit) };
        assert_eq!(end(&client, "pay", transaction, said).await.0, Code::Ok, "said again");
        let refused = end(&client, "pay", transaction, other).await;
        assert_eq!(refused.0, Code::PreconditionFailed, "{}", refused.1);
        let expected: &[&str] = if commit { &["m"] } else { &[] };
        assert_eq!(drain(&client, "before").await, expected);
        let interval = Duration::from_millis(CHECK_INTERVAL_MS);
        assert_eq!(producer.check_within(interval).await, None, "nobody asks about what is decided");
        self.restart(vec![self.leader]).await;
        assert_eq!(drain(&client, "after").await, expected);
        let mut operator = admin(&self.cluster, self.others()[0]).await;
        let open = operator.list_transactions(ListTransactionsRequest::default()).await.expect("listed");
        assert_eq!(open.into_inner().transactions, [], "no second transaction is open");
        stop(self.cluster).await;
    }

    async fn checks(&self, transaction: &str) -> u32 {
        let show = ShowTransactionRequest { transaction_id: transaction.to_owned() };
        let shown = admin(&self.cluster, self.others()[0]).await.show_transaction(show).await;
        shown.expect("shown").into_inner().transaction.expect("known").checks
    }
}

async fn log_bytes(cluster: &Cluster, node: usize) -> u64 {
    let address = cluster.nodes[node].config.listen.http.clone();
    let text =
        tokio::task::spawn_blocking(move || http_get(&address, "/metrics").1).await.expect("an answer");
    let line = text.lines().find(|line| line.starts_with("rocketmq_storage_size")).expect("the figure");
    line.rsplit(' ').next().and_then(|value| value.parse().ok()).expect("a number")
}

/// What a new group gets of the topic.
async fn drain(client: &Client, group: &str) -> Vec<String> {
    let mut ids = Vec::new();
    let mut receive = Receive::default();
    loop {
        let (_, messages) = client.receive("pay", group, receive).await;
        if messages.is_empty() {
            return ids;
        }
        for message in &messages {
            assert_eq!(client.ack("pay", group, message).await, Code::Ok);
            ids.push(id(message).to_owned());
        }
        receive = short();
    }
}

async fn send_half(client: &Client) -> String {
    let response = client.try_send(vec![half("pay", "m")]).await.expect("an answer");
    assert_eq!(code(response.status.as_ref()), Code::Ok, "{response:?}");
    response.entries[0].transaction_id.clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_the_half_received_a_repeated_half_is_the_only_one() {
    let mut bed = Bed::start().await;
    let to_leader = Client::connect(&bed.cluster.nodes[bed.leader].client_addr()).await;
    let others = bed.others();
    bed.kill(others.clone()).await;
    let before = log_bytes(&bed.cluster, bed.leader).await;
    let mut large = half("pay", "m");
    large.body = "x".repeat(BODY_BYTES).into();
    let sending = tokio::spawn(async move { to_leader.try_send(vec![large]).await });
    bed.wait_written(before, BODY_BYTES as u64).await;
    assert!(!sending.is_finished(), "no majority, no acknowledgement");
    bed.kill(vec![bed.leader]).await;
    let answer = sending.await.expect("it ends");
    let acknowledged = answer.is_ok_and(|response| code(response.status.as_ref()) == Code::Ok);
    assert!(!acknowledged, "a half on one disk is not acknowledged");

    bed.restart(others).await;
    let client = bed.client().await;
    let transaction = send_half(&client).await;
    let stored = Instant::now();
    let mut producer = Producer::of(&client, "pay").await;
    let check = producer.next_check().await;
    assert_eq!(check.transaction_id, transaction);
    assert!(stored.elapsed() <= RESUMES_WITHIN, "{:?}", stored.elapsed());
    assert_eq!(end(&client, "pay", &transaction, TransactionResolution::Commit).await.0, Code::Ok);
    bed.has_one_outcome(&mut producer, &transaction, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_the_half_committed_the_next_leader_asks_in_time() {
    let mut bed = Bed::start().await;
    let client = bed.client().await;
    let mut producer = Producer::of(&client, "pay").await;
    let transaction = send_half(&client).await;
    let stored = Instant::now();
    bed.kill(vec![bed.leader]).await;
    let check = producer.next_check().await;
    assert_eq!(check.transaction_id, transaction);
    assert!(stored.elapsed() <= RESUMES_WITHIN, "{:?}", stored.elapsed());
    assert_eq!(end(&client, "pay", &transaction, TransactionResolution::Rollback).await.0, Code::Ok);
    assert!(bed.checks(&transaction).await <= 2, "one, and at most one more");
    bed.has_one_outcome(&mut producer, &transaction, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_the_end_received_the_producer_is_asked_and_its_answer_is_the_outcome() {
    let mut bed = Bed::start().await;
    let client = bed.client().await;
    let transaction = send_half(&client).await;
    let to_leader = Client::connect(&bed.cluster.nodes[bed.leader].client_addr()).await;
    let others = bed.others();
    bed.kill(others.clone()).await;
    let before = log_bytes(&bed.cluster, bed.leader).await;
    let ended = transaction.clone();
    let ending =
        tokio::spawn(async move { end(&to_leader, "pay", &ended, TransactionResolution::Commit).await });
    bed.wait_written(before, 1).await;
    bed.kill(vec![bed.leader]).await;
    let acknowledged = matches!(ending.await, Ok((Code::Ok, _)));
    assert!(!acknowledged, "a decision on one disk is not acknowledged");

    bed.restart(others).await;
    let restarted = Instant::now();
    let client = bed.client().await;
    let mut producer = Producer::of(&client, "pay").await;
    let check = producer.next_check().await;
    assert_eq!(check.transaction_id, transaction, "the decision was nowhere else");
    assert!(restarted.elapsed() <= RESUMES_WITHIN, "{:?}", restarted.elapsed());
    assert_eq!(end(&client, "pay", &transaction, TransactionResolution::Rollback).await.0, Code::Ok);
    bed.has_one_outcome(&mut producer, &transaction, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_the_end_committed_nobody_is_asked() {
    let mut bed = Bed::start().await;
    let client = bed.client().await;
    let mut producer = Producer::of(&client, "pay").await;
    let transaction = send_half(&client).await;
    assert_eq!(end(&client, "pay", &transaction, TransactionResolution::Commit).await.0, Code::Ok);
    bed.kill(vec![bed.leader]).await;
    assert_eq!(producer.check_within(RESUMES_WITHIN).await, None, "it is decided");
    bed.has_one_outcome(&mut producer, &transaction, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_the_check_sent_it_is_asked_once_more_in_time() {
    let mut bed = Bed::start().await;
    let client = bed.client().await;
    let mut producer = Producer::of(&client, "pay").await;
    let transaction = send_half(&client).await;
    assert_eq!(producer.next_check().await.transaction_id, transaction);
    let asked = Instant::now();
    bed.kill(vec![bed.leader]).await;
    assert_eq!(producer.next_check().await.transaction_id, transaction);
    assert!(asked.elapsed() <= RESUMES_WITHIN, "{:?}", asked.elapsed());
    assert_eq!(end(&client, "pay", &transaction, TransactionResolution::Commit).await.0, Code::Ok);
    assert!(bed.checks(&transaction).await <= 2, "the one that was sent, and one more");
    bed.has_one_outcome(&mut producer, &transaction, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_the_check_answered_the_answer_is_held_and_counts() {
    let mut bed = Bed::start().await;
    let client = bed.client().await;
    let mut producer = Producer::of(&client, "pay").await;
    let transaction = send_half(&client).await;
    assert_eq!(producer.next_check().await.transaction_id, transaction);
    let (answering, answered) = (client.clone(), transaction.clone());
    let answering =
        tokio::spawn(async move { end(&answering, "pay", &answered, TransactionResolution::Commit).await });
    bed.kill(vec![bed.leader]).await;
    let (answer, text) = answering.await.expect("held and not failed");
    assert_eq!(answer, Code::Ok, "{text}");
    bed.has_one_outcome(&mut producer, &transaction, true).await;
}
