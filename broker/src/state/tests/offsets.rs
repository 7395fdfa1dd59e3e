use super::*;

const INVISIBLE_MS: u64 = 30_000;

const COMMITTED: Answer = Answer::OffsetCommitted(CommitOutcome::Committed);

struct Bed {
    replica: Replica,
    group: ConsumerGroupId,
    topic: TopicId,
}

/// Ten messages in one queue, one second apart.
fn bed(directory: Option<&Path>) -> Bed {
    let mut replica = Replica::open(directory, Log::default());
    let topic = replica.topic("orders", 1);
    let group = replica.group("billing");
    for number in 0..10 {
        let keyed = NewMessage {
            properties: MessageProperties {
                keys: vec![format!("key-{}", number % 2), "all".to_owned()],
                ..MessageProperties::default()
            },
            ..message(0, &format!("id-{number}"))
        };
        replica.send(topic, &[keyed]);
        replica.pass_ms(1_000);
    }
    Bed { replica, group, topic }
}

impl Bed {
    fn commit(&mut self, queue: u32, offset: u64) -> Answer {
        self.commit_of(queue, offset, None)
    }

    fn commit_of(&mut self, queue: u32, offset: u64, known: Option<ResetMark>) -> Answer {
        self.replica.propose(&Command::CommitOffset(CommitOffset {
            known,
            consumer_group: self.group,
            topic: self.topic,
            queue: QueueId(queue),
            offset: QueueOffset(offset),
        }))
    }

    fn reset(&mut self, offset: u64) {
        self.reset_by(offset, ResetId::default());
    }

    fn reset_by(&mut self, offset: u64, id: ResetId) {
        let queues = vec![(QueueId(0), QueueOffset(offset))];
        let command = ResetProgress { consumer_group: self.group, topic: self.topic, queues, id };
        assert_eq!(self.replica.propose(&Command::ResetProgress(command)), Answer::OffsetsSet(1));
    }

    fn offset(&self) -> Option<u64> {
        self.replica.state.group_offset(self.group, self.topic, QueueId(0)).map(|offset| offset.get())
    }

    fn mark(&self) -> ResetMark {
        self.replica.state.offset_since_reset(self.group, self.topic, QueueId(0)).1
    }

    fn receive(&mut self, max: u32) -> Vec<Granted> {
        self.replica.receive(self.group, self.topic, max, INVISIBLE_MS)
    }

    /// The ids of the records found, in order.
    fn search(&self, key: SearchKey<'_>, from: u64, max: usize) -> Vec<String> {
        let found = self.replica.state.search(self.topic, key, PhysicalOffset(from), max);
        let read = |found: &FoundRecord| {
            let FoundRecord { physical, record_bytes } = *found;
            let entry = IndexEntry { physical, record_bytes, tag_code: 0, stored_at: UnixMillis(0) };
            StoredMessage::decode(&self.replica.log.record(entry)).expect("a record").id
        };
        found.iter().map(read).collect()
    }
}

#[test]
fn a_committed_offset_is_remembered_and_lies_within_its_queue() {
    let mut bed = bed(None);
    assert_eq!(bed.offset(), None);
    assert_eq!(bed.commit(0, 10), COMMITTED, "the next offset is the last allowed");
    assert_eq!(bed.commit(0, 11), Answer::Refused(Refusal::OffsetOutOfRange));
    assert_eq!(bed.commit(1, 0), Answer::Refused(Refusal::QueueUnknown));
    assert_eq!(bed.offset(), Some(10));
    assert_eq!(bed.receive(10).len(), 10, "leases know nothing of it");
    bed.replica.propose(&Command::DeleteConsumerGroup(DeleteConsumerGroup { name: "billing".to_owned() }));
    bed.group = bed.replica.group("billing");
    assert_eq!(bed.offset(), None, "a group made again starts afresh");
}

#[test]
fn a_committed_offset_goes_ahead_or_nowhere_and_a_repeat_is_harmless() {
    let mut bed = bed(None);
    assert_eq!(bed.commit(0, 4), COMMITTED);
    assert_eq!(bed.commit(0, 7), COMMITTED);
    assert_eq!(bed.commit(0, 7), COMMITTED, "a repeat");
    let committed = QueueOffset(7);
    assert_eq!(bed.commit(0, 4), Answer::OffsetCommitted(CommitOutcome::Behind { committed }), "late");
    assert_eq!(bed.offset(), Some(7));
    bed.reset(2);
    assert_eq!(
        bed.commit(0, 1),
        Answer::OffsetCommitted(CommitOutcome::Behind { committed: QueueOffset(2) })
    );
    assert_eq!(bed.commit(0, 5), COMMITTED);
}

