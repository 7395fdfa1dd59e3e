//! The superblock: what has to be known before the log can be read, and the vote.
//!
//! One file `superblock` of two slots of 4096 bytes; the copy with the sequence number *s* is in
//! slot *s* mod 2. A slot:
//!
//! ```text
//! offset size field
//!      0    8 magic "LMQSUPER"
//!      8    4 version (1)
//!     12    4 flags: 1 clean, 2 reset pending, 4 vote present, 8 vote committed,
//!             16 committed hint present, 32 purge pointer present
//!     16    8 sequence number
//!     24    8 node id
//!     32    4 group id
//!     36    4 life of the log
//!     40    8 segment size
//!     48    8 base of the first segment
//!     56    8 base of the last segment
//!     64   40 durable watermark (a log position)
//!    104   16 vote: term, node
//!    120   16 committed hint: term, index
//!    136   16 purge pointer: term, index
//!    152    4 length of the cluster name
//!    156  255 cluster name
//!    411    5 zeros
//!    416    8 replica id; zero in directories made before there were any
//!    424      zeros
//!   4092    4 CRC32C of bytes 0..4092
//! ```
//!
//! Two ways to write it:
//! - [`SuperblockFile::write_hint`]: one slot, one sync. For what may be forgotten: the watermark
//!   moving up, the committed hint.
//! - [`SuperblockFile::write_promise`]: both slots, one after the other, each synced. For what must
//!   not be forgotten: vote, purge pointer, first segment, life. Both slots then know it, so *one
//!   unreadable slot never hides a vote*: the other one is either newer or as new in all promises.
//!
//! | Slots | Answer |
//! |---|---|
//! | both good | the one with the greater sequence number |
//! | one good | that one: the bad one is a torn write that was never reported done, or rotted after both had every promise |
//! | none good, or the file too short | refused: the vote is unknown |
//! | no file, and no segment either | a new directory |
//! | no file, but segments | refused: the vote is unknown |

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ledgermq_common::{GroupId, LogIndex, NodeId, PhysicalOffset, Term};

use crate::frame::{put, u32_at, u64_at};
use crate::io::{Disk, DiskFile};
use crate::machine::EntryId;
use crate::position::LogPosition;
use crate::store::{Identity, OpenError, ReplicaId, StoreFault, VoteRecord};

pub const FILE_NAME: &str = "superblock";
pub const CLUSTER_NAME_BYTES_MAX: usize = 255;
pub const TEMPORARY_NAME: &str = "superblock.tmp";
pub(crate) const SLOT_BYTES: usize = 4096;
const CRC_AT: usize = SLOT_BYTES - 4;
const REPLICA_AT: usize = 416;
const MAGIC: [u8; 8] = *b"LMQSUPER";
const VERSION: u32 = 1;

const CLEAN: u32 = 1;
const RESET_PENDING: u32 = 2;
const VOTE: u32 = 4;
const VOTE_COMMITTED: u32 = 8;
const COMMITTED: u32 = 16;
const PURGED: u32 = 32;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Superblock {
    pub identity: Identity,
    pub replica: ReplicaId,
    pub segment_bytes: u64,
    /// See `frame`: frames behind the watermark belong to the log only if they carry this life.
    pub life: u32,
    /// Segments below are being removed, or were.
    pub first_segment: PhysicalOffset,
    /// Had its name when this was written; the log may have gone on into more.
    pub last_segment: PhysicalOffset,
    /// Everything before it was synced; behind it nothing is known. Never before the last cut.
    pub watermark: LogPosition,
    pub vote: Option<VoteRecord>,
    pub committed: Option<EntryId>,
    pub purged: Option<EntryId>,
    /// The log ends at the watermark: it was closed in order.
    pub clean: bool,
    /// The log is to start anew at the watermark, and what it consisted of before may still lie
    /// around.
    pub reset_pending: bool,
}

#[derive(Debug)]
pub struct SuperblockFile {
    file: Arc<dyn DiskFile>,
    path: PathBuf,
    sequence: u64,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum SlotError {
    Checksum,
    Unsupported,
}

impl SuperblockFile {
    /// `None` if the directory has no superblock.
    pub fn read(disk: &dyn Disk, directory: &Path) -> Result<Option<(Self, Superblock)>, OpenError> {
        let path = directory.join(FILE_NAME);
        let io = |operation| {
            let file = path.clone();
            move |source| OpenError::Io { operation, file, source }
        };
        let file = match disk.open(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(io("open"))?,
        };
        let mut newest: Option<(u64, Superblock)> = None;
        for slot in 0..2u64 {
            let mut block = vec![0; SLOT_BYTES];
            let read = file.read_at(&mut block, slot * SLOT_BYTES as u64).map_err(io("read"))?;
            let decoded = if read == SLOT_BYTES { decode(&block) } else { Err(SlotError::Checksum) };
            match decoded {
                Ok((sequence, superblock)) if sequence % 2 == slot => {
                    if newest.as_ref().is_none_or(|(other, _)| *other < sequence) {
                        newest = Some((sequence, superblock));
                    }
                }
                Ok(_) | Err(SlotError::Checksum) => {
                    tracing::warn!(file = %path.display(), slot, "a superblock slot is unreadable");
                }
                // A newer program wrote it: going on with the older slot would forget its vote.
                Err(SlotError::Unsupported) => {
                    return Err(OpenError::Unsupported {
                        file: path,
                        what: "a superblock of another version",
                    });
                }
            }
        }
        let Some((sequence, superblock)) = newest else {
            return Err(OpenError::Corrupt {
                file: path,
                from: 0,
                to: 2 * SLOT_BYTES as u64,
                why: "no superblock slot is readable, so the vote of this node is unknown".to_owned(),
            });
        };
        Ok(Some((Self { file, path, sequence }, superblock)))
    }

