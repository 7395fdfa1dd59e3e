//! A cluster of its own for a measurement, on the disk that is measured in the same sitting.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use ledgermq_bench::cost::{CostSample, written_to_disk_of};
use ledgermq_bench::disk::{self, Disk};

use crate::cluster::{Cluster, ClusterPlan, Member, http_get};

const READY_WITHIN: Duration = Duration::from_secs(60);
const STOP_WITHIN: Duration = Duration::from_secs(12);
/// As in production.
const SEGMENT_SIZE_BYTES: u64 = 1024 * 1024 * 1024;
/// The first segments are filled with zeros in the background; measuring begins when the disk has
/// been given less than this for a second, or after this time.
const QUIET_BYTES_PER_S: u64 = 4 * 1024 * 1024;
const QUIET_WITHIN: Duration = Duration::from_secs(60);
const LOG_BYTES: &str = "ledgermq_commitlog_written_bytes_total{";

#[derive(Debug, Clone, Args)]
pub struct ClusterArgs {
    /// The cluster's files go into a new directory here; choose the disk that is to be measured.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Threads of each broker; 0 is one per core.
    #[arg(long, default_value_t = 1)]
    worker_threads: usize,
    /// A setting of the brokers, as in `--set raft.heartbeat_ms=50`. May be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
}

/// What a measurement knows of its cluster.
pub struct OwnCluster {
    /// The leader first: the figures are of the broker, not of a hop that depends on luck.
    pub endpoint: String,
    pub disk: Disk,
    leader_http: String,
    pids: Vec<u32>,
    dir: PathBuf,
}

/// Measures on a new cluster, whose files are kept where that fails.
pub async fn on_own_cluster<T, F: Future<Output = anyhow::Result<T>>>(
    arguments: &ClusterArgs,
    measure: impl FnOnce(OwnCluster) -> F,
) -> anyhow::Result<T> {
    let binary = std::env::current_exe().context("cannot find this binary")?;
    let mut builder = tempfile::Builder::new();
    builder.prefix("ledgermq-bench-");
    let dir = match &arguments.dir {
        Some(parent) => builder.tempdir_in(parent)?,
        None => builder.tempdir()?,
    };
    let disk = disk::measure(dir.path())?;
    let mut plan = ClusterPlan::new(binary, dir.path());
    plan.worker_threads = arguments.worker_threads;
    plan.segment_size_bytes = SEGMENT_SIZE_BYTES;
    plan.broker_settings = arguments.settings.clone();
    plan.log = "warn".to_owned();
    let mut cluster = Cluster::start(plan)?;
    let measured = async {
        let own = wait_for(&mut cluster, dir.path(), disk).await?;
        measure(own).await
    };
    let outcome = tokio::select! {
        outcome = measured => outcome,
        _ = crate::commands::asked_to_stop() => Err(anyhow::anyhow!("interrupted")),
    };
    let _ = cluster.stop(STOP_WITHIN).await;
    if outcome.is_err() {
        eprintln!("files and logs of the cluster: {}", dir.keep().display());
    }
    outcome
}

async fn wait_for(cluster: &mut Cluster, dir: &Path, disk: Disk) -> anyhow::Result<OwnCluster> {
    cluster.wait_ready(READY_WITHIN).await?;
    let leader = cluster.wait_leader(1, READY_WITHIN).await?;
    let endpoint = format!("{};{}", cluster.access_point(leader)?, cluster.broker_access_points());
    let leader_http = cluster.http_address(leader)?;
    let members: Vec<Member> = cluster.members().collect();
    let pids = members.into_iter().map(|member| cluster.pid(member)).collect::<anyhow::Result<Vec<_>>>()?;
    wait_for_quiet(dir).await;
    Ok(OwnCluster { endpoint, disk, leader_http, pids, dir: dir.to_owned() })
}

async fn wait_for_quiet(dir: &Path) {
    let until = tokio::time::Instant::now() + QUIET_WITHIN;
    let Some(mut before) = written_to_disk_of(dir) else { return };
    while tokio::time::Instant::now() < until {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let Some(now) = written_to_disk_of(dir) else { return };
        if now.saturating_sub(before) < QUIET_BYTES_PER_S {
            return;
        }
        before = now;
    }
}

impl OwnCluster {
    /// What all its processes used so far.
    pub fn cost(&self) -> anyhow::Result<CostSample> {
        CostSample::take(&self.pids, Some(&self.dir))
    }

    /// Bytes the leader wrote to its CommitLog so far.
    pub async fn log_bytes(&self) -> anyhow::Result<u64> {
        let metrics = http_get(&self.leader_http, "/metrics").await?.body;
        let samples = metrics.lines().filter(|line| line.starts_with(LOG_BYTES));
        let values = samples.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
        values.reduce(|sum, value| sum + value).with_context(|| format!("the leader shows no {LOG_BYTES}…}}"))
    }
}
