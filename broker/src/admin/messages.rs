//! Messages and offsets across broker groups.

use ledgermq_common::GroupName;
use ledgermq_edge::context::CallContext;
use ledgermq_proto::admin as wire;
use ledgermq_proto::admin::group_operation::Operation;
use ledgermq_proto::admin::group_operation_result::Result as Answered;
use ledgermq_proto::admin::query_messages_request::By;
use ledgermq_proto::admin::reset_offsets_request::To;
use rand::Rng as _;
use tonic::{Code, Status};

use super::consumer_groups::operate;
use super::{Cluster, not_understood};

/// A group that does not carry the topic has nothing to reset.
///
/// A broker group may be asked twice, when its leader changes meanwhile, and must not be moved twice:
/// consumers may have got ahead in between. A client that may repeat all of it draws the id itself.
pub async fn reset_offsets(
    cluster: &Cluster,
    context: &CallContext,
    mut request: wire::ResetOffsetsRequest,
) -> Result<wire::ResetOffsetsResponse, Status> {
    if request.reset_id == 0 {
        request.reset_id = rand::rng().random_range(1..=u64::MAX);
    }
    let groups = match &request.to {
        Some(To::Place(place)) => vec![cluster.group(&place.group)?],
        Some(_) => cluster.all_groups()?,
        None => return Err(Status::invalid_argument("to is missing")),
    };
    let mut queues = 0;
    let mut not_found = None;
    let mut found = false;
    for group in groups {
        match operate(cluster, context, &group, Operation::ResetOffsets(request.clone())).await {
            Ok(Answered::OffsetsReset(reset)) => {
                queues += reset.queues;
                found = true;
            }
            Ok(_) => return Err(not_understood("ResetOffsets")),
            Err(status) if status.code() == Code::NotFound => not_found = Some(status),
            Err(status) => return Err(status),
        }
    }
    if let Some(status) = not_found.filter(|_| !found) {
        return Err(status);
    }
    forget_drained(cluster, context, &request).await?;
    Ok(wire::ResetOffsetsResponse { queues })
}

/// Once every broker group is reset, the generations of a topic with order are drained anew in all of
/// them: a group asked in between may have said that it is drained.
async fn forget_drained(
    cluster: &Cluster,
    context: &CallContext,
    request: &wire::ResetOffsetsRequest,
) -> Result<(), Status> {
    for group in cluster.all_groups()? {
        let forget = wire::ForgetDrained {
            topic: request.topic.clone(),
            consumer_group: request.consumer_group.clone(),
        };
        match operate(cluster, context, &group, Operation::ForgetDrained(forget)).await {
            Ok(Answered::OffsetsReset(_)) => {}
            Ok(_) => return Err(not_understood("ForgetDrained")),
            Err(status) if status.code() == Code::NotFound => {}
            Err(status) => return Err(status),
        }
    }
    Ok(())
}

/// A page lies within one broker group; at its end the cursor goes on in the next one.
pub async fn query(
    cluster: &Cluster,
    context: &CallContext,
    request: wire::QueryMessagesRequest,
) -> Result<wire::QueryMessagesResponse, Status> {
    let groups = match &request.by {
        Some(By::Place(place)) => vec![cluster.group(&place.group)?],
        Some(_) => cluster.all_groups()?,
        None => return Err(Status::invalid_argument("by is missing")),
    };
    let mut from = request.from.clone();
    let first = from.as_ref().map_or("", |from| from.group.as_str());
    let rest: Vec<&GroupName> = groups.iter().skip_while(|group| group.as_str() < first).collect();
    let mut not_found = None;
    let mut found = false;
    for group in rest {
        if from.as_ref().is_some_and(|from| from.group != group.as_str()) {
            from = None;
        }
        let part = wire::QueryMessagesRequest { from: from.take(), ..request.clone() };
        match operate(cluster, context, group, Operation::QueryMessages(part)).await {
            Ok(Answered::Messages(mut page)) if !page.messages.is_empty() || page.next.is_some() => {
                let following = groups.iter().find(|other| other.as_str() > group.as_str());
                page.next = page
                    .next
                    .or_else(|| following.map(|group| wire::Cursor { group: group.to_string(), offset: 0 }));
                return Ok(page);
            }
            Ok(Answered::Messages(_)) => found = true,
            Ok(_) => return Err(not_understood("QueryMessages")),
            Err(status) if status.code() == Code::NotFound => not_found = Some(status),
            Err(status) => return Err(status),
        }
    }
    match not_found {
        Some(status) if !found => Err(status),
        _ => Ok(wire::QueryMessagesResponse::default()),
    }
}

pub async fn why(
    cluster: &Cluster,
    context: &CallContext,
    request: wire::WhyRequest,
) -> Result<wire::WhyResponse, Status> {
    let mut parts = Vec::new();
    for group in cluster.all_groups()? {
        match operate(cluster, context, &group, Operation::Why(request.clone())).await? {
            Answered::Why(part) => parts.push(part),
            _ => return Err(not_understood("Why")),
        }
    }
    let found = parts.iter().find(|part| part.found).or(parts.first());
    let verdict = found.map_or_else(String::new, |part| part.verdict.clone());
    Ok(wire::WhyResponse { verdict, parts })
}

/// A message lies in one broker group; the first one that has it tells all of its history.
pub async fn trace(
    cluster: &Cluster,
    context: &CallContext,
    request: wire::TraceMessageRequest,
) -> Result<wire::TraceMessageResponse, Status> {
    let groups = match &request.from {
        Some(from) => vec![cluster.group(&from.group)?],
        None => cluster.all_groups()?,
    };
    for group in groups {
        match operate(cluster, context, &group, Operation::TraceMessage(request.clone())).await? {
            Answered::Trace(page) if page.found => return Ok(page),
            Answered::Trace(_) => {}
            _ => return Err(not_understood("TraceMessage")),
        }
    }
    let id = ledgermq_common::names::excerpt(&request.message_id);
    Err(Status::not_found(format!(
        "message_id: message \"{id}\" is not stored: it was never acknowledged, or is older than what is kept"
    )))
}
