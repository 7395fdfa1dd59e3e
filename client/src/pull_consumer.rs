//! Reading queues by offset: nothing is leased and nothing acknowledged. Where a reader goes on is its own
//! affair; the offsets it commits are kept by the cluster, for each consumer group and queue.

use std::sync::Arc;
use std::time::Duration;

use ledgermq_common::limits::RECEIVE_BATCH_MESSAGES_MAX;
use ledgermq_proto::rocketmq as wire;
use ledgermq_proto::rocketmq::pull_message_response::Content;
use tokio::time::Instant;

use crate::error::{MalformedAnswer, ReceiveError};
use crate::message::{ReceivedMessage, Unusable, duration};
use crate::retry::{Budget, Verdict, call, judge};
use crate::session::{Session, messaging};

/// A poll is given this much longer than it may wait, for the way there and back.
const POLL_MARGIN: Duration = Duration::from_secs(3);

/// A queue of a topic in a broker group.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueueRef {
    pub topic: String,
    /// The broker group.
    pub broker: String,
    pub id: u32,
}

/// The answer to a pull.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pulled {
    /// In the order of their offsets; without receipt handles.
    pub messages: Vec<ReceivedMessage>,
    /// Where to go on.
    pub next_offset: u64,
}

/// Cheap to clone; clones are the same client to the cluster.
#[derive(Clone)]
pub struct PullConsumer {
    session: Arc<Session>,
}

impl PullConsumer {
    pub(crate) fn new(session: Arc<Session>) -> Self {
        Self { session }
    }

    pub fn client_id(&self) -> &str {
        &self.session.client_id
    }

    /// The queues of a topic, in all broker groups that have it.
    pub async fn queues(&self, topic: &str) -> Result<Vec<QueueRef>, ReceiveError> {
        let request = wire::QueryRouteRequest { topic: Some(self.session.resource(topic)), endpoints: None };
        let (found, _) = call(&self.session.connections, self.session.budget("query route"), |live, time| {
            let request = self.session.request(request.clone(), time);
            async move {
                let answer = messaging(live).query_route(request).await?.into_inner();
                Ok(judge(answer.status, answer.message_queues))
            }
        })
        .await?;
        let mut queues: Vec<QueueRef> = found
            .into_iter()
            .filter_map(|queue| {
                let id = u32::try_from(queue.id).ok()?;
                Some(QueueRef { topic: topic.to_owned(), broker: queue.broker?.name, id })
            })
            .collect();
        queues.sort();
        queues.dedup();
        Ok(queues)
    }

    /// Up to `count` messages from `offset` on; none if nothing came within `wait`.
    pub async fn pull(
        &self,
        queue: &QueueRef,
        offset: u64,
        count: u32,
        wait: Duration,
    ) -> Result<Pulled, ReceiveError> {
        let until = Instant::now() + wait;
        let budget = Budget {
            operation: "pull",
            deadline: until + POLL_MARGIN,
            attempt: wait + POLL_MARGIN,
            hedged: false,
        };
        let (pulled, _) = call(&self.session.connections, budget, |live, time| {
            let request = wire::PullMessageRequest {
                group: self.session.group(),
                message_queue: Some(self.on_the_wire(queue)),
                offset: i64::try_from(offset).unwrap_or(i64::MAX),
                batch_size: i32::try_from(count.min(RECEIVE_BATCH_MESSAGES_MAX)).unwrap_or(1),
                filter_expression: None,
                long_polling_timeout: Some(duration(until.saturating_duration_since(Instant::now()))),
            };
            let request = self.session.request(request, time);
            async move { read_pulled(live, request, &queue.broker, offset).await }
        })
        .await?;
        match pulled {
            Ok(pulled) => Ok(pulled),
            Err(Unusable::Corrupt(error)) => Err(error.into()),
            Err(Unusable::Malformed(error)) => Err(error.into()),
        }
    }

    /// The offset of the oldest message.
    pub async fn beginning(&self, queue: &QueueRef) -> Result<u64, ReceiveError> {
        self.query(queue, wire::QueryOffsetPolicy::Beginning).await
    }

    /// The offset that the next message will get.
    pub async fn end(&self, queue: &QueueRef) -> Result<u64, ReceiveError> {
        self.query(queue, wire::QueryOffsetPolicy::End).await
    }

