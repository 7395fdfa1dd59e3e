//! The demo's traffic: a paced producer with many sends in flight, and consumers.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use ledgermq_client::{Message, Producer, ReceivedMessage, SimpleConsumer};
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

use super::TOPIC;
use super::account::Account;

const IN_FLIGHT_MAX: usize = 64;
const CONSUMERS: usize = 4;
const RECEIVE_BATCH: u32 = 32;
const FIRST_RECEIVE_WITHIN: Duration = Duration::from_secs(30);
const AFTER_ERROR: Duration = Duration::from_millis(100);

/// When each message may be sent: evenly within its part, and not before the part is opened.
pub struct Pace {
    messages: u32,
    parts: u32,
    interval: Duration,
    open: watch::Sender<Option<(u32, Instant)>>,
}

impl Pace {
    pub fn new(messages: u32, parts: u32, interval: Duration) -> Self {
        Self { messages, parts, interval, open: watch::Sender::new(None) }
    }

    pub fn open_part(&self, part: u32) {
        self.open.send_replace(Some((part, Instant::now())));
    }

    /// How many messages are sent when `part` is half done.
    pub fn middle_of(&self, part: u32) -> u32 {
        self.end_of(part).midpoint(self.start_of(part)).max(1)
    }

    async fn wait_turn(&self, ordinal: u32) {
        let part = (0..self.parts).rev().find(|part| self.start_of(*part) <= ordinal).unwrap_or(0);
        let mut open = self.open.subscribe();
        // The sender lives in self, so waiting cannot fail.
        let opened = match open.wait_for(|open| open.is_some_and(|(opened, _)| opened >= part)).await {
            Ok(open) => *open,
            Err(_) => None,
        };
        if let Some((opened, at)) = opened
            && opened == part
        {
            let length = f64::from(self.end_of(part) - self.start_of(part)).max(1.0);
            let done = f64::from(ordinal - self.start_of(part)) / length;
            let turn = at + self.interval.mul_f64(done);
            // The timer's grain is a millisecond; several messages share a turn.
            if turn > Instant::now() {
                tokio::time::sleep_until(turn).await;
            }
        }
    }

    fn start_of(&self, part: u32) -> u32 {
        let start = u64::from(self.messages) * u64::from(part) / u64::from(self.parts);
        u32::try_from(start).unwrap_or(self.messages)
    }

    fn end_of(&self, part: u32) -> u32 {
        self.start_of(part + 1)
    }
}

/// Sends every message once; returns when each is acknowledged or has failed.
pub async fn send_all(producer: Producer, account: Arc<Account>, pace: Arc<Pace>, size_bytes: usize) {
    let in_flight = Arc::new(Semaphore::new(IN_FLIGHT_MAX));
    let mut sends = JoinSet::new();
    for ordinal in 0..account.messages() {
        pace.wait_turn(ordinal).await;
        let Ok(permit) = in_flight.clone().acquire_owned().await else { break };
        while sends.try_join_next().is_some() {}
        let producer = producer.clone();
        let account = account.clone();
        sends.spawn(async move {
            account.sent(ordinal);
            let message = Message::new(TOPIC, body(ordinal, size_bytes)).key(ordinal.to_string());
            match producer.send(message).await {
                Ok(_) => account.acked(ordinal),
                Err(error) => {
                    tracing::error!(ordinal, %error, "send failed");
                    account.failed(ordinal);
                }
            }
            drop(permit);
        });
    }
    while sends.join_next().await.is_some() {}
}

/// Returns when the group exists, so that it misses nothing of what is sent from now on.
pub async fn start_consumers(
    consumer: &SimpleConsumer,
    account: &Arc<Account>,
) -> anyhow::Result<Vec<JoinHandle<()>>> {
    let first = tokio::time::timeout(FIRST_RECEIVE_WITHIN, async {
        loop {
            match consumer.receive(1).await {
                Ok(messages) => return messages,
                Err(error) => {
                    tracing::warn!(%error, "first receive");
                    tokio::time::sleep(AFTER_ERROR).await;
                }
            }
        }
    });
    let first = first.await.context("the consumers cannot receive")?;
    anyhow::ensure!(first.is_empty(), "the new topic holds messages already");
    Ok((0..CONSUMERS).map(|_| tokio::spawn(consume(consumer.clone(), account.clone()))).collect())
}

async fn consume(consumer: SimpleConsumer, account: Arc<Account>) {
    loop {
        let messages = match consumer.receive(RECEIVE_BATCH).await {
            Ok(messages) => messages,
            Err(error) => {
                tracing::warn!(%error, "receive");
                tokio::time::sleep(AFTER_ERROR).await;
                continue;
            }
        };
        for message in &messages {
            match ordinal(message) {
                Some(ordinal) => {
                    account
                        .consumed(ordinal, (message.broker.clone(), message.queue_id, message.queue_offset));
                }
                None => tracing::error!(message.message_id, "a message that was never sent"),
            }
        }
        for (message, result) in messages.iter().zip(consumer.ack_many(&messages).await) {
            match (ordinal(message), result) {
                (Some(ordinal), Ok(())) => account.consumption_acked(ordinal),
                (_, Ok(())) => {}
                (_, Err(error)) => tracing::warn!(message.message_id, %error, "ack"),
            }
        }
    }
}

/// The ordinal in the first eight bytes, then filling.
fn body(ordinal: u32, size_bytes: usize) -> Vec<u8> {
    let mut body = u64::from(ordinal).to_be_bytes().to_vec();
    body.resize(size_bytes.max(8), b'.');
    body
}

fn ordinal(message: &ReceivedMessage) -> Option<u32> {
    let head = message.body.first_chunk::<8>()?;
    u32::try_from(u64::from_be_bytes(*head)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_cover_all_messages_without_overlap() {
        for (messages, parts) in [(20_000, 5), (7, 3), (1, 5), (100, 1)] {
            let pace = Pace::new(messages, parts, Duration::ZERO);
            assert_eq!(pace.start_of(0), 0);
            assert_eq!(pace.end_of(parts - 1), messages);
            for part in 0..parts {
                let middle = pace.middle_of(part);
                assert!(middle >= 1 && middle <= pace.end_of(part).max(1), "{messages} {parts} {part}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_waits_for_its_part_and_for_its_turn() {
        let pace = Arc::new(Pace::new(100, 2, Duration::from_secs(2)));
        pace.open_part(0);
        let begun = Instant::now();
        pace.wait_turn(25).await;
        assert_eq!(begun.elapsed(), Duration::from_secs(1));
        let waiting = tokio::spawn({
            let pace = pace.clone();
            async move { pace.wait_turn(50).await }
        });
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(!waiting.is_finished());
        pace.open_part(1);
        waiting.await.unwrap();
    }
}
