//! The clients of a run: what they do by workload, and the order in which they end.
//!
//! First nothing more is sent. Then the consumers go on until all that must arrive has arrived, or
//! nothing new came for longer than a lease and its redelivery. Then what only the cluster knows is
//! asked (transactions without an outcome), and last the consumers end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use clap::ValueEnum;
use ledgermq_client::{Client, ClientOptions, ConsumerOptions, PullOptions, TransactionalProducer};
use ledgermq_faultnet::Dice;
use ledgermq_proto::admin::{CreateTopicRequest, SetConsumerGroupRequest};
use ledgermq_proto::rocketmq::MessageType;
use tokio::task::JoinHandle;

use super::delay::DelaySender;
use super::groups::{Churn, GROUPS};
use super::leases::{LeaseReceiver, OldHandles};
use super::log::{LogReader, Reading, WAIT};
use super::recorder::Recorder;
use super::registers::{RegisterClient, fill_a_queue};
use super::transactions::{TransactionSender, checker, record_undecided};
use super::workload::{LEASE, Receiver, Sender};

const TOPIC: &str = "chaos";
const CONSUMER_GROUP: &str = "chaos-readers";
/// Message groups of one producer: several, so that one that is held does not stop it.
const MESSAGE_GROUPS: u32 = 4;
const QUEUES: u32 = 8;
const CREATE_WITHIN: Duration = Duration::from_secs(30);
/// Consumers stop when nothing new came for this long: longer than the lease of a message whose
/// answer was lost, and its redelivery.
const QUIET: Duration = Duration::from_secs(2 * LEASE.as_secs() + 5);
const POLL: Duration = Duration::from_millis(200);
const AWAIT: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Workload {
    /// Messages without order.
    Queue,
    /// Messages in order by message group.
    Fifo,
    /// Half messages with their outcomes; some are left to the check, some producers die.
    Transactions,
    /// Messages with a due time, some called back.
    Delay,
    /// Leases that run out, are prolonged, shortened, and changed by old handles.
    Leases,
    /// Settings of consumer groups, their offsets, and topics, written and read as registers.
    Registers,
    /// Queues read by offset.
    Log,
    /// Consumer groups that consumers join, leave and die in.
    Groups,
    /// Queue, fifo, transactions, delay and leases at once, each with a topic of its own.
    Mixed,
}

const MIXED: [Workload; 5] =
    [Workload::Queue, Workload::Fifo, Workload::Transactions, Workload::Delay, Workload::Leases];

impl Workload {
    /// As it stands in the name of a history; the first kind goes without.
    pub fn name(self) -> &'static str {
        match self {
            Self::Queue => "",
            Self::Fifo => " fifo",
            Self::Transactions => " transactions",
            Self::Delay => " delay",
            Self::Leases => " leases",
            Self::Registers => " registers",
            Self::Log => " log",
            Self::Groups => " groups",
            Self::Mixed => " mixed",
        }
    }

    /// What is done at once, each of it in a topic of its own.
    pub fn kinds(self) -> &'static [Workload] {
        match self {
            Self::Mixed => &MIXED,
            Self::Queue => &[Self::Queue],
            Self::Fifo => &[Self::Fifo],
            Self::Transactions => &[Self::Transactions],
            Self::Delay => &[Self::Delay],
            Self::Leases => &[Self::Leases],
            Self::Registers => &[Self::Registers],
            Self::Log => &[Self::Log],
            Self::Groups => &[Self::Groups],
        }
    }

    pub fn has_several_topics(self) -> bool {
        self.kinds().len() > 1
    }

    /// Where the history can be judged event by event, whatever its length.
    pub fn can_be_compact(self) -> bool {
        matches!(self, Self::Queue | Self::Fifo | Self::Log | Self::Groups)
    }

    fn message_type(self) -> MessageType {
        match self {
            Self::Fifo => MessageType::Fifo,
            Self::Transactions => MessageType::Transaction,
            Self::Delay => MessageType::Delay,
            _ => MessageType::Normal,
        }
    }

    fn topic(self, among_others: bool) -> String {
        match (among_others, self.name().trim()) {
            (false, _) => TOPIC.to_owned(),
            (true, "") => format!("{TOPIC}-queue"),
            (true, name) => format!("{TOPIC}-{name}"),
        }
    }

    pub fn topics(self) -> Vec<String> {
        self.kinds().iter().map(|kind| kind.topic(self.has_several_topics())).collect()
    }

    /// The first of its topics.
    pub fn main_topic(self) -> String {
        self.kinds().first().map_or_else(String::new, |kind| kind.topic(self.has_several_topics()))
    }

    pub fn main_group(self) -> String {
        group_of(&self.main_topic())
    }
}

