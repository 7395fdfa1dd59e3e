//! Leases: what one consumer of a group was given belongs to nobody else of it until the lease is over.
//!
//! | Anomaly | Meaning | Fatal |
//! |---|---|---|
//! | `two-leases` | given out again while the lease before it had certainly not ended | yes |
//! | `attempt-back` | a later delivery does not count a higher attempt than an earlier one | yes |
//! | `stale-handle-accepted` | a lease was changed by the handle of a delivery after a later one was answered | yes |
//! | `changed-after-ack` | a lease was changed after the ack was answered | yes |
//! | `ack-not-idempotent` | an ack was answered OK, and its repetition was refused | yes |
//! | `not-redelivered` | nobody asked for the ack, the lease ended, the group went on receiving, and it never came again | yes |
//! | `redelivered` | given out again after its lease: at-least-once | no |
//!
//! A lease is granted between the invocation of its receive and the answer, so it lasts at least
//! until the invocation plus its time, and at most until the answer plus its time. A change that
//! was answered OK counts from its own two events in the same way. One whose outcome is unknown may
//! have shortened the lease and may have prolonged it. An ack that was asked for and not refused
//! ends what is known about the lease.

use std::collections::BTreeMap;

use crate::history::{Kind, Operation, Span};
use crate::messages::{Delivered, Messages};
use crate::verdict::{Findings, Verdict};

#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// What two clocks of one machine, and the rounding of durations, may differ.
    pub slack_ns: u64,
    /// From the end of a lease to the next delivery, an election included.
    pub redelivered_within_ns: u64,
}

/// One change of a lease, by the handle of one delivery.
struct Change {
    invoked_ns: u64,
    completed_ns: Option<u64>,
    kind: Kind,
    lease_ns: u64,
}

/// Consumer group, number, attempt.
type Handle<'a> = (&'a str, u64, u32);

pub fn check(spans: &[Span<'_>], bounds: Bounds) -> Verdict {
    let messages = Messages::of(spans);
    let mut findings = Findings::of("leases");
    let changes = changes(spans);
    findings.count("deliveries", messages.count_deliveries());
    findings.count("lease changes", changes.values().map(Vec::len).sum());
    repeated_acks(spans, &messages, &mut findings);
    for (group, received) in messages.groups() {
        // An empty answer shows as well that the group goes on.
        let last_receive_ns = spans
            .iter()
            .filter(|span| {
                span.kind == Kind::Ok
                    && matches!(span.answered, Operation::Receive(receive) if receive.group == group)
            })
            .map(|span| span.invoked_ns)
            .max()
            .unwrap_or(0);
        let mut by_number: BTreeMap<u64, Vec<&Delivered>> = BTreeMap::new();
        for delivered in &received.deliveries {
            by_number.entry(delivered.number).or_default().push(delivered);
        }
        for (number, deliveries) in &by_number {
            let of = |delivered: &Delivered| {
                changes.get(&(group, *number, delivered.attempt)).map_or(&[] as &[_], Vec::as_slice)
            };
            let ack_invoked = received.ack_asked_ns(*number);
            let acked = received.acked_ns(*number);
            for pair in deliveries.windows(2) {
                let [before, after] = pair else { continue };
                let is_open = ack_invoked.is_none_or(|asked| asked > after.at_ns);
                let ends_ns = earliest_end(before, of(before), after.at_ns);
                let is_ordered = after.invoked_ns > before.at_ns;
                // Of two receives that overlap either may have come first.
                let also_reversed = before.at_ns.saturating_add(bounds.slack_ns)
                    < after.invoked_ns.saturating_add(after.lease_ns);
                if is_open
                    && after.at_ns.saturating_add(bounds.slack_ns) < ends_ns
                    && (is_ordered || also_reversed)
                {
                    findings.fatal("two-leases", || {
                        format!(
                            "{number} to consumers {} and {} of {group}, {} ns before the first lease ended",
                            before.process,
                            after.process,
                            ends_ns - after.at_ns
                        )
                    });
                } else {
                    findings.allowed("redelivered", || format!("{number} to {group}"));
                }
                let (first, second) = (before.attempt, after.attempt);
                if is_ordered && second <= first {
                    findings.fatal("attempt-back", || format!("{number} to {group}: {second} after {first}"));
                }
            }
            for delivered in deliveries {
                let attempt = delivered.attempt;
                for change in of(delivered).iter().filter(|change| change.kind == Kind::Ok) {
                    if acked.is_some_and(|acked| acked < change.invoked_ns) {
                        findings.fatal("changed-after-ack", || format!("{number} to {group}"));
                    }
                    let is_stale = deliveries
                        .iter()
                        .any(|later| later.attempt > attempt && later.at_ns < change.invoked_ns);
                    if is_stale {
                        findings.fatal("stale-handle-accepted", || {
                            format!("{number} to {group}: that of attempt {attempt}")
                        });
                    }
                }
            }
            if let (Some(last), None) = (deliveries.last(), ack_invoked)
                && let Some(ends_ns) = latest_end(last, of(last))
                && ends_ns.saturating_add(bounds.redelivered_within_ns) < last_receive_ns
            {
                findings.fatal("not-redelivered", || format!("{number} to {group}"));
            }
        }
    }
    let nothing = messages.is_unread().then_some("nobody received anything");
    findings.verdict(nothing)
}

fn changes<'a>(spans: &[Span<'a>]) -> BTreeMap<Handle<'a>, Vec<Change>> {
    let mut changes: BTreeMap<Handle<'a>, Vec<Change>> = BTreeMap::new();
    for span in spans {
        let Operation::ChangeLease { group, number, attempt, lease_ns } = span.asked else { continue };
        changes.entry((group.as_str(), *number, *attempt)).or_default().push(Change {
            invoked_ns: span.invoked_ns,
            completed_ns: span.completed_ns,
            kind: span.kind,
            lease_ns: *lease_ns,
        });
    }
    changes
}

fn repeated_acks(spans: &[Span<'_>], messages: &Messages, findings: &mut Findings) {
    for span in spans {
        let (Operation::Ack { group, numbers }, Kind::Fail) = (span.asked, span.kind) else { continue };
        for number in numbers {
            let acked = messages.group(group).and_then(|group| group.acked_ns(*number));
            if acked.is_some_and(|acked| acked < span.invoked_ns) {
                findings.fatal("ack-not-idempotent", || format!("{number} of {group}"));
            }
        }
    }
}

/// Before this time the lease is certainly not over, as far as changes asked for before `until_ns` go.
fn earliest_end(delivered: &Delivered, changes: &[Change], until_ns: u64) -> u64 {
    let mut end = delivered.invoked_ns.saturating_add(delivered.lease_ns);
    for change in changes.iter().filter(|change| change.invoked_ns < until_ns) {
        let changed = change.invoked_ns.saturating_add(change.lease_ns);
        end = match change.kind {
            Kind::Ok if change.completed_ns.is_some_and(|completed| completed < until_ns) => changed,
            Kind::Fail => end,
            // Not known, or not known yet, whether it came first.
            Kind::Ok | Kind::Info | Kind::Invoke => end.min(changed),
        };
    }
    end
}

/// After this time the lease is certainly over; `None` where a change has an unknown outcome.
fn latest_end(delivered: &Delivered, changes: &[Change]) -> Option<u64> {
    let mut end = delivered.at_ns.saturating_add(delivered.lease_ns);
    for change in changes {
        match (change.kind, change.completed_ns) {
            (Kind::Fail, _) => {}
            (Kind::Ok, Some(completed)) => end = end.max(completed.saturating_add(change.lease_ns)),
            _ => return None,
        }
    }
    Some(end)
}
