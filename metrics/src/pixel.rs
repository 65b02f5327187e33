//! Metrics of anomaly maps, pixel by pixel and region by region.

use super::{
    Components, Level, MetricError, Ranking, Score, State,
    levels::{Levels, Record},
};
use half::f16;
use std::{marker::PhantomData, ops::AddAssign};

/// One region, in the unit of coverage. Whole numbers add up to the same sum in any order, so that a state does not
/// depend on the division of its images into parts. Cutting `REGION / area` to a whole number errs by less than `area /
/// 2^64` of a region.
pub(super) const REGION: u128 = 1 << 64;

/// A mergeable state of all pixels seen, from which exact metrics follow.
///
/// It counts pixels by score, without loss. For f16, the type of stored maps, at most 65,536 scores differ: the state
/// takes 40 KiB for each power of two between which scores lie, at most 2.5 MiB, for any number of pixels, and constant
/// time per pixel. For other types it grows with the number of different scores. Equal pixels give equal states, in any
/// order and any division into parts.
#[derive(Debug, Clone)]
pub struct PixelMetrics<S = f16> {
    normal: Levels<u64>,
    anomalous: Levels<Found>,
    regions: u64,
    scores: PhantomData<S>,
}

/// A number of anomalous pixels, and the coverage of their regions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) pixels: u64,
    /// The sum over the pixels of [`REGION`] / area of the pixel's region.
    pub(super) covered: u128,
}

impl AddAssign for Found {
    fn add_assign(&mut self, more: Self) {
        self.pixels += more.pixels;
        self.covered += more.covered;
    }
}

/// The pixels with one score, or with scores above a threshold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Pixels {
    pub(super) key: u64,
    pub(super) normal: u64,
    pub(super) found: Found,
}

/// The counts of normal and anomalous pixels by the keys of their scores, ascending.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Counted {
    pub(super) normal: Vec<(u64, u64)>,
    pub(super) anomalous: Vec<(u64, Found)>,
}

impl Components {
    /// Returns what a pixel of each region covers of it.
    pub(super) fn shares(&self) -> Vec<u128> {
        self.areas.iter().map(|area| REGION / u128::from(*area)).collect()
    }
}

/// The counts of one image's pixels by score, which any number of states can add.
#[derive(Debug, Clone)]
pub struct PixelCounts<S = f16> {
    pub(super) normal: Vec<(u64, u64)>,
    pub(super) anomalous: Vec<(u64, Found)>,
    pub(super) regions: u64,
    scores: PhantomData<S>,
}

impl<S: Score> PixelCounts<S> {
    /// Counts the pixels of a map, row-major `[H, width]`, by the regions of its mask.
    ///
    /// Fails if their sizes differ, or if a pixel is NaN.
    pub fn new(map: &[S], regions: &Components, width: usize) -> Result<Self, MetricError> {
        if map.len() != regions.pixels {
            return Err(MetricError::Sizes { map: map.len(), mask: regions.pixels });
        }
        let counted = S::count(map, regions).ok_or_else(|| {
            let i = map.iter().position(|score| score.is_nan()).unwrap_or_default();
            MetricError::NanPixel { x: i % width, y: i / width }
        })?;
        let regions = regions.areas.len() as u64;
        Ok(Self { normal: counted.normal, anomalous: counted.anomalous, regions, scores: PhantomData })
    }
}

impl<S: Score> Default for PixelMetrics<S> {
    fn default() -> Self {
        let (normal, anomalous) = (Levels::new::<S>(), Levels::new::<S>());
        Self { normal, anomalous, regions: 0, scores: PhantomData }
    }
}

impl<S: Score> PartialEq for PixelMetrics<S> {
    fn eq(&self, other: &Self) -> bool {
        self.regions == other.regions && self.descending().eq(other.descending())
    }
}

