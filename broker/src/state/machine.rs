//! The state of one broker group as the rest of the broker holds it: a [`StateMachine`] to the log,
//! [questions](super::questions) and [plans](super::planner) to the leader's executor.
//!
//! Locks, in the order in which they may be taken: checkpoint files, applied state. The applied
//! state is held for one batch of entries, one question, or the start of a checkpoint or snapshot;
//! no file is read or written under it.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Weak;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread::{self, JoinHandle};

use bytes::Bytes;
use ledgermq_common::{GroupId, LogIndex, PhysicalOffset, QueueId};
use ledgermq_raft_store::{AppliedEntry, ApplyError, EntryId, RecoveredLog, SnapshotReader, StateMachine};
use parking_lot::{Condvar, Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::applied::Applied;
use super::applied::apply::Effects;
use super::checkpoint::{CheckpointFiles, Written};
use super::consume_queue::run::Run;
use super::consume_queue::{ConsumeQueueIndex, QueueKey, QueueView};
use super::key_index::run::KeyRun;
use super::meta_store::{MetaStore, SledStore};
use super::names::{ClientHash, ConsumerGroupId, TopicId};
use super::planner::Reservations;
use super::snapshot::{Captured, SnapshotStream, receive};
use super::timers::run::TimerRun;

/// A checkpoint is due after so many entries, index entries or bytes of commands
/// ([`CheckpointMode::Background`]), whichever comes first: it bounds what a restart applies again and what the index tail holds.
pub const CHECKPOINT_LOG_ENTRIES: u64 = 200_000;
pub const CHECKPOINT_INDEX_ENTRIES: usize = 500_000;
pub const CHECKPOINT_KEY_ENTRIES: usize = 2_000_000;

/// Hears of applied entries that may end somebody's wait. Called after a batch, outside all locks.
pub trait ApplyObserver: Send + Sync + 'static {
    fn messages_arrived(&self, topic: TopicId, queue: QueueId);
    /// Leases of the group in the topic ended, or end earlier than before, or planned messages are
    /// free again: ask for the next expiry and plan anew.
    fn leases_released(&self, consumer_group: ConsumerGroupId, topic: TopicId);
    /// A lite topic the client reads has a message for it, or may have one.
    fn lite_readable(&self, _: ConsumerGroupId, _: TopicId, _: ClientHash) {}
    /// A lite topic was taken from a client, which is to be told.
    fn lite_taken(&self) {}
}

/// For those who wait for nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct NobodyWaits;

impl ApplyObserver for NobodyWaits {
    fn messages_arrived(&self, _: TopicId, _: QueueId) {}
    fn leases_released(&self, _: ConsumerGroupId, _: TopicId) {}
}

/// When checkpoints are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckpointMode {
    /// By a thread of the state, when one is due: at the latest after so many bytes of commands.
    Background { every_bytes: u64 },
    /// Only by [`BrokerState::checkpoint`].
    OnDemand,
}

#[derive(Debug, Clone)]
pub struct StateConfig {
    pub group: GroupId,
    /// Where checkpoints are kept. `None`: nowhere, the state is made from the log at each start.
    pub directory: Option<PathBuf>,
    pub checkpoints: CheckpointMode,
}

#[derive(Debug, thiserror::Error)]
#[error("the directory of the derived state cannot be used: {reason}")]
pub struct OpenStateError {
    reason: String,
}

#[derive(Debug, Clone, thiserror::Error)]
#[error("writing a checkpoint failed: {reason}")]
pub struct CheckpointError {
    reason: String,
}

struct CheckpointDue {
    every_bytes: u64,
    told: SyncSender<()>,
}

pub struct BrokerState {
    group: GroupId,
    applied: RwLock<Applied>,
    reservations: Reservations,
    observer: Arc<dyn ApplyObserver>,
    files: Mutex<Option<CheckpointFiles>>,
    durability: Mutex<Durability>,
    durability_changed: Condvar,
    checkpoint_due: Option<CheckpointDue>,
    checkpoint_thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug, Default)]
