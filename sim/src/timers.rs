//! What delayed messages must do, worked out from the commands in log order and nothing else.
//!
//! | Promise | Check |
//! |---|---|
//! | never early | a fire takes nothing above log time |
//! | in order, each once, none left out | a fire takes exactly the earliest of what is pending, and says how many |
//! | recall or fire, not both | a recall is granted only while the message is pending; what was recalled never fires |
//! | a message id is stored once | every later answer names the first timer or place |

use std::collections::BTreeMap;

use ledgermq_broker::state::{AppendDelayed, FireTimers, Placed, RecallOutcome, RecallTimer, Scheduled};
use ledgermq_common::clock::UnixMillis;
use ledgermq_common::limits::RECALL_REMEMBERED_MS;
use ledgermq_common::{PhysicalOffset, QueueId};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It was due when it was applied.
    VisibleAtOnce,
    Pending,
    Recalled,
    Fired,
}

#[derive(Debug)]
struct Delayed {
    placed: Placed,
    fate: Fate,
}

type Key = (UnixMillis, PhysicalOffset);

#[derive(Debug, Default)]
pub struct TimerModel {
    by_id: BTreeMap<String, Delayed>,
    pending: BTreeMap<Key, (String, QueueId)>,
    /// Of what is not pending any more.
    ids: BTreeMap<Key, String>,
}

/// A message that is to have the next offset of its queue from this entry on.
#[derive(Debug, PartialEq, Eq)]
pub struct NowVisible {
    pub id: String,
    pub queue: QueueId,
    /// Where the answer says it is; a fire does not say.
    pub placed: Option<Placed>,
}

impl TimerModel {
    pub fn append(
        &mut self,
        command: &AppendDelayed,
        answers: &[Scheduled],
        log_time: UnixMillis,
    ) -> Result<Vec<NowVisible>, String> {
        if command.messages.len() != answers.len() {
            return Err(format!("{} delayed messages, {} answers", command.messages.len(), answers.len()));
        }
        let mut visible = Vec::new();
        for ((deliver_at, message), at) in command.messages.iter().zip(answers) {
            let id = String::from_utf8_lossy(&message.id).into_owned();
            if let Some(first) = self.by_id.get(&id) {
                if !at.repeated || first.placed != at.placed {
                    return Err(format!("delayed message {id} was {:?} and is now {at:?}", first.placed));
                }
                continue;
            }
            if at.repeated {
                return Err(format!("the first delayed message {id} is called a repeat"));
            }
            let fate = match at.placed {
                Placed::Visible { .. } if *deliver_at > log_time => {
                    return Err(format!(
                        "delayed message {id} is visible at {log_time}, before {deliver_at}"
                    ));
                }
                Placed::Visible { .. } => {
                    let placed = Some(at.placed);
                    visible.push(NowVisible { id: id.clone(), queue: message.queue, placed });
                    Fate::VisibleAtOnce
                }
                Placed::Pending { .. } if *deliver_at <= log_time => {
                    return Err(format!("delayed message {id} waits at {log_time} for {deliver_at}"));
                }
                Placed::Pending { physical } => {
                    self.pending.insert((*deliver_at, physical), (id.clone(), message.queue));
                    Fate::Pending
                }
            };
            self.by_id.insert(id, Delayed { placed: at.placed, fate });
        }
        Ok(visible)
    }

    pub fn fire(
        &mut self,
        command: FireTimers,
        fired: u32,
        more: bool,
        log_time: UnixMillis,
    ) -> Result<Vec<NowVisible>, String> {
        let through = command.through.min(log_time);
        let mut visible = Vec::new();
        while visible.len() < command.max as usize {
            let Some(entry) = self.pending.first_entry().filter(|entry| entry.key().0 <= through) else {
                break;
            };
            let (key, (id, queue)) = entry.remove_entry();
            self.settle(key, &id, Fate::Fired);
            visible.push(NowVisible { id, queue, placed: None });
        }
        if visible.len() != fired as usize {
            return Err(format!("{fired} timers fired through {through}, {} were due", visible.len()));
        }
        let is_more = self.pending.keys().next().is_some_and(|key| key.0 <= through);
        if more != is_more {
            return Err(format!("a fire says more = {more}, and that is {is_more}"));
        }
        Ok(visible)
    }

