//! Checkpoints: the applied state on disk, so that a restart need not read the whole log.
//!
//! Directory (`state/` of the group's data):
//!
//! | Name | What |
//! |---|---|
//! | `sled/` | records, and the header that names the files below (see [`meta_store`](super::meta_store)) |
//! | `run-<number>` | index runs |
//! | `timers-<number>` | timer runs |
//! | `keys-<number>` | key runs |
//! | `ids-<number>` | message ids of the window |
//! | `sled.bad-<n>`, `sled.loading` | see [`sled_store`](super::meta_store) |
//!
//! Header: version u8 (2); the scalars; next file number u64; list of runs (number u64); list of timer
//! runs (number u64); list of key runs (number u64); list of ids files (number u64, ids u64, newest store time u64 ms).
//!
//! Order of a checkpoint at applied entry A:
//! 1. under the state lock: take the dirty records as they are at A, freeze the index tail;
//! 2. wait until the log is flushed up to A on this replica;
//! 3. write and sync the run and the ids file, sync the directory;
//! 4. commit records and header in one batch (this is the moment it counts);
//! 5. let the run take the place of the frozen tails; delete the files no longer named.
//!
//! | Failure | Consequence |
//! |---|---|
//! | the process ends before 4 | the checkpoint before is used; files it does not name are deleted |
//! | a named file is missing or damaged, sled is damaged, the records do not fit together | everything here is reset; Raft restores a snapshot or applies from the first entry |
//! | the log ends before A (its disk lost what was flushed) or starts after A + 1 | the same |
//! | writing fails | the state takes no more entries: the process ends and starts over |

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use ledgermq_common::PhysicalOffset;
use ledgermq_common::clock::UnixMillis;
use ledgermq_common::limits::{MESSAGE_ID_WINDOW_IDS_MAX, MESSAGE_ID_WINDOW_MS};

use super::applied::lite::is_lite;
use super::applied::window::WindowEntry;
use super::applied::{Applied, Scalars, Topic};
use super::command::wire::{FieldReader, MalformedField, put_list};
use super::consume_queue::ids::{read_ids_file, write_ids_file};
use super::consume_queue::run::{ExtentSource, Run, write_run_file};
use super::consume_queue::tail::Tail;
use super::consume_queue::{ConsumeQueueIndex, QueueKey};
use super::key_index::run::{KeyRun, write_image as write_key_image};
use super::key_index::{KeyEntry, SealedKeys};
use super::meta_store::{Change, MetaStore, MetaStoreError};
use super::names::TopicId;
use super::records::{RecordKey, RecordValue};
use super::timers::run::{EMPTY_TIMER_RUN_BYTES, TimerRun, write_file, write_image};
use super::timers::{SealedTimers, TimerKey, TimerTail};

const HEADER_VERSION: u8 = 2;
/// So many runs of one size are merged into one of the next.
const RUNS_MERGED: usize = 8;
/// Entries of a run of the smallest size; each size is `RUNS_MERGED` times the one before.
const RUN_ENTRIES_SMALLEST: usize = 64 * 1024;
/// Runs are merged no further than this, which bounds the work of one checkpoint.
const RUN_ENTRIES_MAX: usize = 16 * 1024 * 1024;

/// What a checkpoint takes from the state under its lock.
#[derive(Debug)]
pub(crate) struct Cut {
    pub(crate) scalars: Scalars,
    pub(crate) records: Vec<(RecordKey, Option<RecordValue>)>,
    pub(crate) tails: Vec<Arc<Tail>>,
    pub(crate) ids: Vec<WindowEntry>,
    pub(crate) timers: TimerCut,
    pub(crate) keys: Vec<Arc<Vec<KeyEntry>>>,
    pub(crate) kept: Kept,
}

/// What of the index is still wanted.
#[derive(Debug)]
pub(crate) struct Kept {
    /// The minimum of each queue, for topics where one has moved; else empty.
    minimums: BTreeMap<TopicId, Vec<u64>>,
    /// The minimum of each lite topic, in the order of their queues. One that is gone is not among them.
    lite: Vec<(QueueKey, u64)>,
    released_below: PhysicalOffset,
}

impl Kept {
    pub(crate) fn of(applied: &Applied) -> Self {
        let minimums = |topic: &Topic| {
            let moved = topic.queues.iter().any(|range| range.min > 0);
            if moved { topic.queues.iter().map(|range| range.min).collect() } else { Vec::new() }
        };
        Self {
            minimums: applied.topics.iter().map(|(&id, topic)| (id, minimums(topic))).collect(),
            lite: applied.lite.minimums().collect(),
            released_below: applied.keeping.progress.released_below,
        }
    }

