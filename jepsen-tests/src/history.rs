//! A recorded load and its verdict.
//!
//! Terms as in `jepsen.checker`'s total-queue: *lost* is acknowledged and never received;
//! *duplicated* is one number stored twice, seen as two deliveries that are both a first attempt or
//! that carry different message ids; a *redelivery* is a later attempt of the same message, which
//! at-least-once delivery allows; *unexpected* was received and never sent.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

/// One line of a recorded load; `t` is seconds of the system's monotonic clock.
#[derive(Debug, Clone, Deserialize)]
pub struct Event {
    pub e: String,
    #[serde(default)]
    pub t: f64,
    #[serde(default)]
    pub n: Option<String>,
    #[serde(default)]
    pub id: Option<String>,
    #[serde(default)]
    pub attempt: Option<u32>,
    #[serde(default)]
    pub error: Option<String>,
}

/// What a history says about the broker.
#[derive(Debug, Default, serde::Serialize)]
pub struct Verdict {
    pub invoked: usize,
    pub acknowledged: usize,
    pub received: usize,
    pub redelivered: usize,
    pub lost: Vec<String>,
    pub duplicated: Vec<String>,
    pub unexpected: Vec<String>,
    pub failed: Vec<String>,
}

impl Verdict {
    pub fn is_clean(&self) -> bool {
        self.lost.is_empty()
            && self.duplicated.is_empty()
            && self.unexpected.is_empty()
            && self.failed.is_empty()
    }
}

pub fn judge(events: &[Event]) -> Verdict {
    let mut invoked = BTreeSet::new();
    let mut acknowledged: BTreeMap<&str, &str> = BTreeMap::new();
    let mut received: BTreeMap<&str, Vec<(&str, u32)>> = BTreeMap::new();
    let mut verdict = Verdict::default();
    for event in events {
        match (event.e.as_str(), event.n.as_deref()) {
            ("invoke", Some(number)) => {
                invoked.insert(number);
            }
            ("ack", Some(number)) => {
                acknowledged.insert(number, event.id.as_deref().unwrap_or_default());
            }
            ("fail", Some(number)) => {
                verdict.failed.push(format!("{number}: {}", event.error.as_deref().unwrap_or("no reason")));
            }
            ("got", Some(number)) => received
                .entry(number)
                .or_default()
                .push((event.id.as_deref().unwrap_or_default(), event.attempt.unwrap_or(1))),
            _ => {}
        }
    }
    for (number, deliveries) in &received {
        let ids: BTreeSet<_> = deliveries.iter().map(|(id, _)| id).collect();
        let first_attempts = deliveries.iter().filter(|(_, attempt)| *attempt <= 1).count();
        if ids.len() > 1 || first_attempts > 1 {
            verdict.duplicated.push(format!("{number}: {deliveries:?}"));
        }
        verdict.redelivered += deliveries.len() - 1;
        if !invoked.contains(number) {
            verdict.unexpected.push((*number).to_owned());
        }
    }
    verdict.lost = acknowledged
        .keys()
        .filter(|number| !received.contains_key(*number))
        .map(|n| (*n).to_owned())
        .collect();
    verdict.invoked = invoked.len();
    verdict.acknowledged = acknowledged.len();
    verdict.received = received.len();
    verdict
}

/// For each fault, the longest time between two acknowledgements that begins at or after 50 ms
/// before the fault and begins before the next fault (or the end), in milliseconds.
pub fn gaps_ms(events: &[Event], faults_at: &[f64]) -> Vec<f64> {
    let mut acks: Vec<f64> = events.iter().filter(|event| event.e == "ack").map(|event| event.t).collect();
    acks.sort_by(f64::total_cmp);
    faults_at
        .iter()
        .enumerate()
        .map(|(position, fault)| {
            let until = faults_at.get(position + 1).copied().unwrap_or(f64::INFINITY);
            acks.windows(2)
                .filter_map(|pair| match pair {
                    [earlier, later] if *later >= *fault && *earlier < until => {
                        Some((later - earlier.max(fault - 0.05)) * 1e3)
                    }
                    _ => None,
                })
                .fold(0.0, f64::max)
        })
        .collect()
}

