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

use std::time::Duration;

use ledgermq_common::NodeId;
use ledgermq_proto::admin::admin_client::AdminClient;
use ledgermq_proto::admin::{RejoinReplicaRequest, RejoinReplicaResponse};
use ledgermq_raft_store::group::ChangeMembersError;
use tonic::transport::Channel;
use tonic::{Request, Status};

use super::at_leader::AtLeader;
use crate::execution::HostedGroup;

impl AtLeader for RejoinReplicaRequest {
    type Answer = RejoinReplicaResponse;

    fn about(&self) -> (&str, u64) {
        (&self.group, self.node)
    }

    fn only_by_this_node(&mut self) -> &mut bool {
        &mut self.only_by_this_node
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
        mut leader: AdminClient<Channel>,
        request: Request<Self>,
    ) -> Result<RejoinReplicaResponse, Status> {
        leader.rejoin_replica(request).await.map(tonic::Response::into_inner)
    }
}
