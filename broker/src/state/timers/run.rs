//! A timer run: timers sorted by key, in one immutable file.
//!
//! | Offset | Bytes | Field |
//! |---|---|---|
//! | 0 | 8 | `LMQTIM01` |
//! | 8 | 8 | number of timers |
//! | 16 | 4 | CRC32C of the timers |
//! | 20 | 4 | CRC32C of bytes 0..20 |
//! | 24 | 32 × timers | delivery time u64 ms, physical offset u64, topic u32, queue u32, record bytes u32, tag code u32 |
//!
//! All little endian. Runs are derived: written whole and synced before the checkpoint that names them
//! commits, checked in full when they are opened.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;

use bytes::{BufMut, Bytes, BytesMut};
use ledgermq_common::clock::UnixMillis;
use ledgermq_common::{PhysicalOffset, QueueId};

use super::{Timer, TimerKey};
use crate::state::command::wire::{FieldReader, MalformedField};
use crate::state::names::TopicId;

const MAGIC: [u8; 8] = *b"LMQTIM01";
const HEADER_BYTES: usize = 24;
/// Of an image without timers.
pub(crate) const EMPTY_TIMER_RUN_BYTES: usize = HEADER_BYTES;
pub(crate) const TIMER_BYTES: usize = 32;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("timer run is damaged: {part}")]
pub(crate) struct DamagedTimerRun {
    part: &'static str,
}

/// Shared bytes of a checked run: a mapped file, or memory.
#[derive(Debug, Clone)]
pub(crate) struct TimerRun {
    timers: Bytes,
}

pub(crate) fn put_timer(out: &mut BytesMut, (key, timer): (TimerKey, Timer)) {
    out.put_u64_le(key.deliver_at.get());
    out.put_u64_le(key.physical.get());
    out.put_u32_le(timer.topic.get());
    out.put_u32_le(timer.queue.get());
    out.put_u32_le(timer.record_bytes);
    out.put_u32_le(timer.tag_code);
}

pub(crate) fn read_timer(reader: &mut FieldReader<'_>) -> Result<(TimerKey, Timer), MalformedField> {
    let key = TimerKey {
        deliver_at: UnixMillis(reader.u64("delivery time")?),
        physical: PhysicalOffset(reader.u64("timer offset")?),
    };
    let timer = Timer {
        topic: TopicId(reader.u32("timer topic")?),
        queue: QueueId(reader.u32("timer queue")?),
        record_bytes: reader.u32("timer record bytes")?,
        tag_code: reader.u32("timer tag code")?,
    };
    Ok((key, timer))
}

/// The bytes of a run of timers that come in order.
pub(crate) fn write_image(timers: impl Iterator<Item = (TimerKey, Timer)>) -> Bytes {
    let mut out = BytesMut::zeroed(HEADER_BYTES);
    timers.for_each(|timer| put_timer(&mut out, timer));
    let count = ((out.len() - HEADER_BYTES) / TIMER_BYTES) as u64;
    let crc = crc32c::crc32c(out.get(HEADER_BYTES..).unwrap_or_default());
    let mut header = BytesMut::with_capacity(HEADER_BYTES);
    header.put_slice(&MAGIC);
    header.put_u64_le(count);
    header.put_u32_le(crc);
    let header_crc = crc32c::crc32c(&header);
    header.put_u32_le(header_crc);
    out[..HEADER_BYTES].copy_from_slice(&header);
    out.freeze()
}

/// Writes a run to a new file and syncs it. The caller syncs the directory.
pub(crate) fn write_file(path: &Path, image: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(image)?;
    file.sync_all()
}

