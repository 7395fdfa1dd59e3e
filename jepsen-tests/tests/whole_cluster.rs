//! What happens to all processes at once or one after the other: all brokers killed, a rolling
//! restart under load, all nameservers gone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ledgermq::cluster::Member;
use ledgermq_client::{Client, ClientOptions, ConsumerOptions, Message};
use ledgermq_jepsen_tests::bed::Bed;
use ledgermq_jepsen_tests::history::{Distribution, gaps_ms, judge};
use ledgermq_jepsen_tests::python::interpreter;
use ledgermq_jepsen_tests::recorded::{LoadPlan, RecordedProcess};
use parking_lot::Mutex;

const RECOVER_WITHIN: Duration = Duration::from_secs(30);
const RECEIVE_WITHIN: Duration = Duration::from_secs(90);

/// Producers of our own client that go on until told to stop; what was acknowledged, by body.
struct Senders {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<Mutex<BTreeMap<String, String>>>,
    failed: Arc<Mutex<Vec<String>>>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Senders {
    async fn start(access_points: &str, topic: &str, count: usize) -> Result<Self> {
        let options = ClientOptions { total_deadline: Duration::from_secs(30), ..ClientOptions::default() };
        let client = Client::connect(access_points, options).await?;
        let mut senders = Self {
            stop: Arc::default(),
            acknowledged: Arc::default(),
            failed: Arc::default(),
            tasks: Vec::new(),
        };
        for index in 0..count {
            let producer = client.producer();
            let topic = topic.to_owned();
            let (stop, acknowledged, failed) =
                (Arc::clone(&senders.stop), Arc::clone(&senders.acknowledged), Arc::clone(&senders.failed));
            senders.tasks.push(tokio::spawn(async move {
                let mut sequence = 0u64;
                while !stop.load(Ordering::Relaxed) {
                    let body = format!("{index}-{sequence}");
                    sequence += 1;
                    match producer.send(Message::new(&topic, body.clone())).await {
                        Ok(receipt) => {
                            acknowledged.lock().insert(body, receipt.message_id);
                        }
                        Err(error) => failed.lock().push(format!("{body}: {error}")),
                    }
                }
                producer.close().await;
            }));
        }
        Ok(senders)
    }

    async fn wait_acks(&self, more: usize) -> Result<()> {
        let goal = self.acknowledged.lock().len() + more;
        tokio::time::timeout(RECOVER_WITHIN, async {
            while self.acknowledged.lock().len() < goal {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
        .with_context(|| format!("{more} acknowledged sends did not come; failed: {:?}", self.failed.lock()))
    }

    async fn stop(self) -> Result<(BTreeMap<String, String>, Vec<String>)> {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await?;
        }
        let acknowledged = self.acknowledged.lock().clone();
        let failed = self.failed.lock().clone();
        Ok((acknowledged, failed))
    }
}

/// Receives everything of the topic until all that is expected came and nothing more does, or for
/// longer than a lease; bodies with how often they were a first attempt.
async fn receive_all(
    access_points: &str,
    topic: &str,
    expected: &BTreeSet<String>,
) -> Result<BTreeMap<String, u32>> {
    let client = Client::connect(access_points, ClientOptions::default()).await?;
    let consumer = client.simple_consumer(
        ConsumerOptions::new(format!("{topic}-reader"))
            .subscribe(topic, "*")
            .await_duration(Duration::from_secs(2)),
    );
    let mut received: BTreeMap<String, u32> = BTreeMap::new();
    let deadline = tokio::time::Instant::now() + RECEIVE_WITHIN;
    let mut empty = 0;
    while empty < 2 && tokio::time::Instant::now() < deadline {
        let messages = consumer.receive(32).await?;
        if messages.is_empty() && expected.iter().all(|body| received.contains_key(body)) {
            empty += 1;
        }
        for outcome in consumer.ack_many(&messages).await {
            outcome?;
        }
        for message in messages {
            let body = String::from_utf8(message.body.to_vec())?;
            *received.entry(body).or_default() += u32::from(message.delivery_attempt == 1);
        }
    }
    consumer.close().await;
    Ok(received)
}

fn check(acknowledged: &BTreeMap<String, String>, received: &BTreeMap<String, u32>) -> Result<()> {
    let lost: Vec<_> = acknowledged.keys().filter(|body| !received.contains_key(*body)).collect();
    let twice: Vec<_> = received.iter().filter(|(_, times)| **times > 1).collect();
    ensure!(
        lost.is_empty(),
        "{} of {} acknowledged messages are lost: {lost:?}",
        lost.len(),
        acknowledged.len()
    );
    ensure!(twice.is_empty(), "stored twice: {twice:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_brokers_killed_at_once_keep_everything_acknowledged() -> Result<()> {
    let mut bed = Bed::make(|plan| plan.groups = 2).await?;
    let brokers: Vec<Member> = bed.cluster.brokers().collect();
    let access_points = bed.cluster.broker_access_points();
    let senders = Senders::start(&access_points, "outage", 8).await?;
    for _ in 0..3 {
        senders.wait_acks(500).await?;
        for broker in &brokers {
            bed.cluster.kill(*broker)?;
        }
        for broker in &brokers {
            bed.cluster.restart(*broker)?;
        }
        senders.wait_acks(100).await?;
    }
    let (acknowledged, failed) = senders.stop().await?;
    let expected = acknowledged.keys().cloned().collect();
    let received = receive_all(&access_points, "outage", &expected).await?;
    println!(
        "three outages: {} acknowledged, {} received, failed {failed:?}",
        acknowledged.len(),
        received.len()
    );
    check(&acknowledged, &received)?;
    ensure!(failed.is_empty(), "sends failed although the brokers came back: {failed:?}");
    bed.passed().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_under_load_fails_no_send() -> Result<()> {
    let mut bed = Bed::make(|_| {}).await?;
    let Some(interpreter) = interpreter()? else {
        eprintln!("left out: this machine has no python3");
        return bed.passed().await;
    };
    let mut load = RecordedProcess::python_load(
        &interpreter,
        &LoadPlan {
            endpoints: bed.cluster.broker_access_points(),
            topic: "rolling".to_owned(),
            consumer_group: "rolling-consumers".to_owned(),
            producers: 4,
            pause_ms: 4,
            consumer: "push",
            stderr: bed.cluster.dir().join("python-rolling.stderr"),
        },
    )?;
    let brokers: Vec<Member> = bed.cluster.brokers().collect();
    let mut restarted_at = Vec::new();
    for broker in brokers {
        load.wait_acks(300, RECOVER_WITHIN)?;
        restarted_at.push(ledgermq_jepsen_tests::history::monotonic_s());
        let status = bed.cluster.terminate(broker, Duration::from_secs(10)).await?;
        ensure!(status.success(), "{broker} ended with {status} after SIGTERM");
        bed.cluster.restart(broker)?;
        bed.cluster.wait_member_ready(broker, RECOVER_WITHIN).await?;
    }
    load.wait_acks(300, RECOVER_WITHIN)?;
    load.drain(Duration::from_secs(100))?;
    let events = load.finish()?;
    let verdict = judge(&events);
    let gaps = gaps_ms(&events, &restarted_at);
    println!("rolling restart: {verdict:?}; gaps {:?}", Distribution::of(&gaps));
    ensure!(verdict.is_clean(), "{verdict:?}");
    bed.passed().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_nameservers_running_clients_go_on_through_a_leader_change() -> Result<()> {
    let mut bed = Bed::make(|_| {}).await?;
    let access_points = bed.cluster.broker_access_points();
    let senders = Senders::start(&access_points, "nameless", 4).await?;
    senders.wait_acks(200).await?;
    bed.cluster.kill(Member::Nameserver(1))?;
    senders.wait_acks(200).await?;
    let leader = bed.cluster.wait_leader(1, RECOVER_WITHIN).await?;
    bed.cluster.kill(leader)?;
    senders.wait_acks(200).await?;
    let (acknowledged, failed) = senders.stop().await?;
    let expected = acknowledged.keys().cloned().collect();
    let received = receive_all(&access_points, "nameless", &expected).await?;
    check(&acknowledged, &received)?;
    ensure!(failed.is_empty(), "failed sends: {failed:?}");
    bed.passed().await
}
