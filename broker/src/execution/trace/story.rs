//! What each entry of the log did to one message.
//!
//! The message's state in a consumer group:
//!
//! ```text
//! not seen ──take──► leased ──ack, dead letter──► consumed
//!    │                 │ ▲ end of the lease: redelivered       │
//!    └─passed over─────┴─┴──────────► consumed ◄───────────────┘ redriven: leased, and ended
//! ```
//!
//! An acknowledgement names a delivery by its number, and the entry that made the delivery does not: apply
//! gave the number out. The walk learns the number from the first entry that names one. Where a message was
//! delivered twice before any number was named, an acknowledgement counts for the newer delivery, until an
//! entry shows that it did not.

use ledgermq_common::clock::UnixMillis;
use ledgermq_common::{LogIndex, PhysicalOffset, QueueId, QueueOffset};
use ledgermq_proto::admin as wire;
use ledgermq_proto::admin::trace_state::{Held, Phase};
use ledgermq_raft_store::AppliedEntry;

use crate::state::{
    BrokerState, CarryRecords, Command, ConsumerGroupId, DeadLetter, Decision, DecisionSource, DeliveryEpoch,
    ExpireMessages, ExpiryCause, LeaseInOrder, LeaseMessages, Owed, StoredMessage, TopicId, TopicView,
};

pub struct Story {
    topic: TopicId,
    id: String,
    known: wire::TraceState,
}

/// One delivery of one consumer group as a lease command asks for it.
struct Lease {
    consumer_group: ConsumerGroupId,
    client: u64,
    invisible_ms: u64,
    again: bool,
}

/// Where a row is written, and for which entry.
struct Page<'a> {
    state: &'a BrokerState,
    entry: &'a AppliedEntry,
    log_time: UnixMillis,
    rows: &'a mut Vec<wire::TraceRow>,
}

impl Page<'_> {
    fn row(&mut self, what: &str, detail: String) -> &mut wire::TraceRow {
        self.rows.push(wire::TraceRow {
            log_index: self.entry.id.index.get(),
            term: self.entry.id.term.get(),
            log_time_ms: self.log_time.get(),
            physical_offset: self.entry.payload_at.get(),
            what: what.to_owned(),
            detail,
            ..wire::TraceRow::default()
        });
        self.rows.last_mut().expect("a row was pushed")
    }

    fn of_group(&mut self, group: ConsumerGroupId, what: &str, detail: String) -> &mut wire::TraceRow {
        let known = self.state.consumer_group_by_id(group);
        let name = known.map_or_else(|| format!("deleted group {group}"), |view| view.name);
        let row = self.row(what, detail);
        row.consumer_group = name;
        row
    }
}

impl Story {
    pub fn new(topic: &TopicView, id: &str, known: wire::TraceState) -> Self {
        Self { topic: topic.id, id: id.to_owned(), known }
    }

    pub fn next_index(&self) -> u64 {
        self.known.next_index
    }

    pub fn goes_on_at(self, index: LogIndex) -> wire::TraceState {
        wire::TraceState { next_index: index.get(), ..self.known }
    }

