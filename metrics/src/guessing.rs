//! The metrics of maps without any information, and their standard deviations for a number of images.

/// A metric of random scores.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Guess {
    /// The expected value.
    pub value: f64,
    /// The standard deviation over draws.
    pub spread: f64,
}

impl Guess {
    /// Returns the AUROC over images, with the variance of Mann and Whitney's statistic under the null hypothesis.
    pub fn image_auroc(normal: u64, anomalous: u64) -> Option<Self> {
        let (n, m) = (normal as f64, anomalous as f64);
        (n > 0. && m > 0.).then(|| Self { value: 0.5, spread: ((n + m + 1.) / (12. * n * m)).sqrt() })
    }

    /// Returns the AUROC over pixels. Maps are smooth, so a region is found or missed as a whole: the AUROC is the mean
    /// of as many draws as there are regions, each of a rank uniform in 0 to 1.
    pub fn pixel_auroc(regions: u64) -> Option<Self> {
        (regions > 0).then(|| Self { value: 0.5, spread: (1. / 12. / regions as f64).sqrt() })
    }

    /// Returns the AUPRO up to a false positive rate `limit`, from as many draws as [`Guess::pixel_auroc`]: a region
    /// whose pixels rank at u contributes (limit - u) / limit if u is below the limit, else nothing.
    pub fn aupro(regions: u64, limit: f64) -> Option<Self> {
        let variance = limit / 3. - limit * limit / 4.;
        (regions > 0).then(|| Self { value: limit / 2., spread: (variance / regions as f64).sqrt() })
    }

    /// Returns true if a metric is at most one standard deviation above the expected value of guessing.
    pub fn explains(&self, metric: f64) -> bool {
        metric <= self.value + self.spread
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};

    use super::*;
    use crate::ImageMetrics;

    /// Returns mean and standard deviation of a metric over many draws of `of`.
    fn drawn(mut of: impl FnMut(&mut rand_chacha::ChaCha8Rng) -> f64) -> Guess {
        let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(5);
        let values: Vec<f64> = (0..4000).map(|_| of(&mut random)).collect();
        let value = values.iter().sum::<f64>() / values.len() as f64;
        let variance = values.iter().map(|v| (v - value).powi(2)).sum::<f64>() / values.len() as f64;
        Guess { value, spread: variance.sqrt() }
    }

    fn close(drawn: Guess, told: Option<Guess>) {
        let told = told.unwrap();
        assert!((drawn.value - told.value).abs() < 0.01, "{drawn:?} {told:?}");
        assert!((drawn.spread / told.spread - 1.).abs() < 0.05, "{drawn:?} {told:?}");
    }

    #[test]
    fn drawn_guesses_have_the_computed_mean_and_deviation() {
        let images = drawn(|random| {
            let mut images = ImageMetrics::new();
            (0..18).for_each(|i| images.update(random.random::<f64>(), i < 10).unwrap());
            images.ranking().auroc().unwrap()
        });
        close(images, Guess::image_auroc(8, 10));
        let mean = |random: &mut rand_chacha::ChaCha8Rng, of: &dyn Fn(f64) -> f64| {
            (0..10).map(|_| of(random.random::<f64>())).sum::<f64>() / 10.
        };
        close(drawn(|random| mean(random, &|rank| 1. - rank)), Guess::pixel_auroc(10));
        close(drawn(|random| mean(random, &|rank| ((0.3 - rank) / 0.3).max(0.))), Guess::aupro(10, 0.3));
    }

    #[test]
    fn a_metric_is_distinguished_from_guessing_given_enough_images() {
        let explains = |normal, anomalous, auroc| Guess::image_auroc(normal, anomalous).unwrap().explains(auroc);
        assert!(explains(8, 10, 0.6) && !explains(80, 100, 0.6));
        assert!(explains(8, 10, 0.3) && explains(80, 100, 0.3));
        assert_eq!(Guess::image_auroc(0, 3), None);
        assert_eq!((Guess::pixel_auroc(0), Guess::aupro(0, 0.3)), (None, None));
    }
}
