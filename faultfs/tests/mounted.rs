//! Through a real mount: what a process sees of each fault, and what is left after it.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, ErrorKind, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ledgermq_faultfs::contents::SECTOR_BYTES;
use ledgermq_faultfs::control::{Answer, serve};
use ledgermq_faultfs::{
    Command, Corruption, Disk, Effect, Mount, Operation, Rule, Survival, remove_leftovers,
};
use tempfile::TempDir;

/// Mounting needs root and the device; a machine without them says so, and CI has them.
fn may_mount() -> bool {
    let can = rustix::process::geteuid().is_root() && Path::new("/dev/fuse").exists();
    assert!(can || std::env::var_os("CI").is_none(), "CI runs as root and has /dev/fuse");
    if !can {
        eprintln!("not run: needs root and /dev/fuse");
    }
    can
}

struct Rig {
    dir: TempDir,
    mount: Mount,
}

impl Rig {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let disk = Arc::new(Disk::create(&dir.path().join("files"), false).unwrap());
        let mount = Mount::new(disk, &dir.path().join("at")).unwrap();
        Self { dir, mount }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join("at").join(name)
    }

    fn open(&self, name: &str) -> File {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).open(self.path(name)).unwrap()
    }

    fn sync_names(&self) {
        File::open(self.dir.path().join("at")).unwrap().sync_all().unwrap();
    }

    fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap()
    }
}

#[test]
fn a_power_cut_drops_exactly_what_was_not_synced() {
    if !may_mount() {
        return;
    }
    let mut rig = Rig::new();
    let file = rig.open("log");
    file.write_all_at(&[1; 10_000], 0).unwrap();
    file.sync_data().unwrap();
    rig.sync_names();
    file.write_all_at(&[2; 10_000], 5_000).unwrap();
    let unnamed = rig.open("unnamed");
    unnamed.write_all_at(b"synced, but not its name", 0).unwrap();
    unnamed.sync_all().unwrap();
    std::fs::create_dir(rig.path("below")).unwrap();
    assert_eq!(rig.read("log").len(), 15_000);
    drop((file, unnamed));
    let cut = rig.mount.cut_power(Survival::Nothing, 1).unwrap();
    // The writes touch the sectors 9 to 29.
    assert_eq!(cut.dropped_bytes, 21 * SECTOR_BYTES as u64);
    assert_eq!((cut.dropped_names, cut.kept_names), (2, 0));
    assert_eq!(rig.read("log"), vec![1; 10_000]);
    let names: Vec<_> = std::fs::read_dir(rig.path("")).unwrap().map(|it| it.unwrap().file_name()).collect();
    assert_eq!(names, ["log"]);
    let counters = rig.mount.disk().counters();
    assert_eq!((counters.power_cuts, counters.dropped_bytes), (1, cut.dropped_bytes));
}

#[test]
fn a_torn_tail_ends_at_any_sector_and_nothing_behind_it_is_kept() {
    if !may_mount() {
        return;
    }
    const SECTORS: usize = 12;
    let mut rig = Rig::new();
    rig.open("log");
    rig.sync_names();
    let mut seen = BTreeSet::new();
    for seed in 0..400 {
        let file = rig.open("log");
        file.set_len(0).unwrap();
        file.sync_all().unwrap();
        let bytes: Vec<u8> = (0..SECTORS * SECTOR_BYTES).map(|at| (at / SECTOR_BYTES) as u8 + 1).collect();
        file.write_all_at(&bytes, 0).unwrap();
        drop(file);
        rig.mount.cut_power(Survival::Prefix, seed).unwrap();
        let left = rig.read("log");
        let whole = left.len() / SECTOR_BYTES;
        assert_eq!(left.len() % SECTOR_BYTES, 0);
        for (sector, bytes) in left.chunks(SECTOR_BYTES).enumerate() {
            assert!(bytes.iter().all(|byte| *byte == sector as u8 + 1), "seed {seed}, sector {sector}");
        }
        seen.insert(whole);
        if seen.len() == SECTORS + 1 {
            return;
        }
    }
    panic!("only these lengths were left: {seen:?}");
}

