//! Half messages and their end, on the leader.
//!
//! | Condition | Answer |
//! |---|---|
//! | half stored, or stored before under its message id | OK with the transaction id; `offset` is the half's place in the log |
//! | too many transactions without an outcome | TOO_MANY_REQUESTS |
//! | decided now, or the same way before | OK |
//! | decided the other way before | PRECONDITION_FAILED with the decision taken |
//! | unknown, forgotten, or of another topic | INVALID_TRANSACTION_ID |

use ledgermq_common::TopicName;
use ledgermq_common::transaction_id::TransactionId;
use ledgermq_edge::codes::{self, topic_not_found};
use ledgermq_edge::context::CallContext;
use ledgermq_edge::group_call::{GroupResponse, Refused, SendRequest};
use ledgermq_edge::transactions as asked;
use ledgermq_proto::admin as wire;
use ledgermq_proto::admin::transaction::State;
use ledgermq_proto::rocketmq::{
    Code, Message, Resource, SendMessageRequest, SendMessageResponse, SendResultEntry,
};

use super::hosted_group::{Ended, HostedGroup, refused, unexpected};
use super::produce::check_command;
use super::{delivery, intake};
use crate::state::{
    Answer, Command, Decision, DecisionSource, EndTransaction, IndexEntry, MessageIdHash, NewHalf,
    OpenTransaction, StoredMessage, TopicId, TopicView, TransactionQuery, TransactionState, encode_halves,
    encoded_halves_bytes,
};

/// Transactions of one page that names no number, and of the largest page.
const PAGE_DEFAULT: u32 = 100;
const PAGE_MAX: u32 = 1000;

pub async fn send_halves(
    hosted: &HostedGroup,
    context: &CallContext,
    send: &SendRequest,
    topic: &TopicView,
) -> Result<GroupResponse, Ended> {
    let now = hosted.now();
    let messages = intake::new_messages(&send.request, hosted.next_queue(topic), now, context.peer);
    let halves: Vec<NewHalf> = messages
        .into_iter()
        .enumerate()
        .map(|(at, message)| NewHalf { message, first_check_ms: first_check_ms(hosted, &send.request, at) })
        .collect();
    let _room = check_command(hosted, encoded_halves_bytes(&halves), context).await?;
    let stored = match hosted.propose(encode_halves(hosted.now(), topic.id, &halves)).await? {
        Answer::Halves(stored) => stored,
        Answer::Refused(refusal) => return Err(refused(refusal, send.topic.as_str()).into()),
        other => return Err(unexpected("AppendHalves", &other)),
    };
    assert_eq!(stored.len(), halves.len(), "apply answers once for each half");
    let new = halves.iter().zip(&stored).filter(|(_, at)| !at.repeated);
    hosted.metrics.messages_in(send.topic.as_str(), new.map(|(half, _)| half.message.body.len()));
    let entries = halves.into_iter().zip(stored).map(|(half, at)| {
        let message = MessageIdHash::of(half.message.id.as_bytes());
        SendResultEntry {
            status: Some(codes::ok()),
            message_id: half.message.id,
            transaction_id: hosted.state.transaction_id(topic.id, at.transaction, message).encode(),
            offset: i64::try_from(at.transaction.get()).unwrap_or(i64::MAX),
            recall_handle: String::new(),
        }
    });
    Ok(GroupResponse::Send(SendMessageResponse { status: Some(codes::ok()), entries: entries.collect() }))
}

/// When the producers are asked first: after the timeout, or later where the producer asks for it.
fn first_check_ms(hosted: &HostedGroup, request: &SendMessageRequest, at: usize) -> u32 {
    let system = request.messages.get(at).and_then(|message| message.system_properties.as_ref());
    let asked_s = system
        .and_then(|system| system.orphaned_transaction_recovery_duration.as_ref())
        .map_or(0, |duration| u64::try_from(duration.seconds).unwrap_or(0));
    let first_ms = hosted.settings.transactions.timeout_ms.max(asked_s.saturating_mul(1000));
    u32::try_from(first_ms).unwrap_or(u32::MAX)
}

pub async fn end(hosted: &HostedGroup, end: &asked::EndTransaction) -> Result<GroupResponse, Ended> {
    let topic = match &end.topic {
        Some(name) => {
            hosted.state.topic(name.as_str()).ok_or_else(|| Refused::from(topic_not_found(name.as_str())))?.id
        }
        None => TopicId(end.id.topic_id),
    };
    if end.id.group != hosted.id || topic.get() != end.id.topic_id {
        return Err(other_topic(end.topic.as_ref()).into());
    }
    let decision = match end.decision {
        asked::Decision::Commit => Decision::Commit,
        asked::Decision::Rollback => Decision::Rollback,
    };
    let command = EndTransaction {
        topic,
        transaction: end.id.half,
        message: MessageIdHash(end.id.message_id_hash),
        decision,
        source: match end.source {
            asked::DecisionSource::Producer => DecisionSource::Producer,
            asked::DecisionSource::Check => DecisionSource::Check,
            asked::DecisionSource::Administrator => DecisionSource::Administrator,
        },
    };
    let answer = hosted.propose(Command::EndTransaction(command).encode(hosted.now())).await?;
    let ended = match answer {
        Answer::TransactionEnded(ended) => ended,
        Answer::Refused(refusal) => {
            return Err(refused(refusal, end.topic.as_ref().map_or("", TopicName::as_str)).into());
        }
        other => return Err(unexpected("EndTransaction", &other)),
    };
    if ended.decision != decision {
        let taken = match ended.decision {
            Decision::Commit => "COMMIT",
            Decision::Rollback => "ROLLBACK",
        };
        return Err(Refused::new(
            Code::PreconditionFailed,
            format!("the transaction was decided before: {taken}"),
        )
        .into());
    }
    if ended.decided_now {
        let name = hosted.state.topic_by_id(topic).map(|topic| topic.name).unwrap_or_default();
        hosted.metrics.transaction_ended(&name, ended.decision == Decision::Commit);
    }
    Ok(GroupResponse::Done)
}

