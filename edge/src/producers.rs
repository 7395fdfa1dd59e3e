//! The producers whose telemetry streams end at this node, by topic: whom to ask for the outcome of
//! a transaction.
//!
//! A producer stands for every topic in its settings, and for every topic it sent a half message to
//! through this node. Any producer of a topic may answer for any other, so they are asked in turn.
//! Nothing here outlives a stream.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ledgermq_common::TopicName;
use ledgermq_proto::rocketmq::TelemetryCommand;
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tonic::Status;

/// Pairs of stream and topic that are remembered. Further ones are left out: their producers are
/// not asked here.
pub const PRODUCER_TOPICS_MAX: usize = 1_000_000;

pub(crate) type Commands = mpsc::Sender<Result<TelemetryCommand, Status>>;

#[derive(Debug, Default)]
pub(crate) struct Producers {
    known: Mutex<Known>,
    /// Rises when a topic gets its first producer or loses its last.
    topics_changed: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Known {
    next_stream: u64,
    streams: BTreeMap<u64, Stream>,
    by_client: BTreeMap<String, BTreeSet<u64>>,
    /// The streams of a topic, and the one asked last.
    by_topic: BTreeMap<TopicName, Asking>,
    pairs: usize,
}

#[derive(Debug)]
struct Stream {
    client_id: String,
    topics: BTreeSet<TopicName>,
    commands: Commands,
}

#[derive(Debug, Default)]
struct Asking {
    streams: BTreeSet<u64>,
    last: u64,
}

/// A producer's stream, for as long as this lives.
#[derive(Debug)]
pub(crate) struct Registered {
    producers: Arc<Producers>,
    stream: u64,
}

impl Producers {
    pub(crate) fn register(self: &Arc<Self>, client_id: &str, commands: Commands) -> Registered {
        let mut known = self.known.lock();
        known.next_stream += 1;
        let stream = known.next_stream;
        known.by_client.entry(client_id.to_owned()).or_default().insert(stream);
        let entry = Stream { client_id: client_id.to_owned(), topics: BTreeSet::new(), commands };
        known.streams.insert(stream, entry);
        Registered { producers: Arc::clone(self), stream }
    }

    /// The client sent a half message of `topic` through this node.
    pub(crate) fn sent_half(&self, client_id: &str, topic: &TopicName) {
        let streams: Vec<u64> = {
            let known = self.known.lock();
            known.by_client.get(client_id).into_iter().flatten().copied().collect()
        };
        for stream in streams {
            self.add(stream, topic);
        }
    }

    /// The topics that have a producer here.
    pub(crate) fn topics(&self) -> Vec<TopicName> {
        self.known.lock().by_topic.keys().cloned().collect()
    }

    pub(crate) fn topics_changed(&self) -> watch::Receiver<u64> {
        self.topics_changed.subscribe()
    }

    /// Hands the command to one producer of the topic, another one each time. Full streams are passed
    /// over; `false` if nobody takes it.
    pub(crate) fn ask(&self, topic: &TopicName, command: &TelemetryCommand) -> bool {
        let mut known = self.known.lock();
        let Known { streams, by_topic, .. } = &mut *known;
        let Some(asking) = by_topic.get_mut(topic) else { return false };
        let behind = asking.streams.range(asking.last + 1..);
        let in_turn: Vec<u64> = behind.chain(asking.streams.range(..=asking.last)).copied().collect();
        for number in in_turn {
            let taken = streams
                .get(&number)
                .is_some_and(|stream| stream.commands.try_send(Ok(command.clone())).is_ok());
            if taken {
                asking.last = number;
                return true;
            }
        }
        false
    }

