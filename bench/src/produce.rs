//! Sends for a while, with a fixed number in flight.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use ledgermq_client::{Client, ClientOptions, Message};
use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::latency::{Latency, LatencyRecorder};

#[derive(Debug, Clone)]
pub struct ProduceSpec {
    pub endpoint: String,
    pub options: ClientOptions,
    pub topic: String,
    pub message_size_bytes: usize,
    /// Requests in flight of each producer.
    pub in_flight: usize,
    /// Each has a connection of its own.
    pub producers: usize,
    /// Messages in each request.
    pub batch: usize,
    /// Not counted; also when auto-creation and connection set-up happen.
    pub warm_up: Duration,
    pub duration: Duration,
}

#[derive(Debug, Clone, Serialize)]
pub struct ProduceReport {
    pub messages: u64,
    pub failed: u64,
    pub seconds: f64,
    pub messages_per_second: f64,
    pub payload_bytes_per_second: f64,
    /// Of requests: with batches, of a batch.
    pub latency: Latency,
}

/// One task's share of the measurement.
struct Share {
    latencies: LatencyRecorder,
    failed: u64,
}

/// `at_start` runs when the warm-up ends and `at_end` when the counted time does, for example to
/// sample what the servers used.
pub async fn run(
    spec: &ProduceSpec,
    at_start: impl FnOnce(),
    at_end: impl FnOnce(),
) -> anyhow::Result<ProduceReport> {
    let counting = Arc::new(AtomicBool::new(false));
    let stop = Arc::new(AtomicBool::new(false));
    let body = Bytes::from(vec![b'.'; spec.message_size_bytes]);
    let mut tasks = JoinSet::new();
    let mut producers = Vec::new();
    for _ in 0..spec.producers {
        // Producers of one client share its connection; each is to have one of its own.
        let client = Client::connect(&spec.endpoint, spec.options.clone()).await?;
        let producer = client.producer();
        for _ in 0..spec.in_flight {
            let producer = producer.clone();
            let message = Message::new(&spec.topic, body.clone());
            let (counting, stop, batch) = (counting.clone(), stop.clone(), spec.batch);
            tasks.spawn(async move {
                let mut share = Share { latencies: LatencyRecorder::new()?, failed: 0 };
                while !stop.load(Ordering::Relaxed) {
                    let counted = counting.load(Ordering::Relaxed);
                    let begun = Instant::now();
                    let outcome = match batch {
                        1 => producer.send(message.clone()).await.map(|_| ()),
                        _ => producer.send_many(vec![message.clone(); batch]).await.map(|_| ()),
                    };
                    // A request that straddles the end of the counted time is left out.
                    if !counted || !counting.load(Ordering::Relaxed) {
                        continue;
                    }
                    match outcome {
                        Ok(()) => share.latencies.record(begun.elapsed()),
                        Err(error) => {
                            tracing::warn!(%error, "send failed");
                            share.failed += 1;
                        }
                    }
                }
                anyhow::Ok(share)
            });
        }
        producers.push(producer);
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
    let mut latencies = LatencyRecorder::new()?;
    let mut failed = 0;
    while let Some(share) = tasks.join_next().await {
        let share = share.context("a producing task ended early")??;
        latencies.add(&share.latencies)?;
        failed += share.failed;
    }
    for producer in producers {
        producer.close().await;
    }
    let messages = latencies.count() * spec.batch as u64;
    let messages_per_second = messages as f64 / seconds;
    Ok(ProduceReport {
        messages,
        failed: failed * spec.batch as u64,
        seconds,
        messages_per_second,
        payload_bytes_per_second: messages_per_second * spec.message_size_bytes as f64,
        latency: latencies.summary(),
    })
}
