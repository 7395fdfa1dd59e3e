use super::*;

const INVISIBLE_MS: u64 = 30_000;
const ATTEMPTS_MAX: u32 = 3;

struct Bed {
    replica: Replica,
    group: ConsumerGroupId,
    topic: TopicId,
}

fn bed() -> Bed {
    let mut replica = Replica::in_memory();
    let topic = replica.topic("orders", 2);
    let settings = ConsumerGroupSettings { attempts_max: ATTEMPTS_MAX, ..ConsumerGroupSettings::default() };
    let create = CreateConsumerGroup { name: "billing".to_owned(), settings };
    let group = match replica.propose(&Command::CreateConsumerGroup(create)) {
        Answer::ConsumerGroup { id, .. } => id,
        other => panic!("{other:?}"),
    };
    Bed { replica, group, topic }
}

pub(super) fn letter(topic: TopicId, delivery: Granted, reason: DeadLetterReason) -> Letter {
    Letter {
        queue: delivery.queue,
        offset: delivery.offset,
        epoch: delivery.epoch,
        record: DeadLetterRecord {
            reason,
            topic,
            queue: delivery.queue,
            offset: delivery.offset,
            tag_code: 7,
            attempts: delivery.attempt,
            physical: PhysicalOffset(1_000),
            record_bytes: 100,
            at: UnixMillis(START),
            topic_name: "orders".to_owned(),
        },
    }
}

impl Bed {
    fn receive(&mut self) -> Vec<Granted> {
        self.replica.receive(self.group, self.topic, 10, INVISIBLE_MS)
    }

    fn give_up(&mut self, delivery: Granted, reason: DeadLetterReason) -> Answer {
        let letters = vec![letter(self.topic, delivery, reason)];
        let command = DeadLetter { consumer_group: self.group, topic: self.topic, letters };
        self.replica.propose(&Command::DeadLetter(command))
    }

    /// The only message, delivered as often as allowed, its last lease over.
    fn exhausted(&mut self) -> Granted {
        self.replica.send(self.topic, &[message(1, "a")]);
        let mut last = None;
        for attempt in 1..=ATTEMPTS_MAX {
            let granted = self.receive();
            assert_eq!(granted[0].attempt, attempt);
            last = granted.first().copied();
            self.replica.pass_ms(INVISIBLE_MS);
        }
        last.expect("delivered")
    }

    fn dead_letters(&self) -> Vec<IndexEntry> {
        let Some((topic, queue)) = self.replica.state.dead_letters_of("billing") else { return Vec::new() };
        let entries = self.replica.state.range(topic, queue, QueueOffset(0), 100);
        entries.into_iter().map(|(_, entry)| entry).collect()
    }
}

fn gave_up(created: bool, outcome: DeliveryOutcome) -> Answer {
    Answer::DeadLettered { created, outcomes: vec![outcome] }
}

#[test]
fn what_was_delivered_as_often_as_allowed_is_delivered_no_more_and_named_to_be_given_up() {
    let mut bed = bed();
    let last = bed.exhausted();
    assert_eq!(bed.receive(), [], "the policy allows no further delivery");
    let wild = LeaseMessages {
        consumer_group: bed.group,
        topic: bed.topic,
        client: ClientHash(1),
        invisible_ms: 1,
        auto_renew: false,
        attempt_id: String::new(),
        parts: vec![LeasePart {
            queue: last.queue,
            from: QueueOffset(0),
            to: QueueOffset(0),
            take: Vec::new(),
            redeliver: vec![last.offset],
            finish: Vec::new(),
        }],
    };
    assert_eq!(bed.replica.propose(&Command::LeaseMessages(wild)), Answer::Leased(Vec::new()));
    let named = bed.replica.state.exhausted_deliveries(bed.replica.now, 10);
    assert_eq!(named.len(), 1);
    assert_eq!((named[0].offset, named[0].epoch, named[0].attempt), (last.offset, last.epoch, ATTEMPTS_MAX));
}

#[test]
fn the_last_delivery_may_still_be_acknowledged_until_it_is_given_up() {
    let mut bed = bed();
    let last = bed.exhausted();
    assert_eq!(bed.replica.ack(bed.group, bed.topic, &[last]), [DeliveryOutcome::Done]);
    assert_eq!(bed.replica.state.exhausted_deliveries(bed.replica.now, 10), []);
    let answer = bed.give_up(last, DeadLetterReason::AttemptsExhausted);
    assert_eq!(answer, gave_up(false, DeliveryOutcome::AlreadyConsumed));
    assert_eq!(bed.dead_letters(), []);
}

#[test]
fn a_letter_and_the_end_of_its_delivery_are_one_entry() {
    let mut bed = bed();
    let last = bed.exhausted();
    let answer = bed.give_up(last, DeadLetterReason::AttemptsExhausted);
    assert_eq!(answer, gave_up(true, DeliveryOutcome::Done));
    assert_eq!(bed.replica.state.exhausted_deliveries(bed.replica.now, 10), []);
    assert_eq!(bed.replica.state.lag(bed.group, bed.topic).ready, 0);

    let entries = bed.dead_letters();
    let record = bed.replica.log.record(entries[0]);
    assert!(DeadLetterRecord::is_one(&record));
    let read = DeadLetterRecord::decode(&record).expect("our own record");
    assert_eq!(read, letter(bed.topic, last, DeadLetterReason::AttemptsExhausted).record);
    assert_eq!(entries[0].tag_code, 7, "a filter on the dead letters works");

    let again = bed.give_up(last, DeadLetterReason::AttemptsExhausted);
    assert_eq!(again, gave_up(false, DeliveryOutcome::AlreadyConsumed), "a repeat adds no letter");
    assert_eq!(bed.dead_letters().len(), 1);
}

