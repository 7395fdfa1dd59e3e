//! The operating system's disk (Linux).
//!
//! Writes go through `pwritev` and `fdatasync`; mappings are read-only. A file is never shortened
//! while the process runs, so a mapped byte stays backed: the remaining cause of SIGBUS is a disk
//! that cannot read it.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use rustix::fs::FallocateFlags;

use super::{DirectoryLock, Disk, DiskFile};

/// Linux's IOV_MAX: more parts than this in one call are refused with EINVAL.
const PARTS_PER_WRITE_MAX: usize = 1024;
/// Small, because the page cache keeps what one call wrote as one folio, and every later sync of a
/// few bytes walks the whole folio: 64 KiB costs an append nothing, 256 KiB 15 us.
const ZERO_CHUNK_BYTES: usize = 64 * 1024;
static ZEROS: [u8; ZERO_CHUNK_BYTES] = [0; ZERO_CHUNK_BYTES];
const LOCK_FILE: &str = "lock";

#[derive(Debug, Clone, Copy, Default)]
pub struct RealDisk;

#[derive(Debug)]
struct RealFile {
    file: File,
    /// The newest mapping, from the start of the file to its length at that time. Slices handed
    /// out keep the mapping they came from alive.
    mapping: Mutex<Bytes>,
}

#[derive(Debug)]
struct RealLock {
    /// The kernel releases the lock when the descriptor closes, so also when the process dies.
    _file: File,
}

impl DirectoryLock for RealLock {}

impl RealFile {
    fn shared(file: File) -> Arc<dyn DiskFile> {
        Arc::new(Self { file, mapping: Mutex::new(Bytes::new()) })
    }
}

impl Disk for RealDisk {
    fn create_directory(&self, path: &Path) -> io::Result<()> {
        // One that is there is synced all the same: who made it may have ended before it did that.
        if !path.is_dir() {
            if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                self.create_directory(parent)?;
            }
            match std::fs::create_dir(path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
                other => other?,
            }
        }
        match path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            Some(parent) => self.sync_directory(parent),
            None => self.sync_directory(Path::new(".")),
        }
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?;
        Ok(RealFile::shared(file))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(RealFile::shared(OpenOptions::new().read(true).write(true).open(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(directory)? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                names.push(entry.file_name().to_string_lossy().into_owned());
            }
        }
        names.sort();
        Ok(names)
    }

    fn sync_directory(&self, directory: &Path) -> io::Result<()> {
        File::open(directory)?.sync_all()
    }

    fn lock(&self, directory: &Path) -> io::Result<Box<dyn DirectoryLock>> {
        let path = directory.join(LOCK_FILE);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        match fs4::FileExt::try_lock(&file) {
            Ok(()) => Ok(Box::new(RealLock { _file: file })),
            Err(fs4::TryLockError::WouldBlock) => Err(io::ErrorKind::WouldBlock.into()),
            Err(fs4::TryLockError::Error(error)) => Err(error),
        }
    }
}

impl DiskFile for RealFile {
    fn write_vectored_at(&self, parts: &[IoSlice<'_>], at: u64) -> io::Result<()> {
        let mut position = at;
        for chunk in parts.chunks(PARTS_PER_WRITE_MAX) {
            let total: usize = chunk.iter().map(|part| part.len()).sum();
            let written = retry_interrupted(|| rustix::io::pwritev(&self.file, chunk, position))?;
            if written < total {
                // A short write is rare (a signal, a disk just filled up), so the rest goes part
                // by part; a full disk then answers with its error.
                let mut skip = written;
                let mut part_at = position;
                for part in chunk {
                    let from = skip.min(part.len());
                    skip -= from;
                    if let Some(rest) = part.get(from..).filter(|rest| !rest.is_empty()) {
                        self.file.write_all_at(rest, part_at + from as u64)?;
                    }
                    part_at += part.len() as u64;
                }
            }
            position += total as u64;
        }
        Ok(())
    }

    fn read_at(&self, into: &mut [u8], at: u64) -> io::Result<usize> {
        let mut filled = 0;
        while let Some(rest) = into.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.file.read_at(rest, at + filled as u64) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }

    fn sync_data(&self) -> io::Result<()> {
        rustix::fs::fdatasync(&self.file).map_err(io::Error::from)
    }

    fn byte_len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn reserve(&self, len: u64) -> io::Result<()> {
        match retry_interrupted(|| rustix::fs::fallocate(&self.file, FallocateFlags::KEEP_SIZE, 0, len)) {
            // A file system without the call: zero-filling takes the space as it goes, and a full
            // disk is then an error of that write.
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(()),
            other => other,
        }
    }

    fn zero_fill(&self, at: u64, len: u64) -> io::Result<()> {
        let mut done = 0;
        while done < len {
            let step = (len - done).min(ZERO_CHUNK_BYTES as u64);
            let zeros = ZEROS.get(..step as usize).unwrap_or(&ZEROS);
            self.file.write_all_at(zeros, at + done)?;
            done += step;
        }
        Ok(())
    }

    fn map(&self, at: u64, len: usize) -> io::Result<Bytes> {
        let from = usize::try_from(at).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        let to = from.checked_add(len).ok_or(io::ErrorKind::InvalidInput)?;
        let mut mapping = self.mapping.lock();
        if mapping.len() < to {
            // SAFETY: the mapping is read-only, and the directory lock keeps other processes that
            // honour it away. The file is never shortened. The caller promises that the bytes of
            // the range are not written while it holds them; the rest of the mapping is not looked
            // at.
            let map = unsafe { memmap2::Mmap::map(&self.file)? };
            if map.len() < to {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            *mapping = Bytes::from_owner(map);
        }
        Ok(mapping.slice(from..to))
    }
}

fn retry_interrupted<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(rustix::io::Errno::INTR) => {}
            other => return other.map_err(io::Error::from),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_parts_than_one_call_takes_arrive_in_order() {
        let directory = tempfile::tempdir().unwrap();
        let file = RealDisk.create(&directory.path().join("f")).unwrap();
        let bytes: Vec<u8> = (0..5000u32).flat_map(u32::to_le_bytes).collect();
        let parts: Vec<IoSlice<'_>> = bytes.chunks(4).map(IoSlice::new).collect();
        file.write_vectored_at(&parts, 3).unwrap();
        let mut read = vec![0; bytes.len()];
        assert_eq!(file.read_at(&mut read, 3).unwrap(), bytes.len());
        assert_eq!(read, bytes);
        assert_eq!(&file.map(3, bytes.len()).unwrap()[..], &bytes[..]);
    }

    #[test]
    fn a_mapping_follows_a_file_that_grows_and_older_slices_stay() {
        let directory = tempfile::tempdir().unwrap();
        let file = RealDisk.create(&directory.path().join("f")).unwrap();
        file.write_at(b"first", 0).unwrap();
        let first = file.map(0, 5).unwrap();
        file.zero_fill(5, 1 << 20).unwrap();
        file.write_at(b"second", 8192).unwrap();
        assert_eq!(&file.map(8192, 6).unwrap()[..], b"second");
        assert_eq!(&first[..], b"first");
        assert_eq!(file.map(2 << 20, 1).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_directory_is_locked_once() {
        let directory = tempfile::tempdir().unwrap();
        let lock = RealDisk.lock(directory.path()).unwrap();
        assert_eq!(RealDisk.lock(directory.path()).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(lock);
        RealDisk.lock(directory.path()).unwrap();
    }
}
