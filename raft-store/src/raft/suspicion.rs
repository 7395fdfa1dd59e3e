//! Notices at once that the leader's process is gone.
//!
//! A follower keeps a call open on a control connection *to* the leader. When the process dies its
//! socket closes, on every follower within the same moment. A follower then
//!
//! 1. dials again, once: a reset connection of a living leader is not its death;
//! 2. if nobody answers as the leader, drops its own leader lease, so that it would grant another
//!    follower's vote, and waits until its turn (the followers take turns in the order of their
//!    ids, so they seldom split the vote);
//! 3. asks for pre-votes, again and again, until there is a leader, or the suspected one is heard of.
//!
//! Being wrong costs nothing but messages: the pre-vote is refused by a leader that a majority
//! still acknowledges, no term changes, and no read relies on a lease (there are no lease reads). A
//! leader that stops without closing its sockets is not noticed here but by the election timeout.

use std::sync::Arc;
use std::time::Duration;

use ledgermq_common::{NodeId, Term};
use ledgermq_proto::raft as proto;
use openraft::raft::TransferLeaderRequest;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::links::Links;
use super::server::Raft;
use super::vocabulary::Vote;
use super::wire::Address;
use crate::group::{Leadership, Timings};

/// Waiting for a watch call to be answered.
const WATCH_TIMEOUT: Duration = Duration::from_millis(300);
/// Pre-vote rounds for one suspicion; then the election timeout is on its own.
const ROUNDS_MAX: u32 = 40;
/// The leader cannot be watched (a version that does not offer it, a group that is still opening);
/// try again after this.
const RETRY: Duration = Duration::from_millis(250);

pub(crate) struct Suspicion {
    pub(crate) raft: Raft,
    pub(crate) links: Arc<Links>,
    pub(crate) own: Address,
    pub(crate) members: Vec<NodeId>,
    pub(crate) leadership: watch::Receiver<Leadership>,
    pub(crate) timings: Timings,
    pub(crate) seed: u64,
}

enum Watched {
    /// The call ended, or nobody took it as the leader.
    Lost,
    /// Another leader, or none: nothing to suspect.
    Moved,
    /// The call could not be made at all, although nothing says that the leader is gone.
    Unanswered,
}

impl Suspicion {
    /// Runs until the group is dropped.
    pub(crate) async fn run(mut self) {
        let mut random = SmallRng::seed_from_u64(self.seed);
        loop {
            let Some((leader, term)) = self.leader_to_watch().await else { return };
            match self.watch(leader, term).await {
                Watched::Moved => {}
                Watched::Unanswered => sleep(RETRY).await,
                Watched::Lost => {
                    // Once more: the connection may have broken without the process.
                    if matches!(self.watch(leader, term).await, Watched::Lost | Watched::Unanswered) {
                        self.campaign(leader, term, &mut random).await;
                    }
                }
            }
            if self.leadership.has_changed().is_err() {
                return;
            }
        }
    }

    /// The leader this replica follows, once there is one. `None` when the group ends.
    async fn leader_to_watch(&mut self) -> Option<(NodeId, Term)> {
        let own = self.own.node;
        let found = self.leadership.wait_for(|now| now.leader.is_some_and(|leader| leader != own)).await;
        let now = found.ok()?;
        Some((now.leader?, now.term))
    }

    /// Watches `leader` for as long as it is taken for the leader of `term` and answers.
    async fn watch(&mut self, leader: NodeId, term: Term) -> Watched {
        let Some(mut links) = self.links.to_configured(leader.get()) else { return Watched::Unanswered };
        let request = proto::WatchRequest { to: Some(Address { node: leader, ..self.own }.into()) };
        let mut events = match timeout(WATCH_TIMEOUT, links.control.watch(request)).await {
            Ok(Ok(response)) => response.into_inner(),
            // Refused or reset: nobody is there.
            Ok(Err(_)) => return Watched::Lost,
            Err(_) => return Watched::Unanswered,
        };
        match timeout(WATCH_TIMEOUT, events.message()).await {
            Ok(Ok(Some(event))) if event.leads => {}
            // It came back, and does not lead any more.
            Ok(_) => return Watched::Lost,
            Err(_) => return Watched::Unanswered,
        }
        let mut leadership = self.leadership.clone();
        tokio::select! {
            biased;
            _ = leadership.wait_for(|now| now.leader != Some(leader) || now.term != term) => Watched::Moved,
            _ = events.message() => Watched::Lost,
        }
    }

    async fn campaign(&mut self, leader: NodeId, term: Term, random: &mut SmallRng) {
        tracing::info!(group = %self.own.group, %leader, %term, "the leader's process is gone; campaigning");
        // The message of a leadership transfer to somebody else: all it does here is to drop the
        // lease, and only if the vote is still this leader's.
        let vote = Vote::new_committed(term.get(), leader.get());
        let drop_lease = TransferLeaderRequest::new(vote, leader.get(), None);
        if self.raft.handle_transfer_leader(drop_lease).await.is_err() {
            return;
        }
        let step_ms = self.timings.suspicion_step_ms;
        let turn_ms = self.timings.suspicion_delay_ms + step_ms * self.turn(leader);
        let mut wait_ms = turn_ms + random.random_range(0..=step_ms / 2);
        for _ in 0..ROUNDS_MAX {
            let elected = self.leadership.wait_for(|now| now.leader.is_some() && now.term > term);
            let is_over = timeout(Duration::from_millis(wait_ms), elected).await.is_ok();
            if is_over || self.raft.trigger().elect(true).await.is_err() {
                return;
            }
            wait_ms = turn_ms + step_ms + random.random_range(0..=step_ms);
        }
    }

    /// This replica's place among the followers of `leader`.
    fn turn(&self, leader: NodeId) -> u64 {
        let before = self.members.iter().filter(|member| **member != leader && **member < self.own.node);
        before.count() as u64
    }
}
