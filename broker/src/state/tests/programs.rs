//! Random programs of a leader and its clients.

use proptest::prelude::*;

/// What a leader and its clients may do next, in numbers that are given a meaning when it is done.
#[derive(Debug, Clone)]
pub(super) enum Step {
    Send {
        topic: u32,
        messages: Vec<(u32, u16, u8)>,
    },
    Receive {
        group: u32,
        topic: u32,
        max: u32,
        invisible_ms: u64,
        tag: Option<u8>,
        client: u8,
    },
    /// A lease command nobody planned: apply must cope with anything.
    WildLease {
        group: u32,
        topic: u32,
        queue: u32,
        from: u64,
        to: u64,
        offsets: Vec<u64>,
    },
    /// As above, of a group that consumes in order.
    OrderedLease {
        group: u32,
        topic: u32,
        queue: u32,
        messages: Vec<(u64, u64, bool)>,
        pass_over: Vec<u64>,
    },
    Ack(Vec<usize>),
    Change(usize, u64),
    Extend(usize, u64),
    GiveUp(Vec<usize>, bool),
    CommitOffset(u32, u32, u32, u64),
    Reset(u32, u32, Vec<(u32, u64)>),
    Delay {
        topic: u32,
        messages: Vec<(u32, u16, u64)>,
    },
    Fire(u64, u32),
    Recall(usize),
    Redrive(u64, usize),
    SetAttempts(u8, u32),
    Release {
        group: u32,
        client: u8,
    },
    Half {
        topic: u32,
        halves: Vec<(u32, u16, u32)>,
    },
    End {
        which: usize,
        topic: u32,
        commit: bool,
    },
    CountChecks(Vec<(usize, u32)>, u64),
    Park(Vec<(usize, u32)>),
    CreateTopic(u8, u32),
    GrowTopic(u8, u32),
    /// One of the steps of a growth, and a generation near that of the topic.
    Grow(u32, u8, u32, u32),
    SendInOrder(u32, u32, Vec<(u32, u16)>),
    /// Messages by topic, queue and id, and the generation of every topic.
    StoreBatch(u32, Vec<(u32, u32, u16)>),
    Drain(u32, u32, u32),
    DeleteTopic(u8),
    CreateGroup(u8),
    DeleteGroup(u8),
    Expire {
        retention_ms: u64,
        log_bytes_max: Option<u64>,
    },
    /// By a plan, or what the numbers say.
    Carry(Option<Vec<usize>>),
    ReleaseLog,
    SetRetention(u32, Option<u64>),
    /// So many bytes of others in the log.
    Skip(u64),
    SendLite {
        topic: u32,
        lite: u8,
        ids: Vec<u16>,
    },
    SyncLite {
        group: u32,
        topic: u32,
        client: u8,
        action: u8,
        names: Vec<u8>,
    },
    ReceiveLite {
        group: u32,
        topic: u32,
        client: u8,
        max: u32,
    },
    Suspend(usize, u64),
    ExpireLite(u32, u64),
    SetAttributes(u32, bool),
    SetFilters(u32, u32, u8),
    Pass(u64),
    Malformed(Vec<u8>),
}

