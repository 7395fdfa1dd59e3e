//! A producer's transactions: halves, ends said once, twice or both ways, and some left open until
//! the faults are over. Checks are counted by requests of anybody, as reports of nodes would.

use super::*;
use ledgermq_broker::state::{Decision, TransactionEnd};
use ledgermq_common::PhysicalOffset;

/// A transaction its producer has not decided yet.
pub(super) struct Open {
    pub(super) id: String,
    pub(super) body: Bytes,
    pub(super) transaction: PhysicalOffset,
}

impl Client {
    /// Stores a half, repeating until it is answered; the id makes that safe.
    pub(super) async fn half(&mut self, id: &str, body: &Bytes) -> Open {
        loop {
            let queue = QueueId(self.random.random_range(0..64));
            let request = Request::Half { queue, id: id.to_owned(), body: body.clone() };
            match self.call(&request).await {
                Some(Response::Answered(Answer::Halves(stored))) if stored.len() == 1 => {
                    let transaction = stored[0].transaction;
                    self.oracle.half_answered(&self.who, id, transaction);
                    return Open { id: id.to_owned(), body: body.clone(), transaction };
                }
                Some(Response::Answered(answer)) => {
                    self.oracle.violate(format_args!("{}: half {id} was answered by {answer:?}", self.who));
                    return std::future::pending().await;
                }
                Some(Response::NotLeader { .. }) => {}
                Some(_) | None => self.oracle.unknown_outcome(&self.who, id),
            }
        }
    }

    /// Decides, now and then after an attempt at the opposite.
    pub(super) async fn decide(&mut self, open: &Open) {
        let decision = if self.random.random_bool(0.6) { Decision::Commit } else { Decision::Rollback };
        if self.random.random_bool(0.2) {
            let opposite = match decision {
                Decision::Commit => Decision::Rollback,
                Decision::Rollback => Decision::Commit,
            };
            self.end_once(open, opposite).await;
        }
        while !self.end_once(open, decision).await {}
        if self.random.random_bool(0.1) {
            self.end_of_another(open).await;
        }
    }

    /// One attempt; whether it was answered.
    pub(super) async fn end_once(&mut self, open: &Open, decision: Decision) -> bool {
        let Open { id, body, transaction } = open;
        let request = Request::End { transaction: *transaction, id: id.clone(), decision };
        match self.call(&request).await {
            Some(Response::Answered(Answer::TransactionEnded(end))) => {
                let TransactionEnd { decision: taken, decided_now, .. } = end;
                if decided_now && taken != decision {
                    self.oracle.violate(format_args!("{}: {id} was to be {decision:?}: {end:?}", self.who));
                }
                self.oracle.end_answered(&self.who, id, &end, body);
                true
            }
            Some(Response::Answered(answer)) => {
                self.oracle.violate(format_args!("{}: the end of {id} was answered by {answer:?}", self.who));
                std::future::pending().await
            }
            Some(Response::NotLeader { .. }) => false,
            Some(_) | None => {
                self.oracle.unknown_outcome(&self.who, id);
                false
            }
        }
    }

    /// Another producer is to decide, once it is asked.
    pub(super) fn leave(&mut self, half: Open) {
        let decision = if self.random.random_bool(0.6) { Decision::Commit } else { Decision::Rollback };
        self.oracle.half_left(half.transaction, half.id, half.body, decision);
    }

    /// A late end whose transaction id means another message by now: it may end nothing.
    async fn end_of_another(&mut self, open: &Open) {
        let (transaction, id) = (open.transaction, format!("{}-other", open.id));
        match self.call(&Request::End { transaction, id, decision: Decision::Rollback }).await {
            Some(Response::Answered(Answer::Refused(Refusal::TransactionUnknown))) => {}
            Some(Response::Answered(answer)) => {
                self.oracle.violate(format_args!(
                    "{}: an end of {} for another message was answered by {answer:?}",
                    self.who, open.id
                ));
            }
            _ => {}
        }
    }

    /// The transaction that is due is counted as checked, or parked.
    pub(super) async fn check(&mut self) {
        match self.call(&Request::Check).await {
            Some(Response::Answered(Answer::Transactions(_))) => {}
            Some(Response::Answered(answer)) => {
                self.oracle.violate(format_args!("{}: a check was answered by {answer:?}", self.who));
            }
            _ => {}
        }
    }
}
