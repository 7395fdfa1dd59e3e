//! Consumer groups and their dead letters across broker groups: each keeps its own part.

use ledgermq_common::GroupName;
use ledgermq_edge::context::CallContext;
use ledgermq_edge::group_call::{GroupRequest, GroupResponse};
use ledgermq_proto::admin as wire;
use ledgermq_proto::admin::group_operation::Operation;
use ledgermq_proto::admin::group_operation_result::Result as Answered;
use tonic::Status;

use super::{Cluster, not_understood, refusal_of};

pub async fn set(
    cluster: &Cluster,
    context: &CallContext,
    request: wire::SetConsumerGroupRequest,
) -> Result<wire::SetConsumerGroupResponse, Status> {
    let mut consumer_group = None;
    for group in cluster.all_groups()? {
        let operation = Operation::SetConsumerGroup(request.clone());
        match operate(cluster, context, &group, operation).await? {
            Answered::ConsumerGroup(set) => consumer_group = Some(set),
            _ => return Err(not_understood("SetConsumerGroup")),
        }
    }
    Ok(wire::SetConsumerGroupResponse { consumer_group })
}

/// The first broker group that knows it speaks for all; one it did not reach yet has the defaults.
pub async fn show(
    cluster: &Cluster,
    context: &CallContext,
    request: wire::ShowConsumerGroupRequest,
) -> Result<wire::ShowConsumerGroupResponse, Status> {
    let mut consumer_group: Option<wire::ConsumerGroup> = None;
    for group in cluster.all_groups()? {
        let operation = Operation::ShowConsumerGroup(request.clone());
        match operate(cluster, context, &group, operation).await? {
            Answered::ConsumerGroup(shown) if shown.exists => {
                return Ok(wire::ShowConsumerGroupResponse { consumer_group: Some(shown) });
            }
            Answered::ConsumerGroup(shown) => consumer_group = consumer_group.or(Some(shown)),
            _ => return Err(not_understood("ShowConsumerGroup")),
        }
    }
    Ok(wire::ShowConsumerGroupResponse { consumer_group })
}

/// A page lies within one broker group; at its end the cursor goes on in the next one.
pub async fn list_dead_letters(
    cluster: &Cluster,
    context: &CallContext,
    request: wire::ListDeadLettersRequest,
) -> Result<wire::ListDeadLettersResponse, Status> {
    let groups = cluster.all_groups()?;
    let mut from = request.from.clone();
    let first = from.as_ref().map_or("", |from| from.group.as_str());
    let rest: Vec<&GroupName> = groups.iter().skip_while(|group| group.as_str() < first).collect();
    for group in rest {
        if from.as_ref().is_some_and(|from| from.group != group.as_str()) {
            from = None;
        }
        let operation =
            Operation::ListDeadLetters(wire::ListDeadLettersRequest { from: from.take(), ..request.clone() });
        match operate(cluster, context, group, operation).await? {
            Answered::DeadLetters(mut page) if !page.letters.is_empty() || page.next.is_some() => {
                let following = groups.iter().find(|other| other.as_str() > group.as_str());
                page.next = page
                    .next
                    .or_else(|| following.map(|group| wire::Cursor { group: group.to_string(), offset: 0 }));
                return Ok(page);
            }
            Answered::DeadLetters(_) => {}
            _ => return Err(not_understood("ListDeadLetters")),
        }
    }
    Ok(wire::ListDeadLettersResponse::default())
}

pub async fn redrive_dead_letters(
    cluster: &Cluster,
    context: &CallContext,
    request: wire::RedriveDeadLettersRequest,
) -> Result<wire::RedriveDeadLettersResponse, Status> {
    let group = cluster.group(&request.group)?;
    match operate(cluster, context, &group, Operation::RedriveDeadLetters(request)).await? {
        Answered::Redriven(redriven) => Ok(redriven),
        _ => Err(not_understood("RedriveDeadLetters")),
    }
}

/// One broker group's part of a request.
pub async fn operate(
    cluster: &Cluster,
    context: &CallContext,
    group: &GroupName,
    operation: Operation,
) -> Result<Answered, Status> {
    let request = GroupRequest::Operation(wire::GroupOperation { operation: Some(operation) });
    match cluster.call(group, context, request).await? {
        GroupResponse::Operation(wire::GroupOperationResult { result: Some(result) }) => Ok(result),
        other => Err(refusal_of(other)),
    }
}
