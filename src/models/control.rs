//! Image conditions for the denoiser: ControlNet (Zhang et al. 2023) and the semantic-guided network of DiAD and VLMDiff.
//!
//! Both run a trainable copy of the UNet's way down on the noisy latent plus an encoded condition image, and hand what it
//! finds through zero-initialised 1×1 convolutions to the UNet. They differ in which of its maps they use.

use super::{
    nn::{ConfigError, channels_last, conv2d, conv3x3, require, zero_conv},
    unet::{Encoder, UNet2DConditionConfig},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{
    Tensor,
    nn::{self, Module},
};

const NAME: &str = "ControlNetModel";

/// Which maps of the copy reach the UNet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Residuals {
    /// Every skip and the middle: ControlNet.
    #[default]
    All,
    /// The middle, and the skips at the deepest resolution through a SiLU: the semantic-guided network. The published code
    /// calls it `only_mid_control`; its spatial feature fusion is left out, because it multiplies two factors that are both
    /// initialised to zero, so that neither ever receives a gradient.
    DeepAndMid,
}

/// `config.json` of a ControlNet; the defaults fit Stable Diffusion 1.5.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ControlNetConfig {
    /// The way down, as in the UNet.
    #[serde(flatten)]
    pub unet: UNet2DConditionConfig,
    /// Channels of the condition image.
    pub conditioning_channels: i64,
    /// Widths of the condition's encoder, which halves the image between two of them: n widths for an image 2^(n − 1) times
    /// as large as the latent.
    pub conditioning_embedding_out_channels: Vec<i64>,
    /// Which maps reach the UNet; not a published key, because a published ControlNet uses all.
    pub residuals: Residuals,
}

impl Default for ControlNetConfig {
    fn default() -> Self {
        Self {
            unet: UNet2DConditionConfig::default(),
            conditioning_channels: 3,
            conditioning_embedding_out_channels: vec![16, 32, 96, 256],
            residuals: Residuals::All,
        }
    }
}

impl ControlNetConfig {
    /// Pixels of the condition per latent cell, along each side.
    pub fn factor(&self) -> i64 {
        1 << (self.conditioning_embedding_out_channels.len() - 1)
    }

    /// Whether a network can be built from these values.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.unet.validate()?;
        let widths = &self.conditioning_embedding_out_channels;
        require(!widths.is_empty() && widths.iter().all(|width| *width > 0), NAME, || {
            "conditioning_embedding_out_channels needs one positive width per resolution of the condition".into()
        })?;
        require(self.conditioning_channels > 0, NAME, || "conditioning_channels has to be at least 1".into())
    }
}

/// What a control network adds to the UNet.
#[derive(Debug)]
pub struct ControlResiduals {
    /// For the last of the UNet's skips, as many as there are, in the order in which the UNet makes them.
    pub skips: Vec<Tensor>,
    /// For the map after the middle block.
    pub mid: Tensor,
}

impl ControlResiduals {
    /// The same residuals `scale` times as strong (`conditioning_scale`).
    pub fn scale(self, scale: f64) -> Self {
        Self { skips: self.skips.into_iter().map(|skip| skip * scale).collect(), mid: self.mid * scale }
    }
}

/// Brings the condition to the size and width of the first map of the UNet.
#[derive(Debug)]
struct ConditioningEmbedding {
    convs: Vec<nn::Conv2D>,
    conv_out: nn::Conv2D,
}

impl ConditioningEmbedding {
    fn new(vs: nn::Path, config: &ControlNetConfig) -> Self {
        let widths = &config.conditioning_embedding_out_channels;
        let mut convs = vec![conv3x3(&vs / "conv_in", config.conditioning_channels, widths[0])];
        for (i, pair) in widths.windows(2).enumerate() {
            convs.push(conv3x3(&vs / "blocks" / (2 * i), pair[0], pair[0]));
            convs.push(conv2d(&vs / "blocks" / (2 * i + 1), pair[0], pair[1], 3, 2, 1));
        }
        let (last, out) = (widths[widths.len() - 1], config.unet.block_out_channels[0]);
        Self { convs, conv_out: zero_conv(&vs / "conv_out", last, out, 3) }
    }

