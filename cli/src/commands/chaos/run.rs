//! `chaos run`: one scenario from the start of its cluster to the verdict.

use std::cell::Cell;
use std::io::{BufWriter, IsTerminal as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use ledgermq_checkers::compact::Writer;
use ledgermq_checkers::{History, edn};
use ledgermq_client::{Client, ClientOptions};
use ledgermq_common::limits::SEND_BATCH_MESSAGES_MAX;
use ledgermq_faultnet::Dice;
use ledgermq_proto::admin::{DeleteTopicRequest, ListTopicsRequest};
use rustix::fs::FlockOperation;
use tokio::time::Instant;

use super::client_processes::{ClientPlan, ClientProcesses, ROLES, Role};
use super::foreign_clients::ClientChoice;
use super::judge::{self, Evidence};
use super::load::{Load, LoadPlan, Workload};
use super::moments;
use super::nemesis::Nemesis;
use super::overload::Flood;
use super::recorder::Recorder;
use super::replicas::{self, Found};
use super::report::{self, Report};
use super::scenario::{self, Fault, Scenario};
use super::transactions;
use super::{ClusterKind, exit_code};
use crate::cluster::{Cluster, ClusterPlan, ComposePlan};

const READY_WITHIN: Duration = Duration::from_secs(90);
const STOP_WITHIN: Duration = Duration::from_secs(12);
/// Load without a fault at the beginning: what the figures are compared with.
const STEADY: Duration = Duration::from_secs(2);
/// So many power losses under load drop something.
const CUTS_THAT_DROP: u32 = 3;
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);
/// A send is given up only long after the longest failover.
const SEND_DEADLINE: Duration = Duration::from_secs(30);
const HISTORY: &str = "history.jsonl";
const COMPACT_HISTORY: &str = "history.bin";

#[derive(Debug, Args)]
pub struct RunArgs {
    #[arg(long, value_parser = scenario::parse)]
    scenario: Scenario,
    #[arg(long, value_enum, default_value_t = Workload::Queue)]
    workload: Workload,
    /// Seconds of load; faults begin until then.
    #[arg(long, default_value_t = 60, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    duration: u64,
    /// Stop injecting after this many faults.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    injections: u32,
    /// Chooses targets and pauses; a random one unless given.
    #[arg(long)]
    seed: Option<u64>,
    #[arg(long, value_enum, default_value_t = ClusterKind::Local)]
    cluster: ClusterKind,
    /// With `--cluster compose`: a project that runs, and goes on afterwards.
    #[arg(long, value_name = "NAME")]
    project: Option<String>,
    /// With `--cluster compose`: what a project of its own runs.
    #[arg(long, default_value = "ledgermq:local")]
    image: String,
    #[command(flatten)]
    client: ClientChoice,
    /// Brokers of the cluster, all in one group; a compose cluster of its own has 3 or 5.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=9))]
    nodes: u64,
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=256))]
    producers: u32,
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    consumers: u32,
    /// Messages per second of all producers together; 0 sends as fast as answers come.
    #[arg(long, default_value_t = 400)]
    rate: u32,
    /// End the load once so many messages are acknowledged; an error if the time is over before.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    messages: Option<u64>,
    /// Messages of one request; with `--workload queue`.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=SEND_BATCH_MESSAGES_MAX as i64))]
    batch: u32,
    /// Write the history as it happens, in its compact form, and keep none of it in memory: for runs of
    /// millions of messages. Without `history.edn`.
    #[arg(long)]
    compact: bool,
    /// Bytes of a message; 1024 unless the scenario needs others.
    #[arg(long, value_parser = clap::value_parser!(u32).range(8..=1_000_000))]
    message_size: Option<u32>,
    /// How long a fault lasts.
    #[arg(long, default_value_t = 3_000, value_name = "MS")]
    fault_ms: u64,
    /// From the recovery to the next fault, up to half as long again by chance.
    #[arg(long, default_value_t = 2_000, value_name = "MS")]
    pause_ms: u64,
    /// Where history and report go; `chaos-SCENARIO-SEED` unless given.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Print the report as JSON instead of a table.
    #[arg(long)]
    json: bool,
}

impl RunArgs {
    fn body_bytes(&self) -> usize {
        self.message_size.unwrap_or(self.scenario.message_size()) as usize
    }

