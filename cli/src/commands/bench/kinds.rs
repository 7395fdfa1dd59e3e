//! `ledgermq bench kinds`: each kind of message on a cluster of its own on this machine, one after the other:
//! transactions, order, delivery, filters, timers.
//!
//! Beside each row stands what the machine allows, measured in the same sitting: how many the disk could take
//! in sequence at the bytes this row wrote to three logs on it, and how many its processors could serve at
//! the time the servers took for one. The load generator's own share is in neither.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use comfy_table::{Table, presets};
use ledgermq_bench::Latency;
use ledgermq_bench::cost::{Cost, CostSample};
use ledgermq_bench::drain::{self, BUCKETS, BacklogSpec, DrainReport, DrainSpec};
use ledgermq_bench::firing::{self, FiringSpec};
use ledgermq_bench::in_order::{self, InOrderSpec};
use ledgermq_bench::transactions::{self, TransactionsReport, TransactionsSpec, Unit};
use ledgermq_client::{Client, ClientOptions, Filter};
use ledgermq_proto::admin::SetConsumerGroupRequest;
use ledgermq_proto::rocketmq::MessageType;
use serde::Serialize;
use serde_json::{Value, json};

use super::own_cluster::{ClusterArgs, OwnCluster, on_own_cluster};
use super::{create, disk_as_json, disk_in_words};

/// Of a cluster of its own; all lie on the disk that is measured.
const REPLICAS: f64 = 3.0;
const PRODUCERS: usize = 8;
const IN_FLIGHT: usize = 64;
const CONSUMERS: usize = 8;
/// Receives in flight of each consumer: by 32, in order, one message at a time.
const BY_32_IN_FLIGHT: usize = 16;
const ORDERED_IN_FLIGHT: usize = 4;
const ONE_BY_ONE_IN_FLIGHT: usize = 64;
const WARM_UP: Duration = Duration::from_secs(1);
const DRAINED_WITHIN: Duration = Duration::from_secs(900);
const TIMER_BYTES: usize = 100;
/// A consumer of timers waits this long before the first is due.
const CONSUMER_STARTS: Duration = Duration::from_secs(1);
const BACKLOG_TOPIC: &str = "bench-backlog";
/// Each property of a backlog's message is in one of them, and every message passes.
const SQL_FOR_ALL: &str = "region IN ('eu', 'us', 'ap') AND amount BETWEEN 0 AND 499 AND price > 0.1 AND \
     (kind = 'order' OR kind = 'refund') AND customer IS NOT NULL";
const TAGS_FOR_ALL: &str = "tag-0 || tag-1 || tag-2 || tag-3";

#[derive(Debug, Args)]
pub struct KindsArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// How long is sent in the rows that send.
    #[arg(long, default_value_t = 5, value_name = "SECONDS")]
    duration: u64,
    #[arg(long, default_value_t = 1024, value_name = "BYTES")]
    message_size: usize,
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(512..))]
    message_groups: u64,
    /// Messages that are received in each of the rows of delivery and filters.
    #[arg(long, default_value_t = 200_000, value_parser = clap::value_parser!(u64).range(100..))]
    backlog: u64,
    /// Timers that wait when the first comes due.
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(100..))]
    timers: u64,
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(1..))]
    timers_per_second: u64,
    /// Only the rows of these: transactions, order, delivery, filters, timers. May be repeated.
    #[arg(long, value_name = "ROWS")]
    only: Vec<Rows>,
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Rows {
    Transactions,
    Order,
    Delivery,
    Filters,
    Timers,
}

struct Bench {
    arguments: KindsArgs,
    own: OwnCluster,
    rows: Vec<Value>,
    table: Table,
}

/// What one unit of a row cost the servers, and what the machine allows at that.
#[derive(Debug, Clone, Copy, Serialize)]
struct Each {
    units: u64,
    log_bytes_each: f64,
    server_cost: Cost,
    disk_allows_per_second: Option<f64>,
    cpu_allows_per_second: Option<f64>,
}

impl Each {
    fn cpu_us(&self) -> f64 {
        self.server_cost.cpu_seconds_per_million.unwrap_or_default()
    }
}

/// What the servers had used when a row began.
struct Begun {
    cost: CostSample,
    log_bytes: u64,
}

