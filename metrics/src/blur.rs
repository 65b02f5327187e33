//! Gaussian smoothing of anomaly maps, equal to `scipy.ndimage.gaussian_filter` with its defaults
//! (`truncate=4`, `mode="reflect"`).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The distance in sigmas beyond which the kernel is cut.
const TRUNCATE: f64 = 4.0;

/// The continuation of a map beyond its border, by the names of `numpy.pad`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Border {
    /// `d c b a | a b c d | d c b a`: `reflect` of scipy.
    #[default]
    Symmetric,
    /// `d c b | a b c d | c b a`: `reflect` of torch and numpy, which anomalib uses.
    Reflect,
}

/// Smooths a `[height, width]` map.
///
/// `sigma` is in pixels; 0 or less leaves the map as it is. The border is mirrored as often as the kernel's radius of
/// `4 sigma` needs, even on maps smaller than it. NaN spreads over a radius. Panics unless `map.len() == width *
/// height`.
pub fn gaussian(map: &[f64], width: usize, height: usize, sigma: f64, border: Border) -> Vec<f64> {
    assert_eq!(map.len(), width * height, "map of {} values is not {width}x{height}", map.len());
    if map.is_empty() || sigma <= 0.0 {
        return map.to_vec();
    }
    let kernel = Kernel::new(sigma, border);
    kernel.along_rows(&kernel.along_columns(map, width, height), width)
}

/// A symmetric kernel: the weight of the centre, then of each distance `1..=radius`; both sides sum to one.
struct Kernel {
    weights: Vec<f64>,
    border: Border,
}

impl Kernel {
    fn new(sigma: f64, border: Border) -> Self {
        let radius = (TRUNCATE * sigma + 0.5) as usize;
        let scale = -0.5 / (sigma * sigma);
        let mut weights: Vec<f64> = (0..=radius).map(|x| (scale * (x * x) as f64).exp()).collect();
        let sum = weights[0] + 2.0 * weights[1..].iter().sum::<f64>();
        weights.iter_mut().for_each(|weight| *weight /= sum);
        Self { weights, border }
    }

    fn radius(&self) -> usize {
        self.weights.len() - 1
    }

    /// Returns distances with their weights, the smallest weight first, so that rounding does not lose small terms.
    fn sides(&self) -> impl Iterator<Item = (usize, f64)> {
        self.weights.iter().copied().enumerate().skip(1).rev()
    }

    fn along_columns(&self, map: &[f64], width: usize, height: usize) -> Vec<f64> {
        let row = |y: isize| &map[self.border.fold(y, height) * width..][..width];
        let mut out = Vec::with_capacity(map.len());
        for y in 0..height as isize {
            let mut sums: Vec<f64> = row(y).iter().map(|value| value * self.weights[0]).collect();
            for (distance, weight) in self.sides() {
                let distance = distance as isize;
                add_pair(&mut sums, row(y - distance), row(y + distance), weight);
            }
            out.extend(sums);
        }
        out
    }

    fn along_rows(&self, map: &[f64], width: usize) -> Vec<f64> {
        let radius = self.radius();
        let places: Vec<usize> =
            (0..width + 2 * radius).map(|x| self.border.fold(x as isize - radius as isize, width)).collect();
        let mut out = Vec::with_capacity(map.len());
        let mut padded = Vec::with_capacity(width + 2 * radius);
        for row in map.chunks_exact(width) {
            padded.clear();
            padded.extend(places.iter().map(|place| row[*place]));
            let mut sums: Vec<f64> = row.iter().map(|value| value * self.weights[0]).collect();
            for (distance, weight) in self.sides() {
                add_pair(&mut sums, &padded[radius - distance..], &padded[radius + distance..], weight);
            }
            out.extend(sums);
        }
        out
    }
}

fn add_pair(sums: &mut [f64], left: &[f64], right: &[f64], weight: f64) {
    for ((sum, left), right) in sums.iter_mut().zip(left).zip(right) {
        *sum += (left + right) * weight;
    }
}

impl Border {
    /// Folds an index into `0..len`.
    fn fold(self, index: isize, len: usize) -> usize {
        let period = match self {
            Self::Symmetric => 2 * len,
            Self::Reflect => (2 * (len - 1)).max(1),
        };
        let folded = index.rem_euclid(period as isize) as usize;
        match self {
            Self::Symmetric => folded.min(period - 1 - folded),
            Self::Reflect => folded.min(period - folded),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blurring_keeps_mass_and_constants() {
        let mut map = vec![0.0; 7 * 5];
        map[7 * 2 + 3] = 1.0;
        // Two passes of 25 and of 73 products in f64, 2⁻⁵³ each, of numbers up to 2.5: below 1e-13.
        assert!((gaussian(&map, 7, 5, 3.0, Border::Symmetric).iter().sum::<f64>() - 1.0).abs() < 1e-12);
        assert!(gaussian(&[2.5; 35], 7, 5, 9.0, Border::Symmetric).iter().all(|value| (value - 2.5).abs() < 1e-12));
    }

    #[test]
    fn borders_are_mirrored_as_often_as_needed() {
        let folded = |border: Border| (-4..8).map(|index| border.fold(index, 3)).collect::<Vec<_>>();
        assert_eq!(folded(Border::Symmetric), [2, 2, 1, 0, 0, 1, 2, 2, 1, 0, 0, 1]);
        assert_eq!(folded(Border::Reflect), [0, 1, 2, 1, 0, 1, 2, 1, 0, 1, 2, 1]);
        assert_eq!([-1, 0, 1].map(|index| Border::Reflect.fold(index, 1)), [0, 0, 0]);
        assert_eq!(gaussian(&[7.0], 1, 1, 5.0, Border::Symmetric), [7.0]);
    }

    #[test]
    fn a_sigma_of_zero_changes_nothing() {
        assert_eq!(gaussian(&[1.0, 2.0], 2, 1, 0.0, Border::Symmetric), [1.0, 2.0]);
    }
}
