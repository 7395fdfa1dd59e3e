use super::dead_letters::letter;
use super::*;
use crate::state::applied::retention::STRETCH_BYTES;
use crate::state::command::{CountTransactionChecks, NewHalf, TransactionCheck};

const HOUR_MS: u64 = 3_600_000;
const SEGMENT: u64 = 4 * STRETCH_BYTES;

struct Bed {
    replica: Replica,
    topic: TopicId,
}

fn bed(directory: Option<&Path>) -> Bed {
    let mut replica = Replica::open(directory, Log::default());
    let topic = replica.topic("orders", 2);
    Bed { replica, topic }
}

impl Bed {
    fn send(&mut self, queue: u32, id: &str) {
        self.replica.send(self.topic, &[message(queue, id)]);
    }

    /// Something else fills the log.
    fn fill(&mut self, bytes: u64) {
        self.replica.log.skip(bytes);
        // An entry of the state, so that it knows how far the log is.
        self.replica.group("filler");
    }

    fn expire(&mut self, retention_ms: u64) -> (u64, u64) {
        let plans = self.replica.state.expiry_plan(self.replica.now, retention_ms, None);
        let (mut messages, mut unread) = (0, 0);
        for plan in plans {
            match self.replica.propose(&Command::ExpireMessages(plan)) {
                Answer::Expired { messages: m, unread: u } => (messages, unread) = (messages + m, unread + u),
                other => panic!("{other:?}"),
            }
        }
        (messages, unread)
    }

    fn carry(&mut self) -> usize {
        let pins = self.replica.state.log_pins();
        let plan = self.replica.state.carry_plan(&pins, SEGMENT, 1 << 30);
        let records: Vec<_> = plan
            .records
            .iter()
            .map(|(owed, topic, entry)| (*owed, *topic, self.replica.log.record(*entry)))
            .collect();
        if records.is_empty() {
            return 0;
        }
        match self.replica.propose_bytes(encode_carried(self.replica.now, &records)) {
            Answer::Carried(carried) => carried as usize,
            other => panic!("{other:?}"),
        }
    }

    fn release(&mut self) -> u64 {
        let below = self.replica.state.log_pins().edge();
        match self.replica.propose(&Command::ReleaseLog(ReleaseLog { below })) {
            Answer::LogReleased { below } => below.get(),
            other => panic!("{other:?}"),
        }
    }

    fn end(&self) -> u64 {
        self.replica.log.entries.last().map_or(0, |entry| entry.payload_at.get())
    }

    fn range(&self, queue: usize) -> std::ops::Range<u64> {
        self.replica.state.queue_ranges(self.topic).expect("there")[queue].clone()
    }

    fn ids(&self, queue: u32) -> Vec<String> {
        let entries = self.replica.state.range(self.topic, QueueId(queue), QueueOffset(0), 1_000);
        let read = |entry| StoredMessage::decode(&self.replica.log.record(entry)).expect("a record").id;
        entries.into_iter().map(|(_, entry)| read(entry)).collect()
    }

    fn half(&mut self, id: &str) -> PhysicalOffset {
        let half = NewHalf { message: message(1, id), first_check_ms: 6_000 };
        match self.replica.propose_bytes(encode_halves(self.replica.now, self.topic, &[half])) {
            Answer::Halves(at) => at[0].transaction,
            other => panic!("{other:?}"),
        }
    }

    fn decide(&mut self, transaction: PhysicalOffset, id: &str, decision: Decision) -> Answer {
        let message = MessageIdHash::of(id.as_bytes());
        let source = DecisionSource::Producer;
        let end = EndTransaction { topic: self.topic, transaction, message, decision, source };
        self.replica.propose(&Command::EndTransaction(end))
    }

    fn delay(&mut self, id: &str, ahead_ms: u64) -> (UnixMillis, PhysicalOffset) {
        let deliver_at = self.replica.now.saturating_add_ms(ahead_ms);
        let command = encode_delayed(self.replica.now, self.topic, &[(deliver_at, message(1, id))]);
        match self.replica.propose_bytes(command) {
            Answer::Scheduled(scheduled) => match scheduled[0].placed {
                Placed::Pending { physical } => (deliver_at, physical),
                Placed::Visible { .. } => panic!("visible at once"),
            },
            other => panic!("{other:?}"),
        }
    }

