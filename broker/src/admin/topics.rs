//! Topics across groups: each group keeps its own copy of a topic, and the cluster's view is put
//! together from what the leaders of all groups answer.
//!
//! A creation that fails half-way leaves the topic in some groups; repeating it creates the rest,
//! because a topic that is there with the same settings counts as created.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ledgermq_common::{GroupName, TopicName};
use ledgermq_edge::context::CallContext;
use ledgermq_edge::group_call::{CreateTopic, GroupRequest, GroupResponse, TopicDescription};
use ledgermq_proto::admin as wire;
use ledgermq_proto::admin::group_operation::Operation;
use ledgermq_proto::admin::group_operation_result::Result as Answered;
use ledgermq_proto::rocketmq::MessageType;
use tonic::Status;

use super::consumer_groups::operate;
use super::{Cluster, not_understood, refusal_of};

/// How often a growth is looked at by whoever waits for it.
const GROWTH_LOOK: Duration = Duration::from_millis(20);

pub async fn create(
    cluster: &Cluster,
    context: &CallContext,
    request: wire::CreateTopicRequest,
) -> Result<wire::CreateTopicResponse, Status> {
    let name = topic_name(&request.name)?;
    let message_type = match MessageType::try_from(request.message_type) {
        Ok(MessageType::Unspecified | MessageType::Normal) => MessageType::Normal,
        Ok(known) => known,
        Err(_) => {
            return Err(Status::invalid_argument(format!(
                "message_type = {}: no such message type",
                request.message_type
            )));
        }
    };
    if request.queues > ledgermq_common::limits::TOPIC_QUEUES_MAX {
        return Err(Status::invalid_argument(format!(
            "queues = {}: the limit is {}",
            request.queues,
            ledgermq_common::limits::TOPIC_QUEUES_MAX
        )));
    }
    let groups = groups_to_use(cluster, &request.groups)?;
    let before = describe(cluster, context, &name).await?;
    refuse_remains(&name, &before)?;
    let differs = |topic: &TopicDescription| {
        topic.message_type != message_type || request.queues != 0 && topic.queues != request.queues
    };
    if let Some(topic) = before.values().find(|topic| differs(topic)) {
        return Err(Status::already_exists(format!(
            "topic {name} exists already with {} queues and type {}",
            topic.queues,
            topic.message_type.as_str_name()
        )));
    }
    let mut described = BTreeMap::new();
    for group in groups {
        let create = CreateTopic { name: name.clone(), queues: request.queues, message_type };
        match cluster.call(&group, context, GroupRequest::CreateTopic(create)).await? {
            GroupResponse::Topics(topics) => {
                if let Some(topic) = topics.into_iter().next() {
                    described.insert(group, topic);
                }
            }
            other => return Err(refusal_of(other)),
        }
    }
    let created = described.keys().any(|group| !before.contains_key(group));
    let topic = merge(&described).ok_or_else(|| not_understood("CreateTopic"))?;
    Ok(wire::CreateTopicResponse { topic: Some(topic), created })
}

pub async fn list(cluster: &Cluster, context: &CallContext) -> Result<wire::ListTopicsResponse, Status> {
    let mut by_name: BTreeMap<TopicName, BTreeMap<GroupName, TopicDescription>> = BTreeMap::new();
    for group in all_groups(cluster)? {
        match cluster.call(&group, context, GroupRequest::ListTopics).await? {
            GroupResponse::Topics(topics) => {
                for topic in topics {
                    by_name.entry(topic.name.clone()).or_default().insert(group.clone(), topic);
                }
            }
            other => return Err(refusal_of(other)),
        }
    }
    let mut topics = Vec::new();
    for described in by_name.values() {
        let Some(mut topic) = merge(described) else { continue };
        if described.values().any(|topic| topic.placement.is_some()) {
            let shown = shown(cluster, context, described).await?;
            topic.draining = draining(&shown);
            topic.growing_to = growing_to(cluster, context, described).await?;
        }
        topics.push(topic);
    }
    Ok(wire::ListTopicsResponse { topics })
}

pub async fn show(
    cluster: &Cluster,
    context: &CallContext,
    request: wire::ShowTopicRequest,
) -> Result<wire::ShowTopicResponse, Status> {
    let name = topic_name(&request.name)?;
    let described = describe(cluster, context, &name).await?;
    let mut topic = merge(&described).ok_or_else(|| no_such_topic(&name))?;
    let mut shown = shown(cluster, context, &described).await?;
    topic.draining = draining(&shown);
    topic.growing_to = growing_to(cluster, context, &described).await?;
    shown.topic = Some(topic);
    Ok(shown)
}

