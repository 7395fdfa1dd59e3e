//! How far a consumer group is in one queue, and the leases it holds there.
//!
//! Every offset of the queue is in exactly one state:
//!
//! | State | Where |
//! |---|---|
//! | not seen | at or above `next`, or in a hole |
//! | leased, or its lease ended and it waits for redelivery | in `leases` |
//! | consumed (acknowledged, or it did not match the filter) | none of the above |
//!
//! A hole comes about when two receives are planned one after the other and their entries reach the
//! log the other way round, or the first one not at all: what lies between is not seen yet.

use std::collections::BTreeMap;

use ledgermq_common::clock::UnixMillis;

use crate::defects::{self, Defect};
use crate::state::answer::DeliveryOutcome;
use crate::state::names::{AttemptHash, ClientHash, DeliveryEpoch, OrderKey};

/// One delivery of one message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lease {
    /// The message is invisible to others before this log time.
    pub(crate) until: UnixMillis,
    pub(crate) popped_at: UnixMillis,
    pub(crate) epoch: DeliveryEpoch,
    pub(crate) client: ClientHash,
    /// The receive that made this delivery, so that its repetition gets it again.
    pub(crate) received_by: AttemptHash,
    /// From 1; never goes back.
    pub(crate) attempt: u32,
    /// How often the end of this lease was moved.
    pub(crate) renewal: u32,
    pub(crate) auto_renew: bool,
    /// Its end is no failed attempt: the next delivery has the same number.
    pub(crate) suspended: bool,
    /// Of a consumer group that consumes in order; 0 otherwise.
    pub(crate) order: OrderKey,
}

impl Lease {
    /// The number of the delivery after this one.
    pub(crate) fn next_attempt(&self) -> u32 {
        if self.suspended { self.attempt.max(1) } else { self.attempt.saturating_add(1) }
    }

    /// Its group's retry policy allows no delivery after this one.
    pub(crate) fn is_last(&self, attempts_max: u32) -> bool {
        let more = u32::from(defects::is_active(Defect::AttemptAboveMax));
        self.next_attempt() > attempts_max.saturating_add(more)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Progress {
    pub(crate) next: u64,
    /// Unseen ranges below `next`: start → end. Disjoint and not empty.
    pub(crate) holes: BTreeMap<u64, u64>,
    pub(crate) leases: BTreeMap<u64, Lease>,
}

impl Progress {
    /// A group new to the queue begins at its oldest message. RocketMQ begins at the newest unless the
    /// queue is young; then what was sent before the first receive is silently never delivered,
    /// which surprises everyone who starts the producer first.
    pub(crate) fn starting_at(min: u64) -> Self {
        Self { next: min, ..Self::default() }
    }

    pub(crate) fn is_unseen(&self, offset: u64) -> bool {
        offset >= self.next || self.holes.range(..=offset).next_back().is_some_and(|(_, &end)| offset < end)
    }

    /// Marks `from..to` as seen.
    pub(crate) fn see(&mut self, from: u64, to: u64) {
        if from >= to {
            return;
        }
        let touched: Vec<(u64, u64)> = self
            .holes
            .range(..to)
            .rev()
            .take_while(|&(_, &end)| end > from)
            .map(|(&start, &end)| (start, end))
            .collect();
        for (start, end) in touched {
            self.holes.remove(&start);
            if start < from {
                self.holes.insert(start, from);
            }
            if end > to {
                self.holes.insert(to, end);
            }
        }
        if to > self.next {
            if from > self.next {
                self.holes.insert(self.next, from);
            }
            self.next = to;
        }
    }

    /// Unseen ranges in order, up to the queue's end `max`.
    pub(crate) fn unseen(&self, max: u64) -> impl Iterator<Item = (u64, u64)> {
        let rest = (self.next < max).then_some((self.next, max));
        self.holes.iter().map(|(&start, &end)| (start, end)).chain(rest)
    }

    /// The lease that delivery `epoch` of `offset` holds, or what became of it.
    pub(crate) fn delivery(&self, offset: u64, epoch: DeliveryEpoch) -> Result<Lease, DeliveryOutcome> {
        if self.is_unseen(offset) {
            return Err(DeliveryOutcome::NeverDelivered);
        }
        match self.leases.get(&offset) {
            None => Err(DeliveryOutcome::AlreadyConsumed),
            Some(lease) if lease.epoch == epoch => Ok(*lease),
            Some(lease) if defects::is_active(Defect::StaleAckTaken) => Ok(*lease),
            Some(lease) if lease.epoch > epoch => Err(DeliveryOutcome::Stale),
            Some(_) => Err(DeliveryOutcome::NeverDelivered),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn seen_ranges_agree_with_a_set_of_offsets(
            ranges in proptest::collection::vec((0u64..60, 0u64..20), 0..20),
        ) {
            let mut progress = Progress::starting_at(3);
            let mut seen: BTreeSet<u64> = (0..3).collect();
            for (from, len) in ranges {
                let from = from.max(3);
                progress.see(from, from + len);
                seen.extend(from..from + len);
            }
            for offset in 0..100 {
                prop_assert_eq!(!progress.is_unseen(offset), seen.contains(&offset), "offset {}", offset);
            }
            let unseen: Vec<u64> = progress.unseen(100).flat_map(|(from, to)| from..to).collect();
            let expected: Vec<u64> = (0..100).filter(|offset| !seen.contains(offset)).collect();
            prop_assert_eq!(unseen, expected);
        }
    }
}
