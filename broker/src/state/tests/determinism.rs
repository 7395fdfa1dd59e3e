//! Replicas that apply the same log are the same, whatever the program did.

use proptest::prelude::*;

use super::program_leader::Leader;
use super::programs::{Step, steps};
use super::*;

/// A follower that applies the leader's log in batches of its own.
fn follow(log: &Log, batch: usize) -> (Replica, Vec<Bytes>) {
    let follower = Replica::in_memory();
    let mut answers = Vec::new();
    for entries in log.entries.chunks(batch) {
        follower.state.apply(entries, &mut answers).expect("applied");
    }
    (follower, answers)
}

fn answers_of(log: &Log) -> Vec<Bytes> {
    follow(log, 1).1
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn replicas_that_apply_the_same_log_are_the_same(program in steps(150), batch in 1usize..40) {
        let mut leader = Leader::new();
        leader.run(&program);
        let (follower, answers) = follow(&leader.replica.log, batch);
        prop_assert_eq!(follower.state.state_digest(), leader.replica.state.state_digest());
        prop_assert_eq!(answers, answers_of(&leader.replica.log));
    }

    /// With whatever is expired, carried and released in between, in any order.
    #[test]
    fn nothing_that_is_referred_to_is_ever_released(program in steps(200)) {
        let mut leader = Leader::new();
        for step in &program {
            leader.step(step);
            if matches!(step, Step::ReleaseLog | Step::Expire { .. } | Step::Carry(_) | Step::End { .. } | Step::Fire(..)) {
                leader.check_references();
            }
        }
        leader.check_references();
    }

    #[test]
    fn a_replica_that_came_from_a_snapshot_goes_on_the_same(program in steps(150), part in 0usize..150) {
        let mut leader = Leader::new();
        leader.run(&program);
        let log = &leader.replica.log;
        let middle = part.min(log.entries.len() - 1).max(1);
        let source = Replica::in_memory();
        source.state.apply(&log.entries[..middle], &mut Vec::new()).expect("applied");
        let (applied, stream) = source.state.snapshot().expect("a snapshot");
        // What is applied after the snapshot was taken must not be in it.
        source.state.apply(&log.entries[middle..], &mut Vec::new()).expect("applied");

        let restored = Replica::in_memory();
        restored.state.restore(applied.expect("entries"), stream).expect("restored");
        prop_assert_eq!(restored.state.applied(), applied);
        let mut answers = Vec::new();
        restored.state.apply(&log.entries[middle..], &mut answers).expect("applied");
        prop_assert_eq!(restored.state.state_digest(), leader.replica.state.state_digest());
        prop_assert_eq!(&answers, &answers_of(log)[middle..]);
    }
}

#[test]
fn a_snapshot_that_is_cut_or_changed_is_refused_and_leaves_the_state_alone() {
    let mut leader = Leader::new();
    let topic = TopicId(1);
    for number in 0..20 {
        leader.replica.send(topic, &[message(number % 3, &format!("{number}"))]);
    }
    leader.replica.receive(ConsumerGroupId(1), topic, 5, 10_000);
    let (applied, mut stream) = leader.replica.state.snapshot().expect("a snapshot");
    let applied = applied.expect("entries");
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut stream, &mut bytes).expect("memory");

    let target = Replica::in_memory();
    let before = target.state.state_digest();
    for at in (0..bytes.len()).step_by(7) {
        let cut = bytes[..at].to_vec();
        assert!(target.state.restore(applied, Box::new(io::Cursor::new(cut))).is_err(), "cut at {at}");
        let mut flipped = bytes.clone();
        flipped[at] ^= 1;
        assert!(target.state.restore(applied, Box::new(io::Cursor::new(flipped))).is_err(), "bit at {at}");
    }
    assert_eq!(target.state.state_digest(), before);
    target.state.restore(applied, Box::new(io::Cursor::new(bytes))).expect("untouched");
    assert_eq!(target.state.state_digest(), leader.replica.state.state_digest());
}
