//! Runs one plan: three brokers and the clients under turmoil's clock and network, faults at their
//! time, the oracle after every tick, then healing, progress and the last audit.
//!
//! Everything happens on the calling thread. A crash drops the process's runtime between two ticks;
//! inside a tick it is the disk that dies ([`Fault::PowerMidWrite`]), so that a process also ends
//! between any two operations of its own.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ledgermq_common::clock::{SteppedClock, UnixMillis};
use ledgermq_raft_store::group::GroupStatus;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use turmoil::Sim;

use crate::audit;
use crate::defect::Defect;
use crate::network::{HostState, Network};
use crate::node::Node;
use crate::oracle::Oracle;
use crate::plan::{Fault, Loss, NODES, Plan, Target};
use crate::workload::{CLIENT_HOST, Stage, Workload, host_name};

/// Virtual time a healed group has to answer every client, drain and agree.
const RECOVERY_MS_MAX: u64 = 40_000;
/// ... and to check the halves that nobody decides as often as they may be checked, and to give every
/// consumer group everything.
const CHECKS_MS_MAX: u64 = 15_000;
/// What the disks would keep is checked this often.
const AUDIT_EVERY_MS: u64 = 1_500;
/// A process that ended by itself without a fault that says so is started again after this.
const RESTART_MS: u64 = 400;
/// 2026-01-01, so that stamps look like stamps.
pub(crate) const EPOCH: UnixMillis = UnixMillis(1_767_225_600_000);
/// Clocks stay this close to one another: further apart the message-id window would pass.
const CLOCK_SKEW_MS_MAX: i64 = 120_000;

pub struct World<'a> {
    sim: Sim<'a>,
    plan: Arc<Plan>,
    nodes: Vec<Arc<Node>>,
    power: [Power; NODES],
    skew_ms: [i64; NODES],
    /// How long a process that ends by itself stays away.
    down_ms: [u64; NODES],
    network: Network,
    oracle: Oracle,
    stage: Arc<Stage>,
    random: StdRng,
    now_ms: u64,
    /// What is due, by time and by order of scheduling.
    agenda: BTreeMap<(u64, u64), Act>,
    scheduled: u64,
    pub power_losses_of_all: u64,
    /// Whose disk was lost and who does not vote again yet.
    lost: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Power {
    On,
    ProcessDown { restarts_at_ms: u64 },
    Off { restarts_at_ms: u64 },
}

#[derive(Debug, Clone)]
enum Act {
    Fault(Fault),
    Restart { node: usize },
    Unblock { from: String, to: String },
    EndSlowDisk { node: usize },
    EndFullDisk { node: usize },
    EndDelay,
}

impl<'a> World<'a> {
    pub fn new(plan: Plan, oracle: Oracle, defect: Option<Defect>) -> Self {
        let plan = Arc::new(plan);
        let network = Network::default();
        let stage = Arc::new(Stage::default());
        let mut sim = turmoil::Builder::new()
            .rng_seed(plan.seed)
            .tick_duration(Duration::from_millis(plan.tick_ms))
            .simulation_duration(Duration::from_secs(3_600))
            .min_message_latency(Duration::from_millis(0))
            .max_message_latency(Duration::from_millis(plan.latency_ms_max))
            .tcp_capacity(4_096)
            .enable_random_order()
            .build();
        let nodes: Vec<Arc<Node>> = (0..NODES)
            .map(|index| {
                let clock = SteppedClock::at(EPOCH);
                Arc::new(Node::new(index, Arc::clone(&plan), network.clone(), oracle.clone(), clock, defect))
            })
            .collect();
        for node in &nodes {
            let node = Arc::clone(node);
            sim.host(host_name(node.index), move || Arc::clone(&node).run());
        }
        let workload = Workload {
            plan: Arc::clone(&plan),
            network: network.clone(),
            oracle: oracle.clone(),
            stage: Arc::clone(&stage),
        };
        sim.client(CLIENT_HOST, async move {
            workload.run().await;
            Ok(())
        });
        let mut world = Self {
            sim,
            nodes,
            power: [Power::On; NODES],
            skew_ms: [0; NODES],
            down_ms: [RESTART_MS; NODES],
            network,
            oracle,
            stage,
            random: StdRng::seed_from_u64(plan.seed ^ 0x0077_6f72_6c64),
            now_ms: 0,
            agenda: BTreeMap::new(),
            scheduled: 0,
            power_losses_of_all: 0,
            lost: None,
            plan: Arc::clone(&plan),
        };
        for planned in &plan.faults {
            world.schedule(planned.at_ms, Act::Fault(planned.fault.clone()));
        }
        world
    }

