//! `ledgermq chaos`: faults on a real cluster under load, the recorded history, and what it says.
//!
//! ```text
//! run ──► cluster ──► load (recorded) ──► faults, each proven to have happened ──► heal ──► drain
//!     ──► replicas compared ──► history.jsonl, history.edn ──► checkers ──► report.html, report.json
//! ```
//!
//! | Exit status | Meaning |
//! |---|---|
//! | 0 | every checker says valid, and every fault happened |
//! | 1 | an anomaly, or the run itself went wrong |
//! | 2 | something could not be judged: never a pass |
//!
//! `check` and `report` work on a recorded history alone, also one of another system. `replicas` compares
//! the files of nodes that have ended, also of a cluster that no run made.

mod client_processes;
mod clock_faults;
mod delay;
mod disk_faults;
mod foreign_clients;
mod groups;
mod judge;
mod leases;
mod load;
mod log;
mod member_faults;
mod moments;
mod nemesis;
mod network_faults;
mod overload;
mod page;
mod recorder;
mod registers;
mod replicas;
mod report;
mod run;
mod scenario;
mod suite;
mod summary;
pub(crate) mod transactions;
mod workload;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};
use comfy_table::{Table, presets};
use ledgermq_checkers::Outcome;

use judge::{Evidence, Ordering};
use report::Report;

#[derive(Debug, Subcommand)]
pub enum ChaosCommand {
    /// List the scenarios, and the clusters each can run on.
    List,
    /// Run one: load and faults on a cluster of its own, then the verdict.
    Run(run::RunArgs),
    /// One client of a run, as a process of its own.
    #[command(hide = true)]
    Client(client_processes::ClientArgs),
    /// Run a list of them one after the other, with one summary.
    Suite(suite::SuiteArgs),
    /// Judge a recorded history.
    Check(CheckArgs),
    /// Make the report of a recorded history again.
    Report(ReportArgs),
    /// Compare the logs of nodes that have ended, entry by entry.
    Replicas(ReplicasArgs),
}

#[derive(Debug, Args)]
pub struct CheckArgs {
    /// `history.jsonl` or `history.bin` of a run.
    history: PathBuf,
    /// Whether a consumer must see a queue in order.
    #[arg(long, value_enum, default_value_t = Ordering::Any)]
    order: Ordering,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub struct ReportArgs {
    /// `history.jsonl` or `history.bin` of a run.
    history: PathBuf,
    /// Where `report.html` and `report.json` go; beside the history unless given.
    #[arg(long)]
    out: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct ReplicasArgs {
    /// The data directories of all nodes of a cluster.
    #[arg(required = true, num_args = 2..)]
    data_dirs: Vec<PathBuf>,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ClusterKind {
    /// Child processes on this machine.
    Local,
    /// Child processes, each in a network namespace of its own: also where a scenario needs no bad
    /// links. Needs root and `/dev/net/tun`.
    Netns,
    /// Containers of a compose project: one of its own, or with `--project` one that runs. Needs
    /// docker; cutting links needs root and `nft` on the daemon's machine.
    Compose,
}

impl ClusterKind {
    fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Netns => "netns",
            Self::Compose => "compose",
        }
    }
}

pub async fn run(command: ChaosCommand) -> anyhow::Result<ExitCode> {
    match command {
        ChaosCommand::List => {
            let mut table = Table::new();
            table.load_preset(presets::NOTHING);
            table.set_header(["scenario", "clusters", "brokers", "what happens"]);
            for scenario in scenario::SCENARIOS {
                let clusters: Vec<_> = scenario.clusters().iter().map(|cluster| cluster.name()).collect();
                let brokers = match scenario.brokers_min() {
                    0 | 1 => String::new(),
                    least => format!("{least}+"),
                };
                table.add_row([scenario.name, &clusters.join(" "), &brokers, scenario.about]);
            }
            println!("{table}");
            Ok(ExitCode::SUCCESS)
        }
        ChaosCommand::Client(arguments) => client_processes::run(arguments).await,
        ChaosCommand::Run(arguments) => run::run(arguments).await,
        ChaosCommand::Suite(arguments) => suite::run(arguments).await,
        ChaosCommand::Check(arguments) => {
            let report = report_of(&arguments.history, arguments.order)?.1;
            if arguments.json {
                println!("{}", serde_json::to_string_pretty(&report)?);
            } else {
                println!("{}", report.as_text());
            }
            Ok(exit_code(report.outcome))
        }
        ChaosCommand::Report(arguments) => {
            let beside = arguments.history.parent().map(PathBuf::from).unwrap_or_default();
            let out = arguments.out.unwrap_or(beside);
            let (evidence, report) = report_of(&arguments.history, Ordering::Any)?;
            for path in report::write(&out, &evidence, &report)? {
                println!("{}", path.display());
            }
            Ok(exit_code(report.outcome))
        }
        ChaosCommand::Replicas(arguments) => {
            let mut found = replicas::Found::default();
            found.logs(&arguments.data_dirs);
            let verdict = found.verdict();
            if arguments.json {
                println!("{}", serde_json::to_string_pretty(&verdict)?);
            } else {
                println!("{}", report::verdicts_as_text(std::slice::from_ref(&verdict)));
            }
            Ok(exit_code(verdict.outcome))
        }
    }
}

fn report_of(history: &Path, order: Ordering) -> anyhow::Result<(Evidence, Report)> {
    let evidence = judge::of_file(history, order)?;
    let report = Report::of(&evidence, replicas::beside(history), &moments::beside(history));
    Ok((evidence, report))
}

fn exit_code(outcome: Outcome) -> ExitCode {
    match outcome {
        Outcome::Valid => ExitCode::SUCCESS,
        Outcome::Invalid => ExitCode::FAILURE,
        Outcome::Unknown => ExitCode::from(2),
    }
}
