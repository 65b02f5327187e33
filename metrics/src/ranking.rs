//! Metrics of a ranking, which depend only on the order of the scores and on the counts of each kind per score.

use std::ops::{Add, AddAssign};

/// The counts of positives (anomalous) and negatives (normal) with one score.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Level {
    /// Anomalous images or pixels with this score.
    pub positives: u64,
    /// Normal images or pixels with this score.
    pub negatives: u64,
}

/// The levels of all scores that occur, collected in descending order of score.
///
/// Every metric is in 0..=1, follows from whole counts, and is None if there are no positives or no negatives.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ranking {
    levels: Vec<Level>,
    total: Level,
}

impl FromIterator<Level> for Ranking {
    /// Collects `levels`, which come in descending order of score. Empty ones change nothing.
    fn from_iter<T: IntoIterator<Item = Level>>(levels: T) -> Self {
        let levels: Vec<Level> = levels.into_iter().collect();
        let mut total = Level::default();
        levels.iter().for_each(|level| total += *level);
        Self { levels, total }
    }
}

impl Ranking {
    /// Returns the counts of all positives and negatives.
    pub fn total(&self) -> Level {
        self.total
    }

    /// Returns the area under the ROC curve: the probability that a positive scores above a negative, ties counting one
    /// half (`sklearn.metrics.roc_auc_score`).
    pub fn auroc(&self) -> Option<f64> {
        let Level { positives, negatives } = self.defined()?;
        // Twice the number of ordered pairs, so that halves are whole numbers; it exceeds 64 bits from 2^32 pixels of
        // each kind.
        let pairs: u128 = self
            .above()
            .map(|(above, level)| u128::from(level.negatives) * u128::from(2 * above.positives + level.positives))
            .sum();
        Some(pairs as f64 / (2.0 * positives as f64 * negatives as f64))
    }

    /// Returns the average precision: the precision at each level, weighted by the recall that the level adds, without
    /// interpolation (`sklearn.metrics.average_precision_score`, which also defines it, as 1, if there are no
    /// negatives).
    pub fn average_precision(&self) -> Option<f64> {
        let total = self.defined()?;
        let gains = self.above().filter(|(_, level)| level.positives > 0).map(|(above, level)| {
            let here = above + level;
            level.positives as f64 * here.positives as f64 / (here.positives + here.negatives) as f64
        });
        Some(gains.sum::<f64>() / total.positives as f64)
    }

    /// Returns the largest F1 = 2·TP / (2·TP + FP + FN) of all thresholds "score >= a score that occurs" (the maximum
    /// over `sklearn.metrics.precision_recall_curve`).
    pub fn f1_max(&self) -> Option<f64> {
        let total = self.defined()?;
        let f1 = |here: Level| {
            // 2·TP + FP + FN is the number of predicted positives plus the number of positives.
            2.0 * here.positives as f64 / (here.positives + here.negatives + total.positives) as f64
        };
        Some(self.above().map(|(above, level)| f1(above + level)).fold(0.0, f64::max))
    }

    /// Returns [`Ranking::auroc`], [`Ranking::average_precision`] and [`Ranking::f1_max`], of one pass over the levels.
    pub fn ranked(&self) -> [Option<f64>; 3] {
        let Some(total) = self.defined() else { return [None; 3] };
        let (mut above, mut pairs, mut gains, mut f1_max) = (Level::default(), 0u128, 0., 0f64);
        for level in &self.levels {
            pairs += u128::from(level.negatives) * u128::from(2 * above.positives + level.positives);
            above += *level;
            // Without a positive, recall stays and precision falls.
            if level.positives > 0 {
                let (found, called) = (above.positives as f64, above.positives + above.negatives);
                gains += level.positives as f64 * found / called as f64;
                f1_max = f1_max.max(2.0 * found / (called + total.positives) as f64);
            }
        }
        let auroc = pairs as f64 / (2.0 * total.positives as f64 * total.negatives as f64);
        [auroc, gains / total.positives as f64, f1_max].map(Some)
    }

    /// Returns the ROC curve: the false positive rate and the recall of every threshold, from (0, 0) to (1, 1).
    pub fn roc(&self) -> Option<Vec<(f64, f64)>> {
        let total = self.defined()?;
        let point = |called: Level| {
            (called.negatives as f64 / total.negatives as f64, called.positives as f64 / total.positives as f64)
        };
        Some(std::iter::once((0., 0.)).chain(self.above().map(|(above, level)| point(above + level))).collect())
    }

    /// Returns the totals, if both kinds occur.
    pub(super) fn defined(&self) -> Option<Level> {
        Some(self.total).filter(|total| total.positives > 0 && total.negatives > 0)
    }

    /// Returns the sum of all levels above each level, with the level.
    pub(super) fn above(&self) -> impl Iterator<Item = (Level, Level)> {
        self.levels.iter().scan(Level::default(), |sum, level| {
            let above = *sum;
            *sum += *level;
            Some((above, *level))
        })
    }
}

impl AddAssign for Level {
    fn add_assign(&mut self, more: Self) {
        self.positives += more.positives;
        self.negatives += more.negatives;
    }
}

impl Add for Level {
    type Output = Self;

