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
use vlmdiff_metrics::{
    blur::{self, Border},
    windows,
};

use crate::{
    engine::{Result, stage::Misfit},
    tables::tensor::tensor_column,
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

    /// Blurs the maps of a batch, f64 [B, H, W] on the CPU, and scores the images, of which `rois` are judged: the columns
    /// of a table of anomaly maps.
    pub(super) fn columns(self, maps: &Tensor, sigma: f64, rois: &[Option<Vec<bool>>]) -> Result<Vec<ArrayRef>> {
        let size = [maps.size()[1], maps.size()[2]].map(|side| side as usize);
        let raw = Vec::<f64>::try_from(maps.flatten(0, -1))?;
        let blur = Blur { sigma, border: Border::Symmetric };
        let finished = |(map, roi): (&[f64], &Option<Vec<bool>>)| {
            Finished::of(map, size, blur, roi.as_deref(), |map| self.score(map, size))
        };
        let maps = raw.par_chunks(size[0] * size[1]).zip(rois);
        Finished::columns(&maps.map(finished).collect::<Vec<_>>(), size)
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

/// A map as it is stored, in f16, and the score of the image.
pub(super) struct Finished {
    map: Vec<f16>,
    score: f32,
}

impl Finished {
    /// Blurs a map of an image, of which `roi` is judged, and scores it by `score`, which is given the map as it is stored.
    pub(super) fn of(
        raw: &[f64],
        [height, width]: [usize; 2],
        Blur { sigma, border }: Blur,
        roi: Option<&[bool]>,
        score: impl FnOnce(&[f64]) -> f64,
    ) -> Self {
        let mut values = blur::gaussian(raw, width, height, sigma, border);
        fill_outside(&mut values, roi);
        let mut map = vec![f16::ZERO; values.len()];
        // Slices are converted by several values at a time.
        map.convert_from_f64_slice(&values);
        map.convert_to_f64_slice(&mut values);
        Self { map, score: score(&values) as f32 }
    }

    /// Returns the columns `map` and `score` of images of one size.
    pub(super) fn columns(images: &[Self], [height, width]: [usize; 2]) -> Result<Vec<ArrayRef>> {
        let mut maps = Vec::with_capacity(images.len() * height * width);
        images.iter().for_each(|image| maps.extend_from_slice(&image.map));
        let scores = Float32Array::from_iter_values(images.iter().map(|image| image.score));
        Ok(vec![tensor_column::<Float16Type>(maps, height * width, None)?, Arc::new(scores)])
    }
}

/// Gives the pixels of a map that are not judged the lowest value of those that are, or 0 if none is, so that no score and
/// no region comes from them.
pub(super) fn fill_outside(map: &mut [f64], roi: Option<&[bool]>) {
    let Some(roi) = roi else { return };
    let inside = map.iter().zip(roi).filter(|(_, is_judged)| **is_judged).map(|(value, _)| *value);
    let lowest = inside.reduce(f64::min).unwrap_or_default();
    for (value, _) in map.iter_mut().zip(roi).filter(|(_, is_judged)| !**is_judged) {
        *value = lowest;
    }
}

#[cfg(test)]
mod tests {
    use arrow::{array::AsArray, datatypes::Float32Type};

    use super::*;
    use crate::tables::tensor::tensor_row;

    #[test]
    fn map_and_score_of_an_image_come_from_the_pixels_that_are_judged() {
        let map = Tensor::from_slice(&[1_f64, 2., 3., 9.]).view([1, 2, 2]).repeat([3, 1, 1]);
        let rois = [None, Some(vec![false, true, true, false]), Some(vec![false; 4])];
        let columns = Window { kernel_size: 1, repeats: 1 }.columns(&map, 0., &rois).unwrap();
        let map = |row| tensor_row::<Float16Type>(&columns[0], row).unwrap().unwrap().iter().map(|v| v.to_f32());
        assert_eq!((0..3).flat_map(map).collect::<Vec<_>>(), [1., 2., 3., 9., 2., 2., 3., 2., 0., 0., 0., 0.]);
        assert_eq!(columns[1].as_primitive::<Float32Type>().values(), &[9., 3., 0.]);
    }
}
