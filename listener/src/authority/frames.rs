//! HTTP/2 frames (RFC 9113): just enough to find header blocks and to write them.
//!
//! ```text
//! offset size
//!      0    3  length of the payload, big endian
//!      3    1  type: 1 HEADERS, 9 CONTINUATION; all others pass as they are
//!      4    1  flags: 0x1 END_STREAM, 0x4 END_HEADERS, 0x8 PADDED, 0x20 PRIORITY
//!      5    4  stream id, big endian, top bit reserved
//!      9    n  payload; of HEADERS: [pad length 1] [priority 5] fragment [padding]
//! ```
//!
//! A header block is the fragments of one HEADERS and the CONTINUATIONs that follow it at once.

use std::borrow::Cow;

use bytes::{BufMut, BytesMut};

/// The bytes each client sends first (RFC 9113 section 3.4).
pub const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub const FRAME_HEADER_BYTES: usize = 9;

/// The payload every HTTP/2 peer must take.
const FRAME_PAYLOAD_MAX: usize = 16_384;

/// Larger header blocks are not looked into. The server announces a limit far below.
pub const BLOCK_BYTES_MAX: usize = 64 * 1024;

/// A block in more frames is an attack (CONTINUATION flood), not a large header.
const CONTINUATIONS_MAX: usize = 64;

const KIND_HEADERS: u8 = 1;
const KIND_CONTINUATION: u8 = 9;
const FLAG_END_STREAM: u8 = 0x1;
const FLAG_END_HEADERS: u8 = 0x4;
const FLAG_PADDED: u8 = 0x8;
const FLAG_PRIORITY: u8 = 0x20;
const PRIORITY_BYTES: usize = 5;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    pub payload_bytes: usize,
    kind: u8,
    flags: u8,
    pub stream_id: u32,
}

/// What a block's HEADERS frame says besides the fragment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockHead {
    pub stream_id: u32,
    pub end_stream: bool,
    pub priority: Option<[u8; PRIORITY_BYTES]>,
}

#[derive(Debug, PartialEq, Eq)]
pub enum ReadBlock<'a> {
    /// More input is needed.
    Incomplete,
    /// The block takes `bytes` of the input.
    Complete { bytes: usize, head: BlockHead, fragment: Cow<'a, [u8]> },
    /// A block that no peer may send, or one over the limits.
    Malformed,
}

impl FrameHeader {
    /// The header at the start of `input`, or `None` while it is incomplete.
    pub fn read(input: &[u8]) -> Option<Self> {
        let (bytes, _) = input.split_first_chunk::<FRAME_HEADER_BYTES>()?;
        let [l0, l1, l2, kind, flags, s0, s1, s2, s3] = *bytes;
        Some(Self {
            payload_bytes: u32::from_be_bytes([0, l0, l1, l2]) as usize,
            kind,
            flags,
            stream_id: u32::from_be_bytes([s0 & 0x7f, s1, s2, s3]),
        })
    }

    /// True for frames that carry a part of a header block.
    pub fn carries_headers(&self) -> bool {
        matches!(self.kind, KIND_HEADERS | KIND_CONTINUATION)
    }

    fn write(&self, out: &mut BytesMut) {
        assert!(self.payload_bytes <= FRAME_PAYLOAD_MAX, "no frame is larger than every peer must take");
        out.put_uint(self.payload_bytes as u64, 3);
        out.put_u8(self.kind);
        out.put_u8(self.flags);
        out.put_u32(self.stream_id);
    }
}

/// Reads the header block that starts `input`, where a frame with [`FrameHeader::carries_headers`]
/// starts. Keeps no state: an incomplete block is read again from its start, which the limits keep
/// cheap.
pub fn read_block(input: &[u8]) -> ReadBlock<'_> {
    let Some(first) = FrameHeader::read(input) else { return ReadBlock::Incomplete };
    if first.kind != KIND_HEADERS || first.stream_id == 0 || first.payload_bytes > BLOCK_BYTES_MAX {
        return ReadBlock::Malformed;
    }
    let mut end = FRAME_HEADER_BYTES + first.payload_bytes;
    let Some(payload) = input.get(FRAME_HEADER_BYTES..end) else { return ReadBlock::Incomplete };
    let Some((priority, first_fragment)) = split_headers_payload(first.flags, payload) else {
        return ReadBlock::Malformed;
    };
    let head =
        BlockHead { stream_id: first.stream_id, end_stream: first.flags & FLAG_END_STREAM != 0, priority };
    if first.flags & FLAG_END_HEADERS != 0 {
        return ReadBlock::Complete { bytes: end, head, fragment: Cow::Borrowed(first_fragment) };
    }

    let mut fragment = first_fragment.to_vec();
    for _ in 0..CONTINUATIONS_MAX {
        let rest = input.get(end..).unwrap_or_default();
        let Some(next) = FrameHeader::read(rest) else { return ReadBlock::Incomplete };
        let fits = fragment.len() + next.payload_bytes <= BLOCK_BYTES_MAX;
        if next.kind != KIND_CONTINUATION || next.stream_id != first.stream_id || !fits {
            return ReadBlock::Malformed;
        }
        let next_end = FRAME_HEADER_BYTES + next.payload_bytes;
        let Some(payload) = rest.get(FRAME_HEADER_BYTES..next_end) else { return ReadBlock::Incomplete };
        fragment.extend_from_slice(payload);
        end += next_end;
        if next.flags & FLAG_END_HEADERS != 0 {
            return ReadBlock::Complete { bytes: end, head, fragment: Cow::Owned(fragment) };
        }
    }
    ReadBlock::Malformed
}

