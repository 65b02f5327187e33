//! Anomaly maps and ground truth -> metrics.

use std::{collections::BTreeMap, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, AsArray, Float64Array, Int64Array, RecordBatch, StringArray},
    datatypes::{DataType, Field, Float16Type, Float32Type, Schema, SchemaRef, UInt8Type},
};
use garde::Validate;
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::column;
use crate::{
    engine::{
        Error, Result,
        stage::{Context, Open, Operator, Output, Port, Ports, Schemas, Stage},
        task::{Batch, Rows, Sink},
    },
    metrics::{ImageMetrics, MetricError, PixelMetrics, Protocol},
    vision::pool,
};

/// Computes detection and localisation metrics per class and their mean over classes, by the rules of one or several programs.
///
/// All metrics are exact over the stored scores and maps, read once. A class without ground truth has no pixel metrics; an
/// anomalous image without a mask counts in the image metrics alone. What is not defined is null, and no part of the mean.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields)]
pub struct Evaluate {
    /// Whose rules the metrics follow, or a list of them: a row per class and protocol. Numbers of different protocols are not to
    /// be compared.
    #[garde(length(min = 1))]
    #[serde(default = "default_protocols", deserialize_with = "one_or_more")]
    #[schemars(with = "OneOrMore")]
    pub protocol: Vec<Protocol>,
    /// AUPRO of the protocol `exact` is integrated up to this false positive rate.
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
    let mut protocols = match OneOrMore::deserialize(from)? {
        OneOrMore::One(protocol) => vec![protocol],
        OneOrMore::More(protocols) => protocols,
    };
    // A protocol that stands twice is measured once.
    let mut seen = Vec::new();
    protocols.retain(|protocol| {
        !seen.contains(protocol) && {
            seen.push(*protocol);
            true
        }
    });
    Ok(protocols)
}

const METRICS: [&str; 7] =
    ["image_auroc", "image_ap", "image_f1_max", "pixel_auroc", "pixel_ap", "pixel_f1_max", "aupro"];
/// The row of the means over classes.
pub const MEAN: &str = "mean";

impl Stage for Evaluate {
    const NAME: &'static str = "evaluate";
    const REVISION: u32 = 2;
    const PORTS: Ports = Ports::Named(&[
        Port::rows("images", &["class", "label", "mask"]).also(&["mask_grey"]),
        Port::rows("anomaly_maps", &["map", "score"]),
    ]);
    const OUTPUT: &'static [Output] = &[Output::Table];

    fn output(&self, inputs: &Schemas) -> Result<SchemaRef, String> {
        let mask: [usize; 2] = column::shape(inputs.field("images", "mask")?, &DataType::UInt8, "[H, W]")?;
        let map: [usize; 2] = column::shape(inputs.field("anomaly_maps", "map")?, &DataType::Float16, "[H, W]")?;
        let grey = inputs.field("images", "mask_grey").ok();
        for mask in [Some(mask), grey.map(|field| column::shape(field, &DataType::UInt8, "[H, W]")).transpose()?]
            .iter()
            .flatten()
        {
            if *mask != map {
                return Err(format!("masks are {}x{} and anomaly maps {}x{}", mask[0], mask[1], map[0], map[1]));
            }
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
        let size = column::shape(field, &DataType::Float16, "[H, W]").map_err(Error::Stage)?;
        Ok(Box::new(Evaluator { stage: self, size, output: context.output.clone() }))
    }
}

struct Evaluator {
    stage: Evaluate,
    size: [usize; 2],
    output: SchemaRef,
}

/// What one protocol knows, by class.
struct Measured {
    protocol: Protocol,
    size: [usize; 2],
    classes: BTreeMap<String, Class>,
}

/// What is known of one class.
#[derive(Default)]
struct Class {
    counted: [i64; 2],
    images: ImageMetrics,
    pixels: PixelMetrics,
}

impl Operator for Evaluator {
    fn run(&mut self, rows: &mut Rows, out: &mut Sink<'_>) -> Result<()> {
        let of = |protocol: &Protocol| Measured { protocol: *protocol, size: self.size, classes: BTreeMap::new() };
        let mut measured: Vec<Measured> = self.stage.protocol.iter().map(of).collect();
        let total = rows.len() as u64;
        let mut done = 0;
        while let Some(batch) = rows.next(64)? {
            measured.par_iter_mut().try_for_each(|measured| measured.add(&batch))?;
            done += batch.len() as u64;
            out.progress(done, total, "images");
        }
        let tables = measured.iter().map(|measured| measured.table(&self.output, self.stage.aupro_limit));
        tables.collect::<Result<Vec<_>>>()?.iter().try_for_each(|table| out.write(table))
    }
}

impl Measured {
    fn add(&mut self, batch: &Batch) -> Result<()> {
        let scores = (0..batch.len()).into_par_iter().map(|row| self.score(batch, row));
        let scores = scores.collect::<Result<Vec<_>>>()?;
        let (names, labels) =
            (batch.column("images", "class")?.as_string::<i32>(), batch.column("images", "label")?.as_boolean());
        let maps = batch.column("anomaly_maps", "map")?;
        for (row, score) in scores.into_iter().enumerate() {
            let mask = self.mask(batch, row)?;
            let class = self.classes.entry(names.value(row).to_owned()).or_default();
            // The dataset alone knows of an image without a mask.
            let of_mask = mask.as_ref().filter(|_| self.protocol.labels_by_mask()).map(|mask| mask.contains(&true));
            let anomalous = of_mask.unwrap_or(labels.value(row));
            let wrong = |e: MetricError| Error::Stage(format!("{}: {e}", batch.ids[row]));
            if let Some(mask) = mask {
                class.pixels.update(column::row::<Float16Type>(maps, row)?, &mask, self.size[1]).map_err(wrong)?;
            }
            if let Some(score) = score {
                class.images.update(score, anomalous).map_err(wrong)?;
            }
            class.counted[0] += 1;
            class.counted[1] += i64::from(anomalous);
        }
        Ok(())
    }

