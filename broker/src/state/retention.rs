//! What a leader works out before it proposes the commands of retention, and what anybody may ask.
//!
//! Everything here is read from the applied state, a piece at a time and mostly without its lock. A
//! plan may be old when its command is applied: apply checks what could have changed, and an edge
//! that was right once stays right (see [`applied::retention`](super::applied::retention)).
//!
//! | Bound | Value |
//! |---|---|
//! | queues in one `ExpireMessages` | [`QUEUES_PER_ENTRY_MAX`] |
//! | owed records looked at for one carry plan, those that lie lowest | [`OWED_MAX`] |
//! | bytes carried per byte released | 1/2, [`CARRIED_PER_RELEASED_MAX`] |

use std::collections::BinaryHeap;
use std::ops::Range;

use ledgermq_common::clock::UnixMillis;
use ledgermq_common::{PhysicalOffset, QueueId, QueueOffset};

use super::applied::retention::STRETCH_BYTES;
use super::command::{ExpireMessages, ExpiryCause, Owed, TopicRetention};
use super::consume_queue::IndexEntry;
use super::machine::BrokerState;
use super::names::{ConsumerGroupId, TopicId};

pub const QUEUES_PER_ENTRY_MAX: usize = 4_096;
const OWED_MAX: usize = 65_536;
/// One byte is carried for at least so many that are released.
const CARRIED_PER_RELEASED_MAX: u64 = 2;
/// What a carried record costs in the log beside itself.
const CARRY_OVERHEAD_BYTES: u64 = 64;

/// Who refers to the oldest byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pinned {
    /// A message its topic retains.
    Message(TopicId),
    /// A message that became visible long after it was stored, or that of a dead letter.
    LateMessage(TopicId),
    UndecidedHalf,
    PendingTimer,
}

/// The oldest byte that is referred to, by kind of reference; `None` where there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LogPins {
    pub message: Option<(PhysicalOffset, TopicId)>,
    pub late: Option<(PhysicalOffset, TopicId)>,
    pub half: Option<PhysicalOffset>,
    pub timer: Option<PhysicalOffset>,
    /// Where the last command applied starts.
    pub end: PhysicalOffset,
}

/// A record that is owed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct OwedRecord {
    place: PhysicalOffset,
    owed: Owed,
    topic: TopicId,
    record_bytes: u32,
}

/// Records to be stored once more at the end of the log.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CarryPlan {
    /// In the order of the log: what, of which topic, and where it lies.
    pub records: Vec<(Owed, TopicId, IndexEntry)>,
    pub bytes: u64,
    /// What may be released once they are carried.
    pub frees_below: PhysicalOffset,
}

/// What an operator is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RetentionView {
    pub released_below: PhysicalOffset,
    /// About when the oldest byte that is kept was stored.
    pub oldest_at: Option<UnixMillis>,
    pub expired_messages: u64,
    pub carried_records: u64,
    pub carried_bytes: u64,
    /// Halves and timers that do not lie where they were stored first.
    pub carried_now: u64,
}

impl LogPins {
    /// What the log is kept for beside what can be carried.
    pub fn without_owed(&self) -> PhysicalOffset {
        let fixed = [self.message.map(|pin| pin.0), self.late.map(|pin| pin.0)];
        fixed.into_iter().flatten().min().unwrap_or(self.end).min(self.end)
    }

    /// Nothing below is referred to.
    pub fn edge(&self) -> PhysicalOffset {
        let owed = [self.half, self.timer].into_iter().flatten().min();
        owed.map_or(self.without_owed(), |owed| owed.min(self.without_owed()))
    }

    /// Who holds the edge; `None` while nobody does.
    pub fn holder(&self) -> Option<Pinned> {
        let holders = [
            self.message.map(|(at, topic)| (at, Pinned::Message(topic))),
            self.late.map(|(at, topic)| (at, Pinned::LateMessage(topic))),
            self.half.map(|at| (at, Pinned::UndecidedHalf)),
            self.timer.map(|at| (at, Pinned::PendingTimer)),
        ];
        holders.into_iter().flatten().min().map(|(_, holder)| holder)
    }
}

impl BrokerState {
    pub fn topic_retention(&self, topic: TopicId, default_ms: u64) -> TopicRetention {
        self.applied_state().retention_of(topic, default_ms)
    }

