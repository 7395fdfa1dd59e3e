//! Bytes that rot, tear or go missing: cut where nothing was promised, refused where it was.

use std::path::PathBuf;

use ledgermq_common::LogIndex;
use ledgermq_raft_store::io::{Disk as _, SimulatedDisk};
use ledgermq_raft_store::store::{LogStore, NewEntry, OpenError, VoteRecord};

use crate::model::{
    DIRECTORY, SEGMENT_BYTES, append, assert_same, entry, open, read_all, segment_file, superblock_file,
};

const FIRST_FRAME: u64 = 4096;
const LENGTHS: [usize; 5] = [40, 3, 64, 0, 25];

fn entries(from: u64) -> Vec<NewEntry> {
    (from..).zip(LENGTHS).map(|(index, len)| entry(index, 1, len)).collect()
}

async fn write(disk: &SimulatedDisk, batches: u64) -> (LogStore, Vec<NewEntry>, Vec<u64>) {
    let store = open(disk).unwrap();
    let (mut all, mut ends) = (Vec::new(), Vec::new());
    for batch in 0..batches {
        let entries = entries(batch * LENGTHS.len() as u64);
        append(&store, entries.clone()).await.unwrap();
        all.extend(entries);
        ends.push(store.physical_end().get());
    }
    (store, all, ends)
}

fn refused(disk: &SimulatedDisk) -> OpenError {
    match open(disk) {
        Ok(store) => panic!("opened with {} entries", read_all(&store, 0).len()),
        Err(error) => error,
    }
}

#[tokio::test]
async fn a_tail_torn_at_any_byte_is_cut_to_whole_entries() {
    let disk = SimulatedDisk::new(1);
    let (store, all, ends) = write(&disk, 2).await;
    drop(store);
    for torn_at in ends[0]..ends[1] {
        let disk = disk.fork(torn_at);
        let zeros = vec![0; (ends[1] - torn_at) as usize];
        disk.overwrite(&segment_file(0), torn_at, &zeros);
        let store = open(&disk).unwrap_or_else(|error| panic!("torn at {torn_at}: {error}"));
        let found = read_all(&store, 0);
        assert!(found.len() >= LENGTHS.len(), "torn at {torn_at}: the batch before is whole");
        assert_same(&found, &all[..found.len()]);
        let behind = found.len() as u64;
        append(&store, vec![entry(behind, 2, 33)]).await.unwrap();
        drop(store);
        disk.cut_power();
        let store = open(&disk).unwrap();
        assert_eq!(read_all(&store, 0).len() as u64, behind + 1, "torn at {torn_at}: nothing comes back");
    }
}

#[tokio::test]
async fn a_bit_flipped_below_a_later_batch_is_refused_not_cut() {
    let disk = SimulatedDisk::new(1);
    let (store, all, ends) = write(&disk, 3).await;
    drop(store);
    // Only the last batch has nothing behind it that proves it was durable.
    for at in FIRST_FRAME..ends[1] {
        let disk = disk.fork(at);
        disk.flip_bit(&segment_file(0), at, (at % 8) as u8);
        match open(&disk) {
            Err(OpenError::Corrupt { file, from, to, .. }) => {
                assert_eq!(file, segment_file(0));
                assert!(from <= at && from < to, "byte {at} in {from}..{to}");
            }
            Err(error) => panic!("byte {at}: {error}"),
            // Padding is covered by no checksum and holds nothing.
            Ok(store) => assert_same(&read_all(&store, 0), &all),
        }
    }
}

#[tokio::test]
async fn a_bit_flipped_below_the_watermark_is_refused_or_found_when_read() {
    let disk = SimulatedDisk::new(1);
    let (store, all, ends) = write(&disk, 1).await;
    store.save_vote(VoteRecord { term: 1, node_id: 1, committed: false }).await.unwrap();
    let unclean = disk.fork(1);
    store.close().await.unwrap();
    drop(store);
    let mut refusals = 0;
    for at in FIRST_FRAME..ends[0] {
        let torn = unclean.fork(at);
        torn.flip_bit(&segment_file(0), at, (at % 8) as u8);
        match open(&torn) {
            Err(OpenError::Corrupt { .. }) => refusals += 1,
            Err(error) => panic!("byte {at}: {error}"),
            Ok(store) => assert_same(&read_all(&store, 0), &all),
        }
        // After an orderly close the start does not look, so the read has to.
        let closed = disk.fork(at);
        closed.flip_bit(&segment_file(0), at, (at % 8) as u8);
        let store = open(&closed).unwrap();
        assert_eq!(store.last_id(), all.last().map(|last| last.id), "byte {at}: never cut");
        if store.verify_all().is_ok() {
            assert_same(&read_all(&store, 0), &all);
        } else {
            assert!(store.read(LogIndex(0)..LogIndex(99), usize::MAX).is_err(), "byte {at}: never served");
        }
    }
    assert!(refusals > 5 * 80, "{refusals}");
}

