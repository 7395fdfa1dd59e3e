//! The timers: delayed messages that wait for their time, in the order of it.
//!
//! A timer is where its message lies in the CommitLog and which queue it goes to: 32 bytes. Its key is
//! the delivery time and the physical offset. Timers fire in the order of their keys, so what has
//! fired is one number: every key up to [`fired_through`](Timers::fired_through). A new timer is always
//! above it, because its delivery time is after the log time and firing never goes beyond log time.
//!
//! | Part | Where | Content |
//! |---|---|---|
//! | active tail | memory, under the state lock | timers appended since the last checkpoint and still pending |
//! | frozen tails | memory, shared | tails a checkpoint or snapshot has taken and not yet written |
//! | runs ([`run`]) | immutable mapped files | sorted by key |
//! | recalled keys | memory, and a record each | recalled timers until [`RECALL_REMEMBERED_MS`] beyond their time |
//!
//! A run keeps the timers that fire before it is merged away or deleted; they lie at or below
//! `fired_through` and are not looked at. So a pending timer in a run costs no memory, however far its
//! time is; a recalled one costs its key until it is forgotten.
//!
//! The answer of a recall is lost with a leader, and its time may come before the producer asks again:
//! so a recall outlives its time, and only a fire that comes so much later forgets it.
//!
//! | Invariant | Kept by |
//! |---|---|
//! | a timer fires once | `fired_through` only grows, and a fire takes keys above it only |
//! | recall or fire, not both | a recalled key is skipped by every fire; a key at or below `fired_through` cannot be recalled any more |
//! | a repeated recall gets the first answer | recalled keys are looked at before `fired_through` |
//! | replicas agree, whatever they have checkpointed | which part a timer lies in decides nothing |

pub(crate) mod run;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ledgermq_common::clock::UnixMillis;
use ledgermq_common::limits::RECALL_REMEMBERED_MS;
use ledgermq_common::{PhysicalOffset, QueueId};

use super::names::TopicId;
use crate::defects::{self, Defect};
use run::TimerRun;

/// Recalled timers skipped when the next one is looked for; a fire then moves past them.
const RECALLED_SKIPPED_MAX: usize = 4_096;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) struct TimerKey {
    pub(crate) deliver_at: UnixMillis,
    pub(crate) physical: PhysicalOffset,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Timer {
    pub(crate) topic: TopicId,
    pub(crate) queue: QueueId,
    pub(crate) record_bytes: u32,
    pub(crate) tag_code: u32,
}

/// Sorted by key.
pub(crate) type TimerTail = Vec<(TimerKey, Timer)>;

/// Everything but the active tail; shared with readers and never changed, only replaced.
#[derive(Debug, Default)]
pub(crate) struct SealedTimers {
    pub(crate) runs: Vec<Arc<TimerRun>>,
    pub(crate) tails: Vec<Arc<TimerTail>>,
}

#[derive(Debug, Default)]
pub(crate) struct Timers {
    sealed: Arc<SealedTimers>,
    active: BTreeMap<TimerKey, Timer>,
    progress: TimerProgress,
    recalled: BTreeSet<TimerKey>,
}

/// How far firing is, and how much is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct TimerProgress {
    /// Every timer up to this key has fired or was recalled.
    pub(crate) fired_through: TimerKey,
    pub(crate) pending: u64,
}

/// What one fire takes.
#[derive(Debug, Default)]
pub(crate) struct Due {
    pub(crate) timers: Vec<(TimerKey, Timer)>,
    /// Recalled timers whose time is long past; nobody asks for them any more.
    pub(crate) forgotten: Vec<TimerKey>,
    pub(crate) more: bool,
}

impl Timers {
    pub(crate) fn add(&mut self, key: TimerKey, timer: Timer) {
        assert!(key > self.progress.fired_through, "a new timer is later than log time");
        let before = self.active.insert(key, timer);
        assert_eq!(before, None, "a physical offset belongs to one message");
        self.progress.pending += 1;
    }

