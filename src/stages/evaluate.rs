//! Anomaly maps and ground truth -> metrics.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use arrow::{
    array::{Array, ArrayRef, AsArray, Float64Array, Int64Array, StringArray},
    datatypes::{DataType, Float16Type, Float32Type, SchemaRef, UInt8Type},
};
use garde::Validate;
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    engine::{
        Error, Result,
        stage::{
            Batch, Column, Context, Misfit, Open, Operator, Output, Port, Ports, Rows, Schemas, Sink, Stage, Unit,
        },
    },
    metrics::{Guess, ImageMetrics, Judged, METRICS, Metric, MetricError, PixelMetrics, Protocol},
    tables::{
        anomaly_maps::{self, MAP, SCORE},
        column::missing,
        images::{self, CLASS, LABEL, MASK, MASK_GREY, ROI},
        metrics::{self, MEAN},
        tensor::tensor_row,
    },
    vision::pool,
};

/// Computes detection and localisation metrics per class and their mean over classes, by the rules of one or several
/// programs.
///
/// All metrics are exact over the stored scores and maps, which are read once. A class without ground truth has no
/// pixel metrics; an anomalous image without a mask counts in the image metrics alone. Undefined metrics are null and
/// are left out of the mean. An image without a label is not counted, nor are pixels outside of an image's `roi`. An image without class, score or map is an error. A
/// table of scores without a column `map` has image metrics alone.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields)]
#[schemars(extend("examples" = [{}]))]
pub struct Evaluate {
    /// The rules that the metrics follow, or a list of them, with a row per class and protocol. Numbers of different
    /// protocols must not be compared.
    #[garde(length(min = 1))]
    #[serde(default = "default_protocols", deserialize_with = "one_or_more")]
    #[schemars(with = "OneOrMore")]
    pub protocol: Vec<Protocol>,
    /// The false positive rate up to which AUPRO of the protocol `exact` is integrated.
    #[garde(range(min = 0.001, max = 1.))]
    #[serde(default = "default_limit")]
    pub aupro_limit: f64,
}

fn default_protocols() -> Vec<Protocol> {
    vec![Protocol::Exact, Protocol::Reference]
}

fn default_limit() -> f64 {
    0.3
}

#[derive(Deserialize, JsonSchema)]
#[serde(untagged, expecting = "a protocol is `exact`, `reference` or `ader`, or a list of them")]
enum OneOrMore {
    One(Protocol),
    More(Vec<Protocol>),
}

fn one_or_more<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<Protocol>, D::Error> {
    let protocols = match OneOrMore::deserialize(from)? {
        OneOrMore::One(protocol) => vec![protocol],
        OneOrMore::More(protocols) => protocols,
    };
    // A protocol that is listed twice is measured once.
    let mut once = Vec::new();
    for protocol in protocols {
        if !once.contains(&protocol) {
            once.push(protocol);
        }
    }
    Ok(once)
}

impl Stage for Evaluate {
    fn revision(&self) -> u32 {
        2
    }

    fn ports(&self) -> Ports {
        Ports::Named(vec![
            Port::rows(
                "images",
                [
                    Column::new("class", DataType::Utf8),
                    Column::new("label", DataType::Boolean),
                    Column::tensors("mask", DataType::UInt8, "[H, W]"),
                    Column::tensors("mask_grey", DataType::UInt8, "[H, W]").optional(),
                    images::roi_column(),
                ],
            ),
            Port::rows(
                "anomaly_maps",
                [
                    Column::tensors("map", DataType::Float16, "[H, W]").optional(),
                    Column::new("score", DataType::Float32),
                ],
            ),
        ])
    }

    fn makes(&self) -> Output {
        Output::Table
    }

    fn output(&self, inputs: &Schemas) -> Result<SchemaRef, Misfit> {
        let Some(map) = map_size(inputs)? else {
            return Ok(metrics::schema(METRICS.map(|metric| metric.column)));
        };
        for name in [MASK, MASK_GREY, ROI].into_iter().filter(|name| inputs.field("images", name).is_ok()) {
            let mask: [usize; 2] = inputs.shape("images", name)?;
            if mask != map {
                let message = format!("`{name}` is {}x{} and anomaly maps {}x{}", mask[0], mask[1], map[0], map[1]);
                return Err(Misfit::input("anomaly_maps", message));
            }
        }
        Ok(metrics::schema(METRICS.map(|metric| metric.column)))
    }
}

