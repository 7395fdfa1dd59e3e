//! Broadcasting: every instance receives every message of a topic.
//!
//! Each instance is a consumer group of its own, `group%instance`, with an offset in every queue. One task
//! per queue reads ahead by one answer; the offset of a queue is committed behind what
//! [`BroadcastConsumer::receive`] has handed out.
//!
//! | Queue | Read from |
//! |---|---|
//! | the instance has an offset in it | that offset: it goes on where it was |
//! | the instance is new: no offset in any queue of the topic | the start of the options; it is committed before anything is handed out |
//! | the queue is new: the topic has grown, or a broker group got it | its beginning (or the time of the options): all of it came after the instance began |
//!
//! | Failure | What happens |
//! |---|---|
//! | leader or node dies | the readers repeat their pulls; nothing is skipped |
//! | the instance dies | it receives again what it had received since its last commit |
//! | the instance's group is reset | it goes on where it was moved to: after the next commit, or when a wait for messages ends without one |
//! | what it has not read expired, or the topic was made again | it goes on at the beginning of the queue, and logs that |
//! | the topic has more than [`BROADCAST_QUEUES_MAX`] queues | not started; one that grows beyond: receive says so, and the new queues are not read |
//! | the topic is gone, the filter is wrong, … | [`BroadcastConsumer::receive`] says so; the readers try again |

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{join_all, try_join_all};
use ledgermq_common::limits::RECEIVE_BATCH_MESSAGES_MAX;
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, timeout_at};

use crate::consumer::Filter;
use crate::error::PullError;
use crate::message::PulledMessage;
use crate::pull::{Committed, Position, PullConsumer, Pulled, Queue};

/// Queues of one topic: each has a pull under way at all times. A leader lets no more of one group wait.
pub const BROADCAST_QUEUES_MAX: usize = 1024;
/// After an error that is not of the moment.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug, Clone)]
pub struct BroadcastOptions {
    pub group: String,
    /// Names this instance within the group. The same name goes on where it was; the cluster remembers
    /// each name, so it must not be a new one at every start.
    pub instance: String,
    pub topic: String,
    pub filter: Filter,
    /// Where a new instance begins.
    pub start: Position,
    /// How long a receive waits for a message.
    pub await_duration: Duration,
    /// A receive commits what earlier ones handed out when this much time has passed since the last
    /// commit.
    pub commit_interval: Duration,
    /// How often the route is asked for new queues.
    pub route_refresh: Duration,
}

impl BroadcastOptions {
    pub fn new(group: impl Into<String>, instance: impl Into<String>, topic: impl Into<String>) -> Self {
        Self {
            group: group.into(),
            instance: instance.into(),
            topic: topic.into(),
            filter: Filter::Tags("*".to_owned()),
            start: Position::End,
            await_duration: Duration::from_secs(5),
            commit_interval: Duration::from_secs(1),
            route_refresh: Duration::from_secs(30),
        }
    }

    pub fn filter(mut self, filter: Filter) -> Self {
        self.filter = filter;
        self
    }

    pub fn start(mut self, start: Position) -> Self {
        self.start = start;
        self
    }

    pub fn await_duration(mut self, wait: Duration) -> Self {
        self.await_duration = wait;
        self
    }

    pub fn commit_interval(mut self, interval: Duration) -> Self {
        self.commit_interval = interval;
        self
    }

    pub fn route_refresh(mut self, interval: Duration) -> Self {
        self.route_refresh = interval;
        self
    }

    /// The consumer group that holds this instance's offsets.
    pub fn consumer_group(&self) -> String {
        format!("{}%{}", self.group, self.instance)
    }
}

/// What a reader has for the application, in the order in which it saw it.
enum Batch {
    Read(Queue, Pulled),
    /// The group was reset; what comes now is from there on.
    Moved(Queue, Committed),
    Failed(PullError),
}

/// Dropped without [`Self::close`], it commits nothing more.
pub struct BroadcastConsumer {
    pull: PullConsumer,
    options: Arc<BroadcastOptions>,
    batches: tokio::sync::Mutex<mpsc::Receiver<Batch>>,
    progress: Mutex<Progress>,
    /// Held while committing: of two commits of a queue the later must not arrive first.
    committing: tokio::sync::Mutex<()>,
    /// Sent where a commit met a reset: the readers ask where the group is now.
    look_again: watch::Sender<()>,
    readers: JoinHandle<()>,
}

/// Behind what was handed out, and what of that is committed.
struct Progress {
    handed_out: BTreeMap<Queue, u64>,
    committed: BTreeMap<Queue, u64>,
    committed_at: Instant,
}

