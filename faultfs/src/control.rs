//! A disk in a process of its own: commands as JSON lines on its standard input, one answer line
//! each on its standard output.
//!
//! The end of the input ends it: it unmounts and leaves, so a disk does not outlive whoever uses
//! it, however that ended.

use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::disk::{Corruption, Counters, Disk, Entry, PowerCut, Survival};
use crate::mount::{self, Mount};
use crate::rules::Rule;

/// No answer is longer.
const LINE_BYTES_MAX: u64 = 16 << 20;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "command")]
pub enum Command {
    Counters,
    List,
    AddRule {
        rule: Rule,
    },
    ClearRules,
    SetCapacity {
        bytes: Option<u64>,
    },
    UsedBytes,
    /// Nothing comes back and nothing becomes durable from now on.
    PowerOff,
    /// Drops what was not synced and mounts again.
    PowerOn {
        survival: Survival,
        seed: u64,
    },
    Corrupt {
        path: String,
        at: u64,
        len: u64,
        how: Corruption,
        seed: u64,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    Done,
    Counters(Counters),
    Files(Vec<Entry>),
    Bytes(u64),
    PowerCut(PowerCut),
    Failed(String),
}

/// Mounts an empty disk at `at` and obeys until the input ends. The first answer comes unasked,
/// when it is mounted.
pub fn serve(
    files: &Path,
    at: &Path,
    through: bool,
    input: impl BufRead,
    mut output: impl Write,
) -> io::Result<()> {
    mount::remove_leftovers()?;
    let mut mount = Mount::new(Arc::new(Disk::create(files, through)?), at)?;
    let mut say = |answer: &Answer| -> io::Result<()> {
        let mut line = serde_json::to_vec(answer)?;
        line.push(b'\n');
        output.write_all(&line)?;
        output.flush()
    };
    say(&Answer::Done)?;
    for line in input.lines() {
        let outcome =
            line.and_then(|line| Ok(serde_json::from_str(&line)?)).and_then(|it| obey(&mut mount, it));
        // Whoever is gone does not read the answer, and then the input ends as well.
        let _ = say(&outcome.unwrap_or_else(|error| Answer::Failed(error.to_string())));
    }
    mount.unmount()?;
    mount.disk().leave_tree().map(|_| ())
}

fn obey(mount: &mut Mount, command: Command) -> io::Result<Answer> {
    match command {
        Command::Counters => return Ok(Answer::Counters(mount.disk().counters())),
        Command::List => return Ok(Answer::Files(mount.disk().list())),
        Command::UsedBytes => return Ok(Answer::Bytes(mount.disk().used_bytes())),
        Command::PowerOn { survival, seed } => return Ok(Answer::PowerCut(mount.cut_power(survival, seed)?)),
        Command::Corrupt { path, at, len, how, seed } => {
            return Ok(Answer::Bytes(mount.corrupt(&path, at, len, how, seed)?));
        }
        Command::AddRule { rule } => mount.disk().add_rule(rule),
        Command::ClearRules => mount.clear_rules(),
        Command::SetCapacity { bytes } => mount.disk().set_capacity(bytes),
        Command::PowerOff => mount.disk().power_off(),
    }
    Ok(Answer::Done)
}

/// A child process that serves a disk. Dropping it ends the disk in order.
#[derive(Debug)]
pub struct DiskProcess {
    child: Child,
    commands: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    at: PathBuf,
}

impl DiskProcess {
    /// `program` must end up in [`serve`]. Returns when the disk is mounted.
    pub fn start(mut program: std::process::Command, at: &Path) -> io::Result<Self> {
        let mut child = program.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (Some(commands), Some(answers)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(io::Error::other("the disk's process has no pipes"));
        };
        let mut disk =
            Self { child, commands: Some(commands), answers: BufReader::new(answers), at: at.to_owned() };
        disk.answer()?;
        Ok(disk)
    }

    /// Where it is mounted.
    pub fn at(&self) -> &Path {
        &self.at
    }

    pub fn ask(&mut self, command: &Command) -> io::Result<Answer> {
        let commands = self.commands.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        let mut line = serde_json::to_vec(command)?;
        line.push(b'\n');
        commands.write_all(&line)?;
        commands.flush()?;
        self.answer()
    }

    pub fn counters(&mut self) -> io::Result<Counters> {
        match self.ask(&Command::Counters)? {
            Answer::Counters(counters) => Ok(counters),
            other => Err(unexpected(&other)),
        }
    }

    pub fn files(&mut self) -> io::Result<Vec<Entry>> {
        match self.ask(&Command::List)? {
            Answer::Files(files) => Ok(files),
            other => Err(unexpected(&other)),
        }
    }

    pub fn used_bytes(&mut self) -> io::Result<u64> {
        match self.ask(&Command::UsedBytes)? {
            Answer::Bytes(bytes) => Ok(bytes),
            other => Err(unexpected(&other)),
        }
    }

    pub fn power_on(&mut self, survival: Survival, seed: u64) -> io::Result<PowerCut> {
        match self.ask(&Command::PowerOn { survival, seed })? {
            Answer::PowerCut(cut) => Ok(cut),
            other => Err(unexpected(&other)),
        }
    }

    /// Answers how many bytes changed.
    pub fn corrupt(&mut self, path: &str, at: u64, len: u64, how: Corruption, seed: u64) -> io::Result<u64> {
        match self.ask(&Command::Corrupt { path: path.to_owned(), at, len, how, seed })? {
            Answer::Bytes(changed) => Ok(changed),
            other => Err(unexpected(&other)),
        }
    }

    fn answer(&mut self) -> io::Result<Answer> {
        use std::io::Read as _;
        let mut line = String::new();
        self.answers.by_ref().take(LINE_BYTES_MAX).read_line(&mut line)?;
        if line.is_empty() {
            let status = self.child.wait()?;
            return Err(io::Error::other(format!("the disk at {} ended: {status}", self.at.display())));
        }
        match serde_json::from_str(&line)? {
            Answer::Failed(why) => Err(io::Error::other(format!("the disk at {}: {why}", self.at.display()))),
            answer => Ok(answer),
        }
    }
}

impl Drop for DiskProcess {
    fn drop(&mut self) {
        self.commands = None;
        let _ = self.child.wait();
    }
}

fn unexpected(answer: &Answer) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the disk answered {answer:?}"))
}
