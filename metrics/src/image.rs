//! Metrics of scored images.

use super::{
    Level, MetricError, Ranking, Score, State,
    levels::{Levels, Record},
};

/// A mergeable state of all images seen: the counts of normal and anomalous images per score. Equal images give equal
/// states, in any order and any division into parts.
#[derive(Debug, Clone)]
pub struct ImageMetrics {
    levels: Levels<Level>,
}

impl Default for ImageMetrics {
    fn default() -> Self {
        Self { levels: Levels::new::<f64>() }
    }
}

impl PartialEq for ImageMetrics {
    fn eq(&self, other: &Self) -> bool {
        self.levels.ascending() == other.levels.ascending()
    }
}

impl ImageMetrics {
    /// Makes a state without images.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one image with its score and label (true is anomalous). Fails, and changes nothing, if the score is NaN.
    pub fn update(&mut self, score: f64, anomalous: bool) -> Result<(), MetricError> {
        if score.is_nan() {
            return Err(MetricError::NanScore);
        }
        let level = Level { positives: u64::from(anomalous), negatives: u64::from(!anomalous) };
        self.levels.add(std::iter::once((score.key(), level)));
        Ok(())
    }

    /// Returns the images as a ranking, which computes the metrics.
    pub fn ranking(&self) -> Ranking {
        self.descending().map(|(_, level)| level).collect()
    }

    /// Returns the scores that occur, highest first, with the counts of images.
    pub(super) fn descending(&self) -> impl Iterator<Item = (f64, Level)> {
        self.levels.ascending().into_iter().rev().map(|(key, level)| (f64::at(key), level))
    }
}

impl State for ImageMetrics {
    fn merge(&mut self, other: &Self) {
        self.levels.add(other.levels.ascending().into_iter());
    }

    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.levels.write(&mut bytes);
        bytes
    }

    fn merge_bytes(&mut self, bytes: &[u8]) -> Result<(), MetricError> {
        let mut rest = bytes;
        let levels = Levels::read::<f64>(&mut rest).filter(|_| rest.is_empty()).ok_or(MetricError::State)?;
        self.merge(&Self { levels });
        Ok(())
    }

    fn size(&self) -> usize {
        size_of::<Self>() + self.levels.size()
    }
}

impl Record for Level {
    fn write(&self, out: &mut Vec<u8>) {
        self.positives.write(out);
        self.negatives.write(out);
    }

    fn read(from: &mut &[u8]) -> Option<Self> {
        Some(Self { positives: u64::read(from)?, negatives: u64::read(from)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn state(images: &[(f64, bool)]) -> ImageMetrics {
        let mut state = ImageMetrics::new();
        images.iter().for_each(|(score, label)| state.update(*score, *label).unwrap());
        state
    }

    #[test]
    fn a_nan_score_is_refused_and_changes_nothing() {
        let mut images = state(&[(0.5, true)]);
        assert_eq!(images.update(f64::NAN, true), Err(MetricError::NanScore));
        assert_eq!(images.merge_bytes(&[1, 2, 3]), Err(MetricError::State));
        assert_eq!(images, state(&[(0.5, true)]));
    }

    fn images() -> impl Strategy<Value = Vec<(f64, bool)>> {
        let score =
            prop_oneof![(-6..6i32).prop_map(|s| f64::from(s) / 4.), any::<f64>().prop_filter("", |s| !s.is_nan())];
        prop::collection::vec((score, any::<bool>()), 0..40)
    }

    proptest! {
        #[test]
        fn parts_merge_to_the_whole(images in images(), cut in 0..40usize) {
            let (left, right) = images.split_at(cut.min(images.len()));
            let mut merged = state(right);
            merged.merge_bytes(&state(left).to_bytes()).unwrap();
            prop_assert_eq!(&merged, &state(&images));
        }
    }
}
