//! The whole state as a stream of bytes, for a follower that the log no longer reaches.
//!
//! | Offset | Bytes | Field |
//! |---|---|---|
//! | 0 | 8 | `LMQSNP01` |
//! | 8 | … | sections, the last of kind 255 |
//!
//! Section: kind u8, length u32, CRC32C u32 of kind and content, content.
//!
//! | Kind | Content |
//! |---|---|
//! | 1 | the scalars |
//! | 2 | list of records (key: length u16 and bytes; value: length u32 and bytes) |
//! | 3 | message ids of the window, 40 bytes each as in an ids file |
//! | 4 | the next bytes of the present index run |
//! | 5 | the present index run is complete (its length u64); the next one follows, oldest first |
//! | 40 | pending timers in the order of their keys, 32 bytes each as in a timer run |
//! | 41 | the next bytes of the present key run |
//! | 42 | the present key run is complete (its length u64) |
//! | 255 | counts u64 of records, ids, timers, runs and key runs |
//!
//! The state is captured when the snapshot is taken; sections are encoded as they are read. A reader
//! keeps nothing of a stream that ends early, fails a checksum, or does not fit together.

use std::collections::BTreeSet;
use std::io::{self, Cursor, Read};
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use ledgermq_common::PhysicalOffset;

use super::applied::window::{WindowEntry, WindowView};
use super::applied::{Applied, Scalars};
use super::command::wire::FieldReader;
use super::consume_queue::ids::{ID_BYTES, put_id, read_id};
use super::consume_queue::run::{ExtentSource, Run, write_run};
use super::consume_queue::{QueueKey, SealedParts};
use super::key_index::SealedKeys;
use super::key_index::run::{KeyRun, write_image as write_key_image};
use super::records::{RecordKey, RecordValue};
use super::timers::run::{TIMER_BYTES, TimerRun, put_timer, read_timer, write_image};
use super::timers::{SealedTimers, Timer, TimerKey};

const MAGIC: &[u8; 8] = b"LMQSNP01";
const SECTION_HEADER_BYTES: usize = 9;
/// A section is closed once it holds this much; one record may make it longer.
const SECTION_BYTES: usize = 256 * 1024;
/// Longer than any section we write: the record of a queue with a million leases is 49 MB.
const SECTION_BYTES_MAX: usize = 1 << 30;

const SCALARS: u8 = 1;
const RECORDS: u8 = 2;
const IDS: u8 = 3;
const RUN_BYTES: u8 = 4;
const RUN_END: u8 = 5;
const TIMERS: u8 = 40;
const KEY_RUN_BYTES: u8 = 41;
const KEY_RUN_END: u8 = 42;
const END: u8 = 255;

/// The state at one moment, shared with it and not changed by what is applied afterwards.
#[derive(Debug)]
pub(crate) struct Captured {
    pub(crate) scalars: Scalars,
    pub(crate) records: Vec<(RecordKey, RecordValue)>,
    pub(crate) window: WindowView,
    pub(crate) sealed: Arc<SealedParts>,
    pub(crate) timers: PendingTimers,
    pub(crate) keys: Arc<SealedKeys>,
    pub(crate) released_below: PhysicalOffset,
}

/// The timers at one moment.
#[derive(Debug)]
pub(crate) struct PendingTimers {
    sealed: Arc<SealedTimers>,
    fired_through: TimerKey,
    recalled: BTreeSet<TimerKey>,
}

impl PendingTimers {
    /// In order, above `key`.
    pub(crate) fn after(&self, key: TimerKey) -> impl Iterator<Item = (TimerKey, Timer)> {
        self.sealed.after(key.max(self.fired_through)).filter(|(key, _)| !self.recalled.contains(key))
    }
}

impl Applied {
    /// The timers as they are now, to be read without the lock.
    pub(crate) fn pending_timers(&mut self) -> PendingTimers {
        PendingTimers {
            sealed: self.timers.freeze(),
            fired_through: self.timers.progress().fired_through,
            recalled: self.timers.recalled().clone(),
        }
    }
}

