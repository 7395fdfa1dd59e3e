use std::fs;
use std::io::{Cursor, Read};
use std::path::PathBuf;

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use super::program_leader::Leader;
use super::programs::steps;
use super::*;
use crate::state::meta_store::{Change, MemoryStore, MetaStore, SledStore};

/// A log long enough to leave something in every kind of record.
fn history(count: usize) -> (Log, StateDigest) {
    let mut leader = Leader::new();
    let mut runner = TestRunner::deterministic();
    let program = steps(count).new_tree(&mut runner).expect("steps").current();
    leader.run(&program);
    // Whatever the steps deleted or let pass: there are messages, ids and leases at the end.
    let replica = &mut leader.replica;
    let topic = replica.topic("kept", 2);
    let group = replica.group("kept");
    for number in 0..count as u32 / 4 {
        replica.send(topic, &[message(number % 2, &format!("kept-{number}"))]);
    }
    replica.receive(group, topic, 5, 10_000);
    for number in 0..5u64 {
        let deliver_at = replica.now.saturating_add_ms(1_000_000 + number);
        let delayed = [(deliver_at, message(0, &format!("delayed-{number}")))];
        replica.propose_bytes(encode_delayed(replica.now, topic, &delayed));
    }
    let digest = leader.replica.state.state_digest();
    (leader.replica.log.clone(), digest)
}

/// Applies the log with checkpoints in between and leaves the directory as a stopped process would.
fn write_checkpoints(directory: &Path, log: &Log, every: usize) {
    let state = BrokerState::open(config(Some(directory)), Arc::new(NobodyWaits)).expect("open");
    for entries in log.entries.chunks(every) {
        state.apply(entries, &mut Vec::new()).expect("applied");
        state.log_flushed(entries.last().expect("not empty").id.index);
        state.checkpoint().expect("written");
    }
    state.close().expect("closed");
}

fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for item in fs::read_dir(directory).expect("a directory") {
        let path = item.expect("an item").path();
        if path.is_dir() { found.extend(files_below(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("created");
    for item in fs::read_dir(from).expect("a directory") {
        let item = item.expect("an item");
        let target = to.join(item.file_name());
        if item.path().is_dir() {
            copy(&item.path(), &target);
        } else {
            fs::copy(item.path(), target).expect("copied");
        }
    }
}

#[test]
fn a_restart_goes_on_from_the_checkpoint_and_applies_only_what_came_after() {
    let (log, digest) = history(600);
    let directory = tempfile::tempdir().expect("a directory");
    let kept = log.entries.len() - 25;
    let before = Log { entries: log.entries[..kept].to_vec(), ..log.clone() };
    write_checkpoints(directory.path(), &before, 60);

    let state = BrokerState::open(config(Some(directory.path())), Arc::new(NobodyWaits)).expect("open");
    state.recover(&log).expect("recovered");
    assert_eq!(state.applied(), Some(log.entries[kept - 1].id));
    let replica = Replica { state, log, now: UnixMillis(START) };
    assert_eq!(replica.replay(), 25);
    assert_eq!(replica.state.state_digest(), digest);
    replica.state.close().expect("closed");
}

#[test]
fn repeated_messages_are_known_after_a_restart() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut replica = Replica::open(Some(directory.path()), Log::default());
    let topic = replica.topic("orders", 1);
    let first = replica.send(topic, &[message(0, "a")]);
    replica.state.checkpoint().expect("written");
    let second = replica.send(topic, &[message(0, "b")]);
    replica.state.checkpoint().expect("written");
    replica.state.close().expect("closed");

    let mut restarted = Replica::open(Some(directory.path()), replica.log);
    assert_eq!(restarted.state.applied().map(|entry| entry.index), Some(LogIndex(3)));
    let repeated = restarted.send(topic, &[message(0, "a"), message(0, "b")]);
    assert_eq!(repeated[0], StoredAt { repeated: true, ..first[0] });
    assert_eq!(repeated[1], StoredAt { repeated: true, ..second[0] });
    restarted.state.close().expect("closed");
}

#[test]
fn a_checkpoint_waits_until_the_log_is_flushed() {
    let directory = tempfile::tempdir().expect("a directory");
    let (log, _) = history(30);
    let state = BrokerState::open(config(Some(directory.path())), Arc::new(NobodyWaits)).expect("open");
    state.apply(&log.entries, &mut Vec::new()).expect("applied");
    let last = log.entries.last().expect("entries").id;
    state.log_flushed(LogIndex(last.index.get() - 1));
    let writer = std::thread::spawn({
        let state = Arc::clone(&state);
        move || state.checkpoint()
    });
    assert_eq!(state.applied(), None, "nothing is kept before the flush");
    state.log_flushed(last.index);
    writer.join().expect("no panic").expect("written");
    assert_eq!(state.applied(), Some(last));
    state.close().expect("closed");
}

#[test]
fn a_checkpoint_beyond_the_log_or_before_its_start_is_not_used() {
    let (log, digest) = history(120);
    let directory = tempfile::tempdir().expect("a directory");
    write_checkpoints(directory.path(), &log, 50);
    let shorter = Log { entries: log.entries[..log.entries.len() - 1].to_vec(), ..log.clone() };
    let state = BrokerState::open(config(Some(directory.path())), Arc::new(NobodyWaits)).expect("open");
    state.recover(&shorter).expect("recovered");
    assert_eq!(state.applied(), None);
    state.close().expect("closed");

    write_checkpoints(directory.path(), &log, 50);
    let mut later = log.clone();
    later.append(Bytes::new());
    later.append(Bytes::new());
    later.entries.drain(..log.entries.len() + 1);
    let state = BrokerState::open(config(Some(directory.path())), Arc::new(NobodyWaits)).expect("open");
    state.recover(&later).expect("recovered");
    assert_eq!(state.applied(), None, "an entry between checkpoint and log is gone");
    state.close().expect("closed");
    let again = Replica::open(Some(directory.path()), log);
    assert_eq!(again.state.state_digest(), digest);
    again.state.close().expect("closed");
}

#[test]
fn a_restored_snapshot_replaces_the_checkpoint_and_is_checkpointed_next() {
    let (log, digest) = history(300);
    let source = Replica::open(None, log.clone());
    let (applied, stream) = source.state.snapshot().expect("a snapshot");
    let directory = tempfile::tempdir().expect("a directory");
    let other = Replica::open(Some(directory.path()), history(20).0);
    other.state.checkpoint().expect("written");
    other.state.restore(applied.expect("entries"), stream).expect("restored");
    assert_eq!(other.state.state_digest(), digest);
    other.state.checkpoint().expect("written");
    other.state.close().expect("closed");
    drop(other);
    let restarted = BrokerState::open(config(Some(directory.path())), Arc::new(NobodyWaits)).expect("open");
    restarted.recover(&log).expect("recovered");
    assert_eq!(restarted.applied(), log.entries.last().map(|entry| entry.id));
    assert_eq!(restarted.state_digest(), digest);
    restarted.close().expect("closed");
}

#[test]
fn damage_to_any_file_leads_to_the_same_state_as_none() {
    let (log, digest) = history(250);
    let original = tempfile::tempdir().expect("a directory");
    write_checkpoints(original.path(), &log, 60);
    let names: Vec<PathBuf> = files_below(original.path())
        .iter()
        .map(|path| path.strip_prefix(original.path()).expect("below").to_owned())
        .collect();
    assert!(names.iter().any(|name| name.starts_with("sled")), "{names:?}");
    assert!(names.iter().any(|name| name.to_string_lossy().starts_with("run-")), "{names:?}");
    assert!(names.iter().any(|name| name.to_string_lossy().starts_with("ids-")), "{names:?}");
    assert!(names.iter().any(|name| name.to_string_lossy().starts_with("timers-")), "{names:?}");
    assert!(names.iter().any(|name| name.to_string_lossy().starts_with("keys-")), "{names:?}");

    let check = |what: &str, damage: &dyn Fn(&Path)| {
        let directory = tempfile::tempdir().expect("a directory");
        copy(original.path(), directory.path());
        damage(directory.path());
        let replica = Replica::open(Some(directory.path()), log.clone());
        assert_eq!(replica.state.state_digest(), digest, "{what}");
        replica.state.checkpoint().expect("a rebuilt state is kept again");
        replica.state.close().expect("closed");
        drop(replica);
        let state = BrokerState::open(config(Some(directory.path())), Arc::new(NobodyWaits)).expect("open");
        assert_eq!(state.applied(), log.entries.last().map(|entry| entry.id), "{what}");
        assert_eq!(state.state_digest(), digest, "{what}");
        state.close().expect("closed");
    };
    check("nothing", &|_| {});
    check("everything deleted", &|directory| {
        fs::remove_dir_all(directory).expect("deleted");
    });
    check("sled deleted", &|directory| fs::remove_dir_all(directory.join("sled")).expect("deleted"));
    check("died while loading", &|directory| {
        fs::write(directory.join("sled.loading"), b"").expect("written");
    });
    for name in &names {
        let len = fs::metadata(original.path().join(name)).expect("a file").len();
        check(&format!("{} deleted", name.display()), &|directory| {
            fs::remove_file(directory.join(name)).expect("deleted");
        });
        for part in [0, 1, 2] {
            let keep = len * part / 3;
            check(&format!("{} cut to {keep}", name.display()), &|directory| {
                let file = fs::OpenOptions::new().write(true).open(directory.join(name)).expect("open");
                file.set_len(keep).expect("cut");
            });
        }
        let bytes = fs::read(original.path().join(name)).expect("read");
        // Files of sled are mostly zeros; positions that hold something are where damage hurts.
        let used: Vec<usize> = (0..bytes.len()).filter(|&at| bytes[at] != 0).collect();
        for part in 0..6 {
            let Some(&at) = used.get(used.len() * part / 6) else { continue };
            check(&format!("{} flipped at {at}", name.display()), &|directory| {
                let mut flipped = bytes.clone();
                flipped[at] ^= 0x40;
                fs::write(directory.join(name), flipped).expect("written");
            });
        }
    }
}

#[test]
fn a_damaged_store_is_kept_aside_and_only_the_newest_of_them() {
    let (log, _) = history(40);
    let directory = tempfile::tempdir().expect("a directory");
    for _ in 0..3 {
        write_checkpoints(directory.path(), &log, 100);
        fs::write(directory.path().join("sled.loading"), b"").expect("written");
    }
    let state = BrokerState::open(config(Some(directory.path())), Arc::new(NobodyWaits)).expect("open");
    assert_eq!(state.applied(), None);
    state.close().expect("closed");
    let aside: Vec<String> = fs::read_dir(directory.path())
        .expect("a directory")
        .map(|item| item.expect("an item").file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with("sled.bad-"))
        .collect();
    assert_eq!(aside, ["sled.bad-2"]);
}

#[test]
fn many_checkpoints_leave_few_files_and_every_entry() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut replica = Replica::open(Some(directory.path()), Log::default());
    let topic = replica.topic("orders", 2);
    for number in 0..40u32 {
        replica.send(topic, &[message(number % 2, &format!("{number}"))]);
        replica.state.checkpoint().expect("written");
    }
    let runs = files_below(directory.path())
        .iter()
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("run-")))
        .count();
    assert!(runs <= 8, "{runs} runs");
    let all = replica.state.range(topic, QueueId(1), QueueOffset(0), 100);
    assert_eq!(all.len(), 20);
    for (offset, entry) in all {
        let read = StoredMessage::decode(&replica.log.record(entry)).expect("a record");
        assert_eq!(read.id, format!("{}", offset.get() * 2 + 1));
    }
    let from_middle = replica.state.range(topic, QueueId(0), QueueOffset(7), 3);
    let found: Vec<u64> = from_middle.iter().map(|(offset, _)| offset.get()).collect();
    assert_eq!(found, [7, 8, 9]);
    replica.state.close().expect("closed");
}

