//! A LedgerMQ broker process.
//!
//! `state` is the deterministic state machine of a broker group, `execution` what a leader does for
//! a request, `process` everything around them: directories, ports, announcements, shutdown.

mod admin;
pub mod config;
pub mod defects;
pub mod execution;
mod http;
pub mod metrics;
pub mod process;
pub mod state;

pub use config::BrokerConfig;
pub use process::{Broker, BrokerAddrs, RunError, Stage, StartError, run};
