//! `ledgermq send`.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use ledgermq_client::Message;
use ledgermq_common::clock::{Clock as _, SystemClock};

use super::connection::ConnectionArgs;

#[derive(Debug, Args)]
pub struct SendArgs {
    #[command(flatten)]
    connection: ConnectionArgs,
    #[arg(long)]
    topic: String,
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
    let mut message = Message::new(&arguments.topic, body);
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
