//! Prometheus' text form, for what is read when somebody asks rather than counted on the way.

use std::fmt::Write as _;

/// What sort of numbers a family has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only rises while the process lives.
    Counter,
    /// Rises and falls.
    Gauge,
    /// Buckets, sum and count.
    Histogram,
}

/// A text under construction.
#[derive(Debug, Default)]
pub struct Text(String);

impl Text {
    /// Begins a family: all its samples follow.
    pub fn family(&mut self, name: &str, kind: Kind, help: &str) {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    /// One sample.
    pub fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        self.0.push_str(name);
        for (index, (label, value)) in labels.iter().enumerate() {
            self.0.push(if index == 0 { '{' } else { ',' });
            let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.0, "{label}=\"{value}\"");
        }
        if !labels.is_empty() {
            self.0.push('}');
        }
        let _ = writeln!(self.0, " {value}");
    }

    /// A family with a single number.
    pub fn single(&mut self, name: &str, kind: Kind, help: &str, value: f64) {
        self.family(name, kind, help);
        self.sample(name, &[], value);
    }

    /// All of it.
    #[must_use]
    pub fn finish(self) -> String {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_and_help_cannot_leave_their_place() {
        let mut text = Text::default();
        text.family("a_total", Kind::Counter, "one\ntwo \\");
        text.sample("a_total", &[("x", "a\"b\\c\nd"), ("y", "")], 3.0);
        assert_eq!(
            text.finish(),
            "# HELP a_total one\\ntwo \\\\\n# TYPE a_total counter\na_total{x=\"a\\\"b\\\\c\\nd\",y=\"\"} 3\n"
        );
    }
}
