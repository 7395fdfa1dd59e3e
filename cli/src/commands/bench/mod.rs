//! `ledgermq bench`: the load generator on the command line.

mod kinds;
mod local;
mod own_cluster;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use ledgermq_bench::consume::{self, ConsumeSpec};
use ledgermq_bench::cost::CostSample;
use ledgermq_bench::delayed::{self, DelayedSpec};
use ledgermq_bench::disk::{self, Disk};
use ledgermq_bench::end_to_end::{self, EndToEndSpec};
use ledgermq_bench::produce::{self, ProduceSpec};
use ledgermq_client::Client;
use ledgermq_proto::admin::CreateTopicRequest;
use ledgermq_proto::rocketmq::MessageType;
use serde_json::{Value, json};

use super::connection::ConnectionArgs;

#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Send as fast as the messages in flight allow.
    Produce(ProduceArgs),
    /// Receive and acknowledge as fast as possible.
    Consume(ConsumeArgs),
    /// One message at a time, from send to arrival.
    EndToEnd(EndToEndArgs),
    /// Delayed messages: how late they come while many wait, and how fast many fire.
    Delayed(DelayedArgs),
    /// Measure the disk only.
    Disk {
        #[arg(long, default_value = ".", value_name = "DIR")]
        disk_dir: PathBuf,
    },
    /// Start a cluster on this machine and hold it against the targets.
    Local(local::LocalArgs),
    /// Start a cluster on this machine and measure each kind of message on it.
    Kinds(kinds::KindsArgs),
}

/// What every kind of run takes.
#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    #[command(flatten)]
    connection: ConnectionArgs,
    /// Created unless it exists.
    #[arg(long, default_value = "bench")]
    topic: String,
    #[arg(long, default_value_t = 10, value_name = "SECONDS")]
    duration: u64,
    /// Runs first and is not counted.
    #[arg(long, default_value_t = 2, value_name = "SECONDS")]
    warm_up: u64,
    /// A server process on this machine whose CPU and memory are counted. May be repeated.
    #[arg(long = "server-pid", value_name = "PID")]
    server_pids: Vec<u32>,
    /// Also measure the disk under this directory, the one with the servers' data, and count what it
    /// is given meanwhile.
    #[arg(long, value_name = "DIR")]
    disk_dir: Option<PathBuf>,
    /// Threads of the load generator; more than one costs it efficiency.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub struct ProduceArgs {
    #[command(flatten)]
    run: RunArgs,
    #[arg(long, default_value_t = 1024, value_name = "BYTES")]
    message_size: usize,
    /// Requests in flight of each producer.
    #[arg(long, default_value_t = 64)]
    in_flight: usize,
    /// Each has its own connection.
    #[arg(long, default_value_t = 8)]
    producers: usize,
    /// Messages in each request.
    #[arg(long, default_value_t = 1, value_parser = batch_size)]
    batch: usize,
}

#[derive(Debug, Args)]
pub struct ConsumeArgs {
    #[command(flatten)]
    run: RunArgs,
    #[arg(long, default_value = "bench-readers")]
    group: String,
    /// Each has its own connection.
    #[arg(long, default_value_t = 4)]
    consumers: usize,
    /// Receives in flight of each consumer.
    #[arg(long, default_value_t = 4)]
    in_flight: usize,
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=32))]
    batch: u32,
}

#[derive(Debug, Args)]
pub struct EndToEndArgs {
    #[command(flatten)]
    run: RunArgs,
    #[arg(long, default_value = "bench-end-to-end-readers")]
    group: String,
    #[arg(long, default_value_t = 1024, value_name = "BYTES")]
    message_size: usize,
    #[arg(long, default_value_t = 2_000)]
    messages: u32,
}

#[derive(Debug, Args)]
pub struct DelayedArgs {
    #[command(flatten)]
    run: RunArgs,
    /// Timers that wait, hours ahead.
    #[arg(long, default_value_t = 1_000_000)]
    waiting: u64,
    #[arg(long, default_value_t = 1_000)]
    probes: u32,
    #[arg(long, default_value_t = 50)]
    probes_per_second: u32,
    /// Timers due in the same moment.
    #[arg(long, default_value_t = 100_000)]
    storm: u64,
    #[arg(long, default_value_t = 100, value_name = "BYTES")]
    message_size: usize,
}

