//! The encoding of a membership, and the small file that remembers the one applied last.
//!
//! A state machine may have persisted its state up to an entry far behind the last membership
//! entry, and openraft looks for memberships only behind that point. So the membership in force at
//! the last applied entry is kept beside the log. It is written before the state machine sees any
//! entry behind the membership entry, so it is never older than what the machine persisted; a newer
//! one does no harm, because openraft would find it in the log anyway.
//!
//! A membership, little endian:
//!
//! | Offset | Bytes | What |
//! |---|---|---|
//! | 0 | 1 | version, 2 |
//! | 1 | 1 | number of voter sets (two while a change is under way) |
//! | 2 | 2 + 8 *n* | per set: number of voters, their ids in ascending order |
//! | … | 2 | number of nodes |
//! | … | 18 + *a* | per node in ascending order: id, replica id, length of the address, the address |
//!
//! Version 1 had no replica ids: they read as zero, which is what the directories of that time have.
//!
//! The file `membership`:
//!
//! | Offset | Bytes | What |
//! |---|---|---|
//! | 0 | 8 | `LMQMEMB1` |
//! | 8 | 1 | 1 if the next two count |
//! | 9 | 16 | term and index of the membership entry |
//! | 25 | 4 | length of the membership |
//! | 29 | *n* | the membership |
//! | 29 + *n* | 4 | crc32c of everything before |

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use ledgermq_common::{LogIndex, Term};

use super::vocabulary::{Membership, Node, StoredMembership, entry_id, log_id};
use crate::io::Disk;
use crate::machine::EntryId;
use crate::store::ReplicaId;

const VERSION: u8 = 2;
const VERSION_WITHOUT_REPLICAS: u8 = 1;
const FILE_MAGIC: &[u8; 8] = b"LMQMEMB1";
const FILE_NAME: &str = "membership";
const FILE_NAME_NEW: &str = "membership.new";
/// A membership of 1,000 nodes with long addresses; anything above is not ours.
const FILE_BYTES_MAX: u64 = 1 << 20;

#[derive(Debug, thiserror::Error)]
#[error("not a membership: {reason}")]
pub(crate) struct MalformedMembership {
    reason: String,
}

impl MalformedMembership {
    fn because(reason: impl Into<String>) -> Self {
        Self { reason: reason.into() }
    }
}

impl From<MalformedMembership> for io::Error {
    fn from(malformed: MalformedMembership) -> Self {
        io::Error::new(io::ErrorKind::InvalidData, malformed)
    }
}

/// The same bytes on every node for the same membership.
pub(crate) fn encode(membership: &Membership) -> Bytes {
    let mut out = BytesMut::with_capacity(256);
    out.put_u8(VERSION);
    let sets = membership.get_joint_config();
    out.put_u8(u8::try_from(sets.len()).expect("a membership has at most two voter sets"));
    for set in sets {
        out.put_u16_le(u16::try_from(set.len()).expect("fewer than 65,536 voters"));
        for voter in set {
            out.put_u64_le(*voter);
        }
    }
    let nodes: Vec<_> = membership.nodes().collect();
    out.put_u16_le(u16::try_from(nodes.len()).expect("fewer than 65,536 nodes"));
    for (id, node) in nodes {
        out.put_u64_le(*id);
        out.put_u64_le(node.replica.0);
        out.put_u16_le(u16::try_from(node.addr.len()).expect("an address of less than 64 KiB"));
        out.put_slice(node.addr.as_bytes());
    }
    out.freeze()
}

pub(crate) fn decode(mut from: Bytes) -> Result<Membership, MalformedMembership> {
    let short = |_| MalformedMembership::because("it ends too early");
    let version = from.try_get_u8().map_err(short)?;
    if version != VERSION && version != VERSION_WITHOUT_REPLICAS {
        return Err(MalformedMembership::because(format!("version {version}")));
    }
    let mut sets = Vec::new();
    for _ in 0..from.try_get_u8().map_err(short)? {
        let mut set = BTreeSet::new();
        for _ in 0..from.try_get_u16_le().map_err(short)? {
            set.insert(from.try_get_u64_le().map_err(short)?);
        }
        sets.push(set);
    }
    let mut nodes = BTreeMap::new();
    for _ in 0..from.try_get_u16_le().map_err(short)? {
        let id = from.try_get_u64_le().map_err(short)?;
        let replica = match version {
            VERSION_WITHOUT_REPLICAS => ReplicaId::default(),
            _ => ReplicaId(from.try_get_u64_le().map_err(short)?),
        };
        let len = usize::from(from.try_get_u16_le().map_err(short)?);
        if from.remaining() < len {
            return Err(MalformedMembership::because("an address ends too early"));
        }
        let addr = String::from_utf8(from.split_to(len).to_vec())
            .map_err(|_| MalformedMembership::because("an address is not UTF-8"))?;
        nodes.insert(id, Node { addr, replica });
    }
    if from.has_remaining() {
        return Err(MalformedMembership::because(format!("{} bytes too many", from.remaining())));
    }
    Membership::new(sets, nodes).map_err(|error| MalformedMembership::because(error.to_string()))
}

