//! What is made of the files found at start-up.
//!
//! The log is what lies below the superblock's watermark, and behind it every frame that continues
//! it. `p` is where the frames stop, `W` the watermark, `L` the life in the superblock. A *witness*
//! is an intact frame header anywhere behind `p` in the last segment, for its own place, of life `L`
//! and with `durable before` > `p`: when it was written, `p` had been synced.
//!
//! | Found | Means | Done |
//! |---|---|---|
//! | a file `rotten` | an earlier run met corruption (see `rot`) | refused |
//! | no superblock, no segment | new directory | made; a start that was interrupted before leaves at most temporary names |
//! | no superblock, segments | the vote is unknown | refused |
//! | one superblock slot bad | torn or rotten, the other has every promise | the other is used |
//! | both slots bad | the vote is unknown | refused |
//! | superblock of another cluster, group or node | foreign directory | refused, both are named |
//! | reset pending | a reset (or the first start) was cut short | done again: all segments go, a new one is made |
//! | a temporary name | half-made file | removed |
//! | a segment below `first segment` | a release was cut short | removed |
//! | a segment behind that of `W`, older life than `L` | a truncation was cut short | removed |
//! | a gap between segments, that of `W` missing, or the last one the superblock knows | lost file | refused |
//! | segment header bad, or of another place or owner | corruption: a named segment was synced | refused |
//! | `p < W` | corruption: this was durable | refused |
//! | `p ≥ W`, another segment follows that starts just there | the segment ended | goes on in it |
//! | `p ≥ W`, another segment follows that starts elsewhere | corruption: the end was synced before the next got its name | refused |
//! | `p ≥ W`, a frame of life `L` for `p` that does not continue the chain | corruption: a place is written once per life | refused |
//! | `p ≥ W`, a frame or segment of a life above `L` | the superblock is older than the log | refused |
//! | `p ≥ W`, a witness | corruption: this was durable | refused |
//! | `p ≥ W`, none of these | torn tail; or zeros; or leftovers of an earlier life | the log ends at `p` |
//!
//! "Refused" is [`OpenError::Corrupt`] with file and bytes: the replica stays out of its group and
//! nothing on the disk is changed.
//!
//! Leftovers behind a cut cannot come back: a cut syncs what it keeps and writes the superblock with
//! `W` = the cut and `L` + 1 before it takes effect, so everything behind `W` counts only with a
//! life that was given out later. Opening is a cut as well. A leftover is no witness for the same
//! reason: its `durable before` speaks of bytes that were overwritten since.
//!
//! What was read between `W` and the end is written again before it is trusted: if the process ended
//! because a sync failed, the kernel may hold pages as clean that are not on the disk.
//!
//! The segment of `W` is walked from its start, which also finds corruption below `W` in it. Older
//! segments are verified when they are read (`verify_all` reads them all): walking them here would
//! take minutes per 100 GiB. After an orderly close nothing is walked.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ledgermq_common::PhysicalOffset;

use crate::defects::{self, Defect};
use crate::frame::{self, FRAME_ALIGN, FrameError, FrameHeader, LogName};
use crate::io::{DirectoryLock, Disk};
use crate::position::LogPosition;
use crate::rot;
use crate::segment::prepare::{self, PreparePlan, Prepared};
use crate::segment::{self, PointTable, Segment, SegmentHeader, SegmentOwner};
use crate::store::{Identity, OpenError, StoreConfig, StoreFault};
use crate::superblock::{self, CLUSTER_NAME_BYTES_MAX, Superblock, SuperblockFile};

/// How much is read at once when looking for witnesses and when writing the tail again.
const SCAN_BYTES: usize = 1 << 20;
const TEMPORARY_NAMES: [&str; 2] = [segment::TEMPORARY_NAME, superblock::TEMPORARY_NAME];

#[derive(Debug)]
pub struct Recovered {
    pub superblock_file: SuperblockFile,
    pub superblock: Superblock,
    pub segments: BTreeMap<PhysicalOffset, Arc<Segment>>,
    pub end: LogPosition,
    pub lock: Box<dyn DirectoryLock>,
}

impl From<StoreFault> for OpenError {
    fn from(fault: StoreFault) -> Self {
        Self::Io { operation: fault.operation, file: fault.file, source: std::io::Error::other(fault.reason) }
    }
}

