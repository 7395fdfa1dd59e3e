//! A cluster that is a compose project: one of its own, brought up from the files of `deploy` and
//! removed afterwards, or one that somebody else runs. Those files have three brokers, or five with an
//! overlay.
//!
//! | Project | Is called | Afterwards |
//! |---|---|---|
//! | of its own | `ledgermq-chaos-MACHINE-PID-START`: machine and pid namespace, process, when that started | containers, networks and volumes with its label are removed |
//! | somebody's | as it is | members that a fault left paused or stopped run again |
//!
//! The name says who made a project, so that a later run can tell whether that process is still
//! there: what a harness that was killed left behind is removed by the next one. Everything is found
//! by compose's project label, nothing by a guess at a name.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use ledgermq_common::clock::{Clock as _, SystemClock};
use ledgermq_faultnet::{Firewalls, Walled};

use super::container::{self, Container};
use super::docker::{self, Inspected, PROJECT_LABEL, docker};
use super::{ClusterPlan, Member, free_ports};

const PREFIX: &str = "ledgermq-chaos-";
const UP_WITHIN: Duration = Duration::from_secs(180);
const ONEOFF_LABEL: &str = "com.docker.compose.oneoff";
/// How many brokers the files of `deploy` bring up: without and with the overlay.
pub const SIZES: [u64; 2] = [THREE, FIVE];
const THREE: u64 = 3;
const FIVE: u64 = 5;

const THREE_FILE: &str = "docker-compose.yml";
const FIVE_FILE: &str = "docker-compose.five.yml";
const FILES: [(&str, &str); 6] = [
    (THREE_FILE, include_str!("../../../deploy/docker-compose.yml")),
    (FIVE_FILE, include_str!("../../../deploy/docker-compose.five.yml")),
    ("compose/members.yml", include_str!("../../../deploy/compose/members.yml")),
    ("compose/broker.toml", include_str!("../../../deploy/compose/broker.toml")),
    ("compose/broker.five.toml", include_str!("../../../deploy/compose/broker.five.toml")),
    ("compose/nameserver.toml", include_str!("../../../deploy/compose/nameserver.toml")),
];

/// Members are containers of a compose project.
#[derive(Debug, Clone)]
pub struct ComposePlan {
    /// A project that runs; `None` brings one up.
    pub project: Option<String>,
    /// What a project of its own runs.
    pub image: String,
}

pub(super) struct Project {
    name: String,
    is_ours: bool,
    /// Seconds since 1970, as logs are asked for.
    began_unix: u64,
}

impl Project {
    /// Brings it up, or takes the one that is there, and answers its members.
    pub fn open(plan: &ClusterPlan, compose: &ComposePlan) -> anyhow::Result<(Self, Vec<Joined>)> {
        docker::reachable()?;
        remove_leftovers()?;
        let (name, is_ours) = match &compose.project {
            Some(name) => (name.clone(), false),
            None => (own_name(std::process::id())?, true),
        };
        // From here on it is taken down again, whatever else fails.
        let project = Self { name, is_ours, began_unix: SystemClock.now().get() / 1000 };
        if project.is_ours {
            project.bring_up(&plan.dir, plan.brokers, &compose.image)?;
        }
        let members = project.members()?;
        Ok((project, members))
    }

    fn bring_up(&self, dir: &Path, brokers: u64, image: &str) -> anyhow::Result<()> {
        let files = files_of(brokers)?;
        docker(&["image", "inspect", "--format", "{{.Id}}", image]).with_context(|| {
            format!("there is no image {image}; deploy/pack.sh makes ledgermq:local, --image names another")
        })?;
        for (name, text) in FILES {
            let path = dir.join(name);
            if let Some(folder) = path.parent() {
                std::fs::create_dir_all(folder)?;
            }
            std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        let words = docker::compose()?;
        let mut command = Command::new(words.first().unwrap_or(&"docker"));
        command.args(words.get(1..).unwrap_or_default()).args(["--project-name", &self.name]);
        for file in files {
            command.arg("--file").arg(dir.join(file));
        }
        command.args(["up", "--detach", "--no-build"]).env("LEDGERMQ_IMAGE", image);
        let variables = port_variables(brokers);
        for (variable, port) in variables.iter().zip(free_ports(variables.len())?) {
            command.env(variable, port.to_string());
        }
        let output = docker::run(command, UP_WITHIN)?;
        ensure!(output.status.success(), "{} up: {}", words.join(" "), output.stderr.trim());
        Ok(())
    }

    fn members(&self) -> anyhow::Result<Vec<Joined>> {
        let ids = docker::labelled("container", &self.label())?;
        ensure!(!ids.is_empty(), "there is no compose project {}", self.name);
        let mut joined: BTreeMap<Member, Joined> = BTreeMap::new();
        for inspected in docker::inspect(&ids)? {
            let labels = inspected.config.labels.clone().unwrap_or_default();
            if labels.get(ONEOFF_LABEL).is_some_and(|oneoff| oneoff == "True") {
                continue;
            }
            let Some(member) = container::member(&inspected)? else { continue };
            let container = Container::of(&inspected, !self.is_ours)?;
            let access_point = container::access_point(&inspected)?;
            if joined.insert(member, Joined { member, container, access_point }).is_some() {
                bail!("two containers of project {} are {member}", self.name);
            }
        }
        ensure!(
            joined.keys().any(|member| matches!(member, Member::Broker(_))),
            "no container of project {} runs `ledgermq broker`",
            self.name
        );
        Ok(joined.into_values().collect())
    }

    pub fn began_unix(&self) -> u64 {
        self.began_unix
    }

    fn label(&self) -> String {
        format!("{PROJECT_LABEL}={}", self.name)
    }
}

impl Drop for Project {
    fn drop(&mut self) {
        if self.is_ours
            && let Err(error) = remove(&self.name)
        {
            eprintln!("ledgermq: the compose project {} is not gone: {error:#}", self.name);
        }
    }
}

/// The compose files of a project with so many brokers, in the order in which they are laid over each
/// other.
fn files_of(brokers: u64) -> anyhow::Result<&'static [&'static str]> {
    match brokers {
        THREE => Ok(&[THREE_FILE]),
        FIVE => Ok(&[THREE_FILE, FIVE_FILE]),
        _ => bail!("{brokers} brokers: the files of deploy have {THREE} or {FIVE}"),
    }
}

