//! Scores and maps of good photographs -> thresholds with a promised rate of false alarms.

use std::{collections::BTreeMap, sync::Arc};

use arrow::{
    array::{
        Array, AsArray, Float32Array, Float32Builder, Float64Array, Float64Builder, Int64Array, ListBuilder,
        StringArray,
    },
    datatypes::{DataType, Float16Type, Float32Type, SchemaRef},
};
use garde::Validate;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use vlmdiff_metrics::{
    MetricError,
    conformal::{self, Shares},
    costs::{self, Cost},
};

use crate::{
    engine::{
        Digest, Error, Hasher, Result,
        stage::{
            Batch, Column, Context, Misfit, Open, Operator, Output, Port, Ports, Rows, Schemas, Sink, Stage, Unit,
        },
    },
    tables::{
        anomaly_maps::{self, MAP, SCORE},
        column::missing,
        images::{self, CLASS, LABEL},
        tensor::tensor_row,
        thresholds::{self, IMAGE, PIXEL, cost_item, score_item},
    },
};

/// Computes thresholds of scores and of the pixels of maps from good photographs that no training saw, each with a
/// promised rate of false alarms.
///
/// A score above the threshold is an alarm. With the stated confidence, the share of future good photographs that are
/// alarms is at most the requested rate, whatever the distribution of scores, if they come from the same source as those
/// of the calibration. The share of pixels of a good photograph, or of its `roi`, above the threshold of pixels is at most `pixel_rate`
/// on average. Too few photographs for a rate give no threshold and a note with the rate that they allow. Photographs with
/// a label that says defect are left out, unless `costs` asks for them. `where:` chooses the photographs.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields)]
#[schemars(extend("examples" = [{ "rates": [0.01, 0.05] }]))]
pub struct Calibrate {
    /// The requested rates of false alarms: shares of good photographs above the threshold.
    #[garde(length(min = 1), inner(range(min = 1e-6, max = 0.9)))]
    #[serde(default = "default_rates")]
    pub rates: Vec<f64>,
    /// The probability that the calibration keeps a rate. With 0.9, one calibration of ten may exceed it.
    #[garde(range(min = 0.01, max = 0.9999))]
    #[serde(default = "default_confidence")]
    pub confidence: f64,
    /// The photographs that share a threshold.
    #[garde(skip)]
    #[serde(default)]
    pub scope: Scope,
    /// The requested share of the pixels of a good photograph above the threshold of pixels, on average. It needs
    /// 1 / rate - 1 photographs.
    #[garde(range(min = 1e-6, max = 0.9))]
    #[serde(default = "default_pixel_rate")]
    pub pixel_rate: f64,
    /// The costs of wrong verdicts, by which one threshold of scores is chosen in place of those of `rates`: that with
    /// the lowest expected cost on photographs with known defects. It promises no rate.
    #[garde(dive)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub costs: Option<Costs>,
}

fn default_rates() -> Vec<f64> {
    vec![0.01, 0.05, 0.1]
}

fn default_confidence() -> f64 {
    0.9
}

fn default_pixel_rate() -> f64 {
    0.01
}

/// The photographs that share a threshold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Those of a class. The rate is promised for each class.
    #[default]
    Class,
    /// All. The rate is promised for the classes as they are mixed in the calibration.
    All,
}

/// The costs of wrong verdicts, in any unit.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields)]
pub struct Costs {
    /// The cost of an alarm about a good photograph.
    #[garde(range(min = 0.))]
    pub false_alarm: f64,
    /// The cost of a defect without an alarm.
    #[garde(range(min = 0.))]
    pub miss: f64,
    /// The share of photographs with a defect that is expected in use. Absent: their share in the calibration.
    #[garde(inner(range(min = 0., max = 1.)))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prevalence: Option<f64>,
}

impl Stage for Calibrate {
    fn revision(&self) -> u32 {
        1
    }

    fn ports(&self) -> Ports {
        let label = Column::new(LABEL, DataType::Boolean);
        let label = if self.costs.is_some() { label } else { label.optional() };
        Ports::Named(vec![
            Port::rows("images", [Column::new(CLASS, DataType::Utf8), label, images::roi_column()]),
            Port::rows(
                "anomaly_maps",
                [Column::tensors(MAP, DataType::Float16, "[H, W]").optional(), Column::new(SCORE, DataType::Float32)],
            ),
        ])
    }

    fn makes(&self) -> Output {
        Output::Table
    }

