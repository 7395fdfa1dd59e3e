//! Faults of the network: which links turn bad, and what proves it.
//!
//! | Fault | Links | Proof |
//! |---|---|---|
//! | isolated | both directions between the target and all other members; clients still reach it | packets were dropped in both directions |
//! | cut off | the same, and the clients' links to it | likewise |
//! | deaf, mute | one direction of these: it does not hear, it is not heard | packets were dropped in that direction, none in the other |
//! | halves | between the target with the smaller part of the others, and the rest | packets were dropped |
//! | bridge | between two halves that only one member reaches | packets were dropped |
//! | ring | each member reaches a majority, and no two the same one | packets were dropped |
//! | flapping | isolated and not, by turns | packets were dropped and packets passed |
//! | lossy, slow, repeating, reordering, corrupting, narrow | all links between members, both directions | packets were lost, delayed, ... |
//!
//! The members are hosts of their own (`ledgermq_faultnet`); what the harness asks them passes links
//! that stay good, unless clients are cut off too.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use ledgermq_faultnet::{Counters, Link, THIS_HOST};

use super::nemesis::Nemesis;
use crate::cluster::Member;

const FLAP_EVERY: Duration = Duration::from_millis(200);
/// As in the fault table: a fifth lost; 100 ms with 50 to either side; a link of 2 Mbit/s.
const LOSS_PPM: u32 = 200_000;
const CORRUPTION_PPM: u32 = 50_000;
const DUPLICATES_PPM: u32 = 200_000;
const REORDERING_PPM: u32 = 250_000;
const REORDERED_BY: Duration = Duration::from_millis(20);
const DELAY: Duration = Duration::from_millis(50);
const JITTER: Duration = Duration::from_millis(100);
const NARROW_BYTES_PER_SECOND: u64 = 250_000;

const CUT: Link = Link {
    cut: true,
    loss: 0,
    duplicates: 0,
    corruption: 0,
    reordering: 0,
    reordered_by: Duration::ZERO,
    delay: Duration::ZERO,
    jitter: Duration::ZERO,
    bytes_per_second: 0,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetworkFault {
    /// The target and the others do not reach each other.
    Isolated,
    /// Nor do clients and the target.
    CutOff,
    /// The target is heard and hears nobody.
    Deaf,
    /// The target hears and is not heard.
    Mute,
    /// The target with as many others as make no majority, and the rest.
    Halves,
    /// Two halves, and one member that reaches both.
    Bridge,
    /// Each member reaches its neighbours only, which with itself are a majority.
    Ring,
    Flapping,
    Lossy,
    Slow,
    Repeating,
    Reordering,
    Corrupting,
    Narrow,
}

impl NetworkFault {
    pub fn name(self) -> &'static str {
        match self {
            Self::Isolated => "isolate",
            Self::CutOff => "cut-off",
            Self::Deaf => "deaf",
            Self::Mute => "mute",
            Self::Halves => "halves",
            Self::Bridge => "bridge",
            Self::Ring => "ring",
            Self::Flapping => "flapping",
            Self::Lossy => "loss",
            Self::Slow => "delay",
            Self::Repeating => "duplication",
            Self::Reordering => "reordering",
            Self::Corrupting => "corruption",
            Self::Narrow => "rate",
        }
    }

    /// What a bad link is like, for faults that are about all links between members.
    fn bad_link(self) -> Option<Link> {
        let good = Link::default();
        match self {
            Self::Lossy => Some(Link { loss: LOSS_PPM, ..good }),
            Self::Slow => Some(Link { delay: DELAY, jitter: JITTER, ..good }),
            Self::Repeating => Some(Link { duplicates: DUPLICATES_PPM, ..good }),
            Self::Reordering => Some(Link { reordering: REORDERING_PPM, reordered_by: REORDERED_BY, ..good }),
            Self::Corrupting => Some(Link { corruption: CORRUPTION_PPM, ..good }),
            Self::Narrow => Some(Link { bytes_per_second: NARROW_BYTES_PER_SECOND, ..good }),
            Self::Isolated
            | Self::CutOff
            | Self::Deaf
            | Self::Mute
            | Self::Halves
            | Self::Bridge
            | Self::Ring
            | Self::Flapping => None,
        }
    }
}

/// A link of the network and what it is to be.
type Change = (usize, usize, Link);

