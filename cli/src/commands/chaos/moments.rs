//! The moments of a failover, from what the brokers logged.
//!
//! | Moment | Here |
//! |---|---|
//! | T0 the fault | the history |
//! | T1 noticed by one that may be elected | the first `election begun` after T0 |
//! | T2 elected | `elected` of the term that got ready first |
//! | T3 first entry of the term committed, T4 ready to serve | `ready to serve`: that entry is applied, so both |
//! | T5 the client knows whom to ask | none: any node takes any request |
//! | T6 first acknowledged send, T7 first delivery, T8 all queues | the history |
//!
//! Log lines carry the machine's clock. Where a scenario makes that wrong, there are no moments.

use std::io::BufRead as _;
use std::path::Path;

use ledgermq_checkers::availability::{Distribution, Felt};
use serde::{Deserialize, Serialize};

/// Beside the history.
pub const FILE: &str = "moments.json";
const MS_PER_DAY: f64 = 86_400_000.0;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    Begun,
    Elected,
    Ready,
}

const STAGES: [(&str, Stage); 3] =
    [("election begun", Stage::Begun), ("elected", Stage::Elected), ("ready to serve", Stage::Ready)];

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Moment {
    /// Since the history began.
    pub at_ms: f64,
    pub stage: Stage,
    pub term: u64,
}

/// From a fault to each stage of the election that followed it.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Election {
    pub noticed_ms: Distribution,
    pub elected_ms: Distribution,
    pub ready_ms: Distribution,
}

impl Election {
    /// `None` where no fault was followed by an election.
    pub fn of(moments: &[Moment], faults: &[Felt]) -> Option<Self> {
        let mut stages: [Vec<f64>; 3] = Default::default();
        for (position, fault) in faults.iter().enumerate() {
            let until = faults.get(position + 1).map_or(f64::INFINITY, |next| next.at_ms);
            let first = |stage: Stage, term: Option<u64>| {
                moments
                    .iter()
                    .filter(|moment| moment.stage == stage && term.is_none_or(|term| moment.term == term))
                    .filter(|moment| (fault.at_ms..until).contains(&moment.at_ms))
                    .min_by(|a, b| a.at_ms.total_cmp(&b.at_ms))
            };
            let Some(ready) = first(Stage::Ready, None) else { continue };
            let found = [first(Stage::Begun, None), first(Stage::Elected, Some(ready.term)), Some(ready)];
            for (stage, moment) in stages.iter_mut().zip(found) {
                stage.extend(moment.map(|moment| moment.at_ms - fault.at_ms));
            }
        }
        let [noticed, elected, ready] = stages.map(Distribution::of);
        (ready.count > 0).then_some(Self { noticed_ms: noticed, elected_ms: elected, ready_ms: ready })
    }
}

/// What a log says. `began_unix_ms` is when the history began.
pub fn in_log(path: &Path, began_unix_ms: f64) -> anyhow::Result<Vec<Moment>> {
    let log = std::io::BufReader::new(std::fs::File::open(path)?);
    let mut moments = Vec::new();
    // A process that was killed may have left half a character.
    for line in log.split(b'\n') {
        moments.extend(in_line(&String::from_utf8_lossy(&line?), began_unix_ms));
    }
    Ok(moments)
}

fn in_line(line: &str, began_unix_ms: f64) -> Option<Moment> {
    let (stamp, rest) = line.split_once(' ')?;
    let (_, said) = rest.split_once("ledgermq_raft_store::group::watching: ")?;
    let (_, stage) = STAGES.iter().find(|(text, _)| said.starts_with(text))?;
    let term = said.split(' ').find_map(|word| word.strip_prefix("term="))?.parse().ok()?;
    Some(Moment { at_ms: unix_ms(stamp)? - began_unix_ms, stage: *stage, term })
}

/// Of `2026-11-27T01:56:16.123456Z`.
fn unix_ms(stamp: &str) -> Option<f64> {
    let (date, time) = stamp.strip_suffix('Z')?.split_once('T')?;
    let mut date = date.split('-').map(str::parse::<i64>);
    let (year, month, day) = (date.next()?.ok()?, date.next()?.ok()?, date.next()?.ok()?);
    let mut time = time.split(':').map(str::parse::<f64>);
    let (hour, minute, second) = (time.next()?.ok()?, time.next()?.ok()?, time.next()?.ok()?);
    // Years begin in March here, so that the leap day is the last of its year.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * year + year.div_euclid(4) - year.div_euclid(100)
        + year.div_euclid(400)
        + (153 * month + 2) / 5
        + day
        - 719_469;
    Some(days as f64 * MS_PER_DAY + ((hour * 60.0 + minute) * 60.0 + second) * 1000.0)
}

/// Moments that a run left beside its history.
pub fn beside(history: &Path) -> Vec<Moment> {
    let path = history.parent().unwrap_or(Path::new("")).join(FILE);
    std::fs::read(path).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(time: &str, said: &str, term: u64) -> String {
        format!("2024-02-29T{time}Z  INFO ledgermq_raft_store::group::watching: {said} group=1 term={term}")
    }

    #[test]
    fn stamps_are_unix_time() {
        assert_eq!(unix_ms("1970-01-01T00:00:00.000000Z"), Some(0.0));
        assert_eq!(unix_ms("2024-02-29T12:34:56.500000Z"), Some(1_709_210_096_500.0));
        assert_eq!(unix_ms("2026-01-01T00:00:00Z"), Some(1_767_225_600_000.0));
        assert_eq!(unix_ms("yesterday"), None);
    }

    #[test]
    fn an_election_is_measured_from_its_fault_by_the_term_that_got_ready() {
        let began = unix_ms("2024-02-29T12:00:00Z").unwrap();
        let lines = [
            // Before the fault: not its doing.
            line("12:00:00.500000", "ready to serve", 1),
            line("12:00:01.300000", "election begun", 2),
            line("12:00:01.400000", "elected", 2),
            line("12:00:01.700000", "elected", 3),
            line("12:00:01.750000", "ready to serve", 3),
            "panicked at half a li".to_owned(),
        ];
        let moments: Vec<Moment> = lines.iter().filter_map(|line| in_line(line, began)).collect();
        assert_eq!(moments.len(), 5);
        let fault = Felt {
            fault: "kill".into(),
            target: "broker-1".into(),
            at_ms: 1_000.0,
            until_ms: 4_000.0,
            gap_ms: None,
            first_success_ms: None,
            all_queues_ms: None,
            first_delivery_ms: None,
            open_chaos_rto_ms: None,
            failed_sends: 0,
            unknown_sends: 0,
        };
        let later = Felt { at_ms: 9_000.0, ..fault.clone() };
        let election = Election::of(&moments, &[fault, later.clone()]).unwrap();
        let rounded = |figures: Distribution| (figures.count, figures.max.round());
        assert_eq!(rounded(election.noticed_ms), (1, 300.0));
        assert_eq!(rounded(election.elected_ms), (1, 700.0));
        assert_eq!(rounded(election.ready_ms), (1, 750.0));
        assert!(Election::of(&moments, &[later]).is_none(), "no election followed it");
    }
}
