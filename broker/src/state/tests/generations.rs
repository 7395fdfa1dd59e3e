//! Topics with order that grow: each step alone, and whole growths over several broker groups in any
//! order of what may happen.

use std::collections::{BTreeMap, BTreeSet};

use ledgermq_common::{GroupName, QueueLayout};
use proptest::prelude::*;

use super::order::grouped;
use super::*;

pub(super) fn layout(queues: &[u32]) -> Arc<QueueLayout> {
    let groups = queues.iter().enumerate().map(|(number, queues)| (broker_group(number), *queues));
    Arc::new(QueueLayout::new(groups).expect("a layout"))
}

fn broker_group(number: usize) -> GroupName {
    GroupName::parse(&format!("g{number}")).expect("a name")
}

/// One broker group with a topic and a consumer group that keep order.
struct Growing {
    replica: Replica,
    topic: TopicId,
    group: ConsumerGroupId,
    keys: BTreeMap<(QueueId, QueueOffset), OrderKey>,
}

impl Growing {
    fn new(queues: u32) -> Self {
        let mut replica = Replica::in_memory();
        let settings = TopicSettings { message_type: MessageType::Fifo, ..TopicSettings::normal(queues) };
        let create = CreateTopic { name: "steps".to_owned(), settings };
        let Answer::Topic { id: topic, .. } = replica.propose(&Command::CreateTopic(create)) else {
            panic!("a topic");
        };
        let settings = ConsumerGroupSettings { fifo: true, ..ConsumerGroupSettings::default() };
        let create = CreateConsumerGroup { name: "workers".to_owned(), settings };
        let Answer::ConsumerGroup { id: group, .. } = replica.propose(&Command::CreateConsumerGroup(create))
        else {
            panic!("a group");
        };
        Self { replica, topic, group, keys: BTreeMap::new() }
    }

    fn prepare(&mut self, generation: u32, queues: u32) -> Answer {
        let former = layout(&[self.replica.state.topic_by_id(self.topic).map_or(1, |t| t.settings.queues)]);
        self.prepare_as(generation, queues, former, layout(&[queues.max(1)]))
    }

    fn prepare_as(
        &mut self,
        generation: u32,
        queues: u32,
        former: Arc<QueueLayout>,
        layout: Arc<QueueLayout>,
    ) -> Answer {
        let generation = Generation(generation);
        let prepare = PrepareGeneration { topic: self.topic, generation, queues, former, layout };
        self.replica.propose(&Command::PrepareGeneration(prepare))
    }

    fn close(&mut self, generation: u32) -> Answer {
        let close = CloseGeneration { topic: self.topic, generation: Generation(generation) };
        self.replica.propose(&Command::CloseGeneration(close))
    }

    fn open(&mut self, generation: u32) -> Answer {
        let open = OpenGeneration { topic: self.topic, generation: Generation(generation) };
        self.replica.propose(&Command::OpenGeneration(open))
    }

    fn drain(&mut self, generation: u32, resets: u32) -> Answer {
        self.replica.propose(&Command::DrainGeneration(DrainGeneration {
            consumer_group: self.group,
            topic: self.topic,
            generation: Generation(generation),
            resets,
        }))
    }

    fn grow(&mut self, generation: u32, queues: u32) {
        assert_eq!(self.prepare(generation, queues), at_generation(generation - 1));
        assert_eq!(self.close(generation - 1), at_generation(generation - 1));
        assert_eq!(self.open(generation), at_generation(generation));
    }

    fn send(
        &mut self,
        generation: u32,
        queue: u32,
        id: &str,
        message_group: &str,
    ) -> Result<StoredAt, Refusal> {
        let messages = [grouped(queue, id, message_group)];
        let generation = Generation(generation);
        let command = encode_append_in_order(self.replica.now, self.topic, generation, &messages);
        match self.replica.propose_bytes(command) {
            Answer::Stored(stored) => {
                self.keys.insert((stored[0].queue, stored[0].offset), OrderKey::of(Some(message_group)));
                Ok(stored[0])
            }
            Answer::Refused(refusal) => Err(refusal),
            other => panic!("{other:?}"),
        }
    }

