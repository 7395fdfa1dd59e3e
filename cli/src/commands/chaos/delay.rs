//! Messages with a due time, some of them called back.
//!
//! | Number ends in | What is done |
//! |---|---|
//! | 0 | called back as soon as it is stored |
//! | 1 | called back at its due time: either may win |
//! | else | left |

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ledgermq_checkers::history::{Kind, Operation, Sending};
use ledgermq_client::{Message, Producer, SendError};
use ledgermq_common::clock::{Clock as _, SystemClock};
use tokio::time::Instant;

use super::recorder::Recorder;
use super::workload::{AFTER_ERROR, body};

/// From a send to its due time, by its number.
const DELAY_MIN_MS: u64 = 1_000;
const DELAY_STEP_MS: u64 = 10;
const DELAY_STEPS: u64 = 301;

pub struct DelaySender {
    pub producer: Producer,
    pub recorder: Arc<Recorder>,
    pub topic: String,
    pub body_bytes: usize,
    pub pause: Duration,
    pub stop: Arc<AtomicBool>,
}

impl DelaySender {
    pub async fn run(self) {
        let mut process = self.recorder.process();
        let mut next = Instant::now();
        while !self.stop.load(Ordering::Relaxed) {
            let number = self.recorder.next_number(&self.topic);
            let delay_ms = DELAY_MIN_MS + number % DELAY_STEPS * DELAY_STEP_MS;
            let due_ns = self.recorder.now_ns().saturating_add(delay_ms * 1_000_000);
            let due = Instant::now() + Duration::from_millis(delay_ms);
            let message = Message::new(&self.topic, body(number, self.body_bytes))
                .deliver_at(SystemClock.now().saturating_add_ms(delay_ms));
            let topic = self.recorder.topic_named(&self.topic);
            let asked = Sending { number, topic, due_ns: Some(due_ns), ..Sending::default() };
            self.recorder.record(process, Kind::Invoke, Operation::Send(asked.clone()));
            match self.producer.send(message).await {
                Ok(receipt) => {
                    // Its place is that of its delivery, which is not known yet.
                    let answer = Sending { id: Some(receipt.message_id), ..asked };
                    self.recorder.record(process, Kind::Ok, Operation::Send(answer));
                    let recall_at = match number % 10 {
                        0 => Some(Instant::now()),
                        1 => Some(due),
                        _ => None,
                    };
                    match recall_at {
                        Some(at) => {
                            let recall = recall(
                                self.producer.clone(),
                                Arc::clone(&self.recorder),
                                self.topic.clone(),
                                number,
                                receipt.recall_handle,
                                at,
                            );
                            tokio::spawn(recall);
                        }
                        None => self.recorder.must_arrive(&self.topic, number),
                    }
                }
                Err(SendError::Refused(_) | SendError::Batch(_)) => {
                    self.recorder.failed.fetch_add(1, Ordering::Relaxed);
                    self.recorder.record(process, Kind::Fail, Operation::Send(asked));
                    tokio::time::sleep(AFTER_ERROR).await;
                }
                Err(SendError::NoAnswer(_) | SendError::Malformed(_)) => {
                    self.recorder.unknown.fetch_add(1, Ordering::Relaxed);
                    self.recorder.record(process, Kind::Info, Operation::Send(asked));
                    process = self.recorder.process();
                }
            }
            next = (next + self.pause).max(Instant::now());
            tokio::time::sleep_until(next).await;
        }
        self.producer.close().await;
    }
}

/// A process of its own. A recall that comes after the end of the run stays without an answer.
async fn recall(
    producer: Producer,
    recorder: Arc<Recorder>,
    topic: String,
    number: u64,
    handle: String,
    at: Instant,
) {
    tokio::time::sleep_until(at).await;
    let process = recorder.process();
    let op = || Operation::Recall { number };
    recorder.record(process, Kind::Invoke, op());
    let kind = match producer.recall(&topic, &handle).await {
        Ok(_) => Kind::Ok,
        Err(SendError::Refused(refused)) => {
            tracing::debug!(number, %refused, "recall");
            recorder.must_arrive(&topic, number);
            Kind::Fail
        }
        Err(_) => Kind::Info,
    };
    recorder.record(process, kind, op());
}
