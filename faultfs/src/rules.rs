//! Which operations fail, take longer, or do not come back.

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    Read,
    Write,
    /// `fsync` and `fdatasync` of a file.
    Sync,
    SyncDirectory,
    /// A name is made, renamed or removed, a length set, space reserved.
    Change,
    /// Looking around: names, attributes, listings, opening.
    Look,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// EIO.
    Fail,
    /// It takes this much longer.
    Delay { ms: u64 },
    /// It does not come back until the rule goes.
    Stall,
}

/// The first rule that fits an operation decides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// All operations if empty.
    pub operations: Vec<Operation>,
    /// Part of the file's path below the mount; empty fits all.
    pub path_part: String,
    /// Fitting operations that pass before it takes effect.
    pub skip: u64,
    /// How often it takes effect; for ever unless given.
    pub times: Option<u64>,
    pub effect: Effect,
}

impl Rule {
    pub fn new(operations: impl Into<Vec<Operation>>, effect: Effect) -> Self {
        Self { operations: operations.into(), path_part: String::new(), skip: 0, times: None, effect }
    }

    #[must_use]
    pub fn at(mut self, path_part: impl Into<String>) -> Self {
        self.path_part = path_part.into();
        self
    }

    #[must_use]
    pub fn skip(mut self, skip: u64) -> Self {
        self.skip = skip;
        self
    }

    #[must_use]
    pub fn times(mut self, times: u64) -> Self {
        self.times = Some(times);
        self
    }
}

/// The rules in force, in the order they came.
#[derive(Debug, Default)]
pub struct Rules(Vec<Rule>);

impl Rules {
    pub fn add(&mut self, rule: Rule) {
        self.0.push(rule);
    }

    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// What happens to an operation; `path` is asked for only when a rule wants to know.
    pub fn decide(&mut self, operation: Operation, path: impl FnOnce() -> String) -> Option<Effect> {
        let mut path = Some(path);
        let mut known: Option<String> = None;
        for rule in &mut self.0 {
            if !rule.operations.is_empty() && !rule.operations.contains(&operation) {
                continue;
            }
            if !rule.path_part.is_empty() {
                if let Some(path) = path.take() {
                    known = Some(path());
                }
                if !known.as_deref().unwrap_or_default().contains(&rule.path_part) {
                    continue;
                }
            }
            if rule.skip > 0 {
                rule.skip -= 1;
                continue;
            }
            match &mut rule.times {
                Some(0) => continue,
                Some(times) => *times -= 1,
                None => {}
            }
            return Some(rule.effect);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_skips_takes_effect_and_is_used_up() {
        let mut rules = Rules::default();
        rules.add(Rule::new([Operation::Sync], Effect::Fail).at("log").skip(1).times(2));
        let mut decide = |operation, path: &str| rules.decide(operation, || path.to_owned());
        assert_eq!(decide(Operation::Sync, "a/log-1"), None, "skipped");
        assert_eq!(decide(Operation::Sync, "a/other"), None);
        assert_eq!(decide(Operation::Write, "a/log-1"), None);
        assert_eq!(decide(Operation::Sync, "a/log-1"), Some(Effect::Fail));
        assert_eq!(decide(Operation::Sync, "a/log-1"), Some(Effect::Fail));
        assert_eq!(decide(Operation::Sync, "a/log-1"), None, "used up");
    }
}
