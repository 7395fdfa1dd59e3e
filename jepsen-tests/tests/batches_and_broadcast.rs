//! Our own client against real processes: batches of several topics while a leader is killed, queues read by
//! offset, and instances that each receive every message while a leader is killed, the topic grows and one
//! of them dies.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ledgermq_client::{
    Batch, BatchReceipt, BroadcastConsumer, BroadcastOptions, Client, ClientOptions, Message, Position,
    PullConsumer, PullError, PullOptions, PulledMessage,
};
use ledgermq_jepsen_tests::bed::{Bed, binary};
use tokio::task::JoinSet;
use tokio::time::Instant;

const RECOVER_WITHIN: Duration = Duration::from_secs(20);
const PATIENCE: Duration = Duration::from_secs(60);

async fn client(bed: &Bed) -> Result<Client> {
    Ok(Client::connect(&bed.cluster.broker_access_points(), ClientOptions::default()).await?)
}

/// Kills the leader of a broker group, and starts it again when another one leads.
async fn kill_leader(bed: &mut Bed, group: u32) -> Result<()> {
    let leader = bed.cluster.wait_leader(group, RECOVER_WITHIN).await?;
    bed.cluster.kill(leader)?;
    bed.cluster.wait_leader(group, RECOVER_WITHIN).await?;
    bed.cluster.restart(leader)?;
    Ok(())
}

