//! Is what was acknowledged delivered, to every consumer group that read to the end, and nothing else?
//!
//! | Anomaly | Meaning | Fatal |
//! |---|---|---|
//! | `lost-prefix` | acknowledged, never delivered, while later ones of its sender were: the queue started over | yes |
//! | `lost-middle` | likewise, with earlier *and* later ones delivered: the worst | yes |
//! | `lost-tail` | likewise, and nothing later of its sender was delivered; a reader that stopped too soon looks like this | yes |
//! | `duplicated` | one number at two places, or under two message ids | yes |
//! | `unexpected` | delivered, never sent | yes |
//! | `delivered-after-ack` | a receive that began after the ack was answered brought it again | yes |
//! | `redelivered` | delivered again before that: at-least-once | no |
//! | `recovered` | delivered although nobody knew whether it was stored | no |

use std::collections::{BTreeMap, BTreeSet};

use crate::history::{Kind, Messages, Span};
use crate::verdict::{Findings, Verdict};

pub fn check(spans: &[Span<'_>]) -> Verdict {
    let messages = Messages::of(spans);
    let mut findings = Findings::of("total-queue");
    findings.count("sent", messages.sends.len());
    findings.count("acknowledged", messages.count_acknowledged());
    findings.count("deliveries", messages.count_deliveries());
    for (group, deliveries) in &messages.deliveries {
        let mut places: BTreeMap<u64, BTreeSet<_>> = BTreeMap::new();
        let mut ids: BTreeMap<u64, BTreeSet<&str>> = BTreeMap::new();
        for delivered in deliveries {
            let number = delivered.delivery.number;
            let known = places.entry(number).or_default();
            let again = !known.is_empty();
            known.insert(delivered.delivery.place());
            ids.entry(number).or_default().insert(&delivered.delivery.id);
            let acked = messages.acked.get(&(*group, number));
            if acked.is_some_and(|acked| *acked < delivered.invoked_ns) {
                findings.fatal("delivered-after-ack", || format!("{number} to {group}"));
            } else if again {
                findings.allowed("redelivered", || format!("{number} to {group}"));
            }
        }
        for (number, places) in &places {
            if places.len() > 1 {
                findings.fatal("duplicated", || format!("{number} lies at {places:?}"));
            } else if ids.get(number).is_some_and(|ids| ids.len() > 1) {
                findings.fatal("duplicated", || format!("{number} has the ids {:?}", ids.get(number)));
            }
            match messages.sends.get(number) {
                None => findings.fatal("unexpected", || format!("{number} was never sent")),
                Some(sent) if sent.kind == Kind::Info => {
                    findings.allowed("recovered", || format!("{number}"));
                }
                Some(_) => {}
            }
        }
        lost(&messages, group, &places, &mut findings);
    }
    let nothing = messages.deliveries.is_empty().then_some("nobody received anything");
    findings.verdict(nothing)
}

/// Splits what is missing by what its own sender had delivered before and after it.
fn lost<P>(messages: &Messages<'_>, group: &str, delivered: &BTreeMap<u64, P>, findings: &mut Findings) {
    let mut by_sender: BTreeMap<u32, Vec<(u64, u64)>> = BTreeMap::new();
    for (number, sent) in &messages.sends {
        // Halves have a checker of their own, and what is called back need not arrive.
        if sent.kind == Kind::Ok && !sent.answer.half && sent.answer.due_ns.is_none() {
            by_sender.entry(sent.process).or_default().push((sent.invoked_ns, *number));
        }
    }
    for sent in by_sender.values_mut() {
        sent.sort_unstable();
        let arrived: Vec<bool> = sent.iter().map(|(_, number)| delivered.contains_key(number)).collect();
        let first = arrived.iter().position(|arrived| *arrived);
        let last = arrived.iter().rposition(|arrived| *arrived);
        for (position, (_, number)) in sent.iter().enumerate() {
            if delivered.contains_key(number) {
                continue;
            }
            let kind = match (first, last) {
                (Some(first), _) if position < first => "lost-prefix",
                (_, Some(last)) if position < last => "lost-middle",
                _ => "lost-tail",
            };
            findings.fatal(kind, || format!("{number} never came to {group}"));
        }
    }
}
