//! Makes the next segment before it is needed, and writes zeros ahead of the appends in this one.
//!
//! Both exist so that a sync after an append has no metadata to write. A durable 4 KiB append, one
//! writer, on a 2-core virtual machine (ext4 on a virtio disk), all ways in turn within one run of
//! `examples/log_figures.rs`:
//!
//! | File | p50 | p99 |
//! |---|---|---|
//! | growing, fdatasync | 116 us | 195 us |
//! | fallocated, never written, fdatasync | 110 us | 154 us |
//! | zero-filled, fdatasync | 71 us | 114 us |
//! | zero-filled, O_DSYNC | 70 us | 110 us |
//!
//! (The store itself, in the same run: 94 us with one append in flight; 151,000 entries/s with 64.)
//! When the disk is the bottleneck the ways come closer: with twelve compilers running beside it
//! growing took 5.5 ms, fallocated 3.9, zero-filled 4.0, zero-filled with O_DSYNC 3.8. O_DIRECT saved
//! 4 us more elsewhere, which is not worth its alignment rules, and O_DSYNC would sync each of a
//! batch's calls by itself.
//!
//! Filling a whole segment at once would stall the start (1 GiB is seconds), and zeros written while
//! appends go to the same file cost those appends a journal commit and a wait for the zeros. So:
//!
//! - the next segment is filled to its end while this one is in use: another inode, so its zeros
//!   and its commits are not in the way of a sync of this one;
//! - only a segment that had to be used before it was full of zeros (the first of a log, one found
//!   at a start, one taken early) is filled behind the back of its appends, once, to its end;
//! - the next segment is asked for when half of this one is used. From then on its zeros follow the
//!   appends, so that they are all there when [`FILLED_AT`] of the rest is used, and no burst of them
//!   fills the queue of the disk: 32 MiB at once and the rest without a pause, by three replicas of one
//!   disk, kept every sync waiting for up to 190 ms;
//! - behind the appends it keeps to [`FILL_BYTES_PER_S`] as long as there are [`FILL_MARGIN_BYTES`] of
//!   zeros ahead of them, and hurries when there are not;
//! - a segment that is needed is handed over at once, however little of it is filled. An append that
//!   overtakes the zeros fills the gap itself: slower, never wrong.
//!
//! Segments are not recycled, although that would save the zeros: a reader may hold mapped bytes of
//! a released file, which must not change under it.
//!
//! The simulation has no thread: there the writer does the work itself when it is due.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::{HEADER_BYTES, Segment, TEMPORARY_NAME};
use crate::io::{Disk, DiskFile};
use crate::store::{StoreConfig, StoreFault};
use crate::superblock::fault;

/// How fast zeros are written while nobody is short of them.
const FILL_BYTES_PER_S: u64 = 64 << 20;
/// With fewer zeros than this ahead of the appends, or a quarter of a segment, filling does not pause.
const FILL_MARGIN_BYTES: u64 = 16 << 20;
/// The next segment has so much more of zeros than follows from the appends in this one.
const FILL_LEAD_BYTES: u64 = 4 << 20;
/// All of the next segment is filled when this share is used of what was left when it was asked for.
const FILLED_AT: f64 = 0.8;
/// One write and sync of zeros. Small, because an append that syncs meanwhile waits for them.
const FILL_PIECE_BYTES: u64 = 1 << 20;

/// A file with space and zeros, under the temporary name.
#[derive(Debug)]
pub struct Prepared {
    pub file: Arc<dyn DiskFile>,
    pub fill_file: Arc<dyn DiskFile>,
    pub path: PathBuf,
    pub filled: u64,
}

#[derive(Debug, Clone)]
pub struct PreparePlan {
    pub directory: PathBuf,
    pub segment_bytes: u64,
    pub fill_ahead_bytes: u64,
}

impl PreparePlan {
    pub fn of(config: &StoreConfig) -> Self {
        Self {
            directory: config.directory.clone(),
            segment_bytes: config.segment_bytes,
            fill_ahead_bytes: config.fill_ahead_bytes,
        }
    }
}

