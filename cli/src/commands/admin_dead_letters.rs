//! `ledgermq admin dlq`: look at what consumer groups gave up, and give it back to them.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::Subcommand;
use ledgermq_client::Admin;
use ledgermq_proto::admin as wire;
use serde_json::{Value, json};
use tokio::time::MissedTickBehavior;

use super::admin::table;

/// Letters given back by one request at most; fewer at a low rate, so that it is kept.
const REDRIVE_BATCH_MAX: usize = 100;
const BODY_SHOWN_BYTES_MAX: usize = 64 * 1024;

#[derive(Debug, Subcommand)]
pub enum DeadLetterCommand {
    /// List the dead letters of a consumer group.
    List {
        consumer_group: String,
        /// FIELD=VALUE with topic, id, tag, key, reason or property.NAME; all given must hold.
        #[arg(long = "filter")]
        filters: Vec<String>,
        #[arg(long, default_value_t = 100)]
        max: usize,
    },
    /// Show one dead letter with its body.
    Show {
        consumer_group: String,
        /// As `list` prints it: GROUP:OFFSET.
        letter: String,
    },
    /// Give dead letters back to the consumer group that gave them up, each once.
    Redrive {
        consumer_group: String,
        /// FIELD=VALUE with topic, id, tag, key, reason or property.NAME; all given must hold.
        #[arg(long = "filter")]
        filters: Vec<String>,
        /// Letters per second.
        #[arg(long, default_value_t = 100)]
        rate: u32,
        /// Count only.
        #[arg(long)]
        dry_run: bool,
    },
}

pub async fn run(admin: &Admin, command: DeadLetterCommand) -> anyhow::Result<(String, Value)> {
    match command {
        DeadLetterCommand::List { consumer_group, filters, max } => {
            list(admin, consumer_group, &parse(&filters)?, max).await
        }
        DeadLetterCommand::Show { consumer_group, letter } => show(admin, consumer_group, &letter).await,
        DeadLetterCommand::Redrive { consumer_group, filters, rate, dry_run } => {
            redrive(admin, consumer_group, &parse(&filters)?, rate, dry_run).await
        }
    }
}

async fn list(
    admin: &Admin,
    consumer_group: String,
    filters: &[Filter],
    max: usize,
) -> anyhow::Result<(String, Value)> {
    let mut letters = Vec::new();
    let mut pages = Pages::of(consumer_group);
    while let Some(page) = pages.next(admin).await? {
        letters.extend(page.into_iter().filter(|letter| filters.iter().all(|filter| filter.holds(letter))));
        if letters.len() >= max {
            break;
        }
    }
    letters.truncate(max);
    let mut table = table(&["letter", "message id", "topic", "reason", "attempts", "bytes", "given back"]);
    for letter in &letters {
        table.add_row([
            format!("{}:{}", letter.group, letter.offset),
            letter.message_id.clone(),
            letter.topic.clone(),
            letter.reason.clone(),
            letter.attempts.to_string(),
            letter.body_bytes.to_string(),
            if letter.redriven { "yes" } else { "no" }.to_owned(),
        ]);
    }
    Ok((table.to_string(), letters.iter().map(as_json).collect()))
}

async fn show(admin: &Admin, consumer_group: String, letter: &str) -> anyhow::Result<(String, Value)> {
    let (group, offset) = letter.rsplit_once(':').context("a letter is GROUP:OFFSET")?;
    let offset = offset.parse().with_context(|| format!("\"{offset}\" is no offset"))?;
    let from = Some(wire::Cursor { group: group.to_owned(), offset });
    let request = wire::ListDeadLettersRequest { consumer_group, from, max: 1, with_body: true };
    let found = admin.list_dead_letters(request).await?.letters;
    let found = found.into_iter().find(|found| found.group == group && found.offset == offset);
    let letter = found.with_context(|| format!("there is no dead letter {letter}"))?;
    let shown = letter.body.get(..BODY_SHOWN_BYTES_MAX).unwrap_or(&letter.body);
    let body = String::from_utf8_lossy(shown);
    let mut value = as_json(&letter);
    value["body"] = json!(body);
    let text = format!(
        "message {} of topic {} queue {} offset {}\nreason: {}, attempts: {}\ntag: {}\nkeys: {}\nproperties: {}\ngiven back: {}\n\n{body}",
        letter.message_id,
        letter.topic,
        letter.queue,
        letter.queue_offset,
        letter.reason,
        letter.attempts,
        letter.tag.as_deref().unwrap_or(""),
        letter.keys.join(" "),
        letter.properties.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(" "),
        if letter.redriven { "yes" } else { "no" },
    );
    Ok((text, value))
}

