//! Corruption that is met while the log runs: a sector that went bad below bytes which were synced.
//!
//! A start walks the newest segment only, so an older one that rots is noticed when somebody reads it.
//! The replica must not go on: it would refuse that message for ever while it leads. It writes down what
//! it met, its store ends as after a failed write, the process with it, and the next start refuses the
//! directory as it refuses any other corruption, from where the replica is repaired from its peers.
//! Where there are no peers nothing of this happens: the read is refused, and the rest is served.
//!
//! The file `rotten`, text in UTF-8, for the operator and for the message of the next start:
//!
//! | Line | Content |
//! |---|---|
//! | 1 | `ledgermq-rotten 1` |
//! | 2 | `<from>..<to> of <file>` |
//! | 3 | why it does not verify |
//!
//! Its presence counts, whatever it says: a crash may have left half of it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::commit_log::CommitLog;
use crate::io::Disk;
use crate::store::{OpenError, ReadError, StoreFault};

pub const FILE_NAME: &str = "rotten";
const HEADER: &str = "ledgermq-rotten 1";
/// More is not read of it.
const BYTES_MAX: usize = 4096;

/// Ends a store that met corruption.
#[derive(Debug)]
pub struct Watch {
    pub disk: Arc<dyn Disk>,
    pub directory: PathBuf,
}

impl Watch {
    pub fn met(&self, log: &CommitLog, error: &ReadError) {
        let ReadError::Corrupt { file, from, to, why } = error else { return };
        if log.stopped().is_some() {
            return;
        }
        let told = format!("{HEADER}\n{from}..{to} of {}\n{why}\n", file.display());
        if let Err(error) = self.write(&told) {
            // The process ends all the same; the next one meets it again.
            tracing::error!(%error, "what was found rotten could not be written down");
        }
        log.poison(StoreFault { operation: "read", file: file.clone(), reason: error.to_string() });
    }

    fn write(&self, told: &str) -> std::io::Result<()> {
        let file = self.disk.create(&self.directory.join(FILE_NAME))?;
        file.write_at(told.as_bytes(), 0)?;
        file.sync_data()?;
        self.disk.sync_directory(&self.directory)
    }
}

/// What an earlier run met, if it met something.
pub fn found(disk: &dyn Disk, directory: &Path, names: &[String]) -> Option<OpenError> {
    if !names.iter().any(|name| name == FILE_NAME) {
        return None;
    }
    let path = directory.join(FILE_NAME);
    let mut told = vec![0; BYTES_MAX];
    let read = disk.open(&path).and_then(|file| file.read_at(&mut told, 0)).unwrap_or(0);
    told.truncate(read);
    let told = String::from_utf8_lossy(&told);
    let met: Vec<&str> = told.lines().skip(1).collect();
    Some(OpenError::Corrupt {
        file: path,
        from: 0,
        to: read as u64,
        why: format!("an earlier run met corruption: {}", met.join(": ")),
    })
}
