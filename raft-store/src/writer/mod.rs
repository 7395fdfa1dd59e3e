//! The one writer of a group.
//!
//! Everything that changes the log on the disk is an [`Operation`] in one queue, in the order it was
//! asked for: an entry is never durable before the vote of its term, a cut never before the entries
//! it cuts. The writer takes all that is queued, writes the frames of neighbouring appends together,
//! syncs once and then tells their callers, in order. While it syncs the next batch collects, so
//! nothing ever waits for a timer.
//!
//! On a real disk the writer is a thread of its own; in the simulation it is a task that runs the
//! same [`WriterCore`].
//!
//! | Event | Consequence |
//! |---|---|
//! | a write or sync fails | the store is poisoned, all callers get the fault, the writer ends |
//! | every handle is dropped | what is queued is refused, the writer ends, the log is left to recovery |
//! | `close` | the queue is written, the superblock says clean, the writer ends |

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use ledgermq_common::PhysicalOffset;
use parking_lot::{Condvar, Mutex};
use tokio::sync::{Notify, oneshot};

use crate::commit_log::{CommitLog, PlacedFrame};
use crate::io::DirectoryLock;
use crate::machine::EntryId;
use crate::position::LogPosition;
use crate::store::{OnDurable, StoreFault, VoteRecord, WriterSpawn};

mod batch;
mod core;

pub use core::WriterCore;

pub type Done = oneshot::Sender<Result<(), StoreFault>>;

pub enum Operation {
    Append {
        frames: Vec<PlacedFrame>,
        generation: u64,
        /// Bytes of the queue's room to give back.
        room: u32,
        on_durable: OnDurable,
    },
    Vote {
        vote: VoteRecord,
        done: Done,
    },
    Cut {
        to: LogPosition,
        generation: u64,
        done: Done,
    },
    Reset {
        to: LogPosition,
        generation: u64,
        done: Done,
    },
    Purge {
        upto: EntryId,
        done: Done,
    },
    Release {
        edge: PhysicalOffset,
        done: Done,
    },
    Close {
        done: Done,
    },
}

impl Operation {
    pub fn refuse(self, fault: &StoreFault) {
        match self {
            Self::Append { on_durable, .. } => on_durable(Err(fault.clone())),
            Self::Vote { done, .. }
            | Self::Cut { done, .. }
            | Self::Reset { done, .. }
            | Self::Purge { done, .. }
            | Self::Release { done, .. }
            | Self::Close { done } => {
                // Nobody waits any more: a dropped caller has no claim on the outcome.
                let _ = done.send(Err(fault.clone()));
            }
        }
    }
}

#[derive(Default)]
pub struct WriteQueue {
    state: Mutex<QueueState>,
    thread: Condvar,
    task: Notify,
}

#[derive(Default)]
struct QueueState {
    operations: VecDeque<Operation>,
    /// Set once: by the last handle, or by the writer when it ends.
    stopped: Option<StoreFault>,
}

impl std::fmt::Debug for WriteQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WriteQueue").field("queued", &self.state.lock().operations.len()).finish()
    }
}

impl WriteQueue {
    /// An operation that comes after the end of the writer is refused at once.
    pub fn push(&self, operation: Operation) {
        let mut state = self.state.lock();
        match state.stopped.clone() {
            Some(fault) => {
                drop(state);
                operation.refuse(&fault);
            }
            None => {
                state.operations.push_back(operation);
                drop(state);
                self.thread.notify_one();
                self.task.notify_one();
            }
        }
    }

    /// Refuses what is queued and what comes.
    pub fn stop(&self, fault: &StoreFault) {
        let refused = {
            let mut state = self.state.lock();
            state.stopped.get_or_insert_with(|| fault.clone());
            std::mem::take(&mut state.operations)
        };
        self.thread.notify_one();
        self.task.notify_one();
        refused.into_iter().for_each(|operation| operation.refuse(fault));
    }

    /// Waits for operations; nothing after `idle`. Breaks when the queue is stopped.
    fn wait(&self, idle: Option<Duration>) -> ControlFlow<(), VecDeque<Operation>> {
        let mut state = self.state.lock();
        while state.operations.is_empty() && state.stopped.is_none() {
            match idle {
                Some(idle) => {
                    if self.thread.wait_for(&mut state, idle).timed_out() {
                        break;
                    }
                }
                None => self.thread.wait(&mut state),
            }
        }
        take(&mut state)
    }