struct Durability {
    /// The log on this replica is flushed up to here.
    flushed: LogIndex,
    /// What survives a restart: the last checkpoint, or the snapshot restored.
    kept: Option<EntryId>,
    fault: Option<CheckpointError>,
    is_closing: bool,
}

impl std::fmt::Debug for BrokerState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BrokerState").field("group", &self.group).finish_non_exhaustive()
    }
}

impl BrokerState {
    pub fn open(config: StateConfig, observer: Arc<dyn ApplyObserver>) -> Result<Arc<Self>, OpenStateError> {
        let store = config.directory.as_deref().map(SledStore::below);
        Self::open_with(config, store.map(|store| Box::new(store) as Box<dyn MetaStore>), observer)
    }

    pub(crate) fn open_with(
        config: StateConfig,
        store: Option<Box<dyn MetaStore>>,
        observer: Arc<dyn ApplyObserver>,
    ) -> Result<Arc<Self>, OpenStateError> {
        let (files, applied) = match (&config.directory, store) {
            (Some(directory), Some(store)) => {
                let (files, applied) = CheckpointFiles::open(directory, store)
                    .map_err(|error| OpenStateError { reason: error.to_string() })?;
                (Some(files), applied)
            }
            _ => (None, Applied::default()),
        };
        let every_bytes = match config.checkpoints {
            CheckpointMode::Background { every_bytes } if files.is_some() => Some(every_bytes),
            _ => None,
        };
        let (due, is_due) = mpsc::sync_channel(1);
        let kept = applied.scalars.applied;
        let state = Arc::new(Self {
            group: config.group,
            applied: RwLock::new(applied),
            reservations: Reservations::default(),
            observer,
            files: Mutex::new(files),
            durability: Mutex::new(Durability { kept, ..Durability::default() }),
            durability_changed: Condvar::new(),
            checkpoint_due: every_bytes.map(|every_bytes| CheckpointDue { every_bytes, told: due }),
            checkpoint_thread: Mutex::new(None),
        });
        if every_bytes.is_some() {
            let weak = Arc::downgrade(&state);
            let thread = thread::Builder::new()
                .name("checkpoint".to_owned())
                .spawn(move || write_checkpoints(&weak, &is_due))
                .map_err(|error| OpenStateError { reason: error.to_string() })?;
            *state.checkpoint_thread.lock() = Some(thread);
        }
        Ok(state)
    }

    /// Writes a checkpoint of what is applied now, waiting until the log is flushed that far.
    /// Blocks; returns without one when the state is being closed.
    pub fn checkpoint(&self) -> Result<(), CheckpointError> {
        let mut files = self.files.lock();
        let Some(files) = files.as_mut() else { return Ok(()) };
        let cut = self.applied.write().cut();
        let Some(id) = cut.scalars.applied else { return Ok(()) };
        {
            let mut durability = self.durability.lock();
            if let Some(fault) = &durability.fault {
                return Err(fault.clone());
            }
            while durability.flushed < id.index {
                if durability.is_closing {
                    return Ok(());
                }
                self.durability_changed.wait(&mut durability);
            }
        }
        match files.write(&cut) {
            Ok(written) => {
                let mut applied = self.applied.write();
                applied.index.replace_sealed(written.runs, cut.tails.len());
                applied.timers.replace_sealed(written.timers, cut.timers.tails.len());
                applied.keys.replace_sealed(written.keys, cut.keys.len());
                drop(applied);
                self.durability.lock().kept = Some(id);
                Ok(())
            }
            Err(error) => {
                // The records of this cut are no longer marked; only a fresh start knows them all.
                let fault = CheckpointError { reason: error.to_string() };
                self.durability.lock().fault = Some(fault.clone());
                Err(fault)
            }
        }
    }

