use ledgermq_checkers::history::by_topic;
use ledgermq_checkers::queue_log::PollOrder;
use ledgermq_checkers::timers::Bounds;
use ledgermq_checkers::{
    Outcome, Verdict, fifo, leases, linearizable, queue_log, timers, total_queue, transactions,
};

use super::script::{MS, history};

type Checker = fn(&str) -> Verdict;

fn total_queue_of(script: &str) -> Verdict {
    total_queue::check(&history(script).spans().expect("well formed"))
}

fn queue_log_of(script: &str) -> Verdict {
    queue_log::check(&history(script).spans().expect("well formed"), PollOrder::Ascending)
}

fn fifo_of(script: &str) -> Verdict {
    fifo::check(&history(script).spans().expect("well formed"))
}

fn transactions_of(script: &str) -> Verdict {
    transactions::check(&history(script).spans().expect("well formed"))
}

fn timers_of(script: &str) -> Verdict {
    let bounds = Bounds { late_ns: 10 * MS, slack_ns: 2 * MS };
    timers::check(&history(script).spans().expect("well formed"), bounds)
}

fn leases_of(script: &str) -> Verdict {
    let bounds = leases::Bounds { slack_ns: 2 * MS, redelivered_within_ns: 30 * MS };
    leases::check(&history(script).spans().expect("well formed"), bounds)
}

fn linearizable_of(script: &str) -> Verdict {
    linearizable::check(&history(script).spans().expect("well formed"))
}

/// Valid, and nothing fatal in it.
fn good(checker: Checker, script: &str) -> Verdict {
    let verdict = checker(script);
    assert_eq!(verdict.outcome, Outcome::Valid, "{script}\n{verdict:#?}");
    verdict
}

/// Invalid by exactly these anomalies, once each.
fn bad(checker: Checker, script: &str, anomalies: &[&str]) {
    let verdict = checker(script);
    assert_eq!(verdict.outcome, Outcome::Invalid, "{script}\n{verdict:#?}");
    let found: Vec<(&str, usize)> = verdict
        .anomalies
        .iter()
        .filter(|found| found.fatal)
        .map(|found| (found.name.as_str(), found.count))
        .collect();
    let expected: Vec<(&str, usize)> = anomalies.iter().map(|name| (*name, 1)).collect();
    assert_eq!(found, expected, "{script}\n{verdict:#?}");
}

#[test]
fn total_queue_good() {
    let verdict = good(
        total_queue_of,
        "0 send 1
         0 send! 2
         1 send- 3
         1 send! 4
         5 recv g 1@q0:0 2@q0:1
         5 ack g 1
         5 ack! g 2
         6 recv g 2@q0:1#2
         6 ack g 2",
    );
    assert_eq!((verdict.count_of("recovered"), verdict.count_of("redelivered")), (1, 1));
}

#[test]
fn total_queue_bad() {
    bad(total_queue_of, "0 send 1\n0 send 2\n5 recv g 2@q0:1", &["lost-prefix"]);
    bad(total_queue_of, "0 send 1\n0 send 2\n0 send 3\n5 recv g 1@q0:0 3@q0:2", &["lost-middle"]);
    bad(total_queue_of, "0 send 1\n0 send 2\n5 recv g 1@q0:0", &["lost-tail"]);
    // Another sender's messages do not make a tail a middle.
    bad(total_queue_of, "0 send 1\n0 send 2\n1 send 3\n5 recv g 1@q0:0 3@q0:2", &["lost-tail"]);
    // One group got everything, the other did not.
    bad(total_queue_of, "0 send 1\n0 send 2\n5 recv g 1@q0:0 2@q0:1\n6 recv h 1@q0:0", &["lost-tail"]);
    bad(total_queue_of, "0 send 1\n5 recv g 1@q0:0\n5 recv g 1@q1:0", &["duplicated"]);
    bad(total_queue_of, "0 send 1\n5 recv g 1/a@q0:0\n5 recv g 1/b@q0:0#2", &["duplicated"]);
    bad(total_queue_of, "0 send 1\n5 recv g 1@q0:0 9@q0:1", &["unexpected"]);
    bad(total_queue_of, "0 send 1\n5 recv g 1@q0:0\n5 ack g 1\n5 recv g 1@q0:0#2", &["delivered-after-ack"]);
}

