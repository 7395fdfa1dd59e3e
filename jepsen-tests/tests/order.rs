//! Order by message group with the unmodified SDKs against real processes: per group the first
//! deliveries are in the order of the sends, one consumer at a time, also across the death of leaders.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use ledgermq_client::{Client, ClientOptions, ConsumerOptions};
use ledgermq_jepsen_tests::bed::{Bed, binary};
use ledgermq_jepsen_tests::history::Event;
use ledgermq_jepsen_tests::load::PythonLoad;
use ledgermq_jepsen_tests::python::interpreter;
use rocketmq::Producer;
use rocketmq::conf::{ClientOption, ProducerOption};
use rocketmq::model::message::MessageBuilder;

const STEP_WITHIN: Duration = Duration::from_secs(40);
const LEADER_WITHIN: Duration = Duration::from_secs(20);
/// Longer than a lease: what a leader delivered and did not live to renew comes again at its end.
const DRAIN_WITHIN: Duration = Duration::from_secs(100);
const KILLS: usize = 2;

fn admin(bed: &Bed, arguments: &[&str]) -> Result<()> {
    let output = std::process::Command::new(binary()?)
        .args(["admin", "--endpoint", &bed.cluster.broker_access_points()])
        .args(arguments)
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "admin {arguments:?} ended with {}: {said}", output.status);
    Ok(())
}

/// A cluster with a topic and a consumer group that keep order.
async fn bed(topic: &str) -> Result<Bed> {
    let bed = Bed::make(|_| {}).await?;
    admin(&bed, &["topic", "create", topic, "--type", "fifo", "--queues", "4"])?;
    admin(&bed, &["group", "set", "workers", "--fifo", "true"])?;
    Ok(bed)
}

fn python(bed: &Bed, interpreter: &Path, name: &str, arguments: &[&str]) -> Result<PythonLoad> {
    let endpoints = bed.cluster.broker_access_points();
    let mut all = vec!["--endpoints", &endpoints, "--topic", "steps", "--group", "workers"];
    all.extend(arguments);
    let stderr = bed.cluster.dir().join(format!("python-{name}.stderr"));
    let program = PythonLoad::run(interpreter, "order.py", &all, &stderr)?;
    program.wait("the start", STEP_WITHIN, |events| events.iter().any(|event| event.e == "ready"))?;
    Ok(program)
}

fn split(name: &str) -> Option<(String, u32)> {
    let (group, number) = name.split_once('|')?;
    Some((group.to_owned(), number.parse().ok()?))
}

/// What each message group's handlers did, by time: (begin, end, number, process).
type Work = BTreeMap<String, Vec<(f64, f64, u32, usize)>>;

