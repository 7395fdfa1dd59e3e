//! Tag and SQL92 filters through real processes: the Python SDK with a simple and a push consumer, each
//! also with the leader killed in the middle; our own client with a long stretch that nobody wants and a
//! killed leader; groups that move past what they do not want.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ledgermq_client::{Client, ClientOptions, ConsumerOptions, Message};
use ledgermq_jepsen_tests::bed::Bed;
use ledgermq_jepsen_tests::kill::kill_leader;
use ledgermq_jepsen_tests::python_program::{Fault, run};
use ledgermq_proto::admin::ShowTopicRequest;

const WITHIN: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_python_sdk_gets_what_its_filter_wants_and_nothing_else() -> Result<()> {
    let mut bed = Bed::make(|_| {}).await?;
    for fault in [Fault::None, Fault::LeaderKilled] {
        for filter in ["tag", "sql"] {
            for consumer in ["simple", "push"] {
                let killed = if fault == Fault::LeaderKilled { "-killed" } else { "" };
                let topic = format!("{filter}-{consumer}{killed}");
                run(&mut bed, "filters.py", &topic, &["--filter", filter, "--consumer", consumer], fault)
                    .await?;
            }
        }
    }
    bed.passed().await
}

/// Messages that a group did not want, of which it must not owe anything in the end.
async fn ready_messages(client: &Client, topic: &str, group: &str) -> Result<u64> {
    let request = ShowTopicRequest { name: topic.to_owned() };
    let shown = client.admin().show_topic(request).await?;
    Ok(shown
        .consumptions
        .iter()
        .filter(|consumption| consumption.consumer_group == group)
        .map(|consumption| consumption.ready + consumption.inflight)
        .sum())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_leader_neither_loses_what_is_wanted_nor_brings_back_what_is_not() -> Result<()> {
    let mut bed = Bed::make(|_| {}).await?;
    let points = bed.cluster.broker_access_points();
    let options = ClientOptions { total_deadline: Duration::from_secs(30), ..ClientOptions::default() };
    let client = Client::connect(&points, options).await?;
    let producer = client.producer();
    let consumer = client.simple_consumer(
        ConsumerOptions::new("sql-readers")
            .subscribe_sql("sql", "kind IN ('wanted') AND number >= 0")
            .await_duration(Duration::from_millis(500)),
    );
    let mut wanted = BTreeSet::new();
    let mut received = BTreeSet::new();
    for round in 0..3u32 {
        // Long stretches without a match, beyond what one look reads.
        for number in 0..700u32 {
            let kind = if number % 100 == 7 { "wanted" } else { "other" };
            let body = format!("{round}-{number}");
            let message = Message::new("sql", body.clone())
                .property("kind", kind)
                .property("number", number.to_string());
            producer.send(message).await?;
            if kind == "wanted" {
                wanted.insert(body);
            }
        }
        if round == 1 {
            kill_leader(&mut bed).await?;
        }
        // From when there is something to wait for: two thousand sends in a row take their time.
        let deadline = Instant::now() + WITHIN;
        while received.len() < wanted.len() {
            ensure!(Instant::now() < deadline, "received {} of {}", received.len(), wanted.len());
            for message in consumer.receive(16).await? {
                let body = String::from_utf8(message.body.to_vec())?;
                ensure!(wanted.contains(&body), "{body} was not wanted");
                ensure!(received.insert(body) || message.delivery_attempt > 1, "twice in a first attempt");
                consumer.ack(&message).await?;
            }
        }
    }
    // Polls that find nothing put the group behind the rest.
    let deadline = Instant::now() + WITHIN;
    while ready_messages(&client, "sql", "sql-readers").await? > 0 {
        ensure!(Instant::now() < deadline, "the group still owes messages it does not want");
        let more = consumer.receive(16).await?;
        ensure!(more.is_empty(), "received {} more", more.len());
    }
    bed.passed().await.context("stopping")
}
