//! The books: producers of batches over topics, of which some repeat what was stored before in whole
//! or in part, and consumer groups that share the topics. One of them acknowledges little, so that
//! messages use their attempts up.

use rand::seq::IndexedRandom as _;

use super::*;
use crate::front::accounts::{AccountsRequest, BOOK_QUEUES, Book, Item, Reader};

/// Batches of each producer at most, which bounds the memory of a run.
const BATCHES_MAX: u32 = 60;
/// Batches of each producer after the faults ended.
const BATCH_PROBES: u32 = 2;
const BATCH_MESSAGES_MAX: usize = 5;
const BODY_BYTES_MAX: usize = 40;
/// How often a batch that was answered is sent once more.
const BATCH_AGAIN_SHARE: f64 = 0.25;
/// How often the group that gives up soon leaves a message alone.
const NEGLECT_SHARE: f64 = 0.4;

/// How many clients of the books a seed has, and what they do.
#[derive(Debug, Clone, Copy, Default)]
pub struct AccountsPlan {
    pub producers: usize,
    /// Of the group that gives up soon.
    pub ledgers: usize,
    pub auditors: usize,
    pub pullers: usize,
    pub resets: u32,
    pub redrives: u32,
    /// How often the group that gives up soon is given a message.
    pub attempts_max: u32,
}

impl AccountsPlan {
    /// From a seed of its own, so that what else a seed means stays as it was.
    pub fn draw(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed ^ 0x6163_636f_756e_7473);
        if random.random_bool(0.3) {
            return Self::default();
        }
        Self {
            producers: random.random_range(1..=2),
            ledgers: random.random_range(1..=2),
            auditors: random.random_range(1..=2),
            pullers: random.random_range(1..=2),
            resets: random.random_range(0..=4),
            redrives: random.random_range(0..=6),
            attempts_max: random.random_range(1..=3),
        }
    }

    /// All clients, the operators among them.
    pub fn clients(&self) -> usize {
        let operators = if self.producers > 0 { 2 } else { 0 };
        self.producers + self.ledgers + self.auditors + self.pullers + operators
    }
}

/// What is known of a batch that was answered.
struct Sent {
    items: Vec<Item>,
    places: Vec<Place>,
}

impl Workload {
    pub(super) fn spawn_accounts(&self, tasks: &mut Vec<tokio::task::JoinHandle<()>>) {
        let plan = self.plan.accounts;
        for producer in 0..plan.producers {
            tasks.push(tokio::spawn(self.clone().produce_batches(producer)));
        }
        for number in 0..plan.ledgers {
            tasks.push(tokio::spawn(self.clone().consume_books(Reader::Ledger, 720 + number as u64)));
        }
        for number in 0..plan.auditors {
            tasks.push(tokio::spawn(self.clone().consume_books(Reader::Audit, 740 + number as u64)));
        }
        for puller in 0..plan.pullers {
            tasks.push(tokio::spawn(self.clone().pull(puller)));
        }
        if plan.producers > 0 {
            tasks.push(tokio::spawn(self.clone().reset_groups()));
            tasks.push(tokio::spawn(self.clone().redrive_letters()));
        }
    }

    async fn produce_batches(self, producer: usize) {
        let mut client = self.client(&format!("batch producer {producer}"), 700 + producer as u64);
        let mut probes_left = BATCH_PROBES;
        let mut sent: Vec<Sent> = Vec::new();
        for number in 0..BATCHES_MAX {
            if self.stage.is_healed() {
                if probes_left == 0 {
                    break;
                }
                probes_left -= 1;
            }
            let mut items = client.new_batch(&format!("b{producer}-{number:04}"));
            match client.random.random_range(0..10) {
                // One message of it is stored already, by a request of its own or by an earlier batch.
                0 | 1 => {
                    let known = if sent.is_empty() || client.random.random_bool(0.5) {
                        let alone = client.new_batch(&format!("a{producer}-{number:04}")).remove(0);
                        client.append_alone(&alone).await;
                        alone
                    } else {
                        let earlier = sent.choose(&mut client.random).expect("not empty");
                        earlier.items.choose(&mut client.random).expect("a message").clone()
                    };
                    let at = client.random.random_range(0..=items.len());
                    items.insert(at, known);
                    client.send_batch(&items, true).await;
                }
                // All of it is, by requests of their own.
                2 => {
                    for item in &items {
                        client.append_alone(item).await;
                    }
                    client.send_batch(&items, false).await;
                }
                // Another producer sends one with the same message at about the same time.
                3 => {
                    let shared = client.new_batch(&format!("s-{}", number / 4)).remove(0);
                    items.push(shared);
                    client.send_batch(&items, true).await;
                }
                _ => {
                    if let Some(places) = client.send_batch(&items, false).await {
                        sent.push(Sent { items, places });
                    }
                }
            }
            if client.random.random_bool(BATCH_AGAIN_SHARE)
                && let Some(first) = sent.choose(&mut client.random)
            {
                let again = client.send_batch(&first.items, false).await;
                if again.as_ref() != Some(&first.places) {
                    let (places, ids) = (&first.places, ids_of(&first.items));
                    self.oracle
                        .violate(format_args!("batch {ids:?} was stored at {places:?}, then {again:?}"));
                }
            }
            client.pause(120).await;
        }
        self.stage.batch_producers_done.fetch_add(1, Ordering::SeqCst);
    }

