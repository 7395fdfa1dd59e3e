//! What a link does to a packet.

use std::collections::HashMap;
use std::time::Duration;

use crate::dice::{Dice, Ppm};

/// The link from one host to another, one direction. The default is a good one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Link {
    /// Nothing passes.
    pub cut: bool,
    pub loss: Ppm,
    pub duplicates: Ppm,
    /// A bit of the packet is turned over.
    pub corruption: Ppm,
    /// Held back by [`Link::reordered_by`], so that later ones overtake it.
    pub reordering: Ppm,
    pub reordered_by: Duration,
    pub delay: Duration,
    /// Up to this much more, drawn for each packet.
    pub jitter: Duration,
    /// 0 is no limit.
    pub bytes_per_second: u64,
}

/// What a link did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    pub passed: u64,
    /// Dropped because the link is cut.
    pub cut: u64,
    pub lost: u64,
    pub duplicated: u64,
    pub corrupted: u64,
    pub reordered: u64,
    /// Passed later than they came.
    pub delayed: u64,
    /// Dropped because too many waited.
    pub overflowed: u64,
}

impl Counters {
    /// Packets to which something happened that does not happen on a good link.
    pub fn harmed(&self) -> u64 {
        self.cut
            + self.lost
            + self.duplicated
            + self.corrupted
            + self.reordered
            + self.delayed
            + self.overflowed
    }

    /// What was counted since `before`.
    pub fn since(&self, before: &Self) -> Self {
        Self {
            passed: self.passed - before.passed,
            cut: self.cut - before.cut,
            lost: self.lost - before.lost,
            duplicated: self.duplicated - before.duplicated,
            corrupted: self.corrupted - before.corrupted,
            reordered: self.reordered - before.reordered,
            delayed: self.delayed - before.delayed,
            overflowed: self.overflowed - before.overflowed,
        }
    }
}

/// What becomes of one packet: how long each of its copies waits. No copy: it is gone.
pub(crate) type Copies = [Option<Duration>; 2];

/// The links of a network that are not good, and the counters of all.
#[derive(Debug)]
pub(crate) struct Links {
    links: HashMap<(usize, usize), Link>,
    counters: HashMap<(usize, usize), Counters>,
    dice: Dice,
}

impl Links {
    pub(crate) fn new(seed: u64) -> Self {
        Self { links: HashMap::new(), counters: HashMap::new(), dice: Dice::new(seed) }
    }

    pub(crate) fn set(&mut self, from: usize, to: usize, link: Link) {
        self.links.insert((from, to), link);
    }

    pub(crate) fn heal(&mut self) {
        self.links.clear();
    }

    pub(crate) fn counters(&self, from: usize, to: usize) -> Counters {
        self.counters.get(&(from, to)).copied().unwrap_or_default()
    }

    pub(crate) fn overflowed(&mut self, from: usize, to: usize) {
        self.counters.entry((from, to)).or_default().overflowed += 1;
    }

    /// It waits for its turn on a link of limited rate.
    pub(crate) fn queued(&mut self, from: usize, to: usize) {
        self.counters.entry((from, to)).or_default().delayed += 1;
    }

    pub(crate) fn bytes_per_second(&self, from: usize, to: usize) -> u64 {
        self.links.get(&(from, to)).map_or(0, |link| link.bytes_per_second)
    }

    /// Decides about a packet, and may change it.
    pub(crate) fn meet(&mut self, from: usize, to: usize, packet: &mut [u8]) -> Copies {
        let counters = self.counters.entry((from, to)).or_default();
        let Some(link) = self.links.get(&(from, to)) else {
            counters.passed += 1;
            return [Some(Duration::ZERO), None];
        };
        if link.cut {
            counters.cut += 1;
            return [None, None];
        }
        let dice = &mut self.dice;
        if dice.falls(link.loss) {
            counters.lost += 1;
            return [None, None];
        }
        if dice.falls(link.corruption) {
            let at = usize::try_from(dice.below(packet.len() as u64)).unwrap_or(0);
            if let Some(byte) = packet.get_mut(at) {
                *byte ^= 1 << dice.below(8);
            }
            counters.corrupted += 1;
        }
        let jitter_ns = u64::try_from(link.jitter.as_nanos()).unwrap_or(u64::MAX);
        let mut wait = link.delay + Duration::from_nanos(dice.below(jitter_ns.saturating_add(1)));
        if dice.falls(link.reordering) {
            wait += link.reordered_by;
            counters.reordered += 1;
        }
        counters.delayed += u64::from(!wait.is_zero());
        counters.passed += 1;
        let twice = dice.falls(link.duplicates);
        counters.duplicated += u64::from(twice);
        [Some(wait), twice.then_some(wait)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Ppm = 1_000_000;

    fn meets(link: Link, packets: u64) -> (Vec<Copies>, Counters) {
        let mut links = Links::new(7);
        links.set(1, 2, link);
        let copies = (0..packets).map(|_| links.meet(1, 2, &mut [0; 40])).collect();
        (copies, links.counters(1, 2))
    }

    #[test]
    fn a_link_without_a_rule_passes_everything_at_once() {
        let mut links = Links::new(7);
        let mut packet = [9; 40];
        assert_eq!(links.meet(1, 2, &mut packet), [Some(Duration::ZERO), None]);
        assert_eq!((packet, links.counters(1, 2).passed, links.counters(1, 2).harmed()), ([9; 40], 1, 0));
    }

    #[test]
    fn a_cut_link_passes_nothing_in_its_direction_only() {
        let mut links = Links::new(7);
        links.set(1, 2, Link { cut: true, ..Link::default() });
        assert_eq!(links.meet(1, 2, &mut [0; 40]), [None, None]);
        assert_eq!(links.meet(2, 1, &mut [0; 40]), [Some(Duration::ZERO), None]);
        assert_eq!((links.counters(1, 2).cut, links.counters(2, 1).cut), (1, 0));
        links.heal();
        assert_eq!(links.meet(1, 2, &mut [0; 40]), [Some(Duration::ZERO), None]);
    }

    #[test]
    fn losses_are_as_many_as_the_rule_says() {
        let (copies, counters) = meets(Link { loss: 200_000, ..Link::default() }, 10_000);
        let lost = copies.iter().filter(|copies| copies[0].is_none()).count() as u64;
        assert_eq!(lost, counters.lost);
        assert!((1_800..2_200).contains(&lost), "{lost}");
    }

    #[test]
    fn a_packet_is_duplicated_held_back_and_corrupted() {
        let reordered_by = Duration::from_millis(5);
        let link = Link {
            duplicates: ALL,
            reordering: ALL,
            reordered_by,
            delay: Duration::from_millis(10),
            ..Link::default()
        };
        let (copies, counters) = meets(link, 1);
        let wait = Duration::from_millis(15);
        assert_eq!(copies, [[Some(wait), Some(wait)]]);
        assert_eq!((counters.duplicated, counters.reordered, counters.delayed), (1, 1, 1));
        let mut links = Links::new(7);
        links.set(1, 2, Link { corruption: ALL, ..Link::default() });
        let mut packet = [0u8; 40];
        links.meet(1, 2, &mut packet);
        assert_eq!(packet.iter().map(|byte| byte.count_ones()).sum::<u32>(), 1, "one bit");
    }

    #[test]
    fn the_same_seed_does_the_same() {
        let link = Link { loss: 300_000, jitter: Duration::from_millis(9), ..Link::default() };
        assert_eq!(meets(link, 500), meets(link, 500));
    }
}
