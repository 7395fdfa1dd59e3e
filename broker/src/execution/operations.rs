//! What an administrator asks of one broker group, on its leader.
//!
//! | Bound | Value | Beyond it |
//! |---|---|---|
//! | dead letters of a page | 256, 1 with bodies | the page ends, with a cursor |
//! | dead letters of one redrive | 256 | BAD_REQUEST |
//! | retention of a topic | a hundred years | BAD_REQUEST |
//! | lite topics of a page | 256 | the page ends, with a cursor |
//! | consumer groups of a page | 256 | the page ends, with its last name |
//! | idle time of lite topics | 30 days | BAD_REQUEST |
//! | priority factor; lite topics of a client | 0..=100; 1..=10,000 | BAD_REQUEST |
//! | attempts of a retry policy | 1..=10,000 | BAD_REQUEST |
//! | steps of a retry policy | 1..=64, each at most 12 h | BAD_REQUEST |

use ledgermq_common::clock::UnixMillis;
use ledgermq_common::limits::{INVISIBLE_DURATION_MS_MAX, LITE_SUBSCRIPTIONS_PER_CLIENT_MAX};
use ledgermq_common::{ConsumerGroupName, QueueId, QueueOffset, TopicName};
use ledgermq_edge::codes::topic_not_found;
use ledgermq_edge::group_call::{GroupResponse, Refused};
use ledgermq_proto::admin as wire;
use ledgermq_proto::admin::group_operation::Operation;
use ledgermq_proto::admin::group_operation_result::Result as Answered;
use ledgermq_proto::admin::reset_offsets_request::To;
use ledgermq_proto::admin::{retry_policy, set_consumer_group_request};
use ledgermq_proto::rocketmq::Code;

use super::dead_letters::{self, ReadLetter};
use super::growth;
use super::hosted_group::{Ended, HostedGroup, unexpected};
use super::message_query;
use super::offsets::{self, ResetTo};
use super::trace;
use crate::config::RETENTION_S_MAX;
use crate::state::{
    Answer, Backoff, Command, ConsumerGroupId, ConsumerGroupSettings, CreateConsumerGroup, GroupAttributes,
    MessageType, PRIORITY_FACTOR_MAX, Pinned, ResetId, SetGroupAttributes, SetLiteTopic, SetTopicRetention,
    TopicView, UpdateConsumerGroup,
};

const LETTERS_PER_PAGE_MAX: u32 = 256;
const LETTERS_PER_REDRIVE_MAX: usize = 256;
const LITE_TOPICS_PER_PAGE_MAX: u32 = 256;
const CONSUMER_GROUPS_PER_PAGE_MAX: usize = 256;
/// RocketMQ's: 30 days.
const LITE_EXPIRATION_MINUTES_MAX: u32 = 43_200;
const ATTEMPTS_MAX: u32 = 10_000;
const BACKOFF_STEPS_MAX: usize = 64;
const BACKOFF_MULTIPLIER_THOUSANDTHS_MAX: u32 = 100_000;

/// Whether the answer is what the state says, with nothing written.
pub fn only_tells(operation: &wire::GroupOperation) -> bool {
    matches!(
        operation.operation,
        Some(
            Operation::ShowConsumerGroup(_)
                | Operation::ListDeadLetters(_)
                | Operation::QueryMessages(_)
                | Operation::Why(_)
                | Operation::ShowRetention(_)
                | Operation::DescribeGrowth(_)
                | Operation::ShowLiteTopics(_)
        )
    )
}

