//! The state of the cluster, put together from what each node says of itself.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use ledgermq_common::LogIndex;
use ledgermq_edge::forward::connect::{TcpConnect, open_channel};
use ledgermq_proto::admin::admin_client::AdminClient;
use ledgermq_proto::admin::cluster_status_response::{Group, Node as NodeRow};
use ledgermq_proto::admin::node_status_response::HostedGroup as GroupRow;
use ledgermq_proto::admin::{ClusterStatusResponse, NodeStatusRequest, NodeStatusResponse, Replica};
use tonic::Status;

use crate::execution::HostedGroup;
use crate::process::Node;
use crate::state::StateDigest;

/// A node that takes longer counts as unreachable.
const NODE_ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

pub fn node(node: &Node) -> NodeStatusResponse {
    let groups = node
        .hosted_groups()
        .map(|hosted| {
            let status = hosted.group().status();
            GroupRow {
                id: hosted.id().get(),
                name: hosted.name().to_string(),
                replica: Some(Replica {
                    node: node.id().get(),
                    reachable: true,
                    term: status.term.get(),
                    leader: status.leader.map_or(0, |leader| leader.get()),
                    last_index: index(status.last),
                    flushed_index: index(status.flushed),
                    committed_index: index(status.committed),
                    applied_index: index(status.applied),
                    is_voter: status.is_voter,
                    replica: status.replica.to_string(),
                    voters: status.voters.iter().map(|node| node.get()).collect(),
                    members_index: index(status.members_at),
                    ..Replica::default()
                }),
            }
        })
        .collect();
    NodeStatusResponse { node: node.id().get(), groups }
}

/// Likewise, with a digest of each group's state.
pub async fn node_with_digests(node: &Arc<Node>) -> Result<NodeStatusResponse, Status> {
    let mut status = self::node(node);
    for hosted in node.hosted_groups() {
        let of_group = Arc::clone(hosted);
        let made = tokio::task::spawn_blocking(move || digest_at_rest(&of_group));
        let made = made.await.map_err(|error| Status::internal(error.to_string()))?;
        let id = hosted.id().get();
        let group = status.groups.iter_mut().find(|group| group.id == id);
        if let (Some(replica), Some((at, digest))) = (group.and_then(|group| group.replica.as_mut()), made) {
            replica.state_digest = digest.to_string();
            replica.digest_index = at.get();
        }
    }
    Ok(status)
}

/// `None` if something was applied meanwhile: that is in some of its parts only.
fn digest_at_rest(hosted: &HostedGroup) -> Option<(LogIndex, StateDigest)> {
    let at = || (hosted.group().status().applied, hosted.state().last_command());
    let before = at();
    let (applied, command) = (before.0?, before.1?);
    let digest = hosted.state().state_digest();
    // The state is ahead of what is told of it for a moment.
    (command.index <= applied && at() == before).then_some((applied, digest))
}

pub async fn cluster(node: &Arc<Node>) -> ClusterStatusResponse {
    let config = node.config();
    let answers = join_all(config.nodes.iter().map(|entry| async {
        let answer = if entry.id == node.id().get() {
            Some(self::node(node))
        } else {
            tokio::time::timeout(NODE_ANSWER_TIMEOUT, ask(&entry.peer)).await.ok().flatten()
        };
        (entry.id, answer)
    }))
    .await;
    let answers: BTreeMap<u64, Option<NodeStatusResponse>> = answers.into_iter().collect();
    let nodes = config
        .nodes
        .iter()
        .map(|entry| NodeRow {
            id: entry.id,
            client_address: entry.client.clone(),
            peer_address: entry.peer.clone(),
            reachable: answers.get(&entry.id).is_some_and(Option::is_some),
        })
        .collect();
    let groups = config
        .groups
        .iter()
        .map(|entry| {
            let replicas =
                entry.members.iter().map(|member| replica_of(*member, entry.id, &answers)).collect();
            group(entry.id, entry.name.clone(), replicas)
        })
        .collect();
    ClusterStatusResponse { cluster: config.cluster.name.clone(), nodes, groups }
}

async fn ask(peer: &str) -> Option<NodeStatusResponse> {
    let channel = open_channel(Arc::new(TcpConnect), peer).await.ok()?;
    let answer = AdminClient::new(channel).node_status(NodeStatusRequest::default()).await.ok()?;
    Some(answer.into_inner())
}

fn replica_of(member: u64, group: u32, answers: &BTreeMap<u64, Option<NodeStatusResponse>>) -> Replica {
    answers
        .get(&member)
        .and_then(Option::as_ref)
        .and_then(|answer| answer.groups.iter().find(|hosted| hosted.id == group))
        .and_then(|hosted| hosted.replica.clone())
        .unwrap_or(Replica { node: member, ..Replica::default() })
}

/// The newest term decides who leads; how far the others lag is counted from that leader's log.
fn group(id: u32, name: String, mut replicas: Vec<Replica>) -> Group {
    let term = replicas.iter().map(|replica| replica.term).max().unwrap_or(0);
    let leader = replicas
        .iter()
        .filter(|replica| replica.reachable && replica.term == term)
        .map(|replica| replica.leader)
        .find(|leader| *leader != 0)
        .unwrap_or(0);
    let leads = |replica: &&Replica| replica.reachable && replica.node == leader;
    if let Some((last, voters)) = replicas.iter().find(leads).map(|r| (r.last_index, r.voters.clone())) {
        for replica in replicas.iter_mut().filter(|replica| replica.reachable) {
            replica.lag_entries = last.saturating_sub(replica.flushed_index);
            // One that was taken out is the last to hear of it.
            replica.is_voter &= voters.contains(&replica.node);
        }
    }
    Group { id, name, term, leader, replicas }
}

fn index(index: Option<LogIndex>) -> u64 {
    index.map_or(0, |index| index.get())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_leader_is_the_one_named_in_the_newest_term_by_a_node_that_answers() {
        let replica = |node, term, leader, last_index, flushed_index| Replica {
            node,
            reachable: true,
            term,
            leader,
            last_index,
            flushed_index,
            ..Replica::default()
        };
        let silent = Replica { node: 3, ..Replica::default() };
        let group =
            group(1, "g".to_owned(), vec![replica(1, 4, 1, 50, 50), replica(2, 5, 2, 90, 90), silent]);
        assert_eq!((group.term, group.leader), (5, 2));
        let lags: Vec<u64> = group.replicas.iter().map(|replica| replica.lag_entries).collect();
        assert_eq!(lags, [40, 0, 0]);
    }

    #[test]
    fn a_replica_that_was_taken_out_is_no_voter_whatever_it_says() {
        let replica = |node, voters: &[u64]| Replica {
            node,
            reachable: true,
            term: 1,
            leader: 1,
            is_voter: true,
            voters: voters.to_vec(),
            ..Replica::default()
        };
        let replicas = vec![replica(1, &[1, 2]), replica(2, &[1, 2]), replica(3, &[1, 2, 3])];
        let voters: Vec<bool> =
            group(1, "g".to_owned(), replicas).replicas.iter().map(|replica| replica.is_voter).collect();
        assert_eq!(voters, [true, true, false]);
    }
}
