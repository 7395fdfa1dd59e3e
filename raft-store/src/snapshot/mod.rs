//! Snapshots of the state: one file each, in `snapshots/` beside the log.
//!
//! A snapshot holds the state at one entry and what the log needs to go on behind it. It holds no
//! messages, and none have to be shipped with it: the purge pointer always rests *on* a kept
//! snapshot that lies below the oldest byte the state still refers to. A replica that is so far
//! behind that the leader purged what it needs installs that snapshot and then receives every entry
//! behind it by ordinary replication, so it holds every byte the state refers to when it has caught
//! up. (Offered is therefore the oldest snapshot at or after the purge pointer, not the newest.)
//!
//! A file, little endian, written under another name, synced, renamed, directory synced:
//!
//! | Offset | Bytes | What |
//! |---|---|---|
//! | 0 | 8 | `LMQSNAP1` |
//! | 8 | 4 | length of the head, *h* |
//! | 12 | 4 | group |
//! | 16 | 8 | xxh3 of the cluster's name |
//! | 24 | 16 | term and index of the last entry inside |
//! | 40 | 8 | end of that entry's frame in the CommitLog |
//! | 48 | 8 | chain value of that entry's frame |
//! | 56 | *m* | the membership, see `raft/membership` |
//! | *h* − 4 | 4 | crc32c of the head before |
//! | *h* | 4 | length of a piece, *p* ≤ 1 MiB; 0 ends the body |
//! | *h* + 4 | 4 | crc32c of the piece |
//! | *h* + 8 | *p* | the piece; the next one follows |
//! | end | 16 | 8 bytes 0 (the end mark and its checksum), then the length of the body |
//!
//! | Found at start | Answer |
//! |---|---|
//! | a file under a temporary name | removed |
//! | a head that does not verify, or of another group | left alone, not used, a warning |
//! | a body that does not verify while it is restored | that snapshot is not used, the next older one is |
//! | a snapshot behind the end of the log | it was being installed: the log is made to go on behind it |
//!
//! A snapshot of our own is finished only after the log is durable up to its entry, because apply
//! may run ahead of the local disk; so the last row can have no other cause.

mod body;
mod catalog;

pub(crate) use self::body::PIECE_BYTES;
pub(crate) use self::catalog::{Incoming, SnapshotCatalog, SnapshotFile, SnapshotHead};

#[cfg(test)]
mod tests;
