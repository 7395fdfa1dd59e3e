//! The wire form of what is asked of a group about transactions.

use ledgermq_common::TopicName;
use ledgermq_common::transaction_id::TransactionId;
use ledgermq_proto::forward as pb;
use ledgermq_proto::rocketmq::{Code, TransactionResolution};
use tokio::time::Instant;

use super::wire::{bounded, millis, topic};
use crate::group_call::Refused;
use crate::transactions::{
    AskedTransaction, AwaitTransactionChecks, CHECKS_PER_ANSWER_MAX, Decision, DecisionSource,
    EndTransaction, TransactionCheck,
};

pub(super) fn write_end(end: &EndTransaction) -> pb::EndTransaction {
    let decision = match end.decision {
        Decision::Commit => TransactionResolution::Commit,
        Decision::Rollback => TransactionResolution::Rollback,
    };
    let source = match end.source {
        DecisionSource::Producer => pb::end_transaction::Source::Producer,
        DecisionSource::Check => pb::end_transaction::Source::Check,
        DecisionSource::Administrator => pb::end_transaction::Source::Administrator,
    };
    pb::EndTransaction {
        transaction_id: end.id.encode(),
        topic: end.topic.as_ref().map(|topic| topic.as_str().to_owned()),
        decision: decision.into(),
        source: source.into(),
    }
}

pub(super) fn read_end(end: &pb::EndTransaction) -> Result<EndTransaction, Refused> {
    let decision = match end.decision() {
        TransactionResolution::Commit => Decision::Commit,
        TransactionResolution::Rollback => Decision::Rollback,
        TransactionResolution::Unspecified => {
            return Err(Refused::new(
                Code::BadRequest,
                "a forwarded decision says neither commit nor roll back",
            ));
        }
    };
    let source = match end.source() {
        pb::end_transaction::Source::Producer | pb::end_transaction::Source::Unspecified => {
            DecisionSource::Producer
        }
        pb::end_transaction::Source::Check => DecisionSource::Check,
        pb::end_transaction::Source::Administrator => DecisionSource::Administrator,
    };
    Ok(EndTransaction {
        id: transaction_id(&end.transaction_id)?,
        topic: end.topic.as_deref().map(topic).transpose()?,
        decision,
        source,
    })
}

pub(super) fn write_await(wait: &AwaitTransactionChecks, now: Instant) -> pb::AwaitTransactionChecks {
    pb::AwaitTransactionChecks {
        topics: wait.topics.iter().map(|topic| topic.as_str().to_owned()).collect(),
        poll_ms: millis(wait.poll_until.saturating_duration_since(now)),
    }
}

pub(super) fn read_await(
    wait: &pb::AwaitTransactionChecks,
    now: Instant,
) -> Result<AwaitTransactionChecks, Refused> {
    Ok(AwaitTransactionChecks {
        topics: wait.topics.iter().map(|name| topic(name)).collect::<Result<_, _>>()?,
        poll_until: now + bounded(wait.poll_ms),
    })
}

pub(super) fn write_asked(asked: &[AskedTransaction]) -> pb::TransactionsAsked {
    let asked = asked.iter().map(|asked| pb::transactions_asked::Asked {
        transaction_id: asked.id.encode(),
        number: asked.number,
    });
    pb::TransactionsAsked { asked: asked.collect() }
}

pub(super) fn read_asked(asked: &pb::TransactionsAsked) -> Result<Vec<AskedTransaction>, Refused> {
    let asked = asked.asked.iter().take(CHECKS_PER_ANSWER_MAX);
    asked
        .map(|asked| {
            Ok(AskedTransaction { id: transaction_id(&asked.transaction_id)?, number: asked.number })
        })
        .collect()
}

pub(super) fn write_checks(checks: Vec<TransactionCheck>) -> pb::TransactionChecks {
    let checks = checks.into_iter().map(|check| pb::transaction_checks::Check {
        transaction_id: check.id.encode(),
        topic: check.topic.as_str().to_owned(),
        number: check.number,
        message: Some(check.message),
    });
    pb::TransactionChecks { checks: checks.collect() }
}

/// `None` if something in it is not known here.
pub(super) fn read_checks(checks: pb::TransactionChecks) -> Option<Vec<TransactionCheck>> {
    let read = |check: pb::transaction_checks::Check| {
        Some(TransactionCheck {
            id: TransactionId::parse(&check.transaction_id).ok()?,
            topic: TopicName::parse(&check.topic).ok()?,
            number: check.number,
            message: check.message?,
        })
    };
    checks.checks.into_iter().map(read).collect()
}

pub(super) fn transaction_id(text: &str) -> Result<TransactionId, Refused> {
    TransactionId::parse(text).map_err(|error| Refused::new(Code::InvalidTransactionId, error.to_string()))
}