    fn receive(&mut self, max: u32) -> Vec<Granted> {
        let request = self.replica.request(self.group, self.topic, max);
        let keys = &self.keys;
        let mut order_of = |queue, offset, _: IndexEntry| keys.get(&(queue, offset)).copied();
        let Some(plan) = self.replica.state.plan_ordered_receive(&request, &mut order_of) else {
            return Vec::new();
        };
        match self.replica.propose(&plan.command(ClientHash::of("client"), 10_000, false, "")) {
            Answer::Leased(granted) => granted,
            other => panic!("{other:?}"),
        }
    }

    fn ack(&mut self, granted: &[Granted]) {
        self.replica.ack(self.group, self.topic, granted);
    }

    fn has_drained(&self, generation: u32) -> bool {
        self.replica.state.has_drained("workers", "steps", Generation(generation)).expect("the topic")
    }
}

fn at_generation(generation: u32) -> Answer {
    Answer::Generation(Generation(generation))
}

#[test]
fn a_step_out_of_its_order_is_refused_and_one_again_does_nothing() {
    let mut steps = Growing::new(3);
    // Nothing is prepared.
    assert_eq!(steps.close(0), Answer::Refused(Refusal::GenerationNotPrepared));
    assert_eq!(steps.open(1), Answer::Refused(Refusal::GenerationNotPrepared));
    assert_eq!(steps.prepare(0, 8), Answer::Refused(Refusal::GenerationNotPrepared));
    for queues in [0, 1_000_000_000] {
        assert_eq!(steps.prepare(1, queues), Answer::Refused(Refusal::QueueCount));
    }
    assert_eq!(steps.prepare(1, 2), Answer::Refused(Refusal::QueuesCannotShrink));
    // Prepared, twice, and not otherwise.
    assert_eq!(steps.prepare(1, 8), at_generation(0));
    assert_eq!(steps.prepare_as(1, 8, layout(&[3]), layout(&[8])), at_generation(0));
    assert_eq!(steps.prepare(1, 9), Answer::Refused(Refusal::GenerationUnderWay));
    assert_eq!(steps.prepare(2, 9), Answer::Refused(Refusal::GenerationUnderWay));
    assert_eq!(steps.open(1), Answer::Refused(Refusal::GenerationNotClosed));
    assert_eq!(steps.open(2), Answer::Refused(Refusal::GenerationNotPrepared));
    assert_eq!(steps.close(1), Answer::Refused(Refusal::GenerationNotPrepared));
    // Closed, twice: the end stays where it was.
    assert_eq!(steps.close(0), at_generation(0));
    let before = steps.replica.state.state_digest();
    assert_eq!(steps.close(0), at_generation(0));
    assert_eq!(steps.replica.state.state_digest(), before);
    // Open, twice; every step of what is past is done.
    assert_eq!(steps.open(1), at_generation(1));
    assert_eq!(steps.open(1), at_generation(1));
    assert_eq!(steps.close(0), at_generation(1));
    assert_eq!(steps.prepare(1, 50), at_generation(1));
    assert_eq!(steps.prepare(3, 50), Answer::Refused(Refusal::GenerationNotPrepared));
    let topic = steps.replica.state.topic("steps").expect("the topic");
    assert_eq!(topic.settings.queues, 8);
    assert_eq!(topic.placement.expect("it grew").layout, layout(&[8]));
    // Unknown topics and groups, and topics without order.
    let known = steps.topic;
    steps.topic = TopicId(99);
    let unknown = Answer::Refused(Refusal::TopicUnknown);
    assert_eq!(
        [steps.close(0), steps.open(1), steps.drain(0, 0)],
        [unknown.clone(), unknown.clone(), unknown.clone()]
    );
    assert_eq!(steps.prepare_as(1, 8, layout(&[3]), layout(&[8])), unknown);
    assert_eq!(steps.send(1, 0, "a", "k"), Err(Refusal::TopicUnknown));
    steps.topic = steps.replica.topic("plain", 3);
    assert_eq!(steps.prepare(1, 8), Answer::Refused(Refusal::TopicWithoutOrder));
    steps.topic = known;
    steps.group = ConsumerGroupId(99);
    assert_eq!(steps.drain(0, 0), Answer::Refused(Refusal::ConsumerGroupUnknown));
    // It cannot lose its order with its generations.
    let plain = UpdateTopic { name: "steps".to_owned(), settings: TopicSettings::normal(8) };
    assert_eq!(
        steps.replica.propose(&Command::UpdateTopic(plain)),
        Answer::Refused(Refusal::QueuesOfOrderedTopic)
    );
}

