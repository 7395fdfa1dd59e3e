//! Walks the frames of one segment and verifies what it hands out.

use ledgermq_common::{LogIndex, PhysicalOffset};

use bytes::Bytes;

use super::Segment;
use crate::defects::{self, Defect};
use crate::frame::{FrameHeader, HEADER_BYTES, LogName};
use crate::store::ReadError;

/// Stands in front of a frame of the flushed log.
#[derive(Debug)]
pub struct FrameCursor<'a> {
    segment: &'a Segment,
    log: LogName,
    at: PhysicalOffset,
    index: LogIndex,
}

/// Whether the bytes of an entry may still be overwritten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stability {
    /// Applied, so never cut: may be handed out as a mapping.
    Stable,
    /// A truncation could put other frames here: copied out with a read call.
    MayBeCut,
}

impl<'a> FrameCursor<'a> {
    pub fn new(segment: &'a Segment, log: LogName, at: PhysicalOffset, index: LogIndex) -> Self {
        Self { segment, log, at, index }
    }

    pub fn at(&self) -> PhysicalOffset {
        self.at
    }

    pub fn index(&self) -> LogIndex {
        self.index
    }

    /// The header of the frame here, and steps behind it.
    pub fn step(&mut self) -> Result<FrameHeader, ReadError> {
        let header = self.peek()?;
        self.at = header.end();
        self.index = self.index.next();
        Ok(header)
    }

    pub fn peek(&self) -> Result<FrameHeader, ReadError> {
        let mut bytes = [0; HEADER_BYTES];
        let position = self.segment.file_position(self.at);
        let read = self.segment.file.read_at(&mut bytes, position).map_err(|source| self.io(source))?;
        if read < HEADER_BYTES {
            return Err(self.corrupt(HEADER_BYTES as u64, "the file ends inside a frame header".to_owned()));
        }
        let header = FrameHeader::decode(&bytes)
            .map_err(|error| self.corrupt(HEADER_BYTES as u64, error.to_string()))?;
        if header.at != self.at || header.log != self.log {
            return Err(self.corrupt(HEADER_BYTES as u64, "the frame belongs elsewhere".to_owned()));
        }
        if header.id.index != self.index {
            let why = format!("entry {} lies where {} belongs", header.id.index, self.index);
            return Err(self.corrupt(HEADER_BYTES as u64, why));
        }
        if header.end() >= self.segment.limit() {
            return Err(self.corrupt(HEADER_BYTES as u64, "the frame leaves its segment".to_owned()));
        }
        Ok(header)
    }

    /// The payload of a frame this cursor read the header of, checked against its checksum.
    pub fn payload(&self, header: &FrameHeader, stability: Stability) -> Result<Bytes, ReadError> {
        let len = header.payload_len as usize;
        let position = self.segment.file_position(header.payload_at());
        let payload = match stability {
            Stability::Stable => self.segment.file.map(position, len),
            Stability::MayBeCut => {
                let mut copy = vec![0; len];
                match self.segment.file.read_at(&mut copy, position) {
                    Ok(read) if read < len => Err(std::io::ErrorKind::UnexpectedEof.into()),
                    Ok(_) => Ok(Bytes::from(copy)),
                    Err(error) => Err(error),
                }
            }
        }
        .map_err(|source| self.io(source))?;
        let is_intact = crc32c::crc32c(&payload) == header.payload_crc;
        if !is_intact && !defects::is_active(Defect::ReadUnverified) {
            let from = self.segment.file_position(header.at);
            return Err(ReadError::Corrupt {
                file: self.segment.path.clone(),
                from,
                to: position + len as u64,
                why: format!("the payload of entry {} does not verify", header.id.index),
            });
        }
        Ok(payload)
    }

    fn corrupt(&self, len: u64, why: String) -> ReadError {
        let from = self.segment.file_position(self.at);
        ReadError::Corrupt { file: self.segment.path.clone(), from, to: from + len, why }
    }

    fn io(&self, source: std::io::Error) -> ReadError {
        ReadError::Io { file: self.segment.path.clone(), source }
    }
}
