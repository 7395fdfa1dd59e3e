//! What a leader does for a request: the edge's [`LocalGroups`] over the groups of this process.
//!
//! | Module | Request |
//! |---|---|
//! | [`produce`] | Send; [`append_room`] is the line in front of the log |
//! | [`batch`] | StoreBatch |
//! | [`receive`] | Receive; [`subscriptions`] says what other members want, [`waiters`] holds the long polls, [`order_keys`] what is to be delivered in order |
//! | [`acknowledge`] | Ack, ChangeInvisible |
//! | [`transaction`] | half messages, EndTransaction; [`check_back`] asks for those left open |
//! | [`dead_letters`] | ForwardToDeadLetterQueue; messages delivered too often |
//! | [`naming`] | topics, consumer groups |
//! | [`offsets`] | Pull, and the offsets of queues and groups |
//! | [`lite`] | Send to a lite topic, SyncLiteSubscription; removes idle lite topics |
//! | [`operations`], [`message_query`], [`trace`] | what administrators ask of one group |
//! | [`growth`] | more queues for a topic; drives and drains the generations of topics with order |
//! | [`timers`] | Send to a topic of delayed messages, Recall; fires what is due |
//! | [`retention`] | nobody's: expires messages, carries what is owed, releases the log |
//! | [`renewal`] | leases renewed by the server; [`clients`] says for whom, [`arrivals`] which |
//!
//! Everything a client observes goes through the log. What is read here without it (a topic's
//! settings, the plan of a receive) is only used to build a command that apply judges again, or is
//! state this leader has applied in its own term.

mod acknowledge;
mod append_room;
mod arrivals;
mod batch;
mod check_back;
mod clients;
mod dead_letters;
mod delivery;
mod growth;
mod hosted_group;
mod intake;
mod lite;
mod message_query;
mod naming;
mod offsets;
mod operations;
mod order_keys;
mod produce;
mod receive;
mod renewal;
mod retention;
mod subscriptions;
mod timers;
mod trace;
mod transaction;
mod waiters;
mod wanted;

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use ledgermq_common::{GroupName, NodeId, QueueId};
use ledgermq_edge::context::CallContext;
use ledgermq_edge::group_call::{
    ClientTermination, GroupRequest, GroupResponse, Leadership, LocalGroups, NotExecuted,
};
use tokio::sync::watch;
use tokio::time::Instant;

pub use check_back::{CheckBack, check_transactions};
pub use dead_letters::bury_exhausted;
pub use growth::grow_topics;
pub use hosted_group::{Consumption, HostedGroup, Parts, Settings, TransactionSettings};
pub use lite::sweep_lite;
pub use naming::{consumer_group as describe_consumer_group, describe_view as describe_topic};
pub use renewal::renew_leases;
pub use retention::{LastLook, RetentionSettings, keep_retention};
pub use subscriptions::watch_subscriptions;
pub use timers::fire_timers;
pub use waiters::{PollingFull, WaiterCount, Waiters};

use crate::metrics::Metrics;
use crate::state::{Answer, ApplyObserver, ClientHash, Command, ConsumerGroupId, ReleaseClient, TopicId};
use hosted_group::{Ended, unexpected};

/// Executes requests for the groups of this process.
pub struct Executor {
    node: NodeId,
    groups: BTreeMap<GroupName, Arc<HostedGroup>>,
    metrics: Arc<Metrics>,
}

impl Executor {
    pub fn new(node: NodeId, groups: Vec<Arc<HostedGroup>>, metrics: Arc<Metrics>) -> Self {
        let groups = groups.into_iter().map(|group| (group.name().clone(), group)).collect();
        Self { node, groups, metrics }
    }

    pub fn groups(&self) -> impl Iterator<Item = &Arc<HostedGroup>> {
        self.groups.values()
    }

    pub fn group(&self, name: &GroupName) -> Option<&Arc<HostedGroup>> {
        self.groups.get(name)
    }
}

#[async_trait]
impl LocalGroups for Executor {
    fn node(&self) -> Option<NodeId> {
        Some(self.node)
    }

