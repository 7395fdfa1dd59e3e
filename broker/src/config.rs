//! The configuration of a broker process: what a node is called, where it listens, which groups it
//! carries.
//!
//! Every key has a value in [`BrokerConfig::default`], so that a loader can derive the tree of
//! known keys from it; "not set" is an empty string or list, never an absent key. The default is a
//! cluster of one node with one group, which starts as it is.
//!
//! | Section | What it says |
//! |---|---|
//! | `[cluster]`, `[node]` | whose data this is; a directory of another cluster or node is refused |
//! | `[listen]`, `[advertise]` | sockets of this process, and the addresses others reach them at |
//! | `[[nodes]]`, `[[groups]]` | all nodes of the cluster; all groups with their members |
//! | `[storage]`, `[raft]` | disk and timing |
//! | `[topics]`, `[transactions]`, `[route]`, `[tls]` | what clients get |

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;

use ledgermq_common::limits;
use ledgermq_common::{GroupId, GroupName, NodeId};
use ledgermq_edge::route::RouteEndpoints;
use ledgermq_edge::validate::DELIVERY_DELAY_MS_MAX;
use serde::{Deserialize, Serialize};

/// Nodes a cluster may name, and groups too: a bound on what one process opens and dials.
pub const NODES_MAX: usize = 1024;
pub const GROUPS_MAX: usize = 1024;
/// Members of one group. More replicas cost every append and gain nothing.
pub const GROUP_MEMBERS_MAX: usize = 9;
pub const SEGMENT_SIZE_BYTES_MIN: u64 = 32 * 1024 * 1024;
pub const SEGMENT_SIZE_BYTES_MAX: u64 = 16 * 1024 * 1024 * 1024;
/// A hundred years.
pub const RETENTION_S_MAX: u64 = 100 * 366 * 24 * 3600;
pub const WORKER_THREADS_MAX: usize = 256;
pub const RAFT_THREADS_MAX: usize = 16;
/// The text of this module, from whose comments the manual is made.
pub const SOURCE: &str = include_str!("config.rs");

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BrokerConfig {
    /// Threads that run requests; 0 takes one per core, 1 runs everything on the main thread.
    pub worker_threads: usize,
    /// `host:port` of every nameserver this broker registers its groups with.
    pub nameservers: Vec<String>,
    pub cluster: ClusterSection,
    pub node: NodeSection,
    pub listen: ListenSection,
    pub advertise: AdvertiseSection,
    pub storage: StorageSection,
    pub topics: TopicsSection,
    pub transactions: TransactionsSection,
    pub tls: TlsSection,
    pub route: RouteSection,
    pub raft: RaftSection,
    /// Every node of the cluster, this one among them.
    pub nodes: Vec<NodeEntry>,
    /// Every broker group with its members; the same on all nodes.
    pub groups: Vec<GroupEntry>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClusterSection {
    /// Which cluster the data belongs to; the same on all its nodes.
    pub name: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NodeSection {
    /// The number of this node in `[[nodes]]`. Never reuse the id of a node whose data directory was lost.
    pub id: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ListenSection {
    /// RocketMQ clients and the admin RPCs.
    pub client: String,
    /// Raft and forwarded requests, between the nodes of the cluster only.
    pub peer: String,
    /// /livez, /readyz, /metrics.
    pub http: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdvertiseSection {
    /// `host:port` clients reach this node at; empty takes this node's entry in `[[nodes]]`.
    pub client: String,
    /// `host:port` peers reach this node at; empty takes this node's entry in `[[nodes]]`.
    pub peer: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StorageSection {
    /// Where the log and everything derived from it lies; one process at a time.
    pub data_dir: PathBuf,
    /// Size of one CommitLog file, prepared at full size; a multiple of 4096.
    pub segment_size_bytes: u64,
    /// The derived state is written down at the latest when so many bytes of commands have been applied
    /// since the last time; a start applies again what came after it.
    pub checkpoint_interval_bytes: u64,
    /// A snapshot of the state is taken when this much log has been written since the last one.
    pub snapshot_interval_bytes: u64,
    /// Applied entries that stay in the log behind the snapshot, so that a replica which was away
    /// for a moment catches up from the log.
    pub purge_margin_entries: u64,
    /// The whole log is read and verified once in so long, so that bytes which rot where nobody reads are
    /// found while other replicas have them; 0: never.
    pub scrub_interval_s: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TopicsSection {
    /// The first send to an unknown topic, or the first route query for it, creates it.
    pub auto_create: bool,
    /// Queues of a topic in each group, unless its creator asks for another number.
    pub default_queues: u32,
    /// How far ahead the delivery time of a delayed message may be.
    pub delay_max_s: u64,
    /// How long messages are kept from when they became visible, read or not; 0 keeps them for ever. A
    /// topic may have its own: `ledgermq admin topic set`.
    pub retention_s: u64,
    /// What a group's log may hold; messages older than its last so many bytes go, whatever their topic
    /// keeps. 0 sets no limit.
    pub retention_bytes: u64,
    /// How often the leader of a group looks what may go.
    pub retention_check_ms: u64,
    /// Where members of a consumer group subscribe to a topic by different filters: how long what a silent
    /// member wants is left for it.
    pub subscription_lapse_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TransactionsSection {
    /// A transaction without an outcome for so long is asked about for the first time. A producer may
    /// ask for more time with its message.
    pub timeout_ms: u64,
    /// Between two questions about one transaction.
    pub check_interval_ms: u64,
    /// After so many questions it waits for `ledgermq admin transaction`.
    pub checks_max: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TlsModeSetting {
    /// Plaintext only.
    Disabled,
    /// TLS and plaintext on the same port.
    Permissive,
    /// TLS only.
    Enforcing,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TlsSection {
    /// What the client port speaks.
    pub mode: TlsModeSetting,
    /// PEM file of the certificate; empty together with `key`: a self-signed one is made in the data
    /// directory.
    pub cert: String,
    /// PEM file of the private key.
    pub key: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RouteSection {
    /// What routes name as the address of every queue: `echo` is the access point the client came
    /// by; else `dns:host:port`, `ipv4:ip:port,ip:port` or `ipv6:[ip]:port,[ip]:port`.
    pub endpoints: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RaftSection {
    /// How often a leader tells its followers that it lives.
    pub heartbeat_ms: u64,
    /// The least of the random time a follower waits beyond the leader's lease before it campaigns; at
    /// least two heartbeats.
    pub election_timeout_min_ms: u64,
    /// The greatest of that random time, and the length of the leader's lease.
    pub election_timeout_max_ms: u64,
    /// Threads of the replicas alone, so that no number of requests can keep a heartbeat waiting; 0
    /// shares those that run requests.
    pub threads: usize,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeEntry {
    /// At least 1, once in the list.
    pub id: u64,
    /// `host:port` of its peer port.
    pub peer: String,
    /// `host:port` of its client port.
    pub client: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupEntry {
    /// At least 1, once in the list; it is part of receipt handles.
    pub id: u32,
    /// The *broker name* in RocketMQ's routes.
    pub name: String,
    /// Node ids. A node carries the groups it is a member of.
    pub members: Vec<u64>,
}

impl Default for BrokerConfig {
    fn default() -> Self {
        Self {
            worker_threads: 0,
            nameservers: Vec::new(),
            cluster: ClusterSection::default(),
            node: NodeSection::default(),
            listen: ListenSection::default(),
            advertise: AdvertiseSection::default(),
            storage: StorageSection::default(),
            topics: TopicsSection::default(),
            transactions: TransactionsSection::default(),
            tls: TlsSection::default(),
            route: RouteSection::default(),
            raft: RaftSection::default(),
            nodes: vec![NodeEntry {
                id: 1,
                peer: "127.0.0.1:8082".to_owned(),
                client: "127.0.0.1:8081".to_owned(),
            }],
            groups: vec![GroupEntry { id: 1, name: "group-1".to_owned(), members: vec![1] }],
        }
    }
}

impl Default for ClusterSection {
    fn default() -> Self {
        Self { name: "ledgermq".to_owned() }
    }
}

impl Default for NodeSection {
    fn default() -> Self {
        Self { id: 1 }
    }
}

impl Default for ListenSection {
    fn default() -> Self {
        Self {
            client: "127.0.0.1:8081".to_owned(),
            peer: "127.0.0.1:8082".to_owned(),
            http: "127.0.0.1:8083".to_owned(),
        }
    }
}

impl Default for AdvertiseSection {
    fn default() -> Self {
        Self { client: String::new(), peer: String::new() }
    }
}

impl Default for StorageSection {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("data"),
            segment_size_bytes: 1024 * 1024 * 1024,
            checkpoint_interval_bytes: 256 * 1024 * 1024,
            snapshot_interval_bytes: 1024 * 1024 * 1024,
            purge_margin_entries: 100_000,
            scrub_interval_s: 7 * 24 * 3600,
        }
    }
}

impl Default for TopicsSection {
    fn default() -> Self {
        Self {
            auto_create: false,
            default_queues: 8,
            delay_max_s: 40 * 24 * 3600,
            retention_s: 72 * 3600,
            retention_bytes: 0,
            retention_check_ms: 10_000,
            subscription_lapse_ms: limits::CLIENT_EXPIRY_MS,
        }
    }
}

impl Default for TransactionsSection {
    /// RocketMQ's `transactionTimeOut`, `transactionCheckInterval` and `transactionCheckMax`.
    fn default() -> Self {
        Self { timeout_ms: 6_000, check_interval_ms: 30_000, checks_max: 15 }
    }
}

impl Default for TlsSection {
    fn default() -> Self {
        Self { mode: TlsModeSetting::Permissive, cert: String::new(), key: String::new() }
    }
}

impl Default for RouteSection {
    fn default() -> Self {
        Self { endpoints: "echo".to_owned() }
    }
}

impl Default for RaftSection {
    fn default() -> Self {
        // openraft waits for the lease (the maximum) and then a random timeout on top: a stopped
        // leader is replaced after 650 to 800 ms.
        Self { heartbeat_ms: 100, election_timeout_min_ms: 250, election_timeout_max_ms: 400, threads: 1 }
    }
}

/// A value that parses but cannot be used.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{key} = {value}: {reason}")]
pub struct InvalidValue {
    pub key: String,
    pub value: String,
    pub reason: String,
}

impl BrokerConfig {
    /// Checks what the types cannot: limits, and references between sections.
    pub fn validate(&self) -> Result<(), InvalidValue> {
        within("raft.threads", self.raft.threads as u64, 0, RAFT_THREADS_MAX as u64)?;
        within("worker_threads", self.worker_threads as u64, 0, WORKER_THREADS_MAX as u64)?;
        for (i, address) in self.nameservers.iter().enumerate() {
            host_and_port(&format!("nameservers[{i}]"), address)?;
        }
        name("cluster.name", &self.cluster.name)?;
        if self.node.id == 0 {
            return refused("node.id", 0, "must be at least 1");
        }
        for (key, value) in [
            ("listen.client", &self.listen.client),
            ("listen.peer", &self.listen.peer),
            ("listen.http", &self.listen.http),
        ] {
            socket_address(key, value)?;
        }
        for (key, value) in
            [("advertise.client", &self.advertise.client), ("advertise.peer", &self.advertise.peer)]
        {
            if !value.is_empty() {
                host_and_port(key, value)?;
            }
        }
        self.validate_storage()?;
        within(
            "topics.default_queues",
            u64::from(self.topics.default_queues),
            1,
            u64::from(limits::TOPIC_QUEUES_MAX),
        )?;
        within("transactions.timeout_ms", self.transactions.timeout_ms, 100, 24 * 60 * 60 * 1000)?;
        within(
            "transactions.check_interval_ms",
            self.transactions.check_interval_ms,
            100,
            24 * 60 * 60 * 1000,
        )?;
        within("transactions.checks_max", u64::from(self.transactions.checks_max), 1, 10_000)?;
        within("topics.retention_s", self.topics.retention_s, 0, RETENTION_S_MAX)?;
        within("topics.retention_check_ms", self.topics.retention_check_ms, 100, 3_600_000)?;
        within("topics.subscription_lapse_ms", self.topics.subscription_lapse_ms, 1_000, 3_600_000)?;
        if self.topics.retention_bytes != 0 {
            let bytes_min = 4 * self.storage.segment_size_bytes;
            within("topics.retention_bytes", self.topics.retention_bytes, bytes_min, u64::MAX)?;
        }
        within("topics.delay_max_s", self.topics.delay_max_s, 1, DELIVERY_DELAY_MS_MAX as u64 / 1000)?;
        if self.tls.cert.is_empty() != self.tls.key.is_empty() {
            return refused("tls.cert", &self.tls.cert, "tls.cert and tls.key must be set together");
        }
        if let Err(e) = self.route.endpoints.parse::<RouteEndpoints>() {
            return refused("route.endpoints", &self.route.endpoints, e.reason);
        }
        within("raft.heartbeat_ms", self.raft.heartbeat_ms, 10, 10_000)?;
        // A follower that misses a single heartbeat must not campaign.
        within(
            "raft.election_timeout_min_ms",
            self.raft.election_timeout_min_ms,
            self.raft.heartbeat_ms * 2,
            60_000,
        )?;
        within(
            "raft.election_timeout_max_ms",
            self.raft.election_timeout_max_ms,
            self.raft.election_timeout_min_ms + 1,
            120_000,
        )?;
        self.validate_nodes_and_groups()
    }

    /// The groups this node carries a replica of.
    pub fn hosted_groups(&self) -> impl Iterator<Item = &GroupEntry> {
        self.groups.iter().filter(|g| g.members.contains(&self.node.id))
    }

    pub fn node_id(&self) -> NodeId {
        NodeId(self.node.id)
    }

    /// `host:port` at which clients reach this node.
    pub fn advertised_client(&self) -> String {
        self.advertised(&self.advertise.client, |n| &n.client, &self.listen.client)
    }

    /// `host:port` at which peers reach this node.
    pub fn advertised_peer(&self) -> String {
        self.advertised(&self.advertise.peer, |n| &n.peer, &self.listen.peer)
    }

    fn advertised(&self, set: &str, of_node: impl Fn(&NodeEntry) -> &String, listen: &str) -> String {
        if !set.is_empty() {
            return set.to_owned();
        }
        self.nodes.iter().find(|n| n.id == self.node.id).map_or(listen, |n| of_node(n)).to_owned()
    }

    fn validate_storage(&self) -> Result<(), InvalidValue> {
        let storage = &self.storage;
        if storage.data_dir.as_os_str().is_empty() {
            return refused("storage.data_dir", "", "must name a directory");
        }
        within(
            "storage.segment_size_bytes",
            storage.segment_size_bytes,
            SEGMENT_SIZE_BYTES_MIN,
            SEGMENT_SIZE_BYTES_MAX,
        )?;
        if !storage.segment_size_bytes.is_multiple_of(4096) {
            return refused(
                "storage.segment_size_bytes",
                storage.segment_size_bytes,
                "must be a multiple of 4096",
            );
        }
        within(
            "storage.checkpoint_interval_bytes",
            storage.checkpoint_interval_bytes,
            1024 * 1024,
            16 * 1024 * 1024 * 1024,
        )?;
        within(
            "storage.snapshot_interval_bytes",
            storage.snapshot_interval_bytes,
            1024 * 1024,
            1024 * 1024 * 1024 * 1024,
        )?;
        within("storage.purge_margin_entries", storage.purge_margin_entries, 1_000, 1_000_000_000)?;
        within("storage.scrub_interval_s", storage.scrub_interval_s, 0, 366 * 24 * 3600)
    }

    fn validate_nodes_and_groups(&self) -> Result<(), InvalidValue> {
        within("nodes (count)", self.nodes.len() as u64, 1, NODES_MAX as u64)?;
        within("groups (count)", self.groups.len() as u64, 1, GROUPS_MAX as u64)?;
        let mut node_ids = BTreeSet::new();
        for (i, node) in self.nodes.iter().enumerate() {
            if node.id == 0 || !node_ids.insert(node.id) {
                return refused(&format!("nodes[{i}].id"), node.id, "must be at least 1 and stand once");
            }
            host_and_port(&format!("nodes[{i}].peer"), &node.peer)?;
            host_and_port(&format!("nodes[{i}].client"), &node.client)?;
        }
        if !node_ids.contains(&self.node.id) {
            return refused("node.id", self.node.id, "is not the id of one of [[nodes]]");
        }
        let mut group_ids = BTreeSet::new();
        let mut group_names = BTreeSet::new();
        for (i, group) in self.groups.iter().enumerate() {
            if group.id == 0 || !group_ids.insert(GroupId(group.id)) {
                return refused(&format!("groups[{i}].id"), group.id, "must be at least 1 and stand once");
            }
            if let Err(e) = GroupName::parse(&group.name) {
                return refused(&format!("groups[{i}].name"), &group.name, e.to_string());
            }
            if !group_names.insert(&group.name) {
                return refused(&format!("groups[{i}].name"), &group.name, "must stand once");
            }
            let key = format!("groups[{i}].members");
            within(&key, group.members.len() as u64, 1, GROUP_MEMBERS_MAX as u64)?;
            let mut members = BTreeSet::new();
            for member in &group.members {
                if !node_ids.contains(member) {
                    return refused(&key, member, "is not the id of one of [[nodes]]");
                }
                if !members.insert(member) {
                    return refused(&key, member, "stands twice");
                }
            }
        }
        Ok(())
    }
}

fn refused<T>(
    key: &str,
    value: impl std::fmt::Display,
    reason: impl Into<String>,
) -> Result<T, InvalidValue> {
    Err(InvalidValue { key: key.to_owned(), value: value.to_string(), reason: reason.into() })
}

fn within(key: &str, value: u64, min: u64, max: u64) -> Result<(), InvalidValue> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    refused(key, value, format!("must lie between {min} and {max}"))
}

fn name(key: &str, value: &str) -> Result<(), InvalidValue> {
    let legal = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_' || c == '.';
    if (1..=64).contains(&value.len()) && value.chars().all(legal) {
        return Ok(());
    }
    refused(key, value, "must be 1 to 64 characters of a-z, A-Z, 0-9, '-', '_' and '.'")
}

fn socket_address(key: &str, value: &str) -> Result<(), InvalidValue> {
    match value.parse::<SocketAddr>() {
        Ok(_) => Ok(()),
        Err(_) => refused(key, value, "must be an IP address and a port, such as 127.0.0.1:8081"),
    }
}

fn host_and_port(key: &str, value: &str) -> Result<(), InvalidValue> {
    let good = value.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty() && host.chars().all(|c| c.is_ascii_graphic()) && port.parse::<u16>().is_ok()
    });
    if good { Ok(()) } else { refused(key, value, "must be host:port") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_a_cluster_of_one_that_passes_its_own_checks() {
        let config = BrokerConfig::default();
        config.validate().expect("the default is usable");
        assert_eq!(config.hosted_groups().count(), 1);
        assert_eq!(config.advertised_client(), "127.0.0.1:8081");
    }

    #[test]
    fn a_refused_value_is_named_with_its_key_and_limit() {
        type Spoil = fn(&mut BrokerConfig);
        let rows: Vec<(&str, Spoil)> = vec![
            ("worker_threads = 257: must lie between 0 and 256", |c| c.worker_threads = 257),
            ("node.id = 7: is not the id of one of [[nodes]]", |c| c.node.id = 7),
            ("listen.client = here: must be an IP address", |c| c.listen.client = "here".into()),
            ("nameservers[0] = x: must be host:port", |c| c.nameservers = vec!["x".into()]),
            ("topics.default_queues = 0: must lie between 1", |c| c.topics.default_queues = 0),
            ("storage.segment_size_bytes = 1: must lie between", |c| c.storage.segment_size_bytes = 1),
            ("groups[0].members = 9: is not the id", |c| c.groups[0].members = vec![9]),
            ("groups[0].name = a b: ", |c| c.groups[0].name = "a b".into()),
            ("tls.cert = x: tls.cert and tls.key must be set together", |c| c.tls.cert = "x".into()),
            ("raft.election_timeout_min_ms = 100: must lie between 200", |c| {
                c.raft.election_timeout_min_ms = 100;
            }),
        ];
        for (expected, spoil) in rows {
            let mut config = BrokerConfig::default();
            spoil(&mut config);
            let text = config.validate().expect_err(expected).to_string();
            assert!(text.starts_with(expected), "{text} does not start with {expected}");
        }
    }
}
