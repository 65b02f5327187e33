//! Diffusion. Schedule, prediction type, sampler and network are independent of each other and can be combined freely.
//!
//! A network is any function of a noisy latent and a timestep; this module depends on none.

pub mod guidance;
pub mod loss;
pub mod sampler;
pub mod schedule;
pub mod score;
pub mod vae_gan;

use rand_chacha::{
    ChaCha12Rng,
    rand_core::{Rng, SeedableRng},
};
use std::f32::consts::TAU;
use tch::Tensor;

/// The random numbers of one key: an image in a run, a step of a training. Equal seeds and keys give equal numbers on
/// every machine, independently of batches and of other keys.
#[derive(Debug)]
pub struct Noise(ChaCha12Rng);

impl Noise {
    /// Starts the stream of `key` (an image's id, a step's number) under `seed`.
    pub fn new(seed: u64, key: impl AsRef<[u8]>) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&seed.to_le_bytes()).update(key.as_ref());
        Self(ChaCha12Rng::from_seed(*hasher.finalize().as_bytes()))
    }

    /// Draws a number uniform in (0, 1], with 24 bits.
    fn uniform(&mut self) -> f32 {
        ((self.0.next_u32() >> 8) + 1) as f32 / (1 << 24) as f32
    }

    /// Draws standard normal values of this shape, f32 on the CPU (Box-Muller); fails if memory is short.
    pub fn normal(&mut self, shape: &[i64]) -> Result<Tensor, tch::TchError> {
        let count = shape.iter().product::<i64>() as usize;
        let mut values = Vec::with_capacity(count + 1);
        while values.len() < count {
            let radius = (-2. * self.uniform().ln()).sqrt();
            let (sin, cos) = (TAU * self.uniform()).sin_cos();
            values.extend([radius * cos, radius * sin]);
        }
        Tensor::f_from_slice(&values[..count])?.f_reshape(shape)
    }

    /// Draws a number uniform in 0..`limit`.
    pub fn below(&mut self, limit: u32) -> u32 {
        // the high half of the product is uniform up to one part in 2^32 / limit
        ((u64::from(self.0.next_u32()) * u64::from(limit)) >> 32) as u32
    }

    /// Draws `count` timesteps uniform in 0..`limit`, i64 on the CPU.
    pub fn timesteps(&mut self, count: usize, limit: u32) -> Tensor {
        Tensor::from_slice(&(0..count).map(|_| i64::from(self.below(limit))).collect::<Vec<i64>>())
    }
}

/// Draws standard normal values [keys, shape…]; row i depends on `seed` and the i-th key alone.
pub fn noise_per_key<K: AsRef<[u8]>>(seed: u64, keys: &[K], shape: &[i64]) -> Result<Tensor, tch::TchError> {
    let rows: Vec<Tensor> = keys.iter().map(|key| Noise::new(seed, key).normal(shape)).collect::<Result<_, _>>()?;
    Tensor::f_stack(&rows, 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Kind;

    #[test]
    fn noise_is_standard_normal() {
        let x = Noise::new(7, "a").normal(&[200_001]).unwrap().to_kind(Kind::Double);
        let moment = |power| x.pow_tensor_scalar(power).mean(Kind::Double).double_value(&[]);
        let [mean, variance, skew, kurtosis] = [1, 2, 3, 4].map(moment);
        // five standard errors of each moment
        assert!(mean.abs() < 0.012 && (variance - 1.).abs() < 0.016, "{mean} {variance}");
        assert!(skew.abs() < 0.044 && (kurtosis - 3.).abs() < 0.11, "{skew} {kurtosis}");
        let within_one = x.abs().less(1.).to_kind(Kind::Double).mean(Kind::Double).double_value(&[]);
        assert!((within_one - 0.6827).abs() < 0.006, "{within_one}");
    }

    #[test]
    fn noise_depends_on_seed_and_key_alone() {
        let one = Noise::new(1, "b").normal(&[4, 3]).unwrap();
        let batch = noise_per_key(1, &["a", "b"], &[4, 3]).unwrap();
        assert_eq!(batch.get(1), one);
        assert_ne!(batch.get(0), one);
        assert_ne!(Noise::new(2, "b").normal(&[4, 3]).unwrap(), one);
        // results of earlier runs with a seed are repeated only if the stream stays the same
        assert_eq!(Noise::new(0, "").0.next_u32(), 56_006_615);
    }

    #[test]
    fn timesteps_cover_the_range_evenly() {
        let t = Noise::new(3, "t").timesteps(100_000, 10);
        let counts = t.bincount(None::<&Tensor>, 10);
        let worst = (counts.to_kind(Kind::Double) - 1e4).abs().max().double_value(&[]);
        assert!(counts.size() == [10] && worst < 500., "{worst}");
    }
}
