//! More sends than the cluster can take, and no election for it.
//!
//! First senders that wait for their answers find out what it takes; then sends begin at 120 % of
//! that whether or not the others are answered. What cannot be stored in time may fail, and says so:
//! that is shedding load (TOO_MANY_REQUESTS, which the client repeats until its time is up). An election is not: who is busy must still be heard.
//!
//! Real senders are on machines of their own. Here they share the processors with the brokers, which
//! would take what the senders need to keep their rate, so the senders run on threads of their own
//! that go before the brokers (where the user may do that; else fewer sends are offered, and the
//! run says so).
//!
//! | Seen by | |
//! |---|---|
//! | the offered rate | at least [`OFFERED_PERCENT_MIN`] of saturation, or the run fails |
//! | no election | the term is the same before and after |

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use ledgermq_client::{Client, ClientOptions};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::nemesis::{GROUP, Nemesis};
use super::recorder::Recorder;
use super::workload::Sender;

const SENDERS: u32 = 512;
const SATURATION_TIME: Duration = Duration::from_secs(5);
const WARM_UP: Duration = Duration::from_secs(1);
const OFFERED_PERCENT: u64 = 120;
const OFFERED_PERCENT_MIN: u64 = 110;
const TICK: Duration = Duration::from_millis(5);
/// Sends that are under way at a time; one that would be more is not made, and counts as not offered.
const UNDER_WAY_MAX: usize = 100_000;
/// How long a sender waits for an answer. With this and the rate, what is under way is bounded.
const PATIENCE: Duration = Duration::from_secs(5);
const THREADS: usize = 2;
/// As `nice -n -10`: the senders then get nine tenths of a processor they share with a broker.
const NICENESS: i32 = -10;

/// Where the sends go.
#[derive(Clone)]
pub struct Flood {
    pub points: String,
    pub recorder: Arc<Recorder>,
    pub topic: String,
    pub body_bytes: usize,
}

/// What the senders saw.
struct Offered {
    saturation: u64,
    sends: u64,
    acknowledged: u64,
    /// Not acknowledged, and told why.
    throttled: u64,
}

/// Senders that go before other processes.
fn threads() -> std::io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(THREADS)
        .thread_name("senders")
        .on_thread_start(|| {
            if let Err(error) = rustix::process::setpriority_process(None, NICENESS) {
                tracing::warn!(%error, "the senders share the processors with the brokers");
            }
        })
        .enable_all()
        .build()
}

impl Flood {
    /// To be run on [`threads`].
    async fn pour(self, time: Duration) -> anyhow::Result<Offered> {
        let patient = ClientOptions { total_deadline: PATIENCE, ..ClientOptions::default() };
        let client = Client::connect(&self.points, patient).await?;
        let saturation = self.saturation(&client).await?;
        ensure!(saturation > 0, "nothing was acknowledged");
        let throttled = || self.recorder.throttled.load(Ordering::Relaxed);
        let (before, throttled_before) = (self.recorder.acknowledged(), throttled());
        let sends = self.offer(&client, saturation * OFFERED_PERCENT / 100, time).await?;
        Ok(Offered {
            saturation,
            sends,
            acknowledged: self.recorder.acknowledged() - before,
            throttled: throttled() - throttled_before,
        })
    }

    fn sender(&self, client: &Client, stop: Arc<AtomicBool>) -> Sender {
        Sender {
            producer: client.producer(),
            recorder: Arc::clone(&self.recorder),
            topic: self.topic.clone(),
            body_bytes: self.body_bytes,
            message_groups: Vec::new(),
            batch: 1,
            pause: Duration::ZERO,
            stop,
        }
    }

    /// Acknowledged sends per second while every sender waits for its answers.
    async fn saturation(&self, client: &Client) -> anyhow::Result<u64> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut senders = JoinSet::new();
        for _ in 0..SENDERS {
            senders.spawn(self.sender(client, Arc::clone(&stop)).run());
        }
        tokio::time::sleep(WARM_UP).await;
        let (before, began) = (self.recorder.acknowledged(), Instant::now());
        tokio::time::sleep(SATURATION_TIME).await;
        let acknowledged = self.recorder.acknowledged() - before;
        let per_second = acknowledged as f64 / began.elapsed().as_secs_f64();
        stop.store(true, Ordering::Relaxed);
        while let Some(ended) = senders.join_next().await {
            ended.context("a sender ended early")?;
        }
        Ok(per_second as u64)
    }

    /// Begins so many sends per second; answers how many it began.
    async fn offer(&self, client: &Client, per_second: u64, time: Duration) -> anyhow::Result<u64> {
        let sender = Arc::new(self.sender(client, Arc::default()));
        let began = Instant::now();
        let (mut due, mut offered) = (0, 0);
        let mut under_way = JoinSet::new();
        while began.elapsed() < time {
            let due_now = (began.elapsed().as_secs_f64() * per_second as f64) as u64;
            for _ in due..due_now {
                if under_way.len() >= UNDER_WAY_MAX {
                    break;
                }
                let sender = Arc::clone(&sender);
                under_way.spawn(async move { sender.send_one(&mut sender.recorder.process()).await });
                offered += 1;
            }
            due = due_now;
            tokio::time::sleep(TICK).await;
            while let Some(ended) = under_way.try_join_next() {
                ended.context("a send ended early")?;
            }
        }
        while let Some(ended) = under_way.join_next().await {
            ended.context("a send ended early")?;
        }
        Ok(offered)
    }
}

impl Nemesis<'_> {
    pub(super) async fn overload(&mut self) -> anyhow::Result<String> {
        let flood = self.flood.clone().context("nothing to flood the cluster with")?;
        let (_, term) = self.cluster.group_and_term(GROUP).await?;
        let senders = threads().context("no threads for the senders")?;
        let poured = senders.spawn(flood.pour(self.fault_time)).await;
        senders.shutdown_background();
        let Offered { saturation, sends, acknowledged, throttled } =
            poured.context("the senders ended early")??;
        let (_, term_after) = self.cluster.group_and_term(GROUP).await?;
        ensure!(term_after == term, "overload made an election: term {term} before, {term_after} after");
        let per_second = (sends as f64 / self.fault_time.as_secs_f64()) as u64;
        ensure!(
            per_second >= saturation * OFFERED_PERCENT_MIN / 100,
            "only {per_second} sends per second were offered, saturation is {saturation}"
        );
        Ok(format!(
            "saturation {saturation} sends per second, {per_second} offered; {acknowledged} of {sends} \
             acknowledged, {throttled} of the others told that the cluster is busy, no election"
        ))
    }
}
