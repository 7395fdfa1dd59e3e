//! A disk in memory that is as unkind as a real one may be, from a seed.
//!
//! What it knows of each file is the live bytes (what the running process reads) and, for each
//! 512-byte sector written since the last sync, the versions it had before. A power cut picks one
//! version per sector, so unsynced writes vanish, tear and change their order; directory entries
//! that were not synced are kept up to a point in their order. A killed process ([`kill`]) loses
//! nothing, because the page cache outlives it.
//!
//! | Fault | How |
//! |---|---|
//! | power cut | [`SimulatedDisk::cut_power`], or at an operation: [`SimulatedDisk::cut_power_at`] and then `cut_power` |
//! | write or sync error | [`SimulatedDisk::fail_at`]; what a failed sync covered looks clean and is lost in the next cut |
//! | full disk | [`SimulatedDisk::set_capacity`] |
//! | bit rot | [`SimulatedDisk::flip_bit`] |
//!
//! Handles and locks taken before a cut or a kill answer errors afterwards, like a process that is
//! gone.
//!
//! [`kill`]: SimulatedDisk::kill

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::{DirectoryLock, Disk, DiskFile};

const SECTOR_BYTES: usize = 512;
const PAGE_SECTORS: u64 = 8;

/// Clones share the disk: keep one to cut the power while the store has the other.
#[derive(Debug, Clone)]
pub struct SimulatedDisk(Arc<Mutex<World>>);

