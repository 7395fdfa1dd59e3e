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

use super::client_processes;

pub(super) const RECEIVE_BATCH: u32 = 32;
pub(super) const AFTER_ERROR: Duration = Duration::from_millis(50);
pub const LEASE: Duration = Duration::from_secs(10);

/// All events in one order, and figures for the progress line.
pub struct Recorder {
    /// On the machine's monotonic clock, so that other processes can go by it.
    began_ns: u64,
    /// Events are printed instead of kept.
    prints: bool,
    events: Mutex<Vec<Event>>,
    next_process: AtomicU32,
    next_number: AtomicU64,
    acknowledged: Mutex<BTreeSet<u64>>,
    delivered: Mutex<BTreeSet<u64>>,
    last_new_delivery: Mutex<Instant>,
    proofs: Mutex<Vec<String>>,
    pub unknown: AtomicU64,
    pub failed: AtomicU64,
}

impl Recorder {
    pub fn new() -> Self {
        Self::beginning(monotonic_ns(), false, 0, 1)
    }

    /// For a client that is a process of its own.
    pub fn printing(began_ns: u64, first_process: u32, first_number: u64) -> Self {
        Self::beginning(began_ns, true, first_process, first_number)
    }

    fn beginning(began_ns: u64, prints: bool, first_process: u32, first_number: u64) -> Self {
        Self {
            began_ns,
            prints,
            events: Mutex::default(),
            next_process: AtomicU32::new(first_process),
            next_number: AtomicU64::new(first_number),
            acknowledged: Mutex::default(),
            delivered: Mutex::default(),
            last_new_delivery: Mutex::new(Instant::now()),
            proofs: Mutex::default(),
            unknown: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        }
    }

    /// On the clock that logs are stamped with.
    pub fn began_unix_ms(&self) -> f64 {
        let unix = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
        let since = monotonic_ns().saturating_sub(self.began_ns);
        unix.as_secs_f64() * 1000.0 - since as f64 / 1e6
    }

    pub fn began_ns(&self) -> u64 {
        self.began_ns
    }

    /// Numbers of processes and of messages that only the caller will use: the first of each.
    pub fn reserve(&self, processes: u32, numbers: u64) -> (u32, u64) {
        let process = self.next_process.fetch_add(processes, Ordering::Relaxed);
        (process, self.next_number.fetch_add(numbers, Ordering::Relaxed))
    }

    pub fn process(&self) -> u32 {
        self.next_process.fetch_add(1, Ordering::Relaxed)
    }

    pub fn next_number(&self) -> u64 {
        self.next_number.fetch_add(1, Ordering::Relaxed)
    }

    /// The consumers wait for it at the end.
    pub fn must_arrive(&self, number: u64) {
        self.acknowledged.lock().insert(number);
    }

    /// The stamp is taken under the lock, so the file is in the order of its stamps.
    pub fn record(&self, process: u32, kind: Kind, op: Operation) {
        let mut events = self.events.lock();
        let at_ns = monotonic_ns().saturating_sub(self.began_ns);
        let event = Event { at_ns, process, kind, op };
        if self.prints {
            client_processes::print(&event);
        } else {
            events.push(event);
        }
    }

    /// An event that another process recorded.
    pub fn merge(&self, event: Event) {
        match (event.kind, &event.op) {
            (Kind::Ok, Operation::Send(sent)) => self.must_arrive(sent.number),
            (Kind::Ok, Operation::Receive(received)) => {
                self.delivered_now(received.messages.iter().map(|delivery| delivery.number));
            }
            (Kind::Info, Operation::Send(_)) => {
                self.unknown.fetch_add(1, Ordering::Relaxed);
            }
            (Kind::Fail, Operation::Send(_)) => {
                self.failed.fetch_add(1, Ordering::Relaxed);
            }
            _ => {}
        }
        self.events.lock().push(event);
    }

    /// The time an event that is recorded now would have.
    pub fn now_ns(&self) -> u64 {
        monotonic_ns().saturating_sub(self.began_ns)
    }

