//! `ledgermq.admin.v1.Admin` for the whole cluster, on the client port of every broker for operators
//! and on its peer port for nameservers, which pass on what they are asked.
//!
//! Topics are changed through the leaders of the groups, over the same call path as a client's
//! request, so they are held through an election too. The state of the cluster is collected from
//! the nodes themselves ([`status`]), because only a node knows how far its own disk is.

mod at_leader;
mod consumer_groups;
mod lite_topics;
mod messages;
mod rejoin;
mod retention;
mod status;
mod topics;
mod transactions;
mod transfer;

use std::sync::Arc;
use std::time::Duration;

use ledgermq_common::GroupName;
use ledgermq_edge::codes::CallFailed;
use ledgermq_edge::context::{CallContext, parse_grpc_timeout};
use ledgermq_edge::edge::Edge;
use ledgermq_edge::group_call::{GroupRequest, GroupResponse};
use ledgermq_edge::topology::ClusterView;
use ledgermq_proto::admin as wire;
use ledgermq_proto::admin::admin_server::{Admin, AdminServer};
use ledgermq_proto::rocketmq::Code;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};

use crate::process::Node;

/// An admin call that names no deadline waits this long for elections.
const DEADLINE_DEFAULT: Duration = Duration::from_secs(10);
const DEADLINE_MAX: Duration = Duration::from_secs(60);

pub fn service(edge: Edge, node: Arc<Node>) -> AdminServer<AdminService> {
    AdminServer::new(AdminService { cluster: Cluster { edge }, node })
}

pub struct AdminService {
    cluster: Cluster,
    node: Arc<Node>,
}

/// The cluster as an admin call sees it.
pub struct Cluster {
    edge: Edge,
}

impl Cluster {
    fn view(&self) -> Result<Arc<ClusterView>, Status> {
        self.edge
            .topology()
            .cluster()
            .ok_or_else(|| Status::deadline_exceeded("the groups of the cluster are not known yet"))
    }

    /// The groups by name.
    fn all_groups(&self) -> Result<Vec<GroupName>, Status> {
        Ok(self.view()?.groups.keys().cloned().collect())
    }

    fn group(&self, name: &str) -> Result<GroupName, Status> {
        self.all_groups()?.into_iter().find(|group| group.as_str() == name).ok_or_else(|| {
            Status::invalid_argument(format!(
                "group: there is no group \"{}\"",
                ledgermq_common::names::excerpt(name)
            ))
        })
    }

    async fn call(
        &self,
        group: &GroupName,
        context: &CallContext,
        request: GroupRequest,
    ) -> Result<GroupResponse, Status> {
        self.edge.call(group, context, &request).await.map_err(call_failed)
    }
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn create_topic(
        &self,
        request: Request<wire::CreateTopicRequest>,
    ) -> Result<Response<wire::CreateTopicResponse>, Status> {
        let context = context_of(request.metadata());
        topics::create(&self.cluster, &context, request.into_inner()).await.map(Response::new)
    }

    async fn list_topics(
        &self,
        request: Request<wire::ListTopicsRequest>,
    ) -> Result<Response<wire::ListTopicsResponse>, Status> {
        topics::list(&self.cluster, &context_of(request.metadata())).await.map(Response::new)
    }

    async fn show_topic(
        &self,
        request: Request<wire::ShowTopicRequest>,
    ) -> Result<Response<wire::ShowTopicResponse>, Status> {
        let context = context_of(request.metadata());
        topics::show(&self.cluster, &context, request.into_inner()).await.map(Response::new)
    }

    async fn delete_topic(
        &self,
        request: Request<wire::DeleteTopicRequest>,
    ) -> Result<Response<wire::DeleteTopicResponse>, Status> {
        let context = context_of(request.metadata());
        topics::delete(&self.cluster, &context, request.into_inner()).await.map(Response::new)
    }

    async fn update_topic(
        &self,
        request: Request<wire::UpdateTopicRequest>,
    ) -> Result<Response<wire::UpdateTopicResponse>, Status> {
        let context = context_of(request.metadata());
        topics::update(&self.cluster, &context, request.into_inner()).await.map(Response::new)
    }

