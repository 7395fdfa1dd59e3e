//! What the fuzz targets call: decoders of bytes that come from a disk or a peer, with what must
//! hold of whatever they let through. Not part of the public interface.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ledgermq_common::{GroupId, LogIndex, NodeId, PhysicalOffset, Term};
use ledgermq_proto::raft as proto;
use prost::Message as _;

use crate::frame::{self, FrameHeader, HEADER_BYTES, LogName};
use crate::io::{Disk, SimulatedDisk};
use crate::machine::EntryId;
use crate::position::LogPosition;
use crate::raft::vocabulary::StoredMembership;
use crate::raft::wire;
use crate::snapshot::{SnapshotCatalog, SnapshotHead};
use crate::store::{EntryKind, Identity, ReplicaId, SnapshotBoundary, VoteRecord};
use crate::superblock::{self, Superblock};

/// A frame header, as it stands and with its checksum made right so that what lies behind it is
/// reached: one that is let through is the encoding of what was understood.
pub fn frame_header(bytes: &[u8]) {
    let mut block = [0; HEADER_BYTES];
    for (to, from) in block.iter_mut().zip(bytes) {
        *to = *from;
    }
    check_frame_header(&block);
    frame::put(&mut block, 0, &frame::MAGIC);
    let crc_at = HEADER_BYTES - 4;
    let crc = crc32c::crc32c(block.get(..crc_at).unwrap_or_default());
    frame::put(&mut block, crc_at, &crc.to_le_bytes());
    check_frame_header(&block);
}

fn check_frame_header(block: &[u8; HEADER_BYTES]) {
    if let Ok(header) = FrameHeader::decode(block) {
        assert_eq!(&header.encode(), block, "a frame header is not the encoding of {header:?}");
        assert!(header.payload_len as usize <= frame::PAYLOAD_BYTES_MAX, "a payload beyond the limit");
        let _ = header.chain();
        if header.at.get() < u64::MAX / 2 {
            assert!(header.end() > header.payload_at() || header.payload_len == 0, "a frame of no length");
        }
    }
}

/// A superblock slot: what is let through comes back the same from its own encoding.
pub fn superblock_slot(bytes: &[u8]) {
    let mut block = vec![0; superblock::SLOT_BYTES];
    for (to, from) in block.iter_mut().zip(bytes) {
        *to = *from;
    }
    check_superblock_slot(&block);
    let crc_at = superblock::SLOT_BYTES - 4;
    let crc = crc32c::crc32c(block.get(..crc_at).unwrap_or_default());
    frame::put(&mut block, crc_at, &crc.to_le_bytes());
    check_superblock_slot(&block);
}

fn check_superblock_slot(block: &[u8]) {
    if let Ok((sequence, slot)) = superblock::decode(block) {
        let again = superblock::decode(&superblock::encode(&slot, sequence));
        assert_eq!(again, Ok((sequence, slot)), "a superblock that does not come back from its own encoding");
    }
}

/// A slot as it is written, to start from.
pub fn a_superblock_slot() -> Vec<u8> {
    let identity = Identity { cluster: "fuzz".to_owned(), group: GroupId(1), node: NodeId(2) };
    let id = EntryId { term: Term(3), index: LogIndex(40) };
    let slot = Superblock {
        identity,
        replica: ReplicaId(10),
        segment_bytes: 1 << 20,
        life: 4,
        first_segment: PhysicalOffset(1 << 20),
        last_segment: PhysicalOffset(3 << 20),
        watermark: LogPosition { at: PhysicalOffset(1_100_000), last: Some(id), chain: 7 },
        vote: Some(VoteRecord { term: 8, node_id: 2, committed: true }),
        committed: Some(id),
        purged: Some(id),
        clean: true,
        reset_pending: false,
    };
    superblock::encode(&slot, 11)
}

/// A snapshot file: it is refused, or every byte of its body verifies and no more of them are shown
/// than the file has.
pub fn snapshot_file(bytes: &[u8]) {
    let disk = Arc::new(SimulatedDisk::new(1));
    let directory = PathBuf::from("/snapshots");
    let name = "snapshot-00000000000000000007-00000000000000000001";
    if write_file(&*disk, &directory, name, bytes).is_err() {
        return;
    }
    let opened = SnapshotCatalog::open(disk, directory, GroupId(1), wire::cluster_hash("fuzz"), 2);
    let Some(file) = opened.ok().and_then(|catalog| catalog.newest()) else { return };
    let mut body = file.body();
    let shown = std::io::copy(&mut body, &mut std::io::sink());
    if let Ok(shown) = shown {
        assert!(shown < bytes.len() as u64, "{shown} bytes of body in a file of {}", bytes.len());
    }
}

/// A snapshot file as it is written, to start from.
pub fn a_snapshot_file(mut body: &[u8]) -> Vec<u8> {
    let disk = Arc::new(SimulatedDisk::new(1));
    let boundary = SnapshotBoundary {
        id: EntryId { term: Term(1), index: LogIndex(7) },
        next_physical_offset: PhysicalOffset(700),
        chain: 77,
    };
    let head = SnapshotHead { boundary, membership: StoredMembership::default() };
    let catalog =
        SnapshotCatalog::open(disk, PathBuf::from("/snapshots"), GroupId(1), wire::cluster_hash("fuzz"), 2);
    let written = catalog.and_then(|catalog| catalog.write(head, &mut body));
    written.and_then(|file| file.read_raw(0, usize::MAX)).map(|bytes| bytes.to_vec()).unwrap_or_default()
}

/// A frame header as it is written, to start from.
pub fn a_frame_header() -> Vec<u8> {
    let header = FrameHeader {
        log: LogName { group: GroupId(7), cluster: 0x1234_5678 },
        kind: EntryKind::Normal,
        id: EntryId { term: Term(3), index: LogIndex(42) },
        leader_node: 0,
        at: PhysicalOffset(4096),
        previous_chain: 0x0102_0304_0506_0708,
        payload_len: 5,
        payload_crc: 0xaabb_ccdd,
        durable_before: PhysicalOffset(4000),
        life: 9,
    };
    header.encode().to_vec()
}

fn write_file(disk: &dyn Disk, directory: &Path, name: &str, bytes: &[u8]) -> std::io::Result<()> {
    disk.create_directory(directory)?;
    let file = disk.create(&directory.join(name))?;
    file.write_at(bytes, 0)?;
    file.sync_data()
}

/// A message of a peer: decoded or refused with the field that is wrong.
pub fn peer_message(bytes: &[u8]) {
    let Some((kind, rest)) = bytes.split_first() else { return };
    match kind % 4 {
        0 => {
            if let Ok(request) = proto::AppendRequest::decode(rest) {
                let _ = wire::append_from_wire(request);
            }
        }
        1 => {
            if let Ok(request) = proto::VoteRequest::decode(rest) {
                let _ = wire::vote_request_from_wire(request);
            }
        }
        2 => {
            if let Ok(response) = proto::AppendResponse::decode(rest) {
                let _ = wire::append_response_from_wire(response);
            }
        }
        _ => {
            if let Ok(request) = proto::TransferLeaderRequest::decode(rest) {
                let _ = wire::transfer_from_wire(request);
            }
        }
    }
}