    async fn consume_books(self, reader: Reader, hash: u64) {
        let mut client = self.client(&format!("{} {hash}", reader.group()), hash);
        loop {
            if self.stage.accounts_are_quiet(&self.plan) && self.oracle.books_are_read(reader) {
                break;
            }
            for book in reader.books() {
                client.receive_from(reader, *book, hash, self.stage.is_healed()).await;
            }
            client.pause(90).await;
        }
        self.stage.accounts_done.fetch_add(1, Ordering::SeqCst);
    }
}

fn ids_of(items: &[Item]) -> Vec<&str> {
    items.iter().map(|item| item.id.as_str()).collect()
}

impl Client {
    fn new_batch(&mut self, id: &str) -> Vec<Item> {
        let count = self.random.random_range(2..=BATCH_MESSAGES_MAX);
        let only = self.random.random_bool(0.3).then(|| *Book::ALL.choose(&mut self.random).expect("two"));
        (0..count)
            .map(|number| {
                let book = only.unwrap_or_else(|| *Book::ALL.choose(&mut self.random).expect("two"));
                let mut body = vec![0; self.random.random_range(0..=BODY_BYTES_MAX)];
                self.random.fill(&mut body[..]);
                let queue = self.random.random_range(0..BOOK_QUEUES);
                Item { book, queue, id: format!("{id}-{number}"), body: body.into() }
            })
            .collect()
    }

    /// Repeats until it is answered. `None`: it was refused, because a part of it was stored before.
    async fn send_batch(&mut self, items: &[Item], may_be_partly_known: bool) -> Option<Vec<Place>> {
        let request = Request::Accounts(AccountsRequest::Batch(items.to_vec()));
        loop {
            match self.call(&request).await {
                Some(Response::Answered(Answer::Stored(places))) if places.len() == items.len() => {
                    self.oracle.batch_stored(&self.who, items, &places);
                    return Some(places.iter().map(|at| (at.queue, at.offset)).collect());
                }
                Some(Response::Answered(Answer::BatchPartlyStored(partly))) if may_be_partly_known => {
                    self.oracle.batch_refused(&self.who, items, partly);
                    return None;
                }
                Some(Response::Answered(answer)) => {
                    let ids = ids_of(items);
                    self.oracle.violate(format_args!("{}: batch {ids:?}: {answer:?}", self.who));
                    return std::future::pending().await;
                }
                Some(Response::NotLeader { .. }) => {}
                Some(_) | None => self.oracle.unknown_outcome(&self.who, &items[0].id),
            }
        }
    }

    async fn append_alone(&mut self, item: &Item) {
        let request = Request::Accounts(AccountsRequest::Append(item.clone()));
        loop {
            match self.call(&request).await {
                Some(Response::Answered(Answer::Stored(places))) if places.len() == 1 => {
                    self.oracle.batch_stored(&self.who, std::slice::from_ref(item), &places);
                    return;
                }
                Some(Response::Answered(answer)) => {
                    self.oracle.violate(format_args!("{}: {} was answered by {answer:?}", self.who, item.id));
                    return std::future::pending().await;
                }
                _ => {}
            }
        }
    }

    /// Acknowledges together what it does not leave alone.
    async fn receive_from(&mut self, reader: Reader, book: Book, client: u64, is_healed: bool) {
        let request = Request::Accounts(AccountsRequest::Receive {
            reader,
            book,
            messages_max: self.random.random_range(1..=16),
            invisible_ms: self.random.random_range(150..900),
            client,
        });
        let granted = match self.call(&request).await {
            Some(Response::Answered(Answer::Leased(granted))) => granted,
            Some(Response::Answered(answer)) => {
                self.oracle.violate(format_args!("{}: a receive was answered by {answer:?}", self.who));
                return;
            }
            _ => return,
        };
        self.oracle.books_received(&self.who, reader, book, &granted);
        let neglected = if reader == Reader::Ledger { NEGLECT_SHARE } else { NEGLECT_SHARE / 8.0 };
        let (mut entries, mut changed) = (Vec::new(), None);
        for grant in &granted {
            let entry = AckEntry { queue: grant.queue, offset: grant.offset, epoch: grant.epoch };
            if is_healed || !self.random.random_bool(neglected) {
                entries.push(entry);
            } else if self.random.random_bool(0.2) {
                changed = Some(entry);
            }
        }
        if let Some(entry) = changed {
            let invisible_ms = self.random.random_range(1..600);
            let change = AccountsRequest::Change { reader, book, invisible_ms, entry };
            self.call(&Request::Accounts(change)).await;
        }
        if entries.is_empty() {
            return;
        }
        let request = Request::Accounts(AccountsRequest::Acks { reader, book, entries });
        if let Some(Response::Answered(answer)) = self.call(&request).await
            && !matches!(answer, Answer::Acked(_))
        {
            self.oracle.violate(format_args!("{}: acks were answered by {answer:?}", self.who));
        }
    }
}
