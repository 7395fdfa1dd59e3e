//! What the committed offsets of a consumer group must do: each queue's is a register.
//!
//! | Promise | Check |
//! |---|---|
//! | O1 linearizable | what a read says was in force at an entry behind all that was answered before it was asked for |
//! | F5 never back without a reset | a commit below what is in force changes nothing, and is answered so |
//! | O2 fenced by a reset | nor does one of a client that knows of another reset than the last |
//! | a reset happens once | one that comes again moves nothing |
//! | nothing is skipped | below a committed offset everything was handed out since the last reset; where the client does not say of which reset it knows, at any time |
//! | an offset lies in its queue | a commit behind the end is refused, and no other |
//! | a group without a commit has an offset once it was reset | a read says so |

use std::collections::{BTreeMap, BTreeSet};

use ledgermq_broker::state::{Answer, CommitOffset, CommitOutcome, Refusal};
use ledgermq_common::{QueueId, QueueOffset, ResetMark};

/// What a client asks to have committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Wish {
    pub queue: QueueId,
    pub offset: QueueOffset,
    pub known: Option<ResetMark>,
}

#[derive(Default)]
pub struct Offsets {
    registers: BTreeMap<QueueId, Register>,
    /// Attempts at a commit whose answer has not been seen.
    open: BTreeMap<Wish, u32>,
    commits: u64,
    behind: u64,
    of_other_resets: u64,
}

#[derive(Default)]
struct Register {
    /// What a read says from this entry on.
    history: Vec<(u64, QueueOffset)>,
    last_reset: ResetMark,
    handed: Handed,
    handed_since_reset: Handed,
}

/// What was handed out of a queue, or skipped on purpose.
#[derive(Default)]
struct Handed {
    beyond: BTreeSet<QueueOffset>,
    /// All below were.
    below: QueueOffset,
}

impl Handed {
    fn hand(&mut self, from: QueueOffset, to: QueueOffset) {
        for offset in from.get().max(self.below.get())..to.get() {
            self.beyond.insert(QueueOffset(offset));
        }
        while self.beyond.remove(&self.below) {
            self.below.0 += 1;
        }
    }

    fn skip_to(&mut self, to: QueueOffset) {
        self.hand(self.below, to);
    }
}

impl Register {
    fn now(&self) -> Option<QueueOffset> {
        self.history.last().map(|(_, offset)| *offset)
    }

    fn skip_to(&mut self, to: QueueOffset) {
        self.handed.skip_to(to);
        self.handed_since_reset.skip_to(to);
    }
}

impl Offsets {
    pub fn commits(&self) -> u64 {
        self.commits
    }

    /// Commits that met a later one, and those that met a reset.
    pub fn late(&self) -> (u64, u64) {
        (self.behind, self.of_other_resets)
    }

    pub fn now(&self, queue: QueueId) -> Option<QueueOffset> {
        self.registers.get(&queue)?.now()
    }

    pub fn last_reset(&self, queue: QueueId) -> ResetMark {
        self.registers.get(&queue).map_or(ResetMark::default(), |register| register.last_reset)
    }

    /// The last entry that set the queue to this offset.
    pub fn entry_of(&self, queue: QueueId, offset: QueueOffset) -> Option<u64> {
        let history = &self.registers.get(&queue)?.history;
        history.iter().rev().find(|(_, of)| *of == offset).map(|(index, _)| *index)
    }

    /// A client asks for a commit.
    pub fn commit_begins(&mut self, wish: Wish) {
        *self.open.entry(wish).or_default() += 1;
    }

    /// The attempt was answered, or refused before it was one.
    pub fn commit_ends(&mut self, wish: Wish) {
        if let Some(open) = self.open.get_mut(&wish) {
            *open = open.saturating_sub(1);
        }
    }

