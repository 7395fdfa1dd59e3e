//! Between the types of [`crate::group_call`] and their wire form.

use std::time::Duration;

use ledgermq_common::clock::UnixMillis;
use ledgermq_common::names::NameError;
use ledgermq_common::{
    ConsumerGroupName, GroupName, NodeId, QueueId, QueueOffset, ResetMark, Term, TopicName,
};
use ledgermq_proto::forward as pb;
use ledgermq_proto::forward::commit_superseded::By;
use ledgermq_proto::forward::forward_reply::Reply;
use ledgermq_proto::forward::forward_request::Request;
use ledgermq_proto::forward::not_executed::Reason;
use ledgermq_proto::rocketmq::{ClientType, Code, MessageType, Status};
use tokio::time::Instant;

use super::wire_transactions as transactions;
use crate::arrival::Arrival;
use crate::context::{CallContext, ClientLanguage};
use crate::group_call::{
    AwaitTakenLite, BatchPlace, BatchTopic, ClientHeartbeat, ClientTermination, CommitSuperseded,
    CommittedOffset, ConsumerGroupDescription, CreateTopic, DescribeTopic, Filter, GroupRequest,
    GroupResponse, NotExecuted, OffsetQuery, OffsetRequest, OffsetUpdate, PullRequest, Pulled,
    ReceiveRequest, Received, Refused, SendRequest, StoreBatch, SyncLite, TakenLite, TopicDescription,
};
use crate::placement;

pub(crate) fn write_request(
    group: &GroupName,
    context: &CallContext,
    request: &GroupRequest,
) -> pb::ForwardRequest {
    let now = Instant::now();
    pb::ForwardRequest {
        group: group.as_str().to_owned(),
        context: Some(pb::CallContext {
            client_id: context.client_id.clone(),
            language: context.language.as_header().to_owned(),
            client_version: context.version.clone(),
            namespace: context.namespace.clone(),
            remaining_ms: millis(context.deadline.saturating_duration_since(now)),
            peer: context.peer.map(|peer| peer.to_string()).unwrap_or_default(),
            internal: context.internal,
        }),
        request: Some(write_content(request, now)),
        generation: match request {
            GroupRequest::Send(send) => send.generation,
            _ => 0,
        },
    }
}

