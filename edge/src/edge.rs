//! The edge of one node: what all RPC families share.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ledgermq_common::clock::{Clock, UnixMillis};
use ledgermq_common::limits::{CLIENT_REQUEST_BYTES_MAX, DEADLINE_MARGIN_MS};
use ledgermq_common::{GroupName, TopicName};
use ledgermq_proto::messaging::batch_server::BatchServer;
use ledgermq_proto::messaging::offsets_server::OffsetsServer;
use ledgermq_proto::rocketmq::messaging_service_server::MessagingServiceServer;
use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::codes::CallFailed;
use crate::context::CallContext;
use crate::forward::connect::Connect;
use crate::forward::link::Links;
use crate::group_call::{GroupRequest, GroupResponse, LocalGroups};
use crate::hold::GroupCaller;
use crate::leaders::LeaderTable;
use crate::lite_streams::LiteStreams;
use crate::messaging::Messaging;
use crate::producers::Producers;
use crate::route::{AdvertisedAddress, RouteEndpoints};
use crate::send_gate::SendGate;
use crate::standing_question::Started;
use crate::topics::CachedTopic;
use crate::topology::{ClusterView, Topology};

#[derive(Debug, Clone)]
pub struct EdgeConfig {
    pub route_endpoints: RouteEndpoints,
    /// What routes name when the client's request has no access point to echo.
    pub advertised: AdvertisedAddress,
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Edge {
    pub(crate) shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub config: EdgeConfig,
    pub topology: Arc<dyn Topology>,
    pub clock: Arc<dyn Clock>,
    pub caller: GroupCaller,
    pub send_gate: SendGate,
    pub topics: Mutex<BTreeMap<(TopicName, GroupName), CachedTopic>>,
    pub producers: Arc<Producers>,
    pub asking: Started,
    pub lite_streams: Arc<LiteStreams>,
    pub asking_for_taken: Started,
    pub stopping: CancellationToken,
    pub polls_end: CancellationToken,
}

impl Edge {
    pub fn new(
        config: EdgeConfig,
        local: Arc<dyn LocalGroups>,
        topology: Arc<dyn Topology>,
        connect: Arc<dyn Connect>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let stopping = CancellationToken::new();
        let links = Arc::new(Links::new(connect));
        let caller = GroupCaller::new(local, topology.clone(), links, stopping.clone());
        Self {
            shared: Arc::new(Shared {
                config,
                topology,
                clock,
                caller,
                send_gate: SendGate::default(),
                topics: Mutex::new(BTreeMap::new()),
                producers: Arc::default(),
                asking: Started::default(),
                lite_streams: Arc::default(),
                asking_for_taken: Started::default(),
                stopping,
                polls_end: CancellationToken::new(),
            }),
        }
    }

    /// For the router of the client port.
    pub fn messaging_service(&self) -> MessagingServiceServer<Messaging> {
        MessagingServiceServer::new(Messaging::new(self.clone()))
            .max_decoding_message_size(CLIENT_REQUEST_BYTES_MAX)
            .max_encoding_message_size(CLIENT_REQUEST_BYTES_MAX)
    }

    /// For the router of the client port: what our own clients may ask beyond RocketMQ's protocol.
    pub fn batch_service(&self) -> BatchServer<Messaging> {
        BatchServer::new(Messaging::new(self.clone()))
            .max_decoding_message_size(CLIENT_REQUEST_BYTES_MAX)
            .max_encoding_message_size(CLIENT_REQUEST_BYTES_MAX)
    }

    /// For the router of the client port, too: offsets that know of resets.
    pub fn offsets_service(&self) -> OffsetsServer<Messaging> {
        OffsetsServer::new(Messaging::new(self.clone()))
    }

    /// Calls a group's leader wherever it is, holding through an election until the context's
    /// deadline less a margin.
    pub async fn call(
        &self,
        group: &GroupName,
        context: &CallContext,
        request: &GroupRequest,
    ) -> Result<GroupResponse, CallFailed> {
        self.shared.caller.call(group, context, request, answer_by(context)).await
    }

    /// Every group of the cluster, waiting for them to be known.
    pub async fn cluster(&self, context: &CallContext) -> Result<Arc<ClusterView>, CallFailed> {
        self.shared.caller.cluster(answer_by(context)).await
    }

    pub fn leaders(&self) -> &Arc<LeaderTable> {
        self.shared.caller.leaders()
    }

    pub fn topology(&self) -> &Arc<dyn Topology> {
        &self.shared.topology
    }

    /// Long polls end with MESSAGE_NOT_FOUND, and new ones at once. To be called before leadership is
    /// handed over: the next leader would give messages to a poll whose answer this node takes along,
    /// and renew their leases for as long as the client lives.
    pub fn end_polls(&self) {
        self.shared.polls_end.cancel();
    }

    /// The node is leaving: long polls end as well, and telemetry streams with OK. Other requests go on.
    pub fn stop(&self) {
        self.end_polls();
        self.shared.stopping.cancel();
    }

    pub(crate) fn now(&self) -> UnixMillis {
        self.shared.clock.now()
    }
}

/// The latest moment for an answer that must still reach the client.
pub(crate) fn answer_by(context: &CallContext) -> Instant {
    let margin = Duration::from_millis(DEADLINE_MARGIN_MS);
    context.deadline.checked_sub(margin).unwrap_or(context.deadline)
}
