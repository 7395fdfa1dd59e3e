//! A broker group this process carries a replica of: its log, its state, and what only its leader
//! needs.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use ledgermq_common::clock::{Clock, UnixMillis};
use ledgermq_common::{ConsumerGroupName, GroupId, GroupName, NodeId, QueueId, QueueOffset, Term, TopicName};
use ledgermq_edge::codes::topic_not_found;
use ledgermq_edge::context::CallContext;
use ledgermq_edge::group_call::{GroupResponse, Leadership, NotExecuted, Refused};
use ledgermq_proto::rocketmq::Code;
use ledgermq_raft_store::{Group, ProposeError};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, watch};

use super::append_room::AppendRoom;
use super::arrivals::Arrivals;
use super::check_back::CheckBack;
use super::clients::Liveness;
use super::lite::Told;
use super::order_keys::OrderKeys;
use super::retention::{LastLook, RetentionSettings};
use super::subscriptions::Subscriptions;
use super::waiters::Waiters;
use crate::metrics::Metrics;
use crate::state::{
    Answer, BrokerState, Command, ConsumerGroupId, ConsumerGroupSettings, ConsumerGroupView,
    CreateConsumerGroup, CreateTopic, Refusal, TopicId, TopicSettings, TopicView,
};

/// What the configuration says about requests.
#[derive(Debug, Clone)]
pub struct Settings {
    pub auto_create_topics: bool,
    pub default_queues: u32,
    /// How far ahead the time of a delayed message may be.
    pub delay_max_ms: u64,
    /// What delivered messages name as the host that stored them.
    pub store_host: String,
    pub transactions: TransactionSettings,
    pub retention: RetentionSettings,
    /// How long the filter of a silent member of a consumer group counts, where members differ.
    pub subscription_lapse: Duration,
}

/// When producers are asked for the outcome of a transaction they left open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransactionSettings {
    /// How long a half waits for its outcome before the first check, unless its producer asks for more.
    pub timeout_ms: u64,
    pub check_interval_ms: u64,
    pub checks_max: u32,
}

pub struct HostedGroup {
    pub(super) id: GroupId,
    pub(super) name: GroupName,
    pub(super) node: NodeId,
    pub(super) group: Group,
    pub(super) state: Arc<BrokerState>,
    pub(super) waiters: Arc<Waiters>,
    pub(super) liveness: Liveness,
    pub(super) arrivals: Arrivals,
    pub(super) subscriptions: Subscriptions,
    pub(super) check_back: Arc<CheckBack>,
    pub(super) order_keys: OrderKeys,
    pub(super) told: Told,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) settings: Settings,
    pub(super) metrics: Arc<Metrics>,
    /// A delayed message was stored: the next timer may be another one.
    pub(super) timers_changed: Arc<Notify>,
    /// What the last look after the log found; old on a replica that leads no more.
    pub(super) last_look: Mutex<LastLook>,
    /// A topic whose growth this broker group drives began to grow.
    pub(super) growth_began: Arc<Notify>,
    /// Turns true once, when the process begins to leave.
    pub(super) stopping: watch::Receiver<bool>,
    raft_leadership: watch::Receiver<ledgermq_raft_store::Leadership>,
    leadership: watch::Receiver<Leadership>,
    rotation: Rotation,
    pub(super) append_room: AppendRoom,
    /// Rises with every topic this leader created or deleted.
    topic_changes: watch::Sender<u64>,
}

/// How far a consumer group is with a topic in one broker group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Consumption {
    pub group: String,
    pub consumer_group: String,
    pub topic: String,
    /// Not delivered yet.
    pub ready: u64,
    /// Delivered, not acknowledged.
    pub inflight: u64,
    /// Gone before the group had read it, since ever.
    pub expired_unread: u64,
}

/// The parts a hosted group is made of.
pub struct Parts {
    pub name: GroupName,
    pub group: Group,
    pub state: Arc<BrokerState>,
    pub waiters: Arc<Waiters>,
    pub clock: Arc<dyn Clock>,
    pub settings: Settings,
    pub metrics: Arc<Metrics>,
    pub stopping: watch::Receiver<bool>,
}

/// A request ended without what it asked for.
#[derive(Debug)]
pub enum Ended {
    /// By the leader's decision: the client is told.
    Refused(Refused),
    /// Not by a decision: the edge tries elsewhere or again.
    NotExecuted(NotExecuted),
}

impl From<Refused> for Ended {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused)
    }
}

impl From<NotExecuted> for Ended {
    fn from(not_executed: NotExecuted) -> Self {
        Self::NotExecuted(not_executed)
    }
}