#[derive(Debug)]
struct World {
    random: StdRng,
    directories: BTreeSet<PathBuf>,
    names: BTreeMap<PathBuf, FileId>,
    /// The names as of the last `sync_directory` of each directory.
    durable_names: BTreeMap<PathBuf, FileId>,
    /// Changes of names since then, in order.
    unsynced_names: Vec<NameChange>,
    files: BTreeMap<FileId, Contents>,
    locks: BTreeMap<PathBuf, u64>,
    next_file: u64,
    /// Counts the lives of the process: handles of an earlier one are dead.
    life: u64,
    /// Operations that change something, since the disk was made.
    operations: u64,
    /// Operations that were answered with an error the disk was told to make.
    failures: u64,
    fail_at: Option<(u64, io::ErrorKind)>,
    cut_at: Option<u64>,
    /// The power went off at `cut_at` and everything fails until `cut_power` restores it.
    dark: bool,
    capacity_bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct FileId(u64);

#[derive(Debug, Clone)]
enum NameChange {
    Link { path: PathBuf, file: FileId },
    Rename { from: PathBuf, to: PathBuf },
    Unlink { path: PathBuf },
}

#[derive(Debug, Clone, Default)]
struct Contents {
    live: Vec<u8>,
    reserved: u64,
    durable_len: u64,
    /// Per sector the versions before the live one; the first is the durable one.
    dirty: BTreeMap<u64, Vec<Vec<u8>>>,
    /// Sectors a failed sync pretended to have written: the version that is really on the disk.
    lost: BTreeMap<u64, Vec<u8>>,
}

#[derive(Debug)]
struct SimulatedFile {
    world: Arc<Mutex<World>>,
    id: FileId,
    life: u64,
}

#[derive(Debug)]
struct SimulatedLock {
    world: Arc<Mutex<World>>,
    directory: PathBuf,
    life: u64,
}

/// How much of what was not synced a power cut keeps.
#[derive(Debug, Clone, Copy)]
enum Survival {
    Nothing,
    Everything,
    /// Each sector by itself takes any of its versions.
    Sectors,
    /// All sectors of a page take the same side.
    Pages,
}

impl SimulatedDisk {
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(World {
            random: StdRng::seed_from_u64(seed),
            directories: BTreeSet::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            unsynced_names: Vec::new(),
            files: BTreeMap::new(),
            locks: BTreeMap::new(),
            next_file: 0,
            life: 0,
            operations: 0,
            failures: 0,
            fail_at: None,
            cut_at: None,
            dark: false,
            capacity_bytes: u64::MAX,
        })))
    }

    /// Takes the power away and gives it back: what was not synced is kept, lost or torn.
    pub fn cut_power(&self) {
        let mut world = self.0.lock();
        let survival = match world.random.random_range(0..4) {
            0 => Survival::Nothing,
            1 => Survival::Everything,
            2 => Survival::Pages,
            _ => Survival::Sectors,
        };
        world.cut_power(survival);
    }

    /// As [`cut_power`](Self::cut_power), and everything that was not synced is gone.
    pub fn cut_power_losing_all(&self) {
        self.0.lock().cut_power(Survival::Nothing);
    }

    /// The process dies, the machine does not: everything written stays, locks are free.
    pub fn kill(&self) {
        let mut world = self.0.lock();
        world.life += 1;
        world.locks.clear();
    }

    /// The power goes off in the middle of the operation with this number (see `operations`); all
    /// calls fail from then on until `cut_power`.
    pub fn cut_power_at(&self, operation: u64) {
        self.0.lock().cut_at = Some(operation);
    }

    /// The operation with this number fails, once.
    pub fn fail_at(&self, operation: u64, kind: io::ErrorKind) {
        self.0.lock().fail_at = Some((operation, kind));
    }

    /// The medium is another one, and empty. Nobody may use the old one any more.
    pub fn erase(&self) {
        let mut world = self.0.lock();
        world.directories.clear();
        world.names.clear();
        world.durable_names.clear();
        world.unsynced_names.clear();
        world.files.clear();
        world.locks.clear();
    }

    pub fn set_capacity(&self, bytes: u64) {
        self.0.lock().capacity_bytes = bytes;
    }

    /// How many changing operations were started.
    pub fn operations(&self) -> u64 {
        self.0.lock().operations
    }

    /// How many operations failed because of `fail_at`, `cut_power_at` or `set_capacity`.
    pub fn failures(&self) -> u64 {
        self.0.lock().failures
    }

    /// Whether the power went off at the number given to `cut_power_at`.
    pub fn is_dark(&self) -> bool {
        self.0.lock().dark
    }

    /// Inverts a bit on the medium.
    pub fn flip_bit(&self, path: &Path, at: u64, bit: u8) {
        let mut world = self.0.lock();
        let contents = world.contents_of(path).expect("the file exists");
        let at = usize::try_from(at).expect("files fit into memory");
        let byte = contents.live.get_mut(at).expect("the byte exists");
        *byte ^= 1 << (bit % 8);
    }

    /// Replaces part of a file on the medium.
    pub fn overwrite(&self, path: &Path, at: u64, bytes: &[u8]) {
        let mut world = self.0.lock();
        let contents = world.contents_of(path).expect("the file exists");
        let at = usize::try_from(at).expect("files fit into memory");
        contents.live.get_mut(at..at + bytes.len()).expect("the range exists").copy_from_slice(bytes);
    }

    /// Removes a file from the medium, as an operator would.
    pub fn delete(&self, path: &Path) {
        let mut world = self.0.lock();
        world.names.remove(path).expect("the file exists");
        world.durable_names.remove(path);
    }

    pub fn contents(&self, path: &Path) -> Option<Vec<u8>> {
        self.0.lock().contents_of(path).map(|contents| contents.live.clone())
    }

    /// A disk with the same durable and live bytes and a generator of its own.
    pub fn fork(&self, seed: u64) -> Self {
        let world = self.0.lock();
        let forked = Self::new(seed);
        {
            let mut other = forked.0.lock();
            other.directories = world.directories.clone();
            other.names = world.names.clone();
            other.durable_names = world.names.clone();
            other.next_file = world.next_file;
            for (id, contents) in &world.files {
                let copy = Contents {
                    live: contents.live.clone(),
                    reserved: contents.reserved,
                    durable_len: contents.live.len() as u64,
                    ..Contents::default()
                };
                other.files.insert(*id, copy);
            }
        }
        forked
    }
}