impl BroadcastConsumer {
    /// When it returns, the instance has its place in every queue.
    pub(crate) async fn start(pull: PullConsumer, options: BroadcastOptions) -> Result<Self, PullError> {
        let options = Arc::new(options);
        let queues = queues_of(&pull, &options.topic).await?;
        let committed = try_join_all(queues.iter().map(|queue| pull.committed(queue))).await?;
        let is_new = committed.iter().all(Option::is_none);
        let start = if is_new { options.start } else { start_of_a_new_queue(&options) };
        let offsets = queues.iter().zip(committed).map(|(queue, committed)| {
            let pull = &pull;
            async move {
                match committed {
                    Some(offset) => Ok((queue.clone(), offset)),
                    None => pull.offset(queue, start).await.map(|offset| (queue.clone(), offset)),
                }
            }
        });
        let offsets: BTreeMap<Queue, u64> = try_join_all(offsets).await?.into_iter().collect();
        if is_new {
            // Before anything is handed out: an instance that ends now must not miss what comes until
            // it is back.
            try_join_all(offsets.iter().map(|(queue, offset)| pull.commit(queue, *offset))).await?;
        }
        let (sender, batches) = mpsc::channel(1);
        let (look_again, resets) = watch::channel(());
        let readers = Readers { pull: pull.clone(), batches: sender, resets };
        let readers = tokio::spawn(readers.run(options.clone(), offsets.clone()));
        let progress =
            Progress { handed_out: offsets.clone(), committed: offsets, committed_at: Instant::now() };
        Ok(Self {
            pull,
            options,
            batches: tokio::sync::Mutex::new(batches),
            progress: Mutex::new(progress),
            committing: tokio::sync::Mutex::new(()),
            look_again,
            readers,
        })
    }

    pub fn client_id(&self) -> &str {
        self.pull.client_id()
    }

    /// Messages of one queue in their order; none if nothing arrived in time. Everything that earlier
    /// receives handed out counts as consumed now.
    pub async fn receive(&self) -> Result<Vec<PulledMessage>, PullError> {
        if self.progress.lock().committed_at.elapsed() >= self.options.commit_interval
            && let Err(error) = self.commit().await
        {
            // The next receive tries again; meanwhile a restart would repeat more.
            tracing::warn!(%error, group = self.options.consumer_group(), "offsets not committed");
        }
        let until = Instant::now() + self.options.await_duration;
        let mut batches = self.batches.lock().await;
        loop {
            let Ok(Some(batch)) = timeout_at(until, batches.recv()).await else { return Ok(Vec::new()) };
            match batch {
                Batch::Read(queue, pulled) => {
                    self.progress.lock().handed_out.insert(queue, pulled.next_offset);
                    if !pulled.messages.is_empty() {
                        return Ok(pulled.messages);
                    }
                }
                Batch::Moved(queue, committed) => self.follow(queue, committed).await,
                Batch::Failed(error) => return Err(error),
            }
        }
    }

