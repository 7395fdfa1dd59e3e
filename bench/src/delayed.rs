//! Delayed messages: how late they come while many others wait, and how fast many fire that are due at
//! once.
//!
//! First the waiting ones are stored, hours ahead. Then probes come due one after the other and are
//! received: late by the store time says when they fired, late by the arrival includes the way to the
//! consumer. Last, a storm: many timers due in the same moment, until the last is in its queue.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use ledgermq_client::{Client, ClientOptions, ConsumerOptions, Message, Producer, SimpleConsumer};
use ledgermq_common::clock::{Clock as _, SystemClock, UnixMillis};
use ledgermq_proto::admin::{CreateTopicRequest, ShowTopicRequest};
use ledgermq_proto::rocketmq::MessageType;
use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::latency::{Latency, LatencyRecorder};

const WAITING_AHEAD_MS: u64 = 6 * 3600 * 1000;
const WAITING_SPREAD_MS: u64 = 3600 * 1000;
const PROBE_AHEAD_MS: u64 = 3_000;
const BATCH: u64 = 256;
const REQUESTS_IN_FLIGHT: usize = 8;
const STORM_POLL: Duration = Duration::from_millis(5);
const ARRIVAL_WITHIN: Duration = Duration::from_secs(120);

#[derive(Debug, Clone)]
pub struct DelayedSpec {
    pub endpoint: String,
    pub options: ClientOptions,
    /// Names of topics begin with it; they must not exist.
    pub topic: String,
    pub waiting: u64,
    pub probes: u32,
    pub probes_per_second: u32,
    pub storm: u64,
    pub message_size_bytes: usize,
}

#[derive(Debug, Clone, Serialize)]
pub struct DelayedReport {
    pub waiting: u64,
    pub stored_per_second: f64,
    pub probes: u64,
    pub early: u64,
    /// Store time of the fired message less its delivery time.
    pub fired_late: Latency,
    pub arrived_late: Latency,
    pub storm: u64,
    /// From the delivery time of the storm to its last message in its queue.
    pub storm_ms: f64,
    pub storm_per_second: f64,
}

pub async fn run(spec: &DelayedSpec) -> anyhow::Result<DelayedReport> {
    let client = Client::connect(&spec.endpoint, spec.options.clone()).await?;
    let producer = client.producer();
    let body = Bytes::from(vec![b'.'; spec.message_size_bytes]);

    let waiting_topic = create(&client, &format!("{}-waiting", spec.topic)).await?;
    let begun = Instant::now();
    let now = SystemClock.now();
    store(&producer, &waiting_topic, spec.waiting, |number| {
        (body.clone(), now.saturating_add_ms(WAITING_AHEAD_MS + number * 7_919 % WAITING_SPREAD_MS))
    })
    .await?;
    let stored_per_second = spec.waiting as f64 / begun.elapsed().as_secs_f64().max(f64::MIN_POSITIVE);

    let probe_topic = create(&client, &format!("{}-probes", spec.topic)).await?;
    let received = probe(spec, &client, &producer, &probe_topic).await?;

    let storm_topic = create(&client, &format!("{}-storm", spec.topic)).await?;
    let storm_ms = storm(spec, &client, &producer, &storm_topic, &body).await?;
    producer.close().await;
    Ok(DelayedReport {
        waiting: spec.waiting,
        stored_per_second,
        probes: received.fired_late.count(),
        early: received.early,
        fired_late: received.fired_late.summary(),
        arrived_late: received.arrived_late.summary(),
        storm: spec.storm,
        storm_ms,
        storm_per_second: spec.storm as f64 * 1000.0 / storm_ms.max(f64::MIN_POSITIVE),
    })
}

pub(crate) async fn create(client: &Client, topic: &str) -> anyhow::Result<String> {
    let request = CreateTopicRequest {
        name: topic.to_owned(),
        queues: 8,
        message_type: MessageType::Delay as i32,
        groups: Vec::new(),
    };
    client.admin().create_topic(request).await.with_context(|| format!("cannot create topic {topic}"))?;
    Ok(topic.to_owned())
}

