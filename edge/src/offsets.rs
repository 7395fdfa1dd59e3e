//! PullMessage, GetOffset, UpdateOffset, QueryOffset: queues read by offset, without leases.
//!
//! Beside them our own `Offsets`, which tells and asks for the last reset of the group, so that a commit
//! that was made before a reset does not count after it.
//!
//! The message queue of the request names the broker group and the queue. A pull is a long poll like a
//! receive; its answer is the status, the messages, and the offset to go on from.

use std::time::Duration;

use ledgermq_common::clock::UnixMillis;
use ledgermq_common::limits::LONG_POLLING_MS_MAX;
use ledgermq_common::{ConsumerGroupName, GroupName, QueueId, QueueOffset, ResetMark, TopicName};
use ledgermq_proto::messaging::commit_offset_response::Superseded;
use ledgermq_proto::messaging::{CommitOffsetRequest, CommitOffsetResponse, CommittedOffsetRequest};
use ledgermq_proto::rocketmq::pull_message_response::Content;
use ledgermq_proto::rocketmq::{
    Code, GetOffsetRequest, MessageQueue, PullMessageRequest, PullMessageResponse, QueryOffsetPolicy,
    QueryOffsetRequest, Status, UpdateOffsetRequest,
};
use tokio::time::Instant;

use crate::codes::{self, CallFailed};
use crate::context::CallContext;
use crate::edge::Edge;
use crate::group_call::{
    CommitSuperseded, CommittedOffset, GroupRequest, GroupResponse, OffsetQuery, OffsetRequest, OffsetUpdate,
    PullRequest, Pulled, Refused,
};
use crate::receive::RECEIVE_MARGIN_MS;
use crate::validate::{self, Invalid};

/// How much later than the end of its poll an executor may answer.
const ANSWER_GRACE: Duration = Duration::from_millis(200);

/// A queue of a broker group.
struct Queue {
    topic: TopicName,
    group: GroupName,
    queue: QueueId,
}

impl Edge {
    pub(crate) async fn pull_message(
        &self,
        context: &CallContext,
        request: PullMessageRequest,
    ) -> Vec<PullMessageResponse> {
        let began = Instant::now();
        match self.pull(context, &request, began).await {
            Ok(pulled) => items(pulled),
            Err(refused) => {
                vec![PullMessageResponse {
                    content: Some(Content::Status(refused.into_status(context.language))),
                }]
            }
        }
    }

    async fn pull(
        &self,
        context: &CallContext,
        request: &PullMessageRequest,
        began: Instant,
    ) -> Result<Pulled, Refused> {
        let consumer_group = validate::consumer_group(request.group.as_ref())?;
        let offset = validate::offset(request.offset)?;
        let asked_ms = match &request.long_polling_timeout {
            Some(duration) => validate::polling_ms(duration)?.min(LONG_POLLING_MS_MAX),
            None => 0,
        };
        let margin = Duration::from_millis(RECEIVE_MARGIN_MS);
        let latest = context.deadline.checked_sub(margin).unwrap_or(began).max(began);
        let poll_until = latest.min(began + Duration::from_millis(asked_ms));
        let batch_size = validate::batch_size(request.batch_size)?;
        let filter = validate::filter(request.filter_expression.as_ref())?;
        let Queue { topic, group, queue } = self.queue_of(context, request.message_queue.as_ref()).await?;
        let pull = PullRequest { consumer_group, topic, queue, offset, batch_size, filter, poll_until };
        let until = (poll_until + ANSWER_GRACE).max(crate::edge::answer_by(context));
        match self.shared.caller.call(&group, context, &GroupRequest::Pull(pull), until).await {
            Ok(GroupResponse::Pulled(pulled)) => Ok(pulled),
            Ok(GroupResponse::Refused(refused)) => Err(refused),
            Ok(_) => Err(CallFailed::WrongAnswer { group }.into()),
            // Nothing could be asked in time: the client goes on where it was.
            Err(CallFailed::NoLeader { .. } | CallFailed::NoAnswer { .. }) => Ok(Pulled {
                status: Status { code: Code::MessageNotFound.into(), message: "no new message".to_owned() },
                messages: Vec::new(),
                next_offset: offset,
            }),
            Err(failed) => Err(failed.into()),
        }
    }

    pub(crate) async fn get_offset(
        &self,
        context: &CallContext,
        request: &GetOffsetRequest,
    ) -> Result<QueueOffset, Refused> {
        let consumer_group = validate::consumer_group(request.group.as_ref())?;
        let queue = self.queue_of(context, request.message_queue.as_ref()).await?;
        let (name, number) = (consumer_group.clone(), queue.queue);
        self.committed(context, queue, consumer_group).await?.offset.ok_or_else(|| {
            let message = format!("consumer group \"{name}\" has no offset in queue {number}");
            Refused::new(Code::OffsetNotFound, message)
        })
    }

    pub(crate) async fn update_offset(
        &self,
        context: &CallContext,
        request: &UpdateOffsetRequest,
    ) -> Result<(), Refused> {
        let consumer_group = validate::consumer_group(request.group.as_ref())?;
        let offset = validate::offset(request.offset)?;
        let queue = self.queue_of(context, request.message_queue.as_ref()).await?;
        let update = OffsetUpdate { consumer_group, offset, known: None };
        match self.update(context, queue, update).await? {
            None => Ok(()),
            Some(superseded) => Err(refused(offset, superseded)),
        }
    }

    pub(crate) async fn committed_offset(
        &self,
        context: &CallContext,
        request: &CommittedOffsetRequest,
    ) -> Result<CommittedOffset, Refused> {
        let consumer_group = validate::consumer_group(request.group.as_ref())?;
        let queue = self.queue_of(context, request.message_queue.as_ref()).await?;
        self.committed(context, queue, consumer_group).await
    }

