use ledgermq_common::limits::{MESSAGE_ID_WINDOW_MS, TRANSACTION_OUTCOME_MS};

use super::*;

const CHECK_MS: u32 = 6_000;

fn half(queue: u32, id: &str) -> NewHalf {
    let message = NewMessage { message_type: MessageType::Transaction, ..message(queue, id) };
    NewHalf { message, first_check_ms: CHECK_MS }
}

impl Replica {
    fn halves(&mut self, topic: TopicId, halves: &[NewHalf]) -> Vec<HalfAt> {
        match self.propose_bytes(encode_halves(self.now, topic, halves)) {
            Answer::Halves(stored) => stored,
            other => panic!("{other:?}"),
        }
    }

    fn half(&mut self, topic: TopicId, queue: u32, id: &str) -> PhysicalOffset {
        self.halves(topic, &[half(queue, id)])[0].transaction
    }

    fn end(&mut self, topic: TopicId, half: PhysicalOffset, id: &str, decision: Decision) -> Answer {
        self.propose(&Command::EndTransaction(EndTransaction {
            topic,
            transaction: half,
            message: MessageIdHash::of(id.as_bytes()),
            decision,
            source: DecisionSource::Producer,
        }))
    }

    fn commit(&mut self, topic: TopicId, half: PhysicalOffset, id: &str) -> TransactionEnd {
        match self.end(topic, half, id, Decision::Commit) {
            Answer::TransactionEnded(end) => end,
            other => panic!("{other:?}"),
        }
    }

    fn count(&mut self, checks: &[(PhysicalOffset, u32)]) -> Answer {
        let checks = checks.iter().map(|&(transaction, number)| TransactionCheck { transaction, number });
        let command = CountTransactionChecks { next_check_ms: 30_000, checks: checks.collect() };
        self.propose(&Command::CountTransactionChecks(command))
    }

    fn due(&self) -> Vec<PhysicalOffset> {
        self.state.due_transactions(self.now, 100).into_iter().map(|open| open.id).collect()
    }
}

#[test]
fn a_half_is_invisible_and_its_commit_shows_the_very_bytes_in_the_order_of_commits() {
    let mut replica = Replica::in_memory();
    let (topic, group) = (replica.topic("pay", 2), replica.group("workers"));
    let first = replica.half(topic, 1, "a");
    let second = replica.half(topic, 1, "b");
    assert_eq!(replica.state.queue_ranges(topic), Some(vec![0..0, 0..0]));
    assert_eq!(replica.receive(group, topic, 10, 10_000), []);

    replica.pass_ms(1_000);
    let log_bytes = replica.log.entries.iter().map(|entry| entry.payload.len()).sum::<usize>();
    let end = replica.commit(topic, second, "b");
    assert_eq!(
        (end.queue, end.offset, end.decided_now, end.waited_ms),
        (QueueId(1), QueueOffset(0), true, 1_000)
    );
    let added = replica.log.entries.iter().map(|entry| entry.payload.len()).sum::<usize>() - log_bytes;
    assert!(added <= 40, "a commit carries no body: {added} bytes");
    assert_eq!(replica.commit(topic, first, "a").offset, QueueOffset(1));

    let entry = replica.state.locate(topic, QueueId(1), QueueOffset(0)).expect("visible");
    assert_eq!((entry.physical, entry.stored_at), (second, UnixMillis(START + 1_000)));
    let read = StoredMessage::decode(&replica.log.record(entry)).expect("the half's record");
    assert_eq!((read.id.as_str(), read.body.as_ref()), ("b", b"body of b".as_slice()));
    assert_eq!(offsets(&replica.receive(group, topic, 10, 10_000)), [(1, 0), (1, 1)]);
}