fn work(consumers: &[Vec<Event>]) -> Work {
    let mut work = Work::new();
    for (process, events) in consumers.iter().enumerate() {
        let mut begun: BTreeMap<String, f64> = BTreeMap::new();
        for event in events {
            let Some(name) = event.n.clone() else { continue };
            match event.e.as_str() {
                "got" => {
                    begun.insert(name, event.t);
                }
                "done" => {
                    let Some((group, number)) = split(&name) else { continue };
                    let begin = begun.remove(&name).unwrap_or(event.t);
                    work.entry(group).or_default().push((begin, event.t, number, process));
                }
                _ => {}
            }
        }
    }
    for handled in work.values_mut() {
        handled.sort_by(|a, b| a.0.total_cmp(&b.0));
    }
    work
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_python_sdk_keeps_the_order_of_message_groups_while_leaders_die() -> Result<()> {
    let Some(interpreter) = interpreter()? else {
        eprintln!("left out: this machine has no python3");
        return Ok(());
    };
    let mut bed = bed("steps").await?;
    let consumers = [
        python(&bed, &interpreter, "first", &["--consume", "yes"])?,
        python(&bed, &interpreter, "second", &["--consume", "yes"])?,
    ];
    let groups = "a,b,c,d,e,f";
    let mut sender = python(&bed, &interpreter, "sender", &["--send", groups])?;
    for _ in 0..KILLS {
        sender.wait_acks(120, STEP_WITHIN)?;
        let leader = bed.cluster.wait_leader(1, LEADER_WITHIN).await?;
        bed.cluster.kill(leader)?;
        sender.wait_acks(120, STEP_WITHIN)?;
        bed.cluster.restart(leader)?;
        bed.cluster.wait_member_ready(leader, LEADER_WITHIN).await?;
    }
    sender.say("stop-sending")?;
    sender.wait("the end of sending", STEP_WITHIN, |events| {
        events.iter().any(|event| event.e == "sending-stopped")
    })?;
    let sent = sender.finish()?;
    let failed: Vec<_> = sent.iter().filter(|event| event.e == "fail").collect();
    ensure!(failed.is_empty(), "failed sends: {failed:?}");
    let sent: BTreeSet<String> =
        sent.iter().filter(|event| event.e == "ack").filter_map(|event| event.n.clone()).collect();

    let deadline = Instant::now() + DRAIN_WITHIN;
    let done = |consumers: &[PythonLoad]| -> BTreeSet<String> {
        let events = consumers.iter().flat_map(PythonLoad::events);
        events.filter(|event| event.e == "done").filter_map(|event| event.n).collect()
    };
    while !sent.is_subset(&done(&consumers)) && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let consumed = consumers.into_iter().map(PythonLoad::finish).collect::<Result<Vec<_>>>()?;
    let work = work(&consumed);
    let mut handled_by = BTreeSet::new();
    for (group, handled) in &work {
        let mut next = 0;
        let mut last: Option<(f64, u32, usize)> = None;
        for &(begin, end, number, process) in handled {
            handled_by.insert(process);
            ensure!(number <= next, "group {group}: {number} is handled before {next}");
            next = next.max(number + 1);
            if let Some((ended, before, other)) = last {
                ensure!(
                    begin >= ended,
                    "group {group}: {number} in process {process} begins while {before} is handled in {other}"
                );
            }
            last = Some((end, number, process));
        }
    }
    let seen: BTreeSet<String> = work
        .iter()
        .flat_map(|(group, handled)| handled.iter().map(move |handled| format!("{group}|{}", handled.2)))
        .collect();
    let lost: Vec<_> = sent.difference(&seen).collect();
    ensure!(lost.is_empty(), "acknowledged and never handled: {lost:?}");
    println!(
        "order: {} messages of {} groups, handled by {} processes",
        sent.len(),
        work.len(),
        handled_by.len()
    );
    assert_eq!(handled_by.len(), 2, "both consumers had work");
    bed.passed().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rust_sdk_sends_in_order_across_the_death_of_a_leader() -> Result<()> {
    const GROUPS: u32 = 5;
    const NUMBERS: u32 = 12;
    let mut bed = bed("steps").await?;
    let leader = bed.cluster.wait_leader(1, LEADER_WITHIN).await?;
    let other = bed.cluster.brokers().find(|member| *member != leader).context("more than one broker")?;
    let access_point = bed.cluster.access_point(other)?;
    let mut option = ProducerOption::default();
    option.set_topics(vec!["steps".to_owned()]);
    let mut client_option = ClientOption::default();
    client_option.set_access_url(&access_point);
    client_option.set_enable_tls(false);
    let mut producer = Producer::new(option, client_option).map_err(|error| anyhow!("{error}"))?;
    producer.start().await.map_err(|error| anyhow!("{error}"))?;
    for number in 0..NUMBERS {
        if number == NUMBERS / 2 {
            bed.cluster.kill(leader)?;
        }
        for group in 0..GROUPS {
            let message = MessageBuilder::fifo_message_builder(
                "steps",
                format!("{group}|{number}").into_bytes(),
                format!("group-{group}"),
            )
            .build()
            .map_err(|error| anyhow!("{error}"))?;
            producer.send(message).await.map_err(|error| anyhow!("{group}|{number}: {error}"))?;
        }
    }
    let client = Client::connect(&access_point, ClientOptions::default()).await?;
    let consumer = client.simple_consumer(
        ConsumerOptions::new("workers").subscribe("steps", "*").await_duration(Duration::from_secs(1)),
    );
    let mut next: BTreeMap<String, u32> = BTreeMap::new();
    let deadline = Instant::now() + STEP_WITHIN;
    while next.values().sum::<u32>() < GROUPS * NUMBERS && Instant::now() < deadline {
        for message in consumer.receive(7).await? {
            let body = String::from_utf8(message.body.to_vec())?;
            let (group, number) = split(&body).context("our own body")?;
            let expected = next.entry(group).or_default();
            ensure!(number == *expected, "{body} came where {expected} was expected");
            *expected += 1;
            consumer.ack(&message).await?;
        }
    }
    assert_eq!(next.len(), GROUPS as usize);
    assert!(next.values().all(|next| *next == NUMBERS), "{next:?}");

    bed.passed().await
}
