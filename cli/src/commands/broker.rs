//! `ledgermq broker`: the production entry point of a broker.

use std::process::ExitCode;
use std::sync::Arc;

use clap::{ArgMatches, Args};
use ledgermq_broker::{BrokerConfig, Stage};

use crate::settings::{BROKER_ENV_PREFIX, SettingsArgs, load_settings};
use crate::supervisor::Supervisor;

#[derive(Debug, Args)]
pub struct BrokerArgs {
    #[command(flatten)]
    settings: SettingsArgs,
}

pub fn run(arguments: &BrokerArgs, matches: Option<&ArgMatches>) -> anyhow::Result<ExitCode> {
    let config: BrokerConfig = load_settings(&arguments.settings, matches, BROKER_ENV_PREFIX)?;
    ledgermq_common::crash::end_process_on_panic();
    let supervisor = Arc::new(Supervisor::of_this_process());
    ledgermq_broker::run(config, |stage| match stage {
        Stage::Serving => supervisor.ready("serving"),
        Stage::Stopping => supervisor.stopping(),
    })?;
    Ok(ExitCode::SUCCESS)
}
