//! `ledgermq demo`: the product's promise, tried on this machine. A cluster of real processes is
//! loaded through its own protocol while its leader is killed again and again; at the end every
//! acknowledged message must have been consumed exactly once, and no send may have failed.
//!
//! The messages are divided evenly among the kills. In each part the leader is killed when half of
//! the part is sent; the next part begins when all nodes serve again.

mod account;
mod load;

use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use comfy_table::{Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use ledgermq_client::{Client, ClientOptions, ConsumerOptions};
use ledgermq_proto::admin::CreateTopicRequest;
use ledgermq_proto::rocketmq::MessageType;
use tokio::time::Instant;

use crate::cluster::{Cluster, ClusterPlan};
use account::{Account, Verdict};
use load::Pace;

const TOPIC: &str = "demo";
const CONSUMER_GROUP: &str = "demo-readers";
const GROUP: u32 = 1;
const READY_WITHIN: Duration = Duration::from_secs(60);
const STOP_WITHIN: Duration = Duration::from_secs(12);
const CREATE_WITHIN: Duration = Duration::from_secs(30);
/// The consumers stop when nothing new came for this long: longer than the lease of a message
/// whose delivery was lost with a leader.
const QUIET: Duration = Duration::from_secs(15);
/// Each kill needs messages before and after it, or its gap could not be seen.
const MESSAGES_PER_KILL_MIN: u32 = 200;
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

#[derive(Debug, Args)]
pub struct DemoArgs {
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..=100_000_000))]
    messages: u32,
    /// How often the leader is killed.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(0..=10_000))]
    kills: u32,
    /// One JSON object on standard output, and nothing else.
    #[arg(long)]
    json: bool,
    /// Body of each message.
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(8..=1_000_000))]
    message_size: u32,
    /// How long the messages between two kills take to send.
    #[arg(long, default_value_t = 2_000, value_name = "MS")]
    interval_ms: u64,
    /// Keep the cluster's files even when all went well.
    #[arg(long)]
    keep: bool,
}

