//! The denoiser of latent diffusion: diffusers' `UNet2DConditionModel` in the forms of Stable Diffusion 1.x and 2.x.

use super::{
    checkpoint::{Checkpoint, CheckpointError},
    control::ControlResiduals,
    latent_diffusion::names::{self, Names},
    nn::{
        ConfigError, ResnetBlock2D, Upsample2D, attention, channels_last, conv2d, conv3x3, group_norm, layer_norm,
        linear, linear_no_bias, require, require_widths, show, to_image, to_tokens,
    },
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{
    Kind, Tensor,
    nn::{self, Init, Module},
};

const NAME: &str = "UNet2DConditionModel";

/// A level on the way down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DownBlockType {
    /// Residual blocks, each followed by self-attention and attention to the context.
    CrossAttnDownBlock2D,
    /// Residual blocks alone.
    DownBlock2D,
}

/// A level on the way up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum UpBlockType {
    /// Residual blocks, each followed by self-attention and attention to the context.
    CrossAttnUpBlock2D,
    /// Residual blocks alone.
    UpBlock2D,
}

/// One number for all levels, or one per level.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum PerLevel {
    /// The same at every level.
    Same(i64),
    /// One per level, the widest map first.
    Each(Vec<i64>),
}

impl PerLevel {
    fn at(&self, level: usize) -> i64 {
        match self {
            Self::Same(value) => *value,
            Self::Each(values) => values[level],
        }
    }

    fn fits(&self, levels: usize) -> bool {
        matches!(self, Self::Each(values) if values.len() == levels) || matches!(self, Self::Same(_))
    }
}

/// `unet/config.json`; the defaults are Stable Diffusion 1.5.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct UNet2DConditionConfig {
    /// Channels of the noisy latent.
    pub in_channels: i64,
    /// Channels of the prediction.
    pub out_channels: i64,
    /// Width of each level; the map shrinks by 2 between two levels.
    pub block_out_channels: Vec<i64>,
    /// The kind of each level on the way down.
    pub down_block_types: Vec<DownBlockType>,
    /// The kind of each level on the way up, deepest first; absent: the mirror of `down_block_types`.
    pub up_block_types: Option<Vec<UpBlockType>>,
    /// Residual blocks per level on the way down; one more on the way up.
    pub layers_per_block: i64,
    /// Transformer blocks after each residual block that has attention.
    pub transformer_layers_per_block: i64,
    /// Width of a token of the context.
    pub cross_attention_dim: i64,
    /// Despite its name, the number of heads.
    pub attention_head_dim: PerLevel,
    /// The number of heads where a config names it so; overrides `attention_head_dim`.
    pub num_attention_heads: Option<PerLevel>,
    /// Whether the projections around the transformers are stored as matrices (SD 2) or 1×1 convolutions (SD 1).
    pub use_linear_projection: bool,
    /// Groups of each group normalisation; divides every width.
    pub norm_num_groups: i64,
    /// Epsilon of the group normalisations of the residual blocks and of the output.
    pub norm_eps: f64,
    /// Whether the time embedding is [cos, sin] instead of [sin, cos].
    pub flip_sin_to_cos: bool,
    /// Shifts the slowest frequency of the time embedding.
    pub freq_shift: f64,
}

impl Default for UNet2DConditionConfig {
    fn default() -> Self {
        use DownBlockType::{CrossAttnDownBlock2D, DownBlock2D};
        Self {
            in_channels: 4,
            out_channels: 4,
            block_out_channels: vec![320, 640, 1280, 1280],
            down_block_types: vec![CrossAttnDownBlock2D, CrossAttnDownBlock2D, CrossAttnDownBlock2D, DownBlock2D],
            up_block_types: None,
            layers_per_block: 2,
            transformer_layers_per_block: 1,
            cross_attention_dim: 768,
            attention_head_dim: PerLevel::Same(8),
            num_attention_heads: None,
            use_linear_projection: false,
            norm_num_groups: 32,
            norm_eps: 1e-5,
            flip_sin_to_cos: true,
            freq_shift: 0.,
        }
    }
}

