//! Each queue as a log: what lies at which offset, and in which order it is written and read.
//!
//! | Anomaly | Meaning |
//! |---|---|
//! | `aborted-read` | a message whose send definitely failed was delivered |
//! | `inconsistent-offset` | two messages at one offset, or an answer that names another offset than the deliveries do |
//! | `duplicate` | one message at two offsets |
//! | `lost-write` | acknowledged at an offset below the highest one delivered of its queue, and never delivered |
//! | `non-monotonic-send` | acknowledged before another send of the same queue began, and stored behind it |
//! | `poll-skip` | a group was given a later offset and never an earlier one that is known to exist |
//! | `non-monotonic-poll` | a reader was given first deliveries of a queue out of order (ordered groups only) |
//! | `internal-non-monotonic-poll` | likewise inside one answer |
//!
//! Not fatal: `unseen`, acknowledged and beyond the end of what was delivered.
//!
//! An answer of RocketMQ's protocol names the offset and not the queue; where a send does not say its
//! queue, the queue is taken from its deliveries.

use std::collections::{BTreeMap, BTreeSet};

use crate::history::{Kind, Messages, Place, Span};
use crate::verdict::{Findings, Verdict};

type Queue = (String, u32);

/// Whether a consumer must see first deliveries in the order of their offsets. Groups whose members
/// share a queue need not: a lease that was planned and not granted is planned again later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PollOrder {
    Any,
    Ascending,
}

