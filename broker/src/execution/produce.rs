//! SendMessage on the leader: choose a queue, stamp the time, encode once, propose.
//!
//! | Condition | Answer |
//! |---|---|
//! | topic unknown, creation by first use off | TOPIC_NOT_FOUND |
//! | message type is not the topic's | MESSAGE_PROPERTY_CONFLICT_WITH_TYPE |
//! | topic not writable | FORBIDDEN |
//! | topic with order | the queue is the one the edge chose by the message group |
//! | topic with priorities | the queue is the priority, at most the last one |
//! | another generation of its queues is served | a repeat gets its first answer; any other is moved, nothing is stored |
//! | topic of delayed messages | see [`timers`] |
//! | topic of type LITE | see [`lite`] |
//! | as many bytes as may be are being appended | waits its turn ([`append_room`]); TOO_MANY_REQUESTS if that takes too long |
//! | the client has stopped waiting | not proposed: it would cost an fsync for nobody |
//! | the message id is in the window | OK with the first place; nothing is stored again |

use ledgermq_common::QueueId;
use ledgermq_common::limits::COMMAND_BYTES_MAX;
use ledgermq_edge::codes;
use ledgermq_edge::context::CallContext;
use ledgermq_edge::group_call::{GroupResponse, NotExecuted, Refused, SendRequest};
use ledgermq_edge::validate;
use ledgermq_proto::rocketmq::{Code, SendMessageResponse, SendResultEntry};

#[cfg(doc)]
use super::append_room;
use super::append_room::Inside;
use super::hosted_group::{Ended, HostedGroup, refused, unexpected};
use super::{delivery, intake, lite, timers, transaction};
use crate::state::{
    Answer, Generation, MessageType, NewMessage, Refusal, StoredAt, TopicView, encode_append,
    encode_append_in_order, encoded_append_in_order_bytes,
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
    let is_ordered = topic.settings.message_type == MessageType::Fifo;
    let generation = Generation(send.generation);
    if is_ordered && !serves(&topic, generation) {
        return Ok(first_answer(hosted, send, &topic).unwrap_or(GroupResponse::Moved));
    }
    let queue = if is_ordered { queue_in_order(send, &topic)? } else { hosted.next_queue(&topic) };
    let mut messages = intake::new_messages(&send.request, queue, now, context.peer);
    if topic.settings.message_type == MessageType::Priority {
        messages.iter_mut().for_each(|message| message.queue = queue_of_priority(message, &topic));
    }
    let _room = check_command(hosted, encoded_append_in_order_bytes(&messages), context).await?;
    let command = if is_ordered {
        encode_append_in_order(hosted.now(), topic.id, generation, &messages)
    } else {
        encode_append(hosted.now(), topic.id, &messages)
    };
    let stored = match hosted.propose(command).await? {
        Answer::Stored(stored) => stored,
        // It ended between the look at the state and this entry.
        Answer::Refused(Refusal::GenerationEnded) => return Ok(GroupResponse::Moved),
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
pub(super) fn queue_of_priority(message: &NewMessage, topic: &TopicView) -> QueueId {
    let priority = message.properties.priority.and_then(|priority| u32::try_from(priority).ok()).unwrap_or(0);
    QueueId(priority.min(topic.settings.queues.saturating_sub(1)))
}

/// Whether sends placed by this generation are stored now, as far as this replica has applied.
pub(super) fn serves(topic: &TopicView, generation: Generation) -> bool {
    match &topic.placement {
        None => generation == Generation(0),
        Some(placement) => placement.generation == generation && !placement.is_closed,
    }
}

/// The answer to a repeat of messages that a generation stored which is not served any more.
///
/// No entry is needed: that generation's end is applied here, so nothing more is stored by it, and
/// what is remembered now is all there is to remember.
fn first_answer(hosted: &HostedGroup, send: &SendRequest, topic: &TopicView) -> Option<GroupResponse> {
    let ids: Vec<&str> = send
        .request
        .messages
        .iter()
        .map(|message| message.system_properties.as_ref().map_or("", |system| system.message_id.as_str()))
        .collect();
    let stored = hosted.state.stored_before(topic.id, ids.iter().copied())?;
    let entries = ids.into_iter().zip(stored).map(|(id, at)| entry(id.to_owned(), at)).collect();
    Some(GroupResponse::Send(SendMessageResponse { status: Some(codes::ok()), entries }))
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
) -> Result<Inside<'a>, Ended> {
    if command_bytes > COMMAND_BYTES_MAX {
        return Err(Refused::new(
            Code::PayloadTooLarge,
            format!("the messages take {command_bytes} bytes in the log; the limit is {COMMAND_BYTES_MAX}"),
        )
        .into());
    }
    let room = hosted.append_room.enter(command_bytes, context.deadline).await?;
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
