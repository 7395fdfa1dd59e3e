//! `ledgermq admin transaction`: transactions whose producers gave no answer.

use clap::Subcommand;
use ledgermq_client::Admin;
use ledgermq_proto::admin as wire;
use ledgermq_proto::admin::transaction::State;
use ledgermq_proto::rocketmq::TransactionResolution;
use serde_json::{Value, json};

use super::admin::table;

/// Bytes of a body that are shown.
const BODY_SHOWN_BYTES: usize = 256;

#[derive(Debug, Subcommand)]
pub enum TransactionCommand {
    /// List transactions without an outcome, oldest first.
    List {
        /// Only those of this topic.
        #[arg(long)]
        topic: Option<String>,
        /// Only those in TRANS_CHECK_MAX_TIME_TOPIC: asked about as often as is allowed.
        #[arg(long)]
        parked: bool,
        /// Go on behind this transaction id: the `next` of the page before.
        #[arg(long)]
        after: Option<String>,
        #[arg(long, default_value_t = 100)]
        max: u32,
    },
    /// Show one transaction with its message.
    Show { transaction_id: String },
    /// Make the message visible. What was decided otherwise stays as it is.
    Commit { transaction_id: String },
    /// Drop the message. What was decided otherwise stays as it is.
    Rollback { transaction_id: String },
}

pub async fn transaction(admin: &Admin, command: TransactionCommand) -> anyhow::Result<(String, Value)> {
    match command {
        TransactionCommand::List { topic, parked, after, max } => {
            let request = wire::ListTransactionsRequest {
                topic: topic.unwrap_or_default(),
                only_parked: parked,
                after: after.unwrap_or_default(),
                max,
            };
            let listed = admin.list_transactions(request).await?;
            let mut rows = table(&["transaction", "topic", "state", "message id", "stored ms", "checks"]);
            for open in &listed.transactions {
                rows.add_row([
                    open.transaction_id.clone(),
                    open.topic.clone(),
                    state_name(open).to_owned(),
                    open.message_id.clone(),
                    open.stored_ms.to_string(),
                    open.checks.to_string(),
                ]);
            }
            let more = if listed.next.is_empty() {
                String::new()
            } else {
                format!("\n\nmore: --after {}", listed.next)
            };
            let value = json!({
                "transactions": listed.transactions.iter().map(as_json).collect::<Vec<_>>(),
                "next": listed.next,
            });
            Ok((format!("{rows}{more}"), value))
        }
        TransactionCommand::Show { transaction_id } => {
            let shown = admin.show_transaction(wire::ShowTransactionRequest { transaction_id }).await?;
            let found = shown.transaction.clone().unwrap_or_default();
            let mut text = format!(
                "transaction {} of topic {} in {}: {}\nmessage id {}, stored {} ms, {} checks, next check {} ms",
                found.transaction_id,
                found.topic,
                found.group,
                state_name(&found),
                found.message_id,
                found.stored_ms,
                found.checks,
                found.next_check_ms,
            );
            let mut value = json!({ "transaction": as_json(&found) });
            if let Some(message) = &shown.message {
                let part = message.body.get(..BODY_SHOWN_BYTES).unwrap_or(&message.body);
                text.push_str(&format!(
                    "\nproperties {:?}\nbody, {} bytes: {}",
                    message.user_properties,
                    message.body.len(),
                    String::from_utf8_lossy(part).escape_debug()
                ));
                value["message"] = json!({
                    "properties": message.user_properties,
                    "body_bytes": message.body.len(),
                    "body": String::from_utf8_lossy(part),
                });
            }
            Ok((text, value))
        }
        TransactionCommand::Commit { transaction_id } => {
            decide(admin, transaction_id, TransactionResolution::Commit, "committed").await
        }
        TransactionCommand::Rollback { transaction_id } => {
            decide(admin, transaction_id, TransactionResolution::Rollback, "rolled back").await
        }
    }
}

async fn decide(
    admin: &Admin,
    transaction_id: String,
    decision: TransactionResolution,
    done: &str,
) -> anyhow::Result<(String, Value)> {
    let request =
        wire::EndTransactionRequest { transaction_id: transaction_id.clone(), decision: decision.into() };
    admin.end_transaction(request).await?;
    Ok((format!("{done}: {transaction_id}"), json!({ "transaction_id": transaction_id, "outcome": done })))
}

fn state_name(transaction: &wire::Transaction) -> &'static str {
    match transaction.state() {
        State::Unspecified => "unknown",
        State::Pending => "pending",
        State::Parked => "parked",
        State::Committed => "committed",
        State::RolledBack => "rolled back",
    }
}

fn as_json(transaction: &wire::Transaction) -> Value {
    json!({
        "transaction_id": transaction.transaction_id,
        "group": transaction.group,
        "topic": transaction.topic,
        "state": state_name(transaction),
        "message_id": transaction.message_id,
        "stored_ms": transaction.stored_ms,
        "checks": transaction.checks,
        "next_check_ms": transaction.next_check_ms,
        "since_ms": transaction.since_ms,
    })
}
