//! Cost of a filter per message: `cargo run --release -p ledgermq-filter --example cost`.
//!
//! Each row evaluates one parsed expression against messages of eight properties, some of which
//! match, and counts what the evaluation allocates, which must be nothing.

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use ledgermq_filter::{Expression, parse_cached};

const MESSAGES: usize = 1_000;
const ROUNDS: usize = 1_000;

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: passes every call on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: `pointer` came from `alloc` above with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn message(number: usize) -> BTreeMap<String, String> {
    [
        ("TAGS", format!("tag-{}", number % 4)),
        ("region", ["eu", "us", "ap"][number % 3].to_owned()),
        ("amount", (number % 500).to_string()),
        ("price", format!("{}.{:02}", number % 90, number % 100)),
        ("customer", format!("customer-{number}")),
        ("vip", (number % 10 == 0).to_string()),
        ("channel", "web".to_owned()),
        ("trace", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".to_owned()),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value))
    .collect()
}

/// The round that was disturbed least: the machine does other things too.
fn least(rounds: impl Iterator<Item = f64>) -> f64 {
    rounds.fold(f64::INFINITY, f64::min)
}

fn main() {
    let messages: Vec<_> = (0..MESSAGES).map(message).collect();
    println!(
        "{:<72} {:>8} {:>10} {:>12} {:>10}",
        "expression", "matches", "ns/message", "allocations", "parse ns"
    );
    for text in [
        "TAGS = 'tag-1'",
        "amount > 250",
        "price BETWEEN 10.5 AND 20.5",
        "region IN ('eu', 'us') AND amount > 100 AND vip = FALSE",
        "customer STARTSWITH 'customer-9' OR (channel = 'app' AND NOT trace CONTAINS 'ffff')",
        "missing IS NULL AND (region = 'eu' OR region = 'ap') AND amount NOT BETWEEN 0 AND 99 AND price < 80",
    ] {
        let parse_ns = least((0..ROUNDS).map(|_| {
            let began = Instant::now();
            black_box(Expression::parse(black_box(text)).expect("valid"));
            began.elapsed().as_nanos() as f64
        }));
        let expression = parse_cached(text).expect("valid");
        let mut matched = 0usize;
        let allocations_before = ALLOCATIONS.load(Ordering::Relaxed);
        let ns = least((0..ROUNDS).map(|_| {
            let began = Instant::now();
            for message in &messages {
                matched += usize::from(expression.matches(black_box(message)));
            }
            began.elapsed().as_nanos() as f64 / MESSAGES as f64
        }));
        let allocations = ALLOCATIONS.load(Ordering::Relaxed) - allocations_before;
        let share = matched as f64 * 100.0 / (ROUNDS * MESSAGES) as f64;
        println!("{text:<72} {share:>7.1}% {ns:>10.1} {allocations:>12} {parse_ns:>10.0}");
        assert_eq!(allocations, 0, "evaluation allocates");
    }
}
