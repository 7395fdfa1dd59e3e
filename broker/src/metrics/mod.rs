//! Figures of a broker process, kept where the work is done and read by `/metrics`.
//!
//! The hot path pays one read lock of a small map and a few relaxed additions per request, nothing
//! per label. Names and label sets are those of RocketMQ 5 where RocketMQ has the figure.

mod exposition;
mod histogram;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::RwLock;

pub use exposition::{Exposition, Kind};
pub use histogram::Histogram;

/// Distinct topics, and pairs of topic and consumer group, that get a series of their own; the
/// names come from clients, so their number must have an end. The rest is counted as `_other`.
const SERIES_MAX: usize = 20_000;
const OTHER: &str = "_other";

const MESSAGE_SIZE_BYTES: &[u64] = &[1 << 10, 4 << 10, 512 << 10, 1 << 20, 2 << 20, 4 << 20];
const RPC_LATENCY_MS: &[u64] = &[1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 3_000, 10_000, 20_000];

#[derive(Debug, Default)]
pub struct Metrics {
    topics: Series<String, TopicIn>,
    consumers: Series<(String, String), TopicOut>,
    transactions: Series<String, Ends>,
    dead_letters: Series<(String, String), AtomicU64>,
    rpcs: Series<RpcKey, Rpc>,
}

#[derive(Debug)]
struct TopicIn {
    messages: AtomicU64,
    bytes: AtomicU64,
    size_bytes: Histogram,
}

#[derive(Debug, Default)]
struct TopicOut {
    messages: AtomicU64,
    bytes: AtomicU64,
}

/// Ends of transactions.
#[derive(Debug, Default)]
struct Ends {
    committed: AtomicU64,
    rolled_back: AtomicU64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct RpcKey {
    request: &'static str,
    result: &'static str,
}

#[derive(Debug)]
struct Rpc {
    latency_ms: Histogram,
}

impl Default for TopicIn {
    fn default() -> Self {
        Self {
            messages: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            size_bytes: Histogram::new(MESSAGE_SIZE_BYTES),
        }
    }
}

impl Default for Rpc {
    fn default() -> Self {
        Self { latency_ms: Histogram::new(RPC_LATENCY_MS) }
    }
}

impl Metrics {
    /// Messages of `topic` were stored; one body size each.
    pub fn messages_in(&self, topic: &str, body_bytes: impl Iterator<Item = usize>) {
        let series = self.topics.get(topic, || topic.to_owned(), || OTHER.to_owned());
        for bytes in body_bytes {
            series.messages.fetch_add(1, Ordering::Relaxed);
            series.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
            series.size_bytes.record(bytes as u64);
        }
    }

