//! Requests about the topic with order, and its growth, which the leader drives as the product's does.
//!
//! | Request | Fields, little endian |
//! |---|---|
//! | 50 send | generation u32, queue u32, key u8, id |
//! | 51 receive | messages at most u32, invisible ms u64, client u64, attempt id |
//! | 52 ack | queue u32, offset u64, epoch u64 |
//! | 53 change | as 52, invisible ms u64 |
//! | 54 placement | none; any node answers, from what it has applied |
//! | 55 grow | queues u32 |
//!
//! A message carries its key as its tag too, so that a leader finds its order in the index, also where
//! the run has purged the log.

use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use ledgermq_broker::state::command::{AckEntry, ConsumerGroupSettings, MessageProperties};
use ledgermq_broker::state::{
    AckMessages, Answer, AttemptHash, ChangeInvisible, ClientHash, CloseGeneration, Command, ConsumerGroupId,
    DrainGeneration, Generation, IndexEntry, MessageType, NewMessage, OpenGeneration, OrderKey, OthersWant,
    PrepareGeneration, QueueChoice, ReceiveRequest, TagFilter, TopicId, TopicSettings,
    encode_append_in_order, tag_code,
};
use ledgermq_common::clock::Clock as _;
use ledgermq_common::{GroupName, QueueId, QueueLayout, QueueOffset};
use ledgermq_raft_store::group::ProposeError;

use super::{BodyEncoding, FIRE_LOOK, Front, Response, decode_entry, put_entry};

pub const ORDERED_TOPIC: &str = "steps";
pub const ORDERED_GROUP: &str = "workers";
/// Message groups of the workload.
pub const KEYS: u8 = 6;
/// Queues the topic begins with.
pub const FIRST_QUEUES: u32 = 2;

#[derive(Debug, Clone)]
pub enum OrderedRequest {
    Send { generation: u32, queue: u32, key: u8, id: String },
    Receive { messages_max: u32, invisible_ms: u64, client: u64, attempt_id: String },
    Ack(AckEntry),
    Change { entry: AckEntry, invisible_ms: u64 },
    Placement,
    Grow { queues: u32 },
}

/// The name of a message group.
pub fn key_name(key: u8) -> String {
    format!("key-{key}")
}

/// The layout of a topic whose one broker group has so many queues.
pub fn layout(queues: u32) -> Arc<QueueLayout> {
    let group = GroupName::parse("group").expect("a name");
    Arc::new(QueueLayout::new([(group, queues)]).expect("a group with queues"))
}

impl Front {
    pub(super) async fn execute_ordered(&self, request: OrderedRequest) -> Result<Answer, ProposeError> {
        let topic = self.ordered_topic().await?;
        match request {
            OrderedRequest::Send { generation, queue, key, id } => {
                let message = NewMessage {
                    queue: QueueId(queue),
                    id,
                    message_type: MessageType::Fifo,
                    body_encoding: BodyEncoding::Identity,
                    born_at: self.clock.now(),
                    properties: MessageProperties {
                        tag: Some(key_name(key)),
                        message_group: Some(key_name(key)),
                        ..MessageProperties::default()
                    },
                    body: Bytes::new(),
                };
                let generation = Generation(generation);
                self.propose(encode_append_in_order(self.clock.now(), topic, generation, &[message])).await
            }
            OrderedRequest::Receive { messages_max, invisible_ms, client, attempt_id } => {
                self.receive_in_order(topic, messages_max, invisible_ms, ClientHash(client), &attempt_id)
                    .await
            }
            OrderedRequest::Ack(entry) => {
                let consumer_group = self.ordered_group().await?;
                let acks = AckMessages { consumer_group, topic, entries: vec![entry] };
                self.propose(Command::AckMessages(acks).encode(self.clock.now())).await
            }
            OrderedRequest::Change { entry, invisible_ms } => {
                let change = ChangeInvisible {
                    consumer_group: self.ordered_group().await?,
                    topic,
                    queue: entry.queue,
                    offset: entry.offset,
                    epoch: entry.epoch,
                    invisible_ms,
                };
                self.propose(Command::ChangeInvisible(change).encode(self.clock.now())).await
            }
            OrderedRequest::Placement => unreachable!("answered without the leader"),
            OrderedRequest::Grow { queues } => {
                let placement = self.state.topic_by_id(topic).and_then(|topic| topic.placement);
                let (current, former) = placement
                    .map_or_else(|| (0, layout(FIRST_QUEUES)), |of| (of.generation.get(), of.layout));
                let prepare = PrepareGeneration {
                    topic,
                    generation: Generation(current + 1),
                    queues,
                    former,
                    layout: layout(queues),
                };
                self.propose(Command::PrepareGeneration(prepare).encode(self.clock.now())).await
            }
        }
    }