pub fn run(command: BenchCommand) -> anyhow::Result<ExitCode> {
    match command {
        BenchCommand::Produce(arguments) => {
            on_threads(arguments.run.threads, async move { show(&arguments.run, produce(&arguments).await?) })
        }
        BenchCommand::Consume(arguments) => {
            on_threads(arguments.run.threads, async move { show(&arguments.run, consume(&arguments).await?) })
        }
        BenchCommand::EndToEnd(arguments) => {
            on_threads(
                arguments.run.threads,
                async move { show(&arguments.run, end_to_end(&arguments).await?) },
            )
        }
        BenchCommand::Delayed(arguments) => {
            on_threads(arguments.run.threads, async move { show(&arguments.run, delayed(&arguments).await?) })
        }
        BenchCommand::Disk { disk_dir } => {
            println!("{}", disk_as_json(&disk::measure(&disk_dir)?));
            Ok(ExitCode::SUCCESS)
        }
        BenchCommand::Local(arguments) => on_threads(1, local::run(arguments)),
        BenchCommand::Kinds(arguments) => on_threads(1, kinds::run(arguments)),
    }
}

async fn produce(arguments: &ProduceArgs) -> anyhow::Result<Value> {
    let run = &arguments.run;
    create_topic(run).await?;
    let spec = ProduceSpec {
        endpoint: run.connection.endpoint.clone(),
        options: run.connection.options()?,
        topic: run.topic.clone(),
        message_size_bytes: arguments.message_size,
        in_flight: arguments.in_flight,
        producers: arguments.producers,
        batch: arguments.batch,
        warm_up: Duration::from_secs(run.warm_up),
        duration: Duration::from_secs(run.duration),
    };
    let mut samples = Samples::new(run);
    let report = {
        let (start, end) = samples.both();
        produce::run(&spec, start, end).await?
    };
    let cost = samples.cost(report.messages)?;
    Ok(json!({
        "kind": "produce",
        "message_size_bytes": arguments.message_size,
        "producers": arguments.producers,
        "in_flight": arguments.in_flight,
        "batch": arguments.batch,
        "result": report,
        "server_cost": cost,
    }))
}

async fn consume(arguments: &ConsumeArgs) -> anyhow::Result<Value> {
    let run = &arguments.run;
    create_topic(run).await?;
    let spec = ConsumeSpec {
        endpoint: run.connection.endpoint.clone(),
        options: run.connection.options()?,
        topic: run.topic.clone(),
        group: arguments.group.clone(),
        consumers: arguments.consumers,
        in_flight: arguments.in_flight,
        batch: arguments.batch,
        warm_up: Duration::from_secs(run.warm_up),
        duration: Duration::from_secs(run.duration),
    };
    let mut samples = Samples::new(run);
    let report = {
        let (start, end) = samples.both();
        consume::run(&spec, start, end).await?
    };
    let cost = samples.cost(report.messages)?;
    Ok(json!({
        "kind": "consume",
        "consumers": arguments.consumers,
        "in_flight": arguments.in_flight,
        "batch": arguments.batch,
        "result": report,
        "server_cost": cost,
    }))
}

async fn end_to_end(arguments: &EndToEndArgs) -> anyhow::Result<Value> {
    let run = &arguments.run;
    create_topic(run).await?;
    let spec = EndToEndSpec {
        endpoint: run.connection.endpoint.clone(),
        options: run.connection.options()?,
        topic: run.topic.clone(),
        group: arguments.group.clone(),
        message_size_bytes: arguments.message_size,
        messages: arguments.messages,
    };
    let report = end_to_end::run(&spec).await?;
    Ok(json!({
        "kind": "end_to_end",
        "message_size_bytes": arguments.message_size,
        "result": report,
    }))
}

async fn delayed(arguments: &DelayedArgs) -> anyhow::Result<Value> {
    let run = &arguments.run;
    let spec = DelayedSpec {
        endpoint: run.connection.endpoint.clone(),
        options: run.connection.options()?,
        topic: run.topic.clone(),
        waiting: arguments.waiting,
        probes: arguments.probes,
        probes_per_second: arguments.probes_per_second,
        storm: arguments.storm,
        message_size_bytes: arguments.message_size,
    };
    let mut samples = Samples::new(run);
    let report = {
        let (start, end) = samples.both();
        start();
        let report = delayed::run(&spec).await?;
        end();
        report
    };
    let cost = samples.cost(report.waiting + report.probes + report.storm)?;
    Ok(json!({
        "kind": "delayed",
        "message_size_bytes": arguments.message_size,
        "result": report,
        "server_cost": cost,
    }))
}