/// Named by the compose files: the host ports of the nameserver and of each broker.
fn port_variables(brokers: u64) -> Vec<String> {
    let of_brokers = (1..=brokers).map(|number| format!("LEDGERMQ_PORT_BROKER_{number}"));
    std::iter::once("LEDGERMQ_PORT_NAMESERVER".to_owned()).chain(of_brokers).collect()
}

/// A container with its place in the cluster.
pub(super) struct Joined {
    pub member: Member,
    pub container: Container,
    pub access_point: String,
}

/// The links between these containers as they are now: addresses change with a restart.
pub(super) fn firewalls(members: &[(usize, &Container)]) -> anyhow::Result<Firewalls> {
    Firewalls::possible().map_err(anyhow::Error::msg)?;
    let ids: Vec<String> = members.iter().map(|(_, container)| container.id().to_owned()).collect();
    let mut hosts = Vec::new();
    let mut here: Vec<Ipv4Addr> = Vec::new();
    for ((host, _), inspected) in members.iter().zip(docker::inspect(&ids)?) {
        let networks = inspected.network_settings.networks.values();
        let addresses = networks.clone().filter_map(|network| network.address.parse().ok()).collect();
        here.extend(networks.filter_map(|network| network.gateway.parse::<Ipv4Addr>().ok()));
        hosts.push(Walled { host: *host, namespace: namespace(&inspected)?, addresses });
    }
    here.sort_unstable();
    here.dedup();
    Ok(Firewalls::new(hosts, here)?)
}

/// The network of a container, which must be a process of this very machine.
fn namespace(inspected: &Inspected) -> anyhow::Result<std::fs::File> {
    let (pid, name) = (inspected.state.pid, container::service(inspected));
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    ensure!(
        pid != 0 && groups.contains(&inspected.id),
        "process {pid} of this machine is not {name}: links are cut on the machine of the docker daemon only"
    );
    let path = format!("/proc/{pid}/ns/net");
    std::fs::File::open(&path).with_context(|| format!("cannot open {path}"))
}

fn own_name(pid: u32) -> anyhow::Result<String> {
    let started = started(pid).context("this process is not in /proc")?;
    Ok(format!("{PREFIX}{}-{pid}-{started}", machine()?))
}

/// Of this boot and this pid namespace: only here do process ids mean what they say.
fn machine() -> anyhow::Result<String> {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").context("no boot id")?;
    let namespace = std::fs::read_link("/proc/self/ns/pid").context("no pid namespace")?;
    let mut hasher = DefaultHasher::new();
    (boot.trim(), namespace).hash(&mut hasher);
    Ok(format!("{:016x}", hasher.finish()))
}

/// When a process started, in ticks since the boot; `None` where there is none.
fn started(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything; the state, the third field, follows the last of them.
    stat.rsplit_once(") ")?.1.split(' ').nth(19)?.parse().ok()
}

#[derive(Debug, PartialEq, Eq)]
enum Owner {
    Gone,
    Alive,
    /// Made elsewhere, or before this machine booted.
    Unknown,
}

