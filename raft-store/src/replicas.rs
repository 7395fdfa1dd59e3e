//! Logs of nodes that have ended, compared entry by entry: every replica's committed bytes are the same at
//! the same physical offset.
//!
//! Nothing is written and no lock is taken, so nobody may have the directories open. What counts as
//! committed is what any of the replicas remembers to be: the hint in its superblock, which is current
//! where the log was closed in order.
//!
//! | Found | [`Difference`] |
//! |---|---|
//! | an entry up to the committed one that differs in any byte that is not local (see `frame`), its place and its padding included | `Entry`, with the files and positions of both |
//! | bytes below the watermark that do not verify, or do not continue the log | `Damaged`; the rest of that replica is not looked at |
//! | the committed entry is not in the logs of a majority | `NotOnMajority` |
//! | a replica that begins later, or ends earlier | none: what it has is compared |
//! | entries behind the committed one | none: they may differ, and one day be cut |

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ledgermq_common::{LogIndex, NodeId, PhysicalOffset};
use xxhash_rust::xxh3::Xxh3;

use crate::frame::{self, FrameHeader, HEADER_BYTES, LogName};
use crate::io::{Disk, DiskFile};
use crate::machine::EntryId;
use crate::position::LogPosition;
use crate::segment::{self, SegmentHeader, SegmentOwner};
use crate::store::OpenError;
use crate::superblock::{Superblock, SuperblockFile};

/// Differences that are told; two logs that went apart differ in everything behind.
pub const DIFFERENCES_MAX: usize = 16;

/// Where an entry lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryPlace {
    pub node: NodeId,
    pub file: PathBuf,
    /// Of the frame, in the file.
    pub file_offset: u64,
    pub id: EntryId,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Difference {
    Entry { index: LogIndex, one: EntryPlace, other: EntryPlace },
    Damaged { node: NodeId, file: PathBuf, from: u64, to: u64, why: String },
    NotOnMajority { committed: LogIndex, holders: usize, replicas: usize },
}

impl fmt::Display for EntryPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { node, file, file_offset, id } = self;
        write!(f, "node {node} has it in term {} at {}:{file_offset}", id.term, file.display())
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Entry { index, one, other } => {
                write!(f, "entry {index} differs: {one}, {other}")
            }
            Self::Damaged { node, file, from, to, why } => {
                write!(f, "node {node}: {}: bytes {from}..{to} are damaged: {why}", file.display())
            }
            Self::NotOnMajority { committed, holders, replicas } => {
                write!(f, "entry {committed} was committed, and {holders} of {replicas} replicas have it")
            }
        }
    }
}

/// What was compared, and what came of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Comparison {
    /// The greatest index that a replica knows to be committed; nothing is compared without one.
    pub committed: Option<LogIndex>,
    /// Entries that were in at least two logs.
    pub entries: u64,
    /// Bytes of their frames, each counted once.
    pub bytes: u64,
    pub differences: Vec<Difference>,
    /// How many there are, told or not.
    pub differences_in_all: u64,
}

impl Comparison {
    fn found(&mut self, difference: Difference) {
        self.differences_in_all += 1;
        if self.differences.len() < DIFFERENCES_MAX {
            self.differences.push(difference);
        }
    }
}