pub async fn execute(hosted: &HostedGroup, operation: &wire::GroupOperation) -> Result<GroupResponse, Ended> {
    let operation = operation.operation.as_ref().ok_or_else(|| {
        Refused::new(Code::NotImplemented, "the operation is of a kind this node does not know")
    })?;
    let result = match operation {
        Operation::SetConsumerGroup(request) => {
            Answered::ConsumerGroup(set_consumer_group(hosted, request).await?)
        }
        Operation::ShowConsumerGroup(request) => {
            Answered::ConsumerGroup(show_consumer_group(hosted, &consumer_group(&request.name)?))
        }
        Operation::ListDeadLetters(request) => Answered::DeadLetters(list_dead_letters(hosted, request)),
        Operation::ResetOffsets(request) => Answered::OffsetsReset(reset_offsets(hosted, request).await?),
        Operation::QueryMessages(request) => Answered::Messages(message_query::query(hosted, request)?),
        Operation::Why(request) => Answered::Why(message_query::why(hosted, request)),
        Operation::SetTopicRetention(request) => {
            Answered::Retention(set_topic_retention(hosted, request).await?)
        }
        Operation::ShowRetention(request) => Answered::Retention(show_retention(hosted, &request.topic)?),
        Operation::GrowTopic(request) => Answered::Growth(growth::begin(hosted, request).await?),
        Operation::DescribeGrowth(request) => Answered::Growth(growth::describe(hosted, &request.topic)?),
        Operation::GrowthStep(request) => Answered::Growth(growth::step(hosted, request).await?),
        Operation::AskDrained(request) => Answered::Drained(growth::has_drained(hosted, request).await?),
        Operation::SetTopicQueues(request) => {
            Answered::TopicQueues(growth::set_queues(hosted, request).await?)
        }
        Operation::ForgetDrained(request) => Answered::OffsetsReset(forget_drained(hosted, request).await?),
        Operation::RedriveDeadLetters(request) => Answered::Redriven(redrive(hosted, request).await?),
        Operation::ShowLiteTopics(request) => Answered::LiteTopics(show_lite_topics(hosted, request)?),
        Operation::SetLiteTopic(request) => Answered::LiteTopicSet(set_lite_topic(hosted, request).await?),
        Operation::ListConsumerGroups(request) => {
            Answered::ConsumerGroups(list_consumer_groups(hosted, request))
        }
        Operation::TraceMessage(request) => Answered::Trace(trace::trace(hosted, request).await?),
    };
    Ok(GroupResponse::Operation(wire::GroupOperationResult { result: Some(result) }))
}

async fn set_consumer_group(
    hosted: &HostedGroup,
    request: &wire::SetConsumerGroupRequest,
) -> Result<wire::ConsumerGroup, Ended> {
    let name = consumer_group(&request.name)?;
    let known = hosted.state.consumer_group(name.as_str());
    let mut settings = known.as_ref().map(|view| view.settings.clone()).unwrap_or_default();
    if let Some(fifo) = request.fifo {
        settings.fifo = fifo;
    }
    if request.max_attempts > ATTEMPTS_MAX {
        return Err(bad(format!(
            "max_attempts is {}; it must be within 1..={ATTEMPTS_MAX}",
            request.max_attempts
        )));
    }
    if request.max_attempts > 0 {
        settings.attempts_max = request.max_attempts;
    }
    if let Some(backoff) = &request.backoff {
        settings.backoff = backoff_of(backoff)?;
    }
    let before = known.as_ref().map(|view| hosted.state.group_attributes(view.id)).unwrap_or_default();
    let attributes = attributes_of(before.clone(), request)?;
    let command = if known.is_some() {
        Command::UpdateConsumerGroup(UpdateConsumerGroup { name: name.to_string(), settings })
    } else {
        Command::CreateConsumerGroup(CreateConsumerGroup { name: name.to_string(), settings })
    };
    match hosted.propose(command.encode(hosted.now())).await? {
        Answer::ConsumerGroup { id, .. } if attributes != before => {
            let set = SetGroupAttributes { consumer_group: id, attributes };
            match hosted.propose(Command::SetGroupAttributes(set).encode(hosted.now())).await? {
                Answer::ConsumerGroup { .. } => Ok(show_consumer_group(hosted, &name)),
                other => Err(unexpected("SetGroupAttributes", &other)),
            }
        }
        Answer::ConsumerGroup { .. } => Ok(show_consumer_group(hosted, &name)),
        other => Err(unexpected("SetConsumerGroup", &other)),
    }
}