    pub fn expired_unread(&self, consumer_group: ConsumerGroupId, topic: TopicId) -> u64 {
        self.applied_state().keeping.expired_unread.get(&(consumer_group, topic)).copied().unwrap_or(0)
    }

    pub fn retention_view(&self) -> RetentionView {
        let applied = self.applied_state();
        let progress = applied.keeping.progress;
        RetentionView {
            released_below: progress.released_below,
            oldest_at: applied
                .keeping
                .marks
                .time_before(progress.released_below)
                .or_else(|| applied.keeping.marks.marks.first().map(|(_, time)| *time)),
            expired_messages: progress.expired_messages,
            carried_records: progress.carried_records,
            carried_bytes: progress.carried_bytes,
            carried_now: applied.keeping.carried.len() as u64,
        }
    }

    /// Which messages their topics keep no longer at `now`. With `log_bytes_max` also what was visible
    /// before the log had its last so many bytes.
    pub fn expiry_plan(
        &self,
        now: UnixMillis,
        default_retention_ms: u64,
        log_bytes_max: Option<u64>,
    ) -> Vec<ExpireMessages> {
        let by_size = log_bytes_max.and_then(|bytes| self.visible_before_the_last(bytes));
        let mut plans = Vec::new();
        for topic in self.topics() {
            let retention = self.topic_retention(topic.id, default_retention_ms);
            let by_time = (retention.retention_ms > 0)
                .then(|| UnixMillis(now.get().saturating_sub(retention.retention_ms)));
            let (stored_before, cause) = match (by_time, by_size) {
                (None, None) => continue,
                (Some(time), size) if size.is_none_or(|size| size <= time) => (time, ExpiryCause::Time),
                (_, Some(size)) => (size, ExpiryCause::Size),
                (Some(time), None) => (time, ExpiryCause::Time),
            };
            let mut queues = self.queues_to_expire(topic.id, stored_before).into_iter().peekable();
            while queues.peek().is_some() {
                let queues: Vec<_> = queues.by_ref().take(QUEUES_PER_ENTRY_MAX).collect();
                plans.push(ExpireMessages { topic: topic.id, stored_before, cause, retention, queues });
            }
        }
        plans
    }

    /// Queues with messages that became visible before, and their new minimums.
    fn queues_to_expire(&self, topic: TopicId, stored_before: UnixMillis) -> Vec<(QueueId, u64)> {
        self.queues_with_messages(topic)
            .into_iter()
            .filter_map(|(queue, range)| {
                let first = self.locate(topic, queue, QueueOffset(range.start))?;
                if first.stored_at >= stored_before {
                    return None;
                }
                let min = self.offset_at(topic, queue, stored_before)?;
                (min.get() > range.start).then_some((queue, min.get()))
            })
            .collect()
    }

    /// The queues of the topic that hold messages, those of lite topics included.
    fn queues_with_messages(&self, topic: TopicId) -> Vec<(QueueId, Range<u64>)> {
        let applied = self.applied_state();
        let own = applied.topics.get(&topic).map(|topic| topic.queues.as_slice()).unwrap_or_default();
        let own = (0u32..).zip(own.iter().copied());
        let lite = applied.lite.of_parent(topic).map(|(queue, lite)| (queue, lite.range));
        own.chain(lite)
            .filter(|(_, range)| range.min < range.max)
            .map(|(queue, range)| (QueueId(queue), range.min..range.max))
            .collect()
    }

    fn visible_before_the_last(&self, log_bytes: u64) -> Option<UnixMillis> {
        let applied = self.applied_state();
        let from = applied.applying_at.get().checked_sub(log_bytes)?;
        applied.keeping.marks.time_before(PhysicalOffset(from))
    }