    pub(super) fn commit(
        &mut self,
        index: u64,
        commit: &CommitOffset,
        (min, end): (QueueOffset, QueueOffset),
        answer: &Answer,
    ) -> Result<(), String> {
        let CommitOffset { queue, offset, known, .. } = *commit;
        let register = self.registers.entry(queue).or_default();
        let (now, last) = (register.now(), register.last_reset);
        let wanted = if known.is_some_and(|known| known != last) {
            Answer::OffsetCommitted(CommitOutcome::OfOtherReset { last })
        } else if !(min..=end).contains(&offset) {
            Answer::Refused(Refusal::OffsetOutOfRange)
        } else if let Some(committed) = now.filter(|now| *now > offset) {
            Answer::OffsetCommitted(CommitOutcome::Behind { committed })
        } else {
            Answer::OffsetCommitted(CommitOutcome::Committed)
        };
        if *answer != wanted {
            return Err(format!(
                "a commit of {offset} in {queue}, which has {min} to {end}, by a client that knows of {known:?}: \
                 {answer:?}, and {now:?} is in force since reset {last}, so it is to be {wanted:?}"
            ));
        }
        match answer {
            Answer::OffsetCommitted(CommitOutcome::Committed) => {}
            Answer::OffsetCommitted(CommitOutcome::Behind { .. }) => {
                self.behind += 1;
                return Ok(());
            }
            Answer::OffsetCommitted(CommitOutcome::OfOtherReset { .. }) => {
                self.of_other_resets += 1;
                return Ok(());
            }
            _ => return Ok(()),
        }
        let is_open = self.open.get(&Wish { queue, offset, known }).is_some_and(|open| *open > 0);
        if !is_open {
            return Err(format!("nobody commits {offset} in {queue} now: {now:?} is in force"));
        }
        let handed = if known.is_some() { &register.handed_since_reset } else { &register.handed };
        if handed.below < offset {
            return Err(format!(
                "{offset} is committed in {queue}, and {} was never handed out",
                handed.below
            ));
        }
        if known.is_none() {
            // Made before a reset it may have taken the group over what the reset brought back.
            register.handed_since_reset.skip_to(offset);
        }
        self.commits += 1;
        register.history.push((index, offset));
        Ok(())
    }

    /// To where the reset said; what is ahead of it was skipped on purpose.
    pub(super) fn reset(&mut self, index: u64, queue: QueueId, next: QueueOffset) {
        let register = self.registers.entry(queue).or_default();
        register.history.push((index, next));
        register.last_reset = ResetMark(index);
        register.handed_since_reset = Handed::default();
        register.skip_to(next);
    }

    /// The queue begins at `min` now; what is below was not skipped by the group.
    pub(super) fn expire(&mut self, index: u64, queue: QueueId, min: QueueOffset) {
        let register = self.registers.entry(queue).or_default();
        if register.now().is_some_and(|now| now < min) {
            register.history.push((index, min));
        }
        register.skip_to(min);
    }

    /// A client was given messages from `from` up to `to`.
    pub fn handed(&mut self, queue: QueueId, from: QueueOffset, to: QueueOffset) {
        let register = self.registers.entry(queue).or_default();
        register.handed.hand(from, to);
        register.handed_since_reset.hand(from, to);
    }

    /// Whether a read may say so; before it was asked for, clients were told of `answered` entries.
    pub fn may_be(&self, queue: QueueId, offset: Option<QueueOffset>, answered: u64) -> bool {
        let history = self.registers.get(&queue).map_or(&[][..], |register| &register.history);
        // In force when it was asked for, or set since.
        let set_since = history.partition_point(|(index, _)| *index < answered);
        let in_force = set_since.checked_sub(1).and_then(|last| history.get(last)).map(|(_, of)| *of);
        in_force == offset || history[set_since..].iter().any(|(_, of)| Some(*of) == offset)
    }
}

#[cfg(test)]
mod tests {
    use ledgermq_broker::state::{ConsumerGroupId, TopicId};

    use super::*;

    const QUEUE: QueueId = QueueId(0);

