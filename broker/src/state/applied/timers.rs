//! What the commands of delayed messages do.
//!
//! A delayed message is stored once, by the entry that appends it, and lies in no queue. Firing gives
//! it the next offset of its queue; the index entry points at the bytes that are there already. A
//! message whose time has come when it is applied is visible at once.

use ledgermq_common::clock::UnixMillis;
use ledgermq_common::{PhysicalOffset, QueueId, QueueOffset};

use super::Applied;
use super::apply::Effects;
use super::window::{WindowEntry, window_key};
use crate::defects::{self, Defect};
use crate::state::answer::{Answer, Placed, RecallOutcome, Refusal, Scheduled};
use crate::state::command::{AppendDelayed, FireTimers, RecallTimer};
use crate::state::consume_queue::IndexEntry;
use crate::state::records::RecordKey;
use crate::state::timers::{Timer, TimerKey};

/// Timers that one entry fires at most, whatever its leader asks for.
pub const FIRED_PER_ENTRY_MAX: u32 = 4_096;
/// In the window, instead of a queue: the message was stored as a timer, at the physical offset that
/// stands for the queue offset. No topic has so many queues.
pub(crate) const TIMER_QUEUE: u32 = u32::MAX;

impl Applied {
    pub(super) fn append_delayed(
        &mut self,
        command: &AppendDelayed,
        payload_at: PhysicalOffset,
        effects: &mut Effects,
    ) -> Result<Answer, Refusal> {
        let topic = self.topics.get(&command.topic).ok_or(Refusal::TopicUnknown)?;
        let queues = topic.queues.len();
        if command.messages.iter().any(|(_, message)| message.queue.get() as usize >= queues) {
            return Err(Refusal::QueueUnknown);
        }
        let stored_at = self.scalars.now;
        let mut scheduled = Vec::with_capacity(command.messages.len());
        for (deliver_at, message) in &command.messages {
            let key = window_key(command.topic, &message.id);
            if let Some(first) = self.window.find(key).filter(|_| !defects::is_active(Defect::DelayedTwice)) {
                let placed = placed(&first);
                scheduled.push(Scheduled { placed, stored_at: first.stored_at, repeated: true });
                continue;
            }
            let physical = payload_at
                .checked_add(u64::from(message.record_at))
                .expect("an entry lies inside the CommitLog's range of offsets");
            let record_bytes =
                u32::try_from(message.record.len()).expect("a command is bounded far below 4 GiB");
            let tag_code = message.tag_code;
            let queue = message.queue;
            let (queue, offset) = if *deliver_at <= stored_at {
                let entry = IndexEntry { physical, record_bytes, tag_code, stored_at };
                let offset = self
                    .make_visible(command.topic, queue, entry, effects)
                    .expect("the topic and its queue were found above");
                (queue.get(), offset.get())
            } else {
                let timer = Timer { topic: command.topic, queue, record_bytes, tag_code };
                self.timers.add(TimerKey { deliver_at: *deliver_at, physical }, timer);
                self.dirty.insert(RecordKey::Timers);
                (TIMER_QUEUE, physical.get())
            };
            let entry = WindowEntry { key, queue, offset, stored_at };
            self.window.insert(entry);
            self.keys.add(command.topic, &message.id, message.properties(), physical, record_bytes);
            scheduled.push(Scheduled { placed: placed(&entry), stored_at, repeated: false });
        }
        Ok(Answer::Scheduled(scheduled))
    }

    pub(super) fn fire(&mut self, command: FireTimers, effects: &mut Effects) -> Answer {
        // Never early, whatever the leader's clock says: by log time.
        let mut through: UnixMillis = command.through.min(self.scalars.now);
        if defects::is_active(Defect::EarlyFire) {
            through = through.saturating_add_ms(1_000);
        }
        let max = command.max.min(FIRED_PER_ENTRY_MAX) as usize;
        let due = self.timers.take_due(through, max, self.scalars.now);
        self.dirty.insert(RecordKey::Timers);
        self.dirty.extend(due.forgotten.into_iter().map(RecordKey::Recalled));
        let stored_at = self.scalars.now;
        let mut fired = 0;
        for (key, timer) in due.timers {
            let Timer { topic, queue, record_bytes, tag_code } = timer;
            let physical = self.take_place(key.physical);
            let entry = IndexEntry { physical, record_bytes, tag_code, stored_at };
            if defects::is_active(Defect::DoubleFire) {
                self.make_visible(topic, queue, entry, effects);
            }
            // A timer of a topic that was deleted ends here.
            if self.make_visible(topic, queue, entry, effects).is_some() {
                fired += 1;
            }
        }
        Answer::Fired { fired, more: due.more }
    }

    pub(super) fn recall(&mut self, command: RecallTimer) -> Answer {
        let key = TimerKey { deliver_at: command.deliver_at, physical: command.physical };
        if defects::is_active(Defect::RecalledFires) && key.deliver_at > self.scalars.now {
            return Answer::Recalled(RecallOutcome::Recalled);
        }
        Answer::Recalled(match self.timers.recall(key) {
            None => RecallOutcome::TooLate,
            Some(false) => RecallOutcome::RecalledBefore,
            Some(true) => {
                self.dirty.insert(RecordKey::Timers);
                self.dirty.insert(RecordKey::Recalled(key));
                self.take_place(key.physical);
                RecallOutcome::Recalled
            }
        })
    }
}

fn placed(entry: &WindowEntry) -> Placed {
    if entry.queue == TIMER_QUEUE {
        Placed::Pending { physical: PhysicalOffset(entry.offset) }
    } else {
        Placed::Visible { queue: QueueId(entry.queue), offset: QueueOffset(entry.offset) }
    }
}