    fn output(&self, _: &Schemas) -> Result<SchemaRef, Misfit> {
        Ok(thresholds::schema())
    }
}

impl Open for Calibrate {
    fn open(self, context: &Context) -> Result<Box<dyn Operator>> {
        let has_maps = context.schemas.field("anomaly_maps", MAP).is_ok();
        let width = if has_maps { Some(anomaly_maps::shape(&context.schemas)?[1]) } else { None };
        Ok(Box::new(Calibrator { stage: self, width }))
    }
}

struct Calibrator {
    stage: Calibrate,
    /// The width of the maps; `None` for a table of scores without maps.
    width: Option<usize>,
}

/// The photographs that share a threshold.
struct Group {
    good: Vec<f32>,
    defects: Vec<f32>,
    shares: Shares,
    /// The digest of the ids and scores of those that count.
    photographs: Hasher,
}

impl Default for Group {
    fn default() -> Self {
        let (good, defects) = (Vec::new(), Vec::new());
        Self { good, defects, shares: Shares::default(), photographs: Hasher::new("calibrated on") }
    }
}

/// A row of the table.
struct Row<'a> {
    class: Option<&'a str>,
    level: &'static str,
    rate: Option<f64>,
    confidence: Option<f64>,
    threshold: Option<f32>,
    photographs: usize,
    calibrated_on: Digest,
    least_rate: Option<f64>,
    scores: Option<&'a [f32]>,
    curve: Option<Vec<Cost>>,
}

impl Operator for Calibrator {
    fn run(&mut self, rows: &mut Rows, out: &mut Sink<'_>) -> Result<()> {
        let mut groups: BTreeMap<Option<String>, Group> = BTreeMap::new();
        let total = rows.len() as u64;
        let mut done = 0;
        while let Some(batch) = rows.next(64)? {
            self.add(&batch, &mut groups, out)?;
            done += batch.len() as u64;
            out.progress(done, total, Unit::Images);
        }
        if groups.is_empty() {
            out.warn("there are no photographs to calibrate by; `where:` chooses them");
        }
        for group in groups.values_mut() {
            group.good.sort_by(f32::total_cmp);
            group.defects.sort_by(f32::total_cmp);
        }
        let rows: Vec<Row<'_>> = groups.iter().flat_map(|(class, group)| self.rows(class.as_deref(), group)).collect();
        self.notes(&rows).iter().for_each(|note| out.warn(note));
        write(&rows, out)
    }
}

impl Calibrator {
    fn add(&self, batch: &Batch, groups: &mut BTreeMap<Option<String>, Group>, out: &mut Sink<'_>) -> Result<()> {
        let classes = batch.column("images", CLASS)?.as_string::<i32>();
        let labels = batch.rows("images")?.column_by_name(LABEL).map(|labels| labels.as_boolean());
        let scores = batch.column("anomaly_maps", SCORE)?.as_primitive::<Float32Type>();
        for (row, id) in batch.ids.iter().enumerate() {
            if classes.is_null(row) {
                return Err(missing(id, "images", CLASS));
            }
            let score = ordered_score(id, scores, row)?;
            let class = (self.stage.scope == Scope::Class).then(|| classes.value(row).to_owned());
            let group = groups.entry(class).or_default();
            match labels.filter(|labels| labels.is_valid(row)).map(|labels| labels.value(row)) {
                Some(true) if self.stage.costs.is_some() => {
                    group.add(id, score, true);
                    continue;
                }
                Some(true) => {
                    out.note("the photograph has a known defect and is left out of the calibration", id);
                    continue;
                }
                Some(false) => {}
                None => out.note("the photograph has no label and is taken to be good", id),
            }
            group.add(id, score, false);
            if let Some(width) = self.width {
                let maps = batch.column("anomaly_maps", MAP)?;
                let map = tensor_row::<Float16Type>(maps, row)?.ok_or_else(|| missing(id, "anomaly_maps", MAP))?;
                let roi = images::roi_of(batch, row)?;
                group.shares.add(map, roi.as_deref(), width).map_err(|e| Error::Input(format!("{id}: {e}")))?;
            }
        }
        Ok(())
    }