pub(super) fn steps(count: usize) -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => (1u32..5, proptest::collection::vec((0u32..4, any::<u16>(), 0u8..4), 1..6))
            .prop_map(|(topic, messages)| Step::Send { topic, messages }),
        8 => (1u32..4, 1u32..5, 1u32..8, 0u64..40_000, proptest::option::of(0u8..4), 0u8..3).prop_map(
            |(group, topic, max, invisible_ms, tag, client)| Step::Receive {
                group, topic, max, invisible_ms, tag, client
            }
        ),
        1 => (1u32..4, 1u32..5, 0u32..5, 0u64..20, 0u64..30, proptest::collection::vec(0u64..30, 0..6))
            .prop_map(|(group, topic, queue, from, to, offsets)| Step::WildLease {
                group, topic, queue, from, to, offsets
            }),
        4 => (
            1u32..4, 1u32..5, 0u32..5,
            proptest::collection::vec((0u64..30, 0u64..4, any::<bool>()), 0..6),
            proptest::collection::vec(0u64..30, 0..3),
        )
            .prop_map(|(group, topic, queue, messages, pass_over)| Step::OrderedLease {
                group, topic, queue, messages, pass_over
            }),
        6 => proptest::collection::vec(any::<usize>(), 1..4).prop_map(Step::Ack),
        3 => (any::<usize>(), 0u64..40_000).prop_map(|(which, ms)| Step::Change(which, ms)),
        2 => (any::<usize>(), 0u64..40_000).prop_map(|(which, ms)| Step::Extend(which, ms)),
        5 => (1u32..5, proptest::collection::vec((0u32..4, any::<u16>(), 0u64..60_000), 1..4))
            .prop_map(|(topic, messages)| Step::Delay { topic, messages }),
        3 => (0u64..20_000, 0u32..6).prop_map(|(beyond_ms, max)| Step::Fire(beyond_ms, max)),
        2 => any::<usize>().prop_map(Step::Recall),
        1 => (1u32..4, 1u32..5, 0u32..4, 0u64..20)
            .prop_map(|(group, topic, queue, offset)| Step::CommitOffset(group, topic, queue, offset)),
        1 => (1u32..4, 1u32..5, proptest::collection::vec((0u32..4, 0u64..20), 1..4))
            .prop_map(|(group, topic, queues)| Step::Reset(group, topic, queues)),
        2 => (proptest::collection::vec(any::<usize>(), 1..3), any::<bool>())
            .prop_map(|(which, forwarded)| Step::GiveUp(which, forwarded)),
        1 => (0u64..4, any::<usize>()).prop_map(|(letter, which)| Step::Redrive(letter, which)),
        1 => (0u8..3, 1u32..4).prop_map(|(name, attempts)| Step::SetAttempts(name, attempts)),
        1 => (1u32..4, 0u8..3).prop_map(|(group, client)| Step::Release { group, client }),
        4 => (1u32..5, proptest::collection::vec((0u32..4, any::<u16>(), 0u32..40_000), 1..4))
            .prop_map(|(topic, halves)| Step::Half { topic, halves }),
        6 => (any::<usize>(), 1u32..5, any::<bool>())
            .prop_map(|(which, topic, commit)| Step::End { which, topic, commit }),
        2 => (proptest::collection::vec((any::<usize>(), 0u32..4), 1..4), 0u64..40_000)
            .prop_map(|(checks, next_ms)| Step::CountChecks(checks, next_ms)),
        1 => proptest::collection::vec((any::<usize>(), 0u32..4), 1..4).prop_map(Step::Park),
        5 => (1u32..5, 0u8..3, 0u32..4, 1u32..7)
            .prop_map(|(topic, step, generation, queues)| Step::Grow(topic, step, generation, queues)),
        4 => (1u32..5, 0u32..3, proptest::collection::vec((0u32..6, any::<u16>()), 1..4))
            .prop_map(|(topic, generation, messages)| Step::SendInOrder(topic, generation, messages)),
        6 => (0u32..3, proptest::collection::vec((1u32..5, 0u32..4, any::<u16>()), 1..5))
            .prop_map(|(generation, messages)| Step::StoreBatch(generation, messages)),
        2 => (1u32..4, 1u32..5, 0u32..3).prop_map(|(group, topic, of)| Step::Drain(group, topic, of)),
        2 => (0u8..4, 1u32..4).prop_map(|(name, queues)| Step::CreateTopic(name, queues)),
        1 => (0u8..4, 1u32..90).prop_map(|(name, queues)| Step::GrowTopic(name, queues)),
        1 => (0u8..4).prop_map(Step::DeleteTopic),
        2 => (0u8..3).prop_map(Step::CreateGroup),
        1 => (0u8..3).prop_map(Step::DeleteGroup),
        6 => (1u32..7, 0u8..5, proptest::collection::vec(any::<u16>(), 1..4))
            .prop_map(|(topic, lite, ids)| Step::SendLite { topic, lite, ids }),
        6 => (1u32..4, 1u32..7, 0u8..3, 0u8..5, proptest::collection::vec(0u8..5, 0..4)).prop_map(
            |(group, topic, client, action, names)| Step::SyncLite { group, topic, client, action, names }
        ),
        6 => (1u32..4, 1u32..7, 0u8..3, 1u32..6)
            .prop_map(|(group, topic, client, max)| Step::ReceiveLite { group, topic, client, max }),
        2 => (any::<usize>(), 0u64..40_000).prop_map(|(which, ms)| Step::Suspend(which, ms)),
        1 => (1u32..7, 1u64..400_000).prop_map(|(topic, ms)| Step::ExpireLite(topic, ms)),
        1 => (1u32..4, any::<bool>()).prop_map(|(group, flag)| Step::SetAttributes(group, flag)),
        1 => (1u32..4, 1u32..4, 0u8..4).prop_map(|(group, topic, n)| Step::SetFilters(group, topic, n)),
        3 => prop_oneof![0u64..30_000, 500_000u64..700_000].prop_map(Step::Pass),
        3 => (0u64..60_000, proptest::option::of(0u64..2_000_000))
            .prop_map(|(retention_ms, log_bytes_max)| Step::Expire { retention_ms, log_bytes_max }),
        3 => proptest::option::of(proptest::collection::vec(any::<usize>(), 1..4)).prop_map(Step::Carry),
        3 => Just(Step::ReleaseLog),
        1 => (1u32..5, proptest::option::of(0u64..60_000)).prop_map(|(topic, ms)| Step::SetRetention(topic, ms)),
        4 => (0u64..700_000).prop_map(Step::Skip),
        1 => proptest::collection::vec(any::<u8>(), 0..40).prop_map(Step::Malformed),
    ];
    proptest::collection::vec(step, count)
}
