//! Faults of the network: which links turn bad, and what proves it.
//!
//! | Fault | Links that are cut | Proof, by counting packets |
//! |---|---|---|
//! | isolated | both directions between each target and all other members; clients still reach it | dropped towards each broker among the targets, and from them |
//! | cut off | the same, and the clients' links to it | likewise |
//! | flapping | isolated and not, by turns | likewise, and some passed |
//! | deaf | from the others to the target | dropped in that direction; in the other some passed and none was dropped |
//! | mute | from the target to the others | likewise |
//! | halves | between the target with the smaller part of the others, and the rest | dropped in both directions |
//! | bridge | between two halves that only one member reaches | dropped |
//! | ring | each member reaches a majority, and no two the same one | dropped |
//!
//! Lossy, slow, repeating, reordering, corrupting and narrow links are all links between members, both
//! ways; packets were lost, delayed and so on.
//!
//! What the harness asks the members passes links that stay good, unless clients are cut off too. A
//! nameserver only answers, so nothing may come from one that hears nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use ledgermq_faultnet::{Counters, Link, THIS_HOST};
use tokio::time::Instant;

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

/// A link from one host to another.
type Between = (usize, usize);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetworkFault {
    /// Each target reaches no other member, and none reaches it.
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

    /// Links are cut, not made slow or lossy.
    pub fn is_cut(self) -> bool {
        self.bad_link().cut
    }

    /// What becomes of the links it is about.
    fn bad_link(self) -> Link {
        let good = Link::default();
        match self {
            Self::Isolated
            | Self::CutOff
            | Self::Deaf
            | Self::Mute
            | Self::Halves
            | Self::Bridge
            | Self::Ring
            | Self::Flapping => Link { cut: true, ..good },
            Self::Lossy => Link { loss: LOSS_PPM, ..good },
            Self::Slow => Link { delay: DELAY, jitter: JITTER, ..good },
            Self::Repeating => Link { duplicates: DUPLICATES_PPM, ..good },
            Self::Reordering => Link { reordering: REORDERING_PPM, reordered_by: REORDERED_BY, ..good },
            Self::Corrupting => Link { corruption: CORRUPTION_PPM, ..good },
            Self::Narrow => Link { bytes_per_second: NARROW_BYTES_PER_SECOND, ..good },
        }
    }

    /// Packets that met it, of those that a link counted.
    fn met(self, counters: &Counters) -> u64 {
        match self {
            Self::Lossy => counters.lost,
            Self::Slow => counters.delayed,
            Self::Repeating => counters.duplicated,
            Self::Reordering => counters.reordered,
            Self::Corrupting => counters.corrupted,
            Self::Narrow => counters.delayed + counters.overflowed,
            Self::Isolated
            | Self::CutOff
            | Self::Deaf
            | Self::Mute
            | Self::Halves
            | Self::Bridge
            | Self::Ring
            | Self::Flapping => counters.cut,
        }
    }
}

/// The links that turn bad, and the brokers on the one side of them where there are sides.
#[derive(Debug, Default)]
struct Trouble {
    links: BTreeSet<Between>,
    aside: Vec<usize>,
}

