//! Questions that wait at the leaders of all groups, one per group, for as long as this node runs.
//!
//! The answer to a question is work for a client whose stream ends here; a question is asked again when it is
//! answered, and anew when what it asks about has changed.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ledgermq_common::GroupName;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::debug;

use crate::context::CallContext;
use crate::edge::Edge;
use crate::group_call::{GroupRequest, GroupResponse};

/// How long one question waits at a leader.
const POLL: Duration = Duration::from_secs(20);
/// What the way back may take beyond that.
const ANSWER_GRACE: Duration = Duration::from_secs(1);
/// Between two questions, so that a refusal or a crowd of new clients is no busy loop.
pub(crate) const PAUSE: Duration = Duration::from_millis(50);
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(500);

/// Starts the questions once, when the first client is there.
#[derive(Debug, Default)]
pub(crate) struct Started(AtomicBool);

impl Started {
    /// True for the first call.
    pub(crate) fn first(&self) -> bool {
        !self.0.swap(true, Ordering::Relaxed)
    }
}

impl Edge {
    /// One question per group, for the groups the cluster has now and gets later.
    pub(crate) async fn ask_each_group<F>(&self, ask: impl Fn(Self, GroupName) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let mut asked = BTreeSet::new();
        let mut groups = tokio::task::JoinSet::new();
        let mut changes = self.shared.topology.changes();
        loop {
            changes.mark_unchanged();
            if let Some(cluster) = self.shared.topology.cluster() {
                for group in cluster.groups.keys() {
                    if asked.insert(group.clone()) {
                        groups.spawn(ask(self.clone(), group.clone()));
                    }
                }
            }
            if changes.changed().await.is_err() {
                // The groups never change; dropping the set would end the questions.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Asks the leader of one group. `question` says what to ask until a time, `None` while there is nothing
    /// to ask; `changed` rises when that may be another thing. `take` says whether the answer was one.
    pub(crate) async fn keep_question_standing<F>(
        &self,
        group: &GroupName,
        mut changed: watch::Receiver<u64>,
        question: impl Fn(Instant) -> Option<GroupRequest>,
        take: impl Fn(GroupResponse) -> F,
    ) where
        F: Future<Output = bool>,
    {
        loop {
            changed.mark_unchanged();
            let Some(request) = question(Instant::now() + POLL) else {
                if changed.changed().await.is_err() {
                    return;
                }
                continue;
            };
            let context = CallContext::internal(POLL + ANSWER_GRACE);
            let answer = tokio::select! {
                answer = self.shared.caller.call(group, &context, &request, context.deadline) => answer,
                _ = changed.changed() => {
                    // Others may follow at once.
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            let is_taken = match answer {
                Ok(answer) => take(answer).await,
                Err(failed) => {
                    debug!(%group, %failed, "a standing question is not answered");
                    false
                }
            };
            if !is_taken {
                tokio::time::sleep(PAUSE_AFTER_FAILURE).await;
            }
        }
    }
}
