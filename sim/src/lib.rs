//! Deterministic simulation of a whole broker group.
//!
//! A seed is a [`Plan`](plan::Plan): sizes, clients and faults. The brokers are the real group, the
//! real log store and the real state machine; the disk, the clock, the network and every random
//! number are simulated, so a seed that fails once fails always. See `ARCHITECTURE.md` for what
//! keeps time, threads and hash order out of the product's own code.
//!
//! ```text
//! cargo test -p ledgermq-sim                                        a few seeds and the broken builds
//! cargo run --profile sim -p ledgermq-sim -- --seeds 1000           many seeds, on all processors
//! cargo run --profile sim -p ledgermq-sim -- --seed 17 --trace      one seed again, with its events
//! ```
//!
//! What the network loses, the clocks and the disks do is drawn per seed (see `plan`); what a
//! process does between two awaits is not cut, except at each operation of its disk. Checkpoints in
//! sled are not part of it: every life makes its state from snapshot and log.
//!
//! | Module | What |
//! |---|---|
//! | `plan` | what a seed means |
//! | `world` | runs a plan |
//! | `node`, `front` | a broker and the port it serves clients on |
//! | `network` | turmoil's network with dial timeouts and resets |
//! | `workload` | producers and consumers |
//! | `oracle`, `model` | what may not happen |
//! | `audit` | looks into disks and replicas |
//! | `defect` | broken builds that must be convicted |

mod audit;
pub mod defect;
mod front;
mod model;
mod network;
mod node;
pub mod oracle;
pub mod plan;
mod timers;
mod trace;
mod workload;
mod world;

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use crate::defect::Defect;
use crate::oracle::{Oracle, Tallies};
use crate::plan::Plan;
use crate::trace::Trace;
use crate::world::World;

/// What came of a seed.
#[derive(Debug)]
pub struct Outcome {
    pub seed: u64,
    pub violations: Vec<String>,
    pub tallies: Tallies,
    pub power_losses_of_all: u64,
    pub trace_hash: u64,
    pub trace_events: u64,
    /// The last events, if something was violated.
    pub trace_tail: Vec<String>,
}

/// How to run a seed.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Print every event to standard error.
    pub prints_trace: bool,
    pub defect: Option<Defect>,
}

/// Runs one seed to its end or to the first violation. A panic anywhere is a violation.
pub fn run_seed(seed: u64, options: Options) -> Outcome {
    catch_panic_texts();
    let oracle = Oracle::new(Trace::new(options.prints_trace));
    let mut power_losses_of_all = 0;
    PANIC_TEXT.set(Some(String::new()));
    ledgermq_broker::defects::activate(options.defect.and_then(Defect::in_the_product));
    ledgermq_raft_store::defects::activate(options.defect.and_then(Defect::in_the_store));
    let run = catch_unwind(AssertUnwindSafe(|| {
        let mut world = World::new(Plan::draw(seed), oracle.clone(), options.defect);
        world.run();
        power_losses_of_all = world.power_losses_of_all;
    }));
    ledgermq_broker::defects::activate(None);
    ledgermq_raft_store::defects::activate(None);
    let panic_text = PANIC_TEXT.take().unwrap_or_default();
    if run.is_err() || !panic_text.is_empty() {
        oracle.violate(format_args!("a panic: {panic_text}"));
    }
    let violations = oracle.violations();
    Outcome {
        seed,
        trace_tail: if violations.is_empty() { Vec::new() } else { oracle.trace_tail() },
        violations,
        tallies: oracle.tallies(),
        power_losses_of_all,
        trace_hash: oracle.trace_hash(),
        trace_events: oracle.trace_events(),
    }
}

thread_local! {
    /// While a seed runs on this thread: the texts of its panics.
    static PANIC_TEXT: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// A panic of a task ends its runtime, which panics with a text of its own; this keeps the first.
fn catch_panic_texts() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let is_ours = PANIC_TEXT.with_borrow_mut(|text| match text {
                Some(text) => {
                    // A runtime that ends because of the first one may panic again, and then it aborts.
                    if !text.is_empty() {
                        eprintln!("VIOLATION a panic: {}", text.replace('\n', " "));
                    }
                    text.push_str(&format!("{panic}; "));
                    true
                }
                None => false,
            });
            if !is_ours {
                before(panic);
            }
        }));
    });
}
