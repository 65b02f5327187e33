//! The transformer block of the vision towers of vision-language models, for inference.

use super::{
    checkpoint::{CheckpointError, Mapped},
    language::{
        linear::Linear,
        norm::{Norm, NormKind},
        weights::Weights,
    },
    nn::attention,
};
use tch::Tensor;

/// The sizes of a block.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BlockConfig {
    /// Width of a token.
    pub width: i64,
    /// Width of the feed-forward layers.
    pub hidden: i64,
    /// Number of heads; divides `width`.
    pub heads: i64,
    /// The normalisations before attention and feed-forward layers.
    pub norm: NormKind,
    /// Epsilon of all normalisations.
    pub eps: f64,
    /// True if query, key and value have a bias.
    pub qkv_bias: bool,
    /// True if queries and keys are normalised over all heads together.
    pub qk_norm: bool,
    /// True if the outputs of attention and feed-forward layers are scaled per channel.
    pub layer_scale: bool,
}

/// Attention without a mask and a feed-forward layer with the exact GELU, each normalised before and added after.
#[derive(Debug)]
pub struct ImageBlock {
    heads: i64,
    norm1: Norm,
    qkv: [Linear; 3],
    /// The normalisations of queries and keys.
    qk_norm: Option<[Norm; 2]>,
    proj: Linear,
    norm2: Norm,
    fc1: Linear,
    fc2: Linear,
    /// The scales of the outputs of attention and feed-forward layers.
    scales: Option<[Mapped; 2]>,
}

impl ImageBlock {
    /// Takes `norm1`, `attn.{q,k,v,proj}`, `norm2`, `mlp.{fc1,fc2}` and, if the config has them, `attn.{q,k}_norm`,
    /// `ls1` and `ls2`.
    ///
    /// # Errors
    /// The errors of [`Weights::tensor`].
    pub fn load(weights: &Weights<'_>, config: &BlockConfig) -> Result<Self, CheckpointError> {
        let &BlockConfig { width, hidden, .. } = config;
        let norm = |name, kind| Norm::load(weights, name, width, config.eps, kind);
        let third = |name| Linear::load(weights, name, [width, width], config.qkv_bias);
        let scale = |name| weights.tensor(name, &[width]);
        let qk_norm = || Ok([norm("attn.q_norm", NormKind::Rms)?, norm("attn.k_norm", NormKind::Rms)?]);
        let scales = || Ok([scale("ls1")?, scale("ls2")?]);
        Ok(Self {
            heads: config.heads,
            norm1: norm("norm1", config.norm)?,
            qkv: [third("attn.q")?, third("attn.k")?, third("attn.v")?],
            qk_norm: config.qk_norm.then(qk_norm).transpose()?,
            proj: Linear::load(weights, "attn.proj", [width, width], true)?,
            norm2: norm("norm2", config.norm)?,
            fc1: Linear::load(weights, "mlp.fc1", [width, hidden], true)?,
            fc2: Linear::load(weights, "mlp.fc2", [hidden, width], true)?,
            scales: config.layer_scale.then(scales).transpose()?,
        })
    }

    /// Maps tokens [B, N, width] to the same shape.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let normed = self.norm1.forward(x);
        let [mut q, mut k, v] = self.qkv.each_ref().map(|map| map.forward(&normed));
        if let Some([q_norm, k_norm]) = &self.qk_norm {
            (q, k) = (q_norm.forward(&q), k_norm.forward(&k));
        }
        let scaled = |x: Tensor, i: usize| match &self.scales {
            Some(scales) => x * scales[i].tensor(),
            None => x,
        };
        let x = x + scaled(self.proj.forward(&attention(&q, &k, &v, self.heads, false)), 0);
        let hidden = self.fc1.forward(&self.norm2.forward(&x)).gelu_("none"); // [B, N, hidden]
        &x + scaled(self.fc2.forward(&hidden), 1)
    }
}
