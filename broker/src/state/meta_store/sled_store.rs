//! The checkpoint in sled 0.34.
//!
//! | Key | Value |
//! |---|---|
//! | `h` | CRC32C u32 of the rest; number of records u64; sum of the records' hashes u64; the header |
//! | any other (see [`records`](crate::state::records)) | CRC32C u32 of key and value; the value |
//!
//! The hash of a record is xxh3-64 of key and value. Count and sum are in the same batch as the
//! records, so a record that silently went missing or came back is noticed, not only a damaged one.
//!
//! | Failure | Consequence |
//! |---|---|
//! | sled cannot open its files, or panics over them | directory moved aside, state made again |
//! | the process died while sled opened its files (a panic that aborts) | the same, seen by the marker `sled.loading` at the next start |
//! | a record or the header fails its checksum, or count or sum differ | the same |
//! | sled recovers an older commit, whole | that one is used; the log from there on is applied again |

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use bytes::{BufMut, Bytes};
use xxhash_rust::xxh3::xxh3_64;

use super::{Change, Checkpoint, MetaStore, MetaStoreError};

const HEADER_KEY: &[u8] = b"h";
const DIRECTORY: &str = "sled";
const LOADING_MARKER: &str = "sled.loading";
const ASIDE: &str = "sled.bad-";
/// Checkpoints are written rarely and read once; a larger cache would only hold memory.
const CACHE_BYTES: u64 = 16 * 1024 * 1024;
/// sled's file lock of a store closed a moment ago in this process goes away with its last thread.
const OPEN_ATTEMPTS: u32 = 100;
const OPEN_RETRY_MS: u64 = 20;

pub(crate) struct SledStore {
    parent: PathBuf,
    database: Option<sled::Db>,
    count: u64,
    sum: u64,
}

impl SledStore {
    /// The store below `parent`; opened when it is first used.
    pub(crate) fn below(parent: &Path) -> Self {
        Self { parent: parent.to_owned(), database: None, count: 0, sum: 0 }
    }

    fn open(&mut self) -> Result<&sled::Db, MetaStoreError> {
        if self.database.is_none() {
            let marker = self.parent.join(LOADING_MARKER);
            if marker.exists() {
                return Err(damaged("the process ended while the store was being opened"));
            }
            fs::write(&marker, b"")?;
            let opened = guarded(|| open_database(&self.parent.join(DIRECTORY)));
            fs::remove_file(&marker)?;
            self.database = Some(opened?);
        }
        self.database.as_ref().ok_or_else(|| damaged("the store is closed"))
    }

    fn read_all(&mut self) -> Result<Option<Checkpoint>, MetaStoreError> {
        let database = self.open()?.clone();
        let mut records = BTreeMap::new();
        let mut header = None;
        for item in database.iter() {
            let (key, value) = item.map_err(sled_error)?;
            let body = unsealed(&key, &value)?;
            if key.as_ref() == HEADER_KEY {
                header = Some(body);
            } else {
                records.insert(key.to_vec(), body);
            }
        }
        let Some(header) = header else {
            return if records.is_empty() { Ok(None) } else { Err(damaged("records without a header")) };
        };
        let (count, sum, header) = split_header(&header)?;
        let found_sum = records.iter().fold(0u64, |sum, (key, value)| sum.wrapping_add(hash(key, value)));
        if count != records.len() as u64 || sum != found_sum {
            return Err(damaged("records are missing or of another commit"));
        }
        self.count = count;
        self.sum = sum;
        Ok(Some(Checkpoint { header, records }))
    }

    fn write(&mut self, header: &[u8], changes: &[Change]) -> Result<(), MetaStoreError> {
        let database = self.open()?.clone();
        let (mut count, mut sum) = (self.count, self.sum);
        let mut batch = sled::Batch::default();
        for (key, value) in changes {
            assert_ne!(key.as_slice(), HEADER_KEY, "record keys are longer than the header's");
            if let Some(old) = database.get(key).map_err(sled_error)? {
                sum = sum.wrapping_sub(hash(key, &unsealed(key, &old)?));
                count = count.checked_sub(1).ok_or_else(|| damaged("more records than were counted"))?;
            }
            match value {
                Some(value) => {
                    sum = sum.wrapping_add(hash(key, value));
                    count += 1;
                    batch.insert(key.as_slice(), sealed(key, value));
                }
                None => batch.remove(key.as_slice()),
            }
        }
        let mut body = Vec::with_capacity(16 + header.len());
        body.put_u64_le(count);
        body.put_u64_le(sum);
        body.put_slice(header);
        batch.insert(HEADER_KEY, sealed(HEADER_KEY, &body));
        database.apply_batch(batch).map_err(sled_error)?;
        database.flush().map_err(sled_error)?;
        self.count = count;
        self.sum = sum;
        Ok(())
    }
}

