//! What the kernel asks, answered from the [`Disk`]: each request passes the rules first, and may be
//! put off or refused.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner, OpenFlags,
    RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen,
    ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use parking_lot::Mutex;
use rustix::io::Errno;

use crate::disk::{Admission, Attributes, Disk};
use crate::later::Later;
use crate::names::Ino;
use crate::rules::Operation;

/// Names and attributes change through this kernel only, so it may keep them.
const TTL: Duration = Duration::from_secs(3600);
const BLOCK_BYTES: u32 = 4096;
/// What is said of a disk without a capacity.
const UNLIMITED_BYTES: u64 = 1 << 40;

type Listing = Arc<Vec<(OsString, Ino, bool)>>;

pub struct Requests {
    disk: Arc<Disk>,
    later: Arc<Later>,
    listings: Mutex<BTreeMap<u64, Listing>>,
    next_handle: AtomicU64,
}

impl Requests {
    pub fn new(disk: Arc<Disk>, later: Arc<Later>) -> Self {
        Self { disk, later, listings: Mutex::default(), next_handle: AtomicU64::new(1) }
    }

    /// `work` answers the kernel: with an error if it is given one.
    fn perform(
        &self,
        operation: Operation,
        ino: INodeNo,
        work: impl FnOnce(&Disk, Result<(), Errno>) + Send + 'static,
    ) {
        let disk = Arc::clone(&self.disk);
        match self.disk.admit(operation, Ino(ino.0)) {
            Admission::Now => work(&disk, Ok(())),
            Admission::Fail => work(&disk, Err(Errno::IO)),
            Admission::DelayMs(ms) => {
                self.later.after(Duration::from_millis(ms), Box::new(move || work(&disk, Ok(()))));
            }
            Admission::Hold => self.later.hold(Box::new(move || work(&disk, Ok(())))),
        }
    }
}

