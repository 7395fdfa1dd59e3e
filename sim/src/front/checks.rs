//! Asking producers about halves that were left open, through the nodes their streams end at (X7).
//!
//! A producer waits at one node, always the same. Its node waits at the leader in its place, passes on
//! what it is given, and tells the leader what it asked, which counts as a check. Who is given which
//! transaction is the product's own desk ([`CheckBack`](ledgermq_broker::execution::CheckBack)).
//!
//! | Request | Fields, little endian |
//! |---|---|
//! | 90 wait, from a producer | none |
//! | 91 wait, from its node | none |
//! | 92 asked | each: transaction u64, number of the check u32 |
//!
//! | Failure | Consequence |
//! |---|---|
//! | the node dies between asking and telling | the check does not count; it is asked again |
//! | the answer of the leader is lost | likewise, once the desk no longer takes it for being asked |
//! | another leads | what the old one asked is forgotten with it |

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use ledgermq_broker::state::{
    Answer, Command, CountTransactionChecks, OpenTransaction, ParkTransactions, TransactionCheck,
};
use ledgermq_common::PhysicalOffset;
use ledgermq_common::clock::Clock as _;
use ledgermq_raft_store::group::ProposeError;

use super::{CHECKS_MAX, Front, NEXT_CHECK_MS, Request, Response, read_frame, write_frame};
use crate::plan::NODES;
use crate::workload::{FRONT_PORT, host_name};

const LOOK: Duration = Duration::from_millis(50);
const DUE_MAX: usize = 16;
/// A wait without anything to ask ends after this.
const WAIT: Duration = Duration::from_millis(400);
const FORWARD_PATIENCE: Duration = Duration::from_millis(900);

#[derive(Debug, Clone)]
pub enum ChecksRequest {
    Wait,
    WaitForProducer,
    Asked(Vec<TransactionCheck>),
}

impl ChecksRequest {
    pub(super) fn encode(&self, out: &mut BytesMut) {
        match self {
            Self::Wait => out.put_u8(90),
            Self::WaitForProducer => out.put_u8(91),
            Self::Asked(checks) => {
                out.put_u8(92);
                put_checks(out, checks);
            }
        }
    }

    pub(super) fn decode(kind: u8, frame: Bytes) -> Option<Self> {
        match kind {
            90 => Some(Self::Wait),
            91 => Some(Self::WaitForProducer),
            92 => decode_checks(frame).map(Self::Asked),
            _ => None,
        }
    }
}

pub(super) fn put_checks(out: &mut BytesMut, checks: &[TransactionCheck]) {
    for check in checks {
        out.put_u64_le(check.transaction.get());
        out.put_u32_le(check.number);
    }
}

pub(super) fn decode_checks(mut frame: Bytes) -> Option<Vec<TransactionCheck>> {
    let mut checks = Vec::new();
    while frame.has_remaining() {
        let transaction = PhysicalOffset(frame.try_get_u64_le().ok()?);
        checks.push(TransactionCheck { transaction, number: frame.try_get_u32_le().ok()? });
    }
    Some(checks)
}

impl Front {
    pub(super) async fn checks(&self, request: ChecksRequest) -> Response {
        match request {
            ChecksRequest::Wait | ChecksRequest::WaitForProducer if self.leads() => {
                Response::Asked(self.wait_here().await)
            }
            ChecksRequest::Wait => {
                let wait = Request::Checks(ChecksRequest::WaitForProducer);
                match self.ask_leader(&wait).await {
                    Some(Response::Asked(checks)) => Response::Asked(checks),
                    _ => {
                        tokio::time::sleep(LOOK).await;
                        Response::Asked(Vec::new())
                    }
                }
            }
            ChecksRequest::Asked(checks) if self.leads() => {
                self.count(checks).await.map_or(Response::OutcomeUnknown, Response::Answered)
            }
            ChecksRequest::WaitForProducer | ChecksRequest::Asked(_) => Response::NotLeader { leader: None },
        }
    }

    /// The producer of this node was asked.
    pub(super) async fn tell_asked(&self, checks: Vec<TransactionCheck>) {
        // Untold it does not count, and is asked again.
        if self.leads() {
            drop(self.count(checks).await);
        } else {
            self.ask_leader(&Request::Checks(ChecksRequest::Asked(checks))).await;
        }
    }

    /// Gives what is due to those who wait, and parks what was asked about often enough, while this
    /// node leads; until its life ends.
    pub async fn check_transactions(self) {
        let mut led = false;
        loop {
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = self.desk.somebody_waits() => {}
            }
            let leads = self.leads();
            if leads != led {
                self.desk.forget_all();
                led = leads;
            }
            if !leads {
                continue;
            }
            let due = self.state.due_transactions(self.clock.now(), DUE_MAX);
            let (over, due): (Vec<_>, Vec<_>) = due.into_iter().partition(|open| open.checks >= CHECKS_MAX);
            self.desk.give(&due);
            if !over.is_empty() {
                let transactions = over.iter().map(|open| check(open, 0)).collect();
                let command = Command::ParkTransactions(ParkTransactions { transactions });
                // It may fail for a good reason; the next leader parks them.
                drop(self.propose(command.encode(self.clock.now())).await);
            }
        }
    }

    fn leads(&self) -> bool {
        self.group.leadership().borrow().is_leader_ready
    }

    async fn wait_here(&self) -> Vec<TransactionCheck> {
        let Some(topic) = self.state.topic(super::TOPIC) else {
            tokio::time::sleep(LOOK).await;
            return Vec::new();
        };
        let Some(mut place) = self.desk.wait(BTreeSet::from([topic.id])) else { return Vec::new() };
        let given = tokio::time::timeout(WAIT, place.given()).await.unwrap_or_default();
        given.iter().map(|open| check(open, 1)).collect()
    }

    async fn count(&self, checks: Vec<TransactionCheck>) -> Result<Answer, ProposeError> {
        let transactions: Vec<_> = checks.iter().map(|check| check.transaction).collect();
        let command = CountTransactionChecks { next_check_ms: NEXT_CHECK_MS, checks };
        let command = Command::CountTransactionChecks(command).encode(self.clock.now());
        let answer = self.propose(command).await?;
        self.desk.asked(transactions.into_iter());
        Ok(answer)
    }

    /// `None`: nobody leads, it cannot be reached, or it keeps silent.
    async fn ask_leader(&self, request: &Request) -> Option<Response> {
        let leader = self.group.leadership().borrow().leader?.get();
        let leader = usize::try_from(leader).ok()?.checked_sub(1).filter(|node| *node < NODES)?;
        if self.asks_own_producers_only || leader == self.node {
            return None;
        }
        let exchange = async {
            let address = format!("{}:{FRONT_PORT}", host_name(leader));
            let mut stream = self.network.dial(&host_name(self.node), &address).await.ok()?;
            write_frame(&mut stream, &request.encode()).await.ok()?;
            Response::decode(read_frame(&mut stream).await.ok()?)
        };
        tokio::time::timeout(FORWARD_PATIENCE, exchange).await.ok().flatten()
    }
}

fn check(open: &OpenTransaction, further: u32) -> TransactionCheck {
    TransactionCheck { transaction: open.id, number: open.checks + further }
}
