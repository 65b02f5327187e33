//! Scores and thresholds -> verdicts.

use std::{
    collections::{BTreeMap, BTreeSet},
    iter::repeat_n,
    sync::Arc,
};

use arrow::{
    array::{Array, AsArray, BooleanArray, Float32Array, Float64Array, RecordBatch, StringArray},
    datatypes::{DataType, Float32Type, Float64Type, SchemaRef},
};
use garde::Validate;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use vlmdiff_metrics::{conformal, two_samples::kolmogorov_smirnov};

use super::calibrate::ordered_score;
use crate::{
    engine::{
        Error, Result,
        stage::{
            Batch, Column, Context, ITSELF, Misfit, Open, Operator, Output, Port, Ports, Rows, Sample, Schemas, Sink,
            Stage,
        },
        store::Note,
    },
    tables::{
        anomaly_maps::SCORE,
        column::{column, missing},
        decisions::{self, ANOMALOUS},
        images::{CLASS, LABEL},
        thresholds::{IMAGE, LEVEL, PIXEL, RATE, SCORES, THRESHOLD},
    },
};

/// Compares the score of each image with the threshold of its class: the verdict, and the p-value of the score among
/// those of the calibration.
///
/// An image is anomalous if its score is above the threshold. An image of a class without a threshold has no verdict. Each
/// row states the digest of its model: of the tables that the score and the thresholds follow from. A note names the classes
/// in which the images that are not alarms score otherwise than in the calibration.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields)]
#[schemars(extend("examples" = [{ "rate": 0.05 }]))]
pub struct Decide {
    /// The rate of false alarms whose threshold is taken: one of `rates` of `calibrate`. A threshold that was chosen by
    /// costs is taken whatever this says.
    #[garde(range(min = 1e-6, max = 0.9))]
    #[serde(default = "default_rate")]
    pub rate: f64,
}

fn default_rate() -> f64 {
    0.05
}

impl Stage for Decide {
    fn revision(&self) -> u32 {
        3
    }

    fn ports(&self) -> Ports {
        Ports::Named(vec![
            Port::rows("images", [Column::new(CLASS, DataType::Utf8)]),
            Port::rows("anomaly_maps", [Column::new(SCORE, DataType::Float32)]),
            Port::table(
                THRESHOLDS,
                [
                    Column::new(CLASS, DataType::Utf8),
                    Column::new(LEVEL, DataType::Utf8),
                    Column::new(RATE, DataType::Float64),
                    Column::new(THRESHOLD, DataType::Float32),
                    Column::any(SCORES),
                ],
            ),
        ])
    }

    fn makes(&self) -> Output {
        Output::RowPerRow
    }

    fn is_quick(&self) -> bool {
        true
    }

    fn states_model(&self) -> bool {
        true
    }

    fn output(&self, inputs: &Schemas) -> Result<SchemaRef, Misfit> {
        let scores = inputs.field(THRESHOLDS, SCORES)?.data_type();
        match scores {
            DataType::List(item) if *item.data_type() == DataType::Float32 => Ok(decisions::schema()),
            other => Err(Misfit::input(
                THRESHOLDS,
                format!("column `{SCORES}` is {other}; a list of Float32 is read, as `calibrate` makes it"),
            )),
        }
    }

    fn review(&self, table: &Sample<'_>) -> Result<Vec<Note>> {
        let Some(thresholds) = table.table(THRESHOLDS)? else { return Ok(Vec::new()) };
        let thresholds = Thresholds::read(&thresholds, self.rate)?;
        let columns = [("images", &[LABEL][..]), (ITSELF, &[CLASS, SCORE, ANOMALOUS])];
        Ok(drift(&thresholds, &table.rows(LOOKED_AT, &columns)?)?.into_iter().collect())
    }
}

/// The port of thresholds.
const THRESHOLDS: &str = "thresholds";
/// The maximum number of images that a review looks at.
const LOOKED_AT: usize = 8192;
/// The probability of a note on drift where there is none.
const SIGNIFICANCE: f64 = 0.01;

/// The threshold of a class, and the scores that it was computed from.
#[derive(Debug, Default, PartialEq)]
struct Calibrated {
    rate: Option<f64>,
    threshold: Option<f32>,
    /// Ascending.
    scores: Vec<f32>,
    pixel_threshold: Option<f32>,
}

/// The thresholds by class; `None` is the class of a threshold for all.
#[derive(Debug)]
struct Thresholds(BTreeMap<Option<String>, Calibrated>);

