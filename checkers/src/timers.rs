//! Delayed messages: never early, not too late, once, and not after a recall that won.
//!
//! | Anomaly | Meaning |
//! |---|---|
//! | `early` | delivered before its time |
//! | `late` | delivered more than the bound after its time, or not at all |
//! | `fired-twice` | delivered from two places |
//! | `fired-although-recalled` | a recall was answered OK, and it was delivered |
//! | `neither` | a recall was refused as too late, and it was never delivered |
//!
//! Not fatal: `late-again`, late in its second attempt or a later one. It was given out before, and nobody
//! knows when: the answer was lost, and the lease had to end.
//!
//! Due times are times of the recorder's clock; `slack_ns` covers the difference between it and the
//! broker's.

use std::collections::{BTreeMap, BTreeSet};

use crate::history::{Kind, Operation, Span};
use crate::messages::{Messages, Place};
use crate::verdict::{Findings, Verdict};

#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    pub late_ns: u64,
    pub slack_ns: u64,
}

pub fn check(spans: &[Span<'_>], bounds: Bounds) -> Verdict {
    let messages = Messages::of(spans);
    let mut findings = Findings::of("timers");
    let mut recalls: BTreeMap<u64, Vec<Kind>> = BTreeMap::new();
    for span in spans {
        if let Operation::Recall { number } = span.asked {
            recalls.entry(*number).or_default().push(span.kind);
        }
    }
    // When, and in which attempt.
    let mut first: BTreeMap<u64, (u64, u32)> = BTreeMap::new();
    let mut places: BTreeMap<u64, BTreeSet<Place>> = BTreeMap::new();
    for delivered in messages.deliveries() {
        let number = delivered.number;
        let came = (delivered.at_ns, delivered.attempt);
        let known = first.entry(number).or_insert(came);
        *known = came.min(*known);
        places.entry(number).or_default().extend(delivered.place);
    }
    let ends_ns = spans.iter().filter_map(|span| span.completed_ns).max().unwrap_or(0);
    let mut timers = 0;
    for sent in messages.sends() {
        let Some(due_ns) = sent.due_ns() else { continue };
        let number = &sent.number;
        timers += 1;
        let recalls = recalls.get(number).map_or(&[] as &[Kind], Vec::as_slice);
        // A due time in the past is "at once", counted from the send.
        let due_ns = due_ns.max(sent.invoked_ns);
        if let Some(places) = places.get(number).filter(|places| places.len() > 1) {
            let names = places.iter().map(|place| messages.place_name(*place));
            findings.fatal("fired-twice", || {
                format!("{number} lies at {}", names.collect::<Vec<_>>().join(" and at "))
            });
        }
        match first.get(number) {
            Some((at, attempt)) => {
                if at.saturating_add(bounds.slack_ns) < due_ns {
                    findings.fatal("early", || format!("{number} by {} ns", due_ns - at));
                }
                if *at > due_ns.saturating_add(bounds.late_ns).saturating_add(bounds.slack_ns) {
                    let late = || format!("{number} by {} ns", at - due_ns);
                    match attempt {
                        0 | 1 => findings.fatal("late", late),
                        _ => findings.allowed("late-again", late),
                    }
                }
                if recalls.contains(&Kind::Ok) {
                    findings.fatal("fired-although-recalled", || format!("{number}"));
                }
            }
            None if sent.kind != Kind::Ok || recalls.contains(&Kind::Ok) || recalls.contains(&Kind::Info) => {
            }
            None if ends_ns <= due_ns.saturating_add(bounds.late_ns) => {}
            None if recalls.contains(&Kind::Fail) => findings.fatal("neither", || format!("{number}")),
            None => findings.fatal("late", || format!("{number} never came")),
        }
    }
    findings.count("timers", timers);
    findings.count("deliveries", messages.count_deliveries());
    let nothing = (timers == 0).then_some("no delayed message was sent");
    findings.verdict(nothing)
}
