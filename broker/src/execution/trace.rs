//! The history of one message, read from the log itself.
//!
//! The leader walks its applied log from the entry that stored the message, and tells of each entry that
//! names the message, or the place the message has in its queue. Most entries ask for something that apply
//! grants or not, so the walk keeps what it takes to judge that: the message's state in each consumer group
//! ([`story`]). A page ends after so many entries, bytes or rows; what the walk knows travels to the next page
//! with its cursor, so a leader keeps nothing and any later one goes on.
//!
//! | Bound | Value | Beyond it |
//! |---|---|---|
//! | entries of a page | 50,000 | the page ends, with a cursor |
//! | bytes of commands of a page | 32 MiB | the same |
//! | rows of a page | 256 | the same |
//! | topics searched where none is named | 10,000 | BAD_REQUEST: name the topic |
//!
//! What the log does not have it cannot tell: entries of segments that retention released
//! (`history_from`), and the deliveries of a message that has left its queue, or of one in a lite topic. Of a
//! client the log has a hash; its name is known while it receives.

mod story;

use std::sync::Arc;

use ledgermq_common::{LogIndex, PhysicalOffset};
use ledgermq_edge::codes::topic_not_found;
use ledgermq_edge::group_call::{NotExecuted, Refused};
use ledgermq_proto::admin as wire;
use ledgermq_proto::rocketmq::Code;
use ledgermq_raft_store::Group;
use ledgermq_raft_store::store::ReadError;

use self::story::Story;
use super::hosted_group::{Ended, HostedGroup};
use super::message_query::{read_found, visible_after};
use super::offsets::barrier;
use crate::state::{BrokerState, ClientHash, Command, FoundRecord, SearchKey, StoredMessage, TopicView};

const ENTRIES_MAX: u64 = 50_000;
const BYTES_MAX: usize = 32 * 1024 * 1024;
const ROWS_MAX: usize = 256;
const TOPICS_SEARCHED_MAX: usize = 10_000;
/// Records of one id: what was carried lies in the log more than once.
const RECORDS_MAX: usize = 64;

pub async fn trace(
    hosted: &HostedGroup,
    request: &wire::TraceMessageRequest,
) -> Result<wire::TraceMessageResponse, Ended> {
    barrier(hosted).await?;
    let mut page = wire::TraceMessageResponse {
        group: hosted.name.to_string(),
        ..wire::TraceMessageResponse::default()
    };
    let state = match &request.from {
        Some(from) => from.clone(),
        None => match begin(hosted, request)? {
            Some((state, history_from)) => {
                page.history_from = history_from;
                state
            }
            None => return Ok(page),
        },
    };
    page.found = true;
    page.topic.clone_from(&state.topic);
    let topic =
        hosted.state.topic(&state.topic).ok_or_else(|| Refused::from(topic_not_found(&state.topic)))?;
    page.facts = facts(hosted, &topic, &state);
    let (group, applied) = (hosted.group.clone(), Arc::clone(&hosted.state));
    let story = Story::new(&topic, &request.message_id, state);
    // Reading the log may wait for the disk.
    let walked = tokio::task::spawn_blocking(move || walk(&group, &applied, story)).await;
    let walked = walked.map_err(|_| NotExecuted::Stopping)?;
    let Walked { rows, next, looked_at } = walked.map_err(|error| {
        tracing::error!(group = %hosted.name, %error, "the log cannot be read for a trace");
        Refused::new(Code::InternalServerError, error.to_string())
    })?;
    page.rows = rows.into_iter().map(|row| named(hosted, row)).collect();
    page.next = next.map(|next| wire::TraceState { group: hosted.name.to_string(), ..next });
    page.looked_at = looked_at.get();
    Ok(page)
}

