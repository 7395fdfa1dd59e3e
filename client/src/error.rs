//! One struct per condition, one enum per operation that holds only what it can meet.

use std::time::Duration;

use ledgermq_proto::rocketmq::Code;

#[derive(Debug, Clone, thiserror::Error)]
#[error("access point \"{text}\": {reason}")]
pub struct AccessPointSyntaxError {
    pub text: String,
    pub reason: &'static str,
}

#[derive(Debug, Clone, thiserror::Error)]
#[error("TLS cannot be set up: {reason}")]
pub struct TlsSetupError {
    pub reason: String,
}

#[derive(Debug, Clone, thiserror::Error)]
#[error("cannot reach {access_point}: {reason}")]
pub struct UnreachableAccessPoint {
    pub access_point: String,
    pub reason: String,
}

#[derive(Debug, Clone, thiserror::Error)]
#[error("{operation}: no success in {attempts} attempts over {} ms, last: {last}", .elapsed.as_millis())]
pub struct NoAnswerInTime {
    pub operation: &'static str,
    /// 0: it was not sent, so it did not happen. After any other number it may have.
    pub attempts: u32,
    /// Attempts that were answered with TOO_MANY_REQUESTS: the cluster has more to do than it can.
    pub throttled: u32,
    pub elapsed: Duration,
    pub last: String,
}

/// The server understood and said no; repeating would not help.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{operation} refused: {} ({code}): {message}", code_name(*.code))]
pub struct Refused {
    pub operation: &'static str,
    pub code: i32,
    pub message: String,
}

#[derive(Debug, Clone, thiserror::Error)]
#[error("{operation}: the answer breaks the protocol: {what}")]
pub struct MalformedAnswer {
    pub operation: &'static str,
    pub what: String,
}

#[derive(Debug, Clone, thiserror::Error)]
#[error("message {message_id} arrived with a body that does not match its {digest} digest")]
pub struct CorruptBody {
    pub message_id: String,
    pub digest: &'static str,
}

/// An offset that its queue does not have: expired, or of a topic that was made again.
#[derive(Debug, Clone, thiserror::Error)]
#[error(
    "offset {offset} is outside queue {} of topic {} in broker group {}, which has {beginning}..={end}",
    .queue.id, .queue.topic, .queue.broker
)]
pub struct OffsetOutOfRange {
    pub queue: crate::pull::Queue,
    pub offset: u64,
    pub beginning: u64,
    pub end: u64,
}

/// Nothing was committed: the group is further on already. Only a reset goes back.
#[derive(Debug, Clone, thiserror::Error)]
#[error(
    "offset {offset} of queue {} of topic {} in broker group {} is not committed: the group is at {committed}",
    .queue.id, .queue.topic, .queue.broker
)]
pub struct OffsetBehind {
    pub queue: crate::pull::Queue,
    pub offset: u64,
    pub committed: u64,
}

/// Nothing was committed: somebody reset the group since this consumer asked where it is. That it asks
/// again, by `committed` or `receive`, makes the next commit count.
#[derive(Debug, Clone, thiserror::Error)]
#[error(
    "offset {offset} of queue {} of topic {} in broker group {} is not committed: the group was reset",
    .queue.id, .queue.topic, .queue.broker
)]
pub struct GroupWasReset {
    pub queue: crate::pull::Queue,
    pub offset: u64,
}

/// A batch that cannot be one request.
#[derive(Debug, Clone, thiserror::Error)]
#[error("batch of {messages} messages: {reason}")]
pub struct BatchError {
    pub messages: usize,
    pub reason: &'static str,
}

#[derive(Debug, Clone, thiserror::Error)]
pub enum ConnectError {
    #[error(transparent)]
    Syntax(#[from] AccessPointSyntaxError),
    #[error(transparent)]
    Tls(#[from] TlsSetupError),
    #[error(transparent)]
    NoAnswer(#[from] NoAnswerInTime),
}

#[derive(Debug, Clone, thiserror::Error)]
pub enum SendError {
    #[error(transparent)]
    Batch(#[from] BatchError),
    #[error(transparent)]
    NoAnswer(#[from] NoAnswerInTime),
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error(transparent)]
    Malformed(#[from] MalformedAnswer),
}

#[derive(Debug, Clone, thiserror::Error)]
pub enum ReceiveError {
    #[error("the consumer has no subscription")]
    NoSubscription,
    #[error(transparent)]
    NoAnswer(#[from] NoAnswerInTime),
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error(transparent)]
    Malformed(#[from] MalformedAnswer),
    #[error(transparent)]
    Corrupt(#[from] CorruptBody),
}

#[derive(Debug, Clone, thiserror::Error)]
pub enum PullError {
    #[error(transparent)]
    NoAnswer(#[from] NoAnswerInTime),
    #[error(transparent)]
    OutOfRange(#[from] OffsetOutOfRange),
    #[error(transparent)]
    Behind(#[from] OffsetBehind),
    #[error(transparent)]
    WasReset(#[from] GroupWasReset),
    #[error("topic {topic} has {queues} queues; the limit of a broadcast consumer is {queues_max}")]
    TooManyQueues { topic: String, queues: usize, queues_max: usize },
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error(transparent)]
    Malformed(#[from] MalformedAnswer),
}

#[derive(Debug, Clone, thiserror::Error)]
pub enum AckError {
    #[error(transparent)]
    NoAnswer(#[from] NoAnswerInTime),
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error(transparent)]
    Malformed(#[from] MalformedAnswer),
}

#[derive(Debug, Clone, thiserror::Error)]
pub enum EndTransactionError {
    #[error(transparent)]
    NoAnswer(#[from] NoAnswerInTime),
    /// Unknown, or decided the other way before.
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error(transparent)]
    Malformed(#[from] MalformedAnswer),
}

#[derive(Debug, Clone, thiserror::Error)]
pub enum AdminError {
    #[error(transparent)]
    NoAnswer(#[from] NoAnswerInTime),
    /// There is no topic, group or whatever it was of that name.
    #[error("{operation}: {message}")]
    NotFound { operation: &'static str, message: String },
    #[error("{operation}: {message}")]
    Failed { operation: &'static str, message: String },
    #[error(transparent)]
    Malformed(#[from] MalformedAnswer),
}

fn code_name(code: i32) -> &'static str {
    Code::try_from(code).map_or("unknown code", |code| code.as_str_name())
}
