//! The configuration of InternVL in both layouts in which it is published.

use super::super::{
    language::{config::DecoderConfig, family, norm::NormKind},
    nn::{MAX_LAYERS, MAX_SIZE, require_sizes},
};
use serde::Deserialize;
use serde_json::Value;

/// The network, in messages.
const NAME: &str = "InternVLChatModel";
/// The largest number of visual tokens of a tile that is taken; published networks have 256.
const MAX_TOKENS: i64 = 1 << 16;

/// The vision tower, InternViT.
#[derive(Debug, Clone, PartialEq)]
pub struct VisionConfig {
    /// Width of a token.
    pub hidden_size: i64,
    /// Width of the feed-forward layers.
    pub intermediate_size: i64,
    /// Number of layers that are computed: those up to the one whose output is read.
    pub layers: i64,
    /// Number of heads; divides `hidden_size`.
    pub heads: i64,
    /// Side of a tile, in pixels.
    pub image_size: i64,
    /// Side of a patch, in pixels.
    pub patch_size: i64,
    /// The normalisations before attention and feed-forward layers.
    pub norm: NormKind,
    /// Epsilon of all normalisations.
    pub eps: f64,
    /// True if query, key and value have a bias.
    pub qkv_bias: bool,
    /// True if queries and keys are normalised over all heads together.
    pub qk_norm: bool,
    /// True if there is a normalisation after the last layer.
    pub final_norm: bool,
}

/// The whole network.
#[derive(Debug, Clone, PartialEq)]
pub struct InternVlConfig {
    /// The vision tower.
    pub vision: VisionConfig,
    /// The language model.
    pub text: DecoderConfig,
    /// The patches along a side that pixel shuffle joins into one token.
    pub shuffle: i64,
    /// True for the order of pixel shuffle of `ps_version` v2; v1 leaves rows and columns swapped.
    pub is_shuffle_v2: bool,
    /// The id whose embeddings are replaced by visual tokens, if the config states it. The original layout leaves it
    /// to the tokenizer, where it is `<IMG_CONTEXT>`.
    pub image_token: Option<i64>,
    /// The name of the conversation with which the model was trained; the native layout states none.
    pub template: Option<String>,
}

/// A side of a square, or both sides.
#[derive(Deserialize)]
#[serde(untagged)]
enum Side {
    Square(i64),
    Sides([i64; 2]),
}

impl Side {
    fn square(&self, name: &str) -> Result<i64, String> {
        match *self {
            Self::Square(side) => Ok(side),
            Self::Sides([height, width]) if height == width => Ok(height),
            Self::Sides(sides) => Err(format!("{name} is {sides:?}, and only squares are known")),
        }
    }
}

/// `vision_config` in both layouts; the defaults are InternViT-300M-448px.
#[derive(Deserialize)]
#[serde(default)]
struct Vision {
    hidden_size: i64,
    intermediate_size: i64,
    num_hidden_layers: i64,
    num_attention_heads: i64,
    image_size: Side,
    patch_size: Side,
    norm_type: String,
    layer_norm_eps: f64,
    hidden_act: String,
    #[serde(alias = "attention_bias")]
    qkv_bias: bool,
    #[serde(alias = "use_qk_norm")]
    qk_normalization: bool,
    /// The original layout never has a final normalisation.
    use_mean_pooling: bool,
}

impl Default for Vision {
    fn default() -> Self {
        Self {
            hidden_size: 1024,
            intermediate_size: 4096,
            num_hidden_layers: 24,
            num_attention_heads: 16,
            image_size: Side::Square(448),
            patch_size: Side::Square(14),
            norm_type: "layer_norm".to_owned(),
            layer_norm_eps: 1e-6,
            hidden_act: "gelu".to_owned(),
            qkv_bias: true,
            qk_normalization: false,
            use_mean_pooling: true,
        }
    }
}

