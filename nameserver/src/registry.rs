//! What leaders told this nameserver, and how long it is believed.
//!
//! | Rule | Reason |
//! |---|---|
//! | a lower term never replaces a higher one | a deposed leader may not know yet that it is one |
//! | an entry is forgotten when it was not renewed for the expiry time | a group that was removed must go |
//! | the cluster is known once every group that any leader names has registered | a partial route sends producers to a part of the queues |
//! | topics of the former leader stay until the new one's list arrives | they are the same group's, and routes must not flicker |
//! | one cluster at a time | two clusters under one access point would share topic names by accident |

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use ledgermq_common::clock::UnixMillis;
use ledgermq_common::names::{NameError, excerpt};
use ledgermq_common::{ConsumerGroupName, GroupId, GroupName, NodeId, Term, TopicName};
use ledgermq_edge::group_call::{ConsumerGroupDescription, Leadership, TopicDescription};
use ledgermq_edge::leaders::LeaderTable;
use ledgermq_edge::topology::{ClusterView, GroupView, MemberView, TopicKnowledge, Topology};
use ledgermq_proto::registry as pb;
use ledgermq_proto::registry::registry_server::Registry as RegistryRpc;
use ledgermq_proto::rocketmq::MessageType;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::{Request, Response, Status};
use tracing::info;

pub const GROUPS_MAX: usize = 1_024;
pub const MEMBERS_MAX: usize = 64;
pub const TOPICS_PER_GROUP_MAX: usize = 1_000_000;
const ADDRESS_BYTES_MAX: usize = 300;
const CLUSTER_NAME_BYTES_MAX: usize = 255;
/// How often entries are looked at for expiry.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

type Topics = BTreeMap<TopicName, TopicDescription>;

pub struct Registry {
    expiry: Duration,
    entries: Mutex<Entries>,
    /// What requests read; made anew when something other than a renewal time changes.
    known: ArcSwap<Known>,
    version: watch::Sender<u64>,
    pub(crate) counters: RegistryCounters,
}

#[derive(Debug, Default)]
pub(crate) struct RegistryCounters {
    pub accepted: AtomicU64,
    pub refused: AtomicU64,
    pub expired: AtomicU64,
}

#[derive(Default)]
struct Entries {
    cluster: String,
    groups: BTreeMap<GroupName, Entry>,
}

struct Entry {
    view: GroupView,
    term: Term,
    leader: NodeId,
    cluster_groups: BTreeSet<GroupName>,
    auto_create_topics: bool,
    /// Term and version of `topics`; an entry without a list is not complete.
    topics_version: Option<(Term, u64)>,
    topics: Arc<Topics>,
    renewed_at: Instant,
}

#[derive(Default)]
struct Known {
    cluster: Option<Arc<ClusterView>>,
    topics: BTreeMap<GroupName, Arc<Topics>>,
    auto_create_topics: bool,
    /// Why `cluster` is `None`.
    missing: Vec<String>,
}

