//! Whose clients load a run: ours, or an unmodified SDK in a program of its own, which speaks as
//! `chaos client` does ([`super::client_processes`]).
//!
//! | `--client` | SDK | Program |
//! |---|---|---|
//! | `python` | PyPI `rocketmq-python-client` | `python_client.py`, part of this binary |
//! | `rust` | crate `rocketmq` 5.0.0 | `rust_sdk_client` of `jepsen-tests`: this binary does not depend on the crate |
//!
//! No SDK says where a message it received lies, so a group of our client reads the same messages.

use std::path::PathBuf;

use anyhow::{Context as _, bail, ensure};
use clap::{Args, ValueEnum};

use super::client_processes::ClientProgram;
use super::load::Workload;

const PYTHON_PROGRAM: &str = include_str!("python_client.py");
const RUST_PROGRAM: &str = "rust_sdk_client";

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ClientKind {
    Own,
    /// The unmodified Python SDK, each producer and each consumer a process.
    Python,
    /// The unmodified Rust SDK, likewise.
    Rust,
}

#[derive(Debug, Args)]
pub struct ClientChoice {
    /// Whose client sends and receives. Messages of a foreign one are read by a group of ours too, which
    /// sees where they lie.
    #[arg(long = "client", value_enum, default_value_t = ClientKind::Own)]
    kind: ClientKind,
    /// With `--client python`: an interpreter that finds `rocketmq-python-client`.
    #[arg(long, default_value = "python3", value_name = "INTERPRETER")]
    python: PathBuf,
    /// With `--client rust`: the program that has the SDK; `rust_sdk_client` beside this binary unless
    /// given.
    #[arg(long, value_name = "PATH")]
    rust_client: Option<PathBuf>,
}

impl ClientChoice {
    pub fn is_foreign(&self) -> bool {
        self.kind != ClientKind::Own
    }

    /// An error if its processes cannot do what this workload is about, or are not there to be started.
    pub fn check(&self, workload: Workload) -> anyhow::Result<()> {
        let known: &[Workload] = match self.kind {
            ClientKind::Own => &[Workload::Queue],
            ClientKind::Python | ClientKind::Rust => {
                &[Workload::Queue, Workload::Fifo, Workload::Transactions]
            }
        };
        if !known.contains(&workload) {
            let name = |workload: &Workload| {
                workload.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
            };
            let known: Vec<String> = known.iter().map(name).collect();
            bail!(
                "clients that are processes, foreign ones and those that fail, do not go with every workload: \
                 these know --workload {} and not {}",
                known.join(", "),
                name(&workload)
            );
        }
        self.program().map(|_| ())
    }

    /// The consumer group of its processes, beside that of the load.
    pub fn group(&self, of_load: &str) -> String {
        match self.kind {
            ClientKind::Own => of_load.to_owned(),
            ClientKind::Python => format!("{of_load}-python"),
            ClientKind::Rust => format!("{of_load}-rust"),
        }
    }

    /// What is started for each of its processes; an error where it is not there.
    pub fn program(&self) -> anyhow::Result<ClientProgram> {
        let this_binary = || std::env::current_exe().context("cannot find this binary");
        match self.kind {
            ClientKind::Own => Ok(ClientProgram::Own(this_binary()?)),
            ClientKind::Python => Ok(ClientProgram::Foreign {
                program: self.python.clone(),
                first: vec!["-c".to_owned(), PYTHON_PROGRAM.to_owned()],
            }),
            ClientKind::Rust => {
                let program = match &self.rust_client {
                    Some(program) => program.clone(),
                    None => this_binary()?.with_file_name(RUST_PROGRAM),
                };
                ensure!(
                    program.is_file(),
                    "there is no {}: `cargo build --package ledgermq-jepsen-tests --bin {RUST_PROGRAM}` \
                     builds it (with --release beside a release build), --rust-client names one elsewhere",
                    program.display()
                );
                Ok(ClientProgram::Foreign { program, first: Vec::new() })
            }
        }
    }
}
