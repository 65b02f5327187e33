//! Intervals of metrics by the bootstrap over images: by how much a metric would differ on other images of the same
//! source.
//!
//! In each resample every image counts Poisson(1) times (Hanley and MacGibbon 2006, "Creating non-parametric bootstrap
//! samples using Poisson frequencies"), by a number that the seed and the id of the image decide alone. Resamples therefore
//! do not depend on the order of the images or on who computes them, and are made in one pass.
//!
//! Metrics of images are exact in each resample. Those of pixels are computed at up to [`MOST_LEVELS`] levels of scores,
//! into which all scores are rounded; an interval is the spread around the value *of these levels*, moved to the metric.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    sync::LazyLock,
};

use super::{Kind, Level, PixelCounts, Ranking, pixel::REGION, pixel::overlap_area};

/// The largest number of levels: of 16-bit scores, those that share their leading bits.
pub const MOST_LEVELS: usize = 128;
/// The unit of coverage: whole numbers below 2^53 add up to the same sum of f64 in any order.
const COVERED: f64 = (1u64 << 32) as f64;
/// The metrics that a ranking has.
pub const RANKED: [Kind; 3] = [Kind::Auroc, Kind::AveragePrecision, Kind::F1Max];
/// The share of resamples below the interval, and above it.
const TAIL: f64 = 0.025;

/// The number of resamples for which weights of images are in memory at once.
const BLOCK: usize = 64;

/// The number of times that an image counts in each resample.
#[derive(Clone, Copy, Debug)]
pub struct Weights {
    key: [u8; 8],
}

impl Weights {
    /// Makes the weights of an image from the seed and its id alone.
    pub fn new(seed: u64, id: &str) -> Self {
        let mut key = [0; 8];
        blake3::Hasher::new().update(&seed.to_le_bytes()).update(id.as_bytes()).finalize_xof().fill(&mut key);
        Self { key }
    }

    /// Draws the weights in some resamples.
    pub fn of(self, resamples: Range<usize>) -> Vec<u8> {
        let mut draws = vec![0; resamples.len() * 4];
        let mut stream = blake3::Hasher::new().update(&self.key).finalize_xof();
        stream.set_position(resamples.start as u64 * 4);
        stream.fill(&mut draws);
        let ends = *ENDS;
        draws.as_chunks::<4>().0.iter().map(|draw| poisson(&ends, u32::from_le_bytes(*draw))).collect()
    }
}

/// The places in the distribution function of Poisson(1) up to which a number reaches, from 0. Beyond the last lie less than
/// 2^-32 of all.
static ENDS: LazyLock<[u32; 12]> = LazyLock::new(|| {
    let (mut probability, mut below) = ((-1f64).exp(), 0.);
    std::array::from_fn(|number| {
        probability /= number.max(1) as f64;
        below += probability;
        (below * f64::from(u32::MAX)) as u32
    })
});

/// Returns the number at a place. Comparing with all ends is faster than finding the first, because it is done for several places
/// at once.
fn poisson(ends: &[u32; 12], place: u32) -> u8 {
    ends.iter().map(|end| u8::from(place > *end)).sum()
}

/// The scores of images by several rules, with their weights: metrics of images are computed from them in each resample.
#[derive(Clone, Debug, Default)]
pub struct ImageResamples {
    weights: Vec<Weights>,
    /// The score, the label and the place in `weights` of each image that a rule scores, by rule.
    scored: Vec<Vec<(f64, bool, u32)>>,
}

impl ImageResamples {
    /// Adds an image with its weights and, by each rule, its score, which is no NaN, if it has one, and its label.
    pub fn add(&mut self, weights: Weights, by_rule: &[(Option<f64>, bool)]) {
        let at = self.weights.len() as u32;
        self.weights.push(weights);
        self.scored.resize(by_rule.len(), Vec::new());
        for (images, (score, anomalous)) in self.scored.iter_mut().zip(by_rule) {
            images.extend(score.map(|score| (score, *anomalous, at)));
        }
    }

