//! Ends in the middle: power cuts, kills and failing disks at every single disk operation.

use std::io::ErrorKind;

use ledgermq_common::LogIndex;
use ledgermq_raft_store::EntryId;
use ledgermq_raft_store::io::SimulatedDisk;
use ledgermq_raft_store::store::{AppendError, LogStore, NewEntry, StoreConfig, StoreFault, VoteRecord};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use crate::model::{append, assert_same, config, entry, open, open_with, read_all, runtime};

const STEPS: usize = 45;

/// What the script asked for, and what of it was acknowledged.
#[derive(Debug, Default, Clone)]
struct History {
    /// The log if everything asked for took effect.
    asked: Vec<NewEntry>,
    /// Entries that must be there: acknowledged, or kept by a cut that is under way.
    kept: usize,
    /// The log before a cut that is under way.
    uncut: Option<Vec<NewEntry>>,
    vote: Option<VoteRecord>,
    vote_asked: Option<VoteRecord>,
    purged: Option<EntryId>,
    purged_asked: Option<EntryId>,
}

impl History {
    /// Runs the script until it ends or the store does.
    async fn run(&mut self, store: &LogStore, seed: u64) -> Result<(), StoreFault> {
        let mut random = StdRng::seed_from_u64(seed);
        let mut term = 1;
        let mut applied = None;
        for _ in 0..STEPS {
            match random.random_range(0..12) {
                0..=6 => {
                    let next = self.asked.len() as u64;
                    let count = random.random_range(1..4);
                    let entries: Vec<_> = (next..next + count)
                        .map(|index| entry(index, term, random.random_range(0..4500)))
                        .collect();
                    self.asked.extend(entries.clone());
                    if random.random_bool(0.3) {
                        store.append(entries, Box::new(|_| {})).await.map_err(fault)?;
                    } else {
                        append(store, entries).await.map_err(fault)?;
                        self.kept = self.asked.len();
                    }
                }
                7 => {
                    term += 1;
                    let vote = VoteRecord { term, node_id: random.random_range(1..4), committed: false };
                    self.vote_asked = Some(vote);
                    store.save_vote(vote).await?;
                    self.vote = self.vote_asked;
                    // Votes and appends have one order.
                    self.kept = self.asked.len();
                }
                8 | 9 => {
                    let lowest = applied.map_or(0, |applied: u64| applied as usize + 1);
                    let kept = random.random_range(lowest..=self.asked.len());
                    term += 1;
                    self.uncut = Some(self.asked.clone());
                    self.asked.truncate(kept);
                    self.kept = self.kept.min(kept);
                    store.truncate_after(kept.checked_sub(1).map(|index| LogIndex(index as u64))).await?;
                    self.uncut = None;
                    self.kept = kept;
                }
                10 if self.kept > 0 => {
                    let index = random.random_range(0..self.kept);
                    applied = applied.max(Some(index as u64));
                    store.applied(LogIndex(index as u64));
                    let purged = self.asked[index].id;
                    if self.purged.is_none_or(|before| before < purged) {
                        self.purged_asked = Some(purged);
                        store.purge(purged).await?;
                        self.purged = self.purged_asked;
                    }
                }
                _ => store.release_before(store.physical_end()).await?,
            }
        }
        Ok(())
    }

