//! When snapshots are taken and how far the log is purged. openraft's own policies are off.
//!
//! The purge pointer rests on a snapshot that is
//! - at least `purge_margin_entries` behind the last applied entry, so that no apply that is still
//!   queued can meet a purged entry (openraft#2116), and
//! - not beyond the oldest byte the state refers to, so that a replica that starts from that
//!   snapshot receives every such byte by replication (see [`crate::snapshot`]).
//!
//! Files are deleted only below both the pointer and that byte.

use std::sync::Arc;
use std::time::Duration;

use ledgermq_common::{LogIndex, PhysicalOffset};
use openraft::async_runtime::WatchReceiver;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

use super::config::Retention;
use crate::machine::{EntryId, StateMachine};
use crate::offload::Offload;
use crate::raft::log_storage::PurgePermit;
use crate::raft::server::Raft;
use crate::raft::state_machine::ApplyProgress;
use crate::snapshot::SnapshotCatalog;
use crate::store::LogStore;

pub(super) struct Schedule {
    pub(super) raft: Raft,
    pub(super) store: LogStore,
    pub(super) machine: Arc<dyn StateMachine>,
    pub(super) catalog: Arc<SnapshotCatalog>,
    pub(super) permit: Arc<PurgePermit>,
    pub(super) progress: Arc<ApplyProgress>,
    pub(super) offload: Offload,
    pub(super) retention: Retention,
}

impl Schedule {
    /// Runs until `stopping` says so.
    pub(super) async fn run(self, mut stopping: watch::Receiver<bool>) {
        let mut ticks = interval(Duration::from_millis(self.retention.check_interval_ms));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut snapshot_end = self.catalog.newest().map(|file| file.head.boundary.next_physical_offset);
        loop {
            tokio::select! {
                biased;
                _ = stopping.wait_for(|stopping| *stopping) => return,
                _ = ticks.tick() => {}
            }
            let applied_at = self.progress.payload_at();
            let since = applied_at.get().saturating_sub(snapshot_end.unwrap_or_default().get());
            if since >= self.retention.snapshot_every_bytes {
                if self.raft.trigger().snapshot().await.is_err() {
                    return;
                }
                // The next one is due so much further on, whether this one is finished by then or not.
                snapshot_end = Some(applied_at);
            }
            if let Err(error) = self.purge().await {
                tracing::warn!(%error, "the log could not be purged; it will be tried again");
            }
        }
    }

    async fn purge(&self) -> std::io::Result<()> {
        let edge = self.machine.retained_from();
        if let Some(upto) = self.purge_target(edge) {
            self.permit.allow(upto.index);
            // A stopped Raft purges nothing.
            let _ = self.raft.trigger().purge_log(upto.index.get()).await;
        }
        let purged = self.store.purged().map(|id| id.index);
        let (snapshots, permitted) = (Arc::clone(&self.catalog), self.permit.targets());
        self.offload.run(move || snapshots.thin(purged, &permitted)).await?;
        self.store.release_before(edge).await.map_err(std::io::Error::other)
    }

    /// `None` if the pointer is where it should be.
    fn purge_target(&self, edge: PhysicalOffset) -> Option<EntryId> {
        let applied = self.progress.applied()?;
        let limit = LogIndex(applied.get().checked_sub(self.retention.purge_margin_entries)?);
        let target = self.catalog.newest_within(limit, edge)?;
        // openraft clamps to the snapshot it knows; a permit must not promise more.
        let known = self.raft.data_metrics().borrow_watched().snapshot.map(|id| LogIndex(id.index));
        let is_ahead = Some(target.index) > self.store.purged().map(|id| id.index);
        // The snapshot it was permitted to go to may have turned out to be unusable since.
        let is_further = self.permit.targets().into_iter().all(|permitted| permitted <= target.index);
        (is_ahead && is_further && known >= Some(target.index)).then_some(target)
    }
}
