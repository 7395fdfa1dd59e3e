//! Transactions that wait for their outcome, over all groups: list, show, decide.
//!
//! A page goes through the groups by name; its continuation is the id of its last transaction, which
//! names the group to go on in.

use ledgermq_common::GroupName;
use ledgermq_common::transaction_id::TransactionId;
use ledgermq_edge::context::CallContext;
use ledgermq_edge::group_call::{GroupRequest, GroupResponse};
use ledgermq_edge::transactions::{Decision, DecisionSource, EndTransaction};
use ledgermq_proto::admin as wire;
use ledgermq_proto::rocketmq::{Code, TransactionResolution};
use tonic::Status;

use super::{Cluster, not_understood, refusal_of};

const PAGE_DEFAULT: u32 = 100;
const PAGE_MAX: u32 = 1000;

pub async fn list(
    cluster: &Cluster,
    context: &CallContext,
    request: wire::ListTransactionsRequest,
) -> Result<wire::ListTransactionsResponse, Status> {
    let max = if request.max == 0 { PAGE_DEFAULT } else { request.max.min(PAGE_MAX) };
    let view = cluster.view()?;
    let begin = match request.after.as_str() {
        "" => None,
        after => Some(group_of(cluster, &parse("after", after)?)?),
    };
    let groups = view.groups.keys().filter(|group| begin.as_ref().is_none_or(|begin| *group >= begin));
    let mut listed = wire::ListTransactionsResponse::default();
    let mut is_topic_known = request.topic.is_empty();
    for group in groups {
        let found = u32::try_from(listed.transactions.len()).unwrap_or(u32::MAX);
        if found >= max {
            break;
        }
        let after = if begin.as_ref() == Some(group) { request.after.clone() } else { String::new() };
        let ask = wire::ListTransactionsRequest { after, max: max - found, ..request.clone() };
        match cluster.call(group, context, GroupRequest::ListTransactions(ask)).await? {
            GroupResponse::Transactions(page) => {
                is_topic_known = true;
                listed.transactions.extend(page.transactions);
            }
            // A group may not carry the topic.
            GroupResponse::Refused(refused) if refused.code == Code::TopicNotFound => {}
            other => return Err(refusal_of(other)),
        }
    }
    if !is_topic_known {
        let topic = ledgermq_common::names::excerpt(&request.topic);
        return Err(Status::not_found(format!("there is no topic {topic}")));
    }
    let is_full = u32::try_from(listed.transactions.len()).unwrap_or(u32::MAX) >= max;
    listed.next = match listed.transactions.last() {
        Some(last) if is_full => last.transaction_id.clone(),
        _ => String::new(),
    };
    Ok(listed)
}

pub async fn show(
    cluster: &Cluster,
    context: &CallContext,
    request: wire::ShowTransactionRequest,
) -> Result<wire::ShowTransactionResponse, Status> {
    let id = parse("transaction_id", &request.transaction_id)?;
    let group = group_of(cluster, &id)?;
    match cluster.call(&group, context, GroupRequest::ShowTransaction(id)).await? {
        GroupResponse::Transaction(shown) => Ok(shown),
        other => Err(refusal_of(other)),
    }
}

pub async fn end(
    cluster: &Cluster,
    context: &CallContext,
    request: wire::EndTransactionRequest,
) -> Result<wire::EndTransactionResponse, Status> {
    let id = parse("transaction_id", &request.transaction_id)?;
    let decision = match request.decision() {
        TransactionResolution::Commit => Decision::Commit,
        TransactionResolution::Rollback => Decision::Rollback,
        TransactionResolution::Unspecified => {
            return Err(Status::invalid_argument("decision: must be COMMIT or ROLLBACK"));
        }
    };
    let group = group_of(cluster, &id)?;
    let end = EndTransaction { id, topic: None, decision, source: DecisionSource::Administrator };
    match cluster.call(&group, context, GroupRequest::EndTransaction(end)).await? {
        GroupResponse::Done => Ok(wire::EndTransactionResponse {}),
        GroupResponse::Refused(refused) => Err(match refused.code {
            Code::PreconditionFailed => Status::failed_precondition(refused.message),
            Code::InvalidTransactionId | Code::TopicNotFound => Status::not_found(refused.message),
            _ => Status::internal(refused.message),
        }),
        _ => Err(not_understood("EndTransaction")),
    }
}

fn parse(field: &str, text: &str) -> Result<TransactionId, Status> {
    TransactionId::parse(text).map_err(|error| Status::invalid_argument(format!("{field}: {error}")))
}

fn group_of(cluster: &Cluster, id: &TransactionId) -> Result<GroupName, Status> {
    let view = cluster.view()?;
    view.group_by_id(id.group)
        .map(|group| group.name.clone())
        .ok_or_else(|| Status::not_found(format!("this cluster has no broker group {}", id.group)))
}
