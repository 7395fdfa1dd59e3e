//! The report as one HTML page without anything to load: operations and latency over time with the
//! faults marked, the gap of each fault, and the verdicts.

use std::fmt::Write as _;

use ledgermq_checkers::{Kind, Outcome};

use super::judge::Evidence;
use super::report::Report;

const WIDTH: f64 = 1000.0;
const HEIGHT: f64 = 220.0;
const LEFT: f64 = 60.0;
const BOTTOM: f64 = 24.0;
/// Points of the latency plot; more would only make the page heavy.
const POINTS_MAX: usize = 20_000;
const BUCKETS_MAX: usize = 500;

const STYLE: &str = "body{font:14px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:1060px;color:#222}\
table{border-collapse:collapse}td,th{padding:.2rem .8rem;border-bottom:1px solid #ddd;text-align:left}\
.valid{color:#1a7f37}.invalid{color:#cf222e;font-weight:600}.unknown{color:#9a6700;font-weight:600}\
svg{background:#fafafa;border:1px solid #eee}text{font-size:11px;fill:#555}";

pub fn of(evidence: &Evidence, report: &Report) -> String {
    let mut page = String::new();
    // Writing to a String cannot fail.
    let _ = write!(
        page,
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>{0} {1}</title><style>{STYLE}</style>\
         <h1>{0}</h1><p>Seed {1}. <span class=\"{2}\">{2}</span></p>",
        escaped(&report.scenario),
        report.seed,
        word(report.outcome)
    );
    verdicts(&mut page, report);
    figures(&mut page, report);
    let axis = Axis { ends_ms: (evidence.ends_ns as f64 / 1e6).max(1.0) };
    rates(&mut page, evidence, report, axis);
    latencies(&mut page, evidence, report, axis);
    gaps(&mut page, report);
    page.push_str("</html>\n");
    page
}

fn verdicts(page: &mut String, report: &Report) {
    page.push_str("<h2>Verdicts</h2><table><tr><th>Checker<th>Verdict<th>Looked at<th>Found");
    for verdict in &report.verdicts {
        let counts: Vec<String> =
            verdict.counts.iter().map(|(name, count)| format!("{count} {}", escaped(name))).collect();
        let found: Vec<String> = verdict
            .anomalies
            .iter()
            .map(|anomaly| {
                let examples: Vec<String> =
                    anomaly.examples.iter().take(3).map(|example| escaped(example)).collect();
                let allowed = if anomaly.fatal { "" } else { " (allowed)" };
                format!("{} {}{allowed}: {}", anomaly.count, escaped(&anomaly.name), examples.join("; "))
            })
            .collect();
        let class = word(verdict.outcome);
        let reason =
            verdict.reason.as_deref().map_or(String::new(), |reason| format!(": {}", escaped(reason)));
        let _ = write!(
            page,
            "<tr><td>{}<td class=\"{class}\">{class}{reason}<td>{}<td>{}",
            escaped(&verdict.checker),
            counts.join(", "),
            if found.is_empty() { "nothing".to_owned() } else { found.join("<br>") }
        );
    }
    page.push_str("</table>");
}

fn figures(page: &mut String, report: &Report) {
    let _ = write!(
        page,
        "<h2>How long the faults were felt</h2><p>{} injections; {} sends failed and {} ended without an answer \
         after one; {} faults without a later success.</p>\
         <table><tr><th>Figure<th>p50 ms<th>p99 ms<th>max ms<th>of",
        report.injections, report.failed_sends, report.unknown_sends, report.without_success
    );
    for (name, figure) in report.figures() {
        let _ = write!(
            page,
            "<tr><td>{name}<td>{:.0}<td>{:.0}<td>{:.0}<td>{}",
            figure.p50, figure.p99, figure.max, figure.count
        );
    }
    page.push_str("</table>");
}

/// Time along the width of a plot.
#[derive(Clone, Copy)]
struct Axis {
    ends_ms: f64,
}

impl Axis {
    fn x(self, ms: f64) -> f64 {
        LEFT + ms / self.ends_ms * (WIDTH - LEFT)
    }
}

fn open_plot(page: &mut String, title: &str, report: &Report, axis: Axis) {
    let _ = write!(
        page,
        "<h2>{title}</h2><svg viewBox=\"0 0 {WIDTH} {}\" width=\"100%\" role=\"img\">",
        HEIGHT + BOTTOM
    );
    for felt in &report.faults {
        let (from, to) = (axis.x(felt.at_ms), axis.x(felt.until_ms));
        let _ = write!(
            page,
            "<rect x=\"{from:.1}\" y=\"0\" width=\"{:.1}\" height=\"{HEIGHT}\" fill=\"#f4c7c3\" opacity=\"0.6\">\
             <title>{} {} at {:.0} ms</title></rect>",
            (to - from).max(1.0),
            escaped(&felt.fault),
            escaped(&felt.target),
            felt.at_ms
        );
    }
    for tick in 0..=5 {
        let ms = axis.ends_ms * f64::from(tick) / 5.0;
        let anchor = if tick == 5 { "end" } else { "middle" };
        let _ = write!(
            page,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{:.1} s</text>",
            axis.x(ms),
            HEIGHT + 16.0,
            ms / 1e3
        );
    }
}

