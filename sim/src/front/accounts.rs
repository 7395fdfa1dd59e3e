//! Requests about the two books: topics that get batches, and consumer groups that share them.
//!
//! | Request | Fields, little endian |
//! |---|---|
//! | 60 batch | messages, each: book u8, queue u32, id, body (texts with a length u16 before them) |
//! | 61 one message, not as a batch | the same, once |
//! | 62 receive | reader u8, book u8, messages at most u32, invisible ms u64, client u64 |
//! | 63 acks | reader u8, book u8, then each: queue u32, offset u64, epoch u64 |
//! | 64 change | reader u8, book u8, invisible ms u64, then as one of 63 |

use bytes::{Buf, BufMut, Bytes, BytesMut};
use ledgermq_broker::state::command::{AckEntry, ConsumerGroupSettings, MessageProperties};
use ledgermq_broker::state::{
    AckMessages, Answer, BatchTopic, BodyEncoding, ChangeInvisible, Command, ConsumerGroupId, Generation,
    MessageType, NewMessage, TopicId, TopicSettings, encode_append, encode_batch,
};
use ledgermq_common::QueueId;
use ledgermq_common::clock::Clock as _;
use ledgermq_raft_store::group::ProposeError;

use super::{Front, decode_entry, put_entry};

/// Queues of each book.
pub const BOOK_QUEUES: u32 = 3;

/// A topic that gets batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Book {
    Debits,
    Credits,
}

impl Book {
    pub const ALL: [Self; 2] = [Self::Debits, Self::Credits];

    pub fn topic(self) -> &'static str {
        match self {
            Self::Debits => "debits",
            Self::Credits => "credits",
        }
    }

    fn decode(frame: &mut Bytes) -> Option<Self> {
        Self::ALL.get(usize::from(frame.try_get_u8().ok()?)).copied()
    }
}

/// A consumer group of the books.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reader {
    /// Receives debits, and gives up soon.
    Ledger,
    /// Receives both books, and is reset now and then.
    Audit,
    /// Pulls debits by offset, and is reset now and then.
    Archive,
}

impl Reader {
    pub const ALL: [Self; 3] = [Self::Ledger, Self::Audit, Self::Archive];
    /// The book whose messages end as dead letters.
    pub const LETTERS_OF: Book = Book::Debits;
    /// The book that is pulled by offset.
    pub const OFFSETS_IN: Book = Book::Debits;

    pub fn group(self) -> &'static str {
        match self {
            Self::Ledger => "ledger",
            Self::Audit => "audit",
            Self::Archive => "archive",
        }
    }

    /// What it receives.
    pub fn books(self) -> &'static [Book] {
        match self {
            Self::Ledger => &[Self::LETTERS_OF],
            Self::Audit => &Book::ALL,
            Self::Archive => &[],
        }
    }

    pub(super) fn decode(frame: &mut Bytes) -> Option<Self> {
        Self::ALL.get(usize::from(frame.try_get_u8().ok()?)).copied()
    }
}

/// A message on its way to a book.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    pub book: Book,
    pub queue: u32,
    pub id: String,
    pub body: Bytes,
}

#[derive(Debug, Clone)]
pub enum AccountsRequest {
    Batch(Vec<Item>),
    Append(Item),
    Receive { reader: Reader, book: Book, messages_max: u32, invisible_ms: u64, client: u64 },
    Acks { reader: Reader, book: Book, entries: Vec<AckEntry> },
    Change { reader: Reader, book: Book, invisible_ms: u64, entry: AckEntry },
}

impl Front {
    pub(super) async fn execute_accounts(&self, request: AccountsRequest) -> Result<Answer, ProposeError> {
        match request {
            AccountsRequest::Batch(items) => {
                let mut topics: Vec<BatchTopic> = Vec::new();
                let mut messages = Vec::new();
                for item in items {
                    let topic = self.book(item.book).await?;
                    if topics.iter().all(|of| of.topic != topic) {
                        topics.push(BatchTopic { topic, generation: Generation(0) });
                    }
                    messages.push((topic, self.message_of(item)));
                }
                self.propose(encode_batch(self.clock.now(), &topics, &messages)).await
            }
            AccountsRequest::Append(item) => {
                let topic = self.book(item.book).await?;
                self.propose(encode_append(self.clock.now(), topic, &[self.message_of(item)])).await
            }
            AccountsRequest::Receive { reader, book, messages_max, invisible_ms, client } => {
                let (consumer_group, topic) = (self.reader(reader).await?, self.book(book).await?);
                self.receive(consumer_group, topic, messages_max, invisible_ms, client).await
            }
            AccountsRequest::Acks { reader, book, entries } => {
                let acks = AckMessages {
                    consumer_group: self.reader(reader).await?,
                    topic: self.book(book).await?,
                    entries,
                };
                self.propose(Command::AckMessages(acks).encode(self.clock.now())).await
            }
            AccountsRequest::Change { reader, book, invisible_ms, entry } => {
                let change = ChangeInvisible {
                    consumer_group: self.reader(reader).await?,
                    topic: self.book(book).await?,
                    queue: entry.queue,
                    offset: entry.offset,
                    epoch: entry.epoch,
                    invisible_ms,
                };
                self.propose(Command::ChangeInvisible(change).encode(self.clock.now())).await
            }
        }
    }

