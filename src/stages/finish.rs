//! The last step of every stage that makes anomaly maps: the blur, and the score of the image.

use std::sync::Arc;

use arrow::array::{ArrayRef, Float32Array};
use arrow::datatypes::Float16Type;
use garde::Validate;
use half::{f16, slice::HalfFloatSliceExt};
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;
use vlmdiff_metrics::windows;

use crate::{
    engine::{Result, stage::Misfit},
    tables::tensor::tensor_column,
    vision::blur::{self, Border},
};

/// The largest mean over a square window that moves by one pixel. The averaging is done `repeats` times.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields, default)]
pub struct Window {
    /// Side of the window in pixels; 1 is the plain maximum.
    #[garde(range(min = 1, max = 256))]
    pub kernel_size: usize,
    /// The number of times that the map is averaged; the authors' rule is 8 times with a side of 8.
    #[garde(range(min = 1, max = 64))]
    pub repeats: usize,
}

impl Default for Window {
    fn default() -> Self {
        Self { kernel_size: 8, repeats: 8 }
    }
}

impl Window {
    /// Checks that windows fit into maps of this height and width.
    pub(super) fn check(self, [height, width]: [usize; 2], parameter: &str) -> Result<(), Misfit> {
        let Self { kernel_size, repeats } = self;
        if (kernel_size - 1) * repeats < height.min(width) {
            return Ok(());
        }
        let message = format!("{repeats} windows of {kernel_size} leave nothing of a map of {height}x{width}");
        Err(Misfit::parameter(parameter, message))
    }

    /// Blurs the maps of a batch, f64 [B, H, W] on the CPU, and scores the images: the columns of a table of anomaly
    /// maps.
    pub(super) fn columns(self, maps: &Tensor, sigma: f64) -> Result<Vec<ArrayRef>> {
        let size = [maps.size()[1], maps.size()[2]].map(|side| side as usize);
        let raw = Vec::<f64>::try_from(maps.flatten(0, -1))?;
        finish(&raw, size, Blur { sigma, border: Border::Symmetric }, |_, map| self.score(map, size))
    }

    /// Returns the score of a map.
    pub(super) fn score(self, map: &[f64], [height, width]: [usize; 2]) -> f64 {
        windows::largest_mean(map, width, height, self.kernel_size, self.repeats)
    }
}

/// The blur of a map.
#[derive(Clone, Copy, Debug)]
pub(super) struct Blur {
    /// The standard deviation in pixels; 0 for none.
    pub(super) sigma: f64,
    pub(super) border: Border,
}

/// Blurs maps of one size, which lie one after another, and scores each. Returns the columns `map` and `score`.
///
/// `score` is given the position of an image and its map as it is stored, in f16.
pub(super) fn finish(
    raw: &[f64],
    [height, width]: [usize; 2],
    Blur { sigma, border }: Blur,
    score: impl Fn(usize, &[f64]) -> f64 + Sync,
) -> Result<Vec<ArrayRef>> {
    let blurred = |(row, map): (usize, &[f64])| -> (Vec<f16>, f32) {
        let mut values = blur::gaussian(map, width, height, sigma, border);
        let mut stored = vec![f16::ZERO; values.len()];
        // Slices are converted by several values at a time.
        stored.convert_from_f64_slice(&values);
        stored.convert_to_f64_slice(&mut values);
        let score = score(row, &values) as f32;
        (stored, score)
    };
    let (maps, scores): (Vec<_>, Vec<f32>) = raw.par_chunks(height * width).enumerate().map(blurred).unzip();
    let maps = tensor_column::<Float16Type>(maps.concat(), height * width, None)?;
    Ok(vec![maps, Arc::new(Float32Array::from(scores))])
}
