//! The entry point: connections shared by every producer and consumer made from it.

use std::sync::Arc;
use std::time::Duration;

use ledgermq_proto::rocketmq::ClientType;
use tokio::time::Instant;

use crate::access_point::AccessPoints;
use crate::admin::Admin;
use crate::broadcast::{BroadcastConsumer, BroadcastOptions};
use crate::connection::Connections;
use crate::consumer::{ConsumerOptions, Filter, SimpleConsumer};
use crate::error::{ConnectError, NoAnswerInTime, PullError};
use crate::options::ClientOptions;
use crate::producer::Producer;
use crate::pull::{PullConsumer, PullOptions};
use crate::session::{Role, Session};
use crate::transaction::{TransactionChecker, TransactionalProducer};

const CONNECT_PAUSE: Duration = Duration::from_millis(50);

/// Cheap to clone; clones share connections.
#[derive(Clone)]
pub struct Client {
    connections: Arc<Connections>,
    options: ClientOptions,
}

impl Client {
    /// Connects to the first access point that answers, within `options.total_deadline`. The
    /// others are dialled when they are needed.
    pub async fn connect(access_points: &str, options: ClientOptions) -> Result<Self, ConnectError> {
        let points: AccessPoints = access_points.parse()?;
        let connections = Arc::new(Connections::new(&points, &options)?);
        let started = Instant::now();
        let deadline = started + options.total_deadline;
        let mut attempts = 0u32;
        loop {
            let point = connections.preferred();
            attempts += 1;
            let error = match connections.get(point).await {
                Ok(_) => return Ok(Self { connections, options }),
                Err(error) => error,
            };
            connections.turn_away(point);
            if Instant::now() + CONNECT_PAUSE >= deadline {
                let elapsed = started.elapsed();
                let last = error.to_string();
                let throttled = 0;
                return Err(
                    NoAnswerInTime { operation: "connect", attempts, throttled, elapsed, last }.into()
                );
            }
            if (attempts as usize).is_multiple_of(connections.access_points()) {
                tokio::time::sleep(CONNECT_PAUSE).await;
            }
        }
    }

    pub fn producer(&self) -> Producer {
        let role = Role {
            client_type: ClientType::Producer,
            group: None,
            subscriptions: Vec::new(),
            long_polling: Duration::ZERO,
            topics: Vec::new(),
            checker: None,
        };
        Producer::new(Session::start(self.connections.clone(), self.options.clone(), role))
    }

    /// A producer of transactional messages for `topics`. The checker is asked about transactions of
    /// these topics that were left open, whoever sent them.
    pub fn transactional_producer(
        &self,
        topics: impl IntoIterator<Item = impl Into<String>>,
        checker: impl TransactionChecker,
    ) -> TransactionalProducer {
        let role = Role {
            client_type: ClientType::Producer,
            group: None,
            subscriptions: Vec::new(),
            long_polling: Duration::ZERO,
            topics: topics.into_iter().map(Into::into).collect(),
            checker: Some(Arc::new(checker)),
        };
        let session = Session::start(self.connections.clone(), self.options.clone(), role);
        TransactionalProducer::new(Producer::new(session))
    }

    pub fn simple_consumer(&self, options: ConsumerOptions) -> SimpleConsumer {
        let role = Role {
            client_type: ClientType::SimpleConsumer,
            group: Some(options.group.clone()),
            subscriptions: options.subscriptions.clone(),
            long_polling: options.await_duration,
            topics: Vec::new(),
            checker: None,
        };
        let session = Session::start(self.connections.clone(), self.options.clone(), role);
        SimpleConsumer::new(session, options)
    }

    /// Reads queues by offset.
    pub fn pull_consumer(&self, options: PullOptions) -> PullConsumer {
        self.puller(options, Vec::new())
    }

    /// Reads every message of a topic, as every other instance of the group does.
    pub async fn broadcast_consumer(
        &self,
        options: BroadcastOptions,
    ) -> Result<BroadcastConsumer, PullError> {
        let pull = PullOptions::new(options.consumer_group())
            .filter(options.filter.clone())
            .await_duration(options.await_duration)
            .start(options.start);
        let subscriptions = vec![(options.topic.clone(), options.filter.clone())];
        BroadcastConsumer::start(self.puller(pull, subscriptions), options).await
    }

    fn puller(&self, options: PullOptions, subscriptions: Vec<(String, Filter)>) -> PullConsumer {
        let role = Role {
            client_type: ClientType::PullConsumer,
            group: Some(options.group.clone()),
            subscriptions,
            long_polling: options.await_duration,
            topics: Vec::new(),
            checker: None,
        };
        let session = Session::start(self.connections.clone(), self.options.clone(), role);
        PullConsumer::new(session, options)
    }

    pub fn admin(&self) -> Admin {
        Admin::new(self.connections.clone(), self.options.clone())
    }
}
