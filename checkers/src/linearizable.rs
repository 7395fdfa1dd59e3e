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
//!
//! A client that got no answer says what it wants again, and so does a node that passes a request on; a
//! write may then take effect twice, with others between. A write that lasted longer than
//! [`REPEATED_AFTER_NS`] is therefore accompanied by one that may be placed within the same time, or
//! nowhere. It explains no value before the first and none after the answer.

use std::collections::{BTreeMap, HashSet};

use crate::history::{Kind, Operation, Span};
use crate::verdict::{Findings, Verdict};

/// Placements tried for one key before giving up.
pub const STEPS_MAX: u64 = 20_000_000;
/// Operations of one key; the memory of visited states grows with it.
pub const OPERATIONS_PER_KEY_MAX: usize = 4_096;
/// Nobody repeats a request sooner: a connection has to break, or a time to pass.
pub const REPEATED_AFTER_NS: u64 = 20_000_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RegisterOp {
    /// What was read; `None` is a register nobody wrote.
    Read(Option<i64>),
    Write(i64),
    Cas(i64, i64),
    /// Into being with this value; answered likewise where it has that value already.
    Create(i64),
    /// Out of being, answered likewise where it is not there.
    Delete,
}

/// An operation on one register. `returned` is `u64::MAX` where the outcome is unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    pub op: RegisterOp,
    pub invoked: u64,
    pub returned: u64,
    /// It may have taken effect in its time, or not at all.
    pub is_optional: bool,
}

impl Call {
    pub fn new(op: RegisterOp, invoked: u64, returned: u64) -> Self {
        Self { op, invoked, returned, is_optional: false }
    }

    /// It has to be placed.
    fn is_due(&self) -> bool {
        !self.is_optional && self.returned != u64::MAX
    }
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
            Self::Create(value) => state.is_none_or(|state| state == value).then_some(Some(value)),
            Self::Delete => Some(None),
        }
    }
}

/// All registers of a history, each by itself.
pub fn check(spans: &[Span<'_>]) -> Verdict {
    let mut keys: BTreeMap<&str, Vec<Call>> = BTreeMap::new();
    let mut operations = 0;
    for span in spans {
        let (key, op) = match (span.asked, span.answered) {
            // A read that nobody answered says nothing.
            (_, Operation::Read { key, value }) if span.kind == Kind::Ok => (key, RegisterOp::Read(*value)),
            (Operation::Write { key, value }, _) => (key, RegisterOp::Write(*value)),
            (Operation::Cas { key, from, to }, _) => (key, RegisterOp::Cas(*from, *to)),
            (Operation::Create { key, value }, _) => (key, RegisterOp::Create(*value)),
            (Operation::Delete { key }, _) => (key, RegisterOp::Delete),
            _ => continue,
        };
        if span.kind == Kind::Fail {
            continue;
        }
        operations += 1;
        let call = Call::new(op, span.invoked_ns, span.completed_ns.unwrap_or(u64::MAX));
        let calls = keys.entry(key).or_default();
        calls.push(call);
        let is_repeatable = matches!(op, RegisterOp::Write(_) | RegisterOp::Create(_) | RegisterOp::Delete);
        if is_repeatable && call.returned.saturating_sub(call.invoked) > REPEATED_AFTER_NS {
            calls.push(Call { is_optional: true, ..call });
        }
    }
    let mut findings = Findings::of("linearizable");
    findings.count("registers", keys.len());
    findings.count("operations", operations);
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
    latest_before: u64,
}

pub fn search(calls: &[Call], steps_max: u64) -> Search {
    if calls.len() > OPERATIONS_PER_KEY_MAX {
        return Search::GivenUp;
    }
    let mut calls = calls.to_vec();
    // What need not be placed is tried last: an order without it is the shorter way.
    calls.sort_by_key(|call| (!call.is_due(), call.invoked, call.returned));
    let due: usize = calls.iter().filter(|call| call.is_due()).count();
    let mut placed: Placed = vec![0; calls.len().div_ceil(64)];
    let mut seen: HashSet<(Placed, Option<i64>)> = HashSet::new();
    let mut path: Vec<Frame> = Vec::new();
    let (mut state, mut done, mut from, mut steps) = (None, 0, 0, 0u64);
    // When the last of the placed operations was invoked.
    let mut latest = 0;
    let is_placed = |placed: &Placed, call: usize| placed[call / 64] >> (call % 64) & 1 == 1;
    loop {
        if done == due {
            return Search::Linearizable;
        }
        // Only what was invoked before the first answer still missing can come next.
        let horizon = calls[..due]
            .iter()
            .enumerate()
            .filter(|(call, _)| !is_placed(&placed, *call))
            .map(|(_, call)| call.returned)
            .min()
            .unwrap_or(u64::MAX);
        let mut advanced = false;
        let mut call = from;
        while call < calls.len() {
            let candidate = calls[call];
            if candidate.invoked > horizon {
                if call >= due {
                    break;
                }
                call = due;
                continue;
            }
            // Its time was over before something that is placed was asked for.
            let is_over = candidate.returned < latest;
            if is_placed(&placed, call) || is_over {
                call += 1;
                continue;
            }
            steps += 1;
            if steps > steps_max {
                return Search::GivenUp;
            }
            let applied = candidate.op.apply(state);
            // What changes nothing and need not be placed leads nowhere new.
            let Some(next) = applied.filter(|next| candidate.is_due() || *next != state) else {
                call += 1;
                continue;
            };
            placed[call / 64] |= 1 << (call % 64);
            let is_new = {
                // Whether an optional one was placed makes no difference once its time is over.
                let mut key = placed.clone();
                for (over, _) in calls.iter().enumerate().skip(due).filter(|(_, optional)| {
                    optional.is_optional && optional.returned < latest.max(candidate.invoked)
                }) {
                    key[over / 64] |= 1 << (over % 64);
                }
                seen.insert((key, next))
            };
            if is_new {
                path.push(Frame { call, state_before: state, latest_before: latest });
                state = next;
                latest = latest.max(candidate.invoked);
                done += usize::from(candidate.is_due());
                from = 0;
                advanced = true;
                break;
            }
            placed[call / 64] &= !(1 << (call % 64));
            call += 1;
        }
        if advanced {
            continue;
        }
        let Some(frame) = path.pop() else { return Search::NotLinearizable };
        placed[frame.call / 64] &= !(1 << (frame.call % 64));
        done -= usize::from(calls[frame.call].is_due());
        state = frame.state_before;
        latest = frame.latest_before;
        from = frame.call + 1;
    }
}
