//! `ledgermq config`: what a file means before a process is started with it.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};
use ledgermq_broker::BrokerConfig;
use ledgermq_common::config::{
    KnownKey, Sources, defaults_as_toml, described_keys, known_keys, load, reference_as_markdown,
};
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
    /// Print the manual of all keys as Markdown; `docs/configuration.md` is this text.
    Reference,
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
        ConfigCommand::Reference => print!("{}", reference()),
    }
    Ok(ExitCode::SUCCESS)
}

pub fn reference() -> String {
    let broker =
        described_keys::<BrokerConfig>(ledgermq_broker::config::SOURCE, "BrokerConfig", BROKER_ENV_PREFIX);
    let nameserver = described_keys::<NameserverConfig>(
        ledgermq_nameserver::config::SOURCE,
        "NameserverConfig",
        NAMESERVER_ENV_PREFIX,
    );
    format!(
        "# Configuration\n\n\
         Made by `ledgermq config reference` from the code; edit the comments there.\n\n\
         Every key can be given in the TOML file (`--config FILE`), in the environment \
         (`listen.client` is `{BROKER_ENV_PREFIX}__LISTEN__CLIENT` or \
         `{NAMESERVER_ENV_PREFIX}__LISTEN__CLIENT`), and as a flag (`--listen.client VALUE` or \
         `--set listen.client=VALUE`); the later wins over the earlier.\n\
         Elements of a list are named by their number (`nodes.0.peer`, `…__NODES__0__PEER`), or the \
         whole list is given in TOML notation.\n\
         `ledgermq config check FILE` says what is wrong with a file.\n\n\
         ## Broker\n{}\n## Nameserver\n{}",
        reference_as_markdown(&broker),
        reference_as_markdown(&nameserver)
    )
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_has_a_meaning() {
        let broker = described_keys::<BrokerConfig>(ledgermq_broker::config::SOURCE, "BrokerConfig", "X");
        let nameserver =
            described_keys::<NameserverConfig>(ledgermq_nameserver::config::SOURCE, "NameserverConfig", "X");
        for key in broker.iter().chain(&nameserver) {
            assert!(!key.meaning.is_empty(), "{} has no comment in the source", key.key);
        }
    }

    #[test]
    fn the_manual_is_up_to_date() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/configuration.md");
        let written = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            written == reference(),
            "docs/configuration.md is not what the code says: \
             cargo run -- config reference > docs/configuration.md"
        );
    }
}
