//! Reading: the tail cache first, else the flushed part of a segment.
//!
//! Nothing read from a file is handed out unverified: entries are checked one by one, message bytes
//! once per region of the segment (see `segment::points`).

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use ledgermq_common::{LogIndex, PhysicalOffset};

use super::{CommitLog, Inner};
use crate::frame::FrameHeader;
use crate::machine::EntryId;
use crate::position::LogPosition;
use crate::segment::cursor::Stability;
use crate::segment::{FrameCursor, Point, PointTable, Segment};
use crate::store::{ReadError, StoredEntry};

/// Where on the disk to look, as of one moment.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) segment: Arc<Segment>,
    /// The log in this segment ends here: at the next segment, or at what is flushed.
    pub(super) end: LogPosition,
    applied: Option<LogIndex>,
    pub(super) generation: u64,
}

impl Place {
    fn stability(&self, index: LogIndex) -> Stability {
        match self.applied {
            Some(applied) if index <= applied => Stability::Stable,
            _ => Stability::MayBeCut,
        }
    }
}

enum Lookup<T> {
    Cached(T),
    OnDisk(Place),
}

impl CommitLog {
    pub fn read(&self, range: Range<LogIndex>, bytes_max: usize) -> Result<Vec<StoredEntry>, ReadError> {
        self.retry_after_cut(
            |inner| {
                if range.start >= range.end || range.start >= inner.end.next_index() {
                    return Ok(Lookup::Cached(Vec::new()));
                }
                let mut budget = ByteBudget::new(bytes_max);
                let cached = inner.cache.from(range.start).map(|cached| &cached.entry);
                let cached: Vec<StoredEntry> = cached
                    .take_while(|entry| entry.id.index < range.end && budget.takes(entry.payload.len()))
                    .cloned()
                    .collect();
                if !cached.is_empty() {
                    return Ok(Lookup::Cached(cached));
                }
                inner.place_of_index(range.start).map(Lookup::OnDisk)
            },
            |place| self.read_entries(place, range.clone(), bytes_max),
        )
    }

    pub fn read_bytes(&self, at: PhysicalOffset, len: u32) -> Result<Bytes, ReadError> {
        self.retry_after_cut(
            |inner| {
                if let Some(cached) = inner.cache.at_offset(at) {
                    let from =
                        usize::try_from(at.get() - cached.entry.payload_at.get()).unwrap_or(usize::MAX);
                    let to = from.saturating_add(len as usize);
                    if to > cached.entry.payload.len() {
                        return Err(ReadError::Beyond { at, len });
                    }
                    return Ok(Lookup::Cached(cached.entry.payload.slice(from..to)));
                }
                inner.place_of_offset(at, len).map(Lookup::OnDisk)
            },
            |place| self.read_message(place, at, len),
        )
    }

    /// The entry whose payload has the byte at `at`.
    pub fn index_of(&self, at: PhysicalOffset) -> Result<LogIndex, ReadError> {
        self.retry_after_cut(
            |inner| match inner.cache.at_offset(at) {
                Some(cached) => Ok(Lookup::Cached(cached.entry.id.index)),
                None => inner.place_of_offset(at, 1).map(Lookup::OnDisk),
            },
            |place| {
                let segment = &place.segment;
                self.complete_points(place)?;
                let point = segment.points.read().around_offset(at).map(|(point, _)| point);
                let point = point.unwrap_or_else(|| start_of(segment));
                let mut cursor = FrameCursor::new(segment, self.name, point.at, point.index);
                while cursor.at() < place.end.at {
                    let header = cursor.step()?;
                    let end = header.payload_at().get() + u64::from(header.payload_len);
                    if header.payload_at() <= at && at.get() < end {
                        return Ok(header.id.index);
                    }
                    if cursor.at() > at {
                        break;
                    }
                }
                Err(ReadError::Beyond { at, len: 1 })
            },
        )
    }

    pub fn entry_id_at(&self, index: LogIndex) -> Result<Option<EntryId>, ReadError> {
        // Of a released entry the purge pointer may still know the id.
        if let Some(purged) = self.purged().filter(|purged| purged.index == index) {
            return Ok(Some(purged));
        }
        Ok(self.position_behind(index)?.and_then(|position| position.last))
    }

