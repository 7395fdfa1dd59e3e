use std::sync::Arc;

use bytes::Bytes;
use ledgermq_common::{GroupId, Term};
use ledgermq_raft_store::{EntryId, StateMachine as _};

use super::*;
use crate::state::{
    AckEntry, AckMessages, Answer, BodyEncoding, CheckpointMode, ClientHash, CreateConsumerGroup,
    CreateTopic, DeliveryOutcome, Granted, LeasePart, MessageProperties, MessageType, NewMessage,
    NobodyWaits, ReleaseClient, StateConfig, TopicSettings, encode_append,
};

const START: u64 = 1_700_000_000_000;
const GROUP: ConsumerGroupId = ConsumerGroupId(1);
const TOPIC: TopicId = TopicId(1);
const INVISIBLE_MS: u64 = 10_000;

/// A state and the log it came from, with one message at offset 0.
struct Bed {
    state: Arc<BrokerState>,
    entries: Vec<AppliedEntry>,
    now: u64,
    end: u64,
}

impl Bed {
    fn new() -> Self {
        let config =
            StateConfig { group: GroupId(1), directory: None, checkpoints: CheckpointMode::OnDemand };
        let state = BrokerState::open(config, Arc::new(NobodyWaits)).expect("in memory");
        let mut bed = Self { state, entries: Vec::new(), now: START, end: 4096 };
        let settings = TopicSettings::normal(1);
        bed.propose(&Command::CreateTopic(CreateTopic { name: "t".to_owned(), settings }));
        let settings = crate::state::ConsumerGroupSettings::default();
        bed.propose(&Command::CreateConsumerGroup(CreateConsumerGroup { name: "c".to_owned(), settings }));
        bed.send("id");
        bed
    }

    fn append(&mut self, payload: Bytes) -> Answer {
        let index = LogIndex(self.entries.len() as u64 + 1);
        let payload_at = PhysicalOffset(self.end);
        self.end += payload.len() as u64 + 64;
        let entry = AppliedEntry { id: EntryId { term: Term(1), index }, payload_at, payload };
        let mut answers = Vec::new();
        self.state.apply(std::slice::from_ref(&entry), &mut answers).expect("applied");
        self.entries.push(entry);
        Answer::decode(&answers[0]).expect("an answer")
    }

    fn propose(&mut self, command: &Command) -> Answer {
        self.append(command.encode(UnixMillis(self.now)))
    }

    fn send(&mut self, id: &str) {
        let message = NewMessage {
            queue: QueueId(0),
            id: id.to_owned(),
            message_type: MessageType::Normal,
            body_encoding: BodyEncoding::Identity,
            born_at: UnixMillis(START),
            properties: MessageProperties::default(),
            body: Bytes::new(),
        };
        self.append(encode_append(UnixMillis(self.now), TOPIC, &[message]));
    }

    fn lease(&mut self, again: bool) -> Vec<Granted> {
        let it = vec![QueueOffset(0)];
        let (take, redeliver) = if again { (Vec::new(), it) } else { (it, Vec::new()) };
        let (from, to) = if again { (0, 0) } else { (0, 1) };
        let part = LeasePart {
            queue: QueueId(0),
            from: QueueOffset(from),
            to: QueueOffset(to),
            take,
            redeliver,
            finish: Vec::new(),
        };
        let lease = LeaseMessages {
            consumer_group: GROUP,
            topic: TOPIC,
            client: ClientHash(7),
            invisible_ms: INVISIBLE_MS,
            auto_renew: false,
            attempt_id: String::new(),
            parts: vec![part],
        };
        match self.propose(&Command::LeaseMessages(lease)) {
            Answer::Leased(granted) => granted,
            other => panic!("{other:?}"),
        }
    }

    fn ack(&mut self, delivery: &Granted) -> DeliveryOutcome {
        let entry = AckEntry { queue: QueueId(0), offset: QueueOffset(0), epoch: delivery.epoch };
        let ack = AckMessages { consumer_group: GROUP, topic: TOPIC, entries: vec![entry] };
        match self.propose(&Command::AckMessages(ack)) {
            Answer::Acked(outcomes) => outcomes[0],
            other => panic!("{other:?}"),
        }
    }

