//! Three logs with the same entries are the same, and a byte that differs is named by file and index.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ledgermq_common::{LogIndex, NodeId};
use ledgermq_raft_store::io::SimulatedDisk;
use ledgermq_raft_store::replicas::{Comparison, Difference, compare};
use ledgermq_raft_store::store::{Identity, LogStore, NewEntry, StoreConfig, WriterSpawn};

use crate::model::{append, config, entry, identity};

const ENTRIES: u64 = 60;
const HEADER: u64 = 80;
/// Long enough for three segments.
const LEN: usize = 2_500;

fn directory(node: u64) -> PathBuf {
    PathBuf::from(format!("/data/node-{node}"))
}

fn directories() -> Vec<PathBuf> {
    (1..=3).map(directory).collect()
}

fn entries() -> Vec<NewEntry> {
    (0..ENTRIES).map(|index| entry(index, 1 + index / 20, LEN + (index % 7) as usize)).collect()
}

fn open(disk: &SimulatedDisk, node: u64) -> LogStore {
    let spawn = WriterSpawn::Task { latency: Arc::new(|| Duration::ZERO) };
    let config = StoreConfig { directory: directory(node), ..config() };
    let identity = Identity { node: NodeId(node), ..identity() };
    LogStore::open(config, identity, Arc::new(disk.clone()), spawn).unwrap()
}

/// Each replica gets the entries in batches of its own, and knows the last of them to be committed.
async fn write(disk: &SimulatedDisk, node: u64, entries: &[NewEntry], committed: Option<u64>) {
    let store = open(disk, node);
    for batch in entries.chunks(node as usize + 1) {
        append(&store, batch.to_vec()).await.unwrap();
    }
    let committed = committed.and_then(|index| entries.get(index as usize)).map(|entry| entry.id);
    store.save_committed(committed);
    store.close().await.unwrap();
}

async fn three() -> SimulatedDisk {
    let disk = SimulatedDisk::new(1);
    for node in 1..=3 {
        write(&disk, node, &entries(), Some(ENTRIES - 1)).await;
    }
    disk
}

fn compared(disk: &SimulatedDisk) -> Comparison {
    compare(disk, &directories()).unwrap()
}

/// Segment file and position in it of the frame with this index, looked for by its bytes.
fn frame_of(disk: &SimulatedDisk, node: u64, index: u64) -> (PathBuf, u64) {
    for segment in 0..8u64 {
        let path = directory(node).join(format!("{:020}.log", segment * 64 * 1024));
        let Some(contents) = disk.contents(&path) else { continue };
        let mut frames = contents.windows(HEADER as usize).enumerate().step_by(8);
        let found = frames.find(|(_, bytes)| bytes[..4] == *b"LMQF" && bytes[24..32] == index.to_le_bytes());
        if let Some((at, _)) = found {
            return (path, at as u64);
        }
    }
    panic!("entry {index} is in no segment");
}

/// Changes a byte of the payload and makes all checksums of the frame right again.
fn forge(disk: &SimulatedDisk, node: u64, index: u64) -> (PathBuf, u64) {
    let (path, at) = frame_of(disk, node, index);
    let contents = disk.contents(&path).unwrap();
    let mut header = contents[at as usize..][..HEADER as usize].to_vec();
    let len = u32::from_le_bytes(header[8..12].try_into().unwrap()) as usize;
    let mut payload = contents[(at + HEADER) as usize..][..len].to_vec();
    payload[len / 2] ^= 1;
    header[56..60].copy_from_slice(&crc32c::crc32c(&payload).to_le_bytes());
    let crc = crc32c::crc32c(&header[..76]);
    header[76..80].copy_from_slice(&crc.to_le_bytes());
    disk.overwrite(&path, at, &header);
    disk.overwrite(&path, at + HEADER, &payload);
    (path, at)
}

#[tokio::test]
async fn logs_that_were_written_in_other_batches_and_lives_are_the_same() {
    let disk = three().await;
    // Opening is another life.
    open(&disk, 2).close().await.unwrap();
    let compared = compared(&disk);
    assert_eq!(compared.differences, []);
    assert_eq!((compared.committed, compared.entries), (Some(LogIndex(ENTRIES - 1)), ENTRIES));
    assert!(compared.bytes > ENTRIES * LEN as u64);
}

