//! The wall clock of a child, as wrong as wanted: a shared file that the preloaded library
//! `clockskew` reads at each call.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use ledgermq_common::clock::{Clock as _, SystemClock};

/// As `clockskew` describes it.
const MAGIC: &[u8; 8] = b"LMQCLOCK";
const OFFSET_AT: u64 = 8;
const RATE_AT: u64 = 16;
const BEGIN_AT: u64 = 24;
pub(super) const FILE_VARIABLE: &str = "LEDGERMQ_CLOCK_FILE";
const LIBRARY: &str = "libledgermq_clockskew.so";

#[derive(Debug)]
pub struct SkewedClock {
    file: File,
    path: PathBuf,
    offset_ms: i64,
}

impl SkewedClock {
    pub(super) fn create(path: PathBuf) -> anyhow::Result<Self> {
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path)?;
        file.write_all_at(MAGIC, 0)?;
        file.write_all_at(&[0; 24], OFFSET_AT)?;
        Ok(Self { file, path, offset_ms: 0 })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub fn offset_ms(&self) -> i64 {
        self.offset_ms
    }

    /// A step to this much ahead of the real time, behind where negative. At once.
    pub fn step_to(&mut self, offset_ms: i64) -> anyhow::Result<()> {
        let offset_ns = offset_ms.checked_mul(1_000_000).context("the step is too large")?;
        self.file.write_all_at(&offset_ns.to_le_bytes(), OFFSET_AT)?;
        self.offset_ms = offset_ms;
        Ok(())
    }

    /// From now on it runs faster by this many millionths; 0 stops that, and what it gained is gone.
    pub fn drift(&mut self, rate_ppm: i64) -> anyhow::Result<()> {
        self.file.write_all_at(&0i64.to_le_bytes(), RATE_AT)?;
        let begin_ns = i64::try_from(SystemClock.now().get())?.checked_mul(1_000_000);
        self.file.write_all_at(&begin_ns.context("the clock is out of range")?.to_le_bytes(), BEGIN_AT)?;
        self.file.write_all_at(&rate_ppm.to_le_bytes(), RATE_AT)?;
        Ok(())
    }
}

/// The library beside the binary, or where its tests are.
pub(super) fn library(binary: &Path) -> anyhow::Result<PathBuf> {
    let beside = binary.parent().context("the binary has no folder")?;
    let candidates =
        [beside.join(LIBRARY), beside.join("..").join(LIBRARY), beside.join("deps").join(LIBRARY)];
    candidates.into_iter().find(|path| path.exists()).with_context(|| {
        format!("{LIBRARY} is not beside {}: `cargo build -p ledgermq-clockskew` makes it", binary.display())
    })
}