impl Captured {
    /// Short under the write lock: records are numbers or shared.
    pub(crate) fn of(applied: &mut Applied) -> Self {
        let sealed = applied.index.freeze();
        let records =
            applied.record_keys().filter_map(|key| applied.record(key).map(|value| (key, value))).collect();
        let timers = applied.pending_timers();
        let keys = applied.keys.freeze();
        let released_below = applied.keeping.progress.released_below;
        let (scalars, window) = (applied.scalars, applied.window.view());
        Self { scalars, records, window, sealed, timers, keys, released_below }
    }
}

/// The stream of a captured state.
pub(crate) struct SnapshotStream {
    captured: Captured,
    step: Step,
    ready: BytesMut,
    ids: Vec<WindowEntry>,
    images: Vec<Bytes>,
    key_images: Vec<Bytes>,
    timers: u64,
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Start,
    Records(usize),
    Ids(usize),
    Timers { after: TimerKey, count: u64 },
    Runs { run: usize, at: usize },
    KeyRuns { run: usize, at: usize },
    Done,
}

impl SnapshotStream {
    pub(crate) fn new(captured: Captured) -> Self {
        Self {
            captured,
            step: Step::Start,
            ready: BytesMut::new(),
            ids: Vec::new(),
            images: Vec::new(),
            key_images: Vec::new(),
            timers: 0,
        }
    }

    /// Encodes the next section.
    fn advance(&mut self) -> io::Result<()> {
        let mut content = BytesMut::new();
        self.step = match self.step {
            Step::Start => {
                self.ready.put_slice(MAGIC);
                self.captured.scalars.put(&mut content);
                self.section(SCALARS, &content);
                Step::Records(0)
            }
            Step::Records(at) => {
                let mut next = at;
                while let Some((key, value)) = self.captured.records.get(next) {
                    let (key, value) = (key.encode(), value.encode());
                    content.put_u16_le(key.len() as u16);
                    content.put_slice(&key);
                    content.put_u32_le(u32::try_from(value.len()).map_err(io::Error::other)?);
                    content.put_slice(&value);
                    next += 1;
                    if content.len() >= SECTION_BYTES {
                        break;
                    }
                }
                if next > at {
                    self.section(RECORDS, &content);
                    Step::Records(next)
                } else {
                    self.ids = self.captured.window.iter().copied().collect();
                    Step::Ids(0)
                }
            }
            Step::Ids(at) => {
                let ids = self.ids.iter().skip(at).take(SECTION_BYTES / ID_BYTES);
                let count = ids.len();
                if count > 0 {
                    ids.for_each(|id| put_id(&mut content, id));
                    self.section(IDS, &content);
                    Step::Ids(at + count)
                } else {
                    Step::Timers { after: TimerKey::default(), count: 0 }
                }
            }
            Step::Timers { after, count } => {
                let mut last = after;
                for (key, timer) in self.captured.timers.after(after).take(SECTION_BYTES / TIMER_BYTES) {
                    last = key;
                    put_timer(&mut content, (key, timer));
                }
                if content.is_empty() {
                    self.images = self.captured.images()?;
                    self.timers = count;
                    Step::Runs { run: 0, at: 0 }
                } else {
                    self.section(TIMERS, &content);
                    Step::Timers { after: last, count: count + (content.len() / TIMER_BYTES) as u64 }
                }
            }
            Step::Runs { run, at } => match self.images.get(run).cloned() {
                Some(image) if at < image.len() => {
                    let end = image.len().min(at + SECTION_BYTES);
                    self.section(RUN_BYTES, &image.slice(at..end));
                    Step::Runs { run, at: end }
                }
                Some(image) => {
                    self.section(RUN_END, &(image.len() as u64).to_le_bytes());
                    Step::Runs { run: run + 1, at: 0 }
                }
                None => {
                    self.key_images = self.captured.key_images();
                    Step::KeyRuns { run: 0, at: 0 }
                }
            },
            Step::KeyRuns { run, at } => match self.key_images.get(run).cloned() {
                Some(image) if at < image.len() => {
                    let end = image.len().min(at + SECTION_BYTES);
                    self.section(KEY_RUN_BYTES, &image.slice(at..end));
                    Step::KeyRuns { run, at: end }
                }
                Some(image) => {
                    self.section(KEY_RUN_END, &(image.len() as u64).to_le_bytes());
                    Step::KeyRuns { run: run + 1, at: 0 }
                }
                None => {
                    let (records, ids) = (self.captured.records.len() as u64, self.ids.len() as u64);
                    let (runs, key_runs) = (self.images.len() as u64, self.key_images.len() as u64);
                    for count in [records, ids, self.timers, runs, key_runs] {
                        content.put_u64_le(count);
                    }
                    self.section(END, &content);
                    Step::Done
                }
            },
            Step::Done => Step::Done,
        };
        Ok(())
    }

