//! Published results on the data set of a pipeline, beside its own.

use std::collections::{BTreeMap, BTreeSet};

use vlmdiff_metrics::Protocol;

use super::{
    Source, charts,
    grid::Grid,
    metrics::{Row, Table},
};
use crate::{
    engine::{Error, Result, or_none},
    tables::{
        Role,
        column::{numbers, text},
        metrics::MEAN,
    },
};

/// The data sets of published results, as pipelines and `field_results` name them and as `paper_results` does.
const DATASETS: [(&str, &str); 4] =
    [("mvtec", "MVTec-AD"), ("visa", "VisA"), ("real_iad", "Real-IAD"), ("coco_ad", "COCO-AD")];
/// The metrics of the paper with the columns that hold ours.
const METRICS: [(&str, &str); 3] = [("ROC_I", "image_auroc"), ("ROC_P", "pixel_auroc"), ("PRO", "aupro")];

/// The method whose numbers in the paper stand beside ours, if the pipeline is not called as another one of the paper.
const METHOD: &str = "VLMDiff";

/// The numbers of the paper for a method on one data set.
pub(super) struct Published {
    method: String,
    /// The data set as pipelines name it, and as the paper does.
    dataset: (&'static str, &'static str),
    /// The epochs of training with the metric, by class and column; the mean over classes is the class [`MEAN`].
    paper: BTreeMap<(String, String), BTreeMap<u32, f64>>,
}

impl Published {
    /// Finds the numbers for a data set, by default that of the table of images; `None` if nobody published any.
    ///
    /// # Errors
    /// [`Error::Input`] if a data set is named that has no published results.
    pub(super) fn find(source: &Source, dataset: Option<&str>) -> Result<Option<Self>> {
        let images = source.table(Role::Images, &[source.table(Role::Metrics, &[])]);
        let of_images = images.and_then(|images| images.made.params.get("dataset")?.as_str());
        let known = |name: &str| DATASETS.into_iter().find(|(pipeline, paper)| [*pipeline, *paper].contains(&name));
        let found = match dataset {
            Some(name) => Some(known(name).ok_or_else(|| {
                let names = DATASETS.map(|(pipeline, _)| pipeline);
                Error::Input(format!("there are no published results on `{name}`; there are on {}", or_none(&names)))
            })?),
            None => of_images.and_then(known),
        };
        let Some(dataset) = found else { return Ok(None) };
        let methods = source.query("select distinct method from paper_results")?;
        let methods = text(&methods, "method")?;
        let method = methods.iter().flatten().find(|method| method.eq_ignore_ascii_case(&source.pipeline));
        let method = method.unwrap_or(METHOD).to_owned();
        let rows = source.query(&format!(
            "select split_or_class, metric, cast(epochs as double) as epochs, value from paper_results \
             where dataset = '{}' and method = '{method}' and coalesce(variant, '') in ('', 'multi-class') and value is not null",
            dataset.1
        ))?;
        let (classes, metrics) = (text(&rows, "split_or_class")?, text(&rows, "metric")?);
        let (epochs, values) = (numbers(&rows, "epochs")?, numbers(&rows, "value")?);
        let mut paper: BTreeMap<(String, String), BTreeMap<u32, f64>> = BTreeMap::new();
        for row in 0..rows.num_rows() {
            let column = METRICS.iter().find(|(name, _)| *name == metrics.value(row));
            let class = match classes.value(row) {
                "all" | "avg30classes" | "avg4splits" => MEAN,
                class => class,
            };
            if let (Some((_, column)), Some(epochs), Some(value)) = (column, epochs[row], values[row]) {
                paper
                    .entry((class.to_owned(), (*column).to_owned()))
                    .or_default()
                    .insert(epochs as u32, (value * 1e4).round() / 1e6);
            }
        }
        Ok(Some(Self { method, dataset, paper }))
    }

    /// Returns the paper's values of a metric, by epochs.
    pub(super) fn of(&self, class: &str, column: &str) -> impl Iterator<Item = (u32, f64)> {
        let found = self.paper.get(&(class.to_owned(), column.to_owned()));
        found.into_iter().flatten().map(|(epochs, value)| (*epochs, *value))
    }