impl Nemesis<'_> {
    /// Makes the links bad for the time of a fault, heals them, and answers what they did.
    pub(super) async fn network_fault(
        &mut self,
        fault: NetworkFault,
        targets: &[Member],
    ) -> anyhow::Result<String> {
        let trouble = self.trouble(fault, targets)?;
        ensure!(!trouble.links.is_empty(), "{} changes no link of this cluster", fault.name());
        let mut hosts = self.hosts(self.cluster.members())?;
        hosts.push(THIS_HOST);
        let all = |link: Link| trouble.links.iter().map(move |(from, to)| (*from, *to, link));
        let bad: Vec<_> = all(fault.bad_link()).collect();
        let good: Vec<_> = all(Link::default()).collect();
        let mut links = self.cluster.links()?;
        let before = links.counters(&hosts)?;
        if fault == NetworkFault::Flapping {
            let ends = Instant::now() + self.fault_time;
            while Instant::now() < ends {
                links.set(&bad)?;
                tokio::time::sleep(FLAP_EVERY).await;
                links.set(&good)?;
                tokio::time::sleep(FLAP_EVERY).await;
            }
        } else {
            links.set(&bad)?;
            tokio::time::sleep(self.fault_time).await;
        }
        links.heal()?;
        let after = links.counters(&hosts)?;
        let since: BTreeMap<Between, Counters> = after
            .iter()
            .map(|(between, after)| {
                (*between, after.since(&before.get(between).copied().unwrap_or_default()))
            })
            .collect();
        proven(fault, &trouble, &since)?;
        let all = since.iter().filter(|(between, _)| trouble.links.contains(between));
        let all = all.fold(Counters::default(), |all, (_, counters)| sum(&all, counters));
        Ok(format!(
            "{} links: {} packets dropped, {} lost, {} delayed, {} duplicated, {} reordered, {} corrupted, {} too many; {} passed",
            trouble.links.len(),
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

    fn hosts(&self, members: impl Iterator<Item = Member>) -> anyhow::Result<Vec<usize>> {
        members.map(|member| self.cluster.host(member)).collect()
    }

    fn trouble(&mut self, fault: NetworkFault, targets: &[Member]) -> anyhow::Result<Trouble> {
        let hosts = self.hosts(self.cluster.members())?;
        let brokers = self.hosts(self.cluster.brokers())?;
        let targets = self.hosts(targets.iter().copied())?;
        let aside = targets.iter().copied().filter(|host| brokers.contains(host)).collect();
        Ok(match fault {
            NetworkFault::Lossy
            | NetworkFault::Slow
            | NetworkFault::Repeating
            | NetworkFault::Reordering
            | NetworkFault::Corrupting
            | NetworkFault::Narrow => Trouble { links: pairs(&hosts, &hosts).collect(), aside: Vec::new() },
            NetworkFault::Isolated | NetworkFault::Flapping => {
                Trouble { links: both_ways(&targets, &hosts), aside }
            }
            NetworkFault::CutOff => {
                let mut all = hosts;
                all.push(THIS_HOST);
                Trouble { links: both_ways(&targets, &all), aside }
            }
            NetworkFault::Deaf => Trouble { links: pairs(&hosts, &targets).collect(), aside },
            NetworkFault::Mute => Trouble { links: pairs(&targets, &hosts).collect(), aside },
            NetworkFault::Halves => {
                let first = *targets.first().context("a partition needs a target")?;
                let others = self.shuffled(brokers.iter().copied().filter(|host| *host != first).collect());
                let minority = (brokers.len().saturating_sub(1) / 2).max(1);
                let minority: Vec<usize> = std::iter::once(first).chain(others).take(minority).collect();
                let rest: Vec<usize> = hosts.into_iter().filter(|host| !minority.contains(host)).collect();
                Trouble { links: both_ways(&minority, &rest), aside: minority }
            }
            NetworkFault::Bridge => {
                let order = self.shuffled(brokers);
                // The first is the bridge: nothing of it is cut.
                let rest = order.get(1..).unwrap_or_default();
                ensure!(rest.len() >= 4, "a bridge needs five brokers, this cluster has {}", order.len());
                let (left, right) = rest.split_at(rest.len() / 2);
                Trouble { links: both_ways(left, right), aside: left.to_vec() }
            }
            NetworkFault::Ring => {
                let order = self.shuffled(brokers);
                let count = order.len();
                ensure!(count >= 5, "a ring of majorities needs five brokers, this cluster has {count}");
                // Each reaches as many on either side as make a majority with itself.
                let reach = (count / 2).div_ceil(2);
                let apart = |a: usize, b: usize| {
                    let distance = a.abs_diff(b);
                    distance.min(count - distance)
                };
                let places: Vec<usize> = (0..count).collect();
                let links = pairs(&places, &places)
                    .filter(|(a, b)| apart(*a, *b) > reach)
                    .filter_map(|(a, b)| Some((*order.get(a)?, *order.get(b)?)))
                    .collect();
                Trouble { links, aside: Vec::new() }
            }
        })
    }
}

/// An error where packets do not show what the table above says.
fn proven(fault: NetworkFault, trouble: &Trouble, since: &BTreeMap<Between, Counters>) -> anyhow::Result<()> {
    let name = fault.name();
    let count = |which: &dyn Fn(&Between) -> bool, what: &dyn Fn(&Counters) -> u64| -> u64 {
        since.iter().filter(|(between, _)| which(between)).map(|(_, counters)| what(counters)).sum()
    };
    let dropped = |counters: &Counters| counters.cut;
    let passed = |counters: &Counters| counters.passed;
    let aside = |host: &usize| trouble.aside.contains(host);
    // Between members: clients have links of their own.
    let other = |host: &usize| *host != THIS_HOST && !aside(host);
    let into = |(from, to): &Between| aside(to) && other(from);
    let out_of = |(from, to): &Between| aside(from) && other(to);
    let is_changed = |between: &Between| trouble.links.contains(between);
    ensure!(count(&is_changed, &|counters| fault.met(counters)) > 0, "no packet met the fault {name}");
    match fault {
        NetworkFault::Isolated | NetworkFault::CutOff | NetworkFault::Flapping => {
            for host in &trouble.aside {
                let towards = |(_, to): &Between| to == host;
                ensure!(count(&towards, &dropped) > 0, "{name}: nothing was dropped towards host {host}");
            }
            let from = |(from, _): &Between| aside(from);
            let none = trouble.aside.is_empty();
            ensure!(none || count(&from, &dropped) > 0, "{name}: nothing the targets sent was dropped");
            let is_flapping = fault == NetworkFault::Flapping;
            ensure!(!is_flapping || count(&is_changed, &passed) > 0, "{name}: nothing passed in between");
        }
        NetworkFault::Deaf | NetworkFault::Mute => {
            let (cut, whole): (&dyn Fn(&Between) -> bool, &dyn Fn(&Between) -> bool) =
                if fault == NetworkFault::Deaf { (&into, &out_of) } else { (&out_of, &into) };
            ensure!(count(cut, &dropped) > 0, "{name}: nothing was dropped in its direction");
            ensure!(count(whole, &passed) > 0, "{name}: nothing passed in the other direction");
            ensure!(count(whole, &dropped) == 0, "{name}: something was dropped in the other direction");
        }
        NetworkFault::Halves => {
            ensure!(count(&into, &dropped) > 0, "{name}: nothing was dropped towards the minority");
            ensure!(count(&out_of, &dropped) > 0, "{name}: nothing of the minority was dropped");
        }
        NetworkFault::Bridge
        | NetworkFault::Ring
        | NetworkFault::Lossy
        | NetworkFault::Slow
        | NetworkFault::Repeating
        | NetworkFault::Reordering
        | NetworkFault::Corrupting
        | NetworkFault::Narrow => {}
    }
    Ok(())
}

/// From each of these to each of those.
fn pairs<'a>(from: &'a [usize], to: &'a [usize]) -> impl Iterator<Item = Between> + use<'a> {
    from.iter().flat_map(move |a| to.iter().map(move |b| (*a, *b))).filter(|(a, b)| a != b)
}

fn both_ways(a: &[usize], b: &[usize]) -> BTreeSet<Between> {
    pairs(a, b).chain(pairs(b, a)).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(links: &[(Between, u64, u64)]) -> BTreeMap<Between, Counters> {
        let of = |(between, cut, passed): &(Between, u64, u64)| {
            (*between, Counters { cut: *cut, passed: *passed, ..Counters::default() })
        };
        links.iter().map(of).collect()
    }

    #[test]
    fn each_isolated_member_is_cut_from_all_others_and_each_link_stands_once() {
        let links = both_ways(&[1, 2], &[1, 2, 3]);
        assert_eq!(links, BTreeSet::from([(1, 2), (2, 1), (1, 3), (3, 1), (2, 3), (3, 2)]));
    }

    #[test]
    fn a_fault_of_one_direction_is_not_proven_by_the_other() {
        let said = |fault, seen: &[(Between, u64, u64)]| {
            let links = if fault == NetworkFault::Deaf {
                pairs(&[2, 3], &[1]).collect()
            } else {
                both_ways(&[1], &[2, 3])
            };
            let trouble = Trouble { links, aside: vec![1] };
            proven(fault, &trouble, &counted(seen)).map_err(|error| error.to_string())
        };
        let deaf = NetworkFault::Deaf;
        assert_eq!(said(deaf, &[((2, 1), 3, 0), ((1, 2), 0, 5)]), Ok(()));
        assert!(said(deaf, &[((2, 1), 0, 9), ((1, 2), 0, 5)]).unwrap_err().contains("no packet met"));
        assert!(said(deaf, &[((2, 1), 3, 0)]).unwrap_err().contains("nothing passed in the other"));
        assert!(said(deaf, &[((2, 1), 3, 0), ((1, 2), 1, 5)]).unwrap_err().contains("dropped in the other"));
        let isolated = NetworkFault::Isolated;
        assert_eq!(said(isolated, &[((2, 1), 3, 0), ((1, 3), 1, 0)]), Ok(()));
        assert!(said(isolated, &[((1, 2), 3, 0)]).unwrap_err().contains("towards host 1"));
        assert!(said(isolated, &[((2, 1), 3, 0)]).unwrap_err().contains("the targets sent"));
        let flapping = NetworkFault::Flapping;
        assert!(said(flapping, &[((2, 1), 3, 0), ((1, 2), 1, 0)]).unwrap_err().contains("in between"));
        assert_eq!(said(flapping, &[((2, 1), 3, 0), ((1, 2), 1, 1)]), Ok(()));
    }
}
