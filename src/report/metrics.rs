//! The tables of metrics, one for each table and protocol.

use std::{borrow::Cow, collections::BTreeSet};

use minijinja::{Value, context};
use vlmdiff_metrics::{Judged, Kind, Metric, Protocol};

use super::{Source, charts};
use crate::{
    engine::{Result, Variant, distinct, store::Manifest, value_text},
    tables::{
        Role,
        column::{numbers, text},
        metrics::{CLASS, ENDS, MEAN, N_ANOMALOUS, N_IMAGES, PROTOCOL, names},
    },
};

/// The groups of metrics, in the order of their columns.
const GROUPS: [&str; 3] = ["Images", "Others", "Pixels"];
/// The classes of COCO-AD, of which each split has one.
const SPLITS: [&str; 4] = ["split0", "split1", "split2", "split3"];
/// The class of a row with the means over [`SPLITS`].
const MEAN_OVER_SPLITS: &str = "mean over splits";
/// The metrics at the top of the page.
const HEADLINES: [&str; 3] = ["image_auroc", "pixel_auroc", "aupro"];

/// A metric in words.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Measure {
    /// The column of the table.
    pub column: String,
    /// `Images`, `Pixels`, or `Others` for a metric that is not known.
    pub of: &'static str,
    pub name: String,
    pub about: String,
}

impl Measure {
    pub(super) fn new(column: &str, aupro_limits: &[f64]) -> Self {
        let (of, name, about) = match Metric::of_column(column) {
            Some(metric) => {
                let of = if metric.judged == Judged::Images { "Images" } else { "Pixels" };
                (of, metric.kind.name(), metric.about(aupro_limits))
            }
            None => {
                let [image, pixel] = ["image_", "pixel_"].map(|prefix| column.strip_prefix(prefix));
                let of = if image.is_some() { "Images" } else { pixel.map_or("Others", |_| "Pixels") };
                (of, image.or(pixel).unwrap_or(column), String::new())
            }
        };
        Self { column: column.into(), of, name: name.into(), about }
    }

    /// Returns one of the things that are judged, in words; empty if that is not known.
    fn one(&self) -> &'static str {
        match self.of {
            "Images" => "image",
            "Pixels" => "pixel",
            _ => "",
        }
    }

    /// Returns the name with what is judged: `pixel AUROC`.
    pub(super) fn full_name(&self) -> String {
        format!("{} {}", self.one(), self.name).trim_start().to_owned()
    }
}

/// A number in a table of metrics.
#[derive(Debug, PartialEq)]
pub(super) struct Cell {
    pub percent: String,
    /// The length of the cell's bar, 0 to 100.
    pub bar: f64,
    /// The reason why there is no number.
    pub why: Option<&'static str>,
}

impl Cell {
    pub(super) fn new(value: Option<f64>, of: &str, images: Option<f64>, anomalous: Option<f64>) -> Self {
        let value = value.filter(|value| !value.is_nan());
        let why = match value {
            Some(_) => None,
            None if anomalous == Some(0.) => Some("no test image is anomalous"),
            None if images.is_some() && anomalous == images => Some("no test image is normal"),
            None if of == "Others" => Some("its table has no value"),
            None if of == "Images" => {
                Some("its maps are too small for this protocol's score of an image, or all images score the same")
            }
            None => Some(
                "there are no maps, no ground-truth masks of anomalous images, or not the images that this protocol needs \
                 beside them",
            ),
        };
        Self { percent: charts::percent(value), bar: value.unwrap_or_default().clamp(0., 1.) * 100., why }
    }
}

/// The metrics of a class: a row of a table.
#[derive(Clone)]
pub(super) struct Row<'a> {
    pub variant: Cow<'a, Variant>,
    pub class: String,
    pub images: Option<f64>,
    pub anomalous: Option<f64>,
    pub values: Vec<Option<f64>>,
    /// The ends of each metric's interval.
    pub ends: Vec<Option<[f64; 2]>>,
}

impl Row<'_> {
    /// Returns true for the means over classes, and for those over splits.
    pub(super) fn is_mean(&self) -> bool {
        [MEAN, MEAN_OVER_SPLITS].contains(&self.class.as_str())
    }

    /// Returns the class, in words for a mean.
    pub(super) fn class(&self) -> &str {
        if self.class == MEAN { "mean over classes" } else { &self.class }
    }

    /// Returns its values of some swept parameters; a dash stands for none.
    pub(super) fn axes(&self, axes: &[String]) -> Vec<String> {
        let value = |axis: &String| self.variant.get(axis).map_or("–".into(), value_text);
        axes.iter().map(value).collect()
    }
}

