//! RecallMessage: a delayed message is taken out before its time. The handle names the group.

use ledgermq_common::recall_handle::RecallHandle;
use ledgermq_proto::rocketmq::{MessageType, RecallMessageRequest, RecallMessageResponse};

use crate::codes::CallFailed;
use crate::context::CallContext;
use crate::edge::Edge;
use crate::group_call::{GroupRequest, GroupResponse, Refused};
use crate::validate::{self, Invalid};

impl Edge {
    pub(crate) async fn recall_message(
        &self,
        context: &CallContext,
        request: RecallMessageRequest,
    ) -> Result<RecallMessageResponse, Refused> {
        let topic = validate::topic(request.topic.as_ref())?;
        let hosted = self.locate(context, &topic).await?;
        let accepted =
            hosted.first().map_or(MessageType::Unspecified, |hosted| hosted.description.message_type);
        if accepted != MessageType::Delay {
            return Err(Invalid::RecallFromType {
                topic: topic.to_string(),
                accepted: accepted.as_str_name(),
            }
            .into());
        }
        let handle = RecallHandle::parse(&request.recall_handle).map_err(Invalid::RecallHandle)?;
        let cluster = self.cluster(context).await?;
        let Some(group) = cluster.group_by_id(handle.group).map(|group| group.name.clone()) else {
            return Err(Invalid::RecallHandleGroup { group: handle.group.get() }.into());
        };
        match self.call(&group, context, &GroupRequest::Recall(request)).await? {
            GroupResponse::Recalled(response) => Ok(response),
            GroupResponse::Refused(refused) => Err(refused),
            _ => Err(CallFailed::WrongAnswer { group }.into()),
        }
    }
}