impl SimulatedDisk {
    /// A disk with exactly what any power cut at this moment would leave.
    pub fn durable_fork(&self, seed: u64) -> Self {
        let world = self.0.lock();
        let forked = Self::new(seed);
        {
            let mut other = forked.0.lock();
            other.directories = world.directories.clone();
            other.names = world.names.clone();
            other.durable_names = world.durable_names.clone();
            other.unsynced_names = world.unsynced_names.clone();
            other.files = world.files.clone();
            other.next_file = world.next_file;
            other.cut_power(Survival::Nothing);
        }
        forked
    }
}

impl World {
    fn cut_power(&mut self, survival: Survival) {
        self.life += 1;
        self.locks.clear();
        self.dark = false;
        self.cut_at = None;

        let kept = match survival {
            Survival::Nothing => 0,
            Survival::Everything => self.unsynced_names.len(),
            Survival::Sectors | Survival::Pages => self.random.random_range(0..=self.unsynced_names.len()),
        };
        let changes = std::mem::take(&mut self.unsynced_names);
        let mut names = std::mem::take(&mut self.durable_names);
        for change in changes.into_iter().take(kept) {
            apply_name_change(&mut names, &change);
        }
        self.durable_names = names.clone();
        self.names = names;

        let named: BTreeSet<FileId> = self.names.values().copied().collect();
        self.files.retain(|id, _| named.contains(id));
        for contents in self.files.values_mut() {
            contents.cut_power(survival, &mut self.random);
        }
    }

    /// Every changing operation passes here first.
    fn begin(&mut self, life: u64) -> io::Result<Option<io::Error>> {
        self.alive(life)?;
        let operation = self.operations;
        self.operations += 1;
        if self.cut_at == Some(operation) {
            self.dark = true;
            self.failures += 1;
            return Ok(Some(io::Error::other("the power went off")));
        }
        if let Some((at, kind)) = self.fail_at
            && at == operation
        {
            self.fail_at = None;
            self.failures += 1;
            return Ok(Some(kind.into()));
        }
        Ok(None)
    }

    fn alive(&self, life: u64) -> io::Result<()> {
        if self.dark || life != self.life {
            return Err(io::Error::other("the power is off"));
        }
        Ok(())
    }

    fn contents_of(&mut self, path: &Path) -> Option<&mut Contents> {
        let id = self.names.get(path)?;
        self.files.get_mut(id)
    }

    fn used_bytes(&self) -> u64 {
        let named: BTreeSet<FileId> = self.names.values().copied().collect();
        let files = named.iter().filter_map(|id| self.files.get(id));
        files.map(|contents| contents.reserved.max(contents.live.len() as u64)).sum()
    }

    fn change_name(&mut self, change: NameChange) {
        apply_name_change(&mut self.names, &change);
        self.unsynced_names.push(change);
    }

    fn make_room(&mut self, id: FileId, len: u64) -> io::Result<()> {
        let has = self.files.get(&id).map_or(0, |c| c.reserved.max(c.live.len() as u64));
        if len > has && self.capacity_bytes != u64::MAX {
            let used = self.used_bytes();
            if used.saturating_add(len - has) > self.capacity_bytes {
                self.failures += 1;
                return Err(io::ErrorKind::StorageFull.into());
            }
        }
        Ok(())
    }
}

impl NameChange {
    fn touches(&self, directory: &Path) -> bool {
        let within = |path: &Path| path.parent() == Some(directory);
        match self {
            Self::Link { path, .. } | Self::Unlink { path } => within(path),
            Self::Rename { from, to } => within(from) || within(to),
        }
    }
}

fn apply_name_change(names: &mut BTreeMap<PathBuf, FileId>, change: &NameChange) {
    match change {
        NameChange::Link { path, file } => {
            names.insert(path.clone(), *file);
        }
        NameChange::Rename { from, to } => {
            if let Some(file) = names.remove(from) {
                names.insert(to.clone(), file);
            }
        }
        NameChange::Unlink { path } => {
            names.remove(path);
        }
    }
}