impl UNet2DConditionConfig {
    fn heads(&self, level: usize) -> i64 {
        self.num_attention_heads.as_ref().unwrap_or(&self.attention_head_dim).at(level)
    }

    /// Whether each level on the way up attends, deepest first.
    pub(super) fn up_attends(&self) -> Vec<bool> {
        match &self.up_block_types {
            Some(types) => types.iter().map(|kind| *kind == UpBlockType::CrossAttnUpBlock2D).collect(),
            None => {
                self.down_block_types.iter().rev().map(|kind| *kind == DownBlockType::CrossAttnDownBlock2D).collect()
            }
        }
    }

    /// Width of the time embedding.
    fn time_embed_dim(&self) -> i64 {
        4 * self.block_out_channels[0]
    }

    /// The channels of the skips, in the order in which they are made: the input convolution, then each layer and each
    /// downsampling of each level.
    pub(super) fn skip_channels(&self) -> Vec<i64> {
        let widths = &self.block_out_channels;
        let per_level = |(level, width): (usize, &i64)| {
            let downsample = usize::from(level + 1 < widths.len());
            vec![*width; self.layers_per_block as usize + downsample]
        };
        std::iter::once(widths[0]).chain(widths.iter().enumerate().flat_map(per_level)).collect()
    }

    /// The same weights under the names of this network, which are those of diffusers, from any layout that they are published
    /// in: diffusers', or latent-diffusion's, alone or below `model.diffusion_model.` of a file with all parts.
    ///
    /// # Errors
    /// [`CheckpointError::Format`] if two tensors would get one name.
    pub fn canonical(&self, published: Checkpoint) -> Result<Checkpoint, CheckpointError> {
        names::canonical(published, "model.diffusion_model", &Names::unet(self))
    }

    /// Whether a network can be built from these values.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let widths = &self.block_out_channels;
        require_widths(NAME, widths, self.norm_num_groups)?;
        require(widths[0] % 2 == 0, NAME, || format!("the first width {} has to be even", widths[0]))?;
        require(self.down_block_types.len() == widths.len() && self.up_attends().len() == widths.len(), NAME, || {
            let levels = widths.len();
            format!(
                "block_out_channels has {levels} levels, so down_block_types and up_block_types need {levels} entries each"
            )
        })?;
        let heads = self.num_attention_heads.as_ref().unwrap_or(&self.attention_head_dim);
        require(heads.fits(widths.len()), NAME, || {
            format!("attention_head_dim needs one number, or {} of them", widths.len())
        })?;
        for (level, width) in widths.iter().enumerate() {
            let heads = heads.at(level);
            require(heads > 0 && width % heads == 0, NAME, || {
                format!("attention_head_dim {heads} is the number of heads and has to divide the width {width}")
            })?;
        }
        let counts = [self.in_channels, self.out_channels, self.layers_per_block];
        let more = [self.transformer_layers_per_block, self.cross_attention_dim];
        require(counts.iter().chain(&more).all(|count| *count > 0), NAME, || {
            "in_channels, out_channels, layers_per_block, transformer_layers_per_block and cross_attention_dim have to be \
             at least 1"
                .into()
        })
    }
}

/// Attention of one sequence to another or, without `context`, to itself.
#[derive(Debug)]
struct Attention {
    to_q: nn::Linear,
    to_k: nn::Linear,
    to_v: nn::Linear,
    to_out: nn::Linear,
    heads: i64,
}

impl Attention {
    fn new(vs: nn::Path, width: i64, context_width: i64, heads: i64) -> Self {
        Self {
            to_q: linear_no_bias(&vs / "to_q", width, width),
            to_k: linear_no_bias(&vs / "to_k", context_width, width),
            to_v: linear_no_bias(&vs / "to_v", context_width, width),
            to_out: linear(&vs / "to_out" / 0, width, width),
            heads,
        }
    }

