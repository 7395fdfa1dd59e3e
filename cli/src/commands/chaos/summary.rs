//! What a suite showed: one row for each run, with the faults down and the properties across. As text,
//! JSON (`suite.json`) and a page (`suite.html`) that leads to the report of each run.
//!
//! A property is what one checker looks at. A cell without an entry was not looked at: never a pass.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use comfy_table::{Table, presets};
use ledgermq_checkers::availability::Distribution;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::page::escaped;

#[derive(Debug, Serialize)]
pub struct Summary {
    pub seed: u64,
    pub valid: usize,
    pub runs: Vec<Run>,
}

#[derive(Debug, Serialize)]
pub struct Run {
    pub scenario: String,
    /// What happens in it.
    pub about: String,
    pub workload: String,
    pub cluster: String,
    pub brokers: u64,
    pub seed: u64,
    /// Repeats the run.
    pub command: String,
    /// Where its history and report are, beside the summary.
    pub folder: String,
    /// Exit status of the run; none if it was killed or hung.
    pub status: Option<i32>,
    pub seconds: u64,
    #[serde(flatten)]
    pub seen: Seen,
    /// What the run said when it went wrong.
    pub error: Option<String>,
}

/// What the report of a run says, as far as a summary goes; all of it is missing where there is none.
#[derive(Debug, Default, Serialize)]
pub struct Seen {
    pub injections: u64,
    pub acknowledged: u64,
    pub lost: u64,
    pub duplicated: u64,
    pub failed_sends: u64,
    pub unknown_sends: u64,
    /// Faults after which no send ever succeeded.
    pub without_success: u64,
    pub gap_ms: Distribution,
    pub first_success_ms: Distribution,
    /// By checker.
    pub properties: BTreeMap<String, Property>,
    /// Fatal ones, by checker.
    pub anomalies: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Property {
    /// `valid`, `invalid` or `unknown`.
    pub outcome: String,
    pub reason: Option<String>,
}

const LOST: [&str; 3] = ["lost-prefix", "lost-middle", "lost-tail"];

impl Seen {
    /// Of a `report.json`.
    pub fn of(report: &Value) -> Self {
        let number = |name: &str| report[name].as_u64().unwrap_or(0);
        let figures = |name: &str| serde_json::from_value(report[name].clone()).unwrap_or_default();
        let mut seen = Self {
            injections: number("injections"),
            failed_sends: number("failed_sends"),
            unknown_sends: number("unknown_sends"),
            without_success: number("without_success"),
            gap_ms: figures("gap_ms"),
            first_success_ms: figures("first_success_ms"),
            ..Self::default()
        };
        for verdict in report["verdicts"].as_array().into_iter().flatten() {
            let checker = verdict["checker"].as_str().unwrap_or_default().to_owned();
            for anomaly in verdict["anomalies"].as_array().into_iter().flatten() {
                let name = anomaly["name"].as_str().unwrap_or_default();
                let count = anomaly["count"].as_u64().unwrap_or(0);
                if anomaly["fatal"] != true {
                    continue;
                }
                if checker.starts_with("total-queue") {
                    seen.lost += if LOST.contains(&name) { count } else { 0 };
                    seen.duplicated += if name == "duplicated" { count } else { 0 };
                }
                seen.anomalies.push(format!("{checker}: {count} {name}"));
            }
            if checker.starts_with("total-queue") {
                let counts = verdict["counts"].as_array().into_iter().flatten();
                let acknowledged = counts.into_iter().find(|count| count[0] == "acknowledged");
                // Of each topic, where there are several.
                seen.acknowledged += acknowledged.and_then(|count| count[1].as_u64()).unwrap_or(0);
            }
            if let Ok(property) = serde_json::from_value(verdict.clone()) {
                seen.properties.insert(checker, property);
            }
        }
        seen
    }
}

impl Seen {
    /// Some workloads send none; figures of sends mean nothing then.
    fn has_messages(&self) -> bool {
        self.properties.keys().any(|checker| checker.starts_with("total-queue"))
    }
}

impl Run {
    pub fn said(&self) -> &'static str {
        match self.status {
            Some(0) => "valid",
            Some(2) => "unknown",
            _ => "INVALID, or the run went wrong",
        }
    }

    fn class(&self) -> &'static str {
        match self.status {
            Some(0) => "valid",
            Some(2) => "unknown",
            _ => "invalid",
        }
    }
}

impl Summary {
    pub fn as_text(&self) -> String {
        let mut table = Table::new();
        table.load_preset(presets::NOTHING);
        table.set_header([
            "scenario",
            "workload",
            "cluster",
            "seed",
            "verdict",
            "injections",
            "acknowledged",
            "lost",
            "duplicated",
            "failed",
            "gap p50 / p99 / max ms",
            "s",
        ]);
        for run in &self.runs {
            let (seen, gap) = (&run.seen, run.seen.gap_ms);
            table.add_row([
                run.scenario.clone(),
                run.workload.clone(),
                format!("{} {}", run.brokers, run.cluster),
                run.seed.to_string(),
                run.said().to_owned(),
                seen.injections.to_string(),
                seen.acknowledged.to_string(),
                seen.lost.to_string(),
                seen.duplicated.to_string(),
                format!("{} / {}", seen.failed_sends, seen.unknown_sends),
                format!("{:.0} / {:.0} / {:.0}", gap.p50, gap.p99, gap.max),
                run.seconds.to_string(),
            ]);
            for anomaly in seen.anomalies.iter().chain(&run.error) {
                table.add_row([format!("  {anomaly}")]);
            }
        }
        format!("{table}\n{} of {} valid, seed {}", self.valid, self.runs.len(), self.seed)
    }