fn scale(page: &mut String, label: &str, y: f64) {
    let _ = write!(
        page,
        "<line x1=\"{LEFT}\" x2=\"{WIDTH}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"#ddd\"/>\
         <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
        LEFT - 6.0,
        y + 4.0
    );
}

fn rates(page: &mut String, evidence: &Evidence, report: &Report, axis: Axis) {
    open_plot(page, "Acknowledged (blue) and delivered (green) per second", report, axis);
    let buckets = ((axis.ends_ms / 100.0).ceil() as usize).clamp(1, BUCKETS_MAX);
    let width_ms = axis.ends_ms / buckets as f64;
    let mut series = [vec![0.0; buckets], vec![0.0; buckets]];
    let messages = &evidence.messages;
    let acknowledged = messages.sends().iter().filter(|sent| sent.kind == Kind::Ok);
    let acknowledged = acknowledged.filter_map(|sent| Some((0, sent.completed_ns()?)));
    let delivered = messages.deliveries().map(|delivered| (1, delivered.at_ns));
    for (of, at_ns) in acknowledged.chain(delivered) {
        let bucket = ((at_ns as f64 / 1e6 / width_ms) as usize).min(buckets - 1);
        if let Some(sum) = series.get_mut(of).and_then(|series: &mut Vec<f64>| series.get_mut(bucket)) {
            *sum += 1000.0 / width_ms;
        }
    }
    let highest = series.iter().flatten().copied().fold(1.0, f64::max);
    for share in [0.0, 0.5, 1.0] {
        scale(page, &format!("{:.0}", highest * share), HEIGHT * (1.0 - share * 0.95));
    }
    for (series, color) in series.iter().zip(["#0969da", "#1a7f37"]) {
        let points: Vec<String> = series
            .iter()
            .enumerate()
            .map(|(bucket, rate)| {
                let x = axis.x((bucket as f64 + 0.5) * width_ms);
                format!("{x:.1},{:.1}", HEIGHT * (1.0 - rate / highest * 0.95))
            })
            .collect();
        let _ = write!(
            page,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"1.2\"/>",
            points.join(" ")
        );
    }
    page.push_str("</svg>");
}

fn latencies(page: &mut String, evidence: &Evidence, report: &Report, axis: Axis) {
    open_plot(page, "Latency of sends, by when they began; red had no answer", report, axis);
    // From 0.1 ms to 100 s, logarithmic.
    let y = |ms: f64| HEIGHT * (1.0 - (ms.clamp(0.1, 1e5).log10() + 1.0) / 6.0);
    for (label, ms) in [("1 ms", 1.0), ("10 ms", 10.0), ("100 ms", 100.0), ("1 s", 1e3), ("10 s", 1e4)] {
        scale(page, label, y(ms));
    }
    let sends = evidence.messages.sends();
    let step = sends.len().div_ceil(POINTS_MAX).max(1);
    // The slow ones are the point of the plot: none of them is left out, while they are few.
    let slow_ns = 100_000_000;
    let mut slow_left = POINTS_MAX;
    for (position, sent) in sends.iter().enumerate() {
        let took_ns = sent.completed_ns().map(|completed| completed - sent.invoked_ns);
        let is_slow = took_ns.is_none_or(|took| took >= slow_ns);
        if position % step != 0 && (!is_slow || slow_left == 0) {
            continue;
        }
        slow_left = slow_left.saturating_sub(usize::from(is_slow));
        let (color, ms) = match (sent.kind, took_ns) {
            (Kind::Ok, Some(took)) => ("#0969da", took as f64 / 1e6),
            (_, took) => ("#cf222e", took.map_or(1e5, |took| took as f64 / 1e6)),
        };
        let _ = write!(
            page,
            "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"1.3\" fill=\"{color}\" opacity=\"0.5\"/>",
            axis.x(sent.invoked_ns as f64 / 1e6),
            y(ms)
        );
    }
    page.push_str("</svg>");
}

fn gaps(page: &mut String, report: &Report) {
    if report.faults.is_empty() {
        return;
    }
    page.push_str(
        "<h2>Each fault</h2><table><tr><th>At<th>Fault<th>Target<th>Gap ms<th>First success ms\
         <th>All queues ms<th>First delivery ms<th>Failed<th>Unknown",
    );
    let figure = |ms: Option<f64>| ms.map_or("never".to_owned(), |ms| format!("{ms:.0}"));
    for felt in &report.faults {
        let _ = write!(
            page,
            "<tr><td>{:.1} s<td>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{}",
            felt.at_ms / 1e3,
            escaped(&felt.fault),
            escaped(&felt.target),
            figure(felt.gap_ms),
            figure(felt.first_success_ms),
            figure(felt.all_queues_ms),
            figure(felt.first_delivery_ms),
            felt.failed_sends,
            felt.unknown_sends
        );
    }
    page.push_str("</table>");
}

fn word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Valid => "valid",
        Outcome::Invalid => "invalid",
        Outcome::Unknown => "unknown",
    }
}

pub(super) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