#[test]
fn an_error_comes_at_the_operation_it_was_meant_for() {
    if !may_mount() {
        return;
    }
    let mut rig = Rig::new();
    let file = rig.open("log");
    rig.sync_names();
    let other = rig.open("other");
    rig.mount.disk().add_rule(Rule::new([Operation::Write], Effect::Fail).at("log").skip(1).times(1));
    rig.mount.disk().add_rule(Rule::new([Operation::Sync], Effect::Fail).at("log").times(1));
    file.write_all_at(&[1; 512], 0).unwrap();
    other.write_all_at(&[1; 512], 0).unwrap();
    assert_eq!(file.write_all_at(&[1; 512], 512).unwrap_err().raw_os_error(), Some(libc::EIO));
    file.write_all_at(&[1; 512], 512).unwrap();
    other.sync_data().unwrap();
    assert_eq!(file.sync_data().unwrap_err().raw_os_error(), Some(libc::EIO));
    // The second sync says all is well, and what the first one lost is lost.
    file.write_all_at(&[2; 512], 1024).unwrap();
    file.sync_data().unwrap();
    assert_eq!(rig.read("log").len(), 1536);
    let counters = rig.mount.disk().counters();
    assert_eq!((counters.failed_writes, counters.failed_syncs), (1, 1));
    drop((file, other));
    let cut = rig.mount.cut_power(Survival::Everything, 1).unwrap();
    assert_eq!(cut.dropped_bytes, 1024);
    let mut expected = vec![0; 1024];
    expected.extend([2; 512]);
    assert_eq!(rig.read("log"), expected);
}

#[test]
fn a_full_disk_refuses_what_needs_space_and_nothing_else() {
    if !may_mount() {
        return;
    }
    let rig = Rig::new();
    let file = rig.open("log");
    file.write_all_at(&[1; 8192], 0).unwrap();
    rig.mount.disk().set_capacity(Some(8192));
    file.write_all_at(&[2; 8192], 0).unwrap();
    file.sync_data().unwrap();
    assert_eq!(file.write_all_at(&[1; 512], 8192).unwrap_err().kind(), ErrorKind::StorageFull);
    assert_eq!(File::create(rig.path("new")).unwrap_err().kind(), ErrorKind::StorageFull);
    let reserved = rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::KEEP_SIZE, 0, 10_000);
    assert_eq!(reserved, Err(rustix::io::Errno::NOSPC));
    assert_eq!(rustix::fs::statvfs(rig.path("")).unwrap().f_bavail, 0);
    assert!(rig.mount.disk().counters().no_space >= 3);
    rig.mount.disk().set_capacity(None);
    file.write_all_at(&[1; 512], 8192).unwrap();
}

#[test]
fn a_stalled_operation_comes_back_when_the_stall_ends_and_a_slow_one_later() {
    if !may_mount() {
        return;
    }
    let rig = Rig::new();
    let file = rig.open("log");
    file.write_all_at(&[1; 512], 0).unwrap();
    rig.mount.disk().add_rule(Rule::new([Operation::Sync], Effect::Stall));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            file.sync_data().unwrap();
            done.store(true, Ordering::SeqCst);
        });
        while rig.mount.disk().counters().held == 0 {
            std::thread::yield_now();
        }
        // Other files go on meanwhile; the kernel keeps writes to this one waiting for the sync.
        rig.open("other").write_all_at(&[2; 512], 0).unwrap();
        assert!(!done.load(Ordering::SeqCst));
        rig.mount.clear_rules();
    });
    rig.mount.disk().add_rule(Rule::new([Operation::Sync], Effect::Delay { ms: 80 }));
    let started = Instant::now();
    file.sync_data().unwrap();
    assert!(started.elapsed() >= Duration::from_millis(80));
    let counters = rig.mount.disk().counters();
    assert_eq!((counters.held, counters.delayed, counters.delayed_ms), (1, 1, 80));
}

#[test]
fn who_waits_when_the_power_goes_is_thrown_out_and_nothing_of_it_became_durable() {
    if !may_mount() {
        return;
    }
    let mut rig = Rig::new();
    let file = rig.open("log");
    rig.sync_names();
    file.write_all_at(&[1; 512], 0).unwrap();
    rig.mount.disk().power_off();
    let waiting = std::thread::spawn(move || file.sync_data());
    while rig.mount.disk().counters().held == 0 {
        std::thread::yield_now();
    }
    let cut = rig.mount.cut_power(Survival::Nothing, 1).unwrap();
    waiting.join().unwrap().unwrap_err();
    assert_eq!(cut.dropped_bytes, 512);
    assert_eq!(rig.read("log"), b"");
}

#[test]
fn mappings_see_what_is_written_and_rot() {
    if !may_mount() {
        return;
    }
    let rig = Rig::new();
    let file = rig.open("log");
    file.write_all_at(&[1; 8192], 0).unwrap();
    file.sync_data().unwrap();
    // SAFETY: the file is not shortened while it is mapped.
    let map = unsafe { memmap2::Mmap::map(&file).unwrap() };
    assert!(map.iter().all(|byte| *byte == 1));
    file.write_all_at(&[2; 512], 512).unwrap();
    assert_eq!(map[512], 2);
    file.sync_data().unwrap();
    assert_eq!(rig.mount.corrupt("log", 4100, 1, Corruption::FlipBit, 3).unwrap(), 1);
    assert_eq!(map[4100], 1 ^ 8);
    assert_eq!(rig.mount.corrupt("log", 0, 512, Corruption::Zeros, 0).unwrap(), 512);
    assert_eq!(rig.read("log")[..512], [0; 512]);
    assert_eq!(rig.mount.disk().counters().corrupted_bytes, 513);
    assert!(rig.mount.corrupt("missing", 0, 1, Corruption::FlipBit, 0).is_err());
}

