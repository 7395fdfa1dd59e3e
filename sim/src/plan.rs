//! What a seed means: the size of everything and the faults, with their times.
//!
//! A plan is drawn whole before the run starts, so that reading it tells what the run will do. What
//! depends on the run itself (who leads) is named by role and resolved when the fault is due.
//!
//! Bounds, which make a healed group able to go on:
//! - every node that goes down comes back, at the latest when the faults end;
//! - every partition, delay, full disk and slow disk ends, at the latest when the faults end;
//! - disks lose and tear what was not synced, and nothing else: no flushed byte is ever damaged;
//! - one disk at a time is lost whole, and the next one only once its node votes again.
//!
//! Every plan cuts the power of all nodes at once at least once, and once so that every disk loses
//! all it had not synced.

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};

use crate::workload::{AccountsPlan, OrderedPlan};

/// Brokers of the group.
pub const NODES: usize = 3;

#[derive(Debug, Clone)]
pub struct Plan {
    pub seed: u64,
    pub tick_ms: u64,
    /// Until the first fault the group may elect a leader.
    pub quiet_ms: u64,
    /// Faults happen between `quiet_ms` and `quiet_ms + faults_ms`.
    pub faults_ms: u64,
    pub latency_ms_max: u64,
    pub disk_us_min: u64,
    pub disk_us_max: u64,
    pub segment_bytes: u64,
    pub snapshot_every_bytes: u64,
    pub purge_margin_entries: u64,
    /// The state refers to so much of the log's end; what is older is purged, and a replica that
    /// missed it is sent a snapshot.
    pub retained_bytes: Option<u64>,
    /// The log is kept this short, by the product's retention.
    pub log_bytes_max: Option<u64>,
    pub producers: usize,
    pub consumers: usize,
    pub queues: u32,
    pub body_bytes_max: usize,
    /// One in this many bodies is large.
    pub large_body_every: u32,
    pub large_body_bytes: usize,
    pub ordered: OrderedPlan,
    pub accounts: AccountsPlan,
    /// The nodes at which a producer waits to be asked about halves that were left open. None: checks
    /// are counted by requests of anybody.
    pub answering: Vec<usize>,
    /// In time order.
    pub faults: Vec<PlannedFault>,
}

#[derive(Debug, Clone)]
pub struct PlannedFault {
    pub at_ms: u64,
    pub fault: Fault,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// Whoever leads when the fault is due; node 0 if nobody does.
    Leader,
    Node(usize),
}

/// What a power cut does to writes that were not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// All of them are gone.
    Everything,
    /// Any part, torn at sector boundaries, in any order.
    Torn,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The process dies; what it wrote stays in the page cache.
    Kill {
        target: Target,
        down_ms: u64,
    },
    Power {
        target: Target,
        loss: Loss,
        down_ms: u64,
    },
    PowerAll {
        loss: Loss,
        down_ms: [u64; NODES],
    },
    /// The power goes in the middle of a disk operation, this many operations from now.
    PowerMidWrite {
        target: Target,
        operations: u64,
        down_ms: u64,
    },
    /// A write or sync fails; the process ends itself and comes back later.
    DiskError {
        target: Target,
        operations: u64,
        down_ms: u64,
    },
    /// No space is left for a while.
    DiskFull {
        target: Target,
        for_ms: u64,
    },
    SlowDisk {
        target: Target,
        each_ms: u64,
        for_ms: u64,
    },
    Isolate {
        target: Target,
        for_ms: u64,
    },
    /// The leader loses its peers and keeps its clients.
    CutOff {
        for_ms: u64,
    },
    Partition {
        from: usize,
        to: usize,
        one_way: bool,
        for_ms: u64,
    },
    /// Messages between all hosts take up to this long.
    Delay {
        latency_ms_max: u64,
        for_ms: u64,
    },
    ResetConnections {
        a: usize,
        b: usize,
    },
    ClockStep {
        target: Target,
        by_ms: i64,
    },
    /// The machine is gone with its disk; another one takes its place with an empty one. Left out where
    /// not all nodes are up and voters.
    LoseDisk {
        target: Target,
        down_ms: u64,
    },
    HandOver,
    Snapshot {
        target: Target,
    },
}