    fn rows<'a>(&self, class: Option<&'a str>, group: &'a Group) -> Vec<Row<'a>> {
        let Calibrate { rates, confidence, pixel_rate, costs, .. } = &self.stage;
        let n = group.good.len();
        let image = Row {
            class,
            level: IMAGE,
            rate: None,
            confidence: None,
            threshold: None,
            photographs: n,
            calibrated_on: group.photographs.finish(),
            least_rate: None,
            scores: Some(&group.good),
            curve: None,
        };
        let mut rows = Vec::new();
        match costs {
            Some(costs) => {
                let curve = costs::curve(&group.good, &group.defects, costs.for_group(group));
                let threshold = costs::cheapest(&curve).map(|best| best.threshold);
                rows.push(Row { threshold, curve: Some(curve), ..image });
            }
            None => rows.extend(rates.iter().map(|rate| Row {
                rate: Some(*rate),
                confidence: Some(*confidence),
                threshold: conformal::threshold(&group.good, *rate, *confidence),
                least_rate: (n > 0).then(|| conformal::least_rate(n, *confidence)),
                curve: None,
                ..image
            })),
        }
        if self.width.is_some() {
            rows.push(Row {
                class,
                level: PIXEL,
                rate: Some(*pixel_rate),
                confidence: None,
                threshold: group.shares.threshold(*pixel_rate),
                photographs: n,
                calibrated_on: image.calibrated_on,
                least_rate: (n > 0).then(|| conformal::least_pixel_rate(n)),
                scores: None,
                curve: None,
            });
        }
        rows
    }

    /// Returns a note for each rate for which some classes have too few photographs.
    fn notes(&self, rows: &[Row<'_>]) -> Vec<String> {
        let Calibrate { rates, confidence, pixel_rate, costs, .. } = &self.stage;
        let lacking = |level: &str, rate: Option<f64>| -> Vec<&Row<'_>> {
            let is_lacking = |row: &&Row<'_>| row.level == level && row.rate == rate && row.threshold.is_none();
            rows.iter().filter(is_lacking).collect()
        };
        let of_rate = |rate: &f64| {
            let needed = conformal::photographs_for(*rate, *confidence);
            let what = format!("a rate of {rate} with a confidence of {confidence} needs {needed} good photographs");
            too_few(&what, &lacking(IMAGE, Some(*rate)))
        };
        let pixels = || {
            let needed = conformal::photographs_for_pixels(*pixel_rate);
            let what = format!("`pixel_rate: {pixel_rate}` needs {needed} good photographs");
            too_few(&what, &lacking(PIXEL, Some(*pixel_rate)))
        };
        match costs {
            Some(_) => {
                too_few("`costs` needs good photographs and known defects", &lacking(IMAGE, None)).into_iter().collect()
            }
            None => rates.iter().filter_map(of_rate).collect::<Vec<_>>(),
        }
        .into_iter()
        .chain(pixels())
        .collect()
    }
}

impl Group {
    /// Adds a photograph. Photographs come in the order of their ids.
    fn add(&mut self, id: &str, score: f32, is_defect: bool) {
        let scores = if is_defect { &mut self.defects } else { &mut self.good };
        scores.push(score);
        self.photographs.field(id.as_bytes()).field(&score.to_le_bytes());
    }
}

/// Returns the score of an image, which has a place in the order of scores. Fails if there is none or if it is NaN.
pub(super) fn ordered_score(id: &str, scores: &Float32Array, row: usize) -> Result<f32> {
    if scores.is_null(row) {
        return Err(missing(id, "anomaly_maps", SCORE));
    }
    let score = scores.value(row);
    if score.is_nan() { Err(Error::Input(format!("{id}: {}", MetricError::NanScore))) } else { Ok(score) }
}

impl Costs {
    fn for_group(self, group: &Group) -> costs::Costs {
        let (good, defects) = (group.good.len() as f64, group.defects.len() as f64);
        let prevalence = self.prevalence.unwrap_or(defects / (good + defects).max(1.));
        costs::Costs { false_alarm: self.false_alarm, miss: self.miss, prevalence }
    }
}

/// The maximum number of classes that a note names.
const NAMED: usize = 4;

