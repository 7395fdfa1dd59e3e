//! Seeds of the simulation as a test.
//!
//! `LEDGERMQ_SIM_SEEDS=n` runs n seeds instead of the default; `LEDGERMQ_SIM_SEED=x` replays one
//! and prints its trace.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use ledgermq_sim::defect::{Defect, PRODUCT, STORE};
use ledgermq_sim::oracle::Tallies;
use ledgermq_sim::{Options, run_seed};

/// Few, because an unoptimised seed takes seconds; the `sim` binary runs thousands.
const SEEDS_DEFAULT: u64 = 12;
const FRESH_SECONDS_DEFAULT: u64 = 20;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} = {text:?} is not a number")))
}

#[test]
fn nothing_acknowledged_is_lost_repeated_or_reordered_under_faults_and_power_loss() {
    let (seeds, prints_trace) = match number("LEDGERMQ_SIM_SEED") {
        Some(seed) => (seed..seed + 1, true),
        None => (0..number("LEDGERMQ_SIM_SEEDS").unwrap_or(SEEDS_DEFAULT), false),
    };
    let mut all = Vec::new();
    for seed in seeds {
        let outcome = run_seed(seed, Options { prints_trace, defect: None });
        assert!(
            outcome.violations.is_empty(),
            "replay with LEDGERMQ_SIM_SEED={seed}\n{}\n{:#?}",
            outcome.trace_tail.join("\n"),
            outcome.violations
        );
        assert!(outcome.power_losses_of_all >= 1, "seed {seed} cut no power");
        all.push(outcome.tallies);
    }
    let happened = |of: fn(&Tallies) -> u64| all.iter().map(of).sum::<u64>() > 0;
    assert!(happened(|of| of.sends), "no send was ever answered");
    if prints_trace {
        // A single seed may see nothing but faults.
        return;
    }
    assert!(happened(|of| of.commits) && happened(|of| of.rollbacks), "no transaction was ever decided");
    assert!(happened(|of| of.decided_by_others), "no half was ever decided by another producer");
    assert!(happened(|of| of.steps) && happened(|of| of.generations), "no topic with order ever grew");
    assert!(
        happened(|of| of.batches) && happened(|of| of.batch_repeats),
        "no batch was ever stored and repeated"
    );
    assert!(happened(|of| of.batches_partly_known), "no batch was ever known in part");
    assert!(happened(|of| of.exhausted), "no message ever used its attempts up");
    assert!(happened(|of| of.exhausted_in_order), "no message of a message group ever used its attempts up");
    assert!(happened(|of| of.letters_read) && happened(|of| of.redriven), "no letter was ever given back");
    assert!(
        happened(|of| of.offset_commits) && happened(|of| of.pulled),
        "nothing was ever pulled by offset"
    );
    assert!(happened(|of| of.resets), "no consumer group was ever reset");
    assert!(happened(|of| of.disks_lost), "no disk was ever lost");
    assert!(happened(|of| of.expired) && happened(|of| of.releases), "the log was never released");
}

/// The trace of one seed, from a process of its own: how a failing seed is replayed.
fn replayed(seed: u64) -> Vec<String> {
    let test = "nothing_acknowledged_is_lost_repeated_or_reordered_under_faults_and_power_loss";
    let output = std::process::Command::new(std::env::current_exe().expect("this test program"))
        .args([test, "--exact", "--nocapture"])
        .env("LEDGERMQ_SIM_SEED", seed.to_string())
        .output()
        .expect("it starts");
    assert!(output.status.success(), "seed {seed}: {}", String::from_utf8_lossy(&output.stderr));
    let trace = String::from_utf8(output.stderr).expect("text");
    trace.lines().filter(|line| line.contains(" ms ")).map(str::to_owned).collect()
}

#[test]
fn a_seed_replays_the_same_way_in_a_process_of_its_own() {
    let first = replayed(1_000);
    assert!(first.len() > 100, "the trace has {} events", first.len());
    assert!(first == replayed(1_000), "the seed ran two different ways");
}

