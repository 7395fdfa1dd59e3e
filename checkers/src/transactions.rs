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
//! | `no-outcome` | acknowledged, and at the end the cluster itself says that it has no outcome yet |
//!
//! Whoever was asked for an outcome may have died with the answer, so a decision may be known to nobody.
//! Where the cluster was asked at the end what has no outcome ([`Operation::Undecided`]), each half that
//! it does not name has one: if nobody ever asked for anything but a commit, that was it, and `lost-commit`
//! says that it was not delivered.
//!
//! Not fatal: `undecided`, a half that was acknowledged and nobody's decision was answered OK, where the
//! cluster was not asked.

use std::collections::{BTreeMap, BTreeSet};

use crate::history::{Kind, Operation, Span};
use crate::messages::{Messages, Place, Sent};
use crate::verdict::{Findings, Verdict};

#[derive(Debug, Default)]
struct Decisions {
    commit_ok: bool,
    rollback_ok: bool,
    rollback_asked: bool,
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
            of_half.rollback_asked |= span.kind != Kind::Fail;
        }
    }
    let undecided: Option<BTreeSet<u64>> = spans.iter().rev().find_map(|span| match span.answered {
        Operation::Undecided { numbers } if span.kind == Kind::Ok => Some(numbers.iter().copied().collect()),
        _ => None,
    });
    let mut places: BTreeMap<u64, BTreeSet<Place>> = BTreeMap::new();
    let mut first_seen: BTreeMap<u64, u64> = BTreeMap::new();
    for delivered in messages.deliveries() {
        let number = delivered.number;
        places.entry(number).or_default().extend(delivered.place);
        let first = first_seen.entry(number).or_insert(delivered.at_ns);
        *first = delivered.at_ns.min(*first);
    }
    let halves: Vec<&Sent> = messages.sends().iter().filter(|sent| sent.half).collect();
    findings.count("halves", halves.len());
    findings.count("deliveries", messages.count_deliveries());

    for (number, places) in &places {
        if places.len() > 1 {
            let names = places.iter().map(|place| messages.place_name(*place));
            findings.fatal("duplicated", || {
                format!("{number} lies at {}", names.collect::<Vec<_>>().join(" and at "))
            });
        }
        if messages.sent(*number).is_none() {
            findings.fatal("unknown-half", || format!("{number} was never sent"));
        }
    }
    let nobody = Decisions::default();
    for sent in &halves {
        let number = &sent.number;
        let has_no_outcome = undecided.as_ref().map(|undecided| undecided.contains(number));
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
            None if sent.kind == Kind::Ok
                && has_no_outcome == Some(false)
                && decided.commit_asked_ns.is_some()
                && !decided.rollback_asked =>
            {
                findings.fatal("lost-commit", || {
                    format!("{number}: nobody asked for a rollback, and it has no open outcome")
                });
            }
            None => {}
        }
        match has_no_outcome {
            Some(true) if sent.kind == Kind::Ok => findings.fatal("no-outcome", || format!("{number}")),
            None if sent.kind == Kind::Ok && !decided.commit_ok && !decided.rollback_ok => {
                findings.allowed("undecided", || format!("{number}"));
            }
            _ => {}
        }
    }
    let nothing = (halves.is_empty() || messages.is_unread())
        .then_some("no half message was sent, or nobody received anything");
    findings.verdict(nothing)
}
