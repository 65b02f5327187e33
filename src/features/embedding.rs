//! The features of an image's patches: the maps of several layers on one grid.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// The way in which a place of a feature map takes in its neighbours, and in which layers become one vector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Pooling {
    /// The mean over 3x3 cells of each layer; zeros beyond the border count. The vectors of the layers are joined:
    /// anomalib's PatchCore.
    #[default]
    Average,
    /// The cells as they are; the vectors of the layers are joined. For transformers, whose tokens have seen the whole
    /// image.
    None,
    /// The 3x3 cells of each layer, averaged to `embed` numbers, and the numbers of all layers averaged to `target`:
    /// PatchCore as its authors wrote it.
    Adaptive {
        /// The numbers per layer (`pretrain_embed_dimension`); 1024 as published.
        embed: u32,
        /// The numbers per patch (`target_embed_dimension`); 1024 as published.
        target: u32,
    },
}

/// The features of an image's patches.
#[derive(Debug)]
pub struct PatchFeatures {
    /// A vector per patch, f32 [h · w, C], row after row of the grid.
    pub values: Tensor,
    /// The height and width of the grid of patches.
    pub grid: [i64; 2],
}

impl PatchFeatures {
    /// Returns the centre of the patch in this row of [`values`](Self::values): x and y, as shares of the image's width and
    /// height.
    pub fn centre(&self, row: i64) -> [f32; 2] {
        let [height, width] = self.grid;
        let share = |cell: i64, cells: i64| ((cell as f64 + 0.5) / cells as f64) as f32;
        [share(row % width, width), share(row / width, height)]
    }
}

impl Pooling {
    /// Returns the length of the vector of a patch; `joined` is that of the vectors of all layers side by side.
    pub fn channels(self, joined: usize) -> usize {
        match self {
            Self::Average | Self::None => joined,
            Self::Adaptive { target, .. } => target as usize,
        }
    }

    /// Brings the maps of an image's layers, [1, C, h, w] each, to the grid of the first one and joins them.
    ///
    /// Coarser maps are resized bilinearly, with half a cell between a border and the first centre.
    ///
    /// # Panics
    /// If there is no layer.
    pub fn patches(self, maps: &[Tensor]) -> PatchFeatures {
        let (_, _, height, width) = maps[0].size4().expect("a map has four dimensions");
        let grid = [height, width];
        let values = match self {
            Self::None => flattened(&joined(maps.iter().map(|map| resized(map, grid)))),
            Self::Average => flattened(&averaged(maps)),
            Self::Adaptive { embed, target } => adaptive(maps, grid, i64::from(embed), i64::from(target)),
        };
        PatchFeatures { values, grid }
    }
}

/// The way in which the scores of patches become a map of the image's size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Upsample {
    /// Bilinear, with half a patch between a border and the first centre: the authors of PatchCore, ADer.
    #[default]
    Bilinear,
    /// The score of the patch in which a pixel lies: anomalib.
    Nearest,
}

impl Upsample {
    /// Resizes a map [1, 1, h, w] to an image's height and width.
    pub fn to_size(self, map: &Tensor, size: [i64; 2]) -> Tensor {
        match self {
            Self::Bilinear => map.upsample_bilinear2d(size, false, None, None),
            Self::Nearest => map.upsample_nearest2d(size, None, None),
        }
    }
}

/// Resizes [B, C, h, w] to a grid, unless it lies on it.
fn resized(map: &Tensor, grid: [i64; 2]) -> Tensor {
    let (_, _, height, width) = map.size4().expect("a map has four dimensions");
    if [height, width] == grid { map.shallow_clone() } else { map.upsample_bilinear2d(grid, false, None, None) }
}

/// Joins maps [B, C, h, w] to one [B, sum of C, h, w].
fn joined(maps: impl Iterator<Item = Tensor>) -> Tensor {
    Tensor::cat(&maps.collect::<Vec<_>>(), 1)
}

/// Averages the maps of layers [B, C, h, w] over the 3x3 cells around each cell, where zeros beyond the border count,
/// brings them to the grid of the first one, bilinearly, and joins them: [B, sum of C, h, w].
///
/// # Panics
/// If there is no layer.
pub fn averaged(maps: &[Tensor]) -> Tensor {
    let (_, _, height, width) = maps[0].size4().expect("a map has four dimensions");
    let average = |map: &Tensor| map.avg_pool2d([3, 3], [1, 1], [1, 1], false, true, None);
    joined(maps.iter().map(|map| resized(&average(map), [height, width])))
}

/// Returns the cells of a map [1, C, h, w], row after row: [h · w, C].
fn flattened(map: &Tensor) -> Tensor {
    map.flatten(2, 3).squeeze_dim(0).tr().contiguous()
}

/// Pools the 3x3 cells of each layer to `embed` numbers, and those of all layers to `target`: [h · w, target].
fn adaptive(maps: &[Tensor], grid: [i64; 2], embed: i64, target: i64) -> Tensor {
    let layer = |map: &Tensor| {
        let (_, channels, height, width) = map.size4().expect("a map has four dimensions");
        let cells = map.im2col([3, 3], [1, 1], [1, 1], [1, 1]); // [1, C · 9, h · w], as (c, y, x)
        let cells = resized(&cells.view([1, channels * 9, height, width]), grid);
        let rows = cells.flatten(2, 3).permute([2, 0, 1]); // [h · w, 1, C · 9]
        rows.contiguous().adaptive_avg_pool1d(embed) // [h · w, 1, embed]
    };
    let layers: Vec<Tensor> = maps.iter().map(layer).collect();
    Tensor::cat(&layers, 2).adaptive_avg_pool1d(target).squeeze_dim(1)
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    fn map(channels: i64, height: i64, width: i64) -> Tensor {
        let count = channels * height * width;
        Tensor::arange(count, (Kind::Float, Device::Cpu)).view([1, channels, height, width])
    }

    #[test]
    fn patches_are_the_rows_of_the_grid_with_the_layers_side_by_side() {
        let PatchFeatures { values, grid } = Pooling::None.patches(&[map(2, 2, 3), map(1, 2, 3)]);
        assert_eq!(grid, [2, 3]);
        assert_eq!(values.size(), [6, 3]);
        assert_eq!(Vec::<f32>::try_from(values.get(4)).unwrap(), [4., 10., 4.]);
    }

    #[test]
    fn average_counts_zeros_beyond_the_border() {
        let PatchFeatures { values, .. } =
            Pooling::Average.patches(&[Tensor::ones([1, 1, 3, 3], tch::kind::FLOAT_CPU)]);
        let expected = [4., 6., 4., 6., 9., 6., 4., 6., 4.].map(|cells| cells / 9.);
        let found = Vec::<f32>::try_from(values.flatten(0, -1)).unwrap();
        assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{found:?}");
    }

    #[test]
    fn coarser_layer_is_resized_to_the_grid_of_the_first() {
        let PatchFeatures { values, grid } = Pooling::Average.patches(&[map(2, 4, 6), map(3, 2, 3)]);
        assert_eq!((grid, values.size()), ([4, 6], vec![24, 5]));
    }
}
