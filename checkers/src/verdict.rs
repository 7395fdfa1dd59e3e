//! What a checker says.

use serde::{Deserialize, Serialize};

/// Examples kept of one anomaly; the count goes on.
pub const FINDINGS_SHOWN_MAX: usize = 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Valid,
    Invalid,
    /// The history cannot show it. Never a pass.
    Unknown,
}

/// One kind of anomaly, with how often it was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Anomaly {
    pub name: String,
    pub count: usize,
    /// Some anomalies are reported and allowed, such as a redelivery.
    pub fatal: bool,
    pub examples: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    pub checker: String,
    pub outcome: Outcome,
    /// Why the outcome is unknown.
    pub reason: Option<String>,
    pub anomalies: Vec<Anomaly>,
    /// What was looked at, by name: a verdict over nothing says nothing.
    pub counts: Vec<(String, usize)>,
}

impl Verdict {
    pub fn is_valid(&self) -> bool {
        self.outcome == Outcome::Valid
    }

    pub fn count_of(&self, anomaly: &str) -> usize {
        self.anomalies.iter().find(|found| found.name == anomaly).map_or(0, |found| found.count)
    }
}

/// Gathers findings while a checker looks.
#[derive(Debug)]
pub(crate) struct Findings {
    checker: &'static str,
    anomalies: Vec<Anomaly>,
    counts: Vec<(String, usize)>,
}

impl Findings {
    pub fn of(checker: &'static str) -> Self {
        Self { checker, anomalies: Vec::new(), counts: Vec::new() }
    }

    pub fn fatal(&mut self, name: &str, example: impl FnOnce() -> String) {
        self.add(name, true, example);
    }

    pub fn allowed(&mut self, name: &str, example: impl FnOnce() -> String) {
        self.add(name, false, example);
    }

    fn add(&mut self, name: &str, fatal: bool, example: impl FnOnce() -> String) {
        let position = self.anomalies.iter().position(|found| found.name == name).unwrap_or_else(|| {
            self.anomalies.push(Anomaly { name: name.to_owned(), count: 0, fatal, examples: Vec::new() });
            self.anomalies.len() - 1
        });
        if let Some(found) = self.anomalies.get_mut(position) {
            found.count += 1;
            if found.examples.len() < FINDINGS_SHOWN_MAX {
                found.examples.push(example());
            }
        }
    }

    pub fn count(&mut self, name: &str, count: usize) {
        self.counts.push((name.to_owned(), count));
    }

    /// A fault that was found counts whether or not the rest could be judged.
    pub fn verdict(self, unknown: Option<&str>) -> Verdict {
        let outcome = if self.anomalies.iter().any(|found| found.fatal) {
            Outcome::Invalid
        } else if unknown.is_some() {
            Outcome::Unknown
        } else {
            Outcome::Valid
        };
        Verdict {
            checker: self.checker.to_owned(),
            outcome,
            reason: unknown.map(str::to_owned),
            anomalies: self.anomalies,
            counts: self.counts,
        }
    }
}