#[test]
fn a_history_that_shows_nothing_is_unknown_and_no_pass() {
    for (checker, script) in [
        (total_queue_of as Checker, "0 send 1"),
        (queue_log_of, "0 send 1"),
        (fifo_of, "0 send 1\n5 recv g 1@q0:0"),
        (transactions_of, "0 send 1\n5 recv g 1@q0:0"),
        (timers_of, "0 send 1\n5 recv g 1@q0:0"),
        (leases_of, "0 send 1"),
        (linearizable_of, "0 send 1"),
    ] {
        let verdict = checker(script);
        assert_eq!(verdict.outcome, Outcome::Unknown, "{verdict:?}");
        assert!(verdict.reason.is_some() && !verdict.is_valid());
    }
}

#[test]
fn each_message_of_a_batch_counts_by_itself() {
    good(total_queue_of, "0 batch 7 3 @5\n0 batch! 20 2\n5 recv g 7@q0:5 8@q0:6 9@q0:7 21@q0:8");
    bad(total_queue_of, "0 batch 7 3\n5 recv g 7@q0:5 9@q0:7", &["lost-middle"]);
    good(queue_log_of, "0 batch 7 3 @5\n5 recv g 7@q0:5 8@q0:6 9@q0:7");
    bad(queue_log_of, "0 batch 7 2 @5\n5 recv g 7@q0:5 8@q0:9", &["inconsistent-offset"]);
    bad(queue_log_of, "0 batch- 7 2\n5 recv g 8@q0:0", &["aborted-read"]);
}

#[test]
fn a_client_that_does_not_tell_the_place_is_judged_by_the_rest() {
    good(total_queue_of, "0 send 1 offset=4\n5 recv g 1@q0:4\n7 recv h 1@?\n7 recv h 1@?#2");
    bad(total_queue_of, "0 send 1\n0 send 2\n5 recv g 1@q0:4 2@q0:5\n7 recv h 1@?", &["lost-tail"]);
    bad(total_queue_of, "0 send 1\n7 recv h 1@?\n7 recv h 1/2@?#2", &["duplicated"]);
    good(queue_log_of, "0 send 1 offset=4\n5 recv g 1@q0:4\n7 recv h 1@?");
    assert_eq!(queue_log_of("0 send 1\n7 recv h 1@?").outcome, Outcome::Unknown);
}

#[test]
fn topics_of_one_history_are_judged_by_themselves() {
    // Both have a place q0:0; as one topic these would be two messages at one place.
    let history = history(
        "0 send 1 topic=a
         1 send 2 topic=b half
         1 commit 2
         5 recv g topic=a 1@q0:0
         6 recv h topic=b 2@q0:0
         5 ack g 1
         9 undecided
         2 write x 1",
    );
    let spans = history.spans().expect("well formed");
    let topics = by_topic(&spans);
    let counts: Vec<(Option<&str>, usize)> = topics.iter().map(|(topic, of)| (*topic, of.len())).collect();
    assert_eq!(counts, [(None, 1), (Some("a"), 3), (Some("b"), 4)]);
    for topic in [Some("a"), Some("b")] {
        let verdict = queue_log::check(&topics[&topic], PollOrder::Any);
        assert!(verdict.is_valid(), "{verdict:?}");
    }
    assert!(transactions::check(&topics[&Some("b")]).is_valid());
    assert_eq!(queue_log::check(&spans, PollOrder::Any).count_of("inconsistent-offset"), 1);
}

