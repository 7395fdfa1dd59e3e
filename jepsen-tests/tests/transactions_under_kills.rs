//! Many transactions while leaders are killed and producers vanish between half and end: what is
//! consumed is exactly what was to be committed, once each.
//!
//! `LEDGERMQ_TRANSACTIONS` and `LEDGERMQ_KILLS` set how many; every tenth transaction is left open, and
//! every fiftieth takes its producer with it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ledgermq_client::{Client, ClientOptions, ConsumerOptions, Message, Outcome, ReceivedHalf};
use ledgermq_jepsen_tests::bed::{Bed, binary};
use parking_lot::Mutex;

const TRANSACTIONS_DEFAULT: u64 = 600;
const KILLS_DEFAULT: u64 = 3;
const SENDERS: u64 = 6;
const TOPIC: &str = "pay";
const LEADER_WITHIN: Duration = Duration::from_secs(20);
const SETTLE_WITHIN: Duration = Duration::from_secs(90);

fn count(variable: &str, default: u64) -> Result<u64> {
    match std::env::var(variable) {
        Ok(text) => text.parse().with_context(|| format!("{variable}={text} is not a number")),
        Err(_) => Ok(default),
    }
}

/// The outcome of a transaction follows from its name, so that whoever is asked gives the same one.
fn is_to_commit(name: &str) -> bool {
    name.bytes().fold(7u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(u32::from(byte))) % 3 != 0
}

fn decide(half: &ReceivedHalf) -> Outcome {
    match std::str::from_utf8(&half.body) {
        Ok(name) if is_to_commit(name) => Outcome::Commit,
        Ok(_) => Outcome::Rollback,
        Err(_) => Outcome::Unknown,
    }
}

fn admin(bed: &Bed, arguments: &[&str]) -> Result<serde_json::Value> {
    let output = std::process::Command::new(binary()?)
        .args(["admin", "--json", "--endpoint", &bed.cluster.broker_access_points()])
        .args(arguments)
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "admin {arguments:?} ended with {}: {said}", output.status);
    Ok(serde_json::from_slice(&output.stdout)?)
}

#[derive(Default)]
struct Sent {
    /// Halves whose storing was acknowledged.
    stored: Mutex<BTreeSet<String>>,
    errors: Mutex<Vec<String>>,
    done: AtomicU64,
}

/// Sends its share of the transactions, one after the other.
async fn send(endpoints: String, sender: u64, transactions: u64, sent: Arc<Sent>) -> Result<()> {
    let options = ClientOptions { total_deadline: Duration::from_secs(30), ..ClientOptions::default() };
    let client = Client::connect(&endpoints, options).await?;
    let mut producer = client.transactional_producer([TOPIC], decide);
    for number in (sender..transactions).step_by(SENDERS as usize) {
        let name = format!("t-{number}");
        let transaction = producer.send(Message::new(TOPIC, name.clone())).await?;
        sent.stored.lock().insert(name.clone());
        if number % 50 == 49 {
            // As a process that dies: no word to anybody.
            drop(producer);
            producer = client.transactional_producer([TOPIC], decide);
        } else if number % 10 != 9 {
            let ended =
                if is_to_commit(&name) { transaction.commit().await } else { transaction.rollback().await };
            if let Err(error) = ended {
                sent.errors.lock().push(format!("{name}: {error}"));
            }
        }
        sent.done.fetch_add(1, Ordering::Relaxed);
    }
    // It stays, to answer for what it and the others left open.
    tokio::time::sleep(SETTLE_WITHIN).await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_consumed_is_what_was_to_be_committed() -> Result<()> {
    let transactions = count("LEDGERMQ_TRANSACTIONS", TRANSACTIONS_DEFAULT)?;
    let kills = count("LEDGERMQ_KILLS", KILLS_DEFAULT)?;
    let mut bed = Bed::make(|plan| {
        plan.broker_settings =
            vec!["transactions.timeout_ms=1000".to_owned(), "transactions.check_interval_ms=1500".to_owned()];
    })
    .await?;
    admin(&bed, &["topic", "create", TOPIC, "--type", "transaction", "--queues", "4"])?;
    let endpoints = bed.cluster.broker_access_points();
    let sent = Arc::new(Sent::default());
    let mut senders = tokio::task::JoinSet::new();
    for sender in 0..SENDERS {
        senders.spawn(send(endpoints.clone(), sender, transactions, Arc::clone(&sent)));
    }
    for kill in 1..=kills {
        let until = transactions * kill / (kills + 1);
        while sent.done.load(Ordering::Relaxed) < until {
            if let Some(ended) = senders.try_join_next() {
                ended??;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let leader = bed.cluster.wait_leader(1, LEADER_WITHIN).await?;
        bed.cluster.kill(leader)?;
        bed.cluster.restart(leader)?;
        bed.cluster.wait_member_ready(leader, LEADER_WITHIN).await?;
    }
    let deadline = Instant::now() + SETTLE_WITHIN;
    while sent.done.load(Ordering::Relaxed) < transactions {
        ensure!(Instant::now() < deadline, "the senders do not end");
        if let Some(ended) = senders.try_join_next() {
            ended??;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    loop {
        let open = admin(&bed, &["transaction", "list", "--max", "1000"])?["transactions"].clone();
        if open == serde_json::json!([]) {
            break;
        }
        ensure!(Instant::now() < deadline, "left open: {open}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }

    let client = Client::connect(&endpoints, ClientOptions::default()).await?;
    let consumer = client.simple_consumer(
        ConsumerOptions::new("readers").subscribe(TOPIC, "*").await_duration(Duration::from_secs(2)),
    );
    let mut received: BTreeMap<String, u32> = BTreeMap::new();
    loop {
        let messages = consumer.receive(32).await?;
        if messages.is_empty() {
            break;
        }
        for message in messages {
            consumer.ack(&message).await?;
            *received.entry(String::from_utf8(message.body.to_vec())?).or_default() += 1;
        }
    }
    let stored = sent.stored.lock().clone();
    let expected: BTreeSet<&String> = stored.iter().filter(|name| is_to_commit(name)).collect();
    let twice: Vec<_> = received.iter().filter(|(_, times)| **times > 1).collect();
    let lost: Vec<_> = expected.iter().filter(|name| !received.contains_key(**name)).collect();
    let wrong: Vec<_> = received.keys().filter(|name| !expected.contains(name)).collect();
    println!(
        "{transactions} transactions, {kills} leader kills, {} producers gone: {} to commit, {} consumed",
        transactions / 50,
        expected.len(),
        received.len()
    );
    assert!(twice.is_empty(), "consumed twice: {twice:?}");
    assert!(lost.is_empty(), "committed and never consumed: {lost:?}");
    assert!(wrong.is_empty(), "rolled back or never sent, and consumed: {wrong:?}");
    let errors = sent.errors.lock().clone();
    assert!(errors.is_empty(), "decisions that failed: {errors:?}");
    senders.abort_all();
    bed.passed().await
}