    fn check(&self) -> anyhow::Result<()> {
        ensure!(self.batch == 1 || self.workload == Workload::Queue, "--batch goes with --workload queue");
        ensure!(
            !self.compact || self.workload.can_be_compact(),
            "--compact goes with --workload queue, fifo, log and groups"
        );
        ensure!(
            !self.compact || !self.has_client_processes(),
            "--compact does not go with clients that are processes and record by themselves"
        );
        if self.has_client_processes() {
            self.client.check(self.workload)?;
        }
        Ok(())
    }

    fn has_client_processes(&self) -> bool {
        matches!(self.scenario.fault, Fault::Client(_)) || self.client.is_foreign()
    }

    fn cluster_plan(&self, dir: &Path, seed: u64) -> anyhow::Result<ClusterPlan> {
        let binary = std::env::current_exe().context("cannot find this binary")?;
        let mut plan = ClusterPlan::new(binary, dir);
        plan.brokers = self.nodes;
        plan.network_seed = seed;
        plan.faulty_network = self.cluster == ClusterKind::Netns;
        if self.workload.kinds().contains(&Workload::Transactions) {
            plan.broker_settings.extend(transactions::BROKER_SETTINGS.map(str::to_owned));
        }
        self.scenario.prepare(&mut plan);
        plan.compose = (self.cluster == ClusterKind::Compose)
            .then(|| ComposePlan { project: self.project.clone(), image: self.image.clone() });
        Ok(plan)
    }
}

pub async fn run(arguments: RunArgs) -> anyhow::Result<ExitCode> {
    arguments.check()?;
    let seed = arguments.seed.unwrap_or_else(random_seed);
    let is_compose = arguments.cluster == ClusterKind::Compose;
    ensure!(is_compose || arguments.project.is_none(), "--project means nothing without --cluster compose");
    let nodes = arguments.project.is_none().then_some(arguments.nodes);
    arguments.scenario.check(arguments.cluster, nodes).map_err(anyhow::Error::msg)?;
    ensure!(
        arguments.project.is_none() || arguments.workload != Workload::Registers,
        "--workload registers leaves settings behind that nothing removes: not with --project"
    );
    let out = arguments
        .out
        .clone()
        .unwrap_or_else(|| PathBuf::from(format!("chaos-{}-{seed}", arguments.scenario.name)));
    std::fs::create_dir_all(&out).with_context(|| format!("cannot make {}", out.display()))?;
    let _folder = locked(&out)?;
    let scenario = format!("{}{}", arguments.scenario.name, arguments.workload.name());
    let recorder = Arc::new(match arguments.compact {
        true => {
            let file = BufWriter::new(create(&out.join(COMPACT_HISTORY))?);
            Recorder::writing(Writer::new(file, &scenario, seed)?)
        }
        false => Recorder::new(arguments.workload.has_several_topics()),
    });
    let dir = tempfile::Builder::new().prefix("ledgermq-chaos-").tempdir()?;
    let mut cluster = Cluster::start(arguments.cluster_plan(dir.path(), seed)?)?;
    let brokers = u64::try_from(cluster.brokers().count())?;
    ensure!(
        brokers >= arguments.scenario.brokers_min(),
        "{} needs {} brokers, this cluster has {brokers}",
        arguments.scenario.name,
        arguments.scenario.brokers_min()
    );
    let has_topic = Cell::new(false);
    let outcome = tokio::select! {
        outcome = exercise(&mut cluster, &arguments, &recorder, &has_topic, seed) => outcome,
        _ = super::super::asked_to_stop() => Err(anyhow::anyhow!("interrupted")),
    };
    let outcome = match &arguments.project {
        Some(project) if has_topic.get() => {
            outcome.and(clear(&cluster, project, &arguments.workload.topics()).await)
        }
        _ => outcome,
    };
    // The disks of containers are not read from here.
    let mut found = (!is_compose).then(Found::default);
    if let Some(found) = &mut found
        && outcome.is_ok()
    {
        found.states(&cluster).await;
    }
    let logs: Vec<PathBuf> = cluster.brokers().map(|member| cluster.log_path(member)).collect();
    let data_dirs: Vec<PathBuf> = cluster.brokers().map(|member| cluster.data_dir(member)).collect();
    let ended = cluster.end(STOP_WITHIN).await;
    let replicas = match found {
        Some(mut found) => {
            let compared = tokio::task::spawn_blocking(move || {
                found.logs(&data_dirs);
                found.verdict()
            });
            Some(compared.await?)
        }
        None => None,
    };
    drop(cluster);

    let events = recorder.take()?;
    let evidence = match arguments.compact {
        true => judge::of_file(&out.join(COMPACT_HISTORY), judge::Ordering::Any)?,
        false => {
            let history = History { scenario, seed, events };
            history.write(BufWriter::new(create(&out.join(HISTORY))?))?;
            std::fs::write(out.join("history.edn"), edn::write(&history))?;
            Evidence::of(&history, judge::Ordering::Any)?
        }
    };
    let proofs = recorder.proofs();
    std::fs::write(
        out.join("faults.txt"),
        proofs.iter().map(|proof| format!("{proof}\n")).collect::<String>(),
    )?;
    if let Some(replicas) = &replicas {
        std::fs::write(out.join(replicas::FILE), serde_json::to_vec(replicas)?)?;
    }
    let mut moments = Vec::new();
    if !matches!(arguments.scenario.fault, Fault::Clock(_)) {
        for log in &logs {
            moments.extend(moments::in_log(log, recorder.began_unix_ms())?);
        }
        std::fs::write(out.join(moments::FILE), serde_json::to_vec(&moments)?)?;
    }
    let report = Report::of(&evidence, replicas, &moments);
    report::write(&out, &evidence, &report)?;
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!("{}\nhistory and report: {}", report.as_text(), out.display());
    }
    if let Err(error) = outcome.and(ended) {
        eprintln!("logs and files of the cluster: {}", dir.keep().display());
        return Err(error.context(format!("seed {seed}")));
    }
    Ok(exit_code(report.outcome))
}

