//! Check-back: asking the producers whose streams end here for the outcome of transactions.
//!
//! ```text
//! this node ── AwaitTransactionChecks (the topics it has producers of) ──► leader of each group
//!           ◄── transactions that are due ──
//!           ── RecoverOrphanedTransactionCommand ──► a producer's telemetry stream
//!           ── TransactionsAsked ──► leader, which counts the check in the log
//! producer  ── EndTransaction ──► any node
//! ```
//!
//! The question waits at the leader, as a receive does, so it follows leadership like any other
//! request, and a nameserver can ask its producers as well as a broker. The leader counts a check
//! only when a node reports that a producer was asked: nobody to ask, or a node that dies with the
//! question, uses none up.
//!
//! | Failure | Consequence |
//! |---|---|
//! | leader dies after it gave the question away | the next leader asks once more |
//! | this node dies before its report | the leader gives the question to another node after a moment |
//! | the report is repeated | counted once: it names the number of the check |
//! | no producer takes the command | no report; the leader asks elsewhere |

use std::time::Duration;

use ledgermq_common::{GroupName, TopicName};
use ledgermq_proto::rocketmq::telemetry_command::Command;
use ledgermq_proto::rocketmq::{MessageType, RecoverOrphanedTransactionCommand, TelemetryCommand};
use tracing::debug;

use crate::codes::ok;
use crate::context::CallContext;
use crate::edge::Edge;
use crate::group_call::{GroupRequest, GroupResponse};
use crate::standing_question::PAUSE;
use crate::topology::TopicKnowledge;
use crate::transactions::{AskedTransaction, AwaitTransactionChecks, TransactionCheck};

const REPORT_WITHIN: Duration = Duration::from_secs(5);
/// Topics one question names. A node with more producers than that asks for the first ones only.
const TOPICS_MAX: usize = 10_000;

impl Edge {
    /// Called for every producer's stream; the first call starts the work.
    pub(crate) fn keep_asking(&self) {
        if !self.shared.asking.first() {
            return;
        }
        let edge = self.clone();
        tokio::spawn(async move {
            let stopping = edge.shared.stopping.clone();
            tokio::select! {
                () = edge.ask_each_group(|edge, group| async move { edge.ask_group(&group).await }) => {}
                () = stopping.cancelled() => {}
            }
        });
    }

    async fn ask_group(&self, group: &GroupName) {
        let changed = self.shared.producers.topics_changed();
        let question = |poll_until| {
            let topics = self.topics_to_ask_about(group);
            let ask =
                |topics| GroupRequest::AwaitTransactionChecks(AwaitTransactionChecks { topics, poll_until });
            (!topics.is_empty()).then(|| ask(topics))
        };
        let take = |answer| async move {
            let GroupResponse::TransactionChecks(checks) = answer else { return false };
            self.ask_producers(group, checks).await;
            true
        };
        self.keep_question_standing(group, changed, question, take).await;
    }

    /// Topics with a producer here, without those known to take no transactions.
    fn topics_to_ask_about(&self, group: &GroupName) -> Vec<TopicName> {
        let may_have_transactions = |topic: &TopicName| match self.shared.topology.topic(group, topic) {
            TopicKnowledge::Known(description) => description.message_type == MessageType::Transaction,
            TopicKnowledge::Absent | TopicKnowledge::Unknown => true,
        };
        self.shared.producers.topics().into_iter().filter(may_have_transactions).take(TOPICS_MAX).collect()
    }

    async fn ask_producers(&self, group: &GroupName, checks: Vec<TransactionCheck>) {
        let mut asked = Vec::with_capacity(checks.len());
        for check in checks {
            let command = TelemetryCommand {
                status: Some(ok()),
                command: Some(Command::RecoverOrphanedTransactionCommand(
                    RecoverOrphanedTransactionCommand {
                        message: Some(check.message),
                        transaction_id: check.id.encode(),
                    },
                )),
            };
            if self.shared.producers.ask(&check.topic, &command) {
                asked.push(AskedTransaction { id: check.id, number: check.number });
            }
        }
        if asked.is_empty() {
            tokio::time::sleep(PAUSE).await;
            return;
        }
        let context = CallContext::internal(REPORT_WITHIN);
        let report = GroupRequest::TransactionsAsked(asked);
        if let Err(failed) = self.shared.caller.call(group, &context, &report, context.deadline).await {
            debug!(%group, %failed, "checks made are not counted");
        }
    }
}