    fn add(mut self, more: Self) -> Self {
        self += more;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ImageMetrics;
    use proptest::prelude::*;

    fn ranked(scores: &[f64], labels: &[u8]) -> Ranking {
        let pairs: Vec<(f64, bool)> = scores.iter().copied().zip(labels.iter().map(|label| *label == 1)).collect();
        ranking(&pairs)
    }

    fn ranking(pairs: &[(f64, bool)]) -> Ranking {
        let mut images = ImageMetrics::new();
        pairs.iter().for_each(|(score, anomalous)| images.update(*score, *anomalous).unwrap());
        images.ranking()
    }

    #[test]
    fn metrics_equal_those_of_the_scikit_learn_example() {
        // The example in the documentation of roc_auc_score and average_precision_score.
        let ranking = ranked(&[0.1, 0.4, 0.35, 0.8], &[0, 0, 1, 1]);
        assert_eq!(ranking.auroc(), Some(0.75));
        assert!((ranking.average_precision().unwrap() - 0.8333333333333333).abs() < 1e-15);
        assert_eq!(ranking.f1_max(), Some(0.8));
    }

    #[test]
    fn roc_leads_through_every_threshold() {
        let points = [(0., 0.), (0., 0.5), (0.5, 0.5), (0.5, 1.), (1., 1.)];
        assert_eq!(ranked(&[0.1, 0.4, 0.35, 0.8], &[0, 0, 1, 1]).roc().unwrap(), points);
        assert_eq!(ranked(&[0.5; 2], &[1, 0]).roc().unwrap(), [(0., 0.), (1., 1.)]);
        assert_eq!(ranked(&[0.5; 2], &[1, 1]).roc(), None);
    }

    #[test]
    fn a_constant_score_has_the_metrics_of_chance() {
        let ranking = ranked(&[0.5; 4], &[1, 0, 0, 0]);
        assert_eq!(ranking.auroc(), Some(0.5));
        assert_eq!(ranking.average_precision(), Some(0.25));
        assert_eq!(ranking.f1_max(), Some(0.4));
    }

    #[test]
    fn signed_zeros_tie_and_infinities_rank() {
        assert_eq!(ranked(&[0.0, -0.0], &[1, 0]).auroc(), Some(0.5));
        assert_eq!(ranked(&[f64::INFINITY, f64::NEG_INFINITY, 0.0], &[1, 0, 0]).auroc(), Some(1.0));
    }

    #[test]
    fn metrics_of_only_positives_or_only_negatives_are_none() {
        for labels in [[0, 0], [1, 1]] {
            let ranking = ranked(&[0.1, 0.2], &labels);
            assert_eq!((ranking.auroc(), ranking.average_precision(), ranking.f1_max()), (None, None, None));
        }
        assert_eq!(Ranking::default().auroc(), None);
    }

    #[test]
    fn billions_of_pixels_do_not_overflow() {
        let half = Level { positives: 1 << 40, negatives: 1 << 40 };
        assert_eq!(Ranking::from_iter([half, half]).auroc(), Some(0.5));
    }

    /// Computes each metric from its definition: all pairs, all thresholds.
    fn brute_force(pairs: &[(f64, bool)]) -> Option<[f64; 3]> {
        let of = |kind| pairs.iter().filter(move |(_, label)| *label == kind).map(|(score, _)| *score);
        let (positives, negatives) = (of(true).count() as f64, of(false).count() as f64);
        if positives == 0.0 || negatives == 0.0 {
            return None;
        }
        let wins: f64 = of(true)
            .flat_map(|p| of(false).map(move |n| f64::from(u8::from(p > n)) + 0.5 * f64::from(u8::from(p == n))))
            .sum();
        let mut thresholds: Vec<f64> = pairs.iter().map(|(score, _)| *score).collect();
        thresholds.sort_by(|a, b| b.partial_cmp(a).unwrap());
        let (mut ap, mut f1_max, mut recall_before) = (0.0, 0.0f64, 0.0);
        for threshold in thresholds {
            let (tp, fp) =
                (of(true).filter(|s| *s >= threshold).count(), of(false).filter(|s| *s >= threshold).count());
            let (precision, recall) = (tp as f64 / (tp + fp) as f64, tp as f64 / positives);
            ap += (recall - recall_before) * precision;
            if tp > 0 {
                f1_max = f1_max.max(2.0 * precision * recall / (precision + recall));
            }
            recall_before = recall;
        }
        Some([wins / (positives * negatives), ap, f1_max])
    }

    /// Returns scores of which many are equal.
    fn quarters() -> impl Strategy<Value = f64> {
        (-6..6i32).prop_map(|score| f64::from(score) / 4.0)
    }

    proptest! {
        #[test]
        fn metrics_equal_their_definitions(pairs in prop::collection::vec((quarters(), any::<bool>()), 0..40)) {
            let ranking = ranking(&pairs);
            prop_assert_eq!(ranking.ranked(), [ranking.auroc(), ranking.average_precision(), ranking.f1_max()]);
            match brute_force(&pairs) {
                None => prop_assert_eq!([ranking.auroc(), ranking.average_precision(), ranking.f1_max()], [None; 3]),
                Some([auroc, ap, f1]) => {
                    // Sums of up to 40 shares of 1 in f64, 40 · 2⁻⁵³ = 4e-15.
                    prop_assert!((ranking.auroc().unwrap() - auroc).abs() < 1e-12);
                    prop_assert!((ranking.average_precision().unwrap() - ap).abs() < 1e-12);
                    prop_assert!((ranking.f1_max().unwrap() - f1).abs() < 1e-12);
                }
            }
        }
    }
}
