//! Checks of a request that need no state: names, sizes, counts, durations, filters.
//!
//! The order of the checks of a message is RocketMQ's, because a request with several faults must
//! get the code its SDK expects. The code of each condition stands in [`crate::codes`].

use std::collections::BTreeMap;

use ledgermq_common::limits::{
    ACK_ENTRIES_MAX, BATCH_TOPICS_MAX, COMMAND_BYTES_MAX, INVISIBLE_DURATION_MS_MAX,
    INVISIBLE_DURATION_RECEIVE_MS_MIN, LITE_SUBSCRIPTIONS_PER_CLIENT_MAX, LITE_TOPIC_BYTES_MAX,
    MESSAGE_BODY_BYTES_MAX, MESSAGE_GROUP_BYTES_MAX, MESSAGE_ID_BYTES_MAX, MESSAGE_PROPERTIES_BYTES_MAX,
    MESSAGE_USER_PROPERTIES_MAX, RECEIVE_BATCH_MESSAGES_MAX, SEND_BATCH_MESSAGES_MAX,
};
use ledgermq_common::names::{NameError, excerpt};
use ledgermq_common::recall_handle::RecallHandleError;
use ledgermq_common::receipt_handle::ReceiptHandleError;
use ledgermq_common::transaction_id::TransactionIdError;
use ledgermq_common::{ConsumerGroupName, QueueOffset, ReceiptHandle, TopicName};
use ledgermq_proto::rocketmq::offset_option::OffsetType;
use ledgermq_proto::rocketmq::{
    FilterExpression, FilterType, Message, MessageType, OffsetOption, Resource, SystemProperties,
};

use crate::group_call::Filter;

/// The longest a producer may ask to wait before an orphaned transaction is checked, as in RocketMQ.
pub const ORPHAN_RECOVERY_S_MAX: i64 = 3600;
/// No configuration allows a delivery time further ahead.
pub const DELIVERY_DELAY_MS_MAX: i64 = 366 * 24 * 60 * 60 * 1000;
/// RocketMQ's property with a delay level instead of a delivery time.
pub const DELAY_LEVEL_PROPERTY: &str = "DELAY";
/// RocketMQ's `messageDelayLevel`: level 1 is the first.
const DELAY_LEVELS_S: [u64; 18] =
    [1, 5, 10, 30, 60, 120, 180, 240, 300, 360, 420, 480, 540, 600, 1200, 1800, 3600, 7200];
/// Lease of a delivery the server renews by itself.
pub const AUTO_RENEW_LEASE_MS: u64 = 60_000;
pub const FILTER_EXPRESSION_BYTES_MAX: usize = 4096;
pub const FILTER_TAGS_MAX: usize = 128;
pub const ATTEMPT_ID_BYTES_MAX: usize = 128;
pub const TRACE_CONTEXT_BYTES_MAX: usize = 1024;
pub const BORN_HOST_BYTES_MAX: usize = 255;
/// Room that one message takes in a command besides its body and properties.
const MESSAGE_OVERHEAD_BYTES: usize = 256;

