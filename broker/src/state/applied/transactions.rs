//! Transactions: half messages, their one outcome, and the schedule of asking for it.
//!
//! | State of a transaction | Where | Next |
//! |---|---|---|
//! | pending | `undecided`, and in `due` by the time of its next check | decided, or parked after the last check |
//! | parked: asked about often enough | `undecided` | decided, by an administrator or a late producer |
//! | decided | `outcomes`, for as long as outcomes are remembered | forgotten; its id is unknown then |
//!
//! Invariants:
//! - A transaction has exactly one outcome: the entry that decides it takes it out of `undecided`, and
//!   nothing ever puts it back.
//! - What is undecided is never forgotten; only the deletion of its topic ends it otherwise.
//! - A commit makes the half's own bytes visible by an index entry; the order in the queue is the
//!   order of the commits.
//! - The half's queue is the one its leader chose; queues of a topic never become fewer.
//! - Which outcomes are remembered depends on the log alone.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use hashbrown::HashMap;
use ledgermq_common::clock::UnixMillis;
use ledgermq_common::limits::{TRANSACTION_OUTCOME_MS, TRANSACTION_OUTCOMES_MAX, UNDECIDED_TRANSACTIONS_MAX};
use ledgermq_common::{PhysicalOffset, QueueId, QueueOffset};
use xxhash_rust::xxh3::xxh3_128_with_seed;

use super::Applied;
use super::apply::Effects;
use super::window::WindowEntry;
use crate::defects::{self, Defect};
use crate::state::answer::{Answer, HalfAt, Refusal, TransactionEnd};
use crate::state::command::{AppendHalves, CountTransactionChecks, EndTransaction, ParkTransactions};
use crate::state::consume_queue::IndexEntry;
use crate::state::names::{Decision, MessageIdHash, TopicId};
use crate::state::records::RecordKey;

/// Outcomes per record.
const CHUNK_OUTCOMES: usize = 512;
const CHUNKS_MAX: usize = TRANSACTION_OUTCOMES_MAX.div_ceil(CHUNK_OUTCOMES);
/// Part of what is persisted. Ids of halves and of ordinary messages never meet.
const HALF_KEY_SEED: u64 = 0x4861_6c66_4d65_7373;

/// A half message whose outcome is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Transaction {
    pub(crate) topic: TopicId,
    pub(crate) queue: QueueId,
    pub(crate) record_bytes: u32,
    pub(crate) tag_code: u32,
    pub(crate) message: MessageIdHash,
    pub(crate) halved_at: UnixMillis,
    pub(crate) next_check_at: UnixMillis,
    /// Checks made so far.
    pub(crate) checks: u32,
    pub(crate) parked_at: Option<UnixMillis>,
}

/// A decision that was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) transaction: PhysicalOffset,
    pub(crate) message: MessageIdHash,
    pub(crate) topic: TopicId,
    pub(crate) decision: Decision,
    pub(crate) queue: QueueId,
    pub(crate) offset: QueueOffset,
    pub(crate) decided_at: UnixMillis,
}

#[derive(Debug, Default)]
pub(crate) struct Transactions {
    undecided: BTreeMap<PhysicalOffset, Transaction>,
    /// The next checks of what is pending: (topic, time, transaction). Derived from `undecided`. By topic,
    /// because a topic without producers must not hold up the others.
    due: BTreeSet<(TopicId, UnixMillis, PhysicalOffset)>,
    pub(crate) outcomes: Outcomes,
}

impl Transactions {
    pub(crate) fn undecided(&self) -> &BTreeMap<PhysicalOffset, Transaction> {
        &self.undecided
    }

