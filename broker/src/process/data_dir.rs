//! The data directory of a node: claimed by one process, owned by one node of one cluster.
//!
//! ```text
//! <data_dir>/
//!   lock                       held with flock(2) while a process uses the directory
//!   identity                   whose directory this is; written once
//!   tls/                       the certificate made at first start
//!   groups/<id>/log/           CommitLog, superblock, snapshots: ground state
//!   groups/<id>/log.damaged/   what was in log/ when it was found damaged; nothing reads it
//!   groups/<id>/derived/       index runs, checkpoints: made again when missing
//! ```
//!
//! `identity` is text, so that an operator can read it; four lines, each ending in a newline:
//!
//! | Line | Content |
//! |---|---|
//! | 1 | `ledgermq-identity 1` |
//! | 2 | `cluster <name>` |
//! | 3 | `node <id>` |
//! | 4 | `crc32c <8 hex digits>` of the lines before |
//!
//! | At start | What happens |
//! |---|---|
//! | no `identity`, no `groups` | the directory is new: `identity` is written, synced, renamed into place |
//! | no `identity`, but `groups` | refused: the data is somebody's, and nothing says whose |
//! | other cluster or node | refused |
//! | `identity` damaged | refused: guessing could join a node to the wrong cluster |
//! | locked | refused, naming the process that holds it where that is known |

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};

use ledgermq_common::{GroupId, NodeId};
use rustix::fs::FlockOperation;

use super::StartError;

const IDENTITY_HEADER: &str = "ledgermq-identity 1";
/// No identity is longer: a cluster name has at most 64 characters.
const IDENTITY_BYTES_MAX: u64 = 512;

/// A claimed directory; the claim ends when this is dropped or the process dies.
#[derive(Debug)]
pub struct DataDir {
    root: PathBuf,
    _lock: File,
}

impl DataDir {
    /// Creates the directory where needed, locks it, and checks or writes its identity.
    pub fn claim(root: &Path, cluster: &str, node: NodeId) -> Result<Self, StartError> {
        let refused = |reason: String| StartError::DataDir { path: root.to_owned(), reason };
        fs::create_dir_all(root).map_err(|e| refused(format!("cannot be created: {e}")))?;
        let lock = lock(root).map_err(refused)?;
        match read_identity(root).map_err(refused)? {
            Some(identity) if identity.cluster != cluster => {
                return Err(refused(format!(
                    "belongs to cluster {}, and this node is configured for cluster {cluster}",
                    identity.cluster
                )));
            }
            Some(identity) if identity.node != node => {
                return Err(refused(format!("belongs to node {}, and this is node {node}", identity.node)));
            }
            Some(_) => {}
            None if root.join("groups").exists() => {
                return Err(refused("holds data, but no identity file says whose".to_owned()));
            }
            None => {
                write_identity(root, cluster, node).map_err(|e| refused(format!("cannot be written: {e}")))?
            }
        }
        Ok(Self { root: root.to_owned(), _lock: lock })
    }

    /// Makes a directory below the root, with its parents: their names are durable on return. They
    /// are synced where they exist, too: who made them may have ended before it came to that, and
    /// without the name of its directory the whole log would be gone after a power cut.
    pub fn create_durably(&self, directory: &Path) -> io::Result<()> {
        let below = directory.strip_prefix(&self.root).map_err(io::Error::other)?;
        let mut parent = self.root.clone();
        for name in below.components() {
            let directory = parent.join(name);
            match fs::create_dir(&directory) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && directory.is_dir() => {}
                other => other?,
            }
            File::open(&parent)?.sync_all()?;
            parent = directory;
        }
        Ok(())
    }

    /// Takes a damaged log out of the way, and removes what was derived from it. Durable on return.
    pub fn set_aside(&self, group: GroupId) -> io::Result<PathBuf> {
        let log = self.group_log(group);
        let aside = log.with_extension("damaged");
        let remove = |directory: &Path| match fs::remove_dir_all(directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
        remove(&aside)?;
        fs::rename(&log, &aside)?;
        remove(&self.group_derived(group))?;
        if let Some(parent) = log.parent() {
            File::open(parent)?.sync_all()?;
        }
        Ok(aside)
    }

    pub fn tls(&self) -> PathBuf {
        self.root.join("tls")
    }

    pub fn group_log(&self, group: GroupId) -> PathBuf {
        self.root.join("groups").join(group.to_string()).join("log")
    }

    pub fn group_derived(&self, group: GroupId) -> PathBuf {
        self.root.join("groups").join(group.to_string()).join("derived")
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Identity {
    cluster: String,
    node: NodeId,
}

fn lock(root: &Path) -> Result<File, String> {
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(root.join("lock"))
        .map_err(|e| format!("cannot be written: {e}"))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut holder = String::new();
            // Only a hint for the reader; an unreadable one says less, not something wrong.
            let _ = io::Read::by_ref(&mut file).take(32).read_to_string(&mut holder);
            let holder = holder.trim();
            return Err(if holder.is_empty() {
                "is in use by another process".to_owned()
            } else {
                format!("is in use by another process (id {holder})")
            });
        }
        Err(e) => return Err(format!("cannot be locked: {e}")),
    }
    let written =
        file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", std::process::id()));
    written.map_err(|e| format!("cannot be written: {e}"))?;
    Ok(file)
}

