//! `/metrics`: the figures kept by the work, and those read from the groups when asked.
//!
//! Series whose number grows with what clients make (topic by consumer group) are cut at
//! [`CONSUMPTION_SERIES_MAX`]; `ledgermq_metrics_series_omitted` says how many were left out.

use std::sync::Arc;

use ledgermq_raft_store::GroupStatus;

use crate::metrics::{Exposition, Kind};
use crate::process::Node;
use crate::state::RetentionView;

const CONSUMPTION_SERIES_MAX: usize = 20_000;

pub fn expose(node: &Arc<Node>) -> String {
    let id = node.id().to_string();
    let mut out =
        Exposition::with_labels(&[("cluster", node.cluster()), ("node_type", "broker"), ("node_id", &id)]);
    node.metrics().expose(&mut out);
    expose_topics(node, &mut out);
    let statuses: Vec<(String, GroupStatus)> =
        node.hosted_groups().map(|hosted| (hosted.name().to_string(), hosted.group().status())).collect();
    expose_raft(&statuses, &mut out);
    expose_syncs(&statuses, &mut out);
    out.family("ledgermq_log_time_seconds", Kind::Gauge, "Log time of this replica, since the Unix epoch.");
    for hosted in node.hosted_groups() {
        out.sample(&[("group", hosted.name().as_str())], seconds(hosted.state().now().get()));
    }
    out.family(
        "ledgermq_system_clock_ahead_seconds",
        Kind::Gauge,
        "How far the system's clock is ahead of the one this node goes by, which does not jump.",
    );
    out.sample(&[], node.clock().system_ahead_ms() as f64 / 1e3);
    out.family("ledgermq_timers_pending", Kind::Gauge, "Delayed messages that wait for their time.");
    for hosted in node.hosted_groups().filter(|hosted| hosted.leads()) {
        out.sample(&[("group", hosted.name().as_str())], hosted.state().timers_pending());
    }
    out.family("rocketmq_half_messages", Kind::Gauge, "Transactions without an outcome.");
    for hosted in node.hosted_groups().filter(|hosted| hosted.leads()) {
        for (topic, halves) in hosted.half_messages() {
            out.sample(&[("group", hosted.name().as_str()), ("topic", &topic)], halves);
        }
    }
    out.family(
        "ledgermq_consumer_group_filters",
        Kind::Gauge,
        "Filters that members of a consumer group have for a topic, where they differ.",
    );
    for hosted in node.hosted_groups().filter(|hosted| hosted.leads()) {
        for (consumer_group, topic, filters) in hosted.differing_filters(CONSUMPTION_SERIES_MAX) {
            let labels = [
                ("group", hosted.name().as_str()),
                ("consumer_group", consumer_group.as_str()),
                ("topic", topic.as_str()),
            ];
            out.sample(&labels, filters);
        }
    }
    expose_retention(node, &mut out);
    out.family("ledgermq_long_polls", Kind::Gauge, "Receives that wait for a message.");
    out.sample(&[], node.long_polls());
    out.into_text()
}

fn seconds(ms: u64) -> f64 {
    ms as f64 / 1e3
}

