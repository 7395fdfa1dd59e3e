//! Queues as logs: readers that pull each queue by offset, each a consumer group of its own, so that the
//! history says at which offset each of them saw each message.
//!
//! While the load goes on one reader starts over from the beginning again and again, the others read on.
//! When everything was sent, each reads to the end that the cluster names then. The last reader comes
//! afterwards and reads it all once more: what was at an offset must still be there.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ledgermq_checkers::history::{Delivery, Kind, Operation, Receiving};
use ledgermq_client::{Position, PullConsumer, PulledMessage, Queue};
use tokio::task::JoinSet;

use super::recorder::Recorder;
use super::workload::{AFTER_ERROR, RECEIVE_BATCH, number_in};

/// How long a pull waits for a first message.
pub const WAIT: Duration = Duration::from_millis(500);
/// One that starts over first does so after this many messages of a queue, and each time after twice as
/// many: so it gets on as well, and reads little more than twice of all.
const STARTS_OVER_AFTER: u64 = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// From the first message to the last.
    On,
    /// From the beginning again, now and then.
    Again,
}

pub struct LogReader {
    pub consumer: PullConsumer,
    pub recorder: Arc<Recorder>,
    pub topic: String,
    pub group: String,
    pub reading: Reading,
    /// Says that nothing more is sent: the reader ends at the end.
    pub stop: Arc<AtomicBool>,
}

impl LogReader {
    /// All queues at once, each by a process of its own.
    pub async fn run(self) -> anyhow::Result<()> {
        let queues = loop {
            match self.consumer.queues(&self.topic).await {
                Ok(queues) if !queues.is_empty() => break queues,
                other => tracing::debug!(?other, "the queues to read"),
            }
            tokio::time::sleep(AFTER_ERROR).await;
        };
        let reader = Arc::new(self);
        let mut readings = JoinSet::new();
        for queue in queues {
            let reader = Arc::clone(&reader);
            readings.spawn(async move { reader.read(&queue).await });
        }
        while let Some(ended) = readings.join_next().await {
            ended?;
        }
        reader.consumer.clone().close().await;
        Ok(())
    }

    async fn read(&self, queue: &Queue) {
        let mut process = self.recorder.process();
        let (mut offset, mut since_start, mut end) = (0, 0, None);
        let mut starts_over_after = STARTS_OVER_AFTER;
        loop {
            if self.stop.load(Ordering::Relaxed) && end.is_none() {
                end = self.consumer.offset(queue, Position::End).await.ok();
            }
            if end.is_some_and(|end| offset >= end) {
                return;
            }
            let came = self.pull(queue, &mut offset, &mut process).await;
            since_start += came;
            let starts_over = self.reading == Reading::Again && since_start >= starts_over_after;
            if starts_over && end.is_none() {
                (offset, since_start) = (0, 0);
                starts_over_after = starts_over_after.saturating_mul(2);
                // Another reader to the checker: it may see again what it saw.
                process = self.recorder.process();
            }
        }
    }

    /// How many came.
    async fn pull(&self, queue: &Queue, offset: &mut u64, process: &mut u32) -> u64 {
        let topic = self.recorder.topic_named(&self.topic);
        let asked = Receiving { group: self.group.clone(), topic, ..Receiving::default() };
        self.recorder.record(*process, Kind::Invoke, Operation::Receive(asked.clone()));
        match self.consumer.pull(queue, *offset, RECEIVE_BATCH).await {
            Ok(pulled) => {
                let deliveries: Vec<_> = pulled.messages.iter().map(pulled_delivery).collect();
                let numbers: Vec<u64> = deliveries.iter().map(|delivery| delivery.number).collect();
                let answer = Operation::Receive(Receiving { messages: deliveries, ..asked });
                self.recorder.record(*process, Kind::Ok, answer);
                let came = numbers.len() as u64;
                self.recorder.delivered_now(&self.topic, &self.group, numbers.into_iter());
                *offset = pulled.next_offset;
                came
            }
            Err(error) => {
                tracing::debug!(%error, ?queue, "pull");
                // Nothing is leased by a pull: one without an answer did nothing.
                self.recorder.record(*process, Kind::Fail, Operation::Receive(asked));
                tokio::time::sleep(AFTER_ERROR).await;
                0
            }
        }
    }
}

fn pulled_delivery(message: &PulledMessage) -> Delivery {
    Delivery {
        number: number_in(&message.body),
        id: message.message_id.clone(),
        queue: (message.broker.clone(), u32::try_from(message.queue_id).unwrap_or(u32::MAX)),
        offset: u64::try_from(message.queue_offset).unwrap_or(u64::MAX),
        // Nobody holds what was pulled, and it is no attempt.
        attempt: 1,
    }
}
