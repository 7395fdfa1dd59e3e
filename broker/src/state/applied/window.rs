//! The message-id window: a repeated send is stored once and gets the first answer.
//!
//! Which ids are in the window depends on the log alone: an id leaves when the log time is
//! `MESSAGE_ID_WINDOW_MS` past its store time, or when `MESSAGE_ID_WINDOW_IDS_MAX` newer ones came.
//! The topic number is part of the key, so a topic deleted and made again starts afresh, and texts
//! that are ids in two topics do not meet.
//!
//! Ids are kept as 128-bit hashes: at four million ids the chance that two collide is below 2⁻⁸³.

use std::collections::VecDeque;
use std::sync::Arc;

use hashbrown::HashTable;
use ledgermq_common::clock::UnixMillis;
use ledgermq_common::limits::{MESSAGE_ID_WINDOW_IDS_MAX, MESSAGE_ID_WINDOW_MS};
use xxhash_rust::xxh3::xxh3_128_with_seed;

use crate::state::names::TopicId;

/// Ids per sealed chunk; a snapshot shares the sealed ones and copies the newest.
const CHUNK_IDS: usize = 4096;
/// Part of what is persisted, like the hash function itself.
const KEY_SEED: u64 = 0x4c65_6467_6572_4d51;

/// One stored message, as its id finds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WindowEntry {
    pub(crate) key: u128,
    pub(crate) queue: u32,
    pub(crate) offset: u64,
    pub(crate) stored_at: UnixMillis,
}

/// The key of a message id within its topic.
pub(crate) fn window_key(topic: TopicId, id: &[u8]) -> u128 {
    xxh3_128_with_seed(id, KEY_SEED ^ u64::from(topic.get()))
}

#[derive(Debug, Default)]
pub(crate) struct MessageIdWindow {
    /// Oldest first; all but the last hold `CHUNK_IDS` entries.
    chunks: VecDeque<Arc<Vec<WindowEntry>>>,
    /// Sequence number of the first entry of the first chunk; a multiple of `CHUNK_IDS`.
    first_chunk_at: u64,
    /// Sequence number of the oldest id that is still in the window.
    oldest: u64,
    next: u64,
    /// Sequence numbers of the ids in the window, by key.
    by_key: HashTable<u64>,
}

impl MessageIdWindow {
    pub(crate) fn len(&self) -> usize {
        (self.next - self.oldest) as usize
    }

    pub(crate) fn find(&self, key: u128) -> Option<WindowEntry> {
        let sequence = self.by_key.find(key as u64, |&sequence| self.at(sequence).key == key)?;
        Some(*self.at(*sequence))
    }

    /// Adds an id that [`Self::find`] does not know.
    pub(crate) fn insert(&mut self, entry: WindowEntry) {
        if self.len() == MESSAGE_ID_WINDOW_IDS_MAX {
            self.drop_oldest();
        }
        if self.chunks.back().is_none_or(|chunk| chunk.len() == CHUNK_IDS) {
            self.chunks.push_back(Arc::new(Vec::with_capacity(CHUNK_IDS)));
        }
        let newest = self.chunks.back_mut().expect("a chunk was pushed");
        Arc::make_mut(newest).push(entry);
        let sequence = self.next;
        self.next += 1;
        let (chunks, first_chunk_at) = (&self.chunks, self.first_chunk_at);
        self.by_key.insert_unique(entry.key as u64, sequence, |&sequence| {
            entry_at(chunks, first_chunk_at, sequence).key as u64
        });
    }

    /// Lets go of the ids that are too old at log time `now`.
    pub(crate) fn expire(&mut self, now: UnixMillis) {
        while self.oldest < self.next
            && now.saturating_ms_since(self.at(self.oldest).stored_at) > MESSAGE_ID_WINDOW_MS
        {
            self.drop_oldest();
        }
    }

    /// The sequence number the next id gets; ids keep theirs as long as the process lives.
    pub(crate) fn next_sequence(&self) -> u64 {
        self.next
    }

    /// The ids in the window, oldest first, to be read without the state lock.
    pub(crate) fn view(&self) -> WindowView {
        self.view_from(self.oldest)
    }

    /// The ids in the window from a sequence number on.
    pub(crate) fn view_from(&self, sequence: u64) -> WindowView {
        WindowView {
            chunks: self.chunks.iter().cloned().collect(),
            skip: (sequence.max(self.oldest) - self.first_chunk_at) as usize,
        }
    }

    fn drop_oldest(&mut self) {
        let sequence = self.oldest;
        let key = self.at(sequence).key;
        match self.by_key.find_entry(key as u64, |&found| found == sequence) {
            Ok(found) => {
                found.remove();
            }
            Err(_) => panic!("every id in the window is in its table"),
        }
        self.oldest += 1;
        if self.oldest - self.first_chunk_at == CHUNK_IDS as u64 {
            self.chunks.pop_front();
            self.first_chunk_at = self.oldest;
        }
    }

    fn at(&self, sequence: u64) -> &WindowEntry {
        entry_at(&self.chunks, self.first_chunk_at, sequence)
    }
}

fn entry_at(chunks: &VecDeque<Arc<Vec<WindowEntry>>>, first_chunk_at: u64, sequence: u64) -> &WindowEntry {
    let position = (sequence - first_chunk_at) as usize;
    &chunks[position / CHUNK_IDS][position % CHUNK_IDS]
}

/// The window at one moment.
#[derive(Debug, Clone)]
pub(crate) struct WindowView {
    chunks: Vec<Arc<Vec<WindowEntry>>>,
    skip: usize,
}

impl WindowView {
    pub(crate) fn iter(&self) -> impl Iterator<Item = &WindowEntry> {
        self.chunks.iter().flat_map(|chunk| chunk.iter()).skip(self.skip)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(number: u64, stored_at: u64) -> WindowEntry {
        WindowEntry {
            key: window_key(TopicId(1), &number.to_le_bytes()),
            queue: 0,
            offset: number,
            stored_at: UnixMillis(stored_at),
        }
    }

    #[test]
    fn ids_leave_in_order_when_they_are_too_old() {
        let mut window = MessageIdWindow::default();
        for number in 0..10_000 {
            window.insert(entry(number, number));
        }
        window.expire(UnixMillis(MESSAGE_ID_WINDOW_MS + 5_000));
        assert_eq!(window.len(), 5_000);
        assert_eq!(window.find(entry(4_999, 0).key), None);
        assert_eq!(window.find(entry(5_000, 0).key), Some(entry(5_000, 5_000)));
        let offsets: Vec<u64> = window.view().iter().map(|entry| entry.offset).collect();
        assert_eq!(offsets, (5_000..10_000).collect::<Vec<u64>>());
    }

    #[test]
    fn the_oldest_id_makes_room_when_the_window_is_full() {
        let mut window = MessageIdWindow::default();
        for number in 0..MESSAGE_ID_WINDOW_IDS_MAX as u64 + 3 {
            window.insert(entry(number, 1));
        }
        assert_eq!(window.len(), MESSAGE_ID_WINDOW_IDS_MAX);
        assert_eq!(window.find(entry(2, 1).key), None);
        assert_eq!(window.find(entry(3, 1).key), Some(entry(3, 1)));
    }

    #[test]
    fn the_same_text_in_two_topics_is_two_ids() {
        assert_ne!(window_key(TopicId(1), b"order-1"), window_key(TopicId(2), b"order-1"));
    }
}
