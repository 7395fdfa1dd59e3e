//! The decision about a connection, and the rewriting of its header blocks.
//!
//! ```text
//! Preface ──complete──► Watching ──first block has a refused authority──► Rewriting
//!    │                     │                                                 │
//!    │ something else      │ good authority, or a malformed block            │ malformed block
//!    ▼                     ▼                                                 ▼
//! PassThrough ◄────────────┘                                               Ended
//! ```
//!
//! While watching or rewriting, frames other than HEADERS and CONTINUATION pass as they come; a
//! client may wait for the answer to its SETTINGS before it sends anything else. A header block is
//! held back until it is complete.
//!
//! Once a block has been rewritten the server's compression table is empty while the client's is
//! not, so raw blocks must never reach the server again: it would take one field for another. A
//! block that cannot be decoded is therefore replaced by one that every server answers with a
//! connection error (index 0, RFC 7541 section 6.1), and nothing follows it.
//!
//! What is held: at most one incomplete block and one read of the server beyond it, in `input`; and
//! in `output` [`OUTPUT_BYTES_MAX`] and one block. The latter matters because a short block can
//! decode to a long one.

use bytes::{Buf, BytesMut};

use super::access_point;
use super::frames::{
    BlockHead, FRAME_HEADER_BYTES, FrameHeader, PREFACE, ReadBlock, read_block, write_block,
};
use super::hpack::{Decoder, Field, HpackError, write_field};

/// No further block is rewritten before the server has taken this much.
const OUTPUT_BYTES_MAX: usize = 64 * 1024;

const AUTHORITY: &[u8] = b":authority";

/// A header block no server accepts: the index 0.
const REFUSED_BLOCK: &[u8] = &[0x80];

#[derive(Debug, Default)]
pub struct HeaderRewriter {
    state: State,
    /// Received and not yet passed on.
    input: BytesMut,
    /// To be passed on.
    output: BytesMut,
    /// How much of what comes next belongs to a frame that passes as it is.
    verbatim_bytes: usize,
    decoder: Decoder,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum State {
    #[default]
    Preface,
    Watching,
    Rewriting,
    PassThrough,
    Ended,
}

impl HeaderRewriter {
    /// Nothing is held and whatever comes passes as it is: the rewriter is not needed any more.
    pub fn is_pass_through(&self) -> bool {
        self.state == State::PassThrough && self.input.is_empty() && self.output.is_empty()
    }

    /// Nothing will follow.
    pub fn has_ended(&self) -> bool {
        self.state == State::Ended && self.output.is_empty()
    }

    /// How many bytes of the preface have yet to come; `None` when it is complete or is not one.
    pub fn preface_missing(&self) -> Option<usize> {
        let is_open = self.state == State::Preface && PREFACE.starts_with(&self.input);
        PREFACE.len().checked_sub(self.input.len()).filter(|&missing| is_open && missing > 0)
    }

    /// How many bytes at the start of `chunk`, which has just been received, may be given to the
    /// server from where they are. The rest must be [pushed](Self::push).
    pub fn keep_in_place(&mut self, chunk: &[u8]) -> usize {
        let looks_at_frames = matches!(self.state, State::Watching | State::Rewriting);
        if !looks_at_frames || !self.input.is_empty() || !self.output.is_empty() {
            return 0;
        }
        self.skip_verbatim(chunk)
    }

    pub fn push(&mut self, bytes: &[u8]) {
        if self.state != State::Ended {
            self.input.extend_from_slice(bytes);
        }
    }

    /// Does what can be done with the input, and returns the output for the server to take from.
    pub fn advance(&mut self) -> &mut BytesMut {
        while self.output.len() < OUTPUT_BYTES_MAX && self.step() {}
        &mut self.output
    }

    /// The client has closed. An unfinished frame is passed on: the server reports it.
    pub fn finish(&mut self) {
        if self.state != State::Ended {
            self.state = State::PassThrough;
        }
    }