/// Returns the note on classes without a threshold, with the rate that their photographs allow.
fn too_few(what: &str, rows: &[&Row<'_>]) -> Option<String> {
    let named = rows.iter().take(NAMED).map(|row| {
        let class = row.class.unwrap_or("all classes");
        match row.least_rate {
            // Rounded up, so that it can be requested.
            Some(least) => {
                format!("{class} ({} allow a rate of {})", row.photographs, (least * 1e4 - 1e-6).ceil() / 1e4)
            }
            None => format!("{class} ({})", row.photographs),
        }
    });
    let named = named.collect::<Vec<_>>().join(", ");
    let more = match rows.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    (!rows.is_empty()).then(|| format!("{what}; there is no threshold for {named}{more}"))
}

fn write(rows: &[Row<'_>], out: &mut Sink<'_>) -> Result<()> {
    let mut scores = ListBuilder::new(Float32Builder::new()).with_field(score_item());
    let mut thresholds = ListBuilder::new(Float32Builder::new()).with_field(score_item());
    let mut costs = ListBuilder::new(Float64Builder::new()).with_field(cost_item());
    for row in rows {
        scores.append_option(row.scores.map(|scores| scores.iter().copied().map(Some)));
        let curve = row.curve.as_ref();
        thresholds.append_option(curve.map(|curve| curve.iter().map(|point| Some(point.threshold))));
        costs.append_option(curve.map(|curve| curve.iter().map(|point| Some(point.cost))));
    }
    out.write_columns(vec![
        Arc::new(StringArray::from_iter(rows.iter().map(|row| row.class))),
        Arc::new(StringArray::from_iter_values(rows.iter().map(|row| row.level))),
        Arc::new(Float64Array::from_iter(rows.iter().map(|row| row.rate))),
        Arc::new(Float64Array::from_iter(rows.iter().map(|row| row.confidence))),
        Arc::new(Float32Array::from_iter(rows.iter().map(|row| row.threshold))),
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.photographs as i64))),
        Arc::new(StringArray::from_iter_values(rows.iter().map(|row| row.calibrated_on.to_string()))),
        Arc::new(Float64Array::from_iter(rows.iter().map(|row| row.least_rate))),
        Arc::new(scores.finish()),
        Arc::new(thresholds.finish()),
        Arc::new(costs.finish()),
    ])
}

#[cfg(test)]
mod tests {
    use half::f16;
    use serde_json::json;

    use super::*;

    fn calibrator(params: serde_json::Value) -> Calibrator {
        Calibrator { stage: serde_json::from_value(params).unwrap(), width: Some(2) }
    }

    #[test]
    fn note_on_too_few_photographs_has_the_rate_that_they_allow() {
        let calibrator = calibrator(json!({ "rates": [0.05, 0.5], "pixel_rate": 0.1 }));
        let mut group = Group { good: (0..20).map(|i| i as f32).collect(), ..Group::default() };
        (0..20).for_each(|_| group.shares.add(&[f16::ZERO; 4], None, 2).unwrap());
        let few = Group { good: vec![1.], ..Group::default() };
        let rows: Vec<Row<'_>> = [("gear", &group), ("nut", &few)]
            .into_iter()
            .flat_map(|(class, group)| calibrator.rows(Some(class), group))
            .collect();
        let told = calibrator.notes(&rows);
        assert_eq!(
            told,
            [
                "a rate of 0.05 with a confidence of 0.9 needs 45 good photographs; there is no threshold for gear (20 \
                 allow a rate of 0.1088), nut (1 allow a rate of 0.9)",
                "a rate of 0.5 with a confidence of 0.9 needs 4 good photographs; there is no threshold for nut (1 allow a \
                 rate of 0.9)",
                "`pixel_rate: 0.1` needs 9 good photographs; there is no threshold for nut (1 allow a rate of 0.5)",
            ]
        );
        // P(Binomial(20, 1/2) >= 7) = 0.942 and P(>= 8) = 0.868, so the seventh highest is the threshold.
        let of_half: Vec<Option<f32>> =
            rows.iter().filter(|row| row.rate == Some(0.5)).map(|row| row.threshold).collect();
        assert_eq!(of_half, [Some(13.), None]);
    }

    #[test]
    fn costs_need_both_kinds_of_photographs() {
        let calibrator = calibrator(json!({ "costs": { "false_alarm": 1, "miss": 10 } }));
        let group = Group { good: vec![1., 2.], defects: vec![4.], ..Group::default() };
        let rows = calibrator.rows(None, &group);
        assert_eq!((rows[0].threshold, rows[0].rate, rows[0].photographs), (Some(3.), None, 2));
        let without = Group { good: vec![1., 2.], ..Group::default() };
        let rows = calibrator.rows(None, &without);
        assert_eq!(rows[0].threshold, None);
        assert!(calibrator.notes(&rows)[0].starts_with(
            "`costs` needs good photographs and known defects; there is no threshold for all classes (2)"
        ));
    }
}