/// Returns the height and width of the maps; `None` for a table of scores without maps.
fn map_size(schemas: &Schemas) -> Result<Option<[usize; 2]>, Misfit> {
    match schemas.field("anomaly_maps", MAP) {
        Ok(_) => anomaly_maps::shape(schemas).map(Some),
        Err(_) => Ok(None),
    }
}

/// Returns the column of maps; `None` for a table of scores without maps.
fn maps(batch: &Batch) -> Option<&ArrayRef> {
    batch.port("anomaly_maps")?.column_by_name(MAP)
}

impl Open for Evaluate {
    fn open(self, context: &Context) -> Result<Box<dyn Operator>> {
        let size = map_size(&context.schemas)?.unwrap_or_default();
        Ok(Box::new(Evaluator { stage: self, size }))
    }
}

struct Evaluator {
    stage: Evaluate,
    size: [usize; 2],
}

/// The counts of one protocol, by class.
struct Tally {
    protocol: Protocol,
    size: [usize; 2],
    classes: BTreeMap<String, Class>,
}

/// The counts of one class.
#[derive(Default)]
struct Class {
    n_images: i64,
    n_anomalous: i64,
    images: ImageMetrics,
    pixels: PixelMetrics,
}

/// The maximum number of classes that a note names.
const NAMED: usize = 4;

impl Class {
    /// Returns the value of a metric for a guessing detector, if that is known and does not depend on the data.
    fn guess(&self, metric: &str, limit: f64) -> Option<Guess> {
        match metric {
            "image_auroc" => Guess::image_auroc((self.n_images - self.n_anomalous) as u64, self.n_anomalous as u64),
            "pixel_auroc" => Guess::pixel_auroc(self.pixels.regions()),
            "aupro" => Guess::aupro(self.pixels.regions(), limit),
            _ => None,
        }
    }
}

impl Operator for Evaluator {
    fn run(&mut self, rows: &mut Rows, out: &mut Sink<'_>) -> Result<()> {
        let of = |protocol: &Protocol| Tally { protocol: *protocol, size: self.size, classes: BTreeMap::new() };
        let mut tallies: Vec<Tally> = self.stage.protocol.iter().map(of).collect();
        let total = rows.len() as u64;
        let (mut done, mut labelled) = (0, 0);
        while let Some(batch) = rows.next(64)? {
            whole(&batch)?;
            let labels = batch.column("images", LABEL)?.as_boolean();
            let unlabelled = batch.ids.iter().zip(labels).filter(|(_, label)| label.is_none());
            unlabelled.for_each(|(id, _)| out.note("the image has no label and counts in no metric", id));
            labelled += labels.len() - labels.null_count();
            note_masks(&batch, out)?;
            tallies.par_iter_mut().try_for_each(|tally| tally.add(&batch))?;
            done += batch.len() as u64;
            out.progress(done, total, Unit::Images);
        }
        if labelled == 0 {
            out.warn("there are no images with a label to judge, so that every metric is null");
        }
        let one_sided: BTreeSet<&str> = tallies.iter().flat_map(Tally::one_sided).collect();
        if !one_sided.is_empty() {
            let names = one_sided.into_iter().collect::<Vec<_>>().join(", ");
            out.warn(&format!("no part of the means, for they have only normal or only anomalous images: {names}"));
        }
        let limit = self.stage.aupro_limit;
        // Notes are made once, by the protocol `exact`, or by the first one if `exact` is not requested.
        let judged = self.stage.protocol.iter().position(|protocol| *protocol == Protocol::Exact).unwrap_or_default();
        for (i, tally) in tallies.iter().enumerate() {
            let values = tally.values(limit);
            out.write_columns(tally.columns(&values))?;
            if i == judged {
                tally.guesses(&values, limit).iter().for_each(|note| out.warn(note));
            }
        }
        Ok(())
    }
}

