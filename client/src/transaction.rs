//! Transactional messages: a half message nobody sees, and its outcome.
//!
//! A producer that ends between the two leaves the outcome open; the cluster then asks any producer
//! of the topic, and the answer of its [`TransactionChecker`] decides. An outcome is final: the same
//! one again succeeds, the opposite one is refused with what was decided.

use std::sync::Arc;

use ledgermq_proto::rocketmq as wire;

use crate::error::{EndTransactionError, SendError};
use crate::message::{Message, ReceivedHalf, SendReceipt};
use crate::producer::Producer;
use crate::retry::{call, judge};
use crate::session::{Session, messaging};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Commit,
    Rollback,
    /// Not known now: the cluster asks again later.
    Unknown,
}

/// Knows the outcome of transactions that were left open, its own or those of another instance of
/// the application.
pub trait TransactionChecker: Send + Sync + 'static {
    /// Called on a thread that may block; several calls may run at once.
    fn check(&self, half: &ReceivedHalf) -> Outcome;
}

impl<F: Fn(&ReceivedHalf) -> Outcome + Send + Sync + 'static> TransactionChecker for F {
    fn check(&self, half: &ReceivedHalf) -> Outcome {
        self(half)
    }
}

/// Cheap to clone; clones are the same client to the cluster.
#[derive(Clone)]
pub struct TransactionalProducer {
    producer: Producer,
}

/// A half message that waits for its outcome. Dropping it decides nothing.
#[derive(Clone)]
pub struct Transaction {
    session: Arc<Session>,
    topic: String,
    pub receipt: SendReceipt,
    pub transaction_id: String,
}

impl TransactionalProducer {
    pub(crate) fn new(producer: Producer) -> Self {
        Self { producer }
    }

    pub fn client_id(&self) -> &str {
        self.producer.client_id()
    }

    /// Stores a message that nobody sees until it is committed.
    pub async fn send(&self, message: Message) -> Result<Transaction, SendError> {
        let topic = message.topic.clone();
        let (receipt, transaction_id) = self.producer.send_half(message).await?;
        let session = self.producer.session().clone();
        Ok(Transaction { session, topic, receipt, transaction_id })
    }

    /// Tells the cluster that this producer ends.
    pub async fn close(self) {
        self.producer.close().await;
    }
}

impl Transaction {
    pub async fn commit(&self) -> Result<(), EndTransactionError> {
        self.end(wire::TransactionResolution::Commit).await
    }

    pub async fn rollback(&self) -> Result<(), EndTransactionError> {
        self.end(wire::TransactionResolution::Rollback).await
    }

    async fn end(&self, resolution: wire::TransactionResolution) -> Result<(), EndTransactionError> {
        let request = wire::EndTransactionRequest {
            topic: Some(self.session.resource(&self.topic)),
            message_id: self.receipt.message_id.clone(),
            transaction_id: self.transaction_id.clone(),
            resolution: resolution.into(),
            source: wire::TransactionSource::SourceClient.into(),
            trace_context: String::new(),
        };
        end(&self.session, request).await
    }
}

/// Repeated until an answer or the deadline: an outcome may be said again.
async fn end(session: &Session, request: wire::EndTransactionRequest) -> Result<(), EndTransactionError> {
    let outcome = call(&session.connections, session.send_budget("end transaction"), |live, time| {
        let request = session.request(request.clone(), time);
        async move {
            let answer = messaging(live).end_transaction(request).await?.into_inner();
            Ok(judge(answer.status, ()))
        }
    });
    outcome.await?;
    Ok(())
}

/// Answers one question of the cluster.
pub(crate) async fn answer_check(
    session: &Session,
    checker: &Arc<dyn TransactionChecker>,
    asked: wire::RecoverOrphanedTransactionCommand,
) {
    let Some((topic, half)) = asked.message.and_then(ReceivedHalf::from_wire) else {
        tracing::warn!(transaction = asked.transaction_id, "asked about a transaction without its message");
        return;
    };
    let message_id = half.message_id.clone();
    let checker = Arc::clone(checker);
    let checked = tokio::task::spawn_blocking(move || checker.check(&half)).await;
    let resolution = match checked {
        Ok(Outcome::Commit) => wire::TransactionResolution::Commit,
        Ok(Outcome::Rollback) => wire::TransactionResolution::Rollback,
        Ok(Outcome::Unknown) => return,
        Err(error) => {
            tracing::error!(%error, "the checker of transactions failed");
            return;
        }
    };
    let request = wire::EndTransactionRequest {
        topic: Some(topic),
        message_id,
        transaction_id: asked.transaction_id,
        resolution: resolution.into(),
        source: wire::TransactionSource::SourceServerCheck.into(),
        trace_context: String::new(),
    };
    if let Err(error) = end(session, request).await {
        // It will be asked again, or was decided otherwise before.
        tracing::debug!(%error, "the outcome of a checked transaction was not taken");
    }
}
