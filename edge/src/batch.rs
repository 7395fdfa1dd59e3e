//! StoreBatch: messages of one or more topics in one log entry of one broker group, all or none.
//!
//! Which broker group:
//!
//! | The batch | Goes to |
//! |---|---|
//! | names a broker group | that one; refused if it does not have all topics |
//! | has messages with a message group | where the queues of the message groups are; refused if that is more than one |
//! | else | of the broker groups that have all topics, the first in the order of the first message id |
//!
//! So a repeat meets the message-id window of its first try, as a repeated send does
//! ([`Edge::carrier`]). A topic with order that has grown since may place the batch elsewhere, or tear it
//! apart: broker groups of former generations are asked first, and answer a repeat from their window.
//! They store nothing by a generation that has ended.
//!
//! | Situation | What is done |
//! |---|---|
//! | a topic is nowhere, and first use creates topics | it is made in every broker group, then the batch goes on |
//! | no broker group has all topics | refused, saying where each topic is |
//! | no leader | held as a send is |
//! | the generation of a topic with order is not served | placed again, until the deadline |

use std::collections::{BTreeMap, BTreeSet};

use ledgermq_common::names::excerpt;
use ledgermq_common::{GroupName, QueueId, TopicName};
use ledgermq_proto::messaging::{StoreBatchRequest, StoreBatchResponse, StoredPlace};
use ledgermq_proto::rocketmq::{Code, Message, MessageType};
use tokio::time::{Instant, sleep};
use xxhash_rust::xxh3::xxh3_64;

use crate::codes::{CallFailed, ok};
use crate::context::CallContext;
use crate::edge::{Edge, answer_by};
use crate::group_call::{
    BatchPlace, BatchTopic, GroupRequest, GroupResponse, Refused, StoreBatch, TopicDescription,
};
use crate::order::{self, MOVED_PAUSE, Place};
use crate::send::id_of;
use crate::topics::{HostedTopic, order_for};
use crate::validate::{self, Invalid};

/// A batch that passed the checks which need no state.
struct Batch {
    messages: Vec<Message>,
    topics: Vec<TopicName>,
    wanted: Option<GroupName>,
}

/// The topics of a batch that have message groups, with all broker groups that have them.
type OrderedTopics = BTreeMap<TopicName, Vec<HostedTopic>>;

/// Where one message of a batch may be by its message group: former places that may still know it, and
/// at last the place where it goes now.
struct Placed {
    index: usize,
    places: Vec<Place>,
}

impl Placed {
    fn now(&self) -> Option<&Place> {
        self.places.last()
    }
}

/// A broker group to ask, and what.
struct Attempt {
    group: GroupName,
    request: StoreBatch,
}

impl Edge {
    pub(crate) async fn store_batch(
        &self,
        context: &CallContext,
        request: StoreBatchRequest,
    ) -> Result<StoreBatchResponse, Refused> {
        let inside = self.shared.send_gate.enter()?;
        let topics = validate::batch(&request.messages, self.now().get())?;
        let wanted = self.wanted_group(context, &request.broker_group).await?;
        let batch = Batch { messages: request.messages, topics, wanted };
        let mut ordered = self.ordered_topics(context, &batch).await?;
        loop {
            let placed = batch.placed(&ordered)?;
            for former in batch.formers(&placed) {
                if let Some(places) = self.ask_batch(context, &batch, &former).await? {
                    inside.stored();
                    return Ok(batch.answer(&former.group, places));
                }
            }
            let target = batch.target(&placed)?;
            let group = self.group_with_all(context, &batch, target).await?;
            let attempt = batch.attempt(&group, &placed);
            if let Some(places) = self.ask_batch(context, &batch, &attempt).await? {
                inside.stored();
                return Ok(batch.answer(&group, places));
            }
            if Instant::now() + MOVED_PAUSE >= answer_by(context) {
                let why = "the queues of a topic of the batch are becoming more; try again";
                return Err(Refused::new(Code::HaNotAvailable, why));
            }
            sleep(MOVED_PAUSE).await;
            for (topic, hosted) in &mut ordered {
                *hosted = self.ask_every(context, topic, hosted).await?;
            }
        }
    }

    async fn wanted_group(&self, context: &CallContext, name: &str) -> Result<Option<GroupName>, Refused> {
        if name.is_empty() {
            return Ok(None);
        }
        match self.cluster(context).await?.groups.get_key_value(name) {
            Some((group, _)) => Ok(Some(group.clone())),
            None => Err(Invalid::BatchGroup { name: excerpt(name) }.into()),
        }
    }