fn owner(project: &str, machine: &str, started: impl Fn(u32) -> Option<u64>) -> Option<Owner> {
    let mut parts = project.strip_prefix(PREFIX)?.split('-');
    let (made_on, pid, began) = (parts.next()?, parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    if parts.next().is_some() {
        return None;
    }
    Some(match () {
        () if made_on != machine => Owner::Unknown,
        () if started(pid) == Some(began) => Owner::Alive,
        () => Owner::Gone,
    })
}

/// Removes the projects of harnesses that were killed, and names those it cannot judge.
fn remove_leftovers() -> anyhow::Result<()> {
    let machine = machine()?;
    for project in projects()? {
        match owner(&project, &machine, started) {
            Some(Owner::Gone) => {
                tracing::warn!(project, "removing what an earlier run left behind");
                remove(&project)?;
            }
            Some(Owner::Unknown) => {
                eprintln!(
                    "ledgermq: the compose project {project} was left by another machine, or before this one \
                     booted; it is not touched"
                );
            }
            Some(Owner::Alive) | None => {}
        }
    }
    Ok(())
}

/// By the labels of what is there; a project may be left with a volume only.
fn projects() -> anyhow::Result<std::collections::BTreeSet<String>> {
    let mut all = std::collections::BTreeSet::new();
    for kind in ["container", "volume", "network"] {
        let filter = format!("label={PROJECT_LABEL}");
        let format = format!("{{{{.Label \"{PROJECT_LABEL}\"}}}}");
        let mut arguments = vec![kind, "ls", "--filter", &filter, "--format", &format];
        if kind == "container" {
            arguments.push("--all");
        }
        all.extend(docker(&arguments)?.split_whitespace().map(str::to_owned));
    }
    Ok(all)
}

fn remove(project: &str) -> anyhow::Result<()> {
    let label = format!("{PROJECT_LABEL}={project}");
    // In this order: what is used cannot be removed.
    for (kind, flags) in [("container", &["rm", "--force"][..]), ("volume", &["rm"]), ("network", &["rm"])] {
        let names = docker::labelled(kind, &label)?;
        if !names.is_empty() {
            let mut arguments = vec![kind];
            arguments.extend(flags);
            arguments.extend(names.iter().map(String::as_str));
            docker(&arguments)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use ledgermq_broker::BrokerConfig;
    use ledgermq_broker::config::NodeEntry;

    use super::*;

    #[test]
    fn a_project_is_left_over_only_when_the_very_process_that_made_it_is_gone() {
        let started = |pid| (pid == 7).then_some(100);
        let of = |name: &str| owner(name, "cafe", started);
        assert_eq!(of("ledgermq-chaos-cafe-7-100"), Some(Owner::Alive));
        assert_eq!(of("ledgermq-chaos-cafe-7-99"), Some(Owner::Gone), "the id belongs to another by now");
        assert_eq!(of("ledgermq-chaos-cafe-8-100"), Some(Owner::Gone));
        assert_eq!(of("ledgermq-chaos-beef-8-100"), Some(Owner::Unknown), "ids of another machine");
        for other in
            ["ledgermq", "ledgermq-chaos-mine", "ledgermq-chaos-cafe-8-100-x", "ledgermq-chaos-a-b-c"]
        {
            assert_eq!(of(other), None, "{other} is none of ours");
        }
        let name = own_name(std::process::id()).unwrap();
        assert_eq!(owner(&name, &machine().unwrap(), super::started), Some(Owner::Alive), "{name}");
    }

    fn text(file: &str) -> &'static str {
        FILES.iter().find(|(name, _)| *name == file).unwrap().1
    }

    #[test]
    fn the_files_that_are_brought_up_publish_the_ports_that_are_given() {
        for brokers in SIZES {
            let files: String = files_of(brokers).unwrap().iter().map(|file| text(file)).collect();
            for variable in port_variables(brokers) {
                let means = files.matches(&format!("${{{variable}:-")).count();
                assert_eq!(means, 1, "{variable} means nothing, or two things, to the files of {brokers}");
            }
            assert_eq!(files.matches("LEDGERMQ_BROKER__NODE__ID").count() as u64, brokers);
        }
        assert!(files_of(4).unwrap_err().to_string().contains("4 brokers"));
        assert!(text("compose/members.yml").contains("${LEDGERMQ_IMAGE:-"));
    }

    #[test]
    fn five_brokers_are_configured_as_three_but_for_name_nodes_and_members() {
        let of = |file: &str| toml::from_str::<BrokerConfig>(text(file)).unwrap();
        let (three, five) = (of("compose/broker.toml"), of("compose/broker.five.toml"));
        for (brokers, config) in SIZES.into_iter().zip([&three, &five]) {
            let nodes = (1..=brokers).map(|id| NodeEntry {
                id,
                peer: format!("broker-{id}:8082"),
                client: format!("broker-{id}:8081"),
            });
            assert_eq!(config.nodes, nodes.collect::<Vec<_>>());
            let members: Vec<_> = config.groups.iter().map(|group| group.members.clone()).collect();
            assert_eq!(members, [(1..=brokers).collect::<Vec<u64>>()]);
        }
        assert_ne!(
            three.cluster.name, five.cluster.name,
            "the data of three would be taken for that of five"
        );
        let mut as_three = five;
        as_three.cluster.name.clone_from(&three.cluster.name);
        as_three.nodes.clone_from(&three.nodes);
        as_three.groups.clone_from(&three.groups);
        assert_eq!(as_three, three);
    }
}
