//! Messages of several topics that are stored together or not at all. This is LedgerMQ's own request: other
//! servers of the protocol do not know it.

use ledgermq_common::limits::{BATCH_TOPICS_MAX, COMMAND_BYTES_MAX, SEND_BATCH_MESSAGES_MAX};
use ledgermq_proto::messaging::batch_client::BatchClient;
use ledgermq_proto::messaging::{StoreBatchRequest, StoreBatchResponse, StoredPlace};

use crate::connection::LiveConnection;
use crate::error::BatchError;
use crate::message::Message;
use crate::retry::{Verdict, judge};

/// Messages for [`Producer::send_batch`](crate::Producer::send_batch), of any topics of one broker group.
///
/// Topics of type NORMAL, FIFO and PRIORITY can take part. Messages of one topic keep their order.
/// An application that repeats a batch after an error gives every message the id it had: a batch of
/// which only a part is stored already is refused.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    pub(crate) messages: Vec<Message>,
    pub(crate) broker_group: String,
}

impl Batch {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn message(mut self, message: Message) -> Self {
        self.messages.push(message);
        self
    }

    /// Which broker group stores it. Unless given the cluster chooses one that has all topics.
    pub fn broker_group(mut self, name: impl Into<String>) -> Self {
        self.broker_group = name.into();
        self
    }

    pub fn len(&self) -> usize {
        self.messages.len()
    }

    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// What the cluster would refuse, found without asking it.
    pub(crate) fn check(&self) -> Result<(), BatchError> {
        let refuse = |reason| Err(BatchError { messages: self.messages.len(), reason });
        if self.messages.is_empty() {
            return refuse("a batch holds at least one message");
        }
        if self.messages.len() > SEND_BATCH_MESSAGES_MAX {
            return refuse("more messages than one request may hold");
        }
        let topics: std::collections::BTreeSet<&str> =
            self.messages.iter().map(|message| message.topic.as_str()).collect();
        if topics.len() > BATCH_TOPICS_MAX {
            return refuse("more topics than one batch may have");
        }
        if self.messages.iter().map(|message| message.body.len()).sum::<usize>() > COMMAND_BYTES_MAX {
            return refuse("more bytes than one request may hold");
        }
        Ok(())
    }
}

impl FromIterator<Message> for Batch {
    fn from_iter<I: IntoIterator<Item = Message>>(messages: I) -> Self {
        Self { messages: messages.into_iter().collect(), broker_group: String::new() }
    }
}

/// What the cluster answered to a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchReceipt {
    pub broker_group: String,
    /// In the order of the messages.
    pub messages: Vec<BatchedReceipt>,
    /// 1 unless the request had to be repeated.
    pub attempts: u32,
}

/// Where a message of a batch is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchedReceipt {
    pub topic: String,
    pub message_id: String,
    pub queue_id: u32,
    pub queue_offset: u64,
    /// An earlier request stored it, at this place.
    pub is_repeat: bool,
}

impl From<StoredPlace> for BatchedReceipt {
    fn from(place: StoredPlace) -> Self {
        Self {
            topic: place.topic,
            message_id: place.message_id,
            queue_id: place.queue,
            queue_offset: place.queue_offset,
            is_repeat: place.is_repeat,
        }
    }
}

pub(crate) async fn store(
    live: LiveConnection,
    request: tonic::Request<StoreBatchRequest>,
    messages: usize,
) -> Result<Verdict<StoreBatchResponse>, tonic::Status> {
    let origin = live.origin();
    let answer = BatchClient::with_origin(live, origin).store_batch(request).await?.into_inner();
    Ok(match judge(answer.status.clone(), answer) {
        Verdict::Done(answer) if answer.places.len() != messages => {
            let what = format!("{} places for {messages} messages", answer.places.len());
            Verdict::Malformed { what }
        }
        verdict => verdict,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_that_cannot_be_one_request_is_refused_before_it_is_sent() {
        assert!(Batch::new().check().is_err());
        let of = |count: usize, topics: usize| -> Batch {
            (0..count).map(|number| Message::new(format!("t{}", number % topics), "x")).collect()
        };
        assert!(of(SEND_BATCH_MESSAGES_MAX + 1, 1).check().is_err());
        assert!(of(BATCH_TOPICS_MAX + 1, BATCH_TOPICS_MAX + 1).check().is_err());
        assert!(of(SEND_BATCH_MESSAGES_MAX, BATCH_TOPICS_MAX).check().is_ok());
    }
}
