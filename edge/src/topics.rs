//! Which groups carry a topic.
//!
//! What the state here says about a group comes first. A group about which it says nothing is asked
//! through its leader, and the answer is remembered: while it has no leader, the old answer is still
//! the best one, so routes do not change in an election.
//!
//! | Situation | Answer |
//! |---|---|
//! | known in some group here | those groups, and those that said so when asked |
//! | known nowhere here | every group's leader is asked, and creates it where that is wanted and allowed |
//! | asked everywhere, found nowhere | TOPIC_NOT_FOUND |
//! | not found, and a group could not be asked | held, then a "not now" code: never TOPIC_NOT_FOUND |
//!
//! Routes may be made of a part of the groups. Where a message is *stored* may not: a replica that has
//! just started has not applied its last entries and knows nothing of a topic that its group carries,
//! and a send that passes that group over stores a repeat of what the group holds a second time. So
//! "not there" is believed of a leader only ([`Edge::carrier`], [`Edge::locate_every`]).

use std::time::Duration;

use futures_util::future::join_all;
use ledgermq_common::{GroupName, TopicName};
use ledgermq_proto::rocketmq::Code;
use tokio::time::Instant;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::codes::{CallFailed, topic_not_found};
use crate::context::CallContext;
use crate::edge::{Edge, answer_by};
use crate::group_call::{DescribeTopic, GroupRequest, GroupResponse, Refused, TopicDescription};
use crate::topology::TopicKnowledge;

/// Answers remembered about groups that are not hosted here.
pub const TOPICS_REMEMBERED_MAX: usize = 100_000;
/// A remembered answer older than this is asked for again, in the background.
const FRESH_FOR: Duration = Duration::from_secs(30);
/// "Not there" is believed for a shorter time: somebody may be creating it.
const ABSENCE_FRESH_FOR: Duration = Duration::from_secs(2);

pub(crate) struct CachedTopic {
    description: Option<TopicDescription>,
    asked_at: Instant,
}

/// A topic in one group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostedTopic {
    pub group: GroupName,
    pub description: TopicDescription,
}

impl Edge {
    /// The groups that carry `topic`, by name; never empty.
    pub(crate) async fn locate(
        &self,
        context: &CallContext,
        topic: &TopicName,
    ) -> Result<Vec<HostedTopic>, Refused> {
        let cluster = self.shared.caller.cluster(answer_by(context)).await?;
        let mut found = Vec::new();
        let (mut absent, mut unknown) = (Vec::new(), Vec::new());
        for group in cluster.groups.keys() {
            match self.shared.topology.topic(group, topic) {
                TopicKnowledge::Known(description) => {
                    found.push(HostedTopic { group: group.clone(), description });
                }
                TopicKnowledge::Absent => absent.push(group.clone()),
                TopicKnowledge::Unknown => match self.remembered(context, group, topic) {
                    Some(Some(description)) => found.push(HostedTopic { group: group.clone(), description }),
                    Some(None) => absent.push(group.clone()),
                    None => unknown.push(group.clone()),
                },
            }
        }
        if !found.is_empty() && unknown.is_empty() {
            return Ok(found);
        }
        let create_if_missing = found.is_empty() && self.shared.topology.auto_create_topics();
        let to_ask = if found.is_empty() { [unknown, absent].concat() } else { unknown };
        let asked = to_ask.iter().map(|group| self.ask(context, group, topic, create_if_missing));
        let mut failed = None;
        for (group, answer) in to_ask.iter().zip(join_all(asked).await) {
            match answer {
                Ok(Some(description)) => found.push(HostedTopic { group: group.clone(), description }),
                Ok(None) => {}
                Err(refused) => failed = Some(refused),
            }
        }
        match (found.is_empty(), failed) {
            (false, _) => {
                found.sort_by(|a, b| a.group.cmp(&b.group));
                Ok(found)
            }
            (true, Some(failed)) => Err(failed),
            (true, None) => Err(topic_not_found(topic.as_str())),
        }
    }

