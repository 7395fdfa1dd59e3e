//! A broker process from start to end.
//!
//! ```text
//! start: data dir (claim) ─► ports (bind) ─► groups (open, recover) ─► serve ─► announce
//! stop:  not ready ─► announce no more ─► hand leadership over ─► end polls and telemetry, GOAWAY
//!        ─► answer what is in progress ─► close groups ─► a last checkpoint of each
//! ```
//!
//! Ports are bound before groups are opened, so that a second process on the same machine fails
//! before it touches a log; they are served afterwards.
//!
//! | Failure | What happens |
//! |---|---|
//! | anything before the ports are served | [`StartError`], one line that names what to change |
//! | fault of a group (disk, apply) | the process ends at once with status [`FAULT_EXIT_STATUS`] |
//! | a step of the stop takes too long | the next one begins; the whole takes at most ten seconds |

mod announce;
mod data_dir;
mod groups;
mod node;
mod ports;
mod raft_runtime;
mod repair;
mod topology;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::join_all;
use ledgermq_common::steady_clock::SteadyClock;
use ledgermq_edge::forward::connect::TcpConnect;
use ledgermq_edge::forward::server::forward_service;
use ledgermq_edge::{Edge, EdgeConfig};
use ledgermq_raft_store::PeerServer;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::service::Routes;
use tonic::transport::server::TcpIncoming;

use crate::config::{BrokerConfig, InvalidValue};
use crate::execution::{
    Executor, WaiterCount, bury_exhausted, check_transactions, fire_timers, grow_topics, keep_retention,
    renew_leases, sweep_lite, watch_subscriptions,
};
use crate::metrics::Metrics;
use crate::{admin, http};
use data_dir::DataDir;
pub use node::Node;
use raft_runtime::RaftRuntime;
use topology::BrokerTopology;

/// `EX_SOFTWARE`: told apart from a refused configuration (1) and from a signal.
pub const FAULT_EXIT_STATUS: i32 = 70;

/// Steps of the stop; together below ten seconds.
const HAND_OVER_TIME: Duration = Duration::from_secs(3);
const DRAIN_TIME: Duration = Duration::from_secs(4);
const CLOSE_TIME: Duration = Duration::from_secs(2);
/// Without its last checkpoint a group applies more of its log again at the next start.
const LAST_CHECKPOINT_TIME: Duration = Duration::from_secs(1);

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
    #[error("the threads for Raft: {0}")]
    RaftThreads(std::io::Error),
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
    #[error("signals cannot be received: {0}")]
    Signals(std::io::Error),
}

/// What a process that runs a broker may want to tell its supervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The ports accept connections.
    Serving,
    /// SIGTERM or SIGINT arrived.
    Stopping,
}

/// A running broker. Dropping it without [`Broker::shutdown`] stops its tasks without ceremony.
pub struct Broker {
    addrs: BrokerAddrs,
    node: Arc<Node>,
    edge: Edge,
    signals: Signals,
    /// The client port; ends when what was in progress is answered.
    clients: tokio::task::JoinHandle<()>,
    tasks: JoinSet<()>,
    peers: tokio::task::JoinHandle<()>,
    // Ends before the data directory is another's.
    _raft: RaftRuntime,
    _data_dir: DataDir,
}

/// The steps of the stop, each told to those it concerns.
struct Signals {
    /// Not ready any more; announce no more.
    leaving: watch::Sender<bool>,
    /// Leadership is handed over: long polls end.
    handed_over: watch::Sender<bool>,
    /// The client port closes.
    closing: watch::Sender<bool>,
}

