//! Receiving: each received message is under lease until it is acknowledged.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ledgermq_common::limits::{ACK_ENTRIES_MAX, RECEIVE_BATCH_MESSAGES_MAX};
use ledgermq_proto::rocketmq as wire;
use ledgermq_proto::rocketmq::receive_message_response::Content;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::error::{AckError, MalformedAnswer, ReceiveError, Refused};
use crate::message::{ReceivedMessage, Unusable, duration};
use crate::retry::{Budget, CallFailure, Line, Verdict, call, judge, may_pass};
use crate::session::{Session, messaging};

/// A poll is given this much longer than it may wait, for the way there and back.
pub(crate) const POLL_MARGIN: Duration = Duration::from_secs(3);
const ROUTE_REFRESH: Duration = Duration::from_secs(30);

/// Which messages of a topic a consumer wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Filter {
    /// `*`, or tags joined by `||`.
    Tags(String),
    /// An SQL92 expression over the properties, for example `region = 'eu' AND amount > 10`.
    Sql(String),
}

impl Filter {
    pub(crate) fn to_wire(&self) -> wire::FilterExpression {
        let (kind, expression) = match self {
            Self::Tags(expression) => (wire::FilterType::Tag, expression),
            Self::Sql(expression) => (wire::FilterType::Sql, expression),
        };
        wire::FilterExpression { r#type: kind as i32, expression: expression.clone() }
    }
}

#[derive(Debug, Clone)]
pub struct ConsumerOptions {
    pub group: String,
    pub subscriptions: Vec<(String, Filter)>,
    /// How long a receive waits for a first message.
    pub await_duration: Duration,
    /// How long a received message stays hidden from the rest of the group.
    pub invisible_duration: Duration,
}

impl ConsumerOptions {
    pub fn new(group: impl Into<String>) -> Self {
        Self {
            group: group.into(),
            subscriptions: Vec::new(),
            await_duration: Duration::from_secs(20),
            invisible_duration: Duration::from_secs(30),
        }
    }

    /// `expression` is `*`, or tags joined by `||`.
    pub fn subscribe(mut self, topic: impl Into<String>, expression: impl Into<String>) -> Self {
        self.subscriptions.push((topic.into(), Filter::Tags(expression.into())));
        self
    }

    pub fn subscribe_sql(mut self, topic: impl Into<String>, expression: impl Into<String>) -> Self {
        self.subscriptions.push((topic.into(), Filter::Sql(expression.into())));
        self
    }

    pub fn await_duration(mut self, wait: Duration) -> Self {
        self.await_duration = wait;
        self
    }

    pub fn invisible_duration(mut self, lease: Duration) -> Self {
        self.invisible_duration = lease;
        self
    }
}

/// Cheap to clone; clones are the same client to the cluster and may receive at the same time.
#[derive(Clone)]
pub struct SimpleConsumer {
    session: Arc<Session>,
    options: Arc<ConsumerOptions>,
    routes: Arc<Mutex<BTreeMap<String, Route>>>,
    next: Arc<AtomicUsize>,
}

#[derive(Clone)]
struct Route {
    brokers: Vec<wire::Broker>,
    read: Instant,
}

impl SimpleConsumer {
    pub(crate) fn new(session: Arc<Session>, options: ConsumerOptions) -> Self {
        Self {
            session,
            options: Arc::new(options),
            routes: Arc::default(),
            next: Arc::new(AtomicUsize::new(0)),
        }
    }

    pub fn client_id(&self) -> &str {
        &self.session.client_id
    }

    /// Up to `count` messages; none if nothing arrived in time. Topics and broker groups take
    /// turns from call to call. A receive that is dropped may leave messages under lease; they
    /// return when it ends.
    pub async fn receive(&self, count: u32) -> Result<Vec<ReceivedMessage>, ReceiveError> {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        let subscriptions = &self.options.subscriptions;
        if subscriptions.is_empty() {
            return Err(ReceiveError::NoSubscription);
        }
        let (topic, filter) = &subscriptions[turn % subscriptions.len()];
        let brokers = self.brokers_of(topic).await?;
        let broker = &brokers[(turn / subscriptions.len()) % brokers.len()];
        let until = Instant::now() + self.options.await_duration;
        let (batch, _) = self.poll(topic, filter, broker, count, until).await?;
        batch.usable()
    }

    /// Takes the message from the group for good.
    pub async fn ack(&self, message: &ReceivedMessage) -> Result<(), AckError> {
        self.ack_many(std::slice::from_ref(message)).await.pop().unwrap_or(Ok(()))
    }

