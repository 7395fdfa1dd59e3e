//! The leader's part in asking for the outcome of transactions left open.
//!
//! Nodes that have producers wait here with the topics of theirs ([`wait`]). A task looks at the
//! schedule in the state and gives each due transaction to one waiting node, another one each time;
//! a node that has asked a producer says so, and only that counts as a check, by a log entry
//! ([`count`]). A transaction that was asked about often enough is parked by a log entry.
//!
//! In memory, and lost with leadership: who waits, and which transactions are being asked about
//! right now ([`ASKING_LASTS`]). The schedule and the counts are in the log.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use hashbrown::HashMap;
use ledgermq_common::PhysicalOffset;
use ledgermq_edge::group_call::{GroupResponse, NotExecuted, Refused};
use ledgermq_edge::transactions::{
    AskedTransaction, AwaitTransactionChecks, CHECKS_PER_ANSWER_MAX, TransactionCheck,
};
use ledgermq_proto::rocketmq::Code;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, MissedTickBehavior};

use super::hosted_group::{Ended, HostedGroup, unexpected};
use super::transaction;
use crate::state::{
    self, Answer, Command, CountTransactionChecks, OpenTransaction, ParkTransactions, TopicId,
};

const SCAN_INTERVAL: Duration = Duration::from_millis(250);
/// A transaction given to a node is not given to another one for so long.
const ASKING_LASTS: Duration = Duration::from_secs(3);
/// Due transactions of one topic looked at in one scan; the rest waits for the next.
const DUE_OF_TOPIC_MAX: usize = 1_024;
/// Bodies of one answer together; a single message may be larger.
const ANSWER_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// Nodes that wait for transactions. A cluster has fewer nodes.
const WAITING_MAX: usize = 4_096;
/// An answer ends this long before its time, so that it arrives within it.
const POLL_END_MARGIN: Duration = Duration::from_millis(50);

/// Who waits for transactions, and which are being asked about.
#[derive(Debug, Default)]
pub struct CheckBack {
    desk: Mutex<Desk>,
    /// Somebody waits who did not before.
    changed: Notify,
}

#[derive(Debug, Default)]
struct Desk {
    next: u64,
    waiting: BTreeMap<u64, Waiting>,
    asking: HashMap<PhysicalOffset, Instant>,
}

#[derive(Debug)]
struct Waiting {
    topics: BTreeSet<TopicId>,
    give: oneshot::Sender<Vec<OpenTransaction>>,
}

impl CheckBack {
    /// A place in line for what is due of these topics. `None`: too many wait.
    pub fn wait(&self, topics: BTreeSet<TopicId>) -> Option<Place<'_>> {
        let (give, given) = oneshot::channel();
        let mut desk = self.desk.lock();
        if desk.waiting.len() >= WAITING_MAX {
            return None;
        }
        desk.next += 1;
        let number = desk.next;
        desk.waiting.insert(number, Waiting { topics, give });
        drop(desk);
        self.changed.notify_one();
        Some(Place { check_back: self, number, given })
    }

    /// Returns once somebody waits who did not before.
    pub async fn somebody_waits(&self) {
        self.changed.notified().await;
    }

    /// Gives what is due to those who wait, the one that waits longest first.
    pub fn give(&self, due: &[OpenTransaction]) {
        let now = Instant::now();
        let mut desk = self.desk.lock();
        desk.asking.retain(|_, since| now.duration_since(*since) < ASKING_LASTS);
        let mut given: BTreeMap<u64, (Vec<OpenTransaction>, u64)> = BTreeMap::new();
        for open in due {
            if desk.asking.contains_key(&open.id) {
                continue;
            }
            let bytes = u64::from(open.record_bytes);
            let has_room = |number: u64| {
                given.get(&number).is_none_or(|(chosen, taken)| {
                    chosen.len() < CHECKS_PER_ANSWER_MAX && taken + bytes <= ANSWER_BYTES_MAX
                })
            };
            let candidates = desk
                .waiting
                .iter()
                .filter(|(number, waiting)| waiting.topics.contains(&open.topic) && has_room(**number));
            // The one with the least to ask, so that the work is spread.
            let chosen = candidates
                .min_by_key(|(number, _)| {
                    (given.get(*number).map_or(0, |(chosen, _)| chosen.len()), **number)
                })
                .map(|(number, _)| *number);
            let Some(number) = chosen else { continue };
            let (chosen, taken) = given.entry(number).or_default();
            chosen.push(*open);
            *taken += bytes;
            desk.asking.insert(open.id, now);
        }
        for (number, (chosen, _)) in given {
            let Some(waiting) = desk.waiting.remove(&number) else { continue };
            if let Err(refused) = waiting.give.send(chosen) {
                // It has just left; others may have them.
                for open in refused {
                    desk.asking.remove(&open.id);
                }
            }
        }
    }

    /// They were asked about, and that is in the log.
    pub fn asked(&self, transactions: impl Iterator<Item = PhysicalOffset>) {
        let mut desk = self.desk.lock();
        for transaction in transactions {
            desk.asking.remove(&transaction);
        }
    }

    /// Leadership came or went: what was being asked about is another leader's.
    pub fn forget_all(&self) {
        self.desk.lock().asking.clear();
    }
}