impl Plan {
    pub fn draw(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed ^ 0x706c_616e);
        let random = &mut random;
        let quiet_ms = random.random_range(1_000..2_500);
        let faults_ms = random.random_range(4_000..9_000);
        let disk_us_min = *[50, 200, 1_000].choose(random).expect("three");
        let mut plan = Self {
            seed,
            tick_ms: *[1, 1, 2, 3].choose(random).expect("four"),
            quiet_ms,
            faults_ms,
            latency_ms_max: random.random_range(1..8),
            disk_us_min,
            disk_us_max: disk_us_min * random.random_range(1..12),
            segment_bytes: *[64 << 10, 256 << 10, 1 << 20].choose(random).expect("three"),
            snapshot_every_bytes: *[16 << 10, 64 << 10, 1 << 20].choose(random).expect("three"),
            purge_margin_entries: *[8, 64, 1_000].choose(random).expect("three"),
            retained_bytes: *[None, Some(24 << 10), Some(128 << 10)].choose(random).expect("three"),
            log_bytes_max: None,
            producers: random.random_range(1..=4),
            consumers: random.random_range(0..=2),
            queues: random.random_range(1..=8),
            body_bytes_max: *[64, 600, 3_000].choose(random).expect("three"),
            large_body_every: *[20, 100, 1_000].choose(random).expect("three"),
            large_body_bytes: *[8 << 10, 30 << 10].choose(random).expect("two"),
            ordered: OrderedPlan::draw(seed),
            accounts: AccountsPlan::draw(seed),
            answering: Vec::new(),
            faults: Vec::new(),
        };
        plan.draw_faults(random);
        plan.draw_beside(0x0063_7574, 2, |random| Fault::CutOff { for_ms: random.random_range(900..2_500) });
        plan.draw_retention();
        plan.draw_answering();
        plan.draw_beside(0x6c6f_7373, 3, |random| {
            let target = draw_target(random);
            Fault::LoseDisk { target, down_ms: random.random_range(1..1_500) }
        });
        plan
    }

    /// When the last fault ends.
    pub fn heal_at_ms(&self) -> u64 {
        self.quiet_ms + self.faults_ms
    }

    /// A kind of fault in half of the plans, so many times at most; from a seed of its own, so that what else
    /// a seed means stays as it was.
    fn draw_beside(&mut self, seed: u64, count_max: u32, draw: impl Fn(&mut StdRng) -> Fault) {
        let mut random = StdRng::seed_from_u64(self.seed ^ seed);
        if random.random_bool(0.5) {
            return;
        }
        for _ in 0..random.random_range(1..=count_max) {
            let at_ms = random.random_range(self.quiet_ms..self.heal_at_ms());
            self.faults.push(PlannedFault { at_ms, fault: draw(&mut random) });
        }
        self.faults.sort_by_key(|planned| planned.at_ms);
    }

    /// Also from a seed of its own. Often one node only, so that the leader is mostly another one.
    fn draw_answering(&mut self) {
        let mut random = StdRng::seed_from_u64(self.seed ^ 0x0061_736b);
        if random.random_bool(0.7) {
            return;
        }
        let first = random.random_range(0..NODES);
        let all = random.random_bool(0.3);
        self.answering = (0..NODES).filter(|node| all || *node == first).collect();
    }

    /// Also from a seed of its own. The log is released in steps of 256 KiB, so there has to be much of it.
    fn draw_retention(&mut self) {
        let mut random = StdRng::seed_from_u64(self.seed ^ 0x6b65_6570);
        if random.random_bool(0.7) {
            return;
        }
        self.retained_bytes = None;
        self.log_bytes_max = Some(*[64 << 10, 200 << 10].choose(&mut random).expect("two"));
        self.segment_bytes = 64 << 10;
        self.snapshot_every_bytes = *[16 << 10, 64 << 10].choose(&mut random).expect("two");
        self.purge_margin_entries = 8;
        self.large_body_every = 2;
        self.large_body_bytes = 40 << 10;
    }

    fn draw_faults(&mut self, random: &mut StdRng) {
        // Swarm testing: each run uses a subset of the kinds, so that rare mixtures get their turn.
        let mut kinds: Vec<u32> = (0..KINDS).filter(|_| random.random_bool(0.6)).collect();
        if kinds.is_empty() {
            kinds.push(0);
        }
        let gap_ms_max = *[250, 700, 1_500].choose(random).expect("three");
        let end_ms = self.heal_at_ms();
        let mut at_ms = self.quiet_ms;
        loop {
            at_ms += random.random_range(20..=gap_ms_max);
            if at_ms >= end_ms {
                break;
            }
            let kind = *kinds.choose(random).expect("at least one");
            self.faults.push(PlannedFault { at_ms, fault: draw_fault(kind, random) });
        }
        let at_ms = random.random_range(self.quiet_ms..end_ms);
        self.faults.push(PlannedFault { at_ms, fault: draw_power_all(Loss::Everything, random) });
        self.faults.sort_by_key(|planned| planned.at_ms);
    }
}