impl TimerRun {
    /// Maps a run and checks all of it.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let damaged = |damaged: DamagedTimerRun| io::Error::new(io::ErrorKind::InvalidData, damaged);
        if file.metadata()?.len() < HEADER_BYTES as u64 {
            return Err(damaged(DamagedTimerRun { part: "length" }));
        }
        // SAFETY: the directory is locked by this process, and a run is never written again under
        // the name it is opened by, so the mapped bytes do not change.
        let map = unsafe { memmap2::Mmap::map(&file)? };
        Self::check(Bytes::from_owner(map)).map_err(damaged)
    }

    pub(crate) fn check(image: Bytes) -> Result<Self, DamagedTimerRun> {
        let damaged = |part| DamagedTimerRun { part };
        let header = image.get(..HEADER_BYTES).ok_or(damaged("length"))?;
        let timers = image.slice(HEADER_BYTES..);
        let (fields, crc) = header.split_at(HEADER_BYTES - 4);
        if !header.starts_with(&MAGIC) || crc32c::crc32c(fields).to_le_bytes() != crc {
            return Err(damaged("header"));
        }
        if u64_at(header, 8).checked_mul(TIMER_BYTES as u64) != Some(timers.len() as u64) {
            return Err(damaged("length"));
        }
        if crc32c::crc32c(&timers) != u32_at(header, 16) {
            return Err(damaged("timers"));
        }
        let run = Self { timers };
        let mut keys = (0..run.len()).map(|at| run.key_at(at));
        let mut before = keys.next();
        for key in keys {
            if before >= Some(key) {
                return Err(damaged("order"));
            }
            before = Some(key);
        }
        Ok(run)
    }

    pub(crate) fn len(&self) -> usize {
        self.timers.len() / TIMER_BYTES
    }

    pub(crate) fn last(&self) -> Option<TimerKey> {
        self.len().checked_sub(1).map(|at| self.key_at(at))
    }

    /// Timers above `key` in order.
    pub(crate) fn after(&self, key: TimerKey) -> impl Iterator<Item = (TimerKey, Timer)> {
        (self.partition(|at| at <= key)..self.len()).map(|at| (self.key_at(at), self.timer_at(at)))
    }

    pub(crate) fn find(&self, key: TimerKey) -> Option<Timer> {
        let at = self.partition(|at| at < key);
        (at < self.len() && self.key_at(at) == key).then(|| self.timer_at(at))
    }

    fn partition(&self, is_before: impl Fn(TimerKey) -> bool) -> usize {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low + (high - low) / 2;
            if is_before(self.key_at(middle)) { low = middle + 1 } else { high = middle }
        }
        low
    }

    fn key_at(&self, number: usize) -> TimerKey {
        let at = number * TIMER_BYTES;
        TimerKey {
            deliver_at: UnixMillis(u64_at(&self.timers, at)),
            physical: PhysicalOffset(u64_at(&self.timers, at + 8)),
        }
    }

    fn timer_at(&self, number: usize) -> Timer {
        let at = number * TIMER_BYTES;
        Timer {
            topic: TopicId(u32_at(&self.timers, at + 16)),
            queue: QueueId(u32_at(&self.timers, at + 20)),
            record_bytes: u32_at(&self.timers, at + 24),
            tag_code: u32_at(&self.timers, at + 28),
        }
    }
}

/// Only used on bytes whose length was compared when the run was opened.
fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let field = bytes.get(at..).and_then(|rest| rest.first_chunk::<8>());
    u64::from_le_bytes(*field.expect("inside a checked run"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let field = bytes.get(at..).and_then(|rest| rest.first_chunk::<4>());
    u32::from_le_bytes(*field.expect("inside a checked run"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_and_every_cut_is_found() {
        let timers = (1..4u64).map(|number| {
            let key = TimerKey { deliver_at: UnixMillis(number), physical: PhysicalOffset(number) };
            (key, Timer { topic: TopicId(1), queue: QueueId(2), record_bytes: 3, tag_code: 4 })
        });
        let whole = write_image(timers);
        assert_eq!(TimerRun::check(whole.clone()).expect("whole").len(), 3);
        for at in 0..whole.len() {
            let mut flipped = whole.to_vec();
            flipped[at] ^= 0x10;
            assert!(TimerRun::check(Bytes::from(flipped)).is_err(), "byte {at}");
            assert!(TimerRun::check(whole.slice(..at)).is_err(), "cut at {at}");
        }
    }
}