    /// Pending transactions whose check is due at `now`, the oldest of each topic first, at most
    /// `of_topic_max` of a topic.
    pub(crate) fn due(&self, now: UnixMillis, of_topic_max: usize) -> Vec<(PhysicalOffset, Transaction)> {
        let mut due = Vec::new();
        let mut from = (TopicId(0), UnixMillis(0), PhysicalOffset(0));
        while let Some(&(topic, ..)) = self.due.range(from..).next() {
            let of_topic = self.due.range((topic, UnixMillis(0), PhysicalOffset(0))..);
            due.extend(
                of_topic
                    .take_while(|&&(of, at, _)| of == topic && at <= now)
                    .take(of_topic_max)
                    .filter_map(|&(_, _, id)| Some((id, *self.undecided.get(&id)?))),
            );
            let Some(next) = topic.get().checked_add(1) else { break };
            from = (TopicId(next), UnixMillis(0), PhysicalOffset(0));
        }
        due
    }

    pub(crate) fn load(&mut self, id: PhysicalOffset, transaction: Transaction) {
        if transaction.parked_at.is_none() {
            self.due.insert((transaction.topic, transaction.next_check_at, id));
        }
        self.undecided.insert(id, transaction);
    }

    fn remove(&mut self, id: PhysicalOffset) -> Option<Transaction> {
        let removed = self.undecided.remove(&id)?;
        self.due.remove(&(removed.topic, removed.next_check_at, id));
        Some(removed)
    }

    fn change(&mut self, id: PhysicalOffset, change: impl FnOnce(&mut Transaction)) {
        let Some(mut transaction) = self.remove(id) else { return };
        change(&mut transaction);
        self.load(id, transaction);
    }
}

/// The decisions of late, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Outcomes {
    /// All but the last hold `CHUNK_OUTCOMES`. The last is never dropped, so that the numbers go on.
    chunks: VecDeque<Arc<Vec<Outcome>>>,
    /// Number of the first chunk.
    first: u64,
    /// The chunk and the place in it, by transaction.
    places: HashMap<PhysicalOffset, (u64, u32)>,
}

impl Outcomes {
    pub(crate) fn find(&self, id: PhysicalOffset) -> Option<&Outcome> {
        let (chunk, place) = *self.places.get(&id)?;
        self.chunk(chunk)?.get(place as usize)
    }

    pub(crate) fn chunk(&self, number: u64) -> Option<&Arc<Vec<Outcome>>> {
        self.chunks.get(usize::try_from(number.checked_sub(self.first)?).ok()?)
    }

    pub(crate) fn chunk_numbers(&self) -> impl Iterator<Item = u64> + use<> {
        self.first..self.first + self.chunks.len() as u64
    }

    /// Adds a decision; answers the chunks that are changed or gone.
    fn push(&mut self, outcome: Outcome) -> Vec<u64> {
        let mut touched = Vec::with_capacity(2);
        if self.chunks.back().is_none_or(|chunk| chunk.len() >= CHUNK_OUTCOMES) {
            self.chunks.push_back(Arc::new(Vec::with_capacity(CHUNK_OUTCOMES)));
        }
        let number = self.first + self.chunks.len() as u64 - 1;
        let newest = self.chunks.back_mut().expect("a chunk was pushed");
        let place = u32::try_from(newest.len()).expect("a chunk is small");
        Arc::make_mut(newest).push(outcome);
        self.places.insert(outcome.transaction, (number, place));
        touched.push(number);
        while self.is_first_chunk_over(outcome.decided_at) {
            let dropped = self.chunks.pop_front().expect("there is more than one chunk");
            for outcome in dropped.iter() {
                self.places.remove(&outcome.transaction);
            }
            touched.push(self.first);
            self.first += 1;
        }
        touched
    }

    fn is_first_chunk_over(&self, now: UnixMillis) -> bool {
        if self.chunks.len() <= 1 {
            return false;
        }
        let newest = self.chunks.front().and_then(|chunk| chunk.last());
        let is_old =
            newest.is_none_or(|outcome| now.saturating_ms_since(outcome.decided_at) > TRANSACTION_OUTCOME_MS);
        is_old || self.chunks.len() > CHUNKS_MAX
    }

