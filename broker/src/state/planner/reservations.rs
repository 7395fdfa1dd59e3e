//! Which messages are in a plan that is not answered yet. Memory of the leader only.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex;

use crate::state::names::{ConsumerGroupId, OrderKey, TopicId};

/// What one plan holds.
#[derive(Debug, Default)]
pub(crate) struct Reserved {
    /// Queue, offset.
    pub(super) ended: Vec<(u32, u64)>,
    /// Queue, from, to.
    pub(super) unseen: Vec<(u32, u64, u64)>,
    /// Queue, order key.
    pub(super) orders: Vec<(u32, OrderKey)>,
}

/// What all plans of one subscription hold.
#[derive(Debug, Default)]
pub(crate) struct Lane {
    ended: BTreeSet<(u32, u64)>,
    /// (queue, from) → to; disjoint.
    unseen: BTreeMap<(u32, u64), u64>,
    orders: BTreeSet<(u32, OrderKey)>,
}

type Lanes = BTreeMap<(ConsumerGroupId, TopicId), Arc<Mutex<Lane>>>;

#[derive(Debug, Default)]
pub(crate) struct Reservations {
    lanes: Mutex<Lanes>,
    rotation: AtomicU32,
    priority_turns: AtomicU32,
}

impl Reservations {
    /// The queue of `queues` that the next plan starts at. Counted per group and not per process, so
    /// that a simulated group does the same each time.
    pub(in crate::state) fn next_first_queue(&self, queues: u32) -> u32 {
        self.rotation.fetch_add(1, Ordering::Relaxed) % queues.max(1)
    }

    /// Whether the next receive honours priorities: `factor` of a hundred do, spread evenly.
    pub(super) fn next_honours_priority(&self, factor: u8) -> bool {
        let turn = u64::from(self.priority_turns.fetch_add(1, Ordering::Relaxed) % 100);
        let factor = u64::from(factor.min(100));
        (turn + 1) * factor / 100 > turn * factor / 100
    }

    pub(super) fn lane(&self, group: ConsumerGroupId, topic: TopicId) -> Arc<Mutex<Lane>> {
        Arc::clone(self.lanes.lock().entry((group, topic)).or_default())
    }

    pub(super) fn release(&self, group: ConsumerGroupId, topic: TopicId, reserved: &Reserved) {
        let lane = self.lane(group, topic);
        lane.lock().release(reserved);
        let mut lanes = self.lanes.lock();
        // Two references are the map's and ours: nobody else is about to plan in this lane.
        if Arc::strong_count(&lane) == 2 && lane.lock().is_empty() {
            lanes.remove(&(group, topic));
        }
    }
}

impl Lane {
    pub(super) fn has_ended(&self, queue: u32, offset: u64) -> bool {
        self.ended.contains(&(queue, offset))
    }

    /// The parts of `from..to` that no plan holds.
    pub(super) fn free(&self, queue: u32, from: u64, to: u64, part: impl FnMut(u64, u64)) {
        free_parts(&self.unseen, queue, from, to, part);
    }

    /// The order keys of a queue that plans hold.
    pub(super) fn orders_of(&self, queue: u32) -> impl Iterator<Item = OrderKey> {
        let of_queue = self.orders.range((queue, OrderKey(0))..=(queue, OrderKey(u64::MAX)));
        of_queue.map(|(_, order)| *order)
    }

    pub(super) fn reserve(&mut self, reserved: &Reserved) {
        self.ended.extend(reserved.ended.iter().copied());
        self.orders.extend(reserved.orders.iter().copied());
        for &(queue, from, to) in &reserved.unseen {
            let before = self.unseen.insert((queue, from), to);
            assert_eq!(before, None, "two plans hold the same messages");
        }
    }

    fn release(&mut self, reserved: &Reserved) {
        for ended in &reserved.ended {
            self.ended.remove(ended);
        }
        for order in &reserved.orders {
            self.orders.remove(order);
        }
        for &(queue, from, _) in &reserved.unseen {
            self.unseen.remove(&(queue, from));
        }
    }

    /// Frees these redeliveries, and what of each range lies behind its new end.
    pub(super) fn cut(&mut self, ended: &[(u32, u64)], unseen: &[(u32, u64, u64)]) {
        for ended in ended {
            self.ended.remove(ended);
        }
        for &(queue, from, to) in unseen {
            if from < to {
                self.unseen.insert((queue, from), to);
            } else {
                self.unseen.remove(&(queue, from));
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.ended.is_empty() && self.unseen.is_empty() && self.orders.is_empty()
    }
}

/// The parts of `from..to` that none of the `held` ranges, (queue, from) → to, has.
pub(super) fn free_parts(
    held: &BTreeMap<(u32, u64), u64>,
    queue: u32,
    from: u64,
    to: u64,
    mut part: impl FnMut(u64, u64),
) {
    let mut at = from;
    let before = held.range(..(queue, from)).next_back();
    for (&(of_queue, start), &end) in
        before.into_iter().chain(held.range((queue, from)..(queue, to.max(from))))
    {
        if of_queue != queue || end <= at {
            continue;
        }
        if start > at {
            part(at, start.min(to));
        }
        at = at.max(end);
    }
    if at < to {
        part(at, to);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_priority_factor_is_a_percentage_of_the_receives() {
        for factor in [0, 1, 30, 50, 99, 100] {
            let reservations = Reservations::default();
            let honoured = (0..200).filter(|_| reservations.next_honours_priority(factor)).count();
            assert_eq!(honoured, 2 * usize::from(factor));
        }
    }

    #[test]
    fn free_parts_lie_between_the_held_ones() {
        let mut lane = Lane::default();
        lane.reserve(&Reserved { unseen: vec![(1, 5, 10), (1, 12, 20), (2, 0, 100)], ..Reserved::default() });
        let free = |from, to| {
            let mut parts = Vec::new();
            lane.free(1, from, to, |from, to| parts.push((from, to)));
            parts
        };
        assert_eq!(free(0, 30), [(0, 5), (10, 12), (20, 30)]);
        assert_eq!(free(6, 9), []);
        assert_eq!(free(7, 15), [(10, 12)]);
        assert_eq!(free(20, 21), [(20, 21)]);
    }
}
