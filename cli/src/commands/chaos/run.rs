//! `chaos run`: one scenario from the start of its cluster to the verdict.

use std::cell::Cell;
use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use ledgermq_checkers::History;
use ledgermq_client::{Client, ClientOptions, ConsumerOptions};
use ledgermq_faultnet::Dice;
use ledgermq_proto::admin::{
    CreateTopicRequest, DeleteTopicRequest, ListTopicsRequest, SetConsumerGroupRequest,
};
use ledgermq_proto::rocketmq::MessageType;
use tokio::time::Instant;

use super::client_processes::{ClientPlan, ClientProcesses, Role};
use super::delay::DelaySender;
use super::leases::{LeaseReceiver, OldHandles};
use super::moments;
use super::nemesis::Nemesis;
use super::overload::Flood;
use super::registers::RegisterClient;
use super::report::{self, Report};
use super::scenario::{self, Fault, Scenario};
use super::transactions::{TransactionSender, checker};
use super::workload::{LEASE, Receiver, Recorder, Sender};
use super::{ClusterKind, exit_code, judge};
use crate::cluster::{Cluster, ClusterPlan, ComposePlan};

const TOPIC: &str = "chaos";
const CONSUMER_GROUP: &str = "chaos-readers";
/// Message groups of one producer: several, so that one that is held does not stop it.
const MESSAGE_GROUPS: u32 = 4;
const READY_WITHIN: Duration = Duration::from_secs(90);
const CREATE_WITHIN: Duration = Duration::from_secs(30);
const STOP_WITHIN: Duration = Duration::from_secs(12);
/// Consumers stop when nothing new came for this long: longer than the lease of a message whose
/// answer was lost, and its redelivery.
const QUIET: Duration = Duration::from_secs(2 * LEASE.as_secs() + 5);
/// Load without a fault at the beginning: what the figures are compared with.
const STEADY: Duration = Duration::from_secs(2);
/// So many power losses under load drop something.
const CUTS_THAT_DROP: u32 = 3;
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);
/// A send is given up only long after the longest failover.
const SEND_DEADLINE: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Workload {
    /// Messages without order.
    Queue,
    /// Messages in order by message group.
    Fifo,
    /// Half messages with their outcomes, some left to the check.
    Transactions,
    /// Messages with a due time, some called back.
    Delay,
    /// Leases that run out, are prolonged, shortened, and changed by old handles.
    Leases,
    /// Settings of consumer groups, written and read as registers.
    Registers,
}

impl Workload {
    /// As it stands in the name of a history; the first kind goes without.
    fn name(self) -> &'static str {
        match self {
            Self::Queue => "",
            Self::Fifo => " fifo",
            Self::Transactions => " transactions",
            Self::Delay => " delay",
            Self::Leases => " leases",
            Self::Registers => " registers",
        }
    }
}

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
    /// Brokers of the cluster, all in one group.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=9))]
    nodes: u64,
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=256))]
    producers: u32,
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    consumers: u32,
    /// Sends per second of all producers together; 0 sends as fast as answers come.
    #[arg(long, default_value_t = 400)]
    rate: u32,
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
}

pub async fn run(arguments: RunArgs) -> anyhow::Result<ExitCode> {
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
    let dir = tempfile::Builder::new().prefix("ledgermq-chaos-").tempdir()?;
    let binary = std::env::current_exe().context("cannot find this binary")?;
    let mut plan = ClusterPlan::new(binary, dir.path());
    plan.brokers = arguments.nodes;
    plan.network_seed = seed;
    plan.faulty_network = arguments.cluster == ClusterKind::Netns;
    arguments.scenario.prepare(&mut plan);
    plan.compose = is_compose
        .then(|| ComposePlan { project: arguments.project.clone(), image: arguments.image.clone() });
    let mut cluster = Cluster::start(plan)?;
    let brokers = u64::try_from(cluster.brokers().count())?;
    ensure!(
        brokers >= arguments.scenario.brokers_min(),
        "{} needs {} brokers, this cluster has {brokers}",
        arguments.scenario.name,
        arguments.scenario.brokers_min()
    );
    let recorder = Arc::new(Recorder::new());
    let has_topic = Cell::new(false);
    let outcome = tokio::select! {
        outcome = exercise(&mut cluster, &arguments, &recorder, &has_topic, seed) => outcome,
        _ = super::super::asked_to_stop() => Err(anyhow::anyhow!("interrupted")),
    };
    let outcome = match &arguments.project {
        Some(project) if has_topic.get() => outcome.and(clear(&cluster, project).await),
        _ => outcome,
    };
    let logs: Vec<PathBuf> = cluster.brokers().map(|member| cluster.log_path(member)).collect();
    if let Err(error) = cluster.stop(STOP_WITHIN).await {
        eprintln!("ledgermq: stopping the cluster: {error:#}");
    }

    let scenario = format!("{}{}", arguments.scenario.name, arguments.workload.name());
    let history = History { scenario, seed, events: recorder.take() };
    std::fs::create_dir_all(&out).with_context(|| format!("cannot make {}", out.display()))?;
    let path = out.join("history.jsonl");
    let file = std::fs::File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    history.write(std::io::BufWriter::new(file))?;
    std::fs::write(out.join("history.edn"), ledgermq_checkers::edn::write(&history))?;
    let proofs = recorder.proofs();
    std::fs::write(
        out.join("faults.txt"),
        proofs.iter().map(|proof| format!("{proof}\n")).collect::<String>(),
    )?;
    let mut moments = Vec::new();
    if !matches!(arguments.scenario.fault, Fault::Clock(_)) {
        for log in &logs {
            moments.extend(moments::in_log(log, recorder.began_unix_ms())?);
        }
        std::fs::write(out.join(moments::FILE), serde_json::to_vec(&moments)?)?;
    }
    let report = Report::of(&history, judge::Ordering::Any, &moments)?;
    report::write(&out, &history, &report)?;
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!("{}\nhistory and report: {}", report.as_text(), out.display());
    }
    if let Err(error) = outcome {
        eprintln!("logs and files of the cluster: {}", dir.keep().display());
        return Err(error.context(format!("seed {seed}")));
    }
    Ok(exit_code(report.outcome))
}

