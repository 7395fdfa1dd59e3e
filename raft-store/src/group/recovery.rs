//! From a directory to a state machine that Raft can go on with.
//!
//! | Found | Done |
//! |---|---|
//! | nothing | the log is empty, the members initialise it |
//! | a snapshot behind the end of the log | an installation was interrupted: the log goes on behind it, the state is restored from it |
//! | state older than the log's first entry, or none although there is a snapshot | restored from the newest snapshot that verifies |
//! | state newer than the durable log | refused: the owner rebuilds the state ([`OpenGroupError::StateAheadOfLog`]) |
//! | anything else | the state as it is; Raft applies what is committed behind it |

use std::ops::Range;

use ledgermq_common::LogIndex;

use super::errors::OpenGroupError;
use crate::machine::{AppliedEntry, EntryId, RecoveredLog, StateMachine};
use crate::raft::log_storage::entry_from_store;
use crate::raft::membership::MembershipFile;
use crate::raft::vocabulary::{Payload, StoredMembership};
use crate::snapshot::SnapshotCatalog;
use crate::store::{EntryKind, LogStore, ReadError, SnapshotBoundary};

/// Payload bytes read at once by a scan.
const SCAN_BYTES_MAX: usize = 4 << 20;

/// What the machine's state is worth beside the log.
pub(super) struct Recovered {
    pub(super) applied: Option<EntryId>,
    pub(super) membership: StoredMembership,
}

/// A snapshot whose installation a crash interrupted; the caller resets the log to it first.
pub(super) fn interrupted_installation(
    store: &LogStore,
    catalog: &SnapshotCatalog,
) -> Option<SnapshotBoundary> {
    let boundary = catalog.newest()?.head.boundary;
    let is_behind_the_end = store.last_id().is_none_or(|last| last.index < boundary.id.index);
    is_behind_the_end.then_some(boundary)
}

/// Brings the machine to a point from which the log goes on. Blocks.
pub(super) fn recover(
    store: &LogStore,
    catalog: &SnapshotCatalog,
    membership_file: &MembershipFile,
    machine: &dyn StateMachine,
) -> Result<Recovered, OpenGroupError> {
    machine.recover(&LogBeforeRaft { store })?;
    let purged = store.purged().map(|id| id.index);
    let mut applied = machine.applied();
    let is_behind_log = applied.map(|id| id.index) < purged;
    if is_behind_log || (applied.is_none() && catalog.newest().is_some()) {
        applied = restore_newest(catalog, machine)?.or(applied);
    }
    let flushed = store.last_id();
    if let Some(ahead) = applied.filter(|applied| Some(applied.index) > flushed.map(|id| id.index)) {
        let flushed = flushed.map(|id| id.index).unwrap_or_default();
        return Err(OpenGroupError::StateAheadOfLog { applied: ahead.index, flushed });
    }
    if let Some(purged) = purged.filter(|purged| applied.map(|id| id.index) < Some(*purged)) {
        return Err(OpenGroupError::StateBehindLog { applied: applied.map(|id| id.index), purged });
    }
    let membership = match membership_file.load()? {
        Some(membership) => membership,
        None => membership_upto(store, catalog, applied)?,
    };
    Ok(Recovered { applied, membership })
}

fn restore_newest(
    catalog: &SnapshotCatalog,
    machine: &dyn StateMachine,
) -> Result<Option<EntryId>, OpenGroupError> {
    for snapshot in catalog.newest_first() {
        let id = snapshot.head.boundary.id;
        match machine.restore(id, snapshot.body()) {
            Ok(()) => return Ok(Some(id)),
            Err(error) => {
                tracing::warn!(index = %id.index, %error, "a snapshot could not be restored; trying an older one");
                catalog.forget(id.index);
            }
        }
    }
    Ok(None)
}

/// The membership in force at `applied` when nobody wrote it down: the last one in the log, or that
/// of the newest snapshot.
fn membership_upto(
    store: &LogStore,
    catalog: &SnapshotCatalog,
    applied: Option<EntryId>,
) -> Result<StoredMembership, OpenGroupError> {
    let Some(applied) = applied else { return Ok(StoredMembership::default()) };
    let snapshot = catalog.newest_upto(applied.index);
    let mut membership = snapshot.map(|file| file.head.membership).unwrap_or_default();
    let mut next = store.first_index();
    while next <= applied.index {
        let entries =
            store.read(next..applied.index.next(), SCAN_BYTES_MAX).map_err(std::io::Error::other)?;
        let Some(last) = entries.last() else { break };
        next = last.id.index.next();
        for entry in entries.into_iter().filter(|entry| entry.kind == EntryKind::Membership) {
            let entry = entry_from_store(entry)?;
            if let Payload::Membership(found) = entry.payload {
                membership = StoredMembership::new(Some(entry.log_id), found);
            }
        }
    }
    Ok(membership)
}

struct LogBeforeRaft<'s> {
    store: &'s LogStore,
}

impl RecoveredLog for LogBeforeRaft<'_> {
    fn flushed(&self) -> Option<EntryId> {
        self.store.last_id()
    }

    fn first_index(&self) -> Option<LogIndex> {
        self.store.last_id().map(|_| self.store.oldest_index())
    }

    fn scan(
        &self,
        from: LogIndex,
        through: LogIndex,
        visit: &mut dyn FnMut(AppliedEntry) -> std::io::Result<()>,
    ) -> std::io::Result<()> {
        let mut scan = Scan::over(self.store.clone(), from..through.next());
        for entry in &mut scan {
            visit(entry.map_err(std::io::Error::other)?)?;
        }
        if scan.next > through {
            return Ok(());
        }
        Err(std::io::Error::other(format!("the log ends before entry {}, at {}", through, scan.next)))
    }
}

/// Commands of the log in order, read in pieces. Each step may touch the disk.
pub struct Scan {
    store: LogStore,
    next: LogIndex,
    end: LogIndex,
    piece: std::vec::IntoIter<AppliedEntry>,
}

impl Scan {
    pub(super) fn over(store: LogStore, range: Range<LogIndex>) -> Self {
        Self { store, next: range.start, end: range.end, piece: Vec::new().into_iter() }
    }

    fn read_piece(&mut self) -> Result<bool, ReadError> {
        let entries = self.store.read(self.next..self.end, SCAN_BYTES_MAX)?;
        let Some(last) = entries.last() else { return Ok(false) };
        self.next = last.id.index.next();
        let commands: Vec<_> = entries
            .into_iter()
            .filter(|entry| entry.kind == EntryKind::Normal)
            .map(|entry| AppliedEntry { id: entry.id, payload_at: entry.payload_at, payload: entry.payload })
            .collect();
        self.piece = commands.into_iter();
        Ok(true)
    }
}

impl Iterator for Scan {
    type Item = Result<AppliedEntry, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(entry) = self.piece.next() {
                return Some(Ok(entry));
            }
            if self.next >= self.end {
                return None;
            }
            match self.read_piece() {
                Ok(true) => {}
                Ok(false) => return None,
                Err(error) => {
                    self.end = self.next;
                    return Some(Err(error));
                }
            }
        }
    }
}
