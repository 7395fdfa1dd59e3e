//! Injects faults and sees that they happened.
//!
//! | Fault | Seen by |
//! |---|---|
//! | kill | the process was waited for and ended by SIGKILL; after the restart its id is another |
//! | stop | `/proc/<id>/stat` says T (stopped), and after SIGCONT no longer |
//! | term | the process ended with status 0 |
//! | transfer | each time another broker led and said so; the term rose as often |
//! | overload | more sends began than were answered in the time before |
//! | of disks, clocks and networks | see `disk_faults`, `clock_faults`, `network_faults` |
//!
//! A fault that is not seen to happen ends the run with an error: a pass without a fault would be
//! worth nothing.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use ledgermq_checkers::history::{Kind, NEMESIS, Operation};

use super::client_processes::{ClientProcesses, state_of};
use super::overload::Flood;
use super::scenario::{Fault, Scenario, Target};
use super::workload::Recorder;
use crate::cluster::{Cluster, Member};

pub(super) const GROUP: u32 = 1;
const READY_WITHIN: Duration = Duration::from_secs(90);
const TERMINATE_WITHIN: Duration = Duration::from_secs(20);
const STATE_WITHIN: Duration = Duration::from_secs(2);
/// Transfers of one storm that may be refused or end with another leader.
const TRANSFERS_REFUSED_MAX: u64 = 20;
/// Between two transfers of a storm.
const TRANSFER_EVERY: Duration = Duration::from_millis(100);
const STATE_POLL: Duration = Duration::from_millis(2);

/// Random numbers from a seed, the same on every machine.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// SplitMix64.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound.max(1)
    }
}

pub struct Nemesis<'a> {
    pub cluster: &'a mut Cluster,
    pub recorder: Arc<Recorder>,
    pub dice: Dice,
    pub scenario: Scenario,
    /// How long a fault lasts before it is taken back.
    pub fault_time: Duration,
    /// Where clients are what fails.
    pub clients: Option<&'a mut ClientProcesses>,
    /// Where sends without a pause are what fails it.
    pub flood: Option<Flood>,
    /// Bytes that power losses dropped so far.
    pub dropped_bytes: u64,
}