    /// Computes by each rule the metrics of [`RANKED`] in every resample; `None` where one is not defined.
    pub fn spread(&self, resamples: usize) -> Vec<Vec<[Option<f64>; 3]>> {
        let descending = |images: &Vec<(f64, bool, u32)>| {
            let mut images = images.clone();
            images.sort_by(|a, b| b.0.total_cmp(&a.0));
            let equal: Vec<usize> = images.chunk_by(|a, b| a.0 == b.0).map(<[_]>::len).collect();
            (images, equal)
        };
        let rules: Vec<_> = self.scored.iter().map(descending).collect();
        let mut spreads = vec![Vec::with_capacity(resamples); rules.len()];
        for first in (0..resamples).step_by(BLOCK) {
            let block = first..resamples.min(first + BLOCK);
            let drawn: Vec<Vec<u8>> = self.weights.iter().map(|weights| weights.of(block.clone())).collect();
            for resample in 0..block.len() {
                let weights: Vec<u8> = drawn.iter().map(|weights| weights[resample]).collect();
                for ((images, equal), spread) in rules.iter().zip(&mut spreads) {
                    let mut rest = images.iter();
                    let level = |equal: &usize| {
                        let mut level = Level::default();
                        for (_, anomalous, at) in rest.by_ref().take(*equal) {
                            let count = if *anomalous { &mut level.positives } else { &mut level.negatives };
                            *count += u64::from(weights[*at as usize]);
                        }
                        level
                    };
                    spread.push(Ranking::from_iter(equal.iter().map(level)).ranked());
                }
            }
        }
        spreads
    }
}

/// Counts of pixels by level in each resample, and once more for all images as they are.
#[derive(Clone, Debug)]
pub struct PixelResamples {
    resamples: usize,
    /// The number of trailing bits of a score's place that are left out.
    shift: u32,
    levels: BTreeMap<u64, Sums>,
    /// The number of regions in each resample.
    regions: Vec<f64>,
}

/// The sums of a level, one per resample, as whole numbers; empty where all are 0.
#[derive(Clone, Debug, Default)]
struct Sums {
    normal: Vec<f64>,
    anomalous: Vec<f64>,
    /// In the unit [`COVERED`] / area.
    covered: Vec<f64>,
}

/// The pixels of one image with one level.
#[derive(Clone, Copy, Default)]
struct Bin {
    level: u64,
    normal: f64,
    anomalous: f64,
    covered: f64,
}

impl PixelResamples {
    /// Makes an empty state.
    pub fn new(resamples: usize) -> Self {
        Self { resamples, shift: 0, levels: BTreeMap::new(), regions: vec![0.; resamples + 1] }
    }

    /// Adds images. The number of levels of all images decides how far levels are merged, so that neither depends on
    /// the order of images.
    pub fn add(&mut self, images: &[(&PixelCounts, Weights)]) {
        let mut binned: Vec<Vec<Bin>> = images.iter().map(|(image, _)| bins(image, self.shift)).collect();
        // An image with more levels of its own need not be compared with others.
        while binned.iter().any(|bins| bins.len() > MOST_LEVELS) || self.levels_with(&binned) > MOST_LEVELS {
            binned.iter_mut().for_each(|bins| merge(bins, 1));
            self.shift += 1;
            for (level, sums) in std::mem::take(&mut self.levels) {
                self.levels.entry(level >> 1).or_default().add(&sums);
            }
        }
        let mut added: Vec<(Bin, usize)> = Vec::new();
        let mut weights: Vec<Vec<f64>> = Vec::new();
        for (at, (bins, (image, drawn))) in binned.into_iter().zip(images).enumerate() {
            added.extend(bins.into_iter().map(|bin| (bin, at)));
            weights.push(drawn.of(0..self.resamples).into_iter().map(f64::from).chain([1.]).collect());
            add_product(&mut self.regions, image.regions as f64, &weights[at]);
        }
        // The sums of a level stay in the cache while those of all images are added.
        added.sort_by_key(|(bin, _)| bin.level);
        for (bin, at) in added {
            let sums = self.levels.entry(bin.level).or_default();
            add_product(&mut sums.normal, bin.normal, &weights[at]);
            add_product(&mut sums.anomalous, bin.anomalous, &weights[at]);
            add_product(&mut sums.covered, bin.covered, &weights[at]);
        }
    }

