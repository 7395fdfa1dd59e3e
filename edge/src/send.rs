//! SendMessage: checked, bound to one broker group, handed to its leader.
//!
//! The group is chosen by the first message id ([`Edge::carrier`]).

use ledgermq_common::limits::SEND_BATCH_MESSAGES_MAX;
use ledgermq_proto::rocketmq::{
    Code, Message, MessageType, SendMessageRequest, SendMessageResponse, SendResultEntry, Status,
};

use crate::codes::{CallFailed, not_implemented};
use crate::context::CallContext;
use crate::edge::Edge;
use crate::group_call::{GroupRequest, GroupResponse, Refused, SendRequest};
use crate::validate;

impl Edge {
    pub(crate) async fn send_message(
        &self,
        context: &CallContext,
        request: SendMessageRequest,
    ) -> SendMessageResponse {
        let ids: Vec<String> = request
            .messages
            .iter()
            .take(SEND_BATCH_MESSAGES_MAX)
            .map(|message| id_of(message).to_owned())
            .collect();
        let sent = match self.shared.send_gate.enter() {
            Ok(inside) => self.send(context, request).await.inspect(|_| inside.stored()),
            Err(refused) => Err(refused),
        };
        match sent {
            Ok(mut response) => {
                // Some SDKs look at the top, some at the entries.
                if response.status.is_none() {
                    response.status = Some(crate::codes::common_status(
                        response.entries.iter().map(|entry| entry.status.as_ref()),
                    ));
                }
                response
            }
            Err(refused) => refused_response(refused.into_status(context.language), ids),
        }
    }

    async fn send(
        &self,
        context: &CallContext,
        request: SendMessageRequest,
    ) -> Result<SendMessageResponse, Refused> {
        let topic = validate::messages(&request.messages, self.now().get())?;
        let chosen = self.carrier(context, &topic, request.messages.first().map_or("", id_of)).await?;
        let accepted = chosen.description.message_type;
        validate::message_type_fits(&topic, accepted, &request.messages)?;
        match accepted {
            // A priority is a queue of the group that was chosen: its leader takes the queue.
            MessageType::Normal | MessageType::Delay | MessageType::Priority => {}
            MessageType::Lite => return self.send_lite(context, topic, request).await,
            MessageType::Fifo => return self.send_in_order(context, topic, request).await,
            MessageType::Transaction => self.shared.producers.sent_half(&context.client_id, &topic),
            other @ MessageType::Unspecified => {
                return Err(not_implemented(&format!(
                    "SendMessage to a topic of type {}",
                    other.as_str_name()
                )));
            }
        }
        let group = &chosen.group;
        let request = GroupRequest::Send(SendRequest { topic: topic.clone(), request, generation: 0 });
        match self.call(group, context, &request).await? {
            GroupResponse::Send(response) => Ok(response),
            GroupResponse::Refused(refused) => {
                if refused.code == Code::TopicNotFound {
                    self.forget_topic(group, &topic);
                }
                Err(refused)
            }
            _ => Err(CallFailed::WrongAnswer { group: group.clone() }.into()),
        }
    }
}

pub(crate) fn id_of(message: &Message) -> &str {
    message.system_properties.as_ref().map_or("", |system| &system.message_id)
}

fn refused_response(status: Status, ids: Vec<String>) -> SendMessageResponse {
    let entries = ids
        .into_iter()
        .map(|message_id| SendResultEntry {
            status: Some(status.clone()),
            message_id,
            ..SendResultEntry::default()
        })
        .collect();
    SendMessageResponse { status: Some(status), entries }
}