    async fn wait_as_task(&self, idle: Option<Duration>) -> ControlFlow<(), VecDeque<Operation>> {
        let arrived = async {
            loop {
                let notified = self.task.notified();
                {
                    let state = self.state.lock();
                    if !state.operations.is_empty() || state.stopped.is_some() {
                        return;
                    }
                }
                notified.await;
            }
        };
        match idle {
            // Running out is an answer too: there is time for the watermark.
            Some(idle) => drop(tokio::time::timeout(idle, arrived).await),
            None => arrived.await,
        }
        ControlFlow::Continue(VecDeque::new())
    }

    fn take(&self) -> ControlFlow<(), VecDeque<Operation>> {
        take(&mut self.state.lock())
    }
}

fn take(state: &mut QueueState) -> ControlFlow<(), VecDeque<Operation>> {
    match state.stopped {
        Some(_) => ControlFlow::Break(()),
        None => ControlFlow::Continue(std::mem::take(&mut state.operations)),
    }
}

/// A running writer; ends with it.
#[derive(Debug)]
pub struct Writer {
    pub queue: Arc<WriteQueue>,
    log: Arc<CommitLog>,
    running: Mutex<Option<Running>>,
    /// Held as long as the writer may touch the directory.
    lock: Mutex<Option<Box<dyn DirectoryLock>>>,
}

#[derive(Debug)]
enum Running {
    Thread(JoinHandle<()>),
    Task(tokio::task::JoinHandle<()>),
}

impl Writer {
    pub fn start(
        core: WriterCore,
        log: Arc<CommitLog>,
        lock: Box<dyn DirectoryLock>,
        spawn: WriterSpawn,
    ) -> std::io::Result<Self> {
        let queue = Arc::new(WriteQueue::default());
        let running = match spawn {
            WriterSpawn::Thread => {
                let queue = Arc::clone(&queue);
                let name = format!("commitlog-{}", log.identity.group);
                Running::Thread(
                    std::thread::Builder::new().name(name).spawn(move || run_thread(core, &queue))?,
                )
            }
            WriterSpawn::Task { latency } => {
                let queue = Arc::clone(&queue);
                Running::Task(tokio::spawn(async move { run_task(core, &queue, &*latency).await }))
            }
        };
        Ok(Self { queue, log, running: Mutex::new(Some(running)), lock: Mutex::new(Some(lock)) })
    }
}

impl Writer {
    /// Refuses what is still queued, ends the writer and gives the directory back.
    pub fn finish(&self) {
        let fault = closed_fault(&self.log);
        self.log.stop(fault.clone());
        self.queue.stop(&fault);
        match self.running.lock().take() {
            // Joined, so that the lock is given back only when nobody writes any more. A callback
            // may hold the last handle: then this is the writer's own thread.
            Some(Running::Thread(thread)) if thread.thread().id() != std::thread::current().id() => {
                let _ = thread.join();
            }
            Some(Running::Task(task)) => task.abort(),
            _ => {}
        }
        *self.lock.lock() = None;
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.finish();
    }
}

/// Why a store that was closed in order takes nothing.
pub fn closed_fault(log: &CommitLog) -> StoreFault {
    StoreFault {
        operation: "use",
        file: log.config.directory.clone(),
        reason: "the store was closed".to_owned(),
    }
}

fn run_thread(mut core: WriterCore, queue: &WriteQueue) {
    while let ControlFlow::Continue(operations) = queue.wait(core.idle()) {
        if core.run(operations, queue).is_break() {
            return;
        }
    }
}

async fn run_task(mut core: WriterCore, queue: &WriteQueue, latency: &(dyn Fn() -> Duration + Send + Sync)) {
    loop {
        let _ = queue.wait_as_task(core.idle()).await;
        let latency = latency();
        if !latency.is_zero() {
            core.wait_begins();
            tokio::time::sleep(latency).await;
        }
        // Taken only now: what arrived during the latency of the disk shares its sync.
        let ControlFlow::Continue(operations) = queue.take() else { return };
        if core.run(operations, queue).is_break() {
            return;
        }
    }
}
