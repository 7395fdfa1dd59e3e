use ledgermq_common::limits::MESSAGE_ID_WINDOW_MS;

use super::*;

#[test]
fn messages_get_the_next_offset_of_their_queue_and_are_found_there() {
    let mut replica = Replica::in_memory();
    let topic = replica.topic("orders", 2);
    let stored = replica.send(topic, &[message(0, "a"), message(1, "b"), message(0, "c")]);
    let places: Vec<(u32, u64)> = stored.iter().map(|at| (at.queue.get(), at.offset.get())).collect();
    assert_eq!(places, [(0, 0), (1, 0), (0, 1)]);
    let entry = replica.state.locate(topic, QueueId(0), QueueOffset(1)).expect("stored");
    let read = StoredMessage::decode(&replica.log.record(entry)).expect("a record");
    assert_eq!((read.id.as_str(), read.body.as_ref()), ("c", b"body of c".as_slice()));
    assert_eq!(entry.stored_at, UnixMillis(START));
    assert_eq!(replica.state.locate(topic, QueueId(0), QueueOffset(2)), None);
    assert_eq!(replica.state.queue_ranges(topic), Some(vec![0..2, 0..1]));
}

#[test]
fn a_repeated_message_is_stored_once_and_gets_the_first_answer() {
    let mut replica = Replica::in_memory();
    let topic = replica.topic("orders", 2);
    let first = replica.send(topic, &[message(0, "a")]);
    replica.pass_ms(5_000);
    let second = replica.send(topic, &[message(1, "b"), message(1, "a"), message(1, "b")]);
    assert_eq!(second[1], StoredAt { repeated: true, ..first[0] });
    assert!(!second[0].repeated);
    assert_eq!(second[2], StoredAt { repeated: true, ..second[0] });
    assert_eq!(replica.state.queue_ranges(topic), Some(vec![0..1, 0..1]));
}

#[test]
fn an_id_may_come_again_after_the_window() {
    let mut replica = Replica::in_memory();
    let topic = replica.topic("orders", 1);
    replica.send(topic, &[message(0, "a")]);
    replica.pass_ms(MESSAGE_ID_WINDOW_MS);
    assert!(replica.send(topic, &[message(0, "a")])[0].repeated);
    replica.pass_ms(1);
    assert!(!replica.send(topic, &[message(0, "a")])[0].repeated);
}

#[test]
fn a_leader_with_a_slow_clock_does_not_turn_log_time_back() {
    let mut replica = Replica::in_memory();
    let topic = replica.topic("orders", 1);
    replica.now = UnixMillis(START - 60_000);
    let stored = replica.send(topic, &[message(0, "a")]);
    assert_eq!(stored[0].stored_at, UnixMillis(START));
}

#[test]
fn a_batch_with_an_unknown_queue_stores_nothing() {
    let mut replica = Replica::in_memory();
    let topic = replica.topic("orders", 1);
    let answer =
        replica.propose_bytes(encode_append(replica.now, topic, &[message(0, "a"), message(1, "b")]));
    assert_eq!(answer, Answer::Refused(Refusal::QueueUnknown));
    assert_eq!(replica.state.locate(topic, QueueId(0), QueueOffset(0)), None);
    assert_eq!(replica.send(topic, &[message(0, "a")])[0].offset, QueueOffset(0));
}

#[test]
fn a_topic_made_again_starts_empty_and_without_its_ids() {
    let mut replica = Replica::in_memory();
    let old = replica.topic("orders", 1);
    let group = replica.group("workers");
    replica.send(old, &[message(0, "a")]);
    assert_eq!(replica.receive(group, old, 10, 10_000).len(), 1);
    let delete = Command::DeleteTopic(DeleteTopic { name: "orders".to_owned() });
    assert_eq!(replica.propose(&delete), Answer::Deleted(true));
    assert_eq!(replica.propose(&delete), Answer::Deleted(false));
    let answer = replica.propose_bytes(encode_append(replica.now, old, &[message(0, "b")]));
    assert_eq!(answer, Answer::Refused(Refusal::TopicUnknown));
    let new = replica.topic("orders", 1);
    assert_ne!(old, new);
    assert_eq!(replica.receive(group, new, 10, 10_000), []);
    assert!(!replica.send(new, &[message(0, "a")])[0].repeated);
}

#[test]
fn queues_may_become_more_and_never_fewer() {
    let mut replica = Replica::in_memory();
    let topic = replica.topic("orders", 2);
    let mut update = |queues| {
        replica.propose(&Command::UpdateTopic(UpdateTopic {
            name: "orders".to_owned(),
            settings: TopicSettings::normal(queues),
        }))
    };
    assert_eq!(update(1), Answer::Refused(Refusal::QueuesCannotShrink));
    assert_eq!(update(0), Answer::Refused(Refusal::QueueCount));
    assert_eq!(update(1_000_000_000), Answer::Refused(Refusal::QueueCount));
    assert_eq!(update(200), Answer::Topic { id: topic, created: false });
    assert_eq!(replica.state.queue_ranges(topic).map(|ranges| ranges.len()), Some(200));
}

#[test]
fn a_malformed_command_is_refused_and_a_newer_one_ends_applying() {
    let mut replica = Replica::in_memory();
    let mut cut = Command::DeleteTopic(DeleteTopic { name: "orders".to_owned() }).encode(replica.now);
    cut.truncate(cut.len() - 1);
    assert_eq!(replica.propose_bytes(cut), Answer::Refused(Refusal::Malformed));
    assert_eq!(replica.state.now(), UnixMillis(START));
    let newer = replica.log.append(Bytes::from_static(&[9, 1, 0, 0]));
    let error = replica.state.apply(&[newer], &mut Vec::new()).expect_err("a newer version");
    assert!(error.reason.contains("version 9"), "{}", error.reason);
}