    /// The log behind the entry at `index`, if that entry is known.
    pub fn position_behind(&self, index: LogIndex) -> Result<Option<LogPosition>, ReadError> {
        self.retry_after_cut(
            |inner| {
                if let Some(last) = inner.end.last.filter(|last| last.index <= index) {
                    return Ok(Lookup::Cached((last.index == index).then_some(inner.end)));
                }
                if inner.end.last.is_none() {
                    return Ok(Lookup::Cached(None));
                }
                if let Some(cached) = inner.cache.get(index) {
                    return Ok(Lookup::Cached(Some(cached.behind)));
                }
                // The first segment knows the entry before it, whose frame is not here.
                let (_, first) = inner.segments.first_key_value().expect("an open log has a segment");
                if first.header.before.last.is_some_and(|last| last.index == index) {
                    return Ok(Lookup::Cached(Some(first.header.before)));
                }
                match inner.place_of_index(index) {
                    Err(ReadError::ReleasedEntry { .. }) => Ok(Lookup::Cached(None)),
                    other => other.map(Lookup::OnDisk),
                }
            },
            |place| {
                let header = self.seek_index(place, index)?.peek()?;
                let last = Some(header.id);
                Ok(Some(LogPosition { at: header.end(), last, chain: header.chain() }))
            },
        )
    }

    /// Where the log begins: in front of the oldest entry.
    pub fn begin(&self) -> LogPosition {
        let inner = self.inner.lock();
        inner.segments.first_key_value().map_or(inner.end, |(_, first)| first.header.before)
    }

    pub fn physical_start(&self) -> PhysicalOffset {
        let inner = self.inner.lock();
        inner.segments.first_key_value().map_or(inner.end.at, |(_, first)| first.header.start)
    }

    /// Reads every frame of the flushed log, with its checksum and its chain.
    pub fn verify_all(&self) -> Result<(), ReadError> {
        for segment in self.segments() {
            let place = {
                let inner = self.inner.lock();
                if !inner.segments.contains_key(&segment.base()) {
                    continue;
                }
                inner.place_in(Arc::clone(&segment))
            };
            let before = segment.header.before;
            let mut chain = before.chain;
            let mut cursor = FrameCursor::new(&segment, self.name, segment.header.start, before.next_index());
            while cursor.at() < place.end.at {
                chain = step_verified(&mut cursor, &segment, chain)?.chain();
            }
            if chain != place.end.chain {
                return Err(broken_chain(&segment, cursor.at()));
            }
        }
        Ok(())
    }

    /// Looks up under the lock, reads outside. A cut in between may have put other bytes where the
    /// read looked, so what it says is only believed if there was none.
    fn retry_after_cut<T>(
        &self,
        look_up: impl Fn(&Inner) -> Result<Lookup<T>, ReadError>,
        read: impl Fn(&Place) -> Result<T, ReadError>,
    ) -> Result<T, ReadError> {
        loop {
            let looked_up = look_up(&self.inner.lock());
            let place = match looked_up? {
                Lookup::Cached(found) => return Ok(found),
                Lookup::OnDisk(place) => place,
            };
            let result = read(&place);
            if self.inner.lock().generation == place.generation {
                return result;
            }
        }
    }

    fn read_entries(
        &self,
        place: &Place,
        range: Range<LogIndex>,
        bytes_max: usize,
    ) -> Result<Vec<StoredEntry>, ReadError> {
        let mut cursor = self.seek_index(place, range.start)?;
        let mut budget = ByteBudget::new(bytes_max);
        let mut entries = Vec::new();
        while cursor.index() < range.end && cursor.at() < place.end.at {
            let header = cursor.step()?;
            if !budget.takes(header.payload_len as usize) {
                break;
            }
            let payload = cursor.payload(&header, place.stability(header.id.index))?;
            entries.push(StoredEntry {
                id: header.id,
                leader_node: header.leader_node,
                kind: header.kind,
                payload,
                payload_at: header.payload_at(),
            });
        }
        Ok(entries)
    }

    fn read_message(&self, place: &Place, at: PhysicalOffset, len: u32) -> Result<Bytes, ReadError> {
        let segment = &place.segment;
        self.complete_points(place)?;
        let (point, next) = {
            let points = segment.points.read();
            points.around_offset(at).unwrap_or_else(|| (start_of(segment), points.first()))
        };
        let end = at.get().saturating_add(u64::from(len));
        if point.verified && next.is_some_and(|next| end <= next.at.get()) {
            let position = segment.file_position(at);
            return segment.file.map(position, len as usize).map_err(|source| io(segment, source));
        }

        // The whole region is verified once if it cannot change any more; else just this frame.
        let settled =
            next.filter(|next| place.applied.is_some_and(|applied| next.index.get() <= applied.get()));
        let mut cursor = FrameCursor::new(segment, self.name, point.at, point.index);
        let mut found = None;
        let stop = settled.map_or(place.end.at, |next| next.at);
        while cursor.at() < stop {
            let header = cursor.step()?;
            let inside =
                header.payload_at() <= at && end <= header.payload_at().get() + u64::from(header.payload_len);
            if inside || settled.is_some() {
                let payload = cursor.payload(&header, place.stability(header.id.index))?;
                if inside {
                    let from = usize::try_from(at.get() - header.payload_at().get()).unwrap_or(usize::MAX);
                    found = Some(payload.slice(from..from + len as usize));
                }
            }
            if cursor.at() > at && settled.is_none() {
                break;
            }
        }
        if settled.is_some() {
            segment.points.write().set_verified(point.at);
        }
        found.ok_or(ReadError::Beyond { at, len })
    }