#[test]
fn a_delivery_that_goes_on_is_not_exhausted_and_one_of_somebody_else_not_given_up() {
    let mut bed = bed();
    bed.replica.send(bed.topic, &[message(0, "a")]);
    let first = bed.receive()[0];
    let answer = bed.give_up(first, DeadLetterReason::AttemptsExhausted);
    assert_eq!(answer, gave_up(false, DeliveryOutcome::Stale), "its lease is in force");
    bed.replica.pass_ms(INVISIBLE_MS);
    let second = bed.receive()[0];
    let answer = bed.give_up(first, DeadLetterReason::Forwarded);
    assert_eq!(answer, gave_up(false, DeliveryOutcome::Stale), "somebody else has it");
    assert_eq!(bed.give_up(second, DeadLetterReason::Forwarded), gave_up(true, DeliveryOutcome::Done));
    bed.replica.pass_ms(INVISIBLE_MS);
    assert_eq!(bed.receive(), []);
}

#[test]
fn fewer_attempts_count_for_what_was_delivered_already() {
    let mut bed = bed();
    bed.replica.send(bed.topic, &[message(0, "a")]);
    bed.receive();
    bed.replica.pass_ms(INVISIBLE_MS);
    assert_eq!(bed.replica.state.exhausted_deliveries(bed.replica.now, 10), []);
    let settings = ConsumerGroupSettings { attempts_max: 1, ..ConsumerGroupSettings::default() };
    let update = UpdateConsumerGroup { name: "billing".to_owned(), settings };
    bed.replica.propose(&Command::UpdateConsumerGroup(update));
    assert_eq!(bed.receive(), []);
    assert_eq!(bed.replica.state.exhausted_deliveries(bed.replica.now, 10).len(), 1);
}

#[test]
fn a_redriven_letter_comes_to_its_group_again_once_and_counts_from_one() {
    let mut bed = bed();
    let last = bed.exhausted();
    bed.give_up(last, DeadLetterReason::AttemptsExhausted);
    let other = bed.replica.group("other");
    assert_eq!(bed.replica.receive(other, bed.topic, 10, INVISIBLE_MS).len(), 1);
    let redrive = |bed: &mut Bed, letter: u64| {
        let letter = RedrivenLetter {
            letter: QueueOffset(letter),
            topic: bed.topic,
            queue: last.queue,
            offset: last.offset,
        };
        let command = RedriveDeadLetters { consumer_group: bed.group, letters: vec![letter] };
        match bed.replica.propose(&Command::RedriveDeadLetters(command)) {
            Answer::Redriven(outcomes) => outcomes[0],
            other => panic!("{other:?}"),
        }
    };
    let (letters, _) = bed.replica.state.dead_letters_of("billing").expect("letters");
    assert!(!bed.replica.state.is_redriven(letters, QueueOffset(0)));
    assert_eq!(redrive(&mut bed, 9), DeliveryOutcome::NeverDelivered, "there is no such letter");
    assert_eq!(redrive(&mut bed, 0), DeliveryOutcome::Done);
    assert_eq!(redrive(&mut bed, 0), DeliveryOutcome::AlreadyConsumed, "each letter once");
    assert!(bed.replica.state.is_redriven(letters, QueueOffset(0)));

    let again = bed.receive();
    assert_eq!(offsets(&again), [(1, 0)]);
    assert_eq!(again[0].attempt, 1);
    assert!(again[0].epoch > last.epoch, "handles of its first life are stale");
    assert_eq!(bed.replica.ack(bed.group, bed.topic, &[last]), [DeliveryOutcome::Stale]);
    assert_eq!(bed.replica.ack(bed.group, bed.topic, &again), [DeliveryOutcome::Done]);
    assert_eq!(bed.replica.receive(other, bed.topic, 10, INVISIBLE_MS), [], "no other group gets it");
}

#[test]
fn a_letter_outlives_its_topic_and_cannot_be_given_back_to_it() {
    let mut bed = bed();
    let last = bed.exhausted();
    bed.give_up(last, DeadLetterReason::AttemptsExhausted);
    bed.replica.propose(&Command::DeleteTopic(DeleteTopic { name: "orders".to_owned() }));
    assert_eq!(bed.dead_letters().len(), 1);
    let letter =
        RedrivenLetter { letter: QueueOffset(0), topic: bed.topic, queue: last.queue, offset: last.offset };
    let command = RedriveDeadLetters { consumer_group: bed.group, letters: vec![letter] };
    assert_eq!(
        bed.replica.propose(&Command::RedriveDeadLetters(command)),
        Answer::Redriven(vec![DeliveryOutcome::TopicUnknown])
    );
}