impl Ended {
    pub fn into_response(self) -> Result<GroupResponse, NotExecuted> {
        match self {
            Self::Refused(refused) => Ok(GroupResponse::Refused(refused)),
            Self::NotExecuted(not_executed) => Err(not_executed),
        }
    }
}

impl HostedGroup {
    pub fn new(parts: Parts) -> Arc<Self> {
        let raft_leadership = parts.group.leadership();
        let (announce, leadership) = watch::channel(for_edge(*raft_leadership.borrow()));
        let hosted = Arc::new(Self {
            id: parts.group.id(),
            name: parts.name,
            node: parts.group.node(),
            group: parts.group,
            state: parts.state,
            waiters: parts.waiters,
            liveness: Liveness::default(),
            arrivals: Arrivals::default(),
            subscriptions: Subscriptions::new(parts.settings.subscription_lapse),
            check_back: Arc::default(),
            order_keys: OrderKeys::default(),
            told: Told::default(),
            clock: parts.clock,
            settings: parts.settings,
            metrics: parts.metrics,
            timers_changed: Arc::default(),
            last_look: Mutex::default(),
            growth_began: Arc::default(),
            stopping: parts.stopping,
            raft_leadership,
            leadership,
            rotation: Rotation::default(),
            append_room: AppendRoom::default(),
            topic_changes: watch::Sender::new(0),
        });
        tokio::spawn(follow_leadership(Arc::downgrade(&hosted), announce));
        hosted
    }

    pub fn id(&self) -> GroupId {
        self.id
    }

    pub fn name(&self) -> &GroupName {
        &self.name
    }

    pub fn group(&self) -> &Group {
        &self.group
    }

