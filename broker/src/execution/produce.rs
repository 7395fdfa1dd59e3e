//! SendMessage on the leader: choose a queue, stamp the time, encode once, propose.
//!
//! | Condition | Answer |
//! |---|---|
//! | topic unknown, creation by first use off | TOPIC_NOT_FOUND |
//! | message type is not the topic's | MESSAGE_PROPERTY_CONFLICT_WITH_TYPE |
//! | topic not writable | FORBIDDEN |
//! | topic with order | the queue is the one the edge chose by the message group |
//! | topic with priorities | the queue is the priority, at most the last one |
//! | topic of delayed messages | see [`timers`] |
//! | topic of type LITE | see [`lite`] |
//! | [`APPEND_BYTES_MAX`] of messages are being appended | waits its turn, until its deadline |
//! | the client has stopped waiting | not proposed: it would cost an fsync for nobody |
//! | the message id is in the window | OK with the first place; nothing is stored again |

use ledgermq_common::QueueId;
use ledgermq_common::limits::COMMAND_BYTES_MAX;
use ledgermq_edge::codes;
use ledgermq_edge::context::CallContext;
use ledgermq_edge::group_call::{GroupResponse, NotExecuted, Refused, SendRequest};
use ledgermq_edge::validate;
use ledgermq_proto::rocketmq::{Code, SendMessageResponse, SendResultEntry};
use tokio::sync::SemaphorePermit;

#[cfg(doc)]
use super::hosted_group::APPEND_BYTES_MAX;
use super::hosted_group::{Ended, HostedGroup, refused, unexpected};
use super::{delivery, intake, lite, timers, transaction};
use crate::state::{
    Answer, MessageType, NewMessage, StoredAt, TopicView, encode_append, encoded_append_bytes,
};

pub async fn send(
    hosted: &HostedGroup,
    context: &CallContext,
    send: &SendRequest,
) -> Result<GroupResponse, Ended> {
    let topic = hosted.topic_or_create(&send.topic).await?;
    let topic_type = delivery::message_type(topic.settings.message_type);
    validate::message_type_fits(&send.topic, topic_type, &send.request.messages).map_err(Refused::from)?;
    if !topic.settings.permission.may_write() {
        return Err(Refused::new(Code::Forbidden, format!("topic {} is not writable", send.topic)).into());
    }
    if topic.settings.message_type == MessageType::Transaction {
        return transaction::send_halves(hosted, context, send, &topic).await;
    }
    if topic.settings.message_type == MessageType::Delay {
        return timers::send(hosted, context, send, &topic).await;
    }
    if topic.settings.message_type == MessageType::Lite {
        return lite::send(hosted, context, send, &topic).await;
    }
    let now = hosted.now();
    let queue = match topic.settings.message_type {
        MessageType::Fifo => queue_in_order(send, &topic)?,
        _ => hosted.next_queue(&topic),
    };
    let mut messages = intake::new_messages(&send.request, queue, now, context.peer);
    if topic.settings.message_type == MessageType::Priority {
        messages.iter_mut().for_each(|message| message.queue = queue_of_priority(message, &topic));
    }
    let _room = check_command(hosted, encoded_append_bytes(&messages), context).await?;
    let stored = match hosted.propose(encode_append(hosted.now(), topic.id, &messages)).await? {
        Answer::Stored(stored) => stored,
        Answer::Refused(refusal) => return Err(refused(refusal, send.topic.as_str()).into()),
        other => return Err(unexpected("AppendMessages", &other)),
    };
    assert_eq!(stored.len(), messages.len(), "apply answers once for each message");
    let new = messages.iter().zip(&stored).filter(|(_, at)| !at.repeated);
    hosted.metrics.messages_in(send.topic.as_str(), new.map(|(message, _)| message.body.len()));
    let entries = messages.into_iter().zip(stored).map(|(message, at)| entry(message.id, at)).collect();
    Ok(GroupResponse::Send(SendMessageResponse { status: Some(codes::ok()), entries }))
}

/// The queue is the priority; whatever is above the last queue shares it.
fn queue_of_priority(message: &NewMessage, topic: &TopicView) -> QueueId {
    let priority = message.properties.priority.and_then(|priority| u32::try_from(priority).ok()).unwrap_or(0);
    QueueId(priority.min(topic.settings.queues.saturating_sub(1)))
}

/// The queue the edge chose by the message group or the lite topic.
pub(super) fn queue_in_order(send: &SendRequest, topic: &TopicView) -> Result<QueueId, Refused> {
    let first = send.request.messages.first().and_then(|message| message.system_properties.as_ref());
    let queue = first.and_then(|system| u32::try_from(system.queue_id).ok());
    queue.filter(|queue| *queue < topic.settings.queues).map(QueueId).ok_or_else(|| {
        Refused::new(
            Code::BadRequest,
            format!("queue {queue:?} is none of the {} of topic {}", topic.settings.queues, send.topic),
        )
    })
}

/// What keeps a command of messages from being proposed at all; else its room, to be held until it
/// is answered.
pub(super) async fn check_command<'a>(
    hosted: &'a HostedGroup,
    command_bytes: usize,
    context: &CallContext,
) -> Result<SemaphorePermit<'a>, Ended> {
    if command_bytes > COMMAND_BYTES_MAX {
        return Err(Refused::new(
            Code::PayloadTooLarge,
            format!("the messages take {command_bytes} bytes in the log; the limit is {COMMAND_BYTES_MAX}"),
        )
        .into());
    }
    let room = hosted.append_room(command_bytes, context).await?;
    if context.remaining().is_zero() {
        return Err(NotExecuted::DeadlinePassed.into());
    }
    Ok(room)
}

pub(super) fn entry(message_id: String, at: StoredAt) -> SendResultEntry {
    SendResultEntry {
        status: Some(codes::ok()),
        message_id,
        // Names a transaction to commit or roll back; a normal message has none.
        transaction_id: String::new(),
        offset: i64::try_from(at.offset.get()).unwrap_or(i64::MAX),
        recall_handle: String::new(),
    }
}