/// Compares the logs of one group; each directory is the log of one node. Blocks.
pub fn compare(disk: &dyn Disk, directories: &[PathBuf]) -> Result<Comparison, OpenError> {
    let mut logs: Vec<ReplicaLog> =
        directories.iter().map(|directory| ReplicaLog::open(disk, directory)).collect::<Result<_, _>>()?;
    let mut compared = Comparison {
        committed: logs.iter().filter_map(|log| log.superblock.committed).map(|id| id.index).max(),
        ..Comparison::default()
    };
    let Some(committed) = compared.committed else { return Ok(compared) };
    let mut heads: Vec<Option<Frame>> = logs.iter_mut().map(|log| log.step(&mut compared)).collect();
    while let Some(index) = heads.iter().flatten().map(|frame| frame.place.id.index).min() {
        if index > committed {
            break;
        }
        let mut first: Option<&Frame> = None;
        let mut holders = 0u64;
        for frame in heads.iter().flatten().filter(|frame| frame.place.id.index == index) {
            holders += 1;
            let Some(one) = first else {
                first = Some(frame);
                continue;
            };
            if (one.at, one.digest) != (frame.at, frame.digest) {
                let (one, other) = (one.place.clone(), frame.place.clone());
                compared.found(Difference::Entry { index, one, other });
            }
        }
        if let Some(first) = first.filter(|_| holders > 1) {
            compared.entries += 1;
            compared.bytes += first.bytes;
        }
        for (log, head) in logs.iter_mut().zip(&mut heads) {
            if head.as_ref().is_some_and(|frame| frame.place.id.index == index) {
                *head = log.step(&mut compared);
            }
        }
    }
    let holders = logs.iter().filter(|log| log.position.last.is_some_and(|last| last.index >= committed));
    let (holders, replicas) = (holders.count(), logs.len());
    if holders * 2 <= replicas {
        compared.found(Difference::NotOnMajority { committed, holders, replicas });
    }
    Ok(compared)
}

struct Frame {
    place: EntryPlace,
    at: PhysicalOffset,
    bytes: u64,
    /// Of all that is not local.
    digest: u64,
}

struct OpenSegment {
    header: SegmentHeader,
    path: PathBuf,
    file: Arc<dyn DiskFile>,
}

/// The log of one node, walked from its oldest entry on.
struct ReplicaLog {
    node: NodeId,
    name: LogName,
    superblock: Superblock,
    /// Oldest first.
    segments: Vec<OpenSegment>,
    current: usize,
    position: LogPosition,
    /// Behind it nothing is looked at any more.
    has_ended: bool,
    buffer: Vec<u8>,
}

/// Why there is no frame where the next one should be.
struct NoFrame {
    to: PhysicalOffset,
    why: String,
}

impl ReplicaLog {
    fn open(disk: &dyn Disk, directory: &Path) -> Result<Self, OpenError> {
        let corrupt = |file: PathBuf, why: &str| OpenError::Corrupt {
            file,
            from: 0,
            to: segment::HEADER_BYTES,
            why: why.to_owned(),
        };
        let Some((_, superblock)) = SuperblockFile::read(disk, directory)? else {
            return Err(corrupt(directory.join(crate::superblock::FILE_NAME), "there is no superblock"));
        };
        let io = |operation, file: &Path| {
            let file = file.to_owned();
            move |source| OpenError::Io { operation, file, source }
        };
        let names = disk.list(directory).map_err(io("list", directory))?;
        let mut segments = Vec::new();
        for base in names.iter().filter_map(|name| segment::base_from_file_name(name)) {
            if base < superblock.first_segment || superblock.reset_pending {
                continue;
            }
            let path = directory.join(segment::file_name(base));
            let file = disk.open(&path).map_err(io("open", &path))?;
            let mut block = vec![0; segment::HEADER_BYTES as usize];
            let read = file.read_at(&mut block, 0).map_err(io("read", &path))?;
            block.truncate(read);
            let header = SegmentHeader::decode(&block).map_err(|why| corrupt(path.clone(), why))?;
            if header.base != base || header.owner != SegmentOwner::of(&superblock.identity) {
                return Err(corrupt(path, "the segment belongs to another place, log or node"));
            }
            // Behind the watermark only what is of this life is the log's.
            let watermark = superblock.watermark.at;
            let is_behind = segment::base_of(watermark, superblock.segment_bytes) < base;
            if is_behind && header.life < superblock.life {
                continue;
            }
            segments.push(OpenSegment { header, path, file });
        }
        let begin =
            segments.first().map(|first| LogPosition { at: first.header.start, ..first.header.before });
        Ok(Self {
            node: superblock.identity.node,
            name: LogName::of(&superblock.identity),
            position: begin.unwrap_or(superblock.watermark),
            has_ended: segments.is_empty(),
            superblock,
            segments,
            current: 0,
            buffer: Vec::new(),
        })
    }