impl Nemesis<'_> {
    /// One injection from its begin until all members serve again.
    pub async fn inject(&mut self) -> anyhow::Result<()> {
        if self.scenario.target == Target::EachInTurn {
            for member in self.cluster.brokers().collect::<Vec<_>>() {
                self.inject_at(vec![member]).await?;
            }
            return Ok(());
        }
        let targets = self.targets().await?;
        self.inject_at(targets).await
    }

    async fn inject_at(&mut self, targets: Vec<Member>) -> anyhow::Result<()> {
        let names: Vec<String> = targets.iter().map(Member::to_string).collect();
        let names = names.join(" ");
        let fault = self.scenario.fault;
        let recorder = Arc::clone(&self.recorder);
        let record = |begins| {
            let op = Operation::Fault { name: fault.name().to_owned(), target: names.clone(), begins };
            recorder.record(NEMESIS, Kind::Info, op);
        };
        record(true);
        match fault {
            Fault::None => tokio::time::sleep(self.fault_time).await,
            Fault::Kill => {
                let mut before = Vec::new();
                for &member in &targets {
                    before.push((member, self.cluster.pid(member)?));
                    self.cluster.kill(member)?;
                }
                let fallen = self.cluster.fallen()?;
                for (member, _) in &before {
                    use std::os::unix::process::ExitStatusExt as _;
                    let status = fallen.iter().find(|(of, _)| of == member).map(|(_, status)| *status);
                    ensure!(
                        status.and_then(|status| status.signal()) == Some(libc::SIGKILL),
                        "{member} was not killed: {status:?}"
                    );
                }
                tokio::time::sleep(self.fault_time).await;
                for (member, pid) in before {
                    self.cluster.restart(member)?;
                    ensure!(self.cluster.pid(member)? != pid, "{member} is the same process as before");
                }
            }
            Fault::Stop => {
                for &member in &targets {
                    self.cluster.pause(member)?;
                }
                for &member in &targets {
                    self.wait_state(member, true).await?;
                }
                tokio::time::sleep(self.fault_time).await;
                for &member in &targets {
                    self.cluster.resume(member)?;
                    self.wait_state(member, false).await?;
                }
            }
            Fault::Disk(fault) => {
                let seen = self.disk_fault(fault, &targets).await?;
                self.recorder.prove(format!("{} {names}: {seen}", fault.name()));
            }
            Fault::Clock(fault) => {
                let seen = self.clock_fault(fault, &targets).await?;
                self.recorder.prove(format!("{} {names}: {seen}", fault.name()));
            }
            Fault::Network(fault) => {
                let seen = self.network_fault(fault, &targets).await?;
                self.recorder.prove(format!("{} {names}: {seen}", fault.name()));
            }
            Fault::Client(fault) => {
                let chosen = self.dice.below(u64::MAX);
                let clients = self.clients.as_mut().context("there are no client processes")?;
                let seen = clients.inject(fault, chosen, self.fault_time).await?;
                clients.check()?;
                self.recorder.prove(format!("{}: {seen}", fault.name()));
            }
            Fault::Transfer => {
                let seen = self.transfer_storm().await?;
                self.recorder.prove(format!("{}: {seen}", fault.name()));
            }
            Fault::Overload => {
                let seen = self.overload().await?;
                self.recorder.prove(format!("{}: {seen}", fault.name()));
            }
            Fault::Terminate => {
                for &member in &targets {
                    let status = self.cluster.terminate(member, TERMINATE_WITHIN).await?;
                    ensure!(status.success(), "{member} ended with {status} after SIGTERM");
                }
                for &member in &targets {
                    self.cluster.restart(member)?;
                }
            }
        }
        self.cluster.wait_ready(READY_WITHIN).await.context("after a fault")?;
        record(false);
        if let Some((member, status)) = self.cluster.fallen()?.into_iter().next() {
            bail!("{member} ended by itself: {status}");
        }
        Ok(())
    }

    /// Leadership moves to another broker, drawn by seed, for the time of a fault.
    async fn transfer_storm(&mut self) -> anyhow::Result<String> {
        let ends = tokio::time::Instant::now() + self.fault_time;
        let (_, first_term) = self.cluster.group_and_term(GROUP).await?;
        let (mut moved, mut refused) = (0u64, 0u64);
        while tokio::time::Instant::now() < ends || moved == 0 {
            let leader = self.leader().await?;
            let others: Vec<Member> = self.cluster.brokers().filter(|member| *member != leader).collect();
            let chosen = usize::try_from(self.dice.below(others.len() as u64)).unwrap_or(0);
            let heir = *others.get(chosen).context("a transfer needs two brokers")?;
            let (group, _) = self.cluster.group_and_term(GROUP).await?;
            match self.cluster.transfer(&group, heir).await {
                Ok(has_moved) => moved += u64::from(has_moved),
                // On a busy machine an heir may be behind, or another member wins: an operator would
                // ask again too. That none succeeds is another matter.
                Err(error) => {
                    refused += 1;
                    if refused > TRANSFERS_REFUSED_MAX {
                        return Err(error);
                    }
                }
            }
            tokio::time::sleep(TRANSFER_EVERY).await;
        }
        self.leader().await?;
        let (_, last_term) = self.cluster.group_and_term(GROUP).await?;
        let terms = last_term.saturating_sub(first_term);
        ensure!(terms >= moved, "{moved} transfers made {terms} terms");
        Ok(format!("{moved} transfers, {refused} refused, {terms} terms"))
    }

    async fn targets(&mut self) -> anyhow::Result<Vec<Member>> {
        let brokers: Vec<Member> = self.cluster.brokers().collect();
        Ok(match self.scenario.target {
            Target::All | Target::EachInTurn => brokers,
            Target::Clients => Vec::new(),
            Target::Nameservers => {
                self.cluster.members().filter(|member| matches!(member, Member::Nameserver(_))).collect()
            }
            Target::Leader => vec![self.leader().await?],
            Target::Follower => {
                let leader = self.leader().await?;
                let followers: Vec<Member> = brokers.into_iter().filter(|member| *member != leader).collect();
                let chosen = self.dice.below(followers.len() as u64) as usize;
                followers.get(chosen).copied().into_iter().collect()
            }
            Target::Majority => {
                let leader = self.leader().await?;
                let majority = brokers.len() / 2 + 1;
                let others = brokers.into_iter().filter(|member| *member != leader);
                std::iter::once(leader).chain(others).take(majority).collect()
            }
        })
    }

    async fn leader(&mut self) -> anyhow::Result<Member> {
        self.cluster.wait_leader(GROUP, READY_WITHIN).await
    }

    async fn wait_state(&self, member: Member, stopped: bool) -> anyhow::Result<()> {
        let pid = self.cluster.pid(member)?;
        let deadline = tokio::time::Instant::now() + STATE_WITHIN;
        loop {
            let state = state_of(pid).with_context(|| member.to_string())?;
            if (state == Some('T')) == stopped {
                return Ok(());
            }
            ensure!(
                tokio::time::Instant::now() < deadline,
                "{member} is in state {state:?}, not {}",
                if stopped { "stopped" } else { "running" }
            );
            tokio::time::sleep(STATE_POLL).await;
        }
    }
}
