//! The compact form of a history: binary, written and read event by event, some forty bytes a message.
//!
//! ```text
//! offset size field
//!      0    8 "LMQHIST1"
//!      8    n header as in the other form: a line of JSON, with its line feed
//!    8+n      records
//! ```
//!
//! | Record | After its tag byte |
//! |---|---|
//! | `0` name | text; it gets the next number, from 0 |
//! | `1` event as JSON | text: a line of the other form |
//! | `2` send | event, number, id, 0 or offset + 1 |
//! | `3` batch | event, first number, count, number of offsets, each as the difference to the one before |
//! | `4` receive | event, consumer group (name), lease, count, then per message: number as a difference, id, broker group (name), queue, offset as a difference, attempt |
//! | `5` ack | event, consumer group (name), count, numbers as differences |
//!
//! Event: kind (a byte), nanoseconds since the event before, process. Text: length, bytes. Id: `0` none,
//! `1` text, `2` count of bytes and the bytes that its upper-case hexadecimal digits stand for. All numbers
//! are LEB128, differences in zigzag. What has a field that its record has no place for is JSON.
//!
//! | Found | Answer |
//! |---|---|
//! | another first line | [`HistoryError::Compact`] at byte 0 |
//! | the file ends inside a record, an unknown tag, a name or a length out of range | [`HistoryError::Compact`] with its byte |

use std::collections::HashMap;
use std::io::{BufRead, Write};

use crate::history::{
    Batch, Delivery, Event, FORMAT_VERSION, Header, History, HistoryError, Kind, Operation, Receiving,
    Sending,
};

pub const MAGIC: &[u8; 8] = b"LMQHIST1";
/// A longer text, or more of anything in one record, is none of ours.
const COUNT_MAX: u64 = 16 * 1024 * 1024;

const NAME: u8 = 0;
const JSON: u8 = 1;
const SEND: u8 = 2;
const BATCH: u8 = 3;
const RECEIVE: u8 = 4;
const ACK: u8 = 5;

pub struct Writer<W> {
    out: W,
    names: HashMap<String, u64>,
    record: Vec<u8>,
    now_ns: u64,
}

impl<W: Write> Writer<W> {
    pub fn new(mut out: W, scenario: &str, seed: u64) -> Result<Self, HistoryError> {
        let header = Header { ledgermq_history: FORMAT_VERSION, scenario: scenario.to_owned(), seed };
        out.write_all(MAGIC)?;
        writeln!(out, "{}", json(&header)?)?;
        Ok(Self { out, names: HashMap::new(), record: Vec::new(), now_ns: 0 })
    }

    /// Events come in the order of their stamps.
    pub fn write(&mut self, event: &Event) -> Result<(), HistoryError> {
        let mut record = std::mem::take(&mut self.record);
        record.clear();
        let outcome = self.encode(event, &mut record);
        let written = outcome.and_then(|()| Ok(self.out.write_all(&record)?));
        self.record = record;
        written
    }

    pub fn finish(mut self) -> Result<W, HistoryError> {
        self.out.flush()?;
        Ok(self.out)
    }

    fn encode(&mut self, event: &Event, out: &mut Vec<u8>) -> Result<(), HistoryError> {
        match &event.op {
            Operation::Send(Sending {
                number,
                topic: None,
                id,
                queue: None,
                offset,
                message_group: None,
                half: false,
                due_ns: None,
            }) => {
                self.begin(SEND, event, out);
                put(out, *number);
                put_id(out, id.as_deref());
                put(out, offset.map_or(0, |offset| offset.saturating_add(1)));
            }
            Operation::SendBatch(Batch { first, count, offsets }) => {
                self.begin(BATCH, event, out);
                put(out, *first);
                put(out, u64::from(*count));
                put_all(out, offsets.iter().copied());
            }
            Operation::Receive(Receiving { group, topic: None, lease_ns, messages }) => {
                let group = self.name(group)?;
                let brokers: Vec<u64> =
                    messages.iter().map(|message| self.name(&message.queue.0)).collect::<Result<_, _>>()?;
                self.begin(RECEIVE, event, out);
                put(out, group);
                put(out, *lease_ns);
                put(out, messages.len() as u64);
                let (mut number, mut offset) = (0, 0);
                for (message, broker) in messages.iter().zip(brokers) {
                    put_difference(out, &mut number, message.number);
                    put_id(out, Some(&message.id));
                    put(out, broker);
                    put(out, u64::from(message.queue.1));
                    put_difference(out, &mut offset, message.offset);
                    put(out, u64::from(message.attempt));
                }
            }
            Operation::Ack { group, numbers } => {
                let group = self.name(group)?;
                self.begin(ACK, event, out);
                put(out, group);
                put_all(out, numbers.iter().copied());
            }
            _ => {
                self.now_ns = event.at_ns;
                out.push(JSON);
                put_bytes(out, json(event)?.as_bytes());
            }
        }
        Ok(())
    }

