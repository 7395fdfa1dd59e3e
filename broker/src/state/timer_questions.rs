//! What the executor asks the state about timers.

use ledgermq_common::PhysicalOffset;
use ledgermq_common::clock::UnixMillis;

use super::machine::BrokerState;
use super::names::TopicId;
use super::timers::TimerKey;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimerState {
    Pending {
        topic: TopicId,
    },
    Recalled,
    /// It fired, or was recalled long ago.
    Over,
    Unknown,
}

impl BrokerState {
    /// When the next timer is due.
    pub fn next_timer(&self) -> Option<UnixMillis> {
        self.applied_state().timers.next()
    }

    /// Delayed messages that wait for their time.
    pub fn timers_pending(&self) -> u64 {
        self.applied_state().timers.progress().pending
    }

    /// Where the record of a delayed message lies: where it was stored, or was carried to since.
    pub fn timer_place(&self, physical: PhysicalOffset) -> PhysicalOffset {
        self.applied_state().keeping.place_of(physical)
    }

    /// What a record is named by that lies at `place`.
    pub fn identity_of(&self, place: PhysicalOffset) -> PhysicalOffset {
        let applied = self.applied_state();
        let carried = applied.keeping.carried.iter().find(|(_, at)| **at == place);
        carried.map_or(place, |(&identity, _)| identity)
    }

    pub fn timer(&self, deliver_at: UnixMillis, physical: PhysicalOffset) -> TimerState {
        let applied = self.applied_state();
        let key = TimerKey { deliver_at, physical };
        if applied.timers.recalled().contains(&key) {
            TimerState::Recalled
        } else if key <= applied.timers.progress().fired_through {
            TimerState::Over
        } else {
            match applied.timers.find(key) {
                Some(timer) => TimerState::Pending { topic: timer.topic },
                None => TimerState::Unknown,
            }
        }
    }
}
