//! Linearizability of registers: is there an order of the operations, each at one moment between its
//! invocation and its answer, that a single register would have answered like this?
//!
//! Wing and Gong's search with Lowe's memory of (what was linearized, state): an operation that can
//! come next is one that was invoked before the first answer of those not yet placed. Registers are
//! independent, so each key is searched by itself. A state visited before with the same set of placed
//! operations leads nowhere new.
//!
//! An operation of unknown outcome has no end: it may be placed anywhere after its invocation, or
//! nowhere. One that failed is left out. The search is exponential at worst; it ends with
//! [`Outcome::Unknown`](crate::Outcome::Unknown) after [`STEPS_MAX`] per key.

use std::collections::{BTreeMap, HashSet};

use crate::history::{Kind, Operation, Span};
use crate::verdict::{Findings, Verdict};

/// Placements tried for one key before giving up.
pub const STEPS_MAX: u64 = 20_000_000;
/// Operations of one key; the memory of visited states grows with it.
pub const OPERATIONS_PER_KEY_MAX: usize = 4_096;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RegisterOp {
    /// What was read; `None` is a register nobody wrote.
    Read(Option<i64>),
    Write(i64),
    Cas(i64, i64),
}

/// An operation on one register. `returned` is `u64::MAX` where the outcome is unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    pub op: RegisterOp,
    pub invoked: u64,
    pub returned: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Search {
    Linearizable,
    NotLinearizable,
    GivenUp,
}

impl RegisterOp {
    /// The register after the operation, if it may answer like this in `state`.
    pub fn apply(self, state: Option<i64>) -> Option<Option<i64>> {
        match self {
            Self::Read(value) => (value == state).then_some(state),
            Self::Write(value) => Some(Some(value)),
            Self::Cas(from, to) => (state == Some(from)).then_some(Some(to)),
        }
    }
}

/// All registers of a history, each by itself.
pub fn check(spans: &[Span<'_>]) -> Verdict {
    let mut keys: BTreeMap<&str, Vec<Call>> = BTreeMap::new();
    for span in spans {
        let (key, op) = match (span.asked, span.answered) {
            // A read that nobody answered says nothing.
            (_, Operation::Read { key, value }) if span.kind == Kind::Ok => (key, RegisterOp::Read(*value)),
            (Operation::Write { key, value }, _) => (key, RegisterOp::Write(*value)),
            (Operation::Cas { key, from, to }, _) => (key, RegisterOp::Cas(*from, *to)),
            _ => continue,
        };
        if span.kind != Kind::Fail {
            let returned = span.completed_ns.unwrap_or(u64::MAX);
            keys.entry(key).or_default().push(Call { op, invoked: span.invoked_ns, returned });
        }
    }
    let mut findings = Findings::of("linearizable");
    findings.count("registers", keys.len());
    findings.count("operations", keys.values().map(Vec::len).sum());
    let mut given_up = 0;
    for (key, calls) in &keys {
        match search(calls, STEPS_MAX) {
            Search::Linearizable => {}
            Search::NotLinearizable => findings.fatal("not-linearizable", || {
                format!("no order explains the {} operations of {key}", calls.len())
            }),
            Search::GivenUp => given_up += 1,
        }
    }
    let unknown = match (keys.is_empty(), given_up) {
        (true, _) => Some("no register was used"),
        (false, 0) => None,
        (false, _) => Some("some registers have too many concurrent operations to search"),
    };
    findings.verdict(unknown)
}

/// Which operations are placed.
type Placed = Vec<u64>;

struct Frame {
    call: usize,
    state_before: Option<i64>,
}

pub fn search(calls: &[Call], steps_max: u64) -> Search {
    if calls.len() > OPERATIONS_PER_KEY_MAX {
        return Search::GivenUp;
    }
    let mut calls = calls.to_vec();
    calls.sort_by_key(|call| (call.invoked, call.returned));
    let must: usize = calls.iter().filter(|call| call.returned != u64::MAX).count();
    let mut placed: Placed = vec![0; calls.len().div_ceil(64)];
    let mut seen: HashSet<(Placed, Option<i64>)> = HashSet::new();
    let mut path: Vec<Frame> = Vec::new();
    let (mut state, mut done, mut from, mut steps) = (None, 0, 0, 0u64);
    let is_placed = |placed: &Placed, call: usize| placed[call / 64] >> (call % 64) & 1 == 1;
    loop {
        if done == must {
            return Search::Linearizable;
        }
        // Only what was invoked before the first answer still missing can come next.
        let horizon = calls
            .iter()
            .enumerate()
            .filter(|(call, _)| !is_placed(&placed, *call))
            .map(|(_, call)| call.returned)
            .min()
            .unwrap_or(u64::MAX);
        let mut advanced = false;
        for call in from..calls.len() {
            let candidate = calls[call];
            if candidate.invoked > horizon {
                break;
            }
            if is_placed(&placed, call) {
                continue;
            }
            steps += 1;
            if steps > steps_max {
                return Search::GivenUp;
            }
            let Some(next) = candidate.op.apply(state) else { continue };
            placed[call / 64] |= 1 << (call % 64);
            if seen.insert((placed.clone(), next)) {
                path.push(Frame { call, state_before: state });
                state = next;
                done += usize::from(candidate.returned != u64::MAX);
                from = 0;
                advanced = true;
                break;
            }
            placed[call / 64] &= !(1 << (call % 64));
        }
        if advanced {
            continue;
        }
        let Some(frame) = path.pop() else { return Search::NotLinearizable };
        placed[frame.call / 64] &= !(1 << (frame.call % 64));
        done -= usize::from(calls[frame.call].returned != u64::MAX);
        state = frame.state_before;
        from = frame.call + 1;
    }
}
