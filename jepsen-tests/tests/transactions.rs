//! Transactions of the unmodified SDKs against real processes: committed ones arrive once, rolled
//! back ones never, and those whose producer or leader was killed are settled by asking.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use ledgermq::cluster::Member;
use ledgermq_client::{Client, ClientOptions, ConsumerOptions, Message, Outcome, ReceivedHalf};
use ledgermq_jepsen_tests::bed::{Bed, binary};
use ledgermq_jepsen_tests::history::Event;
use ledgermq_jepsen_tests::kill::kill_leader;
use ledgermq_jepsen_tests::python::interpreter;
use ledgermq_jepsen_tests::recorded::RecordedProcess;
use parking_lot::Mutex;
use rocketmq::Producer;
use rocketmq::conf::{ClientOption, ProducerOption};
use rocketmq::model::message::MessageBuilder;
use rocketmq::model::transaction::{Transaction as _, TransactionResolution};

const STEP_WITHIN: Duration = Duration::from_secs(40);
const LEADER_WITHIN: Duration = Duration::from_secs(20);
const CHECK_AFTER_MS: u64 = 1_500;
const CHECK_INTERVAL_MS: u64 = 2_000;

async fn bed(topics: &[&str]) -> Result<Bed> {
    let bed = Bed::make(|plan| {
        plan.broker_settings = vec![
            format!("transactions.timeout_ms={CHECK_AFTER_MS}"),
            format!("transactions.check_interval_ms={CHECK_INTERVAL_MS}"),
        ];
    })
    .await?;
    for topic in topics {
        admin(&bed, &["topic", "create", topic, "--type", "transaction"])?;
    }
    Ok(bed)
}

/// What `ledgermq admin` says, as JSON.
fn admin(bed: &Bed, arguments: &[&str]) -> Result<serde_json::Value> {
    let output = std::process::Command::new(binary()?)
        .args(["admin", "--json", "--endpoint", &bed.cluster.broker_access_points()])
        .args(arguments)
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "admin {arguments:?} ended with {}: {said}", output.status);
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn is(event: &Event, kind: &str, name: &str) -> bool {
    event.e == kind && event.n.as_deref() == Some(name)
}

fn program(bed: &Bed, interpreter: &Path, endpoints: &str, group: &str) -> Result<RecordedProcess> {
    let stderr = bed.cluster.dir().join(format!("python-{group}.stderr"));
    let arguments = ["--endpoints", endpoints, "--topic", "pay", "--group", group];
    let program = RecordedProcess::python(interpreter, "transactions.py", &arguments, &stderr)?;
    program.wait("the start", STEP_WITHIN, |events| events.iter().any(|event| event.e == "ready"))?;
    Ok(program)
}

/// Takes one step and waits until it is done.
fn step(program: &mut RecordedProcess, step: &str, name: &str) -> Result<()> {
    program.say(&format!("{step} {name}"))?;
    let done = if step == "half" { "half" } else { "ended" };
    program.wait(&format!("{step} {name}"), STEP_WITHIN, |events| {
        events.iter().any(|event| is(event, done, name) || is(event, "fail", name))
    })?;
    let failed = program.events().into_iter().find(|event| is(event, "fail", name));
    ensure!(failed.is_none(), "{step} {name}: {failed:?}");
    Ok(())
}

