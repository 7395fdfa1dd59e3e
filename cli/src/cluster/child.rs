//! One child process: started so that it cannot outlive its parent, signalled by its id only.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::RawFd;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use tokio::time::Instant;

const EXIT_POLL: Duration = Duration::from_millis(5);

pub(super) struct ChildProcess {
    child: Child,
    ended: Option<ExitStatus>,
}

impl ChildProcess {
    /// Output goes to the end of `log`. The child has a process group of its own, so that Ctrl-C
    /// reaches only the parent, which then stops its children in order.
    pub fn start(
        binary: &Path,
        arguments: &[OsString],
        environment: &[(&str, OsString)],
        namespace: Option<RawFd>,
        log: &Path,
    ) -> anyhow::Result<Self> {
        let log_file = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("cannot open the log file {}", log.display()))?;
        let mut command = Command::new(binary);
        command
            .args(arguments)
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log_file.try_clone()?)
            .stderr(log_file)
            .process_group(0);
        let parent = std::process::id();
        // SAFETY: between fork and exec only prctl, getppid, setns and _exit run, all async-signal-safe.
        unsafe {
            command.pre_exec(move || {
                die_with_parent(parent)?;
                namespace.map_or(Ok(()), ledgermq_faultnet::enter)
            });
        }
        let child = command.spawn().with_context(|| format!("cannot run {}", binary.display()))?;
        Ok(Self { child, ended: None })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn exited(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait()?;
        }
        Ok(self.ended)
    }

    /// SIGKILL, and waits until the process is gone.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        if self.exited()?.is_none() {
            self.child.kill()?;
            self.ended = Some(self.child.wait()?);
        }
        Ok(())
    }

    /// SIGKILL without waiting: a process that waits for its disk ends only when that answers.
    pub fn send_kill(&mut self) -> anyhow::Result<()> {
        if self.exited()?.is_none() {
            self.child.kill()?;
        }
        Ok(())
    }

    /// An error if the process has ended: its id may belong to another by now.
    pub fn signal(&mut self, signal: libc::c_int) -> anyhow::Result<()> {
        if let Some(status) = self.exited()? {
            anyhow::bail!("process {} has ended with {status}", self.pid());
        }
        let pid = libc::pid_t::try_from(self.pid()).context("process id out of range")?;
        // SAFETY: kill takes no memory. The process is our child and not yet waited for, so the id
        // is still its own.
        match unsafe { libc::kill(pid, signal) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()).context("cannot signal a child process"),
        }
    }

    pub async fn wait(&mut self, within: Duration) -> anyhow::Result<Option<ExitStatus>> {
        let deadline = Instant::now() + within;
        loop {
            let ended = self.exited()?;
            if ended.is_some() || Instant::now() >= deadline {
                return Ok(ended);
            }
            tokio::time::sleep(EXIT_POLL).await;
        }
    }
}

impl Drop for ChildProcess {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            tracing::warn!(pid = self.pid(), "child process not stopped: {error:#}");
        }
    }
}

fn die_with_parent(parent: u32) -> std::io::Result<()> {
    // SAFETY: prctl with these arguments reads no memory.
    if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    // The parent may have died between fork and prctl; then no signal will come.
    if std::os::unix::process::parent_id() != parent {
        // SAFETY: ends the process without running anything of the parent's.
        unsafe { libc::_exit(1) };
    }
    Ok(())
}