    pub fn tell(
        &mut self,
        state: &BrokerState,
        entry: &AppliedEntry,
        stamped_at: UnixMillis,
        command: &Command,
        rows: &mut Vec<wire::TraceRow>,
    ) {
        self.known.log_time_ms = self.known.log_time_ms.max(stamped_at.get());
        let log_time = UnixMillis(self.known.log_time_ms);
        let page = &mut Page { state, entry, log_time, rows };
        match command {
            Command::AppendMessages(append) if append.topic == self.topic => {
                append
                    .messages
                    .iter()
                    .for_each(|m| self.stored(page, "stored", m.record_at, &m.id, &m.record));
            }
            Command::AppendInOrder(append) if append.append.topic == self.topic => {
                let messages = append.append.messages.iter();
                messages.for_each(|m| self.stored(page, "stored", m.record_at, &m.id, &m.record));
            }
            Command::StoreBatch(batch) => {
                let messages = batch.messages.iter().filter(|(topic, _)| *topic == self.topic);
                messages.for_each(|(_, m)| self.stored(page, "stored", m.record_at, &m.id, &m.record));
            }
            Command::AppendLite(append) if append.topic == self.topic => {
                append
                    .messages
                    .iter()
                    .for_each(|m| self.stored(page, "stored", m.record_at, &m.id, &m.record));
            }
            Command::AppendHalves(append) if append.topic == self.topic => {
                let messages = append.halves.iter().map(|half| &half.message);
                messages.for_each(|m| self.stored(page, "half stored", m.record_at, &m.id, &m.record));
            }
            Command::AppendDelayed(append) if append.topic == self.topic => {
                for (deliver_at, message) in &append.messages {
                    let what = if *deliver_at > log_time { "delayed" } else { "stored" };
                    self.stored(page, what, message.record_at, &message.id, &message.record);
                }
            }
            Command::CarryRecords(carry) => self.carried(page, carry),
            Command::EndTransaction(end) if end.transaction.get() == self.known.identity => {
                let by = match end.source {
                    DecisionSource::Producer => "its producer",
                    DecisionSource::Check => "its producer, when asked",
                    DecisionSource::Administrator => "an administrator",
                };
                let what = match end.decision {
                    Decision::Commit => "committed",
                    Decision::Rollback => "rolled back",
                };
                if std::mem::replace(&mut self.known.is_decided, true) {
                    page.row("decided again", format!("{what} by {by}: the first decision stands"));
                } else {
                    page.row(what, format!("by {by}"));
                }
            }
            Command::CountTransactionChecks(count) => {
                for check in count.checks.iter().filter(|check| self.is_named(check.transaction)) {
                    page.row(
                        "checked",
                        format!("a producer was asked for the outcome, time {}", check.number),
                    );
                }
            }
            Command::ParkTransactions(park) => {
                for check in park.transactions.iter().filter(|check| self.is_named(check.transaction)) {
                    let detail = format!("after {} checks: an administrator decides", check.number);
                    page.row("parked", detail);
                }
            }
            Command::FireTimers(fire) => self.fired(page, fire.through),
            Command::RecallTimer(recall) if self.is_timer(recall.deliver_at, recall.physical) => {
                if self.known.is_decided {
                    page.row("recall asked for", "it had fired or was recalled".to_owned());
                } else {
                    self.known.is_decided = true;
                    page.row("recalled", "by its producer, before it fired".to_owned());
                }
            }
            Command::ExpireMessages(expire) => self.expired(page, expire),
            _ => self.delivery(page, command),
        }
    }

    /// What consumer groups do with its place in its queue.
    fn delivery(&mut self, page: &mut Page<'_>, command: &Command) {
        let Some(offset) = self.known.offset else { return };
        let (queue, at) = (QueueId(self.known.queue), QueueOffset(offset));
        match command {
            Command::LeaseMessages(lease) if lease.topic == self.topic => self.leased(page, lease, queue, at),
            Command::LeaseInOrder(lease) if lease.topic == self.topic => {
                self.leased_in_order(page, lease, queue, at);
            }
            Command::AckMessages(ack) if ack.topic == self.topic => {
                for entry in ack.entries.iter().filter(|entry| (entry.queue, entry.offset) == (queue, at)) {
                    self.acknowledged(page, ack.consumer_group, entry.epoch);
                }
            }
            Command::ChangeInvisible(change) | Command::SuspendDelivery(change)
                if (change.topic, change.queue, change.offset) == (self.topic, queue, at) =>
            {
                let suspended = matches!(command, Command::SuspendDelivery(_));
                let until = page.log_time.saturating_add_ms(change.invisible_ms);
                let what = if suspended { "suspended" } else { "invisible duration changed" };
                self.moved(page, change.consumer_group, change.epoch, what, |held| {
                    held.until_ms = until.get();
                    held.suspended = suspended;
                });
            }
            Command::ExtendLeases(extend) => {
                for lease in &extend.extensions {
                    if (lease.topic, lease.queue, lease.offset) != (self.topic, queue, at) {
                        continue;
                    }
                    let until = page.log_time.saturating_add_ms(lease.invisible_ms).get();
                    self.moved(page, lease.consumer_group, lease.epoch, "renewed", |held| {
                        held.until_ms = held.until_ms.max(until);
                    });
                }
            }
            Command::ReleaseClient(release) => {
                let soon = page.log_time.saturating_add_ms(crate::state::RELEASED_CLIENT_INVISIBLE_MS).get();
                let held = self.held(release.consumer_group);
                if held.phase() == Phase::Leased && held.client == release.client.get() {
                    held.until_ms = held.until_ms.min(soon);
                    let until = held.until_ms;
                    let detail = format!("its client ended; invisible until {until}");
                    page.of_group(release.consumer_group, "released", detail).until_ms = Some(until);
                }
            }
            Command::DeadLetter(letters) if letters.topic == self.topic => {
                self.dead_lettered(page, letters, queue, at);
            }
            Command::RedriveDeadLetters(redrive) => {
                let is_it = |letter: &&crate::state::RedrivenLetter| {
                    (letter.topic, letter.queue, letter.offset) == (self.topic, queue, at)
                };
                if let Some(letter) = redrive.letters.iter().find(is_it).copied() {
                    let now = page.log_time.get();
                    let held = self.held(redrive.consumer_group);
                    if held.phase() == Phase::Consumed {
                        forget_delivery(held);
                        held.set_phase(Phase::Leased);
                        (held.attempt, held.until_ms) = (0, now);
                    }
                    let detail = format!("from dead letter {}; its attempts count anew", letter.letter);
                    page.of_group(redrive.consumer_group, "redriven", detail);
                }
            }
            Command::CommitOffset(commit) if (commit.topic, commit.queue) == (self.topic, queue) => {
                let is_passed = commit.offset > at;
                let held = self.held(commit.consumer_group);
                if std::mem::replace(&mut held.is_passed, is_passed) != is_passed {
                    let side = if is_passed { "behind it" } else { "at it or before" };
                    let detail = format!("{}, {side}", commit.offset);
                    page.of_group(commit.consumer_group, "offset committed", detail);
                }
            }
            Command::ResetProgress(reset) if reset.topic == self.topic => {
                for (_, offset) in reset.queues.iter().filter(|(of, _)| *of == queue) {
                    let is_before = *offset <= at;
                    let held = self.held(reset.consumer_group);
                    forget_delivery(held);
                    held.set_phase(if is_before { Phase::Unspecified } else { Phase::Consumed });
                    held.attempt = 0;
                    let side = if is_before { "it comes again" } else { "it is passed over" };
                    page.of_group(reset.consumer_group, "group moved", format!("to offset {offset}: {side}"));
                }
            }
            _ => {}
        }
    }

