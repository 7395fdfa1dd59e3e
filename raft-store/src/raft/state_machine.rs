//! openraft's state machine over [`StateMachine`].
//!
//! Commands go to the machine in batches; blank and membership entries stay here. Nothing is
//! persisted by an apply except a changed membership (see `raft/membership`), which is rare enough
//! to be written on the apply task.
//!
//! A failed apply is final: the group's fault is published before openraft hears of it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use ledgermq_common::{LogIndex, PhysicalOffset, Term};
use openraft::storage::{ApplyResponder, EntryResponder, RaftStateMachine};
use openraft::{OptionalSend, RaftSnapshotBuilder, Snapshot};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::log_storage::PurgePermit;
use super::membership::MembershipFile;
use super::vocabulary::{
    Answer, CommittedLeaderId, Consensus, LogId, Node, Payload, SnapshotMeta, StoredMembership, entry_id,
    log_id,
};
use crate::defects::{self, Defect};
use crate::group::GroupFault;
use crate::machine::{AppliedEntry, EntryId, SnapshotReader, StateMachine};
use crate::offload::Offload;
use crate::snapshot::{SnapshotCatalog, SnapshotFile, SnapshotHead};
use crate::store::LogStore;

/// Commands in one call of the machine. Bounds how long it may hold its locks.
const APPLY_BATCH_MAX: usize = 256;

pub(crate) type FinishedSnapshot = Snapshot<CommittedLeaderId, u64, Node, SnapshotFile>;

/// What applying has reached; read by status, schedule and leadership.
#[derive(Debug)]
pub(crate) struct ApplyProgress {
    /// One more than the index of the last applied entry; 0 for none.
    next_index: AtomicU64,
    /// Where the last applied entry's payload starts.
    payload_at: AtomicU64,
    /// The newest term of which an entry was applied.
    pub(crate) term: watch::Sender<Term>,
    /// The last snapshot that was finished here.
    pub(crate) snapshot: watch::Sender<Option<EntryId>>,
    /// Why applying ended.
    pub(crate) fault: watch::Sender<Option<GroupFault>>,
    /// Raft runs: from now on a peer is offered the snapshot it needs rather than the newest.
    pub(crate) is_running: AtomicBool,
}

impl ApplyProgress {
    pub(crate) fn new() -> Self {
        Self {
            next_index: AtomicU64::new(0),
            payload_at: AtomicU64::new(0),
            term: watch::Sender::new(Term::default()),
            snapshot: watch::Sender::new(None),
            fault: watch::Sender::new(None),
            is_running: AtomicBool::new(false),
        }
    }

    /// Where the state stands before Raft runs.
    pub(crate) fn resume(&self, applied: Option<EntryId>, snapshot: Option<EntryId>) {
        self.next_index.store(applied.map_or(0, |id| id.index.get() + 1), Ordering::Release);
        self.snapshot.send_replace(snapshot);
    }

    pub(crate) fn applied(&self) -> Option<LogIndex> {
        self.next_index.load(Ordering::Acquire).checked_sub(1).map(LogIndex)
    }

    pub(crate) fn payload_at(&self) -> PhysicalOffset {
        PhysicalOffset(self.payload_at.load(Ordering::Acquire))
    }

    fn reached(&self, id: EntryId, payload_at: Option<PhysicalOffset>) {
        if let Some(payload_at) = payload_at {
            self.payload_at.store(payload_at.get(), Ordering::Release);
        }
        self.next_index.store(id.index.get() + 1, Ordering::Release);
        // Once per term, not once per batch: a watch wakes its readers.
        if *self.term.borrow() != id.term {
            self.term.send_replace(id.term);
        }
    }

    pub(crate) fn fail(&self, reason: String) {
        self.fault.send_if_modified(|fault| {
            let is_first = fault.is_none();
            if is_first {
                *fault = Some(GroupFault { reason });
            }
            is_first
        });
    }
}

/// All that applying works with; made when the group opens.
pub(crate) struct Applier {
    pub(crate) machine: Arc<dyn StateMachine>,
    pub(crate) store: LogStore,
    pub(crate) catalog: Arc<SnapshotCatalog>,
    pub(crate) permit: Arc<PurgePermit>,
    pub(crate) membership_file: MembershipFile,
    pub(crate) progress: Arc<ApplyProgress>,
    pub(crate) offload: Offload,
    pub(crate) applied: Option<EntryId>,
    pub(crate) membership: StoredMembership,
}

/// Commands that wait to be handed to the machine together.
#[derive(Default)]
struct Batch {
    entries: Vec<AppliedEntry>,
    responders: Vec<Option<ApplyResponder<Consensus>>>,
    answers: Vec<Bytes>,
}

impl Applier {
    fn apply_batch(&mut self, batch: &mut Batch) -> io::Result<()> {
        let Some(last) = batch.entries.last() else { return Ok(()) };
        let (last, payload_at) = (last.id, last.payload_at);
        batch.answers.clear();
        if let Err(error) = self.machine.apply(&batch.entries, &mut batch.answers) {
            self.progress.fail(error.to_string());
            return Err(io::Error::other(error));
        }
        assert_eq!(batch.answers.len(), batch.entries.len(), "the machine answers every entry");
        self.reached(last, Some(payload_at));
        for (responder, answer) in batch.responders.drain(..).zip(batch.answers.drain(..)) {
            if let Some(responder) = responder {
                responder.send(Answer(answer));
            }
        }
        batch.entries.clear();
        Ok(())
    }

    fn reached(&mut self, id: EntryId, payload_at: Option<PhysicalOffset>) {
        assert!(
            self.applied.is_none_or(|before| before.index < id.index),
            "entries are applied once and in order"
        );
        self.applied = Some(id);
        self.store.applied(id.index);
        self.progress.reached(id, payload_at);
    }

