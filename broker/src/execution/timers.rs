//! Delayed messages on the leader: stored until their time, fired by the leader's clock, recalled.
//!
//! | Condition of a send | Answer |
//! |---|---|
//! | the delivery time is further away than `topics.delay_max_s` | ILLEGAL_DELIVERY_TIME |
//! | it is past | OK; delivered at once |
//! | the message id is in the window | OK with the first place and the first recall handle |
//!
//! | Condition of a recall | Answer |
//! |---|---|
//! | the timer waits | OK with the message id; it will never be delivered |
//! | it was recalled before, at most `RECALL_REMEMBERED_MS` beyond its time ago | OK: a repeat of a lost answer |
//! | it fired, or was recalled longer ago | PRECONDITION_FAILED |
//! | the handle is of another topic, or of no timer | BAD_REQUEST |
//!
//! The leader sleeps until the next timer and proposes to fire what is due by its clock; a new leader
//! does the same from its own state, so a failover needs no hand-over. Firing the same timer twice is
//! impossible in apply.

use std::sync::Weak;
use std::time::Duration;

use ledgermq_common::PhysicalOffset;
use ledgermq_common::clock::UnixMillis;
use ledgermq_common::recall_handle::RecallHandle;
use ledgermq_edge::codes::{self, topic_not_found};
use ledgermq_edge::context::CallContext;
use ledgermq_edge::group_call::{GroupResponse, NotExecuted, Refused, SendRequest};
use ledgermq_edge::validate;
use ledgermq_proto::rocketmq::{
    Code, RecallMessageRequest, RecallMessageResponse, SendMessageResponse, SendResultEntry,
};

use super::hosted_group::{Ended, HostedGroup, refused, unexpected};
use super::intake;
use crate::state::{
    Answer, Command, FIRED_PER_ENTRY_MAX, FireTimers, IndexEntry, NewMessage, Placed, RecallOutcome,
    RecallTimer, Scheduled, StoredMessage, TimerState, TopicView, encode_delayed, encoded_delayed_bytes,
};

/// Timers fired by one entry: small enough that apply does not hold others up.
const FIRE_BATCH: u32 = 2_048;
const _: () = assert!(FIRE_BATCH <= FIRED_PER_ENTRY_MAX);
/// The leader looks again after this long, should a wake-up be missing.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// A pause after a proposal that failed, so that a leader on its way out does not spin.
const AFTER_FAILURE: Duration = Duration::from_millis(50);
/// The length of a record stands in its first bytes.
const RECORD_LENGTH_BYTES: u32 = 4;

pub async fn send(
    hosted: &HostedGroup,
    context: &CallContext,
    send: &SendRequest,
    topic: &TopicView,
) -> Result<GroupResponse, Ended> {
    let now = hosted.now();
    let queue = hosted.next_queue(topic);
    let mut messages: Vec<(UnixMillis, NewMessage)> =
        intake::new_messages(&send.request, queue, now, context.peer)
            .into_iter()
            .zip(&send.request.messages)
            .enumerate()
            .map(|(index, (message, sent))| {
                let deliver_at =
                    validate::deliver_at_ms(index, sent, now.get(), hosted.settings.delay_max_ms)?;
                Ok((UnixMillis(deliver_at), message))
            })
            .collect::<Result<_, validate::Invalid>>()
            .map_err(Refused::from)?;
    for (deliver_at, message) in &mut messages {
        message.properties.deliver_at_ms = Some(deliver_at.get());
    }
    let command_bytes = encoded_delayed_bytes(&messages);
    if command_bytes > ledgermq_common::limits::COMMAND_BYTES_MAX {
        return Err(Refused::new(
            Code::PayloadTooLarge,
            format!(
                "the messages take {command_bytes} bytes in the log; the limit is {}",
                ledgermq_common::limits::COMMAND_BYTES_MAX
            ),
        )
        .into());
    }
    let _room = hosted.append_room.enter(command_bytes, context.deadline).await?;
    if context.remaining().is_zero() {
        return Err(NotExecuted::DeadlinePassed.into());
    }
    let scheduled = match hosted.propose(encode_delayed(hosted.now(), topic.id, &messages)).await? {
        Answer::Scheduled(scheduled) => scheduled,
        Answer::Refused(refusal) => return Err(refused(refusal, send.topic.as_str()).into()),
        other => return Err(unexpected("AppendDelayed", &other)),
    };
    assert_eq!(scheduled.len(), messages.len(), "apply answers once for each message");
    hosted.timers_changed.notify_one();
    let new = messages.iter().zip(&scheduled).filter(|(_, at)| !at.repeated);
    hosted.metrics.messages_in(send.topic.as_str(), new.map(|((_, message), _)| message.body.len()));
    let entries = messages
        .into_iter()
        .zip(scheduled)
        .map(|((deliver_at, message), at)| entry(hosted, topic, message.id, deliver_at, at))
        .collect();
    Ok(GroupResponse::Send(SendMessageResponse { status: Some(codes::ok()), entries }))
}

