//! EndTransaction, and what is asked of a group about transactions.
//!
//! | Condition | Answer of EndTransaction |
//! |---|---|
//! | transaction id blank, cut, or of a group this cluster does not have | INVALID_TRANSACTION_ID |
//! | id of another topic, never given, or decided so long ago that it is forgotten | INVALID_TRANSACTION_ID |
//! | neither COMMIT nor ROLLBACK | OK; nothing is decided, the producers are asked again later |
//! | open, or decided the same way before | OK |
//! | decided the other way before | PRECONDITION_FAILED, the message says what was decided |
//!
//! SDKs try once, so the request is held through an election; a repetition by the edge meets the
//! decision of its first try and is answered OK.

use ledgermq_common::transaction_id::TransactionId;
use ledgermq_common::{GroupName, TopicName};
use ledgermq_proto::rocketmq::{
    EndTransactionRequest, EndTransactionResponse, Message, TransactionResolution, TransactionSource,
};
use tokio::time::Instant;

use crate::codes::{CallFailed, ok};
use crate::context::CallContext;
use crate::edge::Edge;
use crate::group_call::{GroupRequest, GroupResponse, Refused};
use crate::validate::{self, Invalid};

/// Transactions one node is given to ask about at a time.
pub const CHECKS_PER_ANSWER_MAX: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    Commit,
    Rollback,
}

/// Who decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DecisionSource {
    Producer,
    /// A producer that was asked.
    Check,
    Administrator,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndTransaction {
    pub id: TransactionId,
    /// What the caller takes for its topic. An administrator names none.
    pub topic: Option<TopicName>,
    pub decision: Decision,
    pub source: DecisionSource,
}

/// A node with producers of `topics` waits for transactions to ask them about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AwaitTransactionChecks {
    pub topics: Vec<TopicName>,
    /// When to stop waiting.
    pub poll_until: Instant,
}

/// A producer of the topic is to be asked for the outcome of a transaction.
#[derive(Debug, Clone, PartialEq)]
pub struct TransactionCheck {
    pub id: TransactionId,
    pub topic: TopicName,
    /// Which check of the transaction this is, from 1.
    pub number: u32,
    pub message: Message,
}

/// A producer was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AskedTransaction {
    pub id: TransactionId,
    pub number: u32,
}

impl Edge {
    pub(crate) async fn end_transaction(
        &self,
        context: &CallContext,
        request: EndTransactionRequest,
    ) -> Result<EndTransactionResponse, Refused> {
        let topic = validate::topic(request.topic.as_ref())?;
        let id = TransactionId::parse(&request.transaction_id).map_err(Invalid::TransactionId)?;
        let decision = match request.resolution() {
            TransactionResolution::Commit => Decision::Commit,
            TransactionResolution::Rollback => Decision::Rollback,
            TransactionResolution::Unspecified => return Ok(EndTransactionResponse { status: Some(ok()) }),
        };
        let source = match request.source() {
            TransactionSource::SourceServerCheck => DecisionSource::Check,
            TransactionSource::SourceClient | TransactionSource::SourceUnspecified => {
                DecisionSource::Producer
            }
        };
        let group = self.group_of_transaction(context, &id).await?;
        let request =
            GroupRequest::EndTransaction(EndTransaction { id, topic: Some(topic), decision, source });
        match self.call(&group, context, &request).await? {
            GroupResponse::Done => Ok(EndTransactionResponse { status: Some(ok()) }),
            GroupResponse::Refused(refused) => Err(refused),
            _ => Err(CallFailed::WrongAnswer { group }.into()),
        }
    }

    /// The broker group that has the half message.
    pub async fn group_of_transaction(
        &self,
        context: &CallContext,
        id: &TransactionId,
    ) -> Result<GroupName, Refused> {
        let cluster = self.cluster(context).await?;
        match cluster.group_by_id(id.group) {
            Some(group) => Ok(group.name.clone()),
            None => Err(Invalid::TransactionGroup { group: id.group.get() }.into()),
        }
    }
}
