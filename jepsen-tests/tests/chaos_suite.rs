//! The bounded set of chaos runs that every change has to pass. Seeds are fresh each time and stand in
//! the summary, which a failure prints.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use ledgermq_jepsen_tests::bed::binary;

#[test]
fn the_set_for_every_change_is_valid() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let output = Command::new(binary()?)
        .args(["chaos", "suite", "--set", "ci", "--json", "--out"])
        .arg(folder.path())
        .output()
        .context("running ledgermq chaos suite")?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "{}\n{said}{}", output.status, String::from_utf8_lossy(&output.stderr));
    println!("{said}");
    let summary: serde_json::Value = serde_json::from_str(&said)?;
    let runs = summary["runs"].as_array().context("runs")?;
    ensure!(!runs.is_empty() && summary["valid"] == runs.len(), "{summary:#}");
    for run in runs {
        ensure!(run["injections"].as_u64() > Some(0), "a run without a fault shows nothing: {run:#}");
        // Registers hold no messages.
        ensure!(run["workload"] == "registers" || run["acknowledged"].as_u64() > Some(0), "{run:#}");
    }
    ensure!(std::fs::metadata(folder.path().join("suite.json"))?.len() > 0, "the summary is left behind");
    let page = std::fs::read_to_string(folder.path().join("suite.html"))?;
    for run in runs {
        let command = run["command"].as_str().context("a command")?;
        ensure!(command.contains("--seed") && page.contains(command), "the page does not repeat {command}");
        let report = run["folder"].as_str().context("a folder")?.to_owned() + "/report.html";
        ensure!(page.contains(&report) && folder.path().join(&report).exists(), "no {report}");
    }
    Ok(())
}
