//! A digest of everything a client can observe, to compare replicas. Replicas that applied the same
//! entries have the same digest, whether they got there by applying, from a checkpoint or from a
//! snapshot; where their index is divided into runs and tails does not show in it.

use std::collections::BTreeSet;

use bytes::BytesMut;
use ledgermq_common::QueueId;
use ledgermq_raft_store::EntryId;
use xxhash_rust::xxh3::Xxh3;

use super::applied::Scalars;
use super::consume_queue::QueueKey;
use super::consume_queue::ids::put_id;
use super::key_index::run::put_entry;
use super::machine::BrokerState;
use super::names::TopicId;
use super::records::RecordKey;
use super::snapshot::Captured;
use super::timers::TimerKey;
use super::timers::run::put_timer;

/// Index entries read at a time.
const STRETCH: u64 = 4096;

/// Five parts, so that a difference says where to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct StateDigest {
    /// Topics, queues, consumer groups, progress and leases, log time, numbers given out.
    pub records: u64,
    /// The message-id window.
    pub window: u64,
    /// The ConsumeQueues.
    pub index: u64,
    /// Delayed messages that wait.
    pub timers: u64,
    /// The key index. Entries of a deleted topic and of records that are released do not count: when
    /// they are forgotten depends on the checkpoints of a replica.
    pub keys: u64,
}

impl std::fmt::Display for StateDigest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:016x}-{:016x}-{:016x}-{:016x}-{:016x}",
            self.records, self.window, self.index, self.timers, self.keys
        )
    }
}

impl BrokerState {
    /// Reads the whole state; for checks, not for every day.
    pub fn state_digest(&self) -> StateDigest {
        let captured = self.capture();
        StateDigest {
            records: records(&captured),
            window: window(&captured),
            index: self.index_digest(),
            timers: timers(&captured),
            keys: keys(&captured),
        }
    }

    /// The last command that is applied; a digest is of one moment if it is the same before and after.
    pub fn last_command(&self) -> Option<EntryId> {
        self.applied_state().scalars.applied
    }

    fn index_digest(&self) -> u64 {
        let mut hash = Xxh3::new();
        for topic in self.topics() {
            let ranges = self.queue_ranges(topic.id).unwrap_or_default();
            let lite = self.lite_ranges(topic.id);
            for (queue, range) in (0u32..).zip(ranges).chain(lite) {
                let key = QueueKey::new(topic.id, QueueId(queue));
                let mut at = range.start;
                while at < range.end {
                    let view = self.index_view(key, at, range.end.min(at.saturating_add(STRETCH)));
                    let entries = view.read();
                    hash.update(&key.get().to_le_bytes());
                    hash.update(&at.to_le_bytes());
                    hash.update(&(entries.len() as u64).to_le_bytes());
                    for (_, entry) in &entries {
                        hash.update(&entry.physical.get().to_le_bytes());
                        hash.update(&entry.record_bytes.to_le_bytes());
                        hash.update(&entry.tag_code.to_le_bytes());
                        hash.update(&entry.stored_at.get().to_le_bytes());
                    }
                    // A queue that claims more than the index has: no use in looking for all of it.
                    if entries.is_empty() {
                        break;
                    }
                    at = at.saturating_add(STRETCH);
                }
            }
        }
        hash.digest()
    }
}

fn records(captured: &Captured) -> u64 {
    let mut hash = Xxh3::new();
    let mut scalars = BytesMut::new();
    // Not which entry came last: a snapshot stands for entries that are no commands, too.
    Scalars { applied: None, ..captured.scalars }.put(&mut scalars);
    hash.update(&scalars);
    for (key, value) in &captured.records {
        hash.update(&key.encode());
        hash.update(&value.encode());
    }
    hash.digest()
}

fn keys(captured: &Captured) -> u64 {
    let topics: BTreeSet<TopicId> = captured
        .records
        .iter()
        .filter_map(|(key, _)| match key {
            RecordKey::Topic(id) => Some(*id),
            _ => None,
        })
        .collect();
    let mut hash = Xxh3::new();
    let mut bytes = BytesMut::new();
    for entry in captured.keys.sorted(|topic| topics.contains(&topic), captured.released_below) {
        bytes.clear();
        put_entry(&mut bytes, &entry);
        hash.update(&bytes);
    }
    hash.digest()
}

fn timers(captured: &Captured) -> u64 {
    let mut hash = Xxh3::new();
    let mut bytes = BytesMut::new();
    for timer in captured.timers.after(TimerKey::default()) {
        bytes.clear();
        put_timer(&mut bytes, timer);
        hash.update(&bytes);
    }
    hash.digest()
}

fn window(captured: &Captured) -> u64 {
    let mut hash = Xxh3::new();
    let mut id = BytesMut::new();
    for entry in captured.window.iter() {
        id.clear();
        put_id(&mut id, entry);
        hash.update(&id);
    }
    hash.digest()
}