fn write_content(request: &GroupRequest, now: Instant) -> Request {
    match request {
        GroupRequest::Send(send) => Request::Send(send.request.clone()),
        GroupRequest::Receive(receive) => Request::Receive(pb::Receive {
            consumer_group: receive.consumer_group.as_str().to_owned(),
            topic: receive.topic.as_str().to_owned(),
            batch_size: receive.batch_size,
            invisible_ms: receive.invisible_ms,
            auto_renew: receive.auto_renew,
            tags: match &receive.filter {
                Filter::All | Filter::Sql(_) => Vec::new(),
                Filter::Tags(tags) => tags.clone(),
            },
            filtered: receive.filter != Filter::All,
            attempt_id: receive.attempt_id.clone(),
            poll_ms: millis(receive.poll_until.saturating_duration_since(now)),
            sql: match &receive.filter {
                Filter::Sql(expression) => Some(expression.text().to_owned()),
                Filter::All | Filter::Tags(_) => None,
            },
        }),
        GroupRequest::Ack(ack) => Request::Ack(ack.clone()),
        GroupRequest::ChangeInvisible(change) => Request::ChangeInvisible(change.clone()),
        GroupRequest::DescribeTopic(describe) => Request::DescribeTopic(pb::DescribeTopic {
            name: describe.name.as_str().to_owned(),
            create_if_missing: describe.create_if_missing,
        }),
        GroupRequest::CreateTopic(create) => Request::CreateTopic(pb::CreateTopic {
            name: create.name.as_str().to_owned(),
            queues: create.queues,
            message_type: create.message_type.into(),
        }),
        GroupRequest::DeleteTopic(name) => {
            Request::DeleteTopic(pb::DeleteTopic { name: name.as_str().to_owned() })
        }
        GroupRequest::ListTopics => Request::ListTopics(pb::ListTopics {}),
        GroupRequest::ShowTopic(name) => Request::ShowTopic(pb::ShowTopic { name: name.as_str().to_owned() }),
        GroupRequest::DescribeConsumerGroup(name) => {
            Request::DescribeConsumerGroup(pb::DescribeConsumerGroup { name: name.as_str().to_owned() })
        }
        GroupRequest::ClientHeartbeat(heartbeat) => Request::ClientHeartbeat(pb::ClientHeartbeat {
            client_type: heartbeat.client_type.into(),
            consumer_group: heartbeat.consumer_group.as_ref().map(|group| group.as_str().to_owned()),
        }),
        GroupRequest::ClientTermination(termination) => Request::ClientTermination(pb::ClientTermination {
            consumer_group: termination.consumer_group.as_ref().map(|group| group.as_str().to_owned()),
        }),
        GroupRequest::EndTransaction(end) => Request::EndTransaction(transactions::write_end(end)),
        GroupRequest::AwaitTransactionChecks(wait) => {
            Request::AwaitTransactionChecks(transactions::write_await(wait, now))
        }
        GroupRequest::TransactionsAsked(asked) => {
            Request::TransactionsAsked(transactions::write_asked(asked))
        }
        GroupRequest::ListTransactions(list) => Request::ListTransactions(list.clone()),
        GroupRequest::ShowTransaction(id) => {
            Request::ShowTransaction(pb::ShowTransaction { transaction_id: id.encode() })
        }
        GroupRequest::DeadLetter(forward) => Request::DeadLetter(forward.clone()),
        GroupRequest::Recall(recall) => Request::Recall(recall.clone()),
        GroupRequest::Pull(pull) => Request::Pull(pb::Pull {
            consumer_group: pull.consumer_group.as_str().to_owned(),
            topic: pull.topic.as_str().to_owned(),
            queue: pull.queue.get(),
            offset: pull.offset.get(),
            batch_size: pull.batch_size,
            tags: match &pull.filter {
                Filter::All | Filter::Sql(_) => Vec::new(),
                Filter::Tags(tags) => tags.clone(),
            },
            filtered: pull.filter != Filter::All,
            poll_ms: millis(pull.poll_until.saturating_duration_since(now)),
            sql: match &pull.filter {
                Filter::Sql(expression) => Some(expression.text().to_owned()),
                Filter::All | Filter::Tags(_) => None,
            },
        }),
        GroupRequest::Offset(offset) => Request::Offset(write_offset(offset)),
        GroupRequest::SyncLite(sync) => Request::SyncLite(pb::SyncLite {
            consumer_group: sync.consumer_group.as_str().to_owned(),
            topic: sync.topic.as_str().to_owned(),
            action: sync.action.into(),
            lite_topics: sync.lite_topics.clone(),
            version: sync.version,
            offset_option: sync.offset_option,
        }),
        GroupRequest::AwaitTakenLite(wait) => Request::AwaitTakenLite(pb::AwaitTakenLite {
            client_ids: wait.client_ids.clone(),
            poll_ms: millis(wait.poll_until.saturating_duration_since(now)),
        }),
        GroupRequest::StoreBatch(batch) => Request::StoreBatch(pb::StoreBatch {
            topics: batch
                .topics
                .iter()
                .map(|topic| pb::store_batch::Topic {
                    name: topic.name.as_str().to_owned(),
                    generation: topic.generation,
                })
                .collect(),
            messages: batch.messages.clone(),
        }),
        GroupRequest::Operation(operation) => Request::Operation(operation.clone()),
    }
}

pub(super) fn read_request(
    request: pb::ForwardRequest,
) -> Result<(GroupName, CallContext, GroupRequest), Refused> {
    let now = Instant::now();
    let group = GroupName::parse(&request.group).map_err(bad_name)?;
    let context = request.context.unwrap_or_default();
    let context = CallContext {
        client_id: context.client_id,
        language: ClientLanguage::parse(&context.language),
        version: context.client_version,
        namespace: context.namespace,
        deadline: now + bounded(context.remaining_ms),
        deadline_given: true,
        peer: context.peer.parse().ok(),
        internal: context.internal,
    };
    let content = request.request.ok_or_else(|| {
        Refused::new(Code::NotImplemented, "the forwarded request is of a kind this node does not know")
    })?;
    let mut content = read_content(content, now)?;
    if let GroupRequest::Send(send) = &mut content {
        send.generation = request.generation;
    }
    Ok((group, context, content))
}

