//! A history: who asked for what, when, and what came of it.
//!
//! A *process* is one logical client; it has at most one operation open. An event is an invocation
//! or a completion, as in Jepsen:
//!
//! | Kind | Meaning |
//! |---|---|
//! | `invoke` | the process asked |
//! | `ok` | it happened, between the two events |
//! | `fail` | it did not happen and never will |
//! | `info` | nobody knows: it may take effect at any later time |
//!
//! Faults are events of their own ([`Operation::Fault`]) by the process [`NEMESIS`], `info` when they
//! begin and when they end.
//!
//! # File
//!
//! Lines of JSON. The first is `{"ledgermq_history":1,"scenario":…,"seed":…}`; each further line is an
//! event in the order of the recorder's clock: `{"t":NANOSECONDS,"p":PROCESS,"k":"invoke","op":{…}}`.
//! [`crate::compact`] is the same in a tenth of the bytes.

use std::collections::BTreeMap;
use std::io::{BufRead, Write};

use serde::{Deserialize, Serialize};

pub const FORMAT_VERSION: u32 = 1;
/// The process of faults.
pub const NEMESIS: u32 = u32::MAX;
/// A longer line is no event of ours.
const LINE_BYTES_MAX: usize = 16 * 1024 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Invoke,
    Ok,
    Fail,
    Info,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "f", rename_all = "snake_case")]
pub enum Operation {
    /// A message with a number that no other message of the history has.
    Send(Sending),
    /// Several in one request, which is stored as a whole or not at all.
    SendBatch(Batch),
    /// The answer to a receive; at its invocation the list is empty.
    Receive(Receiving),
    /// Messages taken from the group for good; the answer lists those of which it says so.
    Ack {
        group: String,
        numbers: Vec<u64>,
    },
    /// The lease of one delivery, named by its attempt, is made to last this long from now.
    ChangeLease {
        group: String,
        number: u64,
        attempt: u32,
        lease_ns: u64,
    },
    /// The outcome a producer (or a check) asks for a half message.
    End {
        number: u64,
        commit: bool,
    },
    /// A delayed message is called back.
    Recall {
        number: u64,
    },
    /// Half messages that the cluster itself says have no outcome yet; asked at the end.
    Undecided {
        numbers: Vec<u64>,
    },
    Read {
        key: String,
        value: Option<i64>,
    },
    Write {
        key: String,
        value: i64,
    },
    Cas {
        key: String,
        from: i64,
        to: i64,
    },
    /// A register that exists or not comes into being with this value, or has it already.
    Create {
        key: String,
        value: i64,
    },
    /// It is gone afterwards.
    Delete {
        key: String,
    },
    Fault {
        name: String,
        target: String,
        begins: bool,
    },
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Sending {
    pub number: u64,
    /// Given where a history has several topics, each judged by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic: Option<String>,
    /// Known from the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue: Option<(String, u32)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message_group: Option<String>,
    /// A half message: invisible until an `End` commits it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub half: bool,
    /// Not to be delivered before this time of the history's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub due_ns: Option<u64>,
}

/// Messages with the numbers `first`, `first + 1` and so on.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Batch {
    pub first: u64,
    pub count: u32,
    /// Known from the answer, one for each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub offsets: Vec<u64>,
}