    fn fire(&mut self) -> u32 {
        let through = self.replica.now;
        match self.replica.propose(&Command::FireTimers(FireTimers { through, max: 100 })) {
            Answer::Fired { fired, .. } => fired,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn messages_go_when_their_topic_keeps_them_no_longer_and_readers_go_on_at_the_minimum() {
    let mut bed = bed(None);
    let (slow, puller) = (bed.replica.group("slow"), bed.replica.group("puller"));
    for number in 0..10 {
        bed.send(0, &format!("old-{number}"));
    }
    let held = bed.replica.receive(slow, bed.topic, 3, 30_000);
    assert_eq!(held.len(), 3);
    let acked = bed.replica.ack(slow, bed.topic, &held[..1]);
    assert_eq!(acked, [DeliveryOutcome::Done]);
    let commit = CommitOffset {
        consumer_group: puller,
        topic: bed.topic,
        queue: QueueId(0),
        offset: QueueOffset(4),
        known: None,
    };
    bed.replica.propose(&Command::CommitOffset(commit));
    bed.replica.pass_ms(2 * HOUR_MS);
    bed.send(0, "new");

    assert_eq!(bed.expire(3 * HOUR_MS), (0, 0), "nothing is old enough");
    // The slow group has nine before it, two of them under delivery; the puller six.
    assert_eq!(bed.expire(HOUR_MS), (10, 9 + 6));
    assert_eq!(bed.range(0), 10..11);
    assert_eq!(bed.expire(HOUR_MS), (0, 0), "once");
    let locate = |offset| bed.replica.state.locate(bed.topic, QueueId(0), QueueOffset(offset));
    assert!(locate(9).is_none() && locate(10).is_some(), "no other message under an old offset");
    assert_eq!(bed.replica.state.expired_unread(slow, bed.topic), 9);
    assert_eq!(bed.replica.state.expired_unread(puller, bed.topic), 6);
    let at = |group| bed.replica.state.group_offset(group, bed.topic, QueueId(0));
    assert_eq!((at(slow), at(puller)), (Some(QueueOffset(10)), Some(QueueOffset(10))));
    let late = bed.replica.ack(slow, bed.topic, &held[1..]);
    assert_eq!(late, [DeliveryOutcome::AlreadyConsumed; 2], "a late acknowledgement does no harm");
    let lag = bed.replica.state.lag(slow, bed.topic);
    assert_eq!((lag.ready, lag.in_flight), (1, 0));
    assert_eq!(offsets(&bed.replica.receive(slow, bed.topic, 5, 1_000)), [(0, 10)]);
}

#[test]
fn nothing_goes_early_or_by_a_setting_that_is_no_longer_in_force() {
    let mut bed = bed(None);
    bed.send(0, "a");
    bed.replica.pass_ms(2 * HOUR_MS);
    let plan = bed.replica.state.expiry_plan(bed.replica.now, HOUR_MS, None).remove(0);
    let nothing = Answer::Expired { messages: 0, unread: 0 };
    let ahead = ExpireMessages { stored_before: bed.replica.now, ..plan.clone() };
    assert_eq!(bed.replica.propose(&Command::ExpireMessages(ahead)), nothing, "early by log time");
    let beyond = ExpireMessages { queues: vec![(QueueId(0), 99), (QueueId(7), 1)], ..plan.clone() };

    let keep = SetTopicRetention { topic: bed.topic, retention_ms: Some(5 * HOUR_MS) };
    assert_eq!(bed.replica.propose(&Command::SetTopicRetention(keep)), Answer::RetentionSet);
    assert_eq!(bed.replica.propose(&Command::ExpireMessages(plan)), nothing, "its topic keeps it longer now");
    assert_eq!(bed.expire(HOUR_MS), (0, 0));
    let keep = SetTopicRetention { topic: bed.topic, retention_ms: None };
    bed.replica.propose(&Command::SetTopicRetention(keep));
    let answer = bed.replica.propose(&Command::ExpireMessages(beyond));
    assert_eq!(answer, Answer::Expired { messages: 1, unread: 0 }, "never beyond the end of the queue");
    assert_eq!(bed.range(0), 1..1);

    let keep = SetTopicRetention { topic: bed.topic, retention_ms: Some(0) };
    bed.replica.propose(&Command::SetTopicRetention(keep));
    bed.send(0, "for ever");
    bed.replica.pass_ms(1_000 * HOUR_MS);
    bed.send(0, "newer");
    assert_eq!(bed.expire(HOUR_MS), (0, 0));
    assert_eq!(bed.range(0), 1..3);
}

#[test]
fn a_limit_on_the_log_lets_go_what_was_visible_before_its_last_bytes() {
    let mut bed = bed(None);
    for number in 0..20 {
        bed.send(0, &format!("{number}"));
        bed.replica.pass_ms(1_000);
        bed.fill(STRETCH_BYTES);
    }
    let limit = Some(5 * STRETCH_BYTES);
    let plan = bed.replica.state.expiry_plan(bed.replica.now, 0, limit).remove(0);
    assert_eq!(plan.cause, ExpiryCause::Size);
    bed.replica.propose(&Command::ExpireMessages(plan));
    let range = bed.range(0);
    assert_eq!(range.end, 20);
    assert!((13..=15).contains(&range.start), "{range:?}");
}

/// The promise of the issue: a half that is undecided is never removed, and its segment is not kept
/// for ever for its sake.
#[test]
fn an_old_undecided_half_is_carried_and_is_then_committed_by_its_own_id() {
    let mut bed = bed(None);
    bed.send(0, "before");
    let half = bed.half("half");
    let dropped = bed.half("rolled back");
    bed.replica.pass_ms(HOUR_MS);
    for _ in 0..6 {
        bed.fill(SEGMENT / 2);
    }
    bed.replica.pass_ms(2 * HOUR_MS);
    bed.send(0, "after");
    assert_eq!(bed.expire(HOUR_MS).0, 1);
    assert_eq!(bed.release(), half.get(), "the half holds it");
    let end = bed.end();
    assert_eq!(bed.carry(), 2);
    assert!(bed.release() >= end / STRETCH_BYTES * STRETCH_BYTES, "nothing holds it any more");
    assert_eq!(bed.carry(), 0, "what was carried lies at the end");

    // Producers are asked about it by the same id, and with its bytes.
    let open = bed.replica.state.open_transactions(TransactionQuery::default(), 10);
    assert_eq!(open.iter().map(|open| open.id).collect::<Vec<_>>(), [half, dropped]);
    assert!(open[0].entry().physical.get() > end);
    let read = StoredMessage::decode(&bed.replica.log.record(open[0].entry())).expect("a record");
    assert_eq!(read.id, "half");
    let check = TransactionCheck { transaction: half, number: 1 };
    let count = CountTransactionChecks { next_check_ms: 1_000, checks: vec![check] };
    assert_eq!(bed.replica.propose(&Command::CountTransactionChecks(count)), Answer::Transactions(1));

    assert!(matches!(bed.decide(dropped, "rolled back", Decision::Rollback), Answer::TransactionEnded(_)));
    let first = bed.decide(half, "half", Decision::Commit);
    let Answer::TransactionEnded(end) = first else { panic!("{first:?}") };
    assert!(end.decided_now && end.offset == QueueOffset(0));
    assert_eq!(bed.ids(1), ["half"]);
    let again = bed.decide(half, "half", Decision::Commit);
    assert_eq!(again, Answer::TransactionEnded(TransactionEnd { decided_now: false, waited_ms: 0, ..end }));
    assert_eq!(bed.replica.state.retention_view().carried_now, 0);
    // A repeat of the send is still answered by the first place.
    let found = bed.replica.state.search(bed.topic, SearchKey::MessageId("half"), PhysicalOffset(0), 10);
    assert_eq!(found.len(), 1, "the key index knows where it lies now");
}

#[test]
fn a_far_timer_is_carried_and_is_recalled_or_fired_by_its_first_handle() {
    let mut bed = bed(None);
    let (due, fired) = bed.delay("fired", 10 * HOUR_MS);
    let (recall_due, recalled) = bed.delay("recalled", 20 * HOUR_MS);
    for round in 0..3 {
        for _ in 0..3 {
            bed.fill(SEGMENT);
        }
        assert_eq!(bed.carry(), 2, "round {round}");
        let released = bed.release();
        assert!(released > bed.end() - 2 * SEGMENT, "round {round}: {released}");
    }
    assert_eq!(bed.replica.state.retention_view().carried_records, 6);
    assert_eq!(bed.replica.state.timers_pending(), 2);
    let repeat = encode_delayed(bed.replica.now, bed.topic, &[(due, message(1, "fired"))]);
    let repeat = bed.replica.propose_bytes(repeat);
    let Answer::Scheduled(scheduled) = repeat else { panic!("{repeat:?}") };
    assert_eq!(scheduled[0].placed, Placed::Pending { physical: fired }, "the first recall handle");

    let recall = RecallTimer { deliver_at: recall_due, physical: recalled };
    let answer = bed.replica.propose(&Command::RecallTimer(recall));
    assert_eq!(answer, Answer::Recalled(RecallOutcome::Recalled));
    bed.replica.pass_ms(10 * HOUR_MS);
    assert_eq!(bed.fire(), 1);
    assert_eq!(bed.ids(1), ["fired"]);
    bed.replica.pass_ms(20 * HOUR_MS);
    assert_eq!(bed.fire(), 0);
    assert_eq!(bed.replica.state.retention_view().carried_now, 0);
}

#[test]
fn a_carrying_entry_that_comes_too_late_changes_nothing() {
    let mut bed = bed(None);
    let half = bed.half("half");
    let (deliver_at, timer) = bed.delay("timer", 1_000);
    let record = |bed: &Bed, at: PhysicalOffset| {
        let found = bed.replica.state.search(bed.topic, SearchKey::MessageId("half"), PhysicalOffset(0), 1);
        let bytes = if at == half { found[0].record_bytes } else { 40 + 5 + 13 };
        let entry = IndexEntry { physical: at, record_bytes: bytes, tag_code: 0, stored_at: UnixMillis(0) };
        bed.replica.log.record(entry)
    };
    let half_record = record(&bed, half);
    let timer_record = record(&bed, timer);
    bed.decide(half, "half", Decision::Commit);
    bed.replica.pass_ms(1_000);
    bed.fire();
    let records = [
        (Owed::Half(half), bed.topic, half_record),
        (Owed::Timer(deliver_at, timer), bed.topic, timer_record),
    ];
    let answer = bed.replica.propose_bytes(encode_carried(bed.replica.now, &records));
    assert_eq!(answer, Answer::Carried(0));
    assert_eq!(bed.ids(1), ["half", "timer"]);
}

#[test]
fn what_became_visible_late_and_what_a_dead_letter_refers_to_holds_the_log_until_it_expires() {
    let mut bed = bed(None);
    let group = bed.replica.group("group");
    bed.fill(SEGMENT);
    let half = bed.half("late");
    let (_, _) = bed.delay("later", 2 * HOUR_MS);
    bed.send(0, "given up");
    for _ in 0..4 {
        bed.fill(SEGMENT);
    }
    bed.replica.pass_ms(2 * HOUR_MS);
    let held = bed.replica.receive(group, bed.topic, 1, 1_000);
    let given_up = letter(bed.topic, held[0], DeadLetterReason::Forwarded);
    let place = bed.replica.state.locate(bed.topic, QueueId(0), QueueOffset(0)).expect("there").physical;
    let given_up =
        Letter { record: DeadLetterRecord { physical: place, ..given_up.record.clone() }, ..given_up };
    let command = DeadLetter { consumer_group: group, topic: bed.topic, letters: vec![given_up] };
    bed.replica.propose(&Command::DeadLetter(command));
    bed.decide(half, "late", Decision::Commit);
    assert_eq!(bed.fire(), 1);

    // The message itself goes now, its letter is new.
    assert_eq!(bed.expire(HOUR_MS).0, 1);
    assert_eq!(bed.carry(), 0, "nothing is owed");
    let pins = bed.replica.state.log_pins();
    let stretch = half.get() / STRETCH_BYTES * STRETCH_BYTES;
    assert_eq!(pins.late.map(|pin| pin.0.get()), Some(stretch));
    assert_eq!(pins.holder(), Some(Pinned::Message(bed.topic)), "the first of its queue");
    assert_eq!(bed.release(), stretch);
    bed.replica.pass_ms(2 * HOUR_MS);
    bed.send(0, "new");
    assert_eq!(bed.expire(HOUR_MS).0, 3, "the two late ones and the letter");
    assert!(bed.release() > half.get() + SEGMENT);
}

#[test]
fn what_is_owed_is_carried_only_where_it_frees_at_least_twice_its_size() {
    let mut bed = bed(None);
    let body = Bytes::from(vec![7; 64 << 10]);
    let far = bed.replica.now.saturating_add_ms(100 * HOUR_MS);
    for number in 0..64 {
        let message = NewMessage { body: body.clone(), ..message(0, &format!("{number}")) };
        bed.replica.propose_bytes(encode_delayed(bed.replica.now, bed.topic, &[(far, message)]));
    }
    // Four segments full of timers, and nothing else.
    assert_eq!(bed.carry(), 0, "carrying them would free nothing");
    assert!(bed.release() < SEGMENT);
    // With as much again in between that is not owed, it pays.
    for _ in 0..5 {
        bed.fill(SEGMENT);
    }
    assert_eq!(bed.carry(), 64);
    assert!(bed.release() >= 8 * SEGMENT);
}

#[test]
fn checkpoints_forget_what_expired_and_a_restart_knows_the_rest() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut bed = bed(Some(directory.path()));
    let group = bed.replica.group("group");
    for round in 0..20 {
        for number in 0..5 {
            bed.send(number % 2, &format!("{round}-{number}"));
        }
        bed.half(&format!("half-{round}"));
        bed.delay(&format!("delayed-{round}"), 500 * HOUR_MS);
        bed.fill(SEGMENT);
        bed.replica.receive(group, bed.topic, 2, 1_000);
        bed.replica.pass_ms(HOUR_MS);
        bed.expire(3 * HOUR_MS);
        bed.carry();
        bed.release();
        bed.replica.state.checkpoint().expect("written");
    }
    let names = || -> Vec<String> {
        let items = std::fs::read_dir(directory.path()).expect("a directory");
        items.map(|item| item.expect("an item").file_name().to_string_lossy().into_owned()).collect()
    };
    let runs = names().iter().filter(|name| name.starts_with("run-")).count();
    let keys = names().iter().filter(|name| name.starts_with("keys-")).count();
    assert!(runs <= 5 && keys <= 8, "{:?}", names());
    let kept = bed.range(0);
    assert!(kept.start > 40 && kept.end == 60, "{kept:?}");
    let digest = bed.replica.state.state_digest();
    let view = bed.replica.state.retention_view();
    bed.replica.state.close().expect("closed");

    let log = bed.replica.log;
    let replica = Replica::open(Some(directory.path()), log.clone());
    assert_eq!(replica.state.state_digest(), digest);
    assert_eq!(replica.state.retention_view(), view);
    replica.state.close().expect("closed");
    drop(replica);

    // Derived: delete it, and it is made again from the log.
    std::fs::remove_dir_all(directory.path()).expect("deleted");
    std::fs::create_dir_all(directory.path()).expect("made");
    let replica = Replica::open(Some(directory.path()), log);
    assert_eq!(replica.state.state_digest(), digest);
    replica.state.close().expect("closed");
}
