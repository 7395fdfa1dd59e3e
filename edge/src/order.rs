//! Where the messages of a message group go.
//!
//! The queue is the server's choice, by its own hash of the message group over all queues of the
//! topic in all broker groups: producers in different languages, and ones that repeat after a failover,
//! meet the same queue. That needs the whole list of queues, so a send is held rather than placed by
//! a part of it.
//!
//! A topic that grows has a list of queues per *generation*. A send carries the generation it was placed
//! by, and a leader that serves another one stores nothing:
//!
//! | Situation | What is done |
//! |---|---|
//! | the leader serves another generation, or none between two | the leaders are asked for their generation, and the send is placed again; it is held for as long as none is served |
//! | a former generation places the message group in another broker group, and that one may still know its messages by their ids | that one is asked first: it answers a repeat with the first place, and stores nothing |

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use ledgermq_common::{GroupName, QueueId, QueueLayout, TopicName};
use ledgermq_proto::rocketmq::{Code, Message, MessageType, SendMessageRequest, SendMessageResponse};
use tokio::time::{Instant, sleep};
use xxhash_rust::xxh3::xxh3_64;

use crate::codes::{CallFailed, topic_not_found};
use crate::context::CallContext;
use crate::edge::{Edge, answer_by};
use crate::group_call::{GroupRequest, GroupResponse, Refused, SendRequest};
use crate::topics::HostedTopic;
use crate::validate::{self, Invalid};

/// Between two attempts while no generation is served: a growth is a few commits.
pub(crate) const MOVED_PAUSE: Duration = Duration::from_millis(10);

/// The place a generation gives to a message group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) group: GroupName,
    pub(crate) queue: QueueId,
    pub(crate) generation: u32,
}

impl Edge {
    /// Messages of one message group, which is one queue of one broker group.
    pub(crate) async fn send_in_order(
        &self,
        context: &CallContext,
        topic: TopicName,
        request: SendMessageRequest,
    ) -> Result<SendMessageResponse, Refused> {
        validate::message_type_fits(&topic, MessageType::Fifo, &request.messages)?;
        let hash = xxh3_64(one_message_group(&request.messages)?.as_bytes());
        let mut hosted = self.locate_every(context, &topic).await?;
        loop {
            let mut stored = None;
            for place in places(&hosted, hash)? {
                stored = self.send_to(context, &topic, &request, &place).await?;
                if stored.is_some() {
                    break;
                }
            }
            if let Some(stored) = stored {
                return Ok(stored);
            }
            if Instant::now() + MOVED_PAUSE >= answer_by(context) {
                let why = format!("the queues of topic {topic} are becoming more; try again");
                return Err(Refused::new(Code::HaNotAvailable, why));
            }
            sleep(MOVED_PAUSE).await;
            hosted = self.ask_every(context, &topic, &hosted).await?;
        }
    }

    /// `None`: the generation is not served there.
    async fn send_to(
        &self,
        context: &CallContext,
        topic: &TopicName,
        request: &SendMessageRequest,
        place: &Place,
    ) -> Result<Option<SendMessageResponse>, Refused> {
        let mut request = request.clone();
        for message in &mut request.messages {
            // The leader takes this one for the queue; what the client wrote there is its own guess.
            if let Some(system) = &mut message.system_properties {
                system.queue_id = i32::try_from(place.queue.get()).unwrap_or(i32::MAX);
            }
        }
        let send = SendRequest { topic: topic.clone(), request, generation: place.generation };
        match self.call(&place.group, context, &GroupRequest::Send(send)).await? {
            GroupResponse::Send(response) => Ok(Some(response)),
            GroupResponse::Moved => Ok(None),
            GroupResponse::Refused(refused) => {
                if refused.code == Code::TopicNotFound {
                    self.forget_topic(&place.group, topic);
                }
                Err(refused)
            }
            _ => Err(CallFailed::WrongAnswer { group: place.group.clone() }.into()),
        }
    }