#[tokio::test]
async fn a_byte_that_was_changed_with_all_its_checksums_is_convicted() {
    for index in [0, 31, ENTRIES - 1] {
        let disk = three().await;
        let (path, at) = forge(&disk, 2, index);
        let compared = compared(&disk);
        let Some(Difference::Entry { index: found, one, other }) = compared.differences.first() else {
            panic!("entry {index}: {compared:?}");
        };
        assert_eq!(*found, LogIndex(index));
        assert_eq!((one.node, other.node), (NodeId(1), NodeId(2)));
        assert_eq!((&other.file, other.file_offset), (&path, at));
        // The chain tells it too: to the entry behind, or to the superblock.
        let Some(Difference::Damaged { node, .. }) = compared.differences.get(1) else {
            panic!("entry {index}: {compared:?}");
        };
        assert_eq!(*node, NodeId(2));
        let said = compared.differences[0].to_string();
        assert!(
            said.contains(&format!("entry {index} differs")) && said.contains(&format!(":{at}")),
            "{said}"
        );
    }
}

#[tokio::test]
async fn bytes_that_no_checksum_covers_are_compared_too() {
    let disk = three().await;
    let index = (0..ENTRIES).find(|index| (LEN + (index % 7) as usize) % 8 != 0).unwrap();
    let (path, at) = frame_of(&disk, 3, index);
    let padding = at + HEADER + (LEN + (index % 7) as usize) as u64;
    disk.flip_bit(&path, padding, 0);
    let compared = compared(&disk);
    let named = matches!(&compared.differences[..], [Difference::Entry { index: found, other, .. }]
        if *found == LogIndex(index) && other.node == NodeId(3) && other.file == path);
    assert!(named, "{compared:?}");
}

#[tokio::test]
async fn damage_is_told_with_its_bytes_and_the_others_are_still_compared() {
    let disk = three().await;
    let (path, at) = frame_of(&disk, 1, 12);
    disk.flip_bit(&path, at + HEADER + 5, 3);
    let compared = compared(&disk);
    let [Difference::Damaged { node, file, from, to, .. }] = &compared.differences[..] else {
        panic!("{compared:?}");
    };
    assert_eq!((*node, file, *from), (NodeId(1), &path, at));
    assert!(*to > at + HEADER + 5);
    assert_eq!(compared.entries, ENTRIES, "of the other two");
}

#[tokio::test]
async fn what_is_not_committed_may_differ_and_what_is_committed_must_be_on_a_majority() {
    let disk = SimulatedDisk::new(1);
    let (all, committed) = (entries(), 40);
    let mut other = all[..50].to_vec();
    other[45] = entry(45, 9, 333);
    other.truncate(46);
    write(&disk, 1, &all, Some(committed)).await;
    write(&disk, 2, &other, None).await;
    write(&disk, 3, &all[..20], None).await;
    let compared = compared(&disk);
    assert_eq!(compared.differences, [], "the third is behind, and that is no majority");
    assert_eq!(compared.entries, committed + 1);

    let disk = SimulatedDisk::new(1);
    write(&disk, 1, &all, Some(committed)).await;
    write(&disk, 2, &all[..committed as usize], None).await;
    write(&disk, 3, &all[..20], None).await;
    let lost = Difference::NotOnMajority { committed: LogIndex(committed), holders: 1, replicas: 3 };
    assert_eq!(super::replicas::compared(&disk).differences, [lost]);
}

#[tokio::test]
async fn logs_that_nobody_committed_anything_in_say_nothing() {
    let disk = SimulatedDisk::new(1);
    for node in 1..=3 {
        write(&disk, node, &entries(), None).await;
    }
    let compared = compared(&disk);
    assert_eq!((compared.committed, compared.entries), (None, 0));
    disk.delete(&directory(2).join("superblock"));
    assert!(compare(&disk, &directories()).is_err(), "a directory that is no log");
}
