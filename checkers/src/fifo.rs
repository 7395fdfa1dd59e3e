//! Order within a message group, and who may hold its messages.
//!
//! | Anomaly | Meaning |
//! |---|---|
//! | `out-of-order` | first deliveries of a message group in another order than its sends, which followed each other |
//! | `overtaking` | a message was given out while an earlier one of its group was neither acknowledged nor held by the same consumer |
//! | `two-holders` | two consumers held un-acked messages of one message group at the same time |
//!
//! The order of a message group is the order of sends of which one was acknowledged before the next
//! began; sends that overlap have none. A lease counts as held from the answer of its receive until
//! its ack is asked for or its time, counted from the receive's invocation, is over: the shortest
//! time it can have lasted.
//!
//! A message out of order is counted once, however many it passed. One pass in time over each message
//! group: what is compared with each other are messages that are held at the same moment.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};

use crate::history::{Kind, Span};
use crate::messages::{Delivered, MessageGroup, Messages, Received, Sent};
use crate::verdict::{Findings, Verdict};

pub fn check(spans: &[Span<'_>]) -> Verdict {
    of(&Messages::of(spans))
}

pub fn of(messages: &Messages) -> Verdict {
    let mut findings = Findings::of("fifo");
    let mut sends: BTreeMap<MessageGroup, Vec<&Sent>> = BTreeMap::new();
    for sent in messages.sends() {
        if let (Some(key), true) = (sent.message_group, sent.kind != Kind::Fail) {
            sends.entry(key).or_default().push(sent);
        }
    }
    findings.count("message groups", sends.len());
    findings.count("deliveries", messages.count_deliveries());
    for (name, group) in messages.groups() {
        let mut deliveries: BTreeMap<MessageGroup, Vec<&Delivered>> = BTreeMap::new();
        for delivered in &group.deliveries {
            let sent = messages.sent(delivered.number).filter(|sent| sent.kind != Kind::Fail);
            if let Some(key) = sent.and_then(|sent| sent.message_group) {
                deliveries.entry(key).or_default().push(delivered);
            }
        }
        for (key, deliveries) in &deliveries {
            let key_name = messages.message_group_name(*key);
            let sends = sends.get(key).map_or(&[] as &[_], Vec::as_slice);
            let one = One { messages, name, key: key_name, group, deliveries };
            one.in_order(sends, &mut findings);
            one.held(&mut findings);
        }
    }
    let nothing = (sends.is_empty() || messages.deliveries().next().is_none())
        .then_some("no message with a message group was delivered");
    findings.verdict(nothing)
}

/// One message group as one consumer group saw it.
struct One<'a> {
    messages: &'a Messages,
    name: &'a str,
    key: &'a str,
    group: &'a Received,
    deliveries: &'a [&'a Delivered],
}

/// A message that was given out and whose ack nobody asked for yet, and to whom.
struct Open {
    completed_ns: Option<u64>,
    holders: Vec<u32>,
}

impl One<'_> {
    /// Going through the sends by when they began: of those acknowledged before, the one that was
    /// first delivered last must have come before this one.
    fn in_order(&self, sends: &[&Sent], findings: &mut Findings) {
        let mut first_at: HashMap<u64, usize> = HashMap::new();
        for (position, delivered) in self.deliveries.iter().enumerate() {
            first_at.entry(delivered.number).or_insert(position);
        }
        // Never delivered is later than everything.
        let first_at = |sent: &Sent| first_at.get(&sent.number).copied().unwrap_or(usize::MAX);
        let mut begun: Vec<&Sent> = sends.to_vec();
        begun.sort_by_key(|sent| sent.invoked_ns);
        let mut acknowledged: Vec<(u64, &Sent)> = sends
            .iter()
            .filter(|sent| sent.kind == Kind::Ok)
            .filter_map(|sent| Some((sent.completed_ns()?, *sent)))
            .collect();
        acknowledged.sort_by_key(|(completed, _)| *completed);
        let mut acknowledged = acknowledged.into_iter().peekable();
        let mut latest: Option<(usize, u64)> = None;
        for sent in begun {
            while let Some((_, before)) = acknowledged.next_if(|(completed, _)| *completed < sent.invoked_ns)
            {
                let of = (first_at(before), before.number);
                if latest.is_none_or(|latest| latest.0 < of.0) {
                    latest = Some(of);
                }
            }
            let delivered_at = first_at(sent);
            if delivered_at == usize::MAX {
                continue;
            }
            if let Some((before_at, before)) = latest.filter(|(before_at, _)| *before_at > delivered_at) {
                let (name, number, key) = (self.name, sent.number, self.key);
                findings.fatal("out-of-order", || match before_at {
                    usize::MAX => {
                        format!("{name} got {number} of {key} and never {before}, which was sent first")
                    }
                    _ => format!("{name} got {number} of {key} before {before}, which was sent first"),
                });
            }
        }
    }

    /// Going through the deliveries in time, with what is out at that moment.
    fn held(&self, findings: &mut Findings) {
        let mut open: BTreeMap<u64, Open> = BTreeMap::new();
        let mut ack_due: BinaryHeap<Reverse<(u64, u64)>> = BinaryHeap::new();
        // (until when it is certainly held, consumer, number).
        let mut holds: BinaryHeap<Reverse<(u64, u32, u64)>> = BinaryHeap::new();
        for delivered in self.deliveries {
            let (number, now_ns) = (delivered.number, delivered.at_ns);
            while let Some(&Reverse((asked_ns, done))) = ack_due.peek()
                && asked_ns <= now_ns
            {
                ack_due.pop();
                open.remove(&done);
            }
            while let Some(&Reverse((until_ns, ..))) = holds.peek()
                && until_ns <= now_ns
            {
                holds.pop();
            }
            let began_ns = self.messages.sent(number).map_or(0, |sent| sent.invoked_ns);
            for (earlier, of) in &open {
                let follows = *earlier != number && of.completed_ns.is_some_and(|at| at < began_ns);
                if follows && !of.holders.contains(&delivered.process) {
                    findings.fatal("overtaking", || {
                        let (name, key) = (self.name, self.key);
                        format!("{name} got {number} of {key} while {earlier} was not acknowledged")
                    });
                }
            }
            for Reverse((_, other, held)) in &holds {
                if *other != delivered.process {
                    findings.fatal("two-holders", || {
                        format!(
                            "consumers {other} and {} of {} held {held} and {number} of {}",
                            delivered.process, self.name, self.key
                        )
                    });
                }
            }
            let ack_asked_ns = self.group.ack_asked_ns(number).unwrap_or(u64::MAX);
            let lease_ends_ns = delivered.invoked_ns.saturating_add(delivered.lease_ns);
            holds.push(Reverse((lease_ends_ns.min(ack_asked_ns), delivered.process, number)));
            if ack_asked_ns > now_ns {
                let of = open.entry(number).or_insert_with(|| {
                    ack_due.push(Reverse((ack_asked_ns, number)));
                    let completed_ns = self.messages.sent(number).and_then(Sent::completed_ns);
                    Open { completed_ns, holders: Vec::new() }
                });
                if !of.holders.contains(&delivered.process) {
                    of.holders.push(delivered.process);
                }
            }
        }
    }
}
