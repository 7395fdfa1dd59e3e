//! The frame: how one log entry lies in a segment. No I/O here.
//!
//! ```text
//! offset size field
//!      0    4 magic "LMQF"
//!      4    1 version (1)
//!      5    1 kind: 1 blank, 2 membership, 3 normal
//!      6    1 flags (0)
//!      7    1 header length (80)
//!      8    4 payload length
//!     12    4 group id
//!     16    8 term
//!     24    8 log index
//!     32    8 leader node (reserved, 0)
//!     40    8 physical offset of this frame
//!     48    8 chain of the frame before
//!     56    4 CRC32C of the payload
//!     60    4 cluster: low half of the XXH3-64 of its name
//! -- local from here: differs between replicas, not in the chain --
//!     64    8 durable before: how far this replica's log was synced when the frame was written
//!     72    4 life of the log (see below)
//!     76    4 CRC32C of bytes 0..76
//!     80    n payload
//!   80+n  0-7 zeros, up to a multiple of 8
//! ```
//! Little endian. The *chain* of a frame is the XXH3-64 of its bytes 0..64, which contain the chain
//! of the frame before and the checksum of the payload: two logs with the same chain at an entry
//! have the same entries up to it.
//!
//! The physical offset inside the frame makes a frame that was written to the wrong place, or
//! copied with its file, fail; together with the segment size it names the segment too.
//!
//! A *life* is the time between two cuts of the log (a truncation, a reset, an opening that may have
//! cut a torn tail). Its number is in the superblock and grows before a cut takes effect, so a frame
//! left over behind a cut says by itself that it is no part of the log any more, whatever else in it
//! is right.
//!
//! | Bytes | Answer of [`FrameHeader::decode`] |
//! |---|---|
//! | no magic | [`FrameError::NoFrame`] (zeros, or the inside of something else) |
//! | header checksum wrong | [`FrameError::HeaderChecksum`] |
//! | checksum right, version, kind, flags or a length unknown | [`FrameError::Unsupported`] |

use ledgermq_common::limits::COMMAND_BYTES_MAX;
use ledgermq_common::{GroupId, LogIndex, PhysicalOffset, Term};
use xxhash_rust::xxh3::xxh3_64;

use crate::machine::EntryId;
use crate::store::{EntryKind, Identity};

pub const HEADER_BYTES: usize = 80;
pub const FRAME_ALIGN: usize = 8;
/// The longest command, and room for what the consensus layer puts around one.
pub const PAYLOAD_BYTES_MAX: usize = COMMAND_BYTES_MAX + 1024 * 1024;
pub const MAGIC: [u8; 4] = *b"LMQF";

const VERSION: u8 = 1;
const SHARED_BYTES: usize = 64;
const CRC_AT: usize = 76;

/// What every frame of a log carries to tell it from another log's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogName {
    pub group: GroupId,
    pub cluster: u32,
}

