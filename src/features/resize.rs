//! The size at which a network sees an image.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// The way in which an image is brought to the size at which a DINOv2 sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Dinov2Resize {
    /// The image is resized to 224x224, bilinear with antialiasing.
    #[default]
    Resample,
    /// The first 3x224x224 numbers of the image in memory are taken for an image of 224x224: torch's `Tensor.resize_`,
    /// which the authors' code calls and their tables measure. Images need at least as many numbers.
    Reinterpret,
    /// The image keeps its size, or is resized to the nearest smaller multiples of the patch.
    Keep,
}

/// Height and width in pixels that DINOv2 features are published at.
pub const DINOV2_SIZE: i64 = 224;

/// Returns the images [B, 3, H, W] at the size that the network sees: by `resize` for a DINOv2; for other networks,
/// `None`, at the nearest smaller multiples of `multiple`.
pub(super) fn sized(images: &Tensor, resize: Option<Dinov2Resize>, multiple: i64) -> Tensor {
    let (_, _, height, width) = images.size4().unwrap();
    let whole = |size: i64| (size / multiple).max(1) * multiple;
    let size = match resize {
        Some(Dinov2Resize::Reinterpret) => return reinterpret(images, DINOV2_SIZE),
        Some(Dinov2Resize::Resample) => [DINOV2_SIZE; 2],
        Some(Dinov2Resize::Keep) | None => [whole(height), whole(width)],
    };
    if size == [height, width] { images.shallow_clone() } else { resample(images, size) }
}

/// Resizes images to `size`, bilinearly with antialiasing.
pub fn resample(images: &Tensor, size: [i64; 2]) -> Tensor {
    images.internal_upsample_bilinear2d_aa(size, false, None, None)
}

/// Returns the first 3 · `side` · `side` numbers of each image [B, 3, H, W] as another image [B, 3, `side`, `side`], as
/// torch's `Tensor.resize_` does for a single image.
///
/// # Panics
/// If an image has fewer numbers.
pub fn reinterpret(images: &Tensor, side: i64) -> Tensor {
    images.flatten(1, -1).narrow(1, 0, 3 * side * side).view([-1, 3, side, side])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reinterpreting_takes_the_first_numbers() {
        let x = Tensor::arange(2 * 3 * 4 * 4, tch::kind::INT64_CPU).view([2, 3, 4, 4]);
        let y = reinterpret(&x, 2);
        assert_eq!(Vec::<i64>::try_from(y.get(1).flatten(0, -1)).unwrap(), (48..60).collect::<Vec<_>>());
    }
}
