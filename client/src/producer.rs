//! Sending. Many sends may be in flight at once; each is one request on the shared connection. Those of
//! one message group go one after the other, in the order in which they began.

use std::sync::Arc;

use ledgermq_common::clock::{Clock, SystemClock};
use ledgermq_common::limits::{COMMAND_BYTES_MAX, SEND_BATCH_MESSAGES_MAX};
use ledgermq_proto::messaging::StoreBatchRequest;
use ledgermq_proto::rocketmq as wire;
use tokio::time::Instant;

use crate::batch::{Batch, BatchReceipt, BatchedReceipt, store};
use crate::error::{BatchError, NoAnswerInTime, SendError};
use crate::message::{Message, SendReceipt, timestamp};
use crate::message_id::MessageIdSource;
use crate::retry::{Budget, Verdict, call, judge, may_pass};
use crate::send_order::{SendOrder, Turn};
use crate::session::{Session, messaging};

/// Cheap to clone; clones are the same client to the cluster.
#[derive(Clone)]
pub struct Producer {
    session: Arc<Session>,
    ids: MessageIdSource,
    born_host: Arc<str>,
    order: SendOrder,
}

impl Producer {
    pub(crate) fn new(session: Arc<Session>) -> Self {
        Self {
            session,
            ids: MessageIdSource::default(),
            born_host: crate::session::hostname().into(),
            order: SendOrder::default(),
        }
    }

    pub fn client_id(&self) -> &str {
        &self.session.client_id
    }

    pub async fn send(&self, message: Message) -> Result<SendReceipt, SendError> {
        let receipts = self.send_many(vec![message]).await?;
        let what = "no receipt for a message".to_owned();
        receipts
            .into_iter()
            .next()
            .ok_or_else(|| crate::error::MalformedAnswer { operation: "send", what }.into())
    }

    /// Sends messages of one topic in one request, which is stored as a whole or not at all.
    /// The receipts come in the order of the messages.
    pub async fn send_many(&self, messages: Vec<Message>) -> Result<Vec<SendReceipt>, SendError> {
        let stored = self.store(messages, wire::MessageType::Normal).await?;
        Ok(stored.into_iter().map(|(receipt, _)| receipt).collect())
    }

    /// Sends messages of any topics of one broker group in one request, which is stored as a whole or not
    /// at all. A request without an answer is repeated under the same ids and gets the first places.
    pub async fn send_batch(&self, batch: Batch) -> Result<BatchReceipt, SendError> {
        batch.check()?;
        let request = StoreBatchRequest {
            messages: self.to_wire(batch.messages, wire::MessageType::Normal),
            broker_group: batch.broker_group,
        };
        let count = request.messages.len();
        let budget = self.session.send_budget("send batch");
        let _turn = self.turn(&request.messages, &budget).await?;
        let (stored, attempts) = call(&self.session.connections, budget, |live, time| {
            store(live, self.session.request(request.clone(), time), count)
        })
        .await?;
        Ok(BatchReceipt {
            broker_group: stored.broker_group,
            messages: stored.places.into_iter().map(BatchedReceipt::from).collect(),
            attempts,
        })
    }

    /// The receipt of a half message, and its transaction id.
    pub(crate) async fn send_half(&self, message: Message) -> Result<(SendReceipt, String), SendError> {
        let malformed =
            |what: &str| crate::error::MalformedAnswer { operation: "send", what: what.to_owned() };
        let stored = self.store(vec![message], wire::MessageType::Transaction).await?;
        let (receipt, entry) =
            stored.into_iter().next().ok_or_else(|| malformed("no receipt for a message"))?;
        match entry.map(|entry| entry.transaction_id).filter(|id| !id.is_empty()) {
            Some(transaction_id) => Ok((receipt, transaction_id)),
            None => Err(malformed("a half message without a transaction id").into()),
        }
    }

    pub(crate) fn session(&self) -> &Arc<Session> {
        &self.session
    }

    async fn store(
        &self,
        messages: Vec<Message>,
        message_type: wire::MessageType,
    ) -> Result<Vec<(SendReceipt, Option<wire::SendResultEntry>)>, SendError> {
        check_batch(&messages)?;
        let messages = self.to_wire(messages, message_type);
        let ids: Vec<String> = messages
            .iter()
            .map(|message| {
                message.system_properties.as_ref().map_or_else(String::new, |s| s.message_id.clone())
            })
            .collect();
        let count = messages.len();
        let budget = self.session.send_budget("send");
        let _turn = self.turn(&messages, &budget).await?;
        let request = wire::SendMessageRequest { messages };
        let (entries, attempts) = call(&self.session.connections, budget, |live, time| {
            let request = self.session.request(request.clone(), time);
            async move {
                let answer = messaging(live).send_message(request).await?.into_inner();
                Ok(judge_send(answer, count))
            }
        })
        .await?;
        let receipts = ids.into_iter().zip(entries.into_iter().map(Some).chain(std::iter::repeat(None)));
        Ok(receipts
            .map(|(message_id, entry)| {
                let queue_offset = entry.as_ref().map_or(-1, |entry| entry.offset);
                let recall_handle =
                    entry.as_ref().map(|entry| entry.recall_handle.clone()).unwrap_or_default();
                (SendReceipt { message_id, queue_offset, attempts, recall_handle }, entry)
            })
            .collect())
    }

