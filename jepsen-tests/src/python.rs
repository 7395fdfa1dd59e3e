//! The unmodified Python SDK: its virtual environment and its programs.
//!
//! The environment is made once below the build directory and named by the hash of its
//! requirements, so a changed pin makes a new one.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, bail, ensure};

/// The folder with the programs and `requirements.txt`.
pub fn programs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("python")
}

/// The interpreter of the SDK's environment. `None` where the machine has no Python and nothing
/// forbids skipping; under `CI=true` that is an error.
pub fn interpreter() -> Result<Option<PathBuf>> {
    static MADE: OnceLock<std::result::Result<Option<PathBuf>, String>> = OnceLock::new();
    MADE.get_or_init(|| make_environment().map_err(|error| format!("{error:#}")))
        .clone()
        .map_err(anyhow::Error::msg)
}

fn make_environment() -> Result<Option<PathBuf>> {
    if Command::new("python3").arg("--version").output().is_err() {
        ensure!(
            std::env::var_os("CI").is_none_or(|value| value != "true"),
            "python3 is missing, and CI=true forbids skipping the Python SDK"
        );
        return Ok(None);
    }
    let requirements = programs().join("requirements.txt");
    let text = std::fs::read(&requirements).with_context(|| format!("reading {}", requirements.display()))?;
    let folder = build_folder()?.join(format!("python-sdk-{:08x}", fnv1a(&text)));
    let python = folder.join("bin/python");
    let complete = folder.join("complete");
    if complete.exists() {
        return Ok(Some(python));
    }
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder))?;
    run(Command::new(&python)
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"])
        .arg(&requirements))?;
    // Written last: an environment whose installation was interrupted is made again.
    std::fs::write(&complete, b"")?;
    Ok(Some(python))
}

/// `target/<profile>`: two levels above this test's executable.
pub fn build_folder() -> Result<PathBuf> {
    let exe = std::env::current_exe()?;
    let deps = exe.parent().context("the executable has no folder")?;
    Ok(deps.parent().unwrap_or(deps).to_path_buf())
}

fn fnv1a(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("starting {command:?}"))?;
    if !output.status.success() {
        bail!(
            "{command:?} ended with {}: {}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}
