//! Cut links between hosts that somebody else made: containers and other network namespaces.
//!
//! In the namespace of each host one table of `nft`, which drops what comes from hosts it is cut off
//! from and counts all that comes. The link from one host to another is a rule in the namespace of
//! the one it leads to; only what goes to this host is stopped where it comes from.
//!
//! ```text
//! table ip ledgermq_faults                      in the namespace of host 2
//!   counter from_1_cut, from_1_passed, …
//!   chain in   hook input    ip saddr 172.18.0.3  counter name from_1_cut drop
//!                            ip saddr 172.18.0.4  counter name from_3_passed
//!   chain out  hook output   ip daddr 172.18.0.1  counter name to_0_passed
//! ```
//!
//! | What must hold | By |
//! |---|---|
//! | a link changes at once with the others of its host | `nft` takes a file as one transaction |
//! | only packets between the hosts named are looked at | every rule has an address |
//! | nothing is left behind | the table is deleted on [`Firewalls::heal`] and on drop; whoever was killed leaves one, which the next [`Firewalls::new`] over the same hosts deletes |
//! | counters count from the first change on | they are read before the table goes |
//!
//! | Failure | Answer |
//! |---|---|
//! | no `nft`, not root | [`Firewalls::possible`] says so before anything is done |
//! | a link that is to be slow or lossy | refused: that needs another kernel (netem) or [`crate::Network`] |
//! | `nft` refuses | [`FirewallError`] with what it said |

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

use crate::{Counters, Link, THIS_HOST};

const TABLE: &str = "ledgermq_faults";

#[derive(Debug, thiserror::Error)]
#[error("the links of host {host} cannot be changed: {reason}")]
pub struct FirewallError {
    pub host: usize,
    pub reason: String,
}

/// A host whose links can be cut.
#[derive(Debug)]
pub struct Walled {
    /// Its number, from 1.
    pub host: usize,
    /// Its network namespace, such as `/proc/PID/ns/net`.
    pub namespace: File,
    pub addresses: Vec<Ipv4Addr>,
}

/// The links between hosts that are not ours. Dropping it heals them.
#[derive(Debug)]
pub struct Firewalls {
    hosts: Vec<Walled>,
    /// What packets of this host carry as their source.
    here: Vec<Ipv4Addr>,
    cut: BTreeSet<(usize, usize)>,
    is_installed: bool,
    /// Counted by tables that are gone.
    counted: BTreeMap<(usize, usize), Counters>,
}

impl Firewalls {
    /// An error that says what is missing.
    pub fn possible() -> Result<(), String> {
        let nft = Command::new("nft").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        if !nft.is_ok_and(|status| status.success()) {
            return Err("there is no `nft`".to_owned());
        }
        // SAFETY: takes no arguments and always succeeds.
        match unsafe { libc::geteuid() } {
            0 => Ok(()),
            _ => Err("only root may enter the network of another process".to_owned()),
        }
    }

    /// Takes away what one that was killed left in these namespaces.
    pub fn new(hosts: Vec<Walled>, here: Vec<Ipv4Addr>) -> Result<Self, FirewallError> {
        let walls = Self { hosts, here, cut: BTreeSet::new(), is_installed: false, counted: BTreeMap::new() };
        walls.delete_tables()?;
        Ok(walls)
    }

    /// What packets from one host to the other meet from now on. A link is cut or good, nothing else.
    pub fn set(&mut self, links: &[(usize, usize, Link)]) -> Result<(), FirewallError> {
        for (from, to, link) in links {
            if *link != (Link { cut: link.cut, ..Link::default() }) {
                let reason = "it can be cut, and nothing else".to_owned();
                return Err(FirewallError { host: *to, reason });
            }
            if link.cut {
                self.cut.insert((*from, *to));
            } else {
                self.cut.remove(&(*from, *to));
            }
        }
        // From here on there is something to take away, also when a later host refuses.
        self.is_installed = true;
        for host in &self.hosts {
            nft(host, &["-f", "-"], &self.table_of(host))?;
        }
        Ok(())
    }

    /// All links are good again, and nothing of this is left in the namespaces.
    pub fn heal(&mut self) -> Result<(), FirewallError> {
        self.cut.clear();
        if !self.is_installed {
            return Ok(());
        }
        let mut last = BTreeMap::new();
        for host in &self.hosts {
            last.extend(counters_of(host)?);
        }
        self.delete_tables()?;
        self.is_installed = false;
        for (link, counters) in last {
            let sum = self.counted.entry(link).or_default();
            sum.passed += counters.passed;
            sum.cut += counters.cut;
        }
        Ok(())
    }

