//! Members of a consumer group that want different things of a topic: what one passes over and what it
//! leaves for the others.

use super::*;

struct Members {
    replica: Replica,
    group: ConsumerGroupId,
    topic: TopicId,
    red: OthersWant,
    blue: OthersWant,
}

impl Members {
    /// One wants red and one wants blue.
    fn of(messages: &[NewMessage]) -> Self {
        let mut replica = Replica::in_memory();
        let topic = replica.topic("orders", 2);
        let group = replica.group("painters");
        for batch in messages.chunks(500) {
            replica.send(topic, batch);
        }
        let wants = |tag| OthersWant { tags: vec![TagFilter::tags([tag])], ..OthersWant::default() };
        Self { replica, group, topic, red: wants("blue"), blue: wants("red") }
    }

    fn request(&self, tag: &str, max: u32) -> ReceiveRequest {
        let others = if tag == "red" { self.red.clone() } else { self.blue.clone() };
        let filter = TagFilter::tags([tag]);
        ReceiveRequest { filter, others, ..self.replica.request(self.group, self.topic, max) }
    }

    /// The offsets of queue 0 that a member gets.
    fn receive(&mut self, tag: &str, max: u32) -> Vec<u64> {
        let Some(plan) = self.replica.state.plan_receive(&self.request(tag, max)) else { return Vec::new() };
        match self.replica.propose(&plan.command(ClientHash::of(tag), 30_000, false, "")) {
            Answer::Leased(granted) => granted.iter().map(|lease| lease.offset.get()).collect(),
            other => panic!("{other:?}"),
        }
    }

    fn unseen(&self) -> Vec<(u64, u64)> {
        let applied = self.replica.state.applied_state();
        let end = applied.topics[&self.topic].queues[0].max;
        let subscription = applied.subscriptions.get(&(self.group, self.topic));
        let progress = subscription.and_then(|subscription| subscription.queues.get(&0));
        progress.map_or(vec![(0, end)], |progress| progress.unseen(end).collect())
    }
}

fn coloured(colours: &[Option<&str>], count: usize) -> Vec<NewMessage> {
    (0..count).map(|n| tagged(0, &format!("{n}"), colours[n % colours.len()])).collect()
}

#[test]
fn what_another_member_wants_is_left_for_it_and_what_nobody_wants_is_passed_over() {
    let mut members = Members::of(&coloured(&[Some("red"), Some("blue"), None], 9));
    assert_eq!(members.receive("red", 10), [0, 3, 6]);
    assert_eq!(members.unseen(), [(1, 2), (4, 5), (7, 8)], "blue, and nothing of what nobody wants");
    assert_eq!(members.receive("red", 10), Vec::<u64>::new());
    assert_eq!(members.receive("blue", 10), [1, 4, 7]);
    assert_eq!(members.unseen(), []);
}

#[test]
fn a_member_that_is_the_last_one_passes_over_what_was_left_for_others() {
    let mut members = Members::of(&coloured(&[Some("red"), Some("blue")], 8));
    assert_eq!(members.receive("red", 3), [0, 2, 4]);
    // Blue has gone.
    members.red.tags.clear();
    members.red.left.forget();
    assert_eq!(members.receive("red", 10), [6]);
    assert_eq!(members.unseen(), [], "what was left for blue, and what would have been");
}

#[test]
fn each_message_is_judged_once_for_a_filter_and_the_one_it_is_for_is_woken_once() {
    let mut members = Members::of(&coloured(&[Some("blue")], 3_000));
    assert_eq!(members.receive("red", 10), Vec::<u64>::new());
    assert!(members.red.left.contains(0, 2_999));
    members.replica.send(members.topic, &[tagged(0, "red one", Some("red"))]);
    assert_eq!(members.receive("red", 10), [3_000]);
    assert_eq!(members.receive("blue", 2), [0, 1]);
    let plan = members.replica.state.plan_receive(&members.request("blue", 2)).expect("more");
    assert_eq!(members.receive("red", 10), Vec::<u64>::new(), "nothing is held for a plan of red");
    drop(plan);
    assert_eq!(members.receive("blue", 1_000).len(), 1_000);
}

