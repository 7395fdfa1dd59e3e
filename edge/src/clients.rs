//! Heartbeat and NotifyClientTermination: word of a client for the leaders that renew its leases.
//!
//! A heartbeat is answered at once and passed on in the background: it comes again in 10 s, and its
//! answer must not wait for an election. No settings or telemetry stream need to exist: SDKs do not
//! react to a refused heartbeat, so a client that was forgotten would stay forgotten.

use std::sync::Arc;
use std::sync::LazyLock;

use futures_util::future::join_all;
use ledgermq_common::ConsumerGroupName;
use ledgermq_proto::rocketmq::{
    ClientType, HeartbeatRequest, HeartbeatResponse, NotifyClientTerminationRequest,
    NotifyClientTerminationResponse, Resource,
};
use tokio::sync::Semaphore;
use tracing::debug;

use crate::codes::ok;
use crate::context::CallContext;
use crate::edge::Edge;
use crate::group_call::{ClientHeartbeat, ClientTermination, GroupRequest, Refused};
use crate::validate;

/// Heartbeats being passed on. One more is dropped: the next comes within seconds, and a client
/// counts as gone only after two minutes.
pub const HEARTBEATS_IN_FLIGHT_MAX: usize = 4_096;
static HEARTBEATS: LazyLock<Arc<Semaphore>> =
    LazyLock::new(|| Arc::new(Semaphore::new(HEARTBEATS_IN_FLIGHT_MAX)));

impl Edge {
    pub(crate) async fn heartbeat(
        &self,
        context: &CallContext,
        request: &HeartbeatRequest,
    ) -> Result<HeartbeatResponse, Refused> {
        let client_type = ClientType::try_from(request.client_type).unwrap_or_default();
        let consumer_group = consumer_group(request.group.as_ref())?;
        // A producer holds no leases; nobody needs to hear of it.
        if consumer_group.is_some()
            && let Ok(permit) = HEARTBEATS.clone().try_acquire_owned()
        {
            let (edge, context) = (self.clone(), context.clone());
            tokio::spawn(async move {
                let heartbeat =
                    GroupRequest::ClientHeartbeat(ClientHeartbeat { client_type, consumer_group });
                edge.tell_all(&context, &heartbeat).await;
                drop(permit);
            });
        }
        Ok(HeartbeatResponse { status: Some(ok()) })
    }

    /// Answered when every group has heard of it or the time is up: its leases come back soon
    /// anyway, so the client is never told of a failure it could not act on.
    pub(crate) async fn notify_client_termination(
        &self,
        context: &CallContext,
        request: &NotifyClientTerminationRequest,
    ) -> Result<NotifyClientTerminationResponse, Refused> {
        let consumer_group = consumer_group(request.group.as_ref())?;
        if consumer_group.is_some() {
            let termination = GroupRequest::ClientTermination(ClientTermination { consumer_group });
            self.tell_all(context, &termination).await;
        }
        Ok(NotifyClientTerminationResponse { status: Some(ok()) })
    }

    async fn tell_all(&self, context: &CallContext, request: &GroupRequest) {
        let Ok(cluster) = self.cluster(context).await else {
            return;
        };
        let told = cluster.groups.keys().map(|group| self.call(group, context, request));
        for failed in join_all(told).await.into_iter().filter_map(Result::err) {
            debug!(client = context.client_id, %failed, "word of a client did not reach a group");
        }
    }
}

fn consumer_group(resource: Option<&Resource>) -> Result<Option<ConsumerGroupName>, Refused> {
    match resource {
        Some(resource) if !resource.name.is_empty() => Ok(Some(validate::consumer_group(Some(resource))?)),
        _ => Ok(None),
    }
}