    /// Commits the offsets behind everything that was handed out.
    pub async fn commit(&self) -> Result<(), PullError> {
        let _committing = self.committing.lock().await;
        let due: Vec<(Queue, u64)> = {
            let mut progress = self.progress.lock();
            progress.committed_at = Instant::now();
            let is_due = |(queue, offset): &(&Queue, &u64)| progress.committed.get(*queue) != Some(*offset);
            let due = progress.handed_out.iter().filter(is_due);
            due.map(|(queue, offset)| (queue.clone(), *offset)).collect()
        };
        let commits = due.iter().map(|(queue, offset)| self.pull.commit(queue, *offset));
        let outcomes = join_all(commits).await;
        let mut failed = None;
        for ((queue, offset), outcome) in due.into_iter().zip(outcomes) {
            match outcome {
                // It expired since it was handed out: the queue begins behind it.
                Ok(()) | Err(PullError::OutOfRange(_)) => {
                    self.progress.lock().committed.insert(queue, offset);
                }
                Err(PullError::WasReset(error)) => {
                    tracing::info!(%error, "goes on where the group was moved to");
                    self.look_again.send_replace(());
                }
                Err(error) => failed = Some(error),
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// The group was moved: what was handed out before counts no more. From here on commits are of the
    /// time after the reset, and none of before may be under way.
    async fn follow(&self, queue: Queue, committed: Committed) {
        let _committing = self.committing.lock().await;
        self.pull.know(&queue, committed);
        let mut progress = self.progress.lock();
        if let Some(offset) = committed.offset {
            progress.handed_out.insert(queue.clone(), offset);
            progress.committed.insert(queue, offset);
        }
    }

    /// Commits, and tells the cluster that this consumer ends.
    pub async fn close(self) -> Result<(), PullError> {
        self.readers.abort();
        let committed = self.commit().await;
        self.pull.clone().close().await;
        committed
    }
}

impl Drop for BroadcastConsumer {
    fn drop(&mut self) {
        self.readers.abort();
    }
}

/// What came before the instance began was in the queues it knew then.
fn start_of_a_new_queue(options: &BroadcastOptions) -> Position {
    match options.start {
        Position::Beginning | Position::End => Position::Beginning,
        at @ Position::At(_) => at,
    }
}

async fn queues_of(pull: &PullConsumer, topic: &str) -> Result<Vec<Queue>, PullError> {
    let queues = pull.queues(topic).await?;
    if queues.len() > BROADCAST_QUEUES_MAX {
        let (topic, queues) = (topic.to_owned(), queues.len());
        return Err(PullError::TooManyQueues { topic, queues, queues_max: BROADCAST_QUEUES_MAX });
    }
    Ok(queues)
}

/// The tasks that read, and what each of them needs.
#[derive(Clone)]
struct Readers {
    pull: PullConsumer,
    batches: mpsc::Sender<Batch>,
    resets: watch::Receiver<()>,
}

impl Readers {
    /// Keeps a reader for every queue of the topic. Ends, and all readers with it, when it is aborted.
    async fn run(self, options: Arc<BroadcastOptions>, offsets: BTreeMap<Queue, u64>) {
        let mut readers = JoinSet::new();
        let mut known: BTreeSet<Queue> = offsets.keys().cloned().collect();
        for (queue, offset) in offsets {
            readers.spawn(self.clone().read(queue, offset));
        }
        loop {
            tokio::time::sleep(options.route_refresh).await;
            let queues = match queues_of(&self.pull, &options.topic).await {
                Ok(queues) => queues,
                Err(error @ PullError::TooManyQueues { .. }) => {
                    if self.batches.send(Batch::Failed(error)).await.is_err() {
                        return;
                    }
                    continue;
                }
                // While nobody answers there are no new messages either.
                Err(_) => continue,
            };
            for queue in queues {
                if known.contains(&queue) {
                    continue;
                }
                if let Ok(offset) = self.pull.offset(&queue, start_of_a_new_queue(&options)).await {
                    known.insert(queue.clone());
                    readers.spawn(self.clone().read(queue, offset));
                }
            }
        }
    }

    /// Reads one queue for as long as somebody takes what it reads.
    async fn read(mut self, queue: Queue, mut offset: u64) {
        // The application may not have taken it yet.
        let mut followed = None;
        loop {
            let pulled = tokio::select! {
                pulled = self.pull.pull(&queue, offset, RECEIVE_BATCH_MESSAGES_MAX) => Some(pulled),
                looks = self.resets.changed() => match looks {
                    Ok(()) => None,
                    Err(_) => return,
                },
            };
            let batch = match pulled {
                Some(Ok(pulled)) if pulled.next_offset != offset => {
                    offset = pulled.next_offset;
                    Batch::Read(queue.clone(), pulled)
                }
                Some(Err(PullError::NoAnswer(error))) => {
                    tracing::warn!(%error, ?queue, "pulled in vain");
                    continue;
                }
                Some(Err(PullError::OutOfRange(range))) => {
                    tracing::warn!(%range, "goes on at the beginning of the queue");
                    offset = range.beginning;
                    continue;
                }
                Some(Err(error)) => {
                    if self.batches.send(Batch::Failed(error)).await.is_err() {
                        return;
                    }
                    tokio::time::sleep(REFUSED_PAUSE).await;
                    continue;
                }
                // Nothing came, or a commit met a reset.
                Some(Ok(_)) | None => match self.pull.moved(&queue).await {
                    Ok(Some(Committed { offset: Some(to), last_reset })) if followed != Some(last_reset) => {
                        (offset, followed) = (to, Some(last_reset));
                        Batch::Moved(queue.clone(), Committed { offset: Some(to), last_reset })
                    }
                    Ok(_) => continue,
                    Err(error) => {
                        tracing::warn!(%error, ?queue, "not known whether the group was reset");
                        continue;
                    }
                },
            };
            if self.batches.send(batch).await.is_err() {
                return;
            }
        }
    }
}