#[test]
fn due_checkpoints_are_written_in_the_background() {
    let directory = tempfile::tempdir().expect("a directory");
    let background = StateConfig {
        checkpoints: CheckpointMode::Background { every_bytes: 8 << 20 },
        ..config(Some(directory.path()))
    };
    let state = BrokerState::open(background, Arc::new(NobodyWaits)).expect("open");
    let mut replica = Replica { state, log: Log::default(), now: UnixMillis(START) };
    let topic = replica.topic("orders", 1);
    let big = NewMessage { body: Bytes::from(vec![7; 4_000_000]), ..message(0, "0") };
    for number in 0..3 {
        assert_eq!(replica.state.applied(), None, "none is due yet");
        let message = NewMessage { id: format!("{number}"), ..big.clone() };
        let entry = replica.log.append(encode_append(replica.now, topic, &[message]));
        replica.state.apply(std::slice::from_ref(&entry), &mut Vec::new()).expect("applied");
        replica.state.log_flushed(entry.id.index);
        replica.log.entries.clear();
    }
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while replica.state.applied().is_none() {
        assert!(std::time::Instant::now() < deadline, "more than 8 MiB of commands and no checkpoint");
        std::thread::yield_now();
    }
    replica.state.close().expect("closed");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn sled_keeps_what_a_map_keeps(
        commits in proptest::collection::vec(
            proptest::collection::btree_map(
                "[tqgp][a-d]{1,2}",
                proptest::option::of(proptest::collection::vec(any::<u8>(), 0..50)),
                0..8,
            ),
            1..8,
        ),
    ) {
        let directory = tempfile::tempdir().expect("a directory");
        let mut model = MemoryStore::default();
        for (number, commit) in commits.into_iter().enumerate() {
            let mut store = SledStore::below(directory.path());
            prop_assert_eq!(store.load().expect("loaded"), model.load().expect("memory"));
            let changes: Vec<Change> = commit
                .into_iter()
                .map(|(key, value)| (key.into_bytes(), value.map(Bytes::from)))
                .collect();
            let header = number.to_le_bytes();
            store.commit(&header, &changes).expect("committed");
            model.commit(&header, &changes).expect("memory");
        }
    }
}

