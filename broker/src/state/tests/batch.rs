//! Batches of several topics: whole or not at all, and repeats of them.

use ledgermq_common::limits::MESSAGE_ID_WINDOW_MS;

use super::generations::layout;
use super::order::grouped;
use super::*;

const NONE: Generation = Generation(0);

fn topics(topics: &[TopicId]) -> Vec<BatchTopic> {
    topics.iter().map(|&topic| BatchTopic { topic, generation: NONE }).collect()
}

impl Replica {
    fn store(&mut self, of: &[BatchTopic], messages: &[(TopicId, NewMessage)]) -> Answer {
        self.propose_bytes(encode_batch(self.now, of, messages))
    }

    /// The offsets up to which the queues of the topics go.
    fn ends(&self, of: &[TopicId]) -> Vec<Vec<u64>> {
        let ends = |topic: &TopicId| {
            let ranges = self.state.queue_ranges(*topic).expect("a topic");
            ranges.into_iter().map(|range| range.end).collect()
        };
        of.iter().map(ends).collect()
    }
}

fn stored(answer: Answer) -> Vec<StoredAt> {
    match answer {
        Answer::Stored(stored) => stored,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_batch_takes_places_in_several_topics_and_queues_and_is_read_from_its_one_entry() {
    let mut replica = Replica::in_memory();
    let (a, b) = (replica.topic("orders", 2), replica.topic("audit", 1));
    replica.send(a, &[message(1, "before")]);
    let messages =
        [(a, message(1, "m1")), (b, message(0, "m2")), (a, message(0, "m3")), (a, message(1, "m4"))];
    let entries = replica.log.entries.len();
    let at = stored(replica.store(&topics(&[a, b]), &messages));
    assert_eq!(replica.log.entries.len(), entries + 1);
    let places: Vec<(u32, u64)> = at.iter().map(|at| (at.queue.get(), at.offset.get())).collect();
    assert_eq!(places, [(1, 1), (0, 0), (0, 0), (1, 2)]);
    assert!(at.iter().all(|at| !at.repeated));
    for ((topic, message), at) in messages.iter().zip(&at) {
        let entry = replica.state.locate(*topic, at.queue, at.offset).expect("stored");
        let read = StoredMessage::decode(&replica.log.record(entry)).expect("a record");
        assert_eq!((read.topic, &read.id, &read.body), (*topic, &message.id, &message.body));
    }
    let readers = replica.group("readers");
    assert_eq!(replica.receive(readers, a, 10, 10_000).len(), 4);
    assert_eq!(replica.receive(readers, b, 10, 10_000).len(), 1);
}

#[test]
fn a_repeated_batch_gets_the_first_places_and_the_same_id_in_another_topic_is_another_message() {
    let mut replica = Replica::in_memory();
    let (a, b) = (replica.topic("orders", 2), replica.topic("audit", 1));
    let of = topics(&[a, b]);
    let first = stored(replica.store(&of, &[(a, message(0, "m")), (b, message(0, "m"))]));
    let ends = replica.ends(&[a, b]);
    replica.pass_ms(MESSAGE_ID_WINDOW_MS);
    // Another leader chose another queue.
    let again = stored(replica.store(&of, &[(a, message(1, "m")), (b, message(0, "m"))]));
    assert!(again.iter().zip(&first).all(|(again, first)| *again == StoredAt { repeated: true, ..*first }));
    assert_eq!(replica.ends(&[a, b]), ends);
    // One message of it alone is the same message, too.
    assert!(replica.send(a, &[message(1, "m")])[0].repeated);
    replica.pass_ms(1);
    let later = stored(replica.store(&of, &[(a, message(1, "m")), (b, message(0, "m"))]));
    assert!(later.iter().all(|at| !at.repeated), "the ids of a batch leave the window together");
}

#[test]
fn a_batch_that_is_stored_in_part_is_refused_as_a_whole() {
    let mut replica = Replica::in_memory();
    let (a, b) = (replica.topic("orders", 1), replica.topic("audit", 1));
    replica.send(b, &[message(0, "m2")]);
    let ends = replica.ends(&[a, b]);
    let batch = [(a, message(0, "m1")), (b, message(0, "m2")), (b, message(0, "m3"))];
    let partly = Answer::BatchPartlyStored(BatchPartlyStored { stored: 1, first: 1 });
    assert_eq!(replica.store(&topics(&[a, b]), &batch), partly);
    assert_eq!(replica.ends(&[a, b]), ends);
    // What was refused is not remembered: without the stored part it is new.
    let rest = [(a, message(0, "m1")), (b, message(0, "m3"))];
    assert!(stored(replica.store(&topics(&[a, b]), &rest)).iter().all(|at| !at.repeated));
    // Stored by two entries, known as a whole.
    assert!(stored(replica.store(&topics(&[a, b]), &batch)).iter().all(|at| at.repeated));
}

#[test]
fn whatever_is_wrong_with_one_message_keeps_all_of_the_batch_out() {
    let mut replica = Replica::in_memory();
    let (a, b) = (replica.topic("orders", 1), replica.topic("audit", 1));
    let gone = replica.topic("gone", 1);
    replica.propose(&Command::DeleteTopic(DeleteTopic { name: "gone".to_owned() }));
    let ends = replica.ends(&[a, b]);
    let refused = [
        (vec![(a, message(0, "1")), (b, message(1, "2"))], Refusal::QueueUnknown),
        (vec![(a, message(0, "1")), (gone, message(0, "2"))], Refusal::TopicUnknown),
        (vec![(a, message(0, "1")), (b, message(0, "2")), (b, message(0, "2"))], Refusal::Malformed),
    ];
    for (messages, refusal) in refused {
        let listed: Vec<TopicId> = messages.iter().map(|(topic, _)| *topic).collect();
        assert_eq!(replica.store(&topics(&listed), &messages), Answer::Refused(refusal));
        assert_eq!(replica.ends(&[a, b]), ends, "{refusal}");
    }
    // A record of a topic that the command does not list.
    let unlisted = replica.store(&topics(&[a]), &[(a, message(0, "1")), (b, message(0, "2"))]);
    assert_eq!(unlisted, Answer::Refused(Refusal::Malformed));
    assert!(
        !stored(replica.store(&topics(&[a, b]), &[(a, message(0, "1")), (b, message(0, "2"))]))[0].repeated
    );
}

#[test]
fn messages_with_order_are_stored_by_the_generation_that_is_served_or_not_at_all() {
    let mut replica = Replica::in_memory();
    let plain = replica.topic("orders", 1);
    let settings = TopicSettings { message_type: MessageType::Fifo, ..TopicSettings::normal(1) };
    let create = CreateTopic { name: "steps".to_owned(), settings };
    let Answer::Topic { id: steps, .. } = replica.propose(&Command::CreateTopic(create)) else {
        panic!("a topic");
    };
    let by = |generation| {
        let generation = Generation(generation);
        [BatchTopic { topic: plain, generation: NONE }, BatchTopic { topic: steps, generation }]
    };
    let batch = |id: &str| [(plain, message(0, id)), (steps, grouped(0, id, "k"))];
    let first = stored(replica.store(&by(0), &batch("m1")));
    replica.propose(&Command::PrepareGeneration(PrepareGeneration {
        topic: steps,
        generation: Generation(1),
        queues: 2,
        former: layout(&[1]),
        layout: layout(&[2]),
    }));
    replica.propose(&Command::CloseGeneration(CloseGeneration { topic: steps, generation: NONE }));
    let ends = replica.ends(&[plain, steps]);
    for generation in [0, 1] {
        let between = replica.store(&by(generation), &batch("m2"));
        assert_eq!(between, Answer::Refused(Refusal::GenerationEnded));
    }
    replica.propose(&Command::OpenGeneration(OpenGeneration { topic: steps, generation: Generation(1) }));
    assert_eq!(replica.store(&by(0), &batch("m2")), Answer::Refused(Refusal::GenerationEnded));
    assert_eq!(replica.ends(&[plain, steps]), ends, "nothing of them, in neither topic");
    for generation in [0, 1] {
        let again = stored(replica.store(&by(generation), &batch("m1")));
        assert!(
            again.iter().zip(&first).all(|(again, first)| again.offset == first.offset && again.repeated)
        );
    }
    assert!(!stored(replica.store(&by(1), &batch("m2")))[1].repeated);
}