#[test]
fn the_first_decision_stands_and_later_ones_are_told_what_it_was() {
    let mut replica = Replica::in_memory();
    let (topic, other) = (replica.topic("pay", 1), replica.topic("other", 1));
    let committed = replica.half(topic, 0, "a");
    let rolled_back = replica.half(topic, 0, "b");
    let first = replica.commit(topic, committed, "a");
    let Answer::TransactionEnded(dropped) = replica.end(topic, rolled_back, "b", Decision::Rollback) else {
        panic!("rolled back");
    };
    assert!(dropped.decided_now);
    for decision in [Decision::Commit, Decision::Rollback] {
        let repeated = Answer::TransactionEnded(TransactionEnd { decided_now: false, waited_ms: 0, ..first });
        assert_eq!(replica.end(topic, committed, "a", decision), repeated);
        let repeated =
            Answer::TransactionEnded(TransactionEnd { decided_now: false, waited_ms: 0, ..dropped });
        assert_eq!(replica.end(topic, rolled_back, "b", decision), repeated);
    }
    assert_eq!(replica.state.queue_ranges(topic), Some(vec![0..1]), "one message, once");

    let open = replica.half(topic, 0, "c");
    let refused = |answer, refusal| assert_eq!(answer, Answer::Refused(refusal));
    refused(replica.end(other, open, "c", Decision::Commit), Refusal::TransactionOfOtherTopic);
    refused(replica.end(other, committed, "a", Decision::Commit), Refusal::TransactionOfOtherTopic);
    refused(replica.end(topic, open, "another message", Decision::Commit), Refusal::TransactionUnknown);
    refused(replica.end(topic, PhysicalOffset(1), "c", Decision::Commit), Refusal::TransactionUnknown);
    assert_eq!(replica.state.queue_ranges(topic), Some(vec![0..1]));
    assert!(replica.commit(topic, open, "c").decided_now, "nobody has touched it");
}

#[test]
fn a_repeated_half_is_stored_once_and_gets_the_first_transaction_also_when_that_is_decided() {
    let mut replica = Replica::in_memory();
    let topic = replica.topic("pay", 2);
    let stored = replica.halves(topic, &[half(0, "a"), half(0, "a"), half(1, "b")]);
    assert_eq!(stored[1], HalfAt { repeated: true, ..stored[0] });
    assert!(!stored[2].repeated);
    replica.pass_ms(1_000);
    replica.commit(topic, stored[0].transaction, "a");
    let again = replica.halves(topic, &[half(1, "a")]);
    assert_eq!(again[0], HalfAt { repeated: true, ..stored[0] });
    assert!(!replica.commit(topic, again[0].transaction, "a").decided_now);
    replica.pass_ms(MESSAGE_ID_WINDOW_MS + 1);
    let anew = replica.halves(topic, &[half(0, "a")]);
    assert!(!anew[0].repeated);
    assert_ne!(anew[0].transaction, stored[0].transaction, "ids never come again");
    assert!(replica.commit(topic, anew[0].transaction, "a").decided_now);
    assert!(!replica.commit(topic, stored[0].transaction, "a").decided_now, "the old one is not touched");
}

#[test]
fn checks_are_counted_once_each_and_the_next_one_is_an_interval_away() {
    let mut replica = Replica::in_memory();
    let topic = replica.topic("pay", 1);
    let slow = NewHalf { first_check_ms: 60_000, ..half(0, "slow") };
    let stored = replica.halves(topic, &[half(0, "a"), slow]);
    let (a, slow) = (stored[0].transaction, stored[1].transaction);
    assert_eq!(replica.due(), []);
    replica.pass_ms(u64::from(CHECK_MS));
    assert_eq!(replica.due(), [a], "the other one asked for more time");
    assert_eq!(replica.count(&[(a, 1)]), Answer::Transactions(1));
    assert_eq!(replica.count(&[(a, 1)]), Answer::Transactions(0), "a repeated report");
    assert_eq!(replica.count(&[(a, 3)]), Answer::Transactions(0), "a report out of order");
    assert_eq!(replica.due(), []);
    replica.pass_ms(30_000);
    assert_eq!(replica.due(), [a]);
    replica.count(&[(a, 2)]);
    replica.pass_ms(30_000);
    assert_eq!(replica.due(), [slow, a], "by the time of their check");

    let park = |number| {
        Command::ParkTransactions(ParkTransactions {
            transactions: vec![TransactionCheck { transaction: a, number }],
        })
    };
    assert_eq!(replica.propose(&park(1)), Answer::Transactions(0), "it was checked again meanwhile");
    assert_eq!(replica.propose(&park(2)), Answer::Transactions(1));
    assert_eq!(replica.due(), [slow]);
    assert_eq!(replica.count(&[(a, 3)]), Answer::Transactions(0), "nobody is asked about it any more");
    let parked = replica
        .state
        .open_transactions(TransactionQuery { only_parked: true, ..TransactionQuery::default() }, 10);
    assert_eq!(parked.iter().map(|open| (open.id, open.checks)).collect::<Vec<_>>(), [(a, 2)]);
    assert!(replica.commit(topic, a, "a").decided_now, "it can still be decided");
    assert_eq!(replica.commit(topic, slow, "slow").offset, QueueOffset(1));
    assert_eq!(replica.due(), []);
}

