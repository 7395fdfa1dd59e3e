//! Reading queues by offset, without leases: who reads decides where, and commits how far it is.
//!
//! | Failure | What happens |
//! |---|---|
//! | leader dies, node dies, connection lost | the request is repeated by the next access point until the client's total deadline; the position does not move |
//! | an offset that its queue does not have | [`PullError::OutOfRange`] with what it has |
//! | a commit arrives late | it counts for nothing: the group is further on, or was reset since |
//! | somebody resets the group | the next commit is [`PullError::WasReset`], and [`PullConsumer::receive`] goes on where the group is now; while nothing is committed, it sees it when a wait ends without a message |
//! | a body that does not match its digest | withheld and logged; the rest of the answer counts |
//! | an answer that is cut | the pull is repeated: it took nothing away |

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ledgermq_common::clock::UnixMillis;
use ledgermq_common::limits::RECEIVE_BATCH_MESSAGES_MAX;
use ledgermq_proto::messaging::commit_offset_response::Superseded;
use ledgermq_proto::messaging::offsets_client::OffsetsClient;
use ledgermq_proto::messaging::{CommitOffsetRequest, CommittedOffsetRequest};
use ledgermq_proto::rocketmq as wire;
use ledgermq_proto::rocketmq::Code;
use ledgermq_proto::rocketmq::pull_message_response::Content;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::connection::LiveConnection;
use crate::consumer::{Filter, POLL_MARGIN};
use crate::error::{GroupWasReset, MalformedAnswer, OffsetBehind, OffsetOutOfRange, PullError};
use crate::message::{PulledMessage, Unusable, duration, timestamp};
use crate::retry::{Budget, CallFailure, Line, Verdict, call, judge};
use crate::session::{Session, messaging};

/// One queue of a topic.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Queue {
    pub topic: String,
    /// The broker group it lies in.
    pub broker: String,
    pub id: u32,
}

/// A place in a queue that is found by asking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Position {
    /// The oldest message that is kept.
    Beginning,
    /// Behind the newest message.
    End,
    /// The first message stored at this time or later.
    At(UnixMillis),
}

#[derive(Debug, Clone)]
pub struct PullOptions {
    /// In whose name offsets are committed.
    pub group: String,
    /// What is wanted of every topic.
    pub filter: Filter,
    /// How long a pull waits for a first message.
    pub await_duration: Duration,
    /// Where a queue is read from of which the group has committed nothing.
    pub start: Position,
}

impl PullOptions {
    pub fn new(group: impl Into<String>) -> Self {
        Self {
            group: group.into(),
            filter: Filter::Tags("*".to_owned()),
            await_duration: Duration::from_secs(5),
            start: Position::Beginning,
        }
    }

    pub fn filter(mut self, filter: Filter) -> Self {
        self.filter = filter;
        self
    }

    pub fn await_duration(mut self, wait: Duration) -> Self {
        self.await_duration = wait;
        self
    }

    pub fn start(mut self, start: Position) -> Self {
        self.start = start;
        self
    }
}

/// What a pull brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pulled {
    pub messages: Vec<PulledMessage>,
    /// Where the next pull goes on; beyond messages that the filter passed over, too.
    pub next_offset: u64,
}

/// Cheap to clone; clones are the same client to the cluster and share their positions.
///
/// [`Self::pull`] and [`Self::commit`] take offsets as they are given. [`Self::receive`],
/// [`Self::seek`] and [`Self::commit_positions`] keep a position per queue, which begins at the
/// committed offset.
///
/// A committed offset goes ahead or nowhere; to go back is `Admin::reset_offsets`.
#[derive(Clone)]
pub struct PullConsumer {
    session: Arc<Session>,
    options: Arc<PullOptions>,
    positions: Arc<Mutex<BTreeMap<Queue, u64>>>,
    /// Which reset was the last when the queue's offset was asked for. It goes with every commit.
    known_resets: Arc<Mutex<BTreeMap<Queue, u64>>>,
}

