//! The generations of topics with order: by which list of queues sends are placed, where earlier lists
//! end, and how far each consumer group has drained them.
//!
//! | Step, an entry in each broker group | What changes |
//! |---|---|
//! | prepare | the queues of the next generation exist, empty |
//! | close | the present generation has an end in every queue; no send is stored until the next opens |
//! | open | sends placed by the next generation are stored |
//! | drain | one consumer group may receive what lies behind the ends of one generation |
//!
//! Invariants, kept here whatever a driver proposes:
//! - a message is stored under the generation it was placed by, or not at all; one that is in the
//!   message-id window gets its first answer under any generation;
//! - the ends of a generation never change, and those of a later one are not before them;
//! - a consumer group with order gets nothing behind the ends of a generation it has not drained;
//! - every step may be proposed again, late or twice, and then does nothing.
//!
//! A topic that never grew has no record: it is in generation 0, all of whose queues count.
//!
//! | Failure | Consequence |
//! |---|---|
//! | a step out of its order | refused |
//! | a step of a generation that was opened before | answered as done |
//! | another layout for the generation under preparation | refused: the first one is what all broker groups get |
//! | a drain asked before a reset of the consumer group | not recorded: the answers are older than the reset |

use std::collections::BTreeMap;
use std::sync::Arc;

use ledgermq_common::clock::UnixMillis;
use ledgermq_common::{PhysicalOffset, QueueLayout};

use super::apply::{Effects, check_queues};
use super::window::{WindowEntry, window_key};
use super::{Applied, QueueRange, Subscription};
use crate::defects::{self, Defect};
use crate::state::answer::{Answer, Refusal};
use crate::state::command::{
    AppendInOrder, AppendMessages, CloseGeneration, DrainGeneration, OpenGeneration, PrepareGeneration,
};
use crate::state::names::{ConsumerGroupId, Generation, MessageType, TopicId};
use crate::state::records::RecordKey;

/// Ended generations of one topic that are kept: each has an end for every queue.
pub const GENERATIONS_MAX: usize = 64;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Generations {
    pub(crate) current: Generation,
    pub(crate) layout: Arc<QueueLayout>,
    pub(crate) next: Option<NextGeneration>,
    /// Oldest first.
    pub(crate) ended: Vec<EndedGeneration>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NextGeneration {
    pub(crate) generation: Generation,
    pub(crate) layout: Arc<QueueLayout>,
    /// The present generation has ended here.
    pub(crate) is_closed: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EndedGeneration {
    pub(crate) generation: Generation,
    pub(crate) layout: Arc<QueueLayout>,
    pub(crate) ended_at: UnixMillis,
    /// By queue; a queue beyond them belongs to later generations only.
    pub(crate) ends: Vec<u64>,
}

/// How far a consumer group is through the generations of a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Drained {
    /// Generations below this one are drained in all broker groups.
    pub(crate) below: Generation,
    /// How often the group was reset in the topic.
    pub(crate) resets: u32,
}

/// The generations of all topics, and how far each consumer group has drained them.
#[derive(Debug, Default)]
pub(crate) struct AllGenerations {
    pub(crate) topics: BTreeMap<TopicId, Generations>,
    pub(crate) drained: BTreeMap<(ConsumerGroupId, TopicId), Drained>,
}

impl Generations {
    /// The generation by which sends are stored now; `None` between a close and its open.
    pub(crate) fn open(&self) -> Option<Generation> {
        let is_closed = self.next.as_ref().is_some_and(|next| next.is_closed);
        (!is_closed).then_some(self.current)
    }
}

impl EndedGeneration {
    pub(crate) fn end_of(&self, queue: u32) -> u64 {
        self.ends.get(queue as usize).copied().unwrap_or(0)
    }
}

impl AllGenerations {
    pub(crate) fn open(&self, topic: TopicId) -> Option<Generation> {
        self.topics.get(&topic).map_or(Some(Generation(0)), Generations::open)
    }

    /// The first generation the group has not drained, if one has ended.
    pub(crate) fn first_undrained(&self, group: ConsumerGroupId, topic: TopicId) -> Option<&EndedGeneration> {
        let ended = &self.topics.get(&topic)?.ended;
        let below = self.drained.get(&(group, topic)).map_or(Generation(0), |drained| drained.below);
        ended.iter().find(|ended| ended.generation >= below)
    }

    /// What a group with order may receive of each queue now.
    pub(crate) fn served(&self, group: ConsumerGroupId, topic: TopicId) -> Served<'_> {
        if defects::is_active(Defect::GrowthWithoutDrain) {
            return Served(None);
        }
        Served(self.first_undrained(group, topic))
    }

    /// Only in a broken build: what an ended generation stored is not found again.
    pub(crate) fn misses(&self, topic: TopicId, stored: &WindowEntry) -> bool {
        defects::is_active(Defect::RepeatByNewGeneration)
            && self
                .topics
                .get(&topic)
                .and_then(|generations| generations.ended.last())
                .is_some_and(|ended| stored.offset < ended.end_of(stored.queue))
    }
}

