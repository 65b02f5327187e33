//! Coresets: few vectors that lie close to all others (k-center), chosen greedily; and few at random.

use rand::{RngExt, SeedableRng, seq::index::sample};
use rand_chacha::ChaCha8Rng;
use tch::{Kind, TchError, Tensor};

use super::bank::squares;

/// The first anchor of the greedy choice: for each vector a number, of which the largest is chosen first.
#[derive(Debug)]
pub enum Start {
    /// The mean distance to these vectors, as PatchCore's authors approximate it (`ApproximateGreedyCoresetSampler`).
    MeanDistanceTo(Vec<i64>),
    /// The length of the vector's row in the matrix of all distances (`GreedyCoresetSampler`).
    AllDistances,
    /// This vector is chosen first, as in anomalib.
    Vector(i64),
}

/// Chooses `count` of the vectors f32 [N, C], each farthest from those chosen before it; the first of several that are
/// equally far. Returns their positions in the order of the choice.
///
/// The result depends on the vectors and their order alone.
///
/// # Panics
/// If `count` is more than N.
pub fn greedy(vectors: &Tensor, count: i64, start: &Start) -> Result<Vec<i64>, TchError> {
    let total = vectors.size()[0];
    assert!(count <= total, "{count} of {total} vectors cannot be chosen");
    let squares = squares(vectors); // [N]
    let distances = |at: i64| -> Result<Tensor, TchError> {
        let vector = vectors.get(at);
        let partial = squares.f_addmv(vectors, &(vector * -2.))?;
        Ok((partial + squares.get(at)).clamp_min_(0.).sqrt_()) // [N]
    };
    let mut chosen = Vec::with_capacity(count as usize);
    let mut anchors = match start {
        Start::Vector(first) => {
            chosen.push(*first);
            let anchors = distances(*first)?;
            taken(&anchors, *first);
            anchors
        }
        Start::MeanDistanceTo(points) => {
            let mut sum = Tensor::zeros([total], (Kind::Float, vectors.device()));
            for point in points {
                sum += distances(*point)?;
            }
            sum / points.len() as f64
        }
        Start::AllDistances => {
            let mut lengths = Vec::with_capacity(total as usize);
            for at in 0..total {
                lengths.push(distances(at)?.f_norm()?);
            }
            Tensor::f_stack(&lengths, 0)?
        }
    };
    while (chosen.len() as i64) < count {
        let farthest = i64::try_from(anchors.f_argmax(0, false)?)?;
        anchors = anchors.f_minimum(&distances(farthest)?)?;
        taken(&anchors, farthest);
        chosen.push(farthest);
    }
    Ok(chosen)
}

/// Marks a vector as chosen. Its distance to itself is a rounding error, which must not win over a duplicate of it.
fn taken(anchors: &Tensor, at: i64) {
    let _ = anchors.get(at).fill_(-1.);
}

/// Chooses `count` of an image's patches [P, C] greedily, beginning with the one that is farthest from their mean.
/// Returns their positions in the order of the choice, which depends on the image alone. If there are no more than `count`,
/// all are chosen, in their own order.
pub fn of_image(patches: &Tensor, count: i64) -> Result<Vec<i64>, TchError> {
    let total = patches.size()[0];
    if total <= count {
        return Ok((0..total).collect());
    }
    let vectors = patches.f_to_kind(Kind::Float)?;
    let centre = vectors.f_mean_dim([0].as_slice(), true, Kind::Float)?;
    let first = i64::try_from(self::squares(&(&vectors - centre)).f_argmax(0, false)?)?;
    greedy(&vectors, count, &Start::Vector(first))
}

/// Chooses `count` of `total` patches at random, by the id of their image. Returns their positions, ascending.
pub fn at_random(total: i64, count: i64, id: &str) -> Vec<i64> {
    let mut random = ChaCha8Rng::from_seed(*blake3::hash(id.as_bytes()).as_bytes());
    let mut chosen = sample(&mut random, total as usize, count.min(total) as usize).into_vec();
    chosen.sort_unstable();
    chosen.into_iter().map(|position| position as i64).collect()
}

/// A random projection of vectors to fewer dimensions, in which distances are nearly kept: f32 [C, dimensions].
pub fn dense_projection(from: i64, dimensions: i64, seed: u64) -> Tensor {
    let (mut random, bound) = (ChaCha8Rng::seed_from_u64(seed), 1. / (from as f32).sqrt());
    let values: Vec<f32> = (0..from * dimensions).map(|_| random.random_range(-bound..bound)).collect();
    Tensor::from_slice(&values).view([from, dimensions])
}

