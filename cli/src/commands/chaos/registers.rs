//! Settings as registers: the most attempts a consumer group allows, written and read by many clients
//! at once. A group that nobody set reads as a register that nobody wrote.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ledgermq_checkers::history::{Kind, Operation};
use ledgermq_client::Admin;
use ledgermq_proto::admin::{SetConsumerGroupRequest, ShowConsumerGroupRequest};
use tokio::time::Instant;

use super::workload::{AFTER_ERROR, Recorder};

/// Contended by all clients at any time.
const REGISTERS: u64 = 4;
/// Operations after which the clients go on to new registers: the search for an order grows with them.
const OPERATIONS_OF_ONE: u64 = 256;
/// Values are 1 to this: within what the setting allows.
const VALUES: u64 = 1_000;

pub struct RegisterClient {
    pub admin: Admin,
    pub recorder: Arc<Recorder>,
    pub pause: Duration,
    pub stop: Arc<AtomicBool>,
}

impl RegisterClient {
    pub async fn run(self) {
        let mut process = self.recorder.process();
        let mut next = Instant::now();
        while !self.stop.load(Ordering::Relaxed) {
            let number = self.recorder.next_number();
            let key = format!("register-{}-{}", number / (REGISTERS * OPERATIONS_OF_ONE), number % REGISTERS);
            // Two reads for a write; every client does both, whatever its share of the numbers.
            let answer = if (number / REGISTERS).is_multiple_of(3) {
                self.write(process, key, number % VALUES + 1).await
            } else {
                self.read(process, key).await
            };
            if !answer {
                self.recorder.unknown.fetch_add(1, Ordering::Relaxed);
                process = self.recorder.process();
                tokio::time::sleep(AFTER_ERROR).await;
            }
            next = (next + self.pause).max(Instant::now());
            tokio::time::sleep_until(next).await;
        }
    }

    async fn write(&self, process: u32, key: String, value: u64) -> bool {
        let request = SetConsumerGroupRequest {
            name: key.clone(),
            max_attempts: u32::try_from(value).unwrap_or(1),
            ..SetConsumerGroupRequest::default()
        };
        let op = Operation::Write { key, value: i64::try_from(value).unwrap_or(1) };
        self.recorder.record(process, Kind::Invoke, op.clone());
        match self.admin.set_consumer_group(request).await {
            Ok(_) => {
                self.recorder.record(process, Kind::Ok, op);
                true
            }
            Err(error) => {
                tracing::warn!(%error, "a register was not written");
                self.recorder.record(process, Kind::Info, op);
                false
            }
        }
    }

    async fn read(&self, process: u32, key: String) -> bool {
        let request = ShowConsumerGroupRequest { name: key.clone() };
        let asked = Operation::Read { key: key.clone(), value: None };
        self.recorder.record(process, Kind::Invoke, asked.clone());
        let answer = self.admin.show_consumer_group(request).await;
        match answer.map(|answer| answer.consumer_group) {
            Ok(Some(group)) => {
                let value = group.retry.filter(|_| group.exists).map(|retry| i64::from(retry.max_attempts));
                self.recorder.record(process, Kind::Ok, Operation::Read { key, value });
                true
            }
            Ok(None) => {
                tracing::warn!(key, "an answer without a consumer group");
                self.recorder.record(process, Kind::Info, asked);
                false
            }
            Err(error) => {
                tracing::warn!(%error, "a register was not read");
                self.recorder.record(process, Kind::Info, asked);
                false
            }
        }
    }
}
