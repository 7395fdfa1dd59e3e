//! Makes the next segment before it is needed, and writes zeros ahead of the appends in this one.
//!
//! Both exist so that a sync after an append has no metadata to write. Median of a durable 4 KiB
//! append, one writer, on an idle 2-core virtual machine (ext4, virtio disk with a flush of about
//! 30 us):
//!
//! | File | pwrite + fdatasync |
//! |---|---|
//! | growing | 51 us |
//! | fallocated, never written | 68 us: turning an unwritten extent into a written one is a journal commit |
//! | zero-filled | 37 us (33 us with O_DIRECT and O_DSYNC) |
//!
//! When the disk is the bottleneck the ways come closer: with twelve compilers running beside it
//! growing took 5.5 ms, fallocated 3.9, zero-filled 4.0, zero-filled with O_DSYNC 3.8.
//! `examples/log_figures.rs` measures them on a disk at hand. O_DIRECT is not worth its alignment
//! rules for 4 us, and O_DSYNC would sync each of a batch's calls by itself.
//!
//! Filling a whole segment at once would stall the start (1 GiB is seconds) and fight with the
//! appends for the disk; so the space is reserved at once and zeros go in pieces of 1 MiB, each
//! synced by itself, `fill_ahead_bytes` ahead of the appends. An append that overtakes the zeros
//! fills the gap itself: slower, never wrong. Segments are not recycled, although that would save
//! the zeros: a reader may hold mapped bytes of a released file, which must not change under it.
//!
//! The simulation has no thread: there the writer does the work itself when it is due.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;

use ledgermq_common::PhysicalOffset;

use super::{Segment, TEMPORARY_NAME};
use crate::io::{Disk, DiskFile};
use crate::store::{StoreConfig, StoreFault};
use crate::superblock::fault;

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
    /// Up to where zeros were asked for, so that the thread is not asked again for each batch.
    fill_asked: PhysicalOffset,
}

#[derive(Debug)]
struct PrepareThread {
    work: Option<mpsc::Sender<Work>>,
    ready: mpsc::Receiver<io::Result<Prepared>>,
    stop: Arc<AtomicBool>,
    join: Option<JoinHandle<()>>,
}

#[derive(Debug)]
enum Work {
    Prepare,
    Fill { segment: Arc<Segment>, upto: u64 },
}

impl Preparer {
    pub fn inline(disk: Arc<dyn Disk>, plan: PreparePlan) -> Self {
        Self { disk, plan, thread: None, requested: false, fill_asked: PhysicalOffset(0) }
    }

    pub fn threaded(disk: Arc<dyn Disk>, plan: PreparePlan, name: String) -> io::Result<Self> {
        let (work, work_queue) = mpsc::channel();
        let (ready_sender, ready) = mpsc::channel();
        let stop = Arc::new(AtomicBool::new(false));
        let join = std::thread::Builder::new().name(name).spawn({
            let (disk, plan, stop) = (Arc::clone(&disk), plan.clone(), Arc::clone(&stop));
            move || run(&*disk, &plan, &work_queue, &ready_sender, &stop)
        })?;
        let thread = PrepareThread { work: Some(work), ready, stop, join: Some(join) };
        Ok(Self { disk, plan, thread: Some(thread), requested: false, fill_asked: PhysicalOffset(0) })
    }

    /// Asks for the next segment, once.
    pub fn request(&mut self) {
        if self.requested {
            return;
        }
        if let Some(PrepareThread { work: Some(work), .. }) = &self.thread {
            self.requested = work.send(Work::Prepare).is_ok();
        }
    }

    /// The file that was asked for, or one made now.
    pub fn take(&mut self) -> Result<Prepared, StoreFault> {
        if std::mem::take(&mut self.requested)
            && let Some(thread) = &self.thread
        {
            match thread.ready.recv() {
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
        let ahead = self.plan.fill_ahead_bytes;
        let enough = (written + ahead / 2).min(segment.header.segment_bytes);
        if segment.filled() >= enough {
            return Ok(());
        }
        let upto = written + ahead;
        match &self.thread {
            Some(PrepareThread { work: Some(work), .. }) => {
                let base = segment.base().get();
                if self.fill_asked.get() < base + enough {
                    self.fill_asked = PhysicalOffset(base + upto);
                    // A thread that is gone only costs speed: the writer fills before it writes.
                    let _ = work.send(Work::Fill { segment: Arc::clone(segment), upto });
                }
                Ok(())
            }
            _ => segment.fill_to(upto, || Ok(true)).map_err(fault("write", &segment.path)),
        }
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
        self.stop.store(true, Ordering::Release);
        self.work = None;
        if let Some(join) = self.join.take() {
            let _ = join.join();
        }
    }
}

/// Makes a file for a segment and leaves the header to its user.
pub fn prepare(disk: &dyn Disk, plan: &PreparePlan) -> io::Result<Prepared> {
    let path = plan.directory.join(TEMPORARY_NAME);
    let file = disk.create(&path)?;
    let filled = plan.fill_ahead_bytes.max(super::HEADER_BYTES).min(plan.segment_bytes);
    file.reserve(plan.segment_bytes)?;
    file.zero_fill(0, filled)?;
    file.sync_data()?;
    let fill_file = disk.open(&path)?;
    Ok(Prepared { file, fill_file, path, filled })
}

fn run(
    disk: &dyn Disk,
    plan: &PreparePlan,
    work: &mpsc::Receiver<Work>,
    ready: &mpsc::Sender<io::Result<Prepared>>,
    stop: &AtomicBool,
) {
    while let Ok(work) = work.recv() {
        if stop.load(Ordering::Acquire) {
            return;
        }
        match work {
            Work::Prepare => {
                if ready.send(prepare(disk, plan)).is_err() {
                    return;
                }
            }
            Work::Fill { segment, upto } => {
                let filled = segment.fill_to(upto, || {
                    segment.fill_file.sync_data()?;
                    Ok(!stop.load(Ordering::Acquire))
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
