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
//!
//! Takes time in proportion to the history (and the logarithm that sorting adds).

use std::collections::{HashMap, HashSet};

use crate::history::{Kind, Span};
use crate::messages::{Messages, Place, Queue, Sent};
use crate::verdict::{Findings, Verdict};

/// Whether a consumer must see first deliveries in the order of their offsets. Groups whose members
/// share a queue need not: a lease that was planned and not granted is planned again later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PollOrder {
    Any,
    Ascending,
}

/// A message at a place, as a delivery or the answer to its send says; sorted and without repeats.
type AtPlaces = Vec<(Place, u64)>;

pub fn check(spans: &[Span<'_>], order: PollOrder) -> Verdict {
    of(&Messages::of(spans), order)
}

pub fn of(messages: &Messages, order: PollOrder) -> Verdict {
    let mut findings = Findings::of("queue-log");
    let mut delivered: AtPlaces =
        messages.deliveries().filter_map(|of| Some((of.place?, of.number))).collect();
    sort(&mut delivered);
    let told = messages.sends().iter().filter(|sent| sent.kind == Kind::Ok);
    let mut known: AtPlaces = told.filter_map(|sent| Some((sent.place()?, sent.number))).collect();
    known.extend_from_slice(&delivered);
    sort(&mut known);
    let mut places_of: Vec<(u64, Place)> =
        delivered.iter().map(|(place, number)| (*number, *place)).collect();
    drop(delivered);
    places_of.sort_unstable();

    let places = known.chunk_by(|one, other| one.0 == other.0);
    findings.count("places", places.clone().count());
    findings.count("deliveries", messages.count_deliveries());
    for at_place in places.filter(|at_place| at_place.len() > 1) {
        findings.fatal("inconsistent-offset", || {
            let numbers: Vec<u64> = at_place.iter().map(|(_, number)| *number).collect();
            let place = at_place.first().map_or_else(String::new, |(place, _)| messages.place_name(*place));
            format!("{place} holds {numbers:?}")
        });
    }
    for places in places_of.chunk_by(|one, other| one.0 == other.0) {
        one_message(messages, places, &mut findings);
    }
    unread(messages, &places_of, &mut findings);
    sends_in_order(messages, &places_of, &mut findings);
    polls(messages, &known, order, &mut findings);
    let unknown = match (messages.is_unread(), messages.deliveries().all(|of| of.place.is_none())) {
        (true, _) => Some("nobody received anything"),
        (false, true) if messages.count_deliveries() > 0 => Some("no delivery says where it lay"),
        _ => None,
    };
    findings.verdict(unknown)
}

fn sort(places: &mut AtPlaces) {
    places.sort_unstable();
    places.dedup();
}

/// The places one message was delivered from.
fn one_message(messages: &Messages, places: &[(u64, Place)], findings: &mut Findings) {
    let Some(&(number, first)) = places.first() else { return };
    let names = || {
        let names: Vec<String> = places.iter().map(|(_, place)| messages.place_name(*place)).collect();
        names.join(" and at ")
    };
    if places.len() > 1 {
        findings.fatal("duplicate", || format!("{number} lies at {}", names()));
    }
    let Some(sent) = messages.sent(number) else { return };
    if sent.kind == Kind::Fail {
        findings.fatal("aborted-read", || {
            format!("{number} was delivered from {}, its send had failed", messages.place_name(first))
        });
    }
    if let Some(offset) = sent.offset().filter(|_| sent.kind == Kind::Ok)
        && !places.iter().any(|(_, place)| place.offset == offset)
    {
        findings.fatal("inconsistent-offset", || {
            format!("{number} was acknowledged at offset {offset} and delivered from {}", names())
        });
    }
}

fn place_of(places_of: &[(u64, Place)], number: u64) -> Option<Place> {
    let at = places_of.partition_point(|(of, _)| *of < number);
    places_of.get(at).filter(|(of, _)| *of == number).map(|(_, place)| *place)
}

fn unread(messages: &Messages, places_of: &[(u64, Place)], findings: &mut Findings) {
    let mut highest: HashMap<Queue, u64> = HashMap::new();
    for place in messages.deliveries().filter_map(|delivered| delivered.place) {
        let offset = highest.entry(place.queue).or_insert(0);
        *offset = place.offset.max(*offset);
    }
    for sent in messages.sends() {
        if sent.kind != Kind::Ok || sent.half || place_of(places_of, sent.number).is_some() {
            continue;
        }
        match sent.place() {
            Some(place) if highest.get(&place.queue).is_some_and(|highest| place.offset < *highest) => {
                findings.fatal("lost-write", || format!("{} at {}", sent.number, messages.place_name(place)));
            }
            _ => findings.allowed("unseen", || format!("{}", sent.number)),
        }
    }
}

/// In each queue: a send that began after another was acknowledged lies behind it.
fn sends_in_order(messages: &Messages, places_of: &[(u64, Place)], findings: &mut Findings) {
    // (queue, time, is a completion, number, offset); completions at one time come after invocations,
    // so that equal stamps accuse nobody.
    let mut moments: Vec<(Queue, u64, bool, u64, u64)> = Vec::new();
    for sent in messages.sends() {
        let (Kind::Ok, Some(completed)) = (sent.kind, sent.completed_ns()) else { continue };
        if sent.is_placed_later() {
            continue;
        }
        let Some(place) = sent.place().or_else(|| place_of(places_of, sent.number)) else { continue };
        let Sent { number, invoked_ns, .. } = *sent;
        moments.push((place.queue, invoked_ns, false, number, place.offset));
        moments.push((place.queue, completed, true, number, place.offset));
    }
    moments.sort_unstable();
    for moments in moments.chunk_by(|one, other| one.0 == other.0) {
        let mut acknowledged: Option<(u64, u64)> = None;
        for &(queue, _, is_completion, number, offset) in moments {
            match acknowledged {
                Some((highest, _)) if is_completion && offset <= highest => {}
                _ if is_completion => acknowledged = Some((offset, number)),
                Some((highest, before)) if offset < highest => {
                    findings.fatal("non-monotonic-send", || {
                        format!(
                            "{number} at {} offset {offset} was sent after {before} at {highest} was acknowledged",
                            messages.queue_name(queue)
                        )
                    });
                }
                _ => {}
            }
        }
    }
}

fn polls(messages: &Messages, known: &AtPlaces, order: PollOrder, findings: &mut Findings) {
    for (name, group) in messages.groups() {
        let mut seen: HashSet<Place> = HashSet::with_capacity(group.deliveries.len());
        let mut highest: HashMap<Queue, u64> = HashMap::new();
        // (process, queue) → the last first delivery: offset, batch.
        let mut last: HashMap<(u32, Queue), (u64, u32)> = HashMap::new();
        for delivered in &group.deliveries {
            let Some(place @ Place { queue, offset }) = delivered.place else { continue };
            let is_first = seen.insert(place);
            let of_queue = highest.entry(queue).or_insert(0);
            *of_queue = offset.max(*of_queue);
            if order == PollOrder::Any || !is_first || delivered.attempt > 1 {
                continue;
            }
            let before = last.insert((delivered.process, queue), (offset, delivered.batch));
            if let Some((before, batch)) = before.filter(|(before, _)| *before > offset) {
                let anomaly = if batch == delivered.batch {
                    "internal-non-monotonic-poll"
                } else {
                    "non-monotonic-poll"
                };
                findings
                    .fatal(anomaly, || format!("{name} got {} after {before}", messages.place_name(place)));
            }
        }
        for at_place in known.chunk_by(|one, other| one.0 == other.0) {
            let Some(&(place, _)) = at_place.first() else { continue };
            let read_beyond = highest.get(&place.queue).is_some_and(|highest| place.offset < *highest);
            if !read_beyond || seen.contains(&place) {
                continue;
            }
            // What nobody knows to be stored may be missing.
            let exists = at_place
                .iter()
                .all(|(_, number)| messages.sent(*number).is_none_or(|sent| sent.kind == Kind::Ok));
            if exists {
                findings.fatal("poll-skip", || format!("{name} never got {}", messages.place_name(place)));
            }
        }
    }
}
