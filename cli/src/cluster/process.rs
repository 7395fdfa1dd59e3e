//! A member as a process, whoever runs it: a child of this process, or a container.

use std::process::ExitStatus;
use std::time::Duration;

use anyhow::Context as _;

use super::child::ChildProcess;
use super::container::Container;

pub(super) enum Process {
    Child(ChildProcess),
    Container(Container),
}

impl Process {
    /// Its id on the machine it runs on.
    pub fn pid(&self) -> u32 {
        match self {
            Self::Child(child) => child.pid(),
            Self::Container(container) => container.pid(),
        }
    }

    /// Another one after every start.
    pub fn incarnation(&self) -> String {
        match self {
            Self::Child(child) => format!("process {}", child.pid()),
            Self::Container(container) => container.incarnation(),
        }
    }

    pub fn exited(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        match self {
            Self::Child(child) => child.exited(),
            Self::Container(container) => container.exited(),
        }
    }

    /// As far as that is known without asking anybody else.
    pub fn is_down(&mut self) -> anyhow::Result<bool> {
        match self {
            Self::Child(child) => Ok(child.exited()?.is_some()),
            Self::Container(container) => Ok(container.is_down()),
        }
    }

    /// SIGKILL without waiting: a process that waits for its disk ends only when that answers.
    pub fn send_kill(&mut self) -> anyhow::Result<()> {
        match self {
            Self::Child(child) => child.send_kill(),
            Self::Container(container) => Container::kill(&mut [container]),
        }
    }

    pub fn kill(&mut self) -> anyhow::Result<()> {
        match self {
            Self::Child(child) => child.kill(),
            Self::Container(container) => Container::kill(&mut [container]),
        }
    }

    pub fn pause(&mut self) -> anyhow::Result<()> {
        match self {
            Self::Child(child) => child.signal(libc::SIGSTOP),
            Self::Container(container) => Container::pause(&mut [container]),
        }
    }

    pub fn resume(&mut self) -> anyhow::Result<()> {
        match self {
            Self::Child(child) => child.signal(libc::SIGCONT),
            Self::Container(container) => Container::resume(&mut [container]),
        }
    }

    /// Whether it is stopped, as whoever runs it says.
    pub fn stands_still(&self) -> anyhow::Result<bool> {
        match self {
            Self::Child(child) => Ok(super::probe::process_state(child.pid())? == Some('T')),
            Self::Container(container) => container.stands_still(),
        }
    }

    /// SIGTERM, and its end.
    pub async fn terminate(&mut self, within: Duration) -> anyhow::Result<ExitStatus> {
        match self {
            Self::Child(child) => {
                child.signal(libc::SIGTERM)?;
                let ended = child.wait(within).await?;
                ended.with_context(|| format!("still runs {} ms after SIGTERM", within.as_millis()))
            }
            Self::Container(container) => container.terminate(within).await,
        }
    }

    pub async fn wait(&mut self, within: Duration) -> anyhow::Result<Option<ExitStatus>> {
        match self {
            Self::Child(child) => child.wait(within).await,
            Self::Container(container) => container.wait(within).await,
        }
    }
}

/// Does the same to all of them: to children one after the other, to containers by one command.
pub(super) fn to_all(
    processes: Vec<&mut Process>,
    child: fn(&mut ChildProcess) -> anyhow::Result<()>,
    containers: fn(&mut [&mut Container]) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut together = Vec::new();
    for process in processes {
        match process {
            Process::Child(alone) => child(alone)?,
            Process::Container(container) => together.push(container),
        }
    }
    if together.is_empty() { Ok(()) } else { containers(&mut together) }
}
