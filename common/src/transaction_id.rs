//! The transaction id: what a producer hands back to commit or roll back one half message.
//!
//! It names the half and never an address, so any node can take it and find the group that has it.
//! The place of a half in the CommitLog is never given to anything else, so an id that arrives late
//! cannot touch another transaction. Clients treat it as opaque text: base64url without padding of
//! these bytes, little endian:
//!
//! | Offset | Bytes | Field |
//! |---|---|---|
//! | 0 | 1 | version, 1 |
//! | 1 | 4 | broker group id |
//! | 5 | 4 | topic id, as the group numbered it |
//! | 9 | 8 | physical offset of the half's record in the group's CommitLog |
//! | 17 | 8 | xxh3-64 of the half's message id |
//! | 25 | 4 | check: low 32 bits of xxh3-64 of the bytes before |
//!
//! The message id tells apart the logs of a group that was lost and set up anew under the same number.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use xxhash_rust::xxh3::xxh3_64;

use crate::{GroupId, PhysicalOffset};

const VERSION: u8 = 1;
const CHECKED_BYTES: usize = 25;
const BYTES: usize = CHECKED_BYTES + 4;
/// Length of the text form.
pub const TRANSACTION_ID_CHARS: usize = (BYTES * 4).div_ceil(3);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TransactionId {
    pub group: GroupId,
    pub topic_id: u32,
    pub half: PhysicalOffset,
    pub message_id_hash: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TransactionIdError {
    #[error("transaction id is empty")]
    Empty,
    #[error("transaction id has {chars} characters; it must have {}", TRANSACTION_ID_CHARS)]
    Length { chars: usize },
    #[error("transaction id is not base64url text")]
    Encoding,
    #[error("transaction id has version {version}; this node knows {}", VERSION)]
    Version { version: u8 },
    #[error("transaction id fails its check: it was cut or changed")]
    Check,
}

impl TransactionId {
    pub fn encode(&self) -> String {
        let mut bytes = Vec::with_capacity(BYTES);
        bytes.push(VERSION);
        bytes.extend_from_slice(&self.group.get().to_le_bytes());
        bytes.extend_from_slice(&self.topic_id.to_le_bytes());
        bytes.extend_from_slice(&self.half.get().to_le_bytes());
        bytes.extend_from_slice(&self.message_id_hash.to_le_bytes());
        assert_eq!(bytes.len(), CHECKED_BYTES, "transaction id length");
        let check = check_of(&bytes);
        bytes.extend_from_slice(&check);
        URL_SAFE_NO_PAD.encode(bytes)
    }

    pub fn parse(text: &str) -> Result<Self, TransactionIdError> {
        if text.trim().is_empty() {
            return Err(TransactionIdError::Empty);
        }
        if text.len() != TRANSACTION_ID_CHARS {
            return Err(TransactionIdError::Length { chars: text.len() });
        }
        let mut bytes = [0u8; BYTES];
        match URL_SAFE_NO_PAD.decode_slice(text, &mut bytes) {
            Ok(BYTES) => {}
            _ => return Err(TransactionIdError::Encoding),
        }
        // The version comes first: the place of the check is only known for a version we know.
        let [version, rest @ ..] = &bytes;
        if *version != VERSION {
            return Err(TransactionIdError::Version { version: *version });
        }
        let (checked, check) = bytes.split_at(CHECKED_BYTES);
        if check_of(checked) != check {
            return Err(TransactionIdError::Check);
        }
        let (group, rest) = take::<4>(rest).ok_or(TransactionIdError::Encoding)?;
        let (topic_id, rest) = take::<4>(rest).ok_or(TransactionIdError::Encoding)?;
        let (half, rest) = take::<8>(rest).ok_or(TransactionIdError::Encoding)?;
        let (message_id_hash, _) = take::<8>(rest).ok_or(TransactionIdError::Encoding)?;
        Ok(Self {
            group: GroupId(u32::from_le_bytes(group)),
            topic_id: u32::from_le_bytes(topic_id),
            half: PhysicalOffset(u64::from_le_bytes(half)),
            message_id_hash: u64::from_le_bytes(message_id_hash),
        })
    }
}

fn take<const N: usize>(bytes: &[u8]) -> Option<([u8; N], &[u8])> {
    bytes.split_first_chunk::<N>().map(|(field, rest)| (*field, rest))
}

fn check_of(bytes: &[u8]) -> [u8; 4] {
    let [a, b, c, d, ..] = xxh3_64(bytes).to_le_bytes();
    [a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: TransactionId = TransactionId {
        group: GroupId(7),
        topic_id: 0x0102_0304,
        half: PhysicalOffset(u64::MAX - 1),
        message_id_hash: 0xdead_beef_0000_0001,
    };

    #[test]
    fn an_id_comes_back_as_it_was_given() {
        let text = ID.encode();
        assert_eq!(text.len(), TRANSACTION_ID_CHARS);
        assert_eq!(TransactionId::parse(&text), Ok(ID));
    }

    #[test]
    fn any_changed_or_cut_character_is_noticed() {
        let text = ID.encode();
        for at in 0..text.len() {
            let mut changed = text.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(changed).expect("ASCII");
            assert!(TransactionId::parse(&changed).is_err(), "character {at}");
            assert!(TransactionId::parse(&text[..at]).is_err(), "cut at {at}");
        }
        assert_eq!(TransactionId::parse("  "), Err(TransactionIdError::Empty));
        assert_eq!(
            TransactionId::parse(&"*".repeat(TRANSACTION_ID_CHARS)),
            Err(TransactionIdError::Encoding)
        );
    }
}
