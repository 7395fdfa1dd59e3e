//! The replicated CommitLog: a Raft group whose log is the CommitLog.
//!
//! What a broker sees is [`Group`] (propose, read, watch, hand over) and the [`StateMachine`] it
//! brings. No openraft type leaves this crate, and nothing outside `io` opens a file.

pub mod io;
pub mod machine;
pub mod store;

pub use machine::{AppliedEntry, ApplyError, EntryId, SnapshotReader, StateMachine};