impl Vision {
    /// Makes the config of a tower whose states after layer `select` are read, counted from the end: -1 is the last.
    fn config(self, select: i64) -> Result<VisionConfig, String> {
        if self.hidden_act != "gelu" {
            return Err(format!("hidden_act of vision_config is {}, and only gelu is known", self.hidden_act));
        }
        let norm = match self.norm_type.as_str() {
            "layer_norm" => NormKind::Layer,
            "rms_norm" => NormKind::Rms,
            other => return Err(format!("norm_type is {other}, and only layer_norm and rms_norm are known")),
        };
        let sizes = [
            ("hidden_size of vision_config", self.hidden_size),
            ("intermediate_size of vision_config", self.intermediate_size),
            ("num_attention_heads of vision_config", self.num_attention_heads),
        ];
        let layers = [("num_hidden_layers of vision_config", self.num_hidden_layers)];
        let right = require_sizes(NAME, MAX_SIZE, &sizes).and_then(|()| require_sizes(NAME, MAX_LAYERS, &layers));
        right.map_err(|error| error.problem)?;
        let layers = if select < 0 { self.num_hidden_layers + 1 + select } else { select };
        if !(0..=self.num_hidden_layers).contains(&layers) {
            return Err(format!("layer {select} is asked for, and there are {}", self.num_hidden_layers));
        }
        if self.hidden_size % self.num_attention_heads != 0 {
            let (heads, width) = (self.num_attention_heads, self.hidden_size);
            return Err(format!("num_attention_heads {heads} of vision_config has to divide hidden_size {width}"));
        }
        Ok(VisionConfig {
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            layers,
            heads: self.num_attention_heads,
            image_size: self.image_size.square("image_size")?,
            patch_size: self.patch_size.square("patch_size")?,
            norm,
            eps: self.layer_norm_eps,
            qkv_bias: self.qkv_bias,
            qk_norm: self.qk_normalization,
            final_norm: !self.use_mean_pooling && layers == self.num_hidden_layers,
        })
    }
}

impl InternVlConfig {
    /// Reads the text of a `config.json` of `InternVLChatModel`, or of the native `InternVLForConditionalGeneration`.
    ///
    /// # Errors
    /// Names the value that is missing or unknown, and what would work.
    pub fn from_json(text: &str) -> Result<Self, String> {
        let whole: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let (language, select) = match (&whole["llm_config"], &whole["text_config"]) {
            (Value::Null, Value::Null) => {
                return Err("it has neither llm_config nor text_config, and so is no config of InternVL".to_owned());
            }
            (Value::Null, text) => (text, &whole["vision_feature_layer"]),
            (text, _) => (text, &whole["select_layer"]),
        };
        let vision = Vision::deserialize(&whole["vision_config"]).map_err(|e| format!("vision_config: {e}"))?;
        let config = Self {
            vision: vision.config(select.as_i64().unwrap_or(-1))?,
            text: family::parse(language)?,
            shuffle: (1. / whole["downsample_ratio"].as_f64().unwrap_or(0.5)).round() as i64,
            is_shuffle_v2: whole["ps_version"].as_str() != Some("v1"),
            image_token: whole["image_token_id"].as_i64(),
            template: whole["template"].as_str().map(str::to_owned),
        };
        config.check().map(|()| config)
    }

    fn check(&self) -> Result<(), String> {
        let VisionConfig { image_size, patch_size, .. } = self.vision;
        if patch_size < 1
            || !(1..=MAX_SIZE).contains(&image_size)
            || self.shuffle < 1
            || (image_size / patch_size) % self.shuffle != 0
        {
            return Err(format!(
                "a tile of {image_size} pixels in patches of {patch_size} cannot be joined by {} along a side",
                self.shuffle
            ));
        }
        if self.tokens_per_tile() > MAX_TOKENS {
            return Err(format!(
                "a tile of {image_size} pixels in patches of {patch_size} is more than {MAX_TOKENS} tokens"
            ));
        }
        Ok(())
    }

    /// Returns the number of visual tokens of a tile.
    pub fn tokens_per_tile(&self) -> i64 {
        (self.vision.image_size / self.vision.patch_size / self.shuffle).pow(2)
    }
}
