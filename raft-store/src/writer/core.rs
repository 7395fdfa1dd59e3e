//! What the writer does with a batch of operations.
//!
//! | Operation | On the disk, in this order | Then |
//! |---|---|---|
//! | append | frames, one sync | `flushed` moves, callbacks in order |
//! | append into the next segment | sync of this one; header of the next, sync, name, directory sync; frames, sync | as above |
//! | vote, purge | superblock, both slots | the caller is told |
//! | cut | sync of what was appended before; superblock with watermark = cut and the next life; later segments removed, directory sync | `flushed` moves back, the caller is told |
//! | reset | superblock with the new start and "reset pending"; all segments removed, directory sync; new segment; superblock without the mark | the caller is told |
//! | release | superblock with the new first segment; files removed, directory sync | the caller is told |
//!
//! Each row can be interrupted anywhere: `commit_log::recovery` finishes or forgets it.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ledgermq_common::PhysicalOffset;
use tokio::time::Instant;

use super::batch::WriteBatch;
use super::{Done, Operation, WriteQueue, closed_fault};
use crate::commit_log::recovery::make_first_segment;
use crate::commit_log::{CommitLog, Flushed, PlacedFrame};
use crate::defects::{self, Defect};
use crate::io::Disk;
use crate::machine::EntryId;
use crate::position::LogPosition;
use crate::segment::{self, Preparer, Segment, SegmentHeader, SegmentOwner};
use crate::store::{OnDurable, StoreFault, VoteRecord};
use crate::superblock::{Superblock, SuperblockFile, fault};

#[derive(Debug)]
pub struct WriterCore {
    log: Arc<CommitLog>,
    disk: Arc<dyn Disk>,
    superblock_file: SuperblockFile,
    /// As on the disk, but for the hints.
    superblock: Superblock,
    preparer: Preparer,
    active: Arc<Segment>,
    /// The end of what was written, and of what was synced.
    written: LogPosition,
    durable: LogPosition,
    batch: WriteBatch,
}

/// Appends that will share a sync.
#[derive(Default)]
struct Pending {
    frames: Vec<PlacedFrame>,
    callbacks: Vec<OnDurable>,
    bytes: u64,
    room: usize,
    generation: u64,
}

impl WriterCore {
    pub fn new(
        log: Arc<CommitLog>,
        disk: Arc<dyn Disk>,
        superblock_file: SuperblockFile,
        superblock: Superblock,
        preparer: Preparer,
    ) -> Self {
        let end = superblock.watermark;
        let base = segment::base_of(end.at, log.config.segment_bytes);
        let active = log.segments().into_iter().find(|segment| segment.base() == base);
        let active = active.expect("recovery found the segment the log ends in");
        let batch = WriteBatch::default();
        Self { log, disk, superblock_file, superblock, preparer, active, written: end, durable: end, batch }
    }

    /// For a writer whose disk takes its time before it is asked for anything.
    pub fn wait_begins(&self) {
        self.log.counters.wait_begins();
    }

    /// How long to wait for work before there is time for the watermark. `None`: for ever.
    pub fn idle(&self) -> Option<Duration> {
        let behind =
            self.superblock.watermark != self.durable || self.superblock.committed != self.log.committed();
        behind.then(|| Duration::from_millis(self.log.config.watermark_idle_ms))
    }

    /// Runs all operations; breaks when the writer has to end.
    pub fn run(&mut self, operations: VecDeque<Operation>, queue: &WriteQueue) -> ControlFlow<()> {
        let idle = operations.is_empty();
        let mut operations = operations;
        let mut waiting = Pending::default();
        self.log.counters.wait_ends();
        let result = self.run_all(&mut operations, &mut waiting, idle);
        let Err(fault) = result else { return ControlFlow::Continue(()) };
        match fault {
            Ended::Closed(done) => {
                let closed = closed_fault(&self.log);
                self.log.stop(closed.clone());
                queue.stop(&closed);
                operations.into_iter().for_each(|operation| operation.refuse(&closed));
                let _ = done.send(Ok(()));
            }
            Ended::Fault(fault) => {
                // Poisoned before anybody is told, so that whoever asks again meets the fault.
                self.log.poison(fault.clone());
                queue.stop(&fault);
                waiting.callbacks.into_iter().for_each(|callback| callback(Err(fault.clone())));
                operations.into_iter().for_each(|operation| operation.refuse(&fault));
            }
        }
        ControlFlow::Break(())
    }

