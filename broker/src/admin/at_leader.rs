//! Requests about a group that only its leader can carry out, and that are no entries of its log: any
//! node takes them and passes them to the leader's peer port.
//!
//! | Found | Answer |
//! |---|---|
//! | no such group, or the node named is no member of it | INVALID_ARGUMENT |
//! | an election | held until there is a leader, DEADLINE_EXCEEDED when there is none in time |
//! | ABORTED by the one that was asked: it leads no more | the new leader is asked |
//! | anything else | what the leader said |

use std::sync::Arc;
use std::time::Duration;

use ledgermq_common::names::excerpt;
use ledgermq_edge::forward::connect::{TcpConnect, open_channel};
use ledgermq_proto::admin::admin_client::AdminClient;
use tokio::time::{Instant, timeout_at};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use super::status;
use crate::config::GroupEntry;
use crate::execution::HostedGroup;
use crate::process::Node;

/// While there is no leader, or the one that was asked leads no more.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Something a leader does about a member of its group, as it is asked for.
pub trait AtLeader: Clone {
    type Answer;

    /// The group by its name, and the member.
    fn about(&self) -> (&str, u64);

    /// Between nodes: the one that is asked must lead and does not pass it on.
    fn only_by_this_node(&mut self) -> &mut bool;

    /// The answer, if `leader` need not be asked for it.
    fn settled(&self, _leader: u64) -> Option<Self::Answer> {
        None
    }

    async fn here(&self, group: &HostedGroup, within: Duration) -> Result<Self::Answer, Status>;

    async fn there(leader: AdminClient<Channel>, request: Request<Self>) -> Result<Self::Answer, Status>;
}

/// By the leader of the group, wherever it is.
pub async fn carry_out<A: AtLeader>(
    node: &Arc<Node>,
    mut what: A,
    within: Duration,
) -> Result<A::Answer, Status> {
    let (name, member) = what.about();
    let entry = group(node, name, member)?;
    match std::mem::replace(what.only_by_this_node(), true) {
        true => by_this_node(node, entry, &what, within).await,
        false => by_leader(node, entry, &what, within).await,
    }
}

/// The group of that name, with `member` in it.
fn group<'n>(node: &'n Node, name: &str, member: u64) -> Result<&'n GroupEntry, Status> {
    let entry =
        node.config().groups.iter().find(|entry| entry.name == name).ok_or_else(|| {
            Status::invalid_argument(format!("group: there is no group \"{}\"", excerpt(name)))
        })?;
    if !entry.members.contains(&member) {
        return Err(Status::invalid_argument(format!(
            "node: {member} is no member of {}, whose members are {:?}",
            entry.name, entry.members
        )));
    }
    Ok(entry)
}

/// `what` is as it is passed on.
async fn by_leader<A: AtLeader>(
    node: &Arc<Node>,
    entry: &GroupEntry,
    what: &A,
    within: Duration,
) -> Result<A::Answer, Status> {
    let deadline = Instant::now() + within;
    let late = || Status::deadline_exceeded(format!("{} had no leader in time", entry.name));
    loop {
        let outcome = timeout_at(deadline, ask(node, entry, what, deadline)).await;
        match outcome.map_err(|_| late())? {
            Some(Err(status)) if status.code() == Code::Aborted => {}
            Some(outcome) => return outcome,
            None => {}
        }
        timeout_at(deadline, tokio::time::sleep(LOOK_AGAIN)).await.map_err(|_| late())?;
    }
}

/// By the replica on this node.
async fn by_this_node<A: AtLeader>(
    node: &Node,
    entry: &GroupEntry,
    what: &A,
    within: Duration,
) -> Result<A::Answer, Status> {
    let hosted = node.hosted_groups().find(|hosted| hosted.id().get() == entry.id);
    let hosted =
        hosted.ok_or_else(|| Status::aborted(format!("node {} does not carry {}", node.id(), entry.name)))?;
    what.here(hosted, within).await
}

/// `None` without a leader that can be reached.
async fn ask<A: AtLeader>(
    node: &Arc<Node>,
    entry: &GroupEntry,
    what: &A,
    deadline: Instant,
) -> Option<Result<A::Answer, Status>> {
    let seen = status::cluster(node).await;
    let leader = seen.groups.iter().find(|group| group.id == entry.id)?.leader;
    if leader == 0 {
        return None;
    }
    if let Some(answer) = what.settled(leader) {
        return Some(Ok(answer));
    }
    let within = deadline.saturating_duration_since(Instant::now());
    if leader == node.id().get() {
        return Some(by_this_node(node, entry, what, within).await);
    }
    let peer = &node.config().nodes.iter().find(|candidate| candidate.id == leader)?.peer;
    let channel = open_channel(Arc::new(TcpConnect), peer).await.ok()?;
    let mut request = Request::new(what.clone());
    request.set_timeout(within);
    match A::there(AdminClient::new(channel), request).await {
        // It ended meanwhile.
        Err(status) if status.code() == Code::Unavailable => None,
        outcome => Some(outcome),
    }
}
