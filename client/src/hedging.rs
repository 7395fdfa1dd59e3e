//! When a request that is not answered is also sent by another access point.
//!
//! How long answers took lately is estimated as by TCP's retransmission timer (RFC 6298): a smoothed
//! time and a smoothed deviation from it. An answer is overdue after the smoothed time and four
//! deviations, but not before [`OVERDUE_MIN`], which a busy machine's scheduler may cost, and at the
//! latest after [`OVERDUE_MAX`]. A cluster that is slow as a whole is so not taken for a silent node.
//!
//! A repeat costs the cluster as much as a first send, so there are few:
//!
//! | Waited | Limit |
//! |---|---|
//! | less than [`OVERDUE_MAX`] | one for [`ANSWERS_PER_HEDGE`] answers, saved up to [`HEDGES_SAVED_MAX`] |
//! | longer | none but the next line's |
//! | any time | [`HEDGES_UNDER_WAY_MAX`] at once |
//!
//! Once one of them is answered first and the access point answered nobody meanwhile, it is left, and who
//! waits for it needs no hedge.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

const OVERDUE_MIN: Duration = Duration::from_millis(25);
/// Also before anything was answered. Longer than an answer takes while a leader that died is replaced,
/// shorter than what a user notices.
const OVERDUE_MAX: Duration = Duration::from_millis(500);
const ANSWERS_PER_HEDGE: usize = 50;
const HEDGES_SAVED_MAX: usize = 64;
const HEDGES_UNDER_WAY_MAX: usize = 64;

#[derive(Debug)]
pub(crate) struct Hedging {
    /// Smoothed time in the upper half, smoothed deviation in the lower, both in microseconds; 0:
    /// nothing was answered yet. One word, because every request reads and writes it. Of two answers
    /// at the same moment one may not count.
    answer_time: AtomicU64,
    /// In answers.
    saved: AtomicUsize,
    under_way: AtomicUsize,
}

impl Default for Hedging {
    fn default() -> Self {
        Self {
            answer_time: AtomicU64::new(0),
            saved: AtomicUsize::new(HEDGES_SAVED_MAX * ANSWERS_PER_HEDGE),
            under_way: AtomicUsize::new(0),
        }
    }
}

/// A request that is under way twice, as long as this lives.
pub(crate) struct Hedge<'h>(&'h Hedging);

impl Drop for Hedge<'_> {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Hedging {
    /// A request was answered after this time.
    pub fn answered(&self, time: Duration) {
        let time = u64::try_from(time.as_micros()).unwrap_or(u64::MAX).clamp(1, u64::from(u32::MAX));
        let (smoothed, deviation) = self.answer_time();
        let (smoothed, deviation) = if smoothed == 0 {
            (time, time / 2)
        } else {
            let off = smoothed.abs_diff(time);
            ((smoothed * 7 + time).div_ceil(8), (deviation * 3 + off) / 4)
        };
        self.answer_time.store(smoothed << 32 | deviation, Ordering::Relaxed);
        let more = |saved: usize| (saved < HEDGES_SAVED_MAX * ANSWERS_PER_HEDGE).then_some(saved + 1);
        let _ = self.saved.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
    }

    pub fn overdue_after(&self) -> Duration {
        match self.answer_time() {
            (0, _) => OVERDUE_MAX,
            (smoothed, deviation) => {
                Duration::from_micros(smoothed + 4 * deviation).clamp(OVERDUE_MIN, OVERDUE_MAX)
            }
        }
    }

    /// Room for sending a request a second time that was not answered for this long.
    pub fn begin(&self, waited: Duration) -> Option<Hedge<'_>> {
        let one_more = |under_way: usize| (under_way < HEDGES_UNDER_WAY_MAX).then_some(under_way + 1);
        self.under_way.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).ok()?;
        let hedge = Hedge(self);
        if waited < OVERDUE_MAX {
            let less = |saved: usize| saved.checked_sub(ANSWERS_PER_HEDGE);
            self.saved.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).ok()?;
        }
        Some(hedge)
    }

    fn answer_time(&self) -> (u64, u64) {
        let both = self.answer_time.load(Ordering::Relaxed);
        (both >> 32, both & u64::from(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(times_ms: &[u64]) -> Duration {
        let hedging = Hedging::default();
        for time in times_ms {
            hedging.answered(Duration::from_millis(*time));
        }
        hedging.overdue_after()
    }

    #[test]
    fn what_is_overdue_follows_what_answers_take() {
        assert_eq!(after(&[]), OVERDUE_MAX);
        assert_eq!(after(&[2; 50]), OVERDUE_MIN);
        let slow = after(&[100; 50]);
        assert!((100..130).contains(&slow.as_millis()), "{slow:?}");
        let uneven: Vec<u64> = (0..50).map(|number| if number % 2 == 0 { 10 } else { 50 }).collect();
        let uneven = after(&uneven);
        assert!((90..140).contains(&uneven.as_millis()), "{uneven:?}");
        assert_eq!(after(&[5_000; 50]), OVERDUE_MAX);
        assert_eq!(after(&[u64::MAX / 1_000; 3]), OVERDUE_MAX, "beyond what the word holds");
    }

    #[test]
    fn an_election_is_forgotten_after_some_answers() {
        let hedging = Hedging::default();
        for time in [[5; 20], [800; 20]].concat() {
            hedging.answered(Duration::from_millis(time));
        }
        assert_eq!(hedging.overdue_after(), OVERDUE_MAX);
        for _ in 0..40 {
            hedging.answered(Duration::from_millis(5));
        }
        assert!(hedging.overdue_after() < Duration::from_millis(60), "{:?}", hedging.overdue_after());
    }

    #[test]
    fn early_hedges_are_few_and_late_ones_are_as_many_as_are_under_way() {
        let hedging = Hedging::default();
        let early = Duration::from_millis(30);
        for _ in 0..HEDGES_SAVED_MAX {
            drop(hedging.begin(early).expect("it was saved"));
        }
        assert!(hedging.begin(early).is_none());
        for _ in 0..ANSWERS_PER_HEDGE {
            hedging.answered(Duration::from_millis(1));
        }
        drop(hedging.begin(early).expect("these answers are for one"));
        assert!(hedging.begin(early).is_none());
        let late: Vec<_> = (0..HEDGES_UNDER_WAY_MAX).map(|_| hedging.begin(OVERDUE_MAX)).collect();
        assert!(late.iter().all(Option::is_some));
        assert!(hedging.begin(OVERDUE_MAX).is_none());
        drop(late);
        assert!(hedging.begin(OVERDUE_MAX).is_some());
    }
}
