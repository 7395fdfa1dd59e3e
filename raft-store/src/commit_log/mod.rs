//! The log in memory: where it ends, what of it is durable, and where each entry is found.
//!
//! One lock guards the positions; it is held for memory work only. Files are read outside of it.
//!
//! `generation` counts the cuts. What was queued before a cut becomes durable without moving
//! `flushed`, and a read that met bytes of a cut entry is tried again instead of being called
//! corrupt.
//!
//! Invariants, asserted where they are relied on:
//! - `flushed.at ≤ end.at`; entries behind `flushed` are all in the tail cache.
//! - `applied ≤ end`: nothing applied is ever cut.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use ledgermq_common::{LogIndex, PhysicalOffset};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};

use crate::frame::{self, FrameHeader, LogName};
use crate::machine::EntryId;
use crate::position::LogPosition;
use crate::segment::{self, Segment};
use crate::store::{AppendError, Identity, NewEntry, StoreConfig, StoreFault, StoredEntry, VoteRecord};
use crate::tail_cache::{CachedEntry, TailCache};

pub mod read;
pub mod recovery;
pub mod scrub;
pub mod stats;

use recovery::Recovered;
use stats::WriteCounters;

/// Shared by the handles and the writer.
#[derive(Debug)]
pub struct CommitLog {
    pub identity: Identity,
    /// With the segment size of the directory.
    pub config: StoreConfig,
    pub name: LogName,
    pub counters: WriteCounters,
    /// Bytes the write queue has room for.
    pub room: Semaphore,
    inner: Mutex<Inner>,
    flushed: watch::Sender<Option<EntryId>>,
    fault: watch::Sender<Option<StoreFault>>,
}

#[derive(Debug)]
struct Inner {
    end: LogPosition,
    flushed: LogPosition,
    generation: u64,
    cache: TailCache,
    segments: BTreeMap<PhysicalOffset, Arc<Segment>>,
    applied: Option<LogIndex>,
    vote: Option<VoteRecord>,
    committed: Option<EntryId>,
    purged: Option<EntryId>,
    /// Why nothing is taken any more: poisoned or closed.
    stopped: Option<StoreFault>,
}

/// An entry with its place, on its way to the writer.
#[derive(Debug)]
pub struct PlacedFrame {
    /// `durable_before` and `life` are the writer's to set.
    pub header: FrameHeader,
    pub chain: u64,
    pub payload: Bytes,
}

impl PlacedFrame {
    pub fn behind(&self) -> LogPosition {
        LogPosition { at: self.header.end(), last: Some(self.header.id), chain: self.chain }
    }
}

/// What the writer made durable with one sync.
#[derive(Debug)]
pub struct Flushed<'a> {
    pub frames: &'a [PlacedFrame],
    pub upto: LogPosition,
    pub generation: u64,
}

impl CommitLog {
    pub fn new(identity: Identity, config: StoreConfig, recovered: &Recovered) -> Self {
        let superblock = &recovered.superblock;
        let inner = Inner {
            end: recovered.end,
            flushed: recovered.end,
            generation: 0,
            cache: TailCache::new(config.tail_cache_bytes_max),
            segments: recovered.segments.clone(),
            applied: None,
            vote: superblock.vote,
            committed: superblock.committed,
            purged: superblock.purged,
            stopped: None,
        };
        Self {
            name: LogName::of(&identity),
            identity,
            counters: WriteCounters::default(),
            room: Semaphore::new(config.write_queue_bytes_max),
            config,
            inner: Mutex::new(inner),
            flushed: watch::Sender::new(recovered.end.last),
            fault: watch::Sender::new(None),
        }
    }