    /// Takes the timers up to `through` in order, at most `max`, and forgets the recalls that are old by
    /// `now`.
    pub(crate) fn take_due(&mut self, through: UnixMillis, max: usize, now: UnixMillis) -> Due {
        let last = TimerKey { deliver_at: through, physical: PhysicalOffset(u64::MAX) };
        let mut due = Due::default();
        if last <= self.progress.fired_through {
            return due;
        }
        let mut reached = last;
        for (key, timer) in self.after(self.progress.fired_through) {
            if key > last {
                break;
            }
            if self.recalled.contains(&key) {
                continue;
            }
            if due.timers.len() == max {
                due.more = true;
                break;
            }
            reached = key;
            due.timers.push((key, timer));
        }
        self.progress.fired_through = if due.more { reached } else { last };
        self.progress.pending -= due.timers.len() as u64;
        for (key, _) in &due.timers {
            self.active.remove(key);
        }
        due.forgotten = self.forget_recalls(now);
        due
    }

    /// What has not been moved past stays whatever its age: without its key it would fire.
    fn forget_recalls(&mut self, now: UnixMillis) -> Vec<TimerKey> {
        let is_forgotten = |key: &&TimerKey| {
            let is_old = now.saturating_ms_since(key.deliver_at) > RECALL_REMEMBERED_MS;
            (is_old || defects::is_active(Defect::RecallForgotten)) && **key <= self.progress.fired_through
        };
        let Some(last) = self.recalled.iter().take_while(is_forgotten).last().copied() else {
            return Vec::new();
        };
        let kept = self.recalled.split_off(&next_key(last));
        std::mem::replace(&mut self.recalled, kept).into_iter().collect()
    }

    /// `None`: it has fired. Else whether it was pending until now; the caller has made sure that
    /// there is such a timer.
    pub(crate) fn recall(&mut self, key: TimerKey) -> Option<bool> {
        if self.recalled.contains(&key) {
            return Some(false);
        }
        if key <= self.progress.fired_through {
            return None;
        }
        self.recalled.insert(key);
        self.active.remove(&key);
        self.progress.pending = self.progress.pending.saturating_sub(1);
        Some(true)
    }

    pub(crate) fn progress(&self) -> TimerProgress {
        self.progress
    }

    pub(crate) fn load_progress(&mut self, progress: TimerProgress) {
        self.progress = progress;
    }

    pub(crate) fn recalled(&self) -> &BTreeSet<TimerKey> {
        &self.recalled
    }

    pub(crate) fn load_recalled(&mut self, key: TimerKey) {
        self.recalled.insert(key);
    }

    /// The timer with this key, unless it fired or was recalled.
    pub(crate) fn find(&self, key: TimerKey) -> Option<Timer> {
        if key <= self.progress.fired_through || self.recalled.contains(&key) {
            return None;
        }
        if let Some(timer) = self.active.get(&key) {
            return Some(*timer);
        }
        let in_tails = self.sealed.tails.iter().find_map(|tail| {
            let at = tail.binary_search_by_key(&key, |(key, _)| *key).ok()?;
            tail.get(at).map(|(_, timer)| *timer)
        });
        in_tails.or_else(|| self.sealed.runs.iter().find_map(|run| run.find(key)))
    }

    /// When the next timer is due. May name a recalled one where many of them lie ahead.
    pub(crate) fn next(&self) -> Option<UnixMillis> {
        let ahead = self.after(self.progress.fired_through).map(|(key, _)| key);
        let mut skipped = 0;
        for key in ahead {
            if !self.recalled.contains(&key) || skipped == RECALLED_SKIPPED_MAX {
                return Some(key.deliver_at);
            }
            skipped += 1;
        }
        None
    }

    /// Pending timers in order.
    #[cfg(test)]
    fn pending(&self) -> impl Iterator<Item = (TimerKey, Timer)> {
        self.after(self.progress.fired_through).filter(|(key, _)| !self.recalled.contains(key))
    }

