//! What a broker group costs by itself: three replicas in this process, each with a runtime of its
//! own, over loopback TCP and real files, with a state machine that only counts.
//!
//! ```text
//! cargo run --release -p ledgermq-raft-store --example group_bench -- [DIRECTORY] [SECONDS] [COMMAND_BYTES]
//! ```
//!
//! Prints the latency with one command in flight, the throughput with 64 and 512 in flight, the
//! syncs and the time a hand-over takes.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use ledgermq_common::{GroupId, LogIndex, NodeId, PhysicalOffset};
use ledgermq_raft_store::io::RealDisk;
use ledgermq_raft_store::store::{StoreConfig, WriterSpawn};
use ledgermq_raft_store::{
    AppliedEntry, ApplyError, EntryId, Environment, Group, GroupConfig, Member, PeerServer, Retention,
    SnapshotReader, StateMachine, TcpConnector, Timings,
};
use tokio::runtime::Runtime;

#[derive(Default)]
struct Counter(AtomicU64);

impl StateMachine for Counter {
    fn applied(&self) -> Option<EntryId> {
        None
    }

    fn apply(&self, entries: &[AppliedEntry], answers: &mut Vec<Bytes>) -> Result<(), ApplyError> {
        self.0.fetch_add(entries.len() as u64, Ordering::Relaxed);
        answers.extend(entries.iter().map(|_| Bytes::new()));
        Ok(())
    }

    fn log_flushed(&self, _: LogIndex) {}

    fn snapshot(&self) -> io::Result<(Option<EntryId>, SnapshotReader)> {
        Ok((None, Box::new(io::empty())))
    }

    fn restore(&self, _: EntryId, _: SnapshotReader) -> io::Result<()> {
        Ok(())
    }

    fn retained_from(&self) -> PhysicalOffset {
        PhysicalOffset::default()
    }
}

fn runtime() -> io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()
}

async fn open(
    directory: PathBuf,
    node: u64,
    members: Vec<Member>,
    listener: std::net::TcpListener,
) -> anyhow_lite::Result<Group> {
    let config = GroupConfig {
        cluster: "bench".to_owned(),
        group: GroupId(1),
        name: "bench".to_owned(),
        node: NodeId(node),
        members,
        timings: Timings::default(),
        retention: Retention::default(),
        store: StoreConfig::in_directory(directory),
    };
    let environment = Environment {
        disk: Arc::new(RealDisk),
        writer: WriterSpawn::Thread,
        connector: Arc::new(TcpConnector),
        proposers: None,
        seed: node,
    };
    let group = Group::open(config, Arc::new(Counter::default()), environment).await?;
    let server = PeerServer::new();
    server.add(&group);
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let incoming = tonic::transport::server::TcpIncoming::from(listener).with_nodelay(Some(true));
    tokio::spawn(PeerServer::transport().add_service(server.service()).serve_with_incoming(incoming));
    Ok(group)
}

/// Any error ends the measurement.
mod anyhow_lite {
    pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;
}

fn leader_of(groups: &[Group]) -> Group {
    loop {
        if let Some(leader) = groups.iter().find(|group| group.leadership().borrow().is_leader_ready) {
            return leader.clone();
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn percentile(sorted: &[Duration], part: f64) -> u128 {
    let at = ((sorted.len() as f64) * part) as usize;
    sorted.get(at.min(sorted.len().saturating_sub(1))).map_or(0, Duration::as_micros)
}

/// Latencies of everything that `in_flight` proposers got acknowledged meanwhile.
async fn drive(
    leader: &Group,
    in_flight: usize,
    command: &Bytes,
    during: Duration,
) -> anyhow_lite::Result<Vec<Duration>> {
    let until = Instant::now() + during;
    let proposers: Vec<_> = (0..in_flight)
        .map(|_| {
            let (leader, command) = (leader.clone(), command.clone());
            tokio::spawn(async move {
                let mut latencies = Vec::new();
                while Instant::now() < until {
                    let began = Instant::now();
                    leader.propose(command.clone()).await?;
                    latencies.push(began.elapsed());
                }
                Ok::<_, ledgermq_raft_store::ProposeError>(latencies)
            })
        })
        .collect();
    let mut all = Vec::new();
    for proposer in proposers {
        all.extend(proposer.await??);
    }
    all.sort_unstable();
    Ok(all)
}

fn main() -> anyhow_lite::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let directory = arguments
        .next()
        .map_or_else(std::env::temp_dir, PathBuf::from)
        .join(format!("group-bench-{}", std::process::id()));
    let seconds: f64 = arguments.next().map_or(Ok(3.0), |text| text.parse())?;
    let command_bytes: usize = arguments.next().map_or(Ok(1024), |text| text.parse())?;
    std::fs::create_dir_all(&directory)?;
    let measured = measure(&directory, Duration::from_secs_f64(seconds), command_bytes);
    std::fs::remove_dir_all(&directory)?;
    measured
}

fn measure(directory: &Path, during: Duration, command_bytes: usize) -> anyhow_lite::Result<()> {
    let mut listeners = Vec::new();
    let mut members = Vec::new();
    for node in 1..=3 {
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        members.push(Member { node: NodeId(node), peer_addr: listener.local_addr()?.to_string() });
        listeners.push(listener);
    }
    let mut runtimes = Vec::new();
    let mut groups = Vec::new();
    for (node, listener) in (1..).zip(listeners) {
        let runtime = runtime()?;
        groups.push(runtime.block_on(open(
            directory.join(format!("node-{node}")),
            node,
            members.clone(),
            listener,
        ))?);
        runtimes.push(runtime);
    }
    let command = Bytes::from(vec![7; command_bytes]);
    for in_flight in [1, 64, 512] {
        let leader = leader_of(&groups);
        // The proposers share the leader's runtime, as the handlers of a broker do.
        let at = groups.iter().position(|group| group.node() == leader.node()).unwrap_or_default();
        let Some(runtime) = runtimes.get(at) else { continue };
        runtime.block_on(async { drive(&leader, in_flight, &command, during / 4).await })?;
        let before = leader.status().writes;
        let began = Instant::now();
        let sorted = runtime.block_on(async { drive(&leader, in_flight, &command, during).await })?;
        let per_second = sorted.len() as f64 / began.elapsed().as_secs_f64();
        let after = leader.status().writes;
        let syncs = (after.syncs - before.syncs).max(1);
        let sync_us = (after.sync_total_us - before.sync_total_us) / syncs;
        println!(
            "{in_flight:>4} in flight: {per_second:>9.0}/s   p50 {:>6} us   p99 {:>6} us   max {:>7} us   {:.1} commands per sync of {sync_us} us",
            percentile(&sorted, 0.5),
            percentile(&sorted, 0.99),
            percentile(&sorted, 1.0),
            sorted.len() as f64 / syncs as f64,
        );
    }
    for _ in 0..3 {
        let leader = leader_of(&groups);
        let began = Instant::now();
        let Some(runtime) = runtimes.first() else { continue };
        runtime.block_on(leader.hand_over(Duration::from_secs(5)))?;
        let heir = leader_of(&groups);
        println!("hand-over from {} to {}: {} ms", leader.node(), heir.node(), began.elapsed().as_millis());
    }
    for (group, runtime) in groups.into_iter().zip(runtimes) {
        runtime.block_on(group.shutdown());
        drop(group);
        runtime.shutdown_background();
    }
    Ok(())
}