    /// Places the entries behind the log and hands their frames to `queue`, under the lock: the
    /// order of the queue is the order of the log.
    pub fn append(
        &self,
        entries: Vec<NewEntry>,
        queue: impl FnOnce(Vec<PlacedFrame>, u64),
    ) -> Result<Vec<PhysicalOffset>, AppendError> {
        let bytes_max = segment::payload_bytes_max(self.config.segment_bytes);
        let mut checksums = Vec::with_capacity(entries.len());
        for entry in &entries {
            if entry.payload.len() > bytes_max {
                return Err(AppendError::TooLarge { bytes: entry.payload.len(), bytes_max });
            }
            checksums.push(crc32c::crc32c(&entry.payload));
        }

        let mut inner = self.inner.lock();
        inner.refuse_when_stopped()?;
        let mut before = inner.end.last;
        for entry in &entries {
            let index = before.map_or(LogIndex(0), |last| last.index.next());
            let term_goes_on = before.is_none_or(|last| last.term <= entry.id.term);
            if entry.id.index != index || !term_goes_on {
                return Err(AppendError::OutOfOrder { last: before, got: entry.id });
            }
            before = Some(entry.id);
        }

        let mut frames = Vec::with_capacity(entries.len());
        let mut places = Vec::with_capacity(entries.len());
        for (entry, payload_crc) in entries.into_iter().zip(checksums) {
            let frame = inner.place(self.name, self.config.segment_bytes, entry, payload_crc);
            places.push(frame.header.payload_at());
            frames.push(frame);
        }
        queue(frames, inner.generation);
        Ok(places)
    }

    /// Cuts the log in memory; `queue` gets the position it ends at now. Answers are visible at
    /// once, durability is the writer's.
    pub fn cut(&self, to: LogPosition, queue: impl FnOnce(u64)) -> Result<(), StoreFault> {
        let mut inner = self.inner.lock();
        inner.refuse_when_stopped()?;
        if let Some(applied) = inner.applied {
            assert!(to.next_index() > applied, "applied entry {applied} is never cut");
        }
        assert!(to.at <= inner.end.at, "a cut does not make the log longer");
        inner.generation += 1;
        inner.end = to;
        inner.cache.cut(to.next_index());
        if inner.flushed.at > to.at {
            inner.flushed = to;
            // Told at once, although the cut is not durable yet: the entries behind it are gone.
            self.flushed.send_replace(to.last);
        }
        queue(inner.generation);
        Ok(())
    }

    /// Starts the log anew behind a snapshot.
    pub fn reset(&self, to: LogPosition, queue: impl FnOnce(u64)) -> Result<(), StoreFault> {
        let mut inner = self.inner.lock();
        inner.refuse_when_stopped()?;
        inner.generation += 1;
        inner.end = to;
        inner.flushed = to;
        inner.cache.clear();
        inner.segments.clear();
        inner.purged = to.last;
        queue(inner.generation);
        Ok(())
    }

    /// Takes note of what the writer made durable.
    pub fn publish_flushed(&self, flushed: &Flushed<'_>) {
        let mut inner = self.inner.lock();
        if flushed.generation != inner.generation {
            return;
        }
        assert!(flushed.upto.at <= inner.end.at, "only what was appended becomes durable");
        inner.flushed = flushed.upto;
        for frame in flushed.frames {
            let (index, at) = (frame.header.id.index, frame.header.at);
            if let Some(segment) = inner.segment_at(at) {
                segment.points.write().add(index, at);
            }
        }
        inner.evict();
        // Under the lock, so that a cut which comes meanwhile has the last word.
        self.flushed.send_replace(flushed.upto.last);
    }

    /// Takes note of a durable cut: files and points behind it are gone.
    pub fn publish_cut(&self, to: LogPosition, generation: u64) {
        let mut inner = self.inner.lock();
        inner.segments.retain(|base, _| *base <= to.at);
        if let Some((_, last)) = inner.segments.last_key_value() {
            last.points.write().cut(to.at);
        }
        if generation == inner.generation {
            inner.flushed = to;
        }
        let last = inner.flushed.last;
        drop(inner);
        self.flushed.send_replace(last);
    }

    pub fn publish_segment(&self, segment: Arc<Segment>) {
        self.inner.lock().segments.insert(segment.base(), segment);
    }

