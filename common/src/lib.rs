//! The vocabulary every LedgerMQ crate shares: numbers with a type of their own, limits, and the
//! clock. No file, socket or thread is opened here.

pub mod clock;
pub mod config;
pub mod crash;
pub mod ids;
pub mod limits;
pub mod names;
pub mod queue_layout;
pub mod recall_handle;
pub mod receipt_handle;
pub mod steady_clock;
pub mod transaction_id;

pub use ids::{GroupId, LogIndex, NodeId, PhysicalOffset, QueueId, QueueOffset, ResetMark, Term};
pub use names::{ConsumerGroupName, GroupName, TopicName};
pub use queue_layout::QueueLayout;
pub use receipt_handle::ReceiptHandle;
pub use transaction_id::TransactionId;
