//! How long a fault was felt, from the history alone.
//!
//! | Figure | Rule |
//! |---|---|
//! | gap | the longest time between two acknowledged sends that overlaps the fault's window |
//! | first success | from the fault to the first acknowledgement of a send that began after it |
//! | per queue | likewise for each queue that the history ever used: the one that comes last counts |
//! | first delivery | from the fault to the first delivery of a message that was sent after it |
//! | OpenChaos RTO | from the first failed send in the window to the first success after it; none failed: 0 |
//!
//! The window of a fault ends where the next one begins. A figure that never came is missing; the
//! report counts those, because a mean over the others would hide them.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::history::{FaultMark, History, HistoryError, Kind};
use crate::messages::{Messages, Queue, Sent};

const NS_PER_MS: f64 = 1e6;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Felt {
    pub fault: String,
    pub target: String,
    pub at_ms: f64,
    /// When it was taken back; the end of the history if it never was.
    pub until_ms: f64,
    pub gap_ms: Option<f64>,
    pub first_success_ms: Option<f64>,
    /// The slowest queue.
    pub all_queues_ms: Option<f64>,
    pub first_delivery_ms: Option<f64>,
    pub open_chaos_rto_ms: Option<f64>,
    pub failed_sends: usize,
    pub unknown_sends: usize,
}

/// One entry per fault that began.
pub fn felt(history: &History) -> Result<Vec<Felt>, HistoryError> {
    let messages = Messages::of(&history.spans()?);
    let faults: Vec<FaultMark> = history.faults().collect();
    Ok(felt_by(&messages, &faults, history.events.last().map_or(0, |event| event.at_ns)))
}

/// Likewise, where the history is not at hand; it ended at `ends_ns`.
pub fn felt_by(messages: &Messages, faults: &[FaultMark], ends_ns: u64) -> Vec<Felt> {
    let mut queue_of: Vec<(u64, Queue)> = messages
        .deliveries()
        .filter_map(|delivered| Some((delivered.number, delivered.place?.queue)))
        .collect();
    queue_of.sort_unstable();
    let queue_of = |number: u64| {
        let at = queue_of.partition_point(|(of, _)| *of < number);
        queue_of.get(at).filter(|(of, _)| *of == number).map(|(_, queue)| *queue)
    };
    let queues: BTreeSet<Queue> =
        messages.deliveries().filter_map(|delivered| Some(delivered.place?.queue)).collect();
    // (invoked, acknowledged, number), by acknowledgement.
    let mut acks: Vec<(u64, u64, u64)> = messages
        .sends()
        .iter()
        .filter(|sent| sent.kind == Kind::Ok)
        .filter_map(|sent| Some((sent.invoked_ns, sent.completed_ns()?, sent.number)))
        .collect();
    acks.sort_by_key(|(_, acknowledged, _)| *acknowledged);
    let mut not_acknowledged: Vec<&Sent> =
        messages.sends().iter().filter(|sent| sent.kind != Kind::Ok).collect();
    not_acknowledged.sort_by_key(|sent| sent.invoked_ns);
    // (invoked, delivered), by delivery.
    let mut came: Vec<(u64, u64)> = messages
        .deliveries()
        .filter_map(|delivered| Some((delivered.at_ns, messages.sent(delivered.number)?.invoked_ns)))
        .collect();
    came.sort_unstable();
    let begun: Vec<&FaultMark> = faults.iter().filter(|mark| mark.begins).collect();
    let ms = |ns: u64| ns as f64 / NS_PER_MS;
    let mut all = Vec::new();
    for (position, mark) in begun.iter().enumerate() {
        let at = mark.at_ns;
        let window_ends = begun.get(position + 1).map_or(ends_ns, |next| next.at_ns);
        let until = faults
            .iter()
            .find(|other| {
                !other.begins
                    && other.at_ns >= at
                    && (&other.name, &other.target) == (&mark.name, &mark.target)
            })
            .map_or(ends_ns, |ended| ended.at_ns);
        let from = acks.partition_point(|ack| ack.1 < at);
        let in_window = || {
            let acks = acks.iter().skip(from).take_while(|ack| ack.1 <= window_ends);
            acks.filter(|ack| ack.0 >= at)
        };
        let mut missing = queues.clone();
        let mut all_queues = None;
        for ack in in_window() {
            if queue_of(ack.2).is_some_and(|queue| missing.remove(&queue)) && missing.is_empty() {
                all_queues = Some(ack.1 - at);
                break;
            }
        }
        let lost: Vec<&Sent> = not_acknowledged
            .iter()
            .skip(not_acknowledged.partition_point(|sent| sent.invoked_ns < at))
            .take_while(|sent| sent.invoked_ns < window_ends)
            .copied()
            .collect();
        let failed = lost.iter().filter(|sent| sent.kind == Kind::Fail);
        let first_failed = failed.clone().map(|sent| sent.invoked_ns).min();
        let first_delivery = came
            .iter()
            .skip(came.partition_point(|(came_at, _)| *came_at < at))
            .take_while(|(came_at, _)| *came_at <= window_ends)
            .find(|(_, invoked)| *invoked >= at)
            .map(|(came_at, _)| came_at - at);
        all.push(Felt {
            fault: mark.name.clone(),
            target: mark.target.clone(),
            at_ms: ms(at),
            until_ms: ms(until),
            gap_ms: gap(&acks, at, window_ends).map(ms),
            first_success_ms: in_window().next().map(|ack| ms(ack.1 - at)),
            all_queues_ms: all_queues.map(ms),
            first_delivery_ms: first_delivery.map(ms),
            open_chaos_rto_ms: match first_failed {
                // Workloads without sends tell nothing of it.
                None => (!messages.sends().is_empty()).then_some(0.0),
                Some(failed) => acks.iter().find(|ack| ack.1 > failed).map(|ack| ms(ack.1 - failed)),
            },
            failed_sends: failed.count(),
            unknown_sends: lost.iter().filter(|sent| sent.kind == Kind::Info).count(),
        });
    }
    all
}

