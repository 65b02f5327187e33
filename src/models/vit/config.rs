//! The sizes of a vision transformer: from the published `config.json`, or from the weights.

use std::path::Path;

use serde::Deserialize;

use super::names;
use crate::models::{
    checkpoint::{Checkpoint, CheckpointError},
    nn::{ConfigError, MAX_LAYERS, MAX_SIZE, require, require_sizes},
};

/// The published `config.json` of Hugging Face's `ViTModel`, `Dinov2Model` and `Dinov2WithRegistersModel`; keys that do
/// not change the computation are ignored.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct VitConfig {
    /// `vit` for DINO's; `dinov2` or `dinov2_with_registers`, whose blocks have a layer scale.
    pub model_type: String,
    /// Width of a token.
    pub hidden_size: i64,
    /// Transformer blocks.
    pub num_hidden_layers: i64,
    /// Attention heads; they divide `hidden_size`.
    pub num_attention_heads: i64,
    /// Width of the hidden layer of a block (`vit`).
    pub intermediate_size: Option<i64>,
    /// The same width in multiples of `hidden_size` (`dinov2`).
    pub mlp_ratio: f64,
    /// The activation; only `gelu` is published.
    pub hidden_act: String,
    /// The number that is added to variances: 1e-6 in DINO's original code, 1e-12 in Hugging Face's configs of its
    /// files.
    pub layer_norm_eps: f64,
    /// Height and width, in pixels, of the images for which the position table is made.
    pub image_size: i64,
    /// Height and width of a patch in pixels.
    pub patch_size: i64,
    /// Channels of the image.
    pub num_channels: i64,
    /// True if query, key and value have a bias.
    pub qkv_bias: bool,
    /// True if the blocks are gated (SwiGLU), as in the giant DINOv2.
    pub use_swiglu_ffn: bool,
    /// Extra tokens after the class token (Darcet et al. 2023).
    pub num_register_tokens: i64,
}

impl Default for VitConfig {
    /// Returns the values that Hugging Face assumes for the missing keys of a `vit`.
    fn default() -> Self {
        Self {
            model_type: VIT.to_owned(),
            hidden_size: 768,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            intermediate_size: None,
            mlp_ratio: 4.,
            hidden_act: "gelu".to_owned(),
            layer_norm_eps: 1e-12,
            image_size: 224,
            patch_size: 16,
            num_channels: 3,
            qkv_bias: true,
            use_swiglu_ffn: false,
            num_register_tokens: 0,
        }
    }
}

const VIT: &str = "vit";
const NETWORK: &str = "ViTModel";

impl VitConfig {
    /// Reads the sizes of a weight file, or of a folder in Hugging Face layout: from the folder's `config.json` if there
    /// is one, else from the shapes of the weights. Returns the weights too, under the names of [`super::names`].
    ///
    /// # Errors
    /// The errors of [`Checkpoint::open`], and [`CheckpointError::Format`] for a bad config and for weights of another
    /// architecture.
    pub fn read(path: &Path) -> Result<(Self, Checkpoint), CheckpointError> {
        let weights = names::original(Checkpoint::open(path)?.state_dict())?;
        let beside = path.join("config.json");
        let config = if beside.is_file() {
            let text = std::fs::read(&beside).map_err(|source| CheckpointError::Io { path: beside.clone(), source })?;
            let format = |error: serde_json::Error| CheckpointError::Format { path: beside, reason: error.to_string() };
            serde_json::from_slice(&text).map_err(format)?
        } else {
            let lacks = "no patch embedding, no position table or no blocks";
            Self::of(&weights).ok_or_else(|| weights.foreign("vision transformer", lacks))?
        };
        Ok((config, weights))
    }

    /// Reads the sizes from weights with the names of [`super::names`]; None if they are not those of a vision
    /// transformer. The heads are assumed to be 64 wide, as in every published model.
    pub fn of(weights: &Checkpoint) -> Option<Self> {
        let &[hidden_size, num_channels, patch_size, _] = weights.shape("patch_embed.proj.weight")? else {
            return None;
        };
        let positions = (*weights.shape("pos_embed")?.get(1)? - 1).max(0);
        let use_swiglu_ffn = weights.contains("blocks.0.mlp.w12.weight");
        let hidden = match use_swiglu_ffn {
            true => weights.shape("blocks.0.mlp.w12.weight")?.first()? / 2,
            false => *weights.shape("blocks.0.mlp.fc1.weight")?.first()?,
        };
        let scaled = weights.contains("blocks.0.ls1.gamma");
        let has = |block: i64| weights.contains(&format!("blocks.{block}.norm1.weight"));
        Some(Self {
            model_type: if scaled { "dinov2" } else { VIT }.to_owned(),
            hidden_size,
            num_hidden_layers: (0..).take_while(|&block| has(block)).count() as i64,
            num_attention_heads: hidden_size / 64,
            intermediate_size: Some(hidden),
            layer_norm_eps: if scaled { 1e-6 } else { Self::default().layer_norm_eps },
            image_size: positions.isqrt().saturating_mul(patch_size),
            patch_size,
            num_channels,
            qkv_bias: weights.contains("blocks.0.attn.query.bias"),
            use_swiglu_ffn,
            num_register_tokens: weights.shape("register_tokens").and_then(|shape| shape.get(1).copied()).unwrap_or(0),
            ..Self::default()
        })
    }

    /// Checks that the values describe a network.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let (width, heads) = (self.hidden_size, self.num_attention_heads);
        let sizes = [
            ("hidden_size", width),
            ("num_attention_heads", heads),
            ("patch_size", self.patch_size),
            ("image_size", self.image_size),
            ("num_channels", self.num_channels),
            ("the width of the hidden layer of a block", self.hidden()),
        ];
        require_sizes(NETWORK, MAX_SIZE, &sizes)?;
        require_sizes(NETWORK, MAX_LAYERS, &[("num_hidden_layers", self.num_hidden_layers)])?;
        require((0..=MAX_SIZE).contains(&self.num_register_tokens), NETWORK, || {
            format!("num_register_tokens {} has to be from 0 to {MAX_SIZE}", self.num_register_tokens)
        })?;
        require(width % heads == 0, NETWORK, || {
            format!("hidden_size {width} is no multiple of num_attention_heads {heads}")
        })?;
        require(self.image_size >= self.patch_size, NETWORK, || {
            format!("image_size {} is below patch_size {}", self.image_size, self.patch_size)
        })?;
        require(self.hidden_act == "gelu", NETWORK, || {
            format!("hidden_act is {}, but only gelu is known", self.hidden_act)
        })
    }

    /// Returns the number of cells in a row of the position table.
    pub(super) fn grid(&self) -> i64 {
        self.image_size / self.patch_size
    }

    /// Returns the width of the hidden layer of a block.
    pub(super) fn hidden(&self) -> i64 {
        let hidden = (self.hidden_size as f64 * self.mlp_ratio) as i64;
        match self.intermediate_size {
            Some(size) => size,
            // Two thirds, because the first layer has two matrices, rounded up to a multiple of 8.
            None if self.use_swiglu_ffn => ((hidden as f64 * 2. / 3.) as i64).saturating_add(7) / 8 * 8,
            None => hidden,
        }
    }

    /// Returns true if each block scales its addends (LayerScale, Touvron et al. 2021).
    pub fn layer_scale(&self) -> bool {
        self.model_type != VIT
    }
}
