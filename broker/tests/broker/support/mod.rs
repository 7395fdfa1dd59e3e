//! Whole brokers in this process, on loopback ports and in temporary directories, and a client that
//! speaks to one of them as an SDK does.

pub mod client;

use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ledgermq_broker::config::{GroupEntry, NodeEntry};
use ledgermq_broker::execution::HostedGroup;
use ledgermq_broker::{Broker, BrokerConfig};
use tempfile::TempDir;
use tokio::runtime::Runtime;

pub use client::Client;

/// How long a condition may take on a machine that does other things as well.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A cluster of `nodes` brokers with one group, `g`, whose members they all are.
pub struct Cluster {
    pub nodes: Vec<Node>,
    _directory: TempDir,
}

/// One broker with a runtime of its own, so that it can end as suddenly as a process.
pub struct Node {
    pub config: BrokerConfig,
    /// The broker is dropped before its runtime: tasks that die one by one with a runtime look like
    /// a fault to those that watch for one.
    running: Option<(Broker, Runtime)>,
}

impl Cluster {
    pub fn start(nodes: usize) -> Self {
        Self::start_with(nodes, |_| {})
    }

    pub fn start_with(nodes: usize, adjust: impl Fn(&mut BrokerConfig)) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut configs = configs(nodes, directory.path());
        configs.iter_mut().for_each(adjust);
        let mut cluster = Self {
            nodes: configs.into_iter().map(|config| Node { config, running: None }).collect(),
            _directory: directory,
        };
        cluster.nodes.iter_mut().for_each(Node::start);
        cluster.wait_ready();
        cluster
    }

    /// A placeholder while the cluster is worked on elsewhere.
    pub fn none() -> Self {
        Self { nodes: Vec::new(), _directory: tempfile::tempdir().expect("a temporary directory") }
    }

    pub fn wait_ready(&self) {
        for node in self.nodes.iter().filter(|node| node.running.is_some()) {
            node.wait_ready();
        }
    }

    /// The position of the node that leads, once the running nodes agree on one that runs.
    pub fn leader(&self) -> usize {
        eventually("a leader", || {
            self.nodes.iter().position(|node| {
                node.running
                    .as_ref()
                    .is_some_and(|(broker, _)| broker.node().hosted_groups().all(|hosted| hosted.leads()))
            })
        })
    }

    /// A node that runs and does not lead.
    pub fn follower(&self) -> usize {
        let leader = self.leader();
        let runs = |at: &usize| self.nodes[*at].running.is_some();
        (0..self.nodes.len()).filter(runs).find(|at| *at != leader).expect("a follower")
    }
}

impl Node {
    pub fn start(&mut self) {
        assert!(self.running.is_none(), "it runs already");
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime");
        // What was killed a moment ago may still hold its lock and its ports.
        let broker = eventually("the broker to start", || {
            match runtime.block_on(Broker::start(self.config.clone())) {
                Ok(broker) => Some(broker),
                Err(error) => {
                    eprintln!("node {}: {error}", self.config.node.id);
                    None
                }
            }
        });
        self.running = Some((broker, runtime));
    }

    /// As SIGKILL does: connections close, nothing is handed over. What is on the disk stays.
    pub fn kill(&mut self) {
        let (broker, runtime) = self.running.take().expect("it runs");
        drop(broker);
        runtime.shutdown_timeout(Duration::from_secs(5));
    }

    /// As SIGTERM does; answers how long it took.
    pub fn shut_down(&mut self) -> Duration {
        let (broker, runtime) = self.running.take().expect("it runs");
        let began = Instant::now();
        runtime.block_on(broker.shutdown());
        let took = began.elapsed();
        runtime.shutdown_timeout(Duration::from_secs(5));
        took
    }

    /// Whether it runs and leads the group of this name.
    pub fn leads(&self, group: &str) -> bool {
        self.running.as_ref().is_some_and(|(broker, _)| {
            broker.node().hosted_groups().any(|hosted| hosted.name().as_str() == group && hosted.leads())
        })
    }

    /// Its replica of the group.
    pub fn hosted(&self) -> Arc<HostedGroup> {
        let (broker, _) = self.running.as_ref().expect("it runs");
        Arc::clone(broker.node().hosted_groups().next().expect("one group"))
    }

    /// Receives that wait here.
    pub fn long_polls(&self) -> usize {
        self.running.as_ref().map_or(0, |(broker, _)| broker.node().long_polls())
    }

    pub fn client_addr(&self) -> String {
        self.config.listen.client.clone()
    }

    pub fn http(&self, path: &str) -> (u16, String) {
        http_get(&self.config.listen.http, path)
    }

    pub fn wait_ready(&self) {
        eventually("the node to be ready", || {
            let (status, body) = self.http("/readyz");
            if status != 200 {
                eprintln!("node {}: {body}", self.config.node.id);
            }
            (status == 200).then_some(())
        });
    }
}

/// Asks again and again until there is an answer, at most for [`PATIENCE`].
pub fn eventually<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(began.elapsed() < PATIENCE, "waited {PATIENCE:?} for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub fn configs(nodes: usize, directory: &Path) -> Vec<BrokerConfig> {
    let ports = free_ports(nodes * 3);
    let address = |at: usize| format!("127.0.0.1:{}", ports[at]);
    let entries: Vec<NodeEntry> = (0..nodes)
        .map(|at| NodeEntry { id: at as u64 + 1, peer: address(at * 3), client: address(at * 3 + 1) })
        .collect();
    entries
        .iter()
        .enumerate()
        .map(|(at, entry)| {
            let mut config = BrokerConfig::default();
            config.cluster.name = "test".to_owned();
            config.node.id = entry.id;
            config.listen.peer = entry.peer.clone();
            config.listen.client = entry.client.clone();
            config.listen.http = address(at * 3 + 2);
            config.storage.data_dir = directory.join(format!("node-{}", entry.id));
            config.storage.segment_size_bytes = 32 * 1024 * 1024;
            config.topics.auto_create = true;
            config.topics.default_queues = 4;
            config.nodes = entries.clone();
            config.groups = vec![GroupEntry {
                id: 1,
                name: "g".to_owned(),
                members: entries.iter().map(|entry| entry.id).collect(),
            }];
            config
        })
        .collect()
}

/// Ports nobody listens on now. All are held at once, so that they differ.
fn free_ports(count: usize) -> Vec<u16> {
    let listeners: Vec<TcpListener> =
        (0..count).map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port")).collect();
    listeners.iter().map(|listener| listener.local_addr().expect("its address").port()).collect()
}

pub fn http_get(address: &str, path: &str) -> (u16, String) {
    use std::io::{Read as _, Write as _};
    let Ok(mut stream) = std::net::TcpStream::connect(address) else { return (0, String::new()) };
    let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
    let mut response = String::new();
    if stream.write_all(request.as_bytes()).is_err() || stream.read_to_string(&mut response).is_err() {
        return (0, String::new());
    }
    let status = response.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    let body = response.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    (status, body.to_owned())
}
