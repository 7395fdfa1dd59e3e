//! SIGKILL and SIGSTOP of the leader under load from the unmodified Python SDK: nothing acknowledged
//! is lost, nothing is stored twice, and no send of the SDK fails.
//!
//! `LEDGERMQ_KILLS` and `LEDGERMQ_STOPS` set how often; the distribution of the gaps in
//! acknowledged sends is printed.

use std::time::Duration;

use anyhow::{Context, Result};
use ledgermq::cluster::Member;
use ledgermq_jepsen_tests::bed::Bed;
use ledgermq_jepsen_tests::history::{Distribution, Verdict, gaps_ms, judge, monotonic_s};
use ledgermq_jepsen_tests::python::interpreter;
use ledgermq_jepsen_tests::recorded::{LoadPlan, RecordedProcess};

const KILLS_DEFAULT: usize = 12;
const STOPS_DEFAULT: usize = 4;
const STOP_LASTS: Duration = Duration::from_secs(5);
/// Sends acknowledged between one fault and the next, so that each meets a working group.
const ACKS_BETWEEN_FAULTS: usize = 150;
const RECOVER_WITHIN: Duration = Duration::from_secs(20);
/// Longer than a lease: a message whose delivery died with a node comes again when its lease ends.
const DRAIN_WITHIN: Duration = Duration::from_secs(100);

fn count(variable: &str, default: usize) -> Result<usize> {
    match std::env::var(variable) {
        Ok(text) => text.parse().with_context(|| format!("{variable}={text} is not a number")),
        Err(_) => Ok(default),
    }
}

async fn prepare(bed: &Bed, topic: &str, consumer: &'static str) -> Result<Option<RecordedProcess>> {
    let Some(interpreter) = interpreter()? else {
        eprintln!("left out: this machine has no python3");
        return Ok(None);
    };
    let load = RecordedProcess::python_load(
        &interpreter,
        &LoadPlan {
            endpoints: bed.cluster.broker_access_points(),
            topic: topic.to_owned(),
            consumer_group: format!("{topic}-consumers"),
            producers: 4,
            pause_ms: 4,
            consumer,
            stderr: bed.cluster.dir().join(format!("python-{topic}.stderr")),
        },
    )?;
    load.wait_acks(ACKS_BETWEEN_FAULTS, Duration::from_secs(60))?;
    Ok(Some(load))
}

fn report(fault: &str, faults: usize, verdict: &Verdict, gaps: &[f64]) {
    let distribution = Distribution::of(gaps);
    println!(
        "{fault} × {faults}: invoked {}, acknowledged {}, received {}, redelivered {}, lost {}, duplicated {}, failed {}; \
         gap in acknowledged sends p50 {:.0} ms, p99 {:.0} ms, max {:.0} ms",
        verdict.invoked,
        verdict.acknowledged,
        verdict.received,
        verdict.redelivered,
        verdict.lost.len(),
        verdict.duplicated.len(),
        verdict.failed.len(),
        distribution.p50,
        distribution.p99,
        distribution.max,
    );
    let rounded: Vec<u64> = gaps.iter().map(|gap| gap.round() as u64).collect();
    println!("gaps in ms: {rounded:?}");
}

fn assert_clean(verdict: &Verdict) {
    assert!(verdict.lost.is_empty(), "acknowledged and never received: {:?}", verdict.lost);
    assert!(verdict.duplicated.is_empty(), "stored twice: {:?}", verdict.duplicated);
    assert!(verdict.unexpected.is_empty(), "received and never sent: {:?}", verdict.unexpected);
    assert!(verdict.failed.is_empty(), "failed sends: {:?}", verdict.failed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killing_and_stopping_the_leader_loses_duplicates_and_fails_nothing() -> Result<()> {
    let mut bed = Bed::make(|_| {}).await?;

    let kills = count("LEDGERMQ_KILLS", KILLS_DEFAULT)?;
    let Some(mut load) = prepare(&bed, "kills", "push").await? else { return bed.passed().await };
    let mut killed_at = Vec::new();
    for _ in 0..kills {
        let leader = bed.cluster.wait_leader(1, RECOVER_WITHIN).await?;
        killed_at.push(monotonic_s());
        bed.cluster.kill(leader)?;
        load.wait_acks(ACKS_BETWEEN_FAULTS, RECOVER_WITHIN)?;
        restart(&mut bed, leader).await?;
        load.wait_acks(ACKS_BETWEEN_FAULTS, RECOVER_WITHIN)?;
    }
    load.drain(DRAIN_WITHIN)?;
    let events = load.finish()?;
    let verdict = judge(&events);
    report("SIGKILL of the leader", kills, &verdict, &gaps_ms(&events, &killed_at));
    assert_clean(&verdict);

    let stops = count("LEDGERMQ_STOPS", STOPS_DEFAULT)?;
    let Some(mut load) = prepare(&bed, "stops", "simple").await? else { return bed.passed().await };
    let mut stopped_at = Vec::new();
    for _ in 0..stops {
        let leader = bed.cluster.wait_leader(1, RECOVER_WITHIN).await?;
        stopped_at.push(monotonic_s());
        bed.cluster.pause(leader)?;
        // The length of the fault itself, not a wait for something to happen.
        tokio::time::sleep(STOP_LASTS).await;
        bed.cluster.resume(leader)?;
        load.wait_acks(ACKS_BETWEEN_FAULTS, RECOVER_WITHIN)?;
    }
    load.drain(DRAIN_WITHIN)?;
    let events = load.finish()?;
    let verdict = judge(&events);
    report("SIGSTOP of the leader", stops, &verdict, &gaps_ms(&events, &stopped_at));
    assert_clean(&verdict);
    bed.passed().await
}

async fn restart(bed: &mut Bed, member: Member) -> Result<()> {
    bed.cluster.restart(member)?;
    bed.cluster.wait_member_ready(member, RECOVER_WITHIN).await
}
