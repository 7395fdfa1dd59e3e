//! The `docker` command line: it knows contexts, remote daemons and their keys, which a socket of
//! our own would not.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use serde::Deserialize;

/// Longer than the daemon itself waits for a container that it stops.
const COMMAND_WITHIN: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(2);
pub(super) const PROJECT_LABEL: &str = "com.docker.compose.project";

pub(super) struct Output {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

/// Runs a command to its end, or kills it when it takes too long.
pub(super) fn run(mut command: Command, within: Duration) -> anyhow::Result<Output> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // Ctrl-C is for this process, which then takes everything down in order.
    command.process_group(0);
    let program = command.get_program().to_string_lossy().into_owned();
    let mut child = command.spawn().with_context(|| format!("cannot run {program}"))?;
    let drain = |stream: Option<Box<dyn std::io::Read + Send>>| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            if let Some(mut stream) = stream {
                let _ = stream.read_to_end(&mut bytes);
            }
            String::from_utf8_lossy(&bytes).into_owned()
        })
    };
    let stdout = drain(child.stdout.take().map(|stream| Box::new(stream) as _));
    let stderr = drain(child.stderr.take().map(|stream| Box::new(stream) as _));
    let deadline = Instant::now() + within;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            bail!("{program} did not end within {} s", within.as_secs());
        }
        std::thread::sleep(POLL);
    };
    let text = |thread: std::thread::JoinHandle<String>| thread.join().unwrap_or_default();
    Ok(Output { status, stdout: text(stdout), stderr: text(stderr) })
}

/// What `docker` prints; an error with what it complains about.
pub(super) fn docker(arguments: &[&str]) -> anyhow::Result<String> {
    docker_within(arguments, COMMAND_WITHIN)
}

pub(super) fn docker_within(arguments: &[&str], within: Duration) -> anyhow::Result<String> {
    let mut command = Command::new("docker");
    command.args(arguments);
    let output = run(command, within)?;
    if !output.status.success() {
        bail!("docker {}: {}", arguments.first().unwrap_or(&""), output.stderr.trim());
    }
    Ok(output.stdout)
}

/// An error that says why there is no daemon to talk to.
pub(super) fn reachable() -> anyhow::Result<()> {
    docker(&["version", "--format", "{{.Server.Version}}"]).map(|_| ()).context("docker cannot be reached")
}

/// `docker compose` or the older `docker-compose`.
pub(super) fn compose() -> anyhow::Result<Vec<&'static str>> {
    for words in [&["docker", "compose"][..], &["docker-compose"][..]] {
        let mut command = Command::new(words.first().unwrap_or(&"docker"));
        command.args(words.get(1..).unwrap_or_default()).arg("version");
        if run(command, COMMAND_WITHIN).is_ok_and(|output| output.status.success()) {
            return Ok(words.to_vec());
        }
    }
    bail!("there is neither `docker compose` nor `docker-compose`")
}

/// Ids or names that `docker KIND ls` gives for a label.
pub(super) fn labelled(kind: &str, label: &str) -> anyhow::Result<Vec<String>> {
    let filter = format!("label={label}");
    let format = if kind == "container" { "{{.ID}}" } else { "{{.Name}}" };
    let mut arguments = vec![kind, "ls", "--filter", &filter, "--format", format];
    if kind == "container" {
        arguments.extend(["--all", "--no-trunc"]);
    }
    Ok(docker(&arguments)?.split_whitespace().map(str::to_owned).collect())
}

/// What `docker inspect` says of a container, as far as it matters here.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Inspected {
    pub id: String,
    pub state: State,
    pub config: Config,
    pub network_settings: NetworkSettings,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct State {
    /// `running`, `paused`, `exited` and some more.
    pub status: String,
    pub pid: u32,
    pub exit_code: i32,
    pub started_at: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Config {
    #[serde(default)]
    pub entrypoint: Option<Vec<String>>,
    #[serde(default)]
    pub cmd: Option<Vec<String>>,
    #[serde(default)]
    pub env: Option<Vec<String>>,
    #[serde(default)]
    pub healthcheck: Option<Healthcheck>,
    #[serde(default)]
    pub labels: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Healthcheck {
    #[serde(default)]
    pub test: Vec<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct NetworkSettings {
    #[serde(default)]
    pub ports: BTreeMap<String, Option<Vec<Binding>>>,
    #[serde(default)]
    pub networks: BTreeMap<String, Attached>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Binding {
    pub host_ip: String,
    pub host_port: String,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Attached {
    #[serde(rename = "IPAddress", default)]
    pub address: String,
    #[serde(rename = "Gateway", default)]
    pub gateway: String,
}

pub(super) fn inspect(ids: &[String]) -> anyhow::Result<Vec<Inspected>> {
    let mut arguments = vec!["container", "inspect"];
    arguments.extend(ids.iter().map(String::as_str));
    serde_json::from_str(&docker(&arguments)?).context("docker inspect printed something unknown")
}