#[test]
fn a_topic_without_anybody_to_ask_does_not_hold_up_the_others() {
    let mut replica = Replica::in_memory();
    let (silent, other) = (replica.topic("silent", 1), replica.topic("other", 1));
    for number in 0..50 {
        replica.half(silent, 0, &format!("{number}"));
    }
    replica.pass_ms(1_000);
    let wanted = replica.half(other, 0, "a");
    replica.pass_ms(60_000);
    let due = replica.state.due_transactions(replica.now, 10);
    assert_eq!(due.len(), 11);
    assert!(due.iter().any(|open| open.id == wanted));
}

#[test]
fn outcomes_are_forgotten_in_time_and_open_transactions_never() {
    let mut replica = Replica::in_memory();
    let topic = replica.topic("pay", 1);
    let open = replica.half(topic, 0, "open");
    let old = replica.half(topic, 0, "old");
    replica.commit(topic, old, "old");
    replica.pass_ms(TRANSACTION_OUTCOME_MS);
    // Outcomes are forgotten by the record, of which the newest is kept.
    for number in 0..600 {
        let id = format!("{number}");
        let half = replica.half(topic, 0, &id);
        replica.end(topic, half, &id, Decision::Rollback);
    }
    assert!(!replica.commit(topic, old, "old").decided_now, "it is remembered until its time is over");
    replica.pass_ms(1);
    let late = replica.half(topic, 0, "late");
    replica.end(topic, late, "late", Decision::Rollback);
    assert!(!replica.commit(topic, old, "old").decided_now, "its record holds younger ones too");
    replica.pass_ms(TRANSACTION_OUTCOME_MS + 1);
    let later = replica.half(topic, 0, "later");
    replica.end(topic, later, "later", Decision::Rollback);
    let forgotten = replica.end(topic, old, "old", Decision::Commit);
    assert_eq!(forgotten, Answer::Refused(Refusal::TransactionUnknown));
    assert_eq!(replica.state.queue_ranges(topic), Some(vec![0..1]), "its message stays");
    assert!(replica.commit(topic, open, "open").decided_now);
}

#[test]
fn a_deleted_topic_takes_its_transactions_with_it() {
    let mut replica = Replica::in_memory();
    let (topic, other) = (replica.topic("pay", 1), replica.topic("other", 1));
    let (gone, kept) = (replica.half(topic, 0, "a"), replica.half(other, 0, "b"));
    replica.propose(&Command::DeleteTopic(DeleteTopic { name: "pay".to_owned() }));
    let answer = replica.end(topic, gone, "a", Decision::Commit);
    assert_eq!(answer, Answer::Refused(Refusal::TransactionUnknown));
    replica.pass_ms(100_000);
    assert_eq!(replica.due(), [kept]);
}

#[test]
fn a_restart_and_a_snapshot_keep_the_schedule_the_counts_and_the_outcomes() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut replica = Replica::open(Some(directory.path()), Log::default());
    let topic = replica.topic("pay", 2);
    let mut halves = Vec::new();
    for number in 0..700u32 {
        let id = format!("{number}");
        halves.push((replica.half(topic, number % 2, &id), id));
        replica.pass_ms(3);
    }
    for (half, id) in &halves[..600] {
        replica.commit(topic, *half, id);
    }
    replica.state.checkpoint().expect("written");
    let (half, id) = halves[600].clone();
    replica.end(topic, half, &id, Decision::Rollback);
    replica.pass_ms(20_000);
    replica.count(&[(halves[601].0, 1), (halves[602].0, 1)]);
    replica.state.checkpoint().expect("written");
    replica.count(&[(halves[601].0, 2)]);
    let (due, digest) = (replica.due(), replica.state.state_digest());
    assert_eq!(due.len(), 97);
    let (applied, stream) = replica.state.snapshot().expect("a snapshot");
    let now = replica.now;
    replica.state.close().expect("closed");

    let restored = Replica::in_memory();
    restored.state.restore(applied.expect("entries"), stream).expect("restored");
    let mut restarted = Replica::open(Some(directory.path()), replica.log);
    restarted.now = now;
    for (what, state) in [("restored", &restored.state), ("restarted", &restarted.state)] {
        assert_eq!(state.state_digest(), digest, "{what}");
        let again: Vec<_> = state.due_transactions(now, 1000).into_iter().map(|open| open.id).collect();
        assert_eq!(again, due, "{what}");
    }
    assert!(!restarted.commit(topic, half, &id).decided_now);
    assert_eq!(restarted.commit(topic, half, &id).decision, Decision::Rollback);
    assert_eq!(restarted.commit(topic, halves[601].0, &halves[601].1).offset, QueueOffset(300));
    assert!(restarted.halves(topic, &[super::transactions::half(0, "0")])[0].repeated);
    restarted.state.close().expect("closed");
}
