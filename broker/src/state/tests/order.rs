use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

/// What the leader would read: the order key of every stored message.
#[derive(Debug, Default)]
struct Keys(BTreeMap<(QueueId, QueueOffset), OrderKey>);

struct Ordered {
    replica: Replica,
    topic: TopicId,
    group: ConsumerGroupId,
    keys: Keys,
    sent: u32,
}

pub(super) fn grouped(queue: u32, id: &str, message_group: &str) -> NewMessage {
    let mut message = message(queue, id);
    message.message_type = MessageType::Fifo;
    message.properties.message_group = Some(message_group.to_owned());
    message
}

impl Ordered {
    fn new(queues: u32) -> Self {
        let mut replica = Replica::in_memory();
        let topic = replica.topic("steps", queues);
        let settings = ConsumerGroupSettings { fifo: true, ..ConsumerGroupSettings::default() };
        let command = CreateConsumerGroup { name: "workers".to_owned(), settings };
        let Answer::ConsumerGroup { id: group, .. } = replica.propose(&Command::CreateConsumerGroup(command))
        else {
            panic!("a group");
        };
        Self { replica, topic, group, keys: Keys::default(), sent: 0 }
    }

    fn send(&mut self, queue: u32, message_group: &str) -> u64 {
        self.sent += 1;
        let message = grouped(queue, &self.sent.to_string(), message_group);
        let at = self.replica.send(self.topic, &[message])[0];
        self.keys.0.insert((at.queue, at.offset), OrderKey::of(Some(message_group)));
        at.offset.get()
    }

    fn plan(&self, max: u32) -> Option<OrderedPlan> {
        let request = self.replica.request(self.group, self.topic, max);
        let keys = &self.keys;
        let mut order_of = |queue, offset, _: IndexEntry| keys.0.get(&(queue, offset)).copied();
        self.replica.state.plan_ordered_receive(&request, &mut order_of)
    }

    fn propose(&mut self, plan: &OrderedPlan, invisible_ms: u64, attempt_id: &str) -> Vec<Granted> {
        match self.replica.propose(&plan.command(ClientHash::of("client"), invisible_ms, false, attempt_id)) {
            Answer::Leased(granted) => granted,
            other => panic!("{other:?}"),
        }
    }

    fn receive(&mut self, max: u32) -> Vec<Granted> {
        let Some(plan) = self.plan(max) else { return Vec::new() };
        let granted = self.propose(&plan, 10_000, "");
        assert_eq!(granted.len(), plan.messages().len(), "an undisturbed plan is granted");
        granted
    }

    fn ack(&mut self, deliveries: &[Granted]) {
        let outcomes = self.replica.ack(self.group, self.topic, deliveries);
        assert!(outcomes.iter().all(|outcome| *outcome == DeliveryOutcome::Done), "{outcomes:?}");
    }
}

fn places(granted: &[Granted]) -> Vec<u64> {
    granted.iter().map(|granted| granted.offset.get()).collect()
}

#[test]
fn a_message_group_waits_for_its_unacknowledged_messages_and_holds_up_nobody_else() {
    let mut steps = Ordered::new(1);
    for group in ["a", "a", "b", "a", "c"] {
        steps.send(0, group);
    }
    let first = steps.receive(2);
    assert_eq!(places(&first), [0, 1], "several of one group go to one receive, in order");
    assert_eq!(places(&steps.receive(10)), [2, 4], "the groups that are free");
    assert_eq!(steps.receive(10), []);
    steps.ack(&first[1..]);
    assert_eq!(steps.receive(10), [], "the first of the group is still out");
    steps.ack(&first[..1]);
    assert_eq!(places(&steps.receive(10)), [3]);
    assert_eq!(steps.replica.state.lag(steps.group, steps.topic), Lag { ready: 0, in_flight: 3 });
}

#[test]
fn redelivery_begins_at_the_first_unacknowledged_message_and_does_not_repeat_acknowledged_ones() {
    let mut steps = Ordered::new(1);
    (0..4).for_each(|_| {
        steps.send(0, "a");
    });
    let first = steps.receive(3);
    assert_eq!(places(&first), [0, 1, 2]);
    steps.ack(&first[1..2]);
    steps.replica.pass_ms(10_000);
    let again = steps.receive(10);
    assert_eq!(places(&again), [0, 2, 3]);
    assert_eq!(again.iter().map(|granted| granted.attempt).collect::<Vec<_>>(), [2, 2, 1]);
    assert_eq!(steps.replica.ack(steps.group, steps.topic, &first[..1]), [DeliveryOutcome::Stale]);
    // With room for one only, the first goes first and the rest waits for it.
    steps.replica.pass_ms(10_000);
    assert_eq!(places(&steps.receive(1)), [0]);
    assert_eq!(steps.receive(10), []);
}

