//! The store while nothing goes wrong.

use std::sync::Arc;

use ledgermq_common::{GroupId, LogIndex, NodeId, PhysicalOffset, Term};
use ledgermq_raft_store::EntryId;
use ledgermq_raft_store::io::{RealDisk, SimulatedDisk};
use ledgermq_raft_store::store::{
    AppendError, Identity, LogStore, NewEntry, OpenError, ReadError, StoreConfig, VoteRecord, WriterSpawn,
};
use proptest::prelude::*;
use tokio::sync::oneshot;

use crate::model::{append, assert_same, config, entry, identity, open, open_with, read_all, runtime, tell};

fn real(directory: &std::path::Path) -> StoreConfig {
    StoreConfig { directory: directory.to_path_buf(), ..config() }
}

fn open_real(directory: &std::path::Path) -> Result<LogStore, OpenError> {
    LogStore::open(real(directory), identity(), Arc::new(RealDisk), WriterSpawn::Thread)
}

#[tokio::test]
async fn entries_votes_and_hints_are_found_again_after_a_close() {
    let directory = tempfile::tempdir().unwrap();
    let entries: Vec<NewEntry> = (0..200).map(|index| entry(index, 1 + index / 50, 900)).collect();
    let vote = VoteRecord { term: 4, node_id: 2, committed: true };
    let places = {
        let store = open_real(directory.path()).unwrap();
        let places = append(&store, entries.clone()).await.unwrap();
        store.save_vote(vote).await.unwrap();
        store.save_committed(Some(entries[150].id));
        assert_same(&read_all(&store, 0), &entries);
        store.close().await.unwrap();
        assert!(matches!(append(&store, vec![entry(200, 4, 1)]).await, Err(AppendError::Fault(_))));
        assert!(store.fault().borrow().is_none(), "an orderly close is no fault");
        places
    };
    let store = open_real(directory.path()).unwrap();
    let found = read_all(&store, 0);
    assert_same(&found, &entries);
    assert_eq!(found.iter().map(|entry| entry.payload_at).collect::<Vec<_>>(), places);
    assert_eq!(store.read_vote(), Some(vote));
    assert_eq!(store.read_committed(), Some(entries[150].id));
    assert_eq!(store.last_id(), Some(entries[199].id));
    assert_eq!(*store.flushed().borrow(), Some(entries[199].id));
    store.verify_all().unwrap();
}

#[tokio::test]
async fn appends_in_flight_complete_in_order_and_share_syncs() {
    let directory = tempfile::tempdir().unwrap();
    let store = open_real(directory.path()).unwrap();
    let (sender, mut completed) = tokio::sync::mpsc::unbounded_channel();
    for index in 0..2000u64 {
        let sender = sender.clone();
        let on_durable = Box::new(move |outcome: Result<(), _>| {
            outcome.unwrap();
            sender.send(index).unwrap();
        });
        store.append(vec![entry(index, 1, 300)], on_durable).await.unwrap();
    }
    for index in 0..2000 {
        assert_eq!(completed.recv().await, Some(index));
    }
    let stats = store.write_stats();
    assert_eq!(stats.entries, 2000);
    assert!(stats.batches < 2000, "{} batches", stats.batches);
    assert_eq!(read_all(&store, 0).len(), 2000);
    drop(store);
    let store = open_real(directory.path()).unwrap();
    assert_eq!(read_all(&store, 0).len(), 2000, "without a close the log is recovered");
}

#[tokio::test]
async fn a_second_process_and_a_foreign_directory_are_told_so() {
    let directory = tempfile::tempdir().unwrap();
    let store = open_real(directory.path()).unwrap();
    assert!(matches!(open_real(directory.path()), Err(OpenError::Locked { .. })));
    drop(store);
    for other in [
        Identity { cluster: "other".to_owned(), ..identity() },
        Identity { group: GroupId(2), ..identity() },
        Identity { node: NodeId(2), ..identity() },
    ] {
        let error =
            LogStore::open(real(directory.path()), other.clone(), Arc::new(RealDisk), WriterSpawn::Thread)
                .unwrap_err();
        assert!(matches!(error, OpenError::Foreign { .. }), "{error}");
        let text = error.to_string();
        assert!(
            text.contains(&format!("{other:?}")) && text.contains(&format!("{:?}", identity())),
            "{text}"
        );
    }
    open_real(directory.path()).unwrap();
}