    fn run_all(
        &mut self,
        operations: &mut VecDeque<Operation>,
        waiting: &mut Pending,
        idle: bool,
    ) -> Result<(), Ended> {
        while let Some(operation) = operations.pop_front() {
            let other = match operation {
                Operation::Append { frames, generation, room, on_durable } => {
                    waiting.add(frames, generation, room, on_durable);
                    if waiting.bytes >= self.log.config.write_batch_bytes_max as u64 {
                        self.flush(waiting)?;
                    }
                    continue;
                }
                other => other,
            };
            self.flush(waiting)?;
            self.run_one(other)?;
        }
        self.flush(waiting)?;
        let far = self.durable.at.get().saturating_sub(self.superblock.watermark.at.get());
        if idle || far >= self.log.config.watermark_interval_bytes {
            self.log.counters.wait_begins();
            if defects::is_active(Defect::AckBeforeSync) {
                self.sync()?;
            }
            self.write_hints()?;
            self.log.counters.wait_ends();
        }
        Ok(())
    }

    fn run_one(&mut self, operation: Operation) -> Result<(), Ended> {
        self.log.counters.wait_begins();
        let (result, done) = match operation {
            Operation::Append { .. } => unreachable!("appends are collected"),
            Operation::Vote { vote, done } => (self.vote(vote), done),
            Operation::Cut { to, generation, done } => (self.cut(to, generation), done),
            Operation::Reset { to, generation, done } => (self.reset(to, generation), done),
            Operation::Purge { upto, done } => (self.purge(upto), done),
            Operation::Release { edge, done } => (self.release(edge), done),
            Operation::Close { done } => match self.close() {
                Ok(()) => return Err(Ended::Closed(done)),
                result => (result, done),
            },
        };
        self.log.counters.wait_ends();
        // Nobody may be waiting any more: what was done is done.
        match result {
            Ok(()) => {
                let _ = done.send(Ok(()));
                Ok(())
            }
            Err(fault) => {
                self.log.poison(fault.clone());
                let _ = done.send(Err(fault.clone()));
                Err(Ended::Fault(fault))
            }
        }
    }

    fn flush(&mut self, waiting: &mut Pending) -> Result<(), StoreFault> {
        if waiting.callbacks.is_empty() {
            return Ok(());
        }
        let life = self.superblock.life;
        for frame in &mut waiting.frames {
            let base = segment::base_of(frame.header.at, self.log.config.segment_bytes);
            if base != self.active.base() {
                self.write_batch()?;
                self.roll(base)?;
            }
            assert_eq!(frame.header.previous_chain, self.written.chain, "frames come in order");
            assert!(frame.header.at >= self.written.at, "nothing written is overwritten");
            frame.header.life = life;
            frame.header.durable_before = self.durable.at;
            self.batch.push(frame);
            self.written = frame.behind();
        }
        self.log.counters.wait_begins();
        self.write_batch()?;
        if defects::is_active(Defect::AckBeforeSync) {
            self.durable = self.written;
        } else {
            self.sync()?;
        }
        self.log.counters.wait_ends();

        let waiting = std::mem::take(waiting);
        self.log.counters.wrote_batch(waiting.frames.len() as u64, waiting.bytes);
        self.log.publish_flushed(&Flushed {
            frames: &waiting.frames,
            upto: self.durable,
            generation: waiting.generation,
        });
        self.log.room.add_permits(waiting.room);
        waiting.callbacks.into_iter().for_each(|callback| callback(Ok(())));

        let position = self.active.file_position(self.written.at);
        if position >= self.log.config.segment_bytes / 2 {
            self.preparer.request(position);
        }
        self.preparer.keep_ahead(&self.active, position)
    }