    /// Runs to the end or to the first violation.
    pub fn run(&mut self) {
        while self.now_ms < self.plan.heal_at_ms() {
            if !self.tick() {
                return;
            }
            if self.now_ms % AUDIT_EVERY_MS < self.plan.tick_ms {
                audit::majority_holds_what_was_answered(&self.nodes, &self.oracle);
            }
        }
        self.heal();
        let deadline_ms = self.now_ms + RECOVERY_MS_MAX;
        let checked_by_ms = self.now_ms + CHECKS_MS_MAX;
        while !self.is_quiet() {
            if !self.tick() {
                return;
            }
            if self.now_ms > checked_by_ms && !self.oracle.abandoned_are_parked() {
                self.oracle.violate(format_args!(
                    "{CHECKS_MS_MAX} ms after the faults ended a half that nobody decides is still to be checked"
                ));
                return;
            }
            if self.now_ms > checked_by_ms && !self.oracle.left_halves_have_ended() {
                self.oracle.violate(format_args!(
                    "{CHECKS_MS_MAX} ms after the faults ended no producer was asked about a half that was left to it"
                ));
                return;
            }
            if self.now_ms > checked_by_ms
                && let Some((group, message)) = self.oracle.never_given()
            {
                self.oracle.violate(format_args!(
                    "{CHECKS_MS_MAX} ms after the faults ended group {group} was never given {message:?}"
                ));
                return;
            }
            if self.now_ms > deadline_ms {
                self.oracle.violate(format_args!(
                    "no progress: {} ms after the faults ended, {} of {} producers, {} of {} consumers, {} of {} \
                     clients of the topic with order and {} of {} of the books are done, statuses {:?}",
                    RECOVERY_MS_MAX,
                    self.stage.producers_done(),
                    self.plan.producers,
                    self.stage.consumers_done(),
                    self.plan.consumers,
                    self.stage.ordered_done(),
                    self.plan.ordered.clients(),
                    self.stage.accounts_done(),
                    self.plan.accounts.clients(),
                    self.statuses(),
                ));
                return;
            }
        }
        self.oracle.event("world", "healed and drained");
        audit::majority_holds_what_was_answered(&self.nodes, &self.oracle);
        let purges_at_will = self.plan.retained_bytes.is_some();
        audit::replicas_are_equal(&self.nodes, purges_at_will, &self.oracle);
    }

    /// One step of time. False once something was violated.
    fn tick(&mut self) -> bool {
        self.now_ms += self.plan.tick_ms;
        self.oracle.set_now_ms(self.now_ms);
        for node in &self.nodes {
            node.clock.advance_ms(self.plan.tick_ms);
        }
        while let Some(entry) = self.agenda.first_entry() {
            if entry.key().0 > self.now_ms {
                break;
            }
            let act = entry.remove();
            self.act(act);
        }
        if let Err(error) = self.sim.step() {
            self.oracle.violate(format_args!("a host failed: {error}"));
            return false;
        }
        for index in 0..NODES {
            let node = &self.nodes[index];
            let has_stopped = node.disk.is_dark() || node.has_ended();
            if self.power[index] != Power::On || !has_stopped {
                continue;
            }
            // What it synced and told others of in its last tick counts.
            if let Some(status) = node.status() {
                self.oracle.flushed_at_end(index, status.flushed);
            }
            if node.disk.is_dark() {
                let restarts_at_ms = self.now_ms + self.down_ms[index];
                self.oracle
                    .event("world", format_args!("the power of node {index} went off in a disk operation"));
                self.power_off(index, Loss::Torn, restarts_at_ms);
            } else {
                self.process_down(index, self.now_ms + self.down_ms[index]);
            }
        }
        if let Some(node) = self.lost
            && self.all_vote()
        {
            self.lost = None;
            self.oracle.disk_made_up_for(node);
        }
        self.oracle.observe(&self.statuses());
        !self.oracle.has_violation()
    }

