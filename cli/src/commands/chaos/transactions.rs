//! Transactions under chaos: a half, then its outcome, which depends on the message's number alone, so
//! that whoever is asked decides alike.
//!
//! | Number ends in | Outcome |
//! |---|---|
//! | 0 | left open; a checker is asked later and commits |
//! | 1 | left open; a checker rolls it back |
//! | 2 or 3 | rolled back |
//! | 4 | the producer dies once the half is stored; another one's checker commits, or rolls back where it ends in 14 |
//! | 5 | the producer dies while it says the outcome: nobody knows whether it was heard |
//! | else | committed |
//!
//! A producer that dies says goodbye to nobody, and another one, of another client id, goes on in its
//! place. What a checker answers is recorded as an operation without an answer: the client sends it by
//! itself. At the end the cluster is asked until it names no transaction without an outcome.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ledgermq_checkers::history::{Kind, Operation, Sending};
use ledgermq_client::{
    Admin, Client, EndTransactionError, Message, Outcome, ReceivedHalf, SendError, Transaction,
    TransactionalProducer,
};
use ledgermq_proto::admin::{ListTransactionsRequest, ShowTransactionRequest};
use tokio::time::Instant;

use super::recorder::Recorder;
use super::workload::{AFTER_ERROR, body, number_in};

/// Settings of the brokers, so that a check comes while the run lasts.
pub const BROKER_SETTINGS: [&str; 2] =
    ["transactions.timeout_ms=1000", "transactions.check_interval_ms=1500"];
/// Until the cluster has asked for every outcome that is missing, an election included.
const DECIDED_WITHIN: Duration = Duration::from_secs(45);
const DECIDED_POLL: Duration = Duration::from_millis(500);
/// The producer that dies while it says an outcome has this long to say it, by its number.
const LAST_WORDS_MAX_MS: u64 = 4;
const PAGE: u32 = 1_000;

/// Whether the half with this number is to become visible.
pub fn commits(number: u64) -> bool {
    !(1..=3).contains(&(number % 10)) && number % 20 != 14
}

/// What a producer does once the half is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    Told,
    LeftOpen,
    /// By a producer that is no more.
    DiesBefore,
    DiesMeanwhile,
}

pub fn ending(number: u64) -> Ending {
    match number % 10 {
        0 | 1 => Ending::LeftOpen,
        4 => Ending::DiesBefore,
        5 => Ending::DiesMeanwhile,
        _ => Ending::Told,
    }
}

/// Decides for every producer of the run.
pub fn checker(recorder: Arc<Recorder>) -> impl Fn(&ReceivedHalf) -> Outcome + Send + Sync + 'static {
    move |half| {
        let number = number_in(&half.body);
        let commit = commits(number);
        let process = recorder.process();
        recorder.record(process, Kind::Invoke, Operation::End { number, commit });
        recorder.record(process, Kind::Info, Operation::End { number, commit });
        if commit { Outcome::Commit } else { Outcome::Rollback }
    }
}

pub struct TransactionSender {
    pub client: Client,
    pub recorder: Arc<Recorder>,
    pub topic: String,
    pub body_bytes: usize,
    pub pause: Duration,
    pub stop: Arc<AtomicBool>,
}

impl TransactionSender {
    /// Answers how many producers died. The last one lives on, to be asked about what was left open.
    pub async fn run(self) -> (TransactionalProducer, u64) {
        let mut process = self.recorder.process();
        let mut producer = self.producer();
        let mut died = 0;
        let mut next = Instant::now();
        while !self.stop.load(Ordering::Relaxed) {
            let number = self.recorder.next_number(&self.topic);
            let topic = self.recorder.topic_named(&self.topic);
            let asked = Sending { number, topic, half: true, ..Sending::default() };
            self.recorder.record(process, Kind::Invoke, Operation::Send(asked.clone()));
            match producer.send(Message::new(&self.topic, body(number, self.body_bytes))).await {
                Ok(transaction) => {
                    let id = Some(transaction.receipt.message_id.clone());
                    self.recorder.record(process, Kind::Ok, Operation::Send(Sending { id, ..asked }));
                    if commits(number) {
                        self.recorder.must_arrive(&self.topic, number);
                    }
                    let has_died = match ending(number) {
                        Ending::LeftOpen => false,
                        Ending::DiesBefore => true,
                        Ending::Told => {
                            process = self.end(process, number, &transaction).await;
                            false
                        }
                        Ending::DiesMeanwhile => {
                            let time = Duration::from_millis(number / 10 % LAST_WORDS_MAX_MS);
                            // Dropped with the answer unheard; the operation stays open for ever.
                            tokio::time::timeout(time, self.end(process, number, &transaction)).await.is_err()
                        }
                    };
                    if has_died {
                        drop(transaction);
                        producer = self.producer();
                        process = self.recorder.process();
                        died += 1;
                    }
                }
                Err(SendError::Refused(_) | SendError::Batch(_)) => {
                    self.recorder.failed.fetch_add(1, Ordering::Relaxed);
                    self.recorder.record(process, Kind::Fail, Operation::Send(asked));
                    tokio::time::sleep(AFTER_ERROR).await;
                }
                Err(_) => {
                    self.recorder.unknown.fetch_add(1, Ordering::Relaxed);
                    self.recorder.record(process, Kind::Info, Operation::Send(asked));
                    process = self.recorder.process();
                }
            }
            next = (next + self.pause).max(Instant::now());
            tokio::time::sleep_until(next).await;
        }
        (producer, died)
    }

