//! A member that is a container of a compose project. The daemon starts, stops and kills it; this
//! process only asks, and asks again what became of it.
//!
//! | Fault | Command | Proof |
//! |---|---|---|
//! | kill | `docker kill --signal KILL` | not running, exit code 137; after `docker start` another process that started later |
//! | stop | `docker pause`: the freezer | status `paused`, then `running` |
//! | term | `docker stop` | exit code 0 |
//!
//! A container that ended by itself may have been started again by its restart policy: then the time
//! it started at is another.

use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use tokio::time::Instant;

use super::Member;
use super::docker::{self, Inspected, docker};

const ENDS_WITHIN: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(10);
const HEALTH_WITHIN: Duration = Duration::from_secs(5);
/// The port clients use, where a container publishes several.
const CLIENT_PORT: &str = "8081/tcp";
const NODE_VARIABLE: &str = "LEDGERMQ_BROKER__NODE__ID=";
const SERVICE_LABEL: &str = "com.docker.compose.service";
/// Exit codes above say by which signal a process ended.
const SIGNAL_CODES: i32 = 128;

pub(super) struct Container {
    id: String,
    name: String,
    /// Leave it as it was found.
    is_borrowed: bool,
    pid: u32,
    started_at: String,
    health_check: Vec<String>,
    is_paused: bool,
    ended: Option<ExitStatus>,
}

impl Container {
    /// A running one.
    pub fn of(inspected: &Inspected, is_borrowed: bool) -> anyhow::Result<Self> {
        let name = service(inspected);
        let status = &inspected.state.status;
        ensure!(status == "running", "{name} is {status}, not running; bring it up first");
        let health_check = inspected.config.healthcheck.as_ref().map(|check| check.test.clone());
        let health_check = match health_check.as_deref() {
            Some([kind, command @ ..]) if kind == "CMD" && !command.is_empty() => command.to_vec(),
            _ => bail!("{name} has no health check of the form CMD, so nobody knows when it serves"),
        };
        Ok(Self {
            id: inspected.id.clone(),
            name,
            is_borrowed,
            pid: inspected.state.pid,
            started_at: inspected.state.started_at.clone(),
            health_check,
            is_paused: false,
            ended: None,
        })
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Which life of the container this is.
    pub fn incarnation(&self) -> String {
        format!("process {} of {}", self.pid, self.started_at)
    }

    fn look(&self) -> anyhow::Result<Inspected> {
        let found = docker::inspect(std::slice::from_ref(&self.id))?;
        found.into_iter().next().with_context(|| format!("there is no container {}", self.id))
    }

    pub fn exited(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        if self.ended.is_some() {
            return Ok(self.ended);
        }
        let state = self.look()?.state;
        match state.status.as_str() {
            "running" | "paused" => ensure!(
                state.started_at == self.started_at,
                "{} ended by itself and was started again by docker at {}",
                self.name,
                state.started_at
            ),
            "restarting" | "exited" | "dead" => self.ended = Some(status_of(state.exit_code)),
            _ => {}
        }
        Ok(self.ended)
    }

    /// What this process knows without asking.
    pub fn is_down(&self) -> bool {
        self.ended.is_some()
    }

    /// All of them at once, as far as one command can.
    pub fn kill(containers: &mut [&mut Self]) -> anyhow::Result<()> {
        command("kill", &["--signal", "KILL"], containers)?;
        let deadline = std::time::Instant::now() + ENDS_WITHIN;
        for container in containers {
            while container.exited()?.is_none() {
                ensure!(std::time::Instant::now() < deadline, "{} still runs after SIGKILL", container.name);
                std::thread::sleep(POLL);
            }
            container.is_paused = false;
        }
        Ok(())
    }

    pub fn pause(containers: &mut [&mut Self]) -> anyhow::Result<()> {
        command("pause", &[], containers)?;
        containers.iter_mut().for_each(|container| container.is_paused = true);
        Ok(())
    }

    pub fn resume(containers: &mut [&mut Self]) -> anyhow::Result<()> {
        command("unpause", &[], containers)?;
        containers.iter_mut().for_each(|container| container.is_paused = false);
        Ok(())
    }

    pub fn stands_still(&self) -> anyhow::Result<bool> {
        Ok(self.look()?.state.status == "paused")
    }

    /// `docker stop`, which kills after `within`: then the status says so.
    pub async fn terminate(&mut self, within: Duration) -> anyhow::Result<ExitStatus> {
        let seconds = within.as_secs().to_string();
        let output = tokio::process::Command::new("docker")
            .args(["stop", "--time", &seconds, &self.id])
            .stdin(Stdio::null())
            .process_group(0)
            .kill_on_drop(true)
            .output()
            .await
            .context("cannot run docker")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "docker stop {}: {}", self.name, said.trim());
        self.exited()?.with_context(|| format!("{} still runs after docker stop", self.name))
    }

