//! The image autoencoder of latent diffusion: diffusers' `AutoencoderKL`.

use super::{
    checkpoint::{Checkpoint, CheckpointError},
    conv::{Conv2d, conv2d, conv3x3},
    latent_diffusion::{
        AUTOENCODER,
        names::{self, Names},
    },
    nn::{
        ConfigError, GroupNorm, MAX_LAYERS, MAX_SIZE, ResnetBlock2D, Upsample2D, attention, channels_last, group_norm,
        linear, require, require_sizes, require_widths, show, silu, to_image, to_tokens,
    },
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{
    Tensor,
    nn::{self, Module},
};

const NAME: &str = "AutoencoderKL";
/// The epsilon of every group normalisation in this network; `config.json` does not set it.
const EPS: f64 = 1e-6;

/// `vae/config.json`; the defaults are Stable Diffusion 1.5.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct AutoencoderKlConfig {
    /// Channels of the image.
    pub in_channels: i64,
    /// Channels of the reconstruction.
    pub out_channels: i64,
    /// Width of each level; the image shrinks by 2 between two levels, so by 2^(levels − 1) in all.
    pub block_out_channels: Vec<i64>,
    /// Residual blocks per level of the encoder; the decoder has one more.
    pub layers_per_block: i64,
    /// Channels of the latent.
    pub latent_channels: i64,
    /// Groups of each group normalisation; divides every width.
    pub norm_num_groups: i64,
    /// True if the middle has its attention.
    pub mid_block_add_attention: bool,
    /// True if a 1×1 convolution follows the encoder.
    pub use_quant_conv: bool,
    /// True if a 1×1 convolution precedes the decoder.
    pub use_post_quant_conv: bool,
    /// The factor by which latents are multiplied for the denoiser; the product has about unit variance.
    pub scaling_factor: f64,
}

impl Default for AutoencoderKlConfig {
    fn default() -> Self {
        Self {
            in_channels: 3,
            out_channels: 3,
            block_out_channels: vec![128, 256, 512, 512],
            layers_per_block: 2,
            latent_channels: 4,
            norm_num_groups: 32,
            mid_block_add_attention: true,
            use_quant_conv: true,
            use_post_quant_conv: true,
            scaling_factor: 0.18215,
        }
    }
}

impl AutoencoderKlConfig {
    /// Returns the pixels per latent cell, along each side.
    pub fn factor(&self) -> i64 {
        1 << (self.block_out_channels.len() - 1)
    }

    /// Checks that a network can be built from these values.
    pub fn validate(&self) -> Result<(), ConfigError> {
        require_widths(NAME, &self.block_out_channels, self.norm_num_groups)?;
        let channels = [
            ("in_channels", self.in_channels),
            ("out_channels", self.out_channels),
            ("latent_channels", self.latent_channels),
        ];
        require_sizes(NAME, MAX_SIZE, &channels)?;
        require_sizes(NAME, MAX_LAYERS, &[("layers_per_block", self.layers_per_block)])?;
        require(self.scaling_factor > 0., NAME, || {
            format!(
                "scaling_factor {} has to be positive, 1 / (standard deviation of the latents)",
                self.scaling_factor
            )
        })
    }

    /// Returns the same weights under the names of this network, which are those of diffusers, from any layout in which
    /// they are published: diffusers', also with the attention names from before 0.17; or latent-diffusion's, alone or
    /// below `first_stage_model.` of a file with all parts. The losses (`loss.…`) that a training of latent-diffusion
    /// keeps beside the network are left out.
    ///
    /// # Errors
    /// [`CheckpointError::Format`] if two tensors would get one name.
    pub fn canonical(&self, published: Checkpoint) -> Result<Checkpoint, CheckpointError> {
        let weights = names::canonical(published, AUTOENCODER, &self.names())?;
        Ok(weights.retain(|name| !name.starts_with("loss.")))
    }

