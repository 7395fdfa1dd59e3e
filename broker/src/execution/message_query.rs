//! Messages as an administrator looks for them, and why one is where it is for a consumer group.

use ledgermq_common::clock::UnixMillis;
use ledgermq_common::{PhysicalOffset, QueueId, QueueOffset};
use ledgermq_edge::codes::topic_not_found;
use ledgermq_edge::group_call::Refused;
use ledgermq_proto::admin as wire;
use ledgermq_proto::admin::query_messages_request::By;
use ledgermq_proto::rocketmq::Code;

use super::hosted_group::{Ended, HostedGroup};
use super::receive::read_record;
use crate::state::{
    DeliveryState, FoundRecord, IndexEntry, MessageType, SearchKey, StoredMessage, TimerState, TopicView,
};

const MESSAGES_PER_PAGE_MAX: usize = 256;
const BODIES_PER_PAGE_MAX: usize = 8;
/// Bodies of one page together; a single one may be larger.
const PAGE_BODY_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Messages of a topic by time: a cursor holds the queue in its upper and the offset in its lower bits.
const CURSOR_OFFSET_BITS: u32 = 40;

/// Further ahead than any producer's clock should be.
const PRODUCER_CLOCK_AHEAD_MS_MAX: u64 = 600_000;

/// A page in the making.
struct Page<'a> {
    hosted: &'a HostedGroup,
    with_body: bool,
    max: usize,
    body_bytes: usize,
    messages: Vec<wire::QueriedMessage>,
}

pub fn query(
    hosted: &HostedGroup,
    request: &wire::QueryMessagesRequest,
) -> Result<wire::QueryMessagesResponse, Ended> {
    let topic =
        hosted.state.topic(&request.topic).ok_or_else(|| Refused::from(topic_not_found(&request.topic)))?;
    let limit = if request.with_body { BODIES_PER_PAGE_MAX } else { MESSAGES_PER_PAGE_MAX };
    let max = if request.max == 0 { limit } else { (request.max as usize).min(limit) };
    let mut page = Page { hosted, with_body: request.with_body, max, body_bytes: 0, messages: Vec::new() };
    let from = request.from.as_ref().map_or(0, |from| from.offset);
    let next = match &request.by {
        Some(By::MessageId(id)) => page.search(&topic, SearchKey::MessageId(id), from),
        Some(By::Key(key)) => page.search(&topic, SearchKey::Key(key), from),
        Some(By::Place(place)) => {
            page.at(&topic, QueueId(place.queue), QueueOffset(place.offset));
            None
        }
        Some(By::StoredWithin(within)) => {
            page.stored_within(&topic, UnixMillis(within.from_ms), UnixMillis(within.to_ms), from)?
        }
        None => return Err(Refused::new(Code::BadRequest, "by is missing").into()),
    };
    let next = next.map(|offset| wire::Cursor { group: hosted.name.to_string(), offset });
    Ok(wire::QueryMessagesResponse { messages: page.messages, next })
}

