//! A bank of vectors, and the nearest of them.

mod axes;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, TchError, Tensor};
use vlmdiff_nearest as exact;

use crate::models::checkpoint::{Checkpoint, CheckpointError, Mapped};
use axes::Axes;

/// The vectors that are compared at a time.
const BLOCK: i64 = 1024;
/// The queries that they are compared with at a time: the products of both stay in the processor's caches.
const QUERIES: i64 = 256;
/// The number of queries below which distances to all vectors are computed, since bounds begin with work for each vector.
const FEW: i64 = 32;
/// About how many vectors of a bank the axes are computed from.
const SAMPLE: i64 = 2048;

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
    /// The axes along which bounds of distances are computed; None if they are computed of all numbers of a vector.
    axes: Option<Axes>,
    /// The number of vectors.
    len: i64,
    distance: Distance,
    device: Device,
}

/// The place of a bank's vectors [M, C].
#[derive(Debug)]
enum Vectors {
    /// In memory: f32, contiguous, and their coordinates if many queries are expected.
    Held { vectors: Tensor, coordinates: Option<Coordinates> },
    /// In their file, as the fit has kept them.
    InFile(Mapped),
}

/// Coordinates of vectors, from which bounds of their distances are computed: no two vectors are closer than their coordinates.
#[derive(Debug)]
struct Coordinates {
    /// f32 [N, K].
    values: Tensor,
    /// The squared lengths of the rows of `values`, f32 `[N]`.
    squares: Tensor,
}

impl Coordinates {
    fn of(vectors: &Tensor, axes: Option<&Axes>) -> Result<Self, TchError> {
        let values = match axes {
            Some(axes) => axes.coordinates(vectors)?,
            None => vectors.shallow_clone(),
        };
        Ok(Self { squares: squares(&values), values })
    }

    fn narrow(&self, start: i64, length: i64) -> Result<Self, TchError> {
        let [values, squares] = [&self.values, &self.squares].map(|rows| rows.f_narrow(0, start, length));
        Ok(Self { values: values?, squares: squares? })
    }
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
    /// Returns the most bytes of memory that [`new`](Self::new) takes for so many vectors of so many numbers: the vectors in f32, and
    /// as many numbers again while they are scaled.
    pub const fn memory(vectors: u64, channels: u64) -> u64 {
        2 * size_of::<f32>() as u64 * vectors * channels
    }

    /// Makes a bank of vectors [M, C] of any float type, for a few queries at a time. Vectors in f32 on this device may be shared, and
    /// must not be written to.
    pub fn new(vectors: &Tensor, distance: Distance, device: Device) -> Result<Self, TchError> {
        let vectors = prepared(vectors, distance, device)?;
        let len = vectors.size()[0];
        Ok(Self { vectors: Vectors::Held { vectors, coordinates: None }, axes: None, len, distance, device })
    }

    /// Makes a bank of a tensor that a fit has kept. On the CPU, vectors that would take more than a gigabyte of memory
    /// stay in their file.
    pub fn open(fitted: &Checkpoint, name: &str, distance: Distance, device: Device) -> Result<Self, CheckpointError> {
        let vectors = fitted.mapped(name)?;
        let bytes = vectors.size().iter().product::<i64>() * size_of::<f32>() as i64;
        let is_held = device != Device::Cpu || bytes <= HELD;
        Self::of(vectors, is_held, distance, device).map_err(|source| {
            let path = fitted.path().to_owned();
            CheckpointError::Torch { path, name: name.to_owned(), source }
        })
    }

    /// Makes a bank of vectors in a file, and holds them in memory or not.
    fn of(vectors: Mapped, is_held: bool, distance: Distance, device: Device) -> Result<Self, TchError> {
        let (len, is_bounded) = (vectors.size()[0], device == Device::Cpu);
        let axes = if is_bounded {
            let sample = Tensor::f_arange_start_step(0, len, (len / SAMPLE).max(1), (Kind::Int64, Device::Cpu))?;
            Axes::of(&scaled(&vectors.rows_at(&sample, Kind::Float)?, distance))?
        } else {
            None
        };
        let vectors = if is_held {
            let vectors = scaled(&vectors.rows(0, len, Kind::Float, device)?, distance);
            let coordinates = is_bounded.then(|| Coordinates::of(&vectors, axes.as_ref())).transpose()?;
            Vectors::Held { vectors, coordinates }
        } else {
            Vectors::InFile(vectors)
        };
        Ok(Self { vectors, axes, len, distance, device })
    }