    fn change_membership(&mut self, membership: StoredMembership) -> io::Result<()> {
        if let Err(error) = self.membership_file.store(&membership) {
            self.progress.fail(format!("writing the membership file: {error}"));
            return Err(error);
        }
        self.membership = membership;
        Ok(())
    }

    fn meta(head: &SnapshotHead) -> SnapshotMeta {
        SnapshotMeta { last_log_id: Some(log_id(head.boundary.id)), last_membership: head.membership.clone() }
    }
}

impl RaftStateMachine<Consensus> for Applier {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        Ok((self.applied.map(log_id), self.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<Consensus>>> + Unpin + OptionalSend,
    {
        let mut batch = Batch::default();
        while let Some(next) = entries.next().await {
            let (entry, responder) = match next {
                Ok(next) => next,
                Err(error) => {
                    self.progress.fail(format!("reading committed entries: {error}"));
                    return Err(error);
                }
            };
            let id = entry_id(&entry.log_id);
            if let Payload::Normal(payload) = entry.payload {
                let payload_at = entry.payload_at.expect("an applied entry was read from the log");
                batch.entries.push(AppliedEntry { id, payload_at, payload });
                batch.responders.push(responder);
                if batch.entries.len() >= APPLY_BATCH_MAX {
                    self.apply_batch(&mut batch)?;
                }
                continue;
            }
            self.apply_batch(&mut batch)?;
            if let Payload::Membership(membership) = entry.payload {
                // Before the machine can persist anything behind it.
                self.change_membership(StoredMembership::new(Some(entry.log_id), membership))?;
            }
            self.reached(id, entry.payload_at);
            if let Some(responder) = responder {
                responder.send(Answer(Bytes::new()));
            }
        }
        self.apply_batch(&mut batch)
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        // Here no apply runs, so the machine's view is exactly at `applied`.
        let view = self.machine.snapshot().and_then(|(applied, body)| match self.applied {
            Some(ours) if applied <= Some(ours) => Ok((ours, body)),
            ours => {
                Err(io::Error::other(format!("a snapshot at {applied:?} of a state applied up to {ours:?}")))
            }
        });
        Builder {
            view: Mutex::new(Some(view)),
            membership: self.membership.clone(),
            store: self.store.clone(),
            catalog: Arc::clone(&self.catalog),
            progress: Arc::clone(&self.progress),
            offload: self.offload,
        }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: SnapshotFile) -> io::Result<()> {
        let boundary = snapshot.head.boundary;
        assert_eq!(meta.last_log_id, Some(log_id(boundary.id)), "the snapshot is the one that was announced");
        let (catalog, machine) = (Arc::clone(&self.catalog), Arc::clone(&self.machine));
        // First the file, then the state: a crash between the two finds the file behind the end of
        // the log and finishes the installation.
        let installed = self
            .offload
            .run(move || {
                let snapshot = catalog.finish(snapshot)?;
                machine.restore(boundary.id, snapshot.body())
            })
            .await;
        if let Err(error) = installed {
            self.progress.fail(format!("installing a snapshot: {error}"));
            return Err(error);
        }
        self.change_membership(meta.last_membership.clone())?;
        self.permit.allow_installed(boundary);
        self.applied = Some(boundary.id);
        self.progress.reached(boundary.id, Some(boundary.next_physical_offset));
        self.progress.snapshot.send_replace(Some(boundary.id));
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<FinishedSnapshot>> {
        let found = if self.progress.is_running.load(Ordering::Acquire) {
            self.catalog.oldest_from(self.store.purged().map(|id| id.index))
        } else {
            // What openraft asks for before it runs must not be newer than the state.
            self.applied.and_then(|applied| self.catalog.newest_upto(applied.index))
        };
        Ok(found.map(|file| Snapshot { meta: Self::meta(&file.head), snapshot: file }))
    }
}

/// Writes one snapshot from a view of the state.
pub(crate) struct Builder {
    /// Written once; the lock only makes it shareable.
    view: Mutex<Option<io::Result<(EntryId, SnapshotReader)>>>,
    membership: StoredMembership,
    store: LogStore,
    catalog: Arc<SnapshotCatalog>,
    progress: Arc<ApplyProgress>,
    offload: Offload,
}

impl RaftSnapshotBuilder<Consensus> for Builder {
    type SnapshotData = SnapshotFile;

    async fn build_snapshot(&mut self) -> io::Result<FinishedSnapshot> {
        let (id, mut body) =
            self.view.get_mut().take().ok_or_else(|| io::Error::other("a view is written once"))??;
        // A snapshot ahead of the local log would look, after a crash, like one that was received.
        let mut flushed = self.store.flushed();
        flushed
            .wait_for(|flushed| flushed.is_some_and(|flushed| flushed.index >= id.index))
            .await
            .map_err(io::Error::other)?;
        let (store, catalog, membership) =
            (self.store.clone(), Arc::clone(&self.catalog), self.membership.clone());
        let file = self
            .offload
            .run(move || {
                let behind = u64::from(defects::is_active(Defect::SnapshotBoundaryBehind));
                let covered = LogIndex(id.index.get().saturating_sub(behind));
                let boundary = store.boundary_at(covered).map_err(io::Error::other)?.ok_or_else(|| {
                    io::Error::other(format!("entry {} left the log under a snapshot", id.index))
                })?;
                catalog.write(SnapshotHead { boundary, membership }, &mut *body)
            })
            .await?;
        self.progress.snapshot.send_replace(Some(id));
        Ok(Snapshot { meta: Applier::meta(&file.head), snapshot: file })
    }
}
