//! The ConsumeQueues of all topics: queue and offset → where the message record lies in the CommitLog.
//!
//! RocketMQ keeps a file per queue. Here a million queues share few structures, oldest first:
//!
//! | Part | Where | Written |
//! |---|---|---|
//! | runs ([`run`]) | immutable files, mapped | by each checkpoint, for the entries since the one before |
//! | frozen tails | memory, shared | when a checkpoint or snapshot starts |
//! | active tail ([`tail`]) | memory, under the state lock | by apply |
//!
//! Each part covers a range of the log, so for one queue its entries are contiguous and older than
//! those of the next part. A reader takes the list of sealed parts (one reference count) and copies
//! what it needs of the active tail under the state lock; files are read without it, so a page fault
//! never holds up apply.

pub(crate) mod ids;
pub(crate) mod run;
pub(crate) mod tail;

use std::sync::Arc;

use ledgermq_common::clock::UnixMillis;
use ledgermq_common::{PhysicalOffset, QueueId};

use super::names::TopicId;
use run::Run;
use tail::Tail;

/// Where a message lies and what is asked of it most, without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexEntry {
    /// Of the message record.
    pub physical: PhysicalOffset,
    pub record_bytes: u32,
    pub tag_code: u32,
    pub stored_at: UnixMillis,
}

/// A queue of a topic as one ordered number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct QueueKey(u64);

impl QueueKey {
    pub(crate) fn new(topic: TopicId, queue: QueueId) -> Self {
        Self((u64::from(topic.get()) << 32) | u64::from(queue.get()))
    }

    pub(crate) fn get(self) -> u64 {
        self.0
    }

    pub(crate) fn from_number(number: u64) -> Self {
        Self(number)
    }

    pub(crate) fn queue(self) -> u32 {
        self.0 as u32
    }

    pub(crate) fn topic(self) -> TopicId {
        TopicId((self.0 >> 32) as u32)
    }
}

/// Everything but the active tail; shared with readers and never changed, only replaced.
#[derive(Debug, Default)]
pub(crate) struct SealedParts {
    pub(crate) runs: Vec<Arc<Run>>,
    pub(crate) tails: Vec<Arc<Tail>>,
}

/// The index as apply sees it.
#[derive(Debug, Default)]
pub(crate) struct ConsumeQueueIndex {
    sealed: Arc<SealedParts>,
    active: Tail,
}

/// The entries of one queue from one offset on, as they were when the view was taken.
#[derive(Debug)]
pub(crate) struct QueueView {
    key: QueueKey,
    from: u64,
    to: u64,
    sealed: Arc<SealedParts>,
    active_first: u64,
    active: Vec<IndexEntry>,
}

impl ConsumeQueueIndex {
    pub(crate) fn push(&mut self, key: QueueKey, offset: u64, entry: IndexEntry) {
        self.active.push(key, offset, entry);
    }

    pub(crate) fn active_len(&self) -> usize {
        self.active.len()
    }

    /// Makes the active tail immutable, so that it can be read without the state lock.
    pub(crate) fn freeze(&mut self) -> Arc<SealedParts> {
        if self.active.len() > 0 {
            let mut tails = self.sealed.tails.clone();
            tails.push(Arc::new(std::mem::take(&mut self.active)));
            self.sealed = Arc::new(SealedParts { runs: self.sealed.runs.clone(), tails });
        }
        Arc::clone(&self.sealed)
    }

    /// The oldest `tails` frozen tails are in `runs` now, together with all runs before.
    pub(crate) fn replace_sealed(&mut self, runs: Vec<Arc<Run>>, tails: usize) {
        let rest = self.sealed.tails.get(tails..).expect("tails are frozen before they are written");
        self.sealed = Arc::new(SealedParts { runs, tails: rest.to_vec() });
    }

    pub(crate) fn of_runs(runs: Vec<Arc<Run>>) -> Self {
        Self { sealed: Arc::new(SealedParts { runs, tails: Vec::new() }), active: Tail::default() }
    }

    /// A view of `from..to`; short to take, to be read without the lock.
    pub(crate) fn view(&self, key: QueueKey, from: u64, to: u64) -> QueueView {
        let (active_first, active) = self.active.copy(key, from, to);
        QueueView { key, from, to, sealed: Arc::clone(&self.sealed), active_first, active }
    }
}

impl QueueView {
    /// The entries in order, from the first offset that is there.
    /// They are contiguous; they end early where an entry is missing.
    pub(crate) fn read(self) -> Vec<(u64, IndexEntry)> {
        let Self { key, from, to, sealed, active_first, active } = self;
        let capacity = usize::try_from(to.saturating_sub(from)).map_or(active.len(), |n| n.min(4096));
        let mut read = Contiguous { from, to, entries: Vec::with_capacity(capacity) };
        // The newest run that reaches back to `from` is where reading starts.
        let oldest = sealed
            .runs
            .iter()
            .rposition(|run| run.extent(key).is_some_and(|(first, _)| first <= from))
            .unwrap_or(0);
        for run in sealed.runs.iter().skip(oldest) {
            if read.is_full() {
                break;
            }
            if let Some((first, entries)) = run.read(key, from, to) {
                read.extend(first, entries.into_iter());
            }
        }
        for tail in &sealed.tails {
            if let Some((first, entries)) = tail.extent(key) {
                read.extend(first, entries.iter().copied());
            }
        }
        read.extend(active_first, active.into_iter());
        read.entries
    }
}

/// Collects the extents of the parts, oldest first, without a gap.
struct Contiguous {
    from: u64,
    to: u64,
    entries: Vec<(u64, IndexEntry)>,
}

impl Contiguous {
    fn is_full(&self) -> bool {
        self.entries.last().is_some_and(|(last, _)| last + 1 >= self.to)
    }

    fn extend(&mut self, first: u64, extent: impl ExactSizeIterator<Item = IndexEntry>) {
        let end = first + extent.len() as u64;
        let start = match self.entries.last() {
            Some((last, _)) => last + 1,
            None => self.from.max(first),
        };
        if start < first || start >= end || start >= self.to {
            return;
        }
        let skip = usize::try_from(start - first).expect("an extent fits memory");
        let take = usize::try_from(self.to.min(end) - start).expect("an extent fits memory");
        self.entries.extend((start..).zip(extent.skip(skip).take(take)));
    }
}
