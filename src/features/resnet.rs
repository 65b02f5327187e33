//! ResNet-50 and Wide ResNet-50-2 as extractors. Layers are its levels `layer1` to `layer4`, as 1 to 4.

use tch::Tensor;

use super::network::{ExtractorError, FeatureNetwork, Opening};
use crate::models::{
    preprocessing::Preprocessing,
    resnet::{ResNet, ResNetConfig},
};

/// Opens a ResNet of the sizes that `wanted` returns for a number of classes, with a head or without.
pub(super) fn open(
    opening: &Opening<'_>,
    wanted: fn(Option<i64>) -> ResNetConfig,
) -> Result<Box<dyn FeatureNetwork>, ExtractorError> {
    let model = ResNet::open(opening.weights, opening.device)?;
    let wanted = wanted(model.config().num_classes);
    if *model.config() != wanted {
        return Err(opening.other(described(model.config()), described(&wanted)));
    }
    Ok(Box::new(model))
}

/// Describes a ResNet in words.
fn described(ResNetConfig { stem, planes, expansion, layers, .. }: &ResNetConfig) -> String {
    format!("a ResNet with a stem of {stem} and {layers:?} blocks of {planes:?} channels that widen by {expansion}")
}

impl FeatureNetwork for ResNet {
    fn preprocessing(&self) -> Preprocessing {
        Preprocessing::imagenet(1)
    }

    fn last_layer(&self) -> usize {
        self.config().layers.len()
    }

    fn features(&self, x: &Tensor, layers: &[usize], _: bool) -> Vec<Tensor> {
        let maps = self.forward_features(x, layers.iter().copied().max().unwrap_or(0));
        layers.iter().map(|level| maps[level - 1].shallow_clone()).collect()
    }
}
