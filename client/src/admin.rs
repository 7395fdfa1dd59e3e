//! Administration: topics and the state of the cluster, from any node.

use std::sync::Arc;
use std::time::Duration;

use ledgermq_proto::admin as wire;
use ledgermq_proto::admin::admin_client::AdminClient;
use rand::Rng as _;
use tokio::time::Instant;

use crate::connection::Connections;
use crate::error::AdminError;
use crate::options::ClientOptions;
use crate::retry::{Budget, Line, Verdict, call};

/// A topic is created in every group, and each may be electing; so an attempt gets more time than
/// a message would.
const ATTEMPT: Duration = Duration::from_secs(10);

#[derive(Clone)]
pub struct Admin {
    connections: Arc<Connections>,
    options: ClientOptions,
}

macro_rules! operation {
    ($(#[$doc:meta])* $method:ident, $name:literal, $request:ident, $response:ident) => {
        operation!($(#[$doc])* pub $method by $method, $name, $request, $response);
    };
    (
        $(#[$doc:meta])* $visibility:vis $function:ident by $method:ident, $name:literal, $request:ident,
        $response:ident
    ) => {
        $(#[$doc])*
        $visibility async fn $function(&self, request: wire::$request) -> Result<wire::$response, AdminError> {
            let outcome = call(&self.connections, self.budget($name), |live, time| {
                let mut request = tonic::Request::new(request.clone());
                request.set_timeout(time);
                async move {
                    let origin = live.origin();
                    let answer = AdminClient::with_origin(live, origin).$method(request).await?;
                    Ok(Verdict::Done(answer.into_inner()))
                }
            });
            outcome.await.map(|(answer, _)| answer).map_err(|failure| failure.into_admin($name))
        }
    };
}

impl Admin {
    pub(crate) fn new(connections: Arc<Connections>, options: ClientOptions) -> Self {
        Self { connections, options }
    }

    operation!(create_topic, "create topic", CreateTopicRequest, CreateTopicResponse);
    operation!(list_topics, "list topics", ListTopicsRequest, ListTopicsResponse);
    operation!(show_topic, "show topic", ShowTopicRequest, ShowTopicResponse);
    operation!(delete_topic, "delete topic", DeleteTopicRequest, DeleteTopicResponse);
    operation!(
        /// More queues; a topic with order grows by a generation.
        update_topic,
        "update topic",
        UpdateTopicRequest,
        UpdateTopicResponse
    );
    operation!(set_consumer_group, "set consumer group", SetConsumerGroupRequest, SetConsumerGroupResponse);
    operation!(
        show_consumer_group,
        "show consumer group",
        ShowConsumerGroupRequest,
        ShowConsumerGroupResponse
    );
    operation!(list_dead_letters, "list dead letters", ListDeadLettersRequest, ListDeadLettersResponse);
    operation!(
        redrive_dead_letters,
        "redrive dead letters",
        RedriveDeadLettersRequest,
        RedriveDeadLettersResponse
    );
    operation!(pub(self) reset_by_id by reset_offsets, "reset offsets", ResetOffsetsRequest, ResetOffsetsResponse);

    /// Moves a group, once: an attempt that arrives late, after what was consumed since, moves nothing.
    pub async fn reset_offsets(
        &self,
        request: wire::ResetOffsetsRequest,
    ) -> Result<wire::ResetOffsetsResponse, AdminError> {
        let reset_id = match request.reset_id {
            0 => rand::rng().random_range(1..=u64::MAX),
            drawn => drawn,
        };
        self.reset_by_id(wire::ResetOffsetsRequest { reset_id, ..request }).await
    }

    operation!(query_messages, "query messages", QueryMessagesRequest, QueryMessagesResponse);
    operation!(why, "why", WhyRequest, WhyResponse);
    operation!(
        /// What happened to a message, entry by entry of the log, a page at a time.
        trace_message,
        "trace message",
        TraceMessageRequest,
        TraceMessageResponse
    );
    operation!(
        /// By name, a page at a time.
        list_consumer_groups,
        "list consumer groups",
        ListConsumerGroupsRequest,
        ListConsumerGroupsResponse
    );
    operation!(set_topic_retention, "set topic retention", SetTopicRetentionRequest, RetentionResponse);
    operation!(show_retention, "show retention", ShowRetentionRequest, RetentionResponse);
    operation!(
        /// The lite topics of a parent and who reads them, a page at a time.
        show_lite_topics,
        "show lite topics",
        ShowLiteTopicsRequest,
        ShowLiteTopicsResponse
    );
    operation!(set_lite_topic, "set lite topic", SetLiteTopicRequest, SetLiteTopicResponse);
    operation!(
        /// Transactions without an outcome, a page at a time.
        list_transactions,
        "list transactions",
        ListTransactionsRequest,
        ListTransactionsResponse
    );
    operation!(show_transaction, "show transaction", ShowTransactionRequest, ShowTransactionResponse);
    operation!(
        /// Decides a transaction in its producer's place.
        end_transaction,
        "end transaction",
        EndTransactionRequest,
        EndTransactionResponse
    );
    operation!(
        /// Collected from all nodes by the one that is asked.
        cluster_status,
        "cluster status",
        ClusterStatusRequest,
        ClusterStatusResponse
    );

    operation!(
        /// Repeating it is harmless: a node that leads already is left in its place.
        transfer_leadership,
        "transfer leadership",
        TransferLeadershipRequest,
        TransferLeadershipResponse
    );

    operation!(
        /// Repeating it once it succeeded takes the replica out again, or is refused while it is out.
        rejoin_replica,
        "rejoin replica",
        RejoinReplicaRequest,
        RejoinReplicaResponse
    );

    /// What the node that answers knows of itself; with one access point it is known which.
    pub async fn node_status(
        &self,
        request: wire::NodeStatusRequest,
        within: Duration,
    ) -> Result<wire::NodeStatusResponse, AdminError> {
        let budget =
            Budget { deadline: Instant::now() + within, attempt: within, ..self.budget("node status") };
        let outcome = call(&self.connections, budget, |live, time| {
            let mut request = tonic::Request::new(request);
            request.set_timeout(time);
            async move {
                let origin = live.origin();
                let answer = AdminClient::with_origin(live, origin).node_status(request).await?;
                Ok(Verdict::Done(answer.into_inner()))
            }
        });
        outcome.await.map(|(answer, _)| answer).map_err(|failure| failure.into_admin("node status"))
    }

    fn budget(&self, operation: &'static str) -> Budget {
        Budget {
            operation,
            deadline: Instant::now() + self.options.total_deadline,
            attempt: ATTEMPT.min(self.options.total_deadline),
            hedged: false,
            line: Line::Others,
        }
    }
}