    pub fn recall(
        &mut self,
        command: RecallTimer,
        outcome: RecallOutcome,
        log_time: UnixMillis,
    ) -> Result<(), String> {
        let key = (command.deliver_at, command.physical);
        if let Some((id, _)) = self.pending.remove(&key) {
            self.settle(key, &id, Fate::Recalled);
            return match outcome {
                RecallOutcome::Recalled => Ok(()),
                _ => Err(format!("the pending message {id} was recalled as {outcome:?}")),
            };
        }
        let Some(id) = self.ids.get(&key) else {
            return Err(format!("a timer that never was ({key:?}) was recalled as {outcome:?}"));
        };
        match (self.by_id.get(id).map(|delayed| delayed.fate), outcome) {
            (Some(Fate::Fired), RecallOutcome::TooLate)
            | (Some(Fate::Recalled), RecallOutcome::RecalledBefore) => Ok(()),
            (Some(Fate::Recalled), RecallOutcome::TooLate)
                if log_time.saturating_ms_since(command.deliver_at) > RECALL_REMEMBERED_MS =>
            {
                Ok(())
            }
            (fate, outcome) => Err(format!("message {id}, {fate:?}, was recalled as {outcome:?}")),
        }
    }

    pub fn is_recalled(&self, id: &str) -> bool {
        self.by_id.get(id).is_some_and(|delayed| delayed.fate == Fate::Recalled)
    }

    fn settle(&mut self, key: Key, id: &str, fate: Fate) {
        self.ids.insert(key, id.to_owned());
        if let Some(delayed) = self.by_id.get_mut(id) {
            delayed.fate = fate;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model() -> (TimerModel, RecallTimer) {
        let mut model = TimerModel::default();
        let (deliver_at, physical) = (UnixMillis(100), PhysicalOffset(7));
        let delayed = Delayed { placed: Placed::Pending { physical }, fate: Fate::Pending };
        model.by_id.insert("a".to_owned(), delayed);
        model.pending.insert((deliver_at, physical), ("a".to_owned(), QueueId(0)));
        (model, RecallTimer { deliver_at, physical })
    }

    #[test]
    fn an_early_a_second_and_a_missing_fire_are_violations() {
        let through = UnixMillis(1_000);
        let fire = FireTimers { through, max: 10 };
        let (mut model, _) = model();
        assert!(model.fire(fire, 1, false, UnixMillis(99)).is_err(), "early by log time");
        assert!(model.fire(fire, 0, false, UnixMillis(99)).is_ok());
        assert!(model.fire(fire, 1, false, UnixMillis(100)).is_ok());
        assert!(model.fire(fire, 1, false, UnixMillis(100)).is_err(), "twice");
        let (mut model, _) = self::model();
        assert!(model.fire(fire, 0, false, UnixMillis(100)).is_err(), "left out");
    }

    #[test]
    fn recall_and_fire_of_one_message_are_a_violation() {
        let now = UnixMillis(100);
        let fire = FireTimers { through: now, max: 10 };
        let (mut model, recall) = model();
        assert!(model.recall(recall, RecallOutcome::Recalled, now).is_ok());
        assert!(model.recall(recall, RecallOutcome::Recalled, now).is_err(), "it is no longer pending");
        assert!(model.fire(fire, 1, false, UnixMillis(100)).is_err(), "recalled and fired");
        assert!(model.recall(recall, RecallOutcome::TooLate, now).is_err(), "and it was in time");
        let later = UnixMillis(101 + RECALL_REMEMBERED_MS);
        assert!(model.recall(recall, RecallOutcome::TooLate, later).is_ok());
        let (mut model, recall) = self::model();
        assert!(model.fire(fire, 1, false, UnixMillis(100)).is_ok());
        assert!(model.recall(recall, RecallOutcome::Recalled, now).is_err(), "fired and recalled");
    }
}
