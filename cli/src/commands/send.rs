//! `ledgermq send`.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use ledgermq_client::{Batch, Message, Producer};
use ledgermq_common::clock::{Clock as _, SystemClock};

use super::connection::ConnectionArgs;

#[derive(Debug, Args)]
pub struct SendArgs {
    #[command(flatten)]
    connection: ConnectionArgs,
    /// May be repeated: the message then goes to each of the topics, in one batch that is stored as a
    /// whole or not at all.
    #[arg(long = "topic", required = true)]
    topics: Vec<String>,
    /// The text to send; `-` reads it from standard input.
    #[arg(long)]
    body: String,
    #[arg(long)]
    tag: Option<String>,
    /// May be repeated.
    #[arg(long = "key")]
    keys: Vec<String>,
    /// May be repeated.
    #[arg(long = "property", value_name = "NAME=VALUE")]
    properties: Vec<String>,
    /// Keep the order among messages of this group; the topic must be of type fifo.
    #[arg(long)]
    message_group: Option<String>,
    /// Deliver it this much later; for a topic of type delay.
    #[arg(long, value_name = "MS")]
    delay_ms: Option<u64>,
    /// Higher ones are received first; the topic must be of type priority.
    #[arg(long)]
    priority: Option<u32>,
    /// The lite topic to send to; the topic must be of type lite.
    #[arg(long)]
    lite_topic: Option<String>,
    /// Send the message this many times, each under its own id.
    #[arg(long, default_value_t = 1)]
    count: u32,
    /// One JSON object per message.
    #[arg(long)]
    json: bool,
}

pub async fn run(arguments: SendArgs) -> anyhow::Result<ExitCode> {
    let body = match arguments.body.as_str() {
        "-" => {
            let mut text = Vec::new();
            std::io::Read::read_to_end(&mut std::io::stdin().lock(), &mut text)?;
            text
        }
        text => text.as_bytes().to_vec(),
    };
    let first = arguments.topics.first().context("--topic is missing")?;
    let mut message = Message::new(first, body);
    message.tag = arguments.tag;
    message.keys = arguments.keys;
    message.message_group = arguments.message_group;
    message.priority = arguments.priority;
    message.lite_topic = arguments.lite_topic;
    for property in &arguments.properties {
        let (name, value) = property
            .split_once('=')
            .with_context(|| format!("--property {property}: expected NAME=VALUE"))?;
        message = message.property(name, value);
    }
    if let Some(delay_ms) = arguments.delay_ms {
        message = message.deliver_at(SystemClock.now().saturating_add_ms(delay_ms));
    }
    let producer = arguments.connection.connect().await?.producer();
    for _ in 0..arguments.count {
        if arguments.topics.len() > 1 {
            send_to_all(&producer, &message, &arguments.topics, arguments.json).await?;
            continue;
        }
        let receipt = producer.send(message.clone()).await?;
        if arguments.json {
            let line = serde_json::json!({
                "message_id": receipt.message_id,
                "queue_offset": receipt.queue_offset,
                "attempts": receipt.attempts,
                "recall_handle": receipt.recall_handle,
            });
            println!("{line}");
        } else {
            println!("{}", receipt.message_id);
        }
    }
    producer.close().await;
    Ok(ExitCode::SUCCESS)
}

async fn send_to_all(
    producer: &Producer,
    message: &Message,
    topics: &[String],
    json: bool,
) -> anyhow::Result<()> {
    let batch: Batch =
        topics.iter().map(|topic| Message { topic: topic.clone(), ..message.clone() }).collect();
    let receipt = producer.send_batch(batch).await?;
    for stored in receipt.messages {
        if json {
            let line = serde_json::json!({
                "message_id": stored.message_id,
                "topic": stored.topic,
                "broker": receipt.broker_group,
                "queue_id": stored.queue_id,
                "queue_offset": stored.queue_offset,
                "attempts": receipt.attempts,
            });
            println!("{line}");
        } else {
            println!("{}", stored.message_id);
        }
    }
    Ok(())
}