    /// Returns the number of vectors.
    pub const fn len(&self) -> i64 {
        self.len
    }

    /// Returns true if there is no vector.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the number of numbers of a vector.
    fn channels(&self) -> i64 {
        match &self.vectors {
            Vectors::Held { vectors, .. } => vectors.size()[1],
            Vectors::InFile(vectors) => vectors.size()[1],
        }
    }

    /// Returns the block of vectors that begins at `start`, f32 [N, C].
    fn block(&self, start: i64) -> Result<Tensor, TchError> {
        let length = BLOCK.min(self.len - start);
        match &self.vectors {
            Vectors::Held { vectors, .. } => vectors.f_narrow(0, start, length),
            Vectors::InFile(vectors) => {
                Ok(scaled(&vectors.rows(start, length, Kind::Float, Device::Cpu)?, self.distance))
            }
        }
    }

    /// Returns the coordinates of a block.
    fn coordinates(&self, start: i64, block: &Tensor) -> Result<Coordinates, TchError> {
        match &self.vectors {
            Vectors::Held { coordinates: Some(coordinates), .. } => coordinates.narrow(start, block.size()[0]),
            _ => Coordinates::of(block, self.axes.as_ref()),
        }
    }

    /// Returns the vectors at positions `[N]`, as [N, C].
    pub fn at(&self, positions: &Tensor) -> Result<Tensor, TchError> {
        match &self.vectors {
            Vectors::Held { vectors, .. } => vectors.f_index_select(0, positions),
            Vectors::InFile(vectors) => Ok(scaled(&vectors.rows_at(positions, Kind::Float)?, self.distance)),
        }
    }

    /// Finds the `count` nearest vectors of each query [P, C]; all of them if the bank has fewer.
    ///
    /// Distances are those of the differences, so that a vector of the bank is at a distance of 0.
    pub fn nearest(&self, queries: &Tensor, count: i64) -> Result<Nearest, TchError> {
        if self.is_empty() {
            return Err(TchError::Torch("a bank without vectors has no nearest one".to_owned()));
        }
        let queries = prepared(queries, self.distance, self.device)?;
        let (numbers, expected) = (queries.size2()?.1, self.channels());
        if numbers != expected {
            return Err(TchError::Torch(format!(
                "vectors of {numbers} numbers beside a bank of vectors of {expected}"
            )));
        }
        let count = count.min(self.len);
        let (squares, indices) = if self.device == Device::Cpu {
            self.by_bounds(&queries, count)?
        } else {
            self.by_distances(&queries, count)?
        };
        let distances = match self.distance {
            Distance::Euclidean => squares.f_sqrt()?,
            Distance::SquaredEuclidean => squares,
            Distance::Cosine => squares / 2.,
        };
        Ok(Nearest { distances, indices })
    }

    /// Finds the nearest vectors on the CPU: the squared distances f32 [P, count], ascending, and the positions. Of many queries,
    /// distances are computed where bounds allow the vector to be among the nearest; a matrix product makes the bounds of all.
    fn by_bounds(&self, queries: &Tensor, count: i64) -> Result<(Tensor, Tensor), TchError> {
        let total = queries.size()[0];
        let is_bounded = total >= FEW;
        let batch = |start| {
            let queries = queries.f_narrow(0, start, QUERIES.min(total - start))?;
            let found = exact::Nearest::new(queries.size()[0] as usize, count as usize);
            let coordinates = is_bounded.then(|| Coordinates::of(&queries, self.axes.as_ref())).transpose()?;
            let factors = coordinates.map(|coordinates| (coordinates.squares, coordinates.values * -2.));
            Ok((queries, factors, found))
        };
        let mut batches = (0..total).step_by(QUERIES as usize).map(batch).collect::<Result<Vec<_>, TchError>>()?;
        for start in (0..self.len).step_by(BLOCK as usize) {
            let block = self.block(start)?;
            let coordinates = is_bounded.then(|| self.coordinates(start, &block)).transpose()?;
            for (queries, factors, found) in &mut batches {
                let Some(((squares, factors), coordinates)) = factors.as_ref().zip(coordinates.as_ref()) else {
                    found.add(rows(queries), rows(&block), None);
                    continue;
                };
                let products = factors.f_mm(&coordinates.values.f_tr()?)?;
                let bounds = exact::Bounds {
                    query_squares: floats(squares),
                    vector_squares: floats(&coordinates.squares),
                    products: floats(&products),
                };
                found.add(rows(queries), rows(&block), Some(bounds));
            }
        }
        let (squares, indices): (Vec<_>, Vec<_>) = batches.into_iter().map(|(_, _, found)| found.finish()).unzip();
        let shape = [total, count];
        Ok((
            Tensor::f_from_slice(&squares.concat())?.f_view(shape)?,
            Tensor::f_from_slice(&indices.concat())?.f_view(shape)?,
        ))
    }

