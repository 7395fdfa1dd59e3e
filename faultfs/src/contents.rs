//! One file: durable bytes in its object, and what was written since in memory.
//!
//! | Part | Read by the process | After a power cut |
//! |---|---|---|
//! | object | where nothing below covers it | as it is |
//! | `unsynced` | the last version of each sector | any one version, or none |
//! | `lost` | yes: the page cache has it | no: a failed sync only looked like one |

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, LazyLock};

use rand::Rng as _;
use rand::rngs::StdRng;

use crate::disk::Survival;

pub const SECTOR_BYTES: usize = 512;
const PAGE_SECTORS: u64 = 8;
/// Versions kept of one sector; older ones can no longer be what a power cut leaves.
const VERSIONS_MAX: usize = 8;
const LENGTHS_MAX: usize = 64;
/// Durable bytes are written in runs of at most this many.
const RUN_BYTES_MAX: usize = 1 << 20;

type Sector = Arc<[u8; SECTOR_BYTES]>;

static ZERO: LazyLock<Sector> = LazyLock::new(|| Arc::new([0; SECTOR_BYTES]));

/// The place of a change in the order of all changes of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stamp(pub u64);

/// What a power cut did to one file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Loss {
    pub dropped_bytes: u64,
    pub kept_bytes: u64,
}

#[derive(Debug)]
pub struct Contents {
    object: File,
    durable_len: u64,
    /// Lengths since the last sync, in order.
    lengths: Vec<(Stamp, u64)>,
    lost_len: Option<u64>,
    /// Versions of each sector since the last sync, in order.
    unsynced: BTreeMap<u64, Vec<(Stamp, Sector)>>,
    lost: BTreeMap<u64, Sector>,
    /// Space set aside; for the capacity only.
    pub reserved: u64,
}

impl Contents {
    /// An empty file whose durable bytes go to `object`.
    pub fn new(object: File) -> Self {
        Self {
            object,
            durable_len: 0,
            lengths: Vec::new(),
            lost_len: None,
            unsynced: BTreeMap::new(),
            lost: BTreeMap::new(),
            reserved: 0,
        }
    }

    pub fn len(&self) -> u64 {
        self.lengths.last().map(|(_, len)| *len).or(self.lost_len).unwrap_or(self.durable_len)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn durable_len(&self) -> u64 {
        self.durable_len
    }

    pub fn unsynced_bytes(&self) -> u64 {
        self.unsynced.len() as u64 * SECTOR_BYTES as u64
    }

    /// When something was changed that is not synced.
    pub fn unsynced(&self) -> impl Iterator<Item = Stamp> + '_ {
        self.unsynced.values().flatten().map(|(stamp, _)| *stamp)
    }

    /// Up to `len` bytes from `at` on, fewer at the end of the file.
    pub fn read(&self, at: u64, len: usize) -> io::Result<Vec<u8>> {
        let left = usize::try_from(self.len().saturating_sub(at)).unwrap_or(usize::MAX);
        let mut bytes = vec![0; len.min(left)];
        if bytes.is_empty() {
            return Ok(bytes);
        }
        read_object(&self.object, &mut bytes, at)?;
        let first = at / SECTOR_BYTES as u64;
        let last = (at + bytes.len() as u64 - 1) / SECTOR_BYTES as u64;
        for (sector, content) in self.lost.range(first..=last) {
            overlay(&mut bytes, at, *sector, content);
        }
        for (sector, versions) in self.unsynced.range(first..=last) {
            if let Some((_, content)) = versions.last() {
                overlay(&mut bytes, at, *sector, content);
            }
        }
        Ok(bytes)
    }

    /// The sectors of one write have stamps of their own, from `first` on, because a write may tear
    /// between any two of them; answers the stamp behind the last.
    pub fn write(&mut self, at: u64, bytes: &[u8], first: Stamp) -> io::Result<Stamp> {
        let mut position = at;
        let mut rest = bytes;
        let mut stamp = first;
        while !rest.is_empty() {
            let sector = position / SECTOR_BYTES as u64;
            let skip = (position % SECTOR_BYTES as u64) as usize;
            let (part, behind) = rest.split_at(rest.len().min(SECTOR_BYTES - skip));
            let content = if part.len() == SECTOR_BYTES && part.iter().all(|byte| *byte == 0) {
                Arc::clone(&ZERO)
            } else {
                let mut content = if part.len() == SECTOR_BYTES { **ZERO } else { self.sector(sector)? };
                if let Some(place) = content.get_mut(skip..skip + part.len()) {
                    place.copy_from_slice(part);
                }
                Arc::new(content)
            };
            self.put(sector, content, stamp);
            position += part.len() as u64;
            if position > self.len() {
                self.set_length(position, stamp);
            }
            rest = behind;
            stamp = Stamp(stamp.0 + 1);
        }
        Ok(stamp)
    }