    fn section(&mut self, kind: u8, content: &[u8]) {
        self.ready.reserve(SECTION_HEADER_BYTES + content.len());
        self.ready.put_u8(kind);
        self.ready.put_u32_le(u32::try_from(content.len()).expect("a section is bounded"));
        self.ready.put_u32_le(section_crc(kind, content));
        self.ready.put_slice(content);
    }
}

impl Captured {
    /// The key runs, and one more made of the tails.
    fn key_images(&self) -> Vec<Bytes> {
        let mut images: Vec<Bytes> = self.keys.runs.iter().map(|run| run.image().clone()).collect();
        if !self.keys.tails.is_empty() {
            let tails = SealedKeys { runs: Vec::new(), tails: self.keys.tails.clone() };
            images.push(write_key_image(&tails.sorted(|_| true, PhysicalOffset(0))));
        }
        images
    }

    /// The runs, and one more made of the tails.
    fn images(&self) -> io::Result<Vec<Bytes>> {
        let mut images: Vec<Bytes> = self.sealed.runs.iter().map(|run| run.image().clone()).collect();
        if !self.sealed.tails.is_empty() {
            let sources: Vec<&dyn ExtentSource> =
                self.sealed.tails.iter().map(|tail| tail.as_ref() as &dyn ExtentSource).collect();
            let mut image = Cursor::new(Vec::new());
            write_run(&mut image, &sources, &|_: QueueKey| Some(0))?;
            images.push(Bytes::from(image.into_inner()));
        }
        Ok(images)
    }
}

impl Read for SnapshotStream {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.ready.is_empty() {
            if matches!(self.step, Step::Done) {
                return Ok(0);
            }
            self.advance()?;
        }
        let count = out.len().min(self.ready.len());
        self.ready.copy_to_slice(&mut out[..count]);
        Ok(count)
    }
}

/// A snapshot that was read to its end and checked; its index is not attached yet.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) applied: Applied,
    /// The runs, oldest first.
    pub(crate) runs: Vec<Bytes>,
    /// One run of all timers.
    pub(crate) timers: Bytes,
    pub(crate) keys: Vec<Bytes>,
}