/// The metrics by one protocol.
pub(super) struct Table<'a> {
    /// The name of the table, of all instances of a swept one.
    pub name: String,
    pub protocol: String,
    pub about: Option<String>,
    /// The swept parameters.
    pub axes: Vec<String>,
    pub measures: Vec<Measure>,
    pub rows: Vec<Row<'a>>,
}

/// Returns all metrics, table by table and protocol by protocol.
pub(super) fn tables(source: &Source) -> Result<Vec<Table<'_>>> {
    let evaluated: Vec<&Manifest> = source.of_role(Role::Metrics).collect();
    let tables = evaluated.chunk_by(|a, b| a.table == b.table).map(|instances| by_protocol(source, instances));
    Ok(tables.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
}

/// Returns the metrics of a table by each protocol. `instances` is the table, or all instances of a swept one.
fn by_protocol<'a>(source: &Source, instances: &[&'a Manifest]) -> Result<Vec<Table<'a>>> {
    let names = shared_metrics(instances)?;
    // Metrics are explained once for all tables.
    let limit = |table: &Manifest| table.made.params.get("aupro_limit").and_then(serde_json::Value::as_f64);
    let limits = distinct(source.of_role(Role::Metrics).filter_map(limit));
    let measures: Vec<Measure> = names.iter().map(|name| Measure::new(name, &limits)).collect();
    let axes = distinct(instances.iter().flat_map(|table| &table.variant.0).map(|(axis, _)| axis.clone()));
    let mut all = Vec::new();
    for table in instances {
        all.extend(rows(source, table, &names)?);
    }
    // The sort is stable, so the rows of a class stay in the order of the instances.
    all.sort_by(|(_, a), (_, b)| (a.is_mean(), &a.class).cmp(&(b.is_mean(), &b.class)));
    let table = |protocol: &String| {
        let rows: Vec<Row<'_>> = all.iter().filter(|(of, _)| of == protocol).map(|(_, row)| row.clone()).collect();
        let shown: Vec<usize> = (0..measures.len()).filter(|i| is_shown(&measures[*i], protocol, &rows, *i)).collect();
        let row = |row: Row<'a>| Row {
            values: shown.iter().map(|i| row.values[*i]).collect(),
            ends: shown.iter().map(|i| row.ends[*i]).collect(),
            ..row
        };
        let mut with_means: Vec<Row<'_>> = rows.into_iter().map(row).collect();
        with_means.extend(means_over_splits(&with_means));
        Table {
            name: instances[0].table.clone(),
            protocol: protocol.clone(),
            about: source.about_word(&instances[0].made.stage, "Protocol", protocol),
            axes: axes.clone(),
            measures: shown.iter().map(|i| measures[*i].clone()).collect(),
            rows: with_means,
        }
    };
    Ok(distinct(all.iter().map(|(protocol, _)| protocol)).into_iter().map(table).collect())
}

/// Returns false for a metric without values that the protocol's program lacks, or that nobody asked for.
fn is_shown(measure: &Measure, protocol: &str, rows: &[Row<'_>], at: usize) -> bool {
    let lacks = |metric: Metric| {
        let protocol = Protocol::of_name(protocol);
        metric.kind == Kind::F1 || protocol.is_some_and(|protocol| !protocol.has(metric.judged, metric.kind))
    };
    rows.iter().any(|row| row.values[at].is_some()) || !Metric::of_column(&measure.column).is_some_and(lacks)
}

/// Returns the rows of a table with their protocols.
fn rows<'a>(source: &Source, table: &'a Manifest, names: &[String]) -> Result<Vec<(String, Row<'a>)>> {
    let batch = source.rows(table)?;
    let (classes, protocols) = (text(&batch, CLASS)?, text(&batch, PROTOCOL)?);
    // A table of metrics that a query made may lack the numbers of images, and not all have intervals.
    let optional = |name: &str| batch.column_by_name(name).map(|_| numbers(&batch, name)).transpose();
    let (images, anomalous) = (optional(N_IMAGES)?, optional(N_ANOMALOUS)?);
    let at = |column: &Option<Vec<Option<f64>>>, row: usize| column.as_ref().and_then(|column| column[row]);
    let values = names.iter().map(|name| numbers(&batch, name)).collect::<Result<Vec<_>>>()?;
    let [low, high] =
        ENDS.map(|end| names.iter().map(|name| optional(&format!("{name}{end}"))).collect::<Result<Vec<_>>>());
    let ends: Vec<_> = low?.into_iter().zip(high?).collect();
    let row = |row: usize| {
        let measured = Row {
            variant: Cow::Borrowed(&table.variant),
            class: classes.value(row).to_owned(),
            images: at(&images, row),
            anomalous: at(&anomalous, row),
            values: values.iter().map(|column| column[row]).collect(),
            ends: ends.iter().map(|(low, high)| Some([at(low, row)?, at(high, row)?])).collect(),
        };
        (protocols.value(row).to_owned(), measured)
    };
    Ok((0..batch.num_rows()).map(row).collect())
}