#[test]
fn an_ended_delivery_of_another_member_stays_its_own() {
    let mut members = Members::of(&coloured(&[Some("red"), Some("blue")], 2));
    assert_eq!(members.receive("blue", 10), [1]);
    members.replica.pass_ms(30_000);
    assert_eq!(members.receive("red", 10), [0]);
    assert_eq!(members.receive("blue", 10), [1]);
    // Judged by the record: as an expression is.
    members.replica.pass_ms(30_000);
    let everything = ReceiveRequest {
        others: members.red.clone(),
        ..members.replica.request(members.group, members.topic, 10)
    };
    let mut plan = members.replica.state.plan_receive(&everything).expect("both ended");
    let of_blue = plan.messages().iter().position(|message| message.offset.get() == 1).expect("planned");
    plan.leave_nth(of_blue);
    assert_eq!(plan.delivers(), 1);
    members.replica.propose(&plan.command(ClientHash::of("red"), 30_000, false, ""));
    drop(plan);
    assert_eq!(members.receive("blue", 10), [1]);
}

#[test]
fn messages_left_by_their_record_split_what_is_seen_around_them() {
    let mut members = Members::of(&coloured(&[Some("red"), Some("blue"), None], 9));
    let everything = members.replica.request(members.group, members.topic, 9);
    let mut plan = members.replica.state.plan_receive(&everything).expect("messages");
    for position in 0..9 {
        match position % 3 {
            1 => plan.leave_nth(position),
            2 => plan.reject_nth(position),
            _ => {}
        }
    }
    plan.keep_first(8);
    let Answer::Leased(granted) =
        members.replica.propose(&plan.command(ClientHash::of("red"), 30_000, false, ""))
    else {
        panic!("leased");
    };
    assert_eq!(offsets(&granted), [(0, 0), (0, 3), (0, 6)]);
    drop(plan);
    assert_eq!(members.unseen(), [(1, 2), (4, 5), (7, 9)]);
}

#[test]
fn a_member_waits_for_the_others_when_the_holes_they_leave_are_too_many() {
    let pairs = HOLES_OF_QUEUE_MAX + 50;
    let mut members = Members::of(&coloured(&[Some("blue"), Some("red")], 2 * pairs));
    let mut got = 0;
    for _ in 0..200 {
        got += members.receive("red", 32).len();
    }
    assert_eq!(got, HOLES_OF_QUEUE_MAX);
    assert_eq!(members.unseen().len(), HOLES_OF_QUEUE_MAX + 1);
    assert_eq!(members.receive("blue", 32).len(), 32);
    assert_eq!(members.receive("red", 40).len(), 32, "as many as blue made room for");
    for _ in 0..200 {
        members.receive("blue", 32);
        members.receive("red", 32);
    }
    assert_eq!(members.unseen(), [], "no one waits for ever");
}

#[test]
fn the_filters_of_members_that_differ_survive_a_restart_and_a_snapshot() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut replica = Replica::open(Some(directory.path()), Log::default());
    let (topic, other) = (replica.topic("orders", 1), replica.topic("other", 1));
    let group = replica.group("painters");
    let set = |replica: &mut Replica, topic, filters: &[&str]| {
        let filters = filters.iter().map(|filter| (*filter).to_owned()).collect();
        replica.propose(&Command::SetFilters(SetFilters { consumer_group: group, topic, filters }))
    };
    assert_eq!(set(&mut replica, TopicId(99), &["a", "b"]), Answer::Refused(Refusal::TopicUnknown));
    assert_eq!(set(&mut replica, other, &["a", "b"]), Answer::FiltersSet);
    assert_eq!(set(&mut replica, other, &["b"]), Answer::FiltersSet);
    assert_eq!(set(&mut replica, topic, &["*", "tag x"]), Answer::FiltersSet);
    replica.state.checkpoint().expect("written");
    let (applied, stream) = replica.state.snapshot().expect("a snapshot");
    replica.state.close().expect("closed");
    let restored = Replica::in_memory();
    restored.state.restore(applied.expect("entries"), stream).expect("restored");
    let mut restarted = Replica::open(Some(directory.path()), replica.log);
    for state in [&restored.state, &restarted.state] {
        assert_eq!(state.filters_of(group, topic), ["*", "tag x"]);
        assert_eq!(state.differing_filters().len(), 1, "agreement is not kept");
    }
    restarted.propose(&Command::DeleteTopic(DeleteTopic { name: "orders".to_owned() }));
    assert_eq!(restarted.state.differing_filters(), []);
    restarted.state.close().expect("closed");
}
