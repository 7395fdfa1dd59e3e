//! A history in EDN, as Jepsen's own checkers read it: one map per event, with `:index`, `:time`,
//! `:process`, `:type`, `:f` and `:value`.
//!
//! | Operation | `:f` | `:value` |
//! |---|---|---|
//! | send | `:enqueue` | the number; with a known place `[:send [group queue] [offset number]]` is in `:place` |
//! | batch | `:enqueue-batch` | the numbers; known offsets in `:offsets` |
//! | receive | `:dequeue` | the numbers |
//! | ack, change of a lease, end, recall | `:ack`, `:change-lease`, `:end`, `:recall` | a map |
//! | what has no outcome | `:undecided` | the numbers |
//! | read, write, cas | `:read`, `:write`, `:cas` | `[key value]`, for cas `[key [from to]]` |
//! | create, delete | `:create`, `:delete` | `[key value]`, for delete `[key nil]` |
//! | fault | its name | the target; `:process :nemesis` |

use std::fmt::Write as _;

use crate::history::{Event, History, Kind, NEMESIS, Operation};

pub fn write(history: &History) -> String {
    let mut text = String::new();
    for (index, event) in history.events.iter().enumerate() {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{}", one(index, event));
    }
    text
}

fn one(index: usize, event: &Event) -> String {
    let kind = match event.kind {
        Kind::Invoke => ":invoke",
        Kind::Ok => ":ok",
        Kind::Fail => ":fail",
        Kind::Info => ":info",
    };
    let process = if event.process == NEMESIS { ":nemesis".to_owned() } else { event.process.to_string() };
    let (function, value, more) = operation(&event.op);
    format!(
        "{{:index {index}, :time {}, :process {process}, :type {kind}, :f {function}, :value {value}{more}}}",
        event.at_ns
    )
}

fn operation(operation: &Operation) -> (String, String, String) {
    let plain = |name: &str, value: String| (name.to_owned(), value, String::new());
    match operation {
        Operation::Send(send) => {
            let place = match (&send.queue, send.offset) {
                (Some((group, queue)), Some(offset)) => {
                    format!(", :place [:send [{} {queue}] [{offset} {}]]", quoted(group), send.number)
                }
                _ => String::new(),
            };
            (":enqueue".to_owned(), send.number.to_string(), place)
        }
        Operation::SendBatch(batch) => {
            let listed = |numbers: &mut dyn Iterator<Item = u64>| {
                numbers.map(|number| number.to_string()).collect::<Vec<_>>().join(" ")
            };
            let value = format!("[{}]", listed(&mut batch.numbers()));
            let more = match batch.offsets.is_empty() {
                true => String::new(),
                false => format!(", :offsets [{}]", listed(&mut batch.offsets.iter().copied())),
            };
            (":enqueue-batch".to_owned(), value, more)
        }
        Operation::Undecided { numbers } => {
            let numbers: Vec<String> = numbers.iter().map(u64::to_string).collect();
            plain(":undecided", format!("[{}]", numbers.join(" ")))
        }
        Operation::Create { key, value } => plain(":create", format!("[{} {value}]", quoted(key))),
        Operation::Delete { key } => plain(":delete", format!("[{} nil]", quoted(key))),
        Operation::Receive(receive) => {
            let numbers: Vec<String> =
                receive.messages.iter().map(|message| message.number.to_string()).collect();
            let more = format!(", :group {}", quoted(&receive.group));
            (":dequeue".to_owned(), format!("[{}]", numbers.join(" ")), more)
        }
        Operation::Ack { group, numbers } => {
            let numbers: Vec<String> = numbers.iter().map(u64::to_string).collect();
            plain(":ack", format!("{{:group {}, :numbers [{}]}}", quoted(group), numbers.join(" ")))
        }
        Operation::ChangeLease { group, number, attempt, lease_ns } => plain(
            ":change-lease",
            format!("{{:group {}, :number {number}, :attempt {attempt}, :lease {lease_ns}}}", quoted(group)),
        ),
        Operation::End { number, commit } => plain(":end", format!("{{:number {number}, :commit {commit}}}")),
        Operation::Recall { number } => plain(":recall", format!("{{:number {number}}}")),
        Operation::Read { key, value } => {
            let value = value.map_or_else(|| "nil".to_owned(), |value| value.to_string());
            plain(":read", format!("[{} {value}]", quoted(key)))
        }
        Operation::Write { key, value } => plain(":write", format!("[{} {value}]", quoted(key))),
        Operation::Cas { key, from, to } => plain(":cas", format!("[{} [{from} {to}]]", quoted(key))),
        Operation::Fault { name, target, begins } => {
            let keyword: String =
                name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
            let name = format!(":{}-{keyword}", if *begins { "start" } else { "stop" });
            (name, quoted(target), String::new())
        }
    }
}

fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        match character {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}
