//! The newest part of the index, in memory: per queue the entries since the last checkpoint.
//!
//! Invariant: the entries of a queue are contiguous; `push` asserts it.

use hashbrown::HashMap;

use super::{IndexEntry, QueueKey};

#[derive(Debug)]
struct Extent {
    first: u64,
    entries: Vec<IndexEntry>,
}

#[derive(Debug, Default)]
pub(crate) struct Tail {
    queues: HashMap<QueueKey, Extent>,
    len: usize,
}

impl Tail {
    pub(crate) fn push(&mut self, key: QueueKey, offset: u64, entry: IndexEntry) {
        let extent = self.queues.entry(key).or_insert_with(|| Extent { first: offset, entries: Vec::new() });
        assert_eq!(extent.first + extent.entries.len() as u64, offset, "queue offsets have no gaps");
        extent.entries.push(entry);
        self.len += 1;
    }

    /// Entries of all queues together.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn extent(&self, key: QueueKey) -> Option<(u64, &[IndexEntry])> {
        self.queues.get(&key).map(|extent| (extent.first, extent.entries.as_slice()))
    }

    /// The queues in this tail in order, so that what is written from it does not depend on hashing.
    pub(crate) fn sorted_keys(&self) -> Vec<QueueKey> {
        let mut keys: Vec<QueueKey> = self.queues.keys().copied().collect();
        keys.sort_unstable();
        keys
    }

    /// The part of `from..to` that is here, and its first offset.
    pub(crate) fn copy(&self, key: QueueKey, from: u64, to: u64) -> (u64, Vec<IndexEntry>) {
        let Some((first, entries)) = self.extent(key) else { return (from, Vec::new()) };
        let end = first + entries.len() as u64;
        let start = from.clamp(first, end);
        let stop = to.clamp(start, end);
        let range = (start - first) as usize..(stop - first) as usize;
        (start, entries.get(range).map(<[IndexEntry]>::to_vec).unwrap_or_default())
    }
}