pub async fn run(arguments: KindsArgs) -> anyhow::Result<ExitCode> {
    let cluster = arguments.cluster.clone();
    let bench = on_own_cluster(&cluster, |own| measure(own, arguments)).await?;
    if bench.arguments.json {
        println!("{}", json!({ "disk": disk_as_json(&bench.own.disk), "rows": bench.rows }));
    } else {
        println!("{}\n\n{}", disk_in_words(&bench.own.disk), bench.table);
    }
    Ok(ExitCode::SUCCESS)
}

async fn measure(own: OwnCluster, arguments: KindsArgs) -> anyhow::Result<Bench> {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header([
        "ROW",
        "PER SECOND",
        "P50",
        "P99",
        "MAX",
        "LOG BYTES EACH",
        "SERVER CPU-S PER MILLION",
        "DISK ALLOWS PER S",
        "CPU ALLOWS PER S",
        "SEEN AND TARGET",
    ]);
    let mut bench = Bench { arguments, own, rows: Vec::new(), table };
    if bench.wants(Rows::Transactions) {
        bench.transactions().await.context("rows of transactions")?;
    }
    if bench.wants(Rows::Order) {
        bench.order().await.context("rows of order")?;
    }
    if bench.wants(Rows::Delivery) || bench.wants(Rows::Filters) {
        bench.fill().await.context("filling the backlog")?;
        let every = bench.delivery().await.context("rows of delivery")?;
        if bench.wants(Rows::Filters) {
            bench.filters(&every).await.context("rows of filters")?;
        }
    }
    if bench.wants(Rows::Timers) {
        bench.timers().await.context("row of timers")?;
    }
    Ok(bench)
}

impl Bench {
    fn wants(&self, rows: Rows) -> bool {
        self.arguments.only.is_empty() || self.arguments.only.contains(&rows)
    }

    async fn begin(&self) -> anyhow::Result<Begun> {
        Ok(Begun { cost: self.own.cost()?, log_bytes: self.own.log_bytes().await? })
    }

    async fn each(&self, begun: &Begun, units: u64) -> anyhow::Result<Each> {
        let log_bytes_each = (self.own.log_bytes().await? - begun.log_bytes) as f64 / units.max(1) as f64;
        let server_cost = begun.cost.until(&self.own.cost()?, units);
        let on_disk = log_bytes_each * REPLICAS;
        let processors = std::thread::available_parallelism()?.get() as f64;
        let cpu_each = server_cost.cpu_seconds_per_million.unwrap_or_default() / 1e6;
        Ok(Each {
            units,
            log_bytes_each,
            server_cost,
            disk_allows_per_second: (on_disk > 0.0)
                .then(|| self.own.disk.sequential_bytes_per_second / on_disk),
            cpu_allows_per_second: (cpu_each > 0.0).then(|| processors / cpu_each),
        })
    }

    fn row(
        &mut self,
        name: &str,
        per_second: f64,
        latency: Option<&Latency>,
        each: &Each,
        seen: &str,
        result: Value,
    ) {
        let at =
            |figure: fn(&Latency) -> f64| latency.map_or_else(String::new, |latency| time(figure(latency)));
        let number =
            |figure: Option<f64>| figure.map_or_else(|| "–".to_owned(), |figure| format!("{figure:.0}"));
        self.table.add_row([
            name.to_owned(),
            format!("{per_second:.0}"),
            at(|latency| latency.p50_us),
            at(|latency| latency.p99_us),
            at(|latency| latency.max_us),
            format!("{:.0}", each.log_bytes_each),
            format!("{:.1}", each.cpu_us()),
            number(each.disk_allows_per_second),
            number(each.cpu_allows_per_second),
            seen.to_owned(),
        ]);
        self.rows.push(json!({ "name": name, "seen": seen, "result": result, "each": each }));
    }

    async fn topic(&self, name: &str, message_type: MessageType) -> anyhow::Result<Client> {
        let client = Client::connect(&self.own.endpoint, ClientOptions::default()).await?;
        create(&client, name, message_type).await?;
        Ok(client)
    }

