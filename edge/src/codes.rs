//! Every error of the edge and the one RocketMQ code it becomes.
//!
//! Only codes that every published SDK knows and retries correctly are used for "not now": a code
//! the Rust SDK 5.0.0 does not know makes it panic, so it gets a broader one of the same class.

use std::time::Duration;

use ledgermq_common::GroupName;
use ledgermq_proto::rocketmq::{Code, Status};

use crate::context::ClientLanguage;
use crate::group_call::Refused;
use crate::validate::Invalid;

/// Why a call to a broker group ended without an answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallFailed {
    /// Never sent anywhere that could have executed it.
    #[error("broker group {group} had no reachable leader for {} ms", waited.as_millis())]
    NoLeader { group: GroupName, waited: Duration },
    /// Sent, and no answer came. It may or may not have taken effect; a repeat is safe.
    #[error("broker group {group} did not answer within {} ms", waited.as_millis())]
    NoAnswer { group: GroupName, waited: Duration },
    #[error("the deadline had passed before the request could be executed")]
    DeadlinePassed,
    #[error("the cluster's broker groups are not all known yet")]
    TopologyUnknown,
    #[error("this cluster has no broker group \"{group}\"")]
    UnknownGroup { group: String },
    #[error("too many requests: {limit} is reached")]
    Overloaded { limit: String },
    /// A node answered with something that is no answer to what was asked: mixed versions or a bug.
    #[error("broker group {group} gave an answer of another kind")]
    WrongAnswer { group: GroupName },
    #[error("this node is stopping")]
    Stopping,
}

impl From<CallFailed> for Refused {
    fn from(failed: CallFailed) -> Self {
        let code = match &failed {
            CallFailed::NoLeader { .. } | CallFailed::TopologyUnknown => Code::HaNotAvailable,
            CallFailed::NoAnswer { .. } | CallFailed::DeadlinePassed => Code::ProxyTimeout,
            CallFailed::UnknownGroup { .. } => Code::BadRequest,
            CallFailed::Overloaded { .. } => Code::TooManyRequests,
            CallFailed::WrongAnswer { .. } | CallFailed::Stopping => Code::InternalServerError,
        };
        Self::new(code, failed.to_string())
    }
}

impl From<Invalid> for Refused {
    fn from(invalid: Invalid) -> Self {
        let code = match &invalid {
            Invalid::Topic(_) => Code::IllegalTopic,
            Invalid::ConsumerGroup(_) => Code::IllegalConsumerGroup,
            Invalid::NoMessages | Invalid::MixedTopics { .. } => Code::MessageCorrupted,
            Invalid::TooManyMessages { .. }
            | Invalid::TooManyBatchTopics { .. }
            | Invalid::RequestTooLarge { .. }
            | Invalid::TooManyAckEntries { .. } => Code::PayloadTooLarge,
            Invalid::BodyEmpty { .. } => Code::MessageBodyEmpty,
            Invalid::BodyTooLarge { .. } => Code::MessageBodyTooLarge,
            Invalid::TooManyProperties { .. }
            | Invalid::PropertiesTooLarge { .. }
            | Invalid::FieldTooLong { .. } => Code::MessagePropertiesTooLarge,
            Invalid::PropertyReserved { .. } | Invalid::PropertyControlCharacter { .. } => {
                Code::IllegalMessagePropertyKey
            }
            Invalid::Tag { .. } => Code::IllegalMessageTag,
            Invalid::Key { .. } => Code::IllegalMessageKey,
            Invalid::MessageIdBlank { .. }
            | Invalid::MessageIdTooLong { .. }
            | Invalid::MessageIdTwice { .. }
            | Invalid::MessageIdControlCharacter { .. } => Code::IllegalMessageId,
            Invalid::MessageGroupTooLong { .. }
            | Invalid::MessageGroup { .. }
            | Invalid::MixedMessageGroups { .. }
            | Invalid::BatchSplit { .. } => Code::IllegalMessageGroup,
            Invalid::DeliveryTooFar { .. } => Code::IllegalDeliveryTime,
            Invalid::TypeConflict { .. }
            | Invalid::BatchType { .. }
            | Invalid::TransactionWith { .. }
            | Invalid::RecallFromType { .. } => Code::MessagePropertyConflictWithType,
            Invalid::TransactionId(_) | Invalid::TransactionGroup { .. } => Code::InvalidTransactionId,
            Invalid::InvisibleDuration { .. } => Code::IllegalInvisibleTime,
            Invalid::PollingTime { .. } => Code::IllegalPollingTime,
            Invalid::Filter { .. } | Invalid::FilterSql { .. } => Code::IllegalFilterExpression,
            Invalid::ReceiptHandle(_) | Invalid::ReceiptHandleGroup { .. } => Code::InvalidReceiptHandle,
            Invalid::LiteTopic { .. } | Invalid::MixedLiteTopics { .. } => Code::IllegalLiteTopic,
            Invalid::TooManyLiteTopics { .. } => Code::LiteSubscriptionQuotaExceeded,
            Invalid::Offset { .. } => Code::IllegalOffset,
            Invalid::OrphanRecovery { .. }
            | Invalid::BatchGroup { .. }
            | Invalid::BatchSpread { .. }
            | Invalid::BatchTopicElsewhere { .. }
            | Invalid::Priority { .. }
            | Invalid::NotLite { .. }
            | Invalid::LiteVersion { .. }
            | Invalid::QueueId { .. }
            | Invalid::QueueBroker { .. }
            | Invalid::TimestampMissing
            | Invalid::RecallHandle(_)
            | Invalid::RecallHandleGroup { .. }
            | Invalid::BatchSize { .. }
            | Invalid::AttemptId { .. }
            | Invalid::NoAckEntries => Code::BadRequest,
        };
        Self::new(code, invalid.to_string())
    }
}

pub fn topic_not_found(topic: &str) -> Refused {
    Refused::new(Code::TopicNotFound, format!("topic \"{topic}\" does not exist"))
}

pub fn not_implemented(rpc: &str) -> Refused {
    Refused::new(Code::NotImplemented, format!("{rpc} is not implemented by this server"))
}

impl Refused {
    /// The status for a client in `language`.
    pub fn into_status(self, language: ClientLanguage) -> Status {
        let code = match (language, self.code) {
            // The published Rust SDK panics on a number it does not know.
            (ClientLanguage::Rust, Code::MessageBodyEmpty | Code::IllegalOffset | Code::IllegalLiteTopic) => {
                Code::BadRequest
            }
            (ClientLanguage::Rust, Code::OffsetNotFound) => Code::NotFound,
            (ClientLanguage::Rust, Code::LiteTopicQuotaExceeded | Code::LiteSubscriptionQuotaExceeded) => {
                Code::TooManyRequests
            }
            (_, code) => code,
        };
        Status { code: code.into(), message: self.message }
    }
}

pub fn ok() -> Status {
    Status { code: Code::Ok.into(), message: "OK".to_owned() }
}

/// The top-level status over entries: what they all say, or that they differ.
pub fn common_status<'a>(mut entries: impl Iterator<Item = Option<&'a Status>>) -> Status {
    let Some(first) = entries.next() else {
        return Refused::new(Code::InternalServerError, "no result").into_status(ClientLanguage::Other);
    };
    let code_of = |status: Option<&Status>| status.map_or(0, |status| status.code);
    if entries.all(|entry| code_of(entry) == code_of(first)) {
        first.cloned().unwrap_or_default()
    } else {
        Status { code: Code::MultipleResults.into(), message: "entries have different results".to_owned() }
    }
}
