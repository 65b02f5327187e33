//! The tables of metrics as Markdown, LaTeX and CSV.

use super::{
    Source, charts,
    export::quoted,
    grid::Grid,
    metrics::{Row, Table, interval, is_seed, tables},
    published::{self, Published},
};
use crate::engine::{Result, distinct};

/// A format of tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Markdown.
    Markdown,
    /// LaTeX.
    Latex,
    /// Comma-separated values, a line for each number.
    Csv,
}

/// Writes the metrics of a pipeline, beside published results on its data set, which `dataset` names if the table of images
/// does not.
///
/// # Errors
/// See [`Published::find`].
pub fn plain(source: &Source, format: Format, dataset: Option<&str>) -> Result<String> {
    let tables = tables(source)?;
    let published = Published::find(source, dataset)?;
    if format == Format::Csv {
        return Ok(csv(&tables, published.as_ref()));
    }
    let mut grids: Vec<Grid> = tables.iter().flat_map(grids).collect();
    grids.extend(published::beside(source, &tables, published.as_ref())?);
    let write = if format == Format::Markdown { Grid::markdown } else { Grid::latex };
    let texts: Vec<String> = grids.iter().map(write).collect();
    Ok(texts.join("\n"))
}

/// Returns a table of metrics; of a swept one first the means over classes, which compare the combinations.
fn grids(table: &Table<'_>) -> Vec<Grid> {
    let title = format!("`{}` by the protocol `{}`, in percent", table.name, table.protocol);
    let (means, classes): (Vec<&Row<'_>>, Vec<&Row<'_>>) = table.rows.iter().partition(|row| row.is_mean());
    if table.axes.is_empty() {
        return vec![grid(table, title, &[classes, means].concat())];
    }
    let choice =
        if table.is_choice() { "; whoever chooses the best of them chooses on these labelled test images" } else { "" };
    let mut grids = vec![grid(table, format!("{title}: means over classes{choice}"), &means)];
    grids.extend(seeds(table));
    grids.push(grid(table, format!("{title}: classes"), &classes));
    grids
}

fn grid(table: &Table<'_>, title: String, rows: &[&Row<'_>]) -> Grid {
    let mut columns: Vec<String> = ["class".to_owned()].into_iter().chain(table.axes.clone()).collect();
    let texts = columns.len();
    columns.extend(["images".to_owned(), "anomalous".to_owned()]);
    columns.extend(table.measures.iter().map(|measure| measure.full_name()));
    let count = |count: Option<f64>| count.map_or("–".into(), |count| format!("{count:.0}"));
    let row = |row: &&Row<'_>| {
        let mut cells = vec![row.class().to_owned()];
        cells.extend(row.axes(&table.axes));
        cells.extend([count(row.images), count(row.anomalous)]);
        let values = row.values.iter().zip(&row.ends);
        cells.extend(values.map(|(value, ends)| match ends {
            Some(ends) => format!("{} ({})", charts::percent(*value), interval(*ends)),
            None => charts::percent(*value),
        }));
        cells
    };
    Grid { title, columns, rows: rows.iter().map(row).collect(), texts }
}

/// Returns the means over classes of a sweep as mean and deviation over its seeds, for each combination of its other
/// values; `None` if no seed is swept.
pub(super) fn seeds(table: &Table<'_>) -> Option<Grid> {
    let rows: Vec<&Row<'_>> = table.rows.iter().filter(|row| row.is_mean()).collect();
    let (seeds, others): (Vec<String>, Vec<String>) = table.axes.iter().cloned().partition(|axis| is_seed(axis));
    if seeds.is_empty() {
        return None;
    }
    let texts = others.len();
    let mut columns = others.clone();
    columns.push("seeds".into());
    columns.extend(table.measures.iter().map(|measure| measure.full_name()));
    let line = |settings: Vec<String>| {
        let of: Vec<&&Row<'_>> = rows.iter().filter(|row| row.axes(&others) == settings).collect();
        let mut cells = settings;
        cells.push(of.len().to_string());
        cells.extend(
            (0..table.measures.len())
                .map(|i| deviation(&of.iter().filter_map(|row| row.values[i]).collect::<Vec<_>>())),
        );
        cells
    };
    let lines = distinct(rows.iter().map(|row| row.axes(&others))).into_iter().map(line);
    let title = format!(
        "`{}` by the protocol `{}`, in percent: mean ± standard deviation over seeds",
        table.name, table.protocol
    );
    Some(Grid { title, columns, rows: lines.collect(), texts })
}

/// Formats mean and standard deviation of a sample as percent; the mean alone for one value.
fn deviation(values: &[f64]) -> String {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    match values.len() {
        0 | 1 => charts::percent(values.first().copied()),
        _ => format!("{} ± {}", charts::percent(Some(mean)), charts::percent(Some((squares / (count - 1.)).sqrt()))),
    }
}

/// Writes a line for each number, with that of the paper where it has one.
fn csv(tables: &[Table<'_>], published: Option<&Published>) -> String {
    let mut lines =
        vec!["table,protocol,settings,class,images,anomalous,metric,value,low,high,paper,epochs,difference".to_owned()];
    for table in tables {
        let published = published.filter(|_| Published::is_compared(table, tables));
        for row in &table.rows {
            for ((measure, value), ends) in table.measures.iter().zip(&row.values).zip(&row.ends) {
                let of = |published: &Published| published.of(table, row, &measure.column);
                let mut papers: Vec<Option<(Option<u32>, f64)>> =
                    published.map(of).unwrap_or_default().into_iter().map(Some).collect();
                if papers.is_empty() {
                    papers.push(None);
                }
                for paper in papers {
                    let settings = row.variant.settings().join(" ");
                    let texts = [&table.name, &table.protocol, &settings, &row.class].map(|text| quoted(text));
                    let number = |number: Option<f64>| number.map_or_else(String::new, |number| number.to_string());
                    let value = value.filter(|value| !value.is_nan());
                    let numbers = [
                        number(value),
                        number(ends.map(|[low, _]| low)),
                        number(ends.map(|[_, high]| high)),
                        number(paper.map(|(_, paper)| paper)),
                        number(paper.and_then(|(epochs, _)| epochs).map(f64::from)),
                        number(value.zip(paper).map(|(value, (_, paper))| value - paper)),
                    ];
                    let counts = [number(row.images), number(row.anomalous), quoted(&measure.column)];
                    lines.push([&texts[..], &counts[..], &numbers[..]].concat().join(","));
                }
            }
        }
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deviation_is_that_of_a_sample() {
        // 0.1 and 0.2 lie 0.05 from their mean: sqrt(2 · 0.0025 / 1) = 0.0707.
        assert_eq!(deviation(&[0.1, 0.2]), "15.0 ± 7.1");
        assert_eq!((deviation(&[0.5]), deviation(&[])), ("50.0".into(), "–".into()));
    }
}
