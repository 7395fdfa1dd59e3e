//! Reading a queue by offset, and the offsets of groups.
//!
//! What a pull returns is committed and cannot be taken back, so it needs no entry in the log. Whatever
//! says how far a queue or a group is waits for a read barrier first: a leader that has been replaced
//! must not tell an old offset.
//!
//! | Condition | Code |
//! |---|---|
//! | offset below the first or above the next of the queue | ILLEGAL_OFFSET |
//! | queue the topic does not have | BAD_REQUEST |
//! | a commit below what is in force, or of a client that does not know of the last reset | ILLEGAL_OFFSET, and which it is |
//! | nothing came in time | MESSAGE_NOT_FOUND, with the offset to go on from |

use std::sync::Arc;
use std::time::Duration;

use ledgermq_common::clock::UnixMillis;
use ledgermq_common::limits::RECEIVE_BATCH_MESSAGES_MAX;
use ledgermq_common::{ConsumerGroupName, QueueId, QueueOffset};
use ledgermq_edge::codes::{self, topic_not_found};
use ledgermq_edge::context::CallContext;
use ledgermq_edge::group_call::{
    CommitSuperseded, CommittedOffset, GroupResponse, NotExecuted, OffsetQuery, OffsetRequest, OffsetUpdate,
    PullRequest, Pulled, Refused,
};
use ledgermq_proto::rocketmq::{Code, Resource, Status};
use ledgermq_raft_store::group::BarrierError;
use tokio::time::Instant;

use super::delivery::{Delivery, delivered};
use super::hosted_group::{Ended, HostedGroup, refused, unexpected};
use super::receive::read_record;
use super::wanted::Wanted;
use crate::state::{
    Answer, Command, CommitOffset, CommitOutcome, ConsumerGroupId, ResetId, ResetProgress, TopicView,
};

/// Bodies of one answer together; a single message may be larger.
const PULL_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// Entries looked at for one answer.
const PULL_SCAN_ENTRIES_MAX: u32 = 4_096;
const POLL_END_MARGIN: Duration = Duration::from_millis(50);

pub async fn pull(
    hosted: &Arc<HostedGroup>,
    context: &CallContext,
    request: &PullRequest,
) -> Result<GroupResponse, Ended> {
    let topic = topic_of(hosted, request.topic.as_str())?;
    let consumer_group = hosted.consumer_group_or_create(&request.consumer_group).await?;
    let ends = request.poll_until.min(context.deadline);
    let ends = ends.checked_sub(POLL_END_MARGIN).unwrap_or(ends);
    let wanted = Wanted::of(&request.filter);
    let mut leadership = hosted.raft_leadership();
    let mut stopping = hosted.stopping.clone();
    let mut next = request.offset;
    let range = queue_range(hosted, &topic, request.queue)?;
    if !(range.start..=range.end).contains(&next.get()) {
        // This replica may be behind the one that told the offset.
        barrier(hosted).await?;
        let range = queue_range(hosted, &topic, request.queue)?;
        if !(range.start..=range.end).contains(&next.get()) {
            return Err(Refused::new(
                Code::IllegalOffset,
                format!("offset is {next}; the queue has {}..={}", range.start, range.end),
            )
            .into());
        }
    }
    let place = hosted
        .waiters
        .wait_in_line(topic.id, consumer_group.id)
        .map_err(|full| Refused::new(Code::TooManyRequests, full.to_string()))?;
    loop {
        place.about_to_look();
        leadership.borrow_and_update();
        hosted.leader_still()?;
        let (messages, reached) = look(hosted, &topic, request, &wanted, next);
        let moved = reached > next;
        next = reached;
        let is_over = Instant::now() >= ends || *stopping.borrow_and_update();
        if !messages.is_empty() || is_over {
            let status = if messages.is_empty() {
                Status { code: Code::MessageNotFound.into(), message: "no new message".to_owned() }
            } else {
                codes::ok()
            };
            // Others of the group read the same queue: broadcasting.
            place.pass_on();
            return Ok(GroupResponse::Pulled(Pulled { status, messages, next_offset: next }));
        }
        if moved {
            tokio::task::yield_now().await;
            continue;
        }
        place.pass_on();
        tokio::select! {
            () = place.woken() => {}
            () = tokio::time::sleep_until(ends) => {}
            _ = leadership.changed() => {}
            _ = stopping.changed() => {}
        }
    }
}