/// Bounds queues to what the first undrained generation holds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Served<'a>(Option<&'a EndedGeneration>);

impl Served<'_> {
    pub(crate) fn bound(&self, queue: u32, range: QueueRange) -> QueueRange {
        match self.0 {
            None => range,
            Some(undrained) => {
                QueueRange { min: range.min, max: range.max.min(undrained.end_of(queue).max(range.min)) }
            }
        }
    }
}

impl Applied {
    pub(super) fn prepare_generation(&mut self, command: PrepareGeneration) -> Result<Answer, Refusal> {
        let PrepareGeneration { topic: id, generation, queues, former, layout } = command;
        let topic = self.topics.get_mut(&id).ok_or(Refusal::TopicUnknown)?;
        if topic.settings.message_type != MessageType::Fifo {
            return Err(Refusal::TopicWithoutOrder);
        }
        check_queues(queues)?;
        if generation == Generation(0) {
            return Err(Refusal::GenerationNotPrepared);
        }
        if let Some(generations) = self.generations.topics.get(&id) {
            if generation <= generations.current {
                return Ok(Answer::Generation(generations.current));
            }
            match &generations.next {
                Some(next) if next.generation == generation && next.layout == layout => {
                    return Ok(Answer::Generation(generations.current));
                }
                Some(_) => return Err(Refusal::GenerationUnderWay),
                None if generation != generations.current.next() => {
                    return Err(Refusal::GenerationNotPrepared);
                }
                None => {}
            }
            if generations.ended.len() >= GENERATIONS_MAX {
                return Err(Refusal::TooManyGenerations);
            }
        }
        if queues < topic.settings.queues {
            return Err(Refusal::QueuesCannotShrink);
        }
        topic.settings.queues = queues;
        topic.queues.resize(queues as usize, QueueRange::default());
        // A broker group that joins the topic later than generation 0 begins with the one before.
        let generations = self.generations.topics.entry(id).or_insert_with(|| Generations {
            current: generation.before(),
            layout: former,
            next: None,
            ended: Vec::new(),
        });
        generations.next = Some(NextGeneration { generation, layout, is_closed: false });
        let current = generations.current;
        self.dirty.insert(RecordKey::Generations(id));
        self.mark_topic_dirty(id, queues);
        Ok(Answer::Generation(current))
    }