fn read_content(content: Request, now: Instant) -> Result<GroupRequest, Refused> {
    Ok(match content {
        Request::Send(request) => {
            let name =
                request.messages.first().and_then(|m| m.topic.as_ref()).map_or("", |topic| &topic.name);
            GroupRequest::Send(SendRequest { topic: topic(name)?, request, generation: 0 })
        }
        Request::Receive(receive) => GroupRequest::Receive(ReceiveRequest {
            consumer_group: consumer_group(&receive.consumer_group)?,
            topic: topic(&receive.topic)?,
            batch_size: receive.batch_size,
            invisible_ms: receive.invisible_ms,
            auto_renew: receive.auto_renew,
            filter: match receive.sql {
                Some(sql) => crate::validate::sql_filter(&sql)?,
                None if receive.filtered => Filter::Tags(receive.tags),
                None => Filter::All,
            },
            attempt_id: receive.attempt_id,
            poll_until: now + bounded(receive.poll_ms),
        }),
        Request::Ack(ack) => GroupRequest::Ack(ack),
        Request::ChangeInvisible(change) => GroupRequest::ChangeInvisible(change),
        Request::DescribeTopic(describe) => GroupRequest::DescribeTopic(DescribeTopic {
            name: topic(&describe.name)?,
            create_if_missing: describe.create_if_missing,
        }),
        Request::CreateTopic(create) => GroupRequest::CreateTopic(CreateTopic {
            name: topic(&create.name)?,
            queues: create.queues,
            message_type: create.message_type(),
        }),
        Request::DeleteTopic(delete) => GroupRequest::DeleteTopic(topic(&delete.name)?),
        Request::ListTopics(pb::ListTopics {}) => GroupRequest::ListTopics,
        Request::ShowTopic(show) => GroupRequest::ShowTopic(topic(&show.name)?),
        Request::DescribeConsumerGroup(describe) => {
            GroupRequest::DescribeConsumerGroup(consumer_group(&describe.name)?)
        }
        Request::ClientHeartbeat(heartbeat) => GroupRequest::ClientHeartbeat(ClientHeartbeat {
            client_type: ClientType::try_from(heartbeat.client_type).unwrap_or_default(),
            consumer_group: heartbeat.consumer_group.as_deref().map(consumer_group).transpose()?,
        }),
        Request::ClientTermination(termination) => GroupRequest::ClientTermination(ClientTermination {
            consumer_group: termination.consumer_group.as_deref().map(consumer_group).transpose()?,
        }),
        Request::EndTransaction(end) => GroupRequest::EndTransaction(transactions::read_end(&end)?),
        Request::AwaitTransactionChecks(wait) => {
            GroupRequest::AwaitTransactionChecks(transactions::read_await(&wait, now)?)
        }
        Request::TransactionsAsked(asked) => {
            GroupRequest::TransactionsAsked(transactions::read_asked(&asked)?)
        }
        Request::ListTransactions(list) => GroupRequest::ListTransactions(list),
        Request::ShowTransaction(show) => {
            GroupRequest::ShowTransaction(transactions::transaction_id(&show.transaction_id)?)
        }
        Request::DeadLetter(forward) => GroupRequest::DeadLetter(forward),
        Request::Recall(recall) => GroupRequest::Recall(recall),
        Request::Pull(pull) => GroupRequest::Pull(PullRequest {
            consumer_group: consumer_group(&pull.consumer_group)?,
            topic: topic(&pull.topic)?,
            queue: QueueId(pull.queue),
            offset: QueueOffset(pull.offset),
            batch_size: pull.batch_size,
            filter: match pull.sql {
                Some(sql) => crate::validate::sql_filter(&sql)?,
                None if pull.filtered => Filter::Tags(pull.tags),
                None => Filter::All,
            },
            poll_until: now + bounded(pull.poll_ms),
        }),
        Request::Offset(offset) => GroupRequest::Offset(read_offset(offset)?),
        Request::SyncLite(sync) => GroupRequest::SyncLite(SyncLite {
            consumer_group: consumer_group(&sync.consumer_group)?,
            topic: topic(&sync.topic)?,
            action: sync.action(),
            lite_topics: sync.lite_topics,
            version: sync.version,
            offset_option: sync.offset_option,
        }),
        Request::AwaitTakenLite(wait) => GroupRequest::AwaitTakenLite(AwaitTakenLite {
            client_ids: wait.client_ids,
            poll_until: now + bounded(wait.poll_ms),
        }),
        Request::StoreBatch(batch) => GroupRequest::StoreBatch(StoreBatch {
            topics: batch
                .topics
                .into_iter()
                .map(|of| Ok(BatchTopic { name: topic(&of.name)?, generation: of.generation }))
                .collect::<Result<_, Refused>>()?,
            messages: batch.messages,
        }),
        Request::Operation(operation) => GroupRequest::Operation(operation),
    })
}

