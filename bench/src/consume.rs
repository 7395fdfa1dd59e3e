//! Receives and acknowledges for a while.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use ledgermq_client::{Client, ClientOptions, ConsumerOptions};
use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::latency::{Latency, LatencyRecorder};

/// A receive that finds nothing ends after this, so that a run ends on time.
const AWAIT: Duration = Duration::from_secs(1);
const AFTER_ERROR: Duration = Duration::from_millis(50);

#[derive(Debug, Clone)]
pub struct ConsumeSpec {
    pub endpoint: String,
    pub options: ClientOptions,
    pub topic: String,
    pub group: String,
    /// Each has a connection of its own.
    pub consumers: usize,
    /// Receives in flight of each consumer.
    pub in_flight: usize,
    /// Messages asked for in each receive, and acknowledged in one request.
    pub batch: u32,
    pub warm_up: Duration,
    pub duration: Duration,
}

#[derive(Debug, Clone, Serialize)]
pub struct ConsumeReport {
    /// Received and acknowledged.
    pub messages: u64,
    pub failed_acks: u64,
    pub seconds: f64,
    pub messages_per_second: f64,
    /// Of receives that brought messages.
    pub receive_latency: Latency,
    pub ack_latency: Latency,
}

struct Share {
    receives: LatencyRecorder,
    acks: LatencyRecorder,
}

pub async fn run(
    spec: &ConsumeSpec,
    at_start: impl FnOnce(),
    at_end: impl FnOnce(),
) -> anyhow::Result<ConsumeReport> {
    let counting = Arc::new(AtomicBool::new(false));
    let stop = Arc::new(AtomicBool::new(false));
    let acked = Arc::new(AtomicU64::new(0));
    let failed = Arc::new(AtomicU64::new(0));
    let mut tasks = JoinSet::new();
    let mut consumers = Vec::new();
    for _ in 0..spec.consumers {
        let client = Client::connect(&spec.endpoint, spec.options.clone()).await?;
        let options = ConsumerOptions::new(&spec.group).subscribe(&spec.topic, "*").await_duration(AWAIT);
        let consumer = client.simple_consumer(options);
        for _ in 0..spec.in_flight {
            let consumer = consumer.clone();
            let (counting, stop, batch) = (counting.clone(), stop.clone(), spec.batch);
            let (acked, failed) = (acked.clone(), failed.clone());
            tasks.spawn(async move {
                let mut share = Share { receives: LatencyRecorder::new()?, acks: LatencyRecorder::new()? };
                while !stop.load(Ordering::Relaxed) {
                    let begun = Instant::now();
                    let messages = match consumer.receive(batch).await {
                        Ok(messages) if messages.is_empty() => continue,
                        Ok(messages) => messages,
                        Err(error) => {
                            tracing::warn!(%error, "receive failed");
                            tokio::time::sleep(AFTER_ERROR).await;
                            continue;
                        }
                    };
                    let received = Instant::now();
                    let results = consumer.ack_many(&messages).await;
                    if !counting.load(Ordering::Relaxed) {
                        continue;
                    }
                    share.receives.record(received - begun);
                    share.acks.record(received.elapsed());
                    let good = results.iter().filter(|result| result.is_ok()).count();
                    acked.fetch_add(good as u64, Ordering::Relaxed);
                    failed.fetch_add((results.len() - good) as u64, Ordering::Relaxed);
                }
                anyhow::Ok(share)
            });
        }
        consumers.push(consumer);
    }
    tokio::time::sleep(spec.warm_up).await;
    at_start();
    let begun = Instant::now();
    counting.store(true, Ordering::Relaxed);
    tokio::time::sleep(spec.duration).await;
    counting.store(false, Ordering::Relaxed);
    let seconds = begun.elapsed().as_secs_f64();
    at_end();
    stop.store(true, Ordering::Relaxed);
    let mut receives = LatencyRecorder::new()?;
    let mut acks = LatencyRecorder::new()?;
    while let Some(share) = tasks.join_next().await {
        let share = share.context("a consuming task ended early")??;
        receives.add(&share.receives)?;
        acks.add(&share.acks)?;
    }
    for consumer in consumers {
        consumer.close().await;
    }
    let messages = acked.load(Ordering::Relaxed);
    Ok(ConsumeReport {
        messages,
        failed_acks: failed.load(Ordering::Relaxed),
        seconds,
        messages_per_second: messages as f64 / seconds,
        receive_latency: receives.summary(),
        ack_latency: acks.summary(),
    })
}