fn expose_retention(node: &Arc<Node>, out: &mut Exposition) {
    type Figure = fn(&RetentionView) -> u64;
    let families: [(&'static str, Kind, &str, Figure); 5] = [
        ("ledgermq_log_released_bytes", Kind::Gauge, "Nothing below this offset is referred to.", |view| {
            view.released_below.get()
        }),
        ("ledgermq_oldest_retained_seconds", Kind::Gauge, "When the oldest byte kept was stored.", |view| {
            view.oldest_at.map_or(0, |at| at.get() / 1000)
        }),
        ("ledgermq_expired_messages_total", Kind::Counter, "Messages their topics keep no more.", |view| {
            view.expired_messages
        }),
        ("ledgermq_carried_bytes_total", Kind::Counter, "Records stored once more.", |view| {
            view.carried_bytes
        }),
        ("ledgermq_carried_records", Kind::Gauge, "Owed records that were carried.", |view| view.carried_now),
    ];
    for (name, kind, help, figure) in families {
        out.family(name, kind, help);
        for hosted in node.hosted_groups() {
            out.sample(&[("group", hosted.name().as_str())], figure(&hosted.state().retention_view()));
        }
    }
    out.family("ledgermq_log_pinned_bytes", Kind::Gauge, "The oldest byte each kind of reference holds.");
    for hosted in node.hosted_groups().filter(|hosted| hosted.leads()) {
        let pins = hosted.last_look().pins;
        let kinds = [
            ("message", pins.message.map(|pin| pin.0)),
            ("late_message", pins.late.map(|pin| pin.0)),
            ("half", pins.half),
            ("timer", pins.timer),
        ];
        for (kind, at) in kinds {
            if let Some(at) = at {
                out.sample(&[("group", hosted.name().as_str()), ("by", kind)], at.get());
            }
        }
    }
}

fn expose_topics(node: &Arc<Node>, out: &mut Exposition) {
    let mut topics = std::collections::BTreeSet::new();
    let mut consumer_groups = std::collections::BTreeSet::new();
    let mut consumptions = Vec::new();
    for hosted in node.hosted_groups() {
        topics.extend(hosted.topic_names());
        consumer_groups.extend(hosted.consumer_group_names());
        // Only the leader counts: the same lag of every replica would add up to a multiple.
        if hosted.leads() {
            consumptions.extend(hosted.consumptions(CONSUMPTION_SERIES_MAX + 1));
        }
    }
    out.family("rocketmq_topic_number", Kind::Gauge, "Topics.");
    out.sample(&[], topics.len());
    out.family("rocketmq_consumer_group_number", Kind::Gauge, "Consumer groups.");
    out.sample(&[], consumer_groups.len());

    let omitted = consumptions.len().saturating_sub(CONSUMPTION_SERIES_MAX);
    consumptions.truncate(CONSUMPTION_SERIES_MAX);
    out.family("ledgermq_metrics_series_omitted", Kind::Gauge, "Series left out of this answer.");
    out.sample(&[], omitted);
    type Figure = fn(&crate::execution::Consumption) -> u64;
    let families: [(&'static str, &str, Figure); 4] = [
        ("rocketmq_consumer_lag_messages", "Messages not acknowledged.", |c| c.ready + c.inflight),
        ("rocketmq_consumer_inflight_messages", "Delivered, not acknowledged.", |c| c.inflight),
        ("rocketmq_consumer_ready_messages", "Not delivered yet.", |c| c.ready),
        ("ledgermq_expired_unread_messages", "Expired before the group had read them.", |c| c.expired_unread),
    ];
    for (name, help, figure) in families {
        out.family(name, Kind::Gauge, help);
        for consumption in &consumptions {
            let labels = [
                ("consumer_group", consumption.consumer_group.as_str()),
                ("topic", consumption.topic.as_str()),
                ("group", consumption.group.as_str()),
                ("is_retry", "false"),
                ("is_system", "false"),
            ];
            out.sample(&labels, figure(consumption));
        }
    }
}

fn expose_raft(statuses: &[(String, GroupStatus)], out: &mut Exposition) {
    type Figure = fn(&GroupStatus) -> u64;
    let families: [(&'static str, Kind, &str, Figure); 12] = [
        ("ledgermq_raft_has_leader", Kind::Gauge, "1 while this replica knows a leader.", |s| {
            u64::from(s.leader.is_some())
        }),
        ("ledgermq_raft_is_leader", Kind::Gauge, "1 while this replica leads.", |s| u64::from(s.is_leader)),
        (
            "ledgermq_raft_is_voter",
            Kind::Gauge,
            "1 while this replica votes; 0 while it learns the log.",
            |s| u64::from(s.is_voter),
        ),
        ("ledgermq_raft_term", Kind::Gauge, "The term of this replica.", |s| s.term.get()),
        ("ledgermq_raft_leader_changes_total", Kind::Counter, "Leader changes seen since the start.", |s| {
            s.leader_changes
        }),
        ("ledgermq_raft_last_index", Kind::Gauge, "The last entry of the log.", |s| index(s.last)),
        ("ledgermq_raft_flushed_index", Kind::Gauge, "The last entry on this disk.", |s| index(s.flushed)),
        ("ledgermq_raft_commit_index", Kind::Gauge, "The last committed entry.", |s| index(s.committed)),
        ("ledgermq_raft_applied_index", Kind::Gauge, "The last applied entry.", |s| index(s.applied)),
        ("ledgermq_raft_purged_index", Kind::Gauge, "The log is purged up to here.", |s| index(s.purged)),
        ("ledgermq_raft_snapshot_index", Kind::Gauge, "The newest snapshot.", |s| index(s.snapshot)),
        ("rocketmq_storage_size", Kind::Gauge, "Bytes of the CommitLog.", |s| {
            s.physical_end.get().saturating_sub(s.physical_start.get())
        }),
    ];
    for (name, kind, help, figure) in families {
        out.family(name, kind, help);
        for (group, status) in statuses {
            out.sample(&[("group", group)], figure(status));
        }
    }
    out.family("ledgermq_raft_peer_lag_entries", Kind::Gauge, "Entries a peer lacks, as its leader knows.");
    for (group, status) in statuses {
        for peer in &status.peers {
            let node = peer.node.to_string();
            out.sample(&[("group", group), ("peer", &node)], peer.lag_entries);
        }
    }
}

fn expose_syncs(statuses: &[(String, GroupStatus)], out: &mut Exposition) {
    out.family("ledgermq_fsync_seconds", Kind::Histogram, "How long fdatasync of the CommitLog took.");
    for (group, status) in statuses {
        let writes = &status.writes;
        let mut buckets = Vec::new();
        let mut total = 0;
        for (exponent, count) in writes.sync_buckets.iter().enumerate() {
            total += count;
            // The last bucket takes everything above, so it is the infinite one.
            if exponent + 1 < writes.sync_buckets.len() {
                buckets.push(((1u64 << exponent) as f64 / 1e6, total));
            }
        }
        out.cumulative_histogram(&[("group", group)], &buckets, total, writes.sync_total_us as f64 / 1e6);
    }
    out.family("ledgermq_commitlog_written_bytes_total", Kind::Counter, "Bytes written to the CommitLog.");
    for (group, status) in statuses {
        out.sample(&[("group", group)], status.writes.bytes_written);
    }
}

fn index(index: Option<ledgermq_common::LogIndex>) -> u64 {
    index.map_or(0, |i| i.get())
}