    /// Cuts or extends the file; what is behind a cut reads as zeros if the file grows again.
    pub fn truncate(&mut self, len: u64, stamp: Stamp) -> io::Result<()> {
        let before = self.len();
        if len < before {
            let first = len / SECTOR_BYTES as u64;
            let keep = (len % SECTOR_BYTES as u64) as usize;
            if keep > 0 {
                let mut content = self.sector(first)?;
                content.get_mut(keep..).unwrap_or_default().fill(0);
                self.put(first, Arc::new(content), stamp);
            }
            let from = first + u64::from(keep > 0);
            for sector in from..before.max(self.durable_len).div_ceil(SECTOR_BYTES as u64) {
                self.put(sector, Arc::clone(&ZERO), stamp);
            }
        }
        if len != before {
            self.set_length(len, stamp);
        }
        Ok(())
    }

    /// Everything written so far is durable on return, but for what an earlier sync lost.
    pub fn sync(&mut self, through: bool) -> io::Result<()> {
        let len = self.len();
        let sectors = std::mem::take(&mut self.unsynced);
        let latest =
            sectors.into_iter().filter_map(|(sector, mut versions)| Some((sector, versions.pop()?.1)));
        write_object(&self.object, latest)?;
        self.object.set_len(len)?;
        self.durable_len = len;
        self.lengths.clear();
        self.lost_len = None;
        if through {
            self.object.sync_data()?;
        }
        Ok(())
    }

    /// What Linux does when the disk refuses: the pages count as written, and the disk has the old
    /// ones.
    pub fn fail_sync(&mut self) {
        self.lost_len = Some(self.len());
        self.lengths.clear();
        for (sector, mut versions) in std::mem::take(&mut self.unsynced) {
            if let Some((_, content)) = versions.pop() {
                self.lost.insert(sector, content);
            }
        }
    }

    /// `cut` is the stamp before which changes were kept where the survival keeps an order.
    pub fn cut_power(&mut self, survival: Survival, cut: Stamp, random: &mut StdRng) -> io::Result<Loss> {
        let mut loss = Loss { dropped_bytes: self.lost.len() as u64 * SECTOR_BYTES as u64, kept_bytes: 0 };
        self.lost.clear();
        self.lost_len = None;
        let chance = random.random_range(0.0..1.0);
        let mut page = (u64::MAX, false);
        let mut kept = BTreeMap::new();
        for (sector, mut versions) in std::mem::take(&mut self.unsynced) {
            let last = versions.len().saturating_sub(1);
            let chosen = match survival {
                Survival::Nothing => None,
                Survival::Everything => Some(last),
                Survival::Prefix => versions.iter().rposition(|(stamp, _)| *stamp < cut),
                Survival::Sectors => {
                    random.random_bool(chance).then(|| random.random_range(0..versions.len().max(1)))
                }
                Survival::Pages => {
                    if page.0 != sector / PAGE_SECTORS {
                        page = (sector / PAGE_SECTORS, random.random_bool(chance));
                    }
                    page.1.then_some(last)
                }
            };
            if chosen != Some(last) {
                loss.dropped_bytes += SECTOR_BYTES as u64;
            }
            if let Some(chosen) = chosen.filter(|chosen| *chosen < versions.len()) {
                loss.kept_bytes += SECTOR_BYTES as u64;
                kept.insert(sector, versions.swap_remove(chosen).1);
            }
        }
        let lengths = std::mem::take(&mut self.lengths);
        let len = match survival {
            Survival::Nothing => None,
            Survival::Everything => lengths.last(),
            Survival::Prefix => lengths.iter().rfind(|(stamp, _)| *stamp < cut),
            Survival::Sectors | Survival::Pages => lengths.get(random.random_range(0..=lengths.len())),
        };
        let len = len.map_or(self.durable_len, |(_, len)| *len);
        write_object(&self.object, kept.into_iter())?;
        self.object.set_len(len)?;
        self.durable_len = len;
        Ok(loss)
    }

    /// Changes durable bytes and nothing else; answers how many changed.
    pub fn corrupt(&mut self, at: u64, change: impl Fn(usize, u8) -> u8, len: u64) -> io::Result<u64> {
        let len = len.min(self.durable_len.saturating_sub(at));
        let mut bytes = vec![0; usize::try_from(len).map_err(|_| io::ErrorKind::InvalidInput)?];
        read_object(&self.object, &mut bytes, at)?;
        let mut changed = 0;
        for (place, byte) in bytes.iter_mut().enumerate() {
            let to = change(place, *byte);
            changed += u64::from(to != *byte);
            *byte = to;
        }
        self.object.write_all_at(&bytes, at)?;
        Ok(changed)
    }

