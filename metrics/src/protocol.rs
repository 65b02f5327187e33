//! The rules by which programs compute metrics: papers give one name to metrics of different rules.

use super::{
    FPR_LIMIT, ImageMetrics, Judged, Kind, PixelMetrics, RegionScores, Score, adeval, anomalib, pixel::Pixels,
};
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
    /// The rules of the evaluation scripts that MVTec publishes beside MVTec AD: the image's score is the largest value of
    /// its map; an image is anomalous if its mask has any pixel; PRO is taken at all scores that occur and integrated up to
    /// 0.3. There are an AUROC of images and AUPRO.
    Mvtec,
    /// The rules of MVTec AD 2: AUPRO up to 0.05, and the F1 of pixels above a threshold that needs no defect: the mean plus
    /// three standard deviations of the pixels of the class's images in the split `calibration`, which count in no metric.
    #[serde(rename = "mvtec_ad_2")]
    MvtecAd2,
    /// The rules of anomalib 1 (1.2), with which older papers measured: AP is the area of trapezoids below the
    /// precision-recall curve, which is too high where few scores differ; AUPRO averages curves of regions that were sampled
    /// at different false positive rates. A mask that covers a whole image is a region, which it is not there.
    #[serde(rename = "anomalib_1")]
    Anomalib1,
    /// The rules of anomalib 2 (2.7): the definitions, and AUPRO up to 0.3. Its versions before 2.7 have the AP of
    /// anomalib 1.
    #[serde(rename = "anomalib_2")]
    Anomalib2,
    /// The rules of ADEval with its default of 1,000 strips: scores are counted in strips of equal width between the lowest
    /// and the highest one, AUROC and AP are areas of trapezoids between their edges, and AUPRO is integrated up to 0.3 from the
    /// first point, not from 0. There is no F1. (ADer's benchmark asks for 50 strips.)
    Adeval,
}

/// Inputs of pixel metrics beside the counts of pixels: limits, a threshold and the scores of regions.
#[derive(Debug)]
pub struct Given<'a, S> {
    /// The limit of [`PixelMetrics::aupro`], for a protocol without one of its own.
    pub limit: f64,
    /// The threshold of [`PixelMetrics::f1`]; without it there is none.
    pub threshold: Option<f64>,
    /// The scores of regions, without which there is no AUPRO of anomalib 1.
    pub regions: Option<&'a RegionScores<S>>,
}

impl<S> Given<'_, S> {
    /// Gives a limit alone.
    pub fn limit(limit: f64) -> Self {
        Self { limit, threshold: None, regions: None }
    }
}

/// The false positive rate up to which MVTec AD 2 integrates PRO.
const FPR_LIMIT_AD_2: f64 = 0.05;
/// The number of thresholds of PRO.
const STEPS: u32 = 200;
/// The number by which ADer keeps divisors from zero.
const EPSILON: f64 = 1e-8;

impl Protocol {
    /// Every protocol.
    pub const ALL: [Self; 8] = [
        Self::Exact,
        Self::Reference,
        Self::Ader,
        Self::Mvtec,
        Self::MvtecAd2,
        Self::Anomalib1,
        Self::Anomalib2,
        Self::Adeval,
    ];