    /// Acknowledges each message; the results come in the order of the messages.
    pub async fn ack_many(&self, messages: &[ReceivedMessage]) -> Vec<Result<(), AckError>> {
        let mut results: Vec<Result<(), AckError>> = messages.iter().map(|_| Ok(())).collect();
        let mut requests: BTreeMap<(&str, &str), Vec<usize>> = BTreeMap::new();
        for (index, message) in messages.iter().enumerate() {
            requests.entry((&message.topic, &message.broker)).or_default().push(index);
        }
        for ((topic, _), indexes) in requests {
            for indexes in indexes.chunks(ACK_ENTRIES_MAX) {
                let entries = indexes
                    .iter()
                    .filter_map(|index| messages.get(*index))
                    .map(|message| wire::AckMessageEntry {
                        message_id: message.message_id.clone(),
                        receipt_handle: message.receipt_handle.clone(),
                        lite_topic: message.lite_topic.clone(),
                    })
                    .collect();
                let outcomes = self.ack_request(topic, entries, indexes.len()).await;
                for (index, outcome) in indexes.iter().zip(outcomes) {
                    if let Some(result) = results.get_mut(*index) {
                        *result = outcome;
                    }
                }
            }
        }
        results
    }

    /// Makes the message return to the group after `invisible`, counted from now. The message's
    /// handle is replaced.
    pub async fn change_invisible_duration(
        &self,
        message: &mut ReceivedMessage,
        invisible: Duration,
    ) -> Result<(), AckError> {
        let request = wire::ChangeInvisibleDurationRequest {
            group: self.session.group(),
            topic: Some(self.session.resource(&message.topic)),
            receipt_handle: message.receipt_handle.clone(),
            invisible_duration: Some(duration(invisible)),
            message_id: message.message_id.clone(),
            lite_topic: message.lite_topic.clone(),
            ..Default::default()
        };
        let budget = self.session.budget("change invisible duration").once_at_a_time();
        let (handle, _) = call(&self.session.connections, budget, |live, time| {
            let request = self.session.request(request.clone(), time);
            async move {
                let answer = messaging(live).change_invisible_duration(request).await?.into_inner();
                Ok(judge(answer.status, answer.receipt_handle))
            }
        })
        .await?;
        if !handle.is_empty() {
            message.receipt_handle = handle;
        }
        Ok(())
    }

    /// Reads these lite topics of `parent` from now on, besides those it reads already: what is sent to
    /// them later comes with [`Self::receive`]. The cluster remembers it while this consumer lives.
    pub async fn subscribe_lite(&self, parent: &str, lite_topics: &[&str]) -> Result<(), ReceiveError> {
        self.sync_lite(wire::LiteSubscriptionAction::PartialAdd, parent, lite_topics).await
    }

    pub async fn unsubscribe_lite(&self, parent: &str, lite_topics: &[&str]) -> Result<(), ReceiveError> {
        self.sync_lite(wire::LiteSubscriptionAction::PartialRemove, parent, lite_topics).await
    }

