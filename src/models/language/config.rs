//! The sizes of a decoder-only transformer, and the names of its parameters.

use super::super::nn::{MAX_LAYERS, MAX_SIZE, require_sizes};
use serde::Deserialize;
use serde_json::Value;

/// The network, in messages.
const NAME: &str = "a decoder-only transformer";

/// Rotary positions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rope {
    /// The base of the wave lengths.
    pub theta: f64,
    /// The factor of dynamic scaling for texts longer than `max_positions`; None leaves them unscaled.
    pub dynamic: Option<f64>,
    /// The most tokens that the model was trained with.
    pub max_positions: i64,
}

/// The names of the attention's input maps, below a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkvNames {
    /// Query, key and value.
    Separate([&'static str; 3]),
    /// One matrix, whose rows are, per head of keys and values: its query heads, its key head, its value head.
    Packed(&'static str),
}

/// The names of a family's parameters, without `.weight`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Names {
    /// The table of tokens.
    pub embedding: &'static str,
    /// The list of layers; the following names lie below its items.
    pub layers: &'static str,
    /// The normalisation before the attention.
    pub attention_norm: &'static str,
    /// The input maps of the attention.
    pub qkv: QkvNames,
    /// The output map of the attention.
    pub output: &'static str,
    /// The normalisation before the feed-forward layers.
    pub feed_forward_norm: &'static str,
    /// The feed-forward maps: gate, up, down.
    pub feed_forward: [&'static str; 3],
    /// The normalisation after the last layer.
    pub norm: &'static str,
    /// The map to the logits. The table of tokens is taken if it is absent.
    pub head: &'static str,
}

/// A decoder-only transformer.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderConfig {
    /// Number of token ids.
    pub vocab_size: i64,
    /// Width of a token.
    pub hidden_size: i64,
    /// Width of the feed-forward layers.
    pub intermediate_size: i64,
    /// Number of layers.
    pub layers: i64,
    /// Number of query heads, a multiple of `kv_heads`.
    pub heads: i64,
    /// Number of key and value heads.
    pub kv_heads: i64,
    /// Width of a head, even.
    pub head_dim: i64,
    /// Epsilon of the normalisations.
    pub rms_norm_eps: f64,
    /// Rotary positions.
    pub rope: Rope,
    /// True if query, key and value have a bias.
    pub qkv_bias: bool,
    /// True if the output of the attention has a bias.
    pub output_bias: bool,
    /// True if the feed-forward maps have a bias.
    pub feed_forward_bias: bool,
    /// True if the table of tokens is also the map to the logits.
    pub tied: bool,
    /// The names of the parameters.
    pub names: Names,
}

/// The values that the configs of all families have.
#[derive(Debug, Clone, Deserialize)]
pub struct CommonConfig {
    vocab_size: i64,
    hidden_size: i64,
    intermediate_size: i64,
    num_hidden_layers: i64,
    num_attention_heads: i64,
    num_key_value_heads: Option<i64>,
    head_dim: Option<i64>,
    #[serde(default = "silu")]
    hidden_act: String,
    #[serde(default = "small")]
    rms_norm_eps: f64,
    rope_theta: Option<f64>,
    rope_scaling: Option<Value>,
    rope_parameters: Option<Value>,
    #[serde(default = "positions")]
    max_position_embeddings: i64,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default)]
    use_sliding_window: bool,
}

fn silu() -> String {
    "silu".to_owned()
}

fn small() -> f64 {
    1e-6
}

fn positions() -> i64 {
    32768
}

impl CommonConfig {
    /// Makes the config of a family whose base of wave lengths is `theta` where none is stated.
    ///
    /// # Errors
    /// Names the value that this program does not compute with, and what would work.
    pub fn decoder(&self, names: Names, theta: f64) -> Result<DecoderConfig, String> {
        if self.hidden_act != "silu" {
            return Err(format!("hidden_act is {}, and only silu is known", self.hidden_act));
        }
        if self.use_sliding_window {
            return Err("use_sliding_window is true, and only full attention is known".to_owned());
        }
        let heads = self.num_attention_heads.max(1);
        let config = DecoderConfig {
            vocab_size: self.vocab_size,
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            layers: self.num_hidden_layers,
            heads: self.num_attention_heads,
            kv_heads: self.num_key_value_heads.unwrap_or(self.num_attention_heads),
            head_dim: self.head_dim.unwrap_or(self.hidden_size / heads),
            rms_norm_eps: self.rms_norm_eps,
            rope: self.rope(theta)?,
            qkv_bias: false,
            output_bias: false,
            feed_forward_bias: false,
            tied: self.tie_word_embeddings,
            names,
        };
        config.check().map(|()| config)
    }

    fn rope(&self, theta: f64) -> Result<Rope, String> {
        let parameters = self.rope_parameters.as_ref();
        let stated = parameters.and_then(|parameters| parameters["rope_theta"].as_f64());
        let theta = self.rope_theta.or(stated).unwrap_or(theta);
        let scaling = self.rope_scaling.as_ref().or(parameters);
        let name = scaling.and_then(|scaling| scaling["type"].as_str().or(scaling["rope_type"].as_str()));
        let dynamic = match name {
            None | Some("default") => None,
            Some("dynamic") => Some(scaling.and_then(|scaling| scaling["factor"].as_f64()).unwrap_or(1.)),
            Some(other) => return Err(format!("rope_scaling is {other}, and only dynamic and default are known")),
        };
        Ok(Rope { theta, dynamic, max_positions: self.max_position_embeddings })
    }
}

impl DecoderConfig {
    /// Checks that a network can be built from these values.
    ///
    /// # Errors
    /// Names the value that is wrong.
    pub fn check(&self) -> Result<(), String> {
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_attention_heads", self.heads),
            ("num_key_value_heads", self.kv_heads),
            ("the width of a head", self.head_dim),
        ];
        let layers = [("num_hidden_layers", self.layers)];
        let right = require_sizes(NAME, MAX_SIZE, &sizes).and_then(|()| require_sizes(NAME, MAX_LAYERS, &layers));
        right.map_err(|error| error.problem)?;
        if self.heads % self.kv_heads != 0 {
            let (heads, kv_heads) = (self.heads, self.kv_heads);
            return Err(format!("num_key_value_heads {kv_heads} has to divide num_attention_heads {heads}"));
        }
        if self.head_dim < 2 || self.head_dim % 2 != 0 {
            return Err(format!("a head is {} wide, and has to have an even width", self.head_dim));
        }
        Ok(())
    }

    /// Returns the bytes of the keys and values of `rows` texts of `tokens` tokens, for elements of `kind`.
    pub fn cache_bytes(&self, rows: usize, tokens: i64, kind: tch::Kind) -> u64 {
        // `check` keeps this below 2⁵¹.
        let elements = 2 * self.layers * self.kv_heads * self.head_dim;
        let factors = [rows as u64, tokens.unsigned_abs(), kind.elt_size_in_bytes() as u64];
        factors.into_iter().fold(elements.unsigned_abs(), u64::saturating_mul)
    }
}
