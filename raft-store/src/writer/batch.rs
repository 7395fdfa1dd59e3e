//! One write: frames that lie one behind the other, as a list of parts for the disk.

use std::io::IoSlice;
use std::ops::Range;

use bytes::Bytes;
use ledgermq_common::PhysicalOffset;

use crate::commit_log::PlacedFrame;
use crate::frame::{self, FRAME_ALIGN};

/// Payloads below this are copied next to their headers: a part of its own costs the kernel about
/// as much as copying this many bytes, and a call takes 1024 parts only.
const COPY_BYTES_MAX: usize = 4096;
const PADDING: [u8; FRAME_ALIGN] = [0; FRAME_ALIGN];

#[derive(Debug, Default)]
pub struct WriteBatch {
    /// Headers, padding and short payloads; kept between batches.
    copied: Vec<u8>,
    parts: Vec<Part>,
    start: Option<PhysicalOffset>,
    end: PhysicalOffset,
}

#[derive(Debug)]
enum Part {
    Copied(Range<usize>),
    Payload(Bytes),
}

impl WriteBatch {
    pub fn start(&self) -> Option<PhysicalOffset> {
        self.start
    }

    pub fn end(&self) -> PhysicalOffset {
        self.end
    }

    /// Frames of one batch lie next to each other.
    pub fn push(&mut self, frame: &PlacedFrame) {
        let header = &frame.header;
        assert_eq!(header.payload_len as usize, frame.payload.len(), "the header speaks of this payload");
        match self.start {
            None => self.start = Some(header.at),
            Some(_) => assert_eq!(self.end, header.at, "a batch has no gap"),
        }
        self.copy(&header.encode());
        if frame.payload.len() < COPY_BYTES_MAX {
            self.copy(&frame.payload);
        } else {
            self.parts.push(Part::Payload(frame.payload.clone()));
        }
        let unpadded = frame::HEADER_BYTES as u64 + frame.payload.len() as u64;
        let padding = usize::try_from(frame::frame_bytes(frame.payload.len()) - unpadded).unwrap_or(0);
        self.copy(PADDING.get(..padding).unwrap_or_default());
        self.end = header.end();
    }

    pub fn slices(&self) -> Vec<IoSlice<'_>> {
        let parts = self.parts.iter().map(|part| match part {
            Part::Copied(range) => self.copied.get(range.clone()).unwrap_or_default(),
            Part::Payload(payload) => payload,
        });
        parts.map(IoSlice::new).collect()
    }

    pub fn clear(&mut self) {
        self.copied.clear();
        self.parts.clear();
        self.start = None;
    }

    fn copy(&mut self, bytes: &[u8]) {
        let from = self.copied.len();
        self.copied.extend_from_slice(bytes);
        match self.parts.last_mut() {
            Some(Part::Copied(range)) if range.end == from => range.end = self.copied.len(),
            _ if bytes.is_empty() => {}
            _ => self.parts.push(Part::Copied(from..self.copied.len())),
        }
    }
}

#[cfg(test)]
mod tests {
    use ledgermq_common::{GroupId, LogIndex, Term};

    use super::*;
    use crate::frame::{FrameHeader, LogName};
    use crate::machine::EntryId;
    use crate::store::EntryKind;

    #[test]
    fn small_payloads_share_a_part_and_large_ones_are_not_copied() {
        let mut batch = WriteBatch::default();
        let mut at = PhysicalOffset(4096);
        let mut expected = Vec::new();
        for (index, len) in [10, 4095, 5000, 0, 9001].into_iter().enumerate() {
            let payload = Bytes::from(vec![index as u8 + 1; len]);
            let header = FrameHeader {
                log: LogName { group: GroupId(1), cluster: 2 },
                kind: EntryKind::Normal,
                id: EntryId { term: Term(1), index: LogIndex(index as u64) },
                leader_node: 0,
                at,
                previous_chain: 0,
                payload_len: len as u32,
                payload_crc: 0,
                durable_before: PhysicalOffset(0),
                life: 1,
            };
            expected.extend_from_slice(&header.encode());
            expected.extend_from_slice(&payload);
            expected.resize(expected.len().next_multiple_of(FRAME_ALIGN), 0);
            at = header.end();
            batch.push(&PlacedFrame { header, chain: 0, payload });
        }
        let slices = batch.slices();
        assert_eq!(slices.len(), 5, "copied, 5000 bytes, copied, 9001 bytes, padding");
        assert_eq!(slices.iter().flat_map(|slice| slice.iter().copied()).collect::<Vec<u8>>(), expected);
        assert_eq!((batch.start(), batch.end()), (Some(PhysicalOffset(4096)), at));
        batch.clear();
        assert_eq!(batch.start(), None);
    }
}
