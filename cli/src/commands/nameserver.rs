//! `ledgermq nameserver`: the production entry point of a nameserver.

use std::process::ExitCode;
use std::sync::Arc;

use clap::{ArgMatches, Args};
use ledgermq_nameserver::{Nameserver, NameserverConfig};

use super::{asked_to_stop, block_on};
use crate::settings::{NAMESERVER_ENV_PREFIX, SettingsArgs, load_settings};
use crate::supervisor::Supervisor;

#[derive(Debug, Args)]
pub struct NameserverArgs {
    #[command(flatten)]
    settings: SettingsArgs,
}

pub fn run(arguments: &NameserverArgs, matches: Option<&ArgMatches>) -> anyhow::Result<ExitCode> {
    let config: NameserverConfig = load_settings(&arguments.settings, matches, NAMESERVER_ENV_PREFIX)?;
    ledgermq_common::crash::end_process_on_panic();
    block_on(async {
        let nameserver = Nameserver::start(config).await?;
        let supervisor = Arc::new(Supervisor::of_this_process());
        supervisor.ready("serving");
        asked_to_stop().await?;
        supervisor.stopping();
        nameserver.shutdown().await;
        Ok(ExitCode::SUCCESS)
    })
}
