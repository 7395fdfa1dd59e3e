//! Messages a consumer group gives up, on the leader.
//!
//! | Who gives up | When |
//! |---|---|
//! | the retry policy | the last delivery it allows has ended without an acknowledgement ([`bury_exhausted`]) |
//! | the consumer | it calls ForwardMessageToDeadLetterQueue ([`forward`]) |
//! | nobody | an operator gives letters back ([`redrive`]) |
//!
//! | What became of the delivery | Answer to a forward |
//! |---|---|
//! | it holds, or its lease ended and nobody else got the message | OK |
//! | consumed or dead-lettered before | OK: a repeat of a lost answer |
//! | delivered to somebody else since | OK: that delivery decides; SDKs repeat any other answer for ever |
//! | never delivered, handle of something else | INVALID_RECEIPT_HANDLE |
//! | no handle, and no such message under way | MESSAGE_NOT_FOUND |

use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use ledgermq_common::QueueOffset;
use ledgermq_edge::group_call::{GroupResponse, Refused};
use ledgermq_proto::rocketmq::{Code, ForwardMessageToDeadLetterQueueRequest};
use tokio::time::MissedTickBehavior;

use super::acknowledge::{Subject, not_changed};
use super::hosted_group::{Ended, HostedGroup, refused, unexpected};
use super::lite::check_lite_topic;
use super::receive::read_record;
use crate::state::{
    Answer, Command, ConsumerGroupId, DeadLetter, DeadLetterReason, DeadLetterRecord, DeliveryEpoch,
    DeliveryOutcome, DeliveryState, EndedDelivery, IndexEntry, Letter, RedriveDeadLetters, RedrivenLetter,
    StoredMessage, TopicId,
};

/// How often the leader looks for deliveries that were the last.
pub const BURY_INTERVAL: Duration = Duration::from_millis(500);
/// Letters in one command.
const LETTERS_MAX: usize = 256;
/// Letters of one look; what is left over waits for the next.
const LETTERS_PER_LOOK_MAX: usize = 64 * LETTERS_MAX;
/// Deliveries looked through for a message id the window does not know (any more).
const OPEN_DELIVERIES_SEARCHED_MAX: usize = 4_096;
/// The newest letters of a group that are looked through for one message.
const LETTERS_SEARCHED_MAX: u32 = 4_096;

/// Moves what was delivered often enough to the dead letters, while this node leads.
pub async fn bury_exhausted(hosted: Weak<HostedGroup>) {
    let mut look = tokio::time::interval(BURY_INTERVAL);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        look.tick().await;
        let Some(hosted) = hosted.upgrade() else { return };
        if !hosted.leads() {
            continue;
        }
        let exhausted = hosted.state.exhausted_deliveries(hosted.now(), LETTERS_PER_LOOK_MAX);
        for same in exhausted.chunk_by(|a, b| (a.consumer_group, a.topic) == (b.consumer_group, b.topic)) {
            for batch in same.chunks(LETTERS_MAX) {
                if let Err(ended) = give_up(&hosted, batch, DeadLetterReason::AttemptsExhausted).await {
                    tracing::debug!(group = %hosted.name(), ?ended, "dead letters wait for the next leader");
                    break;
                }
            }
        }
    }
}

pub async fn forward(
    hosted: &Arc<HostedGroup>,
    request: &ForwardMessageToDeadLetterQueueRequest,
) -> Result<GroupResponse, Ended> {
    let subject = Subject::find(hosted, request.topic.as_ref(), request.group.as_ref())?;
    let (consumer_group, topic) = (subject.consumer_group.id, subject.topic.id);
    let delivery = if request.receipt_handle.is_empty() {
        match find_by_id(hosted, consumer_group, topic, &request.message_id) {
            Some(DeliveryState::Delivered(delivery, _)) => delivery,
            Some(DeliveryState::Consumed) => return Ok(GroupResponse::Done),
            Some(DeliveryState::NeverDelivered) | None => {
                return Err(Refused::new(
                    Code::MessageNotFound,
                    format!("message \"{}\" is not under delivery to this group", request.message_id),
                )
                .into());
            }
        }
    } else {
        let handle = subject.handle(&request.receipt_handle)?;
        check_lite_topic(hosted, &subject.topic, &handle, request.lite_topic.as_deref())?;
        let attempt =
            hosted.delivery_attempt(consumer_group, topic, handle.queue, handle.offset).unwrap_or(0);
        EndedDelivery {
            consumer_group,
            topic,
            queue: handle.queue,
            offset: handle.offset,
            epoch: DeliveryEpoch(handle.delivery_epoch),
            attempt,
        }
    };
    match give_up(hosted, &[delivery], DeadLetterReason::Forwarded).await?.first() {
        Some(DeliveryOutcome::Done | DeliveryOutcome::AlreadyConsumed | DeliveryOutcome::Stale) => {
            Ok(GroupResponse::Done)
        }
        Some(&outcome) => Err(not_changed(outcome, &subject).into()),
        // Its record could not be read; the delivery goes on as it was.
        None => Err(Refused::new(Code::InternalServerError, "the message cannot be read").into()),
    }
}