#[derive(Debug)]
pub struct Preparer {
    disk: Arc<dyn Disk>,
    plan: PreparePlan,
    thread: Option<PrepareThread>,
    /// A file was asked for and not taken yet.
    requested: bool,
    /// The segment (by its base) whose filling was asked for.
    filling: Option<u64>,
}

#[derive(Debug)]
struct PrepareThread {
    work: Option<mpsc::Sender<Work>>,
    ready: mpsc::Receiver<io::Result<Prepared>>,
    pace: Arc<Pace>,
    join: Option<JoinHandle<()>>,
}

#[derive(Debug)]
enum Work {
    Prepare,
    Fill { segment: Arc<Segment> },
}

/// What the writer tells the thread while it works.
#[derive(Debug, Default)]
struct Pace {
    told: Mutex<Told>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Told {
    stop: bool,
    /// The writer waits for the next segment.
    wanted: bool,
    /// Where the appends are in the segment in use, and how far it can go.
    written: u64,
    segment_bytes: u64,
    /// Where they were when the next segment was asked for.
    requested_at: u64,
    /// Who fills waits until the appends are here.
    wake_at: Option<u64>,
}

/// How much the next piece of zeros is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need {
    Now,
    /// When [`FILL_BYTES_PER_S`] allows it.
    Paced,
    /// Not before the appends are here.
    OnceAppended(u64),
}

impl Told {
    /// Of the next segment, of which `filled` of `segment_bytes` are done.
    fn need_of_next(&self, filled: u64, segment_bytes: u64) -> Need {
        let left = segment_bytes.saturating_sub(self.requested_at) as f64;
        let done = filled.saturating_sub(FILL_LEAD_BYTES) as f64 / segment_bytes as f64;
        let more_at = self.requested_at + (done * left * FILLED_AT) as u64;
        if self.written < more_at {
            return Need::OnceAppended(more_at);
        }
        let used = self.written.saturating_sub(self.requested_at) as f64 / left;
        if (filled as f64) < used * segment_bytes as f64 { Need::Now } else { Need::Paced }
    }

    /// Of the segment in use, which is `filled` up to there.
    fn need_behind_appends(&self, filled: u64) -> Need {
        let margin = FILL_MARGIN_BYTES.min(self.segment_bytes / 4);
        if filled.saturating_sub(self.written) < margin { Need::Now } else { Need::Paced }
    }

    /// Wakes who fills if the appends are where it waits for them.
    fn appended(&mut self, written: u64, segment_bytes: u64, changed: &Condvar) {
        (self.written, self.segment_bytes) = (written, segment_bytes);
        if self.wake_at.is_some_and(|at| written >= at) {
            self.wake_at = None;
            changed.notify_one();
        }
    }
}

impl Pace {
    fn tell(&self, change: impl FnOnce(&mut Told)) {
        change(&mut self.told.lock());
        self.changed.notify_one();
    }

    /// Waits until one more piece is to be filled, after one that took `took`. False when the work is to
    /// be left as it is.
    fn goes_on(&self, took: Duration, need: impl Fn(&Told) -> Need) -> bool {
        let pause = Duration::from_secs_f64(FILL_PIECE_BYTES as f64 / FILL_BYTES_PER_S as f64);
        let until = Instant::now() + pause.saturating_sub(took);
        let mut told = self.told.lock();
        loop {
            if told.stop || told.wanted {
                return false;
            }
            match need(&told) {
                Need::Now => return true,
                Need::Paced => {
                    if self.changed.wait_until(&mut told, until).timed_out() {
                        return true;
                    }
                }
                Need::OnceAppended(upto) => {
                    told.wake_at = Some(upto);
                    self.changed.wait(&mut told);
                    told.wake_at = None;
                }
            }
        }
    }
}

impl Preparer {
    pub fn inline(disk: Arc<dyn Disk>, plan: PreparePlan) -> Self {
        Self { disk, plan, thread: None, requested: false, filling: None }
    }