/// Returns the metrics that all instances of a table have, in the order of [`GROUPS`].
fn shared_metrics(instances: &[&Manifest]) -> Result<Vec<String>> {
    let all = instances.iter().map(|table| Ok(names(&*table.schema()?))).collect::<Result<Vec<_>>>()?;
    let mut shared = all.first().cloned().unwrap_or_default();
    shared.retain(|name| all.iter().all(|names| names.contains(name)));
    shared.sort_by_key(|name| GROUPS.iter().position(|group| *group == Measure::new(name, &[]).of));
    Ok(shared)
}

/// Returns the means over the splits of COCO-AD, for each combination of the other swept values that has all of them; none if
/// the rows are of other classes.
fn means_over_splits<'a>(rows: &[Row<'a>]) -> Vec<Row<'a>> {
    let splits: Vec<&Row<'_>> = rows.iter().filter(|row| !row.is_mean()).collect();
    let has_split = |row: &&Row<'_>| row.variant.0.iter().any(|(axis, _)| is_split(axis));
    if !splits.iter().all(|row| SPLITS.contains(&row.class.as_str()) && has_split(row)) {
        return Vec::new();
    }
    let others = |row: &Row<'_>| -> Variant {
        Variant(row.variant.0.iter().filter(|(axis, _)| !is_split(axis)).cloned().collect())
    };
    let mean = |variant: Variant| {
        let of: Vec<&Row<'_>> = splits.iter().copied().filter(|row| others(row) == variant).collect();
        let has_all = SPLITS.iter().all(|split| of.iter().filter(|row| row.class == *split).count() == 1);
        let sum = |value: &dyn Fn(&Row<'_>) -> Option<f64>| of.iter().copied().map(value).sum::<Option<f64>>();
        let measures = of.first().map_or(0, |row| row.values.len());
        let value = |i: usize| sum(&|row| row.values[i]).map(|sum| sum / SPLITS.len() as f64);
        has_all.then(|| Row {
            class: MEAN_OVER_SPLITS.into(),
            images: sum(&|row| row.images),
            anomalous: sum(&|row| row.anomalous),
            values: (0..measures).map(value).collect(),
            ends: vec![None; measures],
            variant: Cow::Owned(variant),
        })
    };
    distinct(splits.iter().map(|row| others(row))).into_iter().filter_map(mean).collect()
}

/// Returns the name of a swept parameter without the path to it.
fn last_part(axis: &str) -> &str {
    axis.rsplit('.').next().unwrap_or(axis)
}

/// Returns true for a swept seed.
pub(super) fn is_seed(axis: &str) -> bool {
    last_part(axis) == "seed"
}

/// Returns true for the swept split of COCO-AD: `images.coco_ad`, or `images.coco_ad.split`.
fn is_split(axis: &str) -> bool {
    ["coco_ad", "split"].contains(&last_part(axis))
}

