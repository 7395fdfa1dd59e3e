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
