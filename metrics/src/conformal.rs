//! Thresholds with a promised rate of false alarms, computed from good photographs alone (split conformal prediction).
//!
//! A photograph is an alarm if its score is *above* the threshold. The scores of `n` good photographs, which no stage
//! was trained on, and that of the next good photograph are taken to be independent draws from one distribution F;
//! nothing else is assumed of F. If the threshold is the k-th highest of the n scores, the share of good photographs
//! above it is distributed as Beta(k, n + 1 - k) if F is continuous (Wilks 1941, "Determination of sample sizes for
//! setting tolerance limits"), and is lower if scores may be equal. [`rank`] is the largest k for which this share is
//! at most the requested rate with the requested confidence: training conditional validity (Vovk 2012, "Conditional
//! validity of inductive conformal predictors"), which holds for the calibration at hand and not only on
//! average over calibrations.
//!
//! [`Shares`] does the same for pixels, on average over calibrations, since the pixels of a photograph depend on each
//! other: conformal risk control (Angelopoulos et al. 2022, theorem 1) over photographs.

use half::f16;

use super::{MetricError, Score, levels::Levels};

/// A relative tolerance for the rounding of powers, so that [`least_rate`] of n photographs can be requested of them.
const ROUNDING: f64 = 1e-12;

/// Returns the largest k for which P(Beta(k, n + 1 - k) <= rate) >= confidence; `None` if n is too small for any.
///
/// That probability equals P(X >= k) for X ~ Binomial(n, rate), whose terms are added in ascending order.
pub fn rank(n: usize, rate: f64, confidence: f64) -> Option<usize> {
    let mut below = 0.; // P(X <= k)
    let mut term = n as f64 * (-rate).ln_1p(); // ln P(X = k)
    let odds = (rate / (1. - rate)).ln();
    for k in 0..n {
        below += term.exp();
        if below > (1. - confidence) * (1. + ROUNDING) {
            return (k > 0).then_some(k);
        }
        term += ((n - k) as f64 / (k + 1) as f64).ln() + odds;
    }
    (n > 0).then_some(n)
}

/// Returns the lowest rate that `n` photographs can promise, with the highest of their scores as threshold.
pub fn least_rate(n: usize, confidence: f64) -> f64 {
    -((-confidence).ln_1p() / n as f64).exp_m1()
}

/// Returns the number of photographs that a rate needs.
pub fn photographs_for(rate: f64, confidence: f64) -> usize {
    ((-confidence).ln_1p() / (-rate).ln_1p() * (1. - ROUNDING)).ceil() as usize
}

/// Returns the threshold for the scores of good photographs, which are in ascending order; `None` if they are too few.
pub fn threshold(ascending: &[f32], rate: f64, confidence: f64) -> Option<f32> {
    let k = rank(ascending.len(), rate, confidence)?;
    Some(ascending[ascending.len() - k])
}

/// Returns the conformal p-value of a score, `(1 + #{s_i >= score}) / (n + 1)`: for the next good photograph it is at
/// most any p with a probability of at most p. `ascending` holds the scores of good photographs in ascending order.
pub fn p_value(ascending: &[f32], score: f32) -> f64 {
    let below = ascending.partition_point(|other| *other < score);
    (1 + ascending.len() - below) as f64 / (ascending.len() + 1) as f64
}

/// The pixels of the anomaly maps of good photographs: exact counts per value.
#[derive(Debug, Clone)]
pub struct Shares {
    counts: Levels<u64>,
    photographs: u64,
    /// The pixels of all maps.
    pixels: u64,
}

impl Default for Shares {
    fn default() -> Self {
        Self { counts: Levels::new::<f16>(), photographs: 0, pixels: 0 }
    }
}

impl Shares {
    /// Adds a row-major map, of which `roi` tells the pixels that are judged (true); `None` for all of them. All maps have
    /// one size, and about as many pixels that are judged.
    pub fn add(&mut self, map: &[f16], roi: Option<&[bool]>, width: usize) -> Result<(), MetricError> {
        if let Some(mask) = roi.map(<[bool]>::len).filter(|pixels| *pixels != map.len()) {
            return Err(MetricError::Sizes { map: map.len(), mask });
        }
        if let Some(i) = map.iter().position(|value| value.is_nan()) {
            return Err(MetricError::NanPixel { x: i % width, y: i / width });
        }
        let is_judged = |i: usize| roi.is_none_or(|roi| roi[i]);
        let judged = map.iter().enumerate().filter(|(i, _)| is_judged(*i));
        self.counts.add(judged.map(|(_, value)| (value.key(), 1)));
        self.photographs += 1;
        self.pixels += (0..map.len()).filter(|i| is_judged(*i)).count() as u64;
        Ok(())
    }

