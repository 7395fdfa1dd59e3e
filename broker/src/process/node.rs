//! What a running broker knows about itself; shared by its ports.

use std::sync::Arc;

use ledgermq_common::NodeId;
use ledgermq_common::steady_clock::SteadyClock;
use tokio::sync::watch;

use crate::config::BrokerConfig;
use crate::execution::{Executor, HostedGroup, WaiterCount};
use crate::metrics::Metrics;

pub struct Node {
    config: BrokerConfig,
    executor: Arc<Executor>,
    metrics: Arc<Metrics>,
    waiters: Arc<WaiterCount>,
    clock: SteadyClock,
    stopping: watch::Receiver<bool>,
}

impl Node {
    pub fn new(
        config: BrokerConfig,
        executor: Arc<Executor>,
        metrics: Arc<Metrics>,
        waiters: Arc<WaiterCount>,
        clock: SteadyClock,
        stopping: watch::Receiver<bool>,
    ) -> Arc<Self> {
        Arc::new(Self { config, executor, metrics, waiters, clock, stopping })
    }

    pub fn id(&self) -> NodeId {
        self.config.node_id()
    }

    pub fn cluster(&self) -> &str {
        &self.config.cluster.name
    }

    pub fn config(&self) -> &BrokerConfig {
        &self.config
    }

    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    pub fn hosted_groups(&self) -> impl Iterator<Item = &Arc<HostedGroup>> {
        self.executor.groups()
    }

    pub fn long_polls(&self) -> usize {
        self.waiters.get()
    }

    /// The clock log time comes from where this node leads.
    pub fn clock(&self) -> &SteadyClock {
        &self.clock
    }

    pub fn is_stopping(&self) -> bool {
        *self.stopping.borrow()
    }
}
