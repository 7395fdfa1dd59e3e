//! How long topics keep their messages, and what each broker group keeps its log for.

use ledgermq_edge::context::CallContext;
use ledgermq_proto::admin as wire;
use ledgermq_proto::admin::group_operation::Operation;
use ledgermq_proto::admin::group_operation_result::Result as Answered;
use tonic::Status;

use super::consumer_groups::operate;
use super::{Cluster, not_understood};

/// In every group that has the topic. A failure half-way is repaired by repeating it.
pub async fn set(
    cluster: &Cluster,
    context: &CallContext,
    request: wire::SetTopicRetentionRequest,
) -> Result<wire::RetentionResponse, Status> {
    collect(cluster, context, Operation::SetTopicRetention(request)).await
}

pub async fn show(
    cluster: &Cluster,
    context: &CallContext,
    request: wire::ShowRetentionRequest,
) -> Result<wire::RetentionResponse, Status> {
    collect(cluster, context, Operation::ShowRetention(request)).await
}

async fn collect(
    cluster: &Cluster,
    context: &CallContext,
    operation: Operation,
) -> Result<wire::RetentionResponse, Status> {
    let (mut parts, mut not_found) = (Vec::new(), None);
    for group in cluster.all_groups()? {
        match operate(cluster, context, &group, operation.clone()).await {
            Ok(Answered::Retention(part)) => parts.push(part),
            Ok(_) => return Err(not_understood("Retention")),
            Err(status) if status.code() == tonic::Code::NotFound => not_found = Some(status),
            Err(status) => return Err(status),
        }
    }
    match not_found {
        Some(status) if parts.is_empty() => Err(status),
        _ => Ok(wire::RetentionResponse { parts }),
    }
}
