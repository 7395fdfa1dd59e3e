//! Where things are: groups, their members, and the topics they carry.
//!
//! A broker answers from its configuration and the applied state of the groups it hosts; a
//! nameserver from what leaders registered. Neither answer names a leader: routes must not change
//! when one does.

use std::collections::BTreeMap;
use std::sync::Arc;

use ledgermq_common::{ConsumerGroupName, GroupId, GroupName, NodeId, TopicName};
use tokio::sync::watch;

use crate::group_call::{ConsumerGroupDescription, TopicDescription};

pub trait Topology: Send + Sync + 'static {
    /// All groups of the cluster. `None` while they are not all known: the edge then holds
    /// requests, because a partial route is worse than a late one.
    fn cluster(&self) -> Option<Arc<ClusterView>>;

    /// What is known here about a topic in one group, without asking anybody.
    fn topic(&self, group: &GroupName, topic: &TopicName) -> TopicKnowledge;

    /// The settings of a consumer group, if they are known here.
    fn consumer_group(&self, consumer_group: &ConsumerGroupName) -> Option<ConsumerGroupDescription>;

    /// Whether a topic that is not there is created by its first use.
    fn auto_create_topics(&self) -> bool;

    /// Changes value whenever `cluster` or `topic` may answer differently.
    fn changes(&self) -> watch::Receiver<u64>;
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClusterView {
    pub groups: BTreeMap<GroupName, GroupView>,
}

impl ClusterView {
    pub fn group_by_id(&self, id: GroupId) -> Option<&GroupView> {
        self.groups.values().find(|group| group.id == id)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupView {
    pub id: GroupId,
    pub name: GroupName,
    /// In a fixed order.
    pub members: Vec<MemberView>,
    /// The leader of the newest term heard of; a hint for where to begin.
    pub leader_hint: Option<NodeId>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberView {
    pub node: NodeId,
    /// `host:port` where other nodes reach it.
    pub peer_address: String,
    /// `host:port` where clients reach it.
    pub client_address: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TopicKnowledge {
    Known(TopicDescription),
    /// Not in the state here. The state may be behind the leader's.
    Absent,
    /// Nothing about this group's topics is known here.
    Unknown,
}
