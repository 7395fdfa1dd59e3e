//! How a replica becomes a voter: at the first start, after its directory was lost, and after it was
//! taken out.
//!
//! A group knows its members by node id *and* replica id ([`ReplicaId`]). A node whose directory is
//! gone comes back under its node id as another replica: it has forgotten what it voted and what it
//! acknowledged, so it must not count as the one it was, or an acknowledged entry that a majority had
//! is held by a minority from then on. It is taken out, receives the log, and is let in again.
//!
//! Every replica that does not find itself among the voters asks all its peers, again and again:
//!
//! | The peers answer | Done by the asker |
//! |---|---|
//! | all are blank, the asker too, and it has the lowest node id | it writes the first entry of the log, with the replica ids it was told |
//! | all are blank, the asker has a higher id | it waits to be written to |
//! | some are blank and some do not answer | it waits: the silent one may hold the log of a group that lost its other directories |
//! | one leads | what the leader says is told in the log; the leader does the next step |
//!
//! What a leader does when it is asked, one step per call, each an entry of the log:
//!
//! | The membership says of the asker's node | Step |
//! |---|---|
//! | a change was left half-way (two sets of voters) | it is finished |
//! | a voter, of another replica id | that replica is taken out, unless it answers at the node's address |
//! | a learner, of another replica id | likewise |
//! | nothing | added as a learner: it is sent snapshot and log |
//! | a learner of this replica id, behind | none; it is told how far |
//! | a learner of this replica id, level | it becomes a voter |
//! | a voter of this replica id | none |
//!
//! Nothing here is remembered but in the log, so whoever fails in between, asker or leader, it goes on
//! with the next question.
//!
//! # Why an id may come back
//!
//! The old replica is out when the entry that takes it out is committed: a majority of the voters
//! without it holds that entry, in a term no lower than any in which the old replica voted and somebody
//! won. Whoever still goes by the old membership addresses the old replica, and the new one refuses
//! what is not addressed to it (`raft::server`), so its votes and acknowledgements count only where the
//! entry that let it in is known, and that one is proposed only after it has the log.
//!
//! | Failure | Consequence |
//! |---|---|
//! | more directories are lost at once than the group can do without | nobody leads; nothing is acknowledged, and the blank ones do not begin anew while one that is not blank may come back |
//! | all directories are lost | a new, empty group |
//! | a member does not come up at the very first start | the group waits for it |

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ledgermq_common::NodeId;
use ledgermq_proto::raft as proto;
use openraft::ChangeMembers;
use openraft::async_runtime::WatchReceiver;
use tokio::sync::{Mutex, watch};
use tokio::time::{Instant, sleep, timeout};

use super::errors::ChangeMembersError;
use super::{Leadership, Member, status};
use crate::raft::links::Links;
use crate::raft::server::Raft;
use crate::raft::vocabulary::{Membership, Node, Runtime};
use crate::raft::wire::Address;
use crate::store::{LogStore, ReplicaId};

/// Between two rounds of questions.
const ASK_EVERY: Duration = Duration::from_millis(100);
/// Between two looks at whether there is something to ask.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// A voter that has heard of no leader for so long may have been taken out without having heard of it.
const LEADERLESS: Duration = Duration::from_secs(1);
/// Less than an asker waits, because a leader asks back.
const ASKED_BACK_WITHIN: Duration = Duration::from_millis(300);
const ANSWER_WITHIN: Duration = Duration::from_millis(1_000);
/// Who is waited for at the first start is told so often.
const TELL_EVERY: Duration = Duration::from_secs(5);
/// A step that takes longer goes on without being waited for.
const STEP_WITHIN: Duration = Duration::from_millis(400);
/// A learner that lacks so few entries becomes a voter: what it lacks is on its way.
const LEVEL_ENTRIES: u64 = 1_000;

/// What a replica answers to one that wants to be a voter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Standing {
    Blank(ReplicaId),
    Follows,
    Joining {
        /// What is being done, or why nothing is.
        doing: String,
        /// The membership names the asker by its replica id: the one that was here before is out.
        is_known: bool,
    },
    Voter,
}

