use std::collections::BTreeSet;

use super::*;

const MINUTE: u64 = 60_000;

struct Bed {
    replica: Replica,
    topic: TopicId,
    group: ConsumerGroupId,
    sent: u32,
}

impl Bed {
    fn new() -> Self {
        Self::on(Replica::in_memory())
    }

    fn on(mut replica: Replica) -> Self {
        let topic = lite_parent(&mut replica, "rooms");
        let group = replica.group("agents");
        Self { replica, topic, group, sent: 0 }
    }

    fn send(&mut self, lite_topic: &str) -> StoredAt {
        self.sent += 1;
        let id = self.sent.to_string();
        self.send_as(lite_topic, &id)
    }

    fn send_as(&mut self, lite_topic: &str, id: &str) -> StoredAt {
        let command = encode_lite(self.replica.now, self.topic, lite_topic, &[lite_message(lite_topic, id)]);
        match self.replica.propose_bytes(command) {
            Answer::Stored(stored) => stored[0],
            other => panic!("{other:?}"),
        }
    }

    fn attributes(&mut self, change: impl FnOnce(&mut GroupAttributes)) {
        let mut attributes = self.replica.state.group_attributes(self.group);
        change(&mut attributes);
        let set = SetGroupAttributes { consumer_group: self.group, attributes };
        self.replica.propose(&Command::SetGroupAttributes(set));
    }

    fn sync(&mut self, client: &str, action: LiteAction, names: &[&str]) -> Answer {
        self.sync_from(client, action, names, LiteStart::Max)
    }

    fn sync_from(&mut self, client: &str, action: LiteAction, names: &[&str], start: LiteStart) -> Answer {
        let command = SyncLite {
            consumer_group: self.group,
            topic: self.topic,
            client_id: client.to_owned(),
            version: 0,
            action,
            lite_topics: names.iter().map(|name| ((*name).to_owned(), start)).collect(),
        };
        self.replica.propose(&Command::SyncLite(command))
    }

    fn subscribe(&mut self, client: &str, names: &[&str]) {
        let answer = self.sync(client, LiteAction::Add, names);
        assert!(matches!(answer, Answer::LiteSynced(_)), "{answer:?}");
    }

    fn plan(&self, client: &str, max: u32) -> Option<LitePlan> {
        self.replica.state.plan_lite_receive(&LiteReceive {
            consumer_group: self.group,
            topic: self.topic,
            client: ClientHash::of(client),
            messages_max: max,
            bytes_max: 1 << 20,
            now: self.replica.now,
        })
    }

    fn receive(&mut self, client: &str, max: u32) -> Vec<Granted> {
        let Some(plan) = self.plan(client, max) else { return Vec::new() };
        let planned = plan.messages().len();
        match self.replica.propose(&plan.command(10_000, false, "")) {
            Answer::Leased(granted) => {
                assert_eq!(granted.len(), planned, "an undisturbed plan is granted");
                granted
            }
            other => panic!("{other:?}"),
        }
    }

    /// Lite topic and offset of what a receive got.
    fn got(&mut self, client: &str, max: u32) -> Vec<(String, u64)> {
        let granted = self.receive(client, max);
        let name = |lease: &Granted| self.replica.state.lite_name(self.topic, lease.queue).expect("a name");
        granted.iter().map(|lease| (name(lease), lease.offset.get())).collect()
    }

    fn ack(&mut self, granted: &[Granted]) -> Vec<DeliveryOutcome> {
        self.replica.ack(self.group, self.topic, granted)
    }

    fn change(&mut self, lease: &Granted, invisible_ms: u64, suspend: bool) {
        let change = ChangeInvisible {
            consumer_group: self.group,
            topic: self.topic,
            queue: lease.queue,
            offset: lease.offset,
            epoch: lease.epoch,
            invisible_ms,
        };
        let command =
            if suspend { Command::SuspendDelivery(change) } else { Command::ChangeInvisible(change) };
        let answer = self.replica.propose(&command);
        assert!(matches!(answer, Answer::Changed(ChangeOutcome::Changed { .. })), "{answer:?}");
    }

    fn taken(&self, client: &str) -> Vec<String> {
        let taken = self.replica.state.taken_from(&[client.to_owned()], 10);
        taken.into_iter().map(|taken| taken.lite_topic).collect()
    }