fn read_identity(root: &Path) -> Result<Option<Identity>, String> {
    let mut file = match File::open(root.join("identity")) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(format!("identity cannot be read: {e}")),
    };
    let mut text = String::new();
    io::Read::by_ref(&mut file)
        .take(IDENTITY_BYTES_MAX)
        .read_to_string(&mut text)
        .map_err(|e| format!("identity cannot be read: {e}"))?;
    parse_identity(&text).map(Some).ok_or_else(|| {
        "identity is damaged; restore the file, or empty the directory to rebuild it as a new node".to_owned()
    })
}

fn parse_identity(text: &str) -> Option<Identity> {
    let (body, check) = text.strip_suffix('\n')?.rsplit_once("\ncrc32c ")?;
    let body = format!("{body}\n");
    if u32::from_str_radix(check, 16).ok()? != crc32c::crc32c(body.as_bytes()) {
        return None;
    }
    let mut lines = body.lines();
    if lines.next()? != IDENTITY_HEADER {
        return None;
    }
    let cluster = lines.next()?.strip_prefix("cluster ")?.to_owned();
    let node = lines.next()?.strip_prefix("node ")?.parse().ok()?;
    lines.next().is_none().then_some(Identity { cluster, node: NodeId(node) })
}

fn write_identity(root: &Path, cluster: &str, node: NodeId) -> io::Result<()> {
    let body = format!("{IDENTITY_HEADER}\ncluster {cluster}\nnode {node}\n");
    let text = format!("{body}crc32c {:08x}\n", crc32c::crc32c(body.as_bytes()));
    assert_eq!(
        parse_identity(&text),
        Some(Identity { cluster: cluster.to_owned(), node }),
        "an identity reads back as it was written"
    );
    let partial = root.join("identity.partial");
    let mut file = File::create(&partial)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&partial, root.join("identity"))?;
    File::open(root)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_claimed_again_by_its_own_node_after_it_was_released() {
        let dir = tempfile::tempdir().expect("temp dir");
        let first = DataDir::claim(dir.path(), "c", NodeId(1)).expect("new directory");
        drop(first);
        DataDir::claim(dir.path(), "c", NodeId(1)).expect("its own directory");
    }

    #[test]
    fn a_directory_in_use_or_of_somebody_else_is_refused_with_the_reason() {
        let dir = tempfile::tempdir().expect("temp dir");
        let held = DataDir::claim(dir.path(), "c", NodeId(1)).expect("new directory");
        let text = |cluster, node| {
            DataDir::claim(dir.path(), cluster, NodeId(node)).expect_err("refused").to_string()
        };
        assert!(text("c", 1).contains("in use by another process (id "));
        drop(held);
        assert!(text("d", 1).contains("belongs to cluster c"));
        assert!(text("c", 2).contains("belongs to node 1"));
    }

    #[test]
    fn a_damaged_or_missing_identity_beside_data_is_never_guessed() {
        let dir = tempfile::tempdir().expect("temp dir");
        drop(DataDir::claim(dir.path(), "c", NodeId(1)).expect("new directory"));
        let identity = dir.path().join("identity");
        let good = fs::read(&identity).expect("identity");
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(&identity, &bad).expect("write");
            let refused = DataDir::claim(dir.path(), "c", NodeId(1)).expect_err("damaged");
            assert!(refused.to_string().contains("identity"), "{refused}");
        }
        fs::remove_file(&identity).expect("remove");
        fs::create_dir(dir.path().join("groups")).expect("groups");
        let refused = DataDir::claim(dir.path(), "c", NodeId(1)).expect_err("no identity");
        assert!(refused.to_string().contains("no identity file"), "{refused}");
    }

    #[test]
    fn a_damaged_log_is_kept_beside_its_successor_and_an_older_one_gives_way() {
        let dir = tempfile::tempdir().expect("temp dir");
        let data = DataDir::claim(dir.path(), "c", NodeId(1)).expect("new directory");
        let group = GroupId(3);
        for damaged in ["first", "second"] {
            data.create_durably(&data.group_log(group)).expect("log");
            data.create_durably(&data.group_derived(group)).expect("derived");
            fs::write(data.group_log(group).join("superblock"), damaged).expect("write");
            let aside = data.set_aside(group).expect("set aside");
            assert_eq!(fs::read_to_string(aside.join("superblock")).expect("kept"), damaged);
            assert!(!data.group_log(group).exists() && !data.group_derived(group).exists());
        }
    }

    #[test]
    fn a_path_that_cannot_be_a_directory_is_refused() {
        let dir = tempfile::tempdir().expect("temp dir");
        let file = dir.path().join("file");
        fs::write(&file, b"").expect("write");
        let refused = DataDir::claim(&file.join("data"), "c", NodeId(1)).expect_err("a file");
        assert!(refused.to_string().contains("cannot be created"), "{refused}");
    }
}