fn entry(
    hosted: &HostedGroup,
    topic: &TopicView,
    message_id: String,
    deliver_at: UnixMillis,
    at: Scheduled,
) -> SendResultEntry {
    let (offset, recall_handle) = match at.placed {
        Placed::Visible { offset, .. } => (offset.get(), String::new()),
        Placed::Pending { physical } => {
            // A repeat may name another time; the first one counts.
            let place = hosted.state.timer_place(physical);
            let first = if at.repeated { read_at(hosted, place) } else { None };
            let deliver_at =
                first.and_then(|stored| stored.properties.deliver_at_ms).map_or(deliver_at, UnixMillis);
            let handle = RecallHandle { group: hosted.id, topic_id: topic.id.get(), deliver_at, physical };
            (0, handle.encode())
        }
    };
    SendResultEntry {
        status: Some(codes::ok()),
        message_id,
        transaction_id: String::new(),
        offset: i64::try_from(offset).unwrap_or(i64::MAX),
        recall_handle,
    }
}

pub async fn recall(hosted: &HostedGroup, request: &RecallMessageRequest) -> Result<GroupResponse, Ended> {
    let topic_name = request.topic.as_ref().map_or("", |topic| topic.name.as_str());
    let topic = hosted.state.topic(topic_name).ok_or_else(|| Refused::from(topic_not_found(topic_name)))?;
    let bad = |why: String| Ended::from(Refused::new(Code::BadRequest, why));
    let handle = RecallHandle::parse(&request.recall_handle).map_err(|error| bad(error.to_string()))?;
    if handle.group != hosted.id || handle.topic_id != topic.id.get() {
        return Err(bad(format!("recall handle is not of topic {topic_name}")));
    }
    match hosted.state.timer(handle.deliver_at, handle.physical) {
        TimerState::Pending { topic: of } if of == topic.id => {}
        TimerState::Recalled => {}
        TimerState::Over => return Err(too_late()),
        TimerState::Pending { .. } | TimerState::Unknown => {
            return Err(bad("recall handle names no delayed message of this topic".to_owned()));
        }
    }
    // It may have been carried, which its recall makes the state forget.
    let place = hosted.state.timer_place(handle.physical);
    let command = RecallTimer { deliver_at: handle.deliver_at, physical: handle.physical };
    match hosted.propose(Command::RecallTimer(command).encode(hosted.now())).await? {
        Answer::Recalled(RecallOutcome::Recalled | RecallOutcome::RecalledBefore) => {}
        Answer::Recalled(RecallOutcome::TooLate) => return Err(too_late()),
        other => return Err(unexpected("RecallTimer", &other)),
    }
    let message_id = read_at(hosted, place).map(|stored| stored.id).unwrap_or_default();
    Ok(GroupResponse::Recalled(RecallMessageResponse { status: Some(codes::ok()), message_id }))
}

fn too_late() -> Ended {
    Refused::new(Code::PreconditionFailed, "the delivery time of the message has come").into()
}

/// The message record at a position the state named.
fn read_at(hosted: &HostedGroup, physical: PhysicalOffset) -> Option<StoredMessage> {
    let length = hosted.group.read(physical, RECORD_LENGTH_BYTES).ok()?;
    let record_bytes = u32::from_le_bytes(*length.first_chunk::<4>()?);
    let stored_at = UnixMillis(0);
    super::receive::read_record(hosted, IndexEntry { physical, record_bytes, tag_code: 0, stored_at })
}

/// Fires what is due, while this node leads.
pub async fn fire_timers(hosted: Weak<HostedGroup>) {
    let Some((mut leadership, news)) = hosted
        .upgrade()
        .map(|hosted| (hosted.raft_leadership(), std::sync::Arc::clone(&hosted.timers_changed)))
    else {
        return;
    };
    loop {
        let wait = {
            let Some(hosted) = hosted.upgrade() else { return };
            leadership.borrow_and_update();
            if hosted.leads() { fire_due(&hosted).await } else { LOOK_AGAIN }
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = news.notified() => {}
            changed = leadership.changed() => if changed.is_err() { return },
        }
    }
}

/// How long until there is something to do.
async fn fire_due(hosted: &HostedGroup) -> Duration {
    loop {
        let now = hosted.now();
        let Some(next) = hosted.state.next_timer() else { return LOOK_AGAIN };
        if next > now {
            return Duration::from_millis(next.saturating_ms_since(now)).min(LOOK_AGAIN);
        }
        let command = FireTimers { through: now, max: FIRE_BATCH };
        match hosted.propose(Command::FireTimers(command).encode(now)).await {
            Ok(Answer::Fired { fired, .. }) => {
                tracing::trace!(group = %hosted.name(), fired, "timers fired");
            }
            Ok(other) => {
                tracing::error!(group = %hosted.name(), ?other, "FireTimers got an answer of another command");
                return AFTER_FAILURE;
            }
            Err(ended) => {
                tracing::debug!(group = %hosted.name(), ?ended, "timers wait for the next leader");
                return AFTER_FAILURE;
            }
        }
    }
}
