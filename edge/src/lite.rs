//! Lite topics: where they are, who reads them, and receiving from all of them.
//!
//! A lite topic lies in one broker group, chosen by the server's own hash of its name over the parent's
//! queues, as a message group does ([`super::order`]). A subscription is taken apart accordingly; a full
//! list goes to every group, so that each forgets what the client no longer reads.
//!
//! | Request | Fault | Code |
//! |---|---|---|
//! | any | the topic is not of type LITE | BAD_REQUEST |
//! | any | the name of a lite topic is blank, too long, or holds other characters | ILLEGAL_LITE_TOPIC |
//! | SyncLiteSubscription | more lite topics than the consumer group allows a client | LITE_SUBSCRIPTION_QUOTA_EXCEEDED |
//! | SyncLiteSubscription | negative offset, offset option or version | ILLEGAL_OFFSET, BAD_REQUEST |
//!
//! The Python SDK's way of adding a lite topic is understood as it was meant, see [`put_together`].
//!
//! A client that polls one queue only, as lite simple consumers do, gets what any broker group has for
//! it: the poll goes to all of them, and those that lose the race give back what they were about to
//! deliver.

use futures_util::future::{FutureExt as _, join_all, select_all};
use ledgermq_common::limits::LITE_SUBSCRIPTIONS_PER_CLIENT_MAX;
use ledgermq_common::{GroupName, TopicName};
use ledgermq_proto::rocketmq::{
    Code, LiteSubscriptionAction, Message, MessageType, SendMessageRequest, SendMessageResponse,
    SyncLiteSubscriptionRequest,
};
use tokio::time::Instant;
use xxhash_rust::xxh3::xxh3_64;

use crate::codes::CallFailed;
use crate::context::{CallContext, ClientLanguage};
use crate::edge::Edge;
use crate::group_call::{GroupRequest, GroupResponse, Refused, SendRequest, SyncLite};
use crate::topics::HostedTopic;
use crate::validate::{self, Invalid};

impl Edge {
    /// Messages of one lite topic.
    pub(crate) async fn send_lite(
        &self,
        context: &CallContext,
        topic: TopicName,
        mut request: SendMessageRequest,
    ) -> Result<SendMessageResponse, Refused> {
        let lite_topic = one_lite_topic(&request.messages)?;
        let hosted = self.locate_every(context, &topic).await?;
        let (chosen, queue) = place(&hosted, &lite_topic);
        for message in &mut request.messages {
            // The leader takes this one for the queue; what the client wrote there is its own guess.
            if let Some(system) = &mut message.system_properties {
                system.queue_id = queue;
            }
        }
        let group = chosen.group.clone();
        let send = SendRequest { topic: topic.clone(), request, generation: 0 };
        match self.call(&group, context, &GroupRequest::Send(send)).await? {
            GroupResponse::Send(response) => Ok(response),
            GroupResponse::Refused(refused) => {
                if refused.code == Code::TopicNotFound {
                    self.forget_topic(&group, &topic);
                }
                Err(refused)
            }
            _ => Err(CallFailed::WrongAnswer { group }.into()),
        }
    }

    pub(crate) async fn sync_lite_subscription(
        &self,
        context: &CallContext,
        mut request: SyncLiteSubscriptionRequest,
    ) -> Result<(), Refused> {
        let topic = validate::topic(request.topic.as_ref())?;
        let consumer_group = validate::consumer_group(request.group.as_ref())?;
        let action = request.action();
        let adds = matches!(action, LiteSubscriptionAction::PartialAdd | LiteSubscriptionAction::CompleteAdd);
        if action == LiteSubscriptionAction::PartialAdd && context.language == ClientLanguage::Python {
            put_together(&mut request.lite_topic_set);
        }
        let count = request.lite_topic_set.len();
        if count > LITE_SUBSCRIPTIONS_PER_CLIENT_MAX as usize {
            return Err(Invalid::TooManyLiteTopics { count }.into());
        }
        // A name that never was one cannot be subscribed to; leaving it is no fault.
        for name in request.lite_topic_set.iter().filter(|_| adds) {
            validate::lite_topic(name)?;
        }
        validate::offset_option(request.offset_option.as_ref())?;
        let version = request.version.unwrap_or(0);
        let version = u64::try_from(version).map_err(|_| Invalid::LiteVersion { version })?;
        let hosted = self.locate_every(context, &topic).await?;
        check_lite(&topic, &hosted)?;
        let is_full_list =
            matches!(action, LiteSubscriptionAction::CompleteAdd | LiteSubscriptionAction::CompleteRemove);
        if is_full_list && adds {
            // Each group sees its part only.
            let quota = self.consumer_group(context, &consumer_group).await.lite_quota;
            if count > quota as usize {
                return Err(Refused::new(
                    Code::LiteSubscriptionQuotaExceeded,
                    format!(
                        "lite_topic_set has {count} entries; consumer group {consumer_group} allows {quota}"
                    ),
                ));
            }
        }
        let mut parts: Vec<Vec<String>> = vec![Vec::new(); hosted.len()];
        for name in request.lite_topic_set {
            let (chosen, _) = place(&hosted, &name);
            if let Some(at) = hosted.iter().position(|hosted| hosted.group == chosen.group)
                && let Some(part) = parts.get_mut(at)
            {
                part.push(name);
            }
        }
        let calls = hosted.iter().zip(parts).filter(|(_, part)| is_full_list || !part.is_empty());
        let calls = calls.map(|(hosted, lite_topics)| {
            let sync = SyncLite {
                consumer_group: consumer_group.clone(),
                topic: topic.clone(),
                action,
                lite_topics,
                version,
                offset_option: request.offset_option,
            };
            async move {
                match self.call(&hosted.group, context, &GroupRequest::SyncLite(sync)).await? {
                    GroupResponse::Done => Ok(()),
                    GroupResponse::Refused(refused) => Err(refused),
                    _ => Err(CallFailed::WrongAnswer { group: hosted.group.clone() }.into()),
                }
            }
        });
        join_all(calls).await.into_iter().collect()
    }

