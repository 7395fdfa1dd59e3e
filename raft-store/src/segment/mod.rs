//! A segment: one file of the log, named by the physical offset its first byte stands for, in 20
//! digits.
//!
//! The file holds the physical offsets `base .. base + segment size`. Its first 4096 bytes are the
//! header, frames follow, and what no frame fitted into stays unused. Header:
//!
//! ```text
//! offset size field
//!      0    8 magic "LMQSEGMT"
//!      8    4 version (1)
//!     12    4 group id
//!     16    8 XXH3-64 of the cluster name
//!     24    8 node id
//!     32    8 base physical offset
//!     40    8 start: where the first frame is
//!     48    8 segment size
//!     56   40 the end of the log before this segment (a log position)
//!     96    4 life of the log when the segment was made
//!    100      zeros
//!   4092    4 CRC32C of bytes 0..4092
//! ```
//!
//! Invariants:
//! - Where a frame goes follows from the end of the log and the segment size alone ([`place`]), so
//!   it is the same on every replica.
//! - A segment gets its name only after its header *and everything in the segment before* is synced:
//!   a named segment proves that the one before is complete. The other name is [`TEMPORARY_NAME`].
//! - No append changes the length of the file or allocates: zeros are written ahead of it
//!   ([`Segment::fill_to`], figures in [`prepare`]).
//! - A file is never shortened and never used for another segment: readers may have it mapped.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ledgermq_common::PhysicalOffset;
use parking_lot::{Mutex, RwLock};

use crate::defects::{self, Defect};
use crate::frame::{self, put, u32_at, u64_at};
use crate::io::{Disk, DiskFile};
use crate::position::LogPosition;
use crate::store::{Identity, StoreFault};
use crate::superblock::fault;

pub mod cursor;
pub mod points;
pub mod prepare;

pub use cursor::FrameCursor;
pub use points::{Point, PointTable};
pub use prepare::{Prepared, Preparer};

pub const HEADER_BYTES: u64 = 4096;
pub const TEMPORARY_NAME: &str = "segment.tmp";
/// A segment must hold at least one frame of every size the configuration allows.
pub const SEGMENT_BYTES_MIN: u64 = 64 * 1024;