/// Each message passed by all those before it: quadratic in what is compared, and still done at once.
#[test]
fn a_long_message_group_is_judged_in_one_pass() {
    let count = 100_000;
    let mut script = String::new();
    for number in 1..=count {
        script += &format!("0 send {number} key=a\n");
    }
    for number in 1..=count {
        script += &format!("5 recv g {number}@q0:{number}\n5 ack g {number}\n");
    }
    let mut history = history(&script);
    let verdict = fifo::check(&history.spans().expect("well formed"));
    assert!(verdict.is_valid(), "{:?}", verdict.anomalies.first());
    // The first one is delivered last: every other one passed it.
    let deliveries = 2 * count;
    let end = history.events.split_off(deliveries + 4);
    let first = history.events.split_off(deliveries);
    history.events.extend(end);
    history.events.extend(first);
    for (at_ns, event) in (0..).zip(&mut history.events) {
        event.at_ns = at_ns;
    }
    let verdict = fifo::check(&history.spans().expect("well formed"));
    assert_eq!(verdict.count_of("out-of-order"), count - 1);
}

#[test]
fn an_ack_that_overlaps_the_receive_excuses_it() {
    good(total_queue_of, "0 send 1\n5 recv g 1@q0:0\n6 [ recv g 1@q0:0#2\n5 ack g 1\n6 ]");
}

#[test]
fn queue_log_good() {
    let verdict = good(
        queue_log_of,
        "0 send 1 @q0:0
         0 send 2 @q0:1
         1 send 3 offset=0
         1 send! 4
         0 send- 5
         0 send 6 @q0:9
         5 recv g 1@q0:0 2@q0:1
         5 recv g 3@q1:0 1@q0:0#2
         6 recv h 1@q0:0 2@q0:1
         6 recv h 3@q1:0 4@q1:1",
    );
    assert_eq!(verdict.count_of("unseen"), 1, "6 lies beyond what was read");
}

#[test]
fn queue_log_bad() {
    bad(queue_log_of, "0 send- 1\n5 recv g 1@q0:0", &["aborted-read"]);
    bad(queue_log_of, "0 send 1 @q0:0\n0 send 2 @q0:0\n5 recv g 1@q0:0", &["inconsistent-offset"]);
    bad(queue_log_of, "0 send 1 offset=3\n5 recv g 1@q0:4", &["inconsistent-offset"]);
    bad(queue_log_of, "0 send 1\n5 recv g 1@q0:0\n6 recv h 1@q1:7", &["duplicate"]);
    bad(queue_log_of, "0 send 1 @q0:0\n0 send 2 @q0:1\n5 recv g 2@q0:1", &["lost-write", "poll-skip"]);
    bad(queue_log_of, "0 send 1 @q0:5\n1 send 2 @q0:4\n5 recv g 2@q0:4 1@q0:5", &["non-monotonic-send"]);
    bad(
        queue_log_of,
        "0 send 1 @q0:0\n0 send 2 @q0:1\n5 recv g 1@q0:0 2@q0:1\n6 recv h 2@q0:1",
        &["poll-skip"],
    );
    bad(queue_log_of, "0 send 1\n0 send 2\n5 recv g 2@q0:1\n5 recv g 1@q0:0", &["non-monotonic-poll"]);
    bad(queue_log_of, "0 send 1\n0 send 2\n5 recv g 2@q0:1 1@q0:0", &["internal-non-monotonic-poll"]);
}

#[test]
fn sends_that_overlap_may_be_stored_in_either_order() {
    good(queue_log_of, "0 [ send 1 @q0:5\n1 send 2 @q0:4\n0 ]\n5 recv g 2@q0:4 1@q0:5");
}

#[test]
fn a_half_has_the_place_of_its_commit_and_not_of_its_send() {
    good(queue_log_of, "0 send 1 half\n1 send 2 half\n1 commit 2\n0 commit 1\n5 recv g 2@q0:0 1@q0:1");
}

#[test]
fn shared_groups_may_get_first_deliveries_out_of_order() {
    let script = "0 send 1\n0 send 2\n5 recv g 2@q0:1\n5 recv g 1@q0:0";
    let history = history(script);
    let verdict = queue_log::check(&history.spans().expect("well formed"), PollOrder::Any);
    assert_eq!(verdict.outcome, Outcome::Valid, "{verdict:?}");
}