    async fn transactions(&mut self) -> anyhow::Result<()> {
        let size = self.arguments.message_size;
        // Under more than the machine can do, requests are sent twice, and their repeats are in the log too:
        // what one takes is seen best with one in flight.
        for (producers, in_flight) in [(1, 1), (PRODUCERS, IN_FLIGHT)] {
            let load = format!("of {size} B, {producers} × {in_flight}");
            let (sent, message) = self.units(Unit::Message, producers, in_flight).await?;
            let syncs = format!("one fdatasync takes {}", time(self.own.disk.fdatasync.p50_us));
            let result = serde_json::to_value(&sent)?;
            let name = format!("messages {load}");
            self.row(&name, sent.per_second, Some(&sent.latency), &message, &syncs, result);

            let (sent, each) = self.units(Unit::Transaction, producers, in_flight).await?;
            let ratio = each.log_bytes_each / message.log_bytes_each;
            let seen = format!("{ratio:.3} × the log bytes of a message; ≤ 1.15 ×");
            let mut result = serde_json::to_value(&sent)?;
            result["log_bytes_over_those_of_a_message"] = ratio.into();
            let name = format!("transactions {load}");
            self.row(&name, sent.per_second, Some(&sent.latency), &each, &seen, result);
        }
        Ok(())
    }

    async fn units(
        &self,
        unit: Unit,
        producers: usize,
        in_flight: usize,
    ) -> anyhow::Result<(TransactionsReport, Each)> {
        let (topic, message_type) = match unit {
            Unit::Message => ("bench-messages", MessageType::Normal),
            Unit::Transaction => ("bench-transactions", MessageType::Transaction),
        };
        self.topic(topic, message_type).await?;
        let spec = TransactionsSpec {
            endpoint: self.own.endpoint.clone(),
            options: ClientOptions::default(),
            topic: topic.to_owned(),
            unit,
            message_size_bytes: self.arguments.message_size,
            producers,
            in_flight,
            duration: Duration::from_secs(self.arguments.duration),
        };
        transactions::run(&TransactionsSpec { duration: WARM_UP, ..spec.clone() }).await?;
        let begun = self.begin().await?;
        let sent = transactions::run(&spec).await?;
        let each = self.each(&begun, sent.units).await?;
        Ok((sent, each))
    }

    async fn order(&mut self) -> anyhow::Result<()> {
        let (topic, group) = ("bench-order", "bench-order-readers");
        let client = self.topic(topic, MessageType::Fifo).await?;
        let request =
            SetConsumerGroupRequest { name: group.to_owned(), fifo: Some(true), ..Default::default() };
        client.admin().set_consumer_group(request).await?;
        let groups = self.arguments.message_groups;
        let spec = InOrderSpec {
            endpoint: self.own.endpoint.clone(),
            options: ClientOptions::default(),
            topic: topic.to_owned(),
            message_groups: groups,
            message_size_bytes: self.arguments.message_size,
            producers: PRODUCERS,
            in_flight: IN_FLIGHT,
            duration: Duration::from_secs(self.arguments.duration),
        };
        let begun = self.begin().await?;
        let sent = in_order::run(&spec).await?;
        let each = self.each(&begun, sent.messages).await?;
        let name = format!("{groups} message groups, sent");
        let used = format!("{} groups used", sent.message_groups);
        let result = serde_json::to_value(&sent)?;
        self.row(&name, sent.messages_per_second, Some(&sent.latency), &each, &used, result);

        let begun = self.begin().await?;
        let spec = DrainSpec {
            topic: topic.to_owned(),
            group: group.to_owned(),
            messages: sent.messages,
            in_order: true,
            ..self.drain_spec("*", ORDERED_IN_FLIGHT, 32)
        };
        let received = drain::run(&spec).await?;
        let each = self.each(&begun, received.messages).await?;
        let name = format!("{groups} message groups, received by 32 and acknowledged");
        self.drained(&name, &received, &each, "order checked".to_owned())
    }

    fn drain_spec(&self, tags: &str, in_flight: usize, batch: u32) -> DrainSpec {
        DrainSpec {
            endpoint: self.own.endpoint.clone(),
            options: ClientOptions::default(),
            topic: BACKLOG_TOPIC.to_owned(),
            group: String::new(),
            filter: Filter::Tags(tags.to_owned()),
            messages: self.arguments.backlog,
            consumers: CONSUMERS,
            in_flight,
            batch,
            in_order: false,
            within: DRAINED_WITHIN,
        }
    }

    fn drained(&mut self, name: &str, report: &DrainReport, each: &Each, seen: String) -> anyhow::Result<()> {
        // Of the backlog, not of what a filter let through.
        let per_second = each.units as f64 / report.seconds.max(f64::MIN_POSITIVE);
        let failed = report.failed_receives;
        let seen = if failed == 0 { seen } else { format!("{seen}; {failed} receives failed") };
        let result = serde_json::to_value(report)?;
        self.row(name, per_second, Some(&report.receive_latency), each, &seen, result);
        Ok(())
    }

