//! One client of `ledgermq chaos run --client rust`: the unmodified Rust SDK (crate `rocketmq` 5.0.0),
//! until its input ends. Prints its part of the history, one event a line, as `ledgermq chaos client` does.
//!
//! What the source of the crate says, and what is done about it here:
//!
//! | In the crate | Here |
//! |---|---|
//! | `producer.rs`, `batch_send`: a send is one call of `ClientOption::timeout` (3 s) and never repeated; `model/transaction.rs`, `end_transaction`: likewise | every error is recorded as unknown: the answer may be what was lost |
//! | `client.rs`, `topic_route`: the route is asked for once and kept; `send_message` unwraps the connection to an address that was not used before | one access point and no list: the route names the same address, and the connection is there since `start` |
//! | `session.rs`, `Session::start`: the stream by which the broker asks about halves is opened once for each connection | a half whose producer lost its stream is decided by another producer of the topic; the harness keeps one |
//! | `session.rs`, `receive_message`: the time of the long poll is the time-out of the whole call, but tonic 0.9 applies it to the head of the answer only | [`RECEIVE_WITHIN`] around it |
//! | `client.rs`, `handle_response_status`: a code it does not know is a panic | that ends the process, and the run |
//! | `model/common.rs`, `SendReceipt`; `model/message.rs`, `MessageView`: no queue and no offset | sends without an offset, deliveries without a queue |

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::{Parser, ValueEnum};
use ledgermq::chaos_halves::{Ending, commits, ending};
use ledgermq_checkers::history::{Delivery, Event, Kind, Operation, Receiving, Sending};
use rocketmq::conf::{ClientOption, ProducerOption, SimpleConsumerOption};
use rocketmq::error::ClientError;
use rocketmq::model::common::{FilterExpression, FilterType};
use rocketmq::model::message::{MessageBuilder, MessageView};
use rocketmq::model::transaction::{Transaction, TransactionResolution};
use rocketmq::{Producer, SimpleConsumer};
use tokio::time::Instant;

