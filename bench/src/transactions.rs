//! Sends messages or transactions for a while and counts every one of them, so that what the log grew by can
//! be divided by them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use ledgermq_client::{Client, ClientOptions, Message, Outcome, ReceivedHalf};
use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::latency::{Latency, LatencyRecorder};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// One send.
    Message,
    /// A half message and its commit.
    Transaction,
}

#[derive(Debug, Clone)]
pub struct TransactionsSpec {
    pub endpoint: String,
    pub options: ClientOptions,
    pub topic: String,
    pub unit: Unit,
    pub message_size_bytes: usize,
    /// Each has a connection of its own.
    pub producers: usize,
    /// Units in flight of each producer.
    pub in_flight: usize,
    pub duration: Duration,
}

#[derive(Debug, Clone, Serialize)]
pub struct TransactionsReport {
    pub unit: Unit,
    pub units: u64,
    pub seconds: f64,
    pub per_second: f64,
    /// Of a whole unit.
    pub latency: Latency,
    /// Of the commit alone; of messages nothing.
    pub commit_latency: Option<Latency>,
}

/// An error ends the run: what failed is in the log or not, and nobody could divide by it.
pub async fn run(spec: &TransactionsSpec) -> anyhow::Result<TransactionsReport> {
    let stop = Arc::new(AtomicBool::new(false));
    let body = Bytes::from(vec![b'.'; spec.message_size_bytes]);
    let mut tasks = JoinSet::new();
    let mut clients = Vec::new();
    for _ in 0..spec.producers {
        let client = Client::connect(&spec.endpoint, spec.options.clone()).await?;
        clients.push((client.producer(), client.transactional_producer([&spec.topic], commit_all)));
    }
    let begun = Instant::now();
    for (producer, transactional) in &clients {
        for _ in 0..spec.in_flight {
            let (producer, transactional, stop) = (producer.clone(), transactional.clone(), stop.clone());
            let (unit, message) = (spec.unit, Message::new(&spec.topic, body.clone()));
            tasks.spawn(async move {
                let (mut whole, mut commits) = (LatencyRecorder::new()?, LatencyRecorder::new()?);
                while !stop.load(Ordering::Relaxed) {
                    let begun = Instant::now();
                    match unit {
                        Unit::Message => drop(producer.send(message.clone()).await?),
                        Unit::Transaction => {
                            let transaction = transactional.send(message.clone()).await?;
                            let halved = Instant::now();
                            transaction.commit().await?;
                            commits.record(halved.elapsed());
                        }
                    }
                    whole.record(begun.elapsed());
                }
                anyhow::Ok((whole, commits))
            });
        }
    }
    tokio::time::sleep(spec.duration).await;
    stop.store(true, Ordering::Relaxed);
    let (mut whole, mut commits) = (LatencyRecorder::new()?, LatencyRecorder::new()?);
    while let Some(share) = tasks.join_next().await {
        let share = share.context("a sending task ended early")??;
        whole.add(&share.0)?;
        commits.add(&share.1)?;
    }
    let seconds = begun.elapsed().as_secs_f64();
    for (producer, transactional) in clients {
        producer.close().await;
        transactional.close().await;
    }
    Ok(TransactionsReport {
        unit: spec.unit,
        units: whole.count(),
        seconds,
        per_second: whole.count() as f64 / seconds,
        latency: whole.summary(),
        commit_latency: (commits.count() > 0).then(|| commits.summary()),
    })
}

/// Nobody is asked in a run that leaves nothing open; should one be, it is to be committed.
fn commit_all(_: &ReceivedHalf) -> Outcome {
    Outcome::Commit
}
