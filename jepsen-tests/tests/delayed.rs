//! Delayed messages and recall with the unmodified Python SDK: never early, once each, and a recalled one
//! never; also when the leader is killed between the sends and the delivery times.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ledgermq_jepsen_tests::bed::Bed;
use ledgermq_jepsen_tests::python::{interpreter, programs};
use serde_json::Value;

const RECOVER_WITHIN: Duration = Duration::from_secs(20);
/// Includes the client's own way of receiving; the promise without a fault is 100 ms.
const LATE_MS_MAX: u64 = 1_000;

async fn run(bed: &mut Bed, name: &str, kill_leader: bool) -> Result<Option<Value>> {
    let Some(interpreter) = interpreter()? else {
        eprintln!("left out: this machine has no python3");
        return Ok(None);
    };
    bed.admin(&["topic", "create", name, "--type", "delay", "--queues", "4"])?;
    let mut program = Command::new(interpreter)
        .arg(programs().join("delayed.py"))
        .args(["--endpoints", &bed.cluster.broker_access_points()])
        .args(["--topic", name, "--group", &format!("{name}-group")])
        .stdout(Stdio::piped())
        .stderr(std::fs::File::create(bed.cluster.dir().join(format!("python-{name}.stderr")))?)
        .spawn()?;
    let mut output = BufReader::new(program.stdout.take().context("its output")?);
    let mut told = String::new();
    output.read_line(&mut told)?;
    ensure!(told.trim() == "sent", "{name}: {told}");
    if kill_leader {
        let leader = bed.cluster.wait_leader(1, RECOVER_WITHIN).await?;
        bed.cluster.kill(leader)?;
        bed.cluster.wait_leader(1, RECOVER_WITHIN).await?;
        bed.cluster.restart(leader)?;
    }
    let mut result = String::new();
    output.read_to_string(&mut result)?;
    let status = program.wait()?;
    println!("{name}: {}", result.trim());
    ensure!(status.success(), "{name}: {status}: {result}");
    Ok(Some(serde_json::from_str(&result)?))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn delayed_messages_come_in_time_once_and_not_when_recalled() -> Result<()> {
    let mut bed = Bed::make(|_| {}).await?;
    if let Some(result) = run(&mut bed, "later", false).await? {
        let late_ms = result["late_ms_max"].as_u64().context("a figure")?;
        ensure!(late_ms <= LATE_MS_MAX, "{late_ms} ms late");
    }
    run(&mut bed, "later-killed", true).await?;
    bed.passed().await
}
