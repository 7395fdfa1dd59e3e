//! Leadership of a group given to a node that an operator names.
//!
//! Leadership is no state of the log: nothing is proposed here, and whoever leads afterwards has every
//! acknowledged message. For what is passed on, see [`super::at_leader`].
//!
//! | Found | Answer |
//! |---|---|
//! | the node leads already | done, `moved` is false |
//! | the node is not heard of or lacks too much; another one won | FAILED_PRECONDITION |

use std::time::Duration;

use ledgermq_common::NodeId;
use ledgermq_proto::admin::admin_client::AdminClient;
use ledgermq_proto::admin::{TransferLeadershipRequest, TransferLeadershipResponse};
use ledgermq_raft_store::group::HandOverError;
use tonic::transport::Channel;
use tonic::{Request, Status};

use super::at_leader::AtLeader;
use crate::execution::HostedGroup;

impl AtLeader for TransferLeadershipRequest {
    type Answer = TransferLeadershipResponse;

    fn about(&self) -> (&str, u64) {
        (&self.group, self.node)
    }

    fn only_by_this_node(&mut self) -> &mut bool {
        &mut self.only_by_this_node
    }

    fn settled(&self, leader: u64) -> Option<TransferLeadershipResponse> {
        (leader == self.node).then_some(TransferLeadershipResponse { from: leader, moved: false })
    }

    async fn here(
        &self,
        group: &HostedGroup,
        within: Duration,
    ) -> Result<TransferLeadershipResponse, Status> {
        let from = group.group().node().get();
        group.group().hand_over_to(NodeId(self.node), within).await.map_err(|error| {
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
        Ok(TransferLeadershipResponse { from, moved: true })
    }

    async fn there(
        mut leader: AdminClient<Channel>,
        request: Request<Self>,
    ) -> Result<TransferLeadershipResponse, Status> {
        leader.transfer_leadership(request).await.map(tonic::Response::into_inner)
    }
}
