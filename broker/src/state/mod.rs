//! The state of a broker group: what the CommitLog says, applied the same way on every replica.
//!
//! | Module | What lives there |
//! |---|---|
//! | [`command`] | what a leader proposes, and the message record inside |
//! | [`answer`] | what apply answers to the proposer |
//!
//! Public surface (all methods take `&self` and may be called from any thread):
//!
//! ```text
//! BrokerState::open(StateConfig { group: GroupId, data_dir: Option<PathBuf>, ... },
//!                   observer: Arc<dyn ApplyObserver>) -> Result<Arc<BrokerState>, OpenStateError>
//!   impl ledgermq_raft_store::StateMachine
//!   topic(&self, name) -> Option<TopicView { id, name, settings: TopicSettings, created_at }>
//!   topic_by_id(&self, TopicId) -> Option<TopicView>
//!   topics(&self) -> Vec<TopicView>
//!   queue_ranges(&self, TopicId) -> Option<Vec<Range<u64>>>          min..max per queue
//!   consumer_group(&self, name) -> Option<ConsumerGroupView { id, name, settings }>
//!   consumer_group_by_id, consumer_groups
//!   lag(&self, ConsumerGroupId, TopicId) -> Lag { ready, in_flight, ... }
//!   locate(&self, TopicId, QueueId, QueueOffset) -> Result<Option<IndexEntry>, ..>
//!   plan_receive(self: &Arc<Self>, &ReceiveRequest { consumer_group: ConsumerGroupId, topic: TopicId,
//!        queues: QueueChoice::{All, One(QueueId)}, messages_max: u32, now: UnixMillis, filter: TagFilter })
//!        -> Option<LeasePlan>
//!   LeasePlan { messages() -> &[PlannedMessage { queue, offset, entry: IndexEntry, attempt }],
//!               reject(queue, offset), command(client, invisible_ms, auto_renew, attempt_id) -> Command }
//!               keep the plan until the proposal is answered: dropping it frees its messages
//!   next_expiry(&self, ConsumerGroupId, TopicId) -> Option<UnixMillis>
//!   leases_to_renew(&self, ending_by: UnixMillis, max) -> Vec<RenewableLease>
//!   check_handle(&self, &ReceiptHandle, consumer_group: &str, topic: &str) -> Result<HandleTarget, HandleRefusal>
//!   handle_of(&self, ...Granted) -> ReceiptHandle
//!   now(&self) -> UnixMillis                                          log time
//!   state_digest(&self) -> StateDigest
//! trait ApplyObserver: Send + Sync { messages_arrived(TopicId, QueueId); leases_released(ConsumerGroupId, TopicId); }
//! ```

pub mod answer;
pub mod command;
pub mod names;

pub use answer::{Answer, ChangeOutcome, DeliveryOutcome, Granted, Refusal, StoredAt};
pub use command::{Command, CommandError};
pub use names::{
    BodyEncoding, ClientHash, ConsumerGroupId, DeliveryEpoch, MessageType, Permission, TopicId,
};
