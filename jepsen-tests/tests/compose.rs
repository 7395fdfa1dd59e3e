//! The chaos harness on a compose cluster: faults happen to real containers, and nothing is left, also
//! not of a harness that was killed. And the files themselves: five brokers are what three are. Left
//! out, with the reason, where there is no docker or no compose.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ledgermq_jepsen_tests::bed::binary;

const UP_WITHIN: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(100);
const COMPOSE: [&[&str]; 2] = [&["docker", "compose"], &["docker-compose"]];
const THREE: &[&str] = &["docker-compose.yml"];
const FIVE: &[&str] = &["docker-compose.yml", "docker-compose.five.yml"];
/// A broker's port on the host, where nothing else has a number like it.
const PORT_BASE: u64 = 31_700;

fn has_compose(words: &[&str]) -> bool {
    succeeds(words[0], &[&words[1..], &["version"]].concat())
}

/// What these files of `deploy`, laid over each other, mean to compose.
fn meant(words: &[&str], files: &[&str]) -> Result<String> {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy"));
    for file in files {
        command.args(["--file", file]);
    }
    for broker in 1..=5 {
        command.env(format!("LEDGERMQ_PORT_BROKER_{broker}"), (PORT_BASE + broker).to_string());
    }
    let output = command.arg("config").output().with_context(|| format!("running {words:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{words:?} refuses {files:?}: {said}");
    Ok(String::from_utf8(output.stdout)?)
}

/// Each service with its lines, and a broker's own number and port taken out of them.
fn services(config: &str) -> BTreeMap<String, String> {
    let mut found: BTreeMap<String, String> = BTreeMap::new();
    let mut name = String::new();
    let of_services = config.lines().skip_while(|line| *line != "services:").skip(1);
    for line in of_services.take_while(|line| line.starts_with(' ')) {
        match line.strip_prefix("  ").and_then(|line| line.strip_suffix(':')) {
            Some(service) if !service.starts_with(' ') => name = service.to_owned(),
            _ => {
                let mut line = line.replace(&name, "SERVICE");
                if let Some(number) = name.strip_prefix("broker-") {
                    let port = PORT_BASE + number.parse::<u64>().unwrap_or_default();
                    line = line.replace(&port.to_string(), "PORT");
                    if line.contains("NODE__ID") {
                        line = line.replace(number, "NUMBER");
                    }
                }
                found.entry(name.clone()).or_default().push_str(&(line + "\n"));
            }
        }
    }
    found
}

#[test]
fn five_brokers_are_each_what_one_of_three_is_but_for_the_list_of_nodes() -> Result<()> {
    for words in COMPOSE {
        if !has_compose(words) {
            eprintln!("left out: there is no {}", words.join(" "));
            continue;
        }
        let (three, five) = (services(&meant(words, THREE)?), services(&meant(words, FIVE)?));
        let names: Vec<_> = five.keys().map(String::as_str).collect();
        ensure!(
            names == ["broker-1", "broker-2", "broker-3", "broker-4", "broker-5", "nameserver"],
            "{names:?}"
        );
        ensure!(three.len() == 4 && three["nameserver"] == five["nameserver"], "{three:#?}");
        let one = &three["broker-1"];
        for what in ["NODE__ID: ", "PORT", "SERVICE", "/compose/broker.toml"] {
            ensure!(one.contains(what), "a broker without {what}: {one}");
        }
        let one_of_five = one.replace("/compose/broker.toml", "/compose/broker.five.toml");
        for (name, broker) in five.iter().filter(|(name, _)| *name != "nameserver") {
            ensure!(*broker == one_of_five, "{name} is\n{broker}\nand not\n{one_of_five}");
            ensure!(three.get(name).is_none_or(|of_three| of_three == one), "{name} of three is another");
        }
    }
    Ok(())
}

fn succeeds(program: &str, arguments: &[&str]) -> bool {
    let quiet = Command::new(program).args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).status();
    quiet.is_ok_and(|status| status.success())
}

fn docker(arguments: &[&str]) -> Result<String> {
    let output = Command::new("docker").args(arguments).output().context("running docker")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "docker {arguments:?}: {said}");
    Ok(String::from_utf8(output.stdout)?)
}

