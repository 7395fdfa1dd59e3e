//! Checks that open the disks and the replicas instead of believing what they say.
//!
//! [`majority_holds_what_was_answered`] copies what a power cut at this moment would leave of every
//! disk, opens the copies with the real recovery, and looks for every answered send on a majority
//! of them: at its index, in its term, at its physical offset, with its bytes.
//! [`replicas_are_equal`] reads the whole log, every answered message and every dead letter back from
//! each replica, and compares the ends of queues and committed offsets.

use std::collections::BTreeMap;
use std::sync::Arc;

use ledgermq_broker::state::DeadLetterRecord;
use ledgermq_common::{LogIndex, NodeId, QueueOffset};
use ledgermq_raft_store::store::{Identity, LogStore, ReadError, WriterSpawn};
use xxhash_rust::xxh3::xxh3_64;

use crate::front::TOPIC;
use crate::front::accounts::{Book, Reader};
use crate::node::{CLUSTER, GROUP, Node, Running};
use crate::oracle::{EntryRecord, Oracle, Send};
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
        if holders < MAJORITY {
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

pub fn replicas_are_equal(nodes: &[Arc<Node>], oracle: &Oracle) {
    let entries = oracle.entries();
    let mut digests = Vec::new();
    for node in nodes {
        let Some(running) = node.running() else {
            oracle.violate(format_args!("node {} does not run after the faults ended", node.index));
            continue;
        };
        compare_log(node.index, &running, &entries, oracle);
        let sends = oracle.sends();
        find_messages(node.index, &running, TOPIC, sends.iter(), oracle);
        let booked = oracle.booked();
        for book in Book::ALL {
            let of_book = booked.iter().filter(|((of, _), _)| *of == book);
            let of_book = of_book.map(|((_, id), send)| (id, send));
            find_messages(node.index, &running, book.topic(), of_book, oracle);
        }
        compare_books(node.index, &running, oracle);
        compare_letters(node.index, &running, oracle);
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

/// Every answered send is found in its queue, with its id and its body.
fn find_messages<'a>(
    node: usize,
    running: &Running,
    topic: &str,
    sends: impl Iterator<Item = (&'a String, &'a Send)>,
    oracle: &Oracle,
) {
    let topic = running.state.topic(topic);
    for (id, send) in sends {
        let Some(topic) = &topic else {
            oracle.violate(format_args!("node {node} has no topic for {id}"));
            return;
        };
        let (queue, offset) = send.place;
        let Some(found) = running.state.locate(topic.id, queue, offset) else {
            oracle.violate(format_args!("node {node} does not find {id} at {:?}", send.place));
            return;
        };
        let at = found.physical;
        let record = match running.group.read(at, found.record_bytes) {
            Ok(record) => record,
            Err(error) => {
                // Far behind, a replica is given the state without the bytes of released segments.
                if running.group.status().physical_start > at {
                    continue;
                }
                oracle.violate(format_args!("node {node} cannot read {id} at {at}: {error:?}"));
                return;
            }
        };
        let message = ledgermq_broker::state::command::StoredMessage::decode(&record);
        let is_equal = message
            .as_ref()
            .is_ok_and(|message| message.id == *id && xxh3_64(&message.body) == send.body_hash);
        if !is_equal {
            oracle.violate(format_args!("node {node} has another message at {:?}: {message:?}", send.place));
            return;
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
    for (queue, wanted) in oracle.offsets() {
        let offset = running.state.group_offset(group.id, topic.id, queue);
        if offset != wanted {
            oracle
                .violate(format_args!("node {node}: offset of queue {queue} is {offset:?}, not {wanted:?}"));
        }
    }
}

/// Each dead-letter queue holds the letters that the log says, once, in their order.
fn compare_letters(node: usize, running: &Running, oracle: &Oracle) {
    for (group, letters) in oracle.letters() {
        let found = running.state.dead_letters_of(group);
        let end =
            found.and_then(|(topic, _)| running.state.queue_ranges(topic)?.first().map(|range| range.end));
        if end.unwrap_or_default() != letters.len() as u64 {
            oracle.violate(format_args!(
                "node {node}: group {group} has {end:?} letters, {} were written",
                letters.len()
            ));
        }
        let Some((topic, queue)) = found else { continue };
        for ((at, entry), (place, reason)) in
            running.state.range(topic, queue, QueueOffset(0), u32::MAX).into_iter().zip(letters)
        {
            let Ok(record) = running.group.read(entry.physical, entry.record_bytes) else {
                // As for messages: released before the replica was there.
                if running.group.status().physical_start <= entry.physical {
                    oracle.violate(format_args!("node {node} cannot read letter {at} of group {group}"));
                }
                continue;
            };
            let letter = DeadLetterRecord::decode(&record);
            let is_equal = letter
                .as_ref()
                .is_ok_and(|letter| (letter.queue, letter.offset) == place && letter.reason == reason);
            if !is_equal {
                oracle.violate(format_args!(
                    "node {node}: letter {at} of group {group} is {letter:?}, not of {place:?}"
                ));
                return;
            }
        }
    }
}
