//! A cluster of real processes with real files. Nameservers and brokers are children of this process,
//! started from this very binary (`dev`, `demo`, `bench local` and the fault tests), or the containers
//! of a compose project ([`ComposePlan`]).
//!
//! | File below the cluster's directory | Content |
//! |---|---|
//! | `nameserver-N.toml`, `broker-N.toml` | generated configuration |
//! | `nameserver-N.log`, `broker-N.log` | standard output and error, appended over restarts |
//! | `broker-N/` | data directory; a mount where disks are faulty |
//! | `broker-N.disk/` | what is durable on such a disk, and the tree it ended with (`last`) |
//! | `broker-N.clock` | how wrong its wall clock is, where clocks are skewed |
//!
//! What must hold: only processes started here are signalled, by their id; a child dies when its
//! parent does, however that ends; a port is never handed out twice. Of containers only those with the
//! project's label are touched, and what a killed parent leaves of a project of its own is removed by
//! the next one.

mod child;
mod clock;
mod compose;
mod container;
mod docker;
mod layout;
mod links;
mod ports;
mod probe;
mod process;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context as _, bail};
use ledgermq_client::{Client, ClientOptions};
use ledgermq_faultfs::DiskProcess;
use ledgermq_faultnet::Network;
use ledgermq_proto::admin::{
    ClusterStatusRequest, ClusterStatusResponse, RejoinReplicaRequest, Replica, TransferLeadershipRequest,
};
use tokio::time::Instant;

use child::ChildProcess;
pub use clock::SkewedClock;
use compose::Project;
pub use compose::{ComposePlan, SIZES as COMPOSE_SIZES};
use container::Container;
pub use layout::ClusterPlan;
pub use links::Links;
pub use ports::free_ports;
pub use probe::{HttpAnswer, http_get, process_state};
use process::Process;

/// A process that waits for its disk ends only when the disk lets go of it.
const KILLED_WITHIN: Duration = Duration::from_secs(1);
const READY_POLL: Duration = Duration::from_millis(20);
/// A container is asked by a command of its own.
const CONTAINER_POLL: Duration = Duration::from_millis(200);

/// One process of the cluster. Both kinds are numbered from 1; a broker's number is its node id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Member {
    Nameserver(u64),
    Broker(u64),
}

impl std::fmt::Display for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Nameserver(number) => write!(f, "nameserver-{number}"),
            Self::Broker(number) => write!(f, "broker-{number}"),
        }
    }
}

/// Dropping it kills what still runs.
pub struct Cluster {
    plan: ClusterPlan,
    members: BTreeMap<Member, Running>,
    /// After the members: a host ends with its last process, and a project is taken down last.
    network: Option<Network>,
    project: Option<Project>,
}

struct Running {
    /// `host:port` for clients.
    access_point: String,
    /// Where `/readyz` and `/metrics` are; none where nobody but the member itself reaches them.
    http: Option<String>,
    process: Process,
    paused: bool,
    clock: Option<SkewedClock>,
    disk: Option<DiskProcess>,
}

impl Drop for Running {
    /// A process that waits for its disk ends only when the disk lets go of it.
    fn drop(&mut self) {
        if let Process::Child(child) = &mut self.process
            && let Err(error) = child.send_kill()
        {
            tracing::warn!(pid = child.pid(), "child process not killed: {error:#}");
        }
        self.disk = None;
    }
}

