//! What the committed offsets of a consumer group must do: each queue's is a register.
//!
//! | Promise | Check |
//! |---|---|
//! | O1 linearizable | what a read says was in force at an entry behind all that was answered before it was asked for |
//! | F5 never back without a reset | a commit below what is in force is one of whose fate its client was not told |
//! | nothing is skipped | below a committed offset everything was handed out, or skipped by a reset |
//! | an offset lies in its queue | a commit behind the end is refused, and no other |
//! | a group without a commit has an offset once it was reset | a read says so |

use std::collections::{BTreeMap, BTreeSet};

use ledgermq_broker::state::{Answer, CommitOffset, Refusal};
use ledgermq_common::{QueueId, QueueOffset};

#[derive(Default)]
pub struct Offsets {
    registers: BTreeMap<QueueId, Register>,
    /// Attempts at a commit whose answer has not been seen.
    open: BTreeMap<(QueueId, QueueOffset), u32>,
    commits: u64,
    late: u64,
}

#[derive(Default)]
struct Register {
    /// What a read says from this entry on.
    history: Vec<(u64, QueueOffset)>,
    handed: BTreeSet<QueueOffset>,
    /// All below were handed out or skipped.
    handed_below: QueueOffset,
}

impl Register {
    fn now(&self) -> Option<QueueOffset> {
        self.history.last().map(|(_, offset)| *offset)
    }

    fn hand(&mut self, offset: QueueOffset) {
        self.handed.insert(offset);
        while self.handed.remove(&self.handed_below) {
            self.handed_below.0 += 1;
        }
    }
}

impl Offsets {
    pub fn commits(&self) -> u64 {
        self.commits
    }

    /// Commits that arrived when a later one was in force already.
    pub fn late(&self) -> u64 {
        self.late
    }

    pub fn now(&self, queue: QueueId) -> Option<QueueOffset> {
        self.registers.get(&queue)?.now()
    }

    /// The last entry that set the queue to this offset.
    pub fn entry_of(&self, queue: QueueId, offset: QueueOffset) -> Option<u64> {
        let history = &self.registers.get(&queue)?.history;
        history.iter().rev().find(|(_, of)| *of == offset).map(|(index, _)| *index)
    }

    /// A client asks for a commit.
    pub fn commit_begins(&mut self, queue: QueueId, offset: QueueOffset) {
        *self.open.entry((queue, offset)).or_default() += 1;
    }

    /// The attempt was answered, or refused before it was one.
    pub fn commit_ends(&mut self, queue: QueueId, offset: QueueOffset) {
        if let Some(open) = self.open.get_mut(&(queue, offset)) {
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
        let CommitOffset { queue, offset, .. } = *commit;
        match answer {
            Answer::OffsetsSet(1) if (min..=end).contains(&offset) => {}
            Answer::Refused(Refusal::OffsetOutOfRange) if !(min..=end).contains(&offset) => return Ok(()),
            answer => {
                return Err(format!("a commit of {offset} in {queue}, which has {min} to {end}: {answer:?}"));
            }
        }
        let register = self.registers.entry(queue).or_default();
        let is_open = self.open.get(&(queue, offset)).is_some_and(|open| *open > 0);
        if !is_open {
            return Err(format!("nobody commits {offset} in {queue} now: {:?} is in force", register.now()));
        }
        if register.handed_below < offset {
            return Err(format!(
                "{offset} is committed in {queue}, and {} was never handed out",
                register.handed_below
            ));
        }
        self.late += u64::from(register.now().is_some_and(|now| now > offset));
        self.commits += 1;
        register.history.push((index, offset));
        Ok(())
    }

    /// To where the reset said; what is ahead of it was skipped on purpose.
    pub(super) fn reset(&mut self, index: u64, queue: QueueId, next: QueueOffset) {
        let register = self.registers.entry(queue).or_default();
        register.history.push((index, next));
        for offset in register.handed_below.get()..next.get() {
            register.hand(QueueOffset(offset));
        }
    }

    /// The queue begins at `min` now; what is below was not skipped by the group.
    pub(super) fn expire(&mut self, index: u64, queue: QueueId, min: QueueOffset) {
        let register = self.registers.entry(queue).or_default();
        if register.now().is_some_and(|now| now < min) {
            register.history.push((index, min));
        }
        for offset in register.handed_below.get()..min.get() {
            register.hand(QueueOffset(offset));
        }
    }

    /// A client was given messages from `from` up to `to`.
    pub fn handed(&mut self, queue: QueueId, from: QueueOffset, to: QueueOffset) {
        let register = self.registers.entry(queue).or_default();
        for offset in from.get().max(register.handed_below.get())..to.get() {
            register.hand(QueueOffset(offset));
        }
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

    fn commit(offsets: &mut Offsets, index: u64, offset: u64) -> Result<(), String> {
        let (topic, consumer_group) = (TopicId(1), ConsumerGroupId(1));
        let offset = QueueOffset(offset);
        let command = CommitOffset { consumer_group, topic, queue: QUEUE, offset };
        offsets.commit(index, &command, (QueueOffset(0), QueueOffset(10)), &Answer::OffsetsSet(1))
    }

    #[test]
    fn a_read_of_what_was_in_force_before_an_answered_commit_is_convicted() {
        let mut offsets = Offsets::default();
        offsets.handed(QUEUE, QueueOffset(0), QueueOffset(5));
        for (index, offset) in [(10, 3), (20, 5)] {
            offsets.commit_begins(QUEUE, QueueOffset(offset));
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
        offsets.commit_begins(QUEUE, QueueOffset(3));
        commit(&mut offsets, 1, 3).unwrap();
        offsets.commit_ends(QUEUE, QueueOffset(3));
        assert!(commit(&mut offsets, 2, 3).is_err(), "it was answered");
        offsets.commit_begins(QUEUE, QueueOffset(6));
        assert!(commit(&mut offsets, 3, 6).is_err(), "3 was not handed out");
        offsets.reset(4, QUEUE, QueueOffset(4));
        commit(&mut offsets, 5, 6).unwrap();
        offsets.reset(6, QUEUE, QueueOffset(2));
        assert_eq!(offsets.now(QUEUE), Some(QueueOffset(2)));
    }
}