    fn is_named(&self, transaction: PhysicalOffset) -> bool {
        transaction.get() == self.known.identity
    }

    fn is_timer(&self, deliver_at: UnixMillis, physical: PhysicalOffset) -> bool {
        self.known.deliver_at_ms == Some(deliver_at.get()) && physical.get() == self.known.identity
    }

    fn stored(&self, page: &mut Page<'_>, what: &str, record_at: u32, id: &[u8], record: &bytes::Bytes) {
        if id != self.id.as_bytes() {
            return;
        }
        let at = page.entry.payload_at.get() + u64::from(record_at);
        if !self.known.records.contains(&at) {
            let detail = "the same message id: answered with the first result".to_owned();
            page.row("sent again", detail);
            return;
        }
        let Ok(stored) = StoredMessage::decode(record) else { return };
        let mut detail = format!("record of {} bytes at {at}, queue {}", record.len(), stored.queue);
        if what == "stored"
            && let Some(offset) = self.known.offset
        {
            detail.push_str(&format!(", offset {offset}"));
        }
        if let Some(deliver_at) = stored.properties.deliver_at_ms {
            detail.push_str(&format!(", until {deliver_at}"));
        }
        if let Some(group) = &stored.properties.message_group {
            detail.push_str(&format!(", message group {group}"));
        }
        detail.push_str(&format!(", born {} at {}", stored.born_at, stored.properties.born_host));
        page.row(what, detail);
    }

    fn carried(&mut self, page: &mut Page<'_>, carry: &CarryRecords) {
        for record in carry.records.iter().filter(|record| record.topic == self.topic) {
            if record.message.id != self.id.as_bytes() {
                continue;
            }
            let (Owed::Half(identity) | Owed::Timer(_, identity)) = record.owed;
            self.known.identity = identity.get();
            let at = page.entry.payload_at.get() + u64::from(record.message.record_at);
            page.row("carried", format!("stored once more at {at}, so that its old segment can go"));
        }
    }

    /// The entry fires what is due, and does not name it.
    fn fired(&mut self, page: &mut Page<'_>, through: UnixMillis) {
        let Some(deliver_at) = self.known.deliver_at_ms.filter(|_| !self.known.is_decided) else { return };
        let is_due = deliver_at <= through.min(page.log_time).get();
        if !is_due || page.log_time.get() < self.known.visible_ms {
            return;
        }
        self.known.is_decided = true;
        let offset = self.known.offset.map_or_else(String::new, |offset| format!(" at offset {offset}"));
        let late = page.log_time.get().saturating_sub(deliver_at);
        page.row("fired", format!("visible{offset}, {late} ms after its time"));
    }

