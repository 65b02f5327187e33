//! The differences that two correct implementations may have, derived from the arithmetic: from the size of the
//! arguments, the number of roundings, and the change of a quantity with its arguments. No tolerance is measured on a
//! machine.

use tch::{Kind, Tensor};
use vlmdiff::diffusion::schedule::ScheduleConfig;

/// The largest relative error of rounding to f32: 2⁻²⁴.
pub(crate) const F32: f64 = 5.960_464_477_539_063e-8;
/// The largest relative error of rounding to f64: 2⁻⁵³.
pub(crate) const F64: f64 = 1.110_223_024_625_156_5e-16;

/// The tolerance of maps of a network, as a share of their largest value. A 3×3 convolution over 256 channels sums n =
/// 2304 products, and up to L = 60 layers follow one another. Each sum is rounded n times, in an order of the machine's
/// own: the roundings are independent of each other, so that they add up to 2⁻²⁴ · √(n · L) = 2.2e-5.
pub(crate) const NETWORK: f64 = 2.2e-5;

/// The tolerance of the gradients of a network, as a share of the largest value of each. A backward pass is as long as
/// the forward pass that makes its operands: √2 · [`NETWORK`]. If a normalisation takes away the mean of a map, the
/// sums over the map after it cancel: by a factor of three if a group is a channel of 256 pixels, which leaves 3 · √2 ·
/// 2.2e-5.
pub(crate) const GRADIENT: f64 = 1e-4;

/// Returns the share `of` of the largest value.
pub(crate) fn share(want: &Tensor, of: f64) -> Tensor {
    if want.numel() == 0 { Tensor::from(0_f64) } else { want.abs().max() * of }
}

/// Returns the share `of` of each value.
pub(crate) fn each(want: &Tensor, of: f64) -> Tensor {
    want.abs() * of
}

/// Returns the tolerance of sines and cosines of timesteps [B] times frequencies of at most 1: [B, 1]. Each math
/// library rounds `exp` of f32 in its own way, and the last place of a frequency near 1, 2⁻²³, moves an angle by at
/// most t · 2⁻²³; 1e-6 is 16 roundings of a sine.
pub(crate) fn sinusoids(t: &Tensor) -> Tensor {
    (t.to_kind(Kind::Double) * (2. * F32) + 1e-6).unsqueeze(-1)
}

/// A noise schedule, and the error of one that was computed in f32.
pub(crate) struct Table {
    pub(crate) alphas: Vec<f64>,
    /// The relative tolerance of each of `alphas`: f32 rounds each factor 1 − β and each product, and β itself, which
    /// is the square of a number on a line of rounded steps, is wrong by six roundings of the largest.
    errors: Vec<f64>,
    /// The tolerance of a β.
    pub(crate) beta: f64,
}

impl Table {
    pub(crate) fn new(config: &ScheduleConfig) -> Self {
        let betas = config.betas();
        let beta = 6. * F32 * betas.iter().copied().fold(0., f64::max);
        let (mut alpha, mut error) = (1., F32);
        let (mut alphas, mut errors) = (vec![], vec![]);
        for value in betas {
            alpha *= 1. - value;
            error += (beta + F32) / (1. - value) + F32;
            alphas.push(alpha);
            errors.push(error);
        }
        Self { alphas, errors, beta }
    }

    /// Returns the tolerance of each ᾱ.
    pub(crate) fn absolute(&self) -> Tensor {
        Tensor::from_slice(
            &self.alphas.iter().zip(&self.errors).map(|(alpha, error)| alpha * error).collect::<Vec<f64>>(),
        )
    }

    /// Returns ᾱ at the timesteps at which a step begins and, if that is in the table, ends, moved to either side by
    /// the tolerance: the values that two tables with different rounding may hold. The error of the later ᾱ is that of
    /// the earlier and a bit more.
    fn moved(&self, [from, to]: [Option<usize>; 2], [alpha, end]: [f64; 2]) -> Vec<[f64; 2]> {
        let error = |t: Option<usize>| t.map_or(0., |t| self.errors[t]);
        let (common, own) = (error(to), (error(from) - error(to)).max(0.) + 2. * F32);
        let signs = [(1., 1.), (1., -1.), (-1., 1.), (-1., -1.)];
        let move_both = |(a, b): (f64, f64)| [alpha * (1. + a * common) * (1. + b * own), end * (1. + a * common)];
        signs.into_iter().map(move_both).map(|both| both.map(|alpha| alpha.min(1.))).collect()
    }

    /// Returns the tolerance of a combination of tensors. `terms` computes, from ᾱ at the begin and the end of a step,
    /// the factors of each tensor, which is multiplied with their sum. The sum changes with ᾱ, and each product is
    /// rounded a few times.
    pub(crate) fn combination(
        &self,
        timesteps: [Option<usize>; 2],
        alphas: [f64; 2],
        tensors: &[&Tensor],
        terms: impl Fn([f64; 2]) -> Vec<Vec<f64>>,
    ) -> f64 {
        let sum = |factors: &Vec<f64>| factors.iter().sum::<f64>();
        let (here, moved) = (terms(alphas), self.moved(timesteps, alphas));
        let moved: Vec<Vec<Vec<f64>>> = moved.into_iter().map(&terms).collect();
        let of = |(i, tensor): (usize, &&Tensor)| {
            let moves = moved.iter().map(|moved| (sum(&moved[i]) - sum(&here[i])).abs()).fold(0., f64::max);
            let size: f64 = here[i].iter().map(|factor| factor.abs()).sum();
            (moves + 8. * F32 * size) * tensor.abs().max().double_value(&[])
        };
        tensors.iter().enumerate().map(of).sum()
    }
}