/// What runs beside a seed or before it in the same process must not show in it, or a seed that
/// failed among thousands would not fail alone.
#[test]
fn a_seed_runs_the_same_way_beside_other_seeds() {
    let first = run_seed(1_001, Options::default());
    let second = run_seed(1_001, Options::default());
    assert_eq!((first.trace_events, first.trace_hash), (second.trace_events, second.trace_hash));
}

fn convicts(defect: Defect, mut seeds: std::ops::Range<u64>) {
    let tried = seeds.clone();
    let convicted = seeds.any(|seed| {
        !run_seed(seed, Options { defect: Some(defect), ..Options::default() }).violations.is_empty()
    });
    assert!(convicted, "{defect:?} went unnoticed by the seeds {tried:?}");
}

#[test]
fn a_disk_that_acknowledges_before_it_syncs_is_noticed() {
    convicts(Defect::SyncLies, 0..8);
}

#[test]
fn a_vote_that_does_not_survive_a_power_cut_is_noticed() {
    convicts(Defect::VoteForgotten, 0..4);
}

#[test]
fn a_replica_that_answers_differently_is_noticed() {
    convicts(Defect::ApplyDiverges, 0..2);
}

#[test]
fn a_second_holder_of_a_message_group_is_noticed() {
    convicts(Defect::TwoHolders, 0..4);
}

#[test]
fn a_growth_that_does_not_wait_for_what_was_before_is_noticed() {
    convicts(Defect::GrowthWithoutDrain, 0..8);
}

#[test]
fn a_generation_that_opens_before_the_one_before_ended_is_noticed() {
    convicts(Defect::OpenBeforeClosed, 0..8);
}

#[test]
fn a_repeat_that_is_stored_again_by_a_new_generation_is_noticed() {
    convicts(Defect::RepeatByNewGeneration, 0..8);
}

#[test]
fn a_log_that_is_released_under_what_is_owed_is_noticed() {
    convicts(Defect::OwedReleased, 18..42);
}

#[test]
fn a_leader_that_asks_only_its_own_producers_about_halves_is_noticed() {
    convicts(Defect::OwnProducersOnly, 11..35);
}

/// How many seeds may pass before a broken promise is noticed.
const CONVICTING_SEEDS_MAX: u64 = 48;

/// Seeds that convict at once. A change of the product moves what a seed does, so these are where the
/// search begins and not where it ends; the others begin with seed 0.
const CONVICTING: &[(&str, u64)] = &[
    ("LostCheck", 1),
    ("CheckStalled", 1),
    ("LogTimeBack", 2),
    ("CommitOfOtherReset", 6),
    ("ExhaustedPassed", 2),
    ("FlushedThoughSyncFailed", 1),
    ("SyncRetried", 5),
    ("VoteNotWritten", 2),
    ("SnapshotNameNotSynced", 2),
    ("SnapshotNotSynced", 1),
    ("CommitUnchecked", 11),
    ("CommitWithoutQuorum", 1),
    ("LaggingNodeElected", 1),
    ("SnapshotBoundaryBehind", 2),
    ("BarrierLeftOut", 6),
    ("AmnesiaUnnoticed", 5),
];

/// Runs a seed of a broken build and answers what was violated. In a process of its own, because an
/// assertion that fails inside a runtime may abort the process.
fn convicted(defect: Defect, seed: u64) -> Option<String> {
    let output = std::process::Command::new(std::env::current_exe().expect("this test program"))
        .args(["one_broken_seed_for_another_test", "--exact", "--nocapture"])
        .env("LEDGERMQ_SIM_BROKEN", defect.name())
        .env("LEDGERMQ_SIM_SEED", seed.to_string())
        .output()
        .expect("it starts");
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    let violation = errors.lines().find_map(|line| line.strip_prefix("VIOLATION ")).map(str::to_owned);
    assert!(violation.is_some() || output.status.success(), "{} and seed {seed}: {errors}", defect.name());
    violation
}