impl Thresholds {
    /// Reads the thresholds of a rate.
    fn read(table: &RecordBatch, wanted: f64) -> Result<Self> {
        let [classes, levels] = [CLASS, LEVEL].map(|name| column(table, name));
        let (classes, levels) = (classes?.as_string::<i32>(), levels?.as_string::<i32>());
        let rates = column(table, RATE)?.as_primitive::<Float64Type>();
        let thresholds = column(table, THRESHOLD)?.as_primitive::<Float32Type>();
        let scores = column(table, SCORES)?.as_list::<i32>();
        let mut found: BTreeMap<Option<String>, Calibrated> = BTreeMap::new();
        let (mut others, mut is_found) = (BTreeSet::new(), false);
        for row in 0..table.num_rows() {
            let class = classes.is_valid(row).then(|| classes.value(row).to_owned());
            let threshold = thresholds.is_valid(row).then(|| thresholds.value(row));
            let rate = rates.is_valid(row).then(|| rates.value(row));
            let calibrated = found.entry(class).or_default();
            match levels.value(row) {
                PIXEL => calibrated.pixel_threshold = threshold,
                IMAGE if rate.is_none_or(|rate| rate == wanted) => {
                    (calibrated.rate, calibrated.threshold) = (rate, threshold);
                    if scores.is_valid(row) {
                        calibrated.scores = scores.value(row).as_primitive::<Float32Type>().values().to_vec();
                    }
                    is_found = true;
                }
                _ => others.extend(rate.map(|rate| rate.to_string())),
            }
        }
        if !is_found && !others.is_empty() {
            let others = others.into_iter().collect::<Vec<_>>().join(", ");
            return Err(Error::Input(format!(
                "`{THRESHOLDS}` has no threshold for the rate {wanted}; it has {others}: set `rate` to one of them, or add \
                 {wanted} to `rates` of the stage `calibrate`"
            )));
        }
        Ok(Self(found))
    }

    /// Returns the threshold of a class, or that of all classes.
    fn of(&self, class: &str) -> Option<&Calibrated> {
        self.0.get(&Some(class.to_owned())).or_else(|| self.0.get(&None))
    }
}

impl Open for Decide {
    fn open(self, context: &Context) -> Result<Box<dyn Operator>> {
        let table = context.tables.get(THRESHOLDS);
        let table = table.ok_or_else(|| Error::Stage(format!("the stage was given no `{THRESHOLDS}`")))?;
        let model = context.model.ok_or_else(|| Error::Stage("the stage was given no model".into()))?;
        Ok(Box::new(Decider { thresholds: Thresholds::read(table, self.rate)?, model: model.to_string() }))
    }
}

struct Decider {
    thresholds: Thresholds,
    /// The digest of the model.
    model: String,
}

impl Operator for Decider {
    fn run(&mut self, rows: &mut Rows, out: &mut Sink<'_>) -> Result<()> {
        while let Some(batch) = rows.next(1024)? {
            let classes = batch.column("images", CLASS)?.as_string::<i32>();
            let scores = batch.column("anomaly_maps", SCORE)?.as_primitive::<Float32Type>();
            for (row, id) in batch.ids.iter().enumerate() {
                if classes.is_null(row) {
                    return Err(missing(id, "images", CLASS));
                }
                ordered_score(id, scores, row)?;
            }
            let calibrated: Vec<Option<&Calibrated>> =
                classes.iter().map(|class| self.thresholds.of(class.unwrap_or_default())).collect();
            let threshold = |row: usize| calibrated[row].and_then(|calibrated| calibrated.threshold);
            for (row, id) in batch.ids.iter().enumerate().filter(|(row, _)| threshold(*row).is_none()) {
                let class = classes.value(row);
                out.note(&format!("there is no verdict, for there is no threshold for the class {class}"), id);
            }
            let p_value = |(row, score): (usize, &f32)| {
                let scores = &calibrated[row]?.scores;
                (!scores.is_empty()).then(|| conformal::p_value(scores, *score))
            };
            let verdict = |(row, score): (usize, &f32)| Some(*score > threshold(row)?);
            let of = |value: fn(&Calibrated) -> Option<f32>| {
                Arc::new(Float32Array::from_iter(calibrated.iter().map(|calibrated| value((*calibrated)?))))
            };
            let rates = calibrated.iter().map(|calibrated| (*calibrated)?.rate);
            out.write_rows(
                &batch,
                vec![
                    Arc::new(classes.clone()),
                    Arc::new(scores.clone()),
                    Arc::new(Float64Array::from_iter(scores.values().iter().enumerate().map(p_value))),
                    Arc::new(Float64Array::from_iter(rates)),
                    of(|calibrated| calibrated.threshold),
                    Arc::new(BooleanArray::from_iter(scores.values().iter().enumerate().map(verdict))),
                    of(|calibrated| calibrated.pixel_threshold),
                    Arc::new(StringArray::from_iter_values(repeat_n(&self.model, batch.len()))),
                ],
            )?;
        }
        Ok(())
    }
}