    pub(super) fn close_generation(&mut self, command: CloseGeneration) -> Result<Answer, Refusal> {
        let CloseGeneration { topic: id, generation } = command;
        let topic = self.topics.get(&id).ok_or(Refusal::TopicUnknown)?;
        let generations = self.generations.topics.get_mut(&id).ok_or(Refusal::GenerationNotPrepared)?;
        let current = generations.current;
        if generation < current {
            return Ok(Answer::Generation(current));
        }
        match &mut generations.next {
            Some(next) if generation == current => {
                if next.is_closed {
                    return Ok(Answer::Generation(current));
                }
                next.is_closed = true;
            }
            _ => return Err(Refusal::GenerationNotPrepared),
        }
        // One that holds nothing any more holds nobody up.
        let queues = &topic.queues;
        generations.ended.retain(|ended| {
            ended.ends.iter().zip(queues).any(|(end, range)| *end > range.min)
                || self.scalars.now.saturating_ms_since(ended.ended_at) <= WINDOW_MS
        });
        generations.ended.push(EndedGeneration {
            generation,
            layout: Arc::clone(&generations.layout),
            ended_at: self.scalars.now,
            ends: topic.queues.iter().map(|range| range.max).collect(),
        });
        self.dirty.insert(RecordKey::Generations(id));
        Ok(Answer::Generation(current))
    }

    pub(super) fn open_generation(&mut self, command: OpenGeneration) -> Result<Answer, Refusal> {
        let OpenGeneration { topic: id, generation } = command;
        if !self.topics.contains_key(&id) {
            return Err(Refusal::TopicUnknown);
        }
        let generations = self.generations.topics.get_mut(&id).ok_or(Refusal::GenerationNotPrepared)?;
        if generation <= generations.current {
            return Ok(Answer::Generation(generations.current));
        }
        match generations.next.take() {
            Some(next)
                if next.generation == generation
                    && (next.is_closed || defects::is_active(Defect::OpenBeforeClosed)) =>
            {
                generations.current = next.generation;
                generations.layout = next.layout;
            }
            next => {
                let refusal = match &next {
                    Some(next) if next.generation == generation => Refusal::GenerationNotClosed,
                    _ => Refusal::GenerationNotPrepared,
                };
                generations.next = next;
                return Err(refusal);
            }
        }
        self.dirty.insert(RecordKey::Generations(id));
        Ok(Answer::Generation(generation))
    }

    /// Recorded only if it still holds here; what the other broker groups said was asked for after
    /// `resets` resets.
    pub(super) fn drain_generation(
        &mut self,
        command: DrainGeneration,
        effects: &mut Effects,
    ) -> Result<Answer, Refusal> {
        let DrainGeneration { consumer_group, topic, generation, resets } = command;
        if !self.consumer_groups.contains_key(&consumer_group) {
            return Err(Refusal::ConsumerGroupUnknown);
        }
        if !self.topics.contains_key(&topic) {
            return Err(Refusal::TopicUnknown);
        }
        let before = self.generations.drained.get(&(consumer_group, topic)).copied().unwrap_or_default();
        if before.below > generation {
            return Ok(Answer::Drained(true));
        }
        if before.resets != resets || !self.has_drained(Some(consumer_group), topic, generation) {
            return Ok(Answer::Drained(false));
        }
        let drained = Drained { below: generation.next(), ..before };
        self.generations.drained.insert((consumer_group, topic), drained);
        self.dirty.insert(RecordKey::Drained(consumer_group, topic));
        effects.released.insert((consumer_group, topic));
        Ok(Answer::Drained(true))
    }

    /// Whether the group has consumed everything of this broker group up to the end of `generation`.
    /// Nobody has consumed a generation that has not ended. A group that is not known here has
    /// consumed nothing.
    pub(crate) fn has_drained(
        &self,
        group: Option<ConsumerGroupId>,
        topic: TopicId,
        generation: Generation,
    ) -> bool {
        let (Some(state), Some(generations)) = (self.topics.get(&topic), self.generations.topics.get(&topic))
        else {
            return false;
        };
        let ended = generations.ended.iter().take_while(|ended| ended.generation <= generation).last();
        let Some(ended) = ended else {
            // Forgotten, because it holds nothing any more; or still to come.
            return generations.current > generation;
        };
        if ended.generation < generation && generations.current <= generation {
            return false;
        }
        let subscription = group.and_then(|group| self.subscriptions.get(&(group, topic)));
        (0u32..).zip(&ended.ends).zip(&state.queues).all(|((queue, &end), range)| {
            has_consumed(subscription, queue, QueueRange { min: range.min, max: end })
        })
    }

