//! Directories: the live names, the durable ones, and the changes between them in order.
//!
//! A synced directory makes the changes that touch it durable, in their order. A power cut keeps
//! the first so many of the rest.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};

use rustix::io::Errno;

use crate::contents::{Contents, Stamp};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ino(pub u64);

pub const ROOT: Ino = Ino(1);

#[derive(Debug, Default)]
pub struct Directory {
    pub live: BTreeMap<OsString, Ino>,
    durable: BTreeMap<OsString, Ino>,
}

#[derive(Debug)]
pub enum Kind {
    File(Contents),
    Directory(Directory),
}

#[derive(Debug)]
pub struct Node {
    pub kind: Kind,
    pub mode: u32,
    /// References the kernel holds.
    pub lookups: u64,
    pub opened: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Change {
    Link { parent: Ino, name: OsString, ino: Ino },
    Unlink { parent: Ino, name: OsString },
    Rename { from: (Ino, OsString), to: (Ino, OsString), ino: Ino },
}

#[derive(Debug)]
pub struct Names {
    pub nodes: BTreeMap<Ino, Node>,
    unsynced: Vec<(Stamp, Change)>,
    next: u64,
}

impl Default for Names {
    fn default() -> Self {
        let root = Node { kind: Kind::Directory(Directory::default()), mode: 0o755, lookups: 1, opened: 0 };
        Self { nodes: BTreeMap::from([(ROOT, root)]), unsynced: Vec::new(), next: ROOT.0 + 1 }
    }
}

impl Names {
    pub fn new_ino(&mut self) -> Ino {
        let ino = Ino(self.next);
        self.next += 1;
        ino
    }

    pub fn directory(&self, ino: Ino) -> Result<&Directory, Errno> {
        match self.nodes.get(&ino).map(|node| &node.kind) {
            Some(Kind::Directory(directory)) => Ok(directory),
            Some(Kind::File(_)) => Err(Errno::NOTDIR),
            None => Err(Errno::STALE),
        }
    }

    fn directory_mut(&mut self, ino: Ino) -> Result<&mut Directory, Errno> {
        match self.nodes.get_mut(&ino).map(|node| &mut node.kind) {
            Some(Kind::Directory(directory)) => Ok(directory),
            Some(Kind::File(_)) => Err(Errno::NOTDIR),
            None => Err(Errno::STALE),
        }
    }

    pub fn file(&self, ino: Ino) -> Result<&Contents, Errno> {
        match self.nodes.get(&ino).map(|node| &node.kind) {
            Some(Kind::File(contents)) => Ok(contents),
            Some(Kind::Directory(_)) => Err(Errno::ISDIR),
            None => Err(Errno::STALE),
        }
    }

    pub fn file_mut(&mut self, ino: Ino) -> Result<&mut Contents, Errno> {
        match self.nodes.get_mut(&ino).map(|node| &mut node.kind) {
            Some(Kind::File(contents)) => Ok(contents),
            Some(Kind::Directory(_)) => Err(Errno::ISDIR),
            None => Err(Errno::STALE),
        }
    }

    pub fn lookup(&self, parent: Ino, name: &OsStr) -> Result<Ino, Errno> {
        self.directory(parent)?.live.get(name).copied().ok_or(Errno::NOENT)
    }

    /// The file at a path below the root, by its live names.
    pub fn find(&self, path: &str) -> Result<Ino, Errno> {
        path.split('/')
            .filter(|part| !part.is_empty())
            .try_fold(ROOT, |parent, part| self.lookup(parent, OsStr::new(part)))
    }

    pub fn link(
        &mut self,
        parent: Ino,
        name: &OsStr,
        ino: Ino,
        node: Node,
        stamp: Stamp,
    ) -> Result<(), Errno> {
        let directory = self.directory_mut(parent)?;
        if directory.live.contains_key(name) {
            return Err(Errno::EXIST);
        }
        directory.live.insert(name.to_owned(), ino);
        self.nodes.insert(ino, node);
        self.unsynced.push((stamp, Change::Link { parent, name: name.to_owned(), ino }));
        Ok(())
    }

