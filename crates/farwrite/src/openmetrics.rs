//! Numbers as OpenMetrics text (<https://github.com/prometheus/OpenMetrics>, version 1.0.0).

use std::fmt::{Display, Write};

/// Text in the making.
#[derive(Default)]
pub struct Metrics(String);

impl Metrics {
    /// What is measured, before its samples.
    pub fn family(&mut self, kind: &str, name: &str, unit: &str, help: &str) {
        let _ = writeln!(self.0, "# TYPE farwrite_{name} {kind}");
        if !unit.is_empty() {
            let _ = writeln!(self.0, "# UNIT farwrite_{name} {unit}");
        }
        let _ = writeln!(self.0, "# HELP farwrite_{name} {help}");
    }

    /// One number, with the labels that tell it from others.
    pub fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        let labels: Vec<String> = labels
            .iter()
            .map(|(k, v)| format!("{k}=\"{}\"", escaped(v)))
            .collect();
        let labels = match labels.is_empty() {
            true => String::new(),
            false => format!("{{{}}}", labels.join(",")),
        };
        let _ = writeln!(self.0, "farwrite_{name}{labels} {value}");
    }

    /// A number that goes up and down, without labels.
    pub fn gauge(&mut self, name: &str, unit: &str, help: &str, value: impl Display) {
        self.family("gauge", name, unit, help);
        self.sample(name, &[], value);
    }

    /// A number that only goes up, without labels.
    pub fn counter(&mut self, name: &str, unit: &str, help: &str, value: u64) {
        self.family("counter", name, unit, help);
        self.sample(&format!("{name}_total"), &[], value);
    }

    /// The whole text.
    pub fn finish(mut self) -> String {
        self.0.push_str("# EOF\n");
        self.0
    }
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_cannot_break_a_line() {
        let mut m = Metrics::default();
        m.sample("x", &[("vault", "a\"b\\c\nd")], 1.5);
        assert_eq!(m.0, "farwrite_x{vault=\"a\\\"b\\\\c\\nd\"} 1.5\n");
    }
}
