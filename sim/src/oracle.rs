//! The judge: is told everything that happens and knows what may not.
//!
//! | Told | Checked |
//! |---|---|
//! | every apply on every replica | all replicas apply the same bytes at the same index, term and physical offset and give the same answer; nothing is applied twice in a life or left out; the [`Model`] |
//! | the state's digest behind an entry | equal on all replicas |
//! | the status of every replica after every tick | one leader per term; applied ≤ committed ≤ last; watermarks of a life never go back; what is committed is flushed on a majority |
//! | what clients were answered | the entry was committed then; an id has one place, a transaction one outcome; nothing acknowledged is delivered; a read shows what was answered before it began |
//! | which halves nobody decides | they are parked in the end |
//! | which halves another producer is to decide once it is asked | they are decided, or parked, in the end |
//! | what clients of the books were answered | see [`accounts`] |
//!
//! A violation is kept, never repaired; the first one ends the run.

mod accounts;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use ledgermq_broker::state::{
    Decision, Granted, RecallOutcome, Scheduled, StateDigest, StoredAt, TransactionEnd,
};
use ledgermq_common::{LogIndex, PhysicalOffset};
use ledgermq_raft_store::AppliedEntry;
use ledgermq_raft_store::group::GroupStatus;
use parking_lot::Mutex;
use xxhash_rust::xxh3::xxh3_64;

use crate::model::accounts::MessageOf;
use crate::model::order::Step;
use crate::model::{Model, Place};
use crate::plan::NODES;
use crate::trace::Trace;

const MAJORITY: usize = NODES / 2 + 1;

/// Clones share the judge.
#[derive(Clone)]
pub struct Oracle(Arc<Mutex<State>>);

/// Id, body, and what it is to become.
pub type LeftHalf = (String, Bytes, Decision);

struct State {
    trace: Trace,
    violations: Vec<String>,
    /// Every command that some replica applied, by log index.
    entries: BTreeMap<u64, EntryRecord>,
    digests: BTreeMap<u64, (StateDigest, usize)>,
    model: Model,
    leaders: BTreeMap<u64, usize>,
    replicas: [Replica; NODES],
    committed_max: u64,
    /// The furthest entry a client was told of since the last look at the replicas, and ever.
    answered_in_tick: u64,
    answered_max: u64,
    /// Halves that nobody decides.
    abandoned: BTreeSet<String>,
    /// Halves that another producer than their sender is to decide.
    left: BTreeMap<PhysicalOffset, LeftHalf>,
    sends: BTreeMap<String, Send>,
    /// Answered sends of the books.
    booked: BTreeMap<MessageOf, Send>,
    /// Answered sends of message groups.
    steps: BTreeSet<Step>,
    /// Delayed messages that were answered.
    delayed: BTreeSet<String>,
    /// Acknowledged deliveries and the virtual time of the answer.
    acked: BTreeMap<Place, u64>,
    tallies: Tallies,
}

/// A command as the first replica applied it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryRecord {
    pub term: u64,
    pub payload_at: u64,
    pub payload_len: usize,
    pub payload_hash: u64,
    pub answer_hash: u64,
}

/// A send that was answered.
#[derive(Debug, Clone)]
pub struct Send {
    pub place: Place,
    pub index: u64,
    pub body_hash: u64,
}

/// How much a run did, to see that it was not idle.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tallies {
    pub sends: u64,
    pub repeats: u64,
    pub grants: u64,
    pub acks: u64,
    pub elections: u64,
    pub unknown_outcomes: u64,
    pub commits: u64,
    pub rollbacks: u64,
    /// Halves that a producer decided that had not sent them, once it was asked.
    pub decided_by_others: u64,
    /// Reads behind a barrier.
    pub reads: u64,
    /// Snapshots that replaced a state: at starts and for replicas that were far behind.
    pub restores: u64,
    pub purges: u64,
    pub delayed: u64,
    pub recalled: u64,
    /// Of the topic with order: answered sends, grants, and generations that were opened.
    pub steps: u64,
    pub ordered_grants: u64,
    pub generations: u64,
    /// In the log: batches of several messages, those that were known whole, and in part.
    pub batches: u64,
    pub batch_repeats: u64,
    pub batches_partly_known: u64,
    /// In the log: letters for want of attempts, without order and with it, and letters given back.
    pub exhausted: u64,
    pub exhausted_in_order: u64,
    pub redriven: u64,
    pub letters_read: u64,
    /// In the log: offsets committed, commits that met a later one, those that met a reset, resets of
    /// groups, and repeats of those.
    pub offset_commits: u64,
    pub commits_behind: u64,
    pub commits_of_other_resets: u64,
    pub resets: u64,
    pub repeated_resets: u64,
    pub offset_reads: u64,
    pub pulled: u64,
    /// In the log: messages that expired, records carried to its end, and steps of its release.
    pub expired: u64,
    pub carried: u64,
    pub releases: u64,
    pub disks_lost: u64,
}