/// Checks that class, score and map are present in every row; labels and masks may be null.
fn whole(batch: &Batch) -> Result<()> {
    let map = maps(batch).map(|_| ("anomaly_maps", MAP));
    for (port, name) in [("images", CLASS), ("anomaly_maps", SCORE)].into_iter().chain(map) {
        let column = batch.column(port, name)?;
        if let Some(row) = (0..column.len()).find(|row| column.is_null(*row)) {
            return Err(missing(&batch.ids[row], port, name));
        }
    }
    let mean = batch.column("images", CLASS)?.as_string::<i32>().iter().position(|class| class == Some(MEAN));
    match mean {
        Some(row) => Err(Error::Input(format!(
            "{}: a class `{MEAN}` would be taken for the mean over classes; give it another name",
            batch.ids[row]
        ))),
        None => Ok(()),
    }
}

/// Adds notes about anomalous images without the place of the anomaly in their ground truth.
fn note_masks(batch: &Batch, out: &mut Sink<'_>) -> Result<()> {
    let labels = batch.column("images", LABEL)?.as_boolean();
    let masks = batch.column("images", MASK)?;
    for (row, (id, _)) in batch.ids.iter().zip(labels).enumerate().filter(|(_, (_, label))| *label == Some(true)) {
        match tensor_row::<UInt8Type>(masks, row)? {
            None => out.note("the image is anomalous and has no mask: it counts in image metrics alone", id),
            Some(mask) if mask.iter().all(|pixel| *pixel == 0) => {
                out.note("the image is anomalous and its `mask` is empty: its pixels count as normal, and it has no region of AUPRO", id);
            }
            Some(_) => {}
        }
    }
    Ok(())
}

impl Tally {
    fn add(&mut self, batch: &Batch) -> Result<()> {
        let (names, labels) =
            (batch.column("images", CLASS)?.as_string::<i32>(), batch.column("images", LABEL)?.as_boolean());
        let labelled: Vec<(usize, bool)> =
            labels.iter().enumerate().filter_map(|(row, label)| Some((row, label?))).collect();
        let scores = labelled.par_iter().map(|(row, _)| self.score(batch, *row));
        let scores = scores.collect::<Result<Vec<_>>>()?;
        let maps = maps(batch);
        for ((row, label), score) in labelled.into_iter().zip(scores) {
            let mask = self.mask(batch, row)?;
            let class = self.classes.entry(names.value(row).to_owned()).or_default();
            // For an image without a mask only the label of the dataset is available.
            let of_mask = mask.as_ref().filter(|_| self.protocol.labels_by_mask()).map(|mask| mask.contains(&true));
            let anomalous = of_mask.unwrap_or(label);
            let wrong = |e: MetricError| Error::Stage(format!("{}: {e}", batch.ids[row]));
            if let Some((mask, maps)) = mask.zip(maps) {
                let map = tensor_row::<Float16Type>(maps, row)?.unwrap_or_default();
                let roi = images::roi_of(batch, row)?;
                class.pixels.update_within(map, &mask, roi.as_deref(), self.size[1]).map_err(wrong)?;
            }
            if let Some(score) = score {
                class.images.update(score, anomalous).map_err(wrong)?;
            }
            class.n_images += 1;
            class.n_anomalous += i64::from(anomalous);
        }
        Ok(())
    }

    /// Returns the image's score by the protocol, or the stored one if there is no map; `None` if the map is too small.
    fn score(&self, batch: &Batch, row: usize) -> Result<Option<f64>> {
        let (Some((side, repeats)), Some(maps)) = (self.protocol.windows(), maps(batch)) else {
            let stored = batch.column("anomaly_maps", SCORE)?.as_primitive::<Float32Type>();
            return Ok(Some(f64::from(stored.value(row))));
        };
        let [height, width] = self.size;
        if (side - 1) * repeats >= height.min(width) {
            return Ok(None);
        }
        let map = tensor_row::<Float16Type>(maps, row)?.unwrap_or_default();
        let map: Vec<f64> = map.iter().copied().map(f64::from).collect();
        Ok(Some(pool::largest_mean(&map, width, height, side, repeats)))
    }

