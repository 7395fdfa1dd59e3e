//! Promises of a broker group, on three replicas over loopback TCP.

mod cluster;
mod joining;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use ledgermq_common::NodeId;
use ledgermq_common::limits::COMMAND_BYTES_MAX;
use ledgermq_raft_store::Group;
use ledgermq_raft_store::group::{HandOverError, ProposeError, Retention};

use self::cluster::{Cluster, PATIENCE};

fn numbered(from: usize, count: usize) -> Vec<Bytes> {
    (from..from + count).map(|number| Bytes::from(format!("command {number}"))).collect()
}

fn assert_has_all(cluster: &Cluster, acknowledged: &[Bytes]) {
    let recorded = cluster.converge();
    let present: BTreeSet<_> = recorded.commands.iter().map(|(_, _, command)| command.clone()).collect();
    let lost: Vec<_> = acknowledged.iter().filter(|command| !present.contains(*command)).collect();
    assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
}

#[test]
fn three_members_elect_a_leader_and_apply_the_same_commands_at_the_same_places() {
    let cluster = Cluster::start();
    let commands = numbered(0, 50);
    for command in &commands {
        assert_eq!(cluster.propose(command.clone()), *command, "the answer is the machine's");
    }
    let recorded = cluster.converge();
    let applied: Vec<_> = recorded.commands.iter().map(|(_, _, command)| command.clone()).collect();
    assert_eq!(applied, commands);
    for at in cluster.running() {
        for (index, payload_at, command) in &recorded.commands {
            let bytes = cluster.group(at).read(*payload_at, command.len() as u32).expect("readable");
            assert_eq!(bytes, *command, "entry {index} of node {at}");
        }
        let scanned: Vec<_> =
            cluster.group(at).scan(0.into()).map(|entry| entry.expect("readable").payload).collect();
        assert_eq!(scanned, commands);
    }
}

/// The writer publishes what it flushed under the log's lock; a status that kept a borrow of that
/// while it asked the log for more stopped both for good.
#[test]
fn asking_for_the_status_all_the_time_stops_nobody() {
    let cluster = Arc::new(Cluster::start());
    let leader = cluster.leader();
    let done = Arc::new(AtomicBool::new(false));
    for _ in 0..2 {
        let (cluster, done) = (Arc::clone(&cluster), Arc::clone(&done));
        std::thread::spawn(move || {
            while !done.load(Ordering::Relaxed) {
                std::hint::black_box(cluster.group(leader).status());
            }
        });
    }
    let (proposed, all) = std::sync::mpsc::channel();
    let proposer = Arc::clone(&cluster);
    std::thread::spawn(move || {
        for command in numbered(0, 500) {
            proposer.propose(command);
        }
        let _ = proposed.send(());
    });
    let outcome = all.recv_timeout(2 * PATIENCE);
    done.store(true, Ordering::Relaxed);
    assert_eq!(outcome, Ok(()), "the group stands still");
}

#[test]
fn a_follower_refuses_a_command_and_names_the_leader() {
    let cluster = Cluster::start();
    // The leader may be elected before a follower has heard of it, and another one at any time after.
    cluster.wait_for("a refusal that names the leader", || {
        let follower = cluster.follower();
        let refused = cluster.driver.block_on(cluster.group(follower).propose(Bytes::from_static(b"x")));
        match refused {
            Err(ProposeError::NotLeader { leader: Some(named) }) => {
                (named == cluster.replicas[cluster.leader()].node).then_some(())
            }
            Err(ProposeError::NotLeader { leader: None }) => None,
            other if cluster.leader() != follower => panic!("a follower answered {other:?}"),
            _ => None,
        }
    });
    cluster.wait_for("a refused barrier", || {
        cluster.driver.block_on(cluster.group(cluster.follower()).read_barrier()).err()
    });
}