fn group_of(topic: &str) -> String {
    if topic == TOPIC { CONSUMER_GROUP.to_owned() } else { format!("{topic}-readers") }
}

/// How much the clients do.
#[derive(Debug, Clone)]
pub struct LoadPlan {
    pub workload: Workload,
    pub points: String,
    pub options: ClientOptions,
    /// None where others produce.
    pub producers: u32,
    pub consumers: u32,
    /// Messages per second of all producers together; 0 sends as fast as answers come.
    pub rate: u32,
    /// Messages of one request, where a workload sends several.
    pub batch: u32,
    pub body_bytes: usize,
    pub seed: u64,
}

impl LoadPlan {
    /// Between the begins of two requests of one producer.
    pub fn pause(&self) -> Duration {
        match self.rate {
            0 => Duration::ZERO,
            rate => {
                let batch = if self.workload == Workload::Queue { self.batch.max(1) } else { 1 };
                Duration::from_secs_f64(f64::from(self.producers * batch) / f64::from(rate))
            }
        }
    }
}

/// Running clients; dropping it ends them wherever they are.
pub struct Load {
    plan: LoadPlan,
    producing: Client,
    recorder: Arc<Recorder>,
    stop_sending: Arc<AtomicBool>,
    stop_receiving: Arc<AtomicBool>,
    senders: Vec<Task<()>>,
    transaction_senders: Vec<Task<(TransactionalProducer, u64)>>,
    receivers: Vec<Task<anyhow::Result<()>>>,
    /// Asked about transactions until the end.
    checking: Vec<TransactionalProducer>,
}

struct Task<T>(JoinHandle<T>);

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl<T: Send + 'static> Task<T> {
    fn spawn(future: impl Future<Output = T> + Send + 'static) -> Self {
        Self(tokio::spawn(future))
    }

    async fn end(mut self, who: &str) -> anyhow::Result<T> {
        (&mut self.0).await.with_context(|| format!("a {who} ended early"))
    }
}

impl Load {
    /// Makes what the clients need, and starts them.
    pub async fn start(plan: LoadPlan, recorder: &Arc<Recorder>) -> anyhow::Result<Self> {
        let producing = Client::connect(&plan.points, plan.options.clone()).await?;
        let consuming = Client::connect(&plan.points, plan.options.clone()).await?;
        let mut load = Self {
            plan,
            producing,
            recorder: Arc::clone(recorder),
            stop_sending: Arc::default(),
            stop_receiving: Arc::default(),
            senders: Vec::new(),
            transaction_senders: Vec::new(),
            receivers: Vec::new(),
            checking: Vec::new(),
        };
        let kinds = load.plan.workload.kinds();
        for kind in kinds {
            load.prepare(*kind).await?;
        }
        for kind in kinds {
            load.start_consumers(*kind, &consuming);
        }
        let each = u32::try_from(kinds.len()).unwrap_or(1);
        for kind in kinds {
            load.start_producers(*kind, each).await?;
        }
        Ok(load)
    }

    fn topic_of(&self, kind: Workload) -> String {
        kind.topic(self.plan.workload.has_several_topics())
    }

    /// The topic of the kind's type, and a consumer group that keeps order where there is one.
    async fn prepare(&self, kind: Workload) -> anyhow::Result<()> {
        let (name, admin) = (self.topic_of(kind), self.producing.admin());
        let group = group_of(&name);
        let message_type = kind.message_type() as i32;
        let request = CreateTopicRequest { name, queues: QUEUES, message_type, groups: Vec::new() };
        let created = tokio::time::timeout(CREATE_WITHIN, admin.create_topic(request)).await;
        created.context("the topic could not be created in time")??;
        if kind == Workload::Fifo {
            self.keep_order(group).await?;
        }
        Ok(())
    }

