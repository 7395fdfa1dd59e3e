//! A program of the Python SDK that stands for one kind of message, with a fault in its middle.
//!
//! | Line | From | Means |
//! |---|---|---|
//! | `half` | program | its work is half done, and goes on |
//! | `over` | harness | the fault was brought in and is over |
//! | a JSON object | program | the result; `after` counts the work done behind `over` |
//!
//! A program judges its kind itself and ends with status 0 when all was as it must be.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::Command;

use crate::bed::Bed;
use crate::kill::kill_leader;
use crate::python::{interpreter, programs};

/// Programs have a deadline of their own, which is shorter and tells more.
const STEP_WITHIN: Duration = Duration::from_secs(120);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    None,
    LeaderKilled,
}

/// Runs `program` on a topic and with a consumer group of its own. `None` where the machine has no Python.
pub async fn run(
    bed: &mut Bed,
    program: &str,
    topic: &str,
    more: &[&str],
    fault: Fault,
) -> Result<Option<Value>> {
    let Some(interpreter) = interpreter()? else {
        eprintln!("left out: this machine has no python3");
        return Ok(None);
    };
    let mut child = Command::new(interpreter)
        .arg(programs().join(program))
        .args(["--endpoints", &bed.cluster.broker_access_points()])
        .args(["--topic", topic, "--group", &format!("{topic}-group")])
        .args(more)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(std::fs::File::create(bed.cluster.dir().join(format!("python-{topic}.stderr")))?)
        .kill_on_drop(true)
        .spawn()?;
    let mut input = child.stdin.take().context("the input is piped")?;
    let mut lines = BufReader::new(child.stdout.take().context("the output is piped")?).lines();
    let told = tokio::time::timeout(STEP_WITHIN, lines.next_line()).await;
    let told = told.with_context(|| format!("{topic}: no word of the middle"))??;
    ensure!(told.as_deref() == Some("half"), "{topic}: {told:?}");
    if fault == Fault::LeaderKilled {
        let killed = kill_leader(bed).await?;
        bed.cluster.restart(killed.leader)?;
        println!("{topic}: {killed:?}");
    }
    input.write_all(b"over\n").await?;
    let result = tokio::time::timeout(STEP_WITHIN, lines.next_line()).await;
    let result = result.with_context(|| format!("{topic}: no result"))??.unwrap_or_default();
    println!("{topic}: {}", result.trim());
    let status = tokio::time::timeout(STEP_WITHIN, child.wait()).await;
    let status = status.with_context(|| format!("{topic}: the program does not end"))??;
    ensure!(status.success(), "{topic}: {status}: {result}");
    let result: Value = serde_json::from_str(&result)?;
    ensure!(
        result["after"].as_u64() > Some(0),
        "{topic}: nothing was left to do behind the middle: {result}"
    );
    if fault == Fault::None {
        ensure!(result["redelivered"].as_u64().unwrap_or(0) == 0, "{topic}: delivered again: {result}");
    }
    Ok(Some(result))
}
