//! What the disk can do, measured the way the log uses it: 4 KiB written and synced into a file
//! that was filled with zeros before, and a long sequential write past the page cache.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::Instant;

use anyhow::Context as _;
use serde::Serialize;

use crate::latency::{Latency, LatencyRecorder};

const SYNC_FILE_BYTES: usize = 16 * 1024 * 1024;
const SYNC_WRITES: usize = 2_000;
const PAGE_BYTES: usize = 4096;
const SEQUENTIAL_BYTES: usize = 512 * 1024 * 1024;
const SEQUENTIAL_WRITE_BYTES: usize = 1024 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Disk {
    pub fdatasync: Latency,
    pub sequential_bytes_per_second: f64,
}

/// Blocks for a second or several. The files are removed again.
pub fn measure(dir: &Path) -> anyhow::Result<Disk> {
    let probe = dir.join(format!("ledgermq-disk-probe-{}", std::process::id()));
    let outcome = measure_with(&probe);
    let _ = std::fs::remove_file(&probe);
    outcome.with_context(|| format!("cannot measure the disk below {}", dir.display()))
}

fn measure_with(probe: &Path) -> anyhow::Result<Disk> {
    let fdatasync = measure_sync(probe)?;
    let sequential_bytes_per_second = measure_sequential(probe)?;
    Ok(Disk { fdatasync, sequential_bytes_per_second })
}

fn measure_sync(probe: &Path) -> anyhow::Result<Latency> {
    let mut file = File::create(probe)?;
    file.write_all(&vec![0; SYNC_FILE_BYTES])?;
    file.sync_all()?;
    let page = [0x5a; PAGE_BYTES];
    let mut latencies = LatencyRecorder::new()?;
    for number in 0..SYNC_WRITES {
        let offset = (number * PAGE_BYTES) % SYNC_FILE_BYTES;
        let begun = Instant::now();
        file.write_all_at(&page, offset as u64)?;
        file.sync_data()?;
        latencies.record(begun.elapsed());
    }
    Ok(latencies.summary())
}

fn measure_sequential(probe: &Path) -> anyhow::Result<f64> {
    let direct = OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(probe);
    // Not every file system knows O_DIRECT; the sync at the end makes the figure true either way.
    let file = match direct {
        Ok(file) => file,
        Err(_) => OpenOptions::new().write(true).open(probe)?,
    };
    let buffer = vec![0x5a; SEQUENTIAL_WRITE_BYTES + PAGE_BYTES];
    // O_DIRECT takes only memory that is aligned to the disk's block.
    let start = buffer.as_ptr().align_offset(PAGE_BYTES);
    let aligned = buffer.get(start..start + SEQUENTIAL_WRITE_BYTES).context("no aligned memory")?;
    let begun = Instant::now();
    for offset in (0..SEQUENTIAL_BYTES).step_by(SEQUENTIAL_WRITE_BYTES) {
        file.write_all_at(aligned, offset as u64)?;
    }
    file.sync_data()?;
    Ok(SEQUENTIAL_BYTES as f64 / begun.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_probe_measures_and_leaves_nothing_behind() {
        let dir = std::env::temp_dir().join(format!("ledgermq-bench-test-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let disk = measure(&dir).unwrap();
        assert!(disk.fdatasync.p50_us > 0.0 && disk.fdatasync.p50_us <= disk.fdatasync.p99_us);
        assert!(disk.sequential_bytes_per_second > 0.0);
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0);
        std::fs::remove_dir(&dir).unwrap();
    }
}