impl<S: Score> PixelMetrics<S> {
    /// Makes a state without pixels.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one image: its anomaly map and its mask (true is anomalous), row-major `[H, width]` both.
    ///
    /// Fails, and changes nothing, if their sizes differ, if they do not consist of whole rows, or if a pixel is NaN.
    pub fn update(&mut self, map: &[S], mask: &[bool], width: usize) -> Result<(), MetricError> {
        if map.len() != mask.len() {
            return Err(MetricError::Sizes { map: map.len(), mask: mask.len() });
        }
        self.add(&PixelCounts::new(map, &Components::label(mask, width)?, width)?);
        Ok(())
    }

    /// Adds the counts of one image.
    pub fn add(&mut self, image: &PixelCounts<S>) {
        self.regions += image.regions;
        add_all(&mut self.normal, &mut self.anomalous, (&image.normal, &image.anomalous));
    }

    /// Returns the number of regions seen: 8-connected components of each image's mask.
    pub fn regions(&self) -> u64 {
        self.regions
    }

    /// Returns the pixels as a ranking, which computes several metrics.
    pub fn ranking(&self) -> Ranking {
        self.descending().map(|bin| Level { positives: bin.found.pixels, negatives: bin.normal }).collect()
    }

    /// Returns [`Ranking::auroc`] of all pixels.
    pub fn auroc(&self) -> Option<f64> {
        self.ranking().auroc()
    }

    /// Returns [`Ranking::average_precision`] of all pixels.
    pub fn average_precision(&self) -> Option<f64> {
        self.ranking().average_precision()
    }

    /// Returns [`Ranking::f1_max`] of all pixels.
    pub fn f1_max(&self) -> Option<f64> {
        self.ranking().f1_max()
    }

    /// Returns the area under the per-region overlap curve up to a false positive rate of `limit` (0.3 in the papers),
    /// divided by `limit`.
    ///
    /// At each threshold "score >= a score that occurs", PRO is the mean over all regions of all images of the fraction
    /// that is covered, and the false positive rate counts all normal pixels. The curve starts at (0, 0) and is linear
    /// between its points, so also up to `limit` (anomalib's `AUPRO`; after Bergmann et al. 2021, MVTec AD). None if
    /// there are no regions or no normal pixels, or if `limit` is not in (0, 1].
    pub fn aupro(&self, limit: f64) -> Option<f64> {
        let total = self.total()?;
        let curve = self.descending().scan(Pixels::default(), |seen, bin| {
            *seen += bin;
            Some(self.rates(seen, &total))
        });
        overlap_area(curve, limit)
    }

    /// Returns the curves of ROC and PRO: false positive rate, recall of pixels and overlap of regions at every threshold,
    /// from 0 to 1. None if there are no regions or no normal pixels.
    pub fn curve(&self) -> Option<Vec<[f64; 3]>> {
        let total = self.total()?;
        let mut seen = Pixels::default();
        let mut points = vec![[0.; 3]];
        for bin in self.descending() {
            seen += bin;
            let (fpr, overlap) = self.rates(&seen, &total);
            points.push([fpr, seen.found.pixels as f64 / total.found.pixels as f64, overlap]);
        }
        Some(points)
    }

    /// Returns the F1 of "score > threshold", over all pixels. None if there are no regions or no normal pixels, as for
    /// the other metrics.
    pub fn f1(&self, threshold: f64) -> Option<f64> {
        let total = self.total()?;
        let mut called = Pixels::default();
        self.descending().take_while(|bin| S::at(bin.key) > threshold).for_each(|bin| called += bin);
        let predicted = called.normal + called.found.pixels;
        Some(2. * called.found.pixels as f64 / (predicted + total.found.pixels) as f64)
    }

