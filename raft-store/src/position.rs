//! A place between two entries of the log, with all that is needed to continue there.
//!
//! ```text
//! offset size field
//!      0    8 physical offset
//!      8    8 1 if an entry lies before, else 0
//!     16    8 term of that entry
//!     24    8 index of that entry
//!     32    8 chain behind that entry
//! ```

use ledgermq_common::{LogIndex, PhysicalOffset, Term};

use crate::frame::{put, u64_at};
use crate::machine::EntryId;
use crate::store::SnapshotBoundary;

pub const POSITION_BYTES: usize = 40;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogPosition {
    /// The end of the frame before. The next frame starts here, or in the next segment if it does
    /// not fit (`segment::place`).
    pub at: PhysicalOffset,
    pub last: Option<EntryId>,
    pub chain: u64,
}

impl LogPosition {
    pub fn next_index(&self) -> LogIndex {
        self.last.map_or(LogIndex(0), |last| last.index.next())
    }

    pub fn encode(&self) -> [u8; POSITION_BYTES] {
        let last = self.last.unwrap_or_default();
        let mut out = [0; POSITION_BYTES];
        put(&mut out, 0, &self.at.get().to_le_bytes());
        put(&mut out, 8, &u64::from(self.last.is_some()).to_le_bytes());
        put(&mut out, 16, &last.term.get().to_le_bytes());
        put(&mut out, 24, &last.index.get().to_le_bytes());
        put(&mut out, 32, &self.chain.to_le_bytes());
        out
    }

    /// Reads the position at the start of `bytes`; its block was verified before.
    pub fn decode(bytes: &[u8]) -> Self {
        let id = EntryId { term: Term(u64_at(bytes, 16)), index: LogIndex(u64_at(bytes, 24)) };
        Self {
            at: PhysicalOffset(u64_at(bytes, 0)),
            last: (u64_at(bytes, 8) == 1).then_some(id),
            chain: u64_at(bytes, 32),
        }
    }
}

impl From<SnapshotBoundary> for LogPosition {
    fn from(boundary: SnapshotBoundary) -> Self {
        Self { at: boundary.next_physical_offset, last: Some(boundary.id), chain: boundary.chain }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_come_back_as_they_were() {
        let last = Some(EntryId { term: Term(2), index: LogIndex(9) });
        for last in [None, last] {
            let position = LogPosition { at: PhysicalOffset(5000), last, chain: 77 };
            assert_eq!(LogPosition::decode(&position.encode()), position);
        }
    }
}
