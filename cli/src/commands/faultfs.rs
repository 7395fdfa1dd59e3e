//! `ledgermq faultfs`: the disk of a cluster member under fault tests, as a process of its own.
//! Started by `ledgermq chaos`; it ends with its standard input.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;

#[derive(Debug, Args)]
pub struct FaultfsArgs {
    /// Where the durable bytes are kept.
    #[arg(long)]
    files: PathBuf,
    /// Where it is mounted.
    #[arg(long)]
    at: PathBuf,
    /// A sync also syncs the files below, so that it takes as long as on the disk itself.
    #[arg(long)]
    through: bool,
}

pub fn run(arguments: &FaultfsArgs) -> anyhow::Result<ExitCode> {
    let (input, output) = (std::io::stdin().lock(), std::io::stdout().lock());
    ledgermq_faultfs::control::serve(&arguments.files, &arguments.at, arguments.through, input, output)
        .with_context(|| format!("the disk at {}", arguments.at.display()))?;
    Ok(ExitCode::SUCCESS)
}