/// Two runs that write the same files spoil both. The lock ends with the process, however it ends.
fn locked(folder: &Path) -> anyhow::Result<std::fs::File> {
    let file = std::fs::File::open(folder).with_context(|| format!("cannot open {}", folder.display()))?;
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)
        .with_context(|| format!("another run writes to {}", folder.display()))?;
    Ok(file)
}

fn create(path: &Path) -> anyhow::Result<std::fs::File> {
    std::fs::File::create(path).with_context(|| format!("cannot write {}", path.display()))
}

async fn exercise(
    cluster: &mut Cluster,
    arguments: &RunArgs,
    recorder: &Arc<Recorder>,
    has_topic: &Cell<bool>,
    seed: u64,
) -> anyhow::Result<()> {
    cluster.wait_ready(READY_WITHIN).await?;
    if arguments.project.is_some() {
        let client = Client::connect(&cluster.broker_access_points(), ClientOptions::default()).await?;
        must_be_free(&client, &arguments.workload.topics()).await?;
    }
    has_topic.set(true);
    let plan = LoadPlan {
        workload: arguments.workload,
        points: cluster.broker_access_points(),
        options: ClientOptions { total_deadline: SEND_DEADLINE, ..ClientOptions::default() },
        producers: if arguments.client.is_foreign() { 0 } else { arguments.producers },
        consumers: arguments.consumers,
        rate: arguments.rate,
        batch: arguments.batch,
        body_bytes: arguments.body_bytes(),
        seed,
    };
    let pause = LoadPlan { producers: arguments.producers, ..plan.clone() }.pause();
    let mut load = Load::start(plan, recorder).await?;
    let mut clients = match arguments.has_client_processes() {
        true => Some(client_processes(cluster, arguments, recorder, &load, pause).await?),
        false => None,
    };
    let flood = (arguments.scenario.fault == Fault::Overload).then(|| Flood {
        points: cluster.broker_access_points(),
        recorder: Arc::clone(recorder),
        topic: arguments.workload.main_topic(),
        body_bytes: arguments.body_bytes(),
    });
    let quiet = arguments.json || !std::io::stderr().is_terminal();
    let progress = tokio::spawn(show_progress(Arc::clone(recorder), quiet));
    let outcome = torment(cluster, arguments, recorder, clients.as_mut(), flood, seed).await;
    if let Some(clients) = &mut clients {
        clients.finish(Role::Producer).await?;
    }
    load.stop_sending().await?;
    load.settle().await;
    if let Some(clients) = &mut clients {
        clients.finish(Role::Consumer).await?;
    }
    load.stop_receiving().await?;
    progress.abort();
    outcome
}

