//! Finding records for administrators: by id or key, and where a record is in its queue.

use ledgermq_common::clock::UnixMillis;
use ledgermq_common::{PhysicalOffset, QueueId, QueueOffset};

use super::consume_queue::{IndexEntry, QueueKey};
use super::key_index::{KeyEntry, SearchKey};
use super::machine::BrokerState;
use super::names::TopicId;

/// Queue entries looked at for a message that became visible late, from that time on.
const SCAN_ENTRIES_MAX: u32 = 100_000;
const SCAN_STEP: u32 = 4_096;

/// A record that may be the one: its text must be compared, because the index knows hashes only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FoundRecord {
    pub physical: PhysicalOffset,
    pub record_bytes: u32,
}

impl BrokerState {
    /// Records by id or key, in the order of the log from `from` on, at most `max`.
    pub fn search(
        &self,
        topic: TopicId,
        key: SearchKey<'_>,
        from: PhysicalOffset,
        max: usize,
    ) -> Vec<FoundRecord> {
        let hash = key.hash(topic);
        let ((active, sealed), released_below) = {
            let applied = self.applied_state();
            (applied.keys.search(hash), applied.keeping.progress.released_below)
        };
        let from = from.max(released_below);
        let mut found: Vec<KeyEntry> = sealed.find(hash, from, max);
        found.extend(active.into_iter().filter(|entry| entry.physical >= from));
        found.sort_unstable();
        found
            .into_iter()
            .filter(|entry| entry.topic == topic)
            .take(max)
            .map(|entry| FoundRecord { physical: entry.physical, record_bytes: entry.record_bytes })
            .collect()
    }

    /// Where a record is in its queue; `None` when it is not visible. A delayed or transactional message
    /// names a time it became visible after: its place in the queue comes with its firing or commit, not
    /// with its place in the log.
    pub fn place_of_record(
        &self,
        topic: TopicId,
        queue: QueueId,
        physical: PhysicalOffset,
        visible_after: Option<UnixMillis>,
    ) -> Option<(QueueOffset, IndexEntry)> {
        let here = self.place_by_position(topic, queue, physical);
        match (here, visible_after) {
            (Some(found), _) => Some(found),
            (None, Some(after)) => self.place_since(topic, queue, physical, after),
            (None, None) => None,
        }
    }

    /// In a queue whose messages came in the order of the log.
    fn place_by_position(
        &self,
        topic: TopicId,
        queue: QueueId,
        physical: PhysicalOffset,
    ) -> Option<(QueueOffset, IndexEntry)> {
        let ranges = self.queue_ranges(topic)?;
        let range = ranges.get(queue.get() as usize)?;
        let (mut low, mut high) = (range.start, range.end);
        while low < high {
            let middle = low + (high - low) / 2;
            let entry = self.locate(topic, queue, QueueOffset(middle))?;
            match entry.physical.cmp(&physical) {
                std::cmp::Ordering::Equal => return Some((QueueOffset(middle), entry)),
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        None
    }

    /// Where a record was in its queue before it expired, for as long as the index has it.
    pub fn place_of_expired(
        &self,
        topic: TopicId,
        queue: QueueId,
        physical: PhysicalOffset,
    ) -> Option<(QueueOffset, IndexEntry)> {
        let min = self.queue_ranges(topic)?.get(queue.get() as usize)?.start;
        let (mut low, mut high) = (0, min);
        while low < high {
            let middle = low + (high - low) / 2;
            let view = self.index_view(QueueKey::new(topic, queue), middle, middle + 1);
            let entry = view.read().first().filter(|(at, _)| *at == middle).map(|(_, entry)| *entry);
            match entry.map(|entry| (entry.physical.cmp(&physical), entry)) {
                Some((std::cmp::Ordering::Equal, entry)) => return Some((QueueOffset(middle), entry)),
                Some((std::cmp::Ordering::Greater, _)) => high = middle,
                // Forgotten with all that was before it.
                Some((std::cmp::Ordering::Less, _)) | None => low = middle + 1,
            }
        }
        None
    }

    fn place_since(
        &self,
        topic: TopicId,
        queue: QueueId,
        physical: PhysicalOffset,
        at: UnixMillis,
    ) -> Option<(QueueOffset, IndexEntry)> {
        let mut from = self.offset_at(topic, queue, at)?;
        for _ in 0..SCAN_ENTRIES_MAX / SCAN_STEP {
            let entries = self.range(topic, queue, from, SCAN_STEP);
            from = QueueOffset(entries.last()?.0.get() + 1);
            if let Some(found) = entries.into_iter().find(|(_, entry)| entry.physical == physical) {
                return Some(found);
            }
        }
        None
    }
}
