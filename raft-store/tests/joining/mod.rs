//! What becomes of a replica whose directory is lost, rotten, or whose place in the group is taken.

use std::time::{Duration, Instant};

use bytes::Bytes;
use ledgermq_common::LogIndex;
use ledgermq_raft_store::group::ChangeMembersError;

use crate::cluster::{Cluster, PATIENCE};
use crate::{assert_has_all, greedy, numbered};

/// Longer than elections take here.
const NO_ELECTION_FOR: Duration = Duration::from_secs(3);

fn propose_all(cluster: &Cluster, commands: Vec<Bytes>) -> Vec<Bytes> {
    commands.into_iter().inspect(|command| drop(cluster.propose(command.clone()))).collect()
}

fn wait_until_voter(cluster: &Cluster, at: usize) {
    let (node, replica) = (cluster.node(at), cluster.group(at).status().replica);
    cluster.wait_for("a replica that is a voter again", || {
        let status = cluster.group(cluster.leader()).status();
        let is_level = status.peers.iter().any(|peer| peer.node == node && peer.lag_entries == 0);
        let level = is_level || status.leader == Some(node);
        let own = cluster.group(at).status();
        (status.voters.len() == 3 && level && own.voters.contains(&node) && own.replica == replica)
            .then_some(())
    });
}

/// Acknowledged by the leader and one follower. That follower loses its directory, and the leader is
/// down: the two that are left are a majority by their ids, and know nothing of it.
#[test]
fn a_replica_that_lost_its_directory_does_not_count_as_the_one_it_was() {
    let mut cluster = Cluster::start();
    let mut acknowledged = propose_all(&cluster, numbered(0, 20));
    let leader = cluster.leader();
    let [forgetful, lagging] = [1, 2].map(|step| (leader + step) % 3);
    cluster.kill(lagging);
    acknowledged.extend(propose_all(&cluster, numbered(20, 20)));
    cluster.kill(leader);
    cluster.kill(forgetful);
    let replica = cluster.lose_directory(forgetful);

    cluster.start_replica(lagging);
    cluster.start_replica(forgetful);
    assert_ne!(cluster.group(forgetful).status().replica, replica, "another log, another replica");
    let until = Instant::now() + NO_ELECTION_FOR;
    while Instant::now() < until {
        for at in [lagging, forgetful] {
            let led = cluster.group(at).leadership().borrow().is_leader_ready;
            assert!(!led, "node {} leads without what was acknowledged", cluster.node(at));
        }
        std::thread::sleep(Duration::from_millis(10));
    }

    cluster.start_replica(leader);
    wait_until_voter(&cluster, forgetful);
    assert_has_all(&cluster, &acknowledged);

    // It counts again: the group goes on with it and without another one.
    let other = [leader, lagging].into_iter().find(|at| *at != cluster.leader()).expect("one follows");
    cluster.kill(other);
    acknowledged.extend(propose_all(&cluster, numbered(40, 20)));
    assert_has_all(&cluster, &acknowledged);
}

#[test]
fn a_new_replica_behind_the_purge_pointer_receives_a_snapshot_under_load() {
    let mut cluster = Cluster::start_with(greedy(), 0);
    let mut acknowledged = propose_all(&cluster, numbered(0, 2_000));
    let follower = cluster.follower();
    cluster.kill(follower);
    cluster.lose_directory(follower);
    cluster.start_replica(follower);
    acknowledged.extend(propose_all(&cluster, numbered(2_000, 500)));
    wait_until_voter(&cluster, follower);
    assert_has_all(&cluster, &acknowledged);
}

#[test]
fn a_group_does_not_begin_anew_while_a_member_is_silent_and_does_when_all_directories_are_gone() {
    let mut cluster = Cluster::start();
    propose_all(&cluster, numbered(0, 10));
    for at in 0..3 {
        cluster.kill(at);
    }
    let replicas: Vec<_> = (0..3).map(|at| cluster.lose_directory(at)).collect();
    cluster.start_replica(0);
    cluster.start_replica(1);
    let until = Instant::now() + NO_ELECTION_FOR;
    while Instant::now() < until {
        assert!(cluster.running().iter().all(|at| cluster.group(*at).leadership().borrow().leader.is_none()));
        std::thread::sleep(Duration::from_millis(10));
    }
    cluster.start_replica(2);
    cluster.leader();
    assert_eq!(cluster.converge().commands.len(), 0, "a new group is empty");
    assert!((0..3).all(|at| cluster.group(at).status().replica != replicas[at]));
}