/// The side that is asked.
pub(crate) struct Admission {
    pub(crate) raft: Raft,
    pub(crate) store: LogStore,
    pub(crate) links: Arc<Links>,
    pub(crate) own: Address,
    pub(crate) members: Vec<Member>,
    pub(crate) leadership: watch::Receiver<Leadership>,
    pub(crate) seed: u64,
    /// One change at a time; held by the change itself, which nobody waits for to the end.
    pub(crate) changing: Arc<Mutex<()>>,
}

/// The next thing to be done for a replica.
enum Step {
    Finish,
    TakeOut,
    Learn,
    Promote,
    CatchUp { lag_entries: u64 },
    None,
}

impl Admission {
    pub(crate) async fn admit(&self, node: NodeId, replica: ReplicaId) -> Standing {
        if self.store.is_blank() {
            return Standing::Blank(self.store.replica());
        }
        if self.leads().is_err() {
            return Standing::Follows;
        }
        let Some(member) = self.members.iter().find(|member| member.node == node) else {
            return joining(format!("node {node} is not among the configured members"), false);
        };
        let step = self.next_step(node, replica);
        if matches!(step, Step::TakeOut)
            && let Some(other) = self.runs_another(node, replica).await
        {
            return joining(format!("at {} runs replica {other} of this node", member.peer_addr), false);
        }
        let is_known = matches!(step, Step::Learn | Step::Promote);
        let (change, doing) = match step {
            Step::None => return Standing::Voter,
            Step::CatchUp { lag_entries } => {
                return joining(format!("learning the log, {lag_entries} entries to go"), true);
            }
            Step::Finish => (ChangeMembers::AddVoterIds(Default::default()), "finishing a change"),
            Step::TakeOut => (self.taking_out(node), "taking out the replica that was here before"),
            Step::Learn => {
                let learner = Node { addr: member.peer_addr.clone(), replica };
                (ChangeMembers::AddNodes(BTreeMap::from([(node.get(), learner)])), "becoming a learner")
            }
            Step::Promote => (ChangeMembers::AddVoterIds([node.get()].into()), "becoming a voter"),
        };
        match timeout(STEP_WITHIN, self.change(change)).await {
            Ok(Err(error)) => joining(format!("{doing}: {error}"), false),
            Err(_) => joining(format!("{doing}, which takes its time"), false),
            Ok(Ok(())) => {
                tracing::info!(%node, %replica, doing, "a replica joins");
                joining(doing.to_owned(), is_known)
            }
        }
    }

    /// Takes a voter out of the group, which goes on without it. Unless its process is down it asks to
    /// come back.
    pub(super) async fn take_out(&self, node: NodeId) -> Result<(), ChangeMembersError> {
        self.leads()?;
        if node == self.own.node {
            return Err(ChangeMembersError::Leads { node });
        }
        if self.membership().get_node(&node.get()).is_none() {
            return Err(ChangeMembersError::NotAMember { node });
        }
        self.change(self.taking_out(node)).await
    }

    /// It leads, and has applied what earlier leaders acknowledged.
    fn leads(&self) -> Result<(), ChangeMembersError> {
        let now = *self.leadership.borrow();
        match now.leader == Some(self.own.node) && now.is_leader_ready {
            true => Ok(()),
            false => Err(ChangeMembersError::NotLeader { leader: now.leader }),
        }
    }

    /// The replica that answers at the node's address, if it is another one than asks. A process that was
    /// started by mistake somewhere else with this node's id must not push out the one that is in use.
    async fn runs_another(&self, node: NodeId, replica: ReplicaId) -> Option<ReplicaId> {
        let mut links = self.links.to_configured(node.get())?;
        let question = join_request(self.own, node);
        let answer = timeout(ASKED_BACK_WITHIN, links.control.join(question)).await.ok()?.ok()?;
        let runs = ReplicaId(answer.into_inner().replica);
        (runs != replica).then_some(runs)
    }

    fn membership(&self) -> Membership {
        self.raft.server_metrics().borrow_watched().membership_config.membership().clone()
    }

