//! ReceiveMessage: a long poll that outlives elections.
//!
//! | Outcome | Items of the stream, in order |
//! |---|---|
//! | messages | status OK, one item per message, delivery_timestamp |
//! | nothing in time, or no leader in time | status MESSAGE_NOT_FOUND, delivery_timestamp |
//! | refused | status with the code, delivery_timestamp |
//!
//! The stream ends `RECEIVE_MARGIN_MS` before the client's deadline: SDKs use a batch only once the
//! stream has ended, so a late end loses it until its lease runs out.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ledgermq_common::GroupName;
use ledgermq_common::limits::LONG_POLLING_MS_MAX;
use ledgermq_proto::rocketmq::receive_message_response::Content;
use ledgermq_proto::rocketmq::{Code, ReceiveMessageRequest, ReceiveMessageResponse, Status};
use tokio::time::{Instant, sleep_until};

use crate::arrival::Arrival;
use crate::codes::CallFailed;
use crate::context::{CallContext, ClientLanguage};
use crate::edge::Edge;
use crate::group_call::{GroupRequest, GroupResponse, ReceiveRequest, Received, Refused};
use crate::validate;

/// The last part of a client's deadline belongs to the way back.
pub const RECEIVE_MARGIN_MS: u64 = 400;
/// How much later than the end of its poll an executor may answer.
const ANSWER_GRACE: Duration = Duration::from_millis(200);

fn own_attempt_id() -> String {
    format!("{:032x}", rand::random::<u128>())
}
/// SDKs that repeat a refused receive at once (Go after 20 ms, Rust after 1 ms) are slowed down here.
const REFUSAL_PACE: Duration = Duration::from_secs(1);

impl Edge {
    /// The items of the answer, and who wants to know that they were taken. Dropping the future
    /// withdraws the poll.
    pub(crate) async fn receive_message(
        &self,
        context: &CallContext,
        request: ReceiveMessageRequest,
    ) -> (Vec<ReceiveMessageResponse>, Arrival) {
        let began = Instant::now();
        let received = match self.receive(context, &request, began).await {
            Ok(received) => received,
            Err(refused) => {
                if matches!(context.language, ClientLanguage::Go | ClientLanguage::Rust) {
                    let latest = context.deadline.checked_sub(margin()).unwrap_or(began);
                    sleep_until(latest.min(began + REFUSAL_PACE)).await;
                }
                self.nothing(refused.into_status(context.language))
            }
        };
        let arrival = received.arrival.clone();
        (items(received), arrival)
    }

    async fn receive(
        &self,
        context: &CallContext,
        request: &ReceiveMessageRequest,
        began: Instant,
    ) -> Result<Received, Refused> {
        let queue = request.message_queue.as_ref();
        let topic = validate::topic(queue.and_then(|queue| queue.topic.as_ref()))?;
        let consumer_group = validate::consumer_group(request.group.as_ref())?;
        let poll_until = poll_until(context, request, began)?;
        let receive = ReceiveRequest {
            consumer_group,
            batch_size: validate::batch_size(request.batch_size)?,
            invisible_ms: validate::receive_invisible_ms(
                request.invisible_duration.as_ref(),
                request.auto_renew,
            )?,
            auto_renew: request.auto_renew,
            filter: validate::filter(request.filter_expression.as_ref())?,
            // A repetition inside, at another leader, must meet what the first one was granted, also
            // for the SDKs that name no attempt.
            attempt_id: validate::attempt_id(request.attempt_id.as_deref())?
                .or_else(|| Some(own_attempt_id())),
            topic,
            poll_until,
        };
        let broker = queue.and_then(|queue| queue.broker.as_ref()).map_or("", |broker| &broker.name);
        let group = match self.receive_from(context, broker, &receive).await {
            Ok(group) => group,
            // Not knowing where to ask is no fault of the request; the consumer asks again.
            Err(Refused { code: Code::HaNotAvailable | Code::ProxyTimeout, .. }) => {
                self.wait_out(poll_until).await;
                return Ok(self.nothing(no_new_message()));
            }
            Err(refused) => return Err(refused),
        };

        let of_lite = self.groups_of_lite(context, &receive.topic, receive.auto_renew);
        let request = GroupRequest::Receive(receive);
        let until = if context.deadline_given {
            (poll_until + ANSWER_GRACE).min(context.deadline)
        } else {
            poll_until + ANSWER_GRACE
        };
        let answer = tokio::select! {
            biased;
            () = self.shared.polls_end.cancelled() => Err(CallFailed::Stopping),
            answer = self.receive_from_any(context, &of_lite, &request, until), if !of_lite.is_empty() => answer,
            answer = self.shared.caller.call(&group, context, &request, until), if of_lite.is_empty() => answer,
        };
        match answer {
            Ok(GroupResponse::Receive(received)) => Ok(received),
            Ok(GroupResponse::Refused(refused)) => Err(refused),
            Ok(_) => Err(CallFailed::WrongAnswer { group }.into()),
            Err(CallFailed::Overloaded { limit }) => {
                Err(Refused::new(Code::TooManyRequests, format!("polling full: {limit}")))
            }
            Err(failed @ (CallFailed::UnknownGroup { .. } | CallFailed::WrongAnswer { .. })) => {
                Err(failed.into())
            }
            Err(
                CallFailed::NoLeader { .. }
                | CallFailed::NoAnswer { .. }
                | CallFailed::DeadlinePassed
                | CallFailed::TopologyUnknown
                | CallFailed::Stopping,
            ) => Ok(self.nothing(no_new_message())),
        }
    }