/// A stored membership as snapshots and the membership file hold it.
pub(crate) fn put_stored(out: &mut BytesMut, stored: &StoredMembership) {
    let id = stored.log_id().as_ref().map(entry_id);
    out.put_u8(u8::from(id.is_some()));
    let id = id.unwrap_or_default();
    out.put_u64_le(id.term.get());
    out.put_u64_le(id.index.get());
    let membership = encode(stored.membership());
    out.put_u32_le(u32::try_from(membership.len()).expect("a membership is small"));
    out.put_slice(&membership);
}

pub(crate) fn get_stored(from: &mut Bytes) -> Result<StoredMembership, MalformedMembership> {
    let short = |_| MalformedMembership::because("it ends too early");
    let has_id = from.try_get_u8().map_err(short)? == 1;
    let id = EntryId {
        term: Term(from.try_get_u64_le().map_err(short)?),
        index: LogIndex(from.try_get_u64_le().map_err(short)?),
    };
    let len = usize::try_from(from.try_get_u32_le().map_err(short)?).unwrap_or(usize::MAX);
    if from.remaining() < len {
        return Err(MalformedMembership::because("it ends too early"));
    }
    let encoded = from.split_to(len);
    // A store that was never initialised has a membership without voters, which openraft calls the
    // default and does not accept as a new one.
    if !has_id {
        return Ok(StoredMembership::default());
    }
    Ok(StoredMembership::new(Some(log_id(id)), decode(encoded)?))
}

/// The file beside the log.
#[derive(Debug, Clone)]
pub(crate) struct MembershipFile {
    disk: Arc<dyn Disk>,
    directory: PathBuf,
}

impl MembershipFile {
    /// `directory` must exist.
    pub(crate) fn in_directory(disk: Arc<dyn Disk>, directory: &Path) -> Self {
        Self { disk, directory: directory.to_owned() }
    }

    pub(crate) fn load(&self) -> io::Result<Option<StoredMembership>> {
        if !self.disk.list(&self.directory)?.iter().any(|name| name == FILE_NAME) {
            return Ok(None);
        }
        let file = self.disk.open(&self.directory.join(FILE_NAME))?;
        let len = file.byte_len()?;
        if len > FILE_BYTES_MAX {
            return Err(MalformedMembership::because(format!("a file of {len} bytes")).into());
        }
        let mut content = vec![0; usize::try_from(len).unwrap_or_default()];
        let read = file.read_at(&mut content, 0)?;
        content.truncate(read);
        let mut content = Bytes::from(content);
        let Some(body_len) = content.len().checked_sub(4).filter(|len| *len >= FILE_MAGIC.len()) else {
            return Err(MalformedMembership::because("the file ends too early").into());
        };
        let mut checksum = content.split_off(body_len);
        if checksum.get_u32_le() != crc32c::crc32c(&content) || !content.starts_with(FILE_MAGIC) {
            return Err(MalformedMembership::because("the file does not verify").into());
        }
        content.advance(FILE_MAGIC.len());
        Ok(Some(get_stored(&mut content)?))
    }

    /// Durable on return.
    pub(crate) fn store(&self, membership: &StoredMembership) -> io::Result<()> {
        let mut content = BytesMut::with_capacity(256);
        content.put_slice(FILE_MAGIC);
        put_stored(&mut content, membership);
        let checksum = crc32c::crc32c(&content);
        content.put_u32_le(checksum);
        let new = self.directory.join(FILE_NAME_NEW);
        let file = self.disk.create(&new)?;
        file.write_at(&content, 0)?;
        file.sync_data()?;
        self.disk.rename(&new, &self.directory.join(FILE_NAME))?;
        self.disk.sync_directory(&self.directory)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn three() -> Membership {
        let nodes: BTreeMap<u64, Node> = (1..=3)
            .map(|id| (id, Node { addr: format!("host-{id}:9000"), replica: ReplicaId(id << 8) }))
            .collect();
        Membership::new(vec![nodes.keys().copied().collect()], nodes).expect("valid")
    }

    #[test]
    fn a_membership_survives_its_encoding() {
        assert_eq!(decode(encode(&three())).expect("decodes"), three());
    }

    #[test]
    fn a_membership_of_before_replicas_had_ids_is_read_with_zeros() {
        let mut old = BytesMut::new();
        old.put_slice(&[VERSION_WITHOUT_REPLICAS, 1]);
        old.put_u16_le(1);
        old.put_u64_le(7);
        old.put_u16_le(1);
        old.put_u64_le(7);
        old.put_u16_le(3);
        old.put_slice(b"h:1");
        let decoded = decode(old.freeze()).expect("decodes");
        let node = decoded.get_node(&7).expect("is named");
        assert_eq!((node.addr.as_str(), node.replica), ("h:1", ReplicaId(0)));
    }

    #[test]
    fn no_prefix_and_no_extension_of_a_membership_is_one() {
        let whole = encode(&three());
        for len in 0..whole.len() {
            assert!(decode(whole.slice(..len)).is_err(), "prefix of {len} bytes");
        }
        let mut longer = BytesMut::from(&whole[..]);
        longer.put_u8(0);
        assert!(decode(longer.freeze()).is_err());
    }
}
