//! Very many delayed messages that all wait, and then come due at a steady rate: how late they fire.
//!
//! Every [`SAMPLED_EVERY`]-th goes to a topic of its own and is received: late by its store time says when it
//! fired, late by its arrival includes the way to the consumer. The others count by the ends of their queues.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use ledgermq_client::{Client, ClientOptions, ConsumerOptions, Producer};
use ledgermq_common::clock::{Clock as _, SystemClock, UnixMillis};
use ledgermq_proto::admin::ShowTopicRequest;
use serde::Serialize;
use tokio::time::Instant;

use crate::delayed::{create, receive_due, store};
use crate::latency::Latency;

const SAMPLED_EVERY: u64 = 50;
/// Stored first, to know how long the rest takes; they stay behind.
const TRIAL: u64 = 8 * 1024;
const TRIAL_AHEAD_MS: u64 = 12 * 3600 * 1000;
/// The first timer is due this much later than storing is expected to end, by half of its time and this.
const MARGIN_MS: u64 = 3_000;
const POLL: Duration = Duration::from_millis(20);
const FIRED_WITHIN: Duration = Duration::from_secs(300);

#[derive(Debug, Clone)]
pub struct FiringSpec {
    pub endpoint: String,
    pub options: ClientOptions,
    /// Names of topics begin with it; they must not exist.
    pub topic: String,
    pub timers: u64,
    pub timers_per_second: u64,
    pub message_size_bytes: usize,
}

#[derive(Debug, Clone, Serialize)]
pub struct FiringReport {
    /// When the first was due.
    pub pending: u64,
    pub asked_per_second: u64,
    pub fired: u64,
    /// From the first delivery time to the last timer in its queue.
    pub seconds: f64,
    pub fired_per_second: f64,
    pub sampled: u64,
    pub early: u64,
    /// Store time of a fired message less its delivery time.
    pub fired_late: Latency,
    pub arrived_late: Latency,
    pub stored_per_second: f64,
}

/// All timers are stored and none is due.
pub struct Stored {
    spec: FiringSpec,
    client: Client,
    producer: Producer,
    counted_topic: String,
    counted: u64,
    sampled_topic: String,
    sampled: u64,
    first_due: UnixMillis,
    stored_per_second: f64,
}

/// Stores the timers; [`Stored::fire`] waits for their time and measures.
pub async fn prepare(spec: FiringSpec) -> anyhow::Result<Stored> {
    ensure!(spec.timers_per_second > 0 && spec.timers >= SAMPLED_EVERY, "too few timers");
    let client = Client::connect(&spec.endpoint, spec.options.clone()).await?;
    let producer = client.producer();
    let body = Bytes::from(vec![b'.'; spec.message_size_bytes]);
    let counted_topic = create(&client, &format!("{}-counted", spec.topic)).await?;
    let sampled_topic = create(&client, &format!("{}-sampled", spec.topic)).await?;
    let trial_topic = create(&client, &format!("{}-trial", spec.topic)).await?;
    let begun = Instant::now();
    let far = SystemClock.now().saturating_add_ms(TRIAL_AHEAD_MS);
    store(&producer, &trial_topic, TRIAL, |_| (body.clone(), far)).await?;
    let trial_ms = begun.elapsed().as_millis() as u64;

    let expected_ms = trial_ms * spec.timers.div_ceil(TRIAL);
    let first_due = SystemClock.now().saturating_add_ms(expected_ms * 3 / 2 + MARGIN_MS);
    let due = |number: u64| first_due.saturating_add_ms(number * 1000 / spec.timers_per_second);
    let sampled = spec.timers.div_ceil(SAMPLED_EVERY);
    let counted = spec.timers - sampled;
    let begun = Instant::now();
    store(&producer, &sampled_topic, sampled, |number| {
        let due = due(number * SAMPLED_EVERY);
        (body_of(due, spec.message_size_bytes), due)
    })
    .await?;
    // Those that are sampled are left out.
    store(&producer, &counted_topic, counted, |number| {
        (body.clone(), due(number + number / (SAMPLED_EVERY - 1) + 1))
    })
    .await?;
    let stored_per_second = spec.timers as f64 / begun.elapsed().as_secs_f64().max(f64::MIN_POSITIVE);
    ensure!(SystemClock.now() < first_due, "storing the timers took longer than the first one waits");
    Ok(Stored {
        spec,
        client,
        producer,
        counted_topic,
        counted,
        sampled_topic,
        sampled,
        first_due,
        stored_per_second,
    })
}

/// The delivery time as text, filled up with spaces.
fn body_of(due: UnixMillis, bytes: usize) -> Bytes {
    format!("{:<bytes$}", due.get()).into()
}

impl Stored {
    /// Until the first is due.
    pub fn time_left(&self) -> Duration {
        Duration::from_millis(self.first_due.saturating_ms_since(SystemClock.now()))
    }

    pub async fn fire(self) -> anyhow::Result<FiringReport> {
        let consumer = self.client.simple_consumer(
            ConsumerOptions::new(format!("{}-readers", self.sampled_topic))
                .subscribe(&self.sampled_topic, "*"),
        );
        let lasts = Duration::from_secs(self.spec.timers / self.spec.timers_per_second);
        let deadline = Instant::now() + self.time_left() + lasts + FIRED_WITHIN;
        let counting = self.count_fired(deadline);
        let receiving = receive_due(&consumer, self.sampled, deadline);
        let (seconds, received) = tokio::join!(counting, receiving);
        let (seconds, received) = (seconds?, received?);
        consumer.close().await;
        self.producer.close().await;
        Ok(FiringReport {
            pending: self.spec.timers + TRIAL,
            asked_per_second: self.spec.timers_per_second,
            fired: self.counted + self.sampled,
            seconds,
            fired_per_second: (self.counted + self.sampled) as f64 / seconds.max(f64::MIN_POSITIVE),
            sampled: self.sampled,
            early: received.early,
            fired_late: received.fired_late.summary(),
            arrived_late: received.arrived_late.summary(),
            stored_per_second: self.stored_per_second,
        })
    }

    /// Seconds from the first delivery time until all that are counted are in their queues.
    async fn count_fired(&self, deadline: Instant) -> anyhow::Result<f64> {
        tokio::time::sleep(self.time_left()).await;
        let admin = self.client.admin();
        loop {
            let shown = admin.show_topic(ShowTopicRequest { name: self.counted_topic.clone() }).await;
            let shown = shown.context("cannot count what fired")?;
            let fired: u64 = shown.queues.iter().map(|queue| queue.max_offset - queue.min_offset).sum();
            if fired >= self.counted {
                return Ok(SystemClock.now().saturating_ms_since(self.first_due) as f64 / 1e3);
            }
            ensure!(Instant::now() < deadline, "{fired} of {} timers fired", self.counted);
            tokio::time::sleep(POLL).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sampled_body_is_a_number_of_the_size_of_the_others() {
        let body = body_of(UnixMillis(1234), 100);
        assert_eq!(body.len(), 100);
        assert_eq!(std::str::from_utf8(&body).unwrap().trim_end().parse(), Ok(1234));
    }
}