    pub(crate) fn active_len(&self) -> usize {
        self.active.len()
    }

    /// Makes the active tail immutable, so that it can be read without the state lock.
    pub(crate) fn freeze(&mut self) -> Arc<SealedTimers> {
        if !self.active.is_empty() {
            let tail: TimerTail = std::mem::take(&mut self.active).into_iter().collect();
            let mut tails = self.sealed.tails.clone();
            tails.push(Arc::new(tail));
            self.sealed = Arc::new(SealedTimers { runs: self.sealed.runs.clone(), tails });
        }
        Arc::clone(&self.sealed)
    }

    /// The oldest `tails` frozen tails are in `runs` now, together with what runs held before.
    pub(crate) fn replace_sealed(&mut self, runs: Vec<Arc<TimerRun>>, tails: usize) {
        let rest = self.sealed.tails.get(tails..).expect("tails are frozen before they are written");
        self.sealed = Arc::new(SealedTimers { runs, tails: rest.to_vec() });
    }

    /// Timers of all parts above `key`, recalled ones included, in order.
    fn after(&self, key: TimerKey) -> impl Iterator<Item = (TimerKey, Timer)> {
        let next = next_key(key);
        let active = self.active.range(next..).map(|(key, timer)| (*key, *timer));
        merge([Box::new(active) as Box<dyn Iterator<Item = _>>], &self.sealed, key)
    }
}

impl SealedTimers {
    /// Timers above `key` in order.
    pub(crate) fn after(&self, key: TimerKey) -> impl Iterator<Item = (TimerKey, Timer)> {
        merge([], self, key)
    }
}

fn merge<'a, const N: usize>(
    first: [Box<dyn Iterator<Item = (TimerKey, Timer)> + 'a>; N],
    sealed: &'a SealedTimers,
    key: TimerKey,
) -> impl Iterator<Item = (TimerKey, Timer)> + 'a {
    let tails = sealed.tails.iter().map(move |tail| {
        let start = tail.partition_point(|(at, _)| *at <= key);
        Box::new(tail.iter().skip(start).copied()) as Box<dyn Iterator<Item = _>>
    });
    let runs = sealed.runs.iter().map(move |run| Box::new(run.after(key)) as Box<dyn Iterator<Item = _>>);
    let mut sources: Vec<_> = first.into_iter().chain(tails).chain(runs).map(Iterator::peekable).collect();
    std::iter::from_fn(move || {
        let least = sources
            .iter_mut()
            .enumerate()
            .filter_map(|(at, source)| source.peek().map(|(key, _)| (*key, at)))
            .min()?;
        sources.get_mut(least.1)?.next()
    })
}

