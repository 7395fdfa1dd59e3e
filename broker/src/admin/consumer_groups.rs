//! Consumer groups and their dead letters across broker groups: each keeps its own part.

use std::collections::BTreeMap;

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

/// The first broker group that knows it speaks for all; one it did not reach yet has the defaults. What
/// members subscribe to is known to each for itself.
pub async fn show(
    cluster: &Cluster,
    context: &CallContext,
    request: wire::ShowConsumerGroupRequest,
) -> Result<wire::ShowConsumerGroupResponse, Status> {
    let mut consumer_group: Option<wire::ConsumerGroup> = None;
    for group in cluster.all_groups()? {
        let operation = Operation::ShowConsumerGroup(request.clone());
        match operate(cluster, context, &group, operation).await? {
            Answered::ConsumerGroup(shown) => merge(&mut consumer_group, shown),
            _ => return Err(not_understood("ShowConsumerGroup")),
        }
    }
    Ok(wire::ShowConsumerGroupResponse { consumer_group })
}

fn merge(merged: &mut Option<wire::ConsumerGroup>, shown: wire::ConsumerGroup) {
    let Some(merged) = merged else {
        *merged = Some(shown);
        return;
    };
    let (mut first, mut other) = (std::mem::take(merged), shown);
    if !first.exists && other.exists {
        std::mem::swap(&mut first, &mut other);
    }
    first.conflicts.append(&mut other.conflicts);
    first.differing_topics.append(&mut other.differing_topics);
    *merged = first;
}

/// Every broker group gives the page that follows `after`; of all of them together the first ones are the
/// page of the cluster.
pub async fn list(
    cluster: &Cluster,
    context: &CallContext,
    request: wire::ListConsumerGroupsRequest,
) -> Result<wire::ListConsumerGroupsResponse, Status> {
    let mut by_name: BTreeMap<String, Option<wire::ConsumerGroup>> = BTreeMap::new();
    // Behind the last name of a page that has a successor another broker group's names are not complete.
    let mut complete_to: Option<String> = None;
    for group in cluster.all_groups()? {
        let operation = Operation::ListConsumerGroups(request.clone());
        let page = match operate(cluster, context, &group, operation).await? {
            Answered::ConsumerGroups(page) => page,
            _ => return Err(not_understood("ListConsumerGroups")),
        };
        if !page.next.is_empty() {
            complete_to = Some(complete_to.map_or(page.next.clone(), |to| to.min(page.next.clone())));
        }
        for shown in page.consumer_groups {
            merge(by_name.entry(shown.name.clone()).or_default(), shown);
        }
    }
    if let Some(to) = &complete_to {
        by_name.retain(|name, _| name <= to);
    }
    let consumer_groups = by_name.into_values().flatten().collect();
    Ok(wire::ListConsumerGroupsResponse { consumer_groups, next: complete_to.unwrap_or_default() })
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
