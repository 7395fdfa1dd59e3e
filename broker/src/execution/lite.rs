//! Lite topics on the leader: sends, subscriptions, word of what was taken over, and what has been idle.
//!
//! | Condition | Answer |
//! |---|---|
//! | the topic is not of type LITE, or the consumer group is bound to another topic | BAD_REQUEST |
//! | one more lite topic than [`LITE_TOPICS_MAX`](ledgermq_common::limits::LITE_TOPICS_MAX) | LITE_TOPIC_QUOTA_EXCEEDED |
//! | more subscriptions than the client or the broker group may have | LITE_SUBSCRIPTION_QUOTA_EXCEEDED |
//! | a handle of another lite topic than the request names | ILLEGAL_LITE_TOPIC |
//!
//! In memory, and lost with leadership: which clients were told that a lite topic was taken from them.
//! The next leader tells them once more.

use std::collections::BTreeMap;
use std::sync::Weak;
use std::time::Duration;

use hashbrown::HashMap;
use ledgermq_common::clock::UnixMillis;
use ledgermq_common::{QueueId, ReceiptHandle};
use ledgermq_edge::codes::{self, topic_not_found};
use ledgermq_edge::context::CallContext;
use ledgermq_edge::group_call::{AwaitTakenLite, GroupResponse, Refused, SendRequest, SyncLite, TakenLite};
use ledgermq_proto::rocketmq::offset_option::{OffsetType, Policy};
use ledgermq_proto::rocketmq::{Code, LiteSubscriptionAction, OffsetOption, SendMessageResponse};
use parking_lot::Mutex;
use tokio::time::{Instant, MissedTickBehavior};

use super::hosted_group::{Ended, HostedGroup, refused, unexpected};
use super::{intake, produce};
use crate::state::{
    self, Answer, ClientHash, Command, ConsumerGroupId, ExpireLite, LiteAction, LiteStart, MessageType,
    ReleaseClient, TopicId, TopicView, encode_lite, encoded_lite_bytes,
};

/// A client that does not leave what it lost is told again after so long.
const TELL_AGAIN: Duration = Duration::from_secs(30);
/// What one answer tells at most.
const TOLD_PER_ANSWER_MAX: usize = 256;
/// Looks at the state in between, should a wake-up be missing.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
const POLL_END_MARGIN: Duration = Duration::from_millis(50);
const SWEEP_INTERVAL: Duration = Duration::from_secs(10);
/// Lite topics looked at in one sweep; the next goes on from there.
const SWEEP_SCAN_MAX: usize = 20_000;
/// Lite topics that one entry removes: small enough that apply does not hold others up.
const EXPIRED_PER_ENTRY_MAX: usize = 1_024;

/// Who was told of what, and when.
#[derive(Debug, Default)]
pub struct Told(Mutex<HashMap<(ConsumerGroupId, String, QueueId), Instant>>);

impl Told {
    /// Leaves those that were not told a moment ago, and notes that they are told now.
    fn untold(&self, taken: Vec<state::TakenLite>) -> Vec<TakenLite> {
        let now = Instant::now();
        let mut told = self.0.lock();
        told.retain(|_, at| now.duration_since(*at) < TELL_AGAIN);
        let mut untold = Vec::new();
        for taken in taken {
            let key = (taken.consumer_group, taken.client_id.clone(), taken.queue);
            if told.contains_key(&key) {
                continue;
            }
            told.insert(key, now);
            untold.push(TakenLite { client_id: taken.client_id, lite_topic: taken.lite_topic });
        }
        untold
    }

    /// The client subscribed, or left: what is taken from it after this is news.
    fn forget(&self, group: ConsumerGroupId, client_id: &str) {
        self.0.lock().retain(|key, _| key.0 != group || key.1 != client_id);
    }
}