    /// Does what [`by_bounds`](Self::by_bounds) does on any device, by all distances.
    fn by_distances(&self, queries: &Tensor, count: i64) -> Result<(Tensor, Tensor), TchError> {
        let (mut distances, mut indices) = (Vec::new(), Vec::new());
        for start in (0..self.len).step_by(BLOCK as usize) {
            let block = self.block(start)?;
            // Mode 2 never expands the squares, which would not be exact.
            let found = Tensor::f_cdist(queries, &block, 2., 2)?.f_topk(count.min(block.size()[0]), 1, false, true)?;
            distances.push(found.0);
            indices.push(found.1 + start);
        }
        let (distances, at) = Tensor::f_cat(&distances, 1)?.f_topk(count, 1, false, true)?;
        Ok((distances.f_square()?, Tensor::f_cat(&indices, 1)?.f_gather(1, &at, false)?))
    }
}

/// Returns vectors of any float type as they are compared: f32, contiguous, on a device, and of length 1 for
/// [`Distance::Cosine`].
fn prepared(vectors: &Tensor, distance: Distance, device: Device) -> Result<Tensor, TchError> {
    scaled(&vectors.f_to_device(device)?.f_to_kind(Kind::Float)?, distance).f_contiguous()
}

/// Returns the rows of a contiguous tensor [N, C] in f32 on the CPU.
fn rows(tensor: &Tensor) -> exact::Vectors<'_> {
    exact::Vectors { values: floats(tensor), channels: tensor.size()[1] as usize }
}