#[test]
fn fifo_good() {
    good(
        fifo_of,
        "0 send 1 key=a
         0 send 2 key=a
         1 send 3 key=b
         5 recv g 1@q0:0 2@q0:1
         6 recv g 3@q1:0
         5 ack g 1
         5 ack g 2
         0 send 4 key=a
         6 recv g 4@q0:2
         6 ack g 3
         sleep 60
         5 recv g 4@q0:2#2",
    );
}

#[test]
fn fifo_bad() {
    bad(fifo_of, "0 send 1 key=a\n0 send 2 key=a\n5 recv g 2@q0:1 1@q0:0", &["out-of-order"]);
    bad(fifo_of, "0 send 1 key=a\n0 send 2 key=a\n5 recv g 2@q0:1", &["out-of-order"]);
    bad(
        fifo_of,
        "0 send 1 key=a\n0 send 2 key=a\n5 recv g 1@q0:0\nsleep 60\n6 recv g 2@q0:1",
        &["overtaking"],
    );
    bad(
        fifo_of,
        "0 send 1 key=a\n0 send 2 key=a\n5 recv g 1@q0:0 2@q0:1\n5 ack g 1\n6 recv g 2@q0:1#2",
        &["two-holders"],
    );
}

#[test]
fn a_lease_that_ran_out_frees_the_message_group() {
    good(fifo_of, "0 send 1 key=a\n5 recv g 1@q0:0\nsleep 60\n6 recv g 1@q0:0#2\n6 ack g 1");
}

#[test]
fn transactions_good() {
    let verdict = good(
        transactions_of,
        "0 send 1 half
         0 commit 1
         0 send 2 half
         0 rollback 2
         0 send 3 half
         0 commit! 3
         0 send 4 half
         0 commit 4
         1 commit 4
         1 rollback- 4
         0 send 5 half
         5 recv g 1@q0:0 3@q0:1 4@q0:2",
    );
    assert_eq!(verdict.count_of("undecided"), 2, "3, which nobody was told of, and 5");
}

#[test]
fn transactions_bad() {
    bad(transactions_of, "0 send 1 half\n0 commit 1\n1 rollback 1\n5 recv g 1@q0:0", &["two-outcomes"]);
    bad(transactions_of, "0 send 1 half\n5 recv g 1@q0:0\n0 commit 1", &["visible-before-commit"]);
    bad(
        transactions_of,
        "0 send 1 half\n0 commit! 1\n0 rollback 1\n5 recv g 1@q0:0",
        &["visible-after-rollback"],
    );
    bad(
        transactions_of,
        "0 send 1 half\n0 send 2 half\n0 commit 1\n0 commit 2\n5 recv g 2@q0:0",
        &["lost-commit"],
    );
    bad(transactions_of, "0 send 1 half\n0 commit 1\n5 recv g 1@q0:0\n5 recv g 1@q0:1", &["duplicated"]);
    bad(transactions_of, "0 send 1 half\n0 commit 1\n5 recv g 1@q0:0 9@q0:1", &["unknown-half"]);
    // What nobody was told of is known by what the cluster says at the end.
    bad(transactions_of, "0 send 1 half\n0 commit! 1\n5 recv g\n9 undecided", &["lost-commit"]);
    bad(transactions_of, "0 send 1 half\n0 commit! 1\n5 recv g\n9 undecided 1", &["no-outcome"]);
    bad(
        transactions_of,
        "0 send 1 half\n0 rollback! 1\n5 recv g 1@q0:0\n9 undecided",
        &["visible-before-commit"],
    );
}

#[test]
fn what_the_cluster_says_of_open_transactions_settles_the_rest() {
    let verdict = good(
        transactions_of,
        "0 send 1 half
         1 commit! 1
         0 send 2 half
         1 rollback! 2
         0 send 3 half
         1 rollback! 3
         2 commit! 3
         0 send! 4 half
         1 commit! 4
         5 recv g 1@q0:0
         9 undecided",
    );
    assert_eq!(verdict.count_of("undecided"), 0);
    // A question that nobody answered settles nothing.
    let verdict = good(transactions_of, "0 send 1 half\n1 commit! 1\n5 recv g\n9 undecided!");
    assert_eq!(verdict.count_of("undecided"), 1);
}

