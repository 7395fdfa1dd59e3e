//! The body of a snapshot file: pieces with a checksum each.

use std::io::{self, Read};
use std::sync::Arc;

use crate::io::DiskFile;

/// Bytes in one piece. Small enough to be checked and sent without a pause.
pub(crate) const PIECE_BYTES: usize = 256 * 1024;
/// A longer piece is not ours.
const PIECE_BYTES_MAX: usize = 1024 * 1024;
const PIECE_HEAD_BYTES: usize = 8;
const END_BYTES: usize = 16;

fn corrupt(reason: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("snapshot: {}", reason.into()))
}

/// Writes what `body` yields behind `at` and returns where the file ends. Nothing is synced.
pub(crate) fn write_body(file: &dyn DiskFile, mut at: u64, body: &mut dyn Read) -> io::Result<u64> {
    let mut buffer = vec![0; PIECE_HEAD_BYTES + PIECE_BYTES];
    let mut body_bytes: u64 = 0;
    loop {
        let (head, piece) = buffer.split_at_mut(PIECE_HEAD_BYTES);
        let len = fill(body, piece)?;
        if len == 0 {
            break;
        }
        let piece = piece.get(..len).expect("fill stays inside the buffer");
        let (len_field, checksum_field) = head.split_at_mut(4);
        len_field.copy_from_slice(&u32::try_from(len).expect("a piece is small").to_le_bytes());
        checksum_field.copy_from_slice(&crc32c::crc32c(piece).to_le_bytes());
        let written = buffer.get(..PIECE_HEAD_BYTES + len).expect("the piece is inside the buffer");
        file.write_at(written, at)?;
        at += written.len() as u64;
        body_bytes += len as u64;
    }
    let mut end = [0; END_BYTES];
    end.split_at_mut(8).1.copy_from_slice(&body_bytes.to_le_bytes());
    file.write_at(&end, at)?;
    Ok(at + END_BYTES as u64)
}

/// Reads until `into` is full or the source ends.
fn fill(from: &mut dyn Read, into: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = into.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match from.read(rest) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Reads a body and checks every piece before it shows any byte of it. The end of the body is only
/// reported after the end mark was found, so a file that was cut is an error.
pub(crate) struct BodyReader {
    file: Arc<dyn DiskFile>,
    at: u64,
    piece: Vec<u8>,
    consumed: usize,
    shown_bytes: u64,
    is_at_end: bool,
}

impl BodyReader {
    pub(crate) fn new(file: Arc<dyn DiskFile>, at: u64) -> Self {
        Self { file, at, piece: Vec::new(), consumed: 0, shown_bytes: 0, is_at_end: false }
    }

    /// Reads the rest and says where the file ends.
    pub(crate) fn verify(mut self) -> io::Result<u64> {
        while !self.is_at_end {
            self.next_piece()?;
        }
        Ok(self.at)
    }

    fn next_piece(&mut self) -> io::Result<()> {
        let mut head = [0; PIECE_HEAD_BYTES];
        read_exact_at(&*self.file, &mut head, self.at)?;
        let [l0, l1, l2, l3, c0, c1, c2, c3] = head;
        let len = usize::try_from(u32::from_le_bytes([l0, l1, l2, l3])).unwrap_or(usize::MAX);
        let checksum = u32::from_le_bytes([c0, c1, c2, c3]);
        self.at += PIECE_HEAD_BYTES as u64;
        self.consumed = 0;
        if len == 0 {
            let mut total = [0; END_BYTES - PIECE_HEAD_BYTES];
            read_exact_at(&*self.file, &mut total, self.at)?;
            self.at += total.len() as u64;
            if checksum != 0 || u64::from_le_bytes(total) != self.shown_bytes {
                return Err(corrupt("the end mark does not fit the body"));
            }
            self.piece.clear();
            self.is_at_end = true;
            return Ok(());
        }
        if len > PIECE_BYTES_MAX {
            return Err(corrupt(format!("a piece of {len} bytes")));
        }
        self.piece.resize(len, 0);
        read_exact_at(&*self.file, &mut self.piece, self.at)?;
        if crc32c::crc32c(&self.piece) != checksum {
            return Err(corrupt(format!("the piece at {} does not verify", self.at)));
        }
        self.at += len as u64;
        self.shown_bytes += len as u64;
        Ok(())
    }
}

impl Read for BodyReader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if into.is_empty() {
            return Ok(0);
        }
        if self.consumed == self.piece.len() && !self.is_at_end {
            self.next_piece()?;
        }
        let rest = self.piece.get(self.consumed..).unwrap_or_default();
        let len = rest.len().min(into.len());
        if let (Some(to), Some(from)) = (into.get_mut(..len), rest.get(..len)) {
            to.copy_from_slice(from);
        }
        self.consumed += len;
        Ok(len)
    }
}

pub(crate) fn read_exact_at(file: &dyn DiskFile, into: &mut [u8], at: u64) -> io::Result<()> {
    let mut filled = 0;
    while let Some(rest) = into.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, at + filled as u64)? {
            0 => return Err(corrupt(format!("the file ends at {}", at + filled as u64))),
            read => filled += read,
        }
    }
    Ok(())
}
