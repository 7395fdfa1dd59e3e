//! Long polls that wait for messages.
//!
//! A receive that finds nothing takes a place in the line of its (topic, consumer group) and keeps
//! it until it ends, so that the one that waits longest is woken first. An arrival wakes one waiter
//! of each consumer group of the topic; a waiter that cannot use what arrived, or leaves some of it
//! behind, passes the wake-up on to the next in line ([`Place::pass_on`]).
//!
//! Invariant: between a waiter's look at the state and its wait no wake-up is lost. A waiter takes
//! its place (or clears its flag) first and looks afterwards; a wake-up sets the flag first.
//!
//! Clients that read lite topics stand in a line each: what arrives is for some of them only, and
//! apply says for whom.
//!
//! | Bound | Value | Beyond it |
//! |---|---|---|
//! | waiters of one topic and consumer group | 1024 | refused: "polling full" |
//! | waiters of the process | 100,000 | refused: "polling full" |

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use crate::state::{ClientHash, ConsumerGroupId, TopicId};

/// RocketMQ's `popPollingSize`.
pub const WAITERS_PER_KEY_MAX: usize = 1024;
/// RocketMQ's `maxPopPollingSize`.
pub const WAITERS_MAX: usize = 100_000;

/// No room for another long poll.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("polling full")]
pub struct PollingFull;

/// How many wait in the whole process, over all groups it carries.
#[derive(Debug, Default)]
pub struct WaiterCount(AtomicUsize);

impl WaiterCount {
    pub fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// The waiters of one broker group.
#[derive(Debug)]
pub struct Waiters {
    lines: Mutex<Lines>,
    count: Arc<WaiterCount>,
    /// Rises when a lite topic was taken from a client.
    taken: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Lines {
    /// Places are numbered in the order they were taken, and are woken in that order.
    next_place: u64,
    topics: BTreeMap<TopicId, BTreeMap<LineKey, Line>>,
}

/// A consumer group; with a client, one that reads lite topics.
type LineKey = (ConsumerGroupId, ClientHash);
type Line = BTreeMap<u64, Arc<Bell>>;

const NO_CLIENT: ClientHash = ClientHash(0);

#[derive(Debug, Default)]
struct Bell {
    rung: AtomicBool,
    notify: Notify,
}

impl Bell {
    /// False when it rang already and its waiter has not looked since.
    fn ring(&self) -> bool {
        let first = !self.rung.swap(true, Ordering::AcqRel);
        if first {
            self.notify.notify_one();
        }
        first
    }
}

impl Waiters {
    pub fn new(count: Arc<WaiterCount>) -> Self {
        Self { lines: Mutex::default(), count, taken: watch::Sender::default() }
    }

    /// Takes the last place of the line of `topic` and `consumer_group`.
    pub fn wait_in_line(
        self: &Arc<Self>,
        topic: TopicId,
        consumer_group: ConsumerGroupId,
    ) -> Result<Place, PollingFull> {
        self.wait_at(topic, (consumer_group, NO_CLIENT))
    }

    /// The same for a client that reads lite topics of `topic`.
    pub fn wait_for_lite(
        self: &Arc<Self>,
        topic: TopicId,
        consumer_group: ConsumerGroupId,
        client: ClientHash,
    ) -> Result<Place, PollingFull> {
        self.wait_at(topic, (consumer_group, client))
    }

    fn wait_at(self: &Arc<Self>, topic: TopicId, key: LineKey) -> Result<Place, PollingFull> {
        if self.count.0.fetch_add(1, Ordering::Relaxed) >= WAITERS_MAX {
            self.count.0.fetch_sub(1, Ordering::Relaxed);
            return Err(PollingFull);
        }
        let mut lines = self.lines.lock();
        let number = lines.next_place;
        let line = lines.topics.entry(topic).or_default().entry(key).or_default();
        if line.len() >= WAITERS_PER_KEY_MAX {
            drop(lines);
            self.count.0.fetch_sub(1, Ordering::Relaxed);
            return Err(PollingFull);
        }
        let bell = Arc::new(Bell::default());
        line.insert(number, Arc::clone(&bell));
        lines.next_place += 1;
        drop(lines);
        Ok(Place { waiters: Arc::clone(self), topic, key, number, bell })
    }

    /// Messages arrived: the first waiter of each consumer group may go.
    pub fn messages_arrived(&self, topic: TopicId) {
        let lines = self.lines.lock();
        if let Some(groups) = lines.topics.get(&topic) {
            for line in groups.values() {
                ring_first(line, 0);
            }
        }
    }

    /// Messages became visible to one consumer group again.
    pub fn leases_released(&self, consumer_group: ConsumerGroupId, topic: TopicId) {
        let lines = self.lines.lock();
        let Some(groups) = lines.topics.get(&topic) else { return };
        let of_group = (consumer_group, ClientHash(0))..=(consumer_group, ClientHash(u64::MAX));
        for line in groups.range(of_group).map(|(_, line)| line) {
            ring_first(line, 0);
        }
    }