    fn forward(&self, x: &Tensor, context: Option<&Tensor>) -> Tensor {
        let context = context.unwrap_or(x);
        let (q, k, v) = (self.to_q.forward(x), self.to_k.forward(context), self.to_v.forward(context));
        self.to_out.forward(&attention(&q, &k, &v, self.heads, false))
    }
}

/// Self-attention, cross-attention and a gated feed-forward layer, each normalised before and added after.
#[derive(Debug)]
struct BasicTransformerBlock {
    norm1: nn::LayerNorm,
    attn1: Attention,
    norm2: nn::LayerNorm,
    attn2: Attention,
    norm3: nn::LayerNorm,
    ff_proj: nn::Linear,
    ff_out: nn::Linear,
}

impl BasicTransformerBlock {
    fn new(vs: nn::Path, width: i64, context_width: i64, heads: i64) -> Self {
        let norm = |name: &str| layer_norm(&vs / name, width, 1e-5);
        Self {
            norm1: norm("norm1"),
            attn1: Attention::new(&vs / "attn1", width, width, heads),
            norm2: norm("norm2"),
            attn2: Attention::new(&vs / "attn2", width, context_width, heads),
            norm3: norm("norm3"),
            ff_proj: linear(&vs / "ff" / "net" / 0 / "proj", width, 8 * width),
            ff_out: linear(&vs / "ff" / "net" / 2, 4 * width, width),
        }
    }

    fn forward(&self, x: &Tensor, context: &Tensor) -> Tensor {
        let x = x + self.attn1.forward(&self.norm1.forward(x), None);
        let x = &x + self.attn2.forward(&self.norm2.forward(&x), Some(context));
        let hidden = self.ff_proj.forward(&self.norm3.forward(&x)).chunk(2, -1); // GEGLU: value, gate
        &x + self.ff_out.forward(&(&hidden[0] * hidden[1].gelu("none")))
    }
}

/// Transformer blocks over the cells of a map, added to it.
#[derive(Debug)]
struct Transformer2D {
    norm: nn::GroupNorm,
    proj_in: nn::Linear,
    transformer_blocks: Vec<BasicTransformerBlock>,
    proj_out: nn::Linear,
}

impl Transformer2D {
    fn new(vs: nn::Path, width: i64, heads: i64, config: &UNet2DConditionConfig) -> Self {
        let block =
            |i| BasicTransformerBlock::new(&vs / "transformer_blocks" / i, width, config.cross_attention_dim, heads);
        Self {
            norm: group_norm(&vs / "norm", config.norm_num_groups, width, 1e-6),
            proj_in: Self::projection(&vs / "proj_in", width, config),
            transformer_blocks: (0..config.transformer_layers_per_block).map(block).collect(),
            proj_out: Self::projection(&vs / "proj_out", width, config),
        }
    }

    /// A 1×1 convolution is a matrix over tokens; only the stored shape differs.
    fn projection(vs: nn::Path, width: i64, config: &UNet2DConditionConfig) -> nn::Linear {
        if config.use_linear_projection {
            return linear(vs, width, width);
        }
        let bound = (width as f64).sqrt().recip();
        let init = Init::Uniform { lo: -bound, up: bound };
        nn::Linear { ws: vs.var("weight", &[width, width, 1, 1], init), bs: Some(vs.var("bias", &[width], init)) }
    }

    fn forward(&self, x: &Tensor, context: &Tensor) -> Tensor {
        let project = |layer: &nn::Linear, tokens: &Tensor| tokens.linear(&layer.ws.flatten(1, -1), layer.bs.as_ref());
        let tokens = project(&self.proj_in, &to_tokens(&self.norm.forward(x))); // [B, H·W, C]
        let tokens = self.transformer_blocks.iter().fold(tokens, |tokens, block| block.forward(&tokens, context));
        x + to_image(&project(&self.proj_out, &tokens), x)
    }
}

/// A residual block and, where the level attends, its transformer.
#[derive(Debug)]
struct Layer {
    resnet: ResnetBlock2D,
    attention: Option<Transformer2D>,
}

