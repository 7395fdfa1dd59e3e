//! Seeds of the simulation as a test.
//!
//! `LEDGERMQ_SIM_SEEDS=n` runs n seeds instead of the default; `LEDGERMQ_SIM_SEED=x` replays one
//! and prints its trace.

use ledgermq_sim::defect::Defect;
use ledgermq_sim::{Options, run_seed};

/// Few, because an unoptimised seed takes seconds; the `sim` binary runs thousands.
const SEEDS_DEFAULT: u64 = 12;

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
    let (mut sends, mut commits, mut rollbacks, mut steps, mut generations) = (0, 0, 0, 0, 0);
    for seed in seeds {
        let outcome = run_seed(seed, Options { prints_trace, defect: None });
        assert!(
            outcome.violations.is_empty(),
            "replay with LEDGERMQ_SIM_SEED={seed}\n{}\n{:#?}",
            outcome.trace_tail.join("\n"),
            outcome.violations
        );
        assert!(outcome.power_losses_of_all >= 1, "seed {seed} cut no power");
        sends += outcome.tallies.sends;
        commits += outcome.tallies.commits;
        rollbacks += outcome.tallies.rollbacks;
        steps += outcome.tallies.steps;
        generations += outcome.tallies.generations;
    }
    assert!(sends > 0, "no send was ever answered");
    // A single seed may see nothing but faults.
    assert!(prints_trace || (commits > 0 && rollbacks > 0), "no transaction was ever decided");
    assert!(prints_trace || (steps > 0 && generations > 0), "no topic with order ever grew");
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

fn convicts(defect: Defect, seeds_max: u64) {
    let convicted = (0..seeds_max).any(|seed| {
        !run_seed(seed, Options { defect: Some(defect), ..Options::default() }).violations.is_empty()
    });
    assert!(convicted, "{defect:?} went unnoticed for {seeds_max} seeds");
}

#[test]
fn a_disk_that_acknowledges_before_it_syncs_is_noticed() {
    convicts(Defect::SyncLies, 8);
}

#[test]
fn a_vote_that_does_not_survive_a_power_cut_is_noticed() {
    convicts(Defect::VoteForgotten, 4);
}

#[test]
fn a_replica_that_answers_differently_is_noticed() {
    convicts(Defect::ApplyDiverges, 2);
}

#[test]
fn a_second_holder_of_a_message_group_is_noticed() {
    convicts(Defect::TwoHolders, 4);
}

#[test]
fn a_growth_that_does_not_wait_for_what_was_before_is_noticed() {
    convicts(Defect::GrowthWithoutDrain, 8);
}

#[test]
fn a_generation_that_opens_before_the_one_before_ended_is_noticed() {
    convicts(Defect::OpenBeforeClosed, 8);
}

#[test]
fn a_repeat_that_is_stored_again_by_a_new_generation_is_noticed() {
    convicts(Defect::RepeatByNewGeneration, 8);
}
