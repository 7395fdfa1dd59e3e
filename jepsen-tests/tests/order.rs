//! Order by message group with the unmodified SDKs against real processes: per group the first
//! deliveries are in the order of the sends, one consumer at a time, also across the death of leaders.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use ledgermq_jepsen_tests::bed::{Bed, binary};
use ledgermq_jepsen_tests::history::Event;
use ledgermq_jepsen_tests::kill::kill_leader;
use ledgermq_jepsen_tests::python::interpreter;
use ledgermq_jepsen_tests::python_program::Fault;
use ledgermq_jepsen_tests::recorded::RecordedProcess;
use parking_lot::Mutex;
use rocketmq::conf::{ClientOption, ProducerOption, SimpleConsumerOption};
use rocketmq::model::common::{FilterExpression, FilterType};
use rocketmq::model::message::{MessageBuilder, MessageView};
use rocketmq::{Producer, SimpleConsumer};

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

fn python(bed: &Bed, interpreter: &Path, name: &str, arguments: &[&str]) -> Result<RecordedProcess> {
    let endpoints = bed.cluster.broker_access_points();
    let mut all = vec!["--endpoints", &endpoints, "--topic", "steps", "--group", "workers"];
    all.extend(arguments);
    let stderr = bed.cluster.dir().join(format!("python-{name}.stderr"));
    let program = RecordedProcess::python(interpreter, "order.py", &all, &stderr)?;
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
        let killed = kill_leader(&mut bed).await?;
        sender.wait_acks(120, STEP_WITHIN)?;
        bed.cluster.restart(killed.leader)?;
        bed.cluster.wait_member_ready(killed.leader, LEADER_WITHIN).await?;
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
    let done = |consumers: &[RecordedProcess]| -> BTreeSet<String> {
        let events = consumers.iter().flat_map(RecordedProcess::events);
        events.filter(|event| event.e == "done").filter_map(|event| event.n).collect()
    };
    while !sent.is_subset(&done(&consumers)) && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let consumed = consumers.into_iter().map(RecordedProcess::finish).collect::<Result<Vec<_>>>()?;
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

/// What the Rust SDK's consumer has of each message group, by which the kill is put in the middle.
#[derive(Default)]
struct Progress {
    next: Mutex<BTreeMap<String, u32>>,
    redelivered: AtomicU32,
    /// First deliveries and sends behind the kill.
    received_after: AtomicU32,
    sent_after: AtomicU32,
    killed: AtomicBool,
}

impl Progress {
    fn received(&self) -> u32 {
        self.next.lock().values().sum()
    }

    fn take(&self, message: &MessageView) -> Result<()> {
        let body = String::from_utf8(message.body().to_vec())?;
        let (group, number) = split(&body).context("our own body")?;
        ensure!(message.message_group() == Some(format!("group-{group}").as_str()), "{body}: {message:?}");
        let mut next = self.next.lock();
        let expected = next.entry(group).or_default();
        ensure!(number <= *expected, "{body} came where {expected} was expected");
        if number < *expected {
            ensure!(message.delivery_attempt() > 1, "{body} came twice as a first delivery");
            self.redelivered.fetch_add(1, Ordering::Relaxed);
        } else {
            *expected += 1;
            self.received_after.fetch_add(u32::from(self.killed.load(Ordering::Relaxed)), Ordering::Relaxed);
        }
        Ok(())
    }
}

const RUST_GROUPS: u32 = 5;
const RUST_NUMBERS: u32 = 16;

async fn rust_sdk_in_order(bed: &mut Bed, topic: &str, fault: Fault) -> Result<()> {
    let leader = bed.cluster.wait_leader(1, LEADER_WITHIN).await?;
    // How this SDK leaves a dead node is not what is shown: it is given one that lives on.
    let other = bed.cluster.brokers().find(|member| *member != leader).context("more than one broker")?;
    let mut client_option = ClientOption::default();
    client_option.set_access_url(bed.cluster.access_point(other)?);
    client_option.set_enable_tls(false);
    client_option.set_long_polling_timeout(Duration::from_secs(2));
    let mut option = ProducerOption::default();
    option.set_topics(vec![topic.to_owned()]);
    let mut producer = Producer::new(option, client_option.clone()).map_err(|error| anyhow!("{error}"))?;
    producer.start().await.map_err(|error| anyhow!("{error}"))?;
    let mut option = SimpleConsumerOption::default();
    option.set_topics(vec![topic.to_owned()]);
    option.set_consumer_group("workers");
    let mut consumer = SimpleConsumer::new(option, client_option).map_err(|error| anyhow!("{error}"))?;
    consumer.start().await.map_err(|error| anyhow!("{error}"))?;

    let progress = Progress::default();
    let total = RUST_GROUPS * RUST_NUMBERS;
    let deadline = Instant::now() + DRAIN_WITHIN;
    let send = async {
        for number in 0..RUST_NUMBERS {
            if number == RUST_NUMBERS / 2 {
                while progress.received() < total / 4 {
                    ensure!(Instant::now() < deadline, "received {} of {total}", progress.received());
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                if fault == Fault::LeaderKilled {
                    println!("{topic}: {:?}", kill_leader(bed).await?);
                }
                progress.killed.store(true, Ordering::Relaxed);
            }
            for group in 0..RUST_GROUPS {
                let body = format!("{group}|{number}").into_bytes();
                let message = MessageBuilder::fifo_message_builder(topic, body, format!("group-{group}"))
                    .build()
                    .map_err(|error| anyhow!("{error}"))?;
                producer.send(message).await.map_err(|error| anyhow!("{group}|{number}: {error}"))?;
                let after = u32::from(progress.killed.load(Ordering::Relaxed));
                progress.sent_after.fetch_add(after, Ordering::Relaxed);
            }
        }
        anyhow::Ok(())
    };
    let everything = FilterExpression::new(FilterType::Tag, "*");
    let receive = async {
        while progress.received() < total {
            ensure!(Instant::now() < deadline, "received {} of {total}", progress.received());
            let received = consumer.receive_with(topic, &everything, 7, Duration::from_secs(10)).await;
            let Ok(messages) = received else {
                // While a leader is missing.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            for message in messages {
                progress.take(&message)?;
                if let Err(error) = consumer.ack(&message).await {
                    println!("{topic}: an ack failed, and its message comes again: {error}");
                    // What follows in its message group is not to be acknowledged before it.
                    break;
                }
            }
        }
        anyhow::Ok(())
    };
    tokio::try_join!(send, receive)?;
    let redelivered = progress.redelivered.load(Ordering::Relaxed);
    println!("{topic}: {total} messages in order, {redelivered} delivered again");
    let next = progress.next.lock().clone();
    assert_eq!(next.len(), RUST_GROUPS as usize);
    assert!(next.values().all(|next| *next == RUST_NUMBERS), "{next:?}");
    assert_eq!(progress.sent_after.load(Ordering::Relaxed), total / 2);
    assert!(progress.received_after.load(Ordering::Relaxed) >= total / 2);
    if fault == Fault::None {
        assert_eq!(redelivered, 0);
    }
    producer.shutdown().await.map_err(|error| anyhow!("{error}"))?;
    consumer.shutdown().await.map_err(|error| anyhow!("{error}"))?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rust_sdk_sends_and_receives_in_order_also_when_the_leader_dies() -> Result<()> {
    let mut bed = bed("steps").await?;
    for (topic, fault) in [("steps", Fault::None), ("steps-killed", Fault::LeaderKilled)] {
        if fault == Fault::LeaderKilled {
            admin(&bed, &["topic", "create", topic, "--type", "fifo", "--queues", "4"])?;
        }
        rust_sdk_in_order(&mut bed, topic, fault).await?;
    }
    bed.passed().await
}
