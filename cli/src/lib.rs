//! The `ledgermq` binary as a library, so that tests can start clusters of it.
//!
//! | Module | What it holds |
//! |---|---|
//! | [`cluster`] | clusters of child processes |
//! | [`chaos_halves`] | what a run of faults does with each half message, for clients in programs of their own |
//! | `commands` | one file per subcommand |
//! | `logging` | tracing to standard error |
//! | `supervisor` | the word to systemd |

pub mod cluster;
mod commands;
mod logging;
mod settings;
mod supervisor;

pub mod chaos_halves {
    pub use crate::commands::chaos::transactions::{Ending, commits, ending};
}

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _};

use commands::Cli;

/// Runs one command line. What goes wrong is told in one line on standard error.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let command = settings::with_generated_flags(Cli::command());
    let matches = match command.try_get_matches_from(arguments) {
        Ok(matches) => matches,
        Err(error) => {
            // Also how --help and --version end; clap knows which stream and status each takes.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let outcome = match Cli::from_arg_matches(&matches) {
        Ok(cli) => logging::start(&cli.logging, cli.default_log()).and_then(|()| cli.run(&matches)),
        Err(error) => Err(error.into()),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("ledgermq: {}", in_one_line(&error));
            ExitCode::FAILURE
        }
    }
}

/// The chain of causes, outermost first. A cause that its predecessor already quotes is left out.
fn in_one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let text = cause.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
        if line.is_empty() {
            line = text;
        } else if !line.contains(&text) {
            line = format!("{line}: {text}");
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_of_causes_is_one_line_without_repetition() {
        let inner = std::io::Error::other("port 80\nis taken");
        let error = anyhow::Error::new(inner).context("cannot listen").context("cannot start: cannot listen");
        assert_eq!(in_one_line(&error), "cannot start: cannot listen: port 80 is taken");
    }

    #[test]
    fn the_command_line_is_consistent() {
        settings::with_generated_flags(Cli::command()).debug_assert();
    }
}
