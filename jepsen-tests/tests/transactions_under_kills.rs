//! Many transactions of producer processes while leaders and producers are killed: what is consumed is
//! exactly what was to be committed, once each, and what was to be rolled back is never seen.
//!
//! `LEDGERMQ_TRANSACTIONS`, `LEDGERMQ_KILLS` (of leaders) and `LEDGERMQ_PRODUCER_KILLS` set how many. Every
//! second producer is killed between its half and its end, the others wherever they are.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ledgermq_client::{Client, ClientOptions, ConsumerOptions};
use ledgermq_jepsen_tests::bed::Bed;
use ledgermq_jepsen_tests::history::Event;
use ledgermq_jepsen_tests::kill::kill_and_restart_leader;
use ledgermq_jepsen_tests::recorded::RecordedProcess;
use ledgermq_jepsen_tests::transactions::{TOPIC, is_to_commit};

const TRANSACTIONS_DEFAULT: u64 = 600;
const LEADER_KILLS_DEFAULT: u64 = 3;
const PRODUCER_KILLS_DEFAULT: u64 = 2;
const PRODUCERS: u64 = 6;
const STEP_WITHIN: Duration = Duration::from_secs(90);
const SETTLE_WITHIN: Duration = Duration::from_secs(120);

fn count(variable: &str, default: u64) -> Result<u64> {
    match std::env::var(variable) {
        Ok(text) => text.parse().with_context(|| format!("{variable}={text} is not a number")),
        Err(_) => Ok(default),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kill {
    Leader,
    ProducerAnywhere,
    ProducerAfterItsHalf,
}

/// When to kill what: after so many transactions, evenly over the run.
fn plan(transactions: u64, leader_kills: u64, producer_kills: u64) -> Vec<(u64, Kill)> {
    let leaders = (1..=leader_kills).map(|kill| (transactions * kill / (leader_kills + 1), Kill::Leader));
    let producers = (1..=producer_kills).map(|kill| {
        let what = if kill % 2 == 1 { Kill::ProducerAfterItsHalf } else { Kill::ProducerAnywhere };
        (transactions * kill / (producer_kills + 1), what)
    });
    let mut plan: Vec<_> = leaders.chain(producers).collect();
    plan.sort_by_key(|(after, _)| *after);
    plan
}

struct Producers<'a> {
    bed_dir: &'a std::path::Path,
    endpoints: &'a str,
    transactions: u64,
    /// The producers go no further, so that they are not done before the last kill.
    until: u64,
    running: Vec<RecordedProcess>,
    /// What killed ones had recorded.
    gone: Vec<Event>,
    started: u64,
    killed: u64,
}

impl Producers<'_> {
    fn start(&mut self, first: u64) -> Result<RecordedProcess> {
        self.started += 1;
        let stderr = self.bed_dir.join(format!("producer-{}.stderr", self.started));
        let mut command = Command::new(env!("CARGO_BIN_EXE_transaction_producer"));
        command
            .arg(self.endpoints)
            .args([first, PRODUCERS, self.transactions].map(|number| number.to_string()));
        let mut producer = RecordedProcess::spawn(&mut command, &stderr)?;
        producer.say(&format!("until {}", self.until))?;
        Ok(producer)
    }

    /// Numbers below `until` may be sent.
    fn allow(&mut self, until: u64) -> Result<()> {
        self.until = until.min(self.transactions);
        let line = format!("until {}", self.until);
        self.running.iter_mut().try_for_each(|producer| producer.say(&line))
    }

    fn start_all(&mut self) -> Result<()> {
        for first in 0..PRODUCERS {
            let producer = self.start(first)?;
            self.running.push(producer);
        }
        Ok(())
    }

    /// Transactions whose producer has done what it does about them.
    fn settled(&self) -> u64 {
        let settled = |event: &Event| matches!(event.e.as_str(), "ended" | "open" | "held" | "fail");
        let running: usize = self.running.iter().map(|producer| producer.count(settled)).sum();
        (running + self.gone.iter().filter(|event| settled(event)).count()) as u64
    }

    fn events(&self) -> Vec<Event> {
        self.gone.iter().cloned().chain(self.running.iter().flat_map(RecordedProcess::events)).collect()
    }

    /// SIGKILLs the producer that has the most to do, and another one takes over behind its last half.
    fn kill_one(&mut self, kill: Kill) -> Result<()> {
        let done = |producer: &RecordedProcess| producer.count(|event| event.e == "done") > 0;
        let last_invoked = |producer: &RecordedProcess| {
            let events = producer.events();
            let last = events.iter().rev().find(|event| event.e == "invoke")?.n.clone()?;
            last.strip_prefix("t-")?.parse::<u64>().ok()
        };
        let candidates = self.running.iter().enumerate().filter(|(_, producer)| !done(producer));
        let slowest = candidates.min_by_key(|(_, producer)| last_invoked(producer));
        let at = slowest.context("all producers are done before the last was to be killed")?.0;
        let mut producer = self.running.remove(at);
        if kill == Kill::ProducerAfterItsHalf {
            producer.say("hold")?;
            producer.wait("a half without an end", STEP_WITHIN, |events| {
                events.iter().any(|event| event.e == "held" || event.e == "done")
            })?;
            ensure!(!done(&producer), "the producer was done before it could be held");
        } else {
            producer
                .wait("a first half", STEP_WITHIN, |events| events.iter().any(|event| event.e == "half"))?;
        }
        let next = last_invoked(&producer);
        // What it wrote until its end counts: its last half may be a later one.
        let events = producer.kill()?;
        let last = events.iter().rev().find(|event| event.e == "invoke").and_then(|event| event.n.as_deref());
        let last = last.and_then(|name| name.strip_prefix("t-")?.parse::<u64>().ok()).or(next);
        let last = last.context("it had begun")?;
        self.gone.extend(events);
        self.killed += 1;
        let successor = self.start(last + PRODUCERS)?;
        self.running.push(successor);
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_consumed_is_what_was_to_be_committed() -> Result<()> {
    let transactions = count("LEDGERMQ_TRANSACTIONS", TRANSACTIONS_DEFAULT)?;
    let leader_kills = count("LEDGERMQ_KILLS", LEADER_KILLS_DEFAULT)?;
    let producer_kills = count("LEDGERMQ_PRODUCER_KILLS", PRODUCER_KILLS_DEFAULT)?;
    let mut bed = Bed::make(|plan| {
        plan.broker_settings =
            vec!["transactions.timeout_ms=1000".to_owned(), "transactions.check_interval_ms=1500".to_owned()];
    })
    .await?;
    bed.admin(&["topic", "create", TOPIC, "--type", "transaction", "--queues", "4"])?;
    let endpoints = bed.cluster.broker_access_points();
    let bed_dir = bed.cluster.dir().to_owned();
    let mut producers = Producers {
        bed_dir: &bed_dir,
        endpoints: &endpoints,
        transactions,
        until: 0,
        running: Vec::new(),
        gone: Vec::new(),
        started: 0,
        killed: 0,
    };
    producers.start_all()?;
    let mut leaders_killed = Vec::new();
    // Enough to be busy while something is killed, and more than halves whose fate is not known.
    let ahead = transactions / (leader_kills + producer_kills + 1) + 2 * producer_kills;
    for (after, kill) in plan(transactions, leader_kills, producer_kills) {
        producers.allow(after + ahead)?;
        wait_until(STEP_WITHIN, 5, || producers.settled() >= after)
            .await
            .with_context(|| format!("{} of {after} transactions", producers.settled()))?;
        match kill {
            Kill::Leader => leaders_killed.push(kill_and_restart_leader(&mut bed).await?),
            _ => producers.kill_one(kill)?,
        }
    }
    let behind_the_kills = transactions - producers.settled().min(transactions);
    producers.allow(transactions)?;
    let all_done = || producers.running.iter().all(|producer| producer.count(|event| event.e == "done") > 0);
    wait_until(SETTLE_WITHIN, 20, all_done).await.context("the producers do not end")?;
    let mut open = serde_json::Value::Null;
    let none_open = || {
        let listed = bed.admin(&["transaction", "list", "--max", "1000"]);
        open = listed.map_or_else(|error| error.to_string().into(), |listed| listed["transactions"].clone());
        open == serde_json::json!([])
    };
    let settled = wait_until(SETTLE_WITHIN, 200, none_open).await;
    settled.with_context(|| format!("left open: {open}"))?;

    let received = consume(&endpoints).await?;
    let events = producers.events();
    let names = |kind: &str| -> BTreeSet<&str> {
        events.iter().filter(|event| event.e == kind).filter_map(|event| event.n.as_deref()).collect()
    };
    let (invoked, stored) = (names("invoke"), names("half"));
    // A half that its producer died over may be stored or not; all others are.
    let expected: BTreeSet<&str> = stored.iter().copied().filter(|name| is_to_commit(name)).collect();
    let allowed: BTreeSet<&str> = invoked.iter().copied().filter(|name| is_to_commit(name)).collect();
    let twice: Vec<_> = received.iter().filter(|(_, times)| **times > 1).collect();
    let lost: Vec<_> = expected.iter().filter(|name| !received.contains_key(**name)).collect();
    let wrong: Vec<_> = received.keys().filter(|name| !allowed.contains(name.as_str())).collect();
    let terms: BTreeSet<u64> = leaders_killed.iter().map(|killed| killed.next_term).collect();
    println!(
        "{} transactions: {} leaders killed (terms {} to {}), {} producers killed, {} of them between half and \
         end; {} stored, {} left open, {} begun and not known to be stored; {} to commit, {} consumed, {} rolled back",
        invoked.len(),
        leaders_killed.len(),
        leaders_killed.first().map_or(0, |killed| killed.term),
        leaders_killed.last().map_or(0, |killed| killed.next_term),
        producers.killed,
        names("held").len(),
        stored.len(),
        names("open").len() + names("held").len(),
        invoked.len() - stored.len(),
        expected.len(),
        received.len(),
        stored.len() - expected.len(),
    );
    assert_eq!(invoked.len() as u64, transactions);
    assert_eq!(terms.len() as u64, leader_kills, "every kill made a new term");
    assert_eq!(producers.killed, producer_kills);
    assert_eq!(names("held").len() as u64, producer_kills.div_ceil(2));
    assert!(behind_the_kills > 0, "the last kill came when all was done");
    assert!(twice.is_empty(), "consumed twice: {twice:?}");
    assert!(lost.is_empty(), "to be committed and never consumed: {lost:?}");
    assert!(wrong.is_empty(), "to be rolled back or never sent, and consumed: {wrong:?}");
    let failed: Vec<_> = events.iter().filter(|event| event.e == "fail").collect();
    assert!(failed.is_empty(), "sends and decisions that failed: {failed:?}");
    drop(producers);
    bed.passed().await
}

async fn wait_until(within: Duration, poll_ms: u64, mut is_so: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + within;
    while !is_so() {
        ensure!(Instant::now() < deadline, "not within {} s", within.as_secs());
        tokio::time::sleep(Duration::from_millis(poll_ms)).await;
    }
    Ok(())
}

/// How often each body was received; until nothing more comes.
async fn consume(endpoints: &str) -> Result<BTreeMap<String, u32>> {
    let client = Client::connect(endpoints, ClientOptions::default()).await?;
    let consumer = client.simple_consumer(
        ConsumerOptions::new("readers").subscribe(TOPIC, "*").await_duration(Duration::from_secs(2)),
    );
    let mut received: BTreeMap<String, u32> = BTreeMap::new();
    loop {
        let messages = consumer.receive(32).await?;
        if messages.is_empty() {
            return Ok(received);
        }
        for acknowledged in consumer.ack_many(&messages).await {
            acknowledged?;
        }
        for message in messages {
            *received.entry(String::from_utf8(message.body.to_vec())?).or_default() += 1;
        }
    }
}