    /// The groups that a poll for lite topics goes to; none where one is enough.
    pub(crate) fn groups_of_lite(
        &self,
        context: &CallContext,
        topic: &TopicName,
        auto_renew: bool,
    ) -> Vec<GroupName> {
        let is_single = self.shared.topology.cluster().is_some_and(|cluster| cluster.groups.len() == 1);
        // Push consumers are assigned every group.
        if is_single || auto_renew {
            return Vec::new();
        }
        let hosted = self.located(context, topic);
        if hosted.len() < 2 || !hosted.iter().all(is_lite) {
            return Vec::new();
        }
        hosted.into_iter().map(|hosted| hosted.group).collect()
    }

    /// Polls all groups; the first that has messages answers.
    pub(crate) async fn receive_from_any(
        &self,
        context: &CallContext,
        groups: &[GroupName],
        request: &GroupRequest,
        until: Instant,
    ) -> Result<GroupResponse, CallFailed> {
        let calls =
            groups.iter().map(|group| self.shared.caller.call(group, context, request, until).boxed());
        let mut waiting: Vec<_> = calls.collect();
        let mut last = None;
        while !waiting.is_empty() {
            let (answer, _, rest) = select_all(waiting).await;
            waiting = rest;
            if let Ok(GroupResponse::Receive(mut received)) = answer {
                if received.messages.is_empty() {
                    last = Some(Ok(GroupResponse::Receive(received)));
                    continue;
                }
                // What has been answered in this very moment is delivered, too. The other polls are
                // withdrawn, and a leader gives back what it has leased for one.
                for other in waiting {
                    if let Some(Ok(GroupResponse::Receive(other))) = other.now_or_never() {
                        received.messages.extend(other.messages);
                    }
                }
                return Ok(GroupResponse::Receive(received));
            }
            // A fault of the request is one everywhere; elsewhere it may only not be known yet.
            if let Ok(GroupResponse::Refused(refused)) = answer {
                return Ok(GroupResponse::Refused(refused));
            }
            last = match last {
                Some(Ok(received)) => Some(Ok(received)),
                _ => Some(answer),
            };
        }
        last.unwrap_or(Err(CallFailed::TopologyUnknown))
    }
}

/// The Python SDK 5.1.2 adds one lite topic at a time and sends the letters of its name, each as a
/// name: without this its subscription would begin only with its next full list, up to 30 s later, and
/// make lite topics of the letters.
fn put_together(names: &mut Vec<String>) {
    if names.len() > 1 && names.iter().all(|name| name.chars().count() == 1) {
        *names = vec![names.concat()];
    }
}

fn is_lite(hosted: &HostedTopic) -> bool {
    hosted.description.message_type == MessageType::Lite
}

/// Over the queues of all groups in the order of the groups' names. A topic of type LITE never grows.
fn place<'a>(hosted: &'a [HostedTopic], lite_topic: &str) -> (&'a HostedTopic, i32) {
    assert!(!hosted.is_empty(), "a located topic is somewhere");
    let queues: u64 = hosted.iter().map(|hosted| u64::from(hosted.description.queues.max(1))).sum();
    let mut place = xxh3_64(lite_topic.as_bytes()) % queues;
    for hosted in hosted {
        let here = u64::from(hosted.description.queues.max(1));
        if place < here {
            return (hosted, i32::try_from(place).unwrap_or(i32::MAX));
        }
        place -= here;
    }
    unreachable!("the place lies within the sum")
}

fn check_lite(topic: &TopicName, hosted: &[HostedTopic]) -> Result<(), Invalid> {
    match hosted.iter().find(|hosted| !is_lite(hosted)) {
        None => Ok(()),
        Some(other) => Err(Invalid::NotLite {
            topic: topic.to_string(),
            accepted: other.description.message_type.as_str_name(),
        }),
    }
}

fn one_lite_topic(messages: &[Message]) -> Result<String, Invalid> {
    let mut names = messages.iter().map(lite_topic_of);
    let first = names.next().unwrap_or_default();
    match names.position(|name| name != first) {
        None => Ok(first.to_owned()),
        Some(before) => Err(Invalid::MixedLiteTopics { index: before + 1 }),
    }
}

fn lite_topic_of(message: &Message) -> &str {
    message.system_properties.as_ref().and_then(|system| system.lite_topic.as_deref()).unwrap_or("")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_are_a_name_and_names_stay_names() {
        let together = |names: &[&str]| {
            let mut names = names.iter().map(|&name| name.to_owned()).collect();
            put_together(&mut names);
            names
        };
        assert_eq!(together(&["a", "l", "p", "h", "a"]), ["alpha"]);
        assert_eq!(together(&["a"]), ["a"]);
        assert_eq!(together(&["alpha"]), ["alpha"]);
        assert_eq!(together(&["a", "beta"]), ["a", "beta"]);
        assert_eq!(together(&[]), [""; 0]);
    }
}
