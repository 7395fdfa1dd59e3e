//! Where the messages of a message group go.
//!
//! The queue is the server's choice, by its own hash of the message group over all queues of the
//! topic in all broker groups: producers in different languages, and ones that repeat after a failover,
//! meet the same queue. That needs the whole list of queues, so a send is held rather than placed by
//! a part of it.

use ledgermq_common::TopicName;
use ledgermq_proto::rocketmq::{Code, Message, MessageType, SendMessageRequest, SendMessageResponse};
use xxhash_rust::xxh3::xxh3_64;

use crate::codes::CallFailed;
use crate::context::CallContext;
use crate::edge::Edge;
use crate::group_call::{GroupRequest, GroupResponse, Refused, SendRequest};
use crate::topics::HostedTopic;
use crate::validate::{self, Invalid};

impl Edge {
    /// Messages of one message group, which is one queue of one broker group.
    pub(crate) async fn send_in_order(
        &self,
        context: &CallContext,
        topic: TopicName,
        request: SendMessageRequest,
    ) -> Result<SendMessageResponse, Refused> {
        validate::message_type_fits(&topic, MessageType::Fifo, &request.messages)?;
        let message_group = one_message_group(&request.messages)?;
        self.send_placed(context, topic, request, &message_group).await
    }

    /// Messages that belong together by a text, which says where they go.
    pub(crate) async fn send_placed(
        &self,
        context: &CallContext,
        topic: TopicName,
        mut request: SendMessageRequest,
        by: &str,
    ) -> Result<SendMessageResponse, Refused> {
        let hosted = self.locate_every(context, &topic).await?;
        let (chosen, queue) = place(&hosted, by);
        for message in &mut request.messages {
            // The leader takes this one for the queue; what the client wrote there is its own guess.
            if let Some(system) = &mut message.system_properties {
                system.queue_id = queue;
            }
        }
        let group = chosen.group.clone();
        match self
            .call(&group, context, &GroupRequest::Send(SendRequest { topic: topic.clone(), request }))
            .await?
        {
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
}

fn one_message_group(messages: &[Message]) -> Result<String, Invalid> {
    let mut groups = messages.iter().map(group_of);
    let first = groups.next().unwrap_or_default();
    match groups.position(|group| group != first) {
        None => Ok(first.to_owned()),
        Some(before) => Err(Invalid::MixedMessageGroups { index: before + 1 }),
    }
}

fn group_of(message: &Message) -> &str {
    message.system_properties.as_ref().and_then(|system| system.message_group.as_deref()).unwrap_or("")
}

/// Where a message group or a lite topic is: over the queues of all groups in the order of the
/// groups' names.
pub(crate) fn place<'a>(hosted: &'a [HostedTopic], message_group: &str) -> (&'a HostedTopic, i32) {
    assert!(!hosted.is_empty(), "a located topic is somewhere");
    let queues: u64 = hosted.iter().map(|hosted| u64::from(hosted.description.queues.max(1))).sum();
    let mut place = xxh3_64(message_group.as_bytes()) % queues;
    for hosted in hosted {
        let here = u64::from(hosted.description.queues.max(1));
        if place < here {
            return (hosted, i32::try_from(place).unwrap_or(i32::MAX));
        }
        place -= here;
    }
    unreachable!("the place lies within the sum")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use ledgermq_common::GroupName;
    use ledgermq_common::clock::UnixMillis;

    use super::*;
    use crate::group_call::TopicDescription;

    fn hosted(queues: &[u32]) -> Vec<HostedTopic> {
        let group = |(number, &queues): (usize, &u32)| HostedTopic {
            group: GroupName::parse(&format!("group-{number}")).expect("a name"),
            description: TopicDescription {
                name: TopicName::parse("steps").expect("a name"),
                message_type: MessageType::Fifo,
                queues,
                created: UnixMillis(1),
            },
        };
        queues.iter().enumerate().map(group).collect()
    }

    #[test]
    fn message_groups_spread_over_all_queues_of_all_groups_and_each_stays_where_it_is() {
        let hosted = hosted(&[4, 2, 2]);
        let mut used: BTreeMap<(String, i32), u32> = BTreeMap::new();
        for number in 0..8_000 {
            let (group, queue) = place(&hosted, &format!("order-{number}"));
            assert!(u32::try_from(queue).is_ok_and(|queue| queue < group.description.queues));
            *used.entry((group.group.to_string(), queue)).or_default() += 1;
        }
        assert_eq!(used.len(), 8);
        assert!(used.values().all(|count| (800..1_200).contains(count)), "{used:?}");
        // Part of what is persisted, in a way: another hash would tear message groups apart.
        let (group, queue) = place(&hosted, "order-1");
        assert_eq!((group.group.as_str(), queue), PLACE_OF_ORDER_1);
    }

    const PLACE_OF_ORDER_1: (&str, i32) = ("group-2", 0);
}
