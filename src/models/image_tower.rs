//! A small convolutional image encoder: the other half of CLIP's objective when a text encoder is trained from nothing.

use super::{
    conv::{Conv2d, conv2d},
    nn::{GroupNorm, group_norm, linear_no_bias},
};
use tch::{
    Tensor,
    nn::{self, Module},
};

/// The sides of the grid to which the last map is averaged. A grid keeps the places of things in the picture, such as
/// the light.
const GRID: i64 = 4;

/// Strided convolutions and a projection of their last map.
#[derive(Debug)]
pub struct ImageTower {
    levels: Vec<(Conv2d, GroupNorm)>,
    projection: nn::Linear,
}

impl ImageTower {
    /// Declares one level per width, each of which halves the picture. Widths have to be multiples of 8.
    pub fn new(vs: nn::Path, widths: &[i64], projection_dim: i64) -> Self {
        let inputs = std::iter::once(3).chain(widths.iter().copied());
        let level = |(i, (input, output)): (usize, (i64, i64))| {
            let vs = &vs / "levels" / i;
            (conv2d(&vs / "conv", input, output, 3, 2, 1), group_norm(&vs / "norm", 8, output, 1e-5))
        };
        let levels = inputs.zip(widths.iter().copied()).enumerate().map(level).collect();
        let last = widths.last().copied().unwrap_or(3);
        Self { levels, projection: linear_no_bias(&vs / "projection", last * GRID * GRID, projection_dim) }
    }

    /// Maps images [B, 3, H, W] to embeddings of length 1, [B, projection_dim].
    pub fn forward(&self, images: &Tensor) -> Tensor {
        let x =
            self.levels.iter().fold(images.shallow_clone(), |x, (conv, norm)| norm.forward(&conv.forward(&x)).silu());
        let grid = x.adaptive_avg_pool2d([GRID, GRID]).flatten(1, -1); // [B, C * 16]
        let x = self.projection.forward(&grid); // [B, D]
        &x / x.norm_scalaropt_dim(2, [-1].as_slice(), true)
    }
}
