//! `ledgermq admin group`: consumer groups, their settings, and whether their members agree.

use std::collections::BTreeSet;

use clap::{Subcommand, ValueEnum};
use ledgermq_client::Admin;
use ledgermq_proto::admin as wire;
use ledgermq_proto::admin::{reset_offsets_request, retry_policy, set_consumer_group_request};
use serde_json::{Value, json};

use super::admin::table;

#[derive(Debug, Subcommand)]
pub enum GroupCommand {
    /// Create a consumer group, or change what is given of it.
    Set {
        name: String,
        /// Deliveries of a message before it goes to the dead letters.
        #[arg(long)]
        max_attempts: Option<u32>,
        /// Waits before the second, third, ... delivery in milliseconds; the last one repeats.
        #[arg(long, value_delimiter = ',', conflicts_with = "exponential_ms")]
        backoff_ms: Vec<u64>,
        /// First wait, longest wait (both in milliseconds) and factor: `1000,60000,2`.
        #[arg(long, value_parser = exponential)]
        exponential_ms: Option<wire::ExponentialBackoff>,
        /// Deliver the messages of a message group in order, one at a time.
        #[arg(long)]
        fifo: Option<bool>,
        /// Of a hundred receives from a topic with priorities, so many honour them (priority.factor).
        #[arg(long)]
        priority_factor: Option<u32>,
        /// The parent of the lite topics the group reads; empty unbinds (lite.bind.topic).
        #[arg(long)]
        lite_bind_topic: Option<String>,
        /// Whether a lite topic has many readers or one (lite.sub.model).
        #[arg(long, value_enum)]
        lite_sub_model: Option<LiteModel>,
        /// Lite topics one client may subscribe to (lite.sub.client.quota).
        #[arg(long)]
        lite_sub_client_quota: Option<u32>,
        /// A reader that takes a lite topic over begins anew (lite.sub.reset.offset.exclusive).
        #[arg(long)]
        lite_sub_reset_offset_exclusive: Option<bool>,
        /// The group forgets where it was when its last reader leaves (lite.sub.reset.offset.unsubscribe).
        #[arg(long)]
        lite_sub_reset_offset_unsubscribe: Option<bool>,
    },
    /// Move a consumer group in a topic, while its consumers go on.
    Reset {
        name: String,
        topic: String,
        /// beginning, end, Unix milliseconds of a store time, or GROUP:QUEUE:OFFSET
        #[arg(long)]
        to: String,
    },
    /// Show a consumer group's settings, and what its members do not agree about.
    Show { name: String },
    /// List the consumer groups.
    List {
        /// At most.
        #[arg(long, default_value_t = 10_000)]
        max: usize,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LiteModel {
    Shared,
    Exclusive,
}

fn exponential(text: &str) -> Result<wire::ExponentialBackoff, String> {
    let parts: Vec<&str> = text.split(',').map(str::trim).collect();
    let [initial, max, factor] = parts.as_slice() else {
        return Err("must be FIRST_MS,LONGEST_MS,FACTOR".to_owned());
    };
    let number = |text: &str| text.parse::<u64>().map_err(|error| format!("{text}: {error}"));
    let factor: f64 = factor.parse().map_err(|error| format!("{factor}: {error}"))?;
    if !(1.0..=100.0).contains(&factor) {
        return Err(format!("factor {factor} must be within 1..=100"));
    }
    Ok(wire::ExponentialBackoff {
        initial_ms: number(initial)?,
        max_ms: number(max)?,
        multiplier_thousandths: (factor * 1000.0).round() as u32,
    })
}

async fn reset(admin: &Admin, name: String, topic: String, to: &str) -> anyhow::Result<(String, Value)> {
    let target = match to {
        "beginning" => reset_offsets_request::To::Beginning(true),
        "end" => reset_offsets_request::To::End(true),
        _ => match to.parse() {
            Ok(at_ms) => reset_offsets_request::To::StoredAtMs(at_ms),
            Err(_) => reset_offsets_request::To::Place(place(to)?),
        },
    };
    let request = wire::ResetOffsetsRequest {
        consumer_group: name.clone(),
        topic: topic.clone(),
        to: Some(target),
        reset_id: 0,
    };
    let queues = admin.reset_offsets(request).await?.queues;
    Ok((format!("moved {name} in {queues} queues of {topic} to {to}"), json!({ "queues": queues })))
}

/// GROUP:QUEUE:OFFSET
pub(super) fn place(text: &str) -> anyhow::Result<wire::Place> {
    let parts: Vec<&str> = text.split(':').collect();
    let [group, queue, offset] = parts.as_slice() else {
        anyhow::bail!("\"{text}\" is not GROUP:QUEUE:OFFSET");
    };
    Ok(wire::Place { group: (*group).to_owned(), queue: queue.parse()?, offset: offset.parse()? })
}

pub async fn run(admin: &Admin, command: GroupCommand) -> anyhow::Result<(String, Value)> {
    let shown = match command {
        GroupCommand::Set {
            name,
            max_attempts,
            backoff_ms,
            exponential_ms,
            fifo,
            priority_factor,
            lite_bind_topic,
            lite_sub_model,
            lite_sub_client_quota,
            lite_sub_reset_offset_exclusive,
            lite_sub_reset_offset_unsubscribe,
        } => {
            let backoff = match exponential_ms {
                Some(exponential) => Some(set_consumer_group_request::Backoff::Exponential(exponential)),
                None if backoff_ms.is_empty() => None,
                None => Some(set_consumer_group_request::Backoff::Customised(wire::CustomisedBackoff {
                    steps_ms: backoff_ms,
                })),
            };
            anyhow::ensure!(max_attempts != Some(0), "--max-attempts must be at least 1");
            let max_attempts = max_attempts.unwrap_or(0);
            let request = wire::SetConsumerGroupRequest {
                name,
                fifo,
                max_attempts,
                backoff,
                priority_factor,
                lite_bind_topic,
                lite_exclusive: lite_sub_model.map(|model| model == LiteModel::Exclusive),
                lite_client_quota: lite_sub_client_quota,
                lite_reset_offset_exclusive: lite_sub_reset_offset_exclusive,
                lite_reset_offset_unsubscribe: lite_sub_reset_offset_unsubscribe,
            };
            admin.set_consumer_group(request).await?.consumer_group
        }
        GroupCommand::Reset { name, topic, to } => return reset(admin, name, topic, &to).await,
        GroupCommand::List { max } => return list(admin, max).await,
        GroupCommand::Show { name } => {
            admin.show_consumer_group(wire::ShowConsumerGroupRequest { name }).await?.consumer_group
        }
    };
    let shown = shown.unwrap_or_default();
    let retry = shown.retry.clone().unwrap_or_default();
    let attributes = shown.attributes.clone().unwrap_or_default();
    let model = if attributes.lite_exclusive { "exclusive" } else { "shared" };
    let (text, value) = match &retry.backoff {
        Some(retry_policy::Backoff::Exponential(exponential)) => (
            format!(
                "{} ms, times {}, at most {} ms",
                exponential.initial_ms,
                f64::from(exponential.multiplier_thousandths) / 1000.0,
                exponential.max_ms
            ),
            json!({ "exponential": {
                "initial_ms": exponential.initial_ms, "max_ms": exponential.max_ms,
                "multiplier_thousandths": exponential.multiplier_thousandths,
            } }),
        ),
        Some(retry_policy::Backoff::Customised(customised)) => {
            let steps: Vec<String> = customised.steps_ms.iter().map(u64::to_string).collect();
            (format!("{} ms", steps.join(", ")), json!({ "steps_ms": customised.steps_ms }))
        }
        None => (String::new(), Value::Null),
    };
    let warning = disagreement(&shown).map_or_else(String::new, |text| format!("\n{text}"));
    Ok((
        format!(
            "consumer group {}{}\nordered: {}\nattempts: {}\nwaits: {text}\npriority factor: {}\nlite topics: {model}, of {}, {} per client{warning}",
            shown.name,
            if shown.exists { "" } else { " (not used yet; these are the defaults)" },
            if shown.fifo { "yes" } else { "no" },
            retry.max_attempts,
            attributes.priority_factor,
            match attributes.lite_bind_topic.as_str() {
                "" => "the first topic it subscribes to",
                topic => topic,
            },
            attributes.lite_client_quota,
        ),
        json!({
            "name": shown.name, "exists": shown.exists, "fifo": shown.fifo,
            "max_attempts": retry.max_attempts, "backoff": value,
            "priority.factor": attributes.priority_factor,
            "lite.bind.topic": attributes.lite_bind_topic,
            "lite.sub.model": model,
            "lite.sub.client.quota": attributes.lite_client_quota,
            "lite.sub.reset.offset.exclusive": attributes.lite_reset_offset_exclusive,
            "lite.sub.reset.offset.unsubscribe": attributes.lite_reset_offset_unsubscribe,
            "conflicts": conflicts_as_json(&shown),
            "differing_topics": topics_as_json(&shown),
        }),
    ))
}

async fn list(admin: &Admin, max: usize) -> anyhow::Result<(String, Value)> {
    let mut groups = Vec::new();
    let mut after = String::new();
    loop {
        let page = admin.list_consumer_groups(wire::ListConsumerGroupsRequest { after, max: 0 }).await?;
        groups.extend(page.consumer_groups);
        after = page.next;
        if after.is_empty() || groups.len() >= max {
            break;
        }
    }
    groups.truncate(max);
    let mut table = table(&["consumer group", "ordered", "attempts", "members differ about"]);
    for group in &groups {
        let topics: BTreeSet<&str> = group.conflicts.iter().map(|of| of.topic.as_str()).collect();
        let mut differ: Vec<String> = topics.into_iter().map(|topic| format!("filters of {topic}")).collect();
        if !group.differing_topics.is_empty() {
            differ.push("topics".to_owned());
        }
        table.add_row([
            group.name.clone(),
            if group.fifo { "yes" } else { "no" }.to_owned(),
            group.retry.as_ref().map_or(0, |retry| retry.max_attempts).to_string(),
            differ.join(", "),
        ]);
    }
    let values = groups.iter().map(|group| {
        json!({
            "name": group.name, "fifo": group.fifo,
            "max_attempts": group.retry.as_ref().map(|retry| retry.max_attempts),
            "conflicts": conflicts_as_json(group), "differing_topics": topics_as_json(group),
        })
    });
    Ok((table.to_string(), values.collect()))
}

/// What members of the group do not agree about, for people.
fn disagreement(group: &wire::ConsumerGroup) -> Option<String> {
    let mut lines = Vec::new();
    for conflict in &group.conflicts {
        lines.push(format!(
            "WARNING: its members subscribe to {} by different filters ({}):",
            conflict.topic, conflict.group
        ));
        for filter in &conflict.filters {
            let clients = match filter.client_ids.as_slice() {
                [] => "a member not heard of yet".to_owned(),
                clients => clients.join(", "),
            };
            lines.push(format!("  {}: {clients}", filter.expression));
        }
    }
    for of in &group.differing_topics {
        let (topics, clients) = (of.topics.join(", "), of.client_ids.join(", "));
        lines.push(format!(
            "WARNING: these receive from {topics} ({}), others from others: {clients}",
            of.group
        ));
    }
    (!lines.is_empty()).then(|| lines.join("\n"))
}

fn conflicts_as_json(group: &wire::ConsumerGroup) -> Value {
    let conflicts = group.conflicts.iter().map(|conflict| {
        let filters: Vec<Value> = conflict
            .filters
            .iter()
            .map(|filter| json!({ "expression": filter.expression, "clients": filter.client_ids }))
            .collect();
        json!({ "group": conflict.group, "topic": conflict.topic, "filters": filters })
    });
    conflicts.collect()
}

fn topics_as_json(group: &wire::ConsumerGroup) -> Value {
    let of = group.differing_topics.iter();
    of.map(|of| json!({ "group": of.group, "topics": of.topics, "clients": of.client_ids })).collect()
}
