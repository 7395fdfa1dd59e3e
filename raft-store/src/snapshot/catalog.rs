//! The snapshot files of one replica: writing, finding, thinning and receiving them. Every call may
//! block on the disk.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use ledgermq_common::{GroupId, LogIndex, PhysicalOffset, Term};
use parking_lot::Mutex;

use super::body::{BodyReader, read_exact_at, write_body};
use crate::defects::{self, Defect};
use crate::io::{Disk, DiskFile};
use crate::machine::{EntryId, SnapshotReader};
use crate::raft::membership::{get_stored, put_stored};
use crate::raft::vocabulary::StoredMembership;
use crate::store::SnapshotBoundary;

const MAGIC: &[u8; 8] = b"LMQSNAP1";
const FIXED_HEAD_BYTES: usize = 56;
/// A head is its fixed part and a membership.
const HEAD_BYTES_MAX: usize = 1 << 20;
const NAME_PREFIX: &str = "snapshot-";
const NAME_SUFFIX_UNFINISHED: &str = ".new";

fn corrupt(reason: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("snapshot: {}", reason.into()))
}

#[derive(Debug, Clone)]
pub(crate) struct SnapshotHead {
    pub(crate) boundary: SnapshotBoundary,
    pub(crate) membership: StoredMembership,
}

/// A finished, or completely received, snapshot.
#[derive(Debug, Clone)]
pub(crate) struct SnapshotFile {
    pub(crate) head: SnapshotHead,
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    body_at: u64,
    pub(crate) file_bytes: u64,
}

impl SnapshotFile {
    pub(crate) fn body(&self) -> SnapshotReader {
        Box::new(BodyReader::new(Arc::clone(&self.file), self.body_at))
    }

    /// Raw bytes of the file, for sending it.
    pub(crate) fn read_raw(&self, at: u64, len: usize) -> io::Result<Bytes> {
        let rest = usize::try_from(self.file_bytes.saturating_sub(at)).unwrap_or(usize::MAX);
        let mut bytes = vec![0; len.min(rest)];
        read_exact_at(&*self.file, &mut bytes, at)?;
        Ok(bytes.into())
    }
}

/// The snapshots of one replica of one group.
#[derive(Debug)]
pub(crate) struct SnapshotCatalog {
    disk: Arc<dyn Disk>,
    directory: PathBuf,
    group: GroupId,
    cluster: u64,
    kept_max: usize,
    finished: Mutex<BTreeMap<LogIndex, SnapshotFile>>,
    unfinished_made: AtomicU64,
}

impl SnapshotCatalog {
    /// Finds the snapshots in `directory`, which is made if it is missing.
    pub(crate) fn open(
        disk: Arc<dyn Disk>,
        directory: PathBuf,
        group: GroupId,
        cluster: u64,
        kept_max: usize,
    ) -> io::Result<Self> {
        disk.create_directory(&directory)?;
        let catalog = Self {
            disk,
            directory,
            group,
            cluster,
            kept_max: kept_max.max(2),
            finished: Mutex::new(BTreeMap::new()),
            unfinished_made: AtomicU64::new(0),
        };
        for name in catalog.disk.list(&catalog.directory)? {
            let path = catalog.directory.join(&name);
            if name.ends_with(NAME_SUFFIX_UNFINISHED) {
                catalog.disk.remove(&path)?;
            } else if name.starts_with(NAME_PREFIX) {
                match catalog.open_file(&path) {
                    Ok(found) => {
                        catalog.finished.lock().insert(found.head.boundary.id.index, found);
                    }
                    Err(error) => tracing::warn!(file = %path.display(), %error, "a snapshot is not usable"),
                }
            }
        }
        Ok(catalog)
    }

    pub(crate) fn newest(&self) -> Option<SnapshotFile> {
        self.finished.lock().last_key_value().map(|(_, file)| file.clone())
    }

    /// From the newest to the oldest.
    pub(crate) fn newest_first(&self) -> Vec<SnapshotFile> {
        self.finished.lock().values().rev().cloned().collect()
    }

    /// The newest one that holds nothing behind `index`.
    pub(crate) fn newest_upto(&self, index: LogIndex) -> Option<SnapshotFile> {
        self.finished.lock().range(..=index).next_back().map(|(_, file)| file.clone())
    }

