//! A key run: entries of the key index, sorted, in one immutable file.
//!
//! | Offset | Bytes | Field |
//! |---|---|---|
//! | 0 | 8 | `LMQKEY01` |
//! | 8 | 8 | number of entries |
//! | 16 | 4 | CRC32C of the entries |
//! | 20 | 4 | CRC32C of bytes 0..20 |
//! | 24 | 24 × entries | hash u64, physical offset u64, topic u32, record bytes u32 |
//!
//! All little endian, sorted by hash and physical offset. Runs are derived: written whole and synced
//! before the checkpoint that names them commits, checked in full when they are opened.

use std::fs::File;
use std::io;
use std::path::Path;

use bytes::{BufMut, Bytes, BytesMut};
use ledgermq_common::PhysicalOffset;

use super::KeyEntry;
use crate::state::names::TopicId;

const MAGIC: [u8; 8] = *b"LMQKEY01";
const HEADER_BYTES: usize = 24;
const ENTRY_BYTES: usize = 24;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("key run is damaged: {part}")]
pub(crate) struct DamagedKeyRun {
    part: &'static str,
}

/// Shared bytes of a checked run: a mapped file, or memory.
#[derive(Debug, Clone)]
pub(crate) struct KeyRun {
    image: Bytes,
    newest: Option<PhysicalOffset>,
}

pub(crate) fn put_entry(out: &mut BytesMut, entry: &KeyEntry) {
    out.put_u64_le(entry.hash);
    out.put_u64_le(entry.physical.get());
    out.put_u32_le(entry.topic.get());
    out.put_u32_le(entry.record_bytes);
}

/// The bytes of a run of sorted entries.
pub(crate) fn write_image(entries: &[KeyEntry]) -> Bytes {
    let mut out = BytesMut::zeroed(HEADER_BYTES);
    out.reserve(entries.len() * ENTRY_BYTES);
    entries.iter().for_each(|entry| put_entry(&mut out, entry));
    let crc = crc32c::crc32c(out.get(HEADER_BYTES..).unwrap_or_default());
    let mut header = BytesMut::with_capacity(HEADER_BYTES);
    header.put_slice(&MAGIC);
    header.put_u64_le(entries.len() as u64);
    header.put_u32_le(crc);
    let header_crc = crc32c::crc32c(&header);
    header.put_u32_le(header_crc);
    out[..HEADER_BYTES].copy_from_slice(&header);
    out.freeze()
}

impl KeyRun {
    /// Maps a run and checks all of it.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let damaged = |damaged: DamagedKeyRun| io::Error::new(io::ErrorKind::InvalidData, damaged);
        if file.metadata()?.len() < HEADER_BYTES as u64 {
            return Err(damaged(DamagedKeyRun { part: "length" }));
        }
        // SAFETY: the directory is locked by this process, and a run is never written again under
        // the name it is opened by, so the mapped bytes do not change.
        let map = unsafe { memmap2::Mmap::map(&file)? };
        Self::check(Bytes::from_owner(map)).map_err(damaged)
    }

    pub(crate) fn check(image: Bytes) -> Result<Self, DamagedKeyRun> {
        let damaged = |part| DamagedKeyRun { part };
        let header = image.get(..HEADER_BYTES).ok_or(damaged("length"))?;
        let entries = image.get(HEADER_BYTES..).ok_or(damaged("length"))?;
        let (fields, crc) = header.split_at(HEADER_BYTES - 4);
        if !header.starts_with(&MAGIC) || crc32c::crc32c(fields).to_le_bytes() != crc {
            return Err(damaged("header"));
        }
        if u64_at(header, 8).checked_mul(ENTRY_BYTES as u64) != Some(entries.len() as u64) {
            return Err(damaged("length"));
        }
        if crc32c::crc32c(entries) != u32_at(header, 16) {
            return Err(damaged("entries"));
        }
        let mut run = Self { image, newest: None };
        run.newest = run.all().map(|entry| entry.physical).max();
        Ok(run)
    }

    pub(crate) fn len(&self) -> usize {
        (self.image.len() - HEADER_BYTES) / ENTRY_BYTES
    }

    /// The record that lies furthest in the log.
    pub(crate) fn newest(&self) -> Option<PhysicalOffset> {
        self.newest
    }

    /// The bytes of the file.
    pub(crate) fn image(&self) -> &Bytes {
        &self.image
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = KeyEntry> {
        (0..self.len()).map(|at| self.entry_at(at))
    }

    /// Entries with this hash at or above `from`, in order.
    pub(crate) fn find(&self, hash: u64, from: PhysicalOffset) -> impl Iterator<Item = KeyEntry> {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low + (high - low) / 2;
            let entry = self.entry_at(middle);
            if (entry.hash, entry.physical) < (hash, from) { low = middle + 1 } else { high = middle }
        }
        (low..self.len()).map(|at| self.entry_at(at)).take_while(move |entry| entry.hash == hash)
    }

    fn entry_at(&self, number: usize) -> KeyEntry {
        let at = HEADER_BYTES + number * ENTRY_BYTES;
        KeyEntry {
            hash: u64_at(&self.image, at),
            physical: PhysicalOffset(u64_at(&self.image, at + 8)),
            topic: TopicId(u32_at(&self.image, at + 16)),
            record_bytes: u32_at(&self.image, at + 20),
        }
    }
}

/// Only used on bytes whose length was compared when the run was opened.
fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let field = bytes.get(at..).and_then(|rest| rest.first_chunk::<8>());
    u64::from_le_bytes(*field.expect("inside a checked run"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let field = bytes.get(at..).and_then(|rest| rest.first_chunk::<4>());
    u32::from_le_bytes(*field.expect("inside a checked run"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(hash: u64, physical: u64) -> KeyEntry {
        KeyEntry { hash, physical: PhysicalOffset(physical), topic: TopicId(1), record_bytes: 5 }
    }

    #[test]
    fn entries_are_found_by_hash_from_a_place_on_and_damage_is_noticed() {
        let entries = [entry(1, 10), entry(3, 5), entry(3, 7), entry(3, 9), entry(4, 1)];
        let whole = write_image(&entries);
        let run = KeyRun::check(whole.clone()).expect("whole");
        let found: Vec<u64> = run.find(3, PhysicalOffset(6)).map(|entry| entry.physical.get()).collect();
        assert_eq!(found, [7, 9]);
        for (from, expected) in [(5, vec![5, 7, 9]), (7, vec![7, 9]), (9, vec![9]), (10, vec![])] {
            let found: Vec<u64> =
                run.find(3, PhysicalOffset(from)).map(|entry| entry.physical.get()).collect();
            assert_eq!(found, expected, "from {from} on");
        }
        assert_eq!(run.find(2, PhysicalOffset(0)).count(), 0);
        for at in 0..whole.len() {
            let mut flipped = whole.to_vec();
            flipped[at] ^= 0x10;
            assert!(KeyRun::check(Bytes::from(flipped)).is_err(), "byte {at}");
            assert!(KeyRun::check(whole.slice(..at)).is_err(), "cut at {at}");
        }
    }
}