#[tokio::test]
async fn a_directory_keeps_the_segment_size_it_was_made_with() {
    let disk = SimulatedDisk::new(1);
    drop(open(&disk).unwrap());
    let larger = StoreConfig { segment_bytes: 1 << 20, ..config() };
    let store = open_with(&disk, larger).unwrap();
    assert_eq!(store.segment_bytes(), config().segment_bytes);
}

#[tokio::test]
async fn message_bytes_are_read_from_cache_and_disk_and_never_beyond_an_entry() {
    let directory = tempfile::tempdir().unwrap();
    let entries: Vec<NewEntry> = (0..1500).map(|index| entry(index, 1, 1000)).collect();
    let store = open_real(directory.path()).unwrap();
    let places = append(&store, entries.clone()).await.unwrap();
    for applied in [None, Some(LogIndex(1499))] {
        if let Some(applied) = applied {
            store.applied(applied);
        }
        for _ in 0..2 {
            for (place, entry) in places.iter().zip(&entries) {
                let part = store.read_bytes(PhysicalOffset(place.get() + 10), 500).unwrap();
                assert!(part == entry.payload[10..510]);
            }
        }
        for (place, index) in places.iter().zip(0..) {
            for inside in [0, 999] {
                let at = PhysicalOffset(place.get() + inside);
                assert_eq!(store.index_of(at).unwrap(), LogIndex(index), "byte {inside}");
            }
            let behind = PhysicalOffset(place.get() + 1000);
            assert!(matches!(store.index_of(behind), Err(ReadError::Beyond { .. })), "no payload is there");
        }
    }
    let newest = *places.last().unwrap();
    assert!(matches!(store.read_bytes(newest, 1001), Err(ReadError::Beyond { .. })));
    assert!(matches!(store.read_bytes(store.physical_end(), 1), Err(ReadError::Beyond { .. })));
    drop(store);
    let store = open_real(directory.path()).unwrap();
    store.applied(LogIndex(1499));
    let held: Vec<_> = places.iter().map(|place| store.read_bytes(*place, 1000).unwrap()).collect();
    drop(store);
    assert!(held.iter().zip(&entries).all(|(held, entry)| held == &entry.payload), "bytes outlive the store");
}

#[tokio::test]
async fn an_entry_out_of_order_or_too_large_changes_nothing() {
    let disk = SimulatedDisk::new(1);
    let store = open(&disk).unwrap();
    append(&store, vec![entry(0, 3, 10)]).await.unwrap();
    for wrong in [vec![entry(2, 3, 1)], vec![entry(1, 2, 1)], vec![entry(1, 3, 1), entry(1, 3, 1)]] {
        assert!(matches!(append(&store, wrong).await, Err(AppendError::OutOfOrder { .. })));
    }
    let large = append(&store, vec![entry(1, 3, 70_000)]).await;
    assert!(matches!(large, Err(AppendError::TooLarge { .. })));
    append(&store, vec![entry(1, 3, 10)]).await.unwrap();
    assert_eq!(read_all(&store, 0).len(), 2);
}

#[tokio::test]
async fn an_append_waits_while_the_queue_is_full_and_goes_on_when_it_drains() {
    let disk = SimulatedDisk::new(1);
    let small = StoreConfig { write_queue_bytes_max: 3000, ..config() };
    let store = open_with(&disk, small).unwrap();
    let (first, first_durable) = oneshot::channel();
    let (second, second_durable) = oneshot::channel();
    store.append(vec![entry(0, 1, 2000)], tell(first)).await.unwrap();
    {
        let mut blocked = std::pin::pin!(store.append(vec![entry(1, 1, 2000)], tell(second)));
        let polled = std::future::poll_fn(|context| {
            std::task::Poll::Ready(std::future::Future::poll(blocked.as_mut(), context).is_pending())
        });
        assert!(polled.await, "there is no room yet");
        assert_eq!(store.last_id().unwrap().index, LogIndex(0), "and nothing was appended");
        first_durable.await.unwrap().unwrap();
        blocked.await.unwrap();
    }
    second_durable.await.unwrap().unwrap();
    append(&store, vec![entry(2, 1, 9000)]).await.expect("an entry larger than the queue gets in");
}