#[test]
fn a_command_above_the_limit_is_refused_and_one_at_the_limit_is_replicated() {
    let cluster = Cluster::start();
    let leader = cluster.leader();
    let propose = |bytes| cluster.driver.block_on(cluster.group(leader).propose(Bytes::from(vec![1; bytes])));
    // The segments of this test are smaller than the largest command, and none crosses from one to
    // the next: appended, it would end the leader.
    let Err(ProposeError::TooLarge { bytes_max, .. }) = propose(COMMAND_BYTES_MAX) else {
        panic!("no segment holds it");
    };
    assert!((3 << 20..4 << 20).contains(&bytes_max), "{bytes_max}");
    let refused = propose(bytes_max + 1);
    assert!(matches!(refused, Err(ProposeError::TooLarge { .. })), "{refused:?}");
    cluster.propose(vec![1; 2 << 20]);
    cluster.propose(vec![2; bytes_max]);
    cluster.converge();
}

/// Heartbeats need no disk, so nobody but the leader itself can notice.
#[test]
fn a_leader_whose_disk_stalls_gives_its_place_away_and_follows_when_the_disk_is_back() {
    let cluster = Cluster::start();
    let mut acknowledged = numbered(0, 20);
    acknowledged.iter().for_each(|command| drop(cluster.propose(command.clone())));
    let before = cluster.leader();
    cluster.replicas[before].disk.set(true);
    // Something to write, or the leader does not know that it cannot.
    let group = cluster.group(before).clone();
    cluster.driver.spawn(async move { group.propose(Bytes::from_static(b"wakes the writer")).await });
    let stalled = Instant::now();
    let after = cluster.wait_for("another leader", || {
        let ready = |at: &usize| *at != before && cluster.group(*at).leadership().borrow().is_leader_ready;
        cluster.running().into_iter().find(ready)
    });
    assert!(stalled.elapsed() < Duration::from_secs(3), "another leads after {:?}", stalled.elapsed());
    for command in numbered(100, 20) {
        let answer = cluster.driver.block_on(cluster.group(after).propose(command.clone()));
        assert_eq!(answer, Ok(command.clone()));
        acknowledged.push(command);
    }
    cluster.replicas[before].disk.set(false);
    assert_has_all(&cluster, &acknowledged);
}

#[test]
fn a_restarted_follower_catches_up() {
    let mut cluster = Cluster::start();
    cluster.propose("before");
    let follower = cluster.follower();
    cluster.kill(follower);
    for command in numbered(0, 20) {
        cluster.propose(command);
    }
    cluster.start_replica(follower);
    assert_eq!(cluster.converge().commands.len(), 21);
}

#[test]
fn a_killed_leader_is_replaced_within_a_second_and_nothing_acknowledged_is_lost() {
    let mut cluster = Cluster::start();
    let mut acknowledged = Vec::new();
    for round in 0..4 {
        for command in numbered(round * 100, 20) {
            cluster.propose(command.clone());
            acknowledged.push(command);
        }
        let leader = cluster.leader();
        let killed_at = Instant::now();
        cluster.kill(leader);
        let command = Bytes::from(format!("after kill {round}"));
        cluster.propose(command.clone());
        let gap = killed_at.elapsed();
        eprintln!("gap after kill {round}: {} ms", gap.as_millis());
        acknowledged.push(command);
        assert!(gap < Duration::from_secs(1), "{} ms without a leader", gap.as_millis());
        cluster.start_replica(leader);
        assert_has_all(&cluster, &acknowledged);
    }
}

#[test]
fn a_leader_that_stops_answering_is_replaced_and_follows_afterwards() {
    let cluster = Cluster::start();
    cluster.propose("before");
    let leader = cluster.leader();
    let term = cluster.term();
    let stalled_at = Instant::now();
    cluster.stall(leader, Duration::from_secs(3));
    let others: Vec<_> = cluster.running().into_iter().filter(|at| *at != leader).collect();
    cluster.wait_for("another leader", || {
        others.iter().any(|at| cluster.group(*at).leadership().borrow().is_leader_ready).then_some(())
    });
    eprintln!("gap after a stall: {} ms", stalled_at.elapsed().as_millis());
    assert!(stalled_at.elapsed() < Duration::from_secs(2));
    cluster.wait_for("the old leader to follow", || {
        let now = *cluster.group(leader).leadership().borrow();
        (now.term > term && now.leader.is_some_and(|now| now != cluster.replicas[leader].node)).then_some(())
    });
    cluster.propose("after");
    assert_eq!(cluster.converge().commands.len(), 2);
}

