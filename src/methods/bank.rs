//! A bank of vectors, and the nearest of them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, TchError, Tensor};

use crate::models::checkpoint::{Checkpoint, CheckpointError, Mapped};

/// The vectors that are compared at a time: the products of an image's patches with these stay in the processor's caches.
const BLOCK: i64 = 1024;
/// The vectors of a group.
const GROUP: i64 = 16;
/// The groups of a block; the last one has as many as it needs.
const GROUPS: i64 = BLOCK / GROUP;
/// The patches that are compared with the vectors of their nearest groups at a time: these stay in the caches.
const QUERIES: i64 = 64;

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

/// The bytes of vectors in f32 above which they stay in their file.
const HELD: i64 = 1 << 30;

/// Vectors of normal patches.
#[derive(Debug)]
pub struct Bank {
    vectors: Vectors,
    /// The number of vectors.
    len: i64,
    distance: Distance,
    device: Device,
}

/// The place of a bank's vectors [M, C].
#[derive(Debug)]
enum Vectors {
    /// In memory, as [`beside_squares`] has them.
    Held(Tensor),
    /// In their file, as the fit has kept them.
    InFile(Mapped),
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
    /// Returns the most bytes of memory that making a bank of so many vectors of so many numbers takes: the bank, the vectors
    /// in f32, and the same of length 1.
    pub const fn memory(vectors: u64, channels: u64) -> u64 {
        size_of::<f32>() as u64 * (vectors.next_multiple_of(GROUP as u64) * (channels + 1) + 2 * vectors * channels)
    }

    /// Makes a bank of vectors [M, C] of any float type.
    pub fn new(vectors: &Tensor, distance: Distance, device: Device) -> Result<Self, TchError> {
        let held = beside_squares(vectors, distance, device)?;
        Ok(Self { vectors: Vectors::Held(held), len: vectors.size()[0], distance, device })
    }

    /// Makes a bank of a tensor that a fit has kept. On the CPU, vectors that would take more than a gigabyte of memory
    /// stay in their file.
    pub fn open(fitted: &Checkpoint, name: &str, distance: Distance, device: Device) -> Result<Self, CheckpointError> {
        let vectors = fitted.mapped(name)?;
        let bytes = vectors.size().iter().product::<i64>() * size_of::<f32>() as i64;
        if device == Device::Cpu && bytes > HELD {
            let len = vectors.size()[0];
            return Ok(Self { vectors: Vectors::InFile(vectors), len, distance, device });
        }
        Self::new(&fitted.tensor(name)?, distance, device).map_err(|source| {
            let path = fitted.path().to_owned();
            CheckpointError::Torch { path, name: name.to_owned(), source }
        })
    }

    /// Returns the number of vectors.
    pub const fn len(&self) -> i64 {
        self.len
    }

    /// Returns true if there is no vector.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the block of vectors that begins at `start`, as [`beside_squares`] has them.
    fn block(&self, start: i64) -> Result<Tensor, TchError> {
        match &self.vectors {
            Vectors::Held(held) => held.f_narrow(0, start, BLOCK.min(held.size()[0] - start)),
            Vectors::InFile(vectors) => {
                let vectors = vectors.rows(start, BLOCK.min(self.len - start), Kind::Float, Device::Cpu)?;
                beside_squares(&vectors, self.distance, Device::Cpu)
            }
        }
    }

    /// Returns the vectors at positions `[N]`, as [N, C].
    pub fn at(&self, positions: &Tensor) -> Result<Tensor, TchError> {
        match &self.vectors {
            Vectors::Held(held) => held.f_narrow(1, 0, held.size()[1] - 1)?.f_index_select(0, positions),
            Vectors::InFile(vectors) => Ok(scaled(&vectors.rows_at(positions, Kind::Float)?, self.distance)),
        }
    }

    /// Finds the `count` nearest vectors of each query [P, C]; all of them if the bank has fewer.
    ///
    /// The `count` nearest vectors lie in the `count` groups whose nearest vectors are nearest. These groups are found by
    /// |b|² - 2 q · b, a matrix product in f32, and the distances to their vectors by the differences, so that a vector
    /// of the bank is at a distance of 0.
    pub fn nearest(&self, queries: &Tensor, count: i64) -> Result<Nearest, TchError> {
        if self.is_empty() {
            return Err(TchError::Torch("a bank without vectors has no nearest one".to_owned()));
        }
        let queries = scaled(&queries.f_to_device(self.device)?.f_to_kind(Kind::Float)?, self.distance);
        let groups = self.nearest_groups(&queries, count)?; // [P, groups]
        let (total, count) = (queries.size()[0], count.min(self.len));
        let (mut distances, mut indices) = (Vec::new(), Vec::new());
        for start in (0..total).step_by(QUERIES as usize) {
            let length = QUERIES.min(total - start);
            let (queries, groups) = (queries.f_narrow(0, start, length)?, groups.f_narrow(0, start, length)?);
            let found = self.nearest_in(&queries, &groups, count)?;
            distances.push(found.0);
            indices.push(found.1);
        }
        let distances = Tensor::f_cat(&distances, 0)?;
        let distances = match self.distance {
            Distance::Euclidean => distances,
            Distance::SquaredEuclidean => distances.f_square()?,
            Distance::Cosine => distances.f_square()? / 2.,
        };
        Ok(Nearest { distances, indices: Tensor::f_cat(&indices, 0)? })
    }

