//! Consumer groups that grow and shrink: consumers join them, leave them in order, and die without a
//! goodbye, some with messages in their hands. Each is a client with connections of its own.
//!
//! What a consumer that died held is delivered to the others when its leases end; so in the end each
//! group has got everything, whoever was in it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use ledgermq_client::{Client, ClientOptions, ConsumerOptions};
use tokio::task::JoinHandle;

use super::recorder::Recorder;
use super::workload::{AFTER_ERROR, LEASE, Receiver};
use ledgermq_faultnet::Dice;

pub const GROUPS: u32 = 3;
const MEMBERS_MAX: usize = 4;
/// Between two changes of a group, and up to as long again by chance.
const CHANGE_EVERY: Duration = Duration::from_millis(400);
const SETTLED_POLL: Duration = Duration::from_millis(100);
const AWAIT: Duration = Duration::from_millis(1_500);

pub struct Churn {
    pub points: String,
    pub options: ClientOptions,
    pub recorder: Arc<Recorder>,
    pub topic: String,
    pub group: String,
    pub dice: Dice,
    /// Nothing more is sent: from now on nobody leaves.
    pub settle: Arc<AtomicBool>,
    pub stop: Arc<AtomicBool>,
}

#[derive(Debug, Default)]
struct Changes {
    joined: u32,
    left: u32,
    died_holding: u32,
    died_at_any_time: u32,
}

struct Member {
    leaves: Arc<AtomicBool>,
    dies: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Drop for Member {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Churn {
    pub async fn run(mut self) -> anyhow::Result<()> {
        let mut members: Vec<Member> = vec![self.join()];
        let mut changes = Changes { joined: 1, ..Changes::default() };
        while !self.stop.load(Ordering::Relaxed) {
            if self.settle.load(Ordering::Relaxed) {
                members.retain(|member| !member.task.is_finished());
                if members.len() < 2 {
                    members.push(self.join());
                    changes.joined += 1;
                }
                tokio::time::sleep(SETTLED_POLL).await;
                continue;
            }
            self.change(&mut members, &mut changes).await?;
            let more = self.dice.below(CHANGE_EVERY.as_millis() as u64 + 1);
            tokio::time::sleep(CHANGE_EVERY + Duration::from_millis(more)).await;
        }
        for member in members {
            member.leave().await?;
        }
        let Changes { joined, left, died_holding, died_at_any_time } = changes;
        self.recorder.prove(format!(
            "{}: {joined} joined, {left} left, {died_holding} died with messages in hand, \
             {died_at_any_time} at any time",
            self.group
        ));
        Ok(())
    }

    async fn change(&mut self, members: &mut Vec<Member>, changes: &mut Changes) -> anyhow::Result<()> {
        members.retain(|member| {
            let has_died = member.task.is_finished();
            changes.died_holding += u32::from(has_died && member.dies.load(Ordering::Relaxed));
            !has_died
        });
        let chosen = self.dice.below(members.len().max(1) as u64) as usize;
        match self.dice.below(5) {
            0 | 1 if members.len() < MEMBERS_MAX => {
                members.push(self.join());
                changes.joined += 1;
            }
            2 if chosen < members.len() => {
                members.remove(chosen).leave().await?;
                changes.left += 1;
            }
            3 => {
                if let Some(member) = members.get(chosen) {
                    member.dies.store(true, Ordering::Relaxed);
                }
            }
            4 if chosen < members.len() => {
                // Dropped: whatever it was doing stays undone.
                drop(members.remove(chosen));
                changes.died_at_any_time += 1;
            }
            _ => {}
        }
        Ok(())
    }

    fn join(&self) -> Member {
        let (leaves, dies) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let one = One {
            points: self.points.clone(),
            options: self.options.clone(),
            recorder: Arc::clone(&self.recorder),
            topic: self.topic.clone(),
            group: self.group.clone(),
            leaves: Arc::clone(&leaves),
            dies: Arc::clone(&dies),
        };
        Member { leaves, dies, task: tokio::spawn(one.run()) }
    }
}

impl Member {
    /// Finishes what it does and says goodbye.
    async fn leave(mut self) -> anyhow::Result<()> {
        self.leaves.store(true, Ordering::Relaxed);
        (&mut self.task).await.context("a consumer ended early")
    }
}

struct One {
    points: String,
    options: ClientOptions,
    recorder: Arc<Recorder>,
    topic: String,
    group: String,
    leaves: Arc<AtomicBool>,
    dies: Arc<AtomicBool>,
}

impl One {
    async fn run(self) {
        let client = loop {
            match Client::connect(&self.points, self.options.clone()).await {
                Ok(client) => break client,
                Err(error) => tracing::debug!(%error, "a consumer that joins"),
            }
            if self.leaves.load(Ordering::Relaxed) {
                return;
            }
            tokio::time::sleep(AFTER_ERROR).await;
        };
        let options = ConsumerOptions::new(self.group.clone())
            .subscribe(&self.topic, "*")
            .await_duration(AWAIT)
            .invisible_duration(LEASE);
        let receiver = Receiver {
            consumer: client.simple_consumer(options),
            recorder: self.recorder,
            topic: self.topic,
            group: self.group,
            stop: self.leaves,
        };
        let mut process = receiver.recorder.process();
        while !receiver.stop.load(Ordering::Relaxed) {
            let messages = receiver.receive(&mut process).await;
            if messages.is_empty() {
                continue;
            }
            if self.dies.load(Ordering::Relaxed) {
                return;
            }
            receiver.ack(&mut process, &messages).await;
        }
        receiver.consumer.close().await;
    }
}
