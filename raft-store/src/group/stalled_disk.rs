//! A leader whose disk does not answer gives its place away.
//!
//! Such a leader is alive to everybody: its heartbeats and its links need no disk, so nobody
//! suspects it, and with a follower's disk in its place entries may even be committed. But what it
//! has to write itself (a vote, the next segment) waits, its queue fills, and whether the disk comes
//! back nobody knows.
//!
//! | The writer has waited for the disk | Done |
//! |---|---|
//! | less than `disk_patience_ms` | nothing: a slow disk is still a disk |
//! | longer, and this replica leads | leadership goes to the follower that lacks the least |
//! | still, and it leads again | again, after another patience |
//!
//! A replica that cannot write cannot vote for itself, so it does not lead again before its disk
//! answers.

use std::time::Duration;

use ledgermq_common::NodeId;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

use super::{Leadership, status};
use crate::raft::server::Raft;
use crate::store::LogStore;

/// How often it looks within one patience.
const LOOKS: u64 = 8;

pub(super) struct StalledDisk {
    pub(super) raft: Raft,
    pub(super) store: LogStore,
    pub(super) node: NodeId,
    pub(super) leadership: watch::Receiver<Leadership>,
    pub(super) patience_ms: u64,
}

impl StalledDisk {
    /// Runs until `stopping` says so.
    pub(super) async fn run(self, mut stopping: watch::Receiver<bool>) {
        let patience = Duration::from_millis(self.patience_ms);
        let mut ticks = interval(Duration::from_millis((self.patience_ms / LOOKS).max(1)));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                _ = stopping.wait_for(|stopping| *stopping) => return,
                _ = ticks.tick() => {}
            }
            let waits_for = self.store.waits_for_disk();
            let leads = self.leadership.borrow().leader == Some(self.node);
            if waits_for < patience || !leads {
                continue;
            }
            let Some(heir) = status::most_caught_up(&self.raft, &self.store, self.node) else { continue };
            tracing::warn!(
                waits_ms = u64::try_from(waits_for.as_millis()).unwrap_or(u64::MAX),
                %heir,
                "the disk does not answer: leadership is given away"
            );
            if self.raft.trigger().transfer_leader(heir.get()).await.is_err() {
                return;
            }
            tokio::select! {
                biased;
                _ = stopping.wait_for(|stopping| *stopping) => return,
                () = tokio::time::sleep(patience) => {}
            }
        }
    }
}