fn wait_for(program: &RecordedProcess, kind: &str, name: &str) -> Result<()> {
    program.wait(&format!("{kind} {name}"), STEP_WITHIN, |events| {
        events.iter().any(|event| is(event, kind, name))
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_of_the_python_sdk_are_settled_whoever_dies() -> Result<()> {
    let Some(interpreter) = interpreter()? else {
        eprintln!("left out: this machine has no python3");
        return Ok(());
    };
    let mut bed = bed(&["pay"]).await?;
    let nameserver = bed.cluster.access_point(Member::Nameserver(1))?;
    let mut program = self::program(&bed, &interpreter, &nameserver, "payers")?;

    step(&mut program, "half", "a|unknown")?;
    step(&mut program, "commit", "a|unknown")?;
    step(&mut program, "half", "b|unknown")?;
    step(&mut program, "rollback", "b|unknown")?;
    wait_for(&program, "got", "a|unknown")?;
    // Left open: the checker decides, through the nameserver that holds the stream.
    step(&mut program, "half", "c|commit")?;
    step(&mut program, "half", "d|rollback")?;
    wait_for(&program, "check", "c|commit")?;
    wait_for(&program, "check", "d|rollback")?;
    wait_for(&program, "got", "c|commit")?;

    // The leader dies between half and end, and between half and check.
    step(&mut program, "half", "e|unknown")?;
    step(&mut program, "half", "f|commit")?;
    let killed = kill_leader(&mut bed).await?;
    step(&mut program, "commit", "e|unknown")?;
    wait_for(&program, "got", "e|unknown")?;
    wait_for(&program, "got", "f|commit")?;
    bed.cluster.restart(killed.leader)?;
    bed.cluster.wait_member_ready(killed.leader, LEADER_WITHIN).await?;

    // The producer dies between half and end; another one of the topic is asked.
    let list = bed.cluster.broker_access_points();
    let mut dying = self::program(&bed, &interpreter, &list, "")?;
    step(&mut dying, "half", "g|commit")?;
    step(&mut dying, "half", "h|rollback")?;
    let said = dying.kill()?;
    ensure!(said.iter().all(|event| event.e != "check"), "it was killed before it was asked: {said:?}");
    wait_for(&program, "check", "h|rollback")?;
    wait_for(&program, "got", "g|commit")?;

    let events = program.finish()?;
    let got = |name: &str| events.iter().filter(|event| is(event, "got", name)).count();
    for name in ["a|unknown", "c|commit", "e|unknown", "f|commit", "g|commit"] {
        assert_eq!(got(name), 1, "{name}");
    }
    for name in ["b|unknown", "d|rollback", "h|rollback"] {
        assert_eq!(got(name), 0, "{name} was rolled back");
    }
    bed.passed().await
}

fn rust_option(access_point: &str) -> ClientOption {
    let mut option = ClientOption::default();
    option.set_access_url(access_point);
    option.set_enable_tls(false);
    option
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_of_the_rust_sdk_are_settled_also_when_the_leader_dies() -> Result<()> {
    let mut bed = bed(&["pay-rust"]).await?;
    let leader = bed.cluster.wait_leader(1, LEADER_WITHIN).await?;
    let other =
        bed.cluster.brokers().find(|member| *member != leader).ok_or_else(|| anyhow!("one broker"))?;
    let access_point = bed.cluster.access_point(other)?;
    let checked: Arc<Mutex<Vec<String>>> = Arc::default();
    let checker = {
        let checked = Arc::clone(&checked);
        move |_: String, message: rocketmq::model::message::MessageView| {
            let body = String::from_utf8_lossy(message.body()).into_owned();
            let verdict = if body.ends_with("|commit") {
                TransactionResolution::COMMIT
            } else {
                TransactionResolution::ROLLBACK
            };
            checked.lock().push(body);
            verdict
        }
    };
    let mut option = ProducerOption::default();
    option.set_topics(vec!["pay-rust".to_owned()]);
    let mut producer =
        Producer::new_transaction_producer(option, rust_option(&access_point), Box::new(checker))
            .map_err(|error| anyhow!("{error}"))?;
    producer.start().await.map_err(|error| anyhow!("{error}"))?;
    let half = |name: &str| {
        MessageBuilder::transaction_message_builder("pay-rust", name.as_bytes().to_vec())
            .build()
            .map_err(|error| anyhow!("{error}"))
    };
    macro_rules! send {
        ($name:expr) => {
            producer
                .send_transaction_message(half($name)?)
                .await
                .map_err(|error| anyhow!("{}: {error}", $name))?
        };
    }
    send!("a").commit().await.map_err(|error| anyhow!("commit: {error}"))?;
    send!("b").rollback().await.map_err(|error| anyhow!("roll back: {error}"))?;
    let across = send!("c");
    let _left_open = send!("d|commit");
    let _also_left_open = send!("e|rollback");
    let killed = kill_leader(&mut bed).await?;
    assert_eq!(killed.leader, leader, "the SDK's own node is to live on");
    across.commit().await.map_err(|error| anyhow!("commit after the kill: {error}"))?;

    let client = Client::connect(&access_point, ClientOptions::default()).await?;
    let consumer = client.simple_consumer(
        ConsumerOptions::new("readers").subscribe("pay-rust", "*").await_duration(Duration::from_secs(1)),
    );
    let mut received = Vec::new();
    let deadline = Instant::now() + STEP_WITHIN;
    while (received.len() < 3 || checked.lock().len() < 2) && Instant::now() < deadline {
        for message in consumer.receive(16).await? {
            consumer.ack(&message).await?;
            received.push(String::from_utf8(message.body.to_vec())?);
        }
    }
    received.sort();
    assert_eq!(received, ["a", "c", "d|commit"]);
    let asked = checked.lock().clone();
    assert!(asked.iter().any(|body| body == "e|rollback"), "{asked:?}");
    assert!(consumer.receive(16).await?.is_empty(), "what was rolled back is never seen");
    bed.passed().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_own_producer_answers_for_the_one_that_left() -> Result<()> {
    let bed = bed(&["pay-own"]).await?;
    let brokers = bed.cluster.broker_access_points();
    let connect = || Client::connect(&brokers, ClientOptions::default());
    let never = |_: &ReceivedHalf| Outcome::Unknown;
    let leaving = connect().await?.transactional_producer(["pay-own"], never);
    let committed = leaving.send(Message::new("pay-own", "a")).await?;
    committed.commit().await?;
    committed.commit().await?;
    let opposite = committed.rollback().await.expect_err("decided").to_string();
    assert!(opposite.contains("COMMIT"), "{opposite}");
    leaving.send(Message::new("pay-own", "b").key("commit")).await?;
    leaving.send(Message::new("pay-own", "c").key("rollback")).await?;
    leaving.close().await;

    let by_key = |half: &ReceivedHalf| {
        if half.keys.iter().any(|key| key == "commit") { Outcome::Commit } else { Outcome::Rollback }
    };
    let client = connect().await?;
    let _answering = client.transactional_producer(["pay-own"], by_key);
    let consumer = client.simple_consumer(
        ConsumerOptions::new("readers").subscribe("pay-own", "*").await_duration(Duration::from_secs(1)),
    );
    let mut received = Vec::new();
    let deadline = Instant::now() + STEP_WITHIN;
    while received.len() < 2 && Instant::now() < deadline {
        for message in consumer.receive(16).await? {
            consumer.ack(&message).await?;
            received.push(String::from_utf8(message.body.to_vec())?);
        }
    }
    assert_eq!(received, ["a", "b"]);
    let open = loop {
        let open = admin(&bed, &["transaction", "list"])?["transactions"].clone();
        if open == serde_json::json!([]) || Instant::now() >= deadline {
            break open;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert_eq!(open, serde_json::json!([]));
    assert!(consumer.receive(16).await?.is_empty(), "what was rolled back is never seen");
    bed.passed().await
}