    fn names(&self) -> BTreeSet<String> {
        let (views, _) = self.replica.state.lite_topics(self.topic, QueueId(0), 1_000);
        views.into_iter().map(|view| view.name).collect()
    }

    fn sweep(&mut self) -> u32 {
        let (idle, rest) = self.replica.state.idle_lite_topics((TopicId(0), 0), self.replica.now, 1_000);
        assert_eq!(rest, None);
        let queues = idle.into_iter().map(|(_, queue)| queue).collect();
        self.expire(queues)
    }

    fn expire(&mut self, queues: Vec<u32>) -> u32 {
        match self.replica.propose(&Command::ExpireLite(ExpireLite { topic: self.topic, queues })) {
            Answer::LiteExpired(expired) => expired,
            other => panic!("{other:?}"),
        }
    }
}

pub(super) fn lite_parent(replica: &mut Replica, name: &str) -> TopicId {
    let settings = TopicSettings { message_type: MessageType::Lite, ..TopicSettings::normal(4) };
    match replica.propose(&Command::CreateTopic(CreateTopic { name: name.to_owned(), settings })) {
        Answer::Topic { id, .. } => id,
        other => panic!("{other:?}"),
    }
}

pub(super) fn lite_message(lite_topic: &str, id: &str) -> NewMessage {
    let mut message = message(1, id);
    message.message_type = MessageType::Lite;
    message.properties.lite_topic = Some(lite_topic.to_owned());
    message
}

fn at(name: &str, offset: u64) -> (String, u64) {
    (name.to_owned(), offset)
}

#[test]
fn a_subscription_begins_behind_what_is_there_unless_it_says_otherwise() {
    let mut bed = Bed::new();
    for _ in 0..4 {
        bed.send("a");
    }
    bed.subscribe("c", &["a", "b"]);
    assert_eq!(bed.got("c", 10), []);
    bed.send("a");
    bed.send("b");
    let got: BTreeSet<_> = bed.got("c", 10).into_iter().collect();
    assert_eq!(got, BTreeSet::from([at("a", 4), at("b", 0)]));
    for (name, start, expected) in [
        ("first", LiteStart::Min, vec![0, 1, 2]),
        ("last", LiteStart::Last, vec![2]),
        ("tail", LiteStart::Tail(2), vec![1, 2]),
        ("offset", LiteStart::Offset(1), vec![1, 2]),
        ("beyond", LiteStart::Offset(99), vec![]),
    ] {
        (0..3).for_each(|_| {
            bed.send(name);
        });
        bed.sync_from(name, LiteAction::Add, &[name], start);
        let offsets: Vec<u64> = bed.got(name, 10).into_iter().map(|(_, offset)| offset).collect();
        assert_eq!(offsets, expected, "{name}");
    }
}

#[test]
fn each_lite_topic_is_in_order_and_a_stuck_one_holds_up_no_other() {
    let mut bed = Bed::new();
    bed.subscribe("c", &["a", "b"]);
    for name in ["a", "a", "b", "a"] {
        bed.send(name);
    }
    let first = bed.receive("c", 1);
    let stuck = bed.replica.state.lite_name(bed.topic, first[0].queue).expect("a name");
    let free = if stuck == "a" { "b" } else { "a" };
    let rest = bed.got("c", 10);
    assert!(!rest.is_empty() && rest.iter().all(|(name, _)| name == free), "{stuck} is held: {rest:?}");
    bed.replica.pass_ms(10_000);
    let again = bed.receive("c", 10);
    let of_stuck: Vec<_> = again.iter().filter(|lease| lease.queue == first[0].queue).collect();
    assert_eq!((of_stuck[0].offset, of_stuck[0].attempt), (first[0].offset, 2), "the first of it again");
    assert!(of_stuck.is_sorted_by_key(|lease| lease.offset));
    assert_eq!(bed.ack(&first), [DeliveryOutcome::Stale]);
    assert!(bed.ack(&again).iter().all(|outcome| *outcome == DeliveryOutcome::Done));
    assert_eq!(bed.replica.state.lag(bed.group, bed.topic), Lag::default());
}

#[test]
fn a_repeated_message_id_is_stored_once_and_makes_no_lite_topic() {
    let mut bed = Bed::new();
    let first = bed.send_as("a", "same");
    let again = bed.send_as("b", "same");
    assert_eq!((again.queue, again.offset, again.repeated), (first.queue, first.offset, true));
    assert_eq!(bed.names(), BTreeSet::from(["a".to_owned()]));
}