    fn write_batch(&mut self) -> Result<(), StoreFault> {
        let Some(start) = self.batch.start() else { return Ok(()) };
        let active = &self.active;
        let end = active.file_position(self.batch.end());
        // Before the bytes, never after: whoever fills later must find them already covered.
        active.fill_to(end, u64::MAX, || Ok(true)).map_err(fault("write", &active.path))?;
        let at = active.file_position(start);
        active.file.write_vectored_at(&self.batch.slices(), at).map_err(fault("write", &active.path))?;
        self.batch.clear();
        Ok(())
    }

    fn sync(&mut self) -> Result<(), StoreFault> {
        let started = Instant::now();
        self.sync_active().map_err(fault("sync", &self.active.path))?;
        self.log.counters.synced(started.elapsed());
        self.durable = self.written;
        Ok(())
    }

    fn sync_active(&self) -> std::io::Result<()> {
        match self.active.file.sync_data() {
            Err(_) if defects::is_active(Defect::FlushedThoughSyncFailed) => Ok(()),
            Err(_) if defects::is_active(Defect::SyncRetried) => self.active.file.sync_data(),
            result => result,
        }
    }

    /// Goes on in the next segment. Its name on the disk says that this one is complete.
    fn roll(&mut self, base: PhysicalOffset) -> Result<(), StoreFault> {
        assert_eq!(base, self.active.limit(), "segments follow each other");
        self.sync()?;
        let header = SegmentHeader {
            owner: SegmentOwner::of(&self.log.identity),
            base,
            start: PhysicalOffset(base.get() + segment::HEADER_BYTES),
            segment_bytes: self.log.config.segment_bytes,
            before: self.written,
            life: self.superblock.life,
        };
        let prepared = self.preparer.take()?;
        let next = Segment::make(&*self.disk, &self.log.config.directory, prepared, header)?;
        self.active = Arc::new(next);
        self.log.publish_segment(Arc::clone(&self.active));
        // Before anything in it is acknowledged: a start that finds it gone will know.
        self.superblock.last_segment = base;
        self.write_hints()
    }

    fn vote(&mut self, vote: VoteRecord) -> Result<(), StoreFault> {
        if !defects::is_active(Defect::VoteNotWritten) {
            self.superblock.vote = Some(vote);
            self.write_promise()?;
        }
        self.log.publish_vote(vote);
        Ok(())
    }

    fn purge(&mut self, upto: EntryId) -> Result<(), StoreFault> {
        if self.superblock.purged.is_some_and(|purged| purged.index >= upto.index) {
            return Ok(());
        }
        self.superblock.purged = Some(upto);
        self.write_promise()?;
        self.log.publish_purged(upto);
        Ok(())
    }

    fn cut(&mut self, to: LogPosition, generation: u64) -> Result<(), StoreFault> {
        assert!(to.at <= self.durable.at, "what a cut keeps was synced before it");
        self.durable = to;
        self.written = to;
        if !defects::is_active(Defect::LifeNotRaised) {
            self.next_life();
        }
        let last_base = segment::base_of(to.at, self.log.config.segment_bytes);
        self.superblock.last_segment = last_base;
        if !defects::is_active(Defect::CutInMemory) {
            self.write_promise()?;
        }

        let segments = self.log.segments();
        let (kept, removed): (Vec<_>, Vec<_>) = segments.into_iter().partition(|s| s.base() <= last_base);
        self.remove(&removed)?;
        self.active = kept.into_iter().next_back().expect("the cut lies in a segment");
        assert_eq!(self.active.base(), last_base, "the cut lies in a segment");
        self.log.publish_cut(to, generation);
        Ok(())
    }

