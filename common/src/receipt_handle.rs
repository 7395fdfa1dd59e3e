//! The receipt handle: what a consumer hands back to acknowledge one delivery of one message.
//!
//! It names the delivery and never an address, so any node can take it and find the group that
//! leads the queue. Clients treat it as opaque text: base64url without padding of these bytes,
//! little endian:
//!
//! | Offset | Bytes | Field |
//! |---|---|---|
//! | 0 | 1 | version, 1 |
//! | 1 | 4 | broker group id |
//! | 5 | 4 | topic id, as the group numbered it |
//! | 9 | 4 | queue |
//! | 13 | 8 | queue offset |
//! | 21 | 8 | consumer group id, as the group numbered it |
//! | 29 | 8 | delivery epoch: one per delivery of a message, so that a later delivery makes it stale |
//! | 37 | 4 | renewal: how often the lease of this delivery was moved; every renewal stays valid |
//! | 41 | 4 | check: low 32 bits of xxh3-64 of the bytes before |
//!
//! The check finds text that was cut or mangled by a client. It is no protection against forgery:
//! who may acknowledge is decided by the consumer group and topic that the state compares.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use xxhash_rust::xxh3::xxh3_64;

use crate::{GroupId, QueueId, QueueOffset};

const VERSION: u8 = 1;
const CHECKED_BYTES: usize = 41;
const BYTES: usize = CHECKED_BYTES + 4;
/// Length of the text form.
pub const RECEIPT_HANDLE_CHARS: usize = BYTES.div_ceil(3) * 4;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ReceiptHandle {
    pub group: GroupId,
    pub topic_id: u32,
    pub queue: QueueId,
    pub offset: QueueOffset,
    pub consumer_group_id: u64,
    pub delivery_epoch: u64,
    pub renewal: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReceiptHandleError {
    #[error("receipt handle has {chars} characters; it must have {}", RECEIPT_HANDLE_CHARS)]
    Length { chars: usize },
    #[error("receipt handle is not base64url text")]
    Encoding,
    #[error("receipt handle has version {version}; this node knows {}", VERSION)]
    Version { version: u8 },
    #[error("receipt handle fails its check: it was cut or changed")]
    Check,
}

impl ReceiptHandle {
    pub fn encode(&self) -> String {
        let mut bytes = [0u8; BYTES];
        let mut at = 0;
        let mut put = |field: &[u8]| {
            bytes[at..at + field.len()].copy_from_slice(field);
            at += field.len();
        };
        put(&[VERSION]);
        put(&self.group.get().to_le_bytes());
        put(&self.topic_id.to_le_bytes());
        put(&self.queue.get().to_le_bytes());
        put(&self.offset.get().to_le_bytes());
        put(&self.consumer_group_id.to_le_bytes());
        put(&self.delivery_epoch.to_le_bytes());
        put(&self.renewal.to_le_bytes());
        assert_eq!(at, CHECKED_BYTES);
        let check = check_of(&bytes[..CHECKED_BYTES]);
        bytes[CHECKED_BYTES..].copy_from_slice(&check);
        URL_SAFE_NO_PAD.encode(bytes)
    }

    pub fn parse(text: &str) -> Result<Self, ReceiptHandleError> {
        if text.len() != RECEIPT_HANDLE_CHARS {
            return Err(ReceiptHandleError::Length { chars: text.len() });
        }
        let mut bytes = [0u8; BYTES];
        match URL_SAFE_NO_PAD.decode_slice(text, &mut bytes) {
            Ok(BYTES) => {}
            _ => return Err(ReceiptHandleError::Encoding),
        }
        // The version comes first: the place of the check is only known for a version we know.
        if bytes[0] != VERSION {
            return Err(ReceiptHandleError::Version { version: bytes[0] });
        }
        if check_of(&bytes[..CHECKED_BYTES]) != bytes[CHECKED_BYTES..] {
            return Err(ReceiptHandleError::Check);
        }
        Ok(Self {
            group: GroupId(u32_at(&bytes, 1)),
            topic_id: u32_at(&bytes, 5),
            queue: QueueId(u32_at(&bytes, 9)),
            offset: QueueOffset(u64_at(&bytes, 13)),
            consumer_group_id: u64_at(&bytes, 21),
            delivery_epoch: u64_at(&bytes, 29),
            renewal: u32_at(&bytes, 37),
        })
    }
}

fn check_of(bytes: &[u8]) -> [u8; 4] {
    let [a, b, c, d, ..] = xxh3_64(bytes).to_le_bytes();
    [a, b, c, d]
}

fn u32_at(bytes: &[u8; BYTES], at: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

fn u64_at(bytes: &[u8; BYTES], at: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HANDLE: ReceiptHandle = ReceiptHandle {
        group: GroupId(7),
        topic_id: 0x0102_0304,
        queue: QueueId(65_535),
        offset: QueueOffset(u64::MAX - 1),
        consumer_group_id: 0xdead_beef_0000_0001,
        delivery_epoch: 42,
        renewal: 3,
    };

    #[test]
    fn a_handle_comes_back_as_it_was_given() {
        let text = HANDLE.encode();
        assert_eq!(text.len(), RECEIPT_HANDLE_CHARS);
        assert_eq!(ReceiptHandle::parse(&text), Ok(HANDLE));
    }

    #[test]
    fn any_changed_or_cut_character_is_noticed() {
        let text = HANDLE.encode();
        for at in 0..text.len() {
            let mut changed = text.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(changed).expect("ASCII");
            assert!(ReceiptHandle::parse(&changed).is_err(), "character {at}");
            assert!(ReceiptHandle::parse(&text[..at]).is_err(), "cut at {at}");
        }
        assert_eq!(
            ReceiptHandle::parse(&"*".repeat(RECEIPT_HANDLE_CHARS)),
            Err(ReceiptHandleError::Encoding)
        );
        assert!(matches!(
            ReceiptHandle::parse("not a handle"),
            Err(ReceiptHandleError::Length { chars: 12 })
        ));
    }
}
