//! Filters of consumer groups whose members do not agree.

use super::Applied;
use super::apply::Effects;
use crate::state::answer::{Answer, Refusal};
use crate::state::command::SetFilters;
use crate::state::names::{ConsumerGroupId, TopicId};
use crate::state::records::RecordKey;

impl Applied {
    pub(super) fn set_filters(
        &mut self,
        command: SetFilters,
        effects: &mut Effects,
    ) -> Result<Answer, Refusal> {
        let SetFilters { consumer_group, topic, filters } = command;
        if !self.consumer_groups.contains_key(&consumer_group) {
            return Err(Refusal::ConsumerGroupUnknown);
        }
        if !self.topics.contains_key(&topic) {
            return Err(Refusal::TopicUnknown);
        }
        let key = (consumer_group, topic);
        if filters.len() < 2 {
            self.filters.remove(&key);
        } else {
            self.filters.insert(key, filters);
        }
        self.dirty.insert(RecordKey::Filters(consumer_group, topic));
        // What was left for a member that has gone is for anybody now.
        effects.released.insert(key);
        Ok(Answer::FiltersSet)
    }

    pub(super) fn drop_filters(&mut self, is_gone: impl Fn(ConsumerGroupId, TopicId) -> bool) {
        let gone: Vec<_> = self.filters.keys().filter(|key| is_gone(key.0, key.1)).copied().collect();
        for key in gone {
            self.filters.remove(&key);
            self.dirty.insert(RecordKey::Filters(key.0, key.1));
        }
    }
}
