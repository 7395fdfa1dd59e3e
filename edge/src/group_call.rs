//! The call path to a broker group: what the edge asks, what a leader answers, and who executes.
//!
//! [`LocalGroups`] is implemented by the broker for the groups this process hosts; the edge calls
//! it where this node leads and forwards to the leader where it does not. A nameserver has
//! [`NoLocalGroups`].
//!
//! Promises between the two sides:
//!
//! | Side | Promise |
//! |---|---|
//! | edge | names, sizes, durations and filters of a request have passed every check that needs no state |
//! | edge | a request may be executed twice, on two leaders; never with different content |
//! | edge | drops the future of a long poll when the client has gone; lets every other request finish |
//! | executor | `Ok` only after the command is committed, applied and durable on a majority |
//! | executor | `NotLeader`, `Overloaded`, `DeadlinePassed`, `Stopping`, `NotHosted`: no effect, now or later |
//! | executor | returns at once when leadership is lost; holding is the edge's work |

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use ledgermq_common::clock::UnixMillis;
use ledgermq_common::limits::LITE_SUBSCRIPTIONS_PER_CLIENT;
use ledgermq_common::transaction_id::TransactionId;
use ledgermq_common::{
    ConsumerGroupName, GroupName, NodeId, QueueId, QueueLayout, QueueOffset, ResetMark, Term, TopicName,
};
use ledgermq_filter::Expression;
use ledgermq_proto::admin::{
    GroupOperation, GroupOperationResult, ListTransactionsRequest, ListTransactionsResponse,
    ShowTopicResponse, ShowTransactionResponse,
};
use ledgermq_proto::rocketmq::{
    AckMessageRequest, AckMessageResponse, ChangeInvisibleDurationRequest, ChangeInvisibleDurationResponse,
    ClientType, Code, ForwardMessageToDeadLetterQueueRequest, LiteSubscriptionAction, Message, MessageType,
    OffsetOption, RecallMessageRequest, RecallMessageResponse, SendMessageRequest, SendMessageResponse,
    Status,
};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::arrival::Arrival;
use crate::context::CallContext;
use crate::transactions::{AskedTransaction, AwaitTransactionChecks, EndTransaction, TransactionCheck};

/// Executes requests for the groups whose replicas live in this process.
#[async_trait]
pub trait LocalGroups: Send + Sync + 'static {
    /// `None` on a node without groups, which is a nameserver.
    fn node(&self) -> Option<NodeId>;

    fn hosted(&self) -> Vec<GroupName>;

    fn hosts(&self, group: &GroupName) -> bool {
        self.leadership(group).is_some()
    }

    /// The leader of a hosted group, as the replica here knows it; `None` if it is not hosted.
    fn leadership(&self, group: &GroupName) -> Option<watch::Receiver<Leadership>>;

    async fn execute(
        &self,
        group: &GroupName,
        context: &CallContext,
        request: &GroupRequest,
    ) -> Result<GroupResponse, NotExecuted>;
}

/// What a replica knows about the leader of its group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Leadership {
    pub term: Term,
    pub leader: Option<NodeId>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum GroupRequest {
    /// At least one message, all of one topic. The executor chooses the queue.
    Send(SendRequest),
    Receive(ReceiveRequest),
    /// Every entry's handle parsed and names the group that is asked.
    Ack(AckMessageRequest),
    /// As `Ack`. The duration is within its bounds; 0 and other small values are nacks.
    ChangeInvisible(ChangeInvisibleDurationRequest),
    DescribeTopic(DescribeTopic),
    CreateTopic(CreateTopic),
    DeleteTopic(TopicName),
    ListTopics,
    ShowTopic(TopicName),
    DescribeConsumerGroup(ConsumerGroupName),
    ClientHeartbeat(ClientHeartbeat),
    ClientTermination(ClientTermination),
    EndTransaction(EndTransaction),
    AwaitTransactionChecks(AwaitTransactionChecks),
    TransactionsAsked(Vec<AskedTransaction>),
    ListTransactions(ListTransactionsRequest),
    ShowTransaction(TransactionId),
    /// With a handle it parsed and names the group that is asked; without one the message id says which.
    DeadLetter(ForwardMessageToDeadLetterQueueRequest),
    /// The handle parsed and names the group that is asked.
    Recall(RecallMessageRequest),
    Pull(PullRequest),
    Offset(OffsetRequest),
    SyncLite(SyncLite),
    AwaitTakenLite(AwaitTakenLite),
    StoreBatch(StoreBatch),
    /// An administrator's, for this group.
    Operation(GroupOperation),
}

