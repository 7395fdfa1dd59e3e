//! Load and measurement: what a running cluster does, beside what its disk can do.
//!
//! | Module | Measures |
//! |---|---|
//! | [`produce`] | sends per second and their latency |
//! | [`consume`] | receives with acknowledgement per second |
//! | [`end_to_end`] | from the start of a send to the arrival at a waiting consumer |
//! | [`delayed`] | how late delayed messages come while many wait, and how fast many fire |
//! | [`firing`] | how late timers fire when very many come due at a steady rate |
//! | [`transactions`] | transactions or messages per second, all of them counted |
//! | [`in_order`] | sends per second to many message groups |
//! | [`drain`] | how fast a backlog is received and acknowledged: by a filter, in order |
//! | [`cost`] | CPU seconds, written bytes and memory of the server processes |
//! | [`disk`] | fdatasync latency and sequential bandwidth of the disk below |
//!
//! The load shares the machine with the servers, so it is built to cost little: one task per
//! message in flight, no channel, no lock that is waited for on a single-threaded runtime.

pub mod consume;
pub mod cost;
pub mod delayed;
pub mod disk;
pub mod drain;
pub mod end_to_end;
pub mod firing;
pub mod in_order;
mod latency;
pub mod produce;
pub mod transactions;

pub use latency::{Latency, LatencyRecorder};
