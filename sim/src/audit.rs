//! Checks that open the disks and the replicas instead of believing what they say.
//!
//! [`majority_holds_what_was_answered`] copies what a power cut at this moment would leave of every
//! disk, opens the copies with the real recovery, and looks for every answered send on a majority
//! of them: at its index, in its term, at its physical offset, with its bytes.
//! [`replicas_are_equal`] reads the whole log, every answered message and every dead letter back from
//! each replica, and compares the ends of queues and committed offsets.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use ledgermq_broker::state::{DeadLetterRecord, IndexEntry, MessageIdHash, StoredMessage, TransactionQuery};
use ledgermq_common::{LogIndex, NodeId, QueueOffset};
use ledgermq_raft_store::store::{Identity, LogStore, ReadError, WriterSpawn};
use xxhash_rust::xxh3::xxh3_64;

use crate::front::TOPIC;
use crate::front::accounts::{Book, Reader};
use crate::model::Place;
use crate::node::{CLUSTER, GROUP, Node, Running};
use crate::oracle::{EntryRecord, Oracle};
use crate::plan::NODES;
use crate::workload::node_number;

const MAJORITY: usize = NODES / 2 + 1;
const READ_BYTES_MAX: usize = 1 << 20;

/// What a durable log holds: term, physical offset and payload hash by index, and where it starts.
struct DurableLog {
    oldest: u64,
    entries: BTreeMap<u64, (u64, u64, u64)>,
}

pub fn majority_holds_what_was_answered(nodes: &[Arc<Node>], oracle: &Oracle) {
    let logs: Vec<DurableLog> = nodes.iter().filter_map(|node| durable_log(node, oracle)).collect();
    // The copy that an acknowledgement counted may have been lost since; never two of them.
    let wanted_holders = MAJORITY - oracle.lost_copies();
    let entries = oracle.entries();
    let mut answered: Vec<u64> = oracle.sends().values().map(|send| send.index).collect();
    answered.extend(oracle.booked().values().map(|send| send.index));
    answered.sort_unstable();
    answered.dedup();
    for index in answered {
        let Some(record) = entries.get(&index) else {
            oracle.violate(format_args!("entry {index} was answered and never applied"));
            return;
        };
        let wanted = (record.term, record.payload_at, record.payload_hash);
        let holders =
            logs.iter().filter(|log| log.oldest > index || log.entries.get(&index) == Some(&wanted)).count();
        if holders < wanted_holders {
            oracle.violate(format_args!(
                "entry {index} was answered and is durable on {holders} of {NODES} disks"
            ));
            return;
        }
    }
}

/// By the whole build, also where a broken one wrote it.
fn durable_log(node: &Arc<Node>, oracle: &Oracle) -> Option<DurableLog> {
    let broken = ledgermq_raft_store::defects::activate(None);
    let log = read_durable_log(node, oracle);
    ledgermq_raft_store::defects::activate(broken);
    log
}

fn read_durable_log(node: &Arc<Node>, oracle: &Oracle) -> Option<DurableLog> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime for the audit");
    let disk = node.disk.durable_fork(1);
    let identity =
        Identity { cluster: CLUSTER.to_owned(), group: GROUP, node: NodeId(node_number(node.index)) };
    runtime.block_on(async {
        let spawn = WriterSpawn::Task { latency: Arc::new(|| std::time::Duration::ZERO) };
        let store = match LogStore::open(node.store_config(), identity, Arc::new(disk), spawn) {
            Ok(store) => store,
            Err(error) => {
                oracle.violate(format_args!(
                    "what a power cut leaves of node {} does not open: {error:?}",
                    node.index
                ));
                return None;
            }
        };
        let oldest = store.oldest_index();
        let mut entries = BTreeMap::new();
        let mut next = oldest;
        let end = LogIndex(store.last_id().map_or(0, |last| last.index.get() + 1));
        while next < end {
            let read = match store.read(next..end, READ_BYTES_MAX) {
                Ok(read) => read,
                Err(error) => {
                    oracle.violate(format_args!("what a power cut leaves of node {}: {error:?}", node.index));
                    return None;
                }
            };
            let Some(last) = read.last() else { break };
            next = last.id.index.next();
            for entry in &read {
                let found = (entry.id.term.get(), entry.payload_at.get(), xxh3_64(&entry.payload));
                entries.insert(entry.id.index.get(), found);
            }
        }
        Some(DurableLog { oldest: oldest.get(), entries })
    })
}