/// Changes how many queues a topic has. One with order grows by a generation, which is driven by the
/// leader of its home; this waits until that is served.
pub async fn update(
    cluster: &Cluster,
    context: &CallContext,
    request: wire::UpdateTopicRequest,
) -> Result<wire::UpdateTopicResponse, Status> {
    let name = topic_name(&request.name)?;
    let queues_max = ledgermq_common::limits::TOPIC_QUEUES_MAX;
    if !(1..=queues_max).contains(&request.queues) {
        return Err(Status::invalid_argument(format!(
            "queues = {}: it must be within 1..={queues_max}",
            request.queues
        )));
    }
    let described = describe(cluster, context, &name).await?;
    let Some(first) = described.values().next() else { return Err(no_such_topic(&name)) };
    refuse_remains(&name, &described)?;
    if let Some((group, topic)) = described.iter().find(|(_, topic)| topic.queues > request.queues) {
        let is_growing = topic.message_type == MessageType::Fifo
            && growing_to(cluster, context, &described).await?.is_some();
        let queues = topic.queues;
        return Err(match is_growing {
            true => Status::failed_precondition(format!("topic {name} is growing to {queues} queues")),
            false => Status::invalid_argument(format!(
                "queues = {}: topic {name} has {queues} in group {group}, and queues cannot become fewer",
                request.queues
            )),
        });
    }
    let changed = if first.message_type == MessageType::Fifo {
        grow(cluster, context, &name, &described, request.queues).await?
    } else {
        let changed = described.values().any(|topic| topic.queues != request.queues);
        for group in described.keys() {
            let set = wire::SetTopicQueues { topic: name.to_string(), queues: request.queues };
            operate(cluster, context, group, Operation::SetTopicQueues(set)).await?;
        }
        changed
    };
    let described = describe(cluster, context, &name).await?;
    let mut topic = merge(&described).ok_or_else(|| no_such_topic(&name))?;
    if topic.generation > 0 {
        topic.draining = draining(&shown(cluster, context, &described).await?);
    }
    Ok(wire::UpdateTopicResponse { topic: Some(topic), changed })
}

/// Whether the topic grew.
async fn grow(
    cluster: &Cluster,
    context: &CallContext,
    name: &TopicName,
    described: &BTreeMap<GroupName, TopicDescription>,
    queues: u32,
) -> Result<bool, Status> {
    let home = home_of(described).ok_or_else(|| no_such_topic(name))?;
    let present = described
        .iter()
        .map(|(group, topic)| wire::GroupQueues { group: group.to_string(), queues: topic.queues })
        .collect();
    let begin = wire::GrowTopic { topic: name.to_string(), queues, present };
    let mut state = growth(operate(cluster, context, &home, Operation::GrowTopic(begin)).await?)?;
    let changed = state.next.is_some();
    while state.next.is_some() {
        if context.remaining() <= GROWTH_LOOK {
            return Err(Status::deadline_exceeded(format!(
                "topic {name} is growing to {queues} queues in each group; `topic show` tells how far it is"
            )));
        }
        tokio::time::sleep(GROWTH_LOOK).await;
        let describe = wire::DescribeGrowth { topic: name.to_string() };
        state = growth(operate(cluster, context, &home, Operation::DescribeGrowth(describe)).await?)?;
    }
    Ok(changed)
}

fn growth(answered: Answered) -> Result<wire::GrowthState, Status> {
    match answered {
        Answered::Growth(state) => Ok(state),
        _ => Err(not_understood("a growth")),
    }
}

/// The group that drives the topic's growth.
fn home_of(described: &BTreeMap<GroupName, TopicDescription>) -> Option<GroupName> {
    let placements = described.values().filter_map(|topic| topic.placement.as_ref());
    let newest = placements.max_by_key(|placement| placement.generation);
    newest.map(|placement| placement.layout.home()).or_else(|| described.keys().next()).cloned()
}

/// The queues in each group by the next generation, while there is one.
async fn growing_to(
    cluster: &Cluster,
    context: &CallContext,
    described: &BTreeMap<GroupName, TopicDescription>,
) -> Result<Option<u32>, Status> {
    let (Some(home), Some(topic)) = (home_of(described), described.values().next()) else { return Ok(None) };
    if topic.message_type != MessageType::Fifo {
        return Ok(None);
    }
    let describe = wire::DescribeGrowth { topic: topic.name.to_string() };
    let state = growth(operate(cluster, context, &home, Operation::DescribeGrowth(describe)).await?)?;
    Ok(state.next_groups.first().map(|of| of.queues))
}