impl Broker {
    /// Opens the data directory, every hosted group and the ports, and starts announcing.
    /// Returns when the ports accept connections; whether the groups have leaders yet is what
    /// `/readyz` tells.
    pub async fn start(config: BrokerConfig) -> Result<Self, StartError> {
        config.validate()?;
        let data_dir = DataDir::claim(&config.storage.data_dir, &config.cluster.name, config.node_id())?;
        let ports = ports::bind(&config, &data_dir).await?;
        let addrs = BrokerAddrs {
            client: ports.client.local_addr(),
            peer: local_addr("listen.peer", &ports.peer)?,
            http: local_addr("listen.http", &ports.http)?,
        };

        let signals = Signals {
            leaving: watch::Sender::new(false),
            handed_over: watch::Sender::new(false),
            closing: watch::Sender::new(false),
        };
        let clock = SteadyClock::start();
        let shared = groups::Shared {
            clock: clock.clone(),
            waiters: Arc::new(WaiterCount::default()),
            metrics: Arc::new(Metrics::default()),
            stopping: signals.handed_over.subscribe(),
        };
        let raft = RaftRuntime::start(config.raft.threads).map_err(StartError::RaftThreads)?;
        let peers = PeerServer::new();
        let mut hosted = Vec::new();
        for entry in config.hosted_groups() {
            let group = groups::open(&config, &data_dir, entry, &shared, &raft).await?;
            peers.add(group.group());
            hosted.push(group);
        }
        let executor = Arc::new(Executor::new(config.node_id(), hosted, Arc::clone(&shared.metrics)));
        let topology = Arc::new(BrokerTopology::new(&config, Arc::clone(&executor)));
        let edge = Edge::new(
            edge_config(&config)?,
            executor.clone(),
            topology.clone(),
            Arc::new(TcpConnect),
            Arc::new(clock.clone()),
        );
        let node = Node::new(
            config.clone(),
            Arc::clone(&executor),
            shared.metrics,
            shared.waiters,
            clock,
            signals.leaving.subscribe(),
        );

        let mut tasks = JoinSet::new();
        let peer_routes = PeerServer::transport()
            .add_service(peers.service())
            .add_service(forward_service(executor.clone()))
            .add_service(admin::service(edge.clone(), Arc::clone(&node)));
        // The server's own setting does not reach a listener it is given. Without it an answer that
        // goes out in two small writes waits for the other side's delayed acknowledgement, 40 ms.
        let peer_port = ports.peer.into_std().map_err(|e| StartError::Port {
            key: "listen.peer",
            address: addrs.peer.to_string(),
            reason: e.to_string(),
        })?;
        let peers = raft.spawn(async move {
            // Its readiness has to come to the runtime that serves it.
            let incoming = match tokio::net::TcpListener::from_std(peer_port) {
                Ok(listener) => TcpIncoming::from(listener).with_nodelay(Some(true)),
                Err(error) => {
                    tracing::error!(%error, "the peer port cannot be served");
                    return;
                }
            };
            if let Err(error) = peer_routes.serve_with_incoming(incoming).await {
                tracing::error!(error = %groups::with_causes(&error), "the peer port stopped");
            }
        });
        tasks.spawn(http::serve(ports.http, Arc::clone(&node), turned_true(signals.closing.subscribe())));
        let mut routes = Routes::builder();
        routes
            .add_service(edge.messaging_service())
            .add_service(edge.batch_service())
            .add_service(edge.offsets_service())
            .add_service(admin::service(edge.clone(), Arc::clone(&node)));
        let closing = turned_true(signals.closing.subscribe()).boxed().shared();
        let clients = tokio::spawn(ports::serve_clients(ports.client, routes.routes(), closing));
        for hosted in executor.groups() {
            tasks.spawn(groups::end_process_on_fault(Arc::clone(hosted)));
            tasks.spawn(renew_leases(Arc::downgrade(hosted)));
            tasks.spawn(check_transactions(Arc::downgrade(hosted)));
            tasks.spawn(bury_exhausted(Arc::downgrade(hosted)));
            tasks.spawn(fire_timers(Arc::downgrade(hosted)));
            tasks.spawn(keep_retention(Arc::downgrade(hosted)));
            tasks.spawn(sweep_lite(Arc::downgrade(hosted)));
            tasks.spawn(watch_subscriptions(Arc::downgrade(hosted)));
            tasks.spawn(grow_topics(Arc::downgrade(hosted), edge.clone()));
            tasks.spawn(announce::announce(
                Arc::downgrade(hosted),
                announce::Subject::of(
                    &config.cluster.name,
                    topology.view(),
                    hosted,
                    config.topics.auto_create,
                ),
                config.nameservers.clone(),
                signals.leaving.subscribe(),
            ));
        }
        tracing::info!(node = config.node.id, client = %addrs.client, peer = %addrs.peer, http = %addrs.http,
            "broker started");
        Ok(Self { addrs, node, edge, signals, clients, tasks, peers, _raft: raft, _data_dir: data_dir })
    }

    pub fn addrs(&self) -> BrokerAddrs {
        self.addrs
    }

