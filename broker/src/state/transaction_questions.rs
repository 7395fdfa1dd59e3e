//! What the executor asks about transactions.

use ledgermq_common::PhysicalOffset;
use ledgermq_common::clock::UnixMillis;
use ledgermq_common::transaction_id::TransactionId;

use super::applied::Applied;
use super::applied::transactions::{Outcome, Transaction};
use super::consume_queue::IndexEntry;
use super::machine::BrokerState;
use super::names::{Decision, MessageIdHash, TopicId};

/// A half message whose outcome is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenTransaction {
    pub id: PhysicalOffset,
    /// Where its record lies; not where it was stored first if it was carried since.
    pub place: PhysicalOffset,
    pub topic: TopicId,
    pub message: MessageIdHash,
    pub record_bytes: u32,
    pub tag_code: u32,
    pub halved_at: UnixMillis,
    pub next_check_at: UnixMillis,
    /// Checks made so far.
    pub checks: u32,
    /// Since when it waits for an administrator.
    pub parked_at: Option<UnixMillis>,
}

/// What became of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransactionState {
    Open(OpenTransaction),
    Decided { topic: TopicId, decision: Decision, decided_at: UnixMillis },
}

/// Which open transactions are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TransactionQuery {
    pub topic: Option<TopicId>,
    pub only_parked: bool,
    /// Those behind this one, in the order they were stored.
    pub after: Option<PhysicalOffset>,
}

impl OpenTransaction {
    fn of(applied: &Applied, id: PhysicalOffset, open: &Transaction) -> Self {
        Self {
            id,
            place: applied.keeping.place_of(id),
            topic: open.topic,
            message: open.message,
            record_bytes: open.record_bytes,
            tag_code: open.tag_code,
            halved_at: open.halved_at,
            next_check_at: open.next_check_at,
            checks: open.checks,
            parked_at: open.parked_at,
        }
    }

    /// Where the half lies.
    pub fn entry(&self) -> IndexEntry {
        IndexEntry {
            physical: self.place,
            record_bytes: self.record_bytes,
            tag_code: self.tag_code,
            stored_at: self.halved_at,
        }
    }
}

impl BrokerState {
    pub fn transaction_id(
        &self,
        topic: TopicId,
        half: PhysicalOffset,
        message: MessageIdHash,
    ) -> TransactionId {
        TransactionId { group: self.group(), topic_id: topic.get(), half, message_id_hash: message.get() }
    }

    /// Pending transactions whose next check is due at `now`, the oldest of each topic first, at most
    /// `of_topic_max` of a topic.
    pub fn due_transactions(&self, now: UnixMillis, of_topic_max: usize) -> Vec<OpenTransaction> {
        let applied = self.applied_state();
        let due = applied.transactions.due(now.max(applied.scalars.now), of_topic_max);
        due.iter().map(|(id, open)| OpenTransaction::of(&applied, *id, open)).collect()
    }

    /// Open transactions in the order they were stored, at most `max`.
    pub fn open_transactions(&self, query: TransactionQuery, max: usize) -> Vec<OpenTransaction> {
        use std::ops::Bound::{Excluded, Unbounded};
        let applied = self.applied_state();
        let from = query.after.map_or(Unbounded, Excluded);
        let open = applied.transactions.undecided().range((from, Unbounded));
        open.filter(|(_, open)| {
            query.topic.is_none_or(|topic| topic == open.topic)
                && (!query.only_parked || open.parked_at.is_some())
        })
        .take(max)
        .map(|(&id, open)| OpenTransaction::of(&applied, id, open))
        .collect()
    }

    pub fn transaction(&self, id: PhysicalOffset, message: MessageIdHash) -> Option<TransactionState> {
        let applied = self.applied_state();
        if let Some(open) = applied.transactions.undecided().get(&id) {
            return (open.message == message)
                .then(|| TransactionState::Open(OpenTransaction::of(&applied, id, open)));
        }
        let Outcome { topic, decision, decided_at, message: of, .. } =
            *applied.transactions.outcomes.find(id)?;
        (of == message).then_some(TransactionState::Decided { topic, decision, decided_at })
    }

    /// How many half messages wait for their outcome, by topic.
    pub fn half_messages(&self) -> Vec<(TopicId, u64)> {
        let applied = self.applied_state();
        let mut counts = std::collections::BTreeMap::new();
        for open in applied.transactions.undecided().values() {
            *counts.entry(open.topic).or_insert(0u64) += 1;
        }
        counts.into_iter().collect()
    }
}