    /// The group the client names; any that carries the topic if it names none that exists.
    async fn receive_from(
        &self,
        context: &CallContext,
        broker: &str,
        receive: &ReceiveRequest,
    ) -> Result<GroupName, Refused> {
        static TURN: AtomicUsize = AtomicUsize::new(0);
        let cluster = self.cluster(context).await?;
        if let Some((group, _)) = cluster.groups.get_key_value(broker) {
            return Ok(group.clone());
        }
        let hosted = self.locate(context, &receive.topic).await?;
        let turn = TURN.fetch_add(1, Ordering::Relaxed) % hosted.len();
        Ok(hosted[turn].group.clone())
    }

    fn nothing(&self, status: Status) -> Received {
        Received { status, messages: Vec::new(), delivery_timestamp: self.now(), arrival: Arrival::default() }
    }

    async fn wait_out(&self, until: Instant) {
        tokio::select! {
            () = sleep_until(until) => {}
            () = self.shared.polls_end.cancelled() => {}
        }
    }
}

/// The poll's end: what the request asks for, else what its deadline leaves.
fn poll_until(
    context: &CallContext,
    request: &ReceiveMessageRequest,
    began: Instant,
) -> Result<Instant, Refused> {
    let asked_ms = match &request.long_polling_timeout {
        Some(duration) => validate::polling_ms(duration)?,
        None => LONG_POLLING_MS_MAX,
    };
    let asked = began + Duration::from_millis(asked_ms.min(LONG_POLLING_MS_MAX));
    if !context.deadline_given {
        return Ok(asked);
    }
    let latest = context.deadline.checked_sub(margin()).unwrap_or(began).max(began);
    Ok(asked.min(latest))
}

fn items(received: Received) -> Vec<ReceiveMessageResponse> {
    let item = |content| ReceiveMessageResponse { content: Some(content) };
    let mut items = Vec::with_capacity(received.messages.len() + 2);
    items.push(item(Content::Status(received.status)));
    items.extend(received.messages.into_iter().map(|message| item(Content::Message(message))));
    items.push(item(Content::DeliveryTimestamp(timestamp(received.delivery_timestamp.get()))));
    items
}

fn timestamp(ms: u64) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: i64::try_from(ms / 1000).unwrap_or(i64::MAX),
        nanos: i32::try_from(ms % 1000).unwrap_or(0) * 1_000_000,
    }
}

fn no_new_message() -> Status {
    Status { code: Code::MessageNotFound.into(), message: "no new message".to_owned() }
}

fn margin() -> Duration {
    Duration::from_millis(RECEIVE_MARGIN_MS)
}
