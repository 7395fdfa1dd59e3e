//! Which checkers a history is shown to: those that have something to say about its operations. What
//! they say, with what the figures and plots are made of, is the evidence of a run.

use std::io::BufReader;
use std::path::Path;

use anyhow::Context as _;
use clap::ValueEnum;
use ledgermq_checkers::compact::Reader;
use ledgermq_checkers::history::{Span, by_topic};
use ledgermq_checkers::queue_log::PollOrder;
use ledgermq_checkers::timers::Bounds;
use ledgermq_checkers::{
    FaultMark, Gather, History, HistoryError, Messages, Operation, Verdict, fifo, leases, linearizable,
    queue_log, timers, total_queue, transactions,
};

use super::recorder::Marks;

/// One second is the promise across a failover; the slack is what two clocks of one machine differ.
const TIMER_BOUNDS: Bounds = Bounds { late_ns: 1_000_000_000, slack_ns: 10_000_000 };

/// The second is the time in which the longest outage a run makes is over, and a poll after it.
const LEASE_BOUNDS: leases::Bounds =
    leases::Bounds { slack_ns: 10_000_000, redelivered_within_ns: 15_000_000_000 };

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Ordering {
    /// Members of a group share queues; a reader without leases reads in order all the same.
    Any,
    /// Each queue is read in order.
    Ascending,
}

/// What a history shows.
#[derive(Debug)]
pub struct Evidence {
    pub scenario: String,
    pub seed: u64,
    pub verdicts: Vec<Verdict>,
    pub messages: Messages,
    pub faults: Vec<FaultMark>,
    pub ends_ns: u64,
}

impl Evidence {
    pub fn of(history: &History, order: Ordering) -> Result<Self, HistoryError> {
        let spans = history.spans()?;
        let topics = by_topic(&spans);
        let mut verdicts = Vec::new();
        for (topic, spans) in &topics {
            let of_topic = judge(spans, order).into_iter().map(|verdict| match topic {
                Some(topic) => Verdict { checker: format!("{} of {topic}", verdict.checker), ..verdict },
                None => verdict,
            });
            verdicts.extend(of_topic);
        }
        Ok(Self {
            scenario: history.scenario.clone(),
            seed: history.seed,
            verdicts,
            messages: Messages::of(&spans),
            faults: history.faults().collect(),
            ends_ns: history.events.last().map_or(0, |event| event.at_ns),
        })
    }

    /// Of a history that is read once, event by event: one of messages, and of one topic.
    fn of_events(
        mut reader: Reader<BufReader<std::fs::File>>,
        order: Ordering,
    ) -> Result<Self, HistoryError> {
        let (mut gather, mut marks) = (Gather::default(), Marks::default());
        while let Some(event) = reader.read()? {
            marks.event(&event);
            gather.event(event)?;
        }
        let messages = gather.finish();
        let Marks { faults, ends_ns } = marks;
        let verdicts = judge_messages(&messages, order);
        Ok(Self { scenario: reader.scenario, seed: reader.seed, verdicts, messages, faults, ends_ns })
    }
}

/// Of a file in either form.
pub fn of_file(path: &Path, order: Ordering) -> anyhow::Result<Evidence> {
    let open = || {
        let file = std::fs::File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
        anyhow::Ok(BufReader::new(file))
    };
    let name = || path.display().to_string();
    let has_more = match Reader::new(open()?).with_context(name)? {
        None => return Evidence::of(&History::read(open()?).with_context(name)?, order).with_context(name),
        Some(mut reader) => {
            let mut has_more = false;
            while let Some(event) = reader.read().with_context(name)? {
                has_more |= !is_of_messages(&event.op);
            }
            has_more
        }
    };
    let reader = Reader::new(open()?).with_context(name)?.context("the same file has the same form")?;
    match has_more {
        true => Evidence::of(&reader.into_history().with_context(name)?, order).with_context(name),
        false => Evidence::of_events(reader, order).with_context(name),
    }
}

/// The checkers of messages alone look at these.
fn is_of_messages(op: &Operation) -> bool {
    match op {
        Operation::Send(send) => send.topic.is_none() && !send.half && send.due_ns.is_none(),
        Operation::Receive(receive) => receive.topic.is_none(),
        Operation::SendBatch(_) | Operation::Ack { .. } | Operation::Fault { .. } => true,
        _ => false,
    }
}

fn judge_messages(messages: &Messages, order: Ordering) -> Vec<Verdict> {
    let order = match order {
        Ordering::Any if messages.is_unleased() => PollOrder::Ascending,
        Ordering::Any => PollOrder::Any,
        Ordering::Ascending => PollOrder::Ascending,
    };
    let mut verdicts = Vec::new();
    if !messages.sends().is_empty() || !messages.is_unread() {
        verdicts.push(total_queue::of(messages));
        verdicts.push(queue_log::of(messages, order));
    }
    if messages.sends().iter().any(|sent| sent.message_group.is_some()) {
        verdicts.push(fifo::of(messages));
    }
    verdicts
}

fn judge(spans: &[Span<'_>], order: Ordering) -> Vec<Verdict> {
    let has = |wanted: fn(&Span<'_>) -> bool| spans.iter().any(wanted);
    let mut verdicts = judge_messages(&Messages::of(spans), order);
    if has(|span| matches!(span.asked, Operation::Send(send) if send.half)) {
        verdicts.push(transactions::check(spans));
    }
    if has(|span| matches!(span.asked, Operation::Send(send) if send.due_ns.is_some())) {
        verdicts.push(timers::check(spans, TIMER_BOUNDS));
    }
    if has(|span| matches!(span.asked, Operation::ChangeLease { .. })) {
        verdicts.push(leases::check(spans, LEASE_BOUNDS));
    }
    let is_of_register: fn(&Span<'_>) -> bool = |span| {
        matches!(
            span.asked,
            Operation::Read { .. }
                | Operation::Write { .. }
                | Operation::Cas { .. }
                | Operation::Create { .. }
                | Operation::Delete { .. }
        )
    };
    if has(is_of_register) {
        verdicts.push(linearizable::check(spans));
    }
    verdicts
}
