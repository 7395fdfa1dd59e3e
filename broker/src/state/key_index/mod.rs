//! The key index: message ids and message keys → where the record lies in the CommitLog.
//!
//! For administrators who look for a message. An entry is a hash of the topic and the text, and the
//! place of the record, 24 bytes; the record itself says whether the text is really its own. It is
//! written when the record is appended, so it finds delayed messages before they are visible.
//!
//! | Part | Where | Order |
//! |---|---|---|
//! | active tail | memory, under the state lock | as appended |
//! | frozen tails | memory, shared | as appended; searched from end to end |
//! | runs ([`run`]) | immutable mapped files | sorted by hash and place |
//!
//! Nothing that apply decides depends on it.

pub(crate) mod run;

use std::sync::Arc;

use ledgermq_common::PhysicalOffset;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::names::TopicId;
use run::KeyRun;

/// Part of what is persisted, like the hash function itself. Ids and keys do not meet.
const ID_SEED: u64 = 0x6d65_7373_6167_6569;
const KEY_SEED: u64 = 0x6d65_7373_6167_6b65;
/// Keys of one message that are indexed; what lies beyond is found by the others.
const KEYS_PER_MESSAGE_MAX: usize = 32;

/// Ordered as in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct KeyEntry {
    pub(crate) hash: u64,
    pub(crate) physical: PhysicalOffset,
    pub(crate) topic: TopicId,
    pub(crate) record_bytes: u32,
}

/// What a message is looked for by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SearchKey<'a> {
    MessageId(&'a str),
    Key(&'a str),
}

#[derive(Debug, Default)]
pub(crate) struct SealedKeys {
    pub(crate) runs: Vec<Arc<KeyRun>>,
    pub(crate) tails: Vec<Arc<Vec<KeyEntry>>>,
}

#[derive(Debug, Default)]
pub(crate) struct KeyIndex {
    sealed: Arc<SealedKeys>,
    active: Vec<KeyEntry>,
}

impl SearchKey<'_> {
    pub(crate) fn hash(self, topic: TopicId) -> u64 {
        match self {
            Self::MessageId(id) => hash_of(ID_SEED, topic, id.as_bytes()),
            Self::Key(key) => hash_of(KEY_SEED, topic, key.as_bytes()),
        }
    }
}

fn hash_of(seed: u64, topic: TopicId, text: &[u8]) -> u64 {
    xxh3_64_with_seed(text, seed ^ u64::from(topic.get()))
}

impl KeyIndex {
    /// A record was appended; `properties` are its encoded properties.
    pub(crate) fn add(
        &mut self,
        topic: TopicId,
        id: &[u8],
        properties: &[u8],
        physical: PhysicalOffset,
        record_bytes: u32,
    ) {
        let entry = |hash| KeyEntry { hash, physical, topic, record_bytes };
        self.active.push(entry(hash_of(ID_SEED, topic, id)));
        let keys = keys_in(properties).filter(|key| !key.is_empty()).take(KEYS_PER_MESSAGE_MAX);
        self.active.extend(keys.map(|key| entry(hash_of(KEY_SEED, topic, key))));
    }

    pub(crate) fn active_len(&self) -> usize {
        self.active.len()
    }

    pub(crate) fn freeze(&mut self) -> Arc<SealedKeys> {
        if !self.active.is_empty() {
            let mut tails = self.sealed.tails.clone();
            tails.push(Arc::new(std::mem::take(&mut self.active)));
            self.sealed = Arc::new(SealedKeys { runs: self.sealed.runs.clone(), tails });
        }
        Arc::clone(&self.sealed)
    }

    /// The oldest `tails` frozen tails are in `runs` now, together with what runs held before.
    pub(crate) fn replace_sealed(&mut self, runs: Vec<Arc<KeyRun>>, tails: usize) {
        let rest = self.sealed.tails.get(tails..).expect("tails are frozen before they are written");
        self.sealed = Arc::new(SealedKeys { runs, tails: rest.to_vec() });
    }

    /// What lies in the active tail with this hash, and the parts to be searched without the lock.
    pub(crate) fn search(&self, hash: u64) -> (Vec<KeyEntry>, Arc<SealedKeys>) {
        let found = self.active.iter().filter(|entry| entry.hash == hash).copied().collect();
        (found, Arc::clone(&self.sealed))
    }
}

impl SealedKeys {
    /// Entries with this hash at or above `from`, in order, at most `max`.
    pub(crate) fn find(&self, hash: u64, from: PhysicalOffset, max: usize) -> Vec<KeyEntry> {
        let in_runs = self.runs.iter().flat_map(|run| run.find(hash, from).take(max));
        let in_tails = self.tails.iter().flat_map(|tail| tail.iter().copied());
        let in_tails = in_tails.filter(|entry| entry.hash == hash && entry.physical >= from);
        let mut found: Vec<KeyEntry> = in_runs.chain(in_tails).collect();
        found.sort_unstable();
        found.truncate(max);
        found
    }

    /// All entries of the topics that `keep` names and of records at or above `from`, sorted.
    pub(crate) fn sorted(&self, keep: impl Fn(TopicId) -> bool, from: PhysicalOffset) -> Vec<KeyEntry> {
        let in_runs = self.runs.iter().flat_map(|run| run.all());
        let in_tails = self.tails.iter().flat_map(|tail| tail.iter().copied());
        let is_kept = |entry: &KeyEntry| entry.physical >= from && keep(entry.topic);
        let mut all: Vec<KeyEntry> = in_runs.chain(in_tails).filter(is_kept).collect();
        all.sort_unstable();
        all
    }
}

/// The keys of encoded properties (field 3 of [`MessageProperties`](super::MessageProperties)), without
/// decoding the rest. Ends early where the bytes are no properties.
fn keys_in(properties: &[u8]) -> impl Iterator<Item = &[u8]> {
    const KEYS_TAG: u64 = (3 << 3) | 2;
    let mut rest = properties;
    std::iter::from_fn(move || {
        while !rest.is_empty() {
            let tag = take_varint(&mut rest)?;
            match tag & 7 {
                0 => {
                    take_varint(&mut rest)?;
                }
                2 => {
                    let len = usize::try_from(take_varint(&mut rest)?).ok()?;
                    let (field, after) = rest.split_at_checked(len)?;
                    rest = after;
                    if tag == KEYS_TAG {
                        return Some(field);
                    }
                }
                _ => return None,
            }
        }
        None
    })
}

fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;
    use crate::state::MessageProperties;

    proptest! {
        #[test]
        fn the_keys_of_properties_are_found_without_decoding_them(
            keys in proptest::collection::vec("[a-zé ]{0,200}", 0..6),
            user in proptest::collection::btree_map("[a-z]{1,9}", "[a-z]{0,300}", 0..5),
            deliver_at_ms in proptest::option::of(any::<u64>()),
            tag in proptest::option::of("[a-z]{0,5}"),
        ) {
            let properties = MessageProperties { user, keys, deliver_at_ms, tag, ..Default::default() };
            let encoded = properties.encode_to_vec();
            let found: Vec<&[u8]> = keys_in(&encoded).collect();
            let expected: Vec<&[u8]> = properties.keys.iter().map(|key| key.as_bytes()).collect();
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn bytes_that_are_no_properties_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = keys_in(&bytes).count();
        }
    }
}