    pub async fn wait(&mut self, within: Duration) -> anyhow::Result<Option<ExitStatus>> {
        let deadline = Instant::now() + within;
        loop {
            let ended = self.exited()?;
            if ended.is_some() || Instant::now() >= deadline {
                return Ok(ended);
            }
            tokio::time::sleep(POLL).await;
        }
    }

    pub fn start(&mut self) -> anyhow::Result<()> {
        docker(&["start", &self.id])?;
        let state = self.look()?.state;
        ensure!(state.status == "running", "{} is {} after docker start", self.name, state.status);
        ensure!(state.started_at != self.started_at, "{} did not start anew", self.name);
        (self.pid, self.started_at, self.ended) = (state.pid, state.started_at, None);
        Ok(())
    }

    /// Asks its own health check; what that says where it is not well.
    pub async fn health(&self) -> Result<(), String> {
        let asked = tokio::process::Command::new("docker")
            .args(["exec", &self.id])
            .args(&self.health_check)
            .stdin(Stdio::null())
            .process_group(0)
            .kill_on_drop(true)
            .output();
        match tokio::time::timeout(HEALTH_WITHIN, asked).await {
            Err(_) => Err("its health check does not answer".to_owned()),
            Ok(Err(error)) => Err(format!("docker exec: {error}")),
            Ok(Ok(output)) if output.status.success() => Ok(()),
            Ok(Ok(output)) => {
                let said = [output.stdout, output.stderr].concat();
                Err(String::from_utf8_lossy(&said).trim().to_owned())
            }
        }
    }

    /// What it wrote since this moment, in seconds since 1970.
    pub fn save_log(&self, since: u64, to: &Path) -> anyhow::Result<()> {
        let file = std::fs::File::create(to).with_context(|| format!("cannot write {}", to.display()))?;
        let status = Command::new("docker")
            .args(["logs", "--since", &since.to_string(), &self.id])
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .status()
            .context("cannot run docker")?;
        ensure!(status.success(), "docker logs {}: {status}", self.name);
        Ok(())
    }
}

impl Drop for Container {
    /// A container of somebody's own cluster runs again afterwards; those of a cluster of ours go
    /// with their project.
    fn drop(&mut self) {
        if !self.is_borrowed {
            return;
        }
        let again = match (self.is_paused, self.is_down()) {
            (true, _) => docker(&["unpause", &self.id]).map(|_| ()),
            (false, true) => docker(&["start", &self.id]).map(|_| ()),
            (false, false) => Ok(()),
        };
        if let Err(error) = again {
            eprintln!("ledgermq: {} could not be brought back: {error:#}", self.name);
        }
    }
}

fn command(verb: &str, flags: &[&str], containers: &[&mut Container]) -> anyhow::Result<()> {
    let mut arguments = vec![verb];
    arguments.extend(flags);
    arguments.extend(containers.iter().map(|container| container.id.as_str()));
    docker(&arguments).map(|_| ())
}

/// As the shell counts: 137 is SIGKILL.
fn status_of(exit_code: i32) -> ExitStatus {
    let signal = exit_code - SIGNAL_CODES;
    ExitStatus::from_raw(if (1..=64).contains(&signal) { signal } else { exit_code << 8 })
}

/// Its name in the compose file.
pub(super) fn service(inspected: &Inspected) -> String {
    let label = inspected.config.labels.as_ref().and_then(|labels| labels.get(SERVICE_LABEL));
    label.cloned().unwrap_or_else(|| inspected.id.chars().take(12).collect())
}

/// Which member a container is, by the command it runs and its node id; `None` where it is none
/// (a dashboard, say).
pub(super) fn member(inspected: &Inspected) -> anyhow::Result<Option<Member>> {
    let config = &inspected.config;
    let words = config.entrypoint.iter().chain(&config.cmd).flatten();
    let Some(command) = words.map(String::as_str).find(|word| matches!(*word, "broker" | "nameserver"))
    else {
        return Ok(None);
    };
    let name = service(inspected);
    let digits = name.trim_end_matches(|c: char| c.is_ascii_digit()).len();
    let numbered = name.get(digits..).and_then(|number| number.parse().ok());
    if command == "nameserver" {
        return Ok(Some(Member::Nameserver(numbered.unwrap_or(1))));
    }
    let told = config.env.iter().flatten().find_map(|variable| variable.strip_prefix(NODE_VARIABLE));
    let number = told.and_then(|number| number.parse().ok()).or(numbered);
    let number = number.with_context(|| format!("which node is {name}? {NODE_VARIABLE}NUMBER says so"))?;
    Ok(Some(Member::Broker(number)))
}