    /// Compares with what a new start found, and takes that for granted from here on.
    fn check(&mut self, store: &LogStore, context: &str) {
        let vote = store.read_vote();
        assert!(vote == self.vote || vote == self.vote_asked, "{context}: vote {vote:?}");
        let purged = store.purged();
        assert!(purged == self.purged || purged == self.purged_asked, "{context}: purged {purged:?}");

        let oldest = store.oldest_index().get() as usize;
        assert!(oldest <= store.first_index().get() as usize, "{context}: only purged entries are released");
        let found = read_all(store, oldest as u64);
        let len = oldest + found.len();
        assert!(len >= self.kept, "{context}: {} entries were promised, {len} are there", self.kept);
        // A cut that was not acknowledged may have happened or not, but not half.
        let is_uncut = self.uncut.as_ref().is_some_and(|uncut| len > self.asked.len() && len <= uncut.len());
        let log = match &self.uncut {
            Some(uncut) if is_uncut => uncut.clone(),
            _ => self.asked.clone(),
        };
        assert!(len <= log.len(), "{context}: {len} entries, {} were asked for", log.len());
        assert_same(&found, &log[oldest..len]);
        store.verify_all().unwrap_or_else(|error| panic!("{context}: {error}"));

        self.asked = log[..len].to_vec();
        self.kept = len;
        self.uncut = None;
        (self.vote, self.vote_asked) = (vote, vote);
        (self.purged, self.purged_asked) = (purged, purged);
    }
}

fn fault(error: AppendError) -> StoreFault {
    match error {
        AppendError::Fault(fault) => fault,
        other => panic!("{other}"),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    PowerCut,
    /// The operation fails; the process ends; the machine goes on. Then the power is cut.
    Fault,
}

/// One run of the script per disk operation in it, each ended at that operation.
fn end_at_every_operation(seed: u64, end: End) {
    runtime().block_on(async {
        let mut at = 0;
        loop {
            let context = format!("seed {seed}, {end:?} at operation {at}");
            let disk = SimulatedDisk::new(seed ^ (at << 8));
            match end {
                End::PowerCut => disk.cut_power_at(at),
                End::Fault => disk.fail_at(at, ErrorKind::Other),
            }
            let mut history = History::default();
            let reached_end = match open(&disk) {
                Err(_) => false,
                Ok(store) => {
                    let outcome = history.run(&store, seed).await;
                    if let Err(fault) = &outcome {
                        let poisoned = store.fault().borrow().clone();
                        assert!(poisoned.is_some(), "{context}: {fault}");
                        let next = EntryId { index: LogIndex(1 << 40), ..EntryId::default() };
                        let refused = append(&store, vec![NewEntry { id: next, ..entry(0, 1, 1) }]).await;
                        assert!(matches!(refused, Err(AppendError::Fault(_))), "{context}");
                        assert!(
                            store
                                .save_vote(VoteRecord { term: 1 << 40, node_id: 1, committed: true })
                                .await
                                .is_err()
                        );
                    }
                    outcome.is_ok()
                }
            };
            if reached_end && disk.operations() <= at {
                return;
            }
            match end {
                End::PowerCut => disk.cut_power(),
                End::Fault => disk.kill(),
            }
            let store = open(&disk).unwrap_or_else(|error| panic!("{context}: {error}"));
            history.check(&store, &context);

            // What the start accepted must hold by itself: another end right now changes nothing.
            drop(store);
            disk.cut_power();
            let store = open(&disk).unwrap_or_else(|error| panic!("{context}, again: {error}"));
            history.check(&store, &format!("{context}, again"));
            let next = history.asked.len() as u64;
            append(&store, vec![entry(next, 1 << 20, 100)]).await.expect("the log goes on");
            drop(store);
            disk.cut_power();
            let store = open(&disk).unwrap();
            assert_eq!(store.last_id().map(|last| last.index), Some(LogIndex(next)), "{context}");
            at += 1;
        }
    });
}

#[test]
fn nothing_acknowledged_is_lost_wherever_the_power_goes() {
    for seed in 0..2 {
        end_at_every_operation(seed, End::PowerCut);
    }
}

#[test]
fn a_failing_operation_ends_the_store_and_loses_nothing_acknowledged() {
    for seed in 10..11 {
        end_at_every_operation(seed, End::Fault);
    }
}

#[test]
fn random_power_cuts_one_after_the_other_lose_nothing_acknowledged() {
    for seed in 100..140 {
        runtime().block_on(async {
            let disk = SimulatedDisk::new(seed);
            let mut random = StdRng::seed_from_u64(seed);
            let mut history = History::default();
            for life in 0..6 {
                let context = format!("seed {seed}, life {life}");
                let store = open(&disk).unwrap_or_else(|error| panic!("{context}: {error}"));
                history.check(&store, &context);
                // Some lives end without a cut: killed, closed or cut at rest.
                disk.cut_power_at(disk.operations() + random.random_range(0..250));
                let script = Lives { history: &mut history, term: 10 * (life + 1) };
                let outcome = script.run(&store, &mut random).await;
                if outcome.is_ok() && random.random_bool(0.3) {
                    let _ = store.close().await;
                }
                drop(store);
                disk.cut_power();
            }
            let store = open(&disk).unwrap();
            history.check(&store, &format!("seed {seed}, at the end"));
        });
    }
}

/// Appends and cuts only, over several lives of the process.
struct Lives<'a> {
    history: &'a mut History,
    term: u64,
}