/// Messages from `from` on, and the offset after the last entry looked at.
fn look(
    hosted: &HostedGroup,
    topic: &TopicView,
    request: &PullRequest,
    wanted: &Wanted,
    from: QueueOffset,
) -> (Vec<ledgermq_proto::rocketmq::Message>, QueueOffset) {
    let batch = request.batch_size.clamp(1, RECEIVE_BATCH_MESSAGES_MAX) as usize;
    let entries_max = if wanted.is_everything() { batch as u32 } else { PULL_SCAN_ENTRIES_MAX };
    let tags = wanted.tags();
    let resource = Resource { resource_namespace: String::new(), name: topic.name.clone() };
    let (mut messages, mut bytes, mut next) = (Vec::new(), 0, from);
    let entries = hosted.state.range(topic.id, request.queue, from, entries_max);
    for (offset, entry) in entries {
        if messages.len() >= batch || bytes >= PULL_BYTES_MAX {
            break;
        }
        next = QueueOffset(offset.get() + 1);
        if !tags.may_match(entry.tag_code) {
            continue;
        }
        // One that cannot be read is logged and passed over: nobody holds a lease that would bring it back.
        let Some(stored) = read_record(hosted, entry) else { continue };
        if !wanted.wants(&stored) {
            continue;
        }
        bytes += stored.body.len() as u64;
        messages.push(delivered(
            stored,
            Delivery {
                topic: &resource,
                queue: request.queue,
                offset,
                stored_at: entry.stored_at,
                store_host: &hosted.settings.store_host,
                receipt_handle: String::new(),
                attempt: 1,
                invisible_ms: 0,
            },
        ));
    }
    (messages, next)
}

pub async fn offset(hosted: &HostedGroup, request: &OffsetRequest) -> Result<GroupResponse, Ended> {
    let topic = topic_of(hosted, request.topic.as_str())?;
    let queue = request.queue;
    queue_range(hosted, &topic, queue)?;
    let offset = match &request.query {
        OffsetQuery::Committed(consumer_group) => {
            barrier(hosted).await?;
            let known = hosted.state.consumer_group(consumer_group.as_str());
            let (offset, last_reset) = known
                .map(|group| hosted.state.offset_since_reset(group.id, topic.id, queue))
                .unwrap_or_default();
            return Ok(GroupResponse::Committed(CommittedOffset { offset, last_reset }));
        }
        OffsetQuery::Update(update) => return commit(hosted, &topic, queue, update).await,
        OffsetQuery::Beginning => {
            barrier(hosted).await?;
            QueueOffset(queue_range(hosted, &topic, queue)?.start)
        }
        OffsetQuery::End => {
            barrier(hosted).await?;
            QueueOffset(queue_range(hosted, &topic, queue)?.end)
        }
        OffsetQuery::At(at) => {
            barrier(hosted).await?;
            at_time(hosted, &topic, queue, *at)?
        }
    };
    Ok(GroupResponse::Offset(offset))
}

async fn commit(
    hosted: &HostedGroup,
    topic: &TopicView,
    queue: QueueId,
    update: &OffsetUpdate,
) -> Result<GroupResponse, Ended> {
    let OffsetUpdate { offset, known, .. } = *update;
    let consumer_group = hosted.consumer_group_or_create(&update.consumer_group).await?;
    let command = CommitOffset { consumer_group: consumer_group.id, topic: topic.id, queue, offset, known };
    match hosted.propose(Command::CommitOffset(command).encode(hosted.now())).await? {
        Answer::OffsetCommitted(CommitOutcome::Committed) => Ok(GroupResponse::Offset(offset)),
        Answer::OffsetCommitted(CommitOutcome::Behind { committed }) => {
            Ok(GroupResponse::CommitSuperseded(CommitSuperseded::By(committed)))
        }
        Answer::OffsetCommitted(CommitOutcome::OfOtherReset { last }) => {
            Ok(GroupResponse::CommitSuperseded(CommitSuperseded::ByReset(last)))
        }
        Answer::Refused(refusal) => Err(refused(refusal, &topic.name).into()),
        other => Err(unexpected("CommitOffset", &other)),
    }
}

