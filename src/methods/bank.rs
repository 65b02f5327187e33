//! A bank of vectors, and the nearest of them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, TchError, Tensor};

/// The vectors of the bank that are compared at a time. The distances of an image's patches to these are in memory at
/// once: 64 MB for 1,000 patches.
const BLOCK: i64 = 16_384;

/// The measure of the distance between two vectors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Distance {
    /// The length of the difference.
    #[default]
    Euclidean,
    /// The square of that.
    SquaredEuclidean,
    /// One minus the cosine of the angle.
    Cosine,
}

/// Vectors of normal patches.
#[derive(Debug)]
pub struct Bank {
    /// The vectors, f32 [M, C], of length 1 for [`Distance::Cosine`].
    vectors: Tensor,
    /// The squares of their lengths, f32 `[M]`.
    squares: Tensor,
    distance: Distance,
}

/// The nearest vectors of a bank.
#[derive(Debug)]
pub struct Nearest {
    /// The distances, f32 [P, K], ascending.
    pub distances: Tensor,
    /// The positions in the bank, i64 [P, K].
    pub indices: Tensor,
}

impl Bank {
    /// Makes a bank of vectors [M, C] of any float type.
    pub fn new(vectors: &Tensor, distance: Distance, device: Device) -> Result<Self, TchError> {
        let vectors = scaled(&vectors.f_to_device(device)?.f_to_kind(Kind::Float)?, distance);
        let squares = squares(&vectors);
        Ok(Self { vectors, squares, distance })
    }

    /// Returns the number of vectors.
    pub fn len(&self) -> i64 {
        self.squares.size()[0]
    }

    /// Returns true if there is no vector.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Finds the `count` nearest vectors of each query [P, C]; all of them if the bank has fewer.
    ///
    /// Distances come from |q|² - 2 q · b + |b|², of which the product is a matrix product in f32. A vector that is in
    /// the bank is therefore at a distance of a rounding error and not of 0.
    pub fn nearest(&self, queries: &Tensor, count: i64) -> Result<Nearest, TchError> {
        let queries = scaled(&queries.f_to_device(self.vectors.device())?.f_to_kind(Kind::Float)?, self.distance);
        let count = count.min(self.len());
        let doubled = &queries * -2.;
        let mut best: Option<(Tensor, Tensor)> = None;
        let mut start = 0;
        while start < self.len() {
            let left = self.len() - start;
            // The last columns, which make no group, are a block of their own.
            let length = if left < GROUP { left } else { BLOCK.min(left - left % GROUP) };
            let (vectors, squares) = (self.vectors.narrow(0, start, length), self.squares.narrow(0, start, length));
            let partial = squares.f_addmm(&doubled, &vectors.tr())?; // [P, length], less |q|²
            let found = smallest(&partial, count.min(length))?;
            let found = (found.0, found.1 + start);
            best = Some(match best {
                None => found,
                Some(before) => {
                    let distances = Tensor::f_cat(&[before.0, found.0], 1)?;
                    let indices = Tensor::f_cat(&[before.1, found.1], 1)?;
                    let (distances, at) = smallest(&distances, count.min(distances.size()[1]))?;
                    (distances, indices.f_gather(1, &at, false)?)
                }
            });
            start += length;
        }
        let empty = || TchError::Torch("a bank without vectors has no nearest one".to_owned());
        let (partial, indices) = best.ok_or_else(empty)?;
        let squared = (partial + self::squares(&queries).unsqueeze(1)).clamp_min(0.);
        let distances = match self.distance {
            Distance::Euclidean => squared.sqrt(),
            Distance::SquaredEuclidean => squared,
            Distance::Cosine => squared / 2.,
        };
        Ok(Nearest { distances, indices })
    }

    /// Returns the vectors at positions `[N]`, as [N, C].
    pub fn at(&self, positions: &Tensor) -> Result<Tensor, TchError> {
        self.vectors.f_index_select(0, positions)
    }
}