/// `content` gives each message its body and its delivery time.
pub(crate) async fn store(
    producer: &Producer,
    topic: &str,
    count: u64,
    content: impl Fn(u64) -> (Bytes, UnixMillis),
) -> anyhow::Result<()> {
    let mut requests = JoinSet::new();
    for from in (0..count).step_by(BATCH as usize) {
        if requests.len() >= REQUESTS_IN_FLIGHT {
            requests.join_next().await.context("a request is in flight")???;
        }
        let messages: Vec<Message> = (from..count.min(from + BATCH))
            .map(|number| {
                let (body, due) = content(number);
                Message::new(topic, body).deliver_at(due)
            })
            .collect();
        let producer = producer.clone();
        requests.spawn(async move { producer.send_many(messages).await.map(drop) });
    }
    while let Some(sent) = requests.join_next().await {
        sent??;
    }
    Ok(())
}

/// The delivery time of a probe is its body.
async fn probe(
    spec: &DelayedSpec,
    client: &Client,
    producer: &Producer,
    topic: &str,
) -> anyhow::Result<ReceivedDue> {
    let options = ConsumerOptions::new(format!("{topic}-readers")).subscribe(topic, "*");
    let consumer = client.simple_consumer(options);
    let sending = {
        let (producer, topic) = (producer.clone(), topic.to_owned());
        let (probes, pause) = (spec.probes, Duration::from_secs(1) / spec.probes_per_second.max(1));
        tokio::spawn(async move {
            let mut pace = tokio::time::interval(pause);
            for _ in 0..probes {
                pace.tick().await;
                let due = SystemClock.now().saturating_add_ms(PROBE_AHEAD_MS);
                let message = Message::new(&topic, due.get().to_string()).deliver_at(due);
                producer.send(message).await?;
            }
            Ok::<_, ledgermq_client::SendError>(())
        })
    };
    let received = receive_due(&consumer, u64::from(spec.probes), Instant::now() + ARRIVAL_WITHIN).await?;
    sending.await??;
    consumer.close().await;
    Ok(received)
}

/// How late messages came whose bodies are their delivery times.
pub(crate) struct ReceivedDue {
    pub fired_late: LatencyRecorder,
    pub arrived_late: LatencyRecorder,
    pub early: u64,
}

pub(crate) async fn receive_due(
    consumer: &SimpleConsumer,
    count: u64,
    deadline: Instant,
) -> anyhow::Result<ReceivedDue> {
    let (fired_late, arrived_late) = (LatencyRecorder::new()?, LatencyRecorder::new()?);
    let mut received = ReceivedDue { fired_late, arrived_late, early: 0 };
    while received.fired_late.count() < count {
        let arrived = received.fired_late.count();
        ensure!(Instant::now() < deadline, "{arrived} of {count} messages arrived");
        let messages = consumer.receive(32).await?;
        let now = SystemClock.now();
        for message in &messages {
            let due: u64 = std::str::from_utf8(&message.body)?.trim_end().parse()?;
            if message.store_timestamp_ms < due || now.get() < due {
                received.early += 1;
            }
            received.fired_late.record(Duration::from_millis(message.store_timestamp_ms.saturating_sub(due)));
            received.arrived_late.record(Duration::from_millis(now.get().saturating_sub(due)));
        }
        for acknowledged in consumer.ack_many(&messages).await {
            acknowledged?;
        }
    }
    Ok(received)
}

async fn storm(
    spec: &DelayedSpec,
    client: &Client,
    producer: &Producer,
    topic: &str,
    body: &Bytes,
) -> anyhow::Result<f64> {
    if spec.storm == 0 {
        return Ok(0.0);
    }
    // Ahead of what storing them takes at 10,000 per second.
    let due = SystemClock.now().saturating_add_ms(PROBE_AHEAD_MS + spec.storm / 10);
    store(producer, topic, spec.storm, |_| (body.clone(), due)).await?;
    ensure!(SystemClock.now() < due, "storing the storm took longer than its delay");
    tokio::time::sleep(Duration::from_millis(due.saturating_ms_since(SystemClock.now()))).await;
    let deadline = Instant::now() + ARRIVAL_WITHIN;
    loop {
        let shown = client.admin().show_topic(ShowTopicRequest { name: topic.to_owned() }).await?;
        let visible: u64 = shown.queues.iter().map(|queue| queue.max_offset - queue.min_offset).sum();
        if visible >= spec.storm {
            return Ok(SystemClock.now().saturating_ms_since(due) as f64);
        }
        ensure!(Instant::now() < deadline, "{visible} of {} fired", spec.storm);
        tokio::time::sleep(STORM_POLL).await;
    }
}
