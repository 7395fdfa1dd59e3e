//! Broken builds of a broker, which the simulation has to catch: a judge that never convicts
//! proves nothing.
//!
//! | Defect | Broken promise |
//! |---|---|
//! | [`Defect::SyncLies`] | acknowledged means synced on a majority |
//! | [`Defect::VoteForgotten`] | a vote is durable before it is given |
//! | [`Defect::ApplyDiverges`] | all replicas answer the same |

use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use ledgermq_raft_store::io::{DirectoryLock, Disk, DiskFile};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Defect {
    /// `sync_data` answers without doing anything.
    SyncLies,
    /// The same, for the superblock only, where the votes are.
    VoteForgotten,
    /// One replica answers one command in 50 differently.
    ApplyDiverges,
}

impl Defect {
    pub fn spoil(self, disk: Arc<dyn Disk>) -> Arc<dyn Disk> {
        match self {
            Self::SyncLies => Arc::new(LyingDisk { inner: disk, only: None }),
            Self::VoteForgotten => Arc::new(LyingDisk { inner: disk, only: Some("superblock") }),
            Self::ApplyDiverges => disk,
        }
    }
}

#[derive(Debug)]
struct LyingDisk {
    inner: Arc<dyn Disk>,
    /// Lies about files whose name holds this only.
    only: Option<&'static str>,
}

impl LyingDisk {
    fn wrap(&self, path: &Path, file: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if self.only.is_none_or(|only| name.contains(only)) { Arc::new(LyingFile(file)) } else { file }
    }
}

impl Disk for LyingDisk {
    fn create_directory(&self, path: &Path) -> io::Result<()> {
        self.inner.create_directory(path)
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(self.wrap(path, self.inner.create(path)?))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(self.wrap(path, self.inner.open(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.inner.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.inner.remove(path)
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<String>> {
        self.inner.list(directory)
    }

    fn sync_directory(&self, directory: &Path) -> io::Result<()> {
        self.inner.sync_directory(directory)
    }

    fn lock(&self, directory: &Path) -> io::Result<Box<dyn DirectoryLock>> {
        self.inner.lock(directory)
    }
}

#[derive(Debug)]
struct LyingFile(Arc<dyn DiskFile>);

impl DiskFile for LyingFile {
    fn write_vectored_at(&self, parts: &[IoSlice<'_>], at: u64) -> io::Result<()> {
        self.0.write_vectored_at(parts, at)
    }

    fn read_at(&self, into: &mut [u8], at: u64) -> io::Result<usize> {
        self.0.read_at(into, at)
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn byte_len(&self) -> io::Result<u64> {
        self.0.byte_len()
    }

    fn reserve(&self, len: u64) -> io::Result<()> {
        self.0.reserve(len)
    }

    fn zero_fill(&self, at: u64, len: u64) -> io::Result<()> {
        self.0.zero_fill(at, len)
    }

    fn map(&self, at: u64, len: usize) -> io::Result<Bytes> {
        self.0.map(at, len)
    }
}
