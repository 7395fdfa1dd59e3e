//! AckMessage and ChangeInvisibleDuration: the receipt handle names the group that knows the
//! delivery, so the entries of one request may go to several groups.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use ledgermq_common::{GroupName, ReceiptHandle};
use ledgermq_proto::rocketmq::{
    AckMessageEntry, AckMessageRequest, AckMessageResponse, AckMessageResultEntry,
    ChangeInvisibleDurationRequest, ChangeInvisibleDurationResponse, Status,
};

use crate::codes::{CallFailed, common_status};
use crate::context::CallContext;
use crate::edge::Edge;
use crate::group_call::{GroupRequest, GroupResponse, Refused};
use crate::validate::{self, Invalid};

impl Edge {
    pub(crate) async fn ack_message(
        &self,
        context: &CallContext,
        request: AckMessageRequest,
    ) -> Result<AckMessageResponse, Refused> {
        validate::topic(request.topic.as_ref())?;
        validate::consumer_group(request.group.as_ref())?;
        validate::ack_entries(request.entries.len())?;
        let AckMessageRequest { group: consumer_group, topic, entries } = request;

        let mut results: Vec<Option<AckMessageResultEntry>> = Vec::new();
        results.resize_with(entries.len(), || None);
        let mut by_group: BTreeMap<GroupName, (Vec<usize>, Vec<AckMessageEntry>)> = BTreeMap::new();
        for (index, entry) in entries.into_iter().enumerate() {
            match self.group_of_handle(context, &entry.receipt_handle).await {
                Ok(group) => {
                    let (indexes, entries) = by_group.entry(group).or_default();
                    indexes.push(index);
                    entries.push(entry);
                }
                Err(refused) => {
                    results[index] = Some(result(entry, refused.into_status(context.language)));
                }
            }
        }
        let calls = by_group.into_iter().map(|(group, (indexes, entries))| {
            let request = AckMessageRequest { group: consumer_group.clone(), topic: topic.clone(), entries };
            async move { (indexes, self.ack_in(context, &group, request).await) }
        });
        for (indexes, answers) in join_all(calls).await {
            for (index, answer) in indexes.into_iter().zip(answers) {
                results[index] = Some(answer);
            }
        }
        let entries: Vec<_> = results.into_iter().map(Option::unwrap_or_default).collect();
        let status = common_status(entries.iter().map(|entry| entry.status.as_ref()));
        Ok(AckMessageResponse { status: Some(status), entries })
    }

    /// One result per entry, in order.
    async fn ack_in(
        &self,
        context: &CallContext,
        group: &GroupName,
        request: AckMessageRequest,
    ) -> Vec<AckMessageResultEntry> {
        let request = GroupRequest::Ack(request);
        let refused = match self.call(group, context, &request).await {
            Ok(GroupResponse::Ack(response)) => {
                let GroupRequest::Ack(request) = &request else { unreachable!("made above") };
                if response.entries.len() == request.entries.len() {
                    return response.entries;
                }
                CallFailed::WrongAnswer { group: group.clone() }.into()
            }
            Ok(GroupResponse::Refused(refused)) => refused,
            Ok(_) => CallFailed::WrongAnswer { group: group.clone() }.into(),
            Err(failed) => failed.into(),
        };
        let status = refused.into_status(context.language);
        let GroupRequest::Ack(request) = request else { unreachable!("made above") };
        request.entries.into_iter().map(|entry| result(entry, status.clone())).collect()
    }

    pub(crate) async fn change_invisible_duration(
        &self,
        context: &CallContext,
        request: ChangeInvisibleDurationRequest,
    ) -> Result<ChangeInvisibleDurationResponse, Refused> {
        validate::topic(request.topic.as_ref())?;
        validate::consumer_group(request.group.as_ref())?;
        validate::change_invisible_ms(request.invisible_duration.as_ref())?;
        let group = self.group_of_handle(context, &request.receipt_handle).await?;
        match self.call(&group, context, &GroupRequest::ChangeInvisible(request)).await? {
            GroupResponse::ChangeInvisible(response) => Ok(response),
            GroupResponse::Refused(refused) => Err(refused),
            _ => Err(CallFailed::WrongAnswer { group }.into()),
        }
    }

    pub(crate) async fn group_of_handle(
        &self,
        context: &CallContext,
        handle: &str,
    ) -> Result<GroupName, Refused> {
        let handle: ReceiptHandle = validate::receipt_handle(handle)?;
        let cluster = self.cluster(context).await?;
        match cluster.group_by_id(handle.group) {
            Some(group) => Ok(group.name.clone()),
            None => Err(Invalid::ReceiptHandleGroup { group: handle.group.get() }.into()),
        }
    }
}

fn result(entry: AckMessageEntry, status: Status) -> AckMessageResultEntry {
    AckMessageResultEntry {
        message_id: entry.message_id,
        receipt_handle: entry.receipt_handle,
        status: Some(status),
    }
}
