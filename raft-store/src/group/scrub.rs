//! Looks through the whole log once in so long, so that bytes which rot where nobody reads are found
//! while the other replicas still have them. What is found ends the replica (`rot`).
//!
//! The pace follows from the size of the log, in pieces so small that they are not felt.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

use crate::offload::Offload;
use crate::store::LogStore;

/// A small log is not stretched over the whole time.
const BYTES_PER_S_MIN: u64 = 1 << 20;
const PIECES_PER_S: u64 = 4;

pub(super) struct Scrub {
    pub(super) store: LogStore,
    pub(super) offload: Offload,
    /// Zero: never.
    pub(super) interval: Duration,
}

impl Scrub {
    pub(super) async fn run(self, mut stopping: watch::Receiver<bool>) {
        if self.interval.is_zero() {
            return;
        }
        tokio::select! {
            biased;
            _ = stopping.wait_for(|stopping| *stopping) => {}
            () = self.look_again_and_again() => {}
        }
    }

    async fn look_again_and_again(&self) {
        loop {
            let next = Instant::now() + self.interval;
            match self.look_through().await {
                Ok(0) => {}
                Ok(bytes) => {
                    let group = self.store.identity().group;
                    tracing::info!(%group, bytes, "the log was looked through, and all of it verifies");
                }
                Err(error) => {
                    tracing::error!(%error, "looking through the log");
                    return;
                }
            }
            sleep_until(next).await;
        }
    }

    async fn look_through(&self) -> std::io::Result<u64> {
        let (mut from, mut all) = (None, 0);
        loop {
            let log_bytes = self.store.physical_end().get() - self.store.physical_start().get();
            let pace = log_bytes / self.interval.as_secs().max(1);
            let piece = pace.max(BYTES_PER_S_MIN) / PIECES_PER_S;
            let store = self.store.clone();
            let look = move || store.scrub(from, piece).map_err(std::io::Error::other);
            let seen = self.offload.run(look).await?;
            all += seen.bytes;
            if seen.next.is_none() {
                return Ok(all);
            }
            from = seen.next;
            sleep(Duration::from_secs(1) / PIECES_PER_S as u32).await;
        }
    }
}