    fn next_step(&self, node: NodeId, replica: ReplicaId) -> Step {
        let membership = self.membership();
        if membership.get_joint_config().len() > 1 {
            return Step::Finish;
        }
        match membership.get_node(&node.get()) {
            None => Step::Learn,
            Some(known) if known.replica != replica => Step::TakeOut,
            Some(_) if is_voter(&membership, node) => Step::None,
            Some(_) => match status::lag_of(&self.raft, &self.store, node) {
                Some(lag_entries) if lag_entries <= LEVEL_ENTRIES => Step::Promote,
                lag => Step::CatchUp {
                    lag_entries: lag.unwrap_or_else(|| self.store.last_id().map_or(0, |id| id.index.get())),
                },
            },
        }
    }

    fn taking_out(&self, node: NodeId) -> ChangeMembers<u64, Node> {
        let ids = [node.get()].into();
        match self.membership().voter_ids().any(|voter| voter == node.get()) {
            true => ChangeMembers::RemoveVoters(ids),
            false => ChangeMembers::RemoveNodes(ids),
        }
    }

    /// Committed on `Ok`. Goes on when the caller is gone: a change of voters has two steps, and whoever
    /// drops it between them leaves two sets of voters.
    async fn change(&self, change: ChangeMembers<u64, Node>) -> Result<(), ChangeMembersError> {
        let Ok(alone) = Arc::clone(&self.changing).try_lock_owned() else {
            return Err(ChangeMembersError::UnderWay);
        };
        let raft = self.raft.clone();
        let changed = tokio::spawn(Runtime::scope(self.seed, async move {
            let changed = raft.change_membership(change, false).await;
            drop(alone);
            changed.map(|_| ()).map_err(|error| ChangeMembersError::Refused { reason: error.to_string() })
        }));
        changed.await.unwrap_or(Err(ChangeMembersError::Stopped))
    }
}

fn joining(doing: String, is_known: bool) -> Standing {
    Standing::Joining { doing, is_known }
}

/// Of the voters that will be left, too, while a change is under way.
fn is_voter(membership: &Membership, node: NodeId) -> bool {
    let sets = membership.get_joint_config();
    !sets.is_empty() && sets.iter().all(|voters| voters.contains(&node.get()))
}

/// Whom to ask.
pub(super) struct Peers {
    pub(super) links: Arc<Links>,
    /// Of the replica that asks.
    pub(super) own: Address,
    pub(super) members: Vec<Member>,
}

impl Peers {
    /// What each of them answered; `None` for one that did not.
    async fn ask(&self) -> Vec<(&Member, Option<Standing>)> {
        let peers = self.members.iter().filter(|member| member.node != self.own.node);
        futures_util::future::join_all(peers.map(async |peer| {
            let answer = timeout(ANSWER_WITHIN, self.ask_one(peer.node)).await;
            (peer, answer.ok().flatten())
        }))
        .await
    }

    async fn ask_one(&self, peer: NodeId) -> Option<Standing> {
        let mut links = self.links.to_configured(peer.get())?;
        let request = join_request(self.own, peer);
        use proto::join_response::Standing as Wire;
        Some(match links.control.join(request).await.ok()?.into_inner().standing? {
            Wire::Blank(replica) => Standing::Blank(ReplicaId(replica)),
            Wire::Follows(_) => Standing::Follows,
            Wire::Joining(at) => Standing::Joining { doing: at.doing, is_known: at.is_known },
            Wire::Voter(_) => Standing::Voter,
        })
    }
}

/// Returns once a leader has taken out the replica that was on this node before and knows the one that
/// `own` names: from then on nothing of the old one is needed.
pub(super) async fn replace(peers: Peers) {
    let mut told = Told::default();
    loop {
        let standing = match leaders_word(&peers.ask().await) {
            Some(Standing::Voter | Standing::Joining { is_known: true, .. }) => return,
            Some(Standing::Joining { doing, .. }) => doing.clone(),
            _ => "no leader is reached that could take this replica out".to_owned(),
        };
        told.tell(&peers.own, standing);
        sleep(ASK_EVERY).await;
    }
}

