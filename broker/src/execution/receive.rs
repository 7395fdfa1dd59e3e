//! ReceiveMessage on the leader: plan from applied state, lease through the log, deliver what apply
//! granted.
//!
//! ```text
//! plan ──► filter by the record ──► propose lease ──► granted? ──► read, build, answer
//!   │ nothing                                           │ nothing (another leader's lease won)
//!   ▼                                                   └──► plan again
//! wait: arrival, end of a lease, loss of leadership, stop, end of the poll
//! ```
//!
//! The index knows a tag by its hash code only and nothing of the properties, so the plan is compared
//! with the records before it is proposed ([`super::wanted`]); what does not match counts as consumed
//! by the same command, unless another member of the consumer group wants it ([`super::subscriptions`]):
//! then it is left as it is, and that member is woken.
//!
//! | Failure | What happens |
//! |---|---|
//! | leadership lost while waiting | NotLeader at once; the edge goes on at the new leader |
//! | client, or the node between, gone with the answer | nothing says that it arrived: its leases are not renewed ([`super::renewal`]) |
//! | client gone while its lease is being proposed | the lease is ended one second later, so that others get the messages |
//! | a record cannot be read | the message is not delivered; its lease ends and it is tried again |
//! | stop of the process | MESSAGE_NOT_FOUND: the client polls again, elsewhere |

mod in_order;
mod lite;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ledgermq_common::limits::RECEIVE_BATCH_MESSAGES_MAX;
use ledgermq_common::names::DEAD_LETTER_TOPIC_PREFIX;
use ledgermq_edge::arrival::Arrival;
use ledgermq_edge::codes::{self, topic_not_found};
use ledgermq_edge::context::CallContext;
use ledgermq_edge::group_call::{Filter, GroupResponse, NotExecuted, ReceiveRequest, Received, Refused};
use ledgermq_proto::rocketmq::{Code, Message, Resource, Status};
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::dead_letters::letter_at;
use super::delivery::{Delivery, delivered};
use super::hosted_group::{Ended, HostedGroup, refused, unexpected};
use super::subscriptions::{self, Membership, Others};
use super::waiters::Place;
use super::wanted::{SQL_EXAMINED_MAX, SQL_SKIPPED_MIN, Wanted};
use crate::state::{
    self, Answer, AttemptHash, ChangeInvisible, ClientHash, Command, ConsumerGroupView, DeadLetterRecord,
    DeliveryEpoch, Granted, HOLES_OF_QUEUE_MAX, IndexEntry, LeasePlan, QueueChoice, StoredMessage, TopicView,
};

/// Bodies of one answer together; a single message may be larger. The answer may travel from the
/// leader to another node in one piece.
const RECEIVE_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// A poll ends this long before its time, so that the empty answer arrives within it.
const POLL_END_MARGIN: Duration = Duration::from_millis(50);
/// How long messages stay invisible that were leased for a client which had gone.
const ABANDONED_INVISIBLE_MS: u64 = 1_000;
/// The least time between two looks that the end of a lease causes.
const EXPIRY_WAIT_MIN: Duration = Duration::from_millis(5);

/// Everything about a receive that does not change while it waits.
struct Poll<'a> {
    hosted: &'a Arc<HostedGroup>,
    request: &'a ReceiveRequest,
    topic: TopicView,
    consumer_group: ConsumerGroupView,
    client: ClientHash,
    wanted: Wanted,
    is_lite: bool,
    /// A client reads lite topics by name, whatever others of its group read.
    membership: Option<Membership<'a>>,
    /// What the answer holds, where its arrival is waited for.
    delivered: Mutex<Vec<DeliveryEpoch>>,
}