/// What each group shows of the topic.
async fn shown(
    cluster: &Cluster,
    context: &CallContext,
    described: &BTreeMap<GroupName, TopicDescription>,
) -> Result<wire::ShowTopicResponse, Status> {
    let mut shown = wire::ShowTopicResponse::default();
    for (group, topic) in described {
        match cluster.call(group, context, GroupRequest::ShowTopic(topic.name.clone())).await? {
            GroupResponse::ShowTopic(part) => {
                shown.queues.extend(part.queues);
                shown.consumptions.extend(part.consumptions);
                shown.generations.extend(part.generations);
                shown.draining.extend(part.draining);
            }
            other => return Err(refusal_of(other)),
        }
    }
    Ok(shown)
}

fn draining(shown: &wire::ShowTopicResponse) -> Vec<String> {
    let groups: BTreeSet<&String> = shown.draining.iter().map(|of| &of.consumer_group).collect();
    groups.into_iter().cloned().collect()
}

/// A topic with order that grew and is missing in a group it grew in: its deletion was interrupted, and
/// what is left must not be taken for a new topic of the same name.
fn refuse_remains(name: &TopicName, described: &BTreeMap<GroupName, TopicDescription>) -> Result<(), Status> {
    let placements = described.values().filter_map(|topic| topic.placement.as_ref());
    let mut groups = placements.flat_map(|placement| placement.layout.groups()).map(|(group, _)| group);
    match groups.find(|group| !described.contains_key(*group)) {
        None => Ok(()),
        Some(group) => Err(Status::failed_precondition(format!(
            "topic {name} is missing in group {group}: its deletion was interrupted; delete it again first"
        ))),
    }
}

pub async fn delete(
    cluster: &Cluster,
    context: &CallContext,
    request: wire::DeleteTopicRequest,
) -> Result<wire::DeleteTopicResponse, Status> {
    let name = topic_name(&request.name)?;
    let described = describe(cluster, context, &name).await?;
    if described.is_empty() {
        return Err(no_such_topic(&name));
    }
    for group in described.keys() {
        match cluster.call(group, context, GroupRequest::DeleteTopic(name.clone())).await? {
            GroupResponse::Done => {}
            other => return Err(refusal_of(other)),
        }
    }
    Ok(wire::DeleteTopicResponse {})
}

/// The groups that have the topic, each with its description.
async fn describe(
    cluster: &Cluster,
    context: &CallContext,
    name: &TopicName,
) -> Result<BTreeMap<GroupName, TopicDescription>, Status> {
    let mut described = BTreeMap::new();
    for group in all_groups(cluster)? {
        let request = GroupRequest::DescribeTopic(ledgermq_edge::group_call::DescribeTopic {
            name: name.clone(),
            create_if_missing: false,
        });
        match cluster.call(&group, context, request).await? {
            GroupResponse::Topics(topics) => {
                if let Some(topic) = topics.into_iter().next() {
                    described.insert(group, topic);
                }
            }
            other => return Err(refusal_of(other)),
        }
    }
    Ok(described)
}

fn merge(described: &BTreeMap<GroupName, TopicDescription>) -> Option<wire::Topic> {
    let first = described.values().next()?;
    Some(wire::Topic {
        name: first.name.to_string(),
        message_type: first.message_type as i32,
        queues: first.queues,
        generation: described.values().map(generation_of).max().unwrap_or(0),
        growing_to: None,
        draining: Vec::new(),
        groups: described.keys().map(GroupName::to_string).collect(),
        created_ms: described.values().map(|topic| topic.created.get()).min().unwrap_or(0),
    })
}

fn generation_of(topic: &TopicDescription) -> u32 {
    topic.placement.as_ref().map_or(0, |placement| placement.generation)
}

fn groups_to_use(cluster: &Cluster, wanted: &[String]) -> Result<Vec<GroupName>, Status> {
    let all = all_groups(cluster)?;
    if wanted.is_empty() {
        return Ok(all);
    }
    wanted
        .iter()
        .map(|name| {
            all.iter().find(|group| group.as_str() == name).cloned().ok_or_else(|| {
                Status::invalid_argument(format!(
                    "groups: there is no group {}",
                    ledgermq_common::names::excerpt(name)
                ))
            })
        })
        .collect()
}

fn all_groups(cluster: &Cluster) -> Result<Vec<GroupName>, Status> {
    cluster.all_groups()
}

fn topic_name(name: &str) -> Result<TopicName, Status> {
    TopicName::parse(name).map_err(|refused| Status::invalid_argument(refused.to_string()))
}

fn no_such_topic(name: &TopicName) -> Status {
    Status::not_found(format!("there is no topic {name}"))
}