    pub fn threaded(disk: Arc<dyn Disk>, plan: PreparePlan, name: String) -> io::Result<Self> {
        let (work, work_queue) = mpsc::channel();
        let (ready_sender, ready) = mpsc::channel();
        let pace = Arc::new(Pace::default());
        let join = std::thread::Builder::new().name(name).spawn({
            let (disk, plan, pace) = (Arc::clone(&disk), plan.clone(), Arc::clone(&pace));
            move || run(&*disk, &plan, &work_queue, &ready_sender, &pace)
        })?;
        let thread = PrepareThread { work: Some(work), ready, pace, join: Some(join) };
        Ok(Self { disk, plan, thread: Some(thread), requested: false, filling: None })
    }

    /// Asks for the next segment, once, when the appends in this one are at `written`.
    pub fn request(&mut self, written: u64) {
        if self.requested {
            return;
        }
        if let Some(PrepareThread { work: Some(work), pace, .. }) = &self.thread {
            pace.tell(|told| (told.written, told.requested_at) = (written, written));
            self.requested = work.send(Work::Prepare).is_ok();
        }
    }

    /// The file that was asked for, as far as it is filled, or one made now.
    pub fn take(&mut self) -> Result<Prepared, StoreFault> {
        if std::mem::take(&mut self.requested)
            && let Some(thread) = &self.thread
        {
            thread.pace.tell(|told| told.wanted = true);
            let ready = thread.ready.recv();
            thread.pace.tell(|told| told.wanted = false);
            match ready {
                Ok(Ok(prepared)) => return Ok(prepared),
                // Nothing of the log was in it; the attempt below decides.
                Ok(Err(error)) => tracing::warn!(%error, "preparing the next segment failed"),
                Err(_) => tracing::warn!("the thread that prepares segments is gone"),
            }
        }
        prepare(&*self.disk, &self.plan).map_err(fault("prepare", &self.plan.directory.join(TEMPORARY_NAME)))
    }

    /// Called after each batch with the position in the file behind it.
    pub fn keep_ahead(&mut self, segment: &Arc<Segment>, written: u64) -> Result<(), StoreFault> {
        let segment_bytes = segment.header.segment_bytes;
        if let Some(PrepareThread { work: Some(work), pace, .. }) = &self.thread {
            pace.told.lock().appended(written, segment_bytes, &pace.changed);
            let base = segment.base().get();
            if segment.filled() < segment_bytes && self.filling != Some(base) {
                self.filling = Some(base);
                // A thread that is gone only costs speed: the writer fills before it writes.
                let _ = work.send(Work::Fill { segment: Arc::clone(segment) });
            }
            return Ok(());
        }
        let ahead = self.plan.fill_ahead_bytes;
        if segment.filled() >= (written + ahead / 2).min(segment_bytes) {
            return Ok(());
        }
        segment.fill_to(written + ahead, FILL_PIECE_BYTES, || Ok(true)).map_err(fault("write", &segment.path))
    }

    /// Removes a file that was prepared and will not be used.
    pub fn discard(&mut self) -> Result<(), StoreFault> {
        if !self.requested {
            return Ok(());
        }
        let prepared = self.take()?;
        self.disk.remove(&prepared.path).map_err(fault("remove", &prepared.path))
    }
}

impl Drop for PrepareThread {
    fn drop(&mut self) {
        // Joined, so that nobody touches the directory once its lock is gone.
        self.pace.tell(|told| told.stop = true);
        self.work = None;
        if let Some(join) = self.join.take() {
            let _ = join.join();
        }
    }
}

/// Makes a file for a segment and leaves the header to its user.
pub fn prepare(disk: &dyn Disk, plan: &PreparePlan) -> io::Result<Prepared> {
    prepare_while(disk, plan, plan.fill_ahead_bytes, |_, _| false)
}

/// Fills `at_once`, and the rest of the segment as long as `goes_on` says so.
fn prepare_while(
    disk: &dyn Disk,
    plan: &PreparePlan,
    at_once: u64,
    goes_on: impl Fn(u64, Duration) -> bool,
) -> io::Result<Prepared> {
    let path = plan.directory.join(TEMPORARY_NAME);
    let file = disk.create(&path)?;
    let mut filled = at_once.max(HEADER_BYTES).min(plan.segment_bytes);
    file.reserve(plan.segment_bytes)?;
    file.zero_fill(0, filled)?;
    file.sync_data()?;
    let mut took = Duration::ZERO;
    while filled < plan.segment_bytes && goes_on(filled, took) {
        let started = Instant::now();
        let piece = FILL_PIECE_BYTES.min(plan.segment_bytes - filled);
        file.zero_fill(filled, piece)?;
        file.sync_data()?;
        filled += piece;
        took = started.elapsed();
    }
    let fill_file = disk.open(&path)?;
    Ok(Prepared { file, fill_file, path, filled })
}

