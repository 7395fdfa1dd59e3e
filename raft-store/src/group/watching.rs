//! The tasks that turn openraft's metrics into what the public handle shows: leadership and fault.

use std::sync::Arc;
use std::time::Duration;

use ledgermq_common::{GroupId, NodeId, Term};
use openraft::ServerState;
use openraft::async_runtime::WatchReceiver;
use tokio::sync::watch;

use super::{GroupFault, Leadership};
use crate::machine::StateMachine;
use crate::raft::server::Raft;
use crate::raft::state_machine::ApplyProgress;
use crate::store::LogStore;

/// The machine persists at leisure; it need not hear of every sync.
const FLUSH_NOTICE_INTERVAL: Duration = Duration::from_millis(20);

/// Publishes who leads. Ready is a leader that has applied an entry of its own term: the first one
/// is the blank entry every leader begins with, and all that earlier leaders committed is before it.
pub(super) async fn publish_leadership(
    raft: Raft,
    group: GroupId,
    node: NodeId,
    progress: Arc<ApplyProgress>,
    leadership: watch::Sender<Leadership>,
) {
    let mut metrics = raft.server_metrics();
    let mut applied_term = progress.term.subscribe();
    let mut campaigned_in = None;
    loop {
        let now = {
            let metrics = metrics.borrow_and_update();
            if metrics.state == ServerState::Candidate {
                let term = metrics.vote.leader_id.term;
                if campaigned_in.replace(term) != Some(term) {
                    tracing::info!(%group, term, "election begun");
                }
            }
            let term = Term(metrics.vote.leader_id.term);
            let leader = metrics.current_leader.map(NodeId);
            let leads = metrics.state == ServerState::Leader && leader == Some(node);
            Leadership { term, leader, is_leader_ready: leads && *applied_term.borrow_and_update() == term }
        };
        let mut before = Leadership::default();
        leadership.send_if_modified(|known| {
            before = std::mem::replace(known, now);
            before != now
        });
        tell(group, node, before, now);
        let goes_on = tokio::select! {
            biased;
            changed = metrics.changed() => changed.is_ok(),
            changed = applied_term.changed() => changed.is_ok(),
        };
        if !goes_on {
            leadership.send_if_modified(|before| std::mem::take(before) != Leadership::default());
            return;
        }
    }
}

/// The moments of a failover, from which `ledgermq chaos` makes up how long each part of it took.
fn tell(group: GroupId, node: NodeId, before: Leadership, now: Leadership) {
    let term = now.term.get();
    let led_before = before.leader == Some(node) && before.term == now.term;
    if now.leader == Some(node) && !led_before {
        tracing::info!(%group, term, "elected");
    }
    if now.is_leader_ready && !(before.is_leader_ready && before.term == now.term) {
        tracing::info!(%group, term, "ready to serve");
    }
}

/// Collects the three ways in which a group ends for good.
pub(super) async fn publish_fault(
    raft: Raft,
    store: LogStore,
    progress: Arc<ApplyProgress>,
    mut stopping: watch::Receiver<bool>,
    fault: watch::Sender<Option<GroupFault>>,
) {
    let mut store_fault = store.fault();
    let mut apply_fault = progress.fault.subscribe();
    let found = tokio::select! {
        biased;
        _ = stopping.wait_for(|stopping| *stopping) => return,
        Ok(fault) = store_fault.wait_for(Option::is_some) => fault.as_ref().map(|fault| GroupFault { reason: fault.to_string() }),
        Ok(fault) = apply_fault.wait_for(Option::is_some) => fault.clone(),
        reason = stopped(&raft) => Some(GroupFault { reason }),
        else => return,
    };
    fault.send_replace(found);
}

/// The full metrics change with every turn of openraft's loop, so they are looked at only when the
/// rarer ones change, or end: they end with the loop, and why it ended is published before.
async fn stopped(raft: &Raft) -> String {
    let mut rare = raft.server_metrics();
    loop {
        let is_over = rare.changed().await.is_err();
        if let Err(fatal) = &raft.metrics().borrow_watched().running_state {
            return format!("raft stopped: {fatal}");
        }
        if is_over {
            return "raft is gone".to_owned();
        }
    }
}

/// Tells the machine how far it may persist.
pub(super) async fn forward_flushed(
    store: LogStore,
    machine: Arc<dyn StateMachine>,
    mut stopping: watch::Receiver<bool>,
) {
    let mut flushed = store.flushed();
    loop {
        let now = *flushed.borrow_and_update();
        if let Some(now) = now {
            machine.log_flushed(now.index);
        }
        tokio::select! {
            biased;
            _ = stopping.wait_for(|stopping| *stopping) => return,
            changed = flushed.changed() => if changed.is_err() { return },
        }
        tokio::time::sleep(FLUSH_NOTICE_INTERVAL).await;
    }
}