    /// Returns the mean score of all pixels plus a number of their standard deviations; None without pixels.
    pub fn above_mean(&self, deviations: f64) -> Option<f64> {
        let scores = || self.descending().map(|bin| (S::at(bin.key), (bin.normal + bin.found.pixels) as f64));
        let pixels: f64 = scores().map(|(_, pixels)| pixels).sum();
        let mean = scores().map(|(score, pixels)| score * pixels).sum::<f64>() / pixels;
        let variance = scores().map(|(score, pixels)| (score - mean).powi(2) * pixels).sum::<f64>() / pixels;
        (pixels > 0.).then(|| mean + deviations * variance.sqrt())
    }

    /// Returns the sum of all pixels, if there are normal pixels and regions.
    pub(super) fn total(&self) -> Option<Pixels> {
        let mut total = Pixels::default();
        self.descending().for_each(|bin| total += bin);
        (total.normal > 0 && self.regions > 0).then_some(total)
    }

    /// Returns the false positive rate and the per-region overlap if the pixels `called` are predicted as anomalous.
    pub(super) fn rates(&self, called: &Pixels, total: &Pixels) -> (f64, f64) {
        let whole = REGION as f64 * self.regions as f64;
        (called.normal as f64 / total.normal as f64, called.found.covered as f64 / whole)
    }

    /// Returns the pixels of each score that occurs, highest score first.
    pub(super) fn descending(&self) -> impl Iterator<Item = Pixels> {
        let mut normal = self.normal.ascending().into_iter().rev().peekable();
        let mut found = self.anomalous.ascending().into_iter().rev().peekable();
        std::iter::from_fn(move || {
            let key = normal.peek().map(|(key, _)| *key).max(found.peek().map(|(key, _)| *key))?;
            let normal = normal.next_if(|(other, _)| *other == key).unwrap_or_default().1;
            let found = found.next_if(|(other, _)| *other == key).unwrap_or_default().1;
            Some(Pixels { key, normal, found })
        })
    }
}

/// Adds the counts of an image, whatever the type of their scores. A function without type parameters is compiled with the
/// optimisation of this crate, and not with that of the crate that calls it.
fn add_all(normal: &mut Levels<u64>, anomalous: &mut Levels<Found>, image: (&[(u64, u64)], &[(u64, Found)])) {
    normal.add(image.0.iter().copied());
    anomalous.add(image.1.iter().copied());
}

/// Returns the area of trapezoids below a curve of false positive rates, ascending up to 1, and overlaps, from (0, 0) up
/// to a rate of `limit`, divided by it. None if the limit is not in (0, 1].
pub(super) fn overlap_area(curve: impl Iterator<Item = (f64, f64)>, limit: f64) -> Option<f64> {
    if !(limit > 0.0 && limit <= 1.0) {
        return None;
    }
    let (mut area, mut fpr, mut pro) = (0.0, 0.0, 0.0);
    for (next_fpr, next_pro) in curve {
        if next_fpr >= limit {
            let pro_at_limit = pro + (next_pro - pro) * (limit - fpr) / (next_fpr - fpr);
            return Some((area + (limit - fpr) * (pro + pro_at_limit) / 2.0) / limit);
        }
        area += (next_fpr - fpr) * (pro + next_pro) / 2.0;
        (fpr, pro) = (next_fpr, next_pro);
    }
    None // not reached: the last false positive rate is 1
}

impl<S: Score> State for PixelMetrics<S> {
    fn merge(&mut self, other: &Self) {
        self.regions += other.regions;
        self.normal.add(other.normal.ascending().into_iter());
        self.anomalous.add(other.anomalous.ascending().into_iter());
    }

    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = self.regions.to_le_bytes().to_vec();
        self.normal.write(&mut bytes);
        self.anomalous.write(&mut bytes);
        bytes
    }

    fn merge_bytes(&mut self, bytes: &[u8]) -> Result<(), MetricError> {
        let mut rest = bytes;
        let mut read = || {
            let regions = u64::read(&mut rest)?;
            let (normal, found) = (Levels::read::<S>(&mut rest)?, Levels::read::<S>(&mut rest)?);
            rest.is_empty().then_some(Self { normal, anomalous: found, regions, scores: PhantomData })
        };
        self.merge(&read().ok_or(MetricError::State)?);
        Ok(())
    }

    fn size(&self) -> usize {
        size_of::<Self>() + self.normal.size() + self.anomalous.size()
    }
}