#[test]
fn a_message_given_back_holds_up_its_group_until_it_is_due() {
    let mut steps = Ordered::new(1);
    steps.send(0, "a");
    steps.send(0, "a");
    let first = steps.receive(1);
    let change = Command::ChangeInvisible(ChangeInvisible {
        consumer_group: steps.group,
        topic: steps.topic,
        queue: first[0].queue,
        offset: first[0].offset,
        epoch: first[0].epoch,
        invisible_ms: 1_000,
    });
    steps.replica.propose(&change);
    assert_eq!(steps.receive(10), []);
    steps.replica.pass_ms(1_000);
    assert_eq!(places(&steps.receive(10)), [0, 1]);
}

#[test]
fn a_message_delivered_often_enough_holds_up_its_group_until_it_is_a_dead_letter() {
    let mut steps = Ordered::new(1);
    let settings = ConsumerGroupSettings { fifo: true, attempts_max: 2, ..ConsumerGroupSettings::default() };
    steps
        .replica
        .propose(&Command::UpdateConsumerGroup(UpdateConsumerGroup { name: "workers".to_owned(), settings }));
    for group in ["a", "a", "b"] {
        steps.send(0, group);
    }
    steps.receive(1);
    steps.replica.pass_ms(10_000);
    assert_eq!(places(&steps.receive(1)), [0]);
    steps.replica.pass_ms(10_000);
    assert_eq!(places(&steps.receive(10)), [2], "its last delivery has ended, and nothing may overtake it");
    let exhausted = steps.replica.state.exhausted_deliveries(steps.replica.now, 10);
    let last = exhausted[0];
    let record = DeadLetterRecord {
        reason: DeadLetterReason::AttemptsExhausted,
        topic: steps.topic,
        queue: last.queue,
        offset: last.offset,
        tag_code: 0,
        attempts: last.attempt,
        physical: PhysicalOffset(1_000),
        record_bytes: 100,
        at: steps.replica.now,
        topic_name: "steps".to_owned(),
    };
    let letter = Letter { queue: last.queue, offset: last.offset, epoch: last.epoch, record };
    steps.replica.propose(&Command::DeadLetter(DeadLetter {
        consumer_group: steps.group,
        topic: steps.topic,
        letters: vec![letter],
    }));
    assert_eq!(places(&steps.receive(10)), [1]);
}

#[test]
fn the_queues_of_a_topic_with_order_stay_as_they_are() {
    let mut replica = Replica::in_memory();
    let settings =
        |queues| TopicSettings { message_type: MessageType::Fifo, ..TopicSettings::normal(queues) };
    let name = "steps".to_owned();
    replica.propose(&Command::CreateTopic(CreateTopic { name: name.clone(), settings: settings(4) }));
    let mut update = |queues| {
        let settings = settings(queues);
        replica.propose(&Command::UpdateTopic(UpdateTopic { name: name.clone(), settings }))
    };
    assert_eq!(update(5), Answer::Refused(Refusal::QueuesOfOrderedTopic));
    assert!(matches!(update(4), Answer::Topic { created: false, .. }));
}

#[test]
fn two_receives_at_once_do_not_share_a_message_group() {
    let mut steps = Ordered::new(1);
    for group in ["a", "a", "b"] {
        steps.send(0, group);
    }
    let one = steps.plan(1).expect("a");
    let two = steps.plan(10).expect("b");
    assert_eq!(two.messages().iter().map(|m| m.offset.get()).collect::<Vec<_>>(), [2]);
    assert!(steps.plan(10).is_none(), "all is spoken for");
    drop(two);
    let two = steps.plan(10).expect("b again");
    assert_eq!(places(&steps.propose(&one, 10_000, "one")), [0]);
    assert_eq!(places(&steps.propose(&two, 10_000, "two")), [2]);
}