#[test]
fn the_newest_reader_of_an_exclusive_group_takes_over_and_a_full_list_does_not_take_it_back() {
    let mut bed = Bed::new();
    bed.attributes(|attributes| attributes.exclusive = true);
    bed.subscribe("old", &["a", "b"]);
    bed.send("a");
    let plan = bed.plan("old", 10).expect("a message");
    let Answer::LiteSynced(synced) = bed.sync("new", LiteAction::Add, &["a"]) else { panic!("synced") };
    assert_eq!(synced, LiteSynced { added: 1, removed: 0, evicted: 1 });
    assert_eq!(bed.taken("old"), ["a"]);
    assert_eq!(bed.taken("new"), [""; 0]);
    // Planned before, applied after: nothing for one that does not read it any more.
    assert_eq!(bed.replica.propose(&plan.command(10_000, false, "")), Answer::Leased(Vec::new()));
    assert_eq!(bed.got("new", 10), [at("a", 0)], "it goes on where the group was");

    bed.sync("old", LiteAction::Replace, &["a", "b"]);
    assert_eq!(bed.taken("old"), ["a"], "it has not understood yet");
    bed.sync("old", LiteAction::Replace, &["b"]);
    assert_eq!(bed.taken("old"), [""; 0]);
    bed.subscribe("old", &["a"]);
    assert_eq!((bed.taken("old"), bed.taken("new")), (vec![], vec!["a".to_owned()]), "and back");
    bed.sync("new", LiteAction::Remove, &["a"]);
    assert_eq!(bed.taken("new"), [""; 0]);
}

#[test]
fn a_reader_that_takes_over_or_comes_back_begins_anew_where_the_group_says_so() {
    let mut bed = Bed::new();
    bed.attributes(|attributes| {
        attributes.exclusive = true;
        attributes.reset_when_taken_over = true;
        attributes.reset_on_unsubscribe = true;
    });
    bed.subscribe("old", &["a"]);
    bed.send("a");
    let held = bed.receive("old", 1);
    bed.subscribe("new", &["a"]);
    assert_eq!(bed.got("new", 10), [], "what was there before it came is not for it");
    assert_eq!(bed.ack(&held), [DeliveryOutcome::AlreadyConsumed], "its delivery went with it");
    bed.send("a");
    assert_eq!(bed.got("new", 10), [at("a", 1)]);
    bed.sync("new", LiteAction::RemoveAll, &[]);
    bed.send("a");
    bed.subscribe("new", &["a"]);
    assert_eq!(bed.got("new", 10), []);
}

#[test]
fn many_clients_share_a_lite_topic_where_the_group_does_not_say_otherwise() {
    let mut bed = Bed::new();
    bed.subscribe("one", &["a"]);
    bed.subscribe("two", &["a"]);
    bed.send("a");
    let held = bed.receive("one", 10);
    assert_eq!(bed.got("two", 10), []);
    bed.ack(&held);
    bed.send("a");
    assert_eq!(bed.got("two", 10), [at("a", 1)]);
    let release = ReleaseClient { consumer_group: bed.group, client: ClientHash::of("one") };
    bed.replica.propose(&Command::ReleaseClient(release));
    let (views, _) = bed.replica.state.lite_topics(bed.topic, QueueId(0), 10);
    let readers: Vec<_> = views[0].readers.iter().map(|reader| reader.client_id.as_str()).collect();
    assert_eq!(readers, ["two"], "one that ended reads nothing");
}

#[test]
fn a_suspended_delivery_is_no_attempt_and_never_ends_with_the_dead_letters() {
    let mut bed = Bed::new();
    let settings = ConsumerGroupSettings { attempts_max: 2, ..ConsumerGroupSettings::default() };
    let update = UpdateConsumerGroup { name: "agents".to_owned(), settings };
    bed.replica.propose(&Command::UpdateConsumerGroup(update));
    bed.subscribe("c", &["a"]);
    bed.send("a");
    for _ in 0..4 {
        let held = bed.receive("c", 1);
        assert_eq!(held[0].attempt, 1);
        bed.change(&held[0], 1_000, true);
        assert_eq!(bed.receive("c", 1), []);
        bed.replica.pass_ms(1_000);
    }
    let held = bed.receive("c", 1);
    bed.change(&held[0], 1_000, false);
    bed.replica.pass_ms(1_000);
    let last = bed.receive("c", 1);
    assert_eq!(last[0].attempt, 2);
    bed.change(&last[0], 1_000, true);
    bed.replica.pass_ms(1_000);
    assert_eq!(bed.replica.state.exhausted_deliveries(bed.replica.now, 10), []);
    let last = bed.receive("c", 1);
    assert_eq!(last[0].attempt, 2);
    bed.replica.pass_ms(10_000);
    assert_eq!(bed.receive("c", 1), [], "it was the last");
    assert_eq!(bed.replica.state.exhausted_deliveries(bed.replica.now, 10).len(), 1);
}

