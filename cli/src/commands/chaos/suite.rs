//! `chaos suite`: runs one after the other, each a process and a cluster of its own, and one summary.
//!
//! | Set | Rows | Meant for |
//! |---|---|---|
//! | `ci` | each workload under a fault of the kind it is most likely to feel, one injection | every change |
//! | `full` | every scenario with every workload it knows, the injections as given | a release |
//!
//! The exit status is the worst of the runs: 1 for an anomaly or a run that went wrong, 2 where
//! something could not be judged.

use std::path::PathBuf;
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use comfy_table::{Table, presets};
use serde::Serialize;
use tokio::time::Instant;

use super::load::Workload;
use super::nemesis::Dice;
use super::run::random_seed;
use super::scenario::{self, Fault};

/// A run that takes longer is hung.
const RUN_WITHIN: Duration = Duration::from_secs(3_600);

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Set {
    Ci,
    Full,
}

#[derive(Debug, Args)]
pub struct SuiteArgs {
    #[arg(long, value_enum, default_value_t = Set::Ci)]
    set: Set,
    /// The seeds of the runs follow from it; a random one unless given.
    #[arg(long)]
    seed: Option<u64>,
    /// Faults of each run of the full set.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    injections: u32,
    #[arg(long, default_value_t = 300)]
    rate: u32,
    /// One folder for each run, and `suite.json`; `chaos-suite-SEED` unless given.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Print the summary as JSON instead of a table.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Row {
    scenario: &'static str,
    workload: Workload,
    injections: u32,
}

const fn once(scenario: &'static str, workload: Workload) -> Row {
    Row { scenario, workload, injections: 1 }
}

const CI: &[Row] = &[
    once("kill-leader", Workload::Queue),
    once("kill-all", Workload::Fifo),
    once("kill-leader", Workload::Transactions),
    once("stop-leader", Workload::Leases),
    once("term-leader", Workload::Registers),
    once("rolling-restart", Workload::Queue),
    once("kill-leader", Workload::Log),
    once("kill-follower", Workload::Groups),
    once("term-leader", Workload::Mixed),
];

static WORKLOADS: [Workload; 9] = [
    Workload::Queue,
    Workload::Fifo,
    Workload::Transactions,
    Workload::Delay,
    Workload::Leases,
    Workload::Registers,
    Workload::Log,
    Workload::Groups,
    Workload::Mixed,
];

#[derive(Debug, Serialize)]
struct Summary {
    seed: u64,
    valid: usize,
    runs: Vec<Run>,
}

#[derive(Debug, Serialize)]
struct Run {
    scenario: String,
    workload: String,
    seed: u64,
    /// Exit status of the run; none if it was killed or hung.
    status: Option<i32>,
    seconds: u64,
    injections: u64,
    acknowledged: u64,
    gap_p99_ms: f64,
    /// Fatal ones, by checker.
    anomalies: Vec<String>,
    /// What the run said when it went wrong.
    error: Option<String>,
}

fn rows(set: Set, injections: u32) -> Vec<Row> {
    match set {
        Set::Ci => CI.to_vec(),
        Set::Full => scenario::SCENARIOS
            .iter()
            .flat_map(|scenario| {
                // Clients fail under this one only.
                let is_of_clients = matches!(scenario.fault, Fault::Client(_));
                let workloads = if is_of_clients { &WORKLOADS[..1] } else { &WORKLOADS[..] };
                workloads.iter().map(|workload| Row {
                    scenario: scenario.name,
                    workload: *workload,
                    injections,
                })
            })
            .collect(),
    }
}

pub async fn run(arguments: SuiteArgs) -> anyhow::Result<ExitCode> {
    let seed = arguments.seed.unwrap_or_else(random_seed);
    let out = arguments.out.clone().unwrap_or_else(|| PathBuf::from(format!("chaos-suite-{seed}")));
    std::fs::create_dir_all(&out).with_context(|| format!("cannot make {}", out.display()))?;
    let mut dice = Dice::new(seed);
    let mut summary = Summary { seed, valid: 0, runs: Vec::new() };
    for row in rows(arguments.set, arguments.injections) {
        let run = one(row, dice.below(1 << 32), &arguments, &out).await?;
        if !arguments.json {
            eprintln!("{} {} seed {}: {}", run.scenario, run.workload, run.seed, said(run.status));
        }
        summary.valid += usize::from(run.status == Some(0));
        summary.runs.push(run);
        let json = serde_json::to_string_pretty(&summary)?;
        std::fs::write(out.join("suite.json"), &json).context("cannot write suite.json")?;
    }
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&summary)?);
    } else {
        println!("{}\nhistories and reports: {}", as_text(&summary), out.display());
    }
    Ok(worst(summary.runs.iter().map(|run| run.status)))
}

