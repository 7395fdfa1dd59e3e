//! `ledgermq receive`: receives, prints, and acknowledges; or reads every message of a topic as one
//! instance of many.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};
use ledgermq_client::{BroadcastOptions, ConsumerOptions, Filter, Position, PulledMessage, ReceivedMessage};
use tokio::time::Instant;

use super::connection::ConnectionArgs;

#[derive(Debug, Args)]
pub struct ReceiveArgs {
    #[command(flatten)]
    connection: ConnectionArgs,
    #[arg(long)]
    topic: String,
    /// The consumer group to receive for.
    #[arg(long)]
    group: String,
    /// Tags joined by `||`.
    #[arg(long, default_value = "*")]
    filter: String,
    /// An SQL92 expression over the properties instead, for example "region = 'eu' AND amount > 10".
    #[arg(long, conflicts_with = "filter")]
    sql: Option<String>,
    /// Read this lite topic of a topic of type lite, from what is sent from now on. May be repeated.
    #[arg(long = "lite-topic")]
    lite_topics: Vec<String>,
    /// Receive every message of the topic, whatever other instances of the group receive. The name is
    /// this instance's own; the same one goes on where it was.
    #[arg(long, value_name = "INSTANCE", conflicts_with_all = ["no_ack", "lite_topics"])]
    broadcast: Option<String>,
    /// Where a new instance begins.
    #[arg(long, value_enum, default_value_t = Start::Newest, requires = "broadcast")]
    from: Start,
    /// Stop after this many messages.
    #[arg(long, default_value_t = 1)]
    count: usize,
    /// Stop when nothing arrived for this long.
    #[arg(long, default_value_t = 20_000, value_name = "MS")]
    wait_ms: u64,
    /// Leave the messages to the group: they return when their lease ends.
    #[arg(long)]
    no_ack: bool,
    /// One JSON object per message.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Start {
    /// With what is sent from now on.
    Newest,
    /// With the oldest message that is kept.
    Oldest,
}

pub async fn run(arguments: ReceiveArgs) -> anyhow::Result<ExitCode> {
    if let Some(instance) = &arguments.broadcast {
        return broadcast(&arguments, instance).await;
    }
    let wait = Duration::from_millis(arguments.wait_ms);
    let options = ConsumerOptions::new(&arguments.group).await_duration(wait.min(Duration::from_secs(20)));
    let options = match &arguments.sql {
        Some(sql) => options.subscribe_sql(&arguments.topic, sql),
        None => options.subscribe(&arguments.topic, &arguments.filter),
    };
    let consumer = arguments.connection.connect().await?.simple_consumer(options);
    if !arguments.lite_topics.is_empty() {
        let names: Vec<&str> = arguments.lite_topics.iter().map(String::as_str).collect();
        consumer.subscribe_lite(&arguments.topic, &names).await?;
    }
    let mut received = 0;
    let mut deadline = Instant::now() + wait;
    while received < arguments.count && Instant::now() < deadline {
        let left = u32::try_from(arguments.count - received).unwrap_or(u32::MAX);
        for message in consumer.receive(left).await? {
            print(&message, arguments.json);
            if !arguments.no_ack {
                consumer.ack(&message).await?;
            }
            received += 1;
            deadline = Instant::now() + wait;
        }
    }
    consumer.close().await;
    Ok(if received > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn broadcast(arguments: &ReceiveArgs, instance: &str) -> anyhow::Result<ExitCode> {
    let wait = Duration::from_millis(arguments.wait_ms);
    let start = match arguments.from {
        Start::Newest => Position::End,
        Start::Oldest => Position::Beginning,
    };
    let filter = match &arguments.sql {
        Some(sql) => Filter::Sql(sql.clone()),
        None => Filter::Tags(arguments.filter.clone()),
    };
    let options = BroadcastOptions::new(&arguments.group, instance, &arguments.topic)
        .filter(filter)
        .start(start)
        .await_duration(wait.min(Duration::from_secs(5)));
    let consumer = arguments.connection.connect().await?.broadcast_consumer(options).await?;
    let mut received = 0;
    let mut deadline = Instant::now() + wait;
    // A receive may bring a few more than asked for; they count as received.
    while received < arguments.count && Instant::now() < deadline {
        for message in consumer.receive().await? {
            print_pulled(&message, arguments.json);
            received += 1;
            deadline = Instant::now() + wait;
        }
    }
    consumer.close().await?;
    Ok(if received > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print_pulled(message: &PulledMessage, json: bool) {
    let body = String::from_utf8_lossy(&message.body);
    if !json {
        println!("{body}");
        return;
    }
    let line = serde_json::json!({
        "message_id": message.message_id,
        "topic": message.topic,
        "body": body,
        "tag": message.tag,
        "keys": message.keys,
        "properties": message.properties,
        "message_group": message.message_group,
        "priority": message.priority,
        "broker": message.broker,
        "queue_id": message.queue_id,
        "queue_offset": message.queue_offset,
        "born_timestamp_ms": message.born_timestamp_ms,
        "store_timestamp_ms": message.store_timestamp_ms,
    });
    println!("{line}");
}

fn print(message: &ReceivedMessage, json: bool) {
    let body = String::from_utf8_lossy(&message.body);
    if !json {
        println!("{body}");
        return;
    }
    let line = serde_json::json!({
        "message_id": message.message_id,
        "topic": message.topic,
        "body": body,
        "tag": message.tag,
        "keys": message.keys,
        "properties": message.properties,
        "delivery_attempt": message.delivery_attempt,
        "priority": message.priority,
        "lite_topic": message.lite_topic,
        "broker": message.broker,
        "queue_id": message.queue_id,
        "queue_offset": message.queue_offset,
        "born_timestamp_ms": message.born_timestamp_ms,
        "store_timestamp_ms": message.store_timestamp_ms,
        "receipt_handle": message.receipt_handle,
    });
    println!("{line}");
}