    /// Of all runs, in the order in which they are first met.
    fn properties(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for name in self.runs.iter().flat_map(|run| run.seen.properties.keys()) {
            if !names.contains(&name.as_str()) {
                names.push(name);
            }
        }
        names
    }

    /// A page of its own: it loads nothing, and leads to the pages of the runs beside it.
    pub fn as_page(&self) -> String {
        let properties = self.properties();
        let sum = |figure: fn(&Seen) -> u64| self.runs.iter().map(|run| figure(&run.seen)).sum::<u64>();
        let mut page = String::new();
        // Writing to a String cannot fail.
        let _ = write!(
            page,
            "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\">\
             <meta name=\"viewport\" content=\"width=device-width\">\
             <title>Chaos suite {0}</title><style>{STYLE}</style><h1>Chaos suite</h1>\
             <p>{1} of {2} runs valid, seed {0}. {3} injections, {4} messages acknowledged, \
             <b>{5} lost, {6} duplicated</b>, {7} sends failed and {8} without an answer after a fault.</p>\
             <p class=\"note\">A gap is the longest time without an acknowledged send from a fault on. An empty \
             cell was not looked at. The name of a scenario leads to the report of its run.</p>",
            self.seed,
            self.valid,
            self.runs.len(),
            grouped(sum(|seen| seen.injections)),
            grouped(sum(|seen| seen.acknowledged)),
            grouped(sum(|seen| seen.lost)),
            grouped(sum(|seen| seen.duplicated)),
            grouped(sum(|seen| seen.failed_sends)),
            grouped(sum(|seen| seen.unknown_sends)),
        );
        page.push_str(
            "<table><thead><tr><th rowspan=\"2\">Fault<th rowspan=\"2\">Workload<th rowspan=\"2\">Cluster\
             <th rowspan=\"2\">Verdict<th rowspan=\"2\" class=\"n\">Injec&shy;tions\
             <th rowspan=\"2\" class=\"n\">Acknow&shy;ledged<th rowspan=\"2\" class=\"n\">Lost\
             <th rowspan=\"2\" class=\"n\">Dupli&shy;cated<th colspan=\"2\" class=\"g\">Sends\
             <th colspan=\"3\" class=\"g\">Gap, ms",
        );
        if !properties.is_empty() {
            let _ = write!(page, "<th colspan=\"{}\" class=\"g\">Property", properties.len());
        }
        page.push_str(
            "<tr><th class=\"n\">failed<th class=\"n\">unknown<th class=\"n\">p50<th class=\"n\">p99<th class=\"n\">max",
        );
        for name in &properties {
            let _ = write!(page, "<th>{}", escaped(name));
        }
        page.push_str("</thead>");
        for run in &self.runs {
            self.row(&mut page, run, &properties);
        }
        page.push_str("</table></html>\n");
        page
    }

    fn row(&self, page: &mut String, run: &Run, properties: &[&str]) {
        let seen = &run.seen;
        let _ = write!(
            page,
            "<tbody><tr><td class=\"s\"><a href=\"{}/report.html\">{}</a><td>{}<td class=\"s\">{} {}\
             <td class=\"{verdict}\">{verdict}<td class=\"n\">{}",
            escaped(&run.folder),
            escaped(&run.scenario),
            escaped(&run.workload),
            run.brokers,
            escaped(&run.cluster),
            grouped(seen.injections),
            verdict = run.class(),
        );
        let figure = |page: &mut String, was_seen: bool, figure: u64, is_bad: bool| {
            let class = if was_seen && is_bad && figure > 0 { "n invalid" } else { "n" };
            let shown = if was_seen { grouped(figure) } else { String::new() };
            let _ = write!(page, "<td class=\"{class}\">{shown}");
        };
        let sends = seen.has_messages();
        figure(page, sends, seen.acknowledged, false);
        figure(page, sends, seen.lost, true);
        figure(page, sends, seen.duplicated, true);
        figure(page, sends, seen.failed_sends, false);
        figure(page, sends, seen.unknown_sends, false);
        for gap in [seen.gap_ms.p50, seen.gap_ms.p99, seen.gap_ms.max] {
            figure(page, seen.gap_ms.count > 0, gap.round() as u64, false);
        }
        for name in properties {
            match seen.properties.get(*name) {
                None => page.push_str("<td>"),
                Some(property) => {
                    let outcome = escaped(&property.outcome);
                    let reason = property.reason.as_deref().map(escaped).unwrap_or_default();
                    let _ = write!(page, "<td class=\"{outcome}\" title=\"{reason}\">{outcome}");
                }
            }
        }
        let columns = 13 + properties.len();
        let _ = write!(
            page,
            "<tr class=\"note\"><td colspan=\"{columns}\">{} <code>{}</code>",
            escaped(&run.about),
            escaped(&run.command)
        );
        if seen.has_messages() && seen.without_success > 0 {
            let _ = write!(
                page,
                " <span class=\"invalid\">{} faults without a later success</span>",
                seen.without_success
            );
        }
        for complaint in seen.anomalies.iter().chain(&run.error) {
            let _ = write!(
                page,
                "<tr class=\"note\"><td colspan=\"{columns}\" class=\"invalid\">{}",
                escaped(complaint)
            );
        }
        page.push_str("</tbody>");
    }
}

