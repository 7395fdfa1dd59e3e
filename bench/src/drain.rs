//! Receives and acknowledges a backlog until a given number of messages is gone, alone on the cluster; by a
//! filter, or in order with the order checked. [`fill`] makes the backlog.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use ledgermq_client::{Client, ClientOptions, ConsumerOptions, Filter, Message, ReceivedMessage};
use serde::Serialize;
use tokio::sync::Mutex;
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;

use crate::in_order::place;
use crate::latency::{Latency, LatencyRecorder};

/// A receive that finds nothing ends after this, so that a run ends on time.
const AWAIT: Duration = Duration::from_secs(1);
const FILL_BATCH: u64 = 64;
const FILL_REQUESTS_IN_FLIGHT: usize = 8;
/// One of so many messages of a backlog has `bucket = 0`.
pub const BUCKETS: u64 = 100;

#[derive(Debug, Clone)]
pub struct DrainSpec {
    pub endpoint: String,
    pub options: ClientOptions,
    pub topic: String,
    /// One that never read the topic.
    pub group: String,
    pub filter: Filter,
    /// Messages that the filter lets through.
    pub messages: u64,
    /// Each has a connection of its own.
    pub consumers: usize,
    /// Receives in flight of each consumer.
    pub in_flight: usize,
    /// Messages asked for in each receive, and acknowledged in one request.
    pub batch: u32,
    /// Bodies are those of [`in_order`](crate::in_order), and their order is checked.
    pub in_order: bool,
    pub within: Duration,
}

#[derive(Debug, Clone, Serialize)]
pub struct DrainReport {
    /// Received and acknowledged.
    pub messages: u64,
    /// Until the last acknowledgement.
    pub seconds: f64,
    pub messages_per_second: f64,
    /// What they may have brought comes again when its lease ends.
    pub failed_receives: u64,
    /// Of receives that brought messages.
    pub receive_latency: Latency,
    pub ack_latency: Latency,
}

/// What the receiving tasks share.
struct Progress {
    expected: u64,
    acked: AtomicU64,
    failed_receives: AtomicU64,
    all: AtomicBool,
    ended: tokio::sync::Notify,
    next_of_group: Option<Mutex<HashMap<u64, u64>>>,
}

impl Progress {
    async fn check_order(&self, messages: &[ReceivedMessage]) -> anyhow::Result<()> {
        let Some(next_of_group) = &self.next_of_group else { return Ok(()) };
        let mut next_of_group = next_of_group.lock().await;
        for message in messages {
            let (group, number) = place(&message.body).context("not a body of this run")?;
            let next = next_of_group.entry(group).or_default();
            if number != *next && message.delivery_attempt == 1 {
                bail!("message group {group}: number {number} came where {next} was expected");
            }
            *next = number + 1;
        }
        Ok(())
    }

    fn acked(&self, messages: u64) {
        if self.acked.fetch_add(messages, Ordering::Relaxed) + messages >= self.expected {
            self.all.store(true, Ordering::Relaxed);
            self.ended.notify_one();
        }
    }
}

