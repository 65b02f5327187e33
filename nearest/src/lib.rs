//! The nearest of many vectors to each of some queries: exact, without computing most distances.
//!
//! The caller brings a lower bound of each squared distance, which is cheaper than the distance: that of a projection, say.
//! A distance is computed where the bound does not exceed the largest one that is kept for the query so far. Everything works on
//! slices, without tensors.

/// The part of the squared lengths of a query and a vector by which their bound is lowered, since it is rounded. A product of K
/// numbers in f32 is wrong by √K · 2⁻²⁴ of them as a rule, 3.6e-6 for 3,600 numbers, and by 5e-5 where all its terms are equal.
const ROUNDING: f32 = 1e-4;

/// The number of bounds of which one test tells whether all exceed the limit.
const CHUNK: usize = 32;
/// The number of partial sums, which the compiler lays into the registers for several numbers.
const LANES: usize = 16;

/// Vectors side by side.
#[derive(Clone, Copy, Debug)]
pub struct Vectors<'a> {
    /// The numbers of the vectors, one after another.
    pub values: &'a [f32],
    /// The length of each vector.
    pub channels: usize,
}

impl<'a> Vectors<'a> {
    /// Returns the number of vectors.
    pub fn len(&self) -> usize {
        self.values.len() / self.channels.max(1)
    }

    /// Returns true if there is no vector.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn get(&self, at: usize) -> &'a [f32] {
        &self.values[at * self.channels..][..self.channels]
    }
}

/// Lower bounds of the squared distances between P queries and M vectors: |q|² + |v|² - 2 q · v, by coordinates whose distances are no
/// longer than those of the vectors. They may be wrong by what rounding does to a product.
#[derive(Clone, Copy, Debug)]
pub struct Bounds<'a> {
    /// The squared length of the coordinates of each query.
    pub query_squares: &'a [f32],
    /// The squared length of the coordinates of each vector.
    pub vector_squares: &'a [f32],
    /// -2 times the product of the coordinates of each query and each vector: [P, M].
    pub products: &'a [f32],
}

/// The nearest vectors of each of some queries among those seen so far.
#[derive(Debug)]
pub struct Nearest {
    count: usize,
    seen: usize,
    /// `count` for each query. Places beyond the number of vectors that were seen are empty: a NaN and no index.
    kept: Vec<Near>,
}

impl Nearest {
    /// Keeps the `count` nearest vectors of each query. Of vectors at the same distance the first ones are kept. A distance that is
    /// not a number is larger than all others.
    pub fn new(queries: usize, count: usize) -> Self {
        Self { count, seen: 0, kept: vec![Near { square: f32::NAN, index: usize::MAX }; queries * count] }
    }

    /// Compares each query with each of these vectors, or with those that `bounds` allow.
    ///
    /// # Panics
    /// The numbers of queries, vectors or bounds do not fit each other.
    pub fn add(&mut self, queries: Vectors<'_>, vectors: Vectors<'_>, bounds: Option<Bounds<'_>>) {
        let (total, first) = (vectors.len(), self.seen);
        assert_eq!(self.kept.len(), self.count * queries.len(), "the same queries at each call");
        assert!(total == 0 || queries.channels == vectors.channels, "vectors of the same length");
        if let Some(bounds) = bounds {
            assert_eq!((bounds.query_squares.len(), bounds.vector_squares.len()), (queries.len(), total));
            assert_eq!(bounds.products.len(), queries.len() * total, "a product for each pair");
        }
        self.seen += total;
        if self.count == 0 {
            return;
        }
        // Until `count` vectors are known, each one is kept.
        let all = bounds.map_or(total, |_| self.count.saturating_sub(first).min(total));
        let longest = bounds.map_or(0., |bounds| bounds.vector_squares.iter().copied().fold(0., f32::max));
        for row in 0..queries.len() {
            let query = queries.get(row);
            let (done, rest) = self.kept.split_at_mut(row * self.count);
            let mut kept = Kept(&mut rest[..self.count]);
            for at in 0..all {
                kept.offer(squared_distance(query, vectors.get(at)), first + at);
            }
            let Some(Bounds { query_squares, vector_squares, products }) = bounds else { continue };
            // Queries side by side are alike as a rule, so that the vectors near to the one before set a low limit from the start.
            let near_before = done[done.len().saturating_sub(self.count)..].iter().map(|near| near.index);
            for index in near_before.filter(|index| (first + all..first + total).contains(index)) {
                kept.offer(squared_distance(query, vectors.get(index - first)), index);
            }
            let products = &products[row * total..][..total];
            let lowered = query_squares[row] - ROUNDING * (query_squares[row] + longest);
            let mut limit = kept.largest() - lowered;
            for start in (all..total).step_by(CHUNK) {
                let end = total.min(start + CHUNK);
                let (squares, products) = (&vector_squares[start..end], &products[start..end]);
                if all_exceed(limit, squares, products) {
                    continue;
                }
                for (at, (square, product)) in squares.iter().zip(products).enumerate() {
                    if !exceeds(limit, *square, *product) {
                        kept.offer(squared_distance(query, vectors.get(start + at)), first + start + at);
                        limit = kept.largest() - lowered;
                    }
                }
            }
        }
    }