#[test]
fn a_topic_keeps_a_bounded_number_of_ended_generations_and_forgets_those_that_hold_nothing() {
    let mut steps = Growing::new(1);
    let max = GENERATIONS_MAX as u32;
    for generation in 1..=max {
        steps.send(generation - 1, 0, &generation.to_string(), "k").expect("stored");
        steps.grow(generation, generation + 1);
    }
    assert_eq!(steps.prepare(max + 1, max + 2), Answer::Refused(Refusal::TooManyGenerations));
    let mut empty = Growing::new(1);
    for generation in 1..=max + 3 {
        empty.replica.pass_ms(11 * 60 * 1000);
        empty.grow(generation, generation + 1);
    }
}

#[test]
fn a_send_is_stored_by_the_generation_it_was_placed_by_or_not_at_all() {
    let mut steps = Growing::new(3);
    let first = steps.send(0, 2, "first", "k").expect("stored");
    assert_eq!(steps.send(1, 2, "early", "k"), Err(Refusal::GenerationEnded));
    steps.prepare(1, 8);
    steps.send(0, 1, "second", "k").expect("prepared is not served yet");
    assert_eq!(steps.send(1, 5, "early", "k"), Err(Refusal::GenerationEnded));
    steps.close(0);
    for generation in [0, 1] {
        assert_eq!(steps.send(generation, 1, "held", "k"), Err(Refusal::GenerationEnded));
        let again = steps.send(generation, 1, "first", "k").expect("a repeat gets its first answer");
        assert_eq!((again.queue, again.offset, again.repeated), (first.queue, first.offset, true));
    }
    // A command of a version that knows no generations is one of the first.
    let command = encode_append(steps.replica.now, steps.topic, &[grouped(0, "old", "k")]);
    assert_eq!(steps.replica.propose_bytes(command), Answer::Refused(Refusal::GenerationEnded));
    steps.open(1);
    assert_eq!(steps.send(0, 1, "late", "k"), Err(Refusal::GenerationEnded));
    assert_eq!(steps.send(2, 1, "late", "k"), Err(Refusal::GenerationEnded));
    assert_eq!(steps.send(1, 7, "late", "k").expect("served").offset, QueueOffset(0));
    assert_eq!(steps.send(1, 7, "first", "k").expect("a repeat").queue, first.queue);
    let before = |ids: [&'static str; 2]| steps.replica.state.stored_before(steps.topic, ids);
    assert!(before(["first", "second"]).is_some());
    assert!(before(["first", "never"]).is_none());
}

#[test]
fn what_lies_behind_an_end_waits_until_the_generation_is_drained() {
    let mut steps = Growing::new(2);
    for number in 0..4 {
        steps.send(0, number % 2, &number.to_string(), &format!("k{number}")).expect("stored");
    }
    let held = steps.receive(1);
    steps.grow(1, 4);
    for queue in 0..4 {
        steps.send(1, queue, &format!("new {queue}"), &format!("k{queue}")).expect("stored");
    }
    assert!(!steps.has_drained(0));
    assert_eq!(steps.drain(0, 0), Answer::Drained(false));
    let rest = steps.receive(100);
    assert_eq!(rest.len(), 3, "only what the first generation stored: {rest:?}");
    steps.ack(&rest);
    assert_eq!(steps.receive(100), []);
    assert_eq!(steps.drain(0, 0), Answer::Drained(false), "one is not acknowledged");
    // Nobody grants it either, whoever proposes.
    let behind = OrderedMessage { offset: QueueOffset(0), order: OrderKey(7), again: false };
    let wild = Command::LeaseInOrder(LeaseInOrder {
        consumer_group: steps.group,
        topic: steps.topic,
        client: ClientHash(1),
        invisible_ms: 1_000,
        auto_renew: false,
        attempt_id: String::new(),
        parts: vec![OrderedPart {
            queue: QueueId(3),
            messages: vec![behind],
            pass_over: vec![QueueOffset(0)],
        }],
    });
    assert_eq!(steps.replica.propose(&wild), Answer::Leased(Vec::new()));
    // A consumer group without order does not wait.
    let plain = steps.replica.group("plain");
    assert_eq!(steps.replica.receive(plain, steps.topic, 100, 1_000).len(), 8);
    steps.ack(&held);
    assert!(steps.has_drained(0));
    assert_eq!(steps.replica.state.drain_candidates(10).len(), 1);
    assert_eq!(steps.receive(100), [], "drained is what an entry says");
    assert_eq!(steps.drain(0, 7), Answer::Drained(false), "asked before a reset");
    assert_eq!(steps.drain(1, 0), Answer::Drained(false), "it has not ended");
    assert_eq!(steps.drain(0, 0), Answer::Drained(true));
    assert_eq!(steps.drain(0, 0), Answer::Drained(true));
    assert_eq!(steps.receive(100).len(), 4);
    assert_eq!(steps.replica.state.drain_candidates(10), []);
}

#[test]
fn a_consumer_group_that_comes_later_begins_with_the_old_generation_and_a_reset_begins_again() {
    let mut steps = Growing::new(1);
    steps.send(0, 0, "old", "k").expect("stored");
    steps.grow(1, 2);
    steps.send(1, 1, "new", "k").expect("stored");
    steps.grow(2, 3);
    steps.send(2, 2, "newest", "k").expect("stored");
    for (generation, place) in [(0, (0, 0)), (1, (1, 0))] {
        let granted = steps.receive(10);
        assert_eq!(offsets(&granted), [place]);
        steps.ack(&granted);
        assert_eq!(steps.drain(generation, 0), Answer::Drained(true));
    }
    assert_eq!(offsets(&steps.receive(10)), [(2, 0)]);
    let settings = ConsumerGroupSettings { fifo: true, ..ConsumerGroupSettings::default() };
    let create = CreateConsumerGroup { name: "late".to_owned(), settings };
    let Answer::ConsumerGroup { id: late, .. } = steps.replica.propose(&Command::CreateConsumerGroup(create))
    else {
        panic!("a group");
    };
    let first = std::mem::replace(&mut steps.group, late);
    assert_eq!(offsets(&steps.receive(10)), [(0, 0)]);
    steps.group = first;
    // To the beginning: the old generation comes before the new one again.
    let queues = (0..3).map(|queue| at(queue, 0)).collect();
    let reset = ResetProgress { consumer_group: first, topic: steps.topic, queues, id: ResetId::default() };
    steps.replica.propose(&Command::ResetProgress(reset));
    assert_eq!(steps.drain(1, 0), Answer::Drained(false), "what was asked before the reset is void");
    let again = steps.receive(10);
    assert_eq!(offsets(&again), [(0, 0)]);
    steps.ack(&again);
    assert_eq!(steps.drain(0, 1), Answer::Drained(true));
    assert_eq!(offsets(&steps.receive(10)), [(1, 0)]);
    // Deleting the topic takes all of it along.
    steps.replica.propose(&Command::DeleteTopic(DeleteTopic { name: "steps".to_owned() }));
    assert_eq!(steps.replica.state.growths(), []);
    assert_eq!(steps.replica.state.has_drained("workers", "steps", Generation(0)), None);
}

#[test]
fn a_dead_letter_counts_as_consumed_and_a_broker_group_may_join_with_a_later_generation() {
    let mut steps = Growing::new(1);
    steps.send(0, 0, "poison", "k").expect("stored");
    steps.grow(1, 2);
    let granted = steps.receive(1);
    assert!(!steps.has_drained(0));
    let letter = super::dead_letters::letter(steps.topic, granted[0], DeadLetterReason::Forwarded);
    steps.replica.propose(&Command::DeadLetter(DeadLetter {
        consumer_group: steps.group,
        topic: steps.topic,
        letters: vec![letter],
    }));
    assert!(steps.has_drained(0));

    let mut joined = Growing::new(2);
    assert_eq!(joined.prepare_as(5, 2, layout(&[4]), layout(&[4, 2])), at_generation(4));
    assert_eq!(joined.close(4), at_generation(4));
    assert_eq!(joined.open(5), at_generation(5));
    joined.send(5, 0, "new", "k").expect("stored");
    assert_eq!(joined.receive(10), [], "generation 4 is not drained elsewhere");
    assert_eq!(joined.drain(4, 0), Answer::Drained(true));
    assert_eq!(joined.receive(10).len(), 1);
}

/// What may happen next among several broker groups, an edge, a driver and a consumer group.
#[derive(Debug, Clone)]
enum Step {
    /// A send by message group; the answer is lost or not. A stale edge knows the oldest generation
    /// that some broker group still serves.
    Send {
        key: u8,
        lost: bool,
        stale: bool,
    },
    /// A send that was not answered.
    Repeat {
        which: usize,
        stale: bool,
    },
    Grow(u32),
    /// The driver does its next step; the answer is lost or not.
    Drive,
    /// A step of an older look at the home's state arrives late.
    Late(usize),
    Receive {
        at: usize,
        max: u32,
    },
    Ack(usize),
    Drain {
        at: usize,
    },
    Reset,
    Pass(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => (0u8..6, proptest::bool::weighted(0.2), proptest::bool::weighted(0.4))
            .prop_map(|(key, lost, stale)| Step::Send { key, lost, stale }),
        4 => (any::<usize>(), any::<bool>()).prop_map(|(which, stale)| Step::Repeat { which, stale }),
        1 => (1u32..4).prop_map(Step::Grow),
        6 => Just(Step::Drive),
        2 => any::<usize>().prop_map(Step::Late),
        6 => (0usize..3, 1u32..6).prop_map(|(at, max)| Step::Receive { at, max }),
        8 => any::<usize>().prop_map(Step::Ack),
        4 => (0usize..3).prop_map(|at| Step::Drain { at }),
        1 => Just(Step::Reset),
        2 => (0u64..15_000).prop_map(Step::Pass),
    ];
    proptest::collection::vec(step, 1..220)
}

/// A protocol that lacks something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lacking {
    Nothing,
    /// Each broker group opens as soon as it has closed.
    TheCloseOfAllBeforeAnOpen,
    /// A repeat goes to its new place at once.
    TheFormerPlace,
    /// A broker group asks no other whether a generation is drained.
    TheDrainElsewhere,
}