#[test]
fn all_replicas_killed_at_once_keep_every_acknowledged_command() {
    let mut cluster = Cluster::start();
    let acknowledged = numbered(0, 200);
    for command in &acknowledged {
        cluster.propose(command.clone());
    }
    for at in 0..3 {
        cluster.kill(at);
    }
    for at in 0..3 {
        cluster.start_replica(at);
    }
    assert_has_all(&cluster, &acknowledged);
    cluster.propose("and it goes on");
    assert_eq!(cluster.converge().commands.len(), 201);
}

#[test]
fn leadership_is_handed_over_on_request_without_an_election_timeout() {
    let mut cluster = Cluster::start();
    cluster.propose("before");
    for _ in 0..3 {
        let leader = cluster.leader();
        let began = Instant::now();
        cluster.driver.block_on(cluster.group(leader).hand_over(PATIENCE)).expect("handed over");
        cluster.propose("after");
        eprintln!("hand-over: {} ms", began.elapsed().as_millis());
        assert_ne!(cluster.leader(), leader);
    }
    let leader = cluster.leader();
    cluster.shut_down(leader);
    cluster.propose("without it");
    cluster.start_replica(leader);
    assert_eq!(cluster.converge().commands.len(), 5);
}

#[test]
fn leadership_goes_to_the_follower_that_is_named_and_to_nobody_who_cannot_lead() {
    let cluster = Cluster::start();
    cluster.propose("before");
    for _ in 0..3 {
        let leader = cluster.leader();
        let stranger = NodeId(99);
        let refused = cluster.driver.block_on(cluster.group(leader).hand_over_to(stranger, PATIENCE));
        assert_eq!(refused, Err(HandOverError::NotAFollower { node: stranger }));
        let heir = (leader + 1) % 3;
        let heirs_id = cluster.node(heir);
        let other = (leader + 2) % 3;
        let refused = cluster.driver.block_on(cluster.group(other).hand_over_to(heirs_id, PATIENCE));
        assert!(matches!(refused, Err(HandOverError::NotLeader { .. })), "{refused:?}");
        cluster.driver.block_on(cluster.group(leader).hand_over_to(heirs_id, PATIENCE)).expect("handed over");
        cluster.propose("after");
        assert_eq!(cluster.leader(), heir);
    }
    assert_eq!(cluster.converge().commands.len(), 4);
}

/// A leader that was elected a moment ago has heard from nobody beyond its majority.
#[test]
fn an_heir_the_new_leader_has_not_heard_from_is_waited_for() {
    let mut cluster = Cluster::start();
    cluster.propose("before");
    let old = cluster.leader();
    let (late, new) = ((old + 1) % 3, (old + 2) % 3);
    let late_id = cluster.node(late);
    cluster.kill(late);
    let new_id = cluster.node(new);
    cluster.driver.block_on(cluster.group(old).hand_over_to(new_id, PATIENCE)).expect("handed over");
    assert_eq!(cluster.leader(), new);

    let soon = Duration::from_millis(50);
    let refused = cluster.driver.block_on(cluster.group(new).hand_over_to(late_id, soon));
    assert_eq!(refused, Err(HandOverError::NobodyHeard { wanted: Some(late_id) }));

    let leader = cluster.group(new).clone();
    let asked = cluster.driver.spawn(async move { leader.hand_over_to(late_id, PATIENCE).await });
    cluster.start_replica(late);
    assert_eq!(cluster.driver.block_on(asked).expect("it answers"), Ok(()));
    assert_eq!(cluster.leader(), late);
}

/// Everything that can be purged is, at once and all the time.
fn greedy() -> Retention {
    Retention {
        snapshot_every_bytes: 64 << 10,
        snapshots_kept_max: 3,
        purge_margin_entries: 500,
        scrub_interval_s: 0,
        check_interval_ms: 5,
    }
}

async fn propose_to_any(groups: &[Group], command: &Bytes) -> bool {
    for group in groups {
        match group.propose(command.clone()).await {
            Ok(_) => return true,
            Err(ProposeError::NotLeader { .. }) => {}
            Err(error) => panic!("the leader of a stable group answered: {error}"),
        }
    }
    false
}