    /// Makes this a consumer group that gets message groups in order.
    pub async fn keep_order(&self, group: String) -> anyhow::Result<()> {
        let request =
            SetConsumerGroupRequest { name: group, fifo: Some(true), ..SetConsumerGroupRequest::default() };
        let admin = self.producing.admin();
        let set = tokio::time::timeout(CREATE_WITHIN, admin.set_consumer_group(request)).await;
        set.context("the consumer group could not be set in time")??;
        Ok(())
    }

    fn start_consumers(&mut self, kind: Workload, client: &Client) {
        let topic = self.topic_of(kind);
        let group = group_of(&topic);
        match kind {
            Workload::Registers => {}
            Workload::Log => {
                for reader in 0..self.plan.consumers {
                    let reading = if reader == 0 { Reading::Again } else { Reading::On };
                    let reader = self.log_reader(client, format!("{topic}-log-{reader}"), reading);
                    self.receivers.push(Task::spawn(reader.run()));
                }
            }
            Workload::Groups => {
                for number in 0..GROUPS {
                    let group = format!("{topic}-group-{number}");
                    self.recorder.awaits(&topic, &group);
                    let churn = Churn {
                        points: self.plan.points.clone(),
                        options: self.plan.options.clone(),
                        recorder: Arc::clone(&self.recorder),
                        topic: topic.clone(),
                        group,
                        dice: Dice::new(self.plan.seed ^ u64::from(number + 1) << 32),
                        settle: Arc::clone(&self.stop_sending),
                        stop: Arc::clone(&self.stop_receiving),
                    };
                    self.receivers.push(Task::spawn(churn.run()));
                }
            }
            _ => {
                self.recorder.awaits(&topic, &group);
                let old_handles = OldHandles::default();
                for _ in 0..self.plan.consumers {
                    let options = ConsumerOptions::new(group.clone())
                        .subscribe(&topic, "*")
                        .await_duration(AWAIT)
                        .invisible_duration(LEASE);
                    let (consumer, recorder) = (client.simple_consumer(options), Arc::clone(&self.recorder));
                    let (topic, group) = (topic.clone(), group.clone());
                    let stop = Arc::clone(&self.stop_receiving);
                    let done = |()| Ok(());
                    let task = if kind == Workload::Leases {
                        let old_handles = Arc::clone(&old_handles);
                        let receiver = LeaseReceiver { consumer, recorder, topic, group, old_handles, stop };
                        Task::spawn(async move { done(receiver.run().await) })
                    } else {
                        let receiver = Receiver { consumer, recorder, topic, group, stop };
                        Task::spawn(async move { done(receiver.run().await) })
                    };
                    self.receivers.push(task);
                }
            }
        }
    }

    fn log_reader(&self, client: &Client, group: String, reading: Reading) -> LogReader {
        let topic = self.topic_of(Workload::Log);
        self.recorder.awaits(&topic, &group);
        LogReader {
            consumer: client.pull_consumer(PullOptions::new(&group).await_duration(WAIT)),
            recorder: Arc::clone(&self.recorder),
            topic,
            group,
            reading,
            stop: Arc::clone(&self.stop_sending),
        }
    }