    /// The next entry; `None` at the end of the log, and where it is damaged.
    fn step(&mut self, compared: &mut Comparison) -> Option<Frame> {
        while !self.has_ended {
            let watermark = self.superblock.watermark;
            if self.superblock.clean && self.position.at >= watermark.at {
                if (self.position.last, self.position.chain) != (watermark.last, watermark.chain) {
                    let why = "the log up to here is not the one the superblock knows".to_owned();
                    self.damaged(compared, NoFrame { to: self.position.at, why });
                }
                self.has_ended = true;
                break;
            }
            match self.frame_here() {
                Ok(frame) => return Some(frame),
                Err(no_frame) => self.next_segment(compared, no_frame),
            }
        }
        None
    }

    /// Where a segment ends the next one begins just there; a log ends at or behind the watermark.
    fn next_segment(&mut self, compared: &mut Comparison, no_frame: NoFrame) {
        match self.segments.get(self.current + 1) {
            Some(next) if next.header.before == self.position => {
                self.position.at = next.header.start;
                self.current += 1;
            }
            // The end of a log that starts at the beginning of a segment is told as that of the one before.
            _ if self.position.at >= self.superblock.watermark.at => self.has_ended = true,
            _ => self.damaged(compared, no_frame),
        }
    }

    fn damaged(&mut self, compared: &mut Comparison, no_frame: NoFrame) {
        self.has_ended = true;
        let Some(segment) = self.segments.get(self.current) else { return };
        let base = segment.header.base.get();
        compared.found(Difference::Damaged {
            node: self.node,
            file: segment.path.clone(),
            from: self.position.at.get().saturating_sub(base),
            to: no_frame.to.get().saturating_sub(base),
            why: no_frame.why,
        });
    }

    fn frame_here(&mut self) -> Result<Frame, NoFrame> {
        let at = self.position.at;
        let header_end = PhysicalOffset(at.get() + HEADER_BYTES as u64);
        let none = |to, why: &str| NoFrame { to, why: why.to_owned() };
        let segment =
            self.segments.get(self.current).ok_or_else(|| none(header_end, "there is no segment"))?;
        let limit = segment.header.base.get() + segment.header.segment_bytes;
        let file_offset = at.get().saturating_sub(segment.header.base.get());
        let unreadable = |error: std::io::Error| NoFrame { to: header_end, why: error.to_string() };
        let mut bytes = [0; HEADER_BYTES];
        if header_end.get() > limit
            || segment.file.read_at(&mut bytes, file_offset).map_err(unreadable)? < HEADER_BYTES
        {
            return Err(none(header_end, "the file ends"));
        }
        let header = FrameHeader::decode(&bytes).map_err(|error| none(header_end, &error.to_string()))?;
        if header.log != self.name || header.at != at {
            return Err(none(header_end, "the frame here belongs elsewhere"));
        }
        let is_durable = at < self.superblock.watermark.at;
        if !is_durable && header.life != self.superblock.life {
            return Err(none(header_end, "the frame here was cut in an earlier life"));
        }
        if header.previous_chain != self.position.chain || header.id.index != self.position.next_index() {
            return Err(none(header.end(), "the frame does not continue the one before it"));
        }
        // Asked for only now: a length is believed when its header verifies.
        let len = usize::try_from(header.end().get() - header.payload_at().get())
            .map_err(|_| none(header.end(), "the frame is too long"))?;
        self.buffer.resize(len, 0);
        let read = segment.file.read_at(&mut self.buffer, file_offset + HEADER_BYTES as u64);
        if header.end().get() >= limit || read.map_err(unreadable)? < len {
            return Err(none(header.end(), "the frame leaves its segment"));
        }
        let payload = self.buffer.get(..header.payload_len as usize).unwrap_or_default();
        if crc32c::crc32c(payload) != header.payload_crc {
            return Err(none(header.end(), "the payload does not verify"));
        }
        let mut digest = Xxh3::new();
        digest.update(frame::shared(&bytes));
        digest.update(&self.buffer);
        let place = EntryPlace { node: self.node, file: segment.path.clone(), file_offset, id: header.id };
        let bytes = header.end().get() - at.get();
        self.position = LogPosition { at: header.end(), last: Some(header.id), chain: header.chain() };
        Ok(Frame { place, at, bytes, digest: digest.digest() })
    }
}