impl Filesystem for Requests {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = name.to_owned();
        self.perform(Operation::Look, parent, move |disk, admitted| {
            answer_entry(reply, admitted.and_then(|()| disk.lookup(Ino(parent.0), &name)));
        });
    }

    fn forget(&self, _: &Request, ino: INodeNo, lookups: u64) {
        self.disk.forget(Ino(ino.0), lookups);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.perform(Operation::Look, ino, move |disk, admitted| {
            answer_attributes(reply, admitted.and_then(|()| disk.attributes(Ino(ino.0))));
        });
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<std::time::SystemTime>,
        _: Option<FileHandle>,
        _: Option<std::time::SystemTime>,
        _: Option<std::time::SystemTime>,
        _: Option<std::time::SystemTime>,
        _: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        self.perform(Operation::Change, ino, move |disk, admitted| {
            let ino = Ino(ino.0);
            let done = admitted.and_then(|()| {
                mode.map_or(Ok(()), |mode| disk.set_mode(ino, mode))?;
                size.map_or(Ok(()), |size| disk.truncate(ino, size))?;
                disk.attributes(ino)
            });
            answer_attributes(reply, done);
        });
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let name = name.to_owned();
        self.perform(Operation::Change, parent, move |disk, admitted| {
            let made = admitted.and_then(|()| disk.create_directory(Ino(parent.0), &name, mode & !umask));
            answer_entry(reply, made);
        });
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.to_owned();
        self.perform(Operation::Change, parent, move |disk, admitted| {
            answer(reply, admitted.and_then(|()| disk.remove(Ino(parent.0), &name, false)));
        });
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.to_owned();
        self.perform(Operation::Change, parent, move |disk, admitted| {
            answer(reply, admitted.and_then(|()| disk.remove(Ino(parent.0), &name, true)));
        });
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let (name, newname) = (name.to_owned(), newname.to_owned());
        self.perform(Operation::Change, parent, move |disk, admitted| {
            let done = admitted.and_then(|()| {
                let to = (Ino(newparent.0), newname.as_os_str());
                match flags.bits() {
                    0 => disk.rename((Ino(parent.0), &name), to),
                    _ => Err(Errno::INVAL),
                }
            });
            answer(reply, done);
        });
    }

    fn open(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        self.perform(Operation::Look, ino, move |disk, admitted| {
            match admitted.and_then(|()| disk.open(Ino(ino.0))) {
                Ok(()) => reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE),
                Err(error) => reply.error(to_fuse(error)),
            }
        });
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.perform(Operation::Read, ino, move |disk, admitted| {
            match admitted.and_then(|()| disk.read(Ino(ino.0), offset, size as usize)) {
                Ok(bytes) => reply.data(&bytes),
                Err(error) => reply.error(to_fuse(error)),
            }
        });
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let data = data.to_vec();
        self.perform(Operation::Write, ino, move |disk, admitted| {
            match admitted.and_then(|()| disk.write(Ino(ino.0), offset, &data)) {
                Ok(()) => reply.written(data.len() as u32),
                Err(error) => reply.error(to_fuse(error)),
            }
        });
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn release(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.disk.release(Ino(ino.0));
        reply.ok();
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.perform(Operation::Sync, ino, move |disk, admitted| {
            answer(reply, admitted.and_then(|()| disk.sync(Ino(ino.0))));
        });
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        // The listing is taken once, so that whoever removes while it lists misses nothing.
        match self.disk.entries(Ino(ino.0)) {
            Ok(entries) => {
                let handle = self.next_handle.fetch_add(1, Ordering::Relaxed);
                let entries = entries.into_iter().map(|(name, of)| (name, of.ino, of.is_directory));
                self.listings.lock().insert(handle, Arc::new(entries.collect()));
                reply.opened(FileHandle(handle), FopenFlags::empty());
            }
            Err(error) => reply.error(to_fuse(error)),
        }
    }

    fn readdir(&self, _: &Request, ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let listing = self.listings.lock().get(&fh.0).cloned();
        let Some(listing) = listing else { return reply.error(fuser::Errno::EBADF) };
        self.perform(Operation::Look, ino, move |_, admitted| {
            if let Err(error) = admitted {
                return reply.error(to_fuse(error));
            }
            let dots = [(OsString::from("."), Ino(ino.0), true), (OsString::from(".."), Ino(ino.0), true)];
            let all = dots.iter().chain(listing.iter()).zip(1u64..);
            for ((name, ino, is_directory), next) in all.skip(offset as usize) {
                if reply.add(INodeNo(ino.0), next, kind(*is_directory), name) {
                    break;
                }
            }
            reply.ok();
        });
    }

    fn releasedir(&self, _: &Request, _: INodeNo, fh: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.listings.lock().remove(&fh.0);
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.perform(Operation::SyncDirectory, ino, move |disk, admitted| {
            answer(reply, admitted.and_then(|()| disk.sync_directory(Ino(ino.0))));
        });
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let blocks = |bytes: u64| bytes / u64::from(BLOCK_BYTES);
        let capacity = self.disk.capacity_bytes().unwrap_or(UNLIMITED_BYTES);
        let free = blocks(capacity.saturating_sub(self.disk.used_bytes()));
        reply.statfs(blocks(capacity), free, free, 1 << 20, 1 << 20, BLOCK_BYTES, 255, BLOCK_BYTES);
    }

    /// The kernel asks once and then no more.
    fn getxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, reply: ReplyXattr) {
        reply.error(fuser::Errno::ENOSYS);
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        let name = name.to_owned();
        self.perform(Operation::Change, parent, move |disk, admitted| {
            let made = admitted.and_then(|()| {
                let made = disk.create_file(Ino(parent.0), &name, mode & !umask)?;
                disk.open(made.ino)?;
                Ok(made)
            });
            match made {
                Ok(of) => reply.created(
                    &TTL,
                    &attributes(&of),
                    Generation(0),
                    FileHandle(0),
                    FopenFlags::FOPEN_KEEP_CACHE,
                ),
                Err(error) => reply.error(to_fuse(error)),
            }
        });
    }

    fn fallocate(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        if mode != libc::FALLOC_FL_KEEP_SIZE {
            return reply.error(fuser::Errno::EOPNOTSUPP);
        }
        self.perform(Operation::Change, ino, move |disk, admitted| {
            answer(reply, admitted.and_then(|()| disk.reserve(Ino(ino.0), offset.saturating_add(length))));
        });
    }
}

fn answer(reply: ReplyEmpty, outcome: Result<(), Errno>) {
    match outcome {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(to_fuse(error)),
    }
}

fn answer_entry(reply: ReplyEntry, outcome: Result<Attributes, Errno>) {
    match outcome {
        Ok(of) => reply.entry(&TTL, &attributes(&of), Generation(0)),
        Err(error) => reply.error(to_fuse(error)),
    }
}

fn answer_attributes(reply: ReplyAttr, outcome: Result<Attributes, Errno>) {
    match outcome {
        Ok(of) => reply.attr(&TTL, &attributes(&of)),
        Err(error) => reply.error(to_fuse(error)),
    }
}

fn to_fuse(error: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(error.raw_os_error())
}

fn kind(is_directory: bool) -> FileType {
    if is_directory { FileType::Directory } else { FileType::RegularFile }
}

/// Times are not kept: nothing that is tested reads them.
fn attributes(of: &Attributes) -> FileAttr {
    FileAttr {
        ino: INodeNo(of.ino.0),
        size: of.bytes,
        blocks: of.bytes.div_ceil(512),
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: kind(of.is_directory),
        perm: of.mode as u16,
        nlink: if of.is_directory { 2 } else { 1 },
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: BLOCK_BYTES,
        flags: 0,
    }
}
