//! A wall clock that does not jump: it was right when the process started, runs on with the time
//! that really passes, and follows the system's clock slowly where the two differ.
//!
//! The leader's clock becomes log time, and log time never goes back. Were a step of the system's
//! clock taken over, an hour forward would end every lease and fire every timer of that hour at
//! once, and the way back would hold log time still for an hour.
//!
//! | The system's clock | This clock |
//! |---|---|
//! | is right | is the same |
//! | steps | runs on, and comes nearer by 1/[`SLEW_PART`] of the time that passes |
//! | drifts by less than 1/[`SLEW_PART`] | follows |
//! | is wrong when the process starts | is wrong as well, until it has come nearer or the process starts anew |
//!
//! Passing time is `CLOCK_BOOTTIME`, which counts the time a machine is suspended.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::clock::{Clock, SystemClock, UnixMillis};

/// An hour is made up for in twenty.
pub const SLEW_PART: u64 = 20;

/// Clones share the clock.
#[derive(Debug, Clone)]
pub struct SteadyClock(Arc<Mutex<Course>>);

impl SteadyClock {
    /// Takes the system's time over as it is now.
    pub fn start() -> Self {
        Self(Arc::new(Mutex::new(Course::begin(SystemClock.now(), since_boot()))))
    }

    /// How far the system's clock is ahead of this one; negative where it is behind.
    pub fn system_ahead_ms(&self) -> i64 {
        let told = self.now();
        let ahead = i128::from(SystemClock.now().get()) - i128::from(told.get());
        i64::try_from(ahead).unwrap_or(if ahead < 0 { i64::MIN } else { i64::MAX })
    }
}

impl Clock for SteadyClock {
    fn now(&self) -> UnixMillis {
        let mut course = self.0.lock();
        course.tell(SystemClock.now(), since_boot())
    }
}

#[derive(Debug)]
struct Course {
    told_us: u64,
    passed: Duration,
}

impl Course {
    fn begin(system: UnixMillis, passed: Duration) -> Self {
        Self { told_us: system.get().saturating_mul(1000), passed }
    }

    fn tell(&mut self, system: UnixMillis, passed: Duration) -> UnixMillis {
        let elapsed = passed.saturating_sub(self.passed);
        self.passed = self.passed.max(passed);
        let elapsed_us = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
        let steady = self.told_us.saturating_add(elapsed_us);
        let slew = elapsed_us / SLEW_PART;
        let system_us = system.get().saturating_mul(1000);
        // Never back: slowing down is enough, because the slew is a part of what has passed.
        self.told_us = if system_us > steady {
            steady.saturating_add(slew.min(system_us - steady))
        } else {
            steady - slew.min(steady - system_us)
        };
        UnixMillis(self.told_us / 1000)
    }
}

fn since_boot() -> Duration {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a timespec of this frame.
    let answer = unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut now) };
    assert_eq!(answer, 0, "Linux has this clock");
    Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_MS: u64 = 3_600_000;
    const START: u64 = 1_700_000_000_000;

    /// What the clock tells each 100 ms while the system's is off by `off_ms`.
    fn told(off_ms: i64, seconds: u64) -> Vec<u64> {
        let mut course = Course::begin(UnixMillis(START), Duration::ZERO);
        let tells = (1..=seconds * 10).map(|tenth| {
            let system = (START + tenth * 100).checked_add_signed(off_ms).unwrap();
            course.tell(UnixMillis(system), Duration::from_millis(tenth * 100)).get()
        });
        tells.collect()
    }

    #[test]
    fn it_tells_the_systems_time_while_that_runs_with_real_time() {
        let expected: Vec<u64> = (1..=600).map(|tenth| START + tenth * 100).collect();
        assert_eq!(told(0, 60), expected);
    }

    #[test]
    fn a_step_of_an_hour_either_way_is_hardly_noticed_for_a_minute() {
        for off_ms in [HOUR_MS as i64, -(HOUR_MS as i64)] {
            let told = told(off_ms, 60);
            assert!(told.is_sorted(), "it never goes back");
            let error = told.last().unwrap().abs_diff(START + 60_000);
            assert_eq!(error, 3_000, "a twentieth of a minute");
        }
    }

    #[test]
    fn it_follows_a_step_in_the_end_and_a_drift_at_once() {
        assert_eq!(*told(5_000, 200).last().unwrap(), START + 205_000);
        let mut course = Course::begin(UnixMillis(START), Duration::ZERO);
        for second in 1..=1000 {
            let system = UnixMillis(START + second * 1_010);
            assert!(course.tell(system, Duration::from_secs(second)).get().abs_diff(system.get()) <= 1);
        }
    }

    #[test]
    fn it_is_the_systems_clock_when_nobody_turns_that() {
        let clock = SteadyClock::start();
        assert!(clock.now().get().abs_diff(SystemClock.now().get()) < 1_000);
        assert!(clock.system_ahead_ms().abs() < 1_000);
    }
}
