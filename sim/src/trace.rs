//! What happened, in order: a running hash of every event, and the last of them for a report.
//!
//! The hash covers what the run *did* (entries applied, roles, answers, faults) and not how the
//! bytes on the simulated wire were cut, so two runs with one hash went the same way.

use std::collections::VecDeque;
use std::fmt::Display;

use xxhash_rust::xxh3::Xxh3;

/// Lines kept for the report of a violation.
const LINES_KEPT_MAX: usize = 400;

pub struct Trace {
    hash: Xxh3,
    events: u64,
    now_ms: u64,
    kept: VecDeque<String>,
    prints: bool,
}

impl Trace {
    /// With `prints` every line goes to standard error as it happens.
    pub fn new(prints: bool) -> Self {
        Self { hash: Xxh3::new(), events: 0, now_ms: 0, kept: VecDeque::new(), prints }
    }

    /// Virtual time since the start of the run.
    pub fn now_ms(&self) -> u64 {
        self.now_ms
    }

    pub fn set_now_ms(&mut self, now_ms: u64) {
        self.now_ms = now_ms;
    }

    pub fn event(&mut self, who: impl Display, what: impl Display) {
        let line = format!("{:>7} ms {who}: {what}", self.now_ms);
        self.hash.update(line.as_bytes());
        self.hash.update(b"\n");
        self.events += 1;
        if self.prints {
            eprintln!("{line}");
        }
        if self.kept.len() == LINES_KEPT_MAX {
            self.kept.pop_front();
        }
        self.kept.push_back(line);
    }

    pub fn events(&self) -> u64 {
        self.events
    }

    pub fn hash(&self) -> u64 {
        self.hash.digest()
    }

    /// The last events, oldest first.
    pub fn tail(&self) -> Vec<String> {
        self.kept.iter().cloned().collect()
    }
}
