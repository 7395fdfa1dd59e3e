//! What batches over topics must do, and consumer groups that share the topics.
//!
//! | Promise | Check |
//! |---|---|
//! | S4 a batch is stored whole or not at all | its ids are all new and get the next offsets of their queues, or are all known; one of which some are known is refused, with how many and the first, and stores nothing |
//! | it is stored once | the answer to a repeat has the first places, whichever entries stored them |
//! | queue offsets have no gap | a new place is the next offset of its queue, also within a batch |
//! | each consumer group gets everything | [`Deliveries`] of its own for each; in the end none was never given a message |
//! | P4 a message that is not acknowledged goes to the dead letters | [`Deliveries`]: when its attempts are used up, by the entry that ends its delivery, once |
//! | committed offsets and resets | see [`offsets`](super::offsets) |

use std::collections::{BTreeMap, BTreeSet};

use ledgermq_broker::state::{
    Answer, BatchPartlyStored, Command, ConsumerGroupId, ExpireMessages, Granted, ResetId, ResetProgress,
    StoreBatch, StoredAt, TopicId,
};
use ledgermq_common::clock::UnixMillis;
use ledgermq_common::{QueueId, QueueOffset};

use super::offsets::Offsets;
use super::{Deliveries, Place, Stored};
use crate::front::accounts::{Book, Reader};

/// A message of a book.
pub type MessageOf = (Book, String);

#[derive(Default)]
pub struct Accounts {
    books: BTreeMap<TopicId, Book>,
    readers: BTreeMap<ConsumerGroupId, Reader>,
    stored: BTreeMap<MessageOf, Stored>,
    queues: BTreeMap<(Book, QueueId), Vec<Kept>>,
    mins: BTreeMap<(Book, QueueId), QueueOffset>,
    deliveries: BTreeMap<(Reader, Book), Deliveries>,
    offsets: Offsets,
    resets: Vec<ResetOf>,
    /// A reset that comes again moves nothing.
    reset_ids: BTreeSet<(Reader, ResetId)>,
    counts: Counts,
}

/// How often something happened in the log.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counts {
    pub batches: u64,
    pub batch_repeats: u64,
    pub partly_known: u64,
    pub exhausted: u64,
    pub redriven: u64,
    pub resets: u64,
    pub repeated_resets: u64,
}

/// A message in its queue.
#[derive(Debug, Clone)]
pub struct Kept {
    pub id: String,
    pub stored_at: UnixMillis,
    pub index: u64,
}

/// A reset as it was applied.
#[derive(Debug, Clone)]
pub struct ResetOf {
    pub index: u64,
    pub reader: Reader,
    pub queues: Vec<(QueueId, QueueOffset)>,
}

impl Accounts {
    pub fn place(&self, of: &MessageOf) -> Option<Stored> {
        self.stored.get(of).copied()
    }

    pub fn queue(&self, book: Book, queue: QueueId) -> &[Kept] {
        self.queues.get(&(book, queue)).map_or(&[], Vec::as_slice)
    }

    /// Where a queue begins: what is below expired.
    pub fn min(&self, book: Book, queue: QueueId) -> QueueOffset {
        self.mins.get(&(book, queue)).copied().unwrap_or_default()
    }

    pub fn offsets(&self) -> &Offsets {
        &self.offsets
    }

    pub fn offsets_mut(&mut self) -> &mut Offsets {
        &mut self.offsets
    }

    pub fn resets(&self) -> &[ResetOf] {
        &self.resets
    }

    pub fn counts(&self) -> Counts {
        self.counts
    }

    pub fn deliveries(&self, reader: Reader, book: Book) -> Option<&Deliveries> {
        self.deliveries.get(&(reader, book))
    }

    pub fn is_granted(&self, reader: Reader, book: Book, grant: &Granted) -> bool {
        self.deliveries(reader, book).is_some_and(|of| of.is_granted(grant))
    }

    /// The first message that a group which reads the book has not done with.
    pub fn first_open(&self, reader: Reader, book: Book) -> Option<(QueueId, QueueOffset, String)> {
        self.find(book, |place| self.deliveries(reader, book).is_none_or(|of| !of.is_consumed(place)))
    }

    /// The first message that a group which reads the book was never given.
    pub fn first_never_given(&self, reader: Reader, book: Book) -> Option<(QueueId, QueueOffset, String)> {
        self.find(book, |place| self.deliveries(reader, book).is_none_or(|of| !of.was_delivered(place)))
    }

    fn find(&self, book: Book, is_it: impl Fn(Place) -> bool) -> Option<(QueueId, QueueOffset, String)> {
        let queues = self.queues.iter().filter(|((of, _), _)| *of == book);
        let mut all = queues.flat_map(|((_, queue), kept)| {
            (0u64..).zip(kept).map(move |(offset, kept)| (*queue, QueueOffset(offset), kept))
        });
        all.find(|(queue, offset, _)| is_it((*queue, *offset)))
            .map(|(queue, offset, kept)| (queue, offset, kept.id.clone()))
    }