    fn begin(&mut self, tag: u8, event: &Event, out: &mut Vec<u8>) {
        out.push(tag);
        out.push(match event.kind {
            Kind::Invoke => 0,
            Kind::Ok => 1,
            Kind::Fail => 2,
            Kind::Info => 3,
        });
        put_difference(out, &mut self.now_ns, event.at_ns);
        put(out, u64::from(event.process));
    }

    /// Names stand in front of the record that uses them first.
    fn name(&mut self, name: &str) -> Result<u64, HistoryError> {
        if let Some(known) = self.names.get(name) {
            return Ok(*known);
        }
        let number = self.names.len() as u64;
        self.names.insert(name.to_owned(), number);
        let mut record = vec![NAME];
        put_bytes(&mut record, name.as_bytes());
        self.out.write_all(&record)?;
        Ok(number)
    }
}

/// The events of a compact history, one by one.
pub struct Reader<R> {
    input: R,
    pub scenario: String,
    pub seed: u64,
    names: Vec<String>,
    now_ns: u64,
    at: u64,
}

impl<R: BufRead> Reader<R> {
    /// `None` if the input is not in this form; nothing of it is consumed then.
    pub fn new(mut input: R) -> Result<Option<Self>, HistoryError> {
        if !input.fill_buf()?.starts_with(MAGIC) {
            return Ok(None);
        }
        input.consume(MAGIC.len());
        let mut line = String::new();
        let read = input.read_line(&mut line)?;
        let wrong = |source| HistoryError::Line { line: 1, source };
        let header: Header = serde_json::from_str(&line).map_err(wrong)?;
        if header.ledgermq_history != FORMAT_VERSION {
            return Err(HistoryError::Version { version: header.ledgermq_history });
        }
        let at = (MAGIC.len() + read) as u64;
        let Header { scenario, seed, .. } = header;
        Ok(Some(Self { input, scenario, seed, names: Vec::new(), now_ns: 0, at }))
    }