    fn answered(
        offsets: &mut Offsets,
        index: u64,
        (offset, known): (u64, Option<u64>),
        outcome: CommitOutcome,
    ) -> Result<(), String> {
        let (topic, consumer_group) = (TopicId(1), ConsumerGroupId(1));
        let (offset, known) = (QueueOffset(offset), known.map(ResetMark));
        let command = CommitOffset { consumer_group, topic, queue: QUEUE, offset, known };
        let answer = Answer::OffsetCommitted(outcome);
        offsets.commit(index, &command, (QueueOffset(0), QueueOffset(10)), &answer)
    }

    fn commit(offsets: &mut Offsets, index: u64, offset: u64) -> Result<(), String> {
        answered(offsets, index, (offset, None), CommitOutcome::Committed)
    }

    fn wish(offset: u64, known: Option<u64>) -> Wish {
        Wish { queue: QUEUE, offset: QueueOffset(offset), known: known.map(ResetMark) }
    }

    #[test]
    fn a_read_of_what_was_in_force_before_an_answered_commit_is_convicted() {
        let mut offsets = Offsets::default();
        offsets.handed(QUEUE, QueueOffset(0), QueueOffset(5));
        for (index, offset) in [(10, 3), (20, 5)] {
            offsets.commit_begins(wish(offset, None));
            commit(&mut offsets, index, offset).unwrap();
        }
        let may_be = |offset: Option<u64>, answered| offsets.may_be(QUEUE, offset.map(QueueOffset), answered);
        assert!(may_be(None, 10) && may_be(Some(3), 10) && may_be(Some(5), 10));
        assert!(!may_be(None, 11) && may_be(Some(3), 20));
        assert!(!may_be(Some(3), 21) && may_be(Some(5), 21));
    }

    #[test]
    fn a_commit_over_what_was_never_handed_out_and_one_that_nobody_asked_for_are_convicted() {
        let mut offsets = Offsets::default();
        offsets.handed(QUEUE, QueueOffset(0), QueueOffset(3));
        offsets.handed(QUEUE, QueueOffset(4), QueueOffset(6));
        offsets.commit_begins(wish(3, None));
        commit(&mut offsets, 1, 3).unwrap();
        offsets.commit_ends(wish(3, None));
        assert!(commit(&mut offsets, 2, 3).is_err(), "it was answered");
        offsets.commit_begins(wish(6, None));
        assert!(commit(&mut offsets, 3, 6).is_err(), "3 was not handed out");
        offsets.reset(4, QUEUE, QueueOffset(4));
        commit(&mut offsets, 5, 6).unwrap();
        offsets.reset(6, QUEUE, QueueOffset(2));
        assert_eq!(offsets.now(QUEUE), Some(QueueOffset(2)));
    }

    #[test]
    fn a_late_commit_that_goes_back_or_over_a_reset_is_convicted() {
        let mut offsets = Offsets::default();
        offsets.handed(QUEUE, QueueOffset(0), QueueOffset(8));
        for (offset, known) in [(5, 0), (8, 0), (8, 9)] {
            offsets.commit_begins(wish(offset, Some(known)));
        }
        answered(&mut offsets, 1, (8, Some(0)), CommitOutcome::Committed).unwrap();
        assert!(answered(&mut offsets, 2, (5, Some(0)), CommitOutcome::Committed).is_err());
        let behind = CommitOutcome::Behind { committed: QueueOffset(8) };
        answered(&mut offsets, 2, (5, Some(0)), behind).unwrap();
        offsets.reset(9, QUEUE, QueueOffset(2));
        assert!(answered(&mut offsets, 10, (8, Some(0)), CommitOutcome::Committed).is_err());
        let other = CommitOutcome::OfOtherReset { last: ResetMark(9) };
        answered(&mut offsets, 10, (8, Some(0)), other).unwrap();
        assert!(
            answered(&mut offsets, 11, (8, Some(9)), CommitOutcome::Committed).is_err(),
            "it was handed out before the reset only"
        );
        offsets.handed(QUEUE, QueueOffset(2), QueueOffset(8));
        answered(&mut offsets, 11, (8, Some(9)), CommitOutcome::Committed).unwrap();
        assert_eq!(offsets.late(), (1, 1));
    }
}
