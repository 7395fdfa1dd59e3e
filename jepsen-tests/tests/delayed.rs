//! Delayed messages and recall with the unmodified Python SDK: never early, once each, and a recalled one
//! never; also when the leader is killed between the sends and the delivery times, in the middle of recalls.

use anyhow::{Context, Result, ensure};
use ledgermq_jepsen_tests::bed::Bed;
use ledgermq_jepsen_tests::python_program::{Fault, run};

/// Includes the client's own way of receiving on a machine that does other things; the promise is 100 ms.
const LATE_MS_MAX: u64 = 3_000;
/// Far messages are due this long after they are sent, which leaves the time to kill a leader and to recall
/// the last of them from the next one.
const FAR_MS: &str = "12000";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn delayed_messages_come_in_time_once_and_not_when_recalled() -> Result<()> {
    let mut bed = Bed::make(|_| {}).await?;
    for topic in ["later", "later-killed"] {
        bed.admin(&["topic", "create", topic, "--type", "delay", "--queues", "4"])?;
    }
    if let Some(result) = run(&mut bed, "delayed.py", "later", &[], Fault::None).await? {
        let late_ms = result["late_ms_max"].as_u64().context("a figure")?;
        ensure!(late_ms <= LATE_MS_MAX, "{late_ms} ms late");
    }
    run(&mut bed, "delayed.py", "later-killed", &["--far-ms", FAR_MS], Fault::LeaderKilled).await?;
    bed.passed().await
}