#[derive(Default)]
struct Replica {
    /// The last entry applied in this life; `None` before the machine was recovered.
    applied: Option<u64>,
    /// What it said last in this life.
    status: Option<Watermarks>,
    /// Entries below this count are on its disk, also while it is down.
    flushed: u64,
    /// The same of those it knew to be committed: these are never cut.
    kept: u64,
    /// Entries that were on its disk when that was lost, until it votes again: what it acknowledged counts,
    /// though one copy less is left.
    lost_flushed: u64,
}

/// Counts of entries (index of the last one, plus one), so that 0 is "none".
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Watermarks {
    term: u64,
    leader: Option<u64>,
    is_leader: bool,
    is_leader_ready: bool,
    last: u64,
    flushed: u64,
    committed: u64,
    applied: u64,
    purged: u64,
    snapshot: u64,
}

fn count(index: Option<LogIndex>) -> u64 {
    index.map_or(0, |index| index.get() + 1)
}

impl Oracle {
    pub fn new(trace: Trace) -> Self {
        Self(Arc::new(Mutex::new(State {
            trace,
            violations: Vec::new(),
            entries: BTreeMap::new(),
            digests: BTreeMap::new(),
            model: Model::default(),
            leaders: BTreeMap::new(),
            replicas: Default::default(),
            committed_max: 0,
            answered_in_tick: 0,
            answered_max: 0,
            abandoned: BTreeSet::new(),
            left: BTreeMap::new(),
            sends: BTreeMap::new(),
            booked: BTreeMap::new(),
            steps: BTreeSet::new(),
            delayed: BTreeSet::new(),
            acked: BTreeMap::new(),
            tallies: Tallies::default(),
        })))
    }

    pub fn event(&self, who: impl std::fmt::Display, what: impl std::fmt::Display) {
        self.0.lock().trace.event(who, what);
    }

    pub fn set_now_ms(&self, now_ms: u64) {
        self.0.lock().trace.set_now_ms(now_ms);
    }

    pub fn now_ms(&self) -> u64 {
        self.0.lock().trace.now_ms()
    }

    pub fn violate(&self, what: impl std::fmt::Display) {
        self.0.lock().violate(what.to_string());
    }

    pub fn violations(&self) -> Vec<String> {
        self.0.lock().violations.clone()
    }

    pub fn has_violation(&self) -> bool {
        !self.0.lock().violations.is_empty()
    }

    pub fn tallies(&self) -> Tallies {
        let state = self.0.lock();
        accounts::count(&state.model, state.tallies)
    }

    pub fn trace_hash(&self) -> u64 {
        self.0.lock().trace.hash()
    }

    pub fn trace_events(&self) -> u64 {
        self.0.lock().trace.events()
    }

    pub fn trace_tail(&self) -> Vec<String> {
        self.0.lock().trace.tail()
    }

    pub fn entries(&self) -> BTreeMap<u64, EntryRecord> {
        self.0.lock().entries.clone()
    }

    pub fn sends(&self) -> BTreeMap<String, Send> {
        self.0.lock().sends.clone()
    }

    /// Delayed messages that were answered and are visible, and where.
    pub fn delayed_visible(&self) -> Vec<(String, Place)> {
        let state = self.0.lock();
        let place = |id: &String| Some((id.clone(), state.model.stored().get(id)?.place));
        state.delayed.iter().filter_map(place).collect()
    }

