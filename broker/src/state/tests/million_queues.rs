use super::*;

const TOPICS: u32 = 1_000;
const QUEUES: u32 = 1_000;

/// Resident memory of this process, or `None` where the system does not tell.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

#[test]
fn a_million_queues_fit_in_memory_and_one_checkpoint() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut replica = Replica::open(Some(directory.path()), Log::default());
    let before = resident_bytes();
    let topics: Vec<TopicId> =
        (0..TOPICS).map(|number| replica.topic(&format!("topic-{number}"), QUEUES)).collect();
    let created = resident_bytes();
    // One message in a hundred queues of each topic, so that a tenth of all queues is in use.
    for (number, &topic) in topics.iter().enumerate() {
        let messages: Vec<NewMessage> =
            (0..100).map(|queue| message(queue * 10, &format!("{number}-{queue}"))).collect();
        replica.send(topic, &messages);
    }
    let filled = resident_bytes();
    replica.state.checkpoint().expect("written");
    if let (Some(before), Some(created), Some(filled)) = (before, created, filled) {
        let queues = u64::from(TOPICS) * u64::from(QUEUES);
        let per_queue = created.saturating_sub(before) / queues;
        println!("{per_queue} bytes per queue; {} per message", filled.saturating_sub(created) / 100_000);
        assert!(per_queue < 64, "{per_queue} bytes per queue");
    }
    let group = replica.group("workers");
    let granted = replica.receive(group, topics[500], 32, 10_000);
    assert_eq!(granted.len(), 32);
    assert_eq!(replica.state.lag(group, topics[500]), Lag { ready: 68, in_flight: 32 });
    let digest = replica.state.state_digest();
    replica.state.checkpoint().expect("written");
    replica.state.close().expect("closed");
    let restarted = Replica::open(Some(directory.path()), replica.log);
    assert_eq!(restarted.state.state_digest(), digest);
    restarted.state.close().expect("closed");
}