#[test]
fn a_voter_that_was_taken_out_comes_back_with_its_log() {
    let cluster = Cluster::start();
    let mut acknowledged = propose_all(&cluster, numbered(0, 50));
    let (leader, follower) = (cluster.leader(), cluster.follower());
    let take_out = |of, node| cluster.driver.block_on(cluster.group(of).take_out(node, PATIENCE));
    let (own, others) = (cluster.node(leader), cluster.node(follower));
    assert_eq!(take_out(leader, own), Err(ChangeMembersError::Leads { node: own }));
    assert_eq!(take_out(follower, others), Err(ChangeMembersError::NotLeader { leader: Some(own) }));
    let replica = cluster.group(follower).status().replica;
    take_out(leader, others).expect("taken out");
    acknowledged.extend(propose_all(&cluster, numbered(50, 50)));
    wait_until_voter(&cluster, follower);
    assert_eq!(cluster.group(follower).status().replica, replica, "the same log");
    assert_has_all(&cluster, &acknowledged);
}

/// Two voters are left when one is taken out. A kill of the leader in between must not leave a group
/// that never has three again.
#[test]
fn a_change_of_the_members_survives_the_leader_that_began_it() {
    let mut cluster = Cluster::start();
    let mut acknowledged = Vec::new();
    for round in 0..4 {
        acknowledged.extend(propose_all(&cluster, numbered(round * 100, 20)));
        let (leader, follower) = (cluster.leader(), cluster.follower());
        let (group, node) = (cluster.group(leader).clone(), cluster.node(follower));
        let out = cluster.driver.spawn(async move { group.take_out(node, PATIENCE).await });
        // At another point of the change each time.
        std::thread::sleep(Duration::from_micros(700 * round as u64));
        cluster.kill(leader);
        out.abort();
        cluster.start_replica(leader);
        wait_until_voter(&cluster, follower);
        assert_has_all(&cluster, &acknowledged);
    }
}

/// The older of two segments rots below a running follower. No start would look there.
#[test]
fn corruption_that_is_met_ends_the_replica_and_is_repaired_from_the_others() {
    let mut cluster = Cluster::start();
    let large = |number: usize| Bytes::from(vec![number as u8; 200_000]);
    let acknowledged = propose_all(&cluster, (0..40).map(large).collect());
    let follower = cluster.follower();
    cluster.kill(follower);
    // What it reads from now on comes from the disk.
    cluster.start_replica(follower);
    cluster.converge();
    cluster.flip_a_bit_of_the_first_segment(follower);
    let group = cluster.group(follower).clone();
    let met = group.scan(LogIndex(0)).find_map(Result::err).expect("the scan meets it");
    assert!(met.to_string().contains("corrupt"), "{met}");
    let fault = cluster.driver.block_on(group.fault());
    assert!(fault.to_string().contains("corrupt"), "{fault}");
    drop(group);

    cluster.kill(follower);
    assert_eq!(cluster.refused(follower), None);
    cluster.start_replica(follower);
    let refused = cluster.refused(follower).expect("the directory is refused");
    assert!(refused.contains("an earlier run met corruption"), "{refused}");
    wait_until_voter(&cluster, follower);
    assert_has_all(&cluster, &acknowledged);
    // And found by nobody's read as well.
    cluster.scrub_every_s(1);
    cluster.shut_down(follower);
    cluster.start_replica(follower);
    cluster.converge();
    cluster.flip_a_bit_of_the_first_segment(follower);
    let fault = cluster.driver.block_on(cluster.group(follower).clone().fault());
    assert!(fault.to_string().contains("corrupt"), "{fault}");
    cluster.kill(follower);
    cluster.start_replica(follower);
    wait_until_voter(&cluster, follower);
    let scanned = cluster.group(follower).scan(LogIndex(0)).filter(|entry| entry.is_ok()).count();
    assert_eq!(scanned, acknowledged.len(), "every entry verifies");
}

/// Somebody starts a broker with the id of one that runs, elsewhere and on an empty directory.
#[test]
fn a_second_process_with_the_id_of_one_that_runs_takes_nobodys_place() {
    let cluster = Cluster::start();
    let mut acknowledged = propose_all(&cluster, numbered(0, 20));
    let follower = cluster.follower();
    let (node, replica) = (cluster.node(follower), cluster.group(follower).status().replica);
    let impostor = cluster.impostor_of(follower);
    let until = Instant::now() + NO_ELECTION_FOR;
    while Instant::now() < until {
        let status = cluster.group(cluster.leader()).status();
        assert!(status.voters.len() == 3 && status.voters.contains(&node), "{status:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(cluster.group(follower).status().replica, replica);
    assert_eq!(impostor.status().last, None, "nothing is sent to it");
    acknowledged.extend(propose_all(&cluster, numbered(20, 20)));
    assert_has_all(&cluster, &acknowledged);
}
