//! The vocabulary every LedgerMQ crate shares: numbers with a type of their own, limits, and the
//! clock. No file, socket or thread is opened here.

pub mod clock;
pub mod ids;
pub mod limits;

pub use ids::{GroupId, LogIndex, NodeId, PhysicalOffset, QueueId, QueueOffset, Term};