    fn hosted(&self) -> Vec<GroupName> {
        self.groups.keys().cloned().collect()
    }

    fn hosts(&self, group: &GroupName) -> bool {
        self.groups.contains_key(group)
    }

    fn leadership(&self, group: &GroupName) -> Option<watch::Receiver<Leadership>> {
        self.groups.get(group).map(|hosted| hosted.leadership())
    }

    async fn execute(
        &self,
        group: &GroupName,
        context: &CallContext,
        request: &GroupRequest,
    ) -> Result<GroupResponse, NotExecuted> {
        let hosted = self.groups.get(group).ok_or(NotExecuted::NotHosted)?;
        let began = Instant::now();
        let result = match execute(hosted, context, request).await {
            Ok(response) => Ok(response),
            Err(ended) => ended.into_response(),
        };
        self.metrics.rpc(name_of(request), outcome_of(&result), began.elapsed());
        result
    }
}

async fn execute(
    hosted: &Arc<HostedGroup>,
    context: &CallContext,
    request: &GroupRequest,
) -> Result<GroupResponse, Ended> {
    hosted.leader_ready(context).await?;
    if only_tells(request) {
        offsets::barrier(hosted).await?;
    }
    match request {
        GroupRequest::Send(send) => produce::send(hosted, context, send).await,
        GroupRequest::Receive(receive) => receive::receive(hosted, context, receive).await,
        GroupRequest::Ack(ack) => acknowledge::ack(hosted, ack).await,
        GroupRequest::ChangeInvisible(change) => acknowledge::change_invisible(hosted, change).await,
        GroupRequest::DescribeTopic(describe) => naming::describe_topic(hosted, describe).await,
        GroupRequest::CreateTopic(create) => naming::create_topic(hosted, create).await,
        GroupRequest::DeleteTopic(topic) => naming::delete_topic(hosted, topic).await,
        GroupRequest::ListTopics => Ok(naming::list_topics(hosted)),
        GroupRequest::ShowTopic(topic) => naming::show_topic(hosted, topic),
        GroupRequest::DescribeConsumerGroup(group) => Ok(naming::describe_consumer_group(hosted, group)),
        GroupRequest::ClientHeartbeat(_) => {
            hosted.liveness.heard_of(ClientHash::of(&context.client_id));
            Ok(GroupResponse::Done)
        }
        GroupRequest::ClientTermination(termination) => terminate(hosted, context, termination).await,
        GroupRequest::EndTransaction(end) => transaction::end(hosted, end).await,
        GroupRequest::AwaitTransactionChecks(wait) => check_back::wait(hosted, wait).await,
        GroupRequest::TransactionsAsked(asked) => check_back::count(hosted, asked).await,
        GroupRequest::ListTransactions(list) => transaction::list(hosted, list),
        GroupRequest::ShowTransaction(id) => transaction::show(hosted, id),
        GroupRequest::DeadLetter(forward) => dead_letters::forward(hosted, forward).await,
        GroupRequest::Recall(recall) => timers::recall(hosted, recall).await,
        GroupRequest::Pull(pull) => offsets::pull(hosted, context, pull).await,
        GroupRequest::Offset(offset) => offsets::offset(hosted, offset).await,
        GroupRequest::SyncLite(sync) => lite::sync(hosted, context, sync).await,
        GroupRequest::AwaitTakenLite(wait) => lite::await_taken(hosted, wait).await,
        GroupRequest::StoreBatch(batch) => batch::store(hosted, context, batch).await,
        GroupRequest::Operation(operation) => operations::execute(hosted, operation).await,
    }
}

/// Whether the answer is what the state says, with nothing written. A leader that stood still, was
/// replaced, and has not heard of it yet would tell what was true before.
fn only_tells(request: &GroupRequest) -> bool {
    match request {
        GroupRequest::DescribeTopic(_)
        | GroupRequest::ListTopics
        | GroupRequest::ShowTopic(_)
        | GroupRequest::DescribeConsumerGroup(_)
        | GroupRequest::ListTransactions(_)
        | GroupRequest::ShowTransaction(_) => true,
        GroupRequest::Operation(operation) => operations::only_tells(operation),
        _ => false,
    }
}