    /// What is left of the topic's messages before the ends of `generation` in this broker group.
    pub(crate) fn left_to_drain(&self, group: ConsumerGroupId, topic: TopicId) -> u64 {
        let Some(ended) = self.generations.first_undrained(group, topic) else { return 0 };
        let Some(state) = self.topics.get(&topic) else { return 0 };
        let subscription = self.subscriptions.get(&(group, topic));
        (0u32..)
            .zip(&ended.ends)
            .zip(&state.queues)
            .map(|((queue, &end), range)| {
                let progress = subscription.and_then(|subscription| subscription.queues.get(&queue));
                match progress {
                    None => end.saturating_sub(range.min),
                    Some(progress) => {
                        let unseen: u64 = progress
                            .unseen(end)
                            .map(|(from, to)| to.min(end).saturating_sub(from.max(range.min)))
                            .sum();
                        unseen + progress.leases.range(..end).count() as u64
                    }
                }
            })
            .sum()
    }

    pub(super) fn append_in_order(
        &mut self,
        command: &AppendInOrder,
        payload_at: PhysicalOffset,
        effects: &mut Effects,
    ) -> Result<Answer, Refusal> {
        let AppendInOrder { generation, append } = command;
        self.check_generation(append, *generation)?;
        self.append(append, payload_at, effects)
    }

    /// Refuses messages that were placed by another generation than the open one, unless they are
    /// stored already.
    pub(super) fn check_generation(
        &self,
        append: &AppendMessages,
        generation: Generation,
    ) -> Result<(), Refusal> {
        if self.generations.open(append.topic) == Some(generation) || self.is_known(append) {
            return Ok(());
        }
        match self.topics.contains_key(&append.topic) {
            true => Err(Refusal::GenerationEnded),
            false => Err(Refusal::TopicUnknown),
        }
    }

    /// Whether every message of the command is in the message-id window.
    fn is_known(&self, append: &AppendMessages) -> bool {
        append
            .messages
            .iter()
            .all(|message| self.window.find(window_key(append.topic, &message.id)).is_some())
    }

    /// A consumer group was moved in the topic: what it had drained it may have before it again.
    pub(super) fn forget_drained(&mut self, group: ConsumerGroupId, topic: TopicId) {
        if !self.generations.topics.contains_key(&topic) {
            return;
        }
        let drained = self.generations.drained.entry((group, topic)).or_default();
        *drained = Drained { below: Generation(0), resets: drained.resets.wrapping_add(1) };
        self.dirty.insert(RecordKey::Drained(group, topic));
    }

    pub(super) fn drop_generations(&mut self, topic: TopicId) {
        if self.generations.topics.remove(&topic).is_some() {
            self.dirty.insert(RecordKey::Generations(topic));
        }
        self.drop_drained(|_, of| of == topic);
    }

    pub(super) fn drop_drained(&mut self, is_gone: impl Fn(ConsumerGroupId, TopicId) -> bool) {
        let gone: Vec<_> =
            self.generations.drained.keys().filter(|key| is_gone(key.0, key.1)).copied().collect();
        for key in gone {
            self.generations.drained.remove(&key);
            self.dirty.insert(RecordKey::Drained(key.0, key.1));
        }
    }
}

/// A repeat of a send finds its first place for this long.
pub(crate) const WINDOW_MS: u64 = ledgermq_common::limits::MESSAGE_ID_WINDOW_MS;

fn has_consumed(subscription: Option<&Subscription>, queue: u32, range: QueueRange) -> bool {
    if range.max <= range.min {
        return true;
    }
    let progress = subscription.and_then(|subscription| subscription.queues.get(&queue));
    progress.is_some_and(|progress| {
        progress.unseen(range.max).all(|(from, to)| from >= range.max || to <= range.min)
            && progress.leases.range(..range.max).next().is_none()
    })
}
