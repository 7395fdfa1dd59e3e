//! Counters of the writer, read by metrics while it runs.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::store::WriteStats;

#[derive(Debug, Default)]
pub struct WriteCounters {
    sync_buckets: [AtomicU64; 24],
    sync_total_us: AtomicU64,
    syncs: AtomicU64,
    batches: AtomicU64,
    entries: AtomicU64,
    bytes_written: AtomicU64,
}

impl WriteCounters {
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
