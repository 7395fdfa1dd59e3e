//! What transactions must do.
//!
//! | Promise | Check |
//! |---|---|
//! | one outcome | only the first end is "decided now"; every later one tells the same decision and place |
//! | committed in order | a commit takes the next offset of its queue; a roll-back takes none |
//! | an end is of its transaction | it names the message of the half, or is refused |
//! | a half is stored once | an id has one transaction, and a transaction one id |
//! | checks are counted one by one | an entry changes as many transactions as were open, not parked, and next in number |

use std::collections::{BTreeMap, BTreeSet};

use ledgermq_broker::state::command::{AppendHalves, EndTransaction, TransactionCheck};
use ledgermq_broker::state::{Decision, HalfAt, MessageIdHash, TransactionEnd};
use ledgermq_common::PhysicalOffset;

use super::{Model, Place};

#[derive(Default)]
pub struct Transactions {
    by_id: BTreeMap<String, PhysicalOffset>,
    all: BTreeMap<PhysicalOffset, Transaction>,
    messages: BTreeMap<PhysicalOffset, MessageIdHash>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Transaction {
    checks: u32,
    is_parked: bool,
    outcome: Option<Outcome>,
}

/// What was decided, where a committed message is, and by which entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    pub decision: Decision,
    pub place: Place,
    pub index: u64,
}

impl Transactions {
    pub fn of(&self, id: &str) -> Option<PhysicalOffset> {
        self.by_id.get(id).copied()
    }

    /// Whether the end names the message its transaction is of.
    pub(super) fn is_named_by(&self, command: &EndTransaction) -> bool {
        self.messages.get(&command.transaction) == Some(&command.message)
    }

    pub fn is_parked(&self, id: &str) -> bool {
        let transaction = self.of(id).and_then(|transaction| self.all.get(&transaction));
        transaction.is_some_and(|transaction| transaction.is_parked)
    }

    pub fn outcome(&self, id: &str) -> Option<Outcome> {
        self.all.get(&self.of(id)?)?.outcome
    }
}

impl Model {
    pub(super) fn halves(&mut self, index: u64, append: &AppendHalves, at: &[HalfAt]) -> Result<(), String> {
        if append.halves.len() != at.len() {
            return Err(format!("entry {index}: {} halves, {} answers", append.halves.len(), at.len()));
        }
        for (half, at) in append.halves.iter().zip(at) {
            let id = String::from_utf8_lossy(&half.message.id).into_owned();
            let first = self.transactions.by_id.get(&id).copied();
            match first {
                Some(first) if first != at.transaction || !at.repeated => {
                    return Err(format!("entry {index}: half {id} is {first} and now {at:?}"));
                }
                Some(_) => {}
                None if at.repeated => {
                    return Err(format!("entry {index} calls the first half {id} a repeat"));
                }
                None => {
                    let before = self.transactions.all.insert(at.transaction, Transaction::default());
                    if before.is_some() {
                        return Err(format!("entry {index}: {} is two transactions", at.transaction));
                    }
                    let message = MessageIdHash::of(id.as_bytes());
                    self.transactions.messages.insert(at.transaction, message);
                    self.transactions.by_id.insert(id, at.transaction);
                }
            }
        }
        Ok(())
    }

    pub(super) fn end(
        &mut self,
        index: u64,
        command: &EndTransaction,
        end: &TransactionEnd,
    ) -> Result<(), String> {
        let place = (end.queue, end.offset);
        if !self.transactions.is_named_by(command) {
            return Err(format!("entry {index} ends {} for another message", command.transaction));
        }
        let Some(transaction) = self.transactions.all.get_mut(&command.transaction) else {
            return Err(format!("entry {index} ends {}, which was never stored", command.transaction));
        };
        if let Some(first) = transaction.outcome {
            let same = first.decision == end.decision
                && (first.decision == Decision::Rollback || first.place == place);
            if end.decided_now || !same {
                return Err(format!("entry {index} decides again: {first:?}, and now {end:?}"));
            }
            return Ok(());
        }
        if !end.decided_now || end.decision != command.decision {
            return Err(format!("entry {index}: {command:?} was answered by {end:?}"));
        }
        transaction.outcome = Some(Outcome { decision: end.decision, place, index });
        if end.decision == Decision::Commit {
            let next = self.next_offset.entry(end.queue).or_default();
            if end.offset != *next {
                return Err(format!("entry {index} commits to {place:?}, the queue continues at {next}"));
            }
            next.0 += 1;
        }
        Ok(())
    }

    pub(super) fn checks(
        &mut self,
        index: u64,
        checks: &[TransactionCheck],
        parks: bool,
        changed: u32,
    ) -> Result<(), String> {
        let mut expected = 0;
        let mut named = BTreeSet::new();
        for check in checks {
            named.insert(check.transaction);
            let Some(transaction) = self.transactions.all.get_mut(&check.transaction) else { continue };
            let counts = if parks { transaction.checks } else { transaction.checks + 1 };
            if transaction.outcome.is_some() || transaction.is_parked || check.number != counts {
                continue;
            }
            transaction.checks = check.number;
            transaction.is_parked = parks;
            expected += 1;
        }
        if changed != expected {
            return Err(format!("entry {index} changed {changed} of {named:?}, not {expected}"));
        }
        Ok(())
    }
}