    /// Takes in an entry about the books; `None` if it is about something else.
    pub fn apply(
        &mut self,
        index: u64,
        now: UnixMillis,
        command: &Command,
        answer: &Answer,
    ) -> Option<Result<(), String>> {
        let at = (index, now);
        match (command, answer) {
            (Command::CreateTopic(create), Answer::Topic { id, .. }) => {
                self.books.insert(*id, Book::ALL.into_iter().find(|book| book.topic() == create.name)?);
                Some(Ok(()))
            }
            (Command::CreateConsumerGroup(create), Answer::ConsumerGroup { id, .. }) => {
                let reader = Reader::ALL.into_iter().find(|reader| reader.group() == create.name)?;
                self.readers.insert(*id, reader);
                for book in Book::ALL {
                    let fresh = || Deliveries::up_to(create.settings.attempts_max);
                    let of = self.deliveries.entry((reader, book)).or_insert_with(fresh);
                    let mins = self.mins.iter().filter(|((of, _), _)| *of == book);
                    mins.for_each(|((_, queue), min)| of.expire(*queue, *min));
                }
                Some(Ok(()))
            }
            (Command::AppendMessages(append), Answer::Stored(places)) => {
                let book = *self.books.get(&append.topic)?;
                let ids = append.messages.iter().map(|message| (book, text(&message.id)));
                Some(named(index, self.append(index, ids.collect(), places)))
            }
            (Command::StoreBatch(batch), answer) => {
                self.books.get(&batch.topics.first()?.topic)?;
                Some(named(index, self.batch(index, batch, answer)))
            }
            (Command::LeaseMessages(lease), Answer::Leased(granted)) => {
                let book = *self.books.get(&lease.topic)?;
                Some(self.with(lease.consumer_group, book, |of, queues| {
                    for grant in granted {
                        of.grant(at, end_of(queues, book, grant.queue), grant, lease.invisible_ms)?;
                    }
                    lease.parts.iter().try_for_each(|part| {
                        of.nothing_is_passed_over(index, end_of(queues, book, part.queue), part)
                    })
                }))
            }
            (Command::AckMessages(acks), Answer::Acked(outcomes)) => {
                let book = *self.books.get(&acks.topic)?;
                Some(self.with(acks.consumer_group, book, |of, _| of.acks(index, acks, outcomes)))
            }
            (Command::ChangeInvisible(change), Answer::Changed(outcome)) => {
                let book = *self.books.get(&change.topic)?;
                Some(self.with(change.consumer_group, book, |of, _| of.change(at, change, *outcome)))
            }
            (Command::DeadLetter(letters), Answer::DeadLettered { outcomes, .. }) => {
                let book = *self.books.get(&letters.topic)?;
                let mut more = 0;
                let result = self.with(letters.consumer_group, book, |of, _| {
                    let before = of.letters().len();
                    of.give_up(at, letters, outcomes)?;
                    more = (of.letters().len() - before) as u64;
                    Ok(())
                });
                self.counts.exhausted += more;
                Some(result)
            }
            (Command::RedriveDeadLetters(redrive), Answer::Redriven(outcomes)) => {
                let mut redriven = 0;
                self.readers.get(&redrive.consumer_group)?;
                let result = self.with(redrive.consumer_group, Reader::LETTERS_OF, |of, _| {
                    redriven = of.redrive(index, &redrive.letters, outcomes)?;
                    Ok(())
                });
                self.counts.redriven += redriven;
                Some(result)
            }
            (Command::CommitOffset(commit), answer) => {
                self.books.get(&commit.topic).filter(|book| **book == Reader::OFFSETS_IN)?;
                let min = self.min(Reader::OFFSETS_IN, commit.queue);
                let end = end_of(&self.queues, Reader::OFFSETS_IN, commit.queue);
                Some(named(index, self.offsets.commit(index, commit, (min, end), answer)))
            }
            (Command::ResetProgress(reset), Answer::OffsetsSet(queues)) => {
                let book = *self.books.get(&reset.topic)?;
                Some(named(index, self.reset(index, book, reset, *queues)))
            }
            (Command::ExpireMessages(expire), Answer::Expired { .. }) => {
                let book = *self.books.get(&expire.topic)?;
                Some(named(index, self.expire(index, book, expire)))
            }
            _ => None,
        }
    }

    /// A dead-letter queue lost its oldest letters.
    pub(super) fn letters_expire(&mut self) {
        self.deliveries.values_mut().for_each(Deliveries::letters_expire);
    }