/// Where a group is in a queue.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Committed {
    pub(crate) offset: Option<u64>,
    pub(crate) last_reset: u64,
}

impl PullConsumer {
    pub(crate) fn new(session: Arc<Session>, options: PullOptions) -> Self {
        let (positions, known_resets) = (Arc::default(), Arc::default());
        Self { session, options: Arc::new(options), positions, known_resets }
    }

    pub fn client_id(&self) -> &str {
        &self.session.client_id
    }

    /// The queues of a topic in all broker groups, as they are now. They become more when the topic
    /// grows, and never fewer.
    pub async fn queues(&self, topic: &str) -> Result<Vec<Queue>, PullError> {
        let request = wire::QueryRouteRequest { topic: Some(self.session.resource(topic)), endpoints: None };
        let (route, _) = call(&self.session.connections, self.session.budget("query route"), |live, time| {
            let request = self.session.request(request.clone(), time);
            async move {
                let answer = messaging(live).query_route(request).await?.into_inner();
                Ok(judge(answer.status, answer.message_queues))
            }
        })
        .await?;
        let mut queues: Vec<Queue> = route
            .into_iter()
            .filter_map(|queue| {
                let id = u32::try_from(queue.id).ok()?;
                Some(Queue { topic: topic.to_owned(), broker: queue.broker?.name, id })
            })
            .collect();
        queues.sort();
        queues.dedup();
        if queues.is_empty() {
            let what = "a route without a queue".to_owned();
            return Err(MalformedAnswer { operation: "query route", what }.into());
        }
        Ok(queues)
    }

    /// Up to `count` messages from `offset` on; none if nothing arrived in time.
    pub async fn pull(&self, queue: &Queue, offset: u64, count: u32) -> Result<Pulled, PullError> {
        let began = Instant::now();
        let until = began + self.options.await_duration;
        let budget = Budget {
            operation: "pull",
            deadline: (began + self.session.options.total_deadline).max(until + POLL_MARGIN),
            attempt: self.options.await_duration + POLL_MARGIN,
            hedged: false,
            line: Line::None,
        };
        let outcome = call(&self.session.connections, budget, |live, time| {
            let request = wire::PullMessageRequest {
                group: self.session.group(),
                message_queue: Some(self.wire_queue(queue)),
                offset: wire_offset(offset),
                batch_size: i32::try_from(count.clamp(1, RECEIVE_BATCH_MESSAGES_MAX)).unwrap_or(1),
                filter_expression: Some(self.options.filter.to_wire()),
                long_polling_timeout: Some(duration(until.saturating_duration_since(Instant::now()))),
            };
            read_pulled(live, self.session.request(request, time), queue.broker.clone())
        })
        .await;
        match outcome {
            Ok((pulled, _)) => Ok(pulled),
            Err(failure) => Err(self.out_of_range(queue, offset, failure).await),
        }
    }