impl AddAssign for Pixels {
    fn add_assign(&mut self, more: Self) {
        self.normal += more.normal;
        self.found += more.found;
    }
}

impl Record for Found {
    fn write(&self, out: &mut Vec<u8>) {
        self.pixels.write(out);
        out.extend(self.covered.to_le_bytes());
    }

    fn read(from: &mut &[u8]) -> Option<Self> {
        let pixels = u64::read(from)?;
        let (covered, rest) = from.split_first_chunk()?;
        *from = rest;
        Some(Self { pixels, covered: u128::from_le_bytes(*covered) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ImageMetrics, components::tests::flood_fill};
    use proptest::prelude::*;

    fn maps(values: &[f32]) -> Vec<f16> {
        values.iter().map(|value| f16::from_f32(*value)).collect()
    }

    fn measured(map: &[f32], mask: &[u8], width: usize) -> PixelMetrics {
        let mask: Vec<bool> = mask.iter().map(|pixel| *pixel == 1).collect();
        let mut state = PixelMetrics::new();
        state.update(&maps(map), &mask, width).unwrap();
        state
    }

    #[test]
    fn small_regions_count_as_much_as_large_ones() {
        // Three pixels found at FPR 0, the lone one only at FPR 1/2: PRO is 1/2 up to there, then 1.
        let state = measured(&[0.9, 0.9, 0.9, 0.5, 0.1, 0.2], &[1, 1, 1, 0, 0, 1], 6);
        assert_eq!(state.regions(), 2);
        assert_eq!(state.auroc(), Some(7.0 / 8.0));
        assert!((state.aupro(1.0).unwrap() - 0.75).abs() < 1e-12);
        assert!((state.aupro(0.3).unwrap() - 0.5).abs() < 1e-12);
    }

    #[test]
    fn a_constant_map_follows_the_diagonal() {
        // The only threshold leads from (0, 0) to (1, 1).
        let state = measured(&[0.5; 4], &[1, 0, 0, 0], 2);
        assert!((state.aupro(1.0).unwrap() - 0.5).abs() < 1e-12);
        assert!((state.aupro(0.3).unwrap() - 0.15).abs() < 1e-12);
        assert_eq!(state.auroc(), Some(0.5));
    }

    #[test]
    fn curve_has_a_point_per_score() {
        let state = measured(&[0.9, 0.9, 0.9, 0.5, 0.1, 0.2], &[1, 1, 1, 0, 0, 1], 6);
        let points = state.curve().unwrap();
        // 0.9 finds three of four pixels and one of two regions, 0.5 a normal pixel, 0.2 the rest, 0.1 the other normal one.
        let expected = [[0., 0., 0.], [0., 0.75, 0.5], [0.5, 0.75, 0.5], [0.5, 1., 1.], [1., 1., 1.]];
        for (point, expected) in points.iter().flatten().zip(expected.iter().flatten()) {
            assert!((point - expected).abs() < 1e-12, "{points:?}");
        }
        assert_eq!((points.len(), measured(&[0.1, 0.2], &[0, 0], 2).curve()), (5, None));
    }

    #[test]
    fn f1_counts_the_pixels_above_the_threshold() {
        let state = measured(&[0.9, 0.9, 0.9, 0.5, 0.1, 0.2], &[1, 1, 1, 0, 0, 1], 6);
        // Above 0.3 are three of four anomalous pixels and one normal one: 2 · 3 / (4 + 4). At 0.9 nothing is above.
        assert_eq!([0.3, 0.9, -1.].map(|threshold| state.f1(threshold)), [Some(0.75), Some(0.), Some(0.8)]);
        assert_eq!(measured(&[0.1, 0.2], &[0, 0], 2).f1(0.), None);
    }

    #[test]
    fn threshold_above_the_mean_counts_all_pixels() {
        // 1, 2, 3 and 6 have the mean 3 and the variance (4 + 1 + 0 + 9) / 4.
        let state = measured(&[1., 2., 3., 6.], &[0, 1, 0, 0], 2);
        assert!((state.above_mean(2.).unwrap() - (3. + 2. * 3.5f64.sqrt())).abs() < 1e-12);
        assert_eq!(PixelMetrics::<f16>::new().above_mean(3.), None);
    }

    #[test]
    fn metrics_of_only_normal_or_only_anomalous_pixels_are_none() {
        for state in [PixelMetrics::<f16>::new(), measured(&[0.1, 0.2], &[0, 0], 2), measured(&[0.1, 0.2], &[1, 1], 2)]
        {
            assert_eq!([state.auroc(), state.average_precision(), state.f1_max(), state.aupro(0.3)], [None; 4]);
        }
        let defined = measured(&[0.1, 0.2], &[0, 1], 2);
        assert_eq!([0.0, -0.3, 1.1, f64::NAN].map(|limit| defined.aupro(limit)), [None; 4]);
    }

    #[test]
    fn an_image_that_cannot_be_measured_changes_nothing() {
        let mut state = measured(&[0.1, 0.2], &[0, 1], 2);
        let before = state.clone();
        let map = maps(&[0.0, 0.0, 0.0, f32::NAN]);
        assert_eq!(state.update(&map, &[true; 4], 2), Err(MetricError::NanPixel { x: 1, y: 1 }));
        assert_eq!(state.update(&map, &[true; 3], 1), Err(MetricError::Sizes { map: 4, mask: 3 }));
        assert_eq!(state.update(&map, &[true; 4], 3), Err(MetricError::Width { pixels: 4, width: 3 }));
        let whole = before.to_bytes();
        assert_eq!(state.merge_bytes(&whole[..whole.len() - 1]), Err(MetricError::State));
        assert_eq!(state, before);
    }

    #[test]
    fn nothing_is_allocated_before_the_first_pixel() {
        let mut state = PixelMetrics::<f16>::new();
        state.update(&[], &[], 0).unwrap();
        state.merge(&PixelMetrics::new());
        assert_eq!(state.size(), size_of_val(&state));
    }

    type Image = (Vec<f16>, Vec<bool>);
    const WIDTH: usize = 5;

    fn images() -> impl Strategy<Value = Vec<Image>> {
        let coarse = (-4..5i32).prop_map(|s| f16::from_f32(s as f32 / 4.0));
        let odd =
            prop::sample::select(vec![f16::INFINITY, f16::NEG_INFINITY, f16::NEG_ZERO, f16::MIN_POSITIVE_SUBNORMAL]);
        let fine = (-1.0..1.0f32).prop_map(f16::from_f32);
        let pixel = (prop_oneof![4 => coarse, 1 => odd, 4 => fine], prop::bool::weighted(0.4));
        let image = (0..5usize).prop_flat_map(move |rows| prop::collection::vec(pixel.clone(), rows * WIDTH));
        prop::collection::vec(image.prop_map(|pixels| pixels.into_iter().unzip()), 0..5)
    }

    fn state(images: &[Image]) -> PixelMetrics {
        let mut state = PixelMetrics::new();
        for (map, mask) in images {
            state.update(map, mask, WIDTH).unwrap();
        }
        state
    }

    /// Computes the area from its definition: every threshold, every region of every image.
    fn aupro_by_thresholds(images: &[Image], limit: f64) -> Option<f64> {
        let regions: Vec<Vec<f16>> = images
            .iter()
            .flat_map(|(map, mask)| {
                let (labels, areas) = flood_fill(mask, WIDTH);
                (1..=areas.len() as u32)
                    .map(|n| map.iter().zip(&labels).filter(|(_, label)| **label == n).map(|(s, _)| *s).collect())
                    .collect::<Vec<_>>()
            })
            .collect();
        let normal: Vec<f16> =
            images.iter().flat_map(|(map, mask)| map.iter().zip(mask)).filter(|(_, m)| !**m).map(|(s, _)| *s).collect();
        if regions.is_empty() || normal.is_empty() {
            return None;
        }
        let fraction = |of: &[f16], at: f16| of.iter().filter(|s| **s >= at).count() as f64 / of.len() as f64;
        let mut thresholds: Vec<f16> = images.iter().flat_map(|(map, _)| map).copied().collect();
        thresholds.sort_by(|a, b| b.partial_cmp(a).unwrap());
        let mut curve = vec![(0.0, 0.0)];
        curve.extend(thresholds.into_iter().map(|at| {
            let pro = regions.iter().map(|region| fraction(region, at)).sum::<f64>() / regions.len() as f64;
            (fraction(&normal, at), pro)
        }));
        // Each segment is cut off at the limit; the areas are trapezoids.
        let area: f64 = curve
            .windows(2)
            .filter(|ends| ends[0].0 < limit && ends[1].0 > ends[0].0)
            .map(|ends| {
                let ((x0, y0), (x1, y1)) = (ends[0], ends[1]);
                let x = x1.min(limit);
                let y = y0 + (y1 - y0) * (x - x0) / (x1 - x0);
                (x - x0) * (y0 + y) / 2.0
            })
            .sum();
        Some(area / limit)
    }

    fn close(a: Option<f64>, b: Option<f64>) -> bool {
        match (a, b) {
            (Some(a), Some(b)) => (a - b).abs() < 1e-12,
            (a, b) => a == b,
        }
    }

    /// Returns limits that points of the curve may hit, and any other.
    fn limits() -> impl Strategy<Value = f64> {
        prop_oneof![Just(0.25), Just(0.5), Just(1.0), 0.001..1.0f64]
    }

    proptest! {
        #[test]
        fn the_area_equals_its_definition(images in images(), limit in limits()) {
            let (got, want) = (state(&images).aupro(limit), aupro_by_thresholds(&images, limit));
            prop_assert!(close(got, want), "{:?} {:?}", got, want);
        }

        #[test]
        fn pixels_rank_as_a_list_of_scores(images in images()) {
            let pixels = images.iter().flat_map(|(map, mask)| map.iter().map(|s| s.to_f64()).zip(mask.iter().copied()));
            let mut scores = ImageMetrics::new();
            pixels.for_each(|(score, anomalous)| scores.update(score, anomalous).unwrap());
            prop_assert_eq!(state(&images).ranking(), scores.ranking());
        }

        #[test]
        fn parts_merge_to_the_whole(images in images(), cut in 0..5usize) {
            let (left, right) = images.split_at(cut.min(images.len()));
            let mut merged = state(right);
            merged.merge(&state(left));
            prop_assert_eq!(&merged, &state(&images));
            let mut read = state(right);
            read.merge_bytes(&state(left).to_bytes()).unwrap();
            prop_assert_eq!(read, merged);
        }

        #[test]
        fn the_type_of_scores_changes_nothing(images in images(), limit in limits()) {
            let halves = state(&images);
            let (mut singles, mut doubles) = (PixelMetrics::<f32>::new(), PixelMetrics::<f64>::new());
            for (map, mask) in &images {
                singles.update(&map.iter().map(|s| s.to_f32()).collect::<Vec<_>>(), mask, WIDTH).unwrap();
                doubles.update(&map.iter().map(|s| s.to_f64()).collect::<Vec<_>>(), mask, WIDTH).unwrap();
            }
            prop_assert_eq!(halves.ranking(), singles.ranking());
            prop_assert_eq!(halves.ranking(), doubles.ranking());
            prop_assert_eq!(halves.aupro(limit), doubles.aupro(limit));
            prop_assert_eq!(halves.aupro_reference(), doubles.aupro_reference());
        }
    }
}