#[tokio::test]
async fn released_segments_are_gone_and_the_log_goes_on() {
    let disk = SimulatedDisk::new(3);
    let store = open(&disk).unwrap();
    let entries: Vec<NewEntry> = (0..300).map(|index| entry(index, 1, 1000)).collect();
    let places = append(&store, entries.clone()).await.unwrap();
    store.applied(LogIndex(299));
    store.release_before(store.physical_end()).await.unwrap();
    assert_eq!(store.oldest_index(), LogIndex(0), "nothing is purged yet");
    store.purge(entries[150].id).await.unwrap();
    assert_eq!((store.first_index(), store.oldest_index()), (LogIndex(151), LogIndex(0)));
    store.release_before(places[100]).await.unwrap();
    let oldest = store.oldest_index();
    assert!(oldest > LogIndex(0) && oldest <= LogIndex(100), "{oldest}");
    store.release_before(store.physical_end()).await.unwrap();
    let oldest = store.oldest_index();
    assert!(oldest > LogIndex(100) && oldest <= LogIndex(151), "{oldest}");
    assert!(matches!(store.read_bytes(places[0], 1), Err(ReadError::Released { .. })));
    assert!(matches!(store.index_of(places[0]), Err(ReadError::Released { .. })));
    assert!(matches!(store.read(LogIndex(0)..LogIndex(5), 10), Err(ReadError::ReleasedEntry { .. })));
    assert_eq!(store.entry_id_at(LogIndex(150)).unwrap(), Some(entries[150].id));
    drop(store);
    disk.cut_power();
    let store = open(&disk).unwrap();
    assert_eq!((store.oldest_index(), store.purged()), (oldest, Some(entries[150].id)));
    assert_same(&read_all(&store, oldest.get()), &entries[oldest.get() as usize..]);
    store.verify_all().unwrap();
}

#[tokio::test]
async fn a_log_reset_behind_a_snapshot_continues_as_its_source_does() {
    let (source_disk, disk) = (SimulatedDisk::new(1), SimulatedDisk::new(2));
    let source = open(&source_disk).unwrap();
    let entries: Vec<NewEntry> = (0..150).map(|index| entry(index, 2, 1500)).collect();
    let places = append(&source, entries.clone()).await.unwrap();
    for boundary in [10, 42, 43, 100] {
        let at = source.boundary_at(LogIndex(boundary)).unwrap().unwrap();
        let store = open(&disk).unwrap();
        if store.last_id().is_none() {
            append(&store, (0..5).map(|index| entry(index, 1, 700)).collect()).await.unwrap();
        }
        store.reset_to(at).await.unwrap();
        assert_eq!((store.last_id(), store.purged()), (Some(at.id), Some(at.id)));
        assert_eq!(store.entry_id_at(at.id.index).unwrap(), Some(at.id));
        assert_eq!(store.boundary_at(at.id.index).unwrap(), Some(at));
        let rest = entries[boundary as usize + 1..].to_vec();
        let copied = append(&store, rest.clone()).await.unwrap();
        assert_eq!(copied, places[boundary as usize + 1..], "the same entries lie at the same places");
        assert_eq!(store.last_chain(), source.last_chain());
        drop(store);
        disk.cut_power();
        let store = open(&disk).unwrap();
        assert_eq!(store.oldest_index(), LogIndex(boundary + 1));
        assert_same(&read_all(&store, boundary + 1), &rest);
        store.verify_all().unwrap();
        // Back to where the released segment was: everything behind the snapshot is cut.
        store.truncate_after(Some(LogIndex(boundary))).await.unwrap();
        assert_eq!(store.last_id(), Some(at.id));
        let again = append(&store, rest.clone()).await.unwrap();
        assert_eq!(again, places[boundary as usize + 1..]);
    }
}

#[tokio::test]
async fn a_cut_log_places_entries_as_one_that_never_had_them() {
    let (disk, other_disk) = (SimulatedDisk::new(1), SimulatedDisk::new(2));
    let (store, other) = (open(&disk).unwrap(), open(&other_disk).unwrap());
    append(&store, (0..150).map(|index| entry(index, 1, 1500)).collect()).await.unwrap();
    for kept in [Some(120), Some(42), Some(41), Some(5), Some(0), None] {
        store.truncate_after(kept.map(LogIndex)).await.unwrap();
        assert_eq!(store.last_id().map(|last| last.index), kept.map(LogIndex));
        assert_eq!(store.flushed().borrow().map(|last| last.index), kept.map(LogIndex));
        let last = store.last_id();
        assert_eq!(read_all(&store, 0).last().map(|entry| entry.id), last);
    }
    let entries: Vec<NewEntry> = (0..150).map(|index| entry(index, 2, 700 + index as usize)).collect();
    assert_eq!(
        append(&store, entries.clone()).await.unwrap(),
        append(&other, entries.clone()).await.unwrap()
    );
    assert_eq!(store.last_chain(), other.last_chain());
    drop(store);
    let store = open(&disk).unwrap();
    assert_same(&read_all(&store, 0), &entries);
}