impl Page<'_> {
    fn is_full(&self) -> bool {
        self.messages.len() >= self.max || self.body_bytes >= PAGE_BODY_BYTES_MAX
    }

    /// The physical offset to go on from, when there may be more.
    fn search(&mut self, topic: &TopicView, key: SearchKey<'_>, from: u64) -> Option<u64> {
        let mut from = PhysicalOffset(from);
        loop {
            let found = self.hosted.state.search(topic.id, key, from, self.max);
            let last = found.last()?.physical;
            for record in found {
                if self.is_full() {
                    return Some(record.physical.get());
                }
                let Some(stored) = read_found(self.hosted, record) else { continue };
                let is_its_own = match key {
                    SearchKey::MessageId(id) => stored.id == id,
                    SearchKey::Key(key) => stored.properties.keys.iter().any(|of| of == key),
                };
                if is_its_own && stored.topic == topic.id {
                    let place = self.hosted.state.place_of_record(
                        topic.id,
                        stored.queue,
                        record.physical,
                        visible_after(&stored),
                    );
                    let queue = stored.queue;
                    self.push(stored, queue, place);
                }
            }
            from = PhysicalOffset(last.get() + 1);
        }
    }

    fn at(&mut self, topic: &TopicView, queue: QueueId, offset: QueueOffset) {
        let Some(entry) = self.hosted.state.locate(topic.id, queue, offset) else { return };
        if let Some(stored) = read_record(self.hosted, entry) {
            self.push(stored, queue, Some((offset, entry)));
        }
    }

    fn stored_within(
        &mut self,
        topic: &TopicView,
        since: UnixMillis,
        before: UnixMillis,
        cursor: u64,
    ) -> Result<Option<u64>, Ended> {
        let (first_queue, mut from) =
            (cursor >> CURSOR_OFFSET_BITS, cursor & ((1 << CURSOR_OFFSET_BITS) - 1));
        for queue in first_queue..u64::from(topic.settings.queues) {
            let id = QueueId(u32::try_from(queue).unwrap_or(u32::MAX));
            let start = self
                .hosted
                .state
                .offset_at(topic.id, id, since)
                .ok_or_else(|| Refused::from(topic_not_found(&topic.name)))?;
            let mut at = from.max(start.get());
            from = 0;
            loop {
                let max = u32::try_from(self.max).unwrap_or(u32::MAX);
                let entries = self.hosted.state.range(topic.id, id, QueueOffset(at), max);
                let Some((last, _)) = entries.last() else { break };
                at = last.get() + 1;
                let mut is_over = false;
                for (offset, entry) in entries {
                    if entry.stored_at >= before {
                        is_over = true;
                        break;
                    }
                    if self.is_full() {
                        return Ok(Some((queue << CURSOR_OFFSET_BITS) | offset.get()));
                    }
                    if let Some(stored) = read_record(self.hosted, entry) {
                        self.push(stored, id, Some((offset, entry)));
                    }
                }
                if is_over {
                    break;
                }
            }
        }
        Ok(None)
    }

    fn push(&mut self, stored: StoredMessage, queue: QueueId, place: Option<(QueueOffset, IndexEntry)>) {
        let body_bytes = stored.body.len();
        if self.with_body {
            self.body_bytes += body_bytes;
        }
        self.messages.push(wire::QueriedMessage {
            group: self.hosted.name.to_string(),
            message_id: stored.id,
            queue: queue.get(),
            offset: place.map(|(offset, _)| offset.get()),
            stored_ms: place.map(|(_, entry)| entry.stored_at.get()),
            born_ms: stored.born_at.get(),
            born_host: stored.properties.born_host,
            tag: stored.properties.tag,
            keys: stored.properties.keys,
            properties: stored.properties.user,
            body_bytes: u32::try_from(body_bytes).unwrap_or(u32::MAX),
            body: if self.with_body { stored.body } else { bytes::Bytes::new() },
            deliver_at_ms: stored.properties.deliver_at_ms,
        });
    }
}

/// A time after which a message that is not visible at once became visible.
pub(super) fn visible_after(stored: &StoredMessage) -> Option<UnixMillis> {
    match stored.message_type {
        // By its producer's clock, which may be ahead of ours.
        MessageType::Transaction => {
            Some(UnixMillis(stored.born_at.get().saturating_sub(PRODUCER_CLOCK_AHEAD_MS_MAX)))
        }
        _ => stored.properties.deliver_at_ms.map(UnixMillis),
    }
}

pub(super) fn read_found(hosted: &HostedGroup, record: FoundRecord) -> Option<StoredMessage> {
    let FoundRecord { physical, record_bytes } = record;
    read_record(hosted, IndexEntry { physical, record_bytes, tag_code: 0, stored_at: UnixMillis(0) })
}

/// Route, offsets, lease, attempts, timer and dead letter of one message for one consumer group.
pub fn why(hosted: &HostedGroup, request: &wire::WhyRequest) -> wire::WhyPart {
    let mut part = wire::WhyPart { group: hosted.name.to_string(), ..wire::WhyPart::default() };
    part.verdict = find_out(hosted, request, &mut part);
    part
}

