//! The denoiser of latent diffusion: diffusers' `UNet2DConditionModel` in the forms of Stable Diffusion 1.x and 2.x.

mod blocks;
mod config;

pub use blocks::timestep_embedding;
pub use config::{DownBlockType, PerLevel, UNet2DConditionConfig, UpBlockType};

use super::{
    conv::{Conv2d, conv2d, conv3x3},
    nn::{ConfigError, GroupNorm, ResnetBlock2D, Upsample2D, channels_last, group_norm, show, silu},
    recompute::{Pass, segment},
    residuals::ControlResiduals,
};
use blocks::{Layer, TimeEmbedding, Transformer2D};
use tch::{
    Tensor,
    nn::{self, Module},
};

#[derive(Debug)]
struct DownBlock {
    layers: Vec<Layer>,
    downsample: Option<Conv2d>,
}

#[derive(Debug)]
struct UpBlock {
    layers: Vec<Layer>,
    upsample: Option<Upsample2D>,
}

/// The maps that the way down passes to the way up.
#[derive(Debug)]
pub(super) struct Encoded {
    /// The time embedding after its SiLU, [B, 4·C0].
    emb: Tensor,
    /// One map per entry of [`UNet2DConditionConfig::skip_channels`].
    pub(super) skips: Vec<Tensor>,
    /// The map after the middle block.
    pub(super) mid: Tensor,
}

/// The way down and the middle, which a ControlNet copies.
#[derive(Debug)]
pub(super) struct Encoder {
    conv_in: Conv2d,
    time_embedding: TimeEmbedding,
    down_blocks: Vec<DownBlock>,
    mid_resnets: [ResnetBlock2D; 2],
    mid_attention: Transformer2D,
}

impl Encoder {
    pub(super) fn new(vs: &nn::Path, config: &UNet2DConditionConfig) -> Self {
        let widths = &config.block_out_channels;
        let deepest = widths.len() - 1;
        let width = widths[deepest];
        let block = |level: usize| {
            let vs = vs / "down_blocks" / level;
            let (inputs, outputs) = (widths[level.saturating_sub(1)], widths[level]);
            let attends = config.down_block_types[level] == DownBlockType::CrossAttnDownBlock2D;
            let heads = attends.then(|| config.heads(level));
            let layer = |i| Layer::new(&vs, i, (if i == 0 { inputs } else { outputs }, outputs), heads, config);
            let downsample = || conv2d(&vs / "downsamplers" / 0 / "conv", outputs, outputs, 3, 2, 1);
            DownBlock {
                layers: (0..config.layers_per_block).map(layer).collect(),
                downsample: (level < deepest).then(downsample),
            }
        };
        let mid = vs / "mid_block";
        let (temb, groups) = (Some(config.time_embed_dim()), config.norm_num_groups);
        let resnet = |i: i64| ResnetBlock2D::new(&mid / "resnets" / i, width, width, temb, groups, config.norm_eps);
        Self {
            conv_in: conv3x3(vs / "conv_in", config.in_channels, widths[0]),
            time_embedding: TimeEmbedding::new(vs / "time_embedding", config),
            down_blocks: (0..widths.len()).map(block).collect(),
            mid_resnets: [0, 1].map(resnet),
            mid_attention: Transformer2D::new(&mid / "attentions" / 0, width, config.heads(deepest), config),
        }
    }

