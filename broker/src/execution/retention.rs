//! Retention on the leader: it looks every now and then and proposes what its state calls for.
//!
//! One look, in this order; each step works with what the one before has done to the state:
//!
//! 1. expire: minimums of queues move past what their topics keep no longer;
//! 2. carry: halves and timers that alone hold old segments are stored once more at the end;
//! 3. release: the oldest byte that is still referred to is written down. From then on every replica
//!    purges its log and deletes its segments by itself (`raft-store`, `group/schedule`).
//!
//! | Failure | Consequence |
//! |---|---|
//! | the leader goes between two steps | the next one looks from the start; every step is complete by itself |
//! | a record that is to be carried cannot be read | it is left where it is and pins its segment; an error in the log, every look |
//! | it was decided, fired or recalled meanwhile | apply does not carry it |
//! | the retention of the topic was changed meanwhile | apply expires nothing; the next look goes by the new one |

use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::MissedTickBehavior;

use super::hosted_group::{Ended, HostedGroup, unexpected};
use crate::state::{
    Answer, BrokerState, CarryPlan, Command, LogPins, Owed, Pinned, ReleaseLog, TopicId, encode_carried,
};

/// Records of one carrying entry together; a single one may be larger.
const CARRY_ENTRY_BYTES_MAX: usize = 1024 * 1024;
/// Carried in one look, so that carrying never takes more of the disk than clients do.
const CARRY_LOOK_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Between two carrying entries.
const CARRY_PAUSE: Duration = Duration::from_millis(20);

/// What the configuration says about keeping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetentionSettings {
    /// How long a topic without a retention of its own keeps its messages; 0: for ever.
    pub retention_ms: u64,
    /// What is visible longer than since the log had its last so many bytes goes as well; 0: no limit.
    pub log_bytes_max: u64,
    pub check_interval_ms: u64,
    pub segment_bytes: u64,
}

/// What the last look of this leader found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LastLook {
    pub pins: LogPins,
    pub holder: Option<Pinned>,
}

/// Looks after the log, while this node leads.
pub async fn keep_retention(hosted: Weak<HostedGroup>) {
    let Some(every) = hosted.upgrade().map(|hosted| hosted.settings.retention.check_interval_ms) else {
        return;
    };
    let mut look = tokio::time::interval(Duration::from_millis(every));
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        look.tick().await;
        let Some(hosted) = hosted.upgrade() else { return };
        if !hosted.leads() {
            continue;
        }
        if let Err(ended) = look_once(&hosted).await {
            tracing::debug!(group = %hosted.name(), ?ended, "retention waits for the next look");
        }
    }
}

async fn look_once(hosted: &Arc<HostedGroup>) -> Result<(), Ended> {
    let settings = hosted.settings.retention;
    let now = hosted.now();
    let log_bytes_max = (settings.log_bytes_max > 0).then_some(settings.log_bytes_max);
    let plans =
        beside(hosted, move |state| state.expiry_plan(now, settings.retention_ms, log_bytes_max)).await?;
    for plan in plans {
        let topic = plan.topic;
        match hosted.propose(Command::ExpireMessages(plan).encode(now)).await? {
            Answer::Expired { messages, unread } if unread > 0 => {
                let topic = hosted.state.topic_by_id(topic).map(|topic| topic.name).unwrap_or_default();
                tracing::warn!(group = %hosted.name(), topic, messages, unread, "messages expired unread");
            }
            // A topic deleted meanwhile is refused.
            Answer::Expired { .. } | Answer::Refused(_) => {}
            other => return Err(unexpected("ExpireMessages", &other)),
        }
    }
    let pins = beside(hosted, BrokerState::log_pins).await?;
    let plan =
        beside(hosted, move |state| state.carry_plan(&pins, settings.segment_bytes, CARRY_LOOK_BYTES_MAX))
            .await?;
    let carries = !plan.records.is_empty();
    carry(hosted, plan).await?;
    let pins = if carries { beside(hosted, BrokerState::log_pins).await? } else { pins };
    *hosted.last_look.lock() = LastLook { pins, holder: pins.holder() };
    if pins.edge() > hosted.state.retention_view().released_below {
        let release = ReleaseLog { below: pins.edge() };
        match hosted.propose(Command::ReleaseLog(release).encode(hosted.now())).await? {
            Answer::LogReleased { .. } => {}
            other => return Err(unexpected("ReleaseLog", &other)),
        }
    }
    Ok(())
}

async fn carry(hosted: &Arc<HostedGroup>, plan: CarryPlan) -> Result<(), Ended> {
    let mut records = plan.records.into_iter().peekable();
    while records.peek().is_some() {
        let mut batch: Vec<(Owed, TopicId, Bytes)> = Vec::new();
        let mut bytes = 0;
        while let Some((owed, topic, entry)) = records.next_if(|(_, _, entry)| {
            bytes == 0 || bytes + entry.record_bytes as usize <= CARRY_ENTRY_BYTES_MAX
        }) {
            let group = hosted.group.clone();
            let read =
                tokio::task::spawn_blocking(move || group.read(entry.physical, entry.record_bytes)).await;
            match read {
                Ok(Ok(record)) => {
                    bytes += record.len();
                    batch.push((owed, topic, record));
                }
                Ok(Err(error)) => {
                    tracing::error!(group = %hosted.name(), at = entry.physical.get(), %error, "a record that is owed cannot be read");
                }
                Err(error) => tracing::error!(group = %hosted.name(), %error, "a read ended"),
            }
        }
        if batch.is_empty() {
            continue;
        }
        match hosted.propose(encode_carried(hosted.now(), &batch)).await? {
            Answer::Carried(_) => tokio::time::sleep(CARRY_PAUSE).await,
            other => return Err(unexpected("CarryRecords", &other)),
        }
    }
    Ok(())
}

/// Plans read mapped files and every queue: not on a thread that serves requests.
async fn beside<T: Send + 'static>(
    hosted: &Arc<HostedGroup>,
    work: impl FnOnce(&BrokerState) -> T + Send + 'static,
) -> Result<T, Ended> {
    use ledgermq_edge::group_call::NotExecuted;
    let state = Arc::clone(&hosted.state);
    tokio::task::spawn_blocking(move || work(&state)).await.map_err(|_| NotExecuted::Stopping.into())
}
