//! `ledgermq admin message` and `ledgermq admin why`: find messages, and say where one is.

use anyhow::ensure;
use clap::Subcommand;
use ledgermq_client::Admin;
use ledgermq_proto::admin as wire;
use ledgermq_proto::admin::query_messages_request::By;
use serde_json::{Value, json};

use super::admin::table;
use super::admin_groups::place;
use super::admin_trace;

const BODY_SHOWN_BYTES_MAX: usize = 64 * 1024;

#[derive(Debug, Subcommand)]
pub enum MessageCommand {
    /// Show one message with its body: by id, or by where it lies.
    Get {
        topic: String,
        /// Message id.
        #[arg(long, conflicts_with = "at")]
        id: Option<String>,
        /// GROUP:QUEUE:OFFSET
        #[arg(long)]
        at: Option<String>,
    },
    /// List messages by key, by id, or by the time they were stored.
    Query {
        topic: String,
        #[arg(long, conflicts_with_all = ["id", "from_ms"])]
        key: Option<String>,
        #[arg(long, conflicts_with = "from_ms")]
        id: Option<String>,
        /// Unix milliseconds.
        #[arg(long)]
        from_ms: Option<u64>,
        /// Unix milliseconds; the end of the queues unless given.
        #[arg(long, requires = "from_ms")]
        to_ms: Option<u64>,
        #[arg(long, default_value_t = 100)]
        max: usize,
    },
    /// Tell what happened to a message, entry by entry of the log.
    Trace {
        message_id: String,
        /// Look in this topic only.
        #[arg(long)]
        topic: Option<String>,
        /// Rows at most.
        #[arg(long, default_value_t = 1_000)]
        max: usize,
        /// Entries of the log to look at, at most.
        #[arg(long, default_value_t = 1_000_000)]
        entries: u64,
    },
}

pub async fn run(admin: &Admin, command: MessageCommand) -> anyhow::Result<(String, Value)> {
    match command {
        MessageCommand::Get { topic, id, at } => get(admin, topic, id, at).await,
        MessageCommand::Query { topic, key, id, from_ms, to_ms, max } => {
            let by = match (key, id, from_ms) {
                (Some(key), _, _) => By::Key(key),
                (_, Some(id), _) => By::MessageId(id),
                (_, _, Some(from_ms)) => {
                    By::StoredWithin(wire::StoredWithin { from_ms, to_ms: to_ms.unwrap_or(u64::MAX) })
                }
                (None, None, None) => anyhow::bail!("give --key, --id or --from-ms"),
            };
            query(admin, topic, by, max).await
        }
        MessageCommand::Trace { message_id, topic, max, entries } => {
            admin_trace::run(admin, message_id, topic.unwrap_or_default(), max, entries).await
        }
    }
}

async fn query(admin: &Admin, topic: String, by: By, max: usize) -> anyhow::Result<(String, Value)> {
    let mut messages = Vec::new();
    let mut from = None;
    loop {
        let request = wire::QueryMessagesRequest {
            topic: topic.clone(),
            by: Some(by.clone()),
            from: from.take(),
            ..wire::QueryMessagesRequest::default()
        };
        let page = admin.query_messages(request).await?;
        messages.extend(page.messages);
        from = page.next;
        if from.is_none() || messages.len() >= max {
            break;
        }
    }
    messages.truncate(max);
    let mut table = table(&["message id", "group", "queue", "offset", "stored", "tag", "keys", "bytes"]);
    for message in &messages {
        table.add_row([
            message.message_id.clone(),
            message.group.clone(),
            message.queue.to_string(),
            message.offset.map_or_else(|| "not visible".to_owned(), |offset| offset.to_string()),
            message.stored_ms.map_or_else(String::new, |ms| ms.to_string()),
            message.tag.clone().unwrap_or_default(),
            message.keys.join(" "),
            message.body_bytes.to_string(),
        ]);
    }
    Ok((table.to_string(), messages.iter().map(as_json).collect()))
}

async fn get(
    admin: &Admin,
    topic: String,
    id: Option<String>,
    at: Option<String>,
) -> anyhow::Result<(String, Value)> {
    let by = match (id, at) {
        (Some(id), None) => By::MessageId(id),
        (None, Some(at)) => By::Place(place(&at)?),
        _ => anyhow::bail!("give --id or --at"),
    };
    let request = wire::QueryMessagesRequest {
        topic: topic.clone(),
        by: Some(by),
        with_body: true,
        ..wire::QueryMessagesRequest::default()
    };
    let found = admin.query_messages(request).await?.messages;
    ensure!(!found.is_empty(), "topic {topic} has no such message");
    let (mut text, mut values) = (String::new(), Vec::new());
    for message in &found {
        let shown = message.body.get(..BODY_SHOWN_BYTES_MAX).unwrap_or(&message.body);
        let body = String::from_utf8_lossy(shown);
        text.push_str(&format!(
            "message {}\ngroup: {}, queue: {}, offset: {}\nborn: {} at {}, stored: {}\ntag: {}\nkeys: {}\nproperties: {}\n{}\n{body}\n",
            message.message_id,
            message.group,
            message.queue,
            message.offset.map_or_else(|| "not visible".to_owned(), |offset| offset.to_string()),
            message.born_ms,
            message.born_host,
            message.stored_ms.map_or_else(String::new, |ms| ms.to_string()),
            message.tag.as_deref().unwrap_or(""),
            message.keys.join(" "),
            message.properties.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(" "),
            message.deliver_at_ms.map_or_else(String::new, |ms| format!("delivery time: {ms}\n")),
        ));
        let mut value = as_json(message);
        value["body"] = json!(body);
        values.push(value);
    }
    Ok((text, Value::Array(values)))
}

pub async fn why(
    admin: &Admin,
    topic: String,
    message_id: String,
    consumer_group: String,
) -> anyhow::Result<(String, Value)> {
    let request = wire::WhyRequest { topic, message_id, consumer_group };
    let answer = admin.why(request).await?;
    let mut text = format!("{}\n", answer.verdict);
    for part in &answer.parts {
        text.push_str(&format!("\ngroup {}:\n", part.group));
        for fact in &part.facts {
            text.push_str(&format!("  {}: {}\n", fact.name, fact.value));
        }
    }
    let parts: Vec<Value> = answer
        .parts
        .iter()
        .map(|part| {
            let facts: serde_json::Map<String, Value> =
                part.facts.iter().map(|fact| (fact.name.clone(), json!(fact.value))).collect();
            json!({ "group": part.group, "facts": facts })
        })
        .collect();
    Ok((text, json!({ "verdict": answer.verdict, "parts": parts })))
}

fn as_json(message: &wire::QueriedMessage) -> Value {
    json!({
        "message_id": message.message_id, "group": message.group, "queue": message.queue,
        "offset": message.offset, "stored_ms": message.stored_ms, "born_ms": message.born_ms,
        "born_host": message.born_host, "tag": message.tag, "keys": message.keys,
        "properties": message.properties, "body_bytes": message.body_bytes,
        "deliver_at_ms": message.deliver_at_ms,
    })
}