    async fn fill(&self) -> anyhow::Result<()> {
        self.topic(BACKLOG_TOPIC, MessageType::Normal).await?;
        let spec = BacklogSpec {
            endpoint: self.own.endpoint.clone(),
            options: ClientOptions::default(),
            topic: BACKLOG_TOPIC.to_owned(),
            messages: self.arguments.backlog,
            message_size_bytes: self.arguments.message_size,
        };
        drain::fill(&spec).await
    }

    /// A pass over the backlog by a consumer group of its own.
    async fn pass(&self, spec: DrainSpec) -> anyhow::Result<(DrainReport, Each)> {
        let begun = self.begin().await?;
        let report = drain::run(&spec).await?;
        let each = self.each(&begun, self.arguments.backlog).await?;
        Ok((report, each))
    }

    /// Answers the cost of a pass without a filter, by 32.
    async fn delivery(&mut self) -> anyhow::Result<Each> {
        if self.wants(Rows::Delivery) {
            let spec = DrainSpec {
                group: "bench-one-by-one".to_owned(),
                ..self.drain_spec("*", ONE_BY_ONE_IN_FLIGHT, 1)
            };
            let (report, each) = self.pass(spec).await?;
            self.drained("received and acknowledged one by one", &report, &each, "≥ 25 k/s".to_owned())?;
        }
        let spec = DrainSpec { group: "bench-by-32".to_owned(), ..self.drain_spec("*", BY_32_IN_FLIGHT, 32) };
        let (report, each) = self.pass(spec).await?;
        self.drained("received and acknowledged by 32", &report, &each, "≥ 100 k/s".to_owned())?;
        Ok(each)
    }

    async fn filters(&mut self, every: &Each) -> anyhow::Result<()> {
        let backlog = self.arguments.backlog;
        let passes = [
            ("by 32, tags that let all through", Filter::Tags(TAGS_FOR_ALL.to_owned()), backlog),
            ("by 32, SQL that lets all through", Filter::Sql(SQL_FOR_ALL.to_owned()), backlog),
            ("by 32, tag of one in four", Filter::Tags("tag-0".to_owned()), backlog.div_ceil(4)),
            (
                "by 32, SQL for one in a hundred",
                Filter::Sql("bucket = 0".to_owned()),
                backlog.div_ceil(BUCKETS),
            ),
        ];
        for (number, (name, filter, messages)) in passes.into_iter().enumerate() {
            let group = format!("bench-filter-{number}");
            let spec = DrainSpec { group, filter, messages, ..self.drain_spec("*", BY_32_IN_FLIGHT, 32) };
            let (report, each) = self.pass(spec).await?;
            let seen = if messages == backlog {
                let more = each.cpu_us() - every.cpu_us();
                format!("{more:+.2} µs of server CPU per message against no filter")
            } else {
                format!("{:.2} µs of server CPU per message looked at", each.cpu_us())
            };
            self.drained(name, &report, &each, seen)?;
        }
        Ok(())
    }

    async fn timers(&mut self) -> anyhow::Result<()> {
        let spec = FiringSpec {
            endpoint: self.own.endpoint.clone(),
            options: ClientOptions::default(),
            topic: "bench-timers".to_owned(),
            timers: self.arguments.timers,
            timers_per_second: self.arguments.timers_per_second,
            message_size_bytes: TIMER_BYTES,
        };
        let stored = firing::prepare(spec).await?;
        tokio::time::sleep(stored.time_left().saturating_sub(CONSUMER_STARTS)).await;
        let begun = self.begin().await?;
        let report = stored.fire().await?;
        let each = self.each(&begun, report.fired).await?;
        let name =
            format!("{} timers pending, {} due per second: late", report.pending, report.asked_per_second);
        let seen = format!(
            "arrived late p50 {}, p99 {}, max {}; {} early; ≤ 100 ms p99",
            time(report.arrived_late.p50_us),
            time(report.arrived_late.p99_us),
            time(report.arrived_late.max_us),
            report.early
        );
        let result = serde_json::to_value(&report)?;
        self.row(&name, report.fired_per_second, Some(&report.fired_late), &each, &seen, result);
        Ok(())
    }
}

fn time(us: f64) -> String {
    if us >= 10_000.0 { format!("{:.0} ms", us / 1e3) } else { format!("{us:.0} µs") }
}