/// Everything in a topic, read by offset to the ends of its queues.
async fn read_all(consumer: &PullConsumer, topic: &str) -> Result<Vec<PulledMessage>> {
    let mut all = Vec::new();
    for queue in consumer.queues(topic).await? {
        let end = consumer.offset(&queue, Position::End).await?;
        while consumer.position(&queue).is_none_or(|position| position < end) {
            let before = consumer.position(&queue);
            all.extend(consumer.receive(&queue, 32).await?);
            if consumer.position(&queue) == before || end == 0 {
                break;
            }
        }
    }
    Ok(all)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_of_several_topics_are_whole_and_stored_once_while_leaders_are_killed() -> Result<()> {
    const TASKS: u32 = 8;
    const BATCHES: u32 = 60;
    let mut bed = Bed::make(|plan| plan.groups = 2).await?;
    for topic in ["debits", "credits"] {
        bed.admin(&["topic", "create", topic, "--queues", "4"])?;
    }
    let client = client(&bed).await?;
    let producer = client.producer();
    let sent = Arc::new(AtomicU32::new(0));
    let mut tasks = JoinSet::new();
    for task in 0..TASKS {
        let (producer, sent) = (producer.clone(), sent.clone());
        tasks.spawn(async move {
            let mut receipts: Vec<BatchReceipt> = Vec::new();
            for number in 0..BATCHES {
                let text = format!("{task}-{number}");
                let batch = Batch::new()
                    .message(Message::new("debits", text.clone()))
                    .message(Message::new("credits", text.clone()))
                    .message(Message::new("debits", text).tag("fee"));
                receipts.push(producer.send_batch(batch).await?);
                sent.fetch_add(1, Ordering::Relaxed);
            }
            anyhow::Ok(receipts)
        });
    }
    for (group, after) in [(1, TASKS * BATCHES / 4), (2, TASKS * BATCHES / 2)] {
        let began = Instant::now();
        while sent.load(Ordering::Relaxed) < after {
            ensure!(began.elapsed() < PATIENCE, "{} batches were stored", sent.load(Ordering::Relaxed));
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        kill_leader(&mut bed, group).await?;
    }
    let mut receipts = Vec::new();
    while let Some(of) = tasks.join_next().await {
        receipts.extend(of??);
    }
    let repeated = receipts.iter().filter(|receipt| receipt.attempts > 1).count();
    let groups: BTreeSet<&str> = receipts.iter().map(|receipt| receipt.broker_group.as_str()).collect();
    ensure!(groups.len() == 2, "batches went to {groups:?}");

    // The same ids again: the first places.
    let repeat = receipts.last().context("receipts")?;
    let ids: Vec<&str> = repeat.messages.iter().map(|stored| stored.message_id.as_str()).collect();
    let topics = ["debits", "credits", "debits"];
    let again: Batch =
        topics.iter().zip(&ids).map(|(topic, id)| Message::new(*topic, "again").id(*id)).collect();
    let again = producer.send_batch(again).await?;
    ensure!(again.broker_group == repeat.broker_group, "{again:?}");
    for (again, first) in again.messages.iter().zip(&repeat.messages) {
        ensure!(again.is_repeat && again.queue_offset == first.queue_offset, "{again:?} {first:?}");
    }

    let told: BTreeMap<(String, String, u32, u64), String> = receipts
        .iter()
        .flat_map(|receipt| receipt.messages.iter().map(|stored| (receipt.broker_group.clone(), stored)))
        .map(|(broker, at)| ((at.topic.clone(), broker, at.queue_id, at.queue_offset), at.message_id.clone()))
        .collect();
    ensure!(told.len() == (TASKS * BATCHES * 3) as usize, "{} places were told", told.len());
    let consumer = client.pull_consumer(PullOptions::new("auditors").await_duration(Duration::from_secs(1)));
    let mut read = BTreeMap::new();
    for topic in ["debits", "credits"] {
        for message in read_all(&consumer, topic).await? {
            let place = (
                message.topic,
                message.broker,
                u32::try_from(message.queue_id)?,
                u64::try_from(message.queue_offset)?,
            );
            read.insert(place, message.message_id);
        }
    }
    ensure!(read == told, "{} messages were read, {} were told of", read.len(), told.len());
    println!("{} batches, {repeated} repeated by the client, {} messages", receipts.len(), read.len());

    // An offset is committed and read again, also by another instance of the group.
    let queue = consumer.queues("debits").await?.remove(0);
    consumer.commit_positions().await?;
    let other = client.pull_consumer(PullOptions::new("auditors"));
    ensure!(other.committed(&queue).await? == consumer.position(&queue), "{queue:?}");
    other.seek(&queue, 0);
    let first = other.receive(&queue, 1).await?;
    ensure!(first.first().is_some_and(|message| message.queue_offset == 0), "{first:?}");
    let beyond = consumer.offset(&queue, Position::End).await? + 1;
    let error = other.pull(&queue, beyond, 1).await.err().context("beyond the end")?;
    ensure!(error.to_string().contains(&format!("offset {beyond} is outside queue 0")), "{error}");
    bed.passed().await
}

/// What one instance received, as numbers.
#[derive(Default)]
struct Received {
    numbers: BTreeSet<u32>,
    twice: u32,
    /// Behind the last message, by broker group and queue.
    reached: BTreeMap<(String, i32), i64>,
}

impl Received {
    fn take(&mut self, messages: Vec<PulledMessage>) -> Result<()> {
        for message in messages {
            let text = std::str::from_utf8(&message.body)?;
            let number = text.parse().with_context(|| format!("received {text:?}"))?;
            let reached = self.reached.entry((message.broker, message.queue_id)).or_insert(0);
            if message.queue_offset >= *reached {
                *reached = message.queue_offset + 1;
            }
            self.twice += u32::from(!self.numbers.insert(number));
        }
        Ok(())
    }

    async fn until(&mut self, consumer: &BroadcastConsumer, count: usize) -> Result<()> {
        let began = Instant::now();
        while self.numbers.len() < count {
            ensure!(began.elapsed() < PATIENCE, "{} of {count} messages came", self.numbers.len());
            self.take(consumer.receive().await?)?;
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_instance_receives_every_message_through_a_kill_a_growth_and_its_own_restart() -> Result<()> {
    const COUNT: u32 = 600;
    let mut bed = Bed::make(|_| {}).await?;
    bed.admin(&["topic", "create", "prices", "--queues", "3"])?;
    let client = client(&bed).await?;
    let producer = client.producer();
    for number in 0..10 {
        producer.send(Message::new("prices", format!("before-{number}"))).await?;
    }
    let options = |instance: &str| {
        BroadcastOptions::new("caches", instance, "prices")
            .await_duration(Duration::from_millis(500))
            .commit_interval(Duration::from_millis(20))
            .route_refresh(Duration::from_millis(200))
    };
    let steady = client.broadcast_consumer(options("steady")).await?;
    let mortal = client.broadcast_consumer(options("mortal")).await?;
    // An instance that is away from before the first message on.
    client.broadcast_consumer(options("late")).await?.close().await?;

    let sent = Arc::new(AtomicU32::new(0));
    let sending = {
        let (producer, sent) = (producer.clone(), sent.clone());
        tokio::spawn(async move {
            for number in 0..COUNT {
                producer.send(Message::new("prices", number.to_string())).await?;
                sent.store(number + 1, Ordering::Relaxed);
            }
            anyhow::Ok(())
        })
    };
    let reading = tokio::spawn(async move {
        let mut received = Received::default();
        received.until(&steady, COUNT as usize).await?;
        // Nothing else comes.
        received.take(steady.receive().await?)?;
        steady.close().await?;
        anyhow::Ok(received)
    });
    let mut of_mortal = Received::default();
    of_mortal.until(&mortal, COUNT as usize / 6).await?;
    kill_leader(&mut bed, 1).await?;
    of_mortal.until(&mortal, COUNT as usize / 3).await?;
    bed.admin(&["topic", "update", "prices", "--queues", "7"])?;
    of_mortal.until(&mortal, COUNT as usize / 2).await?;
    // It dies without a word, and comes again under its name.
    drop(mortal);
    let before = of_mortal.numbers.len();
    let mortal = client.broadcast_consumer(options("mortal")).await?;
    of_mortal.until(&mortal, COUNT as usize).await?;
    println!("{before} messages before the restart, {} of them again after it", of_mortal.twice);
    mortal.close().await?;
    sending.await??;
    let of_steady = reading.await??;
    let all: BTreeSet<u32> = (0..COUNT).collect();
    ensure!(of_steady.numbers == all && of_mortal.numbers == all, "what was sent is received");
    ensure!(of_steady.twice == 0, "{} came twice without a restart", of_steady.twice);
    ensure!(of_steady.reached.len() == 7, "{:?}", of_steady.reached);
    // At most what was handed out since its last commit.
    ensure!((of_mortal.twice as usize) < before, "{} came twice", of_mortal.twice);

    let late = client.broadcast_consumer(options("late")).await?;
    let mut of_late = Received::default();
    of_late.until(&late, COUNT as usize).await?;
    ensure!(of_late.numbers == all && of_late.twice == 0, "it goes on where it was");
    late.close().await?;

    // The same from the command line, from the oldest message on.
    let receive = |count: u32, wait_ms: &str| -> Result<(bool, usize)> {
        let points = bed.cluster.broker_access_points();
        let output = Command::new(binary()?)
            .args(["receive", "--endpoint", &points, "--topic", "prices", "--group", "caches", "--json"])
            .args(["--broadcast", "shell", "--from", "oldest", "--wait-ms", wait_ms])
            .args(["--count", &count.to_string()])
            .output()?;
        let text = String::from_utf8(output.stdout)?;
        Ok((output.status.success(), text.lines().count()))
    };
    let all = receive(COUNT + 10, "20000")?;
    ensure!(all == (true, COUNT as usize + 10), "{all:?}");
    let more = receive(1, "600")?;
    ensure!(more == (false, 0), "it goes on where it was: {more:?}");
    bed.passed().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn consumers_that_run_go_on_where_their_group_is_moved_to_and_late_commits_count_for_nothing()
-> Result<()> {
    const COUNT: u32 = 40;
    let mut bed = Bed::make(|_| {}).await?;
    bed.admin(&["topic", "create", "rates", "--queues", "1"])?;
    let client = client(&bed).await?;
    let producer = client.producer();
    for number in 0..COUNT {
        producer.send(Message::new("rates", number.to_string())).await?;
    }
    let options = BroadcastOptions::new("desks", "tokyo", "rates")
        .start(Position::Beginning)
        .await_duration(Duration::from_millis(300))
        .commit_interval(Duration::from_millis(20));
    let broadcast = client.broadcast_consumer(options).await?;
    let mut once = Received::default();
    once.until(&broadcast, COUNT as usize).await?;
    broadcast.commit().await?;

    let pulling = PullOptions::new("clerks").await_duration(Duration::from_millis(300));
    let (clerk, other) = (client.pull_consumer(pulling.clone()), client.pull_consumer(pulling));
    let queue = clerk.queues("rates").await?.remove(0);
    while clerk.position(&queue).is_none_or(|position| position < u64::from(COUNT)) {
        clerk.receive(&queue, 16).await?;
    }
    // Who was the owner of the queue before is further behind.
    ensure!(other.committed(&queue).await?.is_none());
    clerk.commit_positions().await?;
    let behind = other.commit(&queue, 8).await.err().context("a late commit")?;
    ensure!(matches!(&behind, PullError::Behind(behind) if behind.committed == u64::from(COUNT)), "{behind}");

    kill_leader(&mut bed, 1).await?;
    for group in ["clerks", "desks%tokyo"] {
        bed.admin(&["group", "reset", group, "rates", "--to", "beginning"])?;
    }
    // Both had read everything, so no commit tells them: they see it when nothing comes.
    let mut again = Received::default();
    again.until(&broadcast, COUNT as usize).await?;
    ensure!(again.twice == 0, "{} came twice", again.twice);
    broadcast.close().await?;
    let late = other.commit(&queue, u64::from(COUNT)).await.err().context("a commit of before the reset")?;
    ensure!(matches!(&late, PullError::WasReset(_)), "{late}");
    ensure!(other.committed(&queue).await? == Some(0));
    other.commit(&queue, 4).await?;
    let began = Instant::now();
    let mut first = Vec::new();
    while first.is_empty() {
        ensure!(began.elapsed() < PATIENCE, "the clerk does not see the reset");
        first = clerk.receive(&queue, 16).await?;
    }
    ensure!(first[0].queue_offset == 4, "{first:?}");
    clerk.commit_positions().await?;
    ensure!(other.committed(&queue).await? == clerk.position(&queue));
    let committed = client.pull_consumer(PullOptions::new("desks%tokyo")).committed(&queue).await?;
    ensure!(committed == Some(u64::from(COUNT)), "{committed:?}");
    bed.passed().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_for_several_topics_is_sent_from_the_command_line_as_one_batch() -> Result<()> {
    let bed = Bed::make(|plan| plan.groups = 2).await?;
    // A nameserver takes batches, too; it has no groups of its own.
    let points = bed.cluster.nameserver_access_points();
    let send = |topics: &[&str]| -> Result<(bool, String)> {
        let topics = topics.iter().flat_map(|topic| ["--topic", topic]);
        let output = Command::new(binary()?)
            .args(["send", "--endpoint", &points, "--body", "hello", "--json", "--count", "3"])
            .args(topics)
            .output()?;
        Ok((output.status.success(), String::from_utf8(output.stdout)? + &String::from_utf8(output.stderr)?))
    };
    bed.admin(&["topic", "create", "news", "--type", "delay"])?;
    let (is_fine, told) = send(&["orders", "audit"])?;
    ensure!(is_fine && told.lines().count() == 6, "{told}");
    for pair in told.lines().collect::<Vec<_>>().chunks(2) {
        let stored: Vec<serde_json::Value> =
            pair.iter().map(|line| serde_json::from_str(line)).collect::<Result<_, _>>()?;
        ensure!(stored[0]["topic"] == "orders" && stored[1]["topic"] == "audit", "{told}");
        ensure!(stored[0]["broker"] == stored[1]["broker"], "{told}");
    }
    let (is_fine, told) = send(&["orders", "news"])?;
    ensure!(!is_fine && told.contains("takes DELAY"), "{told}");
    bed.passed().await
}