impl Contents {
    fn write(&mut self, at: usize, bytes: &[u8]) {
        let end = at + bytes.len();
        if bytes.is_empty() {
            return;
        }
        if self.live.len() < end {
            self.live.resize(end, 0);
        }
        for sector in at / SECTOR_BYTES..=(end - 1) / SECTOR_BYTES {
            let from = sector * SECTOR_BYTES;
            let to = (from + SECTOR_BYTES).min(self.live.len());
            let before = self.live.get(from..to).unwrap_or_default().to_vec();
            let versions = self.dirty.entry(sector as u64).or_default();
            match self.lost.remove(&(sector as u64)) {
                Some(on_disk) if versions.is_empty() => versions.extend([on_disk, before]),
                _ => versions.push(before),
            }
        }
        if let Some(place) = self.live.get_mut(at..end) {
            place.copy_from_slice(bytes);
        }
    }

    fn sync(&mut self) {
        self.dirty.clear();
        self.durable_len = self.live.len() as u64;
    }

    /// What Linux does: the pages are clean afterwards, and the disk has the old ones.
    fn fail_sync(&mut self) {
        for (sector, versions) in std::mem::take(&mut self.dirty) {
            if let Some(on_disk) = versions.into_iter().next() {
                self.lost.entry(sector).or_insert(on_disk);
            }
        }
    }

    fn cut_power(&mut self, survival: Survival, random: &mut StdRng) {
        for (sector, version) in std::mem::take(&mut self.lost) {
            self.put_sector(sector, &version);
        }
        let chance = random.random_range(0.0..1.0);
        let mut page_kept = (u64::MAX, false);
        for (sector, mut versions) in std::mem::take(&mut self.dirty) {
            let keep_live = match survival {
                Survival::Nothing => false,
                Survival::Everything => true,
                Survival::Sectors => random.random_bool(chance),
                Survival::Pages => {
                    if page_kept.0 != sector / PAGE_SECTORS {
                        page_kept = (sector / PAGE_SECTORS, random.random_bool(chance));
                    }
                    page_kept.1
                }
            };
            if keep_live {
                continue;
            }
            let pick = match survival {
                Survival::Sectors => random.random_range(0..versions.len()),
                _ => 0,
            };
            let version = versions.swap_remove(pick);
            self.put_sector(sector, &version);
        }
        let live_len = self.live.len() as u64;
        let len = match survival {
            Survival::Nothing => self.durable_len,
            Survival::Everything => live_len,
            _ if live_len > self.durable_len => random.random_range(self.durable_len..=live_len),
            _ => live_len,
        };
        self.live.resize(usize::try_from(len).unwrap_or(usize::MAX), 0);
        self.durable_len = len;
    }

    fn put_sector(&mut self, sector: u64, version: &[u8]) {
        let from = usize::try_from(sector).unwrap_or(usize::MAX).saturating_mul(SECTOR_BYTES);
        let to = (from + SECTOR_BYTES).min(self.live.len());
        if let Some(place) = self.live.get_mut(from..to) {
            place.fill(0);
            let common = place.len().min(version.len());
            if let (Some(place), Some(version)) = (place.get_mut(..common), version.get(..common)) {
                place.copy_from_slice(version);
            }
        }
    }
}

impl SimulatedDisk {
    fn file(&self, id: FileId, life: u64) -> Arc<dyn DiskFile> {
        Arc::new(SimulatedFile { world: Arc::clone(&self.0), id, life })
    }
}