    fn forward(&self, condition: &Tensor) -> Tensor {
        let x = self.convs.iter().fold(channels_last(condition), |x, conv| conv.forward(&x).silu());
        self.conv_out.forward(&x)
    }
}

/// A control network in the published layout of diffusers.
#[derive(Debug)]
pub struct ControlNet {
    encoder: Encoder,
    controlnet_cond_embedding: ConditioningEmbedding,
    controlnet_down_blocks: Vec<nn::Conv2D>,
    controlnet_mid_block: nn::Conv2D,
    residuals: Residuals,
    /// How many of the deepest skips are used.
    used: usize,
}

impl ControlNet {
    /// Declares the parameters under `vs` by their published names; fails if the config describes no network. All outputs
    /// start at zero, so a new control network changes nothing.
    pub fn new(vs: nn::Path, config: &ControlNetConfig) -> Result<Self, ConfigError> {
        config.validate()?;
        let skips = config.unet.skip_channels();
        let pointwise = |(i, width): (usize, &i64)| zero_conv(&vs / "controlnet_down_blocks" / i, *width, *width, 1);
        let deepest = config.unet.block_out_channels[config.unet.block_out_channels.len() - 1];
        Ok(Self {
            encoder: Encoder::new(&vs, &config.unet),
            controlnet_cond_embedding: ConditioningEmbedding::new(&vs / "controlnet_cond_embedding", config),
            controlnet_down_blocks: skips.iter().enumerate().map(pointwise).collect(),
            controlnet_mid_block: zero_conv(&vs / "controlnet_mid_block", deepest, deepest, 1),
            residuals: config.residuals,
            used: match config.residuals {
                Residuals::All => skips.len(),
                // the deepest level's layers, and the downsampling that led to it
                Residuals::DeepAndMid => config.unet.layers_per_block as usize + 1,
            },
        })
    }

    /// `x` [B, in_channels, h, w], `t` [B], `context` [B or 1, tokens, cross_attention_dim] as for the UNet; `condition`
    /// [B, conditioning_channels, H, W] with sides [`ControlNetConfig::factor`] times those of `x`.
    pub fn forward(&self, x: &Tensor, t: &Tensor, context: &Tensor, condition: &Tensor) -> ControlResiduals {
        self.forward_hint(x, t, context, &self.hint(condition))
    }

    /// The encoded condition [B, C0, h, w]; it depends on the condition alone, so a sampler needs it once.
    pub fn hint(&self, condition: &Tensor) -> Tensor {
        self.controlnet_cond_embedding.forward(condition)
    }

    /// [`ControlNet::forward`] from a `hint` that is already encoded.
    pub fn forward_hint(&self, x: &Tensor, t: &Tensor, context: &Tensor, hint: &Tensor) -> ControlResiduals {
        let encoded = self.encoder.forward(x, t, context, Some(hint));
        let first = encoded.skips.len() - self.used;
        let project = |(conv, skip): (&nn::Conv2D, &Tensor)| match self.residuals {
            Residuals::All => conv.forward(skip),
            Residuals::DeepAndMid => conv.forward(skip).silu(),
        };
        let skips = self.controlnet_down_blocks.iter().zip(&encoded.skips).skip(first).map(project).collect();
        ControlResiduals { skips, mid: self.controlnet_mid_block.forward(&encoded.mid) }
    }
}

/// Copies every parameter of the UNet in `unet` that the control network in `control` has too, by name: where a ControlNet
/// starts from. Returns how many were copied.
pub fn copy_encoder(unet: &nn::VarStore, control: &nn::VarStore) -> usize {
    let source = unet.variables();
    let shared = control.variables().into_iter().filter_map(|(name, to)| Some((source.get(&name)?.shallow_clone(), to)));
    tch::no_grad(|| shared.map(|(from, mut to)| to.copy_(&from)).count())
}
