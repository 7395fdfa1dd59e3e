//! A replica of a broker group without Raft: commands go into a log that the test keeps, and from
//! there into the state, as they would after commit.

mod batch;
mod dead_letters;
mod delivery;
mod determinism;
mod differing_filters;
mod durability;
mod generations;
mod lite;
mod million_queues;
mod million_timers;
mod offsets;
mod order;
mod planning;
mod program_leader;
mod programs;
mod retention;
mod sending;
mod timers;
mod transactions;

use std::io;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use ledgermq_common::clock::UnixMillis;
use ledgermq_common::{GroupId, LogIndex, PhysicalOffset, QueueId, QueueOffset, ResetMark, Term};
use ledgermq_raft_store::{AppliedEntry, EntryId, RecoveredLog, StateMachine};

use super::*;

pub(super) const START: u64 = 1_700_000_000_000;

/// What survives when a replica stops: the committed log.
#[derive(Debug, Clone, Default)]
pub(super) struct Log {
    pub(super) entries: Vec<AppliedEntry>,
    appended: u64,
    end: u64,
}

impl Log {
    pub(super) fn append(&mut self, command: Bytes) -> AppliedEntry {
        self.appended += 1;
        let index = LogIndex(self.appended);
        let payload_at = PhysicalOffset(self.end + 64);
        self.end += 64 + command.len() as u64;
        let entry = AppliedEntry { id: EntryId { term: Term(1), index }, payload_at, payload: command };
        self.entries.push(entry.clone());
        entry
    }

    /// As if others had filled the log meanwhile.
    pub(super) fn skip(&mut self, bytes: u64) {
        self.end += bytes;
    }

    /// The record an index entry points at.
    pub(super) fn record(&self, entry: IndexEntry) -> Bytes {
        let at = entry.physical.get();
        let holder = self
            .entries
            .iter()
            .rev()
            .find(|holder| holder.payload_at.get() <= at)
            .expect("an entry holds the record");
        let start = (at - holder.payload_at.get()) as usize;
        holder.payload.slice(start..start + entry.record_bytes as usize)
    }
}

impl RecoveredLog for Log {
    fn flushed(&self) -> Option<EntryId> {
        self.entries.last().map(|entry| entry.id)
    }

    fn first_index(&self) -> Option<LogIndex> {
        self.entries.first().map(|entry| entry.id.index)
    }

    fn scan(
        &self,
        from: LogIndex,
        through: LogIndex,
        visit: &mut dyn FnMut(AppliedEntry) -> io::Result<()>,
    ) -> io::Result<()> {
        let wanted = |entry: &&AppliedEntry| (from..=through).contains(&entry.id.index);
        self.entries.iter().filter(wanted).cloned().try_for_each(visit)
    }
}

pub(super) struct Replica {
    pub(super) state: Arc<BrokerState>,
    pub(super) log: Log,
    pub(super) now: UnixMillis,
}

pub(super) fn config(directory: Option<&Path>) -> StateConfig {
    StateConfig {
        group: GroupId(7),
        directory: directory.map(Path::to_owned),
        checkpoints: CheckpointMode::OnDemand,
    }
}

impl Replica {
    pub(super) fn in_memory() -> Self {
        Self::open(None, Log::default())
    }

    /// A replica that starts with what is in the directory, and then applies the rest of the log.
    pub(super) fn open(directory: Option<&Path>, log: Log) -> Self {
        let state = BrokerState::open(config(directory), Arc::new(NobodyWaits)).expect("directory");
        state.recover(&log).expect("recovered");
        let replica = Self { state, log, now: UnixMillis(START) };
        replica.replay();
        replica
    }

    /// Applies what the log holds beyond the state; returns how many entries that were.
    pub(super) fn replay(&self) -> usize {
        let applied = self.state.applied().map_or(LogIndex(0), |entry| entry.index);
        let rest: Vec<AppliedEntry> =
            self.log.entries.iter().filter(|entry| entry.id.index > applied).cloned().collect();
        let mut answers = Vec::new();
        for batch in rest.chunks(50) {
            self.state.apply(batch, &mut answers).expect("applied");
        }
        if let Some(last) = self.log.entries.last() {
            self.state.log_flushed(last.id.index);
        }
        rest.len()
    }

    pub(super) fn propose(&mut self, command: &Command) -> Answer {
        self.propose_bytes(command.encode(self.now))
    }

