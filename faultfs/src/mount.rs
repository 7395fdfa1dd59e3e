//! Mounting a disk, unmounting it even while it is in use, and what a dead process left.
//!
//! A mount's source is `ledgermq-faultfs:PID`, so that whoever finds one knows whether its process
//! lives.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fuser::{BackgroundSession, INodeNo, Session, SessionACL};

use crate::disk::{Corruption, Disk, PowerCut, Survival};
use crate::fuse::Requests;
use crate::later::Later;

const SOURCE: &str = "ledgermq-faultfs";
const TYPE: &str = "fuse.ledgermq-faultfs";

/// A mounted disk; unmounted when dropped.
pub struct Mount {
    disk: Arc<Disk>,
    at: PathBuf,
    running: Option<Running>,
}

struct Running {
    session: BackgroundSession,
    later: Arc<Later>,
}

impl Mount {
    pub fn new(disk: Arc<Disk>, at: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(at)?;
        let at = at.canonicalize()?;
        let running = Some(mount(&disk, &at)?);
        Ok(Self { disk, at, running })
    }

    pub fn disk(&self) -> &Arc<Disk> {
        &self.disk
    }

    /// The rules go, and what they held goes on.
    pub fn clear_rules(&self) {
        self.disk.clear_rules();
        if let Some(running) = &self.running {
            running.later.release();
        }
    }

    /// What the machine does when the power comes back. Whoever still uses the mount is thrown out
    /// with an error and finds a new one, so kill the processes first: one that was held comes back
    /// only now, to its death.
    pub fn cut_power(&mut self, survival: Survival, seed: u64) -> io::Result<PowerCut> {
        self.disk.power_off();
        self.unmount()?;
        let report = self.disk.power_on(survival, seed)?;
        self.running = Some(mount(&self.disk, &self.at)?);
        Ok(report)
    }

    /// Changes durable bytes; the kernel reads them again.
    pub fn corrupt(&self, path: &str, at: u64, len: u64, how: Corruption, seed: u64) -> io::Result<u64> {
        let (ino, changed) = self.disk.corrupt(path, at, len, how, seed)?;
        if let Some(running) = &self.running {
            let range = (i64::try_from(at), i64::try_from(len.max(1)));
            let (Ok(at), Ok(len)) = range else { return Err(io::ErrorKind::InvalidInput.into()) };
            match running.session.notifier().inval_inode(INodeNo(ino.0), at, len) {
                // The kernel does not know the file now.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => other?,
            }
        }
        Ok(changed)
    }

    pub fn unmount(&mut self) -> io::Result<()> {
        let Some(running) = self.running.take() else { return Ok(()) };
        detach(&self.at)?;
        // The kernel waits for nothing any more; what is held would only be answered in vain.
        let joined = running.session.join();
        drop(running.later);
        match joined {
            // How a session ends whose mount goes while it waits for its next request.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => Ok(()),
            joined => joined,
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = self.unmount();
    }
}

fn mount(disk: &Arc<Disk>, at: &Path) -> io::Result<Running> {
    let later = Arc::new(Later::start()?);
    let requests = Requests::new(Arc::clone(disk), Arc::clone(&later));
    let device = File::options().read(true).write(true).open("/dev/fuse")?;
    let options = format!("fd={},rootmode=40755,user_id=0,group_id=0,allow_other", device.as_raw_fd());
    let source = CString::new(format!("{SOURCE}:{}", std::process::id()))?;
    let (kind, options, target) = (CString::new(TYPE)?, CString::new(options)?, path(at)?);
    // SAFETY: all pointers are to C strings that live until the call is over.
    let mounted = unsafe {
        libc::mount(
            source.as_ptr(),
            target.as_ptr(),
            kind.as_ptr(),
            libc::MS_NODEV | libc::MS_NOSUID,
            options.as_ptr().cast(),
        )
    };
    if mounted != 0 {
        return Err(io::Error::last_os_error());
    }
    let started =
        Session::from_fd(requests, OwnedFd::from(device), SessionACL::All, fuser::Config::default())
            .and_then(Session::spawn);
    match started {
        Ok(session) => Ok(Running { session, later }),
        Err(error) => {
            let _ = detach(at);
            Err(error)
        }
    }
}

/// Ends the connection, so that nobody waits for an answer, and takes the mount away from its place.
fn detach(at: &Path) -> io::Result<()> {
    let target = path(at)?;
    // SAFETY: the pointer is to a C string that lives until the call is over.
    match unsafe { libc::umount2(target.as_ptr(), libc::MNT_FORCE | libc::MNT_DETACH) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Unmounts what processes that are dead have left; answers where.
pub fn remove_leftovers() -> io::Result<Vec<PathBuf>> {
    let mut removed = Vec::new();
    for (pid, at) in mounts(&std::fs::read_to_string("/proc/self/mountinfo")?) {
        if !Path::new("/proc").join(pid.to_string()).exists() {
            detach(&at)?;
            removed.push(at);
        }
    }
    Ok(removed)
}

/// Process and place of each mount of ours.
fn mounts(mountinfo: &str) -> Vec<(u32, PathBuf)> {
    let mut found = Vec::new();
    for line in mountinfo.lines() {
        let Some((mount, kind)) = line.split_once(" - ") else { continue };
        let mut kind = kind.split(' ');
        let (Some(TYPE), Some(source)) = (kind.next(), kind.next()) else { continue };
        let pid = source.strip_prefix(SOURCE).and_then(|rest| rest.strip_prefix(':'));
        let at = mount.split(' ').nth(4);
        if let (Some(Ok(pid)), Some(at)) = (pid.map(str::parse), at) {
            found.push((pid, PathBuf::from(unescape(at))));
        }
    }
    found
}

/// The kernel writes space, tab, newline and backslash of a path as octal.
fn unescape(path: &str) -> String {
    let mut plain = path.to_owned();
    for (escaped, is) in [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")] {
        plain = plain.replace(escaped, is);
    }
    plain
}

fn path(of: &Path) -> io::Result<CString> {
    Ok(CString::new(of.as_os_str().as_bytes())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_mounts_are_found_among_others() {
        let info = "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
                    90 22 0:44 / /tmp/a\\040b rw,nosuid - fuse.ledgermq-faultfs ledgermq-faultfs:17 rw\n\
                    91 22 0:45 / /tmp/c rw - fuse.sshfs ledgermq-faultfs:18 rw\n";
        assert_eq!(mounts(info), [(17, PathBuf::from("/tmp/a b"))]);
    }
}
