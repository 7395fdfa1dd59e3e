//! The sends and deliveries of a history, packed: what most checkers look at. Names are kept once, so
//! that a message costs some two hundred bytes however long they are, and tens of millions fit.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::num::NonZeroU32;

use crate::history::{Event, HistoryError, Kind, NEMESIS, Operation, Sending, Span};

/// Not known, or not yet.
const NONE: u64 = u64::MAX;

/// A queue of a broker group, by its place in the list of names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Queue(NonZeroU32);

/// A message group, likewise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageGroup(NonZeroU32);

/// Where a message is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    pub queue: Queue,
    pub offset: u64,
}

#[derive(Debug, Clone, Copy)]
pub struct Sent {
    pub number: u64,
    pub process: u32,
    pub kind: Kind,
    /// A half message.
    pub half: bool,
    pub invoked_ns: u64,
    completed_ns: u64,
    due_ns: u64,
    offset: u64,
    pub queue: Option<Queue>,
    pub message_group: Option<MessageGroup>,
}

impl Sent {
    pub fn completed_ns(&self) -> Option<u64> {
        (self.completed_ns != NONE).then_some(self.completed_ns)
    }

    pub fn due_ns(&self) -> Option<u64> {
        (self.due_ns != NONE).then_some(self.due_ns)
    }

    pub fn offset(&self) -> Option<u64> {
        (self.offset != NONE).then_some(self.offset)
    }

    /// Where the answer says it lies, if it says all of it.
    pub fn place(&self) -> Option<Place> {
        Some(Place { queue: self.queue?, offset: self.offset()? })
    }

    /// Its place is given later, when it is committed or fires.
    pub fn is_placed_later(&self) -> bool {
        self.half || self.due_ns != NONE
    }
}

#[derive(Debug, Clone, Copy)]
pub struct Delivered {
    pub number: u64,
    pub process: u32,
    /// Which answer it came in.
    pub batch: u32,
    pub invoked_ns: u64,
    pub at_ns: u64,
    pub lease_ns: u64,
    /// `None` where the client does not tell.
    pub place: Option<Place>,
    pub attempt: u32,
    /// Of its message id.
    pub id_hash: u64,
}

#[derive(Debug, Clone, Copy)]
struct AckTimes {
    /// When one was first asked for, whatever came of it.
    asked_ns: u64,
    /// When the first that succeeded was answered.
    answered_ns: u64,
}

/// What one consumer group received.
#[derive(Debug, Default)]
pub struct Received {
    /// In the order of the answers.
    pub deliveries: Vec<Delivered>,
    acks: HashMap<u64, AckTimes>,
    has_received: bool,
}

impl Received {
    /// When an ack was first asked for, unless it was refused.
    pub fn ack_asked_ns(&self, number: u64) -> Option<u64> {
        self.acks.get(&number).map(|times| times.asked_ns)
    }

    /// When an ack that succeeded was answered, the first.
    pub fn acked_ns(&self, number: u64) -> Option<u64> {
        self.acks.get(&number).map(|times| times.answered_ns).filter(|at| *at != NONE)
    }
}

#[derive(Debug, Default)]
pub struct Messages {
    /// By number.
    sends: Vec<Sent>,
    groups: BTreeMap<String, Received>,
    queues: Names<(String, u32)>,
    message_groups: Names<String>,
}

#[derive(Debug)]
struct Names<T> {
    known: HashMap<T, NonZeroU32>,
    names: Vec<T>,
}

impl<T> Default for Names<T> {
    fn default() -> Self {
        Self { known: HashMap::new(), names: Vec::new() }
    }
}

impl<T: Clone + Eq + std::hash::Hash> Names<T> {
    fn number(&mut self, name: &T) -> NonZeroU32 {
        if let Some(known) = self.known.get(name) {
            return *known;
        }
        self.names.push(name.clone());
        let number = u32::try_from(self.names.len()).ok().and_then(NonZeroU32::new);
        let number = number.expect("fewer than 2^32 names fit into memory");
        self.known.insert(name.clone(), number);
        number
    }