pub(crate) fn receive(mut from: impl Read) -> io::Result<Received> {
    let mut magic = [0; MAGIC.len()];
    from.read_exact(&mut magic)?;
    if &magic != MAGIC {
        return Err(damaged("magic"));
    }
    let mut received =
        Received { applied: Applied::default(), runs: Vec::new(), timers: Bytes::new(), keys: Vec::new() };
    let mut timers: Vec<(TimerKey, Timer)> = Vec::new();
    let (mut records, mut ids) = (0u64, 0u64);
    let mut run = BytesMut::new();
    let mut index = Vec::new();
    loop {
        let (kind, content) = read_section(&mut from)?;
        let mut reader = FieldReader::new(&content);
        let malformed = |error: super::command::MalformedField| damaged(error.field);
        match kind {
            SCALARS => received.applied.scalars = Scalars::read(&mut reader).map_err(malformed)?,
            RECORDS => {
                while reader.remaining() > 0 {
                    let key_bytes = usize::from(reader.u16("key length").map_err(malformed)?);
                    let key = reader.bytes(key_bytes, "key").map_err(malformed)?;
                    let value_bytes = reader.u32("value length").map_err(malformed)? as usize;
                    let value = reader.bytes(value_bytes, "value").map_err(malformed)?;
                    let key = RecordKey::decode(&key).ok_or_else(|| damaged("record key"))?;
                    let value = RecordValue::decode(key, &value).map_err(malformed)?;
                    received.applied.load_record(key, value).map_err(io::Error::other)?;
                    records += 1;
                }
            }
            IDS => {
                while reader.remaining() > 0 {
                    received.applied.window.insert(read_id(&mut reader).map_err(malformed)?);
                    ids += 1;
                }
            }
            TIMERS => {
                while reader.remaining() > 0 {
                    timers.push(read_timer(&mut reader).map_err(malformed)?);
                }
            }
            RUN_BYTES => run.put_slice(&content),
            RUN_END => {
                if reader.u64("run length").map_err(malformed)? != run.len() as u64 {
                    return Err(damaged("run length"));
                }
                let image = std::mem::take(&mut run).freeze();
                index.push(Run::check(image.clone()).map_err(io::Error::other)?);
                received.runs.push(image);
            }
            KEY_RUN_BYTES => run.put_slice(&content),
            KEY_RUN_END => {
                if reader.u64("key run length").map_err(malformed)? != run.len() as u64 {
                    return Err(damaged("key run length"));
                }
                let image = std::mem::take(&mut run).freeze();
                KeyRun::check(image.clone()).map_err(io::Error::other)?;
                received.keys.push(image);
            }
            END => {
                let (runs, key_runs) = (received.runs.len() as u64, received.keys.len() as u64);
                let counts = [records, ids, timers.len() as u64, runs, key_runs];
                for count in counts {
                    if reader.u64("count").map_err(malformed)? != count {
                        return Err(damaged("counts"));
                    }
                }
                received.timers = write_image(timers.into_iter());
                TimerRun::check(received.timers.clone()).map_err(io::Error::other)?;
                received.applied.check_loaded().map_err(io::Error::other)?;
                if !is_indexed(&received.applied, &index) {
                    return Err(damaged("queues without an index"));
                }
                return Ok(received);
            }
            _ => return Err(damaged("section kind")),
        }
    }
}

/// Whether the runs have an entry for every message the queues claim: one that is not there would be
/// taken for a message that nobody may have.
fn is_indexed(applied: &Applied, index: &[Run]) -> bool {
    applied.ranges().filter(|(_, range)| range.min < range.max).all(|(key, range)| {
        let mut extents: Vec<(u64, u64)> = index
            .iter()
            .filter_map(|run| run.extent(key))
            .map(|(first, entries)| (first, first.saturating_add(entries as u64)))
            .collect();
        extents.sort_unstable();
        let reached = extents.into_iter().fold(range.min, |reached, (first, end)| match first <= reached {
            true => reached.max(end),
            false => reached,
        });
        reached >= range.max
    })
}

fn read_section(from: &mut impl Read) -> io::Result<(u8, Bytes)> {
    let mut header = [0; SECTION_HEADER_BYTES];
    from.read_exact(&mut header)?;
    let mut fields = &header[..];
    let (kind, len, crc) = (fields.get_u8(), fields.get_u32_le() as usize, fields.get_u32_le());
    if len > SECTION_BYTES_MAX {
        return Err(damaged("section length"));
    }
    // Grows as bytes arrive: a wrong length must not allocate what nobody sends.
    let mut content = Vec::new();
    from.by_ref().take(len as u64).read_to_end(&mut content)?;
    if content.len() != len {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    if section_crc(kind, &content) != crc {
        return Err(damaged("section"));
    }
    Ok((kind, Bytes::from(content)))
}

fn section_crc(kind: u8, content: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&[kind]), content)
}

fn damaged(part: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("snapshot is damaged: {part}"))
}
