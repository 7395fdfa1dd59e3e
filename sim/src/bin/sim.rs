//! Runs many seeds of the simulation in parallel and says what came of them.
//!
//! `sim --seeds 1000` runs seeds 0..1000; `sim --seed 17 --trace` replays one.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use clap::Parser;
use ledgermq_sim::defect::{Defect, PRODUCT, STORE};
use ledgermq_sim::{Options, Outcome, run_seed};

#[derive(Parser)]
#[command(about = "Deterministic simulation of a broker group")]
struct Arguments {
    /// How many seeds to run.
    #[arg(long, default_value_t = 1_000)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Run this seed only.
    #[arg(long)]
    seed: Option<u64>,
    /// Print every event.
    #[arg(long)]
    trace: bool,
    /// Run every seed twice and demand the same trace.
    #[arg(long)]
    twice: bool,
    /// Threads; 0 means one per processor.
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// A broken build, which has to be convicted: sync-lies, vote-forgotten, apply-diverges, owed-released,
    /// own-producers-only, or a name of one of the lists in `defect`, such as TwoOutcomes or AckBeforeSync.
    #[arg(long, value_parser = parse_defect)]
    defect: Option<Defect>,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let options = Options { prints_trace: arguments.trace, defect: arguments.defect };
    let (from, count) = arguments.seed.map_or((arguments.from, arguments.seeds), |seed| (seed, 1));
    let threads = match arguments.threads {
        0 => std::thread::available_parallelism()?.get(),
        threads => threads,
    };
    let started = Instant::now();
    let outcomes = run_all(from, count, threads, arguments.twice, options);
    let failed: Vec<&Outcome> = outcomes.values().filter(|outcome| !outcome.violations.is_empty()).collect();
    for outcome in &failed {
        for line in &outcome.trace_tail {
            println!("{line}");
        }
        println!("seed {}: {:#?}", outcome.seed, outcome.violations);
    }
    if let Some(outcome) = arguments.seed.and_then(|seed| outcomes.get(&seed)) {
        println!(
            "trace of seed {}: {} events, {:016x}",
            outcome.seed, outcome.trace_events, outcome.trace_hash
        );
    }
    let sum = |of: fn(&Outcome) -> u64| outcomes.values().map(of).sum::<u64>();
    println!(
        "{} seeds in {:.1} s: {} violated; {} with a power loss of all nodes ({} such losses); {} sends answered, \
         {} of them repeats, {} unknown outcomes on the way, {} deliveries, {} acknowledgements, {} leaderships, \
         {} purges, {} states replaced by a snapshot, {} delayed messages, {} recalled, {} sends and {} \
         deliveries in order, {} generations of queues, {} halves decided by another producer, {} disks lost",
        outcomes.len(),
        started.elapsed().as_secs_f64(),
        failed.len(),
        outcomes.values().filter(|outcome| outcome.power_losses_of_all > 0).count(),
        sum(|outcome| outcome.power_losses_of_all),
        sum(|outcome| outcome.tallies.sends),
        sum(|outcome| outcome.tallies.repeats),
        sum(|outcome| outcome.tallies.unknown_outcomes),
        sum(|outcome| outcome.tallies.grants),
        sum(|outcome| outcome.tallies.acks),
        sum(|outcome| outcome.tallies.elections),
        sum(|outcome| outcome.tallies.purges),
        sum(|outcome| outcome.tallies.restores),
        sum(|outcome| outcome.tallies.delayed),
        sum(|outcome| outcome.tallies.recalled),
        sum(|outcome| outcome.tallies.steps),
        sum(|outcome| outcome.tallies.ordered_grants),
        sum(|outcome| outcome.tallies.generations),
        sum(|outcome| outcome.tallies.decided_by_others),
        sum(|outcome| outcome.tallies.disks_lost),
    );
    println!(
        "of the books: {} batches, {} repeats of whole ones, {} refused because a part was known; {} and in order {} \
         letters for want of attempts, {} read, {} given back; {} offsets committed, {} too late for that \
         and {} for a reset, {} read, {} messages pulled, {} resets, {} repeats of them; {} messages expired, {} records carried, {} steps of release",
        sum(|outcome| outcome.tallies.batches),
        sum(|outcome| outcome.tallies.batch_repeats),
        sum(|outcome| outcome.tallies.batches_partly_known),
        sum(|outcome| outcome.tallies.exhausted),
        sum(|outcome| outcome.tallies.exhausted_in_order),
        sum(|outcome| outcome.tallies.letters_read),
        sum(|outcome| outcome.tallies.redriven),
        sum(|outcome| outcome.tallies.offset_commits),
        sum(|outcome| outcome.tallies.commits_behind),
        sum(|outcome| outcome.tallies.commits_of_other_resets),
        sum(|outcome| outcome.tallies.offset_reads),
        sum(|outcome| outcome.tallies.pulled),
        sum(|outcome| outcome.tallies.resets),
        sum(|outcome| outcome.tallies.repeated_resets),
        sum(|outcome| outcome.tallies.expired),
        sum(|outcome| outcome.tallies.carried),
        sum(|outcome| outcome.tallies.releases),
    );
    if !failed.is_empty() {
        let seeds: Vec<u64> = failed.iter().map(|outcome| outcome.seed).collect();
        anyhow::bail!("violated seeds: {seeds:?}");
    }
    Ok(())
}

fn run_all(from: u64, count: u64, threads: usize, twice: bool, options: Options) -> BTreeMap<u64, Outcome> {
    let next = AtomicU64::new(from);
    let outcomes = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::SeqCst);
                    if seed >= from + count {
                        return;
                    }
                    let mut outcome = run_seed(seed, options);
                    if twice {
                        let again = run_seed(seed, options);
                        if again.trace_hash != outcome.trace_hash {
                            let (events, others) = (outcome.trace_events, again.trace_events);
                            outcome.violations.push(format!("two runs differ: {events} and {others} events"));
                        }
                    }
                    if !outcome.violations.is_empty() {
                        eprintln!("seed {seed}: {}", outcome.violations.join("; "));
                    }
                    outcomes.lock().expect("no thread panics").insert(seed, outcome);
                }
            });
        }
    });
    outcomes.into_inner().expect("no thread panics")
}

fn parse_defect(text: &str) -> Result<Defect, String> {
    match text {
        "sync-lies" => Ok(Defect::SyncLies),
        "vote-forgotten" => Ok(Defect::VoteForgotten),
        "apply-diverges" => Ok(Defect::ApplyDiverges),
        "owed-released" => Ok(Defect::OwedReleased),
        "own-producers-only" => Ok(Defect::OwnProducersOnly),
        other => PRODUCT
            .into_iter()
            .map(Defect::Product)
            .chain(STORE.into_iter().map(Defect::Store))
            .find(|defect| defect.name() == other)
            .ok_or_else(|| format!("no defect is called {other}")),
    }
}
