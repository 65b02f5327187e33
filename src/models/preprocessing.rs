//! The preprocessing of images with which a network was trained.

use tch::{Kind, Tensor};

use crate::vision::imagenet;

/// The numbers by which an RGB image becomes a network's input. They belong to the weights and are no parameters of the
/// user.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Preprocessing {
    /// Mean of each channel on the scale 0 to 1.
    pub mean: [f32; 3],
    /// Standard deviation of each channel on the scale 0 to 1.
    pub std: [f32; 3],
    /// Height and width have to be multiples of this.
    pub size_multiple: i64,
}

impl Preprocessing {
    /// Returns the mean and standard deviation of ImageNet, as torchvision, timm and Hugging Face round them.
    pub const fn imagenet(size_multiple: i64) -> Self {
        Self { mean: imagenet::MEAN, std: imagenet::STD, size_multiple }
    }

    /// Returns `(x - mean) / std` for images [B, 3, H, W] with values 0 to 1, on the device and in the type of `x`.
    pub fn normalize(&self, x: &Tensor) -> Tensor {
        let channels = |values| channels(values, x);
        ((x.to_kind(Kind::Float) - channels(self.mean)) / channels(self.std)).to_kind(x.kind())
    }

    /// Inverts [`normalize`](Self::normalize), in f32; values outside of 0 to 1 are not clamped.
    pub fn denormalize(&self, x: &Tensor) -> Tensor {
        x * channels(self.std, x) + channels(self.mean, x)
    }
}

/// Returns a value per channel on the device of `x`, [1, 3, 1, 1].
fn channels(values: [f32; 3], x: &Tensor) -> Tensor {
    Tensor::from_slice(&values).to_device(x.device()).view([1, 3, 1, 1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_channel_has_its_own_mean_and_deviation() {
        let preprocessing = Preprocessing { mean: [0., 0.5, 1.], std: [1., 0.5, 0.25], size_multiple: 1 };
        let y = preprocessing.normalize(&Tensor::ones([2, 3, 1, 1], tch::kind::FLOAT_CPU));
        assert_eq!(Vec::<f32>::try_from(y.flatten(0, -1)).unwrap(), [1., 1., 0., 1., 1., 0.]);
    }
}
