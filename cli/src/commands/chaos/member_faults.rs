//! Faults of the membership: replicas that lose everything, and members that change.
//!
//! | Fault | Proof |
//! |---|---|
//! | replace | the directory is gone; the node has another replica id than before, and it is a voter |
//! | rejoin | the leader said that the change is committed; by a later entry all brokers are voters |
//! | rejoin-kill | likewise, and the leader was killed and started again |

use std::time::Duration;

use anyhow::{Context as _, ensure};
use ledgermq_proto::admin::Replica;
use tokio::time::Instant;

use super::nemesis::{GROUP, Nemesis, READY_WITHIN};
use crate::cluster::Member;

const POLL: Duration = Duration::from_millis(20);
/// A member that changes is killed with its leader at another moment each time.
const KILL_AFTER_MS_MAX: u64 = 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemberFault {
    /// SIGKILL, the data directory is removed, and a start on an empty one: a machine that was replaced.
    Replace,
    /// The member is taken out of its group, and comes back.
    Rejoin,
    /// Likewise, and the leader is killed while it is done.
    RejoinUnderKill,
}

impl MemberFault {
    pub fn name(self) -> &'static str {
        match self {
            Self::Replace => "replace",
            Self::Rejoin => "rejoin",
            Self::RejoinUnderKill => "rejoin-kill",
        }
    }
}

impl Nemesis<'_> {
    pub(super) async fn member_fault(
        &mut self,
        fault: MemberFault,
        targets: &[Member],
    ) -> anyhow::Result<String> {
        let mut seen = Vec::new();
        for member in targets {
            seen.push(match fault {
                MemberFault::Replace => self.replace(*member).await?,
                MemberFault::Rejoin => self.rejoin(*member, false).await?,
                MemberFault::RejoinUnderKill => self.rejoin(*member, true).await?,
            });
        }
        Ok(seen.join("; "))
    }

    async fn replace(&mut self, member: Member) -> anyhow::Result<String> {
        let before = self.replica_of(member).await?.replica;
        let incarnations = self.incarnations(&[member])?;
        self.cluster.kill_all(&[member])?;
        let directory = self.cluster.data_dir(member);
        let removed = directory.clone();
        tokio::task::spawn_blocking(move || std::fs::remove_dir_all(removed)).await??;
        ensure!(!directory.exists(), "{} is still there", directory.display());
        tokio::time::sleep(self.fault_time).await;
        self.start_again("replace", "ended by SIGKILL and lost its directory", incarnations)?;
        let began = Instant::now();
        self.all_vote().await?;
        let after = self.replica_of(member).await?.replica;
        ensure!(after != before, "{member} is replica {before} as before");
        Ok(format!("replica {before}, then {after}, a voter after {} ms", began.elapsed().as_millis()))
    }

    async fn rejoin(&mut self, member: Member, kill: bool) -> anyhow::Result<String> {
        let before = self.members_index().await?;
        let (group, _) = self.cluster.group_and_term(GROUP).await?;
        let began = Instant::now();
        let mut seen = String::new();
        self.cluster.take_out(&group, member).await?;
        if kill {
            tokio::time::sleep(Duration::from_millis(self.dice.below(KILL_AFTER_MS_MAX))).await;
            let leader = self.leader().await?;
            self.kill(&[leader]).await?;
            seen = format!("{leader} was killed; ");
        }
        self.all_vote().await?;
        let after = self.members_index().await?;
        ensure!(after > before, "the members are those of entry {before} as before");
        let ms = began.elapsed().as_millis();
        Ok(format!("{seen}out, and a voter again after {ms} ms; members of entry {before}, then {after}"))
    }

    async fn replica_of(&mut self, member: Member) -> anyhow::Result<Replica> {
        let replicas = self.cluster.replicas(GROUP).await?;
        let found = replicas.into_iter().find(|replica| Member::Broker(replica.node) == member);
        found.with_context(|| format!("the cluster says nothing of {member}"))
    }

    /// The newest entry about the members that any replica knows of.
    async fn members_index(&mut self) -> anyhow::Result<u64> {
        let replicas = self.cluster.replicas(GROUP).await?;
        Ok(replicas.iter().map(|replica| replica.members_index).max().unwrap_or(0))
    }

    /// Waits until every broker is a voter, as all of them know.
    async fn all_vote(&mut self) -> anyhow::Result<()> {
        let all = self.cluster.brokers().count();
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            let replicas = self.cluster.replicas(GROUP).await.unwrap_or_default();
            let knows = |replica: &Replica| replica.is_voter && replica.voters.len() == all;
            let index = replicas.first().map(|replica| replica.members_index);
            let agree = replicas.iter().all(|replica| Some(replica.members_index) == index);
            if replicas.len() == all && agree && replicas.iter().all(knows) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "not all brokers are voters: {replicas:?}");
            tokio::time::sleep(POLL).await;
        }
    }
}