    fn add(&self, stream: u64, topic: &TopicName) {
        let mut known = self.known.lock();
        if known.pairs >= PRODUCER_TOPICS_MAX {
            return;
        }
        let Some(entry) = known.streams.get_mut(&stream) else { return };
        if !entry.topics.insert(topic.clone()) {
            return;
        }
        known.pairs += 1;
        let asking = known.by_topic.entry(topic.clone()).or_default();
        let is_first = asking.streams.is_empty();
        asking.streams.insert(stream);
        drop(known);
        if is_first {
            self.topics_changed.send_modify(|changes| *changes = changes.wrapping_add(1));
        }
    }

    fn remove(&self, stream: u64) {
        let mut known = self.known.lock();
        let Some(entry) = known.streams.remove(&stream) else { return };
        if let Some(of_client) = known.by_client.get_mut(&entry.client_id) {
            of_client.remove(&stream);
            if of_client.is_empty() {
                known.by_client.remove(&entry.client_id);
            }
        }
        let mut is_last = false;
        known.pairs -= entry.topics.len();
        for topic in entry.topics {
            let Some(asking) = known.by_topic.get_mut(&topic) else { continue };
            asking.streams.remove(&stream);
            if asking.streams.is_empty() {
                known.by_topic.remove(&topic);
                is_last = true;
            }
        }
        drop(known);
        if is_last {
            self.topics_changed.send_modify(|changes| *changes = changes.wrapping_add(1));
        }
    }
}

impl Registered {
    pub(crate) fn produces(&self, topic: &TopicName) {
        self.producers.add(self.stream, topic);
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.producers.remove(self.stream);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topic(name: &str) -> TopicName {
        TopicName::parse(name).expect("a topic name")
    }

    #[tokio::test]
    async fn producers_of_a_topic_are_asked_in_turn_and_those_that_left_or_do_not_read_are_passed_over() {
        let producers = Arc::new(Producers::default());
        let orders = topic("orders");
        let command = TelemetryCommand::default();
        assert!(!producers.ask(&orders, &command), "nobody is there");

        let (first_commands, mut first) = mpsc::channel(8);
        let (second_commands, mut second) = mpsc::channel(8);
        let (stuck_commands, mut stuck) = mpsc::channel(1);
        let one = producers.register("a", first_commands);
        let two = producers.register("b", second_commands);
        let three = producers.register("c", stuck_commands);
        for registered in [&one, &two, &three] {
            registered.produces(&orders);
        }
        for _ in 0..6 {
            assert!(producers.ask(&orders, &command));
        }
        let count =
            |commands: &mut mpsc::Receiver<_>| std::iter::from_fn(|| commands.try_recv().ok()).count();
        assert_eq!(count(&mut stuck), 1, "its queue takes one");
        let (by_first, by_second) = (count(&mut first), count(&mut second));
        assert_eq!(by_first + by_second, 5);
        assert!(by_first >= 2 && by_second >= 2, "{by_first} and {by_second}");

        drop(one);
        drop(three);
        assert!(producers.ask(&orders, &command));
        assert_eq!((count(&mut first), count(&mut second)), (0, 1));
        drop(two);
        assert!(!producers.ask(&orders, &command));
        assert_eq!(producers.topics(), []);
        assert_eq!(producers.known.lock().pairs, 0);
    }

    #[tokio::test]
    async fn a_producer_that_named_no_topic_is_known_by_the_half_it_sent() {
        let producers = Arc::new(Producers::default());
        let (commands, mut asked) = mpsc::channel(8);
        let mut changed = producers.topics_changed();
        let _registered = producers.register("a", commands);
        producers.sent_half("a", &topic("orders"));
        producers.sent_half("stranger", &topic("others"));
        assert!(changed.has_changed().expect("open"));
        changed.mark_unchanged();
        producers.sent_half("a", &topic("orders"));
        assert!(!changed.has_changed().expect("open"), "it was known already");
        assert_eq!(producers.topics(), [topic("orders")]);
        assert!(producers.ask(&topic("orders"), &TelemetryCommand::default()));
        assert!(asked.try_recv().is_ok());
    }
}
