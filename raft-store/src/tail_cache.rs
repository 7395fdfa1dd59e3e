//! The newest entries, in memory, as the same bytes that arrived.
//!
//! Consensus reads every entry back, once per follower and once to apply it; that is served from
//! here. An entry leaves when it is flushed, applied *and* beyond the budget; when applying falls
//! far behind (twice the budget), flushed entries leave too and are read from the disk again. What
//! is not flushed never leaves: the write queue bounds it.

use std::collections::VecDeque;

use ledgermq_common::{LogIndex, PhysicalOffset};

use crate::position::LogPosition;
use crate::store::StoredEntry;

/// What an entry costs besides its payload.
const ENTRY_OVERHEAD_BYTES: usize = 128;

#[derive(Debug, Clone)]
pub struct CachedEntry {
    pub entry: StoredEntry,
    /// The log behind this entry.
    pub behind: LogPosition,
}

/// Entries without a gap, ending with the last of the log (or empty).
#[derive(Debug)]
pub struct TailCache {
    entries: VecDeque<CachedEntry>,
    bytes: usize,
    bytes_max: usize,
}

impl TailCache {
    pub fn new(bytes_max: usize) -> Self {
        Self { entries: VecDeque::new(), bytes: 0, bytes_max }
    }

    pub fn push(&mut self, entry: CachedEntry) {
        if let Some(last) = self.entries.back() {
            assert_eq!(last.entry.id.index.next(), entry.entry.id.index, "the tail has no gap");
        }
        self.bytes += cost(&entry);
        self.entries.push_back(entry);
    }

    pub fn first_index(&self) -> Option<LogIndex> {
        self.entries.front().map(|entry| entry.entry.id.index)
    }

    pub fn get(&self, index: LogIndex) -> Option<&CachedEntry> {
        let back = index.get().checked_sub(self.first_index()?.get())?;
        self.entries.get(usize::try_from(back).ok()?)
    }

    /// From `index` on; empty if that entry is not here.
    pub fn from(&self, index: LogIndex) -> impl Iterator<Item = &CachedEntry> {
        let skip = self
            .first_index()
            .and_then(|first| index.get().checked_sub(first.get()))
            .and_then(|skip| usize::try_from(skip).ok())
            .map_or(self.entries.len(), |skip| skip.min(self.entries.len()));
        self.entries.range(skip..)
    }

    /// The entry whose payload contains the offset.
    pub fn at_offset(&self, at: PhysicalOffset) -> Option<&CachedEntry> {
        let after = self.entries.partition_point(|entry| entry.entry.payload_at <= at);
        let entry = self.entries.get(after.checked_sub(1)?)?;
        let end = entry.entry.payload_at.get() + entry.entry.payload.len() as u64;
        (at.get() < end).then_some(entry)
    }

    pub fn cut(&mut self, first_cut: LogIndex) {
        while self.entries.back().is_some_and(|last| last.entry.id.index >= first_cut) {
            self.bytes -= self.entries.pop_back().as_ref().map_or(0, cost);
        }
    }

    pub fn evict(&mut self, flushed: Option<LogIndex>, applied: Option<LogIndex>) {
        while self.bytes > self.bytes_max {
            let far_behind = self.bytes > self.bytes_max.saturating_mul(2);
            let Some(first) = self.first_index() else { return };
            let is_flushed = flushed.is_some_and(|flushed| first <= flushed);
            let is_applied = applied.is_some_and(|applied| first <= applied);
            if !is_flushed || !(is_applied || far_behind) {
                return;
            }
            self.bytes -= self.entries.pop_front().as_ref().map_or(0, cost);
        }
    }

    pub fn clear(&mut self) {
        self.entries.clear();
        self.bytes = 0;
    }
}

fn cost(entry: &CachedEntry) -> usize {
    entry.entry.payload.len() + ENTRY_OVERHEAD_BYTES
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use ledgermq_common::Term;

    use super::*;
    use crate::machine::EntryId;
    use crate::store::EntryKind;

    fn entry(index: u64) -> CachedEntry {
        let id = EntryId { term: Term(1), index: LogIndex(index) };
        let payload_at = PhysicalOffset(index * 2000);
        let payload = Bytes::from(vec![0; 1000]);
        let entry = StoredEntry { id, leader_node: 0, kind: EntryKind::Normal, payload, payload_at };
        CachedEntry { entry, behind: LogPosition { at: payload_at, last: Some(id), chain: 0 } }
    }

    #[test]
    fn an_entry_stays_until_it_is_flushed_and_applied() {
        let mut cache = TailCache::new(4 * 1128);
        (10..17).for_each(|index| cache.push(entry(index)));
        cache.evict(Some(LogIndex(11)), None);
        assert_eq!(cache.first_index(), Some(LogIndex(10)), "nothing is applied");
        cache.evict(None, Some(LogIndex(16)));
        assert_eq!(cache.first_index(), Some(LogIndex(10)), "nothing is flushed");
        cache.evict(Some(LogIndex(11)), Some(LogIndex(16)));
        assert_eq!(cache.first_index(), Some(LogIndex(12)));
        cache.evict(Some(LogIndex(16)), Some(LogIndex(16)));
        assert_eq!(cache.first_index(), Some(LogIndex(13)), "down to the budget, not further");
    }

    #[test]
    fn far_behind_flushed_entries_leave_without_being_applied() {
        let mut cache = TailCache::new(2 * 1128);
        (0..10).for_each(|index| cache.push(entry(index)));
        cache.evict(Some(LogIndex(9)), None);
        assert_eq!(cache.first_index(), Some(LogIndex(6)));
    }

    #[test]
    fn entries_are_found_by_index_and_offset_until_cut() {
        let mut cache = TailCache::new(1 << 20);
        (5..9).for_each(|index| cache.push(entry(index)));
        assert!(cache.get(LogIndex(4)).is_none());
        assert_eq!(cache.at_offset(PhysicalOffset(12_999)).unwrap().entry.id.index, LogIndex(6));
        assert!(cache.at_offset(PhysicalOffset(13_000)).is_none());
        cache.cut(LogIndex(7));
        assert_eq!(cache.from(LogIndex(5)).count(), 2);
        assert_eq!(cache.from(LogIndex(7)).count(), 0);
        assert_eq!(cache.from(LogIndex(4)).count(), 0);
    }
}
