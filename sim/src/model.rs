//! What the messages must do, worked out from the commands in log order and nothing else.
//!
//! The model is told every committed command once, in log order, with the answer the state machine
//! gave. It is written against the promises, not against the state machine:
//!
//! | Promise | Check |
//! |---|---|
//! | a message id is stored once | the first answer has a new place, every later one the same place |
//! | queue offsets have no gap | a new place is the next offset of its queue |
//! | leases, acknowledgements, dead letters | see [`leases`] |
//! | batches, several consumer groups | see [`accounts`] |
//! | committed offsets | see [`offsets`] |
//! | delayed messages keep their promises | see [`timers`](crate::timers) |
//! | transactions | see [`transactions`] |
//! | order by message group, and growth | see [`order`] |

pub mod accounts;
mod leases;
pub mod offsets;
pub mod order;
pub mod transactions;

use std::collections::BTreeMap;

use bytes::Bytes;
use ledgermq_broker::state::{Answer, Command, Placed, Refusal, StoredAt, TopicId};
use ledgermq_common::clock::UnixMillis;
use ledgermq_common::{PhysicalOffset, QueueId, QueueOffset};

use crate::front::TOPIC;
use crate::timers::{NowVisible, TimerModel};
use accounts::Accounts;
pub use leases::{Deliveries, LetterOf};
use order::Order;
use transactions::Transactions;

pub type Place = (QueueId, QueueOffset);

#[derive(Default)]
pub struct Model {
    log_time: UnixMillis,
    stored: BTreeMap<String, Stored>,
    next_offset: BTreeMap<QueueId, QueueOffset>,
    deliveries: Deliveries,
    timers: TimerModel,
    transactions: Transactions,
    order: Order,
    accounts: Accounts,
    topic: Option<TopicId>,
    mins: BTreeMap<QueueId, QueueOffset>,
    keeping: Keeping,
}

/// What retention did.
#[derive(Debug, Clone, Copy, Default)]
pub struct Keeping {
    pub expired: u64,
    pub carried: u64,
    pub releases: u64,
    released_below: PhysicalOffset,
}

/// Where a message id was stored, and by which entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    pub place: Place,
    pub index: u64,
}

impl Model {
    pub fn stored(&self) -> &BTreeMap<String, Stored> {
        &self.stored
    }

    pub fn transactions(&self) -> &Transactions {
        &self.transactions
    }

    pub fn order(&self) -> &Order {
        &self.order
    }

    pub fn keeping(&self) -> Keeping {
        self.keeping
    }

    pub fn accounts(&self) -> &Accounts {
        &self.accounts
    }

    pub fn accounts_mut(&mut self) -> &mut Accounts {
        &mut self.accounts
    }

    /// Those of the topic without order.
    pub fn deliveries(&self) -> &Deliveries {
        &self.deliveries
    }

    pub fn log_time(&self) -> UnixMillis {
        self.log_time
    }

    pub fn is_consumed(&self, place: Place) -> bool {
        self.deliveries.is_consumed(place)
    }

    pub fn is_recalled(&self, id: &str) -> bool {
        self.timers.is_recalled(id)
    }

