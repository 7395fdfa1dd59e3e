//! Where a child's files and ports are, and the configuration each is given.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use ledgermq_broker::BrokerConfig;
use ledgermq_broker::config::{GroupEntry, NodeEntry};
use ledgermq_nameserver::NameserverConfig;

use super::compose::ComposePlan;
use super::{Member, free_ports};

/// Small, because a segment is prepared at its full size and these clusters live on laptops.
const SEGMENT_SIZE_BYTES: u64 = 64 * 1024 * 1024;
const PORTS_PER_MEMBER: usize = 3;
/// With a chosen base, each member's ports begin this far after those of the one before.
const PORT_STRIDE: u16 = 10;

#[derive(Debug, Clone)]
pub struct ClusterPlan {
    /// The `ledgermq` binary.
    pub binary: PathBuf,
    /// Everything the cluster writes is below it.
    pub dir: PathBuf,
    pub nameservers: u64,
    pub brokers: u64,
    /// Each group has all brokers as members.
    pub groups: u32,
    pub auto_create_topics: bool,
    /// `None` chooses free ports.
    pub port_base: Option<u16>,
    /// Threads of each broker; 0 is one per core. One by default: the brokers of such a cluster share
    /// a machine, and with a pool each they mostly wake each other's threads (half the throughput on
    /// two cores).
    pub worker_threads: usize,
    pub segment_size_bytes: u64,
    /// More settings for the brokers, as `--set` takes them.
    pub broker_settings: Vec<String>,
    /// The log filter of the children.
    pub log: String,
    /// Each broker's data lies on a disk of its own that can fail; needs root and `/dev/fuse`.
    pub faulty_disks: bool,
    /// Syncs of such a disk reach the real one.
    pub sync_through: bool,
    /// Each broker has a wall clock of its own that can be wrong.
    pub skewed_clocks: bool,
    /// Each member is a host of its own, with links that can be bad; needs root and `/dev/net/tun`.
    pub faulty_network: bool,
    /// Decides what bad links do.
    pub network_seed: u64,
    /// Members are containers instead of children; of the rest only `dir` and `brokers` mean something then.
    /// A project that runs has as many brokers as it has.
    pub compose: Option<ComposePlan>,
}

impl ClusterPlan {
    /// A nameserver and one group of three brokers on free ports.
    pub fn new(binary: impl Into<PathBuf>, dir: impl Into<PathBuf>) -> Self {
        Self {
            binary: binary.into(),
            dir: dir.into(),
            nameservers: 1,
            brokers: 3,
            groups: 1,
            auto_create_topics: true,
            port_base: None,
            worker_threads: 1,
            segment_size_bytes: SEGMENT_SIZE_BYTES,
            broker_settings: Vec::new(),
            log: "info,openraft=error".to_owned(),
            faulty_disks: false,
            sync_through: false,
            skewed_clocks: false,
            faulty_network: false,
            network_seed: 0,
            compose: None,
        }
    }

