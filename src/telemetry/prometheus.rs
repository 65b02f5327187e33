//! Prometheus' text format of figures.

use std::fmt::{Display, Write};

/// Figures in the text format. All names begin with `vlmdiff_`.
#[derive(Debug, Default)]
pub struct Exposition(String);

impl Exposition {
    /// Adds a family of figures: its name, its kind (`counter`, `gauge`, `histogram`), a sentence about it, and its samples
    /// by what follows the name: labels as [`label`] writes them, or the ending of a histogram's part.
    pub fn family<L: Display, V: Display>(
        &mut self,
        name: &str,
        kind: &str,
        help: &str,
        samples: impl IntoIterator<Item = (L, V)>,
    ) {
        let text = &mut self.0;
        // Writing to a text does not fail.
        let _ = writeln!(text, "# HELP vlmdiff_{name} {help}\n# TYPE vlmdiff_{name} {kind}");
        for (labels, value) in samples {
            let _ = writeln!(text, "vlmdiff_{name}{labels} {value}");
        }
    }

    /// Returns the text.
    pub fn text(self) -> String {
        self.0
    }
}

/// Writes labels: `{a="x",b="y"}`.
pub fn label<'a>(labels: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let escaped = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    let labels = labels.into_iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value)));
    format!("{{{}}}", labels.collect::<Vec<_>>().join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn family_is_written_with_escaped_labels() {
        let mut figures = Exposition::default();
        figures.family("rows", "gauge", "Rows.", [(label([("table", "a\"b\\\n"), ("stage", "sql")]), 3)]);
        let text = "# HELP vlmdiff_rows Rows.\n# TYPE vlmdiff_rows gauge\nvlmdiff_rows{table=\"a\\\"b\\\\\\n\",stage=\"sql\"} 3\n";
        assert_eq!(figures.text(), text);
    }
}
