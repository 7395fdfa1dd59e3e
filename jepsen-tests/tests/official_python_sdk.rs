//! The unmodified Python SDK (rocketmq-python-client 5.1.2) against a cluster of real processes:
//! every kind of access point, plaintext and TLS, simple and push consumer. Bodies, tags, keys and
//! properties must arrive equal.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use ledgermq::cluster::{Cluster, Member};
use ledgermq_jepsen_tests::bed::Bed;
use ledgermq_jepsen_tests::python::{interpreter, programs};

struct Case {
    name: &'static str,
    endpoints: String,
    consumer: &'static str,
    certificate: Option<PathBuf>,
}

fn cases(cluster: &Cluster) -> Result<Vec<Case>> {
    let nameserver = cluster.access_point(Member::Nameserver(1))?;
    let broker = cluster.access_point(Member::Broker(2))?;
    let list = cluster.broker_access_points();
    let certificate = |member| find_certificate(&cluster.data_dir(member)).map(Some);
    let case = |name, endpoints: &str, consumer, certificate| Case {
        name,
        endpoints: endpoints.to_owned(),
        consumer,
        certificate,
    };
    Ok(vec![
        case("nameserver-simple", &nameserver, "simple", None),
        case("nameserver-push", &nameserver, "push", None),
        case("broker-simple", &broker, "simple", None),
        case("broker-push", &broker, "push", None),
        case("list-simple", &list, "simple", None),
        case("list-push", &list, "push", None),
        case("tls-broker-simple", &broker, "simple", certificate(Member::Broker(2))?),
        case("tls-broker-push", &broker, "push", certificate(Member::Broker(2))?),
        case("tls-nameserver-simple", &nameserver, "simple", certificate(Member::Nameserver(1))?),
    ])
}

/// The certificate that the member made at its first start.
fn find_certificate(data_dir: &Path) -> Result<PathBuf> {
    let mut folders = vec![data_dir.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).with_context(|| format!("reading {}", folder.display()))? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.file_name().is_some_and(|name| name == "cert.pem") {
                return Ok(path);
            }
        }
    }
    anyhow::bail!("there is no cert.pem below {}", data_dir.display())
}

fn run(interpreter: &Path, case: &Case) -> Result<()> {
    let mut command = Command::new(interpreter);
    command
        .arg(programs().join("roundtrip.py"))
        .args(["--endpoints", &case.endpoints, "--consumer", case.consumer])
        .args(["--topic", &format!("topic-{}", case.name), "--group", &format!("group-{}", case.name)])
        .args(["--messages", "40"]);
    if let Some(certificate) = &case.certificate {
        command.arg("--tls").env("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", certificate);
    }
    let output = command.output()?;
    let result = String::from_utf8_lossy(&output.stdout);
    println!("{}: {}", case.name, result.trim());
    ensure!(
        output.status.success(),
        "{} ({}): {}\n{}\n{}",
        case.name,
        case.endpoints,
        output.status,
        result,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_python_sdk_sends_and_receives_through_every_kind_of_access_point() -> Result<()> {
    let Some(interpreter) = interpreter()? else {
        eprintln!("left out: this machine has no python3");
        return Ok(());
    };
    let bed = Bed::make(|_| {}).await?;
    let mut failures = Vec::new();
    for case in cases(&bed.cluster)? {
        if let Err(error) = run(&interpreter, &case) {
            failures.push(format!("{error:#}"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
    bed.passed().await
}