/// Appends to one lite topic; the edge has placed it.
pub async fn send(
    hosted: &HostedGroup,
    context: &CallContext,
    send: &SendRequest,
    topic: &TopicView,
) -> Result<GroupResponse, Ended> {
    let queue = produce::queue_in_order(send, topic)?;
    let messages = intake::new_messages(&send.request, queue, hosted.now(), context.peer);
    let lite_topic = messages.first().and_then(|message| message.properties.lite_topic.clone());
    let lite_topic = lite_topic.unwrap_or_default();
    if messages.iter().any(|message| message.properties.lite_topic.as_ref() != Some(&lite_topic)) {
        let mixed = "messages of one request must have one lite_topic";
        return Err(Refused::new(Code::IllegalLiteTopic, mixed).into());
    }
    let command_bytes = encoded_lite_bytes(&lite_topic, &messages);
    let _room = produce::check_command(hosted, command_bytes, context).await?;
    let stored = match hosted.propose(encode_lite(hosted.now(), topic.id, &lite_topic, &messages)).await? {
        Answer::Stored(stored) => stored,
        Answer::Refused(refusal) => return Err(refused(refusal, send.topic.as_str()).into()),
        other => return Err(unexpected("AppendLite", &other)),
    };
    assert_eq!(stored.len(), messages.len(), "apply answers once for each message");
    let new = messages.iter().zip(&stored).filter(|(_, at)| !at.repeated);
    hosted.metrics.messages_in(send.topic.as_str(), new.map(|(message, _)| message.body.len()));
    let entries = messages.into_iter().zip(stored).map(|(message, at)| produce::entry(message.id, at));
    Ok(GroupResponse::Send(SendMessageResponse { status: Some(codes::ok()), entries: entries.collect() }))
}

pub async fn sync(
    hosted: &HostedGroup,
    context: &CallContext,
    sync: &SyncLite,
) -> Result<GroupResponse, Ended> {
    let topic = hosted
        .state
        .topic(sync.topic.as_str())
        .ok_or_else(|| Refused::from(topic_not_found(sync.topic.as_str())))?;
    let consumer_group = hosted.consumer_group_or_create(&sync.consumer_group).await?;
    let client = ClientHash::of(&context.client_id);
    hosted.liveness.heard_of(client);
    let lite_topics = sync
        .lite_topics
        .iter()
        .map(|name| (name.clone(), start(hosted, topic.id, name, sync.offset_option.as_ref())))
        .collect();
    let command = state::SyncLite {
        consumer_group: consumer_group.id,
        topic: topic.id,
        client_id: context.client_id.clone(),
        version: sync.version,
        action: match sync.action {
            LiteSubscriptionAction::PartialAdd => LiteAction::Add,
            LiteSubscriptionAction::PartialRemove => LiteAction::Remove,
            LiteSubscriptionAction::CompleteAdd => LiteAction::Replace,
            LiteSubscriptionAction::CompleteRemove => LiteAction::RemoveAll,
        },
        lite_topics,
    };
    match hosted.propose(Command::SyncLite(command).encode(hosted.now())).await? {
        Answer::LiteSynced(synced) => {
            if synced.added + synced.removed > 0 {
                hosted.told.forget(consumer_group.id, &context.client_id);
            }
            Ok(GroupResponse::Done)
        }
        Answer::Refused(refusal) => Err(refused(refusal, sync.topic.as_str()).into()),
        other => Err(unexpected("SyncLite", &other)),
    }
}

/// Where a consumer group begins that has never read the lite topic: behind what is there, unless the
/// client says otherwise.
fn start(hosted: &HostedGroup, topic: TopicId, name: &str, option: Option<&OffsetOption>) -> LiteStart {
    let number = |number: i64| u64::try_from(number).unwrap_or(0);
    match option.and_then(|option| option.offset_type.as_ref()) {
        None => LiteStart::Max,
        Some(OffsetType::Policy(policy)) => match Policy::try_from(*policy) {
            Ok(Policy::Last) => LiteStart::Last,
            Ok(Policy::Min) => LiteStart::Min,
            Ok(Policy::Max) | Err(_) => LiteStart::Max,
        },
        Some(&OffsetType::Offset(offset)) => LiteStart::Offset(number(offset)),
        Some(&OffsetType::TailN(messages)) => LiteStart::Tail(number(messages)),
        Some(&OffsetType::Timestamp(at_ms)) => {
            let queue = hosted.state.lite_queue(topic, name);
            let at = UnixMillis(number(at_ms));
            let offset = queue.and_then(|queue| hosted.state.offset_at(topic, queue, at));
            offset.map_or(LiteStart::Max, |offset| LiteStart::Offset(offset.get()))
        }
    }
}

