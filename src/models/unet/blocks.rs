//! The blocks of the denoiser.

use super::{
    super::{
        initialisation::uniform,
        nn::{
            GroupNorm, ResnetBlock2D, attention, group_norm, layer_norm, linear, linear_no_bias, show, to_image,
            to_tokens,
        },
        recompute::{Pass, segment},
    },
    config::UNet2DConditionConfig,
};
use std::fmt::Display;
use tch::{
    Kind, Tensor,
    nn::{self, Module},
};

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
pub(super) struct Transformer2D {
    norm: GroupNorm,
    proj_in: nn::Linear,
    transformer_blocks: Vec<BasicTransformerBlock>,
    proj_out: nn::Linear,
}

impl Transformer2D {
    pub(super) fn new(vs: nn::Path, width: i64, heads: i64, config: &UNet2DConditionConfig) -> Self {
        let block =
            |i| BasicTransformerBlock::new(&vs / "transformer_blocks" / i, width, config.cross_attention_dim, heads);
        Self {
            norm: group_norm(&vs / "norm", config.norm_num_groups, width, 1e-6),
            proj_in: Self::projection(&vs / "proj_in", width, config),
            transformer_blocks: (0..config.transformer_layers_per_block).map(block).collect(),
            proj_out: Self::projection(&vs / "proj_out", width, config),
        }
    }

    /// Declares a projection of tokens. A 1×1 convolution is a matrix over tokens; only the stored shape differs.
    fn projection(vs: nn::Path, width: i64, config: &UNet2DConditionConfig) -> nn::Linear {
        if config.use_linear_projection {
            return linear(vs, width, width);
        }
        let init = uniform(width);
        nn::Linear { ws: vs.var("weight", &[width, width, 1, 1], init), bs: Some(vs.var("bias", &[width], init)) }
    }

    pub(super) fn forward(&self, x: &Tensor, context: &Tensor) -> Tensor {
        let project = |layer: &nn::Linear, tokens: &Tensor| tokens.linear(&layer.ws.flatten(1, -1), layer.bs.as_ref());
        let tokens = project(&self.proj_in, &to_tokens(&self.norm.forward(x))); // [B, H·W, C]
        let tokens = self.transformer_blocks.iter().fold(tokens, |tokens, block| block.forward(&tokens, context));
        x + to_image(&project(&self.proj_out, &tokens), x)
    }
}

/// A residual block and, at a level with attention, its transformer.
#[derive(Debug)]
pub(super) struct Layer {
    resnet: ResnetBlock2D,
    attention: Option<Transformer2D>,
}

impl Layer {
    /// Declares layer `i` under `vs`, of `widths` (inputs, outputs); `heads` is None without attention.
    pub(super) fn new(
        vs: &nn::Path,
        i: i64,
        widths: (i64, i64),
        heads: Option<i64>,
        config: &UNet2DConditionConfig,
    ) -> Self {
        let (inputs, outputs) = widths;
        let (temb, groups) = (Some(config.time_embed_dim()), config.norm_num_groups);
        Self {
            resnet: ResnetBlock2D::new(vs / "resnets" / i, inputs, outputs, temb, groups, config.norm_eps),
            attention: heads.map(|heads| Transformer2D::new(vs / "attentions" / i, outputs, heads, config)),
        }
    }

    /// Maps `maps` [B, Ci, H, W], whose channels side by side are the inputs, to [B, outputs, H, W]. `at` names the
    /// layer: its level and its number there.
    pub(super) fn forward<'a>(
        &'a self,
        pass: Pass<'_, 'a>,
        at: (impl Display, usize),
        maps: &[&Tensor],
        emb: &Tensor,
        context: &Tensor,
    ) -> Tensor {
        let (level, i) = at;
        let x = segment(pass, &[&[emb], maps].concat(), |inputs| match inputs {
            [emb, x] => self.resnet.forward(x, Some(emb)),
            [emb, maps @ ..] => self.resnet.forward(&Tensor::cat(maps, 1), Some(emb)),
            [] => unreachable!("the time embedding is an input"),
        });
        show(format_args!("{level}.resnets.{i}"), &x);
        let Some(attention) = &self.attention else { return x };
        let x = segment(pass, &[&x, context], |inputs| attention.forward(&inputs[0], &inputs[1]));
        show(format_args!("{level}.attentions.{i}"), &x);
        x
    }
}

/// Returns sinusoids of timesteps `t` `[B]` of any kind, [B, `width`] f32: half of them sines, half cosines, with
/// frequencies that fall from 1 to 1/10000. `flip_sin_to_cos` puts the cosines first; `freq_shift` 1 makes the last
/// frequency exact.
pub fn timestep_embedding(t: &Tensor, width: i64, flip_sin_to_cos: bool, freq_shift: f64) -> Tensor {
    let half = width / 2;
    let i = Tensor::arange(half, (Kind::Float, t.device()));
    let frequencies = (i * -1e4_f64.ln() / (half as f64 - freq_shift)).exp(); // rounded as published
    let angles = t.to_kind(Kind::Float).unsqueeze(-1) * frequencies; // [B, half]
    let (sin, cos) = (angles.sin(), angles.cos());
    if flip_sin_to_cos { Tensor::cat(&[cos, sin], -1) } else { Tensor::cat(&[sin, cos], -1) }
}

/// Sinusoids of the timestep through two linear layers.
#[derive(Debug)]
pub(super) struct TimeEmbedding {
    linear_1: nn::Linear,
    linear_2: nn::Linear,
    width: i64,
    flip_sin_to_cos: bool,
    freq_shift: f64,
}

impl TimeEmbedding {
    pub(super) fn new(vs: nn::Path, config: &UNet2DConditionConfig) -> Self {
        let (width, out) = (config.block_out_channels[0], config.time_embed_dim());
        Self {
            linear_1: linear(&vs / "linear_1", width, out),
            linear_2: linear(&vs / "linear_2", out, out),
            width,
            flip_sin_to_cos: config.flip_sin_to_cos,
            freq_shift: config.freq_shift,
        }
    }

    /// Maps `[B]` to [B, 4·width], with the SiLU that every residual block would apply first.
    pub(super) fn forward(&self, t: &Tensor) -> Tensor {
        let sinusoids = timestep_embedding(t, self.width, self.flip_sin_to_cos, self.freq_shift);
        let sinusoids = sinusoids.to_kind(self.linear_1.ws.kind());
        let emb = self.linear_2.forward(&self.linear_1.forward(&sinusoids).silu());
        show("time_proj", &sinusoids);
        show("time_embedding", &emb);
        emb.silu()
    }
}
