//! Anomaly maps and ground truth -> metrics.

mod parameters;
mod tally;

use arrow::{
    array::{Array, AsArray},
    datatypes::{DataType, SchemaRef, UInt8Type},
};
use vlmdiff_metrics::{METRICS, Protocol, has_foreground};

use crate::{
    engine::{
        Error, Result,
        stage::{
            Batch, Column, Context, Misfit, Open, Operator, Output, Port, Ports, Rows, Schemas, Sink, Stage, Unit,
        },
    },
    tables::{
        anomaly_maps::{self, MAP, SCORE},
        column::missing,
        images::{self, CALIBRATION, CLASS, LABEL, MASK, MASK_GREY, ROI, SPLIT},
        metrics::{self, MEAN},
        tensor::tensor_row,
    },
};
pub use parameters::{Bootstrap, Evaluate};
use tally::{Tally, maps};

impl Stage for Evaluate {
    fn revision(&self) -> u32 {
        3
    }

    fn ports(&self) -> Ports {
        let mut columns = vec![
            Column::new("class", DataType::Utf8),
            Column::new("label", DataType::Boolean),
            Column::tensors("mask", DataType::UInt8, "[H, W]"),
            Column::tensors("mask_grey", DataType::UInt8, "[H, W]").optional(),
            images::roi_column(),
        ];
        columns.extend(self.reads_splits().then(|| Column::new(SPLIT, DataType::Utf8)));
        Ports::Named(vec![
            Port::rows("images", columns),
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
        let schema = metrics::schema(METRICS.map(|metric| metric.column), self.bootstrap.is_some());
        let Some(map) = map_size(inputs)? else { return Ok(schema) };
        for name in [MASK, MASK_GREY, ROI].into_iter().filter(|name| inputs.field("images", name).is_ok()) {
            let mask: [usize; 2] = inputs.shape("images", name)?;
            if mask != map {
                let message = format!("`{name}` is {}x{} and anomaly maps {}x{}", mask[0], mask[1], map[0], map[1]);
                return Err(Misfit::input("anomaly_maps", message));
            }
        }
        Ok(schema)
    }
}

/// Returns the height and width of the maps; `None` for a table of scores without maps.
fn map_size(schemas: &Schemas) -> Result<Option<[usize; 2]>, Misfit> {
    match schemas.field("anomaly_maps", MAP) {
        Ok(_) => anomaly_maps::shape(schemas).map(Some),
        Err(_) => Ok(None),
    }
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

impl Operator for Evaluator {
    fn run(&mut self, rows: &mut Rows, out: &mut Sink<'_>) -> Result<()> {
        let mut tally = Tally::new(self.stage.clone(), self.size);
        let total = rows.len() as u64;
        let (mut done, mut labelled) = (0, 0);
        while let Some(batch) = rows.next(64)? {
            whole(&batch)?;
            let labels = batch.column("images", LABEL)?.as_boolean();
            for (row, id) in batch.ids.iter().enumerate().filter(|(row, _)| !tally.is_calibration(&batch, *row)) {
                if labels.is_null(row) {
                    out.note("the image has no label and counts in no metric", id);
                } else {
                    labelled += 1;
                }
            }
            note_masks(&batch, out)?;
            tally.add(&batch)?;
            done += batch.len() as u64;
            out.progress(done, total, Unit::Images);
        }
        if labelled == 0 {
            out.warn("there are no images with a label to judge, so that every metric is null");
        }
        let one_sided = tally.one_sided();
        if !one_sided.is_empty() {
            let names = one_sided.join(", ");
            out.warn(&format!("no part of the means, for they have only normal or only anomalous images: {names}"));
        }
        let without = tally.without_threshold();
        if !without.is_empty() {
            out.warn(&format!(
                "`pixel_f1` of `{}` is null without images of the split `{CALIBRATION}`, which `where:` lets through, in {}",
                Protocol::MvtecAd2.name(),
                without.join(", ")
            ));
        }
        // Notes are made once, by the protocol `exact`, or by the first one if `exact` is not requested.
        let judged = self.stage.protocol.iter().position(|protocol| *protocol == Protocol::Exact).unwrap_or_default();
        let spreads = tally.spreads();
        for (i, protocol) in self.stage.protocol.iter().enumerate() {
            let values = tally.values(*protocol);
            let intervals = spreads.as_ref().map(|spreads| tally.intervals(*protocol, &values, spreads));
            out.write_columns(tally.columns(*protocol, &values, intervals.as_deref()))?;
            if i == judged {
                tally.guesses(*protocol, &values).iter().for_each(|note| out.warn(note));
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
            Some(mask) if !has_foreground(mask) => {
                out.note("the image is anomalous and its `mask` is empty: its pixels count as normal, and it has no region of AUPRO", id);
            }
            Some(_) => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::{
        array::{ArrayRef, BooleanArray, Float32Array, RecordBatch, StringArray},
        datatypes::{Float16Type, Int64Type},
    };
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

    fn tally(protocol: Protocol) -> Tally {
        Tally::new(Evaluate { protocol: vec![protocol], aupro_limit: 0.3, bootstrap: None }, [2, 2])
    }

    /// Returns the numbers of images and of anomalous ones of each class and of the mean.
    fn counts(tally: &Tally, protocol: Protocol) -> Vec<(String, i64, i64)> {
        let columns = tally.columns(protocol, &tally.values(protocol), None);
        let numbers = |i: usize| columns[i].as_primitive::<Int64Type>().values().to_vec();
        let names = columns[0].as_string::<i32>().iter().flatten().map(str::to_owned);
        names.zip(numbers(2)).zip(numbers(3)).map(|((name, all), anomalous)| (name, all, anomalous)).collect()
    }

    #[test]
    fn image_without_label_is_not_counted() {
        let mut tally = tally(Protocol::Reference);
        tally.add(&batch(["nut", "nut"], [Some(true), None], [Some(0.), Some(1.)])).unwrap();
        tally.add(&batch(["nut", "bolt"], [None, None], [Some(0.), Some(1.)])).unwrap();
        // The mask of the labelled image is empty, by which the protocol goes.
        assert_eq!(counts(&tally, Protocol::Reference), [("nut".into(), 1, 0), ("mean".into(), 1, 0)]);
    }

    #[test]
    fn one_sided_classes_are_found() {
        let mut tally = tally(Protocol::Exact);
        tally.add(&batch(["nut", "nut"], [Some(false), Some(true)], [Some(0.), Some(1.)])).unwrap();
        tally.add(&batch(["bolt", "gear"], [Some(false), Some(true)], [Some(0.), Some(1.)])).unwrap();
        assert_eq!(tally.one_sided(), ["bolt", "gear"]);
        let expected = [("bolt", 1, 0), ("gear", 1, 1), ("nut", 2, 1), ("mean", 4, 2)];
        assert_eq!(
            counts(&tally, Protocol::Exact),
            expected.map(|(name, all, anomalous)| (name.into(), all, anomalous))
        );
    }

    #[test]
    fn note_on_metrics_that_guessing_reaches_names_classes() {
        let names = ["bolt", "gear", "nut", "pipe", "valve", "wheel"];
        let noted = |names: &[&str]| {
            let mut tally = tally(Protocol::Exact);
            for name in names.iter().flat_map(|name| [name; 20]) {
                let scores = if *name == "gear" { [Some(0.), Some(1.)] } else { [Some(1.), Some(1.)] };
                tally.add(&batch([name, name], [Some(false), Some(true)], scores)).unwrap();
            }
            tally.guesses(Protocol::Exact, &tally.values(Protocol::Exact))
        };
        let expected = "`image_auroc` is no better than guessing: bolt 50.0 % (guessing: 50 ± 9), nut 50.0 % (guessing: 50 ± 9), \
                        pipe 50.0 % (guessing: 50 ± 9), valve 50.0 % (guessing: 50 ± 9) and 1 more";
        assert_eq!(noted(&names), [expected]);
        assert_eq!(noted(&["gear"]), [""; 0]);
    }
}