    async fn ordered_topics(&self, context: &CallContext, batch: &Batch) -> Result<OrderedTopics, Refused> {
        let mut ordered = OrderedTopics::new();
        for topic in &batch.topics {
            if !batch.of(topic).any(|message| !order::group_of(message).is_empty()) {
                continue;
            }
            let hosted = self.locate_every(context, topic).await?;
            for hosted in &hosted {
                batch.check_type(topic, hosted.description.message_type)?;
            }
            ordered.insert(topic.clone(), hosted);
        }
        Ok(ordered)
    }

    /// The broker group that takes the batch: `target`, or the first of its order, with all topics.
    async fn group_with_all(
        &self,
        context: &CallContext,
        batch: &Batch,
        target: Option<GroupName>,
    ) -> Result<GroupName, Refused> {
        let cluster = self.cluster(context).await?;
        let all: Vec<GroupName> = cluster.groups.keys().cloned().collect();
        let order = match &target {
            Some(group) => vec![group.clone()],
            None => order_for(batch.messages.first().map_or("", id_of), all.iter()),
        };
        if let Some(group) = self.first_with_all(context, batch, &order).await? {
            return Ok(group);
        }
        let mut is_made = false;
        for topic in &batch.topics {
            if self.groups_of(context, &all, topic).await?.is_empty() {
                self.create_everywhere(context, &all, topic).await?;
                is_made = true;
            }
        }
        if is_made && let Some(group) = self.first_with_all(context, batch, &order).await? {
            return Ok(group);
        }
        let mut places = Vec::new();
        for topic in &batch.topics {
            let groups = self.groups_of(context, &all, topic).await?;
            if let Some(group) = &target
                && !groups.contains(group)
            {
                let (group, topic) = (group.to_string(), excerpt(topic.as_str()));
                return Err(Invalid::BatchTopicElsewhere { group, topic }.into());
            }
            let groups: Vec<&str> = groups.iter().map(GroupName::as_str).collect();
            places.push(format!("{} is in {}", excerpt(topic.as_str()), groups.join(", ")));
        }
        Err(Invalid::BatchSpread { places: places.join("; ") }.into())
    }

    async fn first_with_all(
        &self,
        context: &CallContext,
        batch: &Batch,
        order: &[GroupName],
    ) -> Result<Option<GroupName>, Refused> {
        for group in order {
            if let Some(descriptions) = self.all_in(context, group, &batch.topics).await? {
                for (topic, description) in batch.topics.iter().zip(descriptions) {
                    batch.check_type(topic, description.message_type)?;
                }
                return Ok(Some(group.clone()));
            }
        }
        Ok(None)
    }

    /// The topics as `group` has them, if it has them all.
    async fn all_in(
        &self,
        context: &CallContext,
        group: &GroupName,
        topics: &[TopicName],
    ) -> Result<Option<Vec<TopicDescription>>, Refused> {
        let mut descriptions = Vec::with_capacity(topics.len());
        for topic in topics {
            match self.described_by(context, group, topic).await? {
                Some(description) => descriptions.push(description),
                None => return Ok(None),
            }
        }
        Ok(Some(descriptions))
    }

    async fn groups_of(
        &self,
        context: &CallContext,
        all: &[GroupName],
        topic: &TopicName,
    ) -> Result<Vec<GroupName>, Refused> {
        let mut having = Vec::new();
        for group in all {
            if self.described_by(context, group, topic).await?.is_some() {
                having.push(group.clone());
            }
        }
        Ok(having)
    }

    /// `None`: the broker group does not serve the generation of a topic, and stored nothing.
    async fn ask_batch(
        &self,
        context: &CallContext,
        batch: &Batch,
        attempt: &Attempt,
    ) -> Result<Option<Vec<BatchPlace>>, Refused> {
        let group = &attempt.group;
        match self.call(group, context, &GroupRequest::StoreBatch(attempt.request.clone())).await? {
            GroupResponse::BatchStored(places) if places.len() == batch.messages.len() => Ok(Some(places)),
            GroupResponse::Moved => Ok(None),
            GroupResponse::Refused(refused) => {
                if refused.code == Code::TopicNotFound {
                    batch.topics.iter().for_each(|topic| self.forget_topic(group, topic));
                }
                Err(refused)
            }
            _ => Err(CallFailed::WrongAnswer { group: group.clone() }.into()),
        }
    }
}

impl Batch {
    fn of<'a>(&'a self, topic: &'a TopicName) -> impl Iterator<Item = &'a Message> {
        self.messages.iter().filter(|message| name_of(message) == topic.as_str())
    }

    fn check_type(&self, topic: &TopicName, accepted: MessageType) -> Result<(), Invalid> {
        self.of(topic).try_for_each(|message| {
            validate::message_type_fits(topic, accepted, std::slice::from_ref(message))
        })
    }