/// Why a registration was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegisterError {
    #[error("{0}")]
    Name(#[from] NameError),
    #[error("{field} is missing")]
    Missing { field: &'static str },
    #[error("{field} has {count} entries; the limit is {count_max}")]
    TooMany { field: &'static str, count: usize, count_max: usize },
    #[error("{field} \"{value}\" has {bytes} bytes; it must have 1..={bytes_max}")]
    Length { field: &'static str, value: String, bytes: usize, bytes_max: usize },
    #[error("group {group} has leader {leader}, which is not one of its members")]
    LeaderNotMember { group: GroupName, leader: NodeId },
    #[error("group {group} is not one of the cluster's groups it names")]
    GroupNotOfCluster { group: GroupName },
    #[error("this nameserver serves cluster \"{serves}\", not \"{given}\"")]
    OtherCluster { serves: String, given: String },
}

impl Registry {
    pub fn new(expiry: Duration) -> Self {
        Self {
            expiry,
            entries: Mutex::default(),
            known: ArcSwap::from_pointee(Known {
                missing: vec!["no group has registered".to_owned()],
                ..Known::default()
            }),
            version: watch::Sender::new(0),
            counters: RegistryCounters::default(),
        }
    }

    pub fn register(&self, request: pb::RegisterRequest) -> Result<pb::RegisterResponse, RegisterError> {
        let told = Told::read(request)?;
        let mut entries = self.entries.lock();
        self.forget_expired(&mut entries);
        if !entries.groups.is_empty() && entries.cluster != told.cluster {
            self.counters.refused.fetch_add(1, Ordering::Relaxed);
            return Err(RegisterError::OtherCluster { serves: entries.cluster.clone(), given: told.cluster });
        }
        let group = told.view.name.clone();
        let expires_after_ms = u64::try_from(self.expiry.as_millis()).unwrap_or(u64::MAX);
        let held = entries.groups.get(&group);
        if let Some(held) = held
            && (held.term > told.term || (held.term == told.term && held.leader != told.leader))
        {
            self.counters.refused.fetch_add(1, Ordering::Relaxed);
            return Ok(pb::RegisterResponse {
                accepted: false,
                term: held.term.get(),
                topics_wanted: false,
                expires_after_ms,
            });
        }
        let version = (told.term, told.topics_version);
        let (topics, topics_version) = match (told.topics, held) {
            (Some(topics), _) => (Arc::new(topics), Some(version)),
            (None, Some(held)) => (held.topics.clone(), held.topics_version),
            (None, None) => (Arc::default(), None),
        };
        if held.is_none_or(|held| held.term < told.term) {
            info!(%group, term = %told.term, leader = %told.leader, "leader registered");
        }
        let term = told.term;
        let entry = Entry {
            view: told.view,
            term: told.term,
            leader: told.leader,
            cluster_groups: told.cluster_groups,
            auto_create_topics: told.auto_create_topics,
            topics_version,
            topics,
            renewed_at: Instant::now(),
        };
        let changed = held.is_none_or(|held| !held.tells_the_same(&entry));
        let topics_wanted = topics_version != Some(version);
        entries.cluster = told.cluster;
        entries.groups.insert(group, entry);
        if changed {
            self.publish(&entries);
        }
        self.counters.accepted.fetch_add(1, Ordering::Relaxed);
        Ok(pb::RegisterResponse { accepted: true, term: term.get(), topics_wanted, expires_after_ms })
    }

    /// Forgets entries as their time comes, for ever.
    pub async fn sweep(&self) {
        let mut ticks = tokio::time::interval(SWEEP_INTERVAL);
        loop {
            ticks.tick().await;
            self.forget_expired(&mut self.entries.lock());
        }
    }

    /// Why requests are held; empty when the cluster is known.
    pub fn missing(&self) -> Vec<String> {
        self.known.load().missing.clone()
    }

    pub(crate) fn counts(&self) -> (usize, usize) {
        let known = self.known.load();
        let topics: BTreeSet<&TopicName> = known.topics.values().flat_map(|topics| topics.keys()).collect();
        (known.topics.len(), topics.len())
    }

    fn forget_expired(&self, entries: &mut Entries) {
        let before = entries.groups.len();
        entries.groups.retain(|group, entry| {
            let fresh = entry.renewed_at.elapsed() < self.expiry;
            if !fresh {
                info!(%group, term = %entry.term, "registration expired");
            }
            fresh
        });
        let expired = before - entries.groups.len();
        if expired > 0 {
            self.counters.expired.fetch_add(expired as u64, Ordering::Relaxed);
            self.publish(entries);
        }
    }

    fn publish(&self, entries: &Entries) {
        let expected: BTreeSet<&GroupName> =
            entries.groups.values().flat_map(|entry| &entry.cluster_groups).collect();
        let mut missing: Vec<String> = expected
            .into_iter()
            .filter(|group| entries.groups.get(*group).is_none_or(|entry| entry.topics_version.is_none()))
            .map(|group| format!("group {group} has not registered"))
            .collect();
        if entries.groups.is_empty() {
            missing.push("no group has registered".to_owned());
        }
        let cluster = missing.is_empty().then(|| {
            let groups =
                entries.groups.iter().map(|(name, entry)| (name.clone(), entry.view.clone())).collect();
            Arc::new(ClusterView { groups })
        });
        self.known.store(Arc::new(Known {
            cluster,
            topics: entries.groups.iter().map(|(name, entry)| (name.clone(), entry.topics.clone())).collect(),
            auto_create_topics: entries.groups.values().any(|entry| entry.auto_create_topics),
            missing,
        }));
        self.version.send_modify(|version| *version = version.wrapping_add(1));
    }
}

impl Entry {
    fn tells_the_same(&self, other: &Self) -> bool {
        self.view == other.view
            && self.term == other.term
            && self.cluster_groups == other.cluster_groups
            && self.auto_create_topics == other.auto_create_topics
            && self.topics_version == other.topics_version
    }
}

impl Topology for Registry {
    fn cluster(&self) -> Option<Arc<ClusterView>> {
        self.known.load().cluster.clone()
    }

    fn topic(&self, group: &GroupName, topic: &TopicName) -> TopicKnowledge {
        match self.known.load().topics.get(group).map(|topics| topics.get(topic).cloned()) {
            Some(Some(description)) => TopicKnowledge::Known(description),
            Some(None) => TopicKnowledge::Absent,
            None => TopicKnowledge::Unknown,
        }
    }

    fn consumer_group(&self, _consumer_group: &ConsumerGroupName) -> Option<ConsumerGroupDescription> {
        None
    }

    fn auto_create_topics(&self) -> bool {
        self.known.load().auto_create_topics
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }
}

/// The RPC. What is accepted is also news for the requests that wait for a leader.
pub struct RegistryService {
    registry: Arc<Registry>,
    leaders: Arc<LeaderTable>,
}

impl RegistryService {
    pub fn new(registry: Arc<Registry>, leaders: Arc<LeaderTable>) -> Self {
        Self { registry, leaders }
    }
}

#[async_trait]
impl RegistryRpc for RegistryService {
    async fn register(
        &self,
        request: Request<pb::RegisterRequest>,
    ) -> Result<Response<pb::RegisterResponse>, Status> {
        let request = request.into_inner();
        let told = request.group.as_ref().map(|group| {
            (group.name.clone(), Leadership { term: Term(group.term), leader: Some(NodeId(group.leader)) })
        });
        let response =
            self.registry.register(request).map_err(|error| Status::invalid_argument(error.to_string()))?;
        if response.accepted
            && let Some((group, leadership)) = told
            && let Ok(group) = GroupName::parse(&group)
        {
            self.leaders.learn(&group, leadership);
        }
        Ok(Response::new(response))
    }
}

/// A registration whose every name and number has been checked.
struct Told {
    cluster: String,
    view: GroupView,
    leader: NodeId,
    term: Term,
    cluster_groups: BTreeSet<GroupName>,
    auto_create_topics: bool,
    topics_version: u64,
    topics: Option<Topics>,
}

impl Told {
    fn read(request: pb::RegisterRequest) -> Result<Self, RegisterError> {
        let group = request.group.ok_or(RegisterError::Missing { field: "group" })?;
        length("cluster", &request.cluster, CLUSTER_NAME_BYTES_MAX)?;
        count("cluster_groups", request.cluster_groups.len(), GROUPS_MAX)?;
        count("group.members", group.members.len(), MEMBERS_MAX)?;
        let name = GroupName::parse(&group.name)?;
        let cluster_groups = request
            .cluster_groups
            .iter()
            .map(|name| GroupName::parse(name))
            .collect::<Result<BTreeSet<_>, _>>()?;
        if !cluster_groups.contains(&name) {
            return Err(RegisterError::GroupNotOfCluster { group: name });
        }
        let leader = NodeId(group.leader);
        if !group.members.iter().any(|member| member.node == group.leader) {
            return Err(RegisterError::LeaderNotMember { group: name, leader });
        }
        let members = group
            .members
            .into_iter()
            .map(|member| {
                length("peer_address", &member.peer_address, ADDRESS_BYTES_MAX)?;
                length("client_address", &member.client_address, ADDRESS_BYTES_MAX)?;
                Ok(MemberView {
                    node: NodeId(member.node),
                    peer_address: member.peer_address,
                    client_address: member.client_address,
                })
            })
            .collect::<Result<_, RegisterError>>()?;
        let topics = request.topics.map(read_topics).transpose()?;
        Ok(Self {
            cluster: request.cluster,
            view: GroupView { id: GroupId(group.id), name, members, leader_hint: Some(leader) },
            leader,
            term: Term(group.term),
            cluster_groups,
            auto_create_topics: request.auto_create_topics,
            topics_version: request.topics_version,
            topics,
        })
    }
}

fn read_topics(list: pb::TopicList) -> Result<Topics, RegisterError> {
    count("topics", list.topics.len(), TOPICS_PER_GROUP_MAX)?;
    list.topics
        .into_iter()
        .map(|topic| {
            let name = TopicName::parse(&topic.name)?;
            let description = TopicDescription {
                name: name.clone(),
                message_type: MessageType::try_from(topic.message_type).unwrap_or_default(),
                queues: topic.queues,
                created: UnixMillis(topic.created_ms),
                placement: topic.placement.and_then(ledgermq_edge::placement::read),
            };
            Ok((name, description))
        })
        .collect()
}

fn count(field: &'static str, count: usize, count_max: usize) -> Result<(), RegisterError> {
    if count > count_max {
        return Err(RegisterError::TooMany { field, count, count_max });
    }
    Ok(())
}

fn length(field: &'static str, value: &str, bytes_max: usize) -> Result<(), RegisterError> {
    if value.is_empty() || value.len() > bytes_max {
        return Err(RegisterError::Length { field, value: excerpt(value), bytes: value.len(), bytes_max });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXPIRY: Duration = Duration::from_secs(30);

    fn registration(group: &str, term: u64, leader: u64, all: &[&str]) -> pb::RegisterRequest {
        pb::RegisterRequest {
            cluster: "c".to_owned(),
            group: Some(pb::GroupRoute {
                id: 1,
                name: group.to_owned(),
                members: (1..=3)
                    .map(|node| pb::Member {
                        node,
                        peer_address: format!("127.0.0.1:{node}"),
                        client_address: format!("127.0.0.1:1{node}"),
                    })
                    .collect(),
                leader,
                term,
            }),
            cluster_groups: all.iter().map(ToString::to_string).collect(),
            auto_create_topics: false,
            topics_version: 1,
            topics: Some(pb::TopicList {
                topics: vec![pb::TopicRoute {
                    name: format!("topic-{term}"),
                    message_type: MessageType::Normal.into(),
                    queues: 4,
                    created_ms: 1,
                    placement: None,
                }],
            }),
        }
    }

    fn leader_of(registry: &Registry, group: &str) -> Option<NodeId> {
        registry.cluster()?.groups.get(group)?.leader_hint
    }

    fn knows(registry: &Registry, group: &str, topic: &str) -> bool {
        let (group, topic) =
            (GroupName::parse(group).expect("group"), TopicName::parse(topic).expect("topic"));
        matches!(registry.topic(&group, &topic), TopicKnowledge::Known(_))
    }

    #[tokio::test(start_paused = true)]
    async fn a_lower_term_never_replaces_a_higher_one() {
        let registry = Registry::new(EXPIRY);
        assert!(registry.register(registration("g", 5, 1, &["g"])).expect("valid").accepted);
        let late = registry.register(registration("g", 4, 2, &["g"])).expect("valid");
        assert_eq!((late.accepted, late.term), (false, 5));
        assert_eq!(leader_of(&registry, "g"), Some(NodeId(1)));
        let rival = registry.register(registration("g", 5, 3, &["g"])).expect("valid");
        assert!(!rival.accepted, "a term has one leader");
        assert!(registry.register(registration("g", 6, 3, &["g"])).expect("valid").accepted);
        assert_eq!(leader_of(&registry, "g"), Some(NodeId(3)));
    }

    #[tokio::test(start_paused = true)]
    async fn an_entry_that_is_not_renewed_is_forgotten_and_a_renewed_one_is_not() {
        let registry = Arc::new(Registry::new(EXPIRY));
        let sweeper = registry.clone();
        let sweep = tokio::spawn(async move { sweeper.sweep().await });
        let mut changes = registry.changes();
        registry.register(registration("g", 5, 1, &["g"])).expect("valid");
        tokio::time::sleep(EXPIRY - Duration::from_secs(5)).await;
        registry.register(registration("g", 5, 1, &["g"])).expect("valid");
        tokio::time::sleep(EXPIRY - Duration::from_secs(5)).await;
        assert!(registry.cluster().is_some(), "renewed");
        changes.borrow_and_update();
        changes.changed().await.expect("the sweep publishes");
        assert!(registry.cluster().is_none());
        assert!(
            registry.register(registration("g", 2, 2, &["g"])).expect("valid").accepted,
            "a forgotten entry's term binds nobody"
        );
        sweep.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn the_cluster_is_unknown_until_every_group_has_registered() {
        let registry = Registry::new(EXPIRY);
        assert!(registry.cluster().is_none());
        registry.register(registration("a", 1, 1, &["a", "b"])).expect("valid");
        assert!(registry.cluster().is_none());
        assert_eq!(registry.missing(), ["group b has not registered"]);
        registry.register(registration("b", 1, 2, &["a", "b"])).expect("valid");
        assert_eq!(registry.cluster().expect("known").groups.len(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn topics_stay_through_a_leader_change_until_the_new_list_arrives() {
        let registry = Registry::new(EXPIRY);
        registry.register(registration("g", 1, 1, &["g"])).expect("valid");
        let without = pb::RegisterRequest { topics: None, ..registration("g", 2, 2, &["g"]) };
        assert!(registry.register(without.clone()).expect("valid").topics_wanted);
        assert!(knows(&registry, "g", "topic-1"));
        assert!(!registry.register(registration("g", 2, 2, &["g"])).expect("valid").topics_wanted);
        assert!(knows(&registry, "g", "topic-2") && !knows(&registry, "g", "topic-1"));
        assert!(
            !registry.register(without).expect("valid").topics_wanted,
            "the list of this version is held"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn wrong_registrations_are_refused_and_change_nothing() {
        let registry = Registry::new(EXPIRY);
        registry.register(registration("g", 1, 1, &["g"])).expect("valid");
        let other = pb::RegisterRequest { cluster: "d".to_owned(), ..registration("g", 9, 1, &["g"]) };
        assert!(matches!(registry.register(other), Err(RegisterError::OtherCluster { .. })));
        assert!(matches!(
            registry.register(registration("g", 9, 7, &["g"])),
            Err(RegisterError::LeaderNotMember { .. })
        ));
        assert!(matches!(
            registry.register(registration("g", 9, 1, &["h"])),
            Err(RegisterError::GroupNotOfCluster { .. })
        ));
        assert!(matches!(registry.register(registration("g/", 9, 1, &["g/"])), Err(RegisterError::Name(_))));
        assert_eq!(leader_of(&registry, "g"), Some(NodeId(1)));
    }
}