const STYLE: &str = ".s{white-space:nowrap}body{font:14px/1.45 system-ui,sans-serif;margin:2rem;color:#222}\
table{border-collapse:collapse}td,th{padding:.25rem .6rem;text-align:left;vertical-align:baseline}\
thead th{position:sticky;top:0;background:#fff;box-shadow:inset 0 -1px #999;vertical-align:bottom}\
thead tr+tr th{top:1.9rem}tbody{border-bottom:1px solid #ddd}tbody:hover{background:#f6f8fa}\
.n{text-align:right;font-variant-numeric:tabular-nums}.g{text-align:center}\
.note{color:#666;font-size:12px}.note td{padding-top:0;max-width:70rem}code{font-size:12px;color:#444}\
.valid{color:#1a7f37}.invalid{color:#cf222e;font-weight:600}.unknown{color:#9a6700;font-weight:600}";

/// 12345 as 12,345.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::with_capacity(digits.len() * 4 / 3);
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn run(status: i32, report: &Value) -> Run {
        Run {
            scenario: "kill-leader".to_owned(),
            about: "kill -9 of the <leader>".to_owned(),
            workload: "queue".to_owned(),
            cluster: "local".to_owned(),
            brokers: 3,
            seed: 7,
            command: "ledgermq chaos run --seed 7".to_owned(),
            folder: "kill-leader-queue".to_owned(),
            status: Some(status),
            seconds: 5,
            seen: Seen::of(report),
            error: None,
        }
    }

    #[test]
    fn lost_and_duplicated_are_counted_once_and_a_property_nobody_looked_at_stays_empty() {
        let anomaly =
            |name: &str, count: u64, fatal: bool| json!({"name": name, "count": count, "fatal": fatal});
        let bad = json!({
            "injections": 4, "failed_sends": 1,
            "gap_ms": {"count": 4, "p50": 40.4, "p99": 1234.6, "max": 1234.6},
            "verdicts": [
                {"checker": "total-queue", "outcome": "invalid", "reason": null, "counts": [["acknowledged", 12345]],
                 "anomalies": [anomaly("lost-middle", 2, true), anomaly("lost-tail", 1, true),
                               anomaly("duplicated", 3, true), anomaly("redelivered", 9, false)]},
                {"checker": "queue-log", "outcome": "invalid", "reason": null, "counts": [],
                 "anomalies": [anomaly("lost-write", 3, true)]},
            ],
        });
        let good =
            json!({"injections": 1, "verdicts": [{"checker": "fifo", "outcome": "valid", "reason": null}]});
        let summary = Summary { seed: 9, valid: 1, runs: vec![run(1, &bad), run(0, &good)] };
        let seen = &summary.runs[0].seen;
        assert_eq!((seen.lost, seen.duplicated, seen.acknowledged), (3, 3, 12_345));
        assert_eq!(summary.properties(), ["queue-log", "total-queue", "fifo"]);
        let page = summary.as_page();
        assert!(
            page.contains("1 of 2 runs valid, seed 9. 5 injections, 12,345 messages acknowledged"),
            "{page}"
        );
        assert!(page.contains("<b>3 lost, 3 duplicated</b>") && page.contains("1,235"), "{page}");
        assert!(page.contains("total-queue: 2 lost-middle") && !page.contains("redelivered"), "{page}");
        assert!(page.contains("kill -9 of the &lt;leader&gt;"), "text is not markup");
        let rows: Vec<&str> = page.split("<tbody>").skip(1).collect();
        let not_looked_at = |row: &str| row.matches("<td>").count() - row.matches("<td>queue").count();
        assert_eq!((not_looked_at(rows[0]), not_looked_at(rows[1])), (1, 2), "{page}");
        assert!(rows[1].contains("<td class=\"n\"><td class=\"n\">"), "no sends, no figures: {}", rows[1]);
        let text = summary.as_text();
        assert!(text.contains("40 / 1235 / 1235") && text.contains("1 of 2 valid, seed 9"), "{text}");
    }

    #[test]
    fn a_run_without_a_report_shows_nothing_as_seen() {
        let none = run(1, &Value::Null);
        assert!(none.seen.properties.is_empty() && none.seen.injections == 0);
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1_000_000), "1,000,000");
    }
}