/// Three broker groups, and what clients and judges know.
struct Several {
    groups: Vec<Growing>,
    /// Commands a driver has proposed, by broker group: any of them may arrive again.
    proposed: Vec<(usize, Command)>,
    /// By message group: numbers of the sends that were answered, in order.
    answered: BTreeMap<u8, u32>,
    /// Sends without an answer: message group and number. A producer has one at a time per group.
    open_sends: BTreeMap<u8, u32>,
    /// Where each message was stored.
    stored: BTreeMap<(u8, u32), (usize, u32, u64)>,
    by_place: BTreeMap<(usize, u32, u64), (u8, u32)>,
    leases: Vec<(usize, Granted)>,
    /// The next number of each message group to be delivered for the first time.
    next: BTreeMap<u8, u32>,
    lacking: Lacking,
}

const FIRST_QUEUES: [u32; 3] = [2, 1, 2];

impl Several {
    fn new(lacking: Lacking) -> Self {
        Self {
            groups: FIRST_QUEUES.map(Growing::new).into(),
            proposed: Vec::new(),
            answered: BTreeMap::new(),
            open_sends: BTreeMap::new(),
            stored: BTreeMap::new(),
            by_place: BTreeMap::new(),
            leases: Vec::new(),
            next: BTreeMap::new(),
            lacking,
        }
    }

