//! Telemetry: every Settings command is answered, within a second, whatever the state of the groups.
//!
//! | Rule | Reason |
//! |---|---|
//! | reply has `status` OK and the `pub_sub` case that was sent | Python ignores it, Java fails to start otherwise |
//! | producers get exponential back-off | Node ends its process without it |
//! | consumers get customized back-off, Node's exponential | Python knows no other, Node treats it as 0 |
//! | `fifo`, batch, polling time, body size always set | taken over unchecked; 0 would stop the client |
//! | `metric.on` false | no collector is configured |
//! | a half-close is answered with OK trailers | an error there ends a Node process |
//! | lite push consumers get `fifo` | the order of a lite topic would end at the SDK's threads |
//! | lite clients: `lite_subscription_quota`, `max_lite_topic_size` | SDKs start with a quota of 0 |
//! | writing never waits | Python stops reading after the first reply |
//! | serving any other RPC needs no stream | streams stay away for minutes, in C# for good |
//!
//! | Failure | End of the stream |
//! |---|---|
//! | no client id | one command with the status, then OK |
//! | neither publishing nor subscription, illegal names, too many entries | INVALID_ARGUMENT |
//! | a subscription with an illegal filter | one command with ILLEGAL_FILTER_EXPRESSION, then INVALID_ARGUMENT |

use std::time::Duration;

use futures_util::{Stream, StreamExt as _};
use ledgermq_common::ConsumerGroupName;
use ledgermq_common::limits::{
    LITE_TOPIC_BYTES_MAX, LONG_POLLING_MS_MAX, MESSAGE_BODY_BYTES_MAX, RECEIVE_BATCH_MESSAGES_MAX,
};
use ledgermq_proto::rocketmq::retry_policy::Strategy;
use ledgermq_proto::rocketmq::settings::PubSub;
use ledgermq_proto::rocketmq::telemetry_command::Command;
use ledgermq_proto::rocketmq::{
    ClientType, CustomizedBackoff, ExponentialBackoff, Metric, RetryPolicy, Settings, TelemetryCommand,
};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tonic::Status;

use crate::codes::ok;
use crate::context::{CallContext, ClientLanguage};
use crate::edge::Edge;
use crate::group_call::{ConsumerGroupDescription, GroupRequest, GroupResponse, Refused};
use crate::lite_streams::LiteStream;
use crate::producers::Registered;
use crate::validate;

/// Replies and questions waiting for a client that does not read: one answer's worth of transactions
/// to check, and more settings than it needs.
pub const REPLIES_QUEUED_MAX: usize = crate::transactions::CHECKS_PER_ANSWER_MAX + 16;
/// Topics of a producer, or subscriptions of a consumer, in one Settings command.
pub const SETTINGS_ENTRIES_MAX: usize = 4_096;
/// How long a Settings reply waits for the leader's word on the consumer group.
const DESCRIBE_WITHIN: Duration = Duration::from_millis(700);

const PRODUCER_MAX_ATTEMPTS: i32 = 3;

impl Edge {
    /// Serves one stream until the client closes it or the node stops.
    pub(crate) fn telemetry(
        &self,
        context: CallContext,
        commands: impl Stream<Item = Result<TelemetryCommand, Status>> + Send + Unpin + 'static,
    ) -> mpsc::Receiver<Result<TelemetryCommand, Status>> {
        let (replies, queued) = mpsc::channel(REPLIES_QUEUED_MAX);
        let edge = self.clone();
        tokio::spawn(async move {
            let stopping = edge.shared.stopping.clone();
            tokio::select! {
                () = edge.serve_telemetry(context, commands, &replies) => {}
                () = stopping.cancelled() => {}
                () = replies.closed() => {}
            }
            // Dropping `replies` ends the stream with OK.
        });
        queued
    }

    async fn serve_telemetry(
        &self,
        context: CallContext,
        mut commands: impl Stream<Item = Result<TelemetryCommand, Status>> + Send + Unpin + 'static,
        replies: &mpsc::Sender<Result<TelemetryCommand, Status>>,
    ) {
        let mut producer: Option<Registered> = None;
        let mut lite: Option<LiteStream> = None;
        // An error here is the client's connection going away.
        while let Some(Ok(command)) = commands.next().await {
            let Some(Command::Settings(settings)) = command.command else {
                // Answers to diagnostics we do not ask for.
                continue;
            };
            if let Err(refused) = check_filters(&settings) {
                let ends = Status::invalid_argument(refused.to_string());
                let status = Some(refused.into_status(context.language));
                let _ = replies.try_send(Ok(TelemetryCommand { status, command: None }));
                let _ = replies.try_send(Err(ends));
                return;
            }
            let reply = match self.settings(&context, settings).await {
                Ok(settings) => {
                    if let Some(PubSub::Publishing(publishing)) = &settings.pub_sub {
                        let registered = producer.get_or_insert_with(|| {
                            self.shared.producers.register(&context.client_id, replies.clone())
                        });
                        let names = publishing.topics.iter();
                        names
                            .filter_map(|topic| validate::topic(Some(topic)).ok())
                            .for_each(|topic| registered.produces(&topic));
                        self.keep_asking();
                    }
                    if is_lite(settings.client_type()) {
                        lite.get_or_insert_with(|| {
                            self.shared.lite_streams.register(&context.client_id, replies.clone())
                        });
                        self.keep_asking_for_taken();
                    }
                    Ok(TelemetryCommand { status: Some(ok()), command: Some(Command::Settings(settings)) })
                }
                Err(status) => Err(status),
            };
            let ends = reply.is_err();
            // A full queue means that the client does not read; it will ask again.
            let _ = replies.try_send(reply);
            if ends {
                return;
            }
        }
    }

