//! DINO's and DINOv2's vision transformers as extractors. Layers are the blocks, counted from 1.

use tch::Tensor;

use super::network::{ExtractorError, FeatureNetwork, Opening};
use crate::models::{
    preprocessing::Preprocessing,
    vit::{VisionTransformer, VitConfig},
};

/// The sizes by which the published DINO transformers differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct VitSizes {
    /// Width of a token.
    pub(super) width: i64,
    /// Number of blocks.
    pub(super) blocks: i64,
    /// Side of a patch in pixels.
    pub(super) patch: i64,
}

impl VitSizes {
    fn of(config: &VitConfig) -> Self {
        Self { width: config.hidden_size, blocks: config.num_hidden_layers, patch: config.patch_size }
    }

    /// Describes a transformer in words.
    fn described(self, family: &str) -> String {
        let Self { width, blocks, patch } = self;
        format!("a {family} of width {width} with {blocks} blocks and patches of {patch}")
    }
}

/// Opens a DINO of these sizes.
pub(super) fn open_dino(opening: &Opening<'_>, wanted: VitSizes) -> Result<Box<dyn FeatureNetwork>, ExtractorError> {
    let model = VisionTransformer::open(opening.weights, opening.device)?;
    if model.config().layer_scale() || VitSizes::of(model.config()) != wanted {
        return Err(opening.other(found(model.config()), wanted.described("DINO")));
    }
    Ok(Box::new(model))
}

/// Opens a DINOv2 of any size.
pub(super) fn open_dinov2(opening: &Opening<'_>) -> Result<Box<dyn FeatureNetwork>, ExtractorError> {
    let model = VisionTransformer::open(opening.weights, opening.device)?;
    // DINOv2 scales the residuals of its blocks; DINO does not.
    if !model.config().layer_scale() {
        return Err(opening.other(found(model.config()), "any DINOv2".to_owned()));
    }
    Ok(Box::new(model))
}

/// Describes the transformer of some weights in words.
fn found(config: &VitConfig) -> String {
    VitSizes::of(config).described(if config.layer_scale() { "DINOv2" } else { "DINO" })
}

impl FeatureNetwork for VisionTransformer {
    fn preprocessing(&self) -> Preprocessing {
        Preprocessing::imagenet(self.config().patch_size)
    }

    fn last_layer(&self) -> usize {
        self.config().num_hidden_layers as usize
    }

    fn features(&self, x: &Tensor, layers: &[usize], final_norm: bool) -> Vec<Tensor> {
        VisionTransformer::features(self, x, layers, final_norm)
    }
}
