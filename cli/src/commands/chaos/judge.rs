//! Which checkers a history is shown to: those that have something to say about its operations.

use clap::ValueEnum;
use ledgermq_checkers::history::Span;
use ledgermq_checkers::queue_log::PollOrder;
use ledgermq_checkers::timers::Bounds;
use ledgermq_checkers::{
    History, HistoryError, Operation, Verdict, fifo, leases, linearizable, queue_log, timers, total_queue,
    transactions,
};

/// One second is the promise across a failover; the slack is what two clocks of one machine differ.
const TIMER_BOUNDS: Bounds = Bounds { late_ns: 1_000_000_000, slack_ns: 10_000_000 };

/// The second is the time in which the longest outage a run makes is over, and a poll after it.
const LEASE_BOUNDS: leases::Bounds =
    leases::Bounds { slack_ns: 10_000_000, redelivered_within_ns: 15_000_000_000 };

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Ordering {
    /// Members of a group share queues.
    Any,
    /// Each queue is read in order.
    Ascending,
}

pub fn judge(history: &History, order: Ordering) -> Result<Vec<Verdict>, HistoryError> {
    let spans = history.spans()?;
    let order = match order {
        Ordering::Any => PollOrder::Any,
        Ordering::Ascending => PollOrder::Ascending,
    };
    let has = |wanted: fn(&Span<'_>) -> bool| spans.iter().any(wanted);
    let mut verdicts = Vec::new();
    if has(|span| matches!(span.asked, Operation::Send(_) | Operation::Receive(_))) {
        verdicts.push(total_queue::check(&spans));
        verdicts.push(queue_log::check(&spans, order));
    }
    if has(|span| matches!(span.asked, Operation::Send(send) if send.message_group.is_some())) {
        verdicts.push(fifo::check(&spans));
    }
    if has(|span| matches!(span.asked, Operation::Send(send) if send.half)) {
        verdicts.push(transactions::check(&spans));
    }
    if has(|span| matches!(span.asked, Operation::Send(send) if send.due_ns.is_some())) {
        verdicts.push(timers::check(&spans, TIMER_BOUNDS));
    }
    if has(|span| matches!(span.asked, Operation::ChangeLease { .. })) {
        verdicts.push(leases::check(&spans, LEASE_BOUNDS));
    }
    let is_register: fn(&Span<'_>) -> bool =
        |span| matches!(span.asked, Operation::Read { .. } | Operation::Write { .. } | Operation::Cas { .. });
    if has(is_register) {
        verdicts.push(linearizable::check(&spans));
    }
    Ok(verdicts)
}