    fn has(&self, topic: TopicId) -> bool {
        self.minimums.contains_key(&topic)
    }

    /// The first offset of a queue that is wanted; `None` if its topic is gone.
    fn from(&self, key: QueueKey) -> Option<u64> {
        if is_lite(key.queue()) {
            let at = self.lite.binary_search_by_key(&key, |&(key, _)| key).ok()?;
            return self.lite.get(at).map(|&(_, minimum)| minimum);
        }
        let minimums = self.minimums.get(&key.topic())?;
        Some(minimums.get(key.queue() as usize).copied().unwrap_or(0))
    }
}

/// The timers of a cut.
#[derive(Debug)]
pub(crate) struct TimerCut {
    pub(crate) tails: Vec<Arc<TimerTail>>,
    pub(crate) fired_through: TimerKey,
    pub(crate) recalled: BTreeSet<TimerKey>,
}

/// Everything a checkpoint has written, for the state to read from now on.
#[derive(Debug, Clone, Default)]
pub(crate) struct Written {
    pub(crate) runs: Vec<Arc<Run>>,
    pub(crate) timers: Vec<Arc<TimerRun>>,
    pub(crate) keys: Vec<Arc<KeyRun>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct IdsFile {
    number: u64,
    ids: u64,
    newest: UnixMillis,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Manifest {
    next_file: u64,
    runs: Vec<u64>,
    timers: Vec<u64>,
    keys: Vec<u64>,
    ids: Vec<IdsFile>,
}

/// The files of the checkpoint and the store that names them.
pub(crate) struct CheckpointFiles {
    directory: PathBuf,
    store: Box<dyn MetaStore>,
    manifest: Manifest,
    runs: Vec<Arc<Run>>,
    timers: Vec<Arc<TimerRun>>,
    keys: Vec<Arc<KeyRun>>,
}

impl CheckpointFiles {
    /// Opens what is there. Returns the state as of the last checkpoint, empty if there is none or
    /// it is damaged.
    pub(crate) fn open(
        directory: &Path,
        store: Box<dyn MetaStore>,
    ) -> Result<(Self, Applied), MetaStoreError> {
        fs::create_dir_all(directory)?;
        let mut files = Self {
            directory: directory.to_owned(),
            store,
            manifest: Manifest::default(),
            runs: Vec::new(),
            timers: Vec::new(),
            keys: Vec::new(),
        };
        let applied = match files.load() {
            Ok(applied) => applied,
            Err(error) => {
                tracing::warn!(%error, directory = %directory.display(), "derived state is made again");
                files.reset(true)?;
                Applied::default()
            }
        };
        files.delete_unnamed()?;
        Ok((files, applied))
    }

    /// Forgets everything.
    pub(crate) fn reset(&mut self, damaged: bool) -> Result<(), MetaStoreError> {
        self.store.reset(damaged)?;
        self.manifest = Manifest { next_file: self.manifest.next_file, ..Manifest::default() };
        self.runs.clear();
        self.timers.clear();
        self.keys.clear();
        self.delete_unnamed()?;
        Ok(())
    }

    /// Steps 3 and 4. Returns all runs, which now hold the tails of the cut.
    pub(crate) fn write(&mut self, cut: &Cut) -> Result<Written, MetaStoreError> {
        let mut manifest = self.manifest.clone();
        let mut runs = self.runs.clone();
        if !cut.tails.is_empty() {
            let sources: Vec<&dyn ExtentSource> =
                cut.tails.iter().map(|tail| tail.as_ref() as &dyn ExtentSource).collect();
            let run = self.write_run(&mut manifest, &sources, &cut.kept)?;
            runs.push(run);
            while let Some(merged) = runs_to_merge(&runs) {
                let keep = runs.len() - merged;
                let sources: Vec<&dyn ExtentSource> =
                    runs.iter().skip(keep).map(|run| run.as_ref() as &dyn ExtentSource).collect();
                manifest.runs.truncate(keep);
                let run = self.write_run(&mut manifest, &sources, &cut.kept)?;
                runs.truncate(keep);
                runs.push(run);
            }
        }
        self.drop_expired(&mut manifest, &mut runs, &cut.kept)?;
        let timers = self.write_timers(&mut manifest, cut)?;
        let keys = self.write_keys(&mut manifest, cut)?;
        if let Some(newest) = cut.ids.last() {
            let number = manifest.take_number();
            write_ids_file(&self.directory.join(ids_name(number)), &cut.ids)?;
            manifest.ids.push(IdsFile { number, ids: cut.ids.len() as u64, newest: newest.stored_at });
        }
        manifest.drop_old_ids(cut.scalars.now);
        fs::File::open(&self.directory)?.sync_all()?;

        let changes: Vec<Change> = cut
            .records
            .iter()
            .map(|(key, value)| (key.encode(), value.as_ref().map(RecordValue::encode)))
            .collect();
        self.store.commit(&encode_header(&cut.scalars, &manifest), &changes)?;
        self.manifest = manifest;
        self.runs = runs;
        self.timers = timers;
        self.keys = keys;
        self.delete_unnamed()?;
        Ok(self.written())
    }

    fn written(&self) -> Written {
        Written { runs: self.runs.clone(), timers: self.timers.clone(), keys: self.keys.clone() }
    }

    /// Takes the runs of a snapshot, oldest first; nothing names them before the next checkpoint.
    pub(crate) fn adopt(
        &mut self,
        images: &[Bytes],
        timers: &Bytes,
        keys: &[Bytes],
    ) -> Result<Written, MetaStoreError> {
        for image in images {
            let number = self.manifest.take_number();
            let path = self.directory.join(run_name(number));
            let mut file = fs::File::create(&path)?;
            io::Write::write_all(&mut file, image)?;
            file.sync_all()?;
            self.runs.push(Arc::new(Run::open(&path)?));
            self.manifest.runs.push(number);
        }
        let number = self.manifest.take_number();
        let path = self.directory.join(timers_name(number));
        write_file(&path, timers)?;
        self.timers.push(Arc::new(TimerRun::open(&path)?));
        self.manifest.timers.push(number);
        for image in keys {
            let number = self.manifest.take_number();
            let path = self.directory.join(keys_name(number));
            write_file(&path, image)?;
            self.keys.push(Arc::new(KeyRun::open(&path)?));
            self.manifest.keys.push(number);
        }
        Ok(self.written())
    }

    fn write_run(
        &self,
        manifest: &mut Manifest,
        sources: &[&dyn ExtentSource],
        kept: &Kept,
    ) -> Result<Arc<Run>, MetaStoreError> {
        let number = manifest.take_number();
        let path = self.directory.join(run_name(number));
        write_run_file(&path, sources, &|key| kept.from(key))?;
        manifest.runs.push(number);
        Ok(Arc::new(Run::open(&path)?))
    }

    /// Runs of which nothing is wanted go; the oldest of which less than half is, is written anew. One
    /// of them each time, so that a checkpoint does not become long.
    fn drop_expired(
        &self,
        manifest: &mut Manifest,
        runs: &mut Vec<Arc<Run>>,
        kept: &Kept,
    ) -> Result<(), MetaStoreError> {
        let live: Vec<usize> = runs.iter().map(|run| run.kept_len(&|key| kept.from(key))).collect();
        let sparse = live.iter().zip(runs.iter()).position(|(&live, run)| live > 0 && live < run.len() / 2);
        if let Some(at) = sparse
            && let (Some(run), Some(number)) = (runs.get_mut(at), manifest.runs.get(at).copied())
        {
            let rewritten = self.write_run(manifest, &[run.as_ref()], kept)?;
            *run = rewritten;
            let newest = manifest.runs.pop().expect("the run just written");
            manifest.runs.iter_mut().filter(|named| **named == number).for_each(|named| *named = newest);
        }
        let mut wanted = live.iter().map(|&live| live > 0);
        manifest.runs.retain(|_| wanted.next().unwrap_or(true));
        let mut wanted = live.iter().map(|&live| live > 0);
        runs.retain(|_| wanted.next().unwrap_or(true));
        Ok(())
    }

    /// The timers of the cut become a run; runs that have fired wholly go, and small ones are merged.
    /// Timers of deleted topics stay: how many a fire takes must not depend on what was merged when.
    fn write_timers(&self, manifest: &mut Manifest, cut: &Cut) -> Result<Vec<Arc<TimerRun>>, MetaStoreError> {
        let fired_through = cut.timers.fired_through;
        let mut runs: Vec<(u64, Arc<TimerRun>)> =
            manifest.timers.iter().copied().zip(self.timers.iter().cloned()).collect();
        runs.retain(|(_, run)| run.last() > Some(fired_through));
        let mut write = |sealed: &SealedTimers| -> Result<Option<(u64, Arc<TimerRun>)>, MetaStoreError> {
            let kept = sealed.after(fired_through).filter(|(key, _)| !cut.timers.recalled.contains(key));
            let image = write_image(kept);
            if image.len() == EMPTY_TIMER_RUN_BYTES {
                return Ok(None);
            }
            let number = manifest.take_number();
            let path = self.directory.join(timers_name(number));
            write_file(&path, &image)?;
            Ok(Some((number, Arc::new(TimerRun::open(&path)?))))
        };
        if !cut.timers.tails.is_empty() {
            runs.extend(write(&SealedTimers { runs: Vec::new(), tails: cut.timers.tails.clone() })?);
        }
        while let Some(merged) =
            newest_of_one_size(&runs.iter().map(|(_, run)| run.len()).collect::<Vec<_>>())
        {
            let sources = runs.split_off(runs.len() - merged);
            let sources = sources.into_iter().map(|(_, run)| run).collect();
            runs.extend(write(&SealedTimers { runs: sources, tails: Vec::new() })?);
        }
        manifest.timers = runs.iter().map(|(number, _)| *number).collect();
        Ok(runs.into_iter().map(|(_, run)| run).collect())
    }

    /// The keys of the cut become a run; eight of one size are merged, and runs of which nothing is
    /// above what was released go.
    fn write_keys(&self, manifest: &mut Manifest, cut: &Cut) -> Result<Vec<Arc<KeyRun>>, MetaStoreError> {
        let released_below = cut.kept.released_below;
        let mut runs: Vec<(u64, Arc<KeyRun>)> =
            manifest.keys.iter().copied().zip(self.keys.iter().cloned()).collect();
        let mut write = |sealed: &SealedKeys| -> Result<(u64, Arc<KeyRun>), MetaStoreError> {
            let number = manifest.take_number();
            let path = self.directory.join(keys_name(number));
            write_file(&path, &write_key_image(&sealed.sorted(|topic| cut.kept.has(topic), released_below)))?;
            Ok((number, Arc::new(KeyRun::open(&path)?)))
        };
        if !cut.keys.is_empty() {
            runs.push(write(&SealedKeys { runs: Vec::new(), tails: cut.keys.clone() })?);
        }
        while let Some(merged) =
            newest_of_one_size(&runs.iter().map(|(_, run)| run.len()).collect::<Vec<_>>())
        {
            let sources = runs.split_off(runs.len() - merged);
            let sources = sources.into_iter().map(|(_, run)| run).collect();
            runs.push(write(&SealedKeys { runs: sources, tails: Vec::new() })?);
        }
        if released_below > PhysicalOffset(0) {
            runs.retain(|(_, run)| run.newest() >= Some(released_below));
        }
        manifest.keys = runs.iter().map(|(number, _)| *number).collect();
        Ok(runs.into_iter().map(|(_, run)| run).collect())
    }

    fn load(&mut self) -> Result<Applied, MetaStoreError> {
        let Some(checkpoint) = self.store.load()? else { return Ok(Applied::default()) };
        let (scalars, manifest) = decode_header(&checkpoint.header).map_err(damaged)?;
        let mut applied = Applied { scalars, ..Applied::default() };
        for (key, value) in &checkpoint.records {
            let key = RecordKey::decode(key)
                .ok_or_else(|| MetaStoreError::Damaged { reason: "unknown record key".to_owned() })?;
            let value = RecordValue::decode(key, value).map_err(damaged)?;
            applied.load_record(key, value).map_err(damaged)?;
        }
        applied.check_loaded().map_err(damaged)?;
        for &number in &manifest.runs {
            self.runs.push(Arc::new(Run::open(&self.directory.join(run_name(number)))?));
        }
        applied.index = ConsumeQueueIndex::of_runs(self.runs.clone());
        for &number in &manifest.timers {
            self.timers.push(Arc::new(TimerRun::open(&self.directory.join(timers_name(number)))?));
        }
        applied.timers.replace_sealed(self.timers.clone(), 0);
        for &number in &manifest.keys {
            self.keys.push(Arc::new(KeyRun::open(&self.directory.join(keys_name(number)))?));
        }
        applied.keys.replace_sealed(self.keys.clone(), 0);
        for file in &manifest.ids {
            let ids = read_ids_file(&self.directory.join(ids_name(file.number)))?;
            if ids.len() as u64 != file.ids {
                return Err(MetaStoreError::Damaged {
                    reason: "an ids file is of another commit".to_owned(),
                });
            }
            ids.into_iter().for_each(|id| applied.window.insert(id));
        }
        applied.mark_ids_kept();
        applied.window.expire(applied.scalars.now);
        self.manifest = manifest;
        Ok(applied)
    }

    /// Deletes runs and ids files that no checkpoint names. Mapped files stay readable.
    fn delete_unnamed(&self) -> io::Result<()> {
        for item in fs::read_dir(&self.directory)? {
            let item = item?;
            let name = item.file_name();
            let Some(name) = name.to_str() else { continue };
            let run = name.strip_prefix("run-").and_then(|number| number.parse::<u64>().ok());
            let ids = name.strip_prefix("ids-").and_then(|number| number.parse::<u64>().ok());
            let timers = name.strip_prefix("timers-").and_then(|number| number.parse::<u64>().ok());
            let keys = name.strip_prefix("keys-").and_then(|number| number.parse::<u64>().ok());
            let is_unnamed = keys.is_some_and(|number| !self.manifest.keys.contains(&number))
                || timers.is_some_and(|number| !self.manifest.timers.contains(&number))
                || run.is_some_and(|number| !self.manifest.runs.contains(&number))
                || ids.is_some_and(|number| !self.manifest.ids.iter().any(|file| file.number == number));
            if is_unnamed {
                fs::remove_file(item.path())?;
            }
        }
        Ok(())
    }
}

impl Manifest {
    fn take_number(&mut self) -> u64 {
        let number = self.next_file;
        self.next_file += 1;
        number
    }

    /// An ids file goes when all its ids left the window.
    fn drop_old_ids(&mut self, now: UnixMillis) {
        let mut newer_ids = 0;
        let mut keep = 0;
        for file in self.ids.iter().rev() {
            let is_old = now.saturating_ms_since(file.newest) > MESSAGE_ID_WINDOW_MS;
            if is_old || newer_ids >= MESSAGE_ID_WINDOW_IDS_MAX as u64 {
                break;
            }
            newer_ids += file.ids;
            keep += 1;
        }
        let drop = self.ids.len() - keep;
        self.ids.drain(..drop);
    }
}

/// How many of the newest runs are to become one.
fn runs_to_merge(runs: &[Arc<Run>]) -> Option<usize> {
    newest_of_one_size(&runs.iter().map(|run| run.len()).collect::<Vec<_>>())
}

/// By the entries of each run, oldest first.
fn newest_of_one_size(runs: &[usize]) -> Option<usize> {
    let size = |run: usize| {
        let mut size = 0;
        let mut entries = RUN_ENTRIES_SMALLEST;
        while run > entries {
            entries = entries.saturating_mul(RUNS_MERGED);
            size += 1;
        }
        size
    };
    let newest = size(*runs.last()?);
    let same = runs.iter().rev().take_while(|run| size(**run) <= newest).count();
    let entries: usize = runs.iter().rev().take(same).sum();
    (same >= RUNS_MERGED && entries <= RUN_ENTRIES_MAX).then_some(same)
}

fn run_name(number: u64) -> String {
    format!("run-{number:020}")
}

fn keys_name(number: u64) -> String {
    format!("keys-{number:020}")
}

fn timers_name(number: u64) -> String {
    format!("timers-{number:020}")
}

fn ids_name(number: u64) -> String {
    format!("ids-{number:020}")
}

fn encode_header(scalars: &Scalars, manifest: &Manifest) -> Bytes {
    let mut out = BytesMut::new();
    out.put_u8(HEADER_VERSION);
    scalars.put(&mut out);
    out.put_u64_le(manifest.next_file);
    put_list(&mut out, &manifest.runs, |out, number| out.put_u64_le(*number));
    put_list(&mut out, &manifest.timers, |out, number| out.put_u64_le(*number));
    put_list(&mut out, &manifest.keys, |out, number| out.put_u64_le(*number));
    put_list(&mut out, &manifest.ids, |out, file| {
        out.put_u64_le(file.number);
        out.put_u64_le(file.ids);
        out.put_u64_le(file.newest.get());
    });
    out.freeze()
}

fn decode_header(header: &Bytes) -> Result<(Scalars, Manifest), MalformedField> {
    let mut reader = FieldReader::new(header);
    let reader = &mut reader;
    if reader.u8("header version")? != HEADER_VERSION {
        return Err(reader.malformed("header version"));
    }
    let scalars = Scalars::read(reader)?;
    let next_file = reader.u64("next file")?;
    let runs = reader.list(8, "runs", |reader| reader.u64("run"))?;
    let timers = reader.list(8, "timer runs", |reader| reader.u64("timer run"))?;
    let keys = reader.list(8, "key runs", |reader| reader.u64("key run"))?;
    let ids = reader.list(24, "ids files", |reader| {
        Ok(IdsFile {
            number: reader.u64("ids file")?,
            ids: reader.u64("ids")?,
            newest: UnixMillis(reader.u64("newest id")?),
        })
    })?;
    reader.end("end of the header")?;
    Ok((scalars, Manifest { next_file, runs, timers, keys, ids }))
}

fn damaged(error: impl std::error::Error) -> MetaStoreError {
    MetaStoreError::Damaged { reason: error.to_string() }
}
