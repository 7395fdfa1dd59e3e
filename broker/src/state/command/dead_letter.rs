//! Commands of dead letters: messages a consumer group gives up, and their way back.
//!
//! `DeadLetter` ends deliveries and puts their messages into the group's dead-letter queue, both or
//! neither. The body is not copied: what goes into the log is a record that refers to the message.
//!
//! | Bytes | Field |
//! |---|---|
//! | 4 | consumer group |
//! | 4 | topic |
//! | … | list of letters: queue u32, offset u64, epoch u64, then the dead-letter record |
//!
//! Dead-letter record. It shares the first eight bytes with the message record, so that a reader of
//! a queue can tell the two apart:
//!
//! | Offset | Bytes | Field |
//! |---|---|---|
//! | 0 | 4 | record length, these bytes included |
//! | 4 | 1 | record version, 1 |
//! | 5 | 1 | reason, see [`DeadLetterReason`] |
//! | 6 | 1 | 0 |
//! | 7 | 1 | flags, 1: refers to another record |
//! | 8 | 4 | topic the message was given up in |
//! | 12 | 4 | its queue |
//! | 16 | 8 | its offset |
//! | 24 | 4 | tag code of the message |
//! | 28 | 4 | attempts |
//! | 32 | 8 | physical offset of the message record |
//! | 40 | 4 | length of the message record |
//! | 44 | 8 | when, ms |
//! | 52 | 2 + n | name of the topic, so that it is known after the topic is deleted |
//!
//! `RedriveDeadLetters`: consumer group u32, list of (offset in the dead-letter queue u64, topic u32,
//! queue u32, offset u64).

use bytes::{BufMut, Bytes, BytesMut};
use ledgermq_common::clock::UnixMillis;
use ledgermq_common::{PhysicalOffset, QueueId, QueueOffset};

use super::HEADER_BYTES;
use super::wire::{FieldReader, MalformedField, put_count, put_list, put_text};
use crate::state::names::{ConsumerGroupId, DeliveryEpoch, TopicId};

const RECORD_VERSION: u8 = 1;
const REFERS: u8 = 1;
const FLAGS_AT: usize = 7;
const RECORD_FIXED_BYTES: usize = 54;
/// Consumer group, topic, count of letters.
const LETTERS_AT: usize = HEADER_BYTES + 12;
const LETTER_HEAD_BYTES: usize = 20;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    pub consumer_group: ConsumerGroupId,
    pub topic: TopicId,
    pub letters: Vec<Letter>,
}

/// One delivery that is given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Letter {
    pub queue: QueueId,
    pub offset: QueueOffset,
    pub epoch: DeliveryEpoch,
    pub record: DeadLetterRecord,
}

/// Why a message is in the dead-letter queue. The numbers are in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum DeadLetterReason {
    /// It was delivered as often as the group's retry policy allows.
    AttemptsExhausted = 1,
    /// The consumer asked for it.
    Forwarded = 2,
}

/// What the dead-letter queue keeps of a message beside the message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetterRecord {
    pub reason: DeadLetterReason,
    pub topic: TopicId,
    pub queue: QueueId,
    pub offset: QueueOffset,
    pub tag_code: u32,
    pub attempts: u32,
    pub physical: PhysicalOffset,
    pub record_bytes: u32,
    pub at: UnixMillis,
    pub topic_name: String,
}

/// Gives dead letters to their consumer group again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedriveDeadLetters {
    pub consumer_group: ConsumerGroupId,
    pub letters: Vec<RedrivenLetter>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RedrivenLetter {
    /// In the dead-letter queue.
    pub letter: QueueOffset,
    pub topic: TopicId,
    pub queue: QueueId,
    pub offset: QueueOffset,
}

impl DeadLetterReason {
    pub const fn number(self) -> u8 {
        self as u8
    }

    pub const fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::AttemptsExhausted,
            2 => Self::Forwarded,
            _ => return None,
        })
    }

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AttemptsExhausted => "attempts-exhausted",
            Self::Forwarded => "forwarded",
        }
    }
}

impl DeadLetterRecord {
    /// Whether the bytes of a record are a dead letter's and not a message's.
    pub fn is_one(record: &[u8]) -> bool {
        record.get(FLAGS_AT) == Some(&REFERS)
    }

    pub fn decode(record: &Bytes) -> Result<Self, MalformedField> {
        let mut reader = FieldReader::new(record);
        let letter = Self::read(&mut reader)?;
        reader.end("end of the dead-letter record")?;
        Ok(letter)
    }

    pub(crate) fn encoded_bytes(&self) -> usize {
        RECORD_FIXED_BYTES + self.topic_name.len()
    }

