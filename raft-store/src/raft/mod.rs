//! The only place that sees openraft: its vocabulary over our entries, the adapters between it and
//! the log store and the state machine, and the network.
//!
//! Numbers map one to one: openraft's log index is [`ledgermq_common::LogIndex`], its term
//! [`ledgermq_common::Term`], its node id [`ledgermq_common::NodeId`]. Leader ids are of the
//! standard kind (one leader per term, so an entry is named by term and index alone).
//!
//! | Module | What |
//! |---|---|
//! | `vocabulary` | type configuration, entry, payload, answer |
//! | `membership` | the encoding of a membership and the file that remembers the applied one |
//! | `log_storage` | openraft's log storage over [`crate::store::LogStore`] |
//! | `state_machine` | openraft's state machine over [`crate::machine::StateMachine`] |
//! | `wire` | between openraft's messages and `ledgermq.raft.v1` |
//! | `links` | the connections to one peer: control, bulk, snapshot |
//! | `network` | openraft's network over the links |
//! | `server` | the peer port's side, for all groups of a process |
//! | `suspicion` | a follower that lost its connection to the leader campaigns at once |

pub(crate) mod links;
pub(crate) mod log_storage;
pub(crate) mod membership;
pub(crate) mod network;
pub(crate) mod server;
pub(crate) mod state_machine;
pub(crate) mod suspicion;
pub(crate) mod vocabulary;
pub(crate) mod wire;