    /// The messages that have a message group, and where that may be.
    fn placed(&self, ordered: &OrderedTopics) -> Result<Vec<Placed>, Refused> {
        let mut placed = Vec::new();
        for (index, message) in self.messages.iter().enumerate() {
            let message_group = order::group_of(message);
            let Some(hosted) = ordered.get(name_of(message)).filter(|_| !message_group.is_empty()) else {
                continue;
            };
            placed.push(Placed { index, places: order::places(hosted, xxh3_64(message_group.as_bytes()))? });
        }
        Ok(placed)
    }

    /// Broker groups that may have stored all of the batch by former generations of its topics.
    fn formers(&self, placed: &[Placed]) -> Vec<Attempt> {
        let groups: BTreeSet<&GroupName> =
            placed.iter().flat_map(|of| of.places.iter().map(|place| &place.group)).collect();
        let holds_all =
            |group: &GroupName| placed.iter().all(|of| of.places.iter().any(|place| place.group == *group));
        let is_present =
            |group: &GroupName| placed.iter().all(|of| of.now().is_some_and(|place| place.group == *group));
        let former = groups.into_iter().filter(|group| holds_all(group) && !is_present(group));
        former.map(|group| self.attempt(group, placed)).collect()
    }

    /// The broker group that has the queues of all message groups, or the one the batch names.
    fn target(&self, placed: &[Placed]) -> Result<Option<GroupName>, Invalid> {
        let mut target = self.wanted.clone();
        for of in placed {
            let Some(place) = of.now() else { continue };
            match &target {
                None => target = Some(place.group.clone()),
                Some(group) if *group == place.group => {}
                Some(group) => {
                    let message_group = self.messages.get(of.index).map_or("", order::group_of);
                    return Err(Invalid::BatchSplit {
                        index: of.index,
                        message_group: excerpt(message_group),
                        group: place.group.to_string(),
                        of: group.to_string(),
                    });
                }
            }
        }
        Ok(target)
    }

    /// The batch for one broker group, each message with its place there.
    fn attempt(&self, group: &GroupName, placed: &[Placed]) -> Attempt {
        let mut messages = self.messages.clone();
        let mut generations: BTreeMap<&str, u32> = BTreeMap::new();
        for of in placed {
            let Some(place) = of.places.iter().rev().find(|place| place.group == *group) else { continue };
            let Some(message) = messages.get_mut(of.index) else { continue };
            // The leader takes this one for the queue; what the client wrote there is its own guess.
            if let Some(system) = &mut message.system_properties {
                system.queue_id = queue_id(place.queue);
            }
            let topic = self.messages.get(of.index).map_or("", name_of);
            // The oldest: it must not be one that is served while any message was placed by a former one,
            // or that message would be stored in a queue that is not its own any more.
            let generation = generations.entry(topic).or_insert(place.generation);
            *generation = (*generation).min(place.generation);
        }
        let generation_of = |topic: &TopicName| generations.get(topic.as_str()).copied().unwrap_or(0);
        let topics = self.topics.iter();
        let topics =
            topics.map(|name| BatchTopic { name: name.clone(), generation: generation_of(name) }).collect();
        Attempt { group: group.clone(), request: StoreBatch { topics, messages } }
    }

    fn answer(&self, group: &GroupName, places: Vec<BatchPlace>) -> StoreBatchResponse {
        let places = self.messages.iter().zip(places).map(|(message, place)| StoredPlace {
            topic: name_of(message).to_owned(),
            message_id: id_of(message).to_owned(),
            queue: place.queue.get(),
            queue_offset: place.offset.get(),
            is_repeat: place.is_repeat,
        });
        StoreBatchResponse { status: Some(ok()), broker_group: group.to_string(), places: places.collect() }
    }
}

fn name_of(message: &Message) -> &str {
    message.topic.as_ref().map_or("", |topic| topic.name.as_str())
}

