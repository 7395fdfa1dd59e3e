//! Memory is measured in a process of its own: this test starts itself again with a mark in the
//! environment, because other tests of the same process allocate at the same time.

use super::*;

const TOPICS: u32 = 1_000;
const QUEUES: u32 = 1_000;
/// One queue in so many gets a message.
const IN_USE: u32 = 10;
const BYTES_PER_IDLE_QUEUE_MAX: u64 = 64;
const BYTES_PER_QUEUE_WITH_A_MESSAGE_MAX: u64 = 640;
const MARK: &str = "LEDGERMQ_TEST_MEASURES_MEMORY";

#[test]
fn a_million_queues_fit_in_memory_and_one_checkpoint() {
    match measured_alone(
        MARK,
        "state::tests::million_queues::a_million_queues_fit_in_memory_and_one_checkpoint",
    ) {
        Alone::Yes => measure(),
        Alone::InAChild => {}
    }
}

fn measure() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut replica = Replica::open(Some(directory.path()), Log::default());
    let before = resident_bytes();
    let topics: Vec<TopicId> =
        (0..TOPICS).map(|number| replica.topic(&format!("topic-{number}"), QUEUES)).collect();
    let idle = resident_bytes();
    for (number, &topic) in topics.iter().enumerate() {
        let messages: Vec<NewMessage> =
            (0..QUEUES / IN_USE).map(|n| message(n * IN_USE, &format!("{number}-{n}"))).collect();
        replica.send(topic, &messages);
    }
    // The log is the test's own and not part of what is measured.
    let log_bytes: u64 = replica.log.entries.iter().map(|entry| entry.payload.len() as u64).sum();
    let used = resident_bytes();
    replica.state.checkpoint().expect("written");
    if let (Some(before), Some(idle), Some(used)) = (before, idle, used) {
        let queues = u64::from(TOPICS) * u64::from(QUEUES);
        let per_idle = idle.saturating_sub(before) / queues;
        let per_used = used.saturating_sub(idle + log_bytes) / (queues / u64::from(IN_USE));
        println!("{per_idle} bytes per idle queue, {per_used} more per queue with one message");
        assert!(per_idle < BYTES_PER_IDLE_QUEUE_MAX, "{per_idle} bytes per idle queue");
        assert!(per_used < BYTES_PER_QUEUE_WITH_A_MESSAGE_MAX, "{per_used} bytes per queue in use");
    }
    let group = replica.group("workers");
    let granted = replica.receive(group, topics[500], 32, 10_000);
    assert_eq!(granted.len(), 32);
    assert_eq!(
        replica.state.lag(group, topics[500]),
        Lag { ready: u64::from(QUEUES / IN_USE) - 32, in_flight: 32 }
    );
    let digest = replica.state.state_digest();
    replica.state.checkpoint().expect("written");
    replica.state.close().expect("closed");
    let restarted = Replica::open(Some(directory.path()), replica.log);
    assert_eq!(restarted.state.state_digest(), digest);
    restarted.state.close().expect("closed");
}

/// Resident memory of this process, or `None` where the system does not tell.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}
