//! Metrics of anomaly maps, pixel by pixel and region by region.

use super::{Components, Level, MetricError, Ranking};
use half::f16;

/// Every value that an f16 can have, in order.
const BINS: usize = 1 << 16;

/// One region, in the unit that coverage is counted in. Whole numbers add up to the same sum in any order, so that a
/// state does not depend on how its images were divided; cutting `REGION / area` to a whole number errs by less than
/// `area / 2^64` of a region.
const REGION: u128 = 1 << 64;

/// A mergeable state of all pixels seen, from which exact metrics follow.
///
/// Maps are f16, so at most 65,536 scores differ, and a count per score loses nothing: 2 MiB however many pixels there
/// are, constant time per pixel. Equal pixels give equal states, in whatever order or parts they came.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PixelMetrics {
    /// By [`key`]; empty until the first pixel.
    bins: Vec<Bin>,
    regions: u64,
}

/// The pixels that share one score.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Bin {
    level: Level,
    /// Sum over the anomalous pixels of [`REGION`] / area of the pixel's region.
    covered: u128,
}

impl PixelMetrics {
    /// No pixels yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one image: its anomaly map and its mask (true is anomalous), row-major `[H, width]` both.
    ///
    /// An error, and no change, if their sizes differ, if they do not consist of whole rows, or if a pixel is NaN.
    pub fn update(&mut self, map: &[f16], mask: &[bool], width: usize) -> Result<(), MetricError> {
        if map.len() != mask.len() {
            return Err(MetricError::Sizes { map: map.len(), mask: mask.len() });
        }
        let regions = Components::label(mask, width)?;
        if let Some(i) = map.iter().position(|score| score.is_nan()) {
            return Err(MetricError::NanPixel { x: i % width, y: i / width });
        }
        if map.is_empty() {
            return Ok(());
        }
        self.bins.resize(BINS, Bin::default());
        self.regions += regions.areas.len() as u64;
        let shares: Vec<u128> = regions.areas.iter().map(|area| REGION / u128::from(*area)).collect();
        for (score, label) in map.iter().zip(&regions.labels) {
            let bin = &mut self.bins[key(*score)];
            match label.checked_sub(1) {
                None => bin.level.negatives += 1,
                Some(region) => {
                    bin.level.positives += 1;
                    bin.covered += shares[region];
                }
            }
        }
        Ok(())
    }

    /// Adds all that `other` has seen.
    pub fn merge(&mut self, other: &Self) {
        self.bins.resize(self.bins.len().max(other.bins.len()), Bin::default());
        self.regions += other.regions;
        for (bin, more) in self.bins.iter_mut().zip(&other.bins) {
            bin.level.positives += more.level.positives;
            bin.level.negatives += more.level.negatives;
            bin.covered += more.covered;
        }
    }

    /// Regions seen: 8-connected components of each image's mask.
    pub fn regions(&self) -> u64 {
        self.regions
    }

    /// The pixels as a ranking, from which several metrics can be read.
    pub fn ranking(&self) -> Ranking {
        self.descending().map(|bin| bin.level).collect()
    }

    /// [`Ranking::auroc`] of all pixels.
    pub fn auroc(&self) -> Option<f64> {
        self.ranking().auroc()
    }

    /// [`Ranking::average_precision`] of all pixels.
    pub fn average_precision(&self) -> Option<f64> {
        self.ranking().average_precision()
    }

    /// [`Ranking::f1_max`] of all pixels.
    pub fn f1_max(&self) -> Option<f64> {
        self.ranking().f1_max()
    }