/// What is given changes, and the rest stays.
fn attributes_of(
    before: GroupAttributes,
    request: &wire::SetConsumerGroupRequest,
) -> Result<GroupAttributes, Ended> {
    let factor_max = u32::from(PRIORITY_FACTOR_MAX);
    let priority_factor = match request.priority_factor {
        None => before.priority_factor,
        Some(factor) => u8::try_from(factor)
            .ok()
            .filter(|factor| *factor <= PRIORITY_FACTOR_MAX)
            .ok_or_else(|| bad(format!("priority_factor is {factor}; it must be within 0..={factor_max}")))?,
    };
    let client_quota = request.lite_client_quota.unwrap_or(before.client_quota);
    if !(1..=LITE_SUBSCRIPTIONS_PER_CLIENT_MAX).contains(&client_quota) {
        return Err(bad(format!(
            "lite_client_quota is {client_quota}; it must be within 1..={LITE_SUBSCRIPTIONS_PER_CLIENT_MAX}"
        )));
    }
    let bind_topic = match request.lite_bind_topic.as_deref() {
        None => before.bind_topic,
        Some("") => String::new(),
        Some(topic) => TopicName::parse(topic)
            .map(|topic| topic.to_string())
            .map_err(|error| Refused::new(Code::IllegalTopic, error.to_string()))?,
    };
    Ok(GroupAttributes {
        priority_factor,
        bind_topic,
        exclusive: request.lite_exclusive.unwrap_or(before.exclusive),
        client_quota,
        reset_when_taken_over: request.lite_reset_offset_exclusive.unwrap_or(before.reset_when_taken_over),
        reset_on_unsubscribe: request.lite_reset_offset_unsubscribe.unwrap_or(before.reset_on_unsubscribe),
    })
}

fn lite_parent(hosted: &HostedGroup, name: &str) -> Result<TopicView, Ended> {
    let topic = hosted.state.topic(name).ok_or_else(|| Refused::from(topic_not_found(name)))?;
    if topic.settings.message_type != MessageType::Lite {
        return Err(bad(format!("topic {name} is not of type LITE")));
    }
    Ok(topic)
}

fn show_lite_topics(
    hosted: &HostedGroup,
    request: &wire::ShowLiteTopicsRequest,
) -> Result<wire::ShowLiteTopicsResponse, Ended> {
    let topic = lite_parent(hosted, &request.topic)?;
    let max = if request.max == 0 { LITE_TOPICS_PER_PAGE_MAX } else { request.max };
    let max = max.min(LITE_TOPICS_PER_PAGE_MAX) as usize;
    let from = request.from.as_ref().map_or(0, |from| u32::try_from(from.offset).unwrap_or(u32::MAX));
    let (mut views, expire_after_ms) = hosted.state.lite_topics(topic.id, QueueId(from), max + 1);
    let next = (views.len() > max).then(|| views.pop()).flatten();
    let next =
        next.map(|next| wire::Cursor { group: hosted.name.to_string(), offset: u64::from(next.queue.get()) });
    let lite_topics = views
        .into_iter()
        .map(|lite| wire::LiteTopic {
            group: hosted.name.to_string(),
            name: lite.name,
            queue: lite.queue.get(),
            min_offset: lite.range.start,
            max_offset: lite.range.end,
            used_ms: lite.used_at.get(),
            readers: lite
                .readers
                .into_iter()
                .map(|reader| wire::lite_topic::Reader {
                    consumer_group: reader.consumer_group,
                    client_id: reader.client_id,
                })
                .collect(),
        })
        .collect();
    Ok(wire::ShowLiteTopicsResponse { lite_topics, next, expire_after_ms })
}

async fn set_lite_topic(
    hosted: &HostedGroup,
    request: &wire::SetLiteTopicRequest,
) -> Result<wire::SetLiteTopicResponse, Ended> {
    let topic = lite_parent(hosted, &request.topic)?;
    let minutes = request.expire_after_minutes;
    if minutes > LITE_EXPIRATION_MINUTES_MAX {
        return Err(bad(format!(
            "expire_after_minutes is {minutes}; it must be within 0..={LITE_EXPIRATION_MINUTES_MAX}"
        )));
    }
    let command = SetLiteTopic { topic: topic.id, expire_after_ms: u64::from(minutes) * 60_000 };
    match hosted.propose(Command::SetLiteTopic(command).encode(hosted.now())).await? {
        Answer::Topic { .. } => Ok(wire::SetLiteTopicResponse {}),
        other => Err(unexpected("SetLiteTopic", &other)),
    }
}

