//! One type per kind of number, so that the compiler keeps a log index out of a queue offset.

use serde::{Deserialize, Serialize};

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl $name {
            pub const fn get(self) -> $inner {
                self.0
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.fmt(f)
            }
        }

        impl From<$inner> for $name {
            fn from(value: $inner) -> Self {
                Self(value)
            }
        }
    };
}

number! {
    /// A process of the cluster. Never reused after its directory is lost: a node that forgot its
    /// vote under an old id could vote twice.
    NodeId(u64)
}
number! {
    /// A broker group: one Raft group with one CommitLog.
    GroupId(u32)
}
number! {
    /// A Raft term.
    Term(u64)
}
number! {
    /// The position of an entry in the Raft log, from 1.
    LogIndex(u64)
}
number! {
    /// A byte position in the CommitLog; the same on every replica of a group.
    PhysicalOffset(u64)
}
number! {
    /// A queue of a topic inside one broker group, from 0.
    QueueId(u32)
}
number! {
    /// The position of a message in its queue, from 0.
    QueueOffset(u64)
}
number! {
    /// Which reset of a consumer group in a queue was the last: the log index of its entry, 0 before the
    /// first. What is committed by a client that knows of another one does not count.
    ResetMark(u64)
}

impl PhysicalOffset {
    /// The offset `bytes` further on, or `None` past the end of the number.
    pub fn checked_add(self, bytes: u64) -> Option<Self> {
        self.0.checked_add(bytes).map(Self)
    }
}

impl LogIndex {
    pub fn next(self) -> Self {
        Self(self.0.checked_add(1).expect("2^64 log entries"))
    }
}