    /// Returns the squares of the distances, ascending, and the numbers of the vectors, counted from 0 in the order in which they
    /// were added: both [queries, count].
    ///
    /// # Panics
    /// Fewer vectors were added than are kept.
    pub fn finish(self) -> (Vec<f32>, Vec<i64>) {
        assert!(self.seen >= self.count, "{} of {} vectors", self.count, self.seen);
        self.kept.into_iter().map(|near| (near.square, near.index as i64)).unzip()
    }
}

/// A vector that is kept for a query.
#[derive(Clone, Copy, Debug)]
struct Near {
    square: f32,
    index: usize,
}

/// The vectors that are kept for one query, ordered by distance, and at the same distance by their number.
struct Kept<'a>(&'a mut [Near]);

impl Kept<'_> {
    fn largest(&self) -> f32 {
        self.0[self.0.len() - 1].square
    }

    /// Keeps a vector if it is nearer than the farthest one and is not kept yet.
    fn offer(&mut self, square: f32, index: usize) {
        // NaNs of any sign and payload become one, since their order depends on both.
        let square = if square.is_nan() { f32::NAN } else { square };
        let order = |near: &Near| near.square.total_cmp(&square).then(near.index.cmp(&index));
        if let Err(at) = self.0.binary_search_by(order)
            && at < self.0.len()
        {
            self.0.copy_within(at..self.0.len() - 1, at + 1);
            self.0[at] = Near { square, index };
        }
    }
}

/// Returns true if a bound exceeds the limit. What is not a number exceeds nothing.
fn exceeds(limit: f32, square: f32, product: f32) -> bool {
    square + product > limit
}

/// Returns true if each of the bounds exceeds the limit.
fn all_exceed(limit: f32, squares: &[f32], products: &[f32]) -> bool {
    let ((squares, other_squares), (products, others)) = (squares.as_chunks::<LANES>(), products.as_chunks::<LANES>());
    // Numbers, since the compiler does not compare truth values side by side.
    let mut within = [0u32; LANES];
    for (squares, products) in squares.iter().zip(products) {
        for lane in 0..LANES {
            within[lane] |= u32::from(!exceeds(limit, squares[lane], products[lane]));
        }
    }
    within.iter().fold(0, |any, lane| any | lane) == 0
        && other_squares.iter().zip(others).all(|(square, product)| exceeds(limit, *square, *product))
}