    /// Puts a chunk where it belongs, when the state is loaded; chunks may come in any order.
    pub(crate) fn load(&mut self, number: u64, chunk: Arc<Vec<Outcome>>) -> bool {
        for (place, outcome) in (0u32..).zip(chunk.iter()) {
            self.places.insert(outcome.transaction, (number, place));
        }
        if self.chunks.is_empty() {
            self.first = number;
        }
        if number < self.first {
            let missing = self.first - number;
            if missing > CHUNKS_MAX as u64 {
                return false;
            }
            for _ in 0..missing {
                self.chunks.push_front(Arc::default());
            }
            self.first = number;
        }
        let Ok(at) = usize::try_from(number - self.first) else { return false };
        if at > CHUNKS_MAX {
            return false;
        }
        while self.chunks.len() <= at {
            self.chunks.push_back(Arc::default());
        }
        match self.chunks.get_mut(at) {
            Some(slot) => *slot = chunk,
            None => return false,
        }
        true
    }

    /// After loading: no chunk is missing, and all but the last are full.
    pub(crate) fn is_complete(&self) -> bool {
        let full = self.chunks.len().saturating_sub(1);
        self.chunks.iter().take(full).all(|chunk| chunk.len() == CHUNK_OUTCOMES)
            && self.chunks.back().is_none_or(|chunk| (1..=CHUNK_OUTCOMES).contains(&chunk.len()))
    }
}

/// The key in the message-id window of a half's message id within its topic.
fn half_key(topic: TopicId, id: &[u8]) -> u128 {
    xxh3_128_with_seed(id, HALF_KEY_SEED ^ u64::from(topic.get()))
}

impl Applied {
    pub(super) fn append_halves(
        &mut self,
        command: &AppendHalves,
        payload_at: PhysicalOffset,
    ) -> Result<Answer, Refusal> {
        let topic = self.topics.get(&command.topic).ok_or(Refusal::TopicUnknown)?;
        let queues = topic.queues.len();
        if command.halves.iter().any(|half| half.message.queue.get() as usize >= queues) {
            return Err(Refusal::QueueUnknown);
        }
        if self.transactions.undecided.len() + command.halves.len() > UNDECIDED_TRANSACTIONS_MAX {
            return Err(Refusal::TooManyTransactions);
        }
        let now = self.scalars.now;
        let halves = command.halves.iter().map(|half| {
            let message = &half.message;
            let key = half_key(command.topic, &message.id);
            if let Some(first) = self.window.find(key).filter(|_| !defects::is_active(Defect::HalfTwice)) {
                let transaction = PhysicalOffset(first.offset);
                return HalfAt { transaction, stored_at: first.stored_at, repeated: true };
            }
            let transaction = payload_at
                .checked_add(u64::from(message.record_at))
                .expect("an entry lies inside the CommitLog's range of offsets");
            let record_bytes =
                u32::try_from(message.record.len()).expect("a command is bounded far below 4 GiB");
            self.transactions.load(
                transaction,
                Transaction {
                    topic: command.topic,
                    queue: message.queue,
                    record_bytes,
                    tag_code: message.tag_code,
                    message: MessageIdHash::of(&message.id),
                    halved_at: now,
                    next_check_at: now.saturating_add_ms(u64::from(half.first_check_ms)),
                    checks: 0,
                    parked_at: None,
                },
            );
            // What the window finds by the id of a half is the half itself, not a place in a queue.
            self.window.insert(WindowEntry {
                key,
                queue: message.queue.get(),
                offset: transaction.get(),
                stored_at: now,
            });
            self.keys.add(command.topic, &message.id, message.properties(), transaction, record_bytes);
            self.dirty.insert(RecordKey::Transaction(transaction));
            HalfAt { transaction, stored_at: now, repeated: false }
        });
        Ok(Answer::Halves(halves.collect()))
    }