/// Where a reset moves a group to.
#[derive(Debug, Clone, Copy)]
pub enum ResetTo {
    Beginning,
    End,
    At(UnixMillis),
    Offset(QueueId, QueueOffset),
}

/// Moves a group in all queues of a topic, or in the one named; how many queues that were. A reset that
/// was applied before under its id moves nothing now.
pub async fn reset(
    hosted: &HostedGroup,
    consumer_group: &ConsumerGroupName,
    topic: &str,
    to: ResetTo,
    id: ResetId,
) -> Result<u32, Ended> {
    let topic = topic_of(hosted, topic)?;
    let consumer_group = hosted.consumer_group_or_create(consumer_group).await?;
    barrier(hosted).await?;
    let ranges =
        hosted.state.queue_ranges(topic.id).ok_or_else(|| Refused::from(topic_not_found(&topic.name)))?;
    let mut queues = Vec::new();
    for (queue, range) in (0u32..).map(QueueId).zip(ranges) {
        let offset = match to {
            ResetTo::Beginning => QueueOffset(range.start),
            ResetTo::End => QueueOffset(range.end),
            ResetTo::At(at) => at_time(hosted, &topic, queue, at)?,
            ResetTo::Offset(of, offset) if of == queue => offset,
            ResetTo::Offset(..) => continue,
        };
        queues.push((queue, offset));
    }
    propose_reset(hosted, &topic, consumer_group.id, queues, id).await
}

async fn propose_reset(
    hosted: &HostedGroup,
    topic: &TopicView,
    consumer_group: ConsumerGroupId,
    queues: Vec<(QueueId, QueueOffset)>,
    id: ResetId,
) -> Result<u32, Ended> {
    let command = ResetProgress { consumer_group, topic: topic.id, queues, id };
    match hosted.propose(Command::ResetProgress(command).encode(hosted.now())).await? {
        Answer::OffsetsSet(queues) => Ok(queues),
        Answer::Refused(refusal) => Err(refused(refusal, &topic.name).into()),
        other => Err(unexpected("ResetProgress", &other)),
    }
}

/// Moves nothing, and has the generations of a topic with order drained again.
pub async fn forget_drained(
    hosted: &HostedGroup,
    consumer_group: &ConsumerGroupName,
    topic: &str,
) -> Result<u32, Ended> {
    let topic = topic_of(hosted, topic)?;
    let Some(consumer_group) = hosted.state.consumer_group(consumer_group.as_str()) else { return Ok(0) };
    if topic.placement.is_none() {
        return Ok(0);
    }
    propose_reset(hosted, &topic, consumer_group.id, Vec::new(), ResetId::default()).await
}

fn topic_of(hosted: &HostedGroup, name: &str) -> Result<TopicView, Refused> {
    hosted.state.topic(name).ok_or_else(|| topic_not_found(name))
}

fn queue_range(
    hosted: &HostedGroup,
    topic: &TopicView,
    queue: QueueId,
) -> Result<std::ops::Range<u64>, Refused> {
    let ranges = hosted.state.queue_ranges(topic.id).ok_or_else(|| topic_not_found(&topic.name))?;
    let range = ranges.get(queue.get() as usize).cloned();
    range.ok_or_else(|| Refused::new(Code::BadRequest, format!("topic {} has no queue {queue}", topic.name)))
}

fn at_time(
    hosted: &HostedGroup,
    topic: &TopicView,
    queue: QueueId,
    at: UnixMillis,
) -> Result<QueueOffset, Refused> {
    hosted.state.offset_at(topic.id, queue, at).ok_or_else(|| topic_not_found(&topic.name))
}

pub(super) async fn barrier(hosted: &HostedGroup) -> Result<(), NotExecuted> {
    hosted.group.read_barrier().await.map_err(|error| match error {
        BarrierError::NotLeader { leader } => NotExecuted::NotLeader { leader, term: hosted.term() },
        BarrierError::Stopped => NotExecuted::Stopping,
    })
}