    fn placement(&self, group: usize) -> Option<PlacementView> {
        self.groups[group].replica.state.topic("steps").expect("the topic").placement
    }

    fn queues(&self) -> Vec<u32> {
        let topic = |of: &Growing| of.replica.state.topic("steps").expect("the topic").settings.queues;
        self.groups.iter().map(topic).collect()
    }

    fn now(&self) -> (Generation, Arc<QueueLayout>) {
        (0..3)
            .filter_map(|group| self.placement(group))
            .max_by_key(|placement| placement.generation)
            .map_or_else(|| (Generation(0), layout(&self.queues())), |of| (of.generation, of.layout))
    }

    /// The oldest generation that some broker group knows as the present one.
    fn past(&self) -> (Generation, Arc<QueueLayout>) {
        let known: Vec<_> = (0..3).map(|group| self.placement(group)).collect();
        let oldest = || known.iter().flatten().min_by_key(|placement| placement.generation);
        match oldest() {
            Some(oldest) if known.iter().all(Option::is_some) => (oldest.generation, oldest.layout.clone()),
            _ => (Generation(0), layout(&FIRST_QUEUES)),
        }
    }

    /// As an edge does it: former places in other broker groups first.
    fn send(&mut self, key: u8, number: u32, is_stale: bool) -> bool {
        let hash = u64::from(key) * 7 + 3;
        let (generation, newest) = if is_stale { self.past() } else { self.now() };
        let home = |layout: &QueueLayout| {
            let (group, queue) = layout.place(hash);
            ((0..3).find(|&number| broker_group(number) == *group).expect("one of three"), queue.get())
        };
        let (now, queue) = home(&newest);
        let mut places = Vec::new();
        let asks = self.lacking != Lacking::TheFormerPlace;
        for group in (0..3).filter(|&group| group != now && asks) {
            let Some(known) = self.placement(group) else { continue };
            let present = (known.generation < generation).then_some((known.generation, known.layout.clone()));
            let former = known.former.iter().rev().cloned();
            let mut before = present.into_iter().chain(former);
            places.extend(before.find_map(|(generation, layout)| {
                let (at, queue) = home(&layout);
                (at == group).then_some((at, queue, generation))
            }));
        }
        places.push((now, queue, generation));
        for (group, queue, generation) in places {
            let id = format!("{key}-{number}");
            if let Ok(at) = self.groups[group].send(generation.get(), queue, &id, &key.to_string()) {
                let place = (group, at.queue.get(), at.offset.get());
                let first = *self.stored.entry((key, number)).or_insert(place);
                assert_eq!(first, place, "{id} was stored twice");
                self.by_place.insert(place, (key, number));
                return true;
            }
        }
        false
    }

