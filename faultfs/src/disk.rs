//! The disk: names and contents behind one lock, the faults in force, and what each of them did.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::contents::{Contents, Stamp};
use crate::names::{Directory, Ino, Kind, Names, Node, ROOT};
use crate::rules::{Effect, Operation, Rule, Rules};

const OBJECTS: &str = "objects";
const LAST: &str = "last";

/// How much of what was not synced a power cut keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Survival {
    Nothing,
    Everything,
    /// All changes up to some moment: the tail is torn at a sector.
    Prefix,
    /// Each sector by itself takes any of its versions: torn and reordered.
    Sectors,
    /// All sectors of a page take the same side.
    Pages,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Corruption {
    /// One bit of the first byte.
    FlipBit,
    Zeros,
    Random,
}

/// What happened since the disk was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counters {
    pub reads: u64,
    pub writes: u64,
    pub written_bytes: u64,
    pub syncs: u64,
    pub directory_syncs: u64,
    pub failed_reads: u64,
    pub failed_writes: u64,
    pub failed_syncs: u64,
    pub failed_others: u64,
    pub no_space: u64,
    pub delayed: u64,
    pub delayed_ms: u64,
    pub held: u64,
    pub power_cuts: u64,
    pub dropped_bytes: u64,
    pub kept_bytes: u64,
    /// Files of which a power cut kept some and dropped some.
    pub torn_files: u64,
    pub dropped_names: u64,
    pub kept_names: u64,
    pub corrupted_bytes: u64,
}

/// What one power cut did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PowerCut {
    pub survival: Survival,
    pub dropped_bytes: u64,
    pub kept_bytes: u64,
    pub torn_files: u64,
    pub dropped_names: u64,
    pub kept_names: u64,
}

/// A file as it is now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub path: String,
    pub bytes: u64,
    pub unsynced_bytes: u64,
}

/// Attributes as the kernel asks for them.
#[derive(Debug, Clone, Copy)]
pub struct Attributes {
    pub ino: Ino,
    pub bytes: u64,
    pub is_directory: bool,
    pub mode: u32,
}

/// What becomes of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    Now,
    Fail,
    DelayMs(u64),
    Hold,
}

#[derive(Debug)]
pub struct Disk {
    files: PathBuf,
    /// Whether a sync also syncs the object: as slow as the disk below, and safe from a fault of it.
    through: bool,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    names: Names,
    rules: Rules,
    counters: Counters,
    capacity_bytes: Option<u64>,
    is_dark: bool,
    clock: u64,
}

