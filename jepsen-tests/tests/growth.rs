//! A topic with order grows from 3 to 8 to 13 queues in each of two broker groups, under load, and the
//! leader that drives the growth is killed in the middle: no key goes backwards, nothing is lost, and
//! nothing is stored twice.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ledgermq_client::{Client, ClientOptions, ConsumerOptions, Message};
use ledgermq_jepsen_tests::bed::Bed;
use parking_lot::Mutex;
use serde_json::Value;

const TOPIC: &str = "steps";
const PRODUCERS: u32 = 3;
const KEYS_PER_PRODUCER: u32 = 4;
const LEADER_WITHIN: Duration = Duration::from_secs(20);
const GROWN_WITHIN: Duration = Duration::from_secs(20);
const SETTLE_WITHIN: Duration = Duration::from_secs(60);
const LEASE: Duration = Duration::from_secs(10);

#[derive(Default)]
struct Load {
    ends: AtomicBool,
    sent: AtomicU64,
    /// How many steps of each key were acknowledged.
    acknowledged: Mutex<BTreeMap<String, u32>>,
    /// The next step of each key to be delivered for the first time.
    delivered: Mutex<BTreeMap<String, u32>>,
    /// The longest a send took.
    slowest_ms: AtomicU64,
}

async fn produce(endpoints: String, producer: u32, load: Arc<Load>) -> Result<()> {
    let options = ClientOptions { total_deadline: Duration::from_secs(30), ..ClientOptions::default() };
    let client = Client::connect(&endpoints, options).await?;
    let sender = client.producer();
    let mut number = 0u32;
    while !load.ends.load(Ordering::SeqCst) {
        for key in 0..KEYS_PER_PRODUCER {
            let key = format!("key-{producer}-{key}");
            let step = Message::new(TOPIC, format!("{key}|{number}")).message_group(key.clone());
            let began = Instant::now();
            sender.send(step).await.with_context(|| format!("{key}|{number}"))?;
            let took = u64::try_from(began.elapsed().as_millis())?;
            load.slowest_ms.fetch_max(took, Ordering::SeqCst);
            load.sent.fetch_add(1, Ordering::SeqCst);
            load.acknowledged.lock().insert(key, number + 1);
        }
        number += 1;
    }
    Ok(())
}

/// Receives until everything that was acknowledged is consumed.
async fn consume(endpoints: String, load: Arc<Load>) -> Result<()> {
    let client = Client::connect(&endpoints, ClientOptions::default()).await?;
    let consumer = client.simple_consumer(
        ConsumerOptions::new("workers")
            .subscribe(TOPIC, "*")
            .await_duration(Duration::from_millis(300))
            .invisible_duration(LEASE),
    );
    loop {
        let ended = load.ends.load(Ordering::SeqCst);
        if ended && *load.delivered.lock() == *load.acknowledged.lock() {
            return Ok(());
        }
        for message in consumer.receive(16).await? {
            let body = String::from_utf8(message.body.to_vec())?;
            let (key, number) = body.split_once('|').context("our own body")?;
            let number: u32 = number.parse()?;
            {
                let mut delivered = load.delivered.lock();
                let next = delivered.entry(key.to_owned()).or_default();
                // A step whose acknowledgement was lost comes again; a new one is the next one.
                ensure!(number <= *next, "{body} is delivered where {next} was to come");
                ensure!(number == *next || message.delivery_attempt > 1, "{body} was stored twice");
                *next = (*next).max(number + 1);
            }
            consumer.ack(&message).await?;
        }
    }
}

fn shown(bed: &Bed) -> Result<Value> {
    bed.admin(&["topic", "show", TOPIC])
}