    /// Returns the modules of `first_stage_model`, and the names that the attention had in diffusers before 0.17.
    fn names(&self) -> Names {
        let mut names = Names::default();
        let levels = self.block_out_channels.len();
        for (side, theirs, ours, resize, layers) in [
            ("encoder", "down", "down_blocks", "downsample", self.layers_per_block),
            ("decoder", "up", "up_blocks", "upsample", self.layers_per_block + 1),
        ] {
            for level in 0..levels {
                // latent-diffusion counts the decoder's levels from the image, diffusers from the latent
                let our_level = if side == "decoder" { levels - 1 - level } else { level };
                let (theirs, ours) = (format!("{side}.{theirs}.{level}"), format!("{side}.{ours}.{our_level}"));
                for layer in 0..layers {
                    let (theirs, ours) = (format!("{theirs}.block.{layer}"), format!("{ours}.resnets.{layer}"));
                    names.add(format!("{theirs}.nin_shortcut"), format!("{ours}.conv_shortcut"));
                    names.add(theirs, ours);
                }
                names.add(format!("{theirs}.{resize}"), format!("{ours}.{resize}rs.0"));
            }
            let mid = format!("{side}.mid_block");
            names.add(format!("{side}.mid.block_1"), format!("{mid}.resnets.0"));
            names.add(format!("{side}.mid.block_2"), format!("{mid}.resnets.1"));
            names.add(format!("{side}.norm_out"), format!("{side}.conv_norm_out"));
            for (theirs, old, ours) in [
                ("norm", "group_norm", "group_norm"),
                ("q", "query", "to_q"),
                ("k", "key", "to_k"),
                ("v", "value", "to_v"),
                ("proj_out", "proj_attn", "to_out.0"),
            ] {
                names.add(format!("{side}.mid.attn_1.{theirs}"), format!("{mid}.attentions.0.{ours}"));
                names.add(format!("{mid}.attentions.0.{old}"), format!("{mid}.attentions.0.{ours}"));
            }
        }
        names
    }
}

/// Self-attention with one head over all cells of the deepest map.
#[derive(Debug)]
struct Attention {
    group_norm: GroupNorm,
    to_q: nn::Linear,
    to_k: nn::Linear,
    to_v: nn::Linear,
    to_out: nn::Linear,
}

