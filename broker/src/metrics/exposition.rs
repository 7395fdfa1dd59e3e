//! The text format of Prometheus (version 0.0.4), written by hand: a family line, then its samples.

use std::fmt::{Display, Write as _};

use super::Histogram;

#[derive(Debug, Clone, Copy)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// Text in the making. Labels given at the start stand on every sample.
#[derive(Debug)]
pub struct Exposition {
    text: String,
    common: String,
    family: &'static str,
}

impl Exposition {
    pub fn with_labels(common: &[(&str, &str)]) -> Self {
        let mut labels = String::new();
        push_labels(&mut labels, common);
        Self { text: String::new(), common: labels, family: "" }
    }

    /// Starts a family; the samples that follow belong to it.
    pub fn family(&mut self, name: &'static str, kind: Kind, help: &str) {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        self.family = name;
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    pub fn sample(&mut self, labels: &[(&str, &str)], value: impl Display) {
        self.line("", labels, None, value);
    }

    pub fn histogram(&mut self, labels: &[(&str, &str)], histogram: &Histogram) {
        let (buckets, total, sum) = histogram.cumulative();
        for (bound, count) in buckets {
            self.line("_bucket", labels, Some(&bound.to_string()), count);
        }
        self.line("_bucket", labels, Some("+Inf"), total);
        self.line("_sum", labels, None, sum);
        self.line("_count", labels, None, total);
    }

    /// A histogram kept elsewhere: cumulative counts by bound, and their sum in the same unit.
    pub fn cumulative_histogram(
        &mut self,
        labels: &[(&str, &str)],
        buckets: &[(f64, u64)],
        total: u64,
        sum: f64,
    ) {
        for (bound, count) in buckets {
            self.line("_bucket", labels, Some(&bound.to_string()), count);
        }
        self.line("_bucket", labels, Some("+Inf"), total);
        self.line("_sum", labels, None, sum);
        self.line("_count", labels, None, total);
    }

    pub fn into_text(self) -> String {
        self.text
    }

    fn line(&mut self, suffix: &str, labels: &[(&str, &str)], bound: Option<&str>, value: impl Display) {
        let mut all = self.common.clone();
        push_labels(&mut all, labels);
        if let Some(bound) = bound {
            push_labels(&mut all, &[("le", bound)]);
        }
        let family = self.family;
        let _ = if all.is_empty() {
            writeln!(self.text, "{family}{suffix} {value}")
        } else {
            writeln!(self.text, "{family}{suffix}{{{all}}} {value}")
        };
    }
}

fn push_labels(out: &mut String, labels: &[(&str, &str)]) {
    for (name, value) in labels {
        if !out.is_empty() {
            out.push(',');
        }
        out.push_str(name);
        out.push_str("=\"");
        for c in value.chars() {
            match c {
                '\\' => out.push_str("\\\\"),
                '"' => out.push_str("\\\""),
                '\n' => out.push_str("\\n"),
                c => out.push(c),
            }
        }
        out.push('"');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_value_cannot_break_out_of_its_quotes() {
        let mut out = Exposition::with_labels(&[]);
        out.family("x", Kind::Gauge, "X.");
        out.sample(&[("t", "a\"b\\c\nd")], 1);
        assert!(out.into_text().ends_with("x{t=\"a\\\"b\\\\c\\nd\"} 1\n"));
    }
}
