//! What clients of the books are told: batches, deliveries to several groups, offsets, letters.

use ledgermq_broker::state::{BatchPartlyStored, DeadLetterReason, Granted, StoredAt};
use ledgermq_common::{QueueId, QueueOffset, ResetMark};
use xxhash_rust::xxh3::xxh3_64;

use super::{Oracle, Send, Tallies};
use crate::front::CONSUMER_GROUP;
use crate::front::accounts::{BOOK_QUEUES, Book, Item, Reader};
use crate::front::letters::letter_hash;
use crate::front::offsets::ResetTo;
use crate::front::ordered::ORDERED_GROUP;
use crate::model::Place;
use crate::model::accounts::{Kept, MessageOf};
use crate::model::offsets::Wish;

/// Letters of a consumer group, as its dead-letter queue is to have them.
pub type LettersOf = (&'static str, Vec<(Place, DeadLetterReason)>);

impl Oracle {
    /// A producer was told that a batch, or a message of a book alone, is stored.
    pub fn batch_stored(&self, who: &str, items: &[Item], places: &[StoredAt]) {
        let mut state = self.0.lock();
        for (item, at) in items.iter().zip(places) {
            let (of, place) = ((item.book, item.id.clone()), (at.queue, at.offset));
            let stored = state.model.accounts().place(&of);
            let Some(stored) = stored.filter(|stored| stored.place == place) else {
                state.violate(format!("{who} was told {of:?} is at {place:?}, the log says {stored:?}"));
                return;
            };
            state.answered(stored.index);
            let send = Send { place, index: stored.index, body_hash: xxh3_64(&item.body) };
            state.booked.entry(of).or_insert(send);
        }
        let ids: Vec<&str> = items.iter().map(|item| item.id.as_str()).collect();
        let is_repeat = places.iter().any(|at| at.repeated);
        state.trace.event(who, format_args!("{ids:?} are stored, repeat: {is_repeat}"));
    }

    /// A producer was told that a part of its batch was stored before.
    pub fn batch_refused(&self, who: &str, items: &[Item], partly: BatchPartlyStored) {
        let mut state = self.0.lock();
        let is_known = |item: &&Item| {
            let of = (item.book, item.id.clone());
            state.model.accounts().place(&of).is_some()
        };
        let known = items.iter().filter(is_known).count();
        let first = items.get(partly.first as usize).filter(is_known);
        let is_right = first.is_some() && (known == partly.stored as usize) && known < items.len();
        if !is_right {
            let ids: Vec<&str> = items.iter().map(|item| item.id.as_str()).collect();
            state.violate(format!("{who} was told {partly:?} of {ids:?}, {known} are stored"));
        }
        state.trace.event(who, format_args!("a batch is refused, {partly:?}"));
    }

    /// Sends of the books that were answered.
    pub fn booked(&self) -> std::collections::BTreeMap<MessageOf, Send> {
        self.0.lock().booked.clone()
    }

    pub fn books_received(&self, who: &str, reader: Reader, book: Book, granted: &[Granted]) {
        let mut state = self.0.lock();
        for grant in granted {
            if !state.model.accounts().is_granted(reader, book, grant) {
                state.violate(format!("{who} was given {grant:?} of {book:?}, and no entry grants it"));
            }
            let (place, attempt) = ((grant.queue, grant.offset), grant.attempt);
            state.trace.event(who, format_args!("got {place:?} of {book:?}, attempt {attempt}"));
        }
    }

    /// Whether a consumer group is done with everything in its books.
    pub fn books_are_read(&self, reader: Reader) -> bool {
        let state = self.0.lock();
        reader.books().iter().all(|book| state.model.accounts().first_open(reader, *book).is_none())
    }

    /// A consumer group that was never given a message of its books, and the message.
    pub fn never_given(&self) -> Option<(&'static str, (QueueId, QueueOffset, String))> {
        let state = self.0.lock();
        let mut all = Reader::ALL.into_iter().flat_map(|reader| {
            let books = reader.books().iter();
            books.map(move |book| (reader, *book))
        });
        all.find_map(|(reader, book)| {
            let of = state.model.accounts().first_never_given(reader, book)?;
            Some((reader.group(), of))
        })
    }

    /// Whether the group that pulls has committed the end of each queue.
    pub fn offsets_are_at_the_end(&self, queues: &[QueueId]) -> bool {
        let state = self.0.lock();
        let accounts = state.model.accounts();
        queues.iter().all(|queue| {
            let end = accounts.queue(Reader::OFFSETS_IN, *queue).len() as u64;
            accounts.offsets().now(*queue).unwrap_or_default().get() == end
        })
    }

    /// What a read of the group's offset in each queue is to say now, and of its last reset.
    pub fn offsets(&self) -> Vec<(QueueId, Option<QueueOffset>, ResetMark)> {
        let state = self.0.lock();
        let offsets = state.model.accounts().offsets();
        (0..BOOK_QUEUES)
            .map(QueueId)
            .map(|queue| (queue, offsets.now(queue), offsets.last_reset(queue)))
            .collect()
    }

    /// How many messages each queue of a book is to have.
    pub fn ends_of(&self, book: Book) -> Vec<u64> {
        let state = self.0.lock();
        (0..BOOK_QUEUES)
            .map(|queue| state.model.accounts().queue(book, QueueId(queue)).len() as u64)
            .collect()
    }

    pub fn commit_begins(&self, wish: Wish) {
        self.0.lock().model.accounts_mut().offsets_mut().commit_begins(wish);
    }

    /// An attempt at a commit was answered, or refused by a node that does not lead.
    pub fn commit_ends(&self, who: &str, wish: Wish, was_done: bool) {
        let mut state = self.0.lock();
        state.model.accounts_mut().offsets_mut().commit_ends(wish);
        if !was_done {
            return;
        }
        let Wish { queue, offset, .. } = wish;
        match state.model.accounts().offsets().entry_of(queue, offset) {
            Some(index) => state.answered(index),
            None => {
                state.violate(format!("{who} was told {offset} of {queue} is committed: no entry says so"))
            }
        }
        state.trace.event(who, format_args!("committed {offset} of queue {queue}"));
    }

    /// A client read its group's offset; `answered` entries were answered before it asked.
    pub fn offset_read(
        &self,
        who: &str,
        queue: QueueId,
        (offset, last_reset): (Option<QueueOffset>, ResetMark),
        answered: u64,
    ) {
        let mut state = self.0.lock();
        let offsets = state.model.accounts().offsets();
        let (now, last) = (offsets.now(queue), offsets.last_reset(queue));
        if !offsets.may_be(queue, offset, answered) || last_reset > last {
            state.violate(format!(
                "{who} read {offset:?} of queue {queue} since reset {last_reset}, which was not in force when \
                 {answered} entries were answered, nor since; now it is {now:?} since reset {last}"
            ));
        }
        state.tallies.offset_reads += 1;
        state.trace.event(who, format_args!("offset of queue {queue} is {offset:?}"));
    }

    /// A client asked where an end or a time is in a queue.
    pub fn offset_found(&self, who: &str, queue: QueueId, to: ResetTo, offset: QueueOffset, answered: u64) {
        let mut state = self.0.lock();
        let accounts = state.model.accounts();
        let min = accounts.min(Reader::OFFSETS_IN, queue);
        if !is_where(accounts.queue(Reader::OFFSETS_IN, queue), min, to, offset, answered) {
            state.violate(format!(
                "{who} was told {to:?} of queue {queue} is {offset}, {answered} entries were answered before"
            ));
        }
        state.trace.event(who, format_args!("{to:?} of queue {queue} is {offset}"));
    }

    /// An operator was told that a group was reset; `answered` entries were answered before.
    pub fn reset_answered(&self, who: &str, reader: Reader, to: ResetTo, queues: u32, answered: u64) {
        let mut state = self.0.lock();
        let accounts = state.model.accounts();
        let is_it = |queues: &[(QueueId, QueueOffset)]| match to {
            ResetTo::Offset(queue, offset) => *queues == [(queue, offset)],
            to => {
                queues.len() == BOOK_QUEUES as usize
                    && queues.iter().all(|(queue, offset)| {
                        let min = accounts.min(Reader::OFFSETS_IN, *queue);
                        is_where(accounts.queue(Reader::OFFSETS_IN, *queue), min, to, *offset, answered)
                    })
            }
        };
        let mut resets = accounts.resets().iter().rev();
        let done = resets.find(|of| {
            of.index >= answered
                && of.reader == reader
                && of.queues.len() == queues as usize
                && is_it(&of.queues)
        });
        match done.map(|of| of.index) {
            Some(index) => state.answered(index),
            None => state.violate(format!("{who} was told {reader:?} is reset to {to:?}: no entry says so")),
        }
        state.trace.event(who, format_args!("{reader:?} is reset to {to:?}"));
    }

    /// A client pulled messages from an offset on.
    pub fn pulled(&self, who: &str, queue: QueueId, from: QueueOffset, messages: &[(QueueOffset, u64)]) {
        let mut state = self.0.lock();
        let kept = state.model.accounts().queue(Reader::OFFSETS_IN, queue);
        let wanted = kept.iter().map(|kept| xxh3_64(kept.id.as_bytes()));
        // What expired since the client asked where to begin is not there any more.
        let min = state.model.accounts().min(Reader::OFFSETS_IN, queue);
        let first = messages.first().map_or(from, |(first, _)| *first);
        let from = if first <= min { from.max(first) } else { from };
        if let Some(what) = differs(from, messages, wanted) {
            state.violate(format!("{who} pulled queue {queue}: {what}"));
            return;
        }
        let to = QueueOffset(from.get() + messages.len() as u64);
        state.model.accounts_mut().offsets_mut().handed(queue, from, to);
        state.tallies.pulled += messages.len() as u64;
        state.trace.event(who, format_args!("pulled {from} to {to} of queue {queue}"));
    }

    /// A client read the dead letters of the group that gives up soon.
    pub fn letters_pulled(&self, who: &str, from: QueueOffset, letters: &[(QueueOffset, u64)]) {
        let mut state = self.0.lock();
        let of = state.model.accounts().deliveries(Reader::Ledger, Reader::LETTERS_OF);
        let wanted = of.into_iter().flat_map(|of| of.letters().iter().map(|of| letter_hash(of.place)));
        // Where the oldest expired the queue begins later.
        let from = letters.first().map_or(from, |(first, _)| from.max(*first));
        if let Some(what) = differs(from, letters, wanted) {
            state.violate(format!("{who} read the dead letters: {what}"));
        }
        state.tallies.letters_read += letters.len() as u64;
        state.trace.event(who, format_args!("read {} letters from {from} on", letters.len()));
    }

    pub fn letters(&self) -> Vec<LettersOf> {
        let state = self.0.lock();
        let ledger = state.model.accounts().deliveries(Reader::Ledger, Reader::LETTERS_OF);
        let of_ledger = ledger.map(|of| of.letters()).unwrap_or_default();
        let pair = |of: &crate::model::LetterOf| (of.place, of.reason);
        vec![
            (CONSUMER_GROUP, state.model.deliveries().letters().iter().map(pair).collect()),
            (Reader::Ledger.group(), of_ledger.iter().map(pair).collect()),
            (ORDERED_GROUP, state.model.order().letters().to_vec()),
        ]
    }
}

/// The tallies that the model keeps.
pub(super) fn count(model: &crate::model::Model, tallies: Tallies) -> Tallies {
    let (counts, offsets) = (model.accounts().counts(), model.accounts().offsets());
    Tallies {
        generations: u64::from(model.order().generation()),
        batches: counts.batches,
        batch_repeats: counts.batch_repeats,
        batches_partly_known: counts.partly_known,
        exhausted: counts.exhausted,
        exhausted_in_order: model.order().letters().len() as u64,
        redriven: counts.redriven,
        resets: counts.resets,
        offset_commits: offsets.commits(),
        commits_behind: offsets.late().0,
        commits_of_other_resets: offsets.late().1,
        repeated_resets: counts.repeated_resets,
        expired: model.keeping().expired,
        carried: model.keeping().carried,
        releases: model.keeping().releases,
        ..tallies
    }
}

/// Why what was read from a queue is not what lies there without a gap; a hash of 0 is not compared.
fn differs(
    from: QueueOffset,
    read: &[(QueueOffset, u64)],
    wanted: impl Iterator<Item = u64>,
) -> Option<String> {
    let wanted: Vec<u64> = wanted.collect();
    (from.get()..).zip(read).find_map(|(at, (offset, hash))| {
        let there = usize::try_from(at).ok().and_then(|at| wanted.get(at));
        let is_right = offset.get() == at && there.is_some_and(|there| *hash == 0 || there == hash);
        (!is_right).then(|| format!("at {at} it is offset {offset} with {hash:x}, there lies {there:x?}"))
    })
}

/// Whether an offset is where `to` was at some moment since `answered` entries were answered.
fn is_where(kept: &[Kept], min: QueueOffset, to: ResetTo, offset: QueueOffset, answered: u64) -> bool {
    let is_beginning = offset <= min;
    let offset = usize::try_from(offset.get()).unwrap_or(usize::MAX);
    let had = kept.partition_point(|kept| kept.index < answered);
    match to {
        ResetTo::Beginning => is_beginning,
        ResetTo::End => (had..=kept.len()).contains(&offset),
        ResetTo::At(at) => {
            let first = kept.partition_point(|kept| kept.stored_at < at);
            // The end, where nothing was stored since then yet.
            offset == first || (had..=first).contains(&offset) || (is_beginning && offset > first)
        }
        ResetTo::Offset(..) => false,
    }
}

#[cfg(test)]
mod tests {
    use ledgermq_common::clock::UnixMillis;

    use super::*;

    #[test]
    fn a_time_is_at_the_first_message_since_then_or_at_an_end_of_that_moment() {
        let kept = |index| Kept { id: String::new(), stored_at: UnixMillis(index * 10), index };
        let queue: Vec<Kept> = (1..=4).map(kept).collect();
        let is_at = |at, offset, answered| {
            is_where(&queue, QueueOffset(0), ResetTo::At(UnixMillis(at)), QueueOffset(offset), answered)
        };
        assert!(is_at(20, 1, 5) && !is_at(20, 0, 5) && !is_at(20, 2, 5));
        assert!(is_at(40, 3, 2) && is_at(40, 1, 2) && !is_at(40, 0, 2), "an end of before");
        assert!(is_where(&queue, QueueOffset(0), ResetTo::End, QueueOffset(3), 4));
        assert!(!is_where(&queue, QueueOffset(0), ResetTo::End, QueueOffset(2), 4));
    }

    #[test]
    fn a_gap_and_another_message_in_what_was_pulled_are_found() {
        let wanted = || [5, 6, 7].into_iter();
        let read = |read: &[(u64, u64)]| {
            let read: Vec<_> = read.iter().map(|(offset, hash)| (QueueOffset(*offset), *hash)).collect();
            differs(QueueOffset(1), &read, wanted())
        };
        assert_eq!(read(&[(1, 6), (2, 7)]), None);
        assert_eq!(read(&[(1, 0)]), None, "its bytes are gone");
        assert!(read(&[(2, 7)]).is_some() && read(&[(1, 7)]).is_some());
        assert!(read(&[(1, 6), (2, 7), (3, 8)]).is_some(), "nothing is there");
    }
}