fn backoff_of(backoff: &set_consumer_group_request::Backoff) -> Result<Backoff, Ended> {
    let within = |field: &str, value: u64, min: u64, max: u64| {
        if (min..=max).contains(&value) {
            Ok(())
        } else {
            Err(bad(format!("{field} is {value}; it must be within {min}..={max}")))
        }
    };
    match backoff {
        set_consumer_group_request::Backoff::Exponential(exponential) => {
            let wire::ExponentialBackoff { initial_ms, max_ms, multiplier_thousandths } = *exponential;
            within("initial_ms", initial_ms, 1, INVISIBLE_DURATION_MS_MAX)?;
            within("max_ms", max_ms, initial_ms, INVISIBLE_DURATION_MS_MAX)?;
            let multiplier_max = u64::from(BACKOFF_MULTIPLIER_THOUSANDTHS_MAX);
            within("multiplier_thousandths", u64::from(multiplier_thousandths), 1_000, multiplier_max)?;
            Ok(Backoff::Exponential { initial_ms, max_ms, multiplier_thousandths })
        }
        set_consumer_group_request::Backoff::Customised(customised) => {
            let steps_ms = customised.steps_ms.clone();
            within("steps_ms (count)", steps_ms.len() as u64, 1, BACKOFF_STEPS_MAX as u64)?;
            for &step_ms in &steps_ms {
                within("steps_ms", step_ms, 1, INVISIBLE_DURATION_MS_MAX)?;
            }
            Ok(Backoff::Customised { steps_ms })
        }
    }
}

fn show_consumer_group(hosted: &HostedGroup, name: &ConsumerGroupName) -> wire::ConsumerGroup {
    let known = hosted.state.consumer_group(name.as_str());
    let exists = known.is_some();
    let (conflicts, differing_topics) =
        known.as_ref().map(|view| subscriptions_of(hosted, view.id)).unwrap_or_default();
    let attributes = known.as_ref().map(|view| hosted.state.group_attributes(view.id)).unwrap_or_default();
    let settings = known.map_or_else(ConsumerGroupSettings::default, |view| view.settings);
    let backoff = match settings.backoff {
        Backoff::Exponential { initial_ms, max_ms, multiplier_thousandths } => {
            retry_policy::Backoff::Exponential(wire::ExponentialBackoff {
                initial_ms,
                max_ms,
                multiplier_thousandths,
            })
        }
        Backoff::Customised { steps_ms } => {
            retry_policy::Backoff::Customised(wire::CustomisedBackoff { steps_ms })
        }
    };
    let retry = wire::RetryPolicy { max_attempts: settings.attempts_max, backoff: Some(backoff) };
    let attributes = wire::GroupAttributes {
        priority_factor: u32::from(attributes.priority_factor),
        lite_bind_topic: attributes.bind_topic,
        lite_exclusive: attributes.exclusive,
        lite_client_quota: attributes.client_quota,
        lite_reset_offset_exclusive: attributes.reset_when_taken_over,
        lite_reset_offset_unsubscribe: attributes.reset_on_unsubscribe,
    };
    wire::ConsumerGroup {
        name: name.to_string(),
        fifo: settings.fifo,
        retry: Some(retry),
        exists,
        attributes: Some(attributes),
        conflicts,
        differing_topics,
    }
}

/// What its members do not agree about.
fn subscriptions_of(
    hosted: &HostedGroup,
    consumer_group: ConsumerGroupId,
) -> (Vec<wire::SubscriptionConflict>, Vec<wire::DifferingTopics>) {
    let name = |topic| hosted.state.topic_by_id(topic).map(|topic| topic.name);
    let conflicts = hosted.subscriptions.conflicts_of(consumer_group).into_iter().filter_map(|conflict| {
        let filters = conflict.filters.into_iter();
        let filters = filters
            .map(|(expression, client_ids)| wire::subscription_conflict::Filter { expression, client_ids });
        Some(wire::SubscriptionConflict {
            group: hosted.name.to_string(),
            topic: name(conflict.topic)?,
            filters: filters.collect(),
        })
    });
    let differing = hosted.subscriptions.differing_topics(consumer_group).into_iter();
    let differing = differing.map(|(topics, client_ids)| wire::DifferingTopics {
        group: hosted.name.to_string(),
        topics: topics.into_iter().filter_map(name).collect(),
        client_ids,
    });
    (conflicts.collect(), differing.collect())
}