fn run(
    disk: &dyn Disk,
    plan: &PreparePlan,
    work: &mpsc::Receiver<Work>,
    ready: &mpsc::Sender<io::Result<Prepared>>,
    pace: &Pace,
) {
    while let Ok(work) = work.recv() {
        if pace.told.lock().stop {
            return;
        }
        match work {
            Work::Prepare => {
                let prepared = prepare_while(disk, plan, FILL_PIECE_BYTES, |filled, took| {
                    pace.goes_on(took, |told| told.need_of_next(filled, plan.segment_bytes))
                });
                if ready.send(prepared).is_err() {
                    return;
                }
            }
            Work::Fill { segment } => {
                let mut started = Instant::now();
                let filled = segment.fill_to(segment.header.segment_bytes, FILL_PIECE_BYTES, || {
                    segment.fill_file.sync_data()?;
                    let goes_on =
                        pace.goes_on(started.elapsed(), |told| told.need_behind_appends(segment.filled()));
                    started = Instant::now();
                    Ok(goes_on)
                });
                if let Err(error) = filled {
                    // Not the end by itself. If bytes of the log were among what a sync failed
                    // for, the writer's next sync reports it through its own descriptor.
                    tracing::warn!(%error, file = %segment.path.display(), "filling ahead failed");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const SEGMENT: u64 = 64 * MIB;

    fn asked_for_at(written: u64) -> Arc<Pace> {
        let pace = Arc::new(Pace::default());
        pace.tell(|told| (told.written, told.requested_at) = (written, written));
        pace
    }

    fn goes_on(pace: &Pace, filled: u64) -> bool {
        pace.goes_on(Duration::ZERO, |told| told.need_of_next(filled, SEGMENT))
    }

    #[test]
    fn the_zeros_of_the_next_segment_follow_the_appends_in_this_one() {
        let pace = asked_for_at(32 * MIB);
        let filled = FILL_LEAD_BYTES + 5 * MIB;
        let follows = std::thread::spawn({
            let pace = Arc::clone(&pace);
            move || goes_on(&pace, filled)
        });
        // Of 64 MiB five are done, so it waits for two of the 25.6 until all is to be.
        let waits_for = |at: u64| {
            while pace.told.lock().wake_at.is_none_or(|wake_at| wake_at.abs_diff(at) > 1) {
                assert!(!follows.is_finished(), "it writes more zeros than follow from the appends");
                std::thread::yield_now();
            }
        };
        waits_for(34 * MIB);
        pace.told.lock().appended(33 * MIB, SEGMENT, &pace.changed);
        waits_for(34 * MIB);
        pace.told.lock().appended(34 * MIB + 1, SEGMENT, &pace.changed);
        assert!(follows.join().expect("it ended"));
    }

    #[test]
    fn a_segment_that_is_needed_or_behind_is_not_waited_for() {
        let pace = asked_for_at(32 * MIB);
        pace.told.lock().appended(60 * MIB, SEGMENT, &pace.changed);
        let began = Instant::now();
        for filled in 0..50 {
            assert!(goes_on(&pace, filled * MIB));
        }
        let paced = Duration::from_secs_f64((50 * FILL_PIECE_BYTES) as f64 / FILL_BYTES_PER_S as f64);
        assert!(began.elapsed() < paced / 2, "{:?}", began.elapsed());
        let filled = 63 * MIB;
        let follows = std::thread::spawn({
            let pace = Arc::clone(&pace);
            move || goes_on(&pace, filled)
        });
        pace.tell(|told| told.wanted = true);
        assert!(!follows.join().expect("it ended"), "it is handed over as it is");
    }
}
