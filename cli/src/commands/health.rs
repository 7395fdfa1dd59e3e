//! `ledgermq health`: asks a process on this machine whether it is well, for health checks in images
//! that hold nothing but this binary.

use std::process::ExitCode;

use clap::Args;

use crate::cluster::http_get;

#[derive(Debug, Args)]
pub struct HealthArgs {
    /// `host:port` of the process's http port.
    #[arg(long, default_value = "127.0.0.1:8083", value_name = "HOST:PORT")]
    endpoint: String,
    /// Ask whether it is alive, not whether it can serve.
    #[arg(long)]
    live: bool,
}

pub async fn run(arguments: HealthArgs) -> anyhow::Result<ExitCode> {
    let path = if arguments.live { "/livez" } else { "/readyz" };
    let answer = http_get(&arguments.endpoint, path).await?;
    println!("{}", answer.body.trim());
    Ok(if answer.status == 200 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
