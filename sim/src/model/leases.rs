//! What deliveries of a topic to a consumer group must do.
//!
//! | Promise | Check |
//! |---|---|
//! | one live lease per message | nothing is granted while an earlier grant runs, by log time |
//! | nothing is passed over | whatever a receive has looked at was delivered by then: no group has a filter |
//! | a lease lasts what was asked for | a grant and a change end exactly that much after log time |
//! | acknowledged is done | nothing is granted after an acknowledgement was answered |
//! | only the last delivery counts | an acknowledgement of an older one is refused and changes nothing |
//! | an acknowledgement is kept | that of the last delivery is done, or was done before |
//! | attempts never go back, and end | a grant has the attempt after the last one, and none above the group's maximum |
//! | the dead-letter queue or the group, never both | a letter ends its delivery: nothing is granted after it |
//! | given up when it is time | a letter for want of attempts ends the last one allowed, after its lease |
//! | a letter is given back once | it is consumed until then, and begins again with the first attempt |
//! | what expired is done with | below the minimum of its queue nothing is granted |
//! | a reset is the only way back | behind its offset all is new, before it all is done |

use std::collections::{BTreeMap, BTreeSet};

use ledgermq_broker::state::command::RedrivenLetter;
use ledgermq_broker::state::{
    AckMessages, ChangeInvisible, ChangeOutcome, DeadLetter, DeadLetterReason, DeliveryEpoch,
    DeliveryOutcome, Granted, LeasePart, Letter,
};
use ledgermq_common::clock::UnixMillis;
use ledgermq_common::{QueueId, QueueOffset};

use super::Place;

/// One consumer group in one topic.
pub struct Deliveries {
    attempts_max: u32,
    by_place: BTreeMap<Place, Delivery>,
    granted: BTreeSet<(Place, DeliveryEpoch)>,
    /// In the order of the dead-letter queue.
    letters: Vec<LetterOf>,
    /// What is below expired, delivered or not.
    mins: BTreeMap<QueueId, QueueOffset>,
    /// Letters expired too; which ones is not known here.
    letters_expire: bool,
}

#[derive(Debug, Clone, Copy, Default)]
struct Delivery {
    attempt: u32,
    epoch: DeliveryEpoch,
    until: UnixMillis,
    is_consumed: bool,
}

/// A letter in the dead-letter queue of the group.
#[derive(Debug, Clone, Copy)]
pub struct LetterOf {
    pub place: Place,
    pub reason: DeadLetterReason,
    is_redriven: bool,
}

impl Default for Deliveries {
    fn default() -> Self {
        Self::up_to(u32::MAX)
    }
}

impl Deliveries {
    /// Of a group that is given a message at most so often.
    pub fn up_to(attempts_max: u32) -> Self {
        Self {
            attempts_max,
            by_place: BTreeMap::new(),
            granted: BTreeSet::new(),
            letters: Vec::new(),
            mins: BTreeMap::new(),
            letters_expire: false,
        }
    }

    pub fn is_consumed(&self, place: Place) -> bool {
        self.has_expired(place) || self.by_place.get(&place).is_some_and(|delivery| delivery.is_consumed)
    }

    fn has_expired(&self, place: Place) -> bool {
        self.mins.get(&place.0).is_some_and(|min| place.1 < *min)
    }

    /// The queue begins at `min` now.
    pub(super) fn expire(&mut self, queue: QueueId, min: QueueOffset) {
        let before = self.mins.insert(queue, min).unwrap_or_default();
        for offset in before.get()..min.get() {
            self.by_place.entry((queue, QueueOffset(offset))).or_default().is_consumed = true;
        }
    }

    pub(super) fn letters_expire(&mut self) {
        self.letters_expire = true;
    }

    pub fn was_delivered(&self, place: Place) -> bool {
        let delivery = self.by_place.get(&place);
        self.has_expired(place) || delivery.is_some_and(|of| of.attempt > 0 || of.is_consumed)
    }

    pub fn is_granted(&self, grant: &Granted) -> bool {
        self.granted.contains(&((grant.queue, grant.offset), grant.epoch))
    }