pub async fn receive(
    hosted: &Arc<HostedGroup>,
    context: &CallContext,
    request: &ReceiveRequest,
) -> Result<GroupResponse, Ended> {
    let ends = request.poll_until.checked_sub(POLL_END_MARGIN).unwrap_or(request.poll_until);
    let topic = hosted
        .state
        .topic(request.topic.as_str())
        .ok_or_else(|| Refused::from(topic_not_found(request.topic.as_str())))?;
    if !topic.settings.permission.may_read() {
        return Err(Refused::new(Code::Forbidden, format!("topic {} is not readable", request.topic)).into());
    }
    let consumer_group = hosted.consumer_group_or_create(&request.consumer_group).await?;
    let client = ClientHash::of(&context.client_id);
    hosted.liveness.heard_of(client);
    lite::check_binding(&topic, &hosted.state.group_attributes(consumer_group.id).bind_topic)?;
    let is_lite = topic.settings.message_type == state::MessageType::Lite;
    // A client reads lite topics by name, not by content.
    let wanted = if is_lite { Wanted::of(&Filter::All) } else { Wanted::of(&request.filter) };
    let key = (consumer_group.id, topic.id);
    let membership = if is_lite {
        None
    } else {
        Some(subscriptions::join(hosted, key, (client, &context.client_id), &request.filter).await?)
    };
    let delivered = Mutex::default();
    let poll =
        Poll { hosted, request, topic, consumer_group, client, wanted, is_lite, membership, delivered };
    let repeated = poll.repeated();
    let messages = if repeated.is_empty() { poll.until(ends).await? } else { repeated };
    let body_bytes = messages.iter().map(|message| message.body.len()).sum();
    hosted.metrics.messages_out(
        request.topic.as_str(),
        request.consumer_group.as_str(),
        messages.len(),
        body_bytes,
    );
    let status = if messages.is_empty() {
        Status { code: Code::MessageNotFound.into(), message: "no new message".to_owned() }
    } else {
        codes::ok()
    };
    let arrival = if request.auto_renew && !messages.is_empty() {
        let (hosted, delivered) = (Arc::clone(hosted), poll.delivered.into_inner());
        Arrival::new(move |has_arrived| {
            if has_arrived {
                hosted.arrivals.arrived(&delivered);
            }
        })
    } else {
        Arrival::default()
    };
    Ok(GroupResponse::Receive(Received { status, messages, delivery_timestamp: hosted.now(), arrival }))
}