    /// Runs the way down and the middle. `hint` [B, C0, H, W], if there is one, is added after the input convolution.
    pub(super) fn forward<'a>(
        &'a self,
        pass: Pass<'_, 'a>,
        x: &Tensor,
        t: &Tensor,
        context: &Tensor,
        hint: Option<&Tensor>,
    ) -> Encoded {
        let emb = segment(pass, &[t], |inputs| self.time_embedding.forward(&inputs[0]));
        let inputs: Vec<&Tensor> = std::iter::once(x).chain(hint).collect();
        let mut x = segment(pass, &inputs, |inputs| {
            let x = self.conv_in.forward(&channels_last(&inputs[0]));
            inputs.get(1).map_or_else(|| x.shallow_clone(), |hint| &x + hint)
        });
        show("conv_in", &x);
        let mut skips = vec![x.shallow_clone()];
        for (i, block) in self.down_blocks.iter().enumerate() {
            let level = format!("down_blocks.{i}");
            for (j, layer) in block.layers.iter().enumerate() {
                x = layer.forward(pass, (&level, j), &[&x], &emb, context);
                skips.push(x.shallow_clone());
            }
            if let Some(downsample) = &block.downsample {
                x = segment(pass, &[&x], |inputs| downsample.forward(&inputs[0]));
                skips.push(x.shallow_clone());
            }
            show(&level, &x);
        }
        let resnet = |i: usize, x: &Tensor| {
            let block = &self.mid_resnets[i];
            segment(pass, &[x, &emb], |inputs| block.forward(&inputs[0], Some(&inputs[1])))
        };
        let x = resnet(0, &x);
        let x = segment(pass, &[&x, context], |inputs| self.mid_attention.forward(&inputs[0], &inputs[1]));
        let mid = resnet(1, &x);
        show("mid_block", &mid);
        Encoded { emb, skips, mid }
    }
}