impl Disk for SimulatedDisk {
    fn create_directory(&self, path: &Path) -> io::Result<()> {
        let mut world = self.0.lock();
        let life = world.life;
        world.alive(life)?;
        for ancestor in path.ancestors() {
            world.directories.insert(ancestor.to_path_buf());
        }
        Ok(())
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let mut world = self.0.lock();
        let life = world.life;
        let fault = world.begin(life)?;
        if !path.parent().is_some_and(|parent| world.directories.contains(parent)) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let id = FileId(world.next_file);
        world.next_file += 1;
        world.files.insert(id, Contents::default());
        world.change_name(NameChange::Link { path: path.to_path_buf(), file: id });
        match fault {
            Some(fault) => Err(fault),
            None => Ok(self.file(id, life)),
        }
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let world = self.0.lock();
        world.alive(world.life)?;
        let id = *world.names.get(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(self.file(id, world.life))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut world = self.0.lock();
        let life = world.life;
        let fault = world.begin(life)?;
        if !world.names.contains_key(from) {
            return Err(io::ErrorKind::NotFound.into());
        }
        world.change_name(NameChange::Rename { from: from.to_path_buf(), to: to.to_path_buf() });
        fault.map_or(Ok(()), Err)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut world = self.0.lock();
        let life = world.life;
        let fault = world.begin(life)?;
        if !world.names.contains_key(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        world.change_name(NameChange::Unlink { path: path.to_path_buf() });
        fault.map_or(Ok(()), Err)
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<String>> {
        let world = self.0.lock();
        world.alive(world.life)?;
        if !world.directories.contains(directory) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let names = world.names.keys().filter(|path| path.parent() == Some(directory));
        Ok(names.filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned())).collect())
    }

    fn sync_directory(&self, directory: &Path) -> io::Result<()> {
        let mut world = self.0.lock();
        let life = world.life;
        if let Some(fault) = world.begin(life)? {
            return Err(fault);
        }
        let changes = std::mem::take(&mut world.unsynced_names);
        let (synced, rest) = changes.into_iter().partition(|change| change.touches(directory));
        let synced: Vec<NameChange> = synced;
        for change in &synced {
            apply_name_change(&mut world.durable_names, change);
        }
        world.unsynced_names = rest;
        Ok(())
    }

    fn lock(&self, directory: &Path) -> io::Result<Box<dyn DirectoryLock>> {
        let mut world = self.0.lock();
        let life = world.life;
        world.alive(life)?;
        if world.locks.contains_key(directory) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        world.locks.insert(directory.to_path_buf(), life);
        let directory = directory.to_path_buf();
        Ok(Box::new(SimulatedLock { world: Arc::clone(&self.0), directory, life }))
    }
}

impl DirectoryLock for SimulatedLock {}

impl Drop for SimulatedLock {
    fn drop(&mut self) {
        let mut world = self.world.lock();
        // A lock of an earlier life went with the process; the entry may be its successor's.
        if world.locks.get(&self.directory) == Some(&self.life) {
            world.locks.remove(&self.directory);
        }
    }
}

impl SimulatedFile {
    fn change(&self, len: u64, change: impl FnOnce(&mut Contents)) -> io::Result<()> {
        let mut world = self.world.lock();
        let fault = world.begin(self.life)?;
        world.make_room(self.id, len)?;
        let dark = world.dark;
        let contents = world.files.get_mut(&self.id).ok_or(io::ErrorKind::NotFound)?;
        match fault {
            // A write cut by the power may have reached the disk in part; a failed one did not.
            Some(fault) if dark => {
                change(contents);
                Err(fault)
            }
            Some(fault) => Err(fault),
            None => {
                change(contents);
                Ok(())
            }
        }
    }
}

impl DiskFile for SimulatedFile {
    fn write_vectored_at(&self, parts: &[IoSlice<'_>], at: u64) -> io::Result<()> {
        let joined: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
        let from = usize::try_from(at).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        self.change(at + joined.len() as u64, |contents| contents.write(from, &joined))
    }

    fn read_at(&self, into: &mut [u8], at: u64) -> io::Result<usize> {
        let world = self.world.lock();
        world.alive(self.life)?;
        let contents = world.files.get(&self.id).ok_or(io::ErrorKind::NotFound)?;
        let from = usize::try_from(at).unwrap_or(usize::MAX).min(contents.live.len());
        let available = contents.live.get(from..).unwrap_or_default();
        let count = available.len().min(into.len());
        if let (Some(into), Some(from)) = (into.get_mut(..count), available.get(..count)) {
            into.copy_from_slice(from);
        }
        Ok(count)
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut world = self.world.lock();
        let fault = world.begin(self.life)?;
        let dark = world.dark;
        let contents = world.files.get_mut(&self.id).ok_or(io::ErrorKind::NotFound)?;
        match fault {
            // The power went off during the sync: the cut decides what reached the disk.
            Some(fault) if dark => Err(fault),
            Some(fault) => {
                contents.fail_sync();
                Err(fault)
            }
            None => {
                contents.sync();
                Ok(())
            }
        }
    }

    fn byte_len(&self) -> io::Result<u64> {
        let world = self.world.lock();
        world.alive(self.life)?;
        let contents = world.files.get(&self.id).ok_or(io::ErrorKind::NotFound)?;
        Ok(contents.live.len() as u64)
    }

    fn reserve(&self, len: u64) -> io::Result<()> {
        self.change(len, |contents| contents.reserved = contents.reserved.max(len))
    }

    fn zero_fill(&self, at: u64, len: u64) -> io::Result<()> {
        let zeros = vec![0; usize::try_from(len).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?];
        self.write_at(&zeros, at)
    }

    fn map(&self, at: u64, len: usize) -> io::Result<Bytes> {
        let mut bytes = vec![0; len];
        if self.read_at(&mut bytes, at)? < len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(bytes.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(seed: u64) -> (SimulatedDisk, PathBuf) {
        let disk = SimulatedDisk::new(seed);
        let directory = PathBuf::from("/d");
        disk.create_directory(&directory).unwrap();
        (disk, directory)
    }

    #[test]
    fn synced_bytes_survive_every_power_cut_and_unsynced_ones_some() {
        let mut outcomes = BTreeSet::new();
        for seed in 0..200 {
            let (disk, directory) = disk(seed);
            let path = directory.join("f");
            let file = disk.create(&path).unwrap();
            file.write_at(&[1; 4096], 0).unwrap();
            file.sync_data().unwrap();
            disk.sync_directory(&directory).unwrap();
            file.write_at(&[2; 2048], 1024).unwrap();
            disk.cut_power();
            let after = disk.contents(&path).expect("its name was synced");
            assert!(after[..1024].iter().all(|byte| *byte == 1));
            assert!(after[3072..].iter().all(|byte| *byte == 1));
            let torn: Vec<u8> = after[1024..3072].chunks(SECTOR_BYTES).map(|sector| sector[0]).collect();
            outcomes.insert(torn);
            assert!(file.read_at(&mut [0; 1], 0).is_err(), "a handle from before the cut is dead");
        }
        assert!(outcomes.len() > 8, "only {outcomes:?}");
    }

    #[test]
    fn a_name_that_was_not_synced_may_vanish_and_an_unlink_may_come_back() {
        let (mut lost, mut returned) = (false, false);
        for seed in 0..100 {
            let (disk, directory) = disk(seed);
            disk.create(&directory.join("old")).unwrap();
            disk.sync_directory(&directory).unwrap();
            disk.create(&directory.join("new")).unwrap();
            disk.remove(&directory.join("old")).unwrap();
            disk.cut_power();
            let names = disk.list(&directory).unwrap();
            lost |= !names.contains(&"new".to_owned());
            returned |= names.contains(&"old".to_owned());
        }
        assert!(lost && returned);
    }

    #[test]
    fn a_failed_sync_loses_what_it_covered_even_if_the_next_one_succeeds() {
        let (disk, directory) = disk(7);
        let path = directory.join("f");
        let file = disk.create(&path).unwrap();
        file.zero_fill(0, 4096).unwrap();
        file.sync_data().unwrap();
        disk.sync_directory(&directory).unwrap();
        file.write_at(&[9; 512], 0).unwrap();
        disk.fail_at(disk.operations(), io::ErrorKind::Other);
        assert!(file.sync_data().is_err());
        file.sync_data().unwrap();
        disk.cut_power();
        assert_eq!(disk.contents(&path).unwrap()[..512], [0; 512]);
    }

    #[test]
    fn a_full_disk_says_so_and_reserved_space_is_not_taken_twice() {
        let (disk, directory) = disk(1);
        disk.set_capacity(8192);
        let file = disk.create(&directory.join("f")).unwrap();
        file.reserve(8192).unwrap();
        file.zero_fill(0, 8192).unwrap();
        let other = disk.create(&directory.join("g")).unwrap();
        assert_eq!(other.write_at(&[1], 0).unwrap_err().kind(), io::ErrorKind::StorageFull);
    }
}