    pub fn delivered_now(&self, numbers: impl Iterator<Item = u64>) {
        let mut delivered = self.delivered.lock();
        if numbers.filter(|number| delivered.insert(*number)).count() > 0 {
            *self.last_new_delivery.lock() = Instant::now();
        }
    }

    /// Keeps what showed that a fault happened.
    pub fn prove(&self, proof: String) {
        tracing::info!(%proof, "fault");
        self.proofs.lock().push(proof);
    }

    pub fn proofs(&self) -> Vec<String> {
        self.proofs.lock().clone()
    }

    /// In the order of their stamps: events of other processes come a little later than they are.
    pub fn take(&self) -> Vec<Event> {
        let mut events = std::mem::take(&mut *self.events.lock());
        events.sort_by_key(|event| event.at_ns);
        events
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
    /// Message groups this sender takes in turn, none for messages without order.
    pub message_groups: Vec<String>,
    /// Between the begins of two sends; zero sends as fast as answers come.
    pub pause: Duration,
    pub stop: Arc<AtomicBool>,
}

impl Sender {
    pub async fn run(self) {
        let mut process = self.recorder.process();
        let mut next = Instant::now();
        while !self.stop.load(Ordering::Relaxed) {
            self.send_one(&mut process).await;
            // What was missed while the cluster was away is not made up for in a burst.
            next = (next + self.pause).max(Instant::now());
            tokio::time::sleep_until(next).await;
        }
        self.producer.close().await;
    }

    /// After a send that nobody knows about the process number is another.
    pub(super) async fn send_one(&self, process: &mut u32) {
        let number = self.recorder.next_number();
        let message_group = match self.message_groups.len() {
            0 => None,
            groups => self.message_groups.get(number as usize % groups).cloned(),
        };
        let mut message = Message::new(&self.topic, body(number, self.body_bytes));
        if let Some(group) = &message_group {
            message = message.message_group(group);
        }
        let asked = Sending { number, message_group, ..Sending::default() };
        self.recorder.record(*process, Kind::Invoke, Operation::Send(asked.clone()));
        match self.producer.send(message).await {
            Ok(receipt) => {
                let answer = Sending {
                    id: Some(receipt.message_id),
                    offset: u64::try_from(receipt.queue_offset).ok(),
                    ..asked
                };
                self.recorder.record(*process, Kind::Ok, Operation::Send(answer));
                self.recorder.must_arrive(number);
            }
            Err(SendError::Refused(_) | SendError::Batch(_)) => {
                self.recorder.failed.fetch_add(1, Ordering::Relaxed);
                self.recorder.record(*process, Kind::Fail, Operation::Send(asked));
                tokio::time::sleep(AFTER_ERROR).await;
            }
            Err(SendError::NoAnswer(_) | SendError::Malformed(_)) => {
                self.recorder.unknown.fetch_add(1, Ordering::Relaxed);
                self.recorder.record(*process, Kind::Info, Operation::Send(asked));
                *process = self.recorder.process();
            }
        }
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
            self.recorder.delivered_now(numbers.iter().copied());
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

fn monotonic_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a timespec of this frame.
    let answer = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    assert_eq!(answer, 0, "every system has this clock");
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// The number in the first eight bytes, then filling.
pub(super) fn body(number: u64, bytes: usize) -> Vec<u8> {
    let mut body = number.to_be_bytes().to_vec();
    body.resize(bytes.max(8), b'.');
    body
}

/// 0, which no message has, where there is none.
pub(super) fn number_in(body: &[u8]) -> u64 {
    body.first_chunk::<8>().map_or(0, |head| u64::from_be_bytes(*head))
}

pub(super) fn delivery(message: &ReceivedMessage) -> Delivery {
    let number = number_in(&message.body);
    Delivery {
        number,
        id: message.message_id.clone(),
        queue: (message.broker.clone(), u32::try_from(message.queue_id).unwrap_or(u32::MAX)),
        offset: u64::try_from(message.queue_offset).unwrap_or(u64::MAX),
        attempt: u32::try_from(message.delivery_attempt).unwrap_or(u32::MAX),
    }
}
