//! ForwardMessageToDeadLetterQueue: a consumer gives a message up.
//!
//! The receipt handle names the group that knows the delivery. The C++ SDK sends none; then every group
//! that carries the topic is asked for the message id, and the one that has it under delivery acts.

use futures_util::future::join_all;
use ledgermq_proto::rocketmq::{
    Code, ForwardMessageToDeadLetterQueueRequest, ForwardMessageToDeadLetterQueueResponse,
};

use crate::codes::{CallFailed, ok};
use crate::context::CallContext;
use crate::edge::Edge;
use crate::group_call::{GroupRequest, GroupResponse, Refused};
use crate::validate;

impl Edge {
    pub(crate) async fn forward_to_dead_letter_queue(
        &self,
        context: &CallContext,
        request: ForwardMessageToDeadLetterQueueRequest,
    ) -> Result<ForwardMessageToDeadLetterQueueResponse, Refused> {
        let topic = validate::topic(request.topic.as_ref())?;
        validate::consumer_group(request.group.as_ref())?;
        let groups = if request.receipt_handle.is_empty() {
            validate::message_id(&request.message_id)?;
            let hosted = self.locate(context, &topic).await?;
            hosted.into_iter().map(|hosted| hosted.group).collect()
        } else {
            vec![self.group_of_handle(context, &request.receipt_handle).await?]
        };
        let request = GroupRequest::DeadLetter(request);
        let calls = groups.into_iter().map(|group| {
            let request = &request;
            async move {
                match self.call(&group, context, request).await? {
                    GroupResponse::Done => Ok(()),
                    GroupResponse::Refused(refused) => Err(refused),
                    _ => Err(CallFailed::WrongAnswer { group }.into()),
                }
            }
        });
        settle(join_all(calls).await)?;
        Ok(ForwardMessageToDeadLetterQueueResponse { status: Some(ok()) })
    }
}

/// One group that did it is enough. One that could not be asked may have the message, so "not there"
/// counts only when all say so.
fn settle(answers: Vec<Result<(), Refused>>) -> Result<(), Refused> {
    let mut refusal = None;
    for answer in answers {
        match answer {
            Ok(()) => return Ok(()),
            Err(refused) if refused.code != Code::MessageNotFound => refusal = Some(refused),
            Err(refused) => {
                refusal.get_or_insert(refused);
            }
        }
    }
    refusal.map_or(Ok(()), Err)
}