#[test]
fn timers_good() {
    good(
        timers_of,
        "0 send 1 due=30
         0 send 2 due=40
         0 recall 2
         0 send 3 due=35
         0 recall- 3
         0 send 4 due=1
         5 recv g 4@q0:0
         sleep 16
         5 recv g 1@q0:1
         5 recv g 3@q0:2
         0 send 5 due=9000",
    );
}

#[test]
fn a_delayed_message_whose_first_answer_was_lost_is_not_late() {
    let verdict = good(timers_of, "0 send 1 due=5\n5 recv! g\nsleep 60\n6 recv g 1@q0:0#2");
    assert_eq!(verdict.count_of("late-again"), 1);
}

#[test]
fn timers_bad() {
    bad(timers_of, "0 send 1 due=50\n5 recv g 1@q0:0", &["early"]);
    bad(timers_of, "0 send 1 due=5\nsleep 30\n5 recv g 1@q0:0", &["late"]);
    bad(timers_of, "0 send 1 due=5\nsleep 100\n5 recv g", &["late"]);
    bad(timers_of, "0 send 1 due=5\n5 recv g 1@q0:0\n5 recv g 1@q0:1", &["fired-twice"]);
    bad(timers_of, "0 send 1 due=5\n0 recall 1\n5 recv g 1@q0:0", &["fired-although-recalled"]);
    bad(timers_of, "0 send 1 due=5\n0 recall- 1\nsleep 100\n5 recv g", &["neither"]);
}

#[test]
fn registers_good() {
    good(
        linearizable_of,
        "0 read x nil
         0 write x 1
         1 [ write x 2
         2 read x 1
         2 read x 2
         1 ]
         2 cas x 2 3
         0 write! x 9
         2 read x 3
         3 read x 9
         3 cas- x 7 8
         0 read y nil",
    );
}

#[test]
fn registers_bad() {
    // A stale read, after another process has read the new value.
    bad(linearizable_of, "0 write x 1\n1 [ write x 2\n2 read x 2\n3 read x 1\n1 ]", &["not-linearizable"]);
    bad(linearizable_of, "0 write x 1\n0 read x nil", &["not-linearizable"]);
    // Two compare-and-sets from one value.
    bad(linearizable_of, "0 write x 1\n1 cas x 1 2\n2 cas x 1 3", &["not-linearizable"]);
    // What failed did not happen.
    bad(linearizable_of, "0 write x 1\n1 write- x 2\n2 read x 2", &["not-linearizable"]);
    // Topics: what is deleted is gone, and is made anew with what it is made with.
    bad(linearizable_of, "0 create x 4\n0 delete x\n0 read x 4", &["not-linearizable"]);
    bad(linearizable_of, "0 create x 4\n1 create x 5\n0 read x 5", &["not-linearizable"]);
    bad(linearizable_of, "0 create x 4\n0 read x nil", &["not-linearizable"]);
    // An unknown write explains a value once it took effect, and cannot be taken back.
    bad(linearizable_of, "0 write x 1\n1 write! x 2\n2 read x 2\n2 read x 1", &["not-linearizable"]);
}

#[test]
fn registers_that_come_and_go() {
    good(
        linearizable_of,
        "0 read x nil
         0 create x 4
         1 create x 4
         1 read x 4
         1 create! x 5
         0 delete x
         0 read x 5
         1 delete x
         1 delete x
         0 read x nil",
    );
}

/// A client that repeats a write whose answer was lost writes twice; one that was answered at once did not.
#[test]
fn a_write_that_took_long_may_have_been_repeated() {
    let repeated = |wait| format!("0 [ write x 1\n1 write x 2\n1 read x 1\n{wait}\n0 ]");
    let twice = |wait| format!("0 [ write x 1\n1 read x 1\n1 write x 2\n1 read x 2\n1 read x 1\n{wait}0 ]");
    good(linearizable_of, &repeated(""));
    good(linearizable_of, &twice("sleep 30\n"));
    bad(linearizable_of, &twice(""), &["not-linearizable"]);
    bad(linearizable_of, &format!("{}\n1 write x 2\n1 read x 1", twice("sleep 30\n")), &["not-linearizable"]);
}