    fn producer(&self) -> TransactionalProducer {
        self.client.transactional_producer([self.topic.clone()], checker(Arc::clone(&self.recorder)))
    }

    /// Returns the process that goes on.
    async fn end(&self, process: u32, number: u64, transaction: &Transaction) -> u32 {
        let commit = commits(number);
        let op = || Operation::End { number, commit };
        self.recorder.record(process, Kind::Invoke, op());
        let ended = if commit { transaction.commit().await } else { transaction.rollback().await };
        match ended {
            Ok(()) => {
                self.recorder.record(process, Kind::Ok, op());
                process
            }
            Err(EndTransactionError::Refused(refused)) => {
                tracing::warn!(number, %refused, "an outcome was refused");
                self.recorder.failed.fetch_add(1, Ordering::Relaxed);
                self.recorder.record(process, Kind::Fail, op());
                process
            }
            Err(_) => {
                self.recorder.unknown.fetch_add(1, Ordering::Relaxed);
                self.recorder.record(process, Kind::Info, op());
                self.recorder.process()
            }
        }
    }
}

/// Waits until the cluster knows every outcome, and records which it does not.
pub async fn record_undecided(admin: &Admin, recorder: &Recorder, topic: &str) {
    let until = Instant::now() + DECIDED_WITHIN;
    loop {
        let process = recorder.process();
        recorder.record(process, Kind::Invoke, Operation::Undecided { numbers: Vec::new() });
        let found = undecided(admin, topic).await;
        let is_over = Instant::now() >= until;
        match found {
            Ok(numbers) if numbers.is_empty() || is_over => {
                return recorder.record(process, Kind::Ok, Operation::Undecided { numbers });
            }
            other => {
                tracing::debug!(?other, "what has no outcome yet");
                recorder.record(process, Kind::Info, Operation::Undecided { numbers: Vec::new() });
            }
        }
        if is_over {
            return;
        }
        tokio::time::sleep(DECIDED_POLL).await;
    }
}

async fn undecided(admin: &Admin, topic: &str) -> anyhow::Result<Vec<u64>> {
    let (mut numbers, mut after) = (Vec::new(), String::new());
    loop {
        let request = ListTransactionsRequest {
            topic: topic.to_owned(),
            after: after.clone(),
            max: PAGE,
            ..ListTransactionsRequest::default()
        };
        let listed = admin.list_transactions(request).await?;
        for transaction in &listed.transactions {
            let transaction_id = transaction.transaction_id.clone();
            let shown = admin.show_transaction(ShowTransactionRequest { transaction_id }).await?;
            numbers.extend(shown.message.map(|message| number_in(&message.body)));
        }
        if listed.next.is_empty() {
            return Ok(numbers);
        }
        after = listed.next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_outcome_occurs() {
        let of_twenty = |wanted: fn(u64) -> bool| (20..40).filter(|number| wanted(*number)).count();
        let with = |ending| (20..40).filter(|number| super::ending(*number) == ending).count();
        assert_eq!((with(Ending::LeftOpen), with(Ending::DiesBefore)), (4, 2));
        assert_eq!((with(Ending::DiesMeanwhile), with(Ending::Told)), (2, 12));
        assert_eq!(of_twenty(|number| ending(number) == Ending::LeftOpen && commits(number)), 2);
        assert_eq!(of_twenty(|number| ending(number) == Ending::DiesBefore && commits(number)), 1);
        assert_eq!(of_twenty(commits), 13);
    }
}
