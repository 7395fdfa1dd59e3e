//! What the server processes used, from `/proc`.
//!
//! What was written is taken from the disk that holds the files, where that is known: everything it
//! was given meanwhile, preparation of segments and other programs included. The `write_bytes` of a
//! process will not do: where the page cache holds a large folio, one byte counts as the whole.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::Context as _;
use serde::Serialize;

/// Sums over the processes at one moment.
#[derive(Debug, Clone, Copy, Default)]
pub struct CostSample {
    cpu_seconds: f64,
    written_bytes: Option<u64>,
    resident_bytes_max: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Cost {
    pub cpu_seconds: f64,
    /// `None` where no message was handled.
    pub cpu_seconds_per_million: Option<f64>,
    /// `None` where the disk of the servers is not known.
    pub written_bytes: Option<u64>,
    pub written_bytes_per_million: Option<f64>,
    /// The largest memory any one of the processes had at the end.
    pub resident_bytes_max: u64,
}

impl CostSample {
    /// `dir` is on the disk the servers write to.
    pub fn take(pids: &[u32], dir: Option<&Path>) -> anyhow::Result<Self> {
        let mut sum = Self { written_bytes: dir.and_then(written_to_disk_of), ..Self::default() };
        for pid in pids {
            let sample = Self::of(*pid).with_context(|| format!("cannot read what process {pid} used"))?;
            sum.cpu_seconds += sample.cpu_seconds;
            sum.resident_bytes_max = sum.resident_bytes_max.max(sample.resident_bytes_max);
        }
        Ok(sum)
    }

    /// The cost from `self` to `end`, in which `messages` were handled.
    pub fn until(&self, end: &Self, messages: u64) -> Cost {
        let cpu_seconds = end.cpu_seconds - self.cpu_seconds;
        let written_bytes =
            self.written_bytes.zip(end.written_bytes).map(|(start, end)| end.saturating_sub(start));
        let per_million = |amount: f64| (messages > 0).then(|| amount / (messages as f64 / 1e6));
        Cost {
            cpu_seconds,
            cpu_seconds_per_million: per_million(cpu_seconds),
            written_bytes,
            written_bytes_per_million: written_bytes.and_then(|written| per_million(written as f64)),
            resident_bytes_max: end.resident_bytes_max,
        }
    }

    fn of(pid: u32) -> anyhow::Result<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The command name may hold spaces and brackets; fields are counted from behind it.
        let (_, fields) = stat.rsplit_once(')').context("unexpected form of stat")?;
        let fields: Vec<&str> = fields.split_whitespace().collect();
        let ticks = |index: usize| -> anyhow::Result<u64> {
            Ok(fields.get(index).context("unexpected form of stat")?.parse()?)
        };
        // Fields 14 and 15 of the manual; the first behind the name is field 3.
        let cpu_ticks = ticks(11)? + ticks(12)?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        Ok(Self {
            cpu_seconds: cpu_ticks as f64 / ticks_per_second(),
            written_bytes: None,
            resident_bytes_max: named_number(&status, "VmRSS:")? * 1024,
        })
    }
}

/// Bytes the block device below `dir` was given since it was there; `None` where that is no plain
/// block device.
pub fn written_to_disk_of(dir: &Path) -> Option<u64> {
    const SECTOR_BYTES: u64 = 512;
    let device = std::fs::metadata(dir).ok()?.dev();
    let (major, minor) = (libc::major(device), libc::minor(device));
    let stat = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/stat")).ok()?;
    // The seventh field is sectors written.
    let sectors: u64 = stat.split_whitespace().nth(6)?.parse().ok()?;
    Some(sectors * SECTOR_BYTES)
}

fn named_number(text: &str, name: &str) -> anyhow::Result<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|rest| rest.split_whitespace().next());
    Ok(number.with_context(|| format!("no {name} found"))?.parse()?)
}

fn ticks_per_second() -> f64 {
    // SAFETY: sysconf takes a number and gives one.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    if ticks > 0 { ticks as f64 } else { 100.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cost_of_this_process_grows_with_its_work() {
        let pids = [std::process::id()];
        let start = CostSample::take(&pids, None).unwrap();
        let begun = std::time::Instant::now();
        let mut spin = 0u64;
        while begun.elapsed().as_millis() < 100
            || CostSample::take(&pids, None).unwrap().cpu_seconds == start.cpu_seconds
        {
            spin = std::hint::black_box(spin.wrapping_add(1));
        }
        let cost = start.until(&CostSample::take(&pids, None).unwrap(), 1_000_000);
        assert!(cost.cpu_seconds > 0.0);
        assert_eq!(cost.cpu_seconds_per_million, Some(cost.cpu_seconds));
        assert_eq!(start.until(&start, 0).cpu_seconds_per_million, None);
        assert!(cost.resident_bytes_max > 0);
    }
}
