//! A table of texts, which every format of the report can write.

use minijinja::{Value, context};

/// A table of texts.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Grid {
    pub title: String,
    pub columns: Vec<String>,
    pub rows: Vec<Vec<String>>,
    /// The number of leading columns that are texts; the others are numbers.
    pub texts: usize,
}

impl Grid {
    /// Returns the table for the page.
    pub(super) fn value(&self) -> Value {
        context! { title => &self.title, columns => &self.columns, rows => &self.rows, texts => self.texts }
    }

    /// Writes it as a table of Markdown.
    pub(super) fn markdown(&self) -> String {
        let cell = |text: &String| text.replace('|', "\\|").replace('\n', " ");
        let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
        let rule = (0..self.columns.len()).map(|i| if i < self.texts { "---" } else { "---:" }.to_owned());
        let mut text = format!("## {}\n\n", self.title);
        text += &line(self.columns.iter().map(cell).collect());
        text += &line(rule.collect());
        self.rows.iter().for_each(|row| text += &line(row.iter().map(cell).collect()));
        text
    }

    /// Writes it as a `table` of LaTeX, which needs no package.
    pub(super) fn latex(&self) -> String {
        let line = |cells: &[String]| {
            format!("{} \\\\\n", cells.iter().map(|cell| latex(cell)).collect::<Vec<_>>().join(" & "))
        };
        let places = "l".repeat(self.texts) + &"r".repeat(self.columns.len() - self.texts);
        let mut text = format!("\\begin{{table}}\n\\caption{{{}}}\n", latex(&self.title));
        text += &format!("\\begin{{tabular}}{{{places}}}\n\\hline\n{}\\hline\n", line(&self.columns));
        self.rows.iter().for_each(|row| text += &line(row));
        text + "\\hline\n\\end{tabular}\n\\end{table}\n"
    }
}

/// Escapes a text for LaTeX.
fn latex(text: &str) -> String {
    let escaped = text.chars().map(|c| match c {
        '&' | '%' | '$' | '#' | '_' | '{' | '}' => format!("\\{c}"),
        '\\' => "\\textbackslash{}".into(),
        '~' => "\\textasciitilde{}".into(),
        '^' => "\\textasciicircum{}".into(),
        '±' => "$\\pm$".into(),
        '–' => "--".into(),
        _ => c.to_string(),
    });
    escaped.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grid() -> Grid {
        let row = |class: &str, value: &str| vec![class.to_owned(), value.to_owned()];
        Grid {
            title: "`metrics` of a_b".into(),
            columns: row("class", "AUROC"),
            rows: vec![row("a|b_c", "98.1 ± 0.2"), row("50 %", "–")],
            texts: 1,
        }
    }

    #[test]
    fn markdown_keeps_bars_of_texts_out_of_the_table() {
        let expected =
            "## `metrics` of a_b\n\n| class | AUROC |\n| --- | ---: |\n| a\\|b_c | 98.1 ± 0.2 |\n| 50 % | – |\n";
        assert_eq!(grid().markdown(), expected);
    }

    #[test]
    fn latex_escapes_its_signs() {
        let text = grid().latex();
        for line in [
            "\\caption{`metrics` of a\\_b}\n",
            "\\begin{tabular}{lr}\n",
            "a|b\\_c & 98.1 $\\pm$ 0.2 \\\\\n",
            "50 \\% & -- \\\\\n",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }
}