#[test]
fn a_first_commit_does_not_take_a_group_back_that_receives_or_was_reset() {
    let mut bed = bed(None);
    let held = bed.receive(4);
    bed.replica.ack(bed.group, bed.topic, &held);
    let behind =
        |committed| Answer::OffsetCommitted(CommitOutcome::Behind { committed: QueueOffset(committed) });
    assert_eq!(bed.commit(0, 3), behind(4));
    bed.reset(6);
    assert_eq!((bed.commit(0, 5), bed.offset()), (behind(6), Some(6)));
    assert_eq!((bed.commit(0, 9), bed.offset()), (COMMITTED, Some(9)));
}

#[test]
fn a_commit_of_a_client_that_knows_of_another_reset_counts_for_nothing_also_after_a_restart() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut bed = bed(Some(directory.path()));
    let before = bed.mark();
    assert_eq!(bed.commit_of(0, 8, Some(before)), COMMITTED);
    bed.reset(2);
    let last = bed.mark();
    assert_ne!(last, before);
    let late = Answer::OffsetCommitted(CommitOutcome::OfOtherReset { last });
    assert_eq!((bed.commit_of(0, 9, Some(before)), bed.offset()), (late.clone(), Some(2)));
    bed.replica.state.checkpoint().expect("written");
    bed.replica.state.close().expect("closed");
    let log = std::mem::take(&mut bed.replica.log);
    bed.replica = Replica::open(Some(directory.path()), log);
    assert_eq!((bed.mark(), bed.offset()), (last, Some(2)));
    assert_eq!(bed.commit_of(0, 9, Some(before)), late);
    assert_eq!((bed.commit_of(0, 3, Some(last)), bed.offset()), (COMMITTED, Some(3)));
}

#[test]
fn a_reset_that_comes_again_moves_nothing() {
    let mut bed = bed(None);
    bed.commit(0, 6);
    bed.reset_by(1, ResetId(7));
    let first = bed.mark();
    assert_eq!(bed.commit(0, 5), COMMITTED);
    bed.reset_by(1, ResetId(7));
    assert_eq!((bed.offset(), bed.mark()), (Some(5), first));
    for id in 8..24 {
        bed.reset_by(2, ResetId(id));
    }
    assert_eq!(bed.commit(0, 5), COMMITTED);
    bed.reset_by(2, ResetId(8));
    assert_eq!(bed.offset(), Some(5), "16 are remembered");
    bed.reset_by(3, ResetId(24));
    assert_eq!(bed.offset(), Some(3));
}

#[test]
fn a_group_that_receives_has_the_offset_of_the_first_message_it_has_not_consumed() {
    let mut bed = bed(None);
    let held = bed.receive(4);
    bed.replica.ack(bed.group, bed.topic, &[held[0], held[2]]);
    assert_eq!(bed.offset(), Some(1));
    bed.replica.ack(bed.group, bed.topic, &[held[1], held[3]]);
    assert_eq!(bed.offset(), Some(4));
}

#[test]
fn a_reset_goes_back_or_ahead_and_ends_what_is_under_delivery() {
    let mut bed = bed(None);
    let held = bed.receive(5);
    bed.replica.ack(bed.group, bed.topic, &held[..2]);
    bed.reset(1);
    assert_eq!(bed.replica.ack(bed.group, bed.topic, &[held[3]]), [DeliveryOutcome::NeverDelivered]);
    let again = bed.receive(10);
    assert_eq!(offsets(&again)[0], (0, 1));
    assert_eq!(again.len(), 9);
    assert!(again.iter().all(|lease| lease.attempt == 1));
    assert_eq!(bed.replica.ack(bed.group, bed.topic, &[held[3]]), [DeliveryOutcome::Stale]);
    bed.reset(8);
    bed.replica.pass_ms(INVISIBLE_MS);
    assert_eq!(offsets(&bed.receive(10)), [(0, 8), (0, 9)]);
    bed.reset(99);
    assert_eq!(bed.receive(10), [], "beyond the end is the end");
}