    /// The groups that carry `topic`, by name; never empty, and never a part of them: what a replica here
    /// does not know of is asked for at the leader, and a group that cannot be asked fails the whole.
    pub(crate) async fn locate_every(
        &self,
        context: &CallContext,
        topic: &TopicName,
    ) -> Result<Vec<HostedTopic>, Refused> {
        let cluster = self.shared.caller.cluster(answer_by(context)).await?;
        let described = cluster.groups.keys().map(|group| self.described_by(context, group, topic));
        let mut found = Vec::new();
        for (group, description) in cluster.groups.keys().zip(join_all(described).await) {
            if let Some(description) = description? {
                found.push(HostedTopic { group: group.clone(), description });
            }
        }
        if found.is_empty() {
            return Err(topic_not_found(topic.as_str()));
        }
        Ok(found)
    }

    /// The group that takes a message with this id: of those that carry the topic, the first in an order
    /// that the id alone decides. A repeat, through whichever node, meets the message-id window that
    /// remembers its first try; and a group without a leader keeps nobody from the groups before it.
    ///
    /// A group that gets the topic later takes over its share of the ids from then on: a repeat of a
    /// message sent before that may be stored there again.
    pub(crate) async fn carrier(
        &self,
        context: &CallContext,
        topic: &TopicName,
        message_id: &str,
    ) -> Result<HostedTopic, Refused> {
        let cluster = self.shared.caller.cluster(answer_by(context)).await?;
        let order = order_for(message_id, cluster.groups.keys());
        for group in &order {
            if let Some(description) = self.described_by(context, group, topic).await? {
                return Ok(HostedTopic { group: group.clone(), description });
            }
        }
        let made = self.create_everywhere(context, &order, topic).await?;
        made.into_iter().next().ok_or_else(|| topic_not_found(topic.as_str()))
    }

    /// The topic as `group` has it; what is not known here its leader says.
    pub(crate) async fn described_by(
        &self,
        context: &CallContext,
        group: &GroupName,
        topic: &TopicName,
    ) -> Result<Option<TopicDescription>, Refused> {
        match self.shared.topology.topic(group, topic) {
            TopicKnowledge::Known(description) => Ok(Some(description)),
            TopicKnowledge::Absent | TopicKnowledge::Unknown => {
                match self.remembered(context, group, topic) {
                    Some(known) => Ok(known),
                    None => self.ask(context, group, topic, false).await,
                }
            }
        }
    }

    /// Makes a topic that is nowhere, where that is allowed; in the order of `groups`.
    ///
    /// In all of them before the first message is stored: with a part of the groups its repeat could go
    /// to another one.
    pub(crate) async fn create_everywhere(
        &self,
        context: &CallContext,
        groups: &[GroupName],
        topic: &TopicName,
    ) -> Result<Vec<HostedTopic>, Refused> {
        if !self.shared.topology.auto_create_topics() {
            return Err(topic_not_found(topic.as_str()));
        }
        let asked = groups.iter().map(|group| self.ask(context, group, topic, true));
        let mut made = Vec::new();
        for (group, answer) in groups.iter().zip(join_all(asked).await) {
            if let Some(description) = answer? {
                made.push(HostedTopic { group: group.clone(), description });
            }
        }
        Ok(made)
    }

    /// The groups that are known here to carry `topic`, by name, without asking anybody; those about
    /// which nothing is known are asked in the background.
    pub(crate) fn located(&self, context: &CallContext, topic: &TopicName) -> Vec<HostedTopic> {
        let Some(cluster) = self.shared.topology.cluster() else { return Vec::new() };
        let known = cluster.groups.keys().filter_map(|group| {
            let description = match self.shared.topology.topic(group, topic) {
                TopicKnowledge::Known(description) => Some(description),
                TopicKnowledge::Absent => None,
                TopicKnowledge::Unknown => self.remembered(context, group, topic).unwrap_or_else(|| {
                    self.refresh(context, group, topic);
                    None
                }),
            };
            description.map(|description| HostedTopic { group: group.clone(), description })
        });
        known.collect()
    }