async fn one(row: Row, seed: u64, arguments: &SuiteArgs, out: &std::path::Path) -> anyhow::Result<Run> {
    let workload = row.workload.to_possible_value().context("a workload without a name")?;
    let workload = workload.get_name().to_owned();
    let folder = out.join(format!("{}-{workload}", row.scenario));
    // Under "none" there is nothing to wait for but the load.
    let duration = if row.scenario == "none" { 20 } else { 60 * u64::from(row.injections) };
    let is_of_network = scenario::SCENARIOS
        .iter()
        .any(|known| known.name == row.scenario && matches!(known.fault, Fault::Network(_)));
    let cluster = if is_of_network { "netns" } else { "local" };
    let binary = std::env::current_exe().context("cannot find this binary")?;
    let began = Instant::now();
    let output = tokio::process::Command::new(binary)
        .args(["chaos", "run", "--json", "--scenario", row.scenario, "--workload", &workload])
        .args(["--seed", &seed.to_string(), "--rate", &arguments.rate.to_string()])
        .args(["--injections", &row.injections.to_string(), "--duration", &duration.to_string()])
        .args(["--cluster", cluster, "--fault-ms", "500", "--out"])
        .arg(&folder)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(RUN_WITHIN, output).await;
    let seconds = began.elapsed().as_secs();
    let (status, report, error) = match output {
        Ok(output) => {
            let output = output.context("cannot start a run")?;
            let report = serde_json::from_slice(&output.stdout).unwrap_or(serde_json::Value::Null);
            let complaint = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            (output.status.code(), report, (!complaint.is_empty()).then_some(complaint))
        }
        Err(_) => (None, serde_json::Value::Null, Some(format!("no end within {RUN_WITHIN:?}"))),
    };
    let verdicts = report["verdicts"].as_array().cloned().unwrap_or_default();
    let list = |value: &serde_json::Value| value.as_array().cloned().unwrap_or_default();
    let anomalies = verdicts.iter().flat_map(|verdict| {
        let checker = verdict["checker"].as_str().unwrap_or_default().to_owned();
        list(&verdict["anomalies"]).into_iter().filter(|anomaly| anomaly["fatal"] == true).map(
            move |anomaly| {
                let name = anomaly["name"].as_str().unwrap_or_default();
                format!("{checker}: {} {name}", anomaly["count"])
            },
        )
    });
    // Of each topic, where there are several.
    let is_of_sends = |verdict: &&serde_json::Value| {
        verdict["checker"].as_str().is_some_and(|checker| checker.starts_with("total-queue"))
    };
    let acknowledged = verdicts.iter().filter(is_of_sends).map(|verdict| {
        list(&verdict["counts"])
            .iter()
            .find(|count| count[0] == "acknowledged")
            .and_then(|count| count[1].as_u64())
            .unwrap_or(0)
    });
    Ok(Run {
        scenario: row.scenario.to_owned(),
        workload,
        seed,
        status,
        seconds,
        injections: report["injections"].as_u64().unwrap_or(0),
        acknowledged: acknowledged.sum(),
        gap_p99_ms: report["gap_ms"]["p99"].as_f64().unwrap_or(0.0),
        anomalies: anomalies.collect(),
        error: error.filter(|_| status != Some(0)),
    })
}

fn said(status: Option<i32>) -> &'static str {
    match status {
        Some(0) => "valid",
        Some(2) => "unknown",
        _ => "INVALID, or the run went wrong",
    }
}

fn worst(statuses: impl Iterator<Item = Option<i32>>) -> ExitCode {
    let mut worst = 0;
    for status in statuses {
        worst = match (worst, status) {
            (_, Some(0)) => worst,
            (0 | 2, Some(2)) => 2,
            _ => 1,
        };
    }
    ExitCode::from(worst)
}

fn as_text(summary: &Summary) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header([
        "scenario",
        "workload",
        "seed",
        "verdict",
        "injections",
        "acknowledged",
        "gap p99 ms",
        "s",
    ]);
    for run in &summary.runs {
        table.add_row([
            run.scenario.clone(),
            run.workload.clone(),
            run.seed.to_string(),
            said(run.status).to_owned(),
            run.injections.to_string(),
            run.acknowledged.to_string(),
            format!("{:.0}", run.gap_p99_ms),
            run.seconds.to_string(),
        ]);
        for anomaly in run.anomalies.iter().chain(&run.error) {
            table.add_row([format!("  {anomaly}")]);
        }
    }
    format!("{table}\n{} of {} valid, seed {}", summary.valid, summary.runs.len(), summary.seed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_of_a_set_names_a_scenario_and_no_row_stands_twice() {
        for set in [Set::Ci, Set::Full] {
            let rows = rows(set, 1);
            for (position, row) in rows.iter().enumerate() {
                assert!(scenario::parse(row.scenario).is_ok(), "{row:?}");
                assert!(!rows[..position].contains(row), "{row:?}");
            }
        }
    }

    #[test]
    fn a_run_that_went_wrong_outweighs_one_that_was_not_judged() {
        let code = |statuses: &[Option<i32>]| format!("{:?}", worst(statuses.iter().copied()));
        let exit = |code| format!("{:?}", ExitCode::from(code));
        assert_eq!(code(&[Some(0), Some(0)]), exit(0));
        assert_eq!(code(&[Some(0), Some(2), Some(0)]), exit(2));
        assert_eq!(code(&[Some(2), Some(1), Some(2)]), exit(1));
        assert_eq!(code(&[None, Some(2)]), exit(1));
    }
}
