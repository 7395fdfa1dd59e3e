//! Calling a broker group, through an election if need be.
//!
//! A request goes to the local executor where this node leads, else to the leader over the peer
//! port. While there is no leader it is held, not failed: SDKs repeat without a pause, so a fast
//! error burns all their attempts within milliseconds.
//!
//! | What happens | What the caller does |
//! |---|---|
//! | not leader, with a hint | goes there at once (a few hops), else paces |
//! | not leader, no hint | asks all members who leads, one probe for all held requests; woken by any news |
//! | no connection, connection lost | as no hint; a lost request is repeated, which is safe |
//! | outcome unknown | repeats |
//! | leader stopped: no answer, connection open | asks the other members who leads; repeats at a leader of a newer term |
//! | overloaded | answers at once: waiting would add to the load |
//! | time is up | `NoLeader` if nothing was sent that may have been executed, else `NoAnswer` |

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use ledgermq_common::{GroupName, NodeId, Term};
use parking_lot::Mutex;
use rand::Rng as _;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::codes::CallFailed;
use crate::context::CallContext;
use crate::forward::Lane;
use crate::forward::link::{LinkError, Links};
use crate::forward::wire;
use crate::group_call::{GroupRequest, GroupResponse, Leadership, LocalGroups, NotExecuted};
use crate::leaders::LeaderTable;
use crate::topology::{ClusterView, GroupView, MemberView, Topology};

/// Pause between two attempts without news, drawn between the two.
const PACE_MS_MIN: u64 = 10;
const PACE_MS_MAX: u64 = 25;
const DENIAL_LASTS: Duration = Duration::from_millis(50);
/// Hints followed in a row without a pause.
const HOPS_MAX: u32 = 3;
/// An answer this late makes the leader a suspect. A long poll is always late, so it waits longer.
const SUSPECT_AFTER: Duration = Duration::from_millis(200);
const SUSPECT_LONG_POLL_AFTER: Duration = Duration::from_millis(1_000);
const PROBE_TIMEOUT: Duration = Duration::from_millis(150);

pub struct GroupCaller {
    local: Arc<dyn LocalGroups>,
    topology: Arc<dyn Topology>,
    links: Arc<Links>,
    leaders: Arc<LeaderTable>,
    /// Groups whose members are being asked for the leader right now.
    probing: Arc<Mutex<BTreeSet<GroupName>>>,
    stopping: CancellationToken,
}

enum Target<'a> {
    Here,
    Member(&'a MemberView),
}

/// A node that did not take the request although it was thought to lead. It is not asked again for
/// a moment, unless there is news; then it may be, since it may have been starting.
struct Denial {
    node: NodeId,
    known: Leadership,
    lapses: Instant,
}

/// How one attempt ended without an answer for the client.
enum Attempt {
    NotExecuted(NotExecuted),
    Link(LinkError),
    /// Leadership moved while the answer was awaited.
    Abandoned,
}

impl GroupCaller {
    pub fn new(
        local: Arc<dyn LocalGroups>,
        topology: Arc<dyn Topology>,
        links: Arc<Links>,
        stopping: CancellationToken,
    ) -> Self {
        let leaders = Arc::new(LeaderTable::new(local.clone()));
        Self { local, topology, links, leaders, probing: Arc::default(), stopping }
    }

    pub fn leaders(&self) -> &Arc<LeaderTable> {
        &self.leaders
    }

    /// Every group of the cluster, waiting for them to be known.
    pub async fn cluster(&self, until: Instant) -> Result<Arc<ClusterView>, CallFailed> {
        let mut changes = self.topology.changes();
        loop {
            if let Some(cluster) = self.topology.cluster() {
                return Ok(cluster);
            }
            tokio::select! {
                changed = changes.changed() => if changed.is_err() {
                    return Err(CallFailed::TopologyUnknown);
                },
                () = sleep_until(until) => return Err(CallFailed::TopologyUnknown),
                () = self.stopping.cancelled() => return Err(CallFailed::Stopping),
            }
        }
    }