    pub(super) fn propose_bytes(&mut self, command: Bytes) -> Answer {
        let entry = self.log.append(command);
        let mut answers = Vec::new();
        self.state.apply(std::slice::from_ref(&entry), &mut answers).expect("applied");
        self.state.log_flushed(entry.id.index);
        Answer::decode(&answers[0]).expect("our own answer")
    }

    pub(super) fn topic(&mut self, name: &str, queues: u32) -> TopicId {
        let settings = TopicSettings::normal(queues);
        match self.propose(&Command::CreateTopic(CreateTopic { name: name.to_owned(), settings })) {
            Answer::Topic { id, .. } => id,
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn group(&mut self, name: &str) -> ConsumerGroupId {
        let settings = ConsumerGroupSettings::default();
        let command = CreateConsumerGroup { name: name.to_owned(), settings };
        match self.propose(&Command::CreateConsumerGroup(command)) {
            Answer::ConsumerGroup { id, .. } => id,
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn send(&mut self, topic: TopicId, messages: &[NewMessage]) -> Vec<StoredAt> {
        match self.propose_bytes(encode_append(self.now, topic, messages)) {
            Answer::Stored(stored) => stored,
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn request(&self, group: ConsumerGroupId, topic: TopicId, max: u32) -> ReceiveRequest {
        ReceiveRequest {
            consumer_group: group,
            topic,
            queues: QueueChoice::All,
            messages_max: max,
            now: self.now,
            filter: TagFilter::All,
            others: OthersWant::default(),
        }
    }

    /// A whole receive: plan, lease, answer.
    pub(super) fn receive(
        &mut self,
        group: ConsumerGroupId,
        topic: TopicId,
        max: u32,
        invisible_ms: u64,
    ) -> Vec<Granted> {
        let request = self.request(group, topic, max);
        let Some(plan) = self.state.plan_receive(&request) else { return Vec::new() };
        let command = plan.command(ClientHash::of("client"), invisible_ms, false, "");
        match self.propose(&command) {
            Answer::Leased(granted) => granted,
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn ack(
        &mut self,
        group: ConsumerGroupId,
        topic: TopicId,
        deliveries: &[Granted],
    ) -> Vec<DeliveryOutcome> {
        let entries = deliveries
            .iter()
            .map(|granted| AckEntry { queue: granted.queue, offset: granted.offset, epoch: granted.epoch })
            .collect();
        match self.propose(&Command::AckMessages(AckMessages { consumer_group: group, topic, entries })) {
            Answer::Acked(outcomes) => outcomes,
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn pass_ms(&mut self, ms: u64) {
        self.now = self.now.saturating_add_ms(ms);
    }
}

pub(super) fn message(queue: u32, id: &str) -> NewMessage {
    tagged(queue, id, None)
}

pub(super) fn tagged(queue: u32, id: &str, tag: Option<&str>) -> NewMessage {
    NewMessage {
        queue: QueueId(queue),
        id: id.to_owned(),
        message_type: MessageType::Normal,
        body_encoding: BodyEncoding::Identity,
        born_at: UnixMillis(START),
        properties: MessageProperties { tag: tag.map(str::to_owned), ..MessageProperties::default() },
        body: Bytes::from(format!("body of {id}")),
    }
}

pub(super) fn offsets(granted: &[Granted]) -> Vec<(u32, u64)> {
    granted.iter().map(|granted| (granted.queue.get(), granted.offset.get())).collect()
}

pub(super) fn at(queue: u32, offset: u64) -> (QueueId, QueueOffset) {
    (QueueId(queue), QueueOffset(offset))
}

/// Whether a test that measures memory runs in a process of its own.
enum Alone {
    Yes,
    /// It was run in one, and passed there.
    InAChild,
}

/// Starts the test `name` again with `mark` in the environment, because other tests of this process
/// allocate at the same time.
fn measured_alone(mark: &str, name: &str) -> Alone {
    if std::env::var_os(mark).is_some() {
        return Alone::Yes;
    }
    let this = std::env::current_exe().expect("a test binary");
    let output = std::process::Command::new(this)
        .args(["--exact", name, "--nocapture"])
        .env(mark, "1")
        .output()
        .expect("started");
    let said = String::from_utf8_lossy(&output.stdout);
    println!("{said}");
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("1 passed"), "{said}");
    Alone::InAChild
}