impl LogName {
    pub fn of(identity: &Identity) -> Self {
        // The low half is enough: it has to catch a mistake, not an attacker.
        Self { group: identity.group, cluster: cluster_hash(&identity.cluster) as u32 }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrameHeader {
    pub log: LogName,
    pub kind: EntryKind,
    pub id: EntryId,
    pub leader_node: u64,
    pub at: PhysicalOffset,
    pub previous_chain: u64,
    pub payload_len: u32,
    pub payload_crc: u32,
    /// Local, like `life`: set by the writer when it writes the frame.
    pub durable_before: PhysicalOffset,
    pub life: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("no frame starts here")]
    NoFrame,
    #[error("the checksum of the frame header is wrong")]
    HeaderChecksum,
    #[error("field {field} of the frame header has an unknown value")]
    Unsupported { field: &'static str },
}

impl FrameHeader {
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        self.encode_shared(&mut out);
        put(&mut out, 64, &self.durable_before.get().to_le_bytes());
        put(&mut out, 72, &self.life.to_le_bytes());
        let crc = crc32c::crc32c(out.get(..CRC_AT).unwrap_or_default());
        put(&mut out, CRC_AT, &crc.to_le_bytes());
        out
    }

    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, FrameError> {
        if bytes.get(..4) != Some(&MAGIC[..]) {
            return Err(FrameError::NoFrame);
        }
        let crc = crc32c::crc32c(bytes.get(..CRC_AT).unwrap_or_default());
        if u32_at(bytes, CRC_AT) != crc {
            return Err(FrameError::HeaderChecksum);
        }
        let [version, kind, flags, header_len] = u32_at(bytes, 4).to_le_bytes();
        if version != VERSION {
            return Err(FrameError::Unsupported { field: "version" });
        }
        if flags != 0 {
            return Err(FrameError::Unsupported { field: "flags" });
        }
        if usize::from(header_len) != HEADER_BYTES {
            return Err(FrameError::Unsupported { field: "header length" });
        }
        let kind = kind_from_byte(kind).ok_or(FrameError::Unsupported { field: "kind" })?;
        let payload_len = u32_at(bytes, 8);
        if payload_len as usize > PAYLOAD_BYTES_MAX {
            return Err(FrameError::Unsupported { field: "payload length" });
        }
        Ok(Self {
            log: LogName { group: GroupId(u32_at(bytes, 12)), cluster: u32_at(bytes, 60) },
            kind,
            id: EntryId { term: Term(u64_at(bytes, 16)), index: LogIndex(u64_at(bytes, 24)) },
            leader_node: u64_at(bytes, 32),
            at: PhysicalOffset(u64_at(bytes, 40)),
            previous_chain: u64_at(bytes, 48),
            payload_len,
            payload_crc: u32_at(bytes, 56),
            durable_before: PhysicalOffset(u64_at(bytes, 64)),
            life: u32_at(bytes, 72),
        })
    }

    /// The chain value behind this frame.
    pub fn chain(&self) -> u64 {
        let mut out = [0; HEADER_BYTES];
        self.encode_shared(&mut out);
        xxh3_64(out.get(..SHARED_BYTES).unwrap_or_default())
    }

    pub fn payload_at(&self) -> PhysicalOffset {
        PhysicalOffset(self.at.get() + HEADER_BYTES as u64)
    }

    /// The end of the frame, padding included.
    pub fn end(&self) -> PhysicalOffset {
        PhysicalOffset(self.at.get() + frame_bytes(self.payload_len as usize))
    }

    fn encode_shared(&self, out: &mut [u8; HEADER_BYTES]) {
        put(out, 0, &MAGIC);
        put(out, 4, &[VERSION, kind_byte(self.kind), 0, HEADER_BYTES as u8]);
        put(out, 8, &self.payload_len.to_le_bytes());
        put(out, 12, &self.log.group.get().to_le_bytes());
        put(out, 16, &self.id.term.get().to_le_bytes());
        put(out, 24, &self.id.index.get().to_le_bytes());
        put(out, 32, &self.leader_node.to_le_bytes());
        put(out, 40, &self.at.get().to_le_bytes());
        put(out, 48, &self.previous_chain.to_le_bytes());
        put(out, 56, &self.payload_crc.to_le_bytes());
        put(out, 60, &self.log.cluster.to_le_bytes());
    }
}

/// What of a frame's header is the same on every replica.
pub fn shared(header: &[u8; HEADER_BYTES]) -> &[u8] {
    header.get(..SHARED_BYTES).unwrap_or_default()
}

/// Bytes a payload of this length takes in the log.
pub const fn frame_bytes(payload_len: usize) -> u64 {
    (HEADER_BYTES as u64 + payload_len as u64).next_multiple_of(FRAME_ALIGN as u64)
}

pub fn cluster_hash(cluster: &str) -> u64 {
    xxh3_64(cluster.as_bytes())
}

/// The chain value in front of the first entry of a log.
pub fn first_chain(identity: &Identity) -> u64 {
    let mut seed = identity.cluster.as_bytes().to_vec();
    seed.extend_from_slice(&identity.group.get().to_le_bytes());
    xxh3_64(&seed)
}

fn kind_byte(kind: EntryKind) -> u8 {
    match kind {
        EntryKind::Blank => 1,
        EntryKind::Membership => 2,
        EntryKind::Normal => 3,
    }
}

fn kind_from_byte(byte: u8) -> Option<EntryKind> {
    match byte {
        1 => Some(EntryKind::Blank),
        2 => Some(EntryKind::Membership),
        3 => Some(EntryKind::Normal),
        _ => None,
    }
}

/// Copies `bytes` into a block of a fixed format; the offsets are constants of the format.
pub(crate) fn put(block: &mut [u8], at: usize, bytes: &[u8]) {
    block.get_mut(at..at + bytes.len()).expect("a field lies inside its block").copy_from_slice(bytes);
}

pub(crate) fn u32_at(block: &[u8], at: usize) -> u32 {
    block.get(at..).and_then(|rest| rest.first_chunk()).map(|b| u32::from_le_bytes(*b)).unwrap_or_default()
}

pub(crate) fn u64_at(block: &[u8], at: usize) -> u64 {
    block.get(at..).and_then(|rest| rest.first_chunk()).map(|b| u64::from_le_bytes(*b)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header() -> FrameHeader {
        FrameHeader {
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
        }
    }

    #[test]
    fn the_bytes_are_those_of_the_table() {
        let bytes = header().encode();
        let mut expected = Vec::new();
        expected.extend_from_slice(b"LMQF");
        expected.extend_from_slice(&[1, 3, 0, 80]);
        expected.extend_from_slice(&5u32.to_le_bytes());
        expected.extend_from_slice(&7u32.to_le_bytes());
        expected.extend_from_slice(&3u64.to_le_bytes());
        expected.extend_from_slice(&42u64.to_le_bytes());
        expected.extend_from_slice(&0u64.to_le_bytes());
        expected.extend_from_slice(&4096u64.to_le_bytes());
        expected.extend_from_slice(&[8, 7, 6, 5, 4, 3, 2, 1]);
        expected.extend_from_slice(&0xaabb_ccddu32.to_le_bytes());
        expected.extend_from_slice(&0x1234_5678u32.to_le_bytes());
        expected.extend_from_slice(&4000u64.to_le_bytes());
        expected.extend_from_slice(&9u32.to_le_bytes());
        let crc = crc32c::crc32c(&expected);
        expected.extend_from_slice(&crc.to_le_bytes());
        assert_eq!(bytes.as_slice(), expected.as_slice());
        assert_eq!(header().chain(), xxh3_64(&expected[..64]));
        assert_eq!(header().end(), PhysicalOffset(4096 + 88));
    }

    #[test]
    fn every_flipped_bit_of_a_header_is_noticed() {
        let bytes = header().encode();
        for at in 0..HEADER_BYTES {
            for bit in 0..8 {
                let mut flipped = bytes;
                flipped[at] ^= 1 << bit;
                assert!(FrameHeader::decode(&flipped).is_err(), "byte {at} bit {bit}");
            }
        }
    }

    #[test]
    fn the_local_fields_do_not_change_the_chain() {
        let other = FrameHeader { durable_before: PhysicalOffset(1), life: 77, ..header() };
        assert_eq!(other.chain(), header().chain());
        let other = FrameHeader { payload_crc: 1, ..header() };
        assert_ne!(other.chain(), header().chain());
    }

    proptest! {
        #[test]
        fn a_header_comes_back_as_it_was(
            term: u64, index: u64, at: u64, chain: u64, crc: u32, durable: u64, life: u32,
            group: u32, cluster: u32, len in 0..=PAYLOAD_BYTES_MAX as u32, kind in 1u8..=3,
        ) {
            let header = FrameHeader {
                log: LogName { group: GroupId(group), cluster },
                kind: kind_from_byte(kind).unwrap(),
                id: EntryId { term: Term(term), index: LogIndex(index) },
                leader_node: 0,
                at: PhysicalOffset(at),
                previous_chain: chain,
                payload_len: len,
                payload_crc: crc,
                durable_before: PhysicalOffset(durable),
                life,
            };
            prop_assert_eq!(FrameHeader::decode(&header.encode()), Ok(header));
        }

        #[test]
        fn any_bytes_are_decoded_without_a_panic(bytes: [u8; 32], more: [u8; 32], rest: [u8; 16]) {
            let mut all = [0; HEADER_BYTES];
            all[..32].copy_from_slice(&bytes);
            all[32..64].copy_from_slice(&more);
            all[64..].copy_from_slice(&rest);
            all[..4].copy_from_slice(&MAGIC);
            let _ = FrameHeader::decode(&all);
        }
    }
}
