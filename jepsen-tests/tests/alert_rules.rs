//! The alert rules and the scrape configuration, judged by Prometheus' own `promtool`: that they are
//! valid, and that an alert speaks when it should and is silent when it should not.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/prometheus")
}

/// Ends the test where the tool is missing; in CI it must not be.
fn promtool(arguments: &[&str], folder: &Path) -> Result<Option<String>> {
    let output = match Command::new("promtool").args(arguments).current_dir(folder).output() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            ensure!(std::env::var_os("CI").is_none(), "there is no promtool; Debian has it in `prometheus`");
            eprintln!("left out: this machine has no promtool");
            return Ok(None);
        }
        other => other.context("running promtool")?,
    };
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "promtool {arguments:?}: {text}");
    Ok(Some(text))
}

#[test]
fn the_rules_are_valid_and_speak_when_they_should() -> Result<()> {
    let Some(said) = promtool(&["check", "rules", "rules.yml"], &folder())? else { return Ok(()) };
    let alerts = std::fs::read_to_string(folder().join("rules.yml"))?.matches("- alert:").count();
    ensure!(said.contains(&format!("{alerts} rules found")), "{said}");
    promtool(&["test", "rules", "rules_test.yml"], &folder())?;
    Ok(())
}

#[test]
fn the_scrape_configuration_is_valid_with_its_rules() -> Result<()> {
    // In the container the rules lie elsewhere.
    let copy = tempfile::tempdir()?;
    let rules = copy.path().join("rules.yml");
    std::fs::copy(folder().join("rules.yml"), &rules)?;
    let configuration = std::fs::read_to_string(folder().join("prometheus.yml"))?;
    ensure!(configuration.contains("/etc/prometheus/rules.yml"), "the rules are loaded");
    let here = configuration.replace("/etc/prometheus/rules.yml", &rules.display().to_string());
    std::fs::write(copy.path().join("prometheus.yml"), here)?;
    promtool(&["check", "config", "prometheus.yml"], copy.path())?;
    Ok(())
}