    /// Returns the mask of anomalous pixels; `None` if it is not known.
    fn mask(&self, batch: &Batch, row: usize) -> Result<Option<Vec<bool>>> {
        let exact = batch.column("images", MASK)?;
        let grey = batch.port("images").and_then(|images| images.column_by_name(MASK_GREY));
        let grey = grey.filter(|grey| self.protocol.reads_grey_masks() && grey.is_valid(row));
        let mask = tensor_row::<UInt8Type>(grey.unwrap_or(exact), row)?;
        Ok(mask.map(|mask| mask.iter().map(|pixel| *pixel > 0).collect()))
    }

    /// Returns the classes whose images are all normal or all anomalous.
    fn one_sided(&self) -> impl Iterator<Item = &str> {
        let one_sided = |class: &Class| class.n_anomalous == 0 || class.n_anomalous == class.n_images;
        self.classes.iter().filter(move |(_, class)| one_sided(class)).map(|(name, _)| name.as_str())
    }

    /// Returns the metrics of each class, in the order of [`METRICS`].
    fn values(&self, limit: f64) -> Vec<Vec<Option<f64>>> {
        let metrics = |class: &Class| -> Vec<Option<f64>> {
            let images = class.images.ranking();
            let value = |metric: Metric| match metric.judged {
                Judged::Images => self.protocol.of_images(metric.kind, &images),
                Judged::Pixels => self.protocol.of_pixels(metric.kind, &class.pixels, limit),
            };
            METRICS.map(value).to_vec()
        };
        self.classes.values().map(metrics).collect()
    }

    /// Returns one note per metric that is not better than guessing, with the classes concerned.
    fn guesses(&self, values: &[Vec<Option<f64>>], limit: f64) -> Vec<String> {
        let percent = |share: f64| share * 100.;
        let note = |(i, metric): (usize, &str)| {
            let guessed = self.classes.iter().zip(values).filter_map(|((name, class), values)| {
                let (value, guess) = (values[i]?, class.guess(metric, limit)?);
                guess.explains(value).then(|| {
                    let Guess { value: mean, spread } = guess;
                    format!("{name} {:.1} % (guessing: {:.0} ± {:.0})", percent(value), percent(mean), percent(spread))
                })
            });
            let guessed: Vec<String> = guessed.collect();
            let named = guessed[..guessed.len().min(NAMED)].join(", ");
            let more = match guessed.len().saturating_sub(NAMED) {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            (!guessed.is_empty()).then(|| format!("`{metric}` is no better than guessing: {named}{more}"))
        };
        METRICS.iter().map(|metric| metric.column).enumerate().filter_map(note).collect()
    }

    /// Returns the columns of a row per class, and a row of the means over the classes for which a metric is defined.
    fn columns(&self, values: &[Vec<Option<f64>>]) -> Vec<ArrayRef> {
        let classes = || self.classes.values();
        let names = self.classes.keys().map(String::as_str).chain([MEAN]);
        let count = |of: fn(&Class) -> i64| {
            let counts = classes().map(of).chain([classes().map(of).sum()]);
            Arc::new(Int64Array::from_iter_values(counts)) as ArrayRef
        };
        let mut columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from_iter_values(names)),
            Arc::new(StringArray::from_iter_values(vec![self.protocol.name(); self.classes.len() + 1])),
            count(|class| class.n_images),
            count(|class| class.n_anomalous),
        ];
        columns.extend((0..METRICS.len()).map(|i| {
            let column = || values.iter().map(|row| row[i]);
            let known: Vec<f64> = column().flatten().collect();
            let mean = (!known.is_empty()).then(|| known.iter().sum::<f64>() / known.len() as f64);
            Arc::new(Float64Array::from_iter(column().chain([mean]))) as ArrayRef
        }));
        columns
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{BooleanArray, Float32Array, RecordBatch};
    use half::f16;

    use super::*;
    use crate::tables::tensor::tensor_column;