    /// The offset of a place in a queue.
    pub async fn offset(&self, queue: &Queue, position: Position) -> Result<u64, PullError> {
        let (policy, timestamp) = match position {
            Position::Beginning => (wire::QueryOffsetPolicy::Beginning, None),
            Position::End => (wire::QueryOffsetPolicy::End, None),
            Position::At(at) => (wire::QueryOffsetPolicy::Timestamp, Some(timestamp(at.get()))),
        };
        let request = wire::QueryOffsetRequest {
            message_queue: Some(self.wire_queue(queue)),
            query_offset_policy: policy.into(),
            timestamp,
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
        Ok(own_offset(offset))
    }

    /// What the group has committed in the queue, if anything.
    pub async fn committed(&self, queue: &Queue) -> Result<Option<u64>, PullError> {
        let committed = self.ask_committed(queue).await?;
        self.know(queue, committed);
        Ok(committed.offset)
    }

    /// Where the group is now, if it was reset since its offset was asked for. [`Self::know`] makes
    /// commits count again.
    pub(crate) async fn moved(&self, queue: &Queue) -> Result<Option<Committed>, PullError> {
        let committed = self.ask_committed(queue).await?;
        let known = self.known_resets.lock().get(queue).copied();
        Ok(Some(committed).filter(|_| known.is_some_and(|known| known != committed.last_reset)))
    }

    pub(crate) fn know(&self, queue: &Queue, committed: Committed) {
        self.known_resets.lock().insert(queue.clone(), committed.last_reset);
    }

    async fn ask_committed(&self, queue: &Queue) -> Result<Committed, PullError> {
        let request = CommittedOffsetRequest {
            group: self.session.group(),
            message_queue: Some(self.wire_queue(queue)),
        };
        let (committed, _) =
            call(&self.session.connections, self.session.budget("committed offset"), |live, time| {
                let request = self.session.request(request.clone(), time);
                async move {
                    let answer = offsets(live).committed_offset(request).await?.into_inner();
                    let committed = Committed { offset: answer.offset, last_reset: answer.last_reset };
                    Ok(judge(answer.status, committed))
                }
            })
            .await?;
        Ok(committed)
    }

    /// Says that the group is at `offset`: what is before it is consumed. A repeat is harmless, and so is
    /// one that arrives after a later one or after a reset: it counts for nothing.
    pub async fn commit(&self, queue: &Queue, offset: u64) -> Result<(), PullError> {
        let known = self.known_resets.lock().get(queue).copied();
        let last_reset = match known {
            Some(known) => known,
            None => {
                let committed = self.ask_committed(queue).await?;
                *self.known_resets.lock().entry(queue.clone()).or_insert(committed.last_reset)
            }
        };
        let request = CommitOffsetRequest {
            group: self.session.group(),
            message_queue: Some(self.wire_queue(queue)),
            offset,
            last_reset,
        };
        let outcome = call(&self.session.connections, self.session.budget("commit offset"), |live, time| {
            let request = self.session.request(request.clone(), time);
            async move {
                let answer = offsets(live).commit_offset(request).await?.into_inner();
                Ok(match answer.superseded {
                    Some(superseded) => Verdict::Done(Some(superseded)),
                    None => judge(answer.status, None),
                })
            }
        })
        .await;
        let queue = queue.clone();
        match outcome {
            Ok((None, _)) => Ok(()),
            Ok((Some(Superseded::Committed(committed)), _)) => {
                Err(OffsetBehind { queue, offset, committed }.into())
            }
            Ok((Some(Superseded::LastReset(_)), _)) => {
                // The next receive asks where the group is now.
                self.positions.lock().remove(&queue);
                Err(GroupWasReset { queue, offset }.into())
            }
            Err(failure) => Err(self.out_of_range(&queue, offset, failure).await),
        }
    }

    /// Up to `count` messages from the queue's position on, which moves behind them. Two at a time of one
    /// queue bring the same messages.
    pub async fn receive(&self, queue: &Queue, count: u32) -> Result<Vec<PulledMessage>, PullError> {
        let from = match self.position(queue) {
            Some(offset) => offset,
            None => {
                let offset = match self.committed(queue).await? {
                    Some(offset) => offset,
                    None => self.offset(queue, self.options.start).await?,
                };
                *self.positions.lock().entry(queue.clone()).or_insert(offset)
            }
        };
        let pulled = self.pull(queue, from, count).await?;
        // Nothing to commit, so no commit will say that the group was reset.
        if pulled.messages.is_empty()
            && let Some(Committed { offset: Some(_), .. }) = self.moved(queue).await?
        {
            self.positions.lock().remove(queue);
            return Ok(Vec::new());
        }
        // Somebody may have moved the position meanwhile; then that counts.
        if let Some(position) = self.positions.lock().get_mut(queue).filter(|position| **position == from) {
            *position = pulled.next_offset;
        }
        Ok(pulled.messages)
    }

    /// Where the next [`Self::receive`] of this queue begins, if that is known already.
    pub fn position(&self, queue: &Queue) -> Option<u64> {
        self.positions.lock().get(queue).copied()
    }

    /// The next [`Self::receive`] of this queue begins here.
    pub fn seek(&self, queue: &Queue, offset: u64) {
        self.positions.lock().insert(queue.clone(), offset);
    }

    /// Commits the positions of all queues that were read or sought; one that fails keeps none of the
    /// others from it.
    pub async fn commit_positions(&self) -> Result<(), PullError> {
        let positions = self.positions.lock().clone();
        let mut failed = None;
        for (queue, offset) in positions {
            failed = self.commit(&queue, offset).await.err().or(failed);
        }
        failed.map_or(Ok(()), Err)
    }

    /// Tells the cluster that this consumer ends. Commits nothing.
    pub async fn close(self) {
        self.session.leave().await;
    }

    /// The failure, or that the offset is none of its queue if that is why. Older names of the code do
    /// not tell it from other wrong requests, so the queue is asked for what it has.
    async fn out_of_range(&self, queue: &Queue, offset: u64, failure: CallFailure) -> PullError {
        let is_offset = matches!(&failure, CallFailure::Refused(refused)
            if [Code::IllegalOffset as i32, Code::BadRequest as i32].contains(&refused.code));
        if is_offset
            && let Ok(beginning) = self.offset(queue, Position::Beginning).await
            && let Ok(end) = self.offset(queue, Position::End).await
            && !(beginning..=end).contains(&offset)
        {
            return OffsetOutOfRange { queue: queue.clone(), offset, beginning, end }.into();
        }
        failure.into()
    }

    fn wire_queue(&self, queue: &Queue) -> wire::MessageQueue {
        wire::MessageQueue {
            topic: Some(self.session.resource(&queue.topic)),
            id: i32::try_from(queue.id).unwrap_or(i32::MAX),
            permission: wire::Permission::Read as i32,
            broker: Some(wire::Broker { name: queue.broker.clone(), ..wire::Broker::default() }),
            accept_message_types: Vec::new(),
        }
    }
}

fn offsets(live: LiveConnection) -> OffsetsClient<LiveConnection> {
    let origin = live.origin();
    OffsetsClient::with_origin(live, origin)
}

fn wire_offset(offset: u64) -> i64 {
    i64::try_from(offset).unwrap_or(i64::MAX)
}

fn own_offset(offset: i64) -> u64 {
    u64::try_from(offset).unwrap_or(0)
}

/// Reads the answer to its end. One that is cut took nothing away, so it counts for nothing.
async fn read_pulled(
    live: LiveConnection,
    request: tonic::Request<wire::PullMessageRequest>,
    broker: String,
) -> Result<Verdict<Pulled>, tonic::Status> {
    let mut stream = messaging(live).pull_message(request).await?.into_inner();
    let (mut status, mut messages, mut next_offset) = (None, Vec::new(), None);
    while let Some(item) = stream.message().await? {
        match item.content {
            Some(Content::Status(received)) => status = Some(received),
            Some(Content::Message(message)) => match PulledMessage::from_wire(message, &broker) {
                Ok(message) => messages.push(message),
                Err(Unusable::Corrupt(error)) => tracing::error!(%error, "message withheld"),
                Err(Unusable::Malformed(error)) => tracing::error!(%error, "message withheld"),
            },
            Some(Content::NextOffset(next)) => next_offset = Some(own_offset(next)),
            None => {}
        }
    }
    let verdict = match status {
        Some(status) if status.code == Code::MessageNotFound as i32 => Verdict::Done(()),
        status => judge(status, ()),
    };
    Ok(match (verdict, next_offset) {
        (Verdict::Done(()), Some(next_offset)) => Verdict::Done(Pulled { messages, next_offset }),
        (Verdict::Done(()), None) => {
            Verdict::Malformed { what: "a pull without an offset to go on from".to_owned() }
        }
        (Verdict::TryAgain { code, message }, _) => Verdict::TryAgain { code, message },
        (Verdict::Refused { code, message }, _) => Verdict::Refused { code, message },
        (Verdict::Malformed { what }, _) => Verdict::Malformed { what },
    })
}