impl Nemesis<'_> {
    /// Makes the links bad for the time of a fault, heals them, and answers what they did.
    pub(super) async fn network_fault(
        &mut self,
        fault: NetworkFault,
        targets: &[Member],
    ) -> anyhow::Result<String> {
        let changes = self.changes(fault, targets)?;
        ensure!(!changes.is_empty(), "{} changes no link of this cluster", fault.name());
        let before = self.counted(&changes)?;
        if fault == NetworkFault::Flapping {
            let ends = tokio::time::Instant::now() + self.fault_time;
            while tokio::time::Instant::now() < ends {
                self.change(&changes)?;
                tokio::time::sleep(FLAP_EVERY).await;
                self.cluster.network()?.heal();
                tokio::time::sleep(FLAP_EVERY).await;
            }
        } else {
            self.change(&changes)?;
            tokio::time::sleep(self.fault_time).await;
            self.cluster.network()?.heal();
        }
        let after = self.counted(&changes)?;
        let mut all = Counters::default();
        let mut idle = 0;
        for (before, after) in before.iter().zip(&after) {
            let since = after.since(before);
            idle += usize::from(since.harmed() == 0);
            all = sum(&all, &since);
        }
        ensure!(all.harmed() > 0, "no packet met the fault {}", fault.name());
        // Where one member is the target its links are few, and packets pass them all the time.
        let is_about_one = matches!(fault, NetworkFault::Isolated | NetworkFault::Deaf | NetworkFault::Mute);
        ensure!(!is_about_one || idle < changes.len(), "no link of the target dropped anything");
        Ok(format!(
            "{} links: {} packets dropped, {} lost, {} delayed, {} duplicated, {} reordered, {} corrupted, {} too many; {} passed",
            changes.len(),
            all.cut,
            all.lost,
            all.delayed,
            all.duplicated,
            all.reordered,
            all.corrupted,
            all.overflowed,
            all.passed,
        ))
    }

    fn change(&self, changes: &[Change]) -> anyhow::Result<()> {
        let network = self.cluster.network()?;
        for (from, to, link) in changes {
            network.set_link(*from, *to, *link);
        }
        Ok(())
    }

    fn counted(&self, changes: &[Change]) -> anyhow::Result<Vec<Counters>> {
        let network = self.cluster.network()?;
        Ok(changes.iter().map(|(from, to, _)| network.counters(*from, *to)).collect())
    }

    fn changes(&mut self, fault: NetworkFault, targets: &[Member]) -> anyhow::Result<Vec<Change>> {
        let mut hosts = Vec::new();
        for member in self.cluster.members().collect::<Vec<_>>() {
            hosts.push(self.cluster.host(member)?);
        }
        let mut brokers = Vec::new();
        for member in self.cluster.brokers().collect::<Vec<_>>() {
            brokers.push(self.cluster.host(member)?);
        }
        if let Some(link) = fault.bad_link() {
            return Ok(pairs(&hosts, &hosts).map(|(from, to)| (from, to, link)).collect());
        }
        let mut aside = Vec::new();
        for member in targets {
            aside.push(self.cluster.host(*member)?);
        }
        let first = *aside.first().context("a network fault needs a target")?;
        let others: Vec<usize> = hosts.iter().copied().filter(|host| !aside.contains(host)).collect();
        let both = |a: &[usize], b: &[usize]| -> Vec<Change> {
            pairs(a, b).chain(pairs(b, a)).map(|(from, to)| (from, to, CUT)).collect()
        };
        Ok(match fault {
            NetworkFault::Isolated | NetworkFault::Flapping => both(&aside, &others),
            NetworkFault::CutOff => {
                let mut all = others;
                all.push(THIS_HOST);
                both(&aside, &all)
            }
            NetworkFault::Deaf => pairs(&others, &aside).map(|(from, to)| (from, to, CUT)).collect(),
            NetworkFault::Mute => pairs(&aside, &others).map(|(from, to)| (from, to, CUT)).collect(),
            NetworkFault::Halves => {
                let with = (brokers.len() - 1) / 2;
                let minority: Vec<usize> = std::iter::once(first)
                    .chain(self.some_of(brokers.iter().copied().filter(|host| *host != first).collect()))
                    .take(with.max(1))
                    .collect();
                let rest: Vec<usize> = hosts.into_iter().filter(|host| !minority.contains(host)).collect();
                both(&minority, &rest)
            }
            NetworkFault::Bridge => {
                let order = self.some_of(brokers);
                let (bridge, rest) = order.split_first().context("a cluster has members")?;
                ensure!(rest.len() >= 4, "a bridge needs five brokers, this cluster has {}", rest.len() + 1);
                let _ = bridge;
                let (left, right) = rest.split_at(rest.len() / 2);
                both(left, right)
            }
            NetworkFault::Ring => {
                let order = self.some_of(brokers);
                let count = order.len();
                ensure!(count >= 5, "a ring of majorities needs five brokers, this cluster has {count}");
                // Each reaches as many on either side as make a majority with itself.
                let reach = (count / 2).div_ceil(2);
                let apart = |a: usize, b: usize| {
                    let distance = a.abs_diff(b);
                    distance.min(count - distance)
                };
                let places: Vec<usize> = (0..count).collect();
                pairs(&places, &places)
                    .filter(|(a, b)| apart(*a, *b) > reach)
                    .filter_map(|(a, b)| Some((*order.get(a)?, *order.get(b)?, CUT)))
                    .collect()
            }
            NetworkFault::Lossy
            | NetworkFault::Slow
            | NetworkFault::Repeating
            | NetworkFault::Reordering
            | NetworkFault::Corrupting
            | NetworkFault::Narrow => Vec::new(),
        })
    }

    /// All of them, in an order drawn from the seed.
    fn some_of(&mut self, mut hosts: Vec<usize>) -> Vec<usize> {
        let mut drawn = Vec::with_capacity(hosts.len());
        while !hosts.is_empty() {
            let chosen = usize::try_from(self.dice.below(hosts.len() as u64)).unwrap_or(0);
            drawn.push(hosts.swap_remove(chosen));
        }
        drawn
    }
}

fn pairs<'a>(from: &'a [usize], to: &'a [usize]) -> impl Iterator<Item = (usize, usize)> + use<'a> {
    from.iter().flat_map(move |a| to.iter().map(move |b| (*a, *b))).filter(|(a, b)| a != b)
}

fn sum(a: &Counters, b: &Counters) -> Counters {
    Counters {
        passed: a.passed + b.passed,
        cut: a.cut + b.cut,
        lost: a.lost + b.lost,
        duplicated: a.duplicated + b.duplicated,
        corrupted: a.corrupted + b.corrupted,
        reordered: a.reordered + b.reordered,
        delayed: a.delayed + b.delayed,
        overflowed: a.overflowed + b.overflowed,
    }
}
