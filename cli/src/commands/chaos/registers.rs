//! What the cluster remembers, as registers that many clients write and read at once.
//!
//! | Register | Written by | Read by | A register that nobody wrote |
//! |---|---|---|---|
//! | the most attempts a consumer group allows | `SetConsumerGroup` | `ShowConsumerGroup` | a group that nobody set |
//! | the offset of a consumer group in a queue | `CommitOffset`, and back by `ResetOffsets` | `CommittedOffset` | no offset |
//! | a topic, by its number of queues | `CreateTopic`, `DeleteTopic` | `ShowTopic` | no topic |
//!
//! A client says again what it got no answer to. So a refusal may be the answer to a repetition, whose
//! first time did what was asked; it is recorded as unknown. So is a commit that met a later one, or a
//! reset: it goes ahead or nowhere, and a first copy of it may have gone ahead before.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use ledgermq_checkers::history::{Kind, Operation};
use ledgermq_client::{Admin, AdminError, Client, Message, Position, PullConsumer, PullOptions, Queue};
use ledgermq_proto::admin::reset_offsets_request::To;
use ledgermq_proto::admin::{
    CreateTopicRequest, DeleteTopicRequest, Place, ResetOffsetsRequest, SetConsumerGroupRequest,
    ShowConsumerGroupRequest, ShowTopicRequest,
};
use tokio::time::Instant;

use super::recorder::Recorder;
use super::workload::AFTER_ERROR;

/// Of each kind, contended by all clients at any time.
const REGISTERS: u64 = 2;
/// Operations after which the clients go on to new registers: the search for an order grows with them.
const OPERATIONS_OF_ONE: u64 = 192;
/// Values are 1 to this: within what a setting allows.
const VALUES: u64 = 1_000;
/// So that an offset can be up to this. Commits go ahead with the number of the operation.
const MESSAGES: u64 = 256;
const _: () = assert!(MESSAGES > OPERATIONS_OF_ONE, "every offset lies in the queue");
/// One write of an offset in so many is a reset, to somewhere not above this.
const COMMITS_OF_A_RESET: u64 = 8;
const RESET_OFFSETS: u64 = 64;
const TOPIC_QUEUES: u64 = 5;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Register {
    Setting,
    Offset,
    Topic,
}

const KINDS: [Register; 3] = [Register::Setting, Register::Offset, Register::Topic];

/// What an operation came to.
enum Ended {
    /// With the operation as it was answered.
    Ok(Operation),
    Unknown(String),
}

/// A queue with messages, for offsets to be within.
pub async fn fill_a_queue(client: &Client, topic: &str) -> anyhow::Result<Queue> {
    let producer = client.producer();
    let consumer = client.pull_consumer(PullOptions::new("register-filler"));
    let queues = consumer.queues(topic).await?;
    let queue = queues.into_iter().next().context("the topic has a queue")?;
    while consumer.offset(&queue, Position::End).await? <= MESSAGES {
        let messages = (0..MESSAGES).map(|_| Message::new(topic, "filling")).collect();
        producer.send_many(messages).await?;
    }
    producer.close().await;
    consumer.close().await;
    Ok(queue)
}

pub struct RegisterClient {
    pub client: Client,
    pub recorder: Arc<Recorder>,
    /// Where offsets are committed.
    pub queue: Queue,
    pub pause: Duration,
    pub stop: Arc<AtomicBool>,
}