    /// Returns the number of levels after these are added.
    fn levels_with(&self, binned: &[Vec<Bin>]) -> usize {
        let added = binned.iter().flatten().map(|bin| bin.level).filter(|level| !self.levels.contains_key(level));
        self.levels.len() + added.collect::<BTreeSet<u64>>().len()
    }

    /// Computes the metrics of [`RANKED`] in every resample, then AUPRO up to each of `limits`. The last row is of all images
    /// as they are.
    pub fn spread(&self, limits: &[f64]) -> Vec<Vec<Option<f64>>> {
        let of_resample = |resample: usize| {
            let at = |sums: &[f64]| sums.get(resample).copied().unwrap_or_default();
            let descending = || self.levels.values().rev();
            let level =
                |sums: &Sums| Level { positives: at(&sums.anomalous) as u64, negatives: at(&sums.normal) as u64 };
            let ranking: Ranking = descending().map(level).collect();
            let regions = self.regions[resample];
            let defined = regions > 0. && ranking.total().negatives > 0;
            let curve = descending().scan((0., 0.), |seen, sums| {
                *seen = (seen.0 + at(&sums.normal), seen.1 + at(&sums.covered));
                Some((seen.0 / ranking.total().negatives as f64, seen.1 / (COVERED * regions)))
            });
            let ranked = ranking.ranked();
            let areas = limits.iter().map(|limit| if defined { overlap_area(curve.clone(), *limit) } else { None });
            ranked.into_iter().chain(areas).collect()
        };
        (0..=self.resamples).map(of_resample).collect()
    }
}

impl Sums {
    fn add(&mut self, other: &Self) {
        for (sum, more) in [
            (&mut self.normal, &other.normal),
            (&mut self.anomalous, &other.anomalous),
            (&mut self.covered, &other.covered),
        ] {
            if !more.is_empty() {
                add_product(sum, 1., more);
            }
        }
    }
}

/// Adds a multiple of a vector to a sum, which may be empty.
fn add_product(sum: &mut Vec<f64>, factor: f64, vector: &[f64]) {
    if factor > 0. {
        sum.resize(vector.len(), 0.);
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the line above makes sure that the processor has AVX2.
            return unsafe { add_whole_product_with_avx2(sum, factor, vector) };
        }
        add_whole_product(sum, factor, vector);
    }
}

/// Is [`add_whole_product`] with four numbers in a register, in place of two.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn add_whole_product_with_avx2(sum: &mut [f64], factor: f64, vector: &[f64]) {
    add_whole_product(sum, factor, vector);
}

#[inline(always)]
fn add_whole_product(sum: &mut [f64], factor: f64, vector: &[f64]) {
    sum.iter_mut().zip(vector).for_each(|(sum, value)| *sum += factor * value);
}

/// Returns the pixels of an image by score without its `shift` trailing bits, ascending.
fn bins(image: &PixelCounts, shift: u32) -> Vec<Bin> {
    let mut bins: Vec<Bin> = Vec::new();
    for (level, count) in &image.normal {
        add_bin(&mut bins, 0, Bin { level: level >> shift, normal: *count as f64, ..Bin::default() });
    }
    let first = bins.len();
    for (level, found) in &image.anomalous {
        let covered = (found.covered as f64 / (REGION as f64 / COVERED)).round();
        let anomalous = found.pixels as f64;
        add_bin(&mut bins, first, Bin { level: level >> shift, normal: 0., anomalous, covered });
    }
    bins.sort_by_key(|bin| bin.level);
    merge(&mut bins, 0);
    bins
}