/// A sparse projection (Achlioptas 2003, Li et al. 2006): of the C numbers of each dimension about a share of 1 / √C is
/// not zero, as in anomalib and scikit-learn's `SparseRandomProjection`.
pub fn sparse_projection(from: i64, dimensions: i64, seed: u64) -> Tensor {
    let (mut random, density) = (ChaCha8Rng::seed_from_u64(seed), 1. / (from as f64).sqrt());
    let value = (1. / density).sqrt() / (dimensions as f64).sqrt();
    let values: Vec<f32> = (0..from * dimensions)
        .map(|_| match random.random::<f64>() / density {
            position if position < 0.5 => value as f32,
            position if position < 1. => -value as f32,
            _ => 0.,
        })
        .collect();
    Tensor::from_slice(&values).view([from, dimensions])
}

/// Returns the dimensions in which the distances of `points` vectors are kept within a share of 0.9 (Johnson and
/// Lindenstrauss; anomalib's `eps`).
pub fn johnson_lindenstrauss(points: i64) -> i64 {
    let eps: f64 = 0.9;
    (4. * (points as f64).ln() / (eps.powi(2) / 2. - eps.powi(3) / 3.)) as i64
}

/// Returns the vectors at these positions.
pub fn select(vectors: &Tensor, positions: &[i64]) -> Result<Tensor, TchError> {
    vectors.f_index_select(0, &Tensor::from_slice(positions).f_to_device(vectors.device())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(positions: &[f32]) -> Tensor {
        Tensor::from_slice(positions).unsqueeze(1)
    }

    fn chosen(vectors: &Tensor, count: i64, start: Start) -> Vec<i64> {
        greedy(vectors, count, &start).unwrap()
    }

    #[test]
    fn each_choice_is_farthest_from_those_before() {
        let vectors = line(&[0., 1., 2., 10., 4.5]);
        assert_eq!(chosen(&vectors, 4, Start::Vector(0)), [0, 3, 4, 2]);
        // The mean distances to 0 and 10 are 5 everywhere between them, so that the first vector is chosen.
        assert_eq!(chosen(&vectors, 2, Start::MeanDistanceTo(vec![0, 3])), [0, 3]);
        assert_eq!(chosen(&vectors, 1, Start::AllDistances), [3]);
    }

    #[test]
    fn duplicates_are_chosen_last_and_once() {
        let vectors = line(&[5., 5., 5., 7.]);
        let mut all = chosen(&vectors, 4, Start::Vector(1));
        assert_eq!(all[..2], [1, 3]);
        all.sort_unstable();
        assert_eq!(all, [0, 1, 2, 3]);
    }

    #[test]
    fn images_patches_are_thinned_by_the_image_alone() {
        let patches = line(&[0., 0.1, 8., 0.2, 4.]);
        assert_eq!(of_image(&patches, 2).unwrap(), [2, 0]);
        assert_eq!(of_image(&patches, 9).unwrap(), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn random_choice_is_that_of_the_image() {
        let a = at_random(1000, 5, "nut/a.png");
        assert!(a.is_sorted() && a.len() == 5 && a.iter().all(|position| (0..1000).contains(position)), "{a:?}");
        assert_eq!(a, at_random(1000, 5, "nut/a.png"));
        assert_ne!(a, at_random(1000, 5, "nut/b.png"));
        assert_eq!(at_random(3, 9, "nut/a.png"), [0, 1, 2]);
    }

    /// Distances among projected vectors are those before within some 30 %, and the sparse projection is sparse.
    #[test]
    fn projections_nearly_keep_distances() {
        tch::manual_seed(1);
        let vectors = Tensor::randn([20, 400], tch::kind::FLOAT_CPU);
        let before = Tensor::cdist(&vectors, &vectors, 2., None);
        let sparse = sparse_projection(400, 200, 7);
        let share = f64::try_from(sparse.not_equal(0.).to_kind(Kind::Float).mean(Kind::Float)).unwrap();
        assert!((share - 0.05).abs() < 0.01, "{share}");
        // The dense projection shrinks all lengths alike, by √(dimensions / 3 C).
        let dense = dense_projection(400, 200, 7) * (3. * 400. / 200_f64).sqrt();
        for projection in [sparse, dense] {
            let projected = vectors.matmul(&projection);
            let after = Tensor::cdist(&projected, &projected, 2., None);
            let apart = before.greater(1.);
            let ratio = after.masked_select(&apart) / before.masked_select(&apart);
            let (low, high) = (f64::try_from(ratio.min()).unwrap(), f64::try_from(ratio.max()).unwrap());
            assert!(low > 0.7 && high < 1.3, "{low} {high}");
        }
        assert_eq!(johnson_lindenstrauss(384), 146);
    }
}