/// Deliveries of one consumer group in one topic, in one entry. One outcome for each delivery whose
/// message can be read.
async fn give_up(
    hosted: &HostedGroup,
    deliveries: &[EndedDelivery],
    reason: DeadLetterReason,
) -> Result<Vec<DeliveryOutcome>, Ended> {
    let Some(first) = deliveries.first() else { return Ok(Vec::new()) };
    let (consumer_group, topic) = (first.consumer_group, first.topic);
    let Some(view) = hosted.state.topic_by_id(topic) else { return Ok(Vec::new()) };
    let letters: Vec<Letter> = deliveries
        .iter()
        .filter_map(|delivery| {
            let record = record_of(hosted, delivery, &view.name, reason)?;
            let EndedDelivery { queue, offset, epoch, .. } = *delivery;
            Some(Letter { queue, offset, epoch, record })
        })
        .collect();
    if letters.is_empty() {
        return Ok(Vec::new());
    }
    let command = DeadLetter { consumer_group, topic, letters };
    match hosted.propose(Command::DeadLetter(command).encode(hosted.now())).await? {
        Answer::DeadLettered { created, outcomes } => {
            if created {
                hosted.topics_changed();
            }
            let moved = outcomes.iter().filter(|outcome| **outcome == DeliveryOutcome::Done).count();
            if let Some(group) = hosted.state.consumer_group_by_id(consumer_group) {
                hosted.metrics.dead_letters(&view.name, &group.name, moved);
            }
            Ok(outcomes)
        }
        Answer::Refused(refusal) => Err(refused(refusal, &view.name).into()),
        other => Err(unexpected("DeadLetter", &other)),
    }
}

fn record_of(
    hosted: &HostedGroup,
    delivery: &EndedDelivery,
    topic_name: &str,
    reason: DeadLetterReason,
) -> Option<DeadLetterRecord> {
    let entry = hosted.state.locate(delivery.topic, delivery.queue, delivery.offset)?;
    let (physical, record_bytes) = match letter_at(hosted, entry) {
        // A dead letter nobody could consume either: the new one refers to the message itself.
        Some(letter) => (letter.physical, letter.record_bytes),
        None => (entry.physical, entry.record_bytes),
    };
    Some(DeadLetterRecord {
        reason,
        topic: delivery.topic,
        queue: delivery.queue,
        offset: delivery.offset,
        tag_code: entry.tag_code,
        attempts: delivery.attempt,
        physical,
        record_bytes,
        at: hosted.now(),
        topic_name: topic_name.to_owned(),
    })
}

/// The dead letter an index entry points at, if it is one.
pub(super) fn letter_at(hosted: &HostedGroup, entry: IndexEntry) -> Option<DeadLetterRecord> {
    let head = hosted.group.read(entry.physical, entry.record_bytes.min(8)).ok()?;
    if !DeadLetterRecord::is_one(&head) {
        return None;
    }
    let record: Bytes = hosted.group.read(entry.physical, entry.record_bytes).ok()?;
    DeadLetterRecord::decode(&record).ok()
}

