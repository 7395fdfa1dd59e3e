//! Offsets and letters: clients that pull each queue from where their group is and commit how far they
//! got, an operator who moves groups, and one who reads the dead letters and gives some back.

use super::*;
use crate::front::accounts::{BOOK_QUEUES, Reader};
use crate::front::letters::LettersRequest;
use crate::front::offsets::{OffsetsRequest, ResetTo};
use crate::model::offsets::Wish;
use ledgermq_broker::state::{CommitOutcome, ResetId};
use ledgermq_common::QueueOffset;

/// How often a commit that was not answered is not tried again.
const LET_GO_SHARE: f64 = 0.4;
/// How often a client says again what it committed a while ago: the copy of a request that was delayed.
const LATE_SHARE: f64 = 0.3;
/// How often a client does not say of which reset it knows, as RocketMQ's clients cannot.
const KNOWS_NOTHING_SHARE: f64 = 0.3;
const RESET_PAUSE_MS_MAX: u64 = 2_500;
const REDRIVE_PAUSE_MS_MAX: u64 = 1_200;
const LETTERS_READ_MAX: u32 = 16;

impl Workload {
    /// One client per queue, so that offsets of a queue go ahead unless somebody resets them.
    pub(super) async fn pull(self, puller: usize) {
        let mut client = self.client(&format!("puller {puller}"), 760 + puller as u64);
        let queues: Vec<QueueId> = (0..BOOK_QUEUES)
            .filter(|queue| *queue as usize % self.plan.accounts.pullers == puller)
            .map(QueueId)
            .collect();
        let mut said = Vec::new();
        loop {
            if self.stage.accounts_are_quiet(&self.plan) && self.oracle.offsets_are_at_the_end(&queues) {
                break;
            }
            for queue in &queues {
                said.extend(client.pull_once(*queue).await);
            }
            if !said.is_empty() && client.random.random_bool(LATE_SHARE) {
                let late = said[client.random.random_range(0..said.len())];
                client.commit(late).await;
            }
            client.pause(90).await;
        }
        self.stage.accounts_done.fetch_add(1, Ordering::SeqCst);
    }

    /// Each reset is repeated until it is answered.
    pub(super) async fn reset_groups(self) {
        let mut client = self.client("operator of offsets", 780);
        for _ in 0..self.plan.accounts.resets {
            if self.stage.is_healed() {
                break;
            }
            client.pause(RESET_PAUSE_MS_MAX).await;
            let reader = if client.random.random_bool(0.6) { Reader::Archive } else { Reader::Audit };
            let queue = QueueId(client.random.random_range(0..BOOK_QUEUES));
            let to = match client.random.random_range(0..5) {
                0 => ResetTo::Beginning,
                1 => ResetTo::End,
                2 => ResetTo::Offset(queue, QueueOffset(client.random.random_range(0..40))),
                _ => ResetTo::At(client.some_time()),
            };
            let id = ResetId(client.random.random());
            client.reset(reader, to, id).await;
            if client.random.random_bool(LATE_SHARE) {
                client.pause(RESET_PAUSE_MS_MAX).await;
                client.reset_late(reader, to, id).await;
            }
        }
        self.stage.are_reset.store(true, Ordering::SeqCst);
        self.stage.accounts_done.fetch_add(1, Ordering::SeqCst);
    }

    pub(super) async fn redrive_letters(self) {
        let mut client = self.client("operator of letters", 790);
        for _ in 0..self.plan.accounts.redrives {
            if self.stage.is_healed() {
                break;
            }
            client.pause(REDRIVE_PAUSE_MS_MAX).await;
            client.redrive_one().await;
        }
        self.stage.are_redriven.store(true, Ordering::SeqCst);
        self.stage.accounts_done.fetch_add(1, Ordering::SeqCst);
    }
}

impl Client {
    /// Asks anybody where the group is, pulls from there and commits: what it said.
    async fn pull_once(&mut self, queue: QueueId) -> Option<Wish> {
        if self.random.random_bool(0.1) {
            self.ask_of_queue(queue).await;
        }
        let answered = self.oracle.answered();
        let Some(Response::Committed { offset, last_reset }) = self.ask(OffsetsRequest::Get { queue }).await
        else {
            return None;
        };
        self.oracle.offset_read(&self.who, queue, (offset, last_reset), answered);
        let from = offset.unwrap_or_default();
        let messages_max = self.random.random_range(1..=16);
        let pull = OffsetsRequest::Pull { queue, from, messages_max };
        let Some(Response::Pulled(messages)) = self.ask(pull).await else { return None };
        self.oracle.pulled(&self.who, queue, from, &messages);
        let (last, _) = messages.last()?;
        let known = Some(last_reset).filter(|_| !self.random.random_bool(KNOWS_NOTHING_SHARE));
        let wish = Wish { queue, offset: QueueOffset(last.get() + 1), known };
        self.commit(wish).await;
        Some(wish)
    }