    fn propose(&mut self, group: usize, command: Command) {
        self.proposed.push((group, command.clone()));
        let answer = self.groups[group].replica.propose(&command);
        assert!(matches!(answer, Answer::Generation(_)), "{command:?}: {answer:?}");
    }

    fn grow(&mut self, by: u32) {
        let (generation, former) = self.now();
        if self.groups[0].replica.state.growth(self.groups[0].topic).is_some() {
            return;
        }
        let former_queues: Vec<u32> = former.groups().iter().map(|(_, queues)| *queues).collect();
        let more: Vec<u32> = former_queues.iter().map(|queues| queues + by).collect();
        let prepare = PrepareGeneration {
            topic: self.groups[0].topic,
            generation: generation.next(),
            queues: more[0],
            former,
            layout: layout(&more),
        };
        self.propose(0, Command::PrepareGeneration(prepare));
    }

    /// One step, chosen by nothing but what the states say; a driver that dies does no more than this.
    fn drive(&mut self) {
        if self.lacking == Lacking::TheCloseOfAllBeforeAnOpen {
            return self.drive_one_by_one();
        }
        let Some(growth) = self.groups[0].replica.state.growth(self.groups[0].topic) else { return };
        let behind = |group: &usize| {
            let of = &self.groups[*group];
            let state = of.replica.state.growth(of.topic);
            match growth.is_closed {
                false => state.is_none_or(|state| !state.is_closed),
                true => state.is_some(),
            }
        };
        let (group, topic) = match [1, 2, 0].into_iter().find(behind) {
            Some(group) => (group, self.groups[group].topic),
            None => return,
        };
        let is_prepared = self.groups[group].replica.state.growth(topic).is_some();
        let all_prepared = [1, 2]
            .iter()
            .all(|&other| self.groups[other].replica.state.growth(self.groups[other].topic).is_some());
        let command = if growth.is_closed {
            Command::OpenGeneration(OpenGeneration { topic, generation: growth.next })
        } else if is_prepared && all_prepared {
            Command::CloseGeneration(CloseGeneration { topic, generation: growth.current })
        } else {
            let group = if is_prepared { 3 - group } else { group };
            let queues = growth.layout.queues_of(&broker_group(group));
            let (former, layout) = (growth.former.clone(), growth.layout.clone());
            let topic = self.groups[group].topic;
            let prepare = PrepareGeneration { topic, generation: growth.next, queues, former, layout };
            return self.propose(group, Command::PrepareGeneration(prepare));
        };
        self.propose(group, command);
    }