    /// Rows of the history; the walk is cut in two after so many entries.
    fn rows(&self, cut: usize) -> Vec<wire::TraceRow> {
        let topic = self.state.topic("t").expect("created");
        let key = crate::state::SearchKey::MessageId("id");
        let found = self.state.search(TOPIC, key, PhysicalOffset(0), 1)[0];
        let known = wire::TraceState {
            offset: Some(0),
            identity: found.physical.get(),
            records: vec![found.physical.get()],
            ..wire::TraceState::default()
        };
        let mut rows = Vec::new();
        let mut story = Story::new(&topic, "id", known);
        for (number, entry) in self.entries.iter().enumerate() {
            if number == cut {
                let cursor = story.goes_on_at(entry.id.index);
                assert_eq!(cursor.next_index, entry.id.index.get());
                story = Story::new(&topic, "id", cursor);
            }
            let (stamp, command) = Command::decode(&entry.payload).expect("a command");
            story.tell(&self.state, entry, stamp, &command, &mut rows);
        }
        rows
    }

    /// What happened; the same wherever the walk is cut.
    fn story(&self) -> Vec<(String, Option<u32>)> {
        let whole = self.rows(usize::MAX);
        for cut in 0..self.entries.len() {
            assert_eq!(self.rows(cut), whole, "cut at {cut}");
        }
        whole.into_iter().map(|row| (row.what, row.attempt)).collect()
    }
}

fn told(rows: &[(&str, u32)]) -> Vec<(String, Option<u32>)> {
    rows.iter().map(|(what, attempt)| ((*what).to_owned(), (*attempt > 0).then_some(*attempt))).collect()
}

#[test]
fn only_what_apply_granted_is_told_as_a_delivery() {
    let mut bed = Bed::new();
    bed.send("other");
    bed.send("id");
    assert_eq!(bed.lease(true), [], "it was never delivered");
    let first = bed.lease(false);
    assert_eq!(bed.lease(false), [], "it is leased");
    assert_eq!(bed.lease(true), []);
    bed.now += INVISIBLE_MS;
    assert_eq!(bed.ack(&first[0]), DeliveryOutcome::Done, "a little late");
    assert_eq!(bed.lease(true), [], "planned before the acknowledgement came");
    assert_eq!(bed.ack(&first[0]), DeliveryOutcome::AlreadyConsumed);
    let expected =
        [("stored", 0), ("sent again", 0), ("delivered", 1), ("acknowledged", 1), ("acknowledged again", 0)];
    assert_eq!(bed.story(), told(&expected));
}

#[test]
fn an_acknowledgement_of_an_older_delivery_is_put_right_by_what_follows() {
    let mut bed = Bed::new();
    let first = bed.lease(false);
    bed.now += INVISIBLE_MS;
    let second = bed.lease(true);
    assert_eq!(bed.ack(&first[0]), DeliveryOutcome::Stale);
    bed.now += INVISIBLE_MS;
    let third = bed.lease(true);
    assert_eq!((second[0].attempt, third[0].attempt), (2, 3));
    assert_eq!(bed.ack(&second[0]), DeliveryOutcome::Stale);
    assert_eq!(bed.ack(&first[0]), DeliveryOutcome::Stale);
    let rows = bed.rows(usize::MAX);
    let third_row = rows.iter().find(|row| row.attempt == Some(3)).expect("the third delivery");
    assert!(third_row.detail.contains("of an earlier delivery"), "{}", third_row.detail);
    let last = rows.last().expect("rows");
    assert_eq!(last.what, "acknowledgement refused", "its number is known from before");
}

#[test]
fn a_client_that_ends_and_a_delivery_that_is_told_by_its_number() {
    let mut bed = Bed::new();
    let first = bed.lease(false);
    let release = ReleaseClient { consumer_group: GROUP, client: ClientHash(7) };
    bed.propose(&Command::ReleaseClient(release));
    bed.now += 1_000;
    let second = bed.lease(true);
    assert_eq!(second.len(), 1);
    assert_eq!(bed.ack(&second[0]), DeliveryOutcome::Done);
    assert_eq!(bed.ack(&first[0]), DeliveryOutcome::AlreadyConsumed, "consumed all the same");
    let rows = bed.story();
    let expected = [("stored", 0), ("delivered", 1), ("released", 0), ("delivered", 2), ("acknowledged", 2)];
    assert_eq!(rows[..5], told(&expected));
}
