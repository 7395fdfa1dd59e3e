//! What happens in a run: all events in one order, kept or written as they come, and the figures that
//! say when everything that must arrive has arrived.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::BufWriter;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use ledgermq_checkers::compact::Writer;
use ledgermq_checkers::history::{Event, Kind, Operation};
use ledgermq_checkers::{FaultMark, HistoryError};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::client_processes;
use super::transactions::commits;

type CompactFile = Writer<BufWriter<File>>;

/// Where events go.
enum Events {
    Kept(Vec<Event>),
    /// To whoever started this process, line by line.
    Printed,
    /// As a compact history; the first error ends it.
    Written {
        file: Box<CompactFile>,
        error: Option<HistoryError>,
    },
}

pub struct Recorder {
    /// On the machine's monotonic clock, so that other processes can go by it.
    began_ns: u64,
    /// Events say which topic they are about.
    names_topics: bool,
    events: Mutex<Events>,
    next_process: AtomicU32,
    next_number: AtomicU64,
    tally: Mutex<Tally>,
    last_new_delivery: Mutex<Instant>,
    proofs: Mutex<Vec<String>>,
    pub unknown: AtomicU64,
    /// Of the unknown: those whose producer was told that the cluster is busy.
    pub throttled: AtomicU64,
    pub failed: AtomicU64,
}

impl Recorder {
    pub fn new(names_topics: bool) -> Self {
        let events = Events::Kept(Vec::new());
        Self { names_topics, ..Self::beginning(monotonic_ns(), events, 0, 1) }
    }

    /// Keeps nothing in memory but the tally.
    pub fn writing(file: Writer<BufWriter<File>>) -> Self {
        let events = Events::Written { file: Box::new(file), error: None };
        Self::beginning(monotonic_ns(), events, 0, 1)
    }

    /// For a client that is a process of its own.
    pub fn printing(began_ns: u64, first_process: u32, first_number: u64) -> Self {
        Self::beginning(began_ns, Events::Printed, first_process, first_number)
    }

    fn beginning(began_ns: u64, events: Events, first_process: u32, first_number: u64) -> Self {
        Self {
            began_ns,
            names_topics: false,
            events: Mutex::new(events),
            next_process: AtomicU32::new(first_process),
            next_number: AtomicU64::new(first_number),
            tally: Mutex::default(),
            last_new_delivery: Mutex::new(Instant::now()),
            proofs: Mutex::default(),
            unknown: AtomicU64::new(0),
            throttled: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        }
    }

    /// On the clock that logs are stamped with.
    pub fn began_unix_ms(&self) -> f64 {
        let unix = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
        let since = monotonic_ns().saturating_sub(self.began_ns);
        unix.as_secs_f64() * 1000.0 - since as f64 / 1e6
    }

    pub fn began_ns(&self) -> u64 {
        self.began_ns
    }

    /// What an event says of its topic.
    pub fn topic_named(&self, topic: &str) -> Option<String> {
        self.names_topics.then(|| topic.to_owned())
    }

    /// Numbers of processes and of messages that only the caller will use: the first of each.
    pub fn reserve(&self, processes: u32, numbers: u64) -> (u32, u64) {
        let process = self.next_process.fetch_add(processes, Ordering::Relaxed);
        (process, self.next_number.fetch_add(numbers, Ordering::Relaxed))
    }

    pub fn process(&self) -> u32 {
        self.next_process.fetch_add(1, Ordering::Relaxed)
    }

    /// What is done with a message goes by its number, so topics that are named count by themselves:
    /// senders that take turns would each get every fifth number.
    pub fn next_number(&self, topic: &str) -> u64 {
        if !self.names_topics {
            return self.next_number.fetch_add(1, Ordering::Relaxed);
        }
        let mut tally = self.tally.lock();
        let Tally { topics_numbered, .. } = *tally;
        let of_topic = tally.of(topic);
        let is_first = of_topic.next_number.is_none();
        let next = of_topic.next_number.get_or_insert((topics_numbered + 1) * NUMBERS_PER_TOPIC);
        *next += 1;
        let number = *next;
        tally.topics_numbered += u64::from(is_first);
        number
    }

    /// The first of `count` numbers, where there is one topic.
    pub fn next_numbers(&self, count: u32) -> u64 {
        self.next_number.fetch_add(u64::from(count), Ordering::Relaxed)
    }

    /// Everything that must arrive in the topic must arrive at this consumer group.
    pub fn awaits(&self, topic: &str, group: &str) {
        self.tally.lock().of(topic).group(group);
    }

    /// The consumers of its topic wait for it at the end.
    pub fn must_arrive(&self, topic: &str, number: u64) {
        self.must_arrive_all(topic, std::iter::once(number));
    }

    pub fn must_arrive_all(&self, topic: &str, numbers: impl Iterator<Item = u64>) {
        let mut tally = self.tally.lock();
        let added = tally.of(topic).must_arrive(numbers);
        tally.acknowledged += added;
    }