    pub fn messages_out(&self, topic: &str, consumer_group: &str, messages: usize, bytes: usize) {
        let key = (topic.to_owned(), consumer_group.to_owned());
        let series = self.consumers.get(&key, || key.clone(), || (OTHER.to_owned(), OTHER.to_owned()));
        series.messages.fetch_add(messages as u64, Ordering::Relaxed);
        series.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub fn transaction_ended(&self, topic: &str, committed: bool) {
        let ends = self.transactions.get(topic, || topic.to_owned(), || OTHER.to_owned());
        let count = if committed { &ends.committed } else { &ends.rolled_back };
        count.fetch_add(1, Ordering::Relaxed);
    }

    /// Messages of `topic` were moved to the dead letters of a consumer group.
    pub fn dead_letters(&self, topic: &str, consumer_group: &str, messages: usize) {
        let key = (topic.to_owned(), consumer_group.to_owned());
        let series = self.dead_letters.get(&key, || key.clone(), || (OTHER.to_owned(), OTHER.to_owned()));
        series.fetch_add(messages as u64, Ordering::Relaxed);
    }

    pub fn rpc(&self, request: &'static str, result: &'static str, took: Duration) {
        let key = RpcKey { request, result };
        let series = self.rpcs.get(&key, || key, || RpcKey { request: OTHER, result });
        series.latency_ms.record(u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
    }

    /// Everything kept here, in the text format of Prometheus.
    pub fn expose(&self, out: &mut Exposition) {
        out.family("rocketmq_messages_in_total", Kind::Counter, "Messages stored.");
        for (topic, series) in self.topics.all() {
            out.sample(&topic_labels(&topic), series.messages.load(Ordering::Relaxed));
        }
        out.family("rocketmq_throughput_in_total", Kind::Counter, "Bytes of message bodies stored.");
        for (topic, series) in self.topics.all() {
            out.sample(&topic_labels(&topic), series.bytes.load(Ordering::Relaxed));
        }
        out.family("rocketmq_message_size", Kind::Histogram, "Size of message bodies in bytes.");
        for (topic, series) in self.topics.all() {
            out.histogram(&topic_labels(&topic), &series.size_bytes);
        }
        out.family("rocketmq_messages_out_total", Kind::Counter, "Messages delivered.");
        for ((topic, group), series) in self.consumers.all() {
            out.sample(&consumer_labels(&topic, &group), series.messages.load(Ordering::Relaxed));
        }
        out.family("rocketmq_throughput_out_total", Kind::Counter, "Bytes of message bodies delivered.");
        for ((topic, group), series) in self.consumers.all() {
            out.sample(&consumer_labels(&topic, &group), series.bytes.load(Ordering::Relaxed));
        }
        out.family("rocketmq_commit_messages_total", Kind::Counter, "Transactions committed.");
        for (topic, ends) in self.transactions.all() {
            out.sample(&[("topic", topic.as_str())], ends.committed.load(Ordering::Relaxed));
        }
        out.family("rocketmq_rollback_messages_total", Kind::Counter, "Transactions rolled back.");
        for (topic, ends) in self.transactions.all() {
            out.sample(&[("topic", topic.as_str())], ends.rolled_back.load(Ordering::Relaxed));
        }
        out.family("rocketmq_send_to_dlq_messages_total", Kind::Counter, "Messages moved to dead letters.");
        for ((topic, group), messages) in self.dead_letters.all() {
            out.sample(&consumer_labels(&topic, &group), messages.load(Ordering::Relaxed));
        }
        out.family("rocketmq_rpc_latency", Kind::Histogram, "Milliseconds at the leader of a group.");
        for (key, series) in self.rpcs.all() {
            let is_polling = matches!(key.request, "receive_message" | "await_transaction_checks");
            let long_polling = if is_polling { "true" } else { "false" };
            let labels = [
                ("protocol_type", "grpc"),
                ("request_code", key.request),
                ("is_long_polling", long_polling),
                ("result", key.result),
            ];
            out.histogram(&labels, &series.latency_ms);
        }
    }
}

fn topic_labels(topic: &str) -> [(&'static str, &str); 3] {
    [("topic", topic), ("message_type", "normal"), ("is_system", "false")]
}

fn consumer_labels<'a>(topic: &'a str, group: &'a str) -> [(&'static str, &'a str); 4] {
    [("topic", topic), ("consumer_group", group), ("is_system", "false"), ("is_retry", "false")]
}

/// A growing set of series, each found with a read lock once it exists.
#[derive(Debug)]
struct Series<K, V>(RwLock<BTreeMap<K, Arc<V>>>);

impl<K, V> Default for Series<K, V> {
    fn default() -> Self {
        Self(RwLock::new(BTreeMap::new()))
    }
}

impl<K: Ord + Clone, V: Default> Series<K, V> {
    fn get<Q>(&self, key: &Q, own: impl FnOnce() -> K, other: impl FnOnce() -> K) -> Arc<V>
    where
        K: std::borrow::Borrow<Q>,
        Q: Ord + ?Sized,
    {
        if let Some(found) = self.0.read().get(key) {
            return Arc::clone(found);
        }
        let mut series = self.0.write();
        let key = if series.len() < SERIES_MAX { own() } else { other() };
        Arc::clone(series.entry(key).or_default())
    }

    fn all(&self) -> Vec<(K, Arc<V>)> {
        self.0.read().iter().map(|(k, v)| (k.clone(), Arc::clone(v))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_counted_is_exposed_under_the_names_of_rocketmq() {
        let metrics = Metrics::default();
        metrics.messages_in("orders", [100, 5_000].into_iter());
        metrics.messages_out("orders", "billing", 2, 5_100);
        metrics.rpc("send_message", "success", Duration::from_millis(3));
        let mut out = Exposition::with_labels(&[("cluster", "c")]);
        metrics.expose(&mut out);
        let text = out.into_text();
        for line in [
            r#"rocketmq_messages_in_total{cluster="c",topic="orders",message_type="normal",is_system="false"} 2"#,
            r#"rocketmq_throughput_out_total{cluster="c",topic="orders",consumer_group="billing",is_system="false",is_retry="false"} 5100"#,
            r#"rocketmq_message_size_bucket{cluster="c",topic="orders",message_type="normal",is_system="false",le="1024"} 1"#,
            r#"rocketmq_message_size_sum{cluster="c",topic="orders",message_type="normal",is_system="false"} 5100"#,
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is missing from\n{text}");
        }
    }
}
