//! The subcommands, one file each.

mod admin;
mod admin_dead_letters;
mod admin_groups;
mod admin_lite;
mod admin_messages;
mod admin_retention;
mod admin_trace;
mod bench;
mod broker;
pub(crate) mod chaos;
mod config;
mod connection;
mod demo;
mod dev;
mod faultfs;
mod health;
mod nameserver;
mod receive;
mod send;
mod transaction;

use std::process::ExitCode;

use anyhow::Context as _;
use clap::{ArgMatches, Parser, Subcommand};

use crate::logging::LoggingArgs;

/// A RocketMQ 5 compatible message broker whose CommitLog is a Raft log.
#[derive(Debug, Parser)]
#[command(name = "ledgermq", version, propagate_version = true)]
pub struct Cli {
    #[command(flatten)]
    pub logging: LoggingArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a broker.
    Broker(broker::BrokerArgs),
    /// Run a nameserver.
    Nameserver(nameserver::NameserverArgs),
    /// Ask a running process whether it is well.
    Health(health::HealthArgs),
    /// Check a configuration file, show the defaults, print the manual.
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Run a nameserver and three brokers on this machine to develop against.
    Dev(dev::DevArgs),
    /// Kill leaders under load and count what was lost.
    Demo(demo::DemoArgs),
    /// Run faults against a cluster under load and judge the history.
    #[command(subcommand)]
    Chaos(chaos::ChaosCommand),
    /// Serve a disk with faults to the member of a cluster under test.
    #[command(hide = true)]
    Faultfs(faultfs::FaultfsArgs),
    /// Manage topics, look at the cluster.
    Admin(admin::AdminArgs),
    /// Send messages.
    Send(send::SendArgs),
    /// Receive and acknowledge messages.
    Receive(receive::ReceiveArgs),
    /// Measure throughput, latency and cost.
    #[command(subcommand)]
    Bench(bench::BenchCommand),
}

impl Cli {
    /// Servers tell what they do; tools speak up only when something is wrong.
    pub fn default_log(&self) -> &'static str {
        match self.command {
            // The Raft engine reports every retry as a warning; what matters of it we report ourselves.
            Command::Broker(_) | Command::Nameserver(_) => "info,openraft=error",
            // Requests that a power cut leaves without an answer are what it is for.
            Command::Faultfs(_) => "warn,fuser=off",
            _ => "warn",
        }
    }

    pub fn run(self, matches: &ArgMatches) -> anyhow::Result<ExitCode> {
        let below = matches.subcommand().map(|(_, matches)| matches);
        match self.command {
            Command::Broker(arguments) => broker::run(&arguments, below),
            Command::Nameserver(arguments) => nameserver::run(&arguments, below),
            Command::Health(arguments) => block_on(health::run(arguments)),
            Command::Config(command) => config::run(&command),
            Command::Dev(arguments) => block_on(dev::run(arguments)),
            Command::Demo(arguments) => block_on(demo::run(arguments)),
            Command::Chaos(command) => block_on_beside_one_thread(chaos::run(command)),
            Command::Faultfs(arguments) => faultfs::run(&arguments),
            Command::Admin(arguments) => block_on(admin::run(arguments)),
            Command::Send(arguments) => block_on(send::run(arguments)),
            Command::Receive(arguments) => block_on(receive::run(arguments)),
            Command::Bench(command) => bench::run(command),
        }
    }
}

/// Children are started from the main thread, which lives as long as the process: a child is
/// killed when the thread that started it ends.
fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("the runtime could not be built")?
        .block_on(work)
}

/// Likewise, with a thread of its own for all that is spawned: what this one waits for (a disk, a
/// command) does not hold the spawned load up, which would look like an outage.
fn block_on_beside_one_thread<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .context("the runtime could not be built")?
        .block_on(work)
}

/// Resolves at SIGINT or SIGTERM.
async fn asked_to_stop() -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        outcome = tokio::signal::ctrl_c() => outcome?,
        _ = terminate.recv() => {}
    }
    Ok(())
}