/// Returns the note on classes whose images score otherwise than the calibration.
///
/// The images that are not alarms are compared with the photographs of the calibration that are at most at the
/// threshold, but for the one whose score the threshold is: given the threshold, that score is no draw. The others are
/// samples of one distribution, cut off there, if the images are good and nothing has drifted. So the test of Kolmogorov
/// and Smirnov applies, at a level that is divided by the number of classes (Bonferroni). Images with a known defect are
/// left out.
fn drift(thresholds: &Thresholds, rows: &Batch) -> Result<Option<Note>> {
    let classes = rows.column(ITSELF, CLASS)?.as_string::<i32>();
    let scores = rows.column(ITSELF, SCORE)?.as_primitive::<Float32Type>();
    let alarms = rows.column(ITSELF, ANOMALOUS)?.as_boolean();
    let labels = rows.port("images").and_then(|images| images.column_by_name(LABEL)?.as_boolean_opt());
    let mut judged: BTreeMap<&str, Vec<f32>> = BTreeMap::new();
    for row in 0..rows.len() {
        let is_defect = labels.is_some_and(|labels| labels.is_valid(row) && labels.value(row));
        if !is_defect && alarms.is_valid(row) && !alarms.value(row) {
            judged.entry(classes.value(row)).or_default().push(scores.value(row));
        }
    }
    // The classes that share a threshold are mixed in its calibration, so they are compared as a whole.
    let mut samples: BTreeMap<&str, (&Calibrated, Vec<f32>)> = BTreeMap::new();
    for (class, scores) in judged {
        if let Some(calibrated) = thresholds.of(class) {
            let is_own = thresholds.0.contains_key(&Some(class.to_owned()));
            let sample = samples.entry(if is_own { class } else { "all classes" });
            sample.or_insert((calibrated, Vec::new())).1.extend(scores);
        }
    }
    let level = SIGNIFICANCE / samples.len().max(1) as f64;
    let mut drifted = Vec::new();
    for (name, (calibrated, mut scores)) in samples {
        scores.sort_by(f32::total_cmp);
        let Some(threshold) = calibrated.threshold else { continue };
        let end = calibrated.scores.partition_point(|score| *score <= threshold);
        let is_score = end > 0 && calibrated.scores[end - 1] == threshold;
        let before = &calibrated.scores[..end - usize::from(is_score)];
        match kolmogorov_smirnov(before, &scores) {
            Some((distance, p)) if p < level => {
                let middle = |sorted: &[f32]| sorted[sorted.len() / 2];
                drifted.push(format!(
                    "{name} (median score {:.4}, in the calibration {:.4}; distance {distance:.2}, p = {p:.1e})",
                    middle(&scores),
                    middle(before)
                ));
            }
            _ => {}
        }
    }
    Ok((!drifted.is_empty()).then(|| {
        let what = "images that are not alarms score otherwise than the good photographs of the calibration, whose rate \
                    of false alarms may no longer hold";
        Note::about(what, drifted)
    }))
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, Float32Builder, ListBuilder};
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::tables::thresholds::score_item;

    /// Makes a table of thresholds from class, level, rate, threshold and scores.
    fn table(rows: &[(Option<&str>, &str, Option<f64>, Option<f32>, &[f32])]) -> RecordBatch {
        let mut scores = ListBuilder::new(Float32Builder::new()).with_field(score_item());
        rows.iter().for_each(|row| scores.append_value(row.4.iter().copied().map(Some)));
        let columns: [(&str, ArrayRef); 5] = [
            (CLASS, Arc::new(StringArray::from_iter(rows.iter().map(|row| row.0)))),
            (LEVEL, Arc::new(StringArray::from_iter_values(rows.iter().map(|row| row.1)))),
            (RATE, Arc::new(Float64Array::from_iter(rows.iter().map(|row| row.2)))),
            (THRESHOLD, Arc::new(Float32Array::from_iter(rows.iter().map(|row| row.3)))),
            (SCORES, Arc::new(scores.finish())),
        ];
        RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, column)| (name, column, true)))
            .unwrap()
    }

    #[test]
    fn threshold_of_the_class_is_taken_before_that_of_all() {
        let rows = [
            (Some("gear"), IMAGE, Some(0.05), Some(2.), &[1., 2.][..]),
            (Some("gear"), IMAGE, Some(0.5), Some(1.), &[1., 2.]),
            (Some("gear"), PIXEL, Some(0.01), Some(0.25), &[]),
            (None, IMAGE, Some(0.5), None, &[3.]),
        ];
        let thresholds = Thresholds::read(&table(&rows), 0.5).unwrap();
        let gear =
            Calibrated { rate: Some(0.5), threshold: Some(1.), scores: vec![1., 2.], pixel_threshold: Some(0.25) };
        assert_eq!(thresholds.of("gear"), Some(&gear));
        assert_eq!(thresholds.of("nut").unwrap().scores, [3.]);
        assert!(Thresholds::read(&table(&rows[..3]), 0.5).unwrap().of("nut").is_none());
        let told = Thresholds::read(&table(&rows), 0.1).unwrap_err().to_string();
        assert!(
            told.starts_with("`thresholds` has no threshold for the rate 0.1; it has 0.05, 0.5: set `rate`"),
            "{told}"
        );
        let by_costs = Thresholds::read(&table(&[(None, IMAGE, None, Some(7.), &[3.])]), 0.1).unwrap();
        assert_eq!(by_costs.of("nut").map(|of| (of.rate, of.threshold)), Some((None, Some(7.))));
    }

    /// Makes decisions on scores of the class `gear`, with labels.
    fn judged(scores: &[f32], threshold: f32, labels: Option<Vec<bool>>) -> Batch {
        let alarms: Vec<bool> = scores.iter().map(|score| *score > threshold).collect();
        let columns: [(&str, ArrayRef); 3] = [
            (CLASS, Arc::new(StringArray::from_iter_values(vec!["gear"; scores.len()]))),
            (SCORE, Arc::new(Float32Array::from(scores.to_vec()))),
            (ANOMALOUS, Arc::new(BooleanArray::from(alarms))),
        ];
        let ids = (0..scores.len()).map(|i| i.to_string()).collect();
        let mut ports = vec![(ITSELF.to_owned(), RecordBatch::try_from_iter(columns).unwrap())];
        let label = |labels| RecordBatch::try_from_iter([(LABEL, Arc::new(BooleanArray::from(labels)) as ArrayRef)]);
        ports.extend(labels.map(|labels| ("images".to_owned(), label(labels).unwrap())));
        Batch::new(ids, ports)
    }

    #[test]
    fn drift_is_noted_and_seldom_where_there_is_none() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut draw = |n: usize, shift: f32| -> Vec<f32> { (0..n).map(|_| shift + rng.random::<f32>()).collect() };
        let mut told = 0;
        for _ in 0..1000 {
            let mut calibration = draw(60, 0.);
            calibration.sort_by(f32::total_cmp);
            let threshold = conformal::threshold(&calibration, 0.1, 0.9).unwrap();
            let rows = [(Some("gear"), IMAGE, Some(0.1), Some(threshold), &calibration[..])];
            let thresholds = Thresholds::read(&table(&rows), 0.1).unwrap();
            told += usize::from(drift(&thresholds, &judged(&draw(40, 0.), threshold, None)).unwrap().is_some());
            let drifted = drift(&thresholds, &judged(&draw(200, 0.5), threshold, None)).unwrap().unwrap().to_string();
            assert!(drifted.contains("may no longer hold: 1: gear (median score 0."), "{drifted}");
            // Missed defects are no drift where they are known.
            let known = judged(&draw(200, 0.5), threshold, Some(vec![true; 200]));
            assert_eq!(drift(&thresholds, &known).unwrap(), None);
        }
        // At most 10 of 1000, but for four standard deviations.
        assert!(told <= 22, "{told}");
    }

    #[test]
    fn scores_that_equal_the_threshold_are_no_drift() {
        let scores = |zeros: usize, halves: usize| [vec![0.; zeros], vec![0.5; halves]].concat();
        let calibration = scores(74, 39);
        let rows = [(Some("gear"), IMAGE, Some(0.1), Some(0.5), &calibration[..])];
        let thresholds = Thresholds::read(&table(&rows), 0.1).unwrap();
        assert_eq!(drift(&thresholds, &judged(&scores(80, 40), 0.5, None)).unwrap(), None);
        assert!(drift(&thresholds, &judged(&scores(40, 80), 0.5, None)).unwrap().is_some());
    }
}
