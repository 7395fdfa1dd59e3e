use ledgermq_common::limits::RECALL_REMEMBERED_MS;

use super::*;

pub(super) struct Delays {
    pub(super) replica: Replica,
    pub(super) topic: TopicId,
}

pub(super) fn delays(directory: Option<&Path>) -> Delays {
    let mut replica = Replica::open(directory, Log::default());
    let settings = TopicSettings { message_type: MessageType::Delay, ..TopicSettings::normal(2) };
    let create = CreateTopic { name: "later".to_owned(), settings };
    let topic = match replica.propose(&Command::CreateTopic(create)) {
        Answer::Topic { id, .. } => id,
        other => panic!("{other:?}"),
    };
    Delays { replica, topic }
}

impl Delays {
    pub(super) fn send(&mut self, id: &str, ahead_ms: u64) -> Scheduled {
        let deliver_at = self.replica.now.saturating_add_ms(ahead_ms);
        self.send_at(id, deliver_at)
    }

    fn send_at(&mut self, id: &str, deliver_at: UnixMillis) -> Scheduled {
        let command = encode_delayed(self.replica.now, self.topic, &[(deliver_at, message(1, id))]);
        match self.replica.propose_bytes(command) {
            Answer::Scheduled(scheduled) => scheduled[0],
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn fire(&mut self, max: u32) -> (u32, bool) {
        self.fire_through(self.replica.now, max)
    }

    fn fire_through(&mut self, through: UnixMillis, max: u32) -> (u32, bool) {
        match self.replica.propose(&Command::FireTimers(FireTimers { through, max })) {
            Answer::Fired { fired, more } => (fired, more),
            other => panic!("{other:?}"),
        }
    }

    fn recall(&mut self, deliver_at: UnixMillis, scheduled: Scheduled) -> RecallOutcome {
        let command = RecallTimer { deliver_at, physical: pending(scheduled) };
        match self.replica.propose(&Command::RecallTimer(command)) {
            Answer::Recalled(outcome) => outcome,
            other => panic!("{other:?}"),
        }
    }

    /// The ids in the queue, in its order.
    pub(super) fn visible(&self) -> Vec<String> {
        let entries = self.replica.state.range(self.topic, QueueId(1), QueueOffset(0), 1_000);
        let read = |entry| StoredMessage::decode(&self.replica.log.record(entry)).expect("a record").id;
        entries.into_iter().map(|(_, entry)| read(entry)).collect()
    }
}

fn pending(scheduled: Scheduled) -> PhysicalOffset {
    match scheduled.placed {
        Placed::Pending { physical } => physical,
        Placed::Visible { .. } => panic!("visible at once"),
    }
}

#[test]
fn a_delayed_message_is_in_no_queue_before_its_time_and_in_its_queue_after() {
    let mut delays = delays(None);
    delays.send("later", 5_000);
    assert_eq!(delays.visible(), Vec::<String>::new());
    assert_eq!(delays.replica.state.next_timer(), Some(UnixMillis(START + 5_000)));
    assert_eq!(delays.replica.state.timers_pending(), 1);
    delays.replica.pass_ms(4_999);
    assert_eq!(delays.fire(10), (0, false), "never early");
    delays.replica.pass_ms(1);
    assert_eq!(delays.fire(10), (1, false));
    assert_eq!(delays.visible(), ["later"]);
    assert_eq!(delays.fire(10), (0, false), "once");
    assert_eq!((delays.replica.state.next_timer(), delays.replica.state.timers_pending()), (None, 0));
}

#[test]
fn no_fire_goes_beyond_log_time_whatever_it_says() {
    let mut delays = delays(None);
    delays.send("later", 1);
    assert_eq!(delays.fire_through(UnixMillis(u64::MAX), 10), (0, false));
    delays.replica.pass_ms(1);
    assert_eq!(delays.fire(10), (1, false));
}

#[test]
fn timers_fire_by_delivery_time_in_steps_and_later_ones_stay() {
    let mut delays = delays(None);
    for (id, ahead_ms) in [("c", 30), ("a", 10), ("d", 40), ("b", 20), ("z", 90_000)] {
        delays.send(id, ahead_ms);
    }
    delays.replica.pass_ms(50);
    assert_eq!(delays.fire(3), (3, true));
    assert_eq!(delays.visible(), ["a", "b", "c"]);
    assert_eq!(delays.fire(3), (1, false));
    assert_eq!(delays.visible(), ["a", "b", "c", "d"]);
}

#[test]
fn a_message_whose_time_has_come_is_visible_at_once() {
    let mut delays = delays(None);
    let past = delays.send_at("past", UnixMillis(START - 1));
    let now = delays.send("now", 0);
    assert_eq!(past.placed, Placed::Visible { queue: QueueId(1), offset: QueueOffset(0) });
    assert_eq!(now.placed, Placed::Visible { queue: QueueId(1), offset: QueueOffset(1) });
    assert_eq!(delays.visible(), ["past", "now"]);
}

#[test]
fn a_repeated_delayed_message_gets_the_first_timer_also_after_it_fired() {
    let mut delays = delays(None);
    let first = delays.send("a", 1_000);
    assert_eq!(delays.send("a", 9_000), Scheduled { repeated: true, ..first });
    assert_eq!(delays.replica.state.timers_pending(), 1);
    delays.replica.pass_ms(1_000);
    delays.fire(10);
    assert_eq!(delays.send("a", 1_000), Scheduled { repeated: true, ..first });
    assert_eq!(delays.visible(), ["a"]);
}

#[test]
fn exactly_one_of_recall_and_fire_wins() {
    let mut delays = delays(None);
    let due = UnixMillis(START + 1_000);
    let (recalled, fired) = (delays.send("recalled", 1_000), delays.send("fired", 1_000));
    assert_eq!(delays.recall(due, recalled), RecallOutcome::Recalled);
    assert_eq!(delays.recall(due, recalled), RecallOutcome::RecalledBefore, "a repeat of a lost answer");
    assert_eq!(delays.replica.state.timer(due, pending(recalled)), TimerState::Recalled);
    delays.replica.pass_ms(1_000);
    assert_eq!(delays.fire(10), (1, false));
    assert_eq!(delays.visible(), ["fired"]);
    assert_eq!(delays.recall(due, fired), RecallOutcome::TooLate);
    assert_eq!(delays.recall(due, recalled), RecallOutcome::RecalledBefore, "its answer may be lost still");
    assert_eq!(delays.replica.state.timer(due, pending(recalled)), TimerState::Recalled);
    assert_eq!(delays.replica.state.timer(due, pending(fired)), TimerState::Over);
    assert_eq!(delays.visible(), ["fired"]);
}

#[test]
fn timers_of_a_deleted_topic_end_without_a_message() {
    let mut delays = delays(None);
    delays.send("a", 1_000);
    delays.replica.propose(&Command::DeleteTopic(DeleteTopic { name: "later".to_owned() }));
    delays.replica.pass_ms(1_000);
    assert_eq!(delays.fire(10), (0, false));
    assert_eq!(delays.replica.state.timers_pending(), 0);
}

/// What a fire takes must not depend on what a checkpoint of this replica has left out.
#[test]
fn timers_of_a_deleted_topic_count_the_same_after_a_checkpoint() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut delays = delays(Some(directory.path()));
    for id in ["a", "b", "c"] {
        delays.send(id, 1_000);
    }
    delays.replica.propose(&Command::DeleteTopic(DeleteTopic { name: "later".to_owned() }));
    delays.replica.state.checkpoint().expect("written");
    delays.replica.pass_ms(1_000);
    assert_eq!(delays.fire(2), (0, true));
    assert_eq!(delays.replica.state.timers_pending(), 1);
    delays.replica.state.close().expect("closed");
}

#[test]
fn timers_and_recalls_survive_a_restart_from_a_checkpoint_and_fire_once() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut delays = delays(Some(directory.path()));
    delays.send("soon", 1_000);
    let recalled = delays.send("recalled", 2_000);
    delays.send("far", 40 * 24 * 3600 * 1000);
    delays.replica.state.checkpoint().expect("written");
    assert_eq!(delays.recall(UnixMillis(START + 2_000), recalled), RecallOutcome::Recalled);
    delays.replica.pass_ms(1_500);
    delays.fire(10);
    delays.send("next", 1_000);
    delays.replica.state.checkpoint().expect("written");
    let digest = delays.replica.state.state_digest();
    delays.replica.state.close().expect("closed");

