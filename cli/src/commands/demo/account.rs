//! What was sent, acknowledged and consumed, message by message, and what follows from it.
//!
//! | Word | Meaning |
//! |---|---|
//! | lost | acknowledged, never consumed |
//! | duplicated | stored at two places, or delivered again after its acknowledgement was accepted |
//! | redelivered | delivered again from the same place before that: at-least-once, not a fault |
//! | gap | the longest time without an acknowledged send, from the kill to the first acknowledgement of a message sent after the leader was gone |

use std::time::Duration;

use anyhow::bail;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

/// Where a copy of a message is stored: broker group, queue, offset.
pub type Place = (String, i32, i64);

pub struct Account {
    started: Instant,
    state: Mutex<State>,
    changed: watch::Sender<Figures>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    pub sent: u32,
    pub acked: u32,
    pub consumed: u32,
    pub failed_sends: u32,
    pub kills: u32,
}

struct State {
    messages: Vec<Fate>,
    kills: Vec<Kill>,
    figures: Figures,
    duplicated: u32,
    redelivered: u32,
    last_consumed: Instant,
}

#[derive(Default, Clone)]
struct Fate {
    sent_at: Option<Duration>,
    acked_at: Option<Duration>,
    failed: bool,
    place: Option<Place>,
    consumption_acked: bool,
    duplicated: bool,
}

#[derive(Clone, Copy)]
struct Kill {
    /// Before the signal.
    begun: Duration,
    /// When the process was certainly gone.
    dead: Duration,
    /// The first acknowledgement of a message that was sent after that.
    recovered: Option<Duration>,
}

impl Account {
    pub fn new(messages: u32) -> Self {
        let started = Instant::now();
        Self {
            started,
            state: Mutex::new(State {
                messages: vec![Fate::default(); messages as usize],
                kills: Vec::new(),
                figures: Figures::default(),
                duplicated: 0,
                redelivered: 0,
                last_consumed: started,
            }),
            changed: watch::Sender::new(Figures::default()),
        }
    }

    pub fn messages(&self) -> u32 {
        u32::try_from(self.state.lock().messages.len()).unwrap_or(u32::MAX)
    }

    pub fn figures(&self) -> Figures {
        self.state.lock().figures
    }

    pub fn sent(&self, ordinal: u32) {
        let at = self.started.elapsed();
        self.change(|state| {
            if let Some(fate) = state.messages.get_mut(ordinal as usize) {
                fate.sent_at = Some(at);
                state.figures.sent += 1;
            }
        });
    }

    pub fn acked(&self, ordinal: u32) {
        let at = self.started.elapsed();
        self.change(|state| {
            if let Some(fate) = state.messages.get_mut(ordinal as usize) {
                fate.acked_at = Some(at);
                state.figures.acked += 1;
                if let Some(kill) = state.kills.last_mut()
                    && kill.recovered.is_none()
                    && fate.sent_at.is_some_and(|sent| sent > kill.dead)
                {
                    kill.recovered = Some(at);
                }
            }
        });
    }

    pub fn failed(&self, ordinal: u32) {
        self.change(|state| {
            if let Some(fate) = state.messages.get_mut(ordinal as usize) {
                fate.failed = true;
                state.figures.failed_sends += 1;
            }
        });
    }

    /// A delivery, before it is acknowledged.
    pub fn consumed(&self, ordinal: u32, place: Place) {
        self.change(|state| {
            let Some(fate) = state.messages.get_mut(ordinal as usize) else { return };
            match &fate.place {
                None => {
                    fate.place = Some(place);
                    state.figures.consumed += 1;
                    state.last_consumed = Instant::now();
                }
                Some(known) if *known == place && !fate.consumption_acked => state.redelivered += 1,
                Some(_) => {
                    if !fate.duplicated {
                        fate.duplicated = true;
                        state.duplicated += 1;
                    }
                }
            }
        });
    }

    pub fn consumption_acked(&self, ordinal: u32) {
        if let Some(fate) = self.state.lock().messages.get_mut(ordinal as usize) {
            fate.consumption_acked = true;
        }
    }

    pub fn killed(&self, begun: Instant, dead: Instant) {
        let kill = Kill {
            begun: begun.saturating_duration_since(self.started),
            dead: dead.saturating_duration_since(self.started),
            recovered: None,
        };
        self.change(|state| {
            state.kills.push(kill);
            state.figures.kills += 1;
        });
    }

    pub async fn wait_sent(&self, count: u32) {
        // The sender lives in self, so waiting cannot fail.
        let _ = self.changed.subscribe().wait_for(|figures| figures.sent >= count).await;
    }

    /// Waits until a message that was sent after the latest kill is acknowledged.
    pub async fn wait_acked_after_kill(&self, within: Duration) -> anyhow::Result<()> {
        let mut changes = self.changed.subscribe();
        let deadline = Instant::now() + within;
        loop {
            if self.state.lock().kills.last().is_none_or(|kill| kill.recovered.is_some()) {
                return Ok(());
            }
            if tokio::time::timeout_at(deadline, changes.changed()).await.is_err() {
                bail!("no send was acknowledged for {} s", within.as_secs());
            }
        }
    }

