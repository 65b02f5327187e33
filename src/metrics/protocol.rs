//! The rules by which three programs compute metrics: papers give one name to metrics of different rules.

use super::{Kind, PixelMetrics, Ranking, Score, pixel::Pixels};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The program whose rules the metrics follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// From the definitions: the score of each image is the stored one, its label that of the dataset, and AUPRO is
    /// taken over all thresholds that occur and integrated up to `aupro_limit`.
    Exact,
    /// The rules of the code of the paper (and of DiAD): the image's score is the largest value of its map after
    /// averaging over 8x8 windows eight times; an image is anomalous if its mask has any pixel; an AUROC below one half
    /// is reported as 1 minus it; PRO is taken at 200 thresholds between the lowest and the highest score, and its area
    /// up to the largest false positive rate below 0.3 that they hit, divided by that rate. Maps need at least 57
    /// pixels a side, or there are no image metrics.
    Reference,
    /// The rules of ADer's own functions with their defaults, without ADEval: the image's score is the largest average
    /// of 16x16 windows of its map; an image is anomalous if its mask has any pixel; the pixels' F1 is the largest of
    /// 21 thresholds; PRO is taken at 200 thresholds, and its area over the false positive rates below 0.3 that they
    /// hit, stretched to 0..1.
    Ader,
}

/// The false positive rate up to which PRO is integrated.
const FPR_LIMIT: f64 = 0.3;
/// The number of thresholds of PRO.
const STEPS: u32 = 200;
/// The number by which ADer keeps divisors from zero.
const EPSILON: f64 = 1e-8;

impl Protocol {
    /// Returns the name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Reference => "reference",
            Self::Ader => "ader",
        }
    }

    /// Returns the windows over which a map is averaged before its largest value is the image's score: `(side,
    /// repeats)`, stride 1, inside the map; None if the score is the stored one.
    pub fn windows(self) -> Option<(usize, usize)> {
        match self {
            Self::Exact => None,
            Self::Reference => Some((8, 8)),
            Self::Ader => Some((16, 1)),
        }
    }

    /// Returns true if an image with a mask is anomalous exactly if the mask has a pixel, whatever its label in the
    /// dataset.
    pub fn labels_by_mask(self) -> bool {
        self != Self::Exact
    }

    /// Returns true if a pixel is anomalous as soon as the mask's grey level is above 0 after resampling; else more
    /// than half of the pixel has to be.
    pub fn reads_grey_masks(self) -> bool {
        self == Self::Reference
    }

    /// Computes a metric of images; `None` if it is not defined.
    pub fn of_images(self, kind: Kind, images: &Ranking) -> Option<f64> {
        match (self, kind) {
            (Self::Reference, Kind::Auroc) => images.auroc().map(flipped),
            _ => kind.of(images),
        }
    }

    /// Computes a metric of pixels; `None` if it is not defined. `limit` is that of [`PixelMetrics::aupro`], for a
    /// protocol without one of its own.
    pub fn of_pixels(self, kind: Kind, pixels: &PixelMetrics<impl Score>, limit: f64) -> Option<f64> {
        match (self, kind) {
            (Self::Exact, Kind::Aupro) => pixels.aupro(limit),
            (Self::Reference, Kind::Auroc) => pixels.auroc().map(flipped),
            (Self::Reference, Kind::Aupro) => pixels.aupro_reference(),
            (Self::Ader, Kind::F1Max) => pixels.f1_max_ader(),
            (Self::Ader, Kind::Aupro) => pixels.aupro_ader(STEPS),
            (_, Kind::Auroc | Kind::AveragePrecision | Kind::F1Max) => kind.of(&pixels.ranking()),
        }
    }
}

/// Returns an AUROC as the authors report it.
fn flipped(auroc: f64) -> f64 {
    if auroc < 0.5 { 1. - auroc } else { auroc }
}

impl<S: Score> PixelMetrics<S> {
    /// Computes the authors' AUPRO (`compute_pro`), which depends on the places of 200 thresholds: no point is added at
    /// a false positive rate of 0 or 0.3. None if the exact one is not defined or every kept rate is 0. A curve of
    /// fewer than two points, such as that of constant maps, has the area 0.
    pub fn aupro_reference(&self) -> Option<f64> {
        let curve = self.pro_curve(STEPS)?;
        let largest = curve.iter().map(|(fpr, _)| *fpr).fold(0., f64::max);
        area(&curve, 0., largest)
    }

