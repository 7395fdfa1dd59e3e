//! A cluster that is a compose project: one of its own, brought up from the files of `deploy` and
//! removed afterwards, or one that somebody else runs.
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
/// What the files of `deploy` bring up.
pub const BROKERS: u64 = 3;

const FILES: [(&str, &str); 3] = [
    ("docker-compose.yml", include_str!("../../../deploy/docker-compose.yml")),
    ("compose/broker.toml", include_str!("../../../deploy/compose/broker.toml")),
    ("compose/nameserver.toml", include_str!("../../../deploy/compose/nameserver.toml")),
];
const PORT_VARIABLES: [&str; 4] = [
    "LEDGERMQ_PORT_NAMESERVER",
    "LEDGERMQ_PORT_BROKER_1",
    "LEDGERMQ_PORT_BROKER_2",
    "LEDGERMQ_PORT_BROKER_3",
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
            project.bring_up(&plan.dir, &compose.image)?;
        }
        let members = project.members()?;
        Ok((project, members))
    }

    fn bring_up(&self, dir: &Path, image: &str) -> anyhow::Result<()> {
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
        command
            .args(words.get(1..).unwrap_or_default())
            .args(["--project-name", &self.name, "--file"])
            .arg(dir.join("docker-compose.yml"))
            .args(["up", "--detach", "--no-build"])
            .env("LEDGERMQ_IMAGE", image);
        for (variable, port) in PORT_VARIABLES.iter().zip(free_ports(PORT_VARIABLES.len())?) {
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

    #[test]
    fn the_files_that_are_brought_up_publish_the_ports_that_are_given() {
        let file = FILES[0].1;
        for variable in PORT_VARIABLES {
            assert!(file.contains(&format!("${{{variable}:-")), "{variable} means nothing to the file");
        }
        assert!(file.contains("${LEDGERMQ_IMAGE:-"));
        assert_eq!(file.matches("LEDGERMQ_BROKER__NODE__ID").count() as u64, BROKERS);
        for (name, _) in &FILES[1..] {
            assert!(file.contains(&format!("./{name}:")), "{name} is not mounted");
        }
    }
}
