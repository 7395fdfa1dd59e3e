//! Sends to many message groups, each in its order: one message of a group is in flight at a time.
//!
//! | Offset in a body | Bytes | Field |
//! |---|---|---|
//! | 0 | 8 | message group |
//! | 8 | 8 | number in the group, from 0 |
//!
//! Little endian; the rest is filling. [`drain`](crate::drain) checks the order by it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use bytes::{BufMut as _, Bytes, BytesMut};
use ledgermq_client::{Client, ClientOptions, Message};
use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::latency::{Latency, LatencyRecorder};

const PLACE_BYTES: usize = 16;

#[derive(Debug, Clone)]
pub struct InOrderSpec {
    pub endpoint: String,
    pub options: ClientOptions,
    pub topic: String,
    pub message_groups: u64,
    pub message_size_bytes: usize,
    /// Each has a connection of its own.
    pub producers: usize,
    /// Messages in flight of each producer, each of another group.
    pub in_flight: usize,
    pub duration: Duration,
}

#[derive(Debug, Clone, Serialize)]
pub struct InOrderReport {
    pub messages: u64,
    pub message_groups: u64,
    pub seconds: f64,
    pub messages_per_second: f64,
    pub latency: Latency,
}

pub async fn run(spec: &InOrderSpec) -> anyhow::Result<InOrderReport> {
    let senders = (spec.producers * spec.in_flight) as u64;
    ensure!(senders <= spec.message_groups, "{senders} in flight need as many message groups");
    let stop = Arc::new(AtomicBool::new(false));
    let mut clients = Vec::new();
    for _ in 0..spec.producers {
        clients.push(Client::connect(&spec.endpoint, spec.options.clone()).await?.producer());
    }
    let mut tasks = JoinSet::new();
    let begun = Instant::now();
    for sender in 0..senders {
        let producer = clients.get(sender as usize % spec.producers).context("a client for each")?.clone();
        let (spec, stop) = (spec.clone(), stop.clone());
        tasks.spawn(async move {
            let mut latencies = LatencyRecorder::new()?;
            for number in 0u64.. {
                for group in (sender..spec.message_groups).step_by(senders as usize) {
                    if stop.load(Ordering::Relaxed) {
                        return anyhow::Ok(latencies);
                    }
                    let message = Message::new(&spec.topic, body(group, number, spec.message_size_bytes))
                        .message_group(format!("g{group}"));
                    let begun = Instant::now();
                    producer.send(message).await?;
                    latencies.record(begun.elapsed());
                }
            }
            Ok(latencies)
        });
    }
    tokio::time::sleep(spec.duration).await;
    stop.store(true, Ordering::Relaxed);
    let mut latencies = LatencyRecorder::new()?;
    while let Some(share) = tasks.join_next().await {
        latencies.add(&share.context("a sending task ended early")??)?;
    }
    let seconds = begun.elapsed().as_secs_f64();
    for producer in clients {
        producer.close().await;
    }
    Ok(InOrderReport {
        messages: latencies.count(),
        message_groups: spec.message_groups.min(latencies.count()),
        seconds,
        messages_per_second: latencies.count() as f64 / seconds,
        latency: latencies.summary(),
    })
}

fn body(group: u64, number: u64, bytes: usize) -> Bytes {
    let mut body = BytesMut::with_capacity(bytes.max(PLACE_BYTES));
    body.put_u64_le(group);
    body.put_u64_le(number);
    body.resize(bytes.max(PLACE_BYTES), b'.');
    body.freeze()
}

/// The message group and the number in it.
pub(crate) fn place(body: &[u8]) -> Option<(u64, u64)> {
    let (group, rest) = body.split_first_chunk::<8>()?;
    let number = rest.first_chunk::<8>()?;
    Some((u64::from_le_bytes(*group), u64::from_le_bytes(*number)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_says_its_place_whatever_its_size() {
        for bytes in [0, 16, 1024] {
            let body = body(7, u64::MAX, bytes);
            assert_eq!(place(&body), Some((7, u64::MAX)));
            assert_eq!(body.len(), bytes.max(16));
        }
        assert_eq!(place(b"short"), None);
    }
}