/// Checks what cannot be checked by type, before anything is touched.
pub fn check_config(config: &StoreConfig, identity: &Identity) -> Result<(), OpenError> {
    let refuse = |reason: String| Err(OpenError::Config { reason });
    if identity.cluster.is_empty() || identity.cluster.len() > CLUSTER_NAME_BYTES_MAX {
        return refuse(format!("the cluster name must have 1 to {CLUSTER_NAME_BYTES_MAX} bytes"));
    }
    let size = config.segment_bytes;
    if size < segment::SEGMENT_BYTES_MIN || !size.is_multiple_of(segment::HEADER_BYTES) {
        return refuse(format!(
            "segment_bytes is {size}, it must be a multiple of {} and at least {}",
            segment::HEADER_BYTES,
            segment::SEGMENT_BYTES_MIN
        ));
    }
    // The queue's room is a semaphore, whose permits are counted in 32 bits on the way in.
    if config.write_queue_bytes_max == 0 || config.write_queue_bytes_max > u32::MAX as usize {
        return refuse(format!(
            "write_queue_bytes_max is {}, out of 1..=2^32-1",
            config.write_queue_bytes_max
        ));
    }
    Ok(())
}

pub fn recover(
    disk: &Arc<dyn Disk>,
    config: &mut StoreConfig,
    identity: &Identity,
) -> Result<Recovered, OpenError> {
    check_config(config, identity)?;
    let directory = config.directory.clone();
    disk.create_directory(&directory).map_err(io("create", &directory))?;
    let lock = match disk.lock(&directory) {
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
            return Err(OpenError::Locked { directory });
        }
        other => other.map_err(io("lock", &directory))?,
    };
    let names = disk.list(&directory).map_err(io("list", &directory))?;
    if let Some(met) = rot::found(&**disk, &directory, &names) {
        return Err(met);
    }
    let bases: Vec<PhysicalOffset> =
        names.iter().filter_map(|name| segment::base_from_file_name(name)).collect();

    let (mut superblock_file, mut superblock) = match SuperblockFile::read(&**disk, &directory)? {
        Some(found) => found,
        None => match bases.first() {
            None => make_superblock(&**disk, config, identity)?,
            Some(first) => {
                return Err(OpenError::Corrupt {
                    file: directory.join(segment::file_name(*first)),
                    from: 0,
                    to: config.segment_bytes,
                    why: "there are segments but no superblock, so the vote of this node is unknown"
                        .to_owned(),
                });
            }
        },
    };
    if superblock.identity != *identity {
        return Err(OpenError::Foreign {
            directory,
            expected: Box::new(identity.clone()),
            found: Box::new(superblock.identity),
        });
    }
    if superblock.segment_bytes != config.segment_bytes {
        tracing::warn!(
            configured = config.segment_bytes,
            kept = superblock.segment_bytes,
            "the log keeps the segment size it was made with"
        );
        config.segment_bytes = superblock.segment_bytes;
    }

    let finder = Finder { disk, directory: &directory, superblock: &superblock };
    let mut segments = finder.segments(&bases)?;
    let end = if superblock.reset_pending || superblock.clean {
        superblock.watermark
    } else {
        Walk { superblock: &superblock, segments: &segments, name: LogName::of(identity) }.end_of_log()?
    };

    // From here on the directory is changed. Temporary names first: a promise to write may need
    // their space.
    // Listed anew, because a superblock made above used up one of the names.
    let names = disk.list(&directory).map_err(io("list", &directory))?;
    for name in names.iter().filter(|name| TEMPORARY_NAMES.contains(&name.as_str())) {
        let path = directory.join(name);
        disk.remove(&path).map_err(io("remove", &path))?;
    }
    if !defects::is_active(Defect::TailNotWrittenAgain) {
        write_again(&segments, superblock.watermark.at, end.at)?;
    }
    if end.at > superblock.watermark.at {
        tracing::info!(end = %end.at, watermark = %superblock.watermark.at, "recovered the tail of the log");
    }
    superblock.life = superblock.life.checked_add(1).expect("2^32 lives");
    superblock.watermark = end;
    superblock.last_segment = segment::base_of(end.at, config.segment_bytes);
    superblock.clean = false;
    superblock_file.write_promise(&superblock)?;

    // Whatever is behind the end or below the first segment is garbage by now; the promise above
    // lets a crash here be finished by the next start.
    for base in &bases {
        let keep = *base >= superblock.first_segment
            && *base <= superblock.last_segment
            && !superblock.reset_pending;
        if !keep {
            let path = directory.join(segment::file_name(*base));
            disk.remove(&path).map_err(io("remove", &path))?;
            segments.remove(base);
        }
    }
    disk.sync_directory(&directory).map_err(io("sync", &directory))?;
    if superblock.reset_pending {
        let temporary = directory.join(segment::TEMPORARY_NAME);
        let prepared =
            prepare::prepare(&**disk, &PreparePlan::of(config)).map_err(io("prepare", &temporary))?;
        let first = make_first_segment(&**disk, config, &superblock, prepared)?;
        segments = BTreeMap::from([(first.base(), Arc::new(first))]);
        superblock.reset_pending = false;
        superblock_file.write_promise(&superblock)?;
    }
    for segment in segments.values() {
        segment.points.write().cut(end.at);
    }
    Ok(Recovered { superblock_file, superblock, segments, end, lock })
}

