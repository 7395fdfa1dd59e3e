//! StoreBatch on the leader: messages of several topics become one command.
//!
//! | Condition | Answer |
//! |---|---|
//! | a topic is unknown | TOPIC_NOT_FOUND; the edge makes topics in all broker groups, not the leader in one |
//! | a message does not fit its topic, or the topic takes what a batch does not | MESSAGE_PROPERTY_CONFLICT_WITH_TYPE |
//! | a topic is not writable | FORBIDDEN |
//! | another generation of a topic's queues is served | a repeat gets its first answer, a part of it is refused, any other is moved; nothing is stored |
//! | every message id is in the window | OK with the first places; nothing is stored again |
//! | some are, others are not | PRECONDITION_FAILED; nothing is stored |
//!
//! The queue: of a topic with order the one the edge chose by the message group, of a topic with
//! priorities the priority, else the next in turn, one for all messages of the topic.

use std::collections::BTreeMap;

use ledgermq_common::names::excerpt;
use ledgermq_common::{QueueId, TopicName};
use ledgermq_edge::codes::topic_not_found;
use ledgermq_edge::context::CallContext;
use ledgermq_edge::group_call::{BatchPlace, GroupResponse, Refused, StoreBatch};
use ledgermq_edge::validate;
use ledgermq_proto::rocketmq::{Code, Message};

use super::hosted_group::{Ended, HostedGroup, refused, unexpected};
use super::{delivery, intake, produce};
use crate::state::{
    Answer, BatchPartlyStored, BatchTopic, Generation, MessageType, NewMessage, Refusal, StoredAt, TopicId,
    TopicView, encode_batch, encoded_batch_bytes,
};

/// A topic of the batch, and the queue its messages without an own one go to.
struct Target {
    topic: TopicView,
    generation: Generation,
    queue: QueueId,
}

pub async fn store(
    hosted: &HostedGroup,
    context: &CallContext,
    batch: &StoreBatch,
) -> Result<GroupResponse, Ended> {
    let mut targets = BTreeMap::new();
    for of in &batch.topics {
        let topic = hosted.state.topic(of.name.as_str()).ok_or_else(|| topic_not_found(of.name.as_str()))?;
        check_topic(&of.name, &topic)?;
        let queue = hosted.next_queue(&topic);
        let generation = Generation(of.generation);
        targets.insert(of.name.as_str(), Target { topic, generation, queue });
    }
    let mut placed = Vec::with_capacity(batch.messages.len());
    for message in &batch.messages {
        let name = message.topic.as_ref().map_or("", |topic| topic.name.as_str());
        placed.push((message, targets.get(name).ok_or_else(|| topic_not_found(name))?));
    }
    if targets.values().any(|target| is_moved(target)) {
        return first_answer(hosted, &placed);
    }
    let now = hosted.now();
    let mut messages: Vec<(TopicId, NewMessage)> = Vec::with_capacity(placed.len());
    for (message, target) in &placed {
        messages.push((target.topic.id, new_message(message, target, now, context)?));
    }
    let topics: Vec<BatchTopic> = targets
        .values()
        .map(|target| BatchTopic { topic: target.topic.id, generation: target.generation })
        .collect();
    let bytes = encoded_batch_bytes(topics.len(), &messages);
    let _room = produce::check_command(hosted, bytes, context).await?;
    let stored = match hosted.propose(encode_batch(hosted.now(), &topics, &messages)).await? {
        Answer::Stored(stored) => stored,
        Answer::BatchPartlyStored(partly) => return Err(partly_stored(&placed, partly).into()),
        // It ended between the look at the state and this entry.
        Answer::Refused(Refusal::GenerationEnded) => return Ok(GroupResponse::Moved),
        Answer::Refused(refusal) => {
            let gone = targets.keys().find(|name| hosted.state.topic(name).is_none());
            return Err(refused(refusal, gone.copied().unwrap_or("")).into());
        }
        other => return Err(unexpected("StoreBatch", &other)),
    };
    assert_eq!(stored.len(), messages.len(), "apply answers once for each message");
    for ((message, target), at) in placed.iter().zip(&stored) {
        if !at.repeated {
            hosted.metrics.messages_in(&target.topic.name, std::iter::once(message.body.len()));
        }
    }
    Ok(GroupResponse::BatchStored(stored.into_iter().map(place).collect()))
}