/// Where the run purges the log however much of it is referred to, bytes may be missing.
pub fn replicas_are_equal(nodes: &[Arc<Node>], purges_at_will: bool, oracle: &Oracle) {
    let entries = oracle.entries();
    let mut digests = Vec::new();
    for node in nodes {
        let Some(running) = node.running() else {
            oracle.violate(format_args!("node {} does not run after the faults ended", node.index));
            continue;
        };
        compare_log(node.index, &running, &entries, oracle);
        let look = Look { node: node.index, running: &running, purges_at_will, oracle };
        let sends = oracle.sends();
        for (id, send) in &sends {
            look.find_message(TOPIC, id, send.place, Some(send.body_hash));
        }
        for (id, place) in oracle.delayed_visible() {
            look.find_message(TOPIC, &id, place, None);
        }
        let booked = oracle.booked();
        for ((book, id), send) in &booked {
            look.find_message(book.topic(), id, send.place, Some(send.body_hash));
        }
        compare_books(node.index, &running, oracle);
        look.compare_letters();
        look.find_open_halves();
        digests.push(running.state.state_digest());
    }
    if digests.windows(2).any(|pair| pair[0] != pair[1]) {
        oracle.violate(format_args!("the states differ: {digests:?}"));
    }
}

/// Every command in the log of this replica is the one that all applied, at the same offset.
fn compare_log(node: usize, running: &Running, entries: &BTreeMap<u64, EntryRecord>, oracle: &Oracle) {
    let mut seen = 0_usize;
    let mut first = None;
    let mut scan = running.group.scan(LogIndex(0));
    while let Some(entry) = scan.next() {
        let entry = match entry {
            Ok(entry) => entry,
            Err(ReadError::ReleasedEntry { oldest, index: LogIndex(0) }) => {
                scan = running.group.scan(oldest);
                continue;
            }
            Err(error) => {
                oracle.violate(format_args!("node {node} cannot read its log: {error:?}"));
                return;
            }
        };
        let index = entry.id.index.get();
        first.get_or_insert(index);
        seen += 1;
        let wanted = entries.get(&index);
        let is_equal = wanted.is_some_and(|wanted| {
            wanted.term == entry.id.term.get()
                && wanted.payload_at == entry.payload_at.get()
                && wanted.payload_hash == xxh3_64(&entry.payload)
        });
        if !is_equal {
            oracle.violate(format_args!(
                "node {node} has {:?} at {}, applied was {wanted:?}",
                entry.id, entry.payload_at
            ));
            return;
        }
        let len = u32::try_from(entry.payload.len()).expect("a small command");
        if running.group.read(entry.payload_at, len).ok().as_ref() != Some(&entry.payload) {
            oracle.violate(format_args!("node {node} reads other bytes at {}", entry.payload_at));
        }
    }
    let wanted = entries.range(first.unwrap_or_default()..).count();
    if seen != wanted {
        oracle.violate(format_args!("node {node} shows {seen} of {wanted} commands behind entry {first:?}"));
    }
}

/// A replica after the faults.
struct Look<'a> {
    node: usize,
    running: &'a Running,
    purges_at_will: bool,
    oracle: &'a Oracle,
}

