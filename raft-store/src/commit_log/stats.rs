//! Counters of the writer, read by metrics while it runs.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::store::WriteStats;

#[derive(Debug)]
pub struct WriteCounters {
    started: Instant,
    /// Since when the writer waits for the disk, in microseconds after `started` and one more; 0
    /// while it does not.
    waiting_since_us: AtomicU64,
    sync_buckets: [AtomicU64; 24],
    sync_total_us: AtomicU64,
    syncs: AtomicU64,
    batches: AtomicU64,
    entries: AtomicU64,
    bytes_written: AtomicU64,
}

impl Default for WriteCounters {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            waiting_since_us: AtomicU64::default(),
            sync_buckets: Default::default(),
            sync_total_us: AtomicU64::default(),
            syncs: AtomicU64::default(),
            batches: AtomicU64::default(),
            entries: AtomicU64::default(),
            bytes_written: AtomicU64::default(),
        }
    }
}

impl WriteCounters {
    /// The writer turns to the disk.
    pub fn wait_begins(&self) {
        let us = u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX - 1);
        self.waiting_since_us.store(us + 1, Ordering::Relaxed);
    }

    /// The disk has answered.
    pub fn wait_ends(&self) {
        self.waiting_since_us.store(0, Ordering::Relaxed);
    }

    /// How long the writer has been waiting for the disk to answer.
    pub fn waits_for(&self) -> Duration {
        match self.waiting_since_us.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            since => self.started.elapsed().saturating_sub(Duration::from_micros(since - 1)),
        }
    }

    pub fn synced(&self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        // Below 2^i microseconds and not below half of it: i is the length of the number in bits.
        let bucket = (u64::BITS - us.leading_zeros()) as usize;
        let last = self.sync_buckets.len() - 1;
        if let Some(bucket) = self.sync_buckets.get(bucket.min(last)) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        self.sync_total_us.fetch_add(us, Ordering::Relaxed);
        self.syncs.fetch_add(1, Ordering::Relaxed);
    }

    pub fn wrote_batch(&self, entries: u64, bytes: u64) {
        self.batches.fetch_add(1, Ordering::Relaxed);
        self.entries.fetch_add(entries, Ordering::Relaxed);
        self.bytes_written.fetch_add(bytes, Ordering::Relaxed);
    }

    pub fn read(&self) -> WriteStats {
        let mut stats = WriteStats {
            sync_total_us: self.sync_total_us.load(Ordering::Relaxed),
            syncs: self.syncs.load(Ordering::Relaxed),
            batches: self.batches.load(Ordering::Relaxed),
            entries: self.entries.load(Ordering::Relaxed),
            bytes_written: self.bytes_written.load(Ordering::Relaxed),
            ..WriteStats::default()
        };
        for (out, bucket) in stats.sync_buckets.iter_mut().zip(&self.sync_buckets) {
            *out = bucket.load(Ordering::Relaxed);
        }
        stats
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_wait_lasts_from_its_begin_until_the_disk_answers() {
        let counters = WriteCounters::default();
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(counters.waits_for(), Duration::ZERO);
        counters.wait_begins();
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(counters.waits_for(), Duration::from_secs(2));
        counters.wait_ends();
        assert_eq!(counters.waits_for(), Duration::ZERO);
    }

    #[test]
    fn a_sync_is_counted_in_the_bucket_of_its_length() {
        let counters = WriteCounters::default();
        for us in [0, 1, 37, 64, u64::MAX / 2] {
            counters.synced(Duration::from_micros(us));
        }
        let buckets = counters.read().sync_buckets;
        assert_eq!((buckets[0], buckets[1], buckets[6], buckets[7], buckets[23]), (1, 1, 1, 1, 1));
    }
}
