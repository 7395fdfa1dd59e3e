//! Consumers that do with their leases all that may be done with them. What one does depends on the
//! message's number and attempt alone.
//!
//! | Number ends in | First attempt |
//! |---|---|
//! | 0 | the lease runs out |
//! | 1 | prolonged, then acknowledged |
//! | 2 | shortened, and left to whoever is next |
//! | 3 | acknowledged, and acknowledged again |
//! | 4 | the lease runs out; whoever gets the message next tries to change it by the old handle |
//! | else | acknowledged |
//!
//! Every later attempt is acknowledged.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ledgermq_checkers::history::{Kind, Operation, Receiving};
use ledgermq_client::{AckError, ReceivedMessage, SimpleConsumer};
use parking_lot::Mutex;

use super::recorder::Recorder;
use super::workload::{AFTER_ERROR, LEASE, RECEIVE_BATCH, delivery, number_in};

/// From now on, longer than what is left of any lease.
const PROLONGED: Duration = Duration::from_secs(2 * LEASE.as_secs());
const SHORTENED: Duration = Duration::from_secs(1);
const OLD_HANDLES_MAX: usize = 4_096;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Treatment {
    Leave,
    Prolong,
    Shorten,
    AckTwice,
    KeepHandle,
    Ack,
}

fn treatment(number: u64, attempt: i32) -> Treatment {
    match number % 10 {
        _ if attempt > 1 => Treatment::Ack,
        0 => Treatment::Leave,
        1 => Treatment::Prolong,
        2 => Treatment::Shorten,
        3 => Treatment::AckTwice,
        4 => Treatment::KeepHandle,
        _ => Treatment::Ack,
    }
}

/// First deliveries whose leases run out, shared by all consumers of a run.
pub type OldHandles = Arc<Mutex<BTreeMap<u64, ReceivedMessage>>>;

pub struct LeaseReceiver {
    pub consumer: SimpleConsumer,
    pub recorder: Arc<Recorder>,
    pub topic: String,
    pub group: String,
    pub old_handles: OldHandles,
    pub stop: Arc<AtomicBool>,
}

impl LeaseReceiver {
    pub async fn run(self) {
        let mut process = self.recorder.process();
        let lease_ns = nanoseconds(LEASE);
        while !self.stop.load(Ordering::Relaxed) {
            let topic = self.recorder.topic_named(&self.topic);
            let asked = Receiving { group: self.group.clone(), topic, lease_ns, messages: Vec::new() };
            self.recorder.record(process, Kind::Invoke, Operation::Receive(asked.clone()));
            let messages = match self.consumer.receive(RECEIVE_BATCH).await {
                Ok(messages) => messages,
                Err(error) => {
                    tracing::debug!(%error, "receive");
                    self.recorder.record(process, Kind::Info, Operation::Receive(asked));
                    process = self.recorder.process();
                    tokio::time::sleep(AFTER_ERROR).await;
                    continue;
                }
            };
            let received = Receiving { messages: messages.iter().map(delivery).collect(), ..asked };
            self.recorder.record(process, Kind::Ok, Operation::Receive(received));
            for message in messages {
                process = self.treat(process, message).await;
            }
        }
        self.consumer.close().await;
    }

    /// Returns the process that goes on.
    async fn treat(&self, process: u32, mut message: ReceivedMessage) -> u32 {
        let number = number_in(&message.body);
        match treatment(number, message.delivery_attempt) {
            Treatment::Leave => process,
            Treatment::KeepHandle => {
                let mut kept = self.old_handles.lock();
                if kept.len() < OLD_HANDLES_MAX {
                    kept.insert(number, message);
                }
                process
            }
            Treatment::Prolong => {
                let process = self.change(process, &mut message, PROLONGED).await;
                self.ack(process, &message).await
            }
            Treatment::Shorten => self.change(process, &mut message, SHORTENED).await,
            Treatment::AckTwice => {
                let process = self.ack(process, &message).await;
                self.ack(process, &message).await
            }
            Treatment::Ack => {
                let old = self.old_handles.lock().remove(&number);
                let process = match old {
                    Some(mut old) => self.change(process, &mut old, PROLONGED).await,
                    None => process,
                };
                self.ack(process, &message).await
            }
        }
    }

    async fn change(&self, process: u32, message: &mut ReceivedMessage, lease: Duration) -> u32 {
        let op = Operation::ChangeLease {
            group: self.group.clone(),
            number: number_in(&message.body),
            attempt: delivery(message).attempt,
            lease_ns: nanoseconds(lease),
        };
        self.recorder.record(process, Kind::Invoke, op.clone());
        let changed = self.consumer.change_invisible_duration(message, lease).await;
        self.answered(process, op, &changed)
    }

    async fn ack(&self, process: u32, message: &ReceivedMessage) -> u32 {
        let op = Operation::Ack { group: self.group.clone(), numbers: vec![number_in(&message.body)] };
        self.recorder.record(process, Kind::Invoke, op.clone());
        let acked = self.consumer.ack(message).await;
        // A run waits for the acks: the first deliveries of many are left on purpose.
        if acked.is_ok() {
            let number = std::iter::once(number_in(&message.body));
            self.recorder.delivered_now(&self.topic, &self.group, number);
        }
        self.answered(process, op, &acked)
    }

    fn answered(&self, process: u32, op: Operation, answer: &Result<(), AckError>) -> u32 {
        match answer {
            Ok(()) => self.recorder.record(process, Kind::Ok, op),
            Err(AckError::Refused(_)) => self.recorder.record(process, Kind::Fail, op),
            Err(AckError::NoAnswer(_) | AckError::Malformed(_)) => {
                self.recorder.record(process, Kind::Info, op);
                return self.recorder.process();
            }
        }
        process
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_treatment_occurs_and_every_message_ends_acknowledged() {
        let first: Vec<Treatment> = (10..20).map(|number| treatment(number, 1)).collect();
        for wanted in [
            Treatment::Leave,
            Treatment::Prolong,
            Treatment::Shorten,
            Treatment::AckTwice,
            Treatment::KeepHandle,
            Treatment::Ack,
        ] {
            assert!(first.contains(&wanted), "{wanted:?}");
        }
        assert!((10..20).all(|number| treatment(number, 2) == Treatment::Ack));
    }
}