    pub fn node(&self) -> &Arc<Node> {
        &self.node
    }

    /// Hands leadership over, finishes or hands back what is in progress, and closes. Takes at
    /// most ten seconds.
    pub async fn shutdown(mut self) {
        self.signals.leaving.send_replace(true);
        self.edge.end_polls();
        let hand_overs = self.node.hosted_groups().map(|hosted| async {
            if let Err(error) = hosted.group().hand_over(HAND_OVER_TIME).await {
                tracing::warn!(group = %hosted.name(), %error, "leadership is not handed over");
            }
        });
        join_all(hand_overs).await;

        self.signals.handed_over.send_replace(true);
        self.edge.stop();
        self.signals.closing.send_replace(true);
        if tokio::time::timeout(DRAIN_TIME, &mut self.clients).await.is_err() {
            tracing::warn!("some requests were still in progress when the client port was closed");
            self.clients.abort();
        }

        let closes = self.node.hosted_groups().map(|hosted| hosted.group().shutdown());
        if tokio::time::timeout(CLOSE_TIME, join_all(closes)).await.is_err() {
            tracing::warn!("a group did not close in time; it will recover at the next start");
        }
        self.tasks.shutdown().await;

        let checkpoints = self.node.hosted_groups().map(|hosted| {
            let (name, state) = (hosted.name().clone(), Arc::clone(hosted.state()));
            tokio::task::spawn_blocking(move || {
                if let Err(error) = state.close() {
                    tracing::warn!(group = %name, %error, "no checkpoint at the end");
                }
            })
        });
        if tokio::time::timeout(LAST_CHECKPOINT_TIME, join_all(checkpoints)).await.is_err() {
            tracing::warn!("a last checkpoint takes too long; the next start applies more again");
        }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.clients.abort();
        self.peers.abort();
        self.tasks.abort_all();
    }
}

/// The whole life of a broker process: builds the runtime `config` asks for, runs until SIGTERM or
/// SIGINT, shuts down. A fault of a group ends the process from inside with a status other than 0.
///
/// `reached` is told of each stage, inside the runtime.
pub fn run(config: BrokerConfig, reached: impl Fn(Stage)) -> Result<(), RunError> {
    config.validate().map_err(StartError::from)?;
    let runtime = match config.worker_threads {
        1 => tokio::runtime::Builder::new_current_thread().enable_all().build(),
        0 => tokio::runtime::Builder::new_multi_thread().enable_all().build(),
        threads => tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build(),
    }
    .map_err(RunError::Runtime)?;
    let result = runtime.block_on(async {
        use tokio::signal::unix::{SignalKind, signal};
        let mut terminate = signal(SignalKind::terminate()).map_err(RunError::Signals)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(RunError::Signals)?;
        // A replica that is repaired waits for a leader, and may be ended meanwhile.
        let broker = tokio::select! {
            biased;
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
            started = Broker::start(config) => started?,
        };
        reached(Stage::Serving);
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
        reached(Stage::Stopping);
        broker.shutdown().await;
        Ok(())
    });
    // A blocking read that hangs must not hold the process up.
    runtime.shutdown_background();
    result
}

fn edge_config(config: &BrokerConfig) -> Result<EdgeConfig, StartError> {
    let invalid = |key: &str, value: &str, reason: &str| {
        StartError::Config(InvalidValue {
            key: key.to_owned(),
            value: value.to_owned(),
            reason: reason.to_owned(),
        })
    };
    let endpoints = &config.route.endpoints;
    let advertised = config.advertised_client();
    Ok(EdgeConfig {
        route_endpoints: endpoints.parse().map_err(|e: ledgermq_edge::route::RouteEndpointsError| {
            invalid("route.endpoints", endpoints, e.reason)
        })?,
        advertised: advertised.parse().map_err(|e: ledgermq_edge::route::RouteEndpointsError| {
            invalid("advertise.client", &advertised, e.reason)
        })?,
    })
}

fn local_addr(key: &'static str, listener: &tokio::net::TcpListener) -> Result<SocketAddr, StartError> {
    listener.local_addr().map_err(|error| StartError::Port {
        key,
        address: String::new(),
        reason: error.to_string(),
    })
}

/// Resolves when the step is reached, or its sender is gone.
async fn turned_true(mut step: watch::Receiver<bool>) {
    let _ = step.wait_for(|reached| *reached).await;
}