    fn put(&mut self, sector: u64, content: Sector, stamp: Stamp) {
        self.lost.remove(&sector);
        let versions = self.unsynced.entry(sector).or_default();
        if versions.len() >= VERSIONS_MAX {
            versions.remove(0);
        }
        versions.push((stamp, content));
    }

    fn set_length(&mut self, len: u64, stamp: Stamp) {
        if self.lengths.len() >= LENGTHS_MAX {
            self.lengths.remove(0);
        }
        self.lengths.push((stamp, len));
    }

    fn sector(&self, sector: u64) -> io::Result<[u8; SECTOR_BYTES]> {
        let unsynced = self.unsynced.get(&sector).and_then(|versions| versions.last());
        if let Some(content) = unsynced.map(|(_, content)| content).or_else(|| self.lost.get(&sector)) {
            return Ok(**content);
        }
        let mut content = [0; SECTOR_BYTES];
        read_object(&self.object, &mut content, sector * SECTOR_BYTES as u64)?;
        Ok(content)
    }
}

/// Zeros behind the end of the object.
fn read_object(object: &File, into: &mut [u8], at: u64) -> io::Result<()> {
    let mut filled = 0;
    while let Some(rest) = into.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match object.read_at(rest, at + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    into.get_mut(filled..).unwrap_or_default().fill(0);
    Ok(())
}

/// Sectors in ascending order, neighbours in one write.
fn write_object(object: &File, sectors: impl Iterator<Item = (u64, Sector)>) -> io::Result<()> {
    let mut run = Vec::new();
    let mut begin = 0;
    for (sector, content) in sectors {
        let end = begin + (run.len() / SECTOR_BYTES) as u64;
        if sector != end || run.len() >= RUN_BYTES_MAX {
            object.write_all_at(&run, begin * SECTOR_BYTES as u64)?;
            run.clear();
            begin = sector;
        }
        run.extend_from_slice(&content[..]);
    }
    object.write_all_at(&run, begin * SECTOR_BYTES as u64)
}

/// Copies the part of a sector that lies in the range that begins at `at`.
fn overlay(bytes: &mut [u8], at: u64, sector: u64, content: &Sector) {
    let sector_at = sector * SECTOR_BYTES as u64;
    let from = sector_at.max(at);
    let to = (sector_at + SECTOR_BYTES as u64).min(at + bytes.len() as u64);
    if from >= to {
        return;
    }
    let within = (from - sector_at) as usize..(to - sector_at) as usize;
    let place = bytes.get_mut((from - at) as usize..(to - at) as usize);
    if let (Some(place), Some(part)) = (place, content.get(within)) {
        place.copy_from_slice(part);
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;

    use super::*;

    fn file() -> Contents {
        Contents::new(tempfile::tempfile().unwrap())
    }

    fn random() -> StdRng {
        StdRng::seed_from_u64(1)
    }

    #[test]
    fn a_cut_before_any_write_of_a_tail_leaves_exactly_the_writes_before_it() {
        // Ten writes of 700 bytes, so that sectors are shared; the power goes before each of them.
        for cut in 0..=10u64 {
            let mut contents = file();
            contents.write(0, &[9; 300], Stamp(0)).unwrap();
            contents.sync(false).unwrap();
            let mut expected = vec![9; 300];
            for write in 0..10u64 {
                let at = 300 + write * 700;
                contents.write(at, &[write as u8 + 1; 700], Stamp((write + 1) * 100)).unwrap();
                if write < cut {
                    expected.resize((at + 700) as usize, write as u8 + 1);
                }
            }
            assert_eq!(contents.len(), 7300);
            contents.cut_power(Survival::Prefix, Stamp((cut + 1) * 100), &mut random()).unwrap();
            assert_eq!(contents.read(0, 10_000).unwrap(), expected, "the power went before write {cut}");
        }
    }

    #[test]
    fn one_write_tears_between_any_two_of_its_sectors() {
        for kept in 0..=5u64 {
            let mut contents = file();
            contents.write(0, &[1; 300], Stamp(0)).unwrap();
            contents.sync(false).unwrap();
            // Five sectors: the rest of the first, three whole ones, the begin of the last.
            assert_eq!(contents.write(300, &[2; 2048], Stamp(10)).unwrap(), Stamp(15));
            contents.cut_power(Survival::Prefix, Stamp(10 + kept), &mut random()).unwrap();
            let mut expected = vec![1; 300];
            expected.resize([300, 512, 1024, 1536, 2048, 2348][kept as usize], 2);
            assert_eq!(contents.read(0, 10_000).unwrap(), expected);
        }
    }

    #[test]
    fn a_power_cut_drops_the_unsynced_and_counts_it() {
        let mut contents = file();
        contents.write(0, &[1; 2048], Stamp(1)).unwrap();
        contents.sync(false).unwrap();
        contents.write(512, &[2; 4096], Stamp(2)).unwrap();
        assert_eq!(contents.read(0, 8192).unwrap().len(), 4608);
        let loss = contents.cut_power(Survival::Nothing, Stamp(0), &mut random()).unwrap();
        assert_eq!(loss, Loss { dropped_bytes: 4096, kept_bytes: 0 });
        assert_eq!(contents.read(0, 8192).unwrap(), vec![1; 2048]);
    }

    #[test]
    fn sectors_are_kept_one_by_one_but_each_is_a_version_that_was_written() {
        let mut seen_torn = false;
        for seed in 0..50 {
            let mut random = StdRng::seed_from_u64(seed);
            let mut contents = file();
            contents.write(0, &[1; 4096], Stamp(1)).unwrap();
            contents.sync(false).unwrap();
            contents.write(0, &[2; 4096], Stamp(2)).unwrap();
            contents.write(0, &[3; 4096], Stamp(3)).unwrap();
            let loss = contents.cut_power(Survival::Sectors, Stamp(0), &mut random).unwrap();
            let bytes = contents.read(0, 4096).unwrap();
            for sector in bytes.chunks(SECTOR_BYTES) {
                assert!((1..=3).contains(&sector[0]) && sector.iter().all(|byte| *byte == sector[0]));
            }
            let first = bytes.chunks(SECTOR_BYTES).filter(|sector| sector[0] == 1).count();
            assert_eq!(loss.kept_bytes, ((8 - first) * SECTOR_BYTES) as u64);
            seen_torn |= bytes.chunks(SECTOR_BYTES).any(|sector| sector[0] != bytes[0]);
        }
        assert!(seen_torn);
    }

    #[test]
    fn after_a_failed_sync_the_bytes_are_seen_until_the_power_goes_and_no_later_sync_saves_them() {
        let mut contents = file();
        contents.write(0, &[1; 1024], Stamp(1)).unwrap();
        contents.sync(false).unwrap();
        contents.write(0, &[2; 1024], Stamp(2)).unwrap();
        contents.fail_sync();
        contents.write(1024, &[3; 512], Stamp(3)).unwrap();
        contents.sync(false).unwrap();
        assert_eq!(contents.read(0, 512).unwrap(), vec![2; 512]);
        let loss = contents.cut_power(Survival::Everything, Stamp(9), &mut random()).unwrap();
        assert_eq!(loss.dropped_bytes, 1024);
        assert_eq!(contents.read(0, 1024).unwrap(), vec![1; 1024]);
        assert_eq!(contents.read(1024, 512).unwrap(), vec![3; 512]);
    }

    #[test]
    fn a_file_that_was_cut_and_grew_again_has_zeros_between() {
        let mut contents = file();
        contents.write(0, &[1; 3000], Stamp(1)).unwrap();
        contents.sync(false).unwrap();
        contents.truncate(700, Stamp(2)).unwrap();
        contents.truncate(3000, Stamp(3)).unwrap();
        let mut expected = vec![1; 700];
        expected.resize(3000, 0);
        assert_eq!(contents.read(0, 3000).unwrap(), expected);
        contents.sync(false).unwrap();
        assert_eq!(contents.read(0, 3000).unwrap(), expected);
        contents.truncate(0, Stamp(4)).unwrap();
        contents.cut_power(Survival::Nothing, Stamp(0), &mut random()).unwrap();
        assert_eq!(contents.read(0, 3000).unwrap(), expected, "the cut was not synced");
    }

    #[test]
    fn corruption_changes_durable_bytes_only() {
        let mut contents = file();
        contents.write(0, &[1; 1024], Stamp(1)).unwrap();
        contents.sync(false).unwrap();
        assert_eq!(contents.corrupt(500, |_, byte| !byte, 20).unwrap(), 20);
        assert_eq!(contents.corrupt(0, |_, byte| byte, 20).unwrap(), 0);
        let bytes = contents.read(0, 1024).unwrap();
        assert_eq!(bytes.iter().filter(|byte| **byte == 0xfe).count(), 20);
    }
}