    /// Whether every stored message of an answered send was acknowledged.
    pub fn everything_is_consumed(&self) -> bool {
        let state = self.0.lock();
        let is_done = |id: &String| {
            state.model.is_recalled(id)
                || state.model.stored().get(id).is_some_and(|stored| state.model.is_consumed(stored.place))
        };
        state.sends.values().all(|send| state.model.is_consumed(send.place))
            && state.delayed.iter().all(is_done)
    }

    /// Whether every answered send of a message group is consumed and every growth drained.
    pub fn order_is_settled(&self) -> bool {
        let state = self.0.lock();
        let order = state.model.order();
        order.is_settled() && state.steps.iter().all(|step| order.is_consumed(*step))
    }

    /// A producer was told that a message of a message group is stored.
    pub fn step_stored(&self, who: &str, step: Step, at: StoredAt) {
        let mut state = self.0.lock();
        let place = (at.queue, at.offset);
        if state.model.order().place(step) != Some(place) {
            state.violate(format!("{who} was told {step:?} is at {place:?}, and no entry says so"));
        }
        state.steps.insert(step);
        state.tallies.steps += 1;
        state.trace.event(who, format_args!("{step:?} is stored at {place:?}, repeat: {}", at.repeated));
    }

    /// A consumer was given messages in order, by a receive or by its repetition.
    pub fn steps_received(&self, who: &str, granted: &[Granted], client: u64, attempt_id: &str, again: bool) {
        let mut state = self.0.lock();
        for grant in granted {
            if !state.model.order().is_granted(grant) {
                state.violate(format!("{who} was given {grant:?}, and no entry grants it"));
            }
            state.tallies.ordered_grants += 1;
        }
        let held = state.model.order().held_by(client, attempt_id, state.model.log_time());
        let given: BTreeSet<Place> = granted.iter().map(|grant| (grant.queue, grant.offset)).collect();
        if again && !given.is_disjoint(&held) && !held.is_subset(&given) {
            state.violate(format!("{who} asked again for {held:?} and was given {given:?}"));
        }
        let places: Vec<_> = given.iter().collect();
        state.trace.event(who, format_args!("got {places:?} by attempt {attempt_id}"));
    }

    /// What a process that ended by itself had flushed.
    pub fn flushed_at_end(&self, node: usize, flushed: Option<LogIndex>) {
        self.0.lock().replicas[node].flushed = count(flushed);
    }

    /// The disk of `node` is gone; its process has ended before.
    pub fn disk_lost(&self, node: usize) {
        let mut state = self.0.lock();
        let flushed = state.replicas[node].flushed;
        state.replicas[node] = Replica { lost_flushed: flushed, ..Replica::default() };
        state.tallies.disks_lost += 1;
        state.trace.event("world", format_args!("node {node} lost its disk with {flushed} entries"));
    }

    pub fn disk_made_up_for(&self, node: usize) {
        let mut state = self.0.lock();
        state.replicas[node].lost_flushed = 0;
        state.trace.event("world", format_args!("node {node} votes again"));
    }

    /// Copies that are lost and not made up for.
    pub fn lost_copies(&self) -> usize {
        self.0.lock().replicas.iter().filter(|replica| replica.lost_flushed > 0).count()
    }

    /// A process ended: what it had applied and said is forgotten, what it had flushed is not.
    pub fn life_ended(&self, node: usize) {
        let replica = &mut self.0.lock().replicas[node];
        replica.applied = None;
        replica.status = None;
    }

    /// The state machine of `node` starts behind the entry `applied`.
    pub fn recovered(&self, node: usize, applied: Option<LogIndex>) {
        let mut state = self.0.lock();
        state.replicas[node].applied = Some(count(applied));
        state
            .trace
            .event(format_args!("node {node}"), format_args!("state recovered, {} applied", count(applied)));
    }

    /// A snapshot up to `applied` replaced the state of `node`.
    pub fn restored(&self, node: usize, applied: LogIndex) {
        let mut state = self.0.lock();
        let before = state.replicas[node].applied.unwrap_or_default();
        if before > applied.get() + 1 {
            state.violate(format!(
                "node {node}: a snapshot of entry {applied} took {before} applied entries back"
            ));
        }
        state.replicas[node].applied = Some(applied.get() + 1);
        state.tallies.restores += 1;
        state.trace.event(format_args!("node {node}"), format_args!("snapshot of entry {applied} installed"));
    }

