//! Retention by the size of the log: the leader looks as the product's does, expires what is old,
//! carries what is owed and releases the log. Only in runs whose plan has a limit.

use std::time::Duration;

use ledgermq_broker::state::{Command, ReleaseLog, encode_carried};
use ledgermq_common::clock::Clock as _;
use ledgermq_raft_store::group::ProposeError;

use super::Front;

const RETENTION_LOOK: Duration = Duration::from_millis(250);
/// What is carried in one entry: the segments here hold no more than one of the longest records.
const CARRY_RECORDS_MAX: usize = 1;
const CARRY_LOOK_BYTES_MAX: u64 = 1 << 20;

impl Front {
    /// Keeps the log short while this node leads, until its life ends.
    pub async fn keep_retention(self) {
        let Some(log_bytes_max) = self.plan.log_bytes_max else { return };
        loop {
            tokio::time::sleep(RETENTION_LOOK).await;
            if self.group.leadership().borrow().is_leader_ready {
                // It may fail between any two steps; the next leader looks from the start.
                drop(self.look_once(log_bytes_max).await);
            }
        }
    }

    async fn look_once(&self, log_bytes_max: u64) -> Result<(), ProposeError> {
        for plan in self.state.expiry_plan(self.clock.now(), 0, Some(log_bytes_max)) {
            self.propose(Command::ExpireMessages(plan).encode(self.clock.now())).await?;
        }
        let pins = self.state.log_pins();
        if self.forgets_owed {
            return self.release(pins.without_owed()).await;
        }
        let plan = self.state.carry_plan(&pins, self.plan.segment_bytes, CARRY_LOOK_BYTES_MAX);
        for records in plan.records.chunks(CARRY_RECORDS_MAX) {
            let read = records.iter().filter_map(|(owed, topic, entry)| {
                let record = self.group.read(entry.physical, entry.record_bytes).ok()?;
                Some((*owed, *topic, record))
            });
            let read: Vec<_> = read.collect();
            self.propose(encode_carried(self.clock.now(), &read)).await?;
        }
        self.release(self.state.log_pins().edge()).await
    }

    async fn release(&self, below: ledgermq_common::PhysicalOffset) -> Result<(), ProposeError> {
        if below > self.state.retention_view().released_below {
            let command = Command::ReleaseLog(ReleaseLog { below });
            self.propose(command.encode(self.clock.now())).await?;
        }
        Ok(())
    }
}
