//! A cluster of real processes for one test, in a directory that is kept when the test fails.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ledgermq::cluster::{Cluster, ClusterPlan};
use tempfile::TempDir;

use crate::python::build_folder;

const READY_WITHIN: Duration = Duration::from_secs(60);

/// The `ledgermq` binary of this build; built here only where `cargo test` was asked for this
/// package alone and nobody has built it yet.
pub fn binary() -> Result<PathBuf> {
    let path = build_folder()?.join("ledgermq");
    if !path.exists() {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let status = Command::new(cargo).args(["build", "--package", "ledgermq"]).status()?;
        ensure!(status.success(), "building the ledgermq binary ended with {status}");
    }
    ensure!(path.exists(), "there is no {}", path.display());
    Ok(path)
}

/// Keeps the cluster's directory until the test says that it passed.
pub struct Bed {
    pub cluster: Cluster,
    dir: Option<TempDir>,
}

impl Bed {
    pub async fn make(change: impl FnOnce(&mut ClusterPlan)) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("ledgermq-test-").tempdir()?;
        let mut plan = ClusterPlan::new(binary()?, dir.path());
        change(&mut plan);
        let groups = plan.groups;
        let mut cluster = Cluster::start(plan)?;
        cluster.wait_ready(READY_WITHIN).await?;
        for group in 1..=groups {
            cluster.wait_leader(group, READY_WITHIN).await?;
        }
        Ok(Self { cluster, dir: Some(dir) })
    }

    /// Stops the processes and removes their files.
    pub async fn passed(mut self) -> Result<()> {
        let dir = self.dir.take().context("a bed passes once")?;
        let Self { cluster, .. } = self;
        cluster.stop(Duration::from_secs(10)).await?;
        dir.close()?;
        Ok(())
    }
}

impl Bed {
    /// Where the processes of a failed test left their logs and data.
    pub fn keep(&mut self) -> Option<PathBuf> {
        self.dir.take().map(TempDir::keep)
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Some(path) = self.keep()
        {
            eprintln!("the cluster's logs and data are kept in {}", path.display());
        }
    }
}
