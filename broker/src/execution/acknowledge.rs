//! AckMessage and ChangeInvisibleDuration on the leader.
//!
//! | What became of the delivery | Ack | ChangeInvisible |
//! |---|---|---|
//! | it holds, or its lease ended and nobody else got the message | OK | OK, new handle |
//! | acknowledged before | OK: a repeat of a lost answer | INVALID_RECEIPT_HANDLE |
//! | delivered to somebody else since | INVALID_RECEIPT_HANDLE | INVALID_RECEIPT_HANDLE |
//! | handle of another topic or consumer group than the request | INVALID_RECEIPT_HANDLE | same |
//! | handle of another lite topic than the request | ILLEGAL_LITE_TOPIC | same |
//! | topic or consumer group gone | TOPIC_NOT_FOUND, CONSUMER_GROUP_NOT_FOUND | same |

use ledgermq_common::ReceiptHandle;
use ledgermq_edge::codes::{self, topic_not_found};
use ledgermq_edge::group_call::{GroupResponse, Refused};
use ledgermq_proto::rocketmq::{
    AckMessageRequest, AckMessageResponse, AckMessageResultEntry, ChangeInvisibleDurationRequest,
    ChangeInvisibleDurationResponse, Code, Resource, Status,
};

use super::hosted_group::{Ended, HostedGroup, refused, unexpected};
use super::lite::check_lite_topic;
use crate::state::{
    AckEntry, AckMessages, Answer, ChangeInvisible, ChangeOutcome, Command, ConsumerGroupView, DeliveryEpoch,
    DeliveryOutcome, TopicView,
};

/// A wait this short is no wish for a wait but a nack; the Node SDK sends 1 ms.
const NACK_MS_MAX: u64 = 1;

pub async fn ack(hosted: &HostedGroup, request: &AckMessageRequest) -> Result<GroupResponse, Ended> {
    let subject = Subject::find(hosted, request.topic.as_ref(), request.group.as_ref())?;
    // Entries that can be judged without the log keep their place in the answer.
    let judged: Vec<Result<AckEntry, Refused>> = request
        .entries
        .iter()
        .map(|entry| {
            let handle = subject.handle(&entry.receipt_handle)?;
            check_lite_topic(hosted, &subject.topic, &handle, entry.lite_topic.as_deref())?;
            Ok(ack_entry(&handle))
        })
        .collect();
    let entries: Vec<AckEntry> = judged.iter().filter_map(|entry| entry.as_ref().ok().copied()).collect();
    let mut outcomes = if entries.is_empty() {
        Vec::new()
    } else {
        let command = AckMessages {
            consumer_group: subject.consumer_group.id,
            topic: subject.topic.id,
            entries: entries.clone(),
        };
        match hosted.propose(Command::AckMessages(command).encode(hosted.now())).await? {
            Answer::Acked(outcomes) => outcomes,
            Answer::Refused(refusal) => return Err(refused(refusal, &subject.topic.name).into()),
            other => return Err(unexpected("AckMessages", &other)),
        }
    }
    .into_iter();
    let results: Vec<AckMessageResultEntry> = request
        .entries
        .iter()
        .zip(judged)
        .map(|(entry, judged)| {
            let status = match judged {
                Ok(_) => status_of_ack(outcomes.next().expect("apply answers once for each entry"), &subject),
                Err(refused) => Status { code: refused.code.into(), message: refused.message },
            };
            AckMessageResultEntry {
                message_id: entry.message_id.clone(),
                receipt_handle: entry.receipt_handle.clone(),
                status: Some(status),
            }
        })
        .collect();
    let status = codes::common_status(results.iter().map(|entry| entry.status.as_ref()));
    Ok(GroupResponse::Ack(AckMessageResponse { status: Some(status), entries: results }))
}