    async fn ask(&mut self, request: OffsetsRequest) -> Option<Response> {
        self.call(&Request::Offsets(request)).await
    }

    async fn commit(&mut self, wish: Wish) {
        let Wish { queue, offset, known } = wish;
        loop {
            self.oracle.commit_begins(wish);
            match self.ask(OffsetsRequest::Commit { queue, offset, known }).await {
                Some(Response::Answered(Answer::OffsetCommitted(CommitOutcome::Committed))) => {
                    self.oracle.commit_ends(&self.who, wish, true);
                    return;
                }
                // Superseded, or what it got expired meanwhile; the model knows whether that is so.
                Some(Response::Answered(
                    Answer::OffsetCommitted(_) | Answer::Refused(Refusal::OffsetOutOfRange),
                )) => {
                    self.oracle.commit_ends(&self.who, wish, false);
                    return;
                }
                Some(Response::Answered(answer)) => {
                    self.oracle.violate(format_args!("{}: commit of {offset}: {answer:?}", self.who));
                    return;
                }
                // Nothing was appended.
                Some(Response::NotLeader { .. }) => {
                    self.oracle.commit_ends(&self.who, wish, false);
                }
                _ if self.random.random_bool(LET_GO_SHARE) => return,
                _ => {}
            }
        }
    }

    /// The ends of a queue, and where a time is in it.
    async fn ask_of_queue(&mut self, queue: QueueId) {
        let at = self.some_time();
        for (request, to) in [
            (OffsetsRequest::Beginning { queue }, ResetTo::Beginning),
            (OffsetsRequest::End { queue }, ResetTo::End),
            (OffsetsRequest::At { queue, at }, ResetTo::At(at)),
        ] {
            let answered = self.oracle.answered();
            if let Some(Response::Offset(Some(offset))) = self.ask(request).await {
                self.oracle.offset_found(&self.who, queue, to, offset, answered);
            }
        }
    }

    /// Of which nobody knows how log time stands to it.
    fn some_time(&mut self) -> UnixMillis {
        let ago_ms = self.random.random_range(0..4_000);
        UnixMillis((EPOCH.get() + self.oracle.now_ms()).saturating_sub(ago_ms))
    }

    /// The copy of a reset that was answered a while ago.
    async fn reset_late(&mut self, reader: Reader, to: ResetTo, id: ResetId) {
        if let Some(Response::Answered(answer)) = self.ask(OffsetsRequest::Reset { reader, to, id }).await
            && !matches!(answer, Answer::OffsetsSet(_))
        {
            self.oracle.violate(format_args!("{}: late reset to {to:?}: {answer:?}", self.who));
        }
    }

    async fn reset(&mut self, reader: Reader, to: ResetTo, id: ResetId) {
        let answered = self.oracle.answered();
        loop {
            match self.ask(OffsetsRequest::Reset { reader, to, id }).await {
                Some(Response::Answered(Answer::OffsetsSet(queues))) => {
                    self.oracle.reset_answered(&self.who, reader, to, queues, answered);
                    return;
                }
                Some(Response::Answered(answer)) => {
                    self.oracle.violate(format_args!("{}: reset to {to:?}: {answer:?}", self.who));
                    return;
                }
                _ => {}
            }
        }
    }

    /// Reads the letters of the group that gives up soon, and gives one back, or tries to again.
    async fn redrive_one(&mut self) {
        let from = QueueOffset(0);
        let pull = LettersRequest::Pull { from, letters_max: LETTERS_READ_MAX };
        let Some(Response::Pulled(letters)) = self.call(&Request::Letters(pull)).await else { return };
        self.oracle.letters_pulled(&self.who, from, &letters);
        if letters.is_empty() {
            return;
        }
        let (letter, _) = letters[self.random.random_range(0..letters.len())];
        let request = Request::Letters(LettersRequest::Redrive { letter });
        for _ in 0..3 {
            match self.call(&request).await {
                Some(Response::Answered(Answer::Redriven(_))) => return,
                Some(Response::Answered(answer)) => {
                    self.oracle.violate(format_args!("{}: a redrive was answered by {answer:?}", self.who));
                    return;
                }
                _ => {}
            }
        }
    }
}
