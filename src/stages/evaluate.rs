//! Anomaly maps and ground truth -> metrics.

use std::{collections::BTreeMap, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, AsArray, Float64Array, Int64Array, RecordBatch, StringArray},
    datatypes::{DataType, Field, Float16Type, Float32Type, Schema, SchemaRef, UInt8Type},
};
use garde::Validate;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::column;
use crate::{
    engine::{
        Error, Result,
        stage::{Context, Open, Operator, Output, Port, Ports, Schemas, Stage},
        task::{Rows, Sink},
    },
    metrics::{MetricError, PixelMetrics, Ranking},
};

/// Computes detection and localisation metrics per class and their mean over classes.
///
/// All metrics are exact over the stored scores and maps. A class without ground truth has no pixel metrics; an anomalous
/// image without a mask counts in the image metrics alone.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields)]
pub struct Evaluate {
    /// AUPRO is integrated up to this false positive rate.
    #[garde(range(min = 0.001, max = 1.))]
    #[serde(default = "default_limit")]
    pub aupro_limit: f64,
}

fn default_limit() -> f64 {
    0.3
}

const METRICS: [&str; 7] =
    ["image_auroc", "image_ap", "image_f1_max", "pixel_auroc", "pixel_ap", "pixel_f1_max", "aupro"];
/// The row of the means over classes.
pub const MEAN: &str = "mean";

impl Stage for Evaluate {
    const NAME: &'static str = "evaluate";
    const REVISION: u32 = 1;
    const PORTS: Ports = Ports::Named(&[
        Port::rows("images", &["class", "label", "mask"]),
        Port::rows("anomaly_maps", &["map", "score"]),
    ]);
    const OUTPUT: &'static [Output] = &[Output::Table];

    fn output(&self, inputs: &Schemas) -> Result<SchemaRef, String> {
        let mask: [usize; 2] = column::shape(inputs.field("images", "mask")?, &DataType::UInt8, "[H, W]")?;
        let map: [usize; 2] = column::shape(inputs.field("anomaly_maps", "map")?, &DataType::Float16, "[H, W]")?;
        if mask != map {
            return Err(format!("masks are {}x{} and anomaly maps {}x{}", mask[0], mask[1], map[0], map[1]));
        }
        let mut fields = vec![
            Field::new("class", DataType::Utf8, false),
            Field::new("protocol", DataType::Utf8, false),
            Field::new("n_images", DataType::Int64, false),
            Field::new("n_anomalous", DataType::Int64, false),
        ];
        fields.extend(METRICS.map(|name| Field::new(name, DataType::Float64, true)));
        Ok(Arc::new(Schema::new(fields)))
    }
}

impl Open for Evaluate {
    fn open(self, context: &Context) -> Result<Box<dyn Operator>> {
        let field = context.schemas.field("anomaly_maps", "map").map_err(Error::Stage)?;
        let [_, width] = column::shape(field, &DataType::Float16, "[H, W]").map_err(Error::Stage)?;
        Ok(Box::new(Evaluator { limit: self.aupro_limit, width, output: context.output.clone() }))
    }
}

struct Evaluator {
    limit: f64,
    width: usize,
    output: SchemaRef,
}

/// What is known of one class.
#[derive(Default)]
struct Class {
    scores: Vec<f32>,
    labels: Vec<bool>,
    pixels: PixelMetrics,
    masks: usize,
}

impl Class {
    fn metrics(&self, limit: f64) -> Result<[Option<f64>; 7], MetricError> {
        let scores = self.scores.iter().map(|score| f64::from(*score));
        let image = Ranking::from_scores(scores.zip(self.labels.iter().copied()))?;
        let [a, b, c] = [image.auroc(), image.average_precision(), image.f1_max()];
        // Maps of normal images alone say nothing about localisation.
        if self.masks == 0 {
            return Ok([a, b, c, None, None, None, None]);
        }
        let pixel = self.pixels.ranking();
        Ok([a, b, c, pixel.auroc(), pixel.average_precision(), pixel.f1_max(), self.pixels.aupro(limit)])
    }
}

impl Operator for Evaluator {
    fn run(&mut self, rows: &mut Rows, out: &mut Sink<'_>) -> Result<()> {
        let mut classes: BTreeMap<String, Class> = BTreeMap::new();
        let total = rows.len() as u64;
        let mut done = 0;
        while let Some(batch) = rows.next(64)? {
            let (names, labels) =
                (batch.column("images", "class")?.as_string::<i32>(), batch.column("images", "label")?.as_boolean());
            let (masks, maps) = (batch.column("images", "mask")?, batch.column("anomaly_maps", "map")?);
            let scores = batch.column("anomaly_maps", "score")?.as_primitive::<Float32Type>();
            for row in 0..batch.len() {
                let class = classes.entry(names.value(row).to_owned()).or_default();
                class.scores.push(scores.value(row));
                class.labels.push(labels.value(row));
                if masks.is_valid(row) {
                    let mask: Vec<bool> = column::row::<UInt8Type>(masks, row)?.iter().map(|m| *m > 0).collect();
                    let map = column::row::<Float16Type>(maps, row)?;
                    class
                        .pixels
                        .update(map, &mask, self.width)
                        .map_err(|e| Error::Stage(format!("{}: {e}", batch.ids[row])))?;
                    class.masks += usize::from(labels.value(row));
                }
            }
            done += batch.len() as u64;
            out.progress(done, total, "images");
        }
        out.write(&self.table(&classes)?)
    }
}

impl Evaluator {
    fn table(&self, classes: &BTreeMap<String, Class>) -> Result<RecordBatch> {
        let mut names: Vec<&str> = classes.keys().map(String::as_str).collect();
        let metrics = classes
            .iter()
            .map(|(name, class)| class.metrics(self.limit).map_err(|e| Error::Stage(format!("class `{name}`: {e}"))));
        let mut values: Vec<[Option<f64>; 7]> = metrics.collect::<Result<_>>()?;
        let mut counts: Vec<[i64; 2]> =
            classes.values().map(|c| [c.labels.len() as i64, c.labels.iter().filter(|l| **l).count() as i64]).collect();
        // The mean is over the classes where a metric is defined.
        let mean = |i: usize| {
            let known: Vec<f64> = values.iter().filter_map(|row| row[i]).collect();
            (!known.is_empty()).then(|| known.iter().sum::<f64>() / known.len() as f64)
        };
        let means = std::array::from_fn(mean);
        let sums = [0, 1].map(|i| counts.iter().map(|c| c[i]).sum());
        names.push(MEAN);
        values.push(means);
        counts.push(sums);
        let mut columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from_iter_values(&names)),
            Arc::new(StringArray::from_iter_values(names.iter().map(|_| "exact"))),
            Arc::new(Int64Array::from_iter_values(counts.iter().map(|c| c[0]))),
            Arc::new(Int64Array::from_iter_values(counts.iter().map(|c| c[1]))),
        ];
        columns.extend(
            (0..METRICS.len()).map(|i| Arc::new(Float64Array::from_iter(values.iter().map(|row| row[i]))) as ArrayRef),
        );
        Ok(RecordBatch::try_new(self.output.clone(), columns)?)
    }
}