    /// Takes in the entry at `index`.
    pub fn apply(&mut self, index: u64, payload: &Bytes, answer: &Bytes) -> Result<(), String> {
        let (stamp, command) =
            Command::decode(payload).map_err(|error| format!("entry {index} is no command: {error}"))?;
        let answer = Answer::decode(answer)
            .map_err(|error| format!("entry {index} has no readable answer: {error}"))?;
        self.log_time = self.log_time.max(stamp);
        self.count(&answer);
        if let Some(result) = self.order.apply(index, self.log_time, &command, &answer) {
            return result;
        }
        if let Some(result) = self.accounts.apply(index, self.log_time, &command, &answer) {
            return result;
        }
        let at = (index, self.log_time);
        match (command, answer) {
            (Command::AppendMessages(append), Answer::Stored(places)) => {
                if append.messages.len() != places.len() {
                    return Err(format!(
                        "entry {index}: {} messages, {} answers",
                        append.messages.len(),
                        places.len()
                    ));
                }
                for (message, at) in append.messages.iter().zip(&places) {
                    self.store(index, &String::from_utf8_lossy(&message.id), *at)?;
                }
                Ok(())
            }
            (Command::StoreBatch(batch), Answer::Stored(places)) => {
                let is_repeat: std::collections::BTreeSet<bool> =
                    places.iter().map(|at| at.repeated).collect();
                if batch.messages.len() != places.len() || is_repeat.len() > 1 {
                    return Err(format!("entry {index}: a batch is stored in part: {places:?}"));
                }
                for ((_, message), at) in batch.messages.iter().zip(&places) {
                    self.store(index, &String::from_utf8_lossy(&message.id), *at)?;
                }
                Ok(())
            }
            (Command::LeaseMessages(lease), Answer::Leased(granted)) => {
                for grant in &granted {
                    let end = next_of(&self.next_offset, grant.queue);
                    self.deliveries.grant(at, end, grant, lease.invisible_ms)?;
                }
                lease.parts.iter().try_for_each(|part| {
                    let end = next_of(&self.next_offset, part.queue);
                    self.deliveries.nothing_is_passed_over(index, end, part)
                })
            }
            (Command::AckMessages(acks), Answer::Acked(outcomes)) => {
                self.deliveries.acks(index, &acks, &outcomes)
            }
            (Command::ChangeInvisible(change), Answer::Changed(outcome)) => {
                self.deliveries.change(at, &change, outcome)
            }
            (Command::DeadLetter(letters), Answer::DeadLettered { outcomes, .. }) => {
                self.deliveries.give_up(at, &letters, &outcomes)
            }
            (Command::AppendDelayed(append), Answer::Scheduled(scheduled)) => {
                let visible = self.timers.append(&append, &scheduled, self.log_time);
                self.become_visible(index, visible)
            }
            (Command::FireTimers(fire), Answer::Fired { fired, more }) => {
                let visible = self.timers.fire(fire, fired, more, self.log_time);
                self.become_visible(index, visible)
            }
            (Command::RecallTimer(recall), Answer::Recalled(outcome)) => {
                let judged = self.timers.recall(recall, outcome, self.log_time);
                judged.map_err(|what| format!("entry {index}: {what}"))
            }
            (Command::AppendHalves(append), Answer::Halves(at)) => self.halves(index, &append, &at),
            (Command::EndTransaction(command), Answer::TransactionEnded(end)) => {
                self.end(index, &command, &end)
            }
            (Command::CountTransactionChecks(count), Answer::Transactions(changed)) => {
                self.checks(index, &count.checks, false, changed)
            }
            (Command::ParkTransactions(park), Answer::Transactions(changed)) => {
                self.checks(index, &park.transactions, true, changed)
            }
            (Command::EndTransaction(command), Answer::Refused(Refusal::TransactionUnknown))
                if !self.transactions.is_named_by(&command) =>
            {
                Ok(())
            }
            (Command::CreateTopic(create), Answer::Topic { id, .. }) if create.name == TOPIC => {
                self.topic = Some(id);
                Ok(())
            }
            (Command::ExpireMessages(expire), Answer::Expired { .. }) if Some(expire.topic) == self.topic => {
                for (queue, min) in expire.queues {
                    let end = next_of(&self.next_offset, queue);
                    let min = QueueOffset(min).min(end).max(next_of(&self.mins, queue));
                    self.mins.insert(queue, min);
                    self.deliveries.expire(queue, min);
                }
                Ok(())
            }
            (Command::ExpireMessages(_), Answer::Expired { .. }) => {
                self.accounts.letters_expire();
                Ok(())
            }
            (Command::CarryRecords(_), Answer::Carried(_))
            | (Command::ReleaseLog(_), Answer::LogReleased { .. })
            | (Command::CreateTopic(_), Answer::Topic { .. })
            | (Command::CreateConsumerGroup(_), Answer::ConsumerGroup { .. }) => Ok(()),
            (command, answer) => Err(format!("entry {index}: {command:?} was answered by {answer:?}")),
        }
    }

    fn count(&mut self, answer: &Answer) {
        match answer {
            Answer::Expired { messages, .. } => self.keeping.expired += messages,
            Answer::Carried(records) => self.keeping.carried += u64::from(*records),
            Answer::LogReleased { below } if *below > self.keeping.released_below => {
                self.keeping.released_below = *below;
                self.keeping.releases += 1;
            }
            _ => {}
        }
    }

    fn become_visible(&mut self, index: u64, visible: Result<Vec<NowVisible>, String>) -> Result<(), String> {
        for message in visible.map_err(|what| format!("entry {index}: {what}"))? {
            let next = self.next_offset.entry(message.queue).or_default();
            let place = (message.queue, *next);
            if let Some(Placed::Visible { queue, offset }) = message.placed
                && (queue, offset) != place
            {
                return Err(format!(
                    "entry {index}: {} is at {:?}, not {place:?}",
                    message.id, message.placed
                ));
            }
            next.0 += 1;
            self.stored.insert(message.id, Stored { place, index });
        }
        Ok(())
    }

