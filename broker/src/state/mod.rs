//! The state of a broker group: what the CommitLog says, applied the same way on every replica.
//!
//! | Module | What lives there |
//! |---|---|
//! | [`command`] | what a leader proposes, and the message record inside |
//! | [`answer`] | what apply answers to the proposer |
//!
//! | [`applied`] | the applied state and what each command does to it |
//! | [`consume_queue`] | queue offset → place in the CommitLog, for a million queues |
//! | [`dead_letters`] | questions about messages given up |
//! | [`offsets`] | questions about offsets by group and by time |
//! | [`key_index`], [`message_search`] | message ids and keys → records |
//! | [`lite`] | plans of receives from lite topics, and questions about them |
//! | [`timers`], [`timer_questions`] | delayed messages that wait for their time |
//! | [`planner`] | which messages a receive is to lease |
//! | [`retention`] | what goes, what is carried, what pins the log |
//! | [`records`] | the state as records, for checkpoints and snapshots |
//! | [`checkpoint`], [`meta_store`] | the state on disk, derived |
//! | [`snapshot`], [`digest`] | the state as a stream, and as a number to compare |
//! | [`machine`], [`questions`], [`generation_questions`], [`transaction_questions`] | [`BrokerState`], the whole as the log and the executor see it |

pub mod answer;
mod applied;
mod checkpoint;
pub mod command;
mod consume_queue;
mod dead_letters;
mod digest;
mod generation_questions;
mod key_index;
mod lite;
mod machine;
mod message_search;
mod meta_store;
pub mod names;
mod offsets;
mod planner;
mod questions;
mod records;
mod retention;
mod snapshot;
mod timer_questions;
mod timers;
mod transaction_questions;

pub use answer::{
    Answer, BatchPartlyStored, ChangeOutcome, CommitOutcome, DeliveryOutcome, Granted, HalfAt, LiteSynced,
    Placed, RecallOutcome, Refusal, Scheduled, StoredAt, TransactionEnd,
};
pub use applied::QueueRange;
pub use applied::generations::GENERATIONS_MAX;
pub(crate) use applied::leases::RELEASED_CLIENT_INVISIBLE_MS;
pub use applied::timers::FIRED_PER_ENTRY_MAX;
pub use command::{
    AckEntry, AckMessages, AppendDelayed, Backoff, ChangeInvisible, Command, CommandError, CommitOffset,
    ConsumerGroupSettings, CreateConsumerGroup, CreateTopic, DeadLetter, DeadLetterReason, DeadLetterRecord,
    DeleteConsumerGroup, DeleteTopic, ExtendLeases, FireTimers, LeaseExtension, LeaseMessages, LeasePart,
    Letter, MessageProperties, MessageRecordError, NewMessage, RecallTimer, RedriveDeadLetters,
    RedrivenLetter, ReleaseClient, ResetProgress, StoredMessage, TopicSettings, UpdateConsumerGroup,
    UpdateTopic, encode_append, encode_delayed, encoded_append_bytes, encoded_delayed_bytes, tag_code,
};
pub use command::{
    AppendInOrder, AppendLite, CarriedRecord, CarryRecords, CloseGeneration, DrainGeneration, ExpireLite,
    ExpireMessages, ExpiryCause, GroupAttributes, LiteAction, LiteStart, OpenGeneration, Owed,
    PRIORITY_FACTOR_MAX, PrepareGeneration, ReleaseLog, SetFilters, SetGroupAttributes, SetLiteTopic,
    SetTopicRetention, SyncLite, TopicRetention, encode_append_in_order, encode_carried, encode_lite,
    encoded_append_in_order_bytes, encoded_lite_bytes,
};
pub use command::{BatchTopic, StoreBatch, encode_batch, encoded_batch_bytes};
pub use command::{
    CountTransactionChecks, DecisionSource, EndTransaction, LeaseInOrder, NewHalf, OrderedMessage,
    OrderedPart, ParkTransactions, TransactionCheck, encode_halves, encoded_halves_bytes,
};
pub use consume_queue::IndexEntry;
pub use dead_letters::{DeliveryState, EndedDelivery};
pub use digest::StateDigest;
pub use generation_questions::{DrainCandidate, Draining, EndedView, Growth, PlacementView};
pub use key_index::SearchKey;
pub use lite::{LitePlan, LiteReader, LiteReceive, LiteTopicView, TakenLite};
pub use machine::{
    ApplyObserver, BrokerState, CheckpointError, CheckpointMode, NobodyWaits, OpenStateError, StateConfig,
};
pub use message_search::FoundRecord;
pub use names::{
    AttemptHash, BodyEncoding, ClientHash, ConsumerGroupId, Decision, DeliveryEpoch, Generation,
    MessageIdHash, MessageType, OrderKey, Permission, ResetId, TopicId,
};
pub use planner::{
    HOLES_OF_QUEUE_MAX, LeasePlan, LeftPlaces, OthersWant, PLAN_SCAN_ENTRIES_MAX, PLAN_SKIPPED_ENTRIES_MIN,
    PlannedMessage, QueueChoice, ReceiveRequest, TagFilter,
};
pub use planner::{ORDER_SCAN_ENTRIES_MAX, OrderOf, OrderedPlan, PlannedInOrder};
pub use questions::{
    ConsumerGroupView, HandleRefusal, HandleTarget, Lag, RenewableLease, RepeatedDelivery, TopicView,
};
pub use retention::{CarryPlan, LogPins, Pinned, RetentionView};
pub use transaction_questions::{OpenTransaction, TransactionQuery, TransactionState};

pub use timer_questions::TimerState;

#[cfg(test)]
mod tests;