impl Attention {
    fn new(vs: nn::Path, channels: i64, groups: i64) -> Self {
        let project = |name: &str| linear(&vs / name, channels, channels);
        Self {
            group_norm: group_norm(&vs / "group_norm", groups, channels, EPS),
            to_q: project("to_q"),
            to_k: project("to_k"),
            to_v: project("to_v"),
            to_out: linear(&vs / "to_out" / 0, channels, channels),
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let tokens = to_tokens(&self.group_norm.forward(x)); // [B, H·W, C]
        let [q, k, v] = [&self.to_q, &self.to_k, &self.to_v].map(|layer| layer.forward(&tokens));
        x + to_image(&self.to_out.forward(&attention(&q, &k, &v, 1, false)), x)
    }
}

#[derive(Debug)]
struct MidBlock {
    resnets: [ResnetBlock2D; 2],
    attention: Option<Attention>,
}

impl MidBlock {
    fn new(vs: nn::Path, channels: i64, config: &AutoencoderKlConfig) -> Self {
        let groups = config.norm_num_groups;
        let resnet = |i: i64| ResnetBlock2D::new(&vs / "resnets" / i, channels, channels, None, groups, EPS);
        let attention = || Attention::new(&vs / "attentions" / 0, channels, groups);
        Self { resnets: [0, 1].map(resnet), attention: config.mid_block_add_attention.then(attention) }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let mut x = self.resnets[0].forward(x, None);
        if let Some(attention) = &self.attention {
            x = attention.forward(&x);
            show("mid_block.attentions.0", &x);
        }
        let x = self.resnets[1].forward(&x, None);
        show("mid_block", &x);
        x
    }
}

/// One level: its residual blocks and, unless it is the last, the resizing to the next.
#[derive(Debug)]
struct Level<Resize> {
    resnets: Vec<ResnetBlock2D>,
    resize: Option<Resize>,
}

impl<Resize> Level<Resize> {
    fn new(vs: &nn::Path, layers: i64, inputs: i64, outputs: i64, groups: i64, resize: Option<Resize>) -> Self {
        let width = |layer| if layer == 0 { inputs } else { outputs };
        let resnet = |layer| ResnetBlock2D::new(vs / "resnets" / layer, width(layer), outputs, None, groups, EPS);
        Self { resnets: (0..layers).map(resnet).collect(), resize }
    }
}

#[derive(Debug)]
struct Encoder {
    conv_in: Conv2d,
    down_blocks: Vec<Level<Conv2d>>,
    mid_block: MidBlock,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Encoder {
    fn new(vs: nn::Path, config: &AutoencoderKlConfig) -> Self {
        let (widths, groups) = (&config.block_out_channels, config.norm_num_groups);
        let deepest = widths[widths.len() - 1];
        let level = |i: usize| {
            let vs = &vs / "down_blocks" / i;
            let downsample = || conv2d(&vs / "downsamplers" / 0 / "conv", widths[i], widths[i], 3, 2, 0);
            let resize = (i + 1 < widths.len()).then(downsample);
            Level::new(&vs, config.layers_per_block, widths[i.saturating_sub(1)], widths[i], groups, resize)
        };
        Self {
            conv_in: conv3x3(&vs / "conv_in", config.in_channels, widths[0]),
            down_blocks: (0..widths.len()).map(level).collect(),
            mid_block: MidBlock::new(&vs / "mid_block", deepest, config),
            conv_norm_out: group_norm(&vs / "conv_norm_out", groups, deepest, EPS),
            conv_out: conv3x3(&vs / "conv_out", deepest, 2 * config.latent_channels),
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let mut x = self.conv_in.forward(x);
        show("conv_in", &x);
        for (i, level) in self.down_blocks.iter().enumerate() {
            x = level.resnets.iter().fold(x, |x, resnet| resnet.forward(&x, None));
            if let Some(downsample) = &level.resize {
                // the zero border is to the right and below only, unlike in the UNet
                x = downsample.forward(&x.constant_pad_nd([0, 1, 0, 1]));
            }
            show(format_args!("down_blocks.{i}"), &x);
        }
        let x = self.mid_block.forward(&x);
        self.conv_out.forward(&silu(self.conv_norm_out.forward(&x)))
    }
}

#[derive(Debug)]
struct Decoder {
    conv_in: Conv2d,
    mid_block: MidBlock,
    up_blocks: Vec<Level<Upsample2D>>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Decoder {
    fn new(vs: nn::Path, config: &AutoencoderKlConfig) -> Self {
        let widths: Vec<i64> = config.block_out_channels.iter().rev().copied().collect();
        let (groups, shallowest) = (config.norm_num_groups, widths[widths.len() - 1]);
        let level = |i: usize| {
            let vs = &vs / "up_blocks" / i;
            let resize = (i + 1 < widths.len()).then(|| Upsample2D::new(&vs / "upsamplers" / 0, widths[i]));
            Level::new(&vs, config.layers_per_block + 1, widths[i.saturating_sub(1)], widths[i], groups, resize)
        };
        Self {
            conv_in: conv3x3(&vs / "conv_in", config.latent_channels, widths[0]),
            mid_block: MidBlock::new(&vs / "mid_block", widths[0], config),
            up_blocks: (0..widths.len()).map(level).collect(),
            conv_norm_out: group_norm(&vs / "conv_norm_out", groups, shallowest, EPS),
            conv_out: conv3x3(&vs / "conv_out", shallowest, config.out_channels),
        }
    }

    fn forward(&self, z: &Tensor) -> Tensor {
        let x = self.conv_in.forward(z);
        show("conv_in", &x);
        let mut x = self.mid_block.forward(&x);
        for level in &self.up_blocks {
            x = level.resnets.iter().fold(x, |x, resnet| resnet.forward(&x, None));
            if let Some(upsample) = &level.resize {
                let (_, _, h, w) = x.size4().unwrap();
                x = upsample.forward(&x, [2 * h, 2 * w]);
            }
        }
        self.conv_out.forward(&silu(self.conv_norm_out.forward(&x)))
    }
}

/// The diagonal Gaussian that an image is encoded to.
#[derive(Debug)]
pub struct Posterior {
    /// Mean, [B, latent_channels, h, w].
    pub mean: Tensor,
    /// Natural logarithm of the variance within [-30, 20], [B, latent_channels, h, w].
    pub logvar: Tensor,
}

impl Posterior {
    /// Returns the standard deviation, [B, latent_channels, h, w].
    pub fn std(&self) -> Tensor {
        (&self.logvar * 0.5).exp()
    }

    /// Returns mean + standard deviation × `noise` (standard normal, of the same shape).
    pub fn sample(&self, noise: &Tensor) -> Tensor {
        &self.mean + self.std() * noise
    }

    /// Returns the divergence from the standard normal, summed over each latent: `[B]` nats.
    pub fn kl(&self) -> Tensor {
        let terms = self.mean.square() + self.logvar.exp() - 1. - &self.logvar;
        terms.sum_dim_intlist([1, 2, 3].as_slice(), false, None) * 0.5
    }
}

/// Encoder and decoder.
#[derive(Debug)]
pub struct AutoencoderKl {
    encoder: Encoder,
    decoder: Decoder,
    quant_conv: Option<Conv2d>,
    post_quant_conv: Option<Conv2d>,
    config: AutoencoderKlConfig,
}

impl AutoencoderKl {
    /// Declares the parameters under `vs` by their published names; fails if the config describes no network.
    pub fn new(vs: nn::Path, config: &AutoencoderKlConfig) -> Result<Self, ConfigError> {
        config.validate()?;
        let z = config.latent_channels;
        let pointwise = |name: &str, channels| conv2d(&vs / name, channels, channels, 1, 1, 0);
        Ok(Self {
            encoder: Encoder::new(&vs / "encoder", config),
            decoder: Decoder::new(&vs / "decoder", config),
            quant_conv: config.use_quant_conv.then(|| pointwise("quant_conv", 2 * z)),
            post_quant_conv: config.use_post_quant_conv.then(|| pointwise("post_quant_conv", z)),
            config: config.clone(),
        })
    }

    /// Returns the configuration from which the network was built.
    pub fn config(&self) -> &AutoencoderKlConfig {
        &self.config
    }

    /// Maps `x` [B, in_channels, H, W], with sides that are multiples of [`AutoencoderKlConfig::factor`], to the
    /// posterior of the latent, not yet scaled by `scaling_factor`.
    pub fn encode(&self, x: &Tensor) -> Posterior {
        let mut moments = self.encoder.forward(&channels_last(x)); // [B, 2·latent_channels, h, w]
        if let Some(conv) = &self.quant_conv {
            moments = conv.forward(&moments);
        }
        show("moments", &moments);
        let [mean, logvar]: [Tensor; 2] = moments.chunk(2, 1).try_into().unwrap();
        Posterior { mean, logvar: logvar.clamp(-30., 20.) }
    }

    /// Maps `z` [B, latent_channels, h, w], not scaled, to the image [B, out_channels, H, W], which is not clamped.
    pub fn decode(&self, z: &Tensor) -> Tensor {
        let mut z = channels_last(z);
        if let Some(conv) = &self.post_quant_conv {
            z = conv.forward(&z);
        }
        self.decoder.forward(&z)
    }

    /// Returns the last layer of the decoder, `conv_out.weight` [out_channels, C, 3, 3]. The adversarial loss is
    /// balanced by the gradients there (latent-diffusion, `calculate_adaptive_weight`).
    pub fn last_layer(&self) -> &Tensor {
        &self.decoder.conv_out.ws
    }
}

#[cfg(test)]
mod tests {
    use super::super::nn::quietly;
    use super::*;
    use tch::{Device, Kind, nn::VarStore};

    fn small() -> AutoencoderKlConfig {
        serde_json::from_str(r#"{"block_out_channels": [8, 16, 16], "layers_per_block": 1, "norm_num_groups": 4}"#)
            .unwrap()
    }

    #[test]
    fn sizes_follow_the_levels() {
        let config = small();
        assert_eq!((config.factor(), config.scaling_factor), (4, 0.18215));
        let vae = AutoencoderKl::new(VarStore::new(Device::Cpu).root(), &config).unwrap();
        quietly(|| {
            let z = vae.encode(&Tensor::zeros([2, 3, 24, 16], (Kind::Float, Device::Cpu))).mean;
            assert_eq!(z.size(), [2, 4, 6, 4]);
            assert_eq!(vae.decode(&z).size(), [2, 3, 24, 16]);
        });
    }

    #[test]
    fn a_config_that_describes_no_network_is_refused() {
        let refusal = |change: fn(&mut AutoencoderKlConfig)| {
            let mut config = small();
            change(&mut config);
            AutoencoderKl::new(VarStore::new(Device::Cpu).root(), &config).unwrap_err().to_string()
        };
        assert!(refusal(|c| c.block_out_channels = vec![8, 10]).contains("multiple of norm_num_groups 4"));
        assert!(refusal(|c| c.block_out_channels.clear()).contains("has 0 widths, give one per level"));
        assert!(refusal(|c| c.layers_per_block = 0).contains("layers_per_block 0 has to be from 1 to 1000"));
        assert!(refusal(|c| c.latent_channels = i64::MAX).contains("latent_channels"));
        assert!(refusal(|c| c.block_out_channels = vec![32; 70]).contains("has 70 widths"));
        assert!(refusal(|c| c.scaling_factor = 0.).contains("scaling_factor 0"));
    }
}
