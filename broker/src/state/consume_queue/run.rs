//! A run: the index entries of a stretch of the log, in one immutable file.
//!
//! | Offset | Bytes | Field |
//! |---|---|---|
//! | 0 | 8 | `LMQRUN01` |
//! | 8 | 8 | number of extents |
//! | 16 | 8 | number of entries |
//! | 24 | 4 | CRC32C of the directory |
//! | 28 | 4 | CRC32C of the entries |
//! | 32 | 28 | 0 |
//! | 60 | 4 | CRC32C of bytes 0..60 |
//! | 64 | 32 × extents | directory, sorted by topic and queue: topic and queue u64 (topic in the upper half), first queue offset u64, position of its first entry u64, entries u64 |
//! | … | 24 × entries | physical offset u64, store time u64 ms, record bytes u32, tag code u32 |
//!
//! All little endian. A queue has at most one extent; the extent has no gaps.
//!
//! Runs are derived. A run is written whole and synced before the checkpoint that names it commits;
//! it is checked in full when it is opened, and a run that fails makes the node build its state anew.

use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::Path;

use bytes::Bytes;
use ledgermq_common::PhysicalOffset;
use ledgermq_common::clock::UnixMillis;

use super::tail::Tail;
use super::{IndexEntry, QueueKey};

const MAGIC: [u8; 8] = *b"LMQRUN01";
const HEADER_BYTES: usize = 64;
const EXTENT_BYTES: usize = 32;
const ENTRY_BYTES: usize = 24;

/// Bytes are no run, or were one once.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("index run is damaged: {part}")]
pub(crate) struct DamagedRun {
    pub(crate) part: &'static str,
}

/// Shared bytes of a checked run: a mapped file, or memory.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    image: Bytes,
    extents: usize,
    entries: usize,
}

#[derive(Debug, Clone, Copy)]
struct Extent {
    key: QueueKey,
    first: u64,
    at: usize,
    len: usize,
}

/// What a run can be made of.
pub(crate) trait ExtentSource {
    fn sorted_keys(&self) -> Vec<QueueKey>;
    /// The first offset and the entries of a queue.
    fn entries_of(&self, key: QueueKey) -> Option<(u64, Vec<IndexEntry>)>;
    fn extent_of(&self, key: QueueKey) -> Option<(u64, usize)>;
}

impl ExtentSource for Tail {
    fn sorted_keys(&self) -> Vec<QueueKey> {
        Tail::sorted_keys(self)
    }

    fn entries_of(&self, key: QueueKey) -> Option<(u64, Vec<IndexEntry>)> {
        self.extent(key).map(|(first, entries)| (first, entries.to_vec()))
    }

    fn extent_of(&self, key: QueueKey) -> Option<(u64, usize)> {
        self.extent(key).map(|(first, entries)| (first, entries.len()))
    }
}

impl ExtentSource for Run {
    fn sorted_keys(&self) -> Vec<QueueKey> {
        (0..self.extents).map(|at| self.extent_at(at).key).collect()
    }

    fn entries_of(&self, key: QueueKey) -> Option<(u64, Vec<IndexEntry>)> {
        self.read(key, 0, u64::MAX)
    }

    fn extent_of(&self, key: QueueKey) -> Option<(u64, usize)> {
        self.find(key).map(|extent| (extent.first, extent.len))
    }
}

