//! Topics across groups: each group keeps its own copy of a topic, and the cluster's view is put
//! together from what the leaders of all groups answer.
//!
//! A creation that fails half-way leaves the topic in some groups; repeating it creates the rest,
//! because a topic that is there with the same settings counts as created.

use std::collections::BTreeMap;

use ledgermq_common::{GroupName, TopicName};
use ledgermq_edge::context::CallContext;
use ledgermq_edge::group_call::{CreateTopic, GroupRequest, GroupResponse, TopicDescription};
use ledgermq_proto::admin as wire;
use ledgermq_proto::rocketmq::MessageType;
use tonic::Status;

use super::{Cluster, not_understood, refusal_of};

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
    Ok(wire::ListTopicsResponse { topics: by_name.values().filter_map(merge).collect() })
}

pub async fn show(
    cluster: &Cluster,
    context: &CallContext,
    request: wire::ShowTopicRequest,
) -> Result<wire::ShowTopicResponse, Status> {
    let name = topic_name(&request.name)?;
    let described = describe(cluster, context, &name).await?;
    let topic = merge(&described).ok_or_else(|| no_such_topic(&name))?;
    let mut shown = wire::ShowTopicResponse { topic: Some(topic), ..Default::default() };
    for group in described.keys() {
        match cluster.call(group, context, GroupRequest::ShowTopic(name.clone())).await? {
            GroupResponse::ShowTopic(part) => {
                shown.queues.extend(part.queues);
                shown.consumptions.extend(part.consumptions);
            }
            other => return Err(refusal_of(other)),
        }
    }
    Ok(shown)
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
        groups: described.keys().map(GroupName::to_string).collect(),
        created_ms: described.values().map(|topic| topic.created.get()).min().unwrap_or(0),
    })
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