    pub fn letters(&self) -> &[LetterOf] {
        &self.letters
    }

    /// `end` is the next offset of the queue.
    pub(super) fn grant(
        &mut self,
        (index, now): (u64, UnixMillis),
        end: QueueOffset,
        grant: &Granted,
        invisible_ms: u64,
    ) -> Result<(), String> {
        let place = (grant.queue, grant.offset);
        if end <= grant.offset {
            return Err(format!("entry {index} grants {place:?}, where nothing is stored"));
        }
        let delivery = self.by_place.entry(place).or_default();
        if delivery.is_consumed {
            return Err(format!("entry {index} grants {place:?}, which was acknowledged or given up"));
        }
        if delivery.until > now {
            return Err(format!(
                "entry {index} grants {place:?} at log time {now}, leased until {}",
                delivery.until
            ));
        }
        if grant.attempt != delivery.attempt + 1 || grant.attempt > self.attempts_max {
            return Err(format!(
                "entry {index} grants {place:?} as attempt {} of {} after attempt {}",
                grant.attempt, self.attempts_max, delivery.attempt
            ));
        }
        if grant.until != now.saturating_add_ms(invisible_ms) {
            return Err(format!(
                "entry {index} grants {place:?} at {now} until {}, {invisible_ms} ms were asked for",
                grant.until
            ));
        }
        if delivery.epoch != DeliveryEpoch::default() && grant.epoch <= delivery.epoch {
            return Err(format!("entry {index} grants {place:?} under the receipt handle of an older one"));
        }
        let Granted { attempt, epoch, until, .. } = *grant;
        *delivery = Delivery { attempt, epoch, until, is_consumed: false };
        self.granted.insert((place, epoch));
        Ok(())
    }

    /// What a receive has looked at counts as seen, so whatever is there must have been delivered.
    pub(super) fn nothing_is_passed_over(
        &self,
        index: u64,
        end: QueueOffset,
        part: &LeasePart,
    ) -> Result<(), String> {
        let to = part.to.min(end);
        for offset in part.from.get()..to.get() {
            let place = (part.queue, QueueOffset(offset));
            if !self.was_delivered(place) {
                return Err(format!("entry {index} passes over {place:?}, which was never delivered"));
            }
        }
        Ok(())
    }

    pub(super) fn acks(
        &mut self,
        index: u64,
        acks: &AckMessages,
        outcomes: &[DeliveryOutcome],
    ) -> Result<(), String> {
        if acks.entries.len() != outcomes.len() {
            return Err(format!("entry {index}: {} acks, {} answers", acks.entries.len(), outcomes.len()));
        }
        for (ack, outcome) in acks.entries.iter().zip(outcomes) {
            self.end_delivery(index, (ack.queue, ack.offset), ack.epoch, *outcome)?;
        }
        Ok(())
    }

    pub(super) fn give_up(
        &mut self,
        (index, now): (u64, UnixMillis),
        command: &DeadLetter,
        outcomes: &[DeliveryOutcome],
    ) -> Result<(), String> {
        if command.letters.len() != outcomes.len() {
            return Err(format!(
                "entry {index}: {} letters, {} answers",
                command.letters.len(),
                outcomes.len()
            ));
        }
        for (letter, outcome) in command.letters.iter().zip(outcomes) {
            self.give_up_one(index, now, letter, *outcome)?;
        }
        Ok(())
    }

    fn give_up_one(
        &mut self,
        index: u64,
        now: UnixMillis,
        letter: &Letter,
        outcome: DeliveryOutcome,
    ) -> Result<(), String> {
        let (place, reason) = ((letter.queue, letter.offset), letter.record.reason);
        let delivery = self.by_place.entry(place).or_default();
        let is_over = delivery.until <= now && delivery.attempt >= self.attempts_max;
        let is_last = !delivery.is_consumed && delivery.attempt > 0 && delivery.epoch == letter.epoch;
        if reason == DeadLetterReason::AttemptsExhausted && is_last && !is_over {
            return match outcome {
                DeliveryOutcome::Stale => Ok(()),
                _ => Err(format!(
                    "entry {index} at {now} gives {place:?} up for want of attempts as {outcome:?}: {delivery:?} of {}",
                    self.attempts_max
                )),
            };
        }
        self.end_delivery(index, place, letter.epoch, outcome)?;
        if outcome == DeliveryOutcome::Done {
            self.letters.push(LetterOf { place, reason, is_redriven: false });
        }
        Ok(())
    }