/// The segment a log starts with that was made or reset at the superblock's watermark.
pub fn make_first_segment(
    disk: &dyn Disk,
    config: &StoreConfig,
    superblock: &Superblock,
    prepared: Prepared,
) -> Result<Segment, StoreFault> {
    let before = superblock.watermark;
    let header = SegmentHeader {
        owner: SegmentOwner::of(&superblock.identity),
        base: segment::base_of(before.at, config.segment_bytes),
        start: before.at,
        segment_bytes: config.segment_bytes,
        before,
        life: superblock.life,
    };
    Segment::make(disk, &config.directory, prepared, header)
}

fn make_superblock(
    disk: &dyn Disk,
    config: &StoreConfig,
    identity: &Identity,
) -> Result<(SuperblockFile, Superblock), OpenError> {
    let start = PhysicalOffset(segment::HEADER_BYTES);
    let superblock = Superblock {
        identity: identity.clone(),
        replica: config.replica_if_new,
        segment_bytes: config.segment_bytes,
        life: 0,
        first_segment: PhysicalOffset(0),
        last_segment: PhysicalOffset(0),
        watermark: LogPosition { at: start, last: None, chain: frame::first_chain(identity) },
        vote: None,
        committed: None,
        purged: None,
        clean: false,
        reset_pending: true,
    };
    let file = SuperblockFile::create(disk, &config.directory, &superblock)?;
    Ok((file, superblock))
}

struct Finder<'a> {
    disk: &'a Arc<dyn Disk>,
    directory: &'a Path,
    superblock: &'a Superblock,
}

impl Finder<'_> {
    /// The segments of the log, without leftovers.
    fn segments(
        &self,
        bases: &[PhysicalOffset],
    ) -> Result<BTreeMap<PhysicalOffset, Arc<Segment>>, OpenError> {
        let superblock = self.superblock;
        let mut segments = BTreeMap::new();
        if superblock.reset_pending {
            return Ok(segments);
        }
        let watermark_base = segment::base_of(superblock.watermark.at, superblock.segment_bytes);
        let mut expected = superblock.first_segment;
        for base in bases.iter().filter(|base| **base >= superblock.first_segment) {
            let (segment, path) = self.segment(*base)?;
            if segment.header.life > superblock.life {
                return Err(corrupt_header(path, "the segment is newer than the superblock"));
            }
            if *base > watermark_base && segment.header.life < superblock.life {
                continue;
            }
            if *base != expected {
                let missing = self.directory.join(segment::file_name(expected));
                return Err(corrupt_header(missing, "the file is missing"));
            }
            expected = segment.limit();
            segments.insert(*base, Arc::new(segment));
        }
        for known in [watermark_base, superblock.last_segment] {
            if !segments.contains_key(&known) {
                let missing = self.directory.join(segment::file_name(known));
                return Err(corrupt_header(missing, "the file is missing, though the superblock knows it"));
            }
        }
        Ok(segments)
    }

    fn segment(&self, base: PhysicalOffset) -> Result<(Segment, PathBuf), OpenError> {
        let path = self.directory.join(segment::file_name(base));
        let file = self.disk.open(&path).map_err(io("open", &path))?;
        let fill_file = self.disk.open(&path).map_err(io("open", &path))?;
        let mut block = vec![0; segment::HEADER_BYTES as usize];
        let read = file.read_at(&mut block, 0).map_err(io("read", &path))?;
        block.truncate(read);
        let header = SegmentHeader::decode(&block).map_err(|why| corrupt_header(path.clone(), why))?;
        if header.owner != SegmentOwner::of(&self.superblock.identity) {
            return Err(corrupt_header(path, "the segment belongs to another log or node"));
        }
        let starts_inside = header.start.get() >= base.get() + segment::HEADER_BYTES
            && header.start.get() < base.get() + header.segment_bytes;
        if header.base != base || header.segment_bytes != self.superblock.segment_bytes || !starts_inside {
            return Err(corrupt_header(path, "the segment header is of another segment"));
        }
        let len = file.byte_len().map_err(io("read", &path))?;
        Ok((Segment::found(header, path.clone(), [file, fill_file], len), path))
    }
}