impl Cluster {
    /// Writes the configuration and starts every process. Returns at once;
    /// [`Cluster::wait_ready`] waits until they serve.
    pub fn start(plan: ClusterPlan) -> anyhow::Result<Self> {
        std::fs::create_dir_all(&plan.dir)
            .with_context(|| format!("cannot create the cluster's directory {}", plan.dir.display()))?;
        if let Some(compose) = plan.compose.clone() {
            return Self::of_containers(plan, &compose);
        }
        let ports = layout::assign_ports(&plan)?;
        let hosts = usize::try_from(plan.brokers + plan.nameservers)?;
        let network = plan.faulty_network.then(|| Network::start(hosts, plan.network_seed)).transpose()?;
        let mut addresses = BTreeMap::new();
        for member in ports.keys() {
            let address = match &network {
                Some(network) => network.address(layout::host(&plan, *member)?),
                None => Ipv4Addr::LOCALHOST,
            };
            addresses.insert(*member, address);
        }
        layout::write_configs(&plan, &ports, &addresses)?;
        let mut members = BTreeMap::new();
        for (member, ports) in ports {
            let is_broker = matches!(member, Member::Broker(_));
            let disk = (plan.faulty_disks && is_broker).then(|| start_disk(&plan, member)).transpose()?;
            let clock = (plan.skewed_clocks && is_broker)
                .then(|| SkewedClock::create(layout::clock_path(&plan, member)))
                .transpose()?;
            let address = addresses.get(&member).copied().unwrap_or(Ipv4Addr::LOCALHOST);
            let process = start_process(&plan, member, clock.as_ref(), network.as_ref())?;
            let running = Running {
                access_point: format!("{address}:{}", ports.client),
                http: Some(format!("{address}:{}", ports.http)),
                process: Process::Child(process),
                paused: false,
                clock,
                disk,
            };
            members.insert(member, running);
        }
        Ok(Self { plan, members, network, project: None })
    }

    fn of_containers(plan: ClusterPlan, compose: &ComposePlan) -> anyhow::Result<Self> {
        let (project, joined) = Project::open(&plan, compose)?;
        let mut members = BTreeMap::new();
        for joined in joined {
            let running = Running {
                access_point: joined.access_point,
                http: None,
                process: Process::Container(joined.container),
                paused: false,
                clock: None,
                disk: None,
            };
            members.insert(joined.member, running);
        }
        Ok(Self { plan, members, network: None, project: Some(project) })
    }