    /// A lite topic the client reads has a message for it, or may have one.
    pub fn lite_readable(&self, topic: TopicId, consumer_group: ConsumerGroupId, client: ClientHash) {
        let lines = self.lines.lock();
        let line = lines.topics.get(&topic).and_then(|groups| groups.get(&(consumer_group, client)));
        if let Some(line) = line {
            ring_first(line, 0);
        }
    }

    pub fn lite_taken(&self) {
        self.taken.send_modify(|taken| *taken = taken.wrapping_add(1));
    }

    /// Changes value when a lite topic was taken from a client.
    pub fn taken(&self) -> watch::Receiver<u64> {
        self.taken.subscribe()
    }

    /// Everybody looks again: leadership is gone, or the process is leaving.
    pub fn wake_all(&self) {
        let lines = self.lines.lock();
        for line in lines.topics.values().flat_map(BTreeMap::values) {
            for bell in line.values() {
                bell.ring();
            }
        }
    }
}

/// A place in a line; given up when dropped.
#[derive(Debug)]
pub struct Place {
    waiters: Arc<Waiters>,
    topic: TopicId,
    key: LineKey,
    number: u64,
    bell: Arc<Bell>,
}

impl Place {
    /// Call before looking at the state: a wake-up that comes after this is kept.
    pub fn about_to_look(&self) {
        self.bell.rung.store(false, Ordering::Release);
    }

    pub async fn woken(&self) {
        self.bell.notify.notified().await;
    }

    /// Wakes the next in line: there may be something for it.
    pub fn pass_on(&self) {
        let lines = self.waiters.lines.lock();
        let line = lines.topics.get(&self.topic).and_then(|groups| groups.get(&self.key));
        if let Some(line) = line {
            ring_first(line, self.number + 1);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut lines = self.waiters.lines.lock();
        let Some(groups) = lines.topics.get_mut(&self.topic) else { return };
        if let Some(line) = groups.get_mut(&self.key) {
            line.remove(&self.number);
            // Its call was cancelled after it was woken and before it looked: somebody else must.
            if self.bell.rung.load(Ordering::Acquire) {
                ring_first(line, 0);
            }
            if line.is_empty() {
                groups.remove(&self.key);
            }
        }
        if groups.is_empty() {
            lines.topics.remove(&self.topic);
        }
        drop(lines);
        self.waiters.count.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn ring_first(line: &Line, from: u64) {
    for bell in line.range(from..).map(|(_, bell)| bell) {
        if bell.ring() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    const T: TopicId = TopicId(1);
    const U: TopicId = TopicId(2);
    const A: ConsumerGroupId = ConsumerGroupId(1);
    const B: ConsumerGroupId = ConsumerGroupId(2);

    fn waiters() -> Arc<Waiters> {
        Arc::new(Waiters::new(Arc::default()))
    }

    fn is_woken(place: &Place) -> bool {
        place.woken().now_or_never().is_some()
    }

    #[test]
    fn an_arrival_wakes_the_longest_waiter_of_each_consumer_group_and_nobody_else() {
        let waiters = waiters();
        let place = |topic, group| waiters.wait_in_line(topic, group).expect("room");
        let (a1, a2, b, other) = (place(T, A), place(T, A), place(T, B), place(U, A));
        waiters.messages_arrived(T);
        assert_eq!([&a1, &a2, &b, &other].map(is_woken), [true, false, true, false]);
        a1.pass_on();
        assert!(is_woken(&a2), "what the first left over goes to the second");
    }

    #[test]
    fn a_second_arrival_goes_to_the_second_waiter_while_the_first_has_not_looked_yet() {
        let waiters = waiters();
        let first = waiters.wait_in_line(T, A).expect("room");
        let second = waiters.wait_in_line(T, A).expect("room");
        waiters.messages_arrived(T);
        waiters.messages_arrived(T);
        assert!(is_woken(&first) && is_woken(&second));
    }

    #[test]
    fn a_wake_up_of_a_cancelled_call_goes_to_the_next_in_line() {
        let waiters = waiters();
        let first = waiters.wait_in_line(T, A).expect("room");
        let second = waiters.wait_in_line(T, A).expect("room");
        waiters.messages_arrived(T);
        drop(first);
        assert!(is_woken(&second));
    }

    #[test]
    fn an_arrival_between_the_look_and_the_wait_is_not_lost() {
        let waiters = waiters();
        let place = waiters.wait_in_line(T, A).expect("room");
        place.about_to_look();
        waiters.messages_arrived(T);
        assert!(is_woken(&place));
    }

    #[test]
    fn a_line_has_an_end_and_leaving_makes_room() {
        let count = Arc::new(WaiterCount::default());
        let waiters = Arc::new(Waiters::new(Arc::clone(&count)));
        let mut places: Vec<_> =
            (0..WAITERS_PER_KEY_MAX).map(|_| waiters.wait_in_line(T, A).expect("room")).collect();
        assert_eq!(waiters.wait_in_line(T, A).expect_err("full"), PollingFull);
        places.pop();
        drop(waiters.wait_in_line(T, A).expect("room again"));
        drop(places);
        assert_eq!(count.get(), 0);
        assert!(waiters.lines.lock().topics.is_empty(), "nothing is kept of lines nobody stands in");
    }
}