    pub fn delivered_now(&self, topic: &str, group: &str, numbers: impl Iterator<Item = u64>) {
        let mut tally = self.tally.lock();
        let fresh = tally.of(topic).delivered(group, numbers);
        tally.delivered += fresh;
        if fresh > 0 {
            *self.last_new_delivery.lock() = Instant::now();
        }
    }

    /// The stamp is taken under the lock, so the file is in the order of its stamps.
    pub fn record(&self, process: u32, kind: Kind, op: Operation) {
        let mut events = self.events.lock();
        let at_ns = monotonic_ns().saturating_sub(self.began_ns);
        let event = Event { at_ns, process, kind, op };
        match &mut *events {
            Events::Kept(kept) => kept.push(event),
            Events::Printed => client_processes::print(&event),
            Events::Written { file, error } => {
                if error.is_none() {
                    *error = file.write(&event).err();
                }
            }
        }
    }

    /// An event that another process recorded, a client of this topic.
    pub fn merge(&self, topic: &str, event: Event) {
        match (event.kind, &event.op) {
            // A half that is rolled back never does.
            (Kind::Ok, Operation::Send(sent)) if sent.half && !commits(sent.number) => {}
            (Kind::Ok, Operation::Send(sent)) => self.must_arrive(topic, sent.number),
            (Kind::Ok, Operation::SendBatch(batch)) => self.must_arrive_all(topic, batch.numbers()),
            (Kind::Ok, Operation::Receive(received)) => {
                let numbers = received.messages.iter().map(|delivery| delivery.number);
                self.delivered_now(topic, &received.group, numbers);
            }
            (Kind::Info, Operation::Send(_) | Operation::SendBatch(_)) => {
                self.unknown.fetch_add(1, Ordering::Relaxed);
            }
            (Kind::Fail, Operation::Send(_) | Operation::SendBatch(_)) => {
                self.failed.fetch_add(1, Ordering::Relaxed);
            }
            _ => {}
        }
        if let Events::Kept(kept) = &mut *self.events.lock() {
            kept.push(event);
        }
    }

    /// The time an event that is recorded now would have.
    pub fn now_ns(&self) -> u64 {
        monotonic_ns().saturating_sub(self.began_ns)
    }

    /// Keeps what showed that a fault happened.
    pub fn prove(&self, proof: String) {
        tracing::info!(%proof, "fault");
        self.proofs.lock().push(proof);
    }

    pub fn proofs(&self) -> Vec<String> {
        self.proofs.lock().clone()
    }

    /// In the order of their stamps: events of other processes come a little later than they are.
    /// Empty where they were written; then the file is whole on return.
    pub fn take(&self) -> Result<Vec<Event>, HistoryError> {
        match std::mem::replace(&mut *self.events.lock(), Events::Kept(Vec::new())) {
            Events::Kept(mut events) => {
                events.sort_by_key(|event| event.at_ns);
                Ok(events)
            }
            Events::Printed => Ok(Vec::new()),
            Events::Written { error: Some(error), .. } => Err(error),
            Events::Written { file, error: None } => file.finish().map(|_| Vec::new()),
        }
    }

    pub fn acknowledged(&self) -> u64 {
        self.tally.lock().acknowledged
    }

    pub fn delivered(&self) -> u64 {
        self.tally.lock().delivered
    }

    /// Acknowledged and not delivered yet to all that wait for it.
    pub fn open(&self) -> u64 {
        self.tally.lock().topics.values().map(ByTopic::open).sum()
    }

    pub fn quiet_for(&self) -> Duration {
        self.last_new_delivery.lock().elapsed()
    }
}

/// Events read from a file instead of kept, and what of them is not about messages.
#[derive(Default)]
pub struct Marks {
    pub faults: Vec<FaultMark>,
    pub ends_ns: u64,
}

impl Marks {
    pub fn event(&mut self, event: &Event) {
        self.ends_ns = event.at_ns;
        self.faults.extend(FaultMark::of(event));
    }
}

#[derive(Default)]
struct Tally {
    topics: BTreeMap<String, ByTopic>,
    /// Of which a message has a number.
    topics_numbered: u64,
    acknowledged: u64,
    delivered: u64,
}

impl Tally {
    fn of(&mut self, topic: &str) -> &mut ByTopic {
        if !self.topics.contains_key(topic) {
            self.topics.insert(topic.to_owned(), ByTopic::default());
        }
        self.topics.get_mut(topic).expect("made where it was missing")
    }
}

/// A round number, for the last digit counts.
const NUMBERS_PER_TOPIC: u64 = 1_000_000_000_000;

#[derive(Default)]
struct ByTopic {
    next_number: Option<u64>,
    must_arrive: Numbers,
    groups: BTreeMap<String, ByGroup>,
}

#[derive(Default)]
struct ByGroup {
    delivered: Numbers,
    /// Of those that must arrive.
    missing: u64,
}

impl ByTopic {
    fn group(&mut self, name: &str) -> &mut ByGroup {
        if !self.groups.contains_key(name) {
            let missing = self.must_arrive.count;
            self.groups.insert(name.to_owned(), ByGroup { missing, ..ByGroup::default() });
        }
        self.groups.get_mut(name).expect("made where it was missing")
    }

