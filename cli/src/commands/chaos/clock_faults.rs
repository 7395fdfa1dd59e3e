//! Faults of wall clocks: a step, a drift, and a clock that goes back and forth.
//!
//! Proven by what the member itself says of the system's clock (`/metrics`): how far that is ahead
//! of the clock the member goes by. What must hold beside the checkers: log time does not jump.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use ledgermq_common::clock::{Clock as _, SystemClock};
use tokio::time::Instant;

use super::nemesis::Nemesis;
use crate::cluster::{Member, http_get};

const HOUR_MS: i64 = 3_600_000;
/// A tenth too fast or too slow: far from any real clock, and twice what the member follows.
const DRIFT_PPM: i64 = 100_000;
const STROBE_INTERVAL: Duration = Duration::from_millis(50);
const SEEN_WITHIN: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(20);
/// Log time may be this far from the real time: what the member follows in the time of a fault,
/// and what it is behind while nothing is written.
const LOG_TIME_OFF_MS: f64 = 30_000.0;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClockFault {
    /// An hour forward or back, by chance, and back again.
    Step,
    Drift,
    /// An hour forward and back every 50 ms.
    Strobe,
}

impl ClockFault {
    pub fn name(self) -> &'static str {
        match self {
            Self::Step => "clock-step",
            Self::Drift => "clock-drift",
            Self::Strobe => "clock-strobe",
        }
    }
}

impl Nemesis<'_> {
    /// Injects it, proves it, and sets the clocks right again; answers what was seen.
    pub(super) async fn clock_fault(
        &mut self,
        fault: ClockFault,
        targets: &[Member],
    ) -> anyhow::Result<String> {
        let sign = if self.dice.below(2) == 0 { 1 } else { -1 };
        let mut seen = Vec::new();
        match fault {
            ClockFault::Step => {
                for member in targets {
                    self.cluster.clock(*member)?.step_to(sign * HOUR_MS)?;
                }
                for member in targets {
                    let ahead =
                        self.wait_ahead(*member, |ahead| (ahead - (sign * HOUR_MS) as f64).abs() < 60_000.0);
                    seen.push(format!("{member} {:+.0} s", ahead.await? / 1e3));
                }
                tokio::time::sleep(self.fault_time).await;
            }
            ClockFault::Drift => {
                for member in targets {
                    self.cluster.clock(*member)?.drift(sign * DRIFT_PPM)?;
                }
                tokio::time::sleep(self.fault_time).await;
                // What is not followed of the drift is at least a third of it.
                let least = self.fault_time.as_millis() as f64 * DRIFT_PPM as f64 / 1e6 / 3.0;
                for member in targets {
                    let ahead = self.wait_ahead(*member, |ahead| ahead * sign as f64 >= least).await?;
                    seen.push(format!("{member} {ahead:+.0} ms"));
                }
            }
            ClockFault::Strobe => {
                let ends = Instant::now() + self.fault_time;
                let mut steps = 0u32;
                while Instant::now() < ends || steps % 2 == 0 {
                    for member in targets {
                        let offset = if steps % 2 == 0 { sign * HOUR_MS } else { 0 };
                        self.cluster.clock(*member)?.step_to(offset)?;
                    }
                    steps += 1;
                    tokio::time::sleep(STROBE_INTERVAL).await;
                }
                for member in targets {
                    self.cluster.clock(*member)?.step_to(sign * HOUR_MS)?;
                    self.wait_ahead(*member, |ahead| ahead.abs() > HOUR_MS as f64 / 2.0).await?;
                }
                seen.push(format!("{steps} steps of an hour"));
            }
        }
        for member in self.cluster.brokers().collect::<Vec<_>>() {
            let off = self.log_time_ms(member).await? - SystemClock.now().get() as f64;
            ensure!(off.abs() < LOG_TIME_OFF_MS, "log time of {member} is off by {off:.0} ms");
        }
        for member in targets {
            self.cluster.clock(*member)?.drift(0)?;
            self.cluster.clock(*member)?.step_to(0)?;
        }
        Ok(seen.join("; "))
    }

    /// Waits until the member says of its system's clock what is expected; answers milliseconds.
    async fn wait_ahead(&mut self, member: Member, is_seen: impl Fn(f64) -> bool) -> anyhow::Result<f64> {
        let deadline = Instant::now() + SEEN_WITHIN;
        loop {
            let ahead = self.figure(member, "ledgermq_system_clock_ahead_seconds").await? * 1e3;
            if is_seen(ahead) {
                return Ok(ahead);
            }
            ensure!(Instant::now() < deadline, "{member} sees its system's clock {ahead:.0} ms ahead");
            tokio::time::sleep(POLL).await;
        }
    }

    async fn log_time_ms(&mut self, member: Member) -> anyhow::Result<f64> {
        Ok(self.figure(member, "ledgermq_log_time_seconds").await? * 1e3)
    }

    async fn figure(&mut self, member: Member, name: &str) -> anyhow::Result<f64> {
        let answer = http_get(&self.cluster.http_address(member)?, "/metrics").await?;
        let line = answer.body.lines().find(|line| line.starts_with(name));
        let value = line.and_then(|line| line.rsplit(' ').next()).and_then(|value| value.parse().ok());
        value.with_context(|| format!("{member} has no figure {name}"))
    }
}