impl Poll<'_> {
    /// What this very receive was granted before: the leader that granted it, or the connection,
    /// died before the answer arrived. The leases are in the log already.
    fn repeated(&self) -> Vec<Message> {
        let Some(attempt_id) = &self.request.attempt_id else { return Vec::new() };
        let (state, topic) = (&self.hosted.state, self.topic.id);
        let deliveries = state.deliveries_of(
            self.consumer_group.id,
            topic,
            AttemptHash::of(self.client, attempt_id),
            self.hosted.now(),
            RECEIVE_BATCH_MESSAGES_MAX as usize,
        );
        let again = deliveries.into_iter().filter_map(|delivery| {
            let granted = delivery.granted;
            let entry = state.locate(topic, granted.queue, granted.offset)?;
            Some(self.message(read_record(self.hosted, entry)?, granted, delivery.renewal, entry))
        });
        again.collect()
    }

    /// Messages, or none when the time is up or the process leaves.
    async fn until(&self, ends: Instant) -> Result<Vec<Message>, Ended> {
        let mut leadership = self.hosted.raft_leadership();
        let mut stopping = self.hosted.stopping.clone();
        let mut place: Option<Place> = None;
        loop {
            if let Some(place) = &place {
                place.about_to_look();
            }
            leadership.borrow_and_update();
            self.hosted.leader_still()?;
            match self.look(SQL_SKIPPED_MIN).await? {
                Look::Delivered { messages, more } => {
                    if more {
                        self.hosted.waiters.leases_released(self.consumer_group.id, self.topic.id);
                    }
                    return Ok(messages);
                }
                // Something was consumed or lost to another lease; there may be more behind it.
                Look::Again if Instant::now() < ends => {
                    tokio::task::yield_now().await;
                    continue;
                }
                Look::Again | Look::Nothing => {}
            }
            if *stopping.borrow_and_update() {
                return Ok(Vec::new());
            }
            if Instant::now() >= ends {
                return self.last_look().await;
            }
            let Some(place) = &place else {
                let (topic, group) = (self.topic.id, self.consumer_group.id);
                let taken = if self.is_lite {
                    self.hosted.waiters.wait_for_lite(topic, group, self.client)
                } else {
                    self.hosted.waiters.wait_in_line(topic, group)
                };
                place = Some(taken.map_err(|full| Refused::new(Code::TooManyRequests, full.to_string()))?);
                // What arrived before the place was taken woke nobody: look once more.
                continue;
            };
            // What this filter does not want, another consumer may.
            if !self.wanted.is_everything() {
                place.pass_on();
            }
            tokio::select! {
                () = place.woken() => {}
                () = tokio::time::sleep_until(ends.min(self.next_expiry())) => {}
                _ = leadership.changed() => {}
                _ = stopping.changed() => {}
            }
        }
    }

    /// When a message of this consumer group becomes visible again.
    fn next_expiry(&self) -> Instant {
        let far = Instant::now() + Duration::from_secs(3600);
        let now = self.hosted.now();
        let next = self.hosted.state.next_expiry(self.consumer_group.id, self.topic.id, now);
        let Some(next) = next else { return far };
        let wait = Duration::from_millis(next.saturating_ms_since(now));
        Instant::now() + wait.max(EXPIRY_WAIT_MIN)
    }

    /// At the end of a poll even a few unwanted messages are put behind the consumer group.
    async fn last_look(&self) -> Result<Vec<Message>, Ended> {
        match self.wanted {
            Wanted::Tags(_) => Ok(Vec::new()),
            Wanted::Sql(_) => match self.look(1).await? {
                Look::Delivered { messages, .. } => Ok(messages),
                Look::Again | Look::Nothing => Ok(Vec::new()),
            },
        }
    }

    /// Unwanted messages alone are put behind the group from `skipped_min` on.
    async fn look(&self, skipped_min: usize) -> Result<Look, Ended> {
        if self.is_lite {
            return self.look_lite().await;
        }
        let others = match &self.membership {
            Some(membership) => membership.others().await?,
            None => Others::default(),
        };
        if self.consumer_group.settings.fifo {
            return self.look_in_order(skipped_min, &others).await;
        }
        let Some(mut plan) = self.plan(&others) else { return Ok(Look::Nothing) };
        let mut records = Records::default();
        let mut is_left = false;
        if !self.wanted.is_everything() {
            let compared = self.compare(&mut plan, &mut records, &others);
            is_left = compared.is_left;
            let is_worth_it = match self.wanted {
                Wanted::Sql(_) => compared.found > 0 || compared.rejected >= skipped_min,
                Wanted::Tags(_) => true,
            };
            if !is_worth_it {
                // Nobody is woken for it, but for what is theirs: two such receives would wake each
                // other for ever. The next in line is asked by passing on.
                plan.settle();
                self.wake_others(is_left);
                return Ok(Look::Nothing);
            }
        }
        let planned: Vec<_> = plan.messages().iter().map(|m| ((m.queue, m.offset), m.entry)).collect();
        let more = planned.len() >= self.request.batch_size as usize || fills_answer(&planned);
        let granted = self.lease(plan).await;
        self.wake_others(is_left);
        Ok(self.deliver(granted?, &planned, records, more))
    }

    /// What was found to be for others is free for them from here on.
    fn wake_others(&self, is_left: bool) {
        if is_left {
            self.hosted.waiters.leases_released(self.consumer_group.id, self.topic.id);
        }
    }

    /// Reads what was granted, in the order of the plan.
    fn deliver(
        &self,
        granted: Vec<Granted>,
        planned: &[(QueuePlace, IndexEntry)],
        mut records: Records,
        more: bool,
    ) -> Look {
        let mut messages = Vec::with_capacity(granted.len());
        for (place, entry) in planned {
            let lease = granted.iter().find(|lease| (lease.queue, lease.offset) == *place);
            let Some(&lease) = lease else { continue };
            if let Some(stored) = records.take_or_read(self.hosted, *place, *entry) {
                messages.push(self.message(stored, lease, 0, *entry));
            }
        }
        if messages.is_empty() { Look::Again } else { Look::Delivered { messages, more } }
    }

    /// A plan whose bodies fit into one answer.
    fn plan(&self, others: &Others) -> Option<LeasePlan> {
        let mut messages_max = match self.wanted {
            Wanted::Tags(_) => self.request.batch_size.clamp(1, RECEIVE_BATCH_MESSAGES_MAX),
            Wanted::Sql(_) => SQL_EXAMINED_MAX,
        };
        loop {
            let plan = self.hosted.state.plan_receive(&state::ReceiveRequest {
                consumer_group: self.consumer_group.id,
                topic: self.topic.id,
                queues: QueueChoice::All,
                messages_max,
                now: self.hosted.now(),
                filter: self.wanted.tags(),
                others: others.plan.clone(),
            })?;
            if matches!(self.wanted, Wanted::Sql(_)) {
                return Some(plan);
            }
            let bytes: u64 = plan.messages().iter().map(|m| self.answer_bytes(m.entry)).sum();
            if bytes <= RECEIVE_BYTES_MAX || messages_max == 1 {
                return Some(plan);
            }
            messages_max /= 2;
        }
    }

    /// What a message takes in the answer. The entry of a dead letter is a reference to it.
    fn answer_bytes(&self, entry: IndexEntry) -> u64 {
        let letter =
            self.topic.name.starts_with(DEAD_LETTER_TOPIC_PREFIX).then(|| letter_at(self.hosted, entry));
        u64::from(letter.flatten().map_or(entry.record_bytes, |letter| letter.record_bytes))
    }

    /// Judges what is planned, in its order, until the batch is full. The rest leaves the plan.
    fn compare(&self, plan: &mut LeasePlan, records: &mut Records, others: &Others) -> Compared {
        let planned: Vec<_> = plan.messages().iter().map(|m| (m.queue, m.offset, m.entry)).collect();
        let batch = self.request.batch_size.clamp(1, RECEIVE_BATCH_MESSAGES_MAX) as usize;
        let (mut found, mut bytes) = (0, 0);
        let (mut rejected, mut is_left) = (0, false);
        // Queues that have as many holes as they may: nothing behind what is left there is seen.
        let mut full = BTreeSet::new();
        for (position, (queue, offset, entry)) in planned.into_iter().enumerate() {
            if full.contains(&queue) {
                plan.leave_nth(position);
                continue;
            }
            let record_bytes = self.answer_bytes(entry);
            if found >= batch || (found > 0 && bytes + record_bytes > RECEIVE_BYTES_MAX) {
                plan.keep_first(position);
                break;
            }
            match read_record(self.hosted, entry) {
                Some(stored) if !self.wanted.wants(&stored) && others.want(&stored) => {
                    plan.leave_nth(position);
                    is_left |= others.plan.left.add(queue.get(), offset.get());
                    if plan.holes_of(queue) >= HOLES_OF_QUEUE_MAX {
                        full.insert(queue);
                    }
                    continue;
                }
                Some(stored) if !self.wanted.wants(&stored) => {
                    plan.reject_nth(position);
                    rejected += 1;
                    continue;
                }
                Some(stored) => records.0.push(((queue, offset), stored)),
                // One that cannot be read now is leased all the same, and tried again by its expiry.
                None => {}
            }
            found += 1;
            bytes += record_bytes;
        }
        Compared { found, rejected, is_left }
    }

    async fn lease(&self, plan: LeasePlan) -> Result<Vec<Granted>, Ended> {
        let command = plan.command(
            self.client,
            self.request.invisible_ms,
            self.request.auto_renew,
            self.request.attempt_id.as_deref().unwrap_or_default(),
        );
        let wanted = plan.delivers();
        self.propose_lease(command, wanted, move || plan.settle()).await
    }

    /// Proposes the lease in a task of its own: a client that goes away meanwhile must not take
    /// its messages with it for the whole invisible time. `settle` owns the plan: it is called if all
    /// that is wanted was granted, and dropped otherwise.
    async fn propose_lease(
        &self,
        command: Command,
        wanted: usize,
        settle: impl FnOnce() + Send + 'static,
    ) -> Result<Vec<Granted>, Ended> {
        let (answer, answered) = oneshot::channel();
        let hosted = Arc::clone(self.hosted);
        let (topic, consumer_group, is_lite) = (self.topic.id, self.consumer_group.id, self.is_lite);
        tokio::spawn(async move {
            let result = hosted.propose(command.encode(hosted.now())).await;
            // What is planned and was not granted may be planned for others from here on.
            if matches!(&result, Ok(Answer::Leased(granted)) if granted.len() == wanted) {
                settle();
            } else {
                drop(settle);
            }
            let Err(Ok(Answer::Leased(granted))) = answer.send(result) else { return };
            for lease in granted {
                let change = ChangeInvisible {
                    consumer_group,
                    topic,
                    queue: lease.queue,
                    offset: lease.offset,
                    epoch: lease.epoch,
                    invisible_ms: ABANDONED_INVISIBLE_MS,
                };
                // One of several polls of a lite client that lost the race was never a try to consume.
                let command =
                    if is_lite { Command::SuspendDelivery(change) } else { Command::ChangeInvisible(change) };
                let command = command.encode(hosted.now());
                if let Err(ended) = hosted.propose(command).await {
                    tracing::debug!(?ended, "an abandoned delivery waits for the end of its lease");
                    return;
                }
            }
        });
        match answered.await.map_err(|_| NotExecuted::Stopping)?? {
            Answer::Leased(granted) => Ok(granted),
            Answer::Refused(refusal) => Err(refused(refusal, self.request.topic.as_str()).into()),
            other => Err(unexpected("LeaseMessages", &other)),
        }
    }

    fn message(&self, stored: StoredMessage, lease: Granted, renewal: u32, entry: IndexEntry) -> Message {
        if self.request.auto_renew {
            self.delivered.lock().push(lease.epoch);
        }
        let handle = self.hosted.state.handle_of(self.consumer_group.id, self.topic.id, &lease, renewal);
        let topic = Resource { resource_namespace: String::new(), name: self.request.topic.to_string() };
        // Of a lite topic: the queue of the parent by which it was placed.
        let queue = if self.is_lite { stored.queue } else { lease.queue };
        delivered(
            stored,
            Delivery {
                topic: &topic,
                queue,
                offset: lease.offset,
                stored_at: entry.stored_at,
                store_host: &self.hosted.settings.store_host,
                receipt_handle: handle.encode(),
                attempt: lease.attempt,
                invisible_ms: self.request.invisible_ms,
            },
        )
    }
}