    fn statuses(&self) -> [Option<GroupStatus>; NODES] {
        std::array::from_fn(|index| self.nodes[index].status())
    }

    /// All nodes are up, and every one of them knows that all are voters.
    fn all_vote(&self) -> bool {
        let statuses = self.statuses();
        let members_at = statuses.iter().flatten().map(|status| status.members_at).max().flatten();
        statuses.iter().all(|status| {
            status.as_ref().is_some_and(|status| {
                status.voters.len() == NODES
                    && status.members_at == members_at
                    && status.applied >= members_at
            })
        })
    }

    /// All clients are done, and all replicas vote and have applied the same.
    fn is_quiet(&self) -> bool {
        let clients_are_done = self.stage.producers_done() == self.plan.producers
            && self.stage.consumers_done() == self.plan.consumers
            && self.stage.ordered_done() == self.plan.ordered.clients()
            && self.stage.accounts_done() == self.plan.accounts.clients()
            && self.stage.answering_done() == self.plan.answering.len();
        if !clients_are_done || !self.all_vote() {
            return false;
        }
        let statuses = self.statuses();
        let [Some(first), Some(second), Some(third)] = &statuses else { return false };
        let all = [first, second, third];
        all.iter().any(|status| status.is_leader_ready)
            && all.iter().all(|status| {
                status.applied == first.applied
                    && status.committed == first.applied
                    && status.last == first.applied
            })
    }