#[tokio::test]
async fn a_lost_sector_below_a_later_batch_is_refused() {
    let disk = SimulatedDisk::new(1);
    let (store, ..) = write(&disk, 6).await;
    drop(store);
    for sector in 0..3 {
        let disk = disk.fork(sector);
        disk.overwrite(&segment_file(0), FIRST_FRAME + sector * 512, &[0; 512]);
        let error = refused(&disk);
        assert!(matches!(error, OpenError::Corrupt { .. }), "{error}");
        let names = disk.list(&PathBuf::from(DIRECTORY)).unwrap();
        assert!(names.contains(&"00000000000000000000.log".to_owned()), "nothing was removed");
    }
}

#[tokio::test]
async fn any_flipped_bit_of_a_segment_header_is_refused() {
    let disk = SimulatedDisk::new(1);
    let (store, ..) = write(&disk, 1).await;
    drop(store);
    for at in (0..128).chain(4000..4096) {
        let disk = disk.fork(at);
        disk.flip_bit(&segment_file(0), at, 3);
        assert!(matches!(refused(&disk), OpenError::Corrupt { from: 0, to: 4096, .. }), "byte {at}");
    }
}

#[tokio::test]
async fn one_bad_superblock_slot_forgets_neither_vote_nor_entries() {
    let disk = SimulatedDisk::new(1);
    let (store, all, _) = write(&disk, 2).await;
    let vote = VoteRecord { term: 9, node_id: 2, committed: true };
    store.save_vote(vote).await.unwrap();
    drop(store);
    for at in (0..200).chain(4080..4300).chain(8180..8192) {
        let disk = disk.fork(at);
        disk.flip_bit(&superblock_file(), at, 1);
        let store = open(&disk).unwrap_or_else(|error| panic!("byte {at}: {error}"));
        assert_eq!(store.read_vote(), Some(vote), "byte {at}");
        assert_same(&read_all(&store, 0), &all);
    }
    disk.flip_bit(&superblock_file(), 50, 1);
    disk.flip_bit(&superblock_file(), 5000, 1);
    assert!(refused(&disk).to_string().contains("vote"));
}

#[tokio::test]
async fn missing_files_are_named() {
    let disk = SimulatedDisk::new(1);
    let store = open(&disk).unwrap();
    append(&store, (0..200).map(|index| entry(index, 1, 1000)).collect()).await.unwrap();
    drop(store);
    for base in [0, SEGMENT_BYTES, 3 * SEGMENT_BYTES] {
        let disk = disk.fork(base);
        disk.delete(&segment_file(base));
        let error = refused(&disk).to_string();
        assert!(error.contains(&format!("{base:020}.log")), "{error}");
    }
    disk.delete(&superblock_file());
    assert!(refused(&disk).to_string().contains("no superblock"));
}

#[tokio::test]
async fn half_made_files_are_removed() {
    let disk = SimulatedDisk::new(1);
    let directory = PathBuf::from(DIRECTORY);
    drop(open(&disk).unwrap());
    for name in ["segment.tmp", "superblock.tmp"] {
        disk.create(&directory.join(name)).unwrap().write_at(b"half", 0).unwrap();
    }
    drop(open(&disk).unwrap());
    let names = disk.list(&directory).unwrap();
    assert_eq!(names, ["00000000000000000000.log", "superblock"]);
}

#[tokio::test]
async fn leftovers_of_a_cut_never_come_back_nor_count_as_corruption() {
    let lengths = [1000usize, 500, 1000, 2000];
    for kept in 0..8u64 {
        let disk = SimulatedDisk::new(kept);
        let store = open(&disk).unwrap();
        // One batch each, so that every leftover has seen the one before it durable.
        for index in 0..12 {
            append(&store, vec![entry(index, 1, 1000)]).await.unwrap();
        }
        store.truncate_after(kept.checked_sub(1).map(LogIndex)).await.unwrap();
        let mut log: Vec<NewEntry> = (0..kept).map(|index| entry(index, 1, 1000)).collect();
        for (index, len) in (kept..).zip(lengths) {
            let crashed = disk.fork(index);
            let found = open(&crashed).unwrap_or_else(|error| panic!("kept {kept}, then {index}: {error}"));
            assert_same(&read_all(&found, 0), &log);
            let next = entry(index, 2, len);
            append(&store, vec![next.clone()]).await.unwrap();
            log.push(next);
        }
    }
}

#[tokio::test]
async fn a_log_newer_than_its_superblock_is_refused() {
    let disk = SimulatedDisk::new(1);
    let (store, ..) = write(&disk, 1).await;
    drop(store);
    let old = disk.contents(&superblock_file()).unwrap();
    let store = open(&disk).unwrap();
    append(&store, vec![entry(5, 1, 10)]).await.unwrap();
    store.save_vote(VoteRecord { term: 5, node_id: 1, committed: true }).await.unwrap();
    drop(store);
    disk.overwrite(&superblock_file(), 0, &old);
    let error = refused(&disk).to_string();
    assert!(error.contains("newer than the superblock"), "{error}");
}
