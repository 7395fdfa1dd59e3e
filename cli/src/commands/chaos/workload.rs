//! The load: producers and consumers of our own client whose every operation is recorded.
//!
//! | Answer of the client | Recorded as |
//! |---|---|
//! | a receipt | `ok` with the message id and offset |
//! | refused | `fail`: it must never be delivered |
//! | no answer in time, or one that makes no sense | `info`: nobody knows |
//!
//! After an `info` the client goes on under a new process number, as Jepsen's histories have it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ledgermq_checkers::history::{Batch, Delivery, Kind, Operation, Receiving, Sending};
use ledgermq_client::{Message, NoAnswerInTime, Producer, ReceivedMessage, SendError, SimpleConsumer};
use tokio::time::Instant;

use super::recorder::Recorder;

pub(super) const RECEIVE_BATCH: u32 = 32;
pub(super) const AFTER_ERROR: Duration = Duration::from_millis(50);
pub const LEASE: Duration = Duration::from_secs(10);

pub struct Sender {
    pub producer: Producer,
    pub recorder: Arc<Recorder>,
    pub topic: String,
    pub body_bytes: usize,
    /// Message groups this sender takes in turn, none for messages without order.
    pub message_groups: Vec<String>,
    /// Messages of one request.
    pub batch: u32,
    /// Between the begins of two sends; zero sends as fast as answers come.
    pub pause: Duration,
    pub stop: Arc<AtomicBool>,
}

impl Sender {
    pub async fn run(self) {
        let mut process = self.recorder.process();
        let mut next = Instant::now();
        while !self.stop.load(Ordering::Relaxed) {
            match self.batch {
                0 | 1 => self.send_one(&mut process).await,
                count => self.send_batch(&mut process, count).await,
            }
            // What was missed while the cluster was away is not made up for in a burst.
            next = (next + self.pause).max(Instant::now());
            tokio::time::sleep_until(next).await;
        }
        self.producer.close().await;
    }

    /// After a send that nobody knows about the process number is another.
    pub(super) async fn send_one(&self, process: &mut u32) {
        let number = self.recorder.next_number(&self.topic);
        let message_group = match self.message_groups.len() {
            0 => None,
            groups => self.message_groups.get(number as usize % groups).cloned(),
        };
        let mut message = Message::new(&self.topic, body(number, self.body_bytes));
        if let Some(group) = &message_group {
            message = message.message_group(group);
        }
        let topic = self.recorder.topic_named(&self.topic);
        let asked = Sending { number, topic, message_group, ..Sending::default() };
        self.recorder.record(*process, Kind::Invoke, Operation::Send(asked.clone()));
        match self.producer.send(message).await {
            Ok(receipt) => {
                let answer = Sending {
                    id: Some(receipt.message_id),
                    offset: u64::try_from(receipt.queue_offset).ok(),
                    ..asked
                };
                self.recorder.record(*process, Kind::Ok, Operation::Send(answer));
                self.recorder.must_arrive(&self.topic, number);
            }
            Err(error) => self.not_stored(process, Operation::Send(asked), &error).await,
        }
    }

    async fn send_batch(&self, process: &mut u32, count: u32) {
        let first = self.recorder.next_numbers(count);
        let asked = Batch { first, count, offsets: Vec::new() };
        let messages =
            asked.numbers().map(|number| Message::new(&self.topic, body(number, self.body_bytes))).collect();
        self.recorder.record(*process, Kind::Invoke, Operation::SendBatch(asked.clone()));
        match self.producer.send_many(messages).await {
            Ok(receipts) => {
                let offsets: Option<Vec<u64>> =
                    receipts.iter().map(|receipt| u64::try_from(receipt.queue_offset).ok()).collect();
                let answer = Batch { offsets: offsets.unwrap_or_default(), ..asked };
                self.recorder.record(*process, Kind::Ok, Operation::SendBatch(answer));
                self.recorder.must_arrive_all(&self.topic, first..first + u64::from(count));
            }
            Err(error) => self.not_stored(process, Operation::SendBatch(asked), &error).await,
        }
    }

    async fn not_stored(&self, process: &mut u32, asked: Operation, error: &SendError) {
        match error {
            SendError::Refused(_)
            | SendError::Batch(_)
            | SendError::NoAnswer(NoAnswerInTime { attempts: 0, .. }) => {
                self.recorder.failed.fetch_add(1, Ordering::Relaxed);
                self.recorder.record(*process, Kind::Fail, asked);
                tokio::time::sleep(AFTER_ERROR).await;
            }
            SendError::NoAnswer(_) | SendError::Malformed(_) => {
                if matches!(error, SendError::NoAnswer(NoAnswerInTime { throttled: 1.., .. })) {
                    self.recorder.throttled.fetch_add(1, Ordering::Relaxed);
                }
                self.recorder.unknown.fetch_add(1, Ordering::Relaxed);
                self.recorder.record(*process, Kind::Info, asked);
                *process = self.recorder.process();
            }
        }
    }
}

pub struct Receiver {
    pub consumer: SimpleConsumer,
    pub recorder: Arc<Recorder>,
    pub topic: String,
    pub group: String,
    pub stop: Arc<AtomicBool>,
}

impl Receiver {
    pub async fn run(self) {
        let mut process = self.recorder.process();
        while !self.stop.load(Ordering::Relaxed) {
            let messages = self.receive(&mut process).await;
            if !messages.is_empty() {
                self.ack(&mut process, &messages).await;
            }
        }
        self.consumer.close().await;
    }

    /// None where nothing came, or nobody knows what did.
    pub(super) async fn receive(&self, process: &mut u32) -> Vec<ReceivedMessage> {
        let lease_ns = u64::try_from(LEASE.as_nanos()).unwrap_or(u64::MAX);
        let topic = self.recorder.topic_named(&self.topic);
        let asked = Receiving { group: self.group.clone(), topic, lease_ns, messages: Vec::new() };
        self.recorder.record(*process, Kind::Invoke, Operation::Receive(asked.clone()));
        match self.consumer.receive(RECEIVE_BATCH).await {
            Ok(messages) => {
                let deliveries: Vec<Delivery> = messages.iter().map(delivery).collect();
                let numbers: Vec<u64> = deliveries.iter().map(|delivery| delivery.number).collect();
                let answer = Operation::Receive(Receiving { messages: deliveries, ..asked });
                self.recorder.record(*process, Kind::Ok, answer);
                self.recorder.delivered_now(&self.topic, &self.group, numbers.into_iter());
                messages
            }
            Err(error) => {
                tracing::debug!(%error, "receive");
                // Messages may have been leased for an answer that never came.
                self.recorder.record(*process, Kind::Info, Operation::Receive(asked));
                *process = self.recorder.process();
                tokio::time::sleep(AFTER_ERROR).await;
                Vec::new()
            }
        }
    }

    pub(super) async fn ack(&self, process: &mut u32, messages: &[ReceivedMessage]) {
        let numbers: Vec<u64> = messages.iter().map(|message| number_in(&message.body)).collect();
        let ack = |numbers| Operation::Ack { group: self.group.clone(), numbers };
        self.recorder.record(*process, Kind::Invoke, ack(numbers.clone()));
        let results = self.consumer.ack_many(messages).await;
        let acked: Vec<u64> = numbers
            .iter()
            .zip(&results)
            .filter(|(_, result)| result.is_ok())
            .map(|(number, _)| *number)
            .collect();
        if acked.is_empty() {
            self.recorder.record(*process, Kind::Info, ack(numbers));
            *process = self.recorder.process();
        } else {
            self.recorder.record(*process, Kind::Ok, ack(acked));
        }
    }
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
