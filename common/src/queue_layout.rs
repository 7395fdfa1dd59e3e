//! The queues of a topic with order over all broker groups, and the place of a message group in them.
//!
//! Part of what is persisted: another way to find the place would tear message groups apart.

use crate::{GroupName, QueueId};

/// Broker groups of one topic.
pub const LAYOUT_GROUPS_MAX: usize = 1_024;

/// How many queues each broker group has: at least one group, by name, each with at least one queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueLayout(Vec<(GroupName, u32)>);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QueueLayoutError {
    #[error("a layout of queues names no broker group")]
    Empty,
    #[error("a layout of queues names {groups} broker groups; the limit is {LAYOUT_GROUPS_MAX}")]
    TooManyGroups { groups: usize },
    #[error("a layout of queues names broker group {group} twice")]
    Repeated { group: GroupName },
    #[error("a layout of queues gives broker group {group} no queue")]
    NoQueues { group: GroupName },
}

impl QueueLayout {
    pub fn new(groups: impl IntoIterator<Item = (GroupName, u32)>) -> Result<Self, QueueLayoutError> {
        let mut groups: Vec<(GroupName, u32)> = groups.into_iter().collect();
        groups.sort();
        if groups.is_empty() {
            return Err(QueueLayoutError::Empty);
        }
        if groups.len() > LAYOUT_GROUPS_MAX {
            return Err(QueueLayoutError::TooManyGroups { groups: groups.len() });
        }
        if let Some((group, _)) = groups.iter().find(|(_, queues)| *queues == 0) {
            return Err(QueueLayoutError::NoQueues { group: group.clone() });
        }
        let twice = groups.iter().zip(groups.iter().skip(1)).find(|(one, next)| one.0 == next.0);
        if let Some(((group, _), _)) = twice {
            return Err(QueueLayoutError::Repeated { group: group.clone() });
        }
        Ok(Self(groups))
    }

    /// By name.
    pub fn groups(&self) -> &[(GroupName, u32)] {
        &self.0
    }

    /// The broker group that leads the growth of the topic.
    pub fn home(&self) -> &GroupName {
        &self.0.first().expect("a layout has a group").0
    }

    /// 0 for a group it does not name.
    pub fn queues_of(&self, group: &GroupName) -> u32 {
        self.0.iter().find(|(name, _)| name == group).map_or(0, |(_, queues)| *queues)
    }

    /// The place of a message group, by its hash, counted through the groups by name.
    pub fn place(&self, hash: u64) -> (&GroupName, QueueId) {
        let queues: u64 = self.0.iter().map(|(_, queues)| u64::from(*queues)).sum();
        let mut place = hash % queues;
        for (group, queues) in &self.0 {
            match u32::try_from(place) {
                Ok(queue) if queue < *queues => return (group, QueueId(queue)),
                _ => place -= u64::from(*queues),
            }
        }
        unreachable!("the place lies within the sum")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(name: &str) -> GroupName {
        GroupName::parse(name).expect("a name")
    }

    #[test]
    fn places_are_counted_through_the_groups_by_name() {
        let layout = QueueLayout::new([(group("h"), 2), (group("g"), 3)]).expect("a layout");
        assert_eq!(layout.home().as_str(), "g");
        let places: Vec<(&str, u32)> = (0..6)
            .map(|hash| layout.place(hash))
            .map(|(group, queue)| (group.as_str(), queue.get()))
            .collect();
        assert_eq!(places, [("g", 0), ("g", 1), ("g", 2), ("h", 0), ("h", 1), ("g", 0)]);
    }

    #[test]
    fn a_layout_without_a_queue_or_with_a_group_twice_is_refused() {
        assert_eq!(QueueLayout::new([]), Err(QueueLayoutError::Empty));
        let twice = QueueLayout::new([(group("g"), 1), (group("g"), 2)]);
        assert_eq!(twice, Err(QueueLayoutError::Repeated { group: group("g") }));
        assert_eq!(
            QueueLayout::new([(group("g"), 0)]),
            Err(QueueLayoutError::NoQueues { group: group("g") })
        );
    }
}