#[test]
fn files_are_renamed_removed_and_listed_while_open() {
    if !may_mount() {
        return;
    }
    let rig = Rig::new();
    let file = rig.open("new");
    file.write_all_at(b"content", 0).unwrap();
    rig.open("old").write_all_at(b"older", 0).unwrap();
    std::fs::rename(rig.path("new"), rig.path("old")).unwrap();
    assert_eq!(rig.read("old"), b"content");
    std::fs::remove_file(rig.path("old")).unwrap();
    let mut content = [0; 7];
    file.read_exact_at(&mut content, 0).unwrap();
    assert_eq!(&content, b"content");
    drop(file);
    std::fs::create_dir_all(rig.path("a/b")).unwrap();
    for number in 0..500 {
        File::create(rig.path(&format!("a/b/{number}"))).unwrap();
    }
    assert_eq!(std::fs::read_dir(rig.path("a/b")).unwrap().count(), 500);
    assert!(std::fs::remove_dir(rig.path("a")).is_err());
    std::fs::remove_dir_all(rig.path("a")).unwrap();
    assert_eq!(std::fs::read_dir(rig.path("")).unwrap().count(), 0);
    // Objects of files that nobody can reach go, whether the kernel forgets a file before the end of
    // its name is durable or after.
    rig.sync_names();
    let objects = rig.dir.path().join("files/objects");
    let deadline = Instant::now() + Duration::from_secs(60);
    while std::fs::read_dir(&objects).unwrap().count() > 0 {
        assert!(Instant::now() < deadline, "objects are left");
        std::thread::yield_now();
    }
}

#[test]
fn a_disk_obeys_its_lines_and_leaves_with_them() {
    if !may_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (files, at) = (dir.path().join("files"), dir.path().join("at"));
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    std::thread::scope(|scope| {
        let serving = scope.spawn(|| serve(&files, &at, true, BufReader::new(&theirs), &theirs));
        let mut answers = BufReader::new(&ours).lines();
        let mut next = || -> Answer { serde_json::from_str(&answers.next().unwrap().unwrap()).unwrap() };
        assert_eq!(next(), Answer::Done);
        let mut ask = |command: &Command| {
            let mut line = serde_json::to_vec(command).unwrap();
            line.push(b'\n');
            (&ours).write_all(&line).unwrap();
            next()
        };
        std::fs::write(at.join("f"), b"content").unwrap();
        let Answer::Files(list) = ask(&Command::List) else { panic!("no list") };
        assert_eq!((list[0].path.as_str(), list[0].bytes, list[0].unsynced_bytes), ("f", 7, 512));
        let Answer::Failed(why) = ask(&Command::Corrupt {
            path: "nothing".to_owned(),
            at: 0,
            len: 1,
            how: Corruption::Zeros,
            seed: 0,
        }) else {
            panic!("there is no such file")
        };
        assert!(why.contains("No such file"), "{why}");
        ours.shutdown(std::net::Shutdown::Write).unwrap();
        serving.join().unwrap().unwrap();
    });
    assert_eq!(std::fs::read(files.join("last/f")).unwrap(), b"content");
    assert_eq!(std::fs::read_dir(&at).unwrap().count(), 0, "unmounted");
}

const MOUNT_AT: &str = "FAULTFS_TEST_MOUNT_AT";

/// Not a test by itself: mounts, says so, and waits to be killed.
#[test]
fn mounts_and_waits_in_a_process_of_its_own() {
    let Some(dir) = std::env::var_os(MOUNT_AT) else { return };
    let dir = Path::new(&dir);
    let disk = Arc::new(Disk::create(&dir.join("files"), false).unwrap());
    let _mount = Mount::new(disk, &dir.join("at")).unwrap();
    eprintln!("mounted");
    loop {
        std::thread::park();
    }
}

#[test]
fn the_mount_of_a_killed_process_is_found_and_removed() {
    if !may_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "mounts_and_waits_in_a_process_of_its_own", "--nocapture"])
        .env(MOUNT_AT, dir.path())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let said = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(said.map_while(Result::ok).any(|line| line.contains("mounted")));
    let at = dir.path().canonicalize().unwrap().join("at");
    std::fs::write(at.join("f"), b"content").unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(std::fs::read_dir(&at).is_err(), "the connection is gone, the mount is not");
    assert!(remove_leftovers().unwrap().contains(&at));
    assert_eq!(std::fs::read_dir(&at).unwrap().count(), 0);
}
