//! `ledgermq admin lite`: the lite topics of a parent and who reads them.

use clap::Subcommand;
use ledgermq_client::Admin;
use ledgermq_proto::admin as wire;
use serde_json::{Value, json};

use super::admin::table;

#[derive(Debug, Subcommand)]
pub enum LiteCommand {
    /// Show the lite topics of a parent topic and their readers.
    Show { topic: String },
    /// Change what is given of a parent topic.
    Set {
        topic: String,
        /// Remove empty lite topics that nobody reads after so many minutes without use; 0 keeps them.
        #[arg(long)]
        expiration_minutes: u32,
    },
}

pub async fn run(admin: &Admin, command: LiteCommand) -> anyhow::Result<(String, Value)> {
    match command {
        LiteCommand::Show { topic } => show(admin, topic).await,
        LiteCommand::Set { topic, expiration_minutes } => {
            let request =
                wire::SetLiteTopicRequest { topic: topic.clone(), expire_after_minutes: expiration_minutes };
            admin.set_lite_topic(request).await?;
            let text = match expiration_minutes {
                0 => format!("empty lite topics of {topic} are kept"),
                minutes => format!("empty lite topics of {topic} go after {minutes} minutes without use"),
            };
            Ok((text, json!({ "topic": topic, "expiration_minutes": expiration_minutes })))
        }
    }
}

async fn show(admin: &Admin, topic: String) -> anyhow::Result<(String, Value)> {
    let mut rows = table(&["group", "lite topic", "first offset", "next offset", "readers"]);
    let mut shown = Vec::new();
    let mut from = None;
    loop {
        let request = wire::ShowLiteTopicsRequest { topic: topic.clone(), from, max: 0 };
        let page = admin.show_lite_topics(request).await?;
        for lite in page.lite_topics {
            let readers: Vec<String> = lite
                .readers
                .iter()
                .map(|reader| format!("{} ({})", reader.client_id, reader.consumer_group))
                .collect();
            rows.add_row([
                lite.group.clone(),
                lite.name.clone(),
                lite.min_offset.to_string(),
                lite.max_offset.to_string(),
                readers.join(", "),
            ]);
            shown.push(json!({
                "group": lite.group, "name": lite.name, "queue": lite.queue,
                "min_offset": lite.min_offset, "max_offset": lite.max_offset, "used_ms": lite.used_ms,
                "readers": lite.readers.iter().map(|reader| json!({
                    "consumer_group": reader.consumer_group, "client_id": reader.client_id,
                })).collect::<Vec<_>>(),
            }));
        }
        from = page.next;
        if from.is_none() {
            return Ok((rows.to_string(), Value::Array(shown)));
        }
    }
}