impl GroupRequest {
    /// It waits for something to happen; whoever asked may go away meanwhile.
    pub fn is_long_poll(&self) -> bool {
        matches!(
            self,
            Self::Receive(_) | Self::Pull(_) | Self::AwaitTransactionChecks(_) | Self::AwaitTakenLite(_)
        )
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct SendRequest {
    pub topic: TopicName,
    pub request: SendMessageRequest,
    /// By which generation of queues the messages were placed; 0 for a topic without order.
    pub generation: u32,
}

/// Messages of several topics for one log entry. At least one message; every one is of a topic in `topics`,
/// which are distinct, and of a kind a batch takes; the ids of a topic differ. A message of a topic with
/// order carries its queue.
#[derive(Debug, Clone, PartialEq)]
pub struct StoreBatch {
    pub topics: Vec<BatchTopic>,
    pub messages: Vec<Message>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchTopic {
    pub name: TopicName,
    /// By which generation of queues its messages were placed; 0 for a topic without order.
    pub generation: u32,
}

/// Where a message of a batch is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchPlace {
    pub queue: QueueId,
    pub offset: QueueOffset,
    /// It was stored before; this is where.
    pub is_repeat: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReceiveRequest {
    pub consumer_group: ConsumerGroupName,
    pub topic: TopicName,
    /// 1..=`RECEIVE_BATCH_MESSAGES_MAX`.
    pub batch_size: u32,
    /// Within its bounds; with `auto_renew` the length of the first lease.
    pub invisible_ms: u64,
    pub auto_renew: bool,
    pub filter: Filter,
    pub attempt_id: Option<String>,
    /// When to stop waiting for a message. The answer must leave the executor by then.
    pub poll_until: Instant,
}

/// Messages of one queue from an offset on, without leases.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PullRequest {
    pub consumer_group: ConsumerGroupName,
    pub topic: TopicName,
    pub queue: QueueId,
    pub offset: QueueOffset,
    /// 1..=`RECEIVE_BATCH_MESSAGES_MAX`.
    pub batch_size: u32,
    pub filter: Filter,
    /// When to stop waiting for a message.
    pub poll_until: Instant,
}

/// The part of a SyncLiteSubscription that one broker group carries. Names are checked.
#[derive(Debug, Clone, PartialEq)]
pub struct SyncLite {
    pub consumer_group: ConsumerGroupName,
    pub topic: TopicName,
    pub action: LiteSubscriptionAction,
    pub lite_topics: Vec<String>,
    /// 0 where the client gave none.
    pub version: u64,
    pub offset_option: Option<OffsetOption>,
}

/// Waits until a lite topic was taken from one of these clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AwaitTakenLite {
    /// Sorted.
    pub client_ids: Vec<String>,
    pub poll_until: Instant,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TakenLite {
    pub client_id: String,
    pub lite_topic: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OffsetRequest {
    pub topic: TopicName,
    pub queue: QueueId,
    pub query: OffsetQuery,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OffsetQuery {
    Committed(ConsumerGroupName),
    Update(OffsetUpdate),
    Beginning,
    End,
    /// Of the first message stored at this time or later.
    At(UnixMillis),
}

/// A consumer group is at an offset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OffsetUpdate {
    pub consumer_group: ConsumerGroupName,
    pub offset: QueueOffset,
    /// The last reset its client knows of, where it says so.
    pub known: Option<ResetMark>,
}

/// Where a consumer group is in a queue, if anywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommittedOffset {
    pub offset: Option<QueueOffset>,
    pub last_reset: ResetMark,
}

/// What is in force in place of an offset that was not committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommitSuperseded {
    /// The group is further on.
    By(QueueOffset),
    /// The group was reset since the client asked where it is.
    ByReset(ResetMark),
}

/// Which messages a consumer wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Filter {
    All,
    /// A message whose tag equals one of these. With none, nothing matches.
    Tags(Vec<String>),
    /// A message whose properties make the expression true.
    Sql(Arc<Expression>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DescribeTopic {
    pub name: TopicName,
    /// Somebody wants to use it: create it if the executor's settings allow that.
    pub create_if_missing: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreateTopic {
    pub name: TopicName,
    /// 0: the executor's default.
    pub queues: u32,
    pub message_type: MessageType,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientHeartbeat {
    pub client_type: ClientType,
    pub consumer_group: Option<ConsumerGroupName>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientTermination {
    pub consumer_group: Option<ConsumerGroupName>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum GroupResponse {
    Send(SendMessageResponse),
    Receive(Received),
    Ack(AckMessageResponse),
    ChangeInvisible(ChangeInvisibleDurationResponse),
    /// DescribeTopic (none or one), CreateTopic (one), ListTopics (any number, by name).
    Topics(Vec<TopicDescription>),
    ShowTopic(ShowTopicResponse),
    ConsumerGroup(ConsumerGroupDescription),
    TransactionChecks(Vec<TransactionCheck>),
    Transactions(ListTransactionsResponse),
    Transaction(ShowTransactionResponse),
    Recalled(RecallMessageResponse),
    Pulled(Pulled),
    /// As it is after the request.
    Offset(QueueOffset),
    Committed(CommittedOffset),
    CommitSuperseded(CommitSuperseded),
    TakenLite(Vec<TakenLite>),
    /// One for each message of the batch, in their order.
    BatchStored(Vec<BatchPlace>),
    Operation(GroupOperationResult),
    /// DeleteTopic, SyncLite, ClientHeartbeat, ClientTermination, DeadLetter, EndTransaction, TransactionsAsked.
    Done,
    /// A send was placed by a generation of queues that is not served now; nothing was stored.
    Moved,
    /// The leader looked at the request and says no.
    Refused(Refused),
}

#[derive(Debug, Clone, PartialEq)]
pub struct Received {
    /// OK with messages, MESSAGE_NOT_FOUND without, or why not.
    pub status: Status,
    pub messages: Vec<Message>,
    pub delivery_timestamp: UnixMillis,
    pub arrival: Arrival,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Pulled {
    /// OK with messages, MESSAGE_NOT_FOUND without.
    pub status: Status,
    pub messages: Vec<Message>,
    pub next_offset: QueueOffset,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicDescription {
    pub name: TopicName,
    pub message_type: MessageType,
    /// Queues in the group that describes it.
    pub queues: u32,
    pub created: UnixMillis,
    /// Of a topic with order that has grown or is growing.
    pub placement: Option<Arc<Placement>>,
}

/// By what sends to a topic with order are placed, as one broker group knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    pub generation: u32,
    pub layout: Arc<QueueLayout>,
    /// Ended generations whose messages this broker group may still know by their ids, oldest first.
    pub former: Vec<FormerGeneration>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FormerGeneration {
    pub generation: u32,
    pub layout: Arc<QueueLayout>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsumerGroupDescription {
    pub fifo: bool,
    pub max_attempts: u32,
    /// Waits before the second, third, ... delivery; the last one repeats.
    pub backoff: Vec<Duration>,
    /// Lite topics one of its clients may subscribe to.
    pub lite_quota: u32,
}

impl Default for ConsumerGroupDescription {
    /// RocketMQ's defaults.
    fn default() -> Self {
        const BACKOFF_S: [u64; 18] =
            [1, 5, 10, 30, 60, 120, 180, 240, 300, 360, 420, 480, 540, 600, 1200, 1800, 3600, 7200];
        Self {
            fifo: false,
            max_attempts: 17,
            backoff: BACKOFF_S.map(Duration::from_secs).to_vec(),
            lite_quota: LITE_SUBSCRIPTIONS_PER_CLIENT,
        }
    }
}

/// A refusal in RocketMQ's terms; it goes to the client as it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {message}", code.as_str_name())]
pub struct Refused {
    pub code: Code,
    pub message: String,
}

impl Refused {
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

/// Why a request was not executed, or may not have been.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotExecuted {
    #[error("this node does not host the group")]
    NotHosted,
    #[error("this node does not lead the group in term {term}")]
    NotLeader { leader: Option<NodeId>, term: Term },
    /// The command was proposed and leadership was lost before its fate was known. A repeat is safe.
    #[error("the outcome is unknown: {detail}")]
    OutcomeUnknown { detail: String },
    #[error("{limit} is reached")]
    Overloaded { limit: String },
    #[error("the deadline had passed before the command was proposed")]
    DeadlinePassed,
    #[error("the node is stopping")]
    Stopping,
}

/// A node without groups: it forwards everything.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoLocalGroups;

#[async_trait]
impl LocalGroups for NoLocalGroups {
    fn node(&self) -> Option<NodeId> {
        None
    }

    fn hosted(&self) -> Vec<GroupName> {
        Vec::new()
    }

    fn leadership(&self, _group: &GroupName) -> Option<watch::Receiver<Leadership>> {
        None
    }

    async fn execute(
        &self,
        _group: &GroupName,
        _context: &CallContext,
        _request: &GroupRequest,
    ) -> Result<GroupResponse, NotExecuted> {
        Err(NotExecuted::NotHosted)
    }
}

#[async_trait]
impl<T: LocalGroups + ?Sized> LocalGroups for Arc<T> {
    fn node(&self) -> Option<NodeId> {
        (**self).node()
    }

    fn hosted(&self) -> Vec<GroupName> {
        (**self).hosted()
    }

    fn leadership(&self, group: &GroupName) -> Option<watch::Receiver<Leadership>> {
        (**self).leadership(group)
    }

    async fn execute(
        &self,
        group: &GroupName,
        context: &CallContext,
        request: &GroupRequest,
    ) -> Result<GroupResponse, NotExecuted> {
        (**self).execute(group, context, request).await
    }
}