    fn reset(&mut self, to: LogPosition, generation: u64) -> Result<(), StoreFault> {
        self.durable = to;
        self.written = to;
        self.next_life();
        self.superblock.first_segment = segment::base_of(to.at, self.log.config.segment_bytes);
        self.superblock.last_segment = self.superblock.first_segment;
        self.superblock.purged = to.last;
        self.superblock.reset_pending = !defects::is_active(Defect::ResetUnmarked);
        self.write_promise()?;

        // By the directory, not by the list in memory: the reset emptied that already.
        let directory = self.log.config.directory.clone();
        let names = self.disk.list(&directory).map_err(fault("list", &directory))?;
        let segments = names.iter().filter(|name| segment::base_from_file_name(name).is_some());
        for name in segments {
            let path = directory.join(name);
            self.disk.remove(&path).map_err(fault("remove", &path))?;
        }
        self.sync_directory(&directory)?;
        // Taken from the preparer if it has one: both use the same temporary name.
        let first =
            make_first_segment(&*self.disk, &self.log.config, &self.superblock, self.preparer.take()?)?;
        self.active = Arc::new(first);
        self.superblock.reset_pending = false;
        self.write_promise()?;
        self.log.publish_segment(Arc::clone(&self.active));
        self.log.publish_cut(to, generation);
        Ok(())
    }

    fn release(&mut self, edge: PhysicalOffset) -> Result<(), StoreFault> {
        let Some(purged) = self.superblock.purged else { return Ok(()) };
        let segments = self.log.segments();
        // A segment goes if all of it is below the edge and its last entry, which the next segment
        // knows, is purged. The one that is written to has no next.
        let going = segments.iter().zip(segments.iter().skip(1)).take_while(|(segment, next)| {
            let last = next.header.before.last;
            segment.limit() <= edge && last.is_none_or(|last| last.index <= purged.index)
        });
        let removed: Vec<Arc<Segment>> = going.map(|(segment, _)| Arc::clone(segment)).collect();
        let Some(first_segment) = removed.last().map(|last| last.limit()) else { return Ok(()) };
        assert!(first_segment <= self.active.base(), "the segment in use stays");
        if defects::is_active(Defect::ReleaseBeforePromise) {
            self.remove(&removed)?;
        }
        self.superblock.first_segment = first_segment;
        self.write_promise()?;
        self.log.publish_released(first_segment);
        if defects::is_active(Defect::ReleaseBeforePromise) {
            return Ok(());
        }
        self.remove(&removed)
    }

    fn close(&mut self) -> Result<(), StoreFault> {
        self.preparer.discard()?;
        self.superblock.clean = true;
        self.write_promise()
    }

    fn next_life(&mut self) {
        self.superblock.life = self.superblock.life.checked_add(1).expect("2^32 lives");
    }

    fn remove(&mut self, segments: &[Arc<Segment>]) -> Result<(), StoreFault> {
        if segments.is_empty() {
            return Ok(());
        }
        for segment in segments {
            self.disk.remove(&segment.path).map_err(fault("remove", &segment.path))?;
        }
        let directory = self.log.config.directory.clone();
        self.sync_directory(&directory)
    }

    fn sync_directory(&self, directory: &Path) -> Result<(), StoreFault> {
        self.disk.sync_directory(directory).map_err(fault("sync", directory))
    }

    fn write_promise(&mut self) -> Result<(), StoreFault> {
        self.take_hints();
        self.superblock_file.write_promise(&self.superblock)
    }

    fn write_hints(&mut self) -> Result<(), StoreFault> {
        self.take_hints();
        self.superblock_file.write_hint(&self.superblock)
    }

    /// Every write of the superblock carries what is known by then.
    fn take_hints(&mut self) {
        self.superblock.watermark = self.durable;
        self.superblock.committed = self.log.committed();
    }
}

/// Why the writer ends.
enum Ended {
    Closed(Done),
    Fault(StoreFault),
}

impl From<StoreFault> for Ended {
    fn from(fault: StoreFault) -> Self {
        Self::Fault(fault)
    }
}

impl Pending {
    fn add(&mut self, frames: Vec<PlacedFrame>, generation: u64, room: u32, on_durable: OnDurable) {
        assert!(
            self.callbacks.is_empty() || self.generation == generation,
            "a cut lies between appends of different generations"
        );
        self.generation = generation;
        let bytes = |frame: &PlacedFrame| frame.header.end().get() - frame.header.at.get();
        self.bytes += frames.iter().map(bytes).sum::<u64>();
        self.frames.extend(frames);
        self.callbacks.push(on_durable);
        self.room += room as usize;
    }
}
