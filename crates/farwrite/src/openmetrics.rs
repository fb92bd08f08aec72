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

    /// Numbers of several things, each told apart by its name in a label.
    pub fn each<'a, T>(
        &'a mut self,
        prefix: &'static str,
        label: &'static str,
        things: &'a [T],
        name_of: fn(&T) -> &str,
    ) -> Each<'a, T> {
        Each {
            metrics: self,
            prefix,
            label,
            things,
            name_of,
        }
    }

    /// The whole text.
    pub fn finish(mut self) -> String {
        self.0.push_str("# EOF\n");
        self.0
    }
}

/// See [`Metrics::each`].
pub struct Each<'a, T> {
    metrics: &'a mut Metrics,
    prefix: &'static str,
    label: &'static str,
    things: &'a [T],
    name_of: fn(&T) -> &str,
}

impl<T> Each<'_, T> {
    /// A number that goes up and down, of each of which it is known.
    pub fn gauge<N: Display>(
        &mut self,
        name: &str,
        unit: &str,
        help: &str,
        value: impl Fn(&T) -> Option<N>,
    ) {
        let name = format!("{}{name}", self.prefix);
        self.metrics.family("gauge", &name, unit, help);
        self.samples(&name, value);
    }

    /// A number that only goes up.
    pub fn counter(&mut self, name: &str, unit: &str, help: &str, value: impl Fn(&T) -> u64) {
        let name = format!("{}{name}", self.prefix);
        self.metrics.family("counter", &name, unit, help);
        self.samples(&format!("{name}_total"), |t| Some(value(t)));
    }

    fn samples<N: Display>(&mut self, name: &str, value: impl Fn(&T) -> Option<N>) {
        for thing in self.things {
            if let Some(value) = value(thing) {
                let labels = [(self.label, (self.name_of)(thing))];
                self.metrics.sample(name, &labels, value);
            }
        }
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
    fn each_thing_of_which_it_is_known_has_a_number() {
        let mut m = Metrics::default();
        let things = [("a", Some(3)), ("b", None)];
        let mut each = m.each("of_", "name", &things, |t| t.0);
        each.gauge("size", "", "Size.", |t| t.1);
        each.counter("seen", "", "Seen.", |_| 1);
        let want = "# TYPE farwrite_of_size gauge\n# HELP farwrite_of_size Size.\n\
            farwrite_of_size{name=\"a\"} 3\n\
            # TYPE farwrite_of_seen counter\n# HELP farwrite_of_seen Seen.\n\
            farwrite_of_seen_total{name=\"a\"} 1\nfarwrite_of_seen_total{name=\"b\"} 1\n";
        assert_eq!(m.0, want);
    }

    #[test]
    fn labels_cannot_break_a_line() {
        let mut m = Metrics::default();
        m.sample("x", &[("vault", "a\"b\\c\nd")], 1.5);
        assert_eq!(m.0, "farwrite_x{vault=\"a\\\"b\\\\c\\nd\"} 1.5\n");
    }
}