    fn store(&mut self, index: u64, id: &str, at: StoredAt) -> Result<(), String> {
        let place = (at.queue, at.offset);
        if let Some(first) = self.stored.get(id) {
            if first.place != place || !at.repeated {
                return Err(format!(
                    "message {id} was stored at {:?} by entry {} and again at {place:?} by entry {index} \
                     (called a repeat: {})",
                    first.place, first.index, at.repeated
                ));
            }
            return Ok(());
        }
        if at.repeated {
            return Err(format!("entry {index} calls the first message {id} a repeat"));
        }
        let next = self.next_offset.entry(at.queue).or_default();
        if at.offset != *next {
            return Err(format!("entry {index}: queue {} continues at {}, not {next}", at.queue, at.offset));
        }
        next.0 += 1;
        self.stored.insert(id.to_owned(), Stored { place, index });
        Ok(())
    }
}

fn next_of(next: &BTreeMap<QueueId, QueueOffset>, queue: QueueId) -> QueueOffset {
    next.get(&queue).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use ledgermq_broker::state::command::{MessageProperties, NewMessage, encode_append};
    use ledgermq_broker::state::{
        AckEntry, AckMessages, BodyEncoding, ClientHash, ConsumerGroupId, DeliveryEpoch, DeliveryOutcome,
        Granted, LeaseMessages, MessageType, TopicId,
    };

    use super::*;

    fn send(model: &mut Model, index: u64, id: &str, offset: u64, repeated: bool) -> Result<(), String> {
        let message = NewMessage {
            queue: QueueId(0),
            id: id.to_owned(),
            message_type: MessageType::Normal,
            body_encoding: BodyEncoding::Identity,
            born_at: UnixMillis(1),
            properties: MessageProperties::default(),
            body: Bytes::from_static(b"body"),
        };
        let stored =
            StoredAt { queue: QueueId(0), offset: QueueOffset(offset), stored_at: UnixMillis(1), repeated };
        let command = encode_append(UnixMillis(1_000), TopicId(1), &[message]);
        model.apply(index, &command, &Answer::Stored(vec![stored]).encode())
    }

    fn lease(model: &mut Model, index: u64, now: u64, attempt: u32, until: u64) -> Result<(), String> {
        let command = Command::LeaseMessages(LeaseMessages {
            consumer_group: ConsumerGroupId(1),
            topic: TopicId(1),
            client: ClientHash(1),
            invisible_ms: until - now,
            auto_renew: false,
            attempt_id: String::new(),
            parts: Vec::new(),
        });
        let granted = Granted {
            queue: QueueId(0),
            offset: QueueOffset(0),
            attempt,
            epoch: DeliveryEpoch(index),
            until: UnixMillis(until),
        };
        model.apply(index, &command.encode(UnixMillis(now)), &Answer::Leased(vec![granted]).encode())
    }

    #[test]
    fn an_id_stored_at_two_places_is_convicted_and_a_repeat_is_not() {
        let mut model = Model::default();
        send(&mut model, 1, "a", 0, false).unwrap();
        send(&mut model, 2, "a", 0, true).unwrap();
        assert!(send(&mut model, 3, "a", 1, false).is_err());
    }

    #[test]
    fn a_gap_in_a_queue_is_convicted() {
        let mut model = Model::default();
        send(&mut model, 1, "a", 0, false).unwrap();
        assert!(send(&mut model, 2, "b", 2, false).is_err());
    }

    #[test]
    fn a_second_lease_is_granted_only_when_the_first_has_ended() {
        let mut model = Model::default();
        send(&mut model, 1, "a", 0, false).unwrap();
        lease(&mut model, 2, 2_000, 1, 5_000).unwrap();
        assert!(lease(&mut model, 3, 4_999, 2, 9_000).is_err());
        lease(&mut model, 4, 5_000, 2, 9_000).unwrap();
        assert!(lease(&mut model, 5, 9_000, 2, 12_000).is_err(), "the attempt did not count up");
    }

    #[test]
    fn a_lease_of_an_acknowledged_message_is_convicted() {
        let mut model = Model::default();
        send(&mut model, 1, "a", 0, false).unwrap();
        lease(&mut model, 2, 2_000, 1, 5_000).unwrap();
        let acks = AckMessages {
            consumer_group: ConsumerGroupId(1),
            topic: TopicId(1),
            entries: vec![AckEntry { queue: QueueId(0), offset: QueueOffset(0), epoch: DeliveryEpoch(2) }],
        };
        let command = Command::AckMessages(acks).encode(UnixMillis(2_100));
        model.apply(3, &command, &Answer::Acked(vec![DeliveryOutcome::Done]).encode()).unwrap();
        assert!(lease(&mut model, 4, 9_000, 2, 12_000).is_err());
    }
}
