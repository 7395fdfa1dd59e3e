//! The configuration of `broker` and `nameserver` on the command line: `--config`, `--set`, and one
//! generated flag for each key.

use std::path::PathBuf;

use clap::{Arg, ArgMatches, Args, Command};
use ledgermq_broker::BrokerConfig;
use ledgermq_common::config::{ConfigError, Sources, known_keys, load};
use ledgermq_nameserver::NameserverConfig;
use serde::Serialize;
use serde::de::DeserializeOwned;

pub const BROKER_ENV_PREFIX: &str = "LEDGERMQ_BROKER";
pub const NAMESERVER_ENV_PREFIX: &str = "LEDGERMQ_NAMESERVER";

const MORE_HELP: &str = "Every key of the configuration is also a flag (--listen.client 0.0.0.0:8081) and an \
                         environment variable; `ledgermq config show-defaults` lists them.";

#[derive(Debug, Clone, Args)]
pub struct SettingsArgs {
    /// TOML file; without one the built-in defaults apply.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Overrides one key, as in `--set listen.client=0.0.0.0:8081`. May be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

pub fn with_generated_flags(command: Command) -> Command {
    command
        .mut_subcommand("broker", generate::<BrokerConfig>)
        .mut_subcommand("nameserver", generate::<NameserverConfig>)
}

/// Loads from the file, the environment, the generated flags in `matches`, and `--set`, each
/// winning over those before.
pub fn load_settings<T>(
    arguments: &SettingsArgs,
    matches: Option<&ArgMatches>,
    env_prefix: &str,
) -> Result<T, ConfigError>
where
    T: DeserializeOwned + Default + Serialize,
{
    let mut sources = Sources::from_process(env_prefix);
    if let Some(path) = &arguments.config {
        sources = sources.file(path);
    }
    if let Some(matches) = matches {
        for key in known_keys::<T>() {
            if let Ok(Some(value)) = matches.try_get_one::<String>(&key.key) {
                sources = sources.flag(key.key, value);
            }
        }
    }
    for assignment in &arguments.set {
        sources = sources.set(assignment)?;
    }
    load(&sources)
}

fn generate<T: Default + Serialize>(mut command: Command) -> Command {
    for key in known_keys::<T>() {
        // clap keeps names for the life of the process, which is also how long this is needed.
        let name: &'static str = key.key.leak();
        command = command.arg(Arg::new(name).long(name).value_name("VALUE").hide(true));
    }
    command.after_help(MORE_HELP)
}
