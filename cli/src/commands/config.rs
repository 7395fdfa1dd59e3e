//! `ledgermq config`: what a file means before a process is started with it.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};
use ledgermq_broker::BrokerConfig;
use ledgermq_common::config::{KnownKey, Sources, defaults_as_toml, known_keys, load};
use ledgermq_nameserver::NameserverConfig;

use crate::settings::{BROKER_ENV_PREFIX, NAMESERVER_ENV_PREFIX};

#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Check a file as the process would at its start; environment variables are left out.
    Check(CheckArgs),
    /// Print every key with its default, and its environment variable and flag.
    ShowDefaults {
        #[arg(long, value_enum, default_value_t = Process::Broker)]
        process: Process,
    },
}

#[derive(Debug, Args)]
pub struct CheckArgs {
    file: PathBuf,
    /// Whose file it is; told from its sections unless given.
    #[arg(long, value_enum)]
    process: Option<Process>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Process {
    Broker,
    Nameserver,
}

pub fn run(command: &ConfigCommand) -> anyhow::Result<ExitCode> {
    match command {
        ConfigCommand::Check(arguments) => {
            let process = arguments.process.unwrap_or_else(|| guess_process(&arguments.file));
            // No environment: the answer is about the file, whichever shell asks.
            let sources = Sources::with_environment("", []).file(&arguments.file);
            let kind = match process {
                Process::Broker => {
                    load::<BrokerConfig>(&sources)?.validate()?;
                    "broker"
                }
                Process::Nameserver => {
                    load::<NameserverConfig>(&sources)?.validate()?;
                    "nameserver"
                }
            };
            println!("{}: usable {kind} configuration", arguments.file.display());
        }
        ConfigCommand::ShowDefaults { process: Process::Broker } => {
            print!("{}", defaults_as_toml::<BrokerConfig>(BROKER_ENV_PREFIX)?);
        }
        ConfigCommand::ShowDefaults { process: Process::Nameserver } => {
            print!("{}", defaults_as_toml::<NameserverConfig>(NAMESERVER_ENV_PREFIX)?);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A file that cannot be read or parsed counts as a broker's; checking it tells what is wrong.
fn guess_process(path: &std::path::Path) -> Process {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let Ok(file) = text.parse::<toml::Table>() else { return Process::Broker };
    let known = |keys: Vec<KnownKey>| {
        let sections: std::collections::BTreeSet<String> =
            keys.into_iter().filter_map(|key| key.key.split('.').next().map(str::to_owned)).collect();
        file.keys().filter(|key| sections.contains(*key)).count()
    };
    if known(known_keys::<NameserverConfig>()) > known(known_keys::<BrokerConfig>()) {
        Process::Nameserver
    } else {
        Process::Broker
    }
}