    /// The broken driver: a broker group that is prepared closes and opens, and only then the next.
    fn drive_one_by_one(&mut self) {
        let Some(home) = self.groups[0].replica.state.growth(self.groups[0].topic) else { return };
        for group in [1, 2, 0] {
            let topic = self.groups[group].topic;
            let current = self.placement(group).map_or(Generation(0), |placement| placement.generation);
            if current == home.next {
                continue;
            }
            if group > 0 && self.groups[group].replica.state.growth(topic).is_none() {
                let queues = home.layout.queues_of(&broker_group(group));
                let (former, layout) = (home.former.clone(), home.layout.clone());
                let prepare = PrepareGeneration { topic, generation: home.next, queues, former, layout };
                self.propose(group, Command::PrepareGeneration(prepare));
            }
            self.propose(
                group,
                Command::CloseGeneration(CloseGeneration { topic, generation: home.current }),
            );
            return self
                .propose(group, Command::OpenGeneration(OpenGeneration { topic, generation: home.next }));
        }
    }

    fn receive(&mut self, group: usize, max: u32) {
        for lease in self.groups[group].receive(max) {
            let place = (group, lease.queue.get(), lease.offset.get());
            let (key, number) = self.by_place[&place];
            let next = self.next.entry(key).or_default();
            assert!(number <= *next, "{key}: {number} at {place:?} is delivered before {next}");
            *next = (*next).max(number + 1);
            self.leases
                .retain(|(at, held)| (*at, held.queue, held.offset) != (group, lease.queue, lease.offset));
            self.leases.push((group, lease));
        }
    }

    fn drain(&mut self, group: usize) {
        for candidate in self.groups[group].replica.state.drain_candidates(10) {
            let others = (0..3).filter(|&other| other != group);
            let named = others.filter(|&other| candidate.layout.queues_of(&broker_group(other)) > 0);
            let asks = self.lacking != Lacking::TheDrainElsewhere;
            if !asks
                || named.into_iter().all(|other| self.groups[other].has_drained(candidate.generation.get()))
            {
                self.groups[group].drain(candidate.generation.get(), candidate.resets);
            }
        }
    }