    fn name(&self, number: NonZeroU32) -> Option<&T> {
        self.names.get(number.get() as usize - 1)
    }
}

impl Messages {
    pub fn of(spans: &[Span<'_>]) -> Self {
        let mut gather = Gather::default();
        for span in spans {
            gather.take(
                Times {
                    process: span.process,
                    invoked_ns: span.invoked_ns,
                    completed_ns: span.completed_ns,
                    kind: span.kind,
                },
                span.asked,
                span.answered,
            );
        }
        gather.finish()
    }

    /// By number.
    pub fn sends(&self) -> &[Sent] {
        &self.sends
    }

    pub fn sent(&self, number: u64) -> Option<&Sent> {
        // Numbers are mostly given one after the other.
        let first = self.sends.first()?.number;
        let guess = usize::try_from(number.checked_sub(first)?).ok().and_then(|at| self.sends.get(at));
        if let Some(guess) = guess.filter(|guess| guess.number == number) {
            return Some(guess);
        }
        let at = self.sends.binary_search_by_key(&number, |sent| sent.number).ok()?;
        self.sends.get(at)
    }

    /// The consumer groups that were answered, by name.
    pub fn groups(&self) -> impl Iterator<Item = (&str, &Received)> {
        self.groups.iter().filter(|(_, group)| group.has_received).map(|(name, group)| (name.as_str(), group))
    }

    pub fn group(&self, name: &str) -> Option<&Received> {
        self.groups.get(name)
    }

    /// Of all consumer groups.
    pub fn deliveries(&self) -> impl Iterator<Item = &Delivered> {
        self.groups.values().flat_map(|group| &group.deliveries)
    }

    /// Read by offset, without leases: such a reader sees a queue in order.
    pub fn is_unleased(&self) -> bool {
        self.deliveries().all(|delivered| delivered.lease_ns == 0)
    }

    pub fn is_unread(&self) -> bool {
        !self.groups.values().any(|group| group.has_received)
    }

    pub fn count_acknowledged(&self) -> usize {
        self.sends.iter().filter(|sent| sent.kind == Kind::Ok).count()
    }

    pub fn count_deliveries(&self) -> usize {
        self.groups.values().map(|group| group.deliveries.len()).sum()
    }

    /// For a person.
    pub fn queue_name(&self, queue: Queue) -> String {
        self.queues.name(queue.0).map_or_else(String::new, |(group, id)| format!("{group} queue {id}"))
    }

    pub fn place_name(&self, place: Place) -> String {
        format!("{} offset {}", self.queue_name(place.queue), place.offset)
    }

    pub fn message_group_name(&self, group: MessageGroup) -> &str {
        self.message_groups.name(group.0).map_or("", String::as_str)
    }
}

/// When an operation was asked for and what came of it.
struct Times {
    process: u32,
    invoked_ns: u64,
    completed_ns: Option<u64>,
    kind: Kind,
}

/// Takes events one by one and keeps of them what [`Messages`] has.
#[derive(Default)]
pub struct Gather {
    messages: Messages,
    open: HashMap<u32, (u64, Operation)>,
    hasher: RandomState,
    batch: u32,
    index: usize,
    now_ns: u64,
}

impl Gather {
    /// Events come in the order of their stamps.
    pub fn event(&mut self, event: Event) -> Result<(), HistoryError> {
        let Event { at_ns, process, kind, op } = event;
        let index = self.index;
        let malformed = |fault| Err(HistoryError::Malformed { index, process, fault });
        self.index += 1;
        if at_ns < self.now_ns {
            return malformed("goes back in time");
        }
        self.now_ns = at_ns;
        if process == NEMESIS {
            return Ok(());
        }
        match (kind, self.open.remove(&process)) {
            (Kind::Invoke, None) => {
                self.open.insert(process, (at_ns, op));
                Ok(())
            }
            (Kind::Invoke, Some(_)) => malformed("asks while it waits for an answer"),
            (_, None) => malformed("gets an answer without having asked"),
            (kind, Some((invoked_ns, asked))) => {
                let completed_ns = (kind != Kind::Info).then_some(at_ns);
                self.take(Times { process, invoked_ns, completed_ns, kind }, &asked, &op);
                Ok(())
            }
        }
    }

