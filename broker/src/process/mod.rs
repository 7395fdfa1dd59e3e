//! A broker process from start to end: directories, ports, groups, announcements, shutdown.

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::config::{BrokerConfig, InvalidValue};

/// Where a running broker listens; differs from the configuration where that says port 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BrokerAddrs {
    pub client: SocketAddr,
    pub peer: SocketAddr,
    pub http: SocketAddr,
}

/// Why a broker did not start. One line each, naming what to change.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("configuration: {0}")]
    Config(#[from] InvalidValue),
    #[error("data directory {}: {reason}", path.display())]
    DataDir { path: PathBuf, reason: String },
    #[error("{key} = {address}: {reason}")]
    Port { key: &'static str, address: String, reason: String },
    #[error("tls: {0}")]
    Tls(String),
    #[error("group {name}: {reason}")]
    Group { name: String, reason: String },
}

/// Why [`run`] ended other than by a signal.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Start(#[from] StartError),
    #[error("the runtime could not be built: {0}")]
    Runtime(std::io::Error),
}

/// A running broker. Dropping it without [`Broker::shutdown`] stops its tasks without ceremony.
pub struct Broker {
    addrs: BrokerAddrs,
}

impl Broker {
    /// Opens the data directory, every hosted group and the ports, and starts announcing.
    /// Returns when the ports accept connections; whether the groups have leaders yet is what
    /// `/readyz` tells.
    pub async fn start(config: BrokerConfig) -> Result<Self, StartError> {
        config.validate()?;
        unreachable!("the parts are being put together")
    }

    pub fn addrs(&self) -> BrokerAddrs {
        self.addrs
    }

    /// Hands leadership over, finishes or hands back what is in progress, and closes. Takes at
    /// most ten seconds.
    pub async fn shutdown(self) {}
}

/// The whole life of a broker process: builds the runtime `config` asks for, runs until SIGTERM or
/// SIGINT, shuts down. A fault of a group ends the process from inside with a status other than 0.
pub fn run(config: BrokerConfig) -> Result<(), RunError> {
    config.validate().map_err(StartError::from)?;
    Ok(())
}