    fn must_arrive(&mut self, numbers: impl Iterator<Item = u64>) -> u64 {
        let mut added = 0;
        for number in numbers {
            if !self.must_arrive.insert(number) {
                continue;
            }
            added += 1;
            for group in self.groups.values_mut() {
                group.missing += u64::from(!group.delivered.contains(number));
            }
        }
        added
    }

    fn delivered(&mut self, group: &str, numbers: impl Iterator<Item = u64>) -> u64 {
        self.group(group);
        let Self { must_arrive, groups, .. } = self;
        let Some(group) = groups.get_mut(group) else { return 0 };
        let mut fresh = 0;
        for number in numbers.filter(|number| group.delivered.insert(*number)) {
            fresh += 1;
            group.missing -= u64::from(must_arrive.contains(number));
        }
        fresh
    }

    fn open(&self) -> u64 {
        self.groups.values().map(|group| group.missing).max().unwrap_or(self.must_arrive.count)
    }
}

const NUMBERS_PER_CHUNK: u64 = 64 * 1024;

/// A set of numbers that are mostly given one after the other: a bit for each.
#[derive(Default)]
struct Numbers {
    chunks: HashMap<u64, Box<[u64]>>,
    count: u64,
}

impl Numbers {
    fn insert(&mut self, number: u64) -> bool {
        let words = usize::try_from(NUMBERS_PER_CHUNK / 64).unwrap_or(0);
        let chunk = self.chunks.entry(number / NUMBERS_PER_CHUNK);
        let chunk = chunk.or_insert_with(|| vec![0; words].into_boxed_slice());
        let Some(word) = chunk.get_mut(word_of(number)) else { return false };
        let is_new = *word >> (number % 64) & 1 == 0;
        *word |= 1 << (number % 64);
        self.count += u64::from(is_new);
        is_new
    }

    fn contains(&self, number: u64) -> bool {
        let chunk = self.chunks.get(&(number / NUMBERS_PER_CHUNK));
        let word = chunk.and_then(|chunk| chunk.get(word_of(number)));
        word.is_some_and(|word| word >> (number % 64) & 1 == 1)
    }
}

fn word_of(number: u64) -> usize {
    usize::try_from(number % NUMBERS_PER_CHUNK / 64).unwrap_or(0)
}

fn monotonic_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a timespec of this frame.
    let answer = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    assert_eq!(answer, 0, "every system has this clock");
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_waits_until_every_group_of_a_topic_has_all_of_it() {
        let recorder = Recorder::new(true);
        recorder.awaits("a", "one");
        recorder.awaits("a", "two");
        recorder.must_arrive_all("a", 1..=3);
        recorder.must_arrive("a", 3);
        recorder.must_arrive("b", 9);
        assert_eq!((recorder.open(), recorder.acknowledged()), (4, 4));
        recorder.delivered_now("a", "one", [1, 2, 3, 3, 77].into_iter());
        // Delivered before its send was answered.
        recorder.delivered_now("a", "two", [1, 2, 4].into_iter());
        recorder.must_arrive("a", 4);
        assert_eq!(recorder.open(), 2, "3 is missing at two, 4 at one, and nobody reads b");
        recorder.delivered_now("a", "one", std::iter::once(4));
        recorder.delivered_now("b", "late", std::iter::once(9));
        recorder.delivered_now("a", "two", std::iter::once(3));
        assert_eq!((recorder.open(), recorder.acknowledged(), recorder.delivered()), (0, 5, 10));
    }

    #[test]
    fn topics_that_take_turns_get_all_their_digits_and_no_number_twice() {
        let recorder = Recorder::new(true);
        recorder.awaits("a", "g");
        let numbers: Vec<u64> =
            (0..20).flat_map(|_| ["a", "b", "c"]).map(|topic| recorder.next_number(topic)).collect();
        let all: std::collections::BTreeSet<u64> = numbers.iter().copied().collect();
        assert_eq!(all.len(), numbers.len());
        for topic in 0..3 {
            let of_topic = numbers.iter().skip(topic).step_by(3);
            let digits: std::collections::BTreeSet<u64> = of_topic.map(|number| number % 10).collect();
            assert_eq!(digits.len(), 10);
        }
    }

    #[test]
    fn numbers_far_apart_are_told_apart() {
        let mut numbers = Numbers::default();
        let far = [0, 1, 63, 64, NUMBERS_PER_CHUNK - 1, NUMBERS_PER_CHUNK, 1 << 40, u64::MAX];
        assert!(far.into_iter().all(|number| numbers.insert(number)));
        assert!(far.into_iter().all(|number| numbers.contains(number) && !numbers.insert(number)));
        assert!([2, 62, NUMBERS_PER_CHUNK + 1, (1 << 40) + 64].into_iter().all(|n| !numbers.contains(n)));
        assert_eq!(numbers.count, far.len() as u64);
    }
}