impl Layer {
    /// Layer `i` under `vs`; `heads` where it attends.
    fn new(vs: &nn::Path, i: i64, widths: (i64, i64), heads: Option<i64>, config: &UNet2DConditionConfig) -> Self {
        let (inputs, outputs) = widths;
        let (temb, groups) = (Some(config.time_embed_dim()), config.norm_num_groups);
        Self {
            resnet: ResnetBlock2D::new(vs / "resnets" / i, inputs, outputs, temb, groups, config.norm_eps),
            attention: heads.map(|heads| Transformer2D::new(vs / "attentions" / i, outputs, heads, config)),
        }
    }

    fn forward(&self, x: &Tensor, emb: &Tensor, context: &Tensor) -> Tensor {
        let x = self.resnet.forward(x, Some(emb));
        match &self.attention {
            Some(attention) => attention.forward(&x, context),
            None => x,
        }
    }
}

/// Sinusoids of the timestep through two linear layers.
#[derive(Debug)]
struct TimeEmbedding {
    linear_1: nn::Linear,
    linear_2: nn::Linear,
    width: i64,
    flip_sin_to_cos: bool,
    freq_shift: f64,
}

impl TimeEmbedding {
    fn new(vs: nn::Path, config: &UNet2DConditionConfig) -> Self {
        let (width, out) = (config.block_out_channels[0], config.time_embed_dim());
        Self {
            linear_1: linear(&vs / "linear_1", width, out),
            linear_2: linear(&vs / "linear_2", out, out),
            width,
            flip_sin_to_cos: config.flip_sin_to_cos,
            freq_shift: config.freq_shift,
        }
    }

    /// [B] -> [B, width].
    fn sinusoids(&self, t: &Tensor) -> Tensor {
        let half = self.width / 2;
        let i = Tensor::arange(half, (Kind::Float, t.device()));
        let frequencies = (i * -(1e4_f64.ln() / (half as f64 - self.freq_shift))).exp();
        let angles = t.to_kind(Kind::Float).unsqueeze(-1) * frequencies;
        let (sin, cos) = (angles.sin(), angles.cos());
        if self.flip_sin_to_cos { Tensor::cat(&[cos, sin], -1) } else { Tensor::cat(&[sin, cos], -1) }
    }

    /// [B] -> [B, 4·width], with the SiLU that every residual block would apply first.
    fn forward(&self, t: &Tensor) -> Tensor {
        let sinusoids = self.sinusoids(t).to_kind(self.linear_1.ws.kind());
        let emb = self.linear_2.forward(&self.linear_1.forward(&sinusoids).silu());
        show("time_proj", &sinusoids);
        show("time_embedding", &emb);
        emb.silu()
    }
}

#[derive(Debug)]
struct DownBlock {
    layers: Vec<Layer>,
    downsample: Option<nn::Conv2D>,
}

#[derive(Debug)]
struct UpBlock {
    layers: Vec<Layer>,
    upsample: Option<Upsample2D>,
}

/// What the way down hands to the way up.
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
    conv_in: nn::Conv2D,
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

    /// `hint` [B, C0, H, W], where there is one, is added behind the input convolution.
    pub(super) fn forward(&self, x: &Tensor, t: &Tensor, context: &Tensor, hint: Option<&Tensor>) -> Encoded {
        let emb = self.time_embedding.forward(t);
        let mut x = self.conv_in.forward(&channels_last(x));
        if let Some(hint) = hint {
            x += hint;
        }
        let mut skips = vec![x.shallow_clone()];
        for block in &self.down_blocks {
            for layer in &block.layers {
                x = layer.forward(&x, &emb, context);
                skips.push(x.shallow_clone());
            }
            if let Some(downsample) = &block.downsample {
                x = downsample.forward(&x);
                skips.push(x.shallow_clone());
            }
        }
        let x = self.mid_resnets[0].forward(&x, Some(&emb));
        let x = self.mid_attention.forward(&x, context);
        let mid = self.mid_resnets[1].forward(&x, Some(&emb));
        Encoded { emb, skips, mid }
    }
}