    /// What each link did so far; links without an entry did nothing.
    pub fn counters(&self) -> Result<BTreeMap<(usize, usize), Counters>, FirewallError> {
        let mut all = self.counted.clone();
        if self.is_installed {
            for host in &self.hosts {
                for (link, counters) in counters_of(host)? {
                    let sum = all.entry(link).or_default();
                    sum.passed += counters.passed;
                    sum.cut += counters.cut;
                }
            }
        }
        Ok(all)
    }

    fn delete_tables(&self) -> Result<(), FirewallError> {
        for host in &self.hosts {
            // Deleting what is not there is an error, so it is made first; both are one transaction.
            nft(host, &["-f", "-"], &format!("add table ip {TABLE}\ndelete table ip {TABLE}\n"))?;
        }
        Ok(())
    }

    /// The rules of one host, in place of those before; counters keep their counts.
    fn table_of(&self, host: &Walled) -> String {
        let mut script = format!(
            "add table ip {TABLE}\n\
             add chain ip {TABLE} in {{ type filter hook input priority 0; policy accept; }}\n\
             add chain ip {TABLE} out {{ type filter hook output priority 0; policy accept; }}\n\
             flush chain ip {TABLE} in\n\
             flush chain ip {TABLE} out\n"
        );
        let mut rule = |chain: &str, field: &str, address: &Ipv4Addr, name: String, is_cut: bool| {
            let verdict = if is_cut { "drop" } else { "accept" };
            let end = if is_cut { "cut" } else { "passed" };
            // Writing to a String cannot fail.
            let _ = writeln!(
                script,
                "add counter ip {TABLE} {name}_{end}\n\
                 add rule ip {TABLE} {chain} ip {field} {address} counter name {name}_{end} {verdict}"
            );
        };
        for other in self.hosts.iter().filter(|other| other.host != host.host) {
            let is_cut = self.cut.contains(&(other.host, host.host));
            for address in &other.addresses {
                rule("in", "saddr", address, format!("from_{}", other.host), is_cut);
            }
        }
        for address in &self.here {
            let comes = self.cut.contains(&(THIS_HOST, host.host));
            rule("in", "saddr", address, format!("from_{THIS_HOST}"), comes);
            let goes = self.cut.contains(&(host.host, THIS_HOST));
            rule("out", "daddr", address, format!("to_{THIS_HOST}"), goes);
        }
        script
    }
}

impl Drop for Firewalls {
    fn drop(&mut self) {
        if self.is_installed {
            // A host that has ended took its table along.
            let _ = self.delete_tables();
        }
    }
}

/// By link, what the table of a host counted.
fn counters_of(host: &Walled) -> Result<BTreeMap<(usize, usize), Counters>, FirewallError> {
    let listed = nft(host, &["-j", "list", "counters", "table", "ip", TABLE], "")?;
    let listed: serde_json::Value = serde_json::from_str(&listed)
        .map_err(|error| FirewallError { host: host.host, reason: format!("nft printed {error}") })?;
    let mut all: BTreeMap<(usize, usize), Counters> = BTreeMap::new();
    for counter in listed["nftables"].as_array().into_iter().flatten().map(|entry| &entry["counter"]) {
        let (Some(name), Some(packets)) = (counter["name"].as_str(), counter["packets"].as_u64()) else {
            continue;
        };
        let mut parts = name.split('_');
        let (way, other) = (parts.next(), parts.next().and_then(|number| number.parse().ok()));
        let link = match (way, other) {
            (Some("from"), Some(other)) => (other, host.host),
            (Some("to"), Some(other)) => (host.host, other),
            _ => continue,
        };
        let counters = all.entry(link).or_default();
        match parts.next() {
            Some("cut") => counters.cut += packets,
            Some("passed") => counters.passed += packets,
            _ => {}
        }
    }
    Ok(all)
}

/// Runs it in the namespace of the host; answers what it printed.
fn nft(host: &Walled, arguments: &[&str], script: &str) -> Result<String, FirewallError> {
    let failed = |reason: String| FirewallError { host: host.host, reason };
    let namespace = host.namespace.as_raw_fd();
    let mut command = Command::new("nft");
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // Ctrl-C is for the harness, which heals the links.
    command.process_group(0);
    // SAFETY: between fork and exec only setns runs, which is async-signal-safe.
    unsafe { command.pre_exec(move || crate::enter(namespace)) };
    let mut child = command.spawn().map_err(|error| failed(format!("nft: {error}")))?;
    if let Some(mut input) = child.stdin.take() {
        // A child that does not read says why itself.
        let _ = input.write_all(script.as_bytes());
    }
    let output = child.wait_with_output().map_err(|error| failed(format!("nft: {error}")))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(failed(format!("nft: {}", said.trim())));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
