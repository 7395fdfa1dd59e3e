//! Producers that answer for halves their sender left open, each connected to one node and no other.
//!
//! What a half is to become they know as the members of a producer group do: from what they have in
//! common. Of a half that nobody decides they know nothing, and are asked until it is parked.

use super::*;
use ledgermq_broker::state::TransactionCheck;

use super::transact::Open;
use crate::front::checks::ChecksRequest;

impl Workload {
    pub(super) async fn answer(self, node: usize) {
        let who = format!("answering producer {node}");
        let mut waiting = self.client(&who, 700 + node as u64);
        let mut deciding = self.client(&who, 710 + node as u64);
        while !self.all_is_answered() {
            waiting.turn_to(node);
            for check in waiting.checks().await {
                if let Some((id, body, decision)) = self.oracle.left_half(check.transaction) {
                    let half = Open { id, body, transaction: check.transaction };
                    deciding.end_once(&half, decision).await;
                }
            }
        }
        self.stage.answering_done.fetch_add(1, Ordering::SeqCst);
    }

    fn all_is_answered(&self) -> bool {
        self.stage.is_healed()
            && self.stage.producers_done() == self.plan.producers
            && self.oracle.left_halves_have_ended()
            && self.oracle.abandoned_are_parked()
    }
}

impl Client {
    async fn checks(&mut self) -> Vec<TransactionCheck> {
        match self.call(&Request::Checks(ChecksRequest::Wait)).await {
            Some(Response::Asked(checks)) => checks,
            Some(Response::Answered(answer)) => {
                self.oracle.violate(format_args!("{}: a wait was answered by {answer:?}", self.who));
                Vec::new()
            }
            _ => Vec::new(),
        }
    }
}