async fn redrive(
    admin: &Admin,
    consumer_group: String,
    filters: &[Filter],
    rate: u32,
    dry_run: bool,
) -> anyhow::Result<(String, Value)> {
    ensure!(rate > 0, "--rate must be at least 1");
    let batch = (rate as usize / 10).clamp(1, REDRIVE_BATCH_MAX);
    let mut pace = tokio::time::interval(Duration::from_secs(1) * batch as u32 / rate);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut matched, mut redriven) = (0usize, 0u64);
    let mut pages = Pages::of(consumer_group.clone());
    while let Some(page) = pages.next(admin).await? {
        let wanted: Vec<wire::DeadLetter> = page
            .into_iter()
            .filter(|letter| !letter.redriven && filters.iter().all(|filter| filter.holds(letter)))
            .collect();
        matched += wanted.len();
        if dry_run {
            continue;
        }
        for letters in wanted.chunks(batch) {
            pace.tick().await;
            let request = wire::RedriveDeadLettersRequest {
                consumer_group: consumer_group.clone(),
                group: letters.first().map(|letter| letter.group.clone()).unwrap_or_default(),
                offsets: letters.iter().map(|letter| letter.offset).collect(),
            };
            redriven += u64::from(admin.redrive_dead_letters(request).await?.redriven);
        }
    }
    let text = if dry_run {
        format!("{matched} dead letters would be given back to {consumer_group}")
    } else {
        format!("gave {redriven} of {matched} dead letters back to {consumer_group}")
    };
    Ok((text, json!({ "matched": matched, "redriven": redriven })))
}

/// All letters of a consumer group, page by page. A page lies within one broker group.
struct Pages {
    consumer_group: String,
    from: Option<wire::Cursor>,
    is_done: bool,
}

impl Pages {
    fn of(consumer_group: String) -> Self {
        Self { consumer_group, from: None, is_done: false }
    }

    async fn next(&mut self, admin: &Admin) -> anyhow::Result<Option<Vec<wire::DeadLetter>>> {
        if self.is_done {
            return Ok(None);
        }
        let request = wire::ListDeadLettersRequest {
            consumer_group: self.consumer_group.clone(),
            from: self.from.take(),
            ..wire::ListDeadLettersRequest::default()
        };
        let page = admin.list_dead_letters(request).await?;
        self.is_done = page.next.is_none();
        self.from = page.next;
        Ok(Some(page.letters))
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Filter {
    Topic(String),
    Id(String),
    Tag(String),
    Key(String),
    Reason(String),
    Property(String, String),
}

fn parse(filters: &[String]) -> anyhow::Result<Vec<Filter>> {
    filters
        .iter()
        .map(|text| {
            let (field, value) =
                text.split_once('=').with_context(|| format!("\"{text}\" is not FIELD=VALUE"))?;
            let value = value.to_owned();
            Ok(match field {
                "topic" => Filter::Topic(value),
                "id" => Filter::Id(value),
                "tag" => Filter::Tag(value),
                "key" => Filter::Key(value),
                "reason" => Filter::Reason(value),
                _ => match field.strip_prefix("property.") {
                    Some(name) => Filter::Property(name.to_owned(), value),
                    None => anyhow::bail!(
                        "\"{field}\" is no field; known are topic, id, tag, key, reason, property.NAME"
                    ),
                },
            })
        })
        .collect()
}

impl Filter {
    fn holds(&self, letter: &wire::DeadLetter) -> bool {
        match self {
            Self::Topic(topic) => letter.topic == *topic,
            Self::Id(id) => letter.message_id == *id,
            Self::Tag(tag) => letter.tag.as_deref() == Some(tag),
            Self::Key(key) => letter.keys.contains(key),
            Self::Reason(reason) => letter.reason == *reason,
            Self::Property(name, value) => letter.properties.get(name) == Some(value),
        }
    }
}

fn as_json(letter: &wire::DeadLetter) -> Value {
    json!({
        "group": letter.group, "offset": letter.offset, "message_id": letter.message_id,
        "topic": letter.topic, "queue": letter.queue, "queue_offset": letter.queue_offset,
        "attempts": letter.attempts, "reason": letter.reason, "at_ms": letter.at_ms,
        "born_ms": letter.born_ms, "tag": letter.tag, "keys": letter.keys,
        "properties": letter.properties, "body_bytes": letter.body_bytes, "redriven": letter.redriven,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_names_a_field_of_the_letter_and_what_it_must_be() {
        let letter = wire::DeadLetter {
            topic: "orders".to_owned(),
            keys: vec!["k=1".to_owned()],
            properties: [("colour".to_owned(), "red".to_owned())].into(),
            ..wire::DeadLetter::default()
        };
        for (text, holds) in [
            ("topic=orders", true),
            ("topic=order", false),
            ("key=k=1", true),
            ("tag=x", false),
            ("property.colour=red", true),
            ("property.size=red", false),
        ] {
            let filters = parse(&[text.to_owned()]).expect(text);
            assert_eq!(filters.iter().all(|filter| filter.holds(&letter)), holds, "{text}");
        }
        assert!(parse(&["colour".to_owned()]).is_err());
        assert!(parse(&["colour=red".to_owned()]).is_err());
    }
}
