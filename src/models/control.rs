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
    let shared =
        control.variables().into_iter().filter_map(|(name, to)| Some((source.get(&name)?.shallow_clone(), to)));
    tch::no_grad(|| shared.map(|(from, mut to)| to.copy_(&from)).count())
}

#[cfg(test)]
mod tests {
    use super::super::{
        nn::golden::{Case, quietly},
        unet::UNet2DConditionModel,
    };
    use super::*;
    use tch::{Device, Kind, nn::VarStore};

    #[test]
    fn equals_diffusers() {
        let (Some(case), Some(unet_case)) = (Case::open("controlnet"), Case::open("unet")) else { return };
        let [vs, unet_vs] = [(); 2].map(|()| VarStore::new(Device::Cpu));
        let control = ControlNet::new(vs.root(), &case.config()).unwrap();
        let unet = UNet2DConditionModel::new(unet_vs.root(), &unet_case.config()).unwrap();
        case.load("diffusion_pytorch_model.safetensors", &vs, |key| Some(key.to_owned()));
        unet_case.load("diffusion_pytorch_model.safetensors", &unet_vs, |key| Some(key.to_owned()));
        quietly(|| {
            let [x, t, context] = ["sample", "timestep", "encoder_hidden_states"].map(|name| case.input(name));
            let condition = case.input("controlnet_cond");
            case.assert_close("cond_embedding", &control.hint(condition), 1.);
            let residuals = control.forward(x, t, context, condition).scale(0.7);
            assert_eq!(residuals.skips.len(), 12);
            residuals.skips.iter().enumerate().for_each(|(i, skip)| case.assert_close(&format!("down.{i}"), skip, 1.));
            case.assert_close("mid", &residuals.mid, 1.);
            case.assert_close("unet_sample", &unet.forward(x, t, context, Some(&residuals)), 1.);
        });
    }

    fn small(residuals: &str) -> ControlNetConfig {
        serde_json::from_value(serde_json::json!({
            "block_out_channels": [8, 8, 16], "layers_per_block": 1, "cross_attention_dim": 12, "norm_num_groups": 4,
            "down_block_types": ["DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"], "attention_head_dim": 2,
            "conditioning_embedding_out_channels": [4, 8, 8], "residuals": residuals,
        }))
        .unwrap()
    }

    fn inputs() -> (Tensor, Tensor, Tensor, Tensor) {
        let of = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, Device::Cpu));
        (of(&[2, 4, 8, 8]), Tensor::from_slice(&[1_i64, 901]), of(&[2, 5, 12]), of(&[2, 3, 32, 32]))
    }

    #[test]
    fn a_new_control_network_changes_nothing() {
        let config = small("all");
        assert_eq!(config.factor(), 4);
        let [vs, unet_vs] = [(); 2].map(|()| VarStore::new(Device::Cpu));
        let control = ControlNet::new(vs.root(), &config).unwrap();
        let unet = UNet2DConditionModel::new(unet_vs.root(), &config.unet).unwrap();
        quietly(|| {
            let (x, t, context, condition) = inputs();
            let residuals = control.forward(&x, &t, &context, &condition);
            assert_eq!(unet.forward(&x, &t, &context, Some(&residuals)), unet.forward(&x, &t, &context, None));
        });
        let copied = copy_encoder(&unet_vs, &vs);
        let shared = vs.variables().keys().filter(|name| !name.starts_with("controlnet_")).count();
        assert_eq!(copied, shared);
        let name = "mid_block.resnets.0.conv1.weight";
        assert_eq!(vs.variables()[name], unet_vs.variables()[name]);
    }

    #[test]
    fn the_semantic_guided_network_reaches_the_deepest_skips_and_the_middle() {
        let [vs, all_vs] = [(); 2].map(|()| VarStore::new(Device::Cpu));
        let deep = ControlNet::new(vs.root(), &small("deep_and_mid")).unwrap();
        let mut all_store = all_vs;
        let all = ControlNet::new(all_store.root(), &small("all")).unwrap();
        // give the zero convolutions something to say
        tch::no_grad(|| vs.variables().into_values().for_each(|mut variable| _ = variable.uniform_(-0.3, 0.3)));
        all_store.copy(&vs).unwrap();
        quietly(|| {
            let (x, t, context, condition) = inputs();
            let deep = deep.forward(&x, &t, &context, &condition);
            let all = all.forward(&x, &t, &context, &condition);
            assert_eq!(all.skips.len(), 6);
            assert_eq!(deep.skips.iter().map(Tensor::size).collect::<Vec<_>>(), [[2, 8, 2, 2], [2, 16, 2, 2]]);
            assert_eq!(deep.mid, all.mid);
            for (deep, all) in deep.skips.iter().zip(&all.skips[4..]) {
                assert_eq!(*deep, all.silu());
            }
        });
        // of the zero convolutions that are not used no gradient exists, so that an optimiser leaves them alone
        let (x, t, context, condition) = inputs();
        let residuals = deep.forward(&x, &t, &context, &condition);
        (residuals.mid.square().mean(Kind::Float) + residuals.skips[1].square().mean(Kind::Float)).backward();
        let variables = vs.variables();
        assert!(!variables["controlnet_down_blocks.3.weight"].grad().defined());
        assert!(variables["controlnet_down_blocks.5.weight"].grad().defined());
        assert!(variables["controlnet_cond_embedding.conv_in.weight"].grad().abs().max().double_value(&[]) > 0.);
    }

    #[test]
    fn a_config_survives_serde() {
        let config = small("deep_and_mid");
        let text = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<ControlNetConfig>(&text).unwrap(), config);
        assert!(ControlNetConfig { conditioning_embedding_out_channels: vec![], ..config }.validate().is_err());
    }
}