/// Adds to the last one of the bins from `first` on, if that has the same level.
fn add_bin(bins: &mut Vec<Bin>, first: usize, more: Bin) {
    match bins[first..].last_mut().filter(|last| last.level == more.level) {
        Some(last) => {
            last.normal += more.normal;
            last.anomalous += more.anomalous;
            last.covered += more.covered;
        }
        None => bins.push(more),
    }
}

/// Drops trailing bits of levels, which are in ascending order, and joins those that become equal.
fn merge(bins: &mut Vec<Bin>, bits: u32) {
    bins.iter_mut().for_each(|bin| bin.level >>= bits);
    bins.dedup_by(|bin, kept| {
        let same = bin.level == kept.level;
        if same {
            kept.normal += bin.normal;
            kept.anomalous += bin.anomalous;
            kept.covered += bin.covered;
        }
        same
    });
}

/// Returns the interval that holds 95 % of the values, linear between them; `None` without values.
pub fn interval(mut values: Vec<f64>) -> Option<[f64; 2]> {
    values.sort_by(f64::total_cmp);
    let last = values.len().checked_sub(1)?;
    Some([TAIL, 1. - TAIL].map(|share| {
        let place = share * last as f64;
        let (low, high) = (values[place.floor() as usize], values[place.ceil() as usize]);
        low + (high - low) * place.fract()
    }))
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;
    use crate::{Components, ImageMetrics, PixelMetrics};

    const RESAMPLES: usize = 200;
    const WIDTH: usize = 6;

    fn weights(image: usize) -> Weights {
        Weights::new(7, &format!("nut/{image}"))
    }

    /// Makes maps of 40 different values, and masks of which every second one has a region.
    fn images() -> Vec<(Vec<f16>, Vec<bool>)> {
        let noise = |i: usize| (i as u32 + 1).wrapping_mul(2_654_435_761) >> 22;
        let image = |n: usize| {
            let mask: Vec<bool> = (0..WIDTH * WIDTH).map(|i| n % 2 == 1 && (7 + n % 3..9 + n).contains(&i)).collect();
            let value = |i: usize| noise(n * 36 + i) % 30 + if mask[i] { 10 } else { 0 };
            ((0..mask.len()).map(|i| f16::from_f64(f64::from(value(i)) / 8.)).collect(), mask)
        };
        (0..12).map(image).collect()
    }

    fn counts((map, mask): &(Vec<f16>, Vec<bool>)) -> PixelCounts {
        PixelCounts::new(map, &Components::label(mask, WIDTH).unwrap(), WIDTH).unwrap()
    }

    #[test]
    fn weights_are_poisson_and_do_not_depend_on_the_number_of_resamples() {
        let all: Vec<u8> = (0..500).flat_map(|image| weights(image).of(0..RESAMPLES)).collect();
        let share = |number: u8| all.iter().filter(|weight| **weight == number).count() as f64 / all.len() as f64;
        // 1 / (e k!); 4 standard deviations of 100,000 draws are at most 4 sqrt(0.37 · 0.63 / 1e5) = 0.0062.
        for (number, expected) in [(0, 0.3679), (1, 0.3679), (2, 0.1839), (3, 0.0613), (4, 0.0153)] {
            assert!((share(number) - expected).abs() < 0.0062, "{number}: {}", share(number));
        }
        assert_eq!(weights(3).of(0..RESAMPLES)[70..90], weights(3).of(70..90));
        assert_ne!(weights(3).of(0..RESAMPLES), weights(4).of(0..RESAMPLES));
        assert_eq!([0, u32::MAX / 2, u32::MAX].map(|place| poisson(&ENDS, place)), [0, 1, 12]);
    }

    #[test]
    fn metrics_of_images_are_those_of_repeated_images() {
        let scored = [(0.1, false), (0.3, false), (0.3, true), (0.7, true), (0.2, false), (0.6, false), (0.3, true)];
        let mut resamples = ImageResamples::default();
        // By the second rule the first image has no score, and the labels are the other way round.
        let by_rule = |i: usize| {
            let (score, label) = scored[i];
            [(Some(score), label), ((i > 0).then_some(score), !label)]
        };
        (0..scored.len()).for_each(|i| resamples.add(weights(i), &by_rule(i)));
        let spreads = resamples.spread(RESAMPLES);
        assert_eq!(spreads.len(), 2);
        for (rule, resample, got) in spreads
            .iter()
            .enumerate()
            .flat_map(|(rule, spread)| spread.iter().enumerate().map(move |(resample, got)| (rule, resample, *got)))
        {
            let mut repeated = ImageMetrics::new();
            for i in 0..scored.len() {
                let times = weights(i).of(resample..resample + 1)[0];
                let (Some(score), label) = by_rule(i)[rule] else { continue };
                (0..times).for_each(|_| repeated.update(score, label).unwrap());
            }
            assert_eq!(got, RANKED.map(|kind| kind.of(&repeated.ranking())));
        }
    }

    #[test]
    fn metrics_of_pixels_are_those_of_repeated_images_where_levels_lose_nothing() {
        let mut resamples = PixelResamples::new(RESAMPLES);
        images().iter().enumerate().for_each(|(i, image)| resamples.add(&[(&counts(image), weights(i))]));
        for (resample, got) in resamples.spread(&[0.3, 1.]).into_iter().enumerate() {
            let mut repeated = PixelMetrics::new();
            for (i, image) in images().iter().enumerate() {
                let times = if resample == RESAMPLES { 1 } else { weights(i).of(resample..resample + 1)[0] };
                (0..times).for_each(|_| repeated.add(&counts(image)));
            }
            let ranked = RANKED.map(|kind| kind.of(&repeated.ranking()));
            assert_eq!(got[..3], ranked);
            for (got, limit) in got[3..].iter().zip([0.3, 1.]) {
                // Coverage is rounded to 2^-32 of a region for each of up to 12 · 12 scores of an image.
                let expected = repeated.aupro(limit);
                assert!(
                    got.zip(expected).map_or(*got == expected, |(a, b)| (a - b).abs() < 1e-7),
                    "{got:?} {expected:?}"
                );
            }
        }
    }

    #[test]
    fn order_and_division_of_images_change_nothing_and_levels_are_few() {
        let fine = |n: usize| -> (Vec<f16>, Vec<bool>) {
            let value = |i: usize| f16::from_f64(((n * 36 + i) * 37 % 4001) as f64 / 300.);
            ((0..36).map(value).collect(), (0..36).map(|i| n.is_multiple_of(3) && i < 12).collect())
        };
        let images: Vec<(Vec<f16>, Vec<bool>)> = (0..60).map(fine).collect();
        let spread = |order: &mut dyn Iterator<Item = usize>, together: usize| {
            let mut resamples = PixelResamples::new(RESAMPLES);
            let counted: Vec<_> = order.map(|i| (counts(&images[i]), weights(i))).collect();
            for images in counted.chunks(together) {
                resamples.add(&images.iter().map(|(counts, weights)| (counts, *weights)).collect::<Vec<_>>());
            }
            assert!(resamples.levels.len() <= MOST_LEVELS && resamples.shift > 0);
            resamples.spread(&[0.3])
        };
        assert_eq!(spread(&mut (0..60), 1), spread(&mut (0..60).rev(), 1));
        assert_eq!(spread(&mut (0..60), 1), spread(&mut (0..60), 13));
    }

    #[test]
    fn interval_leaves_out_a_fortieth_at_both_ends() {
        assert_eq!(interval((0..=1000).rev().map(f64::from).collect()), Some([25., 975.]));
        assert_eq!(interval(vec![3.]), Some([3., 3.]));
        assert_eq!(interval(Vec::new()), None);
    }
}
