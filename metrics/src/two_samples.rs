//! The test of Kolmogorov and Smirnov, whether two samples are of one distribution.

/// Returns the largest distance between the distribution functions of two samples, which are in ascending order, and
/// the probability of one that is as large if both are of one distribution. `None` if a sample is empty.
///
/// The probability is exact for continuous distributions and too high for others. It is the share of the ways to
/// interleave the samples that reach the distance, counted as lattice paths (Hodges 1958, "The significance
/// probability of the Smirnov two-sample test"), in time proportional to the product of the sizes.
pub fn kolmogorov_smirnov(a: &[f32], b: &[f32]) -> Option<(f64, f64)> {
    if a.is_empty() || b.is_empty() {
        return None;
    }
    let (n, m) = (a.len() as u64, b.len() as u64);
    // Distances are multiples of 1 / (n m), and counted as such.
    let up_to = |sample: &[f32], score: f32| sample.partition_point(|other| *other <= score) as u64;
    let distance = |score: &f32| (up_to(a, *score) * m).abs_diff(up_to(b, *score) * n);
    let largest = a.iter().chain(b).map(distance).max()?;
    // The share of paths to (i, j) that stay below the distance, for one i after another. Its recurrence weighs the
    // last step by the chance that it is of either sample.
    let is_below = |i: u64, j: u64| (i * m).abs_diff(j * n) < largest;
    let mut shares: Vec<f64> = vec![0.; m as usize + 1];
    for i in 0..=n {
        for j in 0..=m {
            let at = j as usize;
            shares[at] = match (i, j) {
                _ if !is_below(i, j) => 0.,
                (0, 0) => 1.,
                (_, 0) => shares[at],
                (0, _) => shares[at - 1],
                _ => (shares[at] * i as f64 + shares[at - 1] * j as f64) / (i + j) as f64,
            };
        }
    }
    Some((largest as f64 / (n * m) as f64, (1. - shares[m as usize]).clamp(0., 1.)))
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    #[test]
    fn probabilities_are_those_of_all_interleavings() {
        // Two samples of two values interleave in C(4, 2) = 6 ways. In two of them the samples are wholly apart, at a
        // distance of 1; in the other four the distance is 1/2.
        assert_eq!(kolmogorov_smirnov(&[1., 2.], &[3., 4.]), Some((1., 1. - 4. / 6.)));
        let (distance, p) = kolmogorov_smirnov(&[1., 3.], &[2., 4.]).unwrap();
        assert!(distance == 0.5 && (p - 1.).abs() < 1e-15, "{p}");
        // Five and five apart: 2 of C(10, 5) = 252.
        let (a, b) = ([1., 2., 3., 4., 5.], [6., 7., 8., 9., 10.]);
        let (distance, p) = kolmogorov_smirnov(&a, &b).unwrap();
        assert!(distance == 1. && (p - 2. / 252.).abs() < 1e-15, "{p}");
        assert_eq!(kolmogorov_smirnov(&a, &[]), None);
        assert_eq!(kolmogorov_smirnov(&a, &a).unwrap(), (0., 1.));
    }

    #[test]
    fn samples_of_one_distribution_are_told_apart_as_seldom_as_stated() {
        const DRAWS: usize = 2_000;
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let mut sample = |size: usize, shift: f32| {
            let mut sample: Vec<f32> = (0..size).map(|_| shift + rng.random::<f32>()).collect();
            sample.sort_by(f32::total_cmp);
            sample
        };
        let mut told = 0;
        for _ in 0..DRAWS {
            told += usize::from(kolmogorov_smirnov(&sample(30, 0.), &sample(17, 0.)).unwrap().1 <= 0.05);
        }
        // The test is conservative, since distances are discrete; 4 sqrt(0.05 0.95 / 2000) = 0.0195.
        assert!((0.02..0.0695).contains(&(told as f64 / DRAWS as f64)), "{told}");
        assert!(kolmogorov_smirnov(&sample(200, 0.), &sample(200, 0.3)).unwrap().1 < 1e-6);
    }
}