    fn expired(&mut self, page: &mut Page<'_>, expire: &ExpireMessages) {
        let Some(offset) = self.known.offset.filter(|_| expire.topic == self.topic) else { return };
        let is_below = |(queue, min): &(QueueId, u64)| queue.get() == self.known.queue && offset < *min;
        let ranges = page.state.queue_ranges(self.topic).unwrap_or_default();
        let is_gone = ranges.get(self.known.queue as usize).is_some_and(|range| offset < range.start);
        if is_gone
            && expire.queues.iter().any(is_below)
            && !std::mem::replace(&mut self.known.is_expired, true)
        {
            let why = match expire.cause {
                ExpiryCause::Time => "its topic keeps messages no longer",
                ExpiryCause::Size => "the log was larger than the broker keeps it",
            };
            page.row("expired", why.to_owned());
        }
    }

    fn held(&mut self, group: ConsumerGroupId) -> &mut Held {
        let held = &mut self.known.held;
        let at = match held.iter().position(|held| held.consumer_group == group.get()) {
            Some(at) => at,
            None => {
                held.push(Held { consumer_group: group.get(), ..Held::default() });
                held.len() - 1
            }
        };
        &mut held[at]
    }

    fn leased(&mut self, page: &mut Page<'_>, lease: &LeaseMessages, queue: QueueId, at: QueueOffset) {
        for part in lease.parts.iter().filter(|part| part.queue == queue) {
            let (taken, again) = (part.take.contains(&at), part.redeliver.contains(&at));
            if taken || again {
                let delivery = Lease {
                    consumer_group: lease.consumer_group,
                    client: lease.client.get(),
                    invisible_ms: lease.invisible_ms,
                    again,
                };
                self.delivered(page, &delivery);
            } else if part.finish.contains(&at) || (part.from..part.to).contains(&at) {
                self.passed_over(page, lease.consumer_group, part.finish.contains(&at));
            }
        }
    }

    fn leased_in_order(
        &mut self,
        page: &mut Page<'_>,
        lease: &LeaseInOrder,
        queue: QueueId,
        at: QueueOffset,
    ) {
        for part in lease.parts.iter().filter(|part| part.queue == queue) {
            if let Some(message) = part.messages.iter().find(|message| message.offset == at) {
                let delivery = Lease {
                    consumer_group: lease.consumer_group,
                    client: lease.client.get(),
                    invisible_ms: lease.invisible_ms,
                    again: message.again,
                };
                self.delivered(page, &delivery);
            } else if part.pass_over.contains(&at) {
                let again = self.held(lease.consumer_group).phase() == Phase::Leased;
                self.passed_over(page, lease.consumer_group, again);
            }
        }
    }

    fn delivered(&mut self, page: &mut Page<'_>, lease: &Lease) {
        let now = page.log_time.get();
        let held = self.held(lease.consumer_group);
        let is_ended = held.phase() == Phase::Leased && held.until_ms <= now;
        // Acknowledged while the newest delivery held, and yet delivered again: that was an older one.
        let was_older = held.phase() == Phase::Consumed && held.attempt > 1 && held.since_ms < held.until_ms;
        let is_granted = if lease.again {
            is_ended || (was_older && held.until_ms <= now)
        } else {
            held.phase() == Phase::Unspecified
        };
        if !is_granted {
            return;
        }
        let attempt = match (lease.again, held.suspended) {
            (false, _) => 1,
            (true, true) => held.attempt.max(1),
            (true, false) => held.attempt.saturating_add(1),
        };
        if was_older {
            held.delivery_before = held.delivery_before.max(held.delivery);
            held.delivery = 0;
        }
        forget_delivery(held);
        held.set_phase(Phase::Leased);
        (held.attempt, held.client) = (attempt, lease.client);
        held.until_ms = UnixMillis(now).saturating_add_ms(lease.invisible_ms).get();
        let until = held.until_ms;
        let mut detail = format!("attempt {attempt}, invisible until {until}");
        if was_older {
            detail.push_str("; the acknowledgement before was of an earlier delivery");
        }
        let row = page.of_group(lease.consumer_group, "delivered", detail);
        row.attempt = Some(attempt);
        row.until_ms = Some(until);
        // Named when the page is sent.
        row.client = lease.client.to_string();
    }

