//! A leader that stood still while another took its place does not tell what was true before.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ledgermq_client::{AdminError, Client, ClientOptions};
use ledgermq_jepsen_tests::bed::Bed;
use ledgermq_proto::admin::{
    CreateTopicRequest, DeleteTopicRequest, SetConsumerGroupRequest, ShowConsumerGroupRequest,
    ShowTopicRequest,
};
use tokio::task::JoinSet;

/// Enough that some are answered before the node has heard of its successor.
const QUESTIONS: usize = 64;
const LEADER_WITHIN: Duration = Duration::from_secs(20);
const ARRIVED_WITHIN: Duration = Duration::from_secs(10);
/// The questions without their frames are longer.
const QUESTION_BYTES_MIN: u64 = 1_000;

/// Bytes that wait for whoever listens at this port of this machine.
fn unread_bytes(port: &str) -> Result<u64> {
    let port = format!(":{:04X}", port.parse::<u16>()?);
    let table = std::fs::read_to_string("/proc/net/tcp")?;
    let rows = table.lines().skip(1).map(|row| row.split_whitespace().collect::<Vec<_>>());
    let of_port = rows.filter(|row| row.get(1).is_some_and(|local| local.ends_with(&port)));
    let queues = of_port.filter_map(|row| row.get(4)?.split_once(':').map(|(_, unread)| unread.to_owned()));
    Ok(queues.filter_map(|unread| u64::from_str_radix(&unread, 16).ok()).sum())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_was_replaced_while_it_stood_still_tells_nothing_old() -> Result<()> {
    let mut bed = Bed::make(|_| {}).await?;
    let connect = |points: String| async move { Client::connect(&points, ClientOptions::default()).await };
    let leader = bed.cluster.wait_leader(1, LEADER_WITHIN).await?;
    let at_leader = bed.cluster.access_point(leader)?;
    let others: Vec<String> = bed
        .cluster
        .brokers()
        .filter(|member| *member != leader)
        .map(|member| bed.cluster.access_point(member))
        .collect::<Result<_>>()?;
    let (old, new) = (connect(at_leader.clone()).await?.admin(), connect(others.join(";")).await?.admin());
    let set = |max_attempts| SetConsumerGroupRequest {
        name: "readers".to_owned(),
        max_attempts,
        ..SetConsumerGroupRequest::default()
    };
    let show = ShowTopicRequest { name: "gone".to_owned() };
    old.create_topic(CreateTopicRequest { name: "gone".to_owned(), ..Default::default() }).await?;
    old.set_consumer_group(set(3)).await?;
    ensure!(old.show_topic(show.clone()).await.is_ok());

    bed.cluster.pause(leader)?;
    new.delete_topic(DeleteTopicRequest { name: "gone".to_owned() }).await?;
    new.set_consumer_group(set(7)).await?;
    let mut topics = JoinSet::new();
    let mut groups = JoinSet::new();
    for _ in 0..QUESTIONS {
        let (old, show) = (old.clone(), show.clone());
        let of_group = old.clone();
        topics.spawn(async move { old.show_topic(show).await });
        groups.spawn(async move {
            let request = ShowConsumerGroupRequest { name: "readers".to_owned() };
            of_group.show_consumer_group(request).await
        });
    }
    let (_, port) = at_leader.rsplit_once(':').context("host and port")?;
    let asked = Instant::now();
    while unread_bytes(port)? < QUESTION_BYTES_MIN {
        ensure!(asked.elapsed() < ARRIVED_WITHIN, "the questions did not come to the node that stands still");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    bed.cluster.resume(leader)?;

    let (mut stale, mut answered) = (0, 0);
    while let Some(answer) = topics.join_next().await {
        answered += 1;
        match answer? {
            Err(AdminError::NotFound { .. }) => {}
            Ok(_) => stale += 1,
            Err(error) => return Err(error.into()),
        }
    }
    while let Some(answer) = groups.join_next().await {
        answered += 1;
        let retry = answer??.consumer_group.and_then(|group| group.retry);
        stale += usize::from(retry.map(|retry| retry.max_attempts) != Some(7));
    }
    ensure!(answered == 2 * QUESTIONS && stale == 0, "{stale} of {answered} answers were of the past");
    bed.passed().await
}