    /// One frame, or one state; false when more input is needed.
    fn step(&mut self) -> bool {
        match self.state {
            State::Preface => {
                if !self.input.starts_with(PREFACE) {
                    if self.preface_missing().is_some() {
                        return false;
                    }
                    self.state = State::PassThrough;
                    return true;
                }
                self.pass(PREFACE.len());
                self.state = State::Watching;
                true
            }
            State::Watching | State::Rewriting => {
                let input = std::mem::take(&mut self.input);
                let verbatim = self.skip_verbatim(&input);
                self.input = input;
                self.pass(verbatim);
                self.step_block() || verbatim > 0
            }
            State::PassThrough => {
                let bytes = self.input.len();
                self.pass(bytes);
                bytes > 0
            }
            State::Ended => {
                self.input.clear();
                false
            }
        }
    }

    /// How much at the start of `bytes` belongs to frames that pass as they are. Stops before a
    /// header block and before an incomplete frame header.
    fn skip_verbatim(&mut self, bytes: &[u8]) -> usize {
        let mut at = 0usize;
        loop {
            let rest = bytes.get(at..).unwrap_or_default();
            let skipped = rest.len().min(self.verbatim_bytes);
            at += skipped;
            self.verbatim_bytes -= skipped;
            if self.verbatim_bytes > 0 {
                return at;
            }
            match FrameHeader::read(bytes.get(at..).unwrap_or_default()) {
                Some(frame) if !frame.carries_headers() => {
                    self.verbatim_bytes = FRAME_HEADER_BYTES + frame.payload_bytes;
                }
                _ => return at,
            }
        }
    }

    /// Looks at the header block that starts the input; false when it is not complete.
    fn step_block(&mut self) -> bool {
        if self.verbatim_bytes > 0 {
            return false;
        }
        let stream_id = FrameHeader::read(&self.input).map_or(0, |frame| frame.stream_id);
        match (read_block(&self.input), self.state) {
            (ReadBlock::Incomplete, _) => return false,
            (ReadBlock::Complete { bytes, head, fragment }, State::Watching) => {
                match self.decoder.decode(&fragment) {
                    Ok(fields) if fields.iter().any(is_refused) => {
                        self.state = State::Rewriting;
                        self.write_repaired(head, fields);
                        self.input.advance(bytes);
                    }
                    _ => self.state = State::PassThrough,
                }
            }
            (ReadBlock::Complete { bytes, head, fragment }, _) => match self.decoder.decode(&fragment) {
                Ok(fields) => {
                    self.write_repaired(head, fields);
                    self.input.advance(bytes);
                }
                Err(error) => self.refuse(head.stream_id, Some(error)),
            },
            (ReadBlock::Malformed, State::Watching) => self.state = State::PassThrough,
            (ReadBlock::Malformed, _) => self.refuse(stream_id, None),
        }
        true
    }

    fn write_repaired(&mut self, head: BlockHead, fields: Vec<Field>) {
        let mut block = BytesMut::new();
        for mut field in fields {
            if field.name == AUTHORITY
                && let Some(repaired) = access_point::repaired(&field.value)
            {
                field.value = repaired;
            }
            write_field(&mut block, &field);
        }
        write_block(&mut self.output, head, &block);
    }

    fn refuse(&mut self, stream_id: u32, error: Option<HpackError>) {
        tracing::debug!(stream_id, ?error, "a header block cannot be read; the connection ends");
        let head = BlockHead { stream_id: stream_id.max(1), end_stream: true, priority: None };
        write_block(&mut self.output, head, REFUSED_BLOCK);
        self.state = State::Ended;
        self.input = BytesMut::new();
    }

    fn pass(&mut self, bytes: usize) {
        if self.output.is_empty() && bytes == self.input.len() {
            std::mem::swap(&mut self.output, &mut self.input);
        } else {
            let passed = self.input.split_to(bytes);
            self.output.extend_from_slice(&passed);
        }
    }
}

fn is_refused(field: &Field) -> bool {
    field.name == AUTHORITY && access_point::repaired(&field.value).is_some()
}

#[cfg(test)]
impl HeaderRewriter {
    /// As after a first block with a list.
    pub fn rewriting_from_the_start() -> Self {
        Self { state: State::Rewriting, verbatim_bytes: PREFACE.len(), ..Self::default() }
    }
}
