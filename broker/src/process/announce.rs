//! Telling the nameservers what this node leads.
//!
//! A group is announced while this node leads it and may answer for it: at once when it begins to,
//! and when its topics change; the client of the registry repeats it as a heartbeat. Nothing waits
//! for a nameserver, and none is needed to serve.

use std::sync::{Arc, Weak};
use std::time::Duration;

use ledgermq_edge::forward::connect::TcpConnect;
use ledgermq_edge::group_call::TopicDescription;
use ledgermq_edge::registry_client::{Announcement, RegistryClient};
use ledgermq_edge::topology::{ClusterView, GroupView};
use tokio::sync::watch;

use crate::execution::{HostedGroup, describe_topic};

/// Topics created one after the other are announced together: the list is made anew each time.
const TOPIC_CHANGES_PAUSE: Duration = Duration::from_millis(200);

/// What does not change about the announcements of one group.
pub struct Subject {
    pub cluster: String,
    pub group: GroupView,
    pub cluster_groups: Vec<String>,
    pub auto_create_topics: bool,
}

impl Subject {
    pub fn of(cluster: &str, view: &ClusterView, hosted: &HostedGroup, auto_create_topics: bool) -> Self {
        Self {
            cluster: cluster.to_owned(),
            group: view.groups.get(hosted.name()).expect("a hosted group is configured").clone(),
            cluster_groups: view.groups.keys().map(ToString::to_string).collect(),
            auto_create_topics,
        }
    }
}

/// Announces until the group is gone or `leaving` turns true.
pub async fn announce(
    hosted: Weak<HostedGroup>,
    subject: Subject,
    nameservers: Vec<String>,
    mut leaving: watch::Receiver<bool>,
) {
    let Some((mut leadership, mut topic_changes)) =
        hosted.upgrade().map(|hosted| (hosted.raft_leadership(), hosted.topic_changes()))
    else {
        return;
    };
    let (sender, announcement) = watch::channel(None);
    let _registry = RegistryClient::start(&nameservers, announcement, Arc::new(TcpConnect));
    let mut version = 0;
    while !*leaving.borrow_and_update() {
        let now = *leadership.borrow_and_update();
        topic_changes.borrow_and_update();
        let Some(hosted) = hosted.upgrade() else { return };
        version += 1;
        sender.send_replace(now.is_leader_ready.then(|| Announcement {
            cluster: subject.cluster.clone(),
            group: subject.group.clone(),
            leader: hosted.group().node(),
            term: now.term,
            cluster_groups: subject.cluster_groups.clone(),
            auto_create_topics: subject.auto_create_topics,
            topics_version: version,
            topics: Arc::new(topics(&hosted)),
        }));
        drop(hosted);
        tokio::select! {
            changed = leadership.changed() => if changed.is_err() { return },
            _ = topic_changes.changed() => tokio::time::sleep(TOPIC_CHANGES_PAUSE).await,
            _ = leaving.changed() => {}
        }
    }
    sender.send_replace(None);
}

fn topics(hosted: &HostedGroup) -> Vec<TopicDescription> {
    hosted.state().topics().iter().filter_map(describe_topic).collect()
}