    async fn list_transactions(
        &self,
        request: Request<wire::ListTransactionsRequest>,
    ) -> Result<Response<wire::ListTransactionsResponse>, Status> {
        let context = context_of(request.metadata());
        transactions::list(&self.cluster, &context, request.into_inner()).await.map(Response::new)
    }

    async fn show_transaction(
        &self,
        request: Request<wire::ShowTransactionRequest>,
    ) -> Result<Response<wire::ShowTransactionResponse>, Status> {
        let context = context_of(request.metadata());
        transactions::show(&self.cluster, &context, request.into_inner()).await.map(Response::new)
    }

    async fn end_transaction(
        &self,
        request: Request<wire::EndTransactionRequest>,
    ) -> Result<Response<wire::EndTransactionResponse>, Status> {
        let context = context_of(request.metadata());
        transactions::end(&self.cluster, &context, request.into_inner()).await.map(Response::new)
    }

    async fn cluster_status(
        &self,
        _request: Request<wire::ClusterStatusRequest>,
    ) -> Result<Response<wire::ClusterStatusResponse>, Status> {
        Ok(Response::new(status::cluster(&self.node).await))
    }

    async fn set_consumer_group(
        &self,
        request: Request<wire::SetConsumerGroupRequest>,
    ) -> Result<Response<wire::SetConsumerGroupResponse>, Status> {
        let context = context_of(request.metadata());
        consumer_groups::set(&self.cluster, &context, request.into_inner()).await.map(Response::new)
    }

    async fn show_consumer_group(
        &self,
        request: Request<wire::ShowConsumerGroupRequest>,
    ) -> Result<Response<wire::ShowConsumerGroupResponse>, Status> {
        let context = context_of(request.metadata());
        consumer_groups::show(&self.cluster, &context, request.into_inner()).await.map(Response::new)
    }

    async fn list_dead_letters(
        &self,
        request: Request<wire::ListDeadLettersRequest>,
    ) -> Result<Response<wire::ListDeadLettersResponse>, Status> {
        let context = context_of(request.metadata());
        let request = request.into_inner();
        consumer_groups::list_dead_letters(&self.cluster, &context, request).await.map(Response::new)
    }

    async fn redrive_dead_letters(
        &self,
        request: Request<wire::RedriveDeadLettersRequest>,
    ) -> Result<Response<wire::RedriveDeadLettersResponse>, Status> {
        let context = context_of(request.metadata());
        let request = request.into_inner();
        consumer_groups::redrive_dead_letters(&self.cluster, &context, request).await.map(Response::new)
    }

    async fn reset_offsets(
        &self,
        request: Request<wire::ResetOffsetsRequest>,
    ) -> Result<Response<wire::ResetOffsetsResponse>, Status> {
        let context = context_of(request.metadata());
        messages::reset_offsets(&self.cluster, &context, request.into_inner()).await.map(Response::new)
    }

    async fn query_messages(
        &self,
        request: Request<wire::QueryMessagesRequest>,
    ) -> Result<Response<wire::QueryMessagesResponse>, Status> {
        let context = context_of(request.metadata());
        messages::query(&self.cluster, &context, request.into_inner()).await.map(Response::new)
    }

    async fn why(&self, request: Request<wire::WhyRequest>) -> Result<Response<wire::WhyResponse>, Status> {
        let context = context_of(request.metadata());
        messages::why(&self.cluster, &context, request.into_inner()).await.map(Response::new)
    }

    async fn trace_message(
        &self,
        request: Request<wire::TraceMessageRequest>,
    ) -> Result<Response<wire::TraceMessageResponse>, Status> {
        let context = context_of(request.metadata());
        messages::trace(&self.cluster, &context, request.into_inner()).await.map(Response::new)
    }

    async fn list_consumer_groups(
        &self,
        request: Request<wire::ListConsumerGroupsRequest>,
    ) -> Result<Response<wire::ListConsumerGroupsResponse>, Status> {
        let context = context_of(request.metadata());
        consumer_groups::list(&self.cluster, &context, request.into_inner()).await.map(Response::new)
    }