/// What the records of a plan said.
struct Compared {
    found: usize,
    rejected: usize,
    /// Something was left for others that was not known to be for them.
    is_left: bool,
}

enum Look {
    Delivered {
        messages: Vec<Message>,
        /// The batch was full: others may find more.
        more: bool,
    },
    Again,
    Nothing,
}

/// There was hardly room for more.
fn fills_answer(planned: &[(QueuePlace, IndexEntry)]) -> bool {
    planned.iter().map(|(_, entry)| u64::from(entry.record_bytes)).sum::<u64>() >= RECEIVE_BYTES_MAX / 2
}

type QueuePlace = (ledgermq_common::QueueId, ledgermq_common::QueueOffset);

/// Records that were read for their tags already.
#[derive(Default)]
struct Records(Vec<(QueuePlace, StoredMessage)>);

impl Records {
    fn take_or_read(
        &mut self,
        hosted: &HostedGroup,
        place: QueuePlace,
        entry: IndexEntry,
    ) -> Option<StoredMessage> {
        match self.0.iter().position(|(at, _)| *at == place) {
            Some(found) => Some(self.0.swap_remove(found).1),
            None => read_record(hosted, entry),
        }
    }
}

/// The message an index entry points at, also by way of a dead letter.
pub(super) fn read_record(hosted: &HostedGroup, entry: IndexEntry) -> Option<StoredMessage> {
    let bytes = read_bytes(hosted, entry)?;
    if !DeadLetterRecord::is_one(&bytes) {
        return decode(hosted, entry, &bytes);
    }
    let letter = match DeadLetterRecord::decode(&bytes) {
        Ok(letter) => letter,
        Err(error) => {
            tracing::error!(group = %hosted.name, at = %entry.physical, %error, "a dead letter cannot be decoded");
            return None;
        }
    };
    let message = IndexEntry { physical: letter.physical, record_bytes: letter.record_bytes, ..entry };
    let stored = decode(hosted, message, &read_bytes(hosted, message)?)?;
    Some(StoredMessage { dead_letter: Some(Box::new(letter)), ..stored })
}

fn read_bytes(hosted: &HostedGroup, entry: IndexEntry) -> Option<Bytes> {
    match hosted.group.read(entry.physical, entry.record_bytes) {
        Ok(bytes) => Some(bytes),
        Err(error) => {
            tracing::error!(group = %hosted.name, at = %entry.physical, %error, "a message cannot be read");
            None
        }
    }
}

fn decode(hosted: &HostedGroup, entry: IndexEntry, record: &Bytes) -> Option<StoredMessage> {
    match StoredMessage::decode(record) {
        Ok(stored) => Some(stored),
        Err(error) => {
            tracing::error!(group = %hosted.name, at = %entry.physical, %error, "a record cannot be decoded");
            None
        }
    }
}