    /// `each` kinds share the producers and the rate.
    async fn start_producers(&mut self, kind: Workload, each: u32) -> anyhow::Result<()> {
        let client = &self.producing;
        let (topic, body_bytes) = (self.topic_of(kind), self.plan.body_bytes);
        if self.plan.producers == 0 {
            if kind == Workload::Transactions {
                // An SDK may lose the stream that asks it about a half, or end while one is open.
                let checker = checker(Arc::clone(&self.recorder));
                self.checking.push(client.transactional_producer([topic], checker));
            }
            return Ok(());
        }
        let producers = (self.plan.producers / each).max(1);
        // As many requests a second as all producers were to send, whatever their number is now.
        let pause = self.plan.pause().mul_f64(f64::from(producers * each) / f64::from(self.plan.producers));
        let queue = match kind {
            Workload::Registers => Some(fill_a_queue(client, &topic).await?),
            _ => None,
        };
        for producer in 0..producers {
            let (recorder, stop) = (Arc::clone(&self.recorder), Arc::clone(&self.stop_sending));
            let topic = topic.clone();
            match (kind, &queue) {
                (Workload::Transactions, _) => {
                    let client = client.clone();
                    let sender = TransactionSender { client, recorder, topic, body_bytes, pause, stop };
                    self.transaction_senders.push(Task::spawn(sender.run()));
                }
                (Workload::Registers, Some(queue)) => {
                    // Each begins at another node: so what one of them says is compared with the others.
                    let points = rotated(&self.plan.points, producer as usize);
                    let client = Client::connect(&points, self.plan.options.clone()).await?;
                    let queue = queue.clone();
                    let register = RegisterClient { client, recorder, queue, pause, stop };
                    self.senders.push(Task::spawn(register.run()));
                }
                (Workload::Delay, _) => {
                    let producer = client.producer();
                    let sender = DelaySender { producer, recorder, topic, body_bytes, pause, stop };
                    self.senders.push(Task::spawn(sender.run()));
                }
                _ => {
                    let groups = 0..MESSAGE_GROUPS;
                    let message_groups = match kind {
                        Workload::Fifo => groups.map(|group| format!("{producer}-{group}")).collect(),
                        _ => Vec::new(),
                    };
                    let batch = if self.plan.workload == Workload::Queue { self.plan.batch } else { 1 };
                    let producer = client.producer();
                    let sender =
                        Sender { producer, recorder, topic, body_bytes, message_groups, batch, pause, stop };
                    self.senders.push(Task::spawn(sender.run()));
                }
            }
        }
        Ok(())
    }

    pub async fn stop_sending(&mut self) -> anyhow::Result<()> {
        self.stop_sending.store(true, Ordering::Relaxed);
        for sender in self.senders.drain(..) {
            sender.end("producer").await?;
        }
        let mut died = 0;
        let can_die = !self.transaction_senders.is_empty();
        for sender in self.transaction_senders.drain(..) {
            let (producer, of_sender) = sender.end("producer").await?;
            died += of_sender;
            self.checking.push(producer);
        }
        if can_die {
            self.recorder.prove(format!("{died} producers died between a half and its outcome"));
        }
        Ok(())
    }

    /// Until everything came, or nothing comes any more.
    pub async fn settle(&self) {
        while self.recorder.open() > 0 && self.recorder.quiet_for() < QUIET {
            tokio::time::sleep(POLL).await;
        }
        for kind in self.plan.workload.kinds() {
            if *kind == Workload::Transactions {
                record_undecided(&self.producing.admin(), &self.recorder, &self.topic_of(*kind)).await;
            }
        }
        // What was decided only now comes now.
        while self.recorder.open() > 0 && self.recorder.quiet_for() < QUIET {
            tokio::time::sleep(POLL).await;
        }
    }

    pub async fn stop_receiving(&mut self) -> anyhow::Result<()> {
        self.stop_receiving.store(true, Ordering::Relaxed);
        for receiver in self.receivers.drain(..) {
            receiver.end("consumer").await??;
        }
        if self.plan.workload.kinds().contains(&Workload::Log) {
            let last = format!("{}-log-last", self.topic_of(Workload::Log));
            let reader = self.log_reader(&self.producing, last, Reading::On);
            Task::spawn(reader.run()).end("reader").await??;
        }
        for producer in self.checking.drain(..) {
            producer.close().await;
        }
        Ok(())
    }
}

/// The access points, beginning at another one.
pub fn rotated(points: &str, by: usize) -> String {
    let mut points: Vec<&str> = points.split(';').collect();
    let by = by % points.len().max(1);
    points.rotate_left(by);
    points.join(";")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_that_run_together_have_topics_and_groups_of_their_own() {
        let topics: Vec<String> = Workload::Mixed.kinds().iter().map(|kind| kind.topic(true)).collect();
        for (position, topic) in topics.iter().enumerate() {
            assert!(!topics[..position].contains(topic), "{topics:?}");
        }
        assert_eq!(rotated("a:1;b:2;c:3", 4), "b:2;c:3;a:1");
        assert_eq!(Workload::Fifo.main_topic(), TOPIC);
        assert_eq!(Workload::Fifo.main_group(), CONSUMER_GROUP);
        assert_ne!(Workload::Mixed.main_group(), CONSUMER_GROUP);
    }
}