    /// Ends the checkpoint thread, after a last checkpoint if the log is flushed that far.
    /// Blocks; nothing may be applied afterwards.
    pub fn close(&self) -> Result<(), CheckpointError> {
        self.durability.lock().is_closing = true;
        self.durability_changed.notify_all();
        let written = self.checkpoint();
        if let Some(due) = &self.checkpoint_due {
            let _ = due.told.try_send(());
        }
        self.join_thread();
        *self.files.lock() = None;
        written
    }

    pub(crate) fn group(&self) -> GroupId {
        self.group
    }

    pub(crate) fn applied_state(&self) -> RwLockReadGuard<'_, Applied> {
        self.applied.read()
    }

    pub(crate) fn applied_state_mut(&self) -> RwLockWriteGuard<'_, Applied> {
        self.applied.write()
    }

    pub(crate) fn capture(&self) -> Captured {
        Captured::of(&mut self.applied.write())
    }

    pub(crate) fn index_view(&self, key: QueueKey, from: u64, to: u64) -> QueueView {
        self.applied.read().index.view(key, from, to)
    }

    pub(crate) fn reservations(&self) -> &Reservations {
        &self.reservations
    }

    pub(crate) fn observer(&self) -> &dyn ApplyObserver {
        self.observer.as_ref()
    }

    fn notify(&self, effects: Effects) {
        for (topic, queue) in effects.arrived {
            self.observer.messages_arrived(topic, queue);
        }
        for (consumer_group, topic) in effects.released {
            self.observer.leases_released(consumer_group, topic);
        }
        for (consumer_group, topic, client) in effects.lite {
            self.observer.lite_readable(consumer_group, topic, client);
        }
        if effects.lite_taken {
            self.observer.lite_taken();
        }
    }

    /// Forgets what the checkpoint gave: the log does not fit it.
    fn start_over(&self) -> io::Result<()> {
        let mut files = self.files.lock();
        if let Some(files) = files.as_mut() {
            files.reset(false).map_err(io::Error::other)?;
        }
        *self.applied.write() = Applied::default();
        self.durability.lock().kept = None;
        Ok(())
    }

    fn is_closing(&self) -> bool {
        self.durability.lock().is_closing
    }

    fn join_thread(&self) {
        let thread = self.checkpoint_thread.lock().take();
        if let Some(thread) = thread.filter(|thread| thread.thread().id() != thread::current().id()) {
            let _ = thread.join();
        }
    }
}

impl Drop for BrokerState {
    fn drop(&mut self) {
        self.durability.lock().is_closing = true;
        self.checkpoint_due = None;
        self.join_thread();
    }
}

fn write_checkpoints(state: &Weak<BrokerState>, is_due: &Receiver<()>) {
    while is_due.recv().is_ok() {
        let Some(state) = state.upgrade() else { return };
        if state.is_closing() {
            return;
        }
        if let Err(error) = state.checkpoint() {
            tracing::error!(%error, "no checkpoint; the next entry ends the process");
            return;
        }
    }
}

impl StateMachine for BrokerState {
    fn recover(&self, log: &dyn RecoveredLog) -> io::Result<()> {
        let Some(applied) = self.applied.read().scalars.applied else { return Ok(()) };
        let flushed = log.flushed().map(|entry| entry.index);
        let continues = match log.first_index() {
            Some(first) => first <= applied.index.next(),
            None => flushed == Some(applied.index),
        };
        if flushed < Some(applied.index) || !continues {
            tracing::warn!(
                checkpoint = applied.index.get(),
                flushed = flushed.map(LogIndex::get),
                first = log.first_index().map(LogIndex::get),
                "the checkpoint does not fit the log; the state is made again"
            );
            return self.start_over();
        }
        let mut durability = self.durability.lock();
        durability.flushed = durability.flushed.max(applied.index);
        Ok(())
    }