    /// Everything from the beginning again, in all broker groups; ends with the second round.
    fn reset(&mut self) {
        for group in &mut self.groups {
            let ranges = group.replica.state.queue_ranges(group.topic).expect("the topic");
            let queues = (0u32..).zip(ranges).map(|(queue, _)| at(queue, 0)).collect();
            let reset = ResetProgress {
                consumer_group: group.group,
                topic: group.topic,
                queues,
                id: ResetId::default(),
            };
            group.replica.propose(&Command::ResetProgress(reset));
        }
        for group in &mut self.groups {
            let (consumer_group, topic) = (group.group, group.topic);
            let forget = ResetProgress { consumer_group, topic, queues: Vec::new(), id: ResetId::default() };
            group.replica.propose(&Command::ResetProgress(forget));
        }
        self.leases.clear();
        self.next.clear();
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Send { key, lost, stale } => {
                if self.open_sends.contains_key(&key) {
                    return;
                }
                let number = self.answered.get(&key).copied().unwrap_or(0);
                if !self.send(key, number, stale) || lost {
                    self.open_sends.insert(key, number);
                } else {
                    self.answered.insert(key, number + 1);
                }
            }
            Step::Repeat { which, stale } => {
                let Some((&key, &number)) = self.open_sends.iter().nth(which % self.open_sends.len().max(1))
                else {
                    return;
                };
                if self.send(key, number, stale) {
                    self.open_sends.remove(&key);
                    self.answered.insert(key, number + 1);
                }
            }
            Step::Grow(by) => self.grow(by),
            Step::Drive => self.drive(),
            Step::Late(which) => {
                let Some((group, command)) = self.proposed.get(which % self.proposed.len().max(1)).cloned()
                else {
                    return;
                };
                let before = self.groups[group].replica.state.growth(self.groups[group].topic);
                self.groups[group].replica.propose(&command);
                assert_eq!(self.groups[group].replica.state.growth(self.groups[group].topic), before);
            }
            Step::Receive { at, max } => self.receive(at, max),
            Step::Ack(which) => {
                if self.leases.is_empty() {
                    return;
                }
                let (group, lease) = self.leases.swap_remove(which % self.leases.len());
                self.groups[group].ack(&[lease]);
            }
            Step::Drain { at } => self.drain(at),
            Step::Reset => self.reset(),
            Step::Pass(ms) => self.groups.iter_mut().for_each(|group| group.replica.pass_ms(ms)),
        }
    }

    /// With everybody at work all that was sent is delivered, in order, and every generation drains.
    fn finish(&mut self) {
        for _ in 0..400 {
            self.drive();
            if let Some((&key, &number)) = self.open_sends.iter().next() {
                if self.send(key, number, false) {
                    self.open_sends.remove(&key);
                    self.answered.insert(key, number + 1);
                }
            }
            for group in 0..3 {
                self.groups[group].replica.pass_ms(10_000);
                self.receive(group, 32);
                for (group, lease) in std::mem::take(&mut self.leases) {
                    self.groups[group].ack(&[lease]);
                }
                self.drain(group);
            }
            let is_growing = self.groups.iter().any(|of| of.replica.state.growth(of.topic).is_some());
            let is_draining = self.groups.iter().any(|of| !of.replica.state.draining(of.topic).is_empty());
            if self.open_sends.is_empty() && !is_growing && !is_draining && self.next == self.answered {
                break;
            }
        }
        assert_eq!(self.open_sends, BTreeMap::new(), "a send was never stored");
        assert_eq!(self.next, self.answered, "not everything was delivered");
        for of in &self.groups {
            assert_eq!(of.replica.state.growths(), []);
            assert_eq!(of.replica.state.draining(of.topic), []);
        }
        let places: BTreeSet<_> = self.stored.values().collect();
        assert_eq!(places.len(), self.stored.len(), "two messages at one place");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn no_key_goes_backwards_while_a_topic_of_three_broker_groups_grows(program in steps()) {
        run(&program, Lacking::Nothing);
    }
}

fn run(program: &[Step], lacking: Lacking) {
    let mut several = Several::new(lacking);
    for step in program {
        several.step(step);
    }
    several.finish();
}

/// A protocol that lacks something must be convicted by some of these programs.
fn convicts(lacking: Lacking) {
    use proptest::strategy::ValueTree as _;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let convicted = (0..200).any(|_| {
        let program = steps().new_tree(&mut runner).expect("a program").current();
        std::panic::catch_unwind(|| run(&program, lacking)).is_err()
    });
    assert!(convicted, "{lacking:?} went unnoticed");
}

#[test]
fn a_growth_without_any_of_its_parts_is_noticed() {
    convicts(Lacking::TheCloseOfAllBeforeAnOpen);
    convicts(Lacking::TheFormerPlace);
    convicts(Lacking::TheDrainElsewhere);
}