    /// Returns the lowest threshold above which the expected share of pixels of the next good photograph is at most
    /// `rate`; `None` if there are too few photographs.
    ///
    /// With the mean share R(t) of the n maps above t, and shares of at most 1, it is the lowest t for which
    /// n / (n + 1) R(t) + 1 / (n + 1) <= rate.
    pub fn threshold(&self, rate: f64) -> Option<f32> {
        let n = self.photographs as f64;
        if 1. / (n + 1.) > rate * (1. + ROUNDING) {
            return None;
        }
        // The share changes at values that occur, so the lowest threshold is one of them.
        let mut above = 0;
        let mut lowest = None;
        for (key, count) in self.counts.ascending().into_iter().rev() {
            let share = above as f64 / self.pixels as f64;
            if (n * share + 1.) / (n + 1.) > rate * (1. + ROUNDING) {
                break;
            }
            lowest = Some(f16::at(key) as f32);
            above += count;
        }
        lowest
    }
}

/// Returns the lowest rate of pixels that `n` photographs can promise.
pub fn least_pixel_rate(n: usize) -> f64 {
    1. / (n as f64 + 1.)
}

/// Returns the number of photographs that a rate of pixels needs.
pub fn photographs_for_pixels(rate: f64) -> usize {
    ((1. / rate - 1.) * (1. - ROUNDING)).ceil() as usize
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::{RngExt, SeedableRng, seq::SliceRandom};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    /// Returns P(Binomial(n, rate) >= k) from the definition.
    fn at_least(n: usize, rate: f64, k: usize) -> f64 {
        let choose = |k: usize| (0..k).map(|i| (n - i) as f64 / (i + 1) as f64).product::<f64>();
        (k..=n).map(|i| choose(i) * rate.powi(i as i32) * (1. - rate).powi((n - i) as i32)).sum()
    }

    #[test]
    fn small_cases_are_those_computed_by_hand() {
        // One photograph: P(Beta(1, 1) <= 0.5) = 0.5.
        assert_eq!((rank(1, 0.5, 0.5), rank(1, 0.5, 0.51)), (Some(1), None));
        // Two: P(X >= 1) = 1 - 0.5^2 = 0.75 and P(X >= 2) = 0.25.
        assert_eq!([0.25, 0.26, 0.75, 0.76].map(|c| rank(2, 0.5, c)), [Some(2), Some(1), Some(1), None]);
        // Wilks' sample sizes for a one-sided tolerance limit: 22 for 90 %/90 %, 59 for 95 %/95 %, 299 for 99 %/95 %.
        assert_eq!(
            [photographs_for(0.1, 0.9), photographs_for(0.05, 0.95), photographs_for(0.01, 0.95)],
            [22, 59, 299]
        );
        assert_eq!((rank(58, 0.05, 0.95), rank(59, 0.05, 0.95)), (None, Some(1)));
        // The second and third highest need 93 and 124 photographs (tables of order statistics for 95 %/95 %).
        assert_eq!([92, 93, 123, 124].map(|n| rank(n, 0.05, 0.95)), [Some(1), Some(2), Some(2), Some(3)]);
        assert_eq!(rank(0, 0.5, 0.5), None);
        assert!((least_rate(22, 0.9) - (1. - 0.1f64.powf(1. / 22.))).abs() < 1e-15);
        // Binomials of a hundred thousand have terms far below the smallest float.
        assert!(matches!(rank(100_000, 0.1, 0.9), Some(9_800..10_000)));
        let scores = [1., 2., 2., 3.];
        assert_eq!([0., 2., 2.5, 3., 4.].map(|score| p_value(&scores, score)), [1., 0.8, 0.4, 0.4, 0.2]);
        assert_eq!(p_value(&[], 1.), 1.);
    }

    #[test]
    fn least_rate_of_photographs_is_possible_with_them() {
        for n in 1..500 {
            let least = least_rate(n, 0.9);
            assert_eq!((rank(n, least, 0.9), rank(n, least * 0.999, 0.9)), (Some(1), None), "{n}");
            assert_eq!(photographs_for(least, 0.9), n);
            assert_eq!(photographs_for_pixels(least_pixel_rate(n)), n);
        }
    }

    proptest! {
        #[test]
        fn rank_is_the_largest_with_the_confidence(n in 1..60usize, rate in 0.01..0.9f64, confidence in 0.05..0.99f64) {
            let largest = (1..=n).rev().find(|k| at_least(n, rate, *k) >= confidence);
            prop_assert_eq!(rank(n, rate, confidence), largest);
        }
    }

    /// Over 1,000 calibrations the share of those whose realised rate is at most the requested one is the stated
    /// confidence or more. For continuous scores it equals P(Beta(k, n + 1 - k) <= rate) but for four standard
    /// deviations of a share of 1,000, 4 sqrt(p (1 - p) / 1000).
    #[test]
    fn realised_rates_keep_the_stated_confidence() {
        const POOL: usize = 60_000;
        const SPLITS: usize = 1_000;
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        // Skewed scores, as maxima of maps are, and the same rounded, so that many are equal.
        let skewed: Vec<f32> = (0..POOL).map(|_| (-rng.random::<f64>().ln()).powf(0.4) as f32).collect();
        let rounded: Vec<f32> = skewed.iter().map(|score| (score * 20.).round() / 20.).collect();
        for (pool, is_continuous) in [(skewed, true), (rounded, false)] {
            let mut sorted = pool.clone();
            sorted.sort_by(f32::total_cmp);
            let above = |threshold: f32| POOL - sorted.partition_point(|score| *score <= threshold);
            for (n, confidence) in [(250, 0.9), (60, 0.9), (60, 0.5), (400, 0.95)] {
                let mut calibrations: Vec<Vec<f32>> = Vec::new();
                let mut shuffled = pool.clone();
                for _ in 0..SPLITS {
                    let (chosen, _) = shuffled.partial_shuffle(&mut rng, n);
                    chosen.sort_by(f32::total_cmp);
                    calibrations.push(chosen.to_vec());
                }
                for rate in [0.01, 0.05, 0.1] {
                    let Some(k) = rank(n, rate, confidence) else {
                        assert!(
                            least_rate(n, confidence) > rate && threshold(&calibrations[0], rate, confidence).is_none()
                        );
                        continue;
                    };
                    let kept = calibrations.iter().filter(|calibration| {
                        let threshold = threshold(calibration, rate, confidence).unwrap();
                        let of_calibration = calibration.iter().filter(|score| **score > threshold).count();
                        (above(threshold) - of_calibration) as f64 / (POOL - n) as f64 <= rate
                    });
                    let kept = kept.count() as f64 / SPLITS as f64;
                    let expected = at_least(n, rate, k);
                    let tolerance = 4. * (expected * (1. - expected) / SPLITS as f64).sqrt();
                    let told = format!("n={n} rate={rate} confidence={confidence}: {kept}, expected {expected}");
                    assert!(expected >= confidence && kept >= confidence - tolerance, "{told}");
                    assert!(!is_continuous || (kept - expected).abs() <= tolerance, "{told}");
                }
            }
        }
    }

    #[test]
    fn p_values_of_good_photographs_are_at_most_p_with_probability_p() {
        const DRAWS: usize = 20_000;
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let mut counts = [0; 3];
        let rates = [0.05, 0.1, 0.5];
        for _ in 0..DRAWS {
            let mut scores: Vec<f32> = (0..19).map(|_| rng.random()).collect();
            scores.sort_by(f32::total_cmp);
            let p = p_value(&scores, rng.random());
            rates.iter().zip(&mut counts).for_each(|(rate, count)| *count += usize::from(p <= *rate));
        }
        // With 19 scores these rates are met exactly, but for four standard deviations.
        for (rate, count) in rates.into_iter().zip(counts) {
            let (share, tolerance) = (count as f64 / DRAWS as f64, 4. * (rate * (1. - rate) / DRAWS as f64).sqrt());
            assert!((share - rate).abs() <= tolerance, "{rate}: {share}");
        }
    }

    fn map(values: &[f32]) -> Vec<f16> {
        values.iter().copied().map(f16::from_f32).collect()
    }

    #[test]
    fn threshold_of_pixels_is_the_lowest_whose_bound_is_kept() {
        let mut shares = Shares::default();
        shares.add(&map(&[1., 2., 3., 4.]), None, 2).unwrap();
        shares.add(&map(&[1., 1., 1., 2.]), None, 2).unwrap();
        shares.add(&map(&[0., 0., 1., 1.]), None, 2).unwrap();
        // (3 R + 1) / 4: with R = 0 it is 1/4 at 4; with 1/12 5/16 at 3; with 2/12 6/16 at 2; with 4/12 1/2 at 1; with 10/12 7/8 at 0.
        let at = [0.2, 0.25, 0.31, 0.3125, 0.375, 0.49, 0.5, 0.9].map(|rate| shares.threshold(rate));
        assert_eq!(at, [None, Some(4.), Some(4.), Some(3.), Some(2.), Some(2.), Some(1.), Some(0.)]);
        assert_eq!(shares.add(&[f16::ZERO, f16::NAN], None, 1), Err(MetricError::NanPixel { x: 0, y: 1 }));
        assert_eq!(Shares::default().threshold(0.5), None);
    }

    /// The mean share over calibrations and next photographs is at most the rate, but for four standard deviations.
    #[test]
    fn share_of_pixels_keeps_the_rate_on_average() {
        const DRAWS: usize = 2_000;
        let (n, rate, pixels) = (39, 0.05, 64);
        let mut rng = ChaCha8Rng::seed_from_u64(11);
        // Each photograph has a level of its own, so that its pixels depend on each other.
        let mut draw = || -> Vec<f16> {
            let level: f32 = rng.random();
            (0..pixels).map(|_| f16::from_f32(level + rng.random::<f32>())).collect()
        };
        let mut realised = Vec::new();
        for _ in 0..DRAWS {
            let mut shares = Shares::default();
            (0..n).for_each(|_| shares.add(&draw(), None, 8).unwrap());
            let threshold = shares.threshold(rate).unwrap();
            realised.push(draw().iter().filter(|value| f32::from(**value) > threshold).count() as f64 / pixels as f64);
        }
        let mean = realised.iter().sum::<f64>() / DRAWS as f64;
        let variance = realised.iter().map(|share| (share - mean).powi(2)).sum::<f64>() / DRAWS as f64;
        let tolerance = 4. * (variance / DRAWS as f64).sqrt();
        assert!(mean <= rate + tolerance && mean > rate / 3., "{mean} ± {tolerance}");
    }
}