impl RegisterClient {
    pub async fn run(self) {
        let admin = self.client.admin();
        let mut process = self.recorder.process();
        let mut next = Instant::now();
        // A consumer group belongs to its client, so each register of this kind has one.
        let mut offsets: Option<(String, PullConsumer)> = None;
        while !self.stop.load(Ordering::Relaxed) {
            let number = self.recorder.next_number(&self.queue.topic);
            let (kind, key) = register(number);
            // Two reads for a write; every client does both, whatever its share of the numbers.
            let writes = position(number).is_multiple_of(3);
            let asked = operation(kind, &key, number, writes);
            self.recorder.record(process, Kind::Invoke, asked.clone());
            let ended = match kind {
                Register::Setting => setting(&admin, &asked).await,
                Register::Topic => topic(&admin, &asked).await,
                Register::Offset => {
                    if offsets.as_ref().is_none_or(|(of, _)| *of != key) {
                        offsets = Some((key.clone(), self.client.pull_consumer(PullOptions::new(&key))));
                    }
                    match &offsets {
                        Some((_, consumer)) if !is_reset(number) => {
                            offset(consumer, &self.queue, &asked).await
                        }
                        Some((_, consumer)) => reset(&admin, consumer, &self.queue, &asked).await,
                        None => Ended::Unknown("no consumer".to_owned()),
                    }
                }
            };
            match ended {
                Ended::Ok(answer) => self.recorder.record(process, Kind::Ok, answer),
                Ended::Unknown(error) => {
                    tracing::debug!(key, error, "a register");
                    self.recorder.unknown.fetch_add(1, Ordering::Relaxed);
                    self.recorder.record(process, Kind::Info, asked);
                    process = self.recorder.process();
                    tokio::time::sleep(AFTER_ERROR).await;
                }
            }
            next = (next + self.pause).max(Instant::now());
            tokio::time::sleep_until(next).await;
        }
    }
}

fn register(number: u64) -> (Register, String) {
    let kinds = KINDS.len() as u64;
    let epoch = number / (kinds * REGISTERS * OPERATIONS_OF_ONE);
    let (kind, of_kind) = (number % kinds, number / kinds % REGISTERS);
    let kind = KINDS.get(kind as usize).copied().unwrap_or(Register::Setting);
    let name = match kind {
        Register::Setting => "setting",
        Register::Offset => "offset",
        Register::Topic => "topic",
    };
    (kind, format!("register-{name}-{epoch}-{of_kind}"))
}

/// Of a write of an offset.
fn is_reset(number: u64) -> bool {
    position(number) / 3 % COMMITS_OF_A_RESET == COMMITS_OF_A_RESET - 1
}

/// Which operation of its register it is, from 0.
fn position(number: u64) -> u64 {
    number / (KINDS.len() as u64 * REGISTERS) % OPERATIONS_OF_ONE
}

fn operation(kind: Register, key: &str, number: u64, writes: bool) -> Operation {
    let key = key.to_owned();
    let value = |below: u64| i64::try_from(number % below + 1).unwrap_or(1);
    match (writes, kind) {
        (false, _) => Operation::Read { key, value: None },
        (true, Register::Setting) => Operation::Write { key, value: value(VALUES) },
        (true, Register::Offset) if is_reset(number) => Operation::Write { key, value: value(RESET_OFFSETS) },
        (true, Register::Offset) => {
            Operation::Write { key, value: i64::try_from(position(number) + 1).unwrap_or(1) }
        }
        // By another part of the number than the one that says who writes.
        (true, Register::Topic) if number / 18 % 2 == 0 => {
            Operation::Create { key, value: i64::try_from(number / 36 % TOPIC_QUEUES + 1).unwrap_or(1) }
        }
        (true, Register::Topic) => Operation::Delete { key },
    }
}

async fn setting(admin: &Admin, asked: &Operation) -> Ended {
    match asked {
        Operation::Write { key, value } => {
            let request = SetConsumerGroupRequest {
                name: key.clone(),
                max_attempts: u32::try_from(*value).unwrap_or(1),
                ..SetConsumerGroupRequest::default()
            };
            done(asked, admin.set_consumer_group(request).await)
        }
        Operation::Read { key, .. } => {
            let request = ShowConsumerGroupRequest { name: key.clone() };
            match admin.show_consumer_group(request).await.map(|answer| answer.consumer_group) {
                Ok(Some(group)) => {
                    let retry = group.retry.filter(|_| group.exists);
                    read(key, retry.map(|retry| i64::from(retry.max_attempts)))
                }
                Ok(None) => Ended::Unknown("an answer without a consumer group".to_owned()),
                Err(error) => Ended::Unknown(error.to_string()),
            }
        }
        other => Ended::Unknown(format!("{other:?} of a setting")),
    }
}