    /// Computes ADer's `cal_pro_score` with `max_step: steps`. None and 0 as in [`PixelMetrics::aupro_reference`].
    pub fn aupro_ader(&self, steps: u32) -> Option<f64> {
        let curve = self.pro_curve(steps)?;
        let fprs = || curve.iter().map(|(fpr, _)| *fpr);
        area(&curve, fprs().fold(1., f64::min), fprs().fold(0., f64::max))
    }

    /// Returns the false positive rate and per-region overlap of "score > threshold" for the thresholds
    /// `numpy.arange(min, max, (max - min) / steps)`, if the rate is below 0.3. Thresholds ascend, so rates descend.
    /// None if there are no regions or no normal pixels.
    pub fn pro_curve(&self, steps: u32) -> Option<Vec<(f64, f64)>> {
        let total = self.total()?;
        let (min, max) = self.range()?;
        let called = self.above(&arange::<S>(min, max, steps), |score| score);
        Some(called.iter().map(|called| self.rates(called, &total)).filter(|(fpr, _)| *fpr < FPR_LIMIT).collect())
    }

    /// Computes ADer's `mF1_max_px`: the largest F1 at the thresholds 0, 0.05, .. 1 of scores stretched to 0..1. None
    /// if there are no regions or no normal pixels.
    pub fn f1_max_ader(&self) -> Option<f64> {
        let total = self.total()?;
        let (min, max) = self.range()?;
        let stretched = |score| S::round(S::round(score - min) / S::round(max - min));
        let thresholds: Vec<f64> = (0..=20).map(|step| f64::from(step) * 0.05).collect();
        let f1 = |called: &Pixels| {
            let found = called.found.pixels as f64;
            let precision = found / ((called.found.pixels + called.normal) as f64 + EPSILON);
            let recall = found / (total.found.pixels as f64 + EPSILON);
            2. * precision * recall / (precision + recall + EPSILON)
        };
        Some(self.above(&thresholds, stretched).iter().map(f1).fold(0., f64::max))
    }

    /// Returns the lowest and the highest score.
    fn range(&self) -> Option<(f64, f64)> {
        let mut keys = self.descending().map(|bin| bin.key);
        let max = keys.next()?;
        Some((S::at(keys.last().unwrap_or(max)), S::at(max)))
    }

    /// Returns the pixels above each of ascending thresholds; scores are mapped by `of`, an increasing function.
    fn above(&self, thresholds: &[f64], of: impl Fn(f64) -> f64) -> Vec<Pixels> {
        let mut bins = self.descending().peekable();
        let mut sum = Pixels::default();
        let from_above = thresholds.iter().rev().map(|threshold| {
            while let Some(bin) = bins.next_if(|bin| of(S::at(bin.key)) > *threshold) {
                sum += bin;
            }
            sum
        });
        let mut called: Vec<Pixels> = from_above.collect();
        called.reverse();
        called
    }
}

/// Computes `numpy.arange(min, max, (max - min) / steps)` for scalars of a type. The first two values are computed in
/// that type, the others follow in f64 at the distance of these two. Rounding may give one value more than `steps`.
fn arange<S: Score>(min: f64, max: f64, steps: u32) -> Vec<f64> {
    let span = S::round(max - min);
    let step = S::round(span / f64::from(steps));
    let second = S::round(min + step);
    let count = S::round(span / step).ceil(); // NaN of a constant map: none
    let value = |i: u32| match i {
        0 => min,
        1 => second,
        _ => min + f64::from(i) * (second - min),
    };
    (0..count as u32).map(value).collect()
}

/// Returns the area of the trapezoids below a curve whose rates descend, after `from..to` is stretched to 0..1.
fn area(curve: &[(f64, f64)], from: f64, to: f64) -> Option<f64> {
    let trapezoids = curve.windows(2).map(|ends| (ends[0].0 - ends[1].0) * (ends[0].1 + ends[1].1) / 2.);
    match curve {
        [] | [_] => Some(0.),
        _ if from == to => None,
        _ => Some(trapezoids.sum::<f64>() / (to - from)),
    }
}
