//! What the executor asks the state about lite topics: plans of receives, who is to be told that a lite
//! topic was taken over, what has been idle.
//!
//! A plan of a client looks at the lite topics it reads and at nothing else, beginning at another one
//! each time. Nothing is reserved in memory: a lite topic has hardly ever more than one reader, and
//! of two receives that plan the same messages apply grants one.

use std::ops::Range;

use ledgermq_common::clock::UnixMillis;
use ledgermq_common::{QueueId, QueueOffset};

use super::applied::lite::LITE_QUEUE_MIN;
use super::command::{Command, GroupAttributes, LeaseInOrder, OrderedMessage, OrderedPart};
use super::consume_queue::{IndexEntry, QueueKey};
use super::machine::BrokerState;
use super::names::{ClientHash, ConsumerGroupId, OrderKey, TopicId};

#[derive(Debug, Clone, Copy)]
pub struct LiteReceive {
    pub consumer_group: ConsumerGroupId,
    pub topic: TopicId,
    pub client: ClientHash,
    pub messages_max: u32,
    /// Records together; a single one may be larger.
    pub bytes_max: u64,
    pub now: UnixMillis,
}

/// Messages of lite topics to be leased, in order per lite topic.
#[derive(Debug)]
pub struct LitePlan {
    request: LiteReceive,
    messages: Vec<(QueueId, OrderedMessage, IndexEntry)>,
}

/// A lite topic as administrators see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiteTopicView {
    pub name: String,
    pub queue: QueueId,
    pub range: Range<u64>,
    pub used_at: UnixMillis,
    pub readers: Vec<LiteReader>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiteReader {
    pub consumer_group: String,
    pub client_id: String,
}

/// A lite topic that was taken from a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TakenLite {
    pub consumer_group: ConsumerGroupId,
    pub client_id: String,
    pub queue: QueueId,
    pub lite_topic: String,
}

impl LitePlan {
    pub fn messages(&self) -> impl ExactSizeIterator<Item = (QueueId, QueueOffset, IndexEntry)> {
        self.messages.iter().map(|(queue, message, entry)| (*queue, message.offset, *entry))
    }

    /// The command to propose.
    pub fn command(&self, invisible_ms: u64, auto_renew: bool, attempt_id: &str) -> Command {
        let mut parts: Vec<OrderedPart> = Vec::new();
        for (queue, message, _) in &self.messages {
            match parts.last_mut() {
                Some(part) if part.queue == *queue => part.messages.push(*message),
                _ => {
                    parts.push(OrderedPart { queue: *queue, messages: vec![*message], pass_over: Vec::new() })
                }
            }
        }
        Command::LeaseInOrder(LeaseInOrder {
            consumer_group: self.request.consumer_group,
            topic: self.request.topic,
            client: self.request.client,
            invisible_ms,
            auto_renew,
            attempt_id: attempt_id.to_owned(),
            parts,
        })
    }
}

impl BrokerState {
    /// `None`: nothing for this client now.
    pub fn plan_lite_receive(&self, request: &LiteReceive) -> Option<LitePlan> {
        let chosen = self.lite_candidates(request)?;
        let (mut messages, mut bytes) = (Vec::new(), 0);
        'queues: for (queue, offsets) in chosen {
            for (offset, again) in offsets {
                let key = QueueKey::new(request.topic, QueueId(queue));
                let view = self.index_view(key, offset, offset + 1);
                let found = view.read().first().filter(|(at, _)| *at == offset).map(|(_, entry)| *entry);
                // What lies behind one that cannot be found must not overtake it.
                let Some(entry) = found else { continue 'queues };
                bytes += u64::from(entry.record_bytes);
                if !messages.is_empty() && bytes > request.bytes_max {
                    break 'queues;
                }
                let order = OrderKey::of(None);
                let message = OrderedMessage { offset: QueueOffset(offset), order, again };
                messages.push((QueueId(queue), message, entry));
            }
        }
        (!messages.is_empty()).then_some(LitePlan { request: *request, messages })
    }