    pub fn publish_released(&self, first_segment: PhysicalOffset) {
        self.inner.lock().segments.retain(|base, _| *base >= first_segment);
    }

    pub fn publish_vote(&self, vote: VoteRecord) {
        self.inner.lock().vote = Some(vote);
    }

    pub fn publish_purged(&self, purged: EntryId) {
        self.inner.lock().purged = Some(purged);
    }

    /// Ends the store: `fault` is told to everybody who waits or comes later.
    pub fn poison(&self, fault: StoreFault) {
        if self.fault.borrow().is_some() {
            return;
        }
        tracing::error!(%fault, "the log store is poisoned");
        self.stop(fault.clone());
        self.fault.send_replace(Some(fault));
    }

    /// Takes nothing any more, without being broken.
    pub fn stop(&self, reason: StoreFault) {
        self.inner.lock().stopped.get_or_insert(reason);
        self.room.close();
    }

    pub fn stopped(&self) -> Option<StoreFault> {
        self.inner.lock().stopped.clone()
    }

    pub fn applied(&self, index: LogIndex) {
        let mut inner = self.inner.lock();
        if inner.applied.is_none_or(|applied| applied < index) {
            inner.applied = Some(index);
            inner.evict();
        }
    }

    pub fn save_committed(&self, committed: Option<EntryId>) {
        self.inner.lock().committed = committed;
    }

    pub fn committed(&self) -> Option<EntryId> {
        self.inner.lock().committed
    }

    pub fn vote(&self) -> Option<VoteRecord> {
        self.inner.lock().vote
    }

    pub fn purged(&self) -> Option<EntryId> {
        self.inner.lock().purged
    }

    pub fn end(&self) -> LogPosition {
        self.inner.lock().end
    }

    pub fn flushed(&self) -> watch::Receiver<Option<EntryId>> {
        self.flushed.subscribe()
    }

    /// What the watch holds, copied: whoever kept it borrowed and asked for anything else of the log
    /// would wait for the writer, which publishes under the log's lock and would wait for the borrow.
    pub fn flushed_upto(&self) -> Option<EntryId> {
        *self.flushed.borrow()
    }

    pub fn fault(&self) -> watch::Receiver<Option<StoreFault>> {
        self.fault.subscribe()
    }

    pub fn segments(&self) -> Vec<Arc<Segment>> {
        self.inner.lock().segments.values().cloned().collect()
    }
}

impl Inner {
    fn refuse_when_stopped(&self) -> Result<(), StoreFault> {
        self.stopped.clone().map_or(Ok(()), Err)
    }

    fn place(&mut self, log: LogName, segment_bytes: u64, entry: NewEntry, payload_crc: u32) -> PlacedFrame {
        let bytes = frame::frame_bytes(entry.payload.len());
        let header = FrameHeader {
            log,
            kind: entry.kind,
            id: entry.id,
            leader_node: 0,
            at: segment::place(self.end.at, bytes, segment_bytes),
            previous_chain: self.end.chain,
            payload_len: u32::try_from(entry.payload.len()).expect("checked against the segment size"),
            payload_crc,
            durable_before: PhysicalOffset(0),
            life: 0,
        };
        let chain = header.chain();
        let frame = PlacedFrame { header, chain, payload: entry.payload.clone() };
        let stored = StoredEntry {
            id: entry.id,
            leader_node: 0,
            kind: entry.kind,
            payload: entry.payload,
            payload_at: frame.header.payload_at(),
        };
        self.end = frame.behind();
        self.cache.push(CachedEntry { entry: stored, behind: self.end });
        frame
    }

    fn evict(&mut self) {
        self.cache.evict(self.flushed.last.map(|last| last.index), self.applied);
    }

    fn segment_at(&self, at: PhysicalOffset) -> Option<&Arc<Segment>> {
        let (_, segment) = self.segments.range(..=at).next_back()?;
        segment.contains(at).then_some(segment)
    }
}
