//! A batch of messages of several topics: stored whole by its entry, or not at all.
//!
//! | What the state says | Answer | Stored |
//! |---|---|---|
//! | every id is in the message-id window | the first places: a repeat | nothing |
//! | some ids are, others are not | how many, and the first of them | nothing |
//! | a topic or queue is unknown, or a topic is placed by another generation now | refused | nothing |
//! | the same id twice in one topic | refused as malformed: the edge lets none through | nothing |
//! | anything else | a place for each message | all |
//!
//! A part that is stored already cannot be made part of this entry. Storing the rest would tear apart
//! what the producer wanted to appear together, so it is told instead. The ids of a batch enter the
//! window together and are too old together; only a window that is full of newer ids lets go of them one
//! by one, and a repeat that comes so late is refused rather than stored twice.

use std::collections::BTreeSet;

use ledgermq_common::{PhysicalOffset, QueueId, QueueOffset};

use super::Applied;
use super::apply::Effects;
use super::window::{WindowEntry, window_key};
use crate::defects::{self, Defect};
use crate::state::answer::{Answer, BatchPartlyStored, Refusal, StoredAt};
use crate::state::command::{AppendedMessage, StoreBatch};
use crate::state::consume_queue::IndexEntry;
use crate::state::names::TopicId;

impl Applied {
    pub(super) fn store_batch(
        &mut self,
        command: &StoreBatch,
        payload_at: PhysicalOffset,
        effects: &mut Effects,
    ) -> Result<Answer, Refusal> {
        let mut keys = Vec::with_capacity(command.messages.len());
        let mut known = Vec::new();
        let mut first_known = None;
        for ((topic, message), at) in command.messages.iter().zip(0u32..) {
            let key = window_key(*topic, &message.id);
            if let Some(first) = self.window.find(key) {
                first_known.get_or_insert(at);
                known.push(StoredAt {
                    queue: QueueId(first.queue),
                    offset: QueueOffset(first.offset),
                    stored_at: first.stored_at,
                    repeated: true,
                });
            }
            keys.push(key);
        }
        if keys.iter().collect::<BTreeSet<_>>().len() < keys.len() {
            return Err(Refusal::Malformed);
        }
        if known.len() == keys.len() {
            return Ok(Answer::Stored(known));
        }
        if let Some(first) = first_known.filter(|_| !defects::is_active(Defect::BatchInPart)) {
            let stored = u32::try_from(known.len()).unwrap_or(u32::MAX);
            return Ok(Answer::BatchPartlyStored(BatchPartlyStored { stored, first }));
        }
        self.check_batch(command)?;
        let cut_at = if defects::is_active(Defect::BatchCutShort) { keys.len() - 1 } else { keys.len() };
        let places = command.messages.iter().zip(keys).enumerate();
        let places = places.map(|(at, ((topic, message), key))| {
            if at > 0 && at >= cut_at {
                return self.only_answered(*topic, message);
            }
            self.store_new(*topic, message, key, payload_at, effects)
        });
        places.collect::<Result<_, _>>().map(Answer::Stored)
    }

    /// Only in a broken build: the place a message would have.
    fn only_answered(&self, topic: TopicId, message: &AppendedMessage) -> Result<StoredAt, Refusal> {
        let queue = message.queue;
        let range = self.range(topic, queue.get()).ok_or(Refusal::QueueUnknown)?;
        let stored_at = self.scalars.now;
        Ok(StoredAt { queue, offset: QueueOffset(range.max), stored_at, repeated: false })
    }

    /// What would keep any message of the batch from being stored, found before one is.
    fn check_batch(&self, command: &StoreBatch) -> Result<(), Refusal> {
        for of in &command.topics {
            if !self.topics.contains_key(&of.topic) {
                return Err(Refusal::TopicUnknown);
            }
            if self.generations.open(of.topic) != Some(of.generation) {
                return Err(Refusal::GenerationEnded);
            }
        }
        for (topic, message) in &command.messages {
            let topic = self.topics.get(topic).ok_or(Refusal::TopicUnknown)?;
            if message.queue.get() as usize >= topic.queues.len() {
                return Err(Refusal::QueueUnknown);
            }
        }
        Ok(())
    }

    fn store_new(
        &mut self,
        topic: TopicId,
        message: &AppendedMessage,
        key: u128,
        payload_at: PhysicalOffset,
        effects: &mut Effects,
    ) -> Result<StoredAt, Refusal> {
        let stored_at = self.scalars.now;
        let physical = payload_at
            .checked_add(u64::from(message.record_at))
            .expect("an entry lies inside the CommitLog's range of offsets");
        let record_bytes = u32::try_from(message.record.len()).expect("a command is bounded far below 4 GiB");
        let entry = IndexEntry { physical, record_bytes, tag_code: message.tag_code, stored_at };
        let queue = message.queue;
        if defects::is_active(Defect::BatchInPart)
            && let Some(first) = self.window.find(key)
        {
            let (queue, offset) = (QueueId(first.queue), QueueOffset(first.offset));
            return Ok(StoredAt { queue, offset, stored_at: first.stored_at, repeated: true });
        }
        let offset = self.make_visible(topic, queue, entry, effects).ok_or(Refusal::QueueUnknown)?;
        self.window.insert(WindowEntry { key, queue: queue.get(), offset: offset.get(), stored_at });
        self.keys.add(topic, &message.id, message.properties(), physical, record_bytes);
        Ok(StoredAt { queue, offset, stored_at, repeated: false })
    }
}