#[tokio::test]
#[should_panic(expected = "applied entry 5 is never cut")]
async fn cutting_an_applied_entry_ends_the_process() {
    let store = open(&SimulatedDisk::new(1)).unwrap();
    append(&store, (0..10).map(|index| entry(index, 1, 10)).collect()).await.unwrap();
    store.applied(LogIndex(5));
    let _ = store.truncate_after(Some(LogIndex(4))).await;
}

#[derive(Debug, Clone)]
enum Step {
    Append { lens: Vec<usize>, wait: bool },
    Cut { back: u64 },
    Apply { back: u64 },
    Reopen { close: bool },
    Read { from: u64, bytes_max: usize },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (prop::collection::vec(0usize..9000, 1..6), any::<bool>())
            .prop_map(|(lens, wait)| Step::Append { lens, wait }),
        1 => (0u64..20).prop_map(|back| Step::Cut { back }),
        2 => (0u64..20).prop_map(|back| Step::Apply { back }),
        1 => any::<bool>().prop_map(|close| Step::Reopen { close }),
        3 => (any::<u64>(), 0usize..40_000).prop_map(|(from, bytes_max)| Step::Read { from, bytes_max }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_done_the_log_reads_as_a_list_would(steps in prop::collection::vec(step(), 1..60)) {
        runtime().block_on(async {
            let disk = SimulatedDisk::new(1);
            let mut store = open(&disk).unwrap();
            let mut list: Vec<NewEntry> = Vec::new();
            let (mut term, mut applied) = (1, 0);
            for step in steps {
                match step {
                    Step::Append { lens, wait } => {
                        let next = list.len() as u64;
                        let entries: Vec<_> =
                            lens.iter().enumerate().map(|(i, len)| entry(next + i as u64, term, *len)).collect();
                        list.extend(entries.clone());
                        if wait {
                            append(&store, entries).await.unwrap();
                        } else {
                            store.append(entries, Box::new(|_| {})).await.unwrap();
                        }
                    }
                    Step::Cut { back } => {
                        let kept = (list.len() as u64).saturating_sub(back).max(applied);
                        list.truncate(kept as usize);
                        term += 1;
                        store.truncate_after(kept.checked_sub(1).map(LogIndex)).await.unwrap();
                    }
                    Step::Apply { back } => {
                        applied = applied.max((list.len() as u64).saturating_sub(back));
                        if let Some(index) = applied.checked_sub(1) {
                            store.applied(LogIndex(index));
                        }
                    }
                    Step::Reopen { close } => {
                        // An append that nobody waited for may be lost by a drop, so it is awaited.
                        store.save_vote(VoteRecord { term, node_id: 1, committed: false }).await.unwrap();
                        if close {
                            store.close().await.unwrap();
                        }
                        drop(store);
                        store = open(&disk).unwrap();
                        applied = 0;
                    }
                    Step::Read { from, bytes_max } => {
                        let from = from % (list.len() as u64 + 2);
                        let found = store.read(LogIndex(from)..LogIndex(from + 50), bytes_max).unwrap();
                        let rest = list.get(from as usize..).unwrap_or_default();
                        assert_same(&found, &rest[..found.len()]);
                        assert_eq!(found.is_empty(), rest.is_empty());
                        let bytes: usize = found.iter().map(|entry| entry.payload.len()).sum();
                        assert!(found.len() == 1 || bytes <= bytes_max || found.is_empty());
                        for entry in found.iter().filter(|entry| !entry.payload.is_empty()) {
                            let len = entry.payload.len() as u32;
                            assert!(store.read_bytes(entry.payload_at, len).unwrap() == entry.payload);
                            let boundary = store.boundary_at(entry.id.index).unwrap().unwrap();
                            assert_eq!(boundary.id, entry.id);
                        }
                    }
                }
                assert_eq!(store.last_id(), list.last().map(|last| last.id));
            }
            assert_same(&read_all(&store, 0), &list);
            let id = EntryId { term: Term(term), index: LogIndex(list.len() as u64) };
            assert_eq!(store.entry_id_at(id.index).unwrap(), None);
        });
    }
}
