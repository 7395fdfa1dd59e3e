//! Reads applied entries one after the other to see whether they still verify. Where nobody reads an old
//! entry its rot is noticed when it is needed: on a follower, once it leads.

use super::CommitLog;
use super::read::step_verified;
use crate::position::LogPosition;
use crate::segment::FrameCursor;
use crate::store::ReadError;

/// How far a look went.
#[derive(Debug)]
pub struct Scrubbed {
    /// Where the next one goes on; `None` if everything applied was seen.
    pub next: Option<LogPosition>,
    pub bytes: u64,
}

impl CommitLog {
    /// Verifies applied entries behind `from`, some `bytes_max` of them. Begins with the oldest one where
    /// `from` was released. Nothing applied is cut, so what does not verify is corrupt; a log that a
    /// snapshot replaced meanwhile is told by its generation.
    pub fn scrub(&self, from: Option<LogPosition>, bytes_max: u64) -> Result<Scrubbed, ReadError> {
        let mut position = from.unwrap_or_else(|| self.begin());
        let mut bytes = 0;
        while bytes < bytes_max {
            let index = position.next_index();
            let (place, applied) = {
                let inner = self.inner.lock();
                // A leader applies what a majority has, and may not have it on its own disk yet.
                let durable = inner.flushed.last.map(|last| last.index);
                let Some(applied) = inner.applied.min(durable).filter(|applied| index <= *applied) else {
                    return Ok(Scrubbed { next: None, bytes });
                };
                match inner.place_of_index(index) {
                    Ok(place) => (place, applied),
                    Err(ReadError::ReleasedEntry { .. }) => {
                        drop(inner);
                        return Ok(Scrubbed { next: Some(self.begin()), bytes });
                    }
                    Err(error) => return Err(error),
                }
            };
            let segment = &place.segment;
            if position.at < segment.header.start {
                position.at = segment.header.start;
            }
            let mut cursor = FrameCursor::new(segment, self.name, position.at, index);
            let seen = loop {
                if cursor.at() >= place.end.at || cursor.index() > applied || bytes >= bytes_max {
                    break Ok(());
                }
                match step_verified(&mut cursor, segment, position.chain) {
                    Ok(header) => {
                        bytes += header.end().get() - header.at.get();
                        position =
                            LogPosition { at: header.end(), last: Some(header.id), chain: header.chain() };
                    }
                    Err(error) => break Err(error),
                }
            };
            if self.inner.lock().generation != place.generation {
                return Ok(Scrubbed { next: Some(self.begin()), bytes });
            }
            seen?;
            if position.next_index() == index {
                // The place ends before the entry: it is not on the disk yet.
                return Ok(Scrubbed { next: None, bytes });
            }
        }
        Ok(Scrubbed { next: Some(position), bytes })
    }
}
