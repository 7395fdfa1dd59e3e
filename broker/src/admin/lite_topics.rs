//! Lite topics across broker groups: each has its own.

use ledgermq_common::GroupName;
use ledgermq_edge::context::CallContext;
use ledgermq_proto::admin as wire;
use ledgermq_proto::admin::group_operation::Operation;
use ledgermq_proto::admin::group_operation_result::Result as Answered;
use tonic::{Code, Status};

use super::consumer_groups::operate;
use super::{Cluster, not_understood};

/// A page lies within one broker group; at its end the cursor goes on in the next one.
pub async fn show(
    cluster: &Cluster,
    context: &CallContext,
    request: wire::ShowLiteTopicsRequest,
) -> Result<wire::ShowLiteTopicsResponse, Status> {
    let groups = cluster.all_groups()?;
    let mut from = request.from.clone();
    let first = from.as_ref().map_or("", |from| from.group.as_str());
    let rest: Vec<&GroupName> = groups.iter().skip_while(|group| group.as_str() < first).collect();
    let mut refused = None;
    let mut empty = None;
    for group in rest {
        if from.as_ref().is_some_and(|from| from.group != group.as_str()) {
            from = None;
        }
        let operation =
            Operation::ShowLiteTopics(wire::ShowLiteTopicsRequest { from: from.take(), ..request.clone() });
        match operate(cluster, context, group, operation).await {
            Ok(Answered::LiteTopics(mut page)) if !page.lite_topics.is_empty() || page.next.is_some() => {
                let following = groups.iter().find(|other| other.as_str() > group.as_str());
                page.next = page
                    .next
                    .or_else(|| following.map(|group| wire::Cursor { group: group.to_string(), offset: 0 }));
                return Ok(page);
            }
            Ok(Answered::LiteTopics(page)) => empty = Some(page),
            Ok(_) => return Err(not_understood("ShowLiteTopics")),
            // Not every group carries every topic.
            Err(status) if status.code() == Code::NotFound => refused = Some(status),
            Err(status) => return Err(status),
        }
    }
    match (empty, refused) {
        (Some(page), _) => Ok(page),
        (None, Some(refused)) => Err(refused),
        (None, None) => Ok(wire::ShowLiteTopicsResponse::default()),
    }
}

pub async fn set(
    cluster: &Cluster,
    context: &CallContext,
    request: wire::SetLiteTopicRequest,
) -> Result<wire::SetLiteTopicResponse, Status> {
    let mut refused = None;
    let mut is_set = false;
    for group in cluster.all_groups()? {
        match operate(cluster, context, &group, Operation::SetLiteTopic(request.clone())).await {
            Ok(Answered::LiteTopicSet(_)) => is_set = true,
            Ok(_) => return Err(not_understood("SetLiteTopic")),
            Err(status) if status.code() == Code::NotFound => refused = Some(status),
            Err(status) => return Err(status),
        }
    }
    match refused {
        Some(refused) if !is_set => Err(refused),
        _ => Ok(wire::SetLiteTopicResponse {}),
    }
}