    /// Calls the leader of `group`, whoever that is and becomes, until `until`.
    pub async fn call(
        &self,
        group: &GroupName,
        context: &CallContext,
        request: &GroupRequest,
        until: Instant,
    ) -> Result<GroupResponse, CallFailed> {
        let began = Instant::now();
        let mut denial: Option<Denial> = None;
        let mut hops = 0;
        let mut may_have_executed = false;
        loop {
            let cluster = self.cluster(until).await?;
            let Some(view) = cluster.groups.get(group) else {
                return Err(CallFailed::UnknownGroup { group: group.to_string() });
            };
            // Subscribed before the target is chosen, so that no news is missed between the two.
            let mut news = News::of(self, group);
            if Instant::now() >= until {
                return Err(gave_up(group, began, may_have_executed));
            }
            let known = self.leaders.get(group);
            let Some((target, node)) = self.choose(view, known, denial.as_ref()) else {
                self.probe(view, None);
                self.pace(&mut news, until).await;
                continue;
            };
            let attempt = match target {
                Target::Here => self.here(group, context, request, until).await,
                Target::Member(member) => {
                    self.there(view, member, known.term, context, request, until, &mut news).await
                }
            };
            let not_executed = match attempt {
                None => return Err(gave_up(group, began, true)),
                Some(Ok(response)) => return Ok(response),
                Some(Err(Attempt::Abandoned)) => {
                    may_have_executed = true;
                    continue;
                }
                Some(Err(Attempt::NotExecuted(not_executed))) => not_executed,
                Some(Err(Attempt::Link(error))) => {
                    debug!(%group, %node, %error, "forwarding failed");
                    match error {
                        LinkError::Full { .. } => {
                            return Err(CallFailed::Overloaded { limit: error.to_string() });
                        }
                        LinkError::Lost { .. } => may_have_executed = true,
                        LinkError::Connect { .. } => {}
                    }
                    // What made this node the target may be older than its death.
                    NotExecuted::NotLeader { leader: None, term: known.term }
                }
            };
            denial = Some(Denial { node, known, lapses: Instant::now() + DENIAL_LASTS });
            match not_executed {
                NotExecuted::NotLeader { leader, term } => {
                    self.leaders.denied(group, node, term);
                    self.leaders.learn(group, Leadership { term, leader });
                    if leader.is_some_and(|leader| leader != node) && hops < HOPS_MAX {
                        hops += 1;
                        continue;
                    }
                }
                NotExecuted::OutcomeUnknown { detail } => {
                    debug!(%group, %node, detail, "outcome unknown, repeating");
                    may_have_executed = true;
                }
                NotExecuted::Overloaded { limit } => return Err(CallFailed::Overloaded { limit }),
                NotExecuted::DeadlinePassed => return Err(CallFailed::DeadlinePassed),
                NotExecuted::NotHosted | NotExecuted::Stopping => {}
            }
            hops = 0;
            self.pace(&mut news, until).await;
        }
    }