fn queue_id(queue: QueueId) -> i32 {
    i32::try_from(queue.get()).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ledgermq_common::QueueLayout;
    use ledgermq_common::clock::UnixMillis;
    use ledgermq_proto::rocketmq::{Resource, SystemProperties};

    use super::*;
    use crate::group_call::{FormerGeneration, Placement};

    fn name(number: usize) -> GroupName {
        GroupName::parse(&format!("group-{number}")).expect("a name")
    }

    fn layout(queues: &[u32]) -> Arc<QueueLayout> {
        let groups = queues.iter().enumerate().map(|(number, queues)| (name(number), *queues));
        Arc::new(QueueLayout::new(groups).expect("a layout"))
    }

    /// A topic with order in two broker groups, by its generations; the last one is served.
    fn ordered(topic: &str, generations: &[&[u32]]) -> (TopicName, Vec<HostedTopic>) {
        let topic = TopicName::parse(topic).expect("a name");
        let of = |number: usize| FormerGeneration {
            generation: number as u32,
            layout: layout(generations[number]),
        };
        let last = generations.len() - 1;
        let placement = Placement {
            generation: last as u32,
            layout: layout(generations[last]),
            former: (0..last).map(of).collect(),
        };
        let hosted = [0, 1].map(|number| HostedTopic {
            group: name(number),
            description: TopicDescription {
                name: topic.clone(),
                message_type: MessageType::Fifo,
                queues: generations[last][number],
                created: UnixMillis(1),
                placement: Some(Arc::new(placement.clone())),
            },
        });
        (topic, hosted.to_vec())
    }

    fn batch(messages: &[(&str, &str)], wanted: Option<usize>) -> Batch {
        let messages: Vec<Message> = messages
            .iter()
            .zip(0..)
            .map(|((topic, group), number)| Message {
                topic: Some(Resource { name: (*topic).to_owned(), ..Resource::default() }),
                system_properties: Some(SystemProperties {
                    message_id: format!("m{number}"),
                    message_group: (!group.is_empty()).then(|| (*group).to_owned()),
                    ..SystemProperties::default()
                }),
                body: "body".into(),
                ..Message::default()
            })
            .collect();
        let topics = validate::batch(&messages, 1).expect("a batch");
        Batch { messages, topics, wanted: wanted.map(name) }
    }

    /// A message group that the layout places in the broker group.
    fn group_in(layout: &QueueLayout, number: usize, before: Option<(&QueueLayout, usize)>) -> String {
        let is_there = |layout: &QueueLayout, hash: u64, number| *layout.place(hash).0 == name(number);
        (0..10_000)
            .map(|key| format!("k{key}"))
            .find(|key| {
                let hash = xxh3_64(key.as_bytes());
                is_there(layout, hash, number)
                    && before.is_none_or(|(layout, number)| is_there(layout, hash, number))
            })
            .expect("one of many")
    }

    #[test]
    fn message_groups_decide_the_broker_group_and_two_of_them_are_refused() {
        let (topic, hosted) = ordered("steps", &[&[3, 3]]);
        let layout = layout(&[3, 3]);
        let (here, there) = (group_in(&layout, 0, None), group_in(&layout, 1, None));
        let topics = OrderedTopics::from([(topic, hosted)]);
        let together = batch(&[("bills", ""), ("steps", &there), ("steps", &there)], None);
        let placed = together.placed(&topics).expect("places");
        assert_eq!(placed.iter().map(|of| of.index).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(together.target(&placed), Ok(Some(name(1))));
        assert_eq!(together.formers(&placed).len(), 0);
        let attempt = together.attempt(&name(1), &placed);
        let (_, queue) = layout.place(xxh3_64(there.as_bytes()));
        let queues: Vec<i32> = attempt.request.messages[1..]
            .iter()
            .filter_map(|message| Some(message.system_properties.as_ref()?.queue_id))
            .collect();
        assert_eq!(queues, [queue_id(queue); 2]);
        let apart = batch(&[("steps", &here), ("bills", ""), ("steps", &there)], None);
        let refused = apart.target(&apart.placed(&topics).expect("places")).expect_err("two broker groups");
        assert_eq!(
            refused.to_string(),
            format!(
                "message 2: message_group \"{there}\" has its queue in broker group group-1; the batch is for group-0"
            )
        );
        let elsewhere = batch(&[("steps", &here)], Some(1));
        assert!(elsewhere.target(&elsewhere.placed(&topics).expect("places")).is_err());
        let named = batch(&[("bills", "")], Some(1));
        assert_eq!(named.target(&[]), Ok(Some(name(1))));
    }

    #[test]
    fn a_batch_torn_apart_by_a_growth_is_first_asked_for_where_it_was() {
        let (former, present) = (layout(&[3, 3]), layout(&[5, 5]));
        let stays = group_in(&present, 0, Some((&former, 0)));
        let moves = group_in(&present, 1, Some((&former, 0)));
        let topics = OrderedTopics::from([ordered("steps", &[&[3, 3], &[5, 5]])]);
        let batch = batch(&[("steps", &stays), ("bills", ""), ("steps", &moves)], None);
        let placed = batch.placed(&topics).expect("places");
        let formers = batch.formers(&placed);
        assert_eq!(formers.iter().map(|of| of.group.clone()).collect::<Vec<_>>(), [name(0)]);
        let generations = formers[0].request.topics.iter().map(|topic| topic.generation);
        assert_eq!(generations.collect::<Vec<_>>(), [0, 0], "asked by what is not served, so not stored");
        assert!(batch.target(&placed).is_err(), "it cannot be stored any more");
    }
}