    /// Returns the name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Reference => "reference",
            Self::Ader => "ader",
            Self::Mvtec => "mvtec",
            Self::MvtecAd2 => "mvtec_ad_2",
            Self::Anomalib1 => "anomalib_1",
            Self::Anomalib2 => "anomalib_2",
            Self::Adeval => "adeval",
        }
    }

    /// Returns the protocol of a name.
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|protocol| protocol.name() == name)
    }

    /// Returns the windows over which a map is averaged before its largest value is the image's score: `(side,
    /// repeats)`, stride 1, inside the map; None if the score is the stored one.
    pub fn windows(self) -> Option<(usize, usize)> {
        match self {
            Self::Reference => Some((8, 8)),
            Self::Ader => Some((16, 1)),
            Self::Mvtec => Some((1, 1)),
            Self::Exact | Self::MvtecAd2 | Self::Anomalib1 | Self::Anomalib2 | Self::Adeval => None,
        }
    }

    /// Returns true if an image with a mask is anomalous exactly if the mask has a pixel, whatever its label in the
    /// dataset.
    pub fn labels_by_mask(self) -> bool {
        matches!(self, Self::Reference | Self::Ader | Self::Mvtec)
    }

    /// Returns true if a pixel is anomalous as soon as the mask's grey level is above 0 after resampling; else more
    /// than half of the pixel has to be.
    pub fn reads_grey_masks(self) -> bool {
        self == Self::Reference
    }

    /// Returns true if the program computes a metric.
    pub fn has(self, judged: Judged, kind: Kind) -> bool {
        match (self, judged, kind) {
            (Self::MvtecAd2, Judged::Pixels, _) => matches!(kind, Kind::Aupro | Kind::F1),
            (Self::Exact, Judged::Pixels, Kind::F1) => true,
            (Self::MvtecAd2, Judged::Images, _) | (_, _, Kind::F1) => false,
            (Self::Mvtec, Judged::Images, _) => kind == Kind::Auroc,
            (Self::Mvtec, Judged::Pixels, _) => kind == Kind::Aupro,
            (Self::Adeval, _, Kind::F1Max) => false,
            _ => true,
        }
    }

    /// Computes a metric of images; `None` if it is not defined.
    pub fn of_images(self, kind: Kind, images: &ImageMetrics) -> Option<f64> {
        if !self.has(Judged::Images, kind) {
            return None;
        }
        match (self, kind) {
            (Self::Reference, Kind::Auroc) => images.ranking().auroc().map(flipped),
            (Self::Anomalib1, Kind::AveragePrecision) => anomalib::average_precision(&images.ranking()),
            (Self::Adeval, _) => adeval::of_images(kind, images),
            _ => kind.of(&images.ranking()),
        }
    }

    /// Computes a metric of pixels; `None` if it is not defined.
    pub fn of_pixels<S: Score>(self, kind: Kind, pixels: &PixelMetrics<S>, given: &Given<'_, S>) -> Option<f64> {
        if !self.has(Judged::Pixels, kind) {
            return None;
        }
        match (self, kind) {
            (Self::Reference, Kind::Auroc) => pixels.auroc().map(flipped),
            (Self::Reference, Kind::Aupro) => pixels.aupro_reference(),
            (Self::Ader, Kind::F1Max) => pixels.f1_max_ader(),
            (Self::Ader, Kind::Aupro) => pixels.aupro_ader(STEPS),
            (Self::Anomalib1, Kind::AveragePrecision) => anomalib::average_precision(&pixels.ranking()),
            (Self::Anomalib1, Kind::Aupro) => given.regions?.aupro(pixels),
            (Self::Adeval, _) => adeval::of_pixels(kind, pixels),
            (_, Kind::Aupro) => pixels.aupro(self.limit(given.limit)),
            (_, Kind::F1) => pixels.f1(given.threshold?),
            (_, Kind::Auroc | Kind::AveragePrecision | Kind::F1Max) => kind.of(&pixels.ranking()),
        }
    }

    /// Returns the false positive rate up to which AUPRO is integrated; `given` is that of `exact`.
    pub fn limit(self, given: f64) -> f64 {
        match self {
            Self::Exact => given,
            Self::MvtecAd2 => FPR_LIMIT_AD_2,
            _ => FPR_LIMIT,
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use half::f16;
    use serde::Deserialize;

    use super::*;
    use crate::{Components, METRICS};

    /// Maps and what the programs compute of them, made by `setup/golden_protocols.py`.
    const GOLDEN: &str = include_str!("../../data/golden/protocols/expected.json");
    /// The tolerance of anomalib, MVTec's scripts and ADEval's coverage, which compute in f32: sums of up to 2,880 terms up to
    /// 1, whose roundings are independent, √2880 · 2⁻²⁴ = 3.2e-6.
    const TOLERANCE: f64 = 3.2e-6;

    #[derive(Deserialize)]
    struct Case {
        width: usize,
        /// Values of pixels in 1024ths.
        maps: Vec<Vec<u16>>,
        masks: Vec<String>,
        expected: BTreeMap<String, BTreeMap<String, f64>>,
    }

    #[test]
    fn metrics_are_those_of_the_programs() {
        let cases: BTreeMap<String, Case> = serde_json::from_str(GOLDEN).unwrap();
        let mut compared = 0;
        for (name, case) in &cases {
            let (mut images, mut pixels) = (ImageMetrics::new(), PixelMetrics::<f16>::new());
            let mut regions = RegionScores::default();
            for (map, mask) in case.maps.iter().zip(&case.masks) {
                let map: Vec<f16> = map.iter().map(|value| f16::from_f64(f64::from(*value) / 1024.)).collect();
                let mask: Vec<bool> = mask.bytes().map(|pixel| pixel == b'1').collect();
                let components = Components::label(&mask, case.width).unwrap();
                pixels.update(&map, &mask, case.width).unwrap();
                regions.merge(&RegionScores::new(&map, &components));
                // All programs are given the largest value of a map as the score of its image.
                let score = map.iter().map(|value| f64::from(*value)).fold(0., f64::max);
                images.update(score, mask.contains(&true)).unwrap();
            }
            for (program, expected) in &case.expected {
                let protocol = Protocol::of_name(program).unwrap();
                let given =
                    Given { limit: 0.3, threshold: expected.get("threshold").copied(), regions: Some(&regions) };
                for metric in METRICS {
                    let got = match metric.judged {
                        Judged::Images => protocol.of_images(metric.kind, &images),
                        Judged::Pixels => protocol.of_pixels(metric.kind, &pixels, &given),
                    };
                    match expected.get(metric.column) {
                        Some(expected) => {
                            let got = got.unwrap_or(0.); // F1 without a defect, which is 0 of 0 there
                            assert!(
                                (got - expected).abs() < TOLERANCE,
                                "{name} {program} {}: {got} {expected}",
                                metric.column
                            );
                            compared += 1;
                        }
                        // MVTec AD 2 takes its AUPRO from the scripts of MVTec AD, with another limit.
                        None if protocol == Protocol::MvtecAd2 && metric.kind == Kind::Aupro => {
                            let of_scripts = case.expected.get("mvtec").map(|expected| expected["aupro_0.05"]);
                            assert!(
                                (got.unwrap_or(0.) - of_scripts.unwrap_or(0.)).abs() < TOLERANCE,
                                "{name}: {got:?}"
                            );
                        }
                        None => assert_eq!(got, None, "{name} {program} {metric:?}"),
                    }
                }
            }
        }
        // Programs disagree about metrics of images where a case has no defect or no normal image: two of the seven.
        assert_eq!(compared, 6 * (4 + 4 + 3 + 1) + 5 * (3 + 3 + 2 + 1) + 7);
    }

    #[test]
    fn a_protocol_is_found_by_its_name() {
        for protocol in Protocol::ALL {
            assert_eq!(Protocol::of_name(protocol.name()), Some(protocol));
            assert_eq!(serde_json::to_value(protocol).unwrap(), protocol.name());
        }
        assert_eq!(Protocol::of_name("paper"), None);
    }
}