    fn applied(&self) -> Option<EntryId> {
        self.durability.lock().kept
    }

    fn apply(&self, entries: &[AppliedEntry], answers: &mut Vec<Bytes>) -> Result<(), ApplyError> {
        if let (Some(fault), Some(entry)) = (&self.durability.lock().fault, entries.first()) {
            return Err(ApplyError { id: entry.id, reason: fault.to_string() });
        }
        let mut effects = Effects::default();
        let due = {
            let mut applied = self.applied.write();
            for entry in entries {
                match applied.apply(entry, &mut effects) {
                    Ok(answer) => answers.push(answer.encode()),
                    Err(error) => {
                        return Err(ApplyError { id: entry.id, reason: error.to_string() });
                    }
                }
            }
            let since = applied.since_checkpoint;
            self.checkpoint_due.as_ref().filter(|due| {
                since.entries >= CHECKPOINT_LOG_ENTRIES
                    || since.command_bytes >= due.every_bytes
                    || applied.index.active_len() + applied.timers.active_len() >= CHECKPOINT_INDEX_ENTRIES
                    || applied.keys.active_len() >= CHECKPOINT_KEY_ENTRIES
            })
        };
        if let Some(due) = due {
            // Full means that the thread was told already.
            let _ = due.told.try_send(());
        }
        self.notify(effects);
        Ok(())
    }

    fn log_flushed(&self, flushed: LogIndex) {
        let mut durability = self.durability.lock();
        if flushed > durability.flushed {
            durability.flushed = flushed;
            self.durability_changed.notify_all();
        }
    }

    fn snapshot(&self) -> io::Result<(Option<EntryId>, SnapshotReader)> {
        let captured = self.capture();
        Ok((captured.scalars.applied, Box::new(SnapshotStream::new(captured))))
    }

    /// The restored state is checkpointed only later: until then a restart has no checkpoint and
    /// Raft restores the same snapshot again.
    fn restore(&self, applied: EntryId, snapshot: SnapshotReader) -> io::Result<()> {
        let mut received = receive(snapshot)?;
        // Blank and membership entries do not reach the state, so a snapshot may be taken after
        // entries it has not seen.
        if received.applied.scalars.applied > Some(applied) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "snapshot is of a later entry"));
        }
        // The snapshot stands for the log up to here; a checkpoint that waits for it need not any more.
        self.log_flushed(applied.index);
        let mut files = self.files.lock();
        let written = match files.as_mut() {
            Some(files) => {
                files.reset(false).map_err(io::Error::other)?;
                files.adopt(&received.runs, &received.timers, &received.keys).map_err(io::Error::other)?
            }
            None => Written {
                runs: received
                    .runs
                    .iter()
                    .map(|image| Run::check(image.clone()).map(Arc::new))
                    .collect::<Result<Vec<_>, _>>()
                    .map_err(io::Error::other)?,
                timers: vec![Arc::new(TimerRun::check(received.timers.clone()).map_err(io::Error::other)?)],
                keys: received
                    .keys
                    .iter()
                    .map(|image| KeyRun::check(image.clone()).map(Arc::new))
                    .collect::<Result<Vec<_>, _>>()
                    .map_err(io::Error::other)?,
            },
        };
        received.applied.index = ConsumeQueueIndex::of_runs(written.runs);
        received.applied.timers.replace_sealed(written.timers, 0);
        received.applied.keys.replace_sealed(written.keys, 0);
        // A checkpoint of this state continues after the snapshot, also where its last entries were
        // not commands.
        received.applied.scalars.applied = Some(applied);
        received.applied.mark_all_dirty();
        *self.applied.write() = received.applied;
        self.durability.lock().kept = Some(applied);
        Ok(())
    }

    /// What a leader found to be referred to no more, and the log says so.
    fn retained_from(&self) -> PhysicalOffset {
        self.applied.read().keeping.progress.released_below
    }
}
