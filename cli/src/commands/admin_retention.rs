//! `ledgermq admin topic set` and `ledgermq admin retention`: how long messages are kept, and what the
//! log is kept for.

use ledgermq_client::Admin;
use ledgermq_proto::admin as wire;
use serde_json::{Value, json};

use super::admin::table;

/// `30s`, `15m`, `72h`, `7d`; `forever`; `default`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retention {
    Default,
    Forever,
    Ms(u64),
}

pub fn parse(text: &str) -> Result<Retention, String> {
    match text {
        "default" => return Ok(Retention::Default),
        "forever" => return Ok(Retention::Forever),
        _ => {}
    }
    let units = [("s", 1_000u64), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
    let number = units
        .into_iter()
        .find_map(|(unit, ms)| text.strip_suffix(unit)?.parse::<u64>().ok()?.checked_mul(ms))
        .filter(|ms| *ms > 0);
    number.map(Retention::Ms).ok_or_else(|| {
        format!("\"{text}\" is no time to keep messages: give 30s, 15m, 72h, 7d, forever or default")
    })
}

pub async fn set(admin: &Admin, topic: String, retention: Retention) -> anyhow::Result<(String, Value)> {
    let retention_ms = match retention {
        Retention::Default => None,
        Retention::Forever => Some(0),
        Retention::Ms(ms) => Some(ms),
    };
    let request = wire::SetTopicRetentionRequest { topic: topic.clone(), retention_ms };
    let answer = admin.set_topic_retention(request).await?;
    let kept = answer.parts.first().map(kept_for).unwrap_or_default();
    Ok((format!("topic {topic} keeps its messages {kept}"), as_json(&answer)))
}

pub async fn show(admin: &Admin, topic: Option<String>) -> anyhow::Result<(String, Value)> {
    let topic = topic.unwrap_or_default();
    let answer = admin.show_retention(wire::ShowRetentionRequest { topic: topic.clone() }).await?;
    let mut log =
        table(&["group", "on disk", "oldest ms", "kept from", "held by", "purged", "expired", "carried"]);
    for part in &answer.parts {
        log.add_row([
            part.group.clone(),
            part.log_end.saturating_sub(part.log_start).to_string(),
            part.oldest_ms.to_string(),
            part.released_below.to_string(),
            part.held_by.clone(),
            part.purged_index.to_string(),
            part.expired_messages.to_string(),
            format!("{} ({} bytes)", part.carried_records, part.carried_bytes),
        ]);
    }
    let mut text = log.to_string();
    if let Some(part) = answer.parts.first().filter(|_| !topic.is_empty()) {
        text = format!("topic {topic} keeps its messages {}\n\n{text}", kept_for(part));
        let mut unread = table(&["group", "consumer group", "expired unread"]);
        for part in &answer.parts {
            for reader in &part.expired_unread {
                let row = [part.group.clone(), reader.consumer_group.clone(), reader.messages.to_string()];
                unread.add_row(row);
            }
        }
        text = format!("{text}\n\n{unread}");
    }
    Ok((text, as_json(&answer)))
}

fn kept_for(part: &wire::RetentionPart) -> String {
    let whose = if part.own_retention { "its own setting" } else { "the broker's default" };
    match part.retention_ms {
        0 => format!("for ever ({whose})"),
        ms => format!("{} s ({whose})", ms / 1000),
    }
}

fn as_json(answer: &wire::RetentionResponse) -> Value {
    let part = |part: &wire::RetentionPart| {
        json!({
            "group": part.group, "log_start": part.log_start, "log_end": part.log_end,
            "released_below": part.released_below, "purged_index": part.purged_index,
            "oldest_ms": part.oldest_ms, "held_by": part.held_by,
            "expired_messages": part.expired_messages, "carried_records": part.carried_records,
            "carried_bytes": part.carried_bytes, "retention_ms": part.retention_ms,
            "own_retention": part.own_retention,
            "expired_unread": part.expired_unread.iter().map(|reader| json!({
                "consumer_group": reader.consumer_group, "messages": reader.messages,
            })).collect::<Vec<_>>(),
        })
    };
    json!({ "groups": answer.parts.iter().map(part).collect::<Vec<_>>() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_to_keep_are_read_with_their_unit() {
        assert_eq!(parse("7d"), Ok(Retention::Ms(7 * 86_400_000)));
        assert_eq!(parse("90m"), Ok(Retention::Ms(5_400_000)));
        assert_eq!(parse("forever"), Ok(Retention::Forever));
        assert_eq!(parse("default"), Ok(Retention::Default));
        for wrong in ["", "7", "0d", "-1h", "1w", "99999999999999999d"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