    /// The wait for those before it is part of the time a send has.
    async fn turn(&self, messages: &[wire::Message], budget: &Budget) -> Result<Turn<'_>, SendError> {
        let began = Instant::now();
        let turn = tokio::time::timeout_at(budget.deadline, self.order.turn(messages)).await;
        turn.map_err(|_| {
            let last = "earlier sends of its message group were under way".to_owned();
            let (operation, elapsed) = (budget.operation, began.elapsed());
            NoAnswerInTime { operation, attempts: 0, throttled: 0, elapsed, last }.into()
        })
    }

    /// Every message gets the id under which it is repeated.
    fn to_wire(&self, messages: Vec<Message>, message_type: wire::MessageType) -> Vec<wire::Message> {
        let born = timestamp(SystemClock.now().get());
        let namespace = &self.session.options.namespace;
        messages
            .into_iter()
            .map(|mut message| {
                let id = message.id.take().unwrap_or_else(|| self.ids.next_id());
                message.into_wire(id, namespace, born, &self.born_host, message_type)
            })
            .collect()
    }

    /// Takes a delayed message out before its time; answers its message id.
    pub async fn recall(&self, topic: &str, recall_handle: &str) -> Result<String, SendError> {
        let request = wire::RecallMessageRequest {
            topic: Some(self.session.resource(topic)),
            recall_handle: recall_handle.to_owned(),
        };
        let (message_id, _) = call(
            &self.session.connections,
            self.session.send_budget("recall").once_at_a_time(),
            |live, time| {
                let request = self.session.request(request.clone(), time);
                async move {
                    let answer = messaging(live).recall_message(request).await?.into_inner();
                    Ok(judge(answer.status, answer.message_id))
                }
            },
        )
        .await?;
        Ok(message_id)
    }

    /// Tells the cluster that this producer ends.
    pub async fn close(self) {
        self.session.leave().await;
    }
}

fn check_batch(messages: &[Message]) -> Result<(), BatchError> {
    let refuse = |reason| Err(BatchError { messages: messages.len(), reason });
    let Some(first) = messages.first() else { return refuse("a batch holds at least one message") };
    if messages.len() > SEND_BATCH_MESSAGES_MAX {
        return refuse("more messages than one request may hold");
    }
    if messages.iter().any(|message| message.topic != first.topic) {
        return refuse("the messages are of different topics");
    }
    if messages.iter().map(|message| message.body.len()).sum::<usize>() > COMMAND_BYTES_MAX {
        return refuse("more bytes than one request may hold");
    }
    Ok(())
}

/// One entry per message, or one for a whole batch as other servers answer it.
fn judge_send(answer: wire::SendMessageResponse, messages: usize) -> Verdict<Vec<wire::SendResultEntry>> {
    let entries = answer.entries;
    match judge(answer.status, ()) {
        Verdict::Done(()) if entries.len() == messages || entries.len() == 1 => {}
        Verdict::Done(()) => {
            return Verdict::Malformed { what: format!("{} entries for {messages} messages", entries.len()) };
        }
        // The entries disagree: the whole is repeated if any of them may pass, which is safe under
        // the same ids.
        Verdict::Refused { code, .. } if code == wire::Code::MultipleResults as i32 => {}
        Verdict::Refused { code, message } => return Verdict::Refused { code, message },
        Verdict::TryAgain { code, message } => return Verdict::TryAgain { code, message },
        Verdict::Malformed { what } => return Verdict::Malformed { what },
    }
    let failed = entries.iter().filter_map(|entry| entry.status.as_ref());
    match failed
        .filter(|status| status.code != wire::Code::Ok as i32)
        .max_by_key(|status| may_pass(status.code))
    {
        None => Verdict::Done(entries),
        Some(status) => judge(Some(status.clone()), entries),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(code: wire::Code) -> Option<wire::Status> {
        Some(wire::Status { code: code as i32, message: String::new() })
    }

    fn entry(code: wire::Code) -> wire::SendResultEntry {
        wire::SendResultEntry { status: status(code), ..Default::default() }
    }

    fn verdict(top: wire::Code, entries: &[wire::Code]) -> &'static str {
        let entries: Vec<_> = entries.iter().copied().map(entry).collect();
        // Even an answer without entries is the answer to a message.
        let messages = entries.len().max(1);
        match judge_send(wire::SendMessageResponse { status: status(top), entries }, messages) {
            Verdict::Done(_) => "done",
            Verdict::TryAgain { .. } => "again",
            Verdict::Refused { .. } => "refused",
            Verdict::Malformed { .. } => "malformed",
        }
    }

    #[test]
    fn only_an_answer_that_says_stored_for_all_ends_a_send() {
        use wire::Code::{HaNotAvailable, IllegalTopic, MessageBodyEmpty, MultipleResults, Ok, ProxyTimeout};
        assert_eq!(verdict(Ok, &[Ok, Ok]), "done");
        assert_eq!(verdict(Ok, &[Ok, HaNotAvailable]), "again");
        assert_eq!(verdict(MultipleResults, &[MessageBodyEmpty, HaNotAvailable]), "again");
        assert_eq!(verdict(MultipleResults, &[Ok, MessageBodyEmpty]), "refused");
        assert_eq!(verdict(ProxyTimeout, &[]), "again");
        assert_eq!(verdict(IllegalTopic, &[IllegalTopic]), "refused");
        assert_eq!(verdict(Ok, &[]), "malformed");
    }

    #[test]
    fn a_batch_that_cannot_be_one_request_is_refused_before_it_is_sent() {
        assert!(check_batch(&[]).is_err());
        assert!(check_batch(&[Message::new("a", "1"), Message::new("b", "2")]).is_err());
        assert!(check_batch(&vec![Message::new("a", "1"); SEND_BATCH_MESSAGES_MAX + 1]).is_err());
        assert!(check_batch(&[Message::new("a", "1"), Message::new("a", "2")]).is_ok());
    }
}