    fn expire(&mut self, index: u64, book: Book, expire: &ExpireMessages) -> Result<(), String> {
        for (queue, min) in &expire.queues {
            let kept = self.queues.get(&(book, *queue)).map_or(&[][..], Vec::as_slice);
            let before = self.min(book, *queue);
            let min = QueueOffset((*min).min(kept.len() as u64)).max(before);
            let gone = kept.get(before.get() as usize..min.get() as usize).unwrap_or_default();
            if let Some(young) = gone.iter().find(|kept| kept.stored_at >= expire.stored_before) {
                return Err(format!("{} expires, and is not that old: {expire:?}", young.id));
            }
            self.mins.insert((book, *queue), min);
            for ((_, of), deliveries) in &mut self.deliveries {
                if *of == book {
                    deliveries.expire(*queue, min);
                }
            }
            if book == Reader::OFFSETS_IN {
                self.offsets.expire(index, *queue, min);
            }
        }
        Ok(())
    }

    fn with(
        &mut self,
        group: ConsumerGroupId,
        book: Book,
        check: impl FnOnce(&mut Deliveries, &BTreeMap<(Book, QueueId), Vec<Kept>>) -> Result<(), String>,
    ) -> Result<(), String> {
        let reader = self.readers.get(&group).ok_or_else(|| format!("nobody made group {group}"))?;
        let of = self.deliveries.entry((*reader, book)).or_default();
        check(of, &self.queues)
    }

    fn batch(&mut self, index: u64, batch: &StoreBatch, answer: &Answer) -> Result<(), String> {
        let mut ids = Vec::new();
        for (topic, message) in &batch.messages {
            let book =
                self.books.get(topic).ok_or_else(|| format!("a batch to {topic}, which is no book"))?;
            ids.push((*book, text(&message.id)));
        }
        let known: Vec<usize> = ids
            .iter()
            .enumerate()
            .filter(|(_, id)| self.stored.contains_key(*id))
            .map(|(at, _)| at)
            .collect();
        match answer {
            Answer::Stored(places) if known.is_empty() || known.len() == ids.len() => {
                self.counts.batches += u64::from(ids.len() > 1);
                self.counts.batch_repeats += u64::from(!known.is_empty());
                self.append(index, ids, places)
            }
            Answer::BatchPartlyStored(BatchPartlyStored { stored, first })
                if known.len() < ids.len()
                    && known.len() == *stored as usize
                    && known.first() == Some(&(*first as usize)) =>
            {
                self.counts.partly_known += 1;
                Ok(())
            }
            answer => Err(format!(
                "a batch of {} messages, of which {known:?} were stored, was answered by {answer:?}",
                ids.len()
            )),
        }
    }

    fn append(&mut self, index: u64, ids: Vec<MessageOf>, places: &[StoredAt]) -> Result<(), String> {
        if ids.len() != places.len() {
            return Err(format!("{} messages, {} answers", ids.len(), places.len()));
        }
        for (of, at) in ids.into_iter().zip(places) {
            let place = (at.queue, at.offset);
            let first = self.stored.get(&of);
            let is_right = match first {
                Some(first) => at.repeated && first.place == place,
                None => !at.repeated && at.offset == end_of(&self.queues, of.0, at.queue),
            };
            if !is_right {
                return Err(format!(
                    "{of:?} ({first:?}) is stored as {at:?}, the queue continues at {}",
                    end_of(&self.queues, of.0, at.queue)
                ));
            }
            if first.is_none() {
                let kept = Kept { id: of.1.clone(), stored_at: at.stored_at, index };
                self.queues.entry((of.0, at.queue)).or_default().push(kept);
                self.stored.insert(of, Stored { place, index });
            }
        }
        Ok(())
    }

    fn reset(&mut self, index: u64, book: Book, reset: &ResetProgress, answer: u32) -> Result<(), String> {
        let reader = *self
            .readers
            .get(&reset.consumer_group)
            .ok_or_else(|| format!("nobody made group {}", reset.consumer_group))?;
        if reset.queues.len() != answer as usize {
            return Err(format!("{answer} of {:?} were reset", reset.queues));
        }
        if !self.reset_ids.insert((reader, reset.id)) {
            self.counts.repeated_resets += 1;
            return Ok(());
        }
        for (queue, offset) in &reset.queues {
            let end = end_of(&self.queues, book, *queue);
            let next = (*offset).clamp(self.min(book, *queue), end);
            self.deliveries.entry((reader, book)).or_default().reset(*queue, next, end);
            if reader == Reader::Archive {
                self.offsets.reset(index, *queue, next);
            }
        }
        self.counts.resets += 1;
        self.resets.push(ResetOf { index, reader, queues: reset.queues.clone() });
        Ok(())
    }
}

fn named(index: u64, result: Result<(), String>) -> Result<(), String> {
    result.map_err(|what| format!("entry {index}: {what}"))
}

fn text(id: &[u8]) -> String {
    String::from_utf8_lossy(id).into_owned()
}

fn end_of(queues: &BTreeMap<(Book, QueueId), Vec<Kept>>, book: Book, queue: QueueId) -> QueueOffset {
    QueueOffset(queues.get(&(book, queue)).map_or(0, Vec::len) as u64)
}