    pub fn members(&self) -> impl Iterator<Item = Member> + '_ {
        self.members.keys().copied()
    }

    pub fn brokers(&self) -> impl Iterator<Item = Member> + '_ {
        self.members().filter(|member| matches!(member, Member::Broker(_)))
    }

    pub fn dir(&self) -> &Path {
        &self.plan.dir
    }

    /// `host:port` of the member's client port.
    pub fn access_point(&self, member: Member) -> anyhow::Result<String> {
        Ok(self.member(member)?.access_point.clone())
    }

    /// All brokers, as a list that a client takes.
    pub fn broker_access_points(&self) -> String {
        self.access_points(|member| matches!(member, Member::Broker(_)))
    }

    /// All nameservers, as a list that a client takes; all brokers where there is no nameserver.
    pub fn nameserver_access_points(&self) -> String {
        let list = self.access_points(|member| matches!(member, Member::Nameserver(_)));
        if list.is_empty() { self.broker_access_points() } else { list }
    }

    fn access_points(&self, of: fn(Member) -> bool) -> String {
        let members = self.members.iter().filter(|(member, _)| of(**member));
        members.map(|(_, running)| running.access_point.as_str()).collect::<Vec<_>>().join(";")
    }

    pub fn http_address(&self, member: Member) -> anyhow::Result<String> {
        let http = self.member(member)?.http.clone();
        http.with_context(|| format!("the HTTP port of {member} is not reached from here"))
    }

    pub fn pid(&self, member: Member) -> anyhow::Result<u32> {
        Ok(self.member(member)?.process.pid())
    }

    /// What tells this process of the member from one that is started later.
    pub fn incarnation(&self, member: Member) -> anyhow::Result<String> {
        Ok(self.member(member)?.process.incarnation())
    }

    pub fn log_path(&self, member: Member) -> PathBuf {
        layout::log_path(&self.plan, member)
    }

    pub fn config_path(&self, member: Member) -> PathBuf {
        layout::config_path(&self.plan, member)
    }

    pub fn data_dir(&self, member: Member) -> PathBuf {
        layout::data_dir(&self.plan, member)
    }

    /// Waits until `/readyz` of every member that runs says so.
    pub async fn wait_ready(&mut self, within: Duration) -> anyhow::Result<()> {
        let members: Vec<_> = self.members().collect();
        let deadline = Instant::now() + within;
        for member in members {
            self.wait_member_ready(member, deadline.saturating_duration_since(Instant::now())).await?;
        }
        Ok(())
    }

    pub async fn wait_member_ready(&mut self, member: Member, within: Duration) -> anyhow::Result<()> {
        let deadline = Instant::now() + within;
        let log = self.log_path(member);
        loop {
            let running = self.member_mut(member)?;
            let last = match running.readiness().await {
                Ok(()) => return Ok(()),
                Err(last) => last,
            };
            if let Some(status) = running.process.exited()? {
                bail!("{member} ended with {status}; its log is {}", log.display());
            }
            if Instant::now() >= deadline {
                bail!("{member} is not ready ({last}); its log is {}", log.display());
            }
            tokio::time::sleep(if running.http.is_some() { READY_POLL } else { CONTAINER_POLL }).await;
        }
    }

    /// Members that ended without being told to, with how they ended.
    pub fn fallen(&mut self) -> anyhow::Result<Vec<(Member, ExitStatus)>> {
        let mut fallen = Vec::new();
        for (member, running) in &mut self.members {
            if let Some(status) = running.process.exited()? {
                fallen.push((*member, status));
            }
        }
        Ok(fallen)
    }

    /// SIGKILL. Returns when the process is gone and the moment it was certain to be.
    pub fn kill(&mut self, member: Member) -> anyhow::Result<Instant> {
        let running = self.member_mut(member)?;
        running.process.kill()?;
        running.paused = false;
        Ok(Instant::now())
    }

    /// SIGKILL to all of them, as much at once as may be.
    pub fn kill_all(&mut self, members: &[Member]) -> anyhow::Result<()> {
        process::to_all(self.processes(members, false)?, ChildProcess::kill, Container::kill)
    }

    /// SIGKILL without waiting for the end, which comes when its disk lets it go.
    pub fn send_kill(&mut self, member: Member) -> anyhow::Result<()> {
        let running = self.member_mut(member)?;
        running.process.send_kill()?;
        running.paused = false;
        Ok(())
    }

    /// How the member ended, `None` if it still runs after `within`.
    pub async fn wait_end(&mut self, member: Member, within: Duration) -> anyhow::Result<Option<ExitStatus>> {
        self.member_mut(member)?.process.wait(within).await
    }

    pub fn has_ended(&mut self, member: Member) -> anyhow::Result<bool> {
        Ok(self.member_mut(member)?.process.exited()?.is_some())
    }

    /// The links between the members, for the time of a fault; an error where they have none of their
    /// own.
    pub fn links(&self) -> anyhow::Result<Links<'_>> {
        if let Some(network) = &self.network {
            return Ok(Links::Switch(network));
        }
        let mut containers = Vec::new();
        for (member, running) in &self.members {
            let Process::Container(container) = &running.process else {
                bail!("the members of this cluster are not hosts of their own");
            };
            containers.push((self.host(*member)?, container));
        }
        Ok(Links::Filters(compose::firewalls(&containers)?))
    }

    /// The member's number in [`Cluster::links`].
    pub fn host(&self, member: Member) -> anyhow::Result<usize> {
        if self.project.is_none() {
            return layout::host(&self.plan, member);
        }
        let position = self.members.keys().position(|known| *known == member);
        Ok(position.with_context(|| format!("the cluster has no {member}"))? + 1)
    }

    /// The disk of a broker; an error where disks are not faulty.
    pub fn disk(&mut self, member: Member) -> anyhow::Result<&mut DiskProcess> {
        self.member_mut(member)?.disk.as_mut().with_context(|| format!("{member} has no faulty disk"))
    }

    /// The clock of a broker; an error where clocks are not skewed.
    pub fn clock(&mut self, member: Member) -> anyhow::Result<&mut SkewedClock> {
        self.member_mut(member)?.clock.as_mut().with_context(|| format!("{member} has no skewed clock"))
    }

    /// SIGSTOP or the freezer: the process keeps its sockets and does nothing.
    pub fn pause(&mut self, member: Member) -> anyhow::Result<()> {
        let running = self.member_mut(member)?;
        running.process.pause()?;
        running.paused = true;
        Ok(())
    }

    /// All of them, as much at once as may be.
    pub fn pause_all(&mut self, members: &[Member]) -> anyhow::Result<()> {
        let stop = |child: &mut ChildProcess| child.signal(libc::SIGSTOP);
        process::to_all(self.processes(members, true)?, stop, Container::pause)
    }

    /// SIGCONT.
    pub fn resume(&mut self, member: Member) -> anyhow::Result<()> {
        let running = self.member_mut(member)?;
        running.process.resume()?;
        running.paused = false;
        Ok(())
    }

    /// All of them, as much at once as may be.
    pub fn resume_all(&mut self, members: &[Member]) -> anyhow::Result<()> {
        let go_on = |child: &mut ChildProcess| child.signal(libc::SIGCONT);
        process::to_all(self.processes(members, false)?, go_on, Container::resume)
    }

    /// Whether the member is stopped, as whoever runs it says.
    pub fn stands_still(&self, member: Member) -> anyhow::Result<bool> {
        self.member(member)?.process.stands_still().with_context(|| member.to_string())
    }

    /// SIGTERM, and waits for the end; an error if that takes longer than `within`.
    pub async fn terminate(&mut self, member: Member, within: Duration) -> anyhow::Result<ExitStatus> {
        self.member_mut(member)?.process.terminate(within).await.with_context(|| member.to_string())
    }

    /// The processes of these members, which from now on count as paused or not.
    fn processes(&mut self, members: &[Member], paused: bool) -> anyhow::Result<Vec<&mut Process>> {
        let mut found = Vec::new();
        for (member, running) in &mut self.members {
            if members.contains(member) {
                running.paused = paused;
                found.push(&mut running.process);
            }
        }
        anyhow::ensure!(found.len() == members.len(), "the cluster has not all of {members:?}");
        Ok(found)
    }

    /// Starts a member that ended again, on its ports and its files.
    pub fn restart(&mut self, member: Member) -> anyhow::Result<()> {
        let Self { plan, members, network, .. } = self;
        let running = members.get_mut(&member).with_context(|| format!("the cluster has no {member}"))?;
        if running.process.exited()?.is_none() {
            bail!("{member} still runs");
        }
        match &mut running.process {
            Process::Container(container) => container.start()?,
            Process::Child(child) => {
                *child = start_process(plan, member, running.clock.as_ref(), network.as_ref())?;
            }
        }
        running.paused = false;
        Ok(())
    }

    /// Ends all processes and takes away what was made for them, bar the files.
    pub async fn stop(mut self, within: Duration) -> anyhow::Result<()> {
        self.end(within).await
    }

    /// SIGTERM to all at once, then SIGKILL to those that are left after `within`. Disks stay mounted.
    /// Containers leave their logs where those of children are; a project of ours is removed when this
    /// is dropped, another goes on.
    pub async fn end(&mut self, within: Duration) -> anyhow::Result<()> {
        let mut children = Vec::new();
        for (member, running) in &mut self.members {
            if let Some(disk) = &mut running.disk {
                disk.ask(&ledgermq_faultfs::Command::ClearRules)?;
            }
            match &mut running.process {
                Process::Child(child) => {
                    if child.exited()?.is_none() {
                        // A stopped process does not see SIGTERM.
                        child.signal(libc::SIGCONT)?;
                        child.signal(libc::SIGTERM)?;
                    }
                    children.push(child);
                }
                Process::Container(container) => {
                    let since = self.project.as_ref().map_or(0, Project::began_unix);
                    container.save_log(since, &layout::log_path(&self.plan, *member))?;
                }
            }
        }
        let deadline = Instant::now() + within;
        for child in children {
            let left = deadline.saturating_duration_since(Instant::now());
            if child.wait(left).await?.is_none() {
                child.send_kill()?;
                child.wait(KILLED_WITHIN).await?;
            }
        }
        Ok(())
    }

    /// What the brokers that run say about the cluster.
    pub async fn status(&mut self) -> anyhow::Result<ClusterStatusResponse> {
        let points = self.serving_brokers()?;
        if points.is_empty() {
            bail!("no broker runs");
        }
        let options = ClientOptions { total_deadline: Duration::from_secs(5), ..ClientOptions::default() };
        let client = Client::connect(&points.join(";"), options).await?;
        Ok(client.admin().cluster_status(ClusterStatusRequest {}).await?)
    }

    /// The leader of the group with this number, once a majority of nodes agrees on it.
    pub async fn wait_leader(&mut self, group: u32, within: Duration) -> anyhow::Result<Member> {
        let deadline = Instant::now() + within;
        loop {
            let seen = match self.status().await {
                Ok(status) => match leader_of(&status, group) {
                    Some(node) => return Ok(Member::Broker(node)),
                    None => "no node leads with the consent of a majority".to_owned(),
                },
                Err(error) => format!("{error:#}"),
            };
            if Instant::now() >= deadline {
                bail!("group {group} has no leader: {seen}");
            }
            tokio::time::sleep(READY_POLL).await;
        }
    }

    /// The name of the group with this number, and the newest term that a node knows.
    pub async fn group_and_term(&mut self, group: u32) -> anyhow::Result<(String, u64)> {
        let status = self.status().await?;
        let found = status.groups.into_iter().find(|candidate| candidate.id == group);
        let found = found.with_context(|| format!("the cluster has no group {group}"))?;
        Ok((found.name, found.term))
    }

    /// Gives leadership to a broker; false if it leads already.
    pub async fn transfer(&mut self, group: &str, heir: Member) -> anyhow::Result<bool> {
        let Member::Broker(node) = heir else { bail!("{heir} leads nothing") };
        let points = self.serving_brokers()?.join(";");
        let client = Client::connect(&points, ClientOptions::default()).await?;
        let request = TransferLeadershipRequest {
            group: group.to_owned(),
            node,
            ..TransferLeadershipRequest::default()
        };
        Ok(client.admin().transfer_leadership(request).await?.moved)
    }

    /// Takes the broker's replica out of a group.
    pub async fn take_out(&mut self, group: &str, member: Member) -> anyhow::Result<()> {
        let Member::Broker(node) = member else { bail!("{member} has no replica") };
        let points = self.serving_brokers()?.join(";");
        let client = Client::connect(&points, ClientOptions::default()).await?;
        let request =
            RejoinReplicaRequest { group: group.to_owned(), node, ..RejoinReplicaRequest::default() };
        client.admin().rejoin_replica(request).await?;
        Ok(())
    }

    /// What the brokers that run say of the replicas of a group.
    pub async fn replicas(&mut self, group: u32) -> anyhow::Result<Vec<Replica>> {
        let status = self.status().await?;
        let found = status.groups.into_iter().find(|candidate| candidate.id == group);
        Ok(found.with_context(|| format!("the cluster has no group {group}"))?.replicas)
    }

    fn serving_brokers(&mut self) -> anyhow::Result<Vec<String>> {
        let mut points = Vec::new();
        for (member, running) in &mut self.members {
            if matches!(member, Member::Broker(_)) && !running.paused && !running.process.is_down()? {
                points.push(running.access_point.clone());
            }
        }
        Ok(points)
    }

    fn member(&self, member: Member) -> anyhow::Result<&Running> {
        self.members.get(&member).with_context(|| format!("the cluster has no {member}"))
    }

    fn member_mut(&mut self, member: Member) -> anyhow::Result<&mut Running> {
        self.members.get_mut(&member).with_context(|| format!("the cluster has no {member}"))
    }
}

