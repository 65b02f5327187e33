//! A small convolutional image encoder: the other half of CLIP's objective when a text encoder is trained from nothing.

use super::{
    conv::{Conv2d, conv2d},
    nn::{group_norm, linear_no_bias},
};
use tch::{
    Kind, Tensor,
    nn::{self, Module},
};

/// Strided convolutions, a mean over the picture and a projection.
#[derive(Debug)]
pub struct ImageTower {
    levels: Vec<(Conv2d, nn::GroupNorm)>,
    projection: nn::Linear,
}

impl ImageTower {
    /// One level per width, each halving the picture; widths divide by 8.
    pub fn new(vs: nn::Path, widths: &[i64], projection_dim: i64) -> Self {
        let inputs = std::iter::once(3).chain(widths.iter().copied());
        let level = |(i, (input, output)): (usize, (i64, i64))| {
            let vs = &vs / "levels" / i;
            (conv2d(&vs / "conv", input, output, 3, 2, 1), group_norm(&vs / "norm", 8, output, 1e-5))
        };
        let levels = inputs.zip(widths.iter().copied()).enumerate().map(level).collect();
        let last = widths.last().copied().unwrap_or(3);
        Self { levels, projection: linear_no_bias(&vs / "projection", last, projection_dim) }
    }

    /// Images [B, 3, H, W] -> embeddings of length 1, [B, projection_dim].
    pub fn forward(&self, images: &Tensor) -> Tensor {
        let x =
            self.levels.iter().fold(images.shallow_clone(), |x, (conv, norm)| norm.forward(&conv.forward(&x)).silu());
        let x = self.projection.forward(&x.mean_dim([2_i64, 3].as_slice(), false, Kind::Float)); // [B, D]
        &x / x.norm_scalaropt_dim(2, [-1].as_slice(), true)
    }
}