    fn schedule(&mut self, at_ms: u64, act: Act) {
        self.scheduled += 1;
        self.agenda.insert((at_ms, self.scheduled), act);
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Fault(fault) => {
                self.oracle.event("world", format_args!("{fault:?}"));
                self.inflict(fault);
            }
            Act::Restart { node } => self.restart_if_due(node),
            Act::Unblock { from, to } => self.unblock(&from, &to),
            Act::EndSlowDisk { node } => self.nodes[node].slow_disk_ms.store(0, Ordering::SeqCst),
            Act::EndFullDisk { node } => self.nodes[node].disk.set_capacity(u64::MAX),
            Act::EndDelay => self.set_latency(self.plan.latency_ms_max),
        }
    }

    fn inflict(&mut self, fault: Fault) {
        let now_ms = self.now_ms;
        match fault {
            Fault::Kill { target, down_ms } => {
                let node = self.resolve(target);
                if self.power[node] == Power::On {
                    self.process_down(node, now_ms + down_ms);
                }
            }
            Fault::Power { target, loss, down_ms } => {
                let node = self.resolve(target);
                self.power_off(node, loss, now_ms + down_ms);
            }
            Fault::PowerAll { loss, down_ms } => {
                self.power_losses_of_all += 1;
                for (node, down_ms) in down_ms.into_iter().enumerate() {
                    self.power_off(node, loss, now_ms + down_ms);
                }
            }
            Fault::PowerMidWrite { target, operations, down_ms } => {
                let node = self.resolve(target);
                self.down_ms[node] = down_ms;
                let disk = &self.nodes[node].disk;
                disk.cut_power_at(disk.operations() + operations);
            }
            Fault::DiskError { target, operations, down_ms } => {
                let node = self.resolve(target);
                self.down_ms[node] = down_ms;
                let disk = &self.nodes[node].disk;
                disk.fail_at(disk.operations() + operations, std::io::ErrorKind::Other);
            }
            Fault::DiskFull { target, for_ms } => {
                let node = self.resolve(target);
                self.nodes[node].disk.set_capacity(0);
                self.schedule(now_ms + for_ms, Act::EndFullDisk { node });
            }
            Fault::SlowDisk { target, each_ms, for_ms } => {
                let node = self.resolve(target);
                self.nodes[node].slow_disk_ms.store(each_ms, Ordering::SeqCst);
                self.schedule(now_ms + for_ms, Act::EndSlowDisk { node });
            }
            Fault::Isolate { target, for_ms } => {
                let node = self.resolve(target);
                let with_clients = self.random.random_bool(0.5);
                for other in self.hosts() {
                    if other != host_name(node) && (with_clients || other != CLIENT_HOST) {
                        self.block_for(&host_name(node), &other, for_ms);
                        self.block_for(&other, &host_name(node), for_ms);
                    }
                }
            }
            Fault::CutOff { for_ms } => {
                let node = self.resolve(Target::Leader);
                for other in (0..NODES).filter(|other| *other != node) {
                    self.block_for(&host_name(node), &host_name(other), for_ms);
                    self.block_for(&host_name(other), &host_name(node), for_ms);
                }
            }
            Fault::Partition { from, to, one_way, for_ms } => {
                self.block_for(&host_name(from), &host_name(to), for_ms);
                if !one_way {
                    self.block_for(&host_name(to), &host_name(from), for_ms);
                }
            }
            Fault::Delay { latency_ms_max, for_ms } => {
                self.set_latency(latency_ms_max);
                self.schedule(now_ms + for_ms, Act::EndDelay);
            }
            Fault::ResetConnections { a, b } => self.network.reset(&host_name(a), &host_name(b)),
            Fault::ClockStep { target, by_ms } => {
                let node = self.resolve(target);
                let skew_ms = (self.skew_ms[node] + by_ms).clamp(-CLOCK_SKEW_MS_MAX, CLOCK_SKEW_MS_MAX);
                self.set_skew(node, skew_ms);
            }
            Fault::LoseDisk { target, down_ms } => {
                let node = self.resolve(target);
                if self.lost.is_some() || !self.all_vote() {
                    self.oracle.event("world", "no disk is lost: not all nodes vote");
                    return;
                }
                self.process_down(node, now_ms + down_ms);
                self.nodes[node].disk.erase();
                self.lost = Some(node);
                self.oracle.disk_lost(node);
            }
            Fault::HandOver => self.hand_over(),
            Fault::Snapshot { target } => self.snapshot(target),
        }
    }

    fn resolve(&self, target: Target) -> usize {
        match target {
            Target::Node(node) => node,
            Target::Leader => (0..NODES)
                .filter_map(|node| {
                    self.nodes[node].status().filter(|status| status.is_leader).map(|s| (s.term, node))
                })
                .max()
                .map_or(0, |(_, node)| node),
        }
    }

    /// The process dies and its machine closes its sockets.
    fn process_down(&mut self, node: usize, restarts_at_ms: u64) {
        assert_eq!(self.power[node], Power::On, "a running process ends once");
        self.network.set_host(&host_name(node), HostState::ProcessDown);
        self.nodes[node].forget_life();
        // A runtime drops its tasks in an order that depends on how many there were in this process
        // before. Cut off, they close their sockets unheard; the reset that follows is heard by all
        // peers in an order of ours.
        self.block_all(node);
        self.sim.crash(host_name(node));
        self.unblock_all(node);
        self.nodes[node].disk.kill();
        self.power[node] = Power::ProcessDown { restarts_at_ms };
        self.schedule(restarts_at_ms, Act::Restart { node });
        self.oracle.event("world", format_args!("the process of node {node} is gone"));
    }

    /// The machine goes dark: nobody hears of it any more, and its disk loses what it had not synced.
    fn power_off(&mut self, node: usize, loss: Loss, restarts_at_ms: u64) {
        match self.power[node] {
            Power::On => {
                self.block_all(node);
                self.nodes[node].forget_life();
                self.sim.crash(host_name(node));
            }
            Power::ProcessDown { .. } => self.block_all(node),
            Power::Off { .. } => {}
        }
        self.network.set_host(&host_name(node), HostState::PowerOff);
        match loss {
            Loss::Everything => self.nodes[node].disk.cut_power_losing_all(),
            Loss::Torn => self.nodes[node].disk.cut_power(),
        }
        self.power[node] = Power::Off { restarts_at_ms };
        self.schedule(restarts_at_ms, Act::Restart { node });
        self.oracle.event("world", format_args!("node {node} is off"));
    }

    fn restart_if_due(&mut self, node: usize) {
        match self.power[node] {
            Power::Off { restarts_at_ms } if restarts_at_ms <= self.now_ms => {
                self.unblock_all(node);
                self.restart(node);
            }
            Power::ProcessDown { restarts_at_ms } if restarts_at_ms <= self.now_ms => self.restart(node),
            // A later fault moved the restart.
            _ => {}
        }
    }

    fn restart(&mut self, node: usize) {
        self.power[node] = Power::On;
        self.network.set_host(&host_name(node), HostState::Up);
        self.sim.bounce(host_name(node));
    }

    /// Ends every fault: the rest of the run must make progress.
    fn heal(&mut self) {
        self.oracle.event("world", "the faults end");
        let agenda = std::mem::take(&mut self.agenda);
        for (_, act) in agenda {
            match act {
                Act::Fault(_) | Act::Restart { .. } => {}
                act => self.act(act),
            }
        }
        for node in 0..NODES {
            let disk = &self.nodes[node].disk;
            disk.cut_power_at(u64::MAX);
            disk.fail_at(u64::MAX, std::io::ErrorKind::Other);
            match self.power[node] {
                Power::On => {}
                Power::ProcessDown { .. } => self.restart(node),
                Power::Off { .. } => {
                    self.unblock_all(node);
                    self.restart(node);
                }
            }
        }
        // Log time never goes back, so leases end only once the clocks are past the furthest one.
        for node in 0..NODES {
            self.set_skew(node, CLOCK_SKEW_MS_MAX);
        }
        self.stage.heal();
    }

    fn hosts(&self) -> Vec<String> {
        (0..NODES).map(host_name).chain([CLIENT_HOST.to_owned()]).collect()
    }

    fn block(&mut self, from: &str, to: &str) {
        if self.network.block(from, to) {
            self.sim.partition_oneway(from, to);
        }
    }

    fn block_for(&mut self, from: &str, to: &str, for_ms: u64) {
        self.block(from, to);
        self.schedule(self.now_ms + for_ms, Act::Unblock { from: from.to_owned(), to: to.to_owned() });
    }

    fn unblock(&mut self, from: &str, to: &str) {
        if self.network.unblock(from, to) {
            self.sim.repair_oneway(from, to);
            self.network.reset(from, to);
        }
    }

    fn block_all(&mut self, node: usize) {
        for other in self.hosts() {
            if other != host_name(node) {
                self.block(&host_name(node), &other);
                self.block(&other, &host_name(node));
            }
        }
    }

    fn unblock_all(&mut self, node: usize) {
        for other in self.hosts() {
            if other != host_name(node) {
                self.unblock(&host_name(node), &other);
                self.unblock(&other, &host_name(node));
            }
        }
    }

    fn set_latency(&mut self, latency_ms_max: u64) {
        self.sim.set_max_message_latency(Duration::from_millis(latency_ms_max));
    }

    fn set_skew(&mut self, node: usize, skew_ms: i64) {
        self.skew_ms[node] = skew_ms;
        let now_ms = (EPOCH.get() + self.now_ms).saturating_add_signed(skew_ms);
        self.nodes[node].clock.set(UnixMillis(now_ms));
    }

    fn hand_over(&mut self) {
        let leader = self.resolve(Target::Leader);
        self.nodes[leader].ask(crate::node::Ask::HandOver);
    }

    fn snapshot(&mut self, target: Target) {
        let node = self.resolve(target);
        self.nodes[node].ask(crate::node::Ask::Snapshot);
    }
}