    /// The leader of `group` says that it does not carry `topic`.
    pub(crate) fn forget_topic(&self, group: &GroupName, topic: &TopicName) {
        self.shared.topics.lock().remove(&(topic.clone(), group.clone()));
    }

    /// `None`: not remembered; `Some(None)`: it was not there a moment ago.
    fn remembered(
        &self,
        context: &CallContext,
        group: &GroupName,
        topic: &TopicName,
    ) -> Option<Option<TopicDescription>> {
        let mut topics = self.shared.topics.lock();
        let cached = topics.get_mut(&(topic.clone(), group.clone()))?;
        let age = cached.asked_at.elapsed();
        match &cached.description {
            None => (age < ABSENCE_FRESH_FOR).then_some(None),
            Some(description) => {
                let description = description.clone();
                if age >= FRESH_FOR {
                    // One refresh per period, however many requests find it stale.
                    cached.asked_at = Instant::now();
                    self.refresh(context, group, topic);
                }
                Some(Some(description))
            }
        }
    }

    fn refresh(&self, context: &CallContext, group: &GroupName, topic: &TopicName) {
        let (edge, group, topic) = (self.clone(), group.clone(), topic.clone());
        let mut context = context.clone();
        context.deadline = Instant::now() + FRESH_FOR / 2;
        tokio::spawn(async move {
            // A failure leaves the old answer in place, which is the point of remembering it.
            let _ = edge.ask(&context, &group, &topic, false).await;
        });
    }

    pub(crate) async fn ask(
        &self,
        context: &CallContext,
        group: &GroupName,
        topic: &TopicName,
        create_if_missing: bool,
    ) -> Result<Option<TopicDescription>, Refused> {
        let request = GroupRequest::DescribeTopic(DescribeTopic { name: topic.clone(), create_if_missing });
        let description = match self.call(group, context, &request).await? {
            GroupResponse::Topics(mut topics) => topics.pop(),
            GroupResponse::Refused(refused) if refused.code == Code::TopicNotFound => None,
            GroupResponse::Refused(refused) => return Err(refused),
            _ => return Err(CallFailed::WrongAnswer { group: group.clone() }.into()),
        };
        let mut topics = self.shared.topics.lock();
        if topics.len() >= TOPICS_REMEMBERED_MAX {
            // Names that do not exist must not push out the others for long; starting over costs one
            // question per topic in use.
            topics.clear();
        }
        let cached = CachedTopic { description: description.clone(), asked_at: Instant::now() };
        topics.insert((topic.clone(), group.clone()), cached);
        Ok(description)
    }
}

/// Rendezvous hashing: with one group more or less, the ids of the others stay where they are.
pub(crate) fn order_for<'a>(message_id: &str, groups: impl Iterator<Item = &'a GroupName>) -> Vec<GroupName> {
    let mut weighed: Vec<_> = groups
        .map(|group| {
            let seed = xxh3_64(group.as_str().as_bytes());
            (xxh3_64_with_seed(message_id.as_bytes(), seed), group)
        })
        .collect();
    weighed.sort_unstable();
    weighed.into_iter().rev().map(|(_, group)| group.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_spread_over_the_groups_and_stay_when_one_is_added() {
        let names: Vec<_> =
            (1..=4).map(|number| GroupName::parse(&format!("group-{number}")).expect("a name")).collect();
        let first = |id: &str, groups: &[GroupName]| order_for(id, groups.iter())[0].clone();
        let ids: Vec<_> = (0..4_000).map(|number| format!("message {number}")).collect();
        for name in &names {
            let share = ids.iter().filter(|id| first(id, &names) == *name).count();
            assert!((850..1_150).contains(&share), "{name} takes {share} of {}", ids.len());
        }
        for id in &ids {
            let (three, four) = (first(id, &names[..3]), first(id, &names));
            assert!(four == three || four == names[3], "{id} moved from {three} to {four}");
        }
    }
}