async fn exercise(
    cluster: &mut Cluster,
    arguments: &RunArgs,
    recorder: &Arc<Recorder>,
    has_topic: &Cell<bool>,
    seed: u64,
) -> anyhow::Result<()> {
    cluster.wait_ready(READY_WITHIN).await?;
    let options = ClientOptions { total_deadline: SEND_DEADLINE, ..ClientOptions::default() };
    let producing = Client::connect(&cluster.broker_access_points(), options.clone()).await?;
    let consuming = Client::connect(&cluster.broker_access_points(), options).await?;
    if arguments.project.is_some() {
        must_be_free(&producing).await?;
    }
    has_topic.set(true);
    prepare(&producing, arguments.workload).await?;
    let stop_receiving = Arc::new(AtomicBool::new(false));
    let mut receivers = Vec::new();
    let old_handles = OldHandles::default();
    let consumers = match arguments.workload {
        Workload::Registers => 0,
        _ => arguments.consumers,
    };
    for _ in 0..consumers {
        let options = ConsumerOptions::new(CONSUMER_GROUP)
            .subscribe(TOPIC, "*")
            .await_duration(Duration::from_secs(2))
            .invisible_duration(LEASE);
        if arguments.workload == Workload::Leases {
            let receiver = LeaseReceiver {
                consumer: consuming.simple_consumer(options),
                recorder: Arc::clone(recorder),
                group: CONSUMER_GROUP.to_owned(),
                old_handles: Arc::clone(&old_handles),
                stop: Arc::clone(&stop_receiving),
            };
            receivers.push(tokio::spawn(receiver.run()));
            continue;
        }
        let receiver = Receiver {
            consumer: consuming.simple_consumer(options),
            recorder: Arc::clone(recorder),
            group: CONSUMER_GROUP.to_owned(),
            stop: Arc::clone(&stop_receiving),
        };
        receivers.push(tokio::spawn(receiver.run()));
    }
    let stop_sending = Arc::new(AtomicBool::new(false));
    let pause = match arguments.rate {
        0 => Duration::ZERO,
        rate => Duration::from_secs_f64(f64::from(arguments.producers) / f64::from(rate)),
    };
    let mut senders = Vec::new();
    for producer in 0..arguments.producers {
        let (recorder, stop) = (Arc::clone(recorder), Arc::clone(&stop_sending));
        let (topic, body_bytes) = (TOPIC.to_owned(), arguments.body_bytes());
        if arguments.workload == Workload::Transactions {
            let producer = producing.transactional_producer([TOPIC], checker(Arc::clone(&recorder)));
            let sender = TransactionSender { producer, recorder, topic, body_bytes, pause, stop };
            senders.push(tokio::spawn(sender.run()));
            continue;
        }
        if arguments.workload == Workload::Registers {
            let client = RegisterClient { admin: producing.admin(), recorder, pause, stop };
            senders.push(tokio::spawn(client.run()));
            continue;
        }
        if arguments.workload == Workload::Delay {
            let producer = producing.producer();
            let sender = DelaySender { producer, recorder, topic, body_bytes, pause, stop };
            senders.push(tokio::spawn(sender.run()));
            continue;
        }
        let message_groups = match arguments.workload {
            Workload::Fifo => (0..MESSAGE_GROUPS).map(|group| format!("{producer}-{group}")).collect(),
            _ => Vec::new(),
        };
        let producer = producing.producer();
        let sender = Sender { producer, recorder, topic, body_bytes, message_groups, pause, stop };
        senders.push(tokio::spawn(sender.run()));
    }
    let mut clients = match arguments.scenario.fault {
        Fault::Client(_) => Some(client_processes(cluster, arguments, recorder, pause)?),
        _ => None,
    };
    let flood = (arguments.scenario.fault == Fault::Overload).then(|| Flood {
        client: producing.clone(),
        recorder: Arc::clone(recorder),
        topic: TOPIC.to_owned(),
        body_bytes: arguments.body_bytes(),
    });
    let quiet = arguments.json || !std::io::stderr().is_terminal();
    let progress = tokio::spawn(show_progress(Arc::clone(recorder), quiet));
    let outcome = torment(cluster, arguments, recorder, clients.as_mut(), flood, seed).await;
    if let Some(clients) = &mut clients {
        clients.finish(Role::Producer).await?;
    }
    stop_sending.store(true, Ordering::Relaxed);
    for sender in senders {
        sender.await.context("a producer ended early")?;
    }
    while recorder.open() > 0 && recorder.quiet_for() < QUIET {
        tokio::time::sleep(PROGRESS_INTERVAL).await;
    }
    if let Some(clients) = &mut clients {
        clients.finish(Role::Consumer).await?;
    }
    stop_receiving.store(true, Ordering::Relaxed);
    for receiver in receivers {
        receiver.await.context("a consumer ended early")?;
    }
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
    let mut injected = 0;
    while Instant::now() < ends && injected < arguments.injections {
        if arguments.scenario.fault == Fault::None {
            tokio::time::sleep_until(ends).await;
            break;
        }
        nemesis.inject().await?;
        injected += 1;
        let more = nemesis.dice.below(arguments.pause_ms / 2 + 1);
        tokio::time::sleep(Duration::from_millis(arguments.pause_ms + more)).await;
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

/// Besides the load of this process, which stays.
fn client_processes(
    cluster: &Cluster,
    arguments: &RunArgs,
    recorder: &Arc<Recorder>,
    pause: Duration,
) -> anyhow::Result<ClientProcesses> {
    ensure!(arguments.workload == Workload::Queue, "clients fail with --workload queue only");
    let plan = ClientPlan {
        binary: std::env::current_exe().context("cannot find this binary")?,
        points: cluster.broker_access_points(),
        topic: TOPIC.to_owned(),
        group: CONSUMER_GROUP.to_owned(),
        pause,
        body_bytes: arguments.body_bytes(),
    };
    ClientProcesses::start(plan, Arc::clone(recorder))
}

/// The topic of the workload's type, and a consumer group that keeps order where there is one.
async fn prepare(client: &Client, workload: Workload) -> anyhow::Result<()> {
    let message_type = match workload {
        Workload::Queue | Workload::Leases | Workload::Registers => MessageType::Normal,
        Workload::Fifo => MessageType::Fifo,
        Workload::Transactions => MessageType::Transaction,
        Workload::Delay => MessageType::Delay,
    };
    let request = CreateTopicRequest {
        name: TOPIC.to_owned(),
        queues: 8,
        message_type: message_type as i32,
        groups: Vec::new(),
    };
    let created = tokio::time::timeout(CREATE_WITHIN, client.admin().create_topic(request)).await;
    created.context("the topic could not be created in time")??;
    if workload == Workload::Fifo {
        let request = SetConsumerGroupRequest {
            name: CONSUMER_GROUP.to_owned(),
            fifo: Some(true),
            ..SetConsumerGroupRequest::default()
        };
        let set = tokio::time::timeout(CREATE_WITHIN, client.admin().set_consumer_group(request)).await;
        set.context("the consumer group could not be set in time")??;
    }
    Ok(())
}

/// Somebody's own cluster may have a topic of this name, or that of an earlier run with its messages.
async fn must_be_free(client: &Client) -> anyhow::Result<()> {
    let topics = client.admin().list_topics(ListTopicsRequest {}).await?.topics;
    ensure!(
        topics.iter().all(|topic| topic.name != TOPIC),
        "this cluster has a topic {TOPIC} already; `ledgermq admin topic delete {TOPIC}` removes it with its messages"
    );
    Ok(())
}

/// Takes the topic of the run out of a cluster that goes on.
async fn clear(cluster: &Cluster, project: &str) -> anyhow::Result<()> {
    let client = Client::connect(&cluster.broker_access_points(), ClientOptions::default()).await?;
    let request = DeleteTopicRequest { name: TOPIC.to_owned() };
    client
        .admin()
        .delete_topic(request)
        .await
        .map(|_| ())
        .with_context(|| format!("the topic {TOPIC} stays in project {project}"))
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
