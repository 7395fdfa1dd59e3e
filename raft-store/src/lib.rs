//! The replicated CommitLog: a Raft group whose log is the CommitLog.
//!
//! What a broker sees is [`Group`] (propose, read, watch, hand over) and the [`StateMachine`] it
//! brings. No openraft type leaves this crate, and nothing outside `io` opens a file.

mod commit_log;
pub mod defects;
mod frame;
#[doc(hidden)]
pub mod fuzzing;
pub mod group;
pub mod io;
pub mod machine;
mod offload;
pub mod peer;
mod position;
mod raft;
pub mod replicas;
mod rot;
mod segment;
mod snapshot;
pub mod store;
mod superblock;
mod tail_cache;
mod writer;

pub use group::{
    Environment, Group, GroupConfig, GroupStatus, Leadership, Member, ProposeError, Retention, Timings,
};
pub use machine::{AppliedEntry, ApplyError, EntryId, RecoveredLog, SnapshotReader, StateMachine};
pub use peer::{PeerConnector, PeerStream, TcpConnector};
pub use raft::server::PeerServer;