pub async fn run(spec: &DrainSpec) -> anyhow::Result<DrainReport> {
    ensure!(spec.messages > 0, "there is nothing to receive");
    let progress = Arc::new(Progress {
        expected: spec.messages,
        acked: AtomicU64::new(0),
        failed_receives: AtomicU64::new(0),
        all: AtomicBool::new(false),
        ended: tokio::sync::Notify::new(),
        next_of_group: spec.in_order.then(Mutex::default),
    });
    let mut consumers = Vec::new();
    for _ in 0..spec.consumers {
        let client = Client::connect(&spec.endpoint, spec.options.clone()).await?;
        let mut options = ConsumerOptions::new(&spec.group).await_duration(AWAIT);
        options.subscriptions.push((spec.topic.clone(), spec.filter.clone()));
        consumers.push(client.simple_consumer(options));
    }
    let begun = Instant::now();
    let mut tasks = JoinSet::new();
    for consumer in consumers.iter().flat_map(|consumer| std::iter::repeat_n(consumer, spec.in_flight)) {
        let (consumer, progress, batch) = (consumer.clone(), Arc::clone(&progress), spec.batch);
        tasks.spawn(async move {
            let (mut receives, mut acks) = (LatencyRecorder::new()?, LatencyRecorder::new()?);
            while !progress.all.load(Ordering::Relaxed) {
                let begun = Instant::now();
                let messages = match consumer.receive(batch).await {
                    Ok(messages) if messages.is_empty() => continue,
                    Ok(messages) => messages,
                    Err(error) => {
                        tracing::warn!(%error, "receive failed");
                        progress.failed_receives.fetch_add(1, Ordering::Relaxed);
                        continue;
                    }
                };
                let received = Instant::now();
                progress.check_order(&messages).await?;
                for acknowledged in consumer.ack_many(&messages).await {
                    acknowledged?;
                }
                receives.record(received - begun);
                acks.record(received.elapsed());
                progress.acked(messages.len() as u64);
            }
            anyhow::Ok((receives, acks))
        });
    }
    let (mut receives, mut acks) = (LatencyRecorder::new()?, LatencyRecorder::new()?);
    let mut add = |share: Result<anyhow::Result<(LatencyRecorder, LatencyRecorder)>, JoinError>| {
        let share = share.context("a consuming task ended early")??;
        receives.add(&share.0)?;
        acks.add(&share.1)
    };
    loop {
        tokio::select! {
            () = progress.ended.notified() => break,
            Some(share) = tasks.join_next() => add(share)?,
            () = tokio::time::sleep_until(begun + spec.within) => {
                let acked = progress.acked.load(Ordering::Relaxed);
                bail!("{acked} of {} messages within {} s", spec.messages, spec.within.as_secs());
            }
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    while let Some(share) = tasks.join_next().await {
        add(share)?;
    }
    for consumer in consumers {
        consumer.close().await;
    }
    let messages = progress.acked.load(Ordering::Relaxed);
    ensure!(messages == spec.messages, "{messages} messages came where {} were expected", spec.messages);
    Ok(DrainReport {
        messages,
        seconds,
        messages_per_second: messages as f64 / seconds,
        failed_receives: progress.failed_receives.load(Ordering::Relaxed),
        receive_latency: receives.summary(),
        ack_latency: acks.summary(),
    })
}

#[derive(Debug, Clone)]
pub struct BacklogSpec {
    pub endpoint: String,
    pub options: ClientOptions,
    pub topic: String,
    pub messages: u64,
    pub message_size_bytes: usize,
}

/// Stores messages with a tag and eight properties, as many as filters are measured with.
pub async fn fill(spec: &BacklogSpec) -> anyhow::Result<()> {
    let producer = Client::connect(&spec.endpoint, spec.options.clone()).await?.producer();
    let body = Bytes::from(vec![b'.'; spec.message_size_bytes]);
    let mut requests = JoinSet::new();
    for from in (0..spec.messages).step_by(FILL_BATCH as usize) {
        if requests.len() >= FILL_REQUESTS_IN_FLIGHT {
            requests.join_next().await.context("a request is in flight")???;
        }
        let numbers = from..spec.messages.min(from + FILL_BATCH);
        let messages = numbers.map(|number| message(&spec.topic, number, body.clone())).collect();
        let producer = producer.clone();
        requests.spawn(async move { producer.send_many(messages).await.map(drop) });
    }
    while let Some(sent) = requests.join_next().await {
        sent??;
    }
    producer.close().await;
    Ok(())
}

fn message(topic: &str, number: u64, body: Bytes) -> Message {
    Message::new(topic, body)
        .tag(format!("tag-{}", number % 4))
        .property("region", ["eu", "us", "ap"][number as usize % 3])
        .property("amount", (number % 500).to_string())
        .property("price", format!("{}.25", number % 40))
        .property("kind", ["order", "refund"][number as usize % 2])
        .property("bucket", (number % BUCKETS).to_string())
        .property("customer", format!("customer-{}", number % 1000))
        .property("urgent", "FALSE")
        .property("channel", "web")
}