/// The denoising network.
#[derive(Debug)]
pub struct UNet2DConditionModel {
    encoder: Encoder,
    up_blocks: Vec<UpBlock>,
    conv_norm_out: nn::GroupNorm,
    conv_out: nn::Conv2D,
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

    /// Whether the parameter `name` belongs to the way up, the half that VLMDiff trains (the way down and the middle keep
    /// the weights of Stable Diffusion: `configure_optimizers` of DiAD).
    pub fn is_decoder(name: &str) -> bool {
        ["up_blocks.", "conv_norm_out.", "conv_out."].iter().any(|prefix| name.starts_with(prefix))
    }

    /// `x` [B, in_channels, h, w], `t` [B] timesteps of any kind, `context` [B or 1, tokens, cross_attention_dim]
    /// -> the prediction [B, out_channels, h, w]. Residuals of `control` are added to the middle and the skips.
    pub fn forward(&self, x: &Tensor, t: &Tensor, context: &Tensor, control: Option<&ControlResiduals>) -> Tensor {
        let Encoded { emb, mut skips, mid: mut x } = self.encoder.forward(x, t, context, None);
        if let Some(control) = control {
            x += &control.mid;
            for (skip, residual) in skips.iter_mut().rev().zip(control.skips.iter().rev()) {
                *skip = &*skip + residual;
            }
        }
        for block in &self.up_blocks {
            for layer in &block.layers {
                let skip = skips.pop().expect("one skip per layer on the way up");
                x = layer.forward(&Tensor::cat(&[x, skip], 1), &emb, context);
            }
            if let (Some(upsample), Some(skip)) = (&block.upsample, skips.last()) {
                // the size of the next skip, which is not twice this one where a side was odd
                let (_, _, h, w) = skip.size4().unwrap();
                x = upsample.forward(&x, [h, w]);
            }
        }
        self.conv_out.forward(&self.conv_norm_out.forward(&x).silu())
    }
}

#[cfg(test)]
mod tests {
    use super::super::nn::golden::{Case, quietly};
    use super::*;
    use tch::{Device, nn::VarStore};

    #[test]
    fn equals_diffusers() {
        let Some(case) = Case::open("unet") else { return };
        let vs = VarStore::new(Device::Cpu);
        let unet = UNet2DConditionModel::new(vs.root(), &case.config()).unwrap();
        case.load("diffusion_pytorch_model.safetensors", &vs, |key| Some(key.to_owned()));
        quietly(|| {
            let (x, t, context) = (case.input("sample"), case.input("timestep"), case.input("encoder_hidden_states"));
            case.assert_close("time_proj", &unet.encoder.time_embedding.sinusoids(t), 1.);
            let encoded = unet.encoder.forward(x, t, context, None);
            case.assert_close("conv_in", &encoded.skips[0], 1.);
            case.assert_close("down0.attn0", &encoded.skips[1], 1.);
            case.assert_close("mid", &encoded.mid, 1.);
            case.assert_close("sample", &unet.forward(x, t, context, None), 1.);
            let (x, t) = (case.input("sample_odd"), case.input("timestep_odd"));
            case.assert_close("sample_odd", &unet.forward(x, t, &context.narrow(0, 0, 1), None), 1.);
        });
    }

    pub(in super::super) fn small() -> UNet2DConditionConfig {
        serde_json::from_str(
            r#"{"block_out_channels": [16, 24], "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
                "layers_per_block": 1, "cross_attention_dim": 12, "attention_head_dim": [1, 3], "norm_num_groups": 8,
                "use_linear_projection": true}"#,
        )
        .unwrap()
    }

    #[test]
    fn small_networks_are_built_of_the_same_blocks() {
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
            // one context for all rows is as good as a copy for each
            let copied = unet.forward(&x, &t, &context.repeat([3, 1, 1]), None);
            assert!((shared - copied).abs().max().double_value(&[]) < 1e-5);
        });
    }

    #[test]
    fn refuses_what_describes_no_network() {
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