#[test]
fn suspending_counts_for_no_group_not_only_for_lite_ones() {
    let mut replica = Replica::in_memory();
    let (topic, group) = (replica.topic("plain", 1), replica.group("workers"));
    replica.send(topic, &[message(0, "m")]);
    let first = replica.receive(group, topic, 1, 10_000)[0];
    let change = ChangeInvisible {
        consumer_group: group,
        topic,
        queue: first.queue,
        offset: first.offset,
        epoch: first.epoch,
        invisible_ms: 1_000,
    };
    replica.propose(&Command::SuspendDelivery(change));
    replica.pass_ms(1_000);
    assert_eq!(replica.receive(group, topic, 1, 10_000)[0].attempt, 1);
    replica.pass_ms(10_000);
    assert_eq!(replica.receive(group, topic, 1, 10_000)[0].attempt, 2);
}

#[test]
fn quotas_and_bindings_are_kept_and_a_refusal_changes_nothing() {
    let mut bed = Bed::new();
    bed.attributes(|attributes| attributes.client_quota = 2);
    bed.subscribe("c", &["a", "b"]);
    let before = bed.replica.state.state_digest().records;
    assert_eq!(bed.sync("c", LiteAction::Add, &["x"]), Answer::Refused(Refusal::LiteClientQuota));
    let three = ["a", "x", "y"];
    assert_eq!(bed.sync("c", LiteAction::Replace, &three), Answer::Refused(Refusal::LiteClientQuota));
    assert_eq!(bed.replica.state.state_digest().records, before);
    bed.subscribe("c", &["a", "b"]);
    bed.sync("c", LiteAction::Replace, &["a", "x"]);
    assert_eq!(bed.names(), BTreeSet::from(["a", "b", "x"].map(str::to_owned)));

    let other = lite_parent(&mut bed.replica, "others");
    let plain = bed.replica.topic("plain", 1);
    for (topic, refusal) in [(other, Refusal::LiteBinding), (plain, Refusal::NotLite)] {
        bed.topic = topic;
        assert_eq!(bed.sync("c", LiteAction::Add, &["a"]), Answer::Refused(refusal));
    }
    let command = encode_lite(bed.replica.now, plain, "a", &[lite_message("a", "new")]);
    assert_eq!(bed.replica.propose_bytes(command), Answer::Refused(Refusal::NotLite));
    let grow = TopicSettings { message_type: MessageType::Lite, ..TopicSettings::normal(5) };
    let grow = Command::UpdateTopic(UpdateTopic { name: "rooms".to_owned(), settings: grow });
    assert_eq!(bed.replica.propose(&grow), Answer::Refused(Refusal::QueuesOfOrderedTopic));
}

#[test]
fn an_overtaken_full_list_is_left_alone() {
    let mut bed = Bed::new();
    let mut sync = |version, names: &[&str]| {
        let command = SyncLite {
            consumer_group: bed.group,
            topic: bed.topic,
            client_id: "c".to_owned(),
            version,
            action: LiteAction::Replace,
            lite_topics: names.iter().map(|name| ((*name).to_owned(), LiteStart::Max)).collect(),
        };
        bed.replica.propose(&Command::SyncLite(command))
    };
    sync(5, &["a", "b"]);
    assert_eq!(sync(4, &[]), Answer::LiteSynced(LiteSynced::default()));
    let Answer::LiteSynced(synced) = sync(6, &["a"]) else { panic!("synced") };
    assert_eq!(synced.removed, 1);
}

