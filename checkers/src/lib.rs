//! Recorded histories of a message broker and what they say about it.
//!
//! Knows nothing of this broker: a [`History`] of any system with queues, consumer groups and leases
//! can be judged. Terms are those of Jepsen's checkers where it has the term.
//!
//! | Module | Finds |
//! |---|---|
//! | [`total_queue`] | lost (prefix, middle, tail), duplicated, unexpected, delivered after its ack |
//! | [`queue_log`] | the Kafka-style set: aborted read, inconsistent offset, lost write, duplicate, poll skip, non-monotonic poll and send |
//! | [`fifo`] | overtaking, two holders, out of order within a message group |
//! | [`transactions`] | two outcomes, early visibility, visible after rollback, lost commit |
//! | [`timers`] | early, late, fired twice, fired although recalled |
//! | [`leases`] | two leases, attempts that go back, stale handles accepted, acks that cannot be repeated, not redelivered |
//! | [`linearizable`] | registers that no order of their operations explains (Wing–Gong–Lowe, by key) |
//! | [`availability`] | how long each fault was felt |
//!
//! A history is read whole ([`History`]), or event by event from its compact form ([`compact`]) into what
//! most checkers look at ([`messages`]): so tens of millions of messages are judged in a few gigabytes of
//! memory.
//!
//! Rules for all of them:
//!
//! * An operation whose outcome is unknown (`info`) may have happened at any time after its
//!   invocation, or never. It excuses what it explains and accuses nobody.
//! * A verdict is [`Outcome::Unknown`] when the history cannot show it, for example when nothing was
//!   received at all. Unknown is never a pass.
//! * A verdict names examples ([`FINDINGS_SHOWN_MAX`] of each kind) and counts all.

#![forbid(unsafe_code)]

pub mod availability;
pub mod compact;
pub mod edn;
pub mod fifo;
pub mod history;
pub mod leases;
pub mod linearizable;
pub mod messages;
pub mod queue_log;
pub mod timers;
pub mod total_queue;
pub mod transactions;
mod verdict;

pub use history::{Event, FaultMark, History, HistoryError, Kind, Operation};
pub use messages::{Gather, Messages};
pub use verdict::{Anomaly, FINDINGS_SHOWN_MAX, Outcome, Verdict};
