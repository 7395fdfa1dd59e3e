//! The search must say what trying every order says.

use ledgermq_checkers::linearizable::{Call, RegisterOp, Search, search};
use proptest::prelude::*;

/// Every order of every set that holds all finished calls, checked against real time and the register.
fn brute_force(calls: &[Call]) -> bool {
    fn place(calls: &[Call], placed: &mut Vec<usize>, state: Option<i64>) -> bool {
        let finished = |call: &Call| !call.is_optional && call.returned != u64::MAX;
        let missing: Vec<usize> = (0..calls.len()).filter(|call| !placed.contains(call)).collect();
        if missing.iter().all(|call| !finished(&calls[*call])) {
            return true;
        }
        for &call in &missing {
            // Nobody who is not placed yet may have returned before this one was invoked.
            let due = |other: &&usize| finished(&calls[**other]);
            let too_soon =
                missing.iter().filter(due).any(|other| calls[*other].returned < calls[call].invoked);
            // Nor may this one have returned before one that is placed was invoked.
            let too_late = placed.iter().any(|other| calls[call].returned < calls[*other].invoked);
            let too_soon = too_soon || too_late;
            if let (false, Some(next)) = (too_soon, calls[call].op.apply(state)) {
                placed.push(call);
                if place(calls, placed, next) {
                    return true;
                }
                placed.pop();
            }
        }
        false
    }
    place(calls, &mut Vec::new(), None)
}

fn op() -> impl Strategy<Value = RegisterOp> {
    prop_oneof![
        3 => prop::option::weighted(0.9, 0i64..3).prop_map(RegisterOp::Read),
        2 => (0i64..3).prop_map(RegisterOp::Write),
        2 => (0i64..3, 0i64..3).prop_map(|(from, to)| RegisterOp::Cas(from, to)),
        1 => (0i64..3).prop_map(RegisterOp::Create),
        1 => Just(RegisterOp::Delete),
    ]
}

fn calls() -> impl Strategy<Value = Vec<Call>> {
    let likely = prop::bool::weighted;
    let call = (op(), 0u64..20, 0u64..8, likely(0.15), likely(0.2));
    prop::collection::vec(call, 0..7).prop_map(|calls| {
        calls
            .into_iter()
            .map(|(op, invoked, lasts, unknown, is_optional)| {
                // A read of unknown outcome says nothing and is no part of a history.
                let is_read = matches!(op, RegisterOp::Read(_));
                let returned = if unknown && !is_read { u64::MAX } else { invoked + lasts };
                Call { is_optional: is_optional && !is_read, ..Call::new(op, invoked, returned) }
            })
            .collect()
    })
}

/// Calls as a register with one moment per call would answer them: always linearizable.
fn explained() -> impl Strategy<Value = Vec<Call>> {
    prop::collection::vec((op(), 0u64..6, 0u64..6), 0..40).prop_map(|steps| {
        let mut state = None;
        let mut calls = Vec::new();
        for (moment, (op, before, after)) in (10u64..).zip(steps) {
            let op = match op {
                RegisterOp::Read(_) => RegisterOp::Read(state),
                other if other.apply(state).is_none() => continue,
                other => other,
            };
            state = op.apply(state).expect("made to fit");
            calls.push(Call::new(op, moment.saturating_sub(before), moment + after));
        }
        calls
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3_000))]

    #[test]
    fn small_histories_are_judged_as_by_trying_everything(calls in calls()) {
        let expected = if brute_force(&calls) { Search::Linearizable } else { Search::NotLinearizable };
        prop_assert_eq!(search(&calls, u64::MAX), expected, "{:?}", calls);
    }

    #[test]
    fn what_a_register_did_is_linearizable(calls in explained()) {
        prop_assert_eq!(search(&calls, 5_000_000), Search::Linearizable);
    }
}

#[test]
fn a_search_that_is_too_long_says_so() {
    let calls: Vec<Call> = (0..40).map(|value| Call::new(RegisterOp::Write(value), 0, 10)).collect();
    let mut impossible = calls;
    impossible.push(Call::new(RegisterOp::Read(Some(99)), 20, 30));
    assert_eq!(search(&impossible, 10_000), Search::GivenUp);
    assert_eq!(search(&vec![impossible[0]; 5_000], u64::MAX), Search::GivenUp, "too many for one key");
}
