//! Each half message has one outcome, and what consumers see is that outcome.
//!
//! | Anomaly | Meaning |
//! |---|---|
//! | `two-outcomes` | a commit and a rollback of one half were both answered OK |
//! | `visible-before-commit` | delivered by an answer that came before any commit was asked for |
//! | `visible-after-rollback` | delivered although a rollback was answered OK |
//! | `lost-commit` | a commit was answered OK, and it was never delivered |
//! | `duplicated` | delivered from two places |
//! | `unknown-half` | delivered, and no half of it was ever sent |
//!
//! Not fatal: `undecided`, a half that was acknowledged and nobody's decision was answered OK.

use std::collections::{BTreeMap, BTreeSet};

use crate::history::{Kind, Messages, Operation, Place, Span};
use crate::verdict::{Findings, Verdict};

#[derive(Debug, Default)]
struct Decisions {
    commit_ok: bool,
    rollback_ok: bool,
    commit_asked_ns: Option<u64>,
}

pub fn check(spans: &[Span<'_>]) -> Verdict {
    let messages = Messages::of(spans);
    let mut findings = Findings::of("transactions");
    let mut decisions: BTreeMap<u64, Decisions> = BTreeMap::new();
    for span in spans {
        let Operation::End { number, commit } = span.asked else { continue };
        let of_half = decisions.entry(*number).or_default();
        let is_ok = span.kind == Kind::Ok;
        if *commit {
            of_half.commit_ok |= is_ok;
            if span.kind != Kind::Fail {
                let asked = of_half.commit_asked_ns.get_or_insert(span.invoked_ns);
                *asked = span.invoked_ns.min(*asked);
            }
        } else {
            of_half.rollback_ok |= is_ok;
        }
    }
    let mut places: BTreeMap<u64, BTreeSet<Place>> = BTreeMap::new();
    let mut first_seen: BTreeMap<u64, u64> = BTreeMap::new();
    for delivered in messages.deliveries.values().flatten() {
        let number = delivered.delivery.number;
        places.entry(number).or_default().insert(delivered.delivery.place());
        let first = first_seen.entry(number).or_insert(delivered.at_ns);
        *first = delivered.at_ns.min(*first);
    }
    let halves: BTreeMap<_, _> = messages.sends.iter().filter(|(_, sent)| sent.answer.half).collect();
    findings.count("halves", halves.len());
    findings.count("deliveries", messages.count_deliveries());

    for (number, places) in &places {
        if places.len() > 1 {
            findings.fatal("duplicated", || format!("{number} lies at {places:?}"));
        }
        if !messages.sends.contains_key(number) {
            findings.fatal("unknown-half", || format!("{number} was never sent"));
        }
    }
    let nobody = Decisions::default();
    for (number, sent) in &halves {
        let decided = decisions.get(number).unwrap_or(&nobody);
        if decided.commit_ok && decided.rollback_ok {
            findings.fatal("two-outcomes", || format!("{number} was committed and rolled back"));
        }
        match first_seen.get(number) {
            Some(seen) => {
                if decided.commit_asked_ns.is_none_or(|asked| asked > *seen) {
                    findings.fatal("visible-before-commit", || format!("{number}"));
                }
                if decided.rollback_ok && !decided.commit_ok {
                    findings.fatal("visible-after-rollback", || format!("{number}"));
                }
            }
            None if decided.commit_ok => findings.fatal("lost-commit", || format!("{number}")),
            None => {}
        }
        if sent.kind == Kind::Ok && !decided.commit_ok && !decided.rollback_ok {
            findings.allowed("undecided", || format!("{number}"));
        }
    }
    let nothing = (halves.is_empty() || messages.deliveries.is_empty())
        .then_some("no half message was sent, or nobody received anything");
    findings.verdict(nothing)
}