    let (log, topic, now) = (delays.replica.log, delays.topic, delays.replica.now);
    let last = log.entries.last().map(|entry| entry.id);
    let mut replica = Replica::open(Some(directory.path()), log);
    assert_eq!(replica.state.applied(), last, "nothing was applied again");
    assert_eq!(replica.state.state_digest(), digest);
    replica.now = now;
    let mut delays = Delays { replica, topic };
    delays.replica.pass_ms(5_000);
    assert_eq!(delays.fire(10), (1, false));
    assert_eq!(delays.visible(), ["soon", "next"]);
    assert_eq!(delays.replica.state.timers_pending(), 1);
    let repeat = delays.recall(UnixMillis(START + 2_000), recalled);
    assert_eq!(repeat, RecallOutcome::RecalledBefore, "also beyond its time, on a node that was not there");
    delays.replica.pass_ms(RECALL_REMEMBERED_MS);
    assert_eq!(delays.fire(10), (0, false));
    assert_eq!(delays.recall(UnixMillis(START + 2_000), recalled), RecallOutcome::TooLate, "forgotten");
    assert_eq!(delays.replica.state.next_timer(), Some(UnixMillis(START + 40 * 24 * 3600 * 1000)));
    delays.replica.state.close().expect("closed");
}

#[test]
fn many_checkpoints_leave_few_timer_runs_and_fired_ones_go() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut delays = delays(Some(directory.path()));
    for number in 0..40u64 {
        delays.send(&format!("{number}"), 1_000 + number);
        delays.replica.state.checkpoint().expect("written");
    }
    let runs = |directory: &Path| {
        let names = std::fs::read_dir(directory).expect("a directory");
        names
            .filter(|item| {
                let name = item.as_ref().expect("an item").file_name();
                name.to_string_lossy().starts_with("timers-")
            })
            .count()
    };
    assert!((1..=8).contains(&runs(directory.path())), "{} runs", runs(directory.path()));
    delays.replica.pass_ms(2_000);
    assert_eq!(delays.fire(1_000), (40, false));
    delays.replica.state.checkpoint().expect("written");
    assert_eq!(runs(directory.path()), 0, "what has fired is forgotten");
    delays.replica.state.close().expect("closed");
}
