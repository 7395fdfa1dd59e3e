//! Priorities and lite topics with the unmodified Python SDK: priorities in their order; lite topics with
//! the push and the simple consumer, one that is taken over, one that is left; each also with the leader
//! killed in the middle.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ledgermq_jepsen_tests::bed::Bed;
use ledgermq_jepsen_tests::python::{interpreter, programs};

const RECOVER_WITHIN: Duration = Duration::from_secs(20);

/// Runs a program on a topic of its own.
async fn run(bed: &mut Bed, program: &str, topic: &str, more: &[&str], kill_leader: bool) -> Result<()> {
    let Some(interpreter) = interpreter()? else {
        eprintln!("left out: this machine has no python3");
        return Ok(());
    };
    let mut program = Command::new(interpreter)
        .arg(programs().join(program))
        .args(["--endpoints", &bed.cluster.broker_access_points()])
        .args(["--topic", topic, "--group", &format!("{topic}-group")])
        .args(more)
        .stdout(Stdio::piped())
        .stderr(std::fs::File::create(bed.cluster.dir().join(format!("python-{topic}.stderr")))?)
        .spawn()?;
    let mut output = BufReader::new(program.stdout.take().context("its output")?);
    let mut told = String::new();
    output.read_line(&mut told)?;
    ensure!(told.trim() == "half", "{topic}: {told}");
    if kill_leader {
        let leader = bed.cluster.wait_leader(1, RECOVER_WITHIN).await?;
        bed.cluster.kill(leader)?;
        bed.cluster.wait_leader(1, RECOVER_WITHIN).await?;
        bed.cluster.restart(leader)?;
    }
    let mut result = String::new();
    output.read_to_string(&mut result)?;
    let status = program.wait()?;
    println!("{topic}: {}", result.trim());
    ensure!(status.success(), "{topic}: {status}: {result}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_python_sdk_gets_the_highest_priority_first() -> Result<()> {
    let mut bed = Bed::make(|_| {}).await?;
    for (topic, kill_leader) in [("urgent", false), ("urgent-killed", true)] {
        bed.admin(&["topic", "create", topic, "--type", "priority", "--queues", "4"])?;
        run(&mut bed, "priority.py", topic, &[], kill_leader).await?;
    }
    bed.passed().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_python_sdk_reads_lite_topics_leaves_them_and_loses_them() -> Result<()> {
    let mut bed = Bed::make(|_| {}).await?;
    for (topic, consumer, exclusive, kill_leader) in [
        ("rooms-push", "push", false, false),
        ("rooms-simple", "simple", true, false),
        ("rooms-push-killed", "push", true, true),
        ("rooms-simple-killed", "simple", false, true),
    ] {
        bed.admin(&["topic", "create", topic, "--type", "lite", "--queues", "4"])?;
        let mut more = vec!["--consumer", consumer];
        if exclusive {
            let group = format!("{topic}-group");
            bed.admin(&["group", "set", &group, "--lite-sub-model", "exclusive"])?;
            more.push("--exclusive");
        }
        run(&mut bed, "lite.py", topic, &more, kill_leader).await?;
        let shown = bed.admin(&["lite", "show", topic])?;
        let names = shown.as_array().context("lite topics")?.iter().filter_map(|lite| lite["name"].as_str());
        ensure!(names.count() == 6, "{topic}: {shown}");
    }
    bed.passed().await
}