impl Running {
    /// What keeps it from serving, where it does not.
    async fn readiness(&self) -> Result<(), String> {
        match (&self.process, &self.http) {
            (Process::Container(container), _) => container.health().await,
            (Process::Child(_), None) => Err("nobody can ask it".to_owned()),
            (Process::Child(_), Some(address)) => match http_get(address, "/readyz").await {
                Ok(answer) if answer.status == 200 => Ok(()),
                Ok(answer) => Err(format!("HTTP {}: {}", answer.status, answer.body.trim())),
                Err(error) => Err(error.to_string()),
            },
        }
    }
}

fn start_process(
    plan: &ClusterPlan,
    member: Member,
    clock: Option<&SkewedClock>,
    network: Option<&Network>,
) -> anyhow::Result<ChildProcess> {
    let mut environment = Vec::new();
    if let Some(clock) = clock {
        environment.push(("LD_PRELOAD", clock::library(&plan.binary)?.into_os_string()));
        environment.push((clock::FILE_VARIABLE, clock.path().as_os_str().to_owned()));
    }
    let (arguments, log) = (layout::arguments(plan, member), layout::log_path(plan, member));
    let host = layout::host(plan, member)?;
    let namespace = network.map(|network| network.namespace(host));
    ChildProcess::start(&plan.binary, &arguments, &environment, namespace, &log)
        .with_context(|| format!("cannot start {member}"))
}