    pub(super) fn end_transaction(
        &mut self,
        command: &EndTransaction,
        effects: &mut Effects,
    ) -> Result<Answer, Refusal> {
        let id = command.transaction;
        let Some(pending) = self.transactions.undecided.get(&id).copied() else {
            return self.outcome_again(command);
        };
        check_identity(command, pending.topic, pending.message)?;
        let now = self.scalars.now;
        let mut end = TransactionEnd {
            decision: command.decision,
            queue: pending.queue,
            offset: QueueOffset(0),
            decided_now: true,
            waited_ms: now.saturating_ms_since(pending.halved_at),
        };
        if command.decision == Decision::Commit && !defects::is_active(Defect::CommitDropped) {
            let entry = IndexEntry {
                physical: self.keeping.place_of(id),
                record_bytes: pending.record_bytes,
                tag_code: pending.tag_code,
                stored_at: now,
            };
            let offset = self.make_visible(pending.topic, pending.queue, entry, effects);
            end.offset = offset.ok_or(Refusal::TopicUnknown)?;
        }
        self.transactions.remove(id);
        self.take_place(id);
        self.dirty.insert(RecordKey::Transaction(id));
        let touched = self.transactions.outcomes.push(Outcome {
            transaction: id,
            message: pending.message,
            topic: pending.topic,
            decision: end.decision,
            queue: end.queue,
            offset: end.offset,
            decided_at: now,
        });
        self.dirty.extend(touched.into_iter().map(RecordKey::TransactionOutcomes));
        Ok(Answer::TransactionEnded(end))
    }

    /// The transaction is not open (any more): what was decided of it, if that is remembered.
    fn outcome_again(&self, command: &EndTransaction) -> Result<Answer, Refusal> {
        let outcome =
            self.transactions.outcomes.find(command.transaction).ok_or(Refusal::TransactionUnknown)?;
        check_identity(command, outcome.topic, outcome.message)?;
        let is_again = defects::is_active(Defect::TwoOutcomes);
        Ok(Answer::TransactionEnded(TransactionEnd {
            decision: if is_again { command.decision } else { outcome.decision },
            queue: outcome.queue,
            offset: outcome.offset,
            decided_now: false,
            waited_ms: 0,
        }))
    }

    pub(super) fn count_checks(&mut self, command: &CountTransactionChecks) -> Answer {
        let next = self.scalars.now.saturating_add_ms(command.next_check_ms);
        let mut counted = 0;
        for check in &command.checks {
            let open = self.transactions.undecided.get(&check.transaction);
            let is_next = open.is_some_and(|transaction| {
                transaction.parked_at.is_none() && transaction.checks.saturating_add(1) == check.number
            });
            if is_next {
                self.transactions.change(check.transaction, |transaction| {
                    if !defects::is_active(Defect::LostCheck) {
                        transaction.checks = check.number;
                    }
                    transaction.next_check_at =
                        if defects::is_active(Defect::CheckStalled) { UnixMillis(u64::MAX) } else { next };
                });
                self.dirty.insert(RecordKey::Transaction(check.transaction));
                counted += 1;
            }
        }
        Answer::Transactions(counted)
    }

    pub(super) fn park(&mut self, command: &ParkTransactions) -> Answer {
        let now = self.scalars.now;
        let mut parked = 0;
        for check in &command.transactions {
            let open = self.transactions.undecided.get(&check.transaction);
            let is_due = open.is_some_and(|transaction| {
                transaction.parked_at.is_none() && transaction.checks == check.number
            });
            if is_due {
                self.transactions.change(check.transaction, |transaction| transaction.parked_at = Some(now));
                self.dirty.insert(RecordKey::Transaction(check.transaction));
                parked += 1;
            }
        }
        Answer::Transactions(parked)
    }

    /// A deleted topic takes its half messages with it.
    pub(super) fn drop_transactions(&mut self, topic: TopicId) {
        let of_topic = self.transactions.undecided.iter().filter(|(_, open)| open.topic == topic);
        let dropped: Vec<PhysicalOffset> = of_topic.map(|(&id, _)| id).collect();
        for id in dropped {
            self.transactions.remove(id);
            self.take_place(id);
            self.dirty.insert(RecordKey::Transaction(id));
        }
    }
}

fn check_identity(command: &EndTransaction, topic: TopicId, message: MessageIdHash) -> Result<(), Refusal> {
    if message != command.message && !defects::is_active(Defect::EndOfAnother) {
        return Err(Refusal::TransactionUnknown);
    }
    if topic != command.topic {
        return Err(Refusal::TransactionOfOtherTopic);
    }
    Ok(())
}