    /// Letters given back to the group.
    pub(super) fn redrive(
        &mut self,
        index: u64,
        letters: &[RedrivenLetter],
        outcomes: &[DeliveryOutcome],
    ) -> Result<u64, String> {
        if letters.len() != outcomes.len() {
            return Err(format!("entry {index}: {} letters, {} answers", letters.len(), outcomes.len()));
        }
        let mut redriven = 0;
        for (letter, outcome) in letters.iter().zip(outcomes) {
            let place = (letter.queue, letter.offset);
            let has_expired = self.has_expired(place);
            let of = usize::try_from(letter.letter.get()).ok().and_then(|at| self.letters.get_mut(at));
            let expected = match &of {
                None => DeliveryOutcome::NeverDelivered,
                Some(_) if has_expired => DeliveryOutcome::NeverDelivered,
                // An expired letter counts as given back.
                Some(_) if self.letters_expire && *outcome == DeliveryOutcome::AlreadyConsumed => *outcome,
                Some(of) if of.is_redriven => DeliveryOutcome::AlreadyConsumed,
                Some(_) => DeliveryOutcome::Done,
            };
            if *outcome != expected || of.as_ref().is_some_and(|of| of.place != place) {
                return Err(format!("entry {index}: {letter:?} ({of:?}) is given back as {outcome:?}"));
            }
            if let Some(of) = of.filter(|_| expected == DeliveryOutcome::Done) {
                of.is_redriven = true;
                redriven += 1;
                let delivery = self.by_place.entry(place).or_default();
                *delivery = Delivery { epoch: delivery.epoch, ..Delivery::default() };
            }
        }
        Ok(redriven)
    }

    pub(super) fn change(
        &mut self,
        (index, now): (u64, UnixMillis),
        change: &ChangeInvisible,
        outcome: ChangeOutcome,
    ) -> Result<(), String> {
        let place = (change.queue, change.offset);
        let delivery = self.by_place.entry(place).or_default();
        let is_last = !delivery.is_consumed && delivery.attempt > 0 && delivery.epoch == change.epoch;
        match outcome {
            ChangeOutcome::Changed { until, attempt, .. }
                if is_last
                    && until == now.saturating_add_ms(change.invisible_ms)
                    && attempt == delivery.attempt =>
            {
                delivery.until = until;
                Ok(())
            }
            ChangeOutcome::Not(_) if !is_last => Ok(()),
            outcome => Err(format!("entry {index} at {now}: {change:?} of {delivery:?}: {outcome:?}")),
        }
    }

    /// The group goes on at `next`, wherever it was.
    pub(super) fn reset(&mut self, queue: QueueId, next: QueueOffset, end: QueueOffset) {
        for offset in 0..end.get() {
            let delivery = self.by_place.entry((queue, QueueOffset(offset))).or_default();
            // Handles of before stay old.
            let epoch = delivery.epoch;
            *delivery = Delivery { epoch, is_consumed: offset < next.get(), ..Delivery::default() };
        }
    }

    fn end_delivery(
        &mut self,
        index: u64,
        place: Place,
        epoch: DeliveryEpoch,
        outcome: DeliveryOutcome,
    ) -> Result<(), String> {
        let delivery = self.by_place.entry(place).or_default();
        let is_last = delivery.attempt > 0 && delivery.epoch == epoch;
        let is_right = match outcome {
            DeliveryOutcome::Done => is_last && !delivery.is_consumed,
            DeliveryOutcome::AlreadyConsumed => delivery.is_consumed,
            _ => !is_last && !delivery.is_consumed,
        };
        if !is_right {
            return Err(format!("entry {index} ends {epoch:?} of {place:?} as {outcome:?}: {delivery:?}"));
        }
        delivery.is_consumed |= outcome == DeliveryOutcome::Done;
        Ok(())
    }
}