struct Walk<'a> {
    superblock: &'a Superblock,
    segments: &'a BTreeMap<PhysicalOffset, Arc<Segment>>,
    name: LogName,
}

/// What lies where the next frame should be.
enum Found {
    Frame {
        header: FrameHeader,
        chain: u64,
    },
    /// Nothing of this life, or something incomplete.
    Nothing {
        why: String,
    },
}

impl Walk<'_> {
    fn end_of_log(&self) -> Result<LogPosition, OpenError> {
        let watermark = self.superblock.watermark;
        let base = segment::base_of(watermark.at, self.superblock.segment_bytes);
        let mut behind: Option<LogPosition> = None;
        for segment in self.segments.range(base..).map(|(_, segment)| segment) {
            if let Some(end) = behind
                && end != segment.header.before
            {
                let previous =
                    self.segments.range(..segment.base()).next_back().expect("the one walked before").1;
                return Err(corrupt(
                    previous,
                    end.at,
                    previous.limit(),
                    format!(
                        "the frames end here, but the next segment follows offset {}",
                        segment.header.before.at
                    ),
                ));
            }
            behind = Some(self.end_of_segment(segment)?);
        }
        let end = behind.expect("the segment of the watermark was found");
        let cuts_anything = defects::is_active(Defect::CorruptionIsTail);
        assert!(end.at >= watermark.at || cuts_anything, "nothing durable is cut");
        Ok(end)
    }

    /// Walks one segment and makes its table of points.
    fn end_of_segment(&self, segment: &Arc<Segment>) -> Result<LogPosition, OpenError> {
        let watermark = self.superblock.watermark;
        let mut points = PointTable::complete();
        let mut position = LogPosition { at: segment.header.start, ..segment.header.before };
        let mut frames = 0u64;
        loop {
            let at_watermark =
                position.at == watermark.at || (frames == 0 && segment.header.before.at == watermark.at);
            if at_watermark && (position.last, position.chain) != (watermark.last, watermark.chain) {
                let why = "the log up to the watermark is not the one the superblock knows".to_owned();
                return Err(corrupt(segment, segment.header.start, position.at, why));
            }
            let why = match self.frame_at(segment, &position)? {
                Found::Frame { header, chain } => {
                    if header.at < watermark.at && header.end() > watermark.at {
                        let why = "the watermark of the superblock lies inside a frame".to_owned();
                        return Err(corrupt(segment, header.at, header.end(), why));
                    }
                    points.add(header.id.index, header.at);
                    position = LogPosition { at: header.end(), last: Some(header.id), chain };
                    frames += 1;
                    continue;
                }
                Found::Nothing { why } => why,
            };
            let cuts_anything = defects::is_active(Defect::CorruptionIsTail);
            if position.at < watermark.at && segment.contains(watermark.at) && !cuts_anything {
                return Err(corrupt(
                    segment,
                    position.at,
                    watermark.at,
                    format!("this was durable, but {why}"),
                ));
            }
            let is_last = self.segments.range(segment.limit()..).next().is_none();
            let looks_for_witness = !cuts_anything && !defects::is_active(Defect::WitnessIgnored);
            if is_last
                && looks_for_witness
                && let Some(witness) = self.witness(segment, position.at)?
            {
                let why =
                    format!("{why}, and the frame at {} was written after this was durable", witness.at);
                return Err(corrupt(segment, position.at, witness.at, why));
            }
            *segment.points.write() = points;
            // In front of the first frame the log ends where it did before this segment.
            return Ok(if frames == 0 { segment.header.before } else { position });
        }
    }

    fn frame_at(&self, segment: &Segment, position: &LogPosition) -> Result<Found, OpenError> {
        let nothing = |why: &str| Ok(Found::Nothing { why: why.to_owned() });
        let mut bytes = [0; frame::HEADER_BYTES];
        let file_position = segment.file_position(position.at);
        let read = segment.file.read_at(&mut bytes, file_position).map_err(io("read", &segment.path))?;
        if read < frame::HEADER_BYTES {
            return nothing("the file ends");
        }
        let header = match FrameHeader::decode(&bytes) {
            Ok(header) => header,
            Err(error @ FrameError::Unsupported { .. }) => {
                let to = PhysicalOffset(position.at.get() + frame::HEADER_BYTES as u64);
                return Err(corrupt(segment, position.at, to, error.to_string()));
            }
            Err(error) => return nothing(&error.to_string()),
        };
        if header.log != self.name || header.at != position.at {
            return nothing("the frame here belongs elsewhere");
        }
        let behind_watermark = position.at >= self.superblock.watermark.at;
        if header.life > self.superblock.life {
            let why = "the frame is newer than the superblock".to_owned();
            return Err(corrupt(segment, header.at, header.end(), why));
        }
        if behind_watermark && header.life < self.superblock.life {
            return nothing("the frame here was cut in an earlier life");
        }
        if header.previous_chain != position.chain || header.id.index != position.next_index() {
            let why = "the frame does not continue the one before it".to_owned();
            return Err(corrupt(segment, header.at, header.end(), why));
        }
        let len = header.payload_len as usize;
        if header.end() >= segment.limit() {
            return nothing("the frame leaves its segment");
        }
        let payload = match segment.file.map(segment.file_position(header.payload_at()), len) {
            Ok(payload) => payload,
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                return nothing("the file ends inside the frame");
            }
            Err(error) => return Err(io("read", &segment.path)(error)),
        };
        if crc32c::crc32c(&payload) != header.payload_crc {
            return nothing("the payload does not verify");
        }
        let chain = header.chain();
        Ok(Found::Frame { header, chain })
    }

    /// A frame behind `end` that proves that `end` was durable.
    fn witness(&self, segment: &Segment, end: PhysicalOffset) -> Result<Option<FrameHeader>, OpenError> {
        let file_len = segment.filled();
        let mut block = vec![0; SCAN_BYTES + frame::HEADER_BYTES];
        let mut from = segment.file_position(end);
        while from < file_len {
            let read = segment.file.read_at(&mut block, from).map_err(io("read", &segment.path))?;
            let block = block.get(..read).unwrap_or_default();
            for (skip, bytes) in windows_of_headers(block) {
                let Ok(header) = FrameHeader::decode(bytes) else { continue };
                let here = PhysicalOffset(segment.base().get() + from + skip as u64);
                if header.log != self.name || header.at != here {
                    continue;
                }
                if header.life > self.superblock.life {
                    let why = "the frame is newer than the superblock".to_owned();
                    return Err(corrupt(segment, header.at, header.end(), why));
                }
                if header.life == self.superblock.life && header.durable_before > end {
                    return Ok(Some(header));
                }
            }
            if read < SCAN_BYTES {
                break;
            }
            from += SCAN_BYTES as u64;
        }
        Ok(None)
    }
}

