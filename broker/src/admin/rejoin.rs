//! A replica taken out of its group, so that it joins anew.
//!
//! Its process, if it runs, asks to come back at once and is a voter again when it is level with the
//! leader (`raft-store`, `group::joining`). One that is down stays out until it is started: a group of
//! three whose third machine is gone for good needs both others either way, but no longer counts on it.
//! For what is passed on, see [`super::at_leader`].
//!
//! | Found | Answer |
//! |---|---|
//! | the node leads the group | FAILED_PRECONDITION: hand its leadership over first |
//! | the replica is out already, or a change is under way | FAILED_PRECONDITION |

use std::sync::Arc;
use std::time::Duration;

use ledgermq_common::NodeId;
use ledgermq_proto::admin::admin_client::AdminClient;
use ledgermq_proto::admin::{RejoinReplicaRequest, RejoinReplicaResponse};
use ledgermq_raft_store::group::ChangeMembersError;
use tonic::transport::Channel;
use tonic::{Request, Status};

use super::at_leader::{self, AtLeader};
use crate::execution::HostedGroup;
use crate::process::Node;

pub async fn rejoin(
    node: &Arc<Node>,
    request: RejoinReplicaRequest,
    within: Duration,
) -> Result<RejoinReplicaResponse, Status> {
    let entry = at_leader::group(node, &request.group, request.node)?;
    match request.only_by_this_node {
        true => at_leader::by_this_node(node, entry, &request, within).await,
        false => at_leader::by_leader(node, entry, &request, within).await,
    }
}

impl AtLeader for RejoinReplicaRequest {
    type Answer = RejoinReplicaResponse;

    fn settled(&self, _: u64) -> Option<RejoinReplicaResponse> {
        None
    }

    async fn here(&self, group: &HostedGroup, within: Duration) -> Result<RejoinReplicaResponse, Status> {
        group.group().take_out(NodeId(self.node), within).await.map_err(|error| {
            let text = error.to_string();
            match error {
                ChangeMembersError::NotLeader { .. } | ChangeMembersError::Stopped => Status::aborted(text),
                ChangeMembersError::DeadlinePassed => Status::deadline_exceeded(text),
                ChangeMembersError::Leads { .. }
                | ChangeMembersError::NotAMember { .. }
                | ChangeMembersError::UnderWay
                | ChangeMembersError::Refused { .. } => Status::failed_precondition(text),
            }
        })?;
        Ok(RejoinReplicaResponse {})
    }

    async fn there(
        &self,
        mut leader: AdminClient<Channel>,
        within: Duration,
    ) -> Result<RejoinReplicaResponse, Status> {
        let mut request = Request::new(Self { only_by_this_node: true, ..self.clone() });
        request.set_timeout(within);
        leader.rejoin_replica(request).await.map(tonic::Response::into_inner)
    }
}