    /// Area under the per-region overlap curve up to a false positive rate of `limit` (0.3 in the papers), divided by
    /// `limit`.
    ///
    /// At each threshold "score >= a score that occurs", PRO is the mean over all regions of all images of the fraction
    /// that is covered, and the false positive rate counts all normal pixels. The curve starts at (0, 0) and is linear
    /// between its points, so also up to `limit` (anomalib's `AUPRO`; after Bergmann et al. 2021, MVTec AD). None where
    /// there are no regions or no normal pixels, or where `limit` is not in (0, 1].
    pub fn aupro(&self, limit: f64) -> Option<f64> {
        let normal: u64 = self.bins.iter().map(|bin| bin.level.negatives).sum();
        if self.regions == 0 || normal == 0 || !(limit > 0.0 && limit <= 1.0) {
            return None;
        }
        let whole = REGION as f64 * self.regions as f64;
        let (mut negatives, mut covered) = (0u64, 0u128);
        let (mut area, mut fpr, mut pro) = (0.0, 0.0, 0.0);
        for bin in self.descending() {
            negatives += bin.level.negatives;
            covered += bin.covered;
            let (next_fpr, next_pro) = (negatives as f64 / normal as f64, covered as f64 / whole);
            if next_fpr >= limit {
                let pro_at_limit = pro + (next_pro - pro) * (limit - fpr) / (next_fpr - fpr);
                return Some((area + (limit - fpr) * (pro + pro_at_limit) / 2.0) / limit);
            }
            area += (next_fpr - fpr) * (pro + next_pro) / 2.0;
            (fpr, pro) = (next_fpr, next_pro);
        }
        None // not reached: the last false positive rate is 1
    }

    /// The scores that occur, highest first.
    fn descending(&self) -> impl Iterator<Item = &Bin> {
        self.bins.iter().rev().filter(|bin| **bin != Bin::default())
    }
}

/// The place of a score among all f16 scores, smallest first; -0 and 0 share one.
fn key(score: f16) -> usize {
    const SIGN: u16 = 0x8000;
    let key = match score.to_bits() {
        SIGN => SIGN,
        bits if bits & SIGN == 0 => bits | SIGN,
        bits => !bits,
    };
    usize::from(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::components::tests::flood_fill;
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
    fn keys_keep_the_order_of_all_f16() {
        let mut scores: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).filter(|score| !score.is_nan()).collect();
        scores.sort_by(|a, b| a.partial_cmp(b).unwrap());
        assert!(scores.windows(2).all(|pair| (pair[0] < pair[1]) == (key(pair[0]) < key(pair[1]))));
        assert_eq!(key(f16::NEG_ZERO), key(f16::ZERO));
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
    fn one_kind_alone_has_no_metrics() {
        for state in [PixelMetrics::new(), measured(&[0.1, 0.2], &[0, 0], 2), measured(&[0.1, 0.2], &[1, 1], 2)] {
            assert_eq!([state.auroc(), state.average_precision(), state.f1_max(), state.aupro(0.3)], [None; 4]);
        }
        let defined = measured(&[0.1, 0.2], &[0, 1], 2);
        assert_eq!([0.0, -0.3, 1.1, f64::NAN].map(|limit| defined.aupro(limit)), [None; 4]);
    }

    #[test]
    fn what_cannot_be_measured_changes_nothing() {
        let mut state = measured(&[0.1, 0.2], &[0, 1], 2);
        let before = state.clone();
        let map = maps(&[0.0, 0.0, 0.0, f32::NAN]);
        assert_eq!(state.update(&map, &[true; 4], 2), Err(MetricError::NanPixel { x: 1, y: 1 }));
        assert_eq!(state.update(&map, &[true; 3], 1), Err(MetricError::Sizes { map: 4, mask: 3 }));
        assert_eq!(state.update(&map, &[true; 4], 3), Err(MetricError::Width { pixels: 4, width: 3 }));
        assert_eq!(state, before);
    }

    #[test]
    fn nothing_is_allocated_before_the_first_pixel() {
        let mut state = PixelMetrics::new();
        state.update(&[], &[], 0).unwrap();
        state.merge(&PixelMetrics::new());
        assert_eq!(state.bins.capacity(), 0);
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

    /// The area from its definition: every threshold, every region of every image.
    fn aupro_by_thresholds(images: &[Image], limit: f64) -> Option<f64> {
        let regions: Vec<Vec<f16>> = images
            .iter()
            .flat_map(|(map, mask)| {
                let found = flood_fill(mask, WIDTH);
                (1..=found.areas.len())
                    .map(|n| map.iter().zip(&found.labels).filter(|(_, label)| **label == n).map(|(s, _)| *s).collect())
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
        // Each segment cut off at the limit, then trapezoids.
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

    /// Limits that points of the curve may hit, and any other.
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
            prop_assert_eq!(state(&images).ranking(), Ranking::from_scores(pixels).unwrap());
        }

        #[test]
        fn parts_merge_to_the_whole(images in images(), cut in 0..5usize) {
            let (left, right) = images.split_at(cut.min(images.len()));
            let mut merged = state(right);
            merged.merge(&state(left));
            prop_assert_eq!(merged, state(&images));
        }
    }
}