    /// Makes the file, under another name until it is complete.
    pub fn create(disk: &dyn Disk, directory: &Path, first: &Superblock) -> Result<Self, StoreFault> {
        let temporary = directory.join(TEMPORARY_NAME);
        let path = directory.join(FILE_NAME);
        let file = disk.create(&temporary).map_err(fault("create", &temporary))?;
        file.zero_fill(0, 2 * SLOT_BYTES as u64).map_err(fault("write", &temporary))?;
        let mut made = Self { file, path: temporary, sequence: 0 };
        made.write_promise(first)?;
        disk.rename(&made.path, &path).map_err(fault("rename", &path))?;
        disk.sync_directory(directory).map_err(fault("sync", directory))?;
        made.path = path;
        Ok(made)
    }

    pub fn write_promise(&mut self, superblock: &Superblock) -> Result<(), StoreFault> {
        self.write_hint(superblock)?;
        self.write_hint(superblock)
    }

    pub fn write_hint(&mut self, superblock: &Superblock) -> Result<(), StoreFault> {
        self.sequence = self.sequence.checked_add(1).expect("2^64 superblocks");
        let block = encode(superblock, self.sequence);
        let at = (self.sequence % 2) * SLOT_BYTES as u64;
        self.file.write_at(&block, at).map_err(fault("write", &self.path))?;
        self.file.sync_data().map_err(fault("sync", &self.path))
    }
}

/// Wraps the error of one operation on one file.
pub(crate) fn fault(operation: &'static str, file: &Path) -> impl FnOnce(std::io::Error) -> StoreFault {
    let file = file.to_path_buf();
    move |error| StoreFault { operation, file, reason: error.to_string() }
}

pub(crate) fn encode(superblock: &Superblock, sequence: u64) -> Vec<u8> {
    let name = superblock.identity.cluster.as_bytes();
    assert!(name.len() <= CLUSTER_NAME_BYTES_MAX, "checked when the store was opened");
    let mut flags = 0;
    for (set, flag) in [
        (superblock.clean, CLEAN),
        (superblock.reset_pending, RESET_PENDING),
        (superblock.vote.is_some(), VOTE),
        (superblock.vote.is_some_and(|vote| vote.committed), VOTE_COMMITTED),
        (superblock.committed.is_some(), COMMITTED),
        (superblock.purged.is_some(), PURGED),
    ] {
        flags |= if set { flag } else { 0 };
    }
    let mut block = vec![0; SLOT_BYTES];
    put(&mut block, 0, &MAGIC);
    put(&mut block, 8, &VERSION.to_le_bytes());
    put(&mut block, 12, &flags.to_le_bytes());
    put(&mut block, 16, &sequence.to_le_bytes());
    put(&mut block, 24, &superblock.identity.node.get().to_le_bytes());
    put(&mut block, 32, &superblock.identity.group.get().to_le_bytes());
    put(&mut block, 36, &superblock.life.to_le_bytes());
    put(&mut block, 40, &superblock.segment_bytes.to_le_bytes());
    put(&mut block, 48, &superblock.first_segment.get().to_le_bytes());
    put(&mut block, 56, &superblock.last_segment.get().to_le_bytes());
    put(&mut block, 64, &superblock.watermark.encode());
    if let Some(vote) = superblock.vote {
        put(&mut block, 104, &vote.term.to_le_bytes());
        put(&mut block, 112, &vote.node_id.to_le_bytes());
    }
    put_entry_id(&mut block, 120, superblock.committed);
    put_entry_id(&mut block, 136, superblock.purged);
    put(&mut block, 152, &(name.len() as u32).to_le_bytes());
    put(&mut block, 156, name);
    put(&mut block, REPLICA_AT, &superblock.replica.0.to_le_bytes());
    let crc = crc32c::crc32c(block.get(..CRC_AT).unwrap_or_default());
    put(&mut block, CRC_AT, &crc.to_le_bytes());
    block
}

pub(crate) fn decode(block: &[u8]) -> Result<(u64, Superblock), SlotError> {
    let crc = crc32c::crc32c(block.get(..CRC_AT).unwrap_or_default());
    if block.get(..8) != Some(&MAGIC[..]) || u32_at(block, CRC_AT) != crc {
        return Err(SlotError::Checksum);
    }
    if u32_at(block, 8) != VERSION {
        return Err(SlotError::Unsupported);
    }
    let flags = u32_at(block, 12);
    let name_len = u32_at(block, 152) as usize;
    let name = block.get(156..).and_then(|rest| rest.get(..name_len.min(CLUSTER_NAME_BYTES_MAX)));
    let cluster = String::from_utf8(name.unwrap_or_default().to_vec()).map_err(|_| SlotError::Unsupported)?;
    let superblock = Superblock {
        identity: Identity { cluster, group: GroupId(u32_at(block, 32)), node: NodeId(u64_at(block, 24)) },
        replica: ReplicaId(u64_at(block, REPLICA_AT)),
        segment_bytes: u64_at(block, 40),
        life: u32_at(block, 36),
        first_segment: PhysicalOffset(u64_at(block, 48)),
        last_segment: PhysicalOffset(u64_at(block, 56)),
        watermark: LogPosition::decode(block.get(64..).unwrap_or_default()),
        vote: (flags & VOTE != 0).then(|| VoteRecord {
            term: u64_at(block, 104),
            node_id: u64_at(block, 112),
            committed: flags & VOTE_COMMITTED != 0,
        }),
        committed: (flags & COMMITTED != 0).then(|| entry_id_at(block, 120)),
        purged: (flags & PURGED != 0).then(|| entry_id_at(block, 136)),
        clean: flags & CLEAN != 0,
        reset_pending: flags & RESET_PENDING != 0,
    };
    Ok((u64_at(block, 16), superblock))
}

fn put_entry_id(block: &mut [u8], at: usize, id: Option<EntryId>) {
    let id = id.unwrap_or_default();
    put(block, at, &id.term.get().to_le_bytes());
    put(block, at + 8, &id.index.get().to_le_bytes());
}

fn entry_id_at(block: &[u8], at: usize) -> EntryId {
    EntryId { term: Term(u64_at(block, at)), index: LogIndex(u64_at(block, at + 8)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::SimulatedDisk;

    fn superblock() -> Superblock {
        Superblock {
            identity: Identity { cluster: "c".to_owned(), group: GroupId(2), node: NodeId(3) },
            replica: ReplicaId(10),
            segment_bytes: 1 << 20,
            life: 4,
            first_segment: PhysicalOffset(1 << 20),
            last_segment: PhysicalOffset(3 << 20),
            watermark: LogPosition {
                at: PhysicalOffset(1_100_000),
                last: Some(EntryId { term: Term(5), index: LogIndex(6) }),
                chain: 7,
            },
            vote: Some(VoteRecord { term: 8, node_id: 9, committed: true }),
            committed: Some(EntryId { term: Term(5), index: LogIndex(4) }),
            purged: Some(EntryId { term: Term(1), index: LogIndex(2) }),
            clean: true,
            reset_pending: false,
        }
    }

    fn with_vote(term: u64) -> Superblock {
        Superblock { vote: Some(VoteRecord { term, node_id: 1, committed: false }), ..superblock() }
    }

    #[test]
    fn a_slot_comes_back_as_it_was() {
        assert_eq!(decode(&encode(&superblock(), 11)), Ok((11, superblock())));
        let empty = Superblock { vote: None, committed: None, purged: None, clean: false, ..superblock() };
        assert_eq!(decode(&encode(&empty, 12)), Ok((12, empty)));
    }

    #[test]
    fn a_vote_is_known_whichever_slot_is_lost() {
        let directory = PathBuf::from("/d");
        for slot in 0..2u64 {
            for hints in 0..3 {
                let disk = SimulatedDisk::new(1);
                disk.create_directory(&directory).unwrap();
                let mut file = SuperblockFile::create(&disk, &directory, &with_vote(1)).unwrap();
                file.write_promise(&with_vote(2)).unwrap();
                for _ in 0..hints {
                    file.write_hint(&Superblock { life: 99, ..with_vote(2) }).unwrap();
                }
                disk.flip_bit(&directory.join(FILE_NAME), slot * SLOT_BYTES as u64 + 105, 3);
                let (_, read) = SuperblockFile::read(&disk, &directory).unwrap().unwrap();
                assert_eq!(read.vote, with_vote(2).vote);
            }
        }
    }

    #[test]
    fn with_both_slots_unreadable_it_is_refused() {
        let directory = PathBuf::from("/d");
        let disk = SimulatedDisk::new(1);
        disk.create_directory(&directory).unwrap();
        assert!(SuperblockFile::read(&disk, &directory).unwrap().is_none());
        SuperblockFile::create(&disk, &directory, &superblock()).unwrap();
        disk.flip_bit(&directory.join(FILE_NAME), 100, 0);
        disk.flip_bit(&directory.join(FILE_NAME), 5000, 0);
        let error = SuperblockFile::read(&disk, &directory).unwrap_err();
        assert!(error.to_string().contains("vote"), "{error}");
    }
}
