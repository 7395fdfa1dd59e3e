//! `ledgermq bench local`: a cluster of its own on this machine, one row for each measure, beside
//! the target and beside what the disk did in the same sitting.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use comfy_table::{Table, presets};
use ledgermq_bench::consume::{self, ConsumeSpec};
use ledgermq_bench::cost::Cost;
use ledgermq_bench::end_to_end::{self, EndToEndSpec};
use ledgermq_bench::produce::{self, ProduceSpec};
use ledgermq_client::{Client, ClientOptions};
use ledgermq_proto::rocketmq::MessageType;
use serde_json::{Value, json};

use super::own_cluster::{ClusterArgs, OwnCluster, on_own_cluster};
use super::{create, disk_as_json, disk_in_words};

const IDLE_FOR: Duration = Duration::from_secs(5);
const END_TO_END_MESSAGES: u32 = 1_000;

#[derive(Debug, Args)]
pub struct LocalArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Counted time of each row.
    #[arg(long, default_value_t = 5, value_name = "SECONDS")]
    duration: u64,
    #[arg(long, default_value_t = 1, value_name = "SECONDS")]
    warm_up: u64,
    /// Only rows whose name contains this.
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    #[arg(long)]
    json: bool,
}

struct Load {
    name: &'static str,
    size_bytes: usize,
    producers: usize,
    in_flight: usize,
    batch: usize,
    /// Receive and acknowledge meanwhile, this many messages at a time.
    consume_batch: Option<u32>,
    target: &'static str,
}

const LOADS: [Load; 8] = [
    load("1 KiB, one in flight", 1024, 1, 1, 1, None, "p50 ≤ 210 µs, p99 ≤ 600 µs"),
    load("1 KiB, 1 × 256", 1024, 1, 256, 1, None, "grows with messages in flight"),
    load("1 KiB, 8 × 64", 1024, 8, 64, 1, None, "≥ 40 k/s, ≤ 25 CPU-s per million"),
    load("1 KiB, 8 × 64, batches of 32", 1024, 8, 64, 32, None, "≥ 200 k/s, ≤ 8 CPU-s per million"),
    load("128 B, 8 × 16, batches of 256", 128, 8, 16, 256, None, "≥ 800 k/s"),
    load("16 KiB, 8 × 16", 16 * 1024, 8, 16, 1, None, "≥ 15 k/s"),
    load("1 KiB, 8 × 64, consumed one by one", 1024, 8, 64, 1, Some(1), "consume ≥ 25 k/s"),
    load("1 KiB, 8 × 64 of 32, consumed by 32", 1024, 8, 64, 32, Some(32), "consume ≥ 100 k/s"),
];

const fn load(
    name: &'static str,
    size_bytes: usize,
    producers: usize,
    in_flight: usize,
    batch: usize,
    consume_batch: Option<u32>,
    target: &'static str,
) -> Load {
    Load { name, size_bytes, producers, in_flight, batch, consume_batch, target }
}

struct Bench {
    arguments: LocalArgs,
    own: OwnCluster,
    rows: Vec<Value>,
    table: Table,
}

pub async fn run(arguments: LocalArgs) -> anyhow::Result<ExitCode> {
    let cluster = arguments.cluster.clone();
    let bench = on_own_cluster(&cluster, |own| measure(own, arguments)).await?;
    if bench.arguments.json {
        println!("{}", json!({ "disk": disk_as_json(&bench.own.disk), "rows": bench.rows }));
    } else {
        println!("{}\n\n{}", disk_in_words(&bench.own.disk), bench.table);
    }
    Ok(ExitCode::SUCCESS)
}

async fn measure(own: OwnCluster, arguments: LocalArgs) -> anyhow::Result<Bench> {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header([
        "ROW",
        "PER SECOND",
        "P50 µs",
        "P99 µs",
        "P99.9 µs",
        "CONSUMED PER SECOND",
        "SERVER CPU-S PER MILLION",
        "WRITTEN PER PAYLOAD BYTE",
        "MEMORY MiB",
        "TARGET",
    ]);
    let mut bench = Bench { arguments, own, rows: Vec::new(), table };
    if bench.wants("idle") {
        bench.idle().await?;
    }
    for (number, load) in LOADS.iter().enumerate() {
        if bench.wants(load.name) {
            bench.row(number, load).await.with_context(|| format!("row \"{}\"", load.name))?;
        }
    }
    if bench.wants("end to end, one in flight") {
        bench.end_to_end().await?;
    }
    Ok(bench)
}

impl Bench {
    fn wants(&self, name: &str) -> bool {
        self.arguments.only.as_deref().is_none_or(|only| name.contains(only))
    }

    async fn topic(&self, number: usize) -> anyhow::Result<String> {
        let topic = format!("bench-{number}");
        let client = Client::connect(&self.own.endpoint, ClientOptions::default()).await?;
        create(&client, &topic, MessageType::Normal).await?;
        Ok(topic)
    }