#[test]
fn apply_keeps_the_promise_against_any_proposal() {
    let mut steps = Ordered::new(1);
    (0..4).for_each(|_| {
        steps.send(0, "a");
    });
    let key = OrderKey::of(Some("a"));
    const NONE: [u64; 0] = [];
    let lease = |steps: &mut Ordered, offsets: &[(u64, bool)]| {
        let messages = offsets
            .iter()
            .map(|&(offset, again)| OrderedMessage { offset: QueueOffset(offset), order: key, again })
            .collect();
        let part = OrderedPart { queue: QueueId(0), messages, pass_over: Vec::new() };
        let command = LeaseInOrder {
            consumer_group: steps.group,
            topic: steps.topic,
            client: ClientHash(9),
            invisible_ms: 10_000,
            auto_renew: false,
            attempt_id: String::new(),
            parts: vec![part],
        };
        match steps.replica.propose(&Command::LeaseInOrder(command)) {
            Answer::Leased(granted) => places(&granted),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(lease(&mut steps, &[(1, false), (0, false), (1, false)]), [0, 1], "in order, each once");
    assert_eq!(lease(&mut steps, &[(2, false)]), NONE, "the group is held");
    assert_eq!(lease(&mut steps, &[(0, true), (2, false)]), NONE, "its leases are in force");
    steps.replica.pass_ms(10_000);
    assert_eq!(lease(&mut steps, &[(2, false)]), NONE, "two before it wait");
    assert_eq!(lease(&mut steps, &[(1, true)]), NONE, "the one before it waits");
    assert_eq!(lease(&mut steps, &[(0, true)]), [0]);
    assert_eq!(lease(&mut steps, &[(1, true)]), NONE, "the first is out");
    steps.replica.pass_ms(10_000);
    assert_eq!(lease(&mut steps, &[(0, true), (1, true), (2, false), (9, false)]), [0, 1, 2]);
}

#[test]
fn messages_without_a_group_are_one_group_of_their_queue() {
    let mut steps = Ordered::new(2);
    for (queue, id) in [(0, "x"), (0, "y"), (1, "z")] {
        let at = steps.replica.send(steps.topic, &[message(queue, id)])[0];
        steps.keys.0.insert((at.queue, at.offset), OrderKey::of(None));
    }
    let first = steps.receive(1);
    let second = steps.receive(1);
    assert_ne!(first[0].queue, second[0].queue);
    assert_eq!(steps.receive(10), []);
    steps.ack(&[first[0], second[0]]);
    assert_eq!(offsets(&steps.receive(10)), [(0, 1)]);
}

#[test]
fn what_does_not_match_is_passed_over_and_a_stuck_group_does_not_grow_the_search() {
    let mut steps = Ordered::new(1);
    for number in 0..3_000u32 {
        let message = grouped(0, &format!("stuck-{number}"), "stuck");
        let at = steps.replica.send(steps.topic, &[message])[0];
        steps.keys.0.insert((at.queue, at.offset), OrderKey::of(Some("stuck")));
    }
    let held = steps.receive(1);
    steps.send(0, "free");
    assert_eq!(steps.receive(10), [], "beyond what one plan looks at");
    steps.ack(&held);
    let mut request = steps.replica.request(steps.group, steps.topic, 10);
    request.filter = TagFilter::tags(["wanted"]);
    let keys = &steps.keys;
    let mut order_of = |queue, offset, _: IndexEntry| keys.0.get(&(queue, offset)).copied();
    let plan = steps.replica.state.plan_ordered_receive(&request, &mut order_of).expect("much to pass over");
    assert_eq!(plan.messages(), []);
    steps.propose(&plan, 10_000, "");
    drop(plan);
    assert_eq!(places(&steps.receive(1)), [1 + ORDER_SCAN_ENTRIES_MAX]);
}

#[test]
fn an_unreadable_message_keeps_what_is_behind_it_in_its_queue() {
    let mut steps = Ordered::new(1);
    for group in ["a", "b", "c"] {
        steps.send(0, group);
    }
    let lost = steps.keys.0.remove(&at(0, 1)).expect("b");
    assert_eq!(places(&steps.receive(10)), [0]);
    assert_eq!(steps.receive(10), []);
    steps.keys.0.insert(at(0, 1), lost);
    assert_eq!(places(&steps.receive(10)), [1, 2]);
}

#[test]
fn holders_survive_a_restart_and_a_snapshot() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut steps = Ordered::new(1);
    steps.replica = Replica::open(Some(directory.path()), steps.replica.log);
    for group in ["a", "b", "a"] {
        steps.send(0, group);
    }
    assert_eq!(places(&steps.receive(1)), [0]);
    steps.replica.state.checkpoint().expect("written");
    let digest = steps.replica.state.state_digest();
    let (applied, stream) = steps.replica.state.snapshot().expect("a snapshot");
    let now = steps.replica.now;
    steps.replica.state.close().expect("closed");
    let log = steps.replica.log.clone();
    let restored = Replica { log: log.clone(), ..Replica::in_memory() };
    restored.state.restore(applied.expect("entries"), stream).expect("restored");
    for mut replica in [restored, Replica::open(Some(directory.path()), log)] {
        assert_eq!(replica.state.state_digest(), digest);
        replica.now = now;
        steps.replica = replica;
        assert_eq!(places(&steps.receive(10)), [1], "a is held");
        steps.replica.state.close().expect("closed");
    }
}

#[derive(Debug, Clone)]
enum Step {
    Send(u32, u8),
    Receive(u32, u64),
    Ack(usize),
    GiveBack(usize),
    Pass(u64),
    /// The leader dies with its plans and reservations.
    LoseAPlan(u32),
}

fn program() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0u32..2, 0u8..4).prop_map(|(queue, group)| Step::Send(queue, group)),
        6 => (1u32..6, 1u64..20_000).prop_map(|(max, ms)| Step::Receive(max, ms)),
        6 => any::<usize>().prop_map(Step::Ack),
        2 => any::<usize>().prop_map(Step::GiveBack),
        2 => (0u64..15_000).prop_map(Step::Pass),
        1 => (1u32..6).prop_map(Step::LoseAPlan),
    ];
    proptest::collection::vec(step, 1..120)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Against a model that knows nothing of keys and leases: per group of a queue, who holds what
    /// until when, and which message is next.
    #[test]
    fn each_message_group_has_one_holder_and_moves_forward_only(program in program()) {
        let mut steps = Ordered::new(2);
        let mut of: BTreeMap<(u32, u64), u8> = BTreeMap::new();
        let mut open: BTreeMap<(u32, u64), (Granted, usize)> = BTreeMap::new();
        let mut acked: BTreeSet<(u32, u64)> = BTreeSet::new();
        for (receive, step) in program.into_iter().enumerate() {
            match step {
                Step::Send(queue, group) => {
                    let offset = steps.send(queue, &group.to_string());
                    of.insert((queue, offset), group);
                }
                Step::Receive(max, ms) => {
                    let Some(plan) = steps.plan(max) else { continue };
                    let granted = steps.propose(&plan, ms, &receive.to_string());
                    drop(plan);
                    let now = steps.replica.now;
                    for lease in granted {
                        let place = (lease.queue.get(), lease.offset.get());
                        prop_assert!(!acked.contains(&place), "{place:?} was acknowledged");
                        let same = of.iter().filter(|(at, group)| at.0 == place.0 && **group == of[&place]);
                        for (&other, _) in same {
                            if let Some((held, by)) = open.get(&other).filter(|_| other != place) {
                                prop_assert!(*by == receive || held.until <= now, "{other:?} holds {place:?}");
                            }
                            if other < place && !acked.contains(&other) {
                                let here = open.get(&other).is_some_and(|(_, by)| *by == receive);
                                prop_assert!(here, "{other:?} comes before {place:?}");
                            }
                        }
                        open.insert(place, (lease, receive));
                    }
                }
                Step::Ack(which) => {
                    let Some((&place, (lease, _))) = open.iter().nth(which % open.len().max(1)) else { continue };
                    steps.ack(&[*lease]);
                    open.remove(&place);
                    acked.insert(place);
                }
                Step::GiveBack(which) => {
                    let Some((&place, (lease, by))) = open.iter().nth(which % open.len().max(1)) else { continue };
                    let change = ChangeInvisible {
                        consumer_group: steps.group,
                        topic: steps.topic,
                        queue: lease.queue,
                        offset: lease.offset,
                        epoch: lease.epoch,
                        invisible_ms: 500,
                    };
                    let Answer::Changed(ChangeOutcome::Changed { until, .. }) =
                        steps.replica.propose(&Command::ChangeInvisible(change))
                    else {
                        panic!("changed");
                    };
                    open.insert(place, (Granted { until, ..*lease }, *by));
                }
                Step::Pass(ms) => steps.replica.pass_ms(ms),
                Step::LoseAPlan(max) => drop(steps.plan(max)),
            }
        }
        // Nothing is stuck: with everybody acknowledging, all is delivered.
        for _ in 0..of.len() + 1 {
            steps.replica.pass_ms(20_000);
            let granted = steps.receive(32);
            steps.ack(&granted);
            acked.extend(granted.iter().map(|lease| (lease.queue.get(), lease.offset.get())));
        }
        prop_assert_eq!(acked.len(), of.len());
    }
}