    /// With what is in force in place of the offset, where that was not committed.
    pub(crate) async fn commit_offset(
        &self,
        context: &CallContext,
        request: &CommitOffsetRequest,
    ) -> Result<CommitOffsetResponse, Refused> {
        let consumer_group = validate::consumer_group(request.group.as_ref())?;
        let offset = QueueOffset(request.offset);
        let queue = self.queue_of(context, request.message_queue.as_ref()).await?;
        let update = OffsetUpdate { consumer_group, offset, known: Some(ResetMark(request.last_reset)) };
        Ok(match self.update(context, queue, update).await? {
            None => CommitOffsetResponse { status: Some(codes::ok()), superseded: None },
            Some(superseded) => CommitOffsetResponse {
                status: Some(refused(offset, superseded).into_status(context.language)),
                superseded: Some(match superseded {
                    CommitSuperseded::By(committed) => Superseded::Committed(committed.get()),
                    CommitSuperseded::ByReset(last) => Superseded::LastReset(last.get()),
                }),
            },
        })
    }

    pub(crate) async fn query_offset(
        &self,
        context: &CallContext,
        request: &QueryOffsetRequest,
    ) -> Result<QueueOffset, Refused> {
        let query = match (request.query_offset_policy(), &request.timestamp) {
            (QueryOffsetPolicy::Beginning, _) => OffsetQuery::Beginning,
            (QueryOffsetPolicy::End, _) => OffsetQuery::End,
            (QueryOffsetPolicy::Timestamp, Some(at)) => {
                let at_ms = at.seconds.saturating_mul(1000).saturating_add(i64::from(at.nanos) / 1_000_000);
                OffsetQuery::At(UnixMillis(u64::try_from(at_ms).unwrap_or(0)))
            }
            (QueryOffsetPolicy::Timestamp, None) => return Err(Invalid::TimestampMissing.into()),
        };
        let queue = self.queue_of(context, request.message_queue.as_ref()).await?;
        self.offset(context, queue, query).await
    }

    async fn committed(
        &self,
        context: &CallContext,
        queue: Queue,
        consumer_group: ConsumerGroupName,
    ) -> Result<CommittedOffset, Refused> {
        self.ask_queue(context, queue, OffsetQuery::Committed(consumer_group), |answer| match answer {
            GroupResponse::Committed(committed) => Some(committed),
            _ => None,
        })
        .await
    }

    async fn update(
        &self,
        context: &CallContext,
        queue: Queue,
        update: OffsetUpdate,
    ) -> Result<Option<CommitSuperseded>, Refused> {
        self.ask_queue(context, queue, OffsetQuery::Update(update), |answer| match answer {
            GroupResponse::Offset(_) => Some(None),
            GroupResponse::CommitSuperseded(superseded) => Some(Some(superseded)),
            _ => None,
        })
        .await
    }

    async fn offset(
        &self,
        context: &CallContext,
        queue: Queue,
        query: OffsetQuery,
    ) -> Result<QueueOffset, Refused> {
        self.ask_queue(context, queue, query, |answer| match answer {
            GroupResponse::Offset(offset) => Some(offset),
            _ => None,
        })
        .await
    }

    /// `read` says nothing of an answer to another question.
    async fn ask_queue<T>(
        &self,
        context: &CallContext,
        queue: Queue,
        query: OffsetQuery,
        read: impl FnOnce(GroupResponse) -> Option<T>,
    ) -> Result<T, Refused> {
        let Queue { topic, group, queue } = queue;
        let request = GroupRequest::Offset(OffsetRequest { topic, queue, query });
        match self.call(&group, context, &request).await? {
            GroupResponse::Refused(refused) => Err(refused),
            answer => read(answer).ok_or_else(|| CallFailed::WrongAnswer { group }.into()),
        }
    }

    async fn queue_of(&self, context: &CallContext, queue: Option<&MessageQueue>) -> Result<Queue, Refused> {
        let topic = validate::topic(queue.and_then(|queue| queue.topic.as_ref()))?;
        let id = queue.map_or(0, |queue| queue.id);
        let number = u32::try_from(id).map_err(|_| Invalid::QueueId { id })?;
        let broker = queue.and_then(|queue| queue.broker.as_ref()).map_or("", |broker| &broker.name);
        let cluster = self.cluster(context).await?;
        let group = match cluster.groups.get_key_value(broker) {
            Some((group, _)) => group.clone(),
            // A topic in one group needs no name of it.
            None => match self.locate(context, &topic).await?.as_slice() {
                [only] if broker.is_empty() => only.group.clone(),
                _ => {
                    let broker = ledgermq_common::names::excerpt(broker);
                    return Err(Invalid::QueueBroker { broker }.into());
                }
            },
        };
        Ok(Queue { topic, group, queue: QueueId(number) })
    }
}

fn refused(offset: QueueOffset, superseded: CommitSuperseded) -> Refused {
    let why = match superseded {
        CommitSuperseded::By(committed) => {
            format!("the group has committed {committed}, and only a reset goes back")
        }
        CommitSuperseded::ByReset(_) => "the group was reset since its client asked where it is".to_owned(),
    };
    Refused::new(Code::IllegalOffset, format!("offset {offset} is not committed: {why}"))
}

fn items(pulled: Pulled) -> Vec<PullMessageResponse> {
    let item = |content| PullMessageResponse { content: Some(content) };
    let mut items = Vec::with_capacity(pulled.messages.len() + 2);
    items.push(item(Content::Status(pulled.status)));
    items.extend(pulled.messages.into_iter().map(|message| item(Content::Message(message))));
    items.push(item(Content::NextOffset(i64::try_from(pulled.next_offset.get()).unwrap_or(i64::MAX))));
    items
}