    pub fn unlink(&mut self, parent: Ino, name: &OsStr, directory: bool, stamp: Stamp) -> Result<(), Errno> {
        let ino = self.lookup(parent, name)?;
        match self.directory(ino) {
            Ok(_) if !directory => return Err(Errno::ISDIR),
            Ok(found) if !found.live.is_empty() => return Err(Errno::NOTEMPTY),
            Err(_) if directory => return Err(Errno::NOTDIR),
            _ => {}
        }
        self.directory_mut(parent)?.live.remove(name);
        self.unsynced.push((stamp, Change::Unlink { parent, name: name.to_owned() }));
        Ok(())
    }

    /// Replaces `to` if it is there.
    pub fn rename(&mut self, from: (Ino, &OsStr), to: (Ino, &OsStr), stamp: Stamp) -> Result<(), Errno> {
        let ino = self.lookup(from.0, from.1)?;
        if let Ok(replaced) = self.lookup(to.0, to.1) {
            match (self.directory(ino).is_ok(), self.directory(replaced)) {
                (true, Ok(replaced)) if !replaced.live.is_empty() => return Err(Errno::NOTEMPTY),
                (true, Err(_)) => return Err(Errno::NOTDIR),
                (false, Ok(_)) => return Err(Errno::ISDIR),
                _ => {}
            }
        }
        self.directory(to.0)?;
        self.directory_mut(from.0)?.live.remove(from.1);
        self.directory_mut(to.0)?.live.insert(to.1.to_owned(), ino);
        let own = |place: (Ino, &OsStr)| (place.0, place.1.to_owned());
        self.unsynced.push((stamp, Change::Rename { from: own(from), to: own(to), ino }));
        Ok(())
    }

    /// The changes in this directory are durable.
    pub fn sync_directory(&mut self, directory: Ino) {
        let all = std::mem::take(&mut self.unsynced);
        let (durable, rest): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|(_, change)| change.directories().any(|of| of == directory));
        self.unsynced = rest;
        for (_, change) in durable {
            self.make_durable(&change);
        }
    }

    /// Keeps the changes before `cut`, forgets the others, and shows what is durable. Answers how
    /// many were kept and how many dropped.
    pub fn cut_power(&mut self, cut: Stamp) -> (u64, u64) {
        let all = std::mem::take(&mut self.unsynced);
        let count = all.len() as u64;
        let mut kept = 0;
        for (_, change) in all.into_iter().filter(|(stamp, _)| *stamp < cut) {
            self.make_durable(&change);
            kept += 1;
        }
        for node in self.nodes.values_mut() {
            node.lookups = 0;
            node.opened = 0;
            if let Kind::Directory(directory) = &mut node.kind {
                directory.live = directory.durable.clone();
            }
        }
        (kept, count - kept)
    }

    /// When something was changed that is not synced.
    pub fn unsynced(&self) -> impl Iterator<Item = Stamp> + '_ {
        self.unsynced.iter().map(|(stamp, _)| *stamp)
    }

    /// Nodes that no name leads to, now or after a power cut, and that nobody has open. What was
    /// still to become durable in such directories is forgotten.
    pub fn unreachable(&mut self) -> Vec<Ino> {
        let mut to_come: BTreeMap<Ino, Vec<Ino>> = BTreeMap::new();
        for (_, change) in &self.unsynced {
            if let Some((parent, ino)) = change.brings() {
                to_come.entry(parent).or_default().push(ino);
            }
        }
        let mut reached = BTreeSet::from([ROOT]);
        let mut todo = vec![ROOT];
        while let Some(ino) = todo.pop() {
            let Ok(directory) = self.directory(ino) else { continue };
            let named = directory.live.values().chain(directory.durable.values());
            let below = named.chain(to_come.get(&ino).into_iter().flatten());
            todo.extend(below.copied().filter(|ino| reached.insert(*ino)));
        }
        self.unsynced.retain(|(_, change)| change.directories().any(|of| reached.contains(&of)));
        let in_use = |node: &Node| node.lookups > 0 || node.opened > 0;
        let gone = self.nodes.iter().filter(|(ino, node)| !reached.contains(ino) && !in_use(node));
        gone.map(|(ino, _)| *ino).collect()
    }

    /// The path of a node by its live names; empty for the root, and its number if it has no name.
    pub fn path(&self, ino: Ino) -> String {
        self.files()
            .into_iter()
            .find(|(_, found)| *found == ino)
            .map_or_else(|| format!("(inode {})", ino.0), |(path, _)| path)
    }

    /// All nodes but the root with their live paths.
    pub fn files(&self) -> Vec<(String, Ino)> {
        let mut found = Vec::new();
        let mut todo = vec![(String::new(), ROOT)];
        while let Some((path, ino)) = todo.pop() {
            let Ok(directory) = self.directory(ino) else { continue };
            for (name, ino) in &directory.live {
                let name = name.to_string_lossy();
                let path = if path.is_empty() { name.into_owned() } else { format!("{path}/{name}") };
                todo.push((path.clone(), *ino));
                found.push((path, *ino));
            }
        }
        found.sort();
        found
    }

    fn make_durable(&mut self, change: &Change) {
        match change {
            Change::Link { parent, name, ino } => {
                if let Ok(directory) = self.directory_mut(*parent) {
                    directory.durable.insert(name.clone(), *ino);
                }
            }
            Change::Unlink { parent, name } => {
                if let Ok(directory) = self.directory_mut(*parent) {
                    directory.durable.remove(name);
                }
            }
            Change::Rename { from, to, ino } => {
                if let Ok(directory) = self.directory_mut(from.0) {
                    directory.durable.remove(&from.1);
                }
                if let Ok(directory) = self.directory_mut(to.0) {
                    directory.durable.insert(to.1.clone(), *ino);
                }
            }
        }
    }
}