    pub fn applied(&self, node: usize, entry: &AppliedEntry, answer: &Bytes) {
        self.0.lock().applied(node, entry, answer);
    }

    /// The digest of the state of `node` right behind entry `index`.
    pub fn digest(&self, node: usize, index: LogIndex, digest: StateDigest) {
        let mut state = self.0.lock();
        let (first, by) = *state.digests.entry(index.get()).or_insert((digest, node));
        if first != digest {
            state.violate(format!(
                "state behind entry {index}: {digest} on node {node}, {first} on node {by}"
            ));
        }
    }

    /// What every living replica says after a tick.
    pub fn observe(&self, statuses: &[Option<GroupStatus>; NODES]) {
        self.0.lock().observe(statuses);
    }

    pub fn unknown_outcome(&self, who: &str, id: &str) {
        let mut state = self.0.lock();
        state.tallies.unknown_outcomes += 1;
        state.trace.event(who, format_args!("outcome of {id} unknown"));
    }

    /// A producer was told that its message is stored.
    pub fn send_answered(&self, who: &str, id: &str, at: StoredAt, body: &[u8]) {
        self.0.lock().send_answered(who, id, at, xxh3_64(body));
    }

    /// A producer was told that its delayed message is stored.
    pub fn delayed_answered(&self, who: &str, id: &str, at: Scheduled) {
        let mut state = self.0.lock();
        state.delayed.insert(id.to_owned());
        state.tallies.delayed += 1;
        state.trace.event(who, format_args!("{id} is {:?}", at.placed));
    }

    /// A producer was told what became of its recall.
    pub fn recall_answered(&self, who: &str, id: &str, outcome: RecallOutcome) {
        let mut state = self.0.lock();
        let is_recalled = state.model.is_recalled(id);
        if !is_recalled && outcome != RecallOutcome::TooLate {
            state.violate(format!("{who} was told that {id} is recalled, and no entry says so"));
        }
        state.tallies.recalled += u64::from(is_recalled);
        state.trace.event(who, format_args!("recall of {id}: {outcome:?}"));
    }

    /// A producer was told that its half message is stored.
    pub fn half_answered(&self, who: &str, id: &str, transaction: PhysicalOffset) {
        let mut state = self.0.lock();
        if state.model.transactions().of(id) != Some(transaction) {
            state.violate(format!("{who} was told half {id} is {transaction}, and no entry says so"));
        }
        state.trace.event(who, format_args!("half {id} is {transaction}"));
    }

    /// The entries up to which clients were answered so far.
    pub fn answered(&self) -> u64 {
        self.0.lock().answered_max
    }

    /// A read was served from a state of `applied` entries; `answered` were answered before it began.
    pub fn read_answered(&self, who: &str, applied: u64, answered: u64) {
        let mut state = self.0.lock();
        if applied < answered {
            state.violate(format!(
                "{who} read a state of {applied} entries, {answered} were answered before it asked"
            ));
        }
        state.tallies.reads += 1;
        state.trace.event(who, format_args!("read a state of {applied} entries"));
    }

    /// Nobody will decide this half.
    pub fn half_abandoned(&self, id: &str) {
        self.0.lock().abandoned.insert(id.to_owned());
    }

    /// Whether every half that nobody decides was checked as often as it may be and then parked.
    pub fn abandoned_are_parked(&self) -> bool {
        let state = self.0.lock();
        state.abandoned.iter().all(|id| state.model.transactions().is_parked(id))
    }

    /// Its sender will not decide this half; a producer that is asked will.
    pub fn half_left(&self, transaction: PhysicalOffset, id: String, body: Bytes, decision: Decision) {
        self.0.lock().left.insert(transaction, (id, body, decision));
    }

    /// What a half that was left to others is to become.
    pub fn left_half(&self, transaction: PhysicalOffset) -> Option<LeftHalf> {
        self.0.lock().left.get(&transaction).cloned()
    }

    /// Whether every half that was left to others was decided, or asked about as often as it may be.
    pub fn left_halves_have_ended(&self) -> bool {
        let state = self.0.lock();
        let transactions = state.model.transactions();
        state.left.values().all(|(id, ..)| transactions.outcome(id).is_some() || transactions.is_parked(id))
    }