fn write_offset(offset: &OffsetRequest) -> pb::Offset {
    use pb::offset::Query;
    let query = match &offset.query {
        OffsetQuery::Committed(group) => Query::Committed(group.as_str().to_owned()),
        OffsetQuery::Update(update) => Query::Update(pb::offset::Update {
            consumer_group: update.consumer_group.as_str().to_owned(),
            offset: update.offset.get(),
            last_reset: update.known.map(ResetMark::get),
        }),
        OffsetQuery::Beginning => Query::Beginning(pb::Done {}),
        OffsetQuery::End => Query::End(pb::Done {}),
        OffsetQuery::At(at) => Query::AtMs(at.get()),
    };
    pb::Offset { topic: offset.topic.as_str().to_owned(), queue: offset.queue.get(), query: Some(query) }
}

fn read_offset(offset: pb::Offset) -> Result<OffsetRequest, Refused> {
    use pb::offset::Query;
    let query = match offset.query {
        Some(Query::Committed(group)) => OffsetQuery::Committed(consumer_group(&group)?),
        Some(Query::Update(update)) => OffsetQuery::Update(OffsetUpdate {
            consumer_group: consumer_group(&update.consumer_group)?,
            offset: QueueOffset(update.offset),
            known: update.last_reset.map(ResetMark),
        }),
        Some(Query::Beginning(pb::Done {})) => OffsetQuery::Beginning,
        Some(Query::End(pb::Done {})) => OffsetQuery::End,
        Some(Query::AtMs(at_ms)) => OffsetQuery::At(UnixMillis(at_ms)),
        None => {
            return Err(Refused::new(Code::NotImplemented, "the question about an offset is not known here"));
        }
    };
    Ok(OffsetRequest { topic: topic(&offset.topic)?, queue: QueueId(offset.queue), query })
}

pub(super) fn reply(answer: Result<GroupResponse, NotExecuted>) -> pb::ForwardReply {
    let reply = match answer {
        Ok(GroupResponse::Send(response)) => Reply::Send(response),
        Ok(GroupResponse::Receive(received)) => Reply::Receive(pb::Received {
            status: Some(received.status),
            messages: received.messages,
            delivery_timestamp_ms: received.delivery_timestamp.get(),
            tell_arrival: received.arrival.is_awaited(),
        }),
        Ok(GroupResponse::Ack(response)) => Reply::Ack(response),
        Ok(GroupResponse::ChangeInvisible(response)) => Reply::ChangeInvisible(response),
        Ok(GroupResponse::Topics(topics)) => {
            Reply::Topics(pb::Topics { topics: topics.into_iter().map(write_topic).collect() })
        }
        Ok(GroupResponse::ShowTopic(shown)) => Reply::Shown(shown),
        Ok(GroupResponse::ConsumerGroup(description)) => Reply::ConsumerGroup(pb::ConsumerGroup {
            fifo: description.fifo,
            max_attempts: description.max_attempts,
            backoff_ms: description.backoff.into_iter().map(millis).collect(),
            lite_quota: description.lite_quota,
        }),
        Ok(GroupResponse::TransactionChecks(checks)) => {
            Reply::TransactionChecks(transactions::write_checks(checks))
        }
        Ok(GroupResponse::Transactions(listed)) => Reply::Transactions(listed),
        Ok(GroupResponse::Transaction(shown)) => Reply::Transaction(shown),
        Ok(GroupResponse::Recalled(response)) => Reply::Recalled(response),
        Ok(GroupResponse::Pulled(pulled)) => Reply::Pulled(pb::Pulled {
            status: Some(pulled.status),
            messages: pulled.messages,
            next_offset: pulled.next_offset.get(),
        }),
        Ok(GroupResponse::Offset(offset)) => Reply::Offset(offset.get()),
        Ok(GroupResponse::Committed(committed)) => Reply::CommittedOffset(pb::CommittedOffset {
            offset: committed.offset.map(QueueOffset::get),
            last_reset: committed.last_reset.get(),
        }),
        Ok(GroupResponse::CommitSuperseded(superseded)) => Reply::CommitSuperseded(pb::CommitSuperseded {
            by: Some(match superseded {
                CommitSuperseded::By(committed) => By::Committed(committed.get()),
                CommitSuperseded::ByReset(last) => By::LastReset(last.get()),
            }),
        }),
        Ok(GroupResponse::TakenLite(taken)) => Reply::TakenLite(pb::TakenLite {
            taken: taken
                .into_iter()
                .map(|taken| pb::taken_lite::Taken {
                    client_id: taken.client_id,
                    lite_topic: taken.lite_topic,
                })
                .collect(),
        }),
        Ok(GroupResponse::BatchStored(places)) => Reply::BatchStored(pb::BatchStored {
            places: places
                .into_iter()
                .map(|place| pb::batch_stored::Place {
                    queue: place.queue.get(),
                    queue_offset: place.offset.get(),
                    is_repeat: place.is_repeat,
                })
                .collect(),
        }),
        Ok(GroupResponse::Operation(result)) => Reply::Operation(result),
        Ok(GroupResponse::Done) => Reply::Done(pb::Done {}),
        Ok(GroupResponse::Moved) => Reply::Moved(pb::Done {}),
        Ok(GroupResponse::Refused(refusal)) => return refused(&refusal),
        Err(not_executed) => Reply::NotExecuted(write_not_executed(not_executed)),
    };
    pb::ForwardReply { reply: Some(reply) }
}