#[test]
fn a_reset_of_offsets_keeps_no_holes() {
    let mut bed = bed(None);
    // Two receives at once, of which the first never reaches the log: 0..4 is a hole.
    let request = bed.replica.request(bed.group, bed.topic, 4);
    let lost = bed.replica.state.plan_receive(&request).expect("messages");
    let held = bed.receive(4);
    assert_eq!(offsets(&held)[0], (0, 4));
    drop(lost);
    // Acknowledgements leave holes of their own: 4 and 6 are consumed, 5 and 7 are not.
    bed.replica.ack(bed.group, bed.topic, &[held[0], held[2]]);

    bed.reset(2);
    let again = bed.receive(10);
    let places: Vec<u64> = again.iter().map(|lease| lease.offset.get()).collect();
    assert_eq!(places, [2, 3, 4, 5, 6, 7, 8, 9], "all from there on, and nothing before");
    bed.replica.ack(bed.group, bed.topic, &again);
    assert_eq!(bed.receive(10), [], "each once");

    bed.reset(0);
    assert_eq!(bed.receive(10).len(), 10);
    bed.reset(9);
    assert_eq!(offsets(&bed.receive(10)), [(0, 9)], "what was before it is no hole");
}

#[test]
fn the_offset_of_a_time_is_that_of_the_first_message_stored_then_or_later() {
    let bed = bed(None);
    let at = |ms| bed.replica.state.offset_at(bed.topic, QueueId(0), UnixMillis(START + ms));
    assert_eq!(at(0), Some(QueueOffset(0)));
    assert_eq!(at(2_999), Some(QueueOffset(3)));
    assert_eq!(at(3_000), Some(QueueOffset(3)));
    assert_eq!(at(3_001), Some(QueueOffset(4)));
    assert_eq!(at(99_000), Some(QueueOffset(10)));
    assert_eq!(bed.replica.state.offset_at(bed.topic, QueueId(7), UnixMillis(0)), None);
}

#[test]
fn records_are_found_by_id_and_by_key_in_the_order_of_the_log_before_and_after_a_checkpoint() {
    let directory = tempfile::tempdir().expect("a directory");
    let bed = bed(Some(directory.path()));
    let check = || {
        assert_eq!(bed.search(SearchKey::MessageId("id-7"), 0, 10), ["id-7"]);
        assert_eq!(bed.search(SearchKey::Key("key-1"), 0, 10), ["id-1", "id-3", "id-5", "id-7", "id-9"]);
        let page = bed.replica.state.search(bed.topic, SearchKey::Key("all"), PhysicalOffset(0), 4);
        let rest = bed.search(SearchKey::Key("all"), page[3].physical.get() + 1, 100);
        assert_eq!(rest, ["id-4", "id-5", "id-6", "id-7", "id-8", "id-9"], "a page goes on after the last");
        // A page that begins at a record has it.
        for first in &page {
            let at_its_start = bed.replica.state.search(bed.topic, SearchKey::Key("all"), first.physical, 1);
            assert_eq!(at_its_start, [*first]);
        }
        assert_eq!(bed.search(SearchKey::Key("id-7"), 0, 10), Vec::<String>::new(), "an id is no key");
        let other = bed.replica.state.search(TopicId(99), SearchKey::Key("all"), PhysicalOffset(0), 4);
        assert_eq!(other, []);
    };
    check();
    bed.replica.state.checkpoint().expect("written");
    check();
    let found = bed.replica.state.search(bed.topic, SearchKey::MessageId("id-7"), PhysicalOffset(0), 1)[0];
    let place = bed.replica.state.place_of_record(bed.topic, QueueId(0), found.physical, None);
    assert_eq!(place.map(|(offset, _)| offset), Some(QueueOffset(7)));
    bed.replica.state.close().expect("closed");
}

#[test]
fn a_delayed_message_is_found_before_it_is_visible_and_in_its_queue_after() {
    let mut delays = super::timers::delays(None);
    for number in 0..3u64 {
        delays.send(&format!("id-{number}"), 1_000 + 10 * (3 - number));
    }
    let state = Arc::clone(&delays.replica.state);
    let found = state.search(delays.topic, SearchKey::MessageId("id-0"), PhysicalOffset(0), 9)[0];
    let due = Some(UnixMillis(START + 1_030));
    assert_eq!(state.place_of_record(delays.topic, QueueId(1), found.physical, due), None);
    delays.replica.pass_ms(2_000);
    delays.fire(10);
    let place = state.place_of_record(delays.topic, QueueId(1), found.physical, due);
    assert_eq!(place.map(|(offset, _)| offset), Some(QueueOffset(2)), "it was due last");
}