const RECEIVE_BATCH: i32 = 32;
const LONG_POLL: Duration = Duration::from_secs(3);
/// A node that stands still within an answer gives no other sign.
const RECEIVE_WITHIN: Duration = Duration::from_secs(10);
const AFTER_ERROR: Duration = Duration::from_millis(50);
/// Of one producer: several, so that one that is held does not stop it.
const MESSAGE_GROUPS: u64 = 4;

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Role {
    Producer,
    Consumer,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Workload {
    Queue,
    Fifo,
    Transactions,
}

#[derive(Debug, Clone, Parser)]
struct Arguments {
    #[arg(long)]
    role: Role,
    #[arg(long)]
    workload: Workload,
    /// Access points of the cluster; the first is used.
    #[arg(long)]
    points: String,
    #[arg(long)]
    topic: String,
    #[arg(long)]
    group: String,
    /// When the history began, on the monotonic clock.
    #[arg(long)]
    began_ns: u64,
    #[arg(long)]
    first_process: u32,
    #[arg(long)]
    first_number: u64,
    #[arg(long)]
    pause_us: u64,
    #[arg(long)]
    body_bytes: usize,
    #[arg(long)]
    lease_s: u64,
}

impl Arguments {
    fn client_option(&self) -> ClientOption {
        let mut option = ClientOption::default();
        option.set_access_url(self.points.split(';').next().unwrap_or_default());
        option.set_enable_tls(false);
        option.set_long_polling_timeout(LONG_POLL);
        option
    }
}

/// Prints events, and gives processes their numbers.
struct History {
    began_ns: u64,
    next_process: AtomicU32,
}

impl History {
    fn process(&self) -> u32 {
        self.next_process.fetch_add(1, Ordering::Relaxed)
    }

    fn event(&self, process: u32, kind: Kind, op: Operation) {
        // The lock first, so that lines are in the order of their stamps.
        let mut output = std::io::stdout().lock();
        let at_ns = monotonic_ns().saturating_sub(self.began_ns);
        let mut line = serde_json::to_vec(&Event { at_ns, process, kind, op }).expect("an event is JSON");
        line.push(b'\n');
        // Without the harness there is nobody to tell.
        let _ = output.write_all(&line).and_then(|()| output.flush());
    }
}

/// What one process of the history does, one operation after the other.
struct Recorded {
    history: Arc<History>,
    process: u32,
}

impl Recorded {
    fn of(history: &Arc<History>) -> Self {
        Self { history: Arc::clone(history), process: history.process() }
    }

    fn invoke(&self, asked: &Operation) {
        self.history.event(self.process, Kind::Invoke, asked.clone());
    }

    fn ok(&self, answer: Operation) {
        self.history.event(self.process, Kind::Ok, answer);
    }

    /// Nobody knows what came of it, and another process goes on.
    async fn unknown(&mut self, asked: Operation, error: impl std::fmt::Display) {
        self.history.event(self.process, Kind::Info, asked);
        self.process = self.history.process();
        eprintln!("{error}");
        tokio::time::sleep(AFTER_ERROR).await;
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
fn body(number: u64, bytes: usize) -> Vec<u8> {
    let mut body = number.to_be_bytes().to_vec();
    body.resize(bytes.max(8), b'.');
    body
}

/// 0, which no message has, where there is none.
fn number_in(body: &[u8]) -> u64 {
    body.first_chunk::<8>().map_or(0, |head| u64::from_be_bytes(*head))
}

/// The SDK gives up where its node does not answer at once; none where the input ended before.
async fn started<T>(stop: &AtomicBool, start: impl AsyncFn() -> Result<T, ClientError>) -> Option<T> {
    while !stop.load(Ordering::Relaxed) {
        match start().await {
            Ok(client) => return Some(client),
            Err(error) => eprintln!("{error}"),
        }
        tokio::time::sleep(AFTER_ERROR).await;
    }
    None
}

async fn start_producer(arguments: &Arguments, history: &Arc<History>) -> Result<Producer, ClientError> {
    let mut option = ProducerOption::default();
    option.set_topics(vec![arguments.topic.clone()]);
    let mut producer = if arguments.workload == Workload::Transactions {
        Producer::new_transaction_producer(
            option,
            arguments.client_option(),
            Box::new(checker(Arc::clone(history))),
        )?
    } else {
        Producer::new(option, arguments.client_option())?
    };
    producer.start().await?;
    Ok(producer)
}

/// What the SDK does with the answer is not told, so it is unknown whether it was heard.
fn checker(history: Arc<History>) -> impl Fn(String, MessageView) -> TransactionResolution + Send + Sync {
    move |_transaction_id, half| {
        let number = number_in(half.body());
        let (process, commit) = (history.process(), commits(number));
        history.event(process, Kind::Invoke, Operation::End { number, commit });
        history.event(process, Kind::Info, Operation::End { number, commit });
        if commit { TransactionResolution::COMMIT } else { TransactionResolution::ROLLBACK }
    }
}

async fn produce(arguments: &Arguments, history: Arc<History>, stop: &AtomicBool) {
    let Some(mut producer) = started(stop, async || start_producer(arguments, &history).await).await else {
        return;
    };
    let mut recorded = Recorded::of(&history);
    let mut number = arguments.first_number;
    let mut next = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        if arguments.workload == Workload::Transactions {
            let has_died = send_half(&producer, arguments, &mut recorded, number).await;
            if has_died {
                // Says goodbye to nobody; another one, of another client id, goes on.
                drop(producer);
                recorded = Recorded::of(&history);
                match started(stop, async || start_producer(arguments, &history).await).await {
                    Some(another) => producer = another,
                    None => return,
                }
            }
        } else {
            send(&producer, arguments, &mut recorded, number).await;
        }
        number += 1;
        // What was missed while the node was away is not made up for in a burst.
        next = (next + Duration::from_micros(arguments.pause_us)).max(Instant::now());
        tokio::time::sleep_until(next).await;
    }
    if let Err(error) = producer.shutdown().await {
        eprintln!("{error}");
    }
}

async fn send(producer: &Producer, arguments: &Arguments, recorded: &mut Recorded, number: u64) {
    let (topic, body) = (arguments.topic.as_str(), body(number, arguments.body_bytes));
    let mut asked = Sending { number, ..Sending::default() };
    let message = match arguments.workload {
        Workload::Fifo => {
            let group = format!("{}-{}", arguments.first_process, number % MESSAGE_GROUPS);
            asked.message_group = Some(group.clone());
            MessageBuilder::fifo_message_builder(topic, body, group)
        }
        _ => MessageBuilder::builder().set_topic(topic).set_body(body),
    };
    let message = message.build().expect("a topic, a body and nothing that contradicts");
    recorded.invoke(&Operation::Send(asked.clone()));
    match producer.send(message).await {
        Ok(receipt) => {
            let id = Some(receipt.message_id().to_owned());
            recorded.ok(Operation::Send(Sending { id, ..asked }));
        }
        Err(error) => recorded.unknown(Operation::Send(asked), error).await,
    }
}

/// A half and its outcome; whether its producer dies now. One that would die while it says the outcome
/// lives on here.
async fn send_half(producer: &Producer, arguments: &Arguments, recorded: &mut Recorded, number: u64) -> bool {
    let asked = Sending { number, half: true, ..Sending::default() };
    let body = body(number, arguments.body_bytes);
    let half = MessageBuilder::transaction_message_builder(arguments.topic.as_str(), body);
    let half = half.build().expect("a topic, a body and nothing that contradicts");
    recorded.invoke(&Operation::Send(asked.clone()));
    let transaction = match producer.send_transaction_message(half).await {
        Ok(transaction) => transaction,
        Err(error) => {
            recorded.unknown(Operation::Send(asked), error).await;
            return false;
        }
    };
    let id = Some(transaction.message_id().to_owned());
    recorded.ok(Operation::Send(Sending { id, ..asked }));
    match ending(number) {
        Ending::LeftOpen => false,
        Ending::DiesBefore => true,
        Ending::Told | Ending::DiesMeanwhile => {
            let commit = commits(number);
            let asked = Operation::End { number, commit };
            recorded.invoke(&asked);
            let ended = if commit { transaction.commit().await } else { transaction.rollback().await };
            match ended {
                Ok(()) => recorded.ok(asked),
                Err(error) => recorded.unknown(asked, error).await,
            }
            false
        }
    }
}

async fn start_consumer(arguments: &Arguments) -> Result<SimpleConsumer, ClientError> {
    let mut option = SimpleConsumerOption::default();
    option.set_topics(vec![arguments.topic.clone()]);
    option.set_consumer_group(arguments.group.clone());
    let mut consumer = SimpleConsumer::new(option, arguments.client_option())?;
    consumer.start().await?;
    Ok(consumer)
}

fn delivery(message: &MessageView) -> Delivery {
    Delivery {
        number: number_in(message.body()),
        id: message.message_id().to_owned(),
        queue: (String::new(), 0),
        offset: 0,
        attempt: u32::try_from(message.delivery_attempt()).unwrap_or(u32::MAX),
    }
}

async fn consume(arguments: &Arguments, history: Arc<History>, stop: &AtomicBool) {
    let Some(consumer) = started(stop, async || start_consumer(arguments).await).await else {
        return;
    };
    let mut recorded = Recorded::of(&history);
    let everything = FilterExpression::new(FilterType::Tag, "*");
    let lease = Duration::from_secs(arguments.lease_s);
    let lease_ns = u64::try_from(lease.as_nanos()).unwrap_or(u64::MAX);
    while !stop.load(Ordering::Relaxed) {
        let asked = Receiving { group: arguments.group.clone(), lease_ns, ..Receiving::default() };
        recorded.invoke(&Operation::Receive(asked.clone()));
        let received = consumer.receive_with(&arguments.topic, &everything, RECEIVE_BATCH, lease);
        match tokio::time::timeout(RECEIVE_WITHIN, received).await {
            Ok(Ok(messages)) => {
                let deliveries = messages.iter().map(delivery).collect();
                recorded.ok(Operation::Receive(Receiving { messages: deliveries, ..asked }));
                ack(&consumer, arguments, &mut recorded, &messages).await;
            }
            Ok(Err(error)) => recorded.unknown(Operation::Receive(asked), error).await,
            Err(late) => recorded.unknown(Operation::Receive(asked), late).await,
        }
    }
    if let Err(error) = consumer.shutdown().await {
        eprintln!("{error}");
    }
}

/// One after the other: the SDK takes no several, and what follows in a message group must not be
/// acknowledged before what stands in front of it.
async fn ack(
    consumer: &SimpleConsumer,
    arguments: &Arguments,
    recorded: &mut Recorded,
    messages: &[MessageView],
) {
    for message in messages {
        let numbers = vec![number_in(message.body())];
        let asked = Operation::Ack { group: arguments.group.clone(), numbers };
        recorded.invoke(&asked);
        match consumer.ack(message).await {
            Ok(()) => recorded.ok(asked),
            Err(error) => {
                recorded.unknown(asked, error).await;
                if arguments.workload == Workload::Fifo {
                    return;
                }
            }
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let next_process = AtomicU32::new(arguments.first_process);
    let history = Arc::new(History { began_ns: arguments.began_ns, next_process });
    let stop = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&stop);
    let input = std::thread::Builder::new().name("input".to_owned());
    input
        .spawn(move || {
            let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
            told.store(true, Ordering::Relaxed);
        })
        .context("cannot read the input")?;
    match arguments.role {
        Role::Producer => produce(&arguments, history, &stop).await,
        Role::Consumer => consume(&arguments, history, &stop).await,
    }
    Ok(())
}