pub(super) fn refused(refusal: &Refused) -> pb::ForwardReply {
    let status = Status { code: refusal.code.into(), message: refusal.message.clone() };
    pb::ForwardReply { reply: Some(Reply::Refused(status)) }
}

pub(crate) fn read_reply(reply: pb::ForwardReply, arrival: Arrival) -> Result<GroupResponse, NotExecuted> {
    let unknown =
        |what: &str| NotExecuted::OutcomeUnknown { detail: format!("{what} in the reply is not known here") };
    Ok(match reply.reply.ok_or_else(|| unknown("the kind"))? {
        Reply::Send(response) => GroupResponse::Send(response),
        Reply::Receive(received) => GroupResponse::Receive(Received {
            status: received.status.unwrap_or_default(),
            messages: received.messages,
            delivery_timestamp: UnixMillis(received.delivery_timestamp_ms),
            arrival,
        }),
        Reply::Ack(response) => GroupResponse::Ack(response),
        Reply::ChangeInvisible(response) => GroupResponse::ChangeInvisible(response),
        Reply::Topics(topics) => GroupResponse::Topics(
            topics
                .topics
                .into_iter()
                .map(read_topic)
                .collect::<Result<_, _>>()
                .map_err(|_| unknown("a topic name"))?,
        ),
        Reply::Shown(shown) => GroupResponse::ShowTopic(shown),
        Reply::ConsumerGroup(group) => GroupResponse::ConsumerGroup(ConsumerGroupDescription {
            fifo: group.fifo,
            max_attempts: group.max_attempts,
            backoff: group.backoff_ms.into_iter().map(Duration::from_millis).collect(),
            lite_quota: group.lite_quota,
        }),
        Reply::TransactionChecks(checks) => GroupResponse::TransactionChecks(
            transactions::read_checks(checks).ok_or_else(|| unknown("a transaction"))?,
        ),
        Reply::Transactions(listed) => GroupResponse::Transactions(listed),
        Reply::Transaction(shown) => GroupResponse::Transaction(shown),
        Reply::Recalled(response) => GroupResponse::Recalled(response),
        Reply::Pulled(pulled) => GroupResponse::Pulled(Pulled {
            status: pulled.status.unwrap_or_default(),
            messages: pulled.messages,
            next_offset: QueueOffset(pulled.next_offset),
        }),
        Reply::Offset(offset) => GroupResponse::Offset(QueueOffset(offset)),
        Reply::CommittedOffset(committed) => GroupResponse::Committed(CommittedOffset {
            offset: committed.offset.map(QueueOffset),
            last_reset: ResetMark(committed.last_reset),
        }),
        Reply::CommitSuperseded(superseded) => GroupResponse::CommitSuperseded(match superseded.by {
            Some(By::Committed(committed)) => CommitSuperseded::By(QueueOffset(committed)),
            Some(By::LastReset(last)) => CommitSuperseded::ByReset(ResetMark(last)),
            None => return Err(unknown("what superseded a commit")),
        }),
        Reply::TakenLite(taken) => GroupResponse::TakenLite(
            taken
                .taken
                .into_iter()
                .map(|taken| TakenLite { client_id: taken.client_id, lite_topic: taken.lite_topic })
                .collect(),
        ),
        Reply::BatchStored(stored) => GroupResponse::BatchStored(
            stored
                .places
                .into_iter()
                .map(|place| BatchPlace {
                    queue: QueueId(place.queue),
                    offset: QueueOffset(place.queue_offset),
                    is_repeat: place.is_repeat,
                })
                .collect(),
        ),
        Reply::Operation(result) => GroupResponse::Operation(result),
        Reply::Done(pb::Done {}) => GroupResponse::Done,
        Reply::Moved(pb::Done {}) => GroupResponse::Moved,
        Reply::Refused(status) => GroupResponse::Refused(Refused {
            code: Code::try_from(status.code).unwrap_or(Code::InternalServerError),
            message: status.message,
        }),
        Reply::NotExecuted(not_executed) => return Err(read_not_executed(not_executed)),
    })
}

