//! Transactions under chaos: a half, then its outcome, which depends on the message's number alone, so
//! that whoever is asked decides alike.
//!
//! | Number | Outcome |
//! |---|---|
//! | ends in 0 | left open; a checker is asked later and commits |
//! | ends in 1 | left open; a checker rolls it back |
//! | ends in 2 or 3 | rolled back |
//! | else | committed |
//!
//! What a checker answers is recorded as an operation without an answer: the client sends it by itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ledgermq_checkers::history::{Kind, Operation, Sending};
use ledgermq_client::{
    EndTransactionError, Message, Outcome, ReceivedHalf, SendError, Transaction, TransactionalProducer,
};
use tokio::time::Instant;

use super::workload::{AFTER_ERROR, Recorder, body, number_in};

fn commits(number: u64) -> bool {
    !(1..=3).contains(&(number % 10))
}

fn is_left_open(number: u64) -> bool {
    number % 10 <= 1
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
    pub producer: TransactionalProducer,
    pub recorder: Arc<Recorder>,
    pub topic: String,
    pub body_bytes: usize,
    pub pause: Duration,
    pub stop: Arc<AtomicBool>,
}

impl TransactionSender {
    pub async fn run(self) {
        let mut process = self.recorder.process();
        let mut next = Instant::now();
        while !self.stop.load(Ordering::Relaxed) {
            let number = self.recorder.next_number();
            let asked = Sending { number, half: true, ..Sending::default() };
            self.recorder.record(process, Kind::Invoke, Operation::Send(asked.clone()));
            match self.producer.send(Message::new(&self.topic, body(number, self.body_bytes))).await {
                Ok(transaction) => {
                    let id = Some(transaction.receipt.message_id.clone());
                    self.recorder.record(process, Kind::Ok, Operation::Send(Sending { id, ..asked }));
                    if !is_left_open(number) {
                        process = self.end(process, number, &transaction).await;
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
        self.producer.close().await;
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
                if commit {
                    self.recorder.must_arrive(number);
                }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_outcome_occurs() {
        let of_ten = |wanted: fn(u64) -> bool| (10..20).filter(|number| wanted(*number)).count();
        assert_eq!(of_ten(is_left_open), 2);
        assert_eq!(of_ten(|number| is_left_open(number) && commits(number)), 1);
        assert_eq!(of_ten(commits), 7);
    }
}
