//! InternViT, the vision tower of InternVL.

use super::{
    super::{
        checkpoint::{CheckpointError, Mapped},
        image_block::{BlockConfig, ImageBlock},
        language::{norm::Norm, weights::Weights},
        nn::show,
        vit::{Interpolation, interpolate},
    },
    config::VisionConfig,
};
use tch::Tensor;

/// The tower.
#[derive(Debug)]
pub struct VisionTower {
    config: VisionConfig,
    /// [1, 1, D]
    class: Mapped,
    /// [1, 1 + N, D]
    positions: Mapped,
    /// [D, 3, P, P] and \[D\]
    patches: [Mapped; 2],
    layers: Vec<ImageBlock>,
    norm: Option<Norm>,
}

impl VisionTower {
    /// Takes the tensors below `vision_model`.
    ///
    /// # Errors
    /// The errors of [`Weights::tensor`].
    pub fn load(weights: &Weights<'_>, config: &VisionConfig) -> Result<Self, CheckpointError> {
        let (width, patch, grid) = (config.hidden_size, config.patch_size, config.image_size / config.patch_size);
        let embeddings = weights.below("embeddings");
        let layers = weights.below("encoder.layers");
        let block = BlockConfig {
            width,
            hidden: config.intermediate_size,
            heads: config.heads,
            norm: config.norm,
            eps: config.eps,
            qkv_bias: config.qkv_bias,
            qk_norm: config.qk_norm,
            layer_scale: true,
        };
        let norm = || Norm::load(weights, "norm", width, config.eps, config.norm);
        Ok(Self {
            class: embeddings.tensor("class_embedding", &[1, 1, width])?,
            positions: embeddings.tensor("position_embedding", &[1, 1 + grid * grid, width])?,
            patches: [
                embeddings.tensor("patch_embedding.weight", &[width, 3, patch, patch])?,
                embeddings.tensor("patch_embedding.bias", &[width])?,
            ],
            layers: (0..config.layers).map(|i| ImageBlock::load(&layers.below(i), &block)).collect::<Result<_, _>>()?,
            norm: if config.final_norm { Some(norm()?) } else { None },
            config: config.clone(),
        })
    }

    /// Maps normalised tiles [B, 3, H, W] in the computing type to the states of class and patches, [B, 1 + h · w, D],
    /// where h and w count patches. The position table is resized for tiles that are not of `image_size`.
    pub fn forward(&self, tiles: &Tensor) -> Tensor {
        let mut x = self.embed(tiles);
        show("vision.embeddings", &x);
        for (i, layer) in self.layers.iter().enumerate() {
            x = layer.forward(&x);
            show(format_args!("vision.layers.{i}"), &x);
        }
        let x = self.norm.as_ref().map_or(x.shallow_clone(), |norm| norm.forward(&x));
        show("vision", &x);
        x
    }

    fn embed(&self, tiles: &Tensor) -> Tensor {
        let (b, _, height, width) = tiles.size4().unwrap();
        let [weight, bias] = self.patches.each_ref().map(Mapped::tensor);
        let patch = self.config.patch_size;
        let patches = tiles.conv2d(weight, Some(bias), [patch, patch], [0, 0], [1, 1], 1); // [B, D, h, w]
        let patches = patches.flatten(2, 3).transpose(1, 2); // [B, h · w, D]
        let class = self.class.tensor().expand([b, -1, -1], false); // [B, 1, D]
        let x = Tensor::cat(&[class, patches], 1); // [B, 1 + h · w, D]
        let own = self.config.image_size;
        if (height, width) == (own, own) {
            return x + self.positions.tensor();
        }
        x + interpolate(self.positions.tensor(), [height / patch, width / patch], Interpolation::Exact)
    }
}