async fn torment(
    cluster: &mut Cluster,
    arguments: &RunArgs,
    recorder: &Arc<Recorder>,
    clients: Option<&mut ClientProcesses>,
    flood: Option<Flood>,
    seed: u64,
) -> anyhow::Result<()> {
    let ends = Instant::now() + Duration::from_secs(arguments.duration);
    tokio::time::sleep(STEADY.min(Duration::from_secs(arguments.duration))).await;
    let mut nemesis = Nemesis {
        cluster,
        recorder: Arc::clone(recorder),
        dice: Dice::new(seed),
        scenario: arguments.scenario,
        fault_time: Duration::from_millis(arguments.fault_ms),
        clients,
        flood,
        dropped_bytes: 0,
    };
    let is_enough = || arguments.messages.is_some_and(|messages| recorder.acknowledged() >= messages);
    let mut injected = 0;
    while Instant::now() < ends && injected < arguments.injections && !is_enough() {
        if arguments.scenario.fault == Fault::None {
            if arguments.messages.is_none() {
                tokio::time::sleep_until(ends).await;
            }
            break;
        }
        nemesis.inject().await?;
        injected += 1;
        let more = nemesis.dice.below(arguments.pause_ms / 2 + 1);
        tokio::time::sleep(Duration::from_millis(arguments.pause_ms + more)).await;
    }
    if let Some(messages) = arguments.messages {
        while !is_enough() && Instant::now() < ends {
            tokio::time::sleep(PROGRESS_INTERVAL).await;
        }
        ensure!(
            is_enough(),
            "{} of {messages} messages were acknowledged within {} s",
            recorder.acknowledged(),
            arguments.duration
        );
    }
    ensure!(
        injected > 0 || arguments.scenario.fault == Fault::None,
        "no fault was injected within {} s",
        arguments.duration
    );
    // One cut may come at a moment when all is synced, under load several do not.
    let must_drop = arguments.scenario.loses_power() && injected >= CUTS_THAT_DROP;
    ensure!(!must_drop || nemesis.dropped_bytes > 0, "none of {injected} power losses dropped anything");
    Ok(())
}

/// Besides the load of this process, which stays; of a foreign client all producers are processes.
async fn client_processes(
    cluster: &Cluster,
    arguments: &RunArgs,
    recorder: &Arc<Recorder>,
    load: &Load,
    pause: Duration,
) -> anyhow::Result<ClientProcesses> {
    let (workload, client) = (arguments.workload, &arguments.client);
    let group = client.group(&workload.main_group());
    let roles = if client.is_foreign() {
        recorder.awaits(&workload.main_topic(), &group);
        if workload == Workload::Fifo {
            load.keep_order(group.clone()).await?;
        }
        let role = |role, count| std::iter::repeat_n(role, count as usize);
        let producers = role(Role::Producer, arguments.producers);
        producers.chain(role(Role::Consumer, arguments.consumers)).collect()
    } else {
        ROLES.to_vec()
    };
    let plan = ClientPlan {
        program: client.program()?,
        roles,
        workload,
        points: cluster.broker_access_points(),
        topic: workload.main_topic(),
        group,
        pause,
        body_bytes: arguments.body_bytes(),
    };
    ClientProcesses::start(plan, Arc::clone(recorder))
}

/// Somebody's own cluster may have a topic of this name, or that of an earlier run with its messages.
async fn must_be_free(client: &Client, wanted: &[String]) -> anyhow::Result<()> {
    let topics = client.admin().list_topics(ListTopicsRequest {}).await?.topics;
    for name in wanted {
        ensure!(
            topics.iter().all(|topic| topic.name != *name),
            "this cluster has a topic {name} already; `ledgermq admin topic delete {name}` removes it with its messages"
        );
    }
    Ok(())
}

/// Takes the topics of the run out of a cluster that goes on.
async fn clear(cluster: &Cluster, project: &str, topics: &[String]) -> anyhow::Result<()> {
    let client = Client::connect(&cluster.broker_access_points(), ClientOptions::default()).await?;
    for name in topics {
        let request = DeleteTopicRequest { name: name.clone() };
        let deleted = client.admin().delete_topic(request).await;
        deleted.with_context(|| format!("the topic {name} stays in project {project}"))?;
    }
    Ok(())
}

async fn show_progress(recorder: Arc<Recorder>, quiet: bool) {
    if quiet {
        return;
    }
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{elapsed_precise} {spinner} {msg}") {
        bar.set_style(style);
    }
    loop {
        bar.set_message(format!(
            "{} acknowledged, {} delivered, {} failed, {} unknown",
            recorder.acknowledged(),
            recorder.delivered(),
            recorder.failed.load(Ordering::Relaxed),
            recorder.unknown.load(Ordering::Relaxed),
        ));
        bar.tick();
        tokio::time::sleep(PROGRESS_INTERVAL).await;
    }
}

/// Different from run to run; whoever wants to repeat one gives it.
pub(super) fn random_seed() -> u64 {
    use std::hash::{BuildHasher as _, Hasher as _};
    std::collections::hash_map::RandomState::new().build_hasher().finish() >> 32
}