    /// What the leaders of the topic's broker groups say of it now.
    pub(crate) async fn ask_every(
        &self,
        context: &CallContext,
        topic: &TopicName,
        known: &[HostedTopic],
    ) -> Result<Vec<HostedTopic>, Refused> {
        let mut groups: BTreeSet<GroupName> = known.iter().map(|hosted| hosted.group.clone()).collect();
        let layouts = known.iter().filter_map(|hosted| hosted.description.placement.as_ref());
        groups.extend(layouts.flat_map(|of| of.layout.groups()).map(|(group, _)| group.clone()));
        let asked = groups.iter().map(|group| self.ask(context, group, topic, false));
        let mut hosted = Vec::new();
        for (group, answer) in groups.iter().zip(join_all(asked).await) {
            if let Some(description) = answer? {
                hosted.push(HostedTopic { group: group.clone(), description });
            }
        }
        if hosted.is_empty() { Err(topic_not_found(topic.as_str())) } else { Ok(hosted) }
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

pub(crate) fn group_of(message: &Message) -> &str {
    message.system_properties.as_ref().and_then(|system| system.message_group.as_deref()).unwrap_or("")
}

/// Whom to ask for a message group, by its hash: former places that may still know a first try, and
/// at last the place where it goes now.
///
/// A broker group answers for its own message-id window, so one that has the new place needs no
/// question, and any other only one: about the newest former generation that placed the group there.
pub(crate) fn places(hosted: &[HostedTopic], hash: u64) -> Result<Vec<Place>, Refused> {
    let (generation, layout) = newest(hosted)?;
    let place = |generation: u32, layout: &QueueLayout| {
        let (group, queue) = layout.place(hash);
        Place { group: group.clone(), queue, generation }
    };
    let now = place(generation, &layout);
    let mut places = Vec::new();
    for hosted in hosted.iter().filter(|hosted| hosted.group != now.group) {
        let Some(known) = &hosted.description.placement else { continue };
        // What it says may be older than what another broker group says.
        let present = (known.generation < generation).then_some((known.generation, &known.layout));
        let former = known.former.iter().rev().map(|former| (former.generation, &former.layout));
        let mut before = present.into_iter().chain(former).map(|(number, layout)| place(number, layout));
        places.extend(before.find(|place| place.group == hosted.group));
    }
    places.push(now);
    Ok(places)
}

/// The newest generation anybody knows. A topic that never grew has all of its queues.
fn newest(hosted: &[HostedTopic]) -> Result<(u32, Arc<QueueLayout>), Refused> {
    let placements = hosted.iter().filter_map(|hosted| hosted.description.placement.as_ref());
    if let Some(newest) = placements.max_by_key(|placement| placement.generation) {
        return Ok((newest.generation, Arc::clone(&newest.layout)));
    }
    let all = hosted.iter().map(|hosted| (hosted.group.clone(), hosted.description.queues.max(1)));
    let layout = QueueLayout::new(all).map_err(|error| {
        Refused::new(Code::InternalServerError, format!("placing a message group: {error}"))
    })?;
    Ok((0, Arc::new(layout)))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use ledgermq_common::GroupName;
    use ledgermq_common::clock::UnixMillis;

    use super::*;
    use crate::group_call::{FormerGeneration, Placement, TopicDescription};

    fn name(number: usize) -> GroupName {
        GroupName::parse(&format!("group-{number}")).expect("a name")
    }

    fn hosted(queues: &[u32]) -> Vec<HostedTopic> {
        let group = |(number, &queues): (usize, &u32)| HostedTopic {
            group: name(number),
            description: TopicDescription {
                name: TopicName::parse("steps").expect("a name"),
                message_type: MessageType::Fifo,
                queues,
                created: UnixMillis(1),
                placement: None,
            },
        };
        queues.iter().enumerate().map(group).collect()
    }

    fn layout(queues: &[u32]) -> Arc<QueueLayout> {
        let groups = queues.iter().enumerate().map(|(number, queues)| (name(number), *queues));
        Arc::new(QueueLayout::new(groups).expect("a layout"))
    }

    fn at(group: usize, queue: u32, generation: u32) -> Place {
        Place { group: name(group), queue: QueueId(queue), generation }
    }

    #[test]
    fn message_groups_spread_over_all_queues_of_all_groups_and_each_stays_where_it_is() {
        let hosted = hosted(&[4, 2, 2]);
        let mut used: BTreeMap<(String, u32), u32> = BTreeMap::new();
        for number in 0..8_000 {
            let places = places(&hosted, xxh3_64(format!("order-{number}").as_bytes())).expect("a place");
            let [place] = places.as_slice() else { panic!("a topic that never grew has one place") };
            *used.entry((place.group.to_string(), place.queue.get())).or_default() += 1;
        }
        assert_eq!(used.len(), 8);
        assert!(used.values().all(|count| (800..1_200).contains(count)), "{used:?}");
        // Part of what is persisted, in a way: another hash would tear message groups apart.
        let places = places(&hosted, xxh3_64(b"order-1")).expect("a place");
        assert_eq!(places, [at(2, 0, 0)]);
    }

    #[test]
    fn a_former_place_in_another_broker_group_is_asked_before_the_new_one() {
        let mut hosted = hosted(&[3, 3]);
        let placement = |generation, of: &[u32], former: &[(u32, &[u32])]| {
            Some(Arc::new(Placement {
                generation,
                layout: layout(of),
                former: former
                    .iter()
                    .map(|&(generation, of)| FormerGeneration { generation, layout: layout(of) })
                    .collect(),
            }))
        };
        hosted[0].description.placement = placement(1, &[3, 3], &[(0, &[1, 1])]);
        hosted[1].description.placement = placement(1, &[3, 3], &[(0, &[1, 1])]);
        // 4 was in group 0, and is in group 1 now; 0 stays in its broker group.
        assert_eq!(places(&hosted, 4).expect("places"), [at(0, 0, 0), at(1, 1, 1)]);
        assert_eq!(places(&hosted, 0).expect("places"), [at(0, 0, 1)]);
        // A broker group of which an older generation is known here is asked by that one.
        hosted[0].description.placement = placement(0, &[1, 1], &[]);
        assert_eq!(places(&hosted, 4).expect("places"), [at(0, 0, 0), at(1, 1, 1)]);
        // Once its window has passed there is nothing to ask.
        hosted[0].description.placement = placement(1, &[3, 3], &[]);
        assert_eq!(places(&hosted, 4).expect("places"), [at(1, 1, 1)]);
    }
}