/// `host:port` at which this machine reaches the port of the container that clients use.
pub(super) fn access_point(inspected: &Inspected) -> anyhow::Result<String> {
    let name = service(inspected);
    let published: Vec<_> = inspected
        .network_settings
        .ports
        .iter()
        .filter_map(|(port, bindings)| Some((port, bindings.as_ref()?.first()?)))
        .collect();
    let chosen = match published.as_slice() {
        [] => bail!("{name} publishes no port, so nobody here can be its client"),
        [(_, only)] => only,
        several => several
            .iter()
            .find_map(|(port, binding)| (*port == CLIENT_PORT).then_some(binding))
            .with_context(|| {
                format!("{name} publishes several ports, and {CLIENT_PORT} is not among them")
            })?,
    };
    let everywhere = matches!(chosen.host_ip.as_str(), "" | "0.0.0.0" | "::");
    let host = if everywhere { "127.0.0.1" } else { chosen.host_ip.as_str() };
    Ok(format!("{host}:{}", chosen.host_port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inspected(text: &str) -> Inspected {
        serde_json::from_str(text).unwrap()
    }

    /// What docker 20.10 prints, as far as it is read.
    fn broker(service: &str, env: &str, ports: &str) -> Inspected {
        inspected(&format!(
            r#"{{"Id":"abc","State":{{"Status":"running","Pid":12,"ExitCode":0,"StartedAt":"2026-11-27T09:22:55.9Z"}},
            "Config":{{"Entrypoint":["/ledgermq"],"Cmd":["broker","--config","/etc/broker.toml"],"Env":[{env}],
            "Healthcheck":{{"Test":["CMD","/ledgermq","health"]}},
            "Labels":{{"com.docker.compose.service":"{service}"}}}},
            "NetworkSettings":{{"Ports":{{{ports}}},"Networks":{{"x":{{"IPAddress":"172.19.0.3","Gateway":"172.19.0.1"}}}}}}}}"#
        ))
    }

    const PUBLISHED: &str = r#""8081/tcp":[{"HostIp":"0.0.0.0","HostPort":"28081"}]"#;

    #[test]
    fn a_member_is_known_by_what_it_runs_and_numbered_by_its_node_id() {
        let of = |service, env| member(&broker(service, env, PUBLISHED)).map_err(|error| error.to_string());
        assert_eq!(of("broker-2", "").unwrap(), Some(Member::Broker(2)));
        assert_eq!(of("broker-2", r#""LEDGERMQ_BROKER__NODE__ID=7""#).unwrap(), Some(Member::Broker(7)));
        assert!(of("east", "").unwrap_err().contains("which node is east"));
        let mut dashboard = broker("grafana", "", PUBLISHED);
        dashboard.config.cmd = None;
        assert_eq!(member(&dashboard).unwrap(), None);
        dashboard.config.entrypoint = Some(vec!["/ledgermq".to_owned(), "nameserver".to_owned()]);
        assert_eq!(member(&dashboard).unwrap(), Some(Member::Nameserver(1)));
    }

    #[test]
    fn clients_use_the_published_port() {
        let point = |ports| access_point(&broker("b1", "", ports)).map_err(|error| error.to_string());
        assert_eq!(point(PUBLISHED).unwrap(), "127.0.0.1:28081");
        let two = r#""8083/tcp":[{"HostIp":"10.0.0.1","HostPort":"1"}],"8081/tcp":[{"HostIp":"10.0.0.1","HostPort":"2"}]"#;
        assert_eq!(point(two).unwrap(), "10.0.0.1:2");
        assert!(point(r#""8081/tcp":null"#).unwrap_err().contains("publishes no port"));
    }

    #[test]
    fn exit_codes_of_containers_say_by_which_signal_they_ended() {
        assert_eq!(status_of(137).signal(), Some(9));
        assert!(status_of(0).success());
        assert_eq!((status_of(70).code(), status_of(70).signal()), (Some(70), None));
    }
}