fn list_consumer_groups(
    hosted: &HostedGroup,
    request: &wire::ListConsumerGroupsRequest,
) -> wire::ListConsumerGroupsResponse {
    let limit = CONSUMER_GROUPS_PER_PAGE_MAX;
    let max = if request.max == 0 { limit } else { (request.max as usize).min(limit) };
    let mut names: Vec<String> = hosted.consumer_group_names().filter(|name| *name > request.after).collect();
    names.sort_unstable();
    let next =
        if names.len() > max { names.get(max - 1).cloned().unwrap_or_default() } else { String::new() };
    // Groups of the system's own have names that clients cannot use.
    let shown = names.into_iter().take(max).filter_map(|name| ConsumerGroupName::parse(&name).ok());
    let consumer_groups = shown.map(|name| show_consumer_group(hosted, &name)).collect();
    wire::ListConsumerGroupsResponse { consumer_groups, next }
}

fn list_dead_letters(
    hosted: &HostedGroup,
    request: &wire::ListDeadLettersRequest,
) -> wire::ListDeadLettersResponse {
    let limit = if request.with_body { 1 } else { LETTERS_PER_PAGE_MAX };
    let max = if request.max == 0 { limit } else { request.max.min(limit) };
    let from = QueueOffset(request.from.as_ref().map_or(0, |from| from.offset));
    let (letters, next) = dead_letters::list(hosted, &request.consumer_group, from, max);
    wire::ListDeadLettersResponse {
        letters: letters.into_iter().map(|letter| shown(hosted, letter, request.with_body)).collect(),
        next: next.map(|next| wire::Cursor { group: hosted.name.to_string(), offset: next.get() }),
    }
}

fn shown(hosted: &HostedGroup, letter: ReadLetter, with_body: bool) -> wire::DeadLetter {
    let ReadLetter { at, is_redriven, stored } = letter;
    let mut shown = wire::DeadLetter {
        group: hosted.name.to_string(),
        offset: at.get(),
        message_id: stored.id,
        born_ms: stored.born_at.get(),
        tag: stored.properties.tag,
        keys: stored.properties.keys,
        properties: stored.properties.user,
        body_bytes: u32::try_from(stored.body.len()).unwrap_or(u32::MAX),
        body: if with_body { stored.body } else { bytes::Bytes::new() },
        redriven: is_redriven,
        ..wire::DeadLetter::default()
    };
    if let Some(letter) = stored.dead_letter {
        shown.topic = letter.topic_name;
        shown.queue = letter.queue.get();
        shown.queue_offset = letter.offset.get();
        shown.attempts = letter.attempts;
        shown.reason = letter.reason.as_str().to_owned();
        shown.at_ms = letter.at.get();
    }
    shown
}

async fn redrive(
    hosted: &HostedGroup,
    request: &wire::RedriveDeadLettersRequest,
) -> Result<wire::RedriveDeadLettersResponse, Ended> {
    if request.offsets.len() > LETTERS_PER_REDRIVE_MAX {
        let count = request.offsets.len();
        return Err(bad(format!("offsets has {count} entries; the limit is {LETTERS_PER_REDRIVE_MAX}")));
    }
    let letters: Vec<QueueOffset> = request.offsets.iter().copied().map(QueueOffset).collect();
    let redriven = dead_letters::redrive(hosted, &request.consumer_group, &letters).await?;
    Ok(wire::RedriveDeadLettersResponse { redriven })
}