    fn members(&self) -> impl Iterator<Item = Member> {
        (1..=self.nameservers).map(Member::Nameserver).chain((1..=self.brokers).map(Member::Broker))
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) struct MemberPorts {
    pub client: u16,
    pub peer: u16,
    pub http: u16,
}

pub(super) fn config_path(plan: &ClusterPlan, member: Member) -> PathBuf {
    plan.dir.join(format!("{member}.toml"))
}

pub(super) fn log_path(plan: &ClusterPlan, member: Member) -> PathBuf {
    plan.dir.join(format!("{member}.log"))
}

pub(super) fn data_dir(plan: &ClusterPlan, member: Member) -> PathBuf {
    plan.dir.join(member.to_string())
}

pub(super) fn disk_files(plan: &ClusterPlan, member: Member) -> PathBuf {
    plan.dir.join(format!("{member}.disk"))
}

pub(super) fn clock_path(plan: &ClusterPlan, member: Member) -> PathBuf {
    plan.dir.join(format!("{member}.clock"))
}

/// The number of the member's host in a network of the cluster's own.
pub(super) fn host(plan: &ClusterPlan, member: Member) -> anyhow::Result<usize> {
    let number = match member {
        Member::Broker(number) => number,
        Member::Nameserver(number) => plan.brokers + number,
    };
    usize::try_from(number).context("more members than hosts")
}

pub(super) fn arguments(plan: &ClusterPlan, member: Member) -> Vec<OsString> {
    let command = match member {
        Member::Nameserver(_) => "nameserver",
        Member::Broker(_) => "broker",
    };
    let mut arguments: Vec<OsString> =
        vec!["--log".into(), plan.log.clone().into(), command.into(), "--config".into()];
    arguments.push(config_path(plan, member).into());
    if matches!(member, Member::Broker(_)) {
        for setting in &plan.broker_settings {
            arguments.push("--set".into());
            arguments.push(setting.into());
        }
    }
    arguments
}

pub(super) fn assign_ports(plan: &ClusterPlan) -> anyhow::Result<BTreeMap<Member, MemberPorts>> {
    let members: Vec<Member> = plan.members().collect();
    let Some(base) = plan.port_base else {
        let free = free_ports(members.len() * PORTS_PER_MEMBER)?;
        let ports = free.chunks_exact(PORTS_PER_MEMBER).filter_map(|chunk| match chunk {
            [client, peer, http] => Some(MemberPorts { client: *client, peer: *peer, http: *http }),
            _ => None,
        });
        return Ok(members.into_iter().zip(ports).collect());
    };
    let mut assigned = BTreeMap::new();
    for (index, member) in members.into_iter().enumerate() {
        let offset = u16::try_from(index).ok().and_then(|index| index.checked_mul(PORT_STRIDE));
        let first = offset.and_then(|offset| base.checked_add(offset)).filter(|first| *first < u16::MAX - 2);
        let first = first.with_context(|| format!("--port-base {base} leaves too few ports above it"))?;
        assigned.insert(member, MemberPorts { client: first, peer: first + 1, http: first + 2 });
    }
    Ok(assigned)
}

pub(super) fn write_configs(
    plan: &ClusterPlan,
    ports: &BTreeMap<Member, MemberPorts>,
    addresses: &BTreeMap<Member, Ipv4Addr>,
) -> anyhow::Result<()> {
    let at = |member: &Member, port: u16| {
        format!("{}:{port}", addresses.get(member).copied().unwrap_or(Ipv4Addr::LOCALHOST))
    };
    let mut nodes = Vec::new();
    let mut nameservers = Vec::new();
    for (member, ports) in ports {
        match member {
            Member::Broker(id) => {
                let (peer, client) = (at(member, ports.peer), at(member, ports.client));
                nodes.push(NodeEntry { id: *id, peer, client });
            }
            Member::Nameserver(_) => nameservers.push(at(member, ports.client)),
        }
    }
    let members: Vec<u64> = nodes.iter().map(|node| node.id).collect();
    let groups: Vec<GroupEntry> = (1..=plan.groups)
        .map(|id| GroupEntry { id, name: format!("group-{id}"), members: members.clone() })
        .collect();
    for (member, ports) in ports {
        match member {
            Member::Broker(id) => {
                let mut config = BrokerConfig {
                    worker_threads: plan.worker_threads,
                    nameservers: nameservers.clone(),
                    nodes: nodes.clone(),
                    groups: groups.clone(),
                    ..BrokerConfig::default()
                };
                config.node.id = *id;
                config.listen.client = at(member, ports.client);
                config.listen.peer = at(member, ports.peer);
                config.listen.http = at(member, ports.http);
                config.storage.data_dir = std::path::absolute(data_dir(plan, *member))?;
                config.storage.segment_size_bytes = plan.segment_size_bytes;
                config.topics.auto_create = plan.auto_create_topics;
                write(&config_path(plan, *member), &toml::to_string(&config)?)?;
            }
            Member::Nameserver(_) => {
                let mut config = NameserverConfig::default();
                config.listen.client = at(member, ports.client);
                config.listen.http = at(member, ports.http);
                config.tls.directory = std::path::absolute(data_dir(plan, *member))?.join("tls");
                write(&config_path(plan, *member), &toml::to_string(&config)?)?;
            }
        }
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