/// Writes one run of what `sources` (oldest first) hold of the queues `keep` accepts, from the offset
/// on it names for each. Returns the number of entries.
pub(crate) fn write_run(
    out: &mut (impl Write + Seek),
    sources: &[&dyn ExtentSource],
    keep: &dyn Fn(QueueKey) -> Option<u64>,
) -> io::Result<u64> {
    let mut keys: Vec<QueueKey> = sources.iter().flat_map(|source| source.sorted_keys()).collect();
    keys.sort_unstable();
    keys.dedup();

    let mut directory = Vec::with_capacity(keys.len() * EXTENT_BYTES);
    let mut entries = 0u64;
    let mut kept = Vec::with_capacity(keys.len());
    for key in keys {
        let Some(min) = keep(key) else { continue };
        let mut first = None;
        let mut len = 0u64;
        for (part_first, part_len) in sources.iter().filter_map(|source| source.extent_of(key)) {
            let part_end = part_first + part_len as u64;
            let part_first = part_first.max(min);
            if part_end <= part_first {
                continue;
            }
            let first = *first.get_or_insert(part_first);
            assert_eq!(part_first, first + len, "the parts of a queue's index have no gap between them");
            len += part_end - part_first;
        }
        let Some(first) = first else { continue };
        kept.push((key, first));
        for field in [key.get(), first, entries, len] {
            directory.extend_from_slice(&field.to_le_bytes());
        }
        entries += len;
    }

    out.write_all(&[0; HEADER_BYTES])?;
    out.write_all(&directory)?;
    let mut entries_crc = 0;
    let mut block = Vec::new();
    for &(key, first) in &kept {
        block.clear();
        for (part_first, part) in sources.iter().filter_map(|source| source.entries_of(key)) {
            let skip = usize::try_from(first.saturating_sub(part_first)).unwrap_or(usize::MAX);
            for entry in part.into_iter().skip(skip) {
                block.extend_from_slice(&entry.physical.get().to_le_bytes());
                block.extend_from_slice(&entry.stored_at.get().to_le_bytes());
                block.extend_from_slice(&entry.record_bytes.to_le_bytes());
                block.extend_from_slice(&entry.tag_code.to_le_bytes());
            }
        }
        entries_crc = crc32c::crc32c_append(entries_crc, &block);
        out.write_all(&block)?;
    }

    let mut header = Vec::with_capacity(HEADER_BYTES);
    header.extend_from_slice(&MAGIC);
    header.extend_from_slice(&(kept.len() as u64).to_le_bytes());
    header.extend_from_slice(&entries.to_le_bytes());
    header.extend_from_slice(&crc32c::crc32c(&directory).to_le_bytes());
    header.extend_from_slice(&entries_crc.to_le_bytes());
    header.resize(HEADER_BYTES - 4, 0);
    let header_crc = crc32c::crc32c(&header);
    header.extend_from_slice(&header_crc.to_le_bytes());
    out.seek(SeekFrom::Start(0))?;
    out.write_all(&header)?;
    Ok(entries)
}

/// Writes a run to a new file and syncs it. The caller syncs the directory.
pub(crate) fn write_run_file(
    path: &Path,
    sources: &[&dyn ExtentSource],
    keep: &dyn Fn(QueueKey) -> Option<u64>,
) -> io::Result<u64> {
    let mut out = BufWriter::with_capacity(1 << 20, File::create(path)?);
    let entries = write_run(&mut out, sources, keep)?;
    out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
    Ok(entries)
}

impl Run {
    /// Maps a run and checks all of it.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        if file.metadata()?.len() < HEADER_BYTES as u64 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, DamagedRun { part: "length" }));
        }
        // SAFETY: the directory is locked by this process, and a run is never written again under
        // the name it is opened by, so the mapped bytes do not change.
        let map = unsafe { memmap2::Mmap::map(&file)? };
        Self::check(Bytes::from_owner(map))
            .map_err(|damaged| io::Error::new(io::ErrorKind::InvalidData, damaged))
    }

    pub(crate) fn check(image: Bytes) -> Result<Self, DamagedRun> {
        let damaged = |part| DamagedRun { part };
        let header = image.get(..HEADER_BYTES).ok_or(damaged("length"))?;
        let (fields, crc) = header.split_at(HEADER_BYTES - 4);
        if crc32c::crc32c(fields).to_le_bytes() != crc {
            return Err(damaged("header"));
        }
        if !fields.starts_with(&MAGIC) {
            return Err(damaged("magic"));
        }
        let extents = usize::try_from(u64_at(header, 8)).map_err(|_| damaged("header"))?;
        let entries = usize::try_from(u64_at(header, 16)).map_err(|_| damaged("header"))?;
        let directory_end = extents
            .checked_mul(EXTENT_BYTES)
            .and_then(|bytes| bytes.checked_add(HEADER_BYTES))
            .ok_or(damaged("header"))?;
        let end = entries
            .checked_mul(ENTRY_BYTES)
            .and_then(|bytes| bytes.checked_add(directory_end))
            .ok_or(damaged("header"))?;
        if end != image.len() {
            return Err(damaged("length"));
        }
        let directory = image.get(HEADER_BYTES..directory_end).ok_or(damaged("length"))?;
        if crc32c::crc32c(directory) != u32_at(header, 24) {
            return Err(damaged("directory"));
        }
        if crc32c::crc32c(image.get(directory_end..).ok_or(damaged("length"))?) != u32_at(header, 28) {
            return Err(damaged("entries"));
        }
        Ok(Self { image, extents, entries })
    }

    pub(crate) fn len(&self) -> usize {
        self.entries
    }

    /// Entries that `keep` accepts, at or above the offset it names.
    pub(crate) fn kept_len(&self, keep: &dyn Fn(QueueKey) -> Option<u64>) -> usize {
        let live = |extent: Extent| {
            let Some(min) = keep(extent.key) else { return 0 };
            let below = usize::try_from(min.saturating_sub(extent.first)).unwrap_or(usize::MAX);
            extent.len.saturating_sub(below)
        };
        (0..self.extents).map(|at| live(self.extent_at(at))).sum()
    }

    /// The bytes of the file.
    pub(crate) fn image(&self) -> &Bytes {
        &self.image
    }

    /// The part of `from..to` of a queue that is here, and its first offset.
    pub(crate) fn read(&self, key: QueueKey, from: u64, to: u64) -> Option<(u64, Vec<IndexEntry>)> {
        let extent = self.find(key)?;
        let end = extent.first + extent.len as u64;
        let start = from.clamp(extent.first, end);
        let stop = to.clamp(start, end);
        let at = extent.at + (start - extent.first) as usize;
        let entries = (at..at + (stop - start) as usize).map(|at| self.entry_at(at)).collect();
        Some((start, entries))
    }

    /// The offsets of a queue that are here: first and count.
    pub(crate) fn extent(&self, key: QueueKey) -> Option<(u64, usize)> {
        self.find(key).map(|extent| (extent.first, extent.len))
    }

    fn find(&self, key: QueueKey) -> Option<Extent> {
        let (mut low, mut high) = (0, self.extents);
        while low < high {
            let middle = low + (high - low) / 2;
            let extent = self.extent_at(middle);
            match extent.key.cmp(&key) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
                std::cmp::Ordering::Equal => return Some(extent),
            }
        }
        None
    }

    fn extent_at(&self, number: usize) -> Extent {
        let at = HEADER_BYTES + number * EXTENT_BYTES;
        Extent {
            key: QueueKey::from_number(u64_at(&self.image, at)),
            first: u64_at(&self.image, at + 8),
            at: u64_at(&self.image, at + 16) as usize,
            len: u64_at(&self.image, at + 24) as usize,
        }
    }

    fn entry_at(&self, number: usize) -> IndexEntry {
        let at = HEADER_BYTES + self.extents * EXTENT_BYTES + number * ENTRY_BYTES;
        IndexEntry {
            physical: PhysicalOffset(u64_at(&self.image, at)),
            stored_at: UnixMillis(u64_at(&self.image, at + 8)),
            record_bytes: u32_at(&self.image, at + 16),
            tag_code: u32_at(&self.image, at + 20),
        }
    }
}