    /// The client's settings with what the server decides filled in.
    async fn settings(&self, context: &CallContext, mut settings: Settings) -> Result<Settings, Status> {
        let illegal = |invalid: validate::Invalid| Status::invalid_argument(invalid.to_string());
        let client_type = settings.client_type();
        settings.metric = Some(Metric { on: false, endpoints: None });
        match &mut settings.pub_sub {
            None => {
                return Err(Status::invalid_argument("settings has neither publishing nor subscription"));
            }
            Some(PubSub::Publishing(publishing)) => {
                check_count("publishing.topics", publishing.topics.len())?;
                for topic in &publishing.topics {
                    validate::topic(Some(topic)).map_err(illegal)?;
                }
                publishing.max_body_size = i32::try_from(MESSAGE_BODY_BYTES_MAX).unwrap_or(i32::MAX);
                publishing.validate_message_type = true;
                settings.backoff_policy = Some(RetryPolicy {
                    max_attempts: PRODUCER_MAX_ATTEMPTS,
                    strategy: Some(Strategy::ExponentialBackoff(ExponentialBackoff {
                        initial: Some(proto_duration(Duration::from_millis(10))),
                        max: Some(proto_duration(Duration::from_secs(1))),
                        multiplier: 2.0,
                    })),
                });
            }
            Some(PubSub::Subscription(subscription)) => {
                check_count("subscription.subscriptions", subscription.subscriptions.len())?;
                let group = validate::consumer_group(subscription.group.as_ref()).map_err(illegal)?;
                for entry in &subscription.subscriptions {
                    validate::topic(entry.topic.as_ref()).map_err(illegal)?;
                }
                let description = self.consumer_group(context, &group).await;
                subscription.fifo = Some(description.fifo || client_type == ClientType::LitePushConsumer);
                subscription.receive_batch_size =
                    Some(i32::try_from(RECEIVE_BATCH_MESSAGES_MAX).unwrap_or(i32::MAX));
                subscription.long_polling_timeout =
                    Some(proto_duration(Duration::from_millis(LONG_POLLING_MS_MAX)));
                if is_lite(client_type) {
                    subscription.lite_subscription_quota =
                        Some(i32::try_from(description.lite_quota).unwrap_or(i32::MAX));
                    subscription.max_lite_topic_size =
                        Some(i32::try_from(LITE_TOPIC_BYTES_MAX).unwrap_or(i32::MAX));
                }
                settings.backoff_policy = Some(consumer_backoff(context.language, &description));
            }
        }
        Ok(settings)
    }

    /// What the first group's leader says, else what this node knows, else the defaults: a client must
    /// be able to start during an election. This node may have applied less than the leader, and a
    /// client that is told too early that its group keeps no order hands out messages to its threads
    /// out of order until it asks again, minutes later.
    pub(crate) async fn consumer_group(
        &self,
        context: &CallContext,
        consumer_group: &ConsumerGroupName,
    ) -> ConsumerGroupDescription {
        if let Some(told) = self.consumer_group_at_leader(context, consumer_group).await {
            return told;
        }
        self.shared.topology.consumer_group(consumer_group).unwrap_or_default()
    }

    async fn consumer_group_at_leader(
        &self,
        context: &CallContext,
        consumer_group: &ConsumerGroupName,
    ) -> Option<ConsumerGroupDescription> {
        let group = self.shared.topology.cluster()?.groups.keys().next()?.clone();
        let until = Instant::now() + DESCRIBE_WITHIN;
        // A stream's own deadline may be an hour away or long gone; this question has its own.
        let context = CallContext { deadline: until, deadline_given: true, ..context.clone() };
        let request = GroupRequest::DescribeConsumerGroup(consumer_group.clone());
        match self.shared.caller.call(&group, &context, &request, until).await {
            Ok(GroupResponse::ConsumerGroup(description)) => Some(description),
            _ => None,
        }
    }
}

fn is_lite(client_type: ClientType) -> bool {
    matches!(client_type, ClientType::LitePushConsumer | ClientType::LiteSimpleConsumer)
}

/// A consumer learns at its start that its filter is wrong, not at its first receive.
fn check_filters(settings: &Settings) -> Result<(), Refused> {
    let Some(PubSub::Subscription(subscription)) = &settings.pub_sub else { return Ok(()) };
    for entry in subscription.subscriptions.iter().take(SETTINGS_ENTRIES_MAX) {
        validate::filter(entry.expression.as_ref())?;
    }
    Ok(())
}

fn consumer_backoff(language: ClientLanguage, group: &ConsumerGroupDescription) -> RetryPolicy {
    let strategy = match language {
        ClientLanguage::Node => Strategy::ExponentialBackoff(ExponentialBackoff {
            initial: group.backoff.first().copied().map(proto_duration),
            max: group.backoff.last().copied().map(proto_duration),
            multiplier: 2.0,
        }),
        _ => Strategy::CustomizedBackoff(CustomizedBackoff {
            next: group.backoff.iter().copied().map(proto_duration).collect(),
        }),
    };
    RetryPolicy {
        max_attempts: i32::try_from(group.max_attempts).unwrap_or(i32::MAX),
        strategy: Some(strategy),
    }
}

fn check_count(field: &str, count: usize) -> Result<(), Status> {
    if count > SETTINGS_ENTRIES_MAX {
        return Err(Status::invalid_argument(format!(
            "{field} has {count} entries; the limit is {SETTINGS_ENTRIES_MAX}"
        )));
    }
    Ok(())
}

fn proto_duration(duration: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(duration.subsec_nanos()).unwrap_or(0),
    }
}