    fn passed_over(&mut self, page: &mut Page<'_>, group: ConsumerGroupId, again: bool) {
        let now = page.log_time.get();
        let held = self.held(group);
        let applies = match held.phase() {
            Phase::Unspecified => !again,
            Phase::Leased => again && held.until_ms <= now,
            Phase::Consumed => false,
        };
        if applies {
            held.set_phase(Phase::Consumed);
            held.since_ms = now;
            page.of_group(group, "passed over", "no member of the group wanted it".to_owned());
        }
    }

    fn acknowledged(&mut self, page: &mut Page<'_>, group: ConsumerGroupId, epoch: DeliveryEpoch) {
        let now = page.log_time.get();
        let held = self.held(group);
        let attempt = held.attempt;
        match (held.phase(), names(held, epoch)) {
            (Phase::Leased, true) => {
                held.delivery = epoch.get();
                held.set_phase(Phase::Consumed);
                held.since_ms = now;
                let late = now.saturating_sub(held.until_ms);
                let late =
                    if late > 0 { format!(", {late} ms after its lease ended") } else { String::new() };
                let detail = format!("delivery {}{late}", epoch.get());
                page.of_group(group, "acknowledged", detail).attempt = Some(attempt);
            }
            (Phase::Consumed, true) => {
                held.delivery = epoch.get();
                page.of_group(group, "acknowledged again", format!("delivery {}", epoch.get()));
            }
            _ => {
                let detail = format!("delivery {} is not the newest: no effect", epoch.get());
                page.of_group(group, "acknowledgement refused", detail);
            }
        }
    }

    fn moved(
        &mut self,
        page: &mut Page<'_>,
        group: ConsumerGroupId,
        epoch: DeliveryEpoch,
        what: &str,
        change: impl FnOnce(&mut Held),
    ) {
        let held = self.held(group);
        if held.phase() != Phase::Leased || !names(held, epoch) {
            page.of_group(group, what, format!("delivery {} is over: no effect", epoch.get()));
            return;
        }
        held.delivery = epoch.get();
        change(held);
        let (attempt, until) = (held.attempt, held.until_ms);
        let row = page.of_group(group, what, format!("delivery {}, invisible until {until}", epoch.get()));
        row.attempt = Some(attempt);
        row.until_ms = Some(until);
    }

    fn dead_lettered(&mut self, page: &mut Page<'_>, letters: &DeadLetter, queue: QueueId, at: QueueOffset) {
        let group = letters.consumer_group;
        for (letter, record_at) in letters.positioned() {
            if (letter.queue, letter.offset) != (queue, at) {
                continue;
            }
            let physical = PhysicalOffset(page.entry.payload_at.get() + record_at);
            let known = page.state.consumer_group_by_id(group);
            let dead_letters = known.and_then(|view| page.state.dead_letters_of(&view.name));
            let place = dead_letters
                .and_then(|(topic, queue)| page.state.place_of_record(topic, queue, physical, None));
            let held = self.held(group);
            // The queue of the dead letters says whether it happened, while it keeps the letter.
            let is_moved = place.is_some() || (held.phase() == Phase::Leased && names(held, letter.epoch));
            if !is_moved {
                let detail = format!("delivery {} is over: no effect", letter.epoch.get());
                page.of_group(group, "dead letter refused", detail);
                continue;
            }
            held.delivery = letter.epoch.get();
            held.set_phase(Phase::Consumed);
            held.since_ms = page.log_time.get();
            let attempts = letter.record.attempts;
            let detail = format!("{} after {attempts} attempts", letter.record.reason.as_str());
            let row = page.of_group(group, "dead-lettered", detail);
            row.attempt = Some(attempts);
            row.dead_letter =
                place.map(|(offset, _)| wire::Place { group: String::new(), queue: 0, offset: offset.get() });
        }
    }
}

/// Whether the number can be that of the newest delivery.
fn names(held: &Held, epoch: DeliveryEpoch) -> bool {
    if held.delivery == 0 { epoch.get() > held.delivery_before } else { epoch.get() == held.delivery }
}

/// The next delivery has another number.
fn forget_delivery(held: &mut Held) {
    held.delivery_before = held.delivery_before.max(held.delivery);
    held.delivery = 0;
    held.suspended = false;
}

#[cfg(test)]
mod tests;