fn next_key(key: TimerKey) -> TimerKey {
    match key.physical.get().checked_add(1) {
        Some(physical) => TimerKey { physical: PhysicalOffset(physical), ..key },
        None => TimerKey { deliver_at: key.deliver_at.saturating_add_ms(1), physical: PhysicalOffset(0) },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::run::write_image;
    use super::*;

    fn timer(number: u64) -> Timer {
        Timer { topic: TopicId(1), queue: QueueId(0), record_bytes: number as u32, tag_code: 0 }
    }

    fn key(at: u64, physical: u64) -> TimerKey {
        TimerKey { deliver_at: UnixMillis(at), physical: PhysicalOffset(physical) }
    }

    #[derive(Debug, Clone)]
    enum Step {
        Add(u64),
        Recall(usize),
        Fire(u64, usize),
        Freeze,
        Write,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            6 => (1u64..50).prop_map(Step::Add),
            2 => any::<usize>().prop_map(Step::Recall),
            3 => (0u64..20, 1usize..5).prop_map(|(ms, max)| Step::Fire(ms, max)),
            1 => Just(Step::Freeze),
            1 => Just(Step::Write),
        ];
        proptest::collection::vec(step, 0..120)
    }

    #[test]
    fn a_recall_is_forgotten_long_after_its_time_and_not_before_it_was_moved_past() {
        let mut timers = Timers::default();
        let (first, second) = (key(100, 10), key(101, 20));
        timers.add(first, timer(1));
        timers.add(second, timer(2));
        assert_eq!((timers.recall(first), timers.recall(second)), (Some(true), Some(true)));
        let late = UnixMillis(101 + RECALL_REMEMBERED_MS);
        // A fire that ends before the second one moves past the first only.
        let due = timers.take_due(UnixMillis(100), 10, late.saturating_add_ms(1_000));
        assert_eq!((due.timers.len(), due.forgotten), (0, vec![first]));
        assert_eq!((timers.recall(first), timers.recall(second)), (None, Some(false)));
        let due = timers.take_due(UnixMillis(200), 10, late);
        assert_eq!((due.timers.len(), due.forgotten), (0, vec![]));
        assert_eq!(timers.recall(second), Some(false), "its time has come, and it is known");
        let due = timers.take_due(UnixMillis(201), 10, late.saturating_add_ms(1));
        assert_eq!((due.timers.len(), due.forgotten), (0, vec![second]));
        assert_eq!(timers.recall(second), None);
    }

    proptest! {
        /// Against one sorted map, whatever lies in which part.
        #[test]
        fn every_timer_fires_once_in_order_or_is_recalled(program in steps()) {
            let mut timers = Timers::default();
            let mut model: BTreeMap<TimerKey, Timer> = BTreeMap::new();
            let mut given: Vec<TimerKey> = Vec::new();
            let mut recalled: BTreeSet<TimerKey> = BTreeSet::new();
            let (mut now, mut physical) = (0u64, 0u64);
            for step in program {
                match step {
                    Step::Add(ahead) => {
                        physical += 10;
                        let key = key(now + ahead, physical);
                        timers.add(key, timer(physical));
                        model.insert(key, timer(physical));
                        given.push(key);
                    }
                    Step::Recall(which) => {
                        let Some(&key) = given.get(which % given.len().max(1)) else { continue };
                        let found = timers.find(key).is_some();
                        prop_assert_eq!(found, model.contains_key(&key));
                        let is_repeat = recalled.contains(&key);
                        let outcome = timers.recall(key);
                        prop_assert_eq!(outcome == Some(false), is_repeat, "the first answer, whenever it is asked");
                        if outcome == Some(true) {
                            recalled.insert(key);
                        }
                        prop_assert_eq!(outcome == Some(true), model.remove(&key).is_some());
                    }
                    Step::Fire(ms, max) => {
                        now += ms;
                        let due = timers.take_due(UnixMillis(now), max, UnixMillis(now));
                        for fired in &due.timers {
                            let first = model.pop_first();
                            prop_assert_eq!(Some(*fired), first);
                            prop_assert!(fired.0.deliver_at.get() <= now, "never early");
                        }
                        let left = model.keys().next().is_some_and(|key| key.deliver_at.get() <= now);
                        prop_assert_eq!(due.more, left);
                    }
                    Step::Freeze => {
                        timers.freeze();
                    }
                    Step::Write => {
                        let sealed = timers.freeze();
                        let fired = timers.progress().fired_through;
                        let image = write_image(sealed.after(fired));
                        let run = TimerRun::check(image).expect("whole");
                        timers.replace_sealed(vec![Arc::new(run)], sealed.tails.len());
                    }
                }
                prop_assert_eq!(timers.progress().pending, model.len() as u64);
                let pending: Vec<_> = timers.pending().collect();
                prop_assert_eq!(&pending, &model.iter().map(|(k, t)| (*k, *t)).collect::<Vec<_>>());
                prop_assert_eq!(timers.next(), model.keys().next().map(|key| key.deliver_at));
            }
        }
    }
}
