//! What the executor asks about the generations of topics with order.

use std::sync::Arc;

use ledgermq_common::clock::UnixMillis;
use ledgermq_common::{QueueId, QueueLayout, QueueOffset};

use super::answer::StoredAt;
use super::applied::Applied;
use super::applied::generations::WINDOW_MS;
use super::applied::window::window_key;
use super::machine::BrokerState;
use super::names::{ConsumerGroupId, Generation, TopicId};

/// By what sends to a topic with order are placed. A topic that never grew has none: it is generation
/// 0 of all its queues.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacementView {
    pub generation: Generation,
    pub layout: Arc<QueueLayout>,
    /// The generation has ended here and the next one is not open yet.
    pub is_closed: bool,
    /// Ended generations whose messages may still be in the message-id window, oldest first.
    pub former: Vec<(Generation, Arc<QueueLayout>)>,
}

/// A growth that is under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Growth {
    pub topic: TopicId,
    pub name: String,
    pub current: Generation,
    pub former: Arc<QueueLayout>,
    pub next: Generation,
    pub layout: Arc<QueueLayout>,
    pub is_closed: bool,
}

/// A consumer group that has consumed its share of a generation here, and may have done so in the
/// other broker groups of the layout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DrainCandidate {
    pub consumer_group: ConsumerGroupId,
    pub consumer_group_name: String,
    pub topic: TopicId,
    pub topic_name: String,
    pub generation: Generation,
    pub resets: u32,
    pub layout: Arc<QueueLayout>,
}

/// A consumer group that waits for the end of a generation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draining {
    pub consumer_group: String,
    pub generation: Generation,
    /// Messages of the generation that are not consumed in this broker group.
    pub left: u64,
}

/// One ended generation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndedView {
    pub generation: Generation,
    pub layout: Arc<QueueLayout>,
    pub ended_at: UnixMillis,
}

impl BrokerState {
    /// Growths that are not complete yet, whichever broker group drives them.
    pub fn growths(&self) -> Vec<Growth> {
        let applied = self.applied_state();
        applied.generations.topics.keys().filter_map(|&topic| growth(&applied, topic)).collect()
    }

    pub fn growth(&self, topic: TopicId) -> Option<Growth> {
        growth(&self.applied_state(), topic)
    }

    pub fn ended_generations(&self, topic: TopicId) -> Vec<EndedView> {
        let applied = self.applied_state();
        let ended = applied.generations.topics.get(&topic).into_iter().flat_map(|of| &of.ended);
        ended
            .map(|ended| EndedView {
                generation: ended.generation,
                layout: Arc::clone(&ended.layout),
                ended_at: ended.ended_at,
            })
            .collect()
    }

    /// Where messages were stored before, if all of them were and it is remembered.
    pub fn stored_before<'a>(
        &self,
        topic: TopicId,
        message_ids: impl IntoIterator<Item = &'a str>,
    ) -> Option<Vec<StoredAt>> {
        let applied = self.applied_state();
        let find = |id: &str| {
            let first = applied.window.find(window_key(topic, id.as_bytes()))?;
            Some(StoredAt {
                queue: QueueId(first.queue),
                offset: QueueOffset(first.offset),
                stored_at: first.stored_at,
                repeated: true,
            })
        };
        message_ids.into_iter().map(find).collect()
    }

    /// Whether the group, by its name, has consumed this broker group's share up to the end of the
    /// generation. `None`: the topic does not exist.
    pub fn has_drained(&self, consumer_group: &str, topic: &str, generation: Generation) -> Option<bool> {
        let applied = self.applied_state();
        let &topic = applied.topic_names.get(topic)?;
        let group = applied.consumer_group_names.get(consumer_group).copied();
        Some(applied.has_drained(group, topic, generation))
    }

    /// Groups with order that have consumed here all of the first generation they have not drained.
    pub fn drain_candidates(&self, max: usize) -> Vec<DrainCandidate> {
        let applied = self.applied_state();
        let mut candidates = Vec::new();
        for (consumer_group, topic) in undrained(&applied) {
            if candidates.len() >= max {
                break;
            }
            let Some(ended) = applied.generations.first_undrained(consumer_group, topic) else { continue };
            if !applied.has_drained(Some(consumer_group), topic, ended.generation) {
                continue;
            }
            let names = applied.consumer_groups.get(&consumer_group).zip(applied.topics.get(&topic));
            let Some((group, of_topic)) = names else { continue };
            let drained = applied.generations.drained.get(&(consumer_group, topic));
            candidates.push(DrainCandidate {
                consumer_group,
                consumer_group_name: group.name.clone(),
                topic,
                topic_name: of_topic.name.clone(),
                generation: ended.generation,
                resets: drained.map_or(0, |drained| drained.resets),
                layout: Arc::clone(&ended.layout),
            });
        }
        candidates
    }

    /// The groups with order that have received from the topic here and have generations of it before
    /// them.
    pub fn draining(&self, topic: TopicId) -> Vec<Draining> {
        let applied = self.applied_state();
        undrained(&applied)
            .filter(|key| key.1 == topic && applied.subscriptions.contains_key(key))
            .filter_map(|(group, topic)| {
                let ended = applied.generations.first_undrained(group, topic)?;
                Some(Draining {
                    consumer_group: applied.consumer_groups.get(&group)?.name.clone(),
                    generation: ended.generation,
                    left: applied.left_to_drain(group, topic),
                })
            })
            .collect()
    }
}

/// Consumer groups with order and topics of which a generation has ended that the group has not drained.
fn undrained(applied: &Applied) -> impl Iterator<Item = (ConsumerGroupId, TopicId)> {
    applied
        .generations
        .topics
        .iter()
        .filter(|(_, generations)| !generations.ended.is_empty())
        .flat_map(move |(&topic, _)| {
            applied.consumer_groups.iter().map(move |(&group, state)| (group, topic, state))
        })
        .filter(|(_, _, group)| group.settings.fifo)
        .map(|(group, topic, _)| (group, topic))
        .filter(move |&(group, topic)| applied.generations.first_undrained(group, topic).is_some())
}

pub(super) fn placement(applied: &Applied, topic: TopicId) -> Option<PlacementView> {
    let generations = applied.generations.topics.get(&topic)?;
    let now = applied.scalars.now;
    let former = generations.ended.iter().filter(|ended| {
        ended.generation < generations.current && now.saturating_ms_since(ended.ended_at) <= WINDOW_MS
    });
    Some(PlacementView {
        generation: generations.current,
        layout: Arc::clone(&generations.layout),
        is_closed: generations.open().is_none(),
        former: former.map(|ended| (ended.generation, Arc::clone(&ended.layout))).collect(),
    })
}

fn growth(applied: &Applied, topic: TopicId) -> Option<Growth> {
    let generations = applied.generations.topics.get(&topic)?;
    let next = generations.next.as_ref()?;
    Some(Growth {
        topic,
        name: applied.topics.get(&topic)?.name.clone(),
        current: generations.current,
        former: Arc::clone(&generations.layout),
        next: next.generation,
        layout: Arc::clone(&next.layout),
        is_closed: next.is_closed,
    })
}