fn write_not_executed(not_executed: NotExecuted) -> pb::NotExecuted {
    let mut wire = pb::NotExecuted { detail: not_executed.to_string(), ..pb::NotExecuted::default() };
    let reason = match not_executed {
        NotExecuted::NotHosted => Reason::NotHosted,
        NotExecuted::NotLeader { leader, term } => {
            wire.leader = leader.map(|node| node.get());
            wire.term = term.get();
            Reason::NotLeader
        }
        NotExecuted::OutcomeUnknown { detail } => {
            wire.detail = detail;
            Reason::OutcomeUnknown
        }
        NotExecuted::Overloaded { limit } => {
            wire.detail = limit;
            Reason::Overloaded
        }
        NotExecuted::DeadlinePassed => Reason::DeadlinePassed,
        NotExecuted::Stopping => Reason::Stopping,
    };
    wire.set_reason(reason);
    wire
}

fn read_not_executed(wire: pb::NotExecuted) -> NotExecuted {
    match wire.reason() {
        Reason::NotHosted => NotExecuted::NotHosted,
        Reason::NotLeader => {
            NotExecuted::NotLeader { leader: wire.leader.map(NodeId), term: Term(wire.term) }
        }
        Reason::OutcomeUnknown | Reason::Unspecified => NotExecuted::OutcomeUnknown { detail: wire.detail },
        Reason::Overloaded => NotExecuted::Overloaded { limit: wire.detail },
        Reason::DeadlinePassed => NotExecuted::DeadlinePassed,
        Reason::Stopping => NotExecuted::Stopping,
    }
}

fn write_topic(topic: TopicDescription) -> pb::Topic {
    pb::Topic {
        name: topic.name.as_str().to_owned(),
        message_type: topic.message_type.into(),
        queues: topic.queues,
        created_ms: topic.created.get(),
        placement: topic.placement.as_deref().map(placement::write),
    }
}

fn read_topic(topic: pb::Topic) -> Result<TopicDescription, NameError> {
    Ok(TopicDescription {
        name: TopicName::parse(&topic.name)?,
        message_type: MessageType::try_from(topic.message_type).unwrap_or_default(),
        queues: topic.queues,
        created: UnixMillis(topic.created_ms),
        placement: topic.placement.and_then(placement::read),
    })
}

pub(super) fn topic(name: &str) -> Result<TopicName, Refused> {
    TopicName::parse(name).map_err(bad_name)
}

fn consumer_group(name: &str) -> Result<ConsumerGroupName, Refused> {
    ConsumerGroupName::parse(name).map_err(bad_name)
}

/// The sending edge has checked the names; only another version's rules can differ.
fn bad_name(error: NameError) -> Refused {
    Refused::new(Code::BadRequest, format!("in a forwarded request: {error}"))
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A length of time from the wire, small enough to add to any instant.
pub(super) fn bounded(ms: u64) -> Duration {
    Duration::from_millis(ms.min(crate::context::DEADLINE_MS_MAX))
}