/// A process of its own that outlives its broker and ends with this one.
fn start_disk(plan: &ClusterPlan, member: Member) -> anyhow::Result<DiskProcess> {
    use std::os::unix::process::CommandExt as _;
    let at = layout::data_dir(plan, member);
    let mut program = std::process::Command::new(&plan.binary);
    program.arg("faultfs").arg("--files").arg(layout::disk_files(plan, member)).arg("--at").arg(&at);
    if plan.sync_through {
        program.arg("--through");
    }
    // Ctrl-C is for the parent, which takes the disks away after the processes that use them.
    program.process_group(0);
    DiskProcess::start(program, &at)
        .with_context(|| format!("the disk of {member} cannot be mounted (that needs root and /dev/fuse)"))
}

/// A leader that only it believes in is a leader of the past.
fn leader_of(status: &ClusterStatusResponse, group: u32) -> Option<u64> {
    let group = status.groups.iter().find(|candidate| candidate.id == group)?;
    let behind = group.replicas.iter().filter(|replica| replica.reachable && replica.leader == group.leader);
    (group.leader != 0 && behind.count() * 2 > group.replicas.len()).then_some(group.leader)
}

#[cfg(test)]
mod tests {
    use ledgermq_proto::admin::Replica;
    use ledgermq_proto::admin::cluster_status_response::Group;

    use super::*;

    fn status(leader: u64, believed: &[u64]) -> ClusterStatusResponse {
        let replicas = believed
            .iter()
            .zip(1..)
            .map(|(leader, node)| Replica {
                node,
                reachable: *leader != 99,
                leader: *leader,
                ..Default::default()
            })
            .collect();
        let group = Group { id: 1, leader, replicas, ..Default::default() };
        ClusterStatusResponse { groups: vec![group], ..Default::default() }
    }

    #[test]
    fn a_leader_counts_only_with_a_majority_behind_it() {
        assert_eq!(leader_of(&status(2, &[2, 2, 2]), 1), Some(2));
        assert_eq!(leader_of(&status(2, &[99, 2, 2]), 1), Some(2));
        assert_eq!(leader_of(&status(1, &[1, 99, 2]), 1), None);
        assert_eq!(leader_of(&status(0, &[0, 0, 0]), 1), None);
        assert_eq!(leader_of(&status(2, &[2, 2, 2]), 7), None);
    }
}