/// The columns of a group of [`smallest`].
const GROUP: i64 = 16;

/// Returns the `count` smallest values of each row of [P, M], ascending, and their positions.
///
/// A selection over all columns takes half as long as the matrix product that makes them. The smallest values lie in
/// the groups of columns with the smallest minima, of which there are `count`: groups are selected by one pass over
/// all columns, and values among those of the selected groups.
fn smallest(values: &Tensor, count: i64) -> Result<(Tensor, Tensor), TchError> {
    let (rows, columns) = values.size2()?;
    let groups = columns / GROUP;
    if columns % GROUP != 0 || groups <= count {
        return values.f_topk(count, 1, false, true);
    }
    // Columns of a group lie `groups` apart, so that the minima are taken over neighbouring numbers at once.
    let minima = values.f_view([rows, GROUP, groups])?.f_amin([1].as_slice(), false)?; // [P, groups]
    let chosen = minima.f_topk(count, 1, false, false)?.1; // [P, count]
    let steps = Tensor::f_arange(GROUP, (Kind::Int64, values.device()))? * groups;
    let candidates = (chosen.unsqueeze(2) + steps).f_view([rows, count * GROUP])?;
    let (smallest, at) = values.f_gather(1, &candidates, false)?.f_topk(count, 1, false, true)?;
    Ok((smallest, candidates.f_gather(1, &at, false)?))
}

/// Scales vectors to length 1 if distances are those of directions.
fn scaled(vectors: &Tensor, distance: Distance) -> Tensor {
    if distance != Distance::Cosine {
        return vectors.shallow_clone();
    }
    vectors / vectors.norm_scalaropt_dim(2., [1].as_slice(), true).clamp_min(1e-12)
}

/// Returns the squares of the lengths of vectors [N, C]: `[N]`.
pub(super) fn squares(vectors: &Tensor) -> Tensor {
    vectors.square().sum_dim_intlist([1].as_slice(), false, Kind::Float)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(rows: i64) -> Tensor {
        Tensor::randn([rows, 5], tch::kind::FLOAT_CPU)
    }

    /// A bank of several blocks finds what sorting all distances finds.
    #[test]
    fn nearest_vectors_of_several_blocks_are_those_of_all() {
        tch::manual_seed(3);
        let (vectors, queries) = (random(2 * BLOCK + 100), random(7));
        for (distance, count) in [(Distance::Euclidean, 1), (Distance::SquaredEuclidean, 4), (Distance::Cosine, 3)] {
            let bank = Bank::new(&vectors, distance, Device::Cpu).unwrap();
            let Nearest { distances, indices } = bank.nearest(&queries, count).unwrap();
            let (a, b) = (queries.to_kind(Kind::Double).unsqueeze(1), vectors.to_kind(Kind::Double).unsqueeze(0));
            let all = match distance {
                Distance::Cosine => 1. - Tensor::cosine_similarity(&a, &b, 2, 1e-12),
                _ => (&a - &b).square().sum_dim_intlist([2].as_slice(), false, Kind::Double),
            };
            let all = if distance == Distance::Euclidean { all.sqrt() } else { all };
            let (expected, at) = all.topk(count, 1, false, true);
            assert_eq!(indices, at, "{distance:?}");
            // Sums of five products of numbers up to 5 each: 25 · 5 · 2⁻²³, and as a root of at least 1e-3 that by 2e-3.
            assert!(f64::try_from((distances - expected).abs().max()).unwrap() < 1e-2, "{distance:?}");
        }
    }

    #[test]
    fn bank_that_is_smaller_than_the_count_gives_all_it_has() {
        let bank = Bank::new(&random(2), Distance::Euclidean, Device::Cpu).unwrap();
        assert_eq!(bank.nearest(&random(3), 9).unwrap().distances.size(), [3, 2]);
        let empty = Bank::new(&random(0), Distance::Euclidean, Device::Cpu).unwrap();
        assert!(empty.is_empty() && empty.nearest(&random(1), 1).is_err());
    }
}
