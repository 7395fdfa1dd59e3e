//! Snapshot files on the real disk.

use std::io::{Cursor, Read};
use std::path::Path;
use std::sync::Arc;

use ledgermq_common::{GroupId, LogIndex, PhysicalOffset, Term};

use super::*;
use crate::io::{Disk, RealDisk};
use crate::machine::EntryId;
use crate::raft::vocabulary::StoredMembership;
use crate::store::SnapshotBoundary;

fn catalog(directory: &Path) -> SnapshotCatalog {
    SnapshotCatalog::open(Arc::new(RealDisk), directory.join("snapshots"), GroupId(3), 99, 3).expect("opens")
}

fn head(index: u64) -> SnapshotHead {
    SnapshotHead {
        boundary: SnapshotBoundary {
            id: EntryId { term: Term(2), index: LogIndex(index) },
            next_physical_offset: PhysicalOffset(index * 100),
            chain: index ^ 77,
        },
        membership: StoredMembership::default(),
    }
}

fn body(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at % 251) as u8).collect()
}

fn read_all(file: &SnapshotFile) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.body().read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[test]
fn a_snapshot_is_found_again_with_its_state_and_its_place_in_the_log() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    for bytes in [0, 1, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES + 17] {
        catalog(directory.path()).write(head(5), &mut Cursor::new(body(bytes))).expect("written");
        let found = catalog(directory.path()).newest().expect("found");
        assert_eq!(found.head.boundary, head(5).boundary);
        assert_eq!(read_all(&found).expect("verifies"), body(bytes));
    }
}

#[test]
fn a_snapshot_of_another_cluster_or_group_is_not_used() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    catalog(directory.path()).write(head(5), &mut Cursor::new(body(10))).expect("written");
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    for (group, cluster) in [(GroupId(4), 99), (GroupId(3), 98)] {
        let other =
            SnapshotCatalog::open(Arc::clone(&disk), directory.path().join("snapshots"), group, cluster, 3);
        assert!(other.expect("opens").newest().is_none());
    }
}

#[test]
fn no_flipped_bit_and_no_missing_end_goes_unnoticed() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    catalog(directory.path()).write(head(5), &mut Cursor::new(body(300))).expect("written");
    let path = directory.path().join("snapshots").join(format!("snapshot-{:020}", 5));
    let whole = std::fs::read(&path).expect("readable");
    let is_whole = || {
        catalog(directory.path())
            .newest()
            .is_some_and(|file| read_all(&file).is_ok_and(|got| got == body(300)))
    };
    assert!(is_whole());
    for at in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[at] ^= 1 << (at % 8);
        std::fs::write(&path, damaged).expect("writable");
        assert!(!is_whole(), "a flip in byte {at}");
        std::fs::write(&path, &whole[..at]).expect("writable");
        assert!(!is_whole(), "cut to {at} bytes");
    }
}

#[test]
fn thinning_keeps_the_one_the_purge_pointer_rests_on_and_the_newest() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let snapshots = catalog(directory.path());
    for index in [10, 20, 30, 31, 40, 50] {
        snapshots.write(head(index), &mut Cursor::new(body(10))).expect("written");
    }
    snapshots.thin(Some(LogIndex(20)), &[]).expect("thinned");
    let kept: Vec<_> =
        snapshots.newest_first().iter().map(|file| file.head.boundary.id.index.get()).collect();
    assert_eq!(kept.len(), 3);
    assert_eq!((kept.first(), kept.last()), (Some(&50), Some(&20)));
    let offered = snapshots.oldest_from(Some(LogIndex(20))).expect("there is one");
    assert_eq!(offered.head.boundary.id.index, LogIndex(20));
}

/// openraft was asked to purge and waits for a replication that reads what would go (seed 700128).
#[test]
fn thinning_keeps_the_one_the_purge_pointer_is_on_its_way_to() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let snapshots = catalog(directory.path());
    for index in [10, 20, 30, 31, 32, 40, 50] {
        snapshots.write(head(index), &mut Cursor::new(body(10))).expect("written");
    }
    for _ in 0..2 {
        snapshots.thin(Some(LogIndex(20)), &[LogIndex(31)]).expect("thinned");
        let kept: Vec<_> =
            snapshots.newest_first().iter().map(|file| file.head.boundary.id.index.get()).collect();
        assert_eq!(kept, [50, 31, 20]);
        let permitted = snapshots.newest_within(LogIndex(39), PhysicalOffset(u64::MAX));
        assert_eq!(permitted.map(|id| id.index), Some(LogIndex(31)), "a permit does not go back");
    }
}

#[test]
fn the_purge_pointer_rests_below_what_the_state_refers_to() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let snapshots = catalog(directory.path());
    for index in [10, 20, 30] {
        snapshots.write(head(index), &mut Cursor::new(body(10))).expect("written");
    }
    let within =
        |index, edge| snapshots.newest_within(LogIndex(index), PhysicalOffset(edge)).map(|id| id.index.get());
    assert_eq!(within(100, u64::MAX), Some(30));
    assert_eq!(within(29, u64::MAX), Some(20));
    assert_eq!(within(100, 2_999), Some(20));
    assert_eq!(within(100, 999), None);
}
