//! The real disk, whose syncs do not come back while it is told to stall.

use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use ledgermq_raft_store::io::{DirectoryLock, Disk, DiskFile, RealDisk};
use parking_lot::{Condvar, Mutex};

#[derive(Debug, Default)]
pub struct Stall {
    stalls: Mutex<bool>,
    changed: Condvar,
}

impl Stall {
    pub fn set(&self, stalls: bool) {
        *self.stalls.lock() = stalls;
        self.changed.notify_all();
    }

    fn pass(&self) {
        let mut stalls = self.stalls.lock();
        while *stalls {
            self.changed.wait(&mut stalls);
        }
    }
}

#[derive(Debug)]
pub struct StallingDisk(pub Arc<Stall>);

#[derive(Debug)]
struct StallingFile {
    file: Arc<dyn DiskFile>,
    stall: Arc<Stall>,
}

impl StallingDisk {
    fn file(&self, file: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        Arc::new(StallingFile { file, stall: Arc::clone(&self.0) })
    }
}

impl Disk for StallingDisk {
    fn create_directory(&self, path: &Path) -> io::Result<()> {
        RealDisk.create_directory(path)
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(self.file(RealDisk.create(path)?))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(self.file(RealDisk.open(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        RealDisk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        RealDisk.remove(path)
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<String>> {
        RealDisk.list(directory)
    }

    fn sync_directory(&self, directory: &Path) -> io::Result<()> {
        self.0.pass();
        RealDisk.sync_directory(directory)
    }

    fn lock(&self, directory: &Path) -> io::Result<Box<dyn DirectoryLock>> {
        RealDisk.lock(directory)
    }
}

impl DiskFile for StallingFile {
    fn write_vectored_at(&self, parts: &[IoSlice<'_>], at: u64) -> io::Result<()> {
        self.file.write_vectored_at(parts, at)
    }

    fn read_at(&self, into: &mut [u8], at: u64) -> io::Result<usize> {
        self.file.read_at(into, at)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.stall.pass();
        self.file.sync_data()
    }

    fn byte_len(&self) -> io::Result<u64> {
        self.file.byte_len()
    }

    fn reserve(&self, len: u64) -> io::Result<()> {
        self.file.reserve(len)
    }

    fn zero_fill(&self, at: u64, len: u64) -> io::Result<()> {
        self.file.zero_fill(at, len)
    }

    fn map(&self, at: u64, len: usize) -> io::Result<Bytes> {
        self.file.map(at, len)
    }
}