    async fn sync_lite(
        &self,
        action: wire::LiteSubscriptionAction,
        parent: &str,
        lite_topics: &[&str],
    ) -> Result<(), ReceiveError> {
        let request = wire::SyncLiteSubscriptionRequest {
            action: action.into(),
            topic: Some(self.session.resource(parent)),
            group: self.session.group(),
            lite_topic_set: lite_topics.iter().map(|&name| name.to_owned()).collect(),
            ..Default::default()
        };
        let budget = self.session.budget("sync lite subscription");
        let ((), _) = call(&self.session.connections, budget, |live, time| {
            let request = self.session.request(request.clone(), time);
            async move {
                let answer = messaging(live).sync_lite_subscription(request).await?.into_inner();
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

    async fn poll(
        &self,
        topic: &str,
        filter: &Filter,
        broker: &wire::Broker,
        count: u32,
        until: Instant,
    ) -> Result<(Batch, u32), CallFailure> {
        let budget = Budget {
            operation: "receive",
            deadline: until + POLL_MARGIN,
            attempt: self.options.await_duration + POLL_MARGIN,
            hedged: false,
            line: Line::None,
        };
        call(&self.session.connections, budget, |live, time| {
            let wait = until.saturating_duration_since(Instant::now());
            let request = wire::ReceiveMessageRequest {
                group: self.session.group(),
                message_queue: Some(wire::MessageQueue {
                    topic: Some(self.session.resource(topic)),
                    id: -1,
                    permission: wire::Permission::Read as i32,
                    broker: Some(broker.clone()),
                    accept_message_types: Vec::new(),
                }),
                filter_expression: Some(filter.to_wire()),
                batch_size: i32::try_from(count.min(RECEIVE_BATCH_MESSAGES_MAX)).unwrap_or(1),
                invisible_duration: Some(duration(self.options.invisible_duration)),
                auto_renew: false,
                long_polling_timeout: Some(duration(wait)),
                attempt_id: None,
            };
            let request = self.session.request(request, time);
            let broker = broker.name.clone();
            async move { read_batch(live, request, &broker).await }
        })
        .await
    }

    async fn ack_request(
        &self,
        topic: &str,
        entries: Vec<wire::AckMessageEntry>,
        count: usize,
    ) -> Vec<Result<(), AckError>> {
        let request = wire::AckMessageRequest {
            group: self.session.group(),
            topic: Some(self.session.resource(topic)),
            entries,
        };
        let outcome = call(&self.session.connections, self.session.budget("ack"), |live, time| {
            let request = self.session.request(request.clone(), time);
            async move {
                let answer = messaging(live).ack_message(request).await?.into_inner();
                Ok(judge_ack(answer, count))
            }
        })
        .await;
        match outcome {
            Ok((results, _)) => results.into_iter().map(|result| result.map_err(AckError::from)).collect(),
            Err(failure) => {
                let error = AckError::from(failure);
                std::iter::repeat_with(|| Err(error.clone())).take(count).collect()
            }
        }
    }

    async fn brokers_of(&self, topic: &str) -> Result<Vec<wire::Broker>, ReceiveError> {
        let known = self.routes.lock().get(topic).cloned();
        if let Some(route) = &known
            && route.read.elapsed() < ROUTE_REFRESH
        {
            return Ok(route.brokers.clone());
        }
        let request = wire::QueryRouteRequest { topic: Some(self.session.resource(topic)), endpoints: None };
        let answer = call(&self.session.connections, self.session.budget("query route"), |live, time| {
            let request = self.session.request(request.clone(), time);
            async move {
                let answer = messaging(live).query_route(request).await?.into_inner();
                Ok(judge(answer.status, answer.message_queues))
            }
        })
        .await;
        let queues = match (answer, known) {
            (Ok((queues, _)), _) => queues,
            // An old route still leads to every message; only a new group would be missed.
            (Err(CallFailure::NoAnswer(_)), Some(route)) => return Ok(route.brokers),
            (Err(failure), _) => return Err(failure.into()),
        };
        let mut brokers: BTreeMap<String, wire::Broker> = BTreeMap::new();
        for broker in queues.into_iter().filter_map(|queue| queue.broker) {
            brokers.insert(broker.name.clone(), broker);
        }
        let brokers: Vec<_> = brokers.into_values().collect();
        if brokers.is_empty() {
            let what = "a route without a queue".to_owned();
            return Err(MalformedAnswer { operation: "query route", what }.into());
        }
        let route = Route { brokers: brokers.clone(), read: Instant::now() };
        self.routes.lock().insert(topic.to_owned(), route);
        Ok(brokers)
    }
}

#[derive(Default)]
struct Batch {
    messages: Vec<ReceivedMessage>,
    unusable: Option<Unusable>,
}

impl Batch {
    fn usable(self) -> Result<Vec<ReceivedMessage>, ReceiveError> {
        match self.unusable {
            Some(unusable) if self.messages.is_empty() => Err(match unusable {
                Unusable::Corrupt(error) => error.into(),
                Unusable::Malformed(error) => error.into(),
            }),
            Some(Unusable::Corrupt(error)) => {
                tracing::error!(%error, "message withheld");
                Ok(self.messages)
            }
            Some(Unusable::Malformed(error)) => {
                tracing::error!(%error, "message withheld");
                Ok(self.messages)
            }
            None => Ok(self.messages),
        }
    }
}

/// Reads the answer to its end. A stream that breaks after messages still gave those messages.
async fn read_batch(
    live: crate::connection::LiveConnection,
    request: tonic::Request<wire::ReceiveMessageRequest>,
    broker: &str,
) -> Result<Verdict<Batch>, tonic::Status> {
    let mut stream = messaging(live).receive_message(request).await?.into_inner();
    let mut batch = Batch::default();
    let mut status = None;
    loop {
        let item = match stream.message().await {
            Ok(Some(item)) => item,
            Ok(None) => break,
            Err(_) if !batch.messages.is_empty() => return Ok(Verdict::Done(batch)),
            Err(error) => return Err(error),
        };
        match item.content {
            Some(Content::Status(received)) => status = Some(received),
            Some(Content::Message(message)) => match ReceivedMessage::from_wire(message, broker) {
                Ok(message) => batch.messages.push(message),
                Err(unusable) => batch.unusable = Some(unusable),
            },
            Some(Content::DeliveryTimestamp(_)) | None => {}
        }
    }
    match status {
        Some(status) if status.code == wire::Code::MessageNotFound as i32 => Ok(Verdict::Done(batch)),
        status => Ok(judge(status, batch)),
    }
}

type AckResults = Vec<Result<(), Refused>>;

fn judge_ack(answer: wire::AckMessageResponse, count: usize) -> Verdict<AckResults> {
    if answer.entries.len() != count {
        // Without one entry for each message only the status for all says anything.
        return judge(answer.status, std::iter::repeat_with(|| Ok(())).take(count).collect());
    }
    let mut results = AckResults::with_capacity(count);
    for entry in answer.entries {
        match entry.status.or_else(|| answer.status.clone()) {
            Some(status) if status.code == wire::Code::Ok as i32 => results.push(Ok(())),
            // Acknowledging twice is harmless, so the whole request is repeated.
            Some(status) if may_pass(status.code) => {
                return Verdict::TryAgain { code: status.code, message: status.message };
            }
            Some(status) => {
                results.push(Err(Refused { operation: "ack", code: status.code, message: status.message }))
            }
            None => return Verdict::Malformed { what: "an entry without a status".to_owned() },
        }
    }
    Verdict::Done(results)
}