    /// Returns the `count` groups whose nearest vectors are nearest to queries [P, C]: i64 [P, count]. The vectors of a
    /// group lie as far apart as its block has groups, so that minima over them are taken over neighbouring numbers at once.
    fn nearest_groups(&self, queries: &Tensor, count: i64) -> Result<Tensor, TchError> {
        // The square behind each vector is multiplied by 1: a product is cheaper than a product and a sum.
        let one = Tensor::f_ones([queries.size()[0], 1], (Kind::Float, self.device))?;
        let queries = Tensor::f_cat(&[queries * -2., one], 1)?; // [P, C + 1]
        let mut minima = Vec::new();
        for start in (0..self.len).step_by(BLOCK as usize) {
            let partial = queries.f_mm(&self.block(start)?.f_tr()?)?; // [P, vectors], less |q|²
            let groups = partial.size()[1] / GROUP;
            minima.push(partial.f_view([-1, GROUP, groups])?.f_amin([1].as_slice(), false)?);
        }
        let minima = Tensor::f_cat(&minima, 1)?; // [P, groups]
        Ok(minima.f_topk(count.min(minima.size()[1]), 1, false, false)?.1)
    }

    /// Returns the `count` smallest distances of each query [Q, C] to the vectors of its groups [Q, G], ascending, and the
    /// positions of these vectors.
    fn nearest_in(&self, queries: &Tensor, groups: &Tensor, count: i64) -> Result<(Tensor, Tensor), TchError> {
        let (rows, channels) = queries.size2()?;
        let blocks = groups.f_divide_scalar_mode(GROUPS, "floor")?;
        let first = groups + &blocks * (BLOCK - GROUPS); // the groups' first vectors
        let last = (self.len - 1) / BLOCK;
        let groups_of_last = (self.len - last * BLOCK + GROUP - 1) / GROUP;
        let apart = blocks.f_eq(last)? * (groups_of_last - GROUPS) + GROUPS;
        let steps = Tensor::f_arange(GROUP, (Kind::Int64, groups.device()))?;
        let candidates = first.f_unsqueeze(2)? + apart.f_unsqueeze(2)? * steps; // [Q, G, GROUP]
        let candidates = candidates.f_view([rows, -1])?;
        // A group may reach beyond the last vector.
        let there = candidates.f_clamp_max(self.len - 1)?;
        let mut differences = self.at(&there.f_view(-1)?)?.f_view([rows, -1, channels])?;
        let differences = differences.f_sub_(&queries.f_unsqueeze(1)?)?;
        let distances = differences.f_norm_scalaropt_dim(2., [2].as_slice(), false)?;
        let distances = distances.f_masked_fill(&candidates.f_ne_tensor(&there)?, f64::INFINITY)?;
        let (distances, at) = distances.f_topk(count, 1, false, true)?;
        Ok((distances, candidates.f_gather(1, &at, false)?))
    }
}

/// Lays vectors [M, C] of any float type out for the product in which their distances are computed: f32 [N, C + 1], of length 1
/// for [`Distance::Cosine`], each with the square of its length behind it. N is the next multiple of [`GROUP`]; the rows beyond M
/// are at an infinite distance from everything.
fn beside_squares(vectors: &Tensor, distance: Distance, device: Device) -> Result<Tensor, TchError> {
    let (rows, channels) = vectors.size2()?;
    let all = Tensor::f_zeros([(rows + GROUP - 1) / GROUP * GROUP, channels + 1], (Kind::Float, device))?;
    let mut values = all.f_narrow(0, 0, rows)?.f_narrow(1, 0, channels)?;
    match distance {
        Distance::Cosine => values.f_copy_(&unit(&vectors.f_to_kind(Kind::Float)?))?,
        _ => values.f_copy_(vectors)?,
    }
    all.f_narrow(1, channels, 1)?
        .f_fill_(f64::INFINITY)?
        .f_narrow(0, 0, rows)?
        .f_copy_(&squares(&values).f_unsqueeze(1)?)?;
    Ok(all)
}

