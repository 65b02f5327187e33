//! EfficientNet-Lite0 as an extractor. Layers are strides: the pixels per cell of the feature maps.

use tch::Tensor;

use super::network::{ExtractorError, FeatureNetwork, Opening};
use crate::models::{efficientnet::EfficientNetLite0, preprocessing::Preprocessing};

/// Opens an EfficientNet-Lite0, which has one size.
pub(super) fn open_lite0(opening: &Opening<'_>) -> Result<Box<dyn FeatureNetwork>, ExtractorError> {
    Ok(Box::new(EfficientNetLite0::open(opening.weights, opening.device)?))
}

impl FeatureNetwork for EfficientNetLite0 {
    fn preprocessing(&self) -> Preprocessing {
        Self::PREPROCESSING
    }

    fn last_layer(&self) -> usize {
        Self::STRIDES[Self::STRIDES.len() - 1] as usize
    }

    fn features(&self, x: &Tensor, layers: &[usize], _: bool) -> Vec<Tensor> {
        let level = |stride: &usize| Self::STRIDES.iter().position(|s| *s as usize == *stride);
        let levels: Vec<usize> = layers.iter().filter_map(level).collect();
        let maps = self.forward_features(x, levels.iter().copied().max().unwrap_or(0));
        levels.into_iter().map(|level| maps[level].shallow_clone()).collect()
    }
}