    /// Returns true for the metrics that are compared: those by the rules of the paper's code, or else by the first
    /// protocol of the table.
    pub(super) fn is_compared(table: &Table<'_>, all: &[Table<'_>]) -> bool {
        let mut same = all.iter().filter(|other| other.name == table.name);
        let by_paper = |other: &&Table<'_>| other.protocol == Protocol::Reference.name();
        let first = same.clone().find(by_paper).or_else(|| same.next());
        first.is_some_and(|first| first.protocol == table.protocol)
    }

    /// Returns true for the mean of one class that stands beside the paper itself: the mean of the paper is of more.
    fn is_one_class(&self, mean: &Row<'_>, table: &Table<'_>) -> bool {
        let classes = || table.rows.iter().filter(|row| !row.is_mean() && row.variant == mean.variant);
        let is_known = |row: &Row<'_>| self.paper.keys().any(|(class, _)| *class == row.class);
        mean.is_mean() && classes().count() == 1 && classes().all(is_known)
    }

    /// Returns our metrics, the paper's and the difference, class by class.
    pub(super) fn beside(&self, table: &Table<'_>) -> Grid {
        let shown: Vec<(usize, &str)> = METRICS
            .into_iter()
            .filter_map(|(_, column)| {
                Some((table.measures.iter().position(|measure| measure.column == column)?, column))
            })
            .collect();
        let mut columns: Vec<String> = ["class".to_owned()].into_iter().chain(table.axes.clone()).collect();
        columns.push("epochs of the paper".into());
        let texts = columns.len();
        for (i, _) in &shown {
            let name = table.measures[*i].full_name();
            columns.extend([format!("{name}: ours"), "paper".into(), "difference".into()]);
        }
        let mut rows = Vec::new();
        for row in table.rows.iter().filter(|row| !self.is_one_class(row, table)) {
            let of = |column: &str| self.of(&row.class, column).collect::<BTreeMap<u32, f64>>();
            let all_epochs: BTreeSet<u32> = shown.iter().flat_map(|(_, column)| of(column).into_keys()).collect();
            for epochs in all_epochs {
                let mut cells = vec![row.class().to_owned()];
                cells.extend(row.axes(&table.axes));
                cells.push(epochs.to_string());
                for (i, column) in &shown {
                    let (ours, paper) = (row.values[*i], of(column).get(&epochs).copied());
                    let difference = ours.zip(paper).map(|(ours, paper)| format!("{:+.1}", (ours - paper) * 100.));
                    cells.extend([charts::percent(ours), charts::percent(paper), difference.unwrap_or("–".into())]);
                }
                rows.push(cells);
            }
        }
        let title = format!(
            "`{}` by the protocol `{}` beside {} in the paper on {}, in percent",
            table.name, table.protocol, self.method, self.dataset.1
        );
        Grid { title, columns, rows, texts }
    }

    /// Returns the results of other methods on the data set, with their sources.
    fn field(&self, source: &Source) -> Result<Grid> {
        let (pipeline, paper) = self.dataset;
        let of_metric = |metric: &str| format!("max(case when metric = '{metric}' then value end)");
        let rows = source.query(&format!(
            "select method, cast(epochs as varchar) || ' epochs' as setting, 'the paper, table ' || \"table\" as source, \
             {} as image_auroc, {} as pixel_auroc, {} as aupro \
             from paper_results where dataset = '{paper}' and \"table\" in ('2', '3', '9', '10') group by method, epochs, \"table\" \
             union all select method, setting || ', ' || cast(year as varchar), source || ' (' || verified || ')', image_auroc, \
             pixel_auroc, aupro from field_results where dataset = '{pipeline}' \
             order by aupro desc nulls last, method, setting",
            of_metric("ROC_I"),
            of_metric("ROC_P"),
            of_metric("PRO"),
        ))?;
        let texts = [text(&rows, "method")?, text(&rows, "setting")?, text(&rows, "source")?];
        let mut values = Vec::new();
        for (_, column) in METRICS {
            values.push(numbers(&rows, column)?);
        }
        let row = |row: usize| {
            let texts = texts.iter().map(|column| column.value(row).to_owned());
            let share = |value: f64| charts::percent(Some(value / 100.));
            texts.chain(values.iter().map(|column| column[row].map_or("–".into(), share))).collect()
        };
        Ok(Grid {
            title: format!("Published results on {paper}, in percent, by whatever protocol"),
            columns: ["method", "setting", "source", "image AUROC", "pixel AUROC", "AUPRO"].map(str::to_owned).into(),
            rows: (0..rows.num_rows()).map(row).collect(),
            texts: texts.len(),
        })
    }
}

/// Returns the published results on the data set of a pipeline, beside its own; none for a data set without any.
pub(super) fn beside(source: &Source, tables: &[Table<'_>], published: Option<&Published>) -> Result<Vec<Grid>> {
    let Some(published) = published else { return Ok(Vec::new()) };
    let compared = tables.iter().filter(|table| Published::is_compared(table, tables));
    let beside = compared.map(|table| published.beside(table)).filter(|grid| !grid.rows.is_empty());
    Ok(beside.chain([published.field(source)?]).collect())
}