/// Where the walk begins, and the first entry of the log if that is not the one that stored the message.
fn begin(
    hosted: &HostedGroup,
    request: &wire::TraceMessageRequest,
) -> Result<Option<(wire::TraceState, Option<u64>)>, Ended> {
    let topics = if request.topic.is_empty() {
        let topics = hosted.state.topics();
        if topics.len() > TOPICS_SEARCHED_MAX {
            let count = topics.len();
            let message = format!("there are {count} topics; the limit is {TOPICS_SEARCHED_MAX}");
            return Err(Refused::new(Code::BadRequest, format!("topic is missing: {message}")).into());
        }
        topics
    } else {
        hosted.state.topic(&request.topic).into_iter().collect()
    };
    for topic in topics {
        let records = records_of(hosted, &topic, &request.message_id);
        let (Some((first, _)), Some((last, stored))) = (records.first(), records.last()) else { continue };
        let identity = hosted.state.identity_of(last.physical);
        let identity = if identity == last.physical { first.physical } else { identity };
        let place = records.iter().rev().find_map(|(record, stored)| {
            hosted.state.place_of_record(topic.id, stored.queue, record.physical, visible_after(stored))
        });
        let place = place.or_else(|| {
            let expired =
                |record: &FoundRecord| hosted.state.place_of_expired(topic.id, stored.queue, record.physical);
            records.iter().rev().find_map(|(record, _)| expired(record))
        });
        // A carried record's first place may be released: then the history begins with its copy.
        let index = hosted.group.index_of(first.physical).map_err(unreadable)?;
        let is_first = identity == first.physical;
        let state = wire::TraceState {
            next_index: index.get(),
            topic: topic.name.clone(),
            queue: stored.queue.get(),
            offset: place.map(|(offset, _)| offset.get()),
            visible_ms: place.map_or(0, |(_, entry)| entry.stored_at.get()),
            deliver_at_ms: stored.properties.deliver_at_ms,
            identity: identity.get(),
            records: records.iter().map(|(record, _)| record.physical.get()).collect(),
            ..wire::TraceState::default()
        };
        return Ok(Some((state, (!is_first).then_some(index.get()))));
    }
    Ok(None)
}

fn records_of(hosted: &HostedGroup, topic: &TopicView, id: &str) -> Vec<(FoundRecord, StoredMessage)> {
    let found = hosted.state.search(topic.id, SearchKey::MessageId(id), PhysicalOffset(0), RECORDS_MAX);
    let read = found.into_iter().filter_map(|record| Some((record, read_found(hosted, record)?)));
    read.filter(|(_, stored)| stored.id == id && stored.topic == topic.id).collect()
}

fn unreadable(error: ReadError) -> Ended {
    Refused::new(Code::InternalServerError, error.to_string()).into()
}

struct Walked {
    rows: Vec<wire::TraceRow>,
    next: Option<wire::TraceState>,
    looked_at: LogIndex,
}

/// Blocks.
fn walk(group: &Group, applied: &BrokerState, mut story: Story) -> Result<Walked, ReadError> {
    // The next page of a walk may find that the log begins later now.
    let from = LogIndex(story.next_index()).max(group.oldest_index());
    let (mut rows, mut bytes) = (Vec::new(), 0);
    let mut looked_at = from;
    for entry in group.scan(from) {
        let entry = entry?;
        if entry.id.index.get() - from.get() >= ENTRIES_MAX || bytes >= BYTES_MAX || rows.len() >= ROWS_MAX {
            return Ok(Walked { rows, next: Some(story.goes_on_at(entry.id.index)), looked_at });
        }
        bytes += entry.payload.len();
        looked_at = entry.id.index;
        match Command::decode(&entry.payload) {
            Ok((stamped_at, command)) => story.tell(applied, &entry, stamped_at, &command, &mut rows),
            // Every replica refused it.
            Err(error) => tracing::debug!(index = entry.id.index.get(), %error, "left out of a trace"),
        }
    }
    Ok(Walked { rows, next: None, looked_at })
}

fn named(hosted: &HostedGroup, mut row: wire::TraceRow) -> wire::TraceRow {
    if let Some(client_id) =
        row.client.parse().ok().and_then(|hash| hosted.subscriptions.name_of(ClientHash(hash)))
    {
        row.client = client_id;
    } else if let Ok(hash) = row.client.parse::<u64>() {
        row.client = format!("{hash:016x}");
    }
    if let Some(place) = &mut row.dead_letter {
        place.group = hosted.name.to_string();
    }
    row
}

/// What the state says now.
fn facts(hosted: &HostedGroup, topic: &TopicView, state: &wire::TraceState) -> Vec<wire::Fact> {
    let mut facts = Vec::new();
    let mut tell = |name: &str, value: String| facts.push(wire::Fact { name: name.to_owned(), value });
    tell("topic", topic.name.clone());
    tell("queue", state.queue.to_string());
    let offset = state.offset.map_or_else(|| "not in its queue".to_owned(), |offset| offset.to_string());
    tell("offset", offset);
    if let Some(record) = state.records.last() {
        tell("stored at physical offset", record.to_string());
    }
    let retention = hosted.state.topic_retention(topic.id, hosted.settings.retention.retention_ms);
    match (retention.retention_ms, state.visible_ms) {
        (0, _) => tell("kept", "for ever".to_owned()),
        (_, 0) => {}
        (ms, visible_ms) => tell("kept until", visible_ms.saturating_add(ms).to_string()),
    }
    if let Some(offset) = state.offset {
        let ranges = hosted.state.queue_ranges(topic.id).unwrap_or_default();
        let range = ranges.get(state.queue as usize);
        if range.is_some_and(|range| offset < range.start) {
            tell("expired", "yes".to_owned());
        }
    }
    facts
}
