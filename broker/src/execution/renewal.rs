//! Leases the server renews by itself, for consumers that asked for it (`auto_renew`).
//!
//! The leader looks at all leases of its group every [`SCAN_INTERVAL`], and extends by one lease
//! length those that end soon, whose client is alive and of which it knows that the client got them
//! ([`super::arrivals`]): an answer dies with a leader, with the node that passed it on, or with a
//! connection, and renewing its leases would hide its messages for hours, while a lease that ends is
//! delivered again. After [`RENEWED_MS_MAX`] in all it stops: a message a client holds
//! for hours is stuck, and goes back by the group's retry policy. Extensions travel in batches, one log
//! entry each.

use std::sync::{Arc, Weak};
use std::time::Duration;

use ledgermq_edge::validate::AUTO_RENEW_LEASE_MS;
use tokio::time::MissedTickBehavior;

use super::arrivals::Arrivals;
use super::hosted_group::HostedGroup;
use crate::state::{Command, ExtendLeases, LeaseExtension, RenewableLease};

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
    let Some(mut leadership) = hosted.upgrade().map(|hosted| hosted.raft_leadership()) else { return };
    let mut scan = tokio::time::interval(SCAN_INTERVAL);
    scan.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = scan.tick() => {}
            changed = leadership.changed() => if changed.is_err() { return },
        }
        let Some(hosted) = hosted.upgrade() else { return };
        if hosted.leads() {
            leadership.borrow_and_update();
            renew_due(&hosted).await;
        }
        hosted.liveness.sweep();
        hosted.arrivals.sweep();
    }
}

/// What was renewed before has arrived, by the word of the leader that did it, or the client changed it.
fn is_known_to_have_arrived(lease: &RenewableLease, arrivals: &Arrivals) -> bool {
    lease.renewal > 0 || arrivals.contains(lease.epoch)
}

async fn renew_due(hosted: &Arc<HostedGroup>) {
    let now = hosted.now();
    let due = hosted
        .state
        .leases_to_renew(now.saturating_add_ms(RENEW_AHEAD_MS), EXTENSIONS_MAX * COMMANDS_PER_SCAN_MAX);
    let extensions: Vec<LeaseExtension> = due
        .into_iter()
        .filter(|lease| {
            is_known_to_have_arrived(lease, &hosted.arrivals) && hosted.liveness.is_alive(lease.client)
        })
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

#[cfg(test)]
mod tests {
    use ledgermq_common::clock::UnixMillis;
    use ledgermq_common::{QueueId, QueueOffset};

    use super::*;
    use crate::state::{ClientHash, ConsumerGroupId, DeliveryEpoch, TopicId};

    #[test]
    fn what_is_not_known_to_have_arrived_is_renewed_only_if_it_was_before() {
        let lease = |epoch, renewal| RenewableLease {
            consumer_group: ConsumerGroupId(1),
            topic: TopicId(1),
            queue: QueueId(0),
            offset: QueueOffset(0),
            epoch: DeliveryEpoch(epoch),
            client: ClientHash::of("push"),
            popped_at: UnixMillis(0),
            until: UnixMillis(60_000),
            attempt: 1,
            renewal,
        };
        let arrivals = Arrivals::default();
        arrivals.arrived(&[DeliveryEpoch(10)]);
        let arrived = |epoch, renewal| is_known_to_have_arrived(&lease(epoch, renewal), &arrivals);
        assert!(!arrived(9, 0), "its answer may be lost with a node or a connection");
        assert!(arrived(9, 1), "a consumer that works for minutes is not to get it again");
        assert!(arrived(10, 0));
    }
}