    /// What the log is kept for. Reads the first entry of every queue and every pending timer.
    pub fn log_pins(&self) -> LogPins {
        // What is referred to when this ends was referred to, or was the end of the log, now.
        let end = self.applied_state().applying_at;
        let mut pins = LogPins { end: floor(end), ..LogPins::default() };
        // In this order, because references go this way: what is owed becomes visible, and what is
        // visible becomes a dead letter. The other way round one that moves would be met nowhere.
        self.visit_owed(|record| {
            let oldest = match record.owed {
                Owed::Half(_) => &mut pins.half,
                Owed::Timer(..) => &mut pins.timer,
            };
            if oldest.is_none_or(|oldest| record.place < oldest) {
                *oldest = Some(record.place);
            }
        });
        for topic in self.topics() {
            for (queue, range) in self.queues_with_messages(topic.id) {
                // Moved on meanwhile: it refers to later bytes, or to late ones.
                let Some(first) = self.locate(topic.id, queue, QueueOffset(range.start)) else {
                    continue;
                };
                let at = floor(first.physical);
                if pins.message.is_none_or(|(oldest, _)| at < oldest) {
                    pins.message = Some((at, topic.id));
                }
            }
        }
        pins.late = self.applied_state().keeping.late.oldest();
        pins
    }

    /// Which owed records are to be carried so that whole segments become free.
    ///
    /// Taken is the longest stretch, from the oldest owed record to the start of a segment, of which
    /// what is owed is at most half. If there is none, what is owed is more than half of all that
    /// would be released, and stays where it is: the log is then at most twice what is owed and
    /// retained.
    pub fn carry_plan(&self, pins: &LogPins, segment_bytes: u64, bytes_max: u64) -> CarryPlan {
        let until = pins.without_owed().get() / segment_bytes * segment_bytes;
        let mut lowest: BinaryHeap<OwedRecord> = BinaryHeap::new();
        let mut is_cut = false;
        self.visit_owed(|record| {
            if record.place.get() < until {
                lowest.push(record);
                if lowest.len() > OWED_MAX {
                    lowest.pop();
                    is_cut = true;
                }
            }
        });
        let owed = lowest.into_sorted_vec();
        let Some(first) = owed.first() else { return CarryPlan::default() };
        let start = first.place.get() / segment_bytes * segment_bytes;
        let known_until = match owed.last() {
            Some(last) if is_cut => last.place.get() / segment_bytes * segment_bytes,
            _ => until,
        };
        let cost = |record: &OwedRecord| u64::from(record.record_bytes) + CARRY_OVERHEAD_BYTES;
        let mut best = None;
        let (mut bytes, mut taken) = (0, 0);
        for end in (1..).map(|number| start + number * segment_bytes).take_while(|end| *end <= known_until) {
            while let Some(record) = owed.get(taken).filter(|record| record.place.get() < end) {
                bytes += cost(record);
                taken += 1;
            }
            if bytes > bytes_max {
                break;
            }
            if bytes * CARRIED_PER_RELEASED_MAX <= end - start {
                best = Some((end, taken, bytes));
            }
        }
        let Some((frees_below, taken, bytes)) = best else { return CarryPlan::default() };
        let records = owed.into_iter().take(taken).map(|record| {
            let OwedRecord { place: physical, owed, topic, record_bytes } = record;
            let entry = IndexEntry { physical, record_bytes, tag_code: 0, stored_at: UnixMillis(0) };
            (owed, topic, entry)
        });
        CarryPlan { records: records.collect(), bytes, frees_below: PhysicalOffset(frees_below) }
    }

    /// Shows every undecided half and pending timer, those of one moment.
    fn visit_owed(&self, mut visit: impl FnMut(OwedRecord)) {
        let (halves, timers, carried) = {
            let mut applied = self.applied_state_mut();
            let halves: Vec<_> = applied
                .transactions
                .undecided()
                .iter()
                .map(|(&id, open)| OwedRecord {
                    place: applied.keeping.place_of(id),
                    owed: Owed::Half(id),
                    topic: open.topic,
                    record_bytes: open.record_bytes,
                })
                .collect();
            (halves, applied.pending_timers(), applied.keeping.carried.clone())
        };
        halves.into_iter().for_each(&mut visit);
        for (key, timer) in timers.after(super::timers::TimerKey::default()) {
            visit(OwedRecord {
                place: carried.get(&key.physical).copied().unwrap_or(key.physical),
                owed: Owed::Timer(key.deliver_at, key.physical),
                topic: timer.topic,
                record_bytes: timer.record_bytes,
            });
        }
    }
}

fn floor(at: PhysicalOffset) -> PhysicalOffset {
    PhysicalOffset(at.get() / STRETCH_BYTES * STRETCH_BYTES)
}