#[test]
fn one_broken_seed_for_another_test() {
    let Ok(name) = std::env::var("LEDGERMQ_SIM_BROKEN") else { return };
    let seed = number("LEDGERMQ_SIM_SEED").expect("a seed");
    let defect = all_defects().find(|defect| defect.name() == name).expect("the name of a defect");
    let options = Options { defect: Some(defect), ..Options::default() };
    if let Some(violation) = run_seed(seed, options).violations.first() {
        eprintln!("VIOLATION {violation}");
    }
}

fn all_defects() -> impl Iterator<Item = Defect> {
    PRODUCT.into_iter().map(Defect::Product).chain(STORE.into_iter().map(Defect::Store))
}

/// Every broken build is convicted, and the seeds that convict pass when nothing is broken.
fn all_convicted(defects: impl IntoIterator<Item = Defect>) {
    let mut unnoticed = Vec::new();
    let mut convicting = BTreeSet::new();
    for defect in defects {
        let name = defect.name();
        let first = CONVICTING.iter().filter(|(of, _)| *of == name).map(|(_, seed)| *seed);
        let mut seeds = first.chain(0..CONVICTING_SEEDS_MAX);
        let started = Instant::now();
        let found = seeds.find_map(|seed| {
            let started = Instant::now();
            convicted(defect, seed).map(|violation| (seed, started.elapsed(), violation))
        });
        let Some((seed, elapsed, violation)) = found else {
            eprintln!("{name}: unnoticed after {:.1} s", started.elapsed().as_secs_f64());
            unnoticed.push(name);
            continue;
        };
        eprintln!("{name}: seed {seed} after {:.1} s, {violation}", elapsed.as_secs_f64());
        convicting.insert(seed);
    }
    assert!(unnoticed.is_empty(), "went unnoticed for {CONVICTING_SEEDS_MAX} seeds: {unnoticed:?}");
    for seed in convicting {
        let violations = run_seed(seed, Options::default()).violations;
        assert!(violations.is_empty(), "seed {seed} of the whole build: {violations:#?}");
    }
}

/// `LEDGERMQ_SIM_DEFECT` runs one of a list alone.
fn chosen(defects: impl IntoIterator<Item = Defect>) -> Vec<Defect> {
    let wanted = std::env::var("LEDGERMQ_SIM_DEFECT").ok();
    let is_wanted = |defect: &Defect| wanted.as_ref().is_none_or(|wanted| *wanted == defect.name());
    defects.into_iter().filter(is_wanted).collect()
}

#[test]
fn every_broken_promise_of_the_state_machine_is_noticed() {
    all_convicted(chosen(PRODUCT.map(Defect::Product)));
}

#[test]
fn every_broken_promise_of_the_log_and_its_replication_is_noticed() {
    all_convicted(chosen(STORE.map(Defect::Store)));
}

/// Seeds that nobody ran before, for a bounded time. The first is printed, and
/// `LEDGERMQ_SIM_FRESH_FROM` runs from it again.
#[test]
fn fresh_seeds_pass() {
    let first = number("LEDGERMQ_SIM_FRESH_FROM").unwrap_or_else(|| u64::from(rand::random::<u32>()));
    let seconds = number("LEDGERMQ_SIM_FRESH_SECONDS").unwrap_or(FRESH_SECONDS_DEFAULT);
    eprintln!("fresh seeds from {first}: replay with LEDGERMQ_SIM_FRESH_FROM={first}");
    let started = Instant::now();
    for seed in first.. {
        let outcome = run_seed(seed, Options::default());
        assert!(
            outcome.violations.is_empty(),
            "replay with LEDGERMQ_SIM_SEED={seed}\n{}\n{:#?}",
            outcome.trace_tail.join("\n"),
            outcome.violations
        );
        if started.elapsed() >= Duration::from_secs(seconds) {
            eprintln!("{} fresh seeds in {:.1} s", seed - first + 1, started.elapsed().as_secs_f64());
            return;
        }
    }
}
