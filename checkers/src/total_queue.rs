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
//!
//! Takes time in proportion to the history (and the logarithm that sorting adds).

use std::collections::HashMap;

use crate::history::{Kind, Span};
use crate::messages::{Messages, Place, Received};
use crate::verdict::{Findings, Verdict};

/// What is known of a number that came.
struct Came {
    place: Option<Place>,
    id_hash: u64,
    is_duplicated: bool,
}

pub fn check(spans: &[Span<'_>]) -> Verdict {
    of(&Messages::of(spans))
}

pub fn of(messages: &Messages) -> Verdict {
    let mut findings = Findings::of("total-queue");
    findings.count("sent", messages.sends().len());
    findings.count("acknowledged", messages.count_acknowledged());
    findings.count("deliveries", messages.count_deliveries());
    for (name, group) in messages.groups() {
        let came = deliveries(messages, name, group, &mut findings);
        lost(messages, name, &came, &mut findings);
    }
    findings.verdict(messages.is_unread().then_some("nobody received anything"))
}

fn deliveries(
    messages: &Messages,
    name: &str,
    group: &Received,
    findings: &mut Findings,
) -> HashMap<u64, Came> {
    let mut came: HashMap<u64, Came> = HashMap::with_capacity(group.deliveries.len());
    for delivered in &group.deliveries {
        let number = delivered.number;
        let (place, id_hash) = (delivered.place, delivered.id_hash);
        let is_again = came.contains_key(&number);
        let known = came.entry(number).or_insert(Came { place, id_hash, is_duplicated: false });
        let places = known.place.zip(place).filter(|(first, place)| first != place);
        if !known.is_duplicated && (places.is_some() || known.id_hash != id_hash) {
            known.is_duplicated = true;
            findings.fatal("duplicated", || match places {
                None => format!("{number} has two message ids"),
                Some((first, place)) => format!(
                    "{number} lies at {} and at {}",
                    messages.place_name(first),
                    messages.place_name(place)
                ),
            });
        }
        known.place = known.place.or(place);
        if group.acked_ns(number).is_some_and(|acked| acked < delivered.invoked_ns) {
            findings.fatal("delivered-after-ack", || format!("{number} to {name}"));
        } else if is_again {
            findings.allowed("redelivered", || format!("{number} to {name}"));
        }
        if is_again {
            continue;
        }
        match messages.sent(number) {
            None => findings.fatal("unexpected", || format!("{number} was never sent")),
            Some(sent) if sent.kind == Kind::Info => findings.allowed("recovered", || format!("{number}")),
            Some(_) => {}
        }
    }
    came
}

/// Splits what is missing by what its own sender had delivered before and after it.
fn lost(messages: &Messages, name: &str, came: &HashMap<u64, Came>, findings: &mut Findings) {
    // Halves have a checker of their own, and what is called back need not arrive.
    let must_come = messages.sends().iter().filter(|sent| sent.kind == Kind::Ok && !sent.is_placed_later());
    if must_come.clone().all(|sent| came.contains_key(&sent.number)) {
        return;
    }
    let mut by_sender: HashMap<u32, Vec<(u64, u64)>> = HashMap::new();
    for sent in must_come {
        by_sender.entry(sent.process).or_default().push((sent.invoked_ns, sent.number));
    }
    let mut senders: Vec<u32> = by_sender.keys().copied().collect();
    senders.sort_unstable();
    for sender in senders {
        let Some(sent) = by_sender.get_mut(&sender) else { continue };
        sent.sort_unstable();
        let arrived = |(_, number): &(u64, u64)| came.contains_key(number);
        let first = sent.iter().position(arrived);
        let last = sent.iter().rposition(arrived);
        for (position, (_, number)) in sent.iter().enumerate() {
            if came.contains_key(number) {
                continue;
            }
            let kind = match (first, last) {
                (Some(first), _) if position < first => "lost-prefix",
                (_, Some(last)) if position < last => "lost-middle",
                _ => "lost-tail",
            };
            findings.fatal(kind, || format!("{number} never came to {name}"));
        }
    }
}
