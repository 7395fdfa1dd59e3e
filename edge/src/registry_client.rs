//! A broker's side of registration: each group this node leads is announced to every nameserver, at
//! once when it becomes leader or its topics change, and as a heartbeat.
//!
//! Nameservers are independent: one that hangs or is down delays no other, and serving clients
//! depends on none.

use std::sync::Arc;
use std::time::Duration;

use ledgermq_proto::registry::registry_client::RegistryClient as RegistryGrpc;
use ledgermq_proto::registry::{
    GroupRoute, Member, RegisterRequest, RegisterResponse, TopicList, TopicRoute,
};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tracing::{debug, info};

use crate::forward::connect::{Connect, open_channel};
use crate::group_call::TopicDescription;
use crate::placement;
use crate::topology::GroupView;

pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(3);
const REGISTER_TIMEOUT: Duration = Duration::from_secs(2);
const RETRY_PAUSE: Duration = Duration::from_millis(250);

/// What the leader of one group tells.
#[derive(Debug, Clone, PartialEq)]
pub struct Announcement {
    pub cluster: String,
    pub group: GroupView,
    pub leader: ledgermq_common::NodeId,
    pub term: ledgermq_common::Term,
    /// Names of all groups of the cluster.
    pub cluster_groups: Vec<String>,
    pub auto_create_topics: bool,
    /// Rises with every change of `topics` while this process leads.
    pub topics_version: u64,
    pub topics: Arc<Vec<TopicDescription>>,
}

/// Announces while it lives.
pub struct RegistryClient {
    stop: CancellationToken,
}

impl RegistryClient {
    /// `announcement` is `None` while this node does not lead the group. Start one per group.
    pub fn start(
        nameservers: &[String],
        announcement: watch::Receiver<Option<Announcement>>,
        connect: Arc<dyn Connect>,
    ) -> Self {
        let stop = CancellationToken::new();
        for nameserver in nameservers {
            let announcer = Announcer {
                nameserver: nameserver.clone(),
                connect: connect.clone(),
                channel: None,
                topics_told: None,
            };
            let (announcement, stop) = (announcement.clone(), stop.clone());
            tokio::spawn(async move {
                tokio::select! {
                    () = announcer.run(announcement) => {}
                    () = stop.cancelled() => {}
                }
            });
        }
        Self { stop }
    }
}

impl Drop for RegistryClient {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

struct Announcer {
    nameserver: String,
    connect: Arc<dyn Connect>,
    channel: Option<RegistryGrpc<Channel>>,
    /// Term and version of the topic list the nameserver has.
    topics_told: Option<(u64, u64)>,
}

impl Announcer {
    async fn run(mut self, mut announcement: watch::Receiver<Option<Announcement>>) {
        let mut reachable = true;
        loop {
            let told = announcement.borrow_and_update().clone();
            let pause = match &told {
                // Nothing to tell until this node leads.
                None => None,
                Some(told) => match self.register(told).await {
                    Ok(again_at_once) => {
                        if !reachable {
                            info!(nameserver = self.nameserver, "nameserver is reachable again");
                        }
                        reachable = true;
                        Some(if again_at_once { Duration::ZERO } else { HEARTBEAT_INTERVAL })
                    }
                    Err(reason) => {
                        if reachable {
                            info!(nameserver = self.nameserver, reason, "nameserver is not reachable");
                        }
                        reachable = false;
                        self.channel = None;
                        self.topics_told = None;
                        Some(RETRY_PAUSE)
                    }
                },
            };
            let pause = async {
                match pause {
                    Some(pause) => sleep(pause).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = announcement.changed() => if changed.is_err() { return },
                () = pause => {}
            }
        }
    }

    /// Returns whether the nameserver wants the topic list that was left out.
    async fn register(&mut self, told: &Announcement) -> Result<bool, String> {
        let version = (told.term.get(), told.topics_version);
        let with_topics = self.topics_told != Some(version);
        let request = request(told, with_topics);
        let response: RegisterResponse = timeout(REGISTER_TIMEOUT, async {
            let client = match &mut self.channel {
                Some(client) => client,
                none => {
                    let channel = open_channel(self.connect.clone(), &self.nameserver)
                        .await
                        .map_err(|error| error.to_string())?;
                    none.insert(RegistryGrpc::new(channel).max_encoding_message_size(REGISTER_BYTES_MAX))
                }
            };
            client
                .register(request)
                .await
                .map(tonic::Response::into_inner)
                .map_err(|status| status.to_string())
        })
        .await
        .map_err(|_| format!("no answer within {} ms", REGISTER_TIMEOUT.as_millis()))??;
        if !response.accepted {
            debug!(nameserver = self.nameserver, newer = response.term, "a newer leader is registered");
        }
        self.topics_told = (!response.topics_wanted).then_some(version);
        Ok(response.topics_wanted && !with_topics)
    }
}

/// A topic takes 40 bytes and its name: enough for several hundred thousand of them.
pub const REGISTER_BYTES_MAX: usize = 64 * 1024 * 1024;

fn request(told: &Announcement, with_topics: bool) -> RegisterRequest {
    RegisterRequest {
        cluster: told.cluster.clone(),
        group: Some(GroupRoute {
            id: told.group.id.get(),
            name: told.group.name.as_str().to_owned(),
            members: told
                .group
                .members
                .iter()
                .map(|member| Member {
                    node: member.node.get(),
                    peer_address: member.peer_address.clone(),
                    client_address: member.client_address.clone(),
                })
                .collect(),
            leader: told.leader.get(),
            term: told.term.get(),
        }),
        cluster_groups: told.cluster_groups.clone(),
        auto_create_topics: told.auto_create_topics,
        topics_version: told.topics_version,
        topics: with_topics.then(|| TopicList {
            topics: told
                .topics
                .iter()
                .map(|topic| TopicRoute {
                    name: topic.name.as_str().to_owned(),
                    message_type: topic.message_type.into(),
                    queues: topic.queues,
                    created_ms: topic.created.get(),
                    placement: topic.placement.as_deref().map(placement::write),
                })
                .collect(),
        }),
    }
}
