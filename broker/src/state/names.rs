//! Numbers and small enums of the broker state. Numbers of topics and consumer groups are given
//! out in log order and never again, so a handle or an index entry of a deleted topic can never be
//! taken for one of a topic created later under the same name.

use xxhash_rust::xxh3::xxh3_64;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
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
    };
}

number! {
    /// A topic as this broker group numbered it, from 1.
    TopicId(u32)
}
number! {
    /// A consumer group as this broker group numbered it, from 1.
    ConsumerGroupId(u32)
}
number! {
    /// A list of the queues of a topic with order by which sends are placed; a topic begins with 0.
    Generation(u32)
}

impl Generation {
    pub(crate) fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    pub(crate) fn before(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
}

number! {
    /// One wish of an operator to reset a group, drawn by who asks; 0 for none. A repeat has the same.
    ResetId(u64)
}
number! {
    /// One delivery of one message; a later delivery of the message has a greater one.
    DeliveryEpoch(u64)
}
number! {
    /// A client id, hashed: leases carry it so that a client that ends gives its messages back.
    ClientHash(u64)
}

number! {
    /// One receive of one client, hashed from the client id and the request's attempt id; 0 for a
    /// request without one.
    AttemptHash(u64)
}

number! {
    /// A message id, hashed. With the physical offset of its record it names a transaction: bytes of
    /// a log that was lost and begun anew hold another message.
    MessageIdHash(u64)
}

impl MessageIdHash {
    pub fn of(message_id: &[u8]) -> Self {
        Self(xxh3_64(message_id))
    }
}

number! {
    /// What must be delivered in order, hashed from the message group; 0 for a lease without order.
    /// Part of what is persisted.
    OrderKey(u64)
}

impl OrderKey {
    /// Messages without a message group are one group of their queue.
    pub fn of(message_group: Option<&str>) -> Self {
        const NO_GROUP: u64 = 1;
        match message_group {
            None | Some("") => Self(NO_GROUP),
            Some(group) => Self(xxh3_64(group.as_bytes()).max(NO_GROUP + 1)),
        }
    }
}

/// How a transaction ends. The numbers are RocketMQ's (`TransactionResolution`) and stored in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Decision {
    Commit = 1,
    Rollback = 2,
}

impl Decision {
    pub const fn number(self) -> u8 {
        self as u8
    }

    pub const fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Commit,
            2 => Self::Rollback,
            _ => return None,
        })
    }
}

impl AttemptHash {
    /// The client is part of it: an attempt id is only unique for its client.
    pub fn of(client: ClientHash, attempt_id: &str) -> Self {
        if attempt_id.is_empty() {
            return Self(0);
        }
        Self(xxhash_rust::xxh3::xxh3_64_with_seed(attempt_id.as_bytes(), client.get()).max(1))
    }
}

impl ClientHash {
    pub fn of(client_id: &str) -> Self {
        Self(xxh3_64(client_id.as_bytes()))
    }
}

/// The numbers are RocketMQ's (`apache.rocketmq.v2.MessageType`) and stored in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum MessageType {
    Normal = 1,
    Fifo = 2,
    Delay = 3,
    Transaction = 4,
    Lite = 5,
    Priority = 6,
}

impl MessageType {
    pub const fn number(self) -> u8 {
        self as u8
    }

    pub const fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Normal,
            2 => Self::Fifo,
            3 => Self::Delay,
            4 => Self::Transaction,
            5 => Self::Lite,
            6 => Self::Priority,
            _ => return None,
        })
    }
}

/// How the producer encoded the body; stored and delivered as it came. The numbers are RocketMQ's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum BodyEncoding {
    Identity = 1,
    Gzip = 2,
}

impl BodyEncoding {
    pub const fn number(self) -> u8 {
        self as u8
    }

    pub const fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Identity,
            2 => Self::Gzip,
            _ => return None,
        })
    }
}

/// What clients may do with a topic. The numbers are RocketMQ's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Permission {
    Read = 2,
    Write = 3,
    ReadWrite = 4,
}

impl Permission {
    pub const fn number(self) -> u8 {
        self as u8
    }

    pub const fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            2 => Self::Read,
            3 => Self::Write,
            4 => Self::ReadWrite,
            _ => return None,
        })
    }

    pub const fn may_read(self) -> bool {
        matches!(self, Self::Read | Self::ReadWrite)
    }

    pub const fn may_write(self) -> bool {
        matches!(self, Self::Write | Self::ReadWrite)
    }
}