    /// Waits until all that was acknowledged is consumed, or until nothing new came for `quiet`.
    pub async fn wait_consumed_or_quiet(&self, quiet: Duration) {
        let mut changes = self.changed.subscribe();
        loop {
            let deadline = {
                let state = self.state.lock();
                if state.figures.consumed >= state.figures.acked {
                    return;
                }
                state.last_consumed + quiet
            };
            if tokio::time::timeout_at(deadline, changes.changed()).await.is_err()
                && Instant::now() >= self.state.lock().last_consumed + quiet
            {
                return;
            }
        }
    }

    pub fn verdict(&self) -> Verdict {
        let state = self.state.lock();
        let lost = state.messages.iter().filter(|fate| fate.acked_at.is_some() && fate.place.is_none());
        Verdict {
            sent: state.figures.sent,
            acked: state.figures.acked,
            consumed: state.figures.consumed,
            lost: u32::try_from(lost.count()).unwrap_or(u32::MAX),
            duplicated: state.duplicated,
            redelivered: state.redelivered,
            failed_sends: state.figures.failed_sends,
            gaps_ms: state.kills.iter().map(|kill| state.gap_ms(*kill)).collect(),
        }
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let figures = {
            let mut state = self.state.lock();
            change(&mut state);
            state.figures
        };
        self.changed.send_replace(figures);
    }
}

impl State {
    fn gap_ms(&self, kill: Kill) -> f64 {
        let Some(recovered) = kill.recovered else { return f64::INFINITY };
        let mut acks: Vec<Duration> = self
            .messages
            .iter()
            .filter_map(|fate| fate.acked_at)
            .filter(|acked| *acked > kill.begun && *acked <= recovered)
            .collect();
        acks.sort_unstable();
        let mut longest = Duration::ZERO;
        let mut before = kill.begun;
        for acked in acks {
            longest = longest.max(acked - before);
            before = acked;
        }
        longest.as_secs_f64() * 1000.0
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    pub sent: u32,
    pub acked: u32,
    pub consumed: u32,
    pub lost: u32,
    pub duplicated: u32,
    pub redelivered: u32,
    pub failed_sends: u32,
    pub gaps_ms: Vec<f64>,
}

impl Verdict {
    pub fn is_good(&self, kills: u32) -> bool {
        self.lost == 0
            && self.duplicated == 0
            && self.failed_sends == 0
            && self.acked == self.sent
            && self.gaps_ms.len() == kills as usize
    }

    /// The smallest gap that the fraction `quantile` of all gaps does not exceed.
    pub fn gap_ms(&self, quantile: f64) -> f64 {
        let mut gaps = self.gaps_ms.clone();
        gaps.sort_by(f64::total_cmp);
        let rank = (quantile * gaps.len() as f64).ceil() as usize;
        gaps.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
    }

    pub fn as_json(&self) -> serde_json::Value {
        let round = |ms: f64| (ms * 10.0).round() / 10.0;
        serde_json::json!({
            "sent": self.sent,
            "acked": self.acked,
            "consumed": self.consumed,
            "lost": self.lost,
            "duplicated": self.duplicated,
            "redelivered": self.redelivered,
            "failed_sends": self.failed_sends,
            "leader_kills": self.gaps_ms.len(),
            "unavailable_ms": {
                "p50": round(self.gap_ms(0.5)),
                "p99": round(self.gap_ms(0.99)),
                "max": round(self.gap_ms(1.0)),
                "all": self.gaps_ms.iter().copied().map(round).collect::<Vec<_>>(),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(offset: i64) -> Place {
        ("group-1".to_owned(), 0, offset)
    }

    #[tokio::test]
    async fn what_is_acknowledged_and_not_consumed_is_lost() {
        let account = Account::new(3);
        for ordinal in 0..3 {
            account.sent(ordinal);
        }
        account.acked(0);
        account.acked(1);
        account.failed(2);
        account.consumed(0, place(0));
        let verdict = account.verdict();
        assert_eq!((verdict.lost, verdict.failed_sends, verdict.consumed), (1, 1, 1));
        assert!(!verdict.is_good(0));
    }

    #[tokio::test]
    async fn only_a_second_copy_or_a_return_after_the_ack_is_a_duplicate() {
        let account = Account::new(3);
        account.consumed(0, place(0));
        account.consumed(0, place(0));
        account.consumed(1, place(1));
        account.consumption_acked(1);
        account.consumed(1, place(1));
        account.consumed(2, place(2));
        account.consumed(2, place(3));
        let verdict = account.verdict();
        assert_eq!((verdict.duplicated, verdict.redelivered), (2, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn the_gap_spans_from_the_kill_to_the_first_success_after_it() {
        let account = Account::new(4);
        let pass = |ms| tokio::time::advance(Duration::from_millis(ms));
        account.sent(0);
        account.acked(0);
        account.sent(1);
        pass(10).await;
        let begun = Instant::now();
        pass(1).await;
        account.killed(begun, Instant::now());
        pass(2).await;
        // An answer that was already on its way.
        account.acked(1);
        account.sent(2);
        pass(250).await;
        account.acked(2);
        pass(500).await;
        account.sent(3);
        account.acked(3);
        let verdict = account.verdict();
        assert_eq!(verdict.gaps_ms, vec![250.0]);
        assert_eq!(verdict.as_json()["unavailable_ms"]["p50"], 250.0);
    }
}
