//! The load: producers and consumers of our own client whose every operation is recorded.
//!
//! | Answer of the client | Recorded as |
//! |---|---|
//! | a receipt | `ok` with the message id and offset |
//! | refused | `fail`: it must never be delivered |
//! | no answer in time, or one that makes no sense | `info`: nobody knows |
//!
//! After an `info` the client goes on under a new process number, as Jepsen's histories have it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use ledgermq_checkers::history::{Delivery, Event, Kind, Operation, Receiving, Sending};
use ledgermq_client::{Message, Producer, ReceivedMessage, SendError, SimpleConsumer};
use parking_lot::Mutex;
use tokio::time::Instant;

const RECEIVE_BATCH: u32 = 32;
const AFTER_ERROR: Duration = Duration::from_millis(50);
pub const LEASE: Duration = Duration::from_secs(10);

/// All events in one order, and figures for the progress line.
pub struct Recorder {
    started: Instant,
    events: Mutex<Vec<Event>>,
    next_process: AtomicU32,
    next_number: AtomicU64,
    acknowledged: Mutex<BTreeSet<u64>>,
    delivered: Mutex<BTreeSet<u64>>,
    last_new_delivery: Mutex<Instant>,
    pub unknown: AtomicU64,
    pub failed: AtomicU64,
}

impl Recorder {
    pub fn new() -> Self {
        let started = Instant::now();
        Self {
            started,
            events: Mutex::default(),
            next_process: AtomicU32::new(0),
            next_number: AtomicU64::new(1),
            acknowledged: Mutex::default(),
            delivered: Mutex::default(),
            last_new_delivery: Mutex::new(started),
            unknown: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        }
    }

    pub fn process(&self) -> u32 {
        self.next_process.fetch_add(1, Ordering::Relaxed)
    }

    /// The stamp is taken under the lock, so the file is in the order of its stamps.
    pub fn record(&self, process: u32, kind: Kind, op: Operation) {
        let mut events = self.events.lock();
        let at_ns = u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        events.push(Event { at_ns, process, kind, op });
    }

    pub fn take(&self) -> Vec<Event> {
        std::mem::take(&mut self.events.lock())
    }

    pub fn acknowledged(&self) -> usize {
        self.acknowledged.lock().len()
    }

    pub fn delivered(&self) -> usize {
        self.delivered.lock().len()
    }

    /// Acknowledged and not delivered yet.
    pub fn open(&self) -> usize {
        let delivered = self.delivered.lock();
        self.acknowledged.lock().iter().filter(|number| !delivered.contains(number)).count()
    }

    pub fn quiet_for(&self) -> Duration {
        self.last_new_delivery.lock().elapsed()
    }
}

pub struct Sender {
    pub producer: Producer,
    pub recorder: Arc<Recorder>,
    pub topic: String,
    pub body_bytes: usize,
    /// Between the begins of two sends; zero sends as fast as answers come.
    pub pause: Duration,
    pub stop: Arc<AtomicBool>,
}

impl Sender {
    pub async fn run(self) {
        let mut process = self.recorder.process();
        let mut next = Instant::now();
        while !self.stop.load(Ordering::Relaxed) {
            let number = self.recorder.next_number.fetch_add(1, Ordering::Relaxed);
            let asked = Sending { number, ..Sending::default() };
            self.recorder.record(process, Kind::Invoke, Operation::Send(asked.clone()));
            match self.producer.send(Message::new(&self.topic, body(number, self.body_bytes))).await {
                Ok(receipt) => {
                    let answer = Sending {
                        id: Some(receipt.message_id),
                        offset: u64::try_from(receipt.queue_offset).ok(),
                        ..asked
                    };
                    self.recorder.record(process, Kind::Ok, Operation::Send(answer));
                    self.recorder.acknowledged.lock().insert(number);
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
            // What was missed while the cluster was away is not made up for in a burst.
            next = (next + self.pause).max(Instant::now());
            tokio::time::sleep_until(next).await;
        }
        self.producer.close().await;
    }
}

pub struct Receiver {
    pub consumer: SimpleConsumer,
    pub recorder: Arc<Recorder>,
    pub group: String,
    pub stop: Arc<AtomicBool>,
}

impl Receiver {
    pub async fn run(self) {
        let mut process = self.recorder.process();
        let lease_ns = u64::try_from(LEASE.as_nanos()).unwrap_or(u64::MAX);
        while !self.stop.load(Ordering::Relaxed) {
            let asked = Receiving { group: self.group.clone(), lease_ns, messages: Vec::new() };
            self.recorder.record(process, Kind::Invoke, Operation::Receive(asked.clone()));
            let messages = match self.consumer.receive(RECEIVE_BATCH).await {
                Ok(messages) => messages,
                Err(error) => {
                    tracing::debug!(%error, "receive");
                    // Messages may have been leased for an answer that never came.
                    self.recorder.record(process, Kind::Info, Operation::Receive(asked));
                    process = self.recorder.process();
                    tokio::time::sleep(AFTER_ERROR).await;
                    continue;
                }
            };
            let deliveries: Vec<Delivery> = messages.iter().map(delivery).collect();
            let numbers: Vec<u64> = deliveries.iter().map(|delivery| delivery.number).collect();
            self.recorder.record(
                process,
                Kind::Ok,
                Operation::Receive(Receiving { messages: deliveries, ..asked }),
            );
            if numbers.is_empty() {
                continue;
            }
            {
                let mut delivered = self.recorder.delivered.lock();
                if numbers.iter().filter(|number| delivered.insert(**number)).count() > 0 {
                    *self.recorder.last_new_delivery.lock() = Instant::now();
                }
            }
            let ack = |numbers| Operation::Ack { group: self.group.clone(), numbers };
            self.recorder.record(process, Kind::Invoke, ack(numbers.clone()));
            let results = self.consumer.ack_many(&messages).await;
            let acked: Vec<u64> = numbers
                .iter()
                .zip(&results)
                .filter(|(_, result)| result.is_ok())
                .map(|(number, _)| *number)
                .collect();
            if acked.is_empty() {
                self.recorder.record(process, Kind::Info, ack(numbers));
                process = self.recorder.process();
            } else {
                self.recorder.record(process, Kind::Ok, ack(acked));
            }
        }
        self.consumer.close().await;
    }
}

/// The number in the first eight bytes, then filling.
fn body(number: u64, bytes: usize) -> Vec<u8> {
    let mut body = number.to_be_bytes().to_vec();
    body.resize(bytes.max(8), b'.');
    body
}

fn delivery(message: &ReceivedMessage) -> Delivery {
    let number = message.body.first_chunk::<8>().map_or(0, |head| u64::from_be_bytes(*head));
    Delivery {
        number,
        id: message.message_id.clone(),
        queue: (message.broker.clone(), u32::try_from(message.queue_id).unwrap_or(u32::MAX)),
        offset: u64::try_from(message.queue_offset).unwrap_or(u64::MAX),
        attempt: u32::try_from(message.delivery_attempt).unwrap_or(u32::MAX),
    }
}