/// Containers, volumes and networks of projects that a process with this id brought up.
fn left_by(pid: u32) -> Result<Vec<String>> {
    let mut left = Vec::new();
    for kind in ["container", "volume", "network"] {
        let format = "{{.Label \"com.docker.compose.project\"}}";
        let mut arguments = vec![kind, "ls", "--format", format];
        if kind == "container" {
            arguments.push("--all");
        }
        let projects = docker(&arguments)?;
        let ours = |project: &&str| {
            project.starts_with("ledgermq-chaos-") && project.split('-').nth(3) == Some(&pid.to_string())
        };
        left.extend(projects.lines().filter(ours).map(|project| format!("{kind} of {project}")));
    }
    Ok(left)
}

/// The binary of this build as an image, for as long as the test runs.
struct Image(String);

impl Image {
    fn pack() -> Result<Self> {
        let name = format!("ledgermq:test-{}", std::process::id());
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/pack.sh");
        let output = Command::new(script).env("BINARY", binary()?).env("IMAGE", &name).output()?;
        ensure!(output.status.success(), "pack.sh: {}", String::from_utf8_lossy(&output.stderr));
        Ok(Self(name))
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = docker(&["image", "rm", &self.0]);
    }
}

fn start(scenario: &str, image: &Image, out: &Path) -> Result<Child> {
    let briefly = ["--injections", "1", "--duration", "40", "--rate", "100", "--seed", "3"];
    Command::new(binary()?)
        .args(["chaos", "run", "--cluster", "compose", "--json", "--image", &image.0])
        .args(["--scenario", scenario, "--fault-ms", "2500", "--pause-ms", "500"])
        .args(briefly)
        .arg("--out")
        .arg(out)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("running ledgermq chaos run")
}

#[test]
fn faults_happen_to_containers_and_nothing_is_left_of_a_run_that_was_killed() -> Result<()> {
    if !succeeds("docker", &["info"]) || !COMPOSE.into_iter().any(has_compose) {
        eprintln!("left out: there is no docker daemon with compose");
        return Ok(());
    }
    let image = Image::pack()?;
    if !succeeds("docker", &["run", "--rm", &image.0, "--version"]) {
        eprintln!("left out: this docker daemon cannot run a container");
        return Ok(());
    }
    let folder = tempfile::tempdir()?;

    let mut killed = start("kill-leader", &image, &folder.path().join("killed"))?;
    let deadline = Instant::now() + UP_WITHIN;
    while left_by(killed.id())?.iter().filter(|left| left.starts_with("container")).count() < 4 {
        if let Some(status) = killed.try_wait()? {
            let output = killed.wait_with_output()?;
            bail!("{status}: {}", String::from_utf8_lossy(&output.stderr));
        }
        ensure!(Instant::now() < deadline, "the containers of the first run do not come up");
        std::thread::sleep(POLL);
    }
    let pid = killed.id();
    killed.kill()?;
    killed.wait()?;
    ensure!(!left_by(pid)?.is_empty(), "a killed run cannot have cleaned up");

    let can_cut = succeeds("nft", &["list", "tables"]);
    for scenario in ["kill-leader", "isolate-leader"] {
        if scenario == "isolate-leader" && !can_cut {
            eprintln!("left out: links of containers are cut by root with nft");
            continue;
        }
        let out = folder.path().join(scenario);
        let run = start(scenario, &image, &out)?;
        let of_this = run.id();
        let output = run.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "{scenario}: {}\n{said}", output.status);
        let report: serde_json::Value = serde_json::from_slice(&output.stdout)?;
        ensure!(report["outcome"] == "valid" && report["injections"] == 1, "{report:#}");
        ensure!(report["without_success"] == 0, "the cluster came back: {report:#}");
        ensure!(report["election"]["ready_ms"]["count"] == 1, "the logs say who led next: {report:#}");
        let proofs = std::fs::read_to_string(out.join("faults.txt"))?;
        if scenario == "kill-leader" {
            ensure!(proofs.contains("ended by SIGKILL; then process"), "{proofs}");
        } else {
            ensure!(proofs.contains("packets dropped") && !proofs.contains(" 0 packets dropped"), "{proofs}");
        }
        for process in [pid, of_this] {
            let left = left_by(process)?;
            ensure!(left.is_empty(), "{left:?}");
        }
    }
    Ok(())
}
