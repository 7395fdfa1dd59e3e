//! Priorities and lite topics with the unmodified Python SDK: priorities in their order; lite topics with
//! the push and the simple consumer, one that is taken over, one that is left; each also with the leader
//! killed in the middle.

use anyhow::{Context, Result, ensure};
use ledgermq_jepsen_tests::bed::Bed;
use ledgermq_jepsen_tests::python_program::{Fault, run};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_python_sdk_gets_the_highest_priority_first() -> Result<()> {
    let mut bed = Bed::make(|_| {}).await?;
    for (topic, fault) in [("urgent", Fault::None), ("urgent-killed", Fault::LeaderKilled)] {
        bed.admin(&["topic", "create", topic, "--type", "priority", "--queues", "4"])?;
        run(&mut bed, "priority.py", topic, &[], fault).await?;
    }
    bed.passed().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_python_sdk_reads_lite_topics_leaves_them_and_loses_them() -> Result<()> {
    let mut bed = Bed::make(|_| {}).await?;
    for (topic, consumer, exclusive, fault) in [
        ("rooms-push", "push", false, Fault::None),
        ("rooms-simple", "simple", true, Fault::None),
        ("rooms-push-killed", "push", true, Fault::LeaderKilled),
        ("rooms-simple-killed", "simple", false, Fault::LeaderKilled),
    ] {
        bed.admin(&["topic", "create", topic, "--type", "lite", "--queues", "4"])?;
        let mut more = vec!["--consumer", consumer];
        if exclusive {
            let group = format!("{topic}-group");
            bed.admin(&["group", "set", &group, "--lite-sub-model", "exclusive"])?;
            more.push("--exclusive");
        }
        if run(&mut bed, "lite.py", topic, &more, fault).await?.is_none() {
            continue;
        }
        let shown = bed.admin(&["lite", "show", topic])?;
        let names = shown.as_array().context("lite topics")?.iter().filter_map(|lite| lite["name"].as_str());
        ensure!(names.count() == 6, "{topic}: {shown}");
    }
    bed.passed().await
}
