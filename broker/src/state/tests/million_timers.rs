//! Memory is measured in a process of its own: this test starts itself again with a mark in the
//! environment, because other tests of the same process allocate at the same time.

use std::time::Instant;

use super::timers::{Delays, delays};
use super::*;

const TIMERS: u64 = 1_000_000;
const TIMERS_PER_ENTRY: u64 = 1_000;
const TIMERS_PER_CHECKPOINT: u64 = 100_000;
const FIRST_DUE_AHEAD_MS: u64 = 24 * 3_600_000;
const SPREAD_MS: u64 = 1_000_000;
const WINDOW_PASSES_MS: u64 = 650_000;
const BYTES_PER_PENDING_TIMER_MAX: u64 = 16;
const FIRED_PER_ENTRY: u32 = 2_048;
const MARK: &str = "LEDGERMQ_TEST_MEASURES_TIMERS";

#[test]
fn a_million_timers_cost_little_memory() {
    match measured_alone(MARK, "state::tests::million_timers::a_million_timers_cost_little_memory") {
        Alone::Yes => measure(),
        Alone::InAChild => {}
    }
}

fn measure() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut delays = delays(Some(directory.path()));
    let state = Arc::clone(&delays.replica.state);
    store(&mut delays, 0..TIMERS_PER_CHECKPOINT);
    let before = anonymous_bytes();
    for part in 1..=TIMERS / TIMERS_PER_CHECKPOINT {
        store(&mut delays, part * TIMERS_PER_CHECKPOINT..(part + 1) * TIMERS_PER_CHECKPOINT);
    }
    if let (Some(before), Some(after)) = (before, anonymous_bytes()) {
        let grown = after.saturating_sub(before);
        println!("{TIMERS} pending timers: {:.1} bytes each in memory", grown as f64 / TIMERS as f64);
        assert!(grown <= TIMERS * BYTES_PER_PENDING_TIMER_MAX, "{grown} bytes for {TIMERS} timers");
    }

    delays.replica.now = UnixMillis(START + FIRST_DUE_AHEAD_MS + 2 * SPREAD_MS);
    let began = Instant::now();
    let (mut fired, mut longest) = (0u64, std::time::Duration::ZERO);
    loop {
        let entry = Instant::now();
        let (count, more) = delays.fire(FIRED_PER_ENTRY);
        longest = longest.max(entry.elapsed());
        delays.replica.log.entries.clear();
        fired += u64::from(count);
        if !more {
            break;
        }
    }
    let took = began.elapsed();
    println!(
        "{fired} fired in {took:?}: {:.0} per second, {longest:?} for the longest entry",
        fired as f64 / took.as_secs_f64()
    );
    assert_eq!(fired, TIMERS + TIMERS_PER_CHECKPOINT);
    state.close().expect("closed");
}

/// Stores timers, writes a checkpoint, and lets the ids leave the window: they are not what is measured.
fn store(delays: &mut Delays, numbers: std::ops::Range<u64>) {
    for from in numbers.step_by(TIMERS_PER_ENTRY as usize) {
        let messages: Vec<(UnixMillis, NewMessage)> = (from..from + TIMERS_PER_ENTRY)
            .map(|number| {
                let ahead_ms = FIRST_DUE_AHEAD_MS + number * 7_919 % SPREAD_MS;
                (UnixMillis(START + ahead_ms), message(1, &format!("{number}")))
            })
            .collect();
        delays.replica.propose_bytes(encode_delayed(delays.replica.now, delays.topic, &messages));
        // The log is the test's own and not part of what is measured.
        delays.replica.log.entries.clear();
    }
    delays.replica.pass_ms(WINDOW_PASSES_MS);
    delays.fire(1);
    delays.replica.log.entries.clear();
    delays.replica.state.checkpoint().expect("written");
}

/// Memory of this process that no file stands behind, or `None` where the system does not tell.
fn anonymous_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}
