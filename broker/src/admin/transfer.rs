//! Leadership of a group given to a node that an operator names.
//!
//! Any node takes the request and passes it to the leader's peer port. Leadership is no state of the
//! log: nothing is proposed here, and whoever leads afterwards has every acknowledged message.
//!
//! | Found | Answer |
//! |---|---|
//! | no such group, or the node is no member of it | INVALID_ARGUMENT |
//! | the node leads already | done, `moved` is false |
//! | an election | held until there is a leader, DEADLINE_EXCEEDED when there is none in time |
//! | the leader changed before it was asked | the new one is asked |
//! | the node is not heard of or lacks too much; another one won | FAILED_PRECONDITION |

use std::sync::Arc;
use std::time::Duration;

use ledgermq_common::NodeId;
use ledgermq_common::names::excerpt;
use ledgermq_edge::forward::connect::{TcpConnect, open_channel};
use ledgermq_proto::admin::admin_client::AdminClient;
use ledgermq_proto::admin::{TransferLeadershipRequest, TransferLeadershipResponse};
use ledgermq_raft_store::group::HandOverError;
use tokio::time::{Instant, timeout_at};
use tonic::{Code, Status};

use super::status;
use crate::config::GroupEntry;
use crate::process::Node;

/// While there is no leader, or the one that was asked leads no more.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

pub async fn transfer(
    node: &Arc<Node>,
    request: TransferLeadershipRequest,
    within: Duration,
) -> Result<TransferLeadershipResponse, Status> {
    let entry = node.config().groups.iter().find(|entry| entry.name == request.group).ok_or_else(|| {
        Status::invalid_argument(format!("group: there is no group \"{}\"", excerpt(&request.group)))
    })?;
    if !entry.members.contains(&request.node) {
        return Err(Status::invalid_argument(format!(
            "node: {} is no member of {}, whose members are {:?}",
            request.node, entry.name, entry.members
        )));
    }
    let deadline = Instant::now() + within;
    if request.only_by_this_node {
        return here(node, entry, request.node, deadline).await;
    }
    let late = || Status::deadline_exceeded(format!("{} had no leader in time", entry.name));
    loop {
        let outcome = timeout_at(deadline, ask_leader(node, entry, &request, deadline)).await;
        match outcome.map_err(|_| late())? {
            Some(Err(status)) if status.code() == Code::Aborted => {}
            Some(outcome) => return outcome,
            None => {}
        }
        timeout_at(deadline, tokio::time::sleep(LOOK_AGAIN)).await.map_err(|_| late())?;
    }
}

/// `None` without a leader that can be reached.
async fn ask_leader(
    node: &Arc<Node>,
    entry: &GroupEntry,
    request: &TransferLeadershipRequest,
    deadline: Instant,
) -> Option<Result<TransferLeadershipResponse, Status>> {
    let seen = status::cluster(node).await;
    let leader = seen.groups.iter().find(|group| group.id == entry.id)?.leader;
    if leader == 0 {
        return None;
    }
    if leader == request.node {
        return Some(Ok(TransferLeadershipResponse { from: leader, moved: false }));
    }
    if leader == node.id().get() {
        return Some(here(node, entry, request.node, deadline).await);
    }
    let peer = &node.config().nodes.iter().find(|candidate| candidate.id == leader)?.peer;
    let channel = open_channel(Arc::new(TcpConnect), peer).await.ok()?;
    let mut passed_on =
        tonic::Request::new(TransferLeadershipRequest { only_by_this_node: true, ..request.clone() });
    passed_on.set_timeout(deadline.saturating_duration_since(Instant::now()));
    match AdminClient::new(channel).transfer_leadership(passed_on).await {
        Ok(answer) => Some(Ok(answer.into_inner())),
        // It ended meanwhile.
        Err(status) if status.code() == Code::Unavailable => None,
        Err(status) => Some(Err(status)),
    }
}

/// By the replica on this node.
async fn here(
    node: &Node,
    entry: &GroupEntry,
    heir: u64,
    deadline: Instant,
) -> Result<TransferLeadershipResponse, Status> {
    let hosted = node.hosted_groups().find(|hosted| hosted.id().get() == entry.id);
    let hosted =
        hosted.ok_or_else(|| Status::aborted(format!("node {} does not carry {}", node.id(), entry.name)))?;
    let within = deadline.saturating_duration_since(Instant::now());
    hosted.group().hand_over_to(NodeId(heir), within).await.map_err(|error| {
        let text = error.to_string();
        match error {
            HandOverError::NotLeader { .. } | HandOverError::Stopped => Status::aborted(text),
            HandOverError::DeadlinePassed | HandOverError::NobodyHeard { .. } => {
                Status::deadline_exceeded(text)
            }
            HandOverError::NobodyElse
            | HandOverError::NotAFollower { .. }
            | HandOverError::TooFarBehind { .. }
            | HandOverError::AnotherLeads { .. } => Status::failed_precondition(text),
        }
    })?;
    Ok(TransferLeadershipResponse { from: node.id().get(), moved: true })
}