fn join_request(own: Address, peer: NodeId) -> proto::JoinRequest {
    let to = Address { node: peer, replica: ReplicaId::default(), ..own };
    proto::JoinRequest { to: Some(to.into()), node: own.node.get(), replica: own.replica.0 }
}

fn leaders_word<'a>(answers: &'a [(&Member, Option<Standing>)]) -> Option<&'a Standing> {
    let mut words = answers.iter().filter_map(|(_, answer)| answer.as_ref());
    words.find(|word| matches!(word, Standing::Joining { .. } | Standing::Voter))
}

/// What was said to the operator last.
#[derive(Default)]
struct Told {
    what: String,
    at: Option<Instant>,
}

impl Told {
    fn tell(&mut self, own: &Address, what: String) {
        let is_due = self.at.is_none_or(|at| at.elapsed() >= TELL_EVERY);
        if what.is_empty() || (what == self.what && !is_due) {
            return;
        }
        tracing::info!(group = %own.group, replica = %own.replica, "{what}");
        *self = Self { what, at: Some(Instant::now()) };
    }
}

/// The side that asks.
pub(super) struct Joining {
    pub(super) raft: Raft,
    pub(super) store: LogStore,
    pub(super) peers: Peers,
    pub(super) leadership: watch::Receiver<Leadership>,
}

impl Joining {
    pub(super) async fn run(self, mut stopping: watch::Receiver<bool>) {
        tokio::select! {
            biased;
            _ = stopping.wait_for(|stopping| *stopping) => {}
            () = self.ask_while_needed() => {}
        }
    }

    async fn ask_while_needed(self) {
        let mut heard_of_a_leader = Instant::now();
        let mut told = Told::default();
        loop {
            if self.leadership.borrow().leader.is_some() {
                heard_of_a_leader = Instant::now();
            }
            if self.is_voter() && heard_of_a_leader.elapsed() < LEADERLESS {
                sleep(LOOK_EVERY).await;
                continue;
            }
            let standing = self.ask().await;
            told.tell(&self.peers.own, standing);
            sleep(ASK_EVERY).await;
        }
    }

    fn is_voter(&self) -> bool {
        let own = &self.peers.own;
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        let known = membership.get_node(&own.node.get());
        known.is_some_and(|known| known.replica == own.replica) && is_voter(membership, own.node)
    }

    /// Asks every peer once; what there is to be told about it.
    async fn ask(&self) -> String {
        let answers = self.peers.ask().await;
        if let Some(Standing::Joining { doing, .. }) = leaders_word(&answers) {
            return doing.clone();
        }
        if !self.store.is_blank() {
            return String::new();
        }
        let silent: Vec<String> = answers
            .iter()
            .filter(|(_, answer)| answer.is_none())
            .map(|(peer, _)| format!("node {} at {}", peer.node, peer.peer_addr))
            .collect();
        if !silent.is_empty() {
            return format!("this directory is new; waiting for {}", silent.join(" and "));
        }
        self.begin(&answers).await
    }

    /// The first entry of the log, if it is this replica's to write.
    async fn begin(&self, answers: &[(&Member, Option<Standing>)]) -> String {
        let own = &self.peers.own;
        let mut nodes = BTreeMap::new();
        for member in &self.peers.members {
            let answer = answers.iter().find(|(peer, _)| peer.node == member.node);
            let replica = match answer.and_then(|(_, standing)| standing.as_ref()) {
                Some(Standing::Blank(replica)) => *replica,
                None if member.node == own.node => own.replica,
                _ => return "this directory is new; the group has a log and no leader yet".to_owned(),
            };
            nodes.insert(member.node.get(), Node { addr: member.peer_addr.clone(), replica });
        }
        if nodes.keys().next() != Some(&own.node.get()) {
            return String::new();
        }
        match self.raft.initialize(nodes).await {
            Ok(()) => "the group begins".to_owned(),
            Err(error) => format!("the group does not begin: {error}"),
        }
    }
}
