//! Where groups and topics are, as a broker knows it: groups from the configuration, topics from
//! the applied state of the groups it carries. Never who leads: routes must not change with that.

use std::collections::BTreeMap;
use std::sync::Arc;

use ledgermq_common::{ConsumerGroupName, GroupId, GroupName, NodeId, TopicName};
use ledgermq_edge::group_call::ConsumerGroupDescription;
use ledgermq_edge::topology::{ClusterView, GroupView, MemberView, TopicKnowledge, Topology};
use tokio::sync::watch;

use crate::config::{BrokerConfig, GroupEntry};
use crate::execution::{Executor, describe_consumer_group, describe_topic};

pub struct BrokerTopology {
    view: Arc<ClusterView>,
    executor: Arc<Executor>,
    auto_create_topics: bool,
    /// The configuration does not change while the process runs.
    changes: watch::Sender<u64>,
}

impl BrokerTopology {
    pub fn new(config: &BrokerConfig, executor: Arc<Executor>) -> Self {
        let groups = config.groups.iter().map(|group| view_of(config, group));
        Self {
            view: Arc::new(ClusterView {
                groups: groups.map(|group| (group.name.clone(), group)).collect::<BTreeMap<_, _>>(),
            }),
            executor,
            auto_create_topics: config.topics.auto_create,
            changes: watch::Sender::new(0),
        }
    }

    pub fn view(&self) -> &Arc<ClusterView> {
        &self.view
    }
}

impl Topology for BrokerTopology {
    fn cluster(&self) -> Option<Arc<ClusterView>> {
        Some(Arc::clone(&self.view))
    }

    fn topic(&self, group: &GroupName, topic: &TopicName) -> TopicKnowledge {
        let Some(hosted) = self.executor.group(group) else { return TopicKnowledge::Unknown };
        match hosted.state().topic(topic.as_str()).as_ref().and_then(describe_topic) {
            Some(description) => TopicKnowledge::Known(description),
            None => TopicKnowledge::Absent,
        }
    }

    fn consumer_group(&self, consumer_group: &ConsumerGroupName) -> Option<ConsumerGroupDescription> {
        self.executor.groups().find_map(|hosted| {
            let view = hosted.state().consumer_group(consumer_group.as_str())?;
            Some(describe_consumer_group(&view, &hosted.state().group_attributes(view.id)))
        })
    }

    fn auto_create_topics(&self) -> bool {
        self.auto_create_topics
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

fn view_of(config: &BrokerConfig, group: &GroupEntry) -> GroupView {
    let members = group.members.iter().map(|member| {
        let entry = config.nodes.iter().find(|node| node.id == *member);
        let entry = entry.expect("a validated configuration lists every member");
        MemberView {
            node: NodeId(entry.id),
            peer_address: entry.peer.clone(),
            client_address: entry.client.clone(),
        }
    });
    GroupView {
        id: GroupId(group.id),
        name: GroupName::parse(&group.name).expect("a validated configuration has legal names"),
        members: members.collect(),
        leader_hint: None,
    }
}
