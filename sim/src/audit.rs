//! Checks that open the disks and the replicas instead of believing what they say.
//!
//! [`majority_holds_what_was_answered`] copies what a power cut at this moment would leave of every
//! disk, opens the copies with the real recovery, and looks for every answered send on a majority
//! of them: at its index, in its term, at its physical offset, with its bytes.
//! [`replicas_are_equal`] reads the whole log and every answered message back from each replica.

use std::collections::BTreeMap;
use std::sync::Arc;

use ledgermq_common::{LogIndex, NodeId};
use ledgermq_raft_store::store::{Identity, LogStore, ReadError, WriterSpawn};
use xxhash_rust::xxh3::xxh3_64;

use crate::front::TOPIC;
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
    let entries = oracle.entries();
    let mut answered: Vec<u64> = oracle.sends().values().map(|send| send.index).collect();
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
        find_messages(node.index, &running, oracle);
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
fn find_messages(node: usize, running: &Running, oracle: &Oracle) {
    let sends = oracle.sends();
    let Some(topic) = running.state.topic(TOPIC) else {
        if !sends.is_empty() {
            oracle.violate(format_args!("node {node} has no topic"));
        }
        return;
    };
    for (id, send) in sends {
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
            .is_ok_and(|message| message.id == id && xxh3_64(&message.body) == send.body_hash);
        if !is_equal {
            oracle.violate(format_args!("node {node} has another message at {:?}: {message:?}", send.place));
            return;
        }
    }
}
