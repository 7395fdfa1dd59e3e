//! The front end of any node: `apache.rocketmq.v2.MessagingService` in full, whoever leads.
//!
//! ```text
//! client ─► messaging ─► validate ─► topics (which groups?) ─► hold (whose leader? wait) ─┬► LocalGroups here
//!                                                                                        └► forward ─► LocalGroups there
//! ```
//!
//! | Module | What lives there |
//! |---|---|
//! | [`edge`] | what all RPCs share; [`Edge`] is the handle |
//! | [`messaging`] | the gRPC service; one module per RPC family behind it |
//! | [`context`] | headers of a call |
//! | [`validate`], [`codes`] | what is wrong with a request; the code for every error |
//! | [`send_gate`] | how many sends are under way |
//! | [`settings`] | telemetry |
//! | [`route`], [`topics`], [`topology`] | where groups and topics are, and what clients are told |
//! | [`group_call`] | what is asked of a broker group, and who executes it |
//! | [`arrival`] | whether deliveries were passed on to their client |
//! | [`hold`], [`leaders`] | finding the leader and waiting for one |
//! | [`forward`] | the way to another node |
//! | [`transactions`], [`producers`], [`check_back`] | ending transactions; asking producers for the outcome of those left open |
//! | [`order`], [`placement`] | the queue of a message group |
//! | [`batch`] | messages of several topics in one log entry |
//! | [`lite`], [`lite_streams`] | lite topics: where they are, who reads them, telling a client that one was taken from it |
//! | [`standing_question`] | questions that wait at the leaders, for what is to be told to clients |
//! | [`registry_client`] | announcing led groups to nameservers |
//!
//! Nothing here is durable, and nothing here must be: an edge that starts anew serves at once.

pub mod arrival;
mod batch;
mod check_back;
mod clients;
pub mod codes;
pub mod context;
mod dead_letters;
pub mod edge;
pub mod forward;
#[doc(hidden)]
pub mod fuzzing;
pub mod group_call;
pub mod hold;
pub mod leaders;
mod lite;
mod lite_streams;
pub mod messaging;
mod offsets;
mod order;
pub mod placement;
mod producers;
mod recall;
mod receipts;
mod receive;
pub mod registry_client;
pub mod route;
mod send;
mod send_gate;
pub mod settings;
mod standing_question;
pub mod topics;
pub mod topology;
pub mod transactions;
pub mod validate;

pub use edge::{Edge, EdgeConfig};