const SUFFIX: &str = ".log";
const CRC_AT: usize = HEADER_BYTES as usize - 4;
const MAGIC: [u8; 8] = *b"LMQSEGMT";
const VERSION: u32 = 1;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentHeader {
    pub owner: SegmentOwner,
    pub base: PhysicalOffset,
    pub start: PhysicalOffset,
    pub segment_bytes: u64,
    pub before: LogPosition,
    pub life: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentOwner {
    pub group: u32,
    pub cluster_hash: u64,
    pub node: u64,
}

impl SegmentOwner {
    pub fn of(identity: &Identity) -> Self {
        Self {
            group: identity.group.get(),
            cluster_hash: frame::cluster_hash(&identity.cluster),
            node: identity.node.get(),
        }
    }
}

#[derive(Debug)]
pub struct Segment {
    pub header: SegmentHeader,
    pub path: PathBuf,
    pub file: Arc<dyn DiskFile>,
    /// The same file opened once more. Linux reports a failed write-back once per descriptor: were
    /// it shared, a sync after filling could swallow the error that the writer has to see.
    pub fill_file: Arc<dyn DiskFile>,
    pub points: RwLock<PointTable>,
    /// Held while frames are walked to complete `points`.
    pub scan: Mutex<()>,
    /// Zeros or frames were written up to here (a position in the file). The lock is held while
    /// zeros are written, so that they never fall onto a frame.
    fill: Mutex<()>,
    filled: AtomicU64,
}

/// Where a frame of `bytes` goes if the log ends at `end`.
pub fn place(end: PhysicalOffset, bytes: u64, segment_bytes: u64) -> PhysicalOffset {
    let base = base_of(end, segment_bytes);
    // A segment is never filled to its last byte: its end is then always an offset inside it.
    if end.get() + bytes < base.get() + segment_bytes {
        return end;
    }
    PhysicalOffset(base.get() + segment_bytes + HEADER_BYTES)
}

pub fn base_of(at: PhysicalOffset, segment_bytes: u64) -> PhysicalOffset {
    PhysicalOffset(at.get() - at.get() % segment_bytes)
}

/// The longest payload that fits into an empty segment.
pub fn payload_bytes_max(segment_bytes: u64) -> usize {
    let room = segment_bytes - HEADER_BYTES - frame::HEADER_BYTES as u64 - frame::FRAME_ALIGN as u64;
    usize::try_from(room).unwrap_or(usize::MAX).min(frame::PAYLOAD_BYTES_MAX)
}

pub fn file_name(base: PhysicalOffset) -> String {
    format!("{:020}{SUFFIX}", base.get())
}

/// The base a file is named for; `None` if it is no segment.
pub fn base_from_file_name(name: &str) -> Option<PhysicalOffset> {
    let digits = name.strip_suffix(SUFFIX)?;
    if digits.len() != 20 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok().map(PhysicalOffset)
}

impl SegmentHeader {
    pub fn encode(&self) -> Vec<u8> {
        let mut block = vec![0; HEADER_BYTES as usize];
        put(&mut block, 0, &MAGIC);
        put(&mut block, 8, &VERSION.to_le_bytes());
        put(&mut block, 12, &self.owner.group.to_le_bytes());
        put(&mut block, 16, &self.owner.cluster_hash.to_le_bytes());
        put(&mut block, 24, &self.owner.node.to_le_bytes());
        put(&mut block, 32, &self.base.get().to_le_bytes());
        put(&mut block, 40, &self.start.get().to_le_bytes());
        put(&mut block, 48, &self.segment_bytes.to_le_bytes());
        put(&mut block, 56, &self.before.encode());
        put(&mut block, 96, &self.life.to_le_bytes());
        let crc = crc32c::crc32c(block.get(..CRC_AT).unwrap_or_default());
        put(&mut block, CRC_AT, &crc.to_le_bytes());
        block
    }

    /// What is wrong with the bytes, as a clause for a person.
    pub fn decode(block: &[u8]) -> Result<Self, &'static str> {
        if block.len() as u64 != HEADER_BYTES {
            return Err("the file is shorter than a segment header");
        }
        let crc = crc32c::crc32c(block.get(..CRC_AT).unwrap_or_default());
        if block.get(..8) != Some(&MAGIC[..]) || u32_at(block, CRC_AT) != crc {
            return Err("the segment header does not verify");
        }
        if u32_at(block, 8) != VERSION {
            return Err("the segment header has an unknown version");
        }
        Ok(Self {
            owner: SegmentOwner {
                group: u32_at(block, 12),
                cluster_hash: u64_at(block, 16),
                node: u64_at(block, 24),
            },
            base: PhysicalOffset(u64_at(block, 32)),
            start: PhysicalOffset(u64_at(block, 40)),
            segment_bytes: u64_at(block, 48),
            before: LogPosition::decode(block.get(56..).unwrap_or_default()),
            life: u32_at(block, 96),
        })
    }
}

impl Segment {
    /// Gives a prepared file its header and its name. Everything before it must be synced.
    pub fn make(
        disk: &dyn Disk,
        directory: &Path,
        prepared: Prepared,
        header: SegmentHeader,
    ) -> Result<Self, StoreFault> {
        let path = directory.join(file_name(header.base));
        let file = prepared.file;
        file.write_at(&header.encode(), 0).map_err(fault("write", &prepared.path))?;
        file.sync_data().map_err(fault("sync", &prepared.path))?;
        disk.rename(&prepared.path, &path).map_err(fault("rename", &path))?;
        if !defects::is_active(Defect::SegmentNameNotSynced) {
            disk.sync_directory(directory).map_err(fault("sync", directory))?;
        }
        let filled = prepared.filled.max(HEADER_BYTES);
        let files = [file, prepared.fill_file];
        Ok(Self::assemble(header, path, files, filled, PointTable::complete()))
    }

