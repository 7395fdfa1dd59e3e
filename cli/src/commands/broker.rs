//! `ledgermq broker`: the production entry point of a broker.

use std::process::ExitCode;

use clap::{ArgMatches, Args};
use ledgermq_broker::BrokerConfig;

use crate::settings::{BROKER_ENV_PREFIX, SettingsArgs, load_settings};

#[derive(Debug, Args)]
pub struct BrokerArgs {
    #[command(flatten)]
    settings: SettingsArgs,
}

pub fn run(arguments: &BrokerArgs, matches: Option<&ArgMatches>) -> anyhow::Result<ExitCode> {
    let config: BrokerConfig = load_settings(&arguments.settings, matches, BROKER_ENV_PREFIX)?;
    ledgermq_common::crash::end_process_on_panic();
    ledgermq_broker::run(config)?;
    Ok(ExitCode::SUCCESS)
}
