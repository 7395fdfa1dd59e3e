//! Broken builds: promises that the state machine breaks on demand, so that a simulation can show
//! that it would notice.
//!
//! Only the feature `defects` compiles them in, and only the thread that asked for one has it. Without
//! the feature every question here is a constant no.

/// A promise that can be broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Defect {
    /// A message group goes to a second consumer while a first one holds it.
    TwoHolders,
    /// What lies behind the end of a generation is delivered before the generation is drained.
    GrowthWithoutDrain,
    /// A generation opens although its predecessor is not closed.
    OpenBeforeClosed,
    /// A repeat that was placed by a new generation does not meet what an older one stored.
    RepeatByNewGeneration,
    /// The end of a decided transaction is answered with what it asks for.
    TwoOutcomes,
    /// A half message is in its queue before it is committed.
    EarlyVisibility,
    /// A check of a transaction is answered and not counted.
    LostCheck,
    /// A committed half gets no place in its queue.
    CommitDropped,
    /// The end of a transaction does not have to name the message of its half.
    EndOfAnother,
    /// A repeated half is a second transaction.
    HalfTwice,
    /// A message whose time has come is visible twice.
    DoubleFire,
    /// A fire takes what is due within the next second.
    EarlyFire,
    /// A recalled timer is answered as such and stays.
    RecalledFires,
    /// A recall is forgotten when the time of its message comes.
    RecallForgotten,
    /// A repeated delayed send is a second timer.
    DelayedTwice,
    /// A lease lasts half of what was asked for.
    ShortenedLease,
    /// An acknowledgement is answered and not kept.
    ForgottenAck,
    /// An old delivery acknowledges what somebody else has now.
    StaleAckTaken,
    /// A changed invisible duration is answered and not kept.
    ChangeIgnored,
    /// A redelivery is the first attempt again.
    AttemptBack,
    /// A receive takes two messages and grants one.
    MessageSkipped,
    /// A message goes to the dead letters and its delivery does not end.
    LetterWithoutEnd,
    /// A new leader does not know the message ids of the one before.
    DedupeOfOneTerm,
    /// A repeat takes a queue offset.
    OffsetOfRepeat,
    /// Log time follows the clock of each leader, also back.
    LogTimeBack,
    /// A new leader gives the last offset of a queue to another message.
    SharedQueueOffset,
    /// A transaction that was checked once is not checked again.
    CheckStalled,
    /// A batch of which a part was stored before has the rest stored.
    BatchInPart,
    /// The last message of a batch gets a place in the answer and none in its queue.
    BatchCutShort,
    /// A new leader has committed offsets of a while ago.
    OffsetBack,
    /// A committed offset is answered and not kept.
    CommitForgotten,
    /// A commit that arrives late takes the group back.
    LateCommitTaken,
    /// A commit counts whatever reset its client knows of.
    CommitOfOtherReset,
    /// A reset that is repeated moves the group again.
    ResetTwice,
    /// A reset moves what is received and not what is pulled.
    ResetOfLeasesOnly,
    /// A message is in the dead-letter queue twice.
    LetterTwice,
    /// A message is given up and does not come to the dead-letter queue.
    LetterLost,
    /// A message is delivered once more than its consumer group allows.
    AttemptAboveMax,
    /// What waits for its way to the dead letters does not hold up its message group.
    ExhaustedPassed,
    /// A dead letter is given back whenever it is asked for.
    RedrivenTwice,
    /// What one consumer group acknowledged no other one gets.
    AckOfAnother,
}

#[cfg(feature = "defects")]
thread_local! {
    static ACTIVE: std::cell::Cell<Option<Defect>> = const { std::cell::Cell::new(None) };
}

/// Breaks one promise on this thread, or none.
#[cfg(feature = "defects")]
pub fn activate(defect: Option<Defect>) {
    ACTIVE.set(defect);
}

/// Whether this thread is to break the promise.
#[cfg(feature = "defects")]
pub(crate) fn is_active(defect: Defect) -> bool {
    ACTIVE.get() == Some(defect)
}

/// Whether this thread is to break the promise: no.
#[cfg(not(feature = "defects"))]
pub(crate) const fn is_active(_: Defect) -> bool {
    false
}