    fn batch(classes: [&str; 2], labels: [Option<bool>; 2], scores: [Option<f32>; 2]) -> Batch {
        let columns = |columns: Vec<(&str, ArrayRef)>| {
            RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, column)| (name, column, true)))
                .unwrap()
        };
        let map = tensor_column::<Float16Type>(vec![f16::ZERO; 8], 4, None).unwrap();
        let mask = tensor_column::<UInt8Type>(vec![0; 8], 4, Some(vec![true, false])).unwrap();
        let images = columns(vec![
            ("class", Arc::new(StringArray::from_iter_values(classes))),
            ("label", Arc::new(BooleanArray::from_iter(labels))),
            ("mask", mask),
        ]);
        let maps = columns(vec![("map", map), ("score", Arc::new(Float32Array::from_iter(scores)))]);
        let ids = ["a", "b"].map(str::to_owned).into();
        Batch::new(ids, vec![("images".into(), images), ("anomaly_maps".into(), maps)])
    }

    #[test]
    fn missing_values_are_errors_and_not_numbers() {
        let told = |classes, labels, scores| whole(&batch(classes, labels, scores)).unwrap_err().to_string();
        let (labels, scores) = ([Some(false), Some(true)], [Some(0.), Some(1.)]);
        whole(&batch(["nut", "nut"], labels, scores)).unwrap();
        assert!(told(["nut", "nut"], labels, [None, Some(1.)]).starts_with("a: `anomaly_maps` has no `score`"));
        assert!(told(["nut", "mean"], labels, scores).starts_with("b: a class `mean` would be taken for"));
    }

    #[test]
    fn image_without_label_is_not_counted() {
        let mut tally = Tally { protocol: Protocol::Reference, size: [2, 2], classes: BTreeMap::new() };
        tally.add(&batch(["nut", "nut"], [Some(true), None], [Some(0.), Some(1.)])).unwrap();
        tally.add(&batch(["nut", "bolt"], [None, None], [Some(0.), Some(1.)])).unwrap();
        let counts = tally.classes.iter().map(|(name, class)| (name.as_str(), class.n_images)).collect::<Vec<_>>();
        assert_eq!(counts, [("nut", 1)]);
    }

    #[test]
    fn one_sided_classes_are_found() {
        let mut tally = Tally { protocol: Protocol::Exact, size: [2, 2], classes: BTreeMap::new() };
        tally.add(&batch(["nut", "nut"], [Some(false), Some(true)], [Some(0.), Some(1.)])).unwrap();
        tally.add(&batch(["bolt", "gear"], [Some(false), Some(true)], [Some(0.), Some(1.)])).unwrap();
        assert_eq!(tally.one_sided().collect::<Vec<_>>(), ["bolt", "gear"]);
        let columns = tally.columns(&tally.values(0.3));
        let counts = columns[2].as_primitive::<arrow::datatypes::Int64Type>();
        assert_eq!(counts.values(), &[1, 1, 2, 4]);
    }

    #[test]
    fn note_on_metrics_that_guessing_reaches_names_classes() {
        let mut tally = Tally { protocol: Protocol::Exact, size: [2, 2], classes: BTreeMap::new() };
        let names = ["bolt", "gear", "nut", "pipe", "valve", "wheel"];
        for _ in 0..20 {
            for name in names {
                let scores = if name == "gear" { [Some(0.), Some(1.)] } else { [Some(1.), Some(1.)] };
                tally.add(&batch([name, name], [Some(false), Some(true)], scores)).unwrap();
            }
        }
        let told = tally.guesses(&tally.values(0.3), 0.3);
        let expected = "`image_auroc` is no better than guessing: bolt 50.0 % (guessing: 50 ± 9), nut 50.0 % (guessing: 50 ± 9), \
                        pipe 50.0 % (guessing: 50 ± 9), valve 50.0 % (guessing: 50 ± 9) and 1 more";
        assert_eq!(told, [expected]);
        tally.classes.retain(|name, _| name == "gear");
        assert_eq!(tally.guesses(&tally.values(0.3), 0.3), [""; 0]);
    }
}