/// Kinds of [`draw_fault`]; [`Fault::CutOff`] and [`Fault::LoseDisk`] are drawn beside them.
const KINDS: u32 = 14;

fn draw_fault(kind: u32, random: &mut StdRng) -> Fault {
    let down_ms = random.random_range(1..1_500);
    let for_ms = if random.random_bool(0.9) { random.random_range(50..2_500) } else { 5_000 };
    match kind {
        0 => Fault::Kill { target: draw_target(random), down_ms },
        1 => Fault::Power { target: draw_target(random), loss: draw_loss(random), down_ms },
        2 => draw_power_all(draw_loss(random), random),
        3 => Fault::PowerMidWrite {
            target: draw_target(random),
            operations: random.random_range(0..12),
            down_ms,
        },
        4 => {
            Fault::DiskError { target: draw_target(random), operations: random.random_range(0..12), down_ms }
        }
        5 => Fault::SlowDisk { target: draw_target(random), each_ms: random.random_range(2..200), for_ms },
        6 => Fault::Isolate { target: draw_target(random), for_ms },
        7 | 8 => {
            let from = random.random_range(0..NODES);
            let to = (from + random.random_range(1..NODES)) % NODES;
            Fault::Partition { from, to, one_way: kind == 8, for_ms }
        }
        9 => Fault::Delay { latency_ms_max: random.random_range(10..300), for_ms },
        10 => {
            let a = random.random_range(0..NODES);
            Fault::ResetConnections { a, b: (a + random.random_range(1..NODES)) % NODES }
        }
        11 => Fault::ClockStep { target: draw_target(random), by_ms: random.random_range(-30_000..30_000) },
        12 if random.random_bool(0.5) => Fault::HandOver,
        12 => Fault::DiskFull { target: draw_target(random), for_ms },
        _ => Fault::Snapshot { target: draw_target(random) },
    }
}

fn draw_power_all(loss: Loss, random: &mut StdRng) -> Fault {
    // Together, one after the other, or one of them much later: different quorums start first.
    let spread_ms = *[1, 300, 2_000].choose(random).expect("three");
    Fault::PowerAll { loss, down_ms: std::array::from_fn(|_| random.random_range(1..=spread_ms) + 50) }
}

fn draw_target(random: &mut StdRng) -> Target {
    if random.random_bool(0.5) { Target::Leader } else { Target::Node(random.random_range(0..NODES)) }
}

fn draw_loss(random: &mut StdRng) -> Loss {
    if random.random_bool(0.4) { Loss::Everything } else { Loss::Torn }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_plan_cuts_the_power_of_all_nodes_with_the_loss_of_everything_unsynced() {
        for seed in 0..2_000 {
            let plan = Plan::draw(seed);
            let cuts = plan.faults.iter().filter(|planned| {
                matches!(planned.fault, Fault::PowerAll { loss: Loss::Everything, .. })
                    && planned.at_ms >= plan.quiet_ms
                    && planned.at_ms < plan.heal_at_ms()
            });
            assert!(cuts.count() >= 1, "seed {seed}");
            assert!(plan.faults.is_sorted_by_key(|planned| planned.at_ms), "seed {seed}");
        }
    }

    #[test]
    fn the_plans_of_many_seeds_hold_every_kind_of_fault() {
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..300 {
            for planned in Plan::draw(seed).faults {
                let name = format!("{:?}", planned.fault);
                seen.insert(name.split([' ', '{']).next().unwrap_or_default().to_owned());
            }
        }
        assert_eq!(seen.len(), 16, "{seen:?}");
    }

    #[test]
    fn a_seed_is_one_plan() {
        assert_eq!(format!("{:?}", Plan::draw(7)), format!("{:?}", Plan::draw(7)));
        assert_ne!(format!("{:?}", Plan::draw(7)), format!("{:?}", Plan::draw(8)));
    }
}
