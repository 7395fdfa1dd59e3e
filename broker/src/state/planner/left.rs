//! Messages that a receive does not want and other members of its consumer group do: they are left
//! where they are.
//!
//! Members of a group may subscribe to one topic by different filters. A message is passed over, for the
//! whole group, only once no live member wants it; until then it stays unseen, as a hole in the
//! group's progress, or keeps its ended lease.
//!
//! What was found not to be wanted is remembered per filter ([`LeftPlaces`]), so that each is judged
//! once per filter and not at every look. Memory of the leader only: forgetting costs another look.
//! A record never changes, so what is remembered stays true; it is dropped when a filter goes, since
//! what was left for it is then to be judged anew.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::TagFilter;
use super::reservations::free_parts;

/// Ranges remembered for one filter; beyond that all are forgotten, and found again.
pub const LEFT_RANGES_MAX: usize = 65_536;
/// Holes that messages left for others may make in one queue of a consumer group. Behind them the group
/// goes on once their members have consumed some.
pub const HOLES_OF_QUEUE_MAX: usize = 1_024;

/// What the other members of a consumer group want, for one who receives.
#[derive(Debug, Clone, Default)]
pub struct OthersWant {
    /// By what the index knows; an expression may want anything. Empty: all want the same.
    pub tags: Vec<TagFilter>,
    /// What was found not to be for this filter.
    pub left: Arc<LeftPlaces>,
}

impl OthersWant {
    /// Whether a message with this tag code may be for somebody else.
    pub fn may_match(&self, tag_code: u32) -> bool {
        self.tags.iter().any(|tags| tags.may_match(tag_code))
    }

    pub(super) fn is_nothing(&self) -> bool {
        self.tags.is_empty()
    }
}

/// Places of one topic that one filter does not want.
#[derive(Debug, Default)]
pub struct LeftPlaces {
    /// (queue, from) → to; disjoint.
    ranges: Mutex<BTreeMap<(u32, u64), u64>>,
}

impl LeftPlaces {
    /// False: it was known.
    pub fn add(&self, queue: u32, offset: u64) -> bool {
        let mut ranges = self.ranges.lock();
        let before = ranges.range(..=(queue, offset)).next_back().map(|(&key, &to)| (key, to));
        let before = before.filter(|((of_queue, _), _)| *of_queue == queue);
        if before.is_some_and(|(_, to)| offset < to) {
            return false;
        }
        if ranges.len() >= LEFT_RANGES_MAX {
            ranges.clear();
        }
        let from = match before.filter(|(_, to)| *to == offset) {
            Some(((_, from), _)) if ranges.remove(&(queue, from)).is_some() => from,
            _ => offset,
        };
        let to = ranges.remove(&(queue, offset + 1)).unwrap_or(offset + 1);
        ranges.insert((queue, from), to);
        true
    }

    pub fn contains(&self, queue: u32, offset: u64) -> bool {
        let ranges = self.ranges.lock();
        let before = ranges.range(..=(queue, offset)).next_back();
        before.is_some_and(|(&(of_queue, _), &to)| of_queue == queue && offset < to)
    }

    /// The parts of `from..to` that are not known.
    pub(super) fn unknown(&self, queue: u32, from: u64, to: u64, part: impl FnMut(u64, u64)) {
        free_parts(&self.ranges.lock(), queue, from, to, part);
    }

    pub fn forget(&self) {
        self.ranges.lock().clear();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn places_agree_with_a_set(places in proptest::collection::vec((0u32..3, 0u64..40), 0..80)) {
            let left = LeftPlaces::default();
            let mut set = BTreeSet::new();
            for (queue, offset) in places {
                prop_assert_eq!(left.add(queue, offset), set.insert((queue, offset)));
            }
            for queue in 0..3 {
                let mut unknown = Vec::new();
                left.unknown(queue, 3, 41, |from, to| unknown.extend(from..to));
                let expected: Vec<u64> = (3..41).filter(|offset| !set.contains(&(queue, *offset))).collect();
                prop_assert_eq!(unknown, expected);
                for offset in 0..41 {
                    prop_assert_eq!(left.contains(queue, offset), set.contains(&(queue, offset)));
                }
            }
            let ranges = left.ranges.lock().clone();
            for (&(queue, _), &to) in &ranges {
                prop_assert!(!ranges.contains_key(&(queue, to)), "neighbours are one range");
            }
        }
    }
}