/// Prints a result, with the disk beside it when it was asked for.
fn show(run: &RunArgs, mut result: Value) -> anyhow::Result<ExitCode> {
    if let (Some(dir), Some(object)) = (&run.disk_dir, result.as_object_mut()) {
        object.insert("disk".to_owned(), disk_as_json(&disk::measure(dir)?));
    }
    if run.json {
        println!("{result}");
    } else {
        print_flat("", &result);
    }
    Ok(ExitCode::SUCCESS)
}

fn print_flat(name: &str, value: &Value) {
    match value {
        Value::Object(fields) => {
            for (field, value) in fields {
                let below = if name.is_empty() { field.clone() } else { format!("{name}.{field}") };
                print_flat(&below, value);
            }
        }
        Value::Null => {}
        Value::Number(number) if number.is_f64() => {
            println!("{name:<44} {:>16.1}", number.as_f64().unwrap_or(0.0));
        }
        other => println!("{name:<44} {other:>16}"),
    }
}

fn disk_as_json(disk: &Disk) -> Value {
    json!({
        "fdatasync_p50_us": disk.fdatasync.p50_us,
        "fdatasync_p99_us": disk.fdatasync.p99_us,
        "sequential_bytes_per_second": disk.sequential_bytes_per_second,
    })
}

fn disk_in_words(disk: &Disk) -> String {
    format!(
        "disk: fdatasync of 4 KiB p50 {:.0} µs, p99 {:.0} µs; sequential {:.2} GB/s",
        disk.fdatasync.p50_us,
        disk.fdatasync.p99_us,
        disk.sequential_bytes_per_second / 1e9,
    )
}

async fn create_topic(run: &RunArgs) -> anyhow::Result<()> {
    create(&run.connection.connect().await?, &run.topic, MessageType::Normal).await
}

async fn create(client: &Client, topic: &str, message_type: MessageType) -> anyhow::Result<()> {
    let admin = client.admin();
    let known = admin.list_topics(ledgermq_proto::admin::ListTopicsRequest {}).await?;
    if known.topics.iter().any(|known| known.name == topic) {
        return Ok(());
    }
    let request = CreateTopicRequest {
        name: topic.to_owned(),
        queues: 8,
        message_type: message_type as i32,
        groups: Vec::new(),
    };
    admin.create_topic(request).await.with_context(|| format!("cannot create topic {topic}"))?;
    Ok(())
}

/// What the servers had used at the start and at the end of the counted time.
struct Samples {
    pids: Vec<u32>,
    disk_dir: Option<PathBuf>,
    start: Option<anyhow::Result<CostSample>>,
    end: Option<anyhow::Result<CostSample>>,
}

impl Samples {
    fn new(run: &RunArgs) -> Self {
        Self { pids: run.server_pids.clone(), disk_dir: run.disk_dir.clone(), start: None, end: None }
    }

    fn both(&mut self) -> (impl FnOnce() + '_, impl FnOnce() + '_) {
        let Self { pids, disk_dir, start, end } = self;
        let (pids, disk_dir) = (&*pids, disk_dir.as_deref());
        (
            move || *start = Some(CostSample::take(pids, disk_dir)),
            move || *end = Some(CostSample::take(pids, disk_dir)),
        )
    }

    fn cost(self, messages: u64) -> anyhow::Result<Option<ledgermq_bench::cost::Cost>> {
        match (self.pids.is_empty(), self.start, self.end) {
            (false, Some(start), Some(end)) => Ok(Some(start?.until(&end?, messages))),
            _ => Ok(None),
        }
    }
}

fn on_threads<T>(threads: usize, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    if threads <= 1 {
        return super::block_on(work);
    }
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build()
        .context("the runtime could not be built")?
        .block_on(work)
}

fn batch_size(text: &str) -> Result<usize, String> {
    let max = ledgermq_common::limits::SEND_BATCH_MESSAGES_MAX;
    match text.parse() {
        Ok(size) if (1..=max).contains(&size) => Ok(size),
        _ => Err(format!("expected a whole number from 1 to {max}")),
    }
}