/// Returns the square of the distance between two vectors. It is summed in parts, which processors add side by side.
fn squared_distance(a: &[f32], b: &[f32]) -> f32 {
    let ((a, rest_of_a), (b, rest_of_b)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let mut sums = [0.; LANES];
    for (a, b) in a.iter().zip(b) {
        for lane in 0..LANES {
            let difference = a[lane] - b[lane];
            sums[lane] += difference * difference;
        }
    }
    for (lane, (a, b)) in rest_of_a.iter().zip(rest_of_b).enumerate() {
        sums[lane] += (a - b) * (a - b);
    }
    let halves: [f32; LANES / 2] = std::array::from_fn(|lane| sums[lane] + sums[lane + LANES / 2]);
    halves.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Sorts all distances.
    fn sorted(queries: Vectors<'_>, vectors: Vectors<'_>, count: usize) -> (Vec<f32>, Vec<i64>) {
        let (mut squares, mut indices) = (Vec::new(), Vec::new());
        for row in 0..queries.len() {
            let mut all: Vec<(f32, i64)> =
                (0..vectors.len()).map(|at| (squared_distance(queries.get(row), vectors.get(at)), at as i64)).collect();
            all.sort_by(|a, b| a.0.total_cmp(&b.0));
            squares.extend(all[..count].iter().map(|found| found.0));
            indices.extend(all[..count].iter().map(|found| found.1));
        }
        (squares, indices)
    }

    /// The bounds by the first `kept` numbers and the length of the others.
    fn bounds_of(queries: Vectors<'_>, vectors: Vectors<'_>, kept: usize) -> [Vec<f32>; 3] {
        let part = |vector: &[f32]| {
            let rest = vector[kept..].iter().map(|x| x * x).sum::<f32>().sqrt();
            vector[..kept].iter().copied().chain([rest]).collect::<Vec<f32>>()
        };
        let square = |vector: &[f32]| vector.iter().map(|x| x * x).sum::<f32>();
        let each = |all: Vectors<'_>| (0..all.len()).map(|at| square(all.get(at))).collect();
        let product = |a: &[f32], b: &[f32]| -2. * part(a).iter().zip(part(b)).map(|(a, b)| a * b).sum::<f32>();
        let products = (0..queries.len())
            .flat_map(|row| (0..vectors.len()).map(move |at| product(queries.get(row), vectors.get(at))))
            .collect();
        [each(queries), each(vectors), products]
    }

    proptest! {
        /// Small whole numbers, so that many distances are equal.
        #[test]
        fn vectors_are_those_that_sorting_all_distances_finds(
            channels in 1..20usize, total in 1..90usize, count in 1..6usize, kept in 0..20usize, split in 0..90usize,
            numbers in prop::collection::vec(-3..4i8, 20 * (90 + 4)),
        ) {
            let (count, kept, split) = (count.min(total), kept.min(channels), split.min(total));
            let numbers: Vec<f32> = numbers.into_iter().map(f32::from).collect();
            let (queries, vectors) = numbers.split_at(4 * channels);
            let queries = Vectors { values: queries, channels };
            let part = |from: usize, to: usize| Vectors { values: &vectors[from * channels..to * channels], channels };
            let expected = sorted(queries, part(0, total), count);
            for is_bounded in [false, true] {
                let mut found = Nearest::new(4, count);
                for block in [part(0, split), part(split, total)] {
                    let [of_queries, of_vectors, products] = bounds_of(queries, block, kept);
                    let bounds = Bounds { query_squares: &of_queries, vector_squares: &of_vectors, products: &products };
                    found.add(queries, block, is_bounded.then_some(bounds));
                }
                prop_assert_eq!(found.finish(), expected.clone());
            }
        }
    }

    #[test]
    fn what_is_not_a_number_is_farther_than_all_others() {
        for nan in [f32::NAN, -f32::NAN, f32::from_bits(0x7fff_e000)] {
            let vectors = Vectors { values: &[nan, 5., f32::INFINITY, 1., 3.], channels: 1 };
            let queries = Vectors { values: &[0., nan, f32::INFINITY], channels: 1 };
            let [of_queries, of_vectors, products] = bounds_of(queries, vectors, 1);
            let bounds = Bounds { query_squares: &of_queries, vector_squares: &of_vectors, products: &products };
            for bounds in [None, Some(bounds)] {
                let mut found = Nearest::new(3, 2);
                found.add(queries, vectors, bounds);
                let (squares, indices) = found.finish();
                assert_eq!((&squares[..2], &indices[..2]), (&[1., 9.][..], &[3, 4][..]));
                assert!(squares[2..4].iter().all(|square| square.is_nan()) && indices[2..4] == [0, 1]);
                assert_eq!((&squares[4..], &indices[4..]), (&[f32::INFINITY; 2][..], &[1, 3][..]));
            }
        }
    }

    #[test]
    fn block_without_vectors_changes_nothing() {
        let queries = Vectors { values: &[0., 4.], channels: 1 };
        let mut found = Nearest::new(2, 1);
        for values in [&[][..], &[3., 1.], &[]] {
            let vectors = Vectors { values, channels: 1 };
            let [of_queries, of_vectors, products] = bounds_of(queries, vectors, 1);
            let bounds = Bounds { query_squares: &of_queries, vector_squares: &of_vectors, products: &products };
            found.add(queries, vectors, Some(bounds));
        }
        assert_eq!(found.finish(), (vec![1., 1.], vec![1, 0]));
    }
}