fn find_out(hosted: &HostedGroup, request: &wire::WhyRequest, part: &mut wire::WhyPart) -> String {
    let state = &hosted.state;
    let mut tell = |name: &str, value: String| part.facts.push(wire::Fact { name: name.to_owned(), value });
    let Some(topic) = state.topic(&request.topic) else {
        return format!("topic {} is not in this broker group", request.topic);
    };
    tell(
        "topic",
        format!("{} ({:?}, {} queues)", topic.name, topic.settings.message_type, topic.settings.queues),
    );
    let found = state
        .search(topic.id, SearchKey::MessageId(&request.message_id), PhysicalOffset(0), MESSAGES_PER_PAGE_MAX)
        .into_iter()
        // The last one: a record that was carried is found where it lay before, too.
        .rev()
        .find_map(|record| {
            let stored = read_found(hosted, record)?;
            (stored.id == request.message_id && stored.topic == topic.id).then_some((record, stored))
        });
    let Some((record, stored)) = found else {
        return "the message is not stored here: it was never acknowledged, or went to another topic"
            .to_owned();
    };
    part.found = true;
    let mut tell = |name: &str, value: String| part.facts.push(wire::Fact { name: name.to_owned(), value });
    tell("stored at physical offset", record.physical.to_string());
    tell("queue", stored.queue.to_string());
    tell("tag", stored.properties.tag.clone().unwrap_or_default());
    let deliver_at = stored.properties.deliver_at_ms.map(UnixMillis);
    if let Some(deliver_at) = deliver_at {
        tell("delivery time", deliver_at.to_string());
        match state.timer(deliver_at, state.identity_of(record.physical)) {
            TimerState::Pending { .. } => {
                return format!("its delivery time {deliver_at} has not come; log time is {}", state.now());
            }
            TimerState::Recalled => return "it was recalled by its producer".to_owned(),
            TimerState::Over | TimerState::Unknown => {}
        }
    }
    let Some((offset, entry)) =
        state.place_of_record(topic.id, stored.queue, record.physical, visible_after(&stored))
    else {
        return if deliver_at.is_some() {
            "it is not in its queue: it was recalled before its time came".to_owned()
        } else if stored.message_type == MessageType::Transaction {
            "its transaction is undecided or was rolled back: `ledgermq admin transaction show` knows"
                .to_owned()
        } else {
            "it is not in its queue".to_owned()
        };
    };
    tell("offset", offset.to_string());
    tell("visible since", entry.stored_at.to_string());
    let Some(group) = state.consumer_group(&request.consumer_group) else {
        return format!("consumer group {} has never consumed here", request.consumer_group);
    };
    tell("attempts allowed", group.settings.attempts_max.to_string());
    let lag = state.lag(group.id, topic.id);
    tell("ready before the group", lag.ready.to_string());
    tell("under delivery to the group", lag.in_flight.to_string());
    if let Some(at) = state.group_offset(group.id, topic.id, stored.queue) {
        tell("group's offset in the queue", at.to_string());
    }
    let letters = super::dead_letters::find(hosted, &group.name, topic.id, stored.queue, offset);
    for letter in &letters {
        tell("dead letter", letter.clone());
    }
    match state.delivery_state(group.id, topic.id, stored.queue, offset) {
        DeliveryState::NeverDelivered => {
            "it waits: the group has not come to it yet, or its consumers do not ask".to_owned()
        }
        DeliveryState::Delivered(delivery, until) => {
            tell("attempt", delivery.attempt.to_string());
            tell("invisible until", until.to_string());
            if until > state.now() {
                format!("a consumer has it (attempt {}), until {until}", delivery.attempt)
            } else {
                format!(
                    "attempt {} ended without an acknowledgement; it is delivered again",
                    delivery.attempt
                )
            }
        }
        DeliveryState::Consumed if !letters.is_empty() => {
            format!("the group gave it up: {}", letters.last().cloned().unwrap_or_default())
        }
        DeliveryState::Consumed => {
            "consumed: acknowledged by the group, or passed over because it did not match its filter"
                .to_owned()
        }
    }
}