/// Every place in the block where a header could start, most of them passed over by their first
/// bytes.
fn windows_of_headers(block: &[u8]) -> impl Iterator<Item = (usize, &[u8; frame::HEADER_BYTES])> {
    let last = block.len().saturating_sub(frame::HEADER_BYTES);
    (0..=last).step_by(FRAME_ALIGN).filter_map(move |skip| {
        let rest = block.get(skip..)?;
        if rest.get(..4) != Some(&frame::MAGIC[..]) {
            return None;
        }
        Some((skip, rest.first_chunk()?))
    })
}

/// Reads the tail and writes the same bytes again, so that the sync behind it is about pages that
/// are known to be dirty.
fn write_again(
    segments: &BTreeMap<PhysicalOffset, Arc<Segment>>,
    from: PhysicalOffset,
    to: PhysicalOffset,
) -> Result<(), OpenError> {
    for segment in segments.values() {
        let from = from.max(segment.header.start);
        let to = to.min(segment.limit());
        if from >= to || !segment.contains(from) {
            continue;
        }
        let mut at = segment.file_position(from);
        let end = at + (to.get() - from.get());
        let mut block = vec![0; SCAN_BYTES];
        while at < end {
            let len = usize::try_from(end - at).unwrap_or(SCAN_BYTES).min(SCAN_BYTES);
            let part = block.get_mut(..len).expect("not longer than the block");
            let read = segment.file.read_at(part, at).map_err(io("read", &segment.path))?;
            let part = part.get(..read).unwrap_or_default();
            if part.is_empty() {
                break;
            }
            segment.file.write_at(part, at).map_err(io("write", &segment.path))?;
            at += read as u64;
        }
        segment.file.sync_data().map_err(io("sync", &segment.path))?;
    }
    Ok(())
}

fn corrupt(segment: &Segment, from: PhysicalOffset, to: PhysicalOffset, why: String) -> OpenError {
    let base = segment.base().get();
    OpenError::Corrupt {
        file: segment.path.clone(),
        from: from.get().saturating_sub(base),
        to: to.get().saturating_sub(base),
        why,
    }
}

fn corrupt_header(file: PathBuf, why: &str) -> OpenError {
    OpenError::Corrupt { file, from: 0, to: segment::HEADER_BYTES, why: why.to_owned() }
}

fn io(operation: &'static str, file: &Path) -> impl FnOnce(std::io::Error) -> OpenError {
    let file = file.to_path_buf();
    move |source| OpenError::Io { operation, file, source }
}