    /// A producer was told the outcome of its transaction.
    pub fn end_answered(&self, who: &str, id: &str, end: &TransactionEnd, body: &[u8]) {
        let mut state = self.0.lock();
        let outcome = state.model.transactions().outcome(id);
        let Some(outcome) = outcome.filter(|outcome| outcome.decision == end.decision) else {
            state.violate(format!("{who} was told {id} ended by {end:?}, the log says {outcome:?}"));
            return;
        };
        state.answered(outcome.index);
        state.trace.event(who, format_args!("{id} ended by {:?}", end.decision));
        state.tallies.decided_by_others += u64::from(state.left.values().any(|(left, ..)| left == id));
        if outcome.decision == Decision::Commit {
            let send = Send { place: outcome.place, index: outcome.index, body_hash: xxh3_64(body) };
            state.sends.entry(id.to_owned()).or_insert(send);
            state.tallies.commits += 1;
        } else {
            state.tallies.rollbacks += 1;
        }
    }

    /// A consumer was given messages; it had asked at `asked_at_ms`.
    pub fn receive_answered(&self, who: &str, granted: &[Granted], asked_at_ms: u64) {
        let mut state = self.0.lock();
        for grant in granted {
            let place = (grant.queue, grant.offset);
            if state.acked.get(&place).is_some_and(|acked_at_ms| *acked_at_ms < asked_at_ms) {
                state.violate(format!("{who} was given {place:?} after its acknowledgement was answered"));
            }
            state.tallies.grants += 1;
            state.trace.event(who, format_args!("got {place:?} attempt {}", grant.attempt));
        }
    }

    /// A consumer was told that its acknowledgement is done.
    pub fn ack_answered(&self, who: &str, place: Place) {
        let mut state = self.0.lock();
        if !state.model.is_consumed(place) {
            state.violate(format!("{who} was told {place:?} is acknowledged, and no entry says so"));
        }
        let now_ms = state.trace.now_ms();
        state.acked.entry(place).or_insert(now_ms);
        state.tallies.acks += 1;
        state.trace.event(who, format_args!("acknowledged {place:?}"));
    }
}

impl State {
    fn violate(&mut self, what: String) {
        self.trace.event("VIOLATION", &what);
        self.violations.push(what);
    }

    fn answered(&mut self, index: u64) {
        self.answered_in_tick = self.answered_in_tick.max(index + 1);
        self.answered_max = self.answered_max.max(index + 1);
    }

    fn applied(&mut self, node: usize, entry: &AppliedEntry, answer: &Bytes) {
        let index = entry.id.index.get();
        let record = EntryRecord {
            term: entry.id.term.get(),
            payload_at: entry.payload_at.get(),
            payload_len: entry.payload.len(),
            payload_hash: xxh3_64(&entry.payload),
            answer_hash: xxh3_64(answer),
        };
        match self.replicas[node].applied {
            None => self.violate(format!("node {node} applied entry {index} before it recovered its state")),
            Some(applied) if index < applied => {
                self.violate(format!("node {node} applied entry {index} again, {applied} were applied"));
            }
            Some(applied) => {
                if let Some((skipped, _)) = self.entries.range(applied..index).next() {
                    let skipped = *skipped;
                    self.violate(format!("node {node} applied entry {index} and left out {skipped}"));
                }
            }
        }
        self.replicas[node].applied = Some(index + 1);
        match self.entries.get(&index) {
            Some(first) if *first != record => {
                let what = format!("entry {index} on node {node} is {record:?}, elsewhere it was {first:?}");
                self.violate(what);
            }
            Some(_) => {}
            None => self.first_applied(node, index, record, &entry.payload, answer),
        }
    }

    fn first_applied(
        &mut self,
        node: usize,
        index: u64,
        record: EntryRecord,
        payload: &Bytes,
        answer: &Bytes,
    ) {
        if let Some((last, before)) = self.entries.last_key_value()
            && (*last > index || before.term > record.term || before.payload_at >= record.payload_at)
        {
            let what = format!("entry {index} {record:?} was applied first, after entry {last} {before:?}");
            self.violate(what);
        }
        self.trace.event(
            format_args!("node {node}"),
            format_args!(
                "applied {index} of term {} at {}: {:016x}",
                record.term, record.payload_at, record.payload_hash
            ),
        );
        self.entries.insert(index, record);
        if let Err(what) = self.model.apply(index, payload, answer) {
            self.violate(what);
        }
    }