impl Batch {
    pub fn numbers(&self) -> impl Iterator<Item = u64> + use<> {
        self.first..self.first.saturating_add(u64::from(self.count))
    }
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Receiving {
    /// The consumer group.
    pub group: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic: Option<String>,
    pub lease_ns: u64,
    pub messages: Vec<Delivery>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Delivery {
    pub number: u64,
    pub id: String,
    /// Broker group and queue; without a name where the client does not tell.
    pub queue: (String, u32),
    pub offset: u64,
    /// From 1.
    pub attempt: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    #[serde(rename = "t")]
    pub at_ns: u64,
    #[serde(rename = "p")]
    pub process: u32,
    #[serde(rename = "k")]
    pub kind: Kind,
    pub op: Operation,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct History {
    pub scenario: String,
    pub seed: u64,
    pub events: Vec<Event>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Header {
    pub(crate) ledgermq_history: u32,
    pub(crate) scenario: String,
    pub(crate) seed: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    #[error("line {line}: {source}")]
    Line { line: usize, source: serde_json::Error },
    #[error("line {line} has {bytes} bytes; the limit is {LINE_BYTES_MAX}")]
    LineTooLong { line: usize, bytes: usize },
    #[error("the file has no header line")]
    NoHeader,
    #[error("the history has format {version}; this program knows {FORMAT_VERSION}")]
    Version { version: u32 },
    #[error("event {index}: process {process} {fault}")]
    Malformed { index: usize, process: u32, fault: &'static str },
    #[error("byte {at} of the compact history: {fault}")]
    Compact { at: u64, fault: String },
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// An operation from its invocation to what came of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Span<'a> {
    pub process: u32,
    pub invoked_ns: u64,
    /// `None` while nobody knows: unknown outcomes end never.
    pub completed_ns: Option<u64>,
    pub kind: Kind,
    pub asked: &'a Operation,
    /// What the completion says; what was asked where there is none.
    pub answered: &'a Operation,
}

impl History {
    pub fn read(reader: impl BufRead) -> Result<Self, HistoryError> {
        let mut history: Option<Self> = None;
        for (position, line) in reader.lines().enumerate() {
            let (line, number) = (line?, position + 1);
            if line.len() > LINE_BYTES_MAX {
                return Err(HistoryError::LineTooLong { line: number, bytes: line.len() });
            }
            let wrong = |source| HistoryError::Line { line: number, source };
            match &mut history {
                None => {
                    let header: Header = serde_json::from_str(&line).map_err(wrong)?;
                    if header.ledgermq_history != FORMAT_VERSION {
                        return Err(HistoryError::Version { version: header.ledgermq_history });
                    }
                    let (scenario, seed) = (header.scenario, header.seed);
                    history = Some(Self { scenario, seed, events: Vec::new() });
                }
                Some(history) => history.events.push(serde_json::from_str(&line).map_err(wrong)?),
            }
        }
        let history = history.ok_or(HistoryError::NoHeader)?;
        history.spans()?;
        Ok(history)
    }

    pub fn write(&self, mut out: impl Write) -> Result<(), HistoryError> {
        let (scenario, seed) = (self.scenario.clone(), self.seed);
        let header = Header { ledgermq_history: FORMAT_VERSION, scenario, seed };
        let json = |source| HistoryError::Line { line: 0, source };
        writeln!(out, "{}", serde_json::to_string(&header).map_err(json)?)?;
        for event in &self.events {
            writeln!(out, "{}", serde_json::to_string(event).map_err(json)?)?;
        }
        Ok(())
    }

    /// Every operation but the faults, in the order of the invocations.
    pub fn spans(&self) -> Result<Vec<Span<'_>>, HistoryError> {
        let mut spans: Vec<Span<'_>> = Vec::new();
        let mut open: BTreeMap<u32, usize> = BTreeMap::new();
        let mut now = 0;
        for (index, event) in self.events.iter().enumerate() {
            let malformed = |fault| Err(HistoryError::Malformed { index, process: event.process, fault });
            if event.at_ns < now {
                return malformed("goes back in time");
            }
            now = event.at_ns;
            if event.process == NEMESIS {
                continue;
            }
            match (event.kind, open.remove(&event.process)) {
                (Kind::Invoke, None) => {
                    open.insert(event.process, spans.len());
                    spans.push(Span {
                        process: event.process,
                        invoked_ns: event.at_ns,
                        completed_ns: None,
                        kind: Kind::Info,
                        asked: &event.op,
                        answered: &event.op,
                    });
                }
                (Kind::Invoke, Some(_)) => return malformed("asks while it waits for an answer"),
                (_, None) => return malformed("gets an answer without having asked"),
                (kind, Some(position)) => {
                    if let Some(span) = spans.get_mut(position) {
                        span.kind = kind;
                        span.answered = &event.op;
                        span.completed_ns = (kind != Kind::Info).then_some(event.at_ns);
                    }
                }
            }
        }
        Ok(spans)
    }

    /// When faults began and ended.
    pub fn faults(&self) -> impl Iterator<Item = FaultMark> {
        self.events.iter().filter_map(FaultMark::of)
    }
}

/// The begin or the end of a fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FaultMark {
    pub at_ns: u64,
    pub name: String,
    pub target: String,
    pub begins: bool,
}

impl FaultMark {
    pub fn of(event: &Event) -> Option<Self> {
        let Operation::Fault { name, target, begins } = &event.op else { return None };
        Some(Self { at_ns: event.at_ns, name: name.clone(), target: target.clone(), begins: *begins })
    }
}

/// The operations of each topic by themselves; what belongs to none stands under `None`, and so does
/// everything where a history does not name its topics.
///
/// What names a message only, or a consumer group, goes with the topic these are of.
pub fn by_topic<'a>(spans: &[Span<'a>]) -> BTreeMap<Option<&'a str>, Vec<Span<'a>>> {
    let mut of_number: BTreeMap<u64, &'a str> = BTreeMap::new();
    let mut of_group: BTreeMap<&'a str, &'a str> = BTreeMap::new();
    for span in spans {
        match span.asked {
            Operation::Send(Sending { number, topic: Some(topic), .. }) => {
                of_number.insert(*number, topic);
            }
            Operation::Receive(Receiving { group, topic: Some(topic), .. }) => {
                of_group.insert(group, topic);
            }
            _ => {}
        }
    }
    let mut topics: BTreeMap<Option<&'a str>, Vec<Span<'a>>> = BTreeMap::new();
    for span in spans {
        let of_number = |number: &u64| of_number.get(number).copied();
        let topic = match span.asked {
            Operation::Send(sending) => sending.topic.as_deref(),
            Operation::Receive(receiving) => receiving.topic.as_deref(),
            Operation::Ack { group, .. } | Operation::ChangeLease { group, .. } => {
                of_group.get(group.as_str()).copied()
            }
            Operation::End { number, .. } | Operation::Recall { number } => of_number(number),
            // An answer that names none says that there are none, of whatever topic had halves.
            Operation::Undecided { .. } => spans.iter().find_map(|span| match span.asked {
                Operation::Send(send) if send.half => send.topic.as_deref(),
                _ => None,
            }),
            _ => None,
        };
        topics.entry(topic).or_default().push(span.clone());
    }
    topics
}