pub async fn run(arguments: DemoArgs) -> anyhow::Result<ExitCode> {
    let least = arguments.kills.saturating_mul(MESSAGES_PER_KILL_MIN);
    if arguments.messages < least {
        bail!(
            "--messages {} is too few for --kills {}: at least {least}",
            arguments.messages,
            arguments.kills
        );
    }
    let binary = std::env::current_exe().context("cannot find this binary")?;
    let dir = tempfile::Builder::new().prefix("ledgermq-demo-").tempdir()?;
    let mut cluster = Cluster::start(ClusterPlan::new(binary, dir.path()))?;
    let account = Arc::new(Account::new(arguments.messages));
    let outcome = tokio::select! {
        outcome = exercise(&mut cluster, &arguments, &account) => outcome,
        _ = super::asked_to_stop() => Err(anyhow::anyhow!("interrupted")),
    };
    let _ = cluster.stop(STOP_WITHIN).await;
    let good = match &outcome {
        Ok(verdict) => {
            if arguments.json {
                println!("{}", verdict.as_json());
            } else {
                println!("{}", verdict_as_text(verdict));
            }
            verdict.is_good(arguments.kills)
        }
        Err(_) => false,
    };
    if arguments.keep || !good {
        eprintln!("files and logs of the cluster: {}", dir.keep().display());
    }
    outcome.map(|_| if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn exercise(
    cluster: &mut Cluster,
    arguments: &DemoArgs,
    account: &Arc<Account>,
) -> anyhow::Result<Verdict> {
    cluster.wait_ready(READY_WITHIN).await?;
    // The producer knows the brokers, the consumers only the nameserver: both ways are in use.
    let producing = Client::connect(&cluster.broker_access_points(), ClientOptions::default()).await?;
    let consuming = Client::connect(&cluster.nameserver_access_points(), ClientOptions::default()).await?;
    create_topic(&producing).await?;
    let options = ConsumerOptions::new(CONSUMER_GROUP)
        .subscribe(TOPIC, "*")
        .await_duration(Duration::from_secs(5))
        .invisible_duration(Duration::from_secs(10));
    let consumers = load::start_consumers(&consuming.simple_consumer(options), account).await?;

    let parts = arguments.kills.max(1);
    let pace = Arc::new(Pace::new(arguments.messages, parts, Duration::from_millis(arguments.interval_ms)));
    let producer = producing.producer();
    let sending = tokio::spawn(load::send_all(
        producer.clone(),
        account.clone(),
        pace.clone(),
        arguments.message_size as usize,
    ));
    let progress = tokio::spawn(show_progress(account.clone(), arguments.json));
    for part in 0..parts {
        pace.open_part(part);
        if part < arguments.kills {
            account.wait_sent(pace.middle_of(part)).await;
            kill_leader(cluster, account).await?;
        }
    }
    sending.await.context("the producer ended early")?;
    account.wait_consumed_or_quiet(QUIET).await;
    progress.abort();
    for consumer in consumers {
        consumer.abort();
    }
    producer.close().await;
    Ok(account.verdict())
}

async fn create_topic(client: &Client) -> anyhow::Result<()> {
    let request = CreateTopicRequest {
        name: TOPIC.to_owned(),
        queues: 8,
        message_type: MessageType::Normal as i32,
        groups: Vec::new(),
    };
    let created = tokio::time::timeout(CREATE_WITHIN, client.admin().create_topic(request)).await;
    created.context("the topic could not be created in time")??;
    Ok(())
}

async fn kill_leader(cluster: &mut Cluster, account: &Account) -> anyhow::Result<()> {
    let leader = cluster.wait_leader(GROUP, READY_WITHIN).await?;
    let begun = Instant::now();
    let dead = cluster.kill(leader)?;
    account.killed(begun, dead);
    account
        .wait_acked_after_kill(READY_WITHIN)
        .await
        .with_context(|| format!("after the kill of {leader}"))?;
    cluster.restart(leader)?;
    cluster.wait_member_ready(leader, READY_WITHIN).await?;
    if let Some((member, status)) = cluster.fallen()?.into_iter().next() {
        bail!("{member} ended by itself: {status}");
    }
    Ok(())
}

async fn show_progress(account: Arc<Account>, quiet: bool) {
    if quiet || !std::io::stderr().is_terminal() {
        return;
    }
    let bar = ProgressBar::new(u64::from(account.messages()));
    if let Ok(style) = ProgressStyle::with_template("{elapsed_precise} [{bar:32}] {pos}/{len} {msg}") {
        bar.set_style(style.progress_chars("=> "));
    }
    loop {
        let now = account.figures();
        bar.set_position(u64::from(now.consumed));
        bar.set_message(format!(
            "consumed; {} sent, {} acknowledged, {} kills",
            now.sent, now.acked, now.kills
        ));
        tokio::time::sleep(PROGRESS_INTERVAL).await;
    }
}

fn verdict_as_text(verdict: &Verdict) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    for (name, value) in [
        ("sent", verdict.sent),
        ("acknowledged", verdict.acked),
        ("consumed", verdict.consumed),
        ("lost", verdict.lost),
        ("duplicated", verdict.duplicated),
        ("failed sends", verdict.failed_sends),
        ("delivered again before their acknowledgement", verdict.redelivered),
        ("leader kills", u32::try_from(verdict.gaps_ms.len()).unwrap_or(u32::MAX)),
    ] {
        table.add_row([name.to_owned(), value.to_string()]);
    }
    let gaps = verdict.gaps_ms.iter().map(|gap| format!("{gap:.0}")).collect::<Vec<_>>().join(", ");
    table.add_row(["gap in acknowledgements at each kill, ms".to_owned(), gaps]);
    table.add_row([
        "gap p50 / p99 / max, ms".to_owned(),
        format!("{:.0} / {:.0} / {:.0}", verdict.gap_ms(0.5), verdict.gap_ms(0.99), verdict.gap_ms(1.0)),
    ]);
    table.to_string()
}