    async fn receive_in_order(
        &self,
        topic: TopicId,
        messages_max: u32,
        invisible_ms: u64,
        client: ClientHash,
        attempt_id: &str,
    ) -> Result<Answer, ProposeError> {
        let consumer_group = self.ordered_group().await?;
        let attempt = AttemptHash::of(client, attempt_id);
        let now = self.clock.now();
        let before = self.state.deliveries_of(consumer_group, topic, attempt, now, messages_max as usize);
        if !before.is_empty() {
            return Ok(Answer::Leased(before.into_iter().map(|delivery| delivery.granted).collect()));
        }
        let request = ReceiveRequest {
            consumer_group,
            topic,
            queues: QueueChoice::All,
            messages_max,
            now,
            filter: TagFilter::All,
            others: OthersWant::default(),
        };
        let mut order_of = |_: QueueId, _: QueueOffset, entry: IndexEntry| {
            let key = (0..KEYS).map(key_name).find(|name| tag_code(name) == entry.tag_code)?;
            Some(OrderKey::of(Some(&key)))
        };
        let Some(plan) = self.state.plan_ordered_receive(&request, &mut order_of) else {
            return Ok(Answer::Leased(Vec::new()));
        };
        let command = plan.command(client, invisible_ms, false, attempt_id);
        let answer = self.propose(command.encode(self.clock.now())).await?;
        plan.settle();
        Ok(answer)
    }

    /// What this node has applied, which may be old.
    pub(super) fn placement(&self) -> Response {
        let placement = self.state.topic(ORDERED_TOPIC).and_then(|topic| topic.placement);
        placement.map_or(Response::Placement { generation: 0, queues: FIRST_QUEUES }, |of| {
            let queues = of.layout.groups().iter().map(|(_, queues)| queues).sum();
            Response::Placement { generation: of.generation.get(), queues }
        })
    }

    /// Drives growths and drains while this node leads, until its life ends.
    pub async fn grow_topics(self) {
        loop {
            tokio::time::sleep(FIRE_LOOK).await;
            if !self.group.leadership().borrow().is_leader_ready {
                continue;
            }
            // Any of them may fail for a good reason; the next look, or the next leader, goes on.
            for growth in self.state.growths() {
                let topic = growth.topic;
                if !growth.is_closed && !self.opens_unclosed {
                    let close = CloseGeneration { topic, generation: growth.current };
                    drop(self.propose(Command::CloseGeneration(close).encode(self.clock.now())).await);
                }
                let open = OpenGeneration { topic, generation: growth.next };
                drop(self.propose(Command::OpenGeneration(open).encode(self.clock.now())).await);
            }
            for candidate in self.state.drain_candidates(8) {
                let drain = DrainGeneration {
                    consumer_group: candidate.consumer_group,
                    topic: candidate.topic,
                    generation: candidate.generation,
                    resets: candidate.resets,
                };
                drop(self.propose(Command::DrainGeneration(drain).encode(self.clock.now())).await);
            }
        }
    }

    async fn ordered_topic(&self) -> Result<TopicId, ProposeError> {
        let settings =
            TopicSettings { message_type: MessageType::Fifo, ..TopicSettings::normal(FIRST_QUEUES) };
        self.topic_named(ORDERED_TOPIC, settings).await
    }

    async fn ordered_group(&self) -> Result<ConsumerGroupId, ProposeError> {
        let attempts_max = self.plan.ordered.attempts_max;
        let settings = ConsumerGroupSettings { fifo: true, attempts_max, ..ConsumerGroupSettings::default() };
        self.group_named(ORDERED_GROUP, settings).await
    }
}

impl OrderedRequest {
    pub(super) fn encode(&self, out: &mut BytesMut) {
        match self {
            Self::Send { generation, queue, key, id } => {
                out.put_u8(50);
                out.put_u32_le(*generation);
                out.put_u32_le(*queue);
                out.put_u8(*key);
                out.put_slice(id.as_bytes());
            }
            Self::Receive { messages_max, invisible_ms, client, attempt_id } => {
                out.put_u8(51);
                out.put_u32_le(*messages_max);
                out.put_u64_le(*invisible_ms);
                out.put_u64_le(*client);
                out.put_slice(attempt_id.as_bytes());
            }
            Self::Ack(entry) => {
                out.put_u8(52);
                put_entry(out, entry);
            }
            Self::Change { entry, invisible_ms } => {
                out.put_u8(53);
                put_entry(out, entry);
                out.put_u64_le(*invisible_ms);
            }
            Self::Placement => out.put_u8(54),
            Self::Grow { queues } => {
                out.put_u8(55);
                out.put_u32_le(*queues);
            }
        }
    }

    pub(super) fn decode(kind: u8, mut frame: Bytes) -> Option<Self> {
        Some(match kind {
            50 => Self::Send {
                generation: frame.try_get_u32_le().ok()?,
                queue: frame.try_get_u32_le().ok()?,
                key: frame.try_get_u8().ok()?,
                id: String::from_utf8(frame.to_vec()).ok()?,
            },
            51 => Self::Receive {
                messages_max: frame.try_get_u32_le().ok()?,
                invisible_ms: frame.try_get_u64_le().ok()?,
                client: frame.try_get_u64_le().ok()?,
                attempt_id: String::from_utf8(frame.to_vec()).ok()?,
            },
            52 => Self::Ack(decode_entry(&mut frame)?),
            53 => {
                Self::Change { entry: decode_entry(&mut frame)?, invisible_ms: frame.try_get_u64_le().ok()? }
            }
            54 => Self::Placement,
            55 => Self::Grow { queues: frame.try_get_u32_le().ok()? },
            _ => return None,
        })
    }
}