    fn message_of(&self, item: Item) -> NewMessage {
        NewMessage {
            queue: QueueId(item.queue),
            id: item.id,
            message_type: MessageType::Normal,
            body_encoding: BodyEncoding::Identity,
            born_at: self.clock.now(),
            properties: MessageProperties::default(),
            body: item.body,
        }
    }

    pub(super) async fn book(&self, book: Book) -> Result<TopicId, ProposeError> {
        self.topic_named(book.topic(), TopicSettings::normal(BOOK_QUEUES)).await
    }

    pub(super) async fn reader(&self, reader: Reader) -> Result<ConsumerGroupId, ProposeError> {
        let attempts_max = match reader {
            Reader::Ledger => self.plan.accounts.attempts_max,
            Reader::Audit | Reader::Archive => u32::MAX,
        };
        let settings = ConsumerGroupSettings { attempts_max, ..ConsumerGroupSettings::default() };
        self.group_named(reader.group(), settings).await
    }
}

impl AccountsRequest {
    pub(super) fn encode(&self, out: &mut BytesMut) {
        match self {
            Self::Batch(items) => {
                out.put_u8(60);
                items.iter().for_each(|item| item.encode(out));
            }
            Self::Append(item) => {
                out.put_u8(61);
                item.encode(out);
            }
            Self::Receive { reader, book, messages_max, invisible_ms, client } => {
                out.put_slice(&[62, *reader as u8, *book as u8]);
                out.put_u32_le(*messages_max);
                out.put_u64_le(*invisible_ms);
                out.put_u64_le(*client);
            }
            Self::Acks { reader, book, entries } => {
                out.put_slice(&[63, *reader as u8, *book as u8]);
                entries.iter().for_each(|entry| put_entry(out, entry));
            }
            Self::Change { reader, book, invisible_ms, entry } => {
                out.put_slice(&[64, *reader as u8, *book as u8]);
                out.put_u64_le(*invisible_ms);
                put_entry(out, entry);
            }
        }
    }

    pub(super) fn decode(kind: u8, mut frame: Bytes) -> Option<Self> {
        match kind {
            60 => {
                let mut items = Vec::new();
                while frame.has_remaining() {
                    items.push(Item::decode(&mut frame)?);
                }
                return Some(Self::Batch(items));
            }
            61 => return Some(Self::Append(Item::decode(&mut frame)?)),
            _ => {}
        }
        let (reader, book) = (Reader::decode(&mut frame)?, Book::decode(&mut frame)?);
        Some(match kind {
            62 => Self::Receive {
                reader,
                book,
                messages_max: frame.try_get_u32_le().ok()?,
                invisible_ms: frame.try_get_u64_le().ok()?,
                client: frame.try_get_u64_le().ok()?,
            },
            63 => {
                let mut entries = Vec::new();
                while frame.has_remaining() {
                    entries.push(decode_entry(&mut frame)?);
                }
                Self::Acks { reader, book, entries }
            }
            64 => Self::Change {
                reader,
                book,
                invisible_ms: frame.try_get_u64_le().ok()?,
                entry: decode_entry(&mut frame)?,
            },
            _ => return None,
        })
    }
}

impl Item {
    fn encode(&self, out: &mut BytesMut) {
        out.put_u8(self.book as u8);
        out.put_u32_le(self.queue);
        for text in [self.id.as_bytes(), &self.body] {
            out.put_u16_le(u16::try_from(text.len()).expect("short messages"));
            out.put_slice(text);
        }
    }

    fn decode(frame: &mut Bytes) -> Option<Self> {
        let (book, queue) = (Book::decode(frame)?, frame.try_get_u32_le().ok()?);
        let mut text = || {
            let len = usize::from(frame.try_get_u16_le().ok()?);
            (frame.len() >= len).then(|| frame.split_to(len))
        };
        Some(Self { book, queue, id: String::from_utf8(text()?.to_vec()).ok()?, body: text()? })
    }
}