impl MetaStore for SledStore {
    fn load(&mut self) -> Result<Option<Checkpoint>, MetaStoreError> {
        // sled trusts parts of its files and panics when they lie; so the reading is guarded too.
        let marker = self.parent.join(LOADING_MARKER);
        self.open()?;
        fs::write(&marker, b"")?;
        let loaded = guarded(|| self.read_all());
        fs::remove_file(&marker)?;
        loaded
    }

    fn commit(&mut self, header: &[u8], changes: &[Change]) -> Result<(), MetaStoreError> {
        guarded(|| self.write(header, changes))
    }

    fn reset(&mut self, damaged: bool) -> Result<(), MetaStoreError> {
        // Closing flushes, which a damaged store may not survive either.
        if let Some(database) = self.database.take() {
            let _ = guarded(move || {
                drop(database);
                Ok(())
            });
        }
        (self.count, self.sum) = (0, 0);
        let directory = self.parent.join(DIRECTORY);
        if directory.exists() {
            if damaged {
                move_aside(&self.parent, &directory)?;
            } else {
                fs::remove_dir_all(&directory)?;
            }
        }
        let marker = self.parent.join(LOADING_MARKER);
        if marker.exists() {
            fs::remove_file(marker)?;
        }
        fs::File::open(&self.parent)?.sync_all()?;
        Ok(())
    }
}

fn open_database(directory: &Path) -> Result<sled::Db, MetaStoreError> {
    let config = sled::Config::new()
        .path(directory)
        .cache_capacity(CACHE_BYTES)
        .mode(sled::Mode::LowSpace)
        // Every commit flushes; a background flusher would only wake an idle node.
        .flush_every_ms(None);
    for _ in 1..OPEN_ATTEMPTS {
        match config.open() {
            Err(sled::Error::Io(error)) if is_lock_conflict(&error) => {
                thread::sleep(Duration::from_millis(OPEN_RETRY_MS));
            }
            opened => return opened.map_err(sled_error),
        }
    }
    config.open().map_err(sled_error)
}

fn is_lock_conflict(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock || error.to_string().contains("could not acquire lock")
}

/// Keeps the newest damaged directory for inspection, under the next number, and no older one.
fn move_aside(parent: &Path, directory: &Path) -> Result<(), MetaStoreError> {
    let mut number = 0;
    for item in fs::read_dir(parent)? {
        let item = item?;
        let name = item.file_name();
        let of_before = name.to_str().and_then(|name| name.strip_prefix(ASIDE));
        if let Some(before) = of_before.and_then(|number| number.parse::<u64>().ok()) {
            number = number.max(before + 1);
            fs::remove_dir_all(item.path())?;
        }
    }
    fs::rename(directory, parent.join(format!("{ASIDE}{number}")))?;
    Ok(())
}

fn guarded<T>(work: impl FnOnce() -> Result<T, MetaStoreError>) -> Result<T, MetaStoreError> {
    ledgermq_common::crash::guarded(work).unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<String>().map(String::as_str);
        let said = said.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
        Err(MetaStoreError::Damaged { reason: format!("sled panicked: {said}") })
    })
}

fn hash(key: &[u8], value: &[u8]) -> u64 {
    let mut bytes = Vec::with_capacity(key.len() + value.len());
    bytes.extend_from_slice(key);
    bytes.extend_from_slice(value);
    xxh3_64(&bytes)
}

fn checksum(key: &[u8], value: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(key), value)
}

fn sealed(key: &[u8], value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(4 + value.len());
    out.put_u32_le(checksum(key, value));
    out.put_slice(value);
    out
}

fn unsealed(key: &[u8], sealed: &[u8]) -> Result<Bytes, MetaStoreError> {
    match sealed.split_first_chunk::<4>() {
        Some((crc, value)) if u32::from_le_bytes(*crc) == checksum(key, value) => {
            Ok(Bytes::copy_from_slice(value))
        }
        _ => Err(damaged("a record fails its checksum")),
    }
}

fn split_header(body: &Bytes) -> Result<(u64, u64, Bytes), MetaStoreError> {
    let number = |at: usize| {
        let field = body.get(at..).and_then(|rest| rest.first_chunk::<8>());
        field.map(|bytes| u64::from_le_bytes(*bytes)).ok_or_else(|| damaged("the header is too short"))
    };
    Ok((number(0)?, number(8)?, body.slice(16..)))
}

fn damaged(reason: &str) -> MetaStoreError {
    MetaStoreError::Damaged { reason: reason.to_owned() }
}

fn sled_error(error: sled::Error) -> MetaStoreError {
    match error {
        sled::Error::Io(error) => MetaStoreError::Io(error),
        other => MetaStoreError::Damaged { reason: other.to_string() },
    }
}