#[test]
fn empty_lite_topics_go_after_their_idle_time_and_nothing_that_waits_does() {
    let mut bed = Bed::new();
    bed.subscribe("c", &["read", "consumed", "waiting", "unread"]);
    for name in ["consumed", "waiting", "never-read"] {
        bed.send(name);
    }
    let held = bed.receive("c", 10);
    let waiting = bed.replica.state.lite_queue(bed.topic, "waiting").expect("there");
    let done: Vec<_> = held.iter().copied().filter(|lease| lease.queue != waiting).collect();
    bed.ack(&done);
    bed.sync("c", LiteAction::Remove, &["consumed", "waiting", "unread"]);
    bed.replica.pass_ms(10 * MINUTE);
    assert_eq!(bed.sweep(), 0, "the parent keeps them for ever");
    let set = SetLiteTopic { topic: bed.topic, expire_after_ms: 15 * MINUTE };
    bed.replica.propose(&Command::SetLiteTopic(set));
    assert_eq!(bed.sweep(), 0, "not idle for so long yet");
    let all: Vec<u32> =
        bed.replica.state.lite_ranges(bed.topic).into_iter().map(|(queue, _)| queue).collect();
    assert_eq!(bed.expire(all), 0, "whatever a leader proposes");
    bed.replica.pass_ms(5 * MINUTE);
    assert_eq!(bed.sweep(), 2);
    assert_eq!(bed.names(), BTreeSet::from(["read", "waiting", "never-read"].map(str::to_owned)));

    // A name that comes back is another lite topic: what was of the old one means nothing to it.
    bed.subscribe("c", &["consumed"]);
    let anew = bed.send("consumed");
    assert_ne!(anew.queue, done[0].queue);
    assert_eq!(anew.offset, QueueOffset(0));
    assert_eq!(bed.ack(&done[..1]), [DeliveryOutcome::NeverDelivered]);
    assert!(bed.got("c", 10).contains(&at("consumed", 0)));
}

#[test]
fn deleting_the_parent_or_the_group_leaves_nothing_behind() {
    let mut bed = Bed::new();
    bed.subscribe("c", &["a"]);
    bed.send("a");
    bed.receive("c", 1);
    bed.replica.propose(&Command::DeleteConsumerGroup(DeleteConsumerGroup { name: "agents".to_owned() }));
    let (views, _) = bed.replica.state.lite_topics(bed.topic, QueueId(0), 10);
    assert_eq!(views[0].readers, []);
    bed.replica.propose(&Command::DeleteTopic(DeleteTopic { name: "rooms".to_owned() }));
    assert_eq!(bed.names(), BTreeSet::new());
    let fresh = lite_parent(&mut bed.replica, "rooms");
    assert_ne!(fresh, bed.topic);
    let (applied, stream) = bed.replica.state.snapshot().expect("a snapshot");
    let restored = Replica::in_memory();
    restored.state.restore(applied.expect("entries"), stream).expect("it fits together");
}

#[test]
fn lite_topics_readers_and_what_was_taken_survive_a_checkpoint_and_a_snapshot() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut bed = Bed::on(Replica::open(Some(directory.path()), Log::default()));
    bed.attributes(|attributes| attributes.exclusive = true);
    bed.subscribe("old", &["a", "b"]);
    bed.send("a");
    bed.subscribe("new", &["a"]);
    let held = bed.receive("new", 1);
    bed.change(&held[0], 30_000, true);
    bed.replica.state.checkpoint().expect("written");
    bed.send("b");
    let digest = bed.replica.state.state_digest();
    let (applied, stream) = bed.replica.state.snapshot().expect("a snapshot");
    let restored = Replica::in_memory();
    restored.state.restore(applied.expect("entries"), stream).expect("restored");
    assert_eq!(restored.state.state_digest(), digest);
    bed.replica.state.close().expect("closed");

    let now = bed.replica.now;
    let mut restarted = Replica::open(Some(directory.path()), bed.replica.log.clone());
    restarted.now = now;
    let mut bed = Bed { replica: restarted, ..bed };
    assert_eq!(bed.replica.state.state_digest(), digest);
    assert_eq!(bed.taken("old"), ["a"]);
    assert_eq!(bed.got("old", 10), [at("b", 0)]);
    bed.replica.pass_ms(30_000);
    let again = bed.receive("new", 10);
    assert_eq!((again[0].offset, again[0].attempt), (QueueOffset(0), 1));
    bed.replica.state.close().expect("closed");
}