    pub fn state(&self) -> &Arc<BrokerState> {
        &self.state
    }

    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership.clone()
    }

    pub fn last_look(&self) -> LastLook {
        *self.last_look.lock()
    }

    pub fn leads(&self) -> bool {
        self.raft_leadership.borrow().is_leader_ready
    }

    pub fn raft_leadership(&self) -> watch::Receiver<ledgermq_raft_store::Leadership> {
        self.raft_leadership.clone()
    }

    /// Returns once this replica may answer as the leader: it leads, and has applied everything
    /// earlier leaders acknowledged. A new leader gets there within one round trip, so waiting is
    /// better than sending the caller away and back.
    pub(super) async fn leader_ready(&self, context: &CallContext) -> Result<(), NotExecuted> {
        if self.leads() {
            return Ok(());
        }
        let mut leadership = self.raft_leadership.clone();
        loop {
            let now = *leadership.borrow_and_update();
            if now.leader != Some(self.node) {
                return Err(NotExecuted::NotLeader { leader: now.leader, term: now.term });
            }
            if now.is_leader_ready {
                return Ok(());
            }
            tokio::select! {
                changed = leadership.changed() => changed.map_err(|_| NotExecuted::Stopping)?,
                () = tokio::time::sleep_until(context.deadline) => return Err(NotExecuted::DeadlinePassed),
            }
        }
    }

    /// Leadership did not go while a request waited.
    pub(super) fn leader_still(&self) -> Result<(), NotExecuted> {
        let now = *self.raft_leadership.borrow();
        if now.leader == Some(self.node) {
            Ok(())
        } else {
            Err(NotExecuted::NotLeader { leader: now.leader, term: now.term })
        }
    }

    pub fn topic_names(&self) -> impl Iterator<Item = String> {
        self.state.topics().into_iter().map(|topic| topic.name)
    }

    pub fn consumer_group_names(&self) -> impl Iterator<Item = String> {
        self.state.consumer_groups().into_iter().map(|group| group.name)
    }

    /// How many transactions of each topic have no outcome yet.
    pub fn half_messages(&self) -> Vec<(String, u64)> {
        let counts = self.state.half_messages().into_iter();
        counts.filter_map(|(topic, halves)| Some((self.state.topic_by_id(topic)?.name, halves))).collect()
    }

    /// What every consumer group has before it in every topic it reads, at most `max` of them.
    pub fn consumptions(&self, max: usize) -> Vec<Consumption> {
        let groups = self.state.consumer_groups().into_iter();
        groups
            .flat_map(|group| {
                let topics = self.state.subscribed_topics(group.id);
                topics.into_iter().map(move |topic| (group.clone(), topic))
            })
            .take(max)
            .filter_map(|(group, topic)| {
                let lag = self.state.lag(group.id, topic);
                Some(Consumption {
                    group: self.name.to_string(),
                    consumer_group: group.name,
                    topic: self.state.topic_by_id(topic)?.name,
                    ready: lag.ready,
                    inflight: lag.in_flight,
                    expired_unread: self.state.expired_unread(group.id, topic),
                })
            })
            .collect()
    }

    /// Consumer groups and topics about which members do not agree, with the number of their filters; at
    /// most `max` of them.
    pub fn differing_filters(&self, max: usize) -> Vec<(String, String, usize)> {
        let conflicts = self.subscriptions.conflicts(max).into_iter();
        conflicts
            .filter_map(|conflict| {
                let consumer_group = self.state.consumer_group_by_id(conflict.consumer_group)?.name;
                Some((consumer_group, self.state.topic_by_id(conflict.topic)?.name, conflict.filters.len()))
            })
            .collect()
    }

    /// Which delivery of the message is under way, from 1.
    pub(super) fn delivery_attempt(
        &self,
        consumer_group: ConsumerGroupId,
        topic: TopicId,
        queue: QueueId,
        offset: QueueOffset,
    ) -> Option<u32> {
        let applied = self.state.applied_state();
        let progress = applied.subscriptions.get(&(consumer_group, topic))?.queues.get(&queue.get())?;
        progress.leases.get(&offset.get()).map(|lease| lease.attempt)
    }

    pub(super) fn now(&self) -> UnixMillis {
        self.clock.now()
    }

    /// Proposes a command the leader's clock has stamped, and reads the answer of apply.
    pub(super) async fn propose(&self, command: Bytes) -> Result<Answer, Ended> {
        let answer = self.group.propose(command).await.map_err(|error| self.ended(error))?;
        Ok(Answer::decode(&answer).expect("apply of this same process encoded the answer"))
    }

    /// The topic, made now where it is missing and the settings allow it.
    pub(super) async fn topic_or_create(&self, name: &TopicName) -> Result<TopicView, Ended> {
        if let Some(topic) = self.state.topic(name.as_str()) {
            return Ok(topic);
        }
        if !self.settings.auto_create_topics {
            return Err(topic_not_found(name.as_str()).into());
        }
        self.create_topic(name, TopicSettings::normal(self.settings.default_queues)).await?;
        self.state.topic(name.as_str()).ok_or_else(|| topic_not_found(name.as_str()).into())
    }

    /// Whether it was this call that created the topic.
    pub(super) async fn create_topic(
        &self,
        name: &TopicName,
        settings: TopicSettings,
    ) -> Result<bool, Ended> {
        let create = CreateTopic { name: name.to_string(), settings };
        match self.propose(Command::CreateTopic(create).encode(self.now())).await? {
            Answer::Topic { created, .. } => {
                if created {
                    self.topics_changed();
                }
                Ok(created)
            }
            other => Err(unexpected("CreateTopic", &other)),
        }
    }

    /// The consumer group; the first consumer of a name makes the group in the log.
    pub(super) async fn consumer_group_or_create(
        &self,
        name: &ConsumerGroupName,
    ) -> Result<ConsumerGroupView, Ended> {
        if let Some(group) = self.state.consumer_group(name.as_str()) {
            return Ok(group);
        }
        let create =
            CreateConsumerGroup { name: name.to_string(), settings: ConsumerGroupSettings::default() };
        match self.propose(Command::CreateConsumerGroup(create).encode(self.now())).await? {
            Answer::ConsumerGroup { .. } => {}
            other => return Err(unexpected("CreateConsumerGroup", &other)),
        }
        self.state.consumer_group(name.as_str()).ok_or_else(|| {
            Ended::Refused(Refused::new(
                Code::ConsumerGroupNotFound,
                format!("consumer group \"{name}\" was deleted meanwhile"),
            ))
        })
    }

    pub(super) fn topics_changed(&self) {
        self.topic_changes.send_modify(|changes| *changes = changes.wrapping_add(1));
    }

    /// Changes value when a topic was created or deleted here. All such changes pass the leader,
    /// so its own are all there are while it leads.
    pub fn topic_changes(&self) -> watch::Receiver<u64> {
        self.topic_changes.subscribe()
    }

    /// The next queue of the topic in turn.
    pub(super) fn next_queue(&self, topic: &TopicView) -> QueueId {
        self.rotation.next(topic.id, topic.settings.queues)
    }

    fn ended(&self, error: ProposeError) -> Ended {
        match error {
            ProposeError::NotLeader { leader } => NotExecuted::NotLeader { leader, term: self.term() }.into(),
            ProposeError::OutcomeUnknown => {
                NotExecuted::OutcomeUnknown { detail: ProposeError::OutcomeUnknown.to_string() }.into()
            }
            ProposeError::Overloaded => {
                NotExecuted::Overloaded { limit: "the number of commands that wait for the log".to_owned() }
                    .into()
            }
            ProposeError::TooLarge { .. } => Refused::new(Code::PayloadTooLarge, error.to_string()).into(),
            ProposeError::Stopped => NotExecuted::Stopping.into(),
        }
    }

    pub(super) fn term(&self) -> Term {
        self.raft_leadership.borrow().term
    }
}