/// Leases last 50 ms.
#[test]
fn leases_good() {
    let verdict = good(
        leases_of,
        "0 send 1
         5 recv g 1@q0:0
         5 lease g 1#1 80
         sleep 85
         6 recv g 1@q0:0#2
         5 lease- g 1#1 80
         6 ack g 1
         6 ack g 1
         5 recv g",
    );
    assert_eq!(verdict.count_of("redelivered"), 1);
    // A change of unknown outcome may have shortened the lease, and one that is under way too.
    good(leases_of, "5 recv g 1@q0:0\n5 lease! g 1#1 2\nsleep 5\n6 recv g 1@q0:0#2\n6 ack g 1");
    good(leases_of, "5 recv g 1@q0:0\n5 [ lease g 1#1 2\nsleep 5\n6 recv g 1@q0:0#2\n5 ]\n6 ack g 1");
    // The other group has leases of its own.
    good(leases_of, "5 recv g 1@q0:0\n6 recv h 1@q0:0\n5 ack g 1\n6 ack h 1");
    // A receive that was asked for long ago may have been granted at any time since.
    good(leases_of, "6 [ recv g 1@q0:0#1\nsleep 60\n5 recv g 1@q0:0#2\n6 ]\n5 ack g 1");
    // Shortened, and given to the next.
    good(leases_of, "5 recv g 1@q0:0\n5 lease g 1#1 2\nsleep 5\n6 recv g 1@q0:0#2\n6 ack g 1");
    // Whether an ack of unknown outcome counted nobody knows.
    good(leases_of, "5 recv g 1@q0:0\n5 ack! g 1\nsleep 200\n6 recv g");
    // Nobody was there to get it again.
    good(leases_of, "5 recv g 1@q0:0\nsleep 200\n6 recv! g");
}

#[test]
fn leases_bad() {
    bad(leases_of, "5 recv g 1@q0:0\n6 recv g 1@q0:0#2\n6 ack g 1", &["two-leases"]);
    bad(leases_of, "5 recv g 1@q0:0\n5 recv g 1@q0:0#2\n5 ack g 1", &["two-leases"]);
    bad(
        leases_of,
        "5 recv g 1@q0:0\n5 lease g 1#1 200\nsleep 60\n6 recv g 1@q0:0#2\n6 ack g 1",
        &["two-leases"],
    );
    bad(
        leases_of,
        "5 recv g 1@q0:0\n5 lease- g 1#1 2\nsleep 5\n6 recv g 1@q0:0#2\n6 ack g 1",
        &["two-leases"],
    );
    bad(leases_of, "5 [ recv g 1@q0:0\n6 [ recv g 1@q0:0#2\n5 ]\n6 ]\n6 ack g 1", &["two-leases"]);
    bad(leases_of, "5 recv g 1@q0:0#2\nsleep 60\n6 recv g 1@q0:0#1\n6 ack g 1", &["attempt-back"]);
    bad(leases_of, "5 recv g 1@q0:0#2\nsleep 60\n6 recv g 1@q0:0#2\n6 ack g 1", &["attempt-back"]);
    bad(
        leases_of,
        "5 recv g 1@q0:0\nsleep 60\n6 recv g 1@q0:0#2\n5 lease g 1#1 80\n6 ack g 1",
        &["stale-handle-accepted"],
    );
    bad(leases_of, "5 recv g 1@q0:0\n5 ack g 1\n5 lease g 1#1 80", &["changed-after-ack"]);
    bad(leases_of, "5 recv g 1@q0:0\n5 ack g 1\n5 ack- g 1", &["ack-not-idempotent"]);
    bad(leases_of, "5 recv g 1@q0:0\nsleep 200\n6 recv g", &["not-redelivered"]);
}