/// The lite topic a request names is the one its handle is of. A request that names none is judged by
/// its handle alone.
pub fn check_lite_topic(
    hosted: &HostedGroup,
    topic: &TopicView,
    handle: &ReceiptHandle,
    named: Option<&str>,
) -> Result<(), Refused> {
    let Some(named) = named.filter(|named| !named.is_empty()) else { return Ok(()) };
    let of_handle = hosted.state.lite_name(topic.id, handle.queue);
    match of_handle {
        Some(name) if name == named => Ok(()),
        // It went meanwhile; the delivery itself says so.
        None if topic.settings.message_type == MessageType::Lite => Ok(()),
        other => Err(Refused::new(
            Code::IllegalLiteTopic,
            format!(
                "lite_topic is \"{}\"; the receipt handle is of {}",
                ledgermq_common::names::excerpt(named),
                other.map_or_else(|| "no lite topic".to_owned(), |name| format!("lite topic \"{name}\"")),
            ),
        )),
    }
}

/// Waits until something was taken from one of the clients.
pub async fn await_taken(hosted: &HostedGroup, wait: &AwaitTakenLite) -> Result<GroupResponse, Ended> {
    let ends = wait.poll_until.checked_sub(POLL_END_MARGIN).unwrap_or(wait.poll_until);
    let mut client_ids = wait.client_ids.clone();
    client_ids.sort_unstable();
    let mut taken = hosted.waiters.taken();
    let mut leadership = hosted.raft_leadership();
    let mut stopping = hosted.stopping.clone();
    loop {
        taken.mark_unchanged();
        leadership.borrow_and_update();
        hosted.leader_still()?;
        let untold = hosted.told.untold(hosted.state.taken_from(&client_ids, TOLD_PER_ANSWER_MAX));
        if !untold.is_empty() || *stopping.borrow_and_update() || Instant::now() >= ends {
            return Ok(GroupResponse::TakenLite(untold));
        }
        tokio::select! {
            _ = taken.changed() => {}
            () = tokio::time::sleep_until(ends.min(Instant::now() + LOOK_AGAIN)) => {}
            _ = leadership.changed() => {}
            _ = stopping.changed() => {}
        }
    }
}

/// Removes lite topics that have been idle too long, and readers that have gone without a word, while
/// this node leads.
pub async fn sweep_lite(hosted: Weak<HostedGroup>) {
    let mut tick = tokio::time::interval(SWEEP_INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut from = (TopicId(0), 0);
    loop {
        tick.tick().await;
        let Some(hosted) = hosted.upgrade() else { return };
        if !hosted.leads() {
            continue;
        }
        let (idle, next) = hosted.state.idle_lite_topics(from, hosted.now(), SWEEP_SCAN_MAX);
        from = next.unwrap_or((TopicId(0), 0));
        let mut by_topic: BTreeMap<TopicId, Vec<u32>> = BTreeMap::new();
        idle.into_iter().for_each(|(topic, queue)| by_topic.entry(topic).or_default().push(queue));
        let gone = hosted.state.lite_clients();
        let gone = gone.into_iter().filter(|(_, client)| !hosted.liveness.is_alive(*client));
        let expired = by_topic.into_iter().flat_map(|(topic, queues)| {
            let parts: Vec<Vec<u32>> = queues.chunks(EXPIRED_PER_ENTRY_MAX).map(<[u32]>::to_vec).collect();
            parts.into_iter().map(move |queues| Command::ExpireLite(ExpireLite { topic, queues }))
        });
        let released = gone
            .map(|(consumer_group, client)| Command::ReleaseClient(ReleaseClient { consumer_group, client }));
        for command in released.chain(expired).collect::<Vec<_>>() {
            if let Err(ended) = hosted.propose(command.encode(hosted.now())).await {
                tracing::debug!(group = %hosted.name(), ?ended, "idle lite topics wait for the next sweep");
                break;
            }
        }
    }
}