    pub fn finish(mut self) -> Messages {
        let open: Vec<_> = self.open.drain().collect();
        for (process, (invoked_ns, asked)) in open {
            self.take(Times { process, invoked_ns, completed_ns: None, kind: Kind::Info }, &asked, &asked);
        }
        let mut messages = self.messages;
        messages.sends.sort_by_key(|sent| (sent.number, sent.invoked_ns));
        messages.sends.dedup_by_key(|sent| sent.number);
        for group in messages.groups.values_mut() {
            group.deliveries.sort_by_key(|delivered| delivered.at_ns);
        }
        messages
    }

    fn take(&mut self, times: Times, asked: &Operation, answered: &Operation) {
        match (asked, answered) {
            (Operation::Send(asked), Operation::Send(answer)) => self.sent(&times, asked.number, answer),
            (Operation::SendBatch(asked), Operation::SendBatch(answer)) => {
                for (position, number) in asked.numbers().enumerate() {
                    let offset = answer.offsets.get(position).copied();
                    self.sent(&times, number, &Sending { number, offset, ..Sending::default() });
                }
            }
            (_, Operation::Receive(answer)) if times.kind == Kind::Ok => {
                self.batch = self.batch.wrapping_add(1);
                let group = group_of(&mut self.messages.groups, &answer.group);
                group.has_received = true;
                for delivery in &answer.messages {
                    let place = (!delivery.queue.0.is_empty()).then(|| Place {
                        queue: Queue(self.messages.queues.number(&delivery.queue)),
                        offset: delivery.offset,
                    });
                    let mut id = self.hasher.build_hasher();
                    id.write(delivery.id.as_bytes());
                    group.deliveries.push(Delivered {
                        number: delivery.number,
                        process: times.process,
                        batch: self.batch,
                        invoked_ns: times.invoked_ns,
                        at_ns: times.completed_ns.unwrap_or(NONE),
                        lease_ns: answer.lease_ns,
                        place,
                        attempt: delivery.attempt,
                        id_hash: id.finish(),
                    });
                }
            }
            (Operation::Ack { group, numbers }, Operation::Ack { numbers: acked, .. })
                if times.kind != Kind::Fail =>
            {
                let group = group_of(&mut self.messages.groups, group);
                for number in numbers {
                    let of = AckTimes { asked_ns: times.invoked_ns, answered_ns: NONE };
                    let known = group.acks.entry(*number).or_insert(of);
                    known.asked_ns = known.asked_ns.min(times.invoked_ns);
                }
                let Some(at) = times.completed_ns else { return };
                for number in acked {
                    if let Some(known) = group.acks.get_mut(number) {
                        known.answered_ns = known.answered_ns.min(at);
                    }
                }
            }
            _ => {}
        }
    }

    fn sent(&mut self, times: &Times, number: u64, answer: &Sending) {
        let queue = answer.queue.as_ref().map(|queue| Queue(self.messages.queues.number(queue)));
        let message_group = answer
            .message_group
            .as_ref()
            .map(|group| MessageGroup(self.messages.message_groups.number(group)));
        self.messages.sends.push(Sent {
            number,
            process: times.process,
            kind: times.kind,
            half: answer.half,
            invoked_ns: times.invoked_ns,
            completed_ns: times.completed_ns.unwrap_or(NONE),
            due_ns: answer.due_ns.unwrap_or(NONE),
            offset: answer.offset.unwrap_or(NONE),
            queue,
            message_group,
        });
    }
}

fn group_of<'a>(groups: &'a mut BTreeMap<String, Received>, name: &str) -> &'a mut Received {
    if !groups.contains_key(name) {
        groups.insert(name.to_owned(), Received::default());
    }
    groups.get_mut(name).expect("made where it was missing")
}
