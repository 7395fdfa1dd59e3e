//! How many sends a node has under way at a time.
//!
//! A node that takes whatever comes answers nobody once more is sent than can be stored: every send
//! then waits longer than its producer does, and all work is done for producers that have given up.
//! So the number of sends under way is limited, and one that is too many is refused before anything
//! was done for it (TOO_MANY_REQUESTS; SDKs try again after a pause). The limit is found by what sends
//! take: while the quickest of a window took longer than [`TARGET`], all of them stood in a line that
//! does not get shorter, and the limit falls; it grows while sends are quick and come near it.
//!
//! | State of the cluster | Limit |
//! |---|---|
//! | no send is answered at all: an election | [`LIMIT_MAX`]: those are held, and they are not a load |
//! | after it the held ones are answered late | begins again above what is under way; what was sent while nothing was answered does not count |
//! | more is sent than can be stored | falls by a quarter in each window, to [`LIMIT_MIN`] at least |
//!
//! Invariant: `inside` is the number of [`Inside`]s; what was refused is none of them.

use std::sync::Arc;
use std::time::Duration;

use ledgermq_proto::rocketmq::Code;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::group_call::Refused;

/// What a send may take in a line that stands. A third of what the SDKs wait.
pub const TARGET: Duration = Duration::from_millis(1_000);
pub const LIMIT_START: usize = 8_192;
/// More than a cluster needs to be busy with the slowest of disks.
pub const LIMIT_MIN: usize = 64;
pub const LIMIT_MAX: usize = 65_536;
const WINDOW: Duration = Duration::from_millis(250);

#[derive(Debug, Clone, Default)]
pub(crate) struct SendGate(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    limit: usize,
    inside: usize,
    window_ends: Instant,
    /// Whether any was answered in this window, and whether none was in the last.
    has_answered: bool,
    is_silent: bool,
    /// Of those answered in this window that count.
    quickest: Option<Duration>,
    /// The end of the last window without an answer. What was sent before was held, and what it took
    /// says nothing of the line.
    counts_from: Instant,
    /// The most that were inside in this window.
    fullest: usize,
}

impl Default for State {
    fn default() -> Self {
        Self {
            limit: LIMIT_START,
            inside: 0,
            window_ends: Instant::now() + WINDOW,
            has_answered: false,
            is_silent: false,
            quickest: None,
            counts_from: Instant::now(),
            fullest: 0,
        }
    }
}

/// A send under way, until it is dropped.
#[derive(Debug)]
pub(crate) struct Inside {
    gate: SendGate,
    since: Instant,
}

impl SendGate {
    pub(crate) fn enter(&self) -> Result<Inside, Refused> {
        let now = Instant::now();
        let mut state = self.0.lock();
        state.turn(now);
        let limit = if state.is_silent { LIMIT_MAX } else { state.limit };
        if state.inside >= limit {
            return Err(Refused::new(
                Code::TooManyRequests,
                format!(
                    "{} sends are under way by this node, which is what can be answered within {} ms",
                    state.inside,
                    TARGET.as_millis()
                ),
            ));
        }
        state.inside += 1;
        state.fullest = state.fullest.max(state.inside);
        Ok(Inside { gate: self.clone(), since: now })
    }
}

impl Inside {
    /// It was stored: what it took is what others will take.
    pub(crate) fn stored(&self) {
        let took = self.since.elapsed();
        let mut state = self.gate.0.lock();
        state.has_answered = true;
        if self.since < state.counts_from {
            return;
        }
        state.quickest = Some(state.quickest.map_or(took, |quickest| quickest.min(took)));
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        self.gate.0.lock().inside -= 1;
    }
}

impl State {
    fn turn(&mut self, now: Instant) {
        if now < self.window_ends {
            return;
        }
        let was_silent = self.is_silent;
        self.is_silent = self.inside > 0 && !self.has_answered;
        if self.is_silent {
            self.counts_from = now;
        } else if was_silent {
            self.limit = self.limit.max(self.fullest + self.fullest / 4).min(LIMIT_MAX);
        }
        match self.quickest {
            Some(quickest) if quickest > TARGET => {
                self.limit = (self.limit * 3 / 4).max(LIMIT_MIN);
            }
            Some(quickest) if quickest < TARGET / 2 && self.fullest >= self.limit * 3 / 4 => {
                self.limit = (self.limit + self.limit / 4).min(LIMIT_MAX);
            }
            _ => {}
        }
        self.window_ends = now + WINDOW;
        self.has_answered = false;
        self.quickest = None;
        self.fullest = self.inside;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    /// Sends come and are answered in turn, so many in each millisecond; answers how many were stored
    /// within `patience` and how many were refused.
    async fn run(
        gate: &SendGate,
        time_ms: u64,
        come: usize,
        answered: usize,
        patience: Duration,
    ) -> (usize, usize) {
        let mut line: VecDeque<Inside> = VecDeque::new();
        let (mut in_time, mut refused) = (0, 0);
        for _ in 0..time_ms {
            for _ in 0..come {
                match gate.enter() {
                    Ok(inside) => line.push_back(inside),
                    Err(_) => refused += 1,
                }
            }
            for inside in line.drain(..answered.min(line.len())) {
                inside.stored();
                in_time += usize::from(inside.since.elapsed() <= patience);
            }
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        (in_time, refused)
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_sent_too_much_is_refused_and_the_rest_is_stored_in_time() {
        let gate = SendGate::default();
        // 6,000 a second of which 5,000 can be stored, for a minute, by producers that wait 3 s.
        let (in_time, refused) = run(&gate, 60_000, 6, 5, Duration::from_secs(3)).await;
        assert!(in_time > 290_000, "{in_time} of 300,000");
        assert!((40_000..62_000).contains(&refused), "{refused}");
        let limit = gate.0.lock().limit;
        assert!((3_000..8_192).contains(&limit), "about a second of what can be stored: {limit}");
        // Also when it began with an election.
        let gate = SendGate::default();
        run(&gate, 3_000, 6, 0, TARGET).await;
        let (in_time, refused) = run(&gate, 60_000, 6, 5, Duration::from_secs(3)).await;
        assert!(in_time > 270_000 && refused > 40_000, "{in_time} stored in time, {refused} refused");
    }

    #[tokio::test(start_paused = true)]
    async fn an_election_refuses_nobody_and_shortens_nothing() {
        let gate = SendGate::default();
        let mut line = VecDeque::new();
        // Nothing is answered for two seconds, and more is sent than may be under way otherwise.
        for _ in 0..20_000 {
            line.push_back(gate.enter().expect("held"));
            tokio::time::advance(Duration::from_micros(100)).await;
        }
        // Then as much comes as before, and twice as much is answered, in turn.
        while line.len() > 1 {
            line.push_back(gate.enter().expect("behind what was held"));
            line.drain(..2).for_each(|inside| inside.stored());
            tokio::time::advance(Duration::from_micros(100)).await;
        }
        assert!(gate.0.lock().limit >= LIMIT_START);
    }

    #[tokio::test(start_paused = true)]
    async fn quick_sends_that_come_near_the_limit_raise_it() {
        let gate = SendGate::default();
        for _ in 0..20 {
            let inside: Vec<_> = std::iter::from_fn(|| gate.enter().ok()).collect();
            inside.iter().for_each(Inside::stored);
            tokio::time::advance(WINDOW).await;
        }
        assert_eq!(gate.0.lock().limit, LIMIT_MAX);
        assert_eq!(gate.0.lock().inside, 0);
    }
}