    /// The image's score; None where the map is too small for it.
    fn score(&self, batch: &Batch, row: usize) -> Result<Option<f64>> {
        let Some((side, repeats)) = self.protocol.windows() else {
            let stored = batch.column("anomaly_maps", "score")?.as_primitive::<Float32Type>();
            return Ok(Some(f64::from(stored.value(row))));
        };
        let [height, width] = self.size;
        if (side - 1) * repeats >= height.min(width) {
            return Ok(None);
        }
        let map = column::row::<Float16Type>(batch.column("anomaly_maps", "map")?, row)?;
        let map: Vec<f64> = map.iter().copied().map(f64::from).collect();
        Ok(Some(pool::largest_mean(&map, width, height, side, repeats)))
    }

    /// Where the image is anomalous; None where it is not known.
    fn mask(&self, batch: &Batch, row: usize) -> Result<Option<Vec<bool>>> {
        let exact = batch.column("images", "mask")?;
        let grey = batch.port("images").and_then(|images| images.column_by_name("mask_grey"));
        let grey = grey.filter(|grey| self.protocol.reads_grey_masks() && grey.is_valid(row));
        let mask = grey.unwrap_or(exact);
        if mask.is_null(row) {
            return Ok(None);
        }
        Ok(Some(column::row::<UInt8Type>(mask, row)?.iter().map(|pixel| *pixel > 0).collect()))
    }

    /// A row per class, and one of the means over the classes where a metric is defined.
    fn table(&self, output: &SchemaRef, limit: f64) -> Result<RecordBatch> {
        let mut names: Vec<&str> = self.classes.keys().map(String::as_str).collect();
        let mut counts: Vec<[i64; 2]> = self.classes.values().map(|class| class.counted).collect();
        let metrics = |class: &Class| -> [Option<f64>; 7] {
            let [a, b, c] = self.protocol.image_metrics(&class.images.ranking());
            let [d, e, f, g] = self.protocol.pixel_metrics(&class.pixels, limit);
            [a, b, c, d, e, f, g]
        };
        let mut values: Vec<[Option<f64>; 7]> = self.classes.values().map(metrics).collect();
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
            Arc::new(StringArray::from_iter_values(names.iter().map(|_| self.protocol.name()))),
            Arc::new(Int64Array::from_iter_values(counts.iter().map(|c| c[0]))),
            Arc::new(Int64Array::from_iter_values(counts.iter().map(|c| c[1]))),
        ];
        columns.extend(
            (0..METRICS.len()).map(|i| Arc::new(Float64Array::from_iter(values.iter().map(|row| row[i]))) as ArrayRef),
        );
        Ok(RecordBatch::try_new(output.clone(), columns)?)
    }
}