/// The denoising network.
#[derive(Debug)]
pub struct UNet2DConditionModel {
    encoder: Encoder,
    up_blocks: Vec<UpBlock>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl UNet2DConditionModel {
    /// Declares the parameters under `vs` by their published names; fails if the config describes no network.
    pub fn new(vs: nn::Path, config: &UNet2DConditionConfig) -> Result<Self, ConfigError> {
        config.validate()?;
        let (widths, attends) = (&config.block_out_channels, config.up_attends());
        let deepest = widths.len() - 1;
        let mut skips = config.skip_channels();
        let mut inputs = widths[deepest];
        let mut up_blocks = Vec::new();
        for (i, attends) in attends.into_iter().enumerate() {
            let (vs, level) = (&vs / "up_blocks" / i, deepest - i);
            let heads = attends.then(|| config.heads(level));
            let mut layers = Vec::new();
            for layer in 0..=config.layers_per_block {
                let skip = skips.pop().expect("one skip per layer on the way up");
                layers.push(Layer::new(&vs, layer, (inputs + skip, widths[level]), heads, config));
                inputs = widths[level];
            }
            let upsample = (level > 0).then(|| Upsample2D::new(&vs / "upsamplers" / 0, widths[level]));
            up_blocks.push(UpBlock { layers, upsample });
        }
        Ok(Self {
            encoder: Encoder::new(&vs, config),
            up_blocks,
            conv_norm_out: group_norm(&vs / "conv_norm_out", config.norm_num_groups, widths[0], config.norm_eps),
            conv_out: conv3x3(&vs / "conv_out", widths[0], config.out_channels),
        })
    }

    /// Returns true if the parameter `name` belongs to the way up, the half that VLMDiff trains. The way down and the
    /// middle keep the weights of Stable Diffusion (`configure_optimizers` of DiAD).
    pub fn is_decoder(name: &str) -> bool {
        ["up_blocks.", "conv_norm_out.", "conv_out."].iter().any(|prefix| name.starts_with(prefix))
    }

    /// Maps `x` [B, in_channels, h, w], timesteps `t` `[B]` of any kind and `context` [B or 1, tokens,
    /// cross_attention_dim] to the prediction [B, out_channels, h, w]. The residuals of `control` are added to the
    /// middle and the skips.
    pub fn forward(&self, x: &Tensor, t: &Tensor, context: &Tensor, control: Option<&ControlResiduals>) -> Tensor {
        self.forward_with(None, x, t, context, control)
    }

    /// Does as [`UNet2DConditionModel::forward`]; with a `pass`, the maps inside are not kept, see
    /// [`Recompute`](super::recompute).
    pub fn forward_with<'a>(
        &'a self,
        pass: Pass<'_, 'a>,
        x: &Tensor,
        t: &Tensor,
        context: &Tensor,
        control: Option<&ControlResiduals>,
    ) -> Tensor {
        let Encoded { emb, mut skips, mid: mut x } = self.encoder.forward(pass, x, t, context, None);
        if let Some(control) = control {
            x = x + &control.mid;
            for (skip, residual) in skips.iter_mut().rev().zip(control.skips.iter().rev()) {
                *skip = &*skip + residual;
            }
        }
        for (i, block) in self.up_blocks.iter().enumerate() {
            let level = format!("up_blocks.{i}");
            for (j, layer) in block.layers.iter().enumerate() {
                let skip = skips.pop().expect("one skip per layer on the way up");
                x = layer.forward(pass, (&level, j), &[&x, &skip], &emb, context);
            }
            if let (Some(upsample), Some(skip)) = (&block.upsample, skips.last()) {
                // the size is that of the next skip, which is not twice this one if a side was odd
                let (_, _, h, w) = skip.size4().unwrap();
                x = segment(pass, &[&x], move |inputs| upsample.forward(&inputs[0], [h, w]));
            }
            show(&level, &x);
        }
        self.conv_out.forward(&silu(self.conv_norm_out.forward(&x)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::nn::quietly;
    use super::*;
    use tch::{Device, Kind, nn::VarStore};

    fn small() -> UNet2DConditionConfig {
        serde_json::from_str(
            r#"{"block_out_channels": [16, 24], "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
                "layers_per_block": 1, "cross_attention_dim": 12, "attention_head_dim": [1, 3], "norm_num_groups": 8,
                "use_linear_projection": true}"#,
        )
        .unwrap()
    }

    #[test]
    fn a_small_network_has_the_documented_shapes() {
        let vs = VarStore::new(Device::Cpu);
        let unet = UNet2DConditionModel::new(vs.root(), &small()).unwrap();
        let variables = vs.variables();
        assert_eq!(variables["up_blocks.0.resnets.0.conv1.weight"].size(), [24, 48, 3, 3]);
        assert_eq!(variables["up_blocks.1.resnets.1.conv1.weight"].size(), [16, 32, 3, 3]);
        assert_eq!(variables["down_blocks.1.attentions.0.proj_in.weight"].size(), [24, 24]);
        assert!(!variables.keys().any(|name| name.starts_with("down_blocks.0.attentions")));
        assert!(UNet2DConditionModel::is_decoder("up_blocks.0.resnets.0.conv1.weight"));
        assert!(!UNet2DConditionModel::is_decoder("mid_block.resnets.0.conv1.weight"));
        quietly(|| {
            let of = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, Device::Cpu));
            let (x, t, context) = (of(&[3, 4, 7, 5]), Tensor::from_slice(&[1_i64, 500, 999]), of(&[1, 6, 12]));
            let shared = unet.forward(&x, &t, &context, None);
            assert_eq!(shared.size(), x.size());
            // one context for all rows gives the same as a copy for each
            let copied = unet.forward(&x, &t, &context.repeat([3, 1, 1]), None);
            // The same products in another order: 2⁻²⁴ · √(n · L) for n = 432 and L = 20 layers, of values of about 1.
            assert!((shared - copied).abs().max().double_value(&[]) < 1e-5);
        });
    }

    #[test]
    fn a_config_that_describes_no_network_is_refused() {
        let refusal = |change: fn(&mut UNet2DConditionConfig)| {
            let mut config = small();
            change(&mut config);
            UNet2DConditionModel::new(VarStore::new(Device::Cpu).root(), &config).unwrap_err().to_string()
        };
        assert!(refusal(|c| c.down_block_types.truncate(1)).contains("need 2 entries each"));
        assert!(refusal(|c| c.attention_head_dim = PerLevel::Same(7)).contains("has to divide the width 16"));
        assert!(refusal(|c| c.attention_head_dim = PerLevel::Each(vec![1])).contains("one number, or 2"));
        assert!(refusal(|c| c.cross_attention_dim = 0).contains("cross_attention_dim"));
    }
}
