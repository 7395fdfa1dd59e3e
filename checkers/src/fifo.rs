//! Order within a message group, and who may hold its messages.
//!
//! | Anomaly | Meaning |
//! |---|---|
//! | `out-of-order` | first deliveries of a message group in another order than its sends, which followed each other |
//! | `overtaking` | a message was given out while an earlier one of its group was neither acknowledged nor held by the same consumer |
//! | `two-holders` | two consumers held un-acked messages of one message group at the same time |
//!
//! The order of a message group is the order of sends of which one was acknowledged before the next
//! began; sends that overlap have none. A lease counts as held from the answer of its receive until
//! its ack is asked for or its time, counted from the receive's invocation, is over: the shortest
//! time it can have lasted.

use std::collections::BTreeMap;

use crate::history::{Delivered, Kind, Messages, Sent, Span};
use crate::verdict::{Findings, Verdict};

pub fn check(spans: &[Span<'_>]) -> Verdict {
    let messages = Messages::of(spans);
    let mut findings = Findings::of("fifo");
    let mut keys: BTreeMap<&str, Vec<(u64, &Sent<'_>)>> = BTreeMap::new();
    for (number, sent) in &messages.sends {
        if let (Some(key), true) = (sent.answer.message_group.as_deref(), sent.kind != Kind::Fail) {
            keys.entry(key).or_default().push((*number, sent));
        }
    }
    findings.count("message groups", keys.len());
    findings.count("deliveries", messages.count_deliveries());
    let mut key_of: BTreeMap<u64, &str> = BTreeMap::new();
    for (key, sends) in &mut keys {
        sends.sort_by_key(|(_, sent)| sent.invoked_ns);
        key_of.extend(sends.iter().map(|(number, _)| (*number, *key)));
    }
    for (group, deliveries) in &messages.deliveries {
        let mut of_keys: BTreeMap<&str, Vec<&Delivered<'_>>> = BTreeMap::new();
        for delivered in deliveries {
            if let Some(key) = key_of.get(&delivered.delivery.number) {
                of_keys.entry(key).or_default().push(delivered);
            }
        }
        for (key, deliveries) in &of_keys {
            let sends = keys.get(key).map_or(&[] as &[_], Vec::as_slice);
            one(key, group, sends, deliveries, &messages, &mut findings);
        }
    }
    let nothing = (keys.is_empty() || messages.deliveries.is_empty())
        .then_some("no message with a message group was delivered");
    findings.verdict(nothing)
}

fn one(
    key: &str,
    group: &str,
    sends: &[(u64, &Sent<'_>)],
    deliveries: &[&Delivered<'_>],
    messages: &Messages<'_>,
    findings: &mut Findings,
) {
    let mut first_at: BTreeMap<u64, usize> = BTreeMap::new();
    for (position, delivered) in deliveries.iter().enumerate() {
        first_at.entry(delivered.delivery.number).or_insert(position);
    }
    let ack_invoked = |number: u64| messages.ack_invoked.get(&(group, number)).copied().unwrap_or(u64::MAX);
    let held_until = |delivered: &Delivered<'_>| {
        let lease_end = delivered.invoked_ns.saturating_add(delivered.lease_ns);
        lease_end.min(ack_invoked(delivered.delivery.number))
    };
    for (later, (number, sent)) in sends.iter().enumerate() {
        let Some(&delivered_at) = first_at.get(number) else { continue };
        for (earlier, before) in &sends[..later] {
            let follows = before.kind == Kind::Ok
                && before.completed_ns.is_some_and(|completed| completed < sent.invoked_ns);
            if !follows {
                continue;
            }
            match first_at.get(earlier) {
                Some(&earlier_at) if earlier_at < delivered_at => {}
                _ => findings.fatal("out-of-order", || {
                    format!("{group} got {number} of {key} before {earlier}, which was sent first")
                }),
            }
        }
    }
    for (position, delivered) in deliveries.iter().enumerate() {
        let number = delivered.delivery.number;
        let order = sends.iter().position(|(of, _)| *of == number).unwrap_or(0);
        for (earlier, before) in &sends[..order] {
            let follows = before.completed_ns.is_some_and(|completed| {
                messages.sends.get(&number).is_some_and(|sent| completed < sent.invoked_ns)
            });
            let is_done = ack_invoked(*earlier) <= delivered.at_ns;
            let is_held_here = deliveries
                .iter()
                .take(position)
                .any(|other| other.delivery.number == *earlier && other.process == delivered.process);
            // Never delivered before: that is out of order, said above.
            let was_delivered = first_at.get(earlier).is_some_and(|first| *first < position);
            if follows && was_delivered && !is_done && !is_held_here {
                findings.fatal("overtaking", || {
                    format!("{group} got {number} of {key} while {earlier} was not acknowledged")
                });
            }
        }
        for other in &deliveries[..position] {
            let overlaps = other.process != delivered.process && held_until(other) > delivered.at_ns;
            if overlaps {
                findings.fatal("two-holders", || {
                    format!(
                        "consumers {} and {} of {group} held {} and {number} of {key}",
                        other.process, delivered.process, other.delivery.number
                    )
                });
            }
        }
    }
}