    /// What a replica that is behind the purge pointer is offered.
    pub(crate) fn oldest_from(&self, purged: Option<LogIndex>) -> Option<SnapshotFile> {
        let from = purged.unwrap_or_default();
        self.finished.lock().range(from..).next().map(|(_, file)| file.clone())
    }

    /// The newest snapshot at or before `index` that ends at or before `edge`: where the purge
    /// pointer may rest.
    pub(crate) fn newest_within(&self, index: LogIndex, edge: PhysicalOffset) -> Option<EntryId> {
        self.finished
            .lock()
            .range(..=index)
            .rev()
            .map(|(_, file)| file.head.boundary)
            .find(|boundary| boundary.next_physical_offset <= edge)
            .map(|boundary| boundary.id)
    }

    /// Writes a snapshot; finished and durable on return. The log must be durable up to it already.
    pub(crate) fn write(&self, head: SnapshotHead, body: &mut dyn io::Read) -> io::Result<SnapshotFile> {
        let (path, file) = self.create_unfinished()?;
        let encoded = self.encode_head(&head);
        file.write_at(&encoded, 0)?;
        let file_bytes = write_body(&*file, encoded.len() as u64, body)?;
        if !defects::is_active(Defect::SnapshotNotSynced) {
            file.sync_data()?;
        }
        self.finish(SnapshotFile { head, path, file, body_at: encoded.len() as u64, file_bytes })
    }

    /// Starts to receive a snapshot of another replica.
    pub(crate) fn receive(&self, file_bytes: u64) -> io::Result<Incoming> {
        let (path, file) = self.create_unfinished()?;
        Ok(Incoming { path, file, written_bytes: 0, file_bytes })
    }

    /// Checks a received snapshot from the first byte to the last.
    pub(crate) fn accept(&self, incoming: &Incoming) -> io::Result<SnapshotFile> {
        if incoming.written_bytes != incoming.file_bytes {
            return Err(corrupt(format!(
                "{} of {} bytes arrived",
                incoming.written_bytes, incoming.file_bytes
            )));
        }
        if !defects::is_active(Defect::SnapshotNotSynced) {
            incoming.file.sync_data()?;
        }
        let received = self.open_file(&incoming.path)?;
        let end = BodyReader::new(Arc::clone(&received.file), received.body_at).verify()?;
        if end != incoming.file_bytes {
            return Err(corrupt("bytes behind the end mark"));
        }
        Ok(received)
    }

    /// Removes what arrived of a snapshot that is not wanted.
    pub(crate) fn abandon(&self, incoming: Incoming) -> io::Result<()> {
        self.disk.remove(&incoming.path)
    }

    /// Gives a snapshot its final name, durably, and drops what is too many.
    pub(crate) fn finish(&self, snapshot: SnapshotFile) -> io::Result<SnapshotFile> {
        let index = snapshot.head.boundary.id.index;
        let path = self.directory.join(format!("{NAME_PREFIX}{:020}", index.get()));
        if path != snapshot.path {
            self.disk.rename(&snapshot.path, &path)?;
            if !defects::is_active(Defect::SnapshotNameNotSynced) {
                self.disk.sync_directory(&self.directory)?;
            }
        }
        let finished = SnapshotFile { path, ..snapshot };
        self.finished.lock().insert(index, finished.clone());
        Ok(finished)
    }

    /// Removes what nobody can want: everything below the purge pointer, and above it the ones that
    /// lie closest together until no more than the limit are left. The oldest at the pointer, the
    /// newest and those the pointer may move to (`permitted`) always stay: openraft purges when no
    /// replication reads the log, which may be long after it was asked to, and a pointer without its
    /// snapshot gives a replica that starts there a newer one, without bytes its state refers to.
    pub(crate) fn thin(&self, purged: Option<LogIndex>, permitted: &[LogIndex]) -> io::Result<()> {
        let mut dropped = Vec::new();
        {
            let mut finished = self.finished.lock();
            let newest = finished.last_key_value().map(|(index, _)| *index);
            let kept_from =
                finished.range(purged.unwrap_or_default()..).next().map(|(index, _)| *index).or(newest);
            let below: Vec<_> =
                finished.keys().copied().take_while(|index| Some(*index) < kept_from).collect();
            dropped.extend(below.into_iter().filter_map(|index| finished.remove(&index)));
            while finished.len() > self.kept_max {
                let indexes: Vec<_> = finished.keys().copied().collect();
                let closest = indexes
                    .windows(3)
                    .filter_map(|window| match window {
                        [before, middle, after] if !permitted.contains(middle) => {
                            Some((after.get() - before.get(), *middle))
                        }
                        _ => None,
                    })
                    .min();
                let Some((_, middle)) = closest else { break };
                dropped.extend(finished.remove(&middle));
            }
        }
        for snapshot in dropped {
            self.disk.remove(&snapshot.path)?;
        }
        Ok(())
    }