/// A queue that claims more than its index holds would answer for messages nobody can read.
#[test]
fn a_snapshot_whose_queues_claim_more_than_its_index_holds_is_refused() {
    let mut source = Replica::in_memory();
    let topic = source.topic("orders", 1);
    source.send(topic, &[message(0, "m")]);
    let (applied, mut stream) = source.state.snapshot().expect("a snapshot");
    let mut whole = Vec::new();
    stream.read_to_end(&mut whole).expect("read");
    let target = Replica::in_memory();
    let before = target.state.state_digest();
    let refused = target
        .state
        .restore(applied.expect("entries"), Box::new(Cursor::new(without_index(&whole))))
        .expect_err("its queue has a message and its index none");
    assert!(refused.to_string().contains("queues without an index"), "{refused}");
    assert_eq!(target.state.state_digest(), before);
    target.state.restore(applied.expect("entries"), Box::new(Cursor::new(whole))).expect("whole");
    assert_eq!(target.state.state_digest(), source.state.state_digest());
}

/// The sections of a snapshot less those of index runs, well-formed otherwise.
fn without_index(snapshot: &[u8]) -> Vec<u8> {
    let (run_bytes, run_end, end) = (4, 5, 255);
    let (mut out, mut rest) = (snapshot[..8].to_vec(), &snapshot[8..]);
    while let Some((&kind, _)) = rest.split_first() {
        let len = u32::from_le_bytes(rest[1..5].try_into().expect("four bytes")) as usize;
        let mut content = rest[9..9 + len].to_vec();
        rest = &rest[9 + len..];
        if kind == run_bytes || kind == run_end {
            continue;
        }
        if kind == end {
            content[24..32].fill(0);
        }
        out.push(kind);
        out.extend((len as u32).to_le_bytes());
        out.extend(crc32c::crc32c_append(crc32c::crc32c(&[kind]), &content).to_le_bytes());
        out.extend(content);
    }
    out
}
