//! Dead letters: the leader gives up what was delivered often enough, as the product's executor does,
//! and a client reads the letters and gives some of them back.
//!
//! | Request | Fields, little endian |
//! |---|---|
//! | 80 letters | from offset u64, at most u32 |
//! | 81 redrive | offset of the letter u64 |

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use ledgermq_broker::state::{
    Answer, Command, DeadLetter, DeadLetterReason, DeadLetterRecord, EndedDelivery, Letter,
    RedriveDeadLetters, RedrivenLetter,
};
use ledgermq_common::clock::Clock as _;
use ledgermq_common::{QueueId, QueueOffset};
use ledgermq_raft_store::group::ProposeError;
use xxhash_rust::xxh3::xxh3_64;

use super::accounts::Reader;
use super::{Front, Response};
use crate::model::Place;

const BURY_LOOK: Duration = Duration::from_millis(60);
/// Small, so that some letters have to wait for the next entry.
const LETTERS_MAX: usize = 4;

#[derive(Debug, Clone, Copy)]
pub enum LettersRequest {
    Pull { from: QueueOffset, letters_max: u32 },
    Redrive { letter: QueueOffset },
}

/// What is compared of a letter: the place of its message.
pub fn letter_hash(place: Place) -> u64 {
    xxh3_64(format!("{}:{}", place.0, place.1).as_bytes())
}

impl Front {
    /// Gives up what was delivered often enough while this node leads, until its life ends.
    pub async fn bury_exhausted(self) {
        loop {
            tokio::time::sleep(BURY_LOOK).await;
            if !self.group.leadership().borrow().is_leader_ready {
                continue;
            }
            let exhausted = self.state.exhausted_deliveries(self.clock.now(), LETTERS_MAX);
            for same in exhausted.chunk_by(|a, b| (a.consumer_group, a.topic) == (b.consumer_group, b.topic))
            {
                let letter = |of| self.letter(of, DeadLetterReason::AttemptsExhausted);
                let letters: Vec<Letter> = same.iter().filter_map(letter).collect();
                let (Some(of), false) = (same.first(), letters.is_empty()) else { continue };
                let command = DeadLetter { consumer_group: of.consumer_group, topic: of.topic, letters };
                // It may fail for a good reason; the next leader looks again.
                drop(self.propose(Command::DeadLetter(command).encode(self.clock.now())).await);
            }
        }
    }

    /// Where the message lies is asked of the index, because the run may have purged its bytes.
    pub(super) fn letter(&self, of: &EndedDelivery, reason: DeadLetterReason) -> Option<Letter> {
        let EndedDelivery { topic, queue, offset, epoch, attempt, .. } = *of;
        let entry = self.state.locate(topic, queue, offset)?;
        let record = DeadLetterRecord {
            reason,
            topic,
            queue,
            offset,
            tag_code: entry.tag_code,
            attempts: attempt,
            physical: entry.physical,
            record_bytes: entry.record_bytes,
            at: self.clock.now(),
            topic_name: self.state.topic_by_id(topic)?.name,
        };
        Some(Letter { queue, offset, epoch, record })
    }

    pub(super) async fn letters(&self, request: LettersRequest) -> Result<Response, ProposeError> {
        let at = self.state.dead_letters_of(Reader::Ledger.group());
        match (request, at) {
            (LettersRequest::Pull { .. }, None) => Ok(Response::Pulled(Vec::new())),
            (LettersRequest::Pull { from, letters_max }, Some((topic, queue))) => {
                let read = |record: &Bytes| {
                    let letter = DeadLetterRecord::decode(record).ok()?;
                    Some(letter_hash((letter.queue, letter.offset)))
                };
                Ok(Response::Pulled(self.pull(topic, queue, from, letters_max, read)))
            }
            (LettersRequest::Redrive { .. }, None) => Ok(Response::Answered(Answer::Redriven(Vec::new()))),
            (LettersRequest::Redrive { letter }, Some((topic, queue))) => {
                let Some(redriven) = self.redriven(topic, queue, letter) else {
                    return Ok(Response::Answered(Answer::Redriven(Vec::new())));
                };
                let consumer_group = self.reader(Reader::Ledger).await?;
                let command = RedriveDeadLetters { consumer_group, letters: vec![redriven] };
                let command = Command::RedriveDeadLetters(command).encode(self.clock.now());
                self.propose(command).await.map(Response::Answered)
            }
        }
    }

    fn redriven(
        &self,
        topic: ledgermq_broker::state::TopicId,
        queue: QueueId,
        letter: QueueOffset,
    ) -> Option<RedrivenLetter> {
        let entry = self.state.locate(topic, queue, letter)?;
        let record = self.group.read(entry.physical, entry.record_bytes).ok()?;
        let record = DeadLetterRecord::decode(&record).ok()?;
        Some(RedrivenLetter { letter, topic: record.topic, queue: record.queue, offset: record.offset })
    }
}

impl LettersRequest {
    pub(super) fn encode(&self, out: &mut BytesMut) {
        match self {
            Self::Pull { from, letters_max } => {
                out.put_u8(80);
                out.put_u64_le(from.get());
                out.put_u32_le(*letters_max);
            }
            Self::Redrive { letter } => {
                out.put_u8(81);
                out.put_u64_le(letter.get());
            }
        }
    }

    pub(super) fn decode(kind: u8, mut frame: Bytes) -> Option<Self> {
        let at = QueueOffset(frame.try_get_u64_le().ok()?);
        Some(match kind {
            80 => Self::Pull { from: at, letters_max: frame.try_get_u32_le().ok()? },
            81 => Self::Redrive { letter: at },
            _ => return None,
        })
    }
}