    /// `None` at the end.
    pub fn read(&mut self) -> Result<Option<Event>, HistoryError> {
        loop {
            if self.input.fill_buf()?.is_empty() {
                return Ok(None);
            }
            let record_at = self.at;
            let wrong = |fault: String| HistoryError::Compact { at: record_at, fault };
            let op = match self.byte()? {
                NAME => {
                    let name = self.bytes()?;
                    self.names.push(String::from_utf8(name).map_err(|error| wrong(error.to_string()))?);
                    continue;
                }
                JSON => {
                    let text = self.bytes()?;
                    let event: Event =
                        serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))?;
                    self.now_ns = event.at_ns;
                    return Ok(Some(event));
                }
                tag @ (SEND | BATCH | RECEIVE | ACK) => tag,
                tag => return Err(wrong(format!("there is no record with tag {tag}"))),
            };
            let kind = match self.byte()? {
                0 => Kind::Invoke,
                1 => Kind::Ok,
                2 => Kind::Fail,
                3 => Kind::Info,
                kind => return Err(wrong(format!("there is no kind {kind}"))),
            };
            let mut at_ns = self.now_ns;
            self.difference(&mut at_ns)?;
            self.now_ns = at_ns;
            let process = self.small()?;
            let op = match op {
                SEND => {
                    let number = self.number()?;
                    let id = self.id()?;
                    let offset = self.number()?.checked_sub(1);
                    Operation::Send(Sending { number, id, offset, ..Sending::default() })
                }
                BATCH => {
                    let (first, count) = (self.number()?, self.small()?);
                    Operation::SendBatch(Batch { first, count, offsets: self.all()? })
                }
                RECEIVE => Operation::Receive(self.receiving()?),
                _ => Operation::Ack { group: self.name()?, numbers: self.all()? },
            };
            return Ok(Some(Event { at_ns, process, kind, op }));
        }
    }

    /// All of it in memory.
    pub fn into_history(mut self) -> Result<History, HistoryError> {
        let mut events = Vec::new();
        while let Some(event) = self.read()? {
            events.push(event);
        }
        let history = History { scenario: self.scenario, seed: self.seed, events };
        history.spans()?;
        Ok(history)
    }

    fn receiving(&mut self) -> Result<Receiving, HistoryError> {
        let (group, lease_ns, count) = (self.name()?, self.number()?, self.count()?);
        let mut messages = Vec::new();
        let (mut number, mut offset) = (0, 0);
        for _ in 0..count {
            self.difference(&mut number)?;
            let id = self.id()?.unwrap_or_default();
            let queue = (self.name()?, self.small()?);
            self.difference(&mut offset)?;
            messages.push(Delivery { number, id, queue, offset, attempt: self.small()? });
        }
        Ok(Receiving { group, topic: None, lease_ns, messages })
    }

    fn wrong<T>(&self, fault: impl Into<String>) -> Result<T, HistoryError> {
        Err(HistoryError::Compact { at: self.at, fault: fault.into() })
    }

    fn byte(&mut self) -> Result<u8, HistoryError> {
        let Some(byte) = self.input.fill_buf()?.first().copied() else {
            return self.wrong("the file ends inside a record");
        };
        self.input.consume(1);
        self.at += 1;
        Ok(byte)
    }

    fn number(&mut self) -> Result<u64, HistoryError> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let part = u64::from(byte & 0x7f);
            if part << shift >> shift != part {
                break;
            }
            number |= part << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        self.wrong("a number has more than 64 bits")
    }

    fn small(&mut self) -> Result<u32, HistoryError> {
        match u32::try_from(self.number()?) {
            Ok(number) => Ok(number),
            Err(_) => self.wrong("a number has more than 32 bits"),
        }
    }

    fn count(&mut self) -> Result<u64, HistoryError> {
        match self.number()? {
            count if count <= COUNT_MAX => Ok(count),
            count => self.wrong(format!("{count} of something; the limit is {COUNT_MAX}")),
        }
    }

    fn difference(&mut self, value: &mut u64) -> Result<(), HistoryError> {
        let zigzag = self.number()?;
        let difference = (zigzag >> 1) ^ 0u64.wrapping_sub(zigzag & 1);
        *value = value.wrapping_add(difference);
        Ok(())
    }

    fn all(&mut self) -> Result<Vec<u64>, HistoryError> {
        let (mut value, mut all) = (0, Vec::new());
        for _ in 0..self.count()? {
            self.difference(&mut value)?;
            all.push(value);
        }
        Ok(all)
    }

    fn bytes(&mut self) -> Result<Vec<u8>, HistoryError> {
        let count = self.count()?;
        let mut bytes = Vec::new();
        let mut limited = std::io::Read::take(&mut self.input, count);
        let read = std::io::Read::read_to_end(&mut limited, &mut bytes)? as u64;
        self.at += read;
        if read < count {
            return self.wrong("the file ends inside a record");
        }
        Ok(bytes)
    }

    fn name(&mut self) -> Result<String, HistoryError> {
        let number = self.number()?;
        let known = usize::try_from(number).ok().and_then(|number| self.names.get(number)).cloned();
        known.map_or_else(|| self.wrong(format!("there is no name {number} yet")), Ok)
    }

    fn id(&mut self) -> Result<Option<String>, HistoryError> {
        match self.byte()? {
            0 => Ok(None),
            1 => match String::from_utf8(self.bytes()?) {
                Ok(id) => Ok(Some(id)),
                Err(error) => self.wrong(error.to_string()),
            },
            2 => {
                let bytes = self.bytes()?;
                Ok(Some(bytes.iter().map(|byte| format!("{byte:02X}")).collect()))
            }
            form => self.wrong(format!("there is no form {form} of an id")),
        }
    }
}

fn json(value: &impl serde::Serialize) -> Result<String, HistoryError> {
    serde_json::to_string(value).map_err(|source| HistoryError::Line { line: 0, source })
}

fn put(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn put_difference(out: &mut Vec<u8>, before: &mut u64, now: u64) {
    let difference = now.wrapping_sub(*before);
    // Its sign goes into the lowest bit, so that small ones stay short whichever way they go.
    put(out, (difference << 1) ^ ((difference as i64 >> 63) as u64));
    *before = now;
}

fn put_all(out: &mut Vec<u8>, numbers: impl ExactSizeIterator<Item = u64>) {
    put(out, numbers.len() as u64);
    let mut before = 0;
    for number in numbers {
        put_difference(out, &mut before, number);
    }
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn put_id(out: &mut Vec<u8>, id: Option<&str>) {
    let Some(id) = id else { return out.push(0) };
    match from_hexadecimal(id) {
        Some(bytes) => {
            out.push(2);
            put_bytes(out, &bytes);
        }
        None => {
            out.push(1);
            put_bytes(out, id.as_bytes());
        }
    }
}

fn from_hexadecimal(id: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    };
    let pairs = id.as_bytes().chunks_exact(2);
    if !pairs.remainder().is_empty() {
        return None;
    }
    pairs
        .map(|pair| match pair {
            [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
            _ => None,
        })
        .collect()
}
