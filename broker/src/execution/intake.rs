//! From a message of a SendMessage or StoreBatch request to the record that goes into the log.
//!
//! The edge has checked names, sizes and characters; nothing is refused here.

use std::net::SocketAddr;

use ledgermq_common::QueueId;
use ledgermq_common::clock::UnixMillis;
use ledgermq_edge::validate;
use ledgermq_proto::rocketmq::{self as wire, Encoding, SystemProperties};

use crate::state::{BodyEncoding, MessageProperties, MessageType, NewMessage};

/// All messages of `request` for one queue; they share bodies with the request.
pub fn new_messages(
    request: &wire::SendMessageRequest,
    queue: QueueId,
    now: UnixMillis,
    peer: Option<SocketAddr>,
) -> Vec<NewMessage> {
    request.messages.iter().map(|message| new_message(message, queue, now, peer)).collect()
}

pub fn new_message(
    message: &wire::Message,
    queue: QueueId,
    now: UnixMillis,
    peer: Option<SocketAddr>,
) -> NewMessage {
    let system = message.system_properties.as_ref().unwrap_or(no_properties());
    NewMessage {
        queue,
        id: system.message_id.clone(),
        message_type: stored_type(validate::derived_type(message)),
        body_encoding: if system.body_encoding == Encoding::Gzip as i32 {
            BodyEncoding::Gzip
        } else {
            BodyEncoding::Identity
        },
        born_at: system.born_timestamp.as_ref().and_then(millis).unwrap_or(now),
        properties: properties(message, system, peer),
        body: message.body.clone(),
    }
}

fn properties(
    message: &wire::Message,
    system: &SystemProperties,
    peer: Option<SocketAddr>,
) -> MessageProperties {
    let born_host = if system.born_host.is_empty() {
        peer.map(|peer| peer.to_string()).unwrap_or_default()
    } else {
        system.born_host.clone()
    };
    let mut user = message.user_properties.clone();
    // Said once: a consumer that sends the message on must not delay it again.
    user.remove(validate::DELAY_LEVEL_PROPERTY);
    MessageProperties {
        user,
        tag: system.tag.clone().filter(|tag| !tag.is_empty()),
        keys: system.keys.clone(),
        message_group: system.message_group.clone().filter(|group| !group.is_empty()),
        trace_context: system.trace_context.clone(),
        born_host,
        deliver_at_ms: None,
        priority: system.priority,
        lite_topic: system.lite_topic.clone().filter(|lite| !lite.is_empty()),
    }
}

pub fn stored_type(wire: wire::MessageType) -> MessageType {
    match wire {
        wire::MessageType::Unspecified | wire::MessageType::Normal => MessageType::Normal,
        wire::MessageType::Fifo => MessageType::Fifo,
        wire::MessageType::Delay => MessageType::Delay,
        wire::MessageType::Transaction => MessageType::Transaction,
        wire::MessageType::Lite => MessageType::Lite,
        wire::MessageType::Priority => MessageType::Priority,
    }
}

/// A time before 1970 counts as unset.
fn millis(at: &prost_types::Timestamp) -> Option<UnixMillis> {
    let seconds = u64::try_from(at.seconds).ok()?;
    let nanos = u64::try_from(at.nanos).ok()?;
    seconds.checked_mul(1000)?.checked_add(nanos / 1_000_000).map(UnixMillis)
}

fn no_properties() -> &'static SystemProperties {
    static NONE: std::sync::OnceLock<SystemProperties> = std::sync::OnceLock::new();
    NONE.get_or_init(SystemProperties::default)
}