    fn observe(&mut self, statuses: &[Option<GroupStatus>; NODES]) {
        for (node, status) in statuses.iter().enumerate() {
            if let Some(status) = status {
                self.observe_one(node, status);
            }
        }
        let committed =
            statuses.iter().flatten().map(|status| count(status.committed)).max().unwrap_or_default();
        let claims = committed.max(std::mem::take(&mut self.answered_in_tick));
        if claims > self.committed_max {
            self.committed_max = claims;
            let held = |replica: &&Replica| replica.flushed.max(replica.lost_flushed) >= claims;
            let holders = self.replicas.iter().filter(held).count();
            if holders < MAJORITY {
                let flushed: Vec<u64> = self.replicas.iter().map(|replica| replica.flushed).collect();
                self.violate(format!("{claims} entries are committed or answered, flushed are {flushed:?}"));
            }
        }
    }

    fn observe_one(&mut self, node: usize, status: &GroupStatus) {
        let now = Watermarks {
            term: status.term.get(),
            leader: status.leader.map(|leader| leader.get()),
            is_leader: status.is_leader,
            is_leader_ready: status.is_leader_ready,
            last: count(status.last),
            flushed: count(status.flushed),
            committed: count(status.committed),
            applied: count(status.applied),
            purged: count(status.purged),
            snapshot: count(status.snapshot),
        };
        if self.replicas[node].status == Some(now) {
            return;
        }
        self.trace.event(format_args!("node {node}"), format_args!("{now:?}"));
        if now.is_leader {
            let first = *self.leaders.entry(now.term).or_insert_with(|| {
                self.tallies.elections += 1;
                node
            });
            if first != node {
                self.violate(format!("term {} is led by node {first} and by node {node}", now.term));
            }
        }
        let applied = now.applied.max(self.replicas[node].applied.unwrap_or_default());
        if applied > now.committed {
            self.violate(format!("node {node} applied {applied} entries, {} are committed", now.committed));
        }
        if now.committed > now.last {
            self.violate(format!("node {node} has {} entries, {} are committed", now.last, now.committed));
        }
        if now.flushed > now.last {
            self.violate(format!("node {node} has {} entries, {} are flushed", now.last, now.flushed));
        }
        if now.purged > now.applied {
            self.violate(format!("node {node} purged {} entries, {} are applied", now.purged, now.applied));
        }
        if let Some(before) = self.replicas[node].status {
            self.tallies.purges += u64::from(now.purged > before.purged);
            let went_back = now.term < before.term
                || now.committed < before.committed
                || now.applied < before.applied
                || now.purged < before.purged
                || now.snapshot < before.snapshot;
            if went_back {
                self.violate(format!("node {node} went back from {before:?} to {now:?}"));
            }
        }
        // Across lives too: a flushed entry may be cut by a leader that lacks it, a committed one only
        // where a snapshot takes its place. openraft cuts the log in front of a snapshot back to the
        // commit it knows, which may be older, before the snapshot is installed; what the snapshot
        // holds is committed, so a majority of the others has to have it.
        let kept = self.replicas[node].kept;
        let others = self.replicas.iter().enumerate().filter(|(other, _)| *other != node);
        let holders = others.filter(|(_, replica)| replica.kept >= kept).count();
        let is_held_by_a_majority = holders >= MAJORITY;
        if now.flushed < kept && !is_held_by_a_majority {
            self.violate(format!(
                "node {node} had {kept} committed entries flushed and now has {}",
                now.flushed
            ));
        }
        let replica = &mut self.replicas[node];
        replica.status = Some(now);
        replica.flushed = now.flushed;
        replica.kept = kept.max(now.flushed.min(now.committed));
    }

    fn send_answered(&mut self, who: &str, id: &str, at: StoredAt, body_hash: u64) {
        let place = (at.queue, at.offset);
        self.tallies.sends += 1;
        self.tallies.repeats += u64::from(at.repeated);
        self.trace.event(who, format_args!("{id} is stored at {place:?}, repeat: {}", at.repeated));
        let Some(stored) = self.model.stored().get(id).copied() else {
            self.violate(format!("{who} was told {id} is stored, and no replica applied it"));
            return;
        };
        if stored.place != place {
            self.violate(format!("{who} was told {id} is at {place:?}, it is at {:?}", stored.place));
        }
        self.answered(stored.index);
        self.sends.insert(id.to_owned(), Send { place, index: stored.index, body_hash });
    }
}