/// p50, p99 and the greatest of some figures; zeros where there are none.
#[derive(Debug, Clone, Copy, Default, serde::Serialize)]
pub struct Distribution {
    pub count: usize,
    pub p50: f64,
    pub p99: f64,
    pub max: f64,
}

impl Distribution {
    pub fn of(figures: &[f64]) -> Self {
        let mut sorted = figures.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let rank = (share * sorted.len() as f64).ceil() as usize;
            sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
        };
        Self { count: sorted.len(), p50: at(0.5), p99: at(0.99), max: at(1.0) }
    }
}

/// Now, on the clock that recorded loads use.
pub fn monotonic_s() -> f64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a valid timespec for the call to fill.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    assert_eq!(result, 0, "the monotonic clock always exists");
    now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(lines: &[&str]) -> Vec<Event> {
        lines.iter().map(|line| serde_json::from_str(line).expect("an event")).collect()
    }

    #[test]
    fn an_acknowledged_message_that_never_arrives_is_lost() {
        let verdict = judge(&events(&[
            r#"{"e":"invoke","n":"a"}"#,
            r#"{"e":"ack","n":"a","id":"1"}"#,
            r#"{"e":"invoke","n":"b"}"#,
            r#"{"e":"ack","n":"b","id":"2"}"#,
            r#"{"e":"got","n":"b","id":"2","attempt":1}"#,
        ]));
        assert_eq!(verdict.lost, ["a"]);
        assert!(!verdict.is_clean());
    }

    #[test]
    fn a_second_attempt_is_a_redelivery_and_a_second_first_attempt_is_a_duplicate() {
        let redelivered = judge(&events(&[
            r#"{"e":"invoke","n":"a"}"#,
            r#"{"e":"got","n":"a","id":"1","attempt":1}"#,
            r#"{"e":"got","n":"a","id":"1","attempt":2}"#,
        ]));
        assert!(redelivered.is_clean(), "{redelivered:?}");
        assert_eq!(redelivered.redelivered, 1);
        let stored_twice = judge(&events(&[
            r#"{"e":"invoke","n":"a"}"#,
            r#"{"e":"got","n":"a","id":"1","attempt":1}"#,
            r#"{"e":"got","n":"a","id":"1","attempt":1}"#,
        ]));
        assert_eq!(stored_twice.duplicated.len(), 1);
        let two_ids = judge(&events(&[
            r#"{"e":"invoke","n":"a"}"#,
            r#"{"e":"got","n":"a","id":"1","attempt":1}"#,
            r#"{"e":"got","n":"a","id":"2","attempt":2}"#,
        ]));
        assert_eq!(two_ids.duplicated.len(), 1);
    }

    #[test]
    fn a_message_nobody_sent_is_unexpected() {
        let verdict = judge(&events(&[r#"{"e":"got","n":"x","id":"1","attempt":1}"#]));
        assert_eq!(verdict.unexpected, ["x"]);
    }

    #[test]
    fn each_fault_has_the_longest_silence_that_follows_it() {
        let history = events(&[
            r#"{"e":"ack","t":0.9,"n":"a"}"#,
            r#"{"e":"ack","t":1.0,"n":"b"}"#,
            r#"{"e":"ack","t":1.4,"n":"c"}"#,
            r#"{"e":"ack","t":1.5,"n":"d"}"#,
            r#"{"e":"ack","t":5.0,"n":"e"}"#,
            r#"{"e":"ack","t":5.2,"n":"f"}"#,
        ]);
        let gaps = gaps_ms(&history, &[1.0, 5.05]);
        assert!((gaps[0] - 3500.0).abs() < 1e-6, "{gaps:?}");
        assert!((gaps[1] - 200.0).abs() < 1e-6, "{gaps:?}");
    }

    #[test]
    fn percentiles_are_by_rank() {
        let figures: Vec<f64> = (1..=100).map(f64::from).collect();
        let distribution = Distribution::of(&figures);
        assert_eq!((distribution.p50, distribution.p99, distribution.max), (50.0, 99.0, 100.0));
    }
}
