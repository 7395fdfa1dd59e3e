//! The disk boundary: no code outside this module opens a file of the log.
//!
//! [`Disk`] and [`DiskFile`] are worded by durability, because that is what their two
//! implementations differ in: [`RealDisk`] is the operating system, [`SimulatedDisk`] forgets on a
//! crash what nobody synced.
//!
//! | Call | Survives a crash |
//! |---|---|
//! | `write_vectored_at`, `zero_fill` | after `sync_data` of the same file |
//! | `create`, `rename`, `remove` | after `sync_directory` of the directory |
//! | `create_directory`, `reserve` | on return |

use std::fmt::Debug;
use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

mod real;
pub mod simulated;

pub use real::RealDisk;
pub use simulated::SimulatedDisk;

/// Holds a directory for one process until it is dropped.
pub trait DirectoryLock: Debug + Send + Sync {}

pub trait Disk: Debug + Send + Sync {
    /// Makes the directory and its parents where they are missing.
    fn create_directory(&self, path: &Path) -> io::Result<()>;
    /// A new, empty file; one of the same name is emptied.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;
    /// An existing file, for reading and writing.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;
    /// Replaces `to` if it exists.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// The names of the files in a directory, sorted.
    fn list(&self, directory: &Path) -> io::Result<Vec<String>>;
    fn sync_directory(&self, directory: &Path) -> io::Result<()>;
    /// Fails with [`io::ErrorKind::WouldBlock`] if another process holds it.
    fn lock(&self, directory: &Path) -> io::Result<Box<dyn DirectoryLock>>;
}

pub trait DiskFile: Debug + Send + Sync {
    /// Writes all of `parts`, one behind the other, from `at` on.
    fn write_vectored_at(&self, parts: &[IoSlice<'_>], at: u64) -> io::Result<()>;
    /// Fills as much of `into` as the file has bytes from `at` on and says how many.
    fn read_at(&self, into: &mut [u8], at: u64) -> io::Result<usize>;
    /// Contents and length are durable on return. A failure is final.
    fn sync_data(&self) -> io::Result<()>;
    fn byte_len(&self) -> io::Result<u64>;
    /// Sets disk space aside for a file of `len` bytes without changing its length.
    fn reserve(&self, len: u64) -> io::Result<()>;
    /// Writes zeros, beyond the end of the file as well.
    fn zero_fill(&self, at: u64, len: u64) -> io::Result<()>;
    /// The bytes `at .. at + len`, without a copy where the platform can. The range must exist and
    /// must not be written again while the bytes are held.
    fn map(&self, at: u64, len: usize) -> io::Result<Bytes>;

    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.write_vectored_at(&[IoSlice::new(bytes)], at)
    }
}
