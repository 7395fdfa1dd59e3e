//! Opens a replica; one whose log is damaged is repaired from its peers.
//!
//! | What is found | Done |
//! |---|---|
//! | a directory that opens | nothing |
//! | an empty directory | the replica joins as a new one (`raft-store`, `group::joining`) |
//! | a damaged log in a group of several | below |
//! | a damaged log in a group of one | refused: there is nobody to receive it from |
//! | a log of another node, a newer format, a lock, an I/O error | refused: nothing is wrong with the bytes |
//!
//! The repair, each step durable before the next:
//!
//! 1. A leader takes the damaged replica out of the group and takes down its successor, which is called
//!    by a replica id drawn for it. While there is no leader this waits: what is left of the log may be
//!    the last copy of something, and it is not touched.
//! 2. The directory is set aside under the name `log.damaged`, where an earlier one gives way to it: it is
//!    for the operator to look at and to delete. What was derived from it goes.
//! 3. The replica is opened in an empty directory. It learns the log, and is a voter when it is level.
//!
//! A process that ends in between finds the damaged log again and begins anew (1, 2), or finds none and
//! joins (3).

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;

use ledgermq_common::GroupId;
use ledgermq_raft_store::group::OpenGroupError;
use ledgermq_raft_store::store::OpenError;
use ledgermq_raft_store::{Environment, Group, GroupConfig};

use super::data_dir::DataDir;
use super::groups::with_causes;
use super::raft_runtime::RaftRuntime;
use crate::state::BrokerState;

/// The directories of one replica, and how its state is made from them.
pub struct Replica<'a, MakeState> {
    pub data_dir: &'a DataDir,
    pub id: GroupId,
    pub config: GroupConfig,
    pub environment: Environment,
    pub make_state: MakeState,
}

impl<MakeState> Replica<'_, MakeState>
where
    MakeState: Fn(PathBuf) -> Result<Arc<BrokerState>, String>,
{
    pub async fn open(&self, raft: &RaftRuntime) -> Result<(Group, Arc<BrokerState>), String> {
        let damage = match self.try_open(raft).await? {
            Ok(opened) => return Ok(opened),
            Err(OpenGroupError::Store(damage @ OpenError::Corrupt { .. })) => damage,
            Err(error) => return Err(with_causes(&error)),
        };
        let group = &self.config.name;
        if self.config.members.len() == 1 {
            return Err(with_causes(&damage));
        }
        tracing::error!(%group, %damage, "this replica stays out of its group until it is repaired");
        let (config, environment) = (self.config.clone(), self.environment.clone());
        on(raft, async move { Group::replace(&config, &environment).await })
            .await?
            .map_err(|e| with_causes(&e))?;
        let aside = self.data_dir.set_aside(self.id).map_err(|e| format!("the damaged log: {e}"))?;
        tracing::warn!(%group, aside = %aside.display(), "the damaged log is set aside; the group sends another");
        self.try_open(raft).await?.map_err(|e| with_causes(&e))
    }

    async fn try_open(
        &self,
        raft: &RaftRuntime,
    ) -> Result<Result<(Group, Arc<BrokerState>), OpenGroupError>, String> {
        let (log, derived) = (self.data_dir.group_log(self.id), self.data_dir.group_derived(self.id));
        for dir in [&log, &derived] {
            let cannot = |e| format!("{} cannot be created: {e}", dir.display());
            self.data_dir.create_durably(dir).map_err(cannot)?;
        }
        let state = (self.make_state)(derived)?;
        let opening = Group::open(self.config.clone(), Arc::clone(&state) as _, self.environment.clone());
        Ok(on(raft, opening).await?.map(|group| (group, state)))
    }
}

/// On the threads of Raft, where the connections to peers live.
async fn on<T: Send + 'static>(
    raft: &RaftRuntime,
    work: impl Future<Output = T> + Send + 'static,
) -> Result<T, String> {
    raft.spawn(work).await.map_err(|e| with_causes(&e))
}