/// What apply said no to, in the client's terms.
pub fn refused(refusal: Refusal, topic: &str) -> Refused {
    match refusal {
        Refusal::TopicUnknown => topic_not_found(topic),
        Refusal::ConsumerGroupUnknown => Refused::new(Code::ConsumerGroupNotFound, refusal.to_string()),
        Refusal::QueueUnknown
        | Refusal::QueueCount
        | Refusal::QueuesCannotShrink
        | Refusal::QueuesOfOrderedTopic
        | Refusal::TopicWithoutOrder => Refused::new(Code::BadRequest, refusal.to_string()),
        Refusal::GenerationUnderWay
        | Refusal::GenerationNotPrepared
        | Refusal::GenerationNotClosed
        | Refusal::GenerationEnded
        | Refusal::TooManyGenerations => Refused::new(Code::PreconditionFailed, refusal.to_string()),
        Refusal::TransactionUnknown | Refusal::TransactionOfOtherTopic => {
            Refused::new(Code::InvalidTransactionId, refusal.to_string())
        }
        Refusal::TooManyTransactions => Refused::new(Code::TooManyRequests, refusal.to_string()),
        Refusal::OffsetOutOfRange => Refused::new(Code::IllegalOffset, refusal.to_string()),
        Refusal::NotLite | Refusal::LiteBinding => Refused::new(Code::BadRequest, refusal.to_string()),
        Refusal::LiteTopics => Refused::new(Code::LiteTopicQuotaExceeded, refusal.to_string()),
        Refusal::LiteClientQuota | Refusal::LiteSubscriptions => {
            Refused::new(Code::LiteSubscriptionQuotaExceeded, refusal.to_string())
        }
        Refusal::Malformed => Refused::new(Code::InternalServerError, refusal.to_string()),
    }
}

pub fn unexpected(command: &str, answer: &Answer) -> Ended {
    if let Answer::Refused(refusal) = answer {
        return refused(*refusal, "").into();
    }
    Refused::new(Code::InternalServerError, format!("{command} got an answer of another command")).into()
}

fn for_edge(leadership: ledgermq_raft_store::Leadership) -> Leadership {
    Leadership { term: leadership.term, leader: leadership.leader }
}

/// Tells the edge who leads. Long polls watch leadership themselves.
async fn follow_leadership(hosted: std::sync::Weak<HostedGroup>, announce: watch::Sender<Leadership>) {
    let Some(mut leadership) = hosted.upgrade().map(|hosted| hosted.raft_leadership.clone()) else { return };
    let mut led = false;
    loop {
        let now = *leadership.borrow_and_update();
        announce.send_if_modified(|told| {
            let changed = *told != for_edge(now);
            *told = for_edge(now);
            changed
        });
        let Some(hosted) = hosted.upgrade() else { return };
        if now.is_leader_ready && !led {
            hosted.liveness.leadership_began();
        }
        led = now.is_leader_ready;
        drop(hosted);
        if leadership.changed().await.is_err() {
            return;
        }
    }
}

/// Round robin per topic, so that the messages of a topic spread evenly whatever other topics do.
#[derive(Debug, Default)]
struct Rotation(RwLock<BTreeMap<TopicId, AtomicU32>>);

impl Rotation {
    /// Deleted topics leave their counter behind; at this many all start again from queue 0.
    const TOPICS_MAX: usize = 1_000_000;

    fn next(&self, topic: TopicId, queues: u32) -> QueueId {
        assert!(queues > 0, "a topic has at least one queue");
        if let Some(next) = self.0.read().get(&topic) {
            return QueueId(next.fetch_add(1, Ordering::Relaxed) % queues);
        }
        let mut topics = self.0.write();
        if topics.len() >= Self::TOPICS_MAX {
            topics.clear();
        }
        QueueId(topics.entry(topic).or_default().fetch_add(1, Ordering::Relaxed) % queues)
    }
}