/// Repeats the wish until it is granted: a call that meets the death of a leader may be told to wait.
fn grow(bed: &Bed, queues: &str, generation: u64) -> Result<()> {
    let deadline = Instant::now() + GROWN_WITHIN;
    loop {
        match bed.admin(&["topic", "update", TOPIC, "--queues", queues]) {
            Ok(grown) if grown["topic"]["generation"] == generation => return Ok(()),
            Ok(other) => ensure!(Instant::now() < deadline, "{queues} queues: {other}"),
            Err(error) => ensure!(Instant::now() < deadline, "{queues} queues: {error}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_with_order_grows_under_load_while_its_driver_is_killed() -> Result<()> {
    let mut bed = Bed::make(|plan| plan.groups = 2).await?;
    bed.admin(&["topic", "create", TOPIC, "--type", "fifo", "--queues", "3"])?;
    bed.admin(&["group", "set", "workers", "--fifo", "true"])?;
    let refused = |queues: &str| bed.admin(&["topic", "update", TOPIC, "--queues", queues]).is_err();
    ensure!(refused("0") && refused("1000000000") && refused("2"), "a wish that cannot be granted");

    let load = Arc::new(Load::default());
    let endpoints = bed.cluster.broker_access_points();
    let mut clients = tokio::task::JoinSet::new();
    for producer in 0..PRODUCERS {
        // One reaches the brokers through a nameserver, which knows of the growth by hearsay.
        let endpoints =
            if producer == 0 { bed.cluster.nameserver_access_points() } else { endpoints.clone() };
        clients.spawn(produce(endpoints, producer, Arc::clone(&load)));
    }
    for _ in 0..2 {
        clients.spawn(consume(endpoints.clone(), Arc::clone(&load)));
    }
    let sent_more = async |than: u64| -> Result<()> {
        let until = load.sent.load(Ordering::SeqCst) + than;
        let deadline = Instant::now() + LEADER_WITHIN;
        while load.sent.load(Ordering::SeqCst) < until {
            ensure!(Instant::now() < deadline, "the sends stand still");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    };
    sent_more(40).await?;
    grow(&bed, "8", 1)?;
    sent_more(40).await?;

    // The home is the first broker group; its leader dies while it drives.
    let home = bed.cluster.wait_leader(1, LEADER_WITHIN).await?;
    let wish = std::process::Command::new(ledgermq_jepsen_tests::bed::binary()?)
        .args(["admin", "--endpoint", &endpoints, "topic", "update", TOPIC, "--queues", "13"])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()?;
    let mut wish = wish;
    tokio::time::sleep(Duration::from_millis(60)).await;
    bed.cluster.kill(home)?;
    wish.wait()?;
    grow(&bed, "13", 2)?;
    sent_more(40).await?;
    bed.cluster.restart(home)?;

    load.ends.store(true, Ordering::SeqCst);
    let settle = tokio::time::timeout(SETTLE_WITHIN, async {
        while let Some(ended) = clients.join_next().await {
            ended??;
        }
        anyhow::Ok(())
    });
    match settle.await {
        Ok(ended) => ended?,
        Err(_) => {
            let (sent, got) = (load.acknowledged.lock().clone(), load.delivered.lock().clone());
            anyhow::bail!("not everything is consumed: {sent:?} {got:?} {}", shown(&bed)?);
        }
    }
    let deadline = Instant::now() + SETTLE_WITHIN;
    let shown = loop {
        let shown = shown(&bed)?;
        if shown["draining"] == Value::Array(Vec::new()) {
            break shown;
        }
        ensure!(Instant::now() < deadline, "a generation never drained: {shown}");
    };
    let stored: u64 = shown["queues"]
        .as_array()
        .context("queues")?
        .iter()
        .filter_map(|queue| queue["max_offset"].as_u64())
        .sum();
    let sent = load.acknowledged.lock().values().map(|steps| u64::from(*steps)).sum::<u64>();
    ensure!(stored == sent, "{sent} sends were acknowledged and {stored} messages are stored");
    ensure!(shown["topic"]["queues"] == 13 && shown["topic"]["generation"] == 2, "{shown}");
    println!(
        "growth: {sent} messages of {} keys, the slowest send took {} ms",
        load.acknowledged.lock().len(),
        load.slowest_ms.load(Ordering::SeqCst)
    );
    bed.passed().await
}