fn write_from_many(cluster: &Cluster, per_writer: usize, bytes: usize) {
    let groups: Vec<_> = cluster.running().into_iter().map(|at| cluster.group(at).clone()).collect();
    cluster.driver.block_on(async {
        let writers: Vec<_> = (0..64)
            .map(|writer| {
                let groups = groups.clone();
                tokio::spawn(async move {
                    for number in 0..per_writer {
                        let command = Bytes::from(format!("{writer:04} {number:0>bytes$}"));
                        // Nothing was appended where a replica says that it does not lead.
                        while !propose_to_any(&groups, &command).await {
                            tokio::time::sleep(Duration::from_millis(5)).await;
                        }
                    }
                })
            })
            .collect();
        for writer in writers {
            writer.await.expect("it wrote");
        }
    });
}

/// openraft#2116: the core panics when a queued apply meets a purged entry, and the quorum is gone.
#[test]
fn greedy_purging_under_load_never_stops_a_group() {
    let cluster = Cluster::start_with(greedy(), u64::MAX);
    write_from_many(&cluster, 150, 64);
    assert_eq!(cluster.converge().commands.len(), 64 * 150);
    for at in cluster.running() {
        cluster.wait_for("a purge on every replica", || cluster.group(at).status().purged);
    }
    let status = cluster.group(cluster.leader()).status();
    assert!(status.applied > status.purged.map(|purged| (purged.get() + 500).into()), "{status:?}");
}

#[test]
fn a_follower_behind_the_purge_pointer_installs_a_snapshot_and_receives_the_rest() {
    let mut cluster = Cluster::start_with(greedy(), u64::MAX);
    cluster.propose("before");
    let follower = cluster.follower();
    let had = cluster.wait_for("the first command", || cluster.group(follower).status().applied);
    cluster.kill(follower);
    write_from_many(&cluster, 100, 64);
    let leader = cluster.leader();
    cluster.wait_for("a purge beyond the follower", || {
        cluster.group(leader).status().purged.filter(|purged| *purged > had)
    });
    cluster.start_replica(follower);
    assert_eq!(cluster.converge().commands.len(), 64 * 100 + 1);
    assert!(cluster.group(follower).status().snapshot.is_some(), "it came by a snapshot");
    let (ours, leaders) = (cluster.group(follower).status(), cluster.group(leader).status());
    assert_eq!(ours.physical_end, leaders.physical_end);
    // It is a full member: it can carry the group, also after a restart.
    cluster.kill(follower);
    cluster.start_replica(follower);
    let other = cluster.running().into_iter().find(|at| *at != leader && *at != follower).expect("three");
    cluster.kill(other);
    cluster.propose("with the newcomer");
    assert_eq!(cluster.converge().commands.len(), 64 * 100 + 2);
}

/// The follower's side of openraft#2116: a snapshot over entries that arrived and were not committed.
#[test]
fn a_follower_that_stalls_under_load_survives_the_snapshot_that_overtakes_it() {
    let cluster = Cluster::start_with(greedy(), u64::MAX);
    for round in 1..=3 {
        let (leader, follower) = (cluster.leader(), cluster.follower());
        cluster.stall(follower, Duration::from_millis(2_500));
        write_from_many(&cluster, 20, 8 << 10);
        let reached = cluster.group(leader).status().applied;
        cluster.wait_for("a purge beyond the follower", || {
            let purged = cluster.group(leader).status().purged;
            (purged > cluster.group(follower).status().last
                || cluster.group(follower).status().applied >= reached)
                .then_some(())
        });
        assert_eq!(cluster.converge().commands.len(), 64 * 20 * round);
    }
}

#[test]
fn a_snapshot_on_demand_covers_everything_applied() {
    let cluster = Cluster::start();
    for command in numbered(0, 10) {
        cluster.propose(command);
    }
    let leader = cluster.leader();
    let applied = cluster.group(leader).status().applied;
    let covered =
        cluster.driver.block_on(cluster.group(leader).snapshot_now()).expect("no fault").expect("not empty");
    assert!(Some(covered.index) >= applied);
}