/// The C++ SDK forwards without a handle: the message is known by its id alone.
fn find_by_id(
    hosted: &HostedGroup,
    consumer_group: ConsumerGroupId,
    topic: TopicId,
    message_id: &str,
) -> Option<DeliveryState> {
    if let Some((queue, offset)) = hosted.state.place_of_id(topic, message_id) {
        return Some(hosted.state.delivery_state(consumer_group, topic, queue, offset));
    }
    let open = hosted.state.open_deliveries(consumer_group, topic, OPEN_DELIVERIES_SEARCHED_MAX);
    let found = open.into_iter().find(|delivery| {
        let entry = hosted.state.locate(topic, delivery.queue, delivery.offset);
        entry.and_then(|entry| read_record(hosted, entry)).is_some_and(|stored| stored.id == message_id)
    })?;
    Some(hosted.state.delivery_state(consumer_group, topic, found.queue, found.offset))
}

/// One dead letter with its message.
pub struct ReadLetter {
    pub at: QueueOffset,
    pub is_redriven: bool,
    pub stored: StoredMessage,
}

/// Letters of a consumer group from an offset on, and the offset to go on from.
pub fn list(
    hosted: &HostedGroup,
    consumer_group: &str,
    from: QueueOffset,
    max: u32,
) -> (Vec<ReadLetter>, Option<QueueOffset>) {
    let Some((topic, queue)) = hosted.state.dead_letters_of(consumer_group) else {
        return (Vec::new(), None);
    };
    let entries = hosted.state.range(topic, queue, from, max);
    let next = entries.last().map(|(last, _)| QueueOffset(last.get() + 1));
    let more = next.filter(|next| hosted.state.locate(topic, queue, *next).is_some());
    let letters = entries
        .into_iter()
        .filter_map(|(at, entry)| {
            let stored = read_record(hosted, entry)?;
            Some(ReadLetter { at, is_redriven: hosted.state.is_redriven(topic, at), stored })
        })
        .collect();
    (letters, more)
}

/// The letters of one message of a consumer group, among the newest.
pub fn find(
    hosted: &HostedGroup,
    consumer_group: &str,
    topic: TopicId,
    queue: ledgermq_common::QueueId,
    offset: QueueOffset,
) -> Vec<String> {
    let Some((letters, letter_queue)) = hosted.state.dead_letters_of(consumer_group) else {
        return Vec::new();
    };
    let end = hosted.state.queue_ranges(letters).and_then(|ranges| ranges.first().map(|range| range.end));
    let from = end.unwrap_or(0).saturating_sub(u64::from(LETTERS_SEARCHED_MAX));
    let entries = hosted.state.range(letters, letter_queue, QueueOffset(from), LETTERS_SEARCHED_MAX);
    entries
        .into_iter()
        .filter_map(|(at, entry)| {
            let letter = letter_at(hosted, entry)?;
            let is_of_it = (letter.topic, letter.queue, letter.offset) == (topic, queue, offset);
            let given_back = if hosted.state.is_redriven(letters, at) { ", given back" } else { "" };
            is_of_it.then(|| {
                format!(
                    "{}:{at}, {} after {} attempts at {}{given_back}",
                    hosted.name,
                    letter.reason.as_str(),
                    letter.attempts,
                    letter.at
                )
            })
        })
        .collect()
}

/// Gives letters back to their consumer group; how many were, and were not given back before.
pub async fn redrive(
    hosted: &HostedGroup,
    consumer_group: &str,
    letters: &[QueueOffset],
) -> Result<u32, Ended> {
    let group = hosted.state.consumer_group(consumer_group).ok_or_else(|| {
        Refused::new(
            Code::ConsumerGroupNotFound,
            format!("consumer group \"{consumer_group}\" does not exist"),
        )
    })?;
    let Some((topic, queue)) = hosted.state.dead_letters_of(consumer_group) else { return Ok(0) };
    let letters: Vec<RedrivenLetter> = letters
        .iter()
        .filter_map(|&letter| {
            let record = letter_at(hosted, hosted.state.locate(topic, queue, letter)?)?;
            Some(RedrivenLetter { letter, topic: record.topic, queue: record.queue, offset: record.offset })
        })
        .collect();
    let command = RedriveDeadLetters { consumer_group: group.id, letters };
    match hosted.propose(Command::RedriveDeadLetters(command).encode(hosted.now())).await? {
        Answer::Redriven(outcomes) => {
            let done = outcomes.iter().filter(|outcome| **outcome == DeliveryOutcome::Done).count();
            Ok(u32::try_from(done).unwrap_or(u32::MAX))
        }
        Answer::Refused(refusal) => Err(refused(refusal, consumer_group).into()),
        other => Err(unexpected("RedriveDeadLetters", &other)),
    }
}