impl Table<'_> {
    /// Returns true if the rows are of settings among which somebody may choose, which are no seeds and no splits.
    pub(super) fn is_choice(&self) -> bool {
        self.axes.iter().any(|axis| !is_seed(axis) && !is_split(axis))
    }

    /// Returns the table for the page.
    pub(super) fn value(&self) -> Value {
        // A line stands before the first metric of images and before the first of pixels.
        let measures = &self.measures;
        let first: Vec<bool> = (0..measures.len()).map(|i| i == 0 || measures[i].of != measures[i - 1].of).collect();
        let columns = measures.iter().zip(&first);
        let columns = columns.map(
            |(m, first)| context! { of => m.of, one => m.one(), name => &m.name, about => &m.about, first => *first },
        );
        let columns: Vec<Value> = columns.collect();
        let mut undefined = BTreeSet::new();
        let row = |row: &Row<'_>| {
            let cells =
                row.values.iter().zip(&row.ends).zip(measures).zip(&first).map(|(((value, ends), measure), first)| {
                    let Cell { percent, bar, why } = Cell::new(*value, measure.of, row.images, row.anomalous);
                    undefined.extend(why);
                    context! { percent, bar, why, first => *first, interval => ends.map(interval) }
                });
            context! {
                class => row.class(),
                mean => row.is_mean(),
                settings => row.variant.settings().join(", "),
                values => row.axes(&self.axes),
                images => row.images.map(|count| count as u64),
                anomalous => row.anomalous.map(|count| count as u64),
                cells => cells.collect::<Vec<_>>(),
                tiles => self.tiles(&row.values),
            }
        };
        let rows: Vec<Value> = self.rows.iter().map(row).collect();
        context! {
            table => &self.name,
            protocol => &self.protocol,
            about => &self.about,
            axes => &self.axes,
            is_choice => self.is_choice(),
            intervals => self.rows.iter().any(|row| row.ends.iter().any(Option::is_some)),
            columns,
            rows,
            undefined,
        }
    }

    fn tiles(&self, values: &[Option<f64>]) -> Vec<Value> {
        let found = HEADLINES.iter().filter_map(|headline| self.measures.iter().position(|m| m.column == *headline));
        let tile = |i: usize| {
            let (measure, percent) = (&self.measures[i], charts::percent(Some(values[i]?)));
            Some(context! { of => measure.one(), name => &measure.name, percent })
        };
        found.filter_map(tile).collect()
    }
}

/// Formats the ends of an interval as percent.
pub(super) fn interval([low, high]: [f64; 2]) -> String {
    format!("{} to {}", charts::percent(Some(low)), charts::percent(Some(high)))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn row(class: &str, value: Option<f64>, swept: &[(&str, Value)]) -> Row<'static> {
        let variant = Variant(swept.iter().map(|(axis, value)| ((*axis).to_owned(), value.clone())).collect());
        Row {
            variant: Cow::Owned(variant),
            class: class.into(),
            images: Some(10.),
            anomalous: Some(5.),
            values: vec![value],
            ends: vec![None],
        }
    }

    #[test]
    fn seeds_and_splits_are_told_by_the_end_of_their_path() {
        assert_eq!(["seed", "denoiser.training.seed", "seeds", "sigma"].map(is_seed), [true, true, false, false]);
        assert_eq!(["coco_ad", "images.coco_ad.split", "splits"].map(is_split), [true, true, false]);
    }

    #[test]
    fn splits_have_a_mean_for_each_combination_of_other_values() {
        let split = |number: usize, model: &str, value: f64| {
            let swept = [("coco_ad", json!({ "split": number })), ("model", json!(model))];
            row(SPLITS[number], Some(value), &swept)
        };
        let of =
            |model: &'static str, first: f64| (0..4).map(move |number| split(number, model, first + number as f64));
        let mut rows: Vec<Row<'_>> = of("a", 1.).chain(of("b", 2.)).collect();
        rows.push(Row { class: MEAN.into(), ..rows[0].clone() });
        let means = means_over_splits(&rows);
        let shown = means.iter().map(|row| (row.variant.settings().join(" "), row.values[0], row.images));
        let expected = [("model=a", 2.5), ("model=b", 3.5)];
        assert!(shown.eq(expected.map(|(model, value)| (model.to_owned(), Some(value), Some(40.)))));
        assert!(means.iter().all(|row| row.is_mean() && row.class() == "mean over splits"));
        let axes = ["coco_ad".to_owned(), "model".to_owned()];
        assert_eq!(means[0].axes(&axes), ["–", "a"]);
    }

    #[test]
    fn mean_over_splits_needs_all_of_them() {
        let rows = |values: &[Option<f64>]| -> Vec<Row<'static>> {
            let split =
                |(number, value): (usize, &Option<f64>)| row(SPLITS[number], *value, &[("split", json!(number))]);
            values.iter().enumerate().map(split).collect()
        };
        assert!(means_over_splits(&rows(&[Some(1.); 3])).is_empty());
        let without_number = means_over_splits(&rows(&[Some(1.), Some(1.), None, Some(1.)]));
        assert_eq!(without_number.iter().map(|row| row.values[0]).collect::<Vec<_>>(), [None]);
        // Other classes, and classes of one instance, have their means over classes.
        let other = [rows(&[Some(1.); 4]), vec![row("bottle", Some(1.), &[("split", json!(0))])]].concat();
        let of_one = SPLITS.map(|class| row(class, Some(1.), &[]));
        assert!(means_over_splits(&other).is_empty() && means_over_splits(&of_one).is_empty());
    }
}