/// What is wrong with a request. Every message names the field, the value and the limit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    #[error("{0}")]
    Topic(NameError),
    #[error("{0}")]
    ConsumerGroup(NameError),
    #[error("no message to send: messages is empty")]
    NoMessages,
    #[error("messages has {count} entries; the limit is {SEND_BATCH_MESSAGES_MAX}")]
    TooManyMessages { count: usize },
    #[error("messages take {bytes} bytes together; the limit is {COMMAND_BYTES_MAX}")]
    RequestTooLarge { bytes: usize },
    #[error(
        "messages of one request must have one topic: message 0 is for \"{first}\", message {index} for \"{other}\""
    )]
    MixedTopics { first: String, index: usize, other: String },
    #[error("messages of one batch have {count} topics; the limit is {BATCH_TOPICS_MAX}")]
    TooManyBatchTopics { count: usize },
    #[error("message {index}: message_id \"{id}\" is that of message {first} of the same topic, too")]
    MessageIdTwice { index: usize, first: usize, id: String },
    #[error(
        "message {index}: {field} makes it a message of type {derived}; a batch takes NORMAL, FIFO and PRIORITY"
    )]
    BatchType { index: usize, field: &'static str, derived: &'static str },
    #[error("broker_group is \"{name}\", which this cluster does not have")]
    BatchGroup { name: String },
    #[error("no broker group has all topics of the batch: {places}")]
    BatchSpread { places: String },
    #[error("broker_group \"{group}\" does not have topic \"{topic}\" of the batch")]
    BatchTopicElsewhere { group: String, topic: String },
    #[error(
        "message {index}: message_group \"{message_group}\" has its queue in broker group {group}; the batch is for {of}"
    )]
    BatchSplit { index: usize, message_group: String, group: String, of: String },
    #[error("message {index}: body is empty")]
    BodyEmpty { index: usize },
    #[error("message {index}: body has {bytes} bytes; the limit is {MESSAGE_BODY_BYTES_MAX}")]
    BodyTooLarge { index: usize, bytes: usize },
    #[error(
        "message {index}: user_properties has {count} entries; the limit is {MESSAGE_USER_PROPERTIES_MAX}"
    )]
    TooManyProperties { index: usize, count: usize },
    #[error(
        "message {index}: properties, tag and keys have {bytes} bytes; the limit is {MESSAGE_PROPERTIES_BYTES_MAX}"
    )]
    PropertiesTooLarge { index: usize, bytes: usize },
    #[error("message {index}: user property \"{key}\" is reserved for the system")]
    PropertyReserved { index: usize, key: String },
    #[error("message {index}: user property \"{key}\" holds a control character")]
    PropertyControlCharacter { index: usize, key: String },
    #[error("message {index}: tag \"{tag}\" {fault}")]
    Tag { index: usize, tag: String, fault: &'static str },
    #[error("message {index}: key \"{key}\" {fault}")]
    Key { index: usize, key: String, fault: &'static str },
    #[error("message {index}: message_id is blank")]
    MessageIdBlank { index: usize },
    #[error("message {index}: message_id \"{id}\" has {bytes} bytes; the limit is {MESSAGE_ID_BYTES_MAX}")]
    MessageIdTooLong { index: usize, id: String, bytes: usize },
    #[error("message {index}: message_id \"{id}\" holds a control character")]
    MessageIdControlCharacter { index: usize, id: String },
    #[error(
        "message {index}: message_group \"{group}\" has {bytes} bytes; the limit is {MESSAGE_GROUP_BYTES_MAX}"
    )]
    MessageGroupTooLong { index: usize, group: String, bytes: usize },
    #[error("message {index}: message_group \"{group}\" {fault}")]
    MessageGroup { index: usize, group: String, fault: &'static str },
    #[error(
        "message {index}: orphaned_transaction_recovery_duration is {seconds} s; it must be within 0..={ORPHAN_RECOVERY_S_MAX}"
    )]
    OrphanRecovery { index: usize, seconds: i64 },
    #[error("message {index}: delivery_timestamp is {ahead_ms} ms ahead; the limit is {max_ms} ms")]
    DeliveryTooFar { index: usize, ahead_ms: i64, max_ms: i64 },
    #[error("topic \"{topic}\" takes {accepted}; only delayed messages are recalled")]
    RecallFromType { topic: String, accepted: &'static str },
    #[error("message_queue.id is {id}; a pull names one queue")]
    QueueId { id: i32 },
    #[error("message_queue.broker.name is \"{broker}\", which does not carry the topic")]
    QueueBroker { broker: String },
    #[error("offset is {offset}; it must not be negative")]
    Offset { offset: i64 },
    #[error("query_offset_policy TIMESTAMP needs a timestamp")]
    TimestampMissing,
    #[error("{0}")]
    RecallHandle(RecallHandleError),
    #[error("recall handle is of broker group {group}, which this cluster does not have")]
    RecallHandleGroup { group: u32 },
    #[error("message {index}: {field} has {bytes} bytes; the limit is {bytes_max}")]
    FieldTooLong { index: usize, field: &'static str, bytes: usize, bytes_max: usize },
    #[error("message type {derived} does not fit topic \"{topic}\", which takes {accepted}")]
    TypeConflict { topic: String, derived: &'static str, accepted: &'static str },
    #[error("batch_size is {batch_size}; it must be within 1..={RECEIVE_BATCH_MESSAGES_MAX}")]
    BatchSize { batch_size: i32 },
    #[error(
        "invisible_duration is {given}; it must be within {at_least_ms}..={INVISIBLE_DURATION_MS_MAX} ms"
    )]
    InvisibleDuration { given: String, at_least_ms: u64 },
    #[error("long_polling_timeout is {given}; it must not be negative or malformed")]
    PollingTime { given: String },
    #[error("filter expression {fault}")]
    Filter { fault: String },
    #[error("filter expression \"{expression}\": {error}")]
    FilterSql { expression: String, error: ledgermq_filter::FilterError },
    #[error("attempt_id has {bytes} bytes; the limit is {ATTEMPT_ID_BYTES_MAX}")]
    AttemptId { bytes: usize },
    #[error("no receipt to acknowledge: entries is empty")]
    NoAckEntries,
    #[error("entries has {count} entries; the limit is {ACK_ENTRIES_MAX}")]
    TooManyAckEntries { count: usize },
    #[error("{0}")]
    ReceiptHandle(ReceiptHandleError),
    #[error("receipt handle is of broker group {group}, which this cluster does not have")]
    ReceiptHandleGroup { group: u32 },
    #[error(
        "messages of one request must have one message_group: message {index} has another than message 0"
    )]
    MixedMessageGroups { index: usize },
    #[error("lite topic \"{name}\" {fault}")]
    LiteTopic { name: String, fault: String },
    #[error("messages of one request must have one lite_topic: message {index} has another than message 0")]
    MixedLiteTopics { index: usize },
    #[error("message {index}: priority is {priority}; it must not be negative")]
    Priority { index: usize, priority: i32 },
    #[error("topic \"{topic}\" takes {accepted}; only a topic of type LITE has lite topics")]
    NotLite { topic: String, accepted: &'static str },
    #[error("lite_topic_set has {count} entries; the limit is {LITE_SUBSCRIPTIONS_PER_CLIENT_MAX}")]
    TooManyLiteTopics { count: usize },
    #[error("version is {version}; it must not be negative")]
    LiteVersion { version: i64 },
    #[error("message {index}: a transactional message has no {field}")]
    TransactionWith { index: usize, field: &'static str },
    #[error("{0}")]
    TransactionId(TransactionIdError),
    #[error("transaction id is of broker group {group}, which this cluster does not have")]
    TransactionGroup { group: u32 },
}

pub fn topic(resource: Option<&Resource>) -> Result<TopicName, Invalid> {
    TopicName::parse(resource.map_or("", |resource| &resource.name)).map_err(Invalid::Topic)
}

pub fn consumer_group(resource: Option<&Resource>) -> Result<ConsumerGroupName, Invalid> {
    ConsumerGroupName::parse(resource.map_or("", |resource| &resource.name)).map_err(Invalid::ConsumerGroup)
}

pub fn offset(offset: i64) -> Result<QueueOffset, Invalid> {
    u64::try_from(offset).map(QueueOffset).map_err(|_| Invalid::Offset { offset })
}

pub fn receipt_handle(text: &str) -> Result<ReceiptHandle, Invalid> {
    ReceiptHandle::parse(text).map_err(Invalid::ReceiptHandle)
}

/// As RocketMQ has it: letters, digits, `-` and `_`, at most [`LITE_TOPIC_BYTES_MAX`] of them.
pub fn lite_topic(name: &str) -> Result<(), Invalid> {
    let fault = |fault: String| Err(Invalid::LiteTopic { name: excerpt(name), fault });
    if name.trim().is_empty() {
        return fault("is blank".to_owned());
    }
    if name.len() > LITE_TOPIC_BYTES_MAX {
        return fault(format!("has {} bytes; the limit is {LITE_TOPIC_BYTES_MAX}", name.len()));
    }
    match name.chars().find(|letter| !letter.is_ascii_alphanumeric() && !matches!(letter, '-' | '_')) {
        Some(letter) => fault(format!("holds '{}'", letter.escape_default())),
        None => Ok(()),
    }
}

/// Where a new subscription to a lite topic begins.
pub fn offset_option(option: Option<&OffsetOption>) -> Result<(), Invalid> {
    match option.and_then(|option| option.offset_type.as_ref()) {
        Some(&OffsetType::Offset(offset) | &OffsetType::TailN(offset) | &OffsetType::Timestamp(offset))
            if offset < 0 =>
        {
            Err(Invalid::Offset { offset })
        }
        _ => Ok(()),
    }
}

/// Checks all messages and returns their one topic.
pub fn messages(messages: &[Message], now_ms: u64) -> Result<TopicName, Invalid> {
    let Some(first) = messages.first() else {
        return Err(Invalid::NoMessages);
    };
    let topic_name = topic(first.topic.as_ref())?;
    if messages.len() > SEND_BATCH_MESSAGES_MAX {
        return Err(Invalid::TooManyMessages { count: messages.len() });
    }
    let mut bytes_total = 0usize;
    for (index, message) in messages.iter().enumerate() {
        if message.topic != first.topic {
            return Err(Invalid::MixedTopics {
                first: excerpt(topic_name.as_str()),
                index,
                other: excerpt(message.topic.as_ref().map_or("", |topic| &topic.name)),
            });
        }
        bytes_total += check_message(index, message, now_ms)?;
    }
    if bytes_total > COMMAND_BYTES_MAX {
        return Err(Invalid::RequestTooLarge { bytes: bytes_total });
    }
    Ok(topic_name)
}

/// Checks all messages of a batch and returns their topics, in the order of their first message.
pub fn batch(messages: &[Message], now_ms: u64) -> Result<Vec<TopicName>, Invalid> {
    if messages.is_empty() {
        return Err(Invalid::NoMessages);
    }
    if messages.len() > SEND_BATCH_MESSAGES_MAX {
        return Err(Invalid::TooManyMessages { count: messages.len() });
    }
    let mut topics = Vec::new();
    let mut ids: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    let mut bytes_total = 0usize;
    for (index, message) in messages.iter().enumerate() {
        let name = message.topic.as_ref().map_or("", |topic| topic.name.as_str());
        if !topics.iter().any(|known: &TopicName| known.as_str() == name) {
            topics.push(topic(message.topic.as_ref())?);
        }
        bytes_total += check_message(index, message, now_ms)?;
        batch_type(index, message)?;
        let id = message.system_properties.as_ref().map_or("", |system| system.message_id.as_str());
        if let Some(first) = ids.insert((name, id), index) {
            return Err(Invalid::MessageIdTwice { index, first, id: excerpt(id) });
        }
    }
    if topics.len() > BATCH_TOPICS_MAX {
        return Err(Invalid::TooManyBatchTopics { count: topics.len() });
    }
    if bytes_total > COMMAND_BYTES_MAX {
        return Err(Invalid::RequestTooLarge { bytes: bytes_total });
    }
    Ok(topics)
}

/// A batch is visible as a whole by its one entry: what becomes visible later, or lies in a queue made by
/// its first message, is no part of one.
fn batch_type(index: usize, message: &Message) -> Result<(), Invalid> {
    let derived = derived_type(message);
    let field = match derived {
        MessageType::Normal | MessageType::Fifo | MessageType::Priority => return Ok(()),
        MessageType::Delay if delay_level(message).is_some() => "property DELAY",
        MessageType::Delay => "delivery_timestamp",
        MessageType::Lite => "lite_topic",
        MessageType::Transaction | MessageType::Unspecified => "message_type",
    };
    Err(Invalid::BatchType { index, field, derived: derived.as_str_name() })
}

/// The type a message has by its fields; the client's own word counts for TRANSACTION only.
pub fn derived_type(message: &Message) -> MessageType {
    let Some(system) = &message.system_properties else {
        return MessageType::Normal;
    };
    if system.message_type() == MessageType::Transaction {
        MessageType::Transaction
    } else if system.delivery_timestamp.is_some() || delay_level(message).is_some() {
        MessageType::Delay
    } else if system.message_group.as_deref().is_some_and(|group| !group.is_empty()) {
        MessageType::Fifo
    } else if system.priority.is_some() {
        MessageType::Priority
    } else if system.lite_topic.as_deref().is_some_and(|lite| !lite.is_empty()) {
        MessageType::Lite
    } else {
        MessageType::Normal
    }
}

pub fn message_type_fits(
    topic: &TopicName,
    accepted: MessageType,
    messages: &[Message],
) -> Result<(), Invalid> {
    match messages.iter().map(derived_type).find(|&derived| derived != accepted) {
        Some(derived) => Err(Invalid::TypeConflict {
            topic: excerpt(topic.as_str()),
            derived: derived.as_str_name(),
            accepted: accepted.as_str_name(),
        }),
        None => Ok(()),
    }
}

/// The batch a receive gets: too much is cut to the limit, nothing at all is refused.
pub fn batch_size(batch_size: i32) -> Result<u32, Invalid> {
    match u32::try_from(batch_size) {
        Ok(size @ 1..) => Ok(size.min(RECEIVE_BATCH_MESSAGES_MAX)),
        _ => Err(Invalid::BatchSize { batch_size }),
    }
}

/// The first lease of a receive. The server chooses it where it also renews it.
pub fn receive_invisible_ms(
    duration: Option<&prost_types::Duration>,
    auto_renew: bool,
) -> Result<u64, Invalid> {
    if auto_renew {
        return Ok(AUTO_RENEW_LEASE_MS);
    }
    invisible_ms(duration, INVISIBLE_DURATION_RECEIVE_MS_MIN)
}

/// The new lease of a delivery; 0 gives the message back.
pub fn change_invisible_ms(duration: Option<&prost_types::Duration>) -> Result<u64, Invalid> {
    invisible_ms(duration, 0)
}

fn invisible_ms(duration: Option<&prost_types::Duration>, at_least_ms: u64) -> Result<u64, Invalid> {
    duration_ms(duration)
        .filter(|ms| (at_least_ms..=INVISIBLE_DURATION_MS_MAX).contains(ms))
        .ok_or_else(|| Invalid::InvisibleDuration { given: duration_text(duration), at_least_ms })
}

pub fn polling_ms(duration: &prost_types::Duration) -> Result<u64, Invalid> {
    duration_ms(Some(duration)).ok_or_else(|| Invalid::PollingTime { given: duration_text(Some(duration)) })
}

/// Milliseconds of a duration that is neither negative nor malformed. A missing one is zero, as in
/// every protobuf field.
fn duration_ms(duration: Option<&prost_types::Duration>) -> Option<u64> {
    let Some(duration) = duration else {
        return Some(0);
    };
    let seconds = u64::try_from(duration.seconds).ok()?;
    let nanos = u64::try_from(duration.nanos).ok().filter(|&nanos| nanos < 1_000_000_000)?;
    Some(seconds.saturating_mul(1000).saturating_add(nanos / 1_000_000))
}

fn duration_text(duration: Option<&prost_types::Duration>) -> String {
    match duration {
        None => "missing".to_owned(),
        Some(duration) => format!("{} s {} ns", duration.seconds, duration.nanos),
    }
}

/// TAG, `A || B`: a message whose tag is A or B; empty or `*`: every message. SQL: an SQL92
/// expression, which is never empty.
pub fn filter(expression: Option<&FilterExpression>) -> Result<Filter, Invalid> {
    let Some(expression) = expression else {
        return Ok(Filter::All);
    };
    match FilterType::try_from(expression.r#type) {
        Ok(FilterType::Unspecified | FilterType::Tag) => tag_filter(&expression.expression),
        Ok(FilterType::Sql) => sql_filter(&expression.expression),
        Err(_) => Err(Invalid::Filter { fault: format!("has unknown type {}", expression.r#type) }),
    }
}

/// Parsed at its first use; a consumer sends its expression with every receive.
pub fn sql_filter(expression: &str) -> Result<Filter, Invalid> {
    ledgermq_filter::parse_cached(expression)
        .map(Filter::Sql)
        .map_err(|error| Invalid::FilterSql { expression: excerpt(expression), error })
}

fn tag_filter(expression: &str) -> Result<Filter, Invalid> {
    if expression.len() > FILTER_EXPRESSION_BYTES_MAX {
        return Err(Invalid::Filter {
            fault: format!("has {} bytes; the limit is {FILTER_EXPRESSION_BYTES_MAX}", expression.len()),
        });
    }
    if expression.is_empty() || expression == "*" {
        return Ok(Filter::All);
    }
    let parts: Vec<&str> = expression.split("||").filter(|part| !part.is_empty()).collect();
    if parts.is_empty() {
        return Err(Invalid::Filter { fault: format!("\"{}\" names no tag", excerpt(expression)) });
    }
    let tags: Vec<String> =
        parts.into_iter().map(str::trim).filter(|tag| !tag.is_empty()).map(str::to_owned).collect();
    if tags.len() > FILTER_TAGS_MAX {
        return Err(Invalid::Filter {
            fault: format!("names {} tags; the limit is {FILTER_TAGS_MAX}", tags.len()),
        });
    }
    Ok(Filter::Tags(tags))
}

pub fn attempt_id(attempt_id: Option<&str>) -> Result<Option<String>, Invalid> {
    match attempt_id {
        None | Some("") => Ok(None),
        Some(id) if id.len() > ATTEMPT_ID_BYTES_MAX => Err(Invalid::AttemptId { bytes: id.len() }),
        Some(id) => Ok(Some(id.to_owned())),
    }
}

pub fn ack_entries(count: usize) -> Result<(), Invalid> {
    match count {
        0 => Err(Invalid::NoAckEntries),
        1..=ACK_ENTRIES_MAX => Ok(()),
        _ => Err(Invalid::TooManyAckEntries { count }),
    }
}

/// Checks one message and returns the room it takes in a command.
fn check_message(index: usize, message: &Message, now_ms: u64) -> Result<usize, Invalid> {
    static NO_SYSTEM_PROPERTIES: std::sync::LazyLock<SystemProperties> =
        std::sync::LazyLock::new(SystemProperties::default);
    let system = message.system_properties.as_ref().unwrap_or(&NO_SYSTEM_PROPERTIES);

    if message.body.is_empty() {
        return Err(Invalid::BodyEmpty { index });
    }
    if message.body.len() > MESSAGE_BODY_BYTES_MAX {
        return Err(Invalid::BodyTooLarge { index, bytes: message.body.len() });
    }
    let properties_bytes = check_properties(index, message, system)?;
    check_message_id(index, &system.message_id)?;
    check_delivery(index, system, now_ms)?;
    check_message_group(index, system.message_group.as_deref().unwrap_or(""))?;
    check_transaction(index, message, system)?;
    if let Some(lite) = system.lite_topic.as_deref().filter(|lite| !lite.is_empty()) {
        lite_topic(lite)?;
    }
    if let Some(priority) = system.priority.filter(|priority| *priority < 0) {
        return Err(Invalid::Priority { index, priority });
    }
    let trace_bytes = system.trace_context.as_deref().unwrap_or("").len();
    for (field, bytes, bytes_max) in [
        ("trace_context", trace_bytes, TRACE_CONTEXT_BYTES_MAX),
        ("born_host", system.born_host.len(), BORN_HOST_BYTES_MAX),
    ] {
        if bytes > bytes_max {
            return Err(Invalid::FieldTooLong { index, field, bytes, bytes_max });
        }
    }
    Ok(message.body.len()
        + properties_bytes
        + system.message_id.len()
        + trace_bytes
        + system.born_host.len()
        + 16 * (message.user_properties.len() + system.keys.len())
        + MESSAGE_OVERHEAD_BYTES)
}

fn check_properties(index: usize, message: &Message, system: &SystemProperties) -> Result<usize, Invalid> {
    let properties = &message.user_properties;
    if properties.len() > MESSAGE_USER_PROPERTIES_MAX {
        return Err(Invalid::TooManyProperties { index, count: properties.len() });
    }
    let tag = system.tag.as_deref().unwrap_or("");
    // Sizes come before the contents, so that megabytes are not scanned only to be refused.
    let bytes = properties.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>()
        + tag.len()
        + system.keys.iter().map(String::len).sum::<usize>();
    if bytes > MESSAGE_PROPERTIES_BYTES_MAX {
        return Err(Invalid::PropertiesTooLarge { index, bytes });
    }
    for (key, value) in properties {
        let is_level = key == DELAY_LEVEL_PROPERTY && value.parse::<u32>().is_ok();
        if !is_level && RESERVED_PROPERTIES.binary_search(&key.as_str()).is_ok() {
            return Err(Invalid::PropertyReserved { index, key: excerpt(key) });
        }
        if has_control(key) || has_control(value) {
            return Err(Invalid::PropertyControlCharacter { index, key: excerpt(key) });
        }
    }
    if let Some(fault) = text_fault(tag) {
        return Err(Invalid::Tag { index, tag: excerpt(tag), fault });
    }
    if tag.contains('|') {
        return Err(Invalid::Tag { index, tag: excerpt(tag), fault: "holds '|'" });
    }
    for key in &system.keys {
        if let Some(fault) = text_fault(key) {
            return Err(Invalid::Key { index, key: excerpt(key), fault });
        }
    }
    Ok(bytes)
}

fn check_message_id(index: usize, id: &str) -> Result<(), Invalid> {
    if id.trim().is_empty() {
        return Err(Invalid::MessageIdBlank { index });
    }
    if id.len() > MESSAGE_ID_BYTES_MAX {
        return Err(Invalid::MessageIdTooLong { index, id: excerpt(id), bytes: id.len() });
    }
    if has_control(id) {
        return Err(Invalid::MessageIdControlCharacter { index, id: excerpt(id) });
    }
    Ok(())
}

/// An id that stands for a message that was sent before.
pub fn message_id(id: &str) -> Result<(), Invalid> {
    check_message_id(0, id)
}

fn check_delivery(index: usize, system: &SystemProperties, now_ms: u64) -> Result<(), Invalid> {
    if let Some(recovery) = &system.orphaned_transaction_recovery_duration
        && system.message_type() == MessageType::Transaction
        && !(0..=ORPHAN_RECOVERY_S_MAX).contains(&recovery.seconds)
    {
        return Err(Invalid::OrphanRecovery { index, seconds: recovery.seconds });
    }
    if let Some(at) = &system.delivery_timestamp {
        check_ahead(index, millis(at), now_ms, DELIVERY_DELAY_MS_MAX)?;
    }
    Ok(())
}

/// A transaction decides when its message appears; a delay or an order of its own would contradict it.
fn check_transaction(index: usize, message: &Message, system: &SystemProperties) -> Result<(), Invalid> {
    if system.message_type() != MessageType::Transaction {
        return Ok(());
    }
    let is_set = |text: &Option<String>| text.as_deref().is_some_and(|text| !text.is_empty());
    let conflicts = [
        ("message_group", is_set(&system.message_group)),
        ("delivery_timestamp", system.delivery_timestamp.is_some()),
        ("delay level", delay_level(message).is_some()),
        ("priority", system.priority.is_some()),
        ("lite_topic", is_set(&system.lite_topic)),
    ];
    match conflicts.into_iter().find(|(_, is_set)| *is_set) {
        Some((field, _)) => Err(Invalid::TransactionWith { index, field }),
        None => Ok(()),
    }
}

/// When a delayed message is to be delivered; one that is past is delivered at once.
pub fn deliver_at_ms(index: usize, message: &Message, now_ms: u64, max_ms: u64) -> Result<u64, Invalid> {
    let asked = message.system_properties.as_ref().and_then(|system| system.delivery_timestamp.as_ref());
    // As in RocketMQ the level counts where both are given.
    let at_ms = match (delay_level(message), asked) {
        (Some(level), _) => now_ms.saturating_add(level_ms(level)),
        (None, Some(at)) => {
            let at_ms = millis(at);
            check_ahead(index, at_ms, now_ms, i64::try_from(max_ms).unwrap_or(i64::MAX))?;
            u64::try_from(at_ms).unwrap_or(0)
        }
        (None, None) => 0,
    };
    Ok(at_ms)
}

fn check_ahead(index: usize, at_ms: i64, now_ms: u64, max_ms: i64) -> Result<(), Invalid> {
    let ahead_ms = at_ms.saturating_sub(i64::try_from(now_ms).unwrap_or(i64::MAX));
    if ahead_ms > max_ms {
        return Err(Invalid::DeliveryTooFar { index, ahead_ms, max_ms });
    }
    Ok(())
}

/// The delay level of a message that names one; level 0 is none.
fn delay_level(message: &Message) -> Option<u32> {
    let level: u32 = message.user_properties.get(DELAY_LEVEL_PROPERTY)?.parse().ok()?;
    (level > 0).then_some(level)
}

/// A level above the last is the last.
fn level_ms(level: u32) -> u64 {
    let at = (level as usize).clamp(1, DELAY_LEVELS_S.len()) - 1;
    DELAY_LEVELS_S.get(at).map_or(0, |seconds| seconds * 1000)
}

fn millis(at: &prost_types::Timestamp) -> i64 {
    at.seconds.saturating_mul(1000).saturating_add(i64::from(at.nanos) / 1_000_000)
}

fn check_message_group(index: usize, group: &str) -> Result<(), Invalid> {
    if group.len() > MESSAGE_GROUP_BYTES_MAX {
        return Err(Invalid::MessageGroupTooLong { index, group: excerpt(group), bytes: group.len() });
    }
    match text_fault(group) {
        Some(fault) => Err(Invalid::MessageGroup { index, group: excerpt(group), fault }),
        None => Ok(()),
    }
}

/// An empty text counts as absent, in RocketMQ and here.
fn text_fault(text: &str) -> Option<&'static str> {
    if !text.is_empty() && text.trim().is_empty() {
        Some("is blank")
    } else if has_control(text) {
        Some("holds a control character")
    } else {
        None
    }
}

fn has_control(text: &str) -> bool {
    text.chars().any(char::is_control)
}

/// Property keys that RocketMQ keeps for itself (`MessageConst`), sorted.
const RESERVED_PROPERTIES: [&str; 52] = [
    "1ST_POP_TIME",
    "ARRIVE_TIME",
    "BORN_TIMESTAMP",
    "BUYER_ID",
    "CLUSTER",
    "CONSUME_START_TIME",
    "CORRECTION_FLAG",
    "CORRELATION_ID",
    "DELAY",
    "DLQ_ORIGIN_MESSAGE_ID",
    "DLQ_ORIGIN_TOPIC",
    "DUP_INFO",
    "EXTEND_UNIQ_INFO",
    "INNER_MULTI_QUEUE_OFFSET",
    "INSTANCE_ID",
    "KEYS",
    "MAX_OFFSET",
    "MAX_RECONSUME_TIMES",
    "MIN_OFFSET",
    "MQ2_FLAG",
    "MSG_REGION",
    "MSG_TYPE",
    "ORIGIN_MESSAGE_ID",
    "PGROUP",
    "POP_CK",
    "POP_CK_OFFSET",
    "PUSH_REPLY_TIME",
    "REAL_QID",
    "REAL_TOPIC",
    "RECONSUME_TIME",
    "REPLY_TO_CLIENT",
    "RETRY_TOPIC",
    "TAGS",
    "TIMER_DELAY_LEVEL",
    "TIMER_DELAY_MS",
    "TIMER_DELAY_SEC",
    "TIMER_DELIVER_MS",
    "TIMER_DEL_UNIQKEY",
    "TIMER_DEQUEUE_MS",
    "TIMER_ENQUEUE_MS",
    "TIMER_OUT_MS",
    "TIMER_ROLL_TIMES",
    "TRACE_ON",
    "TRANSFER_FLAG",
    "TRAN_MSG",
    "TRAN_PREPARED_QUEUE_OFFSET",
    "TTL",
    "UNIQ_KEY",
    "WAIT",
    "_SYS_MSG_PRIORITY_",
    "__BORNHOST",
    "__CRC32#",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserved_properties_are_sorted_so_that_every_one_is_found() {
        assert!(RESERVED_PROPERTIES.is_sorted());
    }

    #[test]
    fn filters_are_split_as_rocketmq_splits_them() {
        let parse = |text: &str| {
            filter(Some(&FilterExpression { r#type: FilterType::Tag.into(), expression: text.to_owned() }))
        };
        assert_eq!(parse(""), Ok(Filter::All));
        assert_eq!(parse("*"), Ok(Filter::All));
        assert_eq!(parse("A"), Ok(Filter::Tags(vec!["A".into()])));
        assert_eq!(parse(" A || B ||"), Ok(Filter::Tags(vec!["A".into(), "B".into()])));
        assert_eq!(parse("  "), Ok(Filter::Tags(vec![])));
        assert!(matches!(parse("||"), Err(Invalid::Filter { .. })));
        assert!(matches!(parse(&"x".repeat(5000)), Err(Invalid::Filter { .. })));
    }

    #[test]
    fn sql_filters_are_parsed_or_refused_with_the_place_of_the_fault() {
        let parse = |text: &str| {
            filter(Some(&FilterExpression { r#type: FilterType::Sql.into(), expression: text.to_owned() }))
        };
        let Ok(Filter::Sql(expression)) = parse("a > 5 AND TAGS = 'x'") else { panic!("valid") };
        assert!(expression.reads("TAGS"));
        let error = parse("a > 5 AND b !").expect_err("a fault").to_string();
        assert_eq!(error, "filter expression \"a > 5 AND b !\": line 1, column 13: unexpected character '!'");
        for refused in ["", "*"] {
            assert!(parse(refused).is_err(), "{refused:?} names no condition");
        }
        let long = parse(&"x".repeat(1 << 20)).expect_err("too long").to_string();
        assert!(long.contains("1048576 bytes") && long.len() < 400, "{long}");
    }

    #[test]
    fn durations_outside_their_bounds_are_refused() {
        let duration = |seconds, nanos| prost_types::Duration { seconds, nanos };
        for bad in [duration(-1, 0), duration(i64::MAX, 0), duration(0, -1), duration(0, i32::MAX)] {
            assert!(change_invisible_ms(Some(&bad)).is_err(), "{bad:?}");
            assert!(receive_invisible_ms(Some(&bad), false).is_err(), "{bad:?}");
            assert_eq!(receive_invisible_ms(Some(&bad), true), Ok(AUTO_RENEW_LEASE_MS));
        }
        assert_eq!(change_invisible_ms(Some(&duration(0, 0))), Ok(0));
        assert!(receive_invisible_ms(Some(&duration(9, 999_999_999)), false).is_err());
        assert_eq!(receive_invisible_ms(Some(&duration(43_200, 0)), false), Ok(INVISIBLE_DURATION_MS_MAX));
        assert!(receive_invisible_ms(Some(&duration(43_200, 1_000_000)), false).is_err());
    }
}