impl Change {
    /// The directory in which it gives a name, and to what.
    fn brings(&self) -> Option<(Ino, Ino)> {
        match self {
            Self::Link { parent, ino, .. } => Some((*parent, *ino)),
            Self::Rename { to, ino, .. } => Some((to.0, *ino)),
            Self::Unlink { .. } => None,
        }
    }

    /// The directories in which it changes a name; one may come twice.
    fn directories(&self) -> impl Iterator<Item = Ino> {
        let (first, second) = match self {
            Self::Link { parent, .. } | Self::Unlink { parent, .. } => (*parent, *parent),
            Self::Rename { from, to, .. } => (from.0, to.0),
        };
        [first, second].into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(of: &Names) -> Vec<String> {
        of.files().into_iter().map(|(path, _)| path).collect()
    }

    fn make(names: &mut Names, parent: Ino, name: &str, directory: bool, stamp: u64) -> Ino {
        let ino = names.new_ino();
        let kind = if directory {
            Kind::Directory(Directory::default())
        } else {
            Kind::File(Contents::new(tempfile::tempfile().unwrap()))
        };
        let node = Node { kind, mode: 0o644, lookups: 0, opened: 0 };
        names.link(parent, OsStr::new(name), ino, node, Stamp(stamp)).unwrap();
        ino
    }

    #[test]
    fn a_power_cut_keeps_synced_names_and_a_prefix_of_the_others() {
        for kept in 0..=3u64 {
            let mut all = Names::default();
            make(&mut all, ROOT, "synced", false, 0);
            all.sync_directory(ROOT);
            make(&mut all, ROOT, "new", false, 1);
            all.rename((ROOT, OsStr::new("new")), (ROOT, OsStr::new("named")), Stamp(2)).unwrap();
            all.unlink(ROOT, OsStr::new("synced"), false, Stamp(3)).unwrap();
            assert_eq!(names(&all), ["named"]);
            assert_eq!(all.cut_power(Stamp(kept + 1)), (kept, 3 - kept));
            let expected: &[&str] = match kept {
                0 => &["synced"],
                1 => &["new", "synced"],
                2 => &["named", "synced"],
                _ => &["named"],
            };
            assert_eq!(names(&all), expected);
        }
    }

    #[test]
    fn a_directory_that_was_not_synced_takes_what_is_in_it_along() {
        let mut all = Names::default();
        let below = make(&mut all, ROOT, "d", true, 1);
        make(&mut all, below, "f", false, 2);
        all.sync_directory(below);
        assert_eq!(all.cut_power(Stamp(0)), (0, 1));
        assert_eq!(names(&all), Vec::<String>::new());
        assert_eq!(all.unreachable().len(), 2);
    }

    #[test]
    fn a_rename_is_durable_with_either_directory() {
        let mut all = Names::default();
        let (a, b) = (make(&mut all, ROOT, "a", true, 1), make(&mut all, ROOT, "b", true, 2));
        make(&mut all, a, "f", false, 3);
        all.sync_directory(ROOT);
        all.rename((a, OsStr::new("f")), (b, OsStr::new("g")), Stamp(4)).unwrap();
        all.sync_directory(b);
        all.cut_power(Stamp(0));
        assert_eq!(names(&all), ["a", "b", "b/g"]);
    }
}