fn other_topic(topic: Option<&TopicName>) -> Refused {
    let topic = topic.map_or("that", TopicName::as_str);
    Refused::new(Code::InvalidTransactionId, format!("transaction id is not one of topic {topic}"))
}

pub fn list(hosted: &HostedGroup, list: &wire::ListTransactionsRequest) -> Result<GroupResponse, Ended> {
    let topic = match list.topic.as_str() {
        "" => None,
        name => Some(hosted.state.topic(name).ok_or_else(|| Refused::from(topic_not_found(name)))?.id),
    };
    let after = match list.after.as_str() {
        "" => None,
        text => {
            let after = TransactionId::parse(text)
                .map_err(|error| Refused::new(Code::BadRequest, format!("after: {error}")))?;
            Some(after.half)
        }
    };
    let max = if list.max == 0 { PAGE_DEFAULT } else { list.max.min(PAGE_MAX) } as usize;
    let query = TransactionQuery { topic, only_parked: list.only_parked, after };
    let open = hosted.state.open_transactions(query, max);
    let next = open.last().filter(|_| open.len() == max);
    let next = next.map(|last| id_of(hosted, last).encode()).unwrap_or_default();
    let transactions = open.iter().map(|open| describe(hosted, open)).collect();
    Ok(GroupResponse::Transactions(wire::ListTransactionsResponse { transactions, next }))
}

pub fn show(hosted: &HostedGroup, id: &TransactionId) -> Result<GroupResponse, Ended> {
    let found = hosted.state.transaction(id.half, MessageIdHash(id.message_id_hash));
    let shown = match found {
        Some(TransactionState::Open(open)) => wire::ShowTransactionResponse {
            transaction: Some(describe(hosted, &open)),
            message: message(hosted, &open),
        },
        Some(TransactionState::Decided { topic, decision, decided_at }) => wire::ShowTransactionResponse {
            transaction: Some(wire::Transaction {
                transaction_id: id.encode(),
                group: hosted.name.to_string(),
                topic: topic_name(hosted, topic),
                state: match decision {
                    Decision::Commit => State::Committed,
                    Decision::Rollback => State::RolledBack,
                }
                .into(),
                since_ms: decided_at.get(),
                ..wire::Transaction::default()
            }),
            message: None,
        },
        None => {
            let unknown = crate::state::Refusal::TransactionUnknown;
            return Err(Refused::new(Code::NotFound, unknown.to_string()).into());
        }
    };
    Ok(GroupResponse::Transaction(shown))
}

pub(super) fn id_of(hosted: &HostedGroup, open: &OpenTransaction) -> TransactionId {
    hosted.state.transaction_id(open.topic, open.id, open.message)
}

fn topic_name(hosted: &HostedGroup, topic: TopicId) -> String {
    hosted.state.topic_by_id(topic).map(|topic| topic.name).unwrap_or_default()
}

fn describe(hosted: &HostedGroup, open: &OpenTransaction) -> wire::Transaction {
    let stored = read(hosted, open.entry());
    wire::Transaction {
        transaction_id: id_of(hosted, open).encode(),
        group: hosted.name.to_string(),
        topic: topic_name(hosted, open.topic),
        state: if open.parked_at.is_some() { State::Parked } else { State::Pending }.into(),
        message_id: stored.map(|stored| stored.id).unwrap_or_default(),
        stored_ms: open.halved_at.get(),
        checks: open.checks,
        next_check_ms: if open.parked_at.is_some() { 0 } else { open.next_check_at.get() },
        since_ms: open.parked_at.map_or(0, |at| at.get()),
    }
}

/// The half message as a producer or an administrator sees it: it was never delivered.
pub(super) fn message(hosted: &HostedGroup, open: &OpenTransaction) -> Option<Message> {
    let stored = read(hosted, open.entry())?;
    let topic = Resource { resource_namespace: String::new(), name: topic_name(hosted, open.topic) };
    let mut message = delivery::delivered(
        stored,
        delivery::Delivery {
            topic: &topic,
            queue: ledgermq_common::QueueId(0),
            offset: ledgermq_common::QueueOffset(0),
            stored_at: open.halved_at,
            store_host: &hosted.settings.store_host,
            receipt_handle: String::new(),
            attempt: 1,
            invisible_ms: 0,
        },
    );
    if let Some(system) = &mut message.system_properties {
        system.receipt_handle = None;
        system.invisible_duration = None;
        system.queue_offset = None;
    }
    Some(message)
}

fn read(hosted: &HostedGroup, entry: IndexEntry) -> Option<StoredMessage> {
    super::receive::read_record(hosted, entry)
}