pub fn check(spans: &[Span<'_>], order: PollOrder) -> Verdict {
    let messages = Messages::of(spans);
    let mut findings = Findings::of("queue-log");
    let mut at_place: BTreeMap<Place, BTreeSet<u64>> = BTreeMap::new();
    let mut places_of: BTreeMap<u64, BTreeSet<Place>> = BTreeMap::new();
    for delivered in messages.deliveries.values().flatten() {
        let (number, place) = (delivered.delivery.number, delivered.delivery.place());
        at_place.entry(place.clone()).or_default().insert(number);
        places_of.entry(number).or_default().insert(place);
    }
    for (number, sent) in &messages.sends {
        if let (Kind::Ok, Some(queue), Some(offset)) = (sent.kind, &sent.answer.queue, sent.answer.offset) {
            at_place.entry((queue.0.clone(), queue.1, offset)).or_default().insert(*number);
        }
    }
    findings.count("places", at_place.len());
    findings.count("deliveries", messages.count_deliveries());

    for (place, numbers) in &at_place {
        if numbers.len() > 1 {
            findings.fatal("inconsistent-offset", || format!("{place:?} holds {numbers:?}"));
        }
    }
    for (number, places) in &places_of {
        if places.len() > 1 {
            findings.fatal("duplicate", || format!("{number} lies at {places:?}"));
        }
        let Some(sent) = messages.sends.get(number) else { continue };
        if sent.kind == Kind::Fail {
            findings.fatal("aborted-read", || format!("{number} was delivered, its send had failed"));
        }
        let promised = sent.answer.offset.filter(|_| sent.kind == Kind::Ok);
        if let Some(offset) = promised
            && !places.iter().any(|(_, _, at)| *at == offset)
        {
            findings.fatal("inconsistent-offset", || {
                format!("{number} was acknowledged at offset {offset} and delivered from {places:?}")
            });
        }
    }
    let highest = highest_delivered(&messages);
    unread(&messages, &places_of, &highest, &mut findings);
    sends_in_order(&messages, &places_of, &mut findings);
    polls(&messages, &at_place, order, &mut findings);
    let nothing = messages.deliveries.is_empty().then_some("nobody received anything");
    findings.verdict(nothing)
}

fn highest_delivered(messages: &Messages<'_>) -> BTreeMap<Queue, u64> {
    let mut highest = BTreeMap::new();
    for delivered in messages.deliveries.values().flatten() {
        let offset = highest.entry(delivered.delivery.queue.clone()).or_insert(0);
        *offset = delivered.delivery.offset.max(*offset);
    }
    highest
}

fn unread(
    messages: &Messages<'_>,
    places_of: &BTreeMap<u64, BTreeSet<Place>>,
    highest: &BTreeMap<Queue, u64>,
    findings: &mut Findings,
) {
    for (number, sent) in &messages.sends {
        if sent.kind != Kind::Ok || places_of.contains_key(number) || sent.answer.half {
            continue;
        }
        let place = sent.answer.queue.as_ref().zip(sent.answer.offset);
        match place {
            Some((queue, offset)) if highest.get(queue).is_some_and(|highest| offset < *highest) => {
                findings.fatal("lost-write", || format!("{number} at {queue:?} offset {offset}"));
            }
            _ => findings.allowed("unseen", || format!("{number}")),
        }
    }
}

/// In each queue: a send that began after another was acknowledged lies behind it.
fn sends_in_order(
    messages: &Messages<'_>,
    places_of: &BTreeMap<u64, BTreeSet<Place>>,
    findings: &mut Findings,
) {
    // (time, is a completion, number, offset); completions at one time come after invocations, so
    // that equal stamps accuse nobody.
    let mut moments: BTreeMap<Queue, Vec<(u64, bool, u64, u64)>> = BTreeMap::new();
    for (number, sent) in &messages.sends {
        let (Kind::Ok, Some(completed)) = (sent.kind, sent.completed_ns) else { continue };
        // These get their place later, when they are committed or fire.
        if sent.answer.half || sent.answer.due_ns.is_some() {
            continue;
        }
        let delivered = places_of.get(number).and_then(|places| places.first());
        let told = sent.answer.queue.clone().zip(sent.answer.offset);
        let place = told.or_else(|| delivered.map(|place| ((place.0.clone(), place.1), place.2)));
        let Some((queue, offset)) = place else { continue };
        let of_queue = moments.entry(queue).or_default();
        of_queue.push((sent.invoked_ns, false, *number, offset));
        of_queue.push((completed, true, *number, offset));
    }
    for (queue, mut moments) in moments {
        moments.sort_unstable();
        let mut acknowledged: Option<(u64, u64)> = None;
        for (_, is_completion, number, offset) in moments {
            match acknowledged {
                Some((highest, _)) if is_completion && offset <= highest => {}
                _ if is_completion => acknowledged = Some((offset, number)),
                Some((highest, before)) if offset < highest => {
                    findings.fatal("non-monotonic-send", || {
                        format!(
                            "{number} at {queue:?} offset {offset} was sent after {before} at {highest} was acknowledged"
                        )
                    });
                }
                _ => {}
            }
        }
    }
}

fn polls(
    messages: &Messages<'_>,
    at_place: &BTreeMap<Place, BTreeSet<u64>>,
    order: PollOrder,
    findings: &mut Findings,
) {
    for (group, deliveries) in &messages.deliveries {
        let mut seen: BTreeSet<Place> = BTreeSet::new();
        let mut highest: BTreeMap<Queue, u64> = BTreeMap::new();
        // (process, queue) → the last first delivery: offset, batch.
        let mut last: BTreeMap<(u32, Queue), (u64, usize)> = BTreeMap::new();
        for delivered in deliveries {
            let delivery = delivered.delivery;
            let is_first = seen.insert(delivery.place());
            let of_queue = highest.entry(delivery.queue.clone()).or_insert(0);
            *of_queue = delivery.offset.max(*of_queue);
            if order == PollOrder::Any || !is_first || delivery.attempt > 1 {
                continue;
            }
            let now = (delivery.offset, delivered.batch);
            let before = last.insert((delivered.process, delivery.queue.clone()), now);
            if let Some((offset, batch)) = before.filter(|(offset, _)| *offset > delivery.offset) {
                let name = if batch == delivered.batch {
                    "internal-non-monotonic-poll"
                } else {
                    "non-monotonic-poll"
                };
                findings.fatal(name, || {
                    format!("{group} got offset {} of {:?} after {offset}", delivery.offset, delivery.queue)
                });
            }
        }
        for ((broker, queue, offset), numbers) in at_place {
            let read_beyond = highest.get(&(broker.clone(), *queue)).is_some_and(|highest| offset < highest);
            let place = (broker.clone(), *queue, *offset);
            // What nobody knows to be stored may be missing.
            let exists = numbers
                .iter()
                .all(|number| messages.sends.get(number).is_none_or(|sent| sent.kind == Kind::Ok));
            if read_beyond && exists && !seen.contains(&place) {
                findings.fatal("poll-skip", || format!("{group} never got {place:?}"));
            }
        }
    }
}