impl Lives<'_> {
    async fn run(self, store: &LogStore, random: &mut StdRng) -> Result<(), StoreFault> {
        let Self { history, mut term } = self;
        for _ in 0..20 {
            let next = history.asked.len() as u64;
            if random.random_bool(0.25) && next > 0 {
                let kept = next - random.random_range(0..next.min(8));
                term += 1;
                history.uncut = Some(history.asked.clone());
                history.asked.truncate(kept as usize);
                history.kept = history.kept.min(kept as usize);
                store.truncate_after(kept.checked_sub(1).map(LogIndex)).await?;
                history.uncut = None;
                history.kept = kept as usize;
            } else {
                // Equal lengths, so that leftovers lie exactly where new frames could end.
                let entries: Vec<_> = (next..next + 3).map(|index| entry(index, term, 1000)).collect();
                history.asked.extend(entries.clone());
                append(store, entries).await.map_err(fault)?;
                history.kept = history.asked.len();
            }
        }
        Ok(())
    }
}

#[tokio::test]
async fn entries_whose_sync_failed_are_written_again_before_they_are_trusted() {
    let disk = SimulatedDisk::new(5);
    let store = open(&disk).unwrap();
    append(&store, vec![entry(0, 1, 3000)]).await.unwrap();
    // The write of the second entry succeeds, its sync fails, and the kernel calls the page clean.
    disk.fail_at(disk.operations() + 1, ErrorKind::Other);
    assert!(append(&store, vec![entry(1, 1, 3000)]).await.is_err());
    drop(store);
    disk.kill();
    let store = open(&disk).unwrap();
    let found = read_all(&store, 0).len();
    drop(store);
    disk.cut_power();
    let store = open(&disk).unwrap();
    assert_eq!(read_all(&store, 0).len(), found, "what recovery reported is still there");
}

#[tokio::test]
async fn a_full_disk_ends_the_store_but_a_vote_still_fits() {
    let disk = SimulatedDisk::new(5);
    let one_segment = StoreConfig { fill_ahead_bytes: 4096, ..config() };
    let store = open_with(&disk, one_segment).unwrap();
    disk.set_capacity(config().segment_bytes + 8192 + 4096);
    for index in 0..10 {
        append(&store, vec![entry(index, 1, 5000)]).await.unwrap();
    }
    let vote = VoteRecord { term: 7, node_id: 3, committed: false };
    store.save_vote(vote).await.expect("the superblock has its space");
    let mut next = 10;
    while append(&store, vec![entry(next, 1, 5000)]).await.is_ok() {
        next += 1;
        assert!(next < 100, "the next segment does not fit");
    }
    assert!(store.fault().borrow().is_some());
    drop(store);
    disk.kill();
    disk.set_capacity(u64::MAX);
    let store = open(&disk).unwrap();
    assert_eq!(store.read_vote(), Some(vote));
    let asked: Vec<NewEntry> = (0..next).map(|index| entry(index, 1, 5000)).collect();
    assert_same(&read_all(&store, 0)[..next as usize], &asked);
}
