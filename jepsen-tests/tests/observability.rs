//! Every metric that an alert rule or a dashboard names is one that the processes really expose.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ledgermq::cluster::{Member, http_get};
use ledgermq_client::{Client, ClientOptions, ConsumerOptions, Message};
use ledgermq_jepsen_tests::bed::Bed;

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

/// What an expression names of ours.
fn names(expression: &str) -> impl Iterator<Item = String> {
    expression
        .split(|character: char| !character.is_ascii_alphanumeric() && character != '_')
        .filter(|word| word.starts_with("ledgermq_") || word.starts_with("rocketmq_"))
        .map(str::to_owned)
        .collect::<Vec<_>>()
        .into_iter()
}

fn expressions_of_rules(text: &str) -> Vec<&str> {
    text.lines().filter_map(|line| line.trim().strip_prefix("expr: ")).collect()
}

fn expressions_of_dashboard(value: &serde_json::Value, found: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(fields) => {
            for (name, value) in fields {
                match value.as_str().filter(|_| name == "expr") {
                    Some(expression) => found.push(expression.to_owned()),
                    None => expressions_of_dashboard(value, found),
                }
            }
        }
        serde_json::Value::Array(values) => {
            values.iter().for_each(|value| expressions_of_dashboard(value, found));
        }
        _ => {}
    }
}

/// The names of samples in Prometheus' text, and of histograms that have none yet.
fn exposed(text: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for line in text.lines() {
        let mut words = line.split([' ', '{']);
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some("TYPE"), Some(name), Some("histogram")) => {
                names.extend(["_bucket", "_sum", "_count"].map(|suffix| format!("{name}{suffix}")));
            }
            (Some("#"), Some("TYPE"), Some(name), _) => {
                names.insert(name.to_owned());
            }
            _ => {}
        }
    }
    names
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rules_and_dashboards_name_metrics_that_exist() -> Result<()> {
    let rules = std::fs::read_to_string(deploy().join("prometheus/rules.yml"))?;
    let mut expressions: Vec<String> = expressions_of_rules(&rules).into_iter().map(str::to_owned).collect();
    ensure!(expressions.len() == rules.matches("- alert:").count(), "each alert has one expression");
    let dashboards = deploy().join("grafana/dashboards");
    for entry in std::fs::read_dir(&dashboards)? {
        let path = entry?.path();
        let dashboard = serde_json::from_slice(&std::fs::read(&path)?)
            .with_context(|| format!("{} is no JSON", path.display()))?;
        expressions_of_dashboard(&dashboard, &mut expressions);
    }
    ensure!(expressions.len() > 20, "only {} expressions were found", expressions.len());

    let bed = Bed::make(|_| {}).await?;
    let client = Client::connect(&bed.cluster.broker_access_points(), ClientOptions::default()).await?;
    client.producer().send(Message::new("watched", "once")).await?;
    let options = ConsumerOptions::new("watchers").subscribe("watched", "*");
    let consumer = client.simple_consumer(options.await_duration(Duration::from_secs(10)));
    for message in consumer.receive(1).await? {
        consumer.ack(&message).await?;
    }
    let mut existing = BTreeSet::new();
    for member in [Member::Broker(1), Member::Nameserver(1)] {
        let answer = http_get(&bed.cluster.http_address(member)?, "/metrics").await?;
        existing.extend(exposed(&answer.body));
    }
    let missing: BTreeSet<String> = expressions
        .iter()
        .flat_map(|expression| names(expression))
        .filter(|name| !existing.contains(name))
        .collect();
    ensure!(missing.is_empty(), "nobody exposes {missing:?}");
    bed.passed().await
}