#[cfg(test)]
mod tests {
    use ledgermq_common::{NodeId, PhysicalOffset, Term};
    use ledgermq_raft_store::EntryId;

    use super::*;

    fn oracle() -> Oracle {
        let oracle = Oracle::new(Trace::new(false));
        (0..NODES).for_each(|node| oracle.recovered(node, None));
        oracle
    }

    fn leads(node: usize, term: u64) -> [Option<GroupStatus>; NODES] {
        let leader = NodeId(node as u64 + 1);
        let status =
            GroupStatus { term: Term(term), leader: Some(leader), is_leader: true, ..GroupStatus::default() };
        std::array::from_fn(|index| (index == node).then(|| status.clone()))
    }

    fn entry(index: u64, payload: &'static [u8]) -> AppliedEntry {
        AppliedEntry {
            id: EntryId { term: Term(1), index: LogIndex(index) },
            payload_at: PhysicalOffset(index * 100),
            payload: Bytes::from_static(payload),
        }
    }

    #[test]
    fn two_leaders_of_one_term_are_convicted_and_leaders_of_two_terms_are_not() {
        let oracle = oracle();
        oracle.observe(&leads(0, 4));
        oracle.observe(&leads(1, 5));
        assert_eq!(oracle.violations(), Vec::<String>::new());
        oracle.observe(&leads(2, 5));
        assert_eq!(oracle.violations(), ["term 5 is led by node 1 and by node 2"]);
    }

    #[test]
    fn a_commit_that_one_disk_alone_has_is_convicted() {
        let oracle = oracle();
        let at = |index| Some(LogIndex(index));
        let ahead = GroupStatus { last: at(7), flushed: at(7), committed: at(7), ..GroupStatus::default() };
        let behind = GroupStatus { last: at(7), flushed: at(6), ..GroupStatus::default() };
        oracle.observe(&[Some(ahead.clone()), Some(ahead.clone()), Some(behind.clone())]);
        assert_eq!(oracle.violations(), Vec::<String>::new());
        let further = GroupStatus { last: at(8), flushed: at(8), committed: at(8), ..GroupStatus::default() };
        oracle.observe(&[Some(further), Some(ahead), Some(behind)]);
        assert_eq!(oracle.violations(), ["9 entries are committed or answered, flushed are [9, 8, 7]"]);
    }

    #[test]
    fn applied_before_committed_is_convicted() {
        let oracle = oracle();
        let at = |index| Some(LogIndex(index));
        let status = GroupStatus {
            last: at(5),
            flushed: at(5),
            committed: at(3),
            applied: at(4),
            ..GroupStatus::default()
        };
        oracle.observe(&[None, Some(status), None]);
        assert_eq!(oracle.violations()[0], "node 1 applied 5 entries, 4 are committed");
    }

    #[test]
    fn other_bytes_at_the_same_index_are_convicted() {
        let oracle = oracle();
        oracle.applied(0, &entry(3, b"one"), &Bytes::new());
        let before = oracle.violations().len();
        oracle.applied(1, &entry(3, b"two"), &Bytes::new());
        let violations = oracle.violations();
        assert!(violations[before..].iter().any(|text| text.contains("elsewhere it was")), "{violations:?}");
    }

    #[test]
    fn an_entry_applied_twice_or_left_out_is_convicted() {
        let oracle = oracle();
        oracle.applied(0, &entry(3, b"a"), &Bytes::new());
        oracle.applied(0, &entry(4, b"b"), &Bytes::new());
        oracle.applied(0, &entry(4, b"b"), &Bytes::new());
        oracle.applied(1, &entry(4, b"b"), &Bytes::new());
        let violations = oracle.violations();
        assert!(
            violations.iter().any(|text| text == "node 0 applied entry 4 again, 5 were applied"),
            "{violations:?}"
        );
        assert!(
            violations.iter().any(|text| text == "node 1 applied entry 4 and left out 3"),
            "{violations:?}"
        );
    }
}