/// Scales vectors to length 1 if distances are those of directions.
fn scaled(vectors: &Tensor, distance: Distance) -> Tensor {
    if distance == Distance::Cosine { unit(vectors) } else { vectors.shallow_clone() }
}

/// Scales vectors [.., C] to length 1. A vector of zeros stays one.
pub(super) fn unit(vectors: &Tensor) -> Tensor {
    vectors / vectors.norm_scalaropt_dim(2., [-1].as_slice(), true).clamp_min(1e-12)
}

/// Returns the squares of the lengths of vectors [N, C]: `[N]`.
pub(super) fn squares(vectors: &Tensor) -> Tensor {
    vectors.square().sum_dim_intlist([1].as_slice(), false, Kind::Float)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::models::checkpoint::to_safetensors;

    fn random(rows: i64) -> Tensor {
        Tensor::randn([rows, 5], tch::kind::FLOAT_CPU)
    }

    /// A bank of whole blocks and of parts of one finds what sorting all distances finds.
    #[test]
    fn nearest_vectors_of_several_blocks_are_those_of_all() {
        tch::manual_seed(3);
        let ways = [(Distance::Euclidean, 1), (Distance::SquaredEuclidean, 4), (Distance::Cosine, 3)];
        let lengths = [2 * BLOCK + 100, 2 * BLOCK, BLOCK + 1, 17];
        for ((distance, count), length) in ways.into_iter().flat_map(|way| lengths.map(|length| (way, length))) {
            let (vectors, queries) = (random(length), random(7));
            let bank = Bank::new(&vectors, distance, Device::Cpu).unwrap();
            let Nearest { distances, indices } = bank.nearest(&queries, count).unwrap();
            let (a, b) = (queries.to_kind(Kind::Double).unsqueeze(1), vectors.to_kind(Kind::Double).unsqueeze(0));
            let all = match distance {
                Distance::Cosine => 1. - Tensor::cosine_similarity(&a, &b, 2, 1e-12),
                _ => (&a - &b).square().sum_dim_intlist([2].as_slice(), false, Kind::Double),
            };
            let all = if distance == Distance::Euclidean { all.sqrt() } else { all };
            let (expected, at) = all.topk(count, 1, false, true);
            assert_eq!(indices, at, "{distance:?} {length}");
            // Five squares of differences up to 10 each, in f32: 500 · 5 · 2⁻²⁴.
            assert!(f64::try_from((distances - expected).abs().max()).unwrap() < 1.5e-4, "{distance:?}");
        }
    }

    /// Vectors that stay in their file are compared as those in memory are, bit for bit.
    #[test]
    fn bank_in_a_file_finds_what_one_in_memory_finds() {
        tch::manual_seed(4);
        let (vectors, queries) = (random(BLOCK + 100).to_kind(Kind::Half), random(7));
        let tensors = [("bank".to_owned(), vectors.shallow_clone())];
        let file = Checkpoint::from_safetensors(to_safetensors(tensors, HashMap::new()).unwrap()).unwrap();
        for (distance, count) in [(Distance::Euclidean, 1), (Distance::SquaredEuclidean, 4), (Distance::Cosine, 3)] {
            let held = Bank::new(&vectors, distance, Device::Cpu).unwrap();
            let vectors = Vectors::InFile(file.mapped("bank").unwrap());
            let in_file = Bank { vectors, len: held.len(), distance, device: Device::Cpu };
            let [a, b] = [&held, &in_file].map(|bank| bank.nearest(&queries, count).unwrap());
            assert!(a.indices == b.indices && a.distances == b.distances, "{distance:?}");
            let at = Tensor::from_slice(&[BLOCK + 99, 0, 5]);
            assert_eq!(held.at(&at).unwrap(), in_file.at(&at).unwrap(), "{distance:?}");
        }
    }

    #[test]
    fn vector_of_the_bank_is_at_a_distance_of_zero() {
        let vectors = random(3);
        let bank = Bank::new(&vectors, Distance::Euclidean, Device::Cpu).unwrap();
        assert_eq!(Vec::<f32>::try_from(bank.nearest(&vectors, 1).unwrap().distances.view(-1)).unwrap(), [0.; 3]);
    }

    #[test]
    fn bank_that_is_smaller_than_the_count_gives_all_it_has() {
        let bank = Bank::new(&random(2), Distance::Euclidean, Device::Cpu).unwrap();
        assert_eq!(bank.nearest(&random(3), 9).unwrap().distances.size(), [3, 2]);
        let empty = Bank::new(&random(0), Distance::Euclidean, Device::Cpu).unwrap();
        assert!(empty.is_empty() && empty.nearest(&random(1), 1).is_err());
    }
}