fn check_topic(name: &TopicName, topic: &TopicView) -> Result<(), Refused> {
    if !topic.settings.permission.may_write() {
        return Err(Refused::new(Code::Forbidden, format!("topic {name} is not writable")));
    }
    match topic.settings.message_type {
        MessageType::Normal | MessageType::Fifo | MessageType::Priority => Ok(()),
        other => {
            let taken = delivery::message_type(other).as_str_name();
            let why = format!(
                "topic \"{}\" takes {taken}; a batch takes NORMAL, FIFO and PRIORITY",
                excerpt(name.as_str())
            );
            Err(Refused::new(Code::MessagePropertyConflictWithType, why))
        }
    }
}

fn is_moved(target: &Target) -> bool {
    target.topic.settings.message_type == MessageType::Fifo
        && !produce::serves(&target.topic, target.generation)
}

fn new_message(
    message: &Message,
    target: &Target,
    now: ledgermq_common::clock::UnixMillis,
    context: &CallContext,
) -> Result<NewMessage, Refused> {
    let Target { topic, queue, .. } = target;
    let name =
        TopicName::parse(&topic.name).map_err(|error| Refused::new(Code::IllegalTopic, error.to_string()))?;
    let accepted = delivery::message_type(topic.settings.message_type);
    validate::message_type_fits(&name, accepted, std::slice::from_ref(message))?;
    let mut new = intake::new_message(message, *queue, now, context.peer);
    match topic.settings.message_type {
        MessageType::Fifo => new.queue = queue_in_order(message, topic)?,
        MessageType::Priority => new.queue = produce::queue_of_priority(&new, topic),
        _ => {}
    }
    Ok(new)
}

/// The queue the edge chose by the message group.
fn queue_in_order(message: &Message, topic: &TopicView) -> Result<QueueId, Refused> {
    let queue = message.system_properties.as_ref().and_then(|system| u32::try_from(system.queue_id).ok());
    queue.filter(|queue| *queue < topic.settings.queues).map(QueueId).ok_or_else(|| {
        Refused::new(
            Code::BadRequest,
            format!("queue {queue:?} is none of the {} of topic {}", topic.settings.queues, topic.name),
        )
    })
}

/// The answer where a generation that placed the batch is not served any more. No entry is needed: its end
/// is applied here, so nothing more is stored by it, and what is remembered now is all there is.
fn first_answer(hosted: &HostedGroup, placed: &[(&Message, &Target)]) -> Result<GroupResponse, Ended> {
    let found: Vec<Option<StoredAt>> = placed
        .iter()
        .map(|(message, target)| {
            let stored = hosted.state.stored_before(target.topic.id, [id_of(message)]);
            stored.and_then(|stored| stored.into_iter().next())
        })
        .collect();
    let known: Vec<StoredAt> = found.iter().flatten().copied().collect();
    if known.len() == placed.len() {
        return Ok(GroupResponse::BatchStored(known.into_iter().map(place).collect()));
    }
    match found.iter().position(Option::is_some) {
        None => Ok(GroupResponse::Moved),
        Some(first) => {
            let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
            let partly = BatchPartlyStored { stored: number(known.len()), first: number(first) };
            Err(partly_stored(placed, partly).into())
        }
    }
}

fn partly_stored(placed: &[(&Message, &Target)], partly: BatchPartlyStored) -> Refused {
    let id = placed.get(partly.first as usize).map_or("", |(message, _)| id_of(message));
    Refused::new(
        Code::PreconditionFailed,
        format!(
            "{} of the {} messages are stored already, the first of them message {} (message_id \"{}\"); \
             a batch is stored as a whole, so nothing of it was stored now",
            partly.stored,
            placed.len(),
            partly.first,
            excerpt(id)
        ),
    )
}

fn id_of(message: &Message) -> &str {
    message.system_properties.as_ref().map_or("", |system| system.message_id.as_str())
}

fn place(at: StoredAt) -> BatchPlace {
    BatchPlace { queue: at.queue, offset: at.offset, is_repeat: at.repeated }
}
