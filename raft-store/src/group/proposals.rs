//! Commands on their way into the log, and their answers on the way back, many at a time.
//!
//! Those who propose and openraft's core may run on different threads, and waking another thread
//! costs more than all else that a command needs there. A core that is woken for each command also
//! makes an append, a message to each follower and a sync of each. So commands gather until
//! everything that could run beside their proposers has run, and go over together; the answers of
//! those that went together come back to one task, which wakes the proposers on their own thread.
//!
//! ```text
//! proposers ── waiting ──> hand_over ── one message ──> openraft's core
//!     ^                                                      │ one wake-up, rarely more
//!     └───────── one oneshot each <── answer <───────────────┘
//! ```
//!
//! | Invariant | Kept by |
//! |---|---|
//! | commands are handed over in the order they were proposed | one list, one task |
//! | a command whose proposer is gone before it was handed over is not proposed | looked at when it is taken |
//! | a proposer always hears of its command, also when the core stops | what is dropped is [`ProposeError::OutcomeUnknown`] |

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use ledgermq_common::NodeId;
use openraft::errors::{ClientWriteError, Fatal};
use openraft::raft::WriteResult;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use super::errors::ProposeError;
use crate::raft::server::Raft;
use crate::raft::vocabulary::{Command, Consensus};

/// Commands that go to openraft in one message, and so in one append.
const TOGETHER_MAX: usize = 4_096;

type Outcome = Result<Bytes, ProposeError>;

struct Proposal {
    command: Command,
    answer: oneshot::Sender<Outcome>,
}

/// What was proposed and not yet handed over. The caller bounds how much that may be.
#[derive(Default)]
pub(super) struct Proposals {
    waiting: Mutex<Vec<Proposal>>,
    has_some: Notify,
}

impl Proposals {
    /// The receiver is dropped unanswered if the command was, or may have been, lost on its way.
    pub(super) fn add(&self, command: Bytes) -> oneshot::Receiver<Outcome> {
        let (answer, answered) = oneshot::channel();
        let is_first = {
            let mut waiting = self.waiting.lock();
            waiting.push(Proposal { command: Command(command), answer });
            waiting.len() == 1
        };
        if is_first {
            self.has_some.notify_one();
        }
        answered
    }

    fn take(&self) -> Vec<Proposal> {
        let mut waiting = self.waiting.lock();
        let taken = waiting.len().min(TOGETHER_MAX);
        let rest = waiting.split_off(taken);
        if !rest.is_empty() {
            self.has_some.notify_one();
        }
        std::mem::replace(&mut *waiting, rest)
    }
}

/// Runs where the proposers run, as long as the group is open.
pub(super) async fn hand_over(proposals: Arc<Proposals>, raft: Raft, node: NodeId) {
    loop {
        proposals.has_some.notified().await;
        let taken = proposals.take().into_iter().filter(|proposal| !proposal.answer.is_closed());
        let (commands, proposers): (Vec<_>, Vec<_>) =
            taken.map(|proposal| (proposal.command, proposal.answer)).unzip();
        if commands.is_empty() {
            continue;
        }
        match raft.client_write_many(commands).await {
            Ok(outcomes) => {
                tokio::spawn(answer(outcomes, proposers, node));
            }
            Err(_) => {
                for proposer in proposers {
                    let _ = proposer.send(Err(ProposeError::Stopped));
                }
            }
        }
    }
}

async fn answer(
    outcomes: impl Stream<Item = Result<WriteResult<Consensus>, Fatal<Consensus>>> + Unpin,
    proposers: Vec<oneshot::Sender<Outcome>>,
    node: NodeId,
) {
    // It ends at the first answer that will never come, and the others are asked for all the same.
    let mut outcomes = outcomes.fuse();
    for proposer in proposers {
        let outcome = match outcomes.next().await {
            Some(Ok(Ok(written))) => Ok(written.response.0),
            Some(Ok(Err(ClientWriteError::ForwardToLeader(forward)))) => {
                // openraft may name this replica while its lease is in doubt; that helps nobody.
                let leader = forward.leader_id.map(NodeId).filter(|leader| *leader != node);
                Err(ProposeError::NotLeader { leader })
            }
            // Appended here, and then a new leader came, or this replica stopped.
            Some(Ok(Err(_)) | Err(_)) | None => Err(ProposeError::OutcomeUnknown),
        };
        // The proposer may have given up; the entry is applied all the same.
        let _ = proposer.send(outcome);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn all_that_went_together_hear_when_the_core_stops() {
        // Like openraft's: it ends behind the first answer that is lost, and may not be asked again.
        let outcomes =
            futures_util::stream::unfold(Some(()), async |left| left.map(|()| (Err(Fatal::Stopped), None)));
        let (proposers, answers): (Vec<_>, Vec<_>) = (0..3).map(|_| oneshot::channel()).unzip();
        answer(Box::pin(outcomes), proposers, NodeId(1)).await;
        for answered in answers {
            assert_eq!(answered.await, Ok(Err(ProposeError::OutcomeUnknown)));
        }
    }

    #[tokio::test]
    async fn more_than_fit_into_one_message_go_in_several_and_none_is_left() {
        let proposals = Proposals::default();
        let answers: Vec<_> = (0..=TOGETHER_MAX).map(|_| proposals.add(Bytes::from_static(b"x"))).collect();
        proposals.has_some.notified().await;
        assert_eq!(proposals.take().len(), TOGETHER_MAX);
        proposals.has_some.notified().await;
        assert_eq!(proposals.take().len(), 1);
        drop(answers);
    }
}
