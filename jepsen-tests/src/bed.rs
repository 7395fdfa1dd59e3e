//! A cluster of real processes for one test, in a directory that is kept when the test fails.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use ledgermq::cluster::{Cluster, ClusterPlan};

use crate::python::build_folder;

const READY_WITHIN: Duration = Duration::from_secs(60);

/// Runs the tests against this binary instead of the one of this build.
const BINARY_VARIABLE: &str = "LEDGERMQ_BINARY";

/// The `ledgermq` binary of this build; built here only where `cargo test` was asked for this
/// package alone and nobody has built it yet.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(BINARY_VARIABLE) {
        return Ok(path.into());
    }
    let path = build_folder()?.join("ledgermq");
    if !path.exists() {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let status = Command::new(cargo).args(["build", "--package", "ledgermq"]).status()?;
        ensure!(status.success(), "building the ledgermq binary ended with {status}");
    }
    ensure!(path.exists(), "there is no {}", path.display());
    Ok(path)
}

pub struct Bed {
    pub cluster: Cluster,
    files: Files,
}

impl Bed {
    pub async fn make(change: impl FnOnce(&mut ClusterPlan)) -> Result<Self> {
        let files = Files::make()?;
        let mut plan = ClusterPlan::new(binary()?, &files.path);
        change(&mut plan);
        let groups = plan.groups;
        let mut cluster = Cluster::start(plan)?;
        cluster.wait_ready(READY_WITHIN).await?;
        for group in 1..=groups {
            cluster.wait_leader(group, READY_WITHIN).await?;
        }
        Ok(Self { cluster, files })
    }

    /// What `ledgermq admin` answers in JSON, asked at the brokers.
    pub fn admin(&self, arguments: &[&str]) -> Result<serde_json::Value> {
        let output = Command::new(binary()?)
            .args(["admin", "--json", "--endpoint", &self.cluster.broker_access_points()])
            .args(arguments)
            .output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "admin {arguments:?}: {text}{error}");
        serde_json::from_str(&text).with_context(|| format!("admin {arguments:?} printed {text}"))
    }

    /// Stops the processes and removes their files. A test that ends without it keeps them.
    pub async fn passed(self) -> Result<()> {
        self.cluster.stop(Duration::from_secs(10)).await?;
        self.files.remove()
    }
}

/// The logs and data of the processes.
struct Files {
    path: PathBuf,
    removed: bool,
}

impl Files {
    fn make() -> Result<Self> {
        let path = tempfile::Builder::new().prefix("ledgermq-test-").tempdir()?.keep();
        Ok(Self { path, removed: false })
    }

    fn remove(mut self) -> Result<()> {
        std::fs::remove_dir_all(&self.path)?;
        self.removed = true;
        Ok(())
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        if !self.removed {
            eprintln!("the cluster's logs and data are kept in {}", self.path.display());
        }
    }
}