    /// A cursor in front of an entry that is in the segment.
    fn seek_index<'a>(&self, place: &'a Place, index: LogIndex) -> Result<FrameCursor<'a>, ReadError> {
        let segment = &*place.segment;
        let known = segment.points.read().around_index(index);
        let from = match known {
            Some((point, _)) => point,
            None => {
                self.complete_points(place)?;
                let around = segment.points.read().around_index(index);
                around.map_or_else(|| start_of(segment), |(point, _)| point)
            }
        };
        let mut cursor = FrameCursor::new(segment, self.name, from.at, from.index);
        while cursor.index() < index {
            cursor.step()?;
        }
        Ok(cursor)
    }

    /// Walks the part of a segment from before this start, once.
    fn complete_points(&self, place: &Place) -> Result<(), ReadError> {
        let segment = &*place.segment;
        if segment.points.read().is_complete() {
            return Ok(());
        }
        let _scanning = segment.scan.lock();
        let first_known = {
            let points = segment.points.read();
            if points.is_complete() {
                return Ok(());
            }
            points.first()
        };
        let stop = first_known.map_or(place.end.at, |point| point.at);
        let mut head = PointTable::complete();
        let start = start_of(segment);
        let mut cursor = FrameCursor::new(segment, self.name, start.at, start.index);
        while cursor.at() < stop {
            let header = cursor.step()?;
            head.add(header.id.index, header.at);
        }
        segment.points.write().complete_with(head.into_points());
        Ok(())
    }
}

impl Inner {
    pub(super) fn place_of_index(&self, index: LogIndex) -> Result<Place, ReadError> {
        let holds = self.segments.values().rev().find(|segment| segment.header.before.next_index() <= index);
        let Some(segment) = holds else {
            let first = self.segments.values().next();
            let oldest = first.map_or(self.end.next_index(), |first| first.header.before.next_index());
            return Err(ReadError::ReleasedEntry { oldest, index });
        };
        assert!(index < self.flushed.next_index(), "entry {index} is durable or in the tail cache");
        Ok(self.place_in(Arc::clone(segment)))
    }

    fn place_of_offset(&self, at: PhysicalOffset, len: u32) -> Result<Place, ReadError> {
        let start = self.segments.values().next().map_or(self.end.at, |first| first.header.start);
        if at < start {
            return Err(ReadError::Released { start, at });
        }
        let place = self.segment_at(at).map(|segment| self.place_in(Arc::clone(segment)));
        place
            .filter(|place| place.segment.header.start <= at)
            .filter(|place| at.get().saturating_add(u64::from(len)) <= place.end.at.get())
            .ok_or(ReadError::Beyond { at, len })
    }

    fn place_in(&self, segment: Arc<Segment>) -> Place {
        let next = self.segments.range(segment.limit()..).next();
        let end = next.map_or(self.flushed, |(_, next)| next.header.before);
        // Behind a cut the next segment is still listed until the writer has removed it.
        let end = if self.flushed.at < end.at { self.flushed } else { end };
        Place { segment, end, applied: self.applied, generation: self.generation }
    }
}

fn start_of(segment: &Segment) -> Point {
    let header = &segment.header;
    Point { index: header.before.next_index(), at: header.start, verified: false }
}

fn io(segment: &Segment, source: std::io::Error) -> ReadError {
    ReadError::Io { file: segment.path.clone(), source }
}

/// The header of the frame here, whose payload verifies and which continues the chain; steps behind it.
pub(super) fn step_verified(
    cursor: &mut FrameCursor<'_>,
    segment: &Segment,
    chain: u64,
) -> Result<FrameHeader, ReadError> {
    let header = cursor.step()?;
    cursor.payload(&header, Stability::MayBeCut)?;
    match header.previous_chain == chain {
        true => Ok(header),
        false => Err(broken_chain(segment, header.at)),
    }
}

fn broken_chain(segment: &Segment, at: PhysicalOffset) -> ReadError {
    let from = segment.file_position(at);
    let why = "the frame does not continue the one before it".to_owned();
    ReadError::Corrupt { file: segment.path.clone(), from, to: from, why }
}

/// Lets the first payload pass whatever its length, then up to the limit.
#[derive(Debug)]
struct ByteBudget {
    taken: usize,
    bytes_max: usize,
    first: bool,
}

impl ByteBudget {
    fn new(bytes_max: usize) -> Self {
        Self { taken: 0, bytes_max, first: true }
    }

    fn takes(&mut self, bytes: usize) -> bool {
        self.taken = self.taken.saturating_add(bytes);
        std::mem::take(&mut self.first) || self.taken <= self.bytes_max
    }
}