    /// A segment found on the disk, its frames not yet looked at.
    pub fn found(header: SegmentHeader, path: PathBuf, files: [Arc<dyn DiskFile>; 2], file_len: u64) -> Self {
        Self::assemble(header, path, files, file_len, PointTable::unscanned())
    }

    fn assemble(
        header: SegmentHeader,
        path: PathBuf,
        [file, fill_file]: [Arc<dyn DiskFile>; 2],
        filled: u64,
        points: PointTable,
    ) -> Self {
        Self {
            header,
            path,
            file,
            fill_file,
            points: RwLock::new(points),
            scan: Mutex::new(()),
            fill: Mutex::new(()),
            filled: AtomicU64::new(filled),
        }
    }

    pub fn base(&self) -> PhysicalOffset {
        self.header.base
    }

    /// The first offset behind the segment.
    pub fn limit(&self) -> PhysicalOffset {
        PhysicalOffset(self.header.base.get() + self.header.segment_bytes)
    }

    pub fn contains(&self, at: PhysicalOffset) -> bool {
        self.base() <= at && at < self.limit()
    }

    /// The position in the file of an offset of this segment.
    pub fn file_position(&self, at: PhysicalOffset) -> u64 {
        assert!(self.contains(at), "offset {at} is in the segment {}", self.base());
        at.get() - self.header.base.get()
    }

    pub fn filled(&self) -> u64 {
        self.filled.load(Ordering::Acquire)
    }

    /// Zero-fills up to `upto` (a position in the file). `after_piece` runs between the pieces,
    /// without the lock, and may stop it.
    pub fn fill_to(
        &self,
        upto: u64,
        piece_bytes: u64,
        mut after_piece: impl FnMut() -> io::Result<bool>,
    ) -> io::Result<()> {
        let upto = upto.min(self.header.segment_bytes);
        while self.filled() < upto {
            {
                let _filling = self.fill.lock();
                let from = self.filled();
                let piece = upto.saturating_sub(from).min(piece_bytes);
                self.fill_file.zero_fill(from, piece)?;
                self.filled.store(from + piece, Ordering::Release);
            }
            if !after_piece()? {
                break;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::EntryId;

    #[test]
    fn file_names_have_twenty_digits_and_come_back() {
        assert_eq!(file_name(PhysicalOffset(1 << 30)), "00000000001073741824.log");
        assert_eq!(base_from_file_name("00000000001073741824.log"), Some(PhysicalOffset(1 << 30)));
        for name in ["segment.tmp", "1.log", "0000000000107374182x.log", "+0000000001073741824.log"] {
            assert_eq!(base_from_file_name(name), None, "{name}");
        }
    }

    #[test]
    fn a_frame_that_does_not_fit_starts_the_next_segment() {
        let size = 65_536;
        assert_eq!(place(PhysicalOffset(4096), 100, size), PhysicalOffset(4096));
        assert_eq!(place(PhysicalOffset(65_400), 128, size), PhysicalOffset(65_400));
        assert_eq!(place(PhysicalOffset(65_400), 136, size), PhysicalOffset(65_536 + 4096));
        let largest = frame::frame_bytes(payload_bytes_max(size));
        assert_eq!(place(PhysicalOffset(4096), largest, size), PhysicalOffset(4096));
    }

    #[test]
    fn every_flipped_bit_of_a_header_is_noticed() {
        let header = SegmentHeader {
            owner: SegmentOwner { group: 1, cluster_hash: 2, node: 3 },
            base: PhysicalOffset(1 << 30),
            start: PhysicalOffset((1 << 30) + 4096),
            segment_bytes: 1 << 30,
            before: LogPosition { at: PhysicalOffset(900_000), last: Some(EntryId::default()), chain: 8 },
            life: 2,
        };
        let block = header.encode();
        assert_eq!(SegmentHeader::decode(&block), Ok(header));
        for at in (0..128).chain(4088..4096) {
            let mut flipped = block.clone();
            flipped[at] ^= 0x10;
            assert!(SegmentHeader::decode(&flipped).is_err(), "byte {at}");
        }
    }
}