    async fn set_topic_retention(
        &self,
        request: Request<wire::SetTopicRetentionRequest>,
    ) -> Result<Response<wire::RetentionResponse>, Status> {
        let context = context_of(request.metadata());
        retention::set(&self.cluster, &context, request.into_inner()).await.map(Response::new)
    }

    async fn show_retention(
        &self,
        request: Request<wire::ShowRetentionRequest>,
    ) -> Result<Response<wire::RetentionResponse>, Status> {
        let context = context_of(request.metadata());
        retention::show(&self.cluster, &context, request.into_inner()).await.map(Response::new)
    }

    async fn show_lite_topics(
        &self,
        request: Request<wire::ShowLiteTopicsRequest>,
    ) -> Result<Response<wire::ShowLiteTopicsResponse>, Status> {
        let context = context_of(request.metadata());
        lite_topics::show(&self.cluster, &context, request.into_inner()).await.map(Response::new)
    }

    async fn set_lite_topic(
        &self,
        request: Request<wire::SetLiteTopicRequest>,
    ) -> Result<Response<wire::SetLiteTopicResponse>, Status> {
        let context = context_of(request.metadata());
        lite_topics::set(&self.cluster, &context, request.into_inner()).await.map(Response::new)
    }

    async fn node_status(
        &self,
        request: Request<wire::NodeStatusRequest>,
    ) -> Result<Response<wire::NodeStatusResponse>, Status> {
        match request.into_inner().with_state_digest {
            true => status::node_with_digests(&self.node).await.map(Response::new),
            false => Ok(Response::new(status::node(&self.node))),
        }
    }

    async fn transfer_leadership(
        &self,
        request: Request<wire::TransferLeadershipRequest>,
    ) -> Result<Response<wire::TransferLeadershipResponse>, Status> {
        let within = timeout_of(request.metadata());
        at_leader::carry_out(&self.node, request.into_inner(), within).await.map(Response::new)
    }

    async fn rejoin_replica(
        &self,
        request: Request<wire::RejoinReplicaRequest>,
    ) -> Result<Response<wire::RejoinReplicaResponse>, Status> {
        let within = timeout_of(request.metadata());
        at_leader::carry_out(&self.node, request.into_inner(), within).await.map(Response::new)
    }
}

fn context_of(metadata: &MetadataMap) -> CallContext {
    CallContext::internal(timeout_of(metadata))
}

fn timeout_of(metadata: &MetadataMap) -> Duration {
    let timeout = metadata.get("grpc-timeout").and_then(|value| parse_grpc_timeout(value.as_bytes()));
    timeout.unwrap_or(DEADLINE_DEFAULT).min(DEADLINE_MAX)
}

/// Never UNAVAILABLE: this node lives.
fn call_failed(failed: CallFailed) -> Status {
    let text = failed.to_string();
    match failed {
        CallFailed::NoLeader { .. }
        | CallFailed::NoAnswer { .. }
        | CallFailed::DeadlinePassed
        | CallFailed::TopologyUnknown => Status::deadline_exceeded(text),
        CallFailed::UnknownGroup { .. } => Status::not_found(text),
        CallFailed::Overloaded { .. } => Status::resource_exhausted(text),
        CallFailed::WrongAnswer { .. } => Status::internal(text),
        CallFailed::Stopping => Status::aborted(text),
    }
}

/// What a leader refused, or an answer of another kind than was asked for.
fn refusal_of(response: GroupResponse) -> Status {
    let GroupResponse::Refused(refused) = response else { return not_understood("the request") };
    match refused.code {
        Code::TopicNotFound | Code::ConsumerGroupNotFound | Code::NotFound => {
            Status::not_found(refused.message)
        }
        Code::BadRequest | Code::PayloadTooLarge | Code::IllegalTopic | Code::IllegalConsumerGroup => {
            Status::invalid_argument(refused.message)
        }
        Code::PreconditionFailed => Status::failed_precondition(refused.message),
        _ => Status::internal(refused.message),
    }
}

fn not_understood(request: &str) -> Status {
    Status::internal(format!("a leader answered {request} with something else"))
}