pub async fn change_invisible(
    hosted: &HostedGroup,
    request: &ChangeInvisibleDurationRequest,
) -> Result<GroupResponse, Ended> {
    let subject = Subject::find(hosted, request.topic.as_ref(), request.group.as_ref())?;
    let handle = subject.handle(&request.receipt_handle)?;
    check_lite_topic(hosted, &subject.topic, &handle, request.lite_topic.as_deref())?;
    let asked_ms = request.invisible_duration.as_ref().map_or(0, |duration| {
        let seconds = u64::try_from(duration.seconds).unwrap_or(0);
        seconds.saturating_mul(1000).saturating_add(u64::try_from(duration.nanos).unwrap_or(0) / 1_000_000)
    });
    let invisible_ms = if asked_ms <= NACK_MS_MAX {
        let attempt =
            hosted.delivery_attempt(subject.consumer_group.id, subject.topic.id, handle.queue, handle.offset);
        subject.consumer_group.settings.backoff.delay_ms(attempt.unwrap_or(1))
    } else {
        asked_ms
    };
    let change = ChangeInvisible {
        consumer_group: subject.consumer_group.id,
        topic: subject.topic.id,
        queue: handle.queue,
        offset: handle.offset,
        epoch: DeliveryEpoch(handle.delivery_epoch),
        invisible_ms,
    };
    let command =
        if request.suspend() { Command::SuspendDelivery(change) } else { Command::ChangeInvisible(change) };
    let outcome = match hosted.propose(command.encode(hosted.now())).await? {
        Answer::Changed(outcome) => outcome,
        Answer::Refused(refusal) => return Err(refused(refusal, &subject.topic.name).into()),
        other => return Err(unexpected("ChangeInvisible", &other)),
    };
    match outcome {
        ChangeOutcome::Changed { renewal, .. } => {
            let renewed = ReceiptHandle { renewal, ..handle };
            Ok(GroupResponse::ChangeInvisible(ChangeInvisibleDurationResponse {
                status: Some(codes::ok()),
                receipt_handle: renewed.encode(),
            }))
        }
        ChangeOutcome::Not(outcome) => Err(not_changed(outcome, &subject).into()),
    }
}

/// What a request is about, as the state knows it.
pub(super) struct Subject {
    pub(super) topic: TopicView,
    pub(super) consumer_group: ConsumerGroupView,
    group: ledgermq_common::GroupId,
}

impl Subject {
    pub(super) fn find(
        hosted: &HostedGroup,
        topic: Option<&Resource>,
        consumer_group: Option<&Resource>,
    ) -> Result<Self, Refused> {
        let topic_name = topic.map_or("", |topic| topic.name.as_str());
        let group_name = consumer_group.map_or("", |group| group.name.as_str());
        let topic = hosted.state.topic(topic_name).ok_or_else(|| topic_not_found(topic_name))?;
        let consumer_group = hosted.state.consumer_group(group_name).ok_or_else(|| {
            Refused::new(
                Code::ConsumerGroupNotFound,
                format!("consumer group \"{group_name}\" does not exist"),
            )
        })?;
        Ok(Self { topic, consumer_group, group: hosted.id })
    }

    /// The handle, if it is one of this subject.
    pub(super) fn handle(&self, text: &str) -> Result<ReceiptHandle, Refused> {
        let handle = ReceiptHandle::parse(text)
            .map_err(|error| Refused::new(Code::InvalidReceiptHandle, error.to_string()))?;
        let refused = |of: String| Err(Refused::new(Code::InvalidReceiptHandle, of));
        if handle.group != self.group {
            return refused(format!("receipt handle is of broker group {}", handle.group));
        }
        if handle.topic_id != self.topic.id.get() {
            return refused(format!("receipt handle is not of topic {}", self.topic.name));
        }
        if handle.consumer_group_id != u64::from(self.consumer_group.id.get()) {
            return refused(format!("receipt handle is not of consumer group {}", self.consumer_group.name));
        }
        Ok(handle)
    }
}

fn ack_entry(handle: &ReceiptHandle) -> AckEntry {
    AckEntry { queue: handle.queue, offset: handle.offset, epoch: DeliveryEpoch(handle.delivery_epoch) }
}

fn status_of_ack(outcome: DeliveryOutcome, subject: &Subject) -> Status {
    match outcome {
        DeliveryOutcome::Done | DeliveryOutcome::AlreadyConsumed => codes::ok(),
        other => {
            let refused = not_changed(other, subject);
            Status { code: refused.code.into(), message: refused.message }
        }
    }
}

pub(super) fn not_changed(outcome: DeliveryOutcome, subject: &Subject) -> Refused {
    let invalid = |why: &str| Refused::new(Code::InvalidReceiptHandle, why);
    match outcome {
        DeliveryOutcome::Done | DeliveryOutcome::AlreadyConsumed => {
            invalid("the message was acknowledged before")
        }
        DeliveryOutcome::Stale => invalid("receipt handle is expired: the message was delivered again since"),
        DeliveryOutcome::NeverDelivered => invalid("the message was never delivered to this consumer group"),
        DeliveryOutcome::TopicUnknown => topic_not_found(&subject.topic.name),
        DeliveryOutcome::ConsumerGroupUnknown => Refused::new(
            Code::ConsumerGroupNotFound,
            format!("consumer group \"{}\" does not exist", subject.consumer_group.name),
        ),
    }
}
