//! The death of a leader in the middle of a test, with the proof that it was one: another node leads in a
//! later term.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use ledgermq::cluster::Member;

use crate::bed::Bed;

const LEADER_WITHIN: Duration = Duration::from_secs(40);
const POLL: Duration = Duration::from_millis(20);

#[derive(Debug, Clone, Copy)]
pub struct KilledLeader {
    pub leader: Member,
    pub term: u64,
    pub next: Member,
    pub next_term: u64,
}

/// SIGKILLs the leader of the first group and waits for the next one.
pub async fn kill_leader(bed: &mut Bed) -> Result<KilledLeader> {
    let leader = bed.cluster.wait_leader(1, LEADER_WITHIN).await?;
    let (_, term) = bed.cluster.group_and_term(1).await?;
    bed.cluster.kill(leader)?;
    let deadline = Instant::now() + LEADER_WITHIN;
    loop {
        let next = bed.cluster.wait_leader(1, LEADER_WITHIN).await?;
        let (_, next_term) = bed.cluster.group_and_term(1).await?;
        // For a while the others believe in the dead one.
        if next != leader {
            ensure!(next_term > term, "{leader} led no more when it was killed in term {term}");
            return Ok(KilledLeader { leader, term, next, next_term });
        }
        ensure!(Instant::now() < deadline, "nobody takes the place of {leader}");
        tokio::time::sleep(POLL).await;
    }
}

/// The same, and starts the killed broker again; returns when it serves.
pub async fn kill_and_restart_leader(bed: &mut Bed) -> Result<KilledLeader> {
    let killed = kill_leader(bed).await?;
    bed.cluster.restart(killed.leader)?;
    bed.cluster.wait_member_ready(killed.leader, LEADER_WITHIN).await?;
    Ok(killed)
}