impl Look<'_> {
    /// The message is found in its queue, with its id and its body, unless it expired.
    fn find_message(&self, topic: &str, id: &str, place: Place, body_hash: Option<u64>) {
        let Self { node, running, oracle, .. } = self;
        let Some(topic) = running.state.topic(topic) else {
            oracle.violate(format_args!("node {node} has no topic for {id}"));
            return;
        };
        let (queue, offset) = place;
        let ranges = running.state.queue_ranges(topic.id).unwrap_or_default();
        if ranges.get(queue.get() as usize).is_some_and(|range| offset.get() < range.start) {
            return;
        }
        let Some(found) = running.state.locate(topic.id, queue, offset) else {
            oracle.violate(format_args!("node {node} does not find {id} at {place:?}"));
            return;
        };
        let Some(record) = self.read(found, format_args!("{id} at {place:?}")) else { return };
        let message = StoredMessage::decode(&record);
        let is_equal = message.as_ref().is_ok_and(|message| {
            message.id == id && body_hash.is_none_or(|hash| xxh3_64(&message.body) == hash)
        });
        if !is_equal {
            oracle.violate(format_args!("node {node} has another message at {place:?}: {message:?}"));
        }
    }

    /// A half that nobody decided can be read, wherever it was carried to.
    fn find_open_halves(&self) {
        let Self { node, running, oracle, .. } = self;
        let open = running.state.open_transactions(TransactionQuery::default(), usize::MAX);
        for half in open {
            let Some(record) = self.read(half.entry(), format_args!("half {}", half.id)) else { continue };
            let message = StoredMessage::decode(&record);
            let is_it = message.as_ref().is_ok_and(|of| MessageIdHash::of(of.id.as_bytes()) == half.message);
            if !is_it {
                oracle.violate(format_args!("node {node} has {message:?} for half {}", half.id));
            }
        }
    }

    fn read(&self, entry: IndexEntry, what: std::fmt::Arguments<'_>) -> Option<Bytes> {
        let Self { node, running, purges_at_will, oracle } = self;
        match running.group.read(entry.physical, entry.record_bytes) {
            Ok(record) => Some(record),
            Err(error) => {
                // Far behind, a replica is given the state without the bytes of released segments.
                if !purges_at_will || running.group.status().physical_start <= entry.physical {
                    let at = entry.physical;
                    oracle
                        .violate(format_args!("node {node} cannot read {what}, {at} in the log: {error:?}"));
                }
                None
            }
        }
    }

    /// Each dead-letter queue holds the letters that the log says, once, in their order.
    fn compare_letters(&self) {
        let Self { node, running, oracle, .. } = self;
        for (group, letters) in oracle.letters() {
            let found = running.state.dead_letters_of(group);
            let range = found.and_then(|(topic, _)| running.state.queue_ranges(topic)?.first().cloned());
            let range = range.unwrap_or_default();
            if range.end != letters.len() as u64 {
                oracle.violate(format_args!(
                    "node {node}: group {group} has {} letters, {} were written",
                    range.end,
                    letters.len()
                ));
            }
            let Some((topic, queue)) = found else { continue };
            let entries = running.state.range(topic, queue, QueueOffset(range.start), u32::MAX);
            for (at, entry) in entries {
                let wanted = usize::try_from(at.get()).ok().and_then(|at| letters.get(at));
                let Some(record) = self.read(entry, format_args!("letter {at} of {group}")) else { continue };
                let letter = DeadLetterRecord::decode(&record);
                let is_equal = letter
                    .as_ref()
                    .is_ok_and(|letter| wanted == Some(&((letter.queue, letter.offset), letter.reason)));
                if !is_equal {
                    oracle.violate(format_args!(
                        "node {node}: letter {at} of {group} is {letter:?}, not {wanted:?}"
                    ));
                    return;
                }
            }
        }
    }
}

/// The queues of the books end where the log says, and the group that pulls is where it says.
fn compare_books(node: usize, running: &Running, oracle: &Oracle) {
    for book in Book::ALL {
        let Some(topic) = running.state.topic(book.topic()) else { continue };
        let ranges = running.state.queue_ranges(topic.id).unwrap_or_default();
        let ends: Vec<u64> = ranges.iter().map(|range| range.end).collect();
        if ends != oracle.ends_of(book) {
            oracle.violate(format_args!(
                "node {node}: {book:?} ends at {ends:?}, not {:?}",
                oracle.ends_of(book)
            ));
        }
    }
    let topic = running.state.topic(Reader::OFFSETS_IN.topic());
    let group = running.state.consumer_group(Reader::Archive.group());
    let (Some(topic), Some(group)) = (topic, group) else { return };
    for (queue, wanted, wanted_reset) in oracle.offsets() {
        let (offset, last_reset) = running.state.offset_since_reset(group.id, topic.id, queue);
        if (offset, last_reset) != (wanted, wanted_reset) {
            oracle.violate(format_args!(
                "node {node}: offset of queue {queue} is {offset:?} since reset {last_reset}, not {wanted:?} since \
                 {wanted_reset}"
            ));
        }
    }
}