/// Left when the call ends, however it ends.
pub struct Place<'a> {
    check_back: &'a CheckBack,
    number: u64,
    given: oneshot::Receiver<Vec<OpenTransaction>>,
}

impl Place<'_> {
    /// Returns once something is due.
    pub async fn given(&mut self) -> Vec<OpenTransaction> {
        (&mut self.given).await.unwrap_or_default()
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.check_back.desk.lock().waiting.remove(&self.number);
    }
}

/// AwaitTransactionChecks: answered when something is due, or with nothing at the end of the poll.
pub async fn wait(hosted: &HostedGroup, wait: &AwaitTransactionChecks) -> Result<GroupResponse, Ended> {
    let mut leadership = hosted.raft_leadership();
    let mut stopping = hosted.stopping.clone();
    leadership.borrow_and_update();
    hosted.leader_still()?;
    let named = wait.topics.iter().filter_map(|name| hosted.state.topic(name.as_str()));
    let with_transactions = named.filter(|t| t.settings.message_type == state::MessageType::Transaction);
    let topics: BTreeSet<TopicId> = with_transactions.map(|topic| topic.id).collect();
    let nothing = Ok(GroupResponse::TransactionChecks(Vec::new()));
    let ends = wait.poll_until.checked_sub(POLL_END_MARGIN).unwrap_or(wait.poll_until);
    let full = || Refused::new(Code::TooManyRequests, "polling full");
    let mut place = hosted.check_back.wait(topics).ok_or_else(full)?;
    loop {
        tokio::select! {
            checks = place.given() => {
                return Ok(GroupResponse::TransactionChecks(
                    checks.iter().filter_map(|open| check(hosted, open)).collect(),
                ));
            }
            () = tokio::time::sleep_until(ends) => return nothing,
            changed = leadership.changed() => {
                changed.map_err(|_| NotExecuted::Stopping)?;
                hosted.leader_still()?;
            }
            _ = stopping.wait_for(|stopping| *stopping) => return nothing,
        }
    }
}

fn check(hosted: &HostedGroup, open: &OpenTransaction) -> Option<TransactionCheck> {
    let topic = hosted.state.topic_by_id(open.topic)?;
    Some(TransactionCheck {
        id: transaction::id_of(hosted, open),
        topic: ledgermq_common::TopicName::parse(&topic.name).ok()?,
        number: open.checks.saturating_add(1),
        message: transaction::message(hosted, open)?,
    })
}

/// TransactionsAsked: the checks count, and the next ones are an interval away.
pub async fn count(hosted: &HostedGroup, asked: &[AskedTransaction]) -> Result<GroupResponse, Ended> {
    let checks: Vec<state::TransactionCheck> = asked
        .iter()
        .filter(|asked| asked.id.group == hosted.id)
        .map(|asked| state::TransactionCheck { transaction: asked.id.half, number: asked.number })
        .collect();
    let command = CountTransactionChecks {
        next_check_ms: hosted.settings.transactions.check_interval_ms,
        checks: checks.clone(),
    };
    let command = Command::CountTransactionChecks(command).encode(hosted.now());
    match hosted.propose(command).await? {
        Answer::Transactions(_) => {
            hosted.check_back.asked(checks.iter().map(|check| check.transaction));
            Ok(GroupResponse::Done)
        }
        other => Err(unexpected("CountTransactionChecks", &other)),
    }
}

/// Looks at the schedule for as long as the group lives, and works while this node leads.
pub async fn check_transactions(hosted: Weak<HostedGroup>) {
    let Some(check_back) = hosted.upgrade().map(|hosted| Arc::clone(&hosted.check_back)) else { return };
    let mut scan = tokio::time::interval(SCAN_INTERVAL);
    scan.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut led = false;
    loop {
        tokio::select! {
            _ = scan.tick() => {}
            () = check_back.somebody_waits() => {}
        }
        let Some(hosted) = hosted.upgrade() else { return };
        let leads = hosted.leads();
        if leads != led {
            check_back.forget_all();
            led = leads;
        }
        if leads {
            look(&hosted).await;
        }
    }
}

async fn look(hosted: &HostedGroup) {
    let due = hosted.state.due_transactions(hosted.now(), DUE_OF_TOPIC_MAX);
    if due.is_empty() {
        return;
    }
    let checks_max = hosted.settings.transactions.checks_max;
    let (over, due): (Vec<_>, Vec<_>) = due.into_iter().partition(|open| open.checks >= checks_max);
    hosted.check_back.give(&due);
    if !over.is_empty() {
        let transactions = over
            .iter()
            .map(|open| state::TransactionCheck { transaction: open.id, number: open.checks })
            .collect();
        let command = Command::ParkTransactions(ParkTransactions { transactions }).encode(hosted.now());
        match hosted.propose(command).await {
            Ok(_) => tracing::warn!(
                group = %hosted.name(), transactions = over.len(), checks = checks_max,
                "transactions without an outcome wait for an administrator"
            ),
            Err(ended) => tracing::debug!(group = %hosted.name(), ?ended, "not parked here any more"),
        }
    }
}