    /// A snapshot that turned out to be unusable.
    pub(crate) fn forget(&self, index: LogIndex) {
        self.finished.lock().remove(&index);
    }

    fn create_unfinished(&self) -> io::Result<(PathBuf, Arc<dyn DiskFile>)> {
        let number = self.unfinished_made.fetch_add(1, Ordering::Relaxed);
        let path = self.directory.join(format!("unfinished-{number}{NAME_SUFFIX_UNFINISHED}"));
        let file = self.disk.create(&path)?;
        Ok((path, file))
    }

    fn encode_head(&self, head: &SnapshotHead) -> Bytes {
        let mut out = BytesMut::with_capacity(512);
        out.put_slice(MAGIC);
        out.put_u32_le(0);
        out.put_u32_le(self.group.get());
        out.put_u64_le(self.cluster);
        out.put_u64_le(head.boundary.id.term.get());
        out.put_u64_le(head.boundary.id.index.get());
        out.put_u64_le(head.boundary.next_physical_offset.get());
        out.put_u64_le(head.boundary.chain);
        debug_assert_eq!(out.len(), FIXED_HEAD_BYTES);
        put_stored(&mut out, &head.membership);
        let len = u32::try_from(out.len() + 4).expect("a head is small");
        if let Some(field) = out.get_mut(8..12) {
            field.copy_from_slice(&len.to_le_bytes());
        }
        let checksum = crc32c::crc32c(&out);
        out.put_u32_le(checksum);
        out.freeze()
    }

    fn open_file(&self, path: &Path) -> io::Result<SnapshotFile> {
        let file = self.disk.open(path)?;
        let mut start = [0; FIXED_HEAD_BYTES];
        read_exact_at(&*file, &mut start, 0)?;
        let mut fields = Bytes::copy_from_slice(&start);
        if fields.split_to(MAGIC.len()) != MAGIC[..] {
            return Err(corrupt("not a snapshot file"));
        }
        let len = usize::try_from(fields.get_u32_le()).unwrap_or(usize::MAX);
        if !(FIXED_HEAD_BYTES + 4..=HEAD_BYTES_MAX).contains(&len) {
            return Err(corrupt(format!("a head of {len} bytes")));
        }
        let mut head = vec![0; len];
        read_exact_at(&*file, &mut head, 0)?;
        let mut head = Bytes::from(head);
        let mut checksum = head.split_off(len - 4);
        if crc32c::crc32c(&head) != checksum.get_u32_le() {
            return Err(corrupt("the head does not verify"));
        }
        let (group, cluster) = (GroupId(fields.get_u32_le()), fields.get_u64_le());
        if (group, cluster) != (self.group, self.cluster) {
            return Err(corrupt(format!("it belongs to group {group} of cluster {cluster:016x}")));
        }
        let boundary = SnapshotBoundary {
            id: EntryId { term: Term(fields.get_u64_le()), index: LogIndex(fields.get_u64_le()) },
            next_physical_offset: PhysicalOffset(fields.get_u64_le()),
            chain: fields.get_u64_le(),
        };
        head.advance(FIXED_HEAD_BYTES);
        let membership = get_stored(&mut head)?;
        let file_bytes = file.byte_len()?;
        Ok(SnapshotFile {
            head: SnapshotHead { boundary, membership },
            path: path.to_owned(),
            file,
            body_at: len as u64,
            file_bytes,
        })
    }
}

/// A snapshot on its way in.
#[derive(Debug)]
pub(crate) struct Incoming {
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    written_bytes: u64,
    file_bytes: u64,
}

impl Incoming {
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.written_bytes + bytes.len() as u64 > self.file_bytes {
            return Err(corrupt("more bytes than announced"));
        }
        self.file.write_at(bytes, self.written_bytes)?;
        self.written_bytes += bytes.len() as u64;
        Ok(())
    }
}
