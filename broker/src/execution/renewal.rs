//! Leases the server renews by itself, for consumers that asked for it (`auto_renew`).
//!
//! The leader looks at all leases of its group every [`SCAN_INTERVAL`], and extends by one lease
//! length those that end soon and whose client is alive. After [`RENEWED_MS_MAX`] in all it stops:
//! a message a client holds for hours is stuck, and goes back by the group's retry policy.
//! Extensions travel in batches, one log entry each.

use std::sync::{Arc, Weak};
use std::time::Duration;

use ledgermq_edge::validate::AUTO_RENEW_LEASE_MS;
use tokio::time::MissedTickBehavior;

use super::hosted_group::HostedGroup;
use crate::state::{Command, ExtendLeases, LeaseExtension};

pub const SCAN_INTERVAL: Duration = Duration::from_secs(5);
/// Renewed when no more than this is left; above the interval of the scan, so that no lease ends
/// between two looks.
pub const RENEW_AHEAD_MS: u64 = 10_000;
/// RocketMQ's `renewMaxTimeMillis`.
pub const RENEWED_MS_MAX: u64 = 3 * 60 * 60 * 1000;
/// Leases in one command; what is left over waits for the next command of the same scan.
const EXTENSIONS_MAX: usize = 1024;
/// Commands of one scan: beyond that the group has more leases than one leader can renew.
const COMMANDS_PER_SCAN_MAX: usize = 64;

pub async fn renew_leases(hosted: Weak<HostedGroup>) {
    let mut scan = tokio::time::interval(SCAN_INTERVAL);
    scan.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        scan.tick().await;
        let Some(hosted) = hosted.upgrade() else { return };
        if hosted.leads() {
            renew_due(&hosted).await;
        }
        hosted.liveness.sweep();
    }
}

async fn renew_due(hosted: &Arc<HostedGroup>) {
    let now = hosted.now();
    let due = hosted
        .state
        .leases_to_renew(now.saturating_add_ms(RENEW_AHEAD_MS), EXTENSIONS_MAX * COMMANDS_PER_SCAN_MAX);
    let extensions: Vec<LeaseExtension> = due
        .into_iter()
        .filter(|lease| hosted.liveness.is_alive(lease.client))
        .map(|lease| {
            let held_ms = now.saturating_ms_since(lease.popped_at);
            let keep_renewing = held_ms < RENEWED_MS_MAX;
            let invisible_ms = if keep_renewing {
                AUTO_RENEW_LEASE_MS
            } else {
                hosted
                    .state
                    .consumer_group_by_id(lease.consumer_group)
                    .map_or(0, |group| group.settings.backoff.delay_ms(lease.attempt))
            };
            LeaseExtension {
                consumer_group: lease.consumer_group,
                topic: lease.topic,
                queue: lease.queue,
                offset: lease.offset,
                epoch: lease.epoch,
                invisible_ms,
                keep_renewing,
            }
        })
        .collect();
    for batch in extensions.chunks(EXTENSIONS_MAX) {
        let command = Command::ExtendLeases(ExtendLeases { extensions: batch.to_vec() });
        if let Err(ended) = hosted.propose(command.encode(hosted.now())).await {
            tracing::debug!(group = %hosted.name(), ?ended, "leases are not renewed here any more");
            return;
        }
    }
}
