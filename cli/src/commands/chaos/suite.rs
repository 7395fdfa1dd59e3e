//! `chaos suite`: runs one after the other, each a process and a cluster of its own, and one summary
//! ([`super::summary`]), written anew after each run.
//!
//! | Set | Rows | Meant for |
//! |---|---|---|
//! | `ci` | each workload under a fault of the kind it is most likely to feel, one injection | every change |
//! | `full` | every scenario that can run on the cluster, with every workload it knows, the injections as given | a release |
//!
//! The exit status is the worst of the runs: 1 for an anomaly or a run that went wrong, 2 where
//! something could not be judged.

use std::path::PathBuf;
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use ledgermq_faultnet::Dice;
use tokio::time::Instant;

use super::ClusterKind;
use super::load::Workload;
use super::run::random_seed;
use super::scenario::{self, Fault};
use super::summary::{Run, Seen, Summary};

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
    /// Where the runs are made; faults of networks make networks of their own on `local` as well.
    #[arg(long, value_enum, default_value_t = ClusterKind::Local)]
    cluster: ClusterKind,
    /// Brokers of each run; more where a scenario needs more, or the cluster has no other size.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=9))]
    nodes: u64,
    /// Milliseconds that each fault lasts.
    #[arg(long, default_value_t = 500, value_name = "MS")]
    fault_ms: u64,
    /// One folder for each run, `suite.json` and `suite.html`; `chaos-suite-SEED` unless given.
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
    once("replace-leader", Workload::Transactions),
    once("rejoin-under-kill", Workload::Queue),
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

fn rows(set: Set, cluster: ClusterKind, injections: u32) -> Vec<Row> {
    match set {
        Set::Ci => {
            let can_run =
                |row: &&Row| scenario::parse(row.scenario).is_ok_and(|named| named.can_run_on(cluster));
            CI.iter().filter(can_run).copied().collect()
        }
        Set::Full => scenario::SCENARIOS
            .iter()
            .filter(|scenario| scenario.can_run_on(cluster))
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
    for row in rows(arguments.set, arguments.cluster, arguments.injections) {
        let run = one(row, dice.below(1 << 32), &arguments, &out).await?;
        if !arguments.json {
            eprintln!("{} {} seed {}: {}", run.scenario, run.workload, run.seed, run.said());
        }
        summary.valid += usize::from(run.status == Some(0));
        summary.runs.push(run);
        let json = serde_json::to_string_pretty(&summary)?;
        std::fs::write(out.join("suite.json"), &json).context("cannot write suite.json")?;
        std::fs::write(out.join("suite.html"), summary.as_page()).context("cannot write suite.html")?;
    }
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&summary)?);
    } else {
        println!("{}\nhistories and reports: {}", summary.as_text(), out.join("suite.html").display());
    }
    Ok(worst(summary.runs.iter().map(|run| run.status)))
}

async fn one(row: Row, seed: u64, arguments: &SuiteArgs, out: &std::path::Path) -> anyhow::Result<Run> {
    let workload = row.workload.to_possible_value().context("a workload without a name")?;
    let workload = workload.get_name().to_owned();
    let scenario = scenario::parse(row.scenario).map_err(anyhow::Error::msg)?;
    let folder = format!("{}-{workload}", row.scenario);
    // Under "none" there is nothing to wait for but the load.
    let duration = if row.scenario == "none" { 20 } else { 60 * u64::from(row.injections) };
    let is_of_network = matches!(scenario.fault, Fault::Network(_));
    let cluster = match arguments.cluster {
        ClusterKind::Local if is_of_network => ClusterKind::Netns,
        cluster => cluster,
    };
    let brokers = scenario.brokers_on(cluster, arguments.nodes);
    let mut words = vec!["chaos".to_owned(), "run".to_owned()];
    let mut option = |name: &str, value: String| words.extend([format!("--{name}"), value]);
    option("scenario", row.scenario.to_owned());
    option("workload", workload.clone());
    option("seed", seed.to_string());
    option("rate", arguments.rate.to_string());
    option("injections", row.injections.to_string());
    option("duration", duration.to_string());
    option("fault-ms", arguments.fault_ms.to_string());
    option("cluster", cluster.name().to_owned());
    option("nodes", brokers.to_string());
    let binary = std::env::current_exe().context("cannot find this binary")?;
    let began = Instant::now();
    let output = tokio::process::Command::new(binary)
        .args(&words)
        .args(["--json", "--out"])
        .arg(out.join(&folder))
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
    Ok(Run {
        scenario: row.scenario.to_owned(),
        about: scenario.about.to_owned(),
        workload,
        cluster: cluster.name().to_owned(),
        brokers,
        seed,
        command: format!("ledgermq {}", words.join(" ")),
        folder,
        status,
        seconds,
        seen: Seen::of(&report),
        error: error.filter(|_| status != Some(0)),
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_of_a_set_names_a_scenario_and_no_row_stands_twice() {
        let kinds = [ClusterKind::Local, ClusterKind::Compose];
        for (set, cluster) in [Set::Ci, Set::Full].into_iter().flat_map(|set| kinds.map(|kind| (set, kind))) {
            let rows = rows(set, cluster, 1);
            assert!(!rows.is_empty());
            for (position, row) in rows.iter().enumerate() {
                let scenario = scenario::parse(row.scenario).unwrap();
                assert_eq!(scenario.check(cluster, Some(scenario.brokers_on(cluster, 3))), Ok(()), "{row:?}");
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
