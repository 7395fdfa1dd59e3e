//! One message at a time through the cluster: from the start of its send to its arrival at a
//! consumer that waits for it.

use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use ledgermq_client::{Client, ClientOptions, ConsumerOptions, Message};
use serde::Serialize;
use tokio::time::Instant;

use crate::latency::{Latency, LatencyRecorder};

const ARRIVAL_WITHIN: Duration = Duration::from_secs(30);
/// Uncounted messages at the start.
const WARM_UP_MESSAGES: u32 = 50;
/// The consumer is given this long to be waiting again before the next send.
const SETTLE: Duration = Duration::from_millis(2);

#[derive(Debug, Clone)]
pub struct EndToEndSpec {
    pub endpoint: String,
    pub options: ClientOptions,
    pub topic: String,
    pub group: String,
    pub message_size_bytes: usize,
    pub messages: u32,
}

#[derive(Debug, Clone, Serialize)]
pub struct EndToEndReport {
    pub messages: u64,
    pub send: Latency,
    pub arrival: Latency,
    /// Median of arrival over median of send.
    pub ratio: f64,
}

pub async fn run(spec: &EndToEndSpec) -> anyhow::Result<EndToEndReport> {
    let producer = Client::connect(&spec.endpoint, spec.options.clone()).await?.producer();
    let options = ConsumerOptions::new(&spec.group).subscribe(&spec.topic, "*");
    let consumer = Client::connect(&spec.endpoint, spec.options.clone()).await?.simple_consumer(options);
    let body = Bytes::from(vec![b'.'; spec.message_size_bytes]);
    let (mut send, mut arrival) = (LatencyRecorder::new()?, LatencyRecorder::new()?);
    for number in 0..spec.messages.saturating_add(WARM_UP_MESSAGES) {
        let receiver = consumer.clone();
        let receiving = tokio::spawn(async move {
            loop {
                let messages = receiver.receive(1).await?;
                let arrived = Instant::now();
                if let Some(message) = messages.into_iter().next() {
                    return Ok::<_, ledgermq_client::ReceiveError>((message, arrived));
                }
            }
        });
        tokio::time::sleep(SETTLE).await;
        let begun = Instant::now();
        let receipt = producer.send(Message::new(&spec.topic, body.clone())).await?;
        let sent = begun.elapsed();
        let (message, arrived) = tokio::time::timeout(ARRIVAL_WITHIN, receiving)
            .await
            .context("the message did not arrive")?
            .context("the receiving task ended early")??;
        if message.message_id != receipt.message_id {
            bail!("another message arrived; the topic and group must be this run's own");
        }
        consumer.ack(&message).await?;
        if number >= WARM_UP_MESSAGES {
            send.record(sent);
            arrival.record(arrived.saturating_duration_since(begun));
        }
    }
    producer.close().await;
    consumer.close().await;
    let (messages, send, arrival) = (send.count(), send.summary(), arrival.summary());
    Ok(EndToEndReport { messages, send, arrival, ratio: arrival.p50_us / send.p50_us.max(f64::MIN_POSITIVE) })
}
