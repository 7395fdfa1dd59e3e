//! `ledgermq.admin.v1.Admin` on a nameserver: every call is passed on to a broker.
//!
//! Any broker answers for the whole cluster, so the first one that can be reached is asked. A call is
//! passed on a second time only if the connection could not be made: then nobody has begun it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ledgermq_common::NodeId;
use ledgermq_edge::forward::connect::{TcpConnect, open_channel};
use ledgermq_edge::topology::Topology;
use ledgermq_proto::admin as wire;
use ledgermq_proto::admin::admin_client::AdminClient;
use ledgermq_proto::admin::admin_server::{Admin, AdminServer};
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use crate::registry::Registry;

/// A broker that does not take the connection in this time is passed over.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

pub fn service(registry: Arc<Registry>) -> AdminServer<PassedOn> {
    AdminServer::new(PassedOn { registry })
}

pub struct PassedOn {
    registry: Arc<Registry>,
}

impl PassedOn {
    async fn broker(&self) -> Result<AdminClient<Channel>, Status> {
        let cluster = self
            .registry
            .cluster()
            .ok_or_else(|| Status::deadline_exceeded("no broker has registered here yet"))?;
        let members: BTreeMap<NodeId, &str> = cluster
            .groups
            .values()
            .flat_map(|group| &group.members)
            .map(|member| (member.node, member.peer_address.as_str()))
            .collect();
        for address in members.values() {
            let connected =
                tokio::time::timeout(CONNECT_TIMEOUT, open_channel(Arc::new(TcpConnect), address));
            if let Ok(Ok(channel)) = connected.await {
                return Ok(AdminClient::new(channel));
            }
        }
        Err(Status::deadline_exceeded(format!("none of {} registered brokers can be reached", members.len())))
    }
}

macro_rules! pass_on {
    ($($method:ident($request:ident) -> $response:ident;)*) => {
        #[tonic::async_trait]
        impl Admin for PassedOn {
            $(
                async fn $method(
                    &self,
                    request: Request<wire::$request>,
                ) -> Result<Response<wire::$response>, Status> {
                    self.broker().await?.$method(request).await
                }
            )*
        }
    };
}

pass_on! {
    create_topic(CreateTopicRequest) -> CreateTopicResponse;
    list_topics(ListTopicsRequest) -> ListTopicsResponse;
    show_topic(ShowTopicRequest) -> ShowTopicResponse;
    update_topic(UpdateTopicRequest) -> UpdateTopicResponse;
    delete_topic(DeleteTopicRequest) -> DeleteTopicResponse;
    list_transactions(ListTransactionsRequest) -> ListTransactionsResponse;
    show_transaction(ShowTransactionRequest) -> ShowTransactionResponse;
    end_transaction(EndTransactionRequest) -> EndTransactionResponse;
    cluster_status(ClusterStatusRequest) -> ClusterStatusResponse;
    node_status(NodeStatusRequest) -> NodeStatusResponse;
    transfer_leadership(TransferLeadershipRequest) -> TransferLeadershipResponse;
    rejoin_replica(RejoinReplicaRequest) -> RejoinReplicaResponse;
    set_consumer_group(SetConsumerGroupRequest) -> SetConsumerGroupResponse;
    show_consumer_group(ShowConsumerGroupRequest) -> ShowConsumerGroupResponse;
    list_dead_letters(ListDeadLettersRequest) -> ListDeadLettersResponse;
    redrive_dead_letters(RedriveDeadLettersRequest) -> RedriveDeadLettersResponse;
    reset_offsets(ResetOffsetsRequest) -> ResetOffsetsResponse;
    query_messages(QueryMessagesRequest) -> QueryMessagesResponse;
    why(WhyRequest) -> WhyResponse;
    trace_message(TraceMessageRequest) -> TraceMessageResponse;
    list_consumer_groups(ListConsumerGroupsRequest) -> ListConsumerGroupsResponse;
    set_topic_retention(SetTopicRetentionRequest) -> RetentionResponse;
    show_retention(ShowRetentionRequest) -> RetentionResponse;
    show_lite_topics(ShowLiteTopicsRequest) -> ShowLiteTopicsResponse;
    set_lite_topic(SetLiteTopicRequest) -> SetLiteTopicResponse;
}