/// Only used on bytes whose length and checksums were compared when the run was opened.
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
    use std::io::Cursor;

    use ledgermq_common::QueueId;

    use super::*;
    use crate::state::names::TopicId;

    fn entry(number: u64) -> IndexEntry {
        IndexEntry {
            physical: PhysicalOffset(number * 100),
            record_bytes: number as u32,
            tag_code: !(number as u32),
            stored_at: UnixMillis(number + 7),
        }
    }

    fn key(topic: u32, queue: u32) -> QueueKey {
        QueueKey::new(TopicId(topic), QueueId(queue))
    }

    fn image(sources: &[&dyn ExtentSource]) -> Bytes {
        let mut out = Cursor::new(Vec::new());
        write_run(&mut out, sources, &|key| (key.topic() != TopicId(9)).then_some(7)).expect("memory");
        Bytes::from(out.into_inner())
    }

    #[test]
    fn a_run_of_tails_and_runs_has_every_entry_and_no_deleted_topic() {
        let (mut old, mut new) = (Tail::default(), Tail::default());
        for offset in 5..20 {
            old.push(key(1, 2), offset, entry(offset));
            old.push(key(9, 0), offset, entry(offset));
        }
        for offset in 20..25 {
            new.push(key(1, 2), offset, entry(offset));
            new.push(key(1, 0), offset, entry(offset));
        }
        let old = Run::check(image(&[&old])).expect("whole");
        let run = Run::check(image(&[&old, &new])).expect("whole");
        // Of queue 2 what is at or above the minimum of 7; of queue 0 all five, which begin above it.
        assert_eq!(run.len(), 18 + 5);
        assert_eq!(run.extent(key(1, 2)), Some((7, 18)));
        assert_eq!(old.kept_len(&|_| Some(15)), 5);
        assert_eq!(old.kept_len(&|_| Some(99)), 0);
        let (first, entries) = run.read(key(1, 2), 18, 22).expect("there");
        assert_eq!((first, entries), (18, (18..22).map(entry).collect()));
        assert_eq!(run.extent(key(1, 0)), Some((20, 5)));
        assert_eq!(run.extent(key(9, 0)), None);
        assert_eq!(run.extent(key(1, 1)), None);
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_found() {
        let mut tail = Tail::default();
        tail.push(key(1, 0), 7, entry(1));
        let whole = image(&[&tail]);
        for at in 0..whole.len() {
            let mut flipped = whole.to_vec();
            flipped[at] ^= 0x10;
            assert!(Run::check(Bytes::from(flipped)).is_err(), "byte {at}");
            assert!(Run::check(whole.slice(..at)).is_err(), "cut at {at}");
        }
    }
}