/// Sessions come and go for years: what the index held of them must not stay.
#[test]
fn checkpoints_forget_the_messages_of_lite_topics_that_went_or_expired() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut bed = Bed::on(Replica::open(Some(directory.path()), Log::default()));
    bed.replica.propose(&Command::SetLiteTopic(SetLiteTopic { topic: bed.topic, expire_after_ms: MINUTE }));
    let mut largest = 0;
    for round in 0..40 {
        let name = format!("session-{round}");
        bed.subscribe("c", &[&name, "kept"]);
        bed.send(&name);
        bed.send("kept");
        for _ in 0..30 {
            bed.send(&name);
        }
        let held = bed.receive("c", 64);
        bed.ack(&held);
        bed.sync("c", LiteAction::Remove, &[&name]);
        bed.replica.pass_ms(2 * MINUTE);
        assert_eq!(bed.sweep(), 1, "the session goes");
        for plan in bed.replica.state.expiry_plan(bed.replica.now, 10 * MINUTE, None) {
            bed.replica.propose(&Command::ExpireMessages(plan));
        }
        bed.replica.state.checkpoint().expect("written");
        largest = largest.max(bytes_of_runs(directory.path()));
    }
    let all = 40 * 32 * 24;
    assert!(largest < all / 4, "{largest} bytes of index runs, for {all} bytes of entries in all");
    let digest = bed.replica.state.state_digest();
    bed.replica.state.close().expect("closed");
    let restarted = Replica::open(Some(directory.path()), bed.replica.log.clone());
    assert_eq!(restarted.state.state_digest(), digest);
    restarted.state.close().expect("closed");
}

fn bytes_of_runs(directory: &Path) -> u64 {
    let items = std::fs::read_dir(directory).expect("a directory").map(|item| item.expect("an item"));
    let runs = items.filter(|item| item.file_name().to_string_lossy().starts_with("run-"));
    runs.map(|run| run.metadata().expect("a file").len()).sum()
}

const IDLE: usize = 100_000;
/// The marks of what the next checkpoint is to write are part of it.
const BYTES_PER_IDLE_LITE_TOPIC_MAX: u64 = 600;
const MARK: &str = "LEDGERMQ_TEST_MEASURES_LITE_TOPICS";

#[test]
fn idle_lite_topics_are_cheap() {
    match measured_alone(MARK, "state::tests::lite::idle_lite_topics_are_cheap") {
        Alone::Yes => measure(),
        Alone::InAChild => {}
    }
}

fn measure() {
    let mut bed = Bed::new();
    let before = resident_bytes();
    for thousand in 0..IDLE / 1_000 {
        let names: Vec<String> = (0..1_000).map(|n| format!("session-{:08}", thousand * 1_000 + n)).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        bed.subscribe("c", &names);
        bed.sync("c", LiteAction::RemoveAll, &[]);
        // The log is the test's own and not part of what is measured.
        bed.replica.log.entries.clear();
    }
    assert_eq!(bed.replica.state.lite_ranges(bed.topic).len(), IDLE);
    if let (Some(before), Some(after)) = (before, resident_bytes()) {
        let each = after.saturating_sub(before) / IDLE as u64;
        println!("{each} bytes per idle lite topic that one consumer group has read");
        assert!(each < BYTES_PER_IDLE_LITE_TOPIC_MAX, "{each} bytes");
    }
}

fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

#[test]
fn retention_keeps_the_log_for_lite_topics_and_lets_their_old_messages_go() {
    let mut bed = Bed::new();
    bed.subscribe("a", &["lobby"]);
    let kept = bed.send("lobby");
    bed.replica.log.skip(8 << 20);
    bed.replica.group("filler");
    let place = bed.replica.state.locate(bed.topic, kept.queue, kept.offset).expect("stored").physical;
    assert!(bed.replica.state.log_pins().edge() <= place, "the only reference to it is a lite topic's");

    bed.replica.pass_ms(2 * MINUTE);
    for plan in bed.replica.state.expiry_plan(bed.replica.now, MINUTE, None) {
        bed.replica.propose(&Command::ExpireMessages(plan));
    }
    assert_eq!(bed.replica.state.locate(bed.topic, kept.queue, kept.offset), None);
    assert!(bed.replica.state.log_pins().edge() > place, "what expired holds nothing up");
    assert!(bed.receive("a", 10).is_empty());
    let next = bed.send("lobby");
    assert_eq!(next.offset, QueueOffset(kept.offset.get() + 1), "offsets go on");
    assert_eq!(bed.receive("a", 10).len(), 1);
}
