//! Injects faults and sees that they happened.
//!
//! | Fault | Seen by |
//! |---|---|
//! | kill | the process was waited for and ended by SIGKILL; after the restart it is another |
//! | stop | the kernel says T (stopped), docker says paused; after SIGCONT no longer |
//! | term | the process ended with status 0; after the restart it is another |
//! | of members | see `member_faults` |
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
use ledgermq_faultnet::Dice;

use super::client_processes::{ClientProcesses, Role};
use super::overload::Flood;
use super::recorder::Recorder;
use super::scenario::{Fault, Scenario, Target};
use crate::cluster::{Cluster, Member};

pub(super) const GROUP: u32 = 1;
pub(super) const READY_WITHIN: Duration = Duration::from_secs(90);
const TERMINATE_WITHIN: Duration = Duration::from_secs(20);
const STATE_WITHIN: Duration = Duration::from_secs(2);
/// Transfers of one storm that may be refused or end with another leader.
const TRANSFERS_REFUSED_MAX: u64 = 20;
/// Between two transfers of a storm.
const TRANSFER_EVERY: Duration = Duration::from_millis(100);
const STATE_POLL: Duration = Duration::from_millis(2);

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
            Fault::Kill => self.kill(&targets).await?,
            Fault::Stop => {
                self.cluster.pause_all(&targets)?;
                for &member in &targets {
                    self.wait_state(member, true).await?;
                }
                tokio::time::sleep(self.fault_time).await;
                for &member in &targets {
                    ensure!(self.cluster.stands_still(member)?, "{member} went on by itself");
                }
                self.cluster.resume_all(&targets)?;
                for &member in &targets {
                    self.wait_state(member, false).await?;
                }
                self.recorder.prove(format!("stop {names}: stood still and went on"));
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
                clients.check(Role::Producer)?;
                clients.check(Role::Consumer)?;
                self.recorder.prove(format!("{}: {seen}", fault.name()));
            }
            Fault::Member(fault) => {
                let seen = self.member_fault(fault, &targets).await?;
                self.recorder.prove(format!("{} {names}: {seen}", fault.name()));
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
                let before = self.incarnations(&targets)?;
                for &member in &targets {
                    let status = self.cluster.terminate(member, TERMINATE_WITHIN).await?;
                    ensure!(status.success(), "{member} ended with {status} after SIGTERM");
                }
                self.start_again("term", "ended with status 0", before)?;
            }
        }
        self.cluster.wait_ready(READY_WITHIN).await.context("after a fault")?;
        record(false);
        if let Some((member, status)) = self.cluster.fallen()?.into_iter().next() {
            bail!("{member} ended by itself: {status}");
        }
        Ok(())
    }

    pub(super) async fn kill(&mut self, targets: &[Member]) -> anyhow::Result<()> {
        use std::os::unix::process::ExitStatusExt as _;
        let before = self.incarnations(targets)?;
        self.cluster.kill_all(targets)?;
        let fallen = self.cluster.fallen()?;
        for member in targets {
            let status = fallen.iter().find(|(of, _)| of == member).map(|(_, status)| *status);
            ensure!(
                status.and_then(|status| status.signal()) == Some(libc::SIGKILL),
                "{member} was not killed: {status:?}"
            );
        }
        tokio::time::sleep(self.fault_time).await;
        self.start_again("kill", "ended by SIGKILL", before)
    }

    pub(super) fn incarnations(&self, members: &[Member]) -> anyhow::Result<Vec<(Member, String)>> {
        members.iter().map(|member| Ok((*member, self.cluster.incarnation(*member)?))).collect()
    }

    /// Restarts members that ended, each of which must be another process than before.
    pub(super) fn start_again(
        &mut self,
        fault: &str,
        ended: &str,
        before: Vec<(Member, String)>,
    ) -> anyhow::Result<()> {
        let mut seen = Vec::new();
        for (member, before) in before {
            self.cluster.restart(member)?;
            let after = self.cluster.incarnation(member)?;
            ensure!(after != before, "{member} is the same {before} as before");
            seen.push(format!("{member}, {before}, {ended}; then {after}"));
        }
        self.recorder.prove(format!("{fault}: {}", seen.join("; ")));
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
                let majority = brokers.len() / 2 + 1;
                self.some_with_leader(brokers, majority).await?
            }
            Target::Minority => {
                let minority = brokers.len().saturating_sub(1) / 2;
                self.some_with_leader(brokers, minority).await?
            }
            Target::Followers => {
                let minority = brokers.len().saturating_sub(1) / 2;
                let mut some = self.some_with_leader(brokers, minority + 1).await?;
                some.remove(0);
                some
            }
        })
    }

    /// The leader and others drawn by seed, so many in all.
    async fn some_with_leader(&mut self, brokers: Vec<Member>, count: usize) -> anyhow::Result<Vec<Member>> {
        let leader = self.leader().await?;
        let others = brokers.into_iter().filter(|member| *member != leader).collect();
        Ok(std::iter::once(leader).chain(self.shuffled(others)).take(count).collect())
    }

    /// All of them, in an order drawn from the seed.
    pub(super) fn shuffled<T>(&mut self, mut all: Vec<T>) -> Vec<T> {
        let mut drawn = Vec::with_capacity(all.len());
        while !all.is_empty() {
            let chosen = usize::try_from(self.dice.below(all.len() as u64)).unwrap_or(0);
            drawn.push(all.swap_remove(chosen));
        }
        drawn
    }

    pub(super) async fn leader(&mut self) -> anyhow::Result<Member> {
        self.cluster.wait_leader(GROUP, READY_WITHIN).await
    }

    async fn wait_state(&self, member: Member, stopped: bool) -> anyhow::Result<()> {
        let deadline = tokio::time::Instant::now() + STATE_WITHIN;
        while self.cluster.stands_still(member)? != stopped {
            ensure!(
                tokio::time::Instant::now() < deadline,
                "{member} is {}",
                if stopped { "not stopped" } else { "still stopped" }
            );
            tokio::time::sleep(STATE_POLL).await;
        }
        Ok(())
    }
}