async fn topic(admin: &Admin, asked: &Operation) -> Ended {
    match asked {
        Operation::Create { key, value } => {
            let queues = u32::try_from(*value).unwrap_or(1);
            let request = CreateTopicRequest { name: key.clone(), queues, ..CreateTopicRequest::default() };
            done(asked, admin.create_topic(request).await)
        }
        Operation::Delete { key } => {
            done(asked, admin.delete_topic(DeleteTopicRequest { name: key.clone() }).await)
        }
        Operation::Read { key, .. } => match admin.show_topic(ShowTopicRequest { name: key.clone() }).await {
            Ok(shown) => read(key, shown.topic.map(|topic| i64::from(topic.queues))),
            Err(AdminError::NotFound { .. }) => read(key, None),
            Err(error) => Ended::Unknown(error.to_string()),
        },
        other => Ended::Unknown(format!("{other:?} of a topic")),
    }
}

async fn offset(consumer: &PullConsumer, queue: &Queue, asked: &Operation) -> Ended {
    match asked {
        Operation::Write { value, .. } => {
            done(asked, consumer.commit(queue, u64::try_from(*value).unwrap_or(0)).await)
        }
        Operation::Read { key, .. } => match consumer.committed(queue).await {
            Ok(offset) => read(key, offset.and_then(|offset| i64::try_from(offset).ok())),
            Err(error) => Ended::Unknown(error.to_string()),
        },
        other => Ended::Unknown(format!("{other:?} of an offset")),
    }
}

/// As a write; reads of an offset are no resets.
async fn reset(admin: &Admin, consumer: &PullConsumer, queue: &Queue, asked: &Operation) -> Ended {
    let Operation::Write { key, value } = asked else { return offset(consumer, queue, asked).await };
    let (group, offset) = (queue.broker.clone(), u64::try_from(*value).unwrap_or(0));
    let request = ResetOffsetsRequest {
        consumer_group: key.clone(),
        topic: queue.topic.clone(),
        to: Some(To::Place(Place { group, queue: queue.id, offset })),
        reset_id: 0,
    };
    done(asked, admin.reset_offsets(request).await)
}

fn done<T, E: std::fmt::Display>(asked: &Operation, answer: Result<T, E>) -> Ended {
    match answer {
        Ok(_) => Ended::Ok(asked.clone()),
        Err(error) => Ended::Unknown(error.to_string()),
    }
}

fn read(key: &str, value: Option<i64>) -> Ended {
    Ended::Ok(Operation::Read { key: key.to_owned(), value })
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    #[test]
    fn every_register_is_read_and_written_in_every_way_and_not_too_often() {
        let mut operations: BTreeMap<String, Vec<&'static str>> = BTreeMap::new();
        let all = KINDS.len() as u64 * REGISTERS * OPERATIONS_OF_ONE;
        for number in 0..all {
            let (kind, key) = register(number);
            let writes = position(number).is_multiple_of(3);
            let name = match operation(kind, &key, number, writes) {
                Operation::Read { .. } => "read",
                Operation::Write { value, .. } if value >= 1 => "write",
                Operation::Create { value, .. } if (1..=TOPIC_QUEUES as i64).contains(&value) => "create",
                Operation::Delete { .. } => "delete",
                other => panic!("{other:?}"),
            };
            operations.entry(key).or_default().push(name);
        }
        assert_eq!(operations.len() as u64, KINDS.len() as u64 * REGISTERS);
        let resets =
            (0..all).filter(|number| position(*number).is_multiple_of(3) && is_reset(*number)).count();
        assert_eq!(resets as u64, all / 3 / COMMITS_OF_A_RESET, "of every kind alike");
        for (key, operations) in operations {
            assert_eq!(operations.len() as u64, OPERATIONS_OF_ONE, "{key}");
            let kinds: BTreeSet<&str> = operations.into_iter().collect();
            let expected = if key.contains("topic") { 3 } else { 2 };
            assert_eq!(kinds.len(), expected, "{key}: {kinds:?}");
        }
    }
}