    /// The leader, as far as anybody said, unless it has just denied that. Nobody else gets the
    /// request: while there is no leader, thousands of held requests would go round the members.
    fn choose<'a>(
        &self,
        view: &'a GroupView,
        known: Leadership,
        denial: Option<&Denial>,
    ) -> Option<(Target<'a>, NodeId)> {
        let node = known.leader.or(view.leader_hint)?;
        if denial.is_some_and(|denial| {
            denial.node == node && denial.known == known && Instant::now() < denial.lapses
        }) {
            return None;
        }
        if self.local.node() == Some(node) {
            return Some((Target::Here, node));
        }
        let member = view.members.iter().find(|member| member.node == node)?;
        Some((Target::Member(member), node))
    }

    async fn pace(&self, news: &mut News, until: Instant) {
        let pause = Duration::from_millis(rand::rng().random_range(PACE_MS_MIN..=PACE_MS_MAX));
        tokio::select! {
            () = news.arrives() => {}
            () = sleep_until(until.min(Instant::now() + pause)) => {}
        }
    }

    /// `None` when time was up.
    async fn here(
        &self,
        group: &GroupName,
        context: &CallContext,
        request: &GroupRequest,
        until: Instant,
    ) -> Option<Result<GroupResponse, Attempt>> {
        let answer = timeout_at(until, self.local.execute(group, context, request)).await.ok()?;
        Some(answer.map_err(Attempt::NotExecuted))
    }

    #[expect(clippy::too_many_arguments, reason = "one attempt of `call`, with all that it knows")]
    async fn there(
        &self,
        view: &GroupView,
        member: &MemberView,
        known_term: Term,
        context: &CallContext,
        request: &GroupRequest,
        until: Instant,
        news: &mut News,
    ) -> Option<Result<GroupResponse, Attempt>> {
        let (lane, suspect_after) = match request {
            GroupRequest::Send(_) | GroupRequest::StoreBatch(_) => (Lane::Produce, SUSPECT_AFTER),
            poll if poll.is_long_poll() => (Lane::Consume, SUSPECT_LONG_POLL_AFTER),
            _ => (Lane::Consume, SUSPECT_AFTER),
        };
        let answer =
            self.links.call(&member.peer_address, lane, || wire::write_request(&view.name, context, request));
        tokio::pin!(answer);
        loop {
            tokio::select! {
                biased;
                reply = &mut answer => {
                    return Some(match reply {
                        Ok((reply, arrival)) => wire::read_reply(reply, arrival).map_err(Attempt::NotExecuted),
                        Err(error) => Err(Attempt::Link(error)),
                    });
                }
                () = sleep_until(until) => return None,
                () = news.arrives() => {
                    let now_known = self.leaders.get(&view.name);
                    if now_known.term > known_term && now_known.leader.is_some_and(|leader| leader != member.node) {
                        return Some(Err(Attempt::Abandoned));
                    }
                }
                () = tokio::time::sleep(suspect_after) => self.probe(view, Some(member.node)),
            }
        }
    }

    /// Asks the other members who leads; what they say arrives as news. One probe per group at a
    /// time, however many requests wait.
    fn probe(&self, view: &GroupView, suspect: Option<NodeId>) {
        if !self.probing.lock().insert(view.name.clone()) {
            return;
        }
        let (links, leaders, probing) = (self.links.clone(), self.leaders.clone(), self.probing.clone());
        let here = self.local.node();
        let view = view.clone();
        tokio::spawn(async move {
            let asked = view
                .members
                .iter()
                .filter(|member| Some(member.node) != suspect && Some(member.node) != here)
                .map(|member| timeout(PROBE_TIMEOUT, links.leaders(&member.peer_address)));
            for answer in futures_util::future::join_all(asked).await {
                let Ok(Ok(answer)) = answer else { continue };
                for told in answer.leaders {
                    if told.group == view.name.as_str() {
                        let told = Leadership { term: Term(told.term), leader: told.leader.map(NodeId) };
                        leaders.learn(&view.name, told);
                    }
                }
            }
            probing.lock().remove(&view.name);
        });
    }
}

fn gave_up(group: &GroupName, began: Instant, may_have_executed: bool) -> CallFailed {
    let (group, waited) = (group.clone(), began.elapsed());
    if may_have_executed {
        CallFailed::NoAnswer { group, waited }
    } else {
        CallFailed::NoLeader { group, waited }
    }
}

/// Anything that may change who leads one group.
struct News {
    local: Option<watch::Receiver<Leadership>>,
    heard: watch::Receiver<u64>,
    topology: watch::Receiver<u64>,
}

impl News {
    fn of(caller: &GroupCaller, group: &GroupName) -> Self {
        let mut news = Self {
            local: caller.local.leadership(group),
            heard: caller.leaders.changes(),
            topology: caller.topology.changes(),
        };
        // A receiver cloned from one that never looked would call everything news, again and again.
        if let Some(local) = &mut news.local {
            local.mark_unchanged();
        }
        news.topology.mark_unchanged();
        news
    }

    async fn arrives(&mut self) {
        let local = async {
            match &mut self.local {
                Some(local) => or_never(local.changed()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = local => {}
            () = or_never(self.heard.changed()) => {}
            () = or_never(self.topology.changed()) => {}
        }
    }
}

/// A closed source brings no news any more; it must not look like a stream of them.
async fn or_never<E>(change: impl Future<Output = Result<(), E>>) {
    if change.await.is_err() {
        std::future::pending::<()>().await;
    }
}