    async fn row(&mut self, number: usize, load: &Load) -> anyhow::Result<()> {
        let topic = self.topic(number).await?;
        let warm_up = Duration::from_secs(self.arguments.warm_up);
        let duration = Duration::from_secs(self.arguments.duration);
        let spec = ProduceSpec {
            endpoint: self.own.endpoint.clone(),
            options: ClientOptions::default(),
            topic: topic.clone(),
            message_size_bytes: load.size_bytes,
            in_flight: load.in_flight,
            producers: load.producers,
            batch: load.batch,
            warm_up,
            duration,
        };
        let consuming = load.consume_batch.map(|batch| {
            let spec = ConsumeSpec {
                endpoint: self.own.endpoint.clone(),
                options: ClientOptions::default(),
                topic,
                group: "bench-readers".to_owned(),
                consumers: 8,
                in_flight: if batch == 1 { 64 } else { 16 },
                batch,
                warm_up,
                duration,
            };
            tokio::spawn(async move { consume::run(&spec, || {}, || {}).await })
        });
        let (mut start, mut end) = (None, None);
        let produced =
            produce::run(&spec, || start = Some(self.own.cost()), || end = Some(self.own.cost())).await?;
        let cost = match (start, end) {
            (Some(start), Some(end)) => start?.until(&end?, produced.messages),
            _ => anyhow::bail!("the servers' cost was not sampled"),
        };
        let consumed = match consuming {
            Some(task) => Some(task.await??),
            None => None,
        };
        let payload = produced.messages as f64 * load.size_bytes as f64;
        let written_per_payload =
            cost.written_bytes.filter(|_| payload > 0.0).map(|written| written as f64 / payload);
        self.table.add_row([
            load.name.to_owned(),
            format!("{:.0}", produced.messages_per_second),
            format!("{:.0}", produced.latency.p50_us),
            format!("{:.0}", produced.latency.p99_us),
            format!("{:.0}", produced.latency.p999_us),
            consumed.as_ref().map_or_else(String::new, |report| format!("{:.0}", report.messages_per_second)),
            cost.cpu_seconds_per_million.map_or_else(|| "–".to_owned(), |cost| format!("{cost:.1}")),
            written_per_payload.map_or_else(|| "–".to_owned(), |ratio| format!("{ratio:.2}")),
            mebibytes(&cost),
            load.target.to_owned(),
        ]);
        self.rows.push(json!({
            "name": load.name,
            "target": load.target,
            "produce": produced,
            "consume": consumed,
            "server_cost": cost,
            "written_bytes_per_payload_byte": written_per_payload,
        }));
        Ok(())
    }

    async fn idle(&mut self) -> anyhow::Result<()> {
        let start = self.own.cost()?;
        tokio::time::sleep(IDLE_FOR).await;
        let cost = start.until(&self.own.cost()?, 0);
        let percent = cost.cpu_seconds / IDLE_FOR.as_secs_f64() * 100.0;
        let target = "≤ 1 % of a core, ≤ 64 MiB";
        let mut row = vec![format!("idle: {percent:.1} % of a core")];
        row.extend(std::iter::repeat_n(String::new(), 7));
        row.extend([mebibytes(&cost), target.to_owned()]);
        self.table.add_row(row);
        self.rows.push(json!({
            "name": "idle",
            "target": target,
            "cpu_percent_of_a_core": percent,
            "resident_bytes_max": cost.resident_bytes_max,
        }));
        Ok(())
    }

    async fn end_to_end(&mut self) -> anyhow::Result<()> {
        let spec = EndToEndSpec {
            endpoint: self.own.endpoint.clone(),
            options: ClientOptions::default(),
            topic: self.topic(LOADS.len()).await?,
            group: "bench-end-to-end-readers".to_owned(),
            message_size_bytes: 1024,
            messages: END_TO_END_MESSAGES,
        };
        let report = end_to_end::run(&spec).await.context("row \"end to end\"")?;
        let target = "≤ 1.5 × send";
        let mut row = vec![
            format!("end to end, one in flight: {:.2} × send", report.ratio),
            String::new(),
            format!("{:.0}", report.arrival.p50_us),
            format!("{:.0}", report.arrival.p99_us),
            format!("{:.0}", report.arrival.p999_us),
        ];
        row.extend(std::iter::repeat_n(String::new(), 4));
        row.push(target.to_owned());
        self.table.add_row(row);
        self.rows.push(json!({ "name": "end to end, one in flight", "target": target, "result": report }));
        Ok(())
    }
}

fn mebibytes(cost: &Cost) -> String {
    format!("{:.0}", cost.resident_bytes_max as f64 / (1024.0 * 1024.0))
}