/// Returns the numbers of a contiguous tensor in f32 on the CPU.
fn floats(tensor: &Tensor) -> &[f32] {
    assert!(tensor.is_contiguous() && tensor.kind() == Kind::Float && tensor.device() == Device::Cpu);
    if tensor.numel() == 0 {
        return &[]; // such a tensor may have no memory
    }
    // SAFETY: the tensor has `numel` numbers of type f32 side by side in memory of this process, by the lines above, which live as long
    // as it is borrowed. Nothing writes to them meanwhile: nothing in this module does, and callers lend queries for a call, and vectors of
    // `Bank::new` as its documentation says.
    unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast(), tensor.numel()) }
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

    /// Vectors [N, 40] whose numbers follow from six, nearly.
    fn related(rows: i64) -> Tensor {
        let kind = tch::kind::FLOAT_CPU;
        Tensor::randn([rows, 6], kind).mm(&Tensor::randn([6, 40], kind)) + Tensor::randn([rows, 40], kind) * 0.3 + 5.
    }

    fn mapped(vectors: &Tensor) -> Mapped {
        let tensors = [("bank".to_owned(), vectors.shallow_clone())];
        let file = Checkpoint::from_safetensors(to_safetensors(tensors, HashMap::new()).unwrap()).unwrap();
        file.mapped("bank").unwrap()
    }

    const WAYS: [(Distance, i64); 3] =
        [(Distance::Euclidean, 1), (Distance::SquaredEuclidean, 4), (Distance::Cosine, 3)];

    /// A bank of whole blocks and of parts of one finds what sorting all distances finds, with and without axes, for many queries and
    /// for few, and as other devices find it.
    #[test]
    fn nearest_vectors_of_several_blocks_are_those_of_all() {
        tch::manual_seed(3);
        let lengths = [2 * BLOCK + 100, 2 * BLOCK, BLOCK + 1, 17];
        for ((distance, count), length) in WAYS.into_iter().flat_map(|way| lengths.map(|length| (way, length))) {
            for (make, has_axes) in [(random as fn(i64) -> Tensor, false), (related, length > 17)] {
                let all = make(length + FEW);
                let (vectors, queries) = (all.narrow(0, 0, length), all.narrow(0, length, FEW));
                let bank = Bank::of(mapped(&vectors), true, distance, Device::Cpu).unwrap();
                assert_eq!(bank.axes.is_some(), has_axes, "{length}");
                let (a, b) = (queries.to_kind(Kind::Double).unsqueeze(1), vectors.to_kind(Kind::Double).unsqueeze(0));
                let all = match distance {
                    Distance::Cosine => 1. - Tensor::cosine_similarity(&a, &b, 2, 1e-12),
                    _ => (&a - &b).square().sum_dim_intlist([2].as_slice(), false, Kind::Double),
                };
                let all = if distance == Distance::Euclidean { all.sqrt() } else { all };
                let (expected, at) = all.topk(count, 1, false, true);
                for few in [FEW, 7] {
                    let Nearest { distances, indices } = bank.nearest(&queries.narrow(0, 0, few), count).unwrap();
                    assert_eq!(indices, at.narrow(0, 0, few), "{distance:?} {length}");
                    let wrong =
                        (&distances - expected.narrow(0, 0, few)).abs() / expected.narrow(0, 0, few).clamp_min(1e-3);
                    // 40 roundings of numbers up to 1, as a part of a distance that counts as 1e-3 at least: 40 · 2⁻²⁴ · 1000.
                    assert!(f64::try_from(wrong.max()).unwrap() < 2.4e-3, "{distance:?}");
                }
                let queries = scaled(&queries, distance);
                let (squares, indices) = bank.by_bounds(&queries, count).unwrap();
                let (on_device, at) = bank.by_distances(&queries, count).unwrap();
                assert!(indices == at && squares.allclose(&on_device, 1e-4, 1e-6, false), "{distance:?} {length}");
            }
        }
    }

    /// Vectors that stay in their file are compared as those in memory are, bit for bit.
    #[test]
    fn bank_in_a_file_finds_what_one_in_memory_finds() {
        tch::manual_seed(4);
        let (vectors, queries) = (related(BLOCK + 100).to_kind(Kind::Half), related(FEW));
        for (distance, count) in WAYS {
            let [held, in_file] =
                [true, false].map(|is_held| Bank::of(mapped(&vectors), is_held, distance, Device::Cpu).unwrap());
            let [a, b] = [&held, &in_file].map(|bank| bank.nearest(&queries, count).unwrap());
            assert!(a.indices == b.indices && a.distances == b.distances, "{distance:?}");
            let at = Tensor::from_slice(&[BLOCK + 99, 0, 5]);
            assert_eq!(held.at(&at).unwrap(), in_file.at(&at).unwrap(), "{distance:?}");
        }
    }

    /// Rounding puts no vector beyond its bound, where lengths are large beside distances.
    #[test]
    fn many_queries_find_what_few_find() {
        tch::manual_seed(5);
        let all = Tensor::randn([300 + FEW, 1536], tch::kind::FLOAT_CPU) + 1000.;
        let bank = Bank::of(mapped(&all.narrow(0, 0, 300)), true, Distance::Euclidean, Device::Cpu).unwrap();
        let queries = all.narrow(0, 300, FEW);
        let many = bank.nearest(&queries, 2).unwrap();
        for row in 0..FEW {
            let one = bank.nearest(&queries.narrow(0, row, 1), 2).unwrap();
            assert_eq!(
                (one.distances, one.indices),
                (many.distances.narrow(0, row, 1), many.indices.narrow(0, row, 1))
            );
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
        assert!(bank.nearest(&related(1), 1).is_err(), "vectors of 40 numbers beside a bank of vectors of 5");
    }
}
