//! Published results on the data set of a pipeline, beside its own.

use std::collections::{BTreeMap, BTreeSet};

use vlmdiff_metrics::Protocol;

use super::{
    Source,
    ablations::{self, MAIN, MODEL_ALONE},
    charts,
    grid::Grid,
    metrics::{Row, Table},
};
use crate::{
    engine::{Error, Result, Variant, or_none},
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
    /// The setting of each table of metrics, by its name and swept values; see [`ablations`].
    settings: Vec<(String, Variant, String)>,
    /// The metric after so many epochs, by setting, class and column; the mean over classes is the class [`MEAN`].
    paper: BTreeMap<[String; 3], ByEpochs>,
}

/// The paper's values of a metric by the epochs of training, which a model without training lacks.
pub(super) type ByEpochs = BTreeMap<Option<u32>, f64>;

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
        let mut settings = Vec::new();
        for table in source.of_role(Role::Metrics) {
            let is_ours = method == METHOD;
            let setting = if is_ours { ablations::of_metrics(source, table, dataset.0)? } else { MAIN.to_owned() };
            settings.push((table.table.clone(), table.variant.clone(), setting));
        }
        // Table 12 prints differences from the main result.
        let rows = source.query(&format!(
            "select p.split_or_class, coalesce(p.variant, '') as variant, replace(p.metric, 'delta_', '') as metric, \
             cast(p.epochs as double) as epochs, p.value + coalesce(base.value, 0) as value \
             from paper_results p left join paper_results base on p.metric = 'delta_' || base.metric \
             and base.dataset = p.dataset and base.split_or_class = p.split_or_class and base.method = p.method \
             and base.epochs = p.epochs and base.variant = 'multi-class' \
             where p.dataset = '{}' and (p.method = '{method}' or p.variant = '{MODEL_ALONE}') and p.value is not null",
            dataset.1
        ))?;
        let (classes, metrics) = (text(&rows, "split_or_class")?, text(&rows, "metric")?);
        let (variants, epochs) = (text(&rows, "variant")?, numbers(&rows, "epochs")?);
        let values = numbers(&rows, "value")?;
        let mut paper: BTreeMap<[String; 3], ByEpochs> = BTreeMap::new();
        for row in 0..rows.num_rows() {
            let column = METRICS.iter().find(|(name, _)| *name == metrics.value(row));
            let class = match classes.value(row) {
                "all" | "avg30classes" | "avg4splits" => MEAN,
                class => class,
            };
            if let (Some((_, column)), Some(value)) = (column, values[row]) {
                paper
                    .entry([ablations::of_paper(variants.value(row)), class, *column].map(str::to_owned))
                    .or_default()
                    .insert(epochs[row].map(|epochs| epochs as u32), (value * 1e4).round() / 1e6);
            }
        }
        Ok(Some(Self { method, dataset, settings, paper }))
    }

    /// Returns the paper's values that stand beside a metric of ours: those of its class and setting.
    pub(super) fn of(&self, table: &Table<'_>, row: &Row<'_>, column: &str) -> ByEpochs {
        let Some(setting) = self.setting(table, row).filter(|_| !self.is_one_class(row, table)) else {
            return ByEpochs::new();
        };
        let class = if row.is_mean() { MEAN } else { &row.class };
        self.paper.get(&[setting, class, column].map(str::to_owned)).cloned().unwrap_or_default()
    }

    /// Returns the setting of a row, which all instances of the table share that it is made from; `None` if they do not.
    fn setting(&self, table: &Table<'_>, row: &Row<'_>) -> Option<&str> {
        let is_of =
            |(name, variant, _): &&(String, Variant, String)| *name == table.name && row.variant.is_part_of(variant);
        let mut found = self.settings.iter().filter(is_of).map(|(_, _, setting)| setting.as_str());
        let first = found.next()?;
        found.all(|setting| setting == first).then_some(first)
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
        let is_known = |row: &Row<'_>| self.paper.keys().any(|[_, class, _]| *class == row.class);
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
        let has_ablation = table.rows.iter().filter_map(|row| self.setting(table, row)).any(|setting| setting != MAIN);
        let mut columns: Vec<String> = ["class".to_owned()].into_iter().chain(table.axes.clone()).collect();
        columns.extend(has_ablation.then(|| "setting of the paper".to_owned()));
        columns.push("epochs of the paper".into());
        let texts = columns.len();
        for (i, _) in &shown {
            let name = table.measures[*i].full_name();
            columns.extend([format!("{name}: ours"), "paper".into(), "difference".into()]);
        }
        let mut rows = Vec::new();
        for row in &table.rows {
            let papers: Vec<ByEpochs> = shown.iter().map(|(_, column)| self.of(table, row, column)).collect();
            let all_epochs: BTreeSet<Option<u32>> = papers.iter().flat_map(|paper| paper.keys().copied()).collect();
            for epochs in all_epochs {
                let mut cells = vec![row.class().to_owned()];
                cells.extend(row.axes(&table.axes));
                let setting = self.setting(table, row).filter(|setting| *setting != MAIN).unwrap_or("main");
                cells.extend(has_ablation.then(|| setting.to_owned()));
                cells.push(epochs.map_or("–".into(), |epochs| epochs.to_string()));
                for ((i, _), paper) in shown.iter().zip(&papers) {
                    let (ours, paper) = (row.values[*i], paper.get(&epochs).copied());
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

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use serde_json::{Value, json};

    use super::*;
    use crate::report::metrics::Measure;

    fn variant(swept: &[(&str, Value)]) -> Variant {
        Variant(swept.iter().map(|(axis, value)| ((*axis).to_owned(), value.clone())).collect())
    }

    fn row(class: &str, variant: &Variant) -> Row<'static> {
        Row {
            variant: Cow::Owned(variant.clone()),
            class: class.into(),
            images: None,
            anomalous: None,
            values: vec![Some(0.5)],
            ends: vec![None],
        }
    }

    /// Returns rows beside image AUROCs of the paper, given by setting, class and value.
    fn beside(settings: &[(&Variant, &str)], paper: &[(&str, &str, f64)], rows: Vec<Row<'_>>) -> Grid {
        let values = paper.iter().map(|(setting, class, value)| {
            ([*setting, *class, "image_auroc"].map(str::to_owned), ByEpochs::from([(Some(100), *value)]))
        });
        let published = Published {
            method: METHOD.into(),
            dataset: DATASETS[0],
            settings: settings.iter().map(|(of, name)| ("metrics".into(), (*of).clone(), (*name).to_owned())).collect(),
            paper: values.collect(),
        };
        let table = Table {
            name: "metrics".into(),
            protocol: "reference".into(),
            about: None,
            axes: rows[0].variant.0.iter().map(|(axis, _)| axis.clone()).collect(),
            measures: vec![Measure::new("image_auroc", &[])],
            rows,
        };
        published.beside(&table)
    }

    #[test]
    fn ablations_stand_beside_their_own_rows() {
        let [main, blip, other] =
            ["internvl2-8b", "blip2-flan-t5-xxl", "mine"].map(|m| variant(&[("model", json!(m))]));
        let settings = [(&main, MAIN), (&blip, "captioner=Blip2"), (&other, "captioner=mine")];
        let paper = [(MAIN, MEAN, 0.4), ("captioner=Blip2", MEAN, 0.6)];
        let rows = [&main, &blip, &other].map(|of| row(MEAN, of));
        let grid = beside(&settings, &paper, rows.into());
        assert_eq!(grid.columns[..4], ["class", "model", "setting of the paper", "epochs of the paper"]);
        let expected = [
            ["mean over classes", "internvl2-8b", "main", "100", "50.0", "40.0", "+10.0"],
            ["mean over classes", "blip2-flan-t5-xxl", "captioner=Blip2", "100", "50.0", "60.0", "-10.0"],
        ];
        assert_eq!(grid.rows, expected);
    }

    #[test]
    fn mean_over_splits_stands_beside_that_of_the_paper() {
        let splits = [0, 1, 2, 3].map(|split| variant(&[("coco_ad", json!({ "split": split }))]));
        let settings = splits.each_ref().map(|of| (of, MAIN));
        let paper = [(MAIN, "split0", 0.3), (MAIN, MEAN, 0.4)];
        // The mean over the single class of a split is not the paper's, which is over four.
        let rows = [row("split0", &splits[0]), row(MEAN, &splits[0]), row("mean over splits", &variant(&[]))];
        let grid = beside(&settings, &paper, rows.to_vec());
        let expected = [
            ["split0", "{\"split\":0}", "100", "50.0", "30.0", "+20.0"],
            ["mean over splits", "–", "100", "50.0", "40.0", "+10.0"],
        ];
        assert_eq!(grid.rows, expected);
    }

    #[test]
    fn mean_over_instances_of_two_settings_stands_beside_nothing() {
        let [one, two] = [0, 1].map(|split| variant(&[("coco_ad", json!({ "split": split }))]));
        let settings = [(&one, MAIN), (&two, "captioner=Blip2")];
        let grid = beside(&settings, &[(MAIN, MEAN, 0.4)], vec![row("mean over splits", &variant(&[]))]);
        assert!(grid.rows.is_empty(), "{grid:?}");
    }
}