/// The longest silence that overlaps the window; `None` where nothing was acknowledged after it began.
fn gap(acks: &[(u64, u64, u64)], from: u64, to: u64) -> Option<u64> {
    let first = acks.partition_point(|ack| ack.1 < from);
    let times = acks.get(first.saturating_sub(1)..)?.iter().map(|ack| ack.1).take_while(|at| *at <= to);
    let times: Vec<u64> = times.collect();
    let longest = times.windows(2).map(|pair| match pair {
        // What was silent before the fault is not its doing.
        [before, after] => after - (*before).max(from).min(*after),
        _ => 0,
    });
    longest.max()
}

/// p50, p99 and the greatest of some figures, by rank; zeros where there are none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Distribution {
    pub count: usize,
    pub p50: f64,
    pub p99: f64,
    pub max: f64,
}

impl Distribution {
    pub fn of(figures: impl IntoIterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = figures.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let rank = (share * sorted.len() as f64).ceil() as usize;
            sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
        };
        Self { count: sorted.len(), p50: at(0.5), p99: at(0.99), max: at(1.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{Delivery, Event, NEMESIS, Operation, Receiving, Sending};

    const MS: u64 = 1_000_000;

    fn send(history: &mut History, process: u32, number: u64, asked_ms: u64, answered_ms: u64, kind: Kind) {
        let op = Operation::Send(Sending { number, ..Sending::default() });
        for (at_ms, kind) in [(asked_ms, Kind::Invoke), (answered_ms, kind)] {
            history.events.push(Event { at_ns: at_ms * MS, process, kind, op: op.clone() });
        }
    }

    fn fault(history: &mut History, at_ms: u64, begins: bool) {
        let op = Operation::Fault { name: "kill".into(), target: "broker-1".into(), begins };
        history.events.push(Event { at_ns: at_ms * MS, process: NEMESIS, kind: Kind::Info, op });
    }

    fn deliver(history: &mut History, at_ms: u64, messages: &[(u64, u32)]) {
        let deliveries = messages.iter().map(|(number, queue)| Delivery {
            number: *number,
            queue: ("group-1".into(), *queue),
            attempt: 1,
            ..Delivery::default()
        });
        let op = Operation::Receive(Receiving {
            group: "g".into(),
            messages: deliveries.collect(),
            ..Receiving::default()
        });
        for (at_ms, kind) in [(at_ms - 1, Kind::Invoke), (at_ms, Kind::Ok)] {
            history.events.push(Event { at_ns: at_ms * MS, process: 50, kind, op: op.clone() });
        }
    }

    #[test]
    fn each_figure_follows_its_rule() {
        let mut history = History::default();
        send(&mut history, 0, 1, 10, 20, Kind::Ok);
        // Under way when the fault comes, answered after it: no proof of recovery.
        send(&mut history, 1, 2, 95, 130, Kind::Ok);
        fault(&mut history, 100, true);
        send(&mut history, 2, 3, 110, 150, Kind::Fail);
        send(&mut history, 3, 4, 120, 400, Kind::Ok);
        send(&mut history, 4, 5, 130, 700, Kind::Ok);
        send(&mut history, 6, 7, 140, 800, Kind::Info);
        deliver(&mut history, 500, &[(1, 0), (2, 1), (4, 0)]);
        deliver(&mut history, 900, &[(5, 1)]);
        fault(&mut history, 1000, false);
        fault(&mut history, 2000, true);
        history.events.sort_by_key(|event| event.at_ns);
        let felt = felt(&history).expect("well formed");
        assert_eq!(felt.len(), 2);
        let first = &felt[0];
        assert_eq!((first.at_ms, first.until_ms), (100.0, 1000.0));
        assert_eq!(first.gap_ms, Some(300.0), "400 to 700");
        assert_eq!(first.first_success_ms, Some(300.0));
        assert_eq!(first.all_queues_ms, Some(600.0), "queue 1 came back with 5");
        assert_eq!(first.first_delivery_ms, Some(400.0));
        assert_eq!(first.open_chaos_rto_ms, Some(20.0), "from 110 to the answer at 130, by its rule");
        assert_eq!((first.failed_sends, first.unknown_sends), (1, 1));
        let second = &felt[1];
        assert_eq!((second.gap_ms, second.first_success_ms, second.all_queues_ms), (None, None, None));
        assert_eq!(second.open_chaos_rto_ms, Some(0.0), "no send failed: OpenChaos sees nothing");
    }

    #[test]
    fn a_history_without_sends_has_no_figures_of_sends() {
        let mut history = History::default();
        fault(&mut history, 100, true);
        fault(&mut history, 200, false);
        let felt = felt(&history).expect("well formed");
        assert_eq!((felt[0].gap_ms, felt[0].open_chaos_rto_ms), (None, None));
    }

    #[test]
    fn percentiles_are_by_rank() {
        let distribution = Distribution::of((1..=100).map(f64::from));
        assert_eq!((distribution.p50, distribution.p99, distribution.max), (50.0, 99.0, 100.0));
        assert_eq!(Distribution::of([]), Distribution::default());
    }
}
