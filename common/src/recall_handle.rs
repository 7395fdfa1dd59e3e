//! The recall handle: what a producer hands back to take a delayed message out before its time.
//!
//! It names the broker group and the timer, never an address, so any node can take it. Clients treat
//! it as opaque text: base64url without padding of these bytes, little endian:
//!
//! | Offset | Bytes | Field |
//! |---|---|---|
//! | 0 | 1 | version, 1 |
//! | 1 | 4 | broker group id |
//! | 5 | 4 | topic id, as the group numbered it |
//! | 9 | 8 | delivery time, ms |
//! | 17 | 8 | physical offset of the message record |
//! | 25 | 4 | check: low 32 bits of xxh3-64 of the bytes before |
//!
//! Delivery time and physical offset are the timer's key in the state of the group. The check finds
//! text that was cut or mangled; a made-up key finds no timer.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use xxhash_rust::xxh3::xxh3_64;

use crate::clock::UnixMillis;
use crate::{GroupId, PhysicalOffset};

const VERSION: u8 = 1;
const CHECKED_BYTES: usize = 25;
const BYTES: usize = CHECKED_BYTES + 4;
/// Length of the text form.
pub const RECALL_HANDLE_CHARS: usize = (BYTES * 4).div_ceil(3);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RecallHandle {
    pub group: GroupId,
    pub topic_id: u32,
    pub deliver_at: UnixMillis,
    pub physical: PhysicalOffset,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecallHandleError {
    #[error("recall handle has {chars} characters; it must have {RECALL_HANDLE_CHARS}")]
    Length { chars: usize },
    #[error("recall handle is not base64url text")]
    Encoding,
    #[error("recall handle has version {version}; this node knows {VERSION}")]
    Version { version: u8 },
    #[error("recall handle fails its check: it was cut or changed")]
    Check,
}

impl RecallHandle {
    pub fn encode(&self) -> String {
        let mut bytes = Vec::with_capacity(BYTES);
        bytes.push(VERSION);
        bytes.extend_from_slice(&self.group.get().to_le_bytes());
        bytes.extend_from_slice(&self.topic_id.to_le_bytes());
        bytes.extend_from_slice(&self.deliver_at.get().to_le_bytes());
        bytes.extend_from_slice(&self.physical.get().to_le_bytes());
        let check = check_of(&bytes);
        bytes.extend_from_slice(&check);
        URL_SAFE_NO_PAD.encode(bytes)
    }

    pub fn parse(text: &str) -> Result<Self, RecallHandleError> {
        if text.len() != RECALL_HANDLE_CHARS {
            return Err(RecallHandleError::Length { chars: text.len() });
        }
        let mut bytes = [0u8; BYTES];
        match URL_SAFE_NO_PAD.decode_slice(text, &mut bytes) {
            Ok(BYTES) => {}
            _ => return Err(RecallHandleError::Encoding),
        }
        if bytes[0] != VERSION {
            return Err(RecallHandleError::Version { version: bytes[0] });
        }
        let (checked, check) = bytes.split_at(CHECKED_BYTES);
        if check_of(checked) != check {
            return Err(RecallHandleError::Check);
        }
        let u32_at = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        let u64_at = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        Ok(Self {
            group: GroupId(u32_at(1)),
            topic_id: u32_at(5),
            deliver_at: UnixMillis(u64_at(9)),
            physical: PhysicalOffset(u64_at(17)),
        })
    }
}

fn check_of(bytes: &[u8]) -> [u8; 4] {
    let [a, b, c, d, ..] = xxh3_64(bytes).to_le_bytes();
    [a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_comes_back_as_it_was_given_and_any_change_is_noticed() {
        let handle = RecallHandle {
            group: GroupId(7),
            topic_id: 9,
            deliver_at: UnixMillis(1_700_000_000_123),
            physical: PhysicalOffset(u64::MAX - 1),
        };
        let text = handle.encode();
        assert_eq!(text.len(), RECALL_HANDLE_CHARS);
        assert_eq!(RecallHandle::parse(&text), Ok(handle));
        // The last character has bits that stand for nothing.
        for at in 0..text.len() - 1 {
            let mut changed = text.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(changed).expect("ASCII");
            assert!(RecallHandle::parse(&changed).is_err(), "character {at}");
            assert!(RecallHandle::parse(&text[..at]).is_err(), "cut at {at}");
        }
    }
}