    pub(crate) fn put(&self, out: &mut BytesMut) {
        out.put_u32_le(u32::try_from(self.encoded_bytes()).expect("a topic name is short"));
        out.put_u8(RECORD_VERSION);
        out.put_u8(self.reason.number());
        out.put_u8(0);
        out.put_u8(REFERS);
        out.put_u32_le(self.topic.get());
        out.put_u32_le(self.queue.get());
        out.put_u64_le(self.offset.get());
        out.put_u32_le(self.tag_code);
        out.put_u32_le(self.attempts);
        out.put_u64_le(self.physical.get());
        out.put_u32_le(self.record_bytes);
        out.put_u64_le(self.at.get());
        put_text(out, &self.topic_name);
    }

    fn read(reader: &mut FieldReader<'_>) -> Result<Self, MalformedField> {
        let start = reader.position();
        let record_bytes = reader.u32("record length")? as usize;
        if reader.u8("record version")? != RECORD_VERSION {
            return Err(reader.malformed("record version"));
        }
        let reason =
            DeadLetterReason::from_number(reader.u8("reason")?).ok_or_else(|| reader.malformed("reason"))?;
        if reader.u8("reserved byte")? != 0 {
            return Err(reader.malformed("reserved byte"));
        }
        if reader.u8("record flags")? != REFERS {
            return Err(reader.malformed("record flags"));
        }
        let record = Self {
            reason,
            topic: TopicId(reader.u32("topic")?),
            queue: QueueId(reader.u32("queue")?),
            offset: QueueOffset(reader.u64("offset")?),
            tag_code: reader.u32("tag code")?,
            attempts: reader.u32("attempts")?,
            physical: PhysicalOffset(reader.u64("physical offset")?),
            record_bytes: reader.u32("message record length")?,
            at: UnixMillis(reader.u64("time")?),
            topic_name: reader.text("topic name")?,
        };
        if reader.position() - start != record_bytes {
            return Err(reader.malformed("record length"));
        }
        Ok(record)
    }
}

impl DeadLetter {
    /// The letters, each with the position of its record in the command.
    pub fn positioned(&self) -> impl Iterator<Item = (&Letter, u64)> {
        let mut next = LETTERS_AT;
        self.letters.iter().map(move |letter| {
            let record_at = next + LETTER_HEAD_BYTES;
            next = record_at + letter.record.encoded_bytes();
            (letter, record_at as u64)
        })
    }

    pub(super) fn put(&self, out: &mut BytesMut) {
        out.put_u32_le(self.consumer_group.get());
        out.put_u32_le(self.topic.get());
        put_count(out, self.letters.len());
        for (letter, record_at) in self.positioned() {
            out.put_u32_le(letter.queue.get());
            out.put_u64_le(letter.offset.get());
            out.put_u64_le(letter.epoch.get());
            assert_eq!(out.len() as u64, record_at, "record position");
            letter.record.put(out);
        }
    }

    pub(super) fn read(reader: &mut FieldReader<'_>) -> Result<Self, MalformedField> {
        Ok(Self {
            consumer_group: ConsumerGroupId(reader.u32("consumer group")?),
            topic: TopicId(reader.u32("topic")?),
            letters: reader.list(LETTER_HEAD_BYTES + RECORD_FIXED_BYTES, "letters", |reader| {
                Ok(Letter {
                    queue: QueueId(reader.u32("queue")?),
                    offset: QueueOffset(reader.u64("offset")?),
                    epoch: DeliveryEpoch(reader.u64("epoch")?),
                    record: DeadLetterRecord::read(reader)?,
                })
            })?,
        })
    }
}

impl RedriveDeadLetters {
    pub(super) fn put(&self, out: &mut BytesMut) {
        out.put_u32_le(self.consumer_group.get());
        put_list(out, &self.letters, |out, letter| {
            out.put_u64_le(letter.letter.get());
            out.put_u32_le(letter.topic.get());
            out.put_u32_le(letter.queue.get());
            out.put_u64_le(letter.offset.get());
        });
    }

    pub(super) fn read(reader: &mut FieldReader<'_>) -> Result<Self, MalformedField> {
        Ok(Self {
            consumer_group: ConsumerGroupId(reader.u32("consumer group")?),
            letters: reader.list(24, "letters", |reader| {
                Ok(RedrivenLetter {
                    letter: QueueOffset(reader.u64("letter")?),
                    topic: TopicId(reader.u32("topic")?),
                    queue: QueueId(reader.u32("queue")?),
                    offset: QueueOffset(reader.u64("offset")?),
                })
            })?,
        })
    }
}
