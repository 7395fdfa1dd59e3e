//! `ledgermq admin message trace`: the history of a message as the log has it.

use ledgermq_client::Admin;
use ledgermq_proto::admin as wire;
use serde_json::{Value, json};

use super::admin::table;

/// What was read of a history.
#[derive(Debug, Default)]
struct History {
    group: String,
    topic: String,
    facts: Vec<wire::Fact>,
    rows: Vec<wire::TraceRow>,
    history_from: Option<u64>,
    looked_at: u64,
    /// The log goes on where the reading stopped.
    is_cut: bool,
}

pub async fn run(
    admin: &Admin,
    message_id: String,
    topic: String,
    rows_max: usize,
    entries_max: u64,
) -> anyhow::Result<(String, Value)> {
    let history = read(admin, &message_id, &topic, rows_max, entries_max).await?;
    Ok((as_text(&message_id, &history), as_json(&message_id, &history)))
}

async fn read(
    admin: &Admin,
    message_id: &str,
    topic: &str,
    rows_max: usize,
    entries_max: u64,
) -> anyhow::Result<History> {
    let mut history = History::default();
    let mut from: Option<wire::TraceState> = None;
    let mut began_at = None;
    loop {
        let request = wire::TraceMessageRequest {
            message_id: message_id.to_owned(),
            topic: topic.to_owned(),
            from: from.take(),
        };
        let page = admin.trace_message(request).await?;
        if began_at.is_none() {
            history.history_from = page.history_from;
            history.group = page.group;
            history.topic = page.topic;
        }
        history.facts = page.facts;
        history.rows.extend(page.rows);
        history.looked_at = page.looked_at;
        let first =
            *began_at.get_or_insert_with(|| history.rows.first().map_or(page.looked_at, |row| row.log_index));
        from = page.next;
        if from.is_none() {
            return Ok(history);
        }
        if history.rows.len() >= rows_max || page.looked_at.saturating_sub(first) >= entries_max {
            history.rows.truncate(rows_max);
            history.is_cut = true;
            return Ok(history);
        }
    }
}

fn as_text(message_id: &str, history: &History) -> String {
    let facts: Vec<String> =
        history.facts.iter().map(|fact| format!("{}: {}", fact.name, fact.value)).collect();
    let mut text = format!("message {message_id} in broker group {}\n{}\n", history.group, facts.join(", "));
    if let Some(from) = history.history_from {
        text.push_str(&format!(
            "its history is not whole: the log begins at entry {from}, behind the one that stored it\n"
        ));
    }
    let mut table =
        table(&["entry", "term", "log time", "physical", "what", "consumer group", "detail", "client"]);
    for row in &history.rows {
        let letter = row.dead_letter.as_ref();
        let letter = letter.map(|place| format!(", dead letter {}:{}", place.group, place.offset));
        table.add_row([
            row.log_index.to_string(),
            row.term.to_string(),
            row.log_time_ms.to_string(),
            row.physical_offset.to_string(),
            row.what.clone(),
            row.consumer_group.clone(),
            format!("{}{}", row.detail, letter.unwrap_or_default()),
            row.client.clone(),
        ]);
    }
    text.push_str(&format!("\n{table}\n"));
    text.push_str(&match history.is_cut {
        true => format!("\nstopped at entry {}; --max and --entries read more", history.looked_at),
        false => format!("\nread up to entry {}, the end of the log", history.looked_at),
    });
    text
}

fn as_json(message_id: &str, history: &History) -> Value {
    let facts: serde_json::Map<String, Value> =
        history.facts.iter().map(|fact| (fact.name.clone(), json!(fact.value))).collect();
    let rows: Vec<Value> = history
        .rows
        .iter()
        .map(|row| {
            json!({
                "log_index": row.log_index, "term": row.term, "log_time_ms": row.log_time_ms,
                "physical_offset": row.physical_offset, "what": row.what,
                "consumer_group": row.consumer_group, "detail": row.detail, "attempt": row.attempt,
                "until_ms": row.until_ms, "client": row.client,
                "dead_letter": row.dead_letter.as_ref().map(|place| json!({
                    "group": place.group, "offset": place.offset,
                })),
            })
        })
        .collect();
    json!({
        "message_id": message_id, "group": history.group, "topic": history.topic, "facts": facts,
        "history_from": history.history_from, "looked_at": history.looked_at, "complete": !history.is_cut,
        "rows": rows,
    })
}