/// The client has ended: what it holds becomes visible soon, instead of when its leases end.
async fn terminate(
    hosted: &HostedGroup,
    context: &CallContext,
    termination: &ClientTermination,
) -> Result<GroupResponse, Ended> {
    let client = ClientHash::of(&context.client_id);
    hosted.liveness.terminated(client);
    let consumer_group =
        termination.consumer_group.as_ref().and_then(|name| hosted.state().consumer_group(name.as_str()));
    let Some(consumer_group) = consumer_group else { return Ok(GroupResponse::Done) };
    hosted.subscriptions.terminated(consumer_group.id, client);
    let release = ReleaseClient { consumer_group: consumer_group.id, client };
    match hosted.propose(Command::ReleaseClient(release).encode(hosted.now())).await? {
        // Unknown meanwhile: deleted, so nothing is held.
        Answer::Released(_) | Answer::Refused(_) => Ok(GroupResponse::Done),
        other => Err(unexpected("ReleaseClient", &other)),
    }
}

/// Wakes the long polls of a group from its apply.
pub struct WakeLongPolls(pub Arc<Waiters>);

impl ApplyObserver for WakeLongPolls {
    fn messages_arrived(&self, topic: TopicId, _queue: QueueId) {
        self.0.messages_arrived(topic);
    }

    fn leases_released(&self, consumer_group: ConsumerGroupId, topic: TopicId) {
        self.0.leases_released(consumer_group, topic);
    }

    fn lite_readable(&self, consumer_group: ConsumerGroupId, topic: TopicId, client: ClientHash) {
        self.0.lite_readable(topic, consumer_group, client);
    }

    fn lite_taken(&self) {
        self.0.lite_taken();
    }
}

fn name_of(request: &GroupRequest) -> &'static str {
    match request {
        GroupRequest::Send(_) => "send_message",
        GroupRequest::Receive(_) => "receive_message",
        GroupRequest::Ack(_) => "ack_message",
        GroupRequest::ChangeInvisible(_) => "change_invisible_duration",
        GroupRequest::DescribeTopic(_) => "describe_topic",
        GroupRequest::CreateTopic(_) => "create_topic",
        GroupRequest::DeleteTopic(_) => "delete_topic",
        GroupRequest::ListTopics => "list_topics",
        GroupRequest::ShowTopic(_) => "show_topic",
        GroupRequest::DescribeConsumerGroup(_) => "describe_consumer_group",
        GroupRequest::ClientHeartbeat(_) => "heartbeat",
        GroupRequest::ClientTermination(_) => "client_termination",
        GroupRequest::EndTransaction(_) => "end_transaction",
        GroupRequest::AwaitTransactionChecks(_) => "await_transaction_checks",
        GroupRequest::TransactionsAsked(_) => "transactions_asked",
        GroupRequest::ListTransactions(_) => "list_transactions",
        GroupRequest::ShowTransaction(_) => "show_transaction",
        GroupRequest::DeadLetter(_) => "forward_message_to_dead_letter_queue",
        GroupRequest::Recall(_) => "recall_message",
        GroupRequest::Pull(_) => "pull_message",
        GroupRequest::Offset(_) => "offset",
        GroupRequest::SyncLite(_) => "sync_lite_subscription",
        GroupRequest::AwaitTakenLite(_) => "await_taken_lite",
        GroupRequest::StoreBatch(_) => "store_batch",
        GroupRequest::Operation(_) => "admin_operation",
    }
}

fn outcome_of(result: &Result<GroupResponse, NotExecuted>) -> &'static str {
    match result {
        Ok(GroupResponse::Refused(_)) => "process_request_failed",
        Ok(_) => "success",
        Err(NotExecuted::NotLeader { .. } | NotExecuted::NotHosted) => "not_leader",
        Err(NotExecuted::OutcomeUnknown { .. }) => "outcome_unknown",
        Err(NotExecuted::Overloaded { .. }) => "overloaded",
        Err(NotExecuted::DeadlinePassed) => "deadline_passed",
        Err(NotExecuted::Stopping) => "cancelled",
    }
}