impl Disk {
    /// An empty disk whose durable bytes are kept in `files`; what an earlier one left there goes.
    pub fn create(files: &Path, through: bool) -> io::Result<Self> {
        for name in [OBJECTS, LAST] {
            match std::fs::remove_dir_all(files.join(name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        std::fs::create_dir_all(files.join(OBJECTS))?;
        Ok(Self { files: files.to_owned(), through, inner: Mutex::default() })
    }

    pub fn counters(&self) -> Counters {
        self.inner.lock().counters
    }

    pub fn add_rule(&self, rule: Rule) {
        self.inner.lock().rules.add(rule);
    }

    pub fn clear_rules(&self) {
        self.inner.lock().rules.clear();
    }

    /// `None`: as much as the disk below has.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.inner.lock().capacity_bytes = bytes;
    }

    pub fn used_bytes(&self) -> u64 {
        self.inner.lock().used_bytes()
    }

    pub fn capacity_bytes(&self) -> Option<u64> {
        self.inner.lock().capacity_bytes
    }

    /// From now on nothing comes back and nothing becomes durable.
    pub fn power_off(&self) {
        self.inner.lock().is_dark = true;
    }

    /// Forgets what a machine forgets. Nobody may have the disk mounted.
    pub fn power_on(&self, survival: Survival, seed: u64) -> io::Result<PowerCut> {
        let mut inner = self.inner.lock();
        let mut random = StdRng::seed_from_u64(seed);
        let cut = match survival {
            Survival::Nothing => Stamp(0),
            Survival::Everything => Stamp(u64::MAX),
            Survival::Prefix | Survival::Sectors | Survival::Pages => inner.random_cut(&mut random),
        };
        let (kept_names, dropped_names) = inner.names.cut_power(cut);
        let mut report =
            PowerCut { survival, dropped_bytes: 0, kept_bytes: 0, torn_files: 0, dropped_names, kept_names };
        for node in inner.names.nodes.values_mut() {
            if let Kind::File(contents) = &mut node.kind {
                let loss = contents.cut_power(survival, cut, &mut random)?;
                report.dropped_bytes += loss.dropped_bytes;
                report.kept_bytes += loss.kept_bytes;
                report.torn_files += u64::from(loss.dropped_bytes > 0 && loss.kept_bytes > 0);
            }
        }
        self.sweep(&mut inner)?;
        inner.rules.clear();
        inner.is_dark = false;
        let counters = &mut inner.counters;
        counters.power_cuts += 1;
        counters.dropped_bytes += report.dropped_bytes;
        counters.kept_bytes += report.kept_bytes;
        counters.torn_files += report.torn_files;
        counters.dropped_names += report.dropped_names;
        counters.kept_names += report.kept_names;
        Ok(report)
    }

    /// Changes durable bytes of a file below the mount; answers how many changed.
    pub fn corrupt(
        &self,
        path: &str,
        at: u64,
        len: u64,
        how: Corruption,
        seed: u64,
    ) -> io::Result<(Ino, u64)> {
        let mut inner = self.inner.lock();
        let ino = inner.names.find(path)?;
        let contents = inner.names.file_mut(ino)?;
        let changed = match how {
            Corruption::FlipBit => contents.corrupt(at, |_, byte| byte ^ 1 << (seed % 8), 1)?,
            Corruption::Zeros => contents.corrupt(at, |_, _| 0, len)?,
            Corruption::Random => {
                let mut random = StdRng::seed_from_u64(seed);
                let noise: Vec<u8> = (0..len).map(|_| random.random()).collect();
                contents.corrupt(at, |place, byte| noise.get(place).copied().unwrap_or(byte), len)?
            }
        };
        inner.counters.corrupted_bytes += changed;
        Ok((ino, changed))
    }

    /// All files with their live sizes.
    pub fn list(&self) -> Vec<Entry> {
        let inner = self.inner.lock();
        let files = inner.names.files().into_iter();
        let entries = files.filter_map(|(path, ino)| {
            let contents = inner.names.file(ino).ok()?;
            Some(Entry { path, bytes: contents.len(), unsynced_bytes: contents.unsynced_bytes() })
        });
        entries.collect()
    }

    /// Everything is durable on return, as after an orderly shutdown.
    pub fn sync_all(&self) -> io::Result<()> {
        let mut inner = self.inner.lock();
        let directories: Vec<Ino> = inner.names.nodes.keys().copied().collect();
        for directory in directories {
            inner.names.sync_directory(directory);
        }
        for node in inner.names.nodes.values_mut() {
            if let Kind::File(contents) = &mut node.kind {
                contents.sync(self.through)?;
            }
        }
        Ok(())
    }

    /// Leaves the tree as plain files in `FILES/last`, for whoever wants to look at it afterwards.
    pub fn leave_tree(&self) -> io::Result<PathBuf> {
        self.sync_all()?;
        let inner = self.inner.lock();
        let last = self.files.join(LAST);
        std::fs::create_dir_all(&last)?;
        for (path, ino) in inner.names.files() {
            match inner.names.directory(ino) {
                Ok(_) => std::fs::create_dir_all(last.join(path))?,
                Err(_) => {
                    let to = last.join(path);
                    if let Some(parent) = to.parent() {
                        std::fs::create_dir_all(parent)?;
                    }
                    std::fs::hard_link(self.object(ino), to)?;
                }
            }
        }
        Ok(last)
    }

    fn object(&self, ino: Ino) -> PathBuf {
        self.files.join(OBJECTS).join(ino.0.to_string())
    }

    fn sweep(&self, inner: &mut Inner) -> io::Result<()> {
        for ino in inner.names.unreachable() {
            if let Some(Node { kind: Kind::File(_), .. }) = inner.names.nodes.remove(&ino) {
                std::fs::remove_file(self.object(ino))?;
            }
        }
        Ok(())
    }
}

/// What the kernel asks for.
impl Disk {
    pub(crate) fn admit(&self, operation: Operation, ino: Ino) -> Admission {
        let mut inner = self.inner.lock();
        let Inner { names, rules, counters, is_dark, .. } = &mut *inner;
        if *is_dark {
            counters.held += 1;
            return Admission::Hold;
        }
        match rules.decide(operation, || names.path(ino)) {
            None => Admission::Now,
            Some(Effect::Delay { ms }) => {
                counters.delayed += 1;
                counters.delayed_ms += ms;
                Admission::DelayMs(ms)
            }
            Some(Effect::Stall) => {
                counters.held += 1;
                Admission::Hold
            }
            Some(Effect::Fail) => {
                match operation {
                    Operation::Read => counters.failed_reads += 1,
                    Operation::Write => counters.failed_writes += 1,
                    Operation::Sync => {
                        counters.failed_syncs += 1;
                        if let Ok(contents) = names.file_mut(ino) {
                            contents.fail_sync();
                        }
                    }
                    Operation::SyncDirectory => counters.failed_syncs += 1,
                    Operation::Change | Operation::Look => counters.failed_others += 1,
                }
                Admission::Fail
            }
        }
    }

    pub(crate) fn lookup(&self, parent: Ino, name: &OsStr) -> Result<Attributes, Errno> {
        let mut inner = self.inner.lock();
        let ino = inner.names.lookup(parent, name)?;
        inner.hold(ino);
        inner.attributes(ino)
    }

    pub(crate) fn forget(&self, ino: Ino, lookups: u64) {
        let mut inner = self.inner.lock();
        if let Some(node) = inner.names.nodes.get_mut(&ino) {
            node.lookups = node.lookups.saturating_sub(lookups);
            if node.lookups == 0 && ino != ROOT {
                let _ = self.sweep(&mut inner);
            }
        }
    }

    pub(crate) fn attributes(&self, ino: Ino) -> Result<Attributes, Errno> {
        self.inner.lock().attributes(ino)
    }

    pub(crate) fn create_file(&self, parent: Ino, name: &OsStr, mode: u32) -> Result<Attributes, Errno> {
        let mut inner = self.inner.lock();
        inner.make_room(0, 0, true)?;
        let ino = inner.names.new_ino();
        let object = File::options().read(true).write(true).create_new(true).open(self.object(ino));
        let kind = Kind::File(Contents::new(object.map_err(errno)?));
        inner.enter(parent, name, ino, kind, mode)
    }

    pub(crate) fn create_directory(&self, parent: Ino, name: &OsStr, mode: u32) -> Result<Attributes, Errno> {
        let mut inner = self.inner.lock();
        inner.make_room(0, 0, true)?;
        let ino = inner.names.new_ino();
        inner.enter(parent, name, ino, Kind::Directory(Directory::default()), mode)
    }

    pub(crate) fn remove(&self, parent: Ino, name: &OsStr, directory: bool) -> Result<(), Errno> {
        let mut inner = self.inner.lock();
        let stamp = inner.stamp();
        inner.names.unlink(parent, name, directory, stamp)
    }

    pub(crate) fn rename(&self, from: (Ino, &OsStr), to: (Ino, &OsStr)) -> Result<(), Errno> {
        let mut inner = self.inner.lock();
        let stamp = inner.stamp();
        inner.names.rename(from, to, stamp)
    }

    pub(crate) fn set_mode(&self, ino: Ino, mode: u32) -> Result<(), Errno> {
        let mut inner = self.inner.lock();
        inner.names.nodes.get_mut(&ino).ok_or(Errno::STALE)?.mode = mode & 0o7777;
        Ok(())
    }

    pub(crate) fn truncate(&self, ino: Ino, len: u64) -> Result<(), Errno> {
        let mut inner = self.inner.lock();
        let stamp = inner.stamp();
        let has = inner.names.file(ino)?.len();
        inner.make_room(has, len, false)?;
        inner.names.file_mut(ino)?.truncate(len, stamp).map_err(errno)
    }

    pub(crate) fn reserve(&self, ino: Ino, len: u64) -> Result<(), Errno> {
        let mut inner = self.inner.lock();
        let contents = inner.names.file(ino)?;
        let has = contents.len().max(contents.reserved);
        inner.make_room(has, len, false)?;
        let contents = inner.names.file_mut(ino)?;
        contents.reserved = contents.reserved.max(len);
        Ok(())
    }

    pub(crate) fn open(&self, ino: Ino) -> Result<(), Errno> {
        let mut inner = self.inner.lock();
        inner.names.nodes.get_mut(&ino).ok_or(Errno::STALE)?.opened += 1;
        Ok(())
    }

    pub(crate) fn release(&self, ino: Ino) {
        let mut inner = self.inner.lock();
        if let Some(node) = inner.names.nodes.get_mut(&ino) {
            node.opened = node.opened.saturating_sub(1);
            // With several threads at work the kernel's last word may come before this one.
            if node.opened == 0 && node.lookups == 0 {
                let _ = self.sweep(&mut inner);
            }
        }
    }

    pub(crate) fn read(&self, ino: Ino, at: u64, len: usize) -> Result<Vec<u8>, Errno> {
        let mut inner = self.inner.lock();
        inner.counters.reads += 1;
        inner.names.file(ino)?.read(at, len).map_err(errno)
    }

    pub(crate) fn write(&self, ino: Ino, at: u64, bytes: &[u8]) -> Result<(), Errno> {
        let mut inner = self.inner.lock();
        let stamp = inner.stamp();
        let contents = inner.names.file(ino)?;
        let has = contents.len().max(contents.reserved);
        let end = at.checked_add(bytes.len() as u64).ok_or(Errno::FBIG)?;
        inner.make_room(has, end, false)?;
        inner.counters.writes += 1;
        inner.counters.written_bytes += bytes.len() as u64;
        inner.clock = inner.names.file_mut(ino)?.write(at, bytes, stamp).map_err(errno)?.0;
        Ok(())
    }

    pub(crate) fn sync(&self, ino: Ino) -> Result<(), Errno> {
        let mut inner = self.inner.lock();
        inner.counters.syncs += 1;
        inner.names.file_mut(ino)?.sync(self.through).map_err(errno)
    }

    pub(crate) fn sync_directory(&self, ino: Ino) -> Result<(), Errno> {
        let mut inner = self.inner.lock();
        inner.counters.directory_syncs += 1;
        inner.names.directory(ino)?;
        inner.names.sync_directory(ino);
        // A file whose last name went is often forgotten by the kernel before its end is durable.
        self.sweep(&mut inner).map_err(errno)
    }

    pub(crate) fn entries(&self, ino: Ino) -> Result<Vec<(std::ffi::OsString, Attributes)>, Errno> {
        let inner = self.inner.lock();
        let directory = inner.names.directory(ino)?;
        directory.live.iter().map(|(name, ino)| Ok((name.clone(), inner.attributes(*ino)?))).collect()
    }
}

impl Inner {
    fn stamp(&mut self) -> Stamp {
        self.clock += 1;
        Stamp(self.clock)
    }

    /// A moment between two changes of those that could be lost.
    fn random_cut(&self, random: &mut StdRng) -> Stamp {
        let files = self.names.nodes.values().filter_map(|node| match &node.kind {
            Kind::File(contents) => Some(contents.unsynced()),
            Kind::Directory(_) => None,
        });
        let mut moments: Vec<Stamp> = files.flatten().chain(self.names.unsynced()).collect();
        moments.push(Stamp(self.clock + 1));
        let chosen = random.random_range(0..moments.len());
        moments.swap_remove(chosen)
    }

    fn hold(&mut self, ino: Ino) {
        if let Some(node) = self.names.nodes.get_mut(&ino) {
            node.lookups += 1;
        }
    }

    fn enter(
        &mut self,
        parent: Ino,
        name: &OsStr,
        ino: Ino,
        kind: Kind,
        mode: u32,
    ) -> Result<Attributes, Errno> {
        let stamp = self.stamp();
        let node = Node { kind, mode: mode & 0o7777, lookups: 1, opened: 0 };
        self.names.link(parent, name, ino, node, stamp)?;
        self.attributes(ino)
    }

    fn attributes(&self, ino: Ino) -> Result<Attributes, Errno> {
        let node = self.names.nodes.get(&ino).ok_or(Errno::STALE)?;
        let (bytes, is_directory) = match &node.kind {
            Kind::File(contents) => (contents.len(), false),
            Kind::Directory(_) => (0, true),
        };
        Ok(Attributes { ino, bytes, is_directory, mode: node.mode })
    }

    fn used_bytes(&self) -> u64 {
        let files = self.names.nodes.values().filter_map(|node| match &node.kind {
            Kind::File(contents) => Some(contents.len().max(contents.reserved)),
            Kind::Directory(_) => None,
        });
        files.sum()
    }

    /// A full disk has no room for a new name either.
    fn make_room(&mut self, has: u64, wants: u64, name: bool) -> Result<(), Errno> {
        let Some(capacity) = self.capacity_bytes else { return Ok(()) };
        let used = self.used_bytes();
        let fits = used.saturating_add(wants.saturating_sub(has)) <= capacity;
        if (wants <= has && !name) || (fits && !(name && used >= capacity)) {
            return Ok(());
        }
        self.counters.no_space += 1;
        Err(Errno::NOSPC)
    }
}

fn errno(error: io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}