/// Writes a block as one HEADERS and as many CONTINUATIONs as it takes, without padding.
pub fn write_block(out: &mut BytesMut, head: BlockHead, fragment: &[u8]) {
    let priority = head.priority.as_ref().map_or(&[][..], |bytes| bytes);
    let (first, mut rest) = fragment.split_at(fragment.len().min(FRAME_PAYLOAD_MAX - priority.len()));
    let mut flags = if head.end_stream { FLAG_END_STREAM } else { 0 };
    if head.priority.is_some() {
        flags |= FLAG_PRIORITY;
    }
    if rest.is_empty() {
        flags |= FLAG_END_HEADERS;
    }
    FrameHeader {
        payload_bytes: priority.len() + first.len(),
        kind: KIND_HEADERS,
        flags,
        stream_id: head.stream_id,
    }
    .write(out);
    out.put_slice(priority);
    out.put_slice(first);
    while !rest.is_empty() {
        let (part, after) = rest.split_at(rest.len().min(FRAME_PAYLOAD_MAX));
        let flags = if after.is_empty() { FLAG_END_HEADERS } else { 0 };
        FrameHeader { payload_bytes: part.len(), kind: KIND_CONTINUATION, flags, stream_id: head.stream_id }
            .write(out);
        out.put_slice(part);
        rest = after;
    }
}

/// The priority and the fragment of a HEADERS payload; `None` if its parts do not fit into it.
fn split_headers_payload(flags: u8, payload: &[u8]) -> Option<(Option<[u8; PRIORITY_BYTES]>, &[u8])> {
    let (padding, payload) = if flags & FLAG_PADDED != 0 {
        let (&padding, rest) = payload.split_first()?;
        (usize::from(padding), rest)
    } else {
        (0, payload)
    };
    let (priority, payload) = if flags & FLAG_PRIORITY != 0 {
        let (priority, rest) = payload.split_first_chunk::<PRIORITY_BYTES>()?;
        (Some(*priority), rest)
    } else {
        (None, payload)
    };
    Some((priority, payload.get(..payload.len().checked_sub(padding)?)?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(kind: u8, flags: u8, stream_id: u32, payload: &[u8]) -> Vec<u8> {
        let mut out = BytesMut::new();
        FrameHeader { payload_bytes: payload.len(), kind, flags, stream_id }.write(&mut out);
        out.put_slice(payload);
        out.to_vec()
    }

    #[test]
    fn padding_and_priority_are_told_from_the_fragment() {
        let payload = [&[3u8][..], &[0, 0, 0, 9, 200], b"fragment", &[0; 3]].concat();
        let input = frame(
            KIND_HEADERS,
            FLAG_PADDED | FLAG_PRIORITY | FLAG_END_HEADERS | FLAG_END_STREAM,
            7,
            &payload,
        );
        let ReadBlock::Complete { bytes, head, fragment } = read_block(&input) else {
            panic!("not complete")
        };
        assert_eq!(bytes, input.len());
        assert_eq!(head, BlockHead { stream_id: 7, end_stream: true, priority: Some([0, 0, 0, 9, 200]) });
        assert_eq!(&*fragment, b"fragment");
    }

    #[test]
    fn blocks_no_peer_may_send_are_refused() {
        let continued = frame(KIND_HEADERS, 0, 1, b"ab");
        let cases = [
            frame(KIND_HEADERS, FLAG_END_HEADERS, 0, b"x"),
            frame(KIND_CONTINUATION, FLAG_END_HEADERS, 1, b"x"),
            frame(KIND_HEADERS, FLAG_END_HEADERS | FLAG_PADDED, 1, &[5, 0]),
            frame(KIND_HEADERS, FLAG_END_HEADERS | FLAG_PADDED, 1, &[]),
            frame(KIND_HEADERS, FLAG_END_HEADERS | FLAG_PRIORITY, 1, &[0; 4]),
            [continued.clone(), frame(KIND_CONTINUATION, FLAG_END_HEADERS, 3, b"x")].concat(),
            [continued.clone(), frame(0, 0, 1, b"x")].concat(),
            [continued, frame(KIND_CONTINUATION, 0, 1, b"").repeat(CONTINUATIONS_MAX)].concat(),
            [frame(KIND_HEADERS, 0, 1, b""), frame(KIND_CONTINUATION, 0, 1, &[0; 16_384]).repeat(5)].concat(),
        ];
        for case in cases {
            assert_eq!(read_block(&case), ReadBlock::Malformed);
        }
        // A length over the limit is refused before its bytes are waited for.
        assert_eq!(read_block(&[1, 0, 1, KIND_HEADERS, 0, 0, 0, 0, 1]), ReadBlock::Malformed);
    }

    proptest! {
        #[test]
        fn a_written_block_reads_back_and_every_part_of_it_is_incomplete(
            length in prop_oneof![0usize..100, 16_370..16_400usize, 32_760..32_780usize],
            end_stream in any::<bool>(),
            priority in proptest::option::of(any::<[u8; 5]>()),
            cut in any::<prop::sample::Index>(),
        ) {
            let sent: Vec<u8> = (0..length).map(|i| i as u8).collect();
            let sent_head = BlockHead { stream_id: 5, end_stream, priority };
            let mut out = BytesMut::new();
            write_block(&mut out, sent_head, &sent);
            prop_assert_eq!(read_block(&out[..cut.index(out.len())]), ReadBlock::Incomplete);
            let ReadBlock::Complete { bytes, head, fragment } = read_block(&out) else { panic!("not complete") };
            prop_assert_eq!(bytes, out.len());
            prop_assert_eq!(head, sent_head);
            prop_assert_eq!(&*fragment, &sent[..]);
        }

        #[test]
        fn arbitrary_bytes_are_read_without_harm(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let ReadBlock::Complete { bytes: taken, .. } = read_block(&bytes) {
                prop_assert!(taken <= bytes.len());
            }
        }
    }
}