    /// What the consumer group committed last; `None` if it never did.
    pub async fn committed(&self, queue: &QueueRef) -> Result<Option<u64>, ReceiveError> {
        let request = wire::GetOffsetRequest {
            group: self.session.group(),
            message_queue: Some(self.on_the_wire(queue)),
        };
        let (found, _) = call(&self.session.connections, self.session.budget("get offset"), |live, time| {
            let request = self.session.request(request.clone(), time);
            async move {
                let answer = messaging(live).get_offset(request).await?.into_inner();
                let is_missing = answer.status.as_ref().map(|status| status.code)
                    == Some(wire::Code::OffsetNotFound as i32);
                Ok(if is_missing { Verdict::Done(None) } else { judge(answer.status, Some(answer.offset)) })
            }
        })
        .await?;
        found.map(|offset| not_negative("get offset", offset)).transpose()
    }

    pub async fn commit(&self, queue: &QueueRef, offset: u64) -> Result<(), ReceiveError> {
        let request = wire::UpdateOffsetRequest {
            group: self.session.group(),
            message_queue: Some(self.on_the_wire(queue)),
            offset: i64::try_from(offset).unwrap_or(i64::MAX),
        };
        let budget = self.session.budget("update offset").once_at_a_time();
        let ((), _) = call(&self.session.connections, budget, |live, time| {
            let request = self.session.request(request.clone(), time);
            async move {
                let answer = messaging(live).update_offset(request).await?.into_inner();
                Ok(judge(answer.status, ()))
            }
        })
        .await?;
        Ok(())
    }

    /// Tells the cluster that this consumer ends.
    pub async fn close(self) {
        self.session.leave().await;
    }

    async fn query(&self, queue: &QueueRef, policy: wire::QueryOffsetPolicy) -> Result<u64, ReceiveError> {
        let request = wire::QueryOffsetRequest {
            message_queue: Some(self.on_the_wire(queue)),
            query_offset_policy: policy as i32,
            timestamp: None,
        };
        let (offset, _) =
            call(&self.session.connections, self.session.budget("query offset"), |live, time| {
                let request = self.session.request(request.clone(), time);
                async move {
                    let answer = messaging(live).query_offset(request).await?.into_inner();
                    Ok(judge(answer.status, answer.offset))
                }
            })
            .await?;
        not_negative("query offset", offset)
    }

    fn on_the_wire(&self, queue: &QueueRef) -> wire::MessageQueue {
        wire::MessageQueue {
            topic: Some(self.session.resource(&queue.topic)),
            id: i32::try_from(queue.id).unwrap_or(i32::MAX),
            permission: wire::Permission::Read as i32,
            broker: Some(wire::Broker { name: queue.broker.clone(), ..wire::Broker::default() }),
            accept_message_types: Vec::new(),
        }
    }
}

fn not_negative(operation: &'static str, offset: i64) -> Result<u64, ReceiveError> {
    let what = || format!("the offset {offset}");
    u64::try_from(offset).map_err(|_| MalformedAnswer { operation, what: what() }.into())
}

/// Reads the answer to its end. One that breaks off is asked for again: nothing is held by anybody.
async fn read_pulled(
    live: crate::connection::LiveConnection,
    request: tonic::Request<wire::PullMessageRequest>,
    broker: &str,
    offset: u64,
) -> Result<Verdict<Result<Pulled, Unusable>>, tonic::Status> {
    let mut stream = messaging(live).pull_message(request).await?.into_inner();
    let (mut messages, mut next_offset, mut status) = (Vec::new(), offset, None);
    while let Some(item) = stream.message().await? {
        match item.content {
            Some(Content::Status(received)) => status = Some(received),
            Some(Content::Message(message)) => match ReceivedMessage::read_from_wire(message, broker) {
                Ok(message) => messages.push(message),
                Err(unusable) => return Ok(Verdict::Done(Err(unusable))),
            },
            Some(Content::NextOffset(next)) => next_offset = u64::try_from(next).unwrap_or(offset),
            None => {}
        }
    }
    let pulled = Ok(Pulled { messages, next_offset });
    match status {
        Some(status) if status.code == wire::Code::MessageNotFound as i32 => Ok(Verdict::Done(pulled)),
        status => Ok(judge(status, pulled)),
    }
}