    /// Per lite topic the offsets that may go now, and whether each was delivered before.
    fn lite_candidates(&self, request: &LiteReceive) -> Option<Vec<(u32, Vec<(u64, bool)>)>> {
        let applied = self.applied_state();
        let client = applied.lite.clients.get(&(request.consumer_group, request.client))?;
        if client.topic != request.topic || client.reads.is_empty() {
            return None;
        }
        let attempts_max = applied.consumer_groups.get(&request.consumer_group)?.settings.attempts_max;
        let subscription = applied.subscriptions.get(&(request.consumer_group, request.topic))?;
        let now = applied.scalars.now.max(request.now);
        let first = self.reservations().next_first_queue(u32::try_from(client.reads.len()).ok()?);
        let from = client.reads.iter().nth(first as usize).copied().unwrap_or(LITE_QUEUE_MIN);
        let in_turn = client.reads.range(from..).chain(client.reads.range(..from));
        let mut left = request.messages_max as usize;
        let mut chosen = Vec::new();
        for &queue in in_turn {
            if left == 0 {
                break;
            }
            let Some(progress) = subscription.queues.get(&queue) else { continue };
            let Some(range) = applied.lite.range(request.topic, queue) else { continue };
            // One that is held, or on its way to the dead letters, holds up those behind it.
            if progress.leases.values().any(|lease| lease.until > now || lease.is_last(attempts_max)) {
                continue;
            }
            let again = progress.leases.keys().map(|&offset| (offset, true));
            let unseen = progress.unseen(range.max);
            let unseen = unseen.flat_map(|(from, to)| from.max(range.min)..to).map(|offset| (offset, false));
            let mut offsets: Vec<(u64, bool)> = again.chain(unseen.take(left)).collect();
            offsets.sort_unstable();
            offsets.truncate(left);
            left -= offsets.len();
            if !offsets.is_empty() {
                chosen.push((queue, offsets));
            }
        }
        (!chosen.is_empty()).then_some(chosen)
    }

    pub fn group_attributes(&self, group: ConsumerGroupId) -> GroupAttributes {
        self.applied_state().lite.attributes(group)
    }

    /// The name of the lite topic behind a queue.
    pub fn lite_name(&self, topic: TopicId, queue: QueueId) -> Option<String> {
        self.applied_state().lite.topics.get(&(topic, queue.get())).map(|lite| lite.name.to_string())
    }

    pub fn lite_queue(&self, topic: TopicId, name: &str) -> Option<QueueId> {
        self.applied_state().lite.find(topic, name).map(QueueId)
    }

    pub(crate) fn lite_ranges(&self, topic: TopicId) -> Vec<(u32, Range<u64>)> {
        let applied = self.applied_state();
        let of_parent = applied.lite.of_parent(topic);
        of_parent.map(|(queue, lite)| (queue, lite.range.min..lite.range.max)).collect()
    }

    /// Lite topics of a parent in the order they were made, from a queue on, and how long idle ones are
    /// kept (0: for ever).
    pub fn lite_topics(&self, topic: TopicId, from: QueueId, max: usize) -> (Vec<LiteTopicView>, u64) {
        let applied = self.applied_state();
        let expire_after_ms = applied.lite.parents.get(&topic).map_or(0, |parent| parent.expire_after_ms);
        let of_parent = applied.lite.topics.range((topic, from.get())..=(topic, u32::MAX));
        let views = of_parent.take(max).map(|(&(_, queue), lite)| LiteTopicView {
            name: lite.name.to_string(),
            queue: QueueId(queue),
            range: lite.range.min..lite.range.max,
            used_at: lite.used_at,
            readers: applied
                .lite
                .readers(topic, queue)
                .filter_map(|(group, client)| {
                    Some(LiteReader {
                        consumer_group: applied.consumer_groups.get(&group)?.name.clone(),
                        client_id: applied.lite.clients.get(&(group, client))?.client_id.clone(),
                    })
                })
                .collect(),
        });
        (views.collect(), expire_after_ms)
    }

    /// What was taken from these clients and they do not know of yet, as far as the state can tell.
    pub fn taken_from(&self, client_ids: &[String], max: usize) -> Vec<TakenLite> {
        let applied = self.applied_state();
        let mut taken = Vec::new();
        // Few clients have lost anything, however many there are.
        let losers = applied.lite.clients.iter().filter(|(_, client)| !client.lost.is_empty());
        for (&(consumer_group, _), client) in losers {
            if client_ids.binary_search(&client.client_id).is_err() {
                continue;
            }
            for &queue in &client.lost {
                let Some(lite) = applied.lite.topics.get(&(client.topic, queue)) else { continue };
                if taken.len() >= max {
                    return taken;
                }
                taken.push(TakenLite {
                    consumer_group,
                    client_id: client.client_id.clone(),
                    queue: QueueId(queue),
                    lite_topic: lite.name.to_string(),
                });
            }
        }
        taken
    }

    /// The clients that read lite topics, by consumer group.
    pub fn lite_clients(&self) -> Vec<(ConsumerGroupId, ClientHash)> {
        self.applied_state().lite.clients.keys().copied().collect()
    }

    /// Looks at lite topics from `from` on, at most `scan_max`, and answers those that have been idle too
    /// long, and where to go on; `None` at the end.
    pub fn idle_lite_topics(
        &self,
        from: (TopicId, u32),
        now: UnixMillis,
        scan_max: usize,
    ) -> (Vec<(TopicId, u32)>, Option<(TopicId, u32)>) {
        let applied = self.applied_state();
        let mut idle = Vec::new();
        let mut scanned = 0;
        for &(topic, queue) in applied.lite.topics.range(from..).map(|(key, _)| key) {
            if scanned == scan_max {
                return (idle, Some((topic, queue)));
            }
            scanned += 1;
            if applied.is_expired(topic, queue, now.max(applied.scalars.now)) {
                idle.push((topic, queue));
            }
        }
        (idle, None)
    }
}
