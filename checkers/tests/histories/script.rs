//! A history as a script, one operation per line; time passes by one millisecond per event.
//!
//! ```text
//! 0 send 7                      invoke and ok, by process 0
//! 0 send 7 @q1:5 key=k half due=40
//! 0 send! 7                     the answer is unknown
//! 0 send- 7                     it failed
//! 0 [ send 7   …   0 ]          asked here, answered there; `0 ?]` unknown, `0 -]` failed
//! 0 batch 7 3 @5                7, 8 and 9 in one request, at the offsets 5, 6 and 7
//! 5 recv g 7@q1:5 8@q1:6#2      consumer group g gets message 7, and 8 in its second attempt
//! 7 recv h 7@?                  by a client that does not say where it lay
//! 5 ack g 7   5 ack! g 7
//! 5 lease g 7#1 80             the lease of its first attempt lasts 80 ms from now
//! 0 commit 7  0 rollback 7  0 recall 7   with ! and - likewise
//! 9 undecided 7 8               the cluster says which halves have no outcome
//! 1 read x 3  1 write x 3  1 cas x 3 4  1 create x 3  1 delete x   with ! and -
//! sleep 100
//! ```

use ledgermq_checkers::history::{Batch, Delivery, Receiving, Sending};
use ledgermq_checkers::{Event, History, Kind, Operation};

pub const MS: u64 = 1_000_000;

pub fn history(script: &str) -> History {
    let mut history = History { scenario: "hand-made".to_owned(), seed: 1, events: Vec::new() };
    let mut at_ns = 0;
    let mut open: std::collections::BTreeMap<u32, Operation> = Default::default();
    for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let words: Vec<&str> = line.split_whitespace().collect();
        if words[0] == "sleep" {
            at_ns += words[1].parse::<u64>().expect("milliseconds") * MS;
            continue;
        }
        let process: u32 = words[0].parse().expect("a process");
        let mut push = |kind, op: &Operation| {
            at_ns += MS;
            history.events.push(Event { at_ns, process, kind, op: op.clone() });
        };
        match words[1] {
            "[" => {
                let (_, op) = operation(&words[2..]);
                push(Kind::Invoke, &asked(&op));
                open.insert(process, op);
            }
            "]" | "?]" | "-]" => {
                let kind = match words[1] {
                    "]" => Kind::Ok,
                    "?]" => Kind::Info,
                    _ => Kind::Fail,
                };
                push(kind, &open.remove(&process).expect("an open operation"));
            }
            _ => {
                let (kind, op) = operation(&words[1..]);
                push(Kind::Invoke, &asked(&op));
                push(kind, &op);
            }
        }
    }
    history
}

/// What is known when the question is put.
fn asked(op: &Operation) -> Operation {
    match op.clone() {
        Operation::Receive(receive) => Operation::Receive(Receiving { messages: Vec::new(), ..receive }),
        Operation::Send(send) => Operation::Send(Sending { offset: None, queue: None, ..send }),
        Operation::SendBatch(batch) => Operation::SendBatch(Batch { offsets: Vec::new(), ..batch }),
        Operation::Undecided { .. } => Operation::Undecided { numbers: Vec::new() },
        Operation::Read { key, .. } => Operation::Read { key, value: None },
        other => other,
    }
}

fn place(text: &str) -> ((String, u32), u64) {
    let (queue, offset) = text.trim_start_matches('q').split_once(':').expect("queue:offset");
    (("group-1".to_owned(), queue.parse().expect("a queue")), offset.parse().expect("an offset"))
}

fn operation(words: &[&str]) -> (Kind, Operation) {
    let name = words[0].trim_end_matches(['!', '-']);
    let kind = match words[0].chars().last() {
        Some('!') => Kind::Info,
        Some('-') => Kind::Fail,
        _ => Kind::Ok,
    };
    let number = |position: usize| words[position].parse::<u64>().expect("a number");
    let value = |position: usize| words[position].parse::<i64>().expect("a value");
    let key = || words[1].to_owned();
    let op = match name {
        "send" => {
            let mut send =
                Sending { number: number(1), id: Some(format!("id-{}", words[1])), ..Default::default() };
            for word in &words[2..] {
                if let Some(at) = word.strip_prefix('@') {
                    let (queue, offset) = place(at);
                    (send.queue, send.offset) = (Some(queue), Some(offset));
                } else if let Some(topic) = word.strip_prefix("topic=") {
                    send.topic = Some(topic.to_owned());
                } else if let Some(offset) = word.strip_prefix("offset=") {
                    send.offset = Some(offset.parse().expect("an offset"));
                } else if let Some(key) = word.strip_prefix("key=") {
                    send.message_group = Some(key.to_owned());
                } else if let Some(due) = word.strip_prefix("due=") {
                    send.due_ns = Some(due.parse::<u64>().expect("milliseconds") * MS);
                } else {
                    assert_eq!(*word, "half");
                    send.half = true;
                }
            }
            Operation::Send(send)
        }
        "batch" => {
            let count: u32 = words[2].parse().expect("a count");
            let at = words.get(3).map(|at| at.trim_start_matches('@').parse::<u64>().expect("an offset"));
            let offsets = at.map_or_else(Vec::new, |at| (at..at + u64::from(count)).collect());
            Operation::SendBatch(Batch { first: number(1), count, offsets })
        }
        "undecided" => {
            let numbers = words[1..].iter().map(|word| word.parse().expect("a number")).collect();
            Operation::Undecided { numbers }
        }
        "recv" => {
            let topic = words.get(2).and_then(|word| word.strip_prefix("topic=")).map(str::to_owned);
            let messages = words[2 + usize::from(topic.is_some())..].iter().map(|word| {
                let (message, attempt) = word.split_once('#').unwrap_or((word, "1"));
                let (number, at) = message.split_once('@').expect("number@place");
                let (number, id) = number.split_once('/').unwrap_or((number, number));
                let unknown = ((String::new(), 0), 0);
                let (queue, offset) = if at == "?" { unknown } else { place(at) };
                Delivery {
                    number: number.parse().expect("a number"),
                    id: format!("id-{id}"),
                    queue,
                    offset,
                    attempt: attempt.parse().expect("an attempt"),
                }
            });
            let messages = messages.collect();
            Operation::Receive(Receiving { group: key(), topic, lease_ns: 50 * MS, messages })
        }
        "ack" => Operation::Ack { group: key(), numbers: vec![number(2)] },
        "lease" => {
            let (message, attempt) = words[2].split_once('#').expect("number#attempt");
            Operation::ChangeLease {
                group: key(),
                number: message.parse().expect("a number"),
                attempt: attempt.parse().expect("an attempt"),
                lease_ns: number(3) * MS,
            }
        }
        "commit" | "rollback" => Operation::End { number: number(1), commit: name == "commit" },
        "recall" => Operation::Recall { number: number(1) },
        "read" => Operation::Read { key: key(), value: (words[2] != "nil").then(|| value(2)) },
        "write" => Operation::Write { key: key(), value: value(2) },
        "create" => Operation::Create { key: key(), value: value(2) },
        "delete" => Operation::Delete { key: key() },
        "cas" => Operation::Cas { key: key(), from: value(2), to: value(3) },
        other => panic!("{other} is no operation"),
    };
    (kind, op)
}
