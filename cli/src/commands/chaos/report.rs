//! What a run showed: the verdicts, and how long each fault was felt. As text, JSON and a page.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use comfy_table::{Table, presets};
use ledgermq_checkers::availability::{Distribution, Felt, felt_by};
use ledgermq_checkers::{Outcome, Verdict};
use serde::Serialize;

use super::judge::Evidence;
use super::moments::{Election, Moment};
use super::page;

#[derive(Debug, Serialize)]
pub struct Report {
    pub scenario: String,
    pub seed: u64,
    /// The worst of the verdicts.
    pub outcome: Outcome,
    pub verdicts: Vec<Verdict>,
    pub injections: usize,
    pub gap_ms: Distribution,
    pub first_success_ms: Distribution,
    pub all_queues_ms: Distribution,
    pub first_delivery_ms: Distribution,
    pub open_chaos_rto_ms: Distribution,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub election: Option<Election>,
    /// Faults after which a figure never came.
    pub without_success: usize,
    pub failed_sends: usize,
    pub unknown_sends: usize,
    pub faults: Vec<Felt>,
}

impl Report {
    pub fn of(evidence: &Evidence, replicas: Option<Verdict>, moments: &[Moment]) -> Self {
        let Evidence { scenario, seed, verdicts, messages, faults, ends_ns } = evidence;
        let verdicts: Vec<Verdict> = verdicts.iter().cloned().chain(replicas).collect();
        let faults = felt_by(messages, faults, *ends_ns);
        let worst = |wanted| verdicts.iter().any(|verdict| verdict.outcome == wanted);
        let outcome = if worst(Outcome::Invalid) {
            Outcome::Invalid
        } else if worst(Outcome::Unknown) || verdicts.is_empty() {
            Outcome::Unknown
        } else {
            Outcome::Valid
        };
        let of = |figure: fn(&Felt) -> Option<f64>| Distribution::of(faults.iter().filter_map(figure));
        Self {
            scenario: scenario.clone(),
            seed: *seed,
            outcome,
            injections: faults.len(),
            gap_ms: of(|felt| felt.gap_ms),
            first_success_ms: of(|felt| felt.first_success_ms),
            all_queues_ms: of(|felt| felt.all_queues_ms),
            first_delivery_ms: of(|felt| felt.first_delivery_ms),
            open_chaos_rto_ms: of(|felt| felt.open_chaos_rto_ms),
            without_success: faults.iter().filter(|felt| felt.first_success_ms.is_none()).count(),
            failed_sends: faults.iter().map(|felt| felt.failed_sends).sum(),
            election: Election::of(moments, &faults),
            unknown_sends: faults.iter().map(|felt| felt.unknown_sends).sum(),
            verdicts,
            faults,
        }
    }

    pub fn as_text(&self) -> String {
        let mut table = Table::new();
        table.load_preset(presets::NOTHING);
        table.add_row(["scenario, seed".to_owned(), format!("{}, {}", self.scenario, self.seed)]);
        add_verdicts(&mut table, &self.verdicts);
        table.add_row(["injections".to_owned(), self.injections.to_string()]);
        table.add_row([
            "sends failed / unknown after a fault".to_owned(),
            format!("{} / {}", self.failed_sends, self.unknown_sends),
        ]);
        for (name, figures) in self.figures() {
            table.add_row([
                format!("{name}, p50 / p99 / max ms"),
                format!(
                    "{:.0} / {:.0} / {:.0} (of {})",
                    figures.p50, figures.p99, figures.max, figures.count
                ),
            ]);
        }
        table.to_string()
    }

    /// Without those that no fault of this run has.
    pub fn figures(&self) -> Vec<(&'static str, Distribution)> {
        let mut figures = Vec::new();
        if let Some(election) = self.election {
            figures.push(("T1 election begun", election.noticed_ms));
            figures.push(("T2 elected", election.elected_ms));
            figures.push(("T4 ready to serve", election.ready_ms));
        }
        figures.extend([
            ("gap in acknowledgements", self.gap_ms),
            ("T6 first success", self.first_success_ms),
            ("T8 all queues", self.all_queues_ms),
            ("T7 first delivery", self.first_delivery_ms),
            ("RTO as OpenChaos counts it", self.open_chaos_rto_ms),
        ]);
        figures.retain(|(_, figure)| figure.count > 0);
        figures
    }
}

pub fn verdicts_as_text(verdicts: &[Verdict]) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    add_verdicts(&mut table, verdicts);
    table.to_string()
}

fn add_verdicts(table: &mut Table, verdicts: &[Verdict]) {
    for verdict in verdicts {
        let outcome = match verdict.outcome {
            Outcome::Valid => "valid".to_owned(),
            Outcome::Invalid => "INVALID".to_owned(),
            Outcome::Unknown => format!("unknown: {}", verdict.reason.as_deref().unwrap_or_default()),
        };
        let counts: Vec<String> =
            verdict.counts.iter().map(|(name, count)| format!("{count} {name}")).collect();
        table.add_row([verdict.checker.clone(), format!("{outcome} ({})", counts.join(", "))]);
        for anomaly in &verdict.anomalies {
            let example = anomaly.examples.first().map_or("", String::as_str);
            let weight = if anomaly.fatal { "" } else { ", allowed" };
            table.add_row([
                format!("  {}", anomaly.name),
                format!("{}{weight}, such as {example}", anomaly.count),
            ]);
        }
    }
}

/// `report.json` and `report.html` in `folder`.
pub fn write(folder: &Path, evidence: &Evidence, report: &Report) -> anyhow::Result<Vec<PathBuf>> {
    let mut written = Vec::new();
    let json = serde_json::to_string_pretty(report)?;
    for (name, text) in [("report.json", json), ("report.html", page::of(evidence, report))] {
        let path = folder.join(name);
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        written.push(path);
    }
    Ok(written)
}
