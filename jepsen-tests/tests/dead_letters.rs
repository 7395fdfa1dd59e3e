//! The unmodified Python SDK's push consumer with a listener that fails: after the attempts its group
//! allows, the message is read from the dead-letter topic with its origin. Once without a fault, once
//! with the leader killed between two attempts.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ledgermq_jepsen_tests::bed::Bed;
use ledgermq_jepsen_tests::python::{interpreter, programs};

const ATTEMPTS: u32 = 3;
const RECOVER_WITHIN: Duration = Duration::from_secs(20);

async fn run(bed: &mut Bed, name: &str, kill_leader: bool) -> Result<()> {
    let Some(interpreter) = interpreter()? else {
        eprintln!("left out: this machine has no python3");
        return Ok(());
    };
    let group = format!("{name}-group");
    let access_points = bed.cluster.broker_access_points();
    let attempts = ATTEMPTS.to_string();
    bed.admin(&["group", "set", &group, "--max-attempts", &attempts, "--backoff-ms", "1000"])?;
    let mut program = Command::new(interpreter)
        .arg(programs().join("dead_letters.py"))
        .args(["--endpoints", &access_points, "--topic", name, "--group", &group])
        .args(["--attempts", &attempts])
        .stdout(Stdio::piped())
        .stderr(std::fs::File::create(bed.cluster.dir().join(format!("python-{name}.stderr")))?)
        .spawn()?;
    let mut output = BufReader::new(program.stdout.take().context("its output")?);
    let mut told = String::new();
    output.read_line(&mut told)?;
    ensure!(told.trim() == "failing", "{name}: {told}");
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
    let listed = bed.admin(&["dlq", "list", &group])?;
    let redriven = bed.admin(&["dlq", "redrive", &group, "--filter", "key=key-0", "--rate", "50"])?;
    ensure!(listed.as_array().is_some_and(|letters| letters.len() == 5), "{name}: {listed}");
    ensure!(redriven["redriven"] == 1, "{name}: {redriven}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_push_consumer_cannot_consume_goes_to_its_dead_letters_with_its_origin() -> Result<()> {
    let mut bed = Bed::make(|_| {}).await?;
    run(&mut bed, "plain", false).await?;
    run(&mut bed, "killed", true).await?;
    bed.passed().await
}