async fn reset_offsets(
    hosted: &HostedGroup,
    request: &wire::ResetOffsetsRequest,
) -> Result<wire::ResetOffsetsResponse, Ended> {
    let name = consumer_group(&request.consumer_group)?;
    let to = match &request.to {
        Some(To::Beginning(_)) => ResetTo::Beginning,
        Some(To::End(_)) => ResetTo::End,
        Some(To::StoredAtMs(at_ms)) => ResetTo::At(UnixMillis(*at_ms)),
        Some(To::Place(place)) => ResetTo::Offset(QueueId(place.queue), QueueOffset(place.offset)),
        None => return Err(bad("to is missing".to_owned())),
    };
    let queues = offsets::reset(hosted, &name, &request.topic, to, ResetId(request.reset_id)).await?;
    Ok(wire::ResetOffsetsResponse { queues })
}

async fn set_topic_retention(
    hosted: &HostedGroup,
    request: &wire::SetTopicRetentionRequest,
) -> Result<wire::RetentionPart, Ended> {
    let retention_s_max = RETENTION_S_MAX;
    if let Some(retention_ms) = request.retention_ms.filter(|ms| *ms > retention_s_max * 1000) {
        return Err(bad(format!("retention_ms is {retention_ms}; the limit is {retention_s_max}000")));
    }
    let topic =
        hosted.state.topic(&request.topic).ok_or_else(|| Refused::from(topic_not_found(&request.topic)))?;
    let command = SetTopicRetention { topic: topic.id, retention_ms: request.retention_ms };
    match hosted.propose(Command::SetTopicRetention(command).encode(hosted.now())).await? {
        Answer::RetentionSet => show_retention(hosted, &request.topic),
        other => Err(unexpected("SetTopicRetention", &other)),
    }
}

fn show_retention(hosted: &HostedGroup, topic: &str) -> Result<wire::RetentionPart, Ended> {
    let view = hosted.state.retention_view();
    let status = hosted.group.status();
    let mut part = wire::RetentionPart {
        group: hosted.name.to_string(),
        log_start: status.physical_start.get(),
        log_end: status.physical_end.get(),
        released_below: view.released_below.get(),
        purged_index: status.purged.map_or(0, |purged| purged.get()),
        oldest_ms: view.oldest_at.map_or(0, |at| at.get()),
        held_by: hosted.last_look().holder.map(|holder| held_by(hosted, holder)).unwrap_or_default(),
        expired_messages: view.expired_messages,
        carried_records: view.carried_records,
        carried_bytes: view.carried_bytes,
        ..wire::RetentionPart::default()
    };
    if topic.is_empty() {
        return Ok(part);
    }
    let topic = hosted.state.topic(topic).ok_or_else(|| Refused::from(topic_not_found(topic)))?;
    let retention = hosted.state.topic_retention(topic.id, hosted.settings.retention.retention_ms);
    part.retention_ms = retention.retention_ms;
    part.own_retention = retention.is_own;
    let unread = hosted.state.consumer_groups().into_iter().map(|group| wire::ExpiredUnread {
        messages: hosted.state.expired_unread(group.id, topic.id),
        consumer_group: group.name,
    });
    part.expired_unread = unread.filter(|unread| unread.messages > 0).collect();
    Ok(part)
}

fn held_by(hosted: &HostedGroup, holder: Pinned) -> String {
    let name = |topic| hosted.state.topic_by_id(topic).map(|topic| topic.name).unwrap_or_default();
    match holder {
        Pinned::Message(topic) => format!("message of {}", name(topic)),
        Pinned::LateMessage(topic) => format!("late message of {}", name(topic)),
        Pinned::UndecidedHalf => "half message".to_owned(),
        Pinned::PendingTimer => "timer".to_owned(),
    }
}

async fn forget_drained(
    hosted: &HostedGroup,
    request: &wire::ForgetDrained,
) -> Result<wire::ResetOffsetsResponse, Ended> {
    let name = consumer_group(&request.consumer_group)?;
    let queues = offsets::forget_drained(hosted, &name, &request.topic).await?;
    Ok(wire::ResetOffsetsResponse { queues })
}

fn consumer_group(name: &str) -> Result<ConsumerGroupName, Ended> {
    ConsumerGroupName::parse(name)
        .map_err(|error| Refused::new(Code::IllegalConsumerGroup, error.to_string()).into())
}

fn bad(message: String) -> Ended {
    Refused::new(Code::BadRequest, message).into()
}
